//! Format, chunkservers, layout, map.

use super::super::{cluster_map, counters, secret, servers};
use super::*;
use common::layout::{Candidate, Domain, Layout};
use common::proto::meta::Register;

fn register(server: Option<u32>, instance: u128, addr: &str) -> Command {
    let domain = Domain { zone: "z".into(), rack: "r".into(), host: format!("h{instance}") };
    let server = server.map(ServerId);
    Command::Register(Register { server, instance, addr: addr.into(), domain, weight: 10, capacity: 1, free: 1 })
}

fn registered(reply: Reply) -> (u32, bool) {
    match reply.unwrap() {
        Done::Registered { server, new } => (server.0, new),
        other => panic!("{other:?}"),
    }
}

#[test]
fn format_takes_only_sound_numbers_and_once() {
    for (pg_count, replicas, min_replicas, ok) in [
        (16, 3, 2, true),
        (65_536, 9, 9, true),
        (1, 3, 2, false),
        (8, 3, 2, false),
        (100, 3, 2, false),
        (131_072, 3, 2, false),
        (16, 0, 0, false),
        (16, 10, 2, false),
        (16, 3, 0, false),
        (16, 2, 3, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let kv = MemoryKv::open(Arc::new(RealDisk), dir.path(), &keys::FAMILIES).unwrap();
        let mut txn = Txn::new(&kv);
        let Command::Format { cluster, secret, metaservers, at, .. } = format() else { unreachable!("it is one") };
        let command = Command::Format { cluster, secret, pg_count, replicas, min_replicas, metaservers, at };
        let reply = apply(&mut txn, LogIndex(1), &command).unwrap();
        assert_eq!(reply.is_ok(), ok, "{pg_count} {replicas} {min_replicas}: {reply:?}");
        assert!(ok || txn.into_batch().changes.is_empty());
    }
}

#[test]
fn a_server_keeps_its_id_and_nobody_else_gets_it() {
    let mut world = World::new();
    assert_eq!(registered(world.command(&register(None, 100, "a:1"))), (1, true));
    assert_eq!(registered(world.command(&register(None, 200, "b:1"))), (2, true));
    assert_eq!(registered(world.command(&register(None, 100, "a:1"))), (1, false), "its first reply was lost");
    let version = counters(&*world.kv).unwrap().map_version;
    assert_eq!(registered(world.command(&register(Some(1), 100, "a:1"))), (1, false));
    assert_eq!(counters(&*world.kv).unwrap().map_version, version, "nothing changed");
    assert_eq!(registered(world.command(&register(Some(1), 100, "a:2"))), (1, false));
    assert_eq!(counters(&*world.kv).unwrap().map_version, version + 1);
    for (claimed, instance) in [(2, 100), (1, 300), (9, 300)] {
        let reply = world.command(&register(Some(claimed), instance, "x:1"));
        assert_eq!(reply.unwrap_err().kind, Kind::Refused, "s{claimed} with data of {instance}");
    }
    let long = "x".repeat(256);
    assert_eq!(world.command(&register(None, 400, &long)).unwrap_err().kind, Kind::Invalid);
    let all: Vec<(u32, String)> = servers(&*world.kv).unwrap().into_iter().map(|(id, row)| (id.0, row.addr)).collect();
    assert_eq!(all, [(1, "a:2".to_owned()), (2, "b:1".to_owned())]);
}

#[test]
fn layouts_follow_one_another_and_weights_stay_as_set() {
    let mut world = World::new();
    registered(world.command(&register(None, 100, "a:1")));
    let candidate = Candidate { server: ServerId(1), domain: Domain::default(), weight: 1 };
    let layout =
        |version, groups| Command::SetLayout(Layout::compute(version, groups, 3, std::slice::from_ref(&candidate)));
    assert_eq!(world.command(&layout(LayoutVersion(2), 16)).unwrap_err().kind, Kind::Stale);
    assert_eq!(world.command(&layout(LayoutVersion(1), 32)).unwrap_err().kind, Kind::Invalid);
    assert_eq!(world.command(&layout(LayoutVersion(1), 16)), Ok(Done::LayoutSet));
    assert_eq!(world.command(&layout(LayoutVersion(1), 16)).unwrap_err().kind, Kind::Stale);
    let weight = |server, weight| Command::SetServerWeight { server: ServerId(server), weight };
    assert_eq!(world.command(&weight(9, 1)).unwrap_err().kind, Kind::NotFound);
    assert_eq!(world.command(&weight(1, 0)), Ok(Done::WeightSet));
    registered(world.command(&register(Some(1), 100, "a:3")));
    let map = cluster_map(&*world.kv).unwrap().unwrap();
    let server = &map.servers[&ServerId(1)];
    assert_eq!((server.weight, server.addr.as_str(), server.up, server.writable), (0, "a:3", false, false));
    assert_eq!((map.layout.version, map.layout.groups.len()), (LayoutVersion(1), 16));
    assert!(map.layout.groups.iter().all(|group| group == &[ServerId(1)]));
    assert_eq!((map.cluster, map.epoch, map.replicas, map.min_replicas), (ClusterId(7), Epoch(1), 3, 2));
    assert_eq!(map.version, counters(&*world.kv).unwrap().map_version);
    assert_eq!(secret(&*world.kv).unwrap(), Some(Secret([7; 32])));
}

#[test]
fn without_a_cluster_there_is_no_map() {
    let dir = tempfile::tempdir().unwrap();
    let kv = MemoryKv::open(Arc::new(RealDisk), dir.path(), &keys::FAMILIES).unwrap();
    assert!(cluster_map(&kv).unwrap().is_none() && secret(&kv).unwrap().is_none());
    let reply = apply(&mut Txn::new(&kv), LogIndex(1), &register(None, 1, "a:1")).unwrap();
    assert_eq!(reply.unwrap_err().kind, Kind::Refused);
}

#[test]
fn orders_are_noted_if_they_succeed_and_the_oldest_notes_go() {
    use super::super::{EVENTS_MAX, events};
    let mut world = World::new();
    registered(world.command(&register(None, 100, "a:1")));
    let order = |what: &str, command| Command::Ordered {
        by: "me".into(),
        what: what.into(),
        at: Time { secs: 5, nanos: 0 },
        command: Some(Box::new(command)),
    };
    let weight = |server| Command::SetServerWeight { server: ServerId(server), weight: 0 };
    assert_eq!(world.command(&order("one", weight(1))), Ok(Done::WeightSet));
    assert_eq!(world.command(&order("two", weight(9))).unwrap_err().kind, Kind::NotFound);
    let nested = order("three", order("four", weight(1)));
    assert_eq!(world.command(&nested).unwrap_err().kind, Kind::Invalid);
    assert_eq!(world.command(&order("five", Command::RemoveServer { server: ServerId(1) })), Ok(Done::Noted));
    assert!(servers(&*world.kv).unwrap().is_empty());
    let told: Vec<String> = events(&*world.kv, 10).unwrap().into_iter().map(|event| event.what).collect();
    assert_eq!(told, ["five", "one"]);
    for _ in 0..EVENTS_MAX {
        let at = Time { secs: 6, nanos: 0 };
        let note = Command::Ordered { by: String::new(), what: String::new(), at, command: None };
        world.command(&note).unwrap();
    }
    let kept = events(&*world.kv, usize::MAX).unwrap();
    assert_eq!((kept.len() as u64, kept[0].number), (EVENTS_MAX, EVENTS_MAX + 2));
}

#[test]
fn a_server_with_a_place_in_the_layout_stays() {
    let mut world = World::new();
    registered(world.command(&register(None, 100, "a:1")));
    let remove = Command::RemoveServer { server: ServerId(1) };
    assert_eq!(world.command(&remove).unwrap_err().kind, Kind::Refused, "it has a weight");
    let candidate = Candidate { server: ServerId(1), domain: Domain::default(), weight: 1 };
    let layout = Layout::compute(LayoutVersion(1), 16, 3, &[candidate]);
    world.command(&Command::SetLayout(layout.clone())).unwrap();
    world.command(&Command::SetServerWeight { server: ServerId(1), weight: 0 }).unwrap();
    assert_eq!(world.command(&remove).unwrap_err().kind, Kind::Refused, "it has places");
    world.command(&Command::SetLayout(layout.next(3, &[]))).unwrap();
    assert_eq!(world.command(&remove), Ok(Done::Noted));
    assert_eq!(world.command(&remove), Ok(Done::Noted), "asked again");
    let back = register(Some(1), 100, "a:1");
    let refused = world.command(&back).unwrap_err();
    assert!(refused.kind == Kind::Refused && refused.message.contains("server readmit 1"), "{refused}");
    assert_eq!(registered(world.command(&register(None, 100, "a:1"))), (2, true), "it comes as another one");
    let readmit = |server| Command::Readmit { server: ServerId(server) };
    assert_eq!(world.command(&readmit(3)).unwrap_err().kind, Kind::NotFound);
    assert_eq!(world.command(&readmit(1)), Ok(Done::Noted));
    let again = register(Some(1), 101, "a:1");
    assert_eq!(registered(world.command(&again)), (1, true), "it has its number again");
    assert_eq!(registered(world.command(&again)), (1, false));
    assert_eq!(world.command(&readmit(1)).unwrap_err().kind, Kind::NotFound, "once");
}

#[test]
fn a_server_that_is_out_can_be_removed_without_a_drain() {
    let mut world = World::new();
    for (instance, addr) in [(100, "a:1"), (101, "a:2")] {
        registered(world.command(&register(None, instance, addr)));
    }
    let (gone, stays) = (ServerId(1), ServerId(2));
    let candidate = |server| Candidate { server, domain: Domain::default(), weight: 1 };
    let layout = Layout::compute(LayoutVersion(1), 16, 3, &[candidate(gone), candidate(stays)]);
    world.command(&Command::SetLayout(layout.clone())).unwrap();
    let remove = Command::RemoveServer { server: gone };
    world.command(&Command::SetOut { server: gone, out: true }).unwrap();
    assert_eq!(world.command(&remove).unwrap_err().kind, Kind::Refused, "the layout has not followed yet");
    world.command(&Command::SetLayout(layout.next(3, &[candidate(stays)]))).unwrap();
    assert_eq!(world.command(&remove), Ok(Done::Noted));
    assert!(super::super::out(&*world.kv).unwrap().is_empty(), "nobody is out who is not there");
    assert_eq!(servers(&*world.kv).unwrap().len(), 1);
}
