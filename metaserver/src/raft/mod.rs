//! Consensus: one Raft group of metaservers, with openraft.
//!
//! | file | holds |
//! | --- | --- |
//! | `types`, `runtime` | what openraft is instantiated with |
//! | `log`, `index`, `records`, `marker` | the log and the vote on [`common::segment`]; the proof that nothing was forgotten |
//! | `state`, `state_machine` | the store, its snapshots; applying entries |
//! | `message`, `network`, `snapshot` | what members say to each other |
//! | `reads` | linearizable reads |
//! | `short` | the log is bounded by bytes |
//! | `restore` | the first state of a new life, from a backup |
//!
//! This file opens all of it for one node, proposes commands, and answers other members.

mod index;
mod log;
mod marker;
mod message;
mod network;
mod reads;
mod records;
mod restore;
pub mod runtime;
mod short;
mod snapshot;
mod state;
mod state_machine;
#[cfg(test)]
mod tests;
mod types;

pub use log::{OpenError, RaftLog};
pub use message::{Message, Reply, decode, encode};
pub use reads::ReadBarrier;
pub(crate) use restore::Incoming;
pub(crate) use snapshot::list;
pub(crate) use state::{Dir, read_piece};
pub use state::{Mounted, State};
pub(crate) use types::Members;
pub use types::{Group, LogId, NODE_MASK, Response, TypeConfig, node_of, returned_id, term_of};

use crate::config::Config;
use crate::identity::Identity;
use crate::namespace::{Command, Done};
use common::fault::{Fault, Kind};
use common::hello::Me;
use common::task::Tasks;
use common::world::World;
use marker::vote_of;
use message::ToMember;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, RaftError};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, RaftMetrics, SnapshotPolicy};
use snapshot::Receiving;
use state_machine::{SnapshotData, StateMachine};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use types::Proposal;

/// Between two heartbeats of the leader.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A follower stands for election when it heard nothing for [`LEASE`] and then a random time between these two: 2.0 to
/// 2.6 s. (A leader that got no time on a small machine is the normal case; it has missed seven heartbeats by then.)
const ELECTION_MIN: Duration = Duration::from_millis(700);
const ELECTION_MAX: Duration = Duration::from_millis(1300);
/// For this long after a leader's message a follower votes for nobody else. (openraft: the longest election timeout.)
pub const LEASE: Duration = ELECTION_MAX;
/// How long installing a snapshot may take before openraft begins again.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Entries in one message to a follower, at most.
const MESSAGE_ENTRIES_MAX: u64 = 1024;
/// Entries openraft takes from its callers in one go.
const API_BATCH: u64 = 1024;
/// Requests that wait for openraft; more wait outside.
const API_QUEUE: u64 = 16_384;
/// Purged together.
const PURGE_BATCH: u64 = 1024;
/// How long a proposal may take before its outcome counts as unknown.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything a member has.
#[derive(Clone)]
pub struct Member {
    /// Who we are.
    pub identity: Identity,
    /// openraft.
    pub group: Group,
    /// The state machine's store.
    pub state: Arc<State>,
    /// The log.
    pub log: RaftLog,
    /// Linearizable reads.
    pub reads: ReadBarrier,
    receiving: Arc<Mutex<Option<Receiving>>>,
    world: World,
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The state.
    #[error("open the metadata store in {dir}: {source}")]
    State {
        /// Its directory.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// openraft refuses what it finds.
    #[error("start the Raft group: {0}")]
    Group(String),
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("constants of at most an hour")
}

fn settings(config: &Config) -> Result<openraft::Config, StartError> {
    let settings = openraft::Config {
        cluster_name: "dfs".into(),
        heartbeat_interval: millis(HEARTBEAT),
        election_timeout_min: millis(ELECTION_MIN),
        election_timeout_max: millis(ELECTION_MAX),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: MESSAGE_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        // Beyond this a follower gets a snapshot; up to it the log is kept anyway.
        replication_lag_threshold: config.snapshot_entries + config.keep_entries,
        max_in_snapshot_log_to_keep: config.keep_entries,
        purge_batch_size: PURGE_BATCH.min(config.keep_entries.max(1)),
        api_channel_size: Some(API_QUEUE),
        api_batch_capacity: API_BATCH,
        // Followers get entries while our own disk still syncs them.
        broadcast_submitted_on_append: Some(true),
        enable_pre_vote: Some(true),
        // A leader that restarts stands for election like everybody else: its state may be behind its log.
        enable_leader_restore: Some(false),
        // A member whose log went backwards is refused, never resent: it forgot what it acknowledged.
        allow_log_reversion: Some(false),
        ..openraft::Config::default()
    };
    settings.validate().map_err(|error| StartError::Group(error.to_string()))
}

impl Member {
    /// Makes the files of a new member: log, marker, and only then the identity. Durable when this returns. What another
    /// member left in the directory goes: without an identity nobody answers for it.
    ///
    /// `start`: the state and the term that it begins with; `None`: with nothing.
    pub fn create(
        world: &World,
        config: &Config,
        identity: Identity,
        start: Option<(&Path, u64)>,
    ) -> Result<(), StartError> {
        let dir = config.data_dir.join("raft");
        for old in [&dir, &config.data_dir.join("state")] {
            if world.disk.exists(old) {
                world.disk.remove_dir_all(old).map_err(|source| state_error(config, source))?;
            }
        }
        let vote = start.map(|(_, term)| vote_of(term, identity.raft_id, false));
        RaftLog::create(world, &dir, identity.cluster.0.to_le_bytes(), vote)?;
        if let Some((from, _)) = start {
            let root = config.data_dir.join("state");
            State::adopt(world, &root, from).map_err(|source| state_error(config, source))?;
        }
        identity.save(&*world.disk, &config.data_dir).map_err(|source| state_error(config, source))
    }

    /// Opens a member's files and joins the group. Blocks while it reads the log.
    pub async fn open(
        world: &World,
        tasks: &Tasks,
        me: &Me,
        config: &Config,
        identity: Identity,
    ) -> Result<Member, StartError> {
        let (state, log) = {
            let (world, tasks, config) = (world.clone(), tasks.clone(), config.clone());
            let handle = world.clone();
            handle.blocking(move || open_files(&world, &tasks, &config, identity)).await?
        };
        let machine = StateMachine::new(world, state.clone());
        let network = network::Network { world: world.clone(), tasks: tasks.clone(), me: me.clone() };
        let settings = Arc::new(settings(config)?);
        let group = Group::build(identity.raft_id, settings, network, log.clone(), machine)
            .await
            .map_err(|error| StartError::Group(error.to_string()))?;
        if config.read_policy == crate::config::ReadPolicy::Lease {
            // Before it stopped this node may have granted a lease that is still running: let it end.
            tokio::time::sleep(LEASE).await;
        }
        group.run();
        let reads = ReadBarrier::start(tasks, group.clone(), config.read_policy);
        let log_bytes_max = u64::from(config.log_mib) << 20;
        tasks.spawn("keep the log short", |stop| short::keep(group.clone(), log.clone(), log_bytes_max, stop));
        let receiving = Arc::new(Mutex::new(None));
        Ok(Member { identity, group, state, log, reads, receiving, world: world.clone() })
    }

    /// Puts a command into the log and waits until it was applied here.
    ///
    /// # Errors
    /// `NotLeader`: nothing happened. `Unsure`: nobody knows. Else what `apply` said.
    pub async fn propose(&self, command: &Command) -> Result<Done, Fault> {
        within_limit(self.write(command.encode())).await
    }

    /// As [`Member::propose`], already encoded, for as long as it takes: until a majority has it, or another leader has
    /// discarded it.
    pub async fn write(&self, command: Vec<u8>) -> Result<Done, Fault> {
        match self.group.client_write(Proposal(command.into())).await {
            Ok(answer) => answer.data.0.unwrap_or_else(|| Err(Fault::new(Kind::Internal, "an answer without a reply"))),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(forward(&to)),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(to))) => {
                let leader = forward(&to).leader;
                let text = "the leader changed while this was under way";
                Err(Fault { kind: Kind::Unsure, message: text.into(), leader })
            }
            Err(error) => Err(Fault::new(Kind::Unsure, format!("propose: {error}"))),
        }
    }

    /// This node's number in the log of everything: an index nobody else gets.
    pub async fn fresh_index(&self) -> Result<u64, Fault> {
        match tokio::time::timeout(PROPOSE_TIMEOUT, self.group.write_blank()).await {
            Ok(Ok(answer)) => Ok(answer.log_id.index),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(forward(&to)),
            Ok(Err(error)) => Err(Fault::new(Kind::Unavailable, error.to_string())),
            Err(_) => Err(Fault::new(Kind::Unavailable, "no majority of metaservers")),
        }
    }

    /// The leader's address, if this node knows one.
    pub fn leader(&self) -> Option<String> {
        let now = self.metrics();
        now.membership_config.get_node(&now.current_leader?).map(|node| node.addr.clone())
    }

    /// What openraft says of itself.
    pub fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.group.metrics().borrow_watched().clone()
    }

    /// True if this node alone is the majority.
    pub fn is_single(&self) -> bool {
        self.group.metrics().borrow_watched().membership_config.voter_ids().eq([self.identity.raft_id])
    }

    /// True while this node leads.
    pub fn is_leader(&self) -> bool {
        self.group.is_leader()
    }

    /// Nothing was ever acknowledged by this member.
    pub async fn is_pristine(&self) -> bool {
        let metrics = self.metrics();
        metrics.last_log_index.is_none() && metrics.current_term == 0
    }

    /// Answers another member.
    pub(crate) async fn answer(&self, to: u64, message: ToMember) -> Result<Reply, Fault> {
        if to != self.identity.raft_id {
            let text = format!("this is member {:#x}, not {to:#x}", self.identity.raft_id);
            return Err(Fault::new(Kind::Refused, text));
        }
        let stopped = |error: &dyn std::fmt::Display| Fault::new(Kind::Unavailable, error.to_string());
        match message {
            ToMember::Append(rpc) => self.group.append_entries(rpc).await.map(Reply::Append).map_err(|e| stopped(&e)),
            ToMember::Vote(rpc) => self.group.vote(rpc).await.map(Reply::Vote).map_err(|e| stopped(&e)),
            ToMember::PreVote(rpc) => self.group.pre_vote(rpc).await.map(Reply::Vote).map_err(|e| stopped(&e)),
            ToMember::TransferLeader(rpc) => match self.group.handle_transfer_leader(rpc).await {
                Ok(Ok(())) => Ok(Reply::Done),
                Ok(Err(refused)) => Err(Fault::new(Kind::Busy, refused.to_string())),
                Err(fatal) => Err(stopped(&fatal)),
            },
            ToMember::SnapshotBegin { transfer, applied, files } => {
                let mut receiving = self.receiving.lock().await;
                *receiving = None; // its directory goes
                let state = self.state.clone();
                let begin = move || Receiving::begin(&state, transfer, applied, files);
                *receiving = Some(self.world.blocking(begin).await?);
                Ok(Reply::Done)
            }
            ToMember::SnapshotPiece { transfer, file, at, bytes } => {
                let mut slot = self.receiving.lock().await;
                let mut receiving = taken(&mut slot, transfer)?;
                let disk = self.world.disk.clone();
                let write = move || receiving.piece(&*disk, file, at, &bytes).map(|()| receiving);
                *slot = Some(self.world.blocking(write).await?);
                Ok(Reply::Done)
            }
            ToMember::SnapshotEnd { transfer, vote, hashes } => {
                let mut slot = self.receiving.lock().await;
                let receiving = taken(&mut slot, transfer)?;
                let disk = self.world.disk.clone();
                let (applied, dir) = self.world.blocking(move || receiving.end(&*disk, &hashes)).await?;
                let meta = openraft::SnapshotMeta { last_log_id: applied.last, last_membership: applied.members };
                let data = SnapshotData { dir: Arc::new(dir) };
                let snapshot = SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot: data };
                self.group.install_full_snapshot(vote, snapshot).await.map(Reply::Snapshot).map_err(|e| stopped(&e))
            }
        }
    }
}

/// The outcome of a proposal, if it comes in time. Else it is unknown.
pub(crate) async fn within_limit(outcome: impl Future<Output = Result<Done, Fault>>) -> Result<Done, Fault> {
    let late = |_| Err(Fault::new(Kind::Unsure, format!("no majority within {PROPOSE_TIMEOUT:?}")));
    tokio::time::timeout(PROPOSE_TIMEOUT, outcome).await.unwrap_or_else(late)
}

fn taken(slot: &mut Option<Receiving>, transfer: u64) -> Result<Receiving, Fault> {
    let current = slot.take_if(|receiving| receiving.transfer == transfer);
    current.ok_or_else(|| Fault::new(Kind::Busy, "this snapshot is not being received: begin again"))
}

fn open_files(
    world: &World,
    tasks: &Tasks,
    config: &Config,
    identity: Identity,
) -> Result<(Arc<State>, RaftLog), StartError> {
    let state = State::open(world, &config.data_dir.join("state"), config.tuning())
        .map_err(|source| state_error(config, source))?;
    let id = identity.cluster.0.to_le_bytes();
    let log = RaftLog::open(world, tasks, &config.data_dir.join("raft"), id, state.applied().last)?;
    Ok((state, log))
}

fn state_error(config: &Config, source: std::io::Error) -> StartError {
    StartError::State { dir: config.data_dir.display().to_string(), source }
}

/// "Not me, but that one".
pub(crate) fn forward(to: &ForwardToLeader<TypeConfig>) -> Fault {
    Fault::not_leader(to.leader_node.as_ref().map(|node: &BasicNode| node.addr.clone()))
}
