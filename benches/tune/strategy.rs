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
