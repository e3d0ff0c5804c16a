//! Changes that are decided here and told later: when that is possible, what has to come first, and the telling.
//!
//! Count of one create under write leases: no round trip, no sync, no wake-up of another task but the kernel's; it goes
//! with up to a thousand others in one Raft command, at most 200 ms later.

use crate::chunks::Outgoing;
use crate::core::{Core, Removal};
use crate::leases::{Again, Decision, Entry, Maker, is_candidate};
use crate::stats::add;
use common::fault::{Fault, Kind};
use common::id::{InodeId, SessionId};
use common::proto::batch::{Batch, BatchDone};
use common::proto::lease::Grants;
use common::proto::meta::{Cred, Op, Outcome, Query, RenameMode};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Steps (a claim, numbers, room) before a change is asked for instead.
const STEPS_MAX: u32 = 4;
/// Inode numbers reserved at once.
const RESERVE: u32 = 8192;
/// The pause before a batch is sent again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a batch is sent to whoever leads before that begins anew: attempts get longer and longer, and a new leader waits for
/// only so long.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// How long chunks may take to be stored again, before it is looked whether a server is to be gone round: less than others wait
/// for what was decided here. Twice as long in each round of refusals, and so are pauses of [`PAUSE`], up to so many times.
const STORE_LIMIT: Duration = Duration::from_secs(2);
const DOUBLINGS_MAX: u32 = 4;
/// Rounds in a row that fail for a reason that may stay (full servers), at most: about a minute. Then all is lost.
const LASTING_MAX: u32 = 60;
/// How long a claim may take: what it is for can be asked for instead.
const CLAIM_LIMIT: Duration = Duration::from_millis(900);

/// How long nothing of what was decided here has been taken.
#[derive(Debug, Default)]
struct Trouble {
    /// Refusals in a row.
    rounds: u32,
    /// Failures in a row, now, that may stay.
    lasting: u32,
}

impl Core {
    /// Decides a change here. `None`: the metaservers decide.
    pub(crate) async fn decide(&self, cred: &Cred, op: &Op, deadline: Instant) -> Result<Option<Outcome>, Fault> {
        self.decide_with(cred, op, &[], deadline).await
    }

    /// As [`Core::decide`], with the bytes of the chunks that the change refers to.
    pub(crate) async fn decide_with(
        &self,
        cred: &Cred,
        op: &Op,
        chunks: &[Outgoing],
        deadline: Instant,
    ) -> Result<Option<Outcome>, Fault> {
        if !self.config.write_leases || !is_candidate(op) {
            return Ok(None);
        }
        for _ in 0..STEPS_MAX {
            let removal = self.closed(op);
            let closed = removal.as_ref().map(|(ino, _)| *ino);
            let maker = Maker { cred, uptime: self.world.uptime(), now: self.world.now(), closed, chunks };
            match self.leases.decide(op, maker) {
                Decision::Done(outcome) => {
                    add(&self.counters.decided, 1);
                    self.adopt_all(op, &outcome);
                    return Ok(Some(*outcome));
                }
                Decision::Ask => return Ok(None),
                Decision::Claim(leases) => {
                    drop(removal);
                    if !self.claim(leases).await {
                        return Ok(None);
                    }
                }
                Decision::Reserve => {
                    drop(removal);
                    // Refused where the metadata cannot grow: what frees space is asked for.
                    if let Err(fault) = self.reserve_numbers(deadline).await {
                        debug!(error = %fault, "no inode numbers");
                        return Ok(None);
                    }
                }
                Decision::Full => {
                    drop(removal);
                    self.tell_all(deadline).await?;
                }
            }
        }
        Ok(None)
    }

    /// Brings open files up to date with an outcome. Who committed does so himself: he knows what became of the extents.
    pub(crate) fn adopt_all(&self, op: &Op, outcome: &Outcome) {
        if !matches!(op, Op::Commit(_)) {
            outcome.attrs().into_iter().for_each(|attr| self.adopt(attr));
        }
    }

    /// The inode that may lose a name, if it is certainly closed here, and what keeps it so.
    fn closed(&self, op: &Op) -> Option<(InodeId, Removal<'_>)> {
        let (dir, name) = match op {
            Op::Unlink { parent, name, .. } => (*parent, name),
            Op::Rename { to, to_name, mode: RenameMode::Replace, .. } => (*to, to_name),
            _ => return None,
        };
        let Entry::Leads(ino) = self.leases.entry(dir, name, self.world.uptime()) else { return None };
        Some((ino, self.removal_of(ino)?))
    }

    async fn claim(&self, leases: Vec<(InodeId, u64)>) -> bool {
        let Some(claim) = self.leases.claim(leases) else { return false };
        let answer = self.meta.claim(&claim, Instant::now() + CLAIM_LIMIT).await;
        if let Err(fault) = &answer {
            debug!(error = %fault, "no write lease");
        }
        self.leases.claimed(&claim, answer.as_ref().ok())
    }

    async fn reserve_numbers(&self, deadline: Instant) -> Result<(), Fault> {
        let late = |_| Fault::new(Kind::Unavailable, "reserve inode numbers: timed out");
        let _one = timeout_at(deadline, self.reserving.lock()).await.map_err(late)?;
        if self.leases.has_numbers(self.meta.session().id) {
            return Ok(()); // somebody else has just reserved some
        }
        let (submitted, session) = self.meta.submit(&Cred::default(), Op::Reserve { count: RESERVE }, deadline).await?;
        match submitted.applied.outcome {
            Outcome::Reserved(first) => {
                self.leases.reserved(session, first, RESERVE);
                Ok(())
            }
            other => Err(crate::meta::unexpected("reserve", &other)),
        }
    }

    /// Waits until all that was decided here by now is applied: durable on a majority of metaservers.
    ///
    /// # Errors
    /// `Unavailable` if that takes longer; why some of it is lost: what builds on it must not be done.
    pub(crate) async fn tell_all(&self, deadline: Instant) -> Result<(), Fault> {
        self.told(deadline).await?.map_or(Ok(()), Err)
    }

    /// As [`Core::tell_all`], but a loss is no error.
    pub(crate) async fn told(&self, deadline: Instant) -> Result<Option<Fault>, Fault> {
        let late = |_| Fault::new(Kind::Unavailable, "changes made here could not be told to the metaservers in time");
        timeout_at(deadline, self.leases.all_told()).await.map_err(late)
    }

    /// A loss that this one was not `told` of yet.
    pub(crate) fn told_losses(&self, told: &AtomicU64) -> Result<(), Fault> {
        let losses = self.leases.losses();
        if told.swap(losses, Ordering::AcqRel) >= losses {
            return Ok(());
        }
        self.told_losses.fetch_max(losses, Ordering::AcqRel);
        Err(self.leases.last_loss())
    }

    /// Waits until the metaservers know of what was decided here about what this question is about. What else they do not
    /// know of: an answer that shows one of these inodes is of no use.
    pub(crate) async fn told_what_shows(&self, query: &Query, deadline: Instant) -> Result<HashSet<InodeId>, Fault> {
        if let Query::LockHolder { ino, .. } = query {
            self.leases.say_locks(*ino);
        }
        let ino = match query {
            Query::GetAttr { ino }
            | Query::ReadLink { ino }
            | Query::Open { ino, .. }
            | Query::Extents { ino, .. }
            | Query::GetXattr { ino, .. }
            | Query::ListXattr { ino }
            | Query::LockHolder { ino, .. }
            | Query::LockWaits { ino, .. }
            | Query::Lookup { parent: ino, .. }
            | Query::ReadDir { ino, .. } => Some(*ino),
            Query::StatFs => return Ok(HashSet::new()),
            Query::Walk { .. } | Query::Trash(_) => None,
        };
        let untold = self.leases.untold();
        if ino.map_or(untold.is_empty(), |ino| !untold.contains(&ino)) {
            return Ok(untold);
        }
        self.told(deadline).await?; // if it is lost, the answer shows that
        Ok(HashSet::new())
    }

    /// Tells what was decided, batch after batch.
    pub(crate) async fn tell_loop(self: Arc<Self>, stop: CancellationToken) {
        let mut trouble = Trouble::default();
        loop {
            let (session, batch) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                batch = self.leases.next_batch() => batch,
            };
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                told = self.tell(session, &batch) => told,
            };
            let refused = match told {
                Ok((done, grants)) => {
                    if !self.leases.batch_done(&batch, &done, &grants) {
                        add(&self.counters.misjudged, 1);
                        error!(changes = batch.changes.len(), "changes turned out otherwise than was answered for");
                    }
                    if done.done > 0 {
                        trouble = Trouble::default();
                    }
                    done.fault
                }
                Err(fault) => Some(fault),
            };
            let Some(fault) = refused else { continue };
            let lost = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                mended = self.mend(session, fault, &mut trouble) => mended.err(),
            };
            if let Some(fault) = lost {
                self.lose(fault);
                trouble = Trouble::default();
            }
        }
    }

    /// What was refused is to be told again, after chunks were stored once more if the metaservers ask for that. Where that fails
    /// for now, they are asked again all the same: they may have let others pass meanwhile.
    ///
    /// # Errors
    /// All is lost: why.
    async fn mend(&self, made_in: SessionId, refused: Fault, trouble: &mut Trouble) -> Result<(), Fault> {
        trouble.rounds += 1;
        let times = 1 << trouble.rounds.min(DOUBLINGS_MAX + 1) >> 1;
        let kind = refused.kind;
        let result = match kind {
            Kind::TouchAgain | Kind::PutAgain => {
                let limit = Instant::now() + STORE_LIMIT * times;
                self.store_decided(made_in, refused, limit.min(self.meta.deadline())).await
            }
            _ => Err(refused),
        };
        let Err(fault) = result else {
            trouble.lasting = 0;
            if trouble.rounds > 1 {
                tokio::time::sleep(PAUSE * times).await; // what was stored was not enough the last time
            }
            return Ok(());
        };
        trouble.lasting = if fault.kind.is_transient() { 0 } else { trouble.lasting + 1 };
        // The leader's disk, not the change: the next leader takes it. Or servers that are full, or do not know the session yet.
        let may_go_by = fault.kind == Kind::Internal || (kind != fault.kind && fault.kind != Kind::NoSession);
        if !may_go_by || trouble.lasting > LASTING_MAX {
            return Err(fault);
        }
        warn!(error = %fault, "changes made here are not told yet");
        tokio::time::sleep(PAUSE * times).await;
        Ok(())
    }

    /// Stores chunks of what was decided here once more.
    ///
    /// # Errors
    /// The first of it has none: why it was `refused`. `NoSession`: it has ended. Those of [`Chunks::store`].
    ///
    /// [`Chunks::store`]: crate::chunks::Chunks::store
    async fn store_decided(&self, made_in: SessionId, refused: Fault, deadline: Instant) -> Result<(), Fault> {
        add(&self.counters.commit_retries, 1);
        let again = self.leases.to_store_again();
        if again.is_empty() {
            return Err(refused);
        }
        let session = self.meta.session();
        if session.id != made_in {
            return Err(Fault::new(Kind::NoSession, "the session that made them has ended"));
        }
        let stored = self.store_each(&again, refused.kind == Kind::PutAgain, deadline).await;
        if stored.as_ref().is_err_and(|fault| fault.kind == Kind::NoSession) {
            let _ = self.meta.reopen(&session, deadline).await; // the next request says why not
        }
        stored
    }

    async fn store_each(&self, again: &[Again], insist: bool, deadline: Instant) -> Result<(), Fault> {
        let auth = self.meta.new_attempt(deadline).await?;
        self.meta.refresh_map(self.meta.map().version, deadline).await?;
        let replicas = again.iter().map(|change| change.replicas).max().unwrap_or(0);
        let mut chunks: Vec<Outgoing> = Vec::new();
        for out in again.iter().flat_map(|change| &change.chunks) {
            if chunks.iter().all(|there| there.chunk.id != out.chunk.id) {
                chunks.push(out.clone());
            }
        }
        let stored = self.chunks.store(auth, replicas, &chunks, insist, deadline).await?;
        self.leases.stored_again(again, &stored);
        Ok(())
    }

    /// Sends a batch until it is known what became of it.
    async fn tell(&self, made_in: SessionId, batch: &Batch) -> Result<(BatchDone, Grants), Fault> {
        let ended = || Fault::new(Kind::NoSession, "the session that made them has ended");
        let session = Some(self.meta.session()).filter(|session| session.id == made_in).ok_or_else(ended)?;
        let mut pending = loop {
            let op = Op::Batch(batch.clone());
            match self.meta.prepare_batch(&session, op, self.meta.deadline()).await {
                Ok(pending) => break pending,
                Err(_) if self.meta.session().id != made_in => return Err(ended()),
                Err(fault) => warn!(error = %fault, "changes made here are not told yet"),
            }
        };
        let mut refused = None;
        loop {
            let deadline = Instant::now() + SEND_LIMIT;
            let answer = match refused.take() {
                None => self.meta.send(&mut pending, deadline).await,
                Some(fault) => Err(fault), // it is being settled: that it was sent again could bring back something else
            };
            match answer {
                Ok(submitted) => return batch_done(submitted.applied.outcome, submitted.grants),
                Err(fault) if fault.kind == Kind::NoSession => {
                    let _ = self.meta.reopen(&session, deadline).await; // the next request says why not
                    return Err(fault);
                }
                Err(fault) if fault.kind.is_transient() => debug!(error = %fault, "changes made here are not told yet"),
                // Refused; but an earlier copy may have been taken.
                Err(fault) => match self.meta.settle(&mut pending.guard, deadline).await {
                    Ok(Some(applied)) => return batch_done(applied.outcome, Grants::default()),
                    Ok(None) => return Err(fault),
                    Err(unsettled) if unsettled.kind == Kind::NoSession => return Err(unsettled),
                    Err(_) => refused = Some(fault),
                },
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What was decided and not told is lost: whoever has one of the files open hears of it, and everybody who syncs.
    fn lose(self: &Arc<Self>, fault: Fault) {
        let text = format!("changes made here were lost: {}", fault.message);
        let Some(lost) = self.leases.lose(Fault::new(Kind::NoSession, text)) else { return };
        error!(changes = lost.count, inodes = ?lost.inodes.iter().take(16).collect::<Vec<_>>(), error = %fault,
            "changes that were answered for are lost");
        self.drop_lost_locks(lost.locks);
        for inode in lost.inodes.iter().filter_map(|ino| self.find(*ino)) {
            let mut state = inode.lock();
            state.lost_before = state.opened + 1;
            state.lost_version(); // what was answered for is not what the metaservers have
            state.fail(lost.fault.clone());
            drop(state);
            inode.changed.notify_waiters();
        }
    }
}

fn batch_done(outcome: Outcome, grants: Grants) -> Result<(BatchDone, Grants), Fault> {
    match outcome {
        Outcome::Batch(done) => Ok((done, grants)),
        other => Err(crate::meta::unexpected("batch", &other)),
    }
}
