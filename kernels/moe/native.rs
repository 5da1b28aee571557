//! The cpu device's functions. Each takes the arguments of the OpenCL kernel of its name.

use std::cmp::Reverse;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use ropeway_core::dtype::DType;
use ropeway_core::native::{Matrix, NativeCall, NativeDevice};
use ropeway_core::{Error, Result};

/// Status of an id that names no expert.
const STATUS_BAD_EXPERT: u32 = 1;

/// Status of a source that is out of range or claimed twice.
const STATUS_BAD_SOURCE: u32 = 2;

/// Columns whose f32 sums stay in the first-level cache.
const BLOCK: usize = 2048;

/// Rows of an expert that one task multiplies.
const TASK_ROWS: usize = 256;

/// The most rows that are multiplied as dot products, so that weights are read once and not packed.
const DOT_ROWS: usize = 4;

/// A float type that tensors are stored in.
trait Element: Pod + Send + Sync {
    fn get(self) -> f32;
    fn put(value: f32) -> Self;
    /// `to[i] = from[i]` in f32.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Element for f32 {
    fn get(self) -> f32 {
        self
    }
    fn put(value: f32) -> f32 {
        value
    }
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> f16 {
        f16::from_f32(value)
    }
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Element for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn widen(from: &[bf16], to: &mut [f32]) {
        for (wide, narrow) in to.iter_mut().zip(from) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
        }
    }
}

/// Calls a function generic over [`Element`] with the type that the plan fixed under this name.
macro_rules! with_element {
    ($call:expr, $name:literal, $function:ident) => {
        match $call.config().dtype($name) {
            Some(DType::F32) => $function::<f32>($call),
            Some(DType::F16) => $function::<f16>($call),
            Some(DType::BF16) => $function::<bf16>($call),
            other => Err(Error::invalid(
                $name,
                format!("{other:?}"),
                "F32, F16 or BF16",
            )),
        }
    };
}

/// Chooses the experts of each token; see `route.cl`.
pub(super) fn moe_route(call: &mut NativeCall<'_>) -> Result<()> {
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

/// Memory of one task, reused from token to token.
#[derive(Default)]
struct Scratch {
    score: Vec<f32>,
    /// The number an expert is chosen by, comparable as an integer, and its index.
    key: Vec<(i32, Reverse<usize>)>,
    group: Vec<(i32, Reverse<usize>)>,
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
            scratch.score.clear();
            scratch
                .score
                .extend((0..experts).map(|expert| row[expert * expert_stride].get()));
            router.choose(scratch, &mut ids[..topk], &mut weights[..topk]);
        });
    Ok(())
}

/// An integer that orders as the number does, -0 as +0.
fn order(value: f32) -> i32 {
    let bits = (value + 0.0).to_bits() as i32;
    bits ^ ((bits >> 31) & i32::MAX)
}

impl Router<'_> {
    fn biased(&self, score: f32, expert: usize) -> f32 {
        self.bias
            .map_or(score, |bias| score + bias[expert * self.bias_stride])
    }

    /// `scratch.score` holds the logits.
    fn choose(&self, scratch: &mut Scratch, ids: &mut [i32], weights: &mut [f32]) {
        let Scratch { score, key, group } = scratch;
        key.clear();
        // With softmax and no bias the order is that of the logits, which no underflow blurs.
        if !self.sigmoid && self.bias.is_none() {
            key.extend(
                score
                    .iter()
                    .enumerate()
                    .map(|(expert, &v)| (order(v), Reverse(expert))),
            );
        }
        if self.sigmoid {
            for v in score.iter_mut() {
                let e = (-v.abs()).exp();
                *v = if *v < 0.0 { e } else { 1.0 } / (1.0 + e);
            }
        } else {
            let greatest = score.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let mut sum = 0.0;
            for v in score.iter_mut() {
                *v = (*v - greatest).exp();
                sum += *v;
            }
            score.iter_mut().for_each(|v| *v /= sum);
        }
        let nan = score
            .iter()
            .enumerate()
            .any(|(expert, &v)| self.biased(v, expert).is_nan());
        if nan {
            ids.iter_mut()
                .enumerate()
                .for_each(|(slot, id)| *id = slot as i32);
            weights.fill(f32::NAN);
            return;
        }
        if key.is_empty() {
            key.extend(
                score
                    .iter()
                    .enumerate()
                    .map(|(expert, &v)| (order(self.biased(v, expert)), Reverse(expert))),
            );
        }
        if self.groups > 1 {
            self.keep_best_groups(score, key, group);
        }
        if self.topk < key.len() {
            key.select_nth_unstable_by(self.topk - 1, |a, b| b.cmp(a));
        }
        key[..self.topk].sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = 0.0;
        for (&(_, Reverse(expert)), (id, weight)) in
            key.iter().zip(ids.iter_mut().zip(weights.iter_mut()))
        {
            *id = expert as i32;
            *weight = score[expert];
            sum += *weight;
        }
        let divisor = if self.renormalize { sum + 1e-20 } else { 1.0 };
        weights
            .iter_mut()
            .for_each(|weight| *weight = *weight / divisor * self.scale);
    }

    /// Drops from `key` the experts of all but the `topk_groups` groups whose two best biased scores sum highest.
    fn keep_best_groups(
        &self,
        score: &[f32],
        key: &mut Vec<(i32, Reverse<usize>)>,
        group: &mut Vec<(i32, Reverse<usize>)>,
    ) {
        let size = score.len() / self.groups;
        group.clear();
        group.extend(score.chunks(size).enumerate().map(|(index, members)| {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for (member, &v) in members.iter().enumerate() {
                let v = self.biased(v, index * size + member);
                second = second.max(first.min(v));
                first = first.max(v);
            }
            (
                order(if size > 1 { first + second } else { first }),
                Reverse(index),
            )
        }));
        group.sort_unstable_by(|a, b| b.cmp(a));
        group.truncate(self.topk_groups);
        key.retain(|(_, Reverse(expert))| {
            group
                .iter()
                .any(|(_, Reverse(index))| *index == expert / size)
        });
    }
}

/// The next `N` sizes.
fn sizes<const N: usize>(call: &mut NativeCall<'_>) -> Result<[usize; N]> {
    let mut found = [0; N];
    for size in &mut found {
        *size = call.size()?;
    }
    Ok(found)
}

/// The ids of a permutation.
struct Ids<'a> {
    data: &'a [i32],
    tokens: usize,
    topk: usize,
    experts: usize,
    token_stride: usize,
    slot_stride: usize,
}

impl Ids<'_> {
    /// Calls `each` with the number of every (token, slot) and its expert, in order; sets the status for ids that name none.
    fn each(&self, status: &mut u32, mut each: impl FnMut(usize, Option<usize>)) {
        for token in 0..self.tokens {
            for slot in 0..self.topk {
                let id = self.data[token * self.token_stride + slot * self.slot_stride];
                let expert = usize::try_from(id).ok().filter(|&id| id < self.experts);
                if expert.is_none() && id != -1 {
                    *status = STATUS_BAD_EXPERT;
                }
                each(token * self.topk + slot, expert);
            }
        }
    }

    /// Counting sort. `expert_offsets` [experts + 1]; `source` and, if wanted, `inverse` [tokens · topk].
    fn permute(
        &self,
        expert_offsets: &mut [i32],
        source: &mut [i32],
        inverse: Option<&mut [i32]>,
        status: &mut u32,
    ) {
        expert_offsets.fill(0);
        self.each(status, |_, expert| {
            if let Some(expert) = expert {
                expert_offsets[expert + 1] += 1;
            }
        });
        for expert in 0..self.experts {
            expert_offsets[expert + 1] += expert_offsets[expert];
        }
        let mut next = expert_offsets[..self.experts].to_vec();
        source[expert_offsets[self.experts] as usize..].fill(-1);
        let mut inverse = inverse;
        self.each(status, |pair, expert| {
            let mut row = -1;
            if let Some(expert) = expert {
                row = next[expert];
                next[expert] += 1;
                source[row as usize] = pair as i32;
            }
            if let Some(inverse) = &mut inverse {
                inverse[pair] = row;
            }
        });
    }
}

/// Offsets, source and inverse from ids; see `rows.cl`.
pub(super) fn expert_permute(call: &mut NativeCall<'_>) -> Result<()> {
    let data = call.read::<i32>()?;
    let expert_offsets = call.write::<i32>()?;
    let source = call.write::<i32>()?;
    let inverse = call.write::<i32>()?;
    let status = call.write::<u32>()?;
    let [tokens, topk, experts, token_stride, slot_stride] = sizes(call)?;
    let ids = Ids {
        data,
        tokens,
        topk,
        experts,
        token_stride,
        slot_stride,
    };
    let pairs = tokens * topk;
    ids.permute(
        &mut expert_offsets[..=experts],
        &mut source[..pairs],
        Some(inverse),
        &mut status[0],
    );
    Ok(())
}

/// The permutation and the rows in its order.
pub(super) fn expert_scatter(call: &mut NativeCall<'_>) -> Result<()> {
    match call.config().dtype("X_DTYPE").and_then(DType::size) {
        Some(4) => scatter::<u32>(call),
        Some(2) => scatter::<u16>(call),
        other => Err(Error::invalid(
            "X_DTYPE",
            format!("{other:?} bytes"),
            "2 or 4 bytes",
        )),
    }
}

fn scatter<T: Pod + Send + Sync>(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.read::<T>()?;
    let data = call.read::<i32>()?;
    let rows = call.write::<T>()?;
    let expert_offsets = call.write::<i32>()?;
    let source = call.write::<i32>()?;
    let status = call.write::<u32>()?;
    let [tokens, topk, experts, hidden] = sizes(call)?;
    let [token_stride, column_stride] = sizes(call)?;
    let [ids_token_stride, slot_stride, row_stride] = sizes(call)?;
    let ids = Ids {
        data,
        tokens,
        topk,
        experts,
        token_stride: ids_token_stride,
        slot_stride,
    };
    ids.permute(expert_offsets, source, None, &mut status[0]);
    if hidden == 0 {
        return Ok(());
    }
    rows.par_chunks_mut(row_stride.max(hidden))
        .zip(&*source)
        .for_each(|(row, &pair)| {
            let row = &mut row[..hidden];
            match usize::try_from(pair) {
                Err(_) => row.fill(T::zeroed()),
                Ok(pair) => {
                    let token = &x[pair / topk * token_stride..];
                    if column_stride == 1 {
                        row.copy_from_slice(&token[..hidden]);
                    } else {
                        for (column, to) in row.iter_mut().enumerate() {
                            *to = token[column * column_stride];
                        }
                    }
                }
            }
        });
    Ok(())
}

/// The row of every (token, slot) from the source of every row.
pub(super) fn expert_invert(call: &mut NativeCall<'_>) -> Result<()> {
    let source = call.read::<i32>()?;
    let inverse = call.write::<i32>()?;
    let status = call.write::<u32>()?;
    let [pairs, stride] = sizes(call)?;
    let inverse = &mut inverse[..pairs];
    inverse.fill(-1);
    for row in 0..pairs {
        match source[row * stride] {
            -1 => {}
            pair => match usize::try_from(pair)
                .ok()
                .and_then(|pair| inverse.get_mut(pair))
            {
                Some(place) => {
                    if *place != -1 {
                        status[0] = STATUS_BAD_SOURCE;
                    }
                    *place = row as i32;
                }
                None => status[0] = STATUS_BAD_SOURCE,
            },
        }
    }
    Ok(())
}

/// The weighted sum of each token's rows, in slot order.
pub(super) fn expert_combine(call: &mut NativeCall<'_>) -> Result<()> {
    match call.config().dtype("X_DTYPE") {
        Some(DType::F32) => combine_into::<f32>(call),
        Some(DType::F16) => combine_into::<f16>(call),
        Some(DType::BF16) => combine_into::<bf16>(call),
        other => Err(Error::invalid(
            "X_DTYPE",
            format!("{other:?}"),
            "F32, F16 or BF16",
        )),
    }
}

fn combine_into<Y: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    match call.config().dtype("ROWS_DTYPE") {
        Some(DType::F32) => combine::<f32, Y>(call),
        Some(DType::F16) => combine::<f16, Y>(call),
        Some(DType::BF16) => combine::<bf16, Y>(call),
        other => Err(Error::invalid(
            "ROWS_DTYPE",
            format!("{other:?}"),
            "F32, F16 or BF16",
        )),
    }
}

fn combine<R: Element, Y: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    let rows = call.read::<R>()?;
    let inverse = call.read::<i32>()?;
    let topk_weights = call.read::<f32>()?;
    let y = call.write::<Y>()?;
    let [tokens, topk, hidden] = sizes(call)?;
    let [
        row_stride,
        column_stride,
        token_stride,
        slot_stride,
        y_stride,
    ] = sizes(call)?;
    if hidden == 0 {
        return Ok(());
    }
    let scratch = || {
        (
            vec![0.0f32; hidden.min(BLOCK)],
            vec![0.0f32; hidden.min(BLOCK)],
        )
    };
    y.par_chunks_mut(y_stride.max(hidden))
        .take(tokens)
        .enumerate()
        .for_each_init(scratch, |(sums, wide), (token, y)| {
            for begin in (0..hidden).step_by(BLOCK) {
                let width = BLOCK.min(hidden - begin);
                let (sums, wide) = (&mut sums[..width], &mut wide[..width]);
                sums.fill(0.0);
                for slot in 0..topk {
                    let Ok(row) = usize::try_from(inverse[token * topk + slot]) else {
                        continue;
                    };
                    let weight = topk_weights[token * token_stride + slot * slot_stride];
                    let row = &rows[row * row_stride..];
                    if column_stride == 1 {
                        R::widen(&row[begin..begin + width], wide);
                    } else {
                        for (column, to) in wide.iter_mut().enumerate() {
                            *to = row[(begin + column) * column_stride].get();
                        }
                    }
                    for (sum, v) in sums.iter_mut().zip(&*wide) {
                        *sum += weight * v;
                    }
                }
                for (to, sum) in y[begin..begin + width].iter_mut().zip(&*sums) {
                    *to = Y::put(*sum);
                }
            }
        });
    Ok(())
}

/// `rows[r] = w_down[e] (silu(gate) · up)` for the rows of each expert e, gathered from `x` by `source`.
pub(super) fn moe_experts(call: &mut NativeCall<'_>) -> Result<()> {
    with_element!(call, "X_DTYPE", experts)
}

/// Rows that share an expert, and where their results go.
struct Task<'a> {
    expert: usize,
    source: &'a [i32],
    rows: &'a mut [f32],
}

/// A matrix of weights of each expert, its rows dense.
struct Weights<'a, T> {
    data: &'a [T],
    expert_stride: usize,
    row_stride: usize,
    /// Rows and columns of one expert's.
    shape: [usize; 2],
}

/// Memory of one worker, reused from task to task.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    gate_up: Vec<f32>,
    h: Vec<f32>,
    wide: Vec<f32>,
}

impl<T: Element> Weights<'_, T> {
    fn row(&self, expert: usize, row: usize) -> &[T] {
        let begin = expert * self.expert_stride + row * self.row_stride;
        &self.data[begin..begin + self.shape[1]]
    }

    /// `d[r] = a[r] wᵀ` for the `m` dense rows of `a`; `wide` is scratch.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &self,
        device: &dyn NativeDevice,
        expert: usize,
        a: &[f32],
        m: usize,
        d: &mut [f32],
        wide: &mut Vec<f32>,
        threads: usize,
    ) {
        let [n, k] = self.shape;
        if m <= DOT_ROWS {
            wide.resize(k, 0.0);
            for j in 0..n {
                T::widen(self.row(expert, j), wide);
                for r in 0..m {
                    d[r * n + j] = dot(&a[r * k..][..k], wide);
                }
            }
            return;
        }
        let a = Matrix {
            data: a,
            row_stride: k,
            column_stride: 1,
        };
        let whole = bytemuck::try_cast_slice::<T, f32>(self.data)
            .ok()
            .filter(|_| size_of::<T>() == 4);
        let b = match whole {
            Some(whole) => {
                let data = &whole[(expert * self.expert_stride).min(whole.len())..];
                Matrix {
                    data,
                    row_stride: 1,
                    column_stride: self.row_stride,
                }
            }
            None => {
                wide.resize(n * k, 0.0);
                for j in 0..n {
                    T::widen(self.row(expert, j), &mut wide[j * k..][..k]);
                }
                Matrix {
                    data: &**wide,
                    row_stride: 1,
                    column_stride: k,
                }
            }
        };
        device.matmul(m, n, k, 1.0, a, b, 0.0, d, n, threads);
    }
}

/// Sums in sixteen lanes, so that it compiles to vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn experts<T: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.read::<T>()?;
    let gate_up = call.read::<T>()?;
    let down = call.read::<T>()?;
    let expert_offsets = call.read::<i32>()?;
    let source = call.read::<i32>()?;
    let rows = call.write::<f32>()?;
    let [topk, experts, hidden, inter] = sizes(call)?;
    let [token_stride, column_stride] = sizes(call)?;
    let [gate_up_expert, gate_up_row, down_expert, down_row] = sizes(call)?;
    let device = call.device();
    if hidden == 0 {
        return Ok(());
    }
    let gate_up = Weights {
        data: gate_up,
        expert_stride: gate_up_expert,
        row_stride: gate_up_row,
        shape: [2 * inter, hidden],
    };
    let down = Weights {
        data: down,
        expert_stride: down_expert,
        row_stride: down_row,
        shape: [hidden, inter],
    };

    let mut tasks = Vec::new();
    let mut rest = rows;
    for expert in 0..experts {
        let range = expert_offsets[expert] as usize..expert_offsets[expert + 1] as usize;
        for source in source[range].chunks(TASK_ROWS) {
            let (rows, after) = std::mem::take(&mut rest).split_at_mut(source.len() * hidden);
            rest = after;
            tasks.push(Task {
                expert,
                source,
                rows,
            });
        }
    }
    let run = |buffers: &mut Buffers, task: &mut Task<'_>, threads: usize| {
        let m = task.source.len();
        buffers.x.resize(m * hidden, 0.0);
        for (to, &pair) in buffers.x.chunks_mut(hidden).zip(task.source) {
            let token = &x[pair as usize / topk * token_stride..];
            if column_stride == 1 {
                T::widen(&token[..hidden], to);
            } else {
                for (column, to) in to.iter_mut().enumerate() {
                    *to = token[column * column_stride].get();
                }
            }
        }
        buffers.gate_up.resize(m * 2 * inter, 0.0);
        gate_up.multiply(
            device,
            task.expert,
            &buffers.x,
            m,
            &mut buffers.gate_up,
            &mut buffers.wide,
            threads,
        );
        buffers.h.resize(m * inter, 0.0);
        if inter > 0 {
            for (h, both) in buffers
                .h
                .chunks_mut(inter)
                .zip(buffers.gate_up.chunks(2 * inter))
            {
                let (gate, up) = both.split_at(inter);
                for (h, (gate, up)) in h.iter_mut().zip(gate.iter().zip(up)) {
                    *h = gate / (1.0 + (-gate).exp()) * up;
                }
            }
        }
        down.multiply(
            device,
            task.expert,
            &buffers.h,
            m,
            task.rows,
            &mut buffers.wide,
            threads,
        );
    };
    if tasks.len() >= 2 * device.threads() {
        tasks
            .par_iter_mut()
            .for_each_init(Buffers::default, |buffers, task| run(buffers, task, 1));
    } else {
        let mut buffers = Buffers::default();
        tasks
            .iter_mut()
            .for_each(|task| run(&mut buffers, task, device.threads()));
    }
    Ok(())
}
