//! The small ops of a transformer layer between matrix products, attention and experts.
//!
//! | op | what it computes |
//! |---|---|
//! | [`elementwise`](Elementwise) | sum, difference, product or quotient, the second operand repeated |
//! | [`unary`](Unary) | an activation or another function of one number |
//! | [`glu`](Glu) | an activated gate times another half |
//! | [`copy`](struct@Copy) | strided copy with conversion and reshaping |
//! | [`get_rows`](GetRows), [`set_rows`](SetRows) | rows out of and into a table, by ids on the device |
//! | [`norm`](Norm), [`sum_rows`](SumRows) | reductions of rows |
//! | [`softmax`](Softmax) | scaled and masked softmax of rows |
//! | [`rope`](Rope) | rotary position embedding |
//! | [`argsort`](Argsort) | the order of each row's elements, or its first ones |
//!
//! Tensors have one to four dimensions and any element strides; rows lie along the last axis. All other extents may shrink from run to run.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::Operands;
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected, OpSpec, Recipe};
use ropeway_core::{DType, Error, Result};

#[cfg(feature = "spec")]
mod cases;
mod manifest;
mod native;
mod plan;
mod pointwise;
mod reduce;
#[cfg(feature = "spec")]
mod reference;
mod rope;
mod rows;
mod sort;
mod spirv;
#[cfg(all(test, feature = "spec"))]
mod tests;

pub use pointwise::{Binary, Copy, Elementwise, Glu, GluFunction, Unary, UnaryFunction};
pub use reduce::{Norm, NormKind, Softmax, SumRows};
pub use rope::{Rope, RopeMode};
pub use rows::{GetRows, SetRows};
pub use sort::{Argsort, Order};

/// The ops of this folder.
pub const OPS: &[&dyn OpKind] = &[
    &ElementwiseKind,
    &UnaryKind,
    &GluKind,
    &CopyKind,
    &GetRowsKind,
    &SetRowsKind,
    &NormOpKind,
    &SumRowsKind,
    &SoftmaxKind,
    &RopeKind,
    &ArgsortKind,
];

/// What the ops of this folder say of themselves; the traits of the core follow from it.
trait Problem: std::fmt::Debug + Clone + PartialEq + Send + Sync + Any {
    /// Reads and checks a problem.
    fn parse(signature: &Signature) -> Result<Self>;
    /// Every operand, inputs first.
    fn tensors(&self) -> Vec<Operand>;
    /// Its plan.
    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan>;
    /// Floating-point operations an element of the output, roughly.
    fn operations(&self) -> f64;
    /// Checks ids on the host.
    fn values(&self, _inputs: &Operands) -> Result<()> {
        Ok(())
    }
    /// The answer in f64, with bounds.
    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>>;
}

/// The core's traits for a problem.
macro_rules! layer_op {
    ($problem:ident, $kind:ident, $name:literal, $inputs:expr, $kernels:ident, $cases:ident) => {
        impl Op for $problem {
            fn name(&self) -> &'static str {
                $name
            }

            fn operands(&self) -> Vec<Operand> {
                self.tensors()
            }

            fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
                plan::fitting(self, info, manifest::$kernels)
            }

            fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
                self.planned(request)
            }

            fn cost(&self) -> Cost {
                cost(&self.tensors(), self.operations())
            }

            fn as_any(&self) -> &dyn Any {
                self
            }
        }

        #[doc = concat!("The op `", $name, "` as request files name it.")]
        #[derive(Clone, std::marker::Copy, Debug)]
        pub struct $kind;

        impl OpKind for $kind {
            fn name(&self) -> &'static str {
                $name
            }

            fn inputs(&self) -> &'static [&'static str] {
                $inputs
            }

            fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
                signature.only(self.inputs())?;
                Ok(Box::new(<$problem as Problem>::parse(signature)?))
            }

            fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
                described::<$problem>(op)?.values(inputs)
            }

            fn kernels(&self) -> &'static [&'static Kernel] {
                manifest::$kernels
            }

            #[cfg(feature = "spec")]
            fn spec(&self) -> &'static dyn OpSpec {
                &$kind
            }
        }

        #[cfg(feature = "spec")]
        impl OpSpec for $kind {
            fn reference(
                &self,
                op: &dyn Op,
                inputs: &Operands,
                data: DataClass,
            ) -> Result<Vec<Expected>> {
                Problem::reference(described::<$problem>(op)?, inputs, data)
            }

            fn fixed_cases(&self) -> Vec<Recipe> {
                cases::$cases::fixed()
            }

            fn strategy(&self) -> proptest::strategy::BoxedStrategy<Recipe> {
                cases::$cases::strategy()
            }
        }
    };
}

layer_op!(
    Elementwise,
    ElementwiseKind,
    "elementwise",
    &["a", "b"],
    MAP,
    elementwise
);
layer_op!(Unary, UnaryKind, "unary", &["x"], MAP, unary);
layer_op!(Glu, GluKind, "glu", &["x", "up"], MAP, glu);
layer_op!(Copy, CopyKind, "copy", &["x"], MAP, copy);
layer_op!(
    GetRows,
    GetRowsKind,
    "get_rows",
    &["x", "ids"],
    MAP,
    get_rows
);
layer_op!(
    SetRows,
    SetRowsKind,
    "set_rows",
    &["x", "ids", "data"],
    MAP,
    set_rows
);
layer_op!(Norm, NormOpKind, "norm", &["x", "weight"], NORM, norm);
layer_op!(SumRows, SumRowsKind, "sum_rows", &["x"], NORM, sum_rows);
layer_op!(
    Softmax,
    SoftmaxKind,
    "softmax",
    &["x", "mask", "sinks"],
    SOFTMAX,
    softmax
);
layer_op!(
    Rope,
    RopeKind,
    "rope",
    &["x", "positions", "freq_factors"],
    ROPE,
    rope
);
layer_op!(Argsort, ArgsortKind, "argsort", &["x"], ARGSORT, argsort);

/// The op's own type.
fn described<T: Op>(op: &dyn Op) -> Result<&T> {
    op.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("op", op.name(), "the op of this kind"))
}

fn operand(name: &'static str, desc: TensorDesc, output: bool) -> Operand {
    Operand { name, desc, output }
}

/// Each element of memory once, as a roofline counts it.
fn cost(operands: &[Operand], operations: f64) -> Cost {
    let bytes = |desc: &TensorDesc| {
        let axes = desc.layout.shape().iter().zip(desc.layout.strides());
        let different = axes.map(|(&extent, &stride)| match stride {
            0 => extent.min(1) as f64,
            _ => extent as f64,
        });
        different.product::<f64>() * desc.dtype.size().unwrap_or(1) as f64
    };
    let elements: f64 = operands
        .iter()
        .filter(|operand| operand.output)
        .map(|operand| operand.desc.layout.elements() as f64)
        .sum();
    Cost {
        flops: elements * operations,
        bytes: operands.iter().map(|operand| bytes(&operand.desc)).sum(),
    }
}

/// The most dimensions of a tensor here.
const RANK: usize = 4;

/// The extents of a tensor from its last axis on; 1 for those it has not.
type Extents = [u64; RANK];

fn extents(desc: &TensorDesc) -> Extents {
    let mut extents = [1; RANK];
    for (extent, &found) in extents.iter_mut().zip(desc.shape().iter().rev()) {
        *extent = found;
    }
    extents
}

/// Checks rank, dtype and that sizes fit what kernels count in.
fn check_tensor(name: &str, desc: &TensorDesc, dtypes: &[DType]) -> Result<()> {
    if !(1..=RANK).contains(&desc.shape().len()) {
        let found = format!("shape {:?}", desc.shape());
        return Err(Error::invalid(name, found, "one to four dimensions"));
    }
    if !dtypes.contains(&desc.dtype) {
        let expected = format!("one of {dtypes:?}");
        return Err(Error::invalid(name, desc.dtype, expected));
    }
    desc.span_bytes().map(drop).map_err(|e| e.within(name))
}

/// Checks an output: that its extents are these, and that no two elements share memory.
fn check_result(name: &str, desc: &TensorDesc, shape: &[u64], dtypes: &[DType]) -> Result<()> {
    check_tensor(name, desc, dtypes)?;
    crate::operand::check_output(name, desc, desc.dtype, shape)
}

/// Float dtypes.
const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];

/// Reads the attribute `dtype`: that of the output.
fn output_dtype(
    attrs: &mut ropeway_core::request::AttrReader<'_>,
    default: DType,
    choices: &[DType],
) -> Result<DType> {
    let Some(word) = attrs.optional_word("dtype")? else {
        return Ok(default);
    };
    DType::from_name(word)
        .filter(|dtype| choices.contains(dtype))
        .ok_or_else(|| {
            let expected = format!("one of {choices:?}");
            Error::invalid("dtype", format!("{word:?}"), expected)
        })
}

/// Fails unless the extents of a tensor repeat to those of `whole`: of no more dimensions, each 1 or a divisor, as ggml repeats a second
/// operand.
fn check_repeats(name: &str, desc: &TensorDesc, whole: &TensorDesc) -> Result<()> {
    let divides = |(&part, &whole): (&u64, &u64)| match part {
        0 => whole == 0,
        part => whole.is_multiple_of(part),
    };
    let mut axes = desc.shape().iter().rev().zip(whole.shape().iter().rev());
    if desc.shape().len() <= whole.shape().len() && axes.all(divides) {
        return Ok(());
    }
    let expected = format!("extents that divide those of {:?}", whole.shape());
    let found = format!("shape {:?}", desc.shape());
    Err(Error::invalid(name, found, expected))
}
