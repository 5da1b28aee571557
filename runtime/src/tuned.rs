//! Tuned configurations: which kernel, with which tunables, was measured to be the fastest that is right.
//!
//! A table is a TOML file for one device model:
//!
//! ```toml
//! device = "NVIDIA H100 80GB HBM3"
//! backend = "cuda"
//! architecture = "sm_90a"
//!
//! [[entry]]
//! op = "gemm"
//! variant = "bf16_nt"
//! sizes = { m = 4096, n = 4096, k = 4096 }
//! kernel = "gemm_packed"
//! version = 1
//! config = { TILE_M = 128 }
//! ```
//!
//! An entry serves every problem of its shape bucket: sizes are compared rounded up to powers of two. The look-up goes through the
//! user's tables for this device, the shipped ones for this device, then those for its architecture; what is not found is left to the
//! manifest's default. A table that cannot be read is passed over with one warning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use etcetera::BaseStrategy;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Config;
use ropeway_core::op::{TuneKey, Tuned, Tuning};
use ropeway_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// One tuned configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedEntry {
    /// The op.
    pub op: String,
    /// Operand dtypes and layout in one word, as the op's planner spells it.
    pub variant: String,
    /// The sizes it was tuned at.
    pub sizes: BTreeMap<String, u64>,
    /// The kernel.
    pub kernel: String,
    /// The kernel's manifest version.
    pub version: u32,
    /// The tunables.
    pub config: BTreeMap<String, i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    device: String,
    backend: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    entry: Vec<TunedEntry>,
}

/// Tables in the order of the look-up.
#[derive(Debug, Default)]
pub struct TunedTables(Vec<Table>);

impl TunedTables {
    /// The user's tables (`tuned/*.toml` in [`data_dir`]). Files that cannot be read are passed over with a warning.
    pub fn load() -> TunedTables {
        let mut tables = TunedTables::default();
        let Some(dir) = data_dir().map(|dir| dir.join("tuned")) else {
            return tables;
        };
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return tables;
        };
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        });
        files.sort();
        for path in files {
            let added = std::fs::read_to_string(&path)
                .map_err(Error::from)
                .and_then(|text| tables.add(&text));
            if let Err(error) = added {
                tracing::warn!("{}: passed over: {error}", path.display());
            }
        }
        tables
    }

    /// Adds a table after those that are there.
    ///
    /// # Errors
    /// `File` with the line for text that is no table.
    pub fn add(&mut self, text: &str) -> Result<()> {
        self.0.push(
            toml::from_str(text).map_err(|error| Error::new(ErrorKind::File, error.to_string()))?,
        );
        Ok(())
    }
}

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

impl Tuned for TunedTables {
    fn config(&self, key: &TuneKey<'_>, info: &DeviceInfo) -> Option<Tuning> {
        let of_device = |table: &&Table| table.backend == info.backend && table.device == info.name;
        let of_architecture = |table: &&Table| {
            table.backend == info.backend
                && !table.architecture.is_empty()
                && table.architecture == info.architecture
        };
        let entry = self
            .0
            .iter()
            .filter(of_device)
            .chain(self.0.iter().filter(of_architecture))
            .flat_map(|table| &table.entry)
            .find(|entry| entry.serves(key))?;
        let mut config = Config::default();
        for (name, value) in &entry.config {
            config.set(name, *value);
        }
        Some(Tuning {
            kernel: entry.kernel.clone(),
            version: entry.version,
            config,
        })
    }
}

impl TunedEntry {
    fn serves(&self, key: &TuneKey<'_>) -> bool {
        let bucket = |size: u64| size.checked_next_power_of_two();
        self.op == key.op
            && self.variant == key.variant
            && self.sizes.len() == key.sizes.len()
            && key.sizes.iter().all(|(name, size)| {
                self.sizes
                    .get(*name)
                    .is_some_and(|s| bucket(*s) == bucket(*size))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        device = "chip"
        backend = "opencl"
        [[entry]]
        op = "gemm"
        variant = "f32_nn"
        sizes = { m = 1000, n = 512 }
        kernel = "gemm_packed"
        version = 1
        config = { TILE = 8 }
    "#;

    fn info(name: &str) -> DeviceInfo {
        let registry = crate::Registry::default();
        let cpu = registry
            .open("cpu")
            .expect("the cpu device is always there");
        DeviceInfo {
            name: name.into(),
            backend: "opencl",
            ..cpu.info().clone()
        }
    }

    #[test]
    fn an_entry_serves_its_bucket_on_its_device() {
        let mut tables = TunedTables::default();
        tables.add(TABLE).unwrap();
        let find = |m, device: &str| {
            let sizes = [("m", m), ("n", 512)];
            tables.config(
                &TuneKey {
                    op: "gemm",
                    variant: "f32_nn",
                    sizes: &sizes,
                },
                &info(device),
            )
        };
        assert_eq!(find(1024, "chip").unwrap().config.get("TILE"), Some(8));
        assert_eq!(find(513, "chip").unwrap().kernel, "gemm_packed");
        assert!(find(512, "chip").is_none(), "another bucket");
        assert!(find(1024, "other chip").is_none(), "another device");
    }

    #[test]
    fn a_malformed_table_is_an_error() {
        let error = TunedTables::default().add("device = 3").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::File);
    }
}
