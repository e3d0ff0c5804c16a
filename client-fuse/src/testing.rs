//! A cluster in memory, with faults to order: exactly-once slots as the state machine keeps them, receipts that are
//! checked, witnesses and horizons, chunkservers that are down, broken, full or hold wrong bytes.

#![allow(clippy::unwrap_used, reason = "test code")]

use crate::extents::Extents;
use crate::link::{Hop, Servers};
use bytes::Bytes;
use common::auth::{Mac, Receipt, Secret};
use common::fault::{Fault, Kind};
use common::hash::{hash_chunk, proof};
use common::id::{ChunkId, ClusterId, DataVersion, Epoch, InodeId, LayoutVersion, LogIndex, ServerId, SessionId};
use common::layout::{Candidate, ClusterMap, Domain, Layout, ServerInfo};
use common::proto::batch::{Batch, BatchDone, Deferred, Digest};
use common::proto::chunk::{ChunkRef, WriteAuth};
use common::proto::lease::{Claim, Claimed, Grants, LeaseAsk, Leased, LeasedListing, RecallCall, Recalls, WRITE};
use common::proto::meta::{
    Alive, Answer, Answered, Applied, Ask, Attr, Commit, Extent, ExtentRun, FileKind, Op, Outcome, Query, Request,
    Source, Submitted,
};
use common::proto::opens::{OpenAsk, OpenReport};
use common::time::Time;
use common::units::{ENTRY_SIZE, HASH_GROUP_LEN, len_u32, len_u64, len_usize};
use common::wire::{Got, Target};
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Where everything is behind its extents.
const END: u64 = u64::MAX;

/// One fault in this many requests, if faults are on.
const FAULT_SHARE: u32 = 4;

/// Last sequence number and reply of each slot.
/// What files are, and hold.
pub(crate) type Files = BTreeMap<InodeId, (Attr, Extents)>;
type Slots = BTreeMap<u16, (u64, Result<Applied, Fault>)>;

pub(crate) struct FakeCluster(Mutex<Cluster>);

pub(crate) struct Cluster {
    pub(crate) chunk_size: u32,
    secret: Secret,
    epoch: Epoch,
    index: u64,
    /// Commits with an older witness are told to touch again.
    horizon: u64,
    sessions: BTreeMap<SessionId, Slots>,
    files: Files,
    names: BTreeMap<Vec<u8>, InodeId>,
    chunk_lens: BTreeMap<ChunkId, u32>,
    pub(crate) orphans: BTreeSet<InodeId>,
    pub(crate) servers: BTreeMap<ServerId, FakeServer>,
    pub(crate) random: StdRng,
    /// Requests and replies get lost, leaders are busy, receipts are refused.
    pub(crate) faults: bool,
    /// No metaserver answers.
    pub(crate) no_majority: bool,
    pub(crate) commits: u64,
    /// Every change but a settling one is refused with this by the state machine.
    pub(crate) refuse: Option<Kind>,
    /// The next change of attributes stays on its way ...
    pub(crate) hold: bool,
    /// ... and is here.
    pub(crate) held: Option<Request>,
    /// So many settling operations are lost.
    pub(crate) lose_settling: u32,
    /// How long a removal takes.
    pub(crate) slow_unlink: Duration,
    /// The root, if it is leased to whoever asks, and written to whoever claims.
    pub(crate) leased: Option<Attr>,
}

#[derive(Default)]
pub(crate) struct FakeServer {
    pub(crate) chunks: BTreeMap<ChunkId, Bytes>,
    pub(crate) down: bool,
    pub(crate) full: bool,
    /// Its connections break when bytes come.
    pub(crate) breaks: bool,
    pub(crate) puts: u64,
}

impl FakeCluster {
    pub(crate) fn new(seed: u64, chunk_size: u32) -> FakeCluster {
        FakeCluster(Mutex::new(Cluster {
            chunk_size,
            secret: Secret([3; 32]),
            epoch: Epoch(1),
            index: 10,
            horizon: 0,
            sessions: BTreeMap::new(),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            chunk_lens: BTreeMap::new(),
            orphans: BTreeSet::new(),
            servers: (1..=4).map(|i| (ServerId(i), FakeServer::default())).collect(),
            random: StdRng::seed_from_u64(seed),
            faults: false,
            no_majority: false,
            commits: 0,
            refuse: None,
            hold: false,
            held: None,
            lose_settling: 0,
            slow_unlink: Duration::ZERO,
            leased: None,
        }))
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Cluster> {
        self.0.lock().unwrap()
    }
}

fn fault(kind: Kind, text: &str) -> Fault {
    Fault::new(kind, text)
}

impl Cluster {
    fn chance(&mut self, one_in: u32) -> bool {
        self.faults && self.random.random_ratio(1, one_in)
    }

    /// Every session has ended.
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// What files hold.
    pub(crate) fn backup(&self) -> Files {
        self.files.clone()
    }

    /// A new life begins from what files held then.
    pub(crate) fn restore(&mut self, backup: Files) {
        self.files = backup;
        self.epoch = Epoch(self.epoch.0 + 1);
        self.sessions.clear();
    }

    /// Everything put or touched before now has to be touched again.
    pub(crate) fn condemn(&mut self) {
        self.horizon = self.index;
    }

    /// No chunk has a reference: all are deleted.
    pub(crate) fn collect(&mut self) {
        self.index += 1;
        self.condemn();
        self.servers.values_mut().for_each(|server| server.chunks.clear());
    }

    /// Leases the root to one client.
    pub(crate) fn lease_root(&mut self) {
        let (attr, _) = new_file(InodeId::ROOT, self.chunk_size);
        self.leased = Some(Attr { kind: FileKind::Dir, mode: 0o755, nlink: 2, ..attr });
    }

    /// Changes up to the first that is refused.
    fn batch(&mut self, batch: &Batch) -> BatchDone {
        let (mut done, mut digest) = (0, Digest::default());
        for change in &batch.changes {
            match self.deferred(change) {
                Ok(outcome) => digest.add(&outcome),
                Err(fault) => return BatchDone { done, fault: Some(fault), digest: digest.value() },
            }
            done += 1;
        }
        BatchDone { done, fault: None, digest: digest.value() }
    }

    fn deferred(&mut self, change: &Deferred) -> Result<Outcome, Fault> {
        let at = change.at;
        match &change.op {
            Op::Create { name, mode, .. } | Op::CreateUnmasked { name, mode, .. } => {
                let ino = change.makes().unwrap();
                let root = self.leased.as_mut().unwrap();
                (root.size, root.mtime, root.ctime) = (root.size + ENTRY_SIZE, at, at);
                let (attr, mut extents) = new_file(ino, self.chunk_size);
                let version = DataVersion(0);
                let attr = Attr { mode: *mode, atime: at, mtime: at, ctime: at, version, ..attr };
                extents.learn(version, 0, &ExtentRun { extents: Vec::new(), covered: END });
                self.names.insert(name.as_bytes().to_vec(), ino);
                self.files.insert(ino, (attr.clone(), extents));
                Ok(Outcome::Created { attr, new: true, parent: self.leased.clone().unwrap() })
            }
            Op::Commit(commit) => {
                let Outcome::Committed { offset, .. } = self.commit(commit)? else { unreachable!("it is one") };
                let attr = &mut self.files.get_mut(&commit.ino).unwrap().0;
                attr.ctime = at;
                attr.allocated += commit.edits.iter().map(|edit| edit.len).sum::<u64>();
                Ok(Outcome::Committed { attr: attr.clone(), offset })
            }
            other => panic!("not in this fake: {other:?}"),
        }
    }

    /// How many extents a file has.
    pub(crate) fn extents(&self, ino: InodeId) -> usize {
        self.files[&ino].1.find(0..END).unwrap().into_iter().filter(|(_, extent)| extent.is_some()).count()
    }

    fn map(&self) -> ClusterMap {
        let candidates: Vec<Candidate> =
            self.servers.keys().map(|s| Candidate { server: *s, domain: Domain::default(), weight: 1 }).collect();
        let info = |s: &ServerId| ServerInfo {
            addr: format!("fake:{}", s.0),
            domain: Domain::default(),
            weight: 1,
            up: true,
            writable: true,
        };
        ClusterMap {
            cluster: ClusterId(1),
            epoch: self.epoch,
            version: 1,
            replicas: 3,
            min_replicas: 2,
            metaservers: BTreeMap::new(),
            servers: self.servers.keys().map(|s| (*s, info(s))).collect(),
            layout: Layout::compute(LayoutVersion(1), 16, 3, &candidates),
        }
    }

    fn submit(&mut self, request: &Request) -> Result<Applied, Fault> {
        if self.no_majority {
            return Err(fault(Kind::Unsure, "no majority"));
        }
        if self.hold && matches!(request.op, Op::SetAttr { .. }) {
            (self.hold, self.held) = (false, Some(request.clone()));
            return Err(fault(Kind::Unsure, "the request is on its way"));
        }
        if self.lose_settling > 0 && matches!(request.op, Op::Release { ino: InodeId(0) }) {
            self.lose_settling -= 1;
            return Err(fault(Kind::Unsure, "the request was lost"));
        }
        if self.chance(FAULT_SHARE) {
            return Err(fault(Kind::Unsure, "the request was lost"));
        }
        let reply = self.run(request);
        if self.chance(FAULT_SHARE) {
            return Err(fault(Kind::Unsure, "the reply was lost"));
        }
        reply
    }

    /// A late copy of a request arrives.
    pub(crate) fn run(&mut self, request: &Request) -> Result<Applied, Fault> {
        self.index += 1;
        if let Op::OpenSession { .. } | Op::OpenAttending { .. } = &request.op {
            self.sessions.entry(request.session).or_default();
            let write_token = self.secret.write_token(request.session, self.epoch);
            let outcome = Outcome::Session { epoch: self.epoch, write_token, timeout_ms: 60_000 };
            return Ok(Applied { outcome, index: LogIndex(self.index) });
        }
        let slots = self.sessions.get(&request.session).ok_or_else(|| fault(Kind::NoSession, "unknown session"))?;
        let last = slots.get(&request.slot).map_or(0, |(seq, _)| *seq);
        if request.seq == last {
            return slots[&request.slot].1.clone();
        }
        if request.seq < last {
            return Err(fault(Kind::Stale, "a late copy"));
        }
        assert_eq!(request.seq, last + 1, "slot {}: {:?}", request.slot, request.op);
        let reply = self.apply(request).map(|outcome| Applied { outcome, index: LogIndex(self.index) });
        if reply.as_ref().err().is_none_or(|f| f.kind.is_kept()) {
            let slots = self.sessions.get_mut(&request.session).unwrap();
            slots.insert(request.slot, (request.seq, reply.clone()));
        }
        reply
    }

    fn apply(&mut self, request: &Request) -> Result<Outcome, Fault> {
        if let Some(kind) = self.refuse.filter(|_| !matches!(request.op, Op::Release { .. })) {
            return Err(fault(kind, "refused"));
        }
        match &request.op {
            Op::Create { name, exclusive, .. } => {
                let there = self.names.get(name.as_bytes()).copied();
                if there.is_some() && *exclusive {
                    return Err(fault(Kind::Exists, "exists"));
                }
                let ino = there.unwrap_or(InodeId(100 + self.index));
                let attr = self.files.entry(ino).or_insert_with(|| new_file(ino, self.chunk_size)).0.clone();
                self.names.insert(name.as_bytes().to_vec(), ino);
                Ok(Outcome::Created { parent: attr.clone(), attr, new: there.is_none() })
            }
            Op::Unlink { name, keep, .. } => {
                let ino = self.names.remove(name.as_bytes()).ok_or_else(|| fault(Kind::NotFound, "no such file"))?;
                if *keep {
                    self.orphans.insert(ino);
                } else {
                    self.files.remove(&ino);
                }
                Ok(Outcome::Removed { ino, nlink: 0 })
            }
            Op::SetAttr { ino, set } => {
                let (attr, extents) = self.files.get_mut(ino).ok_or_else(|| fault(Kind::NotFound, "gone"))?;
                if let Some(size) = set.size {
                    attr.version = DataVersion(attr.version.0 + 1);
                    let hole = ExtentRun { extents: Vec::new(), covered: END };
                    carry(extents, attr.version);
                    extents.learn(attr.version, size, &hole);
                    attr.size = size;
                }
                Ok(Outcome::Attr(attr.clone()))
            }
            Op::Release { ino } => {
                if self.orphans.remove(ino) {
                    self.files.remove(ino);
                }
                Ok(Outcome::Done)
            }
            Op::CloseSession => Ok(Outcome::Done),
            Op::Commit(commit) => self.commit(commit),
            Op::Reserve { .. } => Ok(Outcome::Reserved(InodeId(1000))),
            Op::Batch(batch) => Ok(Outcome::Batch(self.batch(batch))),
            other => panic!("not in this fake: {other:?}"),
        }
    }

    fn commit(&mut self, commit: &Commit) -> Result<Outcome, Fault> {
        assert!(commit.edits.len() <= 1024);
        assert!(commit.attempt.witness.0 <= self.index);
        if commit.attempt.witness.0 < self.horizon && !commit.chunks.is_empty() {
            return Err(fault(Kind::TouchAgain, "old witness"));
        }
        if self.chance(FAULT_SHARE) && !commit.chunks.is_empty() {
            return Err(fault(Kind::PutAgain, "put again"));
        }
        for stored in &commit.chunks {
            let servers: BTreeSet<ServerId> = stored.receipts.iter().map(|r| r.server).collect();
            assert!(servers.len() >= 2 && servers.len() == stored.receipts.len(), "too few receipts");
            for receipt in &stored.receipts {
                assert!(self.secret.receipt_is_valid(receipt, stored.id, stored.len, commit.attempt), "bad receipt");
                assert!(self.servers[&receipt.server].chunks.contains_key(&stored.id), "a receipt without a chunk");
            }
            self.chunk_lens.insert(stored.id, stored.len);
        }
        let (attr, extents) = self.files.get_mut(&commit.ino).ok_or_else(|| fault(Kind::NotFound, "gone"))?;
        if commit.base.is_some_and(|base| base != attr.version) {
            return Err(fault(Kind::Stale, "changed meanwhile"));
        }
        let base = if commit.append { attr.size } else { 0 };
        attr.version = DataVersion(attr.version.0 + 1);
        carry(extents, attr.version);
        for edit in &commit.edits {
            let (at, end) = (base + edit.at, base + edit.at + edit.len);
            let chunk_len = match &edit.data {
                Source::Chunk { id, offset } => {
                    let len = commit.chunks.iter().find(|c| c.id == *id).expect("named").len;
                    assert!(u64::from(*offset) + edit.len <= u64::from(len));
                    len
                }
                Source::Inline { id, bytes, offset } => {
                    assert!(bytes.len() <= 4096 && len_u64(bytes.len()) == edit.len && *offset == 0);
                    assert_eq!(ChunkId::of(bytes), *id);
                    0
                }
                Source::Hole => 0,
            };
            let extent = Extent {
                at,
                len: edit.len,
                data: edit.data.clone(),
                chunk_len,
                token: Mac::default(),
                holders: vec![],
            };
            let list = if edit.data == Source::Hole { Vec::new() } else { vec![extent] };
            extents.learn(attr.version, at, &ExtentRun { extents: list, covered: end });
        }
        attr.size = attr.size.max(base + commit.grow);
        if commit.base.is_none() {
            attr.mtime = commit.mtime.unwrap_or_default();
        }
        self.commits += 1;
        Ok(Outcome::Committed { attr: attr.clone(), offset: base })
    }

    fn query(&mut self, ask: &Ask) -> Result<Answer, Fault> {
        if self.no_majority {
            return Err(fault(Kind::Unavailable, "no majority"));
        }
        if !self.sessions.contains_key(&ask.session) {
            return Err(fault(Kind::NoSession, "unknown session"));
        }
        let secret = (self.secret, self.epoch);
        let session = ask.session;
        let find = |ino: &InodeId| self.files.get(ino).ok_or_else(|| fault(Kind::NotFound, "no such inode"));
        let run = |extents: &Extents, from: u64, to: u64| {
            let all = extents.find(from..to).unwrap().into_iter().filter_map(|(_, extent)| extent);
            let few: Vec<Extent> = all.take(7).map(|e| with_token(e, secret, session)).collect();
            let covered = if few.len() == 7 { few.last().map_or(to, |e| e.at + e.len) } else { to };
            ExtentRun { extents: few, covered }
        };
        match &ask.query {
            Query::GetAttr { ino } => Ok(Answer::Attr(find(ino)?.0.clone())),
            Query::Open { ino, .. } => {
                let (attr, extents) = find(ino)?;
                Ok(Answer::Opened { attr: attr.clone(), run: run(extents, 0, END), ahead: Vec::new() })
            }
            Query::Extents { ino, from, to } => {
                let (attr, extents) = find(ino)?;
                Ok(Answer::Extents { attr: attr.clone(), run: run(extents, *from, *to) })
            }
            Query::Lookup { name, .. } => {
                let ino = self.names.get(name.as_bytes()).ok_or_else(|| fault(Kind::NotFound, "no such name"))?;
                Ok(Answer::Attr(find(ino)?.0.clone()))
            }
            other => panic!("not in this fake: {other:?}"),
        }
    }

    fn put(&mut self, server: ServerId, auth: WriteAuth, chunk: ChunkRef, bytes: &[u8]) -> Result<Receipt, Fault> {
        assert_eq!(ChunkId::of(bytes), chunk.id);
        assert_eq!(auth.token, self.secret.write_token(auth.attempt.session, self.epoch));
        let lost = self.chance(FAULT_SHARE * 2);
        let there = self.servers.get_mut(&server).unwrap();
        if there.down || there.breaks || lost {
            return Err(fault(Kind::Unavailable, "not reached"));
        }
        if there.full {
            return Err(fault(Kind::NoSpace, "full"));
        }
        there.puts += 1;
        there.chunks.insert(chunk.id, Bytes::copy_from_slice(bytes));
        Ok(self.secret.receipt(chunk.id, chunk.len, server, auth.attempt))
    }
}

/// The same extents at the next version.
fn carry(extents: &mut Extents, version: DataVersion) {
    let all: Vec<Extent> = extents.find(0..END).map_or(Vec::new(), |p| p.into_iter().filter_map(|(_, e)| e).collect());
    extents.learn(version, 0, &ExtentRun { extents: all, covered: END });
}

fn with_token(mut extent: Extent, (secret, epoch): (Secret, Epoch), session: SessionId) -> Extent {
    if let Source::Chunk { id, .. } = &extent.data {
        extent.token = secret.read_token(*id, session, epoch);
    }
    extent
}

fn new_file(ino: InodeId, chunk_size: u32) -> (Attr, Extents) {
    let mut extents = Extents::keeping(DataVersion::default(), usize::MAX);
    carry(&mut extents, DataVersion(1));
    let attr = Attr {
        ino,
        kind: FileKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        allocated: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        rdev: 0,
        chunk_size,
        replicas: 3,
        version: DataVersion(1),
    };
    (attr, extents)
}

impl Servers for FakeCluster {
    fn lease<'a>(&'a self, _: &'a LeaseAsk, _: Instant) -> BoxFuture<'a, Result<Leased, Fault>> {
        Box::pin(async {
            let leased = |attr| LeasedListing {
                attr,
                parent: InodeId::ROOT,
                entries: Vec::new(),
                leases: vec![2 * WRITE],
                contents: Vec::new(),
            };
            Ok(Leased { term: 1, listing: self.lock().leased.clone().map(leased) })
        })
    }

    fn opens<'a>(&'a self, _: &'a OpenReport, _: Instant) -> BoxFuture<'a, Result<OpenAsk, Fault>> {
        Box::pin(std::future::pending()) // nothing is ever asked
    }

    fn recalls(&self, call: RecallCall, _: Instant) -> BoxFuture<'_, Result<Recalls, Fault>> {
        Box::pin(async move {
            if call.term != 0 {
                tokio::time::sleep(Duration::from_millis(300)).await; // there is never anything to forget
            }
            Ok(Recalls { term: 1, last: 0, inodes: Vec::new(), renewed: true })
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim, _: Instant) -> BoxFuture<'a, Result<Claimed, Fault>> {
        Box::pin(async {
            let write = |(_, lease): &(InodeId, u64)| lease | WRITE;
            let leases = claim.leases.iter().filter(|_| self.lock().leased.is_some()).map(write).collect();
            Ok(Claimed { term: claim.term, leases, announced: true, index: LogIndex(0) })
        })
    }

    fn submit<'a>(&'a self, request: &'a Request, _: Instant) -> BoxFuture<'a, Result<Submitted, Fault>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if let Op::Unlink { .. } = request.op {
                let slow = self.lock().slow_unlink;
                tokio::time::sleep(slow).await;
            }
            self.lock().submit(request).map(Submitted::from)
        })
    }

    fn query<'a>(&'a self, ask: &'a Ask, _: Instant) -> BoxFuture<'a, Result<Answered, Fault>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut cluster = self.lock();
            let answer = cluster.query(ask)?;
            Ok(Answered { answer, index: LogIndex(cluster.index), grants: Grants::default() })
        })
    }

    fn keep_alive(&self, session: SessionId, _: Instant) -> BoxFuture<'_, Result<Alive, Fault>> {
        Box::pin(async move {
            let cluster = self.lock();
            if !cluster.sessions.contains_key(&session) {
                return Err(fault(Kind::NoSession, "unknown session"));
            }
            Ok(Alive { index: LogIndex(cluster.index), map_version: 1, epoch: cluster.epoch })
        })
    }

    fn cluster_map(&self, _: Instant) -> BoxFuture<'_, Result<ClusterMap, Fault>> {
        Box::pin(async move { Ok(self.lock().map()) })
    }

    fn put_chain<'a>(
        &'a self,
        chain: &'a [Target],
        auth: WriteAuth,
        chunk: ChunkRef,
        bytes: &'a [Bytes],
        _: Instant,
    ) -> BoxFuture<'a, Result<Vec<Hop>, Fault>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let bytes = bytes.concat();
            let mut hops = Vec::new();
            for (i, to) in chain.iter().enumerate() {
                let result = self.lock().put(to.server, auth, chunk, &bytes);
                let broken = result.as_ref().is_err_and(|f| f.kind == Kind::Unavailable);
                if broken && i == 0 {
                    return Err(result.unwrap_err());
                }
                hops.push((to.server, result));
                if broken {
                    // Those behind it never heard of the chunk; a real chain names the break for each of them.
                    let lost = || Err(fault(Kind::Unavailable, "behind a break"));
                    hops.extend(chain[i + 1..].iter().map(|to| (to.server, lost())));
                    break;
                }
            }
            Ok(hops)
        })
    }

    fn put_small<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [(ChunkRef, Bytes)],
        _: Instant,
    ) -> BoxFuture<'a, Result<Vec<Result<Receipt, Fault>>, Fault>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut cluster = self.lock();
            Ok(chunks.iter().map(|(chunk, bytes)| cluster.put(to.server, auth, *chunk, bytes)).collect())
        })
    }

    fn touch<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [ChunkRef],
        _: Instant,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>, Fault>> {
        Box::pin(async move {
            let cluster = self.lock();
            let server = &cluster.servers[&to.server];
            if server.down {
                return Err(fault(Kind::Unavailable, "not reached"));
            }
            let vouch = |c: &ChunkRef| {
                let sound = server.chunks.get(&c.id).is_some_and(|bytes| ChunkId::of(bytes) == c.id);
                sound.then(|| cluster.secret.receipt(c.id, c.len, to.server, auth.attempt))
            };
            Ok(chunks.iter().map(vouch).collect())
        })
    }

    fn get<'a>(
        &'a self,
        from: &'a Target,
        (session, token): (SessionId, Mac),
        chunk: ChunkId,
        (offset, len): (u32, u32),
        _: Instant,
    ) -> BoxFuture<'a, Result<Got, Fault>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let cluster = self.lock();
            let server = &cluster.servers[&from.server];
            if server.down {
                return Err(fault(Kind::Unavailable, "not reached"));
            }
            assert_eq!(token, cluster.secret.read_token(chunk, session, cluster.epoch), "no right to read");
            let bytes = server.chunks.get(&chunk).ok_or_else(|| fault(Kind::NotFound, "no such chunk"))?;
            let chunk_len = len_u32(bytes.len());
            let start = offset / HASH_GROUP_LEN * HASH_GROUP_LEN;
            let end = (offset + len).next_multiple_of(HASH_GROUP_LEN).min(chunk_len);
            let (_, leaves) = hash_chunk(bytes);
            let proof = proof(&leaves, start / HASH_GROUP_LEN..end.div_ceil(HASH_GROUP_LEN));
            let bytes = bytes.slice(len_usize(start.into())..len_usize(end.into()));
            Ok(Got { chunk_len, start, bytes, proof })
        })
    }
}
