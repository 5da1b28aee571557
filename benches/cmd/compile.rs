//! `ropeway compile`: makes binaries of kernels beforehand. Building and running Ropeway needs none of it.

mod cuda;
mod spirv;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ropeway_backends::cuda::Target;
use ropeway_core::{Error, Result};

/// Compile kernels beforehand.
#[derive(Args, Debug)]
pub struct Compile {
    /// The language to compile from or to.
    #[arg(long)]
    language: Language,
    /// SPIR-V: compile nothing; fail if a binary is missing or was made from other text.
    #[arg(long)]
    check: bool,
    /// CUDA: what to compile for, machine code of an architecture (sm_80, sm_90a) or PTX for it and every later one (compute_80).
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    arch: Vec<Target>,
    /// CUDA: the directory for the binaries, which ROPEWAY_BINARIES_DIR names where they are used.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// CUDA: compile what `ropeway check` runs, too.
    #[arg(long)]
    cases: bool,
    /// SPIR-V: folders with a spirv.toml [default: all below the current one]. CUDA: files of workloads, besides those of `ropeway bench`.
    paths: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    /// GLSL to SPIR-V for Vulkan, by glslang: the binaries that are committed.
    Spirv,
    /// CUDA C++ by NVRTC, with no GPU: for machines with a driver and no NVRTC.
    Cuda,
}

impl Compile {
    /// Compiles. The exit code is 1 if `--check` found something stale.
    ///
    /// # Errors
    /// `InvalidArgument` for options of the other language, and as the two report.
    pub fn run(self) -> Result<ExitCode> {
        let other = match self.language {
            Language::Cuda => self.check.then_some("--check"),
            Language::Spirv if !self.arch.is_empty() => Some("--arch"),
            Language::Spirv if self.output.is_some() => Some("--output"),
            Language::Spirv => self.cases.then_some("--cases"),
        };
        if let Some(option) = other {
            return Err(Error::invalid(
                option,
                "given",
                "an option of the other language",
            ));
        }
        match (self.language, self.output) {
            (Language::Spirv, _) => spirv::run(self.paths, self.check),
            (Language::Cuda, Some(output)) if !self.arch.is_empty() => {
                cuda::run(&self.arch, &output, self.cases, &self.paths)
            }
            (Language::Cuda, _) => Err(Error::invalid(
                "--language cuda",
                "too little",
                "--arch NAME,… and --output DIRECTORY",
            )),
        }
    }
}
