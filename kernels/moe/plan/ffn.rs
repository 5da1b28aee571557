//! The planner of `moe_ffn`.

use std::ops::Range;

use ropeway_core::Error;
use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Config, DEPENDENT_LAUNCH, Kernel, ModuleKey};
use ropeway_core::op::{PlanRequest, TuneKey};
use ropeway_core::plan::{Arg, Determinism, Expr, Extent, Plan};

use super::route::{append_route, bind_bias, route_kernels};
use super::rows::{Ids, append_combine, append_copy_rows, append_permute, rows_kernels};
use super::{
    Bound, bind, bytes, countable, launch, need_dense_rows, one_dimension, pairs, per_token,
    plan_over_tokens, u32, u64, vector, workspace,
};
use crate::gemm::Activation;
use crate::gemm::grouped::{self, GroupedProduct};
use crate::moe::MoeFfn;
use crate::moe::manifest::{
    EXPERT_ROWS_GROUP, EXPERT_ROWS_LANES, MOE_EXPERTS, MOE_EXPERTS_NATIVE, MOE_ROUTE_GROUP,
    experts_capacity,
};

/// Rows of a panel of `experts.cl`.
const PANEL_ROWS: u64 = 32;

/// Columns that a work-item of `moe_pack` packs.
const PACK_COLUMNS: u64 = 64;

/// A kernel's name stands for the way it goes: `moe_experts` (or its native twin) gathers rows while it multiplies,
/// `expert_rows_group`, `expert_rows_lanes` and `expert_rows_vector` write them out and take the grouped product of gemm.
fn is_by_steps(kernel: &Kernel) -> bool {
    vector::takes(kernel) || [EXPERT_ROWS_GROUP.name, EXPERT_ROWS_LANES.name].contains(&kernel.name)
}

pub(in crate::moe) fn moe_ffn_candidates(
    op: &MoeFfn,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["topk_ids", "y", "w_gate_up", "w_down"])?;
    let dtype = op.x.dtype;
    for (name, weights) in [("w_gate_up", op.w_gate_up), ("w_down", op.w_down)] {
        if weights.dtype != dtype {
            let context = format!("{name} is {}, x is {dtype}", weights.dtype);
            return Err(Error::unsupported(context));
        }
    }
    pairs(op.x.shape()[0], op.routing.topk)?;
    countable("columns", op.x.shape()[1])?;
    countable("inner columns", op.w_down.shape()[2])?;
    let experts = op.logits.shape()[1];
    route_kernels(op, info, experts, &op.routing)?;
    let mut found: Vec<&'static Kernel> = [&MOE_EXPERTS, &MOE_EXPERTS_NATIVE]
        .into_iter()
        .filter(|kernel| kernel.source_for(info).is_ok())
        .collect();
    let mut steps = rows_kernels(op, info, experts)?;
    steps.retain(|kernel| is_by_steps(kernel));
    if grouped::candidates([dtype; 3], op.hidden().max(op.inter()), false, info).is_err() {
        steps.clear();
    }
    match info.kind {
        DeviceKind::Cpu => found.append(&mut steps),
        _ => found.splice(0..0, steps).for_each(drop),
    }
    match found.is_empty() {
        true => Err(Error::unsupported(format!(
            "no kernel for moe_ffn in {:?}",
            info.languages
        ))),
        false => Ok(found),
    }
}

/// The operands of the op in its plan.
#[derive(Clone, Copy)]
struct Operands {
    x: Bound,
    w_gate_up: Bound,
    w_down: Bound,
    y: Bound,
    topk_ids: Bound,
}

/// What routing and permutation leave in the workspace.
struct Routed {
    ids: Ids,
    topk_weights: Range<u64>,
    expert_offsets: Range<u64>,
    source: Range<u64>,
    inverse: Range<u64>,
}

/// Sizes of an expert.
#[derive(Clone, Copy)]
struct Sizes {
    dtype: DType,
    hidden: u64,
    inter: u64,
}

fn read(range: &Range<u64>) -> Arg {
    workspace(range, DType::I32, false)
}

fn write(range: &Range<u64>) -> Arg {
    workspace(range, DType::I32, true)
}

pub(in crate::moe) fn moe_ffn(op: &MoeFfn, request: &PlanRequest<'_>) -> Result<Plan> {
    let (&[tokens, hidden], experts) = (op.x.shape(), op.logits.shape()[1]) else {
        unreachable!("parsed")
    };
    let (dtype, inter, topk) = (op.x.dtype, op.w_down.shape()[2], op.routing.topk);
    let key = TuneKey {
        op: "moe_ffn",
        variant: &dtype.to_string(),
        sizes: &[
            ("tokens", tokens),
            ("experts", experts),
            ("topk", topk),
            ("hidden", hidden),
            ("inter", inter),
        ],
    };
    let (kernel, config) = request.choose(&key, &moe_ffn_candidates(op, request.info)?)?;
    let most = pairs(tokens, topk)?;
    let mut plan = plan_over_tokens("moe_ffn", Determinism::RunToRun, tokens);
    let [rows, columns] = [per_token(1), Extent::Exactly(hidden)];
    let scores = [per_token(1), Extent::Exactly(experts)];
    let x = bind(&mut plan, "x", dtype, &[rows, columns], false, false);
    let logits = bind(&mut plan, "logits", op.logits.dtype, &scores, false, false);
    let bias = op.bias.map(|_| bind_bias(&mut plan, experts));
    let weights = |rows, columns| [experts, rows, columns].map(Extent::Exactly);
    let [gate_up, down] = [weights(2 * inter, hidden), weights(hidden, inter)];
    let w_gate_up = bind(&mut plan, "w_gate_up", dtype, &gate_up, true, false);
    let w_down = bind(&mut plan, "w_down", dtype, &down, true, false);
    let y = bind(&mut plan, "y", dtype, &[rows, columns], true, true);
    let slots = [per_token(1), Extent::Exactly(topk)];
    let topk_ids = bind(&mut plan, "topk_ids", DType::I32, &slots, true, true);
    let operands = Operands {
        x,
        w_gate_up,
        w_down,
        y,
        topk_ids,
    };
    let sizes = Sizes {
        dtype,
        hidden,
        inter,
    };
    let routed = Routed {
        ids: Ids {
            arg: topk_ids.arg(),
            strides: [topk_ids.stride(0), topk_ids.stride(1)],
            tokens: x.extent(0),
            most,
            topk,
            experts,
        },
        topk_weights: plan.take_workspace(bytes(&[4, most])?),
        expert_offsets: plan.take_workspace(bytes(&[4, experts + 1])?),
        source: plan.take_workspace(bytes(&[4, most])?),
        inverse: plan.take_workspace(bytes(&[4, most])?),
    };

    let by_steps = is_by_steps(kernel);
    let route = route_kernels(op, request.info, experts, &op.routing)?;
    // On a CPU the name asks for groups throughout; elsewhere the first kernel is the one for its kind.
    let in_groups = kernel.name == EXPERT_ROWS_GROUP.name && request.info.kind == DeviceKind::Cpu;
    let named = |kernel: &&&'static Kernel| in_groups && kernel.name == MOE_ROUTE_GROUP.name;
    let route = *route.iter().find(named).unwrap_or(&route[0]);
    append_route(
        &mut plan,
        ModuleKey {
            kernel: route,
            config: route.default_config(),
        },
        op.logits.dtype,
        experts,
        &op.routing,
        logits,
        bias,
        [topk_ids.arg(), topk_ids.stride(0)],
        [workspace(&routed.topk_weights, DType::F32, true), u64(topk)],
        request.info,
    );
    if by_steps {
        let key = rows_module(kernel, config, experts, dtype, dtype);
        let weights = [&op.w_gate_up, &op.w_down].map(grouped::are_mapped_rows);
        append_steps(&mut plan, key, &routed, operands, sizes, weights, request)?;
        overlap_launches(&mut plan, request.info);
        return Ok(plan);
    }
    let rows_kernel = rows_kernels(op, request.info, experts)?[0];
    let rows_key = rows_module(
        rows_kernel,
        rows_kernel.default_config(),
        experts,
        dtype,
        DType::F32,
    );
    let mut experts_key = ModuleKey { kernel, config };
    experts_key.config.set_dtype("X_DTYPE", dtype);
    let rows = plan.take_workspace(bytes(&[4, most, hidden])?);
    if kernel.name == MOE_EXPERTS_NATIVE.name {
        append_native(
            &mut plan,
            &rows_key,
            experts_key,
            &routed,
            operands,
            sizes,
            &rows,
        );
    } else {
        append_permute(
            &mut plan,
            &rows_key,
            &routed.ids,
            write(&routed.expert_offsets),
            write(&routed.source),
            &routed.inverse,
        )?;
        append_experts(&mut plan, experts_key, &routed, operands, sizes, &rows)?;
    }
    append_sum(
        &mut plan,
        rows_key,
        &routed,
        operands,
        sizes,
        &rows,
        DType::F32,
        request.info,
    );
    Ok(plan)
}

fn rows_module(
    kernel: &'static Kernel,
    mut config: Config,
    experts: u64,
    x: DType,
    rows: DType,
) -> ModuleKey {
    config.set_dtype("X_DTYPE", x).set_dtype("ROWS_DTYPE", rows);
    if !vector::takes(kernel) {
        config.set("EXPERTS_CAPACITY", experts_capacity(experts));
    }
    ModuleKey { kernel, config }
}

/// Adds the weighted sum of `rows` [tokens · topk, hidden] into y.
#[allow(clippy::too_many_arguments)]
fn append_sum(
    plan: &mut Plan,
    key: ModuleKey,
    routed: &Routed,
    operands: Operands,
    sizes: Sizes,
    rows: &Range<u64>,
    dtype: DType,
    info: &DeviceInfo,
) {
    let topk = routed.ids.topk;
    append_combine(
        plan,
        key,
        [workspace(rows, dtype, false), u64(sizes.hidden), u64(1)],
        &routed.inverse,
        [
            workspace(&routed.topk_weights, DType::F32, false),
            u64(topk),
            u64(1),
        ],
        operands.y,
        topk,
        sizes.hidden,
        info,
    );
}

/// Adds the permutation and the experts on the cpu device.
fn append_native(
    plan: &mut Plan,
    rows_key: &ModuleKey,
    experts_key: ModuleKey,
    routed: &Routed,
    operands: Operands,
    sizes: Sizes,
    rows: &Range<u64>,
) {
    let Operands {
        x,
        w_gate_up,
        w_down,
        ..
    } = operands;
    let ids = &routed.ids;
    let mut args = vec![
        ids.arg.clone(),
        write(&routed.expert_offsets),
        write(&routed.source),
        write(&routed.inverse),
        Arg::Status,
    ];
    args.extend([ids.tokens.clone(), ids.topk.into(), ids.experts.into()].map(u32));
    args.extend(ids.strides.clone());
    let once = one_dimension(1);
    launch(
        plan,
        rows_key.clone(),
        "expert_permute",
        once.clone(),
        [1; 3],
        args,
    );
    let mut args = vec![
        x.arg(),
        w_gate_up.arg(),
        w_down.arg(),
        read(&routed.expert_offsets),
        read(&routed.source),
        workspace(rows, DType::F32, true),
    ];
    args.extend([ids.topk, ids.experts, sizes.hidden, sizes.inter].map(u32));
    args.extend([x.stride(0), x.stride(1)]);
    args.extend([w_gate_up.stride(0), w_gate_up.stride(1)]);
    args.extend([w_down.stride(0), w_down.stride(1)]);
    launch(plan, experts_key, "moe_experts", once, [1; 3], args);
}

/// Adds the launches of `experts.cl`.
fn append_experts(
    plan: &mut Plan,
    key: ModuleKey,
    routed: &Routed,
    operands: Operands,
    sizes: Sizes,
    rows: &Range<u64>,
) -> Result<()> {
    let Operands {
        x,
        w_gate_up,
        w_down,
        topk_ids,
        ..
    } = operands;
    let (ids, Sizes { hidden, inter, .. }) = (&routed.ids, sizes);
    let panel_rows = (ids.most / PANEL_ROWS + ids.experts) * PANEL_ROWS;
    let panels = plan.take_workspace(bytes(&[4, panel_rows, hidden])?);
    let h = plan.take_workspace(bytes(&[4, panel_rows, inter])?);
    let block = key.config.value("WEIGHT_ROWS") as u64;
    // An expert has at most one row of each token.
    if plan.symbols[0].max > key.config.value("DOT_ROWS") as u64 {
        let mut args = vec![
            x.arg(),
            read(&routed.source),
            read(&routed.expert_offsets),
            workspace(&panels, DType::F32, true),
        ];
        args.extend([ids.topk, hidden].map(u32));
        args.extend([x.stride(0), x.stride(1)]);
        let grid = [hidden.div_ceil(PACK_COLUMNS), ids.experts, 1].map(Expr::from);
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
        read(&routed.expert_offsets),
        read(&routed.source),
        workspace(&h, DType::F32, true),
    ];
    args.extend(problem());
    args.extend([x.stride(0), x.stride(1), topk_ids.stride(0)]);
    args.extend([w_gate_up.stride(0), w_gate_up.stride(1)]);
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
        read(&routed.expert_offsets),
        read(&routed.source),
        workspace(rows, DType::F32, true),
    ];
    args.extend(problem());
    args.extend([topk_ids.stride(0), w_down.stride(0), w_down.stride(1)]);
    let grid = [hidden.div_ceil(block).into(), experts_at_work, 1.into()];
    launch(plan, key, "moe_down", grid, [1; 3], args);
    Ok(())
}

/// Has each launch begin before the one before it has ended, where the device can: the CUDA kernels of all steps wait for it themselves.
fn overlap_launches(plan: &mut Plan, info: &DeviceInfo) {
    if !info.has("sm_90") {
        return;
    }
    for module in &mut plan.modules {
        module.config.set(DEPENDENT_LAUNCH, 1);
    }
}

/// Adds the permutation and the copy of token rows into `scattered`.
fn append_scatter(
    plan: &mut Plan,
    key: &ModuleKey,
    routed: &Routed,
    x: Bound,
    scattered: &Range<u64>,
    Sizes { dtype, hidden, .. }: Sizes,
    info: &DeviceInfo,
) -> Result<()> {
    let ids = &routed.ids;
    let offsets = write(&routed.expert_offsets);
    let rows = [workspace(scattered, dtype, true), u64(hidden)];
    if vector::takes(key.kernel) {
        let (written, source) = (write(&routed.source), read(&routed.source));
        vector::append_permute(plan, key.clone(), ids, offsets, written, info);
        vector::append_copy_rows(
            plan,
            key.clone(),
            ids,
            x,
            source.clone(),
            rows,
            hidden,
            info,
        );
        let count = ids.count();
        vector::append_invert(
            plan,
            key.clone(),
            [source, u64(1)],
            &routed.inverse,
            count,
            info,
        );
        return Ok(());
    }
    let source = write(&routed.source);
    append_permute(plan, key, ids, offsets, source, &routed.inverse)?;
    append_copy_rows(
        plan,
        key.clone(),
        ids,
        x,
        &routed.inverse,
        read(&routed.expert_offsets),
        rows,
        hidden,
        info,
    );
    Ok(())
}

/// Adds scatter, the two grouped products of gemm, and the sum; rows between them have the dtype of x. `are_mapped`: tensor maps take the weights.
fn append_steps(
    plan: &mut Plan,
    key: ModuleKey,
    routed: &Routed,
    operands: Operands,
    sizes: Sizes,
    are_mapped: [bool; 2],
    request: &PlanRequest<'_>,
) -> Result<()> {
    let Sizes {
        dtype,
        hidden,
        inter,
    } = sizes;
    let ids = &routed.ids;
    let size = dtype.size().expect("a float has a size");
    let scattered = plan.take_workspace(bytes(&[size, ids.most, hidden])?);
    let h = plan.take_workspace(bytes(&[size, ids.most, inter])?);
    let rows = plan.take_workspace(bytes(&[size, ids.most, hidden])?);
    append_scatter(
        plan,
        &key,
        routed,
        operands.x,
        &scattered,
        sizes,
        request.info,
    )?;
    // Rows of the workspace lie one behind another; nothing is mapped where there are none.
    let rows_are_mapped = |columns: u64| ids.most > 0 && (columns * size).is_multiple_of(16);
    let product =
        |a, k: u64, (b, is_mapped): (Bound, bool), d, n: u64, activation| GroupedProduct {
            a: workspace(a, dtype, false),
            a_strides: [0, k, 1].map(Expr::from),
            b: b.arg(),
            b_strides: [0, 1, 2].map(|axis| Expr::stride(b.index(), axis)),
            scales: Default::default(),
            routing: read(&routed.expert_offsets),
            d: workspace(d, dtype, true),
            d_strides: match activation {
                Activation::Swiglu => [0, n / 2, 1].map(Expr::from),
                _ => [0, n, 1].map(Expr::from),
            },
            rows: ids.count(),
            rows_max: ids.most,
            capacity: None,
            experts: ids.experts,
            n,
            k,
            activation,
            dtypes: [dtype; 3],
            // Rows are dense: need_dense_rows.
            ways: [grouped::Way::Along; 2],
            d_is_dense: true,
            is_mapped: is_mapped && rows_are_mapped(k),
            d_is_mapped: rows_are_mapped(match activation {
                Activation::Swiglu => n / 2,
                _ => n,
            }),
        };
    // What the caller forces is this op's kernel, not that of its products.
    let products = PlanRequest {
        kernel: None,
        config: None,
        ..*request
    };
    for product in [
        product(
            &scattered,
            hidden,
            (operands.w_gate_up, are_mapped[0]),
            &h,
            2 * inter,
            Activation::Swiglu,
        ),
        product(
            &h,
            inter,
            (operands.w_down, are_mapped[1]),
            &rows,
            hidden,
            Activation::None,
        ),
    ] {
        let (kernel, config) = grouped::choose(&product, &products)?;
        grouped::append(plan, kernel, &config, request.info, &product)?;
    }
    append_sum(
        plan,
        key,
        routed,
        operands,
        sizes,
        &rows,
        dtype,
        request.info,
    );
    Ok(())
}
