//! The launches of `attention.asc`: products on cube cores, the softmax between them on vector cores, over a workspace that stays in level 2 cache.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel, ModuleKey};
use ropeway_core::plan::{Arg, Expr, Extent, Plan, StrideRule};

use super::super::manifest::{ATTENTION_CUBE, ATTENTION_PACK, ATTENTION_VECTOR};
use super::operands::{Operands, Sizes, flags, int, key_axes, long, query_axes, strides};
use super::{Problem, launch};

/// Keys of a segment; the same in `attention.asc`.
const SEGMENT: u64 = 512;

/// Rows that a vector core takes at a time; the same in `attention.asc`.
const CHUNK: u64 = 8;

/// The fewest and the most rows of an item.
const TILE_ROWS: [u64; 2] = [16, 128];

/// Bytes of the slots of a pass, where one is not more alone: a third to two thirds of level 2 cache.
const PASS_BYTES: u64 = 64 << 20;

/// Passes, at most: beyond, slots leave level 2 cache rather than a plan having thousands of launches.
const MOST_PASSES: u64 = 256;

/// How the items of a plan go through the workspace.
struct Passes {
    tile_rows: u64,
    /// Of the keys of an item.
    segments: u64,
    /// Items of a pass.
    slots: u64,
    /// Items, at most and by the bound operands.
    most_items: u64,
    items: Expr,
}

/// Bytes that a slot takes for each row and segment: scores, partial sums, maximum and sum.
fn row_bytes(problem: &Problem) -> [u64; 3] {
    [SEGMENT * 4, problem.dv.next_multiple_of(8) * 4, 2 * 4]
}

fn divide(problem: &Problem, sizes: &Sizes) -> Passes {
    let segments = problem.keys.div_ceil(SEGMENT);
    let sequences = problem.sequences;
    let rows = match problem.layout {
        0 => problem.rows,
        _ => problem.rows.div_ceil(sequences.max(1)),
    };
    let [fewest, most] = TILE_ROWS;
    let bytes: u64 = row_bytes(problem).iter().sum();
    let slot = |tile_rows: u64| segments.saturating_mul(bytes).saturating_mul(tile_rows);
    let mut tile_rows = rows.next_power_of_two().clamp(fewest, most);
    while tile_rows > fewest && slot(tile_rows) > PASS_BYTES {
        tile_rows /= 2;
    }
    let tiles = problem.rows.div_ceil(tile_rows);
    let (most_tiles, rows) = (sizes.q_len.clone() * problem.group(), sequences);
    let tiles_bound = most_tiles.div_ceil(tile_rows);
    let (most_works, works) = match problem.layout {
        0 => (tiles * rows, tiles_bound * sizes.sequences.clone()),
        // A sequence begins at most one tile more.
        _ => (tiles + rows, tiles_bound + sizes.sequences.clone()),
    };
    let most_items = most_works * problem.kv_heads;
    let in_cache = PASS_BYTES / slot(tile_rows).max(1);
    Passes {
        tile_rows,
        segments,
        slots: in_cache
            .max(most_items.div_ceil(MOST_PASSES))
            .clamp(1, most_items.max(1)),
        most_items,
        items: works * problem.kv_heads,
    }
}

/// q, k or v as the cube cores get it.
struct Matrix {
    arg: Arg,
    /// Batch (or block), head, row, column.
    strides: Vec<Arg>,
}

fn module(kernel: &'static Kernel, config: impl FnOnce(&mut Config)) -> ModuleKey {
    let mut key = ModuleKey {
        kernel,
        config: kernel.default_config(),
    };
    config(&mut key.config);
    key
}

/// The most that an extent can be.
fn bound(plan: &Plan, extent: Extent) -> u64 {
    match extent {
        Extent::Exactly(extent) => extent,
        Extent::Varies {
            symbol,
            times,
            plus,
        } => plan.symbols[symbol]
            .max
            .saturating_mul(times)
            .saturating_add(plus),
    }
}

/// An operand in place, if its columns lie side by side in the problem's description; otherwise a copy, which a launch makes.
fn matrix(
    plan: &mut Plan,
    problem: &Problem,
    info: &DeviceInfo,
    operand: usize,
    side_by_side: bool,
    axes: [Option<usize>; 4],
) -> Matrix {
    let rule = &mut plan.operands[operand];
    if side_by_side {
        if let Some(last) = rule.strides.last_mut() {
            *last = StrideRule::Exactly(1);
        }
        return Matrix {
            arg: Arg::operand(operand),
            strides: strides(operand, axes).collect(),
        };
    }
    let shape = rule.shape.clone();
    let elements = shape.iter().fold(1, |all: u64, &extent| {
        all.saturating_mul(bound(plan, extent))
    });
    let size = problem.dtype.size().unwrap_or(4);
    let range = plan.take_workspace(elements.saturating_mul(size));
    let copy = Arg::Workspace {
        range,
        dtype: problem.dtype,
        write: true,
    };
    let extents = axes.map(|axis| axis.map_or(Expr::Const(1), |axis| Expr::extent(operand, axis)));
    let [batch, heads, rows, columns] = extents;
    let mut args = vec![Arg::operand(operand), copy.clone()];
    args.extend([batch.clone(), heads.clone(), rows.clone()].map(long));
    args.push(int(columns.clone()));
    args.extend(strides(operand, axes));
    let lines = batch * heads.clone() * rows.clone();
    let blocks = lines.min(i64::from(2 * info.compute_units));
    let pack = module(&ATTENTION_PACK, |config| {
        config.set_dtype("DTYPE", problem.dtype);
    });
    launch(
        plan,
        pack,
        "attention_pack",
        [blocks, 1.into(), 1.into()],
        1,
        args,
    );
    let row = columns;
    let head = row.clone() * rows;
    let batch = head.clone() * heads;
    Matrix {
        arg: copy,
        strides: [batch, head, row, 1.into()].map(long).to_vec(),
    }
}

/// Adds the launches.
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    info: &DeviceInfo,
    operands: &Operands,
    sizes: &Sizes,
) {
    let passes = divide(problem, sizes);
    let rows_of_slots = [passes.slots, passes.segments, passes.tile_rows]
        .into_iter()
        .fold(1, u64::saturating_mul);
    let workspace =
        row_bytes(problem).map(|bytes| plan.take_workspace(rows_of_slots.saturating_mul(bytes)));
    let [q, k, v] = problem.units;
    let matrices = [
        (operands.q, q, query_axes(problem)),
        (operands.k, k, key_axes(problem)),
        (operands.v, v, key_axes(problem)),
    ]
    .map(|(operand, unit, axes)| matrix(plan, problem, info, operand, unit, axes));
    let key = |kernel| {
        module(kernel, |config| {
            config
                .set("LAYOUT", problem.layout)
                .set_dtype("DTYPE", problem.dtype);
        })
    };
    let cores = i64::from(info.compute_units);
    for first in (0..passes.most_items).step_by(passes.slots as usize) {
        let items = (passes.items.clone() - first).max(0).min(passes.slots);
        let pairs = items.clone() * passes.segments;
        let chunks = passes.tile_rows / CHUNK;
        let args = || {
            arguments(
                problem, operands, sizes, &matrices, &workspace, &passes, first,
            )
        };
        let steps = [
            (&ATTENTION_CUBE, "attention_scores", pairs.clone(), cores),
            (
                &ATTENTION_VECTOR,
                "attention_softmax",
                pairs.clone() * chunks,
                2 * cores,
            ),
            (&ATTENTION_CUBE, "attention_values", pairs, cores),
            (
                &ATTENTION_VECTOR,
                "attention_finish",
                items * chunks,
                2 * cores,
            ),
        ];
        for (kernel, entry, works, most) in steps {
            // Without keys there is the last step only, without columns of v there is no second product.
            let idle = entry != "attention_finish" && passes.segments == 0
                || entry == "attention_values" && problem.dv == 0;
            if !idle {
                let grid = [works.min(most), 1.into(), 1.into()];
                launch(plan, key(kernel), entry, grid, 1, args());
            }
        }
    }
}

/// The arguments of every kernel but `attention_pack`, in the order of `FIELDS` in `attention.asc`.
fn arguments(
    problem: &Problem,
    operands: &Operands,
    sizes: &Sizes,
    matrices: &[Matrix; 3],
    workspace: &[Range<u64>; 3],
    passes: &Passes,
    first_item: u64,
) -> Vec<Arg> {
    let optional = |operand: Option<usize>| operand.map_or(Arg::Absent, Arg::operand);
    let stride = |operand: Option<usize>, axis: usize| {
        long(operand.map_or(Expr::Const(0), |operand| Expr::stride(operand, axis)))
    };
    let mut args: Vec<Arg> = matrices.iter().map(|matrix| matrix.arg.clone()).collect();
    args.extend(
        [
            operands.mask,
            operands.kv_lens,
            operands.cu_q,
            operands.cu_kv,
            operands.block_table,
            operands.sinks,
            operands.alibi_slopes,
            Some(operands.o),
            operands.lse,
        ]
        .map(optional),
    );
    args.extend(workspace.iter().map(|range| Arg::Workspace {
        range: range.clone(),
        dtype: DType::F32,
        write: true,
    }));
    args.push(Arg::Status);
    args.extend([
        int(sizes.sequences.clone()),
        int(problem.heads),
        int(problem.kv_heads),
        int(sizes.q_len.clone()),
        int(sizes.kv_len.clone()),
        int(problem.d),
        int(problem.dv),
    ]);
    for matrix in matrices {
        args.extend(matrix.strides.iter().cloned());
    }
    args.extend(strides(operands.o, query_axes(problem)));
    let [batch, head, row, _] = query_axes(problem);
    for axis in [batch, head, row] {
        args.push(long(match (operands.lse, axis) {
            (Some(lse), Some(axis)) => Expr::stride(lse, axis),
            _ => Expr::Const(0),
        }));
    }
    args.extend(operands.mask_strides.iter().cloned().map(long));
    args.extend([
        int(sizes.blocks.clone()),
        int(sizes.block_size),
        stride(operands.block_table, 0),
        stride(operands.block_table, 1),
        stride(operands.kv_lens, 0),
        stride(operands.cu_q, 0),
        stride(operands.cu_kv, 0),
        stride(operands.sinks, 0),
        stride(operands.alibi_slopes, 0),
        int(passes.tile_rows),
        int(passes.segments),
        int(first_item),
        int(passes.slots),
        Arg::F32(problem.softmax.scale),
        Arg::F32(problem.softmax.softcap),
        int(problem.softmax.window),
        int(flags(problem, operands)),
    ]);
    args
}
