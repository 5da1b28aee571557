//! Planners.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::PlanRequest;
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

use super::{Attention, PagedAttention, VarlenAttention};

pub(super) fn attention_candidates(
    op: &Attention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("attention has no kernel yet"))
}

pub(super) fn attention(op: &Attention, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("attention has no kernel yet"))
}

pub(super) fn attention_varlen_candidates(
    op: &VarlenAttention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("attention_varlen has no kernel yet"))
}

pub(super) fn attention_varlen(op: &VarlenAttention, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("attention_varlen has no kernel yet"))
}

pub(super) fn attention_paged_candidates(
    op: &PagedAttention,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("attention_paged has no kernel yet"))
}

pub(super) fn attention_paged(op: &PagedAttention, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("attention_paged has no kernel yet"))
}
