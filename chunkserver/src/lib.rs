//! The chunkserver: keeps chunks on disks and hands them out.
//!
//! Map of the crate, in the order a put passes through it:
//!
//! | file | answers |
//! | --- | --- |
//! | [`Config`], `main.rs` | what it is told; start and stop of the process |
//! | `service.rs` | connections, requests one after another, rights, bytes in flight |
//! | `own_thread.rs` | connections that are busy get a thread of their own |
//! | `chain.rs` | a put: hand it on to the next server while it comes in, then answer for both |
//! | [`store`] | on disk: append, sync, index; read back; compact what is mostly deleted |
//! | `heartbeat.rs` | who we are, the cluster's secret and map; a sign of life each second |
//! | `keep/` | what belongs here is fetched, what does not is dropped, what nobody needs is deleted |
//!
//! Steps 4 (`chain.rs`) and 5 (`store/put.rs`) of the life of a write (README) are here.
//!
//! Start: stores are opened and recovered, the port is bound, then the server registers with the metaservers, for as
//! long as it takes; until then every request is answered with `Unavailable`.

mod chain;
mod config;
mod heartbeat;
mod keep;
mod own_thread;
mod service;
pub mod store;

pub use config::{Config, MissingDirs};
pub use keep::wishes;

use common::hello::{Me, Role};
use common::id::ServerId;
use common::task::Tasks;
use common::world::World;
use service::Shared;
use std::sync::Arc;
use std::time::Duration;
use store::StoreSet;
use tokio::sync::watch;
use tracing::info;

/// How long a stopping server waits for what is under way.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Why a server did not start, or had to stop: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The port cannot be bound.
    #[error("listen at {addr}: {source}{hint}", hint = bind_hint(source))]
    Listen {
        /// The address.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// A data directory cannot be used.
    #[error(transparent)]
    Store(#[from] store::OpenError),
}

fn bind_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => " (is another server running there?)",
        _ => "",
    }
}

/// A running chunkserver.
pub struct Server {
    addr: String,
    shared: Arc<Shared>,
    tasks: Tasks,
    state: watch::Receiver<State>,
}

/// How far a server is.
#[derive(Clone, Debug, Default)]
pub(crate) enum State {
    /// Looking for a metaserver that knows it.
    #[default]
    Registering,
    /// Serving under this name.
    Serving(ServerId),
    /// It cannot go on.
    Failed(Arc<ServerError>),
}

/// Opens the stores, binds the port and starts to register. Returns before the registration is through: see
/// [`Server::registered`].
///
/// # Errors
/// See [`ServerError`]. Nothing runs then.
pub async fn start(config: Config, world: World) -> Result<Server, ServerError> {
    config.check().map_err(ServerError::Config)?;
    let tasks = Tasks::new();
    let listen = |source| ServerError::Listen { addr: config.listen.clone(), source };
    // The port first: a second server on the same configuration says so at once.
    let listener = world.net.bind(&config.listen).await.map_err(listen)?;
    let addr = config.announced(&listener.local_addr()).map_err(ServerError::Config)?;
    let stores = StoreSet::open(&world, &tasks, &config.stores().map_err(ServerError::Config)?).await;
    let stores = match stores {
        Ok(stores) => stores,
        Err(error) => {
            tasks.shutdown(STOP_GRACE).await;
            return Err(error.into());
        }
    };
    let me = Me::unknown(Role::Chunkserver);
    let identity = stores.identity();
    // Known before the first hello is answered: a client that finds another name here asks elsewhere.
    me.set_id(identity.server.map_or(0, |server| u64::from(server.0)));
    me.set_cluster(identity.cluster, stores.epoch());
    let shared = Arc::new(Shared::new(world, me, stores));
    let (report, state) = watch::channel(State::default());
    service::serve(&shared, &tasks, listener);
    heartbeat::start(&shared, &tasks, &config, addr.clone(), report);
    keep::start(&shared, &tasks, &config);
    info!(addr, "listening");
    Ok(Server { addr, shared, tasks, state })
}

impl Server {
    /// The address it announces, `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Its data directories.
    pub fn stores(&self) -> &StoreSet {
        self.shared.stores()
    }

    /// Waits until it has registered and serves; its id then.
    ///
    /// # Errors
    /// It cannot go on, for this reason.
    pub async fn registered(&self) -> Result<ServerId, Arc<ServerError>> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| !matches!(state, State::Registering)).await;
        match reached.as_deref() {
            Ok(State::Serving(id)) => Ok(*id),
            Ok(State::Failed(error)) => Err(Arc::clone(error)),
            Ok(State::Registering) | Err(_) => Err(Arc::new(ServerError::Config("the server is stopping".into()))),
        }
    }

    /// Waits until it cannot go on any more, which is never if all is well; why.
    pub async fn failed(&self) -> Arc<ServerError> {
        let mut state = self.state.clone();
        let failed = state.wait_for(|state| matches!(state, State::Failed(_))).await.map(|state| state.clone());
        match failed {
            Ok(State::Failed(error)) => error,
            Ok(_) | Err(_) => std::future::pending().await, // stopping: whoever asked for that goes on
        }
    }

    /// Stops: takes no more requests, lets the disks finish, makes the indexes durable. False if something still ran
    /// after the grace period. What was acknowledged is safe either way.
    pub async fn shutdown(self) -> bool {
        let stopped = self.tasks.shutdown(STOP_GRACE).await && own_thread::ended(&self.shared, STOP_GRACE).await;
        self.shared.stores().flush().await;
        stopped
    }
}
