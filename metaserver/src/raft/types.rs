//! The types openraft is used with, and their bytes.

use crate::namespace::Reply;
use bytes::Bytes;
use openraft::impls::leader_id_std;
use openraft::type_config::alias::{EntryOf, EntryPayloadOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};
use std::fmt;

openraft::declare_raft_types!(
    /// What openraft is instantiated with: one leader per term, as in the Raft paper.
    pub TypeConfig:
        D = Proposal,
        R = Response,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

/// Term and index of a log entry. Ordered by term, then index.
pub type LogId = LogIdOf<TypeConfig>;
/// Who leads, or is voted for, in which term.
pub(super) type Vote = VoteOf<TypeConfig>;
/// A log entry.
pub(super) type Entry = EntryOf<TypeConfig>;
/// What a log entry holds.
pub(super) type Payload = EntryPayloadOf<TypeConfig>;
/// The members of the group, and the entry that made them so.
pub(crate) type Members = StoredMembershipOf<TypeConfig>;
/// The group, as seen from this node.
pub type Group = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;

/// One [`crate::namespace::Command`], encoded once by the leader: log, network and followers pass the same bytes on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(pub Bytes);

/// What `apply` says to whoever proposed: `None` for entries that nobody proposed (blank, membership).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response(pub Option<Reply>);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A log id from its parts.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(leader_id_std::LeaderId::new(term, 0).to_committed(), index)
}

/// The term of a log id.
pub fn term_of(id: &LogId) -> u64 {
    *id.leader_id
}

/// The configured node number of a member: the low 16 bits of its Raft id. The bits above are 0 for the members a
/// cluster was formatted with, and a log index for one that came back empty (it is a new member: it remembers nothing).
pub fn node_of(raft_id: u64) -> common::id::NodeId {
    common::id::NodeId(raft_id & NODE_MASK)
}

/// The Raft id of a node that comes back empty, made from a log index nobody else has.
pub fn returned_id(node: common::id::NodeId, index: u64) -> u64 {
    (index << 16) | node.0
}

/// Configured node numbers are 1 to this.
pub const NODE_MASK: u64 = 0xffff;
