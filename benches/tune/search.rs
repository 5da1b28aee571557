//! The search of one target after the other: strategy, measuring, finalists, gate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ropeway::TunedEntry;
use ropeway::tuned::{Measured, Provenance};
use ropeway_core::Result;
use serde::Serialize;

use super::gate::{self, Summary};
use super::journal::{Described, Journal, Record};
use super::report::{Progress, State};
use super::strategy::{Choice, Lesson, Seen};
use super::{Beside, Measurer, Outcome, Point, Stage, Target};
use crate::definition::Limit;

/// Points that go into the last rounds beside the default.
const FINALISTS: usize = 4;

/// Rounds of the finalists.
const ROUNDS: u32 = gate::ROUNDS;

/// How to search.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The order.
    pub strategy: Choice,
    /// Where chance begins.
    pub seed: u64,
    /// Points to try for each target; the strategy's own number if `None`.
    pub evaluations: Option<usize>,
    /// Time for all targets.
    pub budget: Option<Duration>,
    /// True if time is the recording's and not to be counted.
    pub simulated: bool,
}

/// What was found for a target.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub target: String,
    /// Op, variant and sizes of the entry.
    pub key: String,
    /// Points of the space.
    pub points: usize,
    /// Points that the rules, the device or the planner exclude.
    pub excluded: usize,
    /// What was tried, in order.
    pub evaluations: Vec<Evaluation>,
    /// The default.
    pub default: Point,
    /// Its last rounds; `None` if it failed.
    pub default_time: Option<Summary>,
    /// What ran in the last rounds beside it.
    pub finalists: Vec<Finalist>,
    /// An index into the finalists: the fastest that beats the default beyond the noise.
    pub winner: Option<usize>,
    /// Operations that the problem cannot avoid.
    pub flops: f64,
    /// Bytes that it cannot avoid.
    pub bytes: f64,
    /// What bounds it.
    pub limit: Limit,
    /// Seconds that the search took, those of an earlier process included.
    pub spent: f64,
    /// True if the time ran out before the points did.
    pub out_of_time: bool,
    /// The entry that was published.
    #[serde(skip)]
    pub entry: Option<TunedEntry>,
}

/// A point that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The point.
    pub point: Point,
    /// What came of it.
    pub outcome: Outcome,
    /// Its median time, set right by what the reference took beside it.
    pub seconds: Option<f64>,
}

/// A point of the last rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Finalist {
    /// The point.
    pub point: Point,
    /// Its rounds together.
    pub time: Summary,
    /// Whether it beats the default beyond the noise.
    pub beats_default: bool,
    /// The greatest error ÷ bound of everything it was checked with.
    pub error_over_bound: f64,
}

impl Found {
    /// The points whose results differ from the reference.
    pub fn wrong(&self) -> impl Iterator<Item = (&Point, &[String])> {
        self.evaluations.iter().filter_map(|e| match &e.outcome {
            Outcome::Wrong(findings) => Some((&e.point, findings.as_slice())),
            _ => None,
        })
    }

    /// The time that a user will have: the winner's, else the default's.
    pub fn time(&self) -> Option<Summary> {
        match self.winner {
            Some(winner) => Some(self.finalists[winner].time),
            None => self.default_time,
        }
    }
}

/// A search under way.
pub struct Search<'a> {
    settings: &'a Settings,
    measurer: &'a mut dyn Measurer,
    journal: &'a mut Journal,
    progress: &'a Progress,
    lessons: BTreeMap<String, Vec<Lesson>>,
    /// Seconds so far, of this process and those before it.
    spent: f64,
}

impl<'a> Search<'a> {
    /// With a journal that may know some answers already.
    pub fn new(
        settings: &'a Settings,
        measurer: &'a mut dyn Measurer,
        journal: &'a mut Journal,
        progress: &'a Progress,
    ) -> Search<'a> {
        Search {
            settings,
            measurer,
            journal,
            progress,
            lessons: BTreeMap::new(),
            spent: 0.0,
        }
    }

    /// Tunes one target, of which so many are left, itself included.
    ///
    /// # Errors
    /// `File` if the journal cannot be written, `Unavailable` if no worker can be started.
    pub fn tune(&mut self, described: &Described, left: usize) -> Result<Found> {
        let Described {
            target,
            space,
            work: [flops, bytes],
        } = described;
        self.journal.describe(described)?;
        let begun = self.spent;
        let limit = self.settings.budget.map(|budget| {
            let rest = budget.as_secs_f64() - self.spent;
            self.spent + rest.max(0.0) / left.max(1) as f64
        });
        let count = self.settings.evaluations;
        let count = count.unwrap_or_else(|| self.settings.strategy.evaluations(space.points.len()));
        let work = flops.max(*bytes).max(1.0);
        let lessons = self.lessons.remove(&space.key.op).unwrap_or_default();
        let mut strategy =
            self.settings
                .strategy
                .strategy(space, work, &lessons, self.settings.seed);
        self.progress
            .target(&target.name(), count.min(space.points.len()));

        let mut seen: Vec<Seen> = Vec::new();
        let mut evaluations: Vec<Evaluation> = Vec::new();
        let mut best: Option<f64> = None;
        let mut base: Option<f64> = None;
        let mut out_of_time = false;
        while evaluations.len() < count {
            // The default is measured whatever the budget.
            if !evaluations.is_empty() && limit.is_some_and(|limit| self.spent > limit) {
                out_of_time = true;
                break;
            }
            let Some(index) = strategy.next(&seen) else {
                break;
            };
            let point = &space.points[index];
            let beside = Beside {
                reference: space.points[space.default].clone(),
                best: best.zip(base).map(|(best, base)| best / base),
            };
            let outcome = self.measure(target, point, Stage::Search, Some(&beside))?;
            // All times are as they would be at the hour at which the first was taken.
            base = base.or(outcome.reference());
            let seconds = outcome.seconds_at(base);
            if let Some(seconds) = seconds.filter(|s| best.is_none_or(|best| *s < best)) {
                best = Some(seconds);
            }
            let state = State {
                best,
                news: seconds.is_some() && seconds == best,
                flops: *flops,
                left: limit.map(|limit| limit - self.spent),
            };
            self.progress.evaluated(target, point, &outcome, &state);
            seen.push(Seen {
                point: index,
                seconds,
            });
            evaluations.push(Evaluation {
                point: point.clone(),
                outcome,
                seconds,
            });
            // With a default that fails nothing can be compared, and it would be laid to every point that runs beside it.
            if index == space.default && seconds.is_none() {
                break;
            }
        }
        drop(strategy);
        self.learn(described, lessons, &evaluations, work);

        let mut found = Found {
            target: target.name(),
            key: key_text(described),
            points: space.points.len(),
            excluded: space.excluded,
            evaluations,
            default: space.points[space.default].clone(),
            default_time: None,
            finalists: Vec::new(),
            winner: None,
            flops: *flops,
            bytes: *bytes,
            limit: target.workload.limit,
            spent: 0.0,
            out_of_time,
            entry: None,
        };
        self.finals(target, &mut found)?;
        found.spent = self.spent - begun;
        found.entry = self.entry(described, &found);
        Ok(found)
    }

    /// What a point is worth, from the journal if it knows.
    fn measure(
        &mut self,
        target: &Target,
        point: &Point,
        stage: Stage,
        beside: Option<&Beside>,
    ) -> Result<Outcome> {
        let name = target.name();
        if let Some((outcome, spent)) = self.journal.find(&name, point, stage) {
            self.spent += spent;
            return Ok(outcome);
        }
        let begin = Instant::now();
        let outcome = self.measurer.measure(target, point, stage, beside)?;
        let spent = match self.settings.simulated {
            true => 0.0,
            false => begin.elapsed().as_secs_f64(),
        };
        self.spent += spent;
        self.journal.add(Record {
            target: name,
            point: point.clone(),
            stage,
            outcome: outcome.clone(),
            spent,
        })?;
        Ok(outcome)
    }

    /// What the next shapes may learn from this one.
    fn learn(
        &mut self,
        described: &Described,
        mut lessons: Vec<Lesson>,
        evaluations: &[Evaluation],
        work: f64,
    ) {
        let key = &described.space.key;
        let measured = evaluations
            .iter()
            .filter_map(|e| Some((&e.point, e.seconds?)));
        lessons.extend(measured.map(|(point, seconds)| Lesson {
            point: point.clone(),
            sizes: key.sizes.clone(),
            value: (seconds / work).ln(),
        }));
        self.lessons.insert(key.op.clone(), lessons);
    }

    /// Proves the fastest, and measures them in turn with the default.
    fn finals(&mut self, target: &Target, found: &mut Found) -> Result<()> {
        let mut fastest: Vec<(&Point, f64, f64)> = found
            .evaluations
            .iter()
            .filter_map(|e| match &e.outcome {
                Outcome::Measured(m) => Some((&e.point, e.seconds?, m.error_over_bound)),
                _ => None,
            })
            .collect();
        fastest.sort_by(|a, b| a.1.total_cmp(&b.1));
        let default = found.default.clone();
        let is_default = |point: &Point| *point == default;
        let Some(of_default) = fastest
            .iter()
            .find(|(point, ..)| is_default(point))
            .copied()
        else {
            return Ok(());
        };
        let others = fastest.into_iter().filter(|(point, ..)| !is_default(point));
        let mut proven: Vec<(Point, f64)> = Vec::new();
        let mut refused: Vec<(Point, Outcome)> = Vec::new();
        for (point, _, ratio) in std::iter::once(of_default).chain(others) {
            if proven.len() > FINALISTS {
                break;
            }
            self.progress.proving(target, point);
            match self.measure(target, point, Stage::Proof, None)? {
                Outcome::Proven(proof) => proven.push((point.clone(), ratio.max(proof))),
                outcome => refused.push((point.clone(), outcome)),
            }
            if proven.is_empty() {
                // Without a default that is right there is nothing to beat; the report names it.
                break;
            }
        }
        let no_default = proven.is_empty();
        // What the proof has shown replaces what the search believed.
        for (point, outcome) in refused {
            if let Some(evaluation) = found.evaluations.iter_mut().find(|e| e.point == point) {
                evaluation.outcome = outcome;
                evaluation.seconds = None;
            }
        }
        if no_default {
            return Ok(());
        }
        let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); proven.len()];
        for round in 0..ROUNDS {
            self.progress.round(target, round + 1, ROUNDS);
            for turn in 0..proven.len() {
                // Each begins a round in its turn.
                let number = (turn + round as usize) % proven.len();
                let outcome = self.measure(target, &proven[number].0, Stage::Round(round), None)?;
                rounds[number].extend(outcome.seconds());
            }
        }
        // One that failed in a round has too few to be compared.
        let whole = |number: usize| rounds[number].len() == ROUNDS as usize;
        if !whole(0) {
            return Ok(());
        }
        found.default_time = Some(Summary::of(&rounds[0]));
        for (number, (point, ratio)) in proven.into_iter().enumerate().skip(1) {
            if whole(number) {
                found.finalists.push(Finalist {
                    time: Summary::of(&rounds[number]),
                    beats_default: gate::beats(&rounds[number], &rounds[0]),
                    point,
                    error_over_bound: ratio,
                });
            }
        }
        found
            .finalists
            .sort_by(|a, b| a.time.seconds.total_cmp(&b.time.seconds));
        found.winner = found
            .finalists
            .iter()
            .position(|finalist| finalist.beats_default);
        Ok(())
    }

    /// What is published: the winner, or that the default won, which keeps look-ups from taking a neighbour's.
    fn entry(&self, described: &Described, found: &Found) -> Option<TunedEntry> {
        let default = found.default_time?;
        let (point, time, ratio) = match found.winner {
            Some(winner) => {
                let finalist = &found.finalists[winner];
                (&finalist.point, finalist.time, finalist.error_over_bound)
            }
            None => {
                let proof = self
                    .journal
                    .find(&found.target, &found.default, Stage::Proof);
                let Some((Outcome::Proven(ratio), _)) = proof else {
                    return None;
                };
                (&found.default, default, ratio)
            }
        };
        let key = &described.space.key;
        let header = self.journal.header();
        let (version, source) = described.space.kernels.get(&point.kernel)?.clone();
        Some(TunedEntry {
            op: key.op.clone(),
            variant: key.variant.clone(),
            sizes: key.sizes.clone(),
            kernel: point.kernel.clone(),
            version,
            config: point.config.clone(),
            measured: Some(Measured {
                seconds: time.seconds,
                deviation: time.deviation,
                samples: ROUNDS,
                default_kernel: found.default.kernel.clone(),
                default_seconds: default.seconds,
                default_deviation: default.deviation,
                error_over_bound: ratio,
            }),
            provenance: Some(Provenance {
                driver: header.driver.clone(),
                compiler: header.compiler.clone(),
                source,
                ropeway: header.ropeway.clone(),
                date: header.date.clone(),
                seed: header.seed,
            }),
        })
    }
}

fn key_text(described: &Described) -> String {
    let key = &described.space.key;
    let sizes = key
        .sizes
        .iter()
        .map(|(name, size)| format!(" {name}={size}"));
    format!("{} {}{}", key.op, key.variant, sizes.collect::<String>())
}
