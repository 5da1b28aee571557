//! The kernels for CUDA devices, best first.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;

use super::super::grouped::GroupedProduct;
use super::super::manifest::{
    GEMV_LANES, GROUPED_MMA, GROUPED_MMA_SMALL, GROUPED_TILED, MMA, MMA_SMALL, SIMT, TILED,
};
use super::{Problem, lanes, mma};

/// Columns and rows of the larger tiles.
const LARGE_TILE: u64 = 128;
/// Most rows (or columns) that the CUDA cores multiply while w is read, where there are matrix units.
const FEW: u64 = 4;
/// Most rows an expert, on average, for tiles of 16 rows.
const FEW_ROWS: u64 = 32;

/// Every kernel that takes a product, best first. What the device cannot compile is left out later.
pub(super) fn gemm_candidates(problem: &Problem<'_>, info: &DeviceInfo) -> Vec<&'static Kernel> {
    let many = problem.tiles([LARGE_TILE; 2]) >= u64::from(info.compute_units);
    let mut wanted: Vec<&'static Kernel> = match many {
        true => vec![&SIMT, &TILED],
        false => vec![&TILED, &SIMT],
    };
    let by_matrix_units = mma::takes(problem.op.a.dtype, problem.op.b_dtype());
    if by_matrix_units {
        wanted.splice(
            0..0,
            match many {
                true => [&MMA, &MMA_SMALL],
                false => [&MMA_SMALL, &MMA],
            },
        );
    }
    if lanes::takes(problem) {
        // Rows of w that lie side by side give few blocks; matrix units split k.
        let first =
            !by_matrix_units || lanes::x_rows_max(problem) <= FEW && lanes::is_along_k(problem);
        let place = match first || !info.has("sm_80") {
            true => 0,
            false => 2,
        };
        wanted.insert(place, &GEMV_LANES);
    }
    wanted
}

/// Every kernel that takes grouped products of these dtypes, best first where experts have many rows.
pub(in super::super) fn grouped_candidates([a, b, _]: [DType; 3]) -> Vec<&'static Kernel> {
    match mma::takes(a, b) {
        true => vec![&GROUPED_MMA, &GROUPED_MMA_SMALL, &GROUPED_TILED],
        false => vec![&GROUPED_TILED],
    }
}

/// Puts the kernel first that suits the number of rows.
pub(in super::super) fn order_by_rows(wanted: &mut [&'static Kernel], product: &GroupedProduct) {
    if product.rows_max <= product.experts.saturating_mul(FEW_ROWS) {
        wanted.sort_by_key(|kernel| kernel.name != GROUPED_MMA_SMALL.name);
    }
}

impl Problem<'_> {
    /// Tiles of d, over all batches, at the most rows.
    pub(super) fn tiles(&self, [rows, columns]: [u64; 2]) -> u64 {
        self.batch
            .iter()
            .chain(&[self.m_max.div_ceil(rows), self.n.div_ceil(columns)])
            .fold(1, |tiles, extent| tiles.saturating_mul(*extent))
    }
}
