//! Clones of ranges: the bytes are those of the source, the references are counted, nothing is stored.

use super::*;
use common::proto::meta::{CloneRange, SetAttr};
use proptest::prelude::*;

fn cloned(world: &mut World, range: CloneRange) -> Result<u64, Fault> {
    match world.op(0, Op::Clone(range))? {
        Outcome::Cloned { attr, len } => {
            assert_eq!(attr, world.attr(range.to));
            Ok(len)
        }
        other => panic!("clone gave {other:?}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { file: usize, at: usize, len: usize, byte: u8, inline: bool },
    Cut { file: usize, size: usize },
    Clone { from: usize, from_at: usize, to: usize, at: usize, len: usize },
    Remove { file: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (at, len) = (0usize..300, 1usize..200);
    prop_oneof![
        3 => (0usize..3, at.clone(), len.clone(), 1u8.., any::<bool>())
            .prop_map(|(file, at, len, byte, inline)| Step::Write { file, at, len, byte, inline }),
        1 => (0usize..3, at.clone()).prop_map(|(file, size)| Step::Cut { file, size }),
        4 => (0usize..3, at.clone(), 0usize..3, at, len)
            .prop_map(|(from, from_at, to, at, len)| Step::Clone { from, from_at, to, at, len }),
        1 => (0usize..3).prop_map(|file| Step::Remove { file }),
    ]
}

/// As the file system does it: writes `bytes` at `at`, zeros in a gap.
fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Three files against byte arrays, with an upper limit of extents that is often reached.
    #[test]
    fn a_clone_holds_what_its_source_held(steps in prop::collection::vec(step(), 1..30)) {
        let mut world = World::new();
        let mut inos: Vec<InodeId> = (0..3).map(|n| world.file(0, ROOT, &n.to_string(), 0o644)).collect();
        let mut model: Vec<Vec<u8>> = vec![Vec::new(); 3];
        for step in steps {
            match step {
                Step::Write { file, at, len, byte, inline } => {
                    let bytes = vec![byte; len];
                    if inline {
                        let data = Source::Inline { id: ChunkId::of(&bytes), offset: 0, bytes: bytes.clone().into() };
                        let edits = vec![Edit { at: at as u64, len: len as u64, data }];
                        world.commit(Commit { edits, grow: (at + len) as u64, ..empty(inos[file]) }).unwrap();
                    } else {
                        world.write(inos[file], at as u64, &bytes).unwrap();
                    }
                    put(&mut model[file], at, &bytes);
                }
                Step::Cut { file, size } => {
                    let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                    world.op(0, Op::SetAttr { ino: inos[file], set }).unwrap();
                    model[file].resize(size, 0);
                }
                Step::Clone { from, from_at, to, at, len } => {
                    let overlaps = from == to && from_at < at + len && at < from_at + len;
                    let (mut done, most) = (0, model[from].len().saturating_sub(from_at).min(len));
                    while done < most || overlaps || most == 0 {
                        let range = CloneRange {
                            from: inos[from],
                            from_at: (from_at + done) as u64,
                            to: inos[to],
                            at: (at + done) as u64,
                            len: (len - done) as u64,
                        };
                        let result = cloned(&mut world, range);
                        if overlaps {
                            prop_assert_eq!(result.unwrap_err().kind, Kind::Invalid);
                            break;
                        }
                        let now = result.unwrap() as usize;
                        prop_assert_eq!(now == 0, most == 0);
                        let bytes = model[from].get(from_at + done..from_at + done + now).unwrap_or_default().to_vec();
                        if now > 0 {
                            put(&mut model[to], at + done, &bytes);
                        }
                        done += now;
                        if most == 0 {
                            break;
                        }
                    }
                }
                Step::Remove { file } => {
                    world.op(0, Op::Unlink { parent: ROOT, name: name(&file.to_string()), keep: false }).unwrap();
                    inos[file] = world.file(0, ROOT, &file.to_string(), 0o644);
                    model[file].clear();
                }
            }
            world.check();
            for (ino, bytes) in inos.iter().zip(&model) {
                prop_assert_eq!(&world.read(*ino), bytes);
            }
        }
    }
}

#[test]
fn a_clone_needs_no_witness_and_stores_nothing() {
    let mut world = World::new();
    let (a, b) = (world.file(0, ROOT, "a", 0o644), world.file(0, ROOT, "b", 0o4755));
    world.write(a, 0, &[7; 100]).unwrap();
    let before = world.attr(a);
    let range = CloneRange { from: a, from_at: 10, to: b, at: 1000, len: 1 << 40 };
    match world.op(5, Op::Clone(range)).unwrap() {
        Outcome::Cloned { attr, len } => {
            assert_eq!((len, attr.size, attr.allocated, attr.mode), (90, 1090, 90, 0o755));
            assert!(attr.mtime > before.mtime && attr.version > DataVersion(0));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.attr(a), before, "the source is as it was");
    let stat = match world.ask(0, Query::StatFs).unwrap() {
        Answer::StatFs(stat) => stat,
        other => panic!("{other:?}"),
    };
    assert_eq!((stat.chunks, stat.chunk_bytes, stat.logical_bytes), (1, 100, 190));
    world.check();
}

#[test]
fn a_clone_into_a_file_with_more_copies_is_refused() {
    let mut world = World::new();
    let dir = world.dir(0, ROOT, "few", 0o755);
    let set = SetAttr { replicas: Some(2), ..SetAttr::default() };
    world.op(0, Op::SetAttr { ino: dir, set }).unwrap();
    let (few, many) = (world.file(0, dir, "a", 0o644), world.file(0, ROOT, "b", 0o644));
    world.write(few, 0, &[1; 10]).unwrap();
    world.write(many, 0, &[2; 10]).unwrap();
    let range = |from, to| Op::Clone(CloneRange { from, from_at: 0, to, at: 50, len: 10 });
    assert_eq!(world.kind(0, range(few, many)), Kind::Unsupported);
    world.op(0, range(many, few)).unwrap();
    assert_eq!(world.kind(0, range(dir, few)), Kind::IsDir);
    assert_eq!(world.kind(0, range(InodeId(999), few)), Kind::Gone);
    let beyond = Op::Clone(CloneRange { from: many, from_at: 0, to: few, at: u64::MAX - 5, len: 10 });
    assert_eq!(world.kind(0, beyond), Kind::TooBig);
    world.check();
}
