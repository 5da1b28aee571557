//! Devices, contexts, modules, and the tables of handles.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use super::faults::Faults;
use super::graph::{Executable, Graph, Node};
use super::settings::Settings;
use super::status::{self, Result, Status};
use super::stream::{Event, Stream};
use crate::memory::{AddressSpace, Allocation, State};
use crate::ptx;
use crate::ptx::module::Initial;

/// Locks, also after a panic elsewhere: the emulator's own state is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects by their handles.
#[derive(Debug)]
pub struct Table<T>(Mutex<HashMap<usize, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

/// A handle that no object had before; 0 to 2 mean default streams.
pub fn new_handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

impl<T> Table<T> {
    /// Takes an object in, under a new handle.
    pub fn add(&self, object: Arc<T>) -> usize {
        let handle = new_handle();
        self.add_at(handle, object);
        handle
    }

    /// Takes an object in under a handle that it knows.
    pub fn add_at(&self, handle: usize, object: Arc<T>) {
        lock(&self.0).insert(handle, object);
    }

    /// The object of a handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE`.
    pub fn get(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0)
            .get(&handle)
            .cloned()
            .ok_or(status::INVALID_HANDLE)
    }

    /// Forgets a handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE`.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0).remove(&handle).ok_or(status::INVALID_HANDLE)
    }

    /// Forgets all that something holds of.
    pub fn remove_if(&self, holds: impl Fn(&T) -> bool) {
        lock(&self.0).retain(|_, object| !holds(object));
    }
}

/// A device.
#[derive(Debug, Default)]
pub struct Device {
    /// Bytes in use.
    pub used: AtomicU64,
    /// The most bytes that were in use.
    pub high: AtomicU64,
    /// Its primary context while somebody retains it, and how many do.
    pub primary: Mutex<(Option<Arc<Context>>, usize)>,
    /// Handles of its default memory pool and of the one that is in use.
    pub pools: Mutex<Option<(usize, usize)>>,
}

/// A memory pool: attributes; memory is counted by the device.
#[derive(Debug)]
pub struct Pool {
    /// Its device.
    pub device: usize,
    /// What was set.
    pub attributes: Mutex<HashMap<u32, u64>>,
}

/// A context.
#[derive(Debug)]
pub struct Context {
    /// Its handle.
    pub handle: usize,
    /// Its device.
    pub device: usize,
    lost: Mutex<Option<Status>>,
    default_stream: Mutex<Option<Arc<Stream>>>,
    streams: Mutex<Vec<Weak<Stream>>>,
    /// Devices whose memory it may reach, as bits.
    pub peers: AtomicU64,
    /// What was set by `cuCtxSetFlags`.
    pub flags: AtomicU32,
    /// What was set by `cuCtxSetLimit`.
    pub limits: Mutex<HashMap<u32, usize>>,
    /// Captures in mode global that are under way.
    pub global_captures: AtomicUsize,
    /// Ends launches that run.
    pub cancelled: AtomicBool,
}

impl Context {
    /// A context of a device.
    pub fn new(device: usize) -> Arc<Context> {
        let context = Arc::new(Context {
            handle: new_handle(),
            device,
            lost: Mutex::default(),
            default_stream: Mutex::default(),
            streams: Mutex::default(),
            peers: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            limits: Mutex::default(),
            global_captures: AtomicUsize::new(0),
            cancelled: AtomicBool::new(false),
        });
        driver()
            .contexts
            .add_at(context.handle, Arc::clone(&context));
        context
    }

    /// Marks it as lost: every later call fails with this.
    pub fn lose(&self, status: Status) {
        lock(&self.lost).get_or_insert(status);
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// What it was lost with.
    pub fn check(&self) -> Result<()> {
        lock(&self.lost).map_or(Ok(()), Err)
    }

    /// The stream of handle 0.
    pub fn default_stream(self: &Arc<Self>) -> Arc<Stream> {
        let mut stream = lock(&self.default_stream);
        let made = stream.get_or_insert_with(|| Stream::new(self, 0, true, 0));
        Arc::clone(made)
    }

    /// Takes a stream in.
    pub fn add_stream(&self, stream: &Arc<Stream>) {
        let mut streams = lock(&self.streams);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }

    /// Its streams, without the default one.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Waits for everything.
    ///
    /// # Errors
    /// What it was lost with.
    pub fn synchronize(self: &Arc<Self>) -> Result<()> {
        let default = lock(&self.default_stream).clone();
        for stream in self.streams().into_iter().chain(default) {
            stream.drain();
        }
        self.check()
    }

    /// Ends it: work under way is ended, streams are forgotten.
    pub fn destroy(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::Relaxed);
        let _ = self.synchronize();
        let driver = driver();
        driver
            .streams
            .remove_if(|stream| stream.context_handle() == self.handle);
        driver
            .events
            .remove_if(|event| event.context == self.handle);
        driver
            .modules
            .remove_if(|module| module.context == self.handle);
        driver
            .functions
            .remove_if(|kernel| kernel.module.context == self.handle);
        *lock(&self.default_stream) = None;
        lock(&self.streams).clear();
        let _ = driver.contexts.remove(self.handle);
    }
}

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    /// The context it was loaded in.
    pub context: usize,
    /// Its code.
    pub code: ptx::Module,
    /// Its variables.
    pub variables: Vec<Arc<Allocation>>,
    /// Their addresses.
    pub addresses: Vec<u64>,
}

impl Module {
    /// Reads a text and places its variables.
    ///
    /// # Errors
    /// What the text is refused with, and why.
    pub fn load(context: &Context, text: &str) -> std::result::Result<Module, (Status, String)> {
        let code =
            ptx::Module::parse(text).map_err(|error| (status::INVALID_PTX, error.to_string()))?;
        let driver = driver();
        if code.version > NEWEST_PTX {
            let (major, minor) = code.version;
            return Err((
                status::UNSUPPORTED_PTX_VERSION,
                format!("PTX ISA {major}.{minor} is newer than the emulated driver"),
            ));
        }
        let (major, minor) = driver.settings.architecture;
        let own = major * 10 + minor;
        let fits = code
            .architecture()
            .is_some_and(|(target, exact)| if exact { target == own } else { target <= own });
        if !fits {
            return Err((
                status::NO_BINARY_FOR_GPU,
                format!("target {} on an emulated sm_{own}", code.target),
            ));
        }
        let mut variables = Vec::new();
        for variable in &code.variables {
            let allocation = driver
                .space
                .allocate(
                    context.device,
                    variable.bytes as usize,
                    0,
                    variable.constant,
                    State::Live,
                )
                .ok_or((status::OUT_OF_MEMORY, variable.name.clone()))?;
            variables.push(allocation);
        }
        let addresses: Vec<_> = variables.iter().map(|allocation| allocation.base).collect();
        for (variable, allocation) in code.variables.iter().zip(&variables) {
            let mut at = 0;
            for initial in &variable.initial {
                let bytes = match initial {
                    Initial::Bytes(bytes) => bytes.clone(),
                    Initial::Address(number, offset) => addresses[*number]
                        .wrapping_add_signed(*offset)
                        .to_le_bytes()
                        .to_vec(),
                };
                if at + bytes.len() > allocation.region.bytes() {
                    return Err((
                        status::INVALID_PTX,
                        format!("{} has more initial values than room", variable.name),
                    ));
                }
                allocation.region.write(at, &bytes);
                at += bytes.len();
            }
        }
        Ok(Module {
            context: context.handle,
            code,
            variables,
            addresses,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        for variable in &self.variables {
            driver().space.free(variable.base);
        }
    }
}

/// A kernel of a module.
#[derive(Debug)]
pub struct Kernel {
    /// Its module.
    pub module: Arc<Module>,
    /// The module's handle.
    pub module_handle: usize,
    /// Its number in the module.
    pub number: usize,
    /// The most dynamic shared memory it may be launched with.
    pub dynamic_shared: AtomicU32,
}

impl Kernel {
    /// Its code.
    pub fn function(&self) -> &ptx::Function {
        &self.module.code.functions[self.number]
    }
}

/// The newest PTX ISA that is accepted: that of CUDA 13.0.
pub const NEWEST_PTX: (u32, u32) = (9, 0);

/// The driver's state.
#[derive(Debug)]
pub struct Driver {
    /// What the environment says.
    pub settings: Settings,
    /// Faults on demand, and reports.
    pub faults: Faults,
    /// All memory.
    pub space: AddressSpace,
    /// Whether `cuInit` was called.
    pub initialised: AtomicBool,
    /// The devices.
    pub devices: Vec<Device>,
    /// Contexts.
    pub contexts: Table<Context>,
    /// Streams.
    pub streams: Table<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Modules.
    pub modules: Table<Module>,
    /// Kernels.
    pub functions: Table<Kernel>,
    /// Graphs.
    pub graphs: Table<Graph>,
    /// Graphs that can be launched.
    pub executables: Table<Executable>,
    /// Nodes of graphs.
    pub nodes: Table<Node>,
    /// Memory pools.
    pub pools: Table<Pool>,
    /// Launches so far, for their seeds.
    pub launches: AtomicU64,
}

/// The driver of this process.
pub fn driver() -> &'static Driver {
    static DRIVER: LazyLock<Driver> = LazyLock::new(|| {
        let settings = Settings::read();
        Driver {
            faults: Faults::new(&settings.fault, settings.report.clone()),
            devices: (0..settings.devices).map(|_| Device::default()).collect(),
            settings,
            space: AddressSpace::default(),
            initialised: AtomicBool::new(false),
            contexts: Table::default(),
            streams: Table::default(),
            events: Table::default(),
            modules: Table::default(),
            functions: Table::default(),
            graphs: Table::default(),
            executables: Table::default(),
            nodes: Table::default(),
            pools: Table::default(),
            launches: AtomicU64::new(0),
        }
    });
    &DRIVER
}

impl Driver {
    /// The device of this number.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_DEVICE`.
    pub fn device(&self, number: i32) -> Result<(usize, &Device)> {
        let index = usize::try_from(number).map_err(|_| status::INVALID_DEVICE)?;
        self.devices
            .get(index)
            .map(|device| (index, device))
            .ok_or(status::INVALID_DEVICE)
    }

    /// Takes memory of a device.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub fn allocate(&self, device: usize, bytes: usize, state: State) -> Result<Arc<Allocation>> {
        if bytes == 0 {
            return Err(status::INVALID_VALUE);
        }
        self.faults.allocation()?;
        let owner = &self.devices[device];
        let take = |used: u64| {
            used.checked_add(bytes as u64)
                .filter(|used| *used <= self.settings.memory)
        };
        let before = owner
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let before = before.map_err(|_| status::OUT_OF_MEMORY)?;
        owner
            .high
            .fetch_max(before + bytes as u64, Ordering::Relaxed);
        // Fresh memory is NaN in every float format.
        self.space
            .allocate(device, bytes, 0xFF, false, state)
            .ok_or_else(|| {
                owner.used.fetch_sub(bytes as u64, Ordering::Relaxed);
                status::OUT_OF_MEMORY
            })
    }

    /// Gives memory back; false if none that lives begins there.
    pub fn free(&self, base: u64) -> bool {
        let Some(allocation) = self.space.free(base) else {
            return false;
        };
        if let Some(device) = allocation.device {
            self.devices[device]
                .used
                .fetch_sub(allocation.bytes(), Ordering::Relaxed);
        }
        true
    }

    /// The stream of a handle in a context; 0 to 2 are default streams.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE`, `CUDA_ERROR_INVALID_CONTEXT`.
    pub fn stream(&self, handle: usize) -> Result<Arc<Stream>> {
        match handle {
            0..=2 => Ok(current()?.default_stream()),
            _ => self.streams.get(handle),
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// The context that is current to this thread, if any.
pub fn current_or_none() -> Option<Arc<Context>> {
    CURRENT.with_borrow(|stack| stack.last().cloned())
}

/// The context that is current to this thread, if it can be used.
///
/// # Errors
/// `CUDA_ERROR_INVALID_CONTEXT`, or what it was lost with.
pub fn current() -> Result<Arc<Context>> {
    let context = current_or_none().ok_or(status::INVALID_CONTEXT)?;
    context.check()?;
    Ok(context)
}

/// Puts a context on this thread's stack.
pub fn push_current(context: Arc<Context>) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the current context off this thread's stack.
///
/// # Errors
/// `CUDA_ERROR_INVALID_CONTEXT`.
pub fn pop_current() -> Result<Arc<Context>> {
    CURRENT
        .with_borrow_mut(Vec::pop)
        .ok_or(status::INVALID_CONTEXT)
}
