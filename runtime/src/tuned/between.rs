//! What serves a bucket in which nothing was tuned.
//!
//! A bucket is a point whose coordinates are the exponents of its sizes. A configuration serves an untuned point if a box of tuned points
//! holds it: along each size the point lies on the box or strictly between its two ends, every corner of the box was tuned with this
//! configuration as the winner, faster than the default, and no other tuned point in the box says otherwise. The ends are at most
//! [`WIDEST`] doublings apart. So nothing is ever extended beyond what was measured on both sides of it.
//!
//! ```text
//!        m:   64    128    256         m:   64    128    256
//!              A ──── ? ──── A               A ──── ? ──── B        another winner on the other side: the default
//!                     └ A serves
//! ```

use std::collections::HashMap;

/// The most doublings between the two ends of a box along one size: 256 lies between 64 and 1024, 512 not between 64 and 4096.
const WIDEST: u32 = 4;

/// A tuned point.
pub(super) struct Point<'a, T, C> {
    /// The exponents of its sizes.
    pub at: &'a [u32],
    /// What stands there.
    pub value: T,
    /// What it must have in common with other points; `None` if it says nothing of its neighbours.
    pub choice: Option<C>,
}

/// The value of a corner of the smallest box whose corners agree; `None` without one, and if two smallest boxes disagree. The order of the
/// points does not matter.
pub(super) fn agreed<'a, T: Copy, C: Eq>(
    bucket: &[u32],
    points: impl Iterator<Item = Point<'a, T, C>>,
) -> Option<T> {
    let near = |at: &[u32]| {
        at.len() == bucket.len() && at.iter().zip(bucket).all(|(a, b)| a.abs_diff(*b) < WIDEST)
    };
    let points: Vec<_> = points.filter(|point| near(point.at)).collect();
    let by_place: HashMap<&[u32], &Point<'_, T, C>> =
        points.iter().map(|point| (point.at, point)).collect();
    let below = |point: &&Point<'_, T, C>| point.at.iter().zip(bucket).all(|(a, b)| a <= b);
    let above = |point: &&Point<'_, T, C>| point.at.iter().zip(bucket).all(|(a, b)| a >= b);
    let mut best: Option<(u32, &Point<'_, T, C>)> = None;
    let mut disagree = false;
    for low in points.iter().filter(below).filter(|p| p.choice.is_some()) {
        let same = |high: &&Point<'_, T, C>| high.choice == low.choice;
        for high in points.iter().filter(above).filter(same) {
            let Some(width) = width(low.at, bucket, high.at) else {
                continue;
            };
            let smallest = best.as_ref().map_or(u32::MAX, |(width, _)| *width);
            if width > smallest
                || !corners(low.at, high.at).all(|corner| {
                    let point = by_place.get(corner.as_slice());
                    point.is_some_and(|point| point.choice == low.choice)
                })
                || points
                    .iter()
                    .any(|p| is_within(p.at, low.at, high.at) && p.choice != low.choice)
            {
                continue;
            }
            let differs = |(_, other): &(u32, &Point<'_, T, C>)| other.choice != low.choice;
            disagree = width == smallest && (disagree || best.as_ref().is_some_and(differs));
            // Which of several equal corners is named must not depend on the order of the points.
            match &best {
                Some((_, other)) if width == smallest && other.at <= low.at => {}
                _ => best = Some((width, low)),
            }
        }
    }
    best.filter(|_| !disagree).map(|(_, point)| point.value)
}

/// The sum of a box's widths if the bucket lies in it as it must.
fn width(low: &[u32], bucket: &[u32], high: &[u32]) -> Option<u32> {
    let mut sum = 0;
    for ((low, at), high) in low.iter().zip(bucket).zip(high) {
        let on_it = low == at && at == high;
        let between = low < at && at < high && high - low <= WIDEST;
        if !on_it && !between {
            return None;
        }
        sum += high - low;
    }
    Some(sum)
}

fn corners<'a>(low: &'a [u32], high: &'a [u32]) -> impl Iterator<Item = Vec<u32>> + 'a {
    let wide: Vec<usize> = (0..low.len())
        .filter(|&axis| low[axis] != high[axis])
        .collect();
    (0u64..1 << wide.len()).map(move |bits| {
        let mut corner = low.to_vec();
        for (bit, &axis) in wide.iter().enumerate() {
            if bits >> bit & 1 == 1 {
                corner[axis] = high[axis];
            }
        }
        corner
    })
}

fn is_within(at: &[u32], low: &[u32], high: &[u32]) -> bool {
    at.iter()
        .zip(low)
        .zip(high)
        .all(|((at, low), high)| low <= at && at <= high)
}
