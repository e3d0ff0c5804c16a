//! What stands in the Raft log, and what applying it answers.
//!
//! Encoded as a version byte and `postcard`; within a version no variant or field is moved or removed, new ones go last.

use super::fix::Fix;
use crate::store::moves::PlanStep;
use common::auth::Secret;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, ClusterId, Epoch, InodeId, LayoutVersion, LogIndex, NodeId, PgId, ServerId, SessionId};
use common::kv::KvError;
use common::layout::Layout;
use common::proto::keep::{KeepChange, KeepSettings};
use common::proto::meta::{Applied, Register, Request};
use common::proto::rebalance::ServerPlan;
use common::proto::squash::Squash;
use common::proto::trash::SettingsChange;
use common::time::Time;
use serde::{Deserialize, Serialize};

/// The version byte commands are written with.
pub const COMMAND_VERSION: u8 = 1;

/// A change of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A client's request. Its receipts were checked by the leader.
    Client {
        /// The request.
        request: Request,
        /// The leader's time when it was proposed.
        at: Time,
    },
    /// A session was silent for too long. Fine if it is gone already. [`Done::Ended`].
    ExpireSession {
        /// Which.
        session: SessionId,
        /// When.
        at: Time,
    },
    /// Makes the cluster: configuration and root directory. Once. [`Done::Formatted`].
    Format {
        /// Which cluster.
        cluster: ClusterId,
        /// Made at random by whoever formats.
        secret: Secret,
        /// Placement groups, a power of two, 16 to 65,536.
        pg_count: u32,
        /// Default replica count, 1 to 9.
        replicas: u8,
        /// Durable copies below which a write is not acknowledged, 1 to `replicas`.
        min_replicas: u8,
        /// Metaservers and their addresses.
        metaservers: Vec<(NodeId, String)>,
        /// When.
        at: Time,
    },
    /// A chunkserver introduces itself. [`Done::Registered`].
    Register(Register),
    /// A new layout table; its version is one above the present one, else `Stale`. [`Done::LayoutSet`].
    SetLayout(Layout),
    /// An administrator sets a chunkserver's weight; 0 takes it out of the layout that is made next. [`Done::WeightSet`].
    SetServerWeight {
        /// Which.
        server: ServerId,
        /// Its new weight.
        weight: u32,
    },
    /// Takes up to `limit` extents of files that are gone apart, or counts them for another number of copies.
    /// [`Done::Purged`].
    Purge {
        /// Extents, at least 1.
        limit: u32,
    },
    /// A chunkserver asks to delete these. Every one that nothing refers to is given up: the horizon of its bucket rises
    /// to this command's index. `Stale` in another epoch. [`Done::Condemned`].
    Condemn {
        /// In this epoch.
        epoch: Epoch,
        /// Which.
        chunks: Vec<ChunkId>,
    },
    /// A chunkserver has these degraded chunks now. [`Done::Noted`].
    Holds {
        /// Who.
        server: ServerId,
        /// In this epoch.
        epoch: Epoch,
        /// Which.
        chunks: Vec<ChunkId>,
    },
    /// A chunkserver was down for so long that others take over what it held (or it came back). [`Done::OutSet`].
    SetOut {
        /// Which.
        server: ServerId,
        /// Out, or in again.
        out: bool,
    },
    /// Changes settings of repair, garbage collection and scrub. [`Done::KeepSet`].
    SetKeep(KeepChange),
    /// Corrections of what fsck found. [`Done::Fixed`].
    Fix {
        /// The applied index of the state it looked at.
        scan: LogIndex,
        /// Numbers the commands of one look, from 1.
        batch: u32,
        /// In order, at most [`super::FIXES_MAX`].
        fixes: Vec<Fix>,
        /// When.
        at: Time,
    },
    /// Who has inodes without a name open (`opens.rs`). [`Done::Settled`].
    Settle {
        /// Inodes about which nobody had been asked, and who has them open.
        held: Vec<(InodeId, Vec<SessionId>)>,
        /// What sessions were noted to hold, and do not.
        dropped: Vec<(SessionId, InodeId)>,
        /// When.
        at: Time,
    },
    /// What an administrator ordered: carried out, and noted if that succeeded. Answers as the command inside.
    Ordered {
        /// Who.
        by: String,
        /// What, in words.
        what: String,
        /// When.
        at: Time,
        /// No other `Ordered`. `None`: it was done outside the state machine. [`Done::Noted`].
        command: Option<Box<Command>>,
    },
    /// A chunkserver that holds nothing any more is forgotten. [`Done::Noted`].
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// Who root of clients' machines is; `None`: root. [`Done::Noted`].
    SetSquash(Option<Squash>),
    /// Settings change, all or none. [`Done::Noted`].
    Settings {
        /// Of repair, garbage collection and scrub.
        keep: KeepChange,
        /// Durable copies below which a write is not acknowledged, 1 to the default replica count.
        min_replicas: Option<u8>,
    },
    /// A new life begins from a backup. Applied once, before the group of that life is formed, by each of its members
    /// to its own copy of the backup; it stands in no log. [`Done::Noted`].
    Restored {
        /// The new epoch.
        epoch: Epoch,
        /// The metaservers of the new life and their addresses.
        metaservers: Vec<(NodeId, String)>,
        /// When.
        at: Time,
    },
    /// Deletion, held since the restore that began this epoch, goes on. [`Done::Noted`].
    Release {
        /// Which.
        epoch: Epoch,
    },
    /// Batches of these sessions that were made under older claims are refused from now on, but for those that the leader of
    /// this term lets through: others are let pass them.
    Fence {
        /// The term.
        term: u64,
        /// The sessions.
        sessions: Vec<SessionId>,
    },
    /// Placement groups that move are taken a step further. `Stale` if the layout is another one. [`Done::Noted`].
    Step(Step),
    /// The plan to move placement groups changes. [`Done::Noted`].
    Rebalance {
        /// How.
        change: PlanChange,
        /// When.
        at: Time,
    },
    /// A chunkserver is announced to be away, or no more. [`Done::Noted`].
    Away {
        /// Which.
        server: ServerId,
        /// Until when; `None`: it is not.
        until: Option<Time>,
    },
    /// Settings change, all or none. [`Done::Noted`].
    Change(SettingsChange),
    /// What is due in the trash goes for good, oldest first, a piece at a time. [`Done::Purged`].
    Expire {
        /// And what is not due, until what has gone is this many bytes.
        bytes: u64,
        /// When.
        at: Time,
    },
    /// What is in the trash is due. [`Done::Noted`].
    EmptyTrash {
        /// Now.
        at: Time,
    },
    /// A chunkserver that was removed may register again, with what it has. [`Done::Noted`].
    Readmit {
        /// Which.
        server: ServerId,
    },
}

/// See [`Command::Step`] and `namespace/moves.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The layout it goes by.
    pub layout: LayoutVersion,
    /// Groups that all their replicas have.
    pub close: Vec<PgId>,
    /// Groups that all their replicas have, with what was committed before they were closed.
    pub finish: Vec<PgId>,
    /// Groups of the plan that begin, with their new lists: what the plan says, and where to fall through to.
    pub begin: Vec<(PgId, Vec<ServerId>)>,
    /// When.
    pub at: Time,
}

/// See [`Command::Rebalance`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlanChange {
    /// A new plan, in place of the one before.
    Start(NewPlan),
    /// Nothing is begun or copied.
    Pause,
    /// It goes on.
    Resume,
    /// Nothing more is begun.
    Cancel,
    /// Bytes per second that one server takes, at most.
    Rate(Option<u64>),
}

/// What is to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPlan {
    /// Made for this layout: `Stale` if it is another one.
    pub layout: LayoutVersion,
    /// The leader made it because weights or servers changed: the rate stays, and the pause of one that is active.
    pub by_itself: bool,
    /// Bytes per second that one server takes, at most.
    pub rate: Option<u64>,
    /// Groups that move.
    pub steps: Vec<(PgId, PlanStep)>,
    /// What it does to each server.
    pub servers: Vec<ServerPlan>,
}

/// What applying a command answers.
pub type Reply = Result<Done, Fault>;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// `Client`.
    Applied(Applied),
    /// `ExpireSession`.
    Ended,
    /// `Format`.
    Formatted,
    /// `Register`.
    Registered {
        /// The server's id from now on.
        server: ServerId,
        /// True if it was not known before: it has no place in the layout yet.
        new: bool,
    },
    /// `SetLayout`.
    LayoutSet,
    /// `SetServerWeight`.
    WeightSet,
    /// `Purge`, `Expire`.
    Purged {
        /// There is more to take apart.
        more: bool,
    },
    /// `Condemn`.
    Condemned {
        /// Those that may be deleted by whoever asked.
        granted: Vec<ChunkId>,
    },
    /// `Holds`.
    Noted,
    /// `SetOut`.
    OutSet,
    /// `SetKeep`: the settings now.
    KeepSet(KeepSettings),
    /// `Fix`.
    Fixed,
    /// `Settle`.
    Settled,
}

impl Command {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![COMMAND_VERSION]).expect("plain data has an encoding, and memory grows")
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Command, KvError> {
        let error = |message: String| KvError { doing: "decode command", message };
        match bytes.split_first() {
            Some((&COMMAND_VERSION, body)) => postcard::from_bytes(body).map_err(|e| error(e.to_string())),
            Some((version, _)) => Err(error(format!("unknown version {version}"))),
            None => Err(error("empty".into())),
        }
    }
}

/// Why a step of the state machine stopped.
#[derive(Debug, thiserror::Error)]
pub enum Fail {
    /// The request cannot be done: an answer like any other.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// The store failed: this replica must stop.
    #[error("{0}")]
    Kv(#[from] KvError),
}

impl From<Fail> for Fault {
    fn from(fail: Fail) -> Fault {
        match fail {
            Fail::Fault(fault) => fault,
            Fail::Kv(error) => Fault::new(Kind::Internal, format!("the metadata store failed: {error}")),
        }
    }
}

/// Shorthand for a refusal.
pub(super) fn refuse(kind: Kind, message: impl Into<String>) -> Fail {
    Fail::Fault(Fault::new(kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_back_and_a_stranger_does_not() {
        let command = Command::Purge { limit: 5 };
        assert_eq!(command.encode(), [1, 6, 5]);
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        for bad in [&b""[..], b"\x02\x06\x05", b"\x01\x63"] {
            assert!(Command::decode(bad).is_err());
        }
    }
}
