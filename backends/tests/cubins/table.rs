//! What each launch takes of a multiprocessor, as a table in Markdown: written to the file that `ROPEWAY_USAGE_TABLE` names.
//!
//!     ROPEWAY_USAGE_TABLE=usage.md cargo test -p ropeway-backends --test cubins -- --include-ignored sm_90a

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write;
use std::fs;
use std::sync::{Mutex, PoisonError};

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::ModuleKey;

use super::plans::Launched;
use super::report;

/// Names the file.
const VARIABLE: &str = "ROPEWAY_USAGE_TABLE";

/// Shared memory that the system takes of each block.
const SYSTEM_SHARED: u64 = 1 << 10;
/// Most warps and blocks of a multiprocessor.
const MOST_WARPS: u32 = 64;
const MOST_BLOCKS: u32 = 32;

/// Rows, by architecture, kernel, configuration and entry.
static ROWS: Mutex<BTreeMap<[String; 4], String>> = Mutex::new(BTreeMap::new());

/// Notes what the launches of a module take, by ptxas' log.
pub fn note(
    architecture: &str,
    info: &DeviceInfo,
    key: &ModuleKey,
    log: &str,
    launches: &BTreeSet<Launched>,
) {
    let usage = report::usage(log);
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    for launch in launches {
        let Some(usage) = usage.get(launch.entry) else {
            continue;
        };
        let warps = launch.threads.div_ceil(32);
        let registers = (32 * usage.registers).next_multiple_of(256) * warps;
        let shared = u64::from(usage.shared_memory) + u64::from(launch.shared_memory);
        let by_shared = (info.limits.local_memory + SYSTEM_SHARED) / (shared + SYSTEM_SHARED);
        let blocks = (report::REGISTERS / registers.max(1))
            .min(by_shared as u32)
            .min(MOST_WARPS / warps)
            .min(MOST_BLOCKS);
        let name = [
            architecture.to_owned(),
            key.kernel.name.to_owned(),
            key.config.to_string(),
            launch.entry.to_owned(),
        ];
        let row = format!(
            "{} | {} | {} | {shared} | {blocks} |",
            launch.threads, usage.registers, usage.spilled,
        );
        rows.insert(name, row);
    }
}

/// Writes the table, if it is asked for.
pub fn write() {
    let Some(path) = env::var_os(VARIABLE) else {
        return;
    };
    let mut text = String::from(
        "| architecture | kernel | configuration | entry | threads | registers a thread | spilled bytes | shared memory | blocks a multiprocessor |\n\
         |---|---|---|---|--:|--:|--:|--:|--:|\n",
    );
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    for ([architecture, kernel, config, entry], row) in rows.iter() {
        writeln!(
            text,
            "| {architecture} | {kernel} | {config} | {entry} | {row}"
        )
        .expect("a text takes all");
    }
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
