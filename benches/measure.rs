//! Timing on the device's own clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ropeway_core::Result;
use ropeway_core::device::Queue;
use serde::Serialize;

/// A batch lasts at least this long: far beyond the resolution of any device's clock, and long beside the gaps between batches.
const BATCH: Duration = Duration::from_millis(5);

/// The fewest batches a median is taken of.
pub const FEWEST: usize = 5;

/// The most runs of a batch.
const MOST_RUNS: usize = 10_000;

/// Seconds of device time for one run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    /// Median over the batches.
    pub median: f64,
    /// Median of the distances from the median.
    pub deviation: f64,
    /// The fastest batch.
    pub least: f64,
    /// Runs in a batch.
    pub runs: usize,
    /// Batches.
    pub batches: usize,
}

/// The middle of some values; of an even number, the mean of the two middle ones.
///
/// # Panics
/// If there are none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

impl Timing {
    fn of(mut times: Vec<f64>, runs: usize) -> Timing {
        let median_time = median(&mut times);
        let mut distances: Vec<f64> = times
            .iter()
            .map(|time| (time - median_time).abs())
            .collect();
        Timing {
            median: median_time,
            deviation: median(&mut distances),
            least: times[0],
            runs,
            batches: times.len(),
        }
    }
}

/// Batches of runs, each timed by events.
pub struct Batches<F> {
    queue: Arc<dyn Queue>,
    run: F,
    count: usize,
    once: f64,
    runs: usize,
}

impl<F: FnMut(usize) -> Result<()>> Batches<F> {
    /// Of what `run` enqueues. The first run, which compiles and touches memory, is discarded; a second says how many make a batch.
    /// `run` gets a counter, by which it may rotate its operands.
    ///
    /// # Errors
    /// What enqueueing or the work can fail with.
    pub fn new(queue: &Arc<dyn Queue>, run: F) -> Result<Batches<F>> {
        let mut batches = Batches {
            queue: Arc::clone(queue),
            run,
            count: 0,
            once: 0.0,
            runs: 1,
        };
        batches.time()?;
        batches.once = batches.time()?.max(1e-9);
        batches.runs = ((BATCH.as_secs_f64() / batches.once).ceil() as usize).clamp(1, MOST_RUNS);
        Ok(batches)
    }

    /// Seconds of the single run after the first.
    pub fn once(&self) -> f64 {
        self.once
    }

    /// Runs in a batch.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Seconds of one run, by the next batch.
    ///
    /// # Errors
    /// What enqueueing or the work can fail with.
    pub fn time(&mut self) -> Result<f64> {
        let begin = self.queue.record()?;
        for _ in 0..self.runs {
            (self.run)(self.count)?;
            self.count += 1;
        }
        let end = self.queue.record()?;
        self.queue.synchronize(None)?;
        Ok(end.elapsed_since(&*begin)?.as_secs_f64() / self.runs as f64)
    }
}

/// Measures what `run` enqueues in [`Batches`], after one to warm up, until the budget is spent.
///
/// # Errors
/// What enqueueing or the work can fail with.
pub fn measure(
    queue: &Arc<dyn Queue>,
    budget: Duration,
    run: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    let mut batches = Batches::new(queue, run)?;
    batches.time()?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < FEWEST || begin.elapsed() < budget {
        times.push(batches.time()?);
    }
    Ok(Timing::of(times, batches.runs()))
}

/// Measures two in turn, batch by batch, until the budget is spent for both; the median of the second's time over the first's is the third.
///
/// # Errors
/// What enqueueing or the work can fail with.
pub fn measure_in_turn(
    queue: &Arc<dyn Queue>,
    budget: Duration,
    one: impl FnMut(usize) -> Result<()>,
    other: impl FnMut(usize) -> Result<()>,
) -> Result<(Timing, Timing, f64)> {
    let mut batches = (Batches::new(queue, one)?, Batches::new(queue, other)?);
    batches.0.time()?;
    batches.1.time()?;
    let begin = Instant::now();
    let mut times = (Vec::new(), Vec::new());
    while times.0.len() < FEWEST || begin.elapsed() < 2 * budget {
        times.0.push(batches.0.time()?);
        times.1.push(batches.1.time()?);
    }
    let pairs = times.0.iter().zip(&times.1);
    let mut ratios: Vec<f64> = pairs.map(|(one, other)| other / one).collect();
    Ok((
        Timing::of(times.0, batches.0.runs()),
        Timing::of(times.1, batches.1.runs()),
        median(&mut ratios),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_batch_moves_neither_median_nor_deviation() {
        let timing = Timing::of(vec![3.0, 1.0, 2.0, 2.0, 1000.0], 7);
        assert_eq!(timing.median, 2.0);
        assert_eq!(timing.deviation, 1.0);
        assert_eq!(timing.least, 1.0);
        assert_eq!((timing.runs, timing.batches), (7, 5));
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
