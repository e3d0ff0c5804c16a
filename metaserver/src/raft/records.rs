//! The records of the Raft log: kind, key and payload of each (see [`common::segment::format`] for what is around them).
//!
//! | kind | key | payload |
//! | --- | --- | --- |
//! | 1 entry | term (8), index (8), zeros | the entry's payload, postcard |
//! | 2 vote | term (8), node (8), 1 if granted by a majority (1), zeros | nothing |
//! | 3 purged | term (8), index (8), zeros: all up to here is in the state machine and may be gone | nothing |
//! | 4 truncated | term (8), index (8), 1 (1), zeros: all entries behind it are void; all zeros: all are | nothing |
//!
//! Numbers are little-endian. Records are replayed in the order they were written.

use super::index::Index;
use super::marker::vote_of;
use super::types::{LogId, Payload, Vote, log_id, term_of};
use common::segment::{Found, Header, Position, Record, Visit};

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const PURGED: u8 = 3;
const TRUNCATED: u8 = 4;

fn key(a: u64, b: u64, flag: bool) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&a.to_le_bytes());
    key[8..16].copy_from_slice(&b.to_le_bytes());
    key[16] = u8::from(flag);
    key
}

fn record(kind: u8, key: [u8; 32], payload: &[u8]) -> Record<'_> {
    Record { kind, key, payload, trailer: &[], checksum: true }
}

/// An entry. `payload` is from [`encode_payload`].
pub(super) fn entry(id: LogId, payload: &[u8]) -> Record<'_> {
    record(ENTRY, key(term_of(&id), id.index, false), payload)
}

/// A vote.
pub(super) fn vote(vote: &Vote) -> Record<'static> {
    record(VOTE, key(vote.leader_id.term, vote.leader_id.voted_for, vote.committed), &[])
}

/// All up to here may be gone.
pub(super) fn purged(upto: LogId) -> Record<'static> {
    record(PURGED, key(term_of(&upto), upto.index, false), &[])
}

/// All behind this is void.
pub(super) fn truncated(after: Option<LogId>) -> Record<'static> {
    record(TRUNCATED, after.map_or([0; 32], |id| key(term_of(&id), id.index, true)), &[])
}

/// The bytes of an entry's payload.
pub(super) fn encode_payload(payload: &Payload) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_stdvec(payload)
}

/// Reads [`encode_payload`] back.
pub(super) fn decode_payload(bytes: &[u8]) -> Result<Payload, postcard::Error> {
    postcard::from_bytes(bytes)
}

/// Builds the index again from the records.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) index: Index,
    /// What does not fit, in the order found: the log is damaged.
    pub(super) wrong: Vec<String>,
}

impl Replay {
    fn apply(&mut self, position: Position, header: &Header) -> Result<(), String> {
        let u64_at = |at: usize| u64::from_le_bytes(header.key[at..at + 8].try_into().expect("8 bytes"));
        let (a, b, flag) = (u64_at(0), u64_at(8), header.key[16] == 1);
        match header.kind {
            ENTRY if self.index.purged.is_some_and(|purged| b <= purged.index) => {}
            ENTRY => {
                let len = common::units::len_usize(u64::from(header.payload_len));
                self.index.push(log_id(a, b), None, len, Some(position))?;
            }
            VOTE => {
                let vote = vote_of(a, b, flag);
                if !self.index.vote.is_some_and(|newer| vote < newer) {
                    self.index.vote = Some(vote);
                }
            }
            PURGED => self.index.purge(log_id(a, b)),
            TRUNCATED => self.index.truncate_after(flag.then(|| log_id(a, b)).as_ref()),
            kind => return Err(format!("a record of kind {kind}, which this version does not know")),
        }
        Ok(())
    }
}

impl Visit for Replay {
    fn record(&mut self, found: Found<'_>) {
        if let Err(what) = self.apply(found.position, found.header) {
            self.wrong.push(format!("{}: {what}", found.position));
        }
    }

    fn truncated(&mut self, _: Option<Position>) {
        self.wrong.push("a truncation of the segment layer, which this log does not use".into());
    }

    fn punched(&mut self, position: Position, _: &Header) {
        self.wrong.push(format!("{position}: a hole"));
    }

    fn holds(&mut self, _: &Header, _: &[u8], _: &[u8]) -> bool {
        false // every record has a checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Proposal;

    #[test]
    fn the_bytes_are_these() {
        let payload = encode_payload(&Payload::Normal(Proposal(vec![7, 8].into()))).unwrap();
        assert_eq!(payload, [1, 2, 7, 8]);
        assert_eq!(encode_payload(&Payload::Blank).unwrap(), [0]);
        let record = entry(log_id(3, 9), &payload);
        assert_eq!((record.kind, &record.key[..17]), (1, &b"\x03\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0"[..]));
        let record = vote(&vote_of(3, 2, true));
        assert_eq!((record.kind, &record.key[..17]), (2, &b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01"[..]));
        assert_eq!((purged(log_id(1, 2)).kind, truncated(None).kind, truncated(None).key), (3, 4, [0; 32]));
        assert_eq!(truncated(Some(log_id(0, 0))).key[16], 1);
    }
}
