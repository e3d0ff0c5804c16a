//! Placement groups move: begin, close, finish; the plan, and what stops it.

use super::super::{NewPlan, PlanChange, Step, cluster_map, counters, moves, plan, servers};
use super::*;
use crate::store::keys::MOVED;
use crate::store::moves::PlanStep;
use crate::store::values::ServerRow;
use common::id::PgId;
use common::layout::{Candidate, Domain, Layout};
use common::proto::meta::Register;
use common::proto::rebalance::{PlanState, ServerPlan};

fn candidates(ids: impl IntoIterator<Item = u32>) -> Vec<Candidate> {
    let one = |id| Candidate { server: ServerId(id), domain: Domain::default(), weight: 10 };
    ids.into_iter().map(one).collect()
}

fn register(world: &mut World, instance: u128) {
    let (addr, domain) = (format!("h:{instance}"), Domain::default());
    let register = Register { server: None, instance, addr, domain, weight: 10, capacity: 1, free: 1 };
    world.command(&Command::Register(register)).unwrap();
}

fn layout(world: &World) -> Layout {
    cluster_map(&*world.kv).unwrap().unwrap().layout
}

fn ids(servers: &[ServerId]) -> Vec<u32> {
    servers.iter().map(|server| server.0).collect()
}

/// Three servers that hold a chunk, a fourth that has joined, and a plan of one step for the chunk's group: its last
/// server gives its place to the new one.
fn planned(world: &mut World) -> (InodeId, StoredChunk, PgId, Vec<ServerId>) {
    (1..=3).for_each(|instance| register(world, instance));
    let first = layout(world).next(3, &candidates(1..=3));
    assert_eq!(world.command(&Command::SetLayout(first)), Ok(Done::LayoutSet));
    let ino = world.file(0, ROOT, "f", 0o644);
    let chunk = world.store(b"0123456789");
    commit(world, ino, &chunk, 1).unwrap();
    register(world, 4);
    let pg = chunk.id.pg(16);
    let mut head = layout(world).head(pg, 3).to_vec();
    head[2] = ServerId(4);
    let step = PlanStep { head: head.clone(), bytes: 10 };
    start(world, 1, vec![(pg, step)]).unwrap();
    (ino, chunk, pg, head)
}

fn start(world: &mut World, version: u64, steps: Vec<(PgId, PlanStep)>) -> Result<(), Fault> {
    let rows = servers(&*world.kv).unwrap();
    let one = |(server, row): (ServerId, ServerRow)| ServerPlan { server, weight: row.weight, ..ServerPlan::default() };
    let (layout, servers) = (LayoutVersion(version), rows.into_iter().map(one).collect());
    change(world, PlanChange::Start(NewPlan { layout, by_itself: false, rate: Some(5), steps, servers }))
}

fn change(world: &mut World, change: PlanChange) -> Result<(), Fault> {
    let at = world.now();
    world.command(&Command::Rebalance { change, at }).map(|done| assert_eq!(done, Done::Noted))
}

#[test]
fn a_plan_that_was_made_before_a_weight_changed_does_not_take_its_place() {
    let mut world = World::new();
    let (_, _, pg, head) = planned(&mut world);
    let rows = servers(&*world.kv).unwrap();
    let one = |(server, row): (ServerId, ServerRow)| ServerPlan { server, weight: row.weight, ..ServerPlan::default() };
    let before: Vec<ServerPlan> = rows.into_iter().map(one).collect();
    world.command(&Command::SetServerWeight { server: ServerId(2), weight: 0 }).unwrap();
    assert!(plan(&*world.kv).unwrap().wanted);
    let (layout, steps) = (LayoutVersion(1), vec![(pg, PlanStep { head, bytes: 10 })]);
    let late = NewPlan { layout, by_itself: true, rate: None, steps, servers: before };
    assert_eq!(change(&mut world, PlanChange::Start(late)).unwrap_err().kind, Kind::Stale);
    assert!(plan(&*world.kv).unwrap().wanted, "it is still due");
}

fn commit(world: &mut World, ino: InodeId, chunk: &StoredChunk, layout: u64) -> Result<(), Fault> {
    let edit = Edit { at: 0, len: chunk.len.into(), data: Source::Chunk { id: chunk.id, offset: 0 } };
    let (chunks, edits, grow) = (vec![chunk.clone()], vec![edit], chunk.len.into());
    world.commit(Commit { chunks, edits, grow, layout: LayoutVersion(layout), ..empty(ino) }).map(|_| ())
}

fn step(world: &mut World, with: Step) -> Reply {
    let version = layout(world).version;
    world.command(&Command::Step(Step { layout: version, ..with }))
}

fn nothing() -> Step {
    Step { layout: LayoutVersion(0), close: vec![], finish: vec![], begin: vec![], at: Time { secs: 9, nanos: 0 } }
}

#[test]
fn a_group_is_on_both_until_it_is_closed_and_finished_and_late_commits_put_again() {
    let mut world = World::new();
    let (ino, chunk, pg, head) = planned(&mut world);
    let list = Layout::list(pg, &head, &candidates(1..=4));
    let old = layout(&world).head(pg, 3)[2];
    let without: Vec<ServerId> = list.iter().copied().filter(|server| *server != old).collect();
    assert_eq!(step(&mut world, Step { begin: vec![(pg, without.clone())], ..nothing() }), Ok(Done::Noted));
    assert_eq!(layout(&world).version, LayoutVersion(2));
    assert_eq!(layout(&world).group(pg), [&without[..], &[old]].concat(), "where it was stands behind its list");
    let moving = moves(&*world.kv).unwrap()[&pg].clone();
    assert_eq!((moving.since, moving.begun, moving.closed), (LayoutVersion(2), LogIndex(world.index), None));
    commit(&mut world, ino, &chunk, 1).expect("it is not closed");

    let early = step(&mut world, Step { finish: vec![pg], ..nothing() });
    assert_eq!(early.unwrap_err().kind, Kind::Invalid, "not before it is closed");
    step(&mut world, Step { close: vec![pg], ..nothing() }).unwrap();
    assert_eq!(layout(&world).version, LayoutVersion(2), "closing makes no layout");
    assert_eq!(moves(&*world.kv).unwrap()[&pg].closed, Some(LogIndex(world.index)));
    assert_eq!(counters(&*world.kv).unwrap().last_move, LayoutVersion(2));
    assert_eq!(commit(&mut world, ino, &chunk, 1).unwrap_err().kind, Kind::PutAgain);
    commit(&mut world, ino, &chunk, 2).unwrap();
    let closed = moves(&*world.kv).unwrap();
    step(&mut world, Step { close: vec![pg], ..nothing() }).unwrap();
    assert_eq!(moves(&*world.kv).unwrap(), closed, "closed once");

    step(&mut world, Step { finish: vec![pg], ..nothing() }).unwrap();
    assert_eq!((layout(&world).version, layout(&world).group(pg)), (LayoutVersion(3), &without[..]));
    assert!(moves(&*world.kv).unwrap().is_empty());
    let plan = plan(&*world.kv).unwrap();
    assert_eq!((plan.state, plan.groups_done, plan.bytes_done), (PlanState::Done, 1, 10));
    assert_eq!(plan.ended, Some(Time { secs: 9, nanos: 0 }));
    commit(&mut world, ino, &chunk, 2).expect("put since the move");
    world.check();
}

#[test]
fn steps_of_another_layout_or_of_no_plan_change_nothing() {
    let mut world = World::new();
    let (_, _, pg, head) = planned(&mut world);
    let begin = vec![(pg, head)];
    let stale = Command::Step(Step { begin: begin.clone(), layout: LayoutVersion(2), ..nothing() });
    assert_eq!(world.command(&stale).unwrap_err().kind, Kind::Stale);
    let before = layout(&world);
    let other = vec![(PgId(pg.0 ^ 1), begin[0].1.clone()), (pg, vec![ServerId(4)])];
    step(&mut world, Step { begin: other, ..nothing() }).unwrap();
    assert_eq!(layout(&world), before, "neither is what was planned");
    change(&mut world, PlanChange::Pause).unwrap();
    step(&mut world, Step { begin: begin.clone(), ..nothing() }).unwrap();
    assert_eq!(layout(&world), before, "it is paused");
    change(&mut world, PlanChange::Resume).unwrap();
    step(&mut world, Step { begin: begin.clone(), ..nothing() }).unwrap();
    assert_eq!(layout(&world).head(pg, 3), begin[0].1);
}

#[test]
fn what_is_under_way_when_a_plan_is_cancelled_arrives_and_counts_for_no_other() {
    let mut world = World::new();
    let (_, _, pg, head) = planned(&mut world);
    step(&mut world, Step { begin: vec![(pg, head.clone())], ..nothing() }).unwrap();
    change(&mut world, PlanChange::Cancel).unwrap();
    assert_eq!(plan(&*world.kv).unwrap().state, PlanState::Cancelled);
    assert_eq!(change(&mut world, PlanChange::Resume).unwrap_err().kind, Kind::NotFound);
    assert!(moves(&*world.kv).unwrap().contains_key(&pg));
    assert_eq!(start(&mut world, 1, vec![]).unwrap_err().kind, Kind::Stale, "planned by an older layout");
    start(&mut world, 2, vec![]).unwrap();
    assert_eq!(plan(&*world.kv).unwrap().state, PlanState::Done, "there is nothing to do");
    step(&mut world, Step { close: vec![pg], ..nothing() }).unwrap();
    step(&mut world, Step { finish: vec![pg], ..nothing() }).unwrap();
    assert_eq!((layout(&world).group(pg), plan(&*world.kv).unwrap().groups_done), (&head[..], 0));
}

#[test]
fn a_group_whose_server_is_gone_moves_too_and_remembers_where_it_was() {
    let mut world = World::new();
    let (_, _, pg, head) = planned(&mut world);
    step(&mut world, Step { begin: vec![(pg, head.clone())], ..nothing() }).unwrap();
    let was = moves(&*world.kv).unwrap()[&pg].was.clone();
    world.command(&Command::SetOut { server: head[0], out: true }).unwrap();
    let left = candidates((1..=4).filter(|id| *id != head[0].0));
    let filled = layout(&world).filled(3, &left);
    world.command(&Command::SetLayout(filled)).unwrap();
    let moves = moves(&*world.kv).unwrap();
    assert_eq!(ids(&moves[&pg].was), ids(&common::layout::with_was(head.clone(), &was)));
    assert_eq!((moves[&pg].since, moves[&pg].closed), (layout(&world).version, None));
    let on_it = |pg: &PgId| layout(&world).head(*pg, 3).contains(&head[0]);
    assert!(!(0..16).map(PgId).any(|pg| on_it(&pg)) && moves.len() > 1);
    assert!(layout(&world).group(pg).contains(&head[0]), "it is asked last");
    // The plan was empty by then; one with steps left is made anew.
    assert!(!plan(&*world.kv).unwrap().wanted);
    world.command(&Command::SetOut { server: head[0], out: false }).unwrap();
    assert!(plan(&*world.kv).unwrap().wanted, "it gets its share again");
}

#[test]
fn nothing_waits_where_nothing_is_stored() {
    let mut world = World::new();
    (1..=3).for_each(|instance| register(&mut world, instance));
    let first = layout(&world).next(3, &candidates(1..=2));
    world.command(&Command::SetLayout(first)).unwrap();
    let second = layout(&world).next(3, &candidates(1..=3));
    world.command(&Command::SetLayout(second)).unwrap();
    assert!(moves(&*world.kv).unwrap().is_empty());
    assert_eq!(counters(&*world.kv).unwrap().last_move, LayoutVersion(2));
    assert!(world.kv.get(MOVED, &keys::moved(PgId(3))).unwrap().is_some());
    world.check();
}

#[test]
fn a_server_is_not_drained_below_the_copies_that_are_kept() {
    let mut world = World::new();
    let (_, _, _, head) = planned(&mut world);
    let drain = |server| Command::SetServerWeight { server, weight: 0 };
    assert_eq!(world.command(&drain(head[0])), Ok(Done::WeightSet));
    assert!(plan(&*world.kv).unwrap().wanted);
    assert_eq!(world.command(&drain(head[1])).unwrap_err().kind, Kind::Refused);
    assert_eq!(world.command(&drain(head[0])), Ok(Done::WeightSet), "asked again");
}

#[test]
fn in_a_new_life_groups_under_way_are_closed_anew_and_the_plan_waits() {
    let mut world = World::new();
    let (_, _, pg, head) = planned(&mut world);
    step(&mut world, Step { begin: vec![(pg, head)], ..nothing() }).unwrap();
    step(&mut world, Step { close: vec![pg], ..nothing() }).unwrap();
    let (metaservers, at) = (vec![(NodeId(1), "n:1".into())], world.now());
    world.command(&Command::Restored { epoch: Epoch(2), metaservers, at }).unwrap();
    let moving = moves(&*world.kv).unwrap()[&pg].clone();
    assert_eq!((moving.begun, moving.closed), (LogIndex(world.index), None), "indices of the old life mean nothing");
    assert_eq!(plan(&*world.kv).unwrap().state, PlanState::Paused);
}
