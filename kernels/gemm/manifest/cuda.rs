//! The kernels that exist in CUDA C only.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{CUDA_BLOCKS, CUDA_ELEMENTS, CUDA_ROUTING, TILED_CONSTRAINTS, TILED_CUDA};
use crate::{DEPENDENT_CU, HOPPER_CU};

/// As [`super::TILED`], with tiles of 128 x 128.
pub(in super::super) static SIMT: Kernel = Kernel {
    name: "gemm_simt",
    summary: "tiles of 128 x 128 in shared memory, 64 sums a thread: large products on CUDA cores",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[CUDA_ELEMENTS, CUDA_BLOCKS, TILED_CUDA]),
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

const MATRIX: (&str, &str) = ("matrix.cu", include_str!("../../matrix.cu"));
const MMA_TEXT: (&str, &str) = ("mma.cu", include_str!("../mma.cu"));

const REDUCE: (&str, &str) = ("reduce.cu", include_str!("../reduce.cu"));

/// sm_80 has `cp.async`, and `mma.sync` of bf16 and of 32 i8.
const MMA_FEATURES: &[&str] = &["sm_80"];

const GEMM_MMA_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        CUDA_ELEMENTS,
        DEPENDENT_CU,
        MATRIX,
        MMA_TEXT,
        ("gemm_mma.cu", include_str!("../gemm_mma.cu")),
        REDUCE,
    ]),
    requires: MMA_FEATURES,
}];

const GROUPED_MMA_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        CUDA_ELEMENTS,
        DEPENDENT_CU,
        CUDA_ROUTING,
        MATRIX,
        MMA_TEXT,
        ("grouped_mma.cu", include_str!("../grouped_mma.cu")),
    ]),
    requires: MMA_FEATURES,
}];

const fn tunable(
    name: &'static str,
    values: &'static [i64],
    default: i64,
    meaning: &'static str,
) -> Tunable {
    Tunable {
        name,
        values,
        default,
        meaning,
    }
}

/// The tunables of mma.cu with these defaults: BLOCK_M, BLOCK_N, BLOCK_K, WARPS_M, WARPS_N, STAGES.
const fn mma_tunables(defaults: [i64; 6]) -> [Tunable; 6] {
    let [block_m, block_n, block_k, warps_m, warps_n, stages] = defaults;
    [
        tunable(
            "BLOCK_M",
            &[16, 32, 64, 128, 256],
            block_m,
            "rows of a tile",
        ),
        tunable("BLOCK_N", &[64, 128, 256], block_n, "columns of a tile"),
        tunable(
            "BLOCK_K",
            &[32, 64],
            block_k,
            "k in a stage of shared memory, in units of two bytes",
        ),
        tunable("WARPS_M", &[1, 2, 4], warps_m, "warps along a tile's rows"),
        tunable(
            "WARPS_N",
            &[1, 2, 4],
            warps_n,
            "warps along a tile's columns",
        ),
        tunable(
            "STAGES",
            &[2, 3, 4, 5],
            stages,
            "stages of shared memory: all but one are on their way",
        ),
    ]
}

const MMA_CONSTRAINTS: &[Constraint] = &[
    Constraint {
        rule: "a warp's rows and columns are multiples of 16",
        holds: warps_are_whole,
    },
    Constraint {
        rule: "sums of a thread + 4 * its chunks of a stage + 96 <= min(256, 65536 / threads), the registers that it has",
        holds: registers_suffice,
    },
    Constraint {
        rule: "32 * WARPS_M * WARPS_N <= max work-group size",
        holds: warps_fit,
    },
];

/// Matrix units: tiles of 128 x 128.
pub(in super::super) static MMA: Kernel = Kernel {
    name: "gemm_mma",
    summary: "matrix units (mma.sync), a ring of stages filled by cp.async: products of f16, bf16 and i8 with many tiles",
    version: 1,
    sources: GEMM_MMA_SOURCES,
    tunables: &mma_tunables([128, 128, 32, 2, 2, 4]),
    constraints: MMA_CONSTRAINTS,
    local_memory: stages,
};

/// As [`MMA`], in tiles of 64 x 64.
pub(in super::super) static MMA_SMALL: Kernel = Kernel {
    name: "gemm_mma_small",
    summary: "as gemm_mma in tiles of 64 x 64, and k split where even those are few: products with few rows or columns",
    version: 1,
    sources: GEMM_MMA_SOURCES,
    tunables: &mma_tunables([64, 64, 64, 2, 2, 4]),
    constraints: MMA_CONSTRAINTS,
    local_memory: stages,
};

/// As [`MMA`], for grouped products.
pub(in super::super) static GROUPED_MMA: Kernel = Kernel {
    name: "grouped_mma",
    summary: "matrix units (mma.sync), rows found on the device, tiles of 128 x 128: experts with many rows in f16 and bf16",
    version: 1,
    sources: GROUPED_MMA_SOURCES,
    tunables: &mma_tunables([128, 128, 32, 2, 2, 4]),
    constraints: MMA_CONSTRAINTS,
    local_memory: stages,
};

/// As [`GROUPED_MMA`], in tiles of 16 x 128.
pub(in super::super) static GROUPED_MMA_SMALL: Kernel = Kernel {
    name: "grouped_mma_small",
    summary: "as grouped_mma in tiles of 16 x 128: experts with few rows",
    version: 1,
    sources: GROUPED_MMA_SOURCES,
    tunables: &mma_tunables([16, 128, 64, 1, 4, 4]),
    constraints: MMA_CONSTRAINTS,
    local_memory: stages,
};

/// Registers of a multiprocessor.
const REGISTERS: i64 = 65_536;
/// Registers of a thread beside its sums and chunks, as ptxas gives them.
const OTHER_REGISTERS: i64 = 96;

fn warp_tile(config: &Config) -> [i64; 2] {
    [
        config.value("BLOCK_M") / config.value("WARPS_M"),
        config.value("BLOCK_N") / config.value("WARPS_N"),
    ]
}

/// Threads of a block of mma.cu.
pub(in super::super) fn mma_threads(config: &Config) -> i64 {
    32 * config.value("WARPS_M") * config.value("WARPS_N")
}

fn warps_are_whole(config: &Config, _: &DeviceInfo) -> bool {
    warp_tile(config).iter().all(|side| side % 16 == 0)
}

fn registers_suffice(config: &Config, _: &DeviceInfo) -> bool {
    let [rows, columns] = warp_tile(config);
    let threads = mma_threads(config);
    let stage = (config.value("BLOCK_M") + config.value("BLOCK_N")) * config.value("BLOCK_K") / 8;
    let chunks = (stage as u64).div_ceil(threads as u64) as i64;
    rows * columns / 32 + 4 * chunks + OTHER_REGISTERS <= 256.min(REGISTERS / threads)
}

fn warps_fit(config: &Config, info: &DeviceInfo) -> bool {
    let threads = mma_threads(config) as u32;
    threads <= info.limits.max_group_size && threads <= info.limits.max_group[0]
}

/// The stages of mma.cu, or what its sums need on their way to d, if that is more.
pub(in super::super) fn stages(config: &Config) -> u64 {
    let stage = 2 * (config.value("BLOCK_M") + config.value("BLOCK_N")) * config.value("BLOCK_K");
    let [_, columns] = warp_tile(config);
    let sums = mma_threads(config) / 32 * 16 * (columns + 8) * 4;
    (config.value("STAGES") * stage).max(sums) as u64
}

/// What all products by warpgroups have in common.
pub(super) const WGMMA_TILE: (&str, &str) = ("wgmma_tile.cu", include_str!("../wgmma_tile.cu"));
const WGMMA_TEXT: (&str, &str) = ("wgmma.cu", include_str!("../wgmma.cu"));

/// TMA, wgmma and setmaxnreg.
const WGMMA_FEATURES: &[&str] = &["sm_90a"];

const GEMM_WGMMA_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        CUDA_ELEMENTS,
        DEPENDENT_CU,
        HOPPER_CU,
        WGMMA_TILE,
        WGMMA_TEXT,
        ("gemm_wgmma.cu", include_str!("../gemm_wgmma.cu")),
        REDUCE,
    ]),
    requires: WGMMA_FEATURES,
}];

const GROUPED_WGMMA_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        CUDA_ELEMENTS,
        DEPENDENT_CU,
        CUDA_ROUTING,
        HOPPER_CU,
        WGMMA_TILE,
        WGMMA_TEXT,
        ("grouped_wgmma.cu", include_str!("../grouped_wgmma.cu")),
    ]),
    requires: WGMMA_FEATURES,
}];

const BLOCK_M_MEANING: &str = "rows of a tile: 64 for each warpgroup that multiplies";
const BLOCK_N: Tunable = tunable("BLOCK_N", &[128, 256], 256, "columns of a tile");
/// What the blocks of a cluster share in grouped products.
pub(super) const EXPERTS_CLUSTER: &str =
    "blocks that share the rows of a, where d has columns enough";
const STAGES_MEANING: &str = "slices of 64 k in shared memory";

const WGMMA_CONSTRAINTS: &[Constraint] = &[
    Constraint {
        rule: "128 threads of 40 registers and 2 * BLOCK_M of 232 (BLOCK_M 64: all of 248) <= 65536, of which a consumer needs BLOCK_N / 2 + 96",
        holds: warpgroups_suffice,
    },
    Constraint {
        rule: "STAGES * 128 * (BLOCK_M + BLOCK_N) + 256 * BLOCK_M + 16 * STAGES <= shared memory of a block",
        holds: wgmma_fits,
    },
];

/// Warpgroups: tiles of 128 x 256.
pub(in super::super) static WGMMA: Kernel = Kernel {
    name: "gemm_wgmma",
    summary: "warpgroups (wgmma) fed by the copy engine (TMA), blocks that stay and walk tiles of 128 x 256: products of f16 and bf16 on Hopper with many tiles",
    version: 1,
    sources: GEMM_WGMMA_SOURCES,
    tunables: &[
        tunable("BLOCK_M", &[128], 128, BLOCK_M_MEANING),
        BLOCK_N,
        tunable("STAGES", &[3, 4, 5, 6], 4, STAGES_MEANING),
        tunable(
            "CLUSTER",
            &[1, 2],
            2,
            "blocks that share the tiles of b, where d has rows enough",
        ),
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_shared_memory,
};

/// As [`WGMMA`], in tiles of 64 x 128.
pub(in super::super) static WGMMA_SMALL: Kernel = Kernel {
    name: "gemm_wgmma_small",
    summary: "as gemm_wgmma in tiles of 64 x 128, and k split where even those are few: products with few rows or columns on Hopper",
    version: 1,
    sources: GEMM_WGMMA_SOURCES,
    tunables: &[
        tunable("BLOCK_M", &[64], 64, BLOCK_M_MEANING),
        tunable("BLOCK_N", &[128, 256], 128, "columns of a tile"),
        tunable("STAGES", &[3, 4, 5, 6, 8], 8, STAGES_MEANING),
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_shared_memory,
};

/// As [`WGMMA`], for grouped products.
pub(in super::super) static GROUPED_WGMMA: Kernel = Kernel {
    name: "grouped_wgmma",
    summary: "warpgroups (wgmma) fed by the copy engine (TMA), rows found on the device, tiles of 128 x 256: experts with many rows on Hopper",
    version: 1,
    sources: GROUPED_WGMMA_SOURCES,
    tunables: &[
        tunable("BLOCK_M", &[128], 128, BLOCK_M_MEANING),
        BLOCK_N,
        tunable("STAGES", &[3, 4, 5, 6], 4, STAGES_MEANING),
        tunable("CLUSTER", &[1, 2], 2, EXPERTS_CLUSTER),
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_shared_memory,
};

/// As [`GROUPED_WGMMA`], in tiles of 64 x 128.
pub(in super::super) static GROUPED_WGMMA_SMALL: Kernel = Kernel {
    name: "grouped_wgmma_small",
    summary: "as grouped_wgmma in tiles of 64 x 128: experts with few rows",
    version: 1,
    sources: GROUPED_WGMMA_SOURCES,
    tunables: &[
        tunable("BLOCK_M", &[64], 64, BLOCK_M_MEANING),
        tunable("BLOCK_N", &[128, 256], 128, "columns of a tile"),
        tunable("STAGES", &[3, 4, 5, 6, 8], 8, STAGES_MEANING),
    ],
    constraints: WGMMA_CONSTRAINTS,
    local_memory: wgmma_shared_memory,
};

/// Threads of a warpgroup.
const WARPGROUP: i64 = 128;

/// Warpgroups that multiply.
fn consumers(config: &Config) -> i64 {
    config.value("BLOCK_M") / 64
}

/// Threads of a block of wgmma.cu.
pub(in super::super) fn wgmma_threads(config: &Config) -> i64 {
    WARPGROUP * (1 + consumers(config))
}

/// Registers of a thread, of the producer and of the others. Beside one consumer the producer need give none up.
fn warpgroups_suffice(config: &Config, _: &DeviceInfo) -> bool {
    let [producer, consumer] = match consumers(config) {
        1 => [248, 248],
        _ => [40, 232],
    };
    WARPGROUP * (producer + consumers(config) * consumer) <= REGISTERS
        && config.value("BLOCK_N") / 2 + OTHER_REGISTERS <= consumer
}

/// The stages of wgmma.cu, two buffers of 16 rows for each warp that stores, and two barriers a stage.
pub(in super::super) fn wgmma_shared_memory(config: &Config) -> u64 {
    let [block_m, block_n, stages] =
        ["BLOCK_M", "BLOCK_N", "STAGES"].map(|name| config.value(name));
    (stages * 128 * (block_m + block_n) + 256 * block_m + 16 * stages) as u64
}

fn wgmma_fits(config: &Config, info: &DeviceInfo) -> bool {
    wgmma_shared_memory(config) <= info.limits.local_memory
}
