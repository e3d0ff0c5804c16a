//! What openraft sees of the state machine: apply, snapshots.
//!
//! Entries are applied in batches: one batch of the store for many entries, with the position after the last of them.
//! Replies go out after the batch is in the store. Nothing here is durable by itself; the log is (see [`super::state`]).

use super::state::{Applied, Dir, Snapshot, State};
use super::types::{Entry, LogId, Members, Payload, Response, TypeConfig};
use crate::namespace::{self, Command};
use crate::store::Txn;
use common::id::LogIndex;
use common::kv::{Batch, KvError, KvRead};
use common::world::World;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::Arc;

/// Entries in one batch of the store, at most.
const BATCH_ENTRIES_MAX: usize = 1024;
/// A batch of at most this many bytes is applied on the async thread: some rows in memory, without a sync. Two changes of
/// threads would take longer.
const IN_PLACE_BYTES_MAX: usize = 64 << 10;
/// Bytes of entries in one batch, about.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A handle; clones are the same state machine.
#[derive(Clone, Debug)]
pub struct StateMachine {
    world: World,
    state: Arc<State>,
}

/// A snapshot on this node: a directory, its own or one received.
#[derive(Clone, Debug)]
pub struct SnapshotData {
    /// Where its files are.
    pub dir: Arc<Dir>,
}

impl StateMachine {
    /// The state machine over this state.
    pub fn new(world: &World, state: Arc<State>) -> StateMachine {
        StateMachine { world: world.clone(), state }
    }
}

type Responder = openraft::storage::ApplyResponder<TypeConfig>;

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Members)> {
        let applied = self.state.applied();
        Ok((applied.last, applied.members))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut entries = entries.fuse(); // it is asked again after its end
        let mut next = entries.next().await;
        while let Some(first) = next.take() {
            let mut batch = vec![first?];
            let mut bytes = cost(&batch[0].0);
            // What the stream has at hand; an await only at the edge of a piece of the log.
            while batch.len() < BATCH_ENTRIES_MAX && bytes < BATCH_BYTES_MAX {
                let Some(entry) = entries.next().await else { break };
                let entry = entry?;
                bytes += cost(&entry.0);
                batch.push(entry);
            }
            let (batch, responders): (Vec<Entry>, Vec<Option<Responder>>) = batch.into_iter().unzip();
            let state = self.state.clone();
            let write = move || state.write(|read, applied| apply(read, applied, &batch));
            let replies = if bytes <= IN_PLACE_BYTES_MAX { write()? } else { self.world.blocking(write).await? };
            for (responder, reply) in responders.into_iter().zip(replies) {
                if let Some(responder) = responder {
                    responder.send(reply);
                }
            }
            next = entries.next().await;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: SnapshotData) -> io::Result<()> {
        let applied = Applied { last: meta.last_log_id, members: meta.last_membership.clone() };
        let state = self.state.clone();
        self.world.blocking(move || state.install(&applied, &snapshot.dir)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        Ok(self.state.snapshot().map(told))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        let state = self.state.clone();
        Ok(told(self.world.blocking(move || state.take_snapshot()).await?))
    }
}

fn told(snapshot: Snapshot) -> SnapshotOf<TypeConfig, SnapshotData> {
    let meta =
        SnapshotMetaOf::<TypeConfig> { last_log_id: snapshot.applied.last, last_membership: snapshot.applied.members };
    SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot: SnapshotData { dir: snapshot.dir } }
}

fn cost(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposal) => proposal.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    }
}

/// Applies entries to what `read` shows; the batch holds all their changes.
fn apply(read: &dyn KvRead, applied: &mut Applied, entries: &[Entry]) -> Result<(Batch, Vec<Response>), KvError> {
    let mut txn = Txn::new(read);
    let mut replies = Vec::with_capacity(entries.len());
    for entry in entries {
        applied.last = Some(entry.log_id);
        replies.push(match &entry.payload {
            Payload::Blank => Response(None),
            Payload::Membership(members) => {
                applied.members = Members::new(Some(entry.log_id), members.clone());
                Response(None)
            }
            Payload::Normal(proposal) => {
                let command = Command::decode(&proposal.0)?;
                Response(Some(namespace::apply(&mut txn, LogIndex(entry.log_id.index), &command)?))
            }
        });
    }
    Ok((txn.into_batch(), replies))
}
