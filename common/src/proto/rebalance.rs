//! Moves of placement groups: what chunkservers are told of them and say about them, and what an administrator sees and
//! orders (DESIGN, section 7).

use crate::id::{Epoch, LayoutVersion, LogIndex, PgId, ServerId};
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// Groups in one [`MoveOrders`], at most: the others' turn comes when these are done.
pub const MOVES_PER_ANSWER: usize = 1024;
/// Groups under way that one [`Rebalance`] names, at most.
pub const MOVING_SHOWN_MAX: usize = 64;

/// What a chunkserver says of a group that moves: how much of what should be there is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHere {
    /// Which.
    pub pg: PgId,
    /// The applied index at which what should be there was read: all of it was compared with what is durably there.
    pub index: LogIndex,
    /// Chunks that were missing. 0: everything that was referred to at `index` is there.
    pub missing: u64,
    /// Their bytes.
    pub missing_bytes: u64,
}

/// What a chunkserver says each second, with `KeepAsk::Moves`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesReport {
    /// Who.
    pub server: ServerId,
    /// In this epoch: log indices of another one mean nothing.
    pub epoch: Epoch,
    /// What it knows of the groups it was told about, at most [`MOVES_PER_ANSWER`].
    pub here: Vec<GroupHere>,
}

/// What it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOrders {
    /// Groups it is a replica of that are moving.
    pub groups: Vec<MovingGroup>,
    /// Bytes per second that it may take of chunks of which enough copies are elsewhere. `None`: as fast as repair may go.
    pub rate: Option<u64>,
    /// It takes no such chunks now.
    pub paused: bool,
    /// Copies of chunks that belong elsewhere stay: groups it had may become its own again in a moment.
    pub keeps: bool,
}

/// A group that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingGroup {
    /// Which.
    pub pg: PgId,
    /// A comparison counts if what should be there was read at this index or later.
    pub from: LogIndex,
}

/// What somebody asks about moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebalanceAsk {
    /// What `Start` would do now, if these servers had these weights. [`RebalanceAnswer::Plan`].
    Plan {
        /// Others are as they are.
        weights: Vec<(ServerId, u32)>,
    },
    /// How far it is. [`RebalanceAnswer::Status`].
    Status,
}

/// What they are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebalanceAnswer {
    /// `Plan`.
    Plan(Plan),
    /// `Status`.
    Status(Rebalance),
}

/// What an administrator orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebalanceOrder {
    /// Carries the plan out, step by step. Another one that was under way is given up; groups that are moving arrive.
    Start {
        /// Bytes per second that one server takes, at most.
        rate: Option<u64>,
        /// Only if this is what it does ([`Plan::digest`]): what somebody was shown.
        shown: Option<u64>,
    },
    /// No further group is begun, and nothing more is copied for those that are.
    Pause,
    /// Goes on.
    Resume,
    /// No further group is begun; those that are moving arrive.
    Cancel,
    /// Another rate; `None`: as fast as repair may go.
    Rate(Option<u64>),
}

/// What a plan moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Made for this layout.
    pub layout: LayoutVersion,
    /// Every server.
    pub servers: Vec<ServerPlan>,
    /// Groups that move.
    pub groups: u64,
    /// Bytes that are copied in all.
    pub bytes: u64,
    /// Bytes were counted chunk by chunk; else they are estimated from the cluster's mean.
    pub exact: bool,
    /// How long it takes at the rate that repair may have while clients are there, in seconds.
    pub seconds: u64,
    /// Plans with equal ones move the same groups to the same servers.
    pub digest: u64,
}

/// What a plan does to one server. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPlan {
    /// Which.
    pub server: ServerId,
    /// Its weight.
    pub weight: u32,
    /// As its last heartbeat said.
    pub capacity: u64,
    /// Free, beyond its reserve.
    pub free: u64,
    /// Bytes of chunks it holds.
    pub used: u64,
    /// ... and will hold.
    pub used_after: u64,
    /// To be copied to it.
    pub receives: u64,
    /// To be dropped from it once the others have it.
    pub sends: u64,
    /// Places of replicas it has.
    pub places: u64,
    /// ... and will have.
    pub places_after: u64,
}

/// What a plan is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PlanState {
    /// There was none yet.
    #[default]
    None,
    /// Groups are moved.
    Running,
    /// Nothing is begun or copied.
    Paused,
    /// All groups have arrived.
    Done,
    /// It was given up.
    Cancelled,
}

/// How far the last plan is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalance {
    /// What it is at.
    pub state: PlanState,
    /// A plan is due: weights changed, or a server came back.
    pub wanted: bool,
    /// When it was begun.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// Bytes per second that one server takes, at most.
    pub rate: Option<u64>,
    /// As planned, per server.
    pub servers: Vec<ServerPlan>,
    /// Groups that it moves.
    pub groups: u64,
    /// Of those, that have arrived.
    pub groups_done: u64,
    /// Bytes that it copies.
    pub bytes: u64,
    /// Of those, that are copied, as far as is known.
    pub bytes_done: u64,
    /// Bytes copied per second, of late.
    pub speed: u64,
    /// How long it will take at that speed, in seconds. `None`: nothing moves now.
    pub left_s: Option<u64>,
    /// Groups that are under way, those of no plan too (a server went out).
    pub moving: u64,
    /// The first of them.
    pub groups_moving: Vec<GroupMoves>,
    /// Servers that are announced to be away, and until when.
    pub away: Vec<(ServerId, Time)>,
    /// Why the plan that is due is not carried out.
    pub obstacle: Option<String>,
}

/// A group under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMoves {
    /// Which.
    pub pg: PgId,
    /// The servers it was on.
    pub was: Vec<ServerId>,
    /// The servers it is on now.
    pub now: Vec<ServerId>,
    /// Those that have not said yet that they have everything.
    pub waits_for: Vec<ServerId>,
    /// All have said so, and say it once more now that no commit can go by an older layout.
    pub closed: bool,
}
