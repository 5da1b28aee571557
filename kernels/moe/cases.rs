//! Cases.

use ropeway_core::spec::Recipe;

pub(super) fn moe_route() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn expert_scatter() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn expert_gather() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn moe_ffn() -> Vec<Recipe> {
    Vec::new()
}
