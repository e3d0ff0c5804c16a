//! What administrators order: is it theirs to order, and who carries it out.

use crate::backup::Backups;
use crate::fsck::Jobs;
use crate::leading::Leading;
use crate::leases::NOBODY;
use crate::movers;
use crate::namespace::{self, Command, Done, PlanChange};
use crate::node::Shared;
use crate::raft::{Member, node_of};
use crate::store::keys::DEGRADED;
use crate::store::values::{Degraded, Value};
use common::auth::AdminKey;
use common::fault::{Fault, Kind};
use common::hello::{Peer, Role};
use common::id::{ChunkId, NodeId, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::Layout;
use common::proto::admin::{EVENTS_PER_ANSWER, ORDER_AGE_MAX_S, Order, Ordered, Signed};
use common::proto::backup::{BackupAnswer, BackupAsk, MemberChange};
use common::proto::keep::KeepReport;
use common::proto::rebalance::RebalanceOrder;
use common::proto::squash::SquashAsk;
use common::proto::trash::SettingsChange;
use common::time::Time;
use common::units::{len_u64, len_usize};
use common::wire::Pool;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The longest name of who ordered something, in bytes.
const BY_LEN_MAX: usize = 255;

/// Chunks that are named when a server cannot be removed, at most.
const LAST_COPIES_MAX: usize = 20;
/// Files that are named for each of them, at most.
const PATHS_MAX: usize = 4;

/// See the module.
pub(crate) struct Orders {
    node: Shared,
    pool: Pool,
    jobs: Jobs,
    backups: Arc<Backups>,
}

impl Orders {
    /// For this node; asks chunkservers through this pool.
    pub(crate) fn new(node: Shared, pool: Pool) -> Orders {
        Orders { node, pool, jobs: Jobs::default(), backups: Arc::default() }
    }

    /// Refuses what no administrator signed.
    pub(crate) fn check(&self, peer: &Peer, signed: &Signed) -> Result<(), Fault> {
        peer.require(&[Role::Admin], "this order")?;
        check(self.node.admin_key.as_ref(), signed, self.node.world.now().secs)
    }

    async fn root_squash(
        &self,
        (member, leading): (&Member, &Leading),
        by: String,
        ask: SquashAsk,
    ) -> Result<Ordered, Fault> {
        if let SquashAsk::Set(squash) = ask {
            let what = match &squash {
                None => "root squash off".to_owned(),
                Some(s) => format!("root squash on: {}:{}, not on {:?}", s.uid, s.gid, s.allowed),
            };
            // Who decides for root under write leases decides as before: nobody does from here on.
            let _changing = leading.leases.change_all().await;
            self.note(member, by, what, Some(Command::SetSquash(squash))).await?;
            leading.leases.no_claims();
        }
        member.reads.wait().await?;
        let now = namespace::squash(member.state.mounted().kv());
        Ok(Ordered::RootSquash(now.map_err(|error| Fault::new(Kind::Internal, error.to_string()))?))
    }

    async fn change(
        &self,
        member: &Member,
        leading: &Leading,
        by: String,
        change: SettingsChange,
    ) -> Result<Ordered, Fault> {
        change.check().map_err(|text| Fault::new(Kind::Invalid, text))?;
        let what = format!("settings: {}", change.words().join(", "));
        self.note(member, by, what, Some(Command::Change(change))).await?;
        leading.servers.rows_changed(false);
        Ok(Ordered::Done)
    }

    /// Carries an order out, as the leader.
    pub(crate) async fn carry_out(
        &self,
        member: Member,
        leading: Arc<Leading>,
        signed: Signed,
    ) -> Result<Ordered, Fault> {
        let Signed { order, by, .. } = signed;
        match order {
            Order::Fsck(ask) => {
                let job = self.jobs.start(&self.node, (member, leading), self.pool.clone(), (ask, by))?;
                Ok(Ordered::FsckStarted { job })
            }
            Order::FsckLook { job, after } => Ok(Ordered::Fsck(self.jobs.look(job, after)?)),
            Order::Keep(_) | Order::Restore(_) => {
                Err(Fault::new(Kind::Internal, "this order is carried out elsewhere"))
            }
            Order::Backup(ask) => {
                let begins = ask == BackupAsk::Begin;
                let answer = self.backups.step(&self.node, &member, ask).await?;
                if let (true, BackupAnswer::Begun { head, .. }) = (begins, &answer) {
                    self.note(&member, by, format!("backup of the metadata at index {}", head.index.0), None).await?;
                }
                Ok(Ordered::Backup(answer))
            }
            Order::Settings { keep, min_replicas } => {
                let change = SettingsChange { keep, min_replicas, ..SettingsChange::default() };
                self.change(&member, &leading, by, change).await
            }
            Order::Change(change) => self.change(&member, &leading, by, change).await,
            Order::EmptyTrash => {
                let command = Command::EmptyTrash { at: self.node.world.now() };
                self.note(&member, by, "the trash emptied".to_owned(), Some(command)).await.map(|_| Ordered::Done)
            }
            Order::Members(change) => self.change_members(member, by, change).await,
            Order::Release => {
                let command = Command::Release { epoch: leading.ctx.epoch };
                let what = "deletion goes on after the restore, unchecked".to_owned();
                self.note(&member, by, what, Some(command)).await.map(|_| Ordered::Done)
            }
            Order::SetWeight { server, weight } => {
                let what = format!("weight of chunkserver {server}: {weight}");
                self.note(&member, by, what, Some(Command::SetServerWeight { server, weight })).await?;
                leading.servers.rows_changed(true); // the layout follows
                Ok(Ordered::Done)
            }
            Order::RemoveServer { server } => {
                self.refuse_needed(&member, &leading, server).await?;
                let what = format!("chunkserver {server} removed");
                self.note(&member, by, what, Some(Command::RemoveServer { server })).await?;
                leading.servers.rows_changed(true);
                Ok(Ordered::Done)
            }
            Order::TransferLeader { to } => self.transfer(&member, by, to).await,
            Order::Events { limit } => {
                member.reads.wait().await?;
                let limit = len_usize(limit.min(EVENTS_PER_ANSWER).into());
                let events = namespace::events(member.state.mounted().kv(), limit);
                Ok(Ordered::Events(events.map_err(|error| Fault::new(Kind::Internal, error.to_string()))?))
            }
            Order::Rebalance(order) => self.rebalance(&member, &leading, by, order).await,
            Order::Away { server, until } => self.away(&member, by, server, until).await,
            Order::RootSquash(ask) => self.root_squash((&member, &leading), by, ask).await,
            Order::Chunks { path } => {
                leading.leases.look(NOBODY, None).await;
                member.reads.wait().await?;
                let state = member.state.clone();
                let read = move || crate::fsck::chunks_of(&*state.mounted().kv().snapshot(), &path);
                Ok(Ordered::Chunks(self.node.world.blocking(read).await?))
            }
        }
    }

    /// A chunkserver is announced to be away, or no more.
    async fn away(&self, member: &Member, by: String, server: ServerId, until: Option<Time>) -> Result<Ordered, Fault> {
        let what = match until {
            Some(until) => format!("chunkserver {server} may be away until {} s after 1970", until.secs),
            None => format!("chunkserver {server} is not announced to be away any more"),
        };
        self.note(member, by, what, Some(Command::Away { server, until })).await.map(|_| Ordered::Done)
    }

    /// Starts, stops or changes the plan to move placement groups.
    async fn rebalance(
        &self,
        member: &Member,
        leading: &Leading,
        by: String,
        order: RebalanceOrder,
    ) -> Result<Ordered, Fault> {
        let (what, change) = match order {
            RebalanceOrder::Start { rate } => {
                let planned = movers::planned(&self.node, member, &leading.servers, Vec::new(), rate).await?;
                if let Some(text) = crate::rebalance::obstacle(&planned.plan) {
                    return Err(Fault::new(Kind::Refused, text));
                }
                let (groups, bytes) = (planned.plan.groups, planned.plan.bytes);
                let what = format!("rebalance: {groups} groups, {bytes} bytes");
                (what, movers::start(planned, rate, false))
            }
            RebalanceOrder::Pause => ("rebalance paused".to_owned(), PlanChange::Pause),
            RebalanceOrder::Resume => ("rebalance resumed".to_owned(), PlanChange::Resume),
            RebalanceOrder::Cancel => ("rebalance cancelled".to_owned(), PlanChange::Cancel),
            RebalanceOrder::Rate(rate) => {
                let rate_text = rate.map_or_else(|| "none".to_owned(), |rate| format!("{rate} bytes/s"));
                (format!("rebalance: limit {rate_text}"), PlanChange::Rate(rate))
            }
        };
        let at = self.node.world.now();
        self.note(member, by, what, Some(Command::Rebalance { change, at })).await?;
        Ok(Ordered::Done)
    }

    /// Proposes what was ordered, with a note of it.
    async fn note(&self, member: &Member, by: String, what: String, command: Option<Command>) -> Result<Done, Fault> {
        tracing::info!(by, what, "an administrator ordered");
        let (at, command) = (self.node.world.now(), command.map(Box::new));
        member.propose(&Command::Ordered { by, what, at, command }).await
    }

    /// Whether or not somebody still waits for it, a change of the metaservers that was begun is ended.
    async fn change_members(&self, member: Member, by: String, change: MemberChange) -> Result<Ordered, Fault> {
        let (node, own, asked) = (self.node.clone(), member.clone(), change.clone());
        let (done, answer) = oneshot::channel();
        self.node.tasks.spawn_until_stop(async move {
            let _ = done.send(node.change_members(&own, &asked).await); // the caller gave up
        });
        let stopping = |_| Fault::new(Kind::Unsure, "this metaserver is stopping");
        let (node, members) = answer.await.map_err(stopping)??;
        let what = match &change {
            MemberChange::Add { addr } => format!("metaserver {node} at {addr} added"),
            MemberChange::Promote { .. } => format!("metaserver {node} votes"),
            MemberChange::Remove { .. } => format!("metaserver {node} removed"),
        };
        self.note(&member, by, what, None).await?;
        Ok(Ordered::Members { node, members })
    }

    /// Another voter that keeps up shall lead.
    async fn transfer(&self, member: &Member, by: String, to: NodeId) -> Result<Ordered, Fault> {
        let metrics = member.metrics();
        let voter = metrics.membership_config.voter_ids().find(|id| node_of(*id) == to);
        let Some(voter) = voter else {
            return Err(Fault::new(Kind::NotFound, format!("{to} is no metaserver that votes")));
        };
        if voter == member.identity.raft_id {
            return Ok(Ordered::Done);
        }
        self.note(member, by, format!("metaserver {to} shall lead"), None).await?;
        let asked = member.group.trigger().transfer_leader(voter).await;
        asked.map_err(|error| Fault::new(Kind::Unavailable, error.to_string()))?;
        Ok(Ordered::Done)
    }

    /// Refuses if a server may hold what nobody else does.
    async fn refuse_needed(&self, member: &Member, leading: &Leading, server: ServerId) -> Result<(), Fault> {
        member.reads.wait().await?;
        let internal = |error: KvError| Fault::new(Kind::Internal, error.to_string());
        let state = member.state.clone();
        let read = move || {
            let mounted = state.mounted();
            let view = mounted.kv().snapshot();
            Ok((namespace::cluster_map(&*view)?, last_copies(&*view, server)?))
        };
        let (map, last) = self.node.world.blocking(read).await.map_err(internal)?;
        let map = map.ok_or_else(crate::leading::not_formatted)?;
        if !map.servers.contains_key(&server) {
            return Err(Fault::new(Kind::NotFound, format!("there is no chunkserver {server}")));
        }
        let refuse = |text: String| Err(Fault::new(Kind::Refused, text));
        if let Some(text) = last {
            return refuse(format!("{server} holds the last copies of {text}"));
        }
        let all = leading.servers.status(&map);
        let up: Vec<ServerId> = all.iter().filter(|status| status.up).map(|status| status.server).collect();
        let behind = behind(&map.layout, &up, &leading.keep.reports());
        let status = all.into_iter().find(|status| status.server == server);
        let degraded = namespace::counters(member.state.mounted().kv()).map_err(internal)?.degraded;
        match status {
            Some(status) if status.up && status.chunks > 0 => refuse(format!(
                "{server} still holds {} chunks: `dfs admin server drain {}` first, and wait until it is empty",
                status.chunks, server.0
            )),
            Some(status) if !status.up && degraded > 0 => refuse(format!(
                "{server} is down and {degraded} chunks have too few copies: wait until repair is through"
            )),
            Some(status) if !status.up && !behind.is_empty() => {
                let names: Vec<String> = behind.iter().map(ServerId::to_string).collect();
                refuse(format!(
                    "{server} is down, and these have not said yet that they have all they should: {}; wait until \
                     repair is through",
                    names.join(" ")
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Of these servers, those with a place in the layout that have not said that they have all that belongs on them. Pure.
fn behind(layout: &Layout, servers: &[ServerId], reports: &[(ServerId, u64, KeepReport)]) -> Vec<ServerId> {
    let has_all = |server: &ServerId| {
        let its = reports.iter().find(|(id, ..)| id == server);
        its.is_some_and(|(_, _, its)| its.compared == layout.version && its.missing + its.unavailable == 0)
    };
    let has_place = |server: &ServerId| layout.groups.iter().any(|group| group.contains(server));
    servers.iter().filter(|server| has_place(server) && !has_all(server)).copied().collect()
}

/// Chunks that only this server is known to hold: how many, and the first ones with the files that they are in, a line
/// each. `None`: there are none.
fn last_copies(read: &dyn KvRead, server: ServerId) -> Result<Option<String>, KvError> {
    let (mut first, mut count) = (BTreeSet::new(), 0_u64);
    for found in read.scan(DEGRADED, (Bound::Unbounded, Bound::Unbounded), false) {
        let (key, value) = found?;
        if Degraded::decode(&value)?.servers != [server] {
            continue;
        }
        count += 1;
        if first.len() < LAST_COPIES_MAX {
            first.extend(key.last_chunk::<32>().map(|id| ChunkId(*id)));
        }
    }
    if count == 0 {
        return Ok(None);
    }
    let ranges = crate::fsck::ranges_of(read, &first)?;
    let mut text = format!("{count} chunks, of these files:");
    for id in first {
        let files = ranges.get(&id).map(Vec::as_slice).unwrap_or_default();
        let paths: BTreeSet<_> = files.iter().map(|file| String::from_utf8_lossy(&file.path)).collect();
        let paths: Vec<_> = paths.into_iter().take(PATHS_MAX).collect();
        text.push_str(&format!("\n  {} {}", id.hex(), paths.join(" ")));
    }
    if count > len_u64(LAST_COPIES_MAX) {
        text.push_str(&format!("\n  and {} more chunks", count - len_u64(LAST_COPIES_MAX)));
    }
    Ok(Some(text))
}

/// True to the key, if there is one, and not too old.
fn check(key: Option<&AdminKey>, signed: &Signed, now: i64) -> Result<(), Fault> {
    if signed.by.len() > BY_LEN_MAX {
        return Err(Fault::new(Kind::Invalid, "the name of who orders this is too long"));
    }
    let Some(key) = key else { return Ok(()) };
    if !key.has_signed(signed) {
        let text = "this order is not signed with the administrator's key: set admin_key_file in the client's \
                    configuration, or DFS_ADMIN_KEY_FILE, to a copy of the metaservers'";
        return Err(Fault::new(Kind::Refused, text));
    }
    if now.abs_diff(signed.at.secs) > ORDER_AGE_MAX_S.unsigned_abs() {
        let text = format!("this order was signed {} s from now: set the clocks right", signed.at.secs - now);
        return Err(Fault::new(Kind::Refused, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::LayoutVersion;
    use common::layout::{Candidate, Domain};

    #[test]
    fn only_fresh_orders_with_the_right_key_are_taken() {
        let key = |text| AdminKey::from_text(text).unwrap();
        let (ours, theirs) = (key("the key of this cluster"), key("the key of another one"));
        let signed = |key: &AdminKey| {
            key.sign(Order::FsckLook { job: 1, after: 0 }, Time { secs: 1000, nanos: 0 }, "root@host".into())
        };
        assert_eq!(check(Some(&ours), &signed(&ours), 1000), Ok(()));
        assert_eq!(check(Some(&ours), &signed(&ours), 1000 + ORDER_AGE_MAX_S), Ok(()));
        for (signed, now) in
            [(signed(&theirs), 1000), (signed(&ours), 1001 + ORDER_AGE_MAX_S), (signed(&ours), 999 - ORDER_AGE_MAX_S)]
        {
            assert_eq!(check(Some(&ours), &signed, now).unwrap_err().kind, Kind::Refused, "{now}");
        }
        assert_eq!(check(None, &signed(&theirs), 1000), Ok(()), "no key is asked for");
    }

    #[test]
    fn a_server_that_is_down_is_needed_until_all_others_have_what_belongs_on_them() {
        let [one, two, outside] = [1, 2, 3].map(ServerId);
        let candidate = |server| Candidate { server, domain: Domain::default(), weight: 1 };
        let layout = Layout::compute(LayoutVersion(5), 16, 2, &[candidate(one), candidate(two)]);
        let report = |server, compared, missing, unavailable| {
            let compared = LayoutVersion(compared);
            (server, 0, KeepReport { compared, missing, unavailable, ..KeepReport::default() })
        };
        let late = |reports: &[_]| behind(&layout, &[one, two, outside], reports);
        let fine = report(one, 5, 0, 0);
        assert_eq!(late(&[fine.clone(), report(two, 5, 0, 0)]), []);
        assert_eq!(late(std::slice::from_ref(&fine)), [two], "it has said nothing");
        for other in [report(two, 4, 0, 0), report(two, 5, 1, 0), report(two, 5, 0, 1)] {
            assert_eq!(late(&[fine.clone(), other]), [two]);
        }
        assert_eq!(behind(&layout, &[one], &[fine]), [], "only those that are named");
    }
}
