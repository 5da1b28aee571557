//! Recipes compiled, and what they are found again by.
//!
//! A plan is made once for all nodes that differ only in where their tensors lie; enqueueing it for a node makes the views and no more.

use std::sync::Arc;

use ropeway::core::plan::WORKSPACE_ALIGNMENT;
use ropeway::prelude::*;

use super::{Place, Recipe, Step};
use crate::abi::{MAX_DIMS, MAX_PARAMS, MAX_SRC};
use crate::memory::device_alloc;
use crate::tensor::Tensor;

/// A node's work, compiled.
pub struct NodePlan {
    steps: Vec<Step<Arc<Executable>>>,
    /// Bytes beside the node's tensors; the workspace, which steps share, lies behind them.
    room: u64,
    workspace: u64,
    constants: Vec<Buffer>,
}

impl Recipe {
    /// Compiles every op.
    ///
    /// # Errors
    /// `Unsupported`, `CompileFailed`, `OutOfMemory`.
    pub fn compile(self, session: &Session) -> Result<NodePlan> {
        let mut workspace = 0;
        let mut steps = Vec::new();
        for step in self.steps {
            let plan = session.plan(&*step.plan)?;
            workspace = workspace.max(plan.plan().workspace);
            steps.push(Step {
                plan,
                operands: step.operands,
                once: step.once,
            });
        }
        let constants = self.constants.iter().map(|bytes| {
            let buffer = session.device().alloc(bytes.len() as u64)?;
            session.queue().upload(&buffer.all(), bytes)?;
            session.queue().synchronize(None)?;
            Ok(buffer)
        });
        Ok(NodePlan {
            steps,
            room: self.room,
            workspace,
            constants: constants.collect::<Result<_>>()?,
        })
    }
}

/// What a stream keeps beside the tensors of its graphs. Queues run in order, so nodes share what outlives none of them.
#[derive(Default)]
pub struct Rooms {
    room: Option<Buffer>,
    lasting: Vec<Lasting>,
    /// Room of earlier graphs' lasting results.
    free: Vec<Buffer>,
}

/// A result that nodes of one graph share.
struct Lasting {
    /// Where the operand that it was made from lies.
    from: Slice,
    plan: Arc<Executable>,
    buffer: Buffer,
}

impl Rooms {
    /// Forgets what lasted for the graph before.
    pub fn next_graph(&mut self) {
        self.free
            .extend(self.lasting.drain(..).map(|lasting| lasting.buffer));
    }

    /// Forgets what was made from memory that is about to be written.
    fn written(&mut self, to: &Slice) {
        let touched = |from: &Slice| {
            from.buffer().same(to.buffer())
                && from.offset() < to.offset() + to.len()
                && to.offset() < from.offset() + from.len()
        };
        while let Some(index) = self
            .lasting
            .iter()
            .position(|lasting| touched(&lasting.from))
        {
            self.free.push(self.lasting.swap_remove(index).buffer);
        }
    }

    fn at_least(&mut self, device: &Arc<dyn Device>, bytes: u64) -> Result<Buffer> {
        match &self.room {
            Some(buffer) if buffer.size() >= bytes => Ok(buffer.clone()),
            _ => Ok(self.room.insert(device_alloc(device, bytes)?).clone()),
        }
    }

    fn take(&mut self, device: &Arc<dyn Device>, bytes: u64) -> Result<Buffer> {
        match self.free.iter().position(|buffer| buffer.size() >= bytes) {
            Some(index) => Ok(self.free.swap_remove(index)),
            None => device_alloc(device, bytes),
        }
    }
}

impl NodePlan {
    /// Enqueues the work for a node.
    ///
    /// # Errors
    /// `InvalidArgument` for a node whose tensors lie elsewhere, `OutOfMemory`, `LaunchFailed`, `DeviceLost`.
    pub fn enqueue(
        &self,
        node: Tensor<'_>,
        device: &Arc<dyn Device>,
        queue: &dyn Queue,
        rooms: &mut Rooms,
    ) -> Result<()> {
        let begin = self.room.next_multiple_of(WORKSPACE_ALIGNMENT);
        let room = match begin + self.workspace {
            0 => None,
            bytes => Some(rooms.at_least(device, bytes)?),
        };
        let workspace = match (&room, self.workspace) {
            (Some(room), 1..) => Some(room.slice(begin, self.workspace)?),
            _ => None,
        };
        let mut lasting: Option<Buffer> = None;
        for step in &self.steps {
            if step.once {
                let Place::Src(index) = step.operands[0].place else {
                    return Err(Error::invalid(
                        "operand",
                        "beside the node",
                        "one of its operands",
                    ));
                };
                let (buffer, offset) = place(node.operand(index)?)?;
                let from = buffer.slice(offset, step.operands[0].desc.span_bytes()?)?;
                let known = rooms.lasting.iter().find(|known| {
                    Arc::ptr_eq(&known.plan, &step.plan)
                        && known.from.buffer().same(buffer)
                        && known.from.offset() == offset
                });
                if let Some(known) = known {
                    lasting = Some(known.buffer.clone());
                    continue;
                }
                let bytes = step
                    .operands
                    .last()
                    .map_or(Ok(0), |result| result.desc.span_bytes())?;
                let buffer = rooms.take(device, bytes)?;
                lasting = Some(buffer.clone());
                let plan = Arc::clone(&step.plan);
                rooms.lasting.push(Lasting { from, plan, buffer });
            }
            let views = step.operands.iter().map(|operand| {
                let (buffer, begin) = match operand.place {
                    Place::Node => place(node)?,
                    Place::Src(index) => place(node.operand(index)?)?,
                    Place::Room => (found(room.as_ref())?, 0),
                    Place::Lasting => (found(lasting.as_ref())?, 0),
                    Place::Constant(index) => (found(self.constants.get(index))?, 0),
                };
                let size = operand.desc.dtype.size().unwrap_or(1);
                buffer.view(operand.desc, (begin + operand.offset) / size)
            });
            let views: Vec<View> = views.collect::<Result<_>>()?;
            step.plan.enqueue(queue, &views, workspace.as_ref())?;
            for (operand, view) in step.operands.iter().zip(&views) {
                if operand.place == Place::Node {
                    rooms.written(&view.bytes());
                }
            }
        }
        Ok(())
    }
}

fn place(tensor: Tensor<'_>) -> Result<(&Buffer, u64)> {
    let (allocation, offset) = tensor.place()?;
    Ok((&allocation.buffer, offset))
}

fn found(buffer: Option<&Buffer>) -> Result<&Buffer> {
    buffer.ok_or_else(|| Error::invalid("operand", "no memory", "room for it"))
}

/// All of a node that its plan depends on: operation, parameters, types, extents and strides, and which tensors share their first byte.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Key(Vec<u64>);

impl Key {
    /// The key of a node.
    pub fn of(node: Tensor<'_>) -> Key {
        let mut key = Key::default();
        key.fill(node);
        key
    }

    /// Becomes the key of a node.
    pub fn fill(&mut self, node: Tensor<'_>) {
        let words = &mut self.0;
        words.clear();
        words.reserve(1 + MAX_PARAMS + (MAX_SRC + 1) * (2 * MAX_DIMS + 1));
        words.push(node.0.op.into());
        words.extend(node.0.op_params.map(|word| u64::from(word as u32)));
        let operands = (0..MAX_SRC).filter_map(|index| Some((index, node.src(index)?)));
        for (index, tensor) in operands.chain([(MAX_SRC, node)]) {
            words.push((index as u64) << 32 | u64::from(tensor.0.kind));
            words.extend(tensor.0.ne.map(|extent| extent as u64));
            words.extend(tensor.0.nb.map(|stride| stride as u64));
        }
    }
}
