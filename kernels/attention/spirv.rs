//! SPIR-V by entry and dtypes. Made from `spirv.toml` by `ropeway compile --language spirv`; not to be edited.

use ropeway_core::kernel::Binary;

#[rustfmt::skip]
pub(super) const KEYS: &[Binary] = &[
    Binary { entry: "attention_keys", dtypes: &[], constants: &[], code: include_bytes!("spirv/keys.attention_keys.spv") },
];

#[rustfmt::skip]
pub(super) const KEYS_16: &[Binary] = &[
    Binary { entry: "attention_keys", dtypes: &[], constants: &[], code: include_bytes!("spirv/keys_16.attention_keys.spv") },
];

#[rustfmt::skip]
pub(super) const MERGE: &[Binary] = &[
    Binary { entry: "attention_merge", dtypes: &[], constants: &[], code: include_bytes!("spirv/merge.attention_merge.spv") },
];

#[rustfmt::skip]
pub(super) const MERGE_16: &[Binary] = &[
    Binary { entry: "attention_merge", dtypes: &[], constants: &[], code: include_bytes!("spirv/merge_16.attention_merge.spv") },
];

#[rustfmt::skip]
pub(super) const ROWS: &[Binary] = &[
    Binary { entry: "attention_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows.attention_rows.spv") },
];

#[rustfmt::skip]
pub(super) const ROWS_16: &[Binary] = &[
    Binary { entry: "attention_rows", dtypes: &[], constants: &[], code: include_bytes!("spirv/rows_16.attention_rows.spv") },
];

#[rustfmt::skip]
pub(super) const TILED: &[Binary] = &[
    Binary { entry: "attention_tiled", dtypes: &[], constants: &[], code: include_bytes!("spirv/tiled.attention_tiled.spv") },
];

#[rustfmt::skip]
pub(super) const TILED_16: &[Binary] = &[
    Binary { entry: "attention_tiled", dtypes: &[], constants: &[], code: include_bytes!("spirv/tiled_16.attention_tiled.spv") },
];
