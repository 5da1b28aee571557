//! The kernels of this folder, their tunables and what they need.

use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{native, spirv};

mod ascend;
mod cuda;

pub(super) use ascend::{ATTENTION_CUBE, ATTENTION_FUSED, ATTENTION_PACK, ATTENTION_VECTOR};
pub(super) use cuda::{
    ATTENTION_LATENT, ATTENTION_MMA, ATTENTION_MMA_FEW, ATTENTION_WGMMA, LATENT_DYNAMIC_MEMORY,
    mma_local_memory, mma_rows, mma_threads, wgmma_dynamic_memory, wgmma_local_memory,
    wgmma_threads, wgmma_value_panel,
};

/// The kernels of this folder.
pub(super) const KERNELS: &[&Kernel] = &[
    &ATTENTION_ROWS,
    &ATTENTION_KEYS,
    &ATTENTION_PREFILL,
    &ATTENTION_DECODE,
    &ATTENTION_MMA,
    &ATTENTION_MMA_FEW,
    &ATTENTION_WGMMA,
    &ATTENTION_LATENT,
    &ATTENTION_TILED,
    &ATTENTION_MERGE,
    &ATTENTION_NATIVE,
    &ATTENTION_FUSED,
    &ATTENTION_CUBE,
    &ATTENTION_VECTOR,
    &ATTENTION_PACK,
];

const SHARED_CL: (&str, &str) = ("attention.cl", include_str!("attention.cl"));
const SHARED_CU: (&str, &str) = ("attention.cu", include_str!("attention.cu"));

const SPLIT_KEYS: Tunable = Tunable {
    name: "SPLIT_KEYS",
    values: &[128, 256, 512, 1024, 2048],
    default: 512,
    meaning: "keys in a split, where the keys of few rows are divided among work-groups",
};

const KEY_BLOCK: Tunable = Tunable {
    name: "KEY_BLOCK",
    values: &[16, 32, 64],
    default: 64,
    meaning: "keys between two rescalings of the sums",
};

/// Of `attention_decode`, which copies a block's values: at 64 keys of 128 columns the copy alone is a level 1 cache.
const FEW_KEY_BLOCK: Tunable = Tunable {
    default: 16,
    ..KEY_BLOCK
};

/// Many rows, one wide work-item a group.
pub(super) static ATTENTION_PREFILL: Kernel = Kernel {
    name: "attention_prefill",
    summary: "blocks of rows in the lanes of one wide work-item, keys and values packed for all of them, for CPUs",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[
            SHARED_CL,
            ("attention_prefill.cl", include_str!("attention_prefill.cl")),
        ]),
        requires: &[],
    }],
    tunables: &[
        SPLIT_KEYS,
        KEY_BLOCK,
        Tunable {
            name: "ROW_GROUPS",
            values: &[1, 2, 4, 8],
            default: 4,
            meaning: "vectors of 16 rows in a work-item",
        },
    ],
    constraints: &[],
    local_memory: |_| 0,
};

/// Few rows against many keys, one wide work-item a group.
pub(super) static ATTENTION_DECODE: Kernel = Kernel {
    name: "attention_decode",
    summary: "at most 8 rows against keys that are read once, one wide work-item a split, for CPUs",
    version: 1,
    sources: &[Source {
        language: Language::OpenClC,
        code: Code::Text(&[
            SHARED_CL,
            ("attention_decode.cl", include_str!("attention_decode.cl")),
        ]),
        requires: &[],
    }],
    tunables: &[SPLIT_KEYS, FEW_KEY_BLOCK],
    constraints: &[],
    local_memory: |_| 0,
};

/// Many small work-items with local memory.
pub(super) static ATTENTION_TILED: Kernel = Kernel {
    name: "attention_tiled",
    summary: "16 rows a work-group of 64 that share local memory, for GPUs",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[
                SHARED_CL,
                ("attention_tiled.cl", include_str!("attention_tiled.cl")),
            ]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[
                SHARED_CU,
                ("attention_tiled.cu", include_str!("attention_tiled.cu")),
            ]),
            requires: &[],
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
    tunables: &[
        SPLIT_KEYS,
        Tunable {
            name: "KEYS",
            values: &[16, 32],
            default: 32,
            meaning: "keys at a time",
        },
        Tunable {
            name: "DEPTH",
            values: &[16, 32, 64],
            default: 32,
            meaning: "columns of q and k in local memory at a time",
        },
    ],
    constraints: &[Constraint {
        rule: "work-groups of 64",
        holds: |_, info: &DeviceInfo| {
            info.limits.max_group_size >= TILED_GROUP && info.limits.max_group[0] >= TILED_GROUP
        },
    }],
    local_memory: tiled_local_memory,
};

/// Work-items in a group of `attention_tiled`.
pub(super) const TILED_GROUP: u32 = 64;

/// Rows in a group of `attention_tiled`.
pub(super) const TILED_ROWS: u64 = 16;

fn tiled_local_memory(config: &Config) -> u64 {
    let value = |name, default| config.get(name).unwrap_or(default) as u64;
    let (keys, depth) = (value("KEYS", 32), value("DEPTH", 32));
    let floats = (TILED_ROWS + keys) * (depth + 1)
        + keys * (TILED_ROWS + 1)
        + (u64::from(TILED_GROUP) + 9) * TILED_ROWS;
    4 * floats + 16 * keys
}

/// Many rows, the rows in the lanes of short vectors.
pub(super) static ATTENTION_ROWS: Kernel = Kernel {
    name: "attention_rows",
    summary: "32 rows a work-group in the lanes of its subgroups, which share keys and columns, for drivers that run on CPUs",
    version: 1,
    sources: &[
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROWS_16),
            requires: &[
                "shaderInt64",
                "storageBuffer16BitAccess",
                "subgroupBasic",
                "subgroupShuffle",
            ],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROWS),
            requires: &["subgroupBasic", "subgroupShuffle"],
        },
    ],
    tunables: &[SPLIT_KEYS],
    constraints: &[SHORT_SUBGROUPS],
    local_memory: |_| 0,
};

/// Rows in a group of `attention_rows`.
pub(super) const LANE_ROWS: u64 = 32;

/// Bytes of local memory of a group of `attention_rows` of this many work-items, and of how many keys a work-item takes at a time.
pub(super) fn rows_local_memory(group: u64, keys_each: u64, subgroup: u64) -> u64 {
    let keys = group * keys_each;
    // Scores, the subgroups' maxima, what rows are scaled by at the end, and the addresses of values.
    (keys + group / subgroup + 1) * LANE_ROWS * 4 + keys * 8
}

/// Few rows against many keys, the columns in the lanes of one subgroup.
pub(super) static ATTENTION_KEYS: Kernel = Kernel {
    name: "attention_keys",
    summary: "at most 8 rows against keys that are read once and in order, one subgroup a work-group",
    version: 1,
    sources: &[
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::KEYS_16),
            requires: &[
                "shaderInt64",
                "storageBuffer16BitAccess",
                "subgroupBasic",
                "subgroupShuffle",
            ],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::KEYS),
            requires: &["subgroupBasic", "subgroupShuffle"],
        },
    ],
    tunables: &[SPLIT_KEYS],
    constraints: &[SHORT_SUBGROUPS],
    local_memory: |_| 0,
};

/// Shuffles name lanes by constants: a work-item must be where it is taken to be.
const SHORT_SUBGROUPS: Constraint = Constraint {
    rule: "a CPU whose subgroups are always of 4, 8 or 16",
    holds: |_, info: &DeviceInfo| {
        info.kind == DeviceKind::Cpu && matches!(info.subgroup_sizes[..], [4 | 8 | 16])
    },
};

/// The last step where keys were split.
pub(super) static ATTENTION_MERGE: Kernel = Kernel {
    name: "attention_merge",
    summary: "joins the splits of each row, in their order",
    version: 1,
    sources: &[
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[
                SHARED_CL,
                ("attention_merge.cl", include_str!("attention_merge.cl")),
            ]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[
                SHARED_CU,
                ("attention_merge.cu", include_str!("attention_merge.cu")),
            ]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::MERGE_16),
            requires: &["storageBuffer16BitAccess"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::MERGE),
            requires: &[],
        },
    ],
    tunables: &[SPLIT_KEYS],
    constraints: &[],
    local_memory: |_| 0,
};

/// The cpu device's function.
pub(super) static ATTENTION_NATIVE: Kernel = Kernel {
    name: "attention_native",
    summary: "matrix products over blocks of keys for many rows, dot products over splits of keys for few",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[("attention_native", native::attention_native)]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};
