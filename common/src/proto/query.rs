//! What clients read of the metadata: linearizable questions, and their answers.

use super::meta::{Attr, Cred, FileKind, Source};
use crate::auth::Mac;
use crate::id::{InodeId, LogIndex, ServerId, SessionId};
use crate::name::Name;
use crate::proto::lease::Grants;
use crate::proto::lock::{Lock, LockHolder};
use crate::proto::trash::{TrashAsk, TrashList};
use serde::{Deserialize, Serialize};

/// A linearizable read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// One name in a directory. `Entry`.
    Lookup {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// A whole path at once, following symlinks on the way (and at its end if `follow`). `Walked`.
    Walk {
        /// Where relative paths start.
        from: InodeId,
        /// The path's bytes, with `/`; empty components and `.` are skipped, `..` goes up.
        path: Vec<u8>,
        /// Follow a symlink at the end too.
        follow: bool,
    },
    /// `Attr`.
    GetAttr {
        /// The inode.
        ino: InodeId,
    },
    /// `Target`.
    ReadLink {
        /// The symlink.
        ino: InodeId,
    },
    /// Entries of a directory behind a cookie, in a stable order. `Listing`.
    ReadDir {
        /// The directory.
        ino: InodeId,
        /// Behind this cookie; 0 from the start.
        after: u64,
        /// At most this many, at most 4096.
        limit: u32,
        /// With attributes.
        attrs: bool,
    },
    /// Attributes and the first extents of a file, checked for access. `Opened`.
    Open {
        /// The inode.
        ino: InodeId,
        /// Bits of `ACCESS_READ`, `ACCESS_WRITE`, `ACCESS_EXEC`.
        access: u8,
        /// Files that will probably be opened next: at most [`OPEN_AHEAD_MAX`].
        ahead: Vec<InodeId>,
    },
    /// Extents that overlap `[from, to)`, in order. `Extents`.
    Extents {
        /// The file.
        ino: InodeId,
        /// First byte.
        from: u64,
        /// Past the last byte.
        to: u64,
    },
    /// `Value`.
    GetXattr {
        /// The inode.
        ino: InodeId,
        /// Name with its namespace.
        name: Vec<u8>,
    },
    /// `Names`.
    ListXattr {
        /// The inode.
        ino: InodeId,
    },
    /// `StatFs`.
    StatFs,
    /// Who is in the way of a lock. `LockHolder`.
    LockHolder {
        /// The file.
        ino: InodeId,
        /// The lock as this session would take it.
        lock: Lock,
    },
    /// Whether a lock is still waited for; the answer comes when it is not, or after a while. `LockWaits`.
    LockWaits {
        /// The file.
        ino: InodeId,
        /// The number it waits under.
        number: u64,
    },
    /// What was removed and can be brought back. `Trash`.
    Trash(TrashAsk),
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its inode.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Where a listing that goes on behind it starts. Never 0; stable as long as the entry is there.
    pub cookie: u64,
    /// If asked for.
    pub attr: Option<Attr>,
}

/// A range of a file, where its bytes are, and the right to read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
    /// Where they are; never `Hole`.
    pub data: Source,
    /// Length of the chunk (0 for inline bytes): the reader needs it to verify.
    pub chunk_len: u32,
    /// For `Source::Chunk`: the right of this session to read it.
    pub token: Mac,
    /// For `Source::Chunk`: if the chunk is degraded, who holds it; else empty.
    pub holders: Vec<ServerId>,
}

impl Extent {
    /// How many of its bytes are kept in the metadata: all or none.
    pub fn inline_len(&self) -> u64 {
        if matches!(self.data, Source::Inline { .. }) { self.len } else { 0 }
    }
}

/// A run of extents, and how far it reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentRun {
    /// In order of offset, not overlapping.
    pub extents: Vec<Extent>,
    /// Everything in `[from, covered)` is told: what no extent covers there is a hole. At most what was asked for,
    /// less when the answer would have more than [`EXTENTS_PER_ANSWER`] extents. `u64::MAX`: to the end.
    pub covered: u64,
}

/// Files that one question to open another one may name as well.
pub const OPEN_AHEAD_MAX: usize = 64;
/// The most extents in one answer.
pub const EXTENTS_PER_ANSWER: usize = 512;
/// The most entries in one listing answer.
pub const LISTING_MAX: u32 = 4096;

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// `Lookup`, `GetAttr`.
    Attr(Attr),
    /// `Walk`: the inode at the end.
    Walked {
        /// Attributes of the last component.
        attr: Attr,
        /// The directory it was found in (the root for the root), with its last component's name if it has one.
        parent: InodeId,
    },
    /// `ReadLink`.
    Target(Vec<u8>),
    /// `ReadDir`.
    Listing {
        /// In cookie order.
        entries: Vec<DirEntry>,
        /// True if nothing follows.
        end: bool,
        /// The parent of the directory, for `..`.
        parent: InodeId,
    },
    /// `Open`: attributes and extents from offset 0 on.
    Opened {
        /// The inode.
        attr: Attr,
        /// From 0.
        run: ExtentRun,
        /// Of those that were named as well: files in few extents that this session got leases of, with all that they hold.
        /// Whether somebody may open them is not checked.
        ahead: Vec<(Attr, ExtentRun)>,
    },
    /// `Extents`.
    Extents {
        /// The inode at the same moment.
        attr: Attr,
        /// What was asked for.
        run: ExtentRun,
    },
    /// `GetXattr`.
    Value(Vec<u8>),
    /// `ListXattr`: names, sorted.
    Names(Vec<Vec<u8>>),
    /// `StatFs`.
    StatFs(FsStat),
    /// `LockHolder`: the first one that is.
    LockHolder(Option<LockHolder>),
    /// `LockWaits`. False also for what nobody has asked for.
    LockWaits(bool),
    /// `Trash`.
    Trash(TrashList),
}

/// Use of the whole file system, logical: what users stored, not times replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStat {
    /// Bytes of all files (their allocated ranges; a chunk shared by two files counts twice).
    pub logical_bytes: u64,
    /// Bytes of all referenced chunks, once each.
    pub chunk_bytes: u64,
    /// Referenced chunks.
    pub chunks: u64,
    /// Inodes of all kinds.
    pub inodes: u64,
    /// Raw capacity of all chunkservers, in bytes.
    pub raw_capacity: u64,
    /// Raw free space of all writable chunkservers, in bytes.
    pub raw_free: u64,
    /// Default replica count of the cluster.
    pub replicas: u8,
}

/// A read, with whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The client's session: read tokens are made for it.
    pub session: SessionId,
    /// On whose behalf.
    pub cred: Cred,
    /// What to read.
    pub query: Query,
    /// The session takes leases of inodes whose attributes are in the answer.
    pub lease: bool,
}

/// An answer and the index it is true at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What was asked for.
    pub answer: Answer,
    /// The applied index the answer was read at, not below the read barrier of the request. A valid witness.
    pub index: LogIndex,
    /// Leases of what [`Answer::attrs`] has.
    pub grants: Grants,
}

impl Answer {
    /// Attributes in it, in order.
    pub fn attrs(&self) -> Vec<&Attr> {
        match self {
            Answer::Attr(attr) | Answer::Walked { attr, .. } => vec![attr],
            Answer::Opened { attr, ahead, .. } => {
                std::iter::once(attr).chain(ahead.iter().map(|(attr, _)| attr)).collect()
            }
            Answer::Extents { attr, .. } => vec![attr],
            Answer::Listing { entries, .. } => entries.iter().filter_map(|entry| entry.attr.as_ref()).collect(),
            Answer::Target(_)
            | Answer::Value(_)
            | Answer::Names(_)
            | Answer::StatFs(_)
            | Answer::LockHolder(_)
            | Answer::LockWaits(_)
            | Answer::Trash(_) => Vec::new(),
        }
    }
}
