//! What all objects of an open device share, and the device itself.

use std::any::Any;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys as cu;
use ropeway_core::device::{
    Device, Graph, Module, OpenOptions, PinnedBuffer, Queue, QueueKind,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result};

use crate::moment::Retired;
use super::compile::Compiler;
use super::graph::CudaGraph;
use super::memory::{CudaMemory, CudaPinned};
use super::queue::CudaQueue;
use super::sys::{self, Context, RawEvent, RawModule, RawStream, run};
use crate::lost::Lost;

/// Bytes of the widest load. Plans ask for multiples of it, counted from where a buffer begins.
const LOADED_AT_ONCE: u64 = 16;

/// What an importer hands over: dropped when Ropeway has done its last work with the object.
pub(super) type Owner = Arc<dyn Any + Send + Sync>;

/// What every object of an open device holds on to.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) info: DeviceInfo,
    /// Bytes in use by buffers.
    pub(super) used: AtomicU64,
    /// Whether memory comes from the driver's stream-ordered pool.
    pub(super) has_pools: bool,
    lost: Lost,
    // Fields are dropped in this order; the context last, since all others live in it.
    pub(super) retired: Retired<RawEvent>,
    modules: Mutex<Vec<Arc<RawModule>>>,
    /// Memory is taken and given back in the order of this stream, which has no other work.
    pub(super) allocations: RawStream,
    pub(super) context: Context,
}

impl Shared {
    /// # Errors
    /// Why the device is lost, if it is: the same error for every call from then on.
    #[inline]
    pub(super) fn alive(&self) -> Result<()> {
        self.lost.alive()
    }

    /// Makes the device's context current on this thread.
    ///
    /// # Errors
    /// As [`Shared::alive`].
    #[inline]
    pub(super) fn enter(&self) -> Result<()> {
        self.alive()?;
        self.context.enter().map_err(|error| self.note(error))
    }

    /// Remembers the error that the device is lost by; others pass through.
    pub(super) fn note(&self, error: Error) -> Error {
        self.lost.note(error)
    }

    /// The memory behind a buffer of this device.
    ///
    /// # Errors
    /// `InvalidArgument` for another device's.
    #[inline]
    pub(super) fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a CudaMemory> {
        match buffer.downcast::<CudaMemory>() {
            Some(memory) if memory.shared.id == self.id => Ok(memory),
            _ => Err(Error::invalid(
                "buffer",
                "one of another device",
                "one of the queue's device",
            )),
        }
    }

    /// Device memory that every queue may use at once.
    pub(super) fn take_memory(&self, bytes: usize) -> Result<u64> {
        if !self.has_pools {
            return sys::alloc(bytes);
        }
        let address = self.allocations.alloc(bytes)?;
        // Other streams are not ordered with the pool's; it has nothing to do but hand out memory, so this takes microseconds.
        self.allocations.synchronize()?;
        Ok(address)
    }

    /// Holds on to a module for as long as the device is open: work under way may run its code, and no call says when it does not.
    pub(super) fn keep(&self, module: RawModule) -> Arc<RawModule> {
        let module = Arc::new(module);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.push(module.clone());
        module
    }

    /// Drops what has been retired and is over.
    pub(super) fn sweep(&self) {
        if self.enter().is_err() {
            return;
        }
        self.retired.sweep();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Handles are released in their context; should it be gone, releasing them fails and harms nobody.
        let _ = self.context.enter();
        if self.retired.is_in_use() {
            // Unloading the code that runs, or the context, would wait for it.
            let modules = self.modules.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(modules));
            self.context.leak();
        }
    }
}

pub(super) struct CudaDevice {
    shared: Arc<Shared>,
    compiler: Compiler,
}

impl CudaDevice {
    pub(super) fn open(info: DeviceInfo, options: &OpenOptions) -> Result<CudaDevice> {
        let device = super::handle(info.ordinal)?;
        let context = Context::primary(device)?;
        context.enter()?;
        let mut has_pools = 0;
        let name = cu::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        // SAFETY: the pointer is valid.
        unsafe { run!(cuDeviceGetAttribute(&raw mut has_pools, name, device)) }?;
        let shared = Shared {
            id: DeviceId::unique(),
            info,
            used: AtomicU64::new(0),
            has_pools: has_pools != 0,
            lost: Lost::default(),
            retired: Retired::default(),
            modules: Mutex::default(),
            allocations: RawStream::new()?,
            context,
        };
        Ok(CudaDevice {
            compiler: Compiler::new(options),
            shared: Arc::new(shared),
        })
    }
}

impl Device for CudaDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.shared.enter()?;
        let (free, total) = sys::memory_info().map_err(|error| self.shared.note(error))?;
        Ok(MemoryUse {
            used: self.shared.used.load(Ordering::Acquire),
            free: Some(free),
            total,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.shared.enter()?;
        CudaMemory::alloc(&self.shared, bytes)
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.shared.enter()?;
        let memory = CudaPinned::zeroed(&self.shared, bytes as usize).map_err(|error| {
            let error = self.shared.note(error);
            error.within(format!("{bytes} pinned bytes"))
        })?;
        Ok(PinnedBuffer::new(Box::new(memory)))
    }

    fn create_queue(&self, _: QueueKind) -> Result<Arc<dyn Queue>> {
        // The driver gives copies of any stream to the copy engines.
        self.shared.enter()?;
        let queue = RawStream::new().and_then(|raw| CudaQueue::new(self.shared.clone(), raw, None));
        Ok(Arc::new(queue.map_err(|error| self.shared.note(error))?))
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        self.shared.enter()?;
        self.compiler
            .compile(&self.shared, source, config)
            .map_err(|error| self.shared.note(error))
    }

    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Owner>,
    ) -> Result<Buffer> {
        self.shared.enter()?;
        if handle.is_null() && bytes > 0 {
            return Err(Error::invalid("handle", "null", "a device pointer"));
        }
        let address = handle as u64;
        if !address.is_multiple_of(LOADED_AT_ONCE) {
            return Err(Error::invalid(
                "handle",
                format!("{address:#x}"),
                "a multiple of 16 bytes, which kernels load at once; import from the multiple below and make views of what is behind",
            ));
        }
        Ok(CudaMemory::import(
            &self.shared,
            address,
            bytes,
            owner,
        ))
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Owner>,
    ) -> Result<Arc<dyn Queue>> {
        self.shared.enter()?;
        if handle.is_null() {
            return Err(Error::unsupported(
                "the legacy default stream, which waits for all others; pass a stream of your own",
            ));
        }
        // SAFETY: the caller gives a valid stream, which `owner` keeps.
        let raw = unsafe { RawStream::foreign(handle) };
        let context = raw.context().map_err(|error| self.shared.note(error))?;
        if context != self.shared.context.raw {
            return Err(Error::invalid(
                "handle",
                "a stream of another context",
                "one of the device's primary context",
            ));
        }
        let queue = CudaQueue::new(self.shared.clone(), raw, owner);
        Ok(Arc::new(queue.map_err(|error| self.shared.note(error))?))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.shared.enter()?;
        Ok(Arc::new(CudaGraph::new(self.shared.clone(), plans)?))
    }
}
