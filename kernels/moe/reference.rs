//! Reference.

use proptest::strategy::{BoxedStrategy, Just, Strategy};
use ropeway_core::op::Op;
use ropeway_core::request::Operands;
use ropeway_core::spec::{DataClass, Expected, OpSpec, Recipe};
use ropeway_core::{Error, Result};

/// The mathematics of `moe_route`.
pub(super) struct MoeRouteSpec;

impl OpSpec for MoeRouteSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("moe_route has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::moe_route()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("moe_route", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `expert_scatter`.
pub(super) struct ExpertScatterSpec;

impl OpSpec for ExpertScatterSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("expert_scatter has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::expert_scatter()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("expert_scatter", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `expert_gather`.
pub(super) struct ExpertGatherSpec;

impl OpSpec for ExpertGatherSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("expert_gather has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::expert_gather()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("expert_gather", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `moe_ffn`.
pub(super) struct MoeFfnSpec;

impl OpSpec for MoeFfnSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("moe_ffn has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::moe_ffn()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("moe_ffn", "empty", DataClass::Exact, 0)).boxed()
    }
}
