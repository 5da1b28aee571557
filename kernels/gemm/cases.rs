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
