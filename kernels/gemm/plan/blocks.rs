//! Weights in GGML's blocks: the kernels that read them as they lie, best first.

use ropeway_core::Result;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Kernel, Language};

use super::super::manifest::{
    GEMV, GROUPED_NATIVE, GROUPED_PACKED, GROUPED_TILED, NATIVE, PACKED, TILED,
};
use super::{Problem, available};

/// The kernels for a product.
pub(super) fn gemm_candidates(
    problem: &Problem<'_>,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let mut wanted: Vec<&'static Kernel> = vec![&NATIVE];
    if info.languages.contains(&Language::OpenClC) {
        if problem.skinny().is_some() {
            wanted.push(&GEMV);
        }
        wanted.extend(match info.kind {
            DeviceKind::Cpu => [&PACKED, &TILED],
            _ => [&TILED, &PACKED],
        });
    }
    available(&wanted, info)
}

/// The kernels for grouped products.
pub(in super::super) fn grouped_candidates(info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    let mut wanted: Vec<&'static Kernel> = vec![&GROUPED_NATIVE];
    if info.languages.contains(&Language::OpenClC) {
        wanted.extend(match info.kind {
            DeviceKind::Cpu => [&GROUPED_PACKED, &GROUPED_TILED],
            _ => [&GROUPED_TILED, &GROUPED_PACKED],
        });
    }
    available(&wanted, info)
}
