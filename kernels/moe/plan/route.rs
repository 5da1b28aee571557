//! The planner of `moe_route`.

use ropeway_core::Result;
use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Kernel, ModuleKey};
use ropeway_core::op::{Op, PlanRequest, TuneKey};
use ropeway_core::plan::{Arg, Determinism, Extent, Plan};

use super::{
    Bound, bind, countable, fitting, group, launch, need_dense_rows, one_dimension, per_token,
    plan_over_tokens, u32, u64, vector,
};
use crate::moe::manifest::{
    LANES_GROUPS, LANES_TOPK, MOE_ROUTE, MOE_ROUTE_GROUP, MOE_ROUTE_LANES, MOE_ROUTE_VECTOR,
    MOE_ROUTE_WARP, VECTOR_TOPK, WARP_TOPK, experts_capacity,
};
use crate::moe::{MoeRoute, Routing, Score};

/// Threads of a warp.
const WARP: u32 = 32;

pub(in crate::moe) fn moe_route_candidates(
    op: &MoeRoute,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    need_dense_rows(op, &["topk_ids", "topk_weights"])?;
    countable("tokens", op.logits.shape()[0])?;
    route_kernels(op, info, op.logits.shape()[1], &op.routing)
}

pub(super) fn route_kernels(
    op: &dyn Op,
    info: &DeviceInfo,
    experts: u64,
    routing: &Routing,
) -> Result<Vec<&'static Kernel>> {
    let few = routing.topk.max(routing.topk_groups) <= LANES_TOPK && routing.groups <= LANES_GROUPS;
    let mut kernels = vec![&MOE_ROUTE, &MOE_ROUTE_GROUP];
    if routing.topk <= WARP_TOPK {
        kernels.insert(1, &MOE_ROUTE_WARP);
    }
    if few {
        kernels.insert(1, &MOE_ROUTE_LANES);
    }
    if routing.topk <= VECTOR_TOPK {
        kernels.insert(1, &MOE_ROUTE_VECTOR);
    }
    fitting(op, info, experts, &kernels)
}

pub(in crate::moe) fn moe_route(op: &MoeRoute, request: &PlanRequest<'_>) -> Result<Plan> {
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
        request.info,
    );
    Ok(plan)
}

pub(super) fn bind_bias(plan: &mut Plan, experts: u64) -> Bound {
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
pub(super) fn append_route(
    plan: &mut Plan,
    mut key: ModuleKey,
    dtype: DType,
    experts: u64,
    routing: &Routing,
    logits: Bound,
    bias: Option<Bound>,
    topk_ids: [Arg; 2],
    topk_weights: [Arg; 2],
    info: &DeviceInfo,
) {
    key.config.set_dtype("LOGITS_DTYPE", dtype);
    let sigmoid = i64::from(routing.score == Score::Sigmoid);
    // The vector cores take the rest at run time: one compiled kernel a dtype.
    let in_vectors = key.kernel.name == MOE_ROUTE_VECTOR.name;
    if !in_vectors {
        key.config
            .set("SIGMOID", sigmoid)
            .set("HAS_BIAS", i64::from(bias.is_some()))
            .set("EXPERTS_CAPACITY", experts_capacity(experts));
    }
    let group = group(&key.config, "ROUTE_GROUP");
    let tokens = logits.extent(0);
    let (entry, groups) = match key.kernel.name {
        "moe_route_group" => ("moe_route_group", tokens),
        "moe_route_lanes" => ("moe_route_lanes", tokens.div_ceil(u64::from(group[0]))),
        "moe_route_warp" => (
            "moe_route_warp",
            tokens.div_ceil(u64::from(group[0] / WARP)),
        ),
        "moe_route_vector" => ("moe_route", vector::blocks(tokens, info)),
        _ => ("moe_route", tokens),
    };
    if key.kernel.name == MOE_ROUTE_LANES.name {
        let most = routing.topk.max(routing.topk_groups);
        key.config
            .set("TOPK_CAPACITY", most.next_power_of_two().max(2) as i64);
    }
    let [ids, ids_stride] = topk_ids;
    let [weights, weights_stride] = topk_weights;
    let mut args = vec![
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
    ];
    if in_vectors {
        args.push(u32(sigmoid));
    }
    args.extend([
        logits.stride(0),
        logits.stride(1),
        bias.map_or(u64(0), |bias| bias.stride(0)),
        ids_stride,
        weights_stride,
    ]);
    launch(plan, key, entry, one_dimension(groups), group, args);
}
