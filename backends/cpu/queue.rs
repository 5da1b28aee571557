//! Queues of the cpu device: a worker thread each, commands in order, events with host time.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ropeway_core::device::{Argument, Download, Event, Function, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::native::{NativeArg, NativeCall};
use ropeway_core::{Buffer, Error, ErrorKind, Result};

use super::compile::CpuFunction;
use super::device::{CpuMemory, Shared};
use crate::loop_graph::LoopGraph;

pub(super) struct CpuQueue {
    state: Arc<State>,
}

struct State {
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    /// Signalled when a command is queued, a command is done, or the queue closes.
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    commands: VecDeque<Command>,
    submitted: u64,
    completed: u64,
    /// The first failure since the last synchronize.
    failure: Option<Error>,
    /// The status word that kernels set.
    status: u32,
    closed: bool,
    /// Argument lists of finished launches, for reuse: a launch allocates nothing once there are enough.
    spare: Vec<Vec<Owned>>,
}

enum Command {
    Upload { to: Slice, data: Vec<u8> },
    Download { from: Slice, target: HostTarget },
    Copy { from: Slice, to: Slice },
    Fill { to: Slice, byte: u8 },
    Launch { function: Arc<dyn Function>, grid: [u64; 3], args: Vec<Owned> },
    Record(Arc<CpuEvent>),
    Wait(Arc<CpuEvent>),
}

/// Where a download writes. The [`Download`] that owns the memory waits for the copy before it lets go.
struct HostTarget(*mut u8);

// SAFETY: only the worker writes through it, and only until the download's event is done; the memory's owner does not
// touch it before.
unsafe impl Send for HostTarget {}

/// An argument that keeps its buffer alive.
enum Owned {
    Buffer { buffer: Buffer, begin: u64, bytes: u64, write: bool },
    Absent,
    Int(i64),
    Float(f32),
    Status,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn memory(buffer: &Buffer) -> Result<&CpuMemory> {
    buffer.downcast().ok_or_else(|| Error::invalid("buffer", "memory of another backend", "memory of the cpu device"))
}

impl CpuQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Result<CpuQueue> {
        let state = Arc::new(State { shared, inner: Mutex::default(), changed: Condvar::new() });
        let worker = Arc::clone(&state);
        std::thread::Builder::new()
            .name("ropeway-cpu-queue".into())
            .spawn(move || worker.work())
            .map_err(|error| Error::new(ErrorKind::OutOfMemory, "thread of a queue").with_source(error))?;
        Ok(CpuQueue { state })
    }

    fn submit(&self, command: Command) -> Result<()> {
        let mut inner = lock(&self.state.inner);
        inner.commands.push_back(command);
        inner.submitted += 1;
        self.state.changed.notify_all();
        Ok(())
    }

    fn own(&self, slice: &Slice) -> Result<()> {
        if slice.buffer().device() != self.state.shared.id {
            return Err(Error::invalid("buffer", "memory of another device", "memory of the queue's device"));
        }
        memory(slice.buffer()).map(|_| ())
    }
}

impl Drop for CpuQueue {
    /// What is queued still runs; the worker ends after it.
    fn drop(&mut self) {
        lock(&self.state.inner).closed = true;
        self.state.changed.notify_all();
    }
}

impl State {
    fn work(&self) {
        loop {
            let command = {
                let mut inner = lock(&self.inner);
                loop {
                    if let Some(command) = inner.commands.pop_front() {
                        break command;
                    }
                    if inner.closed {
                        return;
                    }
                    inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let (outcome, spare) = self.run(command);
            let mut inner = lock(&self.inner);
            inner.completed += 1;
            if let Err(error) = outcome {
                inner.failure.get_or_insert(error);
            }
            inner.spare.extend(spare);
            self.changed.notify_all();
        }
    }

    /// Runs a command; gives back a launch's argument list, emptied.
    fn run(&self, command: Command) -> (Result<()>, Option<Vec<Owned>>) {
        match command {
            Command::Upload { to, data } => {
                let _turn = lock(&self.shared.execution);
                (with_bytes_mut(&to, |bytes| bytes.copy_from_slice(&data)), None)
            }
            Command::Download { from, target } => {
                let _turn = lock(&self.shared.execution);
                let copied = with_bytes(&from, |bytes| {
                    // SAFETY: the target holds at least this many bytes (checked by `download`) and stays alive and
                    // untouched until the event after this command (see `HostTarget`).
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.0, bytes.len()) }
                });
                (copied, None)
            }
            Command::Copy { from, to } => {
                let _turn = lock(&self.shared.execution);
                let copied = memory(from.buffer()).and_then(|source| {
                    let target = memory(to.buffer())?;
                    // SAFETY: both slices lie in their buffers, do not overlap (checked by `copy`), and nothing else
                    // touches memory during this turn.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            source.pointer().add(from.offset() as usize),
                            target.pointer().add(to.offset() as usize),
                            from.len() as usize,
                        );
                    }
                    Ok(())
                });
                (copied, None)
            }
            Command::Fill { to, byte } => {
                let _turn = lock(&self.shared.execution);
                (with_bytes_mut(&to, |bytes| bytes.fill(byte)), None)
            }
            Command::Launch { function, grid, mut args } => {
                let outcome = self.launch(&function, grid, &args);
                args.clear();
                (outcome, Some(args))
            }
            Command::Record(event) => {
                let failure = lock(&self.inner).failure.clone();
                event.complete(failure);
                (Ok(()), None)
            }
            Command::Wait(event) => (event.wait(None), None),
        }
    }

    fn launch(&self, function: &Arc<dyn Function>, grid: [u64; 3], args: &[Owned]) -> Result<()> {
        let function = function.as_any().downcast_ref::<CpuFunction>().expect("checked when it was enqueued");
        check_overlap(args).map_err(|error| error.within(function.entry))?;
        let mut status = 0u32;
        let mut status_word = Some(bytemuck::bytes_of_mut(&mut status));
        let mut native = Vec::with_capacity(args.len());
        let turn = lock(&self.shared.execution);
        // Slices may not alias: an input that is bound to the output's own view is read from a copy.
        let mut copies = Vec::new();
        for arg in args {
            if let Owned::Buffer { buffer, begin, bytes, write: false } = arg
                && args.iter().any(|other| is_written_in_place(arg, other))
            {
                // Of u64, so that every element is aligned.
                let mut copy = vec![0u64; bytes.div_ceil(8) as usize];
                let to = &mut bytemuck::cast_slice_mut(&mut copy)[..*bytes as usize];
                with_bytes(&buffer.slice(*begin, *bytes)?, |from| to.copy_from_slice(from))?;
                copies.push(copy);
            }
        }
        let mut copies = copies.iter();
        for arg in args {
            native.push(match arg {
                Owned::Buffer { bytes, write: false, .. } if args.iter().any(|other| is_written_in_place(arg, other)) => {
                    let copy: &[u64] = copies.next().expect("one was made of each such argument");
                    NativeArg::Read(&bytemuck::cast_slice(copy)[..*bytes as usize])
                }
                Owned::Buffer { buffer, begin, bytes, write } => {
                    let pointer = memory(buffer)?.pointer().wrapping_add(*begin as usize);
                    // SAFETY: the range lies in the buffer (checked when it was enqueued); nothing else touches memory
                    // during this turn, and no argument that is written overlaps another (checked above).
                    unsafe {
                        if *write {
                            NativeArg::Write(std::slice::from_raw_parts_mut(pointer, *bytes as usize))
                        } else {
                            NativeArg::Read(std::slice::from_raw_parts(pointer, *bytes as usize))
                        }
                    }
                }
                Owned::Absent => NativeArg::Absent,
                Owned::Int(value) => NativeArg::Int(*value),
                Owned::Float(value) => NativeArg::Float(*value),
                Owned::Status => status_word.take().map_or(NativeArg::Absent, NativeArg::Write),
            });
        }
        let mut call = NativeCall::new(native, &function.config, &*self.shared, grid);
        let run = || self.shared.pool.install(|| (function.function)(&mut call));
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Err(Error::new(ErrorKind::LaunchFailed, text))
        });
        drop(call);
        drop(turn);
        if status != 0 {
            let mut inner = lock(&self.inner);
            inner.status = if inner.status == 0 { status } else { inner.status };
        }
        outcome.map_err(|error| error.within(function.entry))
    }
}

/// Whether `arg` is read from the very bytes that `other` is written to.
fn is_written_in_place(arg: &Owned, other: &Owned) -> bool {
    match (arg, other) {
        (
            Owned::Buffer { buffer, begin, bytes, write: false },
            Owned::Buffer { buffer: other, begin: other_begin, bytes: other_bytes, write: true },
        ) => *bytes > 0 && buffer.same(other) && begin == other_begin && bytes == other_bytes,
        _ => false,
    }
}

/// No argument that is written may share memory with another, unless it is all of it and that one is read: the slices would alias. Goes by
/// address, since two imports may overlap.
fn check_overlap(args: &[Owned]) -> Result<()> {
    for (index, arg) in args.iter().enumerate() {
        let Owned::Buffer { buffer, begin, bytes, write: true } = arg else { continue };
        let written = addresses(buffer, *begin, *bytes)?;
        for (other_index, other) in args.iter().enumerate() {
            let Owned::Buffer { buffer: other, begin: other_begin, bytes: other_bytes, .. } = other else { continue };
            let in_place = is_written_in_place(&args[other_index], arg);
            if index != other_index && !in_place && meet(&written, &addresses(other, *other_begin, *other_bytes)?) {
                let context = format!("argument {index} is written and overlaps argument {other_index}");
                return Err(Error::new(ErrorKind::LaunchFailed, context));
            }
        }
    }
    Ok(())
}

/// Where a range of a buffer lies.
fn addresses(buffer: &Buffer, begin: u64, bytes: u64) -> Result<Range<u64>> {
    let first = memory(buffer)?.pointer() as u64 + begin;
    Ok(first..first + bytes)
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}

/// The bytes of a slice, read during a turn of the device.
fn with_bytes(slice: &Slice, read: impl FnOnce(&[u8])) -> Result<()> {
    let pointer = memory(slice.buffer())?.pointer().wrapping_add(slice.offset() as usize);
    // SAFETY: the slice lies in its buffer, whose memory is initialised; the caller holds the device's execution lock, so
    // nothing writes to it meanwhile.
    read(unsafe { std::slice::from_raw_parts(pointer, slice.len() as usize) });
    Ok(())
}

/// The bytes of a slice, written during a turn of the device.
fn with_bytes_mut(slice: &Slice, write: impl FnOnce(&mut [u8])) -> Result<()> {
    let pointer = memory(slice.buffer())?.pointer().wrapping_add(slice.offset() as usize);
    // SAFETY: as in `with_bytes`; nothing else reads or writes it meanwhile.
    write(unsafe { std::slice::from_raw_parts_mut(pointer, slice.len() as usize) });
    Ok(())
}

impl Queue for CpuQueue {
    fn device(&self) -> DeviceId {
        self.state.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        self.own(to)?;
        if data.len() as u64 != to.len() {
            return Err(Error::invalid("data", format!("{} bytes", data.len()), format!("{}", to.len())));
        }
        self.submit(Command::Upload { to: to.clone(), data: data.to_vec() })
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        self.own(from)?;
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid("into", format!("{} bytes", target.len()), format!("at least {}", from.len())));
        }
        let target = HostTarget(target.as_mut_ptr());
        self.submit(Command::Download { from: from.clone(), target })?;
        Ok(Download::new(self.record()?, into))
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        self.own(from)?;
        if into.len() as u64 != from.len() {
            return Err(Error::invalid("into", format!("{} bytes", into.len()), format!("{}", from.len())));
        }
        self.record()?.wait(None)?;
        let _turn = lock(&self.state.shared.execution);
        with_bytes(from, |bytes| into.copy_from_slice(bytes))
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        self.own(from)?;
        self.own(to)?;
        if from.len() != to.len() {
            return Err(Error::invalid("to", format!("{} bytes", to.len()), format!("{}", from.len())));
        }
        let lies = |slice: &Slice| addresses(slice.buffer(), slice.offset(), slice.len());
        if meet(&lies(from)?, &lies(to)?) {
            return Err(Error::invalid("to", "a slice that overlaps the source", "disjoint slices"));
        }
        self.submit(Command::Copy { from: from.clone(), to: to.clone() })
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        self.own(to)?;
        self.submit(Command::Fill { to: to.clone(), byte })
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        let device = self.state.shared.id;
        match call.function.as_any().downcast_ref::<CpuFunction>() {
            Some(function) if function.device == device => {}
            _ => return Err(Error::invalid("function", "a function of another device", "one of the queue's device")),
        }
        let mut args = lock(&self.state.inner).spare.pop().unwrap_or_default();
        for argument in call.arguments {
            args.push(match *argument {
                Argument::Buffer { buffer, offset, dtype, bytes, write } => {
                    if buffer.device() != device {
                        let found = "memory of another device";
                        return Err(Error::invalid("buffer", found, "memory of the queue's device"));
                    }
                    let begin = buffer.argument_bytes(dtype, offset, bytes)?.start;
                    let first = memory(buffer)?.pointer() as u64 + begin;
                    if bytes > 0 && !first.is_multiple_of(dtype.size().unwrap_or(1)) {
                        let found = format!("{dtype} elements from address {first:#x} on");
                        return Err(Error::invalid("buffer", found, "elements aligned to their size"));
                    }
                    Owned::Buffer { buffer: buffer.clone(), begin, bytes, write }
                }
                Argument::Absent => Owned::Absent,
                Argument::U32(value) => Owned::Int(value.into()),
                Argument::I32(value) => Owned::Int(value.into()),
                Argument::U64(value) => Owned::Int(i64::try_from(value).unwrap_or(i64::MAX)),
                Argument::I64(value) => Owned::Int(value),
                Argument::F32(value) => Owned::Float(value),
                Argument::Status => Owned::Status,
                Argument::TensorMap { .. } => return Err(Error::unsupported("the cpu device has no tensor maps")),
            });
        }
        self.submit(Command::Launch { function: Arc::clone(call.function), grid: call.grid, args })
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let event = Arc::new(CpuEvent {
            device: self.state.shared.id,
            outcome: Mutex::new(None),
            completed: Condvar::new(),
        });
        self.submit(Command::Record(Arc::clone(&event)))?;
        Ok(event)
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        let event = Arc::clone(event) as Arc<dyn Any + Send + Sync>;
        match event.downcast::<CpuEvent>() {
            Ok(event) if event.device == self.state.shared.id => self.submit(Command::Wait(event)),
            _ => Err(Error::invalid("event", "an event of another device", "one of the queue's device")),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut inner = lock(&self.state.inner);
        let goal = inner.submitted;
        while inner.completed < goal {
            inner = match deadline {
                None => self.state.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::new(ErrorKind::Timeout, "work of the queue is not done"));
                    }
                    self.state.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let status = std::mem::take(&mut inner.status);
        match inner.failure.take() {
            Some(error) => Err(error),
            None if status != 0 => Err(Error::data_out_of_range(status)),
            None => Ok(()),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        match graph.as_any().downcast_ref::<LoopGraph>() {
            Some(graph) => graph.replay(self),
            None => Err(Error::invalid("graph", "a graph of another backend", "one of the cpu device")),
        }
    }
}

struct CpuEvent {
    device: DeviceId,
    /// When it was reached, and the failure of the work before it.
    outcome: Mutex<Option<(Instant, Option<Error>)>>,
    completed: Condvar,
}

impl CpuEvent {
    fn complete(&self, failure: Option<Error>) {
        *lock(&self.outcome) = Some((Instant::now(), failure));
        self.completed.notify_all();
    }

    fn instant(&self) -> Result<Instant> {
        let outcome = lock(&self.outcome);
        outcome.as_ref().map(|(at, _)| *at).ok_or_else(|| Error::invalid("event", "work under way", "an event that is done"))
    }
}

impl Event for CpuEvent {
    fn is_done(&self) -> Result<bool> {
        match &*lock(&self.outcome) {
            None => Ok(false),
            Some((_, None)) => Ok(true),
            Some((_, Some(error))) => Err(error.clone()),
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some((_, failure)) = &*outcome {
                return failure.clone().map_or(Ok(()), Err);
            }
            outcome = match deadline {
                None => self.completed.wait(outcome).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::new(ErrorKind::Timeout, "the event is not done"));
                    }
                    self.completed.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration> {
        match earlier.as_any().downcast_ref::<CpuEvent>() {
            Some(earlier) if earlier.device == self.device => {
                Ok(self.instant()?.saturating_duration_since(earlier.instant()?))
            }
            _ => Err(Error::invalid("earlier", "an event of another device", "one of the same device")),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
