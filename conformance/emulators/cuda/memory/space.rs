//! The address space that all devices and pinned host memory share.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Region;

/// Where device addresses begin: beyond what a process of x86-64 or aarch64 can have, so that a host that follows one faults.
const FIRST: u64 = 1 << 48;
/// Addresses between allocations, so that an index that is a little off meets nothing.
const GAP: u64 = 4096;

/// The life of an allocation, in the order of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// `cuMemAllocAsync` returned, and its stream has not got there.
    Reserved,
    /// It may be used.
    Live,
    /// It was freed.
    Freed,
}

/// An allocation.
#[derive(Debug)]
pub struct Allocation {
    /// Its first address.
    pub base: u64,
    /// Its bytes.
    pub region: Region,
    /// The device it is on; `None` is the host.
    pub device: Option<usize>,
    /// Whether kernels may not write it (constant memory).
    pub read_only: bool,
    state: AtomicU8,
}

impl Allocation {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.region.bytes() as u64
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Reserved,
            1 => State::Live,
            _ => State::Freed,
        }
    }

    /// Moves it on in its life.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }
}

/// What lies at an address.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// An allocation.
    Found(Arc<Allocation>),
    /// What was freed: its first address and size.
    Freed(u64, u64),
    /// Nothing; the allocation that ends last before, its first address and size.
    Nothing(Option<(u64, u64)>),
}

#[derive(Debug)]
enum Entry {
    Used(Arc<Allocation>),
    Freed(u64),
}

/// All allocations, live and freed. Addresses are never given twice, so what is used after it was freed is always known.
#[derive(Debug)]
pub struct AddressSpace {
    entries: RwLock<BTreeMap<u64, Entry>>,
    next: AtomicU64,
}

impl Default for AddressSpace {
    fn default() -> Self {
        AddressSpace {
            entries: RwLock::default(),
            next: AtomicU64::new(FIRST),
        }
    }
}

impl AddressSpace {
    /// New memory of a device, each byte of this value; nothing if the machine has no memory left.
    pub fn allocate(
        &self,
        device: usize,
        bytes: usize,
        value: u8,
        read_only: bool,
        state: State,
    ) -> Option<Arc<Allocation>> {
        let region = Region::new(bytes, value)?;
        let span = (bytes as u64).next_multiple_of(GAP) + GAP;
        let base = self.next.fetch_add(span, Ordering::Relaxed);
        Some(self.insert(base, region, Some(device), read_only, state))
    }

    /// New host memory that devices reach by the host's own addresses, zeroed.
    pub fn allocate_host(&self, bytes: usize) -> Option<Arc<Allocation>> {
        let region = Region::new(bytes, 0)?;
        Some(self.adopt(region))
    }

    /// Takes in host memory at its own address.
    pub fn adopt(&self, region: Region) -> Arc<Allocation> {
        let pointer: NonNull<u8> = region.host_pointer();
        self.insert(pointer.as_ptr() as u64, region, None, false, State::Live)
    }

    fn insert(
        &self,
        base: u64,
        region: Region,
        device: Option<usize>,
        read_only: bool,
        state: State,
    ) -> Arc<Allocation> {
        let allocation = Arc::new(Allocation {
            base,
            region,
            device,
            read_only,
            state: AtomicU8::new(state as u8),
        });
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(base, Entry::Used(Arc::clone(&allocation)));
        allocation
    }

    /// What lies at an address.
    pub fn find(&self, address: u64) -> Lookup {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let Some((base, entry)) = entries.range(..=address).next_back() else {
            return Lookup::Nothing(None);
        };
        let bytes = match entry {
            Entry::Used(allocation) => allocation.bytes(),
            Entry::Freed(bytes) => *bytes,
        };
        match entry {
            // An allocation of no bytes still has an address.
            _ if address - base >= bytes.max(1) => Lookup::Nothing(Some((*base, bytes))),
            Entry::Used(allocation) if allocation.state() != State::Freed => {
                Lookup::Found(Arc::clone(allocation))
            }
            _ => Lookup::Freed(*base, bytes),
        }
    }

    /// Ends an allocation; its memory goes back when the last copy or kernel that holds it is done. Host memory leaves no mark,
    /// since the host may get the same address again.
    ///
    /// Gives the allocation, or nothing if none that lives begins there.
    pub fn free(&self, base: u64) -> Option<Arc<Allocation>> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let allocation = match entries.get(&base)? {
            Entry::Used(allocation) => Arc::clone(allocation),
            Entry::Freed(_) => return None,
        };
        allocation.set_state(State::Freed);
        if allocation.device.is_none() {
            entries.remove(&base);
        } else {
            entries.insert(base, Entry::Freed(allocation.bytes()));
        }
        Some(allocation)
    }
}
