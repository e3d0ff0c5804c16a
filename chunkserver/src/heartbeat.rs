//! Who this server is: registers with the metaservers, then tells them each second that it lives, and learns the map.
//!
//! Both are tried for ever: a server that cannot reach a metaserver still serves what it has, under the map it knows.
//! Nothing here ends the process but data that belongs to another server or cluster.

use crate::service::{Registration, Shared};
use crate::{Config, ServerError, State};
use common::fault::{Fault, Kind};
use common::proto::meta::{Heartbeat, Register, Registered};
use common::rpc::Caller;
use common::task::Tasks;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between two heartbeats. A metaserver counts a server as down after 10 s without one.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// How long a heartbeat may take, over all metaservers.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(4);
/// How long one attempt to register may take.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);
/// The same trouble is said again after this many attempts.
const SAY_AGAIN_AFTER: u32 = 20;

/// Runs until `tasks` stop. `addr` is where others reach this server; `report` tells how far it is.
pub(crate) fn start(shared: &Arc<Shared>, tasks: &Tasks, config: &Config, addr: String, report: watch::Sender<State>) {
    let caller = Caller::new(&shared.world, tasks, &shared.me, &config.metaservers);
    let voice = Voice { shared: Arc::clone(shared), caller, config: config.clone(), addr, report };
    tasks.spawn("heartbeat", |stop| async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = voice.run(stop.clone()) => {}
        }
    });
}

struct Voice {
    shared: Arc<Shared>,
    caller: Caller,
    config: Config,
    addr: String,
    report: watch::Sender<State>,
}

impl Voice {
    async fn run(self, stop: CancellationToken) {
        loop {
            let ended = match self.register().await {
                Ok(()) => self.beat().await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                self.report.send_replace(State::Failed(Arc::new(error)));
                stop.cancelled().await;
                return;
            }
            tokio::time::sleep(REGISTER_PAUSE).await;
        }
    }

    /// Registers, for as long as it takes.
    async fn register(&self) -> Result<(), ServerError> {
        let mut trouble = Trouble::default();
        loop {
            let identity = self.shared.stores().identity();
            let (capacity, free) = self.room().await;
            let register = Register {
                server: identity.server,
                instance: identity.instance,
                addr: self.addr.clone(),
                domain: self.config.domain(),
                weight: self.weight(capacity),
                capacity,
                free,
            };
            match self.caller.register(&register, REGISTER_LIMIT).await {
                Ok(registered) => {
                    let Registered { server, secret, map } = registered;
                    let (cluster, epoch) = (map.cluster, map.epoch);
                    match self.serve_under(Registration { server, secret, map }).await? {
                        Ok(()) => {
                            info!(%server, %cluster, %epoch, "registered");
                            self.report.send_replace(State::Serving(server));
                            return Ok(());
                        }
                        Err(fault) => trouble.say("register", &fault),
                    }
                }
                Err(fault) => trouble.say("register", &fault),
            }
            tokio::time::sleep(REGISTER_PAUSE).await;
        }
    }

    /// From now on serves under this name and map. Who this is, and in which epoch, is written down before.
    ///
    /// # Errors
    /// The inner one: it comes from a metaserver of an epoch that is over.
    async fn serve_under(&self, registration: Registration) -> Result<Result<(), Fault>, ServerError> {
        let (server, map) = (registration.server, &registration.map);
        let known = self.shared.stores().epoch();
        if map.epoch < known {
            let text = format!("the metadata was restored in epoch {known}, and a metaserver is left in {}", map.epoch);
            return Ok(Err(Fault::new(Kind::Refused, text)));
        }
        self.shared.stores().adopt(map.cluster, server, map.epoch).await?;
        self.shared.me.set_id(server.0.into());
        self.shared.me.set_cluster(map.cluster, map.epoch);
        self.caller.learn(map.metaservers.values());
        self.shared.set_registration(registration);
        Ok(Ok(()))
    }

    /// Sends heartbeats until the metaservers do not know this server any more.
    ///
    /// # Errors
    /// It cannot go on.
    async fn beat(&self) -> Result<(), ServerError> {
        let mut trouble = Trouble::default();
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Ok(registration) = self.shared.registration() else { return Ok(()) };
            let stats = self.shared.stores().stats_soon().await;
            let works = self.shared.stores().takes_writes();
            let heartbeat = Heartbeat {
                server: registration.server,
                instance: self.shared.stores().identity().instance,
                capacity: if works { stats.capacity } else { 0 },
                free: stats.free,
                chunks: stats.chunks,
                chunk_bytes: stats.bytes,
                corrupt: stats.corrupt,
                fenced_dirs: stats.fenced,
                full_dirs: stats.full,
                map_version: registration.map.version,
                segment_bytes: stats.segment_bytes,
            };
            match self.caller.heartbeat(&heartbeat, HEARTBEAT_LIMIT).await {
                Ok(reply) => {
                    let Registration { server, secret, .. } = *registration;
                    let taken = match reply.map {
                        Some(map) => self.serve_under(Registration { server, secret, map }).await?,
                        None => Ok(()),
                    };
                    match taken {
                        Ok(()) => trouble.over("heartbeat"),
                        Err(fault) => trouble.say("heartbeat", &fault),
                    }
                }
                Err(fault) if is_unknown(fault.kind) => {
                    warn!(error = %fault, "the metaservers do not know this server: registering again");
                    return Ok(());
                }
                Err(fault) => trouble.say("heartbeat", &fault),
            }
        }
    }

    /// Capacity and free bytes.
    async fn room(&self) -> (u64, u64) {
        let stats = self.shared.stores().stats_soon().await;
        (stats.capacity, stats.free)
    }

    fn weight(&self, capacity: u64) -> u32 {
        match self.config.weight {
            0 => u32::try_from(capacity >> 30).unwrap_or(u32::MAX).max(1),
            weight => weight,
        }
    }
}

/// What a metaserver says to a server it has never registered, or registered differently.
fn is_unknown(kind: Kind) -> bool {
    matches!(kind, Kind::NotFound | Kind::Stale | Kind::Gone | Kind::Invalid)
}

/// Says a trouble once, when it changes, and now and then.
#[derive(Default)]
struct Trouble {
    last: Option<Kind>,
    times: u32,
}

impl Trouble {
    fn say(&mut self, doing: &'static str, fault: &Fault) {
        if self.last != Some(fault.kind) || self.times.is_multiple_of(SAY_AGAIN_AFTER) {
            warn!(op = doing, error = %fault, "no success with the metaservers, trying on");
        }
        self.last = Some(fault.kind);
        self.times = self.times.wrapping_add(1);
    }

    fn over(&mut self, doing: &'static str) {
        if self.last.take().is_some() {
            info!(op = doing, "metaservers reached again");
        }
        self.times = 0;
    }
}
