//! What goes wrong in a store, and what a caller does about it.

use common::fault::{Fault, Kind};
use common::id::{ChunkId, ClusterId};
use common::kv::KvError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why a chunk operation failed: one variant for each thing a caller does differently. Clones tell everyone who
/// waited for the same disk operation.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// No copy here.
    #[error("{chunk}: not here")]
    NotFound {
        /// Which chunk.
        chunk: ChunkId,
    },
    /// This replica is damaged: read another one; this one gets repaired.
    #[error("{chunk}: this copy is damaged: {why}")]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
        /// Where and how.
        why: String,
    },
    /// The range is empty or leaves the chunk. Nothing was read.
    #[error("{chunk}: no bytes [{offset}, {offset} + {len}) in a chunk of {chunk_len} bytes")]
    Range {
        /// Which chunk.
        chunk: ChunkId,
        /// First byte asked for.
        offset: u32,
        /// Bytes asked for.
        len: u32,
        /// Bytes there are.
        chunk_len: u32,
    },
    /// The bytes that came are not those the id names: they changed on the way. Nothing was stored; send them again.
    #[error("{chunk}: the bytes received do not match the id")]
    Mismatch {
        /// The id announced.
        chunk: ChunkId,
    },
    /// The announced length is not one a chunk can have.
    #[error("{chunk}: a chunk has 1 to {max} bytes, not {len}", max = common::units::CHUNK_SIZE_MAX)]
    Length {
        /// Which chunk.
        chunk: ChunkId,
        /// Bytes announced.
        len: u32,
    },
    /// No room beyond the reserve. Nothing was written.
    #[error("{dir}: no space: {free} bytes free, {reserve} of them reserved")]
    NoSpace {
        /// The data directory.
        dir: PathBuf,
        /// Bytes free on its file system.
        free: u64,
        /// Bytes kept free.
        reserve: u64,
    },
    /// A write or sync failed before: this store vouches for nothing any more until the server is started again.
    #[error("{dir}: fenced after a disk error: {cause}")]
    Fenced {
        /// The data directory.
        dir: PathBuf,
        /// The first error.
        cause: String,
    },
    /// The disk did not read. Use another replica. `doing` is a bare verb.
    #[error("{doing} {chunk}: {cause}")]
    Disk {
        /// What was attempted.
        doing: &'static str,
        /// Which chunk.
        chunk: ChunkId,
        /// What the disk answered.
        cause: String,
    },
    /// No answer from the disk in time: it may still happen.
    #[error("{doing} in {dir}: no answer from the disk within {waited:?}")]
    Slow {
        /// What was attempted.
        doing: &'static str,
        /// The data directory.
        dir: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Somebody else works on this chunk. Nothing happened; ask again.
    #[error("{chunk}: another operation on it has not ended")]
    Busy {
        /// Which chunk.
        chunk: ChunkId,
    },
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        let kind = match &error {
            StoreError::NotFound { .. } => Kind::NotFound,
            StoreError::Corrupt { .. } | StoreError::Disk { .. } => Kind::Corrupt,
            StoreError::Range { .. } | StoreError::Length { .. } => Kind::Invalid,
            StoreError::Mismatch { .. } | StoreError::Busy { .. } => Kind::Busy,
            StoreError::NoSpace { .. } => Kind::NoSpace,
            StoreError::Fenced { .. } => Kind::Unavailable,
            StoreError::Slow { .. } => Kind::Unsure,
        };
        Fault::new(kind, error.to_string())
    }
}

/// Why a store could not be opened: each needs a person, and names the directory.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A data directory that should be there is not (a disk that is not mounted, perhaps).
    #[error(
        "{dir}: data directory is missing or empty, while others of this server have data: mount it, replace it (missing_dirs = \"create\"), or take it out of data_dirs"
    )]
    Missing {
        /// Which.
        dir: PathBuf,
    },
    /// Another process has it open.
    #[error("{dir}: in use by another process")]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// It belongs to another cluster.
    #[error("{dir}: holds data of cluster {found}, not of {wanted}")]
    OtherCluster {
        /// Which.
        dir: PathBuf,
        /// Whose data it has.
        found: ClusterId,
        /// Whose was expected.
        wanted: ClusterId,
    },
    /// It belongs to another server.
    #[error("{dir}: holds data of another server than {other}")]
    OtherServer {
        /// Which.
        dir: PathBuf,
        /// The first data directory.
        other: PathBuf,
    },
    /// The identity file cannot be understood.
    #[error("{path}: {what}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A setting makes no sense.
    #[error("{what}")]
    Config {
        /// Which, and why.
        what: String,
    },
    /// The disk refused.
    #[error("{doing} {path}: {source}")]
    Disk {
        /// What was attempted, a bare verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// The segments could not be opened.
    #[error(transparent)]
    Segments(#[from] common::segment::SegmentError),
    /// The index failed.
    #[error("{dir}: index: {source}")]
    Index {
        /// The data directory.
        dir: PathBuf,
        /// What it said.
        source: KvError,
    },
}

impl OpenError {
    /// True if it tells of the state of one disk, not of a mistake in the configuration: others may go on without that one.
    pub(super) fn is_of_the_disk(&self) -> bool {
        match self {
            OpenError::Missing { .. }
            | OpenError::Identity { .. }
            | OpenError::Disk { .. }
            | OpenError::Segments(_)
            | OpenError::Index { .. } => true,
            OpenError::InUse { .. }
            | OpenError::OtherCluster { .. }
            | OpenError::OtherServer { .. }
            | OpenError::Config { .. } => false,
        }
    }
}

pub(super) fn disk_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Disk { doing, path, source }
}
