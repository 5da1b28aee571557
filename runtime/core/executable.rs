//! A plan with its compiled functions, and one with its memory: what is enqueued and what graphs are made of.

use std::sync::Arc;

use crate::device::{Argument, Function, LaunchCall, Queue};
use crate::error::{Error, Result};
use crate::expr::Expr;
use crate::memory::{Slice, View};
use crate::plan::{Arg, MAX_ARGUMENTS, Plan};

/// A plan with its compiled functions, one a launch: everything but the memory.
pub struct Executable {
    plan: Plan,
    functions: Vec<Arc<dyn Function>>,
}

impl Executable {
    /// Puts a plan and its functions together, one for each of the plan's launches.
    ///
    /// # Errors
    /// `InvalidArgument` if the numbers differ or a launch has too many arguments.
    pub fn new(plan: Plan, functions: Vec<Arc<dyn Function>>) -> Result<Executable> {
        if plan.launches.len() != functions.len() {
            return Err(Error::invalid(
                "functions",
                functions.len(),
                plan.launches.len(),
            ));
        }
        if let Some(launch) = plan
            .launches
            .iter()
            .find(|launch| launch.args.len() > MAX_ARGUMENTS)
        {
            return Err(Error::invalid(
                launch.entry,
                launch.args.len(),
                format!("at most {MAX_ARGUMENTS} arguments"),
            ));
        }
        if plan.symbols.len() > 16 {
            return Err(Error::invalid("symbols", plan.symbols.len(), "at most 16"));
        }
        Ok(Executable { plan, functions })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Checks the operands against the plan and enqueues every launch. Allocates nothing itself.
    ///
    /// # Errors
    /// As [`Plan::check`] and [`Queue::launch`].
    #[allow(unsafe_code)]
    pub fn enqueue(
        &self,
        queue: &dyn Queue,
        operands: &[View],
        workspace: Option<&Slice>,
    ) -> Result<()> {
        self.plan.check(operands, workspace)?;
        for (launch, function) in self.plan.launches.iter().zip(&self.functions) {
            let grid = [0, 1, 2].map(|axis| launch.grid[axis].evaluate(operands).max(0) as u64);
            if grid.contains(&0) {
                continue;
            }
            let mut arguments = [Argument::Absent; MAX_ARGUMENTS];
            for (slot, arg) in arguments.iter_mut().zip(&launch.args) {
                *slot = self.resolve(arg, operands, workspace);
            }
            let call = LaunchCall {
                function,
                grid,
                group: launch.group,
                local_memory: launch.local_memory,
                arguments: &arguments[..launch.args.len()],
            };
            // SAFETY: the arguments are those of the plan that was made together with the kernel, the operands satisfy the plan's
            // rules (checked above), and the kernels of a plan stay within the views they are given; that is what an op promises
            // (see `op::Op::plan`) and what the conformance suite holds it to.
            unsafe { queue.launch(&call)? };
        }
        Ok(())
    }

    fn resolve<'a>(
        &self,
        arg: &'a Arg,
        operands: &'a [View],
        workspace: Option<&'a Slice>,
    ) -> Argument<'a> {
        match arg {
            Arg::Operand { operand, at } => {
                let view = &operands[*operand];
                let size = view.dtype().size().expect("a view's dtype has a size");
                let at = (at.evaluate(operands).max(0) as u64).min(view.layout().span());
                Argument::Buffer {
                    buffer: view.buffer(),
                    offset: view.offset() + at,
                    dtype: view.dtype(),
                    bytes: (view.layout().span() - at) * size,
                    write: self.plan.operands[*operand].write,
                }
            }
            Arg::Workspace {
                range,
                dtype,
                write,
            } => {
                let slice = workspace.expect("checked: a plan that needs workspace has it");
                Argument::Buffer {
                    buffer: slice.buffer(),
                    offset: (slice.offset() + range.start) / dtype.size().unwrap_or(1),
                    dtype: *dtype,
                    bytes: range.end - range.start,
                    write: *write,
                }
            }
            Arg::Absent => Argument::Absent,
            Arg::U32(value) => {
                Argument::U32(value.evaluate(operands).clamp(0, u32::MAX.into()) as u32)
            }
            Arg::I32(value) => Argument::I32(
                value
                    .evaluate(operands)
                    .clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            ),
            Arg::U64(value) => Argument::U64(value.evaluate(operands).max(0) as u64),
            Arg::I64(value) => Argument::I64(value.evaluate(operands)),
            Arg::F32(value) => Argument::F32(*value),
            Arg::Status => Argument::Status,
            Arg::TensorMap {
                base,
                extents,
                strides,
                map,
            } => {
                let Argument::Buffer {
                    buffer,
                    offset,
                    dtype,
                    ..
                } = self.resolve(base, operands, workspace)
                else {
                    // A tensor that is not there has no tile.
                    return Argument::Absent;
                };
                let size = dtype.size().unwrap_or(1);
                let numbers = |exprs: &[Expr], fill: u64| {
                    let mut values = [fill; 5];
                    for (value, expr) in values.iter_mut().zip(exprs) {
                        *value = expr.evaluate(operands).max(0) as u64;
                    }
                    values
                };
                let strides = numbers(strides, 0).map(|stride| stride * size);
                Argument::TensorMap {
                    map,
                    buffer,
                    offset: offset * size,
                    extents: numbers(extents, 1),
                    strides,
                }
            }
        }
    }
}

/// An executable with its operands and workspace: what a graph is made of.
#[derive(Clone)]
pub struct BoundPlan {
    /// The executable.
    pub executable: Arc<Executable>,
    /// Operands in the plan's order.
    pub operands: Vec<View>,
    /// Workspace, if the plan needs any.
    pub workspace: Option<Slice>,
}

impl BoundPlan {
    /// Checks and enqueues it.
    ///
    /// # Errors
    /// As [`Executable::enqueue`].
    pub fn enqueue(&self, queue: &dyn Queue) -> Result<()> {
        self.executable
            .enqueue(queue, &self.operands, self.workspace.as_ref())
    }
}
