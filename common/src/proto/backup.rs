//! Backups of the metadata, restoring one, and changes of the metaservers: what administrators order of them.
//!
//! A backup is a checkpoint of the state machine at one applied index. It is read from the leader, piece by piece, and
//! given to empty metaservers the same way; each of them checks every byte before it becomes a member. So an order lost on
//! the way is sent again, and all steps may be repeated.

use crate::id::{ClusterId, Epoch, LogIndex, NodeId};
use crate::time::Time;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes in one piece of a backup, at most.
pub const BACKUP_PIECE_LEN: u64 = 1 << 20;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// In which epoch of it.
    pub epoch: Epoch,
    /// The term of the last entry that is in it.
    pub term: u64,
    /// The index of that entry: everything that was acknowledged before the backup was asked for is in it.
    pub index: LogIndex,
    /// Inodes in it, for people.
    pub inodes: u64,
    /// Chunks that it refers to, for people.
    pub chunks: u64,
    /// Names and lengths of its files.
    pub files: Vec<(String, u64)>,
}

/// Steps of making a backup, all asked of the leader. One is made at a time; it ends when nobody asks for a minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupAsk {
    /// Takes a checkpoint. `Begun`.
    Begin,
    /// Bytes of it. `Piece`.
    Piece {
        /// Which backup.
        backup: u64,
        /// Which of its files.
        file: u32,
        /// From this byte on, at most [`BACKUP_PIECE_LEN`].
        at: u64,
    },
    /// It is not needed any more. `Ended`.
    End {
        /// Which backup.
        backup: u64,
    },
}

/// Answers to [`BackupAsk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupAnswer {
    /// To `Begin`.
    Begun {
        /// A random number for the other steps.
        backup: u64,
        /// What is in it.
        head: BackupHead,
    },
    /// To `Piece`.
    Piece {
        /// The bytes.
        bytes: Bytes,
        /// Their BLAKE3.
        hash: [u8; 32],
    },
    /// To `End`.
    Ended,
}

/// A new life of a cluster, begun from a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// A random number for this restore.
    pub restore: u64,
    /// What the backup holds.
    pub head: BackupHead,
    /// BLAKE3 of each of its files.
    pub hashes: Vec<[u8; 32]>,
    /// The new life's epoch: above that of every earlier one.
    pub epoch: Epoch,
    /// The term it begins with: above every term of every earlier life.
    pub term: u64,
    /// Its metaservers, 1, 3 or 5: numbers and control-plane addresses.
    pub metaservers: Vec<(NodeId, String)>,
    /// When.
    pub at: Time,
    /// Who ordered it.
    pub by: String,
}

/// Steps of a restore, each sent to every one of the new metaservers, which are empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreStep {
    /// The backup follows. Another one under way is given up. `Done`.
    Begin(RestorePlan),
    /// The next bytes of a file, in order. `Done`.
    Piece {
        /// Of the plan.
        restore: u64,
        /// Which of the files.
        file: u32,
        /// First byte.
        at: u64,
        /// At most [`BACKUP_PIECE_LEN`].
        bytes: Bytes,
    },
    /// All was sent: check it, and make the new life's first state of it. Nothing is decided by that. `Done`.
    Prepare {
        /// Of the plan.
        restore: u64,
    },
    /// All of them are prepared: be a member of the new life. `Done`.
    Activate {
        /// Of the plan.
        restore: u64,
    },
}

/// A change of the metaservers; one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// An empty metaserver at this address becomes a learner: it gets the data and does not vote. `Ordered::Members`.
    Add {
        /// Its control-plane address, `host:port`.
        addr: String,
    },
    /// A learner that has caught up becomes a voter. `Busy` until it has. `Ordered::Members`.
    Promote {
        /// Which.
        node: NodeId,
    },
    /// A metaserver leaves for good. One that leads hands that over first (`Busy`; ask again). `Ordered::Members`.
    Remove {
        /// Which.
        node: NodeId,
    },
}

/// The metaservers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Those that vote.
    pub voters: Vec<NodeId>,
    /// Those that only learn.
    pub learners: Vec<NodeId>,
}

/// Deletion is held since a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The epoch that the restore began.
    pub epoch: Epoch,
    /// The first index of it.
    pub index: LogIndex,
    /// When.
    pub at: Time,
}
