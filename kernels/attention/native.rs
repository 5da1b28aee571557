//! The cpu device's function: the blocks of `attention_prefill.cl` and `attention_decode.cl` in vectors of the machine's own width.
//!
//! A task is a block of rows of one sequence and key head (see `attention.cl` for rows), or one split of the keys where there are few rows. It
//! converts a block of keys and values to f32 once, and then goes as the OpenCL kernels do.

use std::sync::Mutex;

use half::{bf16, f16};
use pulp::Arch;
use rayon::prelude::*;
use ropeway_core::dtype::DType;
use ropeway_core::native::{NativeCall, NativeDevice};
use ropeway_core::{Error, Result};

use self::blocks::Attend;
use self::element::Element;
use self::few::{AttendFew, FewPart};
use super::plan::flag;

mod blocks;
mod element;
mod few;

/// Status of lengths that leave their tensors.
const STATUS_LENGTH: u32 = 1;

/// Status of a block table that names no block.
const STATUS_BLOCK: u32 = 2;

/// Rows of a task.
const ROWS: usize = 64;

/// Keys of a task of few rows.
const SPLIT_KEYS: usize = 1024;

/// Key heads of a task of few rows at the most.
const MOST_HEADS: usize = 8;

/// Tasks of few rows for each thread, where they can be made larger or smaller.
const TASKS_A_THREAD: usize = 4;

/// Elements side by side in packed keys and values, keys or columns in registers.
const TILE: usize = 16;

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

    fn head(&self) -> usize {
        self.0[1]
    }

    fn column(&self) -> usize {
        self.0[3]
    }
}

/// One argument of one problem, with what does not depend on the sequence.
struct Problem<'a, T> {
    device: &'a dyn NativeDevice,
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

/// Rows of one key head against the keys of their sequence before `end_key`.
#[derive(Clone, Copy)]
struct Part {
    sequence: Sequence,
    kv_head: usize,
    first_row: usize,
    rows: usize,
    end_key: usize,
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
        device: call.device(),
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
                    end_key: sequence.keys,
                })
            })
        });
    let tiles: Vec<Part> = tiles.collect();
    tiles
        .into_par_iter()
        .for_each(|part| problem.store(part, &run(part), &results));

    let of_few: Vec<Sequence> = list
        .iter()
        .filter(|sequence| few(sequence) && sequence.queries > 0)
        .copied()
        .collect();
    let splits = |sequence: &Sequence| sequence.keys.div_ceil(SPLIT_KEYS).max(1);
    let works: usize = of_few.iter().map(splits).sum();
    let together = problem.heads_together(kv_heads, works);
    let mut parts = Vec::new();
    for &sequence in &of_few {
        for first_head in (0..kv_heads).step_by(together) {
            parts.extend((0..splits(&sequence)).map(|split| FewPart {
                sequence,
                kv_heads: first_head..kv_heads.min(first_head + together),
                rows: sequence.queries * problem.group,
                first_key: split * SPLIT_KEYS,
                end_key: sequence.keys.min((split + 1) * SPLIT_KEYS),
            }));
        }
    }
    let partials: Vec<Vec<Partial>> = parts
        .par_iter()
        .map(|part| {
            arch.dispatch(AttendFew {
                problem: &problem,
                part: part.clone(),
            })
        })
        .collect();
    // The splits of the same heads follow each other.
    let same = |a: &(FewPart, Vec<Partial>), b: &(FewPart, Vec<Partial>)| {
        (a.0.sequence.index, a.0.kv_heads.start) == (b.0.sequence.index, b.0.kv_heads.start)
    };
    let done: Vec<(FewPart, Vec<Partial>)> = parts.into_iter().zip(partials).collect();
    for splits in done.chunk_by(same) {
        let part = &splits[0].0;
        for (h, kv_head) in part.kv_heads.clone().enumerate() {
            let splits: Vec<&Partial> = splits.iter().map(|(_, heads)| &heads[h]).collect();
            let joined = merge(&splits, part.rows, problem.dv);
            problem.store(part.head(kv_head), &joined, &results);
        }
    }

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
fn merge(splits: &[&Partial], rows: usize, dv: usize) -> Partial {
    let mut joined = Partial {
        sums: vec![0.0; rows * dv],
        most: vec![f32::NEG_INFINITY; rows],
        sum: vec![0.0; rows],
        status: 0,
    };
    for row in 0..rows {
        let greater = |most: f32, split: &&Partial| {
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

    /// Key heads of a task of few rows: all whose rows lie behind each other, so that memory is read in order, as long as there are tasks for
    /// every thread.
    fn heads_together(&self, kv_heads: usize, works: usize) -> usize {
        let mut together = 1;
        while self.k_strides.head() < self.k_strides.0[2]
            && 2 * together <= kv_heads.min(MOST_HEADS)
            && works * kv_heads / (2 * together) >= TASKS_A_THREAD * self.device.threads()
        {
            together *= 2;
        }
        together
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
