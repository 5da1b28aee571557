//! Events: points in a queue's work.

use std::sync::Arc;
use std::time::Duration;

use ropeway_core::device::Event;

use crate::status::{borrow, entry, release, ropeway_status, write_out};

/// A wait without limit, in place of a number of nanoseconds.
pub const ROPEWAY_NO_TIMEOUT: u64 = u64::MAX;

/// A point in a queue's work.
pub struct ropeway_event {
    pub(crate) event: Arc<dyn Event>,
}

pub(crate) fn limit(timeout_ns: u64) -> Option<Duration> {
    (timeout_ns != ROPEWAY_NO_TIMEOUT).then(|| Duration::from_nanos(timeout_ns))
}

pub(crate) unsafe extern "C" fn event_is_done(
    event: *const ropeway_event,
    done: *mut u32,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the arguments are what the header asks for.
        unsafe {
            let event = borrow(event, "event")?;
            write_out(done, "done", event.event.is_done()?.into())
        }
    })
}

pub(crate) unsafe extern "C" fn event_wait(
    event: *const ropeway_event,
    timeout_ns: u64,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let event = unsafe { borrow(event, "event") }?;
        event.event.wait(limit(timeout_ns))
    })
}

pub(crate) unsafe extern "C" fn event_elapsed(
    earlier: *const ropeway_event,
    later: *const ropeway_event,
    nanoseconds: *mut u64,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handles are null or alive.
        let (earlier, later) = unsafe { (borrow(earlier, "earlier")?, borrow(later, "later")?) };
        let elapsed = later.event.elapsed_since(&*earlier.event)?;
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the place is what the header asks for.
        unsafe { write_out(nanoseconds, "nanoseconds", elapsed) }
    })
}

pub(crate) unsafe extern "C" fn event_release(event: *mut ropeway_event) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(event) }
}
