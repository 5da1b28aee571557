//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const TOUCH: &[Binary] = &[
    Binary { entry: "touch", dtypes: &[], constants: &[], code: include_bytes!("spirv/touch.spv") },
];
