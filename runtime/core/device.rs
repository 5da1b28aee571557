//! The device contract: what a backend implements.
//!
//! # Life cycle
//!
//! A [`Driver`] stands for one vendor interface. [`Driver::probe`] lists its devices or gives the reason why there are
//! none; it never panics, takes no seconds and initialises nothing that a later open would not. [`Driver::open`] gives a
//! [`Device`]; a device gives [`Buffer`]s, [`Module`]s and [`Queue`]s. Each of them keeps alive what it needs, so they may be
//! dropped in any order.
//!
//! # Order
//!
//! Work on one queue runs in the order of the calls. Work on two queues has no order but what [`Queue::record`] and
//! [`Queue::wait`] establish. The host learns that work is done from an [`Event`] or from [`Queue::synchronize`]. No call
//! waits for the device unless its name says so (`…_blocking`, `synchronize`, `wait` of an event).
//!
//! # Who validates
//!
//! A [`View`] or [`Slice`] lies within its buffer by construction. Backends check what only they can: that
//! an object is theirs (else `InvalidArgument`), that a launch is within their limits. The number, kind and size of a launch's arguments
//! are the caller's promise ([`Queue::launch`] is unsafe); the runtime keeps that promise for every plan.
//! Values in device memory cannot be checked by the host: kernels skip what is out of range and set the queue's status word
//! ([`Argument::Status`]), which the next [`Queue::synchronize`] reports as `DataOutOfRange`.
//!
//! # Threads
//!
//! Everything is `Send + Sync`. Several threads may use several queues of one device at once; calls on one queue from
//! several threads are serialised in some order.
//!
//! # Failure
//!
//! Out of memory leaves the device usable. When a device is lost, every waiter gets that error, and so does every later
//! call, at once. A wait that passes its limit gives `Timeout` and leaves the work alone.

// Declares the contract's unsafe functions; holds no unsafe code.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::info::{DeviceInfo, MemoryUse};
use crate::kernel::{Config, Source};
use crate::memory::{Buffer, DeviceId, Slice, View};
use crate::plan::{BoundPlan, TensorMap};

/// Why a backend has no device, and what a user can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// What is missing.
    pub reason: Reason,
    /// What to install or set, in a sentence.
    pub remedy: String,
}

/// What is missing when a backend has no device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// None of these libraries could be loaded.
    LibraryNotFound {
        /// The names and paths that were tried.
        tried: Vec<String>,
    },
    /// A library lacks a function that the backend needs.
    SymbolMissing {
        /// The library.
        library: String,
        /// The function.
        symbol: String,
    },
    /// The driver is older than the backend can use.
    VersionTooOld {
        /// What was found.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// The library is there, but reports no device.
    NoDevice,
    /// The only devices there lack what the backend cannot do without.
    FeatureMissing {
        /// The device.
        device: String,
        /// What it lacks, by the vendor's names.
        features: Vec<String>,
    },
    /// The library is there, but its initialisation failed.
    InitialisationFailed(Error),
}

impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl Eq for Error {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::LibraryNotFound { tried } => {
                write!(f, "library not found (tried {})", tried.join(", "))
            }
            Reason::SymbolMissing { library, symbol } => {
                write!(f, "{library} has no function {symbol}")
            }
            Reason::VersionTooOld { found, needed } => {
                write!(f, "version {found} is too old, {needed} is needed")
            }
            Reason::NoDevice => f.write_str("the driver reports no device"),
            Reason::FeatureMissing { device, features } => {
                write!(f, "{device} has no {}", features.join(", "))
            }
            Reason::InitialisationFailed(error) => write!(f, "initialisation failed: {error}"),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Error {
        Error::new(ErrorKind::Unavailable, unavailable.to_string())
    }
}

/// Choices at opening a device.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Where compiled kernels are kept between runs; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
    /// Kernels that were compiled beforehand (`ropeway compile --language cuda`), for machines without the vendor's compiler. As they are run
    /// as they are, the directory and all above it must belong to this user or root, and be writable for nobody else.
    pub binaries_dir: Option<PathBuf>,
}

/// One vendor interface: finds and opens devices.
pub trait Driver: Send + Sync {
    /// The backend's name (`"opencl"`), by which users select it.
    fn name(&self) -> &'static str;

    /// Every device that could be opened, or why there is none.
    ///
    /// # Errors
    /// The reason and the remedy.
    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable>;

    /// Opens the device of this number in the order of [`Driver::probe`].
    ///
    /// # Errors
    /// `Unavailable` with the reason, `InvalidArgument` for a number that does not exist.
    fn open(&self, ordinal: usize, options: &OpenOptions) -> Result<Arc<dyn Device>>;
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// Launches and copies.
    #[default]
    Compute,
    /// Copies that should run beside a compute queue where the device has an engine for them.
    Transfer,
}

/// An open device: memory, modules, queues.
pub trait Device: Send + Sync + Any {
    /// Its identity, which all its objects carry.
    fn id(&self) -> DeviceId;

    /// What it is and can do.
    fn info(&self) -> &DeviceInfo;

    /// Memory in use and left.
    ///
    /// # Errors
    /// `DeviceLost`, or what the driver reports.
    fn memory(&self) -> Result<MemoryUse>;

    /// Allocates device memory with undefined content. Zero bytes are allowed.
    ///
    /// # Errors
    /// `OutOfMemory` (the device stays usable), `DeviceLost`.
    fn alloc(&self, bytes: u64) -> Result<Buffer>;

    /// Allocates host memory that the device can copy from and to directly. It is zeroed.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer>;

    /// A new queue.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>>;

    /// Compiles a source under a configuration, or loads it from the compile cache.
    ///
    /// # Errors
    /// `CompileFailed` with the compiler's log, `Unsupported` for a language that [`DeviceInfo::languages`] lacks.
    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>>;

    /// Takes in memory that somebody else allocated on this device: a CUDA or CANN device pointer, an OpenCL `cl_mem`, a host
    /// pointer for the cpu device.
    ///
    /// # Errors
    /// `Unsupported` where the backend cannot; `InvalidArgument` for a pointer that is aligned less than kernels load at once (CUDA: 16 bytes).
    ///
    /// # Safety
    /// `handle` must be what this backend documents, of at least `bytes` bytes, and stay valid until `owner` is dropped, which happens
    /// after the last use of the buffer.
    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer>;

    /// Takes in a stream or command queue that somebody else made on this device. What is enqueued joins the owner's order, and a
    /// capture that the owner has begun.
    ///
    /// # Errors
    /// `Unsupported` where the backend cannot.
    ///
    /// # Safety
    /// `handle` must be what this backend documents and stay valid until `owner` is dropped.
    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>>;

    /// Makes a graph of bound plans: everything is compiled and allocated now, [`Queue::replay`] only submits.
    ///
    /// # Errors
    /// `InvalidArgument` for a plan of another device, `OutOfMemory`.
    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>>;
}

/// A compiled source.
pub trait Module: Send + Sync + Any {
    /// The entry point of this name.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none.
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>>;
}

/// An entry point of a module, ready to launch.
pub trait Function: Send + Sync + Any {
    /// What the compiler made of it.
    fn info(&self) -> FunctionInfo;
    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// What the compiler reports of a function, as far as it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionInfo {
    /// The largest work-group it can be launched with.
    pub max_group_size: Option<u32>,
    /// Bytes of local memory it uses by itself.
    pub local_memory: Option<u64>,
    /// Registers a work-item.
    pub registers: Option<u32>,
    /// Bytes of registers spilled to memory, a work-item.
    pub spilled: Option<u64>,
}

/// One argument of a launch, as a backend gets it.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// An operand or a part of the workspace. It lowers to two kernel arguments, base and 64-bit element offset, because
    /// bases of sub-ranges need alignments that differ between vendors.
    Buffer {
        /// Where it lies.
        buffer: &'a Buffer,
        /// First element, in elements of `dtype`.
        offset: u64,
        /// The element type.
        dtype: DType,
        /// Bytes that the launch may touch, from the first element on.
        bytes: u64,
        /// Whether the launch writes it.
        write: bool,
    },
    /// An operand that the caller left out: a null base and offset 0.
    Absent,
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 32-bit signed integer.
    I32(i32),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A 64-bit signed integer.
    I64(i64),
    /// A 32-bit float.
    F32(f32),
    /// The queue's status word: base and element offset of a `u32`, into which a kernel stores a code other than 0 when it has met
    /// a value that is out of range.
    Status,
    /// A description of a tile access, which the device encodes in its own form (a CUDA tensor map). It lowers to one argument.
    TensorMap {
        /// The tile's shape and swizzle.
        map: &'a TensorMap,
        /// Where the tensor lies.
        buffer: &'a Buffer,
        /// First byte.
        offset: u64,
        /// Extents, innermost first.
        extents: [u64; 5],
        /// Strides in bytes, innermost first.
        strides: [u64; 5],
    },
}

/// One launch: a function over a grid of work-groups.
#[derive(Clone, Copy)]
pub struct LaunchCall<'a> {
    /// What to run.
    pub function: &'a Arc<dyn Function>,
    /// Work-groups along each dimension; none is 0.
    pub grid: [u64; 3],
    /// Work-items in a group along each dimension.
    pub group: [u32; 3],
    /// Bytes of dynamic local memory.
    pub local_memory: u32,
    /// The arguments in the kernel's order.
    pub arguments: &'a [Argument<'a>],
}

/// A sequence of work on a device.
pub trait Queue: Send + Sync + Any {
    /// The device it belongs to.
    fn device(&self) -> DeviceId;

    /// Copies host bytes to the device. `data` is taken over (into staging) before the call returns.
    ///
    /// # Errors
    /// `InvalidArgument` if the lengths differ or the buffer is another device's, `OutOfMemory`, `DeviceLost`.
    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()>;

    /// Begins a copy from the device into pinned memory, which comes back when the copy is done.
    ///
    /// # Errors
    /// `InvalidArgument` if `into` is smaller than the slice, `DeviceLost`.
    fn download(&self, from: &Slice, into: PinnedBuffer) -> Result<Download>;

    /// Copies from the device and waits for it, and so for all earlier work of this queue.
    ///
    /// # Errors
    /// `InvalidArgument` if the lengths differ, `DeviceLost`.
    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()>;

    /// Copies within the device. The slices do not overlap.
    ///
    /// # Errors
    /// `InvalidArgument` if the lengths differ or the slices overlap, `DeviceLost`.
    fn copy(&self, from: &Slice, to: &Slice) -> Result<()>;

    /// Sets every byte.
    ///
    /// # Errors
    /// `InvalidArgument` if the buffer is another device's, `DeviceLost`.
    fn fill(&self, to: &Slice, byte: u8) -> Result<()>;

    /// Enqueues a launch. Allocates nothing once the queue has warmed up; the buffers stay alive until it is done.
    ///
    /// # Errors
    /// `InvalidArgument` for a function or buffer of another device or a grid beyond the limits, `LaunchFailed`, `DeviceLost`.
    ///
    /// # Safety
    /// The arguments must be those of the kernel in number, order and kind; the kernel must stay within the bytes that each buffer argument
    /// names, and write only those marked `write`.
    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()>;

    /// An event that is done when all earlier work of this queue is.
    ///
    /// # Errors
    /// `DeviceLost`.
    fn record(&self) -> Result<Arc<dyn Event>>;

    /// Makes later work of this queue wait (on the device) for an event, which may be another queue's.
    ///
    /// # Errors
    /// `InvalidArgument` for an event of another device.
    fn wait(&self, event: &Arc<dyn Event>) -> Result<()>;

    /// Hands everything to the device that the driver still holds back.
    ///
    /// # Errors
    /// `DeviceLost`.
    fn flush(&self) -> Result<()>;

    /// Waits until all earlier work is done, at most `timeout` if there is one, and reports what went wrong in it.
    ///
    /// # Errors
    /// `Timeout`, `DeviceLost`, `LaunchFailed`, and `DataOutOfRange` if a kernel has set the status word since the last call.
    fn synchronize(&self, timeout: Option<Duration>) -> Result<()>;

    /// Enqueues a graph of the same device.
    ///
    /// # Errors
    /// As [`Queue::launch`].
    fn replay(&self, graph: &dyn Graph) -> Result<()>;
}

/// A point in a queue's work.
pub trait Event: Send + Sync + Any {
    /// Whether the work before it is done.
    ///
    /// # Errors
    /// What went wrong in that work.
    fn is_done(&self) -> Result<bool>;

    /// Waits for it, at most `timeout` if there is one.
    ///
    /// # Errors
    /// `Timeout`, `DeviceLost`, or what went wrong in the work before it.
    fn wait(&self, timeout: Option<Duration>) -> Result<()>;

    /// Device time from an earlier event of the same device to this one. Both must be done.
    ///
    /// # Errors
    /// `InvalidArgument` for an event of another device or one that is not done, `Unsupported` without a device clock.
    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration>;

    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// Plans that were recorded once and are submitted as one.
pub trait Graph: Send + Sync + Any {
    /// Puts other views in place of operands (by their index) of the plan of this number; all of the plan's operands must then satisfy its
    /// rules together, so a change of row count names every operand that has those rows. Holds for later replays, not for those already
    /// enqueued.
    ///
    /// # Errors
    /// `InvalidArgument` naming the operand; the graph is then as it was.
    fn rebind(&self, plan: usize, views: &[(usize, View)]) -> Result<()>;

    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// Host memory of a backend that a device copies from and to directly. Its bytes keep their address for as long as it lives, also
/// when it is moved: a copy under way relies on that.
pub trait PinnedMemory: Send {
    /// Its bytes.
    fn bytes(&self) -> &[u8];
    /// Its bytes, to write.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Host memory that a device copies from and to directly.
pub struct PinnedBuffer(Box<dyn PinnedMemory>);

impl PinnedBuffer {
    /// Wraps a backend's allocation.
    pub fn new(memory: Box<dyn PinnedMemory>) -> PinnedBuffer {
        PinnedBuffer(memory)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

/// A copy to the host under way. It owns the target until the copy is done; dropping it waits.
pub struct Download {
    event: Arc<dyn Event>,
    target: Option<PinnedBuffer>,
}

impl Download {
    /// Made by a queue: `event` is done when `target` is filled.
    pub fn new(event: Arc<dyn Event>, target: PinnedBuffer) -> Download {
        Download {
            event,
            target: Some(target),
        }
    }

    /// Done when the copy is.
    pub fn event(&self) -> &Arc<dyn Event> {
        &self.event
    }

    /// Waits for the copy, then hands the memory back.
    ///
    /// # Errors
    /// What went wrong; the memory is then kept from reuse, since the device may still write it.
    pub fn finish(mut self) -> Result<PinnedBuffer> {
        let waited = self.event.wait(None);
        let target = self.target.take().expect("taken only here and in drop");
        match waited {
            Ok(()) => Ok(target),
            Err(error) => {
                std::mem::forget(target);
                Err(error)
            }
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(target) = self.target.take()
            && self.event.wait(None).is_err()
        {
            // The device may write to it yet: better leaked than freed.
            std::mem::forget(target);
        }
    }
}
