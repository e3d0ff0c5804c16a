//! The control plane's requests: who may ask, check, hand on, map the error.

mod believed;
mod changes;

use crate::copies::{Copies, Made};
use crate::keep;
use crate::leading::Leading;
use crate::movers;
use crate::namespace::{self, Command, Done, Fail};
use crate::node::Shared;
use crate::orders::Orders;
use crate::raft::{Member, Message, NODE_MASK, Reply, decode, encode, node_of, within_limit};
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::hello::{Peer, Role};
use common::id::{InodeId, LogIndex, SessionId};
use common::layout::ClusterMap;
use common::perm::is_root;
use common::proto::admin::{Order, Ordered};
use common::proto::keep::{KEEP_BATCH_MAX, KeepAdmin, KeepAdminReply, KeepAnswer, KeepAsk, KeepOrders, KeepStatus};
use common::proto::lease::{Claim, Claimed, LeaseAsk, Leased, RecallCall, Recalls};
use common::proto::meta::{
    Admin, AdminReply, Alive, Answered, Ask, Cred, Heartbeat, HeartbeatReply, Meta, MetaRequest, NodeStatus, Op,
    Outcome, Register, Registered, Request, Status, Submitted,
};
use common::proto::opens::{OPENS_HOLD, OpenAsk, OpenReport};
use common::proto::squash::Squash;
use common::rpc::Handler;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tarpc::context::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bytes of proposals under way, at most; more wait to be let in.
const PROPOSAL_BYTES_MAX: u32 = 64 << 20;
/// What a proposal counts for at least, in bytes.
const PROPOSAL_BYTES_MIN: u32 = 4 << 10;
/// How long a question whether a lock is still waited for is kept.
const LOCK_HOLD: Duration = Duration::from_millis(250);
/// How often who waits for something of a leader's looks whether it still leads.
const LEADS_LOOK: Duration = Duration::from_millis(100);
/// How long a proposal may wait to be let in.
const PROPOSAL_WAIT: Duration = Duration::from_secs(5);

/// What all requests share.
pub(crate) struct Service {
    node: Shared,
    proposals: Arc<Semaphore>,
    copies: Copies,
    orders: Orders,
}

/// One request of one peer.
#[derive(Clone)]
struct Call {
    service: Arc<Service>,
    peer: Arc<Peer>,
}

/// Answers the requests of all peers.
pub(crate) fn handler(node: Shared) -> Handler {
    let pool = common::wire::Pool::new(&node.world, &node.me);
    let (copies, orders) = (Copies::new(pool.clone()), Orders::new(node.clone(), pool));
    let service =
        Arc::new(Service { node, copies, orders, proposals: Arc::new(Semaphore::new(permits(PROPOSAL_BYTES_MAX))) });
    Arc::new(move |peer, context, request| {
        let call = Call { service: service.clone(), peer };
        Box::pin(call.serve_checked(context, request))
    })
}

fn permits(bytes: u32) -> usize {
    common::units::len_usize(u64::from(bytes))
}

/// Who may ask what: the only place that says so.
fn roles(request: &MetaRequest) -> (&'static str, &'static [Role]) {
    match request {
        MetaRequest::Submit { .. } => ("submit", &[Role::Client]),
        MetaRequest::Query { .. } => ("query", &[Role::Client]),
        MetaRequest::KeepAlive { .. } => ("keep_alive", &[Role::Client]),
        MetaRequest::ClusterMap { .. } => ("cluster_map", &[Role::Client, Role::Chunkserver, Role::Admin]),
        MetaRequest::Register { .. } => ("register", &[Role::Chunkserver]),
        MetaRequest::Heartbeat { .. } => ("heartbeat", &[Role::Chunkserver]),
        // Metaservers hand a format on; orders must be signed, too, and come from administrators only.
        MetaRequest::Admin { .. } => ("admin", &[Role::Admin, Role::Metaserver]),
        MetaRequest::Raft { .. } => ("raft", &[Role::Metaserver]),
        MetaRequest::Lease { .. } => ("lease", &[Role::Client]),
        MetaRequest::Claim { .. } => ("claim", &[Role::Client]),
        MetaRequest::Recalls { .. } => ("recalls", &[Role::Client]),
        MetaRequest::Opens { .. } => ("opens", &[Role::Client]),
        MetaRequest::Keep { .. } => ("keep", &[Role::Chunkserver]),
    }
}

impl Call {
    async fn serve_checked(
        self,
        context: Context,
        request: MetaRequest,
    ) -> Result<common::proto::meta::MetaResponse, tarpc::ServerError> {
        let (what, allowed) = roles(&request);
        if let Err(fault) = self.peer.require(allowed, what) {
            return Err(tarpc::ServerError::new(std::io::ErrorKind::PermissionDenied, fault.message));
        }
        tarpc::server::Serve::serve(self.serve(), context, request).await
    }

    fn node(&self) -> &Shared {
        &self.service.node
    }

    /// This member and what it knows as the leader.
    async fn leading(&self) -> Result<(Member, Arc<Leading>), Fault> {
        let member = self.node().member()?;
        let leading = self.node().leadership.get(&member).await?;
        Ok((member, leading))
    }

    /// Waits for something of this leader's, but not beyond its term: in the next one nobody ends it.
    async fn while_leading<T>(
        &self,
        member: &Member,
        leading: &Leading,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(LEADS_LOOK) => {}
            }
            if !self.node().leadership.is_still(member, leading) {
                return Err(Fault::not_leader(member.leader()));
            }
        }
    }

    /// Room for a proposal of this many bytes.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Fault> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(PROPOSAL_BYTES_MIN, PROPOSAL_BYTES_MAX);
        let busy = || Fault::new(Kind::Busy, "too many changes are under way");
        match tokio::time::timeout(PROPOSAL_WAIT, self.service.proposals.clone().acquire_many_owned(bytes)).await {
            Ok(permit) => permit.map_err(|_| busy()),
            Err(_) => Err(busy()),
        }
    }

    /// Returns after a round to a majority that began after this call, if this node still leads in the same term.
    async fn confirmed(&self, member: &Member, leading: &Leading) -> Result<(), Fault> {
        member.reads.wait().await?;
        if self.node().leadership.is_still(member, leading) {
            return Ok(());
        }
        Err(Fault::not_leader(member.leader()))
    }

    async fn propose(&self, member: &Member, command: &Command) -> Result<Done, Fault> {
        let bytes = command.encode();
        let room = self.room(bytes.len()).await?;
        self.decide(member, bytes, room, |_| ()).await
    }

    /// Proposes a command and waits for what becomes of it; then `end` is called, whoever still waits.
    async fn decide(
        &self,
        member: &Member,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
        end: impl FnOnce(&Result<Done, Fault>) + Send + 'static,
    ) -> Result<Done, Fault> {
        let (own, (done, answer)) = (member.clone(), oneshot::channel());
        // Whether or not somebody still waits: until it is decided, openraft holds the bytes, this task their room, and
        // nobody else gets a lease of what it changes.
        self.node().tasks.spawn_until_stop(async move {
            let result = own.write(bytes).await;
            drop(room);
            end(&result);
            let _ = done.send(result); // likewise
        });
        let stopping = |_| Fault::new(Kind::Unsure, "this metaserver is stopping");
        within_limit(async { answer.await.map_err(stopping)? }).await
    }

    /// On whose behalf a request of this peer is: root may be nobody.
    fn squashed(&self, member: &Member, cred: Cred) -> Result<Cred, Fault> {
        if !Squash::concerns(&cred) {
            return Ok(cred);
        }
        let squash = namespace::squash(member.state.mounted().kv()).map_err(|error| self.store_failed(&error))?;
        let from = self.peer.addr.parse::<SocketAddr>().ok().map(|addr| addr.ip());
        Ok(match squash {
            Some(squash) => squash.apply(cred, from),
            None => cred,
        })
    }

    /// True if root of some machine is somebody else here.
    fn is_squashing(&self, member: &Member) -> Result<bool, Fault> {
        let squash = namespace::squash(member.state.mounted().kv()).map_err(|error| self.store_failed(&error))?;
        Ok(squash.is_some())
    }

    fn store_failed(&self, error: &dyn std::fmt::Display) -> Fault {
        self.node().failed(&format!("the metadata store: {error}"));
        Fault::new(Kind::Internal, format!("the metadata store failed: {error}"))
    }

    /// What a read that failed answers; a store that failed is the end of this process.
    fn fault(&self, fail: Fail) -> Fault {
        match fail {
            Fail::Fault(fault) => fault,
            Fail::Kv(error) => self.store_failed(&error),
        }
    }

    /// Waits until a lock is not waited for any more, as far as this node knows, but not for long.
    async fn wait_for_lock(&self, member: &Member, leading: &Leading, ino: InodeId, number: u64) -> Result<(), Fault> {
        let granted = async {
            loop {
                let news = leading.lock_news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                let mounted = member.state.mounted();
                if !namespace::lock_waits(mounted.kv(), ino, number).map_err(|fail| self.fault(fail))? {
                    return Ok(());
                }
                drop(mounted);
                news.await;
            }
        };
        tokio::time::timeout(LOCK_HOLD, granted).await.unwrap_or(Ok(()))
    }

    async fn status(&self) -> Result<Status, Fault> {
        let (member, leading) = self.leading().await?;
        let map = leading.map(&member)?;
        let mounted = member.state.mounted();
        let counters = namespace::counters(mounted.kv()).map_err(|error| self.store_failed(&error))?;
        let metrics = member.metrics();
        let matched = |id: u64| crate::members::matched(&metrics, member.identity.raft_id, id);
        let members = metrics.membership_config.nodes();
        let metaservers = members.map(|(id, node)| (node_of(*id), node.addr.clone(), matched(*id).map(LogIndex)));
        let (raw_capacity, raw_free) = leading.servers.space();
        let fs = common::proto::meta::FsStat {
            logical_bytes: counters.logical_bytes,
            chunk_bytes: counters.chunk_bytes,
            chunks: counters.chunks,
            inodes: counters.inodes,
            raw_capacity,
            raw_free,
            replicas: map.replicas,
        };
        Ok(Status {
            cluster: map.cluster,
            epoch: map.epoch,
            leader: self.node_status(),
            metaservers: metaservers.collect(),
            servers: leading.servers.status(&map),
            fs,
            degraded: counters.degraded,
            sessions: counters.sessions,
            min_replicas: map.min_replicas,
            tight: common::units::len_u32(self.node().space.tight()),
            refuses: self.node().space.refusal(),
        })
    }

    fn node_status(&self) -> NodeStatus {
        let node = self.node().id();
        let Some(member) = self.node().try_member() else {
            let state = if self.node().is_removed() { "removed" } else { "unformatted" }.to_string();
            return NodeStatus { node, state, term: 0, leader: None, applied: LogIndex(0), last_log: LogIndex(0) };
        };
        let metrics = member.metrics();
        let formatted = namespace::config(member.state.mounted().kv()).is_ok_and(|config| config.is_some());
        let state = match (&metrics.running_state, formatted) {
            (Err(fatal), _) => format!("stopped: {fatal}"),
            // One that was added or came back is a learner, also before it has got anything.
            (Ok(()), false) if metrics.current_term == 0 && member.identity.raft_id <= NODE_MASK => {
                "unformatted".to_string()
            }
            (Ok(()), _) => format!("{:?}", metrics.state).to_lowercase(),
        };
        NodeStatus {
            node,
            state,
            term: metrics.current_term,
            leader: metrics.current_leader.map(node_of),
            applied: LogIndex(member.state.applied_index()),
            last_log: LogIndex(metrics.last_log_index.unwrap_or(0)),
        }
    }

    async fn keep_admin(&self, ask: KeepAdmin) -> Result<KeepAdminReply, Fault> {
        let (member, leading) = self.leading().await?;
        match ask {
            KeepAdmin::Status => {
                let mounted = member.state.mounted();
                let read = || {
                    let counters = namespace::counters(mounted.kv())?;
                    Ok((counters, namespace::out(mounted.kv())?, namespace::keep_settings(mounted.kv())?))
                };
                let (counters, out, settings) =
                    read().map_err(|error: common::kv::KvError| self.store_failed(&error))?;
                Ok(KeepAdminReply::Status(KeepStatus {
                    layout: counters.layout,
                    degraded: counters.degraded,
                    out: out.into_iter().collect(),
                    reports: leading.keep.reports(),
                    settings,
                }))
            }
            KeepAdmin::Held => {
                let held = namespace::held(member.state.mounted().kv()).map_err(|error| self.store_failed(&error))?;
                Ok(KeepAdminReply::Held(held))
            }
            KeepAdmin::Gc => {
                keep::nothing_to_purge(&member).await; // files just removed are to be counted
                Ok(KeepAdminReply::Ordered(leading.keep.order_gc()))
            }
            KeepAdmin::Scrub => Ok(KeepAdminReply::Ordered(leading.keep.order_scrub())),
            KeepAdmin::Set(change) => match self.propose(&member, &Command::SetKeep(change)).await? {
                Done::KeepSet(settings) => Ok(KeepAdminReply::Set(settings)),
                other => Err(Fault::new(Kind::Internal, format!("set: answered {other:?}"))),
            },
            KeepAdmin::Explain { prefix } => {
                member.reads.wait().await?;
                let state = member.state.clone();
                let read = move || {
                    let mounted = state.mounted();
                    let view = mounted.kv().snapshot();
                    let mut all = namespace::explain(&*view, &prefix)?;
                    let ids = all.iter().map(|one| one.id).collect();
                    let mut files = match all.is_empty() {
                        true => Default::default(), // nothing refers to it: not worth reading everything
                        false => crate::fsck::ranges_of(&*view, &ids)?,
                    };
                    for one in &mut all {
                        one.files = files.remove(&one.id).unwrap_or_default();
                        one.files.truncate(namespace::EXPLAIN_MAX);
                    }
                    Ok(all)
                };
                let explained = self.node().world.blocking(read).await;
                explained.map(KeepAdminReply::Explained).map_err(|fail| self.fault(fail))
            }
        }
    }

    /// Works in a task of its own: it goes on when the caller gives up.
    async fn detached<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, answer) = oneshot::channel();
        self.node().tasks.spawn_until_stop(async move {
            let result = work.await;
            if let Err(fault) = &result {
                tracing::debug!(op = what, error = %fault, "refused");
            }
            let _ = done.send(result); // the caller gave up
        });
        answer.await.map_err(|_| Fault::new(Kind::Busy, "this metaserver is stopping"))?
    }

    async fn format(&self, request: Admin) -> Result<AdminReply, Fault> {
        let node = self.node().clone();
        let format = async move {
            let formatted = node.format(&request).await;
            formatted.inspect_err(|fault| tracing::warn!(error = %fault, "format"))
        };
        self.detached("format", format).await.map(|()| AdminReply::Formatted)
    }

    /// A session asks for something: it lives. One this leader has not heard of yet may be in the rows; that it is not
    /// counts only once a majority has said that these rows are the newest.
    async fn touch(&self, member: &Member, leading: &Leading, session: SessionId) -> Result<(), Fault> {
        if leading.sessions.touch(session) {
            return Ok(());
        }
        member.reads.wait().await?;
        let mounted = member.state.mounted();
        match namespace::session_is_open(mounted.kv(), session) {
            Ok(true) => {
                leading.sessions.opened(session);
                Ok(())
            }
            Ok(false) => Err(Fault::new(Kind::NoSession, format!("session {session} is unknown or ended"))),
            Err(error) => Err(self.store_failed(&error)),
        }
    }
}

fn too_long() -> Fault {
    Fault::new(Kind::Invalid, format!("more than {KEEP_BATCH_MAX} chunks at once"))
}

impl Meta for Call {
    async fn submit(self, _: Context, mut request: Request) -> Result<Submitted, Fault> {
        let (member, leading) = self.leading().await?;
        request.cred = self.squashed(&member, request.cred)?;
        let allowed = self.check_rights(&member, &leading, (request.session, &request.cred), &request.op);
        self.unless_answered(&member, &request, allowed)?;
        if let Op::Commit(commit) = &request.op {
            self.check_commit(&member, &leading, commit, &Made::default()).await?;
        }
        let session = request.session;
        let (opens, closes) = match &request.op {
            Op::OpenSession { .. } | Op::OpenAttending { .. } => (true, false),
            Op::CloseSession => (false, true),
            _ => (false, false),
        };
        if !opens {
            leading.keep.note_use();
            self.touch(&member, &leading, session).await?;
        }
        if opens {
            // Before it is: whatever becomes of this call, the session is watched, and ends if nobody uses it.
            leading.sessions.opened(session);
        }
        let opening = match &request.op {
            Op::Create { access, .. } | Op::CreateUnmasked { access, .. } if !is_root(&request.cred) => {
                Some((*access, request.cred.clone()))
            }
            _ => None,
        };
        let locks = match &request.op {
            Op::Lock(_) | Op::CancelLock { .. } | Op::HaveLocks { .. } | Op::CloseSession => true,
            Op::Batch(batch) => batch.changes.iter().any(|change| matches!(change.op, Op::HaveLocks { .. })),
            _ => false,
        };
        let (done, grants) = match &request.op {
            Op::Batch(_) => self.batch(&member, &leading, request).await?,
            _ => self.change(&member, &leading, request).await?,
        };
        if locks {
            leading.lock_news.notify_waiters();
        }
        match done {
            Done::Applied(applied) => {
                if closes {
                    leading.sessions.ended(session);
                    leading.leases.ended(session);
                    leading.rights.ended(session);
                }
                if let (Some((access, cred)), Outcome::Created { attr, new, .. }) = (opening, &applied.outcome) {
                    // The answer may be one of before, to a request that asked for less. It is made: whoever cannot be looked
                    // at has no right remembered, and hears of no error.
                    let allowed = || namespace::may_use(member.state.mounted().kv(), attr.ino, &cred, access);
                    if *new || allowed().is_ok_and(|may| may == Some(true)) {
                        leading.rights.note(session, attr.ino, access);
                    }
                }
                Ok(Submitted { applied, grants })
            }
            other => Err(Fault::new(Kind::Internal, format!("submit: answered {other:?}"))),
        }
    }

    async fn query(self, _: Context, ask: Ask) -> Result<Answered, Fault> {
        self.answer(ask).await
    }

    async fn keep_alive(self, _: Context, session: SessionId) -> Result<Alive, Fault> {
        let (member, leading) = self.leading().await?;
        self.touch(&member, &leading, session).await?;
        let map_version = leading.map(&member)?.version;
        Ok(Alive { index: LogIndex(member.state.applied_index()), map_version, epoch: leading.ctx.epoch })
    }

    async fn cluster_map(self, _: Context) -> Result<ClusterMap, Fault> {
        let (member, leading) = self.leading().await?;
        Ok(ClusterMap::clone(&*leading.map(&member)?))
    }

    async fn register(self, _: Context, register: Register) -> Result<Registered, Fault> {
        let (member, leading) = self.leading().await?;
        let first_beat = |server| Heartbeat {
            server,
            instance: register.instance,
            capacity: register.capacity,
            free: register.free,
            chunks: 0,
            chunk_bytes: 0,
            corrupt: 0,
            fenced_dirs: 0,
            full_dirs: 0,
            map_version: 0,
            segment_bytes: 0,
        };
        let (server, new) = match self.propose(&member, &Command::Register(register.clone())).await? {
            Done::Registered { server, new } => (server, new),
            other => return Err(Fault::new(Kind::Internal, format!("register: answered {other:?}"))),
        };
        tracing::info!(%server, new, peer = %self.peer, "a chunkserver registered");
        leading.servers.registered(first_beat(server));
        leading.servers.rows_changed(new);
        let map = leading.map(&member)?;
        Ok(Registered { server, secret: leading.ctx.secret, map: ClusterMap::clone(&*map) })
    }

    async fn heartbeat(self, _: Context, heartbeat: Heartbeat) -> Result<HeartbeatReply, Fault> {
        let (member, leading) = self.leading().await?;
        let (server, has) = (heartbeat.server, heartbeat.map_version);
        if !leading.map(&member)?.servers.contains_key(&server) {
            return Err(Fault::new(Kind::NotFound, format!("chunkserver {server} is not registered")));
        }
        leading.servers.heartbeat(heartbeat);
        let map = leading.map(&member)?;
        Ok(HeartbeatReply { map: (map.version != has).then(|| ClusterMap::clone(&*map)) })
    }

    async fn admin(self, _: Context, request: Admin) -> Result<AdminReply, Fault> {
        match request {
            Admin::Format { .. } => self.format(request).await,
            Admin::Status => Ok(AdminReply::Status(Box::new(self.status().await?))),
            Admin::NodeStatus => Ok(AdminReply::Node(self.node_status())),
            Admin::Members => {
                let (member, _) = self.leading().await?;
                Ok(AdminReply::Members(crate::members::members(&member.metrics())))
            }
            Admin::Keep(ask @ (KeepAdmin::Status | KeepAdmin::Held)) => {
                self.keep_admin(ask).await.map(AdminReply::Keep)
            }
            Admin::Keep(_) if self.node().admin_key.is_some() => {
                Err(Fault::new(Kind::Refused, "this needs the administrator's key: it must come as a signed order"))
            }
            Admin::Keep(ask) => self.keep_admin(ask).await.map(AdminReply::Keep),
            Admin::Trash => {
                let (member, _) = self.leading().await?;
                let now = namespace::trash_now(member.state.mounted().kv());
                now.map(AdminReply::Trash).map_err(|error| self.store_failed(&error))
            }
            Admin::Rebalance(ask) => {
                let (member, leading) = self.leading().await?;
                movers::answer(self.node(), &member, &leading, ask).await.map(AdminReply::Rebalance)
            }
            Admin::Order(signed) => {
                self.service.orders.check(&self.peer, &signed)?;
                let done = match signed.order {
                    Order::Keep(ask) => {
                        let (member, _) = self.leading().await?;
                        self.service.orders.note_keep(&member, signed.by, &ask).await?;
                        Ordered::Keep(self.keep_admin(ask).await?)
                    }
                    Order::Restore(step) => {
                        let node = self.node().clone();
                        self.detached("restore", async move { node.restore(*step).await }).await?;
                        Ordered::Done
                    }
                    _ => {
                        let (member, leading) = self.leading().await?;
                        self.service.orders.carry_out(member, leading, *signed).await?
                    }
                };
                Ok(AdminReply::Ordered(Box::new(done)))
            }
        }
    }

    async fn lease(self, _: Context, ask: LeaseAsk) -> Result<Leased, Fault> {
        self.lease_dir(ask).await
    }

    async fn claim(self, _: Context, claim: Claim) -> Result<Claimed, Fault> {
        self.claimed(claim).await
    }

    async fn recalls(self, _: Context, call: RecallCall) -> Result<Recalls, Fault> {
        self.told(call).await
    }

    async fn keep(self, _: Context, ask: KeepAsk) -> Result<KeepAnswer, Fault> {
        let (member, leading) = self.leading().await?;
        let is_long = |len: usize| len > common::units::len_usize(KEEP_BATCH_MAX.into());
        match ask {
            KeepAsk::Expected { server, layout, from, limit, degraded } => {
                let page = namespace::Page { server, layout, from, limit, degraded };
                keep::expected(&self.node().world, &member, page).await
            }
            KeepAsk::Holds { chunks, .. } if is_long(chunks.len()) => Err(too_long()),
            KeepAsk::Holds { server, epoch, chunks } => {
                self.propose(&member, &Command::Holds { server, epoch, chunks }).await.map(|_| KeepAnswer::Noted)
            }
            KeepAsk::Condemn { asks, .. } if is_long(asks.len()) => Err(too_long()),
            KeepAsk::Condemn { epoch, asks, .. } => keep::condemn(&self.node().world, &member, epoch, asks).await,
            KeepAsk::Report { server, report } => {
                let mounted = member.state.mounted();
                let read = namespace::counters(mounted.kv()).and_then(|counters| {
                    let mut settings = namespace::keep_settings(mounted.kv())?;
                    settings.delete_paused |= namespace::held(mounted.kv())?.is_some();
                    Ok((counters.degraded, settings))
                });
                let (degraded, settings) = read.map_err(|error| self.store_failed(&error))?;
                let (orders, settings) = (leading.keep.heard(server, report), leading.keep.settings_now(settings));
                Ok(KeepAnswer::Orders(KeepOrders { degraded, settings, ..orders }))
            }
            KeepAsk::Moves(report) => movers::heard(&member, &leading, report).map(KeepAnswer::Moves),
        }
    }

    async fn opens(self, _: Context, report: OpenReport) -> Result<OpenAsk, Fault> {
        let (member, leading) = self.leading().await?;
        self.touch(&member, &leading, report.session).await?;
        if report.term == leading.term {
            leading.opens.report(report.session, report.round, &report.open);
        }
        let asked = tokio::time::timeout(OPENS_HOLD, leading.opens.wait_for_round(report.session)).await;
        Ok(OpenAsk { term: leading.term, round: asked.unwrap_or(0) })
    }

    async fn raft(self, _: Context, message: Bytes) -> Result<Bytes, Fault> {
        let reply = match decode(&message)? {
            Message::Member(to, message) => self.node().member()?.answer(to, message).await?,
            Message::Prepare { cluster, node } => self.node().prepare(cluster, node).await?,
            Message::Return { node, addr } => self.node().take_back(node, &addr).await?,
            Message::Enter { raft_id, addr } => {
                let node = self.node().clone();
                self.detached("enter", async move { node.let_in(raft_id, &addr).await }).await?
            }
            Message::Room => Reply::Room(self.node().space.has_room()),
            Message::Join { cluster, epoch, raft_id } => {
                let node = self.node().clone();
                self.detached("join", async move { node.be_learner(cluster, epoch, raft_id).await }).await?
            }
            Message::Standing { raft_id } => self.node().standing(raft_id).await?,
        };
        encode::<Reply>(&reply)
    }
}
