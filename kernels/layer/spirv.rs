//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const ARGSORT: &[Binary] = &[
    Binary { entry: "argsort_runs", dtypes: &[], constants: &[], code: include_bytes!("spirv/argsort.argsort_runs.spv") },
    Binary { entry: "argsort_merge", dtypes: &[], constants: &[], code: include_bytes!("spirv/argsort.argsort_merge.spv") },
];

#[rustfmt::skip]
pub(super) const ARGSORT_16: &[Binary] = &[
    Binary { entry: "argsort_runs", dtypes: &[], constants: &[], code: include_bytes!("spirv/argsort_16.argsort_runs.spv") },
    Binary { entry: "argsort_merge", dtypes: &[], constants: &[], code: include_bytes!("spirv/argsort_16.argsort_merge.spv") },
];

#[rustfmt::skip]
pub(super) const MAP: &[Binary] = &[
    Binary { entry: "map", dtypes: &[], constants: &[], code: include_bytes!("spirv/map.spv") },
];

#[rustfmt::skip]
pub(super) const MAP_16: &[Binary] = &[
    Binary { entry: "map", dtypes: &[], constants: &[], code: include_bytes!("spirv/map_16.map.spv") },
];

#[rustfmt::skip]
pub(super) const NORM: &[Binary] = &[
    Binary { entry: "norm_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/norm.norm_rows.spv") },
];

#[rustfmt::skip]
pub(super) const NORM_16: &[Binary] = &[
    Binary { entry: "norm_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/norm_16.norm_rows.spv") },
];

#[rustfmt::skip]
pub(super) const ROPE: &[Binary] = &[
    Binary { entry: "rope", dtypes: &[], constants: &[], code: include_bytes!("spirv/rope.spv") },
];

#[rustfmt::skip]
pub(super) const ROPE_16: &[Binary] = &[
    Binary { entry: "rope", dtypes: &[], constants: &[], code: include_bytes!("spirv/rope_16.rope.spv") },
];

#[rustfmt::skip]
pub(super) const SOFTMAX: &[Binary] = &[
    Binary { entry: "softmax", dtypes: &[], constants: &[], code: include_bytes!("spirv/softmax.spv") },
];

#[rustfmt::skip]
pub(super) const SOFTMAX_16: &[Binary] = &[
    Binary { entry: "softmax", dtypes: &[], constants: &[], code: include_bytes!("spirv/softmax_16.softmax.spv") },
];
