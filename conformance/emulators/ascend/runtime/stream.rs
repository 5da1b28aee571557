//! Streams with threads of their own, and events.
//!
//! Each stream runs its work in order on its own thread, late and with random pauses, so that work which nothing orders happens in different
//! orders.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::device::{Context, Device, Fault, current, emulator};
use super::graph::{Capture, Member};
use super::lock;
use super::settings::Random;
use super::status::{self, Result};
use super::work::Work;

/// The flag of an event that streams may wait for.
pub const EVENT_SYNC: u32 = 1;
/// The flag of an event that has a time.
pub const EVENT_TIME_LINE: u32 = 8;
/// All flags.
pub const EVENT_FLAGS: u32 = 1 | 2 | 8;

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    /// How much work is done, skipped included.
    done: u64,
    /// Whether a thread is at it.
    worker: bool,
}

#[derive(Debug, Default)]
struct Order {
    /// How much work was given.
    issued: u64,
    /// What comes before the next piece.
    clock: Clock,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its handle.
    pub handle: usize,
    /// Its context's handle.
    pub context: usize,
    /// Its device's number.
    pub device: u32,
    order: Mutex<Order>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The capture that it is part of.
    pub(super) capture: Mutex<Option<Member>>,
}

impl Stream {
    /// A stream of a context.
    pub fn new(handle: usize, context: &Context) -> Stream {
        Stream {
            handle,
            context: context.handle,
            device: context.device,
            order: Mutex::default(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            capture: Mutex::default(),
        }
    }

    fn device(&self) -> &'static Device {
        &emulator().devices[self.device as usize]
    }

    /// Whether it is captured.
    pub fn is_capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    /// Adds work, or a node of the capture.
    ///
    /// # Errors
    /// 107025 for the default stream while another of its context is captured.
    pub fn enqueue(self: &Arc<Self>, work: Work) -> Result<()> {
        if let Some(member) = &mut *lock(&self.capture) {
            member.add(work);
            return Ok(());
        }
        self.forbid_default_beside_capture()?;
        self.push(work);
        Ok(())
    }

    fn forbid_default_beside_capture(self: &Arc<Self>) -> Result<()> {
        let context = current()?;
        if !Arc::ptr_eq(self, &context.default_stream()) {
            return Ok(());
        }
        let capturing = |stream: &Arc<Stream>| stream.is_capturing();
        if let Some(other) = context.streams().iter().find(|other| capturing(other)) {
            let why = "the default stream is used while another stream is captured";
            if let Some(member) = &*lock(&other.capture) {
                member.capture.spoil(why);
            }
            return Err(status::CAPTURED.breach(why));
        }
        Ok(())
    }

    fn push(self: &Arc<Self>, work: Work) -> Clock {
        let mut order = lock(&self.order);
        order.issued += 1;
        let number = order.issued;
        if let Work::Wait(_, clock) = &work {
            let clock = clock.clone();
            order.clock.join(&clock);
        }
        order.clock.reach(self.handle, number);
        work.mark_used(self.handle, number);
        let clock = order.clock.clone();
        let mut queue = lock(&self.queue);
        queue.waiting.push_back(work);
        if !queue.worker {
            queue.worker = true;
            let stream = Arc::clone(self);
            // The thread ends when there is nothing left to do.
            let spawned = std::thread::Builder::new()
                .name("emulated stream".into())
                .spawn(move || stream.run());
            if let Err(error) = spawned {
                queue.worker = false;
                queue.done += queue.waiting.len() as u64;
                queue.waiting.clear();
                self.device().fail(Fault {
                    status: status::DRIVER,
                    why: format!("no thread for a stream: {error}"),
                });
            }
        }
        self.changed.notify_all();
        clock
    }

    /// Runs what is enqueued, in order.
    fn run(&self) {
        /// How long a thread waits for more before it ends.
        const PATIENCE: Duration = Duration::from_millis(100);
        let emulator = emulator();
        let mut random = Random(emulator.settings.seed ^ (self.handle as u64) << 20);
        let mut idle = true;
        loop {
            let mut queue = lock(&self.queue);
            if queue.waiting.is_empty() {
                idle = true;
                let waited = self
                    .changed
                    .wait_timeout_while(queue, PATIENCE, |queue| queue.waiting.is_empty());
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let Some(work) = queue.waiting.pop_front() else {
                queue.worker = false;
                return;
            };
            drop(queue);
            if let Some(late) = emulator.faults.stall() {
                std::thread::sleep(late);
            }
            if std::mem::take(&mut idle) || random.draw().is_multiple_of(8) {
                std::thread::sleep(Duration::from_micros(random.draw() % 200));
            }
            // Nothing is run on a device that met a fault, but for what others wait for.
            if (work.is_order() || !self.device().failed())
                && let Err(fault) = work.run(&mut random)
            {
                self.device().fail(fault);
            }
            // What the work kept alive goes before it counts as done.
            drop(work);
            lock(&self.queue).done += 1;
            self.changed.notify_all();
        }
    }

    fn wait_for(&self, number: u64, timeout: Option<Duration>) -> bool {
        let queue = lock(&self.queue);
        match timeout {
            None => {
                let waited = self.changed.wait_while(queue, |queue| queue.done < number);
                drop(waited);
                true
            }
            Some(timeout) => {
                let waited = self
                    .changed
                    .wait_timeout_while(queue, timeout, |queue| queue.done < number);
                let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
                queue.done >= number
            }
        }
    }

    /// Waits until what is enqueued now is done.
    pub fn drain(&self) {
        let issued = lock(&self.order).issued;
        self.wait_for(issued, None);
    }

    /// Waits until what is enqueued now is done, or for so long.
    ///
    /// # Errors
    /// What the device met, 507046 if it takes longer, 107025 while it is captured.
    pub fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.forbid_capture("a stream is synchronised while it is captured")?;
        let (issued, clock) = {
            let order = lock(&self.order);
            (order.issued, order.clock.clone())
        };
        if !self.wait_for(issued, timeout) {
            return Err(status::STREAM_TIMEOUT.because("the stream is not done"));
        }
        lock(&emulator().known).join(&clock);
        self.device().check()
    }

    /// Fails, and spoils the capture, if there is one.
    ///
    /// # Errors
    /// 107025.
    pub fn forbid_capture(&self, why: &str) -> Result<()> {
        match &*lock(&self.capture) {
            Some(member) => {
                member.capture.spoil(why);
                Err(status::CAPTURED.breach(why))
            }
            None => Ok(()),
        }
    }

    /// Whether the host knows that all work is done.
    pub fn is_known_done(&self) -> bool {
        let order = lock(&self.order);
        let mut own = Clock::default();
        own.reach(self.handle, order.issued);
        lock(&emulator().known).lacks(&own).is_none()
    }

    /// Records an event.
    ///
    /// # Errors
    /// As [`Stream::enqueue`].
    pub fn record(self: &Arc<Self>, event: &Event) -> Result<()> {
        if let Some(member) = &*lock(&self.capture) {
            *lock(&event.recorded) =
                Recorded::Captured(Arc::clone(&member.capture), member.after.clone());
            return Ok(());
        }
        self.forbid_default_beside_capture()?;
        let mark = Arc::new(Mark::default());
        let clock = self.push(Work::Mark(Arc::clone(&mark)));
        *lock(&event.recorded) = Recorded::At(mark, clock);
        Ok(())
    }

    /// Makes later work wait for an event. A stream that waits for one of a capture joins that capture.
    ///
    /// # Errors
    /// 107030 for an event of another capture, 107025 for one that was recorded outside, 107000 for one that was never recorded.
    pub fn wait(self: &Arc<Self>, event: &Event) -> Result<()> {
        match lock(&event.recorded).clone() {
            Recorded::Never => {
                Err(status::PARAMETER.breach("a stream waits for an event that was never recorded"))
            }
            Recorded::At(mark, clock) => {
                self.forbid_capture("a captured stream waits for an event from outside")?;
                self.enqueue(Work::Wait(mark, clock))
            }
            Recorded::Captured(other, nodes) => {
                let mut capture = lock(&self.capture);
                match &mut *capture {
                    Some(member) if !Arc::ptr_eq(&member.capture, &other) => {
                        Err(status::UNJOINED
                            .breach("a stream waits for an event of another capture"))
                    }
                    Some(member) => {
                        member.after.extend(nodes);
                        member.after.sort_unstable();
                        member.after.dedup();
                        Ok(())
                    }
                    None if other.ended.load(Ordering::Acquire) => {
                        Err(status::NOT_CAPTURED.breach("the event's capture has ended"))
                    }
                    None => {
                        lock(&other.members).push(Arc::clone(self));
                        *capture = Some(Member {
                            capture: other,
                            after: nodes,
                        });
                        Ok(())
                    }
                }
            }
        }
    }
}

/// A point that a stream reaches.
#[derive(Debug, Default)]
pub struct Mark {
    reached: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Mark {
    /// It is reached.
    pub fn reach(&self) {
        *lock(&self.reached) = Some(Instant::now());
        self.changed.notify_all();
    }

    /// When it was reached, if it was.
    pub fn when(&self) -> Option<Instant> {
        *lock(&self.reached)
    }

    /// Waits until it is reached.
    pub fn wait(&self) {
        let reached = lock(&self.reached);
        drop(
            self.changed
                .wait_while(reached, |reached| reached.is_none()),
        );
    }
}

/// Where an event was recorded last.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// Nowhere.
    Never,
    /// At this point, after this work.
    At(Arc<Mark>, Clock),
    /// In a capture, after these nodes.
    Captured(Arc<Capture>, Vec<usize>),
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// What it was created for.
    pub flags: u32,
    /// Where it was recorded last.
    pub recorded: Mutex<Recorded>,
    /// The device that it was created on.
    pub device: u32,
}

impl Event {
    /// An event of a context.
    pub fn new(flags: u32, context: &Context) -> Event {
        Event {
            flags,
            recorded: Mutex::new(Recorded::Never),
            device: context.device,
        }
    }

    /// The point where it was recorded, for the host.
    ///
    /// # Errors
    /// 107000 if it was never recorded, 107025 if that was in a capture.
    fn mark(&self) -> Result<(Arc<Mark>, Clock)> {
        match &*lock(&self.recorded) {
            Recorded::Never => Err(status::PARAMETER.breach("the event was never recorded")),
            Recorded::Captured(capture, _) => {
                let why = "the host asks for an event that was recorded in a capture";
                capture.spoil(why);
                Err(status::CAPTURED.breach(why))
            }
            Recorded::At(mark, clock) => Ok((Arc::clone(mark), clock.clone())),
        }
    }

    /// Waits on the host.
    ///
    /// # Errors
    /// As for a query, and what the device met.
    pub fn synchronize(&self) -> Result<()> {
        let (mark, clock) = self.mark()?;
        mark.wait();
        lock(&emulator().known).join(&clock);
        emulator().devices[self.device as usize].check()
    }

    /// Whether its point is reached.
    ///
    /// # Errors
    /// 107025 if it was recorded in a capture.
    pub fn query(&self) -> Result<bool> {
        if matches!(&*lock(&self.recorded), Recorded::Never) {
            return Ok(false);
        }
        let (mark, clock) = self.mark()?;
        let reached = mark.when().is_some();
        if reached {
            lock(&emulator().known).join(&clock);
        }
        Ok(reached)
    }

    /// When its point was reached.
    ///
    /// # Errors
    /// 107000 for an event without a time, or whose point is not reached.
    pub fn time(&self) -> Result<Instant> {
        if self.flags & EVENT_TIME_LINE == 0 {
            return Err(
                status::PARAMETER.breach("the event was created without ACL_EVENT_TIME_LINE")
            );
        }
        let (mark, _) = self.mark()?;
        mark.when()
            .ok_or_else(|| status::PARAMETER.breach("the event's point is not reached yet"))
    }
}
