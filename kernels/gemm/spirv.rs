//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const GEMV_LANES: &[Binary] = &[
    Binary { entry: "gemv_lanes", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/gemv_lanes.0.spv") },
    Binary { entry: "gemv_lanes", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/gemv_lanes.1.spv") },
];

#[rustfmt::skip]
pub(super) const GEMV_LANES_16: &[Binary] = &[
    Binary { entry: "gemv_lanes", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/gemv_lanes_16.gemv_lanes.0.spv") },
    Binary { entry: "gemv_lanes", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/gemv_lanes_16.gemv_lanes.1.spv") },
];

#[rustfmt::skip]
pub(super) const GROUPED_SUBGROUP: &[Binary] = &[
    Binary { entry: "grouped_subgroup", dtypes: &[], constants: &[], code: include_bytes!("spirv/grouped_subgroup.spv") },
];

#[rustfmt::skip]
pub(super) const GROUPED_SUBGROUP_16: &[Binary] = &[
    Binary { entry: "grouped_subgroup", dtypes: &[], constants: &[], code: include_bytes!("spirv/grouped_subgroup_16.grouped_subgroup.spv") },
];

#[rustfmt::skip]
pub(super) const GROUPED_TILED: &[Binary] = &[
    Binary { entry: "grouped_tiled", dtypes: &[], constants: &[], code: include_bytes!("spirv/grouped_tiled.spv") },
];

#[rustfmt::skip]
pub(super) const GROUPED_TILED_16: &[Binary] = &[
    Binary { entry: "grouped_tiled", dtypes: &[], constants: &[], code: include_bytes!("spirv/grouped_tiled_16.grouped_tiled.spv") },
];

#[rustfmt::skip]
pub(super) const MATRIX: &[Binary] = &[
    Binary { entry: "gemm_matrix", dtypes: &[], constants: &[], code: include_bytes!("spirv/matrix.gemm_matrix.spv") },
];

#[rustfmt::skip]
pub(super) const SUBGROUP: &[Binary] = &[
    Binary { entry: "gemm_subgroup", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/subgroup.gemm_subgroup.0.spv") },
    Binary { entry: "gemm_subgroup", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/subgroup.gemm_subgroup.1.spv") },
];

#[rustfmt::skip]
pub(super) const SUBGROUP_16: &[Binary] = &[
    Binary { entry: "gemm_subgroup", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/subgroup_16.gemm_subgroup.0.spv") },
    Binary { entry: "gemm_subgroup", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/subgroup_16.gemm_subgroup.1.spv") },
];

#[rustfmt::skip]
pub(super) const TILED: &[Binary] = &[
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/tiled.gemm_tiled.0.spv") },
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/tiled.gemm_tiled.1.spv") },
];

#[rustfmt::skip]
pub(super) const TILED_16: &[Binary] = &[
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/tiled_16.gemm_tiled.0.spv") },
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/tiled_16.gemm_tiled.1.spv") },
];

#[rustfmt::skip]
pub(super) const TILED_DOT: &[Binary] = &[
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 0)], code: include_bytes!("spirv/tiled_dot.gemm_tiled.0.spv") },
    Binary { entry: "gemm_tiled", dtypes: &[], constants: &[("INTEGER", 1)], code: include_bytes!("spirv/tiled_dot.gemm_tiled.1.spv") },
];
