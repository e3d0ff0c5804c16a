//! Unsaved bytes of one file: which offsets, and what is there. Pure.
//!
//! Invariants:
//! 1. Pieces are not empty and do not overlap; `bytes` is the sum of their lengths.
//! 2. What [`DirtyMap::insert`] takes wins over what was there; what [`DirtyMap::cut`] removed is gone.
//!
//! Large writes are kept as they came, without a copy. Small ones that continue each other are joined, so that a file
//! written byte by byte costs no more than its bytes; what is left of a piece that was mostly overwritten is copied, so
//! that a few bytes never keep a large buffer alive.

use bytes::Bytes;
use common::units::{len_u64, len_usize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Pieces below this many bytes are joined with their neighbour, and copied when they are left over.
const SMALL_PIECE: usize = 64 << 10;
/// A joined piece grows to at most this many bytes.
const JOINED_MAX: usize = 256 << 10;

/// Bytes at an offset.
pub(crate) type Placed = (u64, Bytes);

#[derive(Debug)]
enum Piece {
    Shared(Bytes),
    Growing(Vec<u8>),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Shared(bytes) => len_u64(bytes.len()),
            Piece::Growing(bytes) => len_u64(bytes.len()),
        }
    }

    /// The part `[from, to)` of it, whatever else happens to the piece.
    fn part(&self, from: u64, to: u64) -> Bytes {
        let range = len_usize(from)..len_usize(to);
        match self {
            Piece::Shared(bytes) => bytes.slice(range),
            Piece::Growing(bytes) => Bytes::copy_from_slice(&bytes[range]),
        }
    }

    fn left_over(&self, from: u64, to: u64) -> Piece {
        let part = self.part(from, to);
        Piece::Shared(if part.len() < SMALL_PIECE { Bytes::copy_from_slice(&part) } else { part })
    }
}

/// The unsaved bytes of one file.
#[derive(Debug, Default)]
pub(crate) struct DirtyMap {
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
}

impl DirtyMap {
    /// How many bytes are unsaved.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// In how many pieces.
    pub(crate) fn pieces(&self) -> u64 {
        len_u64(self.pieces.len())
    }

    /// Whether nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The first unsaved byte.
    pub(crate) fn start(&self) -> Option<u64> {
        self.pieces.first_key_value().map(|(at, _)| *at)
    }

    /// Past the last unsaved byte; 0 if there is none.
    pub(crate) fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(at, piece)| at + piece.len())
    }

    /// Takes bytes for `[at, at + len)`. Returns how many unsaved bytes they replaced.
    pub(crate) fn insert(&mut self, at: u64, bytes: Bytes) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let replaced = self.cut(at..at + len_u64(bytes.len()));
        self.bytes += len_u64(bytes.len());
        if bytes.len() >= SMALL_PIECE || !self.join(at, &bytes) {
            self.pieces.insert(at, Piece::Shared(bytes));
        }
        replaced
    }

    /// Appends small bytes to the piece that ends where they start. False if there is none that may grow.
    fn join(&mut self, at: u64, bytes: &Bytes) -> bool {
        let Some((start, before)) = self.pieces.range_mut(..at).next_back() else { return false };
        let len = len_usize(before.len());
        if start + len_u64(len) != at || len + bytes.len() > JOINED_MAX {
            return false;
        }
        match before {
            Piece::Growing(grown) => grown.extend_from_slice(bytes),
            Piece::Shared(_) if len >= SMALL_PIECE => return false,
            Piece::Shared(shared) => {
                let mut grown = Vec::with_capacity((2 * len).max(len + bytes.len()));
                grown.extend_from_slice(shared);
                grown.extend_from_slice(bytes);
                *before = Piece::Growing(grown);
            }
        }
        true
    }

    /// Forgets what is unsaved in a range. Returns how many bytes that was.
    pub(crate) fn cut(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        let from = self.first_overlap(range.start);
        let hit: Vec<u64> = self.pieces.range(from..range.end.max(from)).map(|(at, _)| *at).collect();
        for at in hit {
            let piece = self.pieces.remove(&at).expect("just listed");
            let end = at + piece.len();
            if at < range.start {
                self.pieces.insert(at, piece.left_over(0, range.start - at));
            }
            if end > range.end {
                self.pieces.insert(range.end, piece.left_over(range.end - at, end - at));
            }
            removed += end.min(range.end) - at.max(range.start);
        }
        self.bytes -= removed;
        removed
    }

    /// The start of the piece that holds `at`, or `at`.
    fn first_overlap(&self, at: u64) -> u64 {
        match self.pieces.range(..at).next_back() {
            Some((start, piece)) if start + piece.len() > at => *start,
            _ => at,
        }
    }

    /// What is unsaved in a range, in order.
    pub(crate) fn overlay(&self, range: Range<u64>) -> Vec<Placed> {
        let from = self.first_overlap(range.start);
        let mut out = Vec::new();
        for (at, piece) in self.pieces.range(from..range.end.max(from)) {
            let (start, end) = (range.start.max(*at), range.end.min(at + piece.len()));
            if start < end {
                out.push((start, piece.part(start - at, end - at)));
            }
        }
        out
    }

    /// Whether every byte of the range is unsaved.
    pub(crate) fn covers(&self, range: Range<u64>) -> bool {
        let mut reached = range.start;
        let from = self.first_overlap(range.start);
        for (at, piece) in self.pieces.range(from..range.end.max(from)) {
            if *at > reached {
                return false;
            }
            reached = at + piece.len();
        }
        reached >= range.end
    }

    /// Removes what is unsaved in a range and hands it out, in order.
    pub(crate) fn take(&mut self, range: Range<u64>) -> Vec<Placed> {
        let from = self.first_overlap(range.start);
        let hit: Vec<u64> = self.pieces.range(from..range.end.max(from)).map(|(at, _)| *at).collect();
        let mut out = Vec::with_capacity(hit.len());
        for at in hit {
            let piece = self.pieces.remove(&at).expect("just listed");
            let end = at + piece.len();
            if at < range.start {
                self.pieces.insert(at, piece.left_over(0, range.start - at));
            }
            if end > range.end {
                self.pieces.insert(range.end, piece.left_over(range.end - at, end - at));
            }
            let (start, stop) = (at.max(range.start), end.min(range.end));
            self.bytes -= stop - start;
            let whole = start == at && stop == end;
            out.push(match piece {
                Piece::Growing(bytes) if whole => (at, Bytes::from(bytes)),
                piece => (start, piece.part(start - at, stop - at)),
            });
        }
        out
    }

    /// Moves everything by `by` bytes: the end of the file was not where we thought.
    pub(crate) fn shift(&mut self, by: i64) {
        let moved =
            std::mem::take(&mut self.pieces).into_iter().map(|(at, piece)| (at.saturating_add_signed(by), piece));
        self.pieces = moved.collect();
    }
}

/// Consecutive pieces as runs without gaps, none crossing a multiple of `window`. `pieces` are in order.
pub(crate) fn runs(pieces: Vec<Placed>, window: u64) -> Vec<(u64, Vec<Bytes>)> {
    let mut out: Vec<(u64, Vec<Bytes>)> = Vec::new();
    let mut end = u64::MAX;
    for (mut at, mut bytes) in pieces {
        while !bytes.is_empty() {
            let room = len_usize(window - at % window);
            let now = bytes.split_to(room.min(bytes.len()));
            let len = len_u64(now.len());
            match out.last_mut() {
                Some((_, run)) if end == at && !at.is_multiple_of(window) => run.push(now),
                _ => out.push((at, vec![now])),
            }
            at += len;
            end = at;
        }
    }
    out
}

#[cfg(test)]
#[expect(clippy::as_conversions, reason = "small numbers in tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 600 << 10;

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, usize, u8),
        Cut(usize, usize),
        Take(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = prop_oneof![1usize..100, 1usize..5000, 60_000usize..200_000];
        (0usize..400_000, len, any::<u8>(), 0u8..10).prop_map(|(at, len, byte, kind)| match kind {
            0 => Step::Cut(at, at + len),
            1 => Step::Take(at, at + len),
            _ => Step::Write(at, len, byte),
        })
    }

    fn model_bytes(model: &[Option<u8>]) -> u64 {
        model.iter().filter(|b| b.is_some()).count() as u64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn it_holds_what_a_byte_array_holds(steps in prop::collection::vec(step(), 1..40), sequential in any::<bool>()) {
            let mut map = DirtyMap::default();
            let mut model: Vec<Option<u8>> = vec![None; LEN];
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Write(at, len, byte) => {
                        let at = if sequential { next % 300_000 } else { at };
                        next = at + len;
                        let replaced = map.insert(at as u64, Bytes::from(vec![byte; len]));
                        prop_assert_eq!(replaced, model_bytes(&model[at..at + len]));
                        model[at..at + len].fill(Some(byte));
                    }
                    Step::Cut(from, to) => {
                        let removed = map.cut(from as u64..to as u64);
                        prop_assert_eq!(removed, model_bytes(&model[from..to]));
                        model[from..to].fill(None);
                    }
                    Step::Take(from, to) => {
                        let mut got = vec![None; to - from];
                        for (at, bytes) in map.take(from as u64..to as u64) {
                            for (i, b) in bytes.iter().enumerate() {
                                got[at as usize - from + i] = Some(*b);
                            }
                        }
                        prop_assert_eq!(&got[..], &model[from..to]);
                        model[from..to].fill(None);
                    }
                }
                prop_assert_eq!(map.bytes(), model_bytes(&model));
                let end = model.iter().rposition(|b| b.is_some()).map_or(0, |at| at + 1);
                prop_assert_eq!(map.end(), end as u64);
            }
            let mut seen = vec![None; LEN];
            for (at, bytes) in map.overlay(0..LEN as u64) {
                for (i, b) in bytes.iter().enumerate() {
                    prop_assert!(seen[at as usize + i].is_none(), "pieces overlap");
                    seen[at as usize + i] = Some(*b);
                }
            }
            prop_assert_eq!(&seen, &model);
            for from in (0..LEN - 5000).step_by(37_123) {
                let whole = model[from..from + 5000].iter().all(|b| b.is_some());
                prop_assert_eq!(map.covers(from as u64..from as u64 + 5000), whole);
            }
        }

        #[test]
        fn runs_have_no_gaps_and_stay_in_their_window(
            pieces in prop::collection::vec((0u64..50, 1usize..300), 1..20), window in 50u64..200,
        ) {
            let mut at = 0;
            let mut placed = Vec::new();
            for (gap, len) in pieces {
                at += gap;
                placed.push((at, Bytes::from((0..len).map(|i| ((at as usize + i) % 251) as u8).collect::<Vec<_>>())));
                at += len as u64;
            }
            let total: usize = placed.iter().map(|(_, b)| b.len()).sum();
            let runs = runs(placed, window);
            let mut last_end = None;
            let mut seen = 0;
            for (at, run) in runs {
                let bytes = run.concat();
                let end = at + bytes.len() as u64;
                prop_assert_eq!(at / window, (end - 1) / window, "crosses a window");
                prop_assert!(last_end.is_none_or(|e| e < at || (e == at && at % window == 0)), "could be one run");
                for (i, b) in bytes.iter().enumerate() {
                    prop_assert_eq!(*b, ((at as usize + i) % 251) as u8);
                }
                seen += bytes.len();
                last_end = Some(end);
            }
            prop_assert_eq!(seen, total);
        }
    }
}
