//! `ropeway tuned diff`: what differs between two tables.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ropeway::tuned::{TunedEntry, TunedTable};
use ropeway_core::Result;
use serde_json::{Value, json};

use super::{read, words};
use crate::cmd::print_line;

/// What to compare.
#[derive(Args, Debug)]
pub struct Diff {
    /// A table.
    a: PathBuf,
    /// Another one.
    b: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Entries of one key in two tables.
type Pair<'a> = (Option<&'a TunedEntry>, Option<&'a TunedEntry>);

impl Diff {
    /// Compares by key: 0 if nothing differs, 1 otherwise.
    ///
    /// # Errors
    /// `File` for a table that cannot be read.
    pub fn run(self) -> Result<ExitCode> {
        let (a, b) = (read(&self.a)?, read(&self.b)?);
        let headers = headers(&a, &b);
        let pairs = pairs(&a, &b);
        if self.json {
            let entries: Vec<Value> = pairs.iter().map(|(a, b)| json!({"a": a, "b": b})).collect();
            let tables = headers
                .iter()
                .map(|(name, a, b)| json!({"field": name, "a": a, "b": b}));
            let tables: Vec<Value> = tables.collect();
            print_line(format_args!(
                "{:#}",
                json!({"tables": tables, "entries": entries})
            ))?;
        } else {
            for (name, a, b) in &headers {
                print_line(format_args!("- {name} {a:?}\n+ {name} {b:?}"))?;
            }
            for (a, b) in &pairs {
                for (sign, entry) in [("-", a), ("+", b)] {
                    if let Some(entry) = entry {
                        print_line(format_args!("{sign} {}", line(entry)))?;
                    }
                }
            }
            print_line(format_args!("{} entries differ", pairs.len()))?;
        }
        Ok(ExitCode::from(u8::from(
            !(headers.is_empty() && pairs.is_empty()),
        )))
    }
}

/// What is said of the tables themselves and differs.
fn headers<'a>(a: &'a TunedTable, b: &'a TunedTable) -> Vec<(&'static str, &'a str, &'a str)> {
    let mut headers = vec![
        ("device", &*a.device, &*b.device),
        ("backend", &*a.backend, &*b.backend),
        ("architecture", &*a.architecture, &*b.architecture),
    ];
    headers.retain(|(_, a, b)| a != b);
    headers
}

/// The entries that are in one table only, or differ. A table that was written by hand may hold a key twice.
fn pairs<'a>(a: &'a TunedTable, b: &'a TunedTable) -> Vec<Pair<'a>> {
    let only = |a: &'a TunedTable, b: &'a TunedTable| -> Vec<&'a TunedEntry> {
        let entries = a.entries.iter();
        entries.filter(|entry| !b.entries.contains(entry)).collect()
    };
    let mut only_b = only(b, a);
    let mut pairs: Vec<Pair<'a>> = Vec::new();
    for entry in only(a, b) {
        let other = only_b.iter().position(|other| other.same_key(entry));
        pairs.push((Some(entry), other.map(|at| only_b.remove(at))));
    }
    pairs.extend(only_b.into_iter().map(|entry| (None, Some(entry))));
    pairs
}

fn line(entry: &TunedEntry) -> String {
    let gain = entry
        .gain()
        .map_or("not measured".into(), |gain| format!("{gain:.3} ×"));
    format!(
        "{entry}: {} version {} {}, {gain}",
        entry.kernel,
        entry.version,
        words(&entry.config)
    )
}
