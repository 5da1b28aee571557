//! Which point to try next.
//!
//! A strategy is a function of the space, the seed and what was seen so far, and of nothing else: an interrupted search that is
//! resumed from its journal goes the way it would have gone.

mod guided;

use clap::ValueEnum;
use ropeway_core::spec::Random;

pub use guided::{Guided, Lesson};

use super::space::Space;

/// A space of so few points is searched wholly: a model would take half of it to learn.
const SMALL: usize = 24;

/// The order of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Exhaustive where the space is small, else guided.
    Auto,
    /// Every point.
    Exhaustive,
    /// Points drawn evenly, each once.
    Random,
    /// Points of which a model that learns from those before expects the most.
    Guided,
}

/// What was seen of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// An index into the space's points.
    pub point: usize,
    /// Its time in seconds; `None` if it failed.
    pub seconds: Option<f64>,
}

/// An order of trying points.
pub trait Strategy {
    /// The point to try after those that were seen, an index; `None` when there is nothing left to try.
    fn next(&mut self, seen: &[Seen]) -> Option<usize>;
}

impl Choice {
    /// The strategy for a space. `lessons` are what searches of other shapes have shown.
    pub fn strategy<'a>(
        self,
        space: &'a Space,
        work: f64,
        lessons: &'a [Lesson],
        seed: u64,
    ) -> Box<dyn Strategy + 'a> {
        match self {
            Choice::Exhaustive => Box::new(Exhaustive(space)),
            Choice::Auto if space.points.len() <= SMALL => Box::new(Exhaustive(space)),
            Choice::Random => Box::new(Shuffled::new(space, seed)),
            Choice::Auto | Choice::Guided => Box::new(Guided::new(space, work, lessons, seed)),
        }
    }

    /// Points that a search tries if nobody says how many: a tenth of a large space, all of a small one.
    pub fn evaluations(self, points: usize) -> usize {
        match self {
            Choice::Exhaustive => points,
            _ => (points / 10).max(SMALL).min(points),
        }
    }
}

/// Every point, the default first.
struct Exhaustive<'a>(&'a Space);

impl Strategy for Exhaustive<'_> {
    fn next(&mut self, seen: &[Seen]) -> Option<usize> {
        let rest = (0..self.0.points.len()).filter(|point| *point != self.0.default);
        std::iter::once(self.0.default).chain(rest).nth(seen.len())
    }
}

/// The default, then the others in a random order.
struct Shuffled(Vec<usize>);

impl Shuffled {
    fn new(space: &Space, seed: u64) -> Shuffled {
        let mut random = Random::new(seed);
        let mut order: Vec<usize> = (0..space.points.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        order.retain(|point| *point != space.default);
        order.insert(0, space.default);
        Shuffled(order)
    }
}

impl Strategy for Shuffled {
    fn next(&mut self, seen: &[Seen]) -> Option<usize> {
        self.0.get(seen.len()).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::measure::median;
    use crate::tune::journal::Described;
    use crate::tune::simulate::Recording;

    const SEEDS: u64 = 20;

    /// Every point of GEMM in f32 at 512 and 1024 on PoCL, in several passes.
    fn recording() -> Recording {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal");
        Recording::read(&path).expect("committed")
    }

    /// A recorded space whose default is the slowest point there is.
    struct Recorded {
        name: String,
        space: Space,
        work: f64,
        /// What a search sees of each point: its first visit.
        seen: Vec<Option<f64>>,
        /// What all visits together say.
        truth: Vec<f64>,
        best: f64,
    }

    fn recorded() -> Vec<Recorded> {
        let recording = recording();
        let of = |described: &Described| {
            let name = described.target.name();
            let base = recording.base(&name);
            let points = &described.space.points;
            let first = |point| recording.visit(&name, point, 0)?.seconds_at(base);
            let all = |point| recording.outcome(&name, point)?.seconds_at(base);
            let truth: Vec<f64> = points
                .iter()
                .map(|point| all(point).unwrap_or(f64::INFINITY))
                .collect();
            let slowest = (0..truth.len()).max_by(|a, b| truth[*a].total_cmp(&truth[*b]));
            Recorded {
                seen: points.iter().map(first).collect(),
                best: truth.iter().copied().fold(f64::INFINITY, f64::min),
                truth,
                space: Space {
                    default: slowest.expect("a space"),
                    ..described.space.clone()
                },
                work: described.work[0],
                name,
            }
        };
        recording.targets.iter().map(of).collect()
    }

    impl Recorded {
        /// The points in the order in which a strategy tries them, until there are so many or one is as good as said.
        fn order(
            &self,
            choice: Choice,
            lessons: &[Lesson],
            seed: u64,
            enough: impl Fn(&[Seen]) -> bool,
        ) -> Vec<Seen> {
            let mut strategy = choice.strategy(&self.space, self.work, lessons, seed);
            let mut seen: Vec<Seen> = Vec::new();
            while !enough(&seen) {
                let Some(point) = strategy.next(&seen) else {
                    break;
                };
                assert!(seen.iter().all(|s: &Seen| s.point != point), "tried twice");
                seen.push(Seen {
                    point,
                    seconds: self.seen[point],
                });
            }
            seen
        }

        /// Whether a point was tried that is in truth within `share` of the best.
        fn found(&self, seen: &[Seen], share: f64) -> bool {
            let near = |s: &Seen| self.truth[s.point] <= self.best * (1.0 + share);
            seen.iter().any(near)
        }

        /// Evaluations until then, in the median over the seeds.
        fn until(&self, choice: Choice, lessons: &[Lesson], share: f64) -> f64 {
            let count = |seed| {
                let near = |seen: &[Seen]| self.found(seen, share);
                self.order(choice, lessons, seed, near).len() as f64
            };
            median(&mut (0..SEEDS).map(count).collect::<Vec<f64>>())
        }

        /// What a search of this shape teaches the next, were every so-many-th point measured.
        fn lessons(&self, step: usize) -> Vec<Lesson> {
            let points = (0..self.space.points.len()).step_by(step);
            let lesson = |point: usize| {
                Some(Lesson {
                    point: self.space.points[point].clone(),
                    sizes: self.space.key.sizes.clone(),
                    value: (self.seen[point]? / self.work).ln(),
                })
            };
            points.filter_map(lesson).collect()
        }
    }

    #[test]
    fn the_guided_search_needs_fewer_evaluations_than_random_draws() {
        for recorded in recorded() {
            let guided = recorded.until(Choice::Guided, &[], 0.02);
            let random = recorded.until(Choice::Random, &[], 0.02);
            let near = |share: f64| {
                let times = recorded.truth.iter();
                times.filter(|t| **t <= recorded.best * share).count()
            };
            println!(
                "{}: {} points, {} within 2 %, {} within 5 %; evaluations to within 2 %: guided {guided}, random {random}",
                recorded.name,
                recorded.truth.len(),
                near(1.02),
                near(1.05),
            );
            assert!(guided < random, "{}: {guided}, {random}", recorded.name);
        }
    }

    #[test]
    fn a_tenth_of_the_space_is_enough_from_the_poorest_default() {
        for recorded in recorded() {
            let tenth = recorded.space.points.len() / 10;
            let reached = |choice| {
                let reaches = |seed: &u64| {
                    let seen = recorded.order(choice, &[], *seed, |seen| seen.len() == tenth);
                    recorded.found(&seen, 1.0 / 0.95 - 1.0)
                };
                (0..SEEDS).filter(reaches).count() as u64
            };
            let (guided, random) = (reached(Choice::Guided), reached(Choice::Random));
            println!(
                "{}: 95 % of the best within {tenth}: guided {guided} of {SEEDS} seeds, random {random}",
                recorded.name
            );
            assert!(guided * 10 >= SEEDS * 9, "{}: {guided}", recorded.name);
        }
    }

    #[test]
    fn what_one_shape_taught_shortens_the_search_of_the_next() {
        let recorded = recorded();
        let [one, other] = &recorded[..] else {
            panic!("two shapes")
        };
        for (teacher, pupil) in [(one, other), (other, one)] {
            let taught = pupil.until(Choice::Guided, &teacher.lessons(7), 0.05);
            let untaught = pupil.until(Choice::Guided, &[], 0.05);
            println!(
                "{} to within 5 %: taught {taught}, untaught {untaught}",
                pupil.name
            );
            assert!(taught <= untaught, "{}: {taught}, {untaught}", pupil.name);
        }
    }

    #[test]
    fn exhaustive_and_random_try_every_point_once_and_the_default_first() {
        let recorded = recorded();
        for choice in [Choice::Exhaustive, Choice::Random] {
            let seen = recorded[0].order(choice, &[], 3, |_| false);
            assert_eq!(seen.len(), recorded[0].space.points.len());
            assert_eq!(seen[0].point, recorded[0].space.default);
        }
    }

    #[test]
    fn where_everything_fails_the_search_still_ends() {
        let mut recorded = recorded().remove(0);
        recorded.seen.fill(None);
        let seen = recorded.order(Choice::Guided, &[], 3, |seen| seen.len() == 40);
        assert_eq!(seen.len(), 40);
    }
}
