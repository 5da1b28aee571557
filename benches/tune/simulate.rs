//! A search without a device: a journal of an exhaustive search answers in its place.
//!
//! Strategies can so be compared over many seeds in seconds, and the search's own logic (journal, gate, publishing) be tested where
//! every run gives the same. A recording of several passes answers each visit with its own pass; the rounds of finalists are the samples
//! of all passes, one after the other.

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
    /// What came of a point's visits, in the order of the passes; a fault ends them.
    visits: BTreeMap<(String, Point), Vec<Outcome>>,
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
        let mut visits: BTreeMap<(String, Point), Vec<Outcome>> = BTreeMap::new();
        let records = contents.records.into_iter();
        for r in records.filter(|r| matches!(r.stage, Stage::Search | Stage::Again(_))) {
            let known = visits.entry((r.target, r.point)).or_default();
            known.push(r.outcome);
        }
        Ok(Recording {
            header,
            targets: contents.targets,
            visits,
        })
    }

    /// What the reference took beside the default.
    pub fn base(&self, target: &str) -> Option<f64> {
        let mut targets = self.targets.iter();
        let space = &targets.find(|d| d.target.name() == target)?.space;
        self.visit(target, &space.points[space.default], 0)?
            .reference()
    }

    /// What came of a visit of a point; beyond the last, the visits begin anew.
    pub fn visit(&self, target: &str, point: &Point, number: usize) -> Option<&Outcome> {
        let visits = self.visits.get(&(target.to_owned(), point.clone()))?;
        visits.get(number % visits.len())
    }

    /// What all visits of a point together gave.
    pub fn outcome(&self, target: &str, point: &Point) -> Option<Outcome> {
        let visits = self.visits.get(&(target.to_owned(), point.clone()))?;
        let mut all: Option<Outcome> = None;
        for visit in visits {
            match (&mut all, visit) {
                (Some(Outcome::Measured(known)), Outcome::Measured(more)) => {
                    known.add(more.clone())
                }
                _ => all = Some(visit.clone()),
            }
        }
        all
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
        let name = target.name();
        let visit = match stage {
            Stage::Again(number) => number as usize,
            _ => 0,
        };
        let Some(outcome) = self.visit(&name, point, visit) else {
            return Ok(Outcome::Refused("not in the recording".into()));
        };
        let Outcome::Measured(measurement) = outcome else {
            return Ok(outcome.clone());
        };
        Ok(match stage {
            Stage::Search | Stage::Again(_) => outcome.clone(),
            Stage::Proof => Outcome::Proven(measurement.error_over_bound),
            Stage::Elsewhere { .. } => Outcome::Refused("not in the recording".into()),
            Stage::Round(number) => {
                let Some(Outcome::Measured(all)) = self.outcome(&name, point) else {
                    return Ok(outcome.clone());
                };
                // The last first: by the first, the search has picked the point.
                let number = all.samples.len() - 1 - number as usize % all.samples.len();
                let scale = match (self.base(&name), all.reference.get(number)) {
                    (Some(base), Some(reference)) => base / reference,
                    _ => 1.0,
                };
                Outcome::Measured(Measurement {
                    samples: vec![all.samples[number] * scale],
                    reference: Vec::new(),
                    ..all
                })
            }
        })
    }
}
