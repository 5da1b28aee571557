//! Reference.

use proptest::strategy::{BoxedStrategy, Just, Strategy};
use ropeway_core::op::Op;
use ropeway_core::request::Operands;
use ropeway_core::spec::{DataClass, Expected, OpSpec, Recipe};
use ropeway_core::{Error, Result};

/// The mathematics of `gemm`.
pub(super) struct GemmSpec;

impl OpSpec for GemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("gemm has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::gemm()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("gemm", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `grouped_gemm`.
pub(super) struct GroupedGemmSpec;

impl OpSpec for GroupedGemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported("grouped_gemm has no reference yet"))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::grouped_gemm()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new("grouped_gemm", "empty", DataClass::Exact, 0)).boxed()
    }
}

/// The mathematics of `grouped_gemm_masked`.
pub(super) struct MaskedGroupedGemmSpec;

impl OpSpec for MaskedGroupedGemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let _ = (op, inputs, data);
        Err(Error::unsupported(
            "grouped_gemm_masked has no reference yet",
        ))
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::grouped_gemm_masked()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        Just(Recipe::new(
            "grouped_gemm_masked",
            "empty",
            DataClass::Exact,
            0,
        ))
        .boxed()
    }
}
