//! Copies, launches, events and order: batches of commands that a timeline semaphore counts.
//!
//! Commands gather in a batch, which is handed over by `flush`, by whoever waits, at an event, or when it is full. The queue's
//! timeline reaches the batch's number when it is done; then what the batch kept alive is let go, and its command buffers are
//! recorded again.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ash::vk;
use ropeway_core::device::{
    Download, Event, Graph, LaunchCall, PinnedBuffer, Queue, QueueKind,
};
use ropeway_core::memory::{Buffer, DeviceId, Slice};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::Shared;
use super::graph::{Recorded, VulkanGraph};
use super::memory::{Arena, BLOCK, RawBuffer, Use, VulkanMemory};
use super::record::{Access, Hazards, Kept, Prepared};
use super::sys::{CommandPool, Commands, Place, Queries, Timeline, lock, messages};

/// A batch that has gathered so many commands is handed over.
const BATCH_COMMANDS: u32 = 128;
/// Work of one queue is handed over in batches of which so many may be recorded ahead.
const BATCHES: usize = 64;
/// How long a wait goes on before it looks whether another thread has found the device lost.
const WAIT_SLICE: Duration = Duration::from_millis(50);
/// A fill of so few bytes of memory that the host sees is done by the host, if the queue is idle.
const HOST_FILL: u64 = 64 << 10;
/// Event slots that are made at once.
const SLOTS: u32 = 128;

/// A queue as the contract has it. Several share one of the device's.
pub(super) struct VulkanQueue(Arc<Core>);

/// What a queue's events hold on to.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    family: usize,
    queue: usize,
    timeline: Timeline,
    /// The latest value of the timeline that the host knows of.
    completed: AtomicU64,
    /// The batch that was handed over last.
    submitted: AtomicU64,
    status: StatusWord,
    slots: Mutex<Slots>,
    state: Mutex<State>,
}

/// What is recorded and under way.
pub(super) struct State {
    pool: CommandPool,
    spare_commands: Vec<vk::CommandBuffer>,
    spare_batches: Vec<Batch>,
    open: Option<Batch>,
    under_way: VecDeque<Batch>,
    arena: Arena,
    pub(super) hazards: Hazards,
    /// Marks the memory that the open batch keeps already.
    epoch: u64,
    /// The function whose pipeline is bound.
    bound: Option<usize>,
    /// An event stands behind the last command: the next one begins a batch.
    sealed: bool,
    /// A launch has got the status word since it was last read.
    status_used: bool,
    /// Reads of the status word under way: the batch, and where to.
    status_reads: VecDeque<(u64, u64)>,
    /// Why work was lost that the driver did not take.
    broken: Option<Error>,
    readbacks: Vec<RawBuffer>,
}

/// Commands that are handed over together, and what they need until they are done.
#[derive(Default)]
struct Batch {
    number: u64,
    /// What is handed over, in order: recorded here, or a graph's.
    sequence: Vec<vk::CommandBuffer>,
    recorded: Vec<vk::CommandBuffer>,
    current: Option<vk::CommandBuffer>,
    commands: u32,
    buffers: Vec<Buffer>,
    functions: Vec<Kept>,
    graphs: Vec<Arc<Recorded>>,
    /// Other queues' batches that this one comes after.
    waits: Vec<(Arc<Core>, u64)>,
}

/// The word that kernels complain in, and places for the copies that `synchronize` has made of it.
struct StatusWord {
    buffer: RawBuffer,
}

impl StatusWord {
    /// Copies that may be under way at once.
    const COPIES: u64 = 64;
    const FIRST_COPY: u64 = 16;

    fn copy_at(number: u64) -> u64 {
        StatusWord::FIRST_COPY + number % StatusWord::COPIES * 4
    }

    fn read(&self, number: u64) -> u32 {
        let pointer = self.buffer.pointer(StatusWord::copy_at(number));
        // SAFETY: mapped when it was made; the device has written the copy before the host was told that its batch is done.
        pointer.map_or(0, |pointer| unsafe { pointer.cast::<u32>().read_volatile() })
    }
}

/// Slots for the times of events.
#[derive(Default)]
struct Slots {
    pools: Vec<Queries>,
    free: Vec<u32>,
    /// Slots of dropped events, with the batch that writes them.
    dropped: Vec<(u64, u32)>,
}

fn next_epoch() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Core {
    fn new(shared: &Arc<Shared>, kind: QueueKind) -> Result<Core> {
        let gpu = &shared.gpu;
        // The first family launches; the second, where there is one, only copies.
        let family = match kind {
            QueueKind::Compute => 0,
            QueueKind::Transfer => gpu.families.len() - 1,
        };
        let buffer = RawBuffer::new(
            gpu,
            StatusWord::FIRST_COPY + StatusWord::COPIES * 4,
            Use::Download,
        )?;
        let pointer = buffer.pointer(0).ok_or_else(|| {
            Error::new(ErrorKind::OutOfMemory, "no memory that the host can reach")
        })?;
        // SAFETY: mapped, as many bytes, and nobody else knows of them yet.
        unsafe { pointer.write_bytes(0, buffer.bytes as usize) };
        let timeline = Timeline::new(gpu)?;
        let first = timeline.first;
        Ok(Core {
            family,
            queue: gpu.families[family].next(),
            timeline,
            completed: AtomicU64::new(first),
            submitted: AtomicU64::new(first),
            status: StatusWord { buffer },
            slots: Mutex::default(),
            state: Mutex::new(State {
                pool: CommandPool::new(gpu, gpu.families[family].index)?,
                spare_commands: Vec::new(),
                spare_batches: Vec::new(),
                open: None,
                under_way: VecDeque::with_capacity(BATCHES),
                arena: Arena::new(),
                hazards: Hazards::new(),
                epoch: next_epoch(),
                bound: None,
                sealed: false,
                status_used: false,
                status_reads: VecDeque::new(),
                broken: None,
                readbacks: Vec::new(),
            }),
            shared: shared.clone(),
        })
    }

    fn note(&self, error: Error) -> Error {
        self.shared.note(error)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn launches(&self) -> bool {
        self.shared.gpu.families[self.family].launches
    }

    pub(super) fn family_index(&self) -> u32 {
        self.shared.gpu.families[self.family].index
    }

    /// Where kernels complain.
    pub(super) fn status_address(&self) -> u64 {
        self.status.buffer.address
    }

    /// The batch that was handed over last.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Acquire)
    }

    /// Whether a batch is over, as the device says now.
    fn has_reached(&self, batch: u64) -> Result<bool> {
        if self.completed.load(Ordering::Acquire) >= batch {
            return Ok(true);
        }
        let value = self.timeline.value().map_err(|error| self.note(error))?;
        self.completed.fetch_max(value, Ordering::AcqRel);
        Ok(value >= batch)
    }

    /// Whether nothing is under way. (Nothing is recorded either: the queue's handle is gone.)
    pub(super) fn is_idle(&self) -> bool {
        self.has_reached(self.submitted()).unwrap_or(false)
    }

    /// Waits until a batch that was handed over is done.
    pub(super) fn wait(&self, batch: u64, timeout: Option<Duration>) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.shared.alive()?;
            if self.has_reached(batch)? {
                return Ok(());
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                let limit = timeout.unwrap_or_default();
                return Err(Error::new(ErrorKind::Timeout, format!("not done after {limit:?}")));
            }
            let slice = left.map_or(WAIT_SLICE, |left| left.min(WAIT_SLICE));
            if self.timeline.wait(batch, slice).map_err(|error| self.note(error))? {
                self.completed.fetch_max(batch, Ordering::AcqRel);
                return Ok(());
            }
        }
    }

    /// Hands over what is recorded up to a batch.
    fn flush_to(&self, batch: u64) -> Result<()> {
        if self.submitted() < batch {
            let mut state = self.lock();
            if self.submitted() < batch {
                self.submit(&mut state)?;
            }
            debug_assert!(self.submitted() >= batch, "an event's batch is open or handed over");
        }
        Ok(())
    }

    /// The batch that is open, begun if need be. A batch is never begun for nothing: the caller adds to it.
    fn batch<'s>(&self, state: &'s mut State) -> Result<&'s mut Batch> {
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let full = |batch: &Batch| batch.commands >= BATCH_COMMANDS;
        if state.sealed || state.open.as_ref().is_some_and(full) {
            self.submit(state)?;
        }
        if state.open.is_none() {
            self.collect(state);
            let mut batch = state.spare_batches.pop().unwrap_or_default();
            batch.number = self.submitted() + 1;
            state.epoch = next_epoch();
            state.open = Some(batch);
        }
        Ok(state.open.as_mut().expect("made above"))
    }

    /// Where the next command is recorded.
    pub(super) fn commands<'s>(&'s self, state: &mut State) -> Result<Commands<'s>> {
        let (gpu, launches) = (&*self.shared.gpu, self.launches());
        let batch = self.batch(state)?;
        batch.commands += 1;
        if let Some(raw) = batch.current {
            return Ok(Commands { raw, gpu, launches });
        }
        let raw = match state.spare_commands.pop() {
            Some(raw) => raw,
            None => state.pool.allocate().map_err(|error| self.note(error))?,
        };
        let commands = Commands { raw, gpu, launches };
        if let Err(error) = commands.begin(false) {
            state.spare_commands.push(raw);
            return Err(self.note(error));
        }
        // After all that was handed over before.
        commands.barrier();
        state.hazards.clear();
        state.bound = None;
        let batch = state.open.as_mut().expect("open since above");
        batch.current = Some(raw);
        batch.recorded.push(raw);
        Ok(commands)
    }

    /// Ends the command buffer that is being recorded, if one is.
    fn end_commands(&self, state: &mut State) -> Result<()> {
        let Some(batch) = &mut state.open else {
            return Ok(());
        };
        if let Some(raw) = batch.current.take() {
            let (gpu, launches) = (&*self.shared.gpu, self.launches());
            let commands = Commands { raw, gpu, launches };
            commands.barrier_to_host();
            commands.end().map_err(|error| self.note(error))?;
            batch.sequence.push(raw);
        }
        Ok(())
    }

    /// Hands over the open batch.
    pub(super) fn submit(&self, state: &mut State) -> Result<()> {
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        state.sealed = false;
        let ended = self.end_commands(state);
        let Some(batch) = state.open.take() else {
            return Ok(());
        };
        let handed_over = ended.and_then(|()| self.hand_over(&batch));
        match handed_over {
            Ok(()) => {
                self.submitted.store(batch.number, Ordering::Release);
                state.under_way.push_back(batch);
                Ok(())
            }
            Err(error) => {
                let error = self.note(error);
                // Its work is lost, and what would come later would come too early.
                state.broken = Some(error.clone());
                Err(error)
            }
        }
    }

    fn hand_over(&self, batch: &Batch) -> Result<()> {
        // Nearly always empty.
        let (semaphores, values): (Vec<_>, Vec<_>) = batch
            .waits
            .iter()
            .map(|(core, value)| (core.timeline.raw(), *value))
            .unzip();
        let stages = vec![vk::PipelineStageFlags::ALL_COMMANDS; batch.waits.len()];
        let (signalled, number) = ([self.timeline.raw()], [batch.number]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&values)
            .signal_semaphore_values(&number);
        let submission = vk::SubmitInfo::default()
            .wait_semaphores(&semaphores)
            .wait_dst_stage_mask(&stages)
            .command_buffers(&batch.sequence)
            .signal_semaphores(&signalled)
            .push_next(&mut timeline);
        self.shared.gpu.submit(self.family, self.queue, &submission)
    }

    /// Lets go of what batches needed that are done.
    fn collect(&self, state: &mut State) {
        let Some(last) = state.under_way.back().map(|batch| batch.number) else {
            return;
        };
        // A device that is lost is reported elsewhere; until then nothing is let go.
        let _ = self.has_reached(last);
        let done = self.completed.load(Ordering::Acquire);
        while state.under_way.front().is_some_and(|batch| batch.number <= done) {
            let mut batch = state.under_way.pop_front().expect("looked at above");
            state.spare_commands.append(&mut batch.recorded);
            batch.sequence.clear();
            batch.buffers.clear();
            batch.functions.clear();
            batch.graphs.clear();
            batch.waits.clear();
            batch.commands = 0;
            state.spare_batches.push(batch);
        }
    }

    /// Whether all that was enqueued is done, so that the host may act itself.
    fn nothing_enqueued(&self, state: &State) -> bool {
        state.open.is_none() && state.broken.is_none() && self.has_reached(self.submitted()).unwrap_or(false)
    }

    /// Keeps a buffer alive until the open batch is done.
    fn keep(state: &mut State, buffer: &Buffer, memory: &VulkanMemory) {
        let epoch = state.epoch;
        if memory.kept_in.swap(epoch, Ordering::Relaxed) != epoch {
            let batch = state.open.as_mut().expect("a command was begun");
            batch.buffers.push(buffer.clone());
        }
    }

    /// Copies between buffers of which at most one is the device's own.
    fn copy_place(&self, state: &mut State, own: (&Slice, &VulkanMemory), other: Place, upload: bool) -> Result<()> {
        let (slice, memory) = own;
        let commands = self.commands(state)?;
        Core::keep(state, slice.buffer(), memory);
        state.hazards.enter(commands, &[Access::of(memory, slice, upload)]);
        let place = memory.buffer.at(slice.offset());
        let (from, to) = if upload { (other, place) } else { (place, other) };
        commands.copy(from, to, slice.len());
        Ok(())
    }

    /// Room for the open batch, `None` if too much is waiting.
    fn room(&self, state: &mut State, bytes: usize) -> Result<Option<super::memory::Room>> {
        let number = self.batch(state)?.number;
        let _ = self.has_reached(self.submitted());
        let done = self.completed.load(Ordering::Acquire);
        state
            .arena
            .take(&self.shared.gpu, bytes, number, done)
            .map_err(|error| self.note(error))
    }

    /// Runs `record` with room in the arena, if need be after waiting for some.
    fn with_room<T>(
        &self,
        bytes: usize,
        mut record: impl FnMut(&mut State, &super::memory::Room) -> Result<T>,
    ) -> Result<T> {
        loop {
            let mut state = self.lock();
            if let Some(room) = self.room(&mut state, bytes)? {
                return record(&mut state, &room);
            }
            self.submit(&mut state)?;
            let oldest = state.under_way.front().map_or(self.submitted(), |batch| batch.number);
            drop(state);
            self.wait(oldest, None)?;
            self.collect(&mut self.lock());
        }
    }

    /// Sends data through the arena, a block at a time.
    fn stage(&self, to: &Slice, memory: &VulkanMemory, data: &[u8]) -> Result<()> {
        let mut offset = to.offset();
        for piece in data.chunks(BLOCK as usize) {
            let part = to.buffer().slice(offset, piece.len() as u64)?;
            self.with_room(piece.len(), |state, room| {
                room.write(piece);
                self.copy_place(state, (&part, memory), room.place, true)
            })?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes a copy of the status word and sets it back, if a launch has got it. No launch comes between the two.
    fn read_status(&self, state: &mut State) -> Result<()> {
        if !state.status_used || state.status_reads.len() as u64 == StatusWord::COPIES {
            return Ok(());
        }
        let commands = self.commands(state)?;
        let number = state.status_reads.back().map_or(0, |(_, number)| number + 1);
        let word = self.status.buffer.at(0);
        commands.barrier();
        commands.copy(word, self.status.buffer.at(StatusWord::copy_at(number)), 4);
        commands.barrier();
        commands.fill(word, 4, 0);
        commands.barrier();
        state.hazards.clear();
        state.status_used = false;
        let batch = state.open.as_ref().expect("a command was begun").number;
        state.status_reads.push_back((batch, number));
        Ok(())
    }

    /// The first code other than 0 that a finished copy holds.
    fn status_code(&self, state: &mut State) -> u32 {
        let done = self.completed.load(Ordering::Acquire);
        let mut code = 0;
        while let Some(&(batch, number)) = state.status_reads.front()
            && batch <= done
        {
            state.status_reads.pop_front();
            if code == 0 {
                code = self.status.read(number);
            }
        }
        code
    }

    /// A slot for a time; `None` without a device clock.
    fn slot(&self) -> Result<Option<u32>> {
        if self.shared.gpu.families[self.family].timestamp_bits == 0 {
            return Ok(None);
        }
        let mut slots = lock(&self.slots);
        let slots = &mut *slots;
        if slots.free.is_empty() {
            let done = self.completed.load(Ordering::Acquire);
            let Slots { free, dropped, .. } = slots;
            dropped.retain(|&(batch, slot)| {
                if batch <= done {
                    free.push(slot);
                }
                batch > done
            });
        }
        if slots.free.is_empty() {
            let first = slots.pools.len() as u32 * SLOTS;
            slots.pools.push(Queries::new(&self.shared.gpu, SLOTS)?);
            slots.free.extend((first..first + SLOTS).rev());
        }
        let slot = slots.free.pop().expect("made above");
        if !self.launches() {
            // Queues that only copy cannot reset a slot themselves.
            slots.pools[(slot / SLOTS) as usize].reset(slot % SLOTS);
        }
        Ok(Some(slot))
    }

    fn ticks(&self, slot: u32) -> Result<u64> {
        lock(&self.slots).pools[(slot / SLOTS) as usize].read(slot % SLOTS)
    }

    /// Adds a graph's commands.
    fn replay(&self, state: &mut State, recorded: &Arc<Recorded>) -> Result<()> {
        self.end_commands(state)?;
        let batch = self.batch(state)?;
        batch.commands += recorded.launches();
        batch.sequence.push(recorded.commands());
        batch.graphs.push(recorded.clone());
        state.status_used |= recorded.uses_status();
        Ok(())
    }
}

impl VulkanQueue {
    pub(super) fn new(shared: &Arc<Shared>, kind: QueueKind) -> Result<VulkanQueue> {
        Core::new(shared, kind).map(|core| VulkanQueue(Arc::new(core)))
    }

    #[cfg(test)]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    fn check_length(name: &str, found: usize, slice: &Slice) -> Result<()> {
        if found as u64 != slice.len() {
            return Err(Error::invalid(name, format!("{found} bytes"), slice.len()));
        }
        Ok(())
    }
}

impl Queue for VulkanQueue {
    fn device(&self) -> DeviceId {
        self.0.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        VulkanQueue::check_length("data", data.len(), to)?;
        let memory = core.shared.memory(to.buffer())?;
        if data.is_empty() {
            return Ok(());
        }
        if let Some(pointer) = memory.buffer.pointer(to.offset()) {
            let state = core.lock();
            if core.nothing_enqueued(&state) {
                // SAFETY: the slice lies in the buffer. The queue's earlier work is done, the lock keeps later work away, and other
                // queues' work has no order with this but what the caller makes.
                unsafe { pointer.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
                return Ok(());
            }
        }
        core.stage(to, memory, data)
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        let core = &self.0;
        core.shared.alive()?;
        let memory = core.shared.memory(from.buffer())?;
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", target.len()),
                format!("at least {}", from.len()),
            ));
        }
        if !from.is_empty() {
            let address = target.as_mut_ptr() as usize;
            let place = core.shared.pinned().get(&address).map(|buffer| buffer.at(0));
            let place = place.ok_or_else(|| {
                Error::invalid("into", "pinned memory of another device", "the queue's device's")
            })?;
            core.copy_place(&mut core.lock(), (from, memory), place, false)?;
        }
        match self.record() {
            Ok(event) => Ok(Download::new(event, into)),
            Err(error) => {
                // The copy may yet be done.
                std::mem::forget(into);
                Err(error)
            }
        }
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        VulkanQueue::check_length("into", into.len(), from)?;
        let memory = core.shared.memory(from.buffer())?;
        let finish = || {
            core.submit(&mut core.lock())?;
            core.wait(core.submitted(), None)?;
            core.collect(&mut core.lock());
            Ok(())
        };
        if let Some(pointer) = memory.buffer.pointer(from.offset()) {
            finish()?;
            // SAFETY: the slice lies in the buffer, `into` is as long, and the work that could write it is done.
            unsafe { into.as_mut_ptr().copy_from_nonoverlapping(pointer, into.len()) };
            return Ok(());
        }
        if into.is_empty() {
            return finish();
        }
        let mut offset = from.offset();
        for piece in into.chunks_mut(BLOCK as usize) {
            let known = core.lock().readbacks.pop();
            let through = match known {
                Some(buffer) => buffer,
                None => RawBuffer::new(&core.shared.gpu, BLOCK, Use::Download).map_err(|error| core.note(error))?,
            };
            let part = from.buffer().slice(offset, piece.len() as u64)?;
            core.copy_place(&mut core.lock(), (&part, memory), through.at(0), false)?;
            if let Err(error) = finish() {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget(through);
                return Err(error);
            }
            let pointer = through.pointer(0).ok_or_else(|| {
                Error::new(ErrorKind::OutOfMemory, "no memory that the host can reach")
            })?;
            // SAFETY: the buffer is mapped and this call's alone, and the copy into it is done.
            unsafe { piece.as_mut_ptr().copy_from_nonoverlapping(pointer, piece.len()) };
            offset += piece.len() as u64;
            core.lock().readbacks.push(through);
        }
        Ok(())
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        if from.len() != to.len() {
            return Err(Error::invalid("to", format!("{} bytes", to.len()), from.len()));
        }
        let source = core.shared.memory(from.buffer())?;
        let target = core.shared.memory(to.buffer())?;
        if from.is_empty() {
            return Ok(());
        }
        if source.serial == target.serial
            && from.offset() < to.offset() + to.len()
            && to.offset() < from.offset() + from.len()
        {
            return Err(Error::invalid(
                "to",
                "a slice that overlaps the source",
                "disjoint slices",
            ));
        }
        let mut state = core.lock();
        let commands = core.commands(&mut state)?;
        Core::keep(&mut state, from.buffer(), source);
        Core::keep(&mut state, to.buffer(), target);
        let accesses = [Access::of(source, from, false), Access::of(target, to, true)];
        state.hazards.enter(commands, &accesses);
        commands.copy(source.buffer.at(from.offset()), target.buffer.at(to.offset()), from.len());
        Ok(())
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let memory = core.shared.memory(to.buffer())?;
        if to.is_empty() {
            return Ok(());
        }
        if let Some(pointer) = memory.buffer.pointer(to.offset()).filter(|_| to.len() <= HOST_FILL) {
            let state = core.lock();
            if core.nothing_enqueued(&state) {
                // SAFETY: as in `upload`.
                unsafe { pointer.write_bytes(byte, to.len() as usize) };
                return Ok(());
            }
        }
        // Vulkan fills whole words; what is left at the edges is uploaded.
        let (begin, end) = (to.offset(), to.offset() + to.len());
        let body = begin.next_multiple_of(4).min(end)..end / 4 * 4;
        let edges = match body.is_empty() {
            true => [(begin, end), (end, end)],
            false => [(begin, body.start), (body.end, end)],
        };
        for (begin, end) in edges {
            if begin < end {
                let edge = to.buffer().slice(begin, end - begin)?;
                let bytes = [byte; 8];
                core.stage(&edge, memory, &bytes[..(end - begin) as usize])?;
            }
        }
        if !body.is_empty() {
            let slice = to.buffer().slice(body.start, body.end - body.start)?;
            let mut state = core.lock();
            let commands = core.commands(&mut state)?;
            Core::keep(&mut state, to.buffer(), memory);
            state.hazards.enter(commands, &[Access::of(memory, &slice, true)]);
            commands.fill(memory.buffer.at(body.start), slice.len(), u32::from_le_bytes([byte; 4]));
        }
        Ok(())
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        if !core.launches() {
            return Err(Error::unsupported("a launch on a queue for copies"));
        }
        let prepared = Prepared::new(&core.shared, call, core.status_address())?;
        let record = |state: &mut State, at| -> Result<()> {
            let commands = core.commands(state)?;
            for (buffer, memory) in prepared.buffers() {
                Core::keep(state, buffer, memory);
            }
            let State { hazards, bound, .. } = state;
            let before = *bound;
            // SAFETY: the caller's promise; the batch keeps the buffers and the function.
            unsafe { prepared.record(commands, hazards, bound, at) };
            if *bound != before {
                let batch = state.open.as_mut().expect("a command was begun");
                batch.functions.push(call.function.clone());
            }
            state.status_used |= prepared.uses_status;
            Ok(())
        };
        if !prepared.in_memory {
            return record(&mut core.lock(), 0);
        }
        let block = prepared.block.bytes();
        core.with_room(block.len(), |state, room| {
            room.write(block);
            record(state, room.address)
        })
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let core = &self.0;
        core.shared.alive()?;
        core.shared.sweep();
        let slot = core.slot().map_err(|error| core.note(error))?;
        let mut state = core.lock();
        let batch = match slot {
            None => state.open.as_ref().map_or(core.submitted(), |batch| batch.number),
            Some(slot) => {
                let commands = core.commands(&mut state)?;
                let slots = lock(&core.slots);
                commands.timestamp(&slots.pools[(slot / SLOTS) as usize], slot % SLOTS);
                state.open.as_ref().expect("a command was begun").number
            }
        };
        state.sealed = true;
        drop(state);
        Ok(Arc::new(VulkanEvent {
            core: core.clone(),
            batch,
            slot,
        }))
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let event = core.shared.event(&**event)?;
        if Arc::ptr_eq(&event.core, core) {
            // In order anyway.
            return Ok(());
        }
        // A batch that waits for another queue's needs that batch to be handed over first: they may share a queue of the device.
        event.core.flush_to(event.batch)?;
        if event.core.has_reached(event.batch)? {
            return Ok(());
        }
        let mut state = core.lock();
        // What was enqueued before does not wait.
        if state.open.as_ref().is_some_and(|batch| batch.current.is_some() || !batch.sequence.is_empty()) {
            core.submit(&mut state)?;
        }
        let batch = core.batch(&mut state)?;
        match batch.waits.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &event.core)) {
            Some((_, value)) => *value = event.batch.max(*value),
            None => batch.waits.push((event.core.clone(), event.batch)),
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        core.submit(&mut core.lock())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let last = {
            let mut state = core.lock();
            core.read_status(&mut state)?;
            core.submit(&mut state)?;
            core.submitted()
        };
        core.wait(last, timeout)?;
        let code = {
            let mut state = core.lock();
            core.collect(&mut state);
            core.status_code(&mut state)
        };
        core.shared.sweep();
        validated()?;
        match code {
            0 => Ok(()),
            code => Err(Error::data_out_of_range(code)),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let graph = match graph.as_any().downcast_ref::<VulkanGraph>() {
            Some(graph) if graph.shared.id == core.shared.id => graph,
            _ => {
                let wanted = "one of the queue's device";
                return Err(Error::invalid("graph", "another device's", wanted));
            }
        };
        if !core.launches() {
            return Err(Error::unsupported("a graph on a queue for copies"));
        }
        match graph.recorded(core)? {
            Some(recorded) => core.replay(&mut core.lock(), &recorded),
            None => Ok(()),
        }
    }
}

/// # Errors
/// `Driver` if the validation layer has reported anything since the last call.
fn validated() -> Result<()> {
    static REPORTED: AtomicU64 = AtomicU64::new(0);
    let (count, first) = messages();
    let reported = REPORTED.swap(count, Ordering::AcqRel);
    if count <= reported {
        return Ok(());
    }
    let first = first.unwrap_or_default();
    Err(Error::new(
        ErrorKind::Driver,
        format!("{} messages of the Vulkan validation layer, the first in this process: {first}", count - reported),
    ))
}

impl Drop for VulkanQueue {
    fn drop(&mut self) {
        let core = &self.0;
        // A failure leaves nothing under way that was not before.
        let _ = core.submit(&mut core.lock());
        core.collect(&mut core.lock());
        if !core.is_idle() {
            core.shared.outlive(core.clone());
        }
    }
}

/// A point in a queue's work: a batch, and a slot for the time.
pub(super) struct VulkanEvent {
    core: Arc<Core>,
    batch: u64,
    slot: Option<u32>,
}

impl Drop for VulkanEvent {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            lock(&self.core.slots).dropped.push((self.batch, slot));
        }
    }
}

impl Shared {
    /// The event behind the trait object, if it is this device's.
    fn event<'a>(&self, event: &'a dyn Event) -> Result<&'a VulkanEvent> {
        match event.as_any().downcast_ref::<VulkanEvent>() {
            Some(event) if event.core.shared.id == self.id => Ok(event),
            _ => Err(Error::invalid(
                "event",
                "one of another device",
                "one of this device",
            )),
        }
    }
}

impl Event for VulkanEvent {
    fn is_done(&self) -> Result<bool> {
        self.core.shared.alive()?;
        self.core.flush_to(self.batch)?;
        self.core.has_reached(self.batch)
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let core = &self.core;
        core.shared.alive()?;
        core.flush_to(self.batch)?;
        core.wait(self.batch, timeout)?;
        core.collect(&mut core.lock());
        core.shared.sweep();
        Ok(())
    }

    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration> {
        let shared = &self.core.shared;
        let earlier = shared.event(earlier)?;
        for event in [earlier, self] {
            if !event.is_done()? {
                return Err(Error::invalid(
                    "event",
                    "one that is not done",
                    "two that are done",
                ));
            }
        }
        let ticks = |event: &VulkanEvent| {
            let slot = event
                .slot
                .ok_or_else(|| Error::unsupported("times of a queue without a device clock"))?;
            event.core.ticks(slot).map_err(|error| shared.note(error))
        };
        let family = |event: &VulkanEvent| shared.gpu.families[event.core.family].timestamp_bits;
        let bits = family(earlier).min(family(self)).min(64);
        let passed = ticks(self)?.wrapping_sub(ticks(earlier)?) << (64 - bits) >> (64 - bits);
        // Two queues' events may come in any order.
        let passed = if passed >> (bits - 1) == 0 { passed } else { 0 };
        Ok(Duration::from_nanos((passed as f64 * shared.gpu.timestamp_period) as u64))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
