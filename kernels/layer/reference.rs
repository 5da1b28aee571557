//! The ops of this folder as the maths says it, in f64, and how far a right answer may lie from it.
//!
//! Movements are exact. Sums are bounded as matrix products are (`gemm/bound.rs`), sums of positive numbers relative to themselves; functions by
//! the figures that all devices share: exp 3 + 2|x| ulp, tanh 2^-17, erf 2^-20, division and square root 2.5 ulp. The angle of a rotation has a
//! relative error of some roundings, which for late tokens is an absolute one of many.

use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{
    Argsort, Binary, Copy, Elementwise, GetRows, Glu, GluFunction, Norm, NormKind, Order, Rope,
    RopeMode, SetRows, Softmax, SumRows, Unary, UnaryFunction, extents,
};
use crate::gemm::Activation;
use crate::gemm::bound::{Dot, Epilogue};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// One unit in the last place of an f32, relative to it.
const ULP: f64 = 2.0 * U;
/// What division and square root may be off by, relative.
const QUOTIENT: f64 = 2.5 * ULP;
/// What a result loses where subnormal numbers are flushed.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64;
/// Absolute error of tanh, which may be made of exp.
const TANH_ERROR: f64 = 1.0 / (1u64 << 17) as f64;
/// Deviations, roughly, that the probabilistic bound allows.
const LAMBDA: f64 = 8.0;
/// Roundings on the way to an angle: position, frequency (its exponent, 2^x, a factor), product, scale, mix, reduction.
const ANGLE_ROUNDINGS: f64 = 12.0;

/// A value and the error of what was computed in f32.
type Near = (f64, f64);

fn tensor<'a>(inputs: &'a Operands, name: &str) -> Result<&'a HostTensor> {
    inputs
        .get(name)
        .ok_or_else(|| Error::invalid(name, "nothing", "a tensor"))
}

fn optional<'a>(
    inputs: &'a Operands,
    name: &str,
    desc: Option<&TensorDesc>,
) -> Result<Option<&'a HostTensor>> {
    desc.map(|_| tensor(inputs, name)).transpose()
}

fn expected(desc: &TensorDesc, elements: Vec<Near>) -> Vec<Expected> {
    let (values, bounds) = elements.into_iter().unzip();
    vec![Expected {
        name: "d",
        dtype: desc.dtype,
        shape: desc.shape().into(),
        values,
        bounds,
    }]
}

/// Rounded to the output; exactly what it must be if nothing but that rounding happened.
fn rounded((value, error): Near, out: DType) -> Near {
    if !value.is_finite() || error == f64::INFINITY {
        return (value, if error == f64::INFINITY { error } else { 0.0 });
    }
    if error == 0.0 {
        return (nearest(out, value), 0.0);
    }
    (
        value,
        error + out.unit_roundoff() * value.abs() + out.smallest_subnormal(),
    )
}

/// As a conversion from f32 makes it: to nearest even, or cut off, saturated and without NaN in integers.
fn nearest(dtype: DType, value: f64) -> f64 {
    let value = value as f32;
    match dtype {
        DType::F16 => half::f16::from_f32(value).to_f64(),
        DType::BF16 => half::bf16::from_f32(value).to_f64(),
        DType::I32 => f64::from(value as i32),
        _ => value.into(),
    }
}

/// One result of f32 arithmetic. In exact cases it is exact.
fn computed(value: f64, error: f64, data: DataClass) -> Near {
    match data {
        DataClass::Exact => (value, 0.0),
        _ => (value, error + FLUSHED),
    }
}

/// The index of `part` that belongs to one of a tensor: axes are matched from the last, and repeated.
fn repeated(part: &HostTensor, index: &[u64]) -> f64 {
    let shape = part.shape();
    let axes = index[index.len() - shape.len()..].iter().zip(shape);
    let at: Vec<u64> = axes.map(|(i, n)| i % n).collect();
    part.at(&at)
}

pub(super) fn elementwise(
    op: &Elementwise,
    inputs: &Operands,
    data: DataClass,
) -> Result<Vec<Expected>> {
    let (a, b) = (tensor(inputs, "a")?, tensor(inputs, "b")?);
    let element = |index: Vec<u64>| {
        let (a, b) = (a.at(&index), repeated(b, &index));
        let (value, relative) = match op.function {
            Binary::Add => (a + b, U),
            Binary::Sub => (a - b, U),
            Binary::Mul => (a * b, U),
            Binary::Div => (a / b, QUOTIENT),
        };
        rounded(computed(value, relative * value.abs(), data), op.d.dtype)
    };
    let elements = op.d.layout.indices().map(element).collect();
    Ok(expected(&op.d, elements))
}

/// An activation of the epilogue of gemm, in f32.
fn activated(activation: Activation, x: f64) -> Near {
    let dot = Dot {
        sum: x,
        magnitude: x.abs(),
        squares: x * x,
    };
    // Exact: the argument is what it is, and only the function errs.
    let epilogue = Epilogue::plain(1, activation, DType::F32, DataClass::Exact);
    epilogue.row(&[dot], &[0.0], &[0.0])[0]
}

fn relu(x: f64) -> Near {
    (if x < 0.0 { 0.0 } else { x }, 0.0)
}

/// Relative error of 1 / (1 + exp(−z)) where z has a relative error of so many roundings.
fn sigmoid_error(z: f64, sigmoid: f64, roundings: f64) -> f64 {
    let exp_error = (3.0 + 2.0 * z.abs()) * ULP + roundings * U * z.abs();
    (1.0 - sigmoid) * exp_error + U + QUOTIENT
}

fn gelu_quick(x: f64) -> Near {
    if x == f64::NEG_INFINITY {
        // −∞ · 0, and 0 in the limit.
        return (0.0, f64::INFINITY);
    }
    let z = 1.702 * x;
    let sigmoid = 1.0 / (1.0 + (-z).exp());
    let value = x * sigmoid;
    let own = value.abs() * (sigmoid_error(z, sigmoid, 2.0) + U);
    (value, own + x.abs() * FLUSHED)
}

fn function_of(function: UnaryFunction, x: f64, data: DataClass) -> Near {
    match function {
        UnaryFunction::Silu => activated(Activation::Silu, x),
        UnaryFunction::Gelu => activated(Activation::GeluTanh, x),
        UnaryFunction::GeluErf => activated(Activation::Gelu, x),
        UnaryFunction::GeluQuick => gelu_quick(x),
        UnaryFunction::Relu => relu(x),
        UnaryFunction::Sigmoid => {
            let value = 1.0 / (1.0 + (-x).exp());
            (value, value * sigmoid_error(x, value, 0.0) + FLUSHED)
        }
        UnaryFunction::Tanh => (x.tanh(), TANH_ERROR + 5.0 * ULP * x.tanh().abs()),
        UnaryFunction::Exp => {
            let value = x.exp();
            let relative = (3.0 + 2.0 * x.abs()) * ULP;
            match value.is_finite() && value > 0.0 {
                true => (value, value * relative + FLUSHED),
                false => (value, 0.0),
            }
        }
        UnaryFunction::Neg => (-x, 0.0),
        UnaryFunction::Scale { scale, bias } => {
            let product = f64::from(scale) * x;
            let value = product + f64::from(bias);
            computed(value, U * product.abs() + U * value.abs(), data)
        }
        UnaryFunction::Clamp { min, max } => {
            let least = if x < min.into() { min.into() } else { x };
            (
                if least > max.into() {
                    max.into()
                } else {
                    least
                },
                0.0,
            )
        }
    }
}

pub(super) fn unary(op: &Unary, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
    let elements = tensor(inputs, "x")?.to_f64().into_iter();
    let elements = elements.map(|x| rounded(function_of(op.function, x, data), op.d.dtype));
    Ok(expected(&op.d, elements.collect()))
}

pub(super) fn glu(op: &Glu, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?;
    let up = optional(inputs, "up", op.up.as_ref())?;
    let columns = extents(&op.d)[0];
    let element = |index: Vec<u64>| {
        let mut second = index.clone();
        if let Some(last) = second.last_mut() {
            *last += columns;
        }
        let (gate, up) = match up {
            Some(up) => (x.at(&index), up.at(&index)),
            None if op.swapped => (x.at(&second), x.at(&index)),
            None => (x.at(&index), x.at(&second)),
        };
        let (value, error) = match op.function {
            GluFunction::Swiglu => activated(Activation::Silu, gate),
            GluFunction::Geglu => activated(Activation::GeluTanh, gate),
            GluFunction::Reglu => relu(gate),
            GluFunction::GegluErf => activated(Activation::Gelu, gate),
            GluFunction::GegluQuick => gelu_quick(gate),
        };
        let product = value * up;
        let near = match () {
            () if gate.is_nan() || up.is_nan() => (f64::NAN, 0.0),
            () if error == f64::INFINITY => (product, error),
            // Infinity times what may be zero.
            () if up.is_infinite() && error > 0.0 && value.abs() <= error => (0.0, f64::INFINITY),
            () if !product.is_finite() => (product, 0.0),
            () if error == 0.0 => computed(product, U * product.abs(), data),
            () => (product, error * up.abs() + U * product.abs() + FLUSHED),
        };
        rounded(near, op.d.dtype)
    };
    let elements = op.d.layout.indices().map(element).collect();
    Ok(expected(&op.d, elements))
}

pub(super) fn copy(op: &Copy, inputs: &Operands) -> Result<Vec<Expected>> {
    let elements = tensor(inputs, "x")?.to_f64().into_iter();
    let keeps = op.x.dtype == DType::I32 && op.d.dtype == DType::I32;
    let convert = |x: f64| match () {
        () if keeps => (x, 0.0),
        () if op.d.dtype == DType::I32 => (nearest(DType::I32, x), 0.0),
        () => rounded((x, 0.0), op.d.dtype),
    };
    Ok(expected(&op.d, elements.map(convert).collect()))
}

pub(super) fn get_rows(op: &GetRows, inputs: &Operands) -> Result<Vec<Expected>> {
    let (x, ids) = (tensor(inputs, "x")?, tensor(inputs, "ids")?);
    let rank = op.x.shape().len();
    let rows = op.x.shape()[rank - 2];
    let element = |index: Vec<u64>| {
        let id = ids.at(&index[..rank - 1]);
        if id < 0.0 || id >= rows as f64 {
            return (0.0, 0.0);
        }
        let mut from = index;
        from[rank - 2] = id as u64;
        rounded((x.at(&from), 0.0), op.d.dtype)
    };
    let elements = op.d.layout.indices().map(element).collect();
    Ok(expected(&op.d, elements))
}

pub(super) fn set_rows(op: &SetRows, inputs: &Operands) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?;
    let data = optional(inputs, "data", op.data.as_ref())?;
    let rank = op.x.shape().len();
    let rows = extents(&op.d)[1];
    // What nobody set is whatever the output held before.
    let mut elements: Vec<Near> = match data {
        Some(data) => data.to_f64().into_iter().map(|v| (v, 0.0)).collect(),
        None => vec![(0.0, f64::INFINITY); op.d.layout.elements() as usize],
    };
    let d = Layout::contiguous(op.d.shape())?;
    let shape = op.ids.shape();
    let shape = &shape[..rank - 1];
    let places = Layout::contiguous(shape)?;
    let ids = op.ids(inputs)?;
    for index in op.x.layout.indices() {
        let place: Vec<u64> = index.iter().zip(shape).map(|(i, n)| i % n).collect();
        let id = ids[places.offset_of(&place) as usize];
        let Some(id) = u64::try_from(id).ok().filter(|&id| id < rows) else {
            continue;
        };
        let mut to = index.clone();
        to[rank - 2] = id;
        elements[d.offset_of(&to) as usize] = rounded((x.at(&index), 0.0), op.d.dtype);
    }
    Ok(expected(&op.d, elements))
}

/// Relative error of a sum of `n` numbers of one sign.
fn positive_sum_error(n: usize, data: DataClass) -> f64 {
    let n = n as f64 + 2.0;
    match data {
        DataClass::Adversarial => n * U / (1.0 - n * U),
        _ => (LAMBDA * n.sqrt() * U).min(n * U / (1.0 - n * U)),
    }
}

/// A row of `norm`, each element with its error; `weight` is as long, or empty.
fn normalized(op: &Norm, x: &[f64], weight: &[f64], data: DataClass) -> Vec<Near> {
    let n = x.len() as f64;
    let eps = f64::from(op.eps);
    let (mean, mean_error) = match op.kind {
        NormKind::Rms => (0.0, 0.0),
        NormKind::Layer => {
            let (sum, magnitude) = x.iter().fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
            let squares: f64 = x.iter().map(|x| x * x).sum();
            let sum_error = match data {
                DataClass::Random => {
                    (LAMBDA * n.sqrt() * ULP * squares.sqrt()).min((n + 2.0) * U * magnitude)
                }
                _ => (n + 2.0) * U * magnitude,
            };
            let mean: f64 = sum / n;
            (mean, sum_error / n + QUOTIENT * mean.abs())
        }
    };
    let squares: f64 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    let variance = squares / n;
    let overflows = squares.is_finite() && squares * 1.01 > f64::from(f32::MAX);
    let variance_error = mean_error * mean_error
        + variance * (positive_sum_error(x.len(), data) + 4.0 * U + QUOTIENT);
    let scale = 1.0 / (variance + eps).sqrt();
    let least = variance + eps - variance_error;
    let relative = match least > 0.0 {
        true => {
            let most = (1.0 / least.sqrt()) / scale - 1.0;
            most + U + 2.0 * QUOTIENT + 2.0 * U
        }
        // All of it may be error.
        false => f64::INFINITY,
    };
    let element = |(i, &x): (usize, &f64)| {
        let weight = weight.get(i).copied().unwrap_or(1.0);
        let centred = x - mean;
        let value = centred * scale * weight;
        if overflows {
            return (value, f64::INFINITY);
        }
        if !value.is_finite() || !scale.is_finite() {
            return (value, 0.0);
        }
        let centred_error =
            mean_error + U * centred.abs() * f64::from(u8::from(op.kind == NormKind::Layer));
        let error =
            value.abs() * relative + centred_error * scale * (1.0 + relative) * weight.abs();
        (
            value,
            error + U * value.abs() + FLUSHED * (1.0 + weight.abs()),
        )
    };
    x.iter().enumerate().map(element).collect()
}

/// The rows of a tensor, one after the other.
fn rows(values: &[f64], desc: &TensorDesc) -> Vec<Vec<f64>> {
    let columns = extents(desc)[0] as usize;
    match columns {
        0 => vec![Vec::new(); extents(desc)[1..].iter().product::<u64>() as usize],
        _ => values.chunks(columns).map(<[f64]>::to_vec).collect(),
    }
}

pub(super) fn norm(op: &Norm, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?.to_f64();
    let weight =
        optional(inputs, "weight", op.weight.as_ref())?.map_or(Vec::new(), HostTensor::to_f64);
    let rows = rows(&x, &op.x);
    let elements = rows
        .iter()
        .flat_map(|row| normalized(op, row, &weight, data));
    let elements = elements.map(|near| rounded(near, op.d.dtype)).collect();
    Ok(expected(&op.d, elements))
}

pub(super) fn sum_rows(op: &SumRows, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?.to_f64();
    let epilogue = Epilogue::plain(extents(&op.x)[0], Activation::None, op.d.dtype, data);
    let sum = |row: &Vec<f64>| {
        let mut dot = Dot::default();
        row.iter().for_each(|&x| dot.add(x));
        epilogue.row(&[dot], &[0.0], &[0.0])[0]
    };
    let elements = rows(&x, &op.x).iter().map(sum).collect();
    Ok(expected(&op.d, elements))
}

pub(super) fn softmax(op: &Softmax, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?;
    let mask = optional(inputs, "mask", op.mask.as_ref())?;
    let sinks = optional(inputs, "sinks", op.sinks.as_ref())?;
    let [columns, n1, n2, _] = extents(&op.x);
    let (exponent, second_exponent, first_heads) = op.alibi();
    let indices: Vec<Vec<u64>> = op.x.layout.indices().collect();
    let mut elements = Vec::new();
    for (number, row) in indices.chunks(columns.max(1) as usize).enumerate() {
        let head = number as u64 / n1 % n2;
        let power = match head.checked_sub(first_heads) {
            None => exponent * (head + 1) as f64,
            Some(past) => second_exponent * (2 * past + 1) as f64,
        };
        let slope_error = (3.0 + 4.0 * power.abs()) * ULP;
        let score = |index: &Vec<u64>| {
            let product = f64::from(op.scale) * x.at(index);
            let Some(mask) = mask.map(|mask| repeated(mask, index)) else {
                return (product, U * product.abs());
            };
            if mask == f64::NEG_INFINITY {
                return (mask, 0.0);
            }
            let bias = power.exp2() * mask;
            let value = product + bias;
            (
                value,
                2.0 * U * product.abs() + (slope_error + 2.0 * U) * bias.abs() + U * value.abs(),
            )
        };
        let scores: Vec<Near> = row.iter().map(score).collect();
        let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| sinks.at(&[head]));
        let greater = |most: f64, &(s, _): &Near| if s > most { s } else { most };
        let top = scores.iter().fold(sink, greater);
        let subtracted = if top == f64::NEG_INFINITY { 0.0 } else { top };
        // The same number is subtracted everywhere, so that its own error cancels.
        let term = |&(s, error): &Near| {
            let distance = s - subtracted;
            if distance == f64::NEG_INFINITY {
                return (0.0, 0.0);
            }
            let relative = error + U * distance.abs() + (3.0 + 2.0 * distance.abs()) * ULP;
            (distance.exp(), relative.exp_m1())
        };
        let terms: Vec<Near> = scores.iter().map(term).collect();
        let sink_term = term(&(sink, 0.0));
        let all = || terms.iter().chain([&sink_term]);
        let total: f64 = all().map(|(p, _)| p).sum();
        let total_error = all().map(|(p, relative)| p * relative).sum::<f64>() / total
            + positive_sum_error(terms.len() + 1, data);
        for (p, relative) in terms {
            let near = match () {
                () if total == 0.0 => (0.0, 0.0),
                () if !(p / total).is_finite() => (p / total, 0.0),
                () if p == 0.0 && relative == 0.0 => (0.0, 0.0),
                () => {
                    let value = p / total;
                    (
                        value,
                        value * (relative + total_error + QUOTIENT + U) + FLUSHED,
                    )
                }
            };
            elements.push(rounded(near, op.d.dtype));
        }
    }
    Ok(expected(&op.d, elements))
}

pub(super) fn rope(op: &Rope, inputs: &Operands) -> Result<Vec<Expected>> {
    let (x, positions) = (tensor(inputs, "x")?, tensor(inputs, "positions")?);
    let factors = optional(inputs, "freq_factors", op.freq_factors.as_ref())?;
    let rank = op.x.shape().len();
    let angles = op.angles();
    let pairs = op.n_dims / 2;
    let (freq_scale, ext_factor) = (f64::from(op.freq_scale), f64::from(op.ext_factor));
    let element = |index: Vec<u64>| {
        let column = index[rank - 1];
        if column >= op.n_dims {
            return rounded((x.at(&index), 0.0), op.d.dtype);
        }
        let (pair, is_second) = match op.mode {
            RopeMode::Normal => (column / 2, column % 2 == 1),
            RopeMode::Neox => (column % pairs, column >= pairs),
        };
        let [first, second] = match op.mode {
            RopeMode::Normal => [2 * pair, 2 * pair + 1],
            RopeMode::Neox => [pair, pair + pairs],
        };
        let at = |column: u64| {
            let mut index = index.clone();
            index[rank - 1] = column;
            x.at(&index)
        };
        let (a, b) = (at(first), at(second));
        let factor = factors.map_or(1.0, |factors| factors.at(&[pair]));
        let plain =
            positions.at(&[index[rank - 3]]) * (angles.log2_ratio * pair as f64).exp2() / factor;
        let scaled = plain * freq_scale;
        let (angle, reach) = if ext_factor == 0.0 {
            (scaled, scaled.abs())
        } else {
            let width = (angles.high - angles.low).max(0.001);
            let ramp = 1.0 - ((pair as f64 - angles.low) / width).clamp(0.0, 1.0);
            let mix = ramp * ext_factor;
            let reach = scaled.abs() * (1.0 + mix.abs()) + plain.abs() * mix.abs();
            (
                scaled * (1.0 - mix) + plain * mix,
                reach * (1.0 + ext_factor.abs()),
            )
        };
        let (sin, cos) = angle.sin_cos();
        let value = angles.magnitude
            * if is_second {
                a * sin + b * cos
            } else {
                a * cos - b * sin
            };
        if !value.is_finite() {
            return (value, 0.0);
        }
        let turn_error = (ANGLE_ROUNDINGS * U * reach + 6.0 * U).min(2.0);
        let error = (a.abs() + b.abs()) * angles.magnitude.abs() * (turn_error + 4.0 * U);
        rounded((value, error + FLUSHED), op.d.dtype)
    };
    let elements = op.d.layout.indices().map(element).collect();
    Ok(expected(&op.d, elements))
}

pub(super) fn argsort(op: &Argsort, inputs: &Operands) -> Result<Vec<Expected>> {
    let x = tensor(inputs, "x")?.to_f64();
    let mut elements = Vec::new();
    for row in rows(&x, &op.x) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Stable, so that equal elements stay in the order of their indices.
        order.sort_by(|&a, &b| {
            let (a, b) = (row[a], row[b]);
            let numbers = match op.order {
                Order::Ascending => a.partial_cmp(&b),
                Order::Descending => b.partial_cmp(&a),
            };
            numbers.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        });
        let first = order.iter().take(op.k() as usize);
        elements.extend(first.map(|&index| (index as f64, 0.0)));
    }
    Ok(expected(&op.d, elements))
}
