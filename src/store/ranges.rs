//! A set of byte ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-adjacent ranges by start.
#[derive(Default)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// End of the last range; 0 for none.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, end)| *end)
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Does the set share a byte with `range`?
    pub fn meets(&self, range: &Range<u64>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((s, e)) = self.0.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if e < start {
                break;
            }
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    pub fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((s, e)) = self.0.range(..range.end).next_back().map(|(s, e)| (*s, *e)) {
            if e <= range.start {
                break;
            }
            self.0.remove(&s);
            if s < range.start {
                self.0.insert(s, range.start);
            }
            if e > range.end {
                self.0.insert(range.end, e);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_bit_set() {
        let mut seed = 7u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        let (mut set, mut bits) = (RangeSet::default(), [false; 64]);
        for _ in 0..20_000 {
            let start = next() % 64;
            let range = start..(start + next() % 12).min(64);
            let inside = range.start as usize..range.end as usize;
            match next() % 3 {
                0 => {
                    set.insert(range);
                    bits[inside].fill(true);
                }
                1 => {
                    set.remove(&range);
                    bits[inside].fill(false);
                }
                _ => {
                    assert_eq!(!range.is_empty() && set.meets(&range), bits[inside].contains(&true))
                }
            }
            let mut seen = [false; 64];
            let mut last = None;
            for range in set.iter() {
                assert!(range.start < range.end && last.is_none_or(|l| l < range.start));
                last = Some(range.end);
                seen[range.start as usize..range.end as usize].fill(true);
            }
            assert_eq!(seen, bits);
        }
    }
}
