//! Device memory that the host cannot touch, and pinned host memory.
//!
//! A device address lies in a range that is reserved without access for as long as the process lives, so that a host that follows one
//! faults at once; the bytes are elsewhere, and only [`Memory::translate`] tells where, for a range that lies in one live allocation.
//! Addresses are handed out upwards and never twice: what refers to a freed one is caught for ever after. Fresh memory is NaN in every
//! float format.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::clock::Clock;
use super::lock;

const PAGE: u64 = 4096;
/// What fresh memory is filled with.
const FRESH: u8 = 0xFF;
/// `aclrtMalloc` rounds up to so many bytes, and adds as many.
const GRAIN: u64 = 32;

/// Whose memory an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a device.
    Device(u32),
    /// Of the host, and pinned.
    Pinned,
}

/// A part of the process's addresses, reserved without access.
#[derive(Debug)]
struct Arena {
    start: u64,
    end: u64,
    next: Mutex<u64>,
}

impl Arena {
    /// Reserves so many bytes, or fewer where the system refuses.
    fn reserve(mut bytes: u64) -> Arena {
        while bytes >= PAGE {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping at an address of the system's choice.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes as usize,
                    libc::PROT_NONE,
                    flags,
                    -1,
                    0,
                )
            };
            if start != libc::MAP_FAILED {
                let start = start as u64;
                return Arena {
                    start,
                    end: start + bytes,
                    next: Mutex::new(start),
                };
            }
            bytes /= 2;
        }
        Arena {
            start: 0,
            end: 0,
            next: Mutex::new(0),
        }
    }

    /// So many bytes at so many past a page's start, with a page that nobody has before and after.
    fn take(&self, bytes: u64, past: u64) -> Option<u64> {
        let mut next = lock(&self.next);
        let at = *next + PAGE + past;
        let after = at.checked_add(bytes)?.checked_next_multiple_of(PAGE)?;
        if after > self.end {
            return None;
        }
        *next = after;
        Some(at)
    }

    fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A live allocation. Dropping the last reference gives the bytes back; the address stays taken.
#[derive(Debug)]
pub struct Allocation {
    /// Its address, as the caller knows it.
    pub base: u64,
    /// Its bytes, exactly as asked for.
    pub bytes: u64,
    /// Whose it is.
    pub kind: Kind,
    /// Queued work that refers to it.
    pub uses: Mutex<Clock>,
    /// How many model runtime instances refer to it.
    pub graphs: AtomicUsize,
    data: *mut u8,
    mapping: (*mut libc::c_void, usize),
}

// SAFETY: the pointers are to a mapping that this value owns; access is by explicit copies, whose order is the streams' business.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// Where byte `offset` is.
    ///
    /// # Panics
    /// If there is no such byte; one past the last is allowed.
    pub fn at(&self, offset: u64) -> *mut u8 {
        assert!(offset <= self.bytes);
        self.data.wrapping_add(offset as usize)
    }

    /// What `aclrtMalloc` takes for it.
    fn taken(&self) -> u64 {
        self.bytes.next_multiple_of(GRAIN) + GRAIN
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let (start, length) = self.mapping;
        // SAFETY: a mapping of this value's own that nothing else refers to any more. Pinned memory stays reserved, so that the host faults.
        unsafe {
            match self.kind {
                Kind::Device(_) => {
                    libc::munmap(start, length);
                }
                Kind::Pinned => {
                    let flags = libc::MAP_PRIVATE
                        | libc::MAP_ANONYMOUS
                        | libc::MAP_NORESERVE
                        | libc::MAP_FIXED;
                    libc::mmap(start, length, libc::PROT_NONE, flags, -1, 0);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Ranges {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Bytes of what was freed, by address.
    freed: BTreeMap<u64, u64>,
}

/// All memory of a process that came from the emulator.
#[derive(Debug)]
pub struct Memory {
    device: Arena,
    pinned: Arena,
    ranges: RwLock<Ranges>,
    count: AtomicU64,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            device: Arena::reserve(1 << 40),
            pinned: Arena::reserve(1 << 38),
            ranges: RwLock::default(),
            count: AtomicU64::new(0),
        }
    }
}

impl Memory {
    fn read(&self) -> RwLockReadGuard<'_, Ranges> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ranges> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates; nothing if the machine has no more.
    pub fn allocate(&self, bytes: u64, kind: Kind) -> Option<Arc<Allocation>> {
        let allocation = match kind {
            Kind::Device(_) => self.allocate_device(bytes, kind)?,
            Kind::Pinned => self.allocate_pinned(bytes)?,
        };
        let allocation = Arc::new(allocation);
        self.write()
            .live
            .insert(allocation.base, Arc::clone(&allocation));
        Some(allocation)
    }

    fn allocate_device(&self, bytes: u64, kind: Kind) -> Option<Allocation> {
        // Addresses are aligned to 64 bytes, and to no more than that: who needs more has to see to it.
        let past = 64 * (1 + 2 * (self.count.fetch_add(1, Ordering::Relaxed) % 4));
        let base = self.device.take(bytes, past)?;
        let usable = bytes.checked_next_multiple_of(PAGE)?.max(PAGE);
        let length = (usable + 2 * PAGE) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice, of which all but the first and the last page are opened.
        let (start, opened) = unsafe {
            let start = libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return None;
            }
            let inner = start.byte_add(PAGE as usize);
            (start, libc::mprotect(inner, usable as usize, READ_WRITE))
        };
        // The end lies at the page without access, as near as alignment lets it.
        let shift = usable - bytes.next_multiple_of(GRAIN);
        let allocation = Allocation {
            base,
            bytes,
            kind,
            uses: Mutex::default(),
            graphs: AtomicUsize::new(0),
            data: start.cast::<u8>().wrapping_add((PAGE + shift) as usize),
            mapping: (start, length),
        };
        if opened != 0 {
            return None;
        }
        // SAFETY: the bytes were opened just now.
        unsafe { allocation.data.write_bytes(FRESH, bytes as usize) };
        Some(allocation)
    }

    fn allocate_pinned(&self, bytes: u64) -> Option<Allocation> {
        let base = self.pinned.take(bytes, 0)?;
        let length = bytes.next_multiple_of(PAGE) as usize;
        let start = base as *mut libc::c_void;
        // SAFETY: a part of the reserved range that was handed out to nobody else.
        if unsafe { libc::mprotect(start, length, READ_WRITE) } != 0 {
            return None;
        }
        // SAFETY: the bytes were opened just now.
        unsafe { start.cast::<u8>().write_bytes(FRESH, bytes as usize) };
        Some(Allocation {
            base,
            bytes,
            kind: Kind::Pinned,
            uses: Mutex::default(),
            graphs: AtomicUsize::new(0),
            data: start.cast(),
            mapping: (start, length),
        })
    }

    /// The live allocation that holds an address.
    pub fn find(&self, address: u64) -> Option<Arc<Allocation>> {
        let ranges = self.read();
        let (_, found) = ranges.live.range(..=address).next_back()?;
        (address - found.base < found.bytes).then(|| Arc::clone(found))
    }

    /// The live allocation that holds all of a range.
    pub fn find_range(&self, address: u64, bytes: u64) -> Option<Arc<Allocation>> {
        let found = self.find(address)?;
        (found.bytes - (address - found.base) >= bytes).then_some(found)
    }

    /// Where the bytes of a range of device memory are, with what keeps them there.
    pub fn translate(&self, address: u64, bytes: u64) -> Option<(Arc<Allocation>, *mut u8)> {
        let found = self.find_range(address, bytes)?;
        let at = found.at(address - found.base);
        matches!(found.kind, Kind::Device(_)).then_some((found, at))
    }

    /// Whether an address is of a range that only devices reach.
    pub fn is_device(&self, address: u64) -> bool {
        self.device.contains(address)
    }

    /// Whether an address is of the range of pinned memory.
    pub fn is_pinned(&self, address: u64) -> bool {
        self.pinned.contains(address)
    }

    /// Takes an allocation out of those that live.
    pub fn free(&self, base: u64) -> Option<Arc<Allocation>> {
        let mut ranges = self.write();
        let found = ranges.live.remove(&base)?;
        ranges.freed.insert(base, found.bytes);
        Some(found)
    }

    /// Takes all of a device out.
    pub fn free_all(&self, device: u32) {
        let all: Vec<u64> = self
            .live()
            .iter()
            .filter(|allocation| allocation.kind == Kind::Device(device))
            .map(|allocation| allocation.base)
            .collect();
        for base in all {
            self.free(base);
        }
    }

    /// All that live.
    pub fn live(&self) -> Vec<Arc<Allocation>> {
        self.read().live.values().cloned().collect()
    }

    /// Bytes of a device that are taken.
    pub fn used(&self, device: u32) -> u64 {
        let of_device = |allocation: &&Arc<Allocation>| allocation.kind == Kind::Device(device);
        let ranges = self.read();
        ranges
            .live
            .values()
            .filter(of_device)
            .map(|allocation| allocation.taken())
            .sum()
    }

    /// What a device takes for so many bytes.
    pub fn cost(bytes: u64) -> Option<u64> {
        bytes.checked_next_multiple_of(GRAIN)?.checked_add(GRAIN)
    }

    /// What an address is, for a report.
    pub fn describe(&self, address: u64) -> String {
        if !self.device.contains(address) && !self.pinned.contains(address) {
            return format!("{address:#x} is no address of the emulator's");
        }
        let ranges = self.read();
        let name = |base: u64, bytes: u64, what: &str| {
            format!(
                "{address:#x}, byte {} of {what} of {bytes} bytes at {base:#x}",
                address - base
            )
        };
        let live = ranges.live.range(..=address).next_back();
        let freed = ranges.freed.range(..=address).next_back();
        // The nearer one; past its end an address belongs to it still.
        match (live, freed) {
            (Some((base, found)), freed) if freed.is_none_or(|(freed, _)| freed < base) => {
                let what = match found.kind {
                    Kind::Device(_) => "an allocation",
                    Kind::Pinned => "pinned memory",
                };
                name(*base, found.bytes, what)
            }
            (_, Some((base, bytes))) => name(*base, *bytes, "freed memory"),
            _ => format!("{address:#x}, below all allocations"),
        }
    }
}

/// Copies bytes that [`Memory::translate`] or the caller vouches for; they may overlap.
pub(super) fn copy(to: *mut u8, from: *const u8, bytes: u64) {
    // SAFETY: both are as long as the work says: checked in the emulator's memory, promised by the caller for the host's.
    unsafe { std::ptr::copy(from, to, bytes as usize) };
}

/// Sets bytes that [`Memory::translate`] gave.
pub(super) fn fill(to: *mut u8, value: u8, bytes: u64) {
    // SAFETY: as long as the work says, which was checked.
    unsafe { to.write_bytes(value, bytes as usize) };
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_and_never_given_twice() {
        let memory = Memory::default();
        let mut seen = Vec::new();
        for bytes in [1, 31, 32, 4096, 100_000] {
            let allocation = memory.allocate(bytes, Kind::Device(0)).unwrap();
            assert!(allocation.base.is_multiple_of(64) && !allocation.base.is_multiple_of(128));
            assert!(!seen.contains(&allocation.base));
            seen.push(allocation.base);
            memory.free(allocation.base).unwrap();
            assert!(
                memory
                    .describe(allocation.base + 1)
                    .contains("freed memory")
            );
        }
    }

    #[test]
    fn only_what_lies_in_one_live_allocation_is_translated() {
        let memory = Memory::default();
        let first = memory.allocate(100, Kind::Device(0)).unwrap();
        let second = memory.allocate(100, Kind::Device(0)).unwrap();
        assert!(memory.translate(first.base, 100).is_some());
        assert!(memory.translate(first.base + 99, 1).is_some());
        assert!(memory.translate(first.base, 101).is_none());
        assert!(
            memory
                .translate(first.base, second.base - first.base + 1)
                .is_none()
        );
        memory.free(first.base).unwrap();
        assert!(memory.translate(first.base, 1).is_none());
        assert!(memory.translate(second.base, 1).is_some());
        let pinned = memory.allocate(8, Kind::Pinned).unwrap();
        assert!(memory.translate(pinned.base, 1).is_none());
        assert_eq!(memory.used(0), 128 + 32);
    }
}
