//! Durable append: the code under the Raft log and under the chunk store.
//!
//! A log is a directory of numbered files, `00000001.seg` and up. Each starts with a header block and goes on with
//! records (byte tables in [`format`]). A record starts on a multiple of the log's alignment, so that the next one
//! can be found when one is damaged. Nothing is ever overwritten: what must go is voided by a later record
//! ([`SegmentLog::truncate_after`]), punched out ([`SegmentLog::punch`]) or removed with its whole segment.
//!
//! Invariants:
//! 1. What was appended before a call of [`SegmentLog::sync`] that returned `Ok` stays, over any crash and power cut.
//! 2. Only the last segment holds bytes that are not durable: the next one is created after a sync of the one before,
//!    and its header and name are durable before a record is written to it.
//! 3. A record's mark is true: all of its segment below that offset was durable when the record was written. So a bad
//!    record below a mark is damage, reported and never cut; only what lies above the last mark of the last segment
//!    can be an unfinished write.
//! 4. What recovery accepted is durable before [`SegmentLog::open`] returns.
//! 5. A failed write or sync fences the log: every later append and sync fails, none is tried again. A full disk does
//!    not: space is reserved before anything is written.
//! 6. A header is accepted only at the place it was written for: its checksum covers a random number of the segment, the
//!    segment's number and the offset. Bytes of a client that look like a record are not taken for one.
//! 7. A number of [`Owner::Chunks`] from 1 to the last that has no file is either named by a durable gone record
//!    ([`Gone`]) or reported as missing. Numbers are not used again.
//!
//! [`Owner::RaftLog`] is a sequence: a record counts only if all before it do, so recovery cuts at the first bad record
//! above the last mark. In [`Owner::Chunks`] each record stands for itself (writes may overlap in time): recovery
//! skips what is bad and cuts only after the last good record.
//!
//! Truncation (a Raft conflict) appends a record that voids all after a position, instead of cutting the file: a cut
//! would have to be synced before anything could be written over it, or a crash might leave old records behind new
//! ones. So it costs no sync of its own; until the next one, a crash may bring the voided records back, as Raft allows.
//!
//! Calls block; run them through [`crate::world::World::blocking`]. Everything here is `Sync`: appends from several threads
//! write at the same time (`Chunks`; one after another in `RaftLog`), and go on while a sync runs. Threads that ask for
//! a sync meanwhile share the next one: that is the group commit.
//!
//! Left out: compression, encryption, and one log over several disks.

mod append;
pub mod format;
mod gone;
mod read;
mod recover;
mod scan;
mod sync;
mod walk;

pub use format::{Header, Owner};
pub use gone::Gone;
pub use read::StoredRecord;
pub use recover::{Cut, Damage, Found, Recovery, Visit};
pub use walk::Walk;

use crate::disk::Disk;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The longest payload, in bytes: the longest chunk.
pub const PAYLOAD_LEN_MAX: u32 = crate::units::CHUNK_SIZE_MAX;
/// The longest trailer, in bytes: hashes of the longest chunk's groups, with room to spare.
pub const TRAILER_LEN_MAX: u32 = 1 << 20;
/// The largest `segment_len_max`, in bytes. (A segment is longer only if its one record is.)
pub const SEGMENT_LEN_LIMIT: u64 = 4 << 30;
/// Records in one append, at most.
pub const BATCH_RECORDS_MAX: usize = 64 << 10;
/// Payloads and trailers in one append, in bytes, at most.
pub const BATCH_LEN_MAX: u64 = 256 << 20;
/// Bad places that [`Recovery`] lists, at most; it counts all of them.
pub const DAMAGE_LIST_MAX: usize = 1024;

/// Where a record starts. Ordered as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Offset of the record's header in the segment's file, in bytes.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}.seg+{}", self.segment, self.offset)
    }
}

/// What a log is. All but `start` and `salt` are the same at each start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose it is; also whether records depend on each other.
    pub owner: Owner,
    /// Cluster or store it belongs to. A log of another one is refused.
    pub owner_id: [u8; 16],
    /// Length at which a segment is full, in bytes. A record that is longer gets a segment of its own.
    pub segment_len_max: u64,
    /// What records start on, and how they are written.
    pub align: Align,
    /// Where the scan begins: all before it is taken as durable and is not read. `None`: at the first segment. From
    /// [`SegmentLog::durable_end`] of an earlier run.
    pub start: Option<Position>,
    /// A random number (`World::random_u64`) for the segments created in this run.
    pub salt: u64,
    /// Segments that the owner knows to be removed; those that the scan meets in the log are added. ([`Owner::Chunks`]
    /// only.)
    pub gone: Gone,
}

/// What records start on, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// 64 bytes, through the page cache: for small records.
    Small,
    /// 4096 bytes, around the page cache: for large ones.
    Direct,
}

/// A record to append.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The owner's; below [`format::KIND_RESERVED`].
    pub kind: u8,
    /// The owner's: a chunk id, or term and index.
    pub key: [u8; 32],
    /// Up to [`PAYLOAD_LEN_MAX`] bytes.
    pub payload: &'a [u8],
    /// Up to [`TRAILER_LEN_MAX`] bytes.
    pub trailer: &'a [u8],
    /// True if a checksum of the payload is kept. Without, only the trailer is covered, and the owner checks the payload
    /// against the key ([`Visit::holds`]).
    pub checksum: bool,
}

/// What a segment costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentUsage {
    /// Its number.
    pub segment: u32,
    /// Bytes from its start to the end of its last record; punched ones count.
    pub len: u64,
}

/// Why an operation on a log failed: one variant for each thing a caller does differently.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Nothing was written. Later appends may succeed, once there is room.
    #[error("{dir}: no space left")]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The log takes no more appends: what was not acknowledged may or may not be there. Open it again.
    #[error("{dir}: closed for writing after an error: {cause}")]
    Fenced {
        /// The log's directory.
        dir: PathBuf,
        /// The first error.
        cause: String,
    },
    /// The bytes at this place are not what was written: use another copy.
    #[error("{path}: damaged at {offset}: {what}")]
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// Offset in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// There is no such segment, or it ends before this place.
    #[error("{dir}: nothing at {position}")]
    Absent {
        /// The log's directory.
        dir: PathBuf,
        /// What was asked for.
        position: Position,
    },
    /// Not a log of ours: another cluster's, another kind, or a version we do not know.
    #[error("{path}: {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// The request breaks a limit. Nothing happened.
    #[error("append: {what}")]
    Invalid {
        /// Which one.
        what: String,
    },
    /// The disk refused. `doing` is a bare verb.
    #[error("{doing} {path}: {source}")]
    Disk {
        /// What was attempted.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// Result of an operation on a log.
pub type Result<T> = std::result::Result<T, SegmentError>;

/// An open log. Cheap to clone; clones are the same log. One process opens a directory at a time (the caller holds
/// [`Disk::lock`]).
#[derive(Clone, Debug)]
pub struct SegmentLog {
    shared: Arc<append::Shared>,
}

/// Names a segment's file.
fn segment_name(segment: u32) -> String {
    format!("{segment:08}.seg")
}

fn disk_error(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SegmentError {
    let path = path.into();
    move |source| SegmentError::Disk { doing, path, source }
}

/// True if there is no room, on the disk or in the quota: nothing is broken, and later it may work.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What opening needs, in one place.
#[derive(Debug)]
struct Place {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
}

#[cfg(test)]
mod tests;
