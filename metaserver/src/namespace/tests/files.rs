//! The extent map against a byte array.

use super::*;
use crate::store::keys;
use crate::store::values::{ChunkRow, Value};
use bytes::Bytes;
use common::proto::meta::{CloneRange, SetAttr};
use proptest::prelude::*;
use std::ops::Bound;

/// Files the operations are spread over, chunks they are made of: few, so that they overlap and share.
const FILES: usize = 3;
const POOL: u8 = 6;
const SPAN: u64 = 160;

#[derive(Clone, Debug)]
enum Step {
    Edits { file: usize, edits: Vec<(u64, u64, What)>, append: bool, grow: u64 },
    Truncate { file: usize, size: u64 },
    Remove { file: usize, keep: bool },
    Release,
    Replicas { file: usize, replicas: u8 },
    Purge { limit: u32 },
    Clone { from: usize, to: usize, range: (u64, u64, u64) },
}

#[derive(Clone, Copy, Debug)]
enum What {
    Hole,
    /// Chunk of the pool, from this offset on (as far as it goes).
    Chunk(u8, u32),
    Inline(u8),
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        1 => Just(What::Hole),
        4 => (0..POOL, 0u32..40).prop_map(|(chunk, offset)| What::Chunk(chunk, offset)),
        2 => any::<u8>().prop_map(What::Inline),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let edits = prop::collection::vec((0..SPAN, 1u64..60, what()), 1..4);
    prop_oneof![
        8 => (0..FILES, edits, any::<bool>(), 0..SPAN)
            .prop_map(|(file, edits, append, grow)| Step::Edits { file, edits, append, grow }),
        3 => (0..FILES, 0..SPAN).prop_map(|(file, size)| Step::Truncate { file, size }),
        1 => (0..FILES, any::<bool>()).prop_map(|(file, keep)| Step::Remove { file, keep }),
        1 => Just(Step::Release),
        2 => (0..FILES, 1..4u8).prop_map(|(file, replicas)| Step::Replicas { file, replicas }),
        1 => (1..4u32).prop_map(|limit| Step::Purge { limit }),
        2 => (0..FILES, 0..FILES, (0..SPAN, 0..SPAN, 1..SPAN))
            .prop_map(|(from, to, range)| Step::Clone { from, to, range }),
    ]
}

/// The bytes of a chunk of the pool: chunk `n` has 40 + n bytes.
fn pool(n: u8) -> Vec<u8> {
    (0..40 + n).map(|i| i.wrapping_mul(7).wrapping_add(n.wrapping_mul(31)) | 1).collect()
}

struct Model {
    world: World,
    files: Vec<(InodeId, Vec<u8>)>,
    orphans: Vec<InodeId>,
    made: u32,
}

impl Model {
    fn new() -> Model {
        let mut model = Model { world: World::new(), files: Vec::new(), orphans: Vec::new(), made: 0 };
        for n in 0..POOL {
            model.world.store(&pool(n));
        }
        (0..FILES).for_each(|n| model.remake(n));
        model
    }

    fn remake(&mut self, file: usize) {
        let ino = self.world.file(0, ROOT, &format!("f{file}"), 0o644);
        self.made += 1;
        match self.files.get_mut(file) {
            Some(there) => *there = (ino, Vec::new()),
            None => self.files.push((ino, Vec::new())),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Edits { file, edits, append, grow } => self.edit(*file, edits, *append, *grow),
            Step::Truncate { file, size } => {
                let (ino, bytes) = &mut self.files[*file];
                bytes.resize(*size as usize, 0);
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.world.op(0, Op::SetAttr { ino: *ino, set }).unwrap();
            }
            Step::Remove { file, keep } => {
                let op = Op::Unlink { parent: ROOT, name: name(&format!("f{file}")), keep: *keep };
                self.world.op(0, op).unwrap();
                if *keep {
                    self.orphans.push(self.files[*file].0);
                }
                self.remake(*file);
            }
            Step::Release => {
                if let Some(ino) = self.orphans.pop() {
                    self.world.op(0, Op::Release { ino }).unwrap();
                }
            }
            Step::Replicas { file, replicas } => {
                let set = SetAttr { replicas: Some(*replicas), ..SetAttr::default() };
                match self.world.op(0, Op::SetAttr { ino: self.files[*file].0, set }) {
                    Err(fault) => {
                        let left = super::super::has_purge(&*self.world.kv).unwrap();
                        assert!(fault.kind == Kind::Busy && left, "{fault:?}");
                    }
                    Ok(_) => assert_eq!(self.world.attr(self.files[*file].0).replicas, *replicas),
                }
            }
            Step::Purge { limit } => drop(self.world.command(&Command::Purge { limit: *limit }).unwrap()),
            Step::Clone { from, to, range } => self.clone_range(*from, *to, *range),
        }
    }

    fn edit(&mut self, file: usize, edits: &[(u64, u64, What)], append: bool, grow: u64) {
        let (ino, mut bytes) = self.files[file].clone();
        let base = if append { bytes.len() as u64 } else { 0 };
        let mut commit = Commit { append, grow, ..empty(ino) };
        let mut named: Vec<u8> = Vec::new();
        let ends = edits.iter().map(|(at, len, _)| at + len).max().unwrap_or(0);
        commit.grow = grow.max(ends);
        let size = bytes.len().max((base + commit.grow) as usize);
        bytes.resize(size, 0);
        for (at, len, what) in edits {
            let (len, data, content) = source(*len, *what);
            if let What::Chunk(n, _) = what
                && !named.contains(n)
            {
                named.push(*n);
            }
            commit.edits.push(Edit { at: *at, len, data });
            let start = (base + at) as usize;
            bytes[start..start + len as usize].copy_from_slice(&content);
        }
        commit.chunks = named.iter().map(|n| self.world.store(&pool(*n))).collect();
        let (attr, offset) = self.world.commit(commit).unwrap();
        assert_eq!((attr.size, offset), (size as u64, base));
        self.files[file].1 = bytes;
    }

    fn clone_range(&mut self, from: usize, to: usize, (from_at, at, len): (u64, u64, u64)) {
        let source = self.files[from].clone();
        let (ino, bytes) = &mut self.files[to];
        let range = CloneRange { from: source.0, from_at, to: *ino, at, len };
        match self.world.op(0, Op::Clone(range)) {
            Ok(Outcome::Cloned { len: 0, .. }) => {} // there is nothing there
            Ok(Outcome::Cloned { len, .. }) => {
                let [from_at, at, len] = [from_at, at, len].map(|number| number as usize);
                bytes.resize(bytes.len().max(at + len), 0);
                bytes[at..at + len].copy_from_slice(&source.1[from_at..from_at + len]);
            }
            Ok(other) => panic!("{other:?}"),
            // It overlaps itself, or wants more copies than there are.
            Err(fault) => assert!(matches!(fault.kind, Kind::Invalid | Kind::Unsupported), "{fault:?}"),
        }
    }

    fn compare(&self) {
        for (ino, bytes) in &self.files {
            assert_eq!(&self.world.read(*ino), bytes, "{ino}");
            let covered: u64 = self.world.extents(*ino).iter().map(|extent| extent.len).sum();
            assert_eq!(self.world.attr(*ino).allocated, covered);
        }
        self.world.check();
    }
}

/// (length, where from, the bytes) of one edit.
fn source(len: u64, what: What) -> (u64, Source, Vec<u8>) {
    match what {
        What::Hole => (len, Source::Hole, vec![0; len as usize]),
        What::Chunk(n, offset) => {
            let chunk = pool(n);
            let rest = &chunk[offset as usize..];
            let content = rest[..rest.len().min(len as usize)].to_vec();
            (content.len() as u64, Source::Chunk { id: ChunkId::of(&chunk), offset }, content)
        }
        What::Inline(byte) => {
            let content = vec![byte; len as usize];
            (len, Source::Inline { id: ChunkId::of(&content), offset: 0, bytes: Bytes::from(content.clone()) }, content)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn reading_through_the_extents_gives_what_was_written(steps in prop::collection::vec(step(), 1..25)) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
            model.compare();
        }
        purge_all(&mut model.world);
        let targets = model.files.iter().map(|(ino, _)| model.world.attr(*ino).replicas);
        let targets: Vec<u8> = targets.chain(model.orphans.iter().map(|ino| model.world.attr(*ino).replicas)).collect();
        for row in chunk_rows(&model.world) {
            assert!(row.refs.keys().all(|target| targets.contains(target)), "{row:?}: nobody wants that");
        }
    }
}

fn chunk_rows(world: &World) -> Vec<ChunkRow> {
    let rows = world.kv.scan(keys::CHUNK, (Bound::Unbounded, Bound::Unbounded), false);
    rows.map(|row| ChunkRow::decode(&row.unwrap().1).unwrap()).collect()
}

/// A file of many extents goes from three copies to two in steps, and from two to four; it is written, cut and removed
/// meanwhile.
#[test]
fn a_file_of_many_extents_gets_another_number_of_copies_in_steps() {
    let mut world = World::new();
    let ino = file_of_many(&mut world);
    let refs = |world: &World| chunk_rows(world)[0].refs.clone().into_iter().collect::<Vec<_>>();
    let set = |replicas| Op::SetAttr { ino, set: SetAttr { replicas: Some(replicas), ..SetAttr::default() } };
    let step = |world: &mut World, limit| world.command(&Command::Purge { limit }).unwrap();
    world.op(0, set(2)).unwrap();
    assert_eq!((world.attr(ino).replicas, refs(&world)), (2, vec![(3, 6144)]));
    assert_eq!(step(&mut world, 144), Done::Purged { more: true });
    assert_eq!(refs(&world), [(2, 144), (3, 6000)]);
    world.check();
    assert_eq!(world.kind(0, set(4)), Kind::Busy);
    world.op(0, set(2)).unwrap(); // it is what it will be
    // A new extent counts by where it is.
    world.write(ino, 1, b"in front").unwrap();
    world.write(ino, 8501, b"behind").unwrap();
    world.check();
    world.op(0, Op::SetAttr { ino, set: SetAttr { size: Some(9000), ..SetAttr::default() } }).unwrap();
    world.check();
    purge_all(&mut world);
    assert!(refs(&world).iter().all(|(target, _)| *target == 2), "{:?}", refs(&world));

    world.op(0, set(4)).unwrap();
    step(&mut world, 100);
    world.op(0, Op::Unlink { parent: ROOT, name: name("many"), keep: false }).unwrap();
    world.check();
    assert!(purge_all(&mut world) > 1);
    assert_eq!(super::super::counters(&*world.kv).unwrap().chunks, 0);
    assert!(!super::super::has_purge(&*world.kv).unwrap());

    // Cut to nothing meanwhile: what it held is still counted as it was, what it holds from then on is not.
    let ino = file_of_many(&mut world);
    let set = |set| Op::SetAttr { ino, set };
    world.op(0, set(SetAttr { replicas: Some(2), ..SetAttr::default() })).unwrap();
    step(&mut world, 100);
    world.op(0, set(SetAttr { size: Some(0), ..SetAttr::default() })).unwrap();
    world.check();
    world.op(0, set(SetAttr { replicas: Some(1), ..SetAttr::default() })).unwrap();
    world.write(ino, 0, b"new").unwrap();
    world.check();
    assert!(purge_all(&mut world) > 1);
    assert_eq!(refs(&world), [(1, 1)]);
}

#[test]
fn extents_that_continue_each_other_become_one() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let chunk = world.store(&pool(0));
    let edit = |at, offset, len| Edit { at, len, data: Source::Chunk { id: chunk.id, offset } };
    let commit = |edits| Commit { edits, chunks: vec![chunk.clone()], grow: 40, ..empty(ino) };
    world.commit(commit(vec![edit(0, 0, 40)])).unwrap();
    world.commit(Commit { edits: vec![Edit { at: 10, len: 10, data: Source::Hole }], ..empty(ino) }).unwrap();
    assert_eq!(world.extents(ino).len(), 2);
    world.commit(commit(vec![edit(10, 10, 10)])).unwrap();
    assert_eq!(world.extents(ino).len(), 2, "joined on the left; the right neighbour stays");
    assert_eq!(world.read(ino), pool(0));
    world.check();
}

/// A file of 6 x 1024 one-byte extents.
fn file_of_many(world: &mut World) -> InodeId {
    let ino = world.file(0, ROOT, "many", 0o644);
    let chunk = world.store(b"x");
    for round in 0..6u64 {
        let edit = |n| Edit { at: (round * 1024 + n) * 2, len: 1, data: Source::Chunk { id: chunk.id, offset: 0 } };
        let commit =
            Commit { edits: (0..1024).map(edit).collect(), grow: 20_000, chunks: vec![chunk.clone()], ..empty(ino) };
        world.commit(commit).unwrap();
    }
    ino
}

fn purge_all(world: &mut World) -> u32 {
    for rounds in 1.. {
        let reply = world.command(&Command::Purge { limit: 1000 });
        world.check();
        match reply {
            Ok(Done::Purged { more: true }) => {}
            Ok(Done::Purged { more: false }) => return rounds,
            other => panic!("{other:?}"),
        }
    }
    unreachable!("counts up for ever")
}

#[test]
fn a_file_of_many_extents_goes_in_steps() {
    let mut world = World::new();
    let ino = file_of_many(&mut world);
    assert_eq!(world.extents(ino).len(), 6144, "listed over several answers");
    world.check();
    world.op(0, Op::Unlink { parent: ROOT, name: name("many"), keep: false }).unwrap();
    assert_eq!(world.ask(0, Query::GetAttr { ino }).unwrap_err().kind, Kind::Gone);
    assert!(super::super::has_purge(&*world.kv).unwrap());
    world.check();
    assert_eq!(purge_all(&mut world), 7);
    let counters = super::super::counters(&*world.kv).unwrap();
    assert_eq!((counters.chunks, counters.logical_bytes, counters.inodes), (0, 0, 1));
}

#[test]
fn truncating_a_file_of_many_extents_to_nothing_goes_in_steps_and_reads_zeros_at_once() {
    let mut world = World::new();
    let ino = file_of_many(&mut world);
    let size = |size| Op::SetAttr { ino, set: SetAttr { size: Some(size), ..SetAttr::default() } };
    world.op(0, size(0)).unwrap();
    world.op(0, size(100)).unwrap();
    world.write(ino, 3, b"new").unwrap();
    let mut expected = vec![0; 100];
    expected[3..6].copy_from_slice(b"new");
    assert_eq!(world.read(ino), expected);
    world.check();
    purge_all(&mut world);
    assert_eq!(world.read(ino), expected);
    world.op(0, Op::Unlink { parent: ROOT, name: name("many"), keep: false }).unwrap();
    world.check();
}
