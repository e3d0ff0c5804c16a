//! Who may answer from memory: the leases of one leader. The rules are in [`common::proto::lease`].
//!
//! Decisions are made in [`Table`], which is told the time; [`Leases`] waits.
//!
//! Invariants:
//! 1. A session is in `dirs[d].holders` iff `d` is in its `Holder::dirs`.
//! 2. While `dirs[d].changing > 0` nobody becomes a holder of `d`.
//! 3. [`Leases::change`] returns when no *other* session can believe in a lease of these directories any more.

use common::id::{InodeId, SessionId};
use common::proto::lease::{LEASE_WAIT, RECALLS_MAX};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Sessions that hold one directory, at most: a change has to wait for each of them.
const HOLDERS_MAX: usize = 64;
/// Directories that one session holds, at most.
const HELD_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    /// Something ended that a change may wait for.
    given_up: Notify,
    /// Something is to be forgotten.
    asked: Notify,
}

#[derive(Debug)]
struct Table {
    dirs: BTreeMap<InodeId, Dir>,
    holders: BTreeMap<SessionId, Holder>,
    /// The number of the last lease.
    last: u64,
    /// When leases of earlier leaders have run out.
    old_end: Instant,
    /// Sessions that may hold such leases.
    unreported: BTreeSet<SessionId>,
}

#[derive(Debug, Default)]
struct Dir {
    holders: BTreeSet<SessionId>,
    /// Changes of its names that are under way.
    changing: usize,
}

#[derive(Debug)]
struct Holder {
    /// What it holds, and the number of each lease.
    dirs: BTreeMap<InodeId, u64>,
    /// When its leases have run out.
    end: Instant,
    /// What it is to forget and has not yet: number and directory.
    recalls: VecDeque<(u64, InodeId)>,
    /// The number of the last recall.
    last: u64,
}

impl Leases {
    /// No leases; those of earlier leaders may be held by these sessions.
    pub(crate) fn new(sessions: impl Iterator<Item = SessionId>, now: Instant) -> Leases {
        let table = Table {
            dirs: BTreeMap::new(),
            holders: BTreeMap::new(),
            last: 0,
            old_end: now + LEASE_WAIT,
            unreported: sessions.collect(),
        };
        Leases { table: Mutex::new(table), given_up: Notify::new(), asked: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// The session gets a lease of the directory, asked for at `now`: its number. `None`: not now.
    pub(crate) fn grant(&self, session: SessionId, dir: InodeId, now: Instant) -> Option<u64> {
        self.table().grant(session, dir, now)
    }

    /// True if it has this one and nobody has asked it to forget it.
    pub(crate) fn holds(&self, session: SessionId, dir: InodeId, lease: u64) -> bool {
        let table = self.table();
        let recalled = |holder: &Holder| holder.recalls.iter().any(|(_, recalled)| *recalled == dir);
        table.holders.get(&session).is_some_and(|holder| holder.dirs.get(&dir) == Some(&lease) && !recalled(holder))
    }

    /// It does not want this lease any more, or never learns of it.
    pub(crate) fn give_back(&self, session: SessionId, dir: InodeId, lease: u64) {
        let mut table = self.table();
        if table.holders.get(&session).is_some_and(|holder| holder.dirs.get(&dir) == Some(&lease)) {
            table.forgot(session, dir);
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
        let some = || holder.recalls.iter().take(RECALLS_MAX);
        (some().next_back().map_or(0, |(number, _)| *number), some().map(|(_, dir)| *dir).collect())
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

    /// Its leases are good from `now` on, unless it is to forget something. False: they are not.
    pub(crate) fn renew(&self, session: SessionId, now: Instant) -> bool {
        match self.table().holders.get_mut(&session) {
            Some(holder) if holder.recalls.is_empty() => {
                holder.end = holder.end.max(now + LEASE_WAIT);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Before a change of names in these directories by `session` is proposed. Waits for other holders, at most
    /// [`LEASE_WAIT`] from the last renewal of each.
    pub(crate) async fn change(self: &Arc<Self>, session: SessionId, dirs: &[InodeId]) -> Changing {
        self.table().begin(dirs);
        let changing = Changing { leases: self.clone(), dirs: dirs.to_vec() };
        loop {
            let given_up = self.given_up.notified();
            tokio::pin!(given_up);
            given_up.as_mut().enable();
            let Some(until) = self.table().in_the_way(session, dirs, Instant::now()) else { return changing };
            self.asked.notify_waiters();
            tokio::select! {
                biased;
                () = given_up => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

/// A change of names under way: to be kept until it is applied here, or never will be.
#[derive(Debug)]
pub(crate) struct Changing {
    leases: Arc<Leases>,
    dirs: Vec<InodeId>,
}

impl Changing {
    /// Nobody knows when it is over: these directories are not leased again by this leader.
    pub(crate) fn without_end(mut self) {
        self.dirs.clear();
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.leases.table().end(&self.dirs);
    }
}

impl Dir {
    /// No lease for this session now.
    fn is_taken(&self, session: SessionId) -> bool {
        self.changing > 0 || (!self.holders.contains(&session) && self.holders.len() >= HOLDERS_MAX)
    }
}

impl Table {
    fn grant(&mut self, session: SessionId, dir: InodeId, now: Instant) -> Option<u64> {
        let holder = self.holders.entry(session).or_insert_with(|| Holder {
            dirs: BTreeMap::new(),
            end: now,
            recalls: VecDeque::new(),
            last: 0,
        });
        // Who does not answer recalls gets no more time.
        let is_full = !holder.dirs.contains_key(&dir) && holder.dirs.len() >= HELD_MAX;
        if !holder.recalls.is_empty() || is_full || self.dirs.get(&dir).is_some_and(|place| place.is_taken(session)) {
            return None;
        }
        self.last += 1;
        self.dirs.entry(dir).or_default().holders.insert(session);
        holder.dirs.insert(dir, self.last);
        holder.end = holder.end.max(now + LEASE_WAIT);
        Some(self.last)
    }

    fn reported(&mut self, session: SessionId, forgot: u64) {
        self.unreported.remove(&session);
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let keep = holder.recalls.partition_point(|(number, _)| *number <= forgot);
        let gone: Vec<InodeId> = holder.recalls.drain(..keep).map(|(_, dir)| dir).collect();
        gone.into_iter().for_each(|dir| self.forgot(session, dir));
    }

    fn forgot(&mut self, session: SessionId, dir: InodeId) {
        if let Some(holder) = self.holders.get_mut(&session) {
            holder.dirs.remove(&dir);
            holder.recalls.retain(|(_, recalled)| *recalled != dir);
        }
        if let Some(place) = self.dirs.get_mut(&dir) {
            place.holders.remove(&session);
            self.tidy(dir);
        }
    }

    fn ended(&mut self, session: SessionId) {
        self.unreported.remove(&session);
        self.forgot_all(session);
        self.holders.remove(&session);
    }

    /// It holds nothing, but goes on.
    fn forgot_all(&mut self, session: SessionId) {
        let held = self.holders.get(&session).map(|holder| holder.dirs.clone()).unwrap_or_default();
        held.into_keys().for_each(|dir| self.forgot(session, dir));
    }

    fn begin(&mut self, dirs: &[InodeId]) {
        for dir in dirs {
            self.dirs.entry(*dir).or_default().changing += 1;
        }
    }

    fn end(&mut self, dirs: &[InodeId]) {
        for dir in dirs {
            let place = self.dirs.get_mut(dir).expect("a change under way keeps it");
            place.changing -= 1;
            self.tidy(*dir);
        }
    }

    fn tidy(&mut self, dir: InodeId) {
        if self.dirs.get(&dir).is_some_and(|place| place.changing == 0 && place.holders.is_empty()) {
            self.dirs.remove(&dir);
        }
    }

    /// Until when, at most, somebody else may believe in a lease of one of these. Asks them all to forget. `None`: nobody.
    fn in_the_way(&mut self, session: SessionId, dirs: &[InodeId], now: Instant) -> Option<Instant> {
        let mut until = (now < self.old_end && !self.unreported.is_empty()).then_some(self.old_end);
        for dir in dirs {
            let others = self.dirs.get(dir).map(|place| place.holders.clone()).unwrap_or_default();
            for other in others.into_iter().filter(|other| *other != session) {
                let holder = self.holders.get_mut(&other).expect("invariant 1");
                if holder.end <= now {
                    self.forgot_all(other); // they have run out by time
                    continue;
                }
                if !holder.recalls.iter().any(|(_, recalled)| recalled == dir) {
                    holder.last += 1;
                    holder.recalls.push_back((holder.last, *dir));
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
            assert!(!leases.holds(B, DIR, theirs) && leases.holds(A, DIR, ours));
            assert!(!leases.renew(B, Instant::now()), "no more time for who does not answer");
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
        leases.give_back(B, DIR, theirs);
        assert!(leases.holds(B, DIR, newer), "late news of an older lease");
        leases.give_back(B, DIR, newer);
        assert!(!leases.holds(B, DIR, newer));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_waited_for_until_its_lease_has_run_out() {
        let leases = leases();
        let lease = leases.grant(B, DIR, Instant::now()).unwrap();
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(leases.renew(B, Instant::now()));
        assert_eq!(changes(&leases, A, LEASE_WAIT * 2).await, Some(LEASE_WAIT));
        assert!(leases.recalls(B).1.is_empty() && !leases.holds(B, DIR, lease));
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
    async fn a_change_of_unknown_end_keeps_the_directory_from_being_leased() {
        let leases = leases();
        leases.change(A, &[DIR]).await.without_end();
        assert!(leases.grant(B, DIR, Instant::now()).is_none() && leases.grant(B, OTHER, Instant::now()).is_some());
        assert_eq!(changes(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO), "it can still be changed");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_stays_behind() {
        let leases = leases();
        for dir in 1..100 {
            let lease = leases.grant(A, InodeId(dir), Instant::now()).unwrap();
            if dir % 2 == 0 {
                leases.give_back(A, InodeId(dir), lease);
            }
        }
        drop(leases.change(B, &[InodeId(200)]).await);
        assert_eq!(changes(&leases, B, Duration::ZERO).await, None, "A holds it, and this caller leaves");
        leases.ended(A);
        let table = leases.table();
        assert!(table.dirs.is_empty() && table.holders.is_empty());
    }
}
