//! The batches of commands that a queue gathers and hands over, and what they keep until a timeline semaphore says that they are done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ash::vk;
use ropeway_core::device::QueueKind;
use ropeway_core::memory::{Buffer, Slice};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::Shared;
use super::graph::Recorded;
use super::memory::{Arena, BLOCK, RawBuffer, Room, Use, VulkanMemory};
use super::record::{Access, Hazards, Kept, Prepared};
use super::sys::{CommandPool, Commands, Place, Queries, Timeline, lock};

/// A batch that has gathered so many commands is handed over.
const BATCH_COMMANDS: u32 = 128;
/// Work of one queue is handed over in batches of which so many may be recorded ahead.
const BATCHES: usize = 64;
/// How long a wait goes on before it looks whether another thread has found the device lost.
const WAIT_SLICE: Duration = Duration::from_millis(50);
/// Event slots that are made at once.
const SLOTS: u32 = 128;

/// What a queue's events hold on to.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) family: usize,
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
    pub(super) readbacks: Vec<RawBuffer>,
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
    pub(super) fn new(shared: &Arc<Shared>, kind: QueueKind) -> Result<Core> {
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

    pub(super) fn note(&self, error: Error) -> Error {
        self.shared.note(error)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn launches(&self) -> bool {
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
    pub(super) fn has_reached(&self, batch: u64) -> Result<bool> {
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
    pub(super) fn flush_to(&self, batch: u64) -> Result<()> {
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
    pub(super) fn collect(&self, state: &mut State) {
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
    pub(super) fn nothing_enqueued(&self, state: &State) -> bool {
        state.open.is_none() && state.broken.is_none() && self.has_reached(self.submitted()).unwrap_or(false)
    }

    /// Keeps a buffer alive until the open batch is done.
    pub(super) fn keep(state: &mut State, buffer: &Buffer, memory: &VulkanMemory) {
        let epoch = state.epoch;
        if memory.kept_in.swap(epoch, Ordering::Relaxed) != epoch {
            let batch = state.open.as_mut().expect("a command was begun");
            batch.buffers.push(buffer.clone());
        }
    }

    /// Copies between buffers of which at most one is the device's own.
    pub(super) fn copy_place(&self, state: &mut State, own: (&Slice, &VulkanMemory), other: Place, upload: bool) -> Result<()> {
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
    fn room(&self, state: &mut State, bytes: usize) -> Result<Option<Room>> {
        let number = self.batch(state)?.number;
        let _ = self.has_reached(self.submitted());
        let done = self.completed.load(Ordering::Acquire);
        state
            .arena
            .take(&self.shared.gpu, bytes, number, done)
            .map_err(|error| self.note(error))
    }

    /// Runs `record` with room in the arena, if need be after waiting for some.
    pub(super) fn with_room<T>(
        &self,
        bytes: usize,
        mut record: impl FnMut(&mut State, &Room) -> Result<T>,
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
    pub(super) fn stage(&self, to: &Slice, memory: &VulkanMemory, data: &[u8]) -> Result<()> {
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
    pub(super) fn read_status(&self, state: &mut State) -> Result<()> {
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
    pub(super) fn status_code(&self, state: &mut State) -> u32 {
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

    /// Records a launch whose arguments beyond push constants lie at `address`.
    ///
    /// # Safety
    /// As [`Queue::launch`](ropeway_core::device::Queue::launch).
    pub(super) unsafe fn launch(&self, state: &mut State, prepared: &Prepared<'_>, function: &Kept, address: u64) -> Result<()> {
        let commands = self.commands(state)?;
        for (buffer, memory) in prepared.buffers() {
            Core::keep(state, buffer, memory);
        }
        let State { hazards, bound, .. } = state;
        let before = *bound;
        // SAFETY: the caller's promise; the batch keeps the buffers and the function.
        unsafe { prepared.record(commands, hazards, bound, address) };
        if *bound != before {
            let batch = state.open.as_mut().expect("a command was begun");
            batch.functions.push(function.clone());
        }
        state.status_used |= prepared.uses_status;
        Ok(())
    }

    /// Marks the point behind the last command: its batch, and the slot that gets its time.
    pub(super) fn mark(&self) -> Result<(u64, Option<u32>)> {
        let slot = self.slot().map_err(|error| self.note(error))?;
        let mut state = self.lock();
        let batch = match slot {
            None => state.open.as_ref().map_or(self.submitted(), |batch| batch.number),
            Some(slot) => {
                let commands = self.commands(&mut state)?;
                let slots = lock(&self.slots);
                commands.timestamp(&slots.pools[(slot / SLOTS) as usize], slot % SLOTS);
                state.open.as_ref().expect("a command was begun").number
            }
        };
        state.sealed = true;
        Ok((batch, slot))
    }

    /// Lets a slot serve another event, once the batch that writes it is done.
    pub(super) fn drop_slot(&self, batch: u64, slot: u32) {
        lock(&self.slots).dropped.push((batch, slot));
    }

    /// Makes the next command come after another queue's batch, which was handed over.
    pub(super) fn come_after(&self, other: &Arc<Core>, value: u64) -> Result<()> {
        let mut state = self.lock();
        // What was enqueued before does not wait.
        if state.open.as_ref().is_some_and(|batch| batch.current.is_some() || !batch.sequence.is_empty()) {
            self.submit(&mut state)?;
        }
        let batch = self.batch(&mut state)?;
        match batch.waits.iter_mut().find(|(known, _)| Arc::ptr_eq(known, other)) {
            Some((_, known)) => *known = value.max(*known),
            None => batch.waits.push((other.clone(), value)),
        }
        Ok(())
    }

    pub(super) fn ticks(&self, slot: u32) -> Result<u64> {
        lock(&self.slots).pools[(slot / SLOTS) as usize].read(slot % SLOTS)
    }

    /// Adds a graph's commands.
    pub(super) fn replay(&self, state: &mut State, recorded: &Arc<Recorded>) -> Result<()> {
        self.end_commands(state)?;
        let batch = self.batch(state)?;
        batch.commands += recorded.launches();
        batch.sequence.push(recorded.commands());
        batch.graphs.push(recorded.clone());
        state.status_used |= recorded.uses_status();
        Ok(())
    }
}

