//! What should be here against what is: the decision of the whole loop, pure.

use crate::store::Kept;
use common::id::ChunkId;
use common::proto::keep::ExpectedChunk;
use std::cmp::Ordering;
use std::ops::Range;

/// What to do about one range of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Should be here, and is not, or damaged.
    pub(super) missing: Vec<ExpectedChunk>,
    /// Should be here and is; the metaservers know of too few copies, and not of this one.
    pub(super) unknown: Vec<ExpectedChunk>,
    /// Is here and should not be, and is not young.
    pub(super) extra: Vec<Kept>,
}

/// Compares two lists in id order over the same range. `young`: put times, in seconds since 1970, of what it is too early to ask
/// about. It has an end, so that what was put while a clock was ahead does not stay for ever.
pub(super) fn compare(expected: &[ExpectedChunk], actual: &[Kept], young: Range<u64>) -> Difference {
    let mut difference = Difference::default();
    let (mut expected, mut actual) = (expected.iter().peekable(), actual.iter().peekable());
    loop {
        let order = match (expected.peek(), actual.peek()) {
            (None, None) => return difference,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(want), Some(have)) => want.id.cmp(&have.id),
        };
        let want = if order.is_le() { expected.next() } else { None };
        let have = if order.is_ge() { actual.next() } else { None };
        match (want, have) {
            (Some(want), Some(have)) if have.damaged || have.len != want.len => difference.missing.push(*want),
            (Some(want), Some(_)) if want.degraded => difference.unknown.push(*want),
            (Some(want), None) => difference.missing.push(*want),
            (None, Some(have)) if !young.contains(&have.put_secs) => difference.extra.push(*have),
            (None, Some(_)) | (Some(_), Some(_)) | (None, None) => {} // young, or as it should be
        }
    }
}

/// The id before this one; of the first, itself.
pub(super) fn before(id: ChunkId) -> ChunkId {
    let mut before = id;
    for byte in before.0.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            return before;
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    proptest! {
        #[test]
        fn every_chunk_is_judged_by_what_is_known_of_it(
            want in proptest::collection::btree_map(0u8..40, any::<bool>(), 0..30),
            have in proptest::collection::btree_map(0u8..40, (0u64..20, any::<bool>()), 0..30),
        ) {
            let expected: Vec<ExpectedChunk> =
                want.iter().map(|(n, degraded)| ExpectedChunk { id: id(*n), len: 5, degraded: *degraded }).collect();
            let actual: Vec<Kept> = have
                .iter()
                .map(|(n, (put_secs, damaged))| Kept { id: id(*n), len: 5, put_secs: *put_secs, damaged: *damaged, unreadable: false })
                .collect();
            let difference = compare(&expected, &actual, 10..18);
            let mut told: BTreeMap<ChunkId, &str> = BTreeMap::new();
            difference.missing.iter().for_each(|c| assert!(told.insert(c.id, "missing").is_none()));
            difference.unknown.iter().for_each(|c| assert!(told.insert(c.id, "unknown").is_none()));
            difference.extra.iter().for_each(|c| assert!(told.insert(c.id, "extra").is_none()));
            for n in 0..40 {
                let right = match (want.get(&n), have.get(&n)) {
                    (Some(_), None | Some((_, true))) => Some("missing"),
                    (Some(true), Some((_, false))) => Some("unknown"),
                    (None, Some((put, _))) if *put < 10 || *put >= 18 => Some("extra"),
                    _ => None,
                };
                prop_assert_eq!(told.get(&id(n)).copied(), right, "chunk {}", n);
            }
        }
    }

    #[test]
    fn the_id_before_borrows() {
        let mut one = ChunkId([0; 32]);
        one.0[30] = 1;
        let mut less = ChunkId([0; 32]);
        less.0[31] = 255;
        assert_eq!(before(one), less);
        assert_eq!(before(ChunkId([0; 32])), ChunkId([0; 32]));
    }
}
