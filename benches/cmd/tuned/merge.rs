//! `ropeway tuned merge` and `export`: tables into one table, or into another format.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ropeway::Registry;
use ropeway::tuned::{TunedEntry, TunedTable};
use ropeway_core::{Error, Result};
use serde_json::{Value, json};

use super::{Chosen, deliver, is_of, loaded, t4, user_files};
use crate::cmd::print_line;

/// What to merge, and whereto.
#[derive(Args, Debug)]
pub struct Merge {
    /// Table files of one device model.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The merged table. What this file held is replaced.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Merge {
    /// Merges. Entries that were measured slower than the default, or wrong, are left out and named.
    ///
    /// # Errors
    /// `File` for a table that cannot be read or written, `InvalidArgument` for tables of different devices.
    pub fn run(self) -> Result<ExitCode> {
        let (merged, refused) = merged(loaded(&self.files)?)?;
        let kept = merged.entries.len();
        TunedTable::update(&self.output, |table| *table = merged)?;
        if self.json {
            let refused: Vec<Value> = refused
                .iter()
                .map(|(file, entry, fault)| json!({"file": file.display().to_string(), "entry": entry, "reason": fault}))
                .collect();
            let output = self.output.display().to_string();
            let report = json!({"output": output, "entries": kept, "refused": refused});
            print_line(format_args!("{report:#}"))?;
        } else {
            print_line(format_args!(
                "{}: {kept} entries from {} tables",
                self.output.display(),
                self.files.len()
            ))?;
            for (file, entry, fault) in &refused {
                print_line(format_args!(
                    "  refused {entry} of {}: {fault}",
                    file.display()
                ))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

type Refused = (PathBuf, TunedEntry, String);

/// One table of all, without the entries that may not be used.
fn merged(tables: Vec<(PathBuf, TunedTable)>) -> Result<(TunedTable, Vec<Refused>)> {
    let mut refused = Vec::new();
    let mut all: Option<TunedTable> = None;
    for (path, mut table) in tables {
        let faulty = table.take_faulty().into_iter();
        refused.extend(faulty.map(|(entry, fault)| (path.clone(), entry, fault)));
        match &mut all {
            Some(all) => all
                .merge(table)
                .map_err(|error| error.within(path.display()))?,
            None => {
                // With itself: a file that was written by hand may have two entries of one key.
                table.merge(table.clone())?;
                all = Some(table);
            }
        }
    }
    let all = all.ok_or_else(|| Error::invalid("FILE", "nothing", "at least one table"))?;
    Ok((all, refused))
}

/// What to export, and how.
#[derive(Args, Debug)]
pub struct Export {
    /// Table files [default: the user's].
    files: Vec<PathBuf>,
    /// Only tables of this device: `backend`, `backend:number`, or the name that stands in the table.
    #[arg(long, short, value_name = "DEVICE")]
    device: Option<String>,
    /// Only this op.
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// How to write it.
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
    /// Where to write it [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table of one device, as Ropeway reads it: fit to be sent to others, or to ship.
    Toml,
    /// The community's JSON for autotuning results, as Kernel Tuner writes it.
    T4,
}

impl Export {
    /// Writes the tables. Entries that may not be used are left out and named on standard error.
    ///
    /// # Errors
    /// `File` for a table that cannot be read or written, `InvalidArgument` if there is none, or several devices for one table.
    pub fn run(self) -> Result<ExitCode> {
        let files = match self.files.is_empty() {
            true => user_files(),
            false => self.files.clone(),
        };
        let mut tables = loaded(&files)?;
        if let Some(device) = &self.device {
            let named = |table: &TunedTable| table.device == *device;
            // A name may be of a device that is not here.
            let chosen = match tables.iter().any(|(_, table)| named(table)) {
                true => None,
                false => Some(Chosen::new(&Registry::default(), Some(device))?),
            };
            tables.retain(|(_, table)| match &chosen {
                None => named(table),
                Some(chosen) => chosen.infos.iter().any(|info| is_of(table, info)),
            });
        }
        // Tables of one device become one, in whatever files they were.
        let mut by_device: Vec<Vec<(PathBuf, TunedTable)>> = Vec::new();
        for (path, mut table) in tables {
            if let Some(op) = &self.op {
                table.entries.retain(|entry| entry.op == *op);
            }
            let same = |group: &&mut Vec<(PathBuf, TunedTable)>| {
                let other = &group[0].1;
                (&other.device, &other.backend) == (&table.device, &table.backend)
            };
            match by_device.iter_mut().find(same) {
                Some(group) => group.push((path, table)),
                None => by_device.push(vec![(path, table)]),
            }
        }
        let mut whole = Vec::new();
        for group in by_device {
            let (table, refused) = merged(group)?;
            for (file, entry, fault) in refused {
                eprintln!("refused {entry} of {}: {fault}", file.display());
            }
            whole.push(table);
        }
        whole.sort_by(|a, b| (&a.backend, &a.device).cmp(&(&b.backend, &b.device)));
        let text = match (self.format, &whole[..]) {
            (_, []) => {
                return Err(Error::invalid(
                    "--device",
                    "no table",
                    "one that was tuned (`ropeway tuned show`)",
                ));
            }
            (Format::T4, tables) => format!("{:#}\n", t4::document(tables)),
            (Format::Toml, [table]) => table.to_toml()?,
            (Format::Toml, tables) => {
                let names: Vec<_> = tables.iter().map(|table| &table.device).collect();
                return Err(Error::invalid(
                    "--device",
                    "nothing",
                    format!("one of {names:?}"),
                ));
            }
        };
        deliver(&text, self.output.as_deref())?;
        Ok(ExitCode::SUCCESS)
    }
}
