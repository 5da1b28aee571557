//! What backends share whose work is over when an event of somebody else's runtime says so: waiting with a limit, what must outlive the work
//! before an event, and the memory that uploads pass through.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ropeway_core::{Error, ErrorKind, Result};

/// A point in a stream's work, by a runtime's event.
pub(crate) trait Moment {
    /// Whether all work before it is over.
    ///
    /// # Errors
    /// What became of that work, if it failed: it is over, too.
    fn is_done(&self) -> Result<bool>;

    /// Waits until then.
    ///
    /// # Errors
    /// As [`Moment::is_done`].
    fn wait(&self) -> Result<()>;

    /// Whether the device may still use what the work before it uses. After a failure it does not.
    fn is_ahead(&self) -> bool {
        matches!(self.is_done(), Ok(false))
    }
}

/// Waits for a moment. The runtimes have no wait with a limit, so one with a limit looks again and again: at first often, since most work is
/// short, then each millisecond.
///
/// # Errors
/// `Timeout`, and as [`Moment::is_done`].
pub(crate) fn wait(moment: &impl Moment, timeout: Option<Duration>) -> Result<()> {
    let Some(timeout) = timeout else {
        return moment.wait();
    };
    let begin = Instant::now();
    loop {
        if moment.is_done()? {
            return Ok(());
        }
        let waited = begin.elapsed();
        if waited >= timeout {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("not done after {timeout:?}"),
            ));
        }
        let pause = (waited / 8).clamp(Duration::from_micros(10), Duration::from_millis(1));
        std::thread::sleep(pause.min(timeout - waited));
    }
}

/// What must outlive the work before a moment, and the moment itself. What is in use when the list goes is leaked: better than freed.
pub(crate) struct Retired<M: Moment>(Mutex<Vec<Entry<M>>>);

struct Entry<M: Moment> {
    until: Option<Arc<M>>,
    kept: Option<Box<dyn Any + Send>>,
}

impl<M: Moment> Default for Retired<M> {
    fn default() -> Retired<M> {
        Retired(Mutex::default())
    }
}

impl<M: Moment> Retired<M> {
    /// Drops `kept` at the first [`Retired::sweep`] after `until` is done.
    pub(crate) fn retire(&self, until: Arc<M>, kept: Box<dyn Any + Send>) {
        lock(&self.0).push(Entry {
            until: Some(until),
            kept: Some(kept),
        });
    }

    /// Drops what is over. An owner's drop is foreign code, and a buffer's may come back here, so no lock may be held.
    pub(crate) fn sweep(&self) {
        let mut entries = lock(&self.0);
        let over: Vec<Entry<M>> = entries.extract_if(.., |entry| !entry.is_in_use()).collect();
        drop(entries);
        drop(over);
    }

    /// Entries that were not swept.
    #[cfg(feature = "ascend")]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether the device may still use something of it.
    #[cfg(any(feature = "cuda", feature = "ascend"))]
    pub(crate) fn is_in_use(&self) -> bool {
        lock(&self.0).iter().any(Entry::is_in_use)
    }
}

impl<M: Moment> Entry<M> {
    fn is_in_use(&self) -> bool {
        self.until.as_ref().is_some_and(|until| until.is_ahead())
    }
}

impl<M: Moment> Drop for Entry<M> {
    fn drop(&mut self) {
        if self.is_in_use() {
            std::mem::forget(self.kept.take());
            std::mem::forget(self.until.take());
        }
    }
}

/// Memory that holds an upload's data until the device has it.
#[cfg(any(feature = "cuda", feature = "ascend"))]
pub(crate) struct StagingBlock<T, M> {
    pub(crate) memory: T,
    /// The copy that reads it.
    pub(crate) until: Option<Arc<M>>,
}

/// A free block, and its place in the list. Where as many as there may be are under way it waits for what began first.
///
/// # Errors
/// What the work before can fail with, and what a new block's memory can.
#[cfg(any(feature = "cuda", feature = "ascend"))]
pub(crate) fn staging_block<T, M: Moment>(
    blocks: &mut Vec<StagingBlock<T, M>>,
    most: usize,
    memory: impl FnOnce() -> Result<T>,
) -> Result<usize> {
    for block in blocks.iter_mut() {
        if let Some(until) = &block.until
            && until.is_done()?
        {
            block.until = None;
        }
    }
    if let Some(free) = blocks.iter().position(|block| block.until.is_none()) {
        return Ok(free);
    }
    if blocks.len() < most {
        blocks.push(StagingBlock {
            memory: memory()?,
            until: None,
        });
        return Ok(blocks.len() - 1);
    }
    // Blocks are used in turn, so the first in the list began first.
    blocks.rotate_left(1);
    let last = blocks.len() - 1;
    if let Some(until) = &blocks[last].until {
        until.wait()?;
        blocks[last].until = None;
    }
    Ok(last)
}

/// A number that no list of kept memory has had.
pub(crate) fn next_epoch() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The contents of a mutex, whoever panicked with it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Default)]
    struct Hand(AtomicBool);

    impl Moment for Hand {
        fn is_done(&self) -> Result<bool> {
            Ok(self.0.load(Ordering::Relaxed))
        }

        fn wait(&self) -> Result<()> {
            self.0.store(true, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn a_wait_ends_with_its_limit_or_with_the_work() {
        let moment = Hand::default();
        let limit = Some(Duration::from_millis(2));
        assert_eq!(wait(&moment, limit).unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(wait(&moment, None), Ok(()));
        assert_eq!(wait(&moment, limit), Ok(()));
    }

    #[test]
    fn what_is_retired_goes_after_its_moment_and_never_before() {
        let (kept, moment) = (Arc::new(()), Arc::new(Hand::default()));
        let retired = Retired::default();
        retired.retire(moment.clone(), Box::new(kept.clone()));
        retired.sweep();
        assert_eq!(Arc::strong_count(&kept), 2);
        moment.wait().unwrap();
        retired.sweep();
        assert_eq!(Arc::strong_count(&kept), 1);
        let moment = Arc::new(Hand::default());
        retired.retire(moment.clone(), Box::new(kept.clone()));
        drop(retired);
        assert_eq!(Arc::strong_count(&kept), 2, "leaked, not freed");
        assert_eq!(Arc::strong_count(&moment), 2);
    }

    #[cfg(any(feature = "cuda", feature = "ascend"))]
    #[test]
    fn blocks_are_used_again_and_are_no_more_than_said() {
        let mut blocks = Vec::new();
        let mut made = 0;
        let mut next = |blocks: &mut Vec<StagingBlock<u32, Hand>>| {
            let place = staging_block(blocks, 2, || {
                made += 1;
                Ok(made)
            });
            let block = &mut blocks[place.unwrap()];
            assert!(block.until.is_none());
            block.until = Some(Arc::new(Hand::default()));
            block.memory
        };
        assert_eq!([next(&mut blocks), next(&mut blocks)], [1, 2]);
        // All are under way: the one that began first is waited for.
        assert_eq!([next(&mut blocks), next(&mut blocks)], [1, 2]);
        for block in &blocks {
            block.until.as_ref().unwrap().wait().unwrap();
        }
        assert_eq!(next(&mut blocks), 1);
    }
}
