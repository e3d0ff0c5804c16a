//! The same commands give the same bytes: on both stores, in one batch or in many.

use super::*;
use common::kv::rocks::{RocksKv, Tuning};
use common::kv::{Entry, Family};
use common::proto::meta::{RenameMode, SetAttr, XattrMode};
use std::ops::Bound;

fn small() -> Tuning {
    Tuning { cache_bytes: 8 << 20, memtable_bytes: 1 << 20, background_jobs: 2, open_files: 64 }
}

/// Commands of all kinds, made from a seed; some fail.
fn script(seed: u64, len: u64) -> Vec<Command> {
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut commands = vec![format()];
    let open = Op::OpenSession { label: "twin".into(), slots: 2 };
    let mut seq = 0;
    let mut request = |op| {
        seq += 1;
        let request = Request { session: S1, slot: 1, seq, cred: cred(0), op };
        Command::Client { request, at: Time { secs: seq as i64, nanos: 9 } }
    };
    commands.push(match request(open) {
        Command::Client { request, at } => Command::Client { request: Request { slot: 1, ..request }, at },
        other => other,
    });
    for n in 0..24 {
        let node = if n < 12 { NewNode::Dir } else { NewNode::File };
        let name = name(&format!("first{n}"));
        commands.push(request(Op::Create { parent: ROOT, name, node, mode: 0o755, exclusive: true, access: 0 }));
    }
    for _ in 0..len {
        let (parent, ino) = (InodeId(1 + random(13)), InodeId(12 + random(20)));
        let (text, other) = (name(&format!("n{}", random(8))), name(&format!("n{}", random(8))));
        let to = InodeId(1 + random(13));
        let bytes = vec![random(4) as u8; 1 + random(3000) as usize];
        commands.push(request(match random(14) {
            0..3 => {
                let node = if random(2) == 0 { NewNode::Dir } else { NewNode::File };
                Op::Create { parent, name: text, node, mode: 0o755, exclusive: false, access: 0 }
            }
            3 => Op::Link { ino, parent, name: text },
            4 => Op::Unlink { parent, name: text, keep: random(2) == 0 },
            5 => Op::Rmdir { parent, name: text },
            6 => {
                Op::Rename { from: parent, from_name: text, to, to_name: other, mode: RenameMode::Replace, keep: false }
            }
            7 => Op::SetXattr { ino, name: b"user.x".to_vec(), value: bytes, mode: XattrMode::Any },
            12 => {
                let which: &[u8] = [&b"system.posix_acl_access"[..], b"system.posix_acl_default"][random(2) as usize];
                Op::SetXattr { ino: parent, name: which.to_vec(), value: super::acls::sample(), mode: XattrMode::Any }
            }
            13 => {
                let (node, umask) = (NewNode::File, 0o027);
                Op::CreateUnmasked { parent, name: text, node, mode: 0o666, umask, exclusive: true, access: 0 }
            }
            8 => Op::SetAttr { ino, set: SetAttr { size: Some(random(5000)), ..SetAttr::default() } },
            _ => {
                let chunk = stored(ChunkId::of(&bytes), bytes.len() as u32, 2 + random(2) as u32);
                let (at, len) = (random(4000), bytes.len() as u64);
                let edit = Edit { at, len, data: Source::Chunk { id: chunk.id, offset: 0 } };
                Op::Commit(Commit { edits: vec![edit], chunks: vec![chunk], grow: at + len, ..empty(ino) })
            }
        }));
    }
    commands.push(Command::ExpireSession { session: S1, at: Time::default() });
    commands
}

/// Applies all commands, `each` to a batch.
fn run(kv: &dyn Kv, commands: &[Command], each: usize) -> Vec<Reply> {
    let mut replies = Vec::new();
    for some in commands.chunks(each) {
        let mut txn = Txn::new(kv);
        for command in some {
            let index = LogIndex(replies.len() as u64 + 1);
            replies.push(apply(&mut txn, index, command).unwrap());
        }
        let batch = txn.into_batch();
        kv.write(batch).unwrap();
    }
    replies
}

fn everything(kv: &dyn Kv) -> Vec<Vec<Entry>> {
    let all =
        |family| kv.scan(Family(family), (Bound::Unbounded, Bound::Unbounded), false).map(Result::unwrap).collect();
    (0..keys::FAMILIES.len() as u8).map(all).collect()
}

#[test]
fn both_stores_and_any_batching_give_the_same_bytes() {
    for seed in 1..4 {
        let commands = script(seed, 600);
        let dir = tempfile::tempdir().unwrap();
        let memory = MemoryKv::open(Arc::new(RealDisk), dir.path().join("m"), &keys::FAMILIES).unwrap();
        let rocks = RocksKv::open(&dir.path().join("r"), &keys::FAMILIES, &small()).unwrap();
        let batched = RocksKv::open(&dir.path().join("b"), &keys::FAMILIES, &small()).unwrap();
        let replies = run(&memory, &commands, 1);
        let done = replies.iter().filter(|reply| reply.is_ok()).count();
        assert!(done > 150 && done < replies.len(), "a mix: {done} of {} succeed", replies.len());
        assert_eq!(run(&rocks, &commands, 1), replies);
        assert_eq!(run(&batched, &commands, 37), replies);
        let expected = everything(&memory);
        assert_eq!(everything(&rocks), expected);
        assert_eq!(everything(&batched), expected);
        let wrong = check(&memory).unwrap();
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    }
}
