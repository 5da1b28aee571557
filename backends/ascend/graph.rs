//! Graphs: bound plans, captured from a stream of their own into a model runtime instance and run as one. Where the runtime lacks capture, or
//! refuses the work, they are enqueued one by one.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use ropeway_core::device::{Graph, Queue};
use ropeway_core::memory::Buffer;
use ropeway_core::plan::BoundPlan;
use ropeway_core::{ErrorKind, Result, View};

use super::device::Shared;
use super::handles::{RawGraph, RawStream};
use super::queue::{AscendQueue, StatusWord};
use crate::loop_graph::LoopGraph;

/// What one capture gave. A replay keeps it until it is done, also when the graph is bound anew meanwhile.
pub(super) struct Captured {
    // Dropped in this order: the instance refers to the memory.
    pub(super) graph: RawGraph,
    /// The word that its launches set where they meet values out of range.
    pub(super) status: Arc<StatusWord>,
    /// What its launches use.
    _buffers: Vec<Buffer>,
}

pub(super) struct AscendGraph {
    pub(super) shared: Arc<Shared>,
    /// The plans, checked, and bound as the next replay shall have them.
    plans: LoopGraph,
    captured: Mutex<Option<Arc<Captured>>>,
}

impl AscendGraph {
    pub(super) fn new(shared: Arc<Shared>, plans: Vec<BoundPlan>) -> Result<AscendGraph> {
        let is_empty = plans.is_empty();
        let plans = LoopGraph::new(shared.id, plans)?;
        let captured = match is_empty || !shared.gate.api.captures() {
            true => None,
            false => capture(&shared, &plans)?,
        };
        Ok(AscendGraph {
            shared,
            plans,
            captured: Mutex::new(captured),
        })
    }

    /// As it is bound now, if it could be captured.
    pub(super) fn captured(&self) -> Option<Arc<Captured>> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.clone()
    }

    /// Enqueues the plans one by one.
    pub(super) fn replay_plans(&self, queue: &dyn Queue) -> Result<()> {
        self.plans.replay(queue)
    }
}

/// Enqueues the plans into a stream that keeps them instead of running them; `None` if the runtime does not capture such work.
fn capture(shared: &Arc<Shared>, plans: &LoopGraph) -> Result<Option<Arc<Captured>>> {
    let note = |error| shared.note(error);
    let stream = RawStream::new(shared.gate).map_err(note)?;
    let queue = AscendQueue::new(shared.clone(), stream, None).map_err(note)?;
    if let Err(error) = queue.raw().begin_capture() {
        return refused(note(error));
    }
    let enqueued = plans.replay(&queue);
    // Ended in any case: a stream in capture takes no other work.
    let graph = queue.raw().end_capture().map_err(note);
    if let Err(error) = enqueued {
        return refused(error);
    }
    match graph {
        Ok(graph) => Ok(Some(Arc::new(Captured {
            graph,
            status: queue.status(),
            _buffers: queue.give_up_kept(),
        }))),
        Err(error) => refused(error),
    }
}

/// A runtime that does not capture something is no failure of the work.
fn refused(error: ropeway_core::Error) -> Result<Option<Arc<Captured>>> {
    match error.kind() {
        ErrorKind::Unsupported => {
            tracing::debug!(%error, "a graph is enqueued launch by launch");
            Ok(None)
        }
        _ => Err(error),
    }
}

impl Graph for AscendGraph {
    fn rebind(&self, plan: usize, views: &[(usize, View)]) -> Result<()> {
        self.shared.enter()?;
        // One rebinding at a time, so that the plans and what was captured of them agree.
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.plans.plans();
        self.plans.rebind(plan, views)?;
        if captured.is_none() {
            return Ok(());
        }
        match capture(&self.shared, &self.plans) {
            Ok(now) => {
                *captured = now;
                Ok(())
            }
            Err(error) => {
                self.plans.restore(before);
                Err(error)
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
