//! `ropeway tuned verify`: whether what the tables say still holds on the devices that are here.
//!
//! Each entry is held to the f64 reference at its shape and its edges, then timed as an engine would run it: one session that knows the
//! entry and one that knows none, in turn. What holds gets new measured values and a new provenance; what does not is reported.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ropeway::tuned::{Measured, Origin, Provenance, Served, TunedEntry, TunedTable, TunedTables};
use ropeway::{PlanOptions, Registry, Session};
use ropeway_conformance::ops::{self, Subject, Variant, check_plan};
use ropeway_conformance::verdict::Verdict;
use ropeway_core::device::Device;
use ropeway_core::info::Execution;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::{Op, PlanRequest, default_choice};
use ropeway_core::request::Request;
use ropeway_core::spec::DataClass;
use ropeway_core::{Error, ErrorKind, Result};
use serde::Serialize;

use super::problem::{self, Posed};
use super::{Chosen, is_of, loaded, percent, sizes_text, user_files};
use crate::cmd::bench::{bind, today};
use crate::cmd::print_line;
use crate::definition::Workload;
use crate::measure::measure;
use crate::tune::gate::{self, ROUNDS, Summary};

/// Operations of the largest shape that is checked whole; a larger one is checked at a smaller size.
const WHOLE_WORK: f64 = 3e8;

/// Bytes of the largest problem that is checked.
const MOST_BYTES: u64 = 1 << 30;

/// Which entries to verify, and what to do about those that fail.
#[derive(Args, Debug)]
pub struct Verify {
    /// Table files [default: the user's].
    files: Vec<PathBuf>,
    /// Only this device, `backend` or `backend:number`. All that are here otherwise.
    #[arg(long, short, value_name = "DEVICE")]
    device: Option<String>,
    /// Only this op.
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// Seconds of measuring for each entry.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    seconds: f64,
    /// Remove the entries that are wrong, lose to the default or are no valid choice.
    #[arg(long)]
    fix: bool,
    /// Write nothing.
    #[arg(long, conflicts_with = "fix")]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    /// Right, and faster than the default beyond the noise.
    Holds,
    /// Right, and not to be told from the default.
    Even,
    /// Right, and slower than the default beyond the noise.
    Loses,
    /// Its results are outside their bounds.
    Wrong,
    /// It cannot be chosen by this version on this device.
    Invalid,
    /// No problem could be made of it, or the device cannot run it; the entry stays.
    Unverified,
}

impl Finding {
    fn fails(self) -> bool {
        matches!(self, Finding::Loses | Finding::Wrong | Finding::Invalid)
    }
}

#[derive(Serialize)]
struct Row {
    device: String,
    file: String,
    entry: TunedEntry,
    finding: Finding,
    /// Why, where it does not hold.
    reason: String,
    /// Median seconds of the entry and of the default, and the error divided by its bound, as measured now.
    now: Option<Measured>,
    /// How much longer it takes than the faster of entry and default: 0.1 is ten per cent lost.
    regret: Option<f64>,
    removed: bool,
    /// The entry as it is to be written.
    #[serde(skip)]
    renewed: Option<TunedEntry>,
}

impl Verify {
    /// Verifies: 0 if nothing failed, 1 if something did or nothing could be verified.
    ///
    /// # Errors
    /// `InvalidArgument` for a device that does not exist, `File` for a table that cannot be read.
    pub fn run(self) -> Result<ExitCode> {
        if !(self.seconds > 0.0 && self.seconds <= 3600.0) {
            return Err(Error::invalid(
                "--seconds",
                self.seconds,
                "more than 0, at most 3600",
            ));
        }
        let (rows, absent) = self.rows(&Registry::default())?;
        self.report(&rows, &absent)?;
        let verified = rows.iter().any(|row| row.finding != Finding::Unverified);
        let failed = rows.iter().any(|row| row.finding.fails());
        Ok(match verified && !failed {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    /// Verifies, and changes the files as it should: what came of each entry, and the tables of no device that is here.
    fn rows(&self, registry: &Registry) -> Result<(Vec<Row>, Vec<String>)> {
        let files = match self.files.is_empty() {
            true => user_files(),
            false => self.files.clone(),
        };
        let tables = loaded(&files)?;
        let devices = Chosen::new(registry, self.device.as_deref())?;
        let mut rows = Vec::new();
        let mut absent = Vec::new();
        for (path, table) in tables {
            let info = devices.infos.iter().find(|info| is_of(&table, info));
            let Some(info) = info else {
                absent.push(format!("{}: {} is not here", path.display(), table.device));
                continue;
            };
            let wanted = |entry: &&TunedEntry| self.op.as_ref().is_none_or(|op| *op == entry.op);
            if table.entries.iter().filter(wanted).count() == 0 {
                continue;
            }
            let subject = Subject::new(registry.open(&info.selector())?);
            for entry in table.entries.iter().filter(wanted) {
                eprintln!("{} {entry}", info.selector());
                let mut row = self.verify(&subject, &table, entry)?;
                row.file = path.display().to_string();
                if !self.dry_run {
                    row.removed = self.write(&path, &row)?;
                }
                rows.push(row);
            }
        }
        Ok((rows, absent))
    }

    fn verify(&self, subject: &Subject, table: &TunedTable, entry: &TunedEntry) -> Result<Row> {
        let mut row = Row {
            device: subject.info().selector(),
            file: String::new(),
            entry: entry.clone(),
            finding: Finding::Unverified,
            reason: String::new(),
            now: None,
            regret: None,
            removed: false,
            renewed: None,
        };
        let judged = self.judge(subject, table, entry, &mut row);
        (row.finding, row.reason) = match judged {
            Ok(judged) => judged,
            // A device that is lost takes the rest with it.
            Err(error) if error.kind() == ErrorKind::DeviceLost => return Err(error),
            Err(error) => (Finding::Unverified, error.to_string()),
        };
        Ok(row)
    }

    fn judge(
        &self,
        subject: &Subject,
        table: &TunedTable,
        entry: &TunedEntry,
        row: &mut Row,
    ) -> Result<(Finding, String)> {
        let info = subject.info();
        if matches!(info.execution, Execution::Recorded | Execution::Emulated) {
            return Err(Error::unsupported("the device's times are no times"));
        }
        let posed = problem::pose_entry(entry, info)?;
        let bytes = problem::bytes(&*posed.workload.op(&posed.dtype)?)?;
        if bytes > info.memory / 2 {
            let lack = format!("its {bytes} bytes are more than half of the device's memory");
            return Err(Error::unsupported(lack));
        }
        let valid = posed
            .candidate(entry)
            .ok_or_else(|| format!("{} is no kernel for it here", entry.kernel))
            .and_then(|kernel| match kernel.version == entry.version {
                true => Ok(kernel),
                false => Err(format!(
                    "{} has version {} now",
                    kernel.name, kernel.version
                )),
            })
            .and_then(
                |kernel| match kernel.validate(&entry.configuration(), info) {
                    Ok(()) => Ok(kernel),
                    Err(error) => Err(error.context().to_owned()),
                },
            );
        let kernel = match valid {
            Ok(kernel) => kernel,
            Err(reason) => return Ok((Finding::Invalid, reason)),
        };
        let error_over_bound = match conformance(subject, entry, &posed)? {
            Ok(ratio) => ratio,
            Err(findings) => return Ok((Finding::Wrong, findings.join("; "))),
        };
        if entry.keeps_default() {
            return Ok((Finding::Even, "it is the default".into()));
        }
        let (default, _) = default_choice(&entry.op, &posed.question.candidates, info)?;
        let times = self.times(subject.device(), table, entry, &posed)?;
        let now = times.measured(default, error_over_bound);
        row.regret = Some((now.seconds / now.seconds.min(now.default_seconds) - 1.0).max(0.0));
        row.now = Some(now.clone());
        let (finding, reason) = times.finding();
        if finding == Finding::Holds {
            let seed = entry.provenance.as_ref().map_or(0, |then| then.seed);
            row.renewed = Some(TunedEntry {
                measured: Some(now),
                provenance: Some(Provenance::of(kernel, info, today(), seed)),
                ..entry.clone()
            });
        }
        Ok((finding, reason.into()))
    }

    /// The entry and the default in turn, through the public interface.
    fn times(
        &self,
        device: &Arc<dyn Device>,
        table: &TunedTable,
        entry: &TunedEntry,
        posed: &Posed,
    ) -> Result<Times> {
        let (request, op) = posed.workload.request(&posed.dtype)?;
        // Whatever is recorded of it, the look-up shall serve it: it is measured here.
        let mut alone = TunedTable {
            entries: vec![TunedEntry {
                measured: None,
                ..entry.clone()
            }],
            ..table.clone()
        };
        alone.device.clone_from(&device.info().name);
        let mut tables = TunedTables::default();
        tables.add(&alone, Origin::User(PathBuf::from("verified")));
        let found = tables.find(
            &posed.question.key(),
            device.info(),
            &posed.question.candidates,
        );
        if found.is_none_or(|found| found.served != Served::Exact) {
            return Err(Error::unsupported("the look-up does not serve it"));
        }
        let sessions = [
            Session::with_tuned(Arc::clone(device), Box::new(tables))?,
            Session::with_tuned(Arc::clone(device), Box::new(()))?,
        ];
        let budget = Duration::from_secs_f64(self.seconds / f64::from(2 * ROUNDS));
        let options = PlanOptions {
            prepared: posed.workload.prepared.clone(),
            ..PlanOptions::default()
        };
        let bind = |session| {
            let executable = Session::plan_with(session, &*op, &options)?;
            let cold = posed.workload.cold;
            bind(session, &*op, &request, &options, &executable, cold)
        };
        let bound = sessions.iter().map(bind).collect::<Result<Vec<_>>>()?;
        let mut rounds = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            // Who begins changes, so that what drifts meets both.
            for turn in 0..2 {
                let who = (round + turn) as usize % 2;
                let queue = sessions[who].queue();
                let timing = measure(queue, budget, |run| {
                    bound[who][run % bound[who].len()].enqueue(&**queue)
                })?;
                rounds[who].push(timing.median);
            }
        }
        Ok(Times(rounds))
    }

    /// Brings the file up to date with what was found; whether the entry is gone from it.
    fn write(&self, path: &Path, row: &Row) -> Result<bool> {
        let remove = self.fix && row.finding.fails();
        if !remove && row.renewed.is_none() {
            return Ok(false);
        }
        let mut removed = false;
        TunedTable::update(path, |table| {
            // Not there: somebody has written another one meanwhile, which is not what was verified.
            let verified = table.entries.iter().position(|entry| *entry == row.entry);
            match (verified, &row.renewed) {
                (None, _) => {}
                (Some(at), Some(renewed)) => table.entries[at] = renewed.clone(),
                (Some(at), None) => {
                    table.entries.remove(at);
                    removed = true;
                }
            }
        })?;
        Ok(removed)
    }

    fn report(&self, rows: &[Row], absent: &[String]) -> Result<()> {
        if self.json {
            let report = serde_json::json!({"entries": rows, "absent": absent});
            return print_line(format_args!("{report:#}"));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "device",
            "op",
            "variant",
            "sizes",
            "kernel",
            "then",
            "now",
            "error / bound",
            "regret",
            "finding",
        ]);
        for row in rows {
            let gain = |measured: &Option<Measured>| {
                let gain = measured.as_ref().map(|m| m.default_seconds / m.seconds);
                gain.map_or(String::new(), |gain| format!("{gain:.2} ×"))
            };
            let finding = match (row.finding.fails(), row.removed) {
                (_, true) => format!("{:?}, removed", row.finding),
                (true, false) => format!("{:?}", row.finding).to_uppercase(),
                (false, false) => format!("{:?}", row.finding).to_lowercase(),
            };
            table.add_row([
                row.device.clone(),
                row.entry.op.clone(),
                row.entry.variant.clone(),
                sizes_text(&row.entry),
                row.entry.kernel.clone(),
                gain(&row.entry.measured),
                gain(&row.now),
                row.now
                    .as_ref()
                    .map_or(String::new(), |m| format!("{:.3}", m.error_over_bound)),
                row.regret.map_or(String::new(), percent),
                finding,
            ]);
        }
        for column in 5..9 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        print_line(table)?;
        for row in rows.iter().filter(|row| !row.reason.is_empty()) {
            print_line(format_args!(
                "  {} {}: {}",
                row.device, row.entry, row.reason
            ))?;
        }
        for line in absent {
            print_line(format_args!("  not verified: {line}"))?;
        }
        let count = |finding| rows.iter().filter(|row| row.finding == finding).count();
        print_line(format_args!(
            "{} entries: {} hold, {} even, {} lose, {} wrong, {} invalid, {} not verified",
            rows.len(),
            count(Finding::Holds),
            count(Finding::Even),
            count(Finding::Loses),
            count(Finding::Wrong),
            count(Finding::Invalid),
            count(Finding::Unverified)
        ))
    }
}

/// Medians of the rounds: the entry's, the default's.
struct Times([Vec<f64>; 2]);

impl Times {
    /// What the tuner would say of them.
    fn finding(&self) -> (Finding, &'static str) {
        let [entry, default] = &self.0;
        match (gate::beats(entry, default), gate::beats(default, entry)) {
            (true, _) => (Finding::Holds, ""),
            (_, true) => (Finding::Loses, "slower than the default"),
            _ => (Finding::Even, "within the noise of the default"),
        }
    }

    fn measured(&self, default: &Kernel, error_over_bound: f64) -> Measured {
        let [entry, of_default] = [0, 1].map(|who| Summary::of(&self.0[who]));
        Measured {
            seconds: entry.seconds,
            deviation: entry.deviation,
            samples: ROUNDS,
            default_kernel: default.name.into(),
            default_seconds: of_default.seconds,
            default_deviation: of_default.deviation,
            error_over_bound,
            along: Vec::new(),
        }
    }
}

/// The largest error ÷ bound of an entry's configuration at its shape and its edges, or what is wrong with it.
fn conformance(
    subject: &Subject,
    entry: &TunedEntry,
    posed: &Posed,
) -> Result<std::result::Result<f64, Vec<String>>> {
    let mut problems = problem::checks(posed, entry)?;
    let work = |(workload, dtype): &(Workload, String)| -> Result<f64> {
        let cost = workload.op(dtype)?.cost();
        Ok(cost.flops + cost.bytes)
    };
    let whole = (posed.workload.clone(), posed.dtype.clone());
    if work(&whole)? <= WHOLE_WORK || problems.is_empty() {
        problems.push(whole);
    }
    let kind = ops::kind_of(&entry.op)?;
    let kernel = ops::kernel_of(kind, &entry.kernel)?;
    let queue = subject
        .device()
        .create_queue(ropeway_core::device::QueueKind::Compute)?;
    let (mut worst, mut passed) = (0f64, 0);
    let mut skipped = String::new();
    for (workload, dtype) in problems {
        // An edge that the op does not take is no edge, and one that would not become small stays unmade.
        let bytes = workload.op(&dtype).and_then(|op| problem::bytes(&*op));
        if bytes.is_err() || bytes.is_ok_and(|bytes| bytes > MOST_BYTES) {
            continue;
        }
        let (request, op) = workload.request(&dtype)?;
        match check(subject, &*queue, entry, kernel, &*op, request)? {
            Verdict::Passed(pass) => {
                worst = worst.max(pass.worst_ratio);
                passed += 1;
            }
            Verdict::Skipped(reason) => skipped = reason,
            Verdict::Failed(findings) => {
                let shapes = format!("{:?}", workload.tensors);
                return Ok(Err(findings
                    .into_iter()
                    .map(|f| format!("{shapes}: {f}"))
                    .collect()));
            }
        }
    }
    match passed {
        0 => Err(Error::unsupported(format!(
            "no case could be checked: {skipped}"
        ))),
        _ => Ok(Ok(worst)),
    }
}

fn check(
    subject: &Subject,
    queue: &dyn ropeway_core::device::Queue,
    entry: &TunedEntry,
    kernel: &'static str,
    op: &dyn Op,
    request: Request,
) -> Result<Verdict> {
    let config = entry.configuration();
    let plan = op.plan(&PlanRequest {
        kernel: Some(kernel),
        config: Some(&config),
        ..PlanRequest::new(subject.info())
    });
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return Ok(Verdict::Skipped(error.context().to_owned())),
    };
    match ops::pose_request(request, DataClass::Random) {
        ops::Posed::Settled(verdict) => Ok(verdict),
        ops::Posed::Problem(problem) => {
            let variant = Variant {
                kernel: Some(kernel),
                prepared: Vec::new(),
            };
            check_plan(subject, queue, &problem, plan, &variant, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ropeway_core::info::DeviceInfo;

    use super::super::miscompiled;
    use super::*;

    /// An entry of an OpenCL kernel at m = n = k that claims to be twice as fast as `gemm_packed`.
    fn entry(kernel: &str, config: &[(&str, i64)], size: u64, info: &DeviceInfo) -> TunedEntry {
        let kernels = ropeway_kernels::op("gemm").expect("an op").kernels();
        let kernel = kernels.iter().find(|k| k.name == kernel).expect("a kernel");
        let config = config.iter().map(|(name, value)| ((*name).into(), *value));
        TunedEntry {
            op: "gemm".into(),
            variant: "f32_f32_nn".into(),
            sizes: ["m", "n", "k"].map(|name| (name.into(), size)).into(),
            kernel: kernel.name.into(),
            version: kernel.version,
            config: config.collect::<BTreeMap<_, _>>(),
            measured: Some(Measured {
                seconds: 1e-3,
                deviation: 0.0,
                samples: ROUNDS,
                default_kernel: "gemm_packed".into(),
                default_seconds: 2e-3,
                default_deviation: 0.0,
                error_over_bound: 0.5,
                along: Vec::new(),
            }),
            provenance: Some(Provenance::of(kernel, info, today(), 1)),
        }
    }

    /// The default that is said to have won.
    fn default_won(size: u64, info: &DeviceInfo) -> TunedEntry {
        let kernels = ropeway_kernels::op("gemm").expect("an op").kernels();
        let packed = kernels
            .iter()
            .find(|k| k.name == "gemm_packed")
            .expect("one");
        let config = packed.default_config();
        let config: Vec<_> = packed
            .tunables
            .iter()
            .map(|t| (t.name, config.value(t.name)))
            .collect();
        let mut entry = entry("gemm_packed", &config, size, info);
        let measured = entry.measured.as_mut().expect("there");
        measured.seconds = measured.default_seconds;
        entry
    }

    /// Verifies a table of these entries without and then with `--fix`: what each time came of the first of them, and which are left.
    fn verified(
        registry: &Registry,
        info: &DeviceInfo,
        entries: [TunedEntry; 2],
    ) -> ([Row; 2], Vec<TunedEntry>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.toml");
        let table = TunedTable {
            entries: entries.to_vec(),
            ..TunedTable::for_device(info)
        };
        std::fs::write(&path, table.to_toml().unwrap()).unwrap();
        let left = || TunedTable::read(&path).unwrap().expect("there").entries;
        let rows = [false, true].map(|fix| {
            assert_eq!(left().len(), 2, "nothing goes unasked");
            let verify = Verify {
                files: vec![path.clone()],
                device: None,
                op: None,
                seconds: 0.2,
                fix,
                dry_run: false,
                json: true,
            };
            let (rows, absent) = verify.rows(registry).unwrap();
            assert!(absent.is_empty() && rows.len() == 2);
            let mut rows = rows.into_iter();
            rows.find(|row| row.entry == entries[0]).expect("verified")
        });
        (rows, left())
    }

    #[test]
    fn an_entry_that_computes_something_else_is_wrong_and_goes_when_told() {
        let Some((registry, info)) = miscompiled::registry() else {
            return;
        };
        let wrong = entry("gemm_packed", &miscompiled::CONFIG, 384, &info);
        let right = default_won(96, &info);
        let (rows, left) = verified(&registry, &info, [wrong.clone(), right.clone()]);
        for (row, fixed) in rows.iter().zip([false, true]) {
            assert_eq!(row.finding, Finding::Wrong, "{}", row.reason);
            assert_eq!(row.removed, fixed);
            assert!(row.now.is_none(), "no time is taken of it");
            assert!(row.reason.contains("\"a\""), "{}", row.reason);
        }
        assert_eq!(left, std::slice::from_ref(&right));
        // It is the device's fault: where it has none, the entry is right.
        let (rows, _) = verified(&Registry::default(), &info, [wrong, right]);
        for row in rows {
            assert!(row.now.is_some(), "{:?}: {}", row.finding, row.reason);
        }
    }

    /// `gemm_tiled` in groups of 16 by 16 takes PoCL some thirty times as long as the default.
    #[test]
    fn an_entry_that_is_slower_than_the_default_loses_and_goes_when_told() {
        let Some((_, info)) = miscompiled::registry() else {
            return;
        };
        if !info.compiler_version.contains("PoCL") {
            eprintln!("not tested, no PoCL: {}", info.name);
            return;
        }
        let slow = [("GROUP", 16), ("PER_ITEM", 2), ("TILE_K", 16)];
        let slow = entry("gemm_tiled", &slow, 256, &info);
        let right = default_won(96, &info);
        let (rows, left) = verified(&Registry::default(), &info, [slow, right.clone()]);
        for (row, fixed) in rows.iter().zip([false, true]) {
            assert_eq!(row.finding, Finding::Loses, "{}", row.reason);
            assert_eq!(row.removed, fixed);
            assert!(row.regret.is_some_and(|r| r > 1.0), "{:?}", row.regret);
        }
        assert_eq!(left, [right]);
    }
}
