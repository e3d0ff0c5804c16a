//! How fast commands are applied. Run by hand: `cargo nextest run -p metaserver --run-ignored only speed --no-capture`.

use super::*;
use bytes::Bytes;
use common::kv::rocks::{RocksKv, Tuning};
use std::path::Path;

/// Files made, each with an inline commit.
const FILES: u64 = 100_000;
/// Commands to a batch, as one Raft append might bring them.
const BATCH: usize = 64;

fn commands() -> impl Iterator<Item = Command> {
    let dirs = 100;
    (0..2 * FILES).map(move |n| {
        let (file, commit) = (n / 2, n % 2 == 1);
        let op = if commit {
            let bytes = vec![file as u8; 1000];
            let data = Source::Inline { id: ChunkId::of(&bytes), offset: 0, bytes: Bytes::from(bytes) };
            let edit = Edit { at: 0, len: 1000, data };
            Op::Commit(Commit { edits: vec![edit], grow: 1000, ..empty(InodeId(2 + dirs + file)) })
        } else {
            let parent = InodeId(2 + file % dirs);
            let name = name(&format!("file-{file}"));
            Op::Create { parent, name, node: NewNode::File, mode: 0o644, exclusive: true, access: 0 }
        };
        Command::Client {
            request: Request { session: S1, slot: 2, seq: n + 1, cred: cred(0), op },
            at: Time::default(),
        }
    })
}

fn measure(what: &str, kv: Box<dyn Kv>) {
    let mut world = World::over(kv, None);
    for dir in 0..100 {
        world.dir(0, ROOT, &format!("dir-{dir}"), 0o755);
    }
    let commands: Vec<Command> = commands().collect();
    let start = tokio::time::Instant::now();
    let mut index = world.index;
    for some in commands.chunks(BATCH) {
        let mut txn = Txn::new(&*world.kv);
        for command in some {
            index += 1;
            apply(&mut txn, LogIndex(index), command).unwrap().unwrap();
        }
        let batch = txn.into_batch();
        world.kv.write(batch).unwrap();
    }
    let took = start.elapsed();
    let rate = (2 * FILES) as f64 / took.as_secs_f64();
    println!("{what}: {} commands in {took:.2?}, {rate:.0}/s", 2 * FILES);
    let start = tokio::time::Instant::now();
    world.kv.flush().unwrap();
    println!("{what}: flush {:.2?}", start.elapsed());
    let start = tokio::time::Instant::now();
    for n in 0..FILES {
        let parent = InodeId(2 + n % 100);
        world.ask(0, Query::Lookup { parent, name: name(&format!("file-{n}")) }).unwrap();
    }
    println!("{what}: {:.0} lookups/s", FILES as f64 / start.elapsed().as_secs_f64());
}

#[test]
#[ignore = "a measurement"]
fn creates_and_inline_commits() {
    let dir = tempfile::tempdir().unwrap();
    measure(
        "rocks",
        Box::new(RocksKv::open(Path::new(&dir.path().join("r")), &keys::FAMILIES, &Tuning::default()).unwrap()),
    );
    measure("memory", Box::new(MemoryKv::open(Arc::new(RealDisk), dir.path().join("m"), &keys::FAMILIES).unwrap()));
}
