//! The permutation of rows on the cpu device.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;
use ropeway_core::native::NativeCall;
use ropeway_core::{DType, Error, Result};

use super::{Element, sizes};

/// Status of an id that names no expert.
const STATUS_BAD_EXPERT: u32 = 1;

/// Status of a source that is out of range or claimed twice.
const STATUS_BAD_SOURCE: u32 = 2;

/// Columns that are summed at once: few, so that the rows of a token are read side by side rather than one after the other,
/// which is what keeps memory busy.
const BLOCK: usize = 512;

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
pub(in crate::moe) fn expert_permute(call: &mut NativeCall<'_>) -> Result<()> {
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
pub(in crate::moe) fn expert_scatter(call: &mut NativeCall<'_>) -> Result<()> {
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
pub(in crate::moe) fn expert_invert(call: &mut NativeCall<'_>) -> Result<()> {
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
pub(in crate::moe) fn expert_combine(call: &mut NativeCall<'_>) -> Result<()> {
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
    y.par_chunks_mut(y_stride.max(hidden))
        .take(tokens)
        .enumerate()
        .for_each_init(
            || (vec![0.0f32; hidden], Vec::new()),
            |(sums, chosen), (token, y)| {
                chosen.clear();
                for (slot, &row) in inverse[token * topk..][..topk].iter().enumerate() {
                    if let Ok(row) = usize::try_from(row) {
                        let weight = topk_weights[token * token_stride + slot * slot_stride];
                        chosen.push((&rows[row * row_stride..], weight));
                    }
                }
                if column_stride == 1 {
                    sum_rows(chosen, sums);
                } else {
                    sums.fill(0.0);
                    for (row, weight) in &*chosen {
                        for (sum, v) in sums.iter_mut().zip(row.iter().step_by(column_stride)) {
                            *sum += weight * v.wide();
                        }
                    }
                }
                Y::narrow(sums, &mut y[..hidden]);
            },
        );
    Ok(())
}

/// `sums = Σ weight · row`
fn sum_rows<R: Element>(chosen: &[(&[R], f32)], sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return simd.vectorize(WideSum { simd, chosen, sums });
    }
    for (block, sums) in sums.chunks_mut(BLOCK).enumerate() {
        sums.fill(0.0);
        for (row, weight) in chosen {
            add_multiple(&row[block * BLOCK..][..sums.len()], *weight, sums);
        }
    }
}

/// `sums[i] += weight * row[i]`
fn add_multiple<R: Element>(row: &[R], weight: f32, sums: &mut [f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (sum, v) in sums.iter_mut().zip(row) {
                *sum += weight * v.wide();
            }
        },
    );
}

/// As [`sum_rows`], in registers of AVX-512. Loops count, since what closures hold leaves the registers.
#[cfg(target_arch = "x86_64")]
struct WideSum<'a, R> {
    simd: pulp::x86::V4,
    chosen: &'a [(&'a [R], f32)],
    sums: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl<R: Element> pulp::NullaryFnOnce for WideSum<'_, R> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn call(self) {
        const VECTORS: usize = 8;
        let simd = self.simd;
        let hidden = self.sums.len();
        let (blocks, rest) = self.sums.as_chunks_mut::<{ 16 * VECTORS }>();
        for (block, sums) in blocks.iter_mut().enumerate() {
            let mut acc = [simd.splat_f32x16(0.0); VECTORS];
            for (row, weight) in self.chosen {
                let weight = simd.splat_f32x16(*weight);
                let (row, _) = row[block * 16 * VECTORS..][..16 * VECTORS].as_chunks::<16>();
                for i in 0..VECTORS {
                    acc[i] = simd.mul_add_f32x16(weight, R::wide_16(simd, &row[i]), acc[i]);
                }
            }
            *sums = pulp::cast(acc);
        }
        let begin = hidden - rest.len();
        rest.fill(0.0);
        for (row, weight) in self.chosen {
            for (sum, v) in rest.iter_mut().zip(&row[begin..hidden]) {
                *sum += weight * v.wide();
            }
        }
    }
}
