//! The guided strategy: a Gaussian process over the logarithm of time, and the expected improvement (Jones, Schonlau, Welch 1998).
//!
//! ```text
//!  covariance of two points = signal · [same kernel ? 1 : LIKENESS] · exp(-Σ ((x - y) / length)² / 2)    tunables they share
//!                                    · exp(-Σ ((log2 size - log2 size') / SIZE_LENGTH)² / 2)                  sizes of their shapes
//! ```
//!
//! A tunable's coordinate is the rank of its value, from 0 to 1: lists are spaced as their authors found sensible. Times are in
//! seconds by unit of work, so that what one shape has taught (the lessons) bears on the next. A length for each tunable and the noise
//! are chosen anew before each step by the likelihood of what was seen. A failed point counts as the slowest seen: its neighbours
//! are likely to fail too.

use std::collections::BTreeMap;

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};
use ropeway_core::spec::Random;

use super::{Seen, Strategy};
use crate::tune::Point;
use crate::tune::space::Space;

/// How much one kernel says of another.
const LIKENESS: f64 = 0.2;

/// Sizes this many octaves apart say little of each other.
const SIZE_LENGTH: f64 = 4.0;

/// Lengths that a tunable's coordinate may have, and the noise's share of the signal.
const LENGTHS: [f64; 4] = [0.25, 0.5, 1.0, 3.0];
const NOISES: [f64; 2] = [1e-3, 2e-2];

/// Points tried before the model is asked, where there are no lessons.
const FIRST: usize = 5;

/// Lessons that are kept, the fastest points of each shape first: fitting takes their number cubed.
const MOST_LESSONS: usize = 96;

/// What a search of one shape has shown of a point.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// The point.
    pub point: Point,
    /// The sizes of its shape, as the planner names them.
    pub sizes: BTreeMap<String, u64>,
    /// Natural logarithm of seconds by unit of work.
    pub value: f64,
}

/// A point as the model sees it.
#[derive(Clone, Debug)]
struct Place {
    kernel: u64,
    /// By axis; `None` where the kernel has not the tunable.
    at: Vec<Option<f64>>,
    sizes: Vec<f64>,
}

/// A strategy that learns.
pub struct Guided<'a> {
    space: &'a Space,
    places: Vec<Place>,
    lessons: Vec<(Place, f64)>,
    first: Vec<usize>,
    work: f64,
}

impl<'a> Guided<'a> {
    /// For a space whose shape has this work.
    pub fn new(space: &'a Space, work: f64, lessons: &'a [Lesson], seed: u64) -> Guided<'a> {
        let place = |point: &Point, sizes: &BTreeMap<String, u64>| Place {
            kernel: ropeway_core::spec::seed_of(&point.kernel),
            at: space
                .axes
                .iter()
                .map(|axis| {
                    let value = point.config.get(&axis.name)?;
                    let rank = axis.values.iter().position(|known| known == value)?;
                    Some(rank as f64 / (axis.values.len() - 1).max(1) as f64)
                })
                .collect(),
            sizes: sizes
                .values()
                .map(|size| (*size as f64).max(1.0).log2())
                .collect(),
        };
        let alike = lessons
            .iter()
            .filter(|lesson| lesson.sizes.len() == space.key.sizes.len());
        let mut kept: Vec<(Place, f64)> = alike
            .map(|lesson| (place(&lesson.point, &lesson.sizes), lesson.value))
            .collect();
        // The last lessons are of the most recent shape.
        kept.drain(..kept.len().saturating_sub(MOST_LESSONS));
        let mut guided = Guided {
            space,
            places: space
                .points
                .iter()
                .map(|p| place(p, &space.key.sizes))
                .collect(),
            lessons: kept,
            first: vec![space.default],
            work,
        };
        if guided.lessons.is_empty() {
            guided.spread(seed);
        }
        guided
    }

    /// The first points: the default, and then each as far as a few draws find one from all before it, so that each kernel and the
    /// corners of the space are seen.
    fn spread(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        let count = self.places.len() as u64;
        while self.first.len() < FIRST.min(self.places.len()) {
            let draws: Vec<usize> = (0..16).map(|_| random.below(count) as usize).collect();
            let nearest = |point: usize| {
                let known = self.first.iter();
                known
                    .map(|other| apart(&self.places[point], &self.places[*other]))
                    .fold(f64::INFINITY, f64::min)
            };
            let farthest = draws
                .into_iter()
                .max_by(|a, b| nearest(*a).total_cmp(&nearest(*b)));
            match farthest.filter(|point| !self.first.contains(point)) {
                Some(point) => self.first.push(point),
                None => {
                    let rest = (0..self.places.len()).find(|point| !self.first.contains(point));
                    self.first.extend(rest);
                }
            }
        }
    }

    fn value(&self, seconds: f64) -> f64 {
        (seconds / self.work).ln()
    }
}

/// Distance for spreading: another kernel is far.
fn apart(one: &Place, other: &Place) -> f64 {
    let kernels = if one.kernel == other.kernel { 0.0 } else { 2.0 };
    let tunables = one.at.iter().zip(&other.at).map(|pair| match pair {
        (Some(a), Some(b)) => (a - b).abs(),
        _ => 0.0,
    });
    kernels + tunables.sum::<f64>()
}

fn covariance(one: &Place, other: &Place, lengths: &[f64]) -> f64 {
    let likeness = if one.kernel == other.kernel {
        1.0
    } else {
        LIKENESS
    };
    let tunables = one.at.iter().zip(&other.at).zip(lengths);
    let tunables = tunables.map(|((a, b), length)| match (a, b) {
        (Some(a), Some(b)) if one.kernel == other.kernel => ((a - b) / length).powi(2),
        _ => 0.0,
    });
    let sizes = one.sizes.iter().zip(&other.sizes);
    let sizes = sizes.map(|(a, b)| ((a - b) / SIZE_LENGTH).powi(2));
    likeness * (-(tunables.sum::<f64>() + sizes.sum::<f64>()) / 2.0).exp()
}

/// A fitted process.
struct Model {
    factor: Cholesky<f64, Dyn>,
    weights: DVector<f64>,
    mean: f64,
    signal: f64,
    lengths: Vec<f64>,
    noise: f64,
    likelihood: f64,
}

impl Model {
    fn fit(data: &[(&Place, f64)], lengths: Vec<f64>, noise: f64) -> Option<Model> {
        let count = data.len();
        let mean = data.iter().map(|(_, value)| value).sum::<f64>() / count as f64;
        let matrix = DMatrix::from_fn(count, count, |i, j| {
            covariance(data[i].0, data[j].0, &lengths) + if i == j { noise } else { 0.0 }
        });
        let factor = Cholesky::new(matrix)?;
        let centred = DVector::from_iterator(count, data.iter().map(|(_, value)| value - mean));
        let weights = factor.solve(&centred);
        // The signal's variance that makes the data likeliest, in closed form.
        let signal = (centred.dot(&weights) / count as f64).max(1e-12);
        let diagonal = factor.l_dirty().diagonal();
        let determinant: f64 = diagonal.iter().map(|value| 2.0 * value.ln()).sum();
        Some(Model {
            likelihood: -(count as f64 * signal.ln() + determinant) / 2.0,
            factor,
            weights,
            mean,
            signal,
            lengths,
            noise,
        })
    }

    /// The likeliest of some: one length for all axes and the noise together, then each axis's length while the others stay.
    fn likeliest(data: &[(&Place, f64)], axes: usize) -> Option<Model> {
        let likelier = |one: Model, other: Model| match other.likelihood > one.likelihood + 1e-9 {
            true => other,
            false => one,
        };
        let alike = NOISES
            .iter()
            .flat_map(|noise| LENGTHS.map(|length| (length, *noise)));
        let fitted =
            alike.filter_map(|(length, noise)| Model::fit(data, vec![length; axes], noise));
        let mut best = fitted.reduce(likelier)?;
        for axis in 0..axes {
            for length in LENGTHS {
                let mut lengths = best.lengths.clone();
                if lengths[axis] != length {
                    lengths[axis] = length;
                    if let Some(model) = Model::fit(data, lengths, best.noise) {
                        best = likelier(best, model);
                    }
                }
            }
        }
        Some(best)
    }

    /// Mean and standard deviation at a place.
    fn predict(&self, data: &[(&Place, f64)], place: &Place) -> (f64, f64) {
        let column = data
            .iter()
            .map(|(known, _)| covariance(known, place, &self.lengths));
        let column = DVector::from_iterator(data.len(), column);
        let mean = self.mean + column.dot(&self.weights);
        let variance = 1.0 - column.dot(&self.factor.solve(&column));
        (mean, (self.signal * variance.max(1e-9)).sqrt())
    }
}

/// What a normal variable is expected to lie below `least`.
fn expected_improvement(mean: f64, deviation: f64, least: f64) -> f64 {
    let z = (least - mean) / deviation;
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (least - mean) * normal(z) + deviation * density
}

/// The normal distribution function (Abramowitz and Stegun 26.2.17, error below 7.5e-8).
fn normal(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series = [
        1.330_274_429,
        -1.821_255_978,
        1.781_477_937,
        -0.356_563_782,
        0.319_381_530,
    ];
    let series = series.iter().fold(0.0, |sum, factor| (sum + factor) * t);
    let upper = series * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z < 0.0 { upper } else { 1.0 - upper }
}

impl Strategy for Guided<'_> {
    fn next(&mut self, seen: &[Seen]) -> Option<usize> {
        if let Some(first) = self.first.get(seen.len()) {
            return Some(*first);
        }
        let tried: std::collections::BTreeSet<usize> = seen.iter().map(|s| s.point).collect();
        let rest: Vec<usize> = (0..self.places.len())
            .filter(|p| !tried.contains(p))
            .collect();
        let values = seen.iter().filter_map(|s| s.seconds).map(|s| self.value(s));
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| {
            (least.min(v), most.max(v))
        });
        if !least.is_finite() {
            // Nothing has worked yet; nothing is known.
            return rest.first().copied();
        }
        let mut data: Vec<(&Place, f64)> = seen
            .iter()
            .map(|s| {
                (
                    &self.places[s.point],
                    s.seconds.map_or(most, |t| self.value(t)),
                )
            })
            .collect();
        data.extend(self.lessons.iter().map(|(place, value)| (place, *value)));
        let Some(model) = Model::likeliest(&data, self.space.axes.len()) else {
            return rest.first().copied();
        };
        // The least time that was seen is lucky; what the model believes of the points that were tried is less so.
        let least = seen
            .iter()
            .filter(|s| s.seconds.is_some())
            .map(|s| model.predict(&data, &self.places[s.point]).0)
            .fold(f64::INFINITY, f64::min);
        let worth = |point: &usize| {
            let (mean, deviation) = model.predict(&data, &self.places[*point]);
            expected_improvement(mean, deviation, least)
        };
        rest.iter()
            .map(|point| (*point, worth(point)))
            .max_by(|(a, one), (b, other)| one.total_cmp(other).then(b.cmp(a)))
            .map(|(point, _)| point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_and_the_improvement_are_right_where_they_are_known() {
        assert!((normal(0.0) - 0.5).abs() < 1e-7);
        assert!((normal(1.96) - 0.975_002_1).abs() < 1e-6);
        assert!((normal(-1.96) - 0.024_997_9).abs() < 1e-6);
        // At its own mean: the deviation's share 1 / √(2π).
        assert!((expected_improvement(1.0, 2.0, 1.0) - 2.0 * 0.398_942_3).abs() < 1e-6);
        assert!((expected_improvement(1.0, 1e-6, 3.0) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_model_goes_through_what_it_saw_and_is_unsure_elsewhere() {
        let place = |x: f64| Place {
            kernel: 1,
            at: vec![Some(x)],
            sizes: vec![9.0],
        };
        let places: Vec<Place> = [0.0, 0.3, 0.5, 1.0].map(place).into();
        let data: Vec<_> = places.iter().map(|p| (p, p.at[0].unwrap().sin())).collect();
        let model = Model::likeliest(&data, 1).unwrap();
        let (mean, at_known) = model.predict(&data, &place(0.5));
        assert!((mean - 0.5_f64.sin()).abs() < 0.02, "{mean}");
        let (between, unsure) = model.predict(&data, &place(0.75));
        assert!((between - 0.75_f64.sin()).abs() < 0.1, "{between}");
        assert!(unsure > at_known);
    }
}
