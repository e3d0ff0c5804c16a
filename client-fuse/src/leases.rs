//! What this client answers from memory: attributes of inodes and names in directories, under leases
//! ([`common::proto::lease`] has the rules that make it sound).
//!
//! Leases come with the answers of questions and changes; a directory in which names were asked for [`LOOKS`] times is
//! leased whole, with all its names and what they lead to.
//!
//! Invariants, kept under one lock:
//! 1. What is in `known` is leased by the leader of `term`, and good until `good_until` on [`World::uptime`]'s clock. What has
//!    run out is forgotten before anything is renewed or added: the leader does not recall what it takes for run out.
//! 2. The leader does not recall what the session itself changes. So a change of this session is in `changing` and
//!    `changing_names` from before it is sent until it is known here, and neither is answered from memory meanwhile; where
//!    two of them overlap it is not known which came last, and what they change is asked for again; and an inode with a
//!    change of unknown outcome is not leased again until none is left: that change may still come.
//! 3. An answer that was asked for before a recall or a change of an inode is not kept for that inode (`touched`).
//! 4. What was forgotten is told to the kernel ([`Leases::on_forget`]) before the leader hears of it.

mod inside;
#[cfg(test)]
mod tests;

use crate::core::Core;
use crate::session::Session;
use common::fault::{Fault, Kind};
use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::lease::{Grants, LeaseAsk, LeasedListing, RecallCall, Recalls, Touched};
use common::proto::meta::{Answer, Attr, Cred, Op, Outcome, Query, Submitted};
use inside::{Inside, Own};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Names asked for in a directory before it is leased whole.
const LOOKS: u32 = 2;
/// How long one call may take. Shorter than a lease: what is not answered by then is of no use.
const CALL_LIMIT: Duration = Duration::from_millis(900);
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

    /// True if nobody else changes the inode now: what this session changed of a file's contents is all that changed.
    pub(crate) fn holds(&self, ino: InodeId, uptime: Duration) -> bool {
        self.inside().holds(ino, uptime)
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
        let own = inside.begin(Touched::by(op), matches!(op, Op::Commit(_)));
        let mark = inside.ask();
        drop(inside);
        Change { asking: Asking { leases: self.clone(), mark, sent }, own, known: false }
    }

    fn found(&self, asking: &Asking, dir: InodeId, name: &Name, answer: Result<&Answer, &Fault>) {
        let leads = match answer {
            Ok(Answer::Attr(attr)) => Some(attr.ino),
            Err(fault) if fault.kind == Kind::NotFound => None,
            _ => return,
        };
        self.inside().found(dir, name, asking.mark, leads);
    }

    /// The next call, if anything is held or to be told; and what the kernel is to forget first.
    fn next_call(&self, session: &Session, open: BTreeSet<InodeId>) -> (Option<RecallCall>, Vec<InodeId>) {
        let mut inside = self.inside();
        inside.in_session(session.id);
        if session.is_certain() {
            inside.settled(); // asked under the lock: what is uncertain was counted before it was noted
        }
        inside.next_call(session.id, open, Instant::now())
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
        inside.changed(op, &self.own, &applied.outcome);
        if heard {
            inside.learn_own(self.asking.mark, &self.own, &applied.outcome.attrs(), grants);
        }
        if let (Op::Create { .. } | Op::CreateUnmasked { .. }, Outcome::Created { attr, new: true, .. }) =
            (op, &applied.outcome)
            && heard
            && grants.leases.first().is_some_and(|lease| *lease != 0)
        {
            inside.made(attr);
        }
        drop(inside);
        self.asking.leases.wake.notify_one();
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.asking.leases.inside().end(&self.own, self.known);
    }
}

impl Core {
    /// A linearizable read. What it tells is learnt.
    pub(crate) async fn query(&self, cred: &Cred, query: Query, deadline: Instant) -> Result<Answer, Fault> {
        if !self.config.leases {
            return Ok(self.meta.query(cred, query, false, deadline).await?.0.answer);
        }
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
        for attr in &attrs {
            self.adopt(attr); // before it is believed
        }
        asking.answered(session, self.world.uptime(), &attrs, &answered.grants);
        Ok(answered.answer)
    }

    /// A change, which what is known follows.
    pub(crate) async fn change(&self, cred: &Cred, op: Op, deadline: Instant) -> Result<Outcome, Fault> {
        if !self.config.leases {
            return Ok(self.meta.submit(cred, op, deadline).await?.0.applied.outcome);
        }
        let change = self.leases.change(&op, self.world.uptime());
        let (result, session) = match self.meta.submit(cred, op.clone(), deadline).await {
            Ok((submitted, session)) => (Ok(submitted), session),
            Err(fault) => (Err(fault), self.meta.session().id),
        };
        if let Ok(submitted) = &result {
            submitted.applied.outcome.attrs().into_iter().for_each(|attr| self.adopt(attr));
        }
        change.done(&op, &result, session, self.world.uptime());
        result.map(|submitted| submitted.applied.outcome)
    }

    /// A name was asked for: leases the directory in the background if that is worth it.
    pub(crate) fn looked(self: &Arc<Self>, cred: &Cred, dir: InodeId) {
        if !self.config.leases || !self.leases.inside().looked(dir, Instant::now()) {
            return;
        }
        let (core, cred) = (self.clone(), cred.clone());
        self.tasks.spawn_until_stop(async move { drop(core.lease_dir(cred, dir).await) });
    }

    /// Leases a directory with all that is in it, and lists it. `None`: not to be had now.
    pub(crate) async fn listed(self: &Arc<Self>, cred: &Cred, dir: InodeId) -> Option<LeasedListing> {
        if !self.config.leases || !self.leases.inside().lists(dir, Instant::now()) {
            return None;
        }
        self.lease_dir(cred.clone(), dir).await
    }

    async fn lease_dir(&self, cred: Cred, dir: InodeId) -> Option<LeasedListing> {
        let session = self.meta.session().id;
        let asking = self.leases.asking(self.world.uptime());
        let leased = self.meta.lease(&LeaseAsk { session, cred, dir }, Instant::now() + CALL_LIMIT).await;
        if let Err(fault) = &leased {
            tracing::debug!(inode = %dir, error = %fault, "no lease");
        }
        let leased = leased.ok();
        let listing = leased.as_ref().and_then(|leased| leased.listing.clone());
        if let Some(listing) = &listing {
            let attrs = listing.entries.iter().filter_map(|entry| entry.attr.as_ref());
            std::iter::once(&listing.attr).chain(attrs).for_each(|attr| self.adopt(attr)); // before it is believed
        }
        let mut inside = self.leases.inside();
        let leased = leased.filter(|_| inside.is_of(session));
        inside.listed(dir, asking.mark, (asking.sent, self.world.uptime()), leased);
        drop(inside);
        self.leases.wake.notify_one();
        listing
    }

    /// Renews what is held, and forgets what is recalled.
    pub(crate) async fn lease_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let session = self.meta.session();
            let open = self.files().into_iter().map(|inode| inode.ino).collect();
            let (call, forgotten) = self.leases.next_call(&session, open);
            if !forgotten.is_empty() {
                let core = self.clone();
                self.world
                    .blocking(move || {
                        if let Some(tell) = core.leases.on_forget.get() {
                            tell(&forgotten);
                        }
                    })
                    .await;
            }
            let Some(call) = call else {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = self.leases.wake.notified() => continue,
                }
            };
            let sent = self.world.uptime();
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = self.meta.recalls(call.clone(), Instant::now() + CALL_LIMIT) => answer,
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
