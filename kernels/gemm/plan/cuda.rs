//! The kernels for CUDA devices, best first.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;

use super::super::grouped::GroupedProduct;
use super::super::manifest::{
    GEMV_LANES, GROUPED_MMA, GROUPED_MMA_SMALL, GROUPED_TILED, GROUPED_WGMMA, GROUPED_WGMMA_SMALL,
    MMA, MMA_SMALL, SIMT, TILED, WGMMA, WGMMA_SMALL,
};
use super::{Problem, lanes, mma, wgmma};

/// Columns and rows of the larger tiles.
const LARGE_TILE: u64 = 128;
/// Rows and columns of the larger tiles of warpgroups.
const WARPGROUP_TILE: [u64; 2] = [128, 256];
/// Most rows (or columns) that the CUDA cores multiply while w is read, where there are matrix units.
const FEW: u64 = 4;
/// Most rows an expert, on average, for tiles of 16 rows.
const FEW_ROWS: u64 = 32;

/// Most rows an expert, on average, for tiles of 64 rows.
const FEW_ROWS_OF_WARPGROUPS: u64 = 64;

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
    let by_warpgroups = wgmma::takes(problem);
    if by_warpgroups {
        // By counting, not measured: a wave of large tiles takes no longer than two of small ones, which read each element twice as often.
        let few = problem.m_max <= FEW_ROWS_OF_WARPGROUPS
            || 2 * problem.tiles(WARPGROUP_TILE) <= u64::from(info.compute_units);
        wanted.splice(
            0..0,
            match few {
                false => [&WGMMA, &WGMMA_SMALL],
                true => [&WGMMA_SMALL, &WGMMA],
            },
        );
    }
    if lanes::takes(problem) {
        // Rows of w that lie side by side give few blocks; matrix units split k.
        let first =
            !by_matrix_units || lanes::x_rows_max(problem) <= FEW && lanes::is_along_k(problem);
        let place = match first || !info.has("sm_80") {
            true => 0,
            false if by_warpgroups => 4,
            false => 2,
        };
        wanted.insert(place, &GEMV_LANES);
    }
    wanted
}

/// Every kernel that takes grouped products of these dtypes, best first where experts have many rows; `is_mapped`: tensor maps take a and b.
pub(in super::super) fn grouped_candidates(
    dtypes: [DType; 3],
    is_mapped: bool,
) -> Vec<&'static Kernel> {
    let mut wanted: Vec<&'static Kernel> = Vec::new();
    if wgmma::takes_grouped(dtypes, is_mapped) {
        wanted.extend([&GROUPED_WGMMA, &GROUPED_WGMMA_SMALL]);
    }
    if mma::takes(dtypes[0], dtypes[1]) {
        wanted.extend([&GROUPED_MMA, &GROUPED_MMA_SMALL]);
    }
    wanted.push(&GROUPED_TILED);
    wanted
}

/// Puts the kernels first that suit the number of rows.
pub(in super::super) fn order_by_rows(wanted: &mut [&'static Kernel], product: &GroupedProduct) {
    for (kernel, rows) in [
        (&GROUPED_MMA_SMALL, FEW_ROWS),
        (&GROUPED_WGMMA_SMALL, FEW_ROWS_OF_WARPGROUPS),
    ] {
        if product.rows_max <= product.experts.saturating_mul(rows) {
            wanted.sort_by_key(|wanted| wanted.name != kernel.name);
        }
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
