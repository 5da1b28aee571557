//! The kernels for Ascend NPUs: products on cube cores, and what vector cores do for them.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::no_local_memory;
use crate::LINES;

const ROUTING: (&str, &str) = ("routing.asc", include_str!("../routing.asc"));

/// Bytes of a cube core's memories.
const L1: i64 = 512 << 10;
const L0: i64 = 64 << 10;
const L0C: i64 = 128 << 10;

const SOURCES: &[Source] = &[Source {
    language: Language::AscendC,
    code: Code::Text(&[
        LINES,
        ROUTING,
        ("gemm_cube.asc", include_str!("../gemm_cube.asc")),
    ]),
    requires: &[],
}];

const TUNABLES: &[Tunable] = &[
    Tunable {
        name: "BLOCK_M",
        values: &[64, 128, 256],
        default: 128,
        meaning: "rows of a tile",
    },
    Tunable {
        name: "BLOCK_N",
        values: &[64, 128, 256],
        default: 256,
        meaning: "columns of a tile",
    },
    Tunable {
        name: "BLOCK_K",
        values: &[32, 64, 128],
        default: 64,
        meaning: "k of a step through L0, in units of two bytes",
    },
    Tunable {
        name: "STEPS",
        values: &[1, 2, 4, 8],
        default: 4,
        meaning: "steps of a stage in L1",
    },
    Tunable {
        name: "BAND",
        values: &[4, 8, 16],
        default: 8,
        meaning: "tiles along m that are done before the next along n",
    },
];

const CONSTRAINTS: &[Constraint] = &[
    Constraint {
        rule: "4 (BLOCK_M + BLOCK_N) STEPS BLOCK_K <= 512 KiB, L1",
        holds: stages_fit,
    },
    Constraint {
        rule: "4 BLOCK_M BLOCK_K and 4 BLOCK_N BLOCK_K <= 64 KiB, L0A and L0B",
        holds: steps_fit,
    },
    Constraint {
        rule: "4 BLOCK_M BLOCK_N <= 128 KiB, L0C",
        holds: sums_fit,
    },
];

/// Products on cube cores.
pub(in super::super) static CUBE: Kernel = Kernel {
    name: "gemm_cube",
    summary: "cube cores of an Ascend NPU, two stages in L1 and two steps in L0: products of f16, bf16, f32 and i8",
    version: 1,
    sources: SOURCES,
    tunables: TUNABLES,
    constraints: CONSTRAINTS,
    local_memory: no_local_memory,
};

/// As [`CUBE`], for grouped products.
pub(in super::super) static GROUPED_CUBE: Kernel = Kernel {
    name: "grouped_cube",
    summary: "cube cores of an Ascend NPU, an expert's rows found on the device: grouped products of f16, bf16, f32 and i8",
    version: 1,
    sources: SOURCES,
    tunables: TUNABLES,
    constraints: CONSTRAINTS,
    local_memory: no_local_memory,
};

/// Operands brought into the form that cube cores take, and sums finished, on vector cores.
pub(in super::super) static CUBE_LINES: Kernel = Kernel {
    name: "gemm_lines",
    summary: "before and behind gemm_cube and grouped_cube: operands into form, epilogues; on vector cores",
    version: 1,
    sources: &[Source {
        language: Language::AscendC,
        code: Code::Text(&[
            LINES,
            ROUTING,
            ("blocks.asc", include_str!("../blocks.asc")),
            ("gemm_lines.asc", include_str!("../gemm_lines.asc")),
        ]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: no_local_memory,
};

fn sides(config: &Config) -> [i64; 3] {
    ["BLOCK_M", "BLOCK_N", "BLOCK_K"].map(|name| config.value(name))
}

fn stages_fit(config: &Config, _: &DeviceInfo) -> bool {
    let [m, n, k] = sides(config);
    4 * (m + n) * config.value("STEPS") * k <= L1
}

fn steps_fit(config: &Config, _: &DeviceInfo) -> bool {
    let [m, n, k] = sides(config);
    4 * m.max(n) * k <= L0
}

fn sums_fit(config: &Config, _: &DeviceInfo) -> bool {
    let [m, n, _] = sides(config);
    4 * m * n <= L0C
}
