//! Locks of programs that this client decides about itself: it has the write lease of their file, and nobody else has locks
//! of it, or waits for one ([`common::proto::lock`]).
//!
//! Invariants:
//! 1. `Known::locks` is there only while nobody else can have, or wait for, a lock of that file: it begins with an answer
//!    ([`Locked::Alone`]) to a request that was sent, and came back, under one write lease, while no other request for a lock
//!    of the file was under way; and it ends with the write lease, or before a lock of the file is asked for.
//! 2. What it says and the metaservers do not know yet (`unsaid`) goes into the journal before either, and when it has stayed
//!    as it is for [`AGE_MAX`]: a lock that was said keeps others out until the session ends, also if this client falls silent.

use super::inside::Inside;
use super::journal::{AGE_MAX, Under};
use super::local::Not;
use common::id::{InodeId, SessionId};
use common::proto::batch::Deferred;
use common::proto::lease::WRITE;
use common::proto::lock::{self, Lock, LockAsk, LockHolder, LockKind, LockSpace, Locked, in_the_way};
use common::proto::meta::{Cred, Op, Outcome};
use common::time::Time;
use std::time::Duration;
use tokio::time::Instant;

/// Locks of one file that are decided about here; with more, the metaservers do.
const HELD_MAX: usize = 64;

/// The locks of a file: all that there are.
#[derive(Debug, Default)]
pub(super) struct Held {
    locks: Vec<LockHolder>,
    /// The metaservers believe otherwise.
    pub(super) unsaid: bool,
    /// When they changed last.
    changed: Option<Instant>,
}

/// Requests for locks of one file that are under way.
#[derive(Debug, Default)]
pub(super) struct Asked {
    count: usize,
    /// Two of them overlapped.
    overlapped: bool,
    /// Of one it is not known how it went: it may still come.
    lost: bool,
}

/// A request for a lock that is under way.
#[derive(Debug)]
pub(super) struct OwnLock {
    ask: LockAsk,
    /// The term and the number of the write lease under which it was sent.
    under: Option<(u64, u64)>,
}

impl Held {
    /// `None`: the metaservers decide.
    fn decide(&mut self, session: SessionId, ask: &LockAsk) -> Option<Locked> {
        let wanted = LockHolder { session, lock: ask.lock };
        if !ask.lock.is_valid() || self.locks.len() + 2 > HELD_MAX {
            return None;
        }
        let blocked = ask.lock.kind != LockKind::Unlock && in_the_way(&self.locks, &wanted).next().is_some();
        if blocked && ask.wait {
            return None;
        }
        if blocked && ask.lock.space != LockSpace::Whole {
            return Some(Locked::No);
        }
        // As on Linux, who changes the kind of its `flock` gives up the one it had, and may lose it.
        let kind = if blocked { LockKind::Unlock } else { ask.lock.kind };
        lock::set(&mut self.locks, &LockHolder { session, lock: Lock { kind, ..ask.lock } });
        (self.unsaid, self.changed) = (true, Some(Instant::now()));
        Some(if blocked { Locked::No } else { Locked::Yes })
    }
}

impl Inside {
    /// A lock of a file that only this client can change now.
    pub(super) fn plan_lock(&mut self, ask: &LockAsk) -> Result<Outcome, Not> {
        self.own(ask.ino)?;
        let session = self.session.ok_or(Not::Here)?;
        if self.asked_locks.contains_key(&ask.ino) {
            return Err(Not::Here);
        }
        let held = self.known.get_mut(&ask.ino).and_then(|known| known.locks.as_mut()).ok_or(Not::Here)?;
        let locked = held.decide(session, ask).ok_or(Not::Here)?;
        if held.unsaid {
            self.unsaid.insert(ask.ino);
        }
        Ok(Outcome::Locked(locked))
    }

    /// The first lock that is in the way of this one, if that is certain here.
    pub(super) fn lock_holder(&self, ino: InodeId, lock: Lock, uptime: Duration) -> Option<Option<LockHolder>> {
        let held = self.known.get(&ino)?.locks.as_ref().filter(|_| self.may_decide(uptime))?;
        let wanted = LockHolder { session: self.session?, lock };
        Some(in_the_way(&held.locks, &wanted).min_by_key(|held| held.lock.start).copied())
    }

    /// What was decided about locks of this file goes into the journal; nothing more is decided about them.
    pub(super) fn say_locks(&mut self, ino: InodeId) {
        self.unsaid.remove(&ino);
        if let Some(held) = self.known.get_mut(&ino).and_then(|known| known.locks.take()) {
            self.say(ino, &held);
        }
    }

    /// Locks that stay as they are go into the journal; they are still decided about.
    pub(super) fn say_lasting_locks(&mut self, now: Instant) {
        let lasts = |held: &Held| held.changed.is_some_and(|changed| changed + AGE_MAX < now);
        let locks = |ino| self.known.get(ino).and_then(|known| known.locks.as_ref());
        let lasting = self.unsaid.iter().filter(|ino| locks(ino).is_some_and(lasts));
        for ino in lasting.copied().collect::<Vec<InodeId>>() {
            self.unsaid.remove(&ino);
            let held = self.known.get_mut(&ino).and_then(|known| known.locks.take());
            let mut held = held.expect("just found");
            self.say(ino, &held);
            held.unsaid = false;
            self.known.get_mut(&ino).expect("just found").locks = Some(held);
        }
    }

    fn say(&mut self, ino: InodeId, held: &Held) {
        let (Some(session), Some(since)) = (self.session, self.since) else { return };
        if held.unsaid {
            let locks = held.locks.iter().map(|held| held.lock).collect();
            let at = self.journal.time(Time::default()); // the last change's: locks have none
            let change = Deferred { cred: Cred::default(), at, op: Op::HaveLocks { ino, locks }, leads: Vec::new() };
            self.journal.push(Under { session, term: self.term, since }, change, Outcome::Done, Vec::new());
        }
    }

    /// Files with locks that were decided about here and not said.
    pub(super) fn unsaid_locks(&self) -> Vec<InodeId> {
        self.unsaid.iter().copied().collect()
    }

    /// A lock is about to be asked for.
    pub(super) fn begin_lock(&mut self, op: &Op) -> Option<OwnLock> {
        let Op::Lock(ask) = op else { return None };
        self.say_locks(ask.ino);
        let asked = self.asked_locks.entry(ask.ino).or_default();
        asked.overlapped |= asked.count > 0;
        asked.count += 1;
        let lease = self.known.get(&ask.ino).map(|known| known.lease).filter(|lease| lease & WRITE != 0);
        Some(OwnLock { ask: *ask, under: lease.filter(|_| self.since.is_some()).map(|lease| (self.term, lease)) })
    }

    /// It was answered.
    pub(super) fn locked(&mut self, own: &OwnLock, outcome: &Outcome) {
        let ino = own.ask.ino;
        let undisturbed =
            self.asked_locks.get(&ino).is_some_and(|asked| asked.count == 1 && !asked.overlapped && !asked.lost);
        let (Outcome::Locked(Locked::Alone), Some(lease), true) = (outcome, own.under, undisturbed) else { return };
        let (Some(session), Some(known)) = (self.session, self.known.get_mut(&ino)) else { return };
        if (self.term, known.lease) == lease && self.since.is_some() {
            let mut held = Held::default();
            lock::set(&mut held.locks, &LockHolder { session, lock: own.ask.lock });
            known.locks = Some(held);
        }
    }

    /// It is over. `known`: it is known how it went.
    pub(super) fn end_lock(&mut self, own: &OwnLock, known: bool) {
        let asked = self.asked_locks.get_mut(&own.ask.ino).expect("entered when it began");
        asked.count -= 1;
        asked.lost |= !known;
        if asked.count == 0 && !asked.lost {
            self.asked_locks.remove(&own.ask.ino);
        }
    }

    /// No request of unknown outcome is left.
    pub(super) fn locks_settled(&mut self) {
        self.asked_locks.retain(|_, asked| {
            asked.lost = false;
            asked.count > 0
        });
    }
}
