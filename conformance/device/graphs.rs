//! Graphs: plans recorded once and submitted as one.

use std::sync::Arc;

use ropeway_core::DType;
use ropeway_core::device::{Device, QueueKind};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::BoundPlan;

use super::probe::{self, Vector, step};
use super::{Ended, Outcome, TIMEOUT, ensure};

fn bound(device: &dyn Device, vector: &Vector, map: (u32, u32)) -> ropeway_core::Result<BoundPlan> {
    Ok(BoundPlan {
        executable: probe::compile(device, probe::affine_plan(300, map.0, map.1))?,
        operands: vec![vector.view.clone()],
        workspace: None,
    })
}

fn apply(values: &mut [u32], map: (u32, u32)) {
    for value in values {
        *value = step(*value, map.0, map.1);
    }
}

/// Each replay runs the plans in order, after what the queue was given before.
pub(super) fn replay(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let mut host: Vec<u32> = (0..300).collect();
    let vector = Vector::new(&**device, &*queue, &host)?;
    let maps = [(3, 1), (5, 7), (11, 2)];
    let plans = maps
        .iter()
        .map(|&map| bound(&**device, &vector, map))
        .collect::<ropeway_core::Result<Vec<_>>>()?;
    let graph = device.instantiate(plans)?;
    for round in 0..20 {
        queue.replay(&*graph)?;
        for map in maps {
            apply(&mut host, map);
        }
        if round % 5 == 4 {
            queue.fill(&vector.view.bytes(), round as u8)?;
            host.fill(u32::from_le_bytes([round as u8; 4]));
        }
    }
    queue.replay(&*graph)?;
    for map in maps {
        apply(&mut host, map);
    }
    ensure!(
        vector.read(&*queue)? == host,
        "21 replays of three plans differ from the same launches one by one"
    );
    Ok(())
}

/// Another view for an operand, also one of fewer rows, holds for later replays and not for those already enqueued.
pub(super) fn rebind(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let start: Vec<u32> = (0..300).collect();
    let (a, b) = (
        Vector::new(&**device, &*queue, &start)?,
        Vector::new(&**device, &*queue, &start)?,
    );
    let graph = device.instantiate(vec![
        bound(&**device, &a, (3, 1))?,
        bound(&**device, &a, (5, 7))?,
    ])?;
    queue.replay(&*graph)?;
    graph.rebind(1, &[(0, b.view.clone())])?;
    queue.replay(&*graph)?;
    let fewer = TensorDesc::contiguous(DType::I32, &[100])?;
    graph.rebind(1, &[(0, b.view.buffer().view(fewer, b.view.offset())?)])?;
    queue.replay(&*graph)?;
    let (mut host_a, mut host_b) = (start.clone(), start);
    apply(&mut host_a, (3, 1));
    apply(&mut host_a, (5, 7));
    apply(&mut host_a, (3, 1));
    apply(&mut host_b, (5, 7));
    apply(&mut host_a, (3, 1));
    apply(&mut host_b[..100], (5, 7));
    ensure!(
        a.read(&*queue)? == host_a && b.read(&*queue)? == host_b,
        "after a rebind the replays ran on other views than they were given"
    );
    Ok(())
}

/// A view that the plan does not admit, or a plan or operand that is not there, is refused; the graph stays as it was.
pub(super) fn wrong_rebind(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let mut host = vec![1; 300];
    let vector = Vector::new(&**device, &*queue, &host)?;
    let long = Vector::new(&**device, &*queue, &[0; 301])?;
    let graph = device.instantiate(vec![bound(&**device, &vector, (3, 1))?])?;
    for (what, result) in [
        (
            "a view of too many rows",
            graph.rebind(0, &[(0, long.view.clone())]),
        ),
        (
            "an operand that is not there",
            graph.rebind(0, &[(1, vector.view.clone())]),
        ),
        (
            "a plan that is not there",
            graph.rebind(1, &[(0, vector.view.clone())]),
        ),
    ] {
        super::refused(result, what)?;
    }
    queue.replay(&*graph)?;
    apply(&mut host, (3, 1));
    if device.info().execution == ropeway_core::info::Execution::Recorded {
        return Ok(());
    }
    ensure!(
        vector.read(&*queue)? == host,
        "a refused rebind changed the graph"
    );
    Ok(())
}

/// A graph keeps alive what it uses, and may be dropped while a replay of it is queued.
pub(super) fn dropped_while_queued(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let before = device.memory()?.used;
    let pinned = device.alloc_pinned(1200)?;
    let download = {
        let vector = Vector::new(&**device, &*queue, &[1; 300])?;
        let slice = vector.view.bytes();
        let graph = device.instantiate(vec![bound(&**device, &vector, (3, 1))?])?;
        drop(vector);
        queue.replay(&*graph)?;
        queue.replay(&*graph)?;
        drop(graph);
        queue.download(&slice, pinned)?
    };
    let pinned = download.finish()?;
    ensure!(
        probe::numbers(pinned.bytes()) == [13; 300],
        "a dropped graph took its work with it"
    );
    drop(pinned);
    queue.synchronize(Some(TIMEOUT))?;
    let after = device.memory()?.used;
    ensure!(
        after <= before,
        "{after} bytes in use after the graph was dropped, {before} before"
    );
    Ok(())
}

/// An empty graph is a graph.
pub(super) fn empty(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let graph = device.instantiate(Vec::new()).map_err(Ended::from)?;
    queue.replay(&*graph)?;
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}
