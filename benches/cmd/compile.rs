//! `ropeway compile`: makes binaries of kernels beforehand. Building and running Ropeway needs none of it.

mod ascend;
mod cuda;
mod spirv;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ropeway_backends::cuda::Target;
use ropeway_conformance::cases::Selection;
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
    /// CUDA: what to compile for, machine code of an architecture (sm_80, sm_90a) or PTX for it and every later one (compute_80). AscendC:
    /// dav-2201.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    arch: Vec<Architecture>,
    /// CUDA, AscendC: the directory for the binaries, which ROPEWAY_BINARIES_DIR names where they are used.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// CUDA, AscendC: compile what `ropeway check` runs, too; with a number what `ropeway check --full --seed 1 --cases N` does.
    #[arg(long, value_name = "N", require_equals = true)]
    cases: Option<Option<usize>>,
    /// SPIR-V: folders with a spirv.toml [default: all below the current one]. CUDA, AscendC: files of workloads, besides those of `ropeway bench`.
    paths: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    /// GLSL to SPIR-V for Vulkan, by glslang: the binaries that are committed.
    Spirv,
    /// CUDA C++ by NVRTC, with no GPU: for machines with a driver and no NVRTC.
    Cuda,
    /// AscendC by CANN's run-time compiler, with no NPU: for machines with a CANN before 8.3, which has none.
    Ascendc,
}

/// What code is for.
#[derive(Clone, Copy, Debug)]
enum Architecture {
    Cuda(Target),
    /// The 910B family.
    Dav2201,
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Architecture> {
        match name {
            "dav-2201" => Ok(Architecture::Dav2201),
            name => name.parse().map(Architecture::Cuda),
        }
    }
}

impl Compile {
    /// Compiles. The exit code is 1 if `--check` found something stale.
    ///
    /// # Errors
    /// `InvalidArgument` for options of the other language, and as the two report.
    pub fn run(self) -> Result<ExitCode> {
        let other = match self.language {
            Language::Cuda | Language::Ascendc => self.check.then_some("--check"),
            Language::Spirv if !self.arch.is_empty() => Some("--arch"),
            Language::Spirv if self.output.is_some() => Some("--output"),
            Language::Spirv => self.cases.map(|_| "--cases"),
        };
        if let Some(option) = other {
            return Err(Error::invalid(
                option,
                "given",
                "an option of the other language",
            ));
        }
        let targets: Vec<Target> = self
            .arch
            .iter()
            .filter_map(|architecture| match architecture {
                Architecture::Cuda(target) => Some(*target),
                Architecture::Dav2201 => None,
            })
            .collect();
        let cases = self
            .cases
            .map(|generated| generated.unwrap_or(Selection::GATE_GENERATED));
        let all_cuda = targets.len() == self.arch.len() && !targets.is_empty();
        let all_ascend = targets.is_empty() && !self.arch.is_empty();
        match (self.language, self.output) {
            (Language::Spirv, _) => spirv::run(self.paths, self.check),
            (Language::Cuda, Some(output)) if all_cuda => {
                cuda::run(&targets, &output, cases, &self.paths)
            }
            (Language::Ascendc, Some(output)) if all_ascend => {
                ascend::run(&output, cases, &self.paths)
            }
            (Language::Cuda, _) => Err(Error::invalid(
                "--language cuda",
                "too little",
                "--arch NAME,… and --output DIRECTORY",
            )),
            (Language::Ascendc, _) => Err(Error::invalid(
                "--language ascendc",
                "too little",
                "--arch dav-2201 and --output DIRECTORY",
            )),
        }
    }
}
