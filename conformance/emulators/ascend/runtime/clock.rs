//! Which work is known to be done.
//!
//! Whether work happens to be done when memory is freed is chance; whether the caller could know it is not. So each stream numbers its work,
//! and a clock says for each stream up to which number. Streams hand their clocks on by events; the host learns them by synchronising.

use std::collections::BTreeMap;

/// For each stream, by its handle, the number of its last piece of work that is meant.
#[derive(Clone, Debug, Default)]
pub struct Clock(BTreeMap<usize, u64>);

impl Clock {
    /// Adds work of a stream, up to a number.
    pub fn reach(&mut self, stream: usize, number: u64) {
        let known = self.0.entry(stream).or_default();
        *known = number.max(*known);
    }

    /// Adds everything of another clock.
    pub fn join(&mut self, other: &Clock) {
        for (stream, number) in &other.0 {
            self.reach(*stream, *number);
        }
    }

    /// A stream whose work in the other clock is not in this one.
    pub fn lacks(&self, other: &Clock) -> Option<(usize, u64)> {
        let known = |stream| self.0.get(stream).copied().unwrap_or(0);
        let found = other
            .0
            .iter()
            .find(|(stream, number)| known(stream) < **number);
        found.map(|(stream, number)| (*stream, *number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knowledge_is_per_stream() {
        let mut known = Clock::default();
        let mut used = Clock::default();
        used.reach(1, 3);
        known.reach(2, 9);
        known.reach(1, 2);
        assert_eq!(known.lacks(&used), Some((1, 3)));
        let mut event = Clock::default();
        event.reach(1, 4);
        known.join(&event);
        assert_eq!(known.lacks(&used), None);
    }
}
