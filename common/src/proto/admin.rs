//! What only an administrator may ask: [`Order`]s, signed with the administrator's key ([`crate::auth::AdminKey`]).
//!
//! They are sent as [`Admin::Order`](super::servers::Admin::Order). An order may arrive twice: each takes effect once, or
//! says that it was done already.

use crate::auth::Mac;
use crate::id::{ChunkId, LogIndex, NodeId, ServerId};
use crate::proto::backup::{BackupAnswer, BackupAsk, MemberChange, Members, RestoreStep};
use crate::proto::keep::{KeepAdmin, KeepAdminReply, KeepChange};
use crate::proto::rebalance::RebalanceOrder;
use crate::proto::squash::{Squash, SquashAsk};
use crate::proto::trash::SettingsChange;
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// How far the clock of whoever signs an order may be from the metaserver's, in seconds.
pub const ORDER_AGE_MAX_S: i64 = 300;
/// Findings in one answer, at most.
pub const FINDINGS_PER_ANSWER: u32 = 500;

/// An order with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// What to do.
    pub order: Order,
    /// When it was signed. Void [`ORDER_AGE_MAX_S`] later.
    pub at: Time,
    /// Who signed it, for the list of events: user and host. At most 255 bytes.
    pub by: String,
    /// Keyed BLAKE3 over all of the above.
    pub mac: Mac,
}

/// What an administrator orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Starts to check everything. [`Ordered::FsckStarted`].
    Fsck(FsckAsk),
    /// How far a check is, and what it found. One that nobody looks at for a minute ends. [`Ordered::Fsck`].
    FsckLook {
        /// Which.
        job: u64,
        /// Findings from this one on.
        after: u32,
    },
    /// What changes repair, garbage collection and scrub. [`Ordered::Keep`].
    Keep(KeepAdmin),
    /// Sets a chunkserver's share, and has the data follow; 0 drains it: its data goes to the others. [`Ordered::Done`].
    SetWeight {
        /// Which.
        server: ServerId,
        /// Relative to the others'.
        weight: u32,
    },
    /// Forgets a chunkserver that is drained. `Refused` while it holds something. [`Ordered::Done`].
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// Another metaserver shall lead. [`Ordered::Done`]: it was asked to.
    TransferLeader {
        /// Which.
        to: NodeId,
    },
    /// The newest events. [`Ordered::Events`].
    Events {
        /// At most this many, at most [`EVENTS_PER_ANSWER`].
        limit: u32,
    },
    /// The chunks of a file, in order. [`Ordered::Chunks`].
    Chunks {
        /// Its path.
        path: Vec<u8>,
    },
    /// Who root of clients' machines is. [`Ordered::RootSquash`].
    RootSquash(SquashAsk),
    /// A step of a backup of the metadata. [`Ordered::Backup`].
    Backup(BackupAsk),
    /// A step of a restore, for one empty metaserver. [`Ordered::Done`].
    Restore(Box<RestoreStep>),
    /// The metaservers change. [`Ordered::Members`].
    Members(MemberChange),
    /// Settings of the cluster change, all or none. [`Ordered::Done`].
    Settings {
        /// Of repair, garbage collection and scrub.
        keep: KeepChange,
        /// Durable copies below which a write is not acknowledged, 1 to the default replica count.
        min_replicas: Option<u8>,
    },
    /// Deletion goes on after a restore though no check of everything has found it sound. [`Ordered::Done`].
    Release,
    /// Placement groups move, or stop. [`Ordered::Done`].
    Rebalance(RebalanceOrder),
    /// A chunkserver will be away until then, and nobody takes over its share meanwhile; `None`: no more. [`Ordered::Done`].
    Away {
        /// Which.
        server: ServerId,
        /// By the metaservers' clocks.
        until: Option<Time>,
    },
    /// Settings of the cluster change, all or none. [`Ordered::Done`].
    Change(SettingsChange),
    /// What is in the trash by now cannot be brought back any more. [`Ordered::Done`].
    EmptyTrash,
    /// A chunkserver that was removed may come back, with what it has. [`Ordered::Done`].
    Readmit {
        /// Which.
        server: ServerId,
    },
}

/// Events in one answer, at most.
pub const EVENTS_PER_ANSWER: u32 = 10_000;
/// Chunks in one answer, at most.
pub const CHUNKS_PER_ANSWER: usize = 10_000;

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ordered {
    /// Done, nothing to tell.
    Done,
    /// `Fsck`.
    FsckStarted {
        /// To look at it.
        job: u64,
    },
    /// `FsckLook`.
    Fsck(FsckLook),
    /// `Keep`.
    Keep(KeepAdminReply),
    /// `Events`: newest first.
    Events(Vec<Event>),
    /// `Chunks`: for each the range of the file that begins there and the copies it should have.
    Chunks(Vec<FileChunk>),
    /// `RootSquash`: as it is now. `None`: off.
    RootSquash(Option<Squash>),
    /// `Backup`.
    Backup(BackupAnswer),
    /// `Members`: the one it was about, and all of them now.
    Members {
        /// Which.
        node: NodeId,
        /// Now.
        members: Members,
    },
}

/// Something an administrator did, or the cluster began by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up.
    pub number: u64,
    /// Where it stands in the log.
    pub index: LogIndex,
    /// When.
    pub at: Time,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChunk {
    /// First byte in the file.
    pub at: u64,
    /// How many bytes of it.
    pub len: u64,
    /// Where they are. `None`: in the metadata.
    pub chunk: Option<ChunkId>,
    /// Copies wanted.
    pub replicas: u8,
}

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckAsk {
    /// Chunks of the files below this path only (the namespace is checked as a whole). `None`: all.
    pub path: Option<Vec<u8>>,
    /// Have every copy read and hashed.
    pub data: bool,
    /// Correct counts, make rows again, have missing copies made. Never deletes data.
    pub repair: bool,
}

/// How far a check is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckLook {
    /// What it does now.
    pub phase: FsckPhase,
    /// The applied index at which the namespace was read.
    pub index: LogIndex,
    /// Chunks looked at so far.
    pub chunks: u64,
    /// Chunks there are.
    pub chunks_total: u64,
    /// Bytes of copies read and hashed so far.
    pub bytes: u64,
    /// Findings so far, by kind, in the order of [`FindingKind`].
    pub counts: Vec<(FindingKind, u64)>,
    /// Those of them that no repair mends.
    pub unmended: u64,
    /// Findings from `after` on, at most [`FINDINGS_PER_ANSWER`].
    pub findings: Vec<Finding>,
    /// Corrections made.
    pub repaired: u64,
    /// Set when it has ended early: why.
    pub failed: Option<String>,
}

/// What a check does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FsckPhase {
    /// Reads the namespace.
    Namespace,
    /// Asks chunkservers for their chunks, and has them read.
    Chunks,
    /// Finds the files of chunks that are lost.
    Files,
    /// Makes corrections.
    Repair,
    /// Has ended.
    Done,
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FindingKind {
    /// A row of the metadata.
    Namespace,
    /// A chunk without a sound copy: data that is lost.
    Lost,
    /// A chunk without a sound copy on the servers that answer; others may have one.
    Unreachable,
    /// A copy whose bytes do not match the chunk's id.
    Corrupt,
    /// A chunk with fewer copies than its target.
    Short,
    /// A server that does not answer.
    Server,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Of what kind.
    pub kind: FindingKind,
    /// What, in one line.
    pub text: String,
    /// The chunk it is about.
    pub chunk: Option<ChunkId>,
    /// Where it shows, of chunks that are lost.
    pub files: Vec<FileRange>,
    /// It can be, or was, mended here.
    pub mends: bool,
}

/// A range of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileRange {
    /// Its path from the root; of a file without a name its inode.
    pub path: Vec<u8>,
    /// First byte.
    pub from: u64,
    /// Past the last byte.
    pub to: u64,
}
