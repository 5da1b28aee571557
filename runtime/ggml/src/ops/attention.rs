//! `FLASH_ATTN_EXT`: `attention` with ggml's operands.
//!
//! ggml has queries and results in f32, keys and values in f16 and the mask in f16; Ropeway's op has queries, keys, values and results of
//! one dtype and the mask in f32. So queries are rounded to the dtype of the keys, as ggml's own backends do, results widened, and
//! the mask widened once a graph. Keys and values of two dtypes are widened both. ALiBi multiplies ggml's mask by a slope for each head.

use ropeway::kernels::layer::{Binary, Copy, Elementwise};
use ropeway::prelude::attention::{Attention, Softmax};
use ropeway::prelude::*;

use super::{Binding, Place, Recipe, strided};
use crate::tensor::Tensor;

/// Extents, innermost first: src0 queries [d, q_len, heads, batch], src1 keys [d, kv_len, kv_heads, batch], src2 values, src3 mask
/// [kv_len, q_len or more, 1 or heads, 1 or batch], src4 sinks [heads]; the node is [dv, heads, q_len, batch].
pub fn recipe(node: Tensor<'_>) -> Result<Recipe> {
    let (q, k, v) = (node.operand(0)?, node.operand(1)?, node.operand(2)?);
    let [d, q_len, heads, batch] = q.ne();
    let [dv, ..] = v.ne();
    let dtype = match (k.dtype()?, v.dtype()?) {
        (keys, values) if keys == values => keys,
        _ => DType::F32,
    };
    let mut recipe = Recipe::default();

    let (sq, so) = (q.strides()?, node.strides()?);
    let q_axes = [(batch, sq[3]), (heads, sq[2]), (q_len, sq[1]), (d, sq[0])];
    let o_axes = [(batch, so[3]), (heads, so[1]), (q_len, so[2]), (dv, so[0])];
    let q_given = Binding::new(Place::Src(0), strided(q.dtype()?, &q_axes)?);
    let o_wanted = Binding::new(Place::Node, strided(node.dtype()?, &o_axes)?);
    let same = |desc: TensorDesc| desc.dtype == dtype;
    let q_bound = recipe.converted(q_given, dtype)?;
    let o_bound = if same(o_wanted.desc) {
        o_wanted.clone()
    } else {
        recipe.room(TensorDesc::contiguous(dtype, &[batch, heads, q_len, dv])?)?
    };

    let mut operands = vec![q_bound.clone()];
    for (index, tensor) in [(1, k), (2, v)] {
        let [columns, kv_len, kv_heads, kv_batch] = tensor.ne();
        let strides = tensor.strides()?;
        let batch_stride = match kv_batch {
            1 => 0,
            _ if kv_batch == batch => strides[3],
            _ => return Err(Error::unsupported("keys that some sequences share")),
        };
        let axes = [
            (batch, batch_stride),
            (kv_heads, strides[2]),
            (kv_len, strides[1]),
            (columns, strides[0]),
        ];
        let given = Binding::new(Place::Src(index), strided(tensor.dtype()?, &axes)?);
        operands.push(recipe.converted(given, dtype)?);
    }
    let (scale, max_bias, softcap) = (node.float(0), node.float(1), node.float(2));
    let mask = node
        .src(3)
        .map(|mask| widened(&mut recipe, mask, q, max_bias));
    let mask = mask.transpose()?;
    let sinks = node.src(4).map(|sinks| {
        let desc = strided(sinks.dtype()?, &[(sinks.ne()[0], sinks.strides()?[0])])?;
        Ok::<_, Error>(Binding::new(Place::Src(4), desc))
    });
    let sinks = sinks.transpose()?;
    let op = Attention {
        mask: mask.as_ref().map(|mask| mask.desc),
        sinks: sinks.as_ref().map(|sinks| sinks.desc),
        o: o_bound.desc,
        softmax: ropeway_softmax(scale, softcap),
        ..Attention::new(q_bound.desc, operands[1].desc, operands[2].desc)?
    }
    .checked()?;
    operands.extend(mask);
    operands.extend(sinks);
    operands.push(o_bound.clone());
    recipe.step(op, operands);
    if !same(o_wanted.desc) {
        let op = Copy {
            x: o_bound.desc,
            d: o_wanted.desc,
        };
        recipe.step(op.checked()?, vec![o_bound, o_wanted]);
    }
    Ok(recipe)
}

fn ropeway_softmax(scale: f32, softcap: f32) -> Softmax {
    Softmax {
        scale,
        causal: false,
        window: 0,
        softcap,
    }
}

/// The mask in f32: [batch or 1, heads or 1, q_len, kv_len], times each head's slope with ALiBi.
fn widened(recipe: &mut Recipe, mask: Tensor<'_>, q: Tensor<'_>, max_bias: f32) -> Result<Binding> {
    let [_, q_len, heads, batch] = q.ne();
    let [kv_len, _, mask_heads, mask_batch] = mask.ne();
    if ![1, heads].contains(&mask_heads) || ![1, batch].contains(&mask_batch) {
        return Err(Error::unsupported(
            "a mask that some heads or sequences share",
        ));
    }
    let strides = mask.strides()?;
    let biased = max_bias > 0.0;
    let head_axis = match mask_heads {
        1 if biased => (heads, 0),
        _ => (mask_heads, strides[2]),
    };
    let axes = [
        (mask_batch, strides[3]),
        head_axis,
        (q_len, strides[1]),
        (kv_len, strides[0]),
    ];
    let given = Binding::new(Place::Src(3), strided(mask.dtype()?, &axes)?);
    let shape = [mask_batch, head_axis.0, q_len, kv_len];
    let wide = TensorDesc::contiguous(DType::F32, &shape)?;
    if given.desc.dtype == DType::F32 && !biased {
        return Ok(given);
    }
    let lasting = Binding::new(Place::Lasting, wide);
    if biased {
        let slopes = recipe.constant(&slopes(heads, max_bias))?;
        let slopes = Binding {
            desc: strided(DType::F32, &[(1, 0), (heads, 1), (1, 0), (1, 0)])?,
            ..slopes
        };
        let op = Elementwise {
            a: given.desc,
            b: slopes.desc,
            d: wide,
            function: Binary::Mul,
        };
        recipe.once(op.checked()?, vec![given, slopes, lasting.clone()]);
    } else {
        let op = Copy {
            x: given.desc,
            d: wide,
        };
        recipe.once(op.checked()?, vec![given, lasting.clone()]);
    }
    Ok(lasting)
}

/// ALiBi's slopes (arXiv 2108.12409): a geometric series over the heads, and a second one between its terms where heads are no power of two.
fn slopes(heads: u64, max_bias: f32) -> Vec<f32> {
    let first = 1u64 << heads.max(1).ilog2();
    let base = |bias: f32| (-bias / first as f32).exp2();
    (0..heads)
        .map(|head| match head.checked_sub(first) {
            None => base(max_bias).powi(head as i32 + 1),
            Some(later) => base(max_bias / 2.0).powi(2 * later as i32 + 1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::slopes;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(4, 8.0), [0.25, 0.0625, 0.015625, 0.00390625]);
        let six = slopes(6, 8.0);
        assert_eq!(six[..4], slopes(4, 8.0));
        assert!((six[4] - 0.5).abs() < 1e-6 && (six[5] - 0.125).abs() < 1e-6);
    }
}
