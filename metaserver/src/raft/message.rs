//! What metaservers say to each other, inside [`common::proto::meta::Meta::raft`].

use super::state::Applied;
use super::types::{TypeConfig, Vote};
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::id::{ClusterId, Epoch, NodeId};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

/// A message and whom it is for. Part of the protocol: new variants go last.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// For the member with this Raft id, and no other that may live at its address by now.
    Member(u64, ToMember),
    /// Format, first step: be this member of this new cluster. Only a node without data agrees. `Done`.
    Prepare {
        /// The new cluster.
        cluster: ClusterId,
        /// The node's number, as it must be in its configuration.
        node: NodeId,
    },
    /// A node without data wants to come back. For the leader. `Returned`.
    Return {
        /// Its number.
        node: NodeId,
        /// Its control-plane address.
        addr: String,
    },
    /// A node that was given this id is ready to be a member. For the leader, repeated until it is a voter. `Done`.
    Enter {
        /// Its new Raft id.
        raft_id: u64,
        /// Its control-plane address.
        addr: String,
    },
    /// Is there room on your disk? `Room`.
    Room,
    /// Be this member, a learner at first. Only a node without data agrees, or one that was told so before and has got
    /// nothing yet. `Returned`: what it is.
    Join {
        /// The cluster.
        cluster: ClusterId,
        /// Its epoch.
        epoch: Epoch,
        /// The new Raft id.
        raft_id: u64,
    },
    /// Is this one still a member, or a voter to be? For the leader. `Standing`.
    Standing {
        /// Its Raft id.
        raft_id: u64,
    },
}

/// Raft itself.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMember {
    /// `Append`.
    Append(AppendEntriesRequest<TypeConfig>),
    /// `Vote`.
    Vote(VoteRequest<TypeConfig>),
    /// `Vote`.
    PreVote(VoteRequest<TypeConfig>),
    /// `Done`.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// A snapshot follows. Another one that was under way is given up. `Done`.
    SnapshotBegin {
        /// A random number for this transfer.
        transfer: u64,
        /// What is in it.
        applied: Applied,
        /// Names and lengths of its files.
        files: Vec<(String, u64)>,
    },
    /// The next bytes of a file, in order. `Done`.
    SnapshotPiece {
        /// Of the begin.
        transfer: u64,
        /// Which of its files.
        file: u32,
        /// First byte.
        at: u64,
        /// At most [`super::snapshot::PIECE_LEN`].
        bytes: Bytes,
    },
    /// All was sent: check, and put it in place. `Snapshot`.
    SnapshotEnd {
        /// Of the begin.
        transfer: u64,
        /// The leader's vote.
        vote: Vote,
        /// BLAKE3 of each file.
        hashes: Vec<[u8; 32]>,
    },
}

/// Answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Accepted.
    Done,
    /// To `Append`.
    Append(AppendEntriesResponse<TypeConfig>),
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<TypeConfig>),
    /// To `SnapshotEnd`.
    Snapshot(SnapshotResponse<TypeConfig>),
    /// To `Return` and `Join`: be this, in this cluster.
    Returned {
        /// The cluster.
        cluster: ClusterId,
        /// The new Raft id.
        raft_id: u64,
        /// The cluster's epoch.
        epoch: Epoch,
    },
    /// To `Room`.
    Room(bool),
    /// To `Standing`: false if it was removed.
    Standing(bool),
}

/// To bytes.
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, Fault> {
    let bytes = postcard::to_stdvec(value).map_err(|error| Fault::new(Kind::Internal, format!("encode: {error}")))?;
    Ok(bytes.into())
}

/// And back.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Fault> {
    postcard::from_bytes(bytes).map_err(|error| Fault::new(Kind::Invalid, format!("a Raft message: {error}")))
}
