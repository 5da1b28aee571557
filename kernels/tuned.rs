//! The tuned tables that ship: `<op>/tuned/<device>.toml`, measured by `ropeway tune` and read by the runtime.

/// Path in the source tree and text of each.
pub const TUNED: &[(&str, &str)] = &[];
