//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const ROOFLINE: &[Binary] = &[
    Binary { entry: "peak_fma", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline.peak_fma.spv") },
    Binary { entry: "read_all", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline.read_all.spv") },
    Binary { entry: "copy_all", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline.copy_all.spv") },
];

#[rustfmt::skip]
pub(super) const ROOFLINE_64: &[Binary] = &[
    Binary { entry: "peak_fma", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline_64.peak_fma.spv") },
    Binary { entry: "read_all", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline_64.read_all.spv") },
    Binary { entry: "copy_all", dtypes: &[], constants: &[], code: include_bytes!("spirv/roofline_64.copy_all.spv") },
];
