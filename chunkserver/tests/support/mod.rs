//! A metaserver that only knows how to register chunkservers, and servers on loopback around it.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by test programs, each of which uses some of it"
)]

use chunkserver::{Config, Server, start};
use common::auth::{Attempt, Secret};
use common::fault::{Fault, Kind};
use common::hello::{Hello, Me, Role};
use common::id::{ChunkId, ClusterId, Epoch, LayoutVersion, LogIndex, ServerId, SessionId};
use common::layout::{ClusterMap, Layout};
use common::net::{Listener, Net, TcpNet};
use common::proto::chunk::{ChunkRef, WriteAuth};
use common::proto::keep::{KeepAnswer, KeepAsk};
use common::proto::lease::{Claim, Claimed, LeaseAsk, Leased, RecallCall, Recalls};
use common::proto::meta::{
    Admin, AdminReply, Alive, Answered, Ask, Heartbeat, HeartbeatReply, Meta, Register, Registered, Request, Submitted,
};
use common::rpc::{Handler, serve};
use common::task::Tasks;
use common::units::len_u32;
use common::wire::{Pool, Target};
use common::world::World;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tarpc::context::Context;
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(30);
pub const SECRET: Secret = Secret([5; 32]);
pub const EPOCH: Epoch = Epoch(4);
pub const CLUSTER: ClusterId = ClusterId(77);
pub const PG_COUNT: usize = 16;

/// What the metaserver answers about the chunks that are kept.
pub type Keeping = Arc<dyn Fn(KeepAsk) -> BoxFuture<'static, Result<KeepAnswer, Fault>> + Send + Sync>;

#[derive(Clone, Default)]
pub struct FakeMeta {
    instances: Arc<Mutex<BTreeMap<u128, ServerId>>>,
    pub heartbeats: Arc<Mutex<Vec<Heartbeat>>>,
    pub map_version: Arc<Mutex<u64>>,
    pub epoch: Arc<Mutex<Option<Epoch>>>,
    pub keeping: Arc<Mutex<Option<Keeping>>>,
}

fn nothing<T>() -> Result<T, Fault> {
    Err(Fault::new(Kind::Unsupported, "not in this test"))
}

impl FakeMeta {
    fn map(&self) -> ClusterMap {
        ClusterMap {
            cluster: CLUSTER,
            epoch: self.epoch.lock().unwrap().unwrap_or(EPOCH),
            version: *self.map_version.lock().unwrap(),
            replicas: 3,
            min_replicas: 2,
            metaservers: BTreeMap::new(),
            servers: BTreeMap::new(),
            layout: Layout { version: LayoutVersion(1), groups: vec![vec![]; PG_COUNT] },
        }
    }
}

impl Meta for FakeMeta {
    async fn submit(self, _: Context, _: Request) -> Result<Submitted, Fault> {
        nothing()
    }
    async fn query(self, _: Context, _: Ask) -> Result<Answered, Fault> {
        nothing()
    }
    async fn keep_alive(self, _: Context, _: SessionId) -> Result<Alive, Fault> {
        nothing()
    }
    async fn cluster_map(self, _: Context) -> Result<ClusterMap, Fault> {
        Ok(self.map())
    }
    async fn register(self, _: Context, register: Register) -> Result<Registered, Fault> {
        let mut instances = self.instances.lock().unwrap();
        let next = ServerId(u32::try_from(instances.len()).unwrap() + 1);
        let server = *instances.entry(register.instance).or_insert(next);
        assert!(register.server.is_none_or(|known| known == server), "{register:?}");
        Ok(Registered { server, secret: SECRET, map: self.map() })
    }
    async fn heartbeat(self, _: Context, heartbeat: Heartbeat) -> Result<HeartbeatReply, Fault> {
        if !self.instances.lock().unwrap().contains_key(&heartbeat.instance) {
            return Err(Fault::new(Kind::NotFound, "unknown server"));
        }
        let map = self.map();
        let map = (heartbeat.map_version != map.version).then_some(map);
        self.heartbeats.lock().unwrap().push(heartbeat);
        Ok(HeartbeatReply { map })
    }
    async fn admin(self, _: Context, _: Admin) -> Result<AdminReply, Fault> {
        nothing()
    }
    async fn raft(self, _: Context, _: bytes::Bytes) -> Result<bytes::Bytes, Fault> {
        nothing()
    }

    async fn lease(self, _: Context, _: LeaseAsk) -> Result<Leased, Fault> {
        nothing()
    }

    async fn recalls(self, _: Context, _: RecallCall) -> Result<Recalls, Fault> {
        nothing()
    }
    async fn claim(self, _: Context, _: Claim) -> Result<Claimed, Fault> {
        nothing()
    }
    async fn opens(
        self,
        _: Context,
        _: common::proto::opens::OpenReport,
    ) -> Result<common::proto::opens::OpenAsk, Fault> {
        nothing()
    }
    async fn keep(self, _: Context, ask: KeepAsk) -> Result<KeepAnswer, Fault> {
        let keeping = self.keeping.lock().unwrap().clone();
        match keeping {
            Some(keeping) => keeping(ask).await,
            None => nothing(),
        }
    }
}

pub fn serve_meta(listener: Box<dyn Listener>, meta: &FakeMeta) -> Tasks {
    let (tasks, meta) = (Tasks::new(), meta.clone());
    let handler: Handler = Arc::new(move |_, context, request| {
        let meta = meta.clone();
        Box::pin(async move { tarpc::server::Serve::serve(meta.serve(), context, request).await })
    });
    let me = Me::new(Hello { role: Role::Metaserver, cluster: CLUSTER, epoch: EPOCH, id: 1 });
    serve(&tasks, listener, me, handler);
    tasks
}

/// Chunkservers around a fake metaserver, and a client's pool.
pub struct Cluster {
    pub meta: FakeMeta,
    pub meta_addr: String,
    _meta_tasks: Tasks,
    pub servers: Vec<Server>,
    pub dirs: Vec<TempDir>,
    pub pool: Pool,
}

pub fn config(meta: &str, dir: &Path) -> Config {
    Config {
        listen: "127.0.0.1:0".into(),
        metaservers: vec![meta.to_owned()],
        data_dirs: vec![dir.join("data")],
        reserve_bytes: 0,
        ..Config::default()
    }
}

impl Cluster {
    pub async fn start(count: usize) -> Cluster {
        let listener = TcpNet.bind("127.0.0.1:0").await.unwrap();
        let (meta_addr, meta) = (listener.local_addr(), FakeMeta::default());
        let meta_tasks = serve_meta(listener, &meta);
        let (mut servers, mut dirs) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let dir = tempfile::tempdir().unwrap();
            let server = start(config(&meta_addr, dir.path()), World::real()).await.unwrap();
            server.registered().await.unwrap();
            servers.push(server);
            dirs.push(dir);
        }
        let pool = Pool::new(&World::real(), &Me::unknown(Role::Client));
        Cluster { meta, meta_addr, _meta_tasks: meta_tasks, servers, dirs, pool }
    }

    pub fn target(&self, at: usize) -> Target {
        Target { server: ServerId(u32::try_from(at).unwrap() + 1), addr: self.servers[at].addr().to_owned() }
    }

    pub fn chain(&self) -> Vec<Target> {
        (0..self.servers.len()).map(|at| self.target(at)).collect()
    }
}

pub fn auth() -> WriteAuth {
    let attempt = Attempt { session: SessionId(9), witness: LogIndex(3), epoch: EPOCH };
    WriteAuth { attempt, token: SECRET.write_token(attempt.session, attempt.epoch) }
}

pub fn bytes(len: usize, seed: usize) -> bytes::Bytes {
    (0..len).map(|i| u8::try_from((i * 31 + i / 7 + seed * 13) % 251).unwrap()).collect::<Vec<u8>>().into()
}

pub fn chunk_of(bytes: &[u8]) -> ChunkRef {
    ChunkRef { id: ChunkId::of(bytes), len: len_u32(bytes.len()) }
}
