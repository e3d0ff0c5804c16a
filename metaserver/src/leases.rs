//! Who may answer from memory: the leases of one leader. The rules are in [`common::proto::lease`].
//!
//! Decisions are made in [`Table`], which is told the time; [`Leases`] waits.
//!
//! Invariants:
//! 1. A session is in `inodes[d].holders` iff `d` is in its `Holder::inodes`.
//! 2. While `inodes[d].changing > 0` nobody becomes a holder of `d`.
//! 3. [`Leases::change`] returns when no *other* session can believe in a lease of these inodes any more.
//! 4. A name is in `names` while one change of it is under way, or may be: the next one waits.
//! 5. `inodes[d].writer` is the only one of its holders, and has a lease with [`WRITE`](common::proto::lease::WRITE) in its number; `writers` counts them.
//! 6. [`Leases::look`] returns when no *other* session can have changed these inodes without having said so.
//! 7. A batch ([`common::proto::batch`]) is let through only while nobody else can have read or changed what it touches
//!    since its session has answered for it: under write leases of this leader, which do not end meanwhile; or, under those
//!    of an earlier one, while this one lets nobody read or change anything because the session is in `unreported`, or if
//!    nobody else was let pass to what `disputed` notes.
//! 8. Nobody is let pass a session that has not told all it may have decided before it is fenced: `fencing`, a command, `passed`.

mod table;
#[cfg(test)]
mod tests;

use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::batch::Batch;
use common::proto::lease::{LEASE_WAIT, RECALLS_MAX};
use std::sync::{Arc, Mutex, MutexGuard};
use table::{Holder, Table};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Changes by no session.
pub(crate) const NOBODY: SessionId = SessionId(0);

/// See the module.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    /// Something ended that a change may wait for.
    given_up: Notify,
    /// Something is to be forgotten.
    asked: Notify,
    /// The change of some name is over.
    name_free: Notify,
}

/// A lease that was noted for an answer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Its number; 0: there is none.
    pub(crate) number: u64,
    session: SessionId,
    pub(crate) ino: InodeId,
    /// The number of the lease that the session held before.
    before: Option<u64>,
}

impl Leases {
    /// No leases; those of earlier leaders may be held by these sessions, some of which may have decided something.
    pub(crate) fn new(sessions: impl Iterator<Item = (SessionId, bool)>, now: Instant) -> Leases {
        let table = Table::new(sessions, now);
        Leases { table: Mutex::new(table), given_up: Notify::new(), asked: Notify::new(), name_free: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// The session gets a lease of the inode, asked for at `now`. `None`: not now.
    pub(crate) fn grant(&self, session: SessionId, ino: InodeId, now: Instant) -> Option<Noted> {
        self.table().grant(session, ino, now, 0, false)
    }

    /// As [`Leases::grant`], of many: with number 0 for none.
    pub(crate) fn grant_all(
        &self,
        session: SessionId,
        inodes: impl Iterator<Item = InodeId>,
        now: Instant,
    ) -> Vec<Noted> {
        let mut table = self.table();
        inodes.map(|ino| table.grant_or_none(session, ino, now, 0, false)).collect()
    }

    /// The session never learns of this lease: what it held before stands, and so does a recall of that.
    pub(crate) fn undo(&self, noted: Noted) {
        self.table().undo(noted);
        self.given_up.notify_waiters();
    }

    /// True if the session takes part: it holds something, or did lately.
    pub(crate) fn takes_part(&self, session: SessionId) -> bool {
        self.table().holders.contains_key(&session)
    }

    /// True if the session has this one and nobody has asked it to forget it.
    pub(crate) fn stands(&self, noted: Noted) -> bool {
        let (table, Noted { number, session, ino, .. }) = (self.table(), noted);
        let holds = |holder: &Holder| holder.inodes.get(&ino) == Some(&number) && !holder.recalled.contains_key(&ino);
        table.holders.get(&session).is_some_and(holds)
    }

    /// It does not want this lease any more.
    pub(crate) fn give_back(&self, session: SessionId, ino: InodeId, lease: u64) {
        let mut table = self.table();
        if table.holders.get(&session).is_some_and(|holder| holder.inodes.get(&ino) == Some(&lease)) {
            table.forgot(session, ino);
        }
        drop(table);
        self.given_up.notify_waiters();
    }

    /// The session has forgotten everything up to this recall, and all that other leaders granted.
    pub(crate) fn reported(&self, session: SessionId, forgot: u64) {
        self.table().reported(session, forgot);
        self.given_up.notify_waiters();
    }

    /// It is over: what it holds does not count.
    pub(crate) fn ended(&self, session: SessionId) {
        self.table().ended(session);
        self.given_up.notify_waiters();
    }

    /// What the session is to forget, oldest first, and the number of the last one.
    pub(crate) fn recalls(&self, session: SessionId) -> (u64, Vec<InodeId>) {
        let table = self.table();
        let Some(holder) = table.holders.get(&session) else { return (0, Vec::new()) };
        let some: Vec<(u64, InodeId)> = holder.recalls.iter().take(RECALLS_MAX).map(|(at, ino)| (*at, *ino)).collect();
        (some.last().map_or(0, |(number, _)| *number), some.into_iter().map(|(_, ino)| ino).collect())
    }

    /// Waits until there may be something to forget.
    pub(crate) async fn wait_for_recalls(&self, session: SessionId) {
        loop {
            let asked = self.asked.notified();
            tokio::pin!(asked);
            asked.as_mut().enable();
            if self.recalls(session).0 > 0 {
                return;
            }
            asked.await;
        }
    }

    /// Its leases are good from `now` on: when it said so it had forgotten everything it was to forget. False: they are not, as
    /// others were waiting for it for too long.
    pub(crate) fn renew(&self, session: SessionId, now: Instant) -> bool {
        let mut table = self.table();
        let is_fenced = table.fencing.contains(&session);
        if let Some(holder) = table.holders.get_mut(&session).filter(|_| !is_fenced) {
            holder.end = holder.end.max(now + LEASE_WAIT);
        }
        !is_fenced
    }

    /// Waits until no other change of these names is under way; none begins until the guard is dropped.
    pub(crate) async fn lock_names(self: &Arc<Self>, names: Vec<(InodeId, Name)>) -> LockedNames {
        loop {
            let free = self.name_free.notified();
            tokio::pin!(free);
            free.as_mut().enable();
            {
                let mut table = self.table();
                if names.iter().all(|name| !table.names.contains(name)) {
                    table.names.extend(names.iter().cloned());
                    return LockedNames { leases: self.clone(), names };
                }
            }
            free.await;
        }
    }

    /// Before something is changed of which nobody knows which inodes that will be: as [`Leases::change`] of all.
    pub(crate) async fn change_all(self: &Arc<Self>) -> ChangingAll {
        self.table().changing_all += 1;
        let changing = ChangingAll(self.clone());
        loop {
            let held: Vec<InodeId> = self.table().inodes.keys().copied().collect();
            drop(self.change(NOBODY, &held).await);
            if self.table().count == 0 {
                return changing;
            }
        }
    }

    /// These leases of the session become write leases, as far as nobody shares or wants them: their numbers from now on, 0
    /// for those that stay as they are.
    pub(crate) fn claim(&self, session: SessionId, leases: &[(InodeId, u64)], now: Instant) -> Vec<u64> {
        let mut table = self.table();
        if let Some(holder) = table.holders.get_mut(&session) {
            holder.claims = true;
        }
        leases.iter().map(|(ino, number)| table.claim(session, *ino, *number, now)).collect()
    }

    /// The session's write leases are to be given up; it gets none before it claims some again.
    pub(crate) fn recall_writes(&self, session: SessionId) {
        self.table().recall_writes(session);
        self.asked.notify_waiters();
    }

    /// No session gets write leases before it claims some again.
    pub(crate) fn no_claims(&self) {
        self.table().holders.values_mut().for_each(|holder| holder.claims = false);
    }

    /// Sessions to be fenced before others are let pass.
    pub(crate) fn unfenced(&self) -> Vec<SessionId> {
        self.table().unfenced(Instant::now())
    }

    /// They are.
    pub(crate) fn fenced(&self, sessions: &[SessionId]) {
        self.table().fenced(sessions);
        self.given_up.notify_waiters();
    }

    /// True if the session holds nothing of this leader and of none before it.
    pub(crate) fn is_idle(&self, session: SessionId) -> bool {
        self.table().holders.get(&session).is_none_or(|holder| holder.inodes.is_empty())
    }

    /// True if no other session than this one may have changed something without having said so.
    pub(crate) fn is_quiet(&self, session: SessionId) -> bool {
        self.table().is_quiet(session, Instant::now())
    }

    /// Before these inodes are read for `session`; `None`: all. Waits until no other session may have changed them without
    /// having said so, at most [`LEASE_WAIT`] and [`WRITE_WAIT`] from the last renewal of each.
    pub(crate) async fn look(&self, session: SessionId, inodes: Option<&[InodeId]>) {
        loop {
            let given_up = self.given_up.notified();
            tokio::pin!(given_up);
            given_up.as_mut().enable();
            let Some(until) = self.table().unsaid(session, inodes, Instant::now()) else { return };
            self.asked.notify_waiters();
            tokio::select! {
                biased;
                () = given_up => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Before the session takes a lock of this file: as [`Leases::look`], and nobody begins to decide about locks of it until
    /// the guard is dropped.
    pub(crate) async fn lock(self: &Arc<Self>, session: SessionId, ino: InodeId) -> Changing {
        self.table().begin(&[ino]);
        let changing = Changing { leases: self.clone(), inodes: vec![ino] };
        self.look(session, Some(&[ino])).await;
        changing
    }

    /// A batch that the session made under leases of this leader (`ours`), or of an earlier one, is about to be proposed.
    /// `None`: others may have read or changed what it touches.
    pub(crate) fn batch(self: &Arc<Self>, session: SessionId, ours: bool, batch: &Batch) -> Option<Batching> {
        let made = self.table().batch(session, ours, batch)?;
        Some(Batching { leases: self.clone(), session: ours.then_some(session), made })
    }

    /// Before a change of these inodes by `session` is proposed. Waits for other holders, at most
    /// [`LEASE_WAIT`] from the last renewal of each.
    pub(crate) async fn change(self: &Arc<Self>, session: SessionId, inodes: &[InodeId]) -> Changing {
        self.table().begin(inodes);
        let changing = Changing { leases: self.clone(), inodes: inodes.to_vec() };
        loop {
            let given_up = self.given_up.notified();
            tokio::pin!(given_up);
            given_up.as_mut().enable();
            let Some(until) = self.table().in_the_way(session, inodes, Instant::now()) else { return changing };
            self.asked.notify_waiters();
            tokio::select! {
                biased;
                () = given_up => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

/// Nobody has a lease: to be kept while something unknown is changed.
#[derive(Debug)]
pub(crate) struct ChangingAll(Arc<Leases>);

impl ChangingAll {
    /// Nobody knows when it is over: this leader gives no more leases.
    pub(crate) fn without_end(self) {
        self.0.table().changing_all += 1; // one more than is given back
    }
}

impl Drop for ChangingAll {
    fn drop(&mut self) {
        self.0.table().changing_all -= 1;
    }
}

/// Names that nobody else changes now: to be kept until the change of them is applied here, or never will be.
#[derive(Debug)]
pub(crate) struct LockedNames {
    leases: Arc<Leases>,
    names: Vec<(InodeId, Name)>,
}

impl LockedNames {
    /// Nobody knows when it is over: this leader lets nobody change them any more. (Whoever changed them has lost the
    /// lead, or a majority: the next leader knows.)
    pub(crate) fn without_end(mut self) {
        self.names.clear();
    }
}

impl Drop for LockedNames {
    fn drop(&mut self) {
        let mut table = self.leases.table();
        for name in &self.names {
            table.names.remove(name);
        }
        drop(table);
        self.leases.name_free.notify_waiters();
    }
}

/// A change under way: to be kept until it is applied here, or never will be.
#[derive(Debug)]
pub(crate) struct Changing {
    leases: Arc<Leases>,
    inodes: Vec<InodeId>,
}

impl Changing {
    /// The session that makes the change, which is applied here, gets a lease of what it shows. `now`: when the change was
    /// asked for.
    pub(crate) fn grant(&self, session: SessionId, ino: InodeId, now: Instant) -> Noted {
        let own = usize::from(self.inodes.contains(&ino));
        let mut table = self.leases.table();
        let write = table.holders.get(&session).is_some_and(|holder| holder.claims);
        table.grant_or_none(session, ino, now, own, write)
    }

    /// The change is of these, too.
    pub(crate) fn join(&mut self, mut more: Changing) {
        self.inodes.append(&mut more.inodes);
    }

    /// As [`Leases::undo`].
    pub(crate) fn undo(&self, noted: Noted) {
        self.leases.undo(noted);
    }

    /// Nobody knows when it is over: these inodes are not leased again by this leader.
    pub(crate) fn without_end(mut self) {
        self.inodes.clear();
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.leases.table().end(&self.inodes);
    }
}

/// A batch under way: to be kept until it is applied here, or never will be.
#[derive(Debug)]
pub(crate) struct Batching {
    leases: Arc<Leases>,
    /// Whose it is, if it was made under leases of this leader.
    session: Option<SessionId>,
    /// The numbers of the leases of the inodes that it makes, in order.
    pub(crate) made: Vec<u64>,
}

impl Batching {
    /// Nobody knows when it is over: whoever waits for this session's leases waits for the next leader.
    pub(crate) fn without_end(self) {
        let mut table = self.leases.table();
        table.batch_begins(self.session); // one more than is given back
    }
}

impl Drop for Batching {
    fn drop(&mut self) {
        self.leases.table().batch_ended(self.session);
        self.leases.given_up.notify_waiters();
    }
}
