//! Streams with threads of their own, and events.
//!
//! Work of a stream runs in order on the stream's thread, at its own time: nothing orders two streams but events and the default stream's
//! rules. A short random pause before some pieces of work makes sure that what happens to work only in one order fails.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::graph::Capture;
use super::state::{Context, driver, lock};
use super::status::{self, Result};
use super::work::{self, Work};

/// A moment in a stream.
#[derive(Debug, Default)]
pub struct Mark {
    reached: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Mark {
    /// When the stream got there, if it did.
    pub fn reached(&self) -> Option<Instant> {
        *lock(&self.reached)
    }

    /// The stream is there.
    pub fn reach(&self) {
        *lock(&self.reached) = Some(Instant::now());
        self.changed.notify_all();
    }

    /// Waits until the stream is there.
    pub fn wait(&self) {
        let mut reached = lock(&self.reached);
        while reached.is_none() {
            reached = self
                .changed
                .wait(reached)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Where an event was last recorded.
#[derive(Clone, Debug, Default)]
pub enum Recorded {
    /// Nowhere yet.
    #[default]
    Never,
    /// In a stream.
    At(Arc<Mark>),
    /// In a stream that was being captured: after these nodes.
    Captured(Arc<Capture>, Vec<usize>),
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// The context it belongs to.
    pub context: usize,
    /// Whether it takes the time.
    pub timing: bool,
    /// Where it was last recorded.
    pub recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    running: bool,
    worker: bool,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its handle; 0 for a default stream.
    pub handle: usize,
    /// Whether the default stream and it wait for each other.
    pub blocking: bool,
    /// Its priority.
    pub priority: i32,
    context: Weak<Context>,
    context_handle: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The capture it is in, and the nodes that its next one comes after.
    pub capture: Mutex<Option<(Arc<Capture>, Vec<usize>)>>,
}

impl Stream {
    /// A stream of a context.
    pub fn new(
        context: &Arc<Context>,
        handle: usize,
        blocking: bool,
        priority: i32,
    ) -> Arc<Stream> {
        Arc::new(Stream {
            handle,
            blocking,
            priority,
            context: Arc::downgrade(context),
            context_handle: context.handle,
            queue: Mutex::default(),
            changed: Condvar::new(),
            capture: Mutex::default(),
        })
    }

    /// Its context.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` where that was destroyed, or what it was lost with.
    pub fn context(&self) -> Result<Arc<Context>> {
        let context = self.context.upgrade().ok_or(status::INVALID_CONTEXT)?;
        context.check()?;
        Ok(context)
    }

    /// The handle of its context.
    pub fn context_handle(&self) -> usize {
        self.context_handle
    }

    /// Whether it is being captured.
    pub fn is_capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    /// Enqueues work, or makes it a node of the graph that is being captured.
    ///
    /// # Errors
    /// The context's, or the capture's.
    pub fn enqueue(self: &Arc<Self>, work: Work) -> Result<()> {
        let context = self.context()?;
        if let Some((capture, after)) = &mut *lock(&self.capture) {
            *after = vec![capture.add(work, after.clone())?];
            return Ok(());
        }
        if self.handle == 0 {
            for other in context.streams() {
                if other.blocking && other.is_busy() && !other.is_capturing() {
                    let mark = Arc::new(Mark::default());
                    other.push(Work::Mark(Arc::clone(&mark)));
                    self.push(Work::Wait(mark));
                }
            }
        } else if self.blocking {
            let default = context.default_stream();
            if default.is_busy() {
                let mark = Arc::new(Mark::default());
                default.push(Work::Mark(Arc::clone(&mark)));
                self.push(Work::Wait(mark));
            }
        }
        self.push(work);
        Ok(())
    }

    fn push(self: &Arc<Self>, work: Work) {
        let mut queue = lock(&self.queue);
        queue.waiting.push_back(work);
        if !queue.worker {
            queue.worker = true;
            let stream = Arc::clone(self);
            // The thread ends when there is nothing left to do.
            let spawned = std::thread::Builder::new()
                .name("emulated stream".into())
                .spawn(move || stream.run());
            if spawned.is_err() {
                queue.worker = false;
                queue.waiting.clear();
                if let Some(context) = self.context.upgrade() {
                    context.lose(status::UNKNOWN);
                }
            }
        }
        self.changed.notify_all();
    }

    fn is_busy(&self) -> bool {
        let queue = lock(&self.queue);
        queue.running || !queue.waiting.is_empty()
    }

    /// Runs what is enqueued, in order.
    fn run(&self) {
        /// How long a thread waits for more before it ends.
        const PATIENCE: Duration = Duration::from_millis(100);
        let mut random =
            crate::interpret::launch::Random::new(driver().settings.seed ^ self.handle as u64);
        loop {
            let mut queue = lock(&self.queue);
            queue.running = false;
            self.changed.notify_all();
            if queue.waiting.is_empty() {
                let waited = self
                    .changed
                    .wait_timeout_while(queue, PATIENCE, |queue| queue.waiting.is_empty());
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let Some(work) = queue.waiting.pop_front() else {
                queue.worker = false;
                return;
            };
            queue.running = true;
            drop(queue);
            if random.draw().is_multiple_of(8) {
                std::thread::sleep(Duration::from_micros(random.draw() % 200));
            }
            if let Some(context) = self.context.upgrade() {
                // What is left of a lost context is not run, but for what others wait for.
                if (context.check().is_ok() || work.is_order())
                    && let Err(status) = work::run(&work, &context)
                {
                    context.lose(status);
                }
            } else if work.is_order() {
                work::reach(&work);
            }
        }
    }

    /// Waits until what is enqueued now is done.
    pub fn drain(&self) {
        let mut queue = lock(&self.queue);
        while queue.running || !queue.waiting.is_empty() {
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until what is enqueued now is done.
    ///
    /// # Errors
    /// What the context was lost with; `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` while it is captured.
    pub fn synchronize(&self) -> Result<()> {
        self.forbid_capture()?;
        let context = self.context()?;
        if self.handle == 0 {
            for other in context.streams() {
                if other.blocking {
                    other.drain();
                }
            }
        }
        self.drain();
        context.check()
    }

    /// Fails, and spoils the capture, if there is one.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    pub fn forbid_capture(&self) -> Result<()> {
        match &*lock(&self.capture) {
            Some((capture, _)) => {
                capture.spoiled.store(true, Ordering::Relaxed);
                Err(status::STREAM_CAPTURE_UNSUPPORTED)
            }
            None => Ok(()),
        }
    }

    /// Whether everything is done.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_READY`, or what the context was lost with.
    pub fn query(&self) -> Result<()> {
        self.forbid_capture()?;
        self.context()?;
        if self.is_busy() {
            Err(status::NOT_READY)
        } else {
            Ok(())
        }
    }

    /// Records an event.
    ///
    /// # Errors
    /// As [`Stream::enqueue`].
    pub fn record(self: &Arc<Self>, event: &Event) -> Result<()> {
        let captured = lock(&self.capture)
            .as_ref()
            .map(|(capture, after)| (Arc::clone(capture), after.clone()));
        if let Some((capture, after)) = captured {
            *lock(&event.recorded) = Recorded::Captured(capture, after);
            return Ok(());
        }
        let mark = Arc::new(Mark::default());
        self.enqueue(Work::Mark(Arc::clone(&mark)))?;
        *lock(&event.recorded) = Recorded::At(mark);
        Ok(())
    }

    /// Makes later work wait for an event. A stream that waits for one of a capture joins that capture.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_MERGE` for an event of another capture, `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` for one that was recorded
    /// outside.
    pub fn wait(self: &Arc<Self>, event: &Event) -> Result<()> {
        match lock(&event.recorded).clone() {
            Recorded::Never => Ok(()),
            Recorded::At(mark) => {
                self.forbid_capture()?;
                self.enqueue(Work::Wait(mark))
            }
            Recorded::Captured(other, nodes) => {
                let mut capture = lock(&self.capture);
                match &mut *capture {
                    Some((own, _)) if !Arc::ptr_eq(own, &other) => {
                        Err(status::STREAM_CAPTURE_MERGE)
                    }
                    Some((_, after)) => {
                        after.extend(nodes);
                        after.sort_unstable();
                        after.dedup();
                        Ok(())
                    }
                    None if other.ended() => Err(status::INVALID_VALUE),
                    None => {
                        *capture = Some((other, nodes));
                        Ok(())
                    }
                }
            }
        }
    }
}
