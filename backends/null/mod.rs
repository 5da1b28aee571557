//! The null device: the template of a backend, and a recorder of calls.
//!
//! It is a whole backend with nothing behind it. Memory is host memory, so copies and fills do what they say; launches are
//! checked and recorded, but not executed. Tests read the [`Recording`] to see what reaches a device, and benchmarks enqueue on
//! it to measure what the host alone costs. See `README.md` for how to copy it.

mod compile;
mod device;
mod queue;
mod recording;
mod sys;

use std::any::Any;
use std::sync::Arc;

use ropeway_core::device::{Device, Driver, OpenOptions, Unavailable};
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits};
use ropeway_core::kernel::Language;
use ropeway_core::{DType, Error, Result};

pub use self::recording::{Call, Place, RecordedArgument, Recording};

/// The driver of the null device. There is always exactly one.
pub struct NullDriver;

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        "null"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        Ok(vec![info()])
    }

    fn open(&self, ordinal: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        match ordinal {
            0 => Ok(Arc::new(device::NullDevice::new(info()))),
            _ => Err(Error::invalid(
                "ordinal",
                ordinal,
                "0, the only null device",
            )),
        }
    }
}

/// What a null device was asked to do; `None` if the device is another backend's.
pub fn recording(device: &dyn Device) -> Option<&Recording> {
    let device: &dyn Any = device;
    device
        .downcast_ref::<device::NullDevice>()
        .map(device::NullDevice::recording)
}

fn info() -> DeviceInfo {
    DeviceInfo {
        backend: "null",
        ordinal: 0,
        name: "null".into(),
        vendor: String::new(),
        platform: "Ropeway null".into(),
        kind: DeviceKind::Other,
        execution: Execution::Recorded,
        architecture: String::new(),
        driver_version: env!("CARGO_PKG_VERSION").into(),
        compiler_version: String::new(),
        memory: sys::MEMORY,
        unified_memory: true,
        compute_units: 1,
        cache: 0,
        vector_width: 1,
        subgroup_sizes: Vec::new(),
        matrix_shapes: Vec::new(),
        dtypes: DType::ALL.map(|dtype| DTypeSupport {
            storage: dtype.size().is_some(),
            arithmetic: dtype.size().is_some(),
        }),
        features: Vec::new(),
        // Every language that is compiled or loaded. Native functions are not: they would have to be called.
        languages: vec![
            Language::OpenClC,
            Language::CudaC,
            Language::CudaBinary,
            Language::SpirV,
            Language::AscendC,
            Language::AscendBinary,
        ],
        limits: Limits {
            max_buffer: sys::MEMORY,
            base_alignment: 256,
            local_memory: 64 << 10,
            max_group_size: 1024,
            max_group: [1024; 3],
            max_grid: [u32::MAX.into(); 3],
            loop_rounds: None,
        },
        keeps_denormals: true,
    }
}
