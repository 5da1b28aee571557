//! Copies: host to device, device to host, within the device, fills.

use std::sync::Arc;

use ropeway_core::ErrorKind;
use ropeway_core::device::{Device, Queue, QueueKind};
use ropeway_core::memory::Buffer;
use ropeway_core::spec::Random;

use super::probe::Busy;
use super::{Outcome, TIMEOUT, ensure, refused};

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn read(queue: &dyn Queue, buffer: &Buffer) -> ropeway_core::Result<Vec<u8>> {
    let mut bytes = vec![0; buffer.size() as usize];
    queue.read_blocking(&buffer.all(), &mut bytes)?;
    Ok(bytes)
}

/// Sizes and offsets that are no multiple of anything, on both kinds of queue; what lies around stays.
pub(super) fn round_trip(device: &Arc<dyn Device>) -> Outcome {
    for kind in [QueueKind::Compute, QueueKind::Transfer] {
        let queue = device.create_queue(kind)?;
        for len in [0, 1, 3, 4, 255, 4096, 65_537, (1 << 20) + 13] {
            for offset in [0, 1, 7, 4096] {
                let buffer = device.alloc(offset + len + 5)?;
                let mut expected = noise(1, buffer.size());
                queue.upload(&buffer.all(), &expected)?;
                let part = noise(len ^ offset, len);
                queue.upload(&buffer.slice(offset, len)?, &part)?;
                expected[offset as usize..(offset + len) as usize].copy_from_slice(&part);
                ensure!(
                    read(&*queue, &buffer)? == expected,
                    "an upload of {len} bytes at offset {offset} did not arrive as sent ({kind:?})"
                );
                let mut part = vec![0; len as usize];
                queue.read_blocking(&buffer.slice(offset, len)?, &mut part)?;
                ensure!(
                    part == expected[offset as usize..(offset + len) as usize],
                    "a read of {len} bytes at offset {offset} differs ({kind:?})"
                );
            }
        }
    }
    Ok(())
}

/// `upload` has taken the data over when it returns: the host may change it at once.
pub(super) fn upload_takes_over(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 20)?;
    for len in [16, 4096, 1 << 20] {
        let buffer = device.alloc(len)?;
        let expected = noise(len, len);
        let mut data = expected.clone();
        busy.enqueue(&*queue)?;
        queue.upload(&buffer.all(), &data)?;
        data.fill(0xee);
        drop(data);
        ensure!(
            read(&*queue, &buffer)? == expected,
            "an upload of {len} bytes behind other work saw what the host did to its data later"
        );
    }
    ensure!(
        busy.ran(&*queue, 3)?,
        "the work before the uploads did not run"
    );
    Ok(())
}

/// Downloads into pinned memory: after earlier work, into room that may be larger.
pub(super) fn download(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let expected = noise(3, 70_001);
    let buffer = device.alloc(70_001)?;
    queue.upload(&buffer.all(), &expected)?;
    let mut pinned = device.alloc_pinned(70_011)?;
    pinned.bytes_mut().fill(0xcd);
    let part = buffer.slice(1, 70_000)?;
    let download = queue.download(&part, pinned)?;
    // Later work must not reach into the copy.
    queue.fill(&buffer.all(), 0)?;
    let pinned = download.finish()?;
    ensure!(
        pinned.bytes()[..70_000] == expected[1..],
        "a download differs from what was on the device when it was enqueued"
    );
    ensure!(
        pinned.bytes()[70_000..].iter().all(|&byte| byte == 0xcd),
        "a download wrote past its size"
    );
    let small = device.alloc_pinned(10)?;
    refused(
        queue.download(&part, small),
        "a download into too little room",
    )?;
    Ok(())
}

/// A download that nobody waits for is waited for when it is dropped.
pub(super) fn download_dropped(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let busy = Busy::new(&**device, &*queue, 10)?;
    let buffer = device.alloc(1 << 16)?;
    queue.fill(&buffer.all(), 5)?;
    for _ in 0..3 {
        busy.enqueue(&*queue)?;
        drop(queue.download(&buffer.all(), device.alloc_pinned(1 << 16)?)?);
    }
    ensure!(busy.ran(&*queue, 3)?, "work was lost");
    Ok(())
}

/// Copies within the device: between buffers, and within one where they do not overlap.
pub(super) fn within_device(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let (a, b) = (device.alloc(10_000)?, device.alloc(10_000)?);
    let content = noise(4, 10_000);
    queue.upload(&a.all(), &content)?;
    queue.fill(&b.all(), 0)?;
    queue.copy(&a.slice(13, 5_001)?, &b.slice(3, 5_001)?)?;
    let mut expected = vec![0; 10_000];
    expected[3..5_004].copy_from_slice(&content[13..5_014]);
    ensure!(
        read(&*queue, &b)? == expected,
        "a copy between buffers differs"
    );
    // Touching is not overlapping.
    queue.copy(&a.slice(0, 5_000)?, &a.slice(5_000, 5_000)?)?;
    let half = [&content[..5_000], &content[..5_000]].concat();
    ensure!(read(&*queue, &a)? == half, "a copy within a buffer differs");
    refused(
        queue.copy(&a.slice(0, 100)?, &a.slice(99, 100)?),
        "a copy onto itself",
    )?;
    refused(
        queue.copy(&a.slice(0, 100)?, &b.slice(0, 99)?),
        "a copy between different lengths",
    )?;
    ensure!(
        read(&*queue, &a)? == half,
        "a refused copy changed the buffer"
    );
    Ok(())
}

/// A fill sets its bytes and no others.
pub(super) fn fill(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let buffer = device.alloc(1_000)?;
    let mut expected = noise(5, 1_000);
    queue.upload(&buffer.all(), &expected)?;
    for (offset, len, byte) in [
        (0, 1, 1),
        (3, 5, 2),
        (17, 400, 0),
        (999, 1, 255),
        (500, 0, 9),
    ] {
        queue.fill(&buffer.slice(offset, len)?, byte)?;
        expected[offset as usize..(offset + len) as usize].fill(byte);
        ensure!(
            read(&*queue, &buffer)? == expected,
            "a fill of {len} bytes at offset {offset} differs"
        );
    }
    Ok(())
}

/// Lengths that do not fit are named, on every device.
pub(super) fn wrong_lengths(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let buffer = device.alloc(100)?;
    refused(
        queue.upload(&buffer.all(), &[0; 99]),
        "an upload of too few bytes",
    )?;
    refused(
        queue.upload(&buffer.all(), &[0; 101]),
        "an upload of too many bytes",
    )?;
    refused(
        queue.read_blocking(&buffer.all(), &mut [0; 99]),
        "a read into too few bytes",
    )?;
    for (offset, len) in [(0, 101), (101, 0), (50, 51), (u64::MAX, 1), (1, u64::MAX)] {
        match buffer.slice(offset, len) {
            Ok(_) => ensure!(false, "a slice of {len} bytes at {offset} of 100 was made"),
            Err(error) => ensure!(
                error.kind() == ErrorKind::InvalidArgument,
                "a slice past the end gave {error}"
            ),
        }
    }
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}
