//! A search without a device: a journal of an exhaustive search answers in its place.
//!
//! Strategies can so be compared over many seeds in seconds, and the search's own logic (journal, gate, publishing) be tested where
//! every run gives the same. The rounds of finalists are the samples of the recording, one after the other.

use std::collections::BTreeMap;
use std::path::Path;

use ropeway_core::{Error, Result};

use super::journal::{self, Described, Header};
use super::{Beside, Measurement, Measurer, Outcome, Point, Stage, Target};

/// A recorded space for each target.
pub struct Recording {
    /// The search that was recorded.
    pub header: Header,
    /// What was tuned.
    pub targets: Vec<Described>,
    outcomes: BTreeMap<(String, Point), Outcome>,
}

impl Recording {
    /// Reads a journal.
    ///
    /// # Errors
    /// `File` if it is no journal.
    pub fn read(path: &Path) -> Result<Recording> {
        let contents = journal::read(path)?;
        let wrong = || Error::invalid("--simulate", path.display(), "a journal of ropeway tune");
        let header = contents.header.ok_or_else(wrong)?;
        let search = contents
            .records
            .into_iter()
            .filter(|r| r.stage == Stage::Search);
        Ok(Recording {
            header,
            targets: contents.targets,
            outcomes: search.map(|r| ((r.target, r.point), r.outcome)).collect(),
        })
    }

    /// What the reference took beside the default.
    pub fn base(&self, target: &str) -> Option<f64> {
        let mut targets = self.targets.iter();
        let space = &targets.find(|d| d.target.name() == target)?.space;
        self.outcome(target, &space.points[space.default])?
            .reference()
    }

    /// What is known of a point.
    pub fn outcome(&self, target: &str, point: &Point) -> Option<&Outcome> {
        self.outcomes.get(&(target.to_owned(), point.clone()))
    }
}

impl Measurer for Recording {
    fn measure(
        &mut self,
        target: &Target,
        point: &Point,
        stage: Stage,
        _beside: Option<&Beside>,
    ) -> Result<Outcome> {
        let Some(outcome) = self.outcome(&target.name(), point) else {
            return Ok(Outcome::Refused("not in the recording".into()));
        };
        let Outcome::Measured(measurement) = outcome else {
            return Ok(outcome.clone());
        };
        Ok(match stage {
            Stage::Search => outcome.clone(),
            Stage::Proof => Outcome::Proven(measurement.error_over_bound),
            Stage::Round(number) => {
                let samples = &measurement.samples;
                let sample = samples[number as usize % samples.len()];
                let base = self.base(&target.name());
                let reference = measurement.reference.get(number as usize % samples.len());
                let scale = match (base, reference) {
                    (Some(base), Some(reference)) => base / reference,
                    _ => 1.0,
                };
                Outcome::Measured(Measurement {
                    samples: vec![sample * scale],
                    reference: Vec::new(),
                    ..measurement.clone()
                })
            }
        })
    }
}
