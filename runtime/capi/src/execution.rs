//! A plan with its memory: what is executed, and what graphs are made of.

use std::sync::Arc;

use ropeway_core::device::Queue;
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result, Slice, View};
use smallvec::SmallVec;

use crate::memory::ropeway_buffer;
use crate::plan::{Planned, ropeway_plan};
use crate::sized::{self, sized_structs};
use crate::status::{borrow, optional_text};
use crate::tensor::ropeway_tensor;

/// A plan with its operands and workspace. Read during the call that it is given to, and not afterwards.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_execution {
    /// sizeof(ropeway_execution)
    pub struct_size: usize,
    /// What to run.
    pub plan: *const ropeway_plan,
    /// The operands in the plan's order (plan_operand), each with its buffer.
    pub operands: *const ropeway_tensor,
    /// Number of operands.
    pub operand_count: usize,
    /// Memory for intermediate results, of which two executions that may overlap in time need one each; NULL if the plan needs none.
    pub workspace: *const ropeway_buffer,
    /// Where in that buffer it begins, in bytes: a multiple of ROPEWAY_WORKSPACE_ALIGNMENT. It reaches to the buffer's end.
    pub workspace_offset: u64,
}

sized_structs!(ropeway_execution);

/// Views without an allocation: no op has more operands.
type Views = SmallVec<[View; 16]>;

impl ropeway_execution {
    /// The parts of a caller's execution.
    ///
    /// # Safety
    /// The execution and what it points to are as the header says.
    unsafe fn parts(&self) -> Result<(&Arc<Planned>, Views, Option<Slice>)> {
        // SAFETY: the caller's promise.
        let plan = &unsafe { borrow(self.plan, "plan") }?.planned;
        // SAFETY: the caller's promise.
        let operands = unsafe { sized::read_array(self.operands, self.operand_count, "operands") }?;
        if operands.len() != plan.operands.len() {
            return Err(Error::invalid(
                "operands",
                format!("{} operands", operands.len()),
                format!("{}: {}", plan.operands.len(), plan.names()),
            ));
        }
        let mut views = Views::new();
        for (index, operand) in operands.enumerate() {
            // SAFETY: the caller's promise.
            views.push(unsafe { plan.view(index, &operand?) }?);
        }
        let workspace = match self.workspace.is_null() {
            true => None,
            false => {
                // SAFETY: the caller's promise.
                let size = unsafe { &*self.workspace }.buffer.size();
                let rest = size.saturating_sub(self.workspace_offset);
                let (buffer, offset) = (self.workspace, self.workspace_offset);
                // SAFETY: the caller's promise.
                Some(unsafe { ropeway_buffer::slice(buffer, offset, rest, "workspace") }?)
            }
        };
        Ok((plan, views, workspace))
    }

    /// Enqueues a caller's execution.
    ///
    /// # Safety
    /// The execution and what it points to are null or as the header says.
    pub(crate) unsafe fn enqueue(
        execution: *const ropeway_execution,
        queue: &dyn Queue,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let execution = unsafe { sized::read(execution, "execution") }?;
        // SAFETY: the caller's promise.
        let (plan, views, workspace) = unsafe { execution.parts() }?;
        plan.executable.enqueue(queue, &views, workspace.as_ref())
    }

    /// The plan and its bound form.
    ///
    /// # Safety
    /// What the execution points to is as the header says.
    pub(crate) unsafe fn bind(&self) -> Result<(Arc<Planned>, BoundPlan)> {
        // SAFETY: the caller's promise.
        let (plan, views, workspace) = unsafe { self.parts() }?;
        let bound = BoundPlan {
            executable: Arc::clone(&plan.executable),
            operands: views.into_vec(),
            workspace,
        };
        Ok((Arc::clone(plan), bound))
    }
}

impl Planned {
    /// The view of the operand in this place.
    ///
    /// # Safety
    /// The tensor's name and buffer are null or valid.
    pub(crate) unsafe fn view(&self, index: usize, tensor: &ropeway_tensor) -> Result<View> {
        let operand = self.operands.get(index).ok_or_else(|| {
            Error::invalid(
                "operand",
                index,
                format!("less than {}", self.operands.len()),
            )
        })?;
        // SAFETY: the caller's promise.
        match unsafe { optional_text(tensor.name, "name") }? {
            Some(name) if name != operand.name => Err(Error::invalid(
                operand.name,
                format!("a tensor named {name:?} in its place"),
                format!("the plan's order: {}", self.names()),
            )),
            // SAFETY: the caller's promise.
            _ => unsafe { tensor.view(operand.desc, operand.name) },
        }
    }
}

#[cfg(test)]
mod tests;
