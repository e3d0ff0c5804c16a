//! The checker notices any row that is missing: else the other tests prove little.

use super::*;
use crate::store::keys::{
    CHUNK, CLUSTER, COUNTERS, DEGRADED, DENTRY, EXTENT, INODE, LIST, ORPHAN, PURGE, SESSION, XATTR,
};
use common::kv::{Batch, Entry};
use common::proto::meta::XattrMode;
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
    world.check();
    world
}

#[test]
fn any_missing_row_is_noticed() {
    let world = full();
    for family in [INODE, DENTRY, LIST, EXTENT, XATTR, CHUNK, DEGRADED, SESSION, ORPHAN, PURGE] {
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
