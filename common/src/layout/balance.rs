//! The next layout from the present one: hardly more replicas move than the weights and the failure domains ask for.
//!
//! 1. A group keeps its servers, but for those that are gone and those that stand in the way of more domains.
//! 2. It is filled up: with servers in other domains first, then with those that have least of their share.
//! 3. Chains of moves bring every server to its share (`chains`).
//!
//! A server's share is its weight's part of all places, as far as the domains allow (`shares`). It ends with that, rounded up
//! or down. With nothing to do the result is the layout it began with.

use super::{Candidate, Field, nearness, score};
use crate::id::{PgId, ServerId};
use crate::units::len_u64;
use std::collections::BTreeMap;

mod chains;
mod shares;
#[cfg(test)]
mod tests;

use chains::Chains;
use shares::{Share, shares};

/// In how many zones, racks and hosts a set of servers is; more zones are better than more racks, and so on.
type Spread = [usize; 3];

/// Candidates by number, what each is to have, and what it has.
struct Servers<'a> {
    field: Field<'a>,
    shares: Vec<Share>,
    /// Places that each has.
    load: Vec<u64>,
}

/// The first `replicas` servers of each group. The candidates have weights above 0; `before` are the groups until now.
pub(super) fn heads(before: &[Vec<ServerId>], replicas: usize, field: Field<'_>) -> Vec<Vec<ServerId>> {
    let width = replicas.min(field.all.len());
    let mut servers = Servers::new(field, before.len(), width);
    let before = numbered(before, replicas, field.all);
    let best = servers.spread(&(0..field.all.len()).collect::<Vec<_>>()).map(|count| count.min(width));
    let kept = before.iter().map(|head| servers.kept(head, width, best)).collect();
    let mut heads = servers.full(kept, width);
    Chains::new(&mut servers, &before, &mut heads, true).level();
    let heads: Vec<Vec<usize>> = heads.iter().zip(&before).map(|(head, before)| in_place(head, before)).collect();
    named(&heads, field.all)
}

/// As [`heads`], but what is there stays. Candidates of weight 0 get no more.
pub(super) fn filled(before: &[Vec<ServerId>], replicas: usize, field: Field<'_>) -> Vec<Vec<ServerId>> {
    let width = replicas.min(field.all.len());
    let mut servers = Servers::new(field, before.len(), width);
    let before = numbered(before, replicas, field.all);
    let mut heads = servers.full(before.clone(), width);
    Chains::new(&mut servers, &before, &mut heads, false).level();
    named(&heads, field.all)
}

/// The servers of each group that are still there.
fn numbered(before: &[Vec<ServerId>], replicas: usize, candidates: &[Candidate]) -> Vec<Vec<usize>> {
    let numbers: BTreeMap<ServerId, usize> = (0..).zip(candidates).map(|(number, c)| (c.server, number)).collect();
    let there = |group: &Vec<ServerId>| group.iter().take(replicas).filter_map(|id| numbers.get(id).copied()).collect();
    before.iter().map(there).collect()
}

fn named(heads: &[Vec<usize>], candidates: &[Candidate]) -> Vec<Vec<ServerId>> {
    heads.iter().map(|head| head.iter().map(|server| candidates[*server].server).collect()).collect()
}

/// The same servers: those that were there before where they were among those that are still servers, the others in the
/// places between.
fn in_place(head: &[usize], before: &[usize]) -> Vec<usize> {
    let mut new = head.iter().filter(|server| !before.contains(server));
    let place = |server: &usize| if head.contains(server) { Some(*server) } else { new.next().copied() };
    let mut placed: Vec<usize> = before.iter().filter_map(place).collect();
    placed.extend(new);
    placed
}

impl<'a> Servers<'a> {
    fn new(field: Field<'a>, groups: usize, width: usize) -> Servers<'a> {
        let shares = shares(field.all, field.domains, len_u64(groups), width);
        Servers { field, shares, load: vec![0; field.all.len()] }
    }

    fn spread(&self, head: &[usize]) -> Spread {
        let is_first = |at: usize, level: usize| {
            let domain = |place: usize| self.field.domains[head[place]][level];
            (0..at).all(|before| domain(before) != domain(at))
        };
        [0, 1, 2].map(|level| (0..head.len()).filter(|at| is_first(*at, level)).count())
    }

    /// The most servers of a group, the first rather than later ones, that `width` servers can have among them which
    /// are spread as well as it goes: each of the missing adds one zone, rack and host at most.
    fn kept(&self, head: &[usize], width: usize, best: Spread) -> Vec<usize> {
        let mut kept = Vec::with_capacity(width);
        for server in head {
            kept.push(*server);
            let missing = width.checked_sub(kept.len());
            let enough = |missing| self.spread(&kept).iter().zip(best).all(|(count, best)| count + missing >= best);
            if !missing.is_some_and(enough) {
                kept.pop();
            }
        }
        kept
    }

    /// Fills all groups up.
    fn full(&mut self, mut heads: Vec<Vec<usize>>, width: usize) -> Vec<Vec<usize>> {
        for server in heads.iter().flatten() {
            self.load[*server] += 1;
        }
        let part = |servers: &Self, server: usize| servers.shares[server].part(servers.load[server]);
        let mut parts: Vec<u128> = (0..self.load.len()).map(|server| part(self, server)).collect();
        for (pg, head) in (0u32..).map(PgId).zip(&mut heads) {
            while head.len() < width
                && let Some(next) = self.choose(pg, head, &parts)
            {
                head.push(next);
                self.load[next] += 1;
                parts[next] = part(self, next);
            }
        }
        heads
    }

    /// Who comes into this group next: furthest from those that are there, then with the least part of its share, then first
    /// in the group's order.
    fn choose(&self, pg: PgId, head: &[usize], parts: &[u128]) -> Option<usize> {
        let Field { all, domains } = self.field;
        let near = |server: usize| head.iter().map(|other| nearness(domains[server], domains[*other])).max();
        let rank = |server: usize| (near(server), parts[server]);
        let free = || (0..all.len()).filter(|server| all[*server].weight > 0 && !head.contains(server));
        let first = free().map(rank).min()?;
        let equal = free().filter(|server| rank(*server) == first);
        equal.min_by(|a, b| score(pg, &all[*a]).total_cmp(&score(pg, &all[*b])))
    }

    /// How far this many places are from its share, rounded up or down: the square, so that it is the furthest that move first.
    fn distance(&self, server: usize, load: u64) -> i64 {
        let share = self.shares[server];
        let far = share.floor().saturating_sub(load) + load.saturating_sub(share.ceil());
        let far = i64::try_from(far).expect("places of 65,536 groups");
        far * far
    }
}
