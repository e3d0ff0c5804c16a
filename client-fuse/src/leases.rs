//! What this client answers from memory: attributes of inodes and names in directories, under leases
//! ([`common::proto::lease`] has the rules that make it sound).
//!
//! Leases come with the answers of questions and changes; a directory in which names were asked for [`LOOKS`] times is
//! leased whole, with all its names and what they lead to.
//!
//! With write leases ([`common::proto::batch`]) it also decides changes ([`local`]), answers for them at once and tells them
//! later, in order ([`journal`], [`crate::deferred`]); and about locks of programs ([`locks`]).
//!
//! What is known and forgotten is in [`inside`], with whole directories in [`listing`], changes that the metaservers decide in
//! [`changing`], those that are decided here in [`own`], and the calls that renew and recall in [`calls`].
//!
//! Invariants, kept under one lock:
//! 1. What is in `known` is leased by the leader of `term`, and good until `good_until` on [`World::uptime`]'s clock. What has
//!    run out is forgotten before anything is renewed or added: the leader does not recall what it takes for run out.
//! 2. The leader does not recall what the session itself changes. So a change of this session is in `changing` and
//!    `changing_names` from before it is sent until it is known here, and neither is answered from memory meanwhile; where
//!    two of them overlap it is not known which came last, and what they change is asked for again; and an inode with a
//!    change of unknown outcome is not leased again until none is left: that change may still come. Which inode a name
//!    led to when a change was carried out is known only if its directory was leased from before it was sent.
//! 3. An answer that was asked for before a recall or a change of an inode is not kept for that inode (`touched`).
//! 4. What was forgotten is told to the kernel ([`Leases::on_forget`]) before the leader hears of it.
//! 5. What was decided under a write lease is applied, or lost, before the leader hears that the lease is given up. It is
//!    decided, what is known follows, and it is in the journal, in one step.
//! 6. A lease is given back only of what is not known, and nothing is learnt under one that is as old (`ended`): the
//!    leader keeps the newest number of a lease only, and ends the lease with it, also for what came with an older one.
//!    Nothing is learnt without one.

mod calls;
mod changing;
mod contents;
mod inside;
mod journal;
mod listing;
mod local;
mod locks;
mod next;
mod own;
#[cfg(test)]
mod tests;

use crate::chunks::Stored;
use crate::core::Core;
use crate::session::Session;
use calls::Next;
use changing::Own;
use common::fault::{Fault, Kind};
use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::batch::{Batch, BatchDone};
use common::proto::lease::{
    Claim, Claimed, Grants, IDLE_HOLD, LEASE_TERM, LeaseAsk, LeasedListing, RecallCall, Recalls, Touched,
};
use common::proto::lock::{Lock, LockAsk, LockHolder, LockKind};
use common::proto::meta::{Answer, Attr, Cred, ExtentRun, Op, Outcome, Query, Submitted};
use inside::Inside;
pub(crate) use journal::{Again, Lost};
pub(crate) use local::{Decision, Maker, is_candidate, may_open, owns};
use locks::OwnLock;
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Names asked for in a directory before it is leased whole.
const LOOKS: u32 = 2;
/// How long one call may take. Shorter than a lease: what is not answered by then is of no use.
const CALL_LIMIT: Duration = Duration::from_millis(900);
/// How long one may take while nothing is held.
const IDLE_LIMIT: Duration = IDLE_HOLD.saturating_add(Duration::from_millis(400));
/// How long telling what was decided may keep a call waiting, before it is looked again at what is to be said.
const TELL_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Told of inodes that are not to be believed any more; returns when nobody does. May block.
pub type OnForget = Box<dyn Fn(&[InodeId]) + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Leases {
    inside: Mutex<Inside>,
    /// There is something to renew or to give back.
    wake: Notify,
    /// There is something in the journal.
    decided: Notify,
    /// Some of it is over.
    told: Notify,
    losses: AtomicU64,
    on_forget: OnceLock<OnForget>,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing for certain.
    Unknown,
    /// It is not there.
    Absent,
    /// It leads to this inode.
    Leads(InodeId),
}

/// A question on its way: its answer is learnt only as far as nothing came between.
pub(crate) struct Asking {
    leases: Arc<Leases>,
    mark: u64,
    /// When it was sent.
    sent: Duration,
}

/// A change by this session. Dropped before [`Change::done`]: nobody knows how it went.
pub(crate) struct Change {
    asking: Asking,
    own: Own,
    lock: Option<OwnLock>,
    known: bool,
}

impl Leases {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic holds this lock")
    }

    /// Whom to tell of what is forgotten. Once.
    pub(crate) fn on_forget(&self, tell: OnForget) {
        let _ = self.on_forget.set(tell);
    }

    /// Attributes of an inode if they are certain at this moment (`uptime`), and for how long at most.
    pub(crate) fn attr(&self, ino: InodeId, uptime: Duration) -> Option<(Attr, Duration)> {
        self.inside().attr(ino, uptime)
    }

    /// Attributes of a file as they were before saves of this client that are under way, if nothing else changes it now.
    pub(crate) fn attr_before_saves(&self, ino: InodeId, uptime: Duration) -> Option<Attr> {
        self.inside().attr_before_saves(ino, uptime)
    }

    /// A file's attributes and all that it holds, if both are certain now.
    pub(crate) fn whole(&self, ino: InodeId, uptime: Duration) -> Option<(Attr, ExtentRun)> {
        self.inside().whole(ino, uptime)
    }

    /// A file is opened of which not all is known here: which ones will probably be opened next.
    pub(crate) fn opens_next(&self, ino: InodeId) -> Vec<InodeId> {
        self.inside().opens_next(ino)
    }

    /// What files hold that came with the answer to a question about `ino` that [`Leases::opens_next`] went along with.
    pub(crate) fn opened_next(&self, ino: InodeId, files: Vec<(Attr, ExtentRun)>) {
        self.inside().opened_next(ino, files);
    }

    /// True if nobody else changes the inode now: what this session changed of a file's contents is all that changed.
    pub(crate) fn holds(&self, ino: InodeId, uptime: Duration) -> bool {
        self.inside().holds(ino, uptime)
    }

    /// Inodes and names known, and how long all that is good from this moment (`uptime`) on.
    pub(crate) fn count(&self, uptime: Duration) -> (usize, usize, Duration) {
        self.inside().count(uptime)
    }

    /// What is certain of a name at this moment.
    pub(crate) fn entry(&self, dir: InodeId, name: &Name, uptime: Duration) -> Entry {
        self.inside().entry(dir, name, uptime)
    }

    /// Before a question is sent.
    pub(crate) fn asking(self: &Arc<Self>, sent: Duration) -> Asking {
        let mark = self.inside().ask();
        Asking { leases: self.clone(), mark, sent }
    }

    /// Before a change is sent. `commits`: it only saves what this client has written, so reads of the file go on.
    pub(crate) fn change(self: &Arc<Self>, op: &Op, sent: Duration) -> Change {
        let mut inside = self.inside();
        inside.forget_run_out(sent); // what was decided is told, or found lost, before anything else is sent
        let own = inside.begin(Touched::by(op), matches!(op, Op::Commit(_)));
        let lock = inside.begin_lock(op);
        let mark = inside.ask();
        drop(inside);
        Change { asking: Asking { leases: self.clone(), mark, sent }, own, lock, known: false }
    }

    fn found(&self, asking: &Asking, dir: InodeId, name: &Name, answer: Result<&Answer, &Fault>) {
        let leads = match answer {
            Ok(Answer::Attr(attr)) => Some(attr.ino),
            Err(fault) if fault.kind == Kind::NotFound => None,
            _ => return,
        };
        self.inside().found(dir, name, asking.mark, leads);
    }

    /// Decides a change, if that is possible here.
    pub(crate) fn decide(&self, op: &Op, maker: Maker<'_>) -> Decision {
        let decision = self.inside().decide(op, maker);
        if matches!(decision, Decision::Done(_)) && !matches!(op, Op::Lock(_)) {
            self.decided.notify_one();
        }
        decision
    }

    /// The first lock that is in the way of this one, if that is certain at this moment (`uptime`).
    pub(crate) fn lock_holder(&self, ino: InodeId, lock: Lock, uptime: Duration) -> Option<Option<LockHolder>> {
        self.inside().lock_holder(ino, lock, uptime)
    }

    /// What was decided about locks of this file is to be told.
    pub(crate) fn say_locks(&self, ino: InodeId) {
        self.inside().say_locks(ino);
    }

    /// Inode numbers were reserved.
    pub(crate) fn reserved(&self, session: SessionId, first: InodeId, count: u32) {
        self.inside().journal.reserved(session, first, count);
    }

    /// The claim for these leases.
    pub(crate) fn claim(&self, leases: Vec<(InodeId, u64)>) -> Option<Claim> {
        self.inside().claim(leases)
    }

    /// What became of it. True: the first of them is a write lease now.
    pub(crate) fn claimed(&self, claim: &Claim, answer: Option<&Claimed>) -> bool {
        self.inside().claimed(claim, answer)
    }

    /// Inodes of which something was decided here that is not known to be applied. An answer that is asked for after this may
    /// not show it.
    pub(crate) fn untold(&self) -> HashSet<InodeId> {
        self.inside().journal.untold()
    }

    /// How often decided changes were lost.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Why, the last time.
    pub(crate) fn last_loss(&self) -> Fault {
        let lost = || Fault::new(Kind::NoSession, "changes made here were lost");
        self.inside().journal.last_loss.clone().unwrap_or_else(lost)
    }

    /// Numbers for new inodes are left in this session.
    pub(crate) fn has_numbers(&self, session: SessionId) -> bool {
        self.inside().journal.has_numbers(session)
    }

    /// Waits until what was decided by now is applied, or lost: then why.
    pub(crate) async fn all_told(&self) -> Option<Fault> {
        let (number, losses) = {
            let mut inside = self.inside();
            let number = inside.journal.want();
            if inside.journal.is_over(number) {
                return None;
            }
            (number, self.losses())
        };
        self.decided.notify_one();
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if self.inside().journal.is_over(number) {
                return (self.losses() != losses).then(|| self.last_loss());
            }
            told.await;
        }
    }

    /// Waits until there is something to tell, and a reason to do it now.
    pub(crate) async fn next_batch(&self) -> (SessionId, Batch) {
        loop {
            let due = self.inside().journal.due();
            match due {
                Some(due) if due <= Instant::now() => break,
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.decided.notified() => {}
                },
                None => self.decided.notified().await,
            }
        }
        self.inside().journal.batch().expect("something is due, and only the caller takes it")
    }

    /// What became of a batch. False: the metaservers made something else of it than this client has answered.
    pub(crate) fn batch_done(&self, batch: &Batch, done: &BatchDone, grants: &Grants) -> bool {
        let agreed = self.inside().batch_done(batch, done, grants);
        self.told.notify_waiters();
        self.wake.notify_one();
        agreed
    }

    /// Changes whose chunks the metaservers want stored again.
    pub(crate) fn to_store_again(&self) -> Vec<Again> {
        self.inside().journal.to_store_again()
    }

    /// They are.
    pub(crate) fn stored_again(&self, again: &[Again], stored: &Stored) {
        self.inside().journal.stored_again(again, stored);
    }

    /// What was decided here and not told is lost.
    pub(crate) fn lose(&self, fault: Fault) -> Option<Lost> {
        let mut inside = self.inside();
        let lost = inside.lose(fault);
        // Under the lock: who finds nothing left to tell finds it counted, too.
        self.losses.fetch_add(u64::from(lost.is_some()), Ordering::AcqRel);
        drop(inside);
        self.told.notify_waiters();
        self.wake.notify_one();
        lost
    }

    /// The next call, and what comes before it.
    fn next_call(&self, session: &Session, open: BTreeSet<InodeId>) -> Next {
        let mut inside = self.inside();
        inside.in_session(session.id);
        if session.is_certain() {
            inside.settled(); // asked under the lock: what is uncertain was counted before it was noted
        }
        let next = inside.next_call(session.id, open, Instant::now());
        if !inside.journal.is_empty() {
            self.decided.notify_one(); // locks were said that stay as they are
        }
        next
    }

    /// The answer to it, sent at `sent`, which came at `uptime`.
    fn recalled(&self, call: &RecallCall, (sent, uptime): (Duration, Duration), answer: &Recalls) {
        self.inside().recalled(call, (sent, uptime), answer);
    }
}

impl Asking {
    /// The answer came at `uptime`, in this session.
    pub(crate) fn answered(self, session: SessionId, uptime: Duration, attrs: &[&Attr], grants: &Grants) {
        if grants.leases.is_empty() {
            return;
        }
        let mut inside = self.leases.inside();
        if inside.is_of(session) && inside.heard(grants.term, &grants.leases, (self.sent, uptime)) {
            inside.learn(self.mark, attrs, grants);
        }
        drop(inside);
        self.leases.wake.notify_one();
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.leases.inside().asked(self.mark);
    }
}

impl Change {
    /// It never happened, and never will.
    pub(crate) fn undone(mut self) {
        self.known = true;
    }

    /// How it went; the answer came at `uptime`, in this session.
    pub(crate) fn done(mut self, op: &Op, result: &Result<Submitted, Fault>, session: SessionId, uptime: Duration) {
        let nothing_happened = |fault: &Fault| {
            use Kind::{Denied, Exists, IsDir, NotDir, NotEmpty, NotFound, NotPermitted, PutAgain, TouchAgain};
            matches!(
                fault.kind,
                NotFound | Exists | NotEmpty | IsDir | NotDir | Denied | NotPermitted | TouchAgain | PutAgain
            )
        };
        self.known = result.as_ref().map_or_else(nothing_happened, |_| true);
        let Ok(Submitted { applied, grants }) = result else { return };
        let mut inside = self.asking.leases.inside();
        if !inside.is_of(session) {
            return; // the session of now was asked to forget what this one has changed
        }
        let heard = inside.heard(grants.term, &grants.leases, (self.asking.sent, uptime));
        inside.changed(op, &self.own, self.asking.mark, &applied.outcome);
        self.lock.iter().for_each(|own| inside.locked(own, &applied.outcome));
        if heard {
            inside.learn_own(self.asking.mark, &self.own, &applied.outcome.attrs(), grants);
        }
        if let (Op::Create { .. } | Op::CreateUnmasked { .. }, Outcome::Created { attr, new: true, .. }) =
            (op, &applied.outcome)
            && heard
            && grants.leases.first().is_some_and(|lease| *lease != 0)
        {
            inside.made(self.asking.mark, attr);
        }
        drop(inside);
        self.asking.leases.wake.notify_one();
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut inside = self.asking.leases.inside();
        inside.end(&self.own, self.known);
        self.lock.iter().for_each(|own| inside.end_lock(own, self.known));
    }
}

impl Core {
    /// A linearizable read. What it tells is learnt.
    pub(crate) async fn query(&self, cred: &Cred, query: Query, deadline: Instant) -> Result<Answer, Fault> {
        if !self.config.leases {
            return Ok(self.meta.query(cred, query, false, deadline).await?.0.answer);
        }
        let untold = self.told_what_shows(&query, deadline).await?;
        if let Some(answer) = self.ask_what_is(cred, query.clone(), &untold, deadline).await? {
            return Ok(answer);
        }
        self.told(deadline).await?; // if something is lost, the answer shows that
        let answer = self.ask_what_is(cred, query, &HashSet::new(), deadline).await?;
        answer.ok_or_else(|| Fault::new(Kind::Internal, "an answer shows what nobody has changed"))
    }

    /// `None`: the answer shows one of the `untold` inodes, of which this client knows better. Nothing of it was kept.
    async fn ask_what_is(
        &self,
        cred: &Cred,
        query: Query,
        untold: &HashSet<InodeId>,
        deadline: Instant,
    ) -> Result<Option<Answer>, Fault> {
        let asking = self.leases.asking(self.world.uptime());
        let name = match &query {
            Query::Lookup { parent, name } => Some((*parent, name.clone())),
            _ => None,
        };
        let answered = self.meta.query(cred, query, true, deadline).await;
        if let Some((dir, name)) = name {
            self.leases.found(&asking, dir, &name, answered.as_ref().map(|(answered, _)| &answered.answer));
        }
        let (answered, session) = answered?;
        let attrs = answered.answer.attrs();
        if attrs.iter().any(|attr| untold.contains(&attr.ino)) {
            return Ok(None);
        }
        for attr in &attrs {
            self.adopt(attr); // before it is believed
        }
        asking.answered(session, self.world.uptime(), &attrs, &answered.grants);
        Ok(Some(answered.answer))
    }

    /// A change, which what is known follows.
    pub(crate) async fn change(&self, cred: &Cred, op: Op, deadline: Instant) -> Result<Outcome, Fault> {
        if !self.config.leases {
            return Ok(self.meta.submit(cred, op, deadline).await?.0.applied.outcome);
        }
        match self.decide(cred, &op, deadline).await? {
            Some(outcome) => Ok(outcome),
            None => self.ask(cred, op, deadline).await,
        }
    }

    /// As [`Core::change`], but the metaservers decide.
    pub(crate) async fn ask(&self, cred: &Cred, op: Op, deadline: Instant) -> Result<Outcome, Fault> {
        if !self.config.leases {
            return Ok(self.meta.submit(cred, op, deadline).await?.0.applied.outcome);
        }
        let change = self.begin(&op, deadline).await?;
        let (result, session) = match self.meta.submit(cred, op.clone(), deadline).await {
            Ok((submitted, session)) => (Ok(submitted), session),
            Err(fault) => (Err(fault), self.meta.session().id),
        };
        if let Ok(submitted) = &result {
            self.adopt_all(&op, &submitted.applied.outcome);
        }
        change.done(&op, &result, session, self.world.uptime());
        result.map(|submitted| submitted.applied.outcome)
    }

    /// What a change that the metaservers decide begins with: what is known of what it touches is not believed from here on,
    /// nothing more is decided about it, and what was decided before is told before.
    ///
    /// # Errors
    /// Some of that is lost, or could not be told in time: the change must not be asked for.
    pub(crate) async fn begin(&self, op: &Op, deadline: Instant) -> Result<Change, Fault> {
        let losses = self.leases.losses();
        let change = self.leases.change(op, self.world.uptime());
        let told = match op {
            // That something else was lost is no reason to keep a lock.
            Op::Lock(LockAsk { lock: Lock { kind: LockKind::Unlock, .. }, .. }) | Op::HaveLocks { .. } => {
                self.told(deadline).await.map(|_| ())
            }
            _ => self.tell_all(deadline).await.and_then(|()| match self.leases.losses() == losses {
                true => Ok(()),
                false => Err(self.leases.last_loss()),
            }),
        };
        match told {
            Ok(()) => Ok(change),
            Err(fault) => {
                change.undone();
                Err(fault)
            }
        }
    }

    /// A name was asked for: leases the directory in the background if that is worth it.
    pub(crate) fn looked(self: &Arc<Self>, cred: &Cred, dir: InodeId) {
        if !self.config.leases || !self.leases.inside().looked(dir, Instant::now()) {
            return;
        }
        let (core, cred) = (self.clone(), cred.clone());
        self.tasks.spawn_until_stop(async move { drop(core.lease_dir(cred, dir, true).await) });
    }

    /// Leases a directory with all that is in it, and lists it. `None`: not to be had now.
    pub(crate) async fn listed(self: &Arc<Self>, cred: &Cred, dir: InodeId) -> Option<LeasedListing> {
        if !self.config.leases {
            return None;
        }
        let listed = {
            let mut inside = self.leases.inside();
            let kept = inside.kept_listing(cred, dir, self.world.uptime());
            if kept.is_none() && !inside.lists(dir, Instant::now()) {
                return None;
            }
            kept
        };
        match listed {
            Some(listed) => Some(listed),
            None => {
                // On a task of its own: it is noted as under way until it ends, whether or not the caller waits.
                let (core, cred) = (self.clone(), cred.clone());
                let (sender, listed) = oneshot::channel();
                self.tasks.spawn_until_stop(async move {
                    let _ = sender.send(core.lease_dir(cred, dir, false).await); // the caller gave up
                });
                listed.await.ok().flatten()
            }
        }
    }

    async fn lease_dir(&self, cred: Cred, dir: InodeId, contents: bool) -> Option<LeasedListing> {
        let mut untold = self.leases.untold();
        loop {
            let asks_all = untold.contains(&dir);
            if asks_all && self.tell_all(Instant::now() + CALL_LIMIT).await.is_err() {
                self.leases.inside().listed(dir, 0, (Duration::ZERO, Duration::ZERO), None);
                return None;
            }
            let session = self.meta.session().id;
            let asking = self.leases.asking(self.world.uptime());
            let ask = LeaseAsk { session, cred: cred.clone(), dir, contents };
            let leased = self.meta.lease(&ask, Instant::now() + CALL_LIMIT).await;
            if let Err(fault) = &leased {
                tracing::debug!(inode = %dir, error = %fault, "no lease");
            }
            let leased = leased.ok();
            let listing = leased.as_ref().and_then(|leased| leased.listing.clone());
            let shows_untold =
                |listing: &LeasedListing| listing.entries.iter().any(|entry| untold.contains(&entry.ino));
            if !asks_all && listing.as_ref().is_some_and(shows_untold) {
                untold = HashSet::from([dir]); // of what is in it this client knows better: tell that, and ask once more
                continue;
            }
            if let Some(listing) = &listing {
                let attrs = listing.entries.iter().filter_map(|entry| entry.attr.as_ref());
                std::iter::once(&listing.attr).chain(attrs).for_each(|attr| self.adopt(attr)); // before it is believed
            }
            let mut inside = self.leases.inside();
            let leased = leased.filter(|_| inside.is_of(session));
            inside.listed(dir, asking.mark, (asking.sent, self.world.uptime()), leased);
            if let Some(listing) = &listing {
                inside.keep_listing(asking.mark, cred, listing);
            }
            drop(inside);
            self.leases.wake.notify_one();
            return listing;
        }
    }

    /// Renews what is held, and forgets what is recalled.
    pub(crate) async fn lease_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let session = self.meta.session();
            let open = self.files().into_iter().map(|inode| inode.ino).collect();
            let Next { call, tell, flush, idle } = self.leases.next_call(&session, open);
            if !tell.is_empty() {
                let core = self.clone();
                let forget = move || core.leases.on_forget.get().into_iter().for_each(|forget| forget(&tell));
                // The kernel may be waiting for an answer of ours to a read of pages that it is to drop, and that answer for the
                // leader, and the leader for this call. What it was told has run out by itself when the term has passed.
                if tokio::time::timeout(LEASE_TERM, self.world.blocking(forget)).await.is_err() {
                    tracing::debug!("the kernel does not forget: it believes nothing longer than a lease lasts");
                }
            }
            if flush && self.told(Instant::now() + TELL_LIMIT).await.is_err() {
                self.leases.inside().not_called(call);
                if stop.is_cancelled() {
                    return;
                }
                continue;
            }
            self.leases.inside().calling(&call);
            let sent = self.world.uptime();
            let limit = if idle { IDLE_LIMIT } else { CALL_LIMIT };
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = self.meta.recalls(call.clone(), Instant::now() + limit) => answer,
                () = self.leases.wake.notified(), if idle => continue,
            };
            match answer {
                Ok(answer) => self.leases.recalled(&call, (sent, self.world.uptime()), &answer),
                Err(fault) => {
                    tracing::debug!(error = %fault, "leases are not renewed");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
    }
}
