//! The kernels of this folder, their tunables and what they need.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{native, spirv};
use crate::{DEPENDENT_CU, LINES};

/// The kernels of this folder.
pub(super) const KERNELS: &[&Kernel] = &[
    &MOE_ROUTE,
    &MOE_ROUTE_LANES,
    &MOE_ROUTE_WARP,
    &MOE_ROUTE_GROUP,
    &MOE_ROUTE_VECTOR,
    &EXPERT_ROWS,
    &EXPERT_ROWS_LANES,
    &EXPERT_ROWS_GROUP,
    &EXPERT_ROWS_VECTOR,
    &EXPERT_ROWS_NATIVE,
    &MOE_EXPERTS,
    &MOE_EXPERTS_NATIVE,
];

/// Experts whose counters and scores a kernel has room for, if the planner has not set it yet.
const DEFAULT_CAPACITY: i64 = 512;

/// The constant that sizes the arrays over experts: a power of two, so that models share compiled kernels.
pub(super) fn experts_capacity(experts: u64) -> i64 {
    experts.max(16).next_power_of_two() as i64
}

fn capacity(config: &Config) -> u64 {
    config.get("EXPERTS_CAPACITY").unwrap_or(DEFAULT_CAPACITY) as u64
}

fn value(config: &Config, name: &str) -> u64 {
    config.get(name).unwrap_or(0) as u64
}

const ROUTE_CL: Code = Code::Text(&[("route.cl", include_str!("route.cl"))]);
const ROWS_CL: Code = Code::Text(&[("rows.cl", include_str!("rows.cl"))]);

const ROUTE_WARP_CU: Code = Code::Text(&[
    DEPENDENT_CU,
    ("route.cu", include_str!("route.cu")),
    ("route_warp.cu", include_str!("route_warp.cu")),
]);
const ROUTE_GROUP_CU: Code = Code::Text(&[
    DEPENDENT_CU,
    ("route.cu", include_str!("route.cu")),
    ("route_group.cu", include_str!("route_group.cu")),
]);
const ROWS_CU: Code = Code::Text(&[DEPENDENT_CU, ("rows.cu", include_str!("rows.cu"))]);

/// `redux.sync` and the conversion to bf16 begin with 8.0.
const fn cuda(code: Code) -> Source {
    Source {
        language: Language::CudaC,
        code,
        requires: &["sm_80"],
    }
}

/// What a CUDA kernel may declare of shared memory; more would have to be asked for at each launch.
const CUDA_SHARED_MEMORY: u64 = 48 << 10;

fn takes_cuda(info: &DeviceInfo) -> bool {
    info.languages.first() == Some(&Language::CudaC)
}

/// `moe_route`, one work-item (or task) a token.
pub(super) static MOE_ROUTE: Kernel = Kernel {
    name: "moe_route",
    summary: "routing with one work-item a token and float16 vectors over the experts, for CPUs",
    version: 1,
    sources: &[
        Source {
            language: Language::Native,
            code: Code::Native(&[("moe_route", native::moe_route)]),
            requires: &[],
        },
        Source {
            language: Language::OpenClC,
            code: ROUTE_CL,
            requires: &[],
        },
    ],
    tunables: &[],
    constraints: &[Constraint {
        rule: "at most 16384 experts, whose scores a work-item keeps to itself",
        holds: |config, info| {
            capacity(config) <= 16_384 || info.languages.first() == Some(&Language::Native)
        },
    }],
    local_memory: |_| 0,
};

/// A source for vector cores, with the lines that they load and store.
const fn ascend(code: Code) -> [Source; 1] {
    [Source {
        language: Language::AscendC,
        code,
        requires: &[],
    }]
}

/// The most experts that `moe_route_vector` chooses for a token.
pub(super) const VECTOR_TOPK: u64 = 512;

/// `moe_route`, a line of local memory a token.
pub(super) static MOE_ROUTE_VECTOR: Kernel = Kernel {
    name: "moe_route_vector",
    summary: "routing of at most 512 among at most 2048 experts a token with up to 32 tokens an instruction, for Ascend's vector cores",
    version: 1,
    sources: &ascend(Code::Text(&[
        LINES,
        ("route.asc", include_str!("route.asc")),
    ])),
    tunables: &[],
    constraints: &[Constraint {
        rule: "at most 2048 experts, whose scores are in local memory six times over",
        holds: |config, _| capacity(config) <= 2048,
    }],
    local_memory: |_| 0,
};

/// The most experts that `moe_route_lanes` chooses for a token, and the most groups it chooses among.
pub(super) const LANES_TOPK: u64 = 16;
pub(super) const LANES_GROUPS: u64 = 32;

/// `moe_route`, one lane of a vector a token.
pub(super) static MOE_ROUTE_LANES: Kernel = Kernel {
    name: "moe_route_lanes",
    summary: "routing of at most 16 experts a token, with one narrow work-item a token, for CPUs whose driver makes vectors of them",
    version: 1,
    sources: &[
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROUTE_LANES_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROUTE_LANES),
            requires: &[],
        },
    ],
    tunables: &[Tunable {
        name: "ROUTE_GROUP",
        values: &[8, 16, 32, 64],
        default: 8,
        meaning: "tokens of a work-group",
    }],
    constraints: &[],
    local_memory: |_| 0,
};

/// The most experts that `moe_route_warp` chooses for a token, and the most it chooses among.
pub(super) const WARP_TOPK: u64 = 32;
const WARP_EXPERTS: u64 = 512;

/// `moe_route`, one warp a token.
pub(super) static MOE_ROUTE_WARP: Kernel = Kernel {
    name: "moe_route_warp",
    summary: "routing of at most 32 among at most 512 experts a token with one warp a token, keys in registers, for CUDA",
    version: 1,
    sources: &[cuda(ROUTE_WARP_CU)],
    tunables: &[Tunable {
        name: "ROUTE_GROUP",
        values: &[32, 64, 128, 256],
        default: 128,
        meaning: "threads of a block, 32 a token",
    }],
    constraints: &[
        Constraint {
            rule: "at most 512 experts, whose scores the lanes of a warp keep in registers",
            holds: |config, _| capacity(config) <= WARP_EXPERTS,
        },
        Constraint {
            rule: "ROUTE_GROUP <= max work-group size",
            holds: |config, info| group_fits(config, info, "ROUTE_GROUP"),
        },
    ],
    local_memory: |config| value(config, "ROUTE_GROUP") / 32 * 8 * capacity(config),
};

/// `moe_route`, one work-group a token.
pub(super) static MOE_ROUTE_GROUP: Kernel = Kernel {
    name: "moe_route_group",
    summary: "routing with one work-group a token and ranks in local memory, for GPUs",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: ROUTE_CL,
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROUTE_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROUTE),
            requires: &[],
        },
        cuda(ROUTE_GROUP_CU),
    ],
    tunables: &[Tunable {
        name: "ROUTE_GROUP",
        values: &[32, 64, 128, 256],
        default: 64,
        meaning: "work-items that share a token",
    }],
    constraints: &[
        Constraint {
            rule: "ROUTE_GROUP <= max work-group size",
            holds: |config, info| group_fits(config, info, "ROUTE_GROUP"),
        },
        Constraint {
            rule: "at most 48 KiB of shared memory in CUDA",
            holds: |config, info| {
                !takes_cuda(info) || route_group_memory(config) <= CUDA_SHARED_MEMORY
            },
        },
    ],
    local_memory: route_group_memory,
};

fn route_group_memory(config: &Config) -> u64 {
    12 * capacity(config) + 8 * value(config, "ROUTE_GROUP")
}

const fn permute_tile(default: i64) -> Tunable {
    Tunable {
        name: "PERMUTE_TILE",
        values: &[256, 1024, 4096, 16384],
        default,
        meaning: "ids that one work-group counts and places",
    }
}

/// The permutation and the movement of rows with groups of one wide work-item.
pub(super) static EXPERT_ROWS: Kernel = Kernel {
    name: "expert_rows",
    summary: "counting sort by expert, row copy and weighted sum with one wide work-item a group, for CPUs",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: ROWS_CL,
        requires: &[],
    }],
    tunables: &[
        Tunable {
            name: "PERMUTE_GROUP",
            values: &[1],
            default: 1,
            meaning: "work-items that share a tile of ids",
        },
        permute_tile(4096),
        Tunable {
            name: "ROW_GROUP",
            values: &[1],
            default: 1,
            meaning: "work-items that share a block of columns",
        },
        Tunable {
            name: "ROW_VECTOR",
            values: &[8, 16],
            default: 16,
            meaning: "elements a work-item moves at once",
        },
        Tunable {
            name: "ROW_UNROLL",
            values: &[2, 4, 8, 16],
            default: 8,
            meaning: "vectors that a work-item moves or sums at once",
        },
        Tunable {
            name: "ROW_BLOCK",
            values: &[512, 1024, 2048, 4096],
            default: 2048,
            meaning: "columns of a block",
        },
        Tunable {
            name: "STREAM_KIB",
            values: &[0, 256, 1024, 4096],
            default: 1024,
            meaning: "KiB of rows from which on they are stored past the caches; 0: never",
        },
    ],
    constraints: &[],
    local_memory: rows_local_memory,
};

const ROWS_SPIRV: [Source; 2] = [
    Source {
        language: Language::SpirV,
        code: Code::Binaries(spirv::ROWS_16),
        requires: &["shaderInt64", "storageBuffer16BitAccess"],
    },
    Source {
        language: Language::SpirV,
        code: Code::Binaries(spirv::ROWS),
        requires: &[],
    },
];

/// The permutation and the movement of rows with groups of a few lanes.
pub(super) static EXPERT_ROWS_LANES: Kernel = Kernel {
    name: "expert_rows_lanes",
    summary: "counting sort by expert, row copy and weighted sum with a few narrow work-items a group, for CPUs whose driver makes one \
              vector of them",
    version: 1,
    sources: &ROWS_SPIRV,
    tunables: &[
        Tunable {
            name: "PERMUTE_GROUP",
            values: &[8, 16],
            default: 8,
            meaning: "work-items that share a tile of ids",
        },
        permute_tile(1024),
        Tunable {
            name: "ROW_GROUP",
            values: &[8, 16],
            default: 8,
            meaning: "work-items that share a block of columns",
        },
        Tunable {
            name: "ROW_BLOCK",
            values: &[512, 1024, 2048, 4096],
            default: 2048,
            meaning: "columns of a block",
        },
    ],
    constraints: &[],
    local_memory: rows_local_memory,
};

/// The permutation and the movement of rows with groups of many work-items.
pub(super) static EXPERT_ROWS_GROUP: Kernel = Kernel {
    name: "expert_rows_group",
    summary: "counting sort by expert, row copy and weighted sum with many narrow work-items a group, for GPUs",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: ROWS_CL,
            requires: &[],
        },
        ROWS_SPIRV[0],
        ROWS_SPIRV[1],
        cuda(ROWS_CU),
    ],
    tunables: &[
        Tunable {
            name: "PERMUTE_GROUP",
            values: &[32, 64, 128, 256],
            default: 64,
            meaning: "work-items that share a tile of ids",
        },
        permute_tile(1024),
        Tunable {
            name: "ROW_GROUP",
            values: &[32, 64, 128, 256],
            default: 64,
            meaning: "work-items that share a block of columns",
        },
        Tunable {
            name: "ROW_VECTOR",
            values: &[4, 8],
            default: 4,
            meaning: "elements a work-item moves at once; in CUDA, accesses of 16 bytes",
        },
        Tunable {
            name: "ROW_UNROLL",
            values: &[1, 2],
            default: 1,
            meaning: "vectors (in CUDA: times ROW_VECTOR accesses) that a work-item moves or sums at once",
        },
        Tunable {
            name: "ROW_BLOCK",
            values: &[512, 1024, 2048, 4096],
            default: 2048,
            meaning: "columns of a block",
        },
    ],
    constraints: &[
        Constraint {
            rule: "PERMUTE_GROUP and ROW_GROUP <= max work-group size",
            holds: |config, info| {
                group_fits(config, info, "PERMUTE_GROUP") && group_fits(config, info, "ROW_GROUP")
            },
        },
        Constraint {
            rule: "at most 8192 experts in CUDA, whose counters take 32 KiB of shared memory",
            holds: |config, info| !takes_cuda(info) || capacity(config) <= 8192,
        },
    ],
    local_memory: rows_local_memory,
};

/// The permutation and the movement of rows on vector cores.
pub(super) static EXPERT_ROWS_VECTOR: Kernel = Kernel {
    name: "expert_rows_vector",
    summary: "ids picked out by expert, row copy and weighted sum, for Ascend's vector cores",
    version: 1,
    sources: &ascend(Code::Text(&[LINES, ("rows.asc", include_str!("rows.asc"))])),
    tunables: &[],
    constraints: &[Constraint {
        rule: "at most 32768 experts, shared out to all vector cores by at most 1024",
        holds: |config, _| capacity(config) <= 32_768,
    }],
    local_memory: |_| 0,
};

fn rows_local_memory(config: &Config) -> u64 {
    4 * capacity(config) + 4 * value(config, "PERMUTE_GROUP")
}

fn group_fits(config: &Config, info: &DeviceInfo, name: &str) -> bool {
    let size = value(config, name);
    size <= info.limits.max_group_size.into() && size <= info.limits.max_group[0].into()
}

/// `expert_scatter` and `expert_gather` on the cpu device.
pub(super) static EXPERT_ROWS_NATIVE: Kernel = Kernel {
    name: "expert_rows_native",
    summary: "counting sort by expert, row copy and weighted sum on the cpu device's threads",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[
            ("expert_scatter", native::expert_scatter),
            ("expert_permute", native::expert_permute),
            ("expert_invert_few", native::expert_invert),
            ("expert_combine", native::expert_combine),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// The experts of `moe_ffn` over weights read in place.
pub(super) static MOE_EXPERTS: Kernel = Kernel {
    name: "moe_experts",
    summary: "gathered panels times unpacked weights, rows in the vector lanes, swiglu in between, for CPUs",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[("experts.cl", include_str!("experts.cl"))]),
        requires: &[],
    }],
    tunables: &[
        Tunable {
            name: "DOT_ROWS",
            values: &[0, 2, 4, 8],
            default: 4,
            meaning: "the most rows of an expert that are multiplied as dot products",
        },
        Tunable {
            name: "WEIGHT_ROWS",
            values: &[8, 16, 32, 64],
            default: 16,
            meaning: "weight rows a work-item takes",
        },
        Tunable {
            name: "K_CHUNK",
            values: &[128, 256, 512],
            default: 512,
            meaning: "k of f16 and bf16 weights that are widened at once",
        },
    ],
    constraints: &[],
    local_memory: |_| 0,
};

/// The experts of `moe_ffn` on the cpu device.
pub(super) static MOE_EXPERTS_NATIVE: Kernel = Kernel {
    name: "moe_experts_native",
    summary: "gathered rows times each expert's weights, swiglu in between, on the cpu device's threads",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[("moe_experts", native::moe_experts)]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};
