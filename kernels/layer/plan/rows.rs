//! The planners of the ops that take whole rows: norms, sums, softmax, rotation, order.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::op::PlanRequest;
use ropeway_core::plan::{Arg, Expr, Plan};
use ropeway_core::{Error, Result};

use super::{Bound, Planner, RANK, repeated, u32, u64};
use crate::layer::manifest::{ARGSORT, NORM, ROPE, SOFTMAX, is_native};
use crate::layer::{Argsort, Norm, NormKind, Order, Rope, RopeMode, Softmax, SumRows, extents};

/// The constant `KIND` of `norm`: compiled in, since the barriers of a group are not the same for all.
const RMS: i64 = 0;
const LAYER: i64 = 1;
const SUM: i64 = 2;

/// One launch of `norm`.
fn launch_norm(
    planner: &mut Planner,
    x: Bound,
    weight: Option<Bound>,
    d: Bound,
    kind: i64,
    eps: f32,
) {
    let rows_each = match planner.cores {
        Some(_) => 1,
        None => planner.rows_each(),
    };
    let mut args = vec![x.arg(), weight.map_or(Arg::Absent, Bound::arg), d.arg()];
    args.extend(x.extents());
    args.extend(x.strides());
    args.push(weight.map_or(u64(0), |weight| weight.stride(0)));
    args.extend(d.strides());
    args.push(Arg::F32(eps));
    if planner.cores.is_some() {
        args.push(u32(kind as u64));
    } else {
        args.push(u32(rows_each));
        planner.config().set("KIND", kind);
    }
    planner.launch("norm_rows", x.rows().div_ceil(rows_each), args);
}

pub(in crate::layer) fn norm(op: &Norm, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, NORM, &op.x, [false; RANK])?;
    planner.need_rounds(3, request)?;
    let weight_dtype = op.weight.map_or(DType::F32, |weight| weight.dtype);
    planner
        .config()
        .set_dtype("X_DTYPE", op.x.dtype)
        .set_dtype("W_DTYPE", weight_dtype)
        .set_dtype("D_DTYPE", op.d.dtype);
    let x = planner.bind("x", &op.x, false);
    let weight = op
        .weight
        .map(|weight| planner.bind("weight", &weight, false));
    let d = planner.bind("d", &op.d, true);
    planner.in_place(d, x);
    let kind = match op.kind {
        NormKind::Rms => RMS,
        NormKind::Layer => LAYER,
    };
    launch_norm(&mut planner, x, weight, d, kind, op.eps);
    Ok(planner.plan)
}

pub(in crate::layer) fn sum_rows(op: &SumRows, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, NORM, &op.x, [false; RANK])?;
    planner.need_rounds(3, request)?;
    planner
        .config()
        .set_dtype("X_DTYPE", op.x.dtype)
        .set_dtype("W_DTYPE", DType::F32)
        .set_dtype("D_DTYPE", op.d.dtype);
    let x = planner.bind("x", &op.x, false);
    let d = planner.bind_along("d", &op.d, true, [None, Some(1), Some(2), Some(3)]);
    launch_norm(&mut planner, x, None, d, SUM, 0.0);
    Ok(planner.plan)
}

pub(in crate::layer) fn softmax(op: &Softmax, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut fixed = op.mask.map_or([false; RANK], |mask| repeated(&op.x, &mask));
    // Heads are numbered: slopes and sinks are theirs.
    fixed[2] |= op.max_bias > 0.0 || op.sinks.is_some();
    let mut planner = Planner::new(op, request, SOFTMAX, &op.x, fixed)?;
    planner.need_rounds(3 * 4, request)?;
    let mask_dtype = op.mask.map_or(DType::F32, |mask| mask.dtype);
    planner
        .config()
        .set_dtype("X_DTYPE", op.x.dtype)
        .set_dtype("M_DTYPE", mask_dtype)
        .set_dtype("D_DTYPE", op.d.dtype);
    let x = planner.bind("x", &op.x, false);
    let mask = op.mask.map(|mask| planner.bind("mask", &mask, false));
    let sinks = op
        .sinks
        .map(|sinks| planner.bind_along("sinks", &sinks, false, [None; RANK]));
    let d = planner.bind("d", &op.d, true);
    planner.in_place(d, x);
    let rows_each = match planner.cores {
        Some(_) => 1,
        None => planner.rows_each(),
    };
    let (exponent, second_exponent, first_heads) = op.alibi();
    let mut args = vec![
        x.arg(),
        mask.map_or(Arg::Absent, Bound::arg),
        sinks.map_or(Arg::Absent, Bound::arg),
        d.arg(),
    ];
    args.extend(x.extents());
    args.extend(x.strides());
    args.extend([1, 2, 3].map(|k| u32(mask.map_or(1.into(), |mask| mask.extent(k)))));
    args.extend([0, 1, 2, 3].map(|k| mask.map_or(u64(0), |mask| mask.stride(k))));
    args.push(sinks.map_or(u64(0), |sinks| sinks.stride(0)));
    args.extend(d.strides());
    args.extend([
        Arg::F32(op.scale),
        Arg::F32(exponent as f32),
        Arg::F32(second_exponent as f32),
        u32(first_heads),
    ]);
    if planner.cores.is_none() {
        args.push(u32(rows_each));
    }
    let groups = match planner.space[0] {
        0 => 0.into(),
        _ => x.rows().div_ceil(rows_each),
    };
    planner.launch("softmax", groups, args);
    Ok(planner.plan)
}

/// A number as the sum of two f32, the first of few bits, so that its products with small whole numbers are exact.
fn halves(value: f64) -> [f32; 2] {
    let high = f32::from_bits((value as f32).to_bits() & 0xffff_f000);
    [high, (value - f64::from(high)) as f32]
}

pub(in crate::layer) fn rope(op: &Rope, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, ROPE, &op.x, [false; RANK])?;
    planner
        .config()
        .set_dtype("X_DTYPE", op.x.dtype)
        .set_dtype("D_DTYPE", op.d.dtype);
    let x = planner.bind("x", &op.x, false);
    let positions = planner.bind_along(
        "positions",
        &op.positions,
        false,
        [Some(2), None, None, None],
    );
    let factors = op
        .freq_factors
        .map(|factors| planner.bind_along("freq_factors", &factors, false, [None; RANK]));
    let d = planner.bind("d", &op.d, true);
    planner.in_place(d, x);
    let angles = op.angles();
    let mut args = vec![
        x.arg(),
        positions.arg(),
        factors.map_or(Arg::Absent, Bound::arg),
        d.arg(),
    ];
    args.extend(x.extents());
    args.extend(x.strides());
    args.push(positions.stride(0));
    args.push(factors.map_or(u64(0), |factors| factors.stride(0)));
    args.extend(d.strides());
    args.extend([
        u32(op.n_dims),
        u32(match op.mode {
            RopeMode::Normal => 0,
            RopeMode::Neox => 1,
        }),
    ]);
    args.extend(halves(angles.log2_ratio).map(Arg::F32));
    args.extend([
        Arg::F32(op.freq_scale),
        Arg::F32(op.ext_factor),
        Arg::F32(angles.low as f32),
        Arg::F32((1.0 / (angles.high - angles.low).max(0.001)) as f32),
        Arg::F32(angles.magnitude as f32),
    ]);
    let groups = match planner.space[0] {
        0 => 0.into(),
        // Heads are shared out where there are few tokens.
        _ if planner.cores.is_some() => x.rows(),
        _ => x.extent(2) * x.extent(3),
    };
    planner.launch("rope", groups, args);
    Ok(planner.plan)
}

pub(in crate::layer) fn argsort(op: &Argsort, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, ARGSORT, &op.x, [false; RANK])?;
    planner.config().set_dtype("X_DTYPE", op.x.dtype);
    let x = planner.bind("x", &op.x, false);
    let d = planner.bind_along("d", &op.d, true, [None, Some(1), Some(2), Some(3)]);
    let (n, k) = (extents(&op.x)[0], op.k());
    let descending = match op.order {
        Order::Ascending => 0u64,
        Order::Descending => 1,
    };
    if k == 0 {
        return Ok(planner.plan);
    }
    if planner.cores.is_some() {
        exchanges(&mut planner, x, d, k, descending)?;
        return Ok(planner.plan);
    }
    if is_native(request.info) {
        let mut args = vec![x.arg(), d.arg()];
        args.extend(x.extents());
        args.extend(x.strides());
        args.extend(d.strides());
        args.extend([u32(k), u32(descending)]);
        planner.launch("argsort", 1.into(), args);
        return Ok(planner.plan);
    }
    let run = planner.key.config.value("RUN") as u64;
    let block = planner.key.config.value("BLOCK") as u64;
    let space = planner.space;
    // Rows are countable; beyond 64 bits no device has room anyway.
    let bytes = (4 * n).saturating_mul(space[1] * space[2] * space[3]);
    let mut merges = Vec::new();
    let mut width = run;
    while width < n {
        merges.push(width);
        width *= 2;
    }
    // Orders so far lie in one of two ranges [rows, n] of the workspace by turns; the last is the output.
    let ranges = [!merges.is_empty(), merges.len() > 1]
        .map(|used| used.then(|| planner.plan.take_workspace(bytes)));
    let place = |step: usize, write: bool| -> (Arg, [Arg; RANK]) {
        match &ranges[step % 2] {
            Some(range) if step < merges.len() => {
                let arg = Arg::Workspace {
                    range: range.clone(),
                    dtype: DType::I32,
                    write,
                };
                let plane = x.extent(1) * n;
                let strides: [Expr; RANK] =
                    [1.into(), n.into(), plane.clone(), plane * x.extent(2)];
                (arg, strides.map(u64))
            }
            _ => (d.arg(), d.strides()),
        }
    };
    let problem = |args: &mut Vec<Arg>, to: [Arg; RANK]| {
        args.extend(x.extents());
        args.extend(x.strides());
        args.extend(to);
        args.extend([u32(k), u32(descending)]);
    };
    let runs = n.div_ceil(run);
    let (to, strides) = place(0, true);
    let mut args = vec![x.arg(), to];
    problem(&mut args, strides);
    args.push(u32(runs));
    planner.launch("argsort_runs", x.rows() * runs, args);
    for (step, width) in merges.iter().enumerate() {
        let (from, _) = place(step, false);
        let (to, strides) = place(step + 1, true);
        let mut args = vec![x.arg(), from, to];
        problem(&mut args, strides);
        let blocks = n.div_ceil(block);
        args.extend([u32(*width), u32(blocks)]);
        planner.launch("argsort_merge", x.rows() * blocks, args);
    }
    Ok(planner.plan)
}

/// Lists of keys and indices in the workspace.
#[derive(Clone)]
struct Lists {
    keys: Range<u64>,
    ids: Range<u64>,
}

impl Lists {
    /// Lists of `n` for each row.
    fn take(planner: &mut Planner, n: u64) -> Lists {
        let [_, n1, n2, n3] = planner.space;
        // Rows are countable; beyond 64 bits no device has room anyway.
        let bytes = (4 * n).saturating_mul(n1 * n2 * n3);
        let mut take = || planner.plan.take_workspace(bytes);
        Lists {
            keys: take(),
            ids: take(),
        }
    }

    fn args(&self, write: bool) -> [Arg; 2] {
        [&self.keys, &self.ids].map(|range| Arg::Workspace {
            range: range.clone(),
            dtype: DType::F32,
            write,
        })
    }
}

/// Rows of more columns than this have indices that an f32 cannot hold beside those of not-a-numbers.
const MOST_EXCHANGED: u64 = 1 << 23;

/// The launches of `argsort` where runs are put in order by exchanges (`argsort.asc`).
fn exchanges(planner: &mut Planner, x: Bound, d: Bound, k: u64, descending: u64) -> Result<()> {
    let n = planner.space[0];
    if n > MOST_EXCHANGED {
        return Err(Error::unsupported(format!(
            "rows of {n} columns; in AscendC indices are exchanged as F32, up to {MOST_EXCHANGED}"
        )));
    }
    let run = planner.key.config.value("RUN") as u64;
    // Runs of a list of `length`, or of x, of which `each` are kept: in a list of `to_n`, or in d.
    let runs = |planner: &mut Planner,
                from: Option<&Lists>,
                to: Option<&Lists>,
                length: u64,
                each: u64,
                to_n: u64,
                from_nothing: bool| {
        let absent = || [Arg::Absent, Arg::Absent];
        let mut args = vec![from.map_or(x.arg(), |_| Arg::Absent)];
        args.extend(from.map_or_else(absent, |from| from.args(false)));
        args.extend(to.map_or_else(absent, |to| to.args(true)));
        args.push(to.map_or(d.arg(), |_| Arg::Absent));
        args.push(u32(length));
        args.extend([1, 2, 3].map(|axis| u32(x.extent(axis))));
        args.extend(x.strides());
        args.extend(d.strides());
        args.extend([k, descending, each, to_n, from_nothing.into()].map(u32));
        planner.launch("argsort_runs", x.rows() * length.div_ceil(run), args);
    };
    if n <= run {
        runs(planner, None, None, n, k, k, true);
        return Ok(());
    }
    if k <= run / 2 {
        // What runs keep is no more than half of them: it is runs again, until one is left.
        let mut from: Option<Lists> = None;
        let mut spare: Option<Lists> = None;
        let mut length = n;
        while length > run {
            let whole = length.div_ceil(run) - 1;
            let to_n = whole * k + k.min(length - whole * run);
            let to = spare.take().unwrap_or_else(|| Lists::take(planner, to_n));
            runs(planner, from.as_ref(), Some(&to), length, k, to_n, true);
            spare = from.replace(to);
            length = to_n;
        }
        runs(planner, from.as_ref(), None, length, k, k, true);
        return Ok(());
    }
    let lists = Lists::take(planner, n);
    runs(planner, None, Some(&lists), n, run, n, true);
    let mut width = run;
    while width < n {
        let mut distance = width;
        while distance >= run {
            let mut args = lists.args(true).to_vec();
            let pairs = n.div_ceil(2 * distance) * (distance / run);
            args.extend([u32(n), u32(x.rows()), u32(distance)]);
            args.push(u32(u64::from(distance == width)));
            planner.launch("argsort_exchange", x.rows() * pairs, args);
            distance /= 2;
        }
        width *= 2;
        let to = (width < n).then_some(&lists);
        runs(planner, Some(&lists), to, n, run, n, false);
    }
    Ok(())
}
