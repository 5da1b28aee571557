//! What all objects of an open device share, and the device itself.

use std::any::Any;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ropeway_core::device::{Device, Graph, Module, OpenOptions, PinnedBuffer, Queue, QueueKind};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result};

use crate::moment::Retired;
use super::BLOCK;
use super::compile::Compiler;
use super::graph::AscendGraph;
use super::handles::{Gate, RawEvent, RawModule, RawStream};
use super::library::{Api, Session};
use super::memory::{AscendMemory, AscendPinned, Heap};
use super::queue::AscendQueue;
use crate::lost::Lost;

/// What an importer hands over: dropped when Ropeway has done its last work with the object.
pub(super) type Owner = Arc<dyn Any + Send + Sync>;

/// What every object of an open device holds on to.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) info: DeviceInfo,
    pub(super) gate: Gate,
    /// Bytes in use by buffers.
    pub(super) used: AtomicU64,
    pub(super) heap: Heap,
    lost: Lost,
    // Fields are dropped in this order; the session last, since all others live in it.
    pub(super) retired: Retired<RawEvent>,
    modules: Mutex<Vec<Arc<RawModule>>>,
    session: Option<Session>,
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
        self.gate.enter().map_err(|error| self.note(error))
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
    pub(super) fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a AscendMemory> {
        match buffer.downcast::<AscendMemory>() {
            Some(memory) if memory.shared.id == self.id => Ok(memory),
            _ => Err(Error::invalid(
                "buffer",
                "one of another device",
                "one of the queue's device",
            )),
        }
    }

    /// Holds on to a module for as long as the device is open: work under way may run its code, and no call says when it does not.
    pub(super) fn keep(&self, module: RawModule) -> Arc<RawModule> {
        let module = Arc::new(module);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.push(module.clone());
        module
    }

    /// Drops what is over once it has become much, for who enqueues without ever waiting.
    pub(super) fn sweep_if_much(&self) {
        /// Entries that are no burden yet.
        const MUCH: usize = 256;
        if self.retired.len() > MUCH {
            self.sweep();
        }
    }

    /// Drops what has been retired and is over, which on a lost device is all.
    pub(super) fn sweep(&self) {
        if self.gate.enter().is_err() {
            return;
        }
        self.retired.sweep();
    }
}

/// Devices that were closed with work under way. Dropping does not wait; opening the next one looks whether it is done.
static ORPHANS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Lets go of devices that were closed with work under way, as far as that is done.
pub(super) fn sweep_orphans() {
    let orphans = std::mem::take(&mut *ORPHANS.lock().unwrap_or_else(PoisonError::into_inner));
    for shared in orphans.iter().filter_map(Weak::upgrade) {
        shared.sweep();
        shared.leave_orphaned();
    }
}

impl Shared {
    /// Notes the device for [`sweep_orphans`] if what it holds on to holds on to it.
    fn leave_orphaned(self: &Arc<Self>) {
        if self.retired.len() > 0 {
            let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
            orphans.push(Arc::downgrade(self));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Handles are released on their device, also on a lost one: should it be gone, releasing them fails and harms nobody.
        let entered = self.gate.enter().is_ok();
        if self.retired.is_in_use() {
            // Unloading the code that runs, and finalising under work, is not to be had.
            let modules = self
                .modules
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(modules));
            std::mem::forget(self.session.take());
        } else if entered {
            self.heap.trim(self.gate);
        }
    }
}

pub(super) struct AscendDevice {
    shared: Arc<Shared>,
    compiler: Compiler,
}

impl AscendDevice {
    pub(super) fn open(
        api: &'static Api,
        session: Session,
        mut info: DeviceInfo,
        options: &OpenOptions,
    ) -> Result<AscendDevice> {
        let gate = Gate {
            api,
            ordinal: info.ordinal as i32,
        };
        gate.enter()?;
        // What there really is: the probe knows it by an attribute, which old versions lack.
        let (_, total) = gate.memory_info()?;
        info.memory = total;
        info.limits.max_buffer = total;
        let shared = Shared {
            id: DeviceId::unique(),
            info,
            gate,
            used: AtomicU64::new(0),
            heap: Heap::default(),
            lost: Lost::default(),
            retired: Retired::default(),
            modules: Mutex::default(),
            session: Some(session),
        };
        Ok(AscendDevice {
            compiler: Compiler::new(options),
            shared: Arc::new(shared),
        })
    }
}

impl Drop for AscendDevice {
    fn drop(&mut self) {
        // What is over must not keep the device open.
        self.shared.sweep();
        self.shared.leave_orphaned();
    }
}

impl Device for AscendDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.shared.enter()?;
        let info = self.shared.gate.memory_info();
        let (free, total) = info.map_err(|error| self.shared.note(error))?;
        Ok(MemoryUse {
            used: self.shared.used.load(Ordering::Acquire),
            free: Some(free),
            total,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.shared.enter()?;
        AscendMemory::alloc(&self.shared, bytes)
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.shared.enter()?;
        let memory = AscendPinned::zeroed(&self.shared, bytes as usize).map_err(|error| {
            let error = self.shared.note(error);
            error.within(format!("{bytes} pinned bytes"))
        })?;
        Ok(PinnedBuffer::new(Box::new(memory)))
    }

    fn create_queue(&self, _: QueueKind) -> Result<Arc<dyn Queue>> {
        // The runtime gives copies of any stream to the copy engines.
        self.shared.enter()?;
        let queue = RawStream::new(self.shared.gate)
            .and_then(|raw| AscendQueue::new(self.shared.clone(), raw, None));
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
        if !address.is_multiple_of(BLOCK) {
            return Err(Error::invalid(
                "handle",
                format!("{address:#x}"),
                "a multiple of 32 bytes, which kernels copy at once; import from the multiple below and make views of what is behind",
            ));
        }
        Ok(AscendMemory::import(&self.shared, address, bytes, owner))
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Owner>,
    ) -> Result<Arc<dyn Queue>> {
        self.shared.enter()?;
        if handle.is_null() {
            return Err(Error::unsupported(
                "the default stream; pass a stream of your own",
            ));
        }
        let note = |error| self.shared.note(error);
        // SAFETY: the caller gives a valid stream, which `owner` keeps.
        let raw = unsafe { RawStream::foreign(self.shared.gate, handle) };
        // The runtime takes an event on a stream of the device's own context only.
        let probe = Arc::new(RawEvent::new(self.shared.gate).map_err(note)?);
        raw.record(&probe).map_err(note)?;
        self.shared.retired.retire(probe, Box::new(owner.clone()));
        let queue = AscendQueue::new(self.shared.clone(), raw, owner);
        Ok(Arc::new(queue.map_err(note)?))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.shared.enter()?;
        Ok(Arc::new(AscendGraph::new(self.shared.clone(), plans)?))
    }
}
