//! Bytes that kernels on several threads, copies and (pinned) the host read and write at once.
//!
//! A racing kernel must not be undefined behaviour of the emulator, so each access is a relaxed atomic of its size, which costs
//! what a plain one does. All of the emulator's device memory is reached through the checked functions of this file.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The alignment of regions, which is what `cuMemAlloc` promises.
const ALIGN: usize = 256;

/// A range of bytes.
#[derive(Debug)]
pub struct Region {
    pointer: NonNull<u8>,
    bytes: usize,
    owned: Option<Layout>,
}

// SAFETY: the bytes are reached by atomic operations alone, but for what the host does with pinned memory, which is its own
// program's responsibility as with the real driver.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// New bytes, each of this value; nothing if the machine has no memory left.
    pub fn new(bytes: usize, value: u8) -> Option<Region> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).ok()?;
        // SAFETY: the layout's size is not 0.
        let pointer = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the allocation has that many bytes, and nobody else knows it.
        unsafe { pointer.as_ptr().write_bytes(value, layout.size()) };
        Some(Region {
            pointer,
            bytes,
            owned: Some(layout),
        })
    }

    /// Bytes that somebody else keeps.
    ///
    /// # Safety
    /// They must stay readable and writable as long as the region lives, and begin at a multiple of 8.
    pub unsafe fn foreign(pointer: NonNull<u8>, bytes: usize) -> Region {
        Region {
            pointer,
            bytes,
            owned: None,
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the host finds them.
    pub fn host_pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes)
                && offset & (bytes - 1) == 0,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        // SAFETY: within the region, by the assertion.
        unsafe { self.pointer.as_ptr().add(offset) }
    }

    /// The value of 1, 2, 4 or 8 bytes at a multiple of their number.
    ///
    /// # Panics
    /// Beyond the end, or at no such multiple.
    #[inline]
    pub fn load(&self, offset: usize, bytes: u8) -> u64 {
        let pointer = self.at(offset, usize::from(bytes));
        // SAFETY: `at` checked range and alignment; the bytes live as long as the region, and all accesses are atomic.
        unsafe {
            match bytes {
                1 => u64::from(AtomicU8::from_ptr(pointer).load(Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Relaxed)),
                _ => AtomicU64::from_ptr(pointer.cast()).load(Relaxed),
            }
        }
    }

    /// Stores 1, 2, 4 or 8 bytes at a multiple of their number.
    ///
    /// # Panics
    /// As [`Region::load`].
    #[inline]
    pub fn store(&self, offset: usize, bytes: u8, value: u64) {
        let pointer = self.at(offset, usize::from(bytes));
        // SAFETY: as in `load`.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(pointer).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(pointer.cast()).store(value, Relaxed),
            }
        }
    }

    /// Replaces a value by a function of it, as one step; gives the value before.
    ///
    /// # Panics
    /// As [`Region::load`], and for single bytes.
    pub fn update(&self, offset: usize, bytes: u8, function: impl Fn(u64) -> u64) -> u64 {
        let pointer = self.at(offset, usize::from(bytes));
        macro_rules! swap {
            ($atomic:ty, $value:ty) => {{
                // SAFETY: as in `load`.
                let cell = unsafe { <$atomic>::from_ptr(pointer.cast()) };
                let mut old = cell.load(Relaxed);
                loop {
                    let new = function(u64::from(old)) as $value;
                    match cell.compare_exchange_weak(
                        old,
                        new,
                        std::sync::atomic::Ordering::SeqCst,
                        Relaxed,
                    ) {
                        Ok(_) => return u64::from(old),
                        Err(now) => old = now,
                    }
                }
            }};
        }
        match bytes {
            2 => swap!(AtomicU16, u16),
            4 => swap!(AtomicU32, u32),
            8 => swap!(AtomicU64, u64),
            _ => panic!("no atomic operation of {bytes} bytes"),
        }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.walk(offset, into.len(), |at, from, bytes| {
            let value = self.load(at, bytes).to_le_bytes();
            into[from..from + usize::from(bytes)].copy_from_slice(&value[..usize::from(bytes)]);
        });
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.walk(offset, data.len(), |at, from, bytes| {
            let mut value = [0; 8];
            value[..usize::from(bytes)].copy_from_slice(&data[from..from + usize::from(bytes)]);
            self.store(at, bytes, u64::from_le_bytes(value));
        });
    }

    /// Eight bytes at a time where that is aligned, single bytes before and after.
    fn walk(&self, offset: usize, bytes: usize, mut visit: impl FnMut(usize, usize, u8)) {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes)
        );
        let mut done = 0;
        while done < bytes {
            let step = if (offset + done).is_multiple_of(8) && bytes - done >= 8 {
                8
            } else {
                1
            };
            visit(offset + done, done, step);
            done += usize::from(step);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: `alloc` gave the pointer for this layout, and it is freed once.
            unsafe { dealloc(self.pointer.as_ptr(), layout) };
        }
    }
}
