//! Shared memory of a block, with what the sanitizer knows of each byte.

use std::ops::Range;

use super::clocks::Clocks;
use super::report::{Detector, Fault};

/// An access: which thread, where in the code, at which count of its warp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Access {
    /// The thread's number and 1; 0 is none. With [`MANY`] other lanes of its warp did the same.
    thread: u16,
    /// The instruction, as far as 16 bits tell.
    pc: u16,
    count: u32,
}

/// Marks an access of several lanes of a warp.
const MANY: u16 = 1 << 15;

impl Access {
    fn number(self) -> u32 {
        u32::from(self.thread & !MANY) - 1
    }

    fn warp(self) -> usize {
        self.number() as usize / 32
    }
}

/// Bytes that engines and vectors of registers move at a time, and of which mostly the same is known.
const CHUNK: usize = 16;

/// What is known of a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    writer: Access,
    /// The last reader, and the last of another warp.
    readers: [Access; 2],
    initialised: bool,
    /// Whether the last write was atomic, volatile, relaxed or stronger.
    strong: bool,
    /// An asynchronous copy has not been waited for.
    pending: bool,
    /// Whether the last write was a thread's and not an engine's: engines see it behind a fence of the proxy.
    ordinary: bool,
    /// Engines that are reading it: products and bulk stores that have not been waited for.
    engines: u16,
}

impl Cell {
    fn is_read(&mut self, access: Access) {
        let last = self.readers[0];
        self.readers[0] = access;
        if last.thread != 0 && last.thread != access.thread {
            if last.warp() != access.warp() {
                self.readers[1] = last;
            } else if last.count == access.count {
                self.readers[0].thread |= MANY;
            }
        }
    }
}

/// Who accesses, and how.
#[derive(Clone, Copy, Debug)]
pub struct Accessor {
    /// The thread's number in its block.
    pub thread: u32,
    /// The instruction.
    pub pc: u32,
    /// Whether the access is atomic, volatile, relaxed or stronger.
    pub strong: bool,
}

impl Accessor {
    fn warp(self) -> usize {
        self.thread as usize / 32
    }

    /// Its lane.
    pub fn lane(self) -> u32 {
        self.thread % 32
    }
}

/// What is watched for in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Reads of what nobody wrote.
    pub uninitialised: bool,
    /// Accesses that nothing orders.
    pub races: bool,
}

/// Shared memory of a block.
#[derive(Debug)]
pub struct Shared {
    data: Vec<u8>,
    cells: Vec<Cell>,
    /// Of each chunk of [`CHUNK`] bytes whether all is alike in it: then its first cell speaks for it.
    alike: Vec<bool>,
    watch: Watch,
}

impl Shared {
    /// So many bytes that nobody wrote.
    pub fn new(bytes: usize, watch: Watch) -> Shared {
        Shared {
            data: vec![0xFF; bytes],
            cells: vec![Cell::default(); bytes],
            alike: vec![true; bytes.div_ceil(CHUNK)],
            watch,
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    fn range(
        &self,
        address: u64,
        bytes: usize,
        align: usize,
        by: Accessor,
    ) -> Result<usize, Box<Fault>> {
        let end = address.checked_add(bytes as u64);
        if end.is_none_or(|end| end > self.data.len() as u64) {
            let message = format!(
                "{bytes} bytes at {address} of {} bytes of shared memory",
                self.data.len()
            );
            return Err(Fault::new(Detector::OutOfBounds, by.lane(), message));
        }
        if address & (align as u64 - 1) != 0 {
            let message = format!("{bytes} bytes at {address} of shared memory");
            return Err(Fault::new(Detector::Misaligned, by.lane(), message));
        }
        Ok(address as usize)
    }

    /// Whether an earlier access is ordered before what a thread does that knows these counts of each warp.
    #[inline]
    fn ordered(earlier: Access, now: Access, known: &[u32]) -> bool {
        if earlier.thread == 0 || earlier.thread == now.thread {
            return true;
        }
        let warp = earlier.warp();
        if warp == now.warp() {
            earlier.count < known[warp]
        } else {
            earlier.count <= known[warp]
        }
    }

    fn access(by: Accessor, known: &[u32]) -> Access {
        Access {
            thread: by.thread as u16 + 1,
            pc: by.pc.min(u32::from(u16::MAX)) as u16,
            count: known[by.warp()],
        }
    }

    /// Runs over what is known of a place: a cell, and the bytes that it speaks for.
    #[inline]
    fn each(
        &mut self,
        at: usize,
        bytes: usize,
        mut f: impl FnMut(&mut Cell, &[u8], Range<usize>) -> Result<(), Box<Fault>>,
    ) -> Result<(), Box<Fault>> {
        let end = at + bytes;
        let mut index = at;
        while index < end {
            let chunk = index / CHUNK;
            let cells = chunk * CHUNK..(chunk * CHUNK + CHUNK).min(self.cells.len());
            if !self.alike[chunk] {
                let to = cells.end.min(end);
                for at in index..to {
                    f(&mut self.cells[at], &self.data, at..at + 1)?;
                }
                index = to;
            } else if index == cells.start && cells.end <= end {
                index = cells.end;
                f(&mut self.cells[cells.start], &self.data, cells)?;
            } else {
                // A part of it will differ.
                let cell = self.cells[cells.start];
                self.cells[cells].fill(cell);
                self.alike[chunk] = false;
            }
        }
        Ok(())
    }

    /// Chunks in which all has become alike.
    fn join(&mut self, at: usize, bytes: usize) {
        for chunk in at.div_ceil(CHUNK)..(at + bytes) / CHUNK {
            if !self.alike[chunk] {
                let cells = &self.cells[chunk * CHUNK..(chunk + 1) * CHUNK];
                self.alike[chunk] = cells[1..].iter().all(|cell| *cell == cells[0]);
            }
        }
    }

    /// Notes that other lanes of a warp read what one of them just did.
    pub fn read_by_many(&mut self, at: usize, bytes: usize) {
        if self.watch.races {
            let _ = self.each(at, bytes, |cell, _, _| {
                cell.readers[0].thread |= MANY;
                Ok(())
            });
        }
    }

    /// Notes a read, and whether it may be.
    ///
    /// # Errors
    /// What the sanitizer finds.
    pub fn check_read(
        &mut self,
        address: u64,
        bytes: usize,
        align: usize,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<usize, Box<Fault>> {
        let at = self.range(address, bytes, align, by)?;
        let (watch, known) = (self.watch, clocks.known(by.warp()));
        let access = Self::access(by, known);
        // Bytes of one value have one writer, whose order needs one look.
        let mut looked_at = Access::default();
        self.each(at, bytes, |cell, _, _| {
            if cell.pending {
                return Err(pending("read", address, cell.writer, by, clocks));
            }
            if watch.uninitialised && !cell.initialised {
                let message = format!(
                    "read of {bytes} bytes at {address} of shared memory, which nobody wrote"
                );
                return Err(Fault::new(Detector::Uninitialised, by.lane(), message));
            }
            if watch.races {
                if cell.writer != looked_at {
                    if !(by.strong && cell.strong || Self::ordered(cell.writer, access, known)) {
                        return Err(race("read", "write", address, cell.writer, (by, clocks)));
                    }
                    looked_at = cell.writer;
                }
                cell.is_read(access);
            }
            Ok(())
        })?;
        Ok(at)
    }

    /// Notes a write, and whether it may be. `data`: what will be written, for what is not atomic.
    ///
    /// # Errors
    /// What the sanitizer finds.
    pub fn check_write(
        &mut self,
        address: u64,
        data: &[u8],
        align: usize,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<usize, Box<Fault>> {
        let at = self.range(address, data.len(), align, by)?;
        self.note_write(at, data.len(), Some(data), by, clocks)?;
        Ok(at)
    }

    /// `data`: what will be written, where it is known.
    fn note_write(
        &mut self,
        at: usize,
        bytes: usize,
        data: Option<&[u8]>,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<(), Box<Fault>> {
        let address = at as u64;
        let (watch, known) = (self.watch, clocks.known(by.warp()));
        let access = Self::access(by, known);
        self.each(at, bytes, |cell, held, place| {
            if cell.pending {
                return Err(pending("write", address, cell.writer, by, clocks));
            }
            if cell.engines > 0 {
                let message = format!(
                    "write of shared memory at {address}, which a product or bulk store that is not waited for reads"
                );
                return Err(Fault::new(Detector::Engine, by.lane(), message));
            }
            if watch.races {
                // Two writes of one value leave no doubt about the result.
                let same = cell.initialised
                    && data.is_some_and(|data| {
                        held[place.clone()] == data[place.start - at..place.end - at]
                    });
                let follows = by.strong && cell.strong || Self::ordered(cell.writer, access, known);
                if !same && !follows {
                    return Err(race("write", "write", address, cell.writer, (by, clocks)));
                }
                if !by.strong {
                    for reader in cell.readers {
                        if !same && !Self::ordered(reader, access, known) {
                            return Err(race("write", "read", address, reader, (by, clocks)));
                        }
                    }
                    cell.readers = [Access::default(); 2];
                }
                cell.strong = by.strong;
            }
            cell.writer = access;
            cell.initialised = true;
            cell.ordinary = true;
            Ok(())
        })?;
        self.join(at, bytes);
        Ok(())
    }

    /// Marks the target of an asynchronous copy: nobody may touch it until it has been waited for. `align`: the multiple it begins at.
    ///
    /// # Errors
    /// What the sanitizer finds.
    pub fn begin_copy(
        &mut self,
        address: u64,
        bytes: usize,
        align: usize,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<(), Box<Fault>> {
        let at = self.range(address, bytes, align, by)?;
        // The bytes that will come are not known yet: any earlier access that nothing orders is a race.
        self.note_write(at, bytes, None, by, clocks)?;
        self.data[at..at + bytes].fill(0xFF);
        self.each(at, bytes, |cell, _, _| {
            cell.pending = true;
            Ok(())
        })?;
        Ok(())
    }

    /// Ends an asynchronous copy: its thread sees the bytes now, others when they are ordered behind it. `by` an engine, nobody does
    /// before it has waited for the engine.
    pub fn end_copy(
        &mut self,
        address: u64,
        data: &[u8],
        by: Accessor,
        engine: bool,
        clocks: &Clocks,
    ) {
        let at = address as usize;
        self.data[at..at + data.len()].copy_from_slice(data);
        let writer = Self::access(by, clocks.known(by.warp()));
        let _ = self.each(at, data.len(), |cell, _, _| {
            cell.pending = false;
            cell.initialised = true;
            cell.writer = writer;
            cell.ordinary = !engine;
            Ok(())
        });
    }

    /// Notes that an engine begins to read, for a thread, what lies there until it is waited for, and gives the place.
    ///
    /// # Errors
    /// What the sanitizer finds: besides what every read may be wrong in, ordinary writes that no fence of the proxy follows.
    pub fn begin_engine_read(
        &mut self,
        address: u64,
        bytes: usize,
        align: usize,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<usize, Box<Fault>> {
        let at = self.check_read(address, bytes, align, by, clocks)?;
        self.check_proxy(at, bytes, by, clocks)?;
        self.each(at, bytes, |cell, _, _| {
            cell.engines += 1;
            Ok(())
        })?;
        Ok(at)
    }

    /// Whether engines see what lies at a place that was checked.
    ///
    /// # Errors
    /// Ordinary writes that no fence of the proxy follows.
    pub fn check_proxy(
        &mut self,
        at: usize,
        bytes: usize,
        by: Accessor,
        clocks: &Clocks,
    ) -> Result<(), Box<Fault>> {
        if !self.watch.races {
            return Ok(());
        }
        self.each(at, bytes, |cell, _, _| {
            if !cell.ordinary
                || cell.writer.thread == 0
                || clocks.is_fenced_for_engines(cell.writer.number(), cell.writer.count)
            {
                return Ok(());
            }
            let message = format!(
                "an engine needs shared memory at {at}, which {} (instruction {}) wrote without fence.proxy.async behind it",
                clocks.name(cell.writer.number()),
                cell.writer.pc
            );
            Err(Fault::new(Detector::Proxy, by.lane(), message))
        })
    }

    /// Notes that an engine has read, and that its thread has waited for it.
    pub fn end_engine_read(&mut self, at: usize, bytes: usize, by: Accessor, clocks: &Clocks) {
        let (watch, reader) = (self.watch, Self::access(by, clocks.known(by.warp())));
        let _ = self.each(at, bytes, |cell, _, _| {
            cell.engines -= 1;
            if watch.races {
                let last = std::mem::replace(&mut cell.readers[0], reader);
                if last.thread != 0 && last.warp() != reader.warp() {
                    cell.readers[1] = last;
                }
            }
            Ok(())
        });
    }

    /// The bytes at a place that was checked.
    pub fn bytes_at(&self, at: usize, bytes: usize) -> &[u8] {
        &self.data[at..at + bytes]
    }

    /// Reads a value at a place that was checked.
    #[inline]
    pub fn load(&self, at: usize, bytes: u8) -> u64 {
        let mut value = [0; 8];
        let bytes = usize::from(bytes);
        value[..bytes].copy_from_slice(&self.data[at..at + bytes]);
        u64::from_le_bytes(value)
    }

    /// Writes a value at a place that was checked.
    #[inline]
    pub fn store(&mut self, at: usize, bytes: u8, value: u64) {
        let bytes = usize::from(bytes);
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
}

fn pending(what: &str, address: u64, writer: Access, by: Accessor, clocks: &Clocks) -> Box<Fault> {
    let message = format!(
        "{what} of shared memory at {address} before what {} copies there has been waited for",
        clocks.name(writer.number())
    );
    Fault::new(Detector::AsyncCopy, by.lane(), message)
}

fn race(
    now: &str,
    before: &str,
    address: u64,
    earlier: Access,
    (by, clocks): (Accessor, &Clocks),
) -> Box<Fault> {
    let message = format!(
        "{now} of shared memory at {address} and a {before} by {} (instruction {}) have no order",
        clocks.name(earlier.number()),
        earlier.pc
    );
    Fault::new(Detector::Race, by.lane(), message)
}
