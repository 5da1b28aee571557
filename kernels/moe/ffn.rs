//! `moe_ffn`: a whole mixture-of-experts layer on the device.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::{DType, Error, Result};

use super::{
    Routing, bytes, check_output, dims, expect, float_operand, output, plan, present, slots,
};

/// Route, scatter, grouped product with swiglu, grouped product, gather, with no host synchronisation.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeFfn {
    /// [tokens, hidden].
    pub x: TensorDesc,
    /// [tokens, experts].
    pub logits: TensorDesc,
    /// F32 `[experts]`.
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
    /// A layer with contiguous outputs; what else a problem has is filled in and then [checked](MoeFfn::checked).
    ///
    /// # Errors
    /// `InvalidArgument` if `x` has not two dimensions or the size of an output overflows.
    pub fn new(
        x: TensorDesc,
        logits: TensorDesc,
        w_gate_up: TensorDesc,
        w_down: TensorDesc,
        routing: Routing,
    ) -> Result<MoeFfn> {
        let [tokens, hidden] = dims("x", &x, "[tokens, hidden]")?;
        Ok(MoeFfn {
            x,
            logits,
            bias: None,
            w_gate_up,
            w_down,
            y: output("y", x.dtype, &[tokens, hidden])?,
            topk_ids: output("topk_ids", DType::I32, &[tokens, routing.topk])?,
            routing,
        })
    }

    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 operands and for weights of another dtype than
    /// that of `x`.
    pub fn checked(self) -> Result<MoeFfn> {
        let axes = "[experts, 2 * inter, hidden]";
        let [tokens, hidden] = dims("x", &self.x, "[tokens, hidden]")?;
        let [_, experts] = dims("logits", &self.logits, "[tokens, experts]")?;
        let [_, gate_up, _] = dims("w_gate_up", &self.w_gate_up, axes)?;
        let mut lack = None;
        for (name, desc) in [
            ("w_gate_up", &self.w_gate_up),
            ("w_down", &self.w_down),
            ("logits", &self.logits),
            ("x", &self.x),
        ] {
            lack = float_operand(name, desc)?.or(lack);
        }
        expect("x", &self.x, self.x.dtype, &[tokens, hidden])?;
        let dtype = self.logits.dtype;
        expect("logits", &self.logits, dtype, &[tokens, experts])?;
        if let Some(bias) = &self.bias {
            expect("bias", bias, DType::F32, &[experts])?;
        }
        self.routing.check(experts)?;
        slots("topk", tokens, self.routing.topk)?;
        if gate_up % 2 != 0 {
            let found = format!("{gate_up} rows an expert");
            let expected = "an even number, half for the gate";
            return Err(Error::invalid("w_gate_up", found, expected));
        }
        let (dtype, shape) = (self.w_gate_up.dtype, [experts, gate_up, hidden]);
        expect("w_gate_up", &self.w_gate_up, dtype, &shape)?;
        let (dtype, shape) = (self.w_down.dtype, [experts, hidden, gate_up / 2]);
        expect("w_down", &self.w_down, dtype, &shape)?;
        check_output("y", &self.y, self.x.dtype, &[tokens, hidden])?;
        let chosen = [tokens, self.routing.topk];
        check_output("topk_ids", &self.topk_ids, DType::I32, &chosen)?;
        for (name, weights) in [("w_gate_up", &self.w_gate_up), ("w_down", &self.w_down)] {
            let (x, found) = (self.x.dtype, weights.dtype);
            if found != x && lack.is_none() {
                let reason = format!("{name} in {found} with x in {x}: one dtype for both is");
                lack = Some(Error::unsupported(reason));
            }
        }
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<MoeFfn> {
        signature.only(MoeFfnKind.inputs())?;
        let [x, logits, w_gate_up, w_down] =
            ["x", "logits", "w_gate_up", "w_down"].map(|name| signature.required(name));
        let (x, logits, w_gate_up, w_down) = (x?, logits?, w_gate_up?, w_down?);
        let mut attrs = signature.attrs();
        let routing = Routing::read(&mut attrs)?;
        attrs.finish()?;
        // A topk beyond the experts is said to be that, before the size of the outputs overflows.
        let [_, experts] = dims("logits", &logits, "[tokens, experts]")?;
        routing.check(experts)?;
        MoeFfn {
            bias: signature.optional("bias"),
            ..MoeFfn::new(x, logits, w_gate_up, w_down, routing)?
        }
        .checked()
    }

    /// Rows of x.
    pub fn tokens(&self) -> u64 {
        self.x.shape()[0]
    }

    /// Elements of a row; may be 0.
    pub fn hidden(&self) -> u64 {
        self.x.shape()[1]
    }

    /// Experts; at least 1.
    pub fn experts(&self) -> u64 {
        self.logits.shape()[1]
    }

    /// Experts a token; 1 to `experts`.
    pub fn topk(&self) -> u64 {
        self.routing.topk
    }

    /// Elements between the two products; may be 0.
    pub fn inter(&self) -> u64 {
        self.w_down.shape()[2]
    }

    /// Work with as many experts in use as the tokens can reach.
    fn work(&self) -> Cost {
        let rows = self.tokens() as f64 * self.topk() as f64;
        let (hidden, inter) = (self.hidden() as f64, self.inter() as f64);
        let reached = (rows / self.experts() as f64).min(1.0);
        let rest = [
            Some(self.x),
            Some(self.logits),
            self.bias,
            Some(self.y),
            Some(self.topk_ids),
        ];
        Cost {
            // Gate and up, then down, then the weighted sum.
            flops: rows * (4.0 * inter * hidden + 2.0 * inter * hidden + 2.0 * hidden),
            bytes: reached * (bytes(&self.w_gate_up) + bytes(&self.w_down))
                + rest.iter().flatten().map(bytes).sum::<f64>(),
        }
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
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::MoeFfnSpec
    }
}
