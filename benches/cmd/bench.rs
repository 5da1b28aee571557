//! `ropeway bench`: workloads of real shapes against the roofline of the device, measured in the same run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use ropeway::{PlanOptions, Registry, Session};
use ropeway_core::info::{DeviceInfo, Execution};
use ropeway_core::kernel::Config;
use ropeway_core::op::Op;
use ropeway_core::plan::{BoundPlan, Executable};
use ropeway_core::request::Request;
use ropeway_core::{Error, ErrorKind, Result};
use serde::Serialize;

use super::print_line;
use crate::clblast::Clblast;
use crate::definition::{BUILT_IN, Definition, Limit, Workload};
use crate::measure::{Timing, measure, measure_in_turn};
use crate::roofline::Roofline;

/// Cold operands are rotated through this many bytes at least.
const COLD_BYTES: u64 = 256 << 20;

/// What to measure, where, and how to say it.
#[derive(Args, Debug)]
pub struct Bench {
    /// Only workloads whose name contains this.
    name: Option<String>,
    /// The device (`cpu`, `opencl`, `opencl:1`; see `ropeway devices`).
    #[arg(long, short, default_value = "cpu", value_name = "D")]
    device: String,
    /// A file of workloads in place of those that come with the program.
    #[arg(long, value_name = "FILE")]
    definition: Option<PathBuf>,
    /// Use the kernel of this name.
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Use these tunables: `TILE_M=8,TILE_N=32`. The others keep their defaults.
    #[arg(
        long,
        requires = "kernel",
        value_delimiter = ',',
        value_name = "NAME=VALUE"
    )]
    config: Vec<String>,
    /// Give CLBlast what its own tuner found: a `clblast_xgemm_*_32.json` of `clblast_tuner_xgemm`.
    #[arg(long, value_name = "FILE")]
    clblast_parameters: Option<PathBuf>,
    /// Seconds for each row.
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    seconds: f64,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Shorthand for `--format json`.
    #[arg(long)]
    json: bool,
    /// Write the report into a dated file under this directory.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Name the workloads instead of running them.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

#[derive(Serialize)]
struct Report {
    ropeway: &'static str,
    date: String,
    device: String,
    name: String,
    platform: String,
    driver_version: String,
    execution: String,
    compute_units: u32,
    /// Host seconds from nothing to an open device, the driver's own start included.
    opened: f64,
    roofline: Roofline,
    clblast: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clblast_parameters: Option<String>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    workload: String,
    dtype: String,
    #[serde(flatten)]
    result: RowResult,
}

#[derive(Serialize)]
#[serde(untagged)]
enum RowResult {
    Measured(Box<Measured>),
    Unsupported { unsupported: String },
}

#[derive(Serialize)]
struct Measured {
    plan: Vec<String>,
    /// Host seconds from planning to the first result, compiling included where no cache holds the kernels.
    first_call: f64,
    timing: Timing,
    gflops: f64,
    gbs: f64,
    limit: Limit,
    percent_of_limit: f64,
    /// This time divided by that of the workload's first dtype.
    times_first_dtype: f64,
    clblast_gflops: Option<f64>,
    /// Where a tuned entry serves: what the default takes, measured in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<Beside>,
}

#[derive(Serialize)]
struct Beside {
    plan: Vec<String>,
    timing: Timing,
    /// Its time over the tuned one's, the median of the pairs.
    times_tuned: f64,
}

/// What the rows of a run are measured with and beside.
struct Sides<'a> {
    session: &'a Session,
    /// Of the same device, with no tuned table.
    untuned: &'a Session,
    roofline: Roofline,
    clblast: Option<Clblast>,
}

impl Bench {
    /// Measures and reports.
    ///
    /// # Errors
    /// `InvalidArgument` for a call that cannot be meant, or what the device can fail with.
    pub fn run(self) -> Result<ExitCode> {
        let definitions = self.definitions()?;
        if self.list {
            for definition in &definitions {
                print_line(format_args!("{}", definition.about.trim()))?;
                for workload in &definition.workloads {
                    let dtypes = workload.dtypes.join(" ").to_lowercase();
                    print_line(format_args!(
                        "  {}: {}, {dtypes}",
                        workload.name, workload.op
                    ))?;
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let workloads: Vec<Workload> = definitions
            .into_iter()
            .flat_map(|definition| definition.workloads)
            .collect();
        let begin = Instant::now();
        let device = Registry::default().open(&self.device)?;
        let opened = begin.elapsed();
        if device.info().execution == Execution::Recorded {
            return Err(Error::invalid(
                "--device",
                &self.device,
                "a device that computes",
            ));
        }
        let session = Session::new(Arc::clone(&device))?;
        let untuned = Session::with_tuned(device, Box::new(()))?;
        let report = self.measure(&session, &untuned, opened, &workloads)?;
        if let Some(directory) = &self.record {
            record(&report, session.device().info(), directory)?;
        }
        match self.json || self.format == Format::Json {
            true => print_line(to_json(&report)?)?,
            false => print_line(to_text(&report))?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The definitions with the workloads that were asked for.
    fn definitions(&self) -> Result<Vec<Definition>> {
        let texts: Vec<(String, String)> = match &self.definition {
            Some(path) => {
                let missing = |error| {
                    Error::invalid("--definition", error, format!("a file, {}", path.display()))
                };
                vec![(
                    path.display().to_string(),
                    fs::read_to_string(path).map_err(missing)?,
                )]
            }
            None => BUILT_IN
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
        };
        let mut definitions = Vec::new();
        for (name, text) in texts {
            let mut definition = Definition::parse(&text).map_err(|error| error.within(name))?;
            if let Some(part) = &self.name {
                definition
                    .workloads
                    .retain(|workload| workload.name.contains(part));
            }
            definitions.push(definition);
        }
        definitions.retain(|definition| !definition.workloads.is_empty());
        match definitions.is_empty() {
            true => Err(Error::invalid(
                "NAME",
                format!("{:?}", self.name),
                "part of a workload's name",
            )),
            false => Ok(definitions),
        }
    }

    fn options(&self, workload: &Workload, op: &dyn Op) -> Result<PlanOptions> {
        let mut options = PlanOptions {
            kernel: self.kernel.clone(),
            config: None,
            prepared: workload.prepared.clone(),
        };
        if let Some(name) = &self.kernel {
            let kernels = ropeway_kernels::op(op.name())
                .map(|kind| kind.kernels())
                .unwrap_or_default();
            let kernel = kernels.iter().find(|kernel| kernel.name == name);
            let mut config = kernel.map_or_else(Config::default, |kernel| kernel.default_config());
            for pair in &self.config {
                let (name, value) = pair
                    .split_once('=')
                    .and_then(|(name, value)| Some((name, value.parse().ok()?)))
                    .ok_or_else(|| Error::invalid("--config", format!("{pair:?}"), "NAME=VALUE"))?;
                config.set(name, value);
            }
            options.config = Some(config);
        }
        Ok(options)
    }

    fn measure(
        &self,
        session: &Session,
        untuned: &Session,
        opened: Duration,
        workloads: &[Workload],
    ) -> Result<Report> {
        let info = session.device().info();
        let roofline = Roofline::measure(session)?;
        let clblast = Clblast::load(session.device());
        let parameters = self.clblast_parameters.as_deref();
        match (&clblast, parameters) {
            (Some(clblast), Some(path)) => clblast.tuned(path)?,
            (None, Some(path)) => {
                let expected = "CLBlast, and one of its devices";
                return Err(Error::invalid(
                    "--clblast-parameters",
                    path.display(),
                    expected,
                ));
            }
            (_, None) => {}
        }
        let sides = Sides {
            session,
            untuned,
            roofline,
            clblast,
        };
        let mut rows = Vec::new();
        for workload in workloads {
            let mut first = None;
            for dtype in &workload.dtypes {
                let measured = self.row(&sides, workload, dtype, &mut first);
                let result = match measured {
                    Ok(measured) => RowResult::Measured(Box::new(measured)),
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::Unsupported | ErrorKind::OutOfMemory
                        ) =>
                    {
                        RowResult::Unsupported {
                            unsupported: error.context().into(),
                        }
                    }
                    Err(error) => return Err(error.within(format!("{} {dtype}", workload.name))),
                };
                rows.push(Row {
                    workload: workload.name.clone(),
                    dtype: dtype.clone(),
                    result,
                });
            }
        }
        Ok(Report {
            ropeway: env!("CARGO_PKG_VERSION"),
            date: today(),
            device: info.selector(),
            name: info.name.clone(),
            platform: info.platform.clone(),
            driver_version: info.driver_version.clone(),
            execution: info.execution.to_string(),
            compute_units: info.compute_units,
            opened: opened.as_secs_f64(),
            roofline,
            clblast: sides.clblast.map(|library| library.name().to_owned()),
            clblast_parameters: parameters.map(|path| path.display().to_string()),
            rows,
        })
    }

    fn row(
        &self,
        sides: &Sides<'_>,
        workload: &Workload,
        dtype: &str,
        first: &mut Option<f64>,
    ) -> Result<Measured> {
        let Sides {
            session,
            untuned,
            roofline,
            clblast,
        } = sides;
        let (request, op) = workload.request(dtype)?;
        let options = self.options(workload, &*op)?;
        let begin = Instant::now();
        let executable = session.plan_with(&*op, &options)?;
        let planned = begin.elapsed();
        let bound = bind(
            session,
            &*op,
            &request,
            &options,
            &executable,
            workload.cold,
        )?;
        let queue = session.queue();
        let begin = Instant::now();
        bound[0].enqueue(&**queue)?;
        queue.synchronize(None)?;
        let first_call = planned + begin.elapsed();
        let budget = Duration::from_secs_f64(self.seconds);
        let mut run = |run: usize| bound[run % bound.len()].enqueue(&**queue);
        let plain = untuned.plan_with(&*op, &options)?;
        let (timing, default) = match modules(&plain) == modules(&executable) {
            true => (measure(queue, budget, run)?, None),
            false => {
                let bound = bind(untuned, &*op, &request, &options, &plain, workload.cold)?;
                let other = |run: usize| bound[run % bound.len()].enqueue(&**queue);
                let (timing, default, times_tuned) =
                    measure_in_turn(queue, budget, &mut run, other)?;
                let default = Beside {
                    plan: modules(&plain),
                    timing: default,
                    times_tuned,
                };
                (timing, Some(default))
            }
        };
        let cost = op.cost();
        let (gflops, gbs) = (
            cost.flops / timing.median / 1e9,
            cost.bytes / timing.median / 1e9,
        );
        let percent = match workload.limit {
            Limit::Compute => gflops / roofline.peak_gflops,
            Limit::Read => gbs / roofline.read_gbs,
            Limit::Copy => gbs / roofline.copy_gbs,
        };
        let against = clblast
            .as_ref()
            .and_then(|clblast| clblast.gemm(&*op, &request, budget).transpose());
        Ok(Measured {
            plan: modules(&bound[0].executable),
            first_call: first_call.as_secs_f64(),
            timing,
            gflops,
            gbs,
            limit: workload.limit,
            percent_of_limit: 100.0 * percent,
            times_first_dtype: timing.median / *first.get_or_insert(timing.median),
            clblast_gflops: against
                .transpose()?
                .map(|seconds| cost.flops / seconds / 1e9),
            default,
        })
    }
}

/// The kernels of a plan with their tunables.
fn modules(executable: &Executable) -> Vec<String> {
    let modules = executable.plan().modules.iter();
    modules.map(|module| format!("{module:?}")).collect()
}

/// The op with its operands on the device; cold, several times over.
///
/// # Errors
/// As [`Session::bind`] and [`Session::prepare`].
pub fn bind(
    session: &Session,
    op: &dyn Op,
    request: &Request,
    options: &PlanOptions,
    executable: &Arc<Executable>,
    cold: bool,
) -> Result<Vec<BoundPlan>> {
    let operands = op.operands();
    let bytes: u64 = operands
        .iter()
        .map(|o| o.desc.span_bytes())
        .sum::<Result<_>>()?;
    let copies = match cold {
        true => COLD_BYTES.div_ceil(bytes.max(1)).clamp(1, 64),
        false => 1,
    };
    let mut plans = Vec::new();
    for _ in 0..copies {
        let mut bound = session.bind(op, executable, &request.inputs)?;
        for (operand, view) in op.operands().iter().zip(&mut bound.operands) {
            if options.prepared.iter().any(|name| name == operand.name) {
                let queue = Arc::clone(session.queue());
                *view = session.prepare(op, operand.name, options, view, &*queue)?;
            }
        }
        // The system gives memory its pages at the first write, which is no kernel's time.
        for (operand, view) in op.operands().iter().zip(&bound.operands) {
            if operand.output {
                session.queue().fill(&view.bytes(), 0)?;
            }
        }
        if let Some(workspace) = &bound.workspace {
            session.queue().fill(workspace, 0)?;
        }
        plans.push(bound);
    }
    session.queue().synchronize(None)?;
    Ok(plans)
}

fn to_json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report)
        .map_err(|error| Error::new(ErrorKind::File, error.to_string()))
}

fn to_text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "workload",
        "dtype",
        "time",
        "±",
        "GFLOP/s",
        "GB/s",
        "of limit",
        "× dtype 1",
        "first call",
        "CLBlast",
        "tuned",
        "kernel",
    ]);
    for column in 2..11 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in &report.rows {
        let dtype = row.dtype.to_lowercase();
        table.add_row(match &row.result {
            RowResult::Unsupported { unsupported } => vec![
                row.workload.clone(),
                dtype,
                format!("unsupported: {unsupported}"),
            ],
            RowResult::Measured(measured) => vec![
                row.workload.clone(),
                dtype,
                microseconds(measured.timing.median),
                format!(
                    "{:.1} %",
                    100.0 * measured.timing.deviation / measured.timing.median
                ),
                format!("{:.1}", measured.gflops),
                format!("{:.2}", measured.gbs),
                format!(
                    "{:.1} % {}",
                    measured.percent_of_limit,
                    limit_name(measured.limit)
                ),
                format!("{:.2}", measured.times_first_dtype),
                format!("{:.0} ms", measured.first_call * 1e3),
                measured.clblast_gflops.map_or(String::new(), |gflops| {
                    format!("{gflops:.1} ({:.1}×)", measured.gflops / gflops)
                }),
                measured.default.as_ref().map_or(String::new(), |default| {
                    format!("{:.2}×", default.times_tuned)
                }),
                kernels(&measured.plan),
            ],
        });
    }
    let Roofline {
        peak_gflops,
        read_gbs,
        copy_gbs,
    } = report.roofline;
    format!(
        "{} {} ({}, {} compute units; {} {}), opened in {:.0} ms\nroofline: {peak_gflops:.1} GFLOP/s f32 multiply-add, {read_gbs:.2} GB/s read, \
         {copy_gbs:.2} GB/s copied (read and written)\n{}\n\n{table}",
        report.device,
        report.name,
        report.execution,
        report.compute_units,
        report.platform,
        report.driver_version,
        report.opened * 1e3,
        match (&report.clblast, &report.clblast_parameters) {
            (Some(name), Some(path)) => format!("CLBlast: {name}, with the parameters of {path}"),
            (Some(name), None) => format!("CLBlast: {name}, its own choice of parameters"),
            (None, _) => "CLBlast: not found, or not for this device".into(),
        },
    )
}

fn microseconds(seconds: f64) -> String {
    format!("{:.1} us", seconds * 1e6)
}

fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Compute => "peak",
        Limit::Read => "read",
        Limit::Copy => "copy",
    }
}

/// The kernels of a plan by name, each once.
fn kernels(plan: &[String]) -> String {
    let mut names: Vec<&str> = plan
        .iter()
        .filter_map(|module| module.split(' ').next())
        .collect();
    names.dedup();
    names.join(" ")
}

/// Writes `DIR/<device>/<date>.json`.
fn record(report: &Report, info: &DeviceInfo, directory: &Path) -> Result<()> {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = format!("{} {}", info.backend, info.name)
        .chars()
        .map(safe)
        .collect();
    let directory = directory.join(name);
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{}.json", report.date));
    let temporary = path.with_extension("json.partial");
    fs::write(&temporary, to_json(report)? + "\n")?;
    Ok(fs::rename(temporary, path)?)
}

/// The date in UTC as year-month-day.
pub fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (year, month, day) = civil(since.as_secs() / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970-01-01, by counting.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn dates_count_leap_years() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_819), (2027, 1, 1));
        assert_eq!(civil(20_818), (2026, 12, 31));
    }
}
