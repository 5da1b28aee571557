//! Launches, copies, events and order, on streams.

use std::any::Any;
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cudarc::driver::sys as cu;
use ropeway_core::device::{Argument, Download, Event, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::plan::MAX_ARGUMENTS;
use ropeway_core::{Buffer, Error, Result};

use crate::moment::{Moment, StagingBlock, lock, next_epoch, staging_block, wait};
use super::compile::CudaFunction;
use super::device::{Owner, Shared};
use super::graph::{Captured, CudaGraph};
use super::memory::CudaMemory;
use super::sys::{self, Pinned, RawEvent, RawStream};

/// Bytes of a staging block.
const STAGING_BLOCK: usize = 1 << 20;
/// The staging blocks that a queue may have under way; an upload beyond waits for the first of them.
const STAGING_BLOCKS: usize = 16;
/// Buffers that gather before they are put on an event of their own.
const KEPT: usize = 1024;
/// Tensor maps of a launch.
const MOST_MAPS: usize = 8;

/// A word on the device that kernels set where they meet a value out of range.
pub(super) struct StatusWord {
    buffer: Buffer,
    address: u64,
}

impl StatusWord {
    /// Zero, once this returns. An engine's stream may be in a capture, which this must not enter: it is set on a stream of its own.
    fn new(shared: &Arc<Shared>) -> Result<StatusWord> {
        let stream = RawStream::new()?;
        let buffer = CudaMemory::alloc_own(shared, 4)?;
        let address = shared.memory(&buffer)?.address;
        // SAFETY: the whole buffer, which is new.
        unsafe { stream.fill(address, 0, 4) }?;
        match stream.synchronize() {
            Ok(()) => Ok(StatusWord { buffer, address }),
            Err(error) => {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget(buffer);
                Err(error)
            }
        }
    }
}

pub(super) struct CudaQueue {
    shared: Arc<Shared>,
    raw: RawStream,
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
    /// What the work uses, held until it is done: the driver frees at once.
    kept: Vec<Kept>,
    /// Marks the memory that is in the list already.
    epoch: u64,
}

impl Books {
    /// Notes that work has got this word. A graph's launches have one of their own.
    fn use_status(&mut self, word: &Arc<StatusWord>) {
        let known = |other: &Arc<StatusWord>| Arc::ptr_eq(other, word);
        if !self.status_used.iter().any(known) {
            self.status_used.push(word.clone());
        }
    }
}

enum Kept {
    Buffer(Buffer),
    Graph(#[allow(dead_code, reason = "held, never read")] Arc<Captured>),
}

impl CudaQueue {
    pub(super) fn new(
        shared: Arc<Shared>,
        raw: RawStream,
        owner: Option<Owner>,
    ) -> Result<CudaQueue> {
        let status = Arc::new(StatusWord::new(&shared)?);
        Ok(CudaQueue {
            shared,
            raw,
            status,
            books: Mutex::new(Books {
                status_used: Vec::new(),
                status_reads: Vec::new(),
                kept: Vec::new(),
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
            Kept::Graph(_) => None,
        });
        buffers.collect()
    }

    fn note(&self, error: Error) -> Error {
        self.shared.note(error)
    }

    /// The memory behind a buffer, for work that is about to be enqueued.
    #[inline]
    fn memory<'a>(&self, buffer: &'a Buffer, books: &mut Books) -> Result<&'a CudaMemory> {
        let memory = self.shared.memory(buffer)?;
        if memory.kept_in.swap(books.epoch, Ordering::Relaxed) != books.epoch {
            books.kept.push(Kept::Buffer(buffer.clone()));
        }
        Ok(memory)
    }

    /// Closes the books after an enqueueing. Should the buffers become many between two events, they get one of their own.
    fn close(&self, mut books: MutexGuard<'_, Books>) -> Result<()> {
        if books.kept.len() < KEPT || self.is_capturing()? {
            return Ok(());
        }
        self.mark_in(&mut books).map(|_| ())
    }

    fn is_capturing(&self) -> Result<bool> {
        self.raw.is_capturing().map_err(|error| self.note(error))
    }

    /// An event behind all earlier work.
    fn mark(&self) -> Result<Arc<RawEvent>> {
        self.shared.enter()?;
        self.mark_in(&mut lock(&self.books))
    }

    /// An event behind all earlier work, at which what that work uses goes.
    fn mark_in(&self, books: &mut Books) -> Result<Arc<RawEvent>> {
        let note = |error| self.note(error);
        let marker = Arc::new(RawEvent::new().map_err(note)?);
        self.raw.record(&marker).map_err(note)?;
        // A captured event is never done: what the graph uses is kept until work outside of it is marked.
        if !books.kept.is_empty() && !self.is_capturing()? {
            books.epoch = next_epoch();
            let kept = std::mem::take(&mut books.kept);
            self.shared.retired.retire(marker.clone(), Box::new(kept));
        }
        Ok(marker)
    }

    fn event(&self, raw: Arc<RawEvent>) -> Arc<dyn Event> {
        Arc::new(CudaEvent {
            raw,
            shared: self.shared.clone(),
        })
    }

    /// Reads the status words that launches have got, and sets them back. No launch comes between the two.
    fn read_status(&self) -> Result<()> {
        let note = |error| self.note(error);
        let mut books = lock(&self.books);
        for word in std::mem::take(&mut books.status_used) {
            let target = Pinned::new(4).map_err(note)?;
            // SAFETY: the words are as long as said; the books keep the target until the event is done, and nobody looks before.
            unsafe { self.raw.download(target.address(), word.address, 4) }.map_err(note)?;
            let read = Arc::new(RawEvent::new().map_err(note)?);
            self.raw.record(&read).map_err(note)?;
            books.status_reads.push((read, target));
            self.memory(&word.buffer, &mut books)?;
            // SAFETY: the whole word.
            unsafe { self.raw.fill(word.address, 0, 4) }.map_err(note)?;
        }
        Ok(())
    }

    /// The first code other than 0 that a finished read has brought.
    fn status_code(&self) -> u32 {
        let mut code = 0;
        lock(&self.books).status_reads.retain(|(event, target)| {
            let pending = matches!(event.is_done(), Ok(false));
            if !pending && code == 0 {
                // SAFETY: the copy that wrote it is done.
                let bytes = unsafe { target.bytes() };
                code = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
            }
            pending
        });
        code
    }

    fn function<'a>(&self, call: &LaunchCall<'a>) -> Result<&'a CudaFunction> {
        match call.function.as_any().downcast_ref::<CudaFunction>() {
            Some(function) if function.shared.id == self.shared.id => Ok(function),
            _ => Err(Error::invalid(
                "function",
                "one of another device",
                "one of the queue's",
            )),
        }
    }

    /// Grid of a launch within the limits.
    #[inline]
    fn grid(&self, call: &LaunchCall<'_>, function: &CudaFunction) -> Result<[u32; 3]> {
        let limits = &self.shared.info.limits;
        let mut items = 1u64;
        for axis in 0..3 {
            let (grid, group) = (call.grid[axis], call.group[axis]);
            if grid == 0 || grid > limits.max_grid[axis] {
                let limit = format!("1 to {}", limits.max_grid[axis]);
                let found = format!("{grid} groups on axis {axis}");
                return Err(Error::invalid("grid", found, limit));
            }
            if group == 0 || group > limits.max_group[axis] {
                let limit = format!("1 to {}", limits.max_group[axis]);
                let found = format!("{group} items on axis {axis}");
                return Err(Error::invalid("group", found, limit));
            }
            items = items.saturating_mul(group.into());
        }
        let most = function
            .info
            .max_group_size
            .unwrap_or(limits.max_group_size);
        if items > most.into() {
            return Err(Error::invalid(
                "group",
                format!("{:?} ({items} items)", call.group),
                format!("at most {most} items for {}", function.name),
            ));
        }
        Ok(call.grid.map(|groups| groups as u32))
    }
}

/// The parameters of a launch, and where each lies.
struct Parameters {
    words: [u64; 2 * MAX_ARGUMENTS],
    maps: [cu::CUtensorMap; MOST_MAPS],
    pointers: [*mut c_void; 2 * MAX_ARGUMENTS],
    count: usize,
    map_count: usize,
}

impl Parameters {
    fn new() -> Parameters {
        Parameters {
            words: [0; 2 * MAX_ARGUMENTS],
            maps: [cu::CUtensorMap { opaque: [0; 16] }; MOST_MAPS],
            pointers: [std::ptr::null_mut(); 2 * MAX_ARGUMENTS],
            count: 0,
            map_count: 0,
        }
    }

    fn too_many() -> Error {
        let most = format!("at most {MAX_ARGUMENTS}, of which {MOST_MAPS} tensor maps");
        Error::invalid("arguments", "more", most)
    }

    /// A scalar of at most eight bytes, of which a kernel takes as many as it declares.
    #[inline]
    fn word(&mut self, value: u64) -> Result<()> {
        let index = self.count;
        let word = self.words.get_mut(index).ok_or_else(Parameters::too_many)?;
        *word = value.to_le();
        self.pointers[index] = (&raw mut *word).cast();
        self.count += 1;
        Ok(())
    }

    fn map(&mut self, map: cu::CUtensorMap) -> Result<()> {
        let place = self.maps.get_mut(self.map_count);
        let place = place.ok_or_else(Parameters::too_many)?;
        *place = map;
        let pointer = self.pointers.get_mut(self.count);
        *pointer.ok_or_else(Parameters::too_many)? = (&raw mut *place).cast();
        self.map_count += 1;
        self.count += 1;
        Ok(())
    }
}

impl Queue for CudaQueue {
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
        let address = self.shared.memory(to.buffer())?.address + to.offset();
        let note = |error| self.note(error);
        for (index, part) in data.chunks(STAGING_BLOCK).enumerate() {
            let mut staging = lock(&self.staging);
            let memory = || Pinned::new(STAGING_BLOCK);
            let place = staging_block(&mut staging, STAGING_BLOCKS, memory).map_err(note)?;
            let block = &mut staging[place];
            let from = block.memory.address();
            // SAFETY: the block has room, no copy reads it any more, and the list's lock keeps others away.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), from, part.len()) };
            let mut books = lock(&self.books);
            self.memory(to.buffer(), &mut books)?;
            let target = address + (index * STAGING_BLOCK) as u64;
            // SAFETY: the slice lies in the buffer; the block stays as it is until the event is done.
            unsafe { self.raw.upload(target, from, part.len()) }.map_err(note)?;
            let copied = Arc::new(RawEvent::new().map_err(note)?);
            self.raw.record(&copied).map_err(note)?;
            block.until = Some(copied);
            self.close(books)?;
        }
        Ok(())
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        self.shared.enter()?;
        let address = self.shared.memory(from.buffer())?.address + from.offset();
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", target.len()),
                format!("at least {}", from.len()),
            ));
        }
        if !from.is_empty() {
            let (target, bytes) = (target.as_mut_ptr(), from.len() as usize);
            let mut books = lock(&self.books);
            self.memory(from.buffer(), &mut books)?;
            // SAFETY: the slice lies in the buffer and the target is as long; `Download` owns the target until the event is done.
            unsafe { self.raw.download(target, address, bytes) }
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
        // The caller's slice keeps the memory until this read is done.
        let address = self.shared.memory(from.buffer())?.address + from.offset();
        let note = |error| self.note(error);
        if !into.is_empty() {
            // SAFETY: the slice lies in the buffer and `into` is as long. Of a copy to memory that is not pinned the driver returns when
            // it is done.
            unsafe { self.raw.download(into.as_mut_ptr(), address, into.len()) }.map_err(note)?;
        }
        self.raw.synchronize().map_err(note)?;
        // What the work has used goes at once.
        self.mark()?.wait().map_err(note)?;
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
        let source = self.memory(from.buffer(), &mut books)?.address + from.offset();
        let target = self.memory(to.buffer(), &mut books)?.address + to.offset();
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
        unsafe { self.raw.copy(target, source, from.len() as usize) }
            .map_err(|error| self.note(error))?;
        self.close(books)
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        self.shared.enter()?;
        let mut books = lock(&self.books);
        let address = self.memory(to.buffer(), &mut books)?.address + to.offset();
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the slice lies in its buffer.
        unsafe { self.raw.fill(address, byte, to.len() as usize) }
            .map_err(|error| self.note(error))?;
        self.close(books)
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        self.shared.enter()?;
        let function = self.function(call)?;
        let grid = self.grid(call, function)?;
        let mut books = lock(&self.books);
        let mut parameters = Parameters::new();
        for argument in call.arguments {
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
                    parameters.word(memory.address)?;
                    parameters.word(offset)?;
                }
                Argument::Absent => {
                    parameters.word(0)?;
                    parameters.word(0)?;
                }
                Argument::Status => {
                    books.use_status(&self.status);
                    parameters.word(self.status.address)?;
                    parameters.word(0)?;
                }
                Argument::U32(value) => parameters.word(value.into())?,
                Argument::I32(value) => parameters.word((value as u32).into())?,
                Argument::F32(value) => parameters.word(value.to_bits().into())?,
                Argument::U64(value) => parameters.word(value)?,
                Argument::I64(value) => parameters.word(value as u64)?,
                Argument::TensorMap {
                    map,
                    buffer,
                    offset,
                    extents,
                    strides,
                } => {
                    let memory = self.memory(buffer, &mut books)?;
                    // Nothing is read of memory that has no bytes and no address, and its map must be encoded nevertheless.
                    let address = match memory.address {
                        0 => self.status.address,
                        address => address + offset,
                    };
                    let encoded = sys::tensor_map(map, address, &extents, &strides)?;
                    parameters.map(encoded)?;
                }
            }
        }
        let found = parameters.count;
        if let Some(expected) = function.parameters
            && expected != found
        {
            return Err(Error::invalid(
                &function.name,
                format!("{found} kernel arguments"),
                format!("the kernel's {expected}"),
            ));
        }
        let enqueued = function.allow_shared_memory(call.local_memory).and_then(|()| {
            // SAFETY: the caller promises that the arguments are those of the kernel in number, order and kind; each pointer
            // is to a word or a map that lives until the call returns, which copies them.
            unsafe {
                self.raw.launch(
                    (function.raw.0, function.begins_early),
                    grid,
                    call.group,
                    call.local_memory,
                    parameters.pointers.as_mut_ptr(),
                )
            }
        });
        enqueued.map_err(|error| self.note(error).within(&function.name))?;
        self.close(books)
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let event = self.event(self.mark()?);
        self.shared.sweep();
        Ok(event)
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        self.shared.enter()?;
        let event = self.shared.event(&**event)?;
        self.raw
            .wait_for(&event.raw)
            .map_err(|error| self.note(error))
    }

    fn flush(&self) -> Result<()> {
        // The driver hands work on by itself.
        self.shared.enter()
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.enter()?;
        if self.is_capturing()? {
            return Err(Error::unsupported(
                "waiting for a stream whose work is being captured",
            ));
        }
        self.read_status()?;
        let marker = self.mark()?;
        wait(&*marker, timeout).map_err(|error| self.note(error))?;
        self.shared.sweep();
        match self.status_code() {
            0 => Ok(()),
            code => Err(Error::data_out_of_range(code)),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.shared.enter()?;
        let graph = match graph.as_any().downcast_ref::<CudaGraph>() {
            Some(graph) if graph.shared.id == self.shared.id => graph,
            _ => {
                return Err(Error::invalid(
                    "graph",
                    "one of another device",
                    "one of the queue's device",
                ));
            }
        };
        let captured = graph.captured();
        let mut books = lock(&self.books);
        self.raw
            .replay(&captured.exec)
            .map_err(|error| self.note(error))?;
        books.use_status(&captured.status);
        books.kept.push(Kept::Graph(captured));
        self.close(books)
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        // Work may still be under way: what it reads and writes outlives the queue.
        if self.shared.enter().is_err() {
            // A lost context runs nothing any more.
            return;
        }
        for block in std::mem::take(&mut *lock(&self.staging)) {
            if let Some(until) = block.until {
                self.shared.retired.retire(until, Box::new(block.memory));
            }
        }
        let mut books = lock(&self.books);
        for (until, target) in std::mem::take(&mut books.status_reads) {
            self.shared.retired.retire(until, Box::new(target));
        }
        let word = self.status.buffer.clone();
        books.kept.push(Kept::Buffer(word));
        let marked = match self.is_capturing() {
            Ok(false) => self.mark_in(&mut books).is_ok(),
            _ => false,
        };
        if !marked {
            // Without an event nobody can say when: better leaked than freed.
            std::mem::forget(std::mem::take(&mut books.kept));
        }
    }
}

/// A point in a stream's work.
pub(super) struct CudaEvent {
    raw: Arc<RawEvent>,
    shared: Arc<Shared>,
}

impl Shared {
    /// The event behind the trait object, if it is this device's.
    fn event<'a>(&self, event: &'a dyn Event) -> Result<&'a CudaEvent> {
        match event.as_any().downcast_ref::<CudaEvent>() {
            Some(event) if event.shared.id == self.id => Ok(event),
            _ => Err(Error::invalid(
                "event",
                "one of another device",
                "one of this device",
            )),
        }
    }
}

impl Event for CudaEvent {
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
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
