//! Locks of programs, `flock` and `fcntl`: advisory, held by an owner within a session, queued by the metaservers.

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
}

/// Who is in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Its session.
    pub session: SessionId,
    /// What it holds.
    pub lock: Lock,
}
