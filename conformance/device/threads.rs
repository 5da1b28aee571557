//! Several threads on one device at once.

use std::sync::Arc;

use ropeway_core::Result;
use ropeway_core::device::{Device, Queue, QueueKind};
use ropeway_core::spec::Random;

use super::probe::{self, Vector, step};
use super::{Ended, Outcome, ensure};

const THREADS: u64 = 4;

/// Runs `work` in four threads and fails with what any of them found.
fn all(work: impl Fn(u64) -> Result<bool> + Sync, what: &str) -> Outcome {
    let found = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join())
            .collect::<Vec<_>>()
    });
    for (number, found) in found.into_iter().enumerate() {
        match found {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(Ended::Failed(format!("thread {number}: {what}"))),
            Ok(Err(error)) => return Err(Ended::Failed(format!("thread {number}: {error}"))),
            Err(_) => return Err(Ended::Failed(format!("thread {number} panicked"))),
        }
    }
    Ok(())
}

fn rounds(device: &dyn Device, queue: &dyn Queue, thread: u64) -> Result<bool> {
    let mut random = Random::new(thread);
    let (multiplier, addend) = (2 * thread as u32 + 3, thread as u32);
    let executable = probe::compile(device, probe::affine_plan(500, multiplier, addend))?;
    for round in 0..40 {
        let mut host: Vec<u32> = (0..1 + random.below(499))
            .map(|_| random.next() as u32)
            .collect();
        let vector = Vector::new(device, queue, &host)?;
        let repeats = random.below(5);
        for _ in 0..repeats {
            executable.enqueue(queue, std::slice::from_ref(&vector.view), None)?;
            for value in &mut host {
                *value = step(*value, multiplier, addend);
            }
        }
        if round % 3 == 0 {
            queue.record()?.wait(Some(super::TIMEOUT))?;
        }
        if vector.read(queue)? != host {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Each thread with a queue, buffers and modules of its own.
pub(super) fn a_queue_each(device: &Arc<dyn Device>) -> Outcome {
    all(
        |thread| {
            let queue = device.create_queue(QueueKind::Compute)?;
            rounds(&**device, &*queue, thread)
        },
        "results of another thread, or of nobody",
    )
}

/// All threads on one queue: calls are serialised in some order, and each thread's own order holds.
pub(super) fn one_queue(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    all(
        |thread| rounds(&**device, &*queue, thread),
        "a thread's commands on a shared queue lost their order",
    )
}

/// Allocating and freeing from all sides leaves the count where it was.
pub(super) fn allocation(device: &Arc<dyn Device>) -> Outcome {
    let before = device.memory()?.used;
    all(
        |thread| {
            let mut random = Random::new(thread);
            let mut held = Vec::new();
            for _ in 0..300 {
                held.push(device.alloc(random.below(20_000))?);
                if held.len() > 8 {
                    held.swap_remove(random.below(8) as usize);
                }
            }
            Ok(true)
        },
        "",
    )?;
    let after = device.memory()?.used;
    ensure!(
        after == before,
        "{after} bytes in use after four threads freed everything, {before} before"
    );
    Ok(())
}

/// Queues are made, used and dropped without end.
pub(super) fn short_lived_queues(device: &Arc<dyn Device>) -> Outcome {
    all(
        |thread| {
            for round in 0..25 {
                let queue = device.create_queue(QueueKind::Transfer)?;
                let buffer = device.alloc(64)?;
                queue.fill(&buffer.all(), (thread * 25 + round) as u8)?;
                let mut bytes = [0; 64];
                queue.read_blocking(&buffer.all(), &mut bytes)?;
                if bytes != [(thread * 25 + round) as u8; 64] {
                    return Ok(false);
                }
            }
            Ok(true)
        },
        "a fill of a new queue did not arrive",
    )
}
