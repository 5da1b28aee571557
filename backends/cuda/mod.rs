//! CUDA: every NVIDIA GPU, through the driver (`libcuda`) that is found at run time. Kernels are CUDA C++, compiled by NVRTC for
//! the device's architecture.
//!
//! # Imports
//!
//! A device works in its GPU's primary context, which CUDA's runtime and every library on it use too. So
//! [`import_memory`](ropeway_core::device::Device::import_memory) takes any device pointer of that GPU (a `CUdeviceptr`, or what `cudaMalloc`
//! gave) and [`import_queue`](ropeway_core::device::Device::import_queue) any `CUstream` or `cudaStream_t` of it but the
//! legacy default stream 0, also one that is being captured. Calls leave the primary context current on the calling thread.

mod binaries;
mod compile;
mod described;
mod device;
mod graph;
mod memory;
mod nvrtc;
mod queue;
mod sys;

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use cudarc::driver::sys as cu;
use ropeway_core::device::{Device, Driver, OpenOptions, Reason, Unavailable};
use ropeway_core::info::{
    DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits, MatrixShape,
};
use ropeway_core::kernel::Language;
use ropeway_core::{DType, Error, Result};

pub use self::binaries::{Target, precompile};
pub use self::described::described;

use self::device::CudaDevice;
use self::sys::run;

/// The driver of all NVIDIA GPUs.
pub struct CudaDriver;

impl Driver for CudaDriver {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        find()
    }

    fn open(&self, ordinal: usize, options: &OpenOptions) -> Result<Arc<dyn Device>> {
        let mut devices = find()?;
        if ordinal >= devices.len() {
            let count = devices.len();
            return Err(Error::invalid(
                "ordinal",
                ordinal,
                format!("less than {count}"),
            ));
        }
        let info = devices.swap_remove(ordinal);
        Ok(Arc::new(CudaDevice::open(info, options)?))
    }
}

fn find() -> Result<Vec<DeviceInfo>, Unavailable> {
    let version = sys::load()?;
    let failed = |reason| Unavailable {
        reason,
        remedy: "check the driver with nvidia-smi, and the devices that CUDA_VISIBLE_DEVICES names".into(),
    };
    let mut count = 0;
    // SAFETY: the pointer is valid.
    let counted = unsafe { run!(cuDeviceGetCount(&raw mut count)) };
    counted.map_err(|error| failed(Reason::InitialisationFailed(error)))?;
    let (mut found, mut failure) = (Vec::new(), None);
    for ordinal in 0..count {
        // One GPU that does not answer must not hide the others.
        match describe(ordinal, version) {
            Ok(info) => found.push(info),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(failed(Reason::InitialisationFailed(error))),
        _ if found.is_empty() => Err(failed(Reason::NoDevice)),
        Some(error) => {
            tracing::warn!(%error, "a CUDA device does not answer and is left out");
            Ok(found)
        }
        None => Ok(found),
    }
}

/// The GPU of this number in CUDA's order.
fn handle(ordinal: usize) -> Result<cu::CUdevice> {
    let mut device = 0;
    // SAFETY: the pointer is valid.
    unsafe { run!(cuDeviceGet(&raw mut device, ordinal as c_int)) }?;
    Ok(device)
}

/// Compute capabilities that kernels may ask for, each with the names of all before it.
const CAPABILITIES: [u32; 13] = [70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121];

/// The names by which kernels require a compute capability: `sm_80` for 8.0 and every later one, `sm_90a` for 9.0 alone, whose
/// instructions no other has.
fn capabilities(capability: u32) -> Vec<String> {
    let mut names: Vec<String> = CAPABILITIES
        .into_iter()
        .filter(|known| *known <= capability)
        .map(|known| format!("sm_{known}"))
        .collect();
    if capability == 90 {
        names.push("sm_90a".into());
    }
    names.sort_unstable();
    names
}

/// The tiles of `mma.sync`, from 8.0 on.
fn matrix_shapes(capability: u32) -> Vec<MatrixShape> {
    if capability < 80 {
        return Vec::new();
    }
    let shape = |k, input, accumulator| MatrixShape {
        m: 16,
        n: 8,
        k,
        input,
        accumulator,
    };
    vec![
        shape(16, DType::F16, DType::F32),
        shape(16, DType::BF16, DType::F32),
        shape(32, DType::I8, DType::I32),
    ]
}

/// How a device of a compute capability works with each dtype.
fn dtypes(capability: u32) -> [DTypeSupport; DType::ALL.len()] {
    DType::ALL.map(|dtype| match dtype {
        DType::F32 | DType::F16 | DType::I8 | DType::I32 | DType::U8 => DTypeSupport {
            storage: true,
            arithmetic: true,
        },
        DType::BF16 => DTypeSupport {
            storage: true,
            arithmetic: capability >= 80,
        },
        _ => DTypeSupport::default(),
    })
}

fn describe(ordinal: c_int, version: c_int) -> Result<DeviceInfo> {
    use cu::CUdevice_attribute as A;
    let device = handle(ordinal as usize)?;
    let attribute = |name: A| {
        let mut value = 0;
        // SAFETY: the pointer is valid.
        unsafe { run!(cuDeviceGetAttribute(&raw mut value, name, device)) }?;
        Ok::<_, Error>(value.max(0) as u32)
    };
    let mut name = [0 as c_char; 256];
    // SAFETY: the pointer has as many bytes as it says.
    unsafe { run!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)) }?;
    // SAFETY: the driver ends the name with NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    let mut memory = 0;
    // SAFETY: the pointer is valid.
    unsafe { run!(cuDeviceTotalMem_v2(&raw mut memory, device)) }?;
    let memory = memory as u64;
    let capability = 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
        + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let unified = attribute(A::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
    Ok(DeviceInfo {
        backend: "cuda",
        ordinal: ordinal as usize,
        name: name.to_string_lossy().into_owned(),
        vendor: "NVIDIA".into(),
        platform: "CUDA".into(),
        kind: DeviceKind::Gpu,
        execution: match sys::is_emulated() {
            true => Execution::Emulated,
            false => Execution::Hardware,
        },
        architecture: format!("sm_{capability}"),
        driver_version: sys::version_text(version),
        compiler_version: nvrtc::version().map_or("no NVRTC".into(), |version| {
            format!("NVRTC {version}")
        }),
        memory,
        unified_memory: unified,
        compute_units: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        cache: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        vector_width: 1,
        subgroup_sizes: vec![attribute(A::CU_DEVICE_ATTRIBUTE_WARP_SIZE)?],
        matrix_shapes: matrix_shapes(capability),
        dtypes: dtypes(capability),
        features: capabilities(capability),
        languages: vec![Language::CudaC],
        limits: Limits {
            max_buffer: memory,
            base_alignment: 256,
            local_memory: attribute(
                A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?
            .into(),
            max_group_size: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            max_group: [
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
            ],
            max_grid: [
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?.into(),
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?.into(),
                attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?.into(),
            ],
            loop_rounds: None,
        },
        keeps_denormals: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_has_the_names_of_all_before_it() {
        assert_eq!(capabilities(75), ["sm_70", "sm_72", "sm_75"]);
        let hopper = capabilities(90);
        for name in ["sm_70", "sm_80", "sm_89", "sm_90", "sm_90a"] {
            assert!(hopper.iter().any(|known| known == name), "{name}");
        }
        let blackwell = capabilities(120);
        assert!(blackwell.iter().any(|known| known == "sm_100"));
        assert!(!blackwell.iter().any(|known| known == "sm_90a"));
        assert!(blackwell.is_sorted());
    }
}
