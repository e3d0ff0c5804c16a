//! Placement is computed, not stored: chunk id -> placement group -> ordered list of servers.
//!
//! A table is made from the one before ([`Layout::next`]): replicas in different zones, else racks, else hosts, each server's
//! share by its weight rounded up or down, and hardly more moves than that takes. Behind the replicas, and where nothing else
//! decides, servers stand in a weighted rendezvous order (Thaler & Ravishankar 1998, with the logarithmic weights of
//! Schindelhauer & Schomaker 2005), one per placement group.
//!
//! Invariants:
//! 1. `groups.len() == pg_count`, and a list names no server twice.
//! 2. The first `replicas` servers of a list are in as many different failure domains as there are; the rest is where writers
//!    go when some of the first are not writable. Lists have `REPLICAS_MAX + FALL_THROUGH` servers, whatever a file's replica
//!    count is: so it may change, and readers find in one list all that writers may have used.
//! 3. The same table before, servers, weights and domains give the same table.
//!
//! While a group moves, the servers it was on before stand behind its list ([`with_was`]): readers ask them last, and writers
//! use them only when nobody else takes a chunk.
//!
//! Left out: bounded sets of replica groups (copysets).

use crate::id::{ChunkId, ClusterId, Epoch, LayoutVersion, NodeId, PgId, ServerId};
use crate::units::{FALL_THROUGH, REPLICAS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod balance;

/// Where a server stands. Two replicas of a chunk go into different zones if they can, else racks, else hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Domain {
    /// A room, site or power domain.
    pub zone: String,
    /// A rack in it.
    pub rack: String,
    /// A machine in it. Empty: the server counts as a machine of its own.
    pub host: String,
}

/// A chunkserver as the cluster map shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Its data-plane address, `host:port`.
    pub addr: String,
    /// Where it stands.
    pub domain: Domain,
    /// Its share relative to others, at least 1. 0: gets no new data (out).
    pub weight: u32,
    /// Heartbeats come.
    pub up: bool,
    /// It has room and no other reason to refuse writes. A target of new chunks only if `up` too.
    pub writable: bool,
}

/// What everybody knows of the cluster. Versioned: fetched again when an answer names another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Rises with every change of anything in here, also of `up` and `writable`. Compare for difference, not order:
    /// a new leader starts again above its own past only.
    pub version: u64,
    /// Default replica count.
    pub replicas: u8,
    /// Durable copies below which a write is not acknowledged.
    pub min_replicas: u8,
    /// Metaservers and their control-plane addresses.
    pub metaservers: BTreeMap<NodeId, String>,
    /// Chunkservers.
    pub servers: BTreeMap<ServerId, ServerInfo>,
    /// Who holds what.
    pub layout: Layout,
}

/// The layout table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Rises with every change of the table.
    pub version: LayoutVersion,
    /// For each placement group its servers in order: replicas first, then where to fall through to.
    pub groups: Vec<Vec<ServerId>>,
}

/// What the table is computed from, per server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub server: ServerId,
    /// Where.
    pub domain: Domain,
    /// Share; 0 is left out.
    pub weight: u32,
}

impl Layout {
    /// Computes the table. Pure. `replicas` is the largest replica count the lists must serve with distinct domains.
    pub fn compute(version: LayoutVersion, pg_count: u32, replicas: u8, candidates: &[Candidate]) -> Layout {
        let field = Field { all: candidates, domains: &domains(candidates) };
        let len = usize::from(replicas) + FALL_THROUGH;
        let groups = (0..pg_count).map(|pg| field.continued(PgId(pg), &[], len)).collect();
        Layout { version, groups }
    }

    /// The layout after this one for these servers: with `replicas` places in each group shared out by weight and as far
    /// apart as the domains allow, and as few moves as that takes (`layout/balance.rs`). Pure.
    pub fn next(&self, replicas: u8, candidates: &[Candidate]) -> Layout {
        let candidates: Vec<Candidate> = candidates.iter().filter(|c| c.weight > 0).cloned().collect();
        let field = Field { all: &candidates, domains: &domains(&candidates) };
        self.with_heads(balance::heads(&self.groups, usize::from(replicas), field), field)
    }

    /// As [`Layout::next`], but only what cannot wait: places of servers that are not among the candidates are given to
    /// others, and groups that are too short are filled. A candidate of weight 0 keeps what it has and gets no more. Pure.
    pub fn filled(&self, replicas: u8, candidates: &[Candidate]) -> Layout {
        let field = Field { all: candidates, domains: &domains(candidates) };
        self.with_heads(balance::filled(&self.groups, usize::from(replicas), field), field)
    }

    fn with_heads(&self, heads: Vec<Vec<ServerId>>, field: Field<'_>) -> Layout {
        let list = |(pg, head): (PgId, Vec<ServerId>)| field.with_fall_through(pg, &head);
        let groups = (0u32..).map(PgId).zip(heads).map(list).collect();
        Layout { version: LayoutVersion(self.version.0 + 1), groups }
    }

    /// The list of a group that has these replicas: they, and behind them where more replicas go, and where to fall
    /// through to.
    pub fn list(pg: PgId, head: &[ServerId], candidates: &[Candidate]) -> Vec<ServerId> {
        Field { all: candidates, domains: &domains(candidates) }.with_fall_through(pg, head)
    }

    /// The list of a group; empty for one that is not there.
    pub fn group(&self, pg: PgId) -> &[ServerId] {
        self.groups.get(crate::units::len_usize(pg.0.into())).map_or(&[], Vec::as_slice)
    }

    /// The servers of a group that hold chunks with `replicas` copies, in order.
    pub fn head(&self, pg: PgId, replicas: u8) -> &[ServerId] {
        let list = self.group(pg);
        &list[..list.len().min(usize::from(replicas))]
    }

    /// Number of placement groups.
    pub fn pg_count(&self) -> u32 {
        u32::try_from(self.groups.len()).expect("at most 65,536 groups")
    }

    /// The placement group of a chunk and its servers in order.
    pub fn place(&self, chunk: &ChunkId) -> (PgId, &[ServerId]) {
        let pg = chunk.pg(self.pg_count());
        (pg, &self.groups[usize::try_from(pg.0).expect("64-bit")])
    }
}

impl ClusterMap {
    /// The servers a reader asks, in order: those of the list that are up, then those that are not.
    pub fn read_candidates(&self, chunk: &ChunkId) -> Vec<ServerId> {
        let (_, order) = self.layout.place(chunk);
        let up = |id: &&ServerId| self.servers.get(id).is_some_and(|s| s.up);
        let mut all: Vec<ServerId> = order.iter().filter(up).copied().collect();
        all.extend(order.iter().filter(|id| !up(id)).filter(|id| self.servers.contains_key(id)));
        all
    }
}

/// A group's list with the servers it was on before behind it, as far as they are not in it.
pub fn with_was(mut list: Vec<ServerId>, was: &[ServerId]) -> Vec<ServerId> {
    for server in was {
        if !list.contains(server) {
            list.push(*server);
        }
    }
    list
}

/// Candidates with their failure domains as numbers, which are quick to compare.
#[derive(Clone, Copy)]
struct Field<'a> {
    all: &'a [Candidate],
    /// Zone, rack and host of each.
    domains: &'a [[usize; 3]],
}

/// Zone, rack and host of each candidate, as numbers.
fn domains(all: &[Candidate]) -> Vec<[usize; 3]> {
    let (mut zones, mut racks, mut hosts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let number = |(number, c): (usize, &Candidate)| {
        let (zone, rack) = (c.domain.zone.clone(), c.domain.rack.clone());
        let host = if c.domain.host.is_empty() { c.server.to_string() } else { c.domain.host.clone() };
        [
            *zones.entry(zone.clone()).or_insert(number),
            *racks.entry((zone.clone(), rack.clone())).or_insert(number),
            *hosts.entry((zone, rack, host)).or_insert(number),
        ]
    };
    all.iter().enumerate().map(number).collect()
}

/// What two servers share: 0 is nothing, 1 the zone, 2 the rack too, 3 even the host.
fn nearness(a: [usize; 3], b: [usize; 3]) -> usize {
    a.iter().zip(b).filter(|(a, b)| **a == *b).count()
}

impl Field<'_> {
    /// `head` and more servers behind it, `len` in all if there are so many: each shares as little as it goes with those
    /// before it; the first of those in rendezvous order.
    fn continued(&self, pg: PgId, head: &[ServerId], len: usize) -> Vec<ServerId> {
        let number = |id: &ServerId| self.all.iter().position(|c| c.server == *id);
        let mut chosen: Vec<usize> = head.iter().filter_map(number).collect();
        let free = |number: &usize| self.all[*number].weight > 0 && !chosen.contains(number);
        let near = |number: usize| {
            let to = |other: &usize| nearness(self.domains[number], self.domains[*other]);
            chosen.iter().map(to).max().unwrap_or(0)
        };
        let mut rest: Vec<(usize, f64, usize)> = (0..self.all.len())
            .filter(free)
            .map(|number| (near(number), score(pg, &self.all[number]), number))
            .collect();
        let order = |a: &(usize, f64, usize), b: &(usize, f64, usize)| {
            let id = |number: usize| self.all[number].server;
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(id(a.2).cmp(&id(b.2)))
        };
        while chosen.len() < len
            && let Some(at) = (0..rest.len()).min_by(|a, b| order(&rest[*a], &rest[*b]))
        {
            let (_, _, next) = rest.swap_remove(at);
            chosen.push(next);
            for (near, _, other) in &mut rest {
                *near = (*near).max(nearness(self.domains[*other], self.domains[next]));
            }
        }
        chosen.iter().map(|number| self.all[*number].server).collect()
    }

    /// A group's first servers and behind them where more replicas go, and where to fall through to.
    fn with_fall_through(&self, pg: PgId, head: &[ServerId]) -> Vec<ServerId> {
        self.continued(pg, head, usize::from(REPLICAS_MAX) + FALL_THROUGH)
    }
}

/// Smaller is better: an exponential variate with rate `weight`, drawn from (group, server).
fn score(pg: PgId, candidate: &Candidate) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"dfs layout 1").update(&pg.0.to_le_bytes()).update(&candidate.server.0.to_le_bytes());
    let mut high = [0u8; 4];
    high.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    let uniform = (f64::from(u32::from_le_bytes(high)) + 0.5) / 4_294_967_296.0;
    -uniform.ln() / f64::from(candidate.weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn servers(n: u32, zones: u32) -> Vec<Candidate> {
        let domain = |i: u32| Domain { zone: format!("z{}", i % zones), rack: "r".into(), host: format!("h{i}") };
        (1..=n).map(|i| Candidate { server: ServerId(i), domain: domain(i), weight: 10 }).collect()
    }

    #[test]
    fn replicas_are_in_different_zones_when_there_are_enough() {
        let all = servers(9, 3);
        let layout = Layout::compute(LayoutVersion(1), 256, 3, &all);
        for group in &layout.groups {
            let zones: BTreeSet<u32> = group[..3].iter().map(|s| s.0 % 3).collect();
            assert_eq!(zones.len(), 3);
        }
    }

    #[test]
    fn a_server_that_leaves_moves_only_its_own_share() {
        let all = servers(8, 8);
        let before = Layout::compute(LayoutVersion(1), 1024, 3, &all);
        let after = Layout::compute(LayoutVersion(2), 1024, 3, &all[1..]);
        for (old, new) in before.groups.iter().zip(&after.groups) {
            let kept: Vec<ServerId> = old[..3].iter().filter(|s| s.0 != 1).copied().collect();
            assert!(kept.iter().all(|s| new[..3].contains(s)), "{old:?} -> {new:?}");
        }
    }

    #[test]
    fn only_what_cannot_wait_is_changed_when_a_server_is_gone_and_another_is_new() {
        let before = Layout::compute(LayoutVersion(0), 64, 3, &[]).next(3, &servers(4, 4));
        let mut now = servers(5, 5); // 5 is new, 2 is gone, 3 is being emptied
        now[2].weight = 0;
        now.remove(1);
        let after = before.filled(3, &now);
        for (old, new) in before.groups.iter().zip(&after.groups) {
            let kept: Vec<ServerId> = old[..3].iter().filter(|s| s.0 != 2).copied().collect();
            assert_eq!(new[..kept.len()], kept, "{old:?} -> {new:?}");
            let more: Vec<u32> = new[kept.len()..3].iter().map(|s| s.0).collect();
            assert!(more.iter().all(|s| *s != 2 && *s != 3), "{old:?} -> {new:?}");
            assert!(new[3..].iter().all(|s| s.0 != 3), "nobody falls through to what is being emptied: {new:?}");
        }
        assert!(after.groups.iter().any(|group| group[..3].contains(&ServerId(3))));
        assert_eq!(after.filled(3, &now).groups, after.groups, "nothing to do");
    }

    proptest! {
        #[test]
        fn lists_are_complete_and_name_nobody_twice(n in 1u32..20, zones in 1u32..6, replicas in 1u8..9) {
            let layout = Layout::compute(LayoutVersion(1), 64, replicas, &servers(n, zones));
            let wanted = (usize::from(replicas) + FALL_THROUGH).min(usize::try_from(n).unwrap());
            for group in &layout.groups {
                let distinct: BTreeSet<&ServerId> = group.iter().collect();
                prop_assert_eq!(distinct.len(), group.len());
                prop_assert_eq!(group.len(), wanted);
            }
        }
    }
}
