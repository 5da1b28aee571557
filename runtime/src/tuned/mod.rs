//! Tuned configurations: which kernel, with which tunables, was measured to be the fastest that is right.
//!
//! A table is a TOML file for one device model. What ships lies in the source tree under `kernels/<op>/tuned`, what a user tuned in their
//! data directory:
//!
//! ```toml
//! device = "NVIDIA H100 80GB HBM3"
//! backend = "cuda"
//! architecture = "sm_90a"
//!
//! [[entry]]
//! op = "gemm"
//! variant = "bf16_bf16_nt"
//! sizes = { k = 4096, m = 4096, n = 4096 }
//! kernel = "gemm_mma"
//! version = 1
//! config = { TILE_M = 128 }
//! ```
//!
//! and, of each entry that a tuner wrote, what it was measured at and with ([`Measured`], [`Provenance`]).
//!
//! An entry serves its own sizes, and of its shape bucket (sizes are compared rounded up to powers of two) those that differ only in sizes
//! along which it was held to the default, unless another one there says otherwise. The look-up ([`TunedTables::find`]) goes through the user's tables for this device, the shipped ones for this
//! device, then those for its architecture; what is not found is left to the manifest's default. `docs/tuning.md` is the guide.

mod between;
mod entry;
mod file;
mod lookup;
mod table;

use std::path::PathBuf;

use etcetera::BaseStrategy;

pub use entry::{Measured, Provenance, TunedEntry, exponent, source_hash};
pub use lookup::{Found, Origin, Served, TunedTables, table_files};
pub use table::TunedTable;

/// Where a user's own files are kept: `$ROPEWAY_DATA_DIR`, or `ropeway` in the user's data directory. `None` if the user has no home.
pub fn data_dir() -> Option<PathBuf> {
    match std::env::var_os("ROPEWAY_DATA_DIR") {
        Some(dir) => Some(dir.into()),
        None => Some(
            etcetera::choose_base_strategy()
                .ok()?
                .data_dir()
                .join("ropeway"),
        ),
    }
}
