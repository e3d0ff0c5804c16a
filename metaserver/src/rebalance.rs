//! What is to move, and which group goes a step further: pure. Carried out by [`crate::movers`].
//!
//! The plan an administrator looks at and the one that is carried out are the same function of the same rows
//! ([`make_plan`]); its steps are kept in the state machine and not computed again, unless servers or weights change.

use crate::namespace::Step;
use crate::store::moves::{Moving, PlanRow, PlanStep};
use common::id::{LogIndex, PgId, ServerId};
use common::layout::{Candidate, Layout};
use common::proto::rebalance::{GroupHere, Plan, PlanState, ServerPlan};
use common::time::Time;
use common::units::{REPLICAS_MAX, len_u64, len_usize};
use std::collections::{BTreeMap, BTreeSet};

/// Groups of a plan that are under way at a time, at most: so many ...
const MOVING_MAX: usize = 128;
/// ... or this part of all, if that is more ...
const MOVING_PART: usize = 64;
/// ... and their bytes, for each server that takes some: what a pause or a cancellation may still wait for.
const MOVING_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a group's chunks, by the place of a replica: those of chunks that have more copies than that.
pub(crate) type Sizes = [u64; PLACES];
const PLACES: usize = 9;
const _: () = assert!(REPLICAS_MAX == 9, "one for each place a replica can have");

/// Bytes that a server at this place of a group's list holds.
fn held(sizes: &Sizes, list: &[ServerId], server: ServerId) -> u64 {
    let place = list.iter().position(|one| *one == server);
    place.and_then(|place| sizes.get(place)).copied().unwrap_or(0)
}

/// What a plan moves: the whole of it, and group by group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) steps: Vec<(PgId, PlanStep)>,
}

/// What servers had when they went out: groups, with their replicas.
pub(crate) type Left = BTreeMap<ServerId, BTreeMap<PgId, Vec<ServerId>>>;

/// The table with servers that came back where they were: each takes its place from whoever has it by now.
fn as_before(layout: &Layout, replicas: u8, candidates: &[Candidate], left: &Left) -> Layout {
    let mut layout = layout.clone();
    let is_in = |server: &ServerId| candidates.iter().any(|one| one.server == *server && one.weight > 0);
    for (server, groups) in left.iter().filter(|(server, _)| is_in(server)) {
        for (pg, was) in groups {
            let mut head = layout.head(*pg, replicas).to_vec();
            let taker = head.iter().position(|one| !was.contains(one)).filter(|_| !head.contains(server));
            let Some(place) = taker else { continue };
            head[place] = *server;
            if was.iter().all(|one| head.contains(one)) && was.len() == head.len() {
                head.clone_from(was);
            }
            layout.groups[len_usize(pg.0.into())] = head;
        }
    }
    layout
}

/// What brings every server to its share. `servers`: every one as it is now, the rest is filled in; those that are among
/// the candidates with a weight get data. `sizes`: of each group. `rate`: bytes per second that a server moves.
pub(crate) fn make_plan(
    layout: &Layout,
    replicas: u8,
    (candidates, left): (&[Candidate], &Left),
    servers: Vec<ServerPlan>,
    (sizes, exact): (&[Sizes], bool),
    rate: u64,
) -> Planned {
    let goal = as_before(layout, replicas, candidates, left).next(replicas, candidates);
    let mut figures: BTreeMap<ServerId, ServerPlan> = servers.into_iter().map(|one| (one.server, one)).collect();
    let mut steps = Vec::new();
    for (pg, size) in (0..).map(PgId).zip(sizes) {
        let (now, then) = (layout.head(pg, replicas), goal.head(pg, replicas));
        let mut bytes = 0;
        for server in now.iter().chain(then.iter().filter(|server| !now.contains(server))) {
            let (before, after) = (held(size, now, *server), held(size, then, *server));
            bytes += after.saturating_sub(before);
            let Some(one) = figures.get_mut(server) else { continue };
            one.receives += after.saturating_sub(before);
            one.sends += before.saturating_sub(after);
            one.places += u64::from(now.contains(server));
            one.places_after += u64::from(then.contains(server));
        }
        if now != then {
            steps.push((pg, PlanStep { head: then.to_vec(), bytes }));
        }
    }
    for one in figures.values_mut() {
        // What nobody needs is used as well. It goes where chunks are not to be at all; elsewhere when it is collected.
        let is_needed = one.places_after > 0;
        one.used_after = if is_needed { (one.used + one.receives).saturating_sub(one.sends) } else { 0 };
    }
    let busiest = figures.values().map(|one| one.receives.max(one.sends)).max().unwrap_or(0);
    let plan = Plan {
        layout: layout.version,
        groups: len_u64(steps.len()),
        bytes: steps.iter().map(|(_, step)| step.bytes).sum(),
        exact,
        seconds: busiest.div_ceil(rate.max(1)),
        servers: figures.into_values().collect(),
        digest: digest(&steps),
    };
    Planned { plan, steps }
}

/// Equal for plans that move the same groups to the same servers. How much that is changes all the time, and the layout's
/// version with each group that arrives.
fn digest(steps: &[(PgId, PlanStep)]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for (pg, step) in steps {
        hasher.update(&pg.0.to_le_bytes()).update(&len_u64(step.head.len()).to_le_bytes());
        for server in &step.head {
            hasher.update(&server.0.to_le_bytes());
        }
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Why a plan cannot be carried out, if it cannot.
pub(crate) fn obstacle(plan: &Plan) -> Option<String> {
    let full = plan.servers.iter().find(|one| one.receives > 0 && one.receives > one.free)?;
    Some(format!("{} would get {} bytes and has {} free", full.server, full.receives, full.free))
}

/// What servers have said of groups that move.
pub(crate) type Said = BTreeMap<ServerId, BTreeMap<PgId, GroupHere>>;

/// All that decides which group goes a step further.
pub(crate) struct View<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) replicas: u8,
    pub(crate) moves: &'a BTreeMap<PgId, Moving>,
    pub(crate) plan: &'a PlanRow,
    /// Groups that may begin now; none if it is not the time.
    pub(crate) steps: &'a BTreeMap<PgId, PlanStep>,
    pub(crate) said: &'a Said,
    /// Servers that are up.
    pub(crate) up: &'a BTreeSet<ServerId>,
    pub(crate) candidates: &'a [Candidate],
}

/// From which index on a replica must have had everything for the next step of a group.
pub(crate) fn needed(moving: &Moving) -> LogIndex {
    moving.closed.unwrap_or(moving.begun)
}

/// The replicas of a group that have not said that they have everything.
pub(crate) fn waits_for(view: &View<'_>, pg: PgId, moving: &Moving) -> Vec<ServerId> {
    let has_all = |server: &&ServerId| {
        let here = view.said.get(server).and_then(|groups| groups.get(&pg));
        here.is_some_and(|here| here.missing == 0 && here.index >= needed(moving))
    };
    view.layout.head(pg, view.replicas).iter().filter(|server| !has_all(server)).copied().collect()
}

/// Groups that go a step further. `None`: none does.
pub(crate) fn next_step(view: &View<'_>, at: Time) -> Option<Step> {
    let ready = view.moves.iter().filter(|(pg, moving)| waits_for(view, **pg, moving).is_empty());
    let (finish, close): (Vec<_>, Vec<_>) = ready.partition(|(_, moving)| moving.closed.is_some());
    let pgs = |of: Vec<(&PgId, &Moving)>| of.into_iter().map(|(pg, _)| *pg).collect::<Vec<PgId>>();
    let (finish, close) = (pgs(finish), pgs(close));
    let begin = match view.plan.state == PlanState::Running && !view.plan.wanted {
        true => begins(view, &finish),
        false => Vec::new(),
    };
    let step = Step { layout: view.layout.version, close, finish, begin, at };
    let nothing = step.close.is_empty() && step.finish.is_empty() && step.begin.is_empty();
    (!nothing).then_some(step)
}

/// Groups of the plan that begin: as many as may be under way, of those whose new servers are all up.
fn begins(view: &View<'_>, finish: &[PgId]) -> Vec<(PgId, Vec<ServerId>)> {
    let under_way: Vec<&Moving> =
        view.moves.iter().filter(|(pg, _)| !finish.contains(pg)).map(|(_, moving)| moving).collect();
    let mut groups = under_way.len();
    let mut bytes: u64 = under_way.iter().map(|moving| moving.bytes).sum();
    let takers = view.candidates.iter().filter(|one| one.weight > 0 && view.up.contains(&one.server)).count();
    let bytes_max = MOVING_BYTES_MAX.saturating_mul(len_u64(takers.max(1)));
    let mut begin = Vec::new();
    let groups_max = MOVING_MAX.max(view.layout.groups.len() / MOVING_PART);
    for (pg, step) in view.steps {
        if groups >= groups_max || (groups > 0 && bytes + step.bytes > bytes_max) {
            break;
        }
        if view.moves.contains_key(pg) || !step.head.iter().all(|server| view.up.contains(server)) {
            continue;
        }
        begin.push((*pg, Layout::list(*pg, &step.head, view.candidates)));
        (groups, bytes) = (groups + 1, bytes + step.bytes);
    }
    begin
}

/// Bytes of the plan that are copied: of groups that have arrived, and what is not missing of those under way.
pub(crate) fn bytes_done(
    (layout, replicas): (&Layout, u8),
    plan: &PlanRow,
    moves: &BTreeMap<PgId, Moving>,
    said: &Said,
) -> u64 {
    let of = |(pg, moving): (&PgId, &Moving)| {
        let here =
            |server| said.get(server).and_then(|groups| groups.get(pg)).filter(|here| here.index >= moving.begun);
        let missing = layout.head(*pg, replicas).iter().map(|server| here(server).map(|here| here.missing_bytes));
        let missing: Option<u64> = missing.sum(); // nothing is known until all have said something
        missing.map_or(0, |missing| moving.bytes.saturating_sub(missing))
    };
    plan.bytes_done + moves.iter().filter(|(_, moving)| moving.planned).map(of).sum::<u64>()
}

/// Adds a chunk with so many copies to the sizes of its group.
pub(crate) fn count(sizes: &mut [Sizes], pg: PgId, len: u32, copies: u8) {
    for place in &mut sizes[len_usize(pg.0.into())][..usize::from(copies).min(PLACES)] {
        *place += u64::from(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::LayoutVersion;
    use common::layout::Domain;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let one =
            |(id, weight): (u32, &u32)| Candidate { server: ServerId(id), domain: Domain::default(), weight: *weight };
        (1..).zip(weights).map(one).collect()
    }

    fn servers(count: u32, used: u64) -> Vec<ServerPlan> {
        let one = |id| ServerPlan { server: ServerId(id), used, free: 1 << 30, ..ServerPlan::default() };
        (1..=count).map(one).collect()
    }

    /// 64 groups on three servers with 100 bytes each, of chunks with three copies.
    fn three() -> (Layout, Vec<Sizes>) {
        let empty = Layout::compute(LayoutVersion(0), 64, 3, &[]);
        let mut sizes = vec![Sizes::default(); 64];
        (0..64).for_each(|pg| count(&mut sizes, PgId(pg), 100, 3));
        (empty.next(3, &candidates(&[1, 1, 1])), sizes)
    }

    #[test]
    fn a_plan_says_what_every_server_gets_and_gives_and_ends_level() {
        let (layout, sizes) = three();
        let mut now = servers(5, 0);
        now[..3].iter_mut().for_each(|one| one.used = 6400);
        let all = candidates(&[1; 5]);
        let Planned { plan, steps } = make_plan(&layout, 3, (&all, &Left::new()), now, (&sizes, true), 100);
        let (receives, sends) = plan.servers.iter().fold((0, 0), |(r, s), one| (r + one.receives, s + one.sends));
        assert_eq!((receives, sends), (plan.bytes, plan.bytes), "what one gives another gets");
        for one in &plan.servers {
            assert_eq!(one.used_after, one.places_after * 100, "{one:?}");
            assert!(one.used_after.abs_diff(3840) <= 200, "within two places of a fifth: {one:?}");
        }
        assert_eq!((plan.groups, plan.exact), (len_u64(steps.len()), true));
        let busiest = plan.servers.iter().map(|one| one.receives.max(one.sends)).max().unwrap();
        assert_eq!(plan.seconds, busiest / 100);
        assert!(steps.iter().all(|(pg, step)| step.head != layout.head(*pg, 3) && step.bytes >= 100));
        assert_eq!(obstacle(&plan), None);
        let mut full = plan.clone();
        full.servers[4].free = full.servers[4].receives - 1;
        assert!(obstacle(&full).unwrap().starts_with("s5 would get"));
        let again = make_plan(&layout.next(3, &all), 3, (&all, &Left::new()), servers(5, 0), (&sizes, true), 1);
        assert_eq!((again.plan.groups, again.plan.bytes, again.steps), (0, 0, vec![]), "there is nothing to do");
    }

    #[test]
    fn a_server_without_weight_gives_all_it_has() {
        let layout = Layout::compute(LayoutVersion(0), 64, 3, &[]).next(3, &candidates(&[1; 4]));
        let (_, sizes) = three();
        let drained = candidates(&[1, 0, 1, 1]);
        let more = 4800 + 100; // than is needed there
        let plan = make_plan(&layout, 3, (&drained, &Left::new()), servers(4, more), (&sizes, true), 1).plan;
        assert_eq!((plan.servers[1].places_after, plan.servers[1].used_after), (0, 0));
        assert!(plan.servers.iter().all(|one| one.server == ServerId(2) || one.sends == 0), "nothing else moves");
    }

    #[test]
    fn what_was_shown_is_known_again_however_full_servers_are_and_by_nothing_else() {
        let (layout, sizes) = three();
        let all = candidates(&[1; 5]);
        let digest = |layout: &Layout, all: &[Candidate], used, rate| {
            make_plan(layout, 3, (all, &Left::new()), servers(5, used), (&sizes, true), rate).plan.digest
        };
        let shown = digest(&layout, &all, 0, 1);
        assert_eq!(digest(&layout, &all, 6400, 100), shown);
        assert_ne!(digest(&layout, &candidates(&[1, 1, 1, 1, 2]), 0, 1), shown, "other weights");
        assert_ne!(digest(&layout.next(3, &all), &all, 0, 1), shown, "it is done");
    }

    #[test]
    fn a_server_that_comes_back_gets_what_it_had() {
        let all = candidates(&[1; 5]);
        let before = Layout::compute(LayoutVersion(0), 64, 3, &[]).next(3, &all);
        let without = |out: &[u32]| -> Vec<Candidate> {
            all.iter().filter(|one| !out.contains(&one.server.0)).cloned().collect()
        };
        let had = |layout: &Layout, server: u32| {
            let of = (0..64).map(PgId).filter(|pg| layout.head(*pg, 3).contains(&ServerId(server)));
            of.map(|pg| (pg, layout.head(pg, 3).to_vec())).collect::<BTreeMap<_, _>>()
        };
        let (_, sizes) = three();
        let after = before.filled(3, &without(&[2]));
        let left: Left = [(ServerId(2), had(&before, 2))].into();
        let Planned { steps, .. } = make_plan(&after, 3, (&all, &left), servers(5, 0), (&sizes, true), 1);
        let heads: BTreeMap<PgId, Vec<ServerId>> = steps.into_iter().map(|(pg, step)| (pg, step.head)).collect();
        assert_eq!(heads, left[&ServerId(2)], "its groups, as they were, and no other");
        // Two went out; one comes back.
        let both = after.filled(3, &without(&[2, 4]));
        let left: Left = [(ServerId(2), had(&before, 2)), (ServerId(4), had(&after, 4))].into();
        let back = without(&[4]);
        let Planned { steps, .. } = make_plan(&both, 3, (&back, &left), servers(5, 0), (&sizes, true), 1);
        let gets = steps.iter().filter(|(_, step)| step.head.contains(&ServerId(2)));
        let had_it = gets.clone().filter(|(pg, _)| left[&ServerId(2)].contains_key(pg)).count();
        assert!(had_it * 10 >= gets.count() * 7 && had_it > 0, "most of what it gets it has");
    }

    fn moving(begun: u64, closed: Option<u64>) -> Moving {
        let (was, since, closed) = (vec![ServerId(9)], LayoutVersion(1), closed.map(LogIndex));
        Moving { was, since, begun: LogIndex(begun), closed, list_len: 3, bytes: 100, planned: true }
    }

    #[test]
    fn a_group_is_closed_and_finished_when_all_its_replicas_have_all_of_late() {
        let (layout, _) = three();
        let (plan, up, all) = (PlanRow::default(), BTreeSet::new(), candidates(&[1; 3]));
        let pg = PgId(5);
        let step = |moving: Moving, said: &[(u32, u64, u64)]| {
            let here = |(server, index, missing): &(u32, u64, u64)| {
                let here = GroupHere { pg, index: LogIndex(*index), missing: *missing, missing_bytes: 10 * missing };
                (ServerId(*server), [(pg, here)].into())
            };
            let (said, moves) = (said.iter().map(here).collect(), [(pg, moving)].into());
            let view = View {
                layout: &layout,
                replicas: 3,
                moves: &moves,
                plan: &plan,
                said: &said,
                steps: &BTreeMap::new(),
                up: &up,
                candidates: &all,
            };
            let step = next_step(&view, Time::default());
            step.map(|step| (step.close, step.finish))
        };
        let all_say = |index| [(1, index, 0), (2, index, 0), (3, index, 0)];
        assert_eq!(step(moving(7, None), &[]), None);
        assert_eq!(step(moving(7, None), &all_say(7)), Some((vec![pg], vec![])));
        assert_eq!(step(moving(7, None), &all_say(6)), None, "before it began");
        assert_eq!(step(moving(7, None), &all_say(7)[..2]), None, "one has said nothing");
        assert_eq!(step(moving(7, None), &[(1, 7, 0), (2, 7, 0), (3, 7, 1)]), None, "one lacks a chunk");
        assert_eq!(step(moving(7, Some(9)), &all_say(8)), None, "a commit may have come by an older layout");
        assert_eq!(step(moving(7, Some(9)), &all_say(9)), Some((vec![], vec![pg])));
        assert_eq!(step(moving(7, Some(9)), &[(1, 9, 0), (2, 9, 0), (4, 9, 0)]), None, "another server has it all");
    }

    #[test]
    fn groups_begin_a_bounded_number_at_a_time_and_only_where_they_can_arrive() {
        let layout = Layout::compute(LayoutVersion(0), 1024, 3, &[]).next(3, &candidates(&[1; 3]));
        let mut sizes = vec![Sizes::default(); 1024];
        (0..1024).for_each(|pg| count(&mut sizes, PgId(pg), 1000, 3));
        let all = candidates(&[1; 5]);
        let Planned { steps, .. } = make_plan(&layout, 3, (&all, &Left::new()), servers(5, 0), (&sizes, true), 1);
        let plan = |state| PlanRow { state, ..PlanRow::default() };
        let times = |scale: u64| {
            let step = |(pg, step): &(PgId, PlanStep)| (*pg, PlanStep { bytes: step.bytes * scale, ..step.clone() });
            steps.iter().map(step).collect::<BTreeMap<_, _>>()
        };
        let once = times(1);
        let begun_of = |plan: &PlanRow, steps: &BTreeMap<_, _>, moves: &BTreeMap<PgId, Moving>, up: &[u32]| {
            let up = up.iter().map(|id| ServerId(*id)).collect();
            let (said, layout, candidates) = (Said::default(), &layout, &all[..]);
            let view = View { layout, replicas: 3, moves, plan, steps, said: &said, up: &up, candidates };
            next_step(&view, Time::default()).map_or_else(Vec::new, |step| step.begin)
        };
        let begun = |plan: &PlanRow, moves: &BTreeMap<PgId, Moving>, up: &[u32]| begun_of(plan, &once, moves, up);
        let (none, running) = (BTreeMap::new(), plan(PlanState::Running));
        let first = begun(&running, &none, &[1, 2, 3, 4, 5]);
        assert_eq!(first.len(), MOVING_MAX);
        assert!(first.iter().all(|(pg, list)| list.starts_with(&once[pg].head)));
        let under_way: BTreeMap<PgId, Moving> = first[..100].iter().map(|(pg, _)| (*pg, moving(1, None))).collect();
        let more = begun(&running, &under_way, &[1, 2, 3, 4, 5]);
        assert_eq!(more.len(), MOVING_MAX - 100);
        assert!(more.iter().all(|(pg, _)| !under_way.contains_key(pg)), "none begins twice");
        let without = begun(&running, &none, &[1, 2, 3, 4]);
        assert!(!without.is_empty() && without.iter().all(|(_, list)| !list[..3].contains(&ServerId(5))));
        assert_eq!(begun(&plan(PlanState::Paused), &none, &[1, 2, 3, 4, 5]), []);
        let wanted = PlanRow { wanted: true, ..running.clone() };
        assert_eq!(begun(&wanted, &none, &[1, 2, 3, 4, 5]), [], "another plan is due");
        let large = begun_of(&running, &times(1 << 20), &none, &[1, 2, 3, 4, 5]);
        assert!((1..=5).contains(&large.len()), "a gigabyte each: {}", large.len());
        assert_eq!(begun_of(&running, &times(1 << 40), &none, &[1, 2, 3, 4, 5]).len(), 1, "one goes anyway");
    }

    #[test]
    fn what_is_not_known_to_be_copied_does_not_count() {
        let (layout, _) = three();
        let (pg, moves) = (PgId(5), BTreeMap::from([(PgId(5), moving(7, None))]));
        let plan = PlanRow { bytes_done: 1000, ..PlanRow::default() };
        let done = |said: &[(u32, u64, u64)]| {
            let here = |(server, index, missing_bytes): &(u32, u64, u64)| {
                let here = GroupHere { pg, index: LogIndex(*index), missing: 1, missing_bytes: *missing_bytes };
                (ServerId(*server), [(pg, here)].into())
            };
            bytes_done((&layout, 3), &plan, &moves, &said.iter().map(here).collect())
        };
        assert_eq!(done(&[]), 1000);
        assert_eq!(done(&[(1, 7, 0), (2, 7, 0)]), 1000, "one has said nothing");
        assert_eq!(done(&[(1, 7, 0), (2, 7, 0), (3, 6, 0)]), 1000, "... or nothing of late");
        assert_eq!(done(&[(1, 7, 0), (2, 7, 0), (3, 7, 60)]), 1040);
    }
}
