//! Metadata calls: the session, the slots, the cluster map, and the witness.
//!
//! A change is sent under a slot until it has an answer or its deadline passes ([`crate::session`]); the connection's
//! fail-over is [`common::rpc::Caller`]'s. An unknown session is replaced once and the call repeated in the new one, if
//! it certainly did not happen in the old one: `NoSession` says so ([`Servers::submit`]).

use crate::config::ClientConfig;
use crate::leases::Change;
use crate::link::Servers;
use crate::session::{SLOTS, Session, SlotGuard};
use crate::stats::{Counters, add};
use common::fault::{Fault, Kind};
use common::id::{InodeId, LogIndex, SessionId};
use common::layout::ClusterMap;
use common::proto::chunk::WriteAuth;
use common::proto::lease::{Claim, Claimed, LeaseAsk, Leased, RecallCall, Recalls};
use common::proto::meta::{Alive, Answered, Applied, Ask, Cred, Op, Outcome, Query, Request, Submitted};
use common::proto::opens::{OpenAsk, OpenReport};
use common::world::World;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often a session says that it lives. The metaservers wait 60 s.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Puts within this time share a witness, so that they can be committed together.
const WITNESS_REUSE: Duration = Duration::from_secs(2);
/// The pause between two tries to settle a slot.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// The metadata service as this client uses it.
pub(crate) struct Meta {
    link: Arc<dyn Servers>,
    world: World,
    label: String,
    /// Sessions say what they have open.
    attends: bool,
    op_timeout: Duration,
    counters: Arc<Counters>,
    session: Mutex<Arc<Session>>,
    map: Mutex<Arc<ClusterMap>>,
    /// The highest applied index heard of in this epoch.
    index: AtomicU64,
    witness: Mutex<(Instant, LogIndex)>,
    reopening: tokio::sync::Mutex<()>,
    fetching_map: tokio::sync::Mutex<()>,
    /// How often the metadata went back to a backup under this client.
    lives: AtomicU64,
    on_new_life: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A change that was sent and whose outcome is not known: send it again under the same slot.
pub(crate) struct Pending {
    pub(crate) guard: SlotGuard,
    pub(crate) request: Request,
    /// What keeps this client from believing what the change makes untrue.
    pub(crate) change: Option<Change>,
}

impl Meta {
    /// Fetches the map and opens a session.
    pub(crate) async fn connect(
        link: Arc<dyn Servers>,
        world: World,
        config: &ClientConfig,
        counters: Arc<Counters>,
    ) -> Result<Meta, Fault> {
        let deadline = Instant::now() + config.op_timeout;
        let map = link.cluster_map(deadline).await?;
        let (session, index) = open_session(link.as_ref(), &world, (&config.label, config.leases), 1, deadline).await?;
        info!(cluster = %map.cluster, session = ?session.id, "connected");
        Ok(Meta {
            link,
            world,
            label: config.label.clone(),
            attends: config.leases,
            op_timeout: config.op_timeout,
            counters,
            session: Mutex::new(Arc::new(session)),
            map: Mutex::new(Arc::new(map)),
            index: AtomicU64::new(index.0),
            witness: Mutex::new((Instant::now(), index)),
            reopening: tokio::sync::Mutex::new(()),
            fetching_map: tokio::sync::Mutex::new(()),
            lives: AtomicU64::new(0),
            on_new_life: OnceLock::new(),
        })
    }

    /// What to do when the metadata went back to a backup, when the session of the new life is there. Set once.
    pub(crate) fn on_new_life(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.on_new_life.set(tell);
    }

    /// How often the metadata went back to a backup under this client.
    pub(crate) fn lives(&self) -> u64 {
        self.lives.load(Ordering::Acquire)
    }

    /// When an operation that starts now has to end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.op_timeout
    }

    pub(crate) fn session(&self) -> Arc<Session> {
        self.session.lock().expect("no panic holds this lock").clone()
    }

    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.map.lock().expect("no panic holds this lock").clone()
    }

    fn note(&self, index: LogIndex) {
        self.index.fetch_max(index.0, Ordering::AcqRel);
    }

    /// What puts that start now are made under.
    pub(crate) fn attempt(&self) -> WriteAuth {
        let mut witness = self.witness.lock().expect("no panic holds this lock");
        if witness.0.elapsed() >= WITNESS_REUSE {
            *witness = (Instant::now(), LogIndex(self.index.load(Ordering::Acquire)));
        }
        self.session().auth(witness.1)
    }

    /// A new attempt with a witness not older than this call: after `TouchAgain`.
    pub(crate) async fn new_attempt(&self, deadline: Instant) -> Result<WriteAuth, Fault> {
        let session = self.session();
        let alive = self.link.keep_alive(session.id, deadline).await?;
        self.note(alive.index);
        *self.witness.lock().expect("no panic holds this lock") = (Instant::now(), alive.index);
        Ok(session.auth(alive.index))
    }

    /// Asks for a lease of a directory and what is in it.
    pub(crate) async fn lease(&self, ask: &LeaseAsk, deadline: Instant) -> Result<Leased, Fault> {
        self.link.lease(ask, deadline).await
    }

    /// Asks for leases to become write leases.
    pub(crate) async fn claim(&self, claim: &Claim, deadline: Instant) -> Result<Claimed, Fault> {
        self.link.claim(claim, deadline).await
    }

    /// Waits for what is to be forgotten.
    pub(crate) async fn recalls(&self, call: RecallCall, deadline: Instant) -> Result<Recalls, Fault> {
        self.link.recalls(call, deadline).await
    }

    /// Says what is open, and waits for the next question.
    pub(crate) async fn opens(&self, report: &OpenReport, deadline: Instant) -> Result<OpenAsk, Fault> {
        self.link.opens(report, deadline).await
    }

    /// A change, until it is done or `deadline` passes; and the session it was made in.
    pub(crate) async fn submit(&self, cred: &Cred, op: Op, deadline: Instant) -> Result<(Submitted, SessionId), Fault> {
        let mut reopened = false;
        loop {
            let session = self.session();
            let mut pending = self.prepare(&session, cred, op.clone(), deadline).await?;
            match self.send(&mut pending, deadline).await {
                Err(fault) if fault.kind == Kind::NoSession && !reopened => {
                    reopened = true;
                    self.reopen(&session, deadline).await?;
                }
                other => return other.map(|submitted| (submitted, session.id)),
            }
        }
    }

    /// Takes a slot for a change, when no earlier one of unknown outcome can be run any more.
    pub(crate) async fn prepare(
        &self,
        session: &Arc<Session>,
        cred: &Cred,
        op: Op,
        deadline: Instant,
    ) -> Result<Pending, Fault> {
        let late = |what: String| Fault::new(Kind::Unavailable, what);
        let known = timeout_at(deadline, session.known()).await;
        known.map_err(|_| late("the metaservers do not say what became of an earlier change".into()))?;
        let guard = timeout_at(deadline, session.take()).await;
        let guard =
            guard.map_err(|_| late(format!("all {SLOTS} requests under way are waiting for the metaservers")))?;
        let slot = guard.slot();
        let request = Request { session: session.id, slot: slot.number, seq: slot.seq, cred: cred.clone(), op };
        Ok(Pending { guard, request, change: None })
    }

    /// As [`Meta::prepare`], of a batch of decided changes, which has a slot of its own. It waits for no change of unknown
    /// outcome: nothing is decided of what one of those may touch, and a new leader lets those wait for the batch.
    pub(crate) async fn prepare_batch(
        &self,
        session: &Arc<Session>,
        op: Op,
        deadline: Instant,
    ) -> Result<Pending, Fault> {
        let late = |_| Fault::new(Kind::Unavailable, "the metaservers do not say what became of an earlier batch");
        let guard = timeout_at(deadline, session.take_for_batch()).await.map_err(late)?;
        let slot = guard.slot();
        let request = Request { session: session.id, slot: slot.number, seq: slot.seq, cred: Cred::default(), op };
        Ok(Pending { guard, request, change: None })
    }

    /// Sends a change (again). After an error `pending.guard.is_open()` tells whether it may still take effect.
    pub(crate) async fn send(&self, pending: &mut Pending, deadline: Instant) -> Result<Submitted, Fault> {
        if pending.guard.is_open() {
            add(&self.counters.meta_retries, 1);
        }
        assert!(!pending.guard.is_settling(), "its reply might be that of the settling operation");
        pending.guard.sending();
        let result = self.link.submit(&pending.request, deadline).await;
        match &result {
            Ok(submitted) => {
                pending.guard.answered(None);
                self.note(submitted.applied.index);
            }
            Err(fault) => pending.guard.answered(Some(fault.kind)),
        }
        result
    }

    /// Makes sure that the open change of this slot takes no effect any more. `Some`: it already had, as a commit or batch.
    pub(crate) async fn settle(&self, guard: &mut SlotGuard, deadline: Instant) -> Result<Option<Applied>, Fault> {
        if !guard.is_open() {
            return Ok(None);
        }
        guard.begin_settling();
        let slot = guard.slot();
        let op = Op::Release { ino: InodeId(0) };
        let session = guard.session().id;
        let request = Request { session, slot: slot.number, seq: slot.seq, cred: Cred::default(), op };
        match self.link.submit(&request, deadline).await {
            Ok(Submitted { applied, .. }) => {
                guard.settled(None);
                self.note(applied.index);
                let is_commit = matches!(applied.outcome, Outcome::Committed { .. } | Outcome::Batch(_));
                Ok(is_commit.then_some(applied))
            }
            Err(fault) => {
                guard.settled(Some(fault.kind));
                if guard.is_open() || fault.kind == Kind::NoSession { Err(fault) } else { Ok(None) }
            }
        }
    }

    /// A linearizable read, and the session it was made in. `lease`: with leases of what it shows.
    pub(crate) async fn query(
        &self,
        cred: &Cred,
        query: Query,
        lease: bool,
        deadline: Instant,
    ) -> Result<(Answered, SessionId), Fault> {
        let mut reopened = false;
        loop {
            let session = self.session();
            let ask = Ask { session: session.id, cred: cred.clone(), query: query.clone(), lease };
            match self.link.query(&ask, deadline).await {
                Ok(answered) => {
                    self.note(answered.index);
                    return Ok((answered, session.id));
                }
                Err(fault) if fault.kind == Kind::NoSession && !reopened => {
                    reopened = true;
                    self.reopen(&session, deadline).await?;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Replaces a session that the metaservers do not know any more. Many callers may ask; one does it.
    pub(crate) async fn reopen(&self, old: &Arc<Session>, deadline: Instant) -> Result<(), Fault> {
        let _one = timeout_at(deadline, self.reopening.lock())
            .await
            .map_err(|_| Fault::new(Kind::Unavailable, "open a new session: timed out"))?;
        if self.session().generation != old.generation {
            return Ok(());
        }
        let generation = old.generation + 1;
        let who = (self.label.as_str(), self.attends);
        let (session, index) = open_session(self.link.as_ref(), &self.world, who, generation, deadline).await?;
        warn!(session = ?session.id, before = ?old.id, "the session had ended; opened a new one, unsaved data is lost");
        add(&self.counters.sessions_reopened, 1);
        if session.epoch == old.epoch {
            self.note(index);
        } else {
            self.index.store(index.0, Ordering::Release);
            self.lives.fetch_add(1, Ordering::AcqRel);
        }
        let is_new_life = session.epoch != old.epoch;
        *self.witness.lock().expect("no panic holds this lock") = (Instant::now(), index);
        *self.session.lock().expect("no panic holds this lock") = Arc::new(session);
        self.on_new_life.get().filter(|_| is_new_life).into_iter().for_each(|tell| tell());
        Ok(())
    }

    /// Fetches the cluster map unless somebody else just replaced `seen`.
    pub(crate) async fn refresh_map(&self, seen: u64, deadline: Instant) -> Result<Arc<ClusterMap>, Fault> {
        let _one = timeout_at(deadline, self.fetching_map.lock())
            .await
            .map_err(|_| Fault::new(Kind::Unavailable, "fetch the cluster map: timed out"))?;
        if self.map().version != seen {
            return Ok(self.map());
        }
        let map = Arc::new(self.link.cluster_map(deadline).await?);
        *self.map.lock().expect("no panic holds this lock") = map.clone();
        Ok(map)
    }

    /// The last message of a session: its orphans go. Not repeated in a new one.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<(), Fault> {
        let session = self.session();
        let mut pending = self.prepare(&session, &Cred::default(), Op::CloseSession, deadline).await?;
        loop {
            match self.send(&mut pending, deadline).await {
                Ok(_) => return Ok(()),
                Err(fault) if fault.kind == Kind::NoSession => return Ok(()),
                // An earlier copy may have ended it: asked again, they say so.
                Err(fault) if fault.kind == Kind::Unsure && Instant::now() < deadline => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Keeps the session alive and the map fresh.
    pub(crate) async fn keep_alive_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(KEEP_ALIVE_EVERY) => {}
            }
            if let Err(fault) = self.keep_alive_once().await {
                warn!(error = %fault, "keep alive");
            }
        }
    }

    async fn keep_alive_once(&self) -> Result<(), Fault> {
        let deadline = self.deadline();
        let session = self.session();
        match self.link.keep_alive(session.id, deadline).await {
            Ok(Alive { index, map_version, .. }) => {
                self.note(index);
                let seen = self.map().version;
                if map_version != seen {
                    self.refresh_map(seen, deadline).await?;
                }
                Ok(())
            }
            Err(fault) if fault.kind == Kind::NoSession => self.reopen(&session, deadline).await,
            Err(fault) => Err(fault),
        }
    }

    /// Settles slots that were left open.
    pub(crate) async fn settle_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let session = self.session();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = session.unsettled_added.notified() => {}
                () = tokio::time::sleep(KEEP_ALIVE_EVERY) => {} // the session may have been replaced
            }
            while let Some(mut guard) = session.take_unsettled() {
                let settled = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    settled = self.settle(&mut guard, self.deadline()) => settled,
                };
                if settled.is_err() {
                    drop(guard);
                    tokio::time::sleep(SETTLE_PAUSE).await;
                    if self.session().generation != session.generation {
                        break;
                    }
                }
            }
        }
    }
}

async fn open_session(
    link: &dyn Servers,
    world: &World,
    (label, attends): (&str, bool),
    generation: u64,
    deadline: Instant,
) -> Result<(Session, LogIndex), Fault> {
    let id = SessionId(world.random_u128());
    let label = label.to_owned();
    let op = match attends {
        true => Op::OpenAttending { label, slots: SLOTS + 1 },
        false => Op::OpenSession { label, slots: SLOTS },
    };
    let request = Request { session: id, slot: 0, seq: 0, cred: Cred::default(), op };
    let submitted = link.submit(&request, deadline).await.map_err(|fault| fault.context("open a session"))?;
    let applied = submitted.applied;
    match applied.outcome {
        Outcome::Session { epoch, write_token, .. } => {
            Ok((Session::new(id, epoch, write_token, generation), applied.index))
        }
        other => Err(unexpected("open session", &other)),
    }
}

/// The answer to one thing is of another kind: the other side is broken.
pub(crate) fn unexpected(what: &str, got: &impl std::fmt::Debug) -> Fault {
    Fault::new(Kind::Internal, format!("{what}: the metaserver answered something else: {got:?}"))
}
