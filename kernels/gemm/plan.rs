//! Planners.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::PlanRequest;
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

use super::{Gemm, GroupedGemm, MaskedGroupedGemm};

pub(super) fn gemm_candidates(op: &Gemm, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("gemm has no kernel yet"))
}

pub(super) fn gemm(op: &Gemm, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("gemm has no kernel yet"))
}

pub(super) fn grouped_gemm_candidates(
    op: &GroupedGemm,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("grouped_gemm has no kernel yet"))
}

pub(super) fn grouped_gemm(op: &GroupedGemm, request: &PlanRequest<'_>) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("grouped_gemm has no kernel yet"))
}

pub(super) fn grouped_gemm_masked_candidates(
    op: &MaskedGroupedGemm,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let _ = (op, info);
    Err(Error::unsupported("grouped_gemm_masked has no kernel yet"))
}

pub(super) fn grouped_gemm_masked(
    op: &MaskedGroupedGemm,
    request: &PlanRequest<'_>,
) -> Result<Plan> {
    let _ = (op, request);
    Err(Error::unsupported("grouped_gemm_masked has no kernel yet"))
}
