//! Connections to chunkservers, kept for the next request.

use super::Wire;
use crate::fault::{Fault, Kind};
use crate::hello::{self, Me, Plane};
use crate::id::ServerId;
use crate::world::World;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// How long opening a connection, hello included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed connect the address is left alone this long.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Idle connections kept to one address.
const IDLE_PER_ADDRESS: usize = 16;
/// An idle connection is closed after this long. The server keeps it a little longer.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// Addresses that are remembered; beyond, the others' idle connections are closed.
const ADDRESSES_MAX: usize = 4096;

/// Connections by address. Cheap to clone; clones share them.
///
/// Idle connections are bounded; busy ones are as many as there are calls under way, which the callers bound.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    world: World,
    me: Me,
    known: Mutex<BTreeMap<String, Known>>,
}

#[derive(Default)]
struct Known {
    /// Newest last.
    idle: Vec<Idle>,
    /// A connect failed: not to be tried before this, and why.
    later: Option<(Instant, Fault)>,
}

struct Idle {
    wire: Wire,
    requests: u32,
    peer: u64,
    since: Instant,
}

/// A connection that is ours alone. Dropped, it is closed; [`Lease::keep`] gives it back.
pub struct Lease {
    /// The connection.
    pub wire: Wire,
    shared: Arc<Shared>,
    addr: String,
    peer: u64,
    requests: u32,
    /// It was opened for this lease.
    pub fresh: bool,
}

impl Pool {
    /// An empty pool of a process that introduces itself like this.
    pub fn new(world: &World, me: &Me) -> Pool {
        Pool { shared: Arc::new(Shared { world: world.clone(), me: me.clone(), known: Mutex::default() }) }
    }

    /// A connection to this server at this address, kept or new, before `until`.
    ///
    /// # Errors
    /// `Unavailable`: no connection; `Refused`: it does not want us, or is another server.
    pub async fn connection(&self, server: ServerId, addr: &str, until: Instant) -> Result<Lease, Fault> {
        while let Some(mut idle) = self.take_idle(server, addr) {
            if idle.wire.is_quiet().await {
                let Idle { wire, requests, peer, .. } = idle;
                return Ok(self.lease(wire, addr, peer, requests, false));
            }
        }
        self.new_connection(server, addr, until).await
    }

    /// A new connection, as [`Pool::connection`].
    pub async fn new_connection(&self, server: ServerId, addr: &str, until: Instant) -> Result<Lease, Fault> {
        let now = Instant::now();
        if let Some((_, fault)) = self.known(addr, |known| known.later.clone()).filter(|(later, _)| now < *later) {
            return Err(fault);
        }
        let end = until.min(now + CONNECT_TIMEOUT);
        let late =
            || Fault::new(Kind::Unavailable, format!("{server} at {addr}: no connection in {CONNECT_TIMEOUT:?}"));
        let outcome = match tokio::time::timeout_at(end, self.dial(server, addr)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late()),
        };
        let later = outcome.as_ref().err().map(|fault| (Instant::now() + BACK_OFF, fault.clone()));
        self.known(addr, |known| known.later = later);
        let (wire, peer) = outcome?;
        Ok(self.lease(wire, addr, peer, 0, true))
    }

    async fn dial(&self, server: ServerId, addr: &str) -> Result<(Wire, u64), Fault> {
        let text = |error| Fault::new(Kind::Unavailable, format!("{server} at {addr}: connect: {error}"));
        let mut conn = self.shared.world.net.connect(addr).await.map_err(text)?;
        let to = format!("{server} at {addr}");
        let peer = hello::introduce(&mut conn, &self.shared.me, Plane::Data, &to).await?;
        check_peer(server, addr, peer.id)?;
        Ok((Wire::new(conn), peer.id))
    }

    fn lease(&self, wire: Wire, addr: &str, peer: u64, requests: u32, fresh: bool) -> Lease {
        Lease { wire, shared: Arc::clone(&self.shared), addr: addr.to_owned(), peer, requests, fresh }
    }

    fn take_idle(&self, server: ServerId, addr: &str) -> Option<Idle> {
        let now = Instant::now();
        self.known(addr, |known| {
            known.idle.retain(|idle| now < idle.since + IDLE_MAX && check_peer(server, addr, idle.peer).is_ok());
            known.idle.pop()
        })
    }

    /// Forgets what is known of an address: its idle connections are closed.
    pub fn forget(&self, addr: &str) {
        self.known(addr, |known| *known = Known::default());
    }

    fn known<T>(&self, addr: &str, with: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.shared.known.lock().expect("no panic holds this lock");
        if known.len() >= ADDRESSES_MAX && !known.contains_key(addr) {
            known.clear();
        }
        with(known.entry(addr.to_owned()).or_default())
    }
}

impl Lease {
    /// A number for the next request on this connection.
    pub fn next_request(&mut self) -> u32 {
        self.requests = self.requests.wrapping_add(1);
        self.requests
    }

    /// The whole answer was read: the connection may be used again.
    pub fn keep(self) {
        let Lease { wire, shared, addr, peer, requests, .. } = self;
        let mut known = shared.known.lock().expect("no panic holds this lock");
        if let Some(known) = known.get_mut(&addr).filter(|known| known.idle.len() < IDLE_PER_ADDRESS) {
            known.idle.push(Idle { wire, requests, peer, since: Instant::now() });
        }
    }
}

/// An address may have gone to another server since the map was made. Server 0: whoever is there.
fn check_peer(server: ServerId, addr: &str, peer: u64) -> Result<(), Fault> {
    if server.0 == 0 || peer == u64::from(server.0) {
        return Ok(());
    }
    Err(Fault::new(Kind::Refused, format!("{server} at {addr}: server s{peer} answers there")))
}
