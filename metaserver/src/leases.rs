//! Who may answer from memory: the leases of one leader. The rules are in [`common::proto::lease`].
//!
//! Decisions are made in [`Table`], which is told the time; [`Leases`] waits.
//!
//! Invariants:
//! 1. A session is in `inodes[d].holders` iff `d` is in its `Holder::inodes`.
//! 2. While `inodes[d].changing > 0` nobody becomes a holder of `d`.
//! 3. [`Leases::change`] returns when no *other* session can believe in a lease of these inodes any more.
//! 4. A name is in `names` while one change of it is under way, or may be: the next one waits.

use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::lease::{LEASE_WAIT, RECALLS_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Sessions that hold one inode, at most: a change has to wait for each of them.
const HOLDERS_MAX: usize = 64;
/// Inodes that one session holds, at most.
const HELD_MAX: usize = 64 << 10;
/// Changes by no session.
const NOBODY: SessionId = SessionId(0);
/// Leases of all sessions together, at most: about 200 bytes each.
const LEASES_MAX: usize = 1 << 20;

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

#[derive(Debug)]
struct Table {
    inodes: BTreeMap<InodeId, Place>,
    holders: BTreeMap<SessionId, Holder>,
    /// Names with a change under way.
    names: BTreeSet<(InodeId, Name)>,
    /// Changes under way that may be of anything.
    changing_all: usize,
    /// Leases of all sessions.
    count: usize,
    /// The number of the last lease.
    last: u64,
    /// When leases of earlier leaders have run out.
    old_end: Instant,
    /// Sessions that may hold such leases.
    unreported: BTreeSet<SessionId>,
}

#[derive(Debug, Default)]
struct Place {
    holders: BTreeSet<SessionId>,
    /// Changes of it that are under way.
    changing: usize,
}

#[derive(Debug)]
struct Holder {
    /// What it holds, and the number of each lease.
    inodes: BTreeMap<InodeId, u64>,
    /// When its leases have run out.
    end: Instant,
    /// What it is to forget and has not yet, by number; and the other way round.
    recalls: BTreeMap<u64, InodeId>,
    recalled: BTreeMap<InodeId, u64>,
    /// The number of the last recall.
    last: u64,
}

/// A lease that was noted for an answer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Its number; 0: there is none.
    pub(crate) number: u64,
    session: SessionId,
    ino: InodeId,
    /// The number of the lease that the session held before.
    before: Option<u64>,
}

impl Leases {
    /// No leases; those of earlier leaders may be held by these sessions.
    pub(crate) fn new(sessions: impl Iterator<Item = SessionId>, now: Instant) -> Leases {
        let table = Table {
            inodes: BTreeMap::new(),
            holders: BTreeMap::new(),
            names: BTreeSet::new(),
            changing_all: 0,
            count: 0,
            last: 0,
            old_end: now + LEASE_WAIT,
            unreported: sessions.collect(),
        };
        Leases { table: Mutex::new(table), given_up: Notify::new(), asked: Notify::new(), name_free: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// The session gets a lease of the inode, asked for at `now`. `None`: not now.
    pub(crate) fn grant(&self, session: SessionId, ino: InodeId, now: Instant) -> Option<Noted> {
        self.table().grant(session, ino, now, 0)
    }

    /// As [`Leases::grant`], of many: with number 0 for none.
    pub(crate) fn grant_all(
        &self,
        session: SessionId,
        inodes: impl Iterator<Item = InodeId>,
        now: Instant,
    ) -> Vec<Noted> {
        let mut table = self.table();
        inodes.map(|ino| table.grant_or_none(session, ino, now, 0)).collect()
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

    /// Its leases are good from `now` on: when it said so it had forgotten everything it was to forget.
    pub(crate) fn renew(&self, session: SessionId, now: Instant) {
        if let Some(holder) = self.table().holders.get_mut(&session) {
            holder.end = holder.end.max(now + LEASE_WAIT);
        }
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
        self.leases.table().grant_or_none(session, ino, now, own)
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

impl Place {
    /// No lease for this session now. `own`: changes under way that do not count.
    fn is_taken(&self, session: SessionId, own: usize) -> bool {
        self.changing > own || (!self.holders.contains(&session) && self.holders.len() >= HOLDERS_MAX)
    }
}

impl Table {
    fn grant_or_none(&mut self, session: SessionId, ino: InodeId, now: Instant, own: usize) -> Noted {
        let none = Noted { number: 0, session, ino, before: None };
        self.grant(session, ino, now, own).unwrap_or(none)
    }

    fn grant(&mut self, session: SessionId, ino: InodeId, now: Instant, own: usize) -> Option<Noted> {
        let holder = self.holders.entry(session).or_insert_with(|| Holder {
            inodes: BTreeMap::new(),
            end: now,
            recalls: BTreeMap::new(),
            recalled: BTreeMap::new(),
            last: 0,
        });
        // Who does not answer recalls gets no more time.
        let is_full =
            !holder.inodes.contains_key(&ino) && (holder.inodes.len() >= HELD_MAX || self.count >= LEASES_MAX);
        let is_taken = self.inodes.get(&ino).is_some_and(|place| place.is_taken(session, own));
        if !holder.recalls.is_empty() || is_full || is_taken || self.changing_all > 0 {
            return None;
        }
        self.last += 1;
        self.inodes.entry(ino).or_default().holders.insert(session);
        let before = holder.inodes.insert(ino, self.last);
        self.count += usize::from(before.is_none());
        holder.end = holder.end.max(now + LEASE_WAIT);
        Some(Noted { number: self.last, session, ino, before })
    }

    fn undo(&mut self, noted: Noted) {
        let Noted { number, session, ino, before } = noted;
        let Some(holder) = self.holders.get_mut(&session) else { return };
        if number == 0 || holder.inodes.get(&ino) != Some(&number) {
            return;
        }
        match before {
            Some(before) => drop(holder.inodes.insert(ino, before)),
            None => self.forgot(session, ino),
        }
    }

    fn reported(&mut self, session: SessionId, forgot: u64) {
        self.unreported.remove(&session);
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let rest = holder.recalls.split_off(&(forgot + 1));
        let gone = std::mem::replace(&mut holder.recalls, rest);
        gone.into_values().for_each(|ino| self.forgot(session, ino));
    }

    fn forgot(&mut self, session: SessionId, ino: InodeId) {
        if let Some(holder) = self.holders.get_mut(&session) {
            self.count -= usize::from(holder.inodes.remove(&ino).is_some());
            if let Some(number) = holder.recalled.remove(&ino) {
                holder.recalls.remove(&number);
            }
        }
        if let Some(place) = self.inodes.get_mut(&ino) {
            place.holders.remove(&session);
            self.tidy(ino);
        }
    }

    fn ended(&mut self, session: SessionId) {
        self.unreported.remove(&session);
        self.forgot_all(session);
        self.holders.remove(&session);
    }

    /// It holds nothing, but goes on.
    fn forgot_all(&mut self, session: SessionId) {
        let held = self.holders.get(&session).map(|holder| holder.inodes.clone()).unwrap_or_default();
        held.into_keys().for_each(|ino| self.forgot(session, ino));
    }

    fn begin(&mut self, inodes: &[InodeId]) {
        for ino in inodes {
            self.inodes.entry(*ino).or_default().changing += 1;
        }
    }

    fn end(&mut self, inodes: &[InodeId]) {
        for ino in inodes {
            let place = self.inodes.get_mut(ino).expect("a change under way keeps it");
            place.changing -= 1;
            self.tidy(*ino);
        }
    }

    fn tidy(&mut self, ino: InodeId) {
        if self.inodes.get(&ino).is_some_and(|place| place.changing == 0 && place.holders.is_empty()) {
            self.inodes.remove(&ino);
        }
    }

    /// Until when, at most, somebody else may believe in a lease of one of these. Asks them all to forget. `None`: nobody.
    fn in_the_way(&mut self, session: SessionId, inodes: &[InodeId], now: Instant) -> Option<Instant> {
        let mut until = (now < self.old_end && !self.unreported.is_empty()).then_some(self.old_end);
        for ino in inodes {
            let others = self.inodes.get(ino).map(|place| place.holders.clone()).unwrap_or_default();
            for other in others.into_iter().filter(|other| *other != session) {
                let holder = self.holders.get_mut(&other).expect("invariant 1");
                if holder.end <= now {
                    self.forgot_all(other); // they have run out by time
                    continue;
                }
                if !holder.recalled.contains_key(ino) {
                    holder.last += 1;
                    holder.recalls.insert(holder.last, *ino);
                    holder.recalled.insert(*ino, holder.last);
                }
                until = until.max(Some(holder.end));
            }
        }
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const DIR: InodeId = InodeId(7);
    const OTHER: InodeId = InodeId(8);

    fn leases() -> Arc<Leases> {
        Arc::new(Leases::new(std::iter::empty(), Instant::now()))
    }

    /// How long a change takes, and whether it is done within `limit`.
    async fn changes(leases: &Arc<Leases>, by: SessionId, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        let change = tokio::time::timeout(limit, leases.change(by, &[DIR])).await.ok()?;
        drop(change);
        Some(began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_until_the_holder_has_forgotten() {
        let leases = leases();
        let ours = leases.grant(A, DIR, Instant::now()).unwrap();
        let theirs = leases.grant(B, DIR, Instant::now()).unwrap();
        let done = std::cell::Cell::new(false);
        let changing = async {
            let change = leases.change(A, &[DIR]).await;
            done.set(true);
            change
        };
        let holder = async {
            leases.wait_for_recalls(B).await;
            assert_eq!(leases.recalls(B), (1, vec![DIR]));
            assert_eq!(leases.recalls(A), (0, vec![]), "who changes it keeps its own lease");
            assert!(!leases.stands(theirs) && leases.stands(ours));
            assert_eq!(leases.grant(B, OTHER, Instant::now()), None);
            assert_eq!(leases.grant(SessionId(3), DIR, Instant::now()), None, "it is being changed");
            tokio::task::yield_now().await;
            assert!(!done.get());
            leases.reported(B, 1);
        };
        let (change, ()) = tokio::join!(changing, holder);
        assert_eq!(leases.grant(B, DIR, Instant::now()), None, "the change is not applied yet");
        drop(change);
        let newer = leases.grant(B, DIR, Instant::now()).unwrap();
        leases.give_back(B, DIR, theirs.number);
        assert!(leases.stands(newer), "late news of an older lease");
        leases.give_back(B, DIR, newer.number);
        assert!(!leases.stands(newer));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_waited_for_until_its_lease_has_run_out() {
        let leases = leases();
        let lease = leases.grant(B, DIR, Instant::now()).unwrap();
        tokio::time::advance(Duration::from_millis(200)).await;
        leases.renew(B, Instant::now());
        assert_eq!(changes(&leases, A, LEASE_WAIT * 2).await, Some(LEASE_WAIT));
        assert!(leases.recalls(B).1.is_empty() && !leases.stands(lease));
        assert_eq!(changes(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_lets_older_leases_run_out_or_hears_that_there_are_none() {
        let leases = Arc::new(Leases::new([A, B].into_iter(), Instant::now()));
        leases.reported(A, 0);
        assert_eq!(changes(&leases, A, LEASE_WAIT / 2).await, None, "B has said nothing");
        leases.ended(B);
        assert_eq!(changes(&leases, A, LEASE_WAIT / 4).await, Some(Duration::ZERO));
        let leases = Arc::new(Leases::new([A, B].into_iter(), Instant::now()));
        assert_eq!(changes(&leases, A, LEASE_WAIT * 2).await, Some(LEASE_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_unknown_end_keeps_the_inode_from_being_leased() {
        let leases = leases();
        leases.change(A, &[DIR]).await.without_end();
        assert!(leases.grant(B, DIR, Instant::now()).is_none() && leases.grant(B, OTHER, Instant::now()).is_some());
        assert_eq!(changes(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO), "it can still be changed");
    }

    #[tokio::test(start_paused = true)]
    async fn who_changes_an_inode_alone_gets_a_lease_with_the_answer() {
        let leases = leases();
        let change = leases.change(A, &[DIR]).await;
        let got = [DIR, OTHER].map(|ino| change.grant(A, ino, Instant::now()));
        assert!(leases.stands(got[0]) && leases.stands(got[1]) && leases.takes_part(A));
        let second = leases.change(A, &[DIR]).await;
        assert_eq!(second.grant(A, DIR, Instant::now()).number, 0, "another change of it is under way");
        drop((change, second));
        let other = leases.change(A, &[OTHER]).await;
        assert_eq!(leases.grant(B, OTHER, Instant::now()), None, "only who changes it");
        drop(other);
    }

    /// A holder believes in the lease it knows of, whatever becomes of an answer with a newer one.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_never_told_leaves_the_one_before_and_its_recall() {
        let leases = leases();
        let known = leases.grant(B, DIR, Instant::now()).unwrap();
        leases.undo(leases.grant(B, DIR, Instant::now()).unwrap());
        assert!(leases.stands(known), "it is still believed");
        let newer = leases.grant(B, DIR, Instant::now()).unwrap();
        let changing = leases.change(A, &[DIR]);
        tokio::pin!(changing);
        assert!(tokio::time::timeout(LEASE_WAIT / 4, changing.as_mut()).await.is_err());
        leases.undo(newer);
        assert_eq!(leases.recalls(B).1, [DIR], "it is still to be forgotten");
        leases.reported(B, leases.recalls(B).0);
        drop(changing.await);
        leases.undo(leases.grant(B, OTHER, Instant::now()).unwrap());
        assert_eq!(leases.table().count, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_anything_waits_for_everybody() {
        let leases = leases();
        assert!(leases.grant(A, DIR, Instant::now()).is_some() && leases.grant(B, OTHER, Instant::now()).is_some());
        let (all, ()) = tokio::join!(leases.change_all(), async {
            leases.wait_for_recalls(A).await;
            assert_eq!(leases.grant(SessionId(3), InodeId(9), Instant::now()), None);
            leases.reported(A, 1);
        });
        assert!(leases.table().count == 0, "B has said nothing until its lease had run out");
        assert_eq!(leases.grant(A, DIR, Instant::now()), None);
        drop(all);
        assert!(leases.grant(A, DIR, Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_one_name_wait_for_each_other() {
        let leases = leases();
        let name = |text: &str| (DIR, Name::new(text.as_bytes().to_vec()).unwrap());
        let locked = leases.lock_names(vec![name("a"), name("b")]).await;
        let other = tokio::time::timeout(LEASE_WAIT, leases.lock_names(vec![name("c")])).await;
        assert!(other.is_ok(), "another name");
        let same = leases.lock_names(vec![name("b"), name("d")]);
        tokio::pin!(same);
        assert!(tokio::time::timeout(LEASE_WAIT, same.as_mut()).await.is_err());
        drop(locked);
        drop(same.await);
        leases.lock_names(vec![name("a")]).await.without_end();
        assert!(tokio::time::timeout(LEASE_WAIT, leases.lock_names(vec![name("a")])).await.is_err());
        drop(other);
        assert_eq!(leases.table().names.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_stays_behind() {
        let leases = leases();
        for ino in 1..100 {
            let lease = leases.grant(A, InodeId(ino), Instant::now()).unwrap();
            if ino % 2 == 0 {
                leases.give_back(A, InodeId(ino), lease.number);
            }
        }
        drop(leases.change(B, &[InodeId(200)]).await);
        assert_eq!(changes(&leases, B, Duration::ZERO).await, None, "A holds it, and this caller leaves");
        leases.ended(A);
        let table = leases.table();
        assert!(table.inodes.is_empty() && table.holders.is_empty() && table.count == 0);
    }
}
