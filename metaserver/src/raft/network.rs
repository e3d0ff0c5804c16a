//! openraft's way to the other members: one connection each for entries and votes, one for heartbeats, one for
//! snapshots, so that none waits behind another.
//!
//! Entries go out one message at a time per follower: while one is on its way, the next ones gather (that is the batching).
//! Every message has a deadline; a member that cannot be reached is left alone for a while ([`BACK_OFF_MIN`], doubling).

use super::message::{Reply, ToMember};
use super::snapshot::{ask, send};
use super::state::Applied;
use super::state_machine::SnapshotData;
use super::types::{TypeConfig, Vote};
use common::fault::{Fault, Kind};
use common::hello::Me;
use common::rpc::Caller;
use common::task::Tasks;
use common::world::World;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, OptionalSend};
use std::future::Future;
use std::time::Duration;

/// How long a follower may take to write entries. Longer than openraft's own figure (a heartbeat): on a busy disk a sync
/// can take that long, and sending the same again makes it worse.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause after a member could not be reached.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// The longest one.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Makes connections to members.
#[derive(Clone)]
pub(super) struct Network {
    /// The outside world.
    pub(super) world: World,
    /// Owns the tasks of the connections.
    pub(super) tasks: Tasks,
    /// How we introduce ourselves.
    pub(super) me: Me,
}

/// To one member.
pub(super) struct Member {
    world: World,
    caller: Caller,
    raft_id: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Member;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Member {
        let caller = Caller::new(&self.world, &self.tasks, &self.me, std::slice::from_ref(&node.addr));
        Member { world: self.world.clone(), caller, raft_id: target }
    }
}

impl Member {
    async fn ask(&self, message: ToMember, limit: Duration) -> Result<Reply, RPCError<TypeConfig>> {
        ask(&self.caller, self.raft_id, message, limit).await.map_err(|fault| rpc_error(&fault))
    }
}

/// Unreachable makes openraft wait before it tries again; everything else is tried again at once.
fn rpc_error(fault: &Fault) -> RPCError<TypeConfig> {
    match fault.kind {
        Kind::Unsure => RPCError::Network(NetworkError::from_string(&fault.message)),
        _ => RPCError::Unreachable(Unreachable::from_string(&fault.message)),
    }
}

fn unexpected(reply: &Reply) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("an answer that does not fit: {reply:?}")))
}

impl RaftNetworkV2<TypeConfig> for Member {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = if rpc.entries.is_empty() { option.soft_ttl() } else { APPEND_TIMEOUT };
        match self.ask(ToMember::Append(rpc), limit).await? {
            Reply::Append(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(ToMember::Vote(rpc), option.soft_ttl()).await? {
            Reply::Vote(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(ToMember::PreVote(rpc), option.soft_ttl()).await? {
            Reply::Vote(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let applied = Applied { last: snapshot.meta.last_log_id, members: snapshot.meta.last_membership };
        let send = send(&self.world, &self.caller, self.raft_id, vote, applied, snapshot.snapshot.dir);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = send => sent,
        };
        match sent {
            Ok(Reply::Snapshot(answer)) => Ok(answer),
            Ok(other) => Err(StreamingError::Unreachable(Unreachable::from_string(format!("unexpected {other:?}")))),
            Err(fault) => {
                tracing::warn!(to = self.raft_id, error = %fault, "send a snapshot");
                Err(StreamingError::Unreachable(Unreachable::from_string(fault.message)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(ToMember::TransferLeader(rpc), option.soft_ttl()).await? {
            Reply::Done => Ok(Ok(())),
            other => Err(unexpected(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let pauses = std::iter::successors(Some(BACK_OFF_MIN), |pause| Some((*pause * 2).min(BACK_OFF_MAX)));
        Some(Backoff::new(pauses))
    }
}
