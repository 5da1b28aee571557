//! `ropeway tuned show`: what the tables hold, and which entry would serve a shape.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ropeway::Registry;
use ropeway::tuned::{Origin, TunedEntry, TunedTable, TunedTables};
use ropeway_core::Result;
use ropeway_core::info::DeviceInfo;
use ropeway_core::op::default_choice;
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
            let info = device_of(origin, table, &devices.infos);
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
        let why = format!("{} has no kernel {}", entry.op, entry.kernel);
        return ("outdated", vec![why]);
    };
    if kernel.version != entry.version {
        let why = format!("{} has version {} now", kernel.name, kernel.version);
        return ("outdated", vec![why]);
    }
    let Some(info) = info else {
        return ("absent", Vec::new());
    };
    if let Err(error) = kernel.validate(&entry.configuration(), info) {
        return ("outdated", vec![error.context().to_owned()]);
    }
    if let Some(why) = not_chosen(entry, info) {
        return ("outdated", vec![why]);
    }
    let reasons = match (&entry.measured, &entry.provenance) {
        (None, _) => return ("unmeasured", Vec::new()),
        (_, None) => vec!["nobody knows what it was measured with".into()],
        (_, Some(provenance)) => provenance.stale(kernel, info),
    };
    match (reasons.is_empty(), entry.keeps_default()) {
        (false, _) => ("stale", reasons),
        (true, true) => ("default", reasons),
        (true, false) => ("fresh", reasons),
    }
}

/// Why the look-up passes over an entry for every problem of its key that is known; `None` as well if none is known.
fn not_chosen(entry: &TunedEntry, info: &DeviceInfo) -> Option<String> {
    let mut why = None;
    for posed in problem::known(&entry.op, &entry.variant, &entry.sizes, info) {
        if posed.candidate(entry).is_none() {
            why = Some(format!("{} is no kernel for it here", entry.kernel));
            continue;
        }
        let measured = entry.measured.as_ref().map(|m| m.default_kernel.as_str());
        let default = default_choice(&entry.op, &posed.question.candidates, info);
        match (measured, default.map(|(kernel, _)| kernel.name)) {
            (Some(then), Ok(now)) if then != now => {
                why = Some(format!("measured against {then}; the default is {now} now"));
            }
            _ => return None,
        }
    }
    why
}

/// The device that a table's entries are for, if it is here: of the same name or, for a table that ships, of the same architecture.
fn device_of<'a>(
    origin: &Origin,
    table: &TunedTable,
    infos: &'a [DeviceInfo],
) -> Option<&'a DeviceInfo> {
    let sibling = |info: &&DeviceInfo| {
        matches!(origin, Origin::Shipped(_))
            && table.backend == info.backend
            && !table.architecture.is_empty()
            && table.architecture == info.architecture
    };
    let same = infos.iter().find(|info| is_of(table, info));
    same.or_else(|| infos.iter().find(sibling))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ropeway::tuned::{Measured, Provenance};
    use ropeway_core::kernel::{Kernel, Language};

    use super::*;

    /// Planning asks a device's description alone, so that any device can be played.
    fn info() -> DeviceInfo {
        let cpu = Registry::default().open("cpu").expect("always there");
        let mut info = cpu.info().clone();
        info.backend = "opencl";
        info.languages = vec![Language::OpenClC];
        info.limits.max_group_size = 256;
        info.limits.max_group = [256; 3];
        info.limits.local_memory = 32 << 10;
        info
    }

    fn kernel(name: &str) -> &'static Kernel {
        let kernels = ropeway_kernels::op("gemm").expect("an op").kernels();
        kernels
            .iter()
            .find(|kernel| kernel.name == name)
            .expect(name)
    }

    /// The kernel in its default configuration, measured a moment ago to be twice as fast as the default.
    fn entry(name: &str, default: &str, info: &DeviceInfo) -> TunedEntry {
        let kernel = kernel(name);
        let config = kernel.default_config();
        let value = |name: &'static str| (name.to_owned(), config.value(name));
        TunedEntry {
            op: "gemm".into(),
            variant: "f32_f32_nn".into(),
            sizes: BTreeMap::from([("m", 512), ("n", 512), ("k", 512)].map(|(n, s)| (n.into(), s))),
            kernel: name.into(),
            version: kernel.version,
            config: kernel.tunables.iter().map(|t| value(t.name)).collect(),
            measured: Some(Measured {
                seconds: 1e-3,
                deviation: 0.0,
                samples: 9,
                default_kernel: default.into(),
                default_seconds: 2e-3,
                default_deviation: 0.0,
                error_over_bound: 0.5,
                along: Vec::new(),
            }),
            provenance: Some(Provenance::of(kernel, info, "2026-01-31", 1)),
        }
    }

    #[test]
    fn each_state_means_what_the_guide_says() {
        let info = info();
        let question = problem::pose(
            "gemm",
            "f32_f32_nn",
            &entry("gemm_tiled", "", &info).sizes,
            &info,
        );
        let question = question.expect("of OpenCL").question;
        let default = default_choice("gemm", &question.candidates, &info)
            .expect("one")
            .0
            .name;
        let other = ["gemm_tiled", "gemm_packed"]
            .into_iter()
            .find(|name| *name != default);
        let other = other.expect("two");
        let fresh = entry(other, default, &info);
        let mut won = entry(default, default, &info);
        measured(&mut won).seconds = measured(&mut won).default_seconds;
        assert!(won.keeps_default());

        type Change = fn(&mut TunedEntry);
        // Entry, what is changed, state where the device is here, state where it is not, and a part of the reason here.
        let table: [(&TunedEntry, Change, &str, &str, &str); 15] = [
            (&fresh, |_| {}, "fresh", "absent", ""),
            (
                &fresh,
                |e| driver(e),
                "stale",
                "absent",
                "driver was \"old\"",
            ),
            (
                &fresh,
                |e| e.provenance = None,
                "stale",
                "absent",
                "nobody knows",
            ),
            (&won, |_| {}, "default", "absent", ""),
            (&won, |e| driver(e), "stale", "absent", "driver was"),
            (&fresh, |e| e.measured = None, "unmeasured", "absent", ""),
            (
                &fresh,
                |e| e.kernel = "gone".into(),
                "outdated",
                "outdated",
                "no kernel gone",
            ),
            (
                &fresh,
                |e| e.op = "gone".into(),
                "outdated",
                "outdated",
                "gone has no kernel",
            ),
            (
                &fresh,
                |e| e.version += 1,
                "outdated",
                "outdated",
                "version",
            ),
            (&won, |e| e.version += 1, "outdated", "outdated", "version"),
            (&fresh, |e| e.config.clear(), "outdated", "absent", ""),
            (
                &fresh,
                |e| measured(e).default_kernel = "gone".into(),
                "outdated",
                "absent",
                "measured against gone",
            ),
            (
                &fresh,
                |e| e.variant = "f32_f32_nt".into(),
                "fresh",
                "absent",
                "",
            ),
            (
                &fresh,
                |e| measured(e).seconds = 1.0,
                "refused",
                "refused",
                "slower",
            ),
            (
                &fresh,
                |e| measured(e).error_over_bound = 2.0,
                "refused",
                "refused",
                "wrong",
            ),
        ];
        for (number, (entry, change, here, absent, why)) in table.into_iter().enumerate() {
            let mut entry = entry.clone();
            change(&mut entry);
            let (found, reasons) = state(&entry, Some(&info));
            assert_eq!(found, here, "{number}: {reasons:?}");
            assert!(reasons.join("; ").contains(why), "{number}: {reasons:?}");
            assert_eq!(state(&entry, None).0, absent, "{number}");
            let used = !["refused", "outdated"].contains(&found);
            let mut tables = TunedTables::default();
            let alone = TunedTable {
                entries: vec![entry.clone()],
                ..TunedTable::for_device(&info)
            };
            tables.add(&alone, Origin::User("mine.toml".into()));
            let posed = problem::pose("gemm", &entry.variant, &entry.sizes, &info).expect("a gemm");
            let key = posed.question.key();
            let served = tables.find(&key, &info, &posed.question.candidates);
            assert_eq!(served.is_some(), used, "{number}: the look-up agrees");
        }
        // A kernel that this device has not.
        let native = entry("gemm_native", default, &info);
        let (found, why) = state(&native, Some(&info));
        assert_eq!(found, "outdated", "{why:?}");
    }

    fn measured(entry: &mut TunedEntry) -> &mut Measured {
        entry.measured.as_mut().expect("there")
    }

    fn driver(entry: &mut TunedEntry) {
        entry.provenance.as_mut().expect("there").driver = "old".into();
    }

    #[test]
    fn what_ships_for_an_architecture_is_compared_with_a_sibling() {
        let mut info = info();
        info.architecture = "arch".into();
        let table = |name: &str, architecture: &str| TunedTable {
            device: name.into(),
            backend: "opencl".into(),
            architecture: architecture.into(),
            entries: Vec::new(),
        };
        let infos = [info.clone()];
        let found = |origin, table| device_of(&origin, &table, &infos).is_some();
        let user = || Origin::User("mine.toml".into());
        let ships = || Origin::Shipped("gemm/tuned/sibling.toml");
        assert!(found(user(), table(&info.name, "")));
        assert!(found(ships(), table("sibling", "arch")));
        assert!(!found(user(), table("sibling", "arch")));
        assert!(!found(ships(), table("sibling", "")));
    }
}
