//! The search behind `ropeway tune`: from a workload and a device to the fastest configuration that is right.
//!
//! ```text
//!  workload → key and space → strategy → child: compile, check, time → journal → the best again → finalists, in turn → gate → tuned table, report
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `form.rs`, `form/edges.rs` | the sizes of a workload by name, and the problems of a shape's edges |
//! | `space.rs` | the valid configurations of every candidate kernel on a device |
//! | `strategy.rs`, `strategy/guided.rs` | which configuration to try next |
//! | `worker.rs`, `child.rs` | one configuration compiled, checked and timed, in a process that may hang or crash |
//! | `simulate.rs` | answers from a recorded search in place of a device |
//! | `journal.rs` | what was measured, line by line, on disk |
//! | `sound.rs` | whether what a journal or a worker says can be |
//! | `finals.rs` | the best of the search measured again, and the rounds that decide |
//! | `gate.rs` | whether a configuration beats the default beyond the noise |
//! | `search.rs` | the loop over all of these |
//! | `report.rs`, `html.rs` | what people read |

pub mod child;
mod finals;
pub mod form;
pub mod gate;
pub mod html;
pub mod journal;
#[cfg(test)]
mod planted;
pub mod question;
pub mod report;
pub mod search;
pub mod simulate;
pub mod sound;
pub mod space;
pub mod strategy;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;

use ropeway_core::kernel::Config;
use serde::{Deserialize, Serialize};

use crate::definition::Workload;
use crate::measure::median;

/// A workload in one dtype.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Op, shapes and attributes.
    pub workload: Workload,
    /// What `T` stands for in it.
    pub dtype: String,
}

impl Target {
    /// A name that is unique in a run: the workload's and the dtype.
    pub fn name(&self) -> String {
        format!("{} {}", self.workload.name, self.dtype.to_lowercase())
    }

    /// The target at other places in its bucket.
    ///
    /// # Errors
    /// As [`form::elsewhere`].
    pub fn elsewhere(&self) -> ropeway_core::Result<Vec<Target>> {
        let places = form::elsewhere(&self.workload)?.into_iter();
        let target = |workload| Target {
            workload,
            dtype: self.dtype.clone(),
        };
        Ok(places.map(target).collect())
    }
}

/// A kernel with a value for each of its tunables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    /// The kernel.
    pub kernel: String,
    /// The tunables.
    pub config: BTreeMap<String, i64>,
}

impl Point {
    /// As planners take it.
    pub fn config(&self) -> Config {
        let mut config = Config::default();
        for (name, value) in &self.config {
            config.set(name, *value);
        }
        config
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kernel)?;
        for (name, value) in &self.config {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

/// What a point is measured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The search: the shape, reduced, and its edges are checked before the time is taken.
    Search,
    /// A finalist's proof: the shape itself and the op's conformance cases are checked; no time is taken.
    Proof,
    /// Another visit of a point of the search, not checked again.
    Again(u32),
    /// One of the interleaved rounds of the finalists, then of the last two.
    Round(u32),
    /// A round of the last two at one of the other places in the shape's bucket where they meet.
    Elsewhere {
        /// Its number in [`Target::elsewhere`].
        place: usize,
        /// The round.
        round: u32,
    },
}

/// What came of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is right, and this fast.
    Measured(Measurement),
    /// It is right (no time was asked for); the greatest error ÷ bound.
    Proven(f64),
    /// It computes something else than the reference: a fault of the kernel or of the driver.
    Wrong(Vec<String>),
    /// The planner, the compiler or the device refused it.
    Refused(String),
    /// Its process died, with what was last heard of it.
    Crashed(String),
    /// Its process was ended after these seconds.
    TimedOut(f64),
}

/// Times of one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Device seconds of one run, for each batch.
    pub samples: Vec<f64>,
    /// Runs in a batch.
    pub runs: usize,
    /// Device seconds of one run of the reference, in a batch just before each, so that a clock that drops or a busy neighbour is not taken
    /// for a slow configuration. Empty if there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reference: Vec<f64>,
    /// The greatest error ÷ bound of all that was checked before.
    pub error_over_bound: f64,
    /// True if it was so slow that few samples were taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

impl Measurement {
    /// The median of the samples.
    pub fn seconds(&self) -> f64 {
        median(&mut self.samples.clone())
    }

    /// Adds another visit's samples, if both have a time of the reference for each or neither has.
    pub fn add(&mut self, more: Measurement) {
        let paired = |m: &Measurement| m.samples.len() == m.reference.len();
        if paired(self) == paired(&more) {
            self.samples.extend(more.samples);
            self.reference.extend(more.reference);
        }
    }
}

impl Outcome {
    /// Whether it is a fault of a kernel or a driver.
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Outcome::Wrong(_) | Outcome::Crashed(_) | Outcome::TimedOut(_)
        )
    }

    /// A fault, with the workload at which it was met.
    pub fn at(self, workload: &Target) -> Outcome {
        let tensors = workload.workload.tensors.iter();
        let shapes = tensors.map(|(name, text)| format!("{name} {text}"));
        let place = shapes.collect::<Vec<_>>().join(", ");
        match self {
            Outcome::Crashed(said) => Outcome::Crashed(format!("at {place}: {said}")),
            Outcome::TimedOut(limit) => {
                Outcome::Crashed(format!("at {place}: no answer within {limit} s"))
            }
            other => other,
        }
    }

    /// The median time, if there is one.
    pub fn seconds(&self) -> Option<f64> {
        match self {
            Outcome::Measured(measurement) => Some(measurement.seconds()),
            _ => None,
        }
    }

    /// The median time of what ran beside it.
    pub fn reference(&self) -> Option<f64> {
        match self {
            Outcome::Measured(m) if !m.reference.is_empty() => {
                Some(median(&mut m.reference.clone()))
            }
            _ => None,
        }
    }

    /// The median time as it would be at an hour at which the reference takes `base` seconds.
    pub fn seconds_at(&self, base: Option<f64>) -> Option<f64> {
        match (self, base) {
            (Outcome::Measured(m), Some(base)) if !m.reference.is_empty() => {
                let pairs = m.samples.iter().zip(&m.reference);
                let mut ratios: Vec<f64> = pairs.map(|(one, other)| one / other).collect();
                Some(base * median(&mut ratios))
            }
            _ => self.seconds(),
        }
    }
}

/// What a point of the search is compared with on the spot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// The default.
    pub reference: Point,
    /// The least time known, in units of the reference's.
    pub best: Option<f64>,
}

/// Whatever answers what a point is worth: a child process on a device, or a recording.
pub trait Measurer {
    /// Measures a point, `beside` another one in the search.
    ///
    /// # Errors
    /// What makes going on useless: the worker cannot be started at all. What a point does wrong is its outcome.
    fn measure(
        &mut self,
        target: &Target,
        point: &Point,
        stage: Stage,
        beside: Option<&Beside>,
    ) -> ropeway_core::Result<Outcome>;
}
