//! Kernels in CUDA C++ for machines with NVIDIA's driver and no NVRTC.
//!
//! What a plan compiles depends on problem and device. So problems are planned for GPUs that are only described, every one that may load what
//! is made, with each kernel that can run them: the workloads of `ropeway bench`, those of files that are named, and on demand the
//! cases of `ropeway check`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rayon::prelude::*;
use ropeway_backends::cache::Cache;
use ropeway_backends::cuda::{Target, precompile};
use ropeway_conformance::cases::{self, Case, Selection};
use ropeway_conformance::device;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, ModuleKey};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::{Error, ErrorKind, Result};

use crate::cmd::print_line;
use crate::definition::{BUILT_IN, Definition};
use crate::roofline;

/// What to compile, by the kernel's name and its configuration.
pub(super) type Modules = BTreeMap<(&'static str, Config), ModuleKey>;

/// Compiles for each target into a directory.
///
/// # Errors
/// `Unsupported` without NVRTC, `CompileFailed` (also for a target that NVRTC does not know), `File`, `InvalidArgument` for workloads
/// that make no sense.
pub fn run(
    targets: &[Target],
    output: &Path,
    cases: Option<usize>,
    files: &[PathBuf],
) -> Result<ExitCode> {
    let workloads = workloads(files)?;
    let into = Cache::open(output)?;
    for target in targets {
        let devices = target.devices()?;
        let modules = planned(&workloads, cases, &devices)?;
        modules.par_iter().try_for_each(|((name, config), key)| {
            // The device that has the least takes a source that all can run.
            let made = key
                .kernel
                .source_for(&devices[0])
                .and_then(|source| precompile(source, config, *target, &into));
            made.map_err(|error| error.within(format!("{name} {config} for {target}")))
        })?;
        let (count, place) = (modules.len(), output.display());
        print_line(format_args!("{target}: {count} kernels in {place}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the plans of these workloads compile, and with `cases` those of `ropeway check` with so many generated cases.
///
/// # Errors
/// As selecting cases.
pub(super) fn planned(
    workloads: &[Box<dyn Op>],
    cases: Option<usize>,
    devices: &[DeviceInfo],
) -> Result<Modules> {
    let mut ops = workloads.iter().map(|op| &**op).collect::<Vec<_>>();
    let checked = match cases {
        Some(generated) => {
            let selection = Selection {
                generated,
                ..Selection::default()
            };
            cases::select(&devices[0], &selection)?
        }
        None => Vec::new(),
    };
    let checked: Vec<_> = checked.iter().filter_map(Case::op).collect();
    ops.extend(checked.iter().map(|op| &**op));
    Ok(modules(&ops, devices))
}

/// The workloads of `ropeway bench` and of these files, in each of their dtypes.
pub(super) fn workloads(files: &[PathBuf]) -> Result<Vec<Box<dyn Op>>> {
    let mut texts: Vec<(String, String)> = BUILT_IN
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(file);
        texts.push((
            name.clone(),
            text.map_err(|error| Error::from(error).within(name))?,
        ));
    }
    let mut ops = Vec::new();
    for (name, text) in texts {
        let definition = Definition::parse(&text).map_err(|error| error.within(&name))?;
        for workload in &definition.workloads {
            for dtype in &workload.dtypes {
                match workload.op(dtype) {
                    Ok(op) => ops.push(op),
                    Err(error) if error.kind() == ErrorKind::Unsupported => {}
                    Err(error) => return Err(error.within(&name)),
                }
            }
        }
    }
    Ok(ops)
}

/// What the plans of these problems for these devices compile, as far as the first of the devices could run it; and what Ropeway's own
/// commands launch.
fn modules(ops: &[&dyn Op], devices: &[DeviceInfo]) -> Modules {
    let mut modules = Modules::new();
    let mut add = |key: ModuleKey| {
        if key.kernel.source_for(&devices[0]).is_ok() {
            modules.insert((key.kernel.name, key.config.clone()), key);
        }
    };
    add(ModuleKey {
        kernel: device::kernel(),
        config: Config::default(),
    });
    for info in devices {
        add(roofline::module(info));
        for op in ops {
            keys(*op, info).into_iter().for_each(&mut add);
        }
    }
    modules
}

/// What the plans of a problem compile, with each kernel and with each operand that can be prepared.
fn keys(op: &dyn Op, info: &DeviceInfo) -> Vec<ModuleKey> {
    let candidates = op.candidates(info).unwrap_or_default();
    let mut keys = Vec::new();
    let forced = candidates.iter().map(|kernel| Some(kernel.name));
    for kernel in std::iter::once(None).chain(forced) {
        let plain = PlanRequest {
            kernel,
            ..PlanRequest::new(info)
        };
        let mut plans = vec![op.plan(&plain)];
        for operand in op.operands() {
            let prepared = [operand.name];
            if let Ok(preparing) = op.prepare(operand.name, &plain) {
                let request = PlanRequest {
                    prepared: &prepared,
                    ..plain
                };
                plans.extend([Ok(preparing), op.plan(&request)]);
            }
        }
        // What cannot be planned for a device will not be launched there.
        keys.extend(plans.into_iter().flatten().flat_map(|plan| plan.modules));
    }
    keys
}
