//! The launches of `rows.asc`, which sorts ids otherwise than the other kernels do: by expert, without counters, and copies rows by source.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Kernel, ModuleKey};
use ropeway_core::plan::{Arg, Expr, Plan};

use super::rows::Ids;
use super::{Bound, launch, one_dimension, u32, workspace};
use crate::moe::manifest::EXPERT_ROWS_VECTOR;

/// Fewer columns of a row are not shared out.
const NARROW: u64 = 256;

/// Sources that one block is worth.
const FEW_SOURCES: u64 = 64;

pub(super) fn takes(kernel: &Kernel) -> bool {
    kernel.name == EXPERT_ROWS_VECTOR.name
}

/// As many blocks as there is work for and vector cores, of which each cube core has two.
pub(super) fn blocks(work: Expr, info: &DeviceInfo) -> Expr {
    work.min(2 * u64::from(info.compute_units))
}

/// The blocks that share `rows` of `hidden` columns.
pub(super) fn row_blocks(rows: Expr, hidden: u64, info: &DeviceInfo) -> [Expr; 3] {
    one_dimension(blocks(rows * hidden.div_ceil(NARROW), info))
}

/// Adds what computes offsets and sources from ids.
pub(super) fn append_permute(
    plan: &mut Plan,
    key: ModuleKey,
    ids: &Ids,
    expert_offsets: Arg,
    source: Arg,
    info: &DeviceInfo,
) {
    let mut args = vec![ids.arg.clone(), expert_offsets, source, Arg::Status];
    args.extend([ids.tokens.clone(), ids.topk.into(), ids.experts.into()].map(u32));
    args.extend(ids.strides.clone());
    // Offsets are written where there are no experts, too.
    let grid = one_dimension(blocks(ids.experts.max(1).into(), info));
    launch(plan, key, "expert_permute", grid, [1; 3], args);
}

/// Adds the copy of token rows to their places; `rows` comes with its row stride.
#[allow(clippy::too_many_arguments)]
pub(super) fn append_copy_rows(
    plan: &mut Plan,
    key: ModuleKey,
    ids: &Ids,
    x: Bound,
    source: Arg,
    [rows, row_stride]: [Arg; 2],
    hidden: u64,
    info: &DeviceInfo,
) {
    let mut args = vec![x.arg(), source, rows];
    args.extend([ids.count(), ids.topk.into(), hidden.into()].map(u32));
    args.extend([x.stride(0), x.stride(1), row_stride]);
    let grid = row_blocks(ids.count(), hidden, info);
    launch(plan, key, "expert_copy_rows", grid, [1; 3], args);
}

/// Adds what computes the inverse of `source`, which comes with its stride.
pub(super) fn append_invert(
    plan: &mut Plan,
    key: ModuleKey,
    [source, stride]: [Arg; 2],
    inverse: &Range<u64>,
    count: Expr,
    info: &DeviceInfo,
) {
    let grid = one_dimension(blocks(count.clone().div_ceil(FEW_SOURCES), info));
    let args = vec![
        source,
        workspace(inverse, DType::I32, true),
        Arg::Status,
        u32(count),
        stride,
    ];
    launch(plan, key, "expert_invert", grid, [1; 3], args);
}
