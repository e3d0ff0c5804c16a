//! One metaserver: what it is a member of, and how it becomes one.
//!
//! A node without an identity has promised nothing. It becomes a member in one of two ways:
//! - *Format*: the node that was asked prepares the others (each makes log, marker and identity, durably), initialises
//!   the group, and proposes the cluster's configuration.
//! - *Return*: a node whose disk was lost or replaced asks the leader. The leader gives it a Raft id that nobody ever
//!   had (its number and a log index), adds it as a learner, lets it catch up (by snapshot), and swaps it for the old
//!   member in one step. The old member's votes and acknowledgements do not count from then on; should its data turn up
//!   again, it belongs to nobody. So an empty disk never votes in the name of a full one.
//!
//! - *Restore*: see [`crate::backup`]. More or fewer metaservers than at format: see [`crate::members`].

use crate::config::Config;
use crate::identity::Identity;
use crate::leading::{Leadership, not_formatted};
use crate::namespace::{self, Command, Done};
use crate::raft::{
    Incoming, Member, Message, PROPOSE_TIMEOUT, Reply, StartError, decode, encode, node_of, returned_id,
};
use crate::space::Space;
use common::auth::{AdminKey, Secret};
use common::fault::{Fault, Kind};
use common::hello::Me;
use common::id::{ClusterId, Epoch, NodeId};
use common::proto::meta::Admin;
use common::proto::trash::{SettingsChange, UNDELETE_WINDOW_S};
use common::rpc::Caller;
use common::task::Tasks;
use common::units::REPLICAS_MAX;
use common::world::World;
use openraft::{BasicNode, ChangeMembers};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long another metaserver may take to answer while a cluster is formatted or a node returns.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the new group may take to elect its first leader.
const FIRST_LEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two looks at who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// What a metaserver says that was removed.
pub(crate) const REMOVED: &str = "this metaserver was removed from its cluster: empty its data_dir to use it again";

/// See the module.
pub(crate) struct Node {
    /// How it is configured.
    pub(crate) config: Config,
    /// Where others reach it.
    pub(crate) addr: String,
    /// The outside world.
    pub(crate) world: World,
    /// Owns every task.
    pub(crate) tasks: Tasks,
    /// How it introduces itself.
    pub(crate) me: Me,
    /// Signs administrators' orders; `None`: nobody checks.
    pub(crate) admin_key: Option<AdminKey>,
    /// What it knows while it leads.
    pub(crate) leadership: Leadership,
    /// Room on the disks.
    pub(crate) space: Space,
    member: RwLock<Option<Member>>,
    /// Held while it becomes a member or changes the group.
    pub(crate) forming: tokio::sync::Mutex<()>,
    /// A restore under way.
    pub(crate) incoming: tokio::sync::Mutex<Option<Incoming>>,
    /// The restore that made it a member, in this process; 0: none.
    restored: AtomicU64,
    /// It was a member, and is not to be one any more.
    removed: AtomicBool,
    stopping: AtomicBool,
    /// Why it cannot go on.
    failure: watch::Sender<Option<String>>,
}

impl Node {
    /// A node that is no member yet.
    pub(crate) fn new(
        config: Config,
        addr: String,
        world: World,
        tasks: Tasks,
        me: Me,
        admin_key: Option<AdminKey>,
    ) -> Node {
        let (leadership, space, member, forming, stopping) = Default::default();
        let (incoming, restored, removed) = Default::default();
        let failure = watch::Sender::new(None);
        Node {
            config,
            addr,
            world,
            tasks,
            me,
            admin_key,
            leadership,
            space,
            member,
            forming,
            incoming,
            restored,
            removed,
            stopping,
            failure,
        }
    }

    /// True if it was removed from its cluster.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// It was removed from its cluster: takes no part from now on.
    pub(crate) async fn leave(&self) {
        self.removed.store(true, Ordering::Relaxed);
        let member = self.member.write().expect("no panic holds this lock").take();
        if let Some(member) = member
            && let Err(error) = member.group.shutdown().await
        {
            tracing::warn!(%error, "stop taking part");
        }
    }

    /// True if this restore made it a member, in this process.
    pub(crate) fn was_restored(&self, restore: u64) -> bool {
        self.restored.load(Ordering::Relaxed) == restore
    }

    /// See [`Node::was_restored`].
    pub(crate) fn note_restored(&self, restore: u64) {
        self.restored.store(restore, Ordering::Relaxed);
    }

    /// Addresses of the other metaservers: as configured, and as the group says.
    pub(crate) fn others(&self) -> Vec<String> {
        let mut all = self.config.others();
        if let Some(member) = self.try_member() {
            let own = member.identity.raft_id;
            let members = member.metrics().membership_config;
            let known = members.nodes().filter(|(id, _)| **id != own).map(|(_, node)| node.addr.clone());
            all.extend(
                known.collect::<BTreeSet<String>>().into_iter().filter(|addr| !self.config.others().contains(addr)),
            );
        }
        all
    }

    /// It cannot go on: the process is to end. Only the first reason counts.
    pub(crate) fn failed(&self, why: &str) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| why.to_owned());
            first
        });
        if first {
            tracing::error!(error = why, "this metaserver stops");
        }
    }

    /// Waits until it cannot go on.
    pub(crate) async fn failure(&self) -> String {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Its number.
    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.config.node_id)
    }

    /// What it is a member of.
    ///
    /// # Errors
    /// `Unavailable`: nothing yet.
    pub(crate) fn member(&self) -> Result<Member, Fault> {
        match self.try_member() {
            Some(member) => Ok(member),
            None if self.stopping.load(Ordering::Relaxed) => Err(Fault::new(Kind::Busy, "this metaserver is stopping")),
            None if self.is_removed() => Err(Fault::new(Kind::Unavailable, REMOVED)),
            None => Err(not_formatted()),
        }
    }

    /// What it is a member of, if anything.
    pub(crate) fn try_member(&self) -> Option<Member> {
        self.member.read().expect("no panic holds this lock").clone()
    }

    /// Gives up its membership's handles, for shutdown.
    pub(crate) fn take_member(&self) -> Option<Member> {
        self.stopping.store(true, Ordering::Relaxed);
        self.member.write().expect("no panic holds this lock").take()
    }

    /// Opens what the identity says and joins the group.
    pub(crate) async fn join(&self, identity: Identity) -> Result<(), StartError> {
        self.me.set_cluster(identity.cluster, identity.epoch);
        let member = Member::open(&self.world, &self.tasks, &self.me, &self.config, identity).await?;
        *self.member.write().expect("no panic holds this lock") = Some(member);
        Ok(())
    }

    /// Makes the files of a member, durably, and joins.
    pub(crate) async fn become_member(&self, identity: Identity) -> Result<(), Fault> {
        let (world, config) = (self.world.clone(), self.config.clone());
        let made = self.world.blocking(move || Member::create(&world, &config, identity, None)).await;
        let failed = |error: StartError| Fault::new(Kind::Internal, error.to_string());
        made.map_err(failed)?;
        tracing::info!(cluster = %identity.cluster, raft_id = identity.raft_id, "this node is a member now");
        self.join(identity).await.map_err(failed)
    }

    /// Answers [`Message::Prepare`].
    pub(crate) async fn prepare(&self, cluster: ClusterId, node: NodeId) -> Result<Reply, Fault> {
        let _forming = self.forming.lock().await;
        if node != self.id() {
            let text = format!("this is metaserver {}, not {node}: check node_id and the addresses", self.id());
            return Err(Fault::new(Kind::Refused, text));
        }
        match self.try_member() {
            Some(member) if member.identity.cluster == cluster => Ok(Reply::Done),
            Some(member) => {
                let text = format!("metaserver {node} holds data of cluster {}", member.identity.cluster);
                Err(Fault::new(Kind::Exists, text))
            }
            None => self.become_member(Identity::new(cluster, Epoch::FIRST, node.0)).await.map(|()| Reply::Done),
        }
    }

    /// Answers [`Admin::Format`]. Asked again after it failed half-way, it goes on.
    pub(crate) async fn format(&self, request: &Admin) -> Result<(), Fault> {
        let Admin::Format { cluster, metaservers, .. } = request else {
            return Err(Fault::new(Kind::Internal, "format: another request"));
        };
        let nodes = self.check_format(request)?;
        let _forming = self.forming.lock().await;
        if let Some(member) = self.try_member() {
            self.refuse_formatted(&member)?;
        }
        let others: Vec<&(NodeId, String)> = metaservers.iter().filter(|(node, _)| *node != self.id()).collect();
        let own = self.try_member().map(|member| member.identity.cluster);
        for (node, addr) in &others {
            let reached = self.caller(addr).peer(PEER_TIMEOUT).await;
            let peer =
                reached.map_err(|fault| fault.context(format!("format needs every metaserver: {node} at {addr}")))?;
            refuse_other_data(own, *node, peer.cluster)?;
        }
        if self.try_member().is_none() {
            self.become_member(Identity::new(*cluster, Epoch::FIRST, self.id().0)).await?;
        }
        let member = self.member()?;
        let cluster = member.identity.cluster; // of the first attempt
        for (node, addr) in others {
            let prepare = encode(&Message::Prepare { cluster, node: *node })?;
            let answer = self.caller(addr).raft(prepare, PEER_TIMEOUT).await;
            answer.map_err(|fault| fault.context(format!("prepare metaserver {node} at {addr}")))?;
        }
        let internal = |error: &dyn std::fmt::Display| Fault::new(Kind::Internal, format!("form the group: {error}"));
        if !member.group.is_initialized().await.map_err(|e| internal(&e))? {
            member.group.initialize(nodes).await.map_err(|e| internal(&e))?;
        }
        self.propose_format(&member, cluster, request).await
    }

    /// The group formats itself: once, by its first leader.
    async fn propose_format(&self, member: &Member, cluster: ClusterId, request: &Admin) -> Result<(), Fault> {
        let Admin::Format { metaservers, pg_count, replicas, min_replicas, .. } = request else {
            return Err(Fault::new(Kind::Internal, "format: another request"));
        };
        let mut secret = Secret([0; 32]);
        for part in secret.0.chunks_mut(8) {
            part.copy_from_slice(&self.world.random_u64().to_le_bytes());
        }
        let command = Command::Format {
            cluster,
            secret,
            pg_count: *pg_count,
            replicas: *replicas,
            min_replicas: *min_replicas,
            metaservers: metaservers.clone(),
            at: self.world.now(),
        };
        let end = Instant::now() + FIRST_LEADER_TIMEOUT;
        loop {
            match member.propose(&command).await {
                Ok(Done::Formatted) => {
                    // By a command of its own: logs of older clusters mean what they meant.
                    let undelete_window_s = Some(UNDELETE_WINDOW_S);
                    let keep = Command::Change(SettingsChange { undelete_window_s, ..SettingsChange::default() });
                    if let Err(fault) = member.propose(&keep).await {
                        tracing::warn!(error = %fault, "nothing that is removed is kept: set undelete_window_s");
                    }
                    return Ok(());
                }
                Ok(other) => return Err(Fault::new(Kind::Internal, format!("format: answered {other:?}"))),
                Err(fault) if fault.kind == Kind::NotLeader && Instant::now() < end => {
                    match fault.leader {
                        Some(addr) if addr != self.addr => {
                            // Another one won the first election: it goes on from here.
                            let limit = end.saturating_duration_since(Instant::now());
                            return self.caller(&addr).admin_once(request, limit).await.map(|_| ());
                        }
                        _ => tokio::time::sleep(LEADER_POLL).await,
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The members a format makes.
    fn check_format(&self, request: &Admin) -> Result<BTreeMap<u64, BasicNode>, Fault> {
        let Admin::Format { metaservers, pg_count, replicas, min_replicas, cluster } = request else {
            return Err(Fault::new(Kind::Internal, "format: another request"));
        };
        let invalid = |text: String| Err(Fault::new(Kind::Invalid, text));
        let nodes: BTreeMap<u64, BasicNode> =
            metaservers.iter().map(|(node, addr)| (node.0, BasicNode::new(addr))).collect();
        let addrs: BTreeSet<&String> = metaservers.iter().map(|(_, addr)| addr).collect();
        if !matches!(nodes.len(), 1 | 3 | 5) || nodes.len() != metaservers.len() || addrs.len() != nodes.len() {
            return invalid(format!("{} metaservers: must be 1, 3 or 5 different ones", metaservers.len()));
        }
        if !nodes.contains_key(&self.id().0) || nodes.keys().any(|node| node_of(*node).0 != *node || *node == 0) {
            return invalid(format!("the list of metaservers has impossible numbers or lacks {}", self.id()));
        }
        if !pg_count.is_power_of_two() || !(16..=65_536).contains(pg_count) {
            return invalid(format!("pg_count {pg_count}: must be a power of two from 16 to 65536"));
        }
        if *replicas == 0 || *replicas > REPLICAS_MAX || *min_replicas == 0 || min_replicas > replicas {
            return invalid(format!("replicas {replicas}, min_replicas {min_replicas}: 1 to {REPLICAS_MAX}, in order"));
        }
        if cluster.0 == 0 {
            return invalid("the cluster id must not be zero".into());
        }
        Ok(nodes)
    }

    fn refuse_formatted(&self, member: &Member) -> Result<(), Fault> {
        let mounted = member.state.mounted();
        let config = namespace::config(mounted.kv()).map_err(|e| Fault::new(Kind::Internal, e.to_string()))?;
        match config {
            Some(config) => Err(Fault::new(Kind::Exists, format!("already formatted: cluster {}", config.cluster))),
            None => Ok(()),
        }
    }

    pub(crate) fn caller(&self, addr: &str) -> Caller {
        Caller::new(&self.world, &self.tasks, &self.me, &[addr.to_owned()])
    }

    /// Asks the other metaservers to take this node back, if it has no data and they are a formatted cluster.
    pub(crate) async fn try_return(&self) -> Result<(), Fault> {
        let ask = encode(&Message::Return { node: self.id(), addr: self.addr.clone() })?;
        let others = self.config.others();
        if others.is_empty() {
            return Ok(());
        }
        let answer = self.ask_leader(&others, ask).await?;
        let Reply::Returned { cluster, raft_id, epoch } = decode(&answer)? else {
            return Err(Fault::new(Kind::Internal, "return: an answer that does not fit"));
        };
        let _forming = self.forming.lock().await;
        if self.try_member().is_none() {
            tracing::warn!(%cluster, raft_id, "no data here, but the cluster knows this node: it comes back as a new member");
            self.become_member(Identity::new(cluster, epoch, raft_id)).await?;
        }
        Ok(())
    }

    /// Tells the leader that this returned node is ready, until it is a voter.
    pub(crate) async fn try_enter(&self, member: &Member) -> Result<(), Fault> {
        let raft_id = member.identity.raft_id;
        let enter = encode(&Message::Enter { raft_id, addr: self.addr.clone() })?;
        self.ask_leader(&self.others(), enter).await.map(|_| ())
    }

    pub(crate) async fn ask_leader(&self, addrs: &[String], message: bytes::Bytes) -> Result<bytes::Bytes, Fault> {
        let mut last = Fault::new(Kind::Unavailable, "no other metaserver is configured");
        for addr in addrs {
            match self.caller(addr).raft(message.clone(), PEER_TIMEOUT).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => match fault.leader.clone().filter(|leader| leader != addr) {
                    Some(leader) => return self.caller(&leader).raft(message, PEER_TIMEOUT).await,
                    None => last = fault,
                },
            }
        }
        Err(last)
    }

    /// Answers [`Message::Return`]: the leader gives the node a new Raft id.
    pub(crate) async fn take_back(&self, node: NodeId, addr: &str) -> Result<Reply, Fault> {
        let member = self.member()?;
        let members = member.metrics().membership_config;
        if !member.is_leader() {
            return Err(Fault::not_leader(member.leader()));
        }
        if !members.voter_ids().any(|id| node_of(id) == node) {
            let text = format!("metaserver {node} at {addr} does not vote in this cluster: `dfs admin meta add`");
            return Err(Fault::new(Kind::Refused, text));
        }
        let index = member.fresh_index().await?;
        tracing::warn!(%node, addr, index, "a metaserver came back without data: it gets a new Raft id");
        let Identity { cluster, epoch, .. } = member.identity;
        Ok(Reply::Returned { cluster, raft_id: returned_id(node, index), epoch })
    }

    /// Answers [`Message::Enter`]: adds the member as a learner, and once it has caught up swaps it for the old one. That
    /// takes two steps, of which this future makes the second: it should not be dropped (see [`Node::end_change`]).
    pub(crate) async fn let_in(&self, raft_id: u64, addr: &str) -> Result<Reply, Fault> {
        let member = self.member()?;
        if !member.is_leader() {
            return Err(Fault::not_leader(member.leader()));
        }
        let Ok(_forming) = self.forming.try_lock() else {
            return Err(Fault::new(Kind::Busy, "another change of the members is under way"));
        };
        let members = member.metrics().membership_config;
        let voters: BTreeSet<u64> = members.voter_ids().collect();
        if members.get_joint_config().len() > 1 {
            return Err(Fault::new(Kind::Busy, "another change of the members is not finished"));
        }
        if voters.contains(&raft_id) {
            return Ok(Reply::Done);
        }
        let node = node_of(raft_id);
        let newest = voters.iter().filter(|id| node_of(**id) == node).max();
        if newest.is_none() && members.get_node(&raft_id).is_some() {
            return Err(Fault::new(Kind::Busy, format!("{node} learns until `dfs admin meta promote {}`", node.0)));
        }
        if newest.is_none_or(|newest| *newest > raft_id) {
            return Err(Fault::new(Kind::Refused, format!("metaserver {node} came back once more since")));
        }
        let failed = |error: &dyn std::fmt::Display| Fault::new(Kind::Unavailable, format!("change members: {error}"));
        if members.get_node(&raft_id).is_none() {
            // Learners of the same node that never came this far go in the same step as the old voter.
            let new = BasicNode::new(addr);
            member.group.add_learner(raft_id, new, false).await.map_err(|e| failed(&e))?;
        }
        let caught_up = |metrics: openraft::RaftMetrics<crate::raft::TypeConfig>| {
            let matched = metrics.replication.as_ref()?.get(&raft_id)?.as_ref()?.index;
            (matched + CAUGHT_UP_ENTRIES >= metrics.last_log_index?).then_some(())
        };
        let metrics = member.metrics();
        if caught_up(metrics).is_none() {
            return Err(Fault::new(Kind::Busy, "the new member is still catching up"));
        }
        let old: BTreeSet<u64> =
            members.nodes().map(|(id, _)| *id).filter(|id| node_of(*id) == node && *id != raft_id).collect();
        let voters_after: BTreeSet<u64> =
            voters.iter().copied().filter(|id| !old.contains(id)).chain([raft_id]).collect();
        let change = ChangeMembers::ReplaceAllVoters(voters_after);
        let change = member.group.change_membership(change, false);
        change.await.map_err(|e| failed(&e))?;
        tracing::warn!(%node, raft_id, "a metaserver that came back is a voter again");
        Ok(Reply::Done)
    }

    /// Ends a change of the members that stopped between its two steps because its leader did. Until then every
    /// decision needs a majority of the old members and one of the new, so a member that is gone for good still counts.
    pub(crate) async fn end_change(&self, member: &Member) -> Result<(), Fault> {
        let is_joint = member.metrics().membership_config.get_joint_config().len() > 1;
        let Some(_forming) = self.forming.try_lock().ok().filter(|_| is_joint) else {
            return Ok(()); // none is under way, or this very node makes it
        };
        // openraft's own second step. It refuses while the first is not committed.
        let step = member.group.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false);
        let failed = |text: String| Fault::new(Kind::Unavailable, format!("end a change of the members: {text}"));
        match tokio::time::timeout(PROPOSE_TIMEOUT, step).await {
            Ok(done) => done.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("no majority within {PROPOSE_TIMEOUT:?}"))),
        };
        tracing::warn!("a change of the members that an earlier leader began is complete");
        Ok(())
    }
}

/// Refuses to form a cluster with a metaserver that has data of another one than `own`, what an attempt to format before
/// began. A node that lost its disk must not begin a cluster of its own: its cluster takes it back.
fn refuse_other_data(own: Option<ClusterId>, node: NodeId, its: ClusterId) -> Result<(), Fault> {
    if its.0 == 0 || own == Some(its) {
        return Ok(());
    }
    let text = format!(
        "metaserver {node} holds data of cluster {its}: nothing was formatted. If this one has lost its disk, leave it \
         running: it joins again by itself. If format was tried before, ask metaserver {node} to go on with it"
    );
    Err(Fault::new(Kind::Exists, text))
}

/// A learner this close behind the log's end becomes a voter.
pub(crate) const CAUGHT_UP_ENTRIES: u64 = 1000;

/// True if this member is not a voter of the group it knows.
pub(crate) fn is_outside(member: &Member) -> bool {
    !member.metrics().membership_config.voter_ids().any(|id| id == member.identity.raft_id)
}

/// A node as a handler has it.
pub(crate) type Shared = Arc<Node>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Server;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A group of three, formatted, and its leader.
    async fn group(dir: &std::path::Path) -> (Vec<Server>, Member) {
        let mut ports = std::collections::BTreeSet::new();
        while ports.len() < 3 {
            ports.insert(common::net::free_port(&ports, || World::real().random_u64()).unwrap());
        }
        let addrs = ports.into_iter().map(|port| format!("127.0.0.1:{port}"));
        let all: Vec<(u64, String)> = (1..).zip(addrs).collect();
        let mut servers = Vec::new();
        for (node_id, listen) in all.clone() {
            let data_dir = dir.join(node_id.to_string());
            let metaservers = all.iter().map(|(node, addr)| (node.to_string(), addr.clone())).collect();
            let config =
                Config { node_id, listen, data_dir, metaservers, cache_mib: 16, memtable_mib: 8, ..Config::default() };
            servers.push(crate::start(config, World::real()).await.unwrap());
        }
        let metaservers = all.into_iter().map(|(node, addr)| (NodeId(node), addr)).collect();
        let (cluster, pg_count, replicas, min_replicas) = (ClusterId(9), 16, 3, 2);
        let format = Admin::Format { cluster, metaservers, pg_count, replicas, min_replicas };
        servers[0].node.format(&format).await.unwrap();
        let leader = servers.iter().map(|server| server.node.member().unwrap()).find(Member::is_leader).unwrap();
        (servers, leader)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_of_the_members_that_stopped_half_way_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (servers, leader) = group(dir.path()).await;
        let own = leader.identity.raft_id;
        let kept = BTreeSet::from([own, own % 3 + 1]);
        // Whoever makes the change is gone when the first step is in the log.
        let change = leader.group.change_membership(ChangeMembers::ReplaceAllVoters(kept.clone()), false);
        let is_joint = |metrics: &openraft::RaftMetrics<_>| metrics.membership_config.get_joint_config().len() > 1;
        let wait = leader.group.wait(Some(LIMIT));
        tokio::select! {
            biased;
            joint = wait.metrics(is_joint, "the first step") => drop(joint.unwrap()),
            done = change => panic!("both steps were made: {done:?}"),
        }
        for server in &servers {
            let member = server.node.member().unwrap();
            if kept.contains(&member.identity.raft_id) {
                let is_over = |metrics: &openraft::RaftMetrics<_>| {
                    *metrics.committed_membership_config.get_joint_config() == [kept.clone()]
                };
                member.group.wait(Some(LIMIT)).metrics(is_over, "the second step").await.unwrap();
            }
        }
        for server in servers {
            server.shutdown().await;
        }
    }
}
