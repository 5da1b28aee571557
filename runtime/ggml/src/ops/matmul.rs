//! `MUL_MAT`: `node[n, m] = src0[k, n]ᵀ src1[k, m]`, extents innermost first, over two more dimensions in which src0 repeats.

use ropeway::prelude::gemm::Gemm;
use ropeway::prelude::*;

use super::layer::whole;
use super::{Binding, Place, Recipe, strided};
use crate::tensor::Tensor;

/// One of the dimensions over which a product repeats, with the strides of x, w and the node.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    extent: u64,
    strides: [u64; 3],
}

/// The node's `gemm`: a is src1, b src0, which is stored [n, k].
pub fn recipe(node: Tensor<'_>) -> Result<Recipe> {
    let (w, x) = (node.operand(0)?, node.operand(1)?);
    let weights = w.weights()?;
    let (dw, dd) = (weights.dtype, node.dtype()?);
    let [k, n, w2, w3] = w.ne();
    let [_, m, x2, x3] = x.ne();
    let mut recipe = Recipe::default();
    let (mut x_bound, mut sx) = (Binding::new(Place::Src(1), whole(x)?), x.strides()?);
    // The one pair of dtypes that the op has only the other way round.
    if (x.dtype()?, dw) == (DType::BF16, DType::F32) {
        x_bound = recipe.converted(x_bound, DType::F32)?;
        sx = [1, k, k * m, k * m * x2];
    }
    let dx = x_bound.desc.dtype;
    let (sw, sd) = (weights.strides, node.strides()?);
    if w2 == 0 || w3 == 0 {
        return Err(Error::unsupported("a weight without elements"));
    }
    let (r2, r3) = (x2 / w2, x3 / w3);
    // Outermost first; the last are the rows of x.
    let axes = merged(&[
        axis(w3, [sx[3] * r3, sw[3], sd[3] * r3]),
        axis(r3, [sx[3], 0, sd[3]]),
        axis(w2, [sx[2] * r2, sw[2], sd[2] * r2]),
        axis(r2, [sx[2], 0, sd[2]]),
        axis(m, [sx[1], 0, sd[1]]),
    ]);
    let (rows, batch) = axes.split_last().expect("rows are always there");
    let desc = |dtype, which: usize, matrix: [(u64, u64); 2]| {
        let axes = batch.iter().map(|axis| (axis.extent, axis.strides[which]));
        strided(dtype, &axes.chain(matrix).collect::<Vec<_>>())
    };
    let matrices = |rows: Axis| {
        Ok::<_, Error>([
            desc(dx, 0, [(rows.extent, rows.strides[0]), (k, sx[0])])?,
            desc(dw, 1, [(n, sw[1]), (weights.columns, sw[0])])?,
            desc(dd, 2, [(rows.extent, rows.strides[2]), (n, sd[0])])?,
        ])
    };
    let [a, b, d] = matrices(*rows)?;
    // One plan serves a range of row counts. In a batch, more rows than there are would reach into the next matrix.
    let planned = match batch {
        [] => Axis {
            extent: row_bucket(rows.extent),
            ..*rows
        },
        _ => *rows,
    };
    let [plan_a, plan_b, plan_d] = matrices(planned)?;
    let op = Gemm::builder(plan_a, plan_b)
        .trans_b(true)
        .out_dtype(dd)
        .output(plan_d);
    let op = match weights.format {
        Some(format) => op.b_format(format).build()?,
        None => op.build()?,
    };
    let a = Binding { desc: a, ..x_bound };
    let b = Binding::new(Place::Src(0), b);
    let d = Binding::new(Place::Node, d);
    recipe.step(op, vec![a, b, d]);
    Ok(recipe)
}

/// The row count for which a product of `rows` rows is planned.
pub fn row_bucket(rows: u64) -> u64 {
    match rows {
        // Kernels for few rows differ from row to row.
        ..=8 => rows,
        _ => rows.next_power_of_two(),
    }
}

fn axis(extent: u64, strides: [u64; 3]) -> Axis {
    Axis { extent, strides }
}

/// The same dimensions in fewer: those of one element dropped, those that follow each other in all three tensors made one. The last one is always
/// one along which the weight does not change.
fn merged(axes: &[Axis]) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::new();
    for &inner in axes.iter().filter(|axis| axis.extent != 1) {
        match merged.last_mut() {
            Some(outer)
                if (0..3)
                    .all(|which| outer.strides[which] == inner.extent * inner.strides[which]) =>
            {
                outer.extent *= inner.extent;
                outer.strides = inner.strides;
            }
            _ => merged.push(inner),
        }
    }
    match merged.last() {
        Some(last) if last.strides[1] == 0 => {}
        _ => {
            // One row; its stride does not matter.
            let rows = axes.last().map_or([0; 3], |rows| rows.strides);
            merged.push(axis(1, [rows[0], 0, rows[2]]));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_batch_that_shares_the_weight_are_rows_of_one_product() {
        // x [k 8, m 3, 2], one weight, all contiguous.
        let axes = [
            axis(1, [48, 0, 60]),
            axis(2, [24, 0, 30]),
            axis(3, [8, 0, 10]),
        ];
        assert_eq!(merged(&axes), [axis(6, [8, 0, 10])]);
    }

    #[test]
    fn query_heads_of_one_key_head_are_rows_when_there_is_one_query() {
        // 3 key heads, 2 query heads each, one query of 64.
        let axes = [
            axis(3, [128, 640, 20]),
            axis(2, [64, 0, 10]),
            axis(1, [384, 0, 60]),
        ];
        assert_eq!(
            merged(&axes),
            [axis(3, [128, 640, 20]), axis(2, [64, 0, 10])]
        );
    }

    #[test]
    fn a_batch_of_weights_keeps_a_row() {
        let axes = [axis(3, [64, 640, 10]), axis(1, [64, 0, 10])];
        assert_eq!(
            merged(&axes),
            [axis(3, [64, 640, 10]), axis(1, [64, 0, 10])]
        );
    }
}
