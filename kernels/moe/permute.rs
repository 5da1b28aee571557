//! `expert_scatter` and `expert_gather`: token rows into expert order, and back, weighted.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::Operands;
use ropeway_core::{DType, Error, Result};

use super::{
    bytes, check_output, dims, expect, float_operand, output, plan, present, slots, tensor,
};

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
    /// A permutation into contiguous outputs; other layouts are filled in and then [checked](ExpertScatter::checked).
    ///
    /// # Errors
    /// `InvalidArgument` if `x` or `topk_ids` has not two dimensions or there are more rows or experts than I32 can number.
    pub fn new(x: TensorDesc, topk_ids: TensorDesc, experts: u64) -> Result<ExpertScatter> {
        let [_, hidden] = dims("x", &x, "[tokens, hidden]")?;
        let [tokens, topk] = dims("topk_ids", &topk_ids, "[tokens, topk]")?;
        let rows = slots("topk_ids", tokens, topk)?;
        if experts > i32::MAX as u64 {
            let expected = "as many experts as I32 can number";
            return Err(Error::invalid("experts", experts, expected));
        }
        Ok(ExpertScatter {
            x,
            topk_ids,
            rows: output("rows", x.dtype, &[rows, hidden])?,
            expert_offsets: output("expert_offsets", DType::I32, &[experts + 1])?,
            source: output("source", DType::I32, &[rows])?,
            experts,
        })
    }

    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 rows.
    pub fn checked(self) -> Result<ExpertScatter> {
        let plain = ExpertScatter::new(self.x, self.topk_ids, self.experts)?;
        let [tokens, hidden] = dims("x", &self.x, "[tokens, hidden]")?;
        let [_, topk] = dims("topk_ids", &self.topk_ids, "[tokens, topk]")?;
        let lack = float_operand("x", &self.x)?;
        expect("x", &self.x, self.x.dtype, &[tokens, hidden])?;
        expect("topk_ids", &self.topk_ids, DType::I32, &[tokens, topk])?;
        let outputs = [
            ("rows", &self.rows, &plain.rows),
            (
                "expert_offsets",
                &self.expert_offsets,
                &plain.expert_offsets,
            ),
            ("source", &self.source, &plain.source),
        ];
        for (name, desc, plain) in outputs {
            check_output(name, desc, plain.dtype, plain.shape())?;
        }
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<ExpertScatter> {
        signature.only(ExpertScatterKind.inputs())?;
        let x = signature.required("x")?;
        let topk_ids = signature.required("topk_ids")?;
        let mut attrs = signature.attrs();
        let experts = attrs.required_size("experts")?;
        attrs.finish()?;
        ExpertScatter::new(x, topk_ids, experts)?.checked()
    }

    /// Rows of x.
    pub fn tokens(&self) -> u64 {
        self.x.shape()[0]
    }

    /// Elements of a row.
    pub fn hidden(&self) -> u64 {
        self.x.shape()[1]
    }

    /// Experts a token; may be 0.
    pub fn topk(&self) -> u64 {
        self.topk_ids.shape()[1]
    }

    /// Number of experts; may be 0.
    pub fn experts(&self) -> u64 {
        self.experts
    }

    fn work(&self) -> Cost {
        let operands = [
            self.x,
            self.topk_ids,
            self.rows,
            self.expert_offsets,
            self.source,
        ];
        Cost {
            flops: 0.0,
            bytes: operands.iter().map(bytes).sum(),
        }
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

    /// Every id −1 or an expert.
    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op: &ExpertScatter = described(op)?;
        let ids = tensor(inputs, "topk_ids", 2)?;
        let topk = ids.shape()[1].max(1) as usize;
        for (slot, &id) in ids.to_i32()?.iter().enumerate() {
            if !(-1..op.experts as i64).contains(&i64::from(id)) {
                let element = format!("topk_ids[{}, {}]", slot / topk, slot % topk);
                let expected = format!("−1 or an expert below {}", op.experts);
                return Err(Error::invalid(&element, id, expected));
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::ExpertScatterSpec
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
    /// A combination into a contiguous output; another layout is filled in and then [checked](ExpertGather::checked).
    ///
    /// # Errors
    /// `InvalidArgument` if `rows` or `topk_weights` has not two dimensions.
    pub fn new(
        rows: TensorDesc,
        source: TensorDesc,
        topk_weights: TensorDesc,
    ) -> Result<ExpertGather> {
        let [_, hidden] = dims("rows", &rows, "[tokens * topk, hidden]")?;
        let [tokens, _] = dims("topk_weights", &topk_weights, "[tokens, topk]")?;
        Ok(ExpertGather {
            rows,
            source,
            topk_weights,
            y: output("y", rows.dtype, &[tokens, hidden])?,
        })
    }

    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor, `Unsupported` for F8 rows.
    pub fn checked(self) -> Result<ExpertGather> {
        let [_, hidden] = dims("rows", &self.rows, "[tokens * topk, hidden]")?;
        let [tokens, topk] = dims("topk_weights", &self.topk_weights, "[tokens, topk]")?;
        let lack = float_operand("rows", &self.rows)?;
        let rows = slots("topk_weights", tokens, topk)?;
        expect("rows", &self.rows, self.rows.dtype, &[rows, hidden])?;
        expect("source", &self.source, DType::I32, &[rows])?;
        let weights = &self.topk_weights;
        expect("topk_weights", weights, DType::F32, &[tokens, topk])?;
        check_output("y", &self.y, self.rows.dtype, &[tokens, hidden])?;
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<ExpertGather> {
        signature.only(ExpertGatherKind.inputs())?;
        let [rows, source, topk_weights] =
            ["rows", "source", "topk_weights"].map(|name| signature.required(name));
        signature.attrs().finish()?;
        ExpertGather::new(rows?, source?, topk_weights?)?.checked()
    }

    /// Rows of y.
    pub fn tokens(&self) -> u64 {
        self.topk_weights.shape()[0]
    }

    /// Elements of a row.
    pub fn hidden(&self) -> u64 {
        self.rows.shape()[1]
    }

    /// Experts a token; may be 0.
    pub fn topk(&self) -> u64 {
        self.topk_weights.shape()[1]
    }

    fn work(&self) -> Cost {
        let operands = [self.rows, self.source, self.topk_weights, self.y];
        let terms = self.tokens() as f64 * self.topk() as f64 * self.hidden() as f64;
        Cost {
            flops: 2.0 * terms,
            bytes: operands.iter().map(bytes).sum(),
        }
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

    /// Every source −1 or a slot, none of them twice.
    fn check_values(&self, _: &dyn Op, inputs: &Operands) -> Result<()> {
        let sources = tensor(inputs, "source", 1)?.to_i32()?;
        let mut row_of = vec![None; sources.len()];
        for (row, &source) in sources.iter().enumerate() {
            let element = || format!("source[{row}]");
            match usize::try_from(source) {
                Ok(slot) if slot < row_of.len() => {
                    if let Some(earlier) = row_of[slot].replace(row) {
                        let found = format!("{source}, as source[{earlier}]");
                        return Err(Error::invalid(&element(), found, "each slot once"));
                    }
                }
                _ if source == -1 => {}
                _ => {
                    let expected = format!("−1 or a slot below {}", row_of.len());
                    return Err(Error::invalid(&element(), source, expected));
                }
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::ExpertGatherSpec
    }
}

/// The op's own type.
fn described<T: Op>(op: &dyn Op) -> Result<&T> {
    op.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("op", op.name(), "the op whose values are checked"))
}
