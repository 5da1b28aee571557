//! The kernels of this folder, and what may be tuned in them.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{native, spirv};
use crate::DEPENDENT_CU;

mod ascend;
mod cuda;
mod scaled;

pub(super) use ascend::{CUBE, CUBE_LINES, GROUPED_CUBE};
pub(super) use cuda::{
    GROUPED_MMA, GROUPED_MMA_SMALL, GROUPED_WGMMA, GROUPED_WGMMA_SMALL, MMA, MMA_SMALL, SIMT,
    WGMMA, WGMMA_SMALL, mma_threads, stages, wgmma_shared_memory, wgmma_threads,
};
pub(super) use scaled::{
    GROUPED_SCALED, GROUPED_WGMMA_SCALED, GROUPED_WGMMA_SCALED_SMALL, SCALED, WGMMA_SCALED,
    WGMMA_SCALED_SMALL, wgmma_scaled_shared_memory, wgmma_scaled_threads,
};

/// The kernels of this folder.
pub(super) const KERNELS: &[&Kernel] = &[
    &NATIVE,
    &GEMV,
    &PACKED,
    &SUBGROUP,
    &TILED,
    &GEMV_LANES,
    &MATRIX,
    &SIMT,
    &WGMMA,
    &WGMMA_SMALL,
    &MMA,
    &MMA_SMALL,
    &GROUPED_NATIVE,
    &GROUPED_PACKED,
    &GROUPED_SUBGROUP,
    &GROUPED_TILED,
    &GROUPED_WGMMA,
    &GROUPED_WGMMA_SMALL,
    &GROUPED_MMA,
    &GROUPED_MMA_SMALL,
    &SCALED,
    &GROUPED_SCALED,
    &WGMMA_SCALED,
    &WGMMA_SCALED_SMALL,
    &GROUPED_WGMMA_SCALED,
    &GROUPED_WGMMA_SCALED_SMALL,
    &CUBE,
    &GROUPED_CUBE,
    &CUBE_LINES,
];

const ELEMENTS: (&str, &str) = ("elements.cl", include_str!("elements.cl"));
const BLOCKS: (&str, &str) = ("blocks.cl", include_str!("blocks.cl"));
const ROUTING: (&str, &str) = ("routing.cl", include_str!("routing.cl"));
const TILED_TEXT: (&str, &str) = ("gemm_tiled.cl", include_str!("gemm_tiled.cl"));
const CUDA_ELEMENTS: (&str, &str) = ("elements.cu", include_str!("elements.cu"));
const CUDA_BLOCKS: (&str, &str) = ("blocks.cu", include_str!("blocks.cu"));
const CUDA_ROUTING: (&str, &str) = ("routing.cu", include_str!("routing.cu"));
const TILED_CUDA: (&str, &str) = ("gemm_tiled.cu", include_str!("gemm_tiled.cu"));
const PANELS: (&str, &str) = ("panels.cl", include_str!("panels.cl"));

/// The cpu device's product.
pub(super) static NATIVE: Kernel = Kernel {
    name: "gemm_native",
    summary: "any product on the cpu device, through its matrix product service",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[("gemm", native::gemm)]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: no_local_memory,
};

/// The cpu device's grouped product.
pub(super) static GROUPED_NATIVE: Kernel = Kernel {
    name: "grouped_native",
    summary: "grouped products on the cpu device, expert after expert",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[("grouped_gemm", native::grouped_gemm)]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: no_local_memory,
};

const MR: Tunable = Tunable {
    name: "MR",
    values: &[4, 6, 8, 12],
    default: 8,
    meaning: "rows of a register tile, and width of a's panels",
};

const KC: Tunable = Tunable {
    name: "KC",
    values: &[128, 192, 256, 384, 512, 768, 1024],
    default: 512,
    meaning: "products summed in registers before they are added to the tile",
};

/// Both operands packed into panels, wide register tiles: for devices with few wide cores and caches.
pub(super) static PACKED: Kernel = Kernel {
    name: "gemm_packed",
    summary: "packed panels and float16 register tiles, one work-item a group: large products on CPU-like devices",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[
            ELEMENTS,
            BLOCKS,
            PANELS,
            ("gemm_packed.cl", include_str!("gemm_packed.cl")),
        ]),
        requires: &[],
    }],
    tunables: &[
        MR,
        KC,
        Tunable {
            name: "STRIPS",
            values: &[1, 2, 4, 8, 16, 32],
            default: 8,
            meaning: "most row strips that one group computes with the same panel of b",
        },
    ],
    constraints: &[],
    local_memory: no_local_memory,
};

/// Few rows or few columns: reads the large operand once, unpacked.
pub(super) static GEMV: Kernel = Kernel {
    name: "gemv",
    summary: "at most 8 rows or columns of one operand, the other read once as it lies: decoding",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[ELEMENTS, BLOCKS, ("gemv.cl", include_str!("gemv.cl"))]),
        requires: &[],
    }],
    tunables: &[Tunable {
        name: "CHUNK",
        values: &[512, 1024, 2048],
        default: 2048,
        meaning: "columns whose sums one group keeps in cache, where k is the large operand's outer dimension",
    }],
    constraints: &[],
    local_memory: no_local_memory,
};

/// Grouped products with b packed inside each group.
pub(super) static GROUPED_PACKED: Kernel = Kernel {
    name: "grouped_packed",
    summary: "a packed by expert, b packed inside each group, float16 register tiles: experts on CPU-like devices",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[
            ELEMENTS,
            BLOCKS,
            PANELS,
            ROUTING,
            ("grouped_packed.cl", include_str!("grouped_packed.cl")),
        ]),
        requires: &[],
    }],
    tunables: &[
        MR,
        KC,
        Tunable {
            name: "BLOCK_M",
            values: &[48, 64, 96, 128],
            default: 128,
            meaning: "rows of one expert that share a packed panel of b",
        },
    ],
    constraints: &[
        Constraint {
            rule: "BLOCK_M is a multiple of MR",
            holds: block_is_whole,
        },
        Constraint {
            rule: "MR is a multiple of 4: a's panels are stored by fours",
            holds: rows_in_fours,
        },
    ],
    local_memory: no_local_memory,
};

const SUBGROUP_TUNABLES: &[Tunable] = &[
    Tunable {
        name: "ROWS",
        values: &[8, 16, 32],
        default: 32,
        meaning: "most rows of a tile; fewer where the problem has fewer",
    },
    Tunable {
        name: "VECTORS",
        values: &[4, 8],
        default: 4,
        meaning: "columns of a tile, in units of the subgroup's lanes",
    },
];

const SUBGROUP_FEATURES: &[&str] = &[
    "shaderInt64",
    "storageBuffer16BitAccess",
    "subgroupBasic",
    "subgroupShuffle",
];

/// Tiles in the registers of a subgroup: any product, on devices whose loads and local memory are dear.
pub(super) static SUBGROUP: Kernel = Kernel {
    name: "gemm_subgroup",
    summary: "a register tile a subgroup, operands as they lie, no workspace: any product on CPU-like Vulkan devices",
    version: 1,
    sources: &[
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::SUBGROUP_16),
            requires: SUBGROUP_FEATURES,
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::SUBGROUP),
            requires: &["subgroupBasic", "subgroupShuffle"],
        },
    ],
    tunables: SUBGROUP_TUNABLES,
    constraints: &[],
    local_memory: no_local_memory,
};

/// As [`SUBGROUP`], for grouped products.
pub(super) static GROUPED_SUBGROUP: Kernel = Kernel {
    name: "grouped_subgroup",
    summary: "a register tile a subgroup, rows found on the device, weights as they lie: experts on CPU-like Vulkan devices",
    version: 1,
    sources: &[
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GROUPED_SUBGROUP_16),
            requires: SUBGROUP_FEATURES,
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GROUPED_SUBGROUP),
            requires: &["subgroupBasic", "subgroupShuffle"],
        },
    ],
    tunables: SUBGROUP_TUNABLES,
    constraints: &[],
    local_memory: no_local_memory,
};

const TILED_TUNABLES: &[Tunable] = &[
    Tunable {
        name: "GROUP",
        values: &[8, 16],
        default: 16,
        meaning: "work-items along each side of a work-group",
    },
    Tunable {
        name: "PER_ITEM",
        values: &[2, 4, 8],
        default: 4,
        meaning: "sums of one work-item along each side",
    },
    Tunable {
        name: "TILE_K",
        values: &[8, 16, 32],
        default: 16,
        meaning: "k that lie in local memory at once",
    },
];

const TILED_CONSTRAINTS: &[Constraint] = &[Constraint {
    rule: "GROUP * GROUP <= max work-group size, GROUP <= max size along each dimension",
    holds: group_fits,
}];

/// Tiles in local memory: any product, on devices with many narrow lanes.
pub(super) static TILED: Kernel = Kernel {
    name: "gemm_tiled",
    summary: "tiles in local memory, a register tile a work-item, no workspace: any product on GPU-like devices",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[ELEMENTS, BLOCKS, TILED_TEXT]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[CUDA_ELEMENTS, CUDA_BLOCKS, TILED_CUDA]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::TILED_DOT),
            requires: &["shaderIntegerDotProduct", "storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::TILED_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::TILED),
            requires: &[],
        },
    ],
    tunables: TILED_TUNABLES,
    constraints: TILED_CONSTRAINTS,
    local_memory: tiles,
};

/// As [`TILED`], for grouped products.
pub(super) static GROUPED_TILED: Kernel = Kernel {
    name: "grouped_tiled",
    summary: "tiles in local memory, rows found on the device: experts on GPU-like devices",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[ELEMENTS, BLOCKS, ROUTING, TILED_TEXT]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[
                CUDA_ELEMENTS,
                CUDA_BLOCKS,
                DEPENDENT_CU,
                CUDA_ROUTING,
                TILED_CUDA,
            ]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GROUPED_TILED_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GROUPED_TILED),
            requires: &[],
        },
    ],
    tunables: TILED_TUNABLES,
    constraints: TILED_CONSTRAINTS,
    local_memory: tiles,
};

/// Few rows or few columns, on devices with many narrow lanes: neighbouring lanes read neighbouring bytes.
pub(super) static GEMV_LANES: Kernel = Kernel {
    name: "gemv_lanes",
    summary: "at most 8 rows or columns of one operand, the other read once by neighbouring lanes: decoding on GPU-like devices",
    version: 1,
    sources: &[
        Source {
            language: Language::CudaC,
            code: Code::Text(&[
                CUDA_ELEMENTS,
                CUDA_BLOCKS,
                ("gemv_lanes.cu", include_str!("gemv_lanes.cu")),
            ]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GEMV_LANES_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::GEMV_LANES),
            requires: &[],
        },
    ],
    tunables: &[
        Tunable {
            name: "GROUP",
            values: &[64, 128, 256, 512],
            default: 256,
            meaning: "work-items of a work-group",
        },
        Tunable {
            name: "LANES",
            values: &[16, 32, 64],
            default: 32,
            meaning: "work-items that share a row of the large operand; half as many where its rows lie side by side",
        },
    ],
    constraints: &[
        Constraint {
            rule: "GROUP <= max work-group size, along the first dimension too",
            holds: line_fits,
        },
        Constraint {
            rule: "LANES <= 32 in CUDA: a team lies in a warp",
            holds: team_lies_in_a_warp,
        },
    ],
    local_memory: line_of_sums,
};

/// Matrix units of Vulkan devices: f16 summed in f32. Which of a device's shapes, and how many work-items, the planner says.
pub(super) static MATRIX: Kernel = Kernel {
    name: "gemm_matrix",
    summary: "matrix units (KHR_cooperative_matrix), tiles in local memory, no workspace: products of f16",
    version: 1,
    sources: &[Source {
        language: Language::SpirV,
        code: Code::Binaries(spirv::MATRIX),
        requires: &[
            "cooperativeMatrix",
            "shaderFloat16",
            "storageBuffer16BitAccess",
            "subgroupBasic",
            "vulkanMemoryModel",
        ],
    }],
    tunables: &[
        Tunable {
            name: "MATRICES",
            values: &[2, 4],
            default: 4,
            meaning: "matrices of one subgroup along each side",
        },
        Tunable {
            name: "TILE_K",
            values: &[32],
            default: 32,
            meaning: "k that lie in local memory at once",
        },
    ],
    constraints: &[],
    local_memory: matrix_tiles,
};

/// The longest side of a shape that [`MATRIX`] takes.
pub(super) const MATRIX_SIDE: u32 = 16;

fn matrix_tiles(config: &Config) -> u64 {
    let side = u64::from(MATRIX_SIDE);
    let lines = 2 * 2 * config.value("MATRICES") as u64 * side;
    2 * lines * (config.value("TILE_K") as u64 + 8) + 4 * 4 * 2 * side * side
}

fn line_fits(config: &Config, info: &DeviceInfo) -> bool {
    let group = config.value("GROUP") as u32;
    group <= info.limits.max_group_size && group <= info.limits.max_group[0]
}

fn team_lies_in_a_warp(config: &Config, info: &DeviceInfo) -> bool {
    config.value("LANES") <= 32 || !info.languages.contains(&Language::CudaC)
}

fn line_of_sums(config: &Config) -> u64 {
    4 * 8 * config.value("GROUP") as u64
}

fn tiles(config: &Config) -> u64 {
    let side = (config.value("GROUP") * config.value("PER_ITEM")) as u64 + 1;
    2 * 4 * side * config.value("TILE_K") as u64
}

fn group_fits(config: &Config, info: &DeviceInfo) -> bool {
    let group = config.value("GROUP") as u32;
    let [x, y, _] = info.limits.max_group;
    group * group <= info.limits.max_group_size && group <= x && group <= y
}

fn no_local_memory(_: &Config) -> u64 {
    0
}

fn rows_in_fours(config: &Config, _: &DeviceInfo) -> bool {
    config.value("MR") % 4 == 0
}

fn block_is_whole(config: &Config, _: &DeviceInfo) -> bool {
    config.value("BLOCK_M") % config.value("MR") == 0
}
