//! Deleting a chunk: tombstone, row, bytes, in that order, each durable before the next.
//!
//! A crash before the tombstone is durable leaves the chunk intact; one after it leaves no row (recovery reads the
//! tombstone) and the punching is done at the next start. There is nothing in between.

use super::format::{self, DEAD, KIND_TOMBSTONE, Log};
use super::lane::{Change, Lane, Settled, Waiter, What, Wished};
use super::{DISK_WAIT_MAX, Inner, Store, StoreError};
use common::id::ChunkId;
use common::kv::Batch;
use common::rules::{Rule, is_broken};
use common::segment::{Position, Record, SegmentError};
use futures::future::{Either, select};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

impl Store {
    /// Wishes to delete this store's copy of a chunk: an ask or a drop round, named by its random `nonce`. From now on
    /// whatever vouches for the copy (a put, a touch, a confirmation to another server) voids the wish; so does a later
    /// wish, and a restart. False: there is no copy, or somebody is at it just now.
    pub fn wish(&self, id: ChunkId, nonce: u64) -> bool {
        let row =
            self.inner.check_fence().and_then(|()| self.inner.index.row(id).map_err(|e| self.inner.index_failed(&e)));
        match row {
            Ok(Some(row)) => self.inner.lane(Log::of(row.len)).wish(id, nonce),
            Ok(None) | Err(_) => false,
        }
    }

    /// Takes a wish back.
    pub fn unwish(&self, id: ChunkId, nonce: u64) {
        self.inner.lanes.iter().for_each(|lane| lane.unwish(id, nonce));
    }

    /// Takes every wish back: the cluster has another epoch, and no grant of the one before may be used.
    pub fn void_wishes(&self) {
        self.inner.lanes.iter().for_each(Lane::void_wishes);
    }

    /// Deletes this store's copy of a chunk if the wish with this nonce still stands; checking and deleting are one step.
    /// When it returns the copy is gone for good; its space comes back with the next flush. *That nobody may rely on it
    /// any more but those who void the wish* is for the caller to know (DESIGN, section 7). Its length, in bytes.
    ///
    /// # Errors
    /// `NotFound`. `Busy`: the wish does not stand (any more), so it stays. `Fenced`, `Slow`: it may be gone or not.
    pub async fn delete(&self, id: ChunkId, nonce: u64) -> Result<u32, StoreError> {
        let (inner, (reply, answer)) = (self.inner.clone(), oneshot::channel());
        let work = async {
            // The work may go on for others after our answer is there.
            let work = self.inner.world.blocking(move || inner.delete(id, nonce, reply));
            let answer = match select(pin!(work), answer).await {
                Either::Left((done, answer)) => match done {
                    Ok(len) => answer.await.map(|answer| (len, answer)),
                    Err(error) => return Err(error),
                },
                Either::Right((answer, work)) => {
                    let len = work.await?;
                    answer.map(|answer| (len, answer))
                }
            };
            match answer {
                Ok((len, Settled::Absent)) => Ok(len),
                Ok((_, Settled::Failed(error))) => Err(error),
                Ok((_, Settled::Held | Settled::Damaged)) | Err(_) => Err(StoreError::Busy { chunk: id }),
            }
        };
        timeout(DISK_WAIT_MAX, work).await.unwrap_or_else(|_| Err(self.slow("delete")))
    }
}

impl Inner {
    fn delete(self: &Arc<Self>, id: ChunkId, nonce: u64, reply: oneshot::Sender<Settled>) -> Result<u32, StoreError> {
        self.check_fence()?;
        let row = |()| self.index.row(id).map_err(|e| self.index_failed(&e));
        let Some(seen) = row(())? else { return Err(StoreError::NotFound { chunk: id }) };
        let lane = self.lane(Log::of(seen.len));
        if lane.begin_delete(id, nonce) == Wished::Void {
            return Err(StoreError::Busy { chunk: id });
        }
        // The row, now that nobody can change it.
        let old = match row(()) {
            Ok(Some(old)) => old,
            Ok(None) => {
                self.settle(lane, id, &Settled::Absent);
                return Err(StoreError::NotFound { chunk: id });
            }
            Err(error) => {
                self.settle(lane, id, &Settled::Failed(error.clone()));
                return Err(error);
            }
        };
        if is_broken(Rule::PunchComesLast) {
            let _ = lane.segments.punch(old.position);
        }
        // In the log of the record, behind it: recovery meets them in this order.
        let dead = format::position_value(old.position);
        let record = Record { kind: KIND_TOMBSTONE, key: id.0, payload: &dead, trailer: &[], checksum: true };
        match lane.segments.append(&[record]) {
            Ok(positions) => {
                lane.wait_for(id, Waiter::Touch(reply));
                self.commit_all(lane.log, vec![Change { id, position: positions[0], what: What::Delete { old } }]);
                Ok(old.len)
            }
            Err(error) => {
                let error = self.write_failed(error);
                self.settle(lane, id, &Settled::Failed(error.clone()));
                Err(error)
            }
        }
    }

    /// Gives back the space of records whose rows are durably gone.
    pub(super) fn punch(&self, dead: &[(Log, Position)]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (log, position) in dead {
            match self.lane(*log).segments.punch(*position) {
                Ok(_) | Err(SegmentError::Absent { .. }) => {} // compacted away meanwhile
                Err(error) => {
                    warn!(position = %position, error = %error, "cannot give back the space of a deleted chunk")
                }
            }
            batch.delete(DEAD, format::dead_key(*log, *position));
        }
        if dead.is_empty() {
            return Ok(());
        }
        self.index.write(batch).map_err(|e| self.index_failed(&e))
    }
}
