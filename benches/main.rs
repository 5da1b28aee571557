//! The command line of Ropeway.
//!
//! Exit codes: 0 all is well, 1 something that was asked for failed, 2 the call itself was wrong.
#![deny(unsafe_code)]

mod clblast;
mod cmd;
mod definition;
mod measure;
mod roofline;
mod spirv;
mod tune;
#[cfg(test)]
mod wrapped;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ropeway_core::ErrorKind;

/// GEMM, attention and mixture-of-experts kernels on any device: see what is there, check it, run it, measure it.
#[derive(Debug, Parser)]
#[command(name = "ropeway", version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure workloads of real shapes against the roofline of the device.
    Bench(cmd::bench::Bench),
    /// Judge every device and every op against the f64 reference.
    Check(cmd::check::Check),
    /// Compile kernels beforehand: for machines without NVRTC, or (for those who change kernels) the SPIR-V that is committed.
    Compile(cmd::compile::Compile),
    /// List the devices that opened, and why the rest did not.
    Devices(cmd::devices::Devices),
    /// Say which libraries, caches and settings were found where, and what is wrong with them.
    Doctor(cmd::doctor::Doctor),
    /// Run request files on a device and write result files.
    Run(cmd::run::Run),
    /// Search for the fastest configurations that are right, and keep them for this device.
    Tune(Box<cmd::tune::Tune>),
    /// What `tune` measures in: not for people.
    #[command(hide = true)]
    TuneWorker(cmd::tune::TuneWorker),
    /// Show, verify and move tuned configurations.
    Tuned(cmd::tuned::Tuned),
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    // Warnings, such as of a table that cannot be read; results go to standard output.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let outcome = match line.command {
        Command::Bench(bench) => bench.run(),
        Command::Check(check) => check.run(),
        Command::Compile(compile) => compile.run(),
        Command::Devices(devices) => devices.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Run(run) => run.run(),
        Command::Tune(tune) => tune.run(),
        Command::TuneWorker(worker) => worker.run(),
        Command::Tuned(tuned) => tuned.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ropeway: {error}");
        match error.kind() {
            ErrorKind::InvalidArgument => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    })
}
