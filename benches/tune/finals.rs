//! What comes after the search: its best measured again, the finalists' rounds, and the last two alone.
//!
//! The fastest of many noisy times is fast partly by luck, and the more are tried the luckier it is. So each step measures anew what the
//! one before has picked: points by the search, finalists by further visits, one challenger by the finalists' rounds, and the gate
//! sees rounds of that one and the default which picked nothing. If it is asked for, a winner then meets the default at other places in
//! its bucket, before it may serve other shapes.

use std::ops::Range;

use ropeway_core::Result;

use super::gate::{self, ROUNDS, Summary};
use super::search::{Evaluation, Finalist, Found, Search};
use super::space::Key;
use super::{Beside, Outcome, Point, Stage, Target, form};

/// The fastest points of the search, which are measured again, and how often.
const PROMISING: usize = 8;
const VISITS: u32 = 2;

/// Points that go into the finalists' rounds beside the default.
const FINALISTS: usize = 3;

/// What takes so many times another's time is as good: a winner of another shape is preferred to the fastest, and does not lose elsewhere in
/// its bucket.
const AS_GOOD: f64 = 1.01;

/// Rounds at each of the other places of a bucket.
const FEW_ROUNDS: u32 = 3;

impl Search<'_> {
    /// Measures what was tried again: everything in the passes that were asked for, then the most promising, which it returns.
    pub(super) fn again(
        &mut self,
        target: &Target,
        default: &Point,
        evaluations: &mut [Evaluation],
        base: Option<f64>,
    ) -> Result<Vec<Point>> {
        let passes = self.settings.passes;
        let all: Vec<usize> = (0..evaluations.len()).collect();
        self.visit(target, default, evaluations, &all, 1..passes, base)?;
        let mut fastest: Vec<(usize, f64)> = evaluations
            .iter()
            .enumerate()
            .filter(|(_, e)| e.point != *default)
            .filter_map(|(number, e)| Some((number, e.contends()?)))
            .collect();
        fastest.sort_by(|a, b| a.1.total_cmp(&b.1));
        let promising: Vec<usize> = fastest.iter().take(PROMISING).map(|(n, _)| *n).collect();
        let visits = passes..passes + VISITS;
        self.visit(target, default, evaluations, &promising, visits, base)?;
        let points = promising
            .iter()
            .map(|&number| evaluations[number].point.clone());
        Ok(points.collect())
    }

    /// Measures some points again in turn, beside the default, and adds what that gives to what is known of them.
    fn visit(
        &mut self,
        target: &Target,
        default: &Point,
        evaluations: &mut [Evaluation],
        which: &[usize],
        visits: Range<u32>,
        base: Option<f64>,
    ) -> Result<()> {
        let beside = Beside {
            reference: default.clone(),
            best: None,
        };
        if which.is_empty() {
            return Ok(());
        }
        for visit in visits {
            self.progress.again(target, which.len());
            for &number in which {
                let evaluation = &mut evaluations[number];
                if evaluation.contends().is_none() {
                    continue;
                }
                let stage = Stage::Again(visit);
                let outcome = self.measure(target, &evaluation.point, stage, Some(&beside))?;
                match (&mut evaluation.outcome, outcome) {
                    (Outcome::Measured(known), Outcome::Measured(more)) => known.add(more),
                    (known, fault) => *known = fault,
                }
                evaluation.seconds = evaluation.outcome.seconds_at(base);
            }
        }
        Ok(())
    }

    /// Proves the fastest of the promising, measures them in turn with the default, and holds the fastest of these to the gate, or one of the `winners` of
    /// other shapes that is as good.
    pub(super) fn finals(
        &mut self,
        target: &Target,
        found: &mut Found,
        key: &Key,
        (winners, promising): (&[Point], &[Point]),
    ) -> Result<()> {
        let proven = self.proven(target, found, winners, promising)?;
        let points: Vec<Point> = proven.iter().map(|(point, _)| point.clone()).collect();
        let rounds = self.own_rounds(target, &points, 0..ROUNDS, found)?;
        let Some(default) = rounds.first().and_then(Option::as_ref) else {
            return Ok(());
        };
        found.default_time = Some(Summary::of(default));
        let others = proven.into_iter().zip(&rounds).skip(1);
        found.finalists = others
            .filter_map(|((point, ratio), times)| {
                Some(Finalist {
                    point,
                    time: Summary::of(times.as_ref()?),
                    error_over_bound: ratio,
                })
            })
            .collect();
        found
            .finalists
            .sort_by(|a, b| a.time.seconds.total_cmp(&b.time.seconds));
        let Some(fastest) = found.finalists.first() else {
            return Ok(());
        };
        let known = found.finalists.iter().find(|finalist| {
            winners.contains(&finalist.point)
                && finalist.time.seconds <= AS_GOOD * fastest.time.seconds
        });
        let challenger = known.unwrap_or(fastest).clone();
        if challenger.time.seconds >= Summary::of(default).seconds {
            return Ok(());
        }
        let two = [points[0].clone(), challenger.point.clone()];
        let rounds = self.own_rounds(target, &two, ROUNDS..2 * ROUNDS, found)?;
        let [default, times] = &rounds[..] else {
            return Ok(());
        };
        found.default_time = default.as_deref().map(Summary::of);
        if let (Some(default), Some(times)) = (default, times)
            && gate::beats(times, default)
        {
            found.winner = Some(Finalist {
                time: Summary::of(times),
                ..challenger
            });
            // Named as the key names them, or nobody could look them up.
            let varying = form::varying(&target.workload);
            let named = varying.iter().all(|name| key.sizes.contains_key(name));
            if self.settings.along && named && self.serves_bucket(target, &two, found)? {
                found.along = varying;
            }
        }
        Ok(())
    }

    /// Whether the winner may serve other shapes of its bucket that differ in what varies from call to call: at no other such place may it
    /// lose to the default.
    fn serves_bucket(
        &mut self,
        target: &Target,
        two: &[Point; 2],
        found: &mut Found,
    ) -> Result<bool> {
        let places = target.elsewhere()?;
        for (place, there) in places.iter().enumerate() {
            self.progress.elsewhere(target, place + 1, places.len());
            let stages = (0..FEW_ROUNDS).map(|round| Stage::Elsewhere { place, round });
            let rounds = self.rounds(target, two, stages)?;
            match &rounds[..] {
                [Ok(default), Ok(winner)] => {
                    let [default, winner] = [default, winner].map(|t| Summary::of(t).seconds);
                    if winner > AS_GOOD * default {
                        return Ok(false);
                    }
                }
                [_, Err(fault)] if fault.is_fault() => {
                    found.fails(&two[1], fault.clone().at(there));
                    found.winner = None;
                    return Ok(false);
                }
                [Err(fault), _] if fault.is_fault() => {
                    found.fails(&two[0], fault.clone().at(there));
                    return Ok(false);
                }
                // It cannot be run there, which is no fault: it serves its own shape.
                _ => return Ok(false),
            }
        }
        Ok(!places.is_empty())
    }

    /// The default and the fastest points that pass their proof, each with its greatest error ÷ bound; nothing if the default fails it.
    fn proven(
        &mut self,
        target: &Target,
        found: &mut Found,
        winners: &[Point],
        promising: &[Point],
    ) -> Result<Vec<(Point, f64)>> {
        let mut fastest: Vec<(Point, f64, f64)> = found
            .evaluations
            .iter()
            .filter_map(|e| match &e.outcome {
                Outcome::Measured(m) => Some((e.point.clone(), e.contends()?, m.error_over_bound)),
                _ => None,
            })
            .collect();
        fastest.sort_by(|a, b| a.1.total_cmp(&b.1));
        let Some(default) = fastest.iter().position(|(p, ..)| *p == found.default) else {
            return Ok(Vec::new());
        };
        let default = fastest.remove(default);
        // Of what was visited once, the fastest are the luckiest.
        fastest.retain(|(point, ..)| promising.contains(point) || winners.contains(point));
        let mut proven: Vec<(Point, f64)> = Vec::new();
        let mut seats = 1 + FINALISTS;
        for (point, _, ratio) in std::iter::once(default).chain(fastest) {
            // A winner of another shape has a seat of its own.
            let known = winners.contains(&point);
            if seats == 0 && !known {
                continue;
            }
            self.progress.proving(target, &point);
            match self.measure(target, &point, Stage::Proof, None)? {
                Outcome::Proven(proof) => {
                    proven.push((point, ratio.max(proof)));
                    seats -= usize::from(!known);
                }
                outcome => found.fails(&point, outcome),
            }
            if proven.is_empty() {
                // Without a default that is right there is nothing to beat; the report names it.
                break;
            }
        }
        Ok(proven)
    }

    /// The times of some points in rounds, in which each begins in its turn; the outcome of one that failed in a round, which is left out
    /// of those after it.
    fn rounds(
        &mut self,
        target: &Target,
        points: &[Point],
        stages: impl Iterator<Item = Stage>,
    ) -> Result<Vec<std::result::Result<Vec<f64>, Outcome>>> {
        let mut times = vec![Ok(Vec::new()); points.len()];
        for (round, stage) in stages.enumerate() {
            for turn in 0..points.len() {
                let number = (turn + round) % points.len();
                let Ok(known) = &mut times[number] else {
                    continue;
                };
                match self.measure(target, &points[number], stage, None)? {
                    Outcome::Measured(measurement) => known.push(measurement.seconds()),
                    fault => times[number] = Err(fault),
                }
            }
        }
        Ok(times)
    }

    /// As [`Search::rounds`], at the target's own shape: what failed is the point's outcome from then on.
    fn own_rounds(
        &mut self,
        target: &Target,
        points: &[Point],
        rounds: Range<u32>,
        found: &mut Found,
    ) -> Result<Vec<Option<Vec<f64>>>> {
        self.progress.rounds(target, points.len(), rounds.len());
        let times = self.rounds(target, points, rounds.map(Stage::Round))?;
        let kept = points.iter().zip(times).map(|(point, times)| match times {
            Ok(times) => Some(times),
            Err(fault) => {
                found.fails(point, fault);
                None
            }
        });
        Ok(kept.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::journal::Journal;
    use super::super::report::Progress;
    use super::super::search::Settings;
    use super::super::simulate::Recording;
    use super::super::strategy::Choice;
    use super::super::{Measurement, Measurer};
    use super::*;

    fn took(seconds: f64) -> Outcome {
        Outcome::Measured(Measurement {
            samples: vec![seconds; 5],
            runs: 1,
            reference: vec![1e-3; 5],
            error_over_bound: 0.5,
            stopped: false,
        })
    }

    /// A device on which one configuration takes a fifth less than the default, and elsewhere what `elsewhere` says of a place and of who runs
    /// there: the default, or it.
    struct Fake<F> {
        default: Point,
        elsewhere: F,
    }

    impl<F: Fn(usize, bool) -> Outcome> Measurer for Fake<F> {
        fn measure(
            &mut self,
            _: &Target,
            point: &Point,
            stage: Stage,
            _: Option<&Beside>,
        ) -> Result<Outcome> {
            let is_default = *point == self.default;
            Ok(match stage {
                Stage::Proof => Outcome::Proven(0.5),
                Stage::Elsewhere { place, .. } => (self.elsewhere)(place, is_default),
                _ => took(if is_default { 1e-3 } else { 0.8e-3 }),
            })
        }
    }

    fn tuned(along: bool, elsewhere: impl Fn(usize, bool) -> Outcome) -> Found {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal");
        let recording = Recording::read(&path).unwrap();
        let mut described = recording.targets[0].clone();
        let space = &mut described.space;
        let default = space.points[space.default].clone();
        let other = space.points.iter().find(|point| **point != default);
        space.points = vec![default.clone(), other.unwrap().clone()];
        space.default = 0;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, recording.header, false).unwrap();
        let settings = Settings {
            strategy: Choice::Exhaustive,
            seed: 1,
            evaluations: None,
            budget: None,
            passes: 1,
            along,
            simulated: true,
        };
        let mut fake = Fake { default, elsewhere };
        let progress = Progress::new(true);
        let mut search = Search::new(&settings, &mut fake, &mut journal, &progress);
        search.tune(&described, 1).unwrap()
    }

    fn along(found: &Found) -> Vec<String> {
        let entry = found.entry.as_ref().expect("published");
        assert_eq!(entry.fault(), None);
        assert!(!entry.keeps_default());
        entry.measured.as_ref().unwrap().along.clone()
    }

    #[test]
    fn a_winner_serves_other_rows_if_it_is_asked_for_and_it_loses_at_none() {
        let gains = |_: usize, is_default: bool| took(if is_default { 1e-3 } else { 0.9e-3 });
        assert_eq!(along(&tuned(true, gains)), ["m"]);
        assert_eq!(along(&tuned(false, gains)), [""; 0]);
        let loses_once = |place: usize, is_default: bool| {
            let slow = place == 5 && !is_default;
            took(if slow { 1.03e-3 } else { 1e-3 })
        };
        assert_eq!(along(&tuned(true, loses_once)), [""; 0]);
        let refused_once = |place: usize, _: bool| match place {
            7 => Outcome::Refused("planted".into()),
            _ => took(1e-3),
        };
        assert_eq!(along(&tuned(true, refused_once)), [""; 0]);
    }

    #[test]
    fn a_fault_elsewhere_is_named_with_its_place_and_costs_who_has_it() {
        let crashes = |who: bool| {
            move |place: usize, is_default: bool| match place == 2 && is_default == who {
                true => Outcome::Crashed("planted".into()),
                false => took(1e-3),
            }
        };
        let fault = |found: &Found, number: usize| match &found.evaluations[number].outcome {
            Outcome::Crashed(said) => said.clone(),
            other => panic!("{other:?}"),
        };
        let of_winner = tuned(true, crashes(false));
        assert!(of_winner.winner.is_none());
        assert!(of_winner.entry.unwrap().keeps_default());
        let said = fault(&tuned(true, crashes(false)), 1);
        assert!(said.contains("a T ") && said.contains("planted"), "{said}");
        // The default's is the default's: the winner is right and faster at its own shape.
        let of_default = tuned(true, crashes(true));
        assert_eq!(along(&of_default), [""; 0]);
        assert!(fault(&of_default, 0).contains("planted"));
    }
}
