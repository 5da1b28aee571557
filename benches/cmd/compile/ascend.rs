//! Kernels in AscendC for machines with a CANN that has no run-time compiler (before 8.3). Problems are planned as for CUDA.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ropeway_backends::ascend::{described, precompile};
use ropeway_backends::cache::Cache;
use ropeway_core::Result;

use super::cuda::{planned, workloads};
use crate::cmd::print_line;

/// Compiles into a directory, one after the other: nothing is said of `aclrtc` in several threads.
///
/// # Errors
/// `Unavailable` without CANN, `Unsupported` without its run-time compiler, `CompileFailed`, `File`, `InvalidArgument` for workloads that
/// make no sense.
pub fn run(output: &Path, cases: Option<usize>, files: &[PathBuf]) -> Result<ExitCode> {
    let workloads = workloads(files)?;
    let into = Cache::open(output)?;
    let devices = described();
    let modules = planned(&workloads, cases, &devices)?;
    for ((name, config), key) in &modules {
        let made = key
            .kernel
            .source_for(&devices[0])
            .and_then(|source| precompile(source, config, &into));
        made.map_err(|error| error.within(format!("{name} {config}")))?;
    }
    let (count, place) = (modules.len(), output.display());
    print_line(format_args!("dav-2201: {count} kernels in {place}"))?;
    Ok(ExitCode::SUCCESS)
}
