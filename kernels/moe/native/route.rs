//! Routing on the cpu device.

use std::cmp::Reverse;

use rayon::prelude::*;
use ropeway_core::Result;
use ropeway_core::native::NativeCall;

use super::{Element, sizes, with_element};

/// Chooses the experts of each token; see `route.cl`.
pub(in crate::moe) fn moe_route(call: &mut NativeCall<'_>) -> Result<()> {
    with_element!(call, "LOGITS_DTYPE", route)
}

/// What routing does to each token.
struct Router<'a> {
    topk: usize,
    groups: usize,
    topk_groups: usize,
    renormalize: bool,
    scale: f32,
    sigmoid: bool,
    bias: Option<&'a [f32]>,
    bias_stride: usize,
}

/// The number something is chosen by, comparable as an integer, and its index: among equals the lower wins.
type Key = (i32, Reverse<u32>);

/// Memory of one task, reused from token to token.
#[derive(Default)]
struct Scratch {
    /// The logits, then the scores.
    score: Vec<f32>,
    biased: Vec<f32>,
    keys: Vec<Key>,
    groups: Vec<Key>,
    eligible: Vec<bool>,
}

fn route<T: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    let logits = call.read::<T>()?;
    let bias = call.read_optional::<f32>()?;
    let topk_ids = call.write::<i32>()?;
    let topk_weights = call.write::<f32>()?;
    let [tokens, experts, topk] = sizes(call)?;
    let [groups, topk_groups, renormalize] = sizes(call)?;
    let scale = call.float()?;
    let [token_stride, expert_stride, bias_stride] = sizes(call)?;
    let [ids_stride, weights_stride] = sizes(call)?;
    let router = Router {
        topk,
        groups,
        topk_groups,
        renormalize: renormalize != 0,
        scale,
        sigmoid: call.config().value("SIGMOID") != 0,
        bias,
        bias_stride,
    };
    topk_ids
        .par_chunks_mut(ids_stride.max(topk))
        .zip(topk_weights.par_chunks_mut(weights_stride.max(topk)))
        .take(tokens)
        .enumerate()
        .with_min_len(16)
        .for_each_init(Scratch::default, |scratch, (token, (ids, weights))| {
            let row = &logits[token * token_stride..];
            let score = &mut scratch.score;
            score.resize(experts, 0.0);
            if expert_stride == 1 {
                T::widen(&row[..experts], score);
            } else {
                for (expert, v) in score.iter_mut().enumerate() {
                    *v = row[expert * expert_stride].wide();
                }
            }
            router.choose(scratch, &mut ids[..topk], &mut weights[..topk]);
        });
    Ok(())
}

/// An integer that orders as the number does, -0 as +0.
fn order(value: f32) -> i32 {
    let bits = (value + 0.0).to_bits() as i32;
    bits ^ ((bits >> 31) & i32::MAX)
}

fn keys_of(values: &[f32], keys: &mut Vec<Key>) {
    keys.clear();
    keys.extend(
        (0..)
            .zip(values)
            .map(|(index, &v)| (order(v), Reverse(index))),
    );
}

/// The first `count` of these keys, in no order.
fn keep_best(keys: &mut Vec<Key>, count: usize) {
    if count < keys.len() {
        keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        keys.truncate(count);
    }
}

impl Router<'_> {
    fn choose(&self, scratch: &mut Scratch, ids: &mut [i32], weights: &mut [f32]) {
        let Scratch {
            score,
            biased,
            keys,
            groups,
            eligible,
        } = scratch;
        // With softmax and no bias the order is that of the logits, which no underflow blurs.
        let by_logits = !self.sigmoid && self.bias.is_none();
        if by_logits {
            keys_of(score, keys);
        }
        if self.sigmoid {
            sigmoid(score);
        } else {
            softmax(score);
        }
        biased.clone_from(score);
        if let Some(bias) = self.bias {
            for (expert, v) in biased.iter_mut().enumerate() {
                *v += bias[expert * self.bias_stride];
            }
        }
        if biased.iter().any(|v| v.is_nan()) {
            for (slot, id) in ids.iter_mut().enumerate() {
                *id = slot as i32;
            }
            weights.fill(f32::NAN);
            return;
        }
        if !by_logits {
            keys_of(biased, keys);
        }
        if self.groups > 1 {
            let size = biased.len() / self.groups;
            groups.clear();
            groups.extend(
                (0..)
                    .zip(biased.chunks(size))
                    .map(|(index, members)| (order(two_best(members)), Reverse(index))),
            );
            keep_best(groups, self.topk_groups);
            eligible.clear();
            eligible.resize(self.groups, false);
            for (_, Reverse(group)) in &*groups {
                eligible[*group as usize] = true;
            }
            keys.retain(|(_, Reverse(expert))| eligible[*expert as usize / size]);
        }
        keep_best(keys, self.topk);
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = 0.0;
        for (&(_, Reverse(expert)), (id, weight)) in
            keys.iter().zip(ids.iter_mut().zip(&mut *weights))
        {
            *id = expert as i32;
            *weight = score[expert as usize];
            sum += *weight;
        }
        let divisor = if self.renormalize { sum + 1e-20 } else { 1.0 };
        for weight in weights {
            *weight = *weight / divisor * self.scale;
        }
    }
}

fn sigmoid(values: &mut [f32]) {
    for v in values {
        let e = (-v.abs()).exp();
        *v = if *v < 0.0 { e } else { 1.0 } / (1.0 + e);
    }
}

/// All NaN if one value is, if one is +inf, or if all are -inf.
fn softmax(values: &mut [f32]) {
    let greatest = values.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = 0.0;
    for v in &mut *values {
        *v = (*v - greatest).exp();
        sum += *v;
    }
    for v in values {
        *v /= sum;
    }
}

/// What a group ranks by: the sum of its two best, or its one.
fn two_best(members: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &v in members {
        second = second.max(first.min(v));
        first = first.max(v);
    }
    if members.len() > 1 {
        first + second
    } else {
        first
    }
}
