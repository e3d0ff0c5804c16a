//! Taking a chunk in: look, append, sync, index, acknowledge.
//!
//! Whoever finds nobody committing in a lane commits for all who come meanwhile: one sync, one index batch, then the
//! answers. There is no committer task to wake, so a lone put is one trip to a disk thread and back.

use super::chunk::VerifiedChunk;
use super::format::{self, CHUNK, DEAD, KIND_CHUNK, LOG, Log, LogRow, Row};
use super::lane::{Answer, Begun, Change, Lane, Purpose, PutJob, Settled, Waiter, What};
use super::touch::Copy;
use super::{DISK_WAIT_MAX, FLUSH_BYTES, FLUSH_ROWS, Inner, PUTS_IN_FLIGHT_MAX, Store, StoreError};
use common::kv::Batch;
use common::rules::{Rule, is_broken};
use common::segment::format::RECORD_HEADER_LEN;
use common::segment::{Position, Record, SegmentError};
use common::units::len_u64;
use common::world::{at_once, has_own_thread};
use futures::future::{Either, join_all, select};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Small chunks appended in one write, at most.
const APPEND_CHUNKS_MAX: usize = 1024;

impl Store {
    /// Stores a chunk: durable, and readable here, when this returns. A sound copy that is here already is not written
    /// again; a damaged one is replaced. Dropping the call does not stop it.
    ///
    /// # Errors
    /// `NoSpace`: nothing was written. `Fenced`, `Slow`: it may be stored or not.
    pub async fn put(&self, chunk: VerifiedChunk) -> Result<(), StoreError> {
        self.put_all(vec![chunk]).await.pop().expect("one answer for each chunk")
    }

    /// Stores several chunks, each for itself like [`Store::put`], with one sync for all small ones. Answers come in the
    /// order of the chunks.
    pub async fn put_all(&self, chunks: Vec<VerifiedChunk>) -> Vec<Result<(), StoreError>> {
        let count = chunks.len();
        let mut answers = Vec::with_capacity(count);
        let mut rest = chunks.into_iter();
        loop {
            let some: Vec<VerifiedChunk> = rest.by_ref().take(APPEND_CHUNKS_MAX).collect();
            if some.is_empty() {
                return answers;
            }
            let wanted = some.len();
            let outcome = timeout(DISK_WAIT_MAX, self.put_some(some)).await;
            answers.extend(outcome.unwrap_or_else(|_| vec![Err(self.slow("put")); wanted]));
        }
    }

    async fn put_some(&self, chunks: Vec<VerifiedChunk>) -> Vec<Result<(), StoreError>> {
        let inner = &self.inner;
        inner.used.fetch_add(1, Ordering::Relaxed);
        let wanted = u32::try_from(chunks.len()).expect("at most APPEND_CHUNKS_MAX");
        let mut permits = inner.puts.clone().acquire_many_owned(wanted).await.expect("never closed");
        let mut replies = Vec::with_capacity(chunks.len());
        let (mut batches, mut small) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let (reply, answer) = oneshot::channel();
            replies.push(answer);
            let permit = permits.split(1).expect("one for each chunk");
            let job = PutJob { chunk, permit, reply };
            match Log::of(job.chunk.chunk.len) {
                Log::Small => small.push(job),
                Log::Large => batches.push((Log::Large, vec![job])),
            }
        }
        if !small.is_empty() {
            batches.push((Log::Small, small));
        }
        let several = batches.len() > 1;
        let work = join_all(batches.into_iter().map(|(log, jobs)| {
            let inner = inner.clone();
            self.inner.world.blocking(move || inner.admit(log, jobs))
        }));
        let work = if several { Either::Left(at_once(work)) } else { Either::Right(work) };
        // The work goes on for others after our answers are there.
        let answers = match select(pin!(join_all(replies)), pin!(work)).await {
            Either::Left((answers, _)) => answers,
            Either::Right((_, answers)) => answers.await,
        };
        answers.into_iter().map(|answer| self.outcome(answer)).collect()
    }

    fn outcome(&self, answer: Result<Settled, oneshot::error::RecvError>) -> Result<(), StoreError> {
        match answer {
            Ok(Settled::Held) => Ok(()),
            Ok(Settled::Failed(error)) => Err(error),
            Ok(Settled::Absent | Settled::Damaged) | Err(_) => Err(self.slow("put")), // only if the process is going down
        }
    }

    pub(super) fn slow(&self, doing: &'static str) -> StoreError {
        StoreError::Slow { doing, dir: self.inner.config.dir.clone(), waited: DISK_WAIT_MAX }
    }
}

/// A put that has its chunk's lock and needs a record.
struct Fresh {
    job: PutJob,
    old: Option<Row>,
}

impl Inner {
    /// Makes these puts of one lane, and commits for everybody if nobody else does.
    pub(super) fn admit(self: &Arc<Self>, log: Log, jobs: Vec<PutJob>) {
        let lane = self.lane(log);
        let fresh: Vec<Fresh> = jobs.into_iter().filter_map(|job| self.screen(lane, job)).collect();
        if fresh.is_empty() {
            return;
        }
        match self.append(lane, fresh) {
            Ok(changes) => self.commit_all(log, changes),
            Err((fresh, error)) => {
                for Fresh { job, .. } in fresh {
                    let failed = Settled::Failed(error.clone());
                    self.settle(lane, job.chunk.chunk.id, &failed);
                    let _ = job.reply.send(failed);
                }
            }
        }
    }

    /// Answers a put for which a sound copy is here; leaves one with whoever works on the chunk.
    fn screen(self: &Arc<Self>, lane: &Lane, job: PutJob) -> Option<Fresh> {
        let chunk = job.chunk.chunk;
        let (Begun::Mine, Some(Waiter::Put(job))) = lane.begin(chunk.id, Purpose::Put, Some(Waiter::Put(job))) else {
            return None;
        };
        let how = match self.check_fence().and_then(|()| self.copy_of(lane, chunk, false)) {
            Ok(Copy::Sound) => Settled::Held,
            Ok(Copy::Absent) => return Some(Fresh { job, old: None }),
            Ok(Copy::Bad(old)) => return Some(Fresh { job, old: Some(old) }),
            Err(error) => Settled::Failed(error),
        };
        self.settle(lane, chunk.id, &how);
        let _ = job.reply.send(how);
        None
    }

    fn append(&self, lane: &Lane, fresh: Vec<Fresh>) -> Result<Vec<Change>, (Vec<Fresh>, StoreError)> {
        if let Err(error) = self.check_space(&fresh) {
            return Err((fresh, error));
        }
        let mut fresh = fresh;
        let positions = match lane.log {
            Log::Small => {
                let records: Vec<Record<'_>> = fresh.iter().map(|fresh| record_of(&fresh.job.chunk)).collect();
                lane.segments.append(&records)
            }
            Log::Large => fresh.iter_mut().map(|fresh| append_direct(lane, &mut fresh.job.chunk)).collect(),
        };
        match positions {
            Ok(positions) => Ok(fresh.into_iter().zip(positions).map(|(fresh, at)| change_of(fresh, at)).collect()),
            Err(error) => {
                let error = self.write_failed(error);
                Err((fresh, error))
            }
        }
    }

    /// A full disk is found before anything is written; anything else that a write says closes the store.
    pub(super) fn write_failed(&self, error: SegmentError) -> StoreError {
        match error {
            SegmentError::NoSpace { .. } => {
                let free = self.world.disk.space(&self.config.dir).map_or(0, |(_, free)| free);
                StoreError::NoSpace { dir: self.config.dir.clone(), free, reserve: self.config.reserve_bytes }
            }
            SegmentError::Fenced { .. }
            | SegmentError::Damaged { .. }
            | SegmentError::Absent { .. }
            | SegmentError::Foreign { .. }
            | SegmentError::Invalid { .. }
            | SegmentError::Disk { .. } => self.fence(&error),
        }
    }

    fn check_space(&self, fresh: &[Fresh]) -> Result<(), StoreError> {
        let (_, free) = self.world.disk.space(&self.config.dir).map_err(|e| self.fence(&e))?;
        let needed: u64 = fresh.iter().map(|fresh| len_u64(fresh.job.chunk.buf.capacity())).sum();
        let reserve = self.config.reserve_bytes;
        let full = free < reserve.saturating_add(needed);
        self.refused.store(full, Ordering::Relaxed);
        if full {
            return Err(StoreError::NoSpace { dir: self.config.dir.clone(), free, reserve });
        }
        Ok(())
    }

    /// Leaves the changes for the group commit, and does it if nobody else is at it.
    pub(super) fn commit_all(self: &Arc<Self>, log: Log, changes: Vec<Change>) {
        if self.lane(log).enqueue(changes) {
            self.commit_queue(log);
        }
    }

    /// The group commit, while there is something to commit. A thread that has a connection to answer leaves what has come
    /// meanwhile to another one.
    fn commit_queue(self: &Arc<Self>, log: Log) {
        let lane = self.lane(log);
        while let Some(changes) = lane.next_changes() {
            let outcome = self.commit(lane, &changes);
            for change in changes {
                self.tell(lane, change, &outcome);
            }
            if has_own_thread() && lane.has_changes() {
                let inner = Arc::clone(self);
                drop(tokio::task::spawn_blocking(move || inner.commit_queue(log)));
                return;
            }
        }
    }

    fn tell(self: &Arc<Self>, lane: &Lane, change: Change, outcome: &Result<(), StoreError>) {
        let how = match (outcome, &change.what) {
            (Err(_), What::Put { .. }) if is_broken(Rule::AcknowledgedIsDurable) => Settled::Held, // it did not wait
            (Err(error), _) => Settled::Failed(error.clone()),
            (Ok(()), What::Put { .. } | What::Move { .. }) => Settled::Held, // a move has read and hashed it
            (Ok(()), What::Delete { .. } | What::Carried { .. } | What::Nothing) => Settled::Absent,
        };
        if change.has_lock() {
            self.settle(lane, change.id, &how);
        }
        if let What::Put { job: Answer { reply, permit }, .. } = change.what {
            drop(permit);
            let _ = reply.send(how);
        }
    }

    /// Sync, then the index rows, in one batch with how far the index now follows the log.
    fn commit(&self, lane: &Lane, changes: &[Change]) -> Result<(), StoreError> {
        self.check_fence()?;
        lane.segments.sync().map_err(|e| self.fence(&e))?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let (mut batch, mut held, mut bytes) = (Batch::default(), lane.held(), 0);
        let mut counts = lane.counts_for(changes);
        let now = u64::try_from(self.world.now().secs).unwrap_or(0);
        for change in changes {
            match &change.what {
                What::Put { len, old, .. } => {
                    let (position, len) = (change.position, *len);
                    let row =
                        Row { damaged: false, unreadable: false, position, len, put_secs: now, checked_in: self.run };
                    batch.put(CHUNK, change.id.0, row.encode());
                    if let Some(old) = old {
                        held.remove(old.len);
                        counts.replace(old.position, old.len);
                        batch.put(DEAD, format::dead_key(lane.log, old.position), []);
                    }
                    held.add(len);
                    counts.add(position, len);
                    bytes += u64::from(len);
                }
                What::Delete { old } => {
                    batch.delete(CHUNK, change.id.0);
                    batch.put(DEAD, format::dead_key(lane.log, old.position), []);
                    held.remove(old.len);
                    counts.remove(old.position, old.len);
                    counts.tombstone(lane.log, change.position);
                }
                // The old record goes with its segment: who reads it now may finish.
                What::Move { old, .. } => {
                    let row = Row { position: change.position, checked_in: self.run, unreadable: false, ..*old };
                    batch.put(CHUNK, change.id.0, row.encode());
                    counts.replace(old.position, old.len);
                    counts.add(row.position, row.len);
                    bytes += u64::from(row.len);
                }
                What::Carried { .. } => counts.tombstone(lane.log, change.position),
                What::Nothing => {}
            }
        }
        held.indexed = Some(lane.indexed_after(changes));
        batch.put(LOG, lane.log.key(), held.encode());
        counts.write_to(&mut batch, lane.log);
        self.index.write(batch).map_err(|e| self.index_failed(&e))?;
        lane.set_held(held, counts);
        self.count_unflushed(len_u64(changes.len()), bytes);
        Ok(())
    }

    /// Wakes the flush when enough lies behind the last one.
    fn count_unflushed(&self, rows: u64, bytes: u64) {
        let rows = self.unflushed_rows.fetch_add(rows, Ordering::Relaxed) + rows;
        let bytes = self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if rows >= FLUSH_ROWS || bytes >= FLUSH_BYTES {
            self.flush_due.notify_one();
        }
    }
}

impl LogRow {
    pub(super) fn add(&mut self, len: u32) {
        self.chunks += 1;
        self.bytes += u64::from(len);
    }

    pub(super) fn remove(&mut self, len: u32) {
        self.chunks = self.chunks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(len.into());
    }
}

fn record_of(chunk: &VerifiedChunk) -> Record<'_> {
    let (payload, trailer) = (chunk.bytes(), chunk.trailer());
    Record { kind: KIND_CHUNK, key: chunk.chunk.id.0, payload, trailer, checksum: true }
}

/// Without a checksum of its own: the hash tree in the trailer does that job.
fn append_direct(lane: &Lane, chunk: &mut VerifiedChunk) -> Result<Position, SegmentError> {
    let whole = RECORD_HEADER_LEN + common::units::len_usize(chunk.chunk.len.into()) + chunk.trailer().len();
    debug_assert_eq!(chunk.buf.len(), whole, "header room, bytes, leaves");
    lane.segments.append_buf(KIND_CHUNK, chunk.chunk.id.0, false, chunk.chunk.len, &mut chunk.buf)
}

fn change_of(fresh: Fresh, position: Position) -> Change {
    let PutJob { chunk, permit, reply } = fresh.job;
    let what = What::Put { len: chunk.chunk.len, old: fresh.old, job: Answer { reply, permit } };
    Change { id: chunk.chunk.id, position, what }
}

const _: () = assert!(APPEND_CHUNKS_MAX <= PUTS_IN_FLIGHT_MAX, "a batch can be let in");
