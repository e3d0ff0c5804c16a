//! The bytes of the index and of record kinds. Keys are big-endian so that they sort, values little-endian.
//!
//! Segment records (headers and trailers: [`common::segment::format`]); the key is the chunk id:
//!
//! | kind | payload | trailer |
//! | --- | --- | --- |
//! | 1 chunk | the chunk's bytes | its hash tree's leaves, 32 bytes each (none up to 16 KiB) |
//! | 2 tombstone | the record that is dead, and all older ones of the chunk with it: segment (4), offset (8) | none |
//!
//! Index, family `chunk`: chunk id (32) -> row:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | flags: bit 0 = damaged, bit 1 = the disk did not read it |
//! | 2 | 4 | segment |
//! | 6 | 8 | offset of the record in it |
//! | 14 | 4 | length of the chunk |
//! | 18 | 8 | put time, seconds since 1970 (for a row rebuilt from segments: when it was rebuilt) |
//! | 26 | 8 | the run of the server that last wrote or verified the bytes; 0: none that is known |
//!
//! Which log a record is in follows from the chunk's length ([`Log::of`]): that limit is part of the format.
//!
//! Family `log`: log (1) -> version (1), segment (4), offset (8): all records below are in the index; chunks (8), bytes
//! (8) in the index. Version 2; in version 1 there is no family `segment` that counts. Key log (1), `g` -> the segments
//! that were removed ([`common::segment::Gone`]). Key `store` -> version (1), store id (16).
//! Family `segment`: log (1), segment (4) -> version (1), bytes of records that rows point to (8), bytes of tombstones (8),
//! number of records that newer ones replaced without a tombstone (8).
//! Family `dead`: log (1), segment (4), offset (8) -> empty: records whose row is gone and whose bytes are to be punched.

use common::id::ChunkId;
use common::kv::Family;
use common::segment::format::RECORD_HEADER_LEN;
use common::segment::{Align, Position};
use common::units::{HASH_GROUP_LEN, len_u64};
use std::fmt;

/// Record kind: a chunk.
pub(super) const KIND_CHUNK: u8 = 1;
/// Record kind: a chunk's record is dead.
pub(super) const KIND_TOMBSTONE: u8 = 2;
/// The longest chunk of the small log, in bytes.
pub(super) const SMALL_LEN_MAX: u32 = 64 << 10;

pub(super) const FAMILIES: [&str; 4] = ["chunk", "log", "dead", "segment"];
pub(super) const CHUNK: Family = Family(0);
pub(super) const LOG: Family = Family(1);
pub(super) const DEAD: Family = Family(2);
pub(super) const SEGMENT: Family = Family(3);
pub(super) const STORE_KEY: &[u8] = b"store";

const VERSION: u8 = 1;
const LOG_VERSION: u8 = 2;
const FLAG_DAMAGED: u8 = 1;
const FLAG_UNREADABLE: u8 = 2;
const ROW_LEN: usize = 34;
const LOG_ROW_LEN: usize = 29;
const SEGMENT_ROW_LEN: usize = 25;
const POSITION_LEN: usize = 12;

/// One of a store's two segment logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Log {
    /// Many records in a write, through the page cache.
    Small,
    /// A write each, around it.
    Large,
}

impl Log {
    pub(super) const ALL: [Log; 2] = [Log::Small, Log::Large];

    /// Where a chunk of this length goes.
    pub(super) fn of(len: u32) -> Log {
        if len <= SMALL_LEN_MAX { Log::Small } else { Log::Large }
    }

    /// The name of its directory.
    pub(super) fn dir(self) -> &'static str {
        match self {
            Log::Small => "segments-small",
            Log::Large => "segments-large",
        }
    }

    pub(super) fn align(self) -> Align {
        match self {
            Log::Small => Align::Small,
            Log::Large => Align::Direct,
        }
    }

    /// Bytes that a tombstone takes.
    pub(super) fn tombstone_len(self) -> u64 {
        len_u64(RECORD_HEADER_LEN + POSITION_LEN).next_multiple_of(self.align().bytes())
    }

    pub(super) fn key(self) -> [u8; 1] {
        match self {
            Log::Small => [0],
            Log::Large => [1],
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dir())
    }
}

/// Where a chunk is and how far it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Nobody is given these bytes any more.
    pub(super) damaged: bool,
    /// The disk did not read them the last time. It may the next time, so whoever asks is given them; but the copy does not
    /// count as one, is fetched anew, and the next put replaces it.
    pub(super) unreadable: bool,
    pub(super) position: Position,
    pub(super) len: u32,
    pub(super) put_secs: u64,
    pub(super) checked_in: u64,
}

/// How far the index follows a log, and what it holds of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogRow {
    /// All records before are in the index. `None`: nothing is known to be.
    pub(super) indexed: Option<Position>,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    /// Read from version 1: the family `segment` does not count yet.
    pub(super) uncounted: bool,
}

/// What the index knows of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentRow {
    /// Bytes of records, headers and padding included, that rows point to.
    pub(super) live: u64,
    /// Bytes of tombstones, at least: a start after a crash may count some twice.
    pub(super) tombstones: u64,
    /// Records that newer ones of their chunks replaced, without a tombstone that names them, at least. While there are
    /// any, a tombstone of the newer ones keeps these dead, too ([`super::compact`]).
    pub(super) superseded: u64,
}

/// A value that is none of ours: the index is damaged or of another version.
#[derive(Debug)]
pub(super) struct BadRow;

impl Row {
    /// It counts as a copy, as far as is known.
    pub(super) fn counts(&self) -> bool {
        !self.damaged && !self.unreadable
    }

    pub(super) fn encode(&self) -> [u8; ROW_LEN] {
        let mut out = [0; ROW_LEN];
        out[0] = VERSION;
        let flag = |holds, flag| if holds { flag } else { 0 };
        out[1] = flag(self.damaged, FLAG_DAMAGED) | flag(self.unreadable, FLAG_UNREADABLE);
        out[2..14].copy_from_slice(&position_value(self.position));
        out[14..18].copy_from_slice(&self.len.to_le_bytes());
        out[18..26].copy_from_slice(&self.put_secs.to_le_bytes());
        out[26..34].copy_from_slice(&self.checked_in.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Row, BadRow> {
        if bytes.len() != ROW_LEN || bytes[0] != VERSION || bytes[1] & !(FLAG_DAMAGED | FLAG_UNREADABLE) != 0 {
            return Err(BadRow);
        }
        Ok(Row {
            damaged: bytes[1] & FLAG_DAMAGED != 0,
            unreadable: bytes[1] & FLAG_UNREADABLE != 0,
            position: position_of(&bytes[2..14]).ok_or(BadRow)?,
            len: u32::from_le_bytes(bytes[14..18].try_into().expect("4 bytes")),
            put_secs: u64_at(bytes, 18),
            checked_in: u64_at(bytes, 26),
        })
    }
}

impl LogRow {
    pub(super) fn encode(&self) -> [u8; LOG_ROW_LEN] {
        let mut out = [0; LOG_ROW_LEN];
        out[0] = LOG_VERSION;
        out[1..13].copy_from_slice(&position_value(self.indexed.unwrap_or(Position { segment: 0, offset: 0 })));
        out[13..21].copy_from_slice(&self.chunks.to_le_bytes());
        out[21..29].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<LogRow, BadRow> {
        if bytes.len() != LOG_ROW_LEN || !(VERSION..=LOG_VERSION).contains(&bytes[0]) {
            return Err(BadRow);
        }
        let indexed = position_of(&bytes[1..13]).ok_or(BadRow)?;
        let indexed = (indexed.segment != 0).then_some(indexed);
        let uncounted = bytes[0] < LOG_VERSION;
        Ok(LogRow { indexed, chunks: u64_at(bytes, 13), bytes: u64_at(bytes, 21), uncounted })
    }
}

impl SegmentRow {
    pub(super) fn encode(&self) -> [u8; SEGMENT_ROW_LEN] {
        let mut out = [0; SEGMENT_ROW_LEN];
        out[0] = VERSION;
        out[1..9].copy_from_slice(&self.live.to_le_bytes());
        out[9..17].copy_from_slice(&self.tombstones.to_le_bytes());
        out[17..25].copy_from_slice(&self.superseded.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<SegmentRow, BadRow> {
        if bytes.len() != SEGMENT_ROW_LEN || bytes[0] != VERSION {
            return Err(BadRow);
        }
        Ok(SegmentRow { live: u64_at(bytes, 1), tombstones: u64_at(bytes, 9), superseded: u64_at(bytes, 17) })
    }
}

/// The store's own id under [`STORE_KEY`].
pub(super) fn store_value(store: u128) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&store.to_le_bytes());
    out
}

/// A tombstone's payload.
pub(super) fn position_value(at: Position) -> [u8; POSITION_LEN] {
    let mut out = [0; POSITION_LEN];
    out[..4].copy_from_slice(&at.segment.to_le_bytes());
    out[4..].copy_from_slice(&at.offset.to_le_bytes());
    out
}

/// The other way. `None`: not 12 bytes.
pub(super) fn position_of(bytes: &[u8]) -> Option<Position> {
    let bytes: &[u8; POSITION_LEN] = bytes.try_into().ok()?;
    let segment = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
    Some(Position { segment, offset: u64_at(bytes, 4) })
}

/// Key of a dead record.
pub(super) fn dead_key(log: Log, at: Position) -> Vec<u8> {
    let mut key = log.key().to_vec();
    key.extend_from_slice(&at.segment.to_be_bytes());
    key.extend_from_slice(&at.offset.to_be_bytes());
    key
}

/// The other way. `None`: not such a key.
pub(super) fn dead_of(key: &[u8]) -> Option<(Log, Position)> {
    let log = Log::ALL.into_iter().find(|log| key.starts_with(&log.key()))?;
    let key: &[u8; 13] = key.try_into().ok()?;
    let segment = u32::from_be_bytes(key[1..5].try_into().expect("4 bytes"));
    Some((log, Position { segment, offset: u64::from_be_bytes(key[5..].try_into().expect("8 bytes")) }))
}

/// Key of a segment's row.
pub(super) fn segment_key(log: Log, segment: u32) -> Vec<u8> {
    [&log.key()[..], &segment.to_be_bytes()].concat()
}

/// The other way. `None`: not such a key.
pub(super) fn segment_of(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

/// Key, in the family `log`, of the segments that were removed.
pub(super) fn gone_key(log: Log) -> [u8; 2] {
    [log.key()[0], b'g']
}

/// Bytes that the record of a chunk of this length takes in its log.
pub(super) fn record_len(len: u32) -> u64 {
    let used = len_u64(RECORD_HEADER_LEN) + u64::from(len) + len_u64(leaves_len(len));
    used.next_multiple_of(Log::of(len).align().bytes())
}

/// A key of the chunk family. `None`: not 32 bytes.
pub(super) fn chunk_of(key: &[u8]) -> Option<ChunkId> {
    Some(ChunkId(key.try_into().ok()?))
}

/// Bytes of leaves a chunk of this length has in its record's trailer.
pub(super) fn leaves_len(len: u32) -> usize {
    if len <= HASH_GROUP_LEN {
        return 0;
    }
    common::units::len_usize(u64::from(common::hash::group_count(len)) * 32)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let position = Position { segment: 0x0102_0304, offset: 0x0506_0708_090a_0b0c };
        let row =
            Row { damaged: true, unreadable: false, position, len: 0x0d0e_0f10, put_secs: 0x11, checked_in: 0x12 };
        let mut expected = vec![1, 1, 4, 3, 2, 1, 12, 11, 10, 9, 8, 7, 6, 5, 16, 15, 14, 13, 17, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([18, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row.encode().to_vec(), expected);
        assert_eq!(Row::decode(&expected).unwrap(), row);
        expected[1] = 2;
        assert_eq!(Row::decode(&expected).unwrap(), Row { damaged: false, unreadable: true, ..row });
        for bad in [&expected[1..], &[], &[expected.as_slice(), &[0]].concat()] {
            assert!(Row::decode(bad).is_err());
        }
        expected[0] = 2;
        assert!(Row::decode(&expected).is_err(), "another version");

        let log = LogRow { indexed: Some(position), chunks: 1, bytes: 2, uncounted: false };
        let mut expected =
            [2, 4, 3, 2, 1, 12, 11, 10, 9, 8, 7, 6, 5, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0].to_vec();
        assert_eq!(log.encode().to_vec(), expected);
        assert_eq!(LogRow::decode(&expected).unwrap(), log);
        assert_eq!(LogRow::decode(&LogRow::default().encode()).unwrap(), LogRow::default());
        expected[0] = 1;
        assert_eq!(LogRow::decode(&expected).unwrap(), LogRow { uncounted: true, ..log }, "the version before");
        expected[0] = 3;
        assert!(LogRow::decode(&expected).is_err());

        let segment = SegmentRow { live: 0x0102, tombstones: 3, superseded: 4 };
        let expected = [1, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(segment.encode(), expected);
        assert_eq!(SegmentRow::decode(&expected).unwrap(), segment);
        assert!(SegmentRow::decode(&expected[1..]).is_err());
        assert_eq!(segment_key(Log::Large, 0x0102_0304), [1, 1, 2, 3, 4]);
        assert_eq!((segment_of(&[1, 1, 2, 3, 4]), segment_of(&[1, 2])), (Some(0x0102_0304), None));
        assert_eq!((gone_key(Log::Small), gone_key(Log::Large)), ([0, b'g'], [1, b'g']));
        assert_eq!((record_len(1), record_len(5000), record_len(70_000)), (128, 5120, 73_728));
        assert_eq!((Log::Small.tombstone_len(), Log::Large.tombstone_len()), (128, 4096));

        let key = dead_key(Log::Large, position);
        assert_eq!(key, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(dead_of(&key), Some((Log::Large, position)));
        assert_eq!(dead_of(&key[..12]), None);
        assert_eq!(store_value(0x0102)[..4], [1, 2, 1, 0]);
        assert_eq!((Log::of(SMALL_LEN_MAX), Log::of(SMALL_LEN_MAX + 1)), (Log::Small, Log::Large));
    }
}
