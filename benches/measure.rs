//! Timing on the device's own clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ropeway_core::Result;
use ropeway_core::device::Queue;
use serde::Serialize;

/// A batch lasts at least this long: far beyond the resolution of any device's clock, and long beside the gaps between batches.
const BATCH: Duration = Duration::from_millis(5);

/// The fewest batches a median is taken of.
const FEWEST: usize = 5;

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

/// Device seconds of one run, batch by batch.
#[derive(Clone, Debug)]
pub struct Samples {
    /// One for each batch.
    pub seconds: Vec<f64>,
    /// Runs in a batch.
    pub runs: usize,
}

/// Measures what `run` enqueues, by events. The first run, which compiles and touches memory, is discarded, then a batch to
/// warm up. `run` gets a counter, by which it may rotate its operands. Batches follow until the budget is spent, and at least as many as
/// a median needs, unless `enough` says of a single run's time and of the samples so far that more are of no use.
///
/// # Errors
/// What enqueueing or the work can fail with.
pub fn sample(
    queue: &Arc<dyn Queue>,
    budget: Duration,
    mut run: impl FnMut(usize) -> Result<()>,
    enough: impl Fn(f64, &[f64]) -> bool,
) -> Result<Samples> {
    let mut count = 0;
    let mut batch = |runs: usize| -> Result<f64> {
        let begin = queue.record()?;
        for _ in 0..runs {
            run(count)?;
            count += 1;
        }
        let end = queue.record()?;
        queue.synchronize(None)?;
        Ok(end.elapsed_since(&*begin)?.as_secs_f64())
    };
    batch(1)?;
    let once = batch(1)?.max(1e-9);
    let runs = ((BATCH.as_secs_f64() / once).ceil() as usize).clamp(1, MOST_RUNS);
    let mut seconds = Vec::new();
    if enough(once, &seconds) {
        return Ok(Samples {
            seconds: vec![once],
            runs: 1,
        });
    }
    batch(runs)?;
    let begin = Instant::now();
    while seconds.len() < FEWEST || begin.elapsed() < budget {
        seconds.push(batch(runs)? / runs as f64);
        if enough(once, &seconds) {
            break;
        }
    }
    Ok(Samples { seconds, runs })
}

/// [`sample`] to the end, and what the samples say together.
///
/// # Errors
/// As [`sample`].
pub fn measure(
    queue: &Arc<dyn Queue>,
    budget: Duration,
    run: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    let samples = sample(queue, budget, run, |_, _| false)?;
    Ok(Timing::of(samples.seconds, samples.runs))
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
