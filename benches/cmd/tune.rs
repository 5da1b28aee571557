//! `ropeway tune`: searches the tunables of the kernels on a device, and keeps what is faster beyond the noise and right.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use ropeway::{Registry, TunedTable, data_dir};
use ropeway_core::info::{DeviceInfo, Execution};
use ropeway_core::{Error, ErrorKind, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::bench::today;
use super::print_line;
use crate::definition::{self, Definition};
use crate::tune::child::{Children, Launcher};
use crate::tune::journal::{Described, Header, Journal};
use crate::tune::report::{Progress, Report};
use crate::tune::search::{Found, Search, Settings};
use crate::tune::simulate::Recording;
use crate::tune::space::Space;
use crate::tune::strategy::Choice;
use crate::tune::{Measurer, Target, form, html, worker};

/// What to tune, where, how, and for how long.
#[derive(Args, Debug)]
pub struct Tune {
    /// Only this op (`gemm`, `attention`, `moe_ffn` …); with --shape, the op that the shape is of.
    op: Option<String>,
    /// The device (`opencl`, `vulkan:1`; see `ropeway devices`).
    #[arg(long, short, default_value = "opencl", value_name = "D")]
    device: String,
    /// A file of workloads, as `ropeway bench --definition` takes it.
    #[arg(long, value_name = "FILE", group = "what")]
    shapes: Option<PathBuf>,
    /// The layers of a model, or of every model whose name begins so; `list` names them.
    #[arg(long, value_name = "NAME", group = "what")]
    model: Option<String>,
    /// One shape: sizes and attributes of the op, as `m=512 n=512 k=512 trans_b=true`. May be given several times.
    #[arg(long, value_name = "SIZES", group = "what")]
    shape: Vec<String>,
    /// Only this dtype; otherwise every dtype of a workload, and F32 of a --shape.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// Which configurations to try, and in which order.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    strategy: Choice,
    /// Seconds for all targets together; whatever is being measured is finished.
    #[arg(long, value_name = "SECONDS")]
    budget_time: Option<f64>,
    /// Configurations to try for each target; a tenth of its space otherwise, and 24 at least.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_evals: Option<u32>,
    /// Times that each configuration is measured, in passes over all of them: for a recording whose best is the best and not the luckiest.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    passes: u32,
    /// Also hold each winner to the default at eight other row counts of its bucket, and let it serve them if it loses at none.
    #[arg(long)]
    along: bool,
    /// Where chance begins: the same seed searches in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that one configuration may take to be compiled, checked and timed.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    timeout_per_config: f64,
    /// Go on where a search with the same arguments was interrupted.
    #[arg(long)]
    resume: bool,
    /// Only say what would be tried: plans every configuration and compiles none. For any device, emulated ones too.
    #[arg(long)]
    dry_run: bool,
    /// Where table, journal and report go, in place of the user's data directory.
    #[arg(long, value_name = "DIR")]
    save_dir: Option<PathBuf>,
    /// The journal, in place of one named after device and targets.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Replay a recorded search (a journal of `--strategy exhaustive`) in place of a device.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "what", "dry_run"], requires = "save_dir")]
    simulate: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The child of `ropeway tune`.
#[derive(Args, Debug)]
pub struct TuneWorker {
    #[arg(long)]
    device: String,
}

impl TuneWorker {
    /// Serves until its input ends.
    ///
    /// # Errors
    /// `File` if it cannot answer.
    pub fn run(self) -> Result<ExitCode> {
        worker::serve(&Registry::default(), &self.device)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What is searched, and the device's part of the report.
struct Job {
    described: Vec<Described>,
    unsupported: Vec<(String, String)>,
    table: TunedTable,
    table_path: PathBuf,
    driver: String,
    compiler: String,
    execution: String,
}

#[derive(Serialize)]
struct Planned<'a> {
    target: String,
    key: &'a crate::tune::space::Key,
    points: usize,
    excluded: usize,
    default: String,
    kernels: Vec<(&'a str, usize)>,
}

impl Tune {
    /// Searches, publishes, reports. The exit code is 1 if a configuration was wrong, crashed or hung.
    ///
    /// # Errors
    /// `InvalidArgument` for a call that cannot be meant; `Unavailable`, `File`.
    pub fn run(self) -> Result<ExitCode> {
        if self.model.as_deref() == Some("list") {
            for name in definition::models()? {
                print_line(name)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let seconds = [self.budget_time, Some(self.timeout_per_config)];
        if let Some(wrong) = seconds
            .into_iter()
            .flatten()
            .find(|s| !(*s > 0.0 && *s < 1e9))
        {
            return Err(Error::invalid(
                "seconds",
                wrong,
                "more than 0, less than 1e9",
            ));
        }
        if let Some(path) = &self.simulate {
            let mut recording = Recording::read(path)?;
            let job = self.recorded(&recording)?;
            return self.search(job, &mut recording, true, |_| Ok(None));
        }
        let device = Registry::default().open(&self.device)?;
        let info = device.info().clone();
        drop(device);
        let job = self.job(&info)?;
        if self.dry_run {
            return self.plan(&job);
        }
        if matches!(info.execution, Execution::Recorded | Execution::Emulated) {
            return Err(Error::invalid(
                "--device",
                format!("{} ({})", self.device, info.execution),
                "a device whose time means something, or --dry-run",
            ));
        }
        let limit = Duration::from_secs_f64(self.timeout_per_config);
        let mut children = Children::new(Launcher::of_device(&self.device)?, limit);
        self.search(job, &mut children, false, |children| {
            children.roofline().map(Some)
        })
    }

    /// Targets by what was asked for.
    fn targets(&self) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        if !self.shape.is_empty() {
            let op = self.op.as_deref().unwrap_or("gemm");
            let dtype = self.dtype.as_deref().unwrap_or("F32").to_uppercase();
            for shape in &self.shape {
                targets.push(Target {
                    workload: form::workload(op, shape, &dtype)?,
                    dtype: dtype.clone(),
                });
            }
            return Ok(targets);
        }
        let workloads = match (&self.shapes, &self.model) {
            (Some(path), _) => {
                let missing = |error| {
                    Error::invalid("--shapes", error, format!("a file, {}", path.display()))
                };
                let text = fs::read_to_string(path).map_err(missing)?;
                let definition = Definition::parse(&text);
                definition
                    .map_err(|error| error.within(path.display()))?
                    .workloads
            }
            (None, Some(model)) => definition::of_model(model)?,
            (None, None) => {
                return Err(Error::invalid(
                    "tune",
                    "nothing to tune",
                    "--shape, --shapes or --model",
                ));
            }
        };
        for workload in workloads {
            if self.op.as_ref().is_some_and(|op| *op != workload.op) {
                continue;
            }
            for dtype in workload.dtypes.clone() {
                if self
                    .dtype
                    .as_ref()
                    .is_none_or(|d| d.eq_ignore_ascii_case(&dtype))
                {
                    targets.push(Target {
                        workload: workload.clone(),
                        dtype,
                    });
                }
            }
        }
        match targets.is_empty() {
            true => Err(Error::invalid(
                "tune",
                format!("op {:?}, dtype {:?}", self.op, self.dtype),
                "those of a workload",
            )),
            false => Ok(targets),
        }
    }

    fn job(&self, info: &DeviceInfo) -> Result<Job> {
        let mut described = Vec::new();
        let mut unsupported = Vec::new();
        for target in distinct(self.targets()?)? {
            let space = target.workload.op(&target.dtype).and_then(|op| {
                let cost = op.cost();
                Ok((Space::new(&*op, info, self.seed)?, [cost.flops, cost.bytes]))
            });
            match space {
                Ok((space, work)) => described.push(Described {
                    target,
                    space,
                    work,
                }),
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    unsupported.push((target.name(), error.context().to_owned()));
                }
                Err(error) => return Err(error),
            }
        }
        let user = TunedTable::user_path(info);
        let table_path = match (&self.save_dir, user) {
            (None, Some(path)) => path,
            (Some(directory), Some(path)) => directory.join(path.file_name().unwrap_or_default()),
            (directory, None) => {
                let none =
                    || Error::invalid("--save-dir", "nothing", "a directory: you have no home");
                directory
                    .as_ref()
                    .ok_or_else(none)?
                    .join(format!("{}.toml", info.backend))
            }
        };
        Ok(Job {
            described,
            unsupported,
            table: TunedTable::for_device(info),
            table_path,
            driver: info.driver_version.clone(),
            compiler: info.compiler_version.clone(),
            execution: info.execution.to_string(),
        })
    }

    /// The targets of a recording.
    fn recorded(&self, recording: &Recording) -> Result<Job> {
        let mut described = recording.targets.clone();
        described.retain(|d| {
            self.op
                .as_ref()
                .is_none_or(|op| *op == d.target.workload.op)
        });
        let directory = self.save_dir.clone().unwrap_or_default();
        let header = &recording.header;
        Ok(Job {
            described,
            unsupported: Vec::new(),
            table: TunedTable {
                device: header.device.clone(),
                backend: header.backend.clone(),
                architecture: String::new(),
                entries: Vec::new(),
            },
            table_path: directory.join("simulated.toml"),
            driver: header.driver.clone(),
            compiler: header.compiler.clone(),
            execution: "a recording".into(),
        })
    }

    /// Says what would be tried.
    fn plan(&self, job: &Job) -> Result<ExitCode> {
        let planned: Vec<Planned<'_>> = job
            .described
            .iter()
            .map(|described| {
                let space = &described.space;
                let count =
                    |name: &String| space.points.iter().filter(|p| p.kernel == *name).count();
                Planned {
                    target: described.target.name(),
                    key: &space.key,
                    points: space.points.len(),
                    excluded: space.excluded,
                    default: space.points[space.default].to_string(),
                    kernels: space
                        .kernels
                        .keys()
                        .map(|name| (name.as_str(), count(name)))
                        .collect(),
                }
            })
            .collect();
        if self.json {
            let value = serde_json::json!({
                "device": job.table.device,
                "targets": planned,
                "unsupported": job.unsupported,
            });
            print_line(value)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["target", "valid", "excluded", "by kernel", "default"]);
        for row in planned {
            let kernels = row
                .kernels
                .iter()
                .map(|(name, count)| format!("{name} {count}"));
            table.add_row([
                row.target,
                row.points.to_string(),
                row.excluded.to_string(),
                kernels.collect::<Vec<_>>().join(", "),
                row.default,
            ]);
        }
        for (target, reason) in &job.unsupported {
            table.add_row([target.clone(), format!("unsupported: {reason}")]);
        }
        print_line(format_args!(
            "{} ({}): nothing is run\n\n{table}",
            job.table.device, job.execution
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    fn header(&self, job: &Job) -> Result<Header> {
        let task = serde_json::to_string(&job.described)
            .map_err(|error| Error::new(ErrorKind::File, error.to_string()))?;
        let digest = Sha256::digest(task.as_bytes());
        Ok(Header {
            ropeway_tune: Header::FORMAT,
            device: job.table.device.clone(),
            backend: job.table.backend.clone(),
            driver: job.driver.clone(),
            compiler: job.compiler.clone(),
            ropeway: env!("CARGO_PKG_VERSION").into(),
            seed: self.seed,
            strategy: self.strategy,
            task: digest[..4]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            date: today(),
        })
    }

    fn search<M: Measurer>(
        &self,
        job: Job,
        measurer: &mut M,
        simulated: bool,
        roofline: impl Fn(&mut M) -> Result<Option<crate::roofline::Roofline>>,
    ) -> Result<ExitCode> {
        let header = self.header(&job)?;
        let stem = job
            .table_path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let name = format!("{stem}-{}.journal", header.task);
        let directory = match (&self.save_dir, data_dir()) {
            (Some(directory), _) => directory.clone(),
            (None, Some(directory)) => directory.join("tune"),
            (None, None) => PathBuf::new(),
        };
        let path = self.journal.clone().unwrap_or_else(|| directory.join(name));
        let mut journal = Journal::open(&path, header, self.resume)?;
        let progress = Progress::new(self.json);
        for warning in journal.warnings() {
            eprintln!("ropeway: {warning}");
        }
        if self.resume && journal.len() > 0 {
            progress.say(&format!("{} measurements are known already", journal.len()));
        }
        let measured = |measurer: &mut M| match roofline(measurer) {
            Err(error) if error.kind() == ErrorKind::Driver => {
                eprintln!("ropeway: the roofline could not be measured: {error}");
                Ok(None)
            }
            other => other,
        };
        let before = measured(measurer)?;
        let settings = Settings {
            strategy: self.strategy,
            seed: self.seed,
            evaluations: self.max_evals.map(|count| count as usize),
            budget: self.budget_time.map(Duration::from_secs_f64),
            passes: self.passes,
            along: self.along,
            simulated,
        };
        let mut targets = Vec::new();
        let mut run = TunedTable {
            entries: Vec::new(),
            ..job.table.clone()
        };
        let mut search = Search::new(&settings, measurer, &mut journal, &progress);
        for (number, described) in job.described.iter().enumerate() {
            let found = search.tune(described, job.described.len() - number)?;
            publish(&mut run, &found, &job.table, &job.table_path)?;
            targets.push(found);
        }
        drop(search);
        drop(progress);
        // The better of two: on a machine that others use, one may be taken at a bad hour.
        let after = measured(measurer)?;
        let roofline = before
            .zip(after)
            .map(|(before, after)| before.max(after))
            .or(before);
        let published = targets.iter().any(|found| found.entry.is_some());
        let mut report = Report {
            ropeway: env!("CARGO_PKG_VERSION"),
            date: journal.header().date.clone(),
            device: job.table.device,
            backend: job.table.backend,
            driver: job.driver,
            execution: job.execution,
            roofline,
            strategy: self.strategy,
            seed: self.seed,
            targets,
            unsupported: job.unsupported,
            table: published.then_some(job.table_path),
            journal: path.clone(),
            html: None,
        };
        let page = beside(&path, ".html");
        report.html = Some(page.clone());
        write(&page, &html::page(&report)?)?;
        match self.json {
            true => print_line(
                serde_json::to_string_pretty(&report)
                    .map_err(|error| Error::new(ErrorKind::File, error.to_string()))?,
            )?,
            false => print_line(report.to_text())?,
        }
        Ok(ExitCode::from(u8::from(report.has_faults())))
    }
}

/// The targets, if a run can tell them apart and measure them as they are used: the journal knows them by name, and workers time plain operands.
fn distinct(targets: Vec<Target>) -> Result<Vec<Target>> {
    let mut names = BTreeSet::new();
    for target in &targets {
        if !names.insert(target.name()) {
            let found = format!("{} twice", target.name());
            return Err(Error::invalid("targets", found, "names that differ"));
        }
        if !target.workload.prepared.is_empty() {
            let expected = "plain operands: prepared ones are not tuned in this version";
            return Err(Error::invalid(&target.name(), "prepared", expected));
        }
    }
    Ok(targets)
}

/// A path with something behind its whole name.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

/// Puts a target's entry into the table; of several targets of this run that are looked up by the same sizes, the preferred one serves.
fn publish(run: &mut TunedTable, found: &Found, device: &TunedTable, path: &Path) -> Result<()> {
    let Some(entry) = &found.entry else {
        return Ok(());
    };
    let mut one = device.clone();
    one.entries = vec![entry.clone()];
    run.merge(one)?;
    TunedTable::try_update(path, |table| {
        if table.device.is_empty() {
            *table = device.clone();
        }
        if (&table.device, &table.backend) != (&device.device, &device.backend) {
            let other = format!("a table of {} on {}", table.device, table.backend);
            let expected = format!("one of {} on {}", device.device, device.backend);
            return Err(Error::invalid(&path.display().to_string(), other, expected));
        }
        table.supersede(run.entries.clone());
        Ok(())
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = beside(path, ".partial");
    fs::write(&temporary, text)?;
    Ok(fs::rename(temporary, path)?)
}
