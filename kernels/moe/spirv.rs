//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const ROUTE: &[Binary] = &[
    Binary { entry: "moe_route_group", dtypes: &[], constants: &[], code: include_bytes!("spirv/route.moe_route_group.spv") },
];

#[rustfmt::skip]
pub(super) const ROUTE_16: &[Binary] = &[
    Binary { entry: "moe_route_group", dtypes: &[], constants: &[], code: include_bytes!("spirv/route_16.moe_route_group.spv") },
];

#[rustfmt::skip]
pub(super) const ROUTE_LANES: &[Binary] = &[
    Binary { entry: "moe_route_lanes", dtypes: &[], constants: &[], code: include_bytes!("spirv/route_lanes.moe_route_lanes.spv") },
];

#[rustfmt::skip]
pub(super) const ROUTE_LANES_16: &[Binary] = &[
    Binary { entry: "moe_route_lanes", dtypes: &[], constants: &[], code: include_bytes!("spirv/route_lanes_16.moe_route_lanes.spv") },
];

#[rustfmt::skip]
pub(super) const ROWS: &[Binary] = &[
    Binary { entry: "expert_permute", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_permute.spv") },
    Binary { entry: "expert_count", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_count.spv") },
    Binary { entry: "expert_scan", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_scan.spv") },
    Binary { entry: "expert_place", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_place.spv") },
    Binary { entry: "expert_clear_inverse", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_clear_inverse.spv") },
    Binary { entry: "expert_invert", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_invert.spv") },
    Binary { entry: "expert_invert_few", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_invert_few.spv") },
    Binary { entry: "expert_copy_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_copy_rows.spv") },
    Binary { entry: "expert_combine", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.expert_combine.spv") },
];

#[rustfmt::skip]
pub(super) const ROWS_16: &[Binary] = &[
    Binary { entry: "expert_permute", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_permute.spv") },
    Binary { entry: "expert_count", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_count.spv") },
    Binary { entry: "expert_scan", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_scan.spv") },
    Binary { entry: "expert_place", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_place.spv") },
    Binary { entry: "expert_clear_inverse", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_clear_inverse.spv") },
    Binary { entry: "expert_invert", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_invert.spv") },
    Binary { entry: "expert_invert_few", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_invert_few.spv") },
    Binary { entry: "expert_copy_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_copy_rows.spv") },
    Binary { entry: "expert_combine", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.expert_combine.spv") },
];
