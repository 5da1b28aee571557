//! Planners: which kernels run a problem, with which launches.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, Kernel, Language, ModuleKey};
use ropeway_core::op::{Op, PlanRequest, TuneKey};
use ropeway_core::plan::{
    Arg, Determinism, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{Error, Result};

use super::manifest::{
    EXPERT_ROWS, EXPERT_ROWS_GROUP, EXPERT_ROWS_NATIVE, MOE_EXPERTS, MOE_EXPERTS_NATIVE, MOE_ROUTE,
    MOE_ROUTE_GROUP, experts_capacity,
};
use super::{ExpertGather, ExpertScatter, MoeFfn, MoeRoute, Routing, Score};

/// Tiles of ids up to which one work-group permutes them all in one launch.
const FEW_TILES: u64 = 4;

/// Rows of a panel of `experts.cl`.
const PANEL_ROWS: u64 = 32;

/// Columns that a work-item of `moe_pack` packs.
const PACK_COLUMNS: u64 = 64;

/// Experts beyond which `moe_route` would need too much private memory.
const MOST_EXPERTS: u64 = 16_384;

// ---- candidates ----------------------------------------------------------------------------------------------------

/// Those of `kernels` that the device takes and whose counters over `experts` fit it, wide work-items first on CPUs,
/// groups of narrow ones first elsewhere.
fn fitting(
    op: &dyn Op,
    info: &DeviceInfo,
    experts: u64,
    kernels: [&'static Kernel; 3],
) -> Result<Vec<&'static Kernel>> {
    for operand in op.operands() {
        if !info.dtype(operand.desc.dtype).storage {
            let dtype = operand.desc.dtype;
            let context = format!("{} cannot store {dtype} ({})", info.name, operand.name);
            return Err(Error::unsupported(context));
        }
    }
    if experts > MOST_EXPERTS {
        let context = format!("{experts} experts; kernels have room for {MOST_EXPERTS}");
        return Err(Error::unsupported(context));
    }
    let mut lack = Error::unsupported("no kernel");
    let mut found = Vec::new();
    for kernel in kernels {
        let mut config = kernel.default_config();
        config.set("EXPERTS_CAPACITY", experts_capacity(experts));
        match kernel
            .source_for(info)
            .and_then(|_| kernel.validate(&config, info))
        {
            Ok(()) => found.push(kernel),
            Err(error) => lack = Error::unsupported(error.context()),
        }
    }
    if info.kind != DeviceKind::Cpu {
        found.sort_by_key(|kernel| !kernel.name.ends_with("_group"));
    }
    if found.is_empty() {
        return Err(lack);
    }
    Ok(found)
}

/// Fails unless the elements of each row of the named operands lie side by side.
fn need_dense_rows(op: &dyn Op, names: &[&str]) -> Result<()> {
    for operand in op.operands() {
        let layout = operand.desc.layout;
        let last = layout.rank() - 1;
        if names.contains(&operand.name) && layout.shape()[last] > 1 && layout.strides()[last] != 1
        {
            return Err(Error::unsupported(format!(
                "{} takes {} with stride 1 on its last axis, not {}",
                op.name(),
                operand.name,
                layout.strides()[last]
            )));
        }
    }
    Ok(())
}

/// (token, slot) pairs are numbered in 32 bits.
fn pairs(tokens: u64, topk: u64) -> Result<u64> {
    tokens
        .checked_mul(topk)
        .filter(|&pairs| pairs <= i32::MAX as u64)
        .ok_or_else(|| {
            Error::unsupported(format!(
                "{tokens} tokens times {topk} slots; rows are numbered in 32 bits"
            ))
        })
}

pub(super) fn moe_route_candidates(
    op: &MoeRoute,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["topk_ids", "topk_weights"])?;
    route_kernels(op, info, op.logits.shape()[1])
}

fn route_kernels(op: &dyn Op, info: &DeviceInfo, experts: u64) -> Result<Vec<&'static Kernel>> {
    let mut kernels = fitting(
        op,
        info,
        experts,
        [&MOE_ROUTE, &MOE_ROUTE_GROUP, &MOE_ROUTE_GROUP],
    )?;
    kernels.dedup_by_key(|kernel| kernel.name);
    Ok(kernels)
}

fn rows_kernels(op: &dyn Op, info: &DeviceInfo, experts: u64) -> Result<Vec<&'static Kernel>> {
    fitting(
        op,
        info,
        experts,
        [&EXPERT_ROWS, &EXPERT_ROWS_GROUP, &EXPERT_ROWS_NATIVE],
    )
}

pub(super) fn expert_scatter_candidates(
    op: &ExpertScatter,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["rows", "expert_offsets", "source"])?;
    pairs(op.topk_ids.shape()[0], op.topk_ids.shape()[1])?;
    rows_kernels(op, info, op.experts)
}

pub(super) fn expert_gather_candidates(
    op: &ExpertGather,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["y"])?;
    pairs(op.topk_weights.shape()[0], op.topk_weights.shape()[1])?;
    rows_kernels(op, info, 0)
}

pub(super) fn moe_ffn_candidates(op: &MoeFfn, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["topk_ids", "y", "w_gate_up", "w_down"])?;
    for (name, weights) in [("w_gate_up", op.w_gate_up), ("w_down", op.w_down)] {
        if weights.dtype != op.x.dtype {
            let context = format!("{name} is {}, x is {}", weights.dtype, op.x.dtype);
            return Err(Error::unsupported(context));
        }
    }
    pairs(op.x.shape()[0], op.routing.topk)?;
    let experts = op.logits.shape()[1];
    route_kernels(op, info, experts)?;
    rows_kernels(op, info, experts)?;
    let kernels = [&MOE_EXPERTS, &MOE_EXPERTS_NATIVE];
    let found: Vec<&'static Kernel> = kernels
        .into_iter()
        .filter(|kernel| kernel.source_for(info).is_ok())
        .collect();
    match found.is_empty() {
        true => Err(Error::unsupported(format!(
            "no kernel for moe_ffn in {:?}",
            info.languages
        ))),
        false => Ok(found),
    }
}

// ---- pieces --------------------------------------------------------------------------------------------------------

/// An operand's place in a plan, with the expressions that its launches are made of.
#[derive(Clone, Copy)]
struct Bound(usize);

impl Bound {
    fn arg(self) -> Arg {
        Arg::operand(self.0)
    }

    fn extent(self, axis: usize) -> Expr {
        Expr::extent(self.0, axis)
    }

    fn stride(self, axis: usize) -> Arg {
        Arg::U64(Expr::stride(self.0, axis))
    }
}

/// `tokens * times`.
fn per_token(times: u64) -> Extent {
    Extent::Varies {
        symbol: 0,
        times,
        plus: 0,
    }
}

/// A plan whose one symbol is the number of tokens.
fn plan_over_tokens(op: &'static str, determinism: Determinism, tokens: u64) -> Plan {
    let mut plan = Plan::new(op, determinism);
    plan.symbols.push(Symbol {
        name: "tokens",
        max: tokens,
    });
    plan
}

/// Adds an operand. Outputs and `dense` inputs have stride 1 on their last axis, the other strides are free.
fn bind(
    plan: &mut Plan,
    name: &'static str,
    dtype: DType,
    shape: &[Extent],
    dense: bool,
    write: bool,
) -> Bound {
    let mut strides = vec![StrideRule::Any; shape.len()];
    if dense || write {
        strides[shape.len() - 1] = StrideRule::Exactly(1);
    }
    plan.operands.push(OperandRule {
        name,
        dtype,
        write,
        shape: shape.to_vec(),
        strides,
        offset_multiple: 1,
        form: Form::Plain,
    });
    Bound(plan.operands.len() - 1)
}

fn workspace(range: &Range<u64>, dtype: DType, write: bool) -> Arg {
    Arg::Workspace {
        range: range.clone(),
        dtype,
        write,
    }
}

fn u32(value: impl Into<Expr>) -> Arg {
    Arg::U32(value.into())
}

fn u64(value: impl Into<Expr>) -> Arg {
    Arg::U64(value.into())
}

fn one_dimension(groups: impl Into<Expr>) -> [Expr; 3] {
    [groups.into(), 1.into(), 1.into()]
}

/// Work-items of a group, from the tunable that says so; 1 on the cpu device, whose functions thread themselves.
fn group(config: &Config, tunable: &str) -> [u32; 3] {
    [config.get(tunable).unwrap_or(1) as u32, 1, 1]
}

fn launch(
    plan: &mut Plan,
    key: ModuleKey,
    entry: &'static str,
    grid: [Expr; 3],
    group: [u32; 3],
    args: Vec<Arg>,
) {
    let module = plan.module(key);
    plan.launches.push(Launch {
        module,
        entry,
        grid,
        group,
        local_memory: 0,
        args,
    });
}

/// The first candidate's default, for the steps of `moe_ffn` that are no choice of its caller.
fn default_of(kernels: &[&'static Kernel]) -> ModuleKey {
    ModuleKey {
        kernel: kernels[0],
        config: kernels[0].default_config(),
    }
}

// ---- moe_route -----------------------------------------------------------------------------------------------------

pub(super) fn moe_route(op: &MoeRoute, request: &PlanRequest<'_>) -> Result<Plan> {
    let &[tokens, experts] = op.logits.shape() else {
        unreachable!("parsed")
    };
    let key = TuneKey {
        op: "moe_route",
        variant: &op.logits.dtype.to_string(),
        sizes: &[
            ("tokens", tokens),
            ("experts", experts),
            ("topk", op.routing.topk),
        ],
    };
    let (kernel, config) = request.choose(&key, &moe_route_candidates(op, request.info)?)?;
    let mut plan = plan_over_tokens("moe_route", Determinism::BatchInvariant, tokens);
    let logits = bind(
        &mut plan,
        "logits",
        op.logits.dtype,
        &[per_token(1), Extent::Exactly(experts)],
        false,
        false,
    );
    let bias = op.bias.map(|_| bind_bias(&mut plan, experts));
    let slots = [per_token(1), Extent::Exactly(op.routing.topk)];
    let topk_ids = bind(&mut plan, "topk_ids", DType::I32, &slots, true, true);
    let topk_weights = bind(&mut plan, "topk_weights", DType::F32, &slots, true, true);
    append_route(
        &mut plan,
        ModuleKey { kernel, config },
        op.logits.dtype,
        experts,
        &op.routing,
        logits,
        bias,
        [topk_ids.arg(), topk_ids.stride(0)],
        [topk_weights.arg(), topk_weights.stride(0)],
    );
    Ok(plan)
}

fn bind_bias(plan: &mut Plan, experts: u64) -> Bound {
    bind(
        plan,
        "bias",
        DType::F32,
        &[Extent::Exactly(experts)],
        false,
        false,
    )
}

/// Adds the routing of `logits`; ids and weights come with their row strides.
#[allow(clippy::too_many_arguments)]
fn append_route(
    plan: &mut Plan,
    mut key: ModuleKey,
    dtype: DType,
    experts: u64,
    routing: &Routing,
    logits: Bound,
    bias: Option<Bound>,
    topk_ids: [Arg; 2],
    topk_weights: [Arg; 2],
) {
    key.config
        .set_dtype("LOGITS_DTYPE", dtype)
        .set("SIGMOID", i64::from(routing.score == Score::Sigmoid))
        .set("HAS_BIAS", i64::from(bias.is_some()))
        .set("EXPERTS_CAPACITY", experts_capacity(experts));
    let entry = match key.kernel.name {
        "moe_route_group" => "moe_route_group",
        _ => "moe_route",
    };
    let group = group(&key.config, "ROUTE_GROUP");
    let [ids, ids_stride] = topk_ids;
    let [weights, weights_stride] = topk_weights;
    let args = vec![
        logits.arg(),
        bias.map_or(Arg::Absent, Bound::arg),
        ids,
        weights,
        u32(logits.extent(0)),
        u32(experts),
        u32(routing.topk),
        u32(routing.groups),
        u32(routing.topk_groups),
        u32(i64::from(routing.renormalize)),
        Arg::F32(routing.scale),
        logits.stride(0),
        logits.stride(1),
        bias.map_or(u64(0), |bias| bias.stride(0)),
        ids_stride,
        weights_stride,
    ];
    launch(
        plan,
        key,
        entry,
        one_dimension(logits.extent(0)),
        group,
        args,
    );
}

// ---- the permutation -----------------------------------------------------------------------------------------------

/// The ids of a permutation, with their strides.
struct Ids {
    arg: Arg,
    strides: [Arg; 2],
    tokens: Expr,
    /// tokens · topk at the plan's maximum.
    most: u64,
    topk: u64,
    experts: u64,
}

impl Ids {
    fn count(&self) -> Expr {
        self.tokens.clone() * self.topk
    }
}

/// Adds the launches that compute offsets, source and inverse from ids.
fn append_permute(
    plan: &mut Plan,
    key: &ModuleKey,
    ids: &Ids,
    expert_offsets: Arg,
    source: Arg,
    inverse: &Range<u64>,
) {
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
        return add(plan, "expert_permute", one_dimension(1), args);
    }
    let tiles = ids.count().div_ceil(tile);
    let tile_rows = plan.take_workspace(ids.most.div_ceil(tile) * ids.experts * 4);
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
}

pub(super) fn expert_scatter(op: &ExpertScatter, request: &PlanRequest<'_>) -> Result<Plan> {
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
    let problem = [
        u32(x.extent(0)),
        u32(topk),
        u32(op.experts),
        u32(hidden),
        x.stride(0),
        x.stride(1),
    ];
    if kernel.name == EXPERT_ROWS_NATIVE.name {
        let mut args = vec![
            x.arg(),
            topk_ids.arg(),
            rows.arg(),
            expert_offsets.arg(),
            source.arg(),
            Arg::Status,
        ];
        args.extend(problem);
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
    config.set("EXPERTS_CAPACITY", experts_capacity(op.experts));
    let block = config.value("ROW_BLOCK") as u64;
    let group = group(&config, "ROW_GROUP");
    let key = ModuleKey { kernel, config };
    let inverse = plan.take_workspace(4 * most.max(1));
    append_permute(
        &mut plan,
        &key,
        &ids,
        expert_offsets.arg(),
        source.arg(),
        &inverse,
    );
    let mut args = vec![
        x.arg(),
        workspace(&inverse, DType::I32, false),
        expert_offsets.arg(),
        rows.arg(),
    ];
    args.extend(problem);
    args.push(rows.stride(0));
    let grid = [hidden.div_ceil(block).into(), x.extent(0), 1.into()];
    launch(&mut plan, key, "expert_copy_rows", grid, group, args);
    Ok(plan)
}

// ---- expert_gather -------------------------------------------------------------------------------------------------

pub(super) fn expert_gather(op: &ExpertGather, request: &PlanRequest<'_>) -> Result<Plan> {
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
    let inverse = plan.take_workspace(4 * most.max(1));
    let count = y.extent(0) * topk;
    let few = match config.get("PERMUTE_TILE") {
        Some(tile) => most <= FEW_TILES * tile as u64,
        None => true,
    };
    let mut key = ModuleKey { kernel, config };
    let invert_args = vec![
        source.arg(),
        workspace(&inverse, DType::I32, true),
        Arg::Status,
        u32(count.clone()),
        source.stride(0),
    ];
    // The permutation does not depend on dtypes, but shares a module with what does.
    key.config
        .set_dtype("X_DTYPE", op.y.dtype)
        .set_dtype("ROWS_DTYPE", op.rows.dtype);
    let group = group(&key.config, "PERMUTE_GROUP");
    if few {
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
    );
    Ok(plan)
}

/// Adds the weighted sum of rows; rows and weights come with the strides of both axes.
#[allow(clippy::too_many_arguments)]
fn append_combine(
    plan: &mut Plan,
    key: ModuleKey,
    rows: [Arg; 3],
    inverse: &Range<u64>,
    topk_weights: [Arg; 3],
    y: Bound,
    topk: u64,
    hidden: u64,
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
    let block = key.config.get("ROW_BLOCK").unwrap_or(2048) as u64;
    let grid = [hidden.div_ceil(block).into(), y.extent(0), 1.into()];
    let group = group(&key.config, "ROW_GROUP");
    launch(plan, key, "expert_combine", grid, group, args);
}

// ---- moe_ffn -------------------------------------------------------------------------------------------------------

pub(super) fn moe_ffn(op: &MoeFfn, request: &PlanRequest<'_>) -> Result<Plan> {
    let (&[tokens, hidden], experts) = (op.x.shape(), op.logits.shape()[1]) else {
        unreachable!("parsed")
    };
    let (inter, topk) = (op.w_down.shape()[2], op.routing.topk);
    let key = TuneKey {
        op: "moe_ffn",
        variant: &op.x.dtype.to_string(),
        sizes: &[
            ("tokens", tokens),
            ("experts", experts),
            ("topk", topk),
            ("hidden", hidden),
            ("inter", inter),
        ],
    };
    let (kernel, mut config) = request.choose(&key, &moe_ffn_candidates(op, request.info)?)?;
    config.set_dtype("X_DTYPE", op.x.dtype);
    let experts_key = ModuleKey { kernel, config };
    let most = pairs(tokens, topk)?;

    let mut plan = plan_over_tokens("moe_ffn", Determinism::RunToRun, tokens);
    let columns = Extent::Exactly(hidden);
    let x = bind(
        &mut plan,
        "x",
        op.x.dtype,
        &[per_token(1), columns],
        false,
        false,
    );
    let logits = bind(
        &mut plan,
        "logits",
        op.logits.dtype,
        &[per_token(1), Extent::Exactly(experts)],
        false,
        false,
    );
    let bias = op.bias.map(|_| bind_bias(&mut plan, experts));
    let matrices = |rows, columns| {
        [
            Extent::Exactly(experts),
            Extent::Exactly(rows),
            Extent::Exactly(columns),
        ]
    };
    let w_gate_up = bind(
        &mut plan,
        "w_gate_up",
        op.x.dtype,
        &matrices(2 * inter, hidden),
        true,
        false,
    );
    let w_down = bind(
        &mut plan,
        "w_down",
        op.x.dtype,
        &matrices(hidden, inter),
        true,
        false,
    );
    let y = bind(
        &mut plan,
        "y",
        op.x.dtype,
        &[per_token(1), columns],
        true,
        true,
    );
    let slots = [per_token(1), Extent::Exactly(topk)];
    let topk_ids = bind(&mut plan, "topk_ids", DType::I32, &slots, true, true);

    let topk_weights = plan.take_workspace(4 * most.max(1));
    let expert_offsets = plan.take_workspace(4 * (experts + 1));
    let source = plan.take_workspace(4 * most.max(1));
    let inverse = plan.take_workspace(4 * most.max(1));
    let rows = plan.take_workspace(4 * most * hidden);

    append_route(
        &mut plan,
        default_of(&route_kernels(op, request.info, experts)?),
        op.logits.dtype,
        experts,
        &op.routing,
        logits,
        bias,
        [topk_ids.arg(), topk_ids.stride(0)],
        [workspace(&topk_weights, DType::F32, true), u64(topk)],
    );

    let mut rows_key = default_of(&rows_kernels(op, request.info, experts)?);
    rows_key
        .config
        .set_dtype("X_DTYPE", op.x.dtype)
        .set_dtype("ROWS_DTYPE", DType::F32)
        .set("EXPERTS_CAPACITY", experts_capacity(experts));
    let ids = Ids {
        arg: topk_ids.arg(),
        strides: [topk_ids.stride(0), topk_ids.stride(1)],
        tokens: x.extent(0),
        most,
        topk,
        experts,
    };
    let read = |range: &Range<u64>| workspace(range, DType::I32, false);
    let native = kernel.source_for(request.info)?.language == Language::Native;
    if native {
        let args = vec![
            topk_ids.arg(),
            workspace(&expert_offsets, DType::I32, true),
            workspace(&source, DType::I32, true),
            workspace(&inverse, DType::I32, true),
            Arg::Status,
            u32(x.extent(0)),
            u32(topk),
            u32(experts),
            topk_ids.stride(0),
            topk_ids.stride(1),
        ];
        launch(
            &mut plan,
            rows_key.clone(),
            "expert_permute",
            one_dimension(1),
            [1; 3],
            args,
        );
        let args = vec![
            x.arg(),
            w_gate_up.arg(),
            w_down.arg(),
            read(&expert_offsets),
            read(&source),
            workspace(&rows, DType::F32, true),
            u32(topk),
            u32(experts),
            u32(hidden),
            u32(inter),
            x.stride(0),
            x.stride(1),
            w_gate_up.stride(0),
            w_gate_up.stride(1),
            w_down.stride(0),
            w_down.stride(1),
        ];
        launch(
            &mut plan,
            experts_key,
            "moe_experts",
            one_dimension(1),
            [1; 3],
            args,
        );
    } else {
        append_permute(
            &mut plan,
            &rows_key,
            &ids,
            workspace(&expert_offsets, DType::I32, true),
            workspace(&source, DType::I32, true),
            &inverse,
        );
        append_experts(
            &mut plan,
            experts_key,
            &ids,
            [x, w_gate_up, w_down, topk_ids],
            [&expert_offsets, &source, &rows],
            hidden,
            inter,
        );
    }
    append_combine(
        &mut plan,
        rows_key,
        [workspace(&rows, DType::F32, false), u64(hidden), u64(1)],
        &inverse,
        [
            workspace(&topk_weights, DType::F32, false),
            u64(topk),
            u64(1),
        ],
        y,
        topk,
        hidden,
    );
    Ok(plan)
}

/// Adds the launches of `experts.cl`.
fn append_experts(
    plan: &mut Plan,
    key: ModuleKey,
    ids: &Ids,
    [x, w_gate_up, w_down, topk_ids]: [Bound; 4],
    [expert_offsets, source, rows]: [&Range<u64>; 3],
    hidden: u64,
    inter: u64,
) {
    let read = |range: &Range<u64>| workspace(range, DType::I32, false);
    let panel_rows = (ids.most / PANEL_ROWS + ids.experts) * PANEL_ROWS;
    let panels = plan.take_workspace(4 * panel_rows * hidden);
    let h = plan.take_workspace(4 * panel_rows * inter);
    let block = key.config.value("WEIGHT_ROWS") as u64;
    // An expert has at most one row of each token.
    if plan.symbols[0].max > key.config.value("DOT_ROWS") as u64 {
        let args = vec![
            x.arg(),
            read(source),
            read(expert_offsets),
            workspace(&panels, DType::F32, true),
            u32(ids.topk),
            u32(hidden),
            x.stride(0),
            x.stride(1),
        ];
        let grid = [
            hidden.div_ceil(PACK_COLUMNS).into(),
            ids.experts.into(),
            1.into(),
        ];
        launch(plan, key.clone(), "moe_pack", grid, [1; 3], args);
    }
    let experts_at_work = ids.count().min(ids.experts);
    let problem = || {
        [
            u32(ids.count()),
            u32(ids.topk),
            u32(ids.experts),
            u32(hidden),
            u32(inter),
        ]
    };
    let mut args = vec![
        workspace(&panels, DType::F32, false),
        x.arg(),
        w_gate_up.arg(),
        topk_ids.arg(),
        read(expert_offsets),
        read(source),
        workspace(&h, DType::F32, true),
    ];
    args.extend(problem());
    args.extend([
        x.stride(0),
        x.stride(1),
        topk_ids.stride(0),
        w_gate_up.stride(0),
        w_gate_up.stride(1),
    ]);
    let grid = [
        inter.div_ceil(block).into(),
        experts_at_work.clone(),
        1.into(),
    ];
    launch(plan, key.clone(), "moe_gate_up", grid, [1; 3], args);
    let mut args = vec![
        workspace(&h, DType::F32, false),
        w_down.arg(),
        topk_ids.arg(),
        read(expert_offsets),
        read(source),
        workspace(rows, DType::F32, true),
    ];
    args.extend(problem());
    args.extend([topk_ids.stride(0), w_down.stride(0), w_down.stride(1)]);
    let grid = [hidden.div_ceil(block).into(), experts_at_work, 1.into()];
    launch(plan, key, "moe_down", grid, [1; 3], args);
}
