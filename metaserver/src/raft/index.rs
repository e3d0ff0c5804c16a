//! What the log holds, in memory: where each entry is on disk, the newest ones themselves, and the vote.
//!
//! Pure: the same records in the same order give the same index, so start replays the log through the calls that a
//! running node makes.
//!
//! Invariants:
//! 1. Entries are consecutive: `entries[i]` has index `first + i`, and terms never fall.
//! 2. `purged < first`; an entry at or below `purged` is never shown.
//! 3. An entry whose place on disk is not known yet is in memory.

use super::types::{Entry, LogId, Payload, Vote, log_id, term_of};
use common::segment::Position;
use std::collections::VecDeque;

/// Entries kept in memory, in bytes of their payloads: what lagging followers and `apply` mostly ask for.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// What an entry costs in memory beside its payload, in bytes (estimate).
const ENTRY_OVERHEAD: usize = 128;

/// An entry as the log knows it.
#[derive(Debug)]
struct Slot {
    term: u64,
    /// `None`: not written yet.
    place: Option<Position>,
    /// `None`: only on disk.
    payload: Option<Payload>,
    /// Bytes the payload counts for.
    cost: usize,
}

/// Where to get an entry from.
#[derive(Debug)]
pub(super) enum Source {
    /// Here it is.
    Memory(Entry),
    /// Its id, and where its record is.
    Disk(LogId, Position),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    first: u64,
    entries: VecDeque<Slot>,
    /// Entries below this index are not in memory.
    cached_from: u64,
    cached_bytes: usize,
}

impl Index {
    /// The newest entry, or the purged one if there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        match self.entries.back() {
            Some(slot) => Some(log_id(slot.term, self.end() - 1)),
            None => self.purged,
        }
    }

    /// Past the newest entry.
    fn end(&self) -> u64 {
        self.first + common::units::len_u64(self.entries.len())
    }

    fn at(&self, index: u64) -> Option<usize> {
        (self.first..self.end()).contains(&index).then(|| common::units::len_usize(index - self.first))
    }

    /// Adds an entry behind the last.
    ///
    /// # Errors
    /// It does not follow: why not.
    pub(super) fn push(
        &mut self,
        id: LogId,
        payload: Option<Payload>,
        payload_len: usize,
        place: Option<Position>,
    ) -> Result<(), String> {
        let term = term_of(&id);
        match self.entries.back() {
            Some(last) if id.index != self.end() || term < last.term => {
                return Err(format!("entry {id} follows {}", log_id(last.term, self.end() - 1)));
            }
            Some(_) => {}
            None => (self.first, self.cached_from) = (id.index, id.index),
        }
        let cost = payload_len + ENTRY_OVERHEAD;
        if payload.is_some() {
            self.cached_bytes += cost;
        } else {
            debug_assert!(place.is_some() && self.cached_bytes == 0, "only start adds entries that are on disk only");
            self.cached_from = id.index + 1;
        }
        self.entries.push_back(Slot { term, place, payload, cost });
        self.evict();
        Ok(())
    }

    /// The record of this entry is here. Nothing if the entry was replaced meanwhile.
    pub(super) fn written(&mut self, id: &LogId, place: Position) {
        if let Some(at) = self.at(id.index) {
            let slot = &mut self.entries[at];
            if slot.term == term_of(id) {
                slot.place = Some(place);
            }
        }
        self.evict();
    }

    /// Forgets all entries after this one.
    pub(super) fn truncate_after(&mut self, kept: Option<&LogId>) {
        let end = kept.map_or(0, |id| id.index + 1);
        while self.end() > end && !self.entries.is_empty() {
            let slot = self.entries.pop_back().expect("not empty");
            if slot.payload.is_some() {
                self.cached_bytes -= slot.cost;
            }
        }
        self.cached_from = self.cached_from.min(self.end());
    }

    /// Forgets all entries up to this one.
    pub(super) fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index && !self.entries.is_empty() {
            let slot = self.entries.pop_front().expect("not empty");
            if slot.payload.is_some() {
                self.cached_bytes -= slot.cost;
            }
            self.first += 1;
        }
        self.cached_from = self.cached_from.max(self.first);
        self.purged = self.purged.max(Some(upto));
    }

    /// The segment that holds the oldest entry, if that is written.
    pub(super) fn first_segment(&self) -> Option<u32> {
        self.entries.front()?.place.map(|place| place.segment)
    }

    /// Entries `[from, to)` that are there, in order, up to about `bytes_max` bytes of those in memory (at least one).
    pub(super) fn read(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Source> {
        let (from, to) = (from.max(self.first), to.min(self.end()));
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in from..to {
            let slot = &self.entries[common::units::len_usize(index - self.first)];
            bytes += slot.cost;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let id = log_id(slot.term, index);
            found.push(match (&slot.payload, slot.place) {
                (Some(payload), _) => Source::Memory(Entry { log_id: id, payload: payload.clone() }),
                (None, Some(place)) => Source::Disk(id, place),
                (None, None) => unreachable!("an entry that is not written is in memory"),
            });
        }
        found
    }

    /// A hole between what is purged and the first entry, if there is one: `(purged, first)`.
    pub(super) fn gap(&self) -> Option<(u64, u64)> {
        let expected = self.purged.map_or(0, |id| id.index + 1);
        (!self.entries.is_empty() && self.first > expected).then_some((expected, self.first))
    }

    /// Gives up the oldest written entries that are too much.
    fn evict(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX {
            let Some(at) = self.at(self.cached_from) else { return };
            let slot = &mut self.entries[at];
            if slot.place.is_none() {
                return;
            }
            if slot.payload.take().is_some() {
                self.cached_bytes -= slot.cost;
            }
            self.cached_from += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Proposal;

    fn payload(len: usize) -> Option<Payload> {
        Some(Payload::Normal(Proposal(vec![0; len].into())))
    }

    fn place(offset: u64) -> Position {
        Position { segment: 1, offset }
    }

    fn filled(range: std::ops::Range<u64>) -> Index {
        let mut index = Index::default();
        for i in range {
            index.push(log_id(1, i), payload(10), 10, Some(place(i))).unwrap();
        }
        index
    }

    #[test]
    fn entries_follow_one_another() {
        let mut index = filled(3..6);
        assert!(index.push(log_id(1, 7), payload(1), 1, None).is_err());
        assert!(index.push(log_id(0, 6), payload(1), 1, None).is_err());
        assert_eq!(index.last(), Some(log_id(1, 5)));
        index.truncate_after(Some(&log_id(1, 3)));
        index.push(log_id(2, 4), payload(1), 1, None).unwrap();
        index.written(&log_id(1, 4), place(99)); // of the entry that was replaced
        assert_eq!(index.entries[1].place, None);
        index.purge(log_id(2, 4));
        assert_eq!((index.last(), index.read(0, 9, 1000).len()), (Some(log_id(2, 4)), 0));
        assert_eq!(filled(3..6).gap(), Some((0, 3)));
    }

    #[test]
    fn memory_is_bounded_and_what_left_is_read_from_disk() {
        let mut index = Index::default();
        for i in 0..100 {
            index.push(log_id(1, i), payload(2 << 20), 2 << 20, Some(place(i))).unwrap();
        }
        assert!(index.cached_bytes <= CACHE_BYTES_MAX);
        let found = index.read(0, 100, usize::MAX);
        assert!(matches!(found[0], Source::Disk(id, _) if id == log_id(1, 0)));
        assert!(matches!(&found[99], Source::Memory(entry) if entry.log_id == log_id(1, 99)));
        assert_eq!(index.read(90, 100, 5 << 20).len(), 2);
        index.truncate_after(None);
        assert_eq!((index.cached_bytes, index.last()), (0, None));
        index.push(log_id(1, 0), payload(1), 1, None).unwrap();
        assert!(matches!(index.read(0, 1, 1)[0], Source::Memory(_)));
    }

    #[test]
    fn what_is_not_written_stays_in_memory() {
        let mut index = Index::default();
        for i in 0..100 {
            index.push(log_id(1, i), payload(2 << 20), 2 << 20, None).unwrap();
        }
        assert!(index.read(0, 100, usize::MAX).iter().all(|source| matches!(source, Source::Memory(_))));
        index.written(&log_id(1, 0), place(0));
        assert!(matches!(index.read(0, 1, 1)[0], Source::Disk(..)));
    }
}
