//! Launches, copies, events and order, on streams.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ropeway_core::device::{Argument, Download, Event, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::{Buffer, Error, Result};

use crate::moment::{Moment, StagingBlock, lock, next_epoch, staging_block, wait};
use super::MOST_BLOCKS;
use super::compile::AscendFunction;
use super::device::{Owner, Shared};
use super::graph::{AscendGraph, Captured};
use super::handles::{Arguments, Pinned, RawEvent, RawStream};
use super::memory::AscendMemory;

/// Bytes of a staging block.
const STAGING_BLOCK: usize = 1 << 20;
/// The staging blocks that a queue may have under way; an upload beyond waits for the first of them.
const STAGING_BLOCKS: usize = 16;
/// Objects that gather before they are put on an event of their own.
const KEPT: usize = 1024;

/// A word on the device that kernels set where they meet a value out of range.
pub(super) struct StatusWord {
    buffer: Buffer,
    address: u64,
}

impl StatusWord {
    /// Zero, once this returns. It is set on a stream of its own, which no capture is under way on.
    fn new(shared: &Arc<Shared>) -> Result<StatusWord> {
        let stream = RawStream::new(shared.gate)?;
        let buffer = AscendMemory::alloc_own(shared, 4)?;
        let address = shared.memory(&buffer)?.address;
        // SAFETY: the whole buffer, which is new.
        unsafe { stream.fill(address, 4, 0, 4) }?;
        match stream.synchronize(None) {
            Ok(()) => Ok(StatusWord { buffer, address }),
            Err(error) => {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget((buffer, stream));
                Err(error)
            }
        }
    }
}

pub(super) struct AscendQueue {
    shared: Arc<Shared>,
    raw: Arc<RawStream>,
    status: Arc<StatusWord>,
    /// Held over an enqueueing, so that no event or reading of the status word comes in between.
    books: Mutex<Books>,
    staging: Mutex<Vec<StagingBlock<Pinned, RawEvent>>>,
    _owner: Option<Owner>,
}

/// What the host notes of the work that it enqueues.
struct Books {
    /// The words that launches have got since they were last read.
    status_used: Vec<Arc<StatusWord>>,
    /// Reads of words under way: when they are done, and where to.
    status_reads: Vec<(Arc<RawEvent>, Pinned)>,
    /// What the work uses, held until it is done: the runtime frees at once.
    kept: Vec<Kept>,
    /// The last event, and whether work came after it.
    last: Option<Arc<RawEvent>>,
    is_ahead: bool,
    /// Marks the memory that is in the list already.
    epoch: u64,
}

impl Books {
    /// Notes that work has got this word. A graph's launches have one of their own.
    fn use_status(&mut self, word: &Arc<StatusWord>) {
        self.is_ahead = true;
        let known = |other: &Arc<StatusWord>| Arc::ptr_eq(other, word);
        if !self.status_used.iter().any(known) {
            self.status_used.push(word.clone());
        }
    }
}

#[allow(dead_code, reason = "held, never read")]
enum Kept {
    Buffer(Buffer),
    Graph(Arc<Captured>),
    Event(Arc<RawEvent>),
    Stream(Arc<RawStream>),
    Owner(Owner),
}

/// The device address of a slice's first byte, and the bytes of memory from there on.
fn place(memory: &AscendMemory, slice: &Slice) -> (u64, u64) {
    let room = slice.buffer().size() - slice.offset();
    (memory.address + slice.offset(), room)
}

impl AscendQueue {
    pub(super) fn new(
        shared: Arc<Shared>,
        raw: RawStream,
        owner: Option<Owner>,
    ) -> Result<AscendQueue> {
        let status = Arc::new(StatusWord::new(&shared)?);
        Ok(AscendQueue {
            shared,
            raw: Arc::new(raw),
            status,
            books: Mutex::new(Books {
                status_used: Vec::new(),
                status_reads: Vec::new(),
                kept: Vec::new(),
                last: None,
                is_ahead: false,
                epoch: next_epoch(),
            }),
            staging: Mutex::default(),
            _owner: owner,
        })
    }

    pub(super) fn raw(&self) -> &RawStream {
        &self.raw
    }

    pub(super) fn status(&self) -> Arc<StatusWord> {
        self.status.clone()
    }

    /// The buffers of what was captured, which never runs on this queue.
    pub(super) fn give_up_kept(&self) -> Vec<Buffer> {
        let kept = std::mem::take(&mut lock(&self.books).kept);
        let buffers = kept.into_iter().filter_map(|kept| match kept {
            Kept::Buffer(buffer) => Some(buffer),
            _ => None,
        });
        buffers.chain([self.status.buffer.clone()]).collect()
    }

    fn note(&self, error: Error) -> Error {
        self.shared.note(error)
    }

    /// The memory behind a buffer, for work that is about to be enqueued.
    #[inline]
    fn memory<'a>(&self, buffer: &'a Buffer, books: &mut Books) -> Result<&'a AscendMemory> {
        let memory = self.shared.memory(buffer)?;
        books.is_ahead = true;
        if memory.kept_in.swap(books.epoch, Ordering::Relaxed) != books.epoch {
            books.kept.push(Kept::Buffer(buffer.clone()));
        }
        Ok(memory)
    }

    /// Closes the books after an enqueueing. Should what is kept become much between two events, it gets one of its own.
    fn close(&self, mut books: MutexGuard<'_, Books>) -> Result<()> {
        if books.kept.len() < KEPT || self.raw.is_capturing() {
            return Ok(());
        }
        self.mark_in(&mut books).map(|_| ())
    }

    /// An event behind all earlier work.
    fn mark(&self) -> Result<Arc<RawEvent>> {
        self.shared.enter()?;
        self.mark_in(&mut lock(&self.books))
    }

    /// An event behind all earlier work, at which what that work uses goes. It lives until it is done, whoever else drops it.
    fn mark_in(&self, books: &mut Books) -> Result<Arc<RawEvent>> {
        let note = |error| self.note(error);
        let marker = Arc::new(RawEvent::new(self.shared.gate).map_err(note)?);
        self.raw.record(&marker).map_err(note)?;
        books.epoch = next_epoch();
        let kept = std::mem::take(&mut books.kept);
        self.shared.retired.retire(marker.clone(), Box::new(kept));
        books.last = Some(marker.clone());
        books.is_ahead = false;
        Ok(marker)
    }

    /// Reads the status words that launches have got, and sets them back. No launch comes between the two.
    fn read_status(&self) -> Result<()> {
        let note = |error| self.note(error);
        let mut books = lock(&self.books);
        for word in std::mem::take(&mut books.status_used) {
            let target = Pinned::new(self.shared.gate, 4).map_err(note)?;
            let read = Arc::new(RawEvent::new(self.shared.gate).map_err(note)?);
            books.is_ahead = true;
            // SAFETY: the words are as long as said; the books keep the target until the event is done, and nobody looks before.
            unsafe { self.raw.download(target.address(), 4, word.address, 4) }.map_err(note)?;
            if let Err(error) = self.raw.record(&read) {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget(target);
                return Err(note(error));
            }
            books.status_reads.push((read, target));
            self.memory(&word.buffer, &mut books)?;
            // SAFETY: the whole word.
            unsafe { self.raw.fill(word.address, 4, 0, 4) }.map_err(note)?;
        }
        Ok(())
    }

    /// The first code other than 0 that a finished read has brought.
    fn status_code(&self) -> u32 {
        let mut code = 0;
        lock(&self.books).status_reads.retain(|(event, target)| {
            let done = event.is_done();
            if let Ok(true) = done
                && code == 0
            {
                // SAFETY: the copy that wrote it is done.
                let bytes = unsafe { target.bytes() };
                code = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
            }
            matches!(done, Ok(false))
        });
        code
    }

    fn function<'a>(&self, call: &LaunchCall<'a>) -> Result<&'a AscendFunction> {
        match call.function.as_any().downcast_ref::<AscendFunction>() {
            Some(function) if function.shared.id == self.shared.id => Ok(function),
            _ => Err(Error::invalid(
                "function",
                "one of another device",
                "one of the queue's",
            )),
        }
    }

    /// The blocks of a launch within the limits.
    #[inline]
    fn blocks(&self, call: &LaunchCall<'_>) -> Result<u32> {
        if call.group != [1; 3] {
            let found = format!("{:?} items", call.group);
            return Err(Error::invalid(
                "group",
                found,
                "1: an AscendC kernel has blocks alone",
            ));
        }
        if call.local_memory != 0 {
            let found = format!("{} bytes", call.local_memory);
            return Err(Error::invalid(
                "local_memory",
                found,
                "0: an AscendC kernel lays out its own",
            ));
        }
        let blocks = call
            .grid
            .iter()
            .try_fold(1u64, |all, groups| all.checked_mul(*groups));
        match blocks {
            Some(blocks @ 1..=MOST_BLOCKS) => Ok(blocks as u32),
            _ => {
                let found = format!("{:?} blocks", call.grid);
                Err(Error::invalid(
                    "grid",
                    found,
                    format!("1 to {MOST_BLOCKS} together"),
                ))
            }
        }
    }

    fn arguments(&self, call: &LaunchCall<'_>, books: &mut Books) -> Result<Arguments> {
        let mut arguments = Arguments::new();
        for argument in call.arguments {
            match *argument {
                Argument::Buffer {
                    buffer,
                    offset,
                    dtype,
                    bytes,
                    ..
                } => {
                    let memory = self.memory(buffer, books)?;
                    buffer.argument_bytes(dtype, offset, bytes)?;
                    arguments.u64(memory.address)?;
                    arguments.u64(offset)?;
                }
                Argument::Absent => {
                    arguments.u64(0)?;
                    arguments.u64(0)?;
                }
                Argument::Status => {
                    books.use_status(&self.status);
                    arguments.u64(self.status.address)?;
                    arguments.u64(0)?;
                }
                Argument::U32(value) => arguments.u32(value)?,
                Argument::I32(value) => arguments.u32(value as u32)?,
                Argument::F32(value) => arguments.u32(value.to_bits())?,
                Argument::U64(value) => arguments.u64(value)?,
                Argument::I64(value) => arguments.u64(value as u64)?,
                Argument::TensorMap { .. } => {
                    return Err(Error::unsupported(
                        "tensor maps, which Ascend devices have not",
                    ));
                }
            }
        }
        Ok(arguments)
    }

    /// Reads through pinned memory into any other.
    fn read(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        let note = |error| self.note(error);
        let pinned = Pinned::new(self.shared.gate, into.len()).map_err(note)?;
        let copied = {
            let mut books = lock(&self.books);
            let (address, _) = place(self.memory(from.buffer(), &mut books)?, from);
            // SAFETY: the slice lies in the buffer and the target is as long; it lives until the copy is done, or for ever.
            unsafe {
                self.raw
                    .download(pinned.address(), pinned.len() as u64, address, into.len())
            }
            .map_err(note)?;
            self.mark_in(&mut books)
        };
        if let Err(error) = copied.and_then(|_| self.raw.synchronize(None).map_err(note)) {
            std::mem::forget(pinned);
            return Err(error);
        }
        // SAFETY: the copy that wrote it is done.
        into.copy_from_slice(unsafe { pinned.bytes() });
        Ok(())
    }
}

impl Queue for AscendQueue {
    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        self.shared.enter()?;
        if to.len() != data.len() as u64 {
            return Err(Error::invalid(
                "data",
                format!("{} bytes", data.len()),
                to.len(),
            ));
        }
        let (address, room) = place(self.shared.memory(to.buffer())?, to);
        let note = |error| self.note(error);
        for (index, part) in data.chunks(STAGING_BLOCK).enumerate() {
            let mut staging = lock(&self.staging);
            let memory = || Pinned::new(self.shared.gate, STAGING_BLOCK);
            let place = staging_block(&mut staging, STAGING_BLOCKS, memory).map_err(note)?;
            let block = &mut staging[place];
            let from = block.memory.address();
            // SAFETY: the block has room, no copy reads it any more, and the list's lock keeps others away.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), from, part.len()) };
            let mut books = lock(&self.books);
            self.memory(to.buffer(), &mut books)?;
            let done = (index * STAGING_BLOCK) as u64;
            // SAFETY: the slice lies in the buffer; the block stays as it is until the event is done.
            unsafe {
                self.raw
                    .upload(address + done, room - done, from, part.len())
            }
            .map_err(note)?;
            match self.mark_in(&mut books) {
                Ok(copied) => block.until = Some(copied),
                Err(error) => {
                    // The device may read it yet: better leaked than freed.
                    std::mem::forget(staging.swap_remove(place));
                    return Err(error);
                }
            }
        }
        self.shared.sweep_if_much();
        Ok(())
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        self.shared.enter()?;
        let (address, _) = place(self.shared.memory(from.buffer())?, from);
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", target.len()),
                format!("at least {}", from.len()),
            ));
        }
        if !from.is_empty() {
            let (target, room, bytes) = (
                target.as_mut_ptr(),
                target.len() as u64,
                from.len() as usize,
            );
            let mut books = lock(&self.books);
            self.memory(from.buffer(), &mut books)?;
            // SAFETY: the slice lies in the buffer and the target is as long; `Download` owns the target until the event is done.
            unsafe { self.raw.download(target, room, address, bytes) }
                .map_err(|error| self.note(error))?;
        }
        match self.record() {
            Ok(event) => Ok(Download::new(event, into)),
            Err(error) => {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget(into);
                Err(error)
            }
        }
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        self.shared.enter()?;
        if from.len() != into.len() as u64 {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", into.len()),
                from.len(),
            ));
        }
        self.shared.memory(from.buffer())?;
        if into.is_empty() {
            self.mark()?;
            self.raw
                .synchronize(None)
                .map_err(|error| self.note(error))?;
        } else {
            self.read(from, into)?;
        }
        // What the work has used goes at once.
        self.shared.sweep();
        Ok(())
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        self.shared.enter()?;
        if from.len() != to.len() {
            return Err(Error::invalid(
                "to",
                format!("{} bytes", to.len()),
                from.len(),
            ));
        }
        let mut books = lock(&self.books);
        let (source, _) = place(self.memory(from.buffer(), &mut books)?, from);
        let (target, room) = place(self.memory(to.buffer(), &mut books)?, to);
        if from.is_empty() {
            return Ok(());
        }
        // Two imports may name the same memory, so addresses decide.
        if source < target + to.len() && target < source + from.len() {
            return Err(Error::invalid(
                "to",
                "a slice that overlaps the source",
                "disjoint slices",
            ));
        }
        // SAFETY: the slices lie in their buffers and do not overlap.
        unsafe { self.raw.copy(target, room, source, from.len() as usize) }
            .map_err(|error| self.note(error))?;
        self.close(books)
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        self.shared.enter()?;
        let mut books = lock(&self.books);
        let (address, room) = place(self.memory(to.buffer(), &mut books)?, to);
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the slice lies in its buffer.
        unsafe { self.raw.fill(address, room, byte, to.len() as usize) }
            .map_err(|error| self.note(error))?;
        self.close(books)
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        self.shared.enter()?;
        let function = self.function(call)?;
        let blocks = self.blocks(call)?;
        let mut books = lock(&self.books);
        let mut arguments = self.arguments(call, &mut books)?;
        // SAFETY: the caller promises that the arguments are those of the kernel in number, order and kind.
        let enqueued = unsafe { self.raw.launch(function.raw, blocks, &mut arguments) };
        enqueued.map_err(|error| self.note(error).within(&function.name))?;
        self.close(books)
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let raw = self.mark()?;
        self.shared.sweep();
        Ok(Arc::new(AscendEvent {
            raw,
            shared: self.shared.clone(),
        }))
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        self.shared.enter()?;
        let event = self.shared.event(&**event)?;
        let mut books = lock(&self.books);
        self.raw
            .wait_for(&event.raw)
            .map_err(|error| self.note(error))?;
        books.is_ahead = true;
        books.kept.push(Kept::Event(event.raw.clone()));
        self.close(books)
    }

    fn flush(&self) -> Result<()> {
        // The runtime hands work on by itself.
        self.shared.enter()
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.enter()?;
        self.read_status()?;
        self.mark()?;
        // By the stream, not by the event: a failed kernel shows here at the latest.
        self.raw
            .synchronize(timeout)
            .map_err(|error| self.note(error))?;
        self.shared.sweep();
        match self.status_code() {
            0 => Ok(()),
            code => Err(Error::data_out_of_range(code)),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.shared.enter()?;
        let graph = match graph.as_any().downcast_ref::<AscendGraph>() {
            Some(graph) if graph.shared.id == self.shared.id => graph,
            _ => {
                return Err(Error::invalid(
                    "graph",
                    "one of another device",
                    "one of the queue's device",
                ));
            }
        };
        let Some(captured) = graph.captured() else {
            return graph.replay_plans(self);
        };
        let mut books = lock(&self.books);
        self.raw
            .replay(&captured.graph)
            .map_err(|error| self.note(error))?;
        books.use_status(&captured.status);
        books.kept.push(Kept::Graph(captured));
        self.close(books)
    }
}

impl Drop for AscendQueue {
    fn drop(&mut self) {
        /// How long to wait for the runtime to give a lost device's work up.
        const LAST_WAIT: Duration = Duration::from_millis(100);
        if self.shared.alive().is_err() {
            // It runs nothing any more, but must know that we know before memory goes.
            if self.shared.gate.enter().is_ok() {
                let _ = self.raw.synchronize(Some(LAST_WAIT));
            }
            self.shared.sweep();
            return;
        }
        // Work may still be under way: what it reads and writes outlives the queue, and so does the stream.
        let entered = self.shared.enter().is_ok();
        for block in std::mem::take(&mut *lock(&self.staging)) {
            if let Some(until) = block.until {
                self.shared.retired.retire(until, Box::new(block.memory));
            }
        }
        let mut books = lock(&self.books);
        for (until, target) in std::mem::take(&mut books.status_reads) {
            self.shared.retired.retire(until, Box::new(target));
        }
        let is_over = |last: &Option<Arc<RawEvent>>| {
            last.as_ref()
                .is_none_or(|last| !matches!(last.is_done(), Ok(false)))
        };
        if entered && !books.is_ahead && is_over(&books.last) {
            drop(books);
            self.shared.sweep();
            return;
        }
        let word = self.status.buffer.clone();
        books.kept.push(Kept::Buffer(word));
        books.kept.push(Kept::Stream(self.raw.clone()));
        books.kept.extend(self._owner.clone().map(Kept::Owner));
        if !entered || self.mark_in(&mut books).is_err() {
            // Without an event nobody can say when: better leaked than freed.
            std::mem::forget(std::mem::take(&mut books.kept));
        }
        drop(books);
        self.shared.sweep();
    }
}

/// A point in a stream's work.
pub(super) struct AscendEvent {
    raw: Arc<RawEvent>,
    shared: Arc<Shared>,
}

impl Shared {
    /// The event behind the trait object, if it is this device's.
    fn event<'a>(&self, event: &'a dyn Event) -> Result<&'a AscendEvent> {
        match event.as_any().downcast_ref::<AscendEvent>() {
            Some(event) if event.shared.id == self.id => Ok(event),
            _ => Err(Error::invalid(
                "event",
                "one of another device",
                "one of this device",
            )),
        }
    }
}

impl Event for AscendEvent {
    fn is_done(&self) -> Result<bool> {
        self.shared.enter()?;
        self.raw.is_done().map_err(|error| self.shared.note(error))
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.enter()?;
        wait(&*self.raw, timeout).map_err(|error| self.shared.note(error))?;
        self.shared.sweep();
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
        let milliseconds = self
            .raw
            .milliseconds_since(&earlier.raw)
            .map_err(|error| self.shared.note(error))?;
        Ok(Duration::from_secs_f64(
            f64::from(milliseconds.max(0.0)) / 1e3,
        ))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
