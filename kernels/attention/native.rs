//! The cpu device's function: the blocks of `attention_prefill.cl` and `attention_decode.cl` in vectors of the machine's own width.
//!
//! A task is a block of rows of one sequence and key head (see `attention.cl` for rows), or one split of the keys where there are few rows. It
//! converts a block of keys and values to f32 once, and then goes as the OpenCL kernels do.

use std::sync::Mutex;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use ropeway_core::dtype::DType;
use ropeway_core::native::NativeCall;
use ropeway_core::{Error, Result};

use super::plan::flag;

/// Status of lengths that leave their tensors.
const STATUS_LENGTH: u32 = 1;

/// Status of a block table that names no block.
const STATUS_BLOCK: u32 = 2;

/// Rows of a task.
const ROWS: usize = 64;

/// Keys between two rescalings.
const KEY_BLOCK: usize = 64;

/// Keys of a task of few rows.
const SPLIT_KEYS: usize = 1024;

/// Elements side by side in packed keys and values, keys or columns in registers.
const TILE: usize = 16;

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

/// Attention in all three layouts; the arguments are those of `attention.cl`.
pub(super) fn attention_native(call: &mut NativeCall<'_>) -> Result<()> {
    match call.config().dtype("DTYPE") {
        Some(DType::F32) => attention::<f32>(call),
        Some(DType::F16) => attention::<f16>(call),
        Some(DType::BF16) => attention::<bf16>(call),
        other => Err(Error::invalid(
            "DTYPE",
            format!("{other:?}"),
            "F32, F16 or BF16",
        )),
    }
}

/// Strides of batch (or block), head, row and column.
#[derive(Clone, Copy)]
struct Strides([usize; 4]);

impl Strides {
    fn read(call: &mut NativeCall<'_>) -> Result<Strides> {
        Ok(Strides([
            call.size()?,
            call.size()?,
            call.size()?,
            call.size()?,
        ]))
    }

    fn row(&self, batch: usize, head: usize, row: usize) -> usize {
        batch * self.0[0] + head * self.0[1] + row * self.0[2]
    }

    fn column(&self) -> usize {
        self.0[3]
    }
}

/// One argument of one problem, with what does not depend on the sequence.
struct Problem<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    mask: Option<&'a [f32]>,
    block_table: &'a [i32],
    sinks: Option<&'a [f32]>,
    alibi_slopes: Option<&'a [f32]>,
    group: usize,
    d: usize,
    dv: usize,
    q_strides: Strides,
    k_strides: Strides,
    v_strides: Strides,
    mask_strides: Strides,
    paged: bool,
    blocks: usize,
    block_size: usize,
    block_table_strides: [usize; 2],
    sinks_stride: usize,
    alibi_slopes_stride: usize,
    scale: f32,
    softcap: f32,
    window: usize,
    causal: bool,
}

/// Where results go. Tasks hold it only while they write their rows.
struct Results<'a, T> {
    o: &'a mut [T],
    lse: Option<&'a mut [f32]>,
    status: u32,
    o_strides: Strides,
    lse_strides: Strides,
}

/// One sequence, its lengths held inside the operands.
#[derive(Clone, Copy)]
struct Sequence {
    /// Index in the block table and the mask.
    index: usize,
    /// Index along the batch axis of q, k, v and o; 0 without one.
    batch: usize,
    first_query: usize,
    queries: usize,
    first_key: usize,
    keys: usize,
}

/// Rows of one key head against some of the keys.
#[derive(Clone, Copy)]
struct Part {
    sequence: Sequence,
    kv_head: usize,
    first_row: usize,
    rows: usize,
    first_key: usize,
    end_key: usize,
    /// Lanes are the columns of a head rather than rows.
    few: bool,
}

/// What a part leaves: sums of p v, and of p, of each row, relative to the row's maximum.
struct Partial {
    sums: Vec<f32>,
    most: Vec<f32>,
    sum: Vec<f32>,
    status: u32,
}

/// A range of cumulative lengths, and whether it lies in `0..=end` as it is.
fn range_of(cu: &[i32], stride: usize, index: usize, end: usize) -> (usize, usize, bool) {
    let (from, to) = (
        i64::from(cu[index * stride]),
        i64::from(cu[(index + 1) * stride]),
    );
    let first = from.clamp(0, end as i64);
    let last = to.clamp(first, end as i64);
    (
        first as usize,
        (last - first) as usize,
        (first, last) == (from, to),
    )
}

fn attention<T: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    let [q, k, v] = [call.read::<T>()?, call.read::<T>()?, call.read::<T>()?];
    let mask = call.read_optional::<f32>()?;
    let kv_lens = call.read_optional::<i32>()?;
    let cu_q = call.read_optional::<i32>()?;
    let cu_kv = call.read_optional::<i32>()?;
    let block_table = call.read_optional::<i32>()?;
    let sinks = call.read_optional::<f32>()?;
    let alibi_slopes = call.read_optional::<f32>()?;
    let o = call.write::<T>()?;
    let lse = call.write_optional::<f32>()?;
    call.read_optional::<f32>()?;
    let status = call.write::<u32>()?;
    let [sequences, heads, kv_heads, q_len] = sizes(call)?;
    let [kv_len, d, dv] = sizes(call)?;
    let [q_strides, k_strides, v_strides, o_strides] = [
        Strides::read(call)?,
        Strides::read(call)?,
        Strides::read(call)?,
        Strides::read(call)?,
    ];
    let [lse_batch, lse_head, lse_row] = sizes(call)?;
    let mask_strides = Strides::read(call)?;
    let [blocks, block_size, table_row, table_column] = sizes(call)?;
    let [
        kv_lens_stride,
        cu_q_stride,
        cu_kv_stride,
        sinks_stride,
        alibi_slopes_stride,
    ] = sizes(call)?;
    let [few_rows, _split_rows, _slots] = sizes(call)?;
    let (scale, softcap) = (call.float()?, call.float()?);
    let [window, flags] = sizes(call)?;
    let problem = Problem {
        q,
        k,
        v,
        mask,
        block_table: block_table.unwrap_or(&[]),
        sinks,
        alibi_slopes,
        group: heads / kv_heads,
        d,
        dv,
        q_strides,
        k_strides,
        v_strides,
        mask_strides,
        paged: block_table.is_some(),
        blocks,
        block_size,
        block_table_strides: [table_row, table_column],
        sinks_stride,
        alibi_slopes_stride,
        scale,
        softcap: if flags as i64 & flag::SOFTCAP != 0 {
            softcap
        } else {
            0.0
        },
        window,
        causal: flags as i64 & flag::CAUSAL != 0,
    };

    let mut seen = 0;
    let mut list = Vec::with_capacity(sequences);
    for index in 0..sequences {
        let mut sequence = Sequence {
            index,
            batch: index,
            first_query: 0,
            queries: q_len,
            first_key: 0,
            keys: kv_len,
        };
        let mut sound = true;
        if let Some(cu_q) = cu_q {
            let (first, count, fits) = range_of(cu_q, cu_q_stride, index, q_len);
            (sequence.batch, sequence.first_query, sequence.queries) = (0, first, count);
            sound &= fits;
        }
        if let Some(cu_kv) = cu_kv {
            let (first, count, fits) = range_of(cu_kv, cu_kv_stride, index, kv_len);
            (sequence.first_key, sequence.keys) = (first, count);
            sound &= fits;
        }
        if let Some(kv_lens) = kv_lens {
            let found = i64::from(kv_lens[index * kv_lens_stride]);
            let held = found.clamp(0, kv_len as i64);
            sequence.keys = held as usize;
            sound &= found == held;
        }
        if !sound {
            seen |= STATUS_LENGTH;
        }
        list.push(sequence);
    }

    let results = Mutex::new(Results {
        o,
        lse,
        status: seen,
        o_strides,
        lse_strides: Strides([lse_batch, lse_head, lse_row, 0]),
    });
    let arch = Arch::new();
    let run = |part: Part| {
        arch.dispatch(Attend {
            problem: &problem,
            part,
        })
    };
    let few = |sequence: &Sequence| sequence.queries * problem.group <= few_rows;
    let tiles = list
        .iter()
        .filter(|sequence| !few(sequence))
        .flat_map(|&sequence| {
            let rows = sequence.queries * problem.group;
            (0..kv_heads).flat_map(move |kv_head| {
                (0..rows).step_by(ROWS).map(move |first_row| Part {
                    sequence,
                    kv_head,
                    first_row,
                    rows: ROWS.min(rows - first_row),
                    first_key: 0,
                    end_key: sequence.keys,
                    few: false,
                })
            })
        });
    let tiles: Vec<Part> = tiles.collect();
    tiles
        .into_par_iter()
        .for_each(|part| problem.store(part, &run(part), &results));

    let rows_of_few = list
        .iter()
        .filter(|sequence| few(sequence) && sequence.queries > 0);
    let heads: Vec<Part> = rows_of_few
        .flat_map(|&sequence| {
            (0..kv_heads).map(move |kv_head| Part {
                sequence,
                kv_head,
                first_row: 0,
                rows: sequence.queries * problem.group,
                first_key: 0,
                end_key: sequence.keys,
                few: true,
            })
        })
        .collect();
    heads.into_par_iter().for_each(|part| {
        let partials: Vec<Partial> = (0..part.end_key.div_ceil(SPLIT_KEYS).max(1))
            .into_par_iter()
            .map(|split| {
                let first_key = split * SPLIT_KEYS;
                let end_key = part.end_key.min(first_key + SPLIT_KEYS);
                run(Part {
                    first_key,
                    end_key,
                    ..part
                })
            })
            .collect();
        problem.store(part, &merge(&partials, part.rows, problem.dv), &results);
    });

    let results = results
        .into_inner()
        .expect("no task panics while it stores");
    if results.status != 0 {
        status[0] = results.status;
    }
    Ok(())
}

fn sizes<const N: usize>(call: &mut NativeCall<'_>) -> Result<[usize; N]> {
    let mut sizes = [0; N];
    for size in &mut sizes {
        *size = call.size()?;
    }
    Ok(sizes)
}

/// Joins the splits of a part in their order.
fn merge(splits: &[Partial], rows: usize, dv: usize) -> Partial {
    let mut joined = Partial {
        sums: vec![0.0; rows * dv],
        most: vec![f32::NEG_INFINITY; rows],
        sum: vec![0.0; rows],
        status: 0,
    };
    for row in 0..rows {
        let greater = |most: f32, split: &Partial| {
            if split.most[row] > most {
                split.most[row]
            } else {
                most
            }
        };
        let most = splits.iter().fold(f32::NEG_INFINITY, greater);
        let base = if most == f32::NEG_INFINITY { 0.0 } else { most };
        joined.most[row] = most;
        for split in splits {
            let weight = (split.most[row] - base).exp();
            joined.sum[row] += weight * split.sum[row];
            let to = &mut joined.sums[row * dv..][..dv];
            for (to, from) in to.iter_mut().zip(&split.sums[row * dv..]) {
                *to += weight * from;
            }
        }
    }
    joined.status = splits.iter().fold(0, |status, split| status | split.status);
    joined
}

impl<T: Element> Problem<'_, T> {
    fn place(&self, part: &Part, row: usize) -> (usize, usize) {
        let row = part.first_row + row;
        (
            row / self.group,
            part.kv_head * self.group + row % self.group,
        )
    }

    /// The keys that a query sees.
    fn sight(&self, sequence: &Sequence, query: usize) -> (usize, usize) {
        if !self.causal {
            return (0, sequence.keys);
        }
        let end = (sequence.keys + query + 1)
            .saturating_sub(sequence.queries)
            .min(sequence.keys);
        let first = if self.window > 0 {
            end.saturating_sub(self.window)
        } else {
            0
        };
        (first, end)
    }

    /// The offset of a key's row, or `None` if the block table names no block.
    fn key_row(&self, strides: &Strides, part: &Part, key: usize) -> Option<usize> {
        if !self.paged {
            return Some(strides.row(
                part.sequence.batch,
                part.kv_head,
                part.sequence.first_key + key,
            ));
        }
        let [row, column] = self.block_table_strides;
        let block = self.block_table[part.sequence.index * row + key / self.block_size * column];
        let block = usize::try_from(block)
            .ok()
            .filter(|&block| block < self.blocks)?;
        Some(strides.row(block, part.kv_head, key % self.block_size))
    }

    /// Copies `columns` elements as f32, the rest of `to` becomes zero.
    fn pack(from: &[T], at: usize, stride: usize, columns: usize, to: &mut [[f32; TILE]]) {
        let to = to.as_flattened_mut();
        if columns == 0 {
            return;
        }
        if stride == 1 || columns == 1 {
            T::widen(&from[at..][..columns], &mut to[..columns]);
        } else {
            for (column, to) in to[..columns].iter_mut().enumerate() {
                *to = from[at + column * stride].get();
            }
        }
        to[columns..].fill(0.0);
    }

    /// Writes the rows of a part, after their sinks.
    fn store(&self, part: Part, partial: &Partial, results: &Mutex<Results<'_, T>>) {
        let mut rows = Vec::with_capacity(part.rows * self.dv);
        let mut logarithms = Vec::with_capacity(part.rows);
        for row in 0..part.rows {
            let (_, head) = self.place(&part, row);
            let (most, sum) = (partial.most[row], partial.sum[row]);
            let sink = self.sinks.map(|sinks| sinks[head * self.sinks_stride]);
            let top = match sink {
                Some(sink) if sink > most => sink,
                _ => most,
            };
            let (factor, lse) = if top == f32::NEG_INFINITY && sum == 0.0 {
                (0.0, f32::NEG_INFINITY)
            } else {
                let rescale = (most - top).exp();
                let total = sum * rescale + sink.map_or(0.0, |sink| (sink - top).exp());
                (rescale / total, top + total.ln())
            };
            let sums = &partial.sums[row * self.dv..][..self.dv];
            rows.extend(sums.iter().map(|&sum| T::put(sum * factor)));
            logarithms.push(lse);
        }
        let mut results = results.lock().expect("no task panics while it stores");
        let results = &mut *results;
        results.status |= partial.status;
        for row in 0..part.rows {
            let (query, head) = self.place(&part, row);
            let query = part.sequence.first_query + query;
            let at = results.o_strides.row(part.sequence.batch, head, query);
            let stride = results.o_strides.column();
            let from = &rows[row * self.dv..][..self.dv];
            if stride == 1 && self.dv > 0 {
                results.o[at..][..self.dv].copy_from_slice(from);
            } else {
                for (column, &value) in from.iter().enumerate() {
                    results.o[at + column * stride] = value;
                }
            }
            if let Some(lse) = &mut results.lse {
                lse[results.lse_strides.row(part.sequence.batch, head, query)] = logarithms[row];
            }
        }
    }
}

/// One part, to be run with the machine's vectors.
struct Attend<'a, T> {
    problem: &'a Problem<'a, T>,
    part: Part,
}

impl<T: Element> WithSimd for Attend<'_, T> {
    type Output = Partial;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Partial {
        let Attend { problem, part } = self;
        let (d_tiles, dv_tiles) = (problem.d.div_ceil(TILE), problem.dv.div_ceil(TILE));
        let mut block = Block {
            keys: vec![[0.0; TILE]; KEY_BLOCK * d_tiles],
            values: vec![[0.0; TILE]; KEY_BLOCK * dv_tiles],
            missing: 0,
            first_key: 0,
            count: 0,
        };
        let lanes = if part.few { 1 } else { S::F32_LANES };
        let groups = part.rows.div_ceil(lanes);
        let mut rows = Rows::new(problem, &part, lanes, groups, d_tiles);
        let mut scores = vec![0.0; KEY_BLOCK * lanes];
        let mut status = 0;

        let (first, _) = problem.sight(&part.sequence, problem.place(&part, 0).0);
        let (_, end) = problem.sight(&part.sequence, problem.place(&part, part.rows - 1).0);
        let mut first_key = (first / KEY_BLOCK * KEY_BLOCK).max(part.first_key);
        let end = end.min(part.end_key);
        while first_key < end {
            block.load(problem, &part, first_key, KEY_BLOCK.min(end - first_key));
            if block.missing != 0 {
                status |= STATUS_BLOCK;
            }
            for group in 0..groups {
                let queries =
                    &rows.queries[group * d_tiles * TILE * lanes..][..d_tiles * TILE * lanes];
                if part.few {
                    dot_products(simd, queries, &block, d_tiles, &mut scores);
                } else {
                    lane_products(simd, queries, &block, d_tiles, &mut scores);
                }
                rows.finish_scores(problem, &part, group, &block, &mut scores);
                rows.exponentials(group, &mut scores[..block.count * lanes]);
                let sums =
                    &mut rows.sums[group * dv_tiles * TILE * lanes..][..dv_tiles * TILE * lanes];
                if part.few {
                    add_values_to_row(simd, &scores, &block, dv_tiles, rows.rescale[0], sums);
                } else {
                    add_values_to_lanes(simd, &scores, &block, dv_tiles, &rows.rescale, sums);
                }
            }
            first_key += KEY_BLOCK;
        }
        rows.into_partial(part.rows, problem.dv, dv_tiles * TILE, status)
    }
}

/// Keys and values of a block in f32, rows padded with zeros to whole tiles.
struct Block {
    keys: Vec<[f32; TILE]>,
    values: Vec<[f32; TILE]>,
    /// Bit j: key `first_key + j` is in no block.
    missing: u64,
    first_key: usize,
    count: usize,
}

impl Block {
    fn load<T: Element>(
        &mut self,
        problem: &Problem<'_, T>,
        part: &Part,
        first_key: usize,
        count: usize,
    ) {
        (self.first_key, self.count, self.missing) = (first_key, count, 0);
        let d_tiles = self.keys.len() / KEY_BLOCK;
        let dv_tiles = self.values.len() / KEY_BLOCK;
        for j in 0..count {
            match problem.key_row(&problem.k_strides, part, first_key + j) {
                Some(at) => {
                    let to = &mut self.keys[j * d_tiles..][..d_tiles];
                    Problem::pack(problem.k, at, problem.k_strides.column(), problem.d, to);
                }
                None => self.missing |= 1 << j,
            }
        }
        for j in 0..count {
            let to = &mut self.values[j * dv_tiles..][..dv_tiles];
            match problem.key_row(&problem.v_strides, part, first_key + j) {
                Some(at) => {
                    Problem::pack(problem.v, at, problem.v_strides.column(), problem.dv, to)
                }
                None => to.as_flattened_mut().fill(0.0),
            }
        }
    }
}

/// The state of a part's rows, `lanes` of them side by side.
struct Rows {
    lanes: usize,
    /// [group][column][lane], scaled.
    queries: Vec<f32>,
    /// [group][column][lane].
    sums: Vec<f32>,
    /// [group][lane].
    most: Vec<f32>,
    sum: Vec<f32>,
    /// The keys that each row sees, and its query's position among the keys.
    first: Vec<usize>,
    end: Vec<usize>,
    position: Vec<i64>,
    /// What the sums so far are worth after `exponentials`, one a lane.
    rescale: Vec<f32>,
}

impl Rows {
    fn new<T: Element>(
        problem: &Problem<'_, T>,
        part: &Part,
        lanes: usize,
        groups: usize,
        d_tiles: usize,
    ) -> Rows {
        let dv_tiles = problem.dv.div_ceil(TILE);
        let mut rows = Rows {
            lanes,
            queries: vec![0.0; groups * d_tiles * TILE * lanes],
            sums: vec![0.0; groups * dv_tiles * TILE * lanes],
            most: vec![f32::NEG_INFINITY; groups * lanes],
            sum: vec![0.0; groups * lanes],
            first: vec![0; groups * lanes],
            end: vec![0; groups * lanes],
            position: vec![0; groups * lanes],
            rescale: vec![0.0; lanes],
        };
        for row in 0..groups * lanes {
            let (query, head) = problem.place(part, row.min(part.rows - 1));
            let sequence = &part.sequence;
            (rows.first[row], rows.end[row]) = problem.sight(sequence, query);
            rows.position[row] = sequence.keys as i64 - sequence.queries as i64 + query as i64;
            let at = problem
                .q_strides
                .row(sequence.batch, head, sequence.first_query + query);
            let stride = problem.q_strides.column();
            let to = &mut rows.queries[row / lanes * d_tiles * TILE * lanes..];
            for column in 0..problem.d {
                to[column * lanes + row % lanes] =
                    problem.q[at + column * stride].get() * problem.scale;
            }
        }
        rows
    }

    /// Turns products into scores, -inf where a row does not see a key.
    #[inline(always)]
    fn finish_scores<T: Element>(
        &self,
        problem: &Problem<'_, T>,
        part: &Part,
        group: usize,
        block: &Block,
        scores: &mut [f32],
    ) {
        let lanes = self.lanes;
        let scores = &mut scores[..block.count * lanes];
        if problem.softcap > 0.0 {
            for score in scores.iter_mut() {
                *score = problem.softcap * (*score * (1.0 / problem.softcap)).tanh();
            }
        }
        let block_end = block.first_key + block.count;
        for lane in 0..lanes {
            let row = group * lanes + lane;
            let (query, head) = problem.place(part, row.min(part.rows - 1));
            if let Some(slopes) = problem.alibi_slopes {
                let slope = slopes[head * problem.alibi_slopes_stride];
                let distance = block.first_key as i64 - self.position[row];
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    scores[lane] += slope * (distance + j as i64) as f32;
                }
            }
            if let Some(mask) = problem.mask {
                let at = problem.mask_strides.row(part.sequence.index, head, query);
                let stride = problem.mask_strides.column();
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    scores[lane] += mask[at + (block.first_key + j) * stride];
                }
            }
            if self.first[row] > block.first_key || self.end[row] < block_end || block.missing != 0
            {
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    let key = block.first_key + j;
                    if key < self.first[row] || key >= self.end[row] || block.missing >> j & 1 != 0
                    {
                        scores[lane] = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Turns scores into exponentials relative to the new maximum; leaves in `rescale` what the sums so far are worth.
    #[inline(always)]
    fn exponentials(&mut self, group: usize, scores: &mut [f32]) {
        let lanes = self.lanes;
        let most = &mut self.most[group * lanes..][..lanes];
        let sum = &mut self.sum[group * lanes..][..lanes];
        let mut base = [0.0; 64];
        let base = &mut base[..lanes];
        base.copy_from_slice(most);
        for scores in scores.chunks_exact(lanes) {
            for (base, &score) in base.iter_mut().zip(scores) {
                // A NaN score is no maximum: it reaches the result through its exponential.
                *base = if score > *base { score } else { *base };
            }
        }
        for (((base, most), sum), rescale) in base
            .iter_mut()
            .zip(most)
            .zip(sum.iter_mut())
            .zip(&mut self.rescale)
        {
            let top = *base;
            // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
            *base = if top == f32::NEG_INFINITY { 0.0 } else { top };
            *rescale = exp_nonpositive(*most - *base);
            *most = top;
            *sum *= *rescale;
        }
        for scores in scores.chunks_exact_mut(lanes) {
            for ((score, &base), sum) in scores.iter_mut().zip(&*base).zip(sum.iter_mut()) {
                *score = exp_nonpositive(*score - base);
                *sum += *score;
            }
        }
    }

    /// Rows one after the other, without what pads them.
    fn into_partial(self, rows: usize, dv: usize, columns: usize, status: u32) -> Partial {
        let mut sums = vec![0.0; rows * dv];
        for row in 0..rows {
            let from = &self.sums[row / self.lanes * columns * self.lanes..];
            for (column, to) in sums[row * dv..][..dv].iter_mut().enumerate() {
                *to = from[column * self.lanes + row % self.lanes];
            }
        }
        Partial {
            sums,
            most: self.most,
            sum: self.sum,
            status,
        }
    }
}

/// exp of x <= 0 within 2 + 2|x| units in the last place; 0 below the least normal result. NaN stays NaN.
#[inline(always)]
fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let t = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = t - 12_582_912.0;
    let f = x - n * 0.693_145_75 - n * 1.428_606_8e-6;
    let mut y = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.000_000_1e-1,
    ] {
        y = y * f + coefficient;
    }
    let y = y * (f * f) + (f + 1.0);
    let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.33 { 0.0 } else { y * power }
}

/// `scores[key][lane] = Σ_x queries[x][lane] · keys[key][x]`.
#[inline(always)]
fn lane_products<S: Simd>(
    simd: S,
    queries: &[f32],
    block: &Block,
    d_tiles: usize,
    scores: &mut [f32],
) {
    let (queries, _) = S::as_simd_f32s(queries);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let (queries, _) = queries.as_chunks::<TILE>();
    for (keys, scores) in block
        .keys
        .chunks_exact(TILE * d_tiles)
        .zip(scores.chunks_exact_mut(TILE))
    {
        let mut acc = [simd.splat_f32s(0.0); TILE];
        for (x, queries) in queries.iter().enumerate() {
            let rows: [&[f32; TILE]; TILE] = std::array::from_fn(|t| &keys[t * d_tiles + x]);
            for (column, &query) in queries.iter().enumerate() {
                for (acc, row) in acc.iter_mut().zip(rows) {
                    *acc = simd.mul_add_e_f32s(simd.splat_f32s(row[column]), query, *acc);
                }
            }
        }
        scores.copy_from_slice(&acc);
    }
}

/// `sums[column][lane] = sums[column][lane] · rescale[lane] + Σ_key scores[key][lane] · values[key][column]`.
#[inline(always)]
fn add_values_to_lanes<S: Simd>(
    simd: S,
    scores: &[f32],
    block: &Block,
    dv_tiles: usize,
    rescale: &[f32],
    sums: &mut [f32],
) {
    let (scores, _) = S::as_simd_f32s(scores);
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let rescale = S::as_simd_f32s(rescale).0[0];
    for (tile, sums) in sums.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut acc = sums.map(|sum| simd.mul_f32s(sum, rescale));
        let values = block.values[tile..].iter().step_by(dv_tiles);
        for (&p, values) in scores[..block.count].iter().zip(values) {
            for (acc, &value) in acc.iter_mut().zip(values) {
                *acc = simd.mul_add_e_f32s(simd.splat_f32s(value), p, *acc);
            }
        }
        *sums = acc;
    }
}

/// `scores[key] = Σ_x query[x] · keys[key][x]`.
#[inline(always)]
fn dot_products<S: Simd>(
    simd: S,
    query: &[f32],
    block: &Block,
    d_tiles: usize,
    scores: &mut [f32],
) {
    let (query, _) = S::as_simd_f32s(query);
    for (keys, score) in block
        .keys
        .chunks_exact(d_tiles)
        .zip(scores)
        .take(block.count)
    {
        let (keys, _) = S::as_simd_f32s(keys.as_flattened());
        let mut acc = [simd.splat_f32s(0.0); 2];
        for (keys, query) in keys.chunks(2).zip(query.chunks(2)) {
            for ((acc, &key), &query) in acc.iter_mut().zip(keys).zip(query) {
                *acc = simd.mul_add_e_f32s(key, query, *acc);
            }
        }
        *score = simd.reduce_sum_f32s(simd.add_f32s(acc[0], acc[1]));
    }
}

/// `sums[column] = sums[column] · rescale + Σ_key scores[key] · values[key][column]`.
#[inline(always)]
fn add_values_to_row<S: Simd>(
    simd: S,
    scores: &[f32],
    block: &Block,
    dv_tiles: usize,
    rescale: f32,
    sums: &mut [f32],
) {
    let (sums, _) = S::as_mut_simd_f32s(sums);
    for sum in sums.iter_mut() {
        *sum = simd.mul_f32s(*sum, simd.splat_f32s(rescale));
    }
    if dv_tiles == 0 {
        return;
    }
    for (&p, values) in scores[..block.count]
        .iter()
        .zip(block.values.chunks_exact(dv_tiles))
    {
        let (values, _) = S::as_simd_f32s(values.as_flattened());
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = simd.mul_add_e_f32s(value, simd.splat_f32s(p), *sum);
        }
    }
}
