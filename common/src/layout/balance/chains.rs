//! Chains of moves: one server gives a place to a second, which gives one in another group to a third, and so on. Only the
//! two ends have a place less or more then. Where the domains leave no direct way between two servers there is often one
//! round by others, and places that are new anyway go round for nothing.
//!
//! Each time the cheapest chain is made: first counts how much closer its ends come to their shares, then how many replicas
//! it moves that would have stayed, then its length. That is min-cost flow by successive shortest paths (Jewell 1962; Busacker
//! and Gowen 1960), with the domains as a side condition on each step.
//!
//! It ends: a chain is made only if the ends come closer, and there is an end to that.

use super::{Servers, score};
use crate::id::PgId;
use std::collections::{BTreeMap, BTreeSet};

/// What a step closer to a share is worth, in steps of chains ...
const CLOSER: i64 = 1 << 40;
/// ... and what it costs to move a replica that would have stayed.
const MOVED: i64 = 1 << 20;

/// What a move costs: the replica goes back to where it was or is new anyway, or it would have stayed.
const COSTS: [i64; 2] = [0, MOVED];

/// A group in which a server gives its place to another one, and what that costs.
type Way = (i64, usize);

pub(super) struct Chains<'s, 'a> {
    servers: &'s mut Servers<'a>,
    before: &'s [Vec<usize>],
    heads: &'s mut [Vec<usize>],
    /// Also what was there before may move.
    all_move: bool,
    /// Of each server the groups it is in, in its own order; also some that it is not in any more, and some twice. What changes
    /// is added at the end.
    held: Vec<Vec<usize>>,
    /// For each pair of servers and each cost: how much of `held` was looked through, and led nowhere.
    seen: Vec<[usize; COSTS.len()]>,
    /// For each pair of servers the cheapest way.
    ways: Vec<Option<Way>>,
}

impl<'s, 'a> Chains<'s, 'a> {
    pub(super) fn new(
        servers: &'s mut Servers<'a>,
        before: &'s [Vec<usize>],
        heads: &'s mut [Vec<usize>],
        all_move: bool,
    ) -> Chains<'s, 'a> {
        let count = servers.all.len();
        let mut held: Vec<Vec<(f64, usize)>> = vec![Vec::new(); count];
        for (number, (pg, head)) in (0u32..).map(PgId).zip(&*heads).enumerate() {
            head.iter().for_each(|server| held[*server].push((score(pg, &servers.all[*server]), number)));
        }
        let in_order = |mut groups: Vec<(f64, usize)>| {
            groups.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            groups.into_iter().map(|(_, group)| group).collect()
        };
        let held = held.into_iter().map(in_order).collect();
        let (seen, ways) = (vec![[0; COSTS.len()]; count * count], vec![None; count * count]);
        let mut chains = Chains { servers, before, heads, all_move, held, seen, ways };
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
        let takers = 0..self.servers.all.len();
        for to in takers.filter(|to| *to != from && self.servers.all[*to].weight > 0).collect::<Vec<_>>() {
            self.look_to(from, to);
        }
    }

    fn look_to(&mut self, from: usize, to: usize) {
        let pair = self.pair(from, to);
        self.ways[pair] = None;
        for (class, cost) in COSTS.into_iter().enumerate() {
            let (groups, seen) = (&self.held[from], self.seen[pair][class]);
            let fits = |group: &usize| self.cost(*group, from, to) == Some(cost) && self.fits(*group, from, to);
            let found = groups[seen..].iter().position(fits).map(|skip| (seen + skip, groups[seen + skip]));
            self.seen[pair][class] = found.map_or(groups.len(), |(at, _)| at);
            if let Some((_, group)) = found {
                self.ways[pair] = Some((cost, group));
                return;
            }
        }
    }

    fn pair(&self, from: usize, to: usize) -> usize {
        from * self.servers.all.len() + to
    }

    /// What one place more or less at a server is worth: below 0 it comes closer to its share. `None`: it has none to give.
    fn worth(&self, server: usize, more: i64) -> Option<i64> {
        let load = self.servers.load[server];
        let changed = load.checked_add_signed(more)?;
        Some((self.servers.distance(server, changed) - self.servers.distance(server, load)) * CLOSER)
    }

    /// The cheapest chain that is worth more than it costs, from its end.
    fn best(&self) -> Option<Vec<(usize, usize)>> {
        let count = self.servers.all.len();
        let mut price: Vec<Option<i64>> = (0..count).map(|server| self.worth(server, -1)).collect();
        let mut came: Vec<Option<usize>> = vec![None; count];
        // No step costs less than 1, so that no chain bites its own tail, and as many rounds as there are servers do.
        for _ in 0..count {
            let mut changed = false;
            for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
                let (Some((cost, _)), Some(so_far)) = (self.ways[self.pair(from, to)], price[from]) else { continue };
                let by = so_far + cost + 1;
                if price[to].is_none_or(|price| by < price) {
                    (price[to], came[to], changed) = (Some(by), Some(from), true);
                }
            }
            if !changed {
                break;
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
        self.ways[self.pair(from, to)].expect("chains are made of ways").1
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
        if let Some((cost, _)) = self.ways[pair]
            && let Some(class) = COSTS.iter().position(|class| *class == cost)
        {
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
