//! The checker notices any row that is missing: else the other tests prove little.

use super::super::{Fix, problems};
use super::*;
use crate::store::keys::{
    CHUNK, CLUSTER, COUNTERS, DEGRADED, DENTRY, EXTENT, INODE, LIST, ORPHAN, PURGE, RECOUNT, SESSION, XATTR,
};
use crate::store::values::{Body, ChunkRow, Degraded, Dentry, Inode, Value};
use common::kv::{Batch, Entry};
use common::proto::meta::{FileKind, SetAttr, XattrMode};
use std::ops::Bound;

/// A store with something of everything.
fn full() -> World {
    let mut world = World::new();
    let dir = world.dir(0, ROOT, "d", 0o755);
    let ino = world.file(0, dir, "f", 0o644);
    world.op(0, Op::Link { ino, parent: ROOT, name: name("g") }).unwrap();
    world.op(0, Op::SetXattr { ino, name: b"user.x".to_vec(), value: vec![1], mode: XattrMode::Any }).unwrap();
    world.write(ino, 0, b"three copies").unwrap();
    let two = world.store(b"two copies");
    let edit = Edit { at: 20, len: 10, data: Source::Chunk { id: two.id, offset: 0 } };
    world.commit(Commit { edits: vec![edit], chunks: vec![stored(two.id, 10, 2)], grow: 30, ..empty(ino) }).unwrap();
    world.file(0, dir, "open", 0o644);
    world.op(0, Op::Unlink { parent: dir, name: name("open"), keep: true }).unwrap();
    let large = world.file(0, dir, "large", 0o644);
    let chunk = world.store(b"x");
    for round in 0..5u64 {
        let edit = |n| Edit { at: (round * 1024 + n) * 2, len: 1, data: Source::Chunk { id: chunk.id, offset: 0 } };
        let edits = (0..1024).map(edit).collect();
        world.commit(Commit { edits, grow: 20_000, chunks: vec![chunk.clone()], ..empty(large) }).unwrap();
    }
    world.op(0, Op::Unlink { parent: dir, name: name("large"), keep: false }).unwrap();
    let recounted = world.file(0, dir, "recounted", 0o644);
    let edit = |n: u64| Edit { at: n * 2, len: 1, data: Source::Chunk { id: chunk.id, offset: 0 } };
    let edits = (0..20).map(edit).collect();
    world.commit(Commit { edits, grow: 39, chunks: vec![chunk.clone()], ..empty(recounted) }).unwrap();
    let set = SetAttr { replicas: Some(2), ..SetAttr::default() };
    world.op(0, Op::SetAttr { ino: recounted, set }).unwrap();
    world.check();
    world
}

#[test]
fn any_missing_row_is_noticed() {
    let world = full();
    for family in [INODE, DENTRY, LIST, EXTENT, XATTR, CHUNK, DEGRADED, SESSION, ORPHAN, PURGE, RECOUNT] {
        let rows = world.kv.scan(family, (Bound::Unbounded, Bound::Unbounded), false).map(Result::unwrap);
        let rows: Vec<Entry> = rows.take(20).collect();
        assert!(!rows.is_empty(), "{}: nothing to lose", keys::FAMILIES[usize::from(family.0)]);
        for (key, value) in rows {
            let mut batch = Batch::default();
            batch.delete(family, key.to_vec());
            world.kv.write(batch).unwrap();
            let wrong = check(&*world.kv).unwrap();
            assert!(!wrong.is_empty(), "{} {key:?}", keys::FAMILIES[usize::from(family.0)]);
            let mut batch = Batch::default();
            batch.put(family, key.to_vec(), value.to_vec());
            world.kv.write(batch).unwrap();
        }
    }
    world.check();
    let mut batch = Batch::default();
    batch.delete(CLUSTER, COUNTERS.to_vec());
    world.kv.write(batch).unwrap();
    assert!(!check(&*world.kv).unwrap().is_empty());
}

/// Changes rows behind the state machine's back.
pub(super) fn plant(world: &World, family: common::kv::Family, key: &[u8], value: Option<Vec<u8>>) {
    let mut batch = Batch::default();
    match value {
        Some(value) => batch.put(family, key.to_vec(), value),
        None => batch.delete(family, key.to_vec()),
    }
    world.kv.write(batch).unwrap();
}

/// Carries out what the problems found propose.
pub(super) fn mend(world: &mut World) -> Reply {
    let scan = LogIndex(world.index);
    let fixes: Vec<Fix> = problems(&*world.kv).unwrap().into_iter().flat_map(|problem| problem.fixes).collect();
    let at = world.now();
    world.command(&Command::Fix { scan, batch: 1, fixes, at })
}

fn rows(world: &World, family: common::kv::Family) -> Vec<Entry> {
    world.kv.scan(family, (Bound::Unbounded, Bound::Unbounded), false).map(Result::unwrap).take(20).collect()
}

#[test]
fn any_missing_row_but_an_inode_is_made_up_for() {
    for family in [DENTRY, LIST, EXTENT, XATTR, CHUNK, DEGRADED, SESSION, ORPHAN, PURGE, RECOUNT] {
        for number in 0..rows(&full(), family).len() {
            let mut world = full();
            let files = rows(&world, INODE).len();
            let (key, _) = rows(&world, family)[number].clone();
            plant(&world, family, &key, None);
            assert_eq!(mend(&mut world), Ok(Done::Fixed));
            let wrong = check(&*world.kv).unwrap();
            assert!(wrong.is_empty(), "{} {key:?}: {wrong:#?}", keys::FAMILIES[usize::from(family.0)]);
            assert!(rows(&world, INODE).len() >= files, "nothing goes");
        }
    }
    let mut world = full();
    plant(&world, CLUSTER, COUNTERS, None);
    mend(&mut world).unwrap();
    world.check();
}

/// The names and what they hold: what a user could miss.
pub(super) fn contents(world: &World) -> Vec<(String, Vec<u8>)> {
    let (mut dirs, mut found) = (vec![(ROOT, String::new())], Vec::new());
    while let Some((dir, path)) = dirs.pop() {
        for entry in world.list(dir, 0, 100).0 {
            let path = format!("{path}/{}", entry.name);
            match entry.kind {
                FileKind::Dir => dirs.push((entry.ino, path)),
                _ => found.push((path, world.read(entry.ino))),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn wrong_numbers_are_counted_anew_and_no_content_goes() {
    type Damage = fn(&mut Inode);
    let damages: [(&str, Damage); 6] = [
        ("links", |inode| inode.nlink += 3),
        ("names of attributes", |inode| inode.xattr_names += 1),
        ("entries", |inode| {
            if let Body::Dir { entries, .. } = &mut inode.body {
                *entries += 2
            }
        }),
        ("next cookie", |inode| {
            if let Body::Dir { next_cookie, .. } = &mut inode.body {
                *next_cookie = 1
            }
        }),
        ("extents", |inode| {
            if let Body::File { extents, allocated, .. } = &mut inode.body {
                (*extents, *allocated) = (*extents + 1, 0);
            }
        }),
        ("size", |inode| {
            if let Body::File { size, .. } = &mut inode.body {
                *size = 0
            }
        }),
    ];
    for (what, damage) in damages {
        let mut noticed = 0;
        for (key, value) in rows(&full(), INODE) {
            let mut world = full();
            let before = contents(&world);
            let mut inode = Inode::decode(&value).unwrap();
            damage(&mut inode);
            plant(&world, INODE, &key, Some(inode.encode()));
            noticed += usize::from(!check(&*world.kv).unwrap().is_empty());
            mend(&mut world).unwrap();
            world.check();
            assert_eq!(contents(&world), before, "{what}");
        }
        assert!(noticed > 0, "{what}");
    }
    let mut world = full();
    for (key, value) in rows(&world, CHUNK) {
        let mut chunk = ChunkRow::decode(&value).unwrap();
        chunk.len += 1;
        chunk.refs = [(3, 77), (5, 1)].into();
        plant(&world, CHUNK, &key, Some(chunk.encode()));
    }
    mend(&mut world).unwrap();
    world.check();
}

/// Counts that change between the look and the correction end up right; an old look is not believed.
#[test]
fn a_correction_counts_what_happened_meanwhile_and_only_once() {
    let mut world = full();
    let g = world.ask(0, Query::Lookup { parent: ROOT, name: name("g") }).unwrap();
    let Answer::Attr(Attr { ino, .. }) = g else { panic!("{g:?}") };
    let (key, value) = rows(&world, INODE).into_iter().find(|(key, _)| key[..] == keys::inode(ino)).unwrap();
    let mut inode = Inode::decode(&value).unwrap();
    inode.nlink += 5;
    plant(&world, INODE, &key, Some(inode.encode()));
    let (scan, at) = (LogIndex(world.index), world.now());
    let fixes: Vec<Fix> = problems(&*world.kv).unwrap().into_iter().flat_map(|problem| problem.fixes).collect();
    world.op(0, Op::Link { ino, parent: ROOT, name: name("meanwhile") }).unwrap();
    let command = Command::Fix { scan, batch: 1, fixes, at };
    assert_eq!(world.command(&command), Ok(Done::Fixed));
    assert_eq!(world.command(&command), Ok(Done::Fixed), "its answer was lost");
    world.check();
    let Command::Fix { fixes, .. } = command else { unreachable!("it is one") };
    for (scan, batch) in [(LogIndex(scan.0 + 1), 1), (scan, 3), (LogIndex(world.index), 2)] {
        let late = Command::Fix { scan, batch, fixes: fixes.clone(), at };
        assert_eq!(world.command(&late).unwrap_err().kind, Kind::Stale, "{scan} {batch}");
    }
    world.check();
}

#[test]
fn a_lost_inode_is_told_and_what_it_held_is_kept() {
    let mut world = full();
    let (key, _) = rows(&world, INODE).into_iter().find(|(key, _)| key[7] == 3).unwrap();
    plant(&world, INODE, &key, None);
    mend(&mut world).unwrap();
    let wrong = check(&*world.kv).unwrap();
    assert!(wrong.iter().any(|line| line.contains("leads to i3, which is not there")), "{wrong:?}");
    let found = world.ask(0, Query::Walk { from: ROOT, path: b"/lost+found/data-3".to_vec(), follow: false });
    assert!(matches!(found, Ok(Answer::Walked { attr, .. }) if attr.size == 30), "its bytes are kept");
}

/// What cannot be read is missing from every count: correcting those would make it worse.
#[test]
fn with_a_row_that_cannot_be_read_nothing_is_corrected() {
    for family in [INODE, DENTRY, LIST, EXTENT, CHUNK, DEGRADED, SESSION, PURGE, RECOUNT] {
        let world = full();
        let (key, mut value) = rows(&world, family).pop().map(|(key, value)| (key, value.to_vec())).unwrap();
        value[0] = 99;
        plant(&world, family, &key, Some(value));
        let found = problems(&*world.kv).unwrap();
        assert!(found.iter().any(|problem| problem.text.contains("cannot be read")), "{found:?}");
        assert!(found.iter().all(|problem| problem.fixes.is_empty()), "{found:?}");
    }
}

#[test]
fn entries_and_orphans_that_are_wrong_are_put_right() {
    let mut world = full();
    let entry = |world: &World, path: &[u8]| {
        rows(world, DENTRY).into_iter().find(|(key, _)| key.ends_with(path)).expect("it is there")
    };
    let (key, value) = entry(&world, b"f");
    let mut dentry = Dentry::decode(&value).unwrap();
    dentry.kind = FileKind::Fifo;
    plant(&world, DENTRY, &key, Some(dentry.encode()));
    let (key, value) = entry(&world, b"d");
    let dir = Dentry::decode(&value).unwrap().ino;
    let dir_row = rows(&world, INODE).into_iter().find(|(key, _)| key[..] == keys::inode(dir)).unwrap();
    let mut inode = Inode::decode(&dir_row.1).unwrap();
    if let Body::Dir { parent, .. } = &mut inode.body {
        *parent = InodeId(99);
    }
    plant(&world, INODE, &dir_row.0, Some(inode.encode()));
    let mut moved = Dentry::decode(&value).unwrap();
    moved.cookie += 50;
    plant(&world, DENTRY, &key, Some(moved.encode()));
    plant(&world, ORPHAN, &keys::orphan(S1, dentry.ino), Some(Vec::new()));
    let gone = keys::degraded(common::id::PgId(3), &ChunkId([0x3f; 32]));
    plant(&world, DEGRADED, &gone, Some(Degraded::default().encode()));
    assert!(check(&*world.kv).unwrap().len() >= 5);
    let before = contents(&full());
    mend(&mut world).unwrap();
    world.check();
    assert_eq!(contents(&world), before);
}
