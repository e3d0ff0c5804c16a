//! What administrators order: is it theirs to order, and who carries it out.

use crate::backup::Backups;
use crate::fsck::Jobs;
use crate::leading::Leading;
use crate::leases::NOBODY;
use crate::movers;
use crate::namespace::{self, Command, Done, PlanChange};
use crate::node::Shared;
use crate::raft::{Member, node_of};
use crate::servers::DOWN_AFTER;
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
use common::proto::keep::{KeepAdmin, KeepReport};
use common::proto::rebalance::RebalanceOrder;
use common::proto::squash::SquashAsk;
use common::proto::trash::SettingsChange;
use common::time::Time;
use common::units::{len_u64, len_usize};
use common::wire::Pool;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The longest name of who ordered something, in bytes.
const BY_LEN_MAX: usize = 255;

/// How long a leader that does not know yet waits until it does: longer than [`DOWN_AFTER`], and shorter than who orders.
const KNOWN_WAIT: Duration = Duration::from_secs(12);
/// How often it looks.
const KNOWN_POLL: Duration = Duration::from_millis(500);
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

    /// Notes an order about garbage or scrub, which is carried out elsewhere.
    pub(crate) async fn note_keep(&self, member: &Member, by: String, ask: &KeepAdmin) -> Result<(), Fault> {
        let what = match ask {
            KeepAdmin::Gc => "garbage collection run",
            KeepAdmin::Scrub => "scrub run",
            KeepAdmin::Set(_) => "settings of repair, garbage collection and scrub",
            KeepAdmin::Status | KeepAdmin::Held | KeepAdmin::Explain { .. } => return Ok(()),
        };
        self.note(member, by, what.to_owned(), None).await.map(|_| ())
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
            let changing = leading.leases.change_all().await;
            let noted = self.note(member, by, what, Some(Command::SetSquash(squash))).await;
            if noted.as_ref().is_err_and(|fault| matches!(fault.kind, Kind::Unsure | Kind::Internal)) {
                changing.without_end(); // it may still come
            }
            noted?;
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
            Order::Backup(ask) => self.backup(&member, &leading, by, ask).await,
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
            Order::Readmit { server } => {
                let what = format!("chunkserver {server} may come back");
                self.note(&member, by, what, Some(Command::Readmit { server })).await.map(|_| Ordered::Done)
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

    /// The next step of a backup of the metadata.
    async fn backup(&self, member: &Member, leading: &Leading, by: String, ask: BackupAsk) -> Result<Ordered, Fault> {
        let begins = ask == BackupAsk::Begin;
        if begins {
            leading.leases.look(NOBODY, None).await; // what mounts have answered for is part of it
        }
        let answer = self.backups.step(&self.node, member, ask).await?;
        if let (true, BackupAnswer::Begun { head, .. }) = (begins, &answer) {
            self.note(member, by, format!("backup of the metadata at index {}", head.index.0), None).await?;
        }
        Ok(Ordered::Backup(answer))
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
            RebalanceOrder::Start { rate, shown } => {
                let planned = movers::planned(&self.node, member, &leading.servers, Vec::new(), rate).await?;
                if shown.is_some_and(|shown| shown != planned.plan.digest) {
                    let text = "servers or weights have changed, and so has the plan: look at it again, and start that";
                    return Err(Fault::new(Kind::Stale, text));
                }
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

    /// Refuses if a server may hold what nobody else does. Waits a while for what is not known yet: a leader must have led for
    /// some time, and the others have compared what they have by the layout in which that server has no place.
    async fn refuse_needed(&self, member: &Member, leading: &Leading, server: ServerId) -> Result<(), Fault> {
        let end = Instant::now() + KNOWN_WAIT;
        loop {
            match self.needed(member, leading, server).await? {
                Needed::No => return Ok(()),
                Needed::NotKnown(_) if Instant::now() < end => tokio::time::sleep(KNOWN_POLL).await,
                Needed::Yes(text) | Needed::NotKnown(text) => return Err(Fault::new(Kind::Refused, text)),
            }
        }
    }

    async fn needed(&self, member: &Member, leading: &Leading, server: ServerId) -> Result<Needed, Fault> {
        member.reads.wait().await?;
        let state = member.state.clone();
        let read = move || {
            let mounted = state.mounted();
            let view = mounted.kv().snapshot();
            Ok((namespace::cluster_map(&*view)?, last_copies(&*view, server)?, namespace::counters(&*view)?))
        };
        let internal = |error: KvError| Fault::new(Kind::Internal, error.to_string());
        let (map, last, counters) = self.node.world.blocking(read).await.map_err(internal)?;
        let map = map.ok_or_else(crate::leading::not_formatted)?;
        let all = leading.servers.status(&map);
        let Some(its) = all.iter().find(|status| status.server == server) else {
            return Err(Fault::new(Kind::NotFound, format!("there is no chunkserver {server}")));
        };
        if let Some(text) = last {
            return Ok(Needed::Yes(format!("{server} holds the last copies of {text}")));
        }
        if counters.chunks == 0 {
            return Ok(Needed::No);
        }
        let lives = its.up && its.capacity > 0; // else what it has counts as lost
        if lives && its.chunks > 0 {
            return Ok(Needed::Yes(format!(
                "{server} still holds {} chunks: `dfs admin server drain {}` first, and wait until it is empty",
                its.chunks, server.0
            )));
        }
        if !lives && counters.degraded > 0 {
            let text = format!(
                "{server} is down or has no disk that works, and {} chunks have too few copies",
                counters.degraded
            );
            return Ok(Needed::NotKnown(format!("{text}: wait until repair is through")));
        }
        let sound = all.iter().filter(|status| status.up && status.fenced_dirs == 0);
        let up: Vec<ServerId> = sound.map(|status| status.server).collect();
        Ok(match unsafe_groups(&map.layout, server, &up, &leading.keep.reports()) {
            0 => Needed::No,
            groups => Needed::NotKnown(format!(
                "of {groups} of {} placement groups the first chunkserver has not said yet that it has all chunks, is down, or \
                 has a disk that failed: wait until repair is through (`dfs admin status`)",
                map.layout.groups.len()
            )),
        })
    }
}

/// Whether a chunkserver may hold what nobody else does.
enum Needed {
    No,
    Yes(String),
    /// Nobody has said yet that others have all of it.
    NotKnown(String),
}

/// How many placement groups nobody but this server is known to have whole, of these that are up and whose disks all work.
/// Every chunk of a group belongs on the group's first server, however few copies its files want, so that one's word counts.
/// Pure.
fn unsafe_groups(layout: &Layout, but: ServerId, up: &[ServerId], reports: &[(ServerId, u64, KeepReport)]) -> usize {
    let has_all = |server: &ServerId| {
        let its = reports.iter().find(|(id, age_ms, _)| id == server && Duration::from_millis(*age_ms) < DOWN_AFTER);
        its.is_some_and(|(_, _, its)| its.compared == layout.version && its.missing + its.unavailable == 0)
    };
    let safe: BTreeSet<ServerId> = up.iter().filter(|server| **server != but && has_all(server)).copied().collect();
    layout.groups.iter().filter(|group| !group.first().is_some_and(|first| safe.contains(first))).count()
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
    fn a_server_is_needed_until_the_first_of_each_group_has_all() {
        let [one, two, three] = [1, 2, 3].map(ServerId);
        let groups = vec![vec![one, two, three], vec![two, one], vec![one, three]];
        let layout = Layout { version: LayoutVersion(5), groups };
        let report = |server, age_ms, compared, missing, unavailable| {
            let compared = LayoutVersion(compared);
            (server, age_ms, KeepReport { compared, missing, unavailable, ..KeepReport::default() })
        };
        let lacks = |up: &[ServerId], reports: &[_]| unsafe_groups(&layout, three, up, reports);
        let fine = [report(one, 0, 5, 0, 0), report(two, 0, 5, 0, 0), report(three, 0, 5, 0, 0)];
        assert_eq!(lacks(&[one, two, three], &fine), 0);
        assert_eq!(lacks(&[one, three], &fine), 1, "two is down: a chunk with one copy is nowhere else");
        assert_eq!(lacks(&[one, two], &fine[..1]), 1, "two has said nothing");
        let others =
            [report(two, 0, 4, 0, 0), report(two, 0, 5, 1, 0), report(two, 0, 5, 0, 1), report(two, 10_000, 5, 0, 0)];
        for other in others {
            assert_eq!(lacks(&[one, two], &[fine[0].clone(), other]), 1);
        }
        assert_eq!(lacks(&[three], &fine), 3, "its own word does not count");
    }
}
