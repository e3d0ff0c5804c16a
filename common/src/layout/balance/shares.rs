//! How many places each server is to have.

use super::Candidate;
use std::collections::{BTreeMap, BTreeSet};

/// A part of all places: `places * weight / total`. Kept as a fraction, so that rounding is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    places: u64,
    weight: u64,
    total: u64,
}

impl Share {
    pub(super) fn floor(self) -> u64 {
        (self.places * self.weight).checked_div(self.total).unwrap_or(0)
    }

    pub(super) fn ceil(self) -> u64 {
        if self.total == 0 { 0 } else { (self.places * self.weight).div_ceil(self.total) }
    }

    /// Which part of it `load` places are, in millionths.
    pub(super) fn part(self, load: u64) -> u128 {
        let share = u128::from(self.places) * u128::from(self.weight);
        (u128::from(load) * u128::from(self.total) * 1_000_000).checked_div(share).unwrap_or(u128::MAX)
    }

    /// In millionths of a place.
    fn millionths(self) -> u128 {
        let share = u128::from(self.places) * u128::from(self.weight);
        (share * 1_000_000).checked_div(self.total.into()).unwrap_or(0)
    }
}

/// Each server's places: by weight as far as domains allow it. Where there are more domains than replicas, none may have
/// two places in a group (zones, else racks, else hosts, else servers), and what it cannot take goes to the others; and
/// each domain one level up has at least one place in each group.
pub(super) fn shares(all: &[Candidate], domains: &[[usize; 3]], groups: u64, width: usize) -> Vec<Share> {
    let mut open: Vec<usize> = (0..all.len()).filter(|server| all[*server].weight > 0).collect();
    let width = width.min(open.len());
    let domain = |level: usize, server: usize| match level {
        0 => 0,
        1..=3 => domains[server][level - 1],
        _ => server,
    };
    let count = |level: &usize| open.iter().map(|server| domain(*level, *server)).collect::<BTreeSet<_>>().len();
    let apart = (1..4).find(|level| count(level) >= width).unwrap_or(4);
    let mut shares = vec![Share::default(); all.len()];
    let mut places = groups * crate::units::len_u64(width);
    let weight = |server: usize| u64::from(all[server].weight);
    loop {
        share_out(places, groups, &open, &weight, &|server| domain(apart, server), &mut shares);
        // Domains that would not have one place in each group have just that.
        let mut sums = BTreeMap::new();
        for server in &open {
            *sums.entry(domain(apart - 1, *server)).or_default() += shares[*server].millionths();
        }
        sums.retain(|_, sum: &mut u128| *sum < u128::from(groups) * 1_000_000);
        if sums.is_empty() || sums.len() == 1 && apart == 1 {
            return shares;
        }
        for short in sums.keys() {
            let (inside, outside) =
                open.iter().partition::<Vec<usize>, _>(|server| domain(apart - 1, **server) == *short);
            share_out(groups, groups, &inside, &weight, &|server| domain(apart, server), &mut shares);
            (places, open) = (places - groups, outside);
        }
    }
}

/// Shares `places` out by weight, at most `cap` to each domain.
fn share_out(
    mut places: u64,
    cap: u64,
    servers: &[usize],
    weight: &impl Fn(usize) -> u64,
    domain: &impl Fn(usize) -> usize,
    shares: &mut [Share],
) {
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    servers.iter().for_each(|server| open.entry(domain(*server)).or_default().push(*server));
    let sum = |servers: &Vec<usize>| servers.iter().map(|server| weight(*server)).sum::<u64>();
    let wide = |number: u64| u128::from(number);
    loop {
        let total: u64 = open.values().map(sum).sum();
        let (full, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            open.into_iter().partition(|(_, inside)| wide(places) * wide(sum(inside)) >= wide(cap) * wide(total));
        for inside in full.values() {
            let total = sum(inside);
            inside.iter().for_each(|server| shares[*server] = Share { places: cap, weight: weight(*server), total });
            places -= cap;
        }
        if full.is_empty() || rest.is_empty() {
            let share = |server: usize| Share { places, weight: weight(server), total };
            rest.values().flatten().for_each(|server| shares[*server] = share(*server));
            return;
        }
        open = rest;
    }
}
