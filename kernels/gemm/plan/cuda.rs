//! The kernels for CUDA devices, best first.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;

use super::super::manifest::{SIMT, TILED};
use super::Problem;

/// Columns and rows of the tiles of [`SIMT`].
const LARGE_TILE: u64 = 128;

/// Every kernel that takes a product, best first.
pub(super) fn gemm_candidates(problem: &Problem<'_>, info: &DeviceInfo) -> Vec<&'static Kernel> {
    match problem.tiles([LARGE_TILE; 2]) >= u64::from(info.compute_units) {
        true => vec![&SIMT, &TILED],
        false => vec![&TILED, &SIMT],
    }
}

impl Problem<'_> {
    /// Tiles of d, over all batches, at the most rows.
    fn tiles(&self, [rows, columns]: [u64; 2]) -> u64 {
        self.batch
            .iter()
            .chain(&[self.m_max.div_ceil(rows), self.n.div_ceil(columns)])
            .fold(1, |tiles, extent| tiles.saturating_mul(*extent))
    }
}
