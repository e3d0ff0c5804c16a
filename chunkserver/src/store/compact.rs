//! Compaction: a segment with little left in it is copied to the end of its log and removed.
//!
//! Live records are read, verified and appended again; the rows move in the group commit that puts use, each under its
//! chunk's lock. Then, in this order, each step durable before the next: rows that point into the segment are gone from
//! the index; the log says that the segment was removed, with all that was copied before it; its file is removed. A
//! crash in between leaves both places or the new one, and records that are newer win.
//!
//! A copy that does not verify is marked damaged and stays where it is: the segment is removed when a repair has replaced
//! it, or it was deleted. So a row never points into a segment that is not there.
//!
//! **Tombstones.** An index that is made anew must not find a deleted chunk again. A tombstone names the record that was
//! live when its chunk was deleted, and kills the older ones of that chunk, too. Which are there? Records that were
//! deleted before, each with a tombstone of its own that names it; and records that were replaced by a newer one without
//! a tombstone, by compaction or repair: a segment that may hold any counts them
//! ([`SegmentRow::superseded`](super::format::SegmentRow)). Hence a tombstone is copied while the segment of the record that it names is
//! there, or an older one with superseded records is; else it says nothing any more.

use super::choose::{Candidate, RETRY_AFTER, Stuck, choose};
use super::format::{self, CHUNK, KIND_CHUNK, KIND_TOMBSTONE, LOG, Log, Row, leaves_len, record_len};
use super::lane::{Begun, Change, Done, Lane, Purpose, Settled, What};
use super::{DISK_WAIT_MAX, Inner, Store, StoreError};
use bytes::Bytes;
use common::hash::hash_chunk;
use common::id::ChunkId;
use common::kv::Batch;
use common::proto::chunk::ChunkRef;
use common::segment::{Position, Record, SegmentError, Walk};
use common::units::{len_u64, len_usize};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The segment that takes appends is closed, so that it can be compacted, when it has this part of a full one's length and
/// is below the share.
const CLOSE_PART: u64 = 16;
/// How often it is looked whether there is something to compact.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Bytes a second, walked over and copied, while clients put or read and there is room.
const BUSY_RATE: u64 = 32 << 20;
/// The same while nobody does, or puts are refused for want of room.
const IDLE_RATE: u64 = 256 << 20;
/// Bytes of records copied at a time, about: at most one record more, 64 MiB.
const COPY_LEN: u64 = 1 << 20;
/// Records copied at a time, at most.
const COPY_RECORDS_MAX: usize = 1024;
/// Bytes walked over at a time, about.
const WALK_LEN: u64 = 4 << 20;
/// Walks over a segment in one attempt: somebody may be at a chunk when its turn comes.
const WALKS_MAX: usize = 3;
/// Room that must be left when all of a segment's live records were copied, in bytes, at most.
const ROOM_LEFT: u64 = 64 << 20;
/// Rows of the index looked at in one go for those that point into a segment.
const ROWS_AT_ONCE: usize = 16 << 10;

/// Compacts now and then, until the store is dropped.
pub(super) async fn compact_when_due(store: Weak<Inner>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Some(inner) = store.upgrade() else { return };
        let (pace, mut seen) = (inner.clone(), inner.used.load(Ordering::Relaxed));
        let pause = move |bytes: u64| {
            let used = pace.used.load(Ordering::Relaxed);
            let busy = std::mem::replace(&mut seen, used) != used;
            let rate = if busy && !pace.refused.load(Ordering::Relaxed) { BUSY_RATE } else { IDLE_RATE };
            Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate) // 8 MiB or a record are counted at a time
        };
        let store = Store { inner };
        let done = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            done = store.compact(pause) => done,
        };
        match done {
            Ok(_) => {}
            Err(StoreError::Fenced { .. }) => return, // said when it was fenced
            Err(error) => debug!(dir = %store.dir().display(), %error, "compaction goes on later"),
        }
    }
}

impl Store {
    /// Compacts until nothing is worth it. `pause`: how long to wait after so many bytes. How many segments were removed.
    /// Dropping the call ends it after the batch under way; nothing is left half done.
    ///
    /// # Errors
    /// `NoSpace`: no room to copy to; `Slow`: later. `Fenced`.
    pub(super) async fn compact(&self, mut pause: impl FnMut(u64) -> Duration) -> Result<u64, StoreError> {
        let mut progress = self.inner.compacting.lock().await;
        let mut removed = 0;
        for log in Log::ALL {
            loop {
                let inner = self.inner.clone();
                let (all, room) = self.inner.world.blocking(move || inner.candidates(log)).await?;
                let Some(found) = choose(log, &all, room, &progress, Instant::now()) else { break };
                let key = (log, found.segment);
                let carry = progress.stuck.get(&key).is_none_or(|stuck| !stuck.carried);
                match self.compact_segment(log, found.segment, carry, &mut pause).await? {
                    None => {
                        debug!(dir = log.dir(), segment = found.segment, len = found.len, "segment compacted");
                        progress.stuck.remove(&key);
                        progress.credit = progress.credit.saturating_add(found.len - found.kept());
                        removed += 1;
                    }
                    Some(stuck) => {
                        let live = stuck.counted.live;
                        info!(dir = log.dir(), segment = found.segment, live, "a segment could not be emptied yet");
                        progress.stuck.insert(key, stuck);
                    }
                }
                if !found.gains(log, found.kept()) {
                    progress.credit = progress.credit.saturating_sub(found.counted.tombstones);
                }
            }
        }
        Ok(removed)
    }

    /// `None`: the segment is gone.
    async fn compact_segment(
        &self,
        log: Log,
        segment: u32,
        carry: bool,
        pause: &mut impl FnMut(u64) -> Duration,
    ) -> Result<Option<Stuck>, StoreError> {
        let count = || self.inner.lane(log).count(segment);
        let stuck = |carried| Stuck { counted: count(), until: Instant::now() + RETRY_AFTER, carried };
        for walk in 0..WALKS_MAX {
            if !self.copy_segment(log, segment, carry && walk == 0, pause).await? {
                return Ok(Some(stuck(!carry || walk > 0)));
            }
            if count().live == 0 {
                return self.retire(log, segment).await;
            }
        }
        self.copy_left(log, segment, pause).await?;
        if count().live > 0 { Ok(Some(stuck(true))) } else { self.retire(log, segment).await }
    }

    async fn retire(&self, log: Log, segment: u32) -> Result<Option<Stuck>, StoreError> {
        let inner = self.inner.clone();
        self.inner.world.blocking(move || inner.retire(log, segment)).await.map(|()| None)
    }

    /// Walks over a segment once and copies what is to be kept. False: it could not be walked to its end.
    async fn copy_segment(
        &self,
        log: Log,
        segment: u32,
        carry: bool,
        pause: &mut impl FnMut(u64) -> Duration,
    ) -> Result<bool, StoreError> {
        let inner = self.inner.clone();
        let mut walk = match self.inner.world.blocking(move || inner.lane(log).segments.walk(segment)).await {
            Ok(walk) => walk,
            Err(error) => {
                warn!(dir = log.dir(), segment, %error, "a segment cannot be compacted");
                return Ok(false);
            }
        };
        loop {
            let (inner, (done, settled)) = (self.inner.clone(), oneshot::channel());
            let work = self.inner.world.blocking(move || {
                let copied = inner.copy_some(log, &mut walk, carry, &Arc::new(done));
                (walk, copied)
            });
            let (walked, copied) = work.await;
            walk = walked;
            let Copied { bytes, ended } = copied?;
            self.until_settled(settled).await?;
            match ended {
                Some(whole) => return Ok(whole),
                None => tokio::time::sleep(pause(bytes)).await,
            }
        }
    }

    /// Copies what rows still have in a segment: a record whose header is damaged is not met by walking.
    async fn copy_left(
        &self,
        log: Log,
        segment: u32,
        pause: &mut impl FnMut(u64) -> Duration,
    ) -> Result<(), StoreError> {
        let mut from = Some(ChunkId([0; 32]));
        while let Some(at) = from {
            let (inner, (done, settled)) = (self.inner.clone(), oneshot::channel());
            let work = self.inner.world.blocking(move || inner.copy_rows(log, segment, at, &Arc::new(done)));
            let (bytes, next) = work.await?;
            self.until_settled(settled).await?;
            tokio::time::sleep(pause(bytes)).await;
            from = next;
        }
        Ok(())
    }

    /// Waits until the other end is dropped: nobody sends.
    async fn until_settled(&self, settled: oneshot::Receiver<()>) -> Result<(), StoreError> {
        match timeout(DISK_WAIT_MAX, settled).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.slow("compact")),
        }
    }
}

/// What one step of a walk did.
struct Copied {
    /// Walked over and copied.
    bytes: u64,
    /// `Some`: the walk is over; true if it met all of the segment.
    ended: Option<bool>,
}

/// A live record, read and verified. The chunk's lock is held.
struct Live {
    id: ChunkId,
    row: Row,
    payload: Bytes,
    trailer: Vec<u8>,
}

/// What is to be copied of a part of a segment.
#[derive(Default)]
struct Gathered {
    live: Vec<Live>,
    tombstones: Vec<(ChunkId, Position)>,
    bytes: u64,
}

impl Gathered {
    fn live(&mut self, taken: Option<Live>) {
        if let Some(live) = taken {
            self.bytes += record_len(live.row.len);
            self.live.push(live);
        }
    }

    fn is_enough(&self) -> bool {
        self.bytes >= COPY_LEN || self.live.len() + self.tombstones.len() >= COPY_RECORDS_MAX
    }
}

/// The segments of a log that tombstones may be needed for.
struct Needed {
    there: BTreeSet<u32>,
    /// The oldest one with superseded records.
    superseded: Option<u32>,
}

impl Needed {
    fn is_needed(&self, dead: Position) -> bool {
        self.there.contains(&dead.segment) || self.superseded.is_some_and(|oldest| oldest < dead.segment)
    }
}

impl Inner {
    /// Bytes that may be copied: the reserve that puts leave is for this.
    fn room(&self) -> u64 {
        let (_, free) = self.world.disk.space(&self.config.dir).unwrap_or((0, 0));
        free.saturating_sub(ROOM_LEFT.min(self.config.reserve_bytes / 8))
    }

    /// Segments that take no more records and of which the index has all, so that no put, delete or move under way has
    /// a record there. And bytes that may be copied.
    fn candidates(self: &Arc<Self>, log: Log) -> Result<(Vec<Candidate>, u64), StoreError> {
        self.check_fence()?;
        let lane = self.lane(log);
        self.close_if_empty(lane)?;
        let end = lane.segments.end();
        if lane.held().indexed.is_none_or(|indexed| indexed.segment < end.segment) {
            let follow = Change { id: ChunkId([0; 32]), position: end, what: What::Nothing };
            self.commit_all(log, vec![follow]);
        }
        let indexed = lane.held().indexed.map_or(0, |indexed| indexed.segment);
        let counts = lane.counts();
        let closed = lane.segments.segments().into_iter().filter(|usage| usage.segment < indexed.min(end.segment));
        let candidate = |usage: common::segment::SegmentUsage| {
            let counted = counts.get(&usage.segment).copied().unwrap_or_default();
            Candidate { segment: usage.segment, len: usage.len, counted }
        };
        Ok((closed.map(candidate).collect(), self.room()))
    }

    /// Closes the segment that takes appends if it holds little for its length.
    fn close_if_empty(&self, lane: &Lane) -> Result<(), StoreError> {
        let end = lane.segments.end();
        let now = Candidate { segment: end.segment, len: end.offset, counted: lane.count(end.segment) };
        let long = now.len >= self.config.segment_len_max / CLOSE_PART;
        if !long || !now.gains(lane.log, now.kept()) {
            return Ok(());
        }
        match lane.segments.roll() {
            Ok(()) | Err(SegmentError::NoSpace { .. }) => Ok(()), // others may be removed all the same
            Err(error) => Err(self.write_failed(error)),
        }
    }

    /// Copies what is to be kept of the next part of a segment. The changes are in the group commit when this returns;
    /// `done` goes with them.
    fn copy_some(self: &Arc<Self>, log: Log, walk: &mut Walk, carry: bool, done: &Done) -> Result<Copied, StoreError> {
        self.check_fence()?;
        let (lane, begin) = (self.lane(log), walk.offset());
        let mut gathered = Gathered::default();
        let ended = self.gather(lane, walk, carry, &mut gathered);
        let bytes = gathered.bytes + (walk.offset() - begin);
        self.append_again(lane, gathered, done)?;
        Ok(Copied { bytes, ended: ended? })
    }

    /// Reads on until there is enough. What was gathered counts also if it ends with an error.
    fn gather(
        self: &Arc<Self>,
        lane: &Lane,
        walk: &mut Walk,
        carry: bool,
        into: &mut Gathered,
    ) -> Result<Option<bool>, StoreError> {
        let begin = walk.offset();
        let mut needed = None;
        loop {
            let (at, header) = match walk.next_record() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(Some(true)),
                Err(error) => {
                    warn!(dir = lane.log.dir(), %error, "a segment cannot be read to its end: it stays");
                    return Ok(Some(false));
                }
            };
            if header.kind == KIND_CHUNK {
                into.live(self.take(lane, at, ChunkRef { id: ChunkId(header.key), len: header.payload_len })?);
            } else if header.kind == KIND_TOMBSTONE && carry {
                let needed = needed.get_or_insert_with(|| needed_for(lane, at.segment));
                if let Some(dead) = named_by(lane, at).filter(|dead| needed.is_needed(*dead)) {
                    into.bytes += lane.log.tombstone_len();
                    into.tombstones.push((ChunkId(header.key), dead));
                }
            }
            if into.is_enough() || walk.offset() - begin >= WALK_LEN {
                return Ok(None);
            }
        }
    }

    /// Takes the chunk's lock and reads the record, if it is the live one and sound. What somebody else is at is left for
    /// the next walk.
    fn take(self: &Arc<Self>, lane: &Lane, at: Position, chunk: ChunkRef) -> Result<Option<Live>, StoreError> {
        let row = |()| self.index.row(chunk.id).map_err(|e| self.index_failed(&e));
        let is_live = |row: &Row| row.position == at && row.len == chunk.len && !row.damaged;
        if !row(())?.is_some_and(|row| is_live(&row)) {
            return Ok(None);
        }
        let (Begun::Mine, _) = lane.begin(chunk.id, Purpose::Move, None) else { return Ok(None) };
        // Again, now that nobody can change it.
        let how = match row(()) {
            Err(error) => Settled::Failed(error),
            Ok(Some(row)) if is_live(&row) => match read_live(lane, chunk.id, row) {
                Some(live) => return Ok(Some(live)),
                None => self.look(lane, chunk, true), // and marks it
            },
            Ok(_) => self.look(lane, chunk, false),
        };
        self.settle(lane, chunk.id, &how);
        match how {
            Settled::Failed(error) => Err(error),
            Settled::Held | Settled::Absent | Settled::Damaged => Ok(None),
        }
    }

    fn append_again(self: &Arc<Self>, lane: &Lane, gathered: Gathered, done: &Done) -> Result<(), StoreError> {
        let Gathered { live, tombstones, .. } = gathered;
        if live.is_empty() && tombstones.is_empty() {
            return Ok(());
        }
        let checksum = lane.log == Log::Small; // as in `put.rs`
        let payloads: Vec<_> = tombstones.iter().map(|(_, dead)| format::position_value(*dead)).collect();
        let chunks = live.iter().map(|live| {
            let (payload, trailer) = (&live.payload[..], &live.trailer[..]);
            Record { kind: KIND_CHUNK, key: live.id.0, payload, trailer, checksum }
        });
        let dead = tombstones.iter().zip(&payloads).map(|((id, _), payload)| Record {
            kind: KIND_TOMBSTONE,
            key: id.0,
            payload,
            trailer: &[],
            checksum: true,
        });
        let records: Vec<Record<'_>> = chunks.chain(dead).collect();
        let positions = match lane.segments.append(&records) {
            Ok(positions) => positions,
            Err(error) => {
                let error = self.write_failed(error);
                for live in live {
                    // A full disk changes nothing: what was read and hashed here is sound where it is.
                    let full = matches!(error, StoreError::NoSpace { .. });
                    let how = if full { Settled::Held } else { Settled::Failed(error.clone()) };
                    self.settle(lane, live.id, &how);
                }
                return Err(error);
            }
        };
        let moved = live.into_iter().map(|live| (live.id, What::Move { old: live.row, _done: done.clone() }));
        let carried = tombstones.into_iter().map(|(id, _)| (id, What::Carried { _done: done.clone() }));
        let changes = moved.chain(carried).zip(positions);
        self.commit_all(lane.log, changes.map(|((id, what), position)| Change { id, position, what }).collect());
        Ok(())
    }

    /// Removes a segment that no row points into any more and whose tombstones were copied.
    fn retire(&self, log: Log, segment: u32) -> Result<(), StoreError> {
        self.check_fence()?;
        let lane = self.lane(log);
        let mut gone = lane.segments.gone();
        gone.insert(segment);
        let mut batch = Batch::default();
        batch.put(LOG, format::gone_key(log), gone.encode());
        self.index.write(batch).map_err(|e| self.index_failed(&e))?;
        self.index.flush().map_err(|e| self.index_failed(&e))?;
        assert_eq!(lane.count(segment).live, 0, "rows move into closed segments never");
        lane.segments.remove(segment).map_err(|error| self.write_failed(error))?;
        let mut batch = Batch::default();
        lane.forget(segment, &mut batch);
        self.index.write(batch).map_err(|e| self.index_failed(&e))
    }

    /// Copies what rows have in this segment, for a part of the index: bytes looked at and copied, and where to go on.
    fn copy_rows(
        self: &Arc<Self>,
        log: Log,
        segment: u32,
        from: ChunkId,
        done: &Done,
    ) -> Result<(u64, Option<ChunkId>), StoreError> {
        self.check_fence()?;
        let lane = self.lane(log);
        let mut gathered = Gathered::default();
        let next = self.gather_rows(lane, segment, from, &mut gathered);
        let bytes = gathered.bytes + len_u64(ROWS_AT_ONCE) * 64; // about what its rows take
        self.append_again(lane, gathered, done)?;
        Ok((bytes, next?))
    }

    fn gather_rows(
        self: &Arc<Self>,
        lane: &Lane,
        segment: u32,
        from: ChunkId,
        into: &mut Gathered,
    ) -> Result<Option<ChunkId>, StoreError> {
        let range = (Bound::Included(from.0.to_vec()), Bound::Unbounded);
        for (n, entry) in self.index.scan(CHUNK, range).enumerate() {
            let (key, value) = entry.map_err(|e| self.index_failed(&e))?;
            let bad = || self.index_failed(&super::index::bad_row());
            let id = format::chunk_of(&key).ok_or_else(bad)?;
            if n == ROWS_AT_ONCE || into.is_enough() {
                return Ok(Some(id));
            }
            let row = Row::decode(&value).map_err(|_| bad())?;
            if Log::of(row.len) == lane.log && row.position.segment == segment {
                into.live(self.take(lane, row.position, ChunkRef { id, len: row.len })?);
            }
        }
        Ok(None)
    }
}

/// The record that a row points to. `None`: it cannot be read, or is not the chunk.
fn read_live(lane: &Lane, id: ChunkId, row: Row) -> Option<Live> {
    let len = len_usize(row.len.into());
    let mut trailer = vec![0; leaves_len(row.len)];
    let payload = lane.segments.read_body_direct(row.position, 0, len).ok()?;
    lane.segments.read_body(row.position, len_u64(len), &mut trailer).ok()?;
    let (found, leaves) = hash_chunk(&payload);
    (found == id && leaves.as_flattened() == trailer).then_some(Live { id, row, payload, trailer })
}

/// What a tombstone names. `None`: it cannot be read, so it says nothing.
fn named_by(lane: &Lane, at: Position) -> Option<Position> {
    match lane.segments.read_record(at) {
        Ok(record) => format::position_of(&record.payload),
        Err(error @ (SegmentError::Damaged { .. } | SegmentError::Absent { .. } | SegmentError::Disk { .. })) => {
            warn!(dir = lane.log.dir(), position = %at, %error, "a tombstone cannot be read");
            None
        }
        Err(_) => None,
    }
}

/// For the tombstones of a segment that is to go.
fn needed_for(lane: &Lane, going: u32) -> Needed {
    let there = lane.segments.segments().into_iter().map(|usage| usage.segment).filter(|segment| *segment != going);
    let there: BTreeSet<u32> = there.collect();
    let superseded = lane.counts().into_iter().filter(|(segment, row)| row.superseded > 0 && there.contains(segment));
    let superseded = superseded.map(|(segment, _)| segment).min();
    Needed { there, superseded }
}
