//! Nodes as Ropeway's ops.
//!
//! A [`Recipe`] says which ops do a node's work and where their operands lie: in the node's tensors, or in room beside them. Made from
//! shapes and strides alone, it answers `supports_op` by planning without a device. A [`NodePlan`](plan::NodePlan) is the recipe compiled.

use ropeway::core::op::PlanRequest;
use ropeway::core::plan::WORKSPACE_ALIGNMENT;
use ropeway::kernels::layer::{Binary, Copy, NormKind, Order};
use ropeway::prelude::*;

use crate::host::Operation;
use crate::tensor::Tensor;

mod attention;
mod experts;
mod layer;
mod matmul;
mod plan;

pub use plan::{Key, NodePlan, Rooms};

/// Whether a node computes nothing: it names data that is there.
pub fn passes_over(node: Tensor<'_>) -> bool {
    node.is_empty()
        || matches!(
            node.operation(),
            Operation::None
                | Operation::Reshape
                | Operation::View
                | Operation::Permute
                | Operation::Transpose
        )
}

/// How a node's work is done.
///
/// # Errors
/// `Unsupported` with what the plugin, or Ropeway, lacks for it.
pub fn recipe(node: Tensor<'_>) -> Result<Recipe> {
    match node.operation() {
        Operation::MulMat => matmul::recipe(node),
        Operation::MulMatId => experts::recipe(node),
        Operation::FlashAttnExt => attention::recipe(node),
        Operation::Add => layer::elementwise(node, Binary::Add),
        Operation::Sub => layer::elementwise(node, Binary::Sub),
        Operation::Mul => layer::elementwise(node, Binary::Mul),
        Operation::Div => layer::elementwise(node, Binary::Div),
        Operation::Sqr => layer::square(node),
        Operation::Unary => layer::unary(node),
        Operation::Scale => layer::scale(node),
        Operation::Clamp => layer::clamp(node),
        Operation::Fill => layer::fill(node),
        Operation::Glu => layer::glu(node),
        Operation::Cpy | Operation::Cont | Operation::Dup => layer::copy(node),
        Operation::Repeat => layer::repeat(node),
        Operation::Concat => layer::concat(node),
        Operation::GetRows => layer::get_rows(node),
        Operation::SetRows => layer::set_rows(node),
        Operation::RmsNorm => layer::norm(node, NormKind::Rms),
        Operation::Norm => layer::norm(node, NormKind::Layer),
        Operation::SumRows => layer::sum_rows(node),
        Operation::SoftMax => layer::softmax(node),
        Operation::Rope => layer::rope(node),
        Operation::Argsort if node.integer(0) == 0 => layer::argsort(node, Order::Ascending),
        Operation::Argsort | Operation::TopK => layer::argsort(node, Order::Descending),
        _ => Err(Error::unsupported("no kernel for this operation")),
    }
}

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the node itself.
    Node,
    /// In one of its operands.
    Src(usize),
    /// In room beside the node's tensors, for as long as the node runs.
    Room,
    /// In room that other nodes of the graph find again.
    Lasting,
    /// In a constant of the recipe.
    Constant(usize),
}

/// An operand of an op: a window into what lies in a place.
#[derive(Clone, Debug)]
pub struct Binding {
    place: Place,
    desc: TensorDesc,
    /// Bytes from the place's first element to the window's.
    offset: u64,
}

impl Binding {
    /// A window that begins where its place does.
    pub fn new(place: Place, desc: TensorDesc) -> Binding {
        Binding {
            place,
            desc,
            offset: 0,
        }
    }

    /// The same, beginning so many bytes into its place.
    pub fn at(self, offset: u64) -> Binding {
        Binding { offset, ..self }
    }
}

/// A tensor of these extents and strides, outermost first.
fn strided(dtype: DType, axes: &[(u64, u64)]) -> Result<TensorDesc> {
    let (shape, strides): (Vec<_>, Vec<_>) = axes.iter().copied().unzip();
    let layout = Layout::strided(&shape, &strides)?;
    Ok(TensorDesc { dtype, layout })
}

struct Step<P> {
    plan: P,
    operands: Vec<Binding>,
    /// Its result lasts: it is computed by the first node of a graph that wants it, from an operand that no node of the graph writes.
    once: bool,
}

/// The ops that do a node's work, in order.
#[derive(Default)]
pub struct Recipe {
    steps: Vec<Step<Box<dyn Op>>>,
    room: u64,
    constants: Vec<Vec<u8>>,
}

impl Recipe {
    /// Adds an op with where its operands lie, in the op's order.
    pub fn step(&mut self, op: impl Op, operands: Vec<Binding>) {
        self.steps.push(Step {
            plan: Box::new(op),
            operands,
            once: false,
        });
    }

    /// Adds an op that the nodes of a graph share: its first operand lies in one of the node's, its result in [`Place::Lasting`].
    pub fn once(&mut self, op: impl Op, operands: Vec<Binding>) {
        self.step(op, operands);
        if let Some(step) = self.steps.last_mut() {
            step.once = true;
        }
    }

    /// Room for a tensor beside the node's.
    ///
    /// # Errors
    /// `InvalidArgument` if its size overflows.
    pub fn room(&mut self, desc: TensorDesc) -> Result<Binding> {
        let offset = self.room;
        self.room += desc.span_bytes()?.next_multiple_of(WORKSPACE_ALIGNMENT);
        Ok(Binding::new(Place::Room, desc).at(offset))
    }

    /// An operand in another dtype: itself if it has that, else a copy in room beside the node's tensors.
    ///
    /// # Errors
    /// `InvalidArgument` if its size overflows, `Unsupported` for dtypes that cannot be copied.
    pub fn converted(&mut self, given: Binding, dtype: DType) -> Result<Binding> {
        if given.desc.dtype == dtype {
            return Ok(given);
        }
        let desc = TensorDesc::contiguous(dtype, given.desc.shape())?;
        let converted = self.room(desc)?;
        let op = Copy {
            x: given.desc,
            d: desc,
        };
        self.step(op.checked()?, vec![given, converted.clone()]);
        Ok(converted)
    }

    /// Numbers that do not depend on the node's data.
    ///
    /// # Errors
    /// `InvalidArgument` if their size overflows.
    pub fn constant(&mut self, values: &[f32]) -> Result<Binding> {
        let desc = TensorDesc::contiguous(DType::F32, &[values.len() as u64])?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.constants.push(bytes.collect());
        Ok(Binding::new(
            Place::Constant(self.constants.len() - 1),
            desc,
        ))
    }

    /// Whether every op can be planned.
    ///
    /// # Errors
    /// `Unsupported` with the reason.
    pub fn check(&self, request: &PlanRequest<'_>) -> Result<()> {
        self.steps
            .iter()
            .try_for_each(|step| step.plan.plan(request).map(drop))
    }
}
