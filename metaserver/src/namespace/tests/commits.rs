//! What a commit is accepted for, and what it refuses.

use super::*;
use crate::store::keys::{CLUSTER, COUNTERS, DEGRADED, HORIZON, MOVED};
use crate::store::values::{Counters, Degraded, Horizon, Moved, Value};
use bytes::Bytes;
use common::kv::Batch;
use common::proto::batch::{self, Deferred};
use common::proto::meta::{SetAttr, SetTime};

/// A file, and a commit that writes one stored chunk to it.
fn ready(world: &mut World) -> (InodeId, Commit) {
    let ino = world.file(0, ROOT, "f", 0o644);
    let chunk = world.store(b"some bytes");
    let edit = Edit { at: 0, len: 10, data: Source::Chunk { id: chunk.id, offset: 0 } };
    let witness = LogIndex(world.index);
    let commit = Commit { edits: vec![edit], chunks: vec![chunk], grow: 10, ..empty(ino) };
    (ino, Commit { attempt: Attempt { witness, ..commit.attempt }, ..commit })
}

fn refused(world: &mut World, commit: &Commit) -> Kind {
    let before = world.attr(commit.ino);
    let kind = world.commit(commit.clone()).expect_err("it was to be refused").kind;
    assert_eq!(world.attr(commit.ino), before, "a refused commit changes nothing");
    world.check();
    kind
}

fn set_horizon(world: &World, id: ChunkId, at: u64) {
    let mut batch = Batch::default();
    batch.put(HORIZON, keys::horizon(id.bucket()), Horizon(LogIndex(at)).encode());
    world.kv.write(batch).unwrap();
}

#[test]
fn a_witness_below_the_horizon_is_told_to_touch_again() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    let witness = commit.attempt.witness.0;
    set_horizon(&world, commit.chunks[0].id, witness + 1);
    assert_eq!(refused(&mut world, &commit), Kind::TouchAgain);
    set_horizon(&world, commit.chunks[0].id, witness);
    world.commit(commit.clone()).unwrap();
    // Also when the chunk has references already.
    set_horizon(&world, commit.chunks[0].id, witness + 1);
    assert_eq!(refused(&mut world, &commit), Kind::TouchAgain);
    assert_eq!(world.read(ino), b"some bytes");
}

/// The same attempt, receipts and references, whether a session waits for the commit or tells it later.
#[test]
fn a_commit_in_a_batch_is_refused_as_one_that_comes_alone() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    let witness = commit.attempt.witness.0;
    let told = |world: &mut World, commit: &Commit| {
        let op = Op::Commit(commit.clone());
        let change = Deferred { cred: cred(0), at: Time { secs: 7, nanos: 0 }, op, leads: vec![] };
        match world.op(0, Op::Batch(batch::Batch { changes: vec![change], ..Default::default() })).unwrap() {
            Outcome::Batch(done) => (done.done, done.fault.map(|fault| fault.kind)),
            other => panic!("{other:?}"),
        }
    };
    set_horizon(&world, commit.chunks[0].id, witness + 1);
    assert_eq!(told(&mut world, &commit), (0, Some(Kind::TouchAgain)));
    set_horizon(&world, commit.chunks[0].id, witness);
    let few = Commit { chunks: vec![stored(commit.chunks[0].id, 10, 1)], ..commit.clone() };
    assert_eq!(told(&mut world, &few), (0, Some(Kind::PutAgain)));
    let of_others = Commit { attempt: Attempt { session: S2, ..commit.attempt }, ..commit.clone() };
    assert_eq!(told(&mut world, &of_others), (0, Some(Kind::Invalid)));
    world.check();
    assert_eq!(told(&mut world, &commit), (1, None));
    assert_eq!((world.read(ino), world.attr(ino).ctime.secs), (b"some bytes".to_vec(), 7));
    world.check();
}

#[test]
fn attempts_of_the_future_of_others_and_of_old_epochs_are_refused() {
    let mut world = World::new();
    let (_, commit) = ready(&mut world);
    let with = |attempt: Attempt| Commit { attempt, ..commit.clone() };
    let future = LogIndex(world.index + 2);
    assert_eq!(refused(&mut world, &with(Attempt { witness: future, ..commit.attempt })), Kind::Invalid);
    assert_eq!(refused(&mut world, &with(Attempt { session: S2, ..commit.attempt })), Kind::Invalid);
    assert_eq!(refused(&mut world, &with(Attempt { epoch: Epoch(0), ..commit.attempt })), Kind::PutAgain);
    assert_eq!(refused(&mut world, &Commit { layout: LayoutVersion(1), ..commit.clone() }), Kind::Invalid);
    world.commit(commit).unwrap();
}

#[test]
fn a_layout_older_than_the_last_move_is_told_to_put_again() {
    let mut world = World::new();
    let (_, commit) = ready(&mut world);
    let pg = commit.chunks[0].id.pg(16);
    let set = |world: &World, pg, moved: u64| {
        let counters = super::super::counters(&*world.kv).unwrap();
        let counters = Counters { layout: LayoutVersion(3), last_move: LayoutVersion(2), ..counters };
        let mut batch = Batch::default();
        batch.put(MOVED, keys::moved(pg), Moved(LayoutVersion(moved)).encode());
        batch.put(CLUSTER, COUNTERS, counters.encode());
        world.kv.write(batch).unwrap();
    };
    set(&world, common::id::PgId(pg.0 ^ 1), 2); // another group's move
    world.commit(Commit { layout: LayoutVersion(1), ..commit.clone() }).unwrap();
    set(&world, pg, 2);
    assert_eq!(refused(&mut world, &Commit { layout: LayoutVersion(1), ..commit.clone() }), Kind::PutAgain);
    world.commit(Commit { layout: LayoutVersion(2), ..commit }).unwrap();
}

#[test]
fn too_few_receipts_are_refused_and_few_make_the_chunk_degraded() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    let with = |copies| Commit { chunks: vec![stored(commit.chunks[0].id, 10, copies)], ..commit.clone() };
    assert_eq!(refused(&mut world, &with(1)), Kind::PutAgain);
    world.commit(with(2)).unwrap();
    let key = keys::degraded(commit.chunks[0].id.pg(16), &commit.chunks[0].id);
    let row = Degraded::decode(&world.kv.get(DEGRADED, &key).unwrap().unwrap()).unwrap();
    assert_eq!(row.servers, [ServerId(1), ServerId(2)]);
    assert_eq!(world.extents(ino)[0].holders, [ServerId(1), ServerId(2)], "readers are told");
    assert_eq!(world.few_extents(ino), None, "and ask each time: the file does not change with them");
    world.check();
    world.commit(with(3)).unwrap();
    assert_eq!(world.few_extents(ino), Some(world.extents(ino)), "what comes with a lease is what an open is told");
    for at in 1..=17 {
        world.write(ino, at * 100, b"x").unwrap();
        assert_eq!(world.few_extents(ino).is_some(), at < 16);
    }
    assert_eq!(world.kv.get(DEGRADED, &key).unwrap(), None, "all copies are there");
    world.commit(with(2)).unwrap();
    world.op(0, Op::Unlink { parent: ROOT, name: name("f"), keep: false }).unwrap();
    assert_eq!(world.kv.get(DEGRADED, &key).unwrap(), None, "it went with the chunk");
    world.check();
}

#[test]
fn malformed_commits_are_refused() {
    let mut world = World::new();
    let (ino, good) = ready(&mut world);
    let id = good.chunks[0].id;
    let chunk = |at, len, offset| Edit { at, len, data: Source::Chunk { id, offset } };
    let edits = |edits| Commit { edits, ..good.clone() };
    let inline = |len, of: &[u8]| Edit {
        at: 0,
        len,
        data: Source::Inline { id: ChunkId::of(of), offset: 0, bytes: Bytes::from_static(b"abc") },
    };
    let no_chunks = |edits| Commit { edits, grow: 100, ..empty(ino) };
    let invalid = [
        edits(vec![chunk(0, 0, 0)]),
        edits(vec![chunk(0, 10, 1)]),
        edits(vec![chunk(0, 11, 0)]),
        edits(vec![]),
        edits(vec![chunk(1, 10, 0)]), // beyond `grow`
        Commit { chunks: vec![], ..good.clone() },
        Commit { chunks: vec![good.chunks[0].clone(), good.chunks[0].clone()], ..good.clone() },
        Commit { chunks: vec![stored(id, 0, 3)], ..good.clone() },
        Commit { chunks: vec![stored(id, 10, 17)], ..good.clone() },
        no_chunks(vec![inline(3, b"abd")]),
        no_chunks(vec![inline(2, b"abc")]),
        Commit { mtime: Some(Time { secs: 0, nanos: 1_000_000_000 }), ..empty(ino) },
        no_chunks((0..1025).map(|at| Edit { at, len: 1, data: Source::Hole }).collect()),
    ];
    for (n, commit) in invalid.iter().enumerate() {
        assert_eq!(refused(&mut world, commit), Kind::Invalid, "case {n}");
    }
    let mut twice = good.clone();
    twice.chunks[0].receipts[1] = twice.chunks[0].receipts[0];
    assert_eq!(refused(&mut world, &twice), Kind::Invalid, "two receipts of one server");
    let far = Edit { at: 1 << 60, len: 1, data: Source::Hole };
    assert_eq!(refused(&mut world, &no_chunks(vec![far])), Kind::TooBig);
    assert_eq!(refused(&mut world, &Commit { grow: (1 << 60) + 1, ..empty(ino) }), Kind::TooBig);
    world.commit(good.clone()).unwrap();
    let other_len = Commit { chunks: vec![stored(id, 11, 3)], ..edits(vec![chunk(0, 10, 0)]) };
    assert_eq!(refused(&mut world, &other_len), Kind::Invalid);
}

#[test]
fn the_base_version_guards_and_every_change_raises_it() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    let (first, _) = world.commit(Commit { base: Some(world.attr(ino).version), ..commit.clone() }).unwrap();
    assert_eq!(first.version.0, 1);
    let old = Commit { base: Some(common::id::DataVersion(0)), ..commit.clone() };
    assert_eq!(refused(&mut world, &old), Kind::Stale);
    let set = SetAttr { size: Some(5), ..SetAttr::default() };
    world.op(0, Op::SetAttr { ino, set }).unwrap();
    assert_eq!(world.attr(ino).version.0, 2);
    let (times_only, _) = world.commit(empty(ino)).unwrap();
    assert_eq!(times_only.version.0, 2, "nothing of the data changed");
}

#[test]
fn compaction_changes_neither_times_nor_mode() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    world.commit(commit.clone()).unwrap();
    let at = |secs| Time { secs, nanos: 0 };
    let set = SetAttr { mode: Some(0o4755), mtime: Some(SetTime::At(at(7))), ..SetAttr::default() };
    world.op(0, Op::SetAttr { ino, set }).unwrap();
    let before = world.attr(ino);
    // The client read the file's times before they were set.
    let op = Op::Commit(Commit { base: Some(before.version), mtime: Some(at(3)), ..commit.clone() });
    world.op(1000, op).unwrap();
    let after = world.attr(ino);
    assert_eq!(after.version.0, before.version.0 + 1);
    assert_eq!((after.mtime, after.ctime, after.mode), (before.mtime, before.ctime, before.mode));
    world.commit(commit).unwrap();
    assert_ne!(world.attr(ino).mtime, before.mtime, "a write does");
}

#[test]
fn appends_go_where_the_file_ends() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    for round in 0..3 {
        let (attr, offset) = world.commit(Commit { append: true, ..commit.clone() }).unwrap();
        assert_eq!((attr.size, offset), ((round + 1) * 10, round * 10));
    }
    assert_eq!(world.read(ino), b"some bytes".repeat(3));
    world.check();
}

#[test]
fn holes_beyond_the_end_keep_the_size() {
    let mut world = World::new();
    let (ino, commit) = ready(&mut world);
    world.commit(commit).unwrap();
    let hole = Edit { at: 4, len: 1000, data: Source::Hole };
    let (attr, _) = world.commit(Commit { edits: vec![hole], ..empty(ino) }).unwrap();
    assert_eq!((attr.size, attr.allocated), (10, 4));
    assert_eq!(world.read(ino), b"some\0\0\0\0\0\0");
    world.check();
}

#[test]
fn times_and_set_id_bits_follow_a_write() {
    let mut world = World::new();
    let ino = {
        world.op(0, Op::SetAttr { ino: ROOT, set: SetAttr { mode: Some(0o777), ..SetAttr::default() } }).unwrap();
        world.file(5, ROOT, "none", 0o6755)
    };
    assert_eq!(world.attr(ino).mode, 0o6755);
    let mtime = Time { secs: 77, nanos: 7 };
    world.op(5, Op::Commit(Commit { mtime: Some(mtime), ..empty(ino) })).unwrap();
    let attr = world.attr(ino);
    assert_eq!((attr.mtime, attr.mode), (mtime, 0o755));
    assert!(attr.ctime > attr.atime);
}

#[test]
fn only_files_take_data() {
    let mut world = World::new();
    let dir = world.dir(0, ROOT, "d", 0o755);
    let fifo = world.make(0, ROOT, "p", NewNode::Fifo, 0o644).unwrap().ino;
    assert_eq!(refused(&mut world, &empty(dir)), Kind::IsDir);
    assert_eq!(refused(&mut world, &empty(fifo)), Kind::Invalid);
    assert_eq!(world.commit(empty(InodeId(999))).unwrap_err().kind, Kind::Gone);
}
