//! What environment variables decide, read once when the driver is first called.

use std::path::PathBuf;
use std::str::FromStr;

use crate::interpret::{Options, shared::Watch};

/// The settings of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ROPEWAY_EMULATED_CUDA_DEVICES`: how many devices there are (1).
    pub devices: usize,
    /// `ROPEWAY_EMULATED_CUDA_ARCHITECTURE`: their compute capability (`8.0`).
    pub architecture: (u32, u32),
    /// `ROPEWAY_EMULATED_CUDA_MEMORY`: bytes of memory of each (4 GiB).
    pub memory: u64,
    /// `ROPEWAY_EMULATED_CUDA_SEED`: decides the order of warps, blocks and streams (0).
    pub seed: u64,
    /// `ROPEWAY_EMULATED_CUDA_THREADS`: threads that run the blocks of a launch (those of the machine).
    pub threads: usize,
    /// `ROPEWAY_EMULATED_CUDA_SANITIZE`: `all`, or `bounds` without races and uninitialised reads (`all`).
    pub watch: Watch,
    /// `ROPEWAY_EMULATED_CUDA_STEPS`: lane-instructions after which a launch is ended (2^40).
    pub steps: u64,
    /// `ROPEWAY_EMULATED_CUDA_REPORT`: the file that reports are appended to (standard error).
    pub report: Option<PathBuf>,
    /// `ROPEWAY_EMULATED_CUDA_FAULT`: failures on demand (see [`super::faults`]).
    pub fault: String,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("ROPEWAY_EMULATED_CUDA_{name}")).ok()
}

fn number<T: FromStr>(name: &str, otherwise: T) -> T {
    let Some(text) = variable(name) else {
        return otherwise;
    };
    text.parse().unwrap_or_else(|_| {
        eprintln!(
            "emulated CUDA driver: ROPEWAY_EMULATED_CUDA_{name}={text} is no number, and ignored"
        );
        otherwise
    })
}

impl Settings {
    /// Reads the environment.
    pub fn read() -> Settings {
        let architecture = variable("ARCHITECTURE").unwrap_or_else(|| "8.0".into());
        let (major, minor) = architecture.split_once('.').unwrap_or((&architecture, "0"));
        let whole = variable("SANITIZE").is_none_or(|what| what != "bounds");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Settings {
            devices: number("DEVICES", 1),
            architecture: (major.parse().unwrap_or(8), minor.parse().unwrap_or(0)),
            memory: number("MEMORY", 4 << 30),
            seed: number("SEED", 0),
            threads: number("THREADS", threads),
            watch: Watch {
                uninitialised: whole,
                races: whole,
            },
            steps: number("STEPS", 1 << 40),
            report: variable("REPORT").map(PathBuf::from),
            fault: variable("FAULT").unwrap_or_default(),
        }
    }

    /// How a launch is run.
    pub fn options(&self, seed: u64) -> Options {
        Options {
            seed: self.seed ^ seed,
            threads: self.threads,
            watch: self.watch,
            steps: self.steps,
        }
    }
}
