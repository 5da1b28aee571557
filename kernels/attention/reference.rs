//! Reference.

use proptest::strategy::{BoxedStrategy, Just, Strategy};
use ropeway_core::op::Op;
use ropeway_core::request::Operands;
use ropeway_core::spec::{DataClass, Expected, OpSpec, Recipe};
use ropeway_core::{Error, Result};

/// The mathematics of `attention`.
pub(super) struct AttentionSpec;

impl OpSpec for AttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("attention has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("attention", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `attention_varlen`.
pub(super) struct VarlenAttentionSpec;

impl OpSpec for VarlenAttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("attention_varlen has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention_varlen()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new(
            "attention_varlen",
            "empty",
            DataClass::Exact,
            0,
        ))
        .boxed()
    }
}

/// The mathematics of `attention_paged`.
pub(super) struct PagedAttentionSpec;

impl OpSpec for PagedAttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("attention_paged has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention_paged()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("attention_paged", "empty", DataClass::Exact, 0)).boxed()
    }
}
