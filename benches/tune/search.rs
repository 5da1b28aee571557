//! The search of one target after the other: strategy, measuring, what is published. `finals.rs` has what comes after the search.

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

/// Winners of other shapes that are tried at each.
const WINNERS: usize = 2;

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
    /// Times that each point is measured, in passes over all that were tried.
    pub passes: u32,
    /// Whether winners are held to the default at other row counts, and may serve them.
    pub along: bool,
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
    /// What ran in the finalists' rounds beside it, the fastest first.
    pub finalists: Vec<Finalist>,
    /// The fastest of the finalists, if it beats the default beyond the noise in rounds of these two alone.
    pub winner: Option<Finalist>,
    /// Sizes along which the winner does not lose to the default at other places of its bucket either.
    pub along: Vec<String>,
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

impl Evaluation {
    /// Its time, if it was not given up as too slow.
    pub fn contends(&self) -> Option<f64> {
        let stopped = matches!(&self.outcome, Outcome::Measured(m) if m.stopped);
        self.seconds.filter(|_| !stopped)
    }
}

/// A point of the finalists' rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Finalist {
    /// The point.
    pub point: Point,
    /// Its rounds together.
    pub time: Summary,
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

    /// The points that the compiler, the driver or the device refused, by reason.
    pub fn refused(&self) -> BTreeMap<&str, Vec<&Point>> {
        let mut refused: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
        for evaluation in &self.evaluations {
            if let Outcome::Refused(reason) = &evaluation.outcome {
                refused.entry(reason).or_default().push(&evaluation.point);
            }
        }
        refused
    }

    /// What a later step has shown of a point replaces what the search believed.
    pub(super) fn fails(&mut self, point: &Point, outcome: Outcome) {
        if let Some(evaluation) = self.evaluations.iter_mut().find(|e| e.point == *point) {
            evaluation.outcome = outcome;
            evaluation.seconds = None;
        }
    }

    /// The time that a user will have: the winner's, else the default's.
    pub fn time(&self) -> Option<Summary> {
        self.winner
            .as_ref()
            .map_or(self.default_time, |winner| Some(winner.time))
    }
}

/// What was tried of a target so far.
#[derive(Default)]
struct Tried {
    seen: Vec<Seen>,
    evaluations: Vec<Evaluation>,
    best: Option<f64>,
    /// What the default took at first.
    base: Option<f64>,
    /// When the search is to end, in seconds of the whole run.
    limit: Option<f64>,
}

/// A search under way.
pub struct Search<'a> {
    pub(super) settings: &'a Settings,
    measurer: &'a mut dyn Measurer,
    journal: &'a mut Journal,
    pub(super) progress: &'a Progress,
    lessons: BTreeMap<String, Vec<Lesson>>,
    /// What won at the shapes before, the last first, by op and variant.
    winners: BTreeMap<(String, String), Vec<Point>>,
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
            winners: BTreeMap::new(),
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
            .target(&target.name(), left, count.min(space.points.len()));

        let mut tried = Tried {
            limit,
            ..Tried::default()
        };
        let mut out_of_time = false;
        let mut sound = true;
        while sound && tried.evaluations.len() < count {
            // The default is measured whatever the budget.
            if !tried.evaluations.is_empty() && limit.is_some_and(|limit| self.spent > limit) {
                out_of_time = true;
                break;
            }
            let Some(index) = strategy.next(&tried.seen) else {
                break;
            };
            sound = self.attempt(described, index, &mut tried)?;
        }
        drop(strategy);
        if sound {
            self.attempt_winners(described, &mut tried)?;
        }
        let Tried {
            mut evaluations,
            base,
            ..
        } = tried;
        let default = &space.points[space.default];
        let promising = self.again(target, default, &mut evaluations, base)?;
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
            along: Vec::new(),
            flops: *flops,
            bytes: *bytes,
            limit: target.workload.limit,
            spent: 0.0,
            out_of_time,
            entry: None,
        };
        let winners = self.winners.remove(&kind(described)).unwrap_or_default();
        self.finals(target, &mut found, &space.key, (&winners, &promising))?;
        self.remember(described, winners, found.winner.as_ref());
        found.spent = self.spent - begun;
        found.entry = self.entry(described, &found);
        Ok(found)
    }

    /// Measures a point, and says whether the search may go on: with a default that fails nothing can be compared, and its failure would
    /// be laid to every point that runs beside it.
    fn attempt(&mut self, described: &Described, index: usize, tried: &mut Tried) -> Result<bool> {
        let Described { target, space, .. } = described;
        let point = &space.points[index];
        let beside = Beside {
            reference: space.points[space.default].clone(),
            best: tried.best.zip(tried.base).map(|(best, base)| best / base),
        };
        let outcome = self.measure(target, point, Stage::Search, Some(&beside))?;
        // All times are as they would be at the hour at which the first was taken.
        tried.base = tried.base.or(outcome.reference());
        let seconds = outcome.seconds_at(tried.base);
        if let Some(seconds) = seconds.filter(|s| tried.best.is_none_or(|best| *s < best)) {
            tried.best = Some(seconds);
        }
        let state = State {
            best: tried.best,
            news: seconds.is_some() && seconds == tried.best,
            flops: described.work[0],
            left: tried.limit.map(|limit| limit - self.spent),
        };
        self.progress.evaluated(target, point, &outcome, &state);
        tried.seen.push(Seen {
            point: index,
            seconds,
        });
        tried.evaluations.push(Evaluation {
            point: point.clone(),
            outcome,
            seconds,
        });
        Ok(index != space.default || seconds.is_some())
    }

    /// Tries what won at other shapes, if the strategy did not: one configuration for all is worth more than one for each, since look-ups
    /// between two shapes need both to agree.
    fn attempt_winners(&mut self, described: &Described, tried: &mut Tried) -> Result<()> {
        let winners = self.winners.get(&kind(described)).cloned();
        for winner in winners.unwrap_or_default() {
            let index = described.space.points.iter().position(|p| *p == winner);
            let new = |index: &usize| tried.seen.iter().all(|seen| seen.point != *index);
            if let Some(index) = index.filter(new) {
                self.attempt(described, index, tried)?;
            }
        }
        Ok(())
    }

    /// Keeps the last winners of each op and variant.
    fn remember(
        &mut self,
        described: &Described,
        mut winners: Vec<Point>,
        winner: Option<&Finalist>,
    ) {
        if let Some(winner) = winner {
            winners.retain(|known| *known != winner.point);
            winners.insert(0, winner.point.clone());
            winners.truncate(WINNERS);
        }
        self.winners.insert(kind(described), winners);
    }

    /// What a point is worth, from the journal if it knows.
    pub(super) fn measure(
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

    /// What is published: the winner, or that the default won, which keeps look-ups from taking a neighbour's.
    fn entry(&self, described: &Described, found: &Found) -> Option<TunedEntry> {
        let default = found.default_time?;
        let (point, time, ratio) = match &found.winner {
            Some(winner) => (&winner.point, winner.time, winner.error_over_bound),
            None => {
                // One that has failed since wins nothing.
                let of_default = found.evaluations.iter().find(|e| e.point == found.default);
                of_default?.seconds?;
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
                samples: gate::ROUNDS,
                default_kernel: found.default.kernel.clone(),
                default_seconds: default.seconds,
                default_deviation: default.deviation,
                error_over_bound: ratio,
                along: found.along.clone(),
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

/// Op and variant.
fn kind(described: &Described) -> (String, String) {
    let key = &described.space.key;
    (key.op.clone(), key.variant.clone())
}

fn key_text(described: &Described) -> String {
    let key = &described.space.key;
    let sizes = key
        .sizes
        .iter()
        .map(|(name, size)| format!(" {name}={size}"));
    format!("{} {}{}", key.op, key.variant, sizes.collect::<String>())
}
