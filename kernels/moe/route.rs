//! `moe_route`: which experts a token goes to, and how they are weighed.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::{DType, Result};

use super::{Routing, bytes, check_output, dims, expect, float_operand, output, plan, present};

/// Chooses `topk` experts for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeRoute {
    /// [tokens, experts].
    pub logits: TensorDesc,
    /// F32 `[experts]`; added to the scores for the choice only.
    pub bias: Option<TensorDesc>,
    /// I32 [tokens, topk], best first.
    pub topk_ids: TensorDesc,
    /// F32 [tokens, topk].
    pub topk_weights: TensorDesc,
    /// Choice and weights.
    pub routing: Routing,
}

impl MoeRoute {
    /// Routing with contiguous outputs. What else a problem has is filled in and then [checked](MoeRoute::checked):
    ///
    /// ```
    /// # use ropeway_core::{DType, Result, memory::TensorDesc};
    /// # use ropeway_kernels::moe::{MoeRoute, Routing, Score};
    /// # fn main() -> Result<()> {
    /// let logits = TensorDesc::contiguous(DType::F32, &[64, 256])?;
    /// let routing = Routing { score: Score::Sigmoid, groups: 8, topk_groups: 4, ..Routing::new(8) };
    /// let op = MoeRoute {
    ///     bias: Some(TensorDesc::contiguous(DType::F32, &[256])?),
    ///     ..MoeRoute::new(logits, routing)?
    /// }
    /// .checked()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` if `logits` has not two dimensions or the size of an output overflows.
    pub fn new(logits: TensorDesc, routing: Routing) -> Result<MoeRoute> {
        let [tokens, _] = dims("logits", &logits, "[tokens, experts]")?;
        Ok(MoeRoute {
            logits,
            bias: None,
            topk_ids: output("topk_ids", DType::I32, &[tokens, routing.topk])?,
            topk_weights: output("topk_weights", DType::F32, &[tokens, routing.topk])?,
            routing,
        })
    }

    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 logits.
    pub fn checked(self) -> Result<MoeRoute> {
        let [tokens, experts] = dims("logits", &self.logits, "[tokens, experts]")?;
        let lack = float_operand("logits", &self.logits)?;
        let dtype = self.logits.dtype;
        expect("logits", &self.logits, dtype, &[tokens, experts])?;
        if let Some(bias) = &self.bias {
            expect("bias", bias, DType::F32, &[experts])?;
        }
        self.routing.check(experts)?;
        let chosen = [tokens, self.routing.topk];
        check_output("topk_ids", &self.topk_ids, DType::I32, &chosen)?;
        check_output("topk_weights", &self.topk_weights, DType::F32, &chosen)?;
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<MoeRoute> {
        signature.only(MoeRouteKind.inputs())?;
        let logits = signature.required("logits")?;
        let mut attrs = signature.attrs();
        let routing = Routing::read(&mut attrs)?;
        attrs.finish()?;
        // A topk beyond the experts is said to be that, before the size of the outputs overflows.
        let [_, experts] = dims("logits", &logits, "[tokens, experts]")?;
        routing.check(experts)?;
        MoeRoute {
            bias: signature.optional("bias"),
            ..MoeRoute::new(logits, routing)?
        }
        .checked()
    }

    /// Rows of logits.
    pub fn tokens(&self) -> u64 {
        self.logits.shape()[0]
    }

    /// Experts; at least 1.
    pub fn experts(&self) -> u64 {
        self.logits.shape()[1]
    }

    /// Experts a token; 1 to `experts`.
    pub fn topk(&self) -> u64 {
        self.routing.topk
    }

    fn work(&self) -> Cost {
        let operands = [
            Some(self.logits),
            self.bias,
            Some(self.topk_ids),
            Some(self.topk_weights),
        ];
        Cost {
            // Of each logit: the exponential, its sum, the bias, the comparison.
            flops: 4.0 * self.tokens() as f64 * self.experts() as f64,
            bytes: operands.iter().flatten().map(bytes).sum(),
        }
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
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::MoeRouteSpec
    }
}
