//! Events: done or not, waiting with a limit, device time, calls that do not wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ropeway_core::ErrorKind;
use ropeway_core::device::{Device, QueueKind};

use super::probe::Busy;
use super::{Ended, Outcome, TIMEOUT, ensure, refused};

/// An event is not done before its work, and is after a wait; several waiters may wait for one.
pub(super) fn done(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 100)?;
    busy.enqueue(&*queue)?;
    let event = queue.record()?;
    queue.flush()?;
    ensure!(
        !event.is_done()?,
        "an event is done while 100 ms of work before it run"
    );
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| event.wait(Some(TIMEOUT))))
            .collect();
        waiters
            .into_iter()
            .map(|waiter| waiter.join().expect("a waiter does not panic"))
            .collect::<ropeway_core::Result<Vec<()>>>()
    })?;
    ensure!(event.is_done()?, "an event is not done after a wait for it");
    ensure!(busy.ran(&*queue, 1)?, "an event was done before its work");
    Ok(())
}

/// Work that was flushed gets done without anybody waiting for it.
pub(super) fn progress(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 5)?;
    busy.enqueue(&*queue)?;
    let event = queue.record()?;
    queue.flush()?;
    let begin = Instant::now();
    while !event.is_done()? {
        ensure!(
            begin.elapsed() < TIMEOUT,
            "flushed work did not get done by itself"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A wait that passes its limit says so, leaves the work alone, and may be repeated.
pub(super) fn timeout(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 200)?;
    busy.enqueue(&*queue)?;
    let event = queue.record()?;
    let limit = Some(Duration::from_millis(2));
    for (what, waited) in [
        ("an event", event.wait(limit)),
        ("a queue", queue.synchronize(limit)),
    ] {
        match waited {
            Ok(()) => ensure!(false, "{what} with 200 ms of work was done within 2 ms"),
            Err(error) => ensure!(
                error.kind() == ErrorKind::Timeout,
                "a wait for {what} that passed its limit gave {error}"
            ),
        }
    }
    event.wait(Some(TIMEOUT))?;
    queue.synchronize(Some(TIMEOUT))?;
    ensure!(
        busy.ran(&*queue, 1)?,
        "work that was waited for in vain did not run to its end"
    );
    Ok(())
}

/// Enqueueing returns before the work is done.
pub(super) fn enqueue_returns(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 100)?;
    let buffer = device.alloc(1 << 20)?;
    let pinned = device.alloc_pinned(1 << 20)?;
    let data = vec![1; 1 << 20];
    let begin = Instant::now();
    for _ in 0..4 {
        busy.enqueue(&*queue)?;
    }
    queue.upload(&buffer.all(), &data)?;
    queue.fill(&buffer.all(), 2)?;
    let download = queue.download(&buffer.all(), pinned)?;
    queue.record()?;
    queue.flush()?;
    let enqueued = begin.elapsed();
    download.finish()?;
    let done = begin.elapsed();
    ensure!(
        enqueued * 2 < done,
        "enqueueing took {enqueued:?} of the {done:?} that the work took: a call waits for the device"
    );
    Ok(())
}

/// Device time between events grows with the work between them and does not exceed the host's.
pub(super) fn elapsed(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 20)?;
    let begin = Instant::now();
    let events = [0, 1, 4]
        .into_iter()
        .map(|runs| {
            for _ in 0..runs {
                busy.enqueue(&*queue)?;
            }
            queue.record()
        })
        .collect::<ropeway_core::Result<Vec<_>>>()?;
    // Not done yet, or just done: either is sound, but it must not be a number for work that still runs.
    if !events[2].is_done()? {
        let early = events[2].elapsed_since(&*events[1]);
        if !matches!(&early, Err(error) if error.kind() == ErrorKind::Unsupported)
            && !events[2].is_done()?
        {
            refused(early, "the time of an event that is not done")?;
        }
    }
    queue.synchronize(Some(TIMEOUT))?;
    let wall = begin.elapsed();
    let one = events[1].elapsed_since(&*events[0]).map_err(Ended::from)?;
    let four = events[2].elapsed_since(&*events[1])?;
    let all = events[2].elapsed_since(&*events[0])?;
    ensure!(one > Duration::ZERO, "work took no device time");
    ensure!(
        four > one,
        "four times the work took {four:?}, once {one:?}"
    );
    ensure!(
        all <= wall + Duration::from_millis(1),
        "{all:?} of device time in {wall:?} of the host's"
    );
    let sum = one + four;
    let gap = all.abs_diff(sum);
    ensure!(
        gap <= all / 10 + Duration::from_millis(1),
        "device times do not add up: {one:?} and {four:?}, together {all:?}"
    );
    Ok(())
}
