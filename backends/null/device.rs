//! Memory, and what all objects of an open device share.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ropeway_core::device::{Device, Graph, Module, PinnedBuffer, PinnedMemory, Queue, QueueKind};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId, Memory};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, ErrorKind, Result};

use super::recording::{Call, Recording};
use super::sys::Bytes;
use super::{compile, queue};
use crate::loop_graph::LoopGraph;

/// What every object of an open device holds on to, so that they may be dropped in any order.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) info: DeviceInfo,
    pub(super) recording: Recording,
    used: AtomicU64,
    numbers: AtomicU64,
}

impl Shared {
    /// A number for a new buffer, queue or event.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// The memory behind a buffer of this device: every backend refuses objects that are not its own.
///
/// # Errors
/// `InvalidArgument` for another device's.
pub(super) fn memory(id: DeviceId, buffer: &Buffer) -> Result<&NullMemory> {
    match buffer.downcast::<NullMemory>() {
        Some(memory) if memory.shared.id == id => Ok(memory),
        _ => Err(Error::invalid(
            "buffer",
            "one of another device",
            "one of the queue's device",
        )),
    }
}

pub(super) struct NullDevice {
    shared: Arc<Shared>,
}

impl NullDevice {
    pub(super) fn new(info: DeviceInfo) -> NullDevice {
        NullDevice {
            shared: Arc::new(Shared {
                id: DeviceId::unique(),
                info,
                recording: Recording::default(),
                used: AtomicU64::new(0),
                numbers: AtomicU64::new(0),
            }),
        }
    }

    pub(super) fn recording(&self) -> &Recording {
        &self.shared.recording
    }
}

/// A buffer.
pub(super) struct NullMemory {
    pub(super) bytes: Bytes,
    pub(super) number: u64,
    size: u64,
    shared: Arc<Shared>,
}

impl Memory for NullMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for NullMemory {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.size, Ordering::AcqRel);
    }
}

struct HostMemory(Box<[u8]>);

impl PinnedMemory for HostMemory {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Device for NullDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        let (used, total) = (
            self.shared.used.load(Ordering::Acquire),
            self.shared.info.memory,
        );
        Ok(MemoryUse {
            used,
            free: Some(total - used),
            total,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        let shared = &self.shared;
        let total = shared.info.memory;
        let take = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= total);
        if let Err(used) = shared
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
        {
            let free = total - used;
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("{bytes} bytes: free are {free}"),
            ));
        }
        let memory = Bytes::new(bytes).inspect_err(|_| {
            shared.used.fetch_sub(bytes, Ordering::AcqRel);
        })?;
        let number = shared.number();
        shared.recording.add(|| Call::Alloc {
            buffer: number,
            bytes,
        });
        Ok(Buffer::new(Arc::new(NullMemory {
            bytes: memory,
            number,
            size: bytes,
            shared: shared.clone(),
        })))
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        let full = || Error::new(ErrorKind::OutOfMemory, format!("{bytes} pinned bytes"));
        let len = usize::try_from(bytes).map_err(|_| full())?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(len).map_err(|_| full())?;
        memory.resize(len, 0);
        self.shared.recording.add(|| Call::AllocPinned { bytes });
        Ok(PinnedBuffer::new(Box::new(HostMemory(memory.into()))))
    }

    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        let queue = queue::NullQueue::new(self.shared.clone());
        self.shared.recording.add(|| Call::CreateQueue {
            queue: queue.number(),
            kind,
        });
        Ok(Arc::new(queue))
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        compile::compile(&self.shared, source, config)
    }

    unsafe fn import_memory(
        &self,
        _: *mut c_void,
        _: u64,
        _: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        Err(Error::unsupported("foreign memory on the null device"))
    }

    unsafe fn import_queue(
        &self,
        _: *mut c_void,
        _: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        Err(Error::unsupported("foreign queues on the null device"))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        let count = plans.len();
        let graph = LoopGraph::new(self.shared.id, plans)?;
        self.shared
            .recording
            .add(|| Call::Instantiate { plans: count });
        Ok(Arc::new(graph))
    }
}
