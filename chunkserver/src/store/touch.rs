//! Vouching for copies that are here: durable, and sound.

use super::format::{CHUNK, Log, Row, leaves_len};
use super::lane::{Begun, Lane, Purpose, Settled, Waiter};
use super::{CHECKS_AT_ONCE, DISK_WAIT_MAX, Inner, Store, StoreError};
use common::hash::ChunkHasher;
use common::id::ChunkId;
use common::kv::Batch;
use common::proto::chunk::ChunkRef;
use common::rules::{Rule, is_broken};
use common::segment::SegmentError;
use common::units::{len_u64, len_usize};
use common::world::at_once;
use futures::StreamExt;
use futures::stream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};
use tracing::warn;

/// Bytes read at a time while a whole chunk is hashed.
const CHECK_READ_LEN: usize = 1 << 20;

/// What is here of a chunk.
pub(super) enum Copy {
    /// No row.
    Absent,
    /// Durable, and written or verified in this run.
    Sound,
    /// A row whose record cannot be used: the next put replaces it.
    Bad(Row),
}

impl Store {
    /// For each chunk in order: true if it is here, durable and sound, with the length given. Waits for a put of it that
    /// is under way. A copy not yet looked at in this run is read and hashed first; what cannot be done in
    /// [`DISK_WAIT_MAX`] is not vouched for.
    ///
    /// # Errors
    /// `Fenced`: this store vouches for nothing. `Slow`: nor does it now.
    pub async fn touch(&self, chunks: &[ChunkRef]) -> Result<Vec<bool>, StoreError> {
        self.inner.check_fence()?;
        let (inner, wanted) = (self.inner.clone(), chunks.to_vec());
        let deadline = tokio::time::Instant::now() + DISK_WAIT_MAX;
        let first = self.inner.world.blocking(move || wanted.iter().map(|c| inner.quick(*c)).collect());
        let asked: Vec<Quick> = timeout_at(deadline, first).await.map_err(|_| self.slow("touch"))?;
        let answers = stream::iter(asked).map(|quick| timeout_at(deadline, self.ask(quick)));
        let touched: Vec<Result<bool, _>> = at_once(answers.buffered(CHECKS_AT_ONCE).collect()).await;
        self.inner.check_fence()?;
        Ok(touched.into_iter().map(|touched| touched.unwrap_or(false)).collect())
    }

    /// Reads a copy and hashes it, whatever was known of it. A damaged one is marked: it is not listed, not vouched for,
    /// and the next put of the chunk replaces it.
    ///
    /// # Errors
    /// `NotFound`. `Corrupt`: it is damaged. `Fenced`: nothing is said about it. `Slow`: not done in time.
    pub async fn verify(&self, id: ChunkId) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let look = self.inner.world.blocking(move || inner.index.row(id).map_err(|e| inner.index_failed(&e)));
        let row = timeout(DISK_WAIT_MAX, look).await.map_err(|_| self.slow("verify"))??;
        let Some(row) = row else { return Err(StoreError::NotFound { chunk: id }) };
        match timeout(DISK_WAIT_MAX, self.check(ChunkRef { id, len: row.len }, true)).await {
            Ok(Settled::Held) => Ok(()),
            Ok(Settled::Absent) => Err(StoreError::NotFound { chunk: id }), // deleted meanwhile
            Ok(Settled::Damaged) => Err(StoreError::Corrupt { chunk: id, why: "its bytes do not match the id".into() }),
            Ok(Settled::Failed(error)) => Err(error),
            Err(_) => Err(self.slow("verify")),
        }
    }

    async fn ask(&self, quick: Quick) -> bool {
        match quick {
            Quick::Absent => false,
            Quick::Asked(answer) => matches!(answer.await, Ok(Settled::Held)),
            Quick::Slow(chunk) => matches!(self.check(chunk, false).await, Settled::Held),
        }
    }

    async fn check(&self, chunk: ChunkRef, anew: bool) -> Settled {
        let (inner, (reply, answer)) = (self.inner.clone(), oneshot::channel());
        self.inner.world.blocking(move || inner.check(chunk, anew, reply)).await;
        answer.await.unwrap_or_else(|_| Settled::Failed(self.slow("check")))
    }
}

/// A first look at what a touch asks for.
enum Quick {
    Absent,
    Asked(oneshot::Receiver<Settled>),
    /// It must be read and hashed.
    Slow(ChunkRef),
}

impl Inner {
    fn quick(self: &Arc<Self>, chunk: ChunkRef) -> Quick {
        match self.index.row(chunk.id) {
            Err(error) => {
                self.index_failed(&error);
                Quick::Absent
            }
            Ok(Some(row)) if row.counts() && row.len == chunk.len && row.checked_in != self.run => Quick::Slow(chunk),
            Ok(_) => {
                let (reply, answer) = oneshot::channel();
                self.check(chunk, false, reply);
                Quick::Asked(answer)
            }
        }
    }

    /// Looks at what is here of a chunk, and says so to `reply`. One step under the chunk's lock.
    fn check(self: &Arc<Self>, chunk: ChunkRef, anew: bool, reply: oneshot::Sender<Settled>) {
        let lane = self.lane(Log::of(chunk.len));
        let (begun, waiter) = lane.begin(chunk.id, Purpose::Check, Some(Waiter::Touch(reply)));
        let Some(Waiter::Touch(reply)) = waiter else { return }; // told by whoever is at it
        let how = match begun {
            Begun::Dying if is_broken(Rule::TouchIsOneStep) => self.look(lane, chunk, anew),
            Begun::Waiting | Begun::Dying => Settled::Absent,
            Begun::Mine => {
                let how = self.look(lane, chunk, anew);
                self.settle(lane, chunk.id, &how);
                how
            }
        };
        let _ = reply.send(how); // it may have stopped waiting
    }

    /// [`Inner::copy_of`], as those who wait for the chunk are told.
    pub(super) fn look(&self, lane: &Lane, chunk: ChunkRef, anew: bool) -> Settled {
        match self.check_fence().and_then(|()| self.copy_of(lane, chunk, anew)) {
            Ok(Copy::Sound) => Settled::Held,
            Ok(Copy::Absent) => Settled::Absent,
            Ok(Copy::Bad(_)) => Settled::Damaged,
            Err(error) => Settled::Failed(error),
        }
    }

    /// What is here of a chunk. The caller has its lock. `anew`: reads it even if it was written or verified in this run.
    pub(super) fn copy_of(&self, lane: &Lane, chunk: ChunkRef, anew: bool) -> Result<Copy, StoreError> {
        let Some(row) = self.index.row(chunk.id).map_err(|e| self.index_failed(&e))? else { return Ok(Copy::Absent) };
        if row.damaged || (row.unreadable && !anew) {
            return Ok(Copy::Bad(row));
        }
        if row.len != chunk.len {
            return Ok(Copy::Absent); // nobody who knows the bytes asks with this length
        }
        if (row.checked_in == self.run || is_broken(Rule::PunchComesLast)) && !anew {
            return Ok(Copy::Sound);
        }
        match self.hash_copy(lane, chunk, &row) {
            Ok(true) => {
                self.write_row(chunk.id, Row { checked_in: self.run, unreadable: false, ..row })?;
                Ok(Copy::Sound)
            }
            Ok(false) => {
                self.mark_damaged(chunk.id, row, "its bytes do not match the id")?;
                Ok(Copy::Bad(row))
            }
            Err(error @ (SegmentError::Absent { .. } | SegmentError::Damaged { .. })) => {
                self.mark_damaged(chunk.id, row, &error.to_string())?;
                Ok(Copy::Bad(row))
            }
            Err(error) => {
                warn!(chunk = %chunk.id, error = %error, "cannot read a copy to verify it");
                self.doubt(chunk.id, row)?;
                Ok(Copy::Bad(row))
            }
        }
    }

    /// Whether the record holds the chunk's bytes and leaves: on the disk, not in the page cache, where that can be told.
    fn hash_copy(&self, lane: &Lane, chunk: ChunkRef, row: &Row) -> Result<bool, SegmentError> {
        let mut hasher = ChunkHasher::new(chunk.len);
        let len = len_usize(chunk.len.into());
        for at in (0..len).step_by(CHECK_READ_LEN) {
            let piece = lane.segments.read_body_direct(row.position, len_u64(at), CHECK_READ_LEN.min(len - at))?;
            hasher.update(&piece);
        }
        let mut trailer = vec![0; leaves_len(chunk.len)];
        lane.segments.read_body(row.position, len_u64(len), &mut trailer)?;
        let (id, leaves) = hasher.finish();
        Ok(id == chunk.id && leaves.as_flattened() == trailer)
    }

    /// Flags the row. The caller has the chunk's lock.
    pub(super) fn mark_damaged(&self, id: ChunkId, row: Row, why: &str) -> Result<(), StoreError> {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        warn!(chunk = %id, position = %row.position, error = why, "damaged copy found");
        self.write_row(id, Row { damaged: true, checked_in: 0, ..row })
    }

    /// The disk did not read the copy ([`Row::unreadable`]). The caller has the chunk's lock.
    pub(super) fn doubt(&self, id: ChunkId, row: Row) -> Result<(), StoreError> {
        if row.unreadable { Ok(()) } else { self.write_row(id, Row { unreadable: true, checked_in: 0, ..row }) }
    }

    fn write_row(&self, id: ChunkId, row: Row) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(CHUNK, id.0, row.encode());
        self.index.write(batch).map_err(|e| self.index_failed(&e))
    }
}
