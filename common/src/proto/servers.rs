//! What chunkservers and administrators ask of the metadata service; clients' requests are in [`super::meta`].

use super::admin::{Ordered, Signed};
use super::backup::Members;
use super::keep::{KeepAdmin, KeepAdminReply};
use super::meta::FsStat;
use super::rebalance::{RebalanceAnswer, RebalanceAsk};
use super::trash::TrashNow;
use crate::auth::Secret;
use crate::id::{ClusterId, Epoch, LogIndex, NodeId, ServerId};
use crate::layout::{ClusterMap, Domain};
use serde::{Deserialize, Serialize};

/// A server, or a data directory, with less free space takes no new chunks, in bytes: one of the largest, and some.
pub const FREE_MIN: u64 = 68 << 20;

/// A chunkserver introduces itself, at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Its id if it has one; else the metaservers give it the next.
    pub server: Option<ServerId>,
    /// Random, made at its first start, kept with its data: the same id may not come back with other data.
    pub instance: u128,
    /// Where its data plane is reached, `host:port`.
    pub addr: String,
    /// Where it stands.
    pub domain: Domain,
    /// Its share of the data relative to others, in GiB of capacity unless set by an administrator; at least 1.
    pub weight: u32,
    /// Capacity in bytes.
    pub capacity: u64,
    /// Free bytes, beyond its reserve.
    pub free: u64,
}

/// What it learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id from now on.
    pub server: ServerId,
    /// The cluster's secret: receipts and tokens.
    pub secret: Secret,
    /// The cluster map.
    pub map: ClusterMap,
}

/// A chunkserver lives. Sent each second; O(1) in chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub server: ServerId,
    /// As registered.
    pub instance: u128,
    /// Capacity in bytes. 0: no data directory works, so that what it has counts as lost, and it is taken out as one that
    /// is down.
    pub capacity: u64,
    /// Free bytes, beyond its reserve.
    pub free: u64,
    /// Chunks it holds.
    pub chunks: u64,
    /// Bytes of chunks it holds.
    pub chunk_bytes: u64,
    /// Records found damaged since start.
    pub corrupt: u64,
    /// Data directories that are fenced.
    pub fenced_dirs: u32,
    /// Data directories with less than [`FREE_MIN`] free.
    pub full_dirs: u32,
    /// The map version it has.
    pub map_version: u64,
    /// Bytes that its segments take on disk, about.
    pub segment_bytes: u64,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// A newer map than the one it has, if there is one.
    pub map: Option<ClusterMap>,
}

/// What administrators ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// Makes a new cluster of these metaservers out of empty ones. Asked of any one of them, once.
    Format {
        /// The new cluster, at random.
        cluster: ClusterId,
        /// Node ids and control-plane addresses, 1, 3 or 5.
        metaservers: Vec<(NodeId, String)>,
        /// Placement groups: a power of two, 16 to 65,536. Fixed for ever.
        pg_count: u32,
        /// Default replica count, 1 to 9.
        replicas: u8,
        /// Durable copies below which a write is not acknowledged, 1 to `replicas`.
        min_replicas: u8,
    },
    /// What the cluster looks like, from the leader.
    Status,
    /// What this one metaserver knows of itself; answered without a majority.
    NodeStatus,
    /// About repair, garbage and scrub, from the leader.
    Keep(KeepAdmin),
    /// What only an administrator may ask.
    Order(Box<Signed>),
    /// Which metaservers vote, and which only learn, from the leader.
    Members,
    /// About moves of placement groups, from the leader.
    Rebalance(RebalanceAsk),
    /// How much is in the trash, from the leader.
    Trash,
}

/// What they get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    /// `Format`.
    Formatted,
    /// `Status`.
    Status(Box<Status>),
    /// `NodeStatus`.
    Node(NodeStatus),
    /// `Keep`.
    Keep(KeepAdminReply),
    /// `Order`.
    Ordered(Box<Ordered>),
    /// `Members`.
    Members(Members),
    /// `Rebalance`.
    Rebalance(RebalanceAnswer),
    /// `Trash`.
    Trash(TrashNow),
}

/// The cluster, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The leader's own view of itself.
    pub leader: NodeStatus,
    /// Every metaserver: id, address, and how far its log is known to match the leader's (`None`: unreachable).
    pub metaservers: Vec<(NodeId, String, Option<LogIndex>)>,
    /// Every chunkserver.
    pub servers: Vec<ServerStatus>,
    /// Use.
    pub fs: FsStat,
    /// Chunks with fewer copies than their target.
    pub degraded: u64,
    /// Sessions of clients.
    pub sessions: u64,
    /// Durable copies below which a write is not acknowledged.
    pub min_replicas: u8,
    /// Metaservers with hardly any room on their disks, of those that answer.
    pub tight: u32,
    /// Why everything that makes the metadata grow is refused now, if it is.
    pub refuses: Option<String>,
}

/// One metaserver, by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which.
    pub node: NodeId,
    /// `leader`, `follower`, `candidate`, `learner`, `unformatted`, or why it does not serve.
    pub state: String,
    /// Current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Last applied index.
    pub applied: LogIndex,
    /// Last log index.
    pub last_log: LogIndex,
}

/// One chunkserver, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Which.
    pub server: ServerId,
    /// Data-plane address.
    pub addr: String,
    /// Whether heartbeats come.
    pub up: bool,
    /// Milliseconds since the last heartbeat; `None`: none since this leader was elected.
    pub silent_ms: Option<u64>,
    /// It may be up all the same: this leader has not led long enough to know.
    pub awaited: bool,
    /// Its last heartbeat.
    pub capacity: u64,
    /// Free bytes.
    pub free: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of chunks.
    pub chunk_bytes: u64,
    /// Damaged records found since its start.
    pub corrupt: u64,
    /// Fenced data directories.
    pub fenced_dirs: u32,
    /// Data directories with less than [`FREE_MIN`] free.
    pub full_dirs: u32,
    /// New chunks are put there.
    pub writable: bool,
    /// Bytes that its segments take on disk, about: more than `chunk_bytes` by what compaction has not given back yet.
    pub segment_bytes: u64,
}
