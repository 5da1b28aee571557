//! The kernels of this folder, their tunables and what they need.
//!
//! Each comes thrice: with one wide work-item a group, for CPUs, with groups of many narrow ones, and with lines in a core's own memory, for NPUs.

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Binary, Code, Config, Constraint, Kernel, Language, Source, Tunable};

use super::{native, spirv};

/// What computes `elementwise`, `unary`, `glu`, `copy`, `get_rows` and `set_rows`.
pub(super) const MAP: &[&Kernel] = &[&MAP_ROWS, &MAP_ROWS_GROUP, &MAP_LINES];
/// What computes `norm` and `sum_rows`.
pub(super) const NORM: &[&Kernel] = &[&NORM_ROWS, &NORM_ROWS_GROUP, &NORM_LINES];
/// What computes `softmax`.
pub(super) const SOFTMAX: &[&Kernel] = &[&SOFTMAX_ROWS, &SOFTMAX_ROWS_GROUP, &SOFTMAX_LINES];
/// What computes `rope`.
pub(super) const ROPE: &[&Kernel] = &[&ROPE_ROWS, &ROPE_ROWS_GROUP, &ROPE_LINES];
/// What computes `argsort`.
pub(super) const ARGSORT: &[&Kernel] = &[&ARGSORT_ROWS, &ARGSORT_ROWS_GROUP, &ARGSORT_LINES];

/// An OpenCL source behind the file that all of them stand on.
macro_rules! opencl {
    ($file:literal) => {
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[
                ("layer.cl", include_str!("layer.cl")),
                ($file, include_str!($file)),
            ]),
            requires: &[],
        }
    };
}

/// A CUDA source behind the file that all of them stand on.
macro_rules! cuda {
    ($file:literal) => {
        Source {
            language: Language::CudaC,
            code: Code::Text(&[
                ("layer.cu", include_str!("layer.cu")),
                ($file, include_str!($file)),
            ]),
            requires: &[],
        }
    };
}

/// An AscendC source behind the two files that all of them stand on.
macro_rules! ascend {
    ($file:literal) => {
        Source {
            language: Language::AscendC,
            code: Code::Text(&[
                crate::LINES,
                ("layer.asc", include_str!("layer.asc")),
                ($file, include_str!($file)),
            ]),
            requires: &[],
        }
    };
}

const fn vulkan(binaries: &'static [Binary]) -> Source {
    Source {
        language: Language::SpirV,
        code: Code::Binaries(binaries),
        requires: &[],
    }
}

/// For devices that load and store 16 bits, and compute addresses in 64.
const fn vulkan_16(binaries: &'static [Binary]) -> Source {
    Source {
        requires: &["shaderInt64", "storageBuffer16BitAccess"],
        ..vulkan(binaries)
    }
}

const fn native(functions: &'static [(&'static str, ropeway_core::native::NativeFn)]) -> Source {
    Source {
        language: Language::Native,
        code: Code::Native(functions),
        requires: &[],
    }
}

const ONE: Tunable = Tunable {
    name: "GROUP",
    values: &[1],
    default: 1,
    meaning: "work-items of a group",
};

const MANY: Tunable = Tunable {
    name: "GROUP",
    values: &[32, 64, 128, 256],
    default: 64,
    meaning: "work-items of a group",
};

const WIDE_VECTOR: Tunable = Tunable {
    name: "VECTOR",
    values: &[8, 16],
    default: 16,
    meaning: "elements a work-item takes at once",
};

const NARROW_VECTOR: Tunable = Tunable {
    name: "VECTOR",
    values: &[4],
    default: 4,
    meaning: "elements a work-item takes at once",
};

const WIDE_BLOCK: Tunable = Tunable {
    name: "BLOCK",
    values: &[1024, 4096, 16384],
    default: 4096,
    meaning: "elements of a group, as far as they do not cut rows that must stay whole",
};

const NARROW_BLOCK: Tunable = Tunable {
    name: "BLOCK",
    values: &[256, 1024, 4096],
    default: 1024,
    meaning: "elements of a group, as far as they do not cut rows that must stay whole",
};

const GROUP_FITS: Constraint = Constraint {
    rule: "GROUP <= max work-group size",
    holds: |config, info| {
        let size = value(config, "GROUP");
        size <= info.limits.max_group_size.into() && size <= info.limits.max_group[0].into()
    },
};

fn value(config: &Config, name: &str) -> u64 {
    config.get(name).unwrap_or(0) as u64
}

fn partial_sums(config: &Config) -> u64 {
    4 * value(config, "GROUP")
}

/// Element-wise work and movement of rows, one wide work-item a group.
pub(super) static MAP_ROWS: Kernel = Kernel {
    name: "map_rows",
    summary: "functions of elements and movement of rows with one wide work-item a group, for CPUs",
    version: 1,
    sources: &[native(&[("map", native::map)]), opencl!("map.cl")],
    tunables: &[ONE, WIDE_VECTOR, WIDE_BLOCK],
    constraints: &[],
    local_memory: |_| 0,
};

/// The same with groups of many narrow work-items.
pub(super) static MAP_ROWS_GROUP: Kernel = Kernel {
    name: "map_rows_group",
    summary: "functions of elements and movement of rows with many narrow work-items a group, for GPUs",
    version: 1,
    sources: &[
        opencl!("map.cl"),
        vulkan_16(spirv::MAP_16),
        vulkan(spirv::MAP),
        cuda!("map.cu"),
    ],
    tunables: &[MANY, NARROW_VECTOR, NARROW_BLOCK],
    constraints: &[GROUP_FITS],
    local_memory: |_| 0,
};

/// The same with lines in a core's own memory.
pub(super) static MAP_LINES: Kernel = Kernel {
    name: "map_lines",
    summary: "functions of elements and movement of rows, line by line in a core's own memory, for NPUs",
    version: 1,
    sources: &[ascend!("map.asc")],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// Norms and sums of rows, one wide work-item a group.
pub(super) static NORM_ROWS: Kernel = Kernel {
    name: "norm_rows",
    summary: "norms and sums of rows with one wide work-item a group, for CPUs",
    version: 1,
    sources: &[native(&[("norm_rows", native::norm)]), opencl!("norm.cl")],
    tunables: &[ONE, WIDE_VECTOR, WIDE_BLOCK],
    constraints: &[],
    local_memory: |_| 0,
};

/// The same with groups of many narrow work-items.
pub(super) static NORM_ROWS_GROUP: Kernel = Kernel {
    name: "norm_rows_group",
    summary: "norms and sums of rows with many narrow work-items a row, for GPUs",
    version: 1,
    sources: &[
        opencl!("norm.cl"),
        vulkan_16(spirv::NORM_16),
        vulkan(spirv::NORM),
        cuda!("norm.cu"),
    ],
    tunables: &[MANY, NARROW_VECTOR, NARROW_BLOCK],
    constraints: &[GROUP_FITS],
    local_memory: partial_sums,
};

/// The same with lines in a core's own memory.
pub(super) static NORM_LINES: Kernel = Kernel {
    name: "norm_lines",
    summary: "norms and sums of rows, line by line in a core's own memory, for NPUs",
    version: 1,
    sources: &[ascend!("norm.asc")],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// Softmax, one wide work-item a group.
pub(super) static SOFTMAX_ROWS: Kernel = Kernel {
    name: "softmax_rows",
    summary: "softmax of rows with one wide work-item a group, for CPUs",
    version: 1,
    sources: &[
        native(&[("softmax", native::softmax)]),
        opencl!("softmax.cl"),
    ],
    tunables: &[ONE, WIDE_VECTOR, WIDE_BLOCK],
    constraints: &[],
    local_memory: |_| 0,
};

/// The same with groups of many narrow work-items.
pub(super) static SOFTMAX_ROWS_GROUP: Kernel = Kernel {
    name: "softmax_rows_group",
    summary: "softmax of rows with many narrow work-items a row, for GPUs",
    version: 1,
    sources: &[
        opencl!("softmax.cl"),
        vulkan_16(spirv::SOFTMAX_16),
        vulkan(spirv::SOFTMAX),
        cuda!("softmax.cu"),
    ],
    tunables: &[MANY, NARROW_VECTOR, NARROW_BLOCK],
    constraints: &[GROUP_FITS],
    local_memory: partial_sums,
};

/// The same with lines in a core's own memory.
pub(super) static SOFTMAX_LINES: Kernel = Kernel {
    name: "softmax_lines",
    summary: "softmax of rows, line by line in a core's own memory, for NPUs",
    version: 1,
    sources: &[ascend!("softmax.asc")],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

/// Rotary embedding, one wide work-item a token.
pub(super) static ROPE_ROWS: Kernel = Kernel {
    name: "rope_rows",
    summary: "rotary position embedding with one wide work-item a token, for CPUs",
    version: 1,
    sources: &[native(&[("rope", native::rope)]), opencl!("rope.cl")],
    tunables: &[ONE, WIDE_VECTOR],
    constraints: &[],
    local_memory: |_| 0,
};

/// The same with groups of many narrow work-items.
pub(super) static ROPE_ROWS_GROUP: Kernel = Kernel {
    name: "rope_rows_group",
    summary: "rotary position embedding with many narrow work-items a token, for GPUs",
    version: 1,
    sources: &[
        opencl!("rope.cl"),
        vulkan_16(spirv::ROPE_16),
        vulkan(spirv::ROPE),
        cuda!("rope.cu"),
    ],
    tunables: &[MANY, NARROW_VECTOR],
    constraints: &[GROUP_FITS],
    local_memory: |_| 0,
};

/// The same with lines in a core's own memory.
pub(super) static ROPE_LINES: Kernel = Kernel {
    name: "rope_lines",
    summary: "rotary position embedding, line by line in a core's own memory, for NPUs",
    version: 1,
    sources: &[ascend!("rope.asc")],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

const fn run(default: i64) -> Tunable {
    Tunable {
        name: "RUN",
        values: &[64, 128, 256, 512],
        default,
        meaning: "elements that are put in order by counting; longer rows are merged from such runs",
    }
}

const LINE_RUN: Tunable = Tunable {
    name: "RUN",
    values: &[512, 1024, 2048],
    default: 1024,
    meaning: "elements that are put in order in a core's own memory; longer rows are merged from such runs",
};

/// Sorting, one wide work-item a run.
pub(super) static ARGSORT_ROWS: Kernel = Kernel {
    name: "argsort_rows",
    summary: "order of each row's elements with one wide work-item a run, for CPUs",
    version: 1,
    sources: &[
        native(&[("argsort", native::argsort)]),
        opencl!("argsort.cl"),
    ],
    tunables: &[ONE, run(256), WIDE_BLOCK],
    constraints: &[],
    local_memory: |_| 0,
};

/// The same with groups of many narrow work-items.
pub(super) static ARGSORT_ROWS_GROUP: Kernel = Kernel {
    name: "argsort_rows_group",
    summary: "order of each row's elements with many narrow work-items a run, for GPUs",
    version: 1,
    sources: &[
        opencl!("argsort.cl"),
        vulkan_16(spirv::ARGSORT_16),
        vulkan(spirv::ARGSORT),
        cuda!("argsort.cu"),
    ],
    tunables: &[MANY, run(256), NARROW_BLOCK],
    constraints: &[GROUP_FITS],
    local_memory: |config| 4 * value(config, "RUN"),
};

/// The same with lines in a core's own memory.
pub(super) static ARGSORT_LINES: Kernel = Kernel {
    name: "argsort_lines",
    summary: "order of each row's elements by exchanges of whole lines in a core's own memory, for NPUs",
    version: 1,
    sources: &[ascend!("argsort.asc")],
    tunables: &[LINE_RUN],
    constraints: &[],
    local_memory: |_| 0,
};

/// Whether the device takes kernels as Rust functions, which divide their work themselves.
pub(super) fn is_native(info: &DeviceInfo) -> bool {
    info.languages.first() == Some(&Language::Native)
}

/// The blocks that a launch of this kernel keeps all vector cores busy with, two to a cube core; none where it is not AscendC that the device takes.
pub(super) fn vector_cores(kernel: &'static Kernel, info: &DeviceInfo) -> Option<u64> {
    let language = kernel.source_for(info).ok()?.language;
    (language == Language::AscendC).then(|| 2 * u64::from(info.compute_units.max(1)))
}
