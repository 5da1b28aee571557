//! What stands in for a vendor's library: memory. In other backends this file loads the library, declares its functions once, and
//! turns its codes into errors in one function; nothing outside it calls the library.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ropeway_core::{Error, ErrorKind, Result};

/// Bytes of memory that the null device has. Only what is written takes host memory, so that plans of any size can be bound.
pub(super) const MEMORY: u64 = 1 << 40;

/// Host memory that is zero until it is written. The lock stands for the device's order: nothing is seen half done.
pub(super) struct Bytes {
    size: usize,
    /// All bytes up to the last one that was written.
    written: Mutex<Vec<u8>>,
}

impl Bytes {
    pub(super) fn new(size: u64) -> Result<Bytes> {
        let size = usize::try_from(size).map_err(|_| full(size))?;
        let written = Mutex::default();
        Ok(Bytes { size, written })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a range within the buffer, to write.
    fn write_with(&self, range: Range<usize>, write: impl FnOnce(&mut [u8])) -> Result<()> {
        assert!(range.end <= self.size, "a slice lies in its buffer");
        let mut written = self.lock();
        let missing = range.end.saturating_sub(written.len());
        written
            .try_reserve(missing)
            .map_err(|_| full(range.end as u64))?;
        let len = written.len();
        written.resize(len + missing, 0);
        write(&mut written[range]);
        Ok(())
    }

    pub(super) fn write(&self, at: usize, data: &[u8]) -> Result<()> {
        self.write_with(at..at + data.len(), |bytes| bytes.copy_from_slice(data))
    }

    pub(super) fn fill(&self, range: Range<usize>, byte: u8) -> Result<()> {
        self.write_with(range, |bytes| bytes.fill(byte))
    }

    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        let written = self.lock();
        let there = written.get(at..).unwrap_or_default();
        let there = &there[..there.len().min(into.len())];
        let (known, unknown) = into.split_at_mut(there.len());
        known.copy_from_slice(there);
        unknown.fill(0);
    }

    /// Copies to another or the same buffer; the ranges do not overlap.
    pub(super) fn copy_to(&self, from: Range<usize>, target: &Bytes, to: usize) -> Result<()> {
        // Through a copy, since two buffers' locks at once could be taken in two orders.
        let mut data = vec![0; from.len()];
        self.read(from.start, &mut data);
        target.write(to, &data)
    }
}

fn full(bytes: u64) -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        format!("{bytes} bytes of host memory"),
    )
}
