//! `MUL_MAT_ID`: each (token, slot) has its row of src1 multiplied with the weight of the expert that src2 names.
//!
//! `expert_scatter` brings the rows into expert order, `grouped_gemm` multiplies, and `expert_gather` restores the order by taking each (token,
//! slot) as a token of its own, with one expert and weight 1.

use ropeway::kernels::layer::GetRows;
use ropeway::prelude::gemm::GroupedGemm;
use ropeway::prelude::moe::{ExpertGather, ExpertScatter};
use ropeway::prelude::*;

use super::matmul::row_bucket;
use super::{Binding, Place, Recipe, strided};
use crate::tensor::Tensor;

/// The ops of the node; extents innermost first: src0 [k, n, experts], src1 [k, 1 or slots, tokens], src2 [slots, tokens].
pub fn recipe(node: Tensor<'_>) -> Result<Recipe> {
    let (w, x, ids) = (node.operand(0)?, node.operand(1)?, node.operand(2)?);
    let weights = w.weights()?;
    let [k, n, experts, _] = w.ne();
    let [_, x_slots, ..] = x.ne();
    let [slots, tokens, ..] = ids.ne();
    let (sx, sw) = (x.strides()?, weights.strides);
    let (si, sd) = (ids.strides()?, node.strides()?);
    let rows = slots * tokens;
    let follow = |outer: u64, inner: u64| slots == 1 || tokens == 1 || outer == slots * inner;
    if !follow(sd[2], sd[1]) || (x_slots > 1 && !follow(sx[2], sx[1])) {
        return Err(Error::unsupported("slots that do not follow each other"));
    }
    // One row for all slots of a token goes with its token. If each slot has its own, the slots of all tokens are tokens of the permutation; where their ids
    // do not follow each other, only the order is taken from it, and rows are fetched by that order.
    let ids_follow = follow(si[1], si[0]);
    let (taken, per_token, id_strides) = match (x_slots, ids_follow) {
        (1, _) | (_, false) => (tokens, slots, [si[1], si[0]]),
        (_, true) => (rows, 1, [si[0], 0]),
    };
    let fetched = x_slots > 1 && !ids_follow;
    let (columns, x_stride) = match (x_slots, fetched) {
        (1, _) => (k, sx[2]),
        (_, false) => (k, sx[1]),
        (_, true) => (0, 0),
    };
    let x_desc = |taken| strided(x.dtype()?, &[(taken, x_stride), (columns, sx[0])]);
    let ids_desc = |taken| {
        let axes = [(taken, id_strides[0]), (per_token, id_strides[1])];
        strided(ids.dtype()?, &axes)
    };
    let w_axes = [(experts, sw[2]), (n, sw[1]), (weights.columns, sw[0])];
    let w_desc = strided(weights.dtype, &w_axes)?;
    let sorted_desc = |rows| TensorDesc::contiguous(x.dtype()?, &[rows, k]);
    let y_desc = |rows| strided(node.dtype()?, &[(rows, sd[1]), (n, sd[0])]);
    let ones_desc = |rows| strided(DType::F32, &[(rows, 0), (1, 0)]);

    // Planned for a range of row counts.
    let most = row_bucket(taken);
    let most_rows = most * per_token;
    let scatter = ExpertScatter::new(x_desc(most)?, ids_desc(most)?, experts)?.checked()?;
    let product = GroupedGemm::builder(sorted_desc(most_rows)?, w_desc, scatter.expert_offsets)
        .out_dtype(node.dtype()?);
    let product = match weights.format {
        Some(format) => product.b_format(format).build()?,
        None => product.build()?,
    };
    let gather = ExpertGather {
        y: y_desc(most_rows)?,
        ..ExpertGather::new(product.d, scatter.source, ones_desc(most_rows)?)?
    };

    let mut recipe = Recipe::default();
    let sorted = recipe.room(sorted_desc(rows)?)?;
    let offsets = recipe.room(scatter.expert_offsets)?;
    let source = recipe.room(TensorDesc::contiguous(DType::I32, &[rows])?)?;
    let products = recipe.room(TensorDesc::contiguous(node.dtype()?, &[rows, n])?)?;
    let scattered = if fetched {
        recipe.room(TensorDesc::contiguous(x.dtype()?, &[rows, 0])?)?
    } else {
        sorted.clone()
    };
    recipe.step(
        scatter,
        vec![
            Binding::new(Place::Src(1), x_desc(taken)?),
            Binding::new(Place::Src(2), ids_desc(taken)?),
            scattered,
            offsets.clone(),
            source.clone(),
        ],
    );
    if fetched {
        let table = strided(x.dtype()?, &[(rows, sx[1]), (k, sx[0])])?;
        let fetch = GetRows {
            x: table,
            ids: source.desc,
            d: sorted.desc,
        };
        let operands = [Binding::new(Place::Src(1), table), source.clone()];
        let operands = operands.into_iter().chain([sorted.clone()]);
        recipe.step(fetch.checked()?, operands.collect());
    }
    let w_bound = Binding::new(Place::Src(0), w_desc);
    recipe.step(product, vec![sorted, w_bound, offsets, products.clone()]);
    let one = Binding {
        desc: ones_desc(rows)?,
        ..recipe.constant(&[1.0])?
    };
    let y = Binding::new(Place::Node, y_desc(rows)?);
    recipe.step(gather.checked()?, vec![products, source, one, y]);
    Ok(recipe)
}
