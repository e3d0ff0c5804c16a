//! Changes that this client has made under write leases and the metaservers have not heard of yet, in order. Pure.
//!
//! Invariants:
//! 1. Changes leave from the front, when they are known to be applied; or all at once, when they are lost.
//! 2. `pending` counts for each inode the changes in the queue that touch it.
//! 3. Inode numbers are handed out in rising order within a range, each once.
//! 4. The bytes of every chunk that a change in the queue refers to are kept with it: should the metaservers want them stored
//!    again, nobody else here has them.

use crate::chunks::{Outgoing, Stored};
use common::fault::Fault;
use common::id::{InodeId, LogIndex, SessionId};
use common::proto::batch::{BATCH_BYTES_MAX, BATCH_MAX, Batch, BatchDone, Deferred, Digest};
use common::proto::meta::{Op, Outcome};
use common::time::Time;
use common::units::{len_u64, len_usize};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Changes that wait, at most; more, and who makes one waits.
const WAITING_MAX: usize = 8 * BATCH_MAX;
/// Bytes of changes that wait, at most.
const WAITING_BYTES_MAX: usize = 8 * BATCH_BYTES_MAX;
/// So many changes are sent without waiting for more.
const ENOUGH: usize = 256;
/// Bytes of chunks kept, at most, but for those of one change.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// So many are not kept for longer than it takes to tell of them.
const KEPT_ENOUGH: usize = 4 << 20;
/// Chunks that are stored again at once, in bytes, but for those of one change.
const AGAIN_BYTES_MAX: usize = 4 << 20;
/// A change waits for others to go with it at most this long. (What a crash of this client loses is younger than this, but
/// for what the metaservers take to answer.)
pub(super) const AGE_MAX: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Journal {
    queue: VecDeque<Entry>,
    bytes: usize,
    /// Bytes of chunks.
    kept: usize,
    pending: HashMap<InodeId, usize>,
    /// All changes ever made, and those of them that are over.
    made: u64,
    over: u64,
    /// Somebody waits for all up to this one.
    wanted: u64,
    /// Why changes were lost the last time.
    pub(super) last_loss: Option<Fault>,
    /// The time of the last change: time does not go back.
    at: Time,
    /// Whose numbers these are, and the ranges: next, end.
    session: Option<SessionId>,
    numbers: VecDeque<(u64, u64)>,
}

/// Under whose leases a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Under {
    pub(super) session: SessionId,
    pub(super) term: u64,
    /// The index of the last claim before it.
    pub(super) since: LogIndex,
}

#[derive(Debug)]
struct Entry {
    under: Under,
    change: Deferred,
    /// What this client has answered.
    outcome: Outcome,
    bytes: usize,
    chunks: Vec<Outgoing>,
    since: Instant,
}

impl Entry {
    fn kept(&self) -> usize {
        kept_bytes(&self.chunks)
    }
}

fn kept_bytes(chunks: &[Outgoing]) -> usize {
    chunks.iter().map(|out| len_usize(u64::from(out.chunk.len))).sum()
}

/// A change whose chunks are to be stored again.
#[derive(Debug)]
pub(crate) struct Again {
    /// Which one: see [`Journal::stored_again`].
    number: u64,
    /// Copies that the file wants.
    pub(crate) replicas: u8,
    pub(crate) chunks: Vec<Outgoing>,
}

/// Changes that are lost.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Why.
    pub(crate) fault: Fault,
    /// How many.
    pub(crate) count: usize,
    /// What they touched, each once.
    pub(crate) inodes: Vec<InodeId>,
    /// Files about whose locks the metaservers may believe otherwise than was decided here.
    pub(crate) locks: BTreeSet<InodeId>,
}

impl Lost {
    /// What was decided about locks of these files and not in the journal yet is lost as well.
    pub(super) fn also_locks(&mut self, inodes: &[InodeId]) {
        self.inodes.extend(inodes);
        self.inodes.sort_unstable();
        self.inodes.dedup();
        self.locks.extend(inodes);
    }
}

impl Journal {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= WAITING_MAX || self.bytes >= WAITING_BYTES_MAX || self.kept >= KEPT_BYTES_MAX
    }

    /// A change of this inode is not known to be applied.
    pub(super) fn is_pending(&self, ino: InodeId) -> bool {
        self.pending.contains_key(&ino)
    }

    /// All of which a change is not known to be applied.
    pub(super) fn untold(&self) -> HashSet<InodeId> {
        self.pending.keys().copied().collect()
    }

    /// Some change was made under leases of another leader than that of `term`.
    pub(super) fn is_of_another(&self, term: u64) -> bool {
        self.queue.front().is_some_and(|entry| entry.under.term != term)
    }

    /// The time of a change that is made now.
    pub(super) fn time(&mut self, now: Time) -> Time {
        self.at = self.at.max(now);
        self.at
    }

    /// Numbers were reserved in this session: the metaservers know that it may decide something.
    pub(super) fn is_announced(&self, session: SessionId) -> bool {
        self.session == Some(session)
    }

    /// They are not to be used: the session has to announce itself again.
    pub(super) fn forget_numbers(&mut self) {
        self.session = None;
        self.numbers.clear();
    }

    /// Numbers for new inodes are left.
    pub(super) fn has_numbers(&self, session: SessionId) -> bool {
        self.is_announced(session) && !self.numbers.is_empty()
    }

    /// The number of a new inode. `None`: some are to be reserved first.
    pub(super) fn number(&mut self, session: SessionId) -> Option<InodeId> {
        if self.session != Some(session) {
            return None;
        }
        let (next, end) = self.numbers.front_mut()?;
        let ino = *next;
        *next += 1;
        if *next == *end {
            self.numbers.pop_front();
        }
        Some(InodeId(ino))
    }

    /// Numbers were reserved.
    pub(super) fn reserved(&mut self, session: SessionId, first: InodeId, count: u32) {
        if self.session != Some(session) {
            self.numbers.clear();
            self.session = Some(session);
        }
        self.numbers.push_back((first.0, first.0 + u64::from(count)));
    }

    /// A change was made and answered for. `chunks`: all that it refers to.
    pub(super) fn push(&mut self, under: Under, change: Deferred, outcome: Outcome, chunks: Vec<Outgoing>) {
        let ids = change.chunks().iter().map(|chunk| chunk.id);
        debug_assert!(ids.eq(chunks.iter().map(|out| out.chunk.id)), "invariant 4");
        for ino in change.touches() {
            *self.pending.entry(ino).or_default() += 1;
        }
        let bytes = change.encoded_len();
        self.bytes += bytes;
        self.kept += kept_bytes(&chunks);
        self.made += 1;
        self.queue.push_back(Entry { under, change, outcome, bytes, chunks, since: Instant::now() });
    }

    /// Somebody waits for all that was made by now: its number.
    pub(super) fn want(&mut self) -> u64 {
        self.wanted = self.made;
        self.made
    }

    /// True if all up to this number are over.
    pub(super) fn is_over(&self, number: u64) -> bool {
        self.over >= number
    }

    /// When the first of them is to be sent. `None`: there is none.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.queue.front()?;
        let many = self.queue.len() >= ENOUGH || self.bytes >= BATCH_BYTES_MAX || self.kept >= KEPT_ENOUGH;
        let now = self.wanted > self.over || many;
        Some(if now { first.since } else { first.since + AGE_MAX })
    }

    /// The next ones to be sent, and in which session they were made. They stay in the queue.
    pub(super) fn batch(&self) -> Option<(SessionId, Batch)> {
        let under = self.queue.front()?.under;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.bytes;
            entry.under == under && (bytes <= BATCH_BYTES_MAX || bytes == entry.bytes)
        };
        let changes = self.queue.iter().take(BATCH_MAX).take_while(fits).map(|entry| entry.change.clone());
        let Under { session, term, since } = under;
        Some((session, Batch { term, since, checked: 0, changes: changes.collect() }))
    }

    /// What became of it. True: as this client has answered.
    pub(super) fn done(&mut self, done: &BatchDone) -> bool {
        let mut digest = Digest::default();
        for _ in 0..done.done {
            let entry = self.pop().expect("no more are done than were sent");
            digest.add(&entry.outcome);
        }
        digest.value() == done.digest
    }

    /// Changes whose chunks the metaservers want stored again: the first of the queue, and others behind it, whose attempts
    /// are as old. None: the first one has no chunks.
    pub(super) fn to_store_again(&self) -> Vec<Again> {
        let mut bytes = 0;
        let fits = |(at, entry): &(usize, &Entry)| {
            bytes += entry.kept();
            match at {
                0 => !entry.chunks.is_empty(),
                _ => bytes <= AGAIN_BYTES_MAX,
            }
        };
        let taken = self.queue.iter().take(BATCH_MAX).enumerate().take_while(fits);
        let with_chunks = taken.filter(|(_, entry)| !entry.chunks.is_empty());
        let again = with_chunks.map(|(at, entry)| {
            let Outcome::Committed { attr, .. } = &entry.outcome else { unreachable!("only commits have chunks") };
            let (number, replicas) = (self.over + len_u64(at), attr.replicas);
            Again { number, replicas, chunks: entry.chunks.clone() }
        });
        again.collect()
    }

    /// They are, and this is the proof.
    pub(super) fn stored_again(&mut self, again: &[Again], stored: &Stored) {
        for Again { number, .. } in again {
            let entry = number.checked_sub(self.over).and_then(|at| self.queue.get_mut(len_usize(at)));
            let Some(entry) = entry else { continue }; // lost meanwhile
            let Op::Commit(commit) = &mut entry.change.op else { unreachable!("only commits have chunks") };
            (commit.attempt, commit.layout) = (stored.attempt, stored.layout);
            for chunk in &mut commit.chunks {
                let new = stored.chunks.iter().find(|new| new.id == chunk.id);
                *chunk = new.expect("all chunks that were to be stored are").clone();
            }
            let bytes = entry.change.encoded_len();
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
    }

    /// All that is left will never be applied.
    pub(super) fn lose(&mut self, fault: Fault) -> Option<Lost> {
        let count = self.queue.len();
        if count == 0 {
            return None;
        }
        let inodes = self.pending.keys().copied().collect();
        let mut locks = BTreeSet::new();
        while let Some(entry) = self.pop() {
            if let Op::HaveLocks { ino, .. } = entry.change.op {
                locks.insert(ino);
            }
        }
        self.last_loss = Some(fault.clone());
        Some(Lost { fault, count, inodes, locks })
    }

    /// The digest of the first outcomes.
    #[cfg(test)]
    pub(super) fn digest(&self, count: usize) -> u32 {
        let mut digest = Digest::default();
        self.queue.iter().take(count).for_each(|entry| digest.add(&entry.outcome));
        digest.value()
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        for ino in entry.change.touches() {
            let count = self.pending.get_mut(&ino).expect("invariant 2");
            *count -= 1;
            if *count == 0 {
                self.pending.remove(&ino);
            }
        }
        self.bytes -= entry.bytes;
        self.kept -= entry.kept();
        self.over += 1;
        Some(entry)
    }
}
