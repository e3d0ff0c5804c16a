//! The callers' side: a connection to whoever leads, and what to do when that changes.

use super::codec::{ClientTransport, context_for, frames};
use super::server::with_sources;
use super::{RAFT_MESSAGE_MAX, REQUESTS_IN_FLIGHT};
use crate::fault::{Fault, Kind};
use crate::hello::{self, Hello, Me, Plane};
use crate::id::SessionId;
use crate::layout::ClusterMap;
use crate::proto::keep::{KeepAnswer, KeepAsk};
use crate::proto::lease::{Claim, Claimed, LeaseAsk, Leased, RecallCall, Recalls};
use crate::proto::meta::{
    Admin, AdminReply, Alive, Answered, Ask, Heartbeat, HeartbeatReply, MetaClient, Register, Registered, Request,
    Submitted,
};
use crate::proto::opens::{OpenAsk, OpenReport};
use crate::task::Tasks;
use crate::world::World;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tarpc::client::{Config, RpcError};
use tarpc::context::Context;
use tokio::time::Instant;
use tracing::debug;

/// How long opening a connection, hello included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the first attempt of a call may take; each further one twice as long, within the call's limit.
const ATTEMPT_MIN: Duration = Duration::from_secs(2);
/// The pause after every known address was tried in vain: twice as long each time, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(30);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// After a failed connect the address is left alone this long: twice as long each time, up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(20);
/// The longest such time.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Addresses a caller remembers: those it was given and those that answers named.
const ADDRESSES_MAX: usize = 16;

/// Calls metaservers. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Caller {
    shared: Arc<Shared>,
}

struct Shared {
    world: World,
    tasks: Tasks,
    me: Me,
    links: Mutex<Links>,
}

struct Links {
    all: Vec<Arc<Link>>,
    /// So many of them, the first, were given at the start.
    given: usize,
    /// The presumed leader.
    current: usize,
}

/// One address and the connection to it.
struct Link {
    addr: String,
    open: tokio::sync::Mutex<Open>,
}

#[derive(Default)]
struct Open {
    client: Option<Connected>,
    failures: u32,
    /// Not to be tried before this, and why.
    later: Option<(Instant, Fault)>,
}

#[derive(Clone)]
struct Connected {
    client: MetaClient,
    peer: Hello,
    /// The connection is known to be gone.
    closed: Arc<AtomicBool>,
}

/// Why an attempt gave no answer.
struct Miss {
    fault: Fault,
    /// The request may have reached the server.
    sent: bool,
    /// The connection was an old one that turned out to be gone: worth a new one to the same address.
    stale: bool,
}

impl Caller {
    /// A caller of these addresses (`host:port`, 1 or more). Connects when first used.
    pub fn new(world: &World, tasks: &Tasks, me: &Me, addrs: &[String]) -> Caller {
        let all: Vec<_> = addrs.iter().take(ADDRESSES_MAX).map(|addr| Link::new(addr)).collect();
        let links = Mutex::new(Links { given: all.len(), all, current: 0 });
        Caller { shared: Arc::new(Shared { world: world.clone(), tasks: tasks.clone(), me: me.clone(), links }) }
    }

    /// The addresses known now.
    pub fn addrs(&self) -> Vec<String> {
        self.links().all.iter().map(|link| link.addr.clone()).collect()
    }

    /// The cluster map names these as its metaservers: those not known yet are tried from now on. What was given at the
    /// start stays; room for newer ones is made by forgetting, of the others, those that the map does not name.
    pub fn learn<'a>(&self, named: impl IntoIterator<Item = &'a String>) {
        let named: Vec<&String> = named.into_iter().collect();
        let mut links = self.links();
        let new: Vec<&String> =
            named.iter().copied().filter(|addr| links.all.iter().all(|link| link.addr != **addr)).collect();
        if new.is_empty() {
            return;
        }
        let (given, current) = (links.given, links.all.get(links.current).map(|link| link.addr.clone()));
        let mut at = 0;
        links.all.retain(|link| {
            at += 1;
            at <= given || named.contains(&&link.addr)
        });
        let room = ADDRESSES_MAX.saturating_sub(links.all.len());
        links.all.extend(new.into_iter().take(room).map(|addr| Link::new(addr)));
        links.current = links.all.iter().position(|link| Some(&link.addr) == current.as_ref()).unwrap_or(0);
    }

    /// Sends a request that changes nothing or carries an id until somebody answers it: to the presumed leader, to
    /// the one it names, or to the next address, with pauses, for at most `limit`.
    ///
    /// # Errors
    /// What the server answered, or, when `limit` is over: `Unsure` if `changes` and it may have been carried out,
    /// else `Unavailable`. `NoSession` of a change means that no copy of it was run: if an earlier one may have been,
    /// before the session ended, that is `Unsure`, too. `Refused` when all addresses refuse us.
    pub async fn call<T, C, F>(&self, what: &'static str, changes: bool, limit: Duration, call: C) -> Result<T, Fault>
    where
        C: Fn(MetaClient, Context) -> F,
        F: Future<Output = Result<Result<T, Fault>, RpcError>>,
    {
        let mut route = Route::new(what, changes, Instant::now() + limit);
        let mut link = self.current().ok_or_else(|| Fault::new(Kind::Invalid, "no metaserver address is given"))?;
        loop {
            let outcome = self.attempt(&link, route.attempt_end(), &call).await;
            let fault = match outcome {
                Ok(Ok(value)) => {
                    self.prefer(&link.addr);
                    return Ok(value);
                }
                Ok(Err(fault)) => match fault.kind {
                    Kind::NotLeader | Kind::Busy | Kind::Unavailable => fault,
                    Kind::Unsure => {
                        route.unsure = true;
                        fault
                    }
                    _ => {
                        self.prefer(&link.addr);
                        return Err(route.last_word(fault));
                    }
                },
                Err(miss) => {
                    route.unsure |= miss.sent;
                    if miss.stale && Instant::now() < route.end {
                        continue;
                    }
                    miss.fault
                }
            };
            debug!(op = what, peer = link.addr, error = %fault, "call again");
            route.missed(&link.addr, &fault, self.addrs().len())?;
            let (next, pause) = self.after(&link.addr, &fault, &mut route.round);
            if pause {
                self.pause(&mut route).await?;
            }
            link = next;
        }
    }

    /// Sends a request at most once, to the first address; does not wait for an address that just failed.
    ///
    /// # Errors
    /// What the server answered; `Unavailable` or `Refused`: it was not sent; `Unsure`: it may have been carried out.
    pub async fn once<T, C, F>(&self, what: &'static str, limit: Duration, call: C) -> Result<T, Fault>
    where
        C: Fn(MetaClient, Context) -> F,
        F: Future<Output = Result<Result<T, Fault>, RpcError>>,
    {
        let link = self.links().all.first().cloned();
        let link = link.ok_or_else(|| Fault::new(Kind::Invalid, "no metaserver address is given"))?;
        match self.attempt(&link, Instant::now() + limit, &call).await {
            Ok(answer) => answer,
            Err(Miss { sent: true, fault, .. }) => Err(Fault { kind: Kind::Unsure, ..fault.context(what) }),
            Err(Miss { fault, .. }) => Err(fault.context(what)),
        }
    }

    /// Who answers at the first address: connects if need be.
    pub async fn peer(&self, limit: Duration) -> Result<Hello, Fault> {
        let link = self.links().all.first().cloned();
        let link = link.ok_or_else(|| Fault::new(Kind::Invalid, "no metaserver address is given"))?;
        Ok(self.connect(&link, Instant::now() + limit).await?.0.peer)
    }

    /// [`Meta::submit`](crate::proto::meta::Meta::submit); the slot and sequence number make repeating it safe.
    pub async fn submit(&self, request: &Request, limit: Duration) -> Result<Submitted, Fault> {
        let call = |client: MetaClient, context| {
            let request = request.clone();
            async move { client.submit(context, request).await }
        };
        self.call("submit", true, limit, call).await
    }

    /// [`Meta::query`](crate::proto::meta::Meta::query).
    pub async fn query(&self, ask: &Ask, limit: Duration) -> Result<Answered, Fault> {
        let call = |client: MetaClient, context| {
            let ask = ask.clone();
            async move { client.query(context, ask).await }
        };
        self.call("query", false, limit, call).await
    }

    /// [`Meta::keep_alive`](crate::proto::meta::Meta::keep_alive).
    pub async fn keep_alive(&self, session: SessionId, limit: Duration) -> Result<Alive, Fault> {
        let call = |client: MetaClient, context| async move { client.keep_alive(context, session).await };
        self.call("keep alive", false, limit, call).await
    }

    /// [`Meta::lease`](crate::proto::meta::Meta::lease).
    pub async fn lease(&self, ask: &LeaseAsk, limit: Duration) -> Result<Leased, Fault> {
        let call = |client: MetaClient, context| {
            let ask = ask.clone();
            async move { client.lease(context, ask).await }
        };
        self.call("lease", false, limit, call).await
    }

    /// [`Meta::recalls`](crate::proto::meta::Meta::recalls).
    pub async fn recalls(&self, recall: RecallCall, limit: Duration) -> Result<Recalls, Fault> {
        let call = |client: MetaClient, context| {
            let recall = recall.clone();
            async move { client.recalls(context, recall).await }
        };
        self.call("recalls", false, limit, call).await
    }

    /// [`Meta::claim`](crate::proto::meta::Meta::claim).
    pub async fn claim(&self, claim: &Claim, limit: Duration) -> Result<Claimed, Fault> {
        let call = |client: MetaClient, context| {
            let claim = claim.clone();
            async move { client.claim(context, claim).await }
        };
        self.call("claim", false, limit, call).await
    }

    /// [`Meta::opens`](crate::proto::meta::Meta::opens).
    pub async fn opens(&self, report: &OpenReport, limit: Duration) -> Result<OpenAsk, Fault> {
        let call = |client: MetaClient, context| {
            let report = report.clone();
            async move { client.opens(context, report).await }
        };
        self.call("opens", false, limit, call).await
    }

    /// [`Meta::cluster_map`](crate::proto::meta::Meta::cluster_map).
    pub async fn cluster_map(&self, limit: Duration) -> Result<ClusterMap, Fault> {
        let call = |client: MetaClient, context| async move { client.cluster_map(context).await };
        self.call("cluster map", false, limit, call).await
    }

    /// [`Meta::register`](crate::proto::meta::Meta::register); the instance makes repeating it safe.
    pub async fn register(&self, register: &Register, limit: Duration) -> Result<Registered, Fault> {
        let call = |client: MetaClient, context| {
            let register = register.clone();
            async move { client.register(context, register).await }
        };
        self.call("register", false, limit, call).await
    }

    /// [`Meta::heartbeat`](crate::proto::meta::Meta::heartbeat).
    pub async fn heartbeat(&self, heartbeat: &Heartbeat, limit: Duration) -> Result<HeartbeatReply, Fault> {
        let call = |client: MetaClient, context| {
            let heartbeat = heartbeat.clone();
            async move { client.heartbeat(context, heartbeat).await }
        };
        self.call("heartbeat", false, limit, call).await
    }

    /// [`Meta::keep`](crate::proto::meta::Meta::keep); all of it may be repeated.
    pub async fn keep(&self, ask: &KeepAsk, limit: Duration) -> Result<KeepAnswer, Fault> {
        let call = |client: MetaClient, context| {
            let ask = ask.clone();
            async move { client.keep(context, ask).await }
        };
        self.call("keep", false, limit, call).await
    }

    /// [`Meta::admin`](crate::proto::meta::Meta::admin), asked of the leader. For `Format` and `NodeStatus`, which are
    /// for one metaserver, use [`Caller::admin_once`].
    pub async fn admin(&self, request: &Admin, limit: Duration) -> Result<AdminReply, Fault> {
        let call = |client: MetaClient, context| {
            let request = request.clone();
            async move { client.admin(context, request).await }
        };
        self.call("admin", true, limit, call).await
    }

    /// [`Meta::admin`](crate::proto::meta::Meta::admin), asked once, of the first address.
    pub async fn admin_once(&self, request: &Admin, limit: Duration) -> Result<AdminReply, Fault> {
        let call = |client: MetaClient, context| {
            let request = request.clone();
            async move { client.admin(context, request).await }
        };
        self.once("admin", limit, call).await
    }

    /// [`Meta::raft`](crate::proto::meta::Meta::raft), sent once, to the first address. At most [`RAFT_MESSAGE_MAX`]
    /// bytes.
    pub async fn raft(&self, message: Bytes, limit: Duration) -> Result<Bytes, Fault> {
        if message.len() > RAFT_MESSAGE_MAX {
            return Err(Fault::new(Kind::Invalid, format!("a raft message of {} bytes is too long", message.len())));
        }
        let call = |client: MetaClient, context| {
            let message = message.clone();
            async move { client.raft(context, message).await }
        };
        self.once("raft", limit, call).await
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.shared.links.lock().expect("no panic holds this lock")
    }

    fn current(&self) -> Option<Arc<Link>> {
        let links = self.links();
        links.all.get(links.current).or(links.all.first()).cloned()
    }

    /// This one answered: the next call starts with it.
    fn prefer(&self, addr: &str) {
        let mut links = self.links();
        if let Some(at) = links.all.iter().position(|link| link.addr == addr) {
            links.current = at;
        }
    }

    /// Where to go from `addr` after this fault, and whether to pause first: to the leader it names, else to the next
    /// address that was not tried since the last pause; when all were tried, pause, then begin anew the same way.
    fn after(&self, addr: &str, fault: &Fault, round: &mut BTreeSet<String>) -> (Arc<Link>, bool) {
        let mut links = self.links();
        let named = fault.leader.as_ref();
        if let Some(leader) = named
            && links.all.len() < ADDRESSES_MAX
            && links.all.iter().all(|link| link.addr != *leader)
        {
            links.all.push(Link::new(leader));
        }
        let at = links.all.iter().position(|link| link.addr == addr).map_or(0, |at| at + 1);
        let in_turn = links.all.iter().cycle().skip(at).take(links.all.len());
        let leader = links.all.iter().filter(|link| Some(&link.addr) == named);
        let order: Vec<&Arc<Link>> = leader.chain(in_turn).collect();
        match order.iter().find(|link| !round.contains(&link.addr)) {
            Some(link) => (Arc::clone(link), false),
            None => {
                round.clear();
                (Arc::clone(order.first().expect("a caller has an address")), true)
            }
        }
    }

    async fn pause(&self, route: &mut Route) -> Result<(), Fault> {
        let full = (PAUSE_MIN * 2u32.saturating_pow(route.pauses)).min(PAUSE_MAX);
        route.pauses = (route.pauses + 1).min(16);
        // Up to a half less, so that many callers do not come back at the same moment.
        let micros = u64::try_from(full.as_micros()).expect("half a second at most");
        let pause = full - Duration::from_micros(self.shared.world.random_u64() % (micros / 2));
        if Instant::now() + pause >= route.end {
            return Err(route.give_up());
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn attempt<T, C, F>(&self, link: &Arc<Link>, until: Instant, call: &C) -> Result<Result<T, Fault>, Miss>
    where
        C: Fn(MetaClient, Context) -> F,
        F: Future<Output = Result<Result<T, Fault>, RpcError>>,
    {
        let unsent = |fault| Miss { fault, sent: false, stale: false };
        let (connected, fresh) = self.connect(link, until).await.map_err(unsent)?;
        let left = until.saturating_duration_since(Instant::now());
        // tarpc's own timer only cleans up: a second later than ours.
        let context = context_for(left + Duration::from_secs(1));
        let broken = |text: String, sent: bool, stale: bool| {
            connected.closed.store(true, Ordering::Release);
            Miss { fault: Fault::new(Kind::Unavailable, format!("{}: {text}", link.addr)), sent, stale }
        };
        match tokio::time::timeout(left, call(connected.client.clone(), context)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(RpcError::Server(error))) => Ok(Err(Fault::new(Kind::Busy, format!("{}: {error}", link.addr)))),
            Ok(Err(error @ (RpcError::Shutdown | RpcError::Channel(_)))) => {
                Err(broken(format!("connection lost: {}", with_sources(&error)), true, !fresh))
            }
            Ok(Err(error @ RpcError::Send(_))) => Err(broken(with_sources(&error), false, false)),
            Ok(Err(error @ RpcError::DeadlineExceeded)) => Err(broken(error.to_string(), true, false)),
            Err(_) => Err(broken(format!("no answer in {left:.1?}"), true, false)),
        }
    }

    /// The connection of this link, and whether it was opened just now. One caller connects, others wait for it.
    async fn connect(&self, link: &Arc<Link>, until: Instant) -> Result<(Connected, bool), Fault> {
        let late = || Fault::new(Kind::Unavailable, format!("{}: no connection in time", link.addr));
        let mut open = tokio::time::timeout_at(until, link.open.lock()).await.map_err(|_| late())?;
        if let Some(connected) = open.client.as_ref().filter(|c| !c.closed.load(Ordering::Acquire)) {
            return Ok((connected.clone(), false));
        }
        open.client = None;
        let now = Instant::now();
        if let Some((_, fault)) = open.later.as_ref().filter(|(later, _)| now < *later) {
            return Err(fault.clone());
        }
        let end = until.min(now + CONNECT_TIMEOUT);
        let outcome = tokio::time::timeout_at(end, self.dial(&link.addr)).await;
        match outcome.unwrap_or_else(|_| Err(late())) {
            Ok(connected) => {
                *open = Open { client: Some(connected.clone()), ..Open::default() };
                Ok((connected, true))
            }
            Err(fault) => {
                let wait = (BACK_OFF_MIN * 2u32.saturating_pow(open.failures)).min(BACK_OFF_MAX);
                open.failures = (open.failures + 1).min(16);
                open.later = Some((Instant::now() + wait, fault.clone()));
                Err(fault)
            }
        }
    }

    async fn dial(&self, addr: &str) -> Result<Connected, Fault> {
        let shared = &self.shared;
        let connecting = shared.world.net.connect(addr).await;
        let mut conn = connecting.map_err(|e| Fault::new(Kind::Unavailable, format!("{addr}: connect: {e}")))?;
        let peer = hello::introduce(&mut conn, &shared.me, Plane::Control, addr).await?;
        let transport: ClientTransport<_, _> = frames(conn);
        let mut config = Config::default();
        config.max_in_flight_requests = REQUESTS_IN_FLIGHT;
        config.pending_request_buffer = REQUESTS_IN_FLIGHT;
        let new = MetaClient::new(config, transport);
        let closed = Arc::new(AtomicBool::new(false));
        let (dispatch, ended) = (new.dispatch, Arc::clone(&closed));
        shared.tasks.spawn_until_stop(async move {
            let outcome = dispatch.await;
            ended.store(true, Ordering::Release);
            if let Err(error) = outcome {
                debug!(error = %with_sources(&error), "connection ended");
            }
        });
        Ok(Connected { client: new.client, peer, closed })
    }
}

impl Link {
    fn new(addr: &str) -> Arc<Link> {
        Arc::new(Link { addr: addr.to_owned(), open: tokio::sync::Mutex::default() })
    }
}

/// The way of one call from address to address. Plain: time and addresses are arguments.
struct Route {
    what: &'static str,
    changes: bool,
    end: Instant,
    limit: Duration,
    attempt: Duration,
    /// Tried since the last pause.
    round: BTreeSet<String>,
    /// The last word of each address.
    notes: BTreeMap<String, Fault>,
    pauses: u32,
    unsure: bool,
}

impl Route {
    fn new(what: &'static str, changes: bool, end: Instant) -> Route {
        let limit = end.saturating_duration_since(Instant::now());
        let (round, notes) = (BTreeSet::new(), BTreeMap::new());
        Route { what, changes, end, limit, attempt: ATTEMPT_MIN, round, notes, pauses: 0, unsure: false }
    }

    /// When the next attempt is over.
    fn attempt_end(&mut self) -> Instant {
        let end = (Instant::now() + self.attempt).min(self.end);
        self.attempt = (self.attempt * 2).min(self.limit);
        end
    }

    /// Notes a miss. An error if there is no sense in going on.
    fn missed(&mut self, addr: &str, fault: &Fault, known: usize) -> Result<(), Fault> {
        self.round.insert(addr.to_owned());
        self.notes.insert(addr.to_owned(), fault.clone());
        let all_refuse = self.notes.values().all(|note| note.kind == Kind::Refused);
        if Instant::now() >= self.end || (all_refuse && self.notes.len() >= known) {
            return Err(self.give_up());
        }
        Ok(())
    }

    /// A server's answer that ends the call.
    fn last_word(&self, fault: Fault) -> Fault {
        match fault.kind {
            Kind::NoSession if self.unsure && self.changes => {
                let fault = fault.context(format_args!("{}: an earlier copy may have been carried out", self.what));
                Fault { kind: Kind::Unsure, ..fault }
            }
            _ => fault,
        }
    }

    fn give_up(&self) -> Fault {
        let notes: Vec<String> = self.notes.iter().map(|(addr, fault)| note(addr, &fault.message)).collect();
        let tried = notes.join("; ");
        if self.notes.values().all(|note| note.kind == Kind::Refused) {
            return Fault::new(Kind::Refused, format!("{}: {tried}", self.what));
        }
        let kind = if self.unsure && self.changes { Kind::Unsure } else { Kind::Unavailable };
        // A leader that could not do it yet did answer.
        let is_put_off = self.notes.values().any(|note| note.kind == Kind::Busy);
        let how = if is_put_off { "put off, and not done within" } else { "no metaserver answered within" };
        Fault::new(kind, format!("{}: {how} {:.1?}: {tried}", self.what, self.limit))
    }
}

/// The address in front, unless the message names it already.
fn note(addr: &str, message: &str) -> String {
    if message.starts_with(addr) { message.to_owned() } else { format!("{addr}: {message}") }
}

#[cfg(test)]
mod tests;
