//! Whether what a journal or a worker says can be: a file that fits its sums need not have been written by this program, and a driver's
//! clock may stand still.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::journal::{Described, Record};
use super::{Measurement, Outcome, Stage};

/// Seconds of a run: no clock tells less, no search lasts longer. Ratios and logarithms of such times are finite.
const SECONDS: RangeInclusive<f64> = 1e-12..=1e9;

/// Operations or bytes of a problem.
const WORK: RangeInclusive<f64> = 0.0..=1e30;

/// Error ÷ bound of what is right.
const RIGHT: RangeInclusive<f64> = 0.0..=1.0;

type Sound = Result<(), String>;

fn within(what: &str, value: f64, range: &RangeInclusive<f64>) -> Sound {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("{what} of {value:e}")),
    }
}

/// What a worker may answer at a stage.
///
/// # Errors
/// What cannot be.
pub fn answer(outcome: &Outcome, stage: Stage) -> Sound {
    match (outcome, stage) {
        (Outcome::Proven(ratio), Stage::Proof) => within("an error/bound", *ratio, &RIGHT),
        (Outcome::Measured(measurement), stage) if stage != Stage::Proof => times(measurement),
        (Outcome::Wrong(_) | Outcome::Refused(_), _) => Ok(()),
        _ => Err(format!("{outcome:?} at {stage:?}")),
    }
}

/// What a journal may hold of a point.
///
/// # Errors
/// What cannot be.
pub fn record(record: &Record) -> Sound {
    within("time spent", record.spent, &(0.0..=*SECONDS.end()))?;
    match &record.outcome {
        Outcome::TimedOut(limit) => within("a limit", *limit, &SECONDS),
        Outcome::Crashed(_) => Ok(()),
        outcome => answer(outcome, record.stage),
    }
}

fn times(measurement: &Measurement) -> Sound {
    let Measurement {
        samples,
        runs,
        reference,
        error_over_bound,
        stopped: _,
    } = measurement;
    if samples.is_empty() || *runs == 0 {
        return Err("a time of no runs".into());
    }
    if !reference.is_empty() && reference.len() != samples.len() {
        let (one, other) = (samples.len(), reference.len());
        return Err(format!("{one} times beside {other} of the reference"));
    }
    for seconds in samples.iter().chain(reference) {
        within("a time", *seconds, &SECONDS)?;
    }
    within("an error/bound", *error_over_bound, &RIGHT)
}

/// What a journal may hold of a target.
///
/// # Errors
/// What cannot be.
pub fn described(described: &Described) -> Sound {
    let Described { space, work, .. } = described;
    for work in work {
        within("work", *work, &WORK)?;
    }
    let mut indices = space.kernel_defaults.iter().chain([&space.default]);
    if let Some(index) = indices.find(|index| **index >= space.points.len()) {
        return Err(format!("default {index} of {} points", space.points.len()));
    }
    let distinct: BTreeSet<_> = space.points.iter().collect();
    if distinct.len() != space.points.len() {
        return Err("a point twice".into());
    }
    for point in &space.points {
        let listed = |(name, value): (&String, &i64)| {
            let axis = space.axes.iter().find(|axis| axis.name == *name);
            axis.is_some_and(|axis| axis.values.contains(value))
        };
        if !space.kernels.contains_key(&point.kernel) || !point.config.iter().all(listed) {
            return Err(format!("{point}, which the space does not list"));
        }
    }
    Ok(())
}
