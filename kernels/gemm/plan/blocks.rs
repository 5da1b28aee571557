//! Weights in GGML's blocks: the kernels that read them as they lie, best first.

use ropeway_core::Result;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;

use super::super::Gemm;
use super::super::manifest::{GROUPED_NATIVE, NATIVE};
use super::available;

/// The kernels for a product.
pub(super) fn gemm_candidates(_: &Gemm, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    available(&[&NATIVE], info)
}

/// The kernels for grouped products.
pub(in super::super) fn grouped_candidates(info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
    available(&[&GROUPED_NATIVE], info)
}
