//! The cpu device: always there, needs nothing, runs Rust functions ([`Language::Native`]) on a pool of threads.
//!
//! # Order and soundness
//!
//! Each queue has a worker thread that takes its commands in order, so nothing but the calls that say so waits. Commands
//! of all queues take turns (one lock for the device): a launch uses every thread anyway, and so no two commands ever
//! touch memory at the same time, whatever the caller enqueues.
//!
//! # Imports
//!
//! [`import_memory`](ropeway_core::device::Device::import_memory) takes any host pointer, so that an array of somebody else's is an operand
//! where it lies. A launch is refused if an operand's elements are not aligned to their size, and fails if what it writes overlaps another
//! operand, also by way of two imports. Foreign queues do not exist here.

mod compile;
mod device;
mod queue;
mod sys;

use std::sync::Arc;

use ropeway_core::device::{Device, Driver, OpenOptions, Unavailable};
use ropeway_core::dtype::DType;
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits};
use ropeway_core::kernel::Language;
use ropeway_core::{Error, Result};

/// Alignment in bytes of every allocation of its own: a cache line, and the widest vector.
pub const BASE_ALIGNMENT: u64 = 64;

/// The driver of the cpu device. There is always exactly one.
pub struct CpuDriver;

impl Driver for CpuDriver {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> {
        Ok(vec![info()])
    }

    fn open(&self, ordinal: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        match ordinal {
            0 => Ok(Arc::new(device::CpuDevice::open(info())?)),
            _ => Err(Error::invalid("ordinal", ordinal, "0, the only cpu device")),
        }
    }
}

fn info() -> DeviceInfo {
    let threads = sys::threads();
    let memory = sys::total_memory();
    let dtypes = DType::ALL.map(|dtype| DTypeSupport {
        storage: matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::I8 | DType::I32 | DType::U8),
        arithmetic: matches!(dtype, DType::F32 | DType::I8 | DType::I32),
    });
    DeviceInfo {
        backend: "cpu",
        ordinal: 0,
        name: sys::processor_name(),
        vendor: String::new(),
        platform: "Ropeway native".into(),
        kind: DeviceKind::Cpu,
        execution: Execution::Hardware,
        architecture: std::env::consts::ARCH.into(),
        driver_version: env!("CARGO_PKG_VERSION").into(),
        compiler_version: String::new(),
        memory,
        unified_memory: true,
        compute_units: threads as u32,
        cache: sys::cache_per_core(),
        vector_width: sys::vector_width(),
        subgroup_sizes: Vec::new(),
        matrix_shapes: Vec::new(),
        dtypes,
        features: Vec::new(),
        languages: vec![Language::Native],
        limits: Limits {
            max_buffer: memory,
            base_alignment: BASE_ALIGNMENT,
            local_memory: 0,
            max_group_size: 1,
            max_group: [1; 3],
            max_grid: [u64::MAX; 3],
            loop_rounds: None,
        },
        keeps_denormals: true,
    }
}
