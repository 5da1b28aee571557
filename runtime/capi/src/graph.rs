//! Graphs: executions that were recorded once and are submitted as one.

use std::sync::Arc;

use ropeway_core::device::Graph;
use ropeway_core::{Error, Result};

use crate::device::ropeway_device;
use crate::execution::ropeway_execution;
use crate::plan::Planned;
use crate::sized;
use crate::status::{borrow, create, entry, release, ropeway_status};
use crate::tensor::ropeway_tensor;

/// Executions that were recorded once and are submitted as one.
pub struct ropeway_graph {
    pub(crate) graph: Arc<dyn Graph>,
    plans: Vec<Arc<Planned>>,
}

pub(crate) unsafe extern "C" fn graph_create(
    device: *const ropeway_device,
    executions: *const ropeway_execution,
    count: usize,
    out: *mut *mut ropeway_graph,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?;
        // SAFETY: the executions are what the header asks for.
        let executions = unsafe { sized::read_array(executions, count, "executions") }?;
        let bound = executions.enumerate().map(|(index, execution)| {
            // SAFETY: as above.
            let bound = execution.and_then(|execution| unsafe { execution.bind() });
            bound.map_err(|error| error.within(format!("executions[{index}]")))
        });
        let (plans, bound) = bound.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let graph = device.session.device().instantiate(bound)?;
        Ok(ropeway_graph { graph, plans })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn graph_rebind(
    graph: *const ropeway_graph,
    execution: usize,
    indices: *const u32,
    operands: *const ropeway_tensor,
    count: usize,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        let graph = unsafe { borrow(graph, "graph") }?;
        let plan = graph.plans.get(execution).ok_or_else(|| {
            Error::invalid(
                "execution",
                execution,
                format!("less than {}", graph.plans.len()),
            )
        })?;
        if indices.is_null() && count > 0 {
            let found = format!("NULL for {count} operands");
            return Err(Error::invalid("indices", found, "their places in the plan"));
        }
        // SAFETY: the operands are what the header asks for.
        let operands = unsafe { sized::read_array(operands, count, "operands") }?;
        let views = operands.enumerate().map(|(at, operand)| {
            // SAFETY: there are `count` indices.
            let index = unsafe { indices.add(at).read() } as usize;
            // SAFETY: as above.
            Ok((index, unsafe { plan.view(index, &operand?) }?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        graph.graph.rebind(execution, &views)
    })
}

pub(crate) unsafe extern "C" fn graph_release(graph: *mut ropeway_graph) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(graph) }
}
