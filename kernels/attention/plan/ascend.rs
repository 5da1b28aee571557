//! The launches of `attention.asc`: products on cube cores, the softmax between them on vector cores, over a workspace that stays in level 2 cache;
//! all in one launch, or in four a pass.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel, ModuleKey};
use ropeway_core::plan::{Arg, Expr, Extent, Plan, StrideRule};

use super::super::manifest::{ATTENTION_CUBE, ATTENTION_FUSED, ATTENTION_PACK, ATTENTION_VECTOR};
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

/// Bytes of the workspace of the one launch, where tiles of fewer rows keep to it: what it holds is written and read once.
const FUSED_BYTES: u64 = 256 << 20;

/// Segments whose scores, and items whose partial sums, a core of the one launch has at a time; the same in `attention_fused.asc`.
const TURNS: u64 = 2;

/// How problems fall into items.
struct Division {
    tile_rows: u64,
    /// Of the keys of an item.
    segments: u64,
    /// Items, at most and by the bound operands.
    most_items: u64,
    items: Expr,
}

/// Bytes that a slot takes for each row and segment: scores, partial sums, maximum and sum.
fn row_bytes(problem: &Problem) -> [u64; 3] {
    [SEGMENT * 4, problem.dv.next_multiple_of(8) * 4, 2 * 4]
}

/// Rows of an item, as many as the widest sequence has and `limit` leaves room for.
fn tile_rows(problem: &Problem, limit: u64, bytes: impl Fn(u64) -> u64) -> u64 {
    let rows = match problem.layout {
        0 => problem.rows,
        _ => problem.rows.div_ceil(problem.sequences.max(1)),
    };
    let [fewest, most] = TILE_ROWS;
    let mut tile_rows = rows.next_power_of_two().clamp(fewest, most);
    while tile_rows > fewest && bytes(tile_rows) > limit {
        tile_rows /= 2;
    }
    tile_rows
}

/// Items of so many rows, at most.
fn most_items(problem: &Problem, tile_rows: u64) -> u64 {
    let tiles = problem.rows.div_ceil(tile_rows);
    let works = match problem.layout {
        0 => tiles.saturating_mul(problem.sequences),
        // A sequence begins at most one tile more.
        _ => tiles.saturating_add(problem.sequences),
    };
    works.saturating_mul(problem.kv_heads)
}

fn segments(problem: &Problem) -> u64 {
    problem.keys.div_ceil(SEGMENT)
}

/// Bytes of a slot of a pass.
fn slot_bytes(problem: &Problem, tile_rows: u64) -> u64 {
    let bytes: u64 = row_bytes(problem).iter().sum();
    segments(problem)
        .saturating_mul(bytes)
        .saturating_mul(tile_rows)
}

/// Bytes of the workspace of the one launch.
fn fused_bytes(problem: &Problem, info: &DeviceInfo, tile_rows: u64) -> u64 {
    let [scores, partial, state] = row_bytes(problem);
    let row = segments(problem)
        .saturating_mul(partial + state)
        .saturating_add(scores);
    (TURNS * tile_rows * u64::from(info.compute_units)).saturating_mul(row)
}

fn division(problem: &Problem, sizes: &Sizes, tile_rows: u64) -> Division {
    let tiles = (sizes.q_len.clone() * problem.group()).div_ceil(tile_rows);
    let works = match problem.layout {
        0 => tiles * sizes.sequences.clone(),
        _ => tiles + sizes.sequences.clone(),
    };
    Division {
        tile_rows,
        segments: segments(problem),
        most_items: most_items(problem, tile_rows),
        items: works * problem.kv_heads,
    }
}

/// Items of a pass.
fn slots_of_a_pass(problem: &Problem, division: &Division) -> u64 {
    let in_cache = PASS_BYTES / slot_bytes(problem, division.tile_rows).max(1);
    in_cache
        .max(division.most_items.div_ceil(MOST_PASSES))
        .clamp(1, division.most_items.max(1))
}

/// Both forms, the better one first.
///
/// The one launch keeps an item on one core, whose cube core multiplies while the vector cores weigh. It is taken unless that leaves cores idle that segments
/// apart would use: few items of many keys, as in decoding with few key heads. By the estimate of cycles a round of segments over the cores takes a quarter longer in
/// launches apart; that three launches more take a round is assumed. Beyond `FUSED_BYTES`, passes need less memory.
pub(super) fn forms(problem: &Problem, info: &DeviceInfo) -> [&'static Kernel; 2] {
    let rows = fused_rows(problem, info);
    let cores = u64::from(info.compute_units).max(1);
    let (items, segments) = (most_items(problem, rows), segments(problem));
    let together = items.div_ceil(cores).saturating_mul(segments);
    let apart = items.saturating_mul(segments).div_ceil(cores);
    let idle = together.saturating_mul(4) > apart.saturating_mul(5).saturating_add(4);
    if idle || fused_bytes(problem, info, rows) > FUSED_BYTES {
        [&ATTENTION_CUBE, &ATTENTION_FUSED]
    } else {
        [&ATTENTION_FUSED, &ATTENTION_CUBE]
    }
}

/// Rows of an item of the one launch.
fn fused_rows(problem: &Problem, info: &DeviceInfo) -> u64 {
    tile_rows(problem, FUSED_BYTES, |rows| {
        fused_bytes(problem, info, rows)
    })
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

/// What the launches of either form share: q, k and v, packed where they must be, and scores, partial sums and states.
struct Shared {
    matrices: [Matrix; 3],
    workspace: [Range<u64>; 3],
}

/// `pieces` of `tile_rows` rows each: of scores, and of partial sums and states.
fn share(
    plan: &mut Plan,
    problem: &Problem,
    info: &DeviceInfo,
    operands: &Operands,
    tile_rows: u64,
    [scores, sums]: [u64; 2],
) -> Shared {
    let [score, partial, state] = row_bytes(problem);
    let workspace = [(scores, score), (sums, partial), (sums, state)].map(|(pieces, bytes)| {
        plan.take_workspace(pieces.saturating_mul(tile_rows).saturating_mul(bytes))
    });
    let [q, k, v] = problem.units;
    let matrices = [
        (operands.q, q, query_axes(problem)),
        (operands.k, k, key_axes(problem)),
        (operands.v, v, key_axes(problem)),
    ]
    .map(|(operand, unit, axes)| matrix(plan, problem, info, operand, unit, axes));
    Shared {
        matrices,
        workspace,
    }
}

fn module_of(problem: &Problem, kernel: &'static Kernel) -> ModuleKey {
    module(kernel, |config| {
        config
            .set("LAYOUT", problem.layout)
            .set_dtype("DTYPE", problem.dtype);
    })
}

/// Adds the one launch.
pub(super) fn append_fused(
    plan: &mut Plan,
    problem: &Problem,
    info: &DeviceInfo,
    operands: &Operands,
    sizes: &Sizes,
) {
    let rows = fused_rows(problem, info);
    let division = division(problem, sizes, rows);
    if division.most_items == 0 {
        return;
    }
    let blocks = division.most_items.min(info.compute_units.into());
    let pieces = [
        TURNS * blocks,
        (TURNS * blocks).saturating_mul(division.segments),
    ];
    let shared = share(plan, problem, info, operands, rows, pieces);
    let args = arguments(problem, operands, sizes, &shared, &division, [0, blocks]);
    let grid = [
        division.items.min(i64::from(info.compute_units)),
        1.into(),
        1.into(),
    ];
    let module = module_of(problem, &ATTENTION_FUSED);
    launch(plan, module, "attention_fused", grid, 1, args);
}

/// Adds the launches of the passes, four each.
pub(super) fn append(
    plan: &mut Plan,
    problem: &Problem,
    info: &DeviceInfo,
    operands: &Operands,
    sizes: &Sizes,
) {
    let rows = tile_rows(problem, PASS_BYTES, |rows| slot_bytes(problem, rows));
    let division = division(problem, sizes, rows);
    let slots = slots_of_a_pass(problem, &division);
    let pieces = slots.saturating_mul(division.segments);
    let shared = share(plan, problem, info, operands, rows, [pieces; 2]);
    let cores = i64::from(info.compute_units);
    for first in (0..division.most_items).step_by(slots as usize) {
        let items = (division.items.clone() - first).max(0).min(slots);
        let pairs = items.clone() * division.segments;
        let chunks = division.tile_rows / CHUNK;
        let args = || arguments(problem, operands, sizes, &shared, &division, [first, slots]);
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
            let idle = entry != "attention_finish" && division.segments == 0
                || entry == "attention_values" && problem.dv == 0;
            if !idle {
                let grid = [works.min(most), 1.into(), 1.into()];
                launch(plan, module_of(problem, kernel), entry, grid, 1, args());
            }
        }
    }
}

/// The arguments of every kernel but `attention_pack`, in the order of `FIELDS` in `attention.asc`.
fn arguments(
    problem: &Problem,
    operands: &Operands,
    sizes: &Sizes,
    Shared {
        matrices,
        workspace,
    }: &Shared,
    division: &Division,
    [first_item, slots]: [u64; 2],
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
        int(division.tile_rows),
        int(division.segments),
        int(first_item),
        int(slots),
        Arg::F32(problem.softmax.scale),
        Arg::F32(problem.softmax.softcap),
        int(problem.softmax.window),
        int(flags(problem, operands)),
    ]);
    args
}
