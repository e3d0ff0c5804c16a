//! Changes that a session has answered for before the metaservers hear of them, under write leases, in batches.
//!
//! A session that holds write leases ([`super::lease::WRITE`]) of all that a change touches decides the change itself,
//! answers, and sends it later, in order ([`Batch`]). Rules:
//! 1. The changes of a session take effect in the order in which it has answered for them: a batch stops at the first
//!    one that is refused, and nothing that was decided later is sent before an earlier one is known to be applied.
//! 2. A write lease is given up only when all changes that were decided under it are applied, or are lost with the session.
//! 3. A batch is carried out only if nobody else can have read or changed what it touches since. The leader lets it through
//!    while it knows the write leases, or, as a new leader, while it lets nobody read or change anything because this session
//!    has not reported yet. Whoever is let pass a session that has been silent for too long is let pass behind a *fence*: a
//!    command after which batches made under older claims ([`Batch::since`]) are refused, but for those that the leader who
//!    fenced lets through ([`Batch::checked`]): only it knows what others have changed or read since.
//! 4. New inodes get numbers from a range that the session has reserved, each once, in rising order.
//! 5. A commit of chunks comes with receipts of every replica that the file wants, and is checked as one that comes alone. If
//!    it is refused for its attempt (`TouchAgain`, `PutAgain`), the session stores the chunks again, of which it has kept the
//!    bytes, and sends it again: it is still in its place, since nothing that was decided later is applied.

use crate::fault::Fault;
use crate::id::{InodeId, LogIndex};
use crate::proto::lease::Touched;
use crate::proto::lock::LOCKS_MAX;
use crate::proto::meta::{Cred, Op, Outcome, StoredChunk};
use crate::time::Time;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::cell::Cell;

/// Changes in one batch, at most.
pub const BATCH_MAX: usize = 1024;
/// Bytes in one batch, about, at most: well below a frame.
pub const BATCH_BYTES_MAX: usize = 2 << 20;
/// Inode numbers reserved at once, at most.
pub const RESERVE_MAX: u32 = 64 << 10;

/// Changes in the order in which the session has made them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The term of the leader that gave the write leases.
    pub term: u64,
    /// [`super::lease::Claimed::index`] of the last claim before them.
    pub since: LogIndex,
    /// The term of the leader that lets it through; set by the leader.
    pub checked: u64,
    /// The changes: at most [`BATCH_MAX`].
    #[serde(deserialize_with = "flat")]
    pub changes: Vec<Deferred>,
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The changes of a batch, none of which is a batch: else a short message could nest them as deep as the stack ends.
fn flat<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Deferred>, D::Error> {
    if INSIDE.replace(true) {
        return Err(D::Error::custom("a batch in a batch"));
    }
    let changes = Vec::deserialize(from);
    INSIDE.set(false);
    changes
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// On whose behalf.
    pub cred: Cred,
    /// When it was made, by the session's clock.
    pub at: Time,
    /// What to do: see [`Deferred::is_allowed`].
    pub op: Op,
    /// What the session believes its names to lead to: the new inode of a create; what an unlink, rmdir or rename removes
    /// or moves, then what a rename replaces. Refused if it is otherwise.
    pub leads: Vec<InodeId>,
}

impl Deferred {
    /// Whether this kind of change may be in a batch.
    pub fn is_allowed(&self) -> bool {
        if self.at.nanos >= 1_000_000_000 {
            return false;
        }
        match &self.op {
            Op::Create { .. } | Op::CreateUnmasked { .. } => self.leads.len() == 1,
            Op::Unlink { keep, .. } => !keep && self.leads.len() == 1,
            Op::Rmdir { .. } => self.leads.len() == 1,
            Op::Rename { keep, .. } => !keep && matches!(self.leads.len(), 1 | 2),
            Op::Commit(commit) => commit.base.is_none(),
            Op::Link { .. } => true,
            Op::SetAttr { set, .. } => set.replicas.is_none() && set.chunk_size.is_none(),
            Op::HaveLocks { locks, .. } => locks.len() <= LOCKS_MAX,
            Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Release { .. }
            | Op::Clone(_)
            | Op::OpenSession { .. }
            | Op::OpenAttending { .. }
            | Op::CloseSession
            | Op::Lock(_)
            | Op::CancelLock { .. }
            | Op::Batch(_)
            | Op::Reserve { .. }
            | Op::Accessed { .. }
            | Op::Undelete { .. } => false,
        }
    }

    /// The chunks that it refers to, each once.
    pub fn chunks(&self) -> &[StoredChunk] {
        match &self.op {
            Op::Commit(commit) => &commit.chunks,
            _ => &[],
        }
    }

    /// Its length in a batch, in bytes.
    pub fn encoded_len(&self) -> usize {
        postcard::to_allocvec(self).expect("plain data has an encoding, and memory grows").len()
    }

    /// The inode that it makes.
    pub fn makes(&self) -> Option<InodeId> {
        match &self.op {
            Op::Create { .. } | Op::CreateUnmasked { .. } => self.leads.first().copied(),
            _ => None,
        }
    }

    /// All inodes that it touches, a new one included, each once.
    pub fn touches(&self) -> Vec<InodeId> {
        let mut inodes = Touched::by(&self.op).inodes;
        inodes.extend(self.leads.iter().copied());
        inodes.sort_unstable();
        inodes.dedup();
        inodes
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchDone {
    /// So many changes were applied.
    pub done: u32,
    /// Why the next one was not, and none after it.
    pub fault: Option<Fault>,
    /// Of the outcomes of all that were applied ([`Digest`]): a session that has told others something else must
    /// forget what it believes.
    pub digest: u32,
}

/// A checksum of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u32);

impl Digest {
    /// One more outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        let bytes = postcard::to_allocvec(outcome).expect("plain data has an encoding, and memory grows");
        self.0 = crc32c::crc32c_append(self.0, &bytes);
    }

    /// Of all so far.
    pub fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::meta::Op;

    #[test]
    fn a_batch_in_a_batch_is_refused_before_it_is_read_deep() {
        let nested = |inner: Batch| Deferred {
            cred: Cred::default(),
            at: Time::default(),
            op: Op::Batch(inner),
            leads: Vec::new(),
        };
        let mut batch = Batch::default();
        for _ in 0..100 {
            let bytes = postcard::to_allocvec(&batch).unwrap();
            let is_flat = batch.changes.is_empty();
            assert_eq!(postcard::from_bytes::<Batch>(&bytes).is_ok(), is_flat);
            batch = Batch { changes: vec![nested(batch)], ..Batch::default() };
        }
        let empty = postcard::to_allocvec(&Batch::default()).unwrap();
        assert_eq!(
            postcard::from_bytes::<Batch>(&empty),
            Ok(Batch::default()),
            "what was refused leaves nothing behind"
        );
    }
}
