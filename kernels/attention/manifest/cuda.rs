//! The kernels that exist in CUDA C only.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{SHARED_CU, SPLIT_KEYS};
use crate::HOPPER_CU;

/// What the kernels on matrix units do with scores in registers.
const FRAGMENTS: (&str, &str) = (
    "attention_fragments.cu",
    include_str!("../attention_fragments.cu"),
);

/// sm_80 has `cp.async`, and `mma.sync` of bf16.
const MMA_SOURCES: &[Source] = &[Source {
    language: Language::CudaC,
    code: Code::Text(&[
        SHARED_CU,
        ("matrix.cu", include_str!("../../matrix.cu")),
        FRAGMENTS,
        ("attention_mma.cu", include_str!("../attention_mma.cu")),
    ]),
    requires: &["sm_80"],
}];

/// Blocks read keys quickly: shorter splits are more blocks.
const MMA_SPLIT_KEYS: Tunable = Tunable {
    default: 256,
    ..SPLIT_KEYS
};

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

/// The tunables of attention_mma.cu for these values of KEYS, ROW_FRAGMENTS, WARPS_ROWS, WARPS_KEYS and RING, the default first of each.
const fn mma_tunables(values: [&'static [i64]; 5]) -> [Tunable; 6] {
    let [keys, row_fragments, warps_rows, warps_keys, ring] = values;
    [
        MMA_SPLIT_KEYS,
        tunable("KEYS", keys, keys[0], "keys in a tile"),
        tunable(
            "ROW_FRAGMENTS",
            row_fragments,
            row_fragments[0],
            "16 rows each of a warp, one for wide heads",
        ),
        tunable(
            "WARPS_ROWS",
            warps_rows,
            warps_rows[0],
            "warps along the rows",
        ),
        tunable(
            "WARPS_KEYS",
            warps_keys,
            warps_keys[0],
            "warps along the keys of a tile",
        ),
        tunable(
            "RING",
            ring,
            ring[0],
            "tiles in shared memory, fewer where they do not fit: all but one are on their way",
        ),
    ]
}

const MMA_CONSTRAINTS: &[Constraint] = &[
    Constraint {
        rule: "a warp's keys are a multiple of 16",
        holds: |config, _| config.value("KEYS") / config.value("WARPS_KEYS") % 16 == 0,
    },
    Constraint {
        rule: "a thread's sums fit its registers: KEYS <= 32 with 2 ROW_FRAGMENTS",
        holds: |config, _| config.value("ROW_FRAGMENTS") == 1 || config.value("KEYS") <= 32,
    },
    Constraint {
        rule: "32 * WARPS_ROWS * WARPS_KEYS <= max work-group size",
        holds: |config, info: &DeviceInfo| {
            let threads = mma_threads(config);
            threads <= info.limits.max_group_size && threads <= info.limits.max_group[0]
        },
    },
];

/// Matrix units, many rows.
pub(in super::super) static ATTENTION_MMA: Kernel = Kernel {
    name: "attention_mma",
    summary: "matrix units (mma.sync), keys and values in a ring of tiles filled by cp.async: f16 and bf16 with many rows",
    version: 1,
    sources: MMA_SOURCES,
    tunables: &mma_tunables([&[32, 64], &[2, 1], &[4, 2, 8], &[1], &[4, 2, 3]]),
    constraints: MMA_CONSTRAINTS,
    local_memory: mma_local_memory,
};

/// As [`ATTENTION_MMA`], with up to 16 rows.
pub(in super::super) static ATTENTION_MMA_FEW: Kernel = Kernel {
    name: "attention_mma_few",
    summary: "as attention_mma with at most 16 rows a sequence and key head: the warps share the keys instead",
    version: 1,
    sources: MMA_SOURCES,
    tunables: &mma_tunables([&[64, 128, 32], &[1], &[1], &[4, 2], &[4, 2, 3, 6]]),
    constraints: MMA_CONSTRAINTS,
    local_memory: mma_local_memory,
};

/// Threads of a block of attention_mma.cu.
pub(in super::super) fn mma_threads(config: &Config) -> u32 {
    32 * (config.value("WARPS_ROWS") * config.value("WARPS_KEYS")) as u32
}

/// Rows of a block of attention_mma.cu.
pub(in super::super) fn mma_rows(config: &Config) -> u64 {
    (16 * config.value("ROW_FRAGMENTS") * config.value("WARPS_ROWS")) as u64
}

/// The queries and the ring of attention_mma.cu, or what its warps leave to be joined, if that is more.
pub(in super::super) fn mma_local_memory(config: &Config) -> u64 {
    let [d, dv] = ["D_MAX", "DV_MAX"].map(|name| config.get(name).unwrap_or(128) as u64);
    let [keys, warps_keys, ring] =
        ["KEYS", "WARPS_KEYS", "RING"].map(|name| config.value(name) as u64);
    let pitch = |columns: u64| ((columns / 8) | 1) * 16;
    let rows = mma_rows(config);
    let tiles = rows * pitch(d) + ring * keys * pitch(d.max(dv));
    let joined = match warps_keys {
        1 => 0,
        _ => warps_keys * rows * (dv + 4) * 4,
    };
    tiles.max(joined)
}

/// Warpgroups and the copy engine of sm_90a, many rows.
pub(in super::super) static ATTENTION_WGMMA: Kernel = Kernel {
    name: "attention_wgmma",
    summary: "warpgroups (wgmma) in turns, keys and values copied by TMA: f16 and bf16 with many rows",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[
            SHARED_CU,
            HOPPER_CU,
            FRAGMENTS,
            ("attention_wgmma.cu", include_str!("../attention_wgmma.cu")),
        ]),
        requires: &["sm_90a"],
    }],
    tunables: &[
        MMA_SPLIT_KEYS,
        tunable(
            "KEYS",
            &[128, 160, 192, 96, 80, 64],
            128,
            "keys in a tile, fewer where registers or shared memory have no room, a power of two of a paged cache",
        ),
        tunable(
            "CONSUMERS",
            &[2, 3],
            2,
            "warpgroups of 64 rows each that multiply, fewer where registers have no room",
        ),
        tunable(
            "RING",
            &[2, 3, 4],
            2,
            "tiles of keys in shared memory, and as many of values, fewer where they do not fit",
        ),
    ],
    constraints: &[
        Constraint {
            rule: "three warpgroups have registers for up to 128 keys",
            holds: |config, _| config.value("CONSUMERS") < 3 || config.value("KEYS") <= 128,
        },
        Constraint {
            rule: "128 * (CONSUMERS + 1) <= max work-group size",
            holds: |config, info: &DeviceInfo| {
                let threads = wgmma_threads(config);
                threads <= info.limits.max_group_size && threads <= info.limits.max_group[0]
            },
        },
    ],
    // Before the sizes of heads are known, those that fit best; what does not fit is made smaller by the planner.
    local_memory: |config| match config.get("D_MAX") {
        Some(_) => wgmma_local_memory(config),
        None => 0,
    },
};

/// Multi-head latent attention, by warpgroups and the copy engine of sm_90a.
pub(in super::super) static ATTENTION_LATENT: Kernel = Kernel {
    name: "attention_latent",
    summary: "multi-head latent attention (576 columns, values of 512) by warpgroups (wgmma) that share a tile of keys, copied once by TMA where values lie inside keys: f16 and bf16",
    version: 1,
    sources: &[Source {
        language: Language::CudaC,
        code: Code::Text(&[
            SHARED_CU,
            HOPPER_CU,
            FRAGMENTS,
            (
                "attention_latent.cu",
                include_str!("../attention_latent.cu"),
            ),
        ]),
        requires: &["sm_90a"],
    }],
    tunables: &[SPLIT_KEYS],
    constraints: &[],
    local_memory: |_| LATENT_DYNAMIC_MEMORY + (2 << 10),
};

/// Bytes of the queries, two places for tiles and the probabilities of attention_latent.cu, and what may be lost to align them.
pub(in super::super) const LATENT_DYNAMIC_MEMORY: u64 = 1024 + 3 * 64 * 576 * 2 + 64 * 64 * 2;

/// Threads of a block of attention_wgmma.cu.
pub(in super::super) fn wgmma_threads(config: &Config) -> u32 {
    128 * (1 + config.value("CONSUMERS")) as u32
}

/// Columns of a panel of values: the widest swizzle that divides theirs.
pub(in super::super) fn wgmma_value_panel(config: &Config) -> u64 {
    let columns = config.get("DV_MAX").unwrap_or(128) as u64;
    let widths = [64, 32, 16];
    let found = widths
        .into_iter()
        .find(|&width| columns.is_multiple_of(width));
    found.expect("columns are a multiple of 16")
}

/// Bytes of the queries and the two rings of attention_wgmma.cu, and what may be lost to align them.
pub(in super::super) fn wgmma_dynamic_memory(config: &Config) -> u64 {
    let [d, dv] = ["D_MAX", "DV_MAX"].map(|name| config.get(name).unwrap_or(128) as u64);
    let [keys, consumers, ring] =
        ["KEYS", "CONSUMERS", "RING"].map(|name| config.value(name) as u64);
    // Keys and queries lie in panels of 64 columns; results take the queries' place.
    let [d_panels, dv_panels] = [d, dv].map(|columns| columns.div_ceil(64));
    let queries = consumers * 64 * 128 * d_panels.max(dv_panels);
    1024 + queries + ring * keys * (d_panels * 128 + dv * 2)
}

/// Bytes of shared memory with barriers and what rows see, which are the kernel's own.
pub(in super::super) fn wgmma_local_memory(config: &Config) -> u64 {
    wgmma_dynamic_memory(config) + (2 << 10)
}
