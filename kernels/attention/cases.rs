//! Cases.

use ropeway_core::spec::Recipe;

pub(super) fn attention() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn attention_varlen() -> Vec<Recipe> {
    Vec::new()
}

pub(super) fn attention_paged() -> Vec<Recipe> {
    Vec::new()
}
