//! Functions of elements, copies, and rows out of and into a table.

use std::sync::atomic::{AtomicU32, Ordering};

use ropeway_core::Result;
use ropeway_core::native::NativeCall;

use super::{Elements, Place, Target, for_each_row, sizes};
use crate::exp::{exp, silu};

const MOVE: i64 = 0;
const BINARY: i64 = 1;
const UNARY: i64 = 2;

const GATHER: usize = 1;
const SCATTER: usize = 2;

const STATUS_ROW: u32 = 1;

/// Columns that are computed at once, in the first level of the caches.
const PIECE: usize = 1024;

/// See `map.cl`.
pub(in crate::layer) fn map(call: &mut NativeCall<'_>) -> Result<()> {
    let class = call.config().value("CLASS");
    let a = Elements::read(call, "A_DTYPE")?;
    let b = Elements::read_optional(call, "B_DTYPE")?;
    let ids = call.read_optional::<i32>()?;
    let mut d = Target::write(call, "D_DTYPE")?;
    let status = call.write::<u32>()?;
    let n: [usize; 4] = sizes(call)?;
    let a_strides: [usize; 4] = sizes(call)?;
    let b_extents: [usize; 4] = sizes(call)?;
    let b_strides: [usize; 4] = sizes(call)?;
    let d_strides: [usize; 4] = sizes(call)?;
    let [
        indexing,
        half,
        ids1,
        ids2,
        ids3,
        ids_n2,
        ids_n3,
        table,
        function,
    ] = sizes(call)?;
    let (p, q) = (call.float()?, call.float()?);
    let reshapes = class == MOVE && function == 1;
    let bad = AtomicU32::new(0);
    let id_of = |place: Place| {
        let [i1, i2, i3] = place.0;
        let at = i1 * ids1 + i2 % ids_n2.max(1) * ids2 + i3 % ids_n3.max(1) * ids3;
        let ids = ids.unwrap_or_default();
        let high = if half > 0 { ids[at + half] } else { 0 };
        let id = usize::try_from(ids[at])
            .ok()
            .filter(|&id| id < table && high == 0);
        if id.is_none() {
            bad.store(STATUS_ROW, Ordering::Relaxed);
        }
        id
    };
    let row_of = |row: usize, d: &mut Target<'_>, d_at: usize| {
        let place = Place::of(row, n);
        let mut a_at = Some(place.at(a_strides));
        if indexing == GATHER {
            let [_, i2, i3] = place.0;
            a_at = id_of(place).map(|id| Place([id, i2, i3]).at(a_strides));
        }
        let b_at = place.repeated_at([b_extents[1], b_extents[2], b_extents[3]], b_strides);
        let (mut x, mut y) = ([0.0; PIECE], [0.0; PIECE]);
        for column in (0..n[0]).step_by(PIECE) {
            let x = &mut x[..PIECE.min(n[0] - column)];
            match a_at {
                None => x.fill(0.0),
                Some(_) if reshapes => {
                    for (i, x) in x.iter_mut().enumerate() {
                        let flat = row * n[0] + column + i;
                        let place = Place::of(flat / b_extents[0], b_extents);
                        *x = a.at(place.at(a_strides) + flat % b_extents[0] * a_strides[0]);
                    }
                }
                Some(at) => a.widen(at + column * a_strides[0], a_strides[0], x),
            }
            if let (Some(b), false) = (b, reshapes) {
                let y = &mut y[..x.len()];
                if b_extents[0] >= n[0] {
                    b.widen(b_at + column * b_strides[0], b_strides[0], y);
                } else {
                    for (i, y) in y.iter_mut().enumerate() {
                        *y = b.at(b_at + (column + i) % b_extents[0] * b_strides[0]);
                    }
                }
            }
            apply(class, function, x, &y[..x.len()], p, q);
            d.narrow(d_at + column * d_strides[0], d_strides[0], x);
        }
    };
    if indexing == SCATTER {
        // Rows go where ids say, so that they cannot be divided among threads beforehand.
        for row in 0..n[1] * n[2] * n[3] {
            let place = Place::of(row, n);
            if let Some(id) = id_of(place) {
                let [_, i2, i3] = place.0;
                row_of(row, &mut d, Place([id, i2, i3]).at(d_strides));
            }
        }
    } else {
        for_each_row(d, n, d_strides, row_of);
    }
    match bad.into_inner() {
        0 => {}
        code => status[0] = code,
    }
    Ok(())
}

/// `x[i] = f(x[i], y[i])`
fn apply(class: i64, function: usize, x: &mut [f32], y: &[f32], p: f32, q: f32) {
    let gelu = |x: f32| x / (1.0 + exp(-1.595_769 * (0.044_715 * x * x * x + x)));
    let gelu_quick = |x: f32| x / (1.0 + exp(-1.702 * x));
    let relu = |x: f32| if x < 0.0 { 0.0 } else { x };
    match (class, function) {
        (MOVE, _) => {}
        (BINARY, 0) => both(x, y, |x, y| x + y),
        (BINARY, 1) => both(x, y, |x, y| x - y),
        (BINARY, 2) => both(x, y, |x, y| x * y),
        (BINARY, _) => both(x, y, |x, y| x / y),
        (UNARY, 0) => each(x, silu),
        (UNARY, 1) => each(x, gelu),
        (UNARY, 2) => each(x, relu),
        (UNARY, 3) => each(x, gelu_erf),
        (UNARY, 4) => each(x, gelu_quick),
        (UNARY, 5) => each(x, |x| 1.0 / (1.0 + exp(-x))),
        (UNARY, 6) => each(x, f32::tanh),
        (UNARY, 7) => each(x, exp),
        (UNARY, 8) => each(x, |x| -x),
        (UNARY, 9) => each(x, |x| x * p + q),
        (UNARY, _) => each(x, |x| {
            let least = if x < p { p } else { x };
            if least > q { q } else { least }
        }),
        (_, 0) => both(x, y, |x, y| silu(x) * y),
        (_, 1) => both(x, y, |x, y| gelu(x) * y),
        (_, 2) => both(x, y, |x, y| relu(x) * y),
        (_, 3) => both(x, y, |x, y| gelu_erf(x) * y),
        _ => both(x, y, |x, y| gelu_quick(x) * y),
    }
}

/// x Φ(x) with Φ(−|x|) = erfc(|x| / √2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22).
#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (z * 0.327_591_1 + 1.0);
    let mut p = 1.061_405_4f32;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p * t + coefficient;
    }
    let tail = 0.5 * p * t * exp(-z * z);
    x * if x > 0.0 { 1.0 - tail } else { tail }
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in x {
                *x = f(*x);
            }
        },
    );
}

#[inline(always)]
fn both(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (x, y) in x.iter_mut().zip(y) {
                *x = f(*x, *y);
            }
        },
    );
}
