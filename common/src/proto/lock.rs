//! Locks of programs, `flock` and `fcntl`: advisory, held by an owner within a session, queued by the metaservers.
//!
//! While a session has a write lease of a file and nobody else has, or waits for, a lock of it, the session decides about
//! its locks itself ([`Locked::Alone`] begins that), and says what became of them before it gives up the lease
//! ([`super::meta::Op::HaveLocks`]).

use crate::id::{InodeId, SessionId};
use serde::{Deserialize, Serialize};

/// The last byte of a lock to the end of the file.
pub const LOCK_END: u64 = i64::MAX.cast_unsigned();
/// Locks held and waited for of one file, at most.
pub const LOCKS_MAX: usize = 4096;

/// The two kinds of locks, which know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockSpace {
    /// `fcntl` and `lockf`: of ranges; an owner's locks change each other.
    Range,
    /// `flock`: of whole files, of an open file.
    Whole,
}

/// What is done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// Others may share it.
    Shared,
    /// Nobody else has any lock there.
    Exclusive,
    /// The owner's locks there go.
    Unlock,
}

/// A lock that is asked for, held, or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Among which locks.
    pub space: LockSpace,
    /// Whose, within the session: a process, or an open file.
    pub owner: u64,
    /// What.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte (it belongs to it), at most [`LOCK_END`].
    pub end: u64,
    /// The process, to be shown to others.
    pub pid: u32,
}

/// Asks for a lock, or lets go of some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockAsk {
    /// The file.
    pub ino: InodeId,
    /// What is wanted.
    pub lock: Lock,
    /// Queue it if others are in the way.
    pub wait: bool,
    /// Refuse to queue what would wait for itself (`fcntl` does, `flock` and open file locks do not).
    pub detect: bool,
}

/// What became of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locked {
    /// It is held; or let go of.
    Yes,
    /// Others are in the way.
    No,
    /// It waits under this number until it is held ([`super::meta::Query::LockWaits`]) or cancelled.
    Queued(u64),
    /// It would wait for itself.
    Deadlock,
    /// [`LOCKS_MAX`] is reached.
    Full,
    /// As `Yes`, and the file has no other lock, nor does anybody wait for one.
    Alone,
}

/// Who is in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Its session.
    pub session: SessionId,
    /// What it holds.
    pub lock: Lock,
}

impl LockHolder {
    /// Whose it is.
    pub fn owner(&self) -> (SessionId, u64) {
        (self.session, self.lock.owner)
    }

    /// Whether they cannot both be held.
    pub fn conflicts(&self, other: &LockHolder) -> bool {
        let exclusive = self.lock.kind == LockKind::Exclusive || other.lock.kind == LockKind::Exclusive;
        self.lock.overlaps(&other.lock) && exclusive && self.owner() != other.owner()
    }
}

impl Lock {
    /// Whether they have a byte in common, and know of each other.
    pub fn overlaps(&self, other: &Lock) -> bool {
        self.space == other.space && self.start <= other.end && other.start <= self.end
    }

    /// Whether it is of a range that there is.
    pub fn is_valid(&self) -> bool {
        self.start <= self.end && self.end <= LOCK_END
    }
}

/// Those of these locks that are in the way of one.
pub fn in_the_way<'a>(
    held: &'a [LockHolder],
    wanted: &'a LockHolder,
) -> impl Iterator<Item = &'a LockHolder> + use<'a> {
    held.iter().filter(move |held| held.conflicts(wanted))
}

/// Sets what the owner has in a range: what it had there goes, and what is left of it stays.
pub fn set(held: &mut Vec<LockHolder>, wanted: &LockHolder) {
    let (mut new, mut kept) = (wanted.lock, Vec::with_capacity(held.len() + 2));
    for other in held.drain(..) {
        let (lock, same) = (other.lock, other.owner() == wanted.owner() && other.lock.space == wanted.lock.space);
        let touches = lock.start <= new.end.saturating_add(1) && new.start <= lock.end.saturating_add(1);
        if same && touches && lock.kind == new.kind {
            (new.start, new.end) = (new.start.min(lock.start), new.end.max(lock.end)); // one lock from now on
        } else if same && lock.overlaps(&new) {
            if lock.start < new.start {
                kept.push(LockHolder { lock: Lock { end: new.start - 1, ..lock }, ..other });
            }
            if lock.end > new.end {
                kept.push(LockHolder { lock: Lock { start: new.end + 1, ..lock }, ..other });
            }
        } else {
            kept.push(other);
        }
    }
    *held = kept;
    if new.kind != LockKind::Unlock {
        held.push(LockHolder { session: wanted.session, lock: new });
    }
}
