//! A cluster without a network: chunk stores over simulated disks, and the state machine of the metaservers, called by
//! whoever decides what happens next. One thread, one seed.

use crate::sim::net::{SimClock, SimNet};
use chunkserver::store::{MissingDir, SetConfig, StoreSet, VerifiedChunk};
use common::auth::Secret;
use common::fault::Fault;
use common::id::{ChunkId, ClusterId, Epoch, InodeId, LayoutVersion, LogIndex, NodeId, PgId, ServerId, SessionId};
use common::kv::Kv;
use common::kv::memory::MemoryKv;
use common::layout::Layout;
use common::name::Name;
use common::proto::chunk::ChunkRef;
use common::proto::meta::{Cred, NewNode, Op, Outcome, Request, SLOTS_MAX};
use common::proto::trash::SettingsChange;
use common::task::Tasks;
use common::testing::SimDisk;
use common::time::Time;
use common::world::World;
use futures::FutureExt;
use metaserver::namespace::{self, Command, Done, Step};
use metaserver::store::{Txn, keys};
use rand::{RngExt, rngs::StdRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Placement groups: as few as there may be. The chunks of a run are all in one.
pub const PG_COUNT: u32 = 16;
/// Bytes of a chunk: whole blocks of it can be punched.
const CONTENT_LEN: usize = 9000;
/// Files taken apart by one command.
const PURGE: u32 = 16;

/// The state machine, and the log index it is at.
pub struct Meta {
    kv: MemoryKv,
    disk: SimDisk,
    index: u64,
    used: BTreeMap<SessionId, Used>,
}

/// What a session has used: sequence numbers of slot 0, and other slots.
#[derive(Default)]
struct Used {
    seq: u64,
    slots: u16,
}

impl Meta {
    /// A formatted cluster.
    pub fn new(seed: u64, replicas: u8, min_replicas: u8) -> Meta {
        let disk = SimDisk::new(seed);
        let mut meta = Meta { kv: open(&disk, "/meta"), disk, index: 0, used: BTreeMap::new() };
        let format = Command::Format {
            cluster: ClusterId(7),
            secret: Secret([7; 32]),
            pg_count: PG_COUNT,
            replicas,
            min_replicas,
            metaservers: vec![(NodeId(1), "m:1".into())],
            at: Time::default(),
        };
        meta.command(&format).expect("a cluster is formatted");
        meta
    }

    /// The applied index.
    pub fn index(&self) -> LogIndex {
        LogIndex(self.index)
    }

    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        namespace::config(&self.kv).expect("memory does not fail").expect("it is formatted").epoch
    }

    /// Applies a command.
    ///
    /// # Errors
    /// It is refused.
    pub fn command(&mut self, command: &Command) -> Result<Done, Fault> {
        self.index += 1;
        let mut txn = Txn::new(&self.kv);
        let reply = namespace::apply(&mut txn, self.index(), command).expect("memory does not fail");
        let batch = txn.into_batch();
        self.kv.write(batch).expect("memory does not fail");
        reply
    }

    /// A request of a session for later: each has a slot of its own, so that none stands in another's way.
    pub fn request(&mut self, session: SessionId, op: Op) -> Request {
        let used = self.used(session);
        used.slots += 1;
        assert!(used.slots < SLOTS_MAX, "a run is short");
        Request { session, slot: used.slots, seq: 1, cred: Cred::default(), op }
    }

    fn used(&mut self, session: SessionId) -> &mut Used {
        self.used.entry(session).or_default()
    }

    /// Applies a request, which may come late or again.
    ///
    /// # Errors
    /// It is refused.
    pub fn apply(&mut self, request: Request) -> Result<Outcome, Fault> {
        match self.command(&Command::Client { request, at: Time::default() })? {
            Done::Applied(applied) => Ok(applied.outcome),
            other => panic!("a client got {other:?}"),
        }
    }

    /// Applies an operation that must succeed now.
    ///
    /// # Panics
    /// It is refused.
    pub fn now(&mut self, session: SessionId, op: Op) -> Outcome {
        let used = self.used(session);
        used.seq += 1;
        let request = Request { session, slot: 0, seq: used.seq, cred: Cred::default(), op };
        self.apply(request).expect("nothing is in its way")
    }

    /// Opens a session.
    pub fn open_session(&mut self, session: SessionId) {
        let op = Op::OpenSession { label: "test".into(), slots: SLOTS_MAX };
        let request = Request { session, slot: 0, seq: 0, cred: Cred::default(), op };
        self.apply(request).expect("a session is opened");
    }

    /// Makes an empty file.
    pub fn create(&mut self, session: SessionId, name: &Name) -> InodeId {
        let (parent, name, node) = (InodeId::ROOT, name.clone(), NewNode::File);
        let op = Op::Create { parent, name, node, mode: 0o644, exclusive: false, access: 0 };
        match self.now(session, op) {
            Outcome::Created { attr, .. } => attr.ino,
            other => panic!("create gave {other:?}"),
        }
    }

    /// What is removed from now on stays in the trash.
    pub fn keep_what_is_removed(&mut self) {
        let change = SettingsChange { undelete_window_s: Some(3600), ..SettingsChange::default() };
        self.command(&Command::Change(change)).expect("a setting is set");
    }

    /// Everything in the trash goes for good, and what it held is taken apart.
    pub fn expire_trash(&mut self) {
        self.command(&Command::Expire { bytes: u64::MAX, at: Time::default() }).expect("the trash goes");
        self.purge();
    }

    /// Removes a file, and takes apart what it held, unless that is kept.
    pub fn remove(&mut self, session: SessionId, name: &Name) {
        let op = Op::Unlink { parent: InodeId::ROOT, name: name.clone(), keep: false };
        self.now(session, op);
        self.purge();
    }

    fn purge(&mut self) {
        while namespace::has_purge(&self.kv).expect("memory does not fail") {
            self.command(&Command::Purge { limit: PURGE }).expect("there is something to purge");
        }
    }

    /// Copies wanted of each of these chunks: 0 if nothing refers to it.
    pub fn targets(&self, chunks: &[ChunkId]) -> Vec<(ChunkId, u8)> {
        namespace::targets(&self.kv, chunks).expect("memory does not fail")
    }

    /// The layout gets the next version, with this order of servers for every group.
    pub fn set_layout(&mut self, order: &[ServerId]) -> Layout {
        let version = namespace::layout_version(&self.kv).expect("memory does not fail");
        let groups = vec![order.to_vec(); usize::try_from(PG_COUNT).expect("a few")];
        let layout = Layout { version: LayoutVersion(version.0 + 1), groups };
        self.command(&Command::SetLayout(layout.clone())).expect("it is the next one");
        layout
    }

    /// Groups that move are closed, and those that are closed arrive: whether or not their servers have everything, as
    /// deletion must not rest on that.
    pub fn moves_go_on(&mut self) {
        let moves = namespace::moves(&self.kv).expect("memory does not fail");
        let (finish, close) = moves.iter().partition::<Vec<_>, _>(|(_, moving)| moving.closed.is_some());
        let pgs = |of: Vec<(&PgId, &_)>| of.into_iter().map(|(pg, _)| *pg).collect();
        let (layout, at) = (self.layout().version, Time::default());
        let step = Step { layout, close: pgs(close), finish: pgs(finish), begin: Vec::new(), at };
        self.command(&Command::Step(step)).expect("the layout is the present one");
    }

    /// A copy of everything, to go back to.
    pub fn back_up(&self) -> Backup {
        let dir = PathBuf::from("/backup");
        self.kv.checkpoint(&dir).expect("memory does not fail");
        Backup { dir, index: self.index }
    }

    /// Goes back to a backup: an older state, an older index, and a new epoch. Deletion is held from now on.
    pub fn restore(&mut self, from: &Backup) {
        let epoch = Epoch(self.epoch().0 + 1);
        self.kv = open(&self.disk, from.dir.to_str().expect("a plain path"));
        self.index = from.index;
        let restored = Command::Restored { epoch, metaservers: vec![(NodeId(1), "m:1".into())], at: Time::default() };
        self.command(&restored).expect("the epoch rises");
    }

    /// fsck has found nothing wrong: deletion goes on.
    pub fn release(&mut self) {
        self.command(&Command::Release { epoch: self.epoch() }).expect("it was held");
    }

    /// The layout that is in force.
    pub fn layout(&self) -> Layout {
        let map = namespace::cluster_map(&self.kv).expect("memory does not fail");
        map.expect("it is formatted").layout
    }

    /// What is wrong with the rows.
    pub fn problems(&self) -> Vec<String> {
        let found = namespace::check(&self.kv).expect("memory does not fail");
        found.into_iter().map(|problem| format!("{problem:?}")).collect()
    }
}

/// See [`Meta::back_up`].
pub struct Backup {
    dir: PathBuf,
    index: u64,
}

fn open(disk: &SimDisk, dir: &str) -> MemoryKv {
    MemoryKv::open(Arc::new(disk.clone()), dir, &keys::FAMILIES).expect("memory does not fail")
}

/// The chunk store of one server.
pub struct Store {
    disk: SimDisk,
    set: StoreSet,
    tasks: Tasks,
    starts: u64,
}

impl Store {
    /// A new one.
    pub async fn new(seed: u64) -> Store {
        Store::open(SimDisk::new(seed), 0).await
    }

    async fn open(disk: SimDisk, starts: u64) -> Store {
        let (net, clock) = (Arc::new(SimNet), Arc::new(SimClock));
        let (world, tasks) = (World::simulated(net, Arc::new(disk.clone()), clock, starts), Tasks::new());
        let config = SetConfig {
            dirs: vec![Path::new("/d").to_path_buf()],
            reserve_bytes: 0,
            index_cache_bytes: 1 << 20,
            missing: MissingDir::Refuse,
            cluster: None,
        };
        let set = StoreSet::open(&world, &tasks, &config).await.expect("a power cut is survived");
        Store { disk, set, tasks, starts }
    }

    /// Its stores.
    pub fn set(&self) -> &StoreSet {
        &self.set
    }

    /// Loses power, and comes back with what was durable.
    pub async fn restart(&mut self) {
        self.disk.cut_power();
        let disk = self.disk.after_crash();
        let back = Store::open(disk, self.starts + 1).await;
        std::mem::replace(self, back).tasks.shutdown(std::time::Duration::ZERO).await;
    }

    /// Touches a chunk when the next sync begins, as another client or server would meanwhile. Whether it is vouched for
    /// then and there; nothing if no sync comes.
    pub fn touch_meanwhile(&self, chunk: ChunkRef) -> Arc<OnceLock<bool>> {
        let (set, told) = (self.set.clone(), Arc::new(OnceLock::new()));
        let answer = told.clone();
        self.disk.at_next_sync(move || {
            let here = set.touch(&[chunk]).now_or_never(); // nothing: it has to wait
            let _first = answer.set(here.is_some_and(|here| here.is_ok_and(|here| here == [true])));
        });
        told
    }

    /// What [`Store::touch_meanwhile`] was to do has had its time.
    pub fn nobody_meanwhile(&self) {
        self.disk.no_sync_came();
    }

    /// Loses power after so many more writes.
    pub fn cut_after(&self, writes: u64) {
        let _same = self.disk.clone().cut_after(self.disk.writes() + writes);
    }

    /// True if it has lost power, and must be restarted.
    pub fn is_dark(&self) -> bool {
        !self.disk.has_power()
    }

    /// Puts a chunk. True: acknowledged.
    pub async fn put(&self, bytes: &[u8]) -> bool {
        self.set.put(VerifiedChunk::of(bytes).expect("a chunk")).await.is_ok()
    }

    /// Touches a chunk. True: vouched for.
    pub async fn touch(&self, chunk: ChunkRef) -> bool {
        self.set.touch(&[chunk]).await.is_ok_and(|here| here == [true])
    }

    /// The chunk's bytes, verified as a reader does; `None`: it is not here, or not sound.
    pub async fn read(&self, chunk: ChunkRef) -> Option<Vec<u8>> {
        let part = self.set.read(chunk.id, 0, chunk.len).await.ok()?;
        part.check().ok()?;
        Some(part.bytes.to_vec())
    }
}

/// Two chunks of one bucket.
pub fn contents() -> &'static [Vec<u8>; 2] {
    static CONTENTS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let of = |n: u64| n.to_le_bytes().repeat(CONTENT_LEN / 8);
        let mut seen: BTreeMap<u16, u64> = BTreeMap::new();
        let twins = (0..).find_map(|n| Some((seen.insert(ChunkId::of(&of(n)).bucket(), n)?, n)));
        let (one, other) = twins.expect("there are more numbers than buckets");
        [of(one), of(other)]
    })
}

/// The id and length of a chunk.
pub fn name(chunk: usize) -> ChunkRef {
    let bytes = &contents()[chunk];
    ChunkRef { id: ChunkId::of(bytes), len: u32::try_from(bytes.len()).expect("short") }
}

/// Which of the chunks.
pub fn chunk_of(id: ChunkId) -> usize {
    usize::from(id != name(0).id)
}

/// The id of a server.
pub fn server_id(at: usize) -> ServerId {
    ServerId(u32::try_from(at).expect("few") + 1)
}

/// Which server.
pub fn place(id: ServerId) -> usize {
    usize::try_from(id.0 - 1).expect("few")
}

/// The servers in some order.
pub fn order(count: usize, rng: &mut StdRng) -> Vec<ServerId> {
    let mut order: Vec<ServerId> = (0..count).map(server_id).collect();
    for at in (1..count).rev() {
        order.swap(at, rng.random_range(0..=at));
    }
    order
}
