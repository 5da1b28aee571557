//! Device memory, out of slabs or imported, and pinned host memory.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ropeway_core::device::PinnedMemory;
use ropeway_core::memory::{Buffer, DeviceId, Memory};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::{Owner, Shared};
use super::handles::{Gate, Pinned};
use super::slab::{Slab, rounded};

/// Bytes of a slab.
const SLAB: u64 = 16 << 20;
/// What is larger gets an allocation of its own.
const LARGEST_PART: u64 = SLAB / 4;

/// Allocations that are handed out in parts. `aclrtMalloc` takes milliseconds, and 64 bytes for each.
#[derive(Default)]
pub(super) struct Heap(Mutex<Vec<(u64, Slab)>>);

impl Heap {
    /// Memory that every queue may use at once.
    fn take(&self, gate: Gate, bytes: u64) -> Result<u64> {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (base, slab) in slabs.iter_mut() {
            if let Some(offset) = slab.take(bytes) {
                return Ok(*base + offset);
            }
        }
        let base = gate.alloc(SLAB as usize)?;
        let mut slab = Slab::new(SLAB);
        let offset = slab.take(bytes).unwrap_or_default();
        slabs.push((base, slab));
        Ok(base + offset)
    }

    /// Takes a part back. Of the slabs that are empty one is kept.
    fn give(&self, gate: Gate, address: u64, bytes: u64) {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((base, slab)) = slabs
            .iter_mut()
            .find(|(base, _)| (*base..*base + SLAB).contains(&address))
        {
            slab.give(address - *base, bytes);
        }
        free_empty(&mut slabs, gate, 1);
    }

    /// Gives every empty slab back.
    pub(super) fn trim(&self, gate: Gate) {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free_empty(&mut slabs, gate, 0);
    }
}

fn free_empty(slabs: &mut Vec<(u64, Slab)>, gate: Gate, mut kept: usize) {
    slabs.retain(|(base, slab)| {
        if !slab.is_empty() {
            return true;
        }
        if kept > 0 {
            kept -= 1;
            return true;
        }
        // SAFETY: allocated by `Heap::take`, and every buffer in it is gone, which queues kept until their work was done. A failure leaks it.
        let _ = unsafe { gate.free(*base) };
        false
    });
}

/// Where memory came from, and so how it goes.
enum Origin {
    /// A slab; so many bytes of it.
    Slab(u64),
    /// `aclrtMalloc`.
    Runtime,
    /// Somebody else, whose owner is dropped with it.
    Foreign(#[allow(dead_code, reason = "held, never read")] Option<Owner>),
}

/// A buffer. Queues keep it until the work that uses it is done, so its drop finds no work left.
pub(super) struct AscendMemory {
    pub(super) address: u64,
    /// The last list of a queue's that this one went into (see `queue`).
    pub(super) kept_in: AtomicU64,
    pub(super) shared: Arc<Shared>,
    size: u64,
    origin: Origin,
    /// Whether it is the caller's, and so in the books.
    counted: bool,
}

impl AscendMemory {
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
        Buffer::new(Arc::new(AscendMemory {
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
        AscendMemory::take(shared, bytes, true)
    }

    /// Takes memory for what the backend itself needs.
    pub(super) fn alloc_own(shared: &Arc<Shared>, bytes: u64) -> Result<Buffer> {
        AscendMemory::take(shared, bytes, false)
    }

    /// What is finished elsewhere is given back first if there is too little.
    fn take(shared: &Arc<Shared>, bytes: u64, counted: bool) -> Result<Buffer> {
        let most = shared.info.limits.max_buffer;
        let too_much = || {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("{bytes} bytes: the device's largest buffer has {most}"),
            )
        };
        let length = rounded(bytes)
            .filter(|_| bytes <= most)
            .ok_or_else(too_much)?;
        let take = || match length <= LARGEST_PART {
            true => shared
                .heap
                .take(shared.gate, length)
                .map(|address| (address, Origin::Slab(length))),
            false => shared
                .gate
                .alloc(length as usize)
                .map(|address| (address, Origin::Runtime)),
        };
        let taken = match take() {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                shared.sweep();
                shared.heap.trim(shared.gate);
                take()
            }
            taken => taken,
        };
        let (address, origin) =
            taken.map_err(|error| shared.note(error).within(format!("{bytes} bytes")))?;
        Ok(AscendMemory::buffer(
            shared, address, bytes, origin, counted,
        ))
    }

    pub(super) fn import(
        shared: &Arc<Shared>,
        address: u64,
        bytes: u64,
        owner: Option<Owner>,
    ) -> Buffer {
        AscendMemory::buffer(shared, address, bytes, Origin::Foreign(owner), false)
    }
}

impl Memory for AscendMemory {
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

impl Drop for AscendMemory {
    fn drop(&mut self) {
        if self.counted {
            self.shared.used.fetch_sub(self.size, Ordering::AcqRel);
        }
        // Also on a lost device: who closes it may open it anew.
        if matches!(self.origin, Origin::Foreign(_)) || self.shared.gate.enter().is_err() {
            return;
        }
        match self.origin {
            Origin::Slab(length) => self
                .shared
                .heap
                .give(self.shared.gate, self.address, length),
            // SAFETY: allocated by `take`, and no work is left that uses it. A failure leaks it.
            _ => drop(unsafe { self.shared.gate.free(self.address) }),
        }
    }
}

/// Pinned host memory behind the contract's trait.
pub(super) struct AscendPinned {
    pub(super) memory: Pinned,
    /// Dropped last: the memory is freed on the open device.
    _shared: Arc<Shared>,
}

impl AscendPinned {
    pub(super) fn zeroed(shared: &Arc<Shared>, bytes: usize) -> Result<AscendPinned> {
        let memory = Pinned::new(shared.gate, bytes)?;
        // SAFETY: the allocation has so many bytes, and nobody else has them.
        unsafe { std::ptr::write_bytes(memory.address(), 0, memory.len()) };
        Ok(AscendPinned {
            memory,
            _shared: shared.clone(),
        })
    }
}

impl PinnedMemory for AscendPinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: zeroed when it was made; a copy under way owns this object.
        unsafe { self.memory.bytes() }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { self.memory.bytes_mut() }
    }
}
