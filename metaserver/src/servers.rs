//! Which chunkservers are alive: the leader's memory of their heartbeats, and the cluster map made of it.
//!
//! | a server | is |
//! | --- | --- |
//! | heard of within [`DOWN_AFTER`] | up |
//! | not heard of yet by a leader that leads for less than that | awaited: see [`Servers::is_unknown`] |
//! | that was down under this leader, and is up again for less than [`TARGET_AFTER`] | up, but no target of writes, unless without it too few are ([`takes_writes`]) |
//! | with at least [`FREE_MIN`] bytes free | a target of writes, if nothing else forbids it |
//!
//! The map's version is `term << 32 | changes in this term`: it differs whenever the map does, also over a change of
//! leaders.
//!
//! A layout is made anew [`LAYOUT_DELAY`] after a server registered for the first time, so that servers that start
//! together make one version: all of it as long as nothing is stored, later what cannot wait (a server is gone, groups are
//! too short); the rest is a plan's ([`crate::movers`]). When the layout changes, servers fetch what is theirs now and drop
//! what is not any more (the chunkserver's `keep`); meanwhile readers ask, after the servers of the list, all others.

use common::id::ServerId;
use common::layout::{ClusterMap, ServerInfo};
use common::proto::meta::{FREE_MIN, Heartbeat, ServerStatus};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Without a heartbeat for this long a server is down.
pub(crate) const DOWN_AFTER: Duration = Duration::from_secs(10);
/// A server that was down becomes a target of writes after this long.
pub(crate) const TARGET_AFTER: Duration = Duration::from_secs(30);
/// See the module.
pub(crate) const LAYOUT_DELAY: Duration = Duration::from_secs(1);

/// What was heard of one server.
#[derive(Clone, Debug)]
struct Heard {
    beat: Heartbeat,
    at: Instant,
    /// When it last had a data directory that works.
    useful: Instant,
    /// Not a target of writes before this.
    target_from: Instant,
}

/// For how long nothing was heard of a server, or only that no data directory of it works: what it has counts as lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    /// Something was heard by this leader.
    pub(crate) heard: bool,
    /// Since then, or since this leader began to listen.
    pub(crate) lasts: Duration,
}

#[derive(Debug)]
struct Table {
    heard: BTreeMap<ServerId, Heard>,
    /// Since when heartbeats come to this leader.
    since: Instant,
    /// Rises with each change of the map.
    changes: u32,
    /// Targets that a write needs: the cluster's `min_replicas`, once its rows were read.
    needed: usize,
    /// `(up, writable)` in the last map made.
    shown: BTreeMap<ServerId, (bool, bool)>,
    map: Option<Arc<ClusterMap>>,
    layout_due: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Servers {
    term: u64,
    table: Mutex<Table>,
}

impl Servers {
    /// Nothing was heard yet. The layout is looked at once: the leader before may not have come to it.
    pub(crate) fn new(term: u64) -> Servers {
        let table = Table {
            heard: BTreeMap::new(),
            since: Instant::now(),
            changes: 0,
            needed: 0,
            shown: BTreeMap::new(),
            map: None,
            layout_due: Some(Instant::now() + LAYOUT_DELAY),
        };
        Servers { term, table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// A server registered: what it has it says with its first heartbeat. Until then it has what it had.
    pub(crate) fn registered(&self, beat: Heartbeat) {
        let known = self.table().heard.get(&beat.server).map(|heard| heard.beat.clone());
        let Heartbeat { instance, capacity, free, .. } = beat;
        self.heartbeat(known.map_or(beat, |known| Heartbeat { instance, capacity, free, ..known }));
    }

    /// A server lives.
    pub(crate) fn heartbeat(&self, beat: Heartbeat) {
        let now = Instant::now();
        let mut table = self.table();
        let target_from = match table.heard.get(&beat.server) {
            Some(before) if before.is_up(now) => before.target_from,
            Some(_) => now + TARGET_AFTER, // it was down
            None => now,
        };
        let useful = match table.heard.get(&beat.server) {
            Some(before) if beat.capacity == 0 => before.useful,
            Some(_) | None => now,
        };
        table.heard.insert(beat.server, Heard { beat, at: now, useful, target_from });
    }

    /// Heartbeats did not come through: begins anew, as a new leader does.
    pub(crate) fn forget(&self) {
        let mut table = self.table();
        table.heard.clear();
        table.since = Instant::now();
    }

    /// True for a server that may be up though this leader has not heard of it: it has not led long enough to know.
    pub(crate) fn is_unknown(&self, server: ServerId) -> bool {
        self.table().is_unknown(server)
    }

    /// True once this leader has led long enough to have heard of every server that is up.
    pub(crate) fn knows_all(&self) -> bool {
        self.table().since.elapsed() >= DOWN_AFTER
    }

    /// For how long nothing was heard of each of these, or nothing good.
    pub(crate) fn silence(&self, of: impl Iterator<Item = ServerId>) -> BTreeMap<ServerId, Silence> {
        let now = Instant::now();
        let table = self.table();
        let silence = |id: ServerId| {
            let heard = table.heard.get(&id);
            let last = heard.map_or(table.since, |heard| heard.useful);
            (id, Silence { heard: heard.is_some(), lasts: now.saturating_duration_since(last) })
        };
        of.map(silence).collect()
    }

    /// The rows changed: the next map is made anew.
    pub(crate) fn rows_changed(&self, new_server: bool) {
        let mut table = self.table();
        table.map = None;
        if new_server {
            table.layout_due = Some(Instant::now() + LAYOUT_DELAY);
        }
    }

    /// True once, when it is time to look whether the layout fits the servers.
    pub(crate) fn layout_is_due(&self) -> bool {
        let mut table = self.table();
        let due = table.layout_due.is_some_and(|due| due <= Instant::now());
        if due {
            table.layout_due = None;
        }
        due
    }

    /// The layout could not be made: look again soon.
    pub(crate) fn layout_again(&self) {
        self.table().layout_due = Some(Instant::now() + LAYOUT_DELAY);
    }

    /// The map as it is now. `read` makes it from the rows, without what only the leader knows.
    pub(crate) fn map<E>(&self, read: impl FnOnce() -> Result<ClusterMap, E>) -> Result<Arc<ClusterMap>, E> {
        let now = Instant::now();
        let mut table = self.table();
        let table = &mut *table;
        let known = match &table.map {
            Some(map) => Arc::clone(map),
            None => Arc::new(read()?),
        };
        table.needed = known.min_replicas.into();
        let seen = table.seen(now);
        if table.map.is_some() && seen == table.shown {
            return Ok(known);
        }
        let mut map = ClusterMap::clone(&known);
        for (id, server) in &mut map.servers {
            show(server, seen.get(id).copied().unwrap_or_default());
        }
        table.changes += 1;
        map.version = (self.term << 32) | u64::from(table.changes);
        table.shown = seen;
        Ok(table.map.insert(Arc::new(map)).clone())
    }

    /// `(capacity, free)` of all servers that are up, in bytes; free of targets only: what can be written to.
    pub(crate) fn space(&self) -> (u64, u64) {
        let now = Instant::now();
        let table = self.table();
        let seen = table.seen(now);
        let target = |id: &ServerId| seen.get(id).is_some_and(|(_, target)| *target);
        table.sum(now, |id, beat| if target(id) { beat.free } else { 0 })
    }

    /// The same, free of all of them.
    pub(crate) fn room(&self) -> (u64, u64) {
        self.table().sum(Instant::now(), |_, beat| beat.free)
    }

    /// What is known of each server of the map.
    pub(crate) fn status(&self, map: &ClusterMap) -> Vec<ServerStatus> {
        let now = Instant::now();
        let table = self.table();
        let seen = table.seen(now);
        let status = |(id, server): (&ServerId, &ServerInfo)| {
            let heard = table.heard.get(id);
            let beat = |get: fn(&Heartbeat) -> u64| heard.map_or(0, |heard| get(&heard.beat));
            ServerStatus {
                server: *id,
                addr: server.addr.clone(),
                up: heard.is_some_and(|heard| heard.is_up(now)),
                silent_ms: heard.map(|heard| {
                    u64::try_from(now.saturating_duration_since(heard.at).as_millis()).unwrap_or(u64::MAX)
                }),
                awaited: table.is_unknown(*id),
                capacity: beat(|b| b.capacity),
                free: beat(|b| b.free),
                chunks: beat(|b| b.chunks),
                chunk_bytes: beat(|b| b.chunk_bytes),
                corrupt: beat(|b| b.corrupt),
                fenced_dirs: heard.map_or(0, |heard| heard.beat.fenced_dirs),
                full_dirs: heard.map_or(0, |heard| heard.beat.full_dirs),
                writable: seen.get(id).is_some_and(|(_, target)| *target),
                segment_bytes: beat(|b| b.segment_bytes),
            }
        };
        map.servers.iter().map(status).collect()
    }
}

impl Heard {
    fn is_up(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < DOWN_AFTER
    }

    fn condition(&self, now: Instant) -> Condition {
        match self {
            heard if !heard.is_up(now) => Condition::Down,
            heard if heard.beat.free < FREE_MIN => Condition::Full,
            heard if now < heard.target_from => Condition::JustBack,
            _ => Condition::Steady,
        }
    }
}

impl Table {
    /// See [`Servers::is_unknown`].
    fn is_unknown(&self, server: ServerId) -> bool {
        !self.heard.contains_key(&server) && self.since.elapsed() < DOWN_AFTER
    }

    /// Capacity and what is free of the servers that are up.
    fn sum(&self, now: Instant, free: impl Fn(&ServerId, &Heartbeat) -> u64) -> (u64, u64) {
        let up = self.heard.iter().filter(|(_, heard)| heard.is_up(now));
        up.fold((0, 0), |sum, (id, heard)| (sum.0 + heard.beat.capacity, sum.1 + free(id, &heard.beat)))
    }

    /// `(up, writable)` of each server heard of.
    fn seen(&self, now: Instant) -> BTreeMap<ServerId, (bool, bool)> {
        let conditions: Vec<Condition> = self.heard.values().map(|heard| heard.condition(now)).collect();
        let targets = takes_writes(&conditions, self.needed);
        let up = conditions.iter().map(|condition| *condition != Condition::Down);
        self.heard.keys().copied().zip(up.zip(targets)).collect()
    }
}

/// How a server is, as far as writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Down,
    /// Up, with less than [`FREE_MIN`] free.
    Full,
    /// Up for less than [`TARGET_AFTER`] since it was down.
    JustBack,
    Steady,
}

/// Which of these servers take writes. One that has just come back may go again soon, which would stall writers; so it
/// waits, but not when fewer than `needed` others take writes: then writes would fail for want of it.
fn takes_writes(servers: &[Condition], needed: usize) -> Vec<bool> {
    let steady = servers.iter().filter(|condition| **condition == Condition::Steady).count();
    let takes = |condition: &Condition| match condition {
        Condition::Down | Condition::Full => false,
        Condition::JustBack => steady < needed,
        Condition::Steady => true,
    };
    servers.iter().map(takes).collect()
}

fn show(server: &mut ServerInfo, (up, writable): (bool, bool)) {
    (server.up, server.writable) = (up, writable);
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::{ClusterId, Epoch, LayoutVersion};
    use common::layout::{Domain, Layout};

    fn beat(server: u32, free: u64) -> Heartbeat {
        Heartbeat {
            server: ServerId(server),
            instance: 1,
            capacity: 1 << 40,
            free,
            chunks: 0,
            chunk_bytes: 0,
            corrupt: 0,
            fenced_dirs: 0,
            full_dirs: 0,
            map_version: 0,
            segment_bytes: 0,
        }
    }

    fn rows() -> Result<ClusterMap, ()> {
        let info = |id: u32| ServerInfo {
            addr: format!("h:{id}"),
            domain: Domain::default(),
            weight: 1,
            up: false,
            writable: false,
        };
        Ok(ClusterMap {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            version: 0,
            replicas: 3,
            min_replicas: 2,
            metaservers: BTreeMap::new(),
            servers: (1..=4).map(|id| (ServerId(id), info(id))).collect(),
            layout: Layout { version: LayoutVersion(1), groups: vec![] },
        })
    }

    #[test]
    fn a_server_that_is_just_back_takes_writes_when_too_few_others_do() {
        let of = |text: &str| -> Vec<Condition> {
            let condition = |c| match c {
                'd' => Condition::Down,
                'f' => Condition::Full,
                'b' => Condition::JustBack,
                _ => Condition::Steady,
            };
            text.chars().map(condition).collect()
        };
        for (servers, needed, takes) in [
            ("sss", 2, "yyy"),
            ("ssb", 2, "yyn"),
            ("ssbb", 2, "yynn"),
            ("sbb", 2, "yyy"),
            ("sdb", 2, "yny"),
            ("sfb", 2, "yny"),
            ("bbb", 2, "yyy"),
            ("sfd", 2, "ynn"),
            ("ssb", 3, "yyy"),
            ("b", 1, "y"),
            ("sb", 1, "yn"),
            ("", 2, ""),
        ] {
            let got: String =
                takes_writes(&of(servers), needed).into_iter().map(|t| if t { 'y' } else { 'n' }).collect();
            assert_eq!(got, takes, "{servers} of which {needed} are needed");
        }
    }

    fn seen(servers: &Servers) -> (u64, Vec<(bool, bool)>) {
        let map = servers.map(rows).unwrap();
        (map.version, map.servers.values().map(|s| (s.up, s.writable)).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_up_while_it_beats_and_a_target_when_it_was_up_long_enough() {
        let servers = Servers::new(3);
        let beats = |ids: &[u32]| {
            for id in ids {
                servers.heartbeat(beat(*id, if *id == 2 { FREE_MIN - 1 } else { FREE_MIN })); // 2 is full
            }
        };
        let pass = async |secs: u64, ids: &[u32]| {
            for _ in 0..secs {
                tokio::time::advance(Duration::from_secs(1)).await;
                beats(ids);
            }
        };
        let (down, full, up, target) = ((false, false), (true, false), (true, false), (true, true));
        assert_eq!(seen(&servers), ((3 << 32) | 1, vec![down; 4]));
        beats(&[1, 2, 3, 4]);
        assert_eq!(seen(&servers), ((3 << 32) | 2, vec![target, full, target, target]));
        assert_eq!(seen(&servers).0, (3 << 32) | 2, "nothing changed");
        pass(DOWN_AFTER.as_secs(), &[2, 3, 4]).await;
        assert_eq!(seen(&servers), ((3 << 32) | 3, vec![down, full, target, target]));
        beats(&[1]);
        assert_eq!(seen(&servers).1[0], up, "it just came back");
        pass(TARGET_AFTER.as_secs() - 1, &[1, 2, 3, 4]).await;
        assert_eq!(seen(&servers).1[0], up);
        pass(1, &[1, 2, 3, 4]).await;
        assert_eq!(seen(&servers).1[0], target);

        pass(DOWN_AFTER.as_secs(), &[2, 3, 4]).await;
        beats(&[1]);
        assert_eq!(seen(&servers).1[0], up);
        pass(DOWN_AFTER.as_secs(), &[1, 2, 3]).await;
        assert_eq!(
            seen(&servers).1,
            vec![target, full, target, down],
            "without it one server takes writes, of 2 needed"
        );
        assert_eq!(servers.space(), (3 << 40, 2 * FREE_MIN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_a_disk_that_works_counts_as_silent() {
        let servers = Servers::new(1);
        let lasts = || servers.silence([ServerId(1)].into_iter())[&ServerId(1)].lasts;
        servers.heartbeat(beat(1, FREE_MIN));
        for _ in 0..30 {
            tokio::time::advance(Duration::from_secs(1)).await;
            servers.heartbeat(Heartbeat { capacity: 0, fenced_dirs: 1, ..beat(1, 0) });
        }
        assert_eq!(lasts(), Duration::from_secs(30));
        servers.heartbeat(beat(1, FREE_MIN));
        assert_eq!(lasts(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_start_together_make_one_layout() {
        let servers = Servers::new(1);
        tokio::time::advance(LAYOUT_DELAY).await;
        assert!(servers.layout_is_due() && !servers.layout_is_due());
        servers.rows_changed(true);
        tokio::time::advance(LAYOUT_DELAY / 2).await;
        servers.rows_changed(true);
        tokio::time::advance(LAYOUT_DELAY / 2).await;
        assert!(!servers.layout_is_due());
        tokio::time::advance(LAYOUT_DELAY / 2).await;
        assert!(servers.layout_is_due());
    }
}
