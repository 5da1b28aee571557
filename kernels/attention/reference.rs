//! Attention as the maths says it, in f64, and how far a right answer may lie from it.
//!
//! One query of one head at a time ([`attend`]); the three ops differ only in where its keys lie. With s the scores, x = s − max s,
//! p = exp(x), L = Σ p (the sink's among them), w = p / L and o = Σ w v, errors dp of the probabilities change the answer by
//!
//! ```text
//! ô − o = Σ dp (v − o) / (L + Σ dp)
//! ```
//!
//! exactly, since the same dp stand in numerator and denominator, whatever maximum an online softmax subtracted on its way. The bound
//! takes |dp| from the score's error and exp's, and adds what the roundings of the probabilities to the input dtype, the two sums, the division
//! and the output lose. It never exceeds what any weighing of the visible values could give.

use std::ops::Range;
use std::sync::Arc;

use proptest::strategy::BoxedStrategy;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Op;
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::spec::{DataClass, Expected, Judgement, OpSpec, Part, Recipe};
use ropeway_core::{DType, Error, Layout, Result};

use super::{Attention, PagedAttention, Softmax, VarlenAttention, described};

mod naive;
#[cfg(test)]
mod tests;

/// Unit roundoff of the f32 accumulator.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// One unit in the last place of an f32, relative to it: also the roundoff of matrix units that truncate.
const ULP: f64 = 2.0 * U;
/// Standard deviations, roughly, that the probabilistic bounds allow.
const LAMBDA: f64 = 8.0;
/// Absolute error of tanh, which may be made of exp.
const TANH_ERROR: f64 = 1.0 / (1u64 << 17) as f64;
/// Absolute error of log.
const LOG_ERROR: f64 = 1.0 / (1u64 << 21) as f64;

/// γ_n of numerical analysis: the relative error of n roundings.
fn gamma(n: f64) -> f64 {
    n * U / (1.0 - n * U)
}

/// One query of one head, and the keys of its sequence.
struct Query<'a> {
    /// [d].
    q: &'a [f64],
    /// Its position among the keys; negative if it lies before them all.
    position: i64,
    /// kv_len vectors [d].
    keys: &'a [&'a [f64]],
    /// kv_len vectors [dv].
    values: &'a [&'a [f64]],
    /// [kv_len], empty for none.
    mask: &'a [f64],
    /// One more score, with value zero.
    sink: Option<f64>,
    /// Added for each key of distance.
    slope: Option<f64>,
}

/// Its answer.
struct Attended {
    /// [dv].
    o: Vec<f64>,
    /// [dv].
    o_bounds: Vec<f64>,
    lse: f64,
    lse_bound: f64,
}

/// What a problem asks of every query.
#[derive(Clone, Copy)]
struct Rules {
    softmax: Softmax,
    /// Of queries, keys, values and output.
    dtype: DType,
    dv: usize,
    data: DataClass,
}

/// A visible key: its score, the score's error, and its number.
struct Seen {
    score: f64,
    error: f64,
    key: usize,
}

impl Rules {
    fn sees(&self, position: i64, key: usize) -> bool {
        let (key, window) = (key as i64, self.softmax.window as i64);
        !self.softmax.causal || (key <= position && (window == 0 || key > position - window))
    }

    /// softcap(scale · q·k) + alibi + mask, and its error; infinity where the accumulator may overflow.
    fn score(&self, query: &Query<'_>, key: usize, mask: f64) -> (f64, f64) {
        let (mut dot, mut magnitude, mut squares) = (0.0, 0.0, 0.0);
        for (q, k) in query.q.iter().zip(query.keys[key]) {
            let product = q * k;
            dot += product;
            magnitude += product.abs();
            squares += product * product;
        }
        let d = query.q.len() as f64;
        let scale = f64::from(self.softmax.scale);
        let mut score = scale * dot;
        let mut error = match self.data {
            _ if !dot.is_finite() => 0.0,
            _ if magnitude.max(scale.abs() * magnitude) >= f64::from(f32::MAX) => f64::INFINITY,
            DataClass::Random => LAMBDA * d.sqrt() * ULP * squares.sqrt() * scale.abs(),
            DataClass::Exact | DataClass::Adversarial => gamma(d + 3.0) * magnitude * scale.abs(),
        };
        // What flushing subnormal products to zero can lose.
        error += scale.abs() * 2f64.powi(-120);
        let softcap = f64::from(self.softmax.softcap);
        if softcap > 0.0 {
            let ratio = score / softcap;
            let tanh = ratio.tanh();
            // The quotient's 2.5 ulp reach the score by the slope of tanh, and |x| / cosh² x ≤ 0.45.
            let quotient = 2.5 * ULP * score.abs().min(0.45 * softcap);
            error += softcap * (TANH_ERROR + 5.0 * ULP * tanh.abs()) + quotient;
            score = softcap * tanh;
        }
        // Each summand may be rescaled to base 2 before it is added.
        if let Some(slope) = query.slope {
            let alibi = slope * (key as i64 - query.position) as f64;
            if alibi.is_finite() {
                error += 4.0 * U * alibi.abs() + U * score.abs();
            }
            score += alibi;
        }
        if mask.is_finite() {
            error += 4.0 * U * mask.abs() + if mask == 0.0 { 0.0 } else { U * score.abs() };
        }
        score += mask;
        (score, if score.is_finite() { error } else { 0.0 })
    }
}

/// o = Σ exp(s) v / Σ exp(s) over the keys that the query sees, and lse = ln Σ exp(s).
fn attend(query: &Query<'_>, rules: &Rules) -> Attended {
    let dv = rules.dv;
    let mut seen = Vec::with_capacity(query.keys.len());
    let mut open_row = false;
    let mut open_columns = vec![false; dv];
    for key in 0..query.keys.len() {
        let mask = query.mask.get(key).copied().unwrap_or(0.0);
        if rules.sees(query.position, key) && mask != f64::NEG_INFINITY {
            let (score, error) = rules.score(query, key, mask);
            open_row |= error == f64::INFINITY;
            seen.push(Seen { score, error, key });
            continue;
        }
        // Hidden but present: it contributes nothing, if it is finite.
        let is_finite = |x: &f64| x.is_finite();
        open_row |= !query.keys[key].iter().all(is_finite);
        open_row |= mask.is_nan() || mask == f64::INFINITY;
        for (open, value) in open_columns.iter_mut().zip(query.values[key]) {
            *open |= !value.is_finite();
        }
    }
    let sink = query.sink.unwrap_or(f64::NEG_INFINITY);
    let answer = if open_row {
        open(dv)
    } else if seen.is_empty() {
        // A query that sees no key: zeros, and the sink alone in the log-sum-exp.
        let lse_bound = match sink.is_finite() {
            true => LOG_ERROR + 5.0 * U * sink.abs(),
            false => 0.0,
        };
        Attended {
            o: vec![0.0; dv],
            o_bounds: vec![0.0; dv],
            lse: sink,
            lse_bound,
        }
    } else {
        weigh(&seen, sink, query.values, rules, &mut open_columns)
    };
    let o_bounds = answer.o_bounds.iter().zip(open_columns);
    Attended {
        o_bounds: o_bounds
            .map(|(&bound, open)| if open { f64::INFINITY } else { bound })
            .collect(),
        ..answer
    }
}

/// The specification leaves the row open.
fn open(dv: usize) -> Attended {
    Attended {
        o: vec![0.0; dv],
        o_bounds: vec![f64::INFINITY; dv],
        lse: 0.0,
        lse_bound: f64::INFINITY,
    }
}

fn weigh(
    seen: &[Seen],
    sink: f64,
    values: &[&[f64]],
    rules: &Rules,
    open_columns: &mut [bool],
) -> Attended {
    let dv = rules.dv;
    if sink.is_nan() || seen.iter().any(|seen| seen.score.is_nan()) {
        return Attended {
            o: vec![f64::NAN; dv],
            o_bounds: vec![0.0; dv],
            lse: f64::NAN,
            lse_bound: 0.0,
        };
    }
    if sink == f64::INFINITY {
        return open(dv);
    }
    let max = seen.iter().map(|seen| seen.score).fold(sink, f64::max);
    match max {
        // ∞ − ∞ in the softmax; the log-sum-exp is ∞ in the limit only.
        f64::INFINITY => {
            return Attended {
                o: vec![f64::NAN; dv],
                o_bounds: vec![0.0; dv],
                ..open(dv)
            };
        }
        // Keys are seen, but every score came out as −∞ by its operands.
        f64::NEG_INFINITY => return open(dv),
        _ => {}
    }

    let n = seen.len() as f64;
    let random = rules.data == DataClass::Random;
    // Times that a new maximum rescales what was summed before: a random order has about ln n maxima.
    let rescales = if random { n.log2() + 4.0 } else { n };
    // |dp| of the score s = max + x with error e. Flushing loses up to the smallest normal.
    let probability = |score: f64, error: f64| {
        let x = score - max;
        let p = x.exp();
        let own = (3.0 * (rescales + 1.0) + 2.0 * x.abs().min(1000.0)) * ULP;
        let above = (x + error).exp();
        let dp = (above - p).max(p * error) + above * own + f64::from(f32::MIN_POSITIVE);
        (p, dp)
    };
    let weights: Vec<(f64, f64)> = seen
        .iter()
        .map(|seen| probability(seen.score, seen.error))
        .collect();
    let (p_sink, dp_sink) = match sink {
        f64::NEG_INFINITY => (0.0, 0.0),
        sink => probability(sink, 4.0 * U * sink.abs()),
    };
    let sum = weights.iter().map(|(p, _)| p).sum::<f64>() + p_sink;
    let drift = (weights.iter().map(|(_, dp)| dp).sum::<f64>() + dp_sink) / sum;
    // Relative error of adding up the probabilities themselves.
    let summing = match random {
        true => (LAMBDA * n.sqrt()).min(n + 3.0) * ULP,
        false => gamma(n + rescales + 3.0),
    };

    // Of each column: o = Σ w v, Σ w |v|, Σ (w v)², Σ |v|, max |v|.
    let mut o = vec![0.0; dv];
    let (mut magnitude, mut squares) = (vec![0.0; dv], vec![0.0; dv]);
    let (mut total, mut greatest) = (vec![0.0; dv], vec![0.0f64; dv]);
    let smallest_kept = (4.0 * rules.dtype.smallest_subnormal()).max(2f64.powi(-100));
    for (seen, (p, _)) in seen.iter().zip(&weights) {
        let w = p / sum;
        for (c, &v) in values[seen.key].iter().enumerate() {
            // A weight that is zero in the device's arithmetic but not in ours makes NaN of an infinity.
            open_columns[c] |= v.is_infinite() && *p < smallest_kept;
            let term = w * v;
            o[c] += term;
            magnitude[c] += term.abs();
            squares[c] += term * term;
            total[c] += v.abs();
            greatest[c] = greatest[c].max(v.abs());
        }
    }
    // Σ |dp| |v − o| and the greatest |v − o|.
    let mut shift: Vec<f64> = o.iter().map(|o| dp_sink * o.abs()).collect();
    let mut farthest: Vec<f64> = o
        .iter()
        .map(|o| if p_sink > 0.0 { o.abs() } else { 0.0 })
        .collect();
    for (seen, (_, dp)) in seen.iter().zip(&weights) {
        for (c, &v) in values[seen.key].iter().enumerate() {
            let distance = (v - o[c]).abs();
            shift[c] += dp * distance;
            farthest[c] = farthest[c].max(distance);
        }
    }
    // Of the probabilities, rounded to the dtype of q, k, v, and of the output, which has the same.
    let u = rules.dtype.unit_roundoff();
    let smallest = rules.dtype.smallest_subnormal();
    let o_bounds = (0..dv)
        .map(|c| {
            if !o[c].is_finite() {
                return 0.0;
            }
            if total[c] >= f64::from(f32::MAX) {
                return f64::INFINITY;
            }
            let softmax = match drift {
                drift if drift < 0.5 => (shift[c] / sum / (1.0 - drift)).min(farthest[c]),
                _ => farthest[c],
            };
            let rounded_probabilities = match random {
                true => u * magnitude[c].min(LAMBDA * squares[c].sqrt()),
                false => u * magnitude[c],
            } + smallest * total[c] / sum;
            let product = match random {
                true => LAMBDA * n.sqrt() * ULP * squares[c].sqrt(),
                false => gamma(n + rescales + 3.0) * magnitude[c],
            };
            let output =
                u * (o[c].abs() + greatest[c]) + smallest + f64::from(f32::MIN_POSITIVE) * total[c];
            softmax + rounded_probabilities + product + (summing + 2.5 * ULP) * o[c].abs() + output
        })
        .collect();

    let log = sum.ln();
    let lse = max + log;
    let worst_score = seen
        .iter()
        .map(|seen| seen.error)
        .fold(4.0 * U * sink.abs() * f64::from(p_sink > 0.0), f64::max);
    // Σ w |x| ≤ n / e.
    let exponentials = (3.0 * (rescales + 1.0) + n) * ULP;
    let scores = match drift {
        drift if drift < 0.5 => (-(-drift).ln_1p()).min(worst_score + exponentials),
        _ => worst_score + exponentials,
    };
    let logarithm = LOG_ERROR + 3.0 * ULP * log.abs();
    let lse_bound =
        scores + summing + logarithm + 4.0 * U * (max.abs() + log.abs()) + U * lse.abs();
    Attended {
        o,
        o_bounds,
        lse,
        lse_bound,
    }
}

type Attend = dyn Fn(&Query<'_>, &Rules) -> Attended;

/// The outputs as they come, query by query.
struct Outputs {
    o: Expected,
    lse: Option<Expected>,
}

impl Outputs {
    fn new(o: &TensorDesc, lse: Option<&TensorDesc>) -> Outputs {
        let empty = |name, desc: &TensorDesc| Expected {
            name,
            dtype: desc.dtype,
            shape: desc.shape().into(),
            values: Vec::new(),
            bounds: Vec::new(),
        };
        Outputs {
            o: empty("o", o),
            lse: lse.map(|desc| empty("lse", desc)),
        }
    }

    fn push(&mut self, attended: Attended) {
        self.o.values.extend(attended.o);
        self.o.bounds.extend(attended.o_bounds);
        if let Some(lse) = &mut self.lse {
            lse.values.push(attended.lse);
            lse.bounds.push(attended.lse_bound);
        }
    }

    fn finish(self) -> Vec<Expected> {
        [Some(self.o), self.lse].into_iter().flatten().collect()
    }
}

/// An input as f64 in row-major order, broadcast to `layout`.
fn read(inputs: &Operands, name: &str, layout: &Layout) -> Result<Vec<f64>> {
    let tensor = inputs
        .get(name)
        .ok_or_else(|| Error::invalid(name, "nothing", "a tensor"))?;
    let layout = tensor.desc.layout.broadcast_to(layout.shape())?;
    Ok(tensor.view(layout, tensor.offset)?.to_f64())
}

fn read_optional(
    inputs: &Operands,
    name: &str,
    desc: Option<&TensorDesc>,
) -> Result<Option<Vec<f64>>> {
    desc.map(|desc| read(inputs, name, &desc.layout))
        .transpose()
}

/// Row `row` of a matrix with `width` columns.
fn row(matrix: &[f64], row: u64, width: u64) -> &[f64] {
    &matrix[(row * width) as usize..((row + 1) * width) as usize]
}

/// o[b, h, i] = attend(q[b, h, i]; k[b, h / group, ..], v[b, h / group, ..]).
fn attention(
    op: &Attention,
    inputs: &Operands,
    data: DataClass,
    attend: &Attend,
) -> Result<Vec<Expected>> {
    let q = read(inputs, "q", &op.q.layout)?;
    let k = read(inputs, "k", &op.k.layout)?;
    let v = read(inputs, "v", &op.v.layout)?;
    let mask = match op.mask_layout() {
        Some(layout) => read(inputs, "mask", &layout)?,
        None => Vec::new(),
    };
    let kv_lens = read_optional(inputs, "kv_lens", op.kv_lens.as_ref())?;
    let sinks = read_optional(inputs, "sinks", op.sinks.as_ref())?;
    let slopes = read_optional(inputs, "alibi_slopes", op.alibi_slopes.as_ref())?;
    let (heads, kv_heads, q_len, kv_len) = (op.heads(), op.kv_heads(), op.q_len(), op.kv_len());
    let rules = Rules {
        softmax: op.softmax,
        dtype: op.q.dtype,
        dv: op.dv() as usize,
        data,
    };
    let mut outputs = Outputs::new(&op.o, op.lse.as_ref());
    for b in 0..op.batch() {
        let len = match &kv_lens {
            Some(kv_lens) => length(kv_lens[b as usize], kv_len, "kv_lens")?,
            None => kv_len,
        };
        for h in 0..heads {
            let kv_head = b * kv_heads + h / (heads / kv_heads);
            let key = |j| kv_head * kv_len + j;
            let keys: Vec<_> = (0..len).map(|j| row(&k, key(j), op.d())).collect();
            let values: Vec<_> = (0..len).map(|j| row(&v, key(j), op.dv())).collect();
            for i in 0..q_len {
                let query = (b * heads + h) * q_len + i;
                let mask = match mask.is_empty() {
                    true => &[],
                    false => &row(&mask, query, kv_len)[..len as usize],
                };
                outputs.push(attend(
                    &Query {
                        q: row(&q, query, op.d()),
                        position: (len + i) as i64 - q_len as i64,
                        keys: &keys,
                        values: &values,
                        mask,
                        sink: sinks.as_ref().map(|sinks| sinks[h as usize]),
                        slope: slopes.as_ref().map(|slopes| slopes[h as usize]),
                    },
                    &rules,
                ));
            }
        }
    }
    Ok(outputs.finish())
}

/// A length or offset of device data.
fn length(value: f64, most: u64, name: &str) -> Result<u64> {
    match value {
        value if (0.0..=most as f64).contains(&value) => Ok(value as u64),
        value => Err(Error::invalid(name, value, format!("0 to {most}"))),
    }
}

/// What the two ops over sequences laid end to end share.
struct Ragged<'a> {
    /// [tokens, heads, d].
    q: &'a [f64],
    /// [rows, kv_heads, d], whatever the rows are.
    k: &'a [f64],
    /// [rows, kv_heads, dv].
    v: &'a [f64],
    heads: u64,
    kv_heads: u64,
    d: u64,
    sinks: Option<Vec<f64>>,
    slopes: Option<Vec<f64>>,
    rules: Rules,
}

impl Ragged<'_> {
    /// o[t, h] = attend(q[t, h]; k[rows, h / group], v[rows, h / group]) for the tokens of one sequence.
    fn sequence(&self, tokens: Range<u64>, rows: &[u64], attend: &Attend, outputs: &mut Outputs) {
        let q_len = tokens.end - tokens.start;
        let dv = self.rules.dv as u64;
        for t in tokens.clone() {
            for h in 0..self.heads {
                let kv_head = h / (self.heads / self.kv_heads);
                let key = |r: &u64| r * self.kv_heads + kv_head;
                let keys: Vec<_> = rows.iter().map(|r| row(self.k, key(r), self.d)).collect();
                let values: Vec<_> = rows.iter().map(|r| row(self.v, key(r), dv)).collect();
                outputs.push(attend(
                    &Query {
                        q: row(self.q, t * self.heads + h, self.d),
                        position: rows.len() as i64 - q_len as i64 + (t - tokens.start) as i64,
                        keys: &keys,
                        values: &values,
                        mask: &[],
                        sink: self.sinks.as_ref().map(|sinks| sinks[h as usize]),
                        slope: self.slopes.as_ref().map(|slopes| slopes[h as usize]),
                    },
                    &self.rules,
                ));
            }
        }
    }
}

/// Sequence s has the queries cu_q[s] .. cu_q[s + 1] and the keys cu_kv[s] .. cu_kv[s + 1].
fn attention_varlen(
    op: &VarlenAttention,
    inputs: &Operands,
    data: DataClass,
    attend: &Attend,
) -> Result<Vec<Expected>> {
    let cu_q = read(inputs, "cu_q", &op.cu_q.layout)?;
    let cu_kv = read(inputs, "cu_kv", &op.cu_kv.layout)?;
    let ragged = Ragged {
        q: &read(inputs, "q", &op.q.layout)?,
        k: &read(inputs, "k", &op.k.layout)?,
        v: &read(inputs, "v", &op.v.layout)?,
        heads: op.heads(),
        kv_heads: op.kv_heads(),
        d: op.d(),
        sinks: read_optional(inputs, "sinks", op.sinks.as_ref())?,
        slopes: read_optional(inputs, "alibi_slopes", op.alibi_slopes.as_ref())?,
        rules: Rules {
            softmax: op.softmax,
            dtype: op.q.dtype,
            dv: op.dv() as usize,
            data,
        },
    };
    let mut outputs = Outputs::new(&op.o, op.lse.as_ref());
    for s in 0..op.batch() as usize {
        let tokens =
            length(cu_q[s], op.tokens(), "cu_q")?..length(cu_q[s + 1], op.tokens(), "cu_q")?;
        let begin = length(cu_kv[s], op.kv_tokens(), "cu_kv")?;
        let end = length(cu_kv[s + 1], op.kv_tokens(), "cu_kv")?;
        let rows: Vec<u64> = (begin..end).collect();
        ragged.sequence(tokens, &rows, attend, &mut outputs);
    }
    Ok(outputs.finish())
}

/// Key j of sequence s lies in block block_table[s, j / block_size] at j % block_size.
fn attention_paged(
    op: &PagedAttention,
    inputs: &Operands,
    data: DataClass,
    attend: &Attend,
) -> Result<Vec<Expected>> {
    let cu_q = read(inputs, "cu_q", &op.cu_q.layout)?;
    let kv_lens = read(inputs, "kv_lens", &op.kv_lens.layout)?;
    let block_table = read(inputs, "block_table", &op.block_table.layout)?;
    let ragged = Ragged {
        q: &read(inputs, "q", &op.q.layout)?,
        k: &read(inputs, "k_cache", &op.k_cache.layout)?,
        v: &read(inputs, "v_cache", &op.v_cache.layout)?,
        heads: op.heads(),
        kv_heads: op.kv_heads(),
        d: op.d(),
        sinks: read_optional(inputs, "sinks", op.sinks.as_ref())?,
        slopes: read_optional(inputs, "alibi_slopes", op.alibi_slopes.as_ref())?,
        rules: Rules {
            softmax: op.softmax,
            dtype: op.q.dtype,
            dv: op.dv() as usize,
            data,
        },
    };
    let mut outputs = Outputs::new(&op.o, op.lse.as_ref());
    for s in 0..op.batch() {
        let (begin, end) = (cu_q[s as usize], cu_q[s as usize + 1]);
        let tokens = length(begin, op.tokens(), "cu_q")?..length(end, op.tokens(), "cu_q")?;
        let len = length(kv_lens[s as usize], op.max_kv_len(), "kv_lens")?;
        let rows = (0..len)
            .map(|j| {
                let entry = s * op.max_blocks() + j / op.block_size();
                let block = block_table[entry as usize];
                let last = op.blocks().checked_sub(1);
                let last = last.ok_or_else(|| Error::invalid("k_cache", "no block", "some"))?;
                let block = length(block, last, "block_table")?;
                Ok(block * op.block_size() + j % op.block_size())
            })
            .collect::<Result<Vec<u64>>>()?;
        ragged.sequence(tokens, &rows, attend, &mut outputs);
    }
    Ok(outputs.finish())
}

/// The rows of a tensor from `first` to the end.
fn rows_from(inputs: &Operands, name: &str, first: u64) -> Result<HostTensor> {
    let tensor = inputs
        .get(name)
        .ok_or_else(|| Error::invalid(name, "nothing", "a tensor"))?;
    let (mut shape, strides) = (tensor.shape().to_vec(), tensor.desc.layout.strides());
    shape[0] -= first;
    // A window of no elements begins where the whole does.
    let skipped = if shape.contains(&0) {
        0
    } else {
        first * strides[0]
    };
    tensor.view(Layout::strided(&shape, strides)?, tensor.offset + skipped)
}

/// Cumulative lengths of the sequences from `first` on, counted from there.
fn lengths_from(inputs: &Operands, name: &str, first: u64) -> Result<(u64, HostTensor)> {
    let lengths = rows_from(inputs, name, first)?.to_i32()?;
    let counted: Vec<i32> = lengths.iter().map(|length| length - lengths[0]).collect();
    let begin =
        u64::try_from(lengths[0]).map_err(|_| Error::invalid(name, lengths[0], "0 or more"))?;
    Ok((
        begin,
        HostTensor::from_i32(&[counted.len() as u64], &counted)?,
    ))
}

/// The last half of the sequences: the tensors in `per_token` begin at their first query, those in `per_sequence` at the first sequence.
fn last_sequences(inputs: &Operands, batch: u64, per_sequence: &[&str]) -> Result<Option<Part>> {
    let first = batch / 2;
    if first == 0 {
        return Ok(None);
    }
    let mut part = inputs.clone();
    let (begin, cu_q) = lengths_from(inputs, "cu_q", first)?;
    part.insert("cu_q".into(), cu_q);
    part.insert("q".into(), rows_from(inputs, "q", begin)?);
    if inputs.contains_key("cu_kv") {
        let (begin, cu_kv) = lengths_from(inputs, "cu_kv", first)?;
        part.insert("cu_kv".into(), cu_kv);
        for name in ["k", "v"] {
            part.insert(name.into(), rows_from(inputs, name, begin)?);
        }
    }
    for name in per_sequence {
        part.insert((*name).into(), rows_from(inputs, name, first)?);
    }
    Ok(Some(Part {
        inputs: part,
        first_rows: vec![("o", begin), ("lse", begin)],
    }))
}

/// The mathematics of `attention`.
pub(super) struct AttentionSpec;

impl OpSpec for AttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        attention(described(op)?, inputs, data, &attend)
    }

    fn judge_by(
        &self,
        reference: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        data: DataClass,
    ) -> Result<Judgement> {
        let op = described(op)?;
        let naive = attention(op, inputs, data, &naive::naive)?;
        naive::judge(&reference()?, &naive, outputs)
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::attention_strategy()
    }
}

/// The mathematics of `attention_varlen`.
pub(super) struct VarlenAttentionSpec;

impl OpSpec for VarlenAttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        attention_varlen(described(op)?, inputs, data, &attend)
    }

    fn judge_by(
        &self,
        reference: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        data: DataClass,
    ) -> Result<Judgement> {
        let op = described(op)?;
        let naive = attention_varlen(op, inputs, data, &naive::naive)?;
        naive::judge(&reference()?, &naive, outputs)
    }

    fn part(&self, op: &dyn Op, inputs: &Operands) -> Result<Option<Part>> {
        let op: &VarlenAttention = described(op)?;
        last_sequences(inputs, op.batch(), &[])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention_varlen()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::attention_varlen_strategy()
    }
}

/// The mathematics of `attention_paged`.
pub(super) struct PagedAttentionSpec;

impl OpSpec for PagedAttentionSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        attention_paged(described(op)?, inputs, data, &attend)
    }

    fn judge_by(
        &self,
        reference: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        data: DataClass,
    ) -> Result<Judgement> {
        let op = described(op)?;
        let naive = attention_paged(op, inputs, data, &naive::naive)?;
        naive::judge(&reference()?, &naive, outputs)
    }

    fn part(&self, op: &dyn Op, inputs: &Operands) -> Result<Option<Part>> {
        let op: &PagedAttention = described(op)?;
        last_sequences(inputs, op.batch(), &["block_table", "kv_lens"])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::attention_paged()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::attention_paged_strategy()
    }
}
