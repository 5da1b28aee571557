//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const PROBE: &[Binary] = &[
    Binary { entry: "affine", dtypes: &[], constants: &[], code: include_bytes!("spirv/probe.affine.spv") },
    Binary { entry: "spin", dtypes: &[], constants: &[], code: include_bytes!("spirv/probe.spin.spv") },
    Binary { entry: "scalars", dtypes: &[], constants: &[], code: include_bytes!("spirv/probe.scalars.spv") },
    Binary { entry: "cells", dtypes: &[], constants: &[], code: include_bytes!("spirv/probe.cells.spv") },
    Binary { entry: "complain", dtypes: &[], constants: &[], code: include_bytes!("spirv/probe.complain.spv") },
];
