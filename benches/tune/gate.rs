//! Whether a configuration is faster than the default beyond the noise.
//!
//! The finalists and the default run in turn, round after round, so that a clock that drops or a neighbour that wakes meets all of
//! them. What is compared are the medians of the rounds. The difference of two medians has the standard error
//! `s = 1.2533 · 1.4826 · √((MAD₁² + MAD₂²) / rounds)` (the median's, with the deviation from the median absolute one); a gain counts
//! if it is more than three of these, more than one per cent, and seen in all rounds but a quarter.

use serde::{Deserialize, Serialize};

use crate::measure::median;

/// Rounds that are run before anything is compared.
pub const ROUNDS: u32 = 9;

/// Standard errors that a gain must exceed.
const ERRORS: f64 = 3.0;

/// The least relative gain that is worth an entry.
const LEAST_GAIN: f64 = 0.01;

/// Median and deviation of one point over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The median of the rounds' medians, in seconds.
    pub seconds: f64,
    /// The median distance from it.
    pub deviation: f64,
}

impl Summary {
    /// Of the medians of some rounds.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(rounds: &[f64]) -> Summary {
        let seconds = median(&mut rounds.to_vec());
        let mut distances: Vec<f64> = rounds.iter().map(|r| (r - seconds).abs()).collect();
        Summary {
            seconds,
            deviation: median(&mut distances),
        }
    }
}

/// Whether `rounds` are shorter than the `default`'s beyond the noise; each holds a median for each round, in the same order.
pub fn beats(rounds: &[f64], default: &[f64]) -> bool {
    let count = rounds.len().min(default.len());
    if count == 0 {
        return false;
    }
    let (one, other) = (Summary::of(rounds), Summary::of(default));
    let variance = one.deviation.powi(2) + other.deviation.powi(2);
    let error = 1.2533 * 1.4826 * (variance / count as f64).sqrt();
    let gain = other.seconds - one.seconds;
    let seen = rounds.iter().zip(default).filter(|(r, d)| r < d).count();
    gain > ERRORS * error && gain > LEAST_GAIN * other.seconds && seen >= count - count / 4
}

#[cfg(test)]
mod tests {
    use ropeway_core::spec::Random;

    use super::*;

    fn noisy(random: &mut Random, centre: f64, noise: f64) -> Vec<f64> {
        let rounds = (0..7).map(|_| centre * (1.0 + noise * (2.0 * random.unit() - 1.0)));
        rounds.collect()
    }

    #[test]
    fn equal_configurations_are_hardly_ever_told_apart() {
        let mut random = Random::new(3);
        let won = (0..2000)
            .filter(|_| {
                let (a, b) = (noisy(&mut random, 1.0, 0.05), noisy(&mut random, 1.0, 0.05));
                beats(&a, &b)
            })
            .count();
        assert!(won < 40, "{won} of 2000 differences of noise alone passed");
    }

    #[test]
    fn a_gain_well_beyond_the_noise_is_found() {
        let mut random = Random::new(4);
        let won = (0..500)
            .filter(|_| {
                let fast = noisy(&mut random, 0.8, 0.03);
                beats(&fast, &noisy(&mut random, 1.0, 0.03))
            })
            .count();
        assert!(won > 490, "{won} of 500");
    }

    #[test]
    fn half_a_per_cent_one_lucky_round_or_nothing_at_all_is_no_gain() {
        assert!(!beats(&[0.995; 7], &[1.0; 7]), "too small to matter");
        assert!(!beats(&[0.5, 1.0, 1.0, 1.0], &[1.0; 4]));
        assert!(!beats(&[], &[]));
        assert!(beats(&[0.9; 7], &[1.0; 7]));
    }
}
