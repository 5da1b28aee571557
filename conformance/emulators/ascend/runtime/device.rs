//! Devices, contexts, and the tables of handles.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use super::binary::{Arguments, Binary, Function};
use super::breaches::Breaches;
use super::clock::Clock;
use super::faults::Faults;
use super::graph::{Capture, Graph};
use super::lock;
use super::memory::Memory;
use super::settings::Settings;
use super::status::{self, Failure, Result};
use super::stream::{Event, Stream};
use crate::compiler::Program;

/// Objects by their handles.
#[derive(Debug)]
pub struct Table<T> {
    what: &'static str,
    objects: Mutex<HashMap<usize, Arc<T>>>,
}

/// Handles of all kinds are different numbers, low enough that following one faults.
static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(0x100);

impl<T> Table<T> {
    fn new(what: &'static str) -> Table<T> {
        Table {
            what,
            objects: Mutex::default(),
        }
    }

    /// Adds an object that knows its handle.
    pub fn add(&self, make: impl FnOnce(usize) -> T) -> (usize, Arc<T>) {
        let handle = NEXT_HANDLE.fetch_add(8, Ordering::Relaxed);
        let object = Arc::new(make(handle));
        lock(&self.objects).insert(handle, Arc::clone(&object));
        (handle, object)
    }

    fn unknown(&self, handle: usize) -> Failure {
        let why = match handle {
            0 => format!("the {} is null", self.what),
            _ if handle < NEXT_HANDLE.load(Ordering::Relaxed) => {
                format!("{handle:#x} is no {}, or no longer", self.what)
            }
            _ => format!("{handle:#x} was never a {}", self.what),
        };
        status::HANDLE.breach(why)
    }

    /// The object of a handle.
    ///
    /// # Errors
    /// 107017 if there is none.
    pub fn get(&self, handle: usize) -> Result<Arc<T>> {
        let found = lock(&self.objects).get(&handle).cloned();
        found.ok_or_else(|| self.unknown(handle))
    }

    /// Takes an object out.
    ///
    /// # Errors
    /// 107017 if there is none.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>> {
        let found = lock(&self.objects).remove(&handle);
        found.ok_or_else(|| self.unknown(handle))
    }

    /// Takes out what is not to be kept.
    pub fn retain(&self, mut keep: impl FnMut(&T) -> bool) {
        lock(&self.objects).retain(|_, object| keep(object));
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.objects).values().cloned().collect()
    }
}

/// What a device met that ends its work.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What synchronising gives from then on.
    pub status: status::Status,
    /// What happened.
    pub why: String,
}

/// A device.
#[derive(Debug, Default)]
pub struct Device {
    fault: Mutex<Option<Fault>>,
    /// The context that `aclrtSetDevice` makes current, and how often that was called.
    primary: Mutex<(Option<Arc<Context>>, u32)>,
}

impl Device {
    /// Ends the device's work.
    pub fn fail(&self, fault: Fault) {
        lock(&self.fault).get_or_insert(fault);
    }

    /// Whether it met something that ends its work.
    pub fn failed(&self) -> bool {
        lock(&self.fault).is_some()
    }

    /// What synchronising gives.
    ///
    /// # Errors
    /// What the device met.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.fault) {
            Some(fault) => Err(fault.status.because(fault.why.clone())),
            None => Ok(()),
        }
    }
}

/// A context: what a thread has to have before it can do anything.
#[derive(Debug)]
pub struct Context {
    /// Its handle.
    pub handle: usize,
    /// Its device's number.
    pub device: u32,
    destroyed: AtomicBool,
    default: Mutex<Option<Arc<Stream>>>,
}

impl Context {
    fn new(handle: usize, device: u32) -> Context {
        Context {
            handle,
            device,
            destroyed: AtomicBool::new(false),
            default: Mutex::default(),
        }
    }

    /// Its device.
    pub fn device(&self) -> &'static Device {
        &emulator().devices[self.device as usize]
    }

    /// The stream that a null handle means.
    pub fn default_stream(self: &Arc<Self>) -> Arc<Stream> {
        let mut default = lock(&self.default);
        let make = || {
            let handle = NEXT_HANDLE.fetch_add(8, Ordering::Relaxed);
            Arc::new(Stream::new(handle, self))
        };
        Arc::clone(default.get_or_insert_with(make))
    }

    /// All its streams.
    pub fn streams(self: &Arc<Self>) -> Vec<Arc<Stream>> {
        let mut streams = emulator().streams.all();
        streams.retain(|stream| stream.context == self.handle);
        streams.extend(lock(&self.default).clone());
        streams
    }

    /// Waits for its work and takes its streams away.
    fn destroy(self: &Arc<Self>) {
        let streams = self.streams();
        self.destroyed.store(true, Ordering::Release);
        for stream in &streams {
            stream.drain();
        }
        let emulator = emulator();
        emulator
            .streams
            .retain(|stream| stream.context != self.handle);
        let _ = emulator.contexts.remove(self.handle);
    }
}

thread_local! {
    static CURRENT: RefCell<Weak<Context>> = const { RefCell::new(Weak::new()) };
}

/// The calling thread's context.
///
/// # Errors
/// 107002 if it has none, or its device was reset.
pub fn current() -> Result<Arc<Context>> {
    let current = CURRENT.with(|current| current.borrow().clone());
    match current.upgrade() {
        Some(context) if context.destroyed.load(Ordering::Acquire) => Err(status::CONTEXT_NULL
            .breach("the thread's context was destroyed, by itself or with its device")),
        Some(context) => Ok(context),
        None => Err(status::CONTEXT_NULL.breach(
            "no aclrtSetDevice, aclrtCreateContext or aclrtSetCurrentContext on this thread",
        )),
    }
}

/// Makes a context current in the calling thread.
pub fn set_current(context: &Arc<Context>) {
    CURRENT.with(|current| *current.borrow_mut() = Arc::downgrade(context));
}

/// Everything of a process.
#[derive(Debug)]
pub struct Emulator {
    /// What the environment says.
    pub settings: Settings,
    /// Failures on demand.
    pub faults: Faults,
    /// What the caller did against the contract.
    pub breaches: Breaches,
    /// Memory.
    pub memory: Memory,
    /// Work that the host knows to be done.
    pub known: Mutex<Clock>,
    /// How often `aclInit` was called since it was taken back; 0 where it was not.
    pub initialised: AtomicU64,
    /// The devices.
    pub devices: Vec<Device>,
    /// Contexts by their handles, and so on.
    pub contexts: Table<Context>,
    /// Streams, without the default ones.
    pub streams: Table<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Loaded binaries.
    pub binaries: Table<Binary>,
    /// Kernels of loaded binaries.
    pub functions: Table<Function>,
    /// Lists of arguments that are being put together.
    pub arguments: Table<Arguments>,
    /// Model runtime instances.
    pub graphs: Table<Graph>,
    /// Programs of the run-time compiler.
    pub programs: Table<Program>,
    /// Captures under way.
    pub captures: Mutex<Vec<Arc<Capture>>>,
    /// How many launches there were.
    pub launches: AtomicU64,
}

/// The emulator.
pub fn emulator() -> &'static Emulator {
    static EMULATOR: LazyLock<Emulator> = LazyLock::new(|| {
        let settings = Settings::read();
        Emulator {
            faults: Faults::new(&settings.fault),
            breaches: Breaches::new(settings.report.clone(), settings.fail_unread),
            memory: Memory::default(),
            known: Mutex::default(),
            initialised: AtomicU64::new(0),
            devices: (0..settings.devices).map(|_| Device::default()).collect(),
            contexts: Table::new("context"),
            streams: Table::new("stream"),
            events: Table::new("event"),
            binaries: Table::new("binary"),
            functions: Table::new("kernel"),
            arguments: Table::new("list of arguments"),
            graphs: Table::new("model runtime instance"),
            programs: Table::new("program"),
            captures: Mutex::default(),
            launches: AtomicU64::new(0),
            settings,
        }
    });
    &EMULATOR
}

impl Emulator {
    /// Checks a device's number.
    ///
    /// # Errors
    /// 107001 if there is no such device.
    pub fn device(&self, device: i64) -> Result<(u32, &Device)> {
        let found = usize::try_from(device)
            .ok()
            .and_then(|index| self.devices.get(index));
        let why = || format!("device {device} of {}", self.devices.len());
        let found = found.ok_or_else(|| status::DEVICE_ID.because(why()))?;
        Ok((device as u32, found))
    }

    /// Makes a context of a device.
    pub fn create_context(&self, device: u32) -> Arc<Context> {
        self.contexts.add(|handle| Context::new(handle, device)).1
    }

    /// Makes the primary context of a device current, and counts that.
    ///
    /// # Errors
    /// 107001 if there is no such device.
    pub fn set_device(&self, device: i32) -> Result<()> {
        let (number, device) = self.device(device.into())?;
        let mut primary = lock(&device.primary);
        primary.1 += 1;
        let context = match &primary.0 {
            Some(context) => Arc::clone(context),
            None => {
                let context = self.create_context(number);
                primary.0 = Some(Arc::clone(&context));
                context
            }
        };
        drop(primary);
        set_current(&context);
        Ok(())
    }

    /// Takes one `aclrtSetDevice` back; with the last one, all that the device holds goes.
    ///
    /// # Errors
    /// 107001 if there is no such device, 107002 if it was not set.
    pub fn reset_device(&self, device: i32) -> Result<()> {
        let (number, device) = self.device(device.into())?;
        let mut primary = lock(&device.primary);
        if primary.1 == 0 {
            return Err(status::CONTEXT_NULL.breach(format!("device {number} was not set")));
        }
        primary.1 -= 1;
        if primary.1 == 0 {
            primary.0 = None;
            drop(primary);
            self.release(number);
        }
        Ok(())
    }

    /// Takes away a context that `aclrtCreateContext` made, with its streams.
    ///
    /// # Errors
    /// 107017 for what is no context, 107000 for the one that `aclrtSetDevice` makes.
    pub fn destroy_context(&self, handle: usize) -> Result<()> {
        let context = self.contexts.get(handle)?;
        let primary = lock(&context.device().primary).0.clone();
        if primary.is_some_and(|primary| Arc::ptr_eq(&primary, &context)) {
            let why = "the context is aclrtSetDevice's, which aclrtResetDevice takes away";
            return Err(status::PARAMETER.breach(why));
        }
        context.destroy();
        Ok(())
    }

    /// Takes away all that a device holds.
    fn release(&self, number: u32) {
        for context in self.contexts.all() {
            if context.device == number {
                context.destroy();
            }
        }
        self.memory.free_all(number);
        *lock(&self.devices[number as usize].fault) = None;
    }

    /// Ends what `aclInit` began.
    pub fn finalise(&self) {
        for (number, device) in self.devices.iter().enumerate() {
            *lock(&device.primary) = (None, 0);
            self.release(number as u32);
        }
        self.initialised.store(0, Ordering::Release);
    }

    /// What lives, a line for each kind.
    pub fn living(&self) -> Vec<String> {
        let memory = self.memory.live();
        let (device, pinned): (Vec<_>, Vec<_>) = memory
            .iter()
            .partition(|allocation| allocation.kind != super::memory::Kind::Pinned);
        let bytes = |list: &[&Arc<super::memory::Allocation>]| {
            list.iter().map(|allocation| allocation.bytes).sum::<u64>()
        };
        [
            ("device memory", device.len(), bytes(&device)),
            ("pinned memory", pinned.len(), bytes(&pinned)),
            ("streams", self.streams.all().len(), 0),
            ("events", self.events.all().len(), 0),
            ("binaries", self.binaries.all().len(), 0),
            ("lists of arguments", self.arguments.all().len(), 0),
            ("model runtime instances", self.graphs.all().len(), 0),
            ("programs", self.programs.all().len(), 0),
        ]
        .into_iter()
        .filter(|(_, count, _)| *count > 0)
        .map(|(what, count, bytes)| match bytes {
            0 => format!("{what}: {count}"),
            _ => format!("{what}: {count}, {bytes} bytes"),
        })
        .collect()
    }

    /// The stream of a handle, which must be of the calling thread's context; null is its default one.
    ///
    /// # Errors
    /// 107002 without a context, 107017 for what is no stream, 107003 for one of another context.
    pub fn stream(&self, handle: usize) -> Result<Arc<Stream>> {
        let context = current()?;
        if handle == 0 {
            return Ok(context.default_stream());
        }
        let stream = self.streams.get(handle)?;
        if stream.context != context.handle {
            let why = format!("stream {handle:#x} is of another context than this thread's");
            return Err(status::STREAM_CONTEXT.breach(why));
        }
        Ok(stream)
    }
}
