//! Properties of layouts (DESIGN 6).

use super::{Servers, numbered};
use crate::id::{LayoutVersion, ServerId};
use crate::layout::{Candidate, Domain, Field, Layout, domains};
use crate::units::{len_u64, len_usize};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

mod exact;

const GROUPS: u32 = 256;
/// Groups where moves are compared with the exact least.
const FEW_GROUPS: u32 = 64;

fn server(id: u32, zone: u32, rack: u32, weight: u32) -> Candidate {
    let domain = Domain { zone: format!("z{zone}"), rack: format!("r{rack}"), host: format!("h{id}") };
    Candidate { server: ServerId(id), domain, weight }
}

fn next(before: &Layout, replicas: u8, all: &[Candidate]) -> Layout {
    let next = before.next(replicas, all);
    assert_eq!(next.version.0, before.version.0 + 1);
    next
}

fn empty(groups: u32) -> Layout {
    Layout { version: LayoutVersion(0), groups: vec![Vec::new(); len_usize(groups.into())] }
}

/// Places of each server among the first `replicas`.
fn load(layout: &Layout, replicas: u8) -> BTreeMap<ServerId, u64> {
    let mut load = BTreeMap::new();
    for server in layout.groups.iter().flat_map(|group| group.iter().take(replicas.into())) {
        *load.entry(*server).or_default() += 1;
    }
    load
}

/// Replicas that are on other servers than before.
fn moves(before: &Layout, after: &Layout, replicas: u8) -> u64 {
    let head = |group: &[ServerId]| group.iter().take(replicas.into()).copied().collect::<BTreeSet<_>>();
    let new = |(old, new): (&Vec<ServerId>, &Vec<ServerId>)| head(new).difference(&head(old)).count();
    len_u64(before.groups.iter().zip(&after.groups).map(new).sum())
}

/// Within 5 % of its weight's part, or two places.
fn assert_level(layout: &Layout, replicas: u8, all: &[Candidate]) {
    let load = load(layout, replicas);
    let total: u32 = all.iter().map(|c| c.weight).sum();
    for c in all {
        let share = f64::from(GROUPS * u32::from(replicas)) * f64::from(c.weight) / f64::from(total);
        let have = f64::from(u32::try_from(load.get(&c.server).copied().unwrap_or(0)).unwrap());
        assert!((have - share).abs() <= (share * 0.05).max(2.0), "{}: {have} of {share}: {load:?}", c.server);
    }
}

/// As many zones, racks and hosts as there are, up to one for each replica, and nobody twice.
fn assert_spread(layout: &Layout, replicas: u8, all: &[Candidate]) {
    let domain: BTreeMap<ServerId, &Domain> = all.iter().map(|c| (c.server, &c.domain)).collect();
    let count = |servers: &[ServerId]| {
        let zones: BTreeSet<_> = servers.iter().map(|s| &domain[s].zone).collect();
        let racks: BTreeSet<_> = servers.iter().map(|s| (&domain[s].zone, &domain[s].rack)).collect();
        let hosts: BTreeSet<_> = servers.iter().map(|s| domain[s]).collect();
        [zones.len(), racks.len(), hosts.len(), servers.len()].map(|count| count.min(replicas.into()))
    };
    let possible = count(&all.iter().map(|c| c.server).collect::<Vec<_>>());
    for group in &layout.groups {
        assert_eq!(count(&group[..group.len().min(replicas.into())]), possible, "{group:?}");
        assert_eq!(group.iter().collect::<BTreeSet<_>>().len(), group.len(), "twice in {group:?}");
    }
}

/// The next layout: spread as widely as it goes, every server at its share rounded up or down, and moves within a tenth of
/// the exact least (or two, where that is less).
#[track_caller]
fn assert_next(before: &Layout, replicas: u8, all: &[Candidate]) -> Layout {
    let after = next(before, replicas, all);
    assert_spread(&after, replicas, all);
    let width = usize::from(replicas).min(all.len());
    let domains = domains(all);
    let servers = Servers::new(Field { all, domains: &domains }, before.groups.len(), width);
    let load = load(&after, replicas);
    for (c, share) in all.iter().zip(&servers.shares) {
        let have = load.get(&c.server).copied().unwrap_or(0);
        assert!((share.floor()..=share.ceil()).contains(&have), "{}: {have} of {share:?}: {all:?}", c.server);
    }
    let made = moves(before, &after, replicas);
    let least = exact::least(&servers, &numbered(&before.groups, width, all), width);
    assert!(made <= least + (least / 10).max(2), "{made} moves, {least} are needed: {all:?}");
    after
}

/// Zones of about equal weight, so that the domains leave the weights a way.
fn cluster() -> impl Strategy<Value = Vec<Candidate>> {
    (3u32..6, 2u32..5).prop_flat_map(|(zones, per_zone)| {
        prop::collection::vec(13u32..17, len_usize((zones * per_zone).into())).prop_map(move |weights| {
            let place = |(n, weight): (u32, u32)| server(n + 1, n % zones, n / zones % 2, weight);
            let mut all: Vec<Candidate> = (0..).zip(weights).map(place).collect();
            if zones == 3 {
                all.iter_mut().for_each(|c| c.weight = 10); // each zone holds one replica of everything
            }
            all
        })
    })
}

/// A server anywhere: zone, rack, host, weight. Hosts hold several.
fn anywhere() -> impl Strategy<Value = (u32, u32, u32, u32)> {
    (0u32..4, 0u32..3, 0u32..3, 5u32..40)
}

fn at(id: u32, (zone, rack, host, weight): (u32, u32, u32, u32)) -> Candidate {
    let domain = Domain { zone: format!("z{zone}"), rack: format!("r{rack}"), host: format!("h{host}") };
    Candidate { server: ServerId(id), domain, weight }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn load_follows_the_weights_domains_are_kept_and_little_moves(all in cluster(), leaves: prop::sample::Index) {
        let first = next(&empty(GROUPS), 3, &all);
        assert_spread(&first, 3, &all);
        assert_level(&first, 3, &all);
        prop_assert_eq!(&next(&first, 3, &all).groups, &first.groups, "nothing to do");

        let new = server(99, 7, 0, 15);
        let more: Vec<Candidate> = all.iter().cloned().chain([new]).collect();
        let grown = next(&first, 3, &more);
        assert_level(&grown, 3, &more);

        let mut fewer = more.clone();
        fewer.remove(leaves.index(fewer.len()));
        let apart = |c: &Candidate| Candidate { domain: server(c.server.0, 1, 1, 1).domain, ..c.clone() };
        let (all, fewer) = (more.iter().map(apart).collect::<Vec<_>>(), fewer.iter().map(apart).collect::<Vec<_>>());
        let second = next(&next(&empty(GROUPS), 3, &all), 3, &fewer);
        assert_level(&second, 3, &fewer);
    }

    /// Weights change, servers go, come and move to other racks and hosts, in any kind of cluster, at any replica count.
    #[test]
    fn little_moves_whatever_changes(
        replicas in 1u8..10,
        before in prop::collection::vec(anywhere(), 1..14),
        gone in 0usize..3,
        heavier in prop::collection::vec((any::<prop::sample::Index>(), 5u32..40), 0..3),
        moved in prop::collection::vec((any::<prop::sample::Index>(), anywhere()), 0..3),
        come in prop::collection::vec(anywhere(), 0..3),
    ) {
        let mut all: Vec<Candidate> = (1..).zip(before).map(|(id, place)| at(id, place)).collect();
        let first = assert_next(&empty(FEW_GROUPS), replicas, &all);
        for (which, weight) in heavier {
            let which = which.index(all.len());
            all[which].weight = weight;
        }
        for (which, place) in moved {
            let which = which.index(all.len());
            all[which] = at(all[which].server.0, place);
        }
        all.drain(..gone.min(all.len() - 1));
        all.extend((50..).zip(come).map(|(id, place)| at(id, place)));
        let second = assert_next(&first, replicas, &all);
        prop_assert_eq!(&next(&second, replicas, &all).groups, &second.groups, "nothing to do");
    }

    #[test]
    fn few_domains_are_used_as_well_as_they_can(zones in 1u32..4, servers in 1u32..8, weight in 1u32..50) {
        let all: Vec<Candidate> = (0..servers).map(|n| server(n + 1, n % zones, n % 2, weight + n)).collect();
        let layout = next(&empty(GROUPS), 3, &all);
        assert_spread(&layout, 3, &all);
        prop_assert_eq!(&next(&layout, 3, &all).groups, &layout.groups, "nothing to do");
    }

    /// Readers ask the first server of a group first, and files with fewer replicas are on the first ones only: no place may
    /// be the newcomer's more than another.
    #[test]
    fn a_newcomer_gets_first_places_as_often_as_others(servers in 3u32..12, replicas in 2u8..5) {
        let replicas = replicas.min(u8::try_from(servers).unwrap()); // else copies are added, and nothing moves
        let mut all: Vec<Candidate> = (1..=servers).map(|id| server(id, id, 0, 10)).collect();
        let mut layout = next(&empty(4 * GROUPS), replicas, &all);
        for new in servers + 1..servers + 4 {
            all.push(server(new, new, 0, 10));
            layout = next(&layout, replicas, &all);
            let width = u64::from(replicas).min(len_u64(all.len()));
            let (fair, firsts) = (load(&layout, replicas)[&ServerId(new)] / width, load(&layout, 1)[&ServerId(new)]);
            prop_assert!(firsts * 2 <= fair * 3 && firsts * 3 >= fair * 2, "{} of {}, {} is fair", firsts, new, fair);
        }
    }
}
