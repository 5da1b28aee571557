//! The small nodes between products: each is one op of Ropeway's layer folder, on the node's own extents and strides.

use ropeway::kernels::layer::{
    Argsort, Binary, Copy, Elementwise, GetRows, Glu, GluFunction, Norm, NormKind, Order, Rope,
    RopeMode, SetRows, Softmax, SumRows, Unary, UnaryFunction,
};
use ropeway::prelude::*;

use super::{Binding, Place, Recipe, strided};
use crate::abi::{MAX_DIMS, kind};
use crate::host::host;
use crate::tensor::Tensor;

/// All of a tensor, outermost dimension first.
pub fn whole(tensor: Tensor<'_>) -> Result<TensorDesc> {
    window(tensor, tensor.ne())
}

/// The first `ne` elements of each dimension (innermost first, as `ne`).
fn window(tensor: Tensor<'_>, ne: [u64; MAX_DIMS]) -> Result<TensorDesc> {
    let strides = tensor.strides()?;
    let axes = [3, 2, 1, 0].map(|axis| (ne[axis], strides[axis]));
    strided(tensor.dtype()?, &axes)
}

/// A recipe of one op, whose operands lie at the begin of these places.
fn one(op: impl Op, operands: &[Place]) -> Recipe {
    let bindings = operands.iter().zip(op.operands());
    let bindings = bindings.map(|(&place, operand)| Binding::new(place, operand.desc));
    let bindings = bindings.collect();
    let mut recipe = Recipe::default();
    recipe.step(op, bindings);
    recipe
}

/// `ADD`, `SUB`, `MUL`, `DIV`; the second operand repeats.
pub fn elementwise(node: Tensor<'_>, function: Binary) -> Result<Recipe> {
    let op = Elementwise {
        a: whole(node.operand(0)?)?,
        b: whole(node.operand(1)?)?,
        d: whole(node)?,
        function,
    };
    Ok(one(
        op.checked()?,
        &[Place::Src(0), Place::Src(1), Place::Node],
    ))
}

/// `SQR`: the operand times itself.
pub fn square(node: Tensor<'_>) -> Result<Recipe> {
    let x = whole(node.operand(0)?)?;
    let op = Elementwise {
        a: x,
        b: x,
        d: whole(node)?,
        function: Binary::Mul,
    };
    Ok(one(
        op.checked()?,
        &[Place::Src(0), Place::Src(0), Place::Node],
    ))
}

fn unary_of(node: Tensor<'_>, function: UnaryFunction) -> Result<Recipe> {
    let op = Unary {
        x: whole(node.operand(0)?)?,
        d: whole(node)?,
        function,
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}

/// `UNARY`; its first parameter says which.
pub fn unary(node: Tensor<'_>) -> Result<Recipe> {
    let name = host().map_or("?", |host| host.unary_name(node.integer(0)));
    let function = match name {
        "SILU" => UnaryFunction::Silu,
        "GELU" => UnaryFunction::Gelu,
        "GELU_ERF" => UnaryFunction::GeluErf,
        "GELU_QUICK" => UnaryFunction::GeluQuick,
        "RELU" => UnaryFunction::Relu,
        "SIGMOID" => UnaryFunction::Sigmoid,
        "TANH" => UnaryFunction::Tanh,
        "EXP" => UnaryFunction::Exp,
        "NEG" => UnaryFunction::Neg,
        other => return Err(Error::unsupported(format!("no kernel for {other}"))),
    };
    unary_of(node, function)
}

/// `SCALE`: factor and addend.
pub fn scale(node: Tensor<'_>) -> Result<Recipe> {
    let (scale, bias) = (node.float(0), node.float(1));
    unary_of(node, UnaryFunction::Scale { scale, bias })
}

/// `CLAMP`: least and greatest.
pub fn clamp(node: Tensor<'_>) -> Result<Recipe> {
    let (min, max) = (node.float(0), node.float(1));
    unary_of(node, UnaryFunction::Clamp { min, max })
}

/// `FILL`: one number in every element.
pub fn fill(node: Tensor<'_>) -> Result<Recipe> {
    let mut recipe = Recipe::default();
    let axes = [3, 2, 1, 0].map(|axis| (node.ne()[axis], 0));
    let op = Copy {
        x: strided(DType::F32, &axes)?,
        d: whole(node)?,
    };
    let x = Binding {
        desc: op.x,
        ..recipe.constant(&[node.float(0)])?
    };
    let d = Binding::new(Place::Node, op.d);
    recipe.step(op.checked()?, vec![x, d]);
    Ok(recipe)
}

/// `GLU`: which, and whether the halves of a single operand are swapped.
pub fn glu(node: Tensor<'_>) -> Result<Recipe> {
    let name = host().map_or("?", |host| host.glu_name(node.integer(0)));
    let function = match name {
        "SWIGLU" => GluFunction::Swiglu,
        "GEGLU" => GluFunction::Geglu,
        "REGLU" => GluFunction::Reglu,
        "GEGLU_ERF" => GluFunction::GegluErf,
        "GEGLU_QUICK" => GluFunction::GegluQuick,
        other => return Err(Error::unsupported(format!("no kernel for {other}"))),
    };
    let up = node.src(1);
    let op = Glu {
        x: whole(node.operand(0)?)?,
        up: up.map(whole).transpose()?,
        d: whole(node)?,
        function,
        swapped: up.is_none() && node.integer(1) != 0,
    };
    let places = match up {
        Some(_) => &[Place::Src(0), Place::Src(1), Place::Node][..],
        None => &[Place::Src(0), Place::Node],
    };
    Ok(one(op.checked()?, places))
}

/// `CPY`, `CONT`, `DUP`: the elements in order, into the node's layout.
pub fn copy(node: Tensor<'_>) -> Result<Recipe> {
    let op = Copy {
        x: whole(node.operand(0)?)?,
        d: whole(node)?,
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}

/// `REPEAT`, where each repeated dimension has one element.
pub fn repeat(node: Tensor<'_>) -> Result<Recipe> {
    let x = node.operand(0)?;
    let (from, to, strides) = (x.ne(), node.ne(), x.strides()?);
    if (0..MAX_DIMS).any(|axis| from[axis] != to[axis] && from[axis] != 1) {
        return Err(Error::unsupported("several elements repeated"));
    }
    let axes = [3, 2, 1, 0].map(|axis| match from[axis] {
        1 => (to[axis], 0),
        extent => (extent, strides[axis]),
    });
    let op = Copy {
        x: strided(x.dtype()?, &axes)?,
        d: whole(node)?,
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}

/// `CONCAT` along the dimension of its first parameter: two copies.
pub fn concat(node: Tensor<'_>) -> Result<Recipe> {
    let axis = node.integer(0);
    let axis = usize::try_from(axis).ok().filter(|&axis| axis < MAX_DIMS);
    let axis = axis.ok_or_else(|| Error::unsupported("a dimension that is not there"))?;
    let mut recipe = Recipe::default();
    let mut begin = 0;
    for index in 0..2 {
        let x = node.operand(index)?;
        let (x, to) = (whole(x)?, Binding::new(Place::Node, window(node, x.ne())?));
        let op = Copy { x, d: to.desc };
        let to = to.at(begin * node.0.nb[axis] as u64);
        begin += node.operand(index)?.ne()[axis];
        recipe.step(op.checked()?, vec![Binding::new(Place::Src(index), x), to]);
    }
    Ok(recipe)
}

/// `GET_ROWS`: rows of src0 by the numbers in src1.
pub fn get_rows(node: Tensor<'_>) -> Result<Recipe> {
    let ids = node.operand(1)?;
    let (ne, strides) = (ids.ne(), ids.strides()?);
    let axes = [2, 1, 0].map(|axis| (ne[axis], strides[axis]));
    let op = GetRows {
        x: whole(node.operand(0)?)?,
        ids: strided(ids.dtype()?, &axes)?,
        d: whole(node)?,
    };
    Ok(one(
        op.checked()?,
        &[Place::Src(0), Place::Src(1), Place::Node],
    ))
}

/// `SET_ROWS`: rows of src0 into the node, by the numbers in src1, of 32 or 64 bits.
pub fn set_rows(node: Tensor<'_>) -> Result<Recipe> {
    let ids = node.operand(1)?;
    let (ne, words) = (ids.ne(), ids.0.nb.map(|bytes| bytes as u64 / 4));
    let mut axes: Vec<_> = [2, 1, 0].map(|axis| (ne[axis], words[axis])).into();
    match ids.0.kind {
        kind::I32 => {}
        // The halves of each number, the low one first.
        kind::I64 => axes.push((2, 1)),
        other => return Err(Error::unsupported(format!("row numbers of type {other}"))),
    }
    let op = SetRows {
        x: whole(node.operand(0)?)?,
        ids: strided(DType::I32, &axes)?,
        data: None,
        d: whole(node)?,
    };
    Ok(one(
        op.checked()?,
        &[Place::Src(0), Place::Src(1), Place::Node],
    ))
}

/// `NORM` and `RMS_NORM`.
pub fn norm(node: Tensor<'_>, kind: NormKind) -> Result<Recipe> {
    let op = Norm {
        x: whole(node.operand(0)?)?,
        weight: None,
        d: whole(node)?,
        kind,
        eps: node.float(0),
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}

/// `SUM_ROWS`.
pub fn sum_rows(node: Tensor<'_>) -> Result<Recipe> {
    let op = SumRows {
        x: whole(node.operand(0)?)?,
        d: whole(node)?,
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}

/// `SOFT_MAX`: scale and ALiBi's bias; src1 is a mask, which may have more rows than are used, src2 holds sinks.
pub fn softmax(node: Tensor<'_>) -> Result<Recipe> {
    let x = node.operand(0)?;
    let mut places = vec![Place::Src(0)];
    let mask = node.src(1).map(|mask| {
        places.push(Place::Src(1));
        let [n, rows, heads, batch] = mask.ne();
        window(mask, [n, rows.min(x.ne()[1]), heads, batch])
    });
    let sinks = node.src(2).map(|sinks| {
        places.push(Place::Src(2));
        strided(sinks.dtype()?, &[(sinks.ne()[0], sinks.strides()?[0])])
    });
    places.push(Place::Node);
    let op = Softmax {
        x: whole(x)?,
        mask: mask.transpose()?,
        sinks: sinks.transpose()?,
        d: whole(node)?,
        scale: node.float(0),
        max_bias: node.float(1),
    };
    Ok(one(op.checked()?, &places))
}

/// `ROPE`, normal and NeoX; src1 holds positions, src2 factors of the frequencies.
pub fn rope(node: Tensor<'_>) -> Result<Recipe> {
    let mode = match node.integer(2) {
        0 => RopeMode::Normal,
        2 => RopeMode::Neox,
        other => return Err(Error::unsupported(format!("rope of mode {other}"))),
    };
    if node.integer(15) != 0 {
        return Err(Error::unsupported("rope from a later column on"));
    }
    let positive = |index: usize| node.integer(index).max(0) as u64;
    let n_dims = positive(1);
    let positions = node.operand(1)?;
    let mut places = vec![Place::Src(0), Place::Src(1)];
    let freq_factors = node.src(2).map(|factors| {
        places.push(Place::Src(2));
        // There may be more than are used.
        strided(factors.dtype()?, &[(n_dims / 2, factors.strides()?[0])])
    });
    places.push(Place::Node);
    let op = Rope {
        x: whole(node.operand(0)?)?,
        positions: strided(
            positions.dtype()?,
            &[(positions.ne()[0], positions.strides()?[0])],
        )?,
        freq_factors: freq_factors.transpose()?,
        d: whole(node)?,
        mode,
        n_dims,
        freq_base: node.float(5),
        freq_scale: node.float(6),
        ext_factor: node.float(7),
        attn_factor: node.float(8),
        beta_fast: node.float(9),
        beta_slow: node.float(10),
        n_ctx_orig: positive(4),
    };
    Ok(one(op.checked()?, &places))
}

/// `ARGSORT` by its first parameter, and `TOP_K`, whose order ggml leaves open.
pub fn argsort(node: Tensor<'_>, order: Order) -> Result<Recipe> {
    let op = Argsort {
        x: whole(node.operand(0)?)?,
        d: whole(node)?,
        order,
    };
    Ok(one(op.checked()?, &[Place::Src(0), Place::Node]))
}
