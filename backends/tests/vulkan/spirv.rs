//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::DType;
use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const KERNELS: &[Binary] = &[
    Binary { entry: "add_one", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.add_one.spv") },
    Binary { entry: "slow", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.slow.spv") },
    Binary { entry: "report", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.report.spv") },
    Binary { entry: "chosen", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.chosen.spv") },
    Binary { entry: "many", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.many.spv") },
    Binary { entry: "far", dtypes: &[], constants: &[], code: include_bytes!("spirv/kernels.far.spv") },
];

#[rustfmt::skip]
pub(super) const WIDE: &[Binary] = &[
    Binary { entry: "far", dtypes: &[("A_DTYPE", DType::F32)], constants: &[], code: include_bytes!("spirv/wide.far.f32.spv") },
];
