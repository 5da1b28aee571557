//! Cases of the mixture-of-experts ops: the fixed ones of the gate, and strategies for random ones.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Random, Recipe, Special, patched, seed_of, uniform};
use serde_json::{Map, Value, json};

use DType::{BF16, F16, F32, I32};

mod ffn;
mod routing;
mod rows;
mod strategy;

pub(super) use ffn::moe_ffn;
pub(super) use routing::moe_route;
pub(super) use rows::{expert_gather, expert_scatter};
pub(super) use strategy::{
    expert_gather_strategy, expert_scatter_strategy, moe_ffn_strategy, moe_route_strategy,
};

fn recipe(op: &str, name: &str, data: DataClass) -> Recipe {
    Recipe::new(op, name, data, seed_of(name))
}

fn integers(low: i64, high: i64) -> Fill {
    Fill::Integers { low, high }
}

/// `json!({…})` as attributes.
fn attrs(recipe: Recipe, attrs: Value) -> Recipe {
    let Value::Object(attrs) = attrs else {
        unreachable!("attributes are an object");
    };
    Recipe { attrs, ..recipe }
}

/// A matrix whose rows lie `gap` elements apart, the gaps NaN.
fn padded(
    recipe: Recipe,
    name: &str,
    dtype: DType,
    shape: [u64; 2],
    gap: u64,
    fill: Fill,
) -> Recipe {
    let [rows, columns] = shape;
    let stored = format!("{name}_stored");
    let fill = Fill::Poisoned {
        base: Box::new(fill),
        period: columns + gap,
        begin: columns,
        end: columns + gap,
    };
    recipe
        .tensor(&stored, dtype, &[rows, columns + gap], fill)
        .view(name, &stored, &shape, &[columns + gap, 1], 0)
}

fn route(name: &str, dtype: DType, shape: [u64; 2], logits: Fill, attributes: Value) -> Recipe {
    let recipe = recipe("moe_route", name, DataClass::Adversarial);
    attrs(recipe, attributes).tensor("logits", dtype, &shape, logits)
}

/// Sizes are [tokens, hidden], [topk, experts].
fn scatter(name: &str, dtype: DType, x: [u64; 2], ids: [u64; 2], fill: Fill) -> Recipe {
    let recipe = recipe("expert_scatter", name, DataClass::Exact)
        .tensor("x", dtype, &x, uniform(1.0))
        .tensor("topk_ids", I32, &[x[0], ids[0]], fill);
    recipe.attr("experts", ids[1])
}

/// Every slot once in some order, of which `dropped` are −1 instead.
fn sources(slots: u64, dropped: u64, seed: u64) -> Fill {
    let mut random = Random::new(seed);
    let mut sources: Vec<f64> = (0..slots).map(|slot| slot as f64).collect();
    for last in (1..sources.len()).rev() {
        sources.swap(last, random.below(last as u64 + 1) as usize);
    }
    for _ in 0..dropped.min(slots) {
        sources[random.below(slots) as usize] = -1.0;
    }
    if sources.is_empty() {
        sources.push(-1.0);
    }
    Fill::Values(sources)
}

/// Sizes are [tokens, topk], hidden.
fn gather(name: &str, dtype: DType, slots: [u64; 2], hidden: u64, dropped: u64) -> Recipe {
    let rows = slots[0] * slots[1];
    recipe("expert_gather", name, DataClass::Random)
        .tensor("rows", dtype, &[rows, hidden], uniform(1.0))
        .tensor(
            "source",
            I32,
            &[rows],
            sources(rows, dropped, seed_of(name)),
        )
        .tensor("topk_weights", F32, &slots, uniform(1.0))
}

/// With data of which every sum is exact.
fn exact(mut recipe: Recipe) -> Recipe {
    recipe.data = DataClass::Exact;
    recipe.tensors[0].fill = integers(-4, 4);
    recipe.tensors[2].fill = integers(-2, 2);
    recipe
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    tokens: u64,
    hidden: u64,
    inter: u64,
    experts: u64,
}

/// Gate, up and output have a standard deviation of about 1.
fn ffn(name: &str, dtype: DType, layer: Layer, attributes: Value) -> Recipe {
    let Layer {
        tokens,
        hidden,
        inter,
        experts,
    } = layer;
    let scale = |n: u64| uniform((3072.0 / (n.max(1) as f64).sqrt()).round() / 1024.0);
    attrs(recipe("moe_ffn", name, DataClass::Random), attributes)
        .tensor("x", dtype, &[tokens, hidden], uniform(1.0))
        .tensor("logits", dtype, &[tokens, experts], uniform(3.0))
        .tensor(
            "w_gate_up",
            dtype,
            &[experts, 2 * inter, hidden],
            scale(hidden),
        )
        .tensor("w_down", dtype, &[experts, hidden, inter], scale(inter))
}

/// Sizes are [tokens, hidden], [experts, inter].
fn layer(x: [u64; 2], weights: [u64; 2]) -> Layer {
    Layer {
        tokens: x[0],
        hidden: x[1],
        experts: weights[0],
        inter: weights[1],
    }
}
