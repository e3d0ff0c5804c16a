//! What only a leader knows, in memory: who is alive. A new leader begins with nothing but the rows.
//!
//! One [`Leading`] belongs to one term; it is made when this node first acts as the leader of that term, after a read
//! barrier, so that it starts from all that earlier leaders committed.

use crate::namespace::{self, QueryCtx};
use crate::raft::Member;
use crate::servers::Servers;
use crate::sessions::Sessions;
use common::fault::{Fault, Kind};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct Leading {
    /// The term.
    pub(crate) term: u64,
    /// Secret, epoch and what else was fixed at format.
    pub(crate) ctx: QueryCtx,
    /// Chunkservers.
    pub(crate) servers: Servers,
    /// Clients.
    pub(crate) sessions: Sessions,
}

/// The present one, if this node leads.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    now: Mutex<Option<Arc<Leading>>>,
    /// Held while a new one is made.
    making: tokio::sync::Mutex<()>,
}

impl Leadership {
    /// What this node knows as the leader it is.
    ///
    /// # Errors
    /// `NotLeader`; `Unavailable`: no majority confirms it; `Refused`: the cluster is not formatted yet.
    pub(crate) async fn get(&self, member: &Member) -> Result<Arc<Leading>, Fault> {
        let term = leading_term(member)?;
        if let Some(known) = self.known(term) {
            return Ok(known);
        }
        let _making = self.making.lock().await;
        let term = leading_term(member)?;
        if let Some(known) = self.known(term) {
            return Ok(known);
        }
        member.reads.wait().await?;
        let mounted = member.state.mounted();
        let failed = |error: common::kv::KvError| Fault::new(Kind::Internal, error.to_string());
        let Some(config) = namespace::config(mounted.kv()).map_err(failed)? else {
            return Err(not_formatted());
        };
        let sessions = namespace::sessions(mounted.kv()).map_err(failed)?;
        let fresh = Arc::new(Leading {
            term,
            ctx: QueryCtx::new(&config),
            servers: Servers::new(term),
            sessions: Sessions::new(sessions.into_iter().map(|(id, _)| id), Instant::now()),
        });
        tracing::info!(term, "this metaserver leads");
        *self.now.lock().expect("no panic holds this lock") = Some(fresh.clone());
        Ok(fresh)
    }

    fn known(&self, term: u64) -> Option<Arc<Leading>> {
        self.now.lock().expect("no panic holds this lock").clone().filter(|leading| leading.term == term)
    }
}

/// The term this node leads.
fn leading_term(member: &Member) -> Result<u64, Fault> {
    match member.group.as_leader() {
        Ok(leader) => Ok(*leader.to_committed_leader_id()),
        Err(to) => Err(crate::raft::forward(&to)),
    }
}

/// What a node says to everything but its formatting, before that.
pub(crate) fn not_formatted() -> Fault {
    Fault::new(Kind::Unavailable, "this metaserver is not formatted: run `dfs admin format`")
}
