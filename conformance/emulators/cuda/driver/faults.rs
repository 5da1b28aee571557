//! Failures on demand, and what the sanitizer reports.
//!
//! A list of faults, separated by commas, comes from the environment or from [`set`](Faults::set) (exported as
//! `ropeway_emulated_cuda_set_fault`), which also starts the counts anew:
//!
//! | fault | effect |
//! |---|---|
//! | `out_of_memory@n` | the n-th allocation from now on fails with `CUDA_ERROR_OUT_OF_MEMORY` |
//! | `launch_failure@n` | the n-th launch from now on fails with `CUDA_ERROR_LAUNCH_FAILED`, and its context is lost |
//! | `device_lost@n` | from the n-th call on every call fails with `CUDA_ERROR_DEVICE_UNAVAILABLE` |
//! | `call@n` or `call@n=name` | the n-th call fails with this code (`unknown`) and has no effect |

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::status::{self, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OutOfMemory,
    LaunchFailure,
    DeviceLost,
    Call(Status),
}

#[derive(Debug, Default)]
struct Counts {
    list: Vec<(Kind, u64)>,
    calls: u64,
    allocations: u64,
    launches: u64,
}

/// Faults on demand and reports of a process.
#[derive(Debug)]
pub struct Faults {
    counts: Mutex<Counts>,
    reports: Mutex<Vec<String>>,
    file: Option<PathBuf>,
}

impl Faults {
    /// Faults by the environment, reports to a file or standard error.
    pub fn new(list: &str, file: Option<PathBuf>) -> Faults {
        let faults = Faults {
            counts: Mutex::default(),
            reports: Mutex::default(),
            file,
        };
        if !faults.set(list) {
            eprintln!(
                "emulated CUDA driver: ROPEWAY_EMULATED_CUDA_FAULT={list} is not understood, and ignored"
            );
        }
        faults
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the list and starts counting anew; false if the list is not understood.
    pub fn set(&self, list: &str) -> bool {
        let entry = |text: &str| {
            let (name, rest) = text.trim().split_once('@')?;
            let (turn, code) = rest.split_once('=').unwrap_or((rest, "unknown"));
            let kind = match name {
                "out_of_memory" => Kind::OutOfMemory,
                "launch_failure" => Kind::LaunchFailure,
                "device_lost" => Kind::DeviceLost,
                "call" => Kind::Call(status::by_name(code)?),
                _ => return None,
            };
            Some((kind, turn.parse().ok()?))
        };
        let list: Option<Vec<_>> = list
            .split(',')
            .filter(|text| !text.trim().is_empty())
            .map(entry)
            .collect();
        let understood = list.is_some();
        *self.counts() = Counts {
            list: list.unwrap_or_default(),
            ..Counts::default()
        };
        understood
    }

    /// How many calls there were since the list was set.
    pub fn calls(&self) -> u64 {
        self.counts().calls
    }

    /// Counts a call.
    ///
    /// # Errors
    /// What it shall fail with.
    pub fn call(&self) -> status::Result<()> {
        let mut counts = self.counts();
        counts.calls += 1;
        let now = counts.calls;
        for (kind, turn) in &counts.list {
            match kind {
                Kind::DeviceLost if now >= *turn => return Err(status::DEVICE_UNAVAILABLE),
                Kind::Call(status) if now == *turn => return Err(*status),
                _ => {}
            }
        }
        Ok(())
    }

    /// Counts an allocation.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` where it shall fail.
    pub fn allocation(&self) -> status::Result<()> {
        let mut counts = self.counts();
        counts.allocations += 1;
        let now = counts.allocations;
        if counts.list.contains(&(Kind::OutOfMemory, now)) {
            return Err(status::OUT_OF_MEMORY);
        }
        Ok(())
    }

    /// Counts a launch.
    ///
    /// # Errors
    /// `CUDA_ERROR_LAUNCH_FAILED` where it shall fail.
    pub fn launch(&self) -> status::Result<()> {
        let mut counts = self.counts();
        counts.launches += 1;
        let now = counts.launches;
        if counts.list.contains(&(Kind::LaunchFailure, now)) {
            return Err(status::LAUNCH_FAILED);
        }
        Ok(())
    }

    /// Writes a report down.
    pub fn report(&self, text: &str) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.push(text.to_owned());
        let written = self.file.as_ref().is_some_and(|file| {
            let file = OpenOptions::new().create(true).append(true).open(file);
            file.and_then(|mut file| writeln!(file, "{text}")).is_ok()
        });
        if !written {
            eprintln!("{text}");
        }
    }

    /// Keeps reports that could not be handed out.
    pub fn put_back(&self, reports: Vec<String>) {
        self.reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .splice(0..0, reports);
    }

    /// The reports since they were last taken.
    pub fn take_reports(&self) -> Vec<String> {
        std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_at_their_turn() {
        let faults = Faults::new("", None);
        assert!(faults.set("call@2=out_of_memory, device_lost@4, launch_failure@1"));
        assert_eq!(faults.call(), Ok(()));
        assert_eq!(faults.call(), Err(status::OUT_OF_MEMORY));
        assert_eq!(faults.call(), Ok(()));
        assert_eq!(faults.call(), Err(status::DEVICE_UNAVAILABLE));
        assert_eq!(faults.call(), Err(status::DEVICE_UNAVAILABLE));
        assert_eq!(faults.launch(), Err(status::LAUNCH_FAILED));
        assert_eq!(faults.launch(), Ok(()));
        assert!(!faults.set("nonsense"));
        assert_eq!(faults.calls(), 0);
    }
}
