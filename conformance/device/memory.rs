//! Memory: sizes, exhaustion, accounting, life time.

use std::sync::Arc;

use ropeway_core::ErrorKind;
use ropeway_core::device::{Device, QueueKind};

use super::probe::Busy;
use super::{Outcome, TIMEOUT, ensure};

/// No byte is a size like any other.
pub(super) fn zero_bytes(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let (a, b) = (device.alloc(0)?, device.alloc(0)?);
    ensure!(a.size() == 0, "an allocation of 0 bytes has {}", a.size());
    queue.upload(&a.all(), &[])?;
    queue.fill(&a.all(), 1)?;
    queue.copy(&a.all(), &b.all())?;
    queue.read_blocking(&b.all(), &mut [])?;
    let pinned = device.alloc_pinned(0)?;
    ensure!(
        pinned.bytes().is_empty(),
        "pinned memory of 0 bytes has {}",
        pinned.bytes().len()
    );
    queue.download(&a.all(), pinned)?.finish()?;
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}

/// A thousand buffers at once, each with its own content.
pub(super) fn many(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let mut buffers = Vec::new();
    for number in 0..1000u64 {
        let buffer = device.alloc(1 + number * 37 % 5000)?;
        queue.fill(&buffer.all(), (number % 251) as u8)?;
        buffers.push(buffer);
    }
    for (number, buffer) in buffers.iter().enumerate() {
        let mut bytes = vec![0; buffer.size() as usize];
        queue.read_blocking(&buffer.all(), &mut bytes)?;
        ensure!(
            bytes.iter().all(|&byte| byte == (number % 251) as u8),
            "buffer {number} of 1000 does not hold what was written to it"
        );
    }
    Ok(())
}

/// What cannot be had is `OutOfMemory`, and the device goes on.
pub(super) fn out_of_memory(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let before = device.memory()?;
    let too_much = [
        u64::MAX,
        u64::MAX / 2,
        before.total.saturating_mul(2).max(1 << 50),
        device.info().limits.max_buffer.saturating_add(1),
    ];
    for bytes in too_much {
        match device.alloc(bytes) {
            Ok(_) => ensure!(false, "{bytes} bytes were allocated of {}", before.total),
            Err(error) => ensure!(
                error.kind() == ErrorKind::OutOfMemory,
                "{bytes} bytes gave {error}, not out of memory"
            ),
        }
    }
    let after = device.memory()?;
    ensure!(
        after.used == before.used,
        "{} bytes in use after refused allocations, {} before",
        after.used,
        before.used
    );
    let buffer = device.alloc(64)?;
    queue.upload(&buffer.all(), &[7; 64])?;
    let mut bytes = [0; 64];
    queue.read_blocking(&buffer.all(), &mut bytes)?;
    ensure!(bytes == [7; 64], "the device does not work afterwards");
    Ok(())
}

/// The same, on a device that holds no data.
pub(super) fn out_of_memory_is_typed(device: &Arc<dyn Device>) -> Outcome {
    match device.alloc(u64::MAX) {
        Ok(_) => ensure!(false, "2^64 - 1 bytes were allocated"),
        Err(error) => ensure!(
            error.kind() == ErrorKind::OutOfMemory,
            "2^64 - 1 bytes gave {error}, not out of memory"
        ),
    }
    device.alloc(64)?;
    Ok(())
}

/// `used` counts what is allocated, and forgets what is dropped.
pub(super) fn accounting(device: &Arc<dyn Device>) -> Outcome {
    const MIB: u64 = 1 << 20;
    let before = device.memory()?.used;
    let buffers = [device.alloc(3 * MIB)?, device.alloc(5 * MIB)?];
    let clone = buffers[0].clone();
    let held = device.memory()?.used;
    ensure!(
        held >= before + 8 * MIB,
        "{held} bytes in use after allocating {} beside {before}",
        8 * MIB
    );
    drop(buffers);
    let clone_held = device.memory()?.used;
    ensure!(
        clone_held >= before + 3 * MIB && clone_held < held,
        "{clone_held} bytes in use with a clone of 3 MiB alive beside {before}"
    );
    drop(clone);
    let after = device.memory()?.used;
    ensure!(
        after == before,
        "{after} bytes in use after dropping everything, {before} before"
    );
    Ok(())
}

/// A buffer dropped while queued work uses it is freed after that work, not before, and not never.
pub(super) fn dropped_while_queued(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 20)?;
    let target = device.alloc(4096)?;
    let before = device.memory()?.used;
    busy.enqueue(&*queue)?;
    {
        let source = device.alloc(4096)?;
        queue.fill(&source.all(), 0x42)?;
        queue.copy(&source.all(), &target.all())?;
    }
    // A new allocation must not get the memory that queued work still reads.
    let other = device.alloc(4096)?;
    queue.fill(&other.all(), 0x17)?;
    let mut bytes = vec![0; 4096];
    queue.read_blocking(&target.all(), &mut bytes)?;
    ensure!(
        bytes.iter().all(|&byte| byte == 0x42),
        "a buffer was freed before the queued work that read it"
    );
    drop(other);
    ensure!(busy.ran(&*queue, 1)?, "the work before it did not run");
    queue.synchronize(Some(TIMEOUT))?;
    let after = device.memory()?.used;
    ensure!(
        after == before,
        "{after} bytes in use after the work, {before} before: a dropped buffer was kept"
    );
    Ok(())
}

/// Memory may outlive the queue and the handle of the device that made it.
pub(super) fn outlives_its_queue(device: &Arc<dyn Device>) -> Outcome {
    let buffer = device.alloc(256)?;
    let pinned = device.alloc_pinned(256)?;
    let download = {
        let queue = device.create_queue(QueueKind::Compute)?;
        queue.fill(&buffer.all(), 9)?;
        queue.download(&buffer.all(), pinned)?
    };
    let pinned = download.finish()?;
    ensure!(
        pinned.bytes().iter().all(|&byte| byte == 9),
        "work of a dropped queue was lost"
    );
    Ok(())
}

/// Pinned memory is zeroed, of the size asked for, and the host's to write.
pub(super) fn pinned(device: &Arc<dyn Device>) -> Outcome {
    let mut pinned = device.alloc_pinned(100_003)?;
    ensure!(
        pinned.bytes().len() == 100_003,
        "100,003 bytes of pinned memory are {}",
        pinned.bytes().len()
    );
    ensure!(
        pinned.bytes().iter().all(|&byte| byte == 0),
        "pinned memory is not zeroed"
    );
    pinned.bytes_mut()[100_002] = 3;
    ensure!(
        pinned.bytes()[100_002] == 3,
        "a write to pinned memory was lost"
    );
    Ok(())
}

/// What the device says of itself is what planners rely on.
pub(super) fn info(device: &Arc<dyn Device>) -> Outcome {
    let info = device.info();
    ensure!(!info.name.is_empty(), "the device has no name");
    ensure!(
        info.features.is_sorted(),
        "features are not sorted, so `has` cannot find them: {:?}",
        info.features
    );
    ensure!(
        info.limits.base_alignment.is_power_of_two(),
        "base alignment {} is no power of two",
        info.limits.base_alignment
    );
    ensure!(
        info.limits.max_group_size >= 1 && info.limits.max_grid.iter().all(|&n| n >= 1),
        "no launch fits the limits {:?}",
        info.limits
    );
    ensure!(
        !info.languages.is_empty(),
        "the device takes no kernel language"
    );
    ensure!(
        info.selector() == format!("{}:{}", info.backend, info.ordinal),
        "selector {}",
        info.selector()
    );
    let memory = device.memory()?;
    ensure!(
        memory.used <= memory.total,
        "{} bytes in use of {}",
        memory.used,
        memory.total
    );
    Ok(())
}
