//! OpenCL: every device of every platform, through whatever `libOpenCL` finds at run time. Kernels are OpenCL C 1.2.
//!
//! # Imports
//!
//! [`import_memory`](ropeway_core::device::Device::import_memory) takes a `cl_mem` and
//! [`import_queue`](ropeway_core::device::Device::import_queue) an in-order `cl_command_queue`; both are retained. OpenCL shares
//! nothing between contexts, so they must be of the device's own context: open the device inside the engine's context with
//! [`adopt`], or make the engine's objects in the device's ([`context`]).

mod compile;
mod device;
mod queue;
mod sys;

use std::any::Any;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cl3::device as cl;
use ropeway_core::device::{Device, Driver, OpenOptions, Reason, Unavailable};
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits};
use ropeway_core::kernel::Language;
use ropeway_core::memory::DeviceId;
use ropeway_core::{DType, Error, Result};

use self::device::{OpenClDevice, Shared};
use self::sys::{DeviceHandle, Handle};

/// The driver of all OpenCL devices.
pub struct OpenClDriver;

impl Driver for OpenClDriver {
    fn name(&self) -> &'static str {
        "opencl"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        Ok(find()?.into_iter().map(|(_, info)| info).collect())
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
        let (handle, info) = devices.swap_remove(ordinal);
        let context = sys::Context::new(handle)?;
        let shared = Shared::new(DeviceId::unique(), info, handle, context);
        Ok(Arc::new(OpenClDevice::new(shared, options)?))
    }
}

/// Opens a device inside a context that somebody else made, so that memory and queues of that context can be imported.
///
/// # Errors
/// `Unavailable` without OpenCL, `InvalidArgument` if no usable device has this handle or it is not the context's.
///
/// # Safety
/// `context` must be a valid `cl_context`. It is retained.
pub unsafe fn adopt(
    context: *mut c_void,
    device: *mut c_void,
    options: &OpenOptions,
) -> Result<Arc<dyn Device>> {
    let found = find()?.into_iter().find(|(handle, _)| handle.0 == device);
    let Some((handle, info)) = found else {
        return Err(Error::invalid(
            "device",
            "an unknown handle",
            "a usable OpenCL device",
        ));
    };
    // SAFETY: the caller gives a valid context.
    let context = unsafe { sys::Context::retained(context) }?;
    if !context.holds(handle)? {
        return Err(Error::invalid(
            "context",
            "one without the device",
            "one that holds it",
        ));
    }
    let shared = Shared::new(DeviceId::unique(), info, handle, context);
    Ok(Arc::new(OpenClDevice::new(shared, options)?))
}

/// The `cl_context` of an open device, which stays its own; `None` if the device is another backend's.
pub fn context(device: &dyn Device) -> Option<*mut c_void> {
    let device: &dyn Any = device;
    device
        .downcast_ref::<OpenClDevice>()
        .map(OpenClDevice::context)
}

/// The usable devices in the order of platforms and of devices within them.
fn find() -> Result<Vec<(DeviceHandle, DeviceInfo)>, Unavailable> {
    // PoCL 3.1 sets its devices up when they are first asked for, and answers a second thread from what is half set up.
    static FIRST: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    if !cl3::is_opencl_runtime_available() {
        return Err(Unavailable {
            reason: Reason::LibraryNotFound { tried: library_names() },
            remedy: "install the OpenCL loader and a driver (Debian and Ubuntu: apt-get install ocl-icd-libopencl1, and \
                     pocl-opencl-icd for the CPU or the GPU vendor's package)"
                .into(),
        });
    }
    let no_driver = |reason| {
        Unavailable {
        reason,
        remedy: "install an OpenCL driver (Debian and Ubuntu: apt-get install pocl-opencl-icd for the CPU, or the GPU vendor's \
                 package) and check that /etc/OpenCL/vendors names it"
            .into(),
    }
    };
    let platforms = match sys::platforms() {
        Err(error) if error.code() == Some(sys::PLATFORM_NOT_FOUND.into()) => {
            return Err(no_driver(Reason::NoDevice));
        }
        Err(error) => return Err(no_driver(Reason::InitialisationFailed(error))),
        Ok(platforms) => platforms,
    };
    let (mut found, mut failure) = (Vec::new(), None);
    for platform in platforms {
        // One platform that is broken must not hide the others.
        match sys::devices(platform) {
            Ok(devices) => {
                for device in devices {
                    match describe(platform, device, found.len()) {
                        Ok(Some(info)) => found.push((device, info)),
                        Ok(None) => {}
                        Err(error) => failure = Some(error),
                    }
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(no_driver(Reason::InitialisationFailed(error))),
        _ if found.is_empty() => Err(no_driver(Reason::NoDevice)),
        Some(error) => {
            tracing::warn!(%error, "an OpenCL platform or device does not answer and is left out");
            Ok(found)
        }
        None => Ok(found),
    }
}

/// What the loader tries, in its order.
fn library_names() -> Vec<String> {
    let own = std::env::var("OPENCL_DYLIB_PATH").unwrap_or_default();
    let mut names: Vec<String> = own
        .split(';')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect();
    names.push(
        if cfg!(target_os = "windows") {
            "OpenCL.dll"
        } else if cfg!(target_os = "macos") {
            "/System/Library/Frameworks/OpenCL.framework/OpenCL"
        } else {
            "libOpenCL.so.1"
        }
        .into(),
    );
    names
}

/// What a device says of itself; `None` if it cannot be used (not available, or no compiler).
fn describe(
    platform: *mut c_void,
    device: DeviceHandle,
    ordinal: usize,
) -> Result<Option<DeviceInfo>> {
    if device.number(cl::CL_DEVICE_AVAILABLE)? == 0
        || device.number(cl::CL_DEVICE_COMPILER_AVAILABLE)? == 0
    {
        return Ok(None);
    }
    let platform_name = sys::platform_text(platform, cl3::platform::CL_PLATFORM_NAME)?;
    let platform_version = sys::platform_text(platform, cl3::platform::CL_PLATFORM_VERSION)?;
    let kinds = device.number(cl::CL_DEVICE_TYPE)?;
    let kind = if kinds & cl::CL_DEVICE_TYPE_GPU != 0 {
        DeviceKind::Gpu
    } else if kinds & cl::CL_DEVICE_TYPE_CPU != 0 {
        DeviceKind::Cpu
    } else {
        DeviceKind::Other
    };
    let execution = if platform_name.to_lowercase().contains("oclgrind") {
        Execution::Emulated
    } else if kind == DeviceKind::Cpu {
        Execution::Software
    } else {
        Execution::Hardware
    };
    let extensions = device.text(cl::CL_DEVICE_EXTENSIONS)?;
    let mut features: Vec<String> = extensions.split_whitespace().map(str::to_owned).collect();
    features.sort_unstable();
    features.dedup();
    let has = |name: &str| features.iter().any(|feature| feature == name);
    let group = |axis: usize, sizes: &[u8]| {
        sizes
            .chunks_exact(size_of::<usize>())
            .nth(axis)
            .map_or(1, |size| sys::number(size).min(u32::MAX.into()) as u32)
    };
    let sizes = device.query(cl::CL_DEVICE_MAX_WORK_ITEM_SIZES)?;
    let half = has("cl_khr_fp16");
    Ok(Some(DeviceInfo {
        backend: "opencl",
        ordinal,
        name: device.text(cl::CL_DEVICE_NAME)?,
        vendor: device.text(cl::CL_DEVICE_VENDOR)?,
        kind,
        execution,
        architecture: architecture(device, &has),
        driver_version: device.text(cl::CL_DRIVER_VERSION)?,
        compiler_version: format!(
            "{}; {platform_version}",
            device.text(cl::CL_DEVICE_OPENCL_C_VERSION)?
        ),
        platform: platform_name,
        memory: device.number(cl::CL_DEVICE_GLOBAL_MEM_SIZE)?,
        unified_memory: device.number(cl::CL_DEVICE_HOST_UNIFIED_MEMORY)? != 0,
        compute_units: device.number(cl::CL_DEVICE_MAX_COMPUTE_UNITS)? as u32,
        cache: cache(device, kind)?,
        vector_width: device
            .number(cl::CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT)?
            .max(1) as u32,
        subgroup_sizes: subgroup_sizes(device, &has),
        matrix_shapes: Vec::new(),
        dtypes: DType::ALL.map(|dtype| match dtype {
            DType::F32 | DType::I8 | DType::I32 | DType::U8 => DTypeSupport {
                storage: true,
                arithmetic: true,
            },
            // `vload_half` and `vstore_half` are core OpenCL C; bfloat16 is the upper half of a float.
            DType::F16 => DTypeSupport {
                storage: true,
                arithmetic: half,
            },
            DType::BF16 => DTypeSupport {
                storage: true,
                arithmetic: false,
            },
            _ => DTypeSupport::default(),
        }),
        languages: vec![Language::OpenClC],
        limits: Limits {
            max_buffer: device.number(cl::CL_DEVICE_MAX_MEM_ALLOC_SIZE)?,
            base_alignment: device
                .number(cl::CL_DEVICE_MEM_BASE_ADDR_ALIGN)?
                .div_ceil(8),
            local_memory: device.number(cl::CL_DEVICE_LOCAL_MEM_SIZE)?,
            max_group_size: device
                .number(cl::CL_DEVICE_MAX_WORK_GROUP_SIZE)?
                .min(u32::MAX.into()) as u32,
            max_group: [0, 1, 2].map(|axis| group(axis, &sizes)),
            // OpenCL names no limit but the width of `size_t`; group numbers beyond 32 bits work nowhere.
            max_grid: [u32::MAX.into(); 3],
            loop_rounds: None,
        },
        keeps_denormals: device.number(cl::CL_DEVICE_SINGLE_FP_CONFIG)? & cl::CL_FP_DENORM != 0,
        features,
    }))
}

/// The vendor's name of the instruction set, where a vendor tells.
fn architecture(device: DeviceHandle, has: &impl Fn(&str) -> bool) -> String {
    if has("cl_nv_device_attribute_query")
        && let Ok(major) = device.number(cl::CL_DEVICE_COMPUTE_CAPABILITY_MAJOR_NV)
        && let Ok(minor) = device.number(cl::CL_DEVICE_COMPUTE_CAPABILITY_MINOR_NV)
    {
        return format!("sm_{major}{minor}");
    }
    String::new()
}

/// `CL_DEVICE_SUB_GROUP_SIZES_INTEL` of `cl_intel_required_subgroup_size`, which `cl3` lacks.
const SUB_GROUP_SIZES_INTEL: u32 = 0x4108;

/// Subgroup sizes: those that the vendor lists, else its warp or wave.
fn subgroup_sizes(device: DeviceHandle, has: &impl Fn(&str) -> bool) -> Vec<u32> {
    // Core since OpenCL 3.0, where the number is 0 on devices without.
    let core = device.number(cl::CL_DEVICE_MAX_NUM_SUB_GROUPS).unwrap_or(0) > 0;
    if !core && !has("cl_khr_subgroups") && !has("cl_intel_subgroups") {
        return Vec::new();
    }
    if has("cl_intel_required_subgroup_size")
        && let Ok(sizes) = device.query(SUB_GROUP_SIZES_INTEL)
    {
        return sizes
            .chunks_exact(size_of::<usize>())
            .map(|size| sys::number(size) as u32)
            .collect();
    }
    [
        cl::CL_DEVICE_WARP_SIZE_NV,
        cl::CL_DEVICE_WAVEFRONT_WIDTH_AMD,
    ]
    .into_iter()
    .find_map(|name| device.number(name).ok())
    .map(|size| vec![size as u32])
    .unwrap_or_default()
}

/// On a CPU the level-2 cache of a core, which OpenCL does not tell but the host's own system does; elsewhere OpenCL's answer.
fn cache(device: DeviceHandle, kind: DeviceKind) -> Result<u64> {
    if kind == DeviceKind::Cpu
        && let Ok(size) = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size")
        && let Some(kibibytes) = size.trim().strip_suffix('K')
        && let Ok(kibibytes) = kibibytes.parse::<u64>()
    {
        return Ok(kibibytes << 10);
    }
    device.number(cl::CL_DEVICE_GLOBAL_MEM_CACHE_SIZE)
}
