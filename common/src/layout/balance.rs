//! The next layout from the present one: as few replicas move as the weights and the failure domains ask for.
//!
//! 1. Places of servers that are gone are given to those that are furthest below their share.
//! 2. A group whose replicas could be in more domains than they are changes one server.
//! 3. Servers above their share hand places to those below, one at a time, where the domains allow it.
//!
//! A server's share is its weight's part of all places, but never more than one place in each group; what it cannot take
//! goes to the others by their weights. With nothing to do the result is the layout it began with.

use super::{Candidate, host_of, score};
use crate::id::{PgId, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// Passes over all servers while anything improves, at most.
const PASSES_MAX: usize = 16;

/// Data moves only if two servers are two places apart: for less it is not worth it.
const GAIN_MIN: f64 = 1.0;
/// Searches for an exchange in one layout, at most: each looks at all places that move.
const EXCHANGES_MAX: usize = 4096;

/// How many zones, racks and hosts a set of servers is in; more zones are better than more racks, and so on.
type Spread = (usize, usize, usize);

/// Candidates by number, so that sets of them are quick to compare.
struct Servers<'a> {
    all: &'a [Candidate],
    /// Zone, rack and host of each, as numbers.
    places: Vec<(usize, usize, usize)>,
    numbers: BTreeMap<ServerId, usize>,
    shares: Vec<f64>,
    load: Vec<f64>,
}

/// The first `replicas` servers of each group. `candidates` have weights above 0; `before` are the groups until now.
pub(super) fn heads(before: &[Vec<ServerId>], replicas: usize, candidates: &[Candidate]) -> Vec<Vec<ServerId>> {
    let (mut servers, mut heads, width) = full(before, replicas, candidates);
    let best = servers.best_spread(width);
    for (pg, head) in (0u32..).map(PgId).zip(&mut heads) {
        servers.spread_out(pg, head, best);
    }
    let kept = |pg: usize, server: usize| before[pg].iter().take(replicas).any(|id| *id == candidates[server].server);
    servers.level(&mut heads, 1e-9, |pg, server| !kept(pg, server)); // costs nothing: these move anyway
    servers.exchange(&mut heads, |pg, server| !kept(pg, server));
    servers.level(&mut heads, GAIN_MIN, |_, _| true);
    named(&heads, candidates)
}

/// As [`heads`], with the first step alone, levelled by those places that move anyway. `candidates` of weight 0 keep theirs.
pub(super) fn filled(before: &[Vec<ServerId>], replicas: usize, candidates: &[Candidate]) -> Vec<Vec<ServerId>> {
    let (mut servers, mut heads, _) = full(before, replicas, candidates);
    let kept = |pg: usize, server: usize| before[pg].iter().take(replicas).any(|id| *id == candidates[server].server);
    servers.level(&mut heads, GAIN_MIN, |pg, server| !kept(pg, server));
    named(&heads, candidates)
}

/// The first step: every group has as many servers as it can.
fn full<'a>(
    before: &[Vec<ServerId>],
    replicas: usize,
    candidates: &'a [Candidate],
) -> (Servers<'a>, Vec<Vec<usize>>, usize) {
    let width = replicas.min(candidates.len());
    let mut servers = Servers::new(candidates, before.len(), width);
    let mut heads: Vec<Vec<usize>> = before
        .iter()
        .map(|group| {
            group.iter().take(replicas).filter_map(|id| servers.numbers.get(id).copied()).take(width).collect()
        })
        .collect();
    for server in heads.iter().flatten() {
        servers.load[*server] += 1.0;
    }
    for (pg, head) in (0u32..).map(PgId).zip(&mut heads) {
        servers.fill(pg, head, width);
    }
    (servers, heads, width)
}

fn named(heads: &[Vec<usize>], candidates: &[Candidate]) -> Vec<Vec<ServerId>> {
    heads.iter().map(|head| head.iter().map(|server| candidates[*server].server).collect()).collect()
}

impl<'a> Servers<'a> {
    fn new(all: &'a [Candidate], groups: usize, width: usize) -> Servers<'a> {
        let mut zones = BTreeMap::new();
        let mut racks = BTreeMap::new();
        let mut hosts = BTreeMap::new();
        let places = all.iter().map(|c| {
            let (zone, rack, host) = host_of(c);
            let next = zones.len();
            let z = *zones.entry(zone).or_insert(next);
            let next = racks.len();
            let r = *racks.entry((zone, rack)).or_insert(next);
            let next = hosts.len();
            (z, r, *hosts.entry((zone, rack, host)).or_insert(next))
        });
        Servers {
            all,
            places: places.collect(),
            numbers: all.iter().enumerate().map(|(number, c)| (c.server, number)).collect(),
            shares: shares(all, groups, width),
            load: vec![0.0; all.len()],
        }
    }

    fn spread(&self, head: &[usize]) -> Spread {
        let count = |part: fn(&(usize, usize, usize)) -> usize| {
            head.iter().map(|server| part(&self.places[*server])).collect::<BTreeSet<usize>>().len()
        };
        (count(|p| p.0), count(|p| p.1), count(|p| p.2))
    }

    /// What a group of this width can reach: one after the other, each as far from the others as possible.
    fn best_spread(&self, width: usize) -> Spread {
        let mut head: Vec<usize> = Vec::new();
        while head.len() < width {
            let spread = |server: &usize| self.spread(&[&head[..], &[*server]].concat());
            let free = (0..self.all.len()).filter(|server| !head.contains(server));
            let Some(next) = free.max_by_key(|server| (spread(server), usize::MAX - server)) else { break };
            head.push(next);
        }
        self.spread(&head)
    }

    /// Places missing to its share; below 0: it has too many.
    fn lacks(&self, server: usize) -> f64 {
        self.shares[server] - self.load[server]
    }

    /// The server that makes the best of `with` in this group: widest spread, then furthest below its share, then first in
    /// the group's order.
    fn choose(&self, pg: PgId, head: &[usize], with: impl Fn(usize) -> Vec<usize>) -> Option<(Spread, usize)> {
        let mut best: Option<(Spread, f64, f64, usize)> = None;
        for server in (0..self.all.len()).filter(|server| !head.contains(server) && self.all[*server].weight > 0) {
            let (spread, lacks) = (self.spread(&with(server)), self.lacks(server));
            let better = match &best {
                None => true,
                Some((s, l, _, _))
                    if (spread, lacks > *l) != (*s, false) && (spread > *s || (spread == *s && lacks > *l)) =>
                {
                    true
                }
                Some((s, l, order, _)) => spread == *s && lacks >= *l && score(pg, &self.all[server]) < *order,
            };
            if better {
                best = Some((spread, lacks, score(pg, &self.all[server]), server));
            }
        }
        best.map(|(spread, _, _, server)| (spread, server))
    }

    /// Fills a group up.
    fn fill(&mut self, pg: PgId, head: &mut Vec<usize>, width: usize) {
        while head.len() < width {
            let Some((_, next)) = self.choose(pg, head, |server| [&head[..], &[server]].concat()) else { return };
            head.push(next);
            self.load[next] += 1.0;
        }
    }

    /// Changes servers of a group until it is spread as widely as groups can be.
    fn spread_out(&mut self, pg: PgId, head: &mut [usize], best: Spread) {
        for _ in 0..head.len() {
            let now = self.spread(head);
            if now >= best {
                return;
            }
            let changed = |place: usize| {
                let with = |server: usize| replaced(head, place, server);
                self.choose(pg, head, with).map(|(spread, server)| (spread, place, server))
            };
            // Of two servers in one domain the one that has more goes.
            let options = (0..head.len()).filter_map(changed).filter(|(spread, ..)| *spread > now);
            let lacks = |place: usize| self.lacks(head[place]);
            let option = options.max_by(|a, b| a.0.cmp(&b.0).then(lacks(b.1).total_cmp(&lacks(a.1))));
            let Some((_, place, server)) = option else { return };
            self.give(head, place, server);
        }
    }

    fn give(&mut self, head: &mut [usize], place: usize, server: usize) {
        self.load[head[place]] -= 1.0;
        self.load[server] += 1.0;
        head[place] = server;
    }

    /// Moves places from servers above their share to those below, if both come closer by more than `gain`; only places
    /// that `may` move.
    fn level(&mut self, heads: &mut [Vec<usize>], gain: f64, may: impl Fn(usize, usize) -> bool) {
        for _ in 0..PASSES_MAX {
            let mut moved = false;
            for (pg, head) in (0u32..).map(PgId).zip(&mut *heads) {
                // A place moves if both come closer to their shares by it.
                for place in 0..head.len() {
                    let (from, now) = (head[place], self.spread(head));
                    if self.lacks(from) > 0.5 || !may(number(pg), from) {
                        continue;
                    }
                    let gains = |to: usize| self.lacks(to) - self.lacks(from) - 1.0;
                    let fits = |to: &usize| {
                        !head.contains(to)
                            && self.lacks(*to) > 0.0
                            && gains(*to) > gain
                            && self.spread(&replaced(head, place, *to)) >= now
                    };
                    let to = (0..self.all.len()).filter(fits).max_by(|a, b| {
                        let order = |server: &usize| score(pg, &self.all[*server]);
                        self.lacks(*a).total_cmp(&self.lacks(*b)).then(order(b).total_cmp(&order(a)))
                    });
                    if let Some(to) = to {
                        self.give(head, place, to);
                        moved = true;
                        break; // one in each pass: servers that join together do not share all their groups
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }
}

impl Servers<'_> {
    /// Where a server above its share has a place that moves anyway, and those below their share cannot take it: a third
    /// server takes it, and gives a place that moves anyway to one below.
    fn exchange(&mut self, heads: &mut [Vec<usize>], moves: impl Fn(usize, usize) -> bool) {
        let free: Vec<(usize, usize)> = (0..heads.len())
            .flat_map(|pg| (0..heads[pg].len()).map(move |place| (pg, place)))
            .filter(|(pg, place)| moves(*pg, heads[*pg][*place]))
            .collect();
        let mut searches = 0;
        for (pg, place) in &free {
            if self.lacks(heads[*pg][*place]) > -0.5 {
                continue;
            }
            searches += 1;
            if searches > EXCHANGES_MAX {
                return;
            }
            let is_below = |server: &usize| self.lacks(*server) > 0.5;
            let Some(below) =
                (0..self.all.len()).filter(is_below).max_by(|a, b| self.lacks(*a).total_cmp(&self.lacks(*b)))
            else {
                return;
            };
            let keeps = |pg: usize, place: usize, server: usize| {
                let head: &[usize] = &heads[pg];
                !head.contains(&server) && self.spread(&replaced(head, place, server)) >= self.spread(head)
            };
            let third = free.iter().find(|(other, at)| {
                let third = heads[*other][*at];
                other != pg && third != below && keeps(*pg, *place, third) && keeps(*other, *at, below)
            });
            if let Some((other, at)) = third {
                let third = heads[*other][*at];
                self.give(&mut heads[*pg], *place, third);
                self.give(&mut heads[*other], *at, below);
            }
        }
    }
}

/// A group's place in the table.
fn number(pg: PgId) -> usize {
    crate::units::len_usize(pg.0.into())
}

fn replaced(head: &[usize], place: usize, server: usize) -> Vec<usize> {
    let mut head = head.to_vec();
    head[place] = server;
    head
}

/// Each server's places: by weight, at most one in each group.
#[expect(clippy::as_conversions, reason = "counts far below 2^53")]
fn shares(all: &[Candidate], groups: usize, width: usize) -> Vec<f64> {
    let cap = groups as f64;
    let mut shares = vec![0.0; all.len()];
    let mut open: Vec<usize> = (0..all.len()).collect();
    let mut left = cap * width as f64;
    loop {
        let weight: f64 = open.iter().map(|server| f64::from(all[*server].weight)).sum();
        let share = |server: usize| left * f64::from(all[server].weight) / weight;
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|server| share(**server) >= cap);
        if full.is_empty() {
            rest.iter().for_each(|server| shares[*server] = share(*server));
            return shares;
        }
        full.iter().for_each(|server| shares[*server] = cap);
        left -= cap * full.len() as f64;
        open = rest;
    }
}

#[cfg(test)]
mod tests {
    use crate::id::{LayoutVersion, ServerId};
    use crate::layout::{Candidate, Domain, Layout};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const GROUPS: u32 = 256;

    fn server(id: u32, zone: u32, rack: u32, weight: u32) -> Candidate {
        let domain = Domain { zone: format!("z{zone}"), rack: format!("r{rack}"), host: format!("h{id}") };
        Candidate { server: ServerId(id), domain, weight }
    }

    fn next(before: &Layout, all: &[Candidate]) -> Layout {
        let next = before.next(3, all);
        assert_eq!(next.version.0, before.version.0 + 1);
        next
    }

    fn empty() -> Layout {
        Layout { version: LayoutVersion(0), groups: vec![Vec::new(); crate::units::len_usize(GROUPS.into())] }
    }

    fn load(layout: &Layout) -> BTreeMap<ServerId, u32> {
        let mut load = BTreeMap::new();
        for server in layout.groups.iter().flat_map(|group| &group[..3.min(group.len())]) {
            *load.entry(*server).or_default() += 1;
        }
        load
    }

    /// Replicas that are on other servers than before.
    fn moves(before: &Layout, after: &Layout) -> u32 {
        let new = |(old, new): (&Vec<ServerId>, &Vec<ServerId>)| {
            let old: BTreeSet<&ServerId> = old.iter().take(3).collect();
            new.iter().take(3).filter(|server| !old.contains(server)).count()
        };
        u32::try_from(before.groups.iter().zip(&after.groups).map(new).sum::<usize>()).unwrap()
    }

    /// Within 5 % of its share, or two places.
    fn assert_level(layout: &Layout, all: &[Candidate]) {
        let load = load(layout);
        let total: u32 = all.iter().map(|c| c.weight).sum();
        for c in all {
            let share = f64::from(GROUPS * 3) * f64::from(c.weight) / f64::from(total);
            let have = f64::from(load.get(&c.server).copied().unwrap_or(0));
            assert!((have - share).abs() <= (share * 0.05).max(2.0), "{}: {have} of {share}: {load:?}", c.server);
        }
    }

    /// As many zones, racks and hosts as there are, up to three.
    fn assert_spread(layout: &Layout, all: &[Candidate]) {
        let domain: BTreeMap<ServerId, &Domain> = all.iter().map(|c| (c.server, &c.domain)).collect();
        let count = |servers: &[ServerId]| {
            let zones: BTreeSet<&String> = servers.iter().map(|s| &domain[s].zone).collect();
            let racks: BTreeSet<(&String, &String)> =
                servers.iter().map(|s| (&domain[s].zone, &domain[s].rack)).collect();
            (zones.len().min(3), racks.len().min(3), servers.len().min(3))
        };
        let possible = count(&all.iter().map(|c| c.server).collect::<Vec<_>>());
        for group in &layout.groups {
            assert_eq!(count(&group[..3.min(group.len())]), possible, "{group:?}");
            assert_eq!(group.iter().collect::<BTreeSet<_>>().len(), group.len(), "twice in {group:?}");
        }
    }

    /// Zones of about equal weight, so that the domains leave the weights a way.
    fn cluster() -> impl Strategy<Value = Vec<Candidate>> {
        (3u32..6, 2u32..5).prop_flat_map(|(zones, per_zone)| {
            prop::collection::vec(10u32..20, crate::units::len_usize((zones * per_zone).into())).prop_map(
                move |weights| {
                    let place = |(n, weight): (u32, u32)| server(n + 1, n % zones, n / zones % 2, weight);
                    let mut all: Vec<Candidate> = (0..).zip(weights).map(place).collect();
                    if zones == 3 {
                        all.iter_mut().for_each(|c| c.weight = 10); // each zone holds one replica of everything
                    }
                    all
                },
            )
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn load_follows_the_weights_domains_are_kept_and_little_moves(all in cluster(), leaves: prop::sample::Index) {
            let slack = f64::from(u32::try_from(all.len()).unwrap()); // shares are no whole numbers
            let first = next(&empty(), &all);
            assert_spread(&first, &all);
            assert_level(&first, &all);
            prop_assert_eq!(&next(&first, &all).groups, &first.groups, "nothing to do");

            let new = server(99, 7, 0, 15);
            let more: Vec<Candidate> = all.iter().cloned().chain([new]).collect();
            let grown = next(&first, &more);
            assert_spread(&grown, &more);
            assert_level(&grown, &more);
            let must = load(&grown)[&ServerId(99)];
            let made = moves(&first, &grown);
            // Mostly within a tenth. Where the new server's zone is new, too, some groups change twice.
            prop_assert!(f64::from(made) <= f64::from(must) * 1.3 + slack, "{made} moves, {must} are needed");

            let mut fewer = more.clone();
            let gone = fewer.remove(leaves.index(fewer.len()));
            let shrunk = next(&grown, &fewer);
            assert_spread(&shrunk, &fewer);
            let must = load(&grown)[&gone.server];
            let made = moves(&grown, &shrunk);
            let excess = excess(&grown, &fewer, gone.server);
            // A place may have to go round by a third server where the domains leave no direct way.
            prop_assert!(f64::from(made) <= f64::from(must + excess) * 1.4 + slack, "{made} moves, {must}+{excess} are needed");

            let apart = |c: &Candidate| Candidate { domain: server(c.server.0, 1, 1, 1).domain, ..c.clone() };
            let (all, fewer) = (more.iter().map(apart).collect::<Vec<_>>(), fewer.iter().map(apart).collect::<Vec<_>>());
            let (first, second) = (next(&empty(), &all), next(&next(&empty(), &all), &fewer));
            assert_level(&second, &fewer);
            let (must, made) = (load(&first)[&gone.server], moves(&first, &second));
            prop_assert!(f64::from(made) <= f64::from(must) * 1.2 + slack, "{made} moves, {must} are needed");
        }

        #[test]
        fn few_domains_are_used_as_well_as_they_can(zones in 1u32..4, servers in 1u32..8, weight in 1u32..50) {
            let all: Vec<Candidate> = (0..servers).map(|n| server(n + 1, n % zones, n % 2, weight + n)).collect();
            let layout = next(&empty(), &all);
            assert_spread(&layout, &all);
            prop_assert_eq!(&next(&layout, &all).groups, &layout.groups, "nothing to do");
        }
    }

    /// Places that servers have above their new shares though one left: domains made it so.
    fn excess(layout: &Layout, all: &[Candidate], gone: ServerId) -> u32 {
        let (load, total) = (load(layout), all.iter().map(|c| c.weight).sum::<u32>());
        let share = |c: &Candidate| GROUPS * 3 * c.weight / total;
        all.iter()
            .filter(|c| c.server != gone)
            .map(|c| load.get(&c.server).map_or(0, |have| have.saturating_sub(share(c))))
            .sum()
    }
}
