//! Chains of moves: one server gives a place to a second, which gives one in another group to a third, and so on. Only the
//! two ends have a place less or more then. Where the domains leave no direct way between two servers there is often one
//! round by others, and places that are new anyway go round for nothing.
//!
//! Each time the cheapest chain is made: first counts how much closer its ends come to their shares, then how many replicas
//! it moves that would have stayed, then its length. That is min-cost flow by successive shortest paths (Jewell 1962; Busacker
//! and Gowen 1960), with the domains as a side condition on each step.
//!
//! It ends: a chain is made only if the ends come closer, and there is an end to that.

use super::{Candidate, Servers, score};
use crate::id::PgId;
use std::collections::{BTreeMap, BTreeSet};

/// What a step closer to a share is worth, in steps of chains ...
const CLOSER: i64 = 1 << 40;
/// ... and what it costs to move a replica that would have stayed.
const MOVED: i64 = 1 << 20;

/// What a move costs: the replica goes back to where it was or is new anyway, or it would have stayed.
const COSTS: [i64; 2] = [0, MOVED];

/// What a way costs that is not there.
const NO_WAY: i64 = i64::MAX;

pub(super) struct Chains<'s, 'a> {
    servers: &'s mut Servers<'a>,
    before: &'s [Vec<usize>],
    heads: &'s mut [Vec<usize>],
    /// Also what was there before may move.
    all_move: bool,
    /// Of each server the groups it is in, in the order in which it gives them away ([`turn`]); also some that it is not in
    /// any more, and some twice. What changes is added at the end.
    held: Vec<Vec<usize>>,
    /// For each pair of servers and each cost: how much of `held` was looked through, and led nowhere.
    seen: Vec<[usize; COSTS.len()]>,
    /// For each pair of servers what the cheapest way costs, or [`NO_WAY`] ...
    costs: Vec<i64>,
    /// ... and the group in which one gives its place to the other.
    groups: Vec<usize>,
}

/// When a server gives this group away: an order that has nothing to do with its place in the group. In its rendezvous order
/// it would give away first the groups that it is first in, and whoever is new would get most of all reads.
fn turn(pg: PgId, server: &Candidate) -> f64 {
    score(PgId(!pg.0), server)
}

impl<'s, 'a> Chains<'s, 'a> {
    pub(super) fn new(
        servers: &'s mut Servers<'a>,
        before: &'s [Vec<usize>],
        heads: &'s mut [Vec<usize>],
        all_move: bool,
    ) -> Chains<'s, 'a> {
        let count = servers.field.all.len();
        let mut held: Vec<Vec<(f64, usize)>> = vec![Vec::new(); count];
        for (number, (pg, head)) in (0u32..).map(PgId).zip(&*heads).enumerate() {
            head.iter().for_each(|server| held[*server].push((turn(pg, &servers.field.all[*server]), number)));
        }
        let in_order = |mut groups: Vec<(f64, usize)>| {
            groups.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            groups.into_iter().map(|(_, group)| group).collect()
        };
        let held = held.into_iter().map(in_order).collect();
        let pairs = count * count;
        let (seen, costs, groups) = (vec![[0; COSTS.len()]; pairs], vec![NO_WAY; pairs], vec![0; pairs]);
        let mut chains = Chains { servers, before, heads, all_move, held, seen, costs, groups };
        (0..count).for_each(|server| chains.look(server));
        chains
    }

    /// Makes chains as long as one brings its ends closer to their shares.
    pub(super) fn level(mut self) {
        while let Some(chain) = self.best() {
            match self.clash(&chain) {
                None => self.make(&chain),
                Some((from, to)) => self.pass_over(from, to),
            }
        }
    }

    /// What it costs that `to` takes the place of `from` in a group. `None`: it cannot.
    fn cost(&self, group: usize, from: usize, to: usize) -> Option<i64> {
        let head = &self.heads[group];
        let is_new = |server: usize| !self.before[group].contains(&server);
        let may = head.contains(&from) && !head.contains(&to) && (self.all_move || is_new(from));
        may.then(|| if is_new(to) && !is_new(from) { MOVED } else { 0 })
    }

    fn fits(&self, group: usize, from: usize, to: usize) -> bool {
        let head = &self.heads[group];
        self.servers.spread(&replaced(head, from, to)) >= self.servers.spread(head)
    }

    /// Finds the ways from a server to all others anew.
    fn look(&mut self, from: usize) {
        let takers = 0..self.servers.field.all.len();
        for to in takers.filter(|to| *to != from && self.servers.field.all[*to].weight > 0).collect::<Vec<_>>() {
            self.look_to(from, to);
        }
    }

    fn look_to(&mut self, from: usize, to: usize) {
        let pair = self.pair(from, to);
        self.costs[pair] = NO_WAY;
        for (class, cost) in COSTS.into_iter().enumerate() {
            let (groups, seen) = (&self.held[from], self.seen[pair][class]);
            let fits = |group: &usize| self.cost(*group, from, to) == Some(cost) && self.fits(*group, from, to);
            let found = groups[seen..].iter().position(fits).map(|skip| (seen + skip, groups[seen + skip]));
            self.seen[pair][class] = found.map_or(groups.len(), |(at, _)| at);
            if let Some((_, group)) = found {
                (self.costs[pair], self.groups[pair]) = (cost, group);
                return;
            }
        }
    }

    fn pair(&self, from: usize, to: usize) -> usize {
        from * self.servers.field.all.len() + to
    }

    /// What one place more or less at a server is worth: below 0 it comes closer to its share. `None`: it has none to give.
    fn worth(&self, server: usize, more: i64) -> Option<i64> {
        let load = self.servers.load[server];
        let changed = load.checked_add_signed(more)?;
        Some((self.servers.distance(server, changed) - self.servers.distance(server, load)) * CLOSER)
    }

    /// The cheapest chain that is worth more than it costs, from its end.
    fn best(&self) -> Option<Vec<(usize, usize)>> {
        let count = self.servers.field.all.len();
        let mut price: Vec<Option<i64>> = (0..count).map(|server| self.worth(server, -1)).collect();
        let mut came: Vec<Option<usize>> = vec![None; count];
        // No step costs less than 1, so that no chain bites its own tail, and as many rounds as there are servers do.
        let mut changed: BTreeSet<usize> = (0..count).collect();
        for _ in 0..count {
            for from in std::mem::take(&mut changed) {
                let Some(so_far) = price[from] else { continue };
                let ways = &self.costs[self.pair(from, 0)..][..count];
                for (to, cost) in ways.iter().enumerate().filter(|(_, cost)| **cost < NO_WAY) {
                    let by = so_far + cost + 1;
                    if price[to].is_none_or(|price| by < price) {
                        (price[to], came[to]) = (Some(by), Some(from));
                        changed.insert(to);
                    }
                }
            }
        }
        let ends = (0..count).filter(|server| came[*server].is_some());
        let (total, end) = ends.filter_map(|server| Some((price[server]? + self.worth(server, 1)?, server))).min()?;
        if total >= 0 {
            return None;
        }
        let (mut chain, mut to) = (Vec::new(), end);
        while let Some(from) = came[to] {
            chain.push((from, to));
            to = from;
        }
        Some(chain)
    }

    /// The group of a step.
    fn group(&self, (from, to): (usize, usize)) -> usize {
        self.groups[self.pair(from, to)]
    }

    /// Each step alone keeps a group spread; several in one group may not. One of those.
    fn clash(&self, chain: &[(usize, usize)]) -> Option<(usize, usize)> {
        let mut after: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for step in chain {
            let group = self.group(*step);
            let head = after.get(&group).unwrap_or(&self.heads[group]);
            let fits = head.contains(&step.0) && !head.contains(&step.1);
            let changed = replaced(head, step.0, step.1);
            if !fits || self.servers.spread(&changed) < self.servers.spread(&self.heads[group]) {
                return Some(*step);
            }
            after.insert(group, changed);
        }
        None
    }

    /// The way between two servers is not taken; the next one is looked for.
    fn pass_over(&mut self, from: usize, to: usize) {
        let pair = self.pair(from, to);
        if let Some(class) = COSTS.iter().position(|class| *class == self.costs[pair]) {
            self.seen[pair][class] += 1;
        }
        self.look_to(from, to);
    }

    fn make(&mut self, chain: &[(usize, usize)]) {
        let groups: Vec<usize> = chain.iter().map(|step| self.group(*step)).collect();
        let mut stale = BTreeSet::new();
        for ((from, to), group) in chain.iter().zip(&groups) {
            self.heads[*group] = replaced(&self.heads[*group], *from, *to);
            self.servers.load[*from] -= 1;
            self.servers.load[*to] += 1;
            stale.insert(*from);
        }
        for group in groups {
            for server in &self.heads[group] {
                self.held[*server].push(group);
                stale.insert(*server);
            }
        }
        stale.into_iter().for_each(|server| self.look(server));
    }
}

fn replaced(head: &[usize], from: usize, to: usize) -> Vec<usize> {
    head.iter().map(|server| if *server == from { to } else { *server }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServerId;
    use crate::layout::{Domain, Field, domains};

    /// Two steps in one group, each of which keeps it in three zones, and both of which do not; the second is passed over
    /// for the next group in which it fits.
    #[test]
    fn steps_that_clash_in_a_group_are_not_taken_together() {
        let zone = |zone: u32| Domain { zone: zone.to_string(), ..Domain::default() };
        let candidate = |(id, at)| Candidate { server: ServerId(id), domain: zone(at), weight: 1 };
        let all: Vec<Candidate> = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)].into_iter().map(candidate).collect();
        let domains = domains(&all);
        let mut servers = Servers::new(Field { all: &all, domains: &domains }, 2, 3);
        let before = vec![vec![0, 1, 2]; 2];
        let mut heads = servers.full(before.clone(), 3);
        let mut chains = Chains::new(&mut servers, &before, &mut heads, true);
        let (first, second) = ((0, 3), (1, 4));
        let (shared, other) = (chains.group(first), 1 - chains.group(first));
        if chains.group(second) != shared {
            chains.held[1].reverse();
            let pair = chains.pair(1, 4);
            chains.seen[pair] = [0; COSTS.len()];
            chains.look_to(1, 4);
        }
        assert_eq!(chains.group(second), shared);
        assert_eq!(chains.clash(&[first]), None);
        assert_eq!(chains.clash(&[second]), None);
        assert_eq!(chains.clash(&[first, second]), Some(second));
        chains.pass_over(second.0, second.1);
        assert_eq!(chains.group(second), other);
        assert_eq!(chains.clash(&[first, second]), None);
        chains.pass_over(second.0, second.1);
        assert_eq!(chains.costs[chains.pair(1, 4)], NO_WAY, "there is no third group");
    }
}
