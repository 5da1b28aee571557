//! `ropeway tuned`: the tables of tuned configurations, as people and scripts see them.

mod diff;
mod merge;
#[cfg(test)]
mod miscompiled;
mod problem;
mod show;
mod t4;
mod verify;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ropeway::tuned::{TunedEntry, TunedTable, table_files};
use ropeway::{Probe, Registry, data_dir};
use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, ErrorKind, Result};

/// The tables of tuned configurations.
#[derive(Args, Debug)]
pub struct Tuned {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare two tables: 0 if they are equal, 1 if not.
    Diff(diff::Diff),
    /// Write the table of one device, or what was measured as a T4 document.
    Export(merge::Export),
    /// Merge tables of one device model into one; the order does not matter.
    Merge(merge::Merge),
    /// List entries: what they choose, what they gain, whether they still hold.
    Show(show::Show),
    /// Measure and check entries again.
    Verify(verify::Verify),
}

impl Tuned {
    /// Does it.
    ///
    /// # Errors
    /// `InvalidArgument` for a call that cannot be meant, `File` for a table that cannot be read or written.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Diff(diff) => diff.run(),
            Command::Export(export) => export.run(),
            Command::Merge(merge) => merge.run(),
            Command::Show(show) => show.run(),
            Command::Verify(verify) => verify.run(),
        }
    }
}

/// The devices that a call is about, among those that are here.
struct Chosen {
    infos: Vec<DeviceInfo>,
}

impl Chosen {
    /// Those of a selector, all without one.
    fn new(registry: &Registry, selector: Option<&str>) -> Result<Chosen> {
        let found = registry.probe().into_iter();
        let mut infos: Vec<DeviceInfo> = found
            .filter_map(|Probe { devices, .. }| devices.ok())
            .flatten()
            .collect();
        if let Some(selector) = selector {
            let known: Vec<_> = infos.iter().map(DeviceInfo::selector).collect();
            infos.retain(|info| info.selector() == selector || info.backend == selector);
            if infos.is_empty() {
                let expected = format!("one of {known:?}");
                return Err(Error::invalid(
                    "--device",
                    format!("{selector:?}"),
                    expected,
                ));
            }
        }
        Ok(Chosen { infos })
    }
}

/// Whether a table is of the model of a device.
fn is_of(table: &TunedTable, info: &DeviceInfo) -> bool {
    table.backend == info.backend && table.device == info.name
}

/// The user's table files.
fn user_files() -> Vec<PathBuf> {
    data_dir().map_or(Vec::new(), |dir| table_files(&dir.join("tuned")))
}

/// A table that must be there.
fn read(path: &Path) -> Result<TunedTable> {
    TunedTable::read(path)?
        .ok_or_else(|| Error::new(ErrorKind::File, format!("{}: no such file", path.display())))
}

/// All these tables.
fn loaded(files: &[PathBuf]) -> Result<Vec<(PathBuf, TunedTable)>> {
    files
        .iter()
        .map(|path| Ok((path.clone(), read(path)?)))
        .collect()
}

/// `m=512 n=512`
fn sizes_text(entry: &TunedEntry) -> String {
    words(&entry.sizes)
}

fn words<V: fmt::Display>(map: &std::collections::BTreeMap<String, V>) -> String {
    let words: Vec<_> = map
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    words.join(" ")
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// Writes text to a file, or to standard output.
fn deliver(text: &str, output: Option<&Path>) -> Result<()> {
    match output {
        None => super::print_line(text.trim_end()),
        Some(path) => {
            fs::write(path, text).map_err(|error| Error::from(error).within(path.display()))
        }
    }
}
