//! Graphs: bound plans, captured from a stream of their own and launched as one.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use ropeway_core::device::Graph;
use ropeway_core::memory::Buffer;
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Result, View};

use super::device::Shared;
use super::queue::{CudaQueue, StatusWord};
use super::sys::{RawGraph, RawStream};
use crate::loop_graph::LoopGraph;

/// What one capture gave. A replay keeps it until it is done, also when the graph is bound anew meanwhile.
pub(super) struct Captured {
    pub(super) exec: RawGraph,
    /// The word that its launches set where they meet values out of range.
    pub(super) status: Arc<StatusWord>,
    /// What its launches use.
    _buffers: Vec<Buffer>,
}

pub(super) struct CudaGraph {
    pub(super) shared: Arc<Shared>,
    /// The plans, checked, and bound as the next capture shall have them.
    plans: LoopGraph,
    captured: Mutex<Arc<Captured>>,
}

impl CudaGraph {
    pub(super) fn new(shared: Arc<Shared>, plans: Vec<BoundPlan>) -> Result<CudaGraph> {
        let plans = LoopGraph::new(shared.id, plans)?;
        let captured = capture(&shared, &plans)?;
        Ok(CudaGraph {
            shared,
            plans,
            captured: Mutex::new(captured),
        })
    }

    /// As it is bound now.
    pub(super) fn captured(&self) -> Arc<Captured> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.clone()
    }
}

/// Enqueues the plans into a stream that keeps them instead of running them.
fn capture(shared: &Arc<Shared>, plans: &LoopGraph) -> Result<Arc<Captured>> {
    let note = |error| shared.note(error);
    let stream = RawStream::new().map_err(note)?;
    let queue = CudaQueue::new(shared.clone(), stream, None).map_err(note)?;
    queue.raw().begin_capture().map_err(note)?;
    let enqueued = plans.replay(&queue);
    // Ended in any case: a stream in capture takes no other work.
    let exec = queue.raw().end_capture().map_err(note);
    enqueued?;
    Ok(Arc::new(Captured {
        exec: exec?,
        status: queue.status(),
        _buffers: queue.give_up_kept(),
    }))
}

impl Graph for CudaGraph {
    fn rebind(&self, plan: usize, views: &[(usize, View)]) -> Result<()> {
        self.shared.enter()?;
        // One rebinding at a time, so that the plans and what was captured of them agree.
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.plans.plans();
        self.plans.rebind(plan, views)?;
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
