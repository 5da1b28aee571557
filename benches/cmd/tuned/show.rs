//! `ropeway tuned show`: what the tables hold, and which entry would serve a shape.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ropeway::Registry;
use ropeway::tuned::{Origin, TunedEntry, TunedTable, TunedTables};
use ropeway_core::info::DeviceInfo;
use ropeway_core::op::default_choice;
use ropeway_core::Result;
use serde::Serialize;
use serde_json::json;

use super::problem;
use super::{Chosen, is_of, sizes_text, user_files, words};
use crate::cmd::print_line;
use crate::tune::form::{self, Sizes};

/// What to list.
#[derive(Args, Debug)]
pub struct Show {
    /// Table files [default: the user's and those that ship].
    files: Vec<PathBuf>,
    /// Only this device: `backend`, `backend:number`, or the name that stands in the table.
    #[arg(long, short, value_name = "DEVICE")]
    device: Option<String>,
    /// Only this op.
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// Say which entry serves this shape instead: `"m=512 n=512 k=64"`, named as the entries of the op name them.
    #[arg(long, value_name = "SIZES", requires_all = ["device", "op", "variant"], conflicts_with = "files")]
    shape: Option<String>,
    /// Dtypes and layout of the shape, as the entries of the op spell them: `f32_f32_nt`.
    #[arg(long, value_name = "WORD", requires = "shape")]
    variant: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    file: String,
    device: String,
    backend: String,
    entry: TunedEntry,
    gain: Option<f64>,
    /// `fresh`, `stale`, `unmeasured`, `default`, `refused`, `outdated` or `absent` (the device is not here to compare with).
    state: &'static str,
    /// Why it is stale, refused or outdated.
    reasons: Vec<String>,
}

impl Show {
    /// Lists: 0, or 1 if a table could not be read.
    ///
    /// # Errors
    /// `InvalidArgument` for a device or shape that cannot be meant.
    pub fn run(self) -> Result<ExitCode> {
        if let Some(shape) = &self.shape {
            return self.serving(shape);
        }
        let devices = Chosen::new(&Registry::default(), None)?;
        let (tables, damaged) = self.tables();
        let names = |table: &TunedTable| {
            self.device.as_ref().is_none_or(|device| {
                let here = devices.infos.iter().filter(|info| is_of(table, info));
                table.device == *device
                    || here.clone().any(|info| info.selector() == *device)
                    || table.backend == *device
            })
        };
        let mut rows = Vec::new();
        for (origin, table) in tables.iter().filter(|(_, table)| names(table)) {
            let info = devices.infos.iter().find(|info| is_of(table, info));
            for entry in &table.entries {
                if self.op.as_ref().is_none_or(|op| *op == entry.op) {
                    let (state, reasons) = state(entry, info);
                    rows.push(Row {
                        file: origin.to_string(),
                        device: table.device.clone(),
                        backend: table.backend.clone(),
                        gain: entry.gain(),
                        entry: entry.clone(),
                        state,
                        reasons,
                    });
                }
            }
        }
        match self.json {
            true => print_line(format_args!(
                "{:#}",
                json!({"entries": rows, "damaged": damaged})
            ))?,
            false => print_rows(&rows)?,
        }
        for error in &damaged {
            eprintln!("{error}");
        }
        Ok(ExitCode::from(u8::from(!damaged.is_empty())))
    }

    /// The tables, and what cannot be read.
    fn tables(&self) -> (Vec<(Origin, TunedTable)>, Vec<String>) {
        let mut tables = Vec::new();
        let mut damaged = Vec::new();
        let files = match self.files.is_empty() {
            true => user_files(),
            false => self.files.clone(),
        };
        for path in files {
            match super::read(&path) {
                Ok(table) => tables.push((Origin::User(path), table)),
                Err(error) => damaged.push(error.context().to_owned()),
            }
        }
        if self.files.is_empty() {
            for (path, text) in ropeway_kernels::TUNED {
                match TunedTable::parse(text) {
                    Ok(table) => tables.push((Origin::Shipped(path), table)),
                    Err(error) => damaged.push(format!("{path}: {}", error.context())),
                }
            }
        }
        (tables, damaged)
    }

    fn serving(&self, shape: &str) -> Result<ExitCode> {
        let (op, variant) = (
            self.op.as_deref().unwrap_or_default(),
            self.variant.as_deref().unwrap_or_default(),
        );
        let sizes = sizes(shape)?;
        let devices = Chosen::new(&Registry::default(), self.device.as_deref())?;
        let info = &devices.infos[0];
        let question = problem::pose(op, variant, &sizes, info)?.question;
        let tables = TunedTables::load();
        let found = tables.find(&question.key(), info, &question.candidates);
        let (default, config) = default_choice(op, &question.candidates, info)?;
        if self.json {
            let report = match &found {
                Some(found) => json!({
                    "device": info.selector(),
                    "entry": found.entry,
                    "file": found.origin.to_string(),
                    "served": format!("{:?}", found.served).to_lowercase(),
                }),
                None => {
                    json!({"device": info.selector(), "kernel": default.name, "config": config.to_string(), "served": "default"})
                }
            };
            print_line(format_args!("{report:#}"))?;
        } else {
            print_line(match &found {
                Some(found) => format!(
                    "{} {}\n  {:?}: {} of {}",
                    found.entry.kernel,
                    words(&found.entry.config),
                    found.served,
                    found.entry,
                    found.origin
                ),
                None => format!(
                    "{} {config}\n  the default: no entry serves it",
                    default.name
                ),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sizes(shape: &str) -> Result<Sizes> {
    let words = form::words(shape)?.into_iter();
    words
        .map(|(name, value)| Ok((name.to_owned(), form::size(name, value)?)))
        .collect()
}

/// What can be said of an entry without running it.
fn state(entry: &TunedEntry, info: Option<&DeviceInfo>) -> (&'static str, Vec<String>) {
    if let Some(fault) = entry.fault() {
        return ("refused", vec![fault]);
    }
    let kinds = ropeway_kernels::op(&entry.op);
    let kernels = kinds.map(|kind| kind.kernels()).unwrap_or_default();
    let kernel = kernels.iter().find(|kernel| kernel.name == entry.kernel);
    let Some(kernel) = kernel else {
        return (
            "outdated",
            vec![format!("{} has no kernel {}", entry.op, entry.kernel)],
        );
    };
    if kernel.version != entry.version {
        let why = format!("{} has version {} now", kernel.name, kernel.version);
        return ("outdated", vec![why]);
    }
    if let Some(info) = info
        && let Err(error) = kernel.validate(&entry.configuration(), info)
    {
        return ("outdated", vec![error.context().to_owned()]);
    }
    match (info, &entry.provenance) {
        _ if entry.keeps_default() => ("default", Vec::new()),
        _ if entry.measured.is_none() => ("unmeasured", Vec::new()),
        (None, _) => ("absent", Vec::new()),
        (Some(_), None) => (
            "stale",
            vec!["nobody knows what it was measured with".into()],
        ),
        (Some(info), Some(provenance)) => match provenance.stale(kernel, info) {
            reasons if reasons.is_empty() => ("fresh", reasons),
            reasons => ("stale", reasons),
        },
    }
}

fn print_rows(rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        return print_line("no entries; `ropeway tune` makes them");
    }
    let mut heading = None;
    let mut table = new_table();
    for row in rows {
        let of = (row.file.clone(), row.device.clone(), row.backend.clone());
        if heading.as_ref() != Some(&of) {
            flush(&mut table)?;
            print_line(format_args!(
                "{} through {}: {}",
                of.1.escape_debug(),
                of.2.escape_debug(),
                of.0
            ))?;
            heading = Some(of);
        }
        let measured = row.entry.measured.as_ref();
        let cells = [
            row.entry.op.clone(),
            row.entry.variant.clone(),
            sizes_text(&row.entry),
            format!("{} {}", row.entry.kernel, words(&row.entry.config)),
            row.gain
                .map_or(String::new(), |gain| format!("{gain:.2} ×")),
            measured.map_or(String::new(), |m| format!("{:.3}", m.error_over_bound)),
            match row.reasons.is_empty() {
                true => row.state.to_owned(),
                false => format!("{}: {}", row.state, row.reasons.join("; ")),
            },
        ];
        // A file may hold anything.
        table.add_row(cells.map(|cell| cell.replace(char::is_control, "\u{fffd}")));
    }
    flush(&mut table)
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "op",
        "variant",
        "sizes",
        "kernel",
        "gain",
        "error / bound",
        "state",
    ]);
    for column in 4..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn flush(table: &mut Table) -> Result<()> {
    if table.row_count() > 0 {
        print_line(&*table)?;
    }
    *table = new_table();
    Ok(())
}
