//! Leases: a session's right to answer from memory, until a time or until it is asked to forget.
//!
//! A *listing lease* of a directory lets its holder say which names are in it, and which are not, without asking. The
//! leader asks every other holder to forget before it lets a change of the directory's names begin, and waits for their
//! answers, or until their leases have run out.
//!
//! Leases belong to one leader: they are in its memory only. Rules without which this is unsound:
//! 1. A grant or a renewal is answered after a round to a majority that began after the request arrived. The holder
//!    counts [`LEASE_TERM`] from when it *sent* the request, on a clock that runs while the machine sleeps; the leader
//!    waits [`LEASE_WAIT`] from when the request arrived.
//! 2. A leader begins its first change of names when `LEASE_WAIT` has passed since it came to lead, or every session has
//!    told it ([`RecallCall::term`]) that it holds nothing granted by another one.
//! 3. No lease of a directory is granted from before a change of its names is proposed until it is known to be applied.

use crate::id::{InodeId, SessionId};
use crate::name::Name;
use crate::proto::meta::Cred;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a lease is good for its holder after it asked for it.
pub const LEASE_TERM: Duration = Duration::from_millis(1000);
/// How long the leader takes it to last after it was asked: longer, as clocks do not run equally fast.
pub const LEASE_WAIT: Duration = Duration::from_millis(1250);
/// How long a leader keeps a [`RecallCall`] that it has no news for.
pub const RECALL_HOLD: Duration = Duration::from_millis(300);
/// A directory with more names is not leased.
pub const LEASE_NAMES_MAX: u32 = 16_384;
/// Directories in one answer to a [`RecallCall`], at most.
pub const RECALLS_MAX: usize = 1024;

/// Asks for a listing lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsk {
    /// Whose it will be.
    pub session: SessionId,
    /// Who must be allowed to read the directory.
    pub cred: Cred,
    /// The directory.
    pub dir: InodeId,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// The leader's term.
    pub term: u64,
    /// The number of this lease, for [`RecallCall::given_back`]. 0: none.
    pub lease: u64,
    /// All names in the directory, with the lease. `None`: not granted (it is being changed, has too many names, or too
    /// many sessions hold it); ask again later.
    pub names: Option<Vec<Name>>,
}

/// A session says what it has forgotten and waits for what it is to forget. This renews its leases, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecallCall {
    /// Whose leases.
    pub session: SessionId,
    /// It holds nothing granted in another term than this one. 0: nothing at all.
    pub term: u64,
    /// It has forgotten everything up to this recall of that term.
    pub forgot: u64,
    /// Leases it does not want any more: directory and number (a call that is late must not end a newer lease). At most
    /// [`RECALLS_MAX`].
    pub given_back: Vec<(InodeId, u64)>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalls {
    /// The leader's term. If it is not the one that was named: forget everything, and call again.
    pub term: u64,
    /// The number of the last one in `dirs`; 0 if there is none.
    pub last: u64,
    /// What to forget, then say so. Empty (in the named term): all leases are renewed from when the call was sent.
    pub dirs: Vec<InodeId>,
}
