//! The planners of `expert_scatter` and `expert_gather`.

use std::ops::Range;

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Kernel, ModuleKey};
use ropeway_core::op::{Op, PlanRequest, TuneKey};
use ropeway_core::plan::{Arg, Determinism, Expr, Extent, Plan};

use super::{
    Bound, bind, bytes, countable, fitting, grid_over_tokens, group, launch, need_dense_rows,
    one_dimension, pairs, per_token, plan_over_tokens, u32, vector, workspace,
};
use crate::moe::manifest::{
    EXPERT_ROWS, EXPERT_ROWS_GROUP, EXPERT_ROWS_LANES, EXPERT_ROWS_NATIVE, EXPERT_ROWS_VECTOR,
    experts_capacity,
};
use crate::moe::{ExpertGather, ExpertScatter};

/// Tiles of ids up to which one work-group permutes them all in one launch.
const FEW_TILES: u64 = 4;

pub(super) fn rows_kernels(
    op: &dyn Op,
    info: &DeviceInfo,
    experts: u64,
) -> Result<Vec<&'static Kernel>> {
    fitting(
        op,
        info,
        experts,
        &[
            &EXPERT_ROWS,
            &EXPERT_ROWS_LANES,
            &EXPERT_ROWS_GROUP,
            &EXPERT_ROWS_VECTOR,
            &EXPERT_ROWS_NATIVE,
        ],
    )
}

pub(in crate::moe) fn expert_scatter_candidates(
    op: &ExpertScatter,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["rows", "expert_offsets", "source"])?;
    pairs(op.topk_ids.shape()[0], op.topk_ids.shape()[1])?;
    countable("columns", op.x.shape()[1])?;
    rows_kernels(op, info, op.experts)
}

pub(in crate::moe) fn expert_gather_candidates(
    op: &ExpertGather,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["y"])?;
    pairs(op.topk_weights.shape()[0], op.topk_weights.shape()[1])?;
    countable("columns", op.rows.shape()[1])?;
    rows_kernels(op, info, 0)
}

/// The ids of a permutation, with their strides.
pub(super) struct Ids {
    pub(super) arg: Arg,
    pub(super) strides: [Arg; 2],
    pub(super) tokens: Expr,
    /// tokens · topk at the plan's maximum.
    pub(super) most: u64,
    pub(super) topk: u64,
    pub(super) experts: u64,
}

impl Ids {
    pub(super) fn count(&self) -> Expr {
        self.tokens.clone() * self.topk
    }
}

/// Adds the launches that compute offsets, source and inverse from ids.
pub(super) fn append_permute(
    plan: &mut Plan,
    key: &ModuleKey,
    ids: &Ids,
    expert_offsets: Arg,
    source: Arg,
    inverse: &Range<u64>,
) -> Result<()> {
    let tile = key.config.value("PERMUTE_TILE") as u64;
    let group = group(&key.config, "PERMUTE_GROUP");
    let problem = || {
        [
            u32(ids.tokens.clone()),
            u32(ids.topk),
            u32(ids.experts),
            ids.strides[0].clone(),
            ids.strides[1].clone(),
        ]
    };
    let add = |plan: &mut Plan, entry, grid, args: Vec<Arg>| {
        launch(plan, key.clone(), entry, grid, group, args);
    };
    if ids.most <= FEW_TILES * tile {
        let mut args = vec![
            ids.arg.clone(),
            expert_offsets,
            source,
            workspace(inverse, DType::I32, true),
            Arg::Status,
        ];
        args.extend(problem());
        add(plan, "expert_permute", one_dimension(1), args);
        return Ok(());
    }
    let tiles = ids.count().div_ceil(tile);
    let tile_rows = plan.take_workspace(bytes(&[4, ids.most.div_ceil(tile), ids.experts])?);
    let mut args = vec![
        ids.arg.clone(),
        workspace(&tile_rows, DType::I32, true),
        Arg::Status,
    ];
    args.extend(problem());
    add(plan, "expert_count", one_dimension(tiles.clone()), args);
    let args = vec![
        workspace(&tile_rows, DType::I32, true),
        expert_offsets.clone(),
        u32(tiles.clone()),
        u32(ids.experts),
    ];
    add(plan, "expert_scan", one_dimension(1), args);
    let mut args = vec![
        ids.arg.clone(),
        workspace(&tile_rows, DType::I32, false),
        expert_offsets,
        source,
        workspace(inverse, DType::I32, true),
        Arg::Status,
    ];
    args.extend(problem());
    add(plan, "expert_place", one_dimension(tiles), args);
    Ok(())
}

pub(in crate::moe) fn expert_scatter(
    op: &ExpertScatter,
    request: &PlanRequest<'_>,
) -> Result<Plan> {
    let (&[tokens, hidden], topk) = (op.x.shape(), op.topk_ids.shape()[1]) else {
        unreachable!("parsed")
    };
    let key = TuneKey {
        op: "expert_scatter",
        variant: &op.x.dtype.to_string(),
        sizes: &[
            ("tokens", tokens),
            ("topk", topk),
            ("experts", op.experts),
            ("hidden", hidden),
        ],
    };
    let (kernel, mut config) =
        request.choose(&key, &expert_scatter_candidates(op, request.info)?)?;
    config.set_dtype("X_DTYPE", op.x.dtype);
    let most = pairs(tokens, topk)?;
    let mut plan = plan_over_tokens("expert_scatter", Determinism::RunToRun, tokens);
    let columns = Extent::Exactly(hidden);
    let x = bind(
        &mut plan,
        "x",
        op.x.dtype,
        &[per_token(1), columns],
        false,
        false,
    );
    let slots = [per_token(1), Extent::Exactly(topk)];
    let topk_ids = bind(&mut plan, "topk_ids", DType::I32, &slots, false, false);
    let all = if topk == 0 {
        Extent::Exactly(0)
    } else {
        per_token(topk)
    };
    let rows = bind(&mut plan, "rows", op.x.dtype, &[all, columns], true, true);
    let offsets = [Extent::Exactly(op.experts + 1)];
    let expert_offsets = bind(
        &mut plan,
        "expert_offsets",
        DType::I32,
        &offsets,
        true,
        true,
    );
    let source = bind(&mut plan, "source", DType::I32, &[all], true, true);
    let ids = Ids {
        arg: topk_ids.arg(),
        strides: [topk_ids.stride(0), topk_ids.stride(1)],
        tokens: x.extent(0),
        most,
        topk,
        experts: op.experts,
    };
    if kernel.name == EXPERT_ROWS_NATIVE.name {
        let mut args = vec![
            x.arg(),
            topk_ids.arg(),
            rows.arg(),
            expert_offsets.arg(),
            source.arg(),
            Arg::Status,
        ];
        args.extend([x.extent(0), topk.into(), op.experts.into(), hidden.into()].map(u32));
        args.extend([x.stride(0), x.stride(1)]);
        args.extend([topk_ids.stride(0), topk_ids.stride(1), rows.stride(0)]);
        let key = ModuleKey { kernel, config };
        launch(
            &mut plan,
            key,
            "expert_scatter",
            one_dimension(1),
            [1; 3],
            args,
        );
        return Ok(plan);
    }
    let (info, rows) = (request.info, [rows.arg(), rows.stride(0)]);
    if vector::takes(kernel) {
        config.set_dtype("ROWS_DTYPE", op.x.dtype);
        let key = ModuleKey { kernel, config };
        let offsets = expert_offsets.arg();
        vector::append_permute(&mut plan, key.clone(), &ids, offsets, source.arg(), info);
        vector::append_copy_rows(&mut plan, key, &ids, x, source.arg(), rows, hidden, info);
        return Ok(plan);
    }
    config.set("EXPERTS_CAPACITY", experts_capacity(op.experts));
    let key = ModuleKey { kernel, config };
    let inverse = plan.take_workspace(bytes(&[4, most])?);
    append_permute(
        &mut plan,
        &key,
        &ids,
        expert_offsets.arg(),
        source.arg(),
        &inverse,
    )?;
    append_copy_rows(
        &mut plan,
        key,
        &ids,
        x,
        &inverse,
        expert_offsets.arg(),
        rows,
        hidden,
        info,
    );
    Ok(plan)
}

/// Adds the copy of token rows to their places; `rows` comes with its row stride.
#[allow(clippy::too_many_arguments)]
pub(super) fn append_copy_rows(
    plan: &mut Plan,
    key: ModuleKey,
    ids: &Ids,
    x: Bound,
    inverse: &Range<u64>,
    expert_offsets: Arg,
    [rows, row_stride]: [Arg; 2],
    hidden: u64,
    info: &DeviceInfo,
) {
    let block = key.config.value("ROW_BLOCK") as u64;
    let group = group(&key.config, "ROW_GROUP");
    let args = vec![
        x.arg(),
        workspace(inverse, DType::I32, false),
        expert_offsets,
        rows,
        u32(ids.tokens.clone()),
        u32(ids.topk),
        u32(ids.experts),
        u32(hidden),
        x.stride(0),
        x.stride(1),
        row_stride,
    ];
    let grid = grid_over_tokens(hidden.div_ceil(block), ids.tokens.clone(), info);
    launch(plan, key, "expert_copy_rows", grid, group, args);
}

pub(in crate::moe) fn expert_gather(op: &ExpertGather, request: &PlanRequest<'_>) -> Result<Plan> {
    let (&[tokens, topk], hidden) = (op.topk_weights.shape(), op.rows.shape()[1]) else {
        unreachable!("parsed")
    };
    let key = TuneKey {
        op: "expert_gather",
        variant: &op.rows.dtype.to_string(),
        sizes: &[("tokens", tokens), ("topk", topk), ("hidden", hidden)],
    };
    let (kernel, config) = request.choose(&key, &expert_gather_candidates(op, request.info)?)?;
    let most = pairs(tokens, topk)?;
    let mut plan = plan_over_tokens("expert_gather", Determinism::RunToRun, tokens);
    let columns = Extent::Exactly(hidden);
    let all = if topk == 0 {
        Extent::Exactly(0)
    } else {
        per_token(topk)
    };
    let rows = bind(
        &mut plan,
        "rows",
        op.rows.dtype,
        &[all, columns],
        false,
        false,
    );
    let source = bind(&mut plan, "source", DType::I32, &[all], false, false);
    let slots = [per_token(1), Extent::Exactly(topk)];
    let topk_weights = bind(&mut plan, "topk_weights", DType::F32, &slots, false, false);
    let y = bind(
        &mut plan,
        "y",
        op.y.dtype,
        &[per_token(1), columns],
        true,
        true,
    );
    let inverse = plan.take_workspace(bytes(&[4, most])?);
    let count = y.extent(0) * topk;
    let few = match config.get("PERMUTE_TILE") {
        Some(tile) => most <= FEW_TILES * tile as u64,
        None => true,
    };
    let mut key = ModuleKey { kernel, config };
    // The permutation does not depend on dtypes, but shares a module with what does.
    key.config
        .set_dtype("X_DTYPE", op.y.dtype)
        .set_dtype("ROWS_DTYPE", op.rows.dtype);
    let invert_args = vec![
        source.arg(),
        workspace(&inverse, DType::I32, true),
        Arg::Status,
        u32(count.clone()),
        source.stride(0),
    ];
    let group = group(&key.config, "PERMUTE_GROUP");
    if vector::takes(kernel) {
        let source = [source.arg(), source.stride(0)];
        vector::append_invert(
            &mut plan,
            key.clone(),
            source,
            &inverse,
            count,
            request.info,
        );
    } else if few {
        let grid = one_dimension(1);
        launch(
            &mut plan,
            key.clone(),
            "expert_invert_few",
            grid,
            group,
            invert_args,
        );
    } else {
        let tile = key.config.value("PERMUTE_TILE");
        let grid = one_dimension(count.clone().div_ceil(tile));
        let args = vec![workspace(&inverse, DType::I32, true), u32(count)];
        launch(
            &mut plan,
            key.clone(),
            "expert_clear_inverse",
            grid.clone(),
            group,
            args,
        );
        launch(
            &mut plan,
            key.clone(),
            "expert_invert",
            grid,
            group,
            invert_args,
        );
    }
    append_combine(
        &mut plan,
        key,
        [rows.arg(), rows.stride(0), rows.stride(1)],
        &inverse,
        [
            topk_weights.arg(),
            topk_weights.stride(0),
            topk_weights.stride(1),
        ],
        y,
        topk,
        hidden,
        request.info,
    );
    Ok(plan)
}

/// Adds the weighted sum of rows; rows and weights come with the strides of both axes.
#[allow(clippy::too_many_arguments)]
pub(super) fn append_combine(
    plan: &mut Plan,
    key: ModuleKey,
    rows: [Arg; 3],
    inverse: &Range<u64>,
    topk_weights: [Arg; 3],
    y: Bound,
    topk: u64,
    hidden: u64,
    info: &DeviceInfo,
) {
    let [rows, row_stride, column_stride] = rows;
    let [weights, token_stride, slot_stride] = topk_weights;
    let args = vec![
        rows,
        workspace(inverse, DType::I32, false),
        weights,
        y.arg(),
        u32(y.extent(0)),
        u32(topk),
        u32(hidden),
        row_stride,
        column_stride,
        token_stride,
        slot_stride,
        y.stride(0),
    ];
    let grid = if vector::takes(key.kernel) {
        vector::row_blocks(y.extent(0), hidden, info)
    } else {
        let block = key.config.get("ROW_BLOCK").unwrap_or(2048) as u64;
        grid_over_tokens(hidden.div_ceil(block), y.extent(0), info)
    };
    let group = group(&key.config, "ROW_GROUP");
    launch(plan, key, "expert_combine", grid, group, args);
}
