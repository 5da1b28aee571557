//! Devices: which there are, what they can run, and their plans.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ropeway::core::info::{DeviceInfo, DeviceKind, Execution};
use ropeway::core::op::PlanRequest;
use ropeway::prelude::*;

use crate::abi::{self, DeviceCaps, DeviceInterface, DeviceProps, device_kind, log_level};
use crate::host::{Host, log};
use crate::memory::new_buffer_type;
use crate::ops::{self, Key, NodePlan};
use crate::tensor::Tensor;
use crate::{guard, report, stream};

/// Which devices to offer, by `backend:number`, comma between them.
const SELECTION: &str = "GGML_ROPEWAY_DEVICE";

/// Backends in the order of preference for devices that are chips, and for drivers that run on the host's processor.
const HARDWARE: &[&str] = &["cuda", "vulkan", "opencl"];
const SOFTWARE: &[&str] = &["opencl", "vulkan", "cpu"];

/// One device as ggml sees it.
pub struct RopewayDevice {
    /// `Ropeway0` and so on.
    pub name: CString,
    description: CString,
    info: DeviceInfo,
    buffer_type: OnceLock<usize>,
    open: OnceLock<Result<Open>>,
    /// By the node's signature: what `supports_op` has answered, and what has been planned.
    verdicts: Mutex<HashMap<Key, Option<String>>>,
    plans: Mutex<HashMap<Key, Arc<NodePlan>>>,
    /// What went wrong where ggml takes no answer.
    fault: Mutex<Option<Error>>,
}

/// What is there once a device is in use.
struct Open {
    session: Session,
    /// For copies that ggml waits for.
    copies: Arc<dyn Queue>,
}

/// The devices to offer: those that the user names, else every chip once, else the first driver that runs on the host's processor.
///
/// # Errors
/// `InvalidArgument` for a selection that names no device, `Unavailable` if there is none.
pub fn find() -> Result<Vec<RopewayDevice>> {
    let probes = Registry::default().probe();
    let of = |backend: &str| {
        let probe = probes.iter().find(|probe| probe.backend == backend);
        probe.and_then(|probe| probe.devices.as_ref().ok())
    };
    let chosen: Vec<DeviceInfo> = match std::env::var(SELECTION) {
        Ok(selection) if !selection.trim().is_empty() => selection
            .split(',')
            .map(|selector| select(selector.trim(), &of))
            .collect::<Result<_>>()?,
        _ => {
            let chips = HARDWARE.iter().find_map(|backend| {
                let chips = of(backend)?.iter();
                let chips: Vec<_> = chips
                    .filter(|info| info.kind != DeviceKind::Cpu)
                    .filter(|info| info.execution == Execution::Hardware)
                    .cloned()
                    .collect();
                (!chips.is_empty()).then_some(chips)
            });
            let software = || Some(vec![SOFTWARE.iter().find_map(|b| of(b)?.first())?.clone()]);
            chips.or_else(software).unwrap_or_default()
        }
    };
    if chosen.is_empty() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "no device of any backend",
        ));
    }
    let devices = chosen.into_iter().enumerate();
    Ok(devices
        .map(|(n, info)| RopewayDevice::new(n, info))
        .collect())
}

fn select<'a>(
    selector: &str,
    of: &impl Fn(&str) -> Option<&'a Vec<DeviceInfo>>,
) -> Result<DeviceInfo> {
    let (backend, ordinal) = selector.split_once(':').unwrap_or((selector, "0"));
    let devices = of(backend).map_or(&[][..], Vec::as_slice);
    let found = ordinal.parse().ok().and_then(|n: usize| devices.get(n));
    found.cloned().ok_or_else(|| {
        let known: Vec<_> = HARDWARE
            .iter()
            .chain(&["cpu"])
            .flat_map(|backend| of(backend).into_iter().flatten())
            .map(DeviceInfo::selector)
            .collect();
        Error::invalid(
            SELECTION,
            format!("{selector:?}"),
            format!("some of {known:?}"),
        )
    })
}

impl RopewayDevice {
    fn new(number: usize, info: DeviceInfo) -> RopewayDevice {
        let text = |text: String| CString::new(text.replace('\0', " ")).unwrap_or_default();
        RopewayDevice {
            name: text(format!("Ropeway{number}")),
            description: text(format!("{} ({})", info.name, info.selector())),
            info,
            buffer_type: OnceLock::new(),
            open: OnceLock::new(),
            verdicts: Mutex::default(),
            plans: Mutex::default(),
            fault: Mutex::default(),
        }
    }

    /// Puts the device where ggml finds it: for as long as the process lives, as ggml expects.
    pub fn register(self, host: &Host, reg: *mut abi::Reg) -> *mut abi::Device {
        let own: &'static RopewayDevice = Box::leak(Box::new(self));
        let device = Box::into_raw(Box::new(abi::Device {
            interface: DeviceInterface {
                get_name,
                get_description,
                get_memory,
                get_type,
                get_props,
                init_backend,
                get_buffer_type,
                get_host_buffer_type: None,
                buffer_from_host_ptr: None,
                supports_op,
                supports_buft,
                offload_op: None,
                event_new: Some(stream::event_new),
                event_free: Some(stream::event_free),
                event_synchronize: Some(stream::event_synchronize),
            },
            reg,
            context: ptr::from_ref(own).cast_mut().cast(),
        }));
        let buffer_type = new_buffer_type(host.api_version, device);
        own.buffer_type
            .get_or_init(|| buffer_type.expose_provenance());
        device
    }

    /// The device behind one of ggml's.
    ///
    /// # Safety
    /// `device` must be a device of this plugin.
    pub unsafe fn of(device: *mut abi::Device) -> &'static RopewayDevice {
        // SAFETY: as the caller promises; devices are never freed.
        unsafe { &*(*device).context.cast::<RopewayDevice>() }
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The type of its buffers.
    pub fn buffer_type(&self) -> *mut abi::BufferType {
        let address = self.buffer_type.get().copied().unwrap_or_default();
        ptr::with_exposed_provenance_mut(address)
    }

    fn open(&self) -> Result<&Open> {
        let open = self.open.get_or_init(|| {
            let session = Session::new(Registry::default().open(&self.info.selector())?)?;
            let copies = session.device().create_queue(QueueKind::Compute)?;
            Ok(Open { session, copies })
        });
        open.as_ref().map_err(Clone::clone)
    }

    /// The device, opened.
    ///
    /// # Errors
    /// `Unavailable`, `OutOfMemory`.
    pub fn device(&self) -> Result<&Arc<dyn Device>> {
        Ok(self.open()?.session.device())
    }

    /// The queue of copies that ggml waits for.
    ///
    /// # Errors
    /// As [`RopewayDevice::device`].
    pub fn queue(&self) -> Result<&Arc<dyn Queue>> {
        Ok(&self.open()?.copies)
    }

    /// Device memory.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.device()?.alloc(bytes)
    }

    /// Remembers what went wrong in a call that has no way to say so.
    pub fn fail(&self, what: &str, error: Error) {
        log(log_level::ERROR, &format!("{what}: {error}"));
        lock(&self.fault).get_or_insert(error);
    }

    /// What went wrong since the last call.
    pub fn take_fault(&self) -> Option<Error> {
        lock(&self.fault).take()
    }

    /// Why the device does not run a node; `None` if it does.
    fn lack(&self, node: Tensor<'_>) -> Option<String> {
        let key = Key::of(node);
        if let Some(known) = lock(&self.verdicts).get(&key) {
            return known.clone();
        }
        let verdict = ops::recipe(node)
            .and_then(|recipe| recipe.check(&PlanRequest::new(&self.info)))
            .err()
            .map(|error| error.context().to_owned());
        remember(&self.verdicts, key, verdict.clone());
        verdict
    }

    /// Why the device does not have the memory that a node writes into: another node's result, where that node is left to another
    /// backend. ggml's scheduler copies what is read, but not what is written.
    fn lacks_owner(&self, node: Tensor<'_>) -> Option<String> {
        let owner = node.owner()?;
        if ops::passes_over(owner) {
            return None;
        }
        let reason = self.lack(owner)?;
        Some(format!(
            "it writes into {}: {reason}",
            owner.operation_name()
        ))
    }

    /// The plan of a node, made once for nodes that differ only in where their tensors lie.
    ///
    /// # Errors
    /// `Unsupported`, `CompileFailed`.
    pub fn plan(&self, node: Tensor<'_>, key: &Key) -> Result<Arc<NodePlan>> {
        if let Some(plan) = lock(&self.plans).get(key) {
            return Ok(Arc::clone(plan));
        }
        let plan = ops::recipe(node)?.compile(&self.open()?.session)?;
        let plan = Arc::new(plan);
        remember(&self.plans, key.clone(), Arc::clone(&plan));
        Ok(plan)
    }
}

impl fmt::Display for RopewayDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, description) = (&self.name, &self.description);
        let [name, description] = [name, description].map(|text| text.to_string_lossy());
        write!(f, "{name}: {description}, {}", self.info.execution)
    }
}

/// Signatures that are remembered. A model needs hundreds; an engine whose every graph has shapes of its own must not fill the memory.
const REMEMBERED: usize = 4096;

fn remember<T>(known: &Mutex<HashMap<Key, T>>, key: Key, value: T) {
    let mut known = lock(known);
    if known.len() >= REMEMBERED {
        known.clear();
    }
    known.insert(key, value);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- what ggml calls; it hands a device's functions that device ----------------------------------------------------

unsafe extern "C" fn get_name(device: *mut abi::Device) -> *const c_char {
    // SAFETY: see above.
    unsafe { RopewayDevice::of(device) }.name.as_ptr()
}

unsafe extern "C" fn get_description(device: *mut abi::Device) -> *const c_char {
    // SAFETY: see above.
    unsafe { RopewayDevice::of(device) }.description.as_ptr()
}

/// Free and total bytes. Before the device is opened, and where its driver does not tell, all of it counts as free.
fn memory(device: &RopewayDevice) -> (usize, usize) {
    let total = device.info.memory;
    let used = match device.open.get() {
        Some(Ok(open)) => open.session.device().memory().ok(),
        _ => None,
    };
    let free = used.map_or(total, |memory| {
        memory.free.unwrap_or(total.saturating_sub(memory.used))
    });
    (free as usize, total as usize)
}

unsafe extern "C" fn get_memory(device: *mut abi::Device, free: *mut usize, total: *mut usize) {
    // SAFETY: see above.
    let device = unsafe { RopewayDevice::of(device) };
    let found = guard("get_memory", (0, 0), || memory(device));
    // SAFETY: ggml passes two places to write to.
    unsafe { (*free, *total) = found };
}

/// llama.cpp hands layers to GPUs only, so that is what every device says it is, one that shares the host's memory with a chip of its own aside.
unsafe extern "C" fn get_type(device: *mut abi::Device) -> c_int {
    // SAFETY: see above.
    let info = unsafe { RopewayDevice::of(device) }.info();
    match info.unified_memory && info.kind == DeviceKind::Gpu {
        true => device_kind::IGPU,
        false => device_kind::GPU,
    }
}

unsafe extern "C" fn get_props(device: *mut abi::Device, props: *mut DeviceProps) {
    // SAFETY: see above.
    let own = unsafe { RopewayDevice::of(device) };
    let (memory_free, memory_total) = guard("get_props", (0, 0), || memory(own));
    // SAFETY: ggml passes a place for the properties; what is written names strings that live as long as the device.
    unsafe {
        props.write(DeviceProps {
            name: own.name.as_ptr(),
            description: own.description.as_ptr(),
            memory_free,
            memory_total,
            kind: get_type(device),
            device_id: ptr::null(),
            caps: DeviceCaps {
                asynchronous: true,
                host_buffer: false,
                buffer_from_host_ptr: false,
                events: true,
                mmap_support: true,
            },
        });
    }
}

unsafe extern "C" fn init_backend(
    device: *mut abi::Device,
    _params: *const c_char,
) -> *mut abi::Backend {
    guard("init_backend", ptr::null_mut(), || {
        stream::new(device).unwrap_or_else(|error| {
            log(log_level::ERROR, &format!("a stream: {error}"));
            ptr::null_mut()
        })
    })
}

unsafe extern "C" fn get_buffer_type(device: *mut abi::Device) -> *mut abi::BufferType {
    // SAFETY: see above.
    unsafe { RopewayDevice::of(device) }.buffer_type()
}

unsafe extern "C" fn supports_op(device: *mut abi::Device, node: *const abi::Tensor) -> bool {
    // SAFETY: see above; ggml passes a node with its operands.
    let (device, node) = unsafe { (RopewayDevice::of(device), Tensor(&*node)) };
    guard("supports_op", false, || {
        if ops::passes_over(node) {
            return true;
        }
        let lack = device.lack(node).or_else(|| device.lacks_owner(node));
        if let Some(reason) = &lack {
            report::declined(node, reason);
        }
        lack.is_none()
    })
}

unsafe extern "C" fn supports_buft(device: *mut abi::Device, kind: *mut abi::BufferType) -> bool {
    // SAFETY: see above.
    unsafe { get_buffer_type(device) == kind }
}
