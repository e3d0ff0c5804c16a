//! What only a leader knows, in memory: who is alive. A new leader begins with nothing but the rows.
//!
//! One [`Leading`] belongs to one term; it is made when this node first acts as the leader of that term, after a read
//! barrier, so that it starts from all that earlier leaders committed.

use crate::keep::Keep;
use crate::leases::Leases;
use crate::movers::Movers;
use crate::namespace::{self, QueryCtx};
use crate::opens::Opens;
use crate::raft::{Member, node_of};
use crate::rights::Rights;
use crate::servers::Servers;
use crate::sessions::Sessions;
use crate::trash::Pressure;
use common::fault::{Fault, Kind};
use common::layout::ClusterMap;
use openraft::Instant as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// A leader that no majority has answered for this long does not act as one: by then another may lead. (A follower stands
/// for election after 2.6 s at most; openraft's leaders never step down by themselves.)
const ALONE_MAX: Duration = Duration::from_secs(3);

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
    /// Repair, garbage, scrub.
    pub(crate) keep: Keep,
    /// Placement groups that move.
    pub(crate) movers: Movers,
    /// What clients may answer from memory.
    pub(crate) leases: Arc<Leases>,
    /// Who has removed files open.
    pub(crate) opens: Opens,
    /// Who was let open what.
    pub(crate) rights: Rights,
    /// When the trash makes room.
    pub(crate) trash: Pressure,
    /// Some lock was let go of.
    pub(crate) lock_news: tokio::sync::Notify,
}

/// The present one, if this node leads.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    now: Mutex<Option<Arc<Leading>>>,
    /// Held while a new one is made.
    making: tokio::sync::Mutex<()>,
}

impl Leading {
    /// The cluster map, with who is up and who the metaservers are now.
    ///
    /// # Errors
    /// `Unavailable`: it is not formatted. `Internal`: the store failed.
    pub(crate) fn map(&self, member: &Member) -> Result<Arc<ClusterMap>, Fault> {
        let mounted = member.state.mounted();
        self.servers.map(|| {
            let failed = |error: common::kv::KvError| Fault::new(Kind::Internal, error.to_string());
            let map = namespace::cluster_map(mounted.kv()).map_err(failed)?.ok_or_else(not_formatted)?;
            // As the group is now; the row is as it was when the cluster was made or restored.
            let members = member.metrics().membership_config;
            let voters = members.voter_ids().filter_map(|id| Some((node_of(id), members.get_node(&id)?.addr.clone())));
            Ok(ClusterMap { metaservers: voters.collect(), ..map })
        })
    }
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
        let sessions: Vec<_> =
            namespace::sessions(mounted.kv()).map_err(failed)?.into_iter().map(|(id, _)| id).collect();
        // Those that take leases say what they have open as well.
        let attending = namespace::attending(mounted.kv()).map_err(failed)?.into_iter();
        let attending = attending.map(|session| Ok((session, namespace::decides(mounted.kv(), session)?)));
        let attending: Vec<_> = attending.collect::<Result<_, _>>().map_err(failed)?;
        let fresh = Arc::new(Leading {
            term,
            ctx: QueryCtx::new(&config),
            servers: Servers::new(term),
            keep: Keep::new(term),
            movers: Movers::default(),
            leases: Arc::new(Leases::new(attending.into_iter(), Instant::now())),
            opens: Opens::new(Instant::now()),
            rights: Rights::default(),
            trash: Pressure::default(),
            lock_news: tokio::sync::Notify::new(),
            sessions: Sessions::new(sessions.into_iter(), Instant::now()),
        });
        tracing::info!(term, "this metaserver leads");
        *self.now.lock().expect("no panic holds this lock") = Some(fresh.clone());
        Ok(fresh)
    }

    /// This node leads but no majority answers. What it does not hear meanwhile says nothing about who is alive.
    pub(crate) fn alone(&self) {
        let known = self.now.lock().expect("no panic holds this lock").clone();
        if let Some(leading) = known {
            leading.sessions.all_heard(Instant::now());
            leading.servers.forget();
        }
    }

    /// True if this node leads in the term of `leading`, as it did when that was asked for.
    pub(crate) fn is_still(&self, member: &Member, leading: &Leading) -> bool {
        leading_term(member).is_ok_and(|term| term == leading.term)
    }

    fn known(&self, term: u64) -> Option<Arc<Leading>> {
        self.now.lock().expect("no panic holds this lock").clone().filter(|leading| leading.term == term)
    }
}

/// The term this node leads, as a majority has confirmed lately.
fn leading_term(member: &Member) -> Result<u64, Fault> {
    match member.group.as_leader() {
        Ok(leader) if leader.last_quorum_acked().is_some_and(|at| at.elapsed() < ALONE_MAX) || member.is_single() => {
            Ok(*leader.to_committed_leader_id())
        }
        Ok(_) => Err(Fault::new(Kind::Unavailable, "no majority of metaservers answers this leader")),
        Err(to) => Err(crate::raft::forward(&to)),
    }
}

/// What a node says to everything but its formatting, before that.
pub(crate) fn not_formatted() -> Fault {
    Fault::new(Kind::Unavailable, "this metaserver is not formatted: run `dfs admin format`")
}
