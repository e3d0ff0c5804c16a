//! Leases: a session's right to answer from memory, until a time or until it is asked to forget.
//!
//! A lease is of one inode: its attributes, the names in it if it is a directory, what it holds if it is a file. While a
//! session has one, nobody else changes the inode: the leader asks every other holder to forget before it lets a change
//! begin, and waits for their answers, or until their leases have run out.
//!
//! A *write lease* ([`WRITE`]) is one that no other session shares: its holder may change the inode and answer for that
//! before the leader hears of it ([`super::batch`]). So a leader answers no question about such an inode, and lets no
//! change of it begin, before the holder has told it all and given the lease up.
//!
//! Leases come with the answers of queries and changes ([`Grants`]), and for a whole directory with [`LeaseAsk`]. They
//! belong to one leader: they are in its memory only. Rules without which this is unsound:
//! 1. A grant or a renewal is answered after a round to a majority that began after the request arrived. The holder
//!    counts [`LEASE_TERM`] from when it *sent* the request, on a clock that runs while the machine sleeps; the leader
//!    waits [`LEASE_WAIT`] from when the request arrived.
//! 2. A leader begins its first change, and answers its first question, when `LEASE_WAIT` has passed since it came to lead, or every session has
//!    told it ([`RecallCall::term`]) that it holds nothing granted by another one.
//! 3. No lease of an inode is granted to another session from before a change of it is proposed until that is known to be
//!    applied. What is read under a lease is read after the lease was noted.
//! 4. Which inode a name leads to is looked up by the leader while it lets no other change of that name begin
//!    ([`Touched::names`]).

use crate::id::{InodeId, LogIndex, SessionId};
use crate::name::Name;
use crate::proto::meta::{Attr, CloneRange, Commit, Cred, DirEntry, ExtentRun, Op};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a lease is good for its holder after it asked for it.
pub const LEASE_TERM: Duration = Duration::from_millis(1000);
/// How long the leader takes it to last after it was asked: longer, as clocks do not run equally fast.
pub const LEASE_WAIT: Duration = Duration::from_millis(1250);
/// How long a leader keeps a [`RecallCall`] that it has no news for.
pub const RECALL_HOLD: Duration = Duration::from_millis(300);
/// A directory with more names is not leased with them.
pub const LEASE_NAMES_MAX: u32 = 16_384;
/// Attributes that come with the names of a directory, at most.
pub const LEASE_ATTRS_MAX: usize = 4096;
/// How long after that the leader waits for the holder of a write lease to tell what it has changed: what it is told
/// later is refused if somebody was waiting for it.
pub const WRITE_WAIT: Duration = Duration::from_millis(4000);
/// How long a leader keeps a [`RecallCall`] of a session that holds nothing.
/// (Less than a caller takes for an attempt, so that it does not stay with a leader that is not heard of any more.)
pub const IDLE_HOLD: Duration = Duration::from_millis(1500);
/// In the number of a lease: it is a write lease.
pub const WRITE: u64 = 1;
/// Leases that are claimed at once, at most.
pub const CLAIM_MAX: usize = 4096;
/// Bytes of contents that come with a directory, at most.
pub const LEASE_CONTENTS_MAX: u64 = 1 << 20;
/// Files of which more bytes than this are kept in the metadata come without.
pub const LEASE_FILE_MAX: u64 = 16 << 10;
/// Inodes in one answer to a [`RecallCall`], and given back with one, at most.
pub const RECALLS_MAX: usize = 4096;

/// Leases that come with an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// The leader's term.
    pub term: u64,
    /// The numbers of the leases, in the order of the attributes in the answer ([`Attr`]s that are there); 0: none for
    /// that one. Empty: none at all.
    pub leases: Vec<u64>,
}

/// Asks for a lease of a directory, with all names in it, and leases of what they lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsk {
    /// Whose it will be.
    pub session: SessionId,
    /// Who must be allowed to read the directory.
    pub cred: Cred,
    /// The directory.
    pub dir: InodeId,
    /// With what small files in it hold. (Names in it are being looked up, so files will be opened; who lists it has no use for
    /// that, and it makes the answer long.)
    pub contents: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// The leader's term.
    pub term: u64,
    /// What is leased. `None`: not granted (it is being changed, has too many names, or too many sessions hold it); ask
    /// again later.
    pub listing: Option<LeasedListing>,
}

/// A directory and all that is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedListing {
    /// The directory.
    pub attr: Attr,
    /// The directory that holds it.
    pub parent: InodeId,
    /// All entries, in cookie order; the first [`LEASE_ATTRS_MAX`] with attributes, if they were to be had.
    pub entries: Vec<DirEntry>,
    /// The number of the directory's lease, then those of the entries that have attributes, in order; 0: none.
    pub leases: Vec<u64>,
    /// What files among them hold, each whole: small ones that are kept in the metadata, and where the chunks of others are, if
    /// they are few and have all their copies.
    pub contents: Vec<(InodeId, ExtentRun)>,
}

/// Asks for leases that the session has to become write leases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose they are.
    pub session: SessionId,
    /// The term of the leader that gave them.
    pub term: u64,
    /// Inodes and the numbers of their leases: at most [`CLAIM_MAX`].
    pub leases: Vec<(InodeId, u64)>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The leader's term.
    pub term: u64,
    /// Their numbers from now on, in order; 0: it stays as it was. Empty: none are write leases now.
    pub leases: Vec<u64>,
    /// False: others were let pass this session; it reserves inode numbers again before it decides anything.
    pub announced: bool,
    /// An index that the leader had applied afterwards: what is decided from now on, until leases run out, was decided since.
    pub index: LogIndex,
}

/// A session says what it has forgotten and waits for what it is to forget. This renews its leases, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecallCall {
    /// Whose leases.
    pub session: SessionId,
    /// It holds nothing granted in another term than this one, and has told all that it decided in another. 0: it does not know the
    /// leader, and says nothing; the answer comes at once.
    pub term: u64,
    /// It has forgotten everything up to this recall of that term.
    pub forgot: u64,
    /// Leases it does not want any more: inode and number (a call that is late must not end a newer lease). At most
    /// [`RECALLS_MAX`].
    pub given_back: Vec<(InodeId, u64)>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalls {
    /// The leader's term. If it is not the one that was named: forget everything, and call again.
    pub term: u64,
    /// The number of the last one in `inodes`; 0 if there is none.
    pub last: u64,
    /// What to forget, then say so.
    pub inodes: Vec<InodeId>,
    /// All leases but those of `inodes` are renewed from when the call was sent.
    pub renewed: bool,
}

/// What a change makes untrue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Inodes whose attributes (directories: or names; files: or contents) it changes.
    pub inodes: Vec<InodeId>,
    /// Names it changes, in `inodes`, sorted.
    pub names: Vec<(InodeId, Name)>,
    /// It changes what the names lead to as well.
    pub targets: bool,
}

impl Touched {
    /// What `op` touches: the only place that says so.
    pub fn by(op: &Op) -> Touched {
        let inode = |ino: &InodeId| Touched { inodes: vec![*ino], ..Touched::default() };
        let name = |dir: &InodeId, name: &Name| (*dir, name.clone());
        match op {
            Op::Create { parent, name: new, .. } | Op::CreateUnmasked { parent, name: new, .. } => {
                Touched { inodes: vec![*parent], names: vec![name(parent, new)], targets: false }
            }
            Op::Link { ino, parent, name: new } | Op::Undelete { ino, parent, name: new } => {
                Touched { inodes: vec![*ino, *parent], names: vec![name(parent, new)], targets: false }
            }
            Op::Unlink { parent, name: old, .. } | Op::Rmdir { parent, name: old } => {
                Touched { inodes: vec![*parent], names: vec![name(parent, old)], targets: true }
            }
            Op::Rename { from, from_name, to, to_name, .. } => {
                let mut inodes = vec![*from, *to];
                inodes.dedup();
                let mut names = vec![name(from, from_name), name(to, to_name)];
                names.sort();
                names.dedup();
                Touched { inodes, names, targets: true }
            }
            Op::SetAttr { ino, .. }
            | Op::SetXattr { ino, .. }
            | Op::RemoveXattr { ino, .. }
            | Op::Commit(Commit { ino, .. })
            | Op::Clone(CloneRange { to: ino, .. })
            | Op::Release { ino }
            | Op::HaveLocks { ino, .. } => inode(ino),
            Op::Accessed { files } => {
                let mut inodes: Vec<InodeId> = files.iter().map(|(ino, _)| *ino).collect();
                inodes.sort_unstable();
                inodes.dedup();
                Touched { inodes, ..Touched::default() }
            }
            Op::OpenSession { .. }
            | Op::OpenAttending { .. }
            | Op::CloseSession
            | Op::Lock(_)
            | Op::CancelLock { .. }
            | Op::Batch(_) // looked at one by one: nobody else can touch what it touches
            | Op::Reserve { .. } => Touched::default(),
        }
    }
}
