//! Graphs for devices that have none of their own: the bound plans, enqueued one after the other.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

use ropeway_core::device::{Graph, Queue};
use ropeway_core::memory::DeviceId;
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result, View};

/// Bound plans that a replay enqueues in order.
pub struct LoopGraph {
    device: DeviceId,
    plans: Mutex<Vec<BoundPlan>>,
}

impl LoopGraph {
    /// A graph of plans that are all bound to memory of `device`.
    ///
    /// # Errors
    /// `InvalidArgument` for operands that a plan does not admit or that belong to another device.
    pub fn new(device: DeviceId, plans: Vec<BoundPlan>) -> Result<LoopGraph> {
        for bound in &plans {
            check(device, bound)?;
        }
        Ok(LoopGraph {
            device,
            plans: Mutex::new(plans),
        })
    }

    /// The plans as they are bound now.
    pub fn plans(&self) -> Vec<BoundPlan> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.clone()
    }

    /// Binds the plans as they were bound before.
    #[cfg(any(feature = "cuda", feature = "ascend"))]
    pub(crate) fn restore(&self, before: Vec<BoundPlan>) {
        *self.plans.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    /// Enqueues every plan.
    ///
    /// # Errors
    /// `InvalidArgument` on a queue of another device, else as the launches.
    pub fn replay(&self, queue: &dyn Queue) -> Result<()> {
        if queue.device() != self.device {
            return Err(Error::invalid(
                "graph",
                "a graph of another device",
                "one of the queue's device",
            ));
        }
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.iter().try_for_each(|bound| bound.enqueue(queue))
    }
}

fn check(device: DeviceId, bound: &BoundPlan) -> Result<()> {
    let plan = bound.executable.plan();
    plan.check(&bound.operands, bound.workspace.as_ref())?;
    let foreign = bound
        .operands
        .iter()
        .map(|view| view.buffer())
        .chain(bound.workspace.iter().map(|s| s.buffer()));
    for buffer in foreign {
        if buffer.device() != device {
            return Err(Error::invalid(
                plan.op,
                "memory of another device",
                "memory of the graph's device",
            ));
        }
    }
    Ok(())
}

impl Graph for LoopGraph {
    fn rebind(&self, plan: usize, views: &[(usize, View)]) -> Result<()> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let count = plans.len();
        let bound = plans
            .get_mut(plan)
            .ok_or_else(|| Error::invalid("plan", plan, format!("less than {count}")))?;
        // A refused view leaves the graph as it was.
        let mut changed = bound.clone();
        for (operand, view) in views {
            let operands = changed.operands.len();
            let slot = changed.operands.get_mut(*operand).ok_or_else(|| {
                Error::invalid("operand", operand, format!("less than {operands}"))
            })?;
            *slot = view.clone();
        }
        check(self.device, &changed)?;
        *bound = changed;
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
