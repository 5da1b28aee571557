//! Memory and threads of the cpu device.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};
use ropeway_core::device::{Device, Graph, Module, PinnedBuffer, PinnedMemory, Queue, QueueKind};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{DeviceId, Memory};
use ropeway_core::native::{Matrix, NativeDevice};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Buffer, Error, ErrorKind, Result};

use super::sys::{self, RawMemory};
use super::{compile, queue};
use crate::loop_graph::LoopGraph;

/// Above this size an allocation first asks the system whether there is room, since it commits memory only at first touch.
const ASK_ABOVE: u64 = 64 << 20;

pub(super) struct CpuDevice {
    shared: Arc<Shared>,
    info: DeviceInfo,
}

/// What queues and buffers need of their device.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) pool: ThreadPool,
    /// Held while a command touches memory: see the module's documentation.
    pub(super) execution: Mutex<()>,
    used: AtomicU64,
}

impl CpuDevice {
    pub(super) fn open(info: DeviceInfo) -> Result<CpuDevice> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(info.compute_units as usize)
            .thread_name(|index| format!("ropeway-cpu-{index}"))
            .build()
            .map_err(|error| Error::new(ErrorKind::OutOfMemory, "threads of the cpu device").with_source(error))?;
        let shared =
            Shared { id: DeviceId::unique(), pool, execution: Mutex::new(()), used: AtomicU64::new(0) };
        Ok(CpuDevice { shared: Arc::new(shared), info })
    }
}

/// Device memory of the cpu device. Its bytes are touched only under [`Shared::execution`].
pub(super) struct CpuMemory {
    raw: RawMemory,
    shared: Arc<Shared>,
    counted: u64,
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl CpuMemory {
    pub(super) fn pointer(&self) -> *mut u8 {
        self.raw.pointer()
    }
}

impl Memory for CpuMemory {
    fn size(&self) -> u64 {
        self.raw.bytes()
    }

    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

struct Pinned(RawMemory);

impl PinnedMemory for Pinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has this size, is initialised (zeroed when made) and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.0.pointer(), self.0.bytes() as usize) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.bytes() as usize) }
    }
}

/// Zeroed memory, if there is room for it.
fn zeroed(bytes: u64) -> Result<RawMemory> {
    if bytes >= ASK_ABOVE
        && let Some(available) = sys::available_memory()
        && bytes > available
    {
        let context = format!("{bytes} bytes of host memory, {available} are available");
        return Err(Error::new(ErrorKind::OutOfMemory, context));
    }
    RawMemory::zeroed(bytes)
}

impl Device for CpuDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        Ok(MemoryUse {
            used: self.shared.used.load(Ordering::Relaxed),
            free: sys::available_memory(),
            total: self.info.memory,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        let raw = zeroed(bytes)?;
        self.shared.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(Buffer::new(Arc::new(CpuMemory {
            raw,
            shared: Arc::clone(&self.shared),
            counted: bytes,
            _owner: None,
        })))
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        Ok(PinnedBuffer::new(Box::new(Pinned(zeroed(bytes)?))))
    }

    fn create_queue(&self, _: QueueKind) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(queue::CpuQueue::new(Arc::clone(&self.shared))?))
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        compile::compile(self.shared.id, source, config)
    }

    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        let pointer = NonNull::new(handle.cast::<u8>())
            .ok_or_else(|| Error::invalid("handle", "a null pointer", "a host pointer"))?;
        Ok(Buffer::new(Arc::new(CpuMemory {
            raw: RawMemory::foreign(pointer, bytes),
            shared: Arc::clone(&self.shared),
            counted: 0,
            _owner: owner,
        })))
    }

    unsafe fn import_queue(
        &self,
        _: *mut c_void,
        _: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        Err(Error::unsupported("the cpu device has no foreign queues"))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        Ok(Arc::new(LoopGraph::new(self.shared.id, plans)?))
    }
}

impl NativeDevice for Shared {
    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn prefetch(&self, bytes: &[u8]) {
        sys::prefetch(bytes);
    }

    fn matmul(
        &self,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        a: Matrix<'_, f32>,
        b: Matrix<'_, f32>,
        beta: f32,
        d: &mut [f32],
        ldd: usize,
        threads: usize,
    ) {
        sys::matmul(m, n, k, alpha, a, b, beta, d, ldd, threads);
    }
}
