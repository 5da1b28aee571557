//! `ropeway check`: the conformance suite on the devices of this machine.

use std::hash::{BuildHasher, RandomState};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use ropeway::{Probe, Registry};
use ropeway_conformance::cases::{self, Case, Replay, Selection};
use ropeway_conformance::report::{self, DeviceReport, Outcome, Report, Status};
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_core::device::Device;
use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, Result};

use super::{devices, print_line};

/// What to check, and how to say what came of it.
#[derive(Args, Debug)]
pub struct Check {
    /// Only cases whose id contains this (`gemm`, `moe_ffn/fixed`, `device/copies`).
    filter: Option<String>,

    /// Only this device, `backend` or `backend:number`; may be repeated. All devices otherwise.
    #[arg(short, long, value_name = "DEVICE")]
    device: Vec<String>,

    /// Where generated cases come from, decimal or 0x…. The gate has a fixed seed, a full run a new one each time.
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,

    /// Generated cases on each device, spread over the ops [default: 340, with --full 4200].
    #[arg(long, value_name = "N")]
    cases: Option<usize>,

    /// Thousands of generated cases from a new seed.
    #[arg(long)]
    full: bool,

    /// Name the cases instead of running them.
    #[arg(long)]
    list: bool,

    /// Run one case again: its id, or the request file that a failing run saved.
    #[arg(long, value_name = "ID|FILE", conflicts_with_all = ["filter", "full", "list", "seed", "cases"])]
    replay: Option<String>,

    /// Only op cases of at most this many operations and bytes together, for devices that watch every access and are slow.
    #[arg(long, value_name = "N")]
    max_work: Option<f64>,

    /// Only the Ith of N parts of the cases: `1/2` and `2/2` are all of them, for two processes.
    #[arg(long, value_name = "I/N", value_parser = parse_shard, conflicts_with = "replay")]
    shard: Option<Shard>,

    /// Only op cases that this kernel can run, on it.
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,

    /// How to write the report.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Shorthand for `--format json`.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Cases that run at once [default: one a core].
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,

    /// Where the request files of failing cases go.
    #[arg(long, value_name = "DIR", default_value = "conformance-failures")]
    save: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
    /// For continuous integration.
    Junit,
}

fn parse_seed(text: &str) -> std::result::Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// A part of the cases.
#[derive(Clone, Copy, Debug)]
struct Shard {
    /// From 0.
    number: usize,
    of: usize,
}

fn parse_shard(text: &str) -> std::result::Result<Shard, String> {
    let numbers = text.split_once('/').and_then(|(number, of)| {
        let (number, of) = (number.parse::<usize>().ok()?, of.parse().ok()?);
        (1..=of).contains(&number).then(|| (number - 1, of))
    });
    match numbers {
        Some((number, of)) => Ok(Shard { number, of }),
        None => Err("I/N with I from 1 to N".into()),
    }
}

impl Check {
    /// Runs the suite: 0 if everything passed, 1 if something failed.
    ///
    /// # Errors
    /// `InvalidArgument` for a device, filter, kernel or id that does not exist.
    pub fn run(mut self) -> Result<ExitCode> {
        if self.json {
            self.format = Format::Json;
        }
        let registry = Registry::default();
        let probes = registry.probe();
        if self.format == Format::Table && !self.list {
            print_line(devices::to_text(&probes))?;
            print_line("")?;
        }
        let mut report = Report::default();
        let chosen = self.choose(probes, &mut report)?;
        let seed = self.seed.unwrap_or(match self.full {
            true => RandomState::new().hash_one(std::process::id()),
            false => Selection::GATE_SEED,
        });
        let mut matched = false;
        for info in &chosen {
            let cases = match self.select(info, seed) {
                Ok(cases) => cases,
                // A filter may name what only some of the devices have.
                Err(error) if chosen.len() > 1 && self.replay.is_none() => {
                    eprintln!("{}: {}", report::title(info), error.context());
                    continue;
                }
                Err(error) => return Err(error),
            };
            matched = true;
            if self.list {
                for case in &cases {
                    print_line(format_args!("{} {}", info.selector(), case.id))?;
                }
                continue;
            }
            let device = registry.open(&info.selector())?;
            report.devices.push(self.check(&device, &cases, seed)?);
        }
        if !matched {
            return Err(Error::invalid(
                "filter",
                "no case on any device",
                "at least one (`ropeway check --list` shows them all)",
            ));
        }
        if self.list {
            return Ok(ExitCode::SUCCESS);
        }
        match self.format {
            Format::Table => print_line(verdict_text(&report))?,
            Format::Json => print_line(format_args!("{:#}", report::json(&report)))?,
            Format::Junit => print_line(report::junit(&report).trim_end())?,
        }
        // What the layer says after a device's last wait is in no case's verdict.
        let (messages, first) = ropeway_backends::vulkan::validation_messages();
        if messages > 0 {
            eprintln!(
                "{messages} messages of the Vulkan validation layer, the first: {}",
                first.unwrap_or_default()
            );
            return Ok(ExitCode::FAILURE);
        }
        Ok(match report.passes() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    /// The devices to check; into the report go the backends that have none.
    fn choose(&self, probes: Vec<Probe>, report: &mut Report) -> Result<Vec<DeviceInfo>> {
        let mut found = Vec::new();
        for probe in probes {
            match probe.devices {
                Ok(devices) => found.extend(devices),
                Err(why) => report.missing.push((probe.backend.into(), why)),
            }
        }
        let names = |info: &DeviceInfo, selector: &str| {
            info.selector() == selector || info.backend == selector
        };
        for selector in &self.device {
            if found.iter().any(|info| names(info, selector)) {
                continue;
            }
            return Err(match report.missing.iter().find(|(b, _)| b == selector) {
                Some((_, why)) => Error::invalid("device", selector, why),
                None => {
                    let known: Vec<_> = found.iter().map(DeviceInfo::selector).collect();
                    Error::invalid("device", selector, format!("one of {known:?}"))
                }
            });
        }
        if !self.device.is_empty() {
            found.retain(|info| self.device.iter().any(|s| names(info, s)));
        }
        match found.is_empty() {
            true => Err(Error::invalid("device", "none", "at least one")),
            false => Ok(found),
        }
    }

    fn select(&self, info: &DeviceInfo, seed: u64) -> Result<Vec<Case>> {
        let mut cases = match self.replay.as_deref().map(Replay::new) {
            Some(Replay::Id(id)) => Ok(vec![cases::by_id(info, &id)?]),
            Some(Replay::File(path)) => Ok(vec![cases::saved(&path)?]),
            None => cases::select(
                info,
                &Selection {
                    filter: self.filter.clone(),
                    kernel: self.kernel.clone(),
                    max_work: self.max_work,
                    seed,
                    generated: self.cases.unwrap_or(match self.full {
                        true => Selection::FULL_GENERATED,
                        false => Selection::GATE_GENERATED,
                    }),
                },
            ),
        }?;
        if let Some(Shard { number, of }) = self.shard {
            let all = cases.len();
            // To and fro, since kernels take turns in the list and one of them may be the slow one.
            let holds = |at: usize| match (at / of) % 2 {
                0 => at % of == number,
                _ => of - 1 - at % of == number,
            };
            let numbered = cases.into_iter().enumerate();
            cases = numbered
                .filter(|(at, _)| holds(*at))
                .map(|(_, case)| case)
                .collect();
            if cases.is_empty() {
                let found = format!("{}/{of}", number + 1);
                return Err(Error::invalid(
                    "shard",
                    found,
                    format!("I up to {all}, the cases"),
                ));
            }
        }
        Ok(cases)
    }

    fn check(&self, device: &Arc<dyn Device>, cases: &[Case], seed: u64) -> Result<DeviceReport> {
        let defaults = Settings::default();
        let settings = Settings {
            jobs: self.jobs.unwrap_or(defaults.jobs),
            save: Some(self.save.clone()),
            seed,
            complete: self.filter.is_none()
                && self.shard.is_none()
                && self.kernel.is_none()
                && self.replay.is_none(),
        };
        let title = report::title(device.info());
        let progress = Progress::new(&title, cases.len());
        let suite = Suite::new(Arc::clone(device), settings)?;
        let report = suite.run(cases, |outcome| progress.step(outcome))?;
        progress.finish();
        if self.format == Format::Table {
            print_line(device_text(&report))?;
        }
        Ok(report)
    }
}

/// A bar on a terminal, lines for failures and each tenth of the way otherwise; always on stderr.
struct Progress {
    bar: ProgressBar,
    plain: bool,
    title: String,
}

impl Progress {
    fn new(title: &str, cases: usize) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let bar = match plain {
            true => ProgressBar::hidden(),
            false => ProgressBar::no_length(),
        };
        bar.set_length(cases as u64);
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:32}] {pos}/{len} {elapsed_precise} {wide_msg}",
        );
        bar.set_style(style.expect("a valid template").progress_chars("=> "));
        bar.set_prefix(title.to_owned());
        Progress {
            bar,
            plain,
            title: title.to_owned(),
        }
    }

    fn step(&self, outcome: &Outcome) {
        self.bar.set_message(outcome.id.clone());
        self.bar.inc(1);
        let say = |line: String| match self.plain {
            true => eprintln!("{line}"),
            false => self.bar.println(line),
        };
        if let Status::Failed(findings) = &outcome.status {
            let first = findings.first().map_or("", String::as_str);
            say(format!("FAILED {}: {first}", outcome.id));
        }
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(1).max(1));
        if self.plain && done * 10 / all != (done - 1) * 10 / all {
            say(format!("{}: {done} of {all} cases", self.title));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A device's table, then what needs a reader's eye: skips, notes, failures and how to replay them.
fn device_text(report: &DeviceReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        &*report.title(),
        "passed",
        "failed",
        "skipped",
        "error / bound",
        "seconds",
    ]);
    for (group, counts) in report.groups() {
        let skipped = match counts.expected_failures {
            0 => counts.skipped.to_string(),
            n => format!("{} + {n} expected failures", counts.skipped),
        };
        let ratio = match group {
            "device" => String::new(),
            _ if counts.passed == 0 => String::new(),
            _ => format!("{:.3}", counts.worst_ratio),
        };
        table.add_row([
            group.to_owned(),
            counts.passed.to_string(),
            counts.failed.to_string(),
            skipped,
            ratio,
            format!("{:.1}", counts.seconds),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![table.to_string()];
    let total = report.total();
    for (reason, count) in &total.reasons {
        lines.push(format!("  skipped {count}: {reason}"));
    }
    let noted = report.outcomes.iter().filter(|o| !o.notes.is_empty());
    match noted.clone().count() {
        0 => {}
        // The figures of each are in the JSON report.
        count => {
            let example = noted.clone().find_map(|o| o.notes.first());
            let example = example.map_or("", String::as_str);
            lines.push(format!("  noted {count}: such as \"{example}\""));
        }
    }
    for (outcome, findings) in report.failures() {
        lines.push(format!("\nFAILED {}", outcome.id));
        lines.extend(findings.iter().map(|finding| format!("  {finding}")));
        if let Some(path) = &outcome.saved {
            lines.push(format!("  saved: {}", path.display()));
        }
        lines.push(format!(
            "  replay: ropeway check --device {} --replay {}",
            report.info.selector(),
            outcome.replay()
        ));
    }
    for entry in &report.unmatched {
        lines.push(format!(
            "\nFAILED expectations of {}: {entry}",
            report.info.backend
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The last lines: each device's verdict.
fn verdict_text(report: &Report) -> String {
    let mut lines = Vec::new();
    for device in &report.devices {
        let total = device.total();
        lines.push(format!(
            "{} {}: {} passed, {} failed, {} skipped{} in {:.1} s, seed 0x{:x}",
            match device.passes() {
                true => "ok    ",
                false => "FAILED",
            },
            device.title(),
            total.passed,
            total.failed + device.unmatched.len(),
            total.skipped,
            match total.expected_failures {
                0 => String::new(),
                n => format!(", {n} failed as expected"),
            },
            device.seconds,
            device.seed
        ));
        if total.passed + total.expected_failures == 0 {
            lines.push("       nothing ran, which is a failure".into());
        }
    }
    lines.join("\n")
}
