//! Golden bytes of every row. A change here is a change of the format on disk: raise the version, keep the old decoder.

use super::*;
use crate::store::acl::{Acl, Entries};
use crate::store::moves::{AwayRow, LeftRow, MovesRow, Moving, PlanRow, PlanStep, StepsRow};
use crate::store::values::{
    Body, ChunkRow, Config, Counters, Data, Degraded, Dentry, EventRow, ExtentRow, Fence, FixRow, Horizon, Inode,
    InstanceRow, LayoutRow, Listed, Moved, Purge, Reserved, RestoredRow, ServerRow, SessionRow, SlotRow, SquashRow,
    Value,
};
use crate::store::values::{LockRow, Recount, WaitingLock};
use bytes::Bytes;
use common::id::{DataVersion, PgId};
use common::layout::{Domain, Layout};
use common::proto::lock::{Lock, LockHolder, LockKind, LockSpace};
use common::proto::meta::{Applied, FileKind};
use common::proto::rebalance::{PlanState, ServerPlan};
use common::proto::squash::Squash;

/// The value has these bytes, reads back from them, and from no others.
fn golden<V: Value + PartialEq + std::fmt::Debug>(value: &V, hex: &str) {
    let bytes = value.encode();
    let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, hex.replace(' ', ""), "{}", V::WHAT);
    assert_eq!(&V::decode(&bytes).unwrap(), value);
    assert!(V::decode(&[&bytes[..], &[0]].concat()).is_err(), "{}: bytes left over", V::WHAT);
    assert!(V::decode(&[&[99], &bytes[1..]].concat()).is_err(), "{}: another version", V::WHAT);
    assert!(V::decode(&bytes[..bytes.len() - 1]).is_err(), "{}: cut off", V::WHAT);
    assert!(V::decode(b"").is_err());
}

fn inode(kind: FileKind, body: Body) -> Inode {
    let time = |secs| Time { secs, nanos: 1 };
    Inode {
        kind,
        mode: 0o644,
        uid: 5,
        gid: 6,
        nlink: 1,
        atime: time(1),
        mtime: time(2),
        ctime: time(-3),
        chunk_size: 1 << 20,
        replicas: 3,
        xattr_names: 7,
        acls: None,
        body,
    }
}

#[test]
fn inodes() {
    let common = "a403 05 06 01 0201 0401 0501 808040 03 07";
    let file = Body::File { size: 200, allocated: 100, extents: 2, version: DataVersion(9), data: 77 };
    golden(&inode(FileKind::File, file), &format!("01 00 {common} 00 c801 64 02 09 4d"));
    let dir = Body::Dir { parent: ROOT, entries: 3, next_cookie: 9 };
    golden(&inode(FileKind::Dir, dir), &format!("01 01 {common} 01 01 03 09"));
    golden(&inode(FileKind::Symlink, Body::Symlink { target: b"ab".to_vec() }), &format!("01 02 {common} 02 02 6162"));
    golden(&inode(FileKind::CharDevice, Body::Device { rdev: 8 }), &format!("01 05 {common} 03 08"));
    golden(&inode(FileKind::Fifo, Body::Plain), &format!("01 03 {common} 04"));
}

#[test]
fn inodes_with_access_control_lists() {
    let without = inode(FileKind::Fifo, Body::Plain);
    let common = "03 a403 05 06 01 0201 0401 0501 808040 03 07 04";
    let entries = Entries { users: [(300, 6)].into(), group: 5, groups: [(7, 4)].into() };
    let mut row = without.clone();
    row.set_access_acl(Some(entries.clone()));
    let access = "01 01 ac02 06 05 01 07 04";
    golden(&row, &format!("02 {common} {access} 00"));
    row.set_default_acl(Some(Acl { mode: 0o750, entries: None }));
    golden(&row, &format!("02 {common} {access} 01 e803 00"));
    row.set_access_acl(None);
    row.set_default_acl(Some(Acl { mode: 0o750, entries: Some(entries) }));
    golden(&row, &format!("02 {common} 00 01 e803 {access}"));
    row.set_default_acl(None);
    assert_eq!(row, without, "without any it is what it was");
}

#[test]
fn the_last_corrections() {
    let row = FixRow { scan: LogIndex(300), batch: 2, at: LogIndex(301) };
    golden(&row, "01 ac02 02 ad02");
}

#[test]
fn restores() {
    let (epoch, index, at) = (Epoch(2), LogIndex(300), Time { secs: 1, nanos: 2 });
    let row = RestoredRow { epoch, index, at, held: true, servers_from: ServerId(5) };
    golden(&row, "01 02 ac02 02 02 01 05");
}

#[test]
fn events() {
    let row = EventRow { index: LogIndex(300), at: Time { secs: 1, nanos: 2 }, by: "a".into(), what: "b".into() };
    golden(&row, "01 ac02 02 02 01 61 01 62");
}

#[test]
fn entries_and_extents() {
    golden(&Dentry { ino: InodeId(300), kind: FileKind::Dir, cookie: 4 }, "01 ac02 01 04");
    golden(&Listed { ino: InodeId(3), kind: FileKind::File, name: name("ab") }, "01 03 00 02 6162");
    let id = ChunkId([0xaa; 32]);
    let ids = "aa".repeat(32);
    let chunk = ExtentRow { len: 10, data: Data::Chunk { id, offset: 1, chunk_len: 300 } };
    golden(&chunk, &format!("01 0a 00 {ids} 01 ac02"));
    let inline = ExtentRow { len: 2, data: Data::Inline { id, offset: 1, bytes: Bytes::from_static(b"xyz") } };
    golden(&inline, &format!("01 02 01 {ids} 01 03 78797a"));
    golden(&ChunkRow { len: 10, refs: [(2, 300), (3, 1)].into() }, "01 0a 02 02 ac02 03 01");
    golden(&Degraded { servers: vec![ServerId(1), ServerId(200)] }, "01 02 01 c801");
    golden(&Purge { replicas: 3 }, "01 03");
    golden(&Recount { from: 3, to: 2, at: 258 }, "01 03 02 82 02");
    golden(&Horizon(LogIndex(5)), "01 05");
    golden(&Moved(LayoutVersion(6)), "01 06");
}

#[test]
fn sessions() {
    let row = SessionRow { label: "h".into(), slots: 4, opened: Time { secs: 1, nanos: 2 }, ended: false };
    golden(&row, "01 01 68 04 02 02 00");
    let lock = Lock { space: LockSpace::Whole, owner: 7, kind: LockKind::Exclusive, start: 1, end: 300, pid: 5 };
    let holder = LockHolder { session: SessionId(2), lock };
    let row = LockRow { held: vec![holder], queue: vec![WaitingLock { number: 9, holder }] };
    golden(&row, "01 01 02 01 07 01 01 ac02 05 01 09 02 01 07 01 01 ac02 05");
    golden(&SlotRow { seq: 0, reply: None }, "01 00 00");
    let applied = Applied { outcome: Outcome::Done, index: LogIndex(9) };
    golden(&SlotRow { seq: 3, reply: Some(Ok(applied)) }, "01 03 01 00 00 09");
    golden(&SlotRow { seq: 3, reply: Some(Err(Fault::new(Kind::Exists, "x"))) }, "01 03 01 01 01 01 78 00");
}

#[test]
fn cluster() {
    let domain = Domain { zone: "z".into(), rack: "r".into(), host: "h".into() };
    let server = ServerRow { instance: 1, addr: "a:1".into(), domain, weight: 9, weight_fixed: true };
    golden(&server, "01 01 03 613a31 01 7a 01 72 01 68 09 01");
    golden(&InstanceRow(ServerId(3)), "01 03");
    let config = Config {
        cluster: ClusterId(1),
        epoch: Epoch(2),
        secret: Secret([0xbb; 32]),
        pg_count: 16,
        replicas: 3,
        min_replicas: 2,
        metaservers: vec![(NodeId(1), "m:1".into())],
    };
    golden(&config, &format!("01 01 02 {} 10 03 02 01 01 03 6d3a31", "bb".repeat(32)));
    let counters = Counters {
        next_ino: 1,
        next_server: 2,
        inodes: 3,
        logical_bytes: 4,
        chunk_bytes: 5,
        chunks: 6,
        degraded: 7,
        sessions: 8,
        map_version: 9,
        layout: LayoutVersion(10),
        last_move: LayoutVersion(11),
    };
    golden(&counters, "01 01 02 03 04 05 06 07 08 09 0a 0b");
    let squash = Squash { uid: 300, gid: 2, allowed: vec!["10.0.0.1".parse().unwrap()] };
    golden(&SquashRow(squash), "01 ac02 02 01 00 0a000001");
    let layout = Layout { version: LayoutVersion(2), groups: vec![vec![ServerId(1)], vec![]] };
    golden(&LayoutRow(layout), "01 02 02 01 01 00");
    golden(&Reserved(vec![(300, 301)]), "01 01 ac02 ad02");
    golden(&Fence { index: LogIndex(300), term: 2, over: true }, "01 ac02 02 01");
}

#[test]
fn moves() {
    let (pg, server) = (PgId(300), ServerId(4));
    let moving = Moving {
        was: vec![server],
        since: LayoutVersion(2),
        begun: LogIndex(5),
        closed: Some(LogIndex(6)),
        list_len: 3,
        bytes: 300,
        planned: true,
    };
    golden(&MovesRow([(pg, moving)].into()), "01 01 ac02 01 04 02 05 01 06 03 ac02 01");
    let time = |secs| Time { secs, nanos: 0 };
    let plan = PlanRow {
        state: PlanState::Paused,
        wanted: true,
        rate: Some(300),
        started: time(1),
        ended: None,
        steps_left: 7,
        groups: 8,
        groups_done: 9,
        bytes: 10,
        bytes_done: 11,
    };
    golden(&plan, "01 02 01 01 ac02 02 00 00 07 08 09 0a 0b");
    let steps = [(pg, PlanStep { head: vec![server], bytes: 7 })].into();
    let servers = vec![ServerPlan { server, weight: 1, ..ServerPlan::default() }];
    golden(&StepsRow { steps, servers }, "01 01 ac02 01 04 07 01 04 01 00 00 00 00 00 00 00 00");
    golden(&LeftRow([(server, [(pg, vec![server])].into())].into()), "01 01 04 01 ac02 01 04");
    golden(&AwayRow([(server, time(1))].into()), "01 01 04 02 00");
}
