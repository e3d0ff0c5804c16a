//! What belongs where, what may be deleted, and when a chunk has all its copies.

use super::super::{Page, cluster_map, counters, expected, out};
use super::*;
use crate::store::values::ChunkRow;
use common::layout::{Candidate, Domain, Layout};
use common::proto::keep::KeepChange;
use common::proto::meta::Register;
use std::collections::BTreeSet;

/// Five servers and a layout over them.
fn five(world: &mut World) -> Layout {
    for instance in 1..=5 {
        let (addr, domain) = (format!("h:{instance}"), Domain::default());
        let register = Register { server: None, instance, addr, domain, weight: 10, capacity: 1, free: 1 };
        world.command(&Command::Register(register)).unwrap();
    }
    let all: Vec<Candidate> =
        (1..=5).map(|id| Candidate { server: ServerId(id), domain: Domain::default(), weight: 10 }).collect();
    let layout = Layout::compute(LayoutVersion(1), 16, 3, &all);
    world.command(&Command::SetLayout(layout.clone())).unwrap();
    layout
}

/// Writes a chunk with this many receipts, under a witness of now.
fn put(world: &mut World, ino: InodeId, at: u64, bytes: &[u8], copies: u32) -> Result<ChunkId, Fault> {
    let witness = LogIndex(world.index);
    let id = world.store(bytes).id;
    let edit = Edit { at, len: bytes.len() as u64, data: Source::Chunk { id, offset: 0 } };
    let commit = Commit {
        edits: vec![edit],
        chunks: vec![stored(id, bytes.len() as u32, copies)],
        grow: at + bytes.len() as u64,
        ..empty(ino)
    };
    world.commit(Commit { attempt: Attempt { witness, ..commit.attempt }, ..commit }).map(|_| id)
}

/// All pages of a server, of at most `limit` chunks each.
fn pages(world: &World, server: u32, limit: u32, degraded: bool) -> Vec<ChunkId> {
    let (mut all, mut from) = (Vec::new(), ChunkId([0; 32]));
    loop {
        let page = Page { server: ServerId(server), layout: LayoutVersion(1), from, limit, degraded };
        let told = expected(&*world.kv, LogIndex(world.index), &page).unwrap();
        assert!(told.chunks.len() <= limit as usize);
        let inside = |id: &ChunkId| *id >= from && told.upto.is_none_or(|upto| *id < upto);
        assert!(told.chunks.iter().all(|chunk| inside(&chunk.id) && chunk.degraded == degraded));
        all.extend(told.chunks.iter().map(|chunk| chunk.id));
        match told.upto {
            None => return all,
            Some(upto) => {
                assert!(upto > from, "no progress");
                from = upto;
            }
        }
    }
}

#[test]
fn a_server_is_told_of_every_chunk_that_belongs_on_it_and_of_no_other() {
    let mut world = World::new();
    let layout = five(&mut world);
    let two = world.dir(0, ROOT, "two", 0o755);
    let set = common::proto::meta::SetAttr { replicas: Some(2), ..Default::default() };
    world.op(0, Op::SetAttr { ino: two, set }).unwrap();
    let (three, two) = (world.file(0, ROOT, "f", 0o644), world.file(0, two, "f", 0o644));
    let mut targets: BTreeMap<ChunkId, usize> = BTreeMap::new();
    for n in 0..120_u64 {
        let bytes = format!("chunk {n}").into_bytes();
        if n % 3 > 0 {
            targets.insert(put(&mut world, three, n * 100, &bytes, 3).unwrap(), 3);
        }
        if n % 3 < 2 {
            targets.entry(put(&mut world, two, n * 100, &bytes, 3).unwrap()).or_insert(2);
        }
    }
    for server in 1..=5 {
        let belongs = |(id, target): &(&ChunkId, &usize)| layout.place(id).1[..**target].contains(&ServerId(server));
        let want: Vec<ChunkId> = targets.iter().filter(belongs).map(|(id, _)| *id).collect();
        for limit in [1, 7, 4096] {
            assert_eq!(pages(&world, server, limit, false), want, "s{server}, pages of {limit}");
        }
    }
    let stale =
        Page { server: ServerId(1), layout: LayoutVersion(0), from: ChunkId([0; 32]), limit: 1, degraded: false };
    let Err(Fail::Fault(fault)) = expected(&*world.kv, LogIndex(1), &stale) else { panic!("it was to be refused") };
    assert_eq!(fault.kind, Kind::Stale);
}

#[test]
fn only_what_nothing_refers_to_is_given_up_and_no_older_commit_brings_it_back() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let live = put(&mut world, ino, 0, b"live", 3).unwrap();
    let (dead, old) = (put(&mut world, ino, 100, b"dead", 3).unwrap(), world.index);
    world.commit(Commit { edits: vec![Edit { at: 100, len: 4, data: Source::Hole }], ..empty(ino) }).unwrap();
    let condemn = |epoch| Command::Condemn { epoch: Epoch(epoch), chunks: vec![live, dead] };
    assert_eq!(world.command(&condemn(2)).unwrap_err().kind, Kind::Stale, "another epoch");
    for _ in 0..2 {
        assert_eq!(world.command(&condemn(1)), Ok(Done::Condemned { granted: vec![dead] }));
        // A put from before the grant does not count: neither of the attempt that made it ...
        let mut late = Commit {
            edits: vec![Edit { at: 100, len: 4, data: Source::Chunk { id: dead, offset: 0 } }],
            chunks: vec![stored(dead, 4, 3)],
            grow: 104,
            ..empty(ino)
        };
        for witness in [old, world.index - 1] {
            late.attempt.witness = LogIndex(witness);
            assert_eq!(world.commit(late.clone()).unwrap_err().kind, Kind::TouchAgain, "{witness}");
        }
    }
    put(&mut world, ino, 100, b"dead", 3).unwrap(); // ... and one begun after it does
    assert_eq!(world.command(&condemn(1)), Ok(Done::Condemned { granted: vec![] }));
    world.check();
}

#[test]
fn a_degraded_chunk_is_forgotten_when_servers_that_count_have_all_its_copies() {
    let mut world = World::new();
    let layout = five(&mut world);
    let ino = world.file(0, ROOT, "f", 0o644);
    let id = put(&mut world, ino, 0, b"short", 2).unwrap(); // on 1 and 2
    assert_eq!(counters(&*world.kv).unwrap().degraded, 1);
    for server in 1..=5 {
        let belongs = layout.place(&id).1[..3].contains(&ServerId(server));
        let want = if belongs && server > 2 { vec![id] } else { vec![] };
        assert_eq!(pages(&world, server, 10, true), want, "s{server}");
    }
    let holds = |server| Command::Holds { server: ServerId(server), epoch: Epoch(1), chunks: vec![id] };
    let set_out = |server, out| Command::SetOut { server: ServerId(server), out };
    assert_eq!(world.command(&set_out(2, true)), Ok(Done::OutSet));
    assert_eq!(world.command(&holds(2)).unwrap_err().kind, Kind::Stale, "it is out");
    assert_eq!(world.command(&holds(9)).unwrap_err().kind, Kind::Stale, "it is unknown");
    world.command(&holds(3)).unwrap();
    world.command(&holds(3)).unwrap();
    assert_eq!(counters(&*world.kv).unwrap().degraded, 1, "2 is out: there are two copies that count");
    world.command(&holds(4)).unwrap();
    assert_eq!(counters(&*world.kv).unwrap().degraded, 0);
    world.check();
}

#[test]
fn who_is_out_has_no_weight_and_settings_stay() {
    let mut world = World::new();
    five(&mut world);
    let weights = |world: &World| -> Vec<u32> {
        cluster_map(&*world.kv).unwrap().unwrap().servers.values().map(|server| server.weight).collect()
    };
    world.command(&Command::SetOut { server: ServerId(2), out: true }).unwrap();
    assert_eq!(weights(&world), [10, 0, 10, 10, 10]);
    assert_eq!(out(&*world.kv).unwrap(), BTreeSet::from([ServerId(2)]));
    world.command(&Command::SetOut { server: ServerId(2), out: false }).unwrap();
    assert_eq!(weights(&world), [10; 5]);
    let change = KeepChange { grace_s: Some(5), ..KeepChange::default() };
    let Done::KeepSet(settings) = world.command(&Command::SetKeep(change)).unwrap() else { panic!("another answer") };
    assert_eq!((settings.grace_s, settings.scrub_period_s), (5, 14 * 24 * 3600));
    assert_eq!(super::super::keep_settings(&*world.kv).unwrap(), settings);
    let none = KeepChange { scrub_rate: Some(0), ..KeepChange::default() };
    assert_eq!(world.command(&Command::SetKeep(none)).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn settings_change_together_or_not_at_all() {
    let mut world = World::new();
    let keep = KeepChange { grace_s: Some(7), ..KeepChange::default() };
    let set = |min_replicas| Command::Settings { keep, min_replicas };
    for bad in [0, 4] {
        assert_eq!(world.command(&set(Some(bad))).unwrap_err().kind, Kind::Invalid, "min_replicas {bad}");
    }
    let now = |world: &World| {
        let map = cluster_map(&*world.kv).unwrap().unwrap();
        (map.min_replicas, map.version, super::super::keep_settings(&*world.kv).unwrap().grace_s)
    };
    let before = now(&world);
    assert_eq!((before.0, before.2), (2, 60), "nothing of it was done");
    assert_eq!(world.command(&set(Some(1))), Ok(Done::Noted));
    assert_eq!(now(&world), (1, before.1 + 1, 7));
}

#[test]
fn the_chunks_of_a_file_follow_its_replica_count_and_shared_ones_whoever_wants_most() {
    let mut world = World::new();
    let (file, other) = (world.file(0, ROOT, "f", 0o644), world.file(0, ROOT, "g", 0o644));
    let own = put(&mut world, file, 0, b"only here", 3).unwrap();
    let shared = put(&mut world, file, 100, b"in both", 3).unwrap();
    put(&mut world, file, 200, b"in both", 3).unwrap();
    put(&mut world, other, 0, b"in both", 3).unwrap();
    let set = |replicas| common::proto::meta::SetAttr { replicas: Some(replicas), ..Default::default() };
    let refs = |world: &World, id: &ChunkId| {
        let row = world.kv.get(keys::CHUNK, &keys::chunk(id)).unwrap().expect("it is referred to");
        ChunkRow::decode(&row).unwrap().refs.into_iter().collect::<Vec<_>>()
    };
    for replicas in [5, 2, 3] {
        world.op(0, Op::SetAttr { ino: file, set: set(replicas) }).unwrap();
        assert_eq!(world.attr(file).replicas, replicas);
        let both = match replicas {
            5 => vec![(3, 1), (5, 2)],
            2 => vec![(2, 2), (3, 1)],
            _ => vec![(3, 3)],
        };
        assert_eq!((refs(&world, &own), refs(&world, &shared)), (vec![(replicas, 1)], both));
        world.check();
    }
    let target = super::super::targets(&*world.kv, &[own]).unwrap();
    assert_eq!(target, [(own, 3)]);
    assert_eq!(world.kind(7, Op::SetAttr { ino: file, set: set(2) }), Kind::NotPermitted);
    let link = world.make(0, ROOT, "l", NewNode::Symlink(b"f".to_vec()), 0o777).unwrap().ino;
    assert_eq!(world.kind(0, Op::SetAttr { ino: link, set: set(2) }), Kind::Unsupported);
    world.check();
}
