//! Launches, copies, events and order, on in-order command queues with profiling.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ropeway_core::device::{Argument, Download, Event, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::{Buffer, Error, ErrorKind, Result};

use crate::moment::{Moment, lock, next_epoch, wait};
use super::compile::OpenClFunction;
use super::device::{OpenClMemory, Owner, Serial, Shared};
use super::sys::{Handle, Mem, RawEvent, RawQueue};
use crate::loop_graph::LoopGraph;

/// Uploads up to this size go through staging blocks that are used again.
const STAGING_BLOCK: usize = 1 << 20;
/// The staging blocks that a queue keeps.
const STAGING_BLOCKS: usize = 8;
/// Bytes of staging that may wait for the device; an upload beyond waits until its data is taken.
const STAGING_LIMIT: usize = 64 << 20;
/// Owners of imported memory that gather before they are put on an event of their own.
const KEPT_OWNERS: usize = 1024;

pub(super) struct OpenClQueue {
    shared: Arc<Shared>,
    raw: Arc<RawQueue>,
    status_word: Mem,
    status_serial: Serial,
    /// Held over an enqueueing that enters something here, so that no marker or reading of the status word comes in between.
    books: Mutex<Books>,
    staging: Mutex<Vec<StagingBlock>>,
    /// False if the last the host knows is that all work was done.
    busy: AtomicBool,
    _owner: Option<Owner>,
}

/// What the host notes of the work that it enqueues.
struct Books {
    /// A launch has got the status word since it was last read.
    status_used: bool,
    /// Reads of the status word under way: when they are done, and where to.
    status_reads: Vec<(Arc<RawEvent>, Arc<AtomicU32>)>,
    /// Owners of imported memory, held until the work that uses it is done.
    owners: Vec<Owner>,
    /// Marks the memory whose owner is in the list already.
    epoch: u64,
}

/// Host memory that holds an upload's data until the device has it.
struct StagingBlock {
    bytes: Vec<u8>,
    /// The copy that reads it.
    until: Option<RawEvent>,
}

impl OpenClQueue {
    pub(super) fn new(
        shared: Arc<Shared>,
        raw: RawQueue,
        owner: Option<Owner>,
    ) -> Result<OpenClQueue> {
        let status_word = shared.context.buffer_from(&[0; 4])?;
        Ok(OpenClQueue {
            shared,
            raw: Arc::new(raw),
            status_word,
            status_serial: Serial::next(),
            books: Mutex::new(Books {
                status_used: false,
                status_reads: Vec::new(),
                owners: Vec::new(),
                epoch: next_epoch(),
            }),
            staging: Mutex::default(),
            busy: AtomicBool::new(false),
            _owner: owner,
        })
    }

    fn note(&self, error: Error) -> Error {
        self.shared.note(error)
    }

    /// The memory behind a buffer, for work that is about to be enqueued. An imported one's owner goes into the books, which stay
    /// locked until then.
    #[inline]
    fn memory<'a, 'q>(
        &'q self,
        buffer: &'a Buffer,
        books: &mut Option<MutexGuard<'q, Books>>,
    ) -> Result<&'a OpenClMemory> {
        let memory = self.shared.memory(buffer)?;
        if let Some(owner) = &memory.owner {
            let books = books.get_or_insert_with(|| lock(&self.books));
            if memory.kept_in.swap(books.epoch, Ordering::Relaxed) != books.epoch {
                books.owners.push(owner.clone());
            }
        }
        Ok(memory)
    }

    /// Closes the books after an enqueueing. Should the owners become many between two marks, they get one of their own.
    fn close(&self, books: Option<MutexGuard<'_, Books>>) -> Result<()> {
        match books {
            Some(mut books) if books.owners.len() >= KEPT_OWNERS => {
                self.mark_in(&mut books).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// An event behind all earlier work.
    fn mark(&self) -> Result<Arc<RawEvent>> {
        self.shared.alive()?;
        self.mark_in(&mut lock(&self.books))
    }

    /// An event behind all earlier work, at which the owners go that the work needs.
    fn mark_in(&self, books: &mut Books) -> Result<Arc<RawEvent>> {
        let marker = Arc::new(self.raw.marker().map_err(|error| self.note(error))?);
        if !books.owners.is_empty() {
            books.epoch = next_epoch();
            let owners = std::mem::take(&mut books.owners);
            self.shared.retired.retire(marker.clone(), Box::new(owners));
        }
        Ok(marker)
    }

    fn event(&self, raw: Arc<RawEvent>) -> Arc<dyn Event> {
        Arc::new(OpenClEvent {
            raw,
            shared: self.shared.clone(),
            queue: self.raw.clone(),
            flushed: AtomicBool::new(false),
        })
    }

    fn wait_for(&self, event: &RawEvent, timeout: Option<Duration>) -> Result<()> {
        self.raw.flush().map_err(|error| self.note(error))?;
        wait(event, timeout).map_err(|error| self.note(error))
    }

    /// Reads the status word, if a launch has got it, and sets it back. No launch comes between the two.
    fn read_status(&self) -> Result<()> {
        let mut books = lock(&self.books);
        if std::mem::take(&mut books.status_used) {
            let word = Arc::new(AtomicU32::new(0));
            // SAFETY: the word is as long as the buffer; `reads` keeps it until the event is done, and nobody looks before.
            let read = unsafe {
                self.raw
                    .read(&self.status_word, 0, word.as_ptr().cast(), 4, false)
            };
            let read = read.map_err(|error| self.note(error))?;
            books.status_reads.push((Arc::new(read), word));
            // SAFETY: the whole buffer.
            unsafe { self.raw.fill(&self.status_word, &[0; 4], 0, 4) }
                .map_err(|error| self.note(error))?;
        }
        Ok(())
    }

    /// The first code other than 0 that a finished read has brought.
    fn status_code(&self) -> u32 {
        let mut code = 0;
        lock(&self.books).status_reads.retain(|(event, word)| {
            let pending = matches!(event.is_done(), Ok(false));
            if !pending && code == 0 {
                code = word.load(Ordering::Acquire);
            }
            pending
        });
        code
    }

    /// Sends an upload through a staging block.
    ///
    /// Gives `false` if too much is waiting already.
    fn stage(&self, memory: &OpenClMemory, offset: u64, data: &[u8]) -> Result<bool> {
        let mut staging = lock(&self.staging);
        let mut waiting = 0;
        for block in staging.iter_mut() {
            if block
                .until
                .as_ref()
                .is_some_and(|until| !matches!(until.is_done(), Ok(false)))
            {
                block.until = None;
            }
            if block.until.is_some() {
                waiting += block.bytes.capacity();
            }
        }
        let mut small = 0;
        staging.retain(|block| {
            small += usize::from(block.bytes.capacity() <= STAGING_BLOCK);
            block.until.is_some()
                || (block.bytes.capacity() <= STAGING_BLOCK && small <= STAGING_BLOCKS)
        });
        if waiting + data.len() > STAGING_LIMIT {
            return Ok(false);
        }
        let free = staging
            .iter()
            .position(|block| block.until.is_none() && block.bytes.capacity() >= data.len());
        let index = free.unwrap_or_else(|| {
            let size = if data.len() <= STAGING_BLOCK {
                STAGING_BLOCK
            } else {
                data.len()
            };
            staging.push(StagingBlock {
                bytes: Vec::with_capacity(size),
                until: None,
            });
            staging.len() - 1
        });
        let block = &mut staging[index];
        block.bytes.clear();
        block.bytes.extend_from_slice(data);
        // SAFETY: the slice lies in the buffer; the block keeps its bytes, untouched, until the event is done.
        let event = unsafe { self.raw.write(&memory.mem, offset, &block.bytes, false) };
        block.until = Some(event.map_err(|error| self.note(error))?);
        Ok(true)
    }
}

impl Queue for OpenClQueue {
    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        self.shared.alive()?;
        if to.len() != data.len() as u64 {
            return Err(Error::invalid(
                "data",
                format!("{} bytes", data.len()),
                to.len(),
            ));
        }
        let memory = self.shared.memory(to.buffer())?;
        if data.is_empty() {
            return Ok(());
        }
        // Where nothing of this queue is waiting, a direct copy is done at once and saves the one into staging.
        let direct = data.len() > STAGING_BLOCK && !self.busy.load(Ordering::Relaxed);
        if !direct {
            let mut books = None;
            self.memory(to.buffer(), &mut books)?;
            if self.stage(memory, to.offset(), data)? {
                self.busy.store(true, Ordering::Relaxed);
                return self.close(books);
            }
        }
        // SAFETY: the slice lies in the buffer; the copy is done when the call returns.
        unsafe { self.raw.write(&memory.mem, to.offset(), data, true) }
            .map_err(|error| self.note(error))?;
        Ok(())
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        self.shared.alive()?;
        self.shared.memory(from.buffer())?;
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", target.len()),
                format!("at least {}", from.len()),
            ));
        }
        self.busy.store(true, Ordering::Relaxed);
        if from.is_empty() {
            return Ok(Download::new(self.record()?, into));
        }
        let (target, len) = (target.as_mut_ptr(), from.len() as usize);
        let mut books = None;
        let memory = self.memory(from.buffer(), &mut books)?;
        // SAFETY: the slice lies in the buffer and the target is as long; `Download` owns the target until the event is done.
        let copy = unsafe {
            self.raw
                .read(&memory.mem, from.offset(), target, len, false)
        };
        let copy = copy.map_err(|error| self.note(error))?;
        Ok(Download::new(self.event(Arc::new(copy)), into))
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        self.shared.alive()?;
        if from.len() != into.len() as u64 {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", into.len()),
                from.len(),
            ));
        }
        // The caller's slice keeps the memory, and its owner, until this read is done.
        let memory = self.shared.memory(from.buffer())?;
        if into.is_empty() {
            return self.wait_for(&*self.mark()?, None);
        }
        // SAFETY: the slice lies in the buffer, `into` is as long, and the copy is done when the call returns.
        unsafe {
            self.raw.read(
                &memory.mem,
                from.offset(),
                into.as_mut_ptr(),
                into.len(),
                true,
            )
        }
        .map_err(|error| self.note(error))?;
        self.busy.store(false, Ordering::Relaxed);
        if !lock(&self.books).owners.is_empty() {
            // Their work is done, so they go at once.
            self.mark()?.wait().map_err(|error| self.note(error))?;
            self.shared.retired.sweep();
        }
        Ok(())
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        self.shared.alive()?;
        if from.len() != to.len() {
            return Err(Error::invalid(
                "to",
                format!("{} bytes", to.len()),
                from.len(),
            ));
        }
        let mut books = None;
        let source = self.memory(from.buffer(), &mut books)?;
        let target = self.memory(to.buffer(), &mut books)?;
        if from.is_empty() {
            return Ok(());
        }
        if source.mem.raw() == target.mem.raw()
            && from.offset() < to.offset() + to.len()
            && to.offset() < from.offset() + from.len()
        {
            return Err(Error::invalid(
                "to",
                "a slice that overlaps the source",
                "disjoint slices",
            ));
        }
        self.busy.store(true, Ordering::Relaxed);
        // SAFETY: the slices lie in their buffers and do not overlap.
        unsafe {
            self.raw.copy(
                &source.mem,
                from.offset(),
                &target.mem,
                to.offset(),
                from.len(),
            )
        }
        .map_err(|error| self.note(error))?;
        self.close(books)
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        self.shared.alive()?;
        let mut books = None;
        let memory = self.memory(to.buffer(), &mut books)?;
        self.busy.store(true, Ordering::Relaxed);
        let pattern = [byte; 128];
        // Drivers loop over patterns, and a pattern must divide offset and length: an odd edge apart, the widest one.
        let end = to.offset() + to.len();
        let body = (to.offset().next_multiple_of(128).min(end), end / 128 * 128);
        let edges = [(to.offset(), body.0), (body.0.max(body.1), end)];
        let ranges = [edges[0], body, edges[1]];
        for ((begin, end), width) in ranges.into_iter().zip([1, 128, 1]) {
            if begin < end {
                // SAFETY: the range lies in the slice, and the slice in its buffer.
                unsafe {
                    self.raw
                        .fill(&memory.mem, &pattern[..width], begin, end - begin)
                }
                .map_err(|error| self.note(error))?;
            }
        }
        self.close(books)
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        self.shared.alive()?;
        let function = match call.function.as_any().downcast_ref::<OpenClFunction>() {
            Some(function) if function.shared.id == self.shared.id => function,
            _ => {
                return Err(Error::invalid(
                    "function",
                    "one of another device",
                    "one of the queue's",
                ));
            }
        };
        let (global, local) = self.sizes(call, function)?;
        let mut taken = function.take().map_err(|error| self.note(error))?;
        let kernel = taken.kernel();
        let mut index = 0;
        let mut books = None;
        for argument in call.arguments {
            // SAFETY: the caller promises that the arguments are those of the kernel in number, order and kind.
            let set = unsafe {
                match *argument {
                    Argument::Buffer {
                        buffer,
                        offset,
                        dtype,
                        bytes,
                        ..
                    } => {
                        let memory = self.memory(buffer, &mut books)?;
                        buffer.argument_bytes(dtype, offset, bytes)?;
                        kernel
                            .put_buffer(index, memory.serial, &memory.mem)
                            .and_then(|()| kernel.put_long_word(index + 1, offset))
                    }
                    Argument::Absent => kernel
                        .put_null(index)
                        .and_then(|()| kernel.put_long_word(index + 1, 0)),
                    Argument::Status => {
                        books.get_or_insert_with(|| lock(&self.books)).status_used = true;
                        kernel
                            .put_buffer(index, self.status_serial, &self.status_word)
                            .and_then(|()| kernel.put_long_word(index + 1, 0))
                    }
                    Argument::U32(value) => kernel.put_word(index, value),
                    Argument::I32(value) => kernel.put_word(index, value as u32),
                    Argument::F32(value) => kernel.put_word(index, value.to_bits()),
                    Argument::U64(value) => kernel.put_long_word(index, value),
                    Argument::I64(value) => kernel.put_long_word(index, value as u64),
                    Argument::TensorMap { .. } => Err(Error::unsupported("tensor maps on OpenCL")),
                }
            };
            set.map_err(|error| self.note(error).within(function.name()))?;
            let pointer = matches!(
                argument,
                Argument::Buffer { .. } | Argument::Absent | Argument::Status
            );
            index += if pointer { 2 } else { 1 };
        }
        if index != function.arguments {
            return Err(Error::invalid(
                &function.name(),
                format!("{index} kernel arguments"),
                format!("the kernel's {}", function.arguments),
            ));
        }
        self.busy.store(true, Ordering::Relaxed);
        // SAFETY: all arguments are set, and the caller promises that they are what the kernel expects.
        unsafe { self.raw.launch(&kernel.kernel, &global, &local) }
            .map_err(|error| self.note(error).within(function.name()))?;
        self.close(books)
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let event = self.event(self.mark()?);
        self.shared.retired.sweep();
        Ok(event)
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        self.shared.alive()?;
        let event = self.shared.event(&**event)?;
        // A command that waits for another queue's needs that queue to have been flushed.
        event.flush()?;
        self.busy.store(true, Ordering::Relaxed);
        self.raw
            .barrier(&event.raw)
            .map_err(|error| self.note(error))
    }

    fn flush(&self) -> Result<()> {
        self.shared.alive()?;
        self.raw.flush().map_err(|error| self.note(error))
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.alive()?;
        self.read_status()?;
        // Cleared first: what another thread enqueues meanwhile sets it again.
        self.busy.store(false, Ordering::Relaxed);
        let waited = self
            .mark()
            .and_then(|marker| self.wait_for(&marker, timeout));
        if waited.is_err() {
            self.busy.store(true, Ordering::Relaxed);
        }
        waited?;
        self.shared.retired.sweep();
        match self.status_code() {
            0 => Ok(()),
            code => Err(Error::data_out_of_range(code)),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.shared.alive()?;
        graph
            .as_any()
            .downcast_ref::<LoopGraph>()
            .ok_or_else(|| {
                Error::invalid("graph", "another backend's", "one of the queue's device")
            })?
            .replay(self)
    }
}

impl OpenClQueue {
    /// Global and local size of a launch within the limits.
    #[inline]
    fn sizes(
        &self,
        call: &LaunchCall<'_>,
        function: &OpenClFunction,
    ) -> Result<([usize; 3], [usize; 3])> {
        let limits = &self.shared.info.limits;
        let (mut global, mut local) = ([0; 3], [0; 3]);
        let mut items = 1u64;
        for axis in 0..3 {
            let (grid, group) = (call.grid[axis], call.group[axis]);
            if grid == 0 || grid > limits.max_grid[axis] {
                let limit = format!("1 to {}", limits.max_grid[axis]);
                return Err(Error::invalid(
                    "grid",
                    format!("{grid} groups on axis {axis}"),
                    limit,
                ));
            }
            if group == 0 || group > limits.max_group[axis] {
                let limit = format!("1 to {}", limits.max_group[axis]);
                return Err(Error::invalid(
                    "group",
                    format!("{group} items on axis {axis}"),
                    limit,
                ));
            }
            items = items.saturating_mul(group.into());
            let all = grid
                .checked_mul(group.into())
                .and_then(|all| usize::try_from(all).ok());
            global[axis] = all.ok_or_else(|| {
                Error::invalid(
                    "grid",
                    format!("{grid} groups of {group}"),
                    "a number of items that fits size_t",
                )
            })?;
            local[axis] = group as usize;
        }
        let most = function.max_group_size().unwrap_or(limits.max_group_size);
        if items > most.into() {
            return Err(Error::invalid(
                "group",
                format!("{:?} ({items} items)", call.group),
                format!("at most {most} items for {}", function.name()),
            ));
        }
        if call.local_memory > 0 {
            return Err(Error::unsupported(
                "dynamic local memory on OpenCL; kernels declare theirs",
            ));
        }
        Ok((global, local))
    }
}

impl Drop for OpenClQueue {
    fn drop(&mut self) {
        // Work may still be under way: what it reads and writes in host memory, and what others own, outlives the queue.
        let _ = self.raw.flush();
        for block in std::mem::take(&mut *lock(&self.staging)) {
            if let Some(until) = block.until {
                self.shared.retired.retire(Arc::new(until), Box::new(block.bytes));
            }
        }
        let mut books = lock(&self.books);
        for (until, word) in std::mem::take(&mut books.status_reads) {
            self.shared.retired.retire(until, Box::new(word));
        }
        if !books.owners.is_empty() && self.mark_in(&mut books).is_err() {
            // Without an event nobody can say when: better leaked than freed.
            std::mem::forget(std::mem::take(&mut books.owners));
        }
        let _ = self.raw.flush();
    }
}

/// A marker behind a queue's work.
pub(super) struct OpenClEvent {
    raw: Arc<RawEvent>,
    shared: Arc<Shared>,
    queue: Arc<RawQueue>,
    flushed: AtomicBool,
}

impl OpenClEvent {
    fn flush(&self) -> Result<()> {
        if !self.flushed.swap(true, Ordering::Relaxed) {
            self.queue
                .flush()
                .map_err(|error| self.shared.note(error))?;
        }
        Ok(())
    }
}

impl Shared {
    /// The event behind the trait object, if it is this device's.
    fn event<'a>(&self, event: &'a dyn Event) -> Result<&'a OpenClEvent> {
        match event.as_any().downcast_ref::<OpenClEvent>() {
            Some(event) if event.shared.id == self.id => Ok(event),
            _ => Err(Error::invalid(
                "event",
                "one of another device",
                "one of this device",
            )),
        }
    }
}

impl Event for OpenClEvent {
    fn is_done(&self) -> Result<bool> {
        self.shared.alive()?;
        self.flush()?;
        self.raw.is_done().map_err(|error| self.shared.note(error))
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.alive()?;
        self.flush()?;
        wait(&*self.raw, timeout).map_err(|error| self.shared.note(error))?;
        self.shared.retired.sweep();
        Ok(())
    }

    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration> {
        let earlier = self.shared.event(earlier)?;
        for event in [earlier, self] {
            if !event.is_done()? {
                return Err(Error::invalid(
                    "event",
                    "one that is not done",
                    "two that are done",
                ));
            }
        }
        let time = |event: &OpenClEvent| {
            event.raw.finished_at().map_err(|error| match error.kind() {
                // Imported queues may lack profiling.
                ErrorKind::DeviceLost => self.shared.note(error),
                _ => Error::unsupported("times of a queue without profiling").with_source(error),
            })
        };
        Ok(Duration::from_nanos(
            time(self)?.saturating_sub(time(earlier)?),
        ))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
