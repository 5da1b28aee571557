//! The kernels that exist in CUDA C only.

use ropeway_core::kernel::{Code, Config, Kernel, Language, Source, Tunable};

use super::{CUDA_ELEMENTS, TILED_CONSTRAINTS, TILED_CUDA};

/// As [`super::TILED`], with tiles of 128 x 128.
pub(in super::super) static SIMT: Kernel = Kernel {
    name: "gemm_simt",
    summary: "tiles of 128 x 128 in shared memory, 64 sums a thread: large products on CUDA cores",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[CUDA_ELEMENTS, TILED_CUDA]),
        requires: &[],
    }],
    tunables: &[
        Tunable {
            name: "GROUP",
            values: &[16],
            default: 16,
            meaning: "threads along each side of a block",
        },
        Tunable {
            name: "PER_ITEM",
            values: &[8],
            default: 8,
            meaning: "sums of one thread along each side",
        },
        Tunable {
            name: "TILE_K",
            values: &[8, 16],
            default: 8,
            meaning: "k that lie in shared memory at once",
        },
    ],
    constraints: TILED_CONSTRAINTS,
    local_memory: tiles_twice,
};

/// Two tiles of a and two of b, four bytes an element.
fn tiles_twice(config: &Config) -> u64 {
    let side = (config.value("GROUP") * config.value("PER_ITEM")) as u64 + 4;
    2 * 2 * 4 * side * config.value("TILE_K") as u64
}
