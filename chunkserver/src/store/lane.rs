//! Who works on which chunk: a lane is one of the store's two logs with its group commit.
//!
//! An entry in `pending` is the chunk's lock: held from the first look at its index row until the outcome is settled,
//! by whoever [`Lane::begin`] let in. Others that come for the chunk leave a [`Waiter`] and learn the outcome. Nobody
//! holds the mutex itself while a disk works, but for the row of one chunk.

use super::chunk::VerifiedChunk;
use super::counts::Counts;
use super::format::{Log, LogRow, Row, SegmentRow};
use super::{Inner, StoreError};
use common::id::ChunkId;
use common::kv::Batch;
use common::rules::{Rule, is_broken};
use common::segment::format::SEGMENT_HEADER_LEN;
use common::segment::{Position, SegmentLog, SegmentUsage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How an operation on a chunk ended.
#[derive(Clone, Debug)]
pub(super) enum Settled {
    /// It is here, durable and sound.
    Held,
    /// It is not here.
    Absent,
    /// What is here cannot be used.
    Damaged,
    /// Nobody knows more than this.
    Failed(StoreError),
}

/// A put on its way.
pub(super) struct PutJob {
    pub(super) chunk: VerifiedChunk,
    /// Its share of [`super::PUTS_IN_FLIGHT_MAX`], until it is settled.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) reply: oneshot::Sender<Settled>,
}

/// Somebody who came for a chunk that is being worked on.
pub(super) enum Waiter {
    /// Wants the outcome.
    Touch(oneshot::Sender<Settled>),
    /// Wants it held: takes over if the outcome is `Absent` or `Damaged`.
    Put(PutJob),
}

/// What [`Lane::begin`] says.
pub(super) enum Begun {
    /// The caller has the chunk's lock, and must settle it.
    Mine,
    /// Somebody else has it, and will tell.
    Waiting,
    /// Somebody else is deleting it: it is as good as gone.
    Dying,
}

/// What [`Lane::begin_delete`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wished {
    /// The wish stood: it is used up, and the caller has the chunk's lock and must settle it.
    Mine,
    /// There is no such wish, or not any more.
    Void,
}

/// Why the chunk's lock is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Put,
    Check,
    Delete,
    /// Copied by compaction: its row is to move.
    Move,
}

struct Pending {
    purpose: Purpose,
    /// Its record, if it appends one, is not before this.
    floor: Position,
    waiters: Vec<Waiter>,
}

/// An appended record that waits for its sync and its index row.
pub(super) struct Change {
    /// Of which chunk; its lock is held, but for [`What::Carried`] and [`What::Nothing`].
    pub(super) id: ChunkId,
    pub(super) position: Position,
    pub(super) what: What,
}

/// What the record means to the index.
pub(super) enum What {
    /// The row moves to it; the old one was damaged.
    Put { len: u32, old: Option<Row>, job: Answer },
    /// The row goes.
    Delete { old: Row },
    /// Compaction copied the record: the row moves.
    Move { old: Row, _done: Done },
    /// Compaction copied a tombstone: the index has nothing of it but the count.
    Carried { _done: Done },
    /// No record: only to have the index follow the log to its end.
    Nothing,
}

/// Shared by changes that belong together. When the last one is settled it is dropped, and the other end is told.
pub(super) type Done = Arc<oneshot::Sender<()>>;

impl Change {
    /// True if the chunk's lock belongs to it.
    pub(super) fn has_lock(&self) -> bool {
        match self.what {
            What::Put { .. } | What::Delete { .. } | What::Move { .. } => true,
            What::Carried { .. } | What::Nothing => false,
        }
    }

    /// The segments whose counts it changes.
    pub(super) fn segments(&self) -> impl Iterator<Item = u32> {
        let old = match &self.what {
            What::Put { old, .. } => old.as_ref(),
            What::Delete { old } | What::Move { old, .. } => Some(old),
            What::Carried { .. } | What::Nothing => None,
        };
        old.map(|old| old.position.segment).into_iter().chain([self.position.segment])
    }
}

/// Whom to tell, and what to give back then.
pub(super) struct Answer {
    pub(super) reply: oneshot::Sender<Settled>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Wishes that stand at a time in one lane, at most.
const WISHES_MAX: usize = 64 << 10;

pub(super) struct Lane {
    pub(super) log: Log,
    pub(super) segments: SegmentLog,
    state: Mutex<State>,
}

struct State {
    pending: BTreeMap<ChunkId, Pending>,
    /// Standing wishes to delete a chunk here: an ask or a drop round, with its nonce (DESIGN, section 7). In memory
    /// only: a restart voids them. At most [`WISHES_MAX`].
    wishes: BTreeMap<ChunkId, u64>,
    /// Appended, not yet synced. Bounded by the puts let in.
    queue: Vec<Change>,
    /// Somebody is taking from the queue.
    committing: bool,
    /// As in the index.
    held: LogRow,
    /// As in the index.
    counts: Counts,
}

impl Lane {
    pub(super) fn new(log: Log, segments: SegmentLog, held: LogRow, counts: Counts) -> Lane {
        let (pending, wishes) = (BTreeMap::new(), BTreeMap::new());
        let state = State { pending, wishes, queue: Vec::new(), committing: false, held, counts };
        Lane { log, segments, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }

    /// What the index has of this log.
    pub(super) fn held(&self) -> LogRow {
        self.state().held
    }

    /// What the index has of the segments of these changes.
    pub(super) fn counts_for(&self, changes: &[Change]) -> Counts {
        self.state().counts.part(changes.iter().flat_map(Change::segments))
    }

    /// What the index has of a segment.
    pub(super) fn count(&self, segment: u32) -> SegmentRow {
        self.state().counts.row(segment)
    }

    /// Bytes that its segments take on disk, about.
    pub(super) fn segment_bytes(&self) -> u64 {
        let counts = self.counts();
        let on_disk = |usage: SegmentUsage| match self.log {
            Log::Small => usage.len,
            Log::Large => {
                let counted = counts.get(&usage.segment).copied().unwrap_or_default();
                usage.len.min(SEGMENT_HEADER_LEN + counted.live + counted.tombstones)
            }
        };
        self.segments.segments().into_iter().map(on_disk).sum()
    }

    /// Segments that the index has something of.
    pub(super) fn counts(&self) -> BTreeMap<u32, SegmentRow> {
        self.state().counts.segments().collect()
    }

    /// The index has this now. Only for whoever commits.
    pub(super) fn set_held(&self, held: LogRow, counts: Counts) {
        let mut state = self.state();
        state.held = held;
        state.counts.update(counts);
    }

    /// A segment is gone: adds to the batch that the index has nothing of it.
    pub(super) fn forget(&self, segment: u32, batch: &mut Batch) {
        let mut state = self.state();
        state.counts.forget(segment);
        state.counts.write_to(batch, self.log);
    }

    /// Takes the chunk's lock, or leaves a waiter (if there is one) with whoever has it.
    pub(super) fn begin(&self, id: ChunkId, purpose: Purpose, waiter: Option<Waiter>) -> (Begun, Option<Waiter>) {
        let mut state = self.state();
        if let Some(pending) = state.pending.get_mut(&id) {
            if pending.purpose == Purpose::Delete && purpose == Purpose::Check {
                return (Begun::Dying, waiter);
            }
            if pending.purpose == Purpose::Put
                && is_broken(Rule::VouchingWaitsForThePut)
                && let Some(Waiter::Touch(reply)) = waiter
            {
                let _ = reply.send(Settled::Held);
                return (Begun::Waiting, None);
            }
            pending.waiters.extend(waiter);
            return (Begun::Waiting, None);
        }
        let floor = self.segments.end();
        state.pending.insert(id, Pending { purpose, floor, waiters: Vec::new() });
        (Begun::Mine, waiter)
    }

    /// Has the outcome told to one more. The caller has the chunk's lock.
    pub(super) fn wait_for(&self, id: ChunkId, waiter: Waiter) {
        let mut state = self.state();
        state.pending.get_mut(&id).expect("the caller has the chunk's lock").waiters.push(waiter);
    }

    /// Runs `work` while nobody has the chunk's lock, or not at all.
    pub(super) fn if_free(&self, id: ChunkId, work: impl FnOnce()) {
        let state = self.state();
        if !state.pending.contains_key(&id) {
            work();
        }
    }

    /// Wishes to delete a chunk, in the name of this nonce; an earlier wish is void. False: somebody is at the chunk, or
    /// too many wishes stand.
    pub(super) fn wish(&self, id: ChunkId, nonce: u64) -> bool {
        let mut state = self.state();
        let room = state.wishes.len() < WISHES_MAX || state.wishes.contains_key(&id);
        let stands = room && !state.pending.contains_key(&id);
        if stands {
            state.wishes.insert(id, nonce);
        }
        stands
    }

    /// Takes a wish back, if it stands.
    pub(super) fn unwish(&self, id: ChunkId, nonce: u64) {
        let mut state = self.state();
        if state.wishes.get(&id) == Some(&nonce) {
            state.wishes.remove(&id);
        }
    }

    /// Takes every wish back.
    pub(super) fn void_wishes(&self) {
        self.state().wishes.clear();
    }

    /// Takes the chunk's lock for a delete, if this wish still stands and nobody is at the chunk: one step. Whatever
    /// vouched for the chunk since has voided it ([`Lane::settle`]); what comes now finds the chunk dying.
    pub(super) fn begin_delete(&self, id: ChunkId, nonce: u64) -> Wished {
        let mut state = self.state();
        let stands = state.wishes.get(&id) == Some(&nonce) || is_broken(Rule::DeleteChecksTheWish);
        if !stands || state.pending.contains_key(&id) {
            return Wished::Void;
        }
        state.wishes.remove(&id);
        let floor = self.segments.end();
        state.pending.insert(id, Pending { purpose: Purpose::Delete, floor, waiters: Vec::new() });
        Wished::Mine
    }

    /// Gives up the chunk's lock and tells those who waited. Returns puts that must now be made after all.
    ///
    /// `Held` is the one place where a copy is vouched for, by put or touch: a standing wish to delete this chunk is
    /// voided here, under the lock that its delete would need.
    #[must_use]
    pub(super) fn settle(&self, id: ChunkId, how: &Settled) -> Vec<PutJob> {
        let waiters = {
            let mut state = self.state();
            if matches!(how, Settled::Held) && !is_broken(Rule::VouchingVoidsTheWish) {
                state.wishes.remove(&id);
            }
            state.pending.remove(&id).expect("only who took the chunk's lock settles it").waiters
        };
        let mut again = Vec::new();
        for waiter in waiters {
            match (waiter, how) {
                (Waiter::Put(job), Settled::Absent | Settled::Damaged) => again.push(job),
                (Waiter::Put(PutJob { reply, .. }) | Waiter::Touch(reply), how) => {
                    let _ = reply.send(how.clone()); // it may have stopped waiting
                }
            }
        }
        again
    }

    /// All records before this are in the index, once those of `changes` are.
    pub(super) fn indexed_after(&self, changes: &[Change]) -> Position {
        let own: BTreeSet<ChunkId> =
            changes.iter().filter(|change| change.has_lock()).map(|change| change.id).collect();
        let state = self.state();
        let others =
            state.pending.iter().filter(|(id, pending)| pending.purpose != Purpose::Check && !own.contains(id));
        let end = self.segments.end();
        others.map(|(_, pending)| pending.floor).min().map_or(end, |floor| floor.min(end))
    }

    /// Leaves changes for the group commit. True: nobody is at it, so the caller must be, until
    /// [`Lane::next_changes`] has no more.
    pub(super) fn enqueue(&self, changes: Vec<Change>) -> bool {
        let mut state = self.state();
        state.queue.extend(changes);
        !std::mem::replace(&mut state.committing, true)
    }

    /// Chunks being worked on, and appended records that wait for a sync that has not begun.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        (state.pending.len(), state.queue.len())
    }

    /// More waits. Only for whoever commits: nobody else may begin with it.
    pub(super) fn has_changes(&self) -> bool {
        !self.state().queue.is_empty()
    }

    /// All that waits. `None`: nothing, and the caller is no longer at it.
    pub(super) fn next_changes(&self) -> Option<Vec<Change>> {
        let mut state = self.state();
        if state.queue.is_empty() {
            state.committing = false;
            return None;
        }
        Some(std::mem::take(&mut state.queue))
    }
}

impl Inner {
    /// [`Lane::settle`], and makes the puts that follow from it.
    pub(super) fn settle(self: &Arc<Self>, lane: &Lane, id: ChunkId, how: &Settled) {
        let again = lane.settle(id, how);
        if !again.is_empty() {
            self.admit(lane.log, again);
        }
    }
}
