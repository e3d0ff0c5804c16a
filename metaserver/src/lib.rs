//! The metaserver: the namespace of the cluster, replicated.
//!
//! Map of the crate:
//!
//! | file | answers |
//! | --- | --- |
//! | `service` | which requests there are, who may ask, what is checked before they go on; `service/changes`: changes by clients, alone and in batches; `service/believed`: questions and leases |
//! | `node` | what this process is a member of, and how it becomes one: format, return with an empty disk |
//! | `raft/` | the log, the state's store, snapshots, elections, linearizable reads |
//! | `namespace/`, `store/` | what the cluster is: deterministic `apply`, and every row's bytes |
//! | `leading`, `servers`, `sessions` | what only the leader knows: who is alive |
//! | `grants` | leases that come with answers |
//! | `leases`, `leases/table` | what clients may answer from memory, or decide themselves, and who waits for them to forget or tell it |
//! | `keep` | repair and garbage: what belongs where, what may go, who was down for too long |
//! | `rebalance`, `movers` | which placement groups move: the plan, its steps; who carries them out |
//! | `space` | what is refused while disks are nearly full, so that what frees space goes on |
//! | `opens`, `rights` | who has removed files open; who was let open what |
//! | `trash` | when what can be brought back makes room |
//! | `copies` | may a commit have fewer copies than asked for |
//! | `orders`, `fsck` | what only administrators may ask; the check of everything |
//! | `members`, `backup` | metaservers come and go; backups, and the new life that begins from one |
//! | `workers` | the loops: flush, expire, layout, purge, return |
//! | `config`, `identity` | how it is configured; whose data its directory holds |
//!
//! The write path (README) enters at `service` (`submit`), goes through `raft` and ends in `namespace/commit.rs`.

mod backup;
pub mod config;
mod copies;
mod fsck;
mod grants;
pub mod identity;
mod keep;
mod leading;
mod leases;
mod members;
mod movers;
pub mod namespace;
mod node;
mod opens;
mod orders;
pub mod raft;
mod rebalance;
mod rights;
mod servers;
mod service;
mod sessions;
mod space;
pub mod store;
mod trash;
mod workers;

use crate::config::Config;
use crate::identity::{Identity, IdentityError};
use crate::node::Node;
use crate::raft::StartError;
use common::auth::AdminKey;
use common::disk::Lock;
use common::fault::Kind;
use common::hello::{Hello, Me, Role};
use common::id::{ClusterId, Epoch, NodeId};
use common::rpc::Caller;
use common::task::Tasks;
use common::world::World;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks whether the store is still in use.
const STOP_LOOK: Duration = Duration::from_millis(5);
/// How long tasks may take to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long another metaserver may take to say, at start, which cluster it belongs to.
const GREETING_TIMEOUT: Duration = Duration::from_millis(700);

/// Why a metaserver does not start: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("configuration: {0}")]
    Config(String),
    /// The administrator's key cannot be read.
    #[error("admin_key_file: {0}")]
    AdminKey(String),
    /// Another process has this directory.
    #[error("{0} is in use by another metaserver process: stop that one first")]
    InUse(String),
    /// The directory cannot be used.
    #[error("open {dir}: {source}")]
    Dir {
        /// Which.
        dir: String,
        /// Why.
        source: io::Error,
    },
    /// The data is another node's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data is another cluster's than that of the other metaservers.
    #[error("{dir} holds data of another cluster: {message}")]
    OtherCluster {
        /// The data directory.
        dir: String,
        /// What the other metaserver said.
        message: String,
    },
    /// The port cannot be had.
    #[error("listen at {addr}: {source}{hint}", hint = bind_hint(source))]
    Listen {
        /// Which.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// The data cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (is another server running there?)",
        _ => "",
    }
}

/// A running metaserver.
pub struct Server {
    /// Where it listens, `ip:port`.
    pub addr: String,
    node: Arc<Node>,
    lock: Lock,
}

/// Starts a metaserver. It serves when this returns (unless it is not formatted yet).
pub async fn start(config: Config, world: World) -> Result<Server, Error> {
    config.check().map_err(Error::Config)?;
    let dir = config.data_dir.display().to_string();
    let dir_error = |source| Error::Dir { dir: dir.clone(), source };
    let (disk, path) = (world.disk.clone(), config.data_dir.clone());
    let lock = world.blocking(move || disk.create_dir_all(&path).and_then(|()| disk.lock(&path.join("lock")))).await;
    let lock = match lock {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::InUse(dir)),
        Err(error) => return Err(dir_error(error)),
    };
    let admin_key = match config.admin_key_file.as_os_str().is_empty() {
        true => None,
        false => Some(AdminKey::read(&config.admin_key_file).map_err(Error::AdminKey)?),
    };
    let identity = Identity::load(&*world.disk, &config.data_dir, NodeId(config.node_id))?;
    let listener = world.net.bind(&config.listen).await;
    let listener = listener.map_err(|source| Error::Listen { addr: config.listen.clone(), source })?;
    let addr = listener.local_addr();
    let told = if config.advertise.is_empty() { addr.clone() } else { config.advertise.clone() };
    let cluster = identity.map_or(ClusterId(0), |identity| identity.cluster);
    let epoch = identity.map_or(Epoch(0), |identity| identity.epoch);
    let me = Me::new(Hello { role: Role::Metaserver, cluster, epoch, id: config.node_id });
    let tasks = Tasks::new();
    let removed = world.disk.exists(&config.data_dir.join(members::REMOVED_FILE));
    if identity.is_some() && !removed {
        greet(&config, &world, &tasks, &me).await?;
    }
    let node = Arc::new(Node::new(config, told, world, tasks, me, admin_key));
    match identity {
        Some(_) if removed => {
            tracing::error!(node = %node.id(), "{}", node::REMOVED);
            node.leave().await;
        }
        Some(identity) => node.join(identity).await?,
        None => {}
    }
    common::rpc::serve(&node.tasks, listener, node.me.clone(), service::handler(node.clone()));
    workers::start(&node);
    tracing::info!(node = %node.id(), addr, formatted = identity.is_some(), "metaserver started");
    Ok(Server { addr, node, lock })
}

/// Asks the other metaservers which cluster they belong to. Only a clear "another one" counts.
async fn greet(config: &Config, world: &World, tasks: &Tasks, me: &Me) -> Result<(), Error> {
    let greetings = config.others().into_iter().map(|addr| {
        let caller = Caller::new(world, tasks, me, &[addr]);
        async move { caller.peer(GREETING_TIMEOUT).await }
    });
    for greeting in futures::future::join_all(greetings).await {
        match greeting {
            Err(fault) if fault.kind == Kind::Refused => {
                let dir = config.data_dir.display().to_string();
                return Err(Error::OtherCluster { dir, message: fault.message });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Server {
    /// Waits until it cannot go on, and says why.
    pub async fn failure(&self) -> String {
        self.node.failure().await
    }

    /// Stops: no more requests, then consensus, then what is applied is made durable. When it returns, the data directory
    /// can be opened again.
    pub async fn shutdown(self) {
        let member = self.node.take_member();
        if let Some(member) = &member {
            let _ = member.group.shutdown().await; // it may have stopped by itself
        }
        if let Some(member) = &member {
            let state = member.state.clone();
            if let Err(error) = self.node.world.blocking(move || state.flush()).await {
                tracing::error!(%error, "flush at the end");
            }
        }
        let state = member.as_ref().map(|member| Arc::downgrade(&member.state));
        drop(member);
        if !self.node.tasks.shutdown(STOP_GRACE).await {
            tracing::warn!("some tasks did not stop in time");
        }
        // A snapshot that is being built has the store open until it is done.
        let end = tokio::time::Instant::now() + STOP_GRACE;
        while state.as_ref().is_some_and(|state| state.strong_count() > 0) {
            if tokio::time::Instant::now() >= end {
                tracing::warn!("the store is still in use");
                break;
            }
            tokio::time::sleep(STOP_LOOK).await;
        }
        drop(self.lock);
    }
}
