//! Device memory, from the driver's pool or imported, and pinned host memory.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ropeway_core::device::PinnedMemory;
use ropeway_core::memory::{Buffer, DeviceId, Memory};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::{Owner, Shared};
use super::sys::{self, Pinned};

/// Where memory came from, and so how it goes.
enum Origin {
    /// The pool of the device's allocation stream.
    Pool,
    /// `cuMemAlloc`, on devices without pools.
    Driver,
    /// Somebody else, whose owner is dropped with it.
    Foreign(#[allow(dead_code, reason = "held, never read")] Option<Owner>),
}

/// A buffer. Queues keep it until the work that uses it is done, so its drop finds no work left.
pub(super) struct CudaMemory {
    pub(super) address: u64,
    /// The last list of a queue's that this one went into (see `queue`).
    pub(super) kept_in: AtomicU64,
    pub(super) shared: Arc<Shared>,
    size: u64,
    origin: Origin,
    /// Whether it is the caller's, and so in the books.
    counted: bool,
}

impl CudaMemory {
    fn buffer(
        shared: &Arc<Shared>,
        address: u64,
        size: u64,
        origin: Origin,
        counted: bool,
    ) -> Buffer {
        if counted {
            shared.used.fetch_add(size, Ordering::AcqRel);
        }
        Buffer::new(Arc::new(CudaMemory {
            address,
            kept_in: AtomicU64::new(0),
            shared: shared.clone(),
            size,
            origin,
            counted,
        }))
    }

    /// Takes memory for the caller.
    pub(super) fn alloc(shared: &Arc<Shared>, bytes: u64) -> Result<Buffer> {
        CudaMemory::take(shared, bytes, true)
    }

    /// Takes memory for what the backend itself needs.
    pub(super) fn alloc_own(shared: &Arc<Shared>, bytes: u64) -> Result<Buffer> {
        CudaMemory::take(shared, bytes, false)
    }

    /// What is finished elsewhere is given back first if there is too little.
    fn take(shared: &Arc<Shared>, bytes: u64, counted: bool) -> Result<Buffer> {
        if bytes > shared.info.limits.max_buffer {
            let most = shared.info.limits.max_buffer;
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("{bytes} bytes: the device's largest buffer has {most}"),
            ));
        }
        // The driver has no allocations without bytes.
        let take = || shared.take_memory(bytes.max(1) as usize);
        let taken = match take() {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                shared.sweep();
                take()
            }
            taken => taken,
        };
        let address = taken.map_err(|error| shared.note(error).within(format!("{bytes} bytes")))?;
        let origin = match shared.has_pools {
            true => Origin::Pool,
            false => Origin::Driver,
        };
        Ok(CudaMemory::buffer(shared, address, bytes, origin, counted))
    }

    pub(super) fn import(
        shared: &Arc<Shared>,
        address: u64,
        bytes: u64,
        owner: Option<Owner>,
    ) -> Buffer {
        CudaMemory::buffer(shared, address, bytes, Origin::Foreign(owner), false)
    }
}

impl Memory for CudaMemory {
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

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.counted {
            self.shared.used.fetch_sub(self.size, Ordering::AcqRel);
        }
        if matches!(self.origin, Origin::Foreign(_)) {
            return;
        }
        // A lost context has no memory to give back.
        if self.shared.enter().is_err() {
            return;
        }
        // SAFETY: allocated by `alloc`, and no work is left that uses it. A failure leaks it.
        let _ = unsafe {
            match self.origin {
                Origin::Pool => self.shared.allocations.free(self.address),
                _ => sys::free(self.address),
            }
        };
    }
}

/// Pinned host memory behind the contract's trait.
pub(super) struct CudaPinned {
    pub(super) memory: Pinned,
    shared: Arc<Shared>,
}

impl CudaPinned {
    pub(super) fn zeroed(shared: &Arc<Shared>, bytes: usize) -> Result<CudaPinned> {
        let memory = Pinned::new(bytes)?;
        // SAFETY: the allocation has so many bytes, and nobody else has them.
        unsafe { std::ptr::write_bytes(memory.address(), 0, memory.len()) };
        Ok(CudaPinned {
            memory,
            shared: shared.clone(),
        })
    }
}

impl PinnedMemory for CudaPinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: zeroed when it was made; a copy under way owns this object.
        unsafe { self.memory.bytes() }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { self.memory.bytes_mut() }
    }
}

impl Drop for CudaPinned {
    fn drop(&mut self) {
        // Freed in the context that it was made in.
        let _ = self.shared.enter();
    }
}
