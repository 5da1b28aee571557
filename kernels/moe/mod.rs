//! Mixture of experts: `moe_route`, `expert_scatter`, `expert_gather` and `moe_ffn`.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

#[cfg(feature = "spec")]
mod cases;
mod manifest;
mod native;
mod plan;
#[cfg(feature = "spec")]
mod reference;

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

/// Chooses `topk` experts for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeRoute {
    /// [tokens, experts].
    pub logits: TensorDesc,
    /// F32 [experts]; added to the scores for the choice only.
    pub bias: Option<TensorDesc>,
    /// I32 [tokens, topk], best first.
    pub topk_ids: TensorDesc,
    /// F32 [tokens, topk].
    pub topk_weights: TensorDesc,
    /// Choice and weights.
    pub routing: Routing,
}

impl MoeRoute {
    fn parse(signature: &Signature) -> Result<MoeRoute> {
        let _ = signature;
        Err(Error::unsupported("moe_route is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for MoeRoute {
    fn name(&self) -> &'static str {
        "moe_route"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("logits", Some(self.logits), false),
            present("bias", self.bias, false),
            present("topk_ids", Some(self.topk_ids), true),
            present("topk_weights", Some(self.topk_weights), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::moe_route_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::moe_route(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `moe_route` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct MoeRouteKind;

impl OpKind for MoeRouteKind {
    fn name(&self) -> &'static str {
        "moe_route"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["logits", "bias"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(MoeRoute::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::MoeRouteSpec
    }
}

/// Brings token rows into expert order, stable in (token, slot).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertScatter {
    /// [tokens, hidden].
    pub x: TensorDesc,
    /// I32 [tokens, topk], on the device; −1 for no expert.
    pub topk_ids: TensorDesc,
    /// [tokens · topk, hidden].
    pub rows: TensorDesc,
    /// I32 [experts + 1].
    pub expert_offsets: TensorDesc,
    /// I32 [tokens · topk]: token · topk + slot of each row, −1 past the last.
    pub source: TensorDesc,
    /// Number of experts.
    pub experts: u64,
}

impl ExpertScatter {
    fn parse(signature: &Signature) -> Result<ExpertScatter> {
        let _ = signature;
        Err(Error::unsupported("expert_scatter is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for ExpertScatter {
    fn name(&self) -> &'static str {
        "expert_scatter"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("x", Some(self.x), false),
            present("topk_ids", Some(self.topk_ids), false),
            present("rows", Some(self.rows), true),
            present("expert_offsets", Some(self.expert_offsets), true),
            present("source", Some(self.source), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::expert_scatter_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::expert_scatter(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `expert_scatter` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct ExpertScatterKind;

impl OpKind for ExpertScatterKind {
    fn name(&self) -> &'static str {
        "expert_scatter"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["x", "topk_ids"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(ExpertScatter::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::ExpertScatterSpec
    }
}

/// Adds each token's rows, weighted, in slot order.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertGather {
    /// [tokens · topk, hidden].
    pub rows: TensorDesc,
    /// I32 [tokens · topk], on the device.
    pub source: TensorDesc,
    /// F32 [tokens, topk].
    pub topk_weights: TensorDesc,
    /// [tokens, hidden].
    pub y: TensorDesc,
}

impl ExpertGather {
    fn parse(signature: &Signature) -> Result<ExpertGather> {
        let _ = signature;
        Err(Error::unsupported("expert_gather is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for ExpertGather {
    fn name(&self) -> &'static str {
        "expert_gather"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("rows", Some(self.rows), false),
            present("source", Some(self.source), false),
            present("topk_weights", Some(self.topk_weights), false),
            present("y", Some(self.y), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::expert_gather_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::expert_gather(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `expert_gather` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct ExpertGatherKind;

impl OpKind for ExpertGatherKind {
    fn name(&self) -> &'static str {
        "expert_gather"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["rows", "source", "topk_weights"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(ExpertGather::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::ExpertGatherSpec
    }
}

/// Route, scatter, grouped product with swiglu, grouped product, gather, with no host synchronisation.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeFfn {
    /// [tokens, hidden].
    pub x: TensorDesc,
    /// [tokens, experts].
    pub logits: TensorDesc,
    /// F32 [experts].
    pub bias: Option<TensorDesc>,
    /// [experts, 2 · inter, hidden].
    pub w_gate_up: TensorDesc,
    /// [experts, hidden, inter].
    pub w_down: TensorDesc,
    /// [tokens, hidden].
    pub y: TensorDesc,
    /// I32 [tokens, topk].
    pub topk_ids: TensorDesc,
    /// Choice and weights.
    pub routing: Routing,
}

impl MoeFfn {
    fn parse(signature: &Signature) -> Result<MoeFfn> {
        let _ = signature;
        Err(Error::unsupported("moe_ffn is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for MoeFfn {
    fn name(&self) -> &'static str {
        "moe_ffn"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("x", Some(self.x), false),
            present("logits", Some(self.logits), false),
            present("bias", self.bias, false),
            present("w_gate_up", Some(self.w_gate_up), false),
            present("w_down", Some(self.w_down), false),
            present("y", Some(self.y), true),
            present("topk_ids", Some(self.topk_ids), true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::moe_ffn_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::moe_ffn(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `moe_ffn` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct MoeFfnKind;

impl OpKind for MoeFfnKind {
    fn name(&self) -> &'static str {
        "moe_ffn"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["x", "logits", "bias", "w_gate_up", "w_down"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(MoeFfn::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::MoeFfnSpec
    }
}

fn present(name: &'static str, desc: Option<TensorDesc>, output: bool) -> Option<Operand> {
    desc.map(|desc| Operand { name, desc, output })
}
