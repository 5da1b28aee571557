//! Cases of the ops of this folder: the fixed ones of the gate, and strategies for random ones.

use proptest::prelude::*;
use proptest::sample::select;
use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Random, Recipe, Special, patched, seed_of, uniform};

use DType::{BF16, F16, F32, I32};

pub(super) mod argsort;
mod pointwise;
mod reduce;
pub(super) mod rope;
mod rows;

pub(super) use pointwise::{copy, elementwise, glu, unary};
pub(super) use reduce::{norm, softmax, sum_rows};
pub(super) use rows::{get_rows, set_rows};

fn recipe(op: &str, name: &str, data: DataClass) -> Recipe {
    Recipe::new(op, name, data, seed_of(name))
}

fn integers(low: i64, high: i64) -> Fill {
    Fill::Integers { low, high }
}

fn plain() -> Fill {
    uniform(2.0)
}

/// An operand that is stored with its axes in another order, `gap` elements after each innermost row, which are NaN.
///
/// `order[0]` is the axis of the operand that is outermost in memory.
fn strided(
    recipe: Recipe,
    name: &str,
    dtype: DType,
    shape: &[u64],
    order: &[usize],
    gap: u64,
    fill: Fill,
) -> Recipe {
    let mut stored_shape: Vec<u64> = order.iter().map(|&axis| shape[axis]).collect();
    let inner = stored_shape.last().copied().unwrap_or(1);
    if let Some(last) = stored_shape.last_mut() {
        *last += gap;
    }
    let mut strides = vec![0; shape.len()];
    let mut next = 1;
    for (&axis, &extent) in order.iter().zip(&stored_shape).rev() {
        strides[axis] = next;
        next *= extent.max(1);
    }
    let stored = format!("{name}_stored");
    let fill = Fill::Poisoned {
        base: Box::new(fill),
        period: (inner + gap).max(1),
        begin: inner,
        end: inner + gap,
    };
    recipe
        .tensor(&stored, dtype, &stored_shape, fill)
        .view(name, &stored, shape, &strides, 0)
}

/// Ids of rows, each at most once in each list of `m`.
fn distinct(m: u64, rows: u64, lists: u64, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let mut ids = Vec::new();
    for _ in 0..lists {
        let mut all: Vec<u64> = (0..rows).collect();
        for last in (1..all.len()).rev() {
            all.swap(last, random.below(last as u64 + 1) as usize);
        }
        ids.extend(all.into_iter().take(m as usize));
    }
    ids
}

/// These numbers; one that is never read if there are none.
fn values(numbers: impl IntoIterator<Item = u64>) -> Fill {
    let numbers: Vec<f64> = numbers.into_iter().map(|n| n as f64).collect();
    Fill::Values(if numbers.is_empty() {
        vec![0.0]
    } else {
        numbers
    })
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![2 => Just(F32), 1 => Just(F16), 1 => Just(BF16)]
}

/// One to four small extents; what fails is shrunk towards few and small ones.
fn shapes() -> impl Strategy<Value = Vec<u64>> {
    let columns = prop_oneof![4 => 0u64..=40, 1 => select(vec![64u64, 96, 128, 257])];
    (proptest::collection::vec(0u64..=4, 0..=3), columns).prop_map(|(mut shape, columns)| {
        shape.push(columns);
        shape
    })
}

/// A seed that stays when the rest of a case shrinks.
fn seeds() -> impl Strategy<Value = u64> {
    any::<u64>().no_shrink()
}

/// An operand with its rows apart, or its axes in another order, or neither.
fn laid_out(
    recipe: Recipe,
    name: &str,
    dtype: DType,
    shape: &[u64],
    layout: u8,
    fill: Fill,
) -> Recipe {
    let mut order: Vec<usize> = (0..shape.len()).collect();
    match layout {
        1 => strided(recipe, name, dtype, shape, &order, 3, fill),
        2 => {
            order.reverse();
            strided(recipe, name, dtype, shape, &order, 1, fill)
        }
        _ => recipe.tensor(name, dtype, shape, fill),
    }
}

fn layouts() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 1 => Just(1u8), 1 => Just(2u8)]
}

fn lower(dtype: DType) -> String {
    dtype.name().to_lowercase()
}
