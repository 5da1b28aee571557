//! Parts of one large allocation: which are free. Nothing here touches memory.

use std::collections::BTreeMap;

/// What every part begins at a multiple of, and is a multiple of long: what asynchronous copies of CANN 8.1 want, and two of the blocks that
/// AscendC's copies move.
const BLOCK: u64 = 64;
/// Parts at least so long begin at a multiple of it, at which copies from memory are fastest.
const LINE: u64 = 512;

/// The free parts of an allocation.
#[derive(Debug)]
pub(super) struct Slab {
    bytes: u64,
    /// Lengths of free parts by where they begin. No two touch.
    free: BTreeMap<u64, u64>,
}

/// What a part of so many bytes takes.
pub(super) fn rounded(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(BLOCK)
}

impl Slab {
    /// All free.
    pub(super) fn new(bytes: u64) -> Slab {
        Slab {
            bytes,
            free: BTreeMap::from([(0, bytes)]),
        }
    }

    /// Where a new part of so many bytes ([`rounded`]) begins: in the first free part with room for it.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let alignment = if bytes < LINE { BLOCK } else { LINE };
        let fits = |(&begin, &length): (&u64, &u64)| {
            let at = begin.next_multiple_of(alignment);
            (at + bytes <= begin + length).then_some((begin, length, at))
        };
        let (begin, length, at) = self.free.iter().find_map(fits)?;
        self.free.remove(&begin);
        if at > begin {
            self.free.insert(begin, at - begin);
        }
        let (end, free_end) = (at + bytes, begin + length);
        if end < free_end {
            self.free.insert(end, free_end - end);
        }
        Some(at)
    }

    /// Frees a part that [`Slab::take`] gave.
    pub(super) fn give(&mut self, mut begin: u64, bytes: u64) {
        let mut end = begin + bytes;
        if let Some((&before, &length)) = self.free.range(..begin).next_back()
            && before + length == begin
        {
            self.free.remove(&before);
            begin = before;
        }
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        self.free.insert(begin, end - begin);
    }

    /// Whether no part is taken.
    pub(super) fn is_empty(&self) -> bool {
        self.free.get(&0) == Some(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ropeway_core::spec::Random;

    #[test]
    fn parts_are_aligned_apart_and_come_back() {
        let mut random = Random::new(5);
        let mut slab = Slab::new(1 << 16);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let mut refused = 0;
        for _ in 0..20_000 {
            if taken.is_empty() || random.below(5) > 1 {
                let bytes = rounded(random.below(3000)).expect("small");
                assert!(bytes.is_multiple_of(BLOCK) && bytes > 0);
                let Some(begin) = slab.take(bytes) else {
                    refused += 1;
                    let (begin, bytes) =
                        taken.swap_remove(random.below(taken.len() as u64) as usize);
                    slab.give(begin, bytes);
                    continue;
                };
                let alignment = if bytes < LINE { BLOCK } else { LINE };
                assert!(begin.is_multiple_of(alignment) && begin + bytes <= 1 << 16);
                for &(other, length) in &taken {
                    assert!(
                        begin + bytes <= other || other + length <= begin,
                        "{begin} {bytes} meets {other} {length}"
                    );
                }
                taken.push((begin, bytes));
            } else {
                let (begin, bytes) = taken.swap_remove(random.below(taken.len() as u64) as usize);
                slab.give(begin, bytes);
            }
            assert_eq!(slab.is_empty(), taken.is_empty());
        }
        assert!(refused > 100, "the slab was never full");
        for (begin, bytes) in taken {
            slab.give(begin, bytes);
        }
        assert!(slab.is_empty());
        assert_eq!(slab.take(1 << 16), Some(0));
    }

    #[test]
    fn what_cannot_be_rounded_is_refused() {
        assert_eq!(rounded(u64::MAX), None);
        assert_eq!(rounded(0), Some(64));
        assert_eq!(rounded(65), Some(128));
    }
}
