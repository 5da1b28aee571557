//! `ropeway check`: the conformance suite on the devices of this machine.

use std::process::ExitCode;

use clap::Args;
use ropeway_core::{Error, Result};

/// What to check, and how to say what came of it.
#[derive(Args, Debug)]
pub struct Check {
    /// Only cases whose id contains this (`gemm`, `gemm/fixed`, `device/copy`).
    filter: Option<String>,
}

impl Check {
    /// Runs the suite.
    ///
    /// # Errors
    /// `InvalidArgument` for a call that cannot be meant.
    pub fn run(self) -> Result<ExitCode> {
        Err(Error::unsupported(format!(
            "no case matches {:?}",
            self.filter
        )))
    }
}
