//! The naive implementation in the tensors' own dtype, whose error is reported beside a kernel's (Dao et al., FlashAttention's tests): the scores
//! and the probabilities stand in memory in that dtype, the sums are f32.

use ropeway_core::request::Operands;
use ropeway_core::spec::{Expected, Judgement, compare};
use ropeway_core::{DType, Error, Result};

use super::{Attended, Query, Rules};

fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// softmax(round(scale · q·k + …)) rounded, times V.
pub(super) fn naive(query: &Query<'_>, rules: &Rules) -> Attended {
    let softmax = rules.softmax;
    let round = |x| rounded(rules.dtype, x);
    let score = |key: usize| {
        let mask = query.mask.get(key).copied().unwrap_or(0.0) as f32;
        if !rules.sees(query.position, key) {
            return f32::NEG_INFINITY;
        }
        let products = query.q.iter().zip(query.keys[key]);
        let dot = products.fold(0f32, |sum, (&q, &k)| sum + q as f32 * k as f32);
        let capped = match softmax.softcap {
            0.0 => dot * softmax.scale,
            cap => cap * (dot * softmax.scale / cap).tanh(),
        };
        let distance = (key as i64 - query.position) as f32;
        let alibi = query.slope.map_or(0.0, |slope| slope as f32 * distance);
        round(capped + alibi + mask)
    };
    let scores: Vec<f32> = (0..query.keys.len()).map(score).collect();
    let sink = query.sink.map_or(f32::NEG_INFINITY, |sink| sink as f32);
    let max = scores.iter().copied().fold(sink, f32::max);
    let mut o = vec![0f32; rules.dv];
    if max > f32::NEG_INFINITY {
        let sum = scores
            .iter()
            .fold((sink - max).exp(), |sum, s| sum + (s - max).exp());
        for (score, values) in scores.iter().zip(query.values) {
            let p = round((score - max).exp() / sum);
            for (o, &v) in o.iter_mut().zip(*values).filter(|_| p != 0.0) {
                *o += p * v as f32;
            }
        }
    }
    Attended {
        o: o.into_iter().map(|o| f64::from(round(o))).collect(),
        o_bounds: vec![0.0; rules.dv],
        lse: 0.0,
        lse_bound: 0.0,
    }
}

/// The greatest distance between finite elements, and the greatest finite magnitude of `exact`.
fn greatest_error(exact: &Expected, found: &[f64]) -> (f64, f64) {
    let finite = exact.values.iter().zip(found).zip(&exact.bounds);
    finite
        .filter(|((exact, found), bound)| {
            exact.is_finite() && found.is_finite() && bound.is_finite()
        })
        .fold((0f64, 0f64), |(error, magnitude), ((exact, found), _)| {
            (error.max((found - exact).abs()), magnitude.max(exact.abs()))
        })
}

/// Judges outputs, and notes where the greatest error of `o` is above twice the naive implementation's and one rounding of the greatest output. That
/// fails nothing: the bound does.
pub(super) fn judge(
    exact: &[Expected],
    naive: &[Expected],
    outputs: &Operands,
) -> Result<Judgement> {
    let mut judgement = Judgement::default();
    for (exact, naive) in exact.iter().zip(naive) {
        let found = outputs
            .get(exact.name)
            .ok_or_else(|| Error::invalid(exact.name, "nothing", "an output"))?;
        judgement.outputs.push(compare(exact, found));
        if exact.name != "o" || found.shape() != exact.shape {
            continue;
        }
        let (error, magnitude) = greatest_error(exact, &found.to_f64());
        let (naive_error, _) = greatest_error(exact, &naive.values);
        let most = 2.0 * naive_error + exact.dtype.unit_roundoff() * magnitude;
        if error > most {
            judgement.notes.push(format!(
                "o: the greatest error is {error:.1e}, above {most:.1e}: twice the naive implementation's in {} and one rounding",
                exact.dtype
            ));
        }
    }
    Ok(judgement)
}
