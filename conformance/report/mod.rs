//! What a run says at its end: outcomes, counts, and the formats they are written in.

mod json;
mod junit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ropeway_core::device::Unavailable;
use ropeway_core::info::{DeviceInfo, Execution};

use crate::expectations::Judged;
use crate::verdict::Verdict;

pub use json::json;
pub use junit::junit;

/// What a case counts as.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// It passed.
    Passed,
    /// It failed; what did not hold.
    Failed(Vec<String>),
    /// It cannot be run; why.
    Skipped(String),
    /// It failed, as the expectations say; why.
    ExpectedFailure(String),
}

/// One case of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The case's id.
    pub id: String,
    /// What it counts as.
    pub status: Status,
    /// How long it took, reference included.
    pub seconds: f64,
    /// The kernels that ran.
    pub plan: String,
    /// The greatest error ÷ bound.
    pub worst_ratio: f64,
    /// What a reader should know besides.
    pub notes: Vec<String>,
    /// The request file of a failing case.
    pub saved: Option<PathBuf>,
}

impl Outcome {
    /// Of a verdict that was held against the expectations.
    pub fn new(id: &str, judged: Judged, time: Duration) -> Outcome {
        let mut outcome = Outcome {
            id: id.into(),
            status: Status::Passed,
            seconds: time.as_secs_f64(),
            plan: String::new(),
            worst_ratio: 0.0,
            notes: Vec::new(),
            saved: None,
        };
        outcome.status = match judged {
            Judged::ExpectedFailure(reason) => Status::ExpectedFailure(reason),
            Judged::AsIs(Verdict::Skipped(reason)) => Status::Skipped(reason),
            Judged::AsIs(Verdict::Failed(findings)) => Status::Failed(findings),
            Judged::AsIs(Verdict::Passed(pass)) => {
                outcome.plan = pass.plan;
                outcome.worst_ratio = pass.worst_ratio;
                outcome.notes = pass.notes;
                Status::Passed
            }
        };
        outcome
    }

    /// The first part of its id: `device` or the op.
    pub fn group(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    /// What to pass to `--replay`: the saved request of a generated case (the shrunk one), the id of any other.
    pub fn replay(&self) -> String {
        match &self.saved {
            Some(path) if self.id.contains("/generated/") => path.display().to_string(),
            _ => self.id.clone(),
        }
    }
}

/// What came of the cases of one group of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that failed as expected.
    pub expected_failures: usize,
    /// Cases that were skipped.
    pub skipped: usize,
    /// How many were skipped for each reason.
    pub reasons: BTreeMap<String, usize>,
    /// The greatest error ÷ bound of those that passed.
    pub worst_ratio: f64,
    /// Seconds of all of them.
    pub seconds: f64,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        self.seconds += outcome.seconds;
        match &outcome.status {
            Status::Passed => {
                self.passed += 1;
                self.worst_ratio = self.worst_ratio.max(outcome.worst_ratio);
            }
            Status::Failed(_) => self.failed += 1,
            Status::ExpectedFailure(_) => self.expected_failures += 1,
            Status::Skipped(reason) => {
                self.skipped += 1;
                *self.reasons.entry(reason.clone()).or_default() += 1;
            }
        }
    }
}

/// What came of a device.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// The device.
    pub info: DeviceInfo,
    /// The seed of the run.
    pub seed: u64,
    /// Every case, in the order of the selection.
    pub outcomes: Vec<Outcome>,
    /// Entries of the expectations that match no case; each is a failure.
    pub unmatched: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl DeviceReport {
    /// The device in a line: selector, name, and what executes the work if it is not the named chip.
    pub fn title(&self) -> String {
        title(&self.info)
    }

    /// Counts by group, in the order of the first case of each.
    pub fn groups(&self) -> Vec<(&str, Counts)> {
        let mut groups: Vec<(&str, Counts)> = Vec::new();
        for outcome in &self.outcomes {
            let group = outcome.group();
            match groups.iter_mut().find(|(name, _)| *name == group) {
                Some((_, counts)) => counts.add(outcome),
                None => {
                    let mut counts = Counts::default();
                    counts.add(outcome);
                    groups.push((group, counts));
                }
            }
        }
        groups
    }

    /// Counts of everything.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        for outcome in &self.outcomes {
            total.add(outcome);
        }
        total
    }

    /// Cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = (&Outcome, &[String])> {
        self.outcomes
            .iter()
            .filter_map(|outcome| match &outcome.status {
                Status::Failed(findings) => Some((outcome, findings.as_slice())),
                _ => None,
            })
    }

    /// True if something ran, nothing failed and every expectation matched.
    pub fn passes(&self) -> bool {
        let total = self.total();
        total.failed == 0 && total.passed + total.expected_failures > 0 && self.unmatched.is_empty()
    }
}

/// A device in a line: selector, name, and what executes the work if it is not the named chip.
pub fn title(info: &DeviceInfo) -> String {
    match info.execution {
        Execution::Hardware => format!("{} {}", info.selector(), info.name),
        other => format!("{} {} ({other})", info.selector(), info.name),
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One a device.
    pub devices: Vec<DeviceReport>,
    /// The backends without a device, and why.
    pub missing: Vec<(String, Unavailable)>,
}

impl Report {
    /// True if there is a device and all of them pass.
    pub fn passes(&self) -> bool {
        !self.devices.is_empty() && self.devices.iter().all(DeviceReport::passes)
    }
}
