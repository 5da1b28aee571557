//! The kernels for products of 8-bit floats, in CUDA C only.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::cuda::{EXPERTS_CLUSTER, WGMMA_TILE};
use super::{CUDA_BLOCKS, CUDA_ELEMENTS, CUDA_ROUTING, TILED_CONSTRAINTS, TILED_CUDA, tiles};
use crate::HOPPER_CU;

const TEXT: (&str, &str) = ("gemm_scaled.cu", include_str!("../gemm_scaled.cu"));

const TUNABLES: &[Tunable] = &[
    Tunable {
        name: "GROUP",
        values: &[8, 16],
        default: 16,
        meaning: "threads along each side of a block",
    },
    Tunable {
        name: "PER_ITEM",
        values: &[2, 4],
        default: 4,
        meaning: "sums of one thread along each side",
    },
    Tunable {
        name: "TILE_K",
        values: &[8, 16, 32],
        default: 16,
        meaning: "k that lie in shared memory at once",
    },
];

/// Tiles in shared memory, one block of scales after another.
pub(in super::super) static SCALED: Kernel = Kernel {
    name: "gemm_scaled",
    summary: "tiles in shared memory, a block of 128 k at a time and its scales: products of 8-bit floats on CUDA cores",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[CUDA_ELEMENTS, CUDA_BLOCKS, TILED_CUDA, TEXT]),
        requires: &[],
    }],
    tunables: TUNABLES,
    constraints: TILED_CONSTRAINTS,
    local_memory: tiles,
};

/// As [`SCALED`], for grouped products.
pub(in super::super) static GROUPED_SCALED: Kernel = Kernel {
    name: "grouped_scaled",
    summary: "as gemm_scaled, rows found on the device: experts in 8-bit floats on CUDA cores",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[CUDA_ELEMENTS, CUDA_BLOCKS, CUDA_ROUTING, TILED_CUDA, TEXT]),
        requires: &[],
    }],
    tunables: TUNABLES,
    constraints: TILED_CONSTRAINTS,
    local_memory: tiles,
};

const WGMMA_TEXT: (&str, &str) = (
    "gemm_wgmma_scaled.cu",
    include_str!("../gemm_wgmma_scaled.cu"),
);

/// TMA, wgmma and setmaxnreg.
const WGMMA_FEATURES: &[&str] = &["sm_90a"];

const GEMM_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[CUDA_ELEMENTS, HOPPER_CU, WGMMA_TILE, WGMMA_TEXT]),
    requires: WGMMA_FEATURES,
}];

const GROUPED_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        CUDA_ELEMENTS,
        CUDA_ROUTING,
        HOPPER_CU,
        WGMMA_TILE,
        WGMMA_TEXT,
    ]),
    requires: WGMMA_FEATURES,
}];

const BLOCK_M: Tunable = Tunable {
    name: "BLOCK_M",
    values: &[128],
    default: 128,
    meaning: "rows of a tile: 64 for each warpgroup that multiplies",
};

const BLOCK_M_SMALL: Tunable = Tunable {
    values: &[64],
    default: 64,
    ..BLOCK_M
};

const BLOCK_N: Tunable = Tunable {
    name: "BLOCK_N",
    values: &[64, 128],
    default: 128,
    meaning: "columns of a tile, which share a scale",
};

const BLOCK_N_SMALL: Tunable = Tunable {
    values: &[32, 64, 128],
    default: 64,
    ..BLOCK_N
};

const STAGES: Tunable = Tunable {
    name: "STAGES",
    values: &[3, 4, 5, 6],
    default: 6,
    meaning: "blocks of 128 k in shared memory",
};

const STAGES_SMALL: Tunable = Tunable {
    values: &[4, 6, 8, 12],
    default: 8,
    ..STAGES
};

const CLUSTER: Tunable = Tunable {
    name: "CLUSTER",
    values: &[1, 2],
    default: 2,
    meaning: "blocks that share the tiles of b, where d has rows enough",
};

const WGMMA_CONSTRAINTS: &[Constraint] = &[Constraint {
    rule: "STAGES * 128 * (BLOCK_M + BLOCK_N) + 256 * BLOCK_M + 16 * STAGES <= shared memory of a block",
    holds: stages_fit,
}];

/// Warpgroups: tiles of 128 x 128.
pub(in super::super) static WGMMA_SCALED: Kernel = Kernel {
    name: "gemm_wgmma_scaled",
    summary: "warpgroups (wgmma of e4m3) fed by the copy engine (TMA), sums of 128 k scaled and added in f32, tiles of 128 x 128: products of 8-bit floats on Hopper with many tiles",
    version: 1,
    sources: GEMM_SOURCES,
    tunables: &[BLOCK_M, BLOCK_N, STAGES, CLUSTER],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_scaled_shared_memory,
};

/// As [`WGMMA_SCALED`], in tiles of 64 x 64.
pub(in super::super) static WGMMA_SCALED_SMALL: Kernel = Kernel {
    name: "gemm_wgmma_scaled_small",
    summary: "as gemm_wgmma_scaled in tiles of 64 x 64: products of 8-bit floats with few rows or columns on Hopper",
    version: 1,
    sources: GEMM_SOURCES,
    tunables: &[BLOCK_M_SMALL, BLOCK_N_SMALL, STAGES_SMALL],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_scaled_shared_memory,
};

/// As [`WGMMA_SCALED`], for grouped products.
pub(in super::super) static GROUPED_WGMMA_SCALED: Kernel = Kernel {
    name: "grouped_wgmma_scaled",
    summary: "as gemm_wgmma_scaled, rows found on the device: experts in 8-bit floats with many rows on Hopper",
    version: 1,
    sources: GROUPED_SOURCES,
    tunables: &[
        BLOCK_M,
        BLOCK_N,
        STAGES,
        Tunable {
            meaning: EXPERTS_CLUSTER,
            ..CLUSTER
        },
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_scaled_shared_memory,
};

/// As [`GROUPED_WGMMA_SCALED`], in tiles of 64 x 128.
pub(in super::super) static GROUPED_WGMMA_SCALED_SMALL: Kernel = Kernel {
    name: "grouped_wgmma_scaled_small",
    summary: "as grouped_wgmma_scaled in tiles of 64 x 128: experts in 8-bit floats with few rows on Hopper",
    version: 1,
    sources: GROUPED_SOURCES,
    tunables: &[
        BLOCK_M_SMALL,
        Tunable {
            default: 128,
            ..BLOCK_N_SMALL
        },
        STAGES_SMALL,
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_scaled_shared_memory,
};

/// Threads of a block of gemm_wgmma_scaled.cu: a warpgroup that loads, and those that multiply.
pub(in super::super) fn wgmma_scaled_threads(config: &Config) -> u32 {
    128 + 2 * config.value("BLOCK_M") as u32
}

/// The stages of gemm_wgmma_scaled.cu, its warps' buffers, and two barriers a stage.
pub(in super::super) fn wgmma_scaled_shared_memory(config: &Config) -> u64 {
    let [block_m, block_n, stages] =
        ["BLOCK_M", "BLOCK_N", "STAGES"].map(|name| config.value(name) as u64);
    stages * 128 * (block_m + block_n) + 256 * block_m + 16 * stages
}

fn stages_fit(config: &Config, info: &DeviceInfo) -> bool {
    wgmma_scaled_shared_memory(config) <= info.limits.local_memory
}
