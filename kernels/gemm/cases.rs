//! Cases.

use ropeway_core::spec::Recipe;

pub(super) fn gemm() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn grouped_gemm() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn grouped_gemm_masked() -> Vec<Recipe> {
    Vec::new()
}

use proptest::strategy::{BoxedStrategy, Just, Strategy};
use ropeway_core::spec::DataClass;
pub(super) fn gemm_strategy() -> BoxedStrategy<Recipe> {
    Just(Recipe::new("gemm", "empty", DataClass::Exact, 0)).boxed()
}
pub(super) fn grouped_gemm_strategy() -> BoxedStrategy<Recipe> {
    Just(Recipe::new("gemm", "empty", DataClass::Exact, 0)).boxed()
}
pub(super) fn grouped_gemm_masked_strategy() -> BoxedStrategy<Recipe> {
    Just(Recipe::new("gemm", "empty", DataClass::Exact, 0)).boxed()
}
