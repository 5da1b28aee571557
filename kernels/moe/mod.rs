//! Mixture of experts: `moe_route`, `expert_scatter`, `expert_gather` and `moe_ffn`.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{OpKind, Operand};
use ropeway_core::request::{AttrReader, HostTensor, Operands};
use ropeway_core::{DType, Error, Result};

use crate::operand::{check_output, dims, expect, output};

#[cfg(feature = "spec")]
mod cases;
mod ffn;
mod manifest;
mod native;
mod permute;
mod plan;
#[cfg(feature = "spec")]
mod reference;
mod route;
mod spirv;
#[cfg(all(test, feature = "spec"))]
mod tests;

pub use ffn::{MoeFfn, MoeFfnKind};
pub use permute::{ExpertGather, ExpertGatherKind, ExpertScatter, ExpertScatterKind};
pub use route::{MoeRoute, MoeRouteKind};

/// The ops of this folder.
pub const OPS: &[&dyn OpKind] = &[
    &MoeRouteKind,
    &ExpertScatterKind,
    &ExpertGatherKind,
    &MoeFfnKind,
];

/// How logits become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    #[default]
    Softmax,
    /// Sigmoid of each logit.
    Sigmoid,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub topk: u64,
    /// How logits become scores.
    pub score: Score,
    /// Groups that the experts are divided into.
    pub groups: u64,
    /// Groups that a token may choose from.
    pub topk_groups: u64,
    /// Weights are divided by their sum.
    pub renormalize: bool,
    /// Factor of the weights.
    pub scale: f32,
}

impl Routing {
    /// The `topk` experts with the greatest softmax, weighed by it.
    pub fn new(topk: u64) -> Routing {
        Routing {
            topk,
            score: Score::Softmax,
            groups: 1,
            topk_groups: 1,
            renormalize: false,
            scale: 1.0,
        }
    }

    fn read(attrs: &mut AttrReader<'_>) -> Result<Routing> {
        let scores = [("softmax", Score::Softmax), ("sigmoid", Score::Sigmoid)];
        Ok(Routing {
            topk: attrs.required_size("topk")?,
            score: attrs.choice("score", Score::Softmax, &scores)?,
            groups: attrs.size("groups", 1)?,
            topk_groups: attrs.size("topk_groups", 1)?,
            renormalize: attrs.bool("renormalize", false)?,
            scale: attrs.float("scale", 1.0)?,
        })
    }

    fn check(&self, experts: u64) -> Result<()> {
        if experts > i32::MAX as u64 {
            let expected = "as many experts as I32 can number";
            return Err(Error::invalid("logits", experts, expected));
        }
        if !(1..=experts).contains(&self.topk) {
            let expected = format!("1 to the {experts} experts");
            return Err(Error::invalid("topk", self.topk, expected));
        }
        if !experts.is_multiple_of(self.groups) {
            let expected = format!("a divisor of the {experts} experts");
            return Err(Error::invalid("groups", self.groups, expected));
        }
        if !(1..=self.groups).contains(&self.topk_groups) {
            let expected = format!("1 to the {} groups", self.groups);
            return Err(Error::invalid("topk_groups", self.topk_groups, expected));
        }
        let eligible = self.topk_groups * (experts / self.groups);
        if self.topk > eligible {
            let expected = format!("at most the {eligible} experts of topk_groups groups");
            return Err(Error::invalid("topk", self.topk, expected));
        }
        if !self.scale.is_finite() {
            return Err(Error::invalid("scale", self.scale, "a finite number"));
        }
        Ok(())
    }
}

fn present(name: &'static str, desc: Option<TensorDesc>, output: bool) -> Option<Operand> {
    desc.map(|desc| Operand { name, desc, output })
}

/// Checks that an operand is of a float dtype. The answer is what keeps a sound problem from running, if anything does.
fn float_operand(name: &str, desc: &TensorDesc) -> Result<Option<Error>> {
    match desc.dtype {
        DType::F32 | DType::F16 | DType::BF16 => {}
        DType::F8E4M3 | DType::F8E5M2 => {
            let reason = format!("{name} in {}: F32, F16 and BF16 are", desc.dtype);
            return Ok(Some(Error::unsupported(reason)));
        }
        other => return Err(Error::invalid(name, other, "F32, F16 or BF16")),
    }
    Ok(None)
}

/// tokens · topk, which I32 must be able to number.
fn slots(name: &str, tokens: u64, topk: u64) -> Result<u64> {
    let slots = tokens.checked_mul(topk);
    slots.filter(|&n| n <= i32::MAX as u64).ok_or_else(|| {
        let found = format!("{tokens} tokens of {topk} experts");
        let expected = format!("at most {} rows, as I32 numbers them", i32::MAX);
        Error::invalid(name, found, expected)
    })
}

/// Bytes of the different elements of an operand (an axis of stride 0 counts once).
fn bytes(desc: &TensorDesc) -> f64 {
    let extents = desc.shape().iter().zip(desc.layout.strides());
    let different = extents.map(|(&extent, &stride)| match stride {
        0 => extent.min(1) as f64,
        _ => extent as f64,
    });
    different.product::<f64>() * desc.dtype.size().unwrap_or(1) as f64
}

/// An input of `rank` dimensions.
fn tensor<'a>(inputs: &'a Operands, name: &str, rank: usize) -> Result<&'a HostTensor> {
    match inputs.get(name) {
        None => Err(Error::invalid(name, "nothing", "a tensor")),
        Some(tensor) if tensor.shape().len() == rank => Ok(tensor),
        Some(tensor) => {
            let found = format!("shape {:?}", tensor.shape());
            Err(Error::invalid(name, found, format!("{rank} dimensions")))
        }
    }
}
