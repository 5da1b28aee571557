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

    /// Every point of GEMM in f32 at 1024 on PoCL.
    fn recording() -> Recording {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal");
        Recording::read(&path).expect("committed")
    }

    /// A recorded space whose default is the slowest point there is, and the times of its points.
    fn poor(recording: &Recording, described: &Described) -> (Space, Vec<Option<f64>>) {
        let name = described.target.name();
        let points = described.space.points.iter();
        let seconds: Vec<Option<f64>> = points
            .map(|point| {
                recording
                    .outcome(&name, point)?
                    .seconds_at(recording.base(&name))
            })
            .collect();
        let slowest =
            (0..seconds.len()).max_by(|a, b| seconds[*a].partial_cmp(&seconds[*b]).unwrap());
        let space = Space {
            default: slowest.unwrap(),
            ..described.space.clone()
        };
        (space, seconds)
    }

    /// The times of the points in the order in which a strategy tries them.
    fn order(
        choice: Choice,
        space: &Space,
        seconds: &[Option<f64>],
        lessons: &[Lesson],
        seed: u64,
        enough: impl Fn(&[Seen]) -> bool,
    ) -> Vec<Seen> {
        let mut strategy = choice.strategy(space, work(space), lessons, seed);
        let mut seen: Vec<Seen> = Vec::new();
        while !enough(&seen) {
            let Some(point) = strategy.next(&seen) else {
                break;
            };
            assert!(seen.iter().all(|s: &Seen| s.point != point), "tried twice");
            seen.push(Seen {
                point,
                seconds: seconds[point],
            });
        }
        seen
    }

    fn work(space: &Space) -> f64 {
        2.0 * space
            .key
            .sizes
            .values()
            .map(|size| *size as f64)
            .product::<f64>()
    }

    fn best(seconds: &[Option<f64>]) -> f64 {
        seconds
            .iter()
            .flatten()
            .copied()
            .fold(f64::INFINITY, f64::min)
    }

    /// Evaluations until a point within `share` of the best was seen.
    fn until(seen: &[Seen], best: f64, share: f64) -> f64 {
        let near = |s: &Seen| {
            s.seconds
                .is_some_and(|seconds| seconds <= best * (1.0 + share))
        };
        seen.iter()
            .position(near)
            .map_or(f64::INFINITY, |at| at as f64 + 1.0)
    }

    fn medians(choice: Choice) -> Vec<f64> {
        let recording = recording();
        let mut medians = Vec::new();
        for described in &recording.targets {
            let (space, seconds) = poor(&recording, described);
            let mut counts: Vec<f64> = (0..SEEDS)
                .map(|seed| {
                    let least = best(&seconds);
                    let seen = order(choice, &space, &seconds, &[], seed, |seen| {
                        until(seen, least, 0.02).is_finite()
                    });
                    until(&seen, least, 0.02)
                })
                .collect();
            medians.push(median(&mut counts));
        }
        medians
    }

    #[test]
    fn the_guided_search_needs_fewer_evaluations_than_random_draws() {
        let guided = medians(Choice::Guided);
        let random = medians(Choice::Random);
        println!("to within 2 %: guided {guided:?}, random {random:?}");
        for (guided, random) in guided.iter().zip(&random) {
            assert!(2.0 * guided <= *random, "guided {guided}, random {random}");
        }
    }

    #[test]
    fn a_tenth_of_the_space_is_enough_from_the_poorest_default() {
        let recording = recording();
        for described in &recording.targets {
            let (space, seconds) = poor(&recording, described);
            let tenth = space.points.len() / 10;
            let reached = (0..SEEDS)
                .filter(|seed| {
                    let seen = order(Choice::Guided, &space, &seconds, &[], *seed, |seen| {
                        seen.len() == tenth
                    });
                    until(&seen, best(&seconds), 1.0 / 0.95 - 1.0).is_finite()
                })
                .count();
            println!(
                "{}: 95 % within {tenth} for {reached} of {SEEDS}",
                described.target.name()
            );
            assert!(
                reached as u64 >= SEEDS * 3 / 4,
                "{}: {reached}",
                described.target.name()
            );
        }
    }

    #[test]
    fn what_one_shape_taught_shortens_the_search_of_the_next() {
        let recording = recording();
        let (space, seconds) = poor(&recording, &recording.targets[0]);
        let least = best(&seconds);
        let measured = (0..space.points.len()).filter_map(|point| Some((point, seconds[point]?)));
        // A shape of half the sizes, at which every seventh point was measured and took as long by work.
        let lessons: Vec<Lesson> = measured
            .step_by(7)
            .map(|(point, seconds)| Lesson {
                point: space.points[point].clone(),
                sizes: space
                    .key
                    .sizes
                    .iter()
                    .map(|(n, s)| (n.clone(), s / 2))
                    .collect(),
                value: (seconds / work(&space)).ln(),
            })
            .collect();
        let until_near = |lessons: &[Lesson], seed| {
            let near = |seen: &[Seen]| until(seen, least, 0.3).is_finite();
            order(Choice::Guided, &space, &seconds, lessons, seed, near).len() as f64
        };
        let mut taught: Vec<f64> = (0..SEEDS).map(|seed| until_near(&lessons, seed)).collect();
        let mut untaught: Vec<f64> = (0..SEEDS).map(|seed| until_near(&[], seed)).collect();
        let (taught, untaught) = (median(&mut taught), median(&mut untaught));
        println!("to within 30 %: taught {taught}, untaught {untaught}");
        assert!(taught <= untaught, "taught {taught}, untaught {untaught}");
    }

    #[test]
    fn exhaustive_and_random_try_every_point_once_and_the_default_first() {
        let recording = recording();
        let (space, seconds) = poor(&recording, &recording.targets[0]);
        for choice in [Choice::Exhaustive, Choice::Random] {
            let seen = order(choice, &space, &seconds, &[], 3, |_| false);
            assert_eq!(seen.len(), space.points.len());
            assert_eq!(seen[0].point, space.default);
        }
    }

    #[test]
    fn where_everything_fails_the_search_still_ends() {
        let recording = recording();
        let (space, _) = poor(&recording, &recording.targets[0]);
        let nothing = vec![None; space.points.len()];
        let seen = order(Choice::Guided, &space, &nothing, &[], 3, |seen| {
            seen.len() == 40
        });
        assert_eq!(seen.len(), 40);
    }
}
