//! openraft's way to the other members: one connection each for entries and votes, one for heartbeats, one for
//! snapshots, so that none waits behind another.
//!
//! Entries go out one message at a time per follower: while one is on its way, the next ones gather (that is the batching).
//! A message that only tells how far the log is committed waits for entries to ride with, at most [`COMMIT_WAIT`]: a
//! follower needs to know it only to apply, and nobody reads there. That halves the messages of a change that comes alone.
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
use futures::stream::{self, Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{BasicNode, OptionalSend};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a follower may take to write entries. Longer than openraft's own figure (a heartbeat): on a busy disk a sync
/// can take that long, and sending the same again makes it worse.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a follower may be left in the dark about what is committed while nothing else is sent to it. Shorter than a
/// heartbeat; longer than the pause between two changes of one busy client.
const COMMIT_WAIT: Duration = Duration::from_millis(50);
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

type Append = AppendEntriesRequest<TypeConfig>;
type Appended<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Keeps a message without entries back for [`COMMIT_WAIT`]. What comes after it tells all that it would have told, and
/// its answer counts for both; a stream that ends sends what it has at once (so a probe does not wait).
fn with_entries(
    input: impl Stream<Item = Append> + Send + Unpin + 'static,
) -> impl Stream<Item = Append> + Send + Unpin {
    let messages = stream::unfold(Some(input), |input| async move {
        let mut input = input?;
        let mut message = input.next().await?;
        let end = Instant::now() + COMMIT_WAIT;
        while message.entries.is_empty() {
            match timeout_at(end, input.next()).await {
                Ok(Some(newer)) => message = newer,
                Ok(None) => return Some((message, None)),
                Err(_) => break,
            }
        }
        Some((message, Some(input)))
    });
    Box::pin(messages)
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

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Appended<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, with_entries(input), option)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{Entry, log_id};
    use openraft::entry::RaftEntry;
    use tokio::sync::mpsc;

    fn message(commit: u64, entries: usize) -> Append {
        let at = |index| log_id(1, index);
        let entry = |n: usize| Entry::new_blank(at(u64::try_from(n).unwrap()));
        Append {
            vote: Vote::new(1, 1),
            prev_log_id: None,
            leader_commit: Some(at(commit)),
            entries: (0..entries).map(entry).collect(),
        }
    }

    fn commits(out: Option<Append>) -> Option<u64> {
        out.map(|message| message.leader_commit.expect("each has one").index)
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_commit_rides_with_entries_or_goes_alone_after_a_while() {
        let (sender, receiver) = mpsc::channel(8);
        let input = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Append>| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let mut out = with_entries(Box::pin(input));
        for one in [message(1, 1), message(2, 0), message(3, 0), message(4, 2)] {
            sender.send(one).await.unwrap();
        }
        assert_eq!(commits(out.next().await), Some(1));
        assert_eq!(commits(out.next().await), Some(4), "2 and 3 are told by 4");
        sender.send(message(5, 0)).await.unwrap();
        let asked = Instant::now();
        assert_eq!(commits(out.next().await), Some(5), "nothing came to ride with");
        assert_eq!(asked.elapsed(), COMMIT_WAIT);
        sender.send(message(6, 0)).await.unwrap();
        drop(sender);
        let asked = Instant::now();
        assert_eq!(commits(out.next().await), Some(6), "the last of a stream");
        assert_eq!(asked.elapsed(), Duration::ZERO);
        assert_eq!(commits(out.next().await), None);
    }
}
