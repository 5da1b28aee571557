//! Memory, and what all objects of an open device share.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use cl3::memory::{CL_MEM_ALLOC_HOST_PTR, CL_MEM_CONTEXT, CL_MEM_READ_WRITE, CL_MEM_SIZE};
use ropeway_core::device::{
    Device, Graph, Module, OpenOptions, PinnedBuffer, PinnedMemory, Queue, QueueKind,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId, Memory};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, ErrorKind, Result};

use crate::moment::Retired;
use crate::lost::Lost;
use super::compile::Compiler;
use super::queue::OpenClQueue;
use super::sys::{Context, DeviceHandle, Handle, Mem, RawEvent, RawQueue};
use crate::loop_graph::LoopGraph;

/// What an importer hands over: dropped when Ropeway has done its last work with the object.
pub(super) type Owner = Arc<dyn Any + Send + Sync>;

/// What every object of an open device holds on to.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) info: DeviceInfo,
    pub(super) device: DeviceHandle,
    pub(super) context: Context,
    /// Why the device is lost, once it is.
    lost: Lost,
    used: AtomicU64,
    pub(super) retired: Retired<RawEvent>,
}

impl Shared {
    pub(super) fn new(
        id: DeviceId,
        info: DeviceInfo,
        device: DeviceHandle,
        context: Context,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            id,
            info,
            device,
            context,
            lost: Lost::default(),
            used: AtomicU64::new(0),
            retired: Retired::default(),
        })
    }

    /// # Errors
    /// Why the device is lost, if it is: the same error for every call from then on.
    #[inline]
    pub(super) fn alive(&self) -> Result<()> {
        self.lost.alive()
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
    pub(super) fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a OpenClMemory> {
        match buffer.downcast::<OpenClMemory>() {
            Some(memory) if memory.shared.id == self.id => Ok(memory),
            _ => Err(Error::invalid(
                "buffer",
                "one of another device",
                "one of the queue's device",
            )),
        }
    }
}

pub(super) struct OpenClDevice {
    shared: Arc<Shared>,
    compiler: Compiler,
    /// Maps and unmaps pinned memory.
    mapping: Arc<RawQueue>,
}

impl OpenClDevice {
    pub(super) fn new(shared: Arc<Shared>, options: &OpenOptions) -> Result<OpenClDevice> {
        let mapping = Arc::new(shared.context.queue(shared.device)?);
        Ok(OpenClDevice {
            compiler: Compiler::new(&shared.info.platform, options),
            mapping,
            shared,
        })
    }

    pub(super) fn context(&self) -> *mut c_void {
        self.shared.context.raw()
    }

    /// Takes `bytes` from the device's memory, in the books only: drivers allocate late, and PoCL takes any size and dies when
    /// it is touched.
    fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let info = &self.shared.info;
        let too_much = |limit: &str, most: u64| {
            Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("{bytes} bytes: {limit} {most}"),
            ))
        };
        if bytes > info.limits.max_buffer {
            return too_much("the device's largest buffer has", info.limits.max_buffer);
        }
        let total = info.memory;
        let taken = self
            .shared
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= total)
            });
        match taken {
            Ok(_) => Ok(Reservation {
                shared: self.shared.clone(),
                bytes,
            }),
            Err(used) => too_much("free are", total.saturating_sub(used)),
        }
    }

    fn create(&self, flags: u64, bytes: u64) -> Result<Mem> {
        // OpenCL has no buffers without bytes.
        self.shared
            .context
            .buffer(flags, bytes.max(1) as usize)
            .map_err(|error| self.shared.note(error).within(format!("{bytes} bytes")))
    }
}

/// Bytes taken from the device's memory, given back on drop.
struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Tells one `cl_mem` from another for good: a handle may come again after its release, a serial number never.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Serial(u64);

impl Serial {
    pub(super) fn next() -> Serial {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Serial(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A buffer. The driver frees it only after the queued work that uses it (specification of `clReleaseMemObject`).
pub(super) struct OpenClMemory {
    pub(super) mem: Mem,
    pub(super) serial: Serial,
    /// Of imported memory.
    pub(super) owner: Option<Owner>,
    /// The last list of kept owners that this one's owner went into (see `queue`).
    pub(super) kept_in: AtomicU64,
    shared: Arc<Shared>,
    size: u64,
    _reservation: Option<Reservation>,
}

impl OpenClMemory {
    fn buffer(
        shared: &Arc<Shared>,
        mem: Mem,
        size: u64,
        reservation: Option<Reservation>,
        owner: Option<Owner>,
    ) -> Buffer {
        Buffer::new(Arc::new(OpenClMemory {
            mem,
            serial: Serial::next(),
            owner,
            kept_in: AtomicU64::new(0),
            shared: shared.clone(),
            size,
            _reservation: reservation,
        }))
    }
}

impl Memory for OpenClMemory {
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

impl Device for OpenClDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.shared.alive()?;
        Ok(MemoryUse {
            used: self.shared.used.load(Ordering::Acquire),
            // OpenCL has no question for it.
            free: None,
            total: self.shared.info.memory,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.shared.alive()?;
        let reservation = self.reserve(bytes)?;
        let mem = self.create(CL_MEM_READ_WRITE, bytes)?;
        Ok(OpenClMemory::buffer(
            &self.shared,
            mem,
            bytes,
            Some(reservation),
            None,
        ))
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.shared.alive()?;
        let mem = self.create(CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, bytes)?;
        let len = bytes as usize;
        let address = self
            .mapping
            .map(&mem, len.max(1))
            .map_err(|error| self.shared.note(error))?;
        let address = NonNull::new(address)
            .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, format!("{bytes} pinned bytes")))?;
        let mut memory = MappedMemory {
            mem,
            address,
            len,
            mapping: self.mapping.clone(),
            _shared: self.shared.clone(),
        };
        memory.bytes_mut().fill(0);
        Ok(PinnedBuffer::new(Box::new(memory)))
    }

    fn create_queue(&self, _: QueueKind) -> Result<Arc<dyn Queue>> {
        // OpenCL has no kinds of queue; drivers give copies of a queue of their own to the copy engines.
        self.shared.alive()?;
        let raw = self
            .shared
            .context
            .queue(self.shared.device)
            .map_err(|error| self.shared.note(error))?;
        Ok(Arc::new(OpenClQueue::new(self.shared.clone(), raw, None)?))
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        self.shared.alive()?;
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
        self.shared.alive()?;
        // SAFETY: the caller gives a valid `cl_mem`.
        let mem = unsafe { Mem::retained(handle) }?;
        if mem.query(CL_MEM_CONTEXT)? != self.context() as u64 {
            return Err(Error::invalid(
                "handle",
                "a cl_mem of another context",
                "one of the device's (see `adopt`)",
            ));
        }
        let size = mem.query(CL_MEM_SIZE)?;
        if bytes > size {
            return Err(Error::invalid(
                "bytes",
                bytes,
                format!("at most the cl_mem's {size}"),
            ));
        }
        Ok(OpenClMemory::buffer(&self.shared, mem, bytes, None, owner))
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Owner>,
    ) -> Result<Arc<dyn Queue>> {
        use cl3::command_queue as cl;
        self.shared.alive()?;
        // SAFETY: the caller gives a valid `cl_command_queue`.
        let raw = unsafe { RawQueue::retained(handle) }?;
        if raw.query(cl::CL_QUEUE_CONTEXT)? != self.context() as u64
            || raw.query(cl::CL_QUEUE_DEVICE)? != self.shared.device.0 as u64
        {
            let found = "a cl_command_queue of another context or device";
            return Err(Error::invalid(
                "handle",
                found,
                "one of the device's (see `adopt`)",
            ));
        }
        if raw.query(cl::CL_QUEUE_PROPERTIES)? & cl::CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE != 0 {
            return Err(Error::unsupported(
                "an out-of-order cl_command_queue; an in-order one is needed",
            ));
        }
        Ok(Arc::new(OpenClQueue::new(self.shared.clone(), raw, owner)?))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.shared.alive()?;
        Ok(Arc::new(LoopGraph::new(self.shared.id, plans)?))
    }
}

/// Host memory that the driver allocated and keeps mapped.
struct MappedMemory {
    mem: Mem,
    address: NonNull<u8>,
    len: usize,
    mapping: Arc<RawQueue>,
    _shared: Arc<Shared>,
}

// SAFETY: the bytes are this object's alone, and OpenCL's objects may be used from any thread.
unsafe impl Send for MappedMemory {}

impl PinnedMemory for MappedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading and writing, `len` bytes, until the drop.
        unsafe { slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `alloc_pinned`, and nobody uses the address after the drop. If the driver refuses, the memory
        // leaks, which harms nobody.
        let _ = unsafe { self.mapping.unmap(&self.mem, self.address.as_ptr()) };
        let _ = self.mapping.flush();
    }
}

#[cfg(test)]
mod tests {
    use ropeway_core::device::Driver;

    use super::*;
    use crate::opencl::{OpenClDriver, sys};

    #[test]
    fn a_lost_device_fails_every_call_with_its_cause() {
        let Ok(devices) = OpenClDriver.probe() else {
            return println!("skipped: no OpenCL device");
        };
        let opened = OpenClDriver.open(devices[0].ordinal, &OpenOptions::default());
        let device = opened.expect("probed");
        let (queue, buffer) = (device.create_queue(QueueKind::Compute), device.alloc(4));
        let (queue, buffer) = (queue.expect("a queue"), buffer.expect("memory"));
        let event = queue.record().expect("an event");
        let any: &dyn Any = &*device;
        let shared = &any.downcast_ref::<OpenClDevice>().expect("ours").shared;
        // Any other failure passes through and leaves the device as it is.
        shared.note(sys::error("clEnqueueNDRangeKernel", -5));
        queue.synchronize(None).expect("not lost");
        let cause = shared.note(sys::error("clFinish", -36));
        shared.note(sys::error("clFlush", -2));
        for error in [
            device.alloc(4).err(),
            device.memory().err(),
            device.create_queue(QueueKind::Compute).err(),
            device.alloc_pinned(4).err(),
            queue.fill(&buffer.all(), 0).err(),
            queue.upload(&buffer.all(), &[0; 4]).err(),
            queue.read_blocking(&buffer.all(), &mut [0; 4]).err(),
            queue.record().err(),
            queue.synchronize(None).err(),
            queue.flush().err(),
            event.wait(None).err(),
            event.is_done().err(),
        ] {
            assert_eq!(error.expect("the device is lost"), cause);
        }
    }
}
