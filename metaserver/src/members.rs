//! Changes of the group while it serves: metaservers come and go, one at a time.
//!
//! - *Add*: an empty metaserver gets a Raft id that nobody ever had, makes its files, and becomes a learner.
//! - *Promote*: a learner that has caught up votes from then on.
//! - *Remove*: a metaserver leaves for good. The one that leads hands that over first.
//!
//! No change is made that would leave fewer than a majority of the voters up. Each is two steps of Raft; what an earlier
//! leader left half-way, [`Node::end_change`] ends. A metaserver that was removed hears nothing any more; it asks, is told,
//! and from then on takes no part ([`Node::check_standing`]), also after a restart, until its data directory is emptied.

use crate::identity::Identity;
use crate::node::{CAUGHT_UP_ENTRIES, Node, PEER_TIMEOUT, REMOVED};
use crate::raft::{Member, Message, Reply, TypeConfig, decode, encode, node_of, returned_id};
use common::disk::write_checked;
use common::fault::{Fault, Kind};
use common::hello::Role;
use common::id::{ClusterId, Epoch, NodeId};
use common::proto::backup::{MemberChange, Members};
use openraft::{BasicNode, ChangeMembers, Instant as _, RaftMetrics};
use std::collections::BTreeSet;
use std::time::Duration;

/// Metaservers in a group, at most: every change waits for a majority of them.
const MEMBERS_MAX: usize = 9;
/// How long one change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A member whose last answer to a heartbeat is older than this is not up.
pub(crate) const UNREACHABLE_AFTER: Duration = Duration::from_secs(3);

type Metrics = RaftMetrics<TypeConfig>;

/// How far a member's log is known to match this leader's. `None`: it is not up.
pub(crate) fn matched(metrics: &Metrics, own: u64, id: u64) -> Option<u64> {
    if id == own {
        return metrics.last_log_index;
    }
    let heard = metrics.heartbeat.as_ref()?.get(&id).copied().flatten()?;
    let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?.index;
    (heard.elapsed() < UNREACHABLE_AFTER).then_some(matched)
}

/// Who votes, and who only learns.
pub(crate) fn members(metrics: &Metrics) -> Members {
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let all = metrics.membership_config.nodes().map(|(id, _)| *id);
    let (voters, learners): (Vec<u64>, Vec<u64>) = all.partition(|id| voters.contains(id));
    let nodes = |ids: Vec<u64>| ids.into_iter().map(node_of).collect::<BTreeSet<_>>().into_iter().collect();
    Members { voters: nodes(voters), learners: nodes(learners) }
}

/// Refuses if fewer than a majority of these voters would be up.
fn need_majority(metrics: &Metrics, own: u64, voters: &BTreeSet<u64>) -> Result<(), Fault> {
    let up = voters.iter().filter(|id| matched(metrics, own, **id).is_some()).count();
    if up * 2 > voters.len() {
        return Ok(());
    }
    let text = format!("after that only {up} of {} metaservers that vote would be up: no majority", voters.len());
    Err(Fault::new(Kind::Refused, text))
}

fn refuse<T>(kind: Kind, text: String) -> Result<T, Fault> {
    Err(Fault::new(kind, text))
}

impl Node {
    /// Carries out a change, as the leader: the metaserver it was about, and all of them then. It takes more than one step
    /// of Raft: this future should not be dropped.
    pub(crate) async fn change_members(
        &self,
        member: &Member,
        change: &MemberChange,
    ) -> Result<(NodeId, Members), Fault> {
        let Ok(_forming) = self.forming.try_lock() else {
            return refuse(Kind::Busy, "another change of the metaservers is under way".into());
        };
        let metrics = member.metrics();
        if metrics.membership_config.get_joint_config().len() > 1 {
            return refuse(Kind::Busy, "another change of the metaservers is not finished".into());
        }
        let node = match change {
            MemberChange::Add { addr } => self.add(member, &metrics, addr).await?,
            MemberChange::Promote { node } => promote(member, &metrics, *node).await.map(|()| *node)?,
            MemberChange::Remove { node } => remove(member, &metrics, *node).await.map(|()| *node)?,
        };
        Ok((node, members(&member.metrics())))
    }

    async fn add(&self, member: &Member, metrics: &Metrics, addr: &str) -> Result<NodeId, Fault> {
        let all = &metrics.membership_config;
        if let Some((id, _)) = all.nodes().find(|(_, node)| node.addr == addr) {
            return refuse(Kind::Exists, format!("{addr} is metaserver {} of this cluster already", node_of(*id)));
        }
        if all.nodes().count() >= MEMBERS_MAX {
            return refuse(Kind::Refused, format!("a group has at most {MEMBERS_MAX} metaservers"));
        }
        let caller = self.caller(addr);
        let theirs = caller.peer(PEER_TIMEOUT).await.map_err(|fault| fault.context(format!("add {addr}")))?;
        let node = NodeId(theirs.id);
        if theirs.role != Role::Metaserver || node.0 == 0 {
            return refuse(Kind::Refused, format!("{addr} is a {}, not a metaserver", theirs.role));
        }
        if let Some((_, there)) = all.nodes().find(|(id, _)| node_of(**id) == node) {
            let there = &there.addr;
            return refuse(
                Kind::Exists,
                format!("{node} is a metaserver of this cluster already, at {there}: {addr} needs another node_id"),
            );
        }
        let Identity { cluster, epoch, .. } = member.identity;
        let raft_id = returned_id(node, member.fresh_index().await?);
        let answer = caller.raft(encode(&Message::Join { cluster, epoch, raft_id })?, PEER_TIMEOUT).await;
        let Reply::Returned { raft_id, .. } = decode(&answer.map_err(|fault| fault.context(format!("add {addr}")))?)?
        else {
            return refuse(Kind::Internal, "join: an answer that does not fit".into());
        };
        let added = member.group.add_learner(raft_id, BasicNode::new(addr), false);
        in_time(async { added.await.map(|_| ()).map_err(|error| error.to_string()) }).await?;
        tracing::warn!(%node, raft_id, addr, "a metaserver was added as a learner");
        Ok(node)
    }

    /// Answers [`Message::Join`].
    pub(crate) async fn be_learner(&self, cluster: ClusterId, epoch: Epoch, raft_id: u64) -> Result<Reply, Fault> {
        let _forming = self.forming.lock().await;
        if node_of(raft_id) != self.id() {
            let text = format!("this is metaserver {}, not {}", self.id(), node_of(raft_id));
            return refuse(Kind::Refused, text);
        }
        if self.is_removed() {
            return refuse(Kind::Exists, REMOVED.into());
        }
        match self.try_member() {
            None => self.become_member(Identity::new(cluster, epoch, raft_id)).await?,
            Some(member) => {
                let is_new = member.state.applied().last.is_none() && member.is_pristine().await;
                if (member.identity.cluster, member.identity.epoch) != (cluster, epoch) || !is_new {
                    let text = format!("metaserver {} holds data already: empty its data_dir first", self.id());
                    return refuse(Kind::Exists, text);
                }
                return Ok(Reply::Returned { cluster, raft_id: member.identity.raft_id, epoch });
            }
        }
        Ok(Reply::Returned { cluster, raft_id, epoch })
    }

    /// Answers [`Message::Standing`].
    pub(crate) async fn standing(&self, raft_id: u64) -> Result<Reply, Fault> {
        let member = self.member()?;
        if !member.is_leader() {
            return Err(Fault::not_leader(member.leader()));
        }
        let Ok(_forming) = self.forming.try_lock() else {
            return refuse(Kind::Busy, "a change of the metaservers is under way".into());
        };
        member.reads.wait().await?;
        let metrics = member.metrics();
        let is_in = |members: &crate::raft::Members| members.get_node(&raft_id).is_some();
        Ok(Reply::Standing(is_in(&metrics.membership_config) || is_in(&metrics.committed_membership_config)))
    }

    /// Asks whether this member still is one; if not, it takes no part any more.
    pub(crate) async fn check_standing(&self, member: &Member) -> Result<(), Fault> {
        // One that has got nothing yet was let in a moment ago, or is about to be.
        if member.is_leader() || member.state.applied().last.is_none() {
            return Ok(());
        }
        let raft_id = member.identity.raft_id;
        let answer = self.ask_leader(&self.others(), encode(&Message::Standing { raft_id })?).await?;
        let Reply::Standing(false) = decode(&answer)? else { return Ok(()) };
        let _forming = self.forming.lock().await;
        tracing::error!(node = %self.id(), raft_id, REMOVED);
        let (disk, dir) = (self.world.disk.clone(), self.config.data_dir.clone());
        let noted = self.world.blocking(move || write_checked(&*disk, &dir, REMOVED_FILE, &raft_id.to_le_bytes()));
        noted.await.map_err(|error| Fault::new(Kind::Internal, format!("write {REMOVED_FILE}: {error}")))?;
        self.leave().await;
        Ok(())
    }
}

/// In the data directory of a metaserver that was removed: the Raft id it had.
pub(crate) const REMOVED_FILE: &str = "removed";

async fn promote(member: &Member, metrics: &Metrics, node: NodeId) -> Result<(), Fault> {
    let (own, all) = (member.identity.raft_id, &metrics.membership_config);
    let mut voters: BTreeSet<u64> = all.voter_ids().collect();
    if voters.iter().any(|id| node_of(*id) == node) {
        return Ok(());
    }
    let Some(id) = all.nodes().map(|(id, _)| *id).filter(|id| node_of(*id) == node).max() else {
        return refuse(Kind::NotFound, format!("{node} is no metaserver of this cluster: add it first"));
    };
    let Some(has) = matched(metrics, own, id) else {
        return refuse(Kind::Busy, format!("{node} does not answer, or has got nothing yet"));
    };
    let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(has);
    if behind > CAUGHT_UP_ENTRIES {
        return refuse(Kind::Busy, format!("{node} is still catching up: {behind} entries behind"));
    }
    voters.insert(id);
    need_majority(metrics, own, &voters)?;
    change(member, ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await?;
    tracing::warn!(%node, "a metaserver votes from now on");
    Ok(())
}

async fn remove(member: &Member, metrics: &Metrics, node: NodeId) -> Result<(), Fault> {
    let (own, all) = (member.identity.raft_id, &metrics.membership_config);
    let (gone, after): (BTreeSet<u64>, BTreeSet<u64>) = all.voter_ids().partition(|id| node_of(*id) == node);
    let learners: BTreeSet<u64> =
        all.nodes().map(|(id, _)| *id).filter(|id| node_of(*id) == node && !gone.contains(id)).collect();
    if gone.is_empty() && learners.is_empty() {
        return refuse(Kind::NotFound, format!("there is no metaserver {node}"));
    }
    if after.is_empty() {
        return refuse(Kind::Refused, format!("{node} is the last metaserver"));
    }
    need_majority(metrics, own, &after)?;
    if gone.contains(&own) {
        let next = after.iter().filter_map(|id| Some((matched(metrics, own, *id)?, *id))).max();
        let Some((_, next)) = next else { return refuse(Kind::Unavailable, "no other metaserver could lead".into()) };
        let asked = member.group.trigger().transfer_leader(next).await;
        asked.map_err(|error| Fault::new(Kind::Unavailable, error.to_string()))?;
        return refuse(Kind::Busy, format!("{node} leads: it hands over to {} first", node_of(next)));
    }
    if !learners.is_empty() {
        change(member, ChangeMembers::RemoveNodes(learners)).await?;
    }
    if !gone.is_empty() {
        change(member, ChangeMembers::RemoveVoters(gone)).await?;
    }
    tracing::warn!(%node, "a metaserver was removed");
    Ok(())
}

async fn change(member: &Member, what: ChangeMembers<u64, BasicNode>) -> Result<(), Fault> {
    let step = member.group.change_membership(what, false);
    in_time(async { step.await.map(|_| ()).map_err(|error| error.to_string()) }).await
}

async fn in_time(step: impl Future<Output = Result<(), String>>) -> Result<(), Fault> {
    match tokio::time::timeout(CHANGE_TIMEOUT, step).await {
        Ok(done) => done.map_err(|error| Fault::new(Kind::Unavailable, format!("change the metaservers: {error}"))),
        Err(_) => refuse(Kind::Unsure, format!("no majority within {CHANGE_TIMEOUT:?}: see `dfs admin meta list`")),
    }
}
