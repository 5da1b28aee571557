//! Norms, sums, softmax and rotation of rows.

use ropeway_core::Result;
use ropeway_core::native::NativeCall;

use super::{Elements, Place, Target, for_each_row, sizes};
use crate::exp::exp;

const RMS: i64 = 0;
const SUM: i64 = 2;

/// Lanes of a sum, which the compiler makes a vector of.
const LANES: usize = 16;

/// The sum of `f` over a row, lane by lane.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut sums = [0.0f32; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            for x in whole {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += f(*x);
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *sum += f(*x);
            }
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    sums[lane] += sums[lane + half];
                }
            }
            sums[0]
        },
    )
}

/// See `norm.cl`.
pub(in crate::layer) fn norm(call: &mut NativeCall<'_>) -> Result<()> {
    let x = Elements::read(call, "X_DTYPE")?;
    let weight = Elements::read_optional(call, "W_DTYPE")?;
    let d = Target::write(call, "D_DTYPE")?;
    let n: [usize; 4] = sizes(call)?;
    let x_strides: [usize; 4] = sizes(call)?;
    let [weight_stride] = sizes(call)?;
    let d_strides: [usize; 4] = sizes(call)?;
    let kind = call.config().value("KIND");
    let eps = call.float()?;
    let wide_weight = weight.map(|weight| {
        let mut wide = vec![0.0; n[0]];
        weight.widen(0, weight_stride, &mut wide);
        wide
    });
    let width = n[0] as f32;
    // A sum of no elements is a number, too.
    let shape = if kind == SUM {
        [1, n[1], n[2], n[3]]
    } else {
        n
    };
    for_each_row(d, shape, d_strides, |row, d, at| {
        let mut v = vec![0.0; n[0]];
        x.widen(Place::of(row, n).at(x_strides), x_strides[0], &mut v);
        let mut mean = 0.0;
        if kind != RMS {
            let total = sum(&v, |v| v);
            if kind == SUM {
                d.set(at, total);
                return;
            }
            mean = total / width;
        }
        let squares = sum(&v, |v| (v - mean) * (v - mean));
        let scale = 1.0 / (squares / width + eps).sqrt();
        match &wide_weight {
            None => v.iter_mut().for_each(|v| *v = (*v - mean) * scale),
            Some(weight) => {
                for (v, weight) in v.iter_mut().zip(weight) {
                    *v = (*v - mean) * scale * weight;
                }
            }
        }
        d.narrow(at, d_strides[0], &v);
    });
    Ok(())
}

/// See `softmax.cl`.
pub(in crate::layer) fn softmax(call: &mut NativeCall<'_>) -> Result<()> {
    let x = Elements::read(call, "X_DTYPE")?;
    let mask = Elements::read_optional(call, "M_DTYPE")?;
    let sinks = call.read_optional::<f32>()?;
    let d = Target::write(call, "D_DTYPE")?;
    let n: [usize; 4] = sizes(call)?;
    let x_strides: [usize; 4] = sizes(call)?;
    let mask_extents: [usize; 3] = sizes(call)?;
    let mask_strides: [usize; 4] = sizes(call)?;
    let [sinks_stride] = sizes(call)?;
    let d_strides: [usize; 4] = sizes(call)?;
    let (scale, exponent, second_exponent) = (call.float()?, call.float()?, call.float()?);
    let [first_heads] = sizes(call)?;
    for_each_row(d, n, d_strides, |row, d, at| {
        let place = Place::of(row, n);
        let head = place.0[1];
        let mut s = vec![0.0; n[0]];
        x.widen(place.at(x_strides), x_strides[0], &mut s);
        s.iter_mut().for_each(|s| *s *= scale);
        if let Some(mask) = mask {
            let power = match head.checked_sub(first_heads) {
                None => exponent * (head + 1) as f32,
                Some(past) => second_exponent * (2 * past + 1) as f32,
            };
            let slope = power.exp2();
            let mut biases = vec![0.0; n[0]];
            let from = place.repeated_at(mask_extents, mask_strides);
            mask.widen(from, mask_strides[0], &mut biases);
            for (s, bias) in s.iter_mut().zip(biases) {
                let masked = *s + slope * bias;
                *s = if bias == f32::NEG_INFINITY {
                    bias
                } else {
                    masked
                };
            }
        }
        let sink = sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head * sinks_stride]);
        let greater = |most: f32, s: &f32| if *s > most { *s } else { most };
        let top = s.iter().fold(sink, greater);
        let subtracted = if top == f32::NEG_INFINITY { 0.0 } else { top };
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || s.iter_mut().for_each(|s| *s = exp(*s - subtracted)),
        );
        let total = sum(&s, |s| s) + exp(sink - subtracted);
        let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
        s.iter_mut().for_each(|s| *s *= factor);
        d.narrow(at, d_strides[0], &s);
    });
    Ok(())
}

/// See `rope.cl`.
pub(in crate::layer) fn rope(call: &mut NativeCall<'_>) -> Result<()> {
    let x = Elements::read(call, "X_DTYPE")?;
    let positions = call.read::<i32>()?;
    let factors = call.read_optional::<f32>()?;
    let d = Target::write(call, "D_DTYPE")?;
    let n: [usize; 4] = sizes(call)?;
    let x_strides: [usize; 4] = sizes(call)?;
    let [positions_stride, factors_stride] = sizes(call)?;
    let d_strides: [usize; 4] = sizes(call)?;
    let [n_dims, mode] = sizes(call)?;
    let log2_ratio = f64::from(call.float()?) + f64::from(call.float()?);
    let (freq_scale, ext_factor) = (call.float()?, call.float()?);
    let (low, ramp, magnitude) = (call.float()?, call.float()?, call.float()?);
    let pairs = n_dims / 2;
    let frequencies: Vec<f32> = (0..pairs)
        .map(|pair| (log2_ratio * pair as f64).exp2() as f32)
        .collect();
    // All angles of a token, for all of its heads.
    let turns: Vec<(f32, f32)> = (0..n[2])
        .flat_map(|token| (0..pairs).map(move |pair| (token, pair)))
        .map(|(token, pair)| {
            let mut t = positions[token * positions_stride] as f32 * frequencies[pair];
            if let Some(factors) = factors {
                t /= factors[pair * factors_stride];
            }
            let scaled = t * freq_scale;
            if ext_factor == 0.0 {
                t = scaled;
            } else {
                let mix = (1.0 - ((pair as f32 - low) * ramp).clamp(0.0, 1.0)) * ext_factor;
                t = scaled * (1.0 - mix) + t * mix;
            }
            let (sin, cos) = t.sin_cos();
            (cos * magnitude, sin * magnitude)
        })
        .collect();
    for_each_row(d, n, d_strides, |row, d, at| {
        let place = Place::of(row, n);
        let token = place.0[1];
        let mut v = vec![0.0; n[0]];
        x.widen(place.at(x_strides), x_strides[0], &mut v);
        for (pair, (cos, sin)) in turns[token * pairs..][..pairs].iter().enumerate() {
            let (i, j) = match mode {
                0 => (2 * pair, 2 * pair + 1),
                _ => (pair, pair + pairs),
            };
            (v[i], v[j]) = (v[i] * cos - v[j] * sin, v[i] * sin + v[j] * cos);
        }
        d.narrow(at, d_strides[0], &v);
    });
    Ok(())
}
