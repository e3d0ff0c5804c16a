//! Which segments were removed on purpose.
//!
//! A log of chunks loses segments in the middle: those whose records were moved on. So that a file that vanished is not
//! taken for one of them, the log says which they are: before a segment's file is removed, a record with the numbers of
//! all segments removed so far, and its own, is durable. The newest such record counts, and the owner remembers what it
//! said (with [`Options::gone`](super::Options)), because a scan that begins late does not meet it.

use std::collections::BTreeMap;

/// Numbers of removed segments, as ranges that do not touch: at most one more than there are segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// First -> last.
    ranges: BTreeMap<u32, u32>,
}

impl Gone {
    /// True if this segment was removed.
    pub fn contains(&self, segment: u32) -> bool {
        self.ranges.range(..=segment).next_back().is_some_and(|(_, last)| *last >= segment)
    }

    /// Adds a number; fine if it is in.
    pub fn insert(&mut self, segment: u32) {
        self.insert_range(segment, segment);
    }

    /// Adds all numbers of the other one.
    pub fn merge(&mut self, other: &Gone) {
        other.ranges.iter().for_each(|(first, last)| self.insert_range(*first, *last));
    }

    /// Takes a number out: it is there after all.
    pub fn remove(&mut self, segment: u32) {
        let Some((first, last)) = self.ranges.range(..=segment).next_back().map(|(first, last)| (*first, *last)) else {
            return;
        };
        if last < segment {
            return;
        }
        self.ranges.remove(&first);
        if first < segment {
            self.ranges.insert(first, segment - 1);
        }
        if last > segment {
            self.ranges.insert(segment + 1, last);
        }
    }

    /// First and last (4 bytes each, little-endian) of each range, in order.
    pub fn encode(&self) -> Vec<u8> {
        self.ranges.iter().flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()].concat()).collect()
    }

    /// The other way. `None`: not such bytes.
    pub fn decode(bytes: &[u8]) -> Option<Gone> {
        let (pairs, rest) = bytes.as_chunks::<8>();
        let mut gone = Gone::default();
        for pair in pairs {
            let [a, b, c, d, e, f, g, h] = *pair;
            let (first, last) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            if first == 0 || last < first {
                return None;
            }
            gone.insert_range(first, last);
        }
        rest.is_empty().then_some(gone)
    }

    fn insert_range(&mut self, first: u32, last: u32) {
        let (mut first, mut last) = (first, last);
        // All that overlap or touch, from the right.
        while let Some((start, end)) = self.ranges.range(..=last.saturating_add(1)).next_back().map(|(s, e)| (*s, *e)) {
            if end.saturating_add(1) < first {
                break;
            }
            self.ranges.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.ranges.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn golden_bytes() {
        let mut gone = Gone::default();
        [1, 2, 3, 7, 9].into_iter().for_each(|segment| gone.insert(segment));
        let expected = [1, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(gone.encode(), expected);
        assert_eq!(Gone::decode(&expected), Some(gone));
        assert_eq!(Gone::decode(&[]), Some(Gone::default()));
        for bad in [&expected[1..], &[0; 8], &[2, 0, 0, 0, 1, 0, 0, 0]] {
            assert_eq!(Gone::decode(bad), None);
        }
    }

    #[test]
    fn it_is_a_set_of_numbers() {
        let mut random = blake3::Hasher::new().finalize_xof();
        let (mut gone, mut model) = (Gone::default(), BTreeSet::new());
        for _ in 0..3000 {
            let mut byte = [0; 2];
            random.fill(&mut byte);
            let segment = u32::from(byte[0] % 40) + 1;
            if byte[1] % 3 == 0 {
                gone.remove(segment);
                model.remove(&segment);
            } else {
                gone.insert(segment);
                model.insert(segment);
            }
            assert_eq!((1..=41).filter(|n| gone.contains(*n)).collect::<BTreeSet<u32>>(), model);
            let ranges: Vec<(u32, u32)> = gone.ranges.iter().map(|(first, last)| (*first, *last)).collect();
            assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?} touch");
        }
    }
}
