//! Order: by the calls within a queue, by events between queues.

use std::sync::Arc;

use ropeway_core::device::{Device, Queue, QueueKind};
use ropeway_core::memory::{Buffer, TensorDesc};
use ropeway_core::plan::Executable;
use ropeway_core::spec::Random;
use ropeway_core::{DType, Result};

use super::probe::{self, Busy, Vector, step};
use super::{Outcome, TIMEOUT, ensure};

/// Launches, fills, copies and uploads interleaved at random: each sees what came before it and nothing that came after.
pub(super) fn in_a_queue(device: &Arc<dyn Device>) -> Outcome {
    const N: usize = 1000;
    let queue = device.create_queue(QueueKind::Compute)?;
    let maps: [(u32, u32); 3] = [(3, 1), (5, 7), (0xffff_ffff, 11)];
    let executables = maps
        .iter()
        .map(|&(m, a)| probe::compile(&**device, probe::affine_plan(N as u64, m, a)))
        .collect::<Result<Vec<Arc<Executable>>>>()?;
    let mut random = Random::new(7);
    let mut host: Vec<Vec<u32>> = (0..3)
        .map(|_| (0..N).map(|_| random.next() as u32).collect())
        .collect();
    let vectors = host
        .iter()
        .map(|values| Vector::new(&**device, &*queue, values))
        .collect::<Result<Vec<_>>>()?;
    for round in 0..300 {
        let (target, source) = (random.below(3) as usize, random.below(3) as usize);
        match random.below(6) {
            0 => {
                let byte = random.next() as u8;
                queue.fill(&vectors[target].view.bytes(), byte)?;
                host[target].fill(u32::from_le_bytes([byte; 4]));
            }
            1 => {
                let values: Vec<u32> = (0..N).map(|_| random.next() as u32).collect();
                queue.upload(&vectors[target].view.bytes(), &probe::bytes(&values))?;
                host[target] = values;
            }
            2 if target != source => {
                queue.copy(&vectors[source].view.bytes(), &vectors[target].view.bytes())?;
                host[target] = host[source].clone();
            }
            _ => {
                let map = random.below(3) as usize;
                let view = std::slice::from_ref(&vectors[target].view);
                executables[map].enqueue(&*queue, view, None)?;
                for value in &mut host[target] {
                    *value = step(*value, maps[map].0, maps[map].1);
                }
            }
        }
        if round % 100 == 99 {
            queue.flush()?;
        }
    }
    for (number, vector) in vectors.iter().enumerate() {
        ensure!(
            vector.read(&*queue)? == host[number],
            "vector {number} differs after 300 commands in order"
        );
    }
    Ok(())
}

/// Two queues hand a vector back and forth, each behind the other's event; neither host thread waits.
pub(super) fn between_queues(device: &Arc<dyn Device>) -> Outcome {
    let queues = [
        device.create_queue(QueueKind::Compute)?,
        device.create_queue(QueueKind::Compute)?,
    ];
    let maps: [(u32, u32); 2] = [(3, 1), (5, 7)];
    let executables = maps
        .iter()
        .map(|&(m, a)| probe::compile(&**device, probe::affine_plan(64, m, a)))
        .collect::<Result<Vec<_>>>()?;
    let mut host = [1u32; 64];
    let busy = Busy::new(&**device, &*queues[0], 5)?;
    let vector = Vector::new(&**device, &*queues[0], &host)?;
    busy.enqueue(&*queues[0])?;
    for round in 0..60 {
        let side = round % 2;
        let view = std::slice::from_ref(&vector.view);
        executables[side].enqueue(&*queues[side], view, None)?;
        let event = queues[side].record()?;
        queues[1 - side].wait(&event)?;
        for value in &mut host {
            *value = step(*value, maps[side].0, maps[side].1);
        }
    }
    ensure!(
        vector.read(&*queues[0])? == host,
        "work of two queues did not follow their events"
    );
    ensure!(busy.ran(&*queues[0], 1)?, "the first work did not run");
    Ok(())
}

/// One queue feeds two, whose results a fourth joins; copies take part as launches do.
pub(super) fn diamond(device: &Arc<dyn Device>) -> Outcome {
    const N: usize = 4096;
    let queues = (0..4)
        .map(|_| device.create_queue(QueueKind::Compute))
        .collect::<Result<Vec<_>>>()?;
    let double = probe::compile(&**device, probe::affine_plan(N as u64, 2, 0))?;
    let triple = probe::compile(&**device, probe::affine_plan(N as u64, 3, 5))?;
    let desc = TensorDesc::contiguous(DType::I32, &[N as u64])?;
    let host: Vec<u32> = (0..N as u32).collect();
    for _ in 0..10 {
        let make = || -> Result<Buffer> { device.alloc(desc.span_bytes()?) };
        let (left, right, joined) = (make()?, make()?, device.alloc(2 * desc.span_bytes()?)?);
        let source = Vector::new(&**device, &*queues[0], &host)?;
        double.enqueue(&*queues[0], std::slice::from_ref(&source.view), None)?;
        let fed = queues[0].record()?;
        for (queue, side, executable) in
            [(&queues[1], &left, &double), (&queues[2], &right, &triple)]
        {
            queue.wait(&fed)?;
            queue.copy(&source.view.bytes(), &side.all())?;
            executable.enqueue(&**queue, &[side.view(desc, 0)?], None)?;
            queues[3].wait(&queue.record()?)?;
        }
        let half = left.size();
        queues[3].copy(&left.all(), &joined.slice(0, half)?)?;
        queues[3].copy(&right.all(), &joined.slice(half, half)?)?;
        let mut bytes = vec![0; joined.size() as usize];
        queues[3].read_blocking(&joined.all(), &mut bytes)?;
        let found = probe::numbers(&bytes);
        ensure!(
            found[..N].iter().zip(&host).all(|(f, h)| *f == h * 4)
                && found[N..].iter().zip(&host).all(|(f, h)| *f == h * 6 + 5),
            "a queue did not wait for both of the queues it joins"
        );
    }
    Ok(())
}

/// A queue that waits for an event that is already done, or for its own, goes on.
pub(super) fn waits_that_are_over(device: &Arc<dyn Device>) -> Outcome {
    let (a, b) = (
        device.create_queue(QueueKind::Compute)?,
        device.create_queue(QueueKind::Transfer)?,
    );
    let event = a.record()?;
    event.wait(Some(TIMEOUT))?;
    a.wait(&event)?;
    b.wait(&event)?;
    drop(event);
    for queue in [&a, &b] as [&Arc<dyn Queue>; 2] {
        queue.synchronize(Some(TIMEOUT))?;
    }
    Ok(())
}
