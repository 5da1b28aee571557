//! Backends, devices and why there are none; opening one.

use std::ffi::{CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::Arc;

use ropeway_core::device::{Device, OpenOptions, Reason};
use ropeway_core::info::{DeviceInfo, DeviceKind, Execution};
use ropeway_core::{DType, Error, Result};
use ropeway_rust::{Registry, Session, cache_dir};

use crate::sized::{self, sized_structs};
use crate::status::{
    borrow, c_string, create, entry, optional_text, release, ropeway_status, text, write_out,
};

/// A snapshot of what every backend answered: its devices, or why it has none.
pub struct ropeway_probe {
    backends: Vec<ProbedBackend>,
}

struct ProbedBackend {
    name: CString,
    devices: Vec<Described>,
    /// Code, reason, remedy.
    unavailable: Option<(u32, CString, CString)>,
}

/// An open device: memory, queues, plans. Its handles share it.
pub struct ropeway_device {
    pub(crate) session: Arc<Session>,
    described: Described,
}

/// Why a backend has no device.
pub type ropeway_unavailable = u32;
/// It has devices.
pub const ROPEWAY_AVAILABLE: ropeway_unavailable = 0;
/// A library could not be loaded.
pub const ROPEWAY_UNAVAILABLE_LIBRARY_NOT_FOUND: ropeway_unavailable = 1;
/// A library lacks a function that the backend needs.
pub const ROPEWAY_UNAVAILABLE_SYMBOL_MISSING: ropeway_unavailable = 2;
/// The driver is older than the backend can use.
pub const ROPEWAY_UNAVAILABLE_VERSION_TOO_OLD: ropeway_unavailable = 3;
/// The library is there, but reports no device.
pub const ROPEWAY_UNAVAILABLE_NO_DEVICE: ropeway_unavailable = 4;
/// The only devices there lack what the backend cannot do without.
pub const ROPEWAY_UNAVAILABLE_FEATURE_MISSING: ropeway_unavailable = 5;
/// The library is there, but its initialisation failed.
pub const ROPEWAY_UNAVAILABLE_INITIALISATION_FAILED: ropeway_unavailable = 6;
/// Something that no code above covers; the text says it.
pub const ROPEWAY_UNAVAILABLE_OTHER: ropeway_unavailable = 7;

/// What a backend answered. The strings live as long as the probe.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_backend_info {
    /// sizeof(ropeway_backend_info)
    pub struct_size: usize,
    /// The backend's name ("opencl"), by which devices are selected.
    pub name: *const c_char,
    /// Its devices.
    pub device_count: usize,
    /// Why it has none; NULL if it has.
    pub reason: *const c_char,
    /// What to install or set, in a sentence; NULL if it has devices.
    pub remedy: *const c_char,
    /// The reason as a code.
    pub unavailable: ropeway_unavailable,
    /// 0.
    pub reserved: u32,
}

/// What sort of processor a device is.
pub type ropeway_device_kind = u32;
/// Anything else.
pub const ROPEWAY_DEVICE_KIND_OTHER: ropeway_device_kind = 0;
/// Few wide cores, explicit vectors, caches.
pub const ROPEWAY_DEVICE_KIND_CPU: ropeway_device_kind = 1;
/// Many narrow lanes, explicit local memory.
pub const ROPEWAY_DEVICE_KIND_GPU: ropeway_device_kind = 2;
/// A matrix accelerator.
pub const ROPEWAY_DEVICE_KIND_NPU: ropeway_device_kind = 3;

/// What really executes the work.
pub type ropeway_execution_kind = u32;
/// The named chip itself.
pub const ROPEWAY_EXECUTION_HARDWARE: ropeway_execution_kind = 0;
/// A driver that runs a vendor-neutral interface on the host's processor (PoCL, lavapipe).
pub const ROPEWAY_EXECUTION_SOFTWARE: ropeway_execution_kind = 1;
/// A double of a vendor's driver.
pub const ROPEWAY_EXECUTION_EMULATED: ropeway_execution_kind = 2;
/// Nothing: calls are recorded only.
pub const ROPEWAY_EXECUTION_RECORDED: ropeway_execution_kind = 3;

/// What a device is and can do. The strings live as long as the handle that was asked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_device_info {
    /// sizeof(ropeway_device_info)
    pub struct_size: usize,
    /// By which it is opened: "opencl:0".
    pub selector: *const c_char,
    /// The backend's name.
    pub backend: *const c_char,
    /// The device's own name.
    pub name: *const c_char,
    /// Who made it.
    pub vendor: *const c_char,
    /// The platform or driver that speaks for it.
    pub platform: *const c_char,
    /// The vendor's name of the instruction set ("sm_90a"), or "".
    pub architecture: *const c_char,
    /// Version of the driver.
    pub driver_version: *const c_char,
    /// Version of the run-time compiler.
    pub compiler_version: *const c_char,
    /// Bytes of device memory.
    pub memory: u64,
    /// Bytes of the largest single buffer.
    pub max_buffer: u64,
    /// Alignment in bytes of the base address of a buffer that the library allocates.
    pub base_alignment: u64,
    /// Cores, multiprocessors or compute units.
    pub compute_units: u32,
    /// Its number among the backend's devices.
    pub ordinal: u32,
    /// What sort of processor it is.
    pub kind: ropeway_device_kind,
    /// What executes the work.
    pub execution: ropeway_execution_kind,
    /// Bit d is set if kernels can load and store dtype d.
    pub storage_dtypes: u32,
    /// Bit d is set if the device computes in dtype d natively.
    pub arithmetic_dtypes: u32,
    /// 1 if the host can address the same memory without a copy.
    pub unified_memory: u32,
    /// 0.
    pub reserved: u32,
}

/// Choices at opening a device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_device_options {
    /// sizeof(ropeway_device_options)
    pub struct_size: usize,
    /// Where compiled kernels are kept between runs. NULL: $ROPEWAY_CACHE_DIR, or "ropeway" in the user's cache directory. "": nowhere.
    pub cache_dir: *const c_char,
    /// Kernels that were compiled beforehand (`ropeway compile`), for machines without the vendor's compiler; the directory must be writable
    /// for this user or root only. NULL: $ROPEWAY_BINARIES_DIR, if that is set.
    pub binaries_dir: *const c_char,
}

/// Device memory in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_memory_use {
    /// sizeof(ropeway_memory_use)
    pub struct_size: usize,
    /// In use through this open device.
    pub used: u64,
    /// Free; UINT64_MAX where the driver does not tell.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

sized_structs!(
    ropeway_backend_info,
    ropeway_device_info,
    ropeway_device_options,
    ropeway_memory_use,
);

/// The description of a device with its texts for C.
struct Described {
    info: DeviceInfo,
    selector: CString,
    backend: CString,
    name: CString,
    vendor: CString,
    platform: CString,
    architecture: CString,
    driver_version: CString,
    compiler_version: CString,
}

impl Described {
    fn new(info: &DeviceInfo) -> Described {
        Described {
            selector: c_string(info.selector()),
            backend: c_string(info.backend),
            name: c_string(info.name.as_str()),
            vendor: c_string(info.vendor.as_str()),
            platform: c_string(info.platform.as_str()),
            architecture: c_string(info.architecture.as_str()),
            driver_version: c_string(info.driver_version.as_str()),
            compiler_version: c_string(info.compiler_version.as_str()),
            info: info.clone(),
        }
    }

    fn as_struct(&self) -> ropeway_device_info {
        let info = &self.info;
        let dtypes = |has: fn(&DeviceInfo, DType) -> bool| {
            DType::ALL
                .into_iter()
                .filter(|&dtype| has(info, dtype))
                .fold(0, |bits, dtype| {
                    bits | 1 << crate::tensor::dtype_code(dtype)
                })
        };
        ropeway_device_info {
            struct_size: size_of::<ropeway_device_info>(),
            selector: self.selector.as_ptr(),
            backend: self.backend.as_ptr(),
            name: self.name.as_ptr(),
            vendor: self.vendor.as_ptr(),
            platform: self.platform.as_ptr(),
            architecture: self.architecture.as_ptr(),
            driver_version: self.driver_version.as_ptr(),
            compiler_version: self.compiler_version.as_ptr(),
            memory: info.memory,
            max_buffer: info.limits.max_buffer,
            base_alignment: info.limits.base_alignment,
            compute_units: info.compute_units,
            ordinal: info.ordinal as u32,
            kind: match info.kind {
                DeviceKind::Cpu => ROPEWAY_DEVICE_KIND_CPU,
                DeviceKind::Gpu => ROPEWAY_DEVICE_KIND_GPU,
                DeviceKind::Npu => ROPEWAY_DEVICE_KIND_NPU,
                _ => ROPEWAY_DEVICE_KIND_OTHER,
            },
            execution: match info.execution {
                Execution::Hardware => ROPEWAY_EXECUTION_HARDWARE,
                Execution::Software => ROPEWAY_EXECUTION_SOFTWARE,
                Execution::Emulated => ROPEWAY_EXECUTION_EMULATED,
                Execution::Recorded => ROPEWAY_EXECUTION_RECORDED,
            },
            storage_dtypes: dtypes(|info, dtype| info.dtype(dtype).storage),
            arithmetic_dtypes: dtypes(|info, dtype| info.dtype(dtype).arithmetic),
            unified_memory: info.unified_memory.into(),
            reserved: 0,
        }
    }
}

pub(crate) unsafe extern "C" fn probe(out: *mut *mut ropeway_probe) -> ropeway_status {
    let make = || {
        let backends = Registry::default().probe().into_iter().map(|probe| {
            let (devices, unavailable) = match probe.devices {
                Ok(devices) => (devices, None),
                Err(why) => {
                    let reason = c_string(why.reason.to_string());
                    let unavailable = (reason_code(&why.reason), reason, c_string(why.remedy));
                    (Vec::new(), Some(unavailable))
                }
            };
            ProbedBackend {
                name: c_string(probe.backend),
                devices: devices.iter().map(Described::new).collect(),
                unavailable,
            }
        });
        Ok(ropeway_probe {
            backends: backends.collect(),
        })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

fn reason_code(reason: &Reason) -> ropeway_unavailable {
    match reason {
        Reason::LibraryNotFound { .. } => ROPEWAY_UNAVAILABLE_LIBRARY_NOT_FOUND,
        Reason::SymbolMissing { .. } => ROPEWAY_UNAVAILABLE_SYMBOL_MISSING,
        Reason::VersionTooOld { .. } => ROPEWAY_UNAVAILABLE_VERSION_TOO_OLD,
        Reason::NoDevice => ROPEWAY_UNAVAILABLE_NO_DEVICE,
        Reason::FeatureMissing { .. } => ROPEWAY_UNAVAILABLE_FEATURE_MISSING,
        Reason::InitialisationFailed(_) => ROPEWAY_UNAVAILABLE_INITIALISATION_FAILED,
        _ => ROPEWAY_UNAVAILABLE_OTHER,
    }
}

pub(crate) unsafe extern "C" fn probe_backend_count(probe: *const ropeway_probe) -> usize {
    // SAFETY: the handle is null or alive.
    unsafe { probe.as_ref() }.map_or(0, |probe| probe.backends.len())
}

fn nth<'a, T>(list: &'a [T], index: usize, name: &str) -> Result<&'a T> {
    list.get(index)
        .ok_or_else(|| Error::invalid(name, index, format!("less than {}", list.len())))
}

pub(crate) unsafe extern "C" fn probe_backend(
    probe: *const ropeway_probe,
    backend: usize,
    out: *mut ropeway_backend_info,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let probe = unsafe { borrow(probe, "probe") }?;
        let found = nth(&probe.backends, backend, "backend")?;
        let null = std::ptr::null();
        let unavailable = found.unavailable.as_ref();
        let (code, reason, remedy) = unavailable.map_or((ROPEWAY_AVAILABLE, null, null), |why| {
            (why.0, why.1.as_ptr(), why.2.as_ptr())
        });
        let info = ropeway_backend_info {
            struct_size: size_of::<ropeway_backend_info>(),
            name: found.name.as_ptr(),
            device_count: found.devices.len(),
            reason,
            remedy,
            unavailable: code,
            reserved: 0,
        };
        // SAFETY: the struct is what the header asks for.
        unsafe { sized::write(out, &info, "out") }
    })
}

pub(crate) unsafe extern "C" fn probe_device(
    probe: *const ropeway_probe,
    backend: usize,
    device: usize,
    out: *mut ropeway_device_info,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let probe = unsafe { borrow(probe, "probe") }?;
        let found = nth(&probe.backends, backend, "backend")?;
        let device = nth(&found.devices, device, "device")?;
        // SAFETY: the struct is what the header asks for.
        unsafe { sized::write(out, &device.as_struct(), "out") }
    })
}

pub(crate) unsafe extern "C" fn probe_release(probe: *mut ropeway_probe) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(probe) }
}

/// The options of the environment, with the caller's in their place.
///
/// # Safety
/// `options` and its strings are null or valid.
unsafe fn open_options(options: *const ropeway_device_options) -> Result<OpenOptions> {
    let mut open = OpenOptions {
        cache_dir: cache_dir(),
        binaries_dir: std::env::var_os("ROPEWAY_BINARIES_DIR").map(PathBuf::from),
    };
    if options.is_null() {
        return Ok(open);
    }
    // SAFETY: the caller's promise.
    let options = unsafe { sized::read(options, "options") }?;
    // SAFETY: the caller's promise.
    if let Some(dir) = unsafe { optional_text(options.cache_dir, "cache_dir") }? {
        open.cache_dir = (!dir.is_empty()).then(|| dir.into());
    }
    // SAFETY: the caller's promise.
    if let Some(dir) = unsafe { optional_text(options.binaries_dir, "binaries_dir") }? {
        open.binaries_dir = Some(dir.into());
    }
    Ok(open)
}

fn opened(device: Arc<dyn Device>) -> Result<ropeway_device> {
    Ok(ropeway_device {
        described: Described::new(device.info()),
        session: Arc::new(Session::new(device)?),
    })
}

pub(crate) unsafe extern "C" fn device_open(
    selector: *const c_char,
    options: *const ropeway_device_options,
    out: *mut *mut ropeway_device,
) -> ropeway_status {
    let make = || {
        // SAFETY: the arguments are what the header asks for.
        let (selector, options) = unsafe { (text(selector, "selector")?, open_options(options)?) };
        let mut registry = Registry::empty(options);
        for driver in ropeway_backends::drivers() {
            registry.add(driver);
        }
        opened(registry.open(selector)?)
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn device_adopt(
    backend: *const c_char,
    context: *mut c_void,
    native_device: *mut c_void,
    options: *const ropeway_device_options,
    out: *mut *mut ropeway_device,
) -> ropeway_status {
    let make = || {
        // SAFETY: the arguments are what the header asks for.
        let (backend, options) = unsafe { (text(backend, "backend")?, open_options(options)?) };
        if backend != "opencl" {
            return Err(Error::unsupported(format!(
                "a context of {backend:?}: only one of \"opencl\" can be adopted; other backends use the device's own"
            )));
        }
        if context.is_null() || native_device.is_null() {
            return Err(Error::invalid(
                "context",
                "NULL",
                "a cl_context and a cl_device_id",
            ));
        }
        // SAFETY: the caller gives a valid context.
        opened(unsafe { ropeway_backends::opencl::adopt(context, native_device, &options) }?)
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn device_info(
    device: *const ropeway_device,
    out: *mut ropeway_device_info,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the arguments are what the header asks for.
        unsafe {
            let device = borrow(device, "device")?;
            sized::write(out, &device.described.as_struct(), "out")
        }
    })
}

pub(crate) unsafe extern "C" fn device_memory(
    device: *const ropeway_device,
    out: *mut ropeway_memory_use,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?;
        let memory = device.session.device().memory()?;
        let memory = ropeway_memory_use {
            struct_size: size_of::<ropeway_memory_use>(),
            used: memory.used,
            free: memory.free.unwrap_or(u64::MAX),
            total: memory.total,
        };
        // SAFETY: the struct is what the header asks for.
        unsafe { sized::write(out, &memory, "out") }
    })
}

pub(crate) unsafe extern "C" fn device_native_context(
    device: *const ropeway_device,
    out: *mut *mut c_void,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?.session.device();
        let context = ropeway_backends::opencl::context(&**device).ok_or_else(|| {
            Error::unsupported(format!("{} has no context to share", device.info().backend))
        })?;
        // SAFETY: `out` is what the header asks for.
        unsafe { write_out(out, "out", context) }
    })
}

pub(crate) unsafe extern "C" fn device_release(device: *mut ropeway_device) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(device) }
}
