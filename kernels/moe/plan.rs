//! Planners.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::PlanRequest;
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

use super::{ExpertGather, ExpertScatter, MoeFfn, MoeRoute};

pub(super) fn moe_route_candidates(
    op: &MoeRoute,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("moe_route has no kernel yet"))
}

pub(super) fn moe_route(op: &MoeRoute, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("moe_route has no kernel yet"))
}

pub(super) fn expert_scatter_candidates(
    op: &ExpertScatter,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("expert_scatter has no kernel yet"))
}

pub(super) fn expert_scatter(op: &ExpertScatter, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("expert_scatter has no kernel yet"))
}

pub(super) fn expert_gather_candidates(
    op: &ExpertGather,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("expert_gather has no kernel yet"))
}

pub(super) fn expert_gather(op: &ExpertGather, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("expert_gather has no kernel yet"))
}

pub(super) fn moe_ffn_candidates(op: &MoeFfn, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("moe_ffn has no kernel yet"))
}

pub(super) fn moe_ffn(op: &MoeFfn, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("moe_ffn has no kernel yet"))
}
