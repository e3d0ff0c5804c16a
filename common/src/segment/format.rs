//! The bytes of a segment file, version 1. All numbers little-endian.
//!
//! Segment header block, bytes 0..4096, written and synced once. The first 64 bytes are there twice, at 0 and at 2048:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `DFSSEG\0\0` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | owner: 1 Raft log, 2 chunks |
//! | 11 | 1 | log2 of the alignment: 6 or 12 |
//! | 12 | 4 | segment number |
//! | 16 | 16 | owner id: cluster or store |
//! | 32 | 8 | salt |
//! | 40 | 20 | zero |
//! | 60 | 4 | CRC32C of bytes 0..60 |
//!
//! Record: header, payload, trailer, zeros up to the next multiple of the alignment:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `DFSR` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: the owner's below 240; 240 truncate, 241 void, 242 gone |
//! | 6 | 2 | flags: bit 0 = the body checksum leaves out the payload |
//! | 8 | 4 | payload length |
//! | 12 | 4 | trailer length |
//! | 16 | 8 | mark: offset below which this segment was durable when the record was written |
//! | 24 | 32 | key |
//! | 56 | 4 | CRC32C of payload and trailer (or of the trailer) |
//! | 60 | 4 | CRC32C of salt (8), segment number (4), offset of the record (8), bytes 0..60 |
//!
//! A truncate record voids all records of the log after a position and before itself. Its payload is that position,
//! the last one that stays: segment number (4), offset (8); zeros: nothing stays.
//!
//! A void record lists places of its segment that recovery found to hold unfinished writes between finished ones: pairs
//! of offset (8) and length (8). What is there does not count.
//!
//! A gone record names all segments that were removed from among others: ranges of numbers, first (4) and last (4), in
//! order. The newest one counts ([`super::Gone`]). A version that does not know it refuses the log.

use super::{Align, PAYLOAD_LEN_MAX, Position, TRAILER_LEN_MAX};
use crate::units::len_u64;

/// Bytes of the block a segment starts with.
pub const SEGMENT_HEADER_LEN: u64 = 4096;
/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 64;
/// The first record kind that is not the owner's to use.
pub const KIND_RESERVED: u8 = 240;
/// Voids what lies after a position.
pub(super) const KIND_TRUNCATE: u8 = 240;
/// Names places that hold nothing.
pub(super) const KIND_VOID: u8 = 241;
/// Names the segments that were removed.
pub(super) const KIND_GONE: u8 = 242;
/// The body checksum leaves out the payload.
const FLAG_PAYLOAD_UNCHECKED: u16 = 1;
const FLAGS_KNOWN: u16 = FLAG_PAYLOAD_UNCHECKED;

const SEGMENT_MAGIC: [u8; 8] = *b"DFSSEG\0\0";
const RECORD_MAGIC: [u8; 4] = *b"DFSR";
const VERSION: u8 = 1;
/// Where the second copy of the segment header starts: another sector, so that one bad sector leaves the other.
const SECOND_COPY: usize = 2048;
const COPY_LEN: usize = 64;

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A sequence: a record counts only if all before it do.
    RaftLog,
    /// Independent records.
    Chunks,
}

impl Align {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        1 << self.shift()
    }

    fn shift(self) -> u8 {
        match self {
            Align::Small => 6,
            Align::Direct => 12,
        }
    }
}

impl Owner {
    fn code(self) -> u8 {
        match self {
            Owner::RaftLog => 1,
            Owner::Chunks => 2,
        }
    }
}

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) owner: Owner,
    pub(super) align: Align,
    pub(super) segment: u32,
    pub(super) owner_id: [u8; 16],
    pub(super) salt: u64,
}

/// Why a header block is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadSegmentHeader {
    /// Neither copy has the magic and a right checksum.
    Unreadable,
    /// Sound, but of a version or with values we do not know.
    Unknown(String),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = [0; COPY_LEN];
        copy[..8].copy_from_slice(&SEGMENT_MAGIC);
        copy[8..10].copy_from_slice(&u16::from(VERSION).to_le_bytes());
        copy[10] = self.owner.code();
        copy[11] = self.align.shift();
        copy[12..16].copy_from_slice(&self.segment.to_le_bytes());
        copy[16..32].copy_from_slice(&self.owner_id);
        copy[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&copy[..60]);
        copy[60..].copy_from_slice(&crc.to_le_bytes());
        let mut block = vec![0; crate::units::len_usize(SEGMENT_HEADER_LEN)];
        block[..COPY_LEN].copy_from_slice(&copy);
        block[SECOND_COPY..SECOND_COPY + COPY_LEN].copy_from_slice(&copy);
        block
    }

    /// Reads the first sound copy. Shorter blocks are unreadable.
    pub(super) fn decode(block: &[u8]) -> Result<SegmentHeader, BadSegmentHeader> {
        let copies = [block.get(..COPY_LEN), block.get(SECOND_COPY..SECOND_COPY + COPY_LEN)];
        let sound = |copy: &&[u8]| copy.starts_with(&SEGMENT_MAGIC) && crc32c::crc32c(&copy[..60]) == u32_at(copy, 60);
        let Some(copy) = copies.into_iter().flatten().find(sound) else {
            return Err(BadSegmentHeader::Unreadable);
        };
        let unknown = |what: String| Err(BadSegmentHeader::Unknown(what));
        if u16_at(copy, 8) != u16::from(VERSION) {
            return unknown(format!("written by another version (format {})", u16_at(copy, 8)));
        }
        let owner = match copy[10] {
            1 => Owner::RaftLog,
            2 => Owner::Chunks,
            other => return unknown(format!("owner {other}")),
        };
        let align = match copy[11] {
            6 => Align::Small,
            12 => Align::Direct,
            other => return unknown(format!("alignment 2^{other}")),
        };
        let owner_id = copy[16..32].try_into().expect("16 bytes");
        Ok(SegmentHeader { owner, align, segment: u32_at(copy, 12), owner_id, salt: u64_at(copy, 32) })
    }
}

/// Where a record header is, for its checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) salt: u64,
    pub(super) position: Position,
}

/// What stands before each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The owner's.
    pub kind: u8,
    /// False if the body checksum leaves out the payload.
    pub checksum: bool,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Bytes of trailer, right behind the payload.
    pub trailer_len: u32,
    /// Offset below which this segment was durable when the record was written.
    pub mark: u64,
    /// The owner's: a chunk id, or term and index.
    pub key: [u8; 32],
    /// CRC32C of payload and trailer, or of the trailer alone.
    pub body_crc: u32,
}

impl Header {
    /// Bytes of payload and trailer.
    pub fn body_len(&self) -> u64 {
        u64::from(self.payload_len) + u64::from(self.trailer_len)
    }

    /// Bytes from the start of this record to where the next one may start.
    pub fn record_len(&self, align: Align) -> u64 {
        (len_u64(RECORD_HEADER_LEN) + self.body_len()).next_multiple_of(align.bytes())
    }

    /// True if this is the body it was written with, as far as the checksum tells.
    pub(super) fn covers(&self, payload: &[u8], trailer: &[u8]) -> bool {
        body_crc(payload, trailer, self.checksum) == self.body_crc
    }

    pub(super) fn encode(&self, spot: Spot) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind;
        let flags = if self.checksum { 0 } else { FLAG_PAYLOAD_UNCHECKED };
        bytes[6..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.trailer_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mark.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.key);
        bytes[56..60].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = header_crc(&bytes[..60], spot);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at this spot, or `None` if these bytes (64 of them) are not one written for it. Lengths are within
    /// the limits.
    pub(super) fn decode(bytes: &[u8], spot: Spot) -> Option<Header> {
        if bytes.len() != RECORD_HEADER_LEN || !bytes.starts_with(&RECORD_MAGIC) || bytes[4] != VERSION {
            return None;
        }
        let flags = u16_at(bytes, 6);
        let header = Header {
            kind: bytes[5],
            checksum: flags & FLAG_PAYLOAD_UNCHECKED == 0,
            payload_len: u32_at(bytes, 8),
            trailer_len: u32_at(bytes, 12),
            mark: u64_at(bytes, 16),
            key: bytes[24..56].try_into().expect("32 bytes"),
            body_crc: u32_at(bytes, 56),
        };
        let sound = header_crc(&bytes[..60], spot) == u32_at(bytes, 60)
            && flags & !FLAGS_KNOWN == 0
            && header.payload_len <= PAYLOAD_LEN_MAX
            && header.trailer_len <= TRAILER_LEN_MAX
            && header.mark <= spot.position.offset;
        sound.then_some(header)
    }
}

/// The checksum of a body.
pub(super) fn body_crc(payload: &[u8], trailer: &[u8], with_payload: bool) -> u32 {
    let start = if with_payload { crc32c::crc32c(payload) } else { 0 };
    crc32c::crc32c_append(start, trailer)
}

/// A truncate record's payload: the last position that stays.
pub(super) fn encode_kept(kept: Option<Position>) -> [u8; 12] {
    let kept = kept.unwrap_or(Position { segment: 0, offset: 0 });
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&kept.segment.to_le_bytes());
    bytes[4..].copy_from_slice(&kept.offset.to_le_bytes());
    bytes
}

/// The other way. `None`: not the payload of a truncate record.
pub(super) fn decode_kept(bytes: &[u8]) -> Option<Option<Position>> {
    if bytes.len() != 12 {
        return None;
    }
    let kept = Position { segment: u32_at(bytes, 0), offset: u64_at(bytes, 4) };
    Some((kept.segment != 0).then_some(kept))
}

/// A void record's payload: offsets and lengths.
pub(super) fn decode_voids(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    bytes.chunks_exact(16).map(|pair| (u64_at(pair, 0), u64_at(pair, 8)))
}

fn header_crc(bytes: &[u8], spot: Spot) -> u32 {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&spot.salt.to_le_bytes());
    place[8..12].copy_from_slice(&spot.position.segment.to_le_bytes());
    place[12..].copy_from_slice(&spot.position.offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
