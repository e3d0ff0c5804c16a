//! Tests of the namespace as a whole: commands in, outcomes and rows out.
#![allow(clippy::as_conversions, reason = "small test numbers")]

mod acls;
mod batches;
mod clones;
mod cluster;
mod commits;
mod damage;
mod defects;
mod files;
mod keep;
mod locks;
mod moves;
mod posix;
mod restore;
mod sessions;
mod speed;
mod trash;
mod tree;
mod twins;
mod values;

use super::{Command, Done, Fail, QueryCtx, Reply, apply, check, config, few_extents, query};
use crate::store::trash::TrashState;
use crate::store::values::Value as _;
use crate::store::{Txn, keys};
use common::auth::{Attempt, Mac, Receipt, Secret};
use common::disk::RealDisk;
use common::fault::{Fault, Kind};
use common::id::{
    ChunkId, ClusterId, DataVersion, Epoch, InodeId, LayoutVersion, LogIndex, NodeId, ServerId, SessionId,
};
use common::kv::Kv;
use common::kv::memory::MemoryKv;
use common::name::Name;
use common::proto::meta::{
    Answer, Ask, Attr, Commit, Cred, DirEntry, Edit, Extent, NewNode, Op, Outcome, Query, Request, Source, StoredChunk,
};
use common::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

const S1: SessionId = SessionId(1);
const S2: SessionId = SessionId(2);
const ROOT: InodeId = InodeId::ROOT;

/// A state machine with a formatted cluster (3 replicas, 2 at least), two sessions, and a clock that ticks a second
/// with each command.
struct World {
    kv: Box<dyn Kv>,
    index: u64,
    seqs: BTreeMap<SessionId, u64>,
    /// Chunks that were stored, to read files back.
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    _dir: Option<TempDir>,
}

fn format() -> Command {
    Command::Format {
        cluster: ClusterId(7),
        secret: Secret([7; 32]),
        pg_count: 16,
        replicas: 3,
        min_replicas: 2,
        metaservers: vec![(NodeId(1), "127.0.0.1:1".into())],
        at: Time { secs: 1000, nanos: 1 },
    }
}

fn cred(uid: u32) -> Cred {
    Cred { uid, gid: uid, groups: Vec::new() }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let kv = MemoryKv::open(Arc::new(RealDisk), dir.path(), &keys::FAMILIES).unwrap();
        World::over(Box::new(kv), Some(dir))
    }

    fn over(kv: Box<dyn Kv>, dir: Option<TempDir>) -> World {
        let mut world = World { kv, index: 0, seqs: BTreeMap::new(), chunks: BTreeMap::new(), _dir: dir };
        assert_eq!(world.command(&format()), Ok(Done::Formatted));
        world.set_window(0);
        for session in [S1, S2] {
            let op = Op::OpenSession { label: "test".into(), slots: 4 };
            let request = Request { session, slot: 0, seq: 0, cred: cred(0), op };
            world.request(request).unwrap();
        }
        world
    }

    /// Sets the undelete window, without a command.
    fn set_window(&mut self, window_s: u64) {
        let mut txn = Txn::new(&*self.kv);
        txn.put(keys::CLUSTER, keys::TRASH_STATE, TrashState { window_s, ..TrashState::default() }.encode());
        let batch = txn.into_batch();
        self.kv.write(batch).unwrap();
    }

    fn now(&self) -> Time {
        Time { secs: 1000 + i64::try_from(self.index).unwrap(), nanos: 5 }
    }

    fn command(&mut self, command: &Command) -> Reply {
        self.index += 1;
        let mut txn = Txn::new(&*self.kv);
        let reply = apply(&mut txn, LogIndex(self.index), command).unwrap();
        let batch = txn.into_batch();
        self.kv.write(batch).unwrap();
        reply
    }

    fn request(&mut self, request: Request) -> Result<Outcome, Fault> {
        let at = self.now();
        match self.command(&Command::Client { request, at })? {
            Done::Applied(applied) => Ok(applied.outcome),
            other => panic!("a client got {other:?}"),
        }
    }

    /// An operation of a session, on slot 1, as it comes.
    fn of(&mut self, session: SessionId, cred: Cred, op: Op) -> Result<Outcome, Fault> {
        let seq = self.seqs.get(&session).copied().unwrap_or(0) + 1;
        let reply = self.request(Request { session, slot: 1, seq, cred, op });
        if reply.as_ref().err().is_none_or(|fault| fault.kind.is_kept()) {
            self.seqs.insert(session, seq);
        }
        reply
    }

    fn op(&mut self, uid: u32, op: Op) -> Result<Outcome, Fault> {
        self.of(S1, cred(uid), op)
    }

    fn kind(&mut self, uid: u32, op: Op) -> Kind {
        self.op(uid, op).expect_err("it was to fail").kind
    }

    fn make(&mut self, uid: u32, parent: InodeId, text: &str, node: NewNode, mode: u32) -> Result<Attr, Fault> {
        let op = Op::Create { parent, name: name(text), node, mode, exclusive: true, access: 0 };
        match self.op(uid, op)? {
            Outcome::Created { attr, .. } => Ok(attr),
            other => panic!("create gave {other:?}"),
        }
    }

    fn file(&mut self, uid: u32, parent: InodeId, text: &str, mode: u32) -> InodeId {
        self.make(uid, parent, text, NewNode::File, mode).unwrap().ino
    }

    fn dir(&mut self, uid: u32, parent: InodeId, text: &str, mode: u32) -> InodeId {
        self.make(uid, parent, text, NewNode::Dir, mode).unwrap().ino
    }

    fn ask(&self, uid: u32, ask: Query) -> Result<Answer, Fault> {
        let ask = Ask { session: S1, cred: cred(uid), query: ask, lease: false };
        let ctx = QueryCtx::new(&config(&*self.kv).unwrap().unwrap());
        match query(&*self.kv, LogIndex(self.index), &ask, &ctx) {
            Ok(answered) => Ok(answered.answer),
            Err(Fail::Fault(fault)) => Err(fault),
            Err(Fail::Kv(error)) => panic!("{error}"),
        }
    }

    /// As they come with a lease.
    fn few_extents(&self, ino: InodeId) -> Option<Vec<Extent>> {
        let ctx = QueryCtx::new(&config(&*self.kv).unwrap().unwrap());
        let degraded = super::counters(&*self.kv).unwrap().degraded > 0;
        few_extents(&*self.kv, &ctx, S1, degraded, ino).unwrap().map(|run| run.extents)
    }

    fn attr(&self, ino: InodeId) -> Attr {
        match self.ask(0, Query::GetAttr { ino }).unwrap() {
            Answer::Attr(attr) => attr,
            other => panic!("{other:?}"),
        }
    }

    fn list(&self, ino: InodeId, after: u64, limit: u32) -> (Vec<DirEntry>, bool) {
        match self.ask(0, Query::ReadDir { ino, after, limit, attrs: true }).unwrap() {
            Answer::Listing { entries, end, .. } => (entries, end),
            other => panic!("{other:?}"),
        }
    }

    fn extents(&self, ino: InodeId) -> Vec<Extent> {
        let (mut all, mut from) = (Vec::new(), 0);
        while from < u64::MAX {
            match self.ask(0, Query::Extents { ino, from, to: u64::MAX }).unwrap() {
                Answer::Extents { run, .. } => {
                    assert!(run.covered > from, "no progress");
                    all.extend(run.extents);
                    from = run.covered;
                }
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// The whole file, through its extents.
    fn read(&self, ino: InodeId) -> Vec<u8> {
        let mut out = vec![0; self.attr(ino).size as usize];
        for extent in self.extents(ino) {
            let (bytes, offset) = match &extent.data {
                Source::Chunk { id, offset } => {
                    let bytes = &self.chunks[id];
                    assert_eq!(bytes.len() as u32, extent.chunk_len);
                    assert_eq!(extent.token, Secret([7; 32]).read_token(*id, S1, Epoch(1)));
                    (bytes.as_slice(), *offset as usize)
                }
                Source::Inline { id, offset, bytes } => {
                    assert_eq!(ChunkId::of(bytes), *id);
                    (bytes.as_ref(), *offset as usize)
                }
                Source::Hole => panic!("a hole in an answer"),
            };
            let (at, len) = (extent.at as usize, extent.len as usize);
            out[at..at + len].copy_from_slice(&bytes[offset..offset + len]);
        }
        out
    }

    /// A chunk as if three servers had it.
    fn store(&mut self, bytes: &[u8]) -> StoredChunk {
        let id = ChunkId::of(bytes);
        self.chunks.insert(id, bytes.to_vec());
        stored(id, bytes.len() as u32, 3)
    }

    fn commit(&mut self, commit: Commit) -> Result<(Attr, u64), Fault> {
        match self.op(0, Op::Commit(commit))? {
            Outcome::Committed { attr, offset } => Ok((attr, offset)),
            other => panic!("commit gave {other:?}"),
        }
    }

    /// Writes bytes as one chunk.
    fn write(&mut self, ino: InodeId, at: u64, bytes: &[u8]) -> Result<(Attr, u64), Fault> {
        let chunk = self.store(bytes);
        let data = Source::Chunk { id: chunk.id, offset: 0 };
        let edit = Edit { at, len: bytes.len() as u64, data };
        self.commit(Commit { chunks: vec![chunk], edits: vec![edit], grow: at + bytes.len() as u64, ..empty(ino) })
    }

    fn check(&self) {
        let wrong = check(&*self.kv).unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

fn stored(id: ChunkId, len: u32, copies: u32) -> StoredChunk {
    let receipts = (1..=copies).map(|n| Receipt { server: ServerId(n), mac: Mac([0; 16]) }).collect();
    StoredChunk { id, len, receipts }
}

/// A commit that changes nothing yet.
fn empty(ino: InodeId) -> Commit {
    Commit {
        ino,
        base: None,
        edits: Vec::new(),
        append: false,
        grow: 0,
        chunks: Vec::new(),
        attempt: Attempt { session: S1, witness: LogIndex(1), epoch: Epoch(1) },
        layout: LayoutVersion(0),
        mtime: None,
    }
}
