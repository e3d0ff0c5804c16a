//! A new life from a backup: what is void, what is held, what stays.

use super::super::{cluster_map, counters, held, servers, session_is_open};
use super::*;
use common::layout::Domain;
use common::proto::meta::Register;

const NEW: Epoch = Epoch(77);

fn restored(world: &mut World) -> Reply {
    let metaservers = vec![(NodeId(4), "n:4".to_owned())];
    let at = world.now();
    world.command(&Command::Restored { epoch: NEW, metaservers, at })
}

#[test]
fn sessions_of_the_old_life_are_void_with_all_they_held() {
    let mut world = World::new();
    for text in ["kept", "gone"] {
        world.file(0, ROOT, text, 0o644);
    }
    world.op(0, Op::Unlink { parent: ROOT, name: name("gone"), keep: true }).unwrap();
    let before = counters(&*world.kv).unwrap();
    assert_eq!(restored(&mut world), Ok(Done::Noted));
    for session in [S1, S2] {
        assert!(!session_is_open(&*world.kv, session).unwrap());
    }
    let after = counters(&*world.kv).unwrap();
    assert_eq!((after.sessions, after.inodes), (0, before.inodes - 1), "what was only open is gone");
    let map = cluster_map(&*world.kv).unwrap().unwrap();
    assert_eq!((map.epoch, map.metaservers), (NEW, [(NodeId(4), "n:4".to_owned())].into()));
    assert_eq!(map.cluster, ClusterId(7), "it is the same cluster");
    assert_eq!(world.kind(0, Op::Unlink { parent: ROOT, name: name("kept"), keep: false }), Kind::NoSession);
    assert_eq!(restored(&mut world).unwrap_err().kind, Kind::Stale, "its epoch would not rise");
    world.check();
}

#[test]
fn nothing_is_deleted_after_a_restore_until_it_is_released() {
    let mut world = World::new();
    let dead = world.store(b"dead").id;
    let condemn = |epoch| Command::Condemn { epoch, chunks: vec![dead] };
    assert_eq!(world.command(&condemn(Epoch(1))), Ok(Done::Condemned { granted: vec![dead] }));
    assert_eq!(held(&*world.kv).unwrap(), None);
    restored(&mut world).unwrap();
    let since = held(&*world.kv).unwrap().unwrap();
    assert_eq!((since.epoch, since.index), (NEW, LogIndex(world.index)));
    assert_eq!(world.command(&condemn(Epoch(1))).unwrap_err().kind, Kind::Stale, "an ask of the old life");
    assert_eq!(world.command(&condemn(NEW)).unwrap_err().kind, Kind::Refused);
    let of_another = world.command(&Command::Release { epoch: Epoch(76) });
    assert_eq!(of_another.unwrap_err().kind, Kind::NotFound, "a check of another life says nothing of this one");
    assert_eq!(world.command(&condemn(NEW)).unwrap_err().kind, Kind::Refused);
    assert_eq!(world.command(&Command::Release { epoch: NEW }), Ok(Done::Noted));
    assert_eq!(held(&*world.kv).unwrap(), None);
    assert_eq!(world.command(&condemn(NEW)), Ok(Done::Condemned { granted: vec![dead] }));
    assert_eq!(world.command(&Command::Release { epoch: NEW }).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn a_chunkserver_that_joined_after_the_backup_keeps_its_number() {
    let mut world = World::new();
    let mut register = |server: Option<u32>, instance: u128| {
        let (server, addr, domain) = (server.map(ServerId), format!("h:{instance}"), Domain::default());
        let register = Register { server, instance, addr, domain, weight: 10, capacity: 1, free: 1 };
        let reply = match (server, instance) {
            (None, 0) => restored(&mut world),
            _ => world.command(&Command::Register(register)),
        };
        match reply {
            Ok(Done::Registered { server, new }) => Ok((server.0, new)),
            Ok(_) => Ok((0, false)),
            Err(fault) => Err(fault.kind),
        }
    };
    assert_eq!(register(None, 100), Ok((1, true)));
    assert_eq!(register(Some(2), 200), Err(Kind::Refused), "there is no earlier life it could be of");
    assert_eq!(register(None, 0), Ok((0, false)), "restored");
    assert_eq!(register(Some(1), 100), Ok((1, false)), "it is in the backup");
    assert_eq!(register(Some(1), 300), Err(Kind::Refused), "its data is another one's");
    assert_eq!(register(Some(2), 200), Ok((2, true)), "it joined after the backup");
    assert_eq!(register(Some(2), 200), Ok((2, false)));
    assert_eq!(register(Some(2), 400), Err(Kind::Refused), "that number is taken");
    assert_eq!(register(None, 500), Ok((1026, true)), "nobody new gets a number of theirs");
    assert_eq!(register(Some(1025), 600), Ok((1025, true)));
    assert_eq!(register(Some(2000), 700), Ok((2000, true)), "of a life between the backup and this one");
    assert_eq!(register(None, 800), Ok((2001, true)));
    let ids: Vec<u32> = servers(&*world.kv).unwrap().into_iter().map(|(id, _)| id.0).collect();
    assert_eq!(ids, [1, 2, 1025, 1026, 2000, 2001]);
}
