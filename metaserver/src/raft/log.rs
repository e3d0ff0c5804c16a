//! The Raft log and the vote, on [`common::segment`].
//!
//! Promises:
//! 1. An append or a vote is reported only after its records, and all before them, are durable. Truncations need no sync
//!    of their own: they are durable before anything written after them.
//! 2. Reports come in the order of the requests.
//! 3. A write or sync that failed is the end: every later request fails, nothing is tried again, the node stops.
//! 4. A log that lost something it acknowledged does not open (see [`super::marker`]).
//!
//! One flusher owns the disk: it takes all requests that wait, writes their records in one piece, syncs once, and
//! reports. Entries can be read as soon as they were handed in; the newest are kept in memory ([`super::index`]).
//!
//! Purging removes whole segments, and only up to what a snapshot holds: a snapshot is a checkpoint that was flushed, so
//! the state machine does not need those entries after a crash. Before a segment goes, the vote and the purge are
//! written again behind it.

use super::index::{Index, Source};
use super::marker::{Acknowledged, Marker, SYNC_EVERY};
use super::records::{self, Replay};
use super::types::{Entry, LogId, TypeConfig, Vote};
use common::segment::{Align, Gone, Options, Owner, Position, Record, SegmentError, SegmentLog};
use common::task::Tasks;
use common::world::World;
use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Requests that wait for the flusher, at most; openraft waits beyond that.
const QUEUE_MAX: usize = 4096;
/// Bytes in one write, about (one more request may come on top).
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Length of a segment, in bytes.
const SEGMENT_LEN: u64 = 64 << 20;
/// What is wrong with a damaged log is told up to so many times.
const WRONG_MAX: usize = 5;
/// Bytes read from the log in one piece: for a follower, for `apply`.
const READ_BYTES_MAX: usize = 1 << 20;

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what was acknowledged: the node must not take part with it.
    #[error(
        "the Raft log in {dir} is damaged: {what}; this node may have forgotten what it promised and must not vote; if most other metaservers are up, move its whole data directory away and start it again: it comes back as an empty member"
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The segments do not open.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The marker does not open.
    #[error("open the marker in {dir}: {source}")]
    Marker {
        /// The directory.
        dir: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// The log: a handle, cheap to clone.
#[derive(Clone, Debug)]
pub struct RaftLog {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Shared {
    world: World,
    segments: SegmentLog,
    index: Mutex<Index>,
    /// Times the log was made durable since it was opened.
    syncs: AtomicU64,
}

/// One request to the flusher.
enum Job {
    Append { entries: Vec<(LogId, Vec<u8>)>, done: IOFlushed<TypeConfig> },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Truncate { after: Option<LogId> },
    Purge { upto: LogId },
}

/// What only the flusher touches.
#[derive(Debug)]
struct Flusher {
    shared: Arc<Shared>,
    dir: PathBuf,
    marker: Marker,
    marker_synced: Instant,
    marker_dirty: bool,
    failed: Option<String>,
}

impl RaftLog {
    /// Makes an empty log. Durable when this returns. `id` is the cluster's. `vote`: for a node that begins in a later
    /// term than the first.
    pub fn create(world: &World, dir: &Path, id: [u8; 16], vote: Option<Vote>) -> Result<(), OpenError> {
        let disk_error = |source| OpenError::Marker { dir: dir.to_path_buf(), source };
        world.disk.create_dir_all(dir).map_err(disk_error)?;
        let (segments, _) = open_segments(world, dir, id, &mut Replay::default())?;
        if let Some(vote) = &vote {
            segments.append(&[records::vote(vote)])?;
            segments.sync()?;
        }
        Marker::create(&*world.disk, dir).map_err(disk_error)?;
        Ok(())
    }

    /// Opens the log that [`RaftLog::create`] made. `applied`: what the state machine holds durably; it covers for
    /// entries that are not in the log.
    ///
    /// # Errors
    /// [`OpenError::Damaged`]: see promise 4.
    pub fn open(
        world: &World,
        tasks: &Tasks,
        dir: &Path,
        id: [u8; 16],
        applied: Option<LogId>,
    ) -> Result<RaftLog, OpenError> {
        let damaged = |what: String| OpenError::Damaged { dir: dir.to_path_buf(), what };
        let marker = match Marker::open(&*world.disk, dir) {
            Ok(Some(marker)) => marker,
            Ok(None) => return Err(damaged("the marker of what was acknowledged is gone".into())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged(error.to_string())),
            Err(source) => return Err(OpenError::Marker { dir: dir.to_path_buf(), source }),
        };
        let mut replay = Replay::default();
        let (segments, recovery) = open_segments(world, dir, id, &mut replay)?;
        if let Some(cut) = &recovery.cut {
            tracing::info!(at = %cut.position, len = cut.len, "cut an unfinished write off the Raft log");
        }
        // What cannot be read comes first: it is why the rest does not fit.
        let mut wrong: Vec<String> =
            recovery.damaged.iter().map(|bad| format!("{}: {} bytes unreadable", bad.position, bad.len)).collect();
        wrong.extend(recovery.unreadable.iter().map(|segment| format!("segment {segment} is unreadable")));
        wrong.extend(recovery.missing.iter().map(|segment| format!("segment {segment} is missing")));
        wrong.extend(replay.wrong);
        if let Some((from, to)) = replay.index.gap() {
            wrong.push(format!("entries {from} to {} are missing", to - 1));
        }
        if let Some(purged) = replay.index.purged.filter(|purged| Some(*purged) > applied) {
            wrong.push(format!("entries up to {purged} are purged, but the metadata store does not hold them"));
        }
        wrong.extend(forgotten(marker.now(), &replay.index, applied));
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(WRONG_MAX);
            wrong.truncate(WRONG_MAX);
            wrong.extend((more > 0).then(|| format!("and {more} more")));
            return Err(damaged(wrong.join("; ")));
        }
        let shared = Arc::new(Shared {
            world: world.clone(),
            segments,
            index: Mutex::new(replay.index),
            syncs: AtomicU64::new(0),
        });
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let flusher = Flusher {
            shared: shared.clone(),
            dir: dir.to_path_buf(),
            marker,
            marker_synced: Instant::now(),
            marker_dirty: false,
            failed: None,
        };
        let own = world.clone();
        let flushes = async move { own.on_own_thread(move || run(flusher, jobs)).await };
        tasks.spawn("raft log", |_| flushes); // ends when the last handle is gone
        Ok(RaftLog { shared, queue })
    }

    async fn submit(&self, job: Job) -> io::Result<()> {
        self.queue.send(job).await.map_err(|_| io::Error::other("the Raft log is closed"))
    }

    /// How often it was made durable since it was opened: one sync serves all that waited.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Bytes of all segments: what a restart reads.
    pub fn bytes(&self) -> u64 {
        self.shared.segments.segments().iter().map(|segment| segment.len).sum()
    }
}

fn open_segments(
    world: &World,
    dir: &Path,
    id: [u8; 16],
    replay: &mut Replay,
) -> Result<(SegmentLog, common::segment::Recovery), SegmentError> {
    let options = Options {
        owner: Owner::RaftLog,
        owner_id: id,
        segment_len_max: SEGMENT_LEN,
        align: Align::Small,
        start: None,
        salt: world.random_u64(),
        gone: Gone::default(),
    };
    SegmentLog::open(world.disk.clone(), &dir.join("log"), options, replay)
}

/// What was acknowledged and is in neither log nor state machine.
fn forgotten(said: &Acknowledged, index: &Index, applied: Option<LogId>) -> Vec<String> {
    let mut wrong = Vec::new();
    let have = index.last().max(applied);
    if said.last > have {
        let name = |id: &Option<LogId>| id.as_ref().map_or("nothing".to_string(), LogId::to_string);
        wrong.push(format!("it ends at {}, but {} was acknowledged", name(&have), name(&said.last)));
    }
    match (&said.vote, &index.vote) {
        (Some(said), Some(have)) if have >= said => {}
        (Some(said), _) => wrong.push(format!("the vote {said} is not in it")),
        (None, _) => {}
    }
    wrong
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no panic holds this lock")
    }

    /// Entries `[from, to)` that are there. Fewer, but at least one, if they are more than `bytes_max` bytes.
    async fn read(self: &Arc<Self>, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let sources = self.index().read(from, to, bytes_max);
        if sources.iter().all(|source| matches!(source, Source::Memory(_))) {
            return Ok(sources.into_iter().filter_map(Source::in_memory).collect());
        }
        let shared = self.clone();
        self.world.blocking(move || shared.read_from_disk(sources)).await
    }

    fn read_from_disk(&self, sources: Vec<Source>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(sources.len());
        for source in sources {
            match source {
                Source::Memory(entry) => entries.push(entry),
                Source::Disk(log_id, place) => match self.read_record(place) {
                    Ok(payload) => entries.push(Entry { log_id, payload }),
                    // Purged since we looked: what is purged may be missing at the beginning.
                    Err(_) if self.index().purged.is_some_and(|purged| purged.index >= log_id.index) => entries.clear(),
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(entries)
    }

    fn read_record(&self, place: Position) -> io::Result<super::types::Payload> {
        let record = self.segments.read_record(place).map_err(io::Error::other)?;
        records::decode_payload(&record.payload).map_err(|error| io::Error::other(format!("{place}: {error}")))
    }
}

impl Source {
    fn in_memory(self) -> Option<Entry> {
        match self {
            Source::Memory(entry) => Some(entry),
            Source::Disk(..) => None,
        }
    }
}

/// Serves requests until the last handle of the log is gone.
async fn run(mut flusher: Flusher, mut jobs: mpsc::Receiver<Job>) {
    let world = flusher.shared.world.clone();
    loop {
        let Ok(first) = next(&flusher, &mut jobs).await else {
            flusher = world.blocking(move || flusher.sync_marker()).await;
            continue;
        };
        let Some(first) = first else { break };
        let mut batch = vec![first];
        let mut bytes = batch[0].bytes();
        while bytes < BATCH_BYTES_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.bytes();
            batch.push(job);
        }
        flusher = world
            .blocking(move || {
                flusher.flush(batch);
                flusher
            })
            .await;
    }
    world.blocking(move || flusher.marker.sync().ok()).await;
}

/// The next request; an error if none came for so long that the marker should be made durable.
async fn next(flusher: &Flusher, jobs: &mut mpsc::Receiver<Job>) -> Result<Option<Job>, tokio::time::error::Elapsed> {
    match flusher.marker_dirty && flusher.failed.is_none() {
        true => tokio::time::timeout(SYNC_EVERY, jobs.recv()).await,
        false => Ok(jobs.recv().await),
    }
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Append { entries, .. } => entries.iter().map(|(_, payload)| payload.len()).sum(),
            Job::Vote { .. } | Job::Truncate { .. } | Job::Purge { .. } => 0,
        }
    }
}

impl Flusher {
    /// Carries out a batch and reports.
    fn flush(&mut self, batch: Vec<Job>) {
        let result = match &self.failed {
            Some(cause) => Err(cause.clone()),
            None => self.write(&batch).map_err(|error| error.to_string()),
        };
        if let Err(cause) = &result
            && self.failed.is_none()
        {
            tracing::error!(error = %cause, "the Raft log failed: this node stops");
            self.failed = Some(cause.clone());
        }
        let purges = batch.iter().any(|job| matches!(job, Job::Purge { .. }));
        for job in batch {
            let result = result.clone().map_err(io::Error::other);
            match job {
                Job::Append { done, .. } => done.io_completed(result),
                Job::Vote { done, .. } => _ = done.send(result), // nobody waits: the node is stopping
                Job::Truncate { .. } | Job::Purge { .. } => {}
            }
        }
        if purges
            && result.is_ok()
            && let Err(error) = self.remove_old()
        {
            tracing::error!(%error, "remove old segments of the Raft log");
            self.failed = Some(error.to_string());
        }
    }

    fn write(&mut self, batch: &[Job]) -> Result<(), OpenError> {
        let mut acknowledged = self.marker.now().clone();
        let mut list: Vec<Record<'_>> = Vec::with_capacity(batch.len());
        let mut ids = Vec::with_capacity(batch.len());
        for job in batch {
            match job {
                Job::Append { entries, .. } => {
                    for (id, payload) in entries {
                        ids.push((list.len(), *id));
                        list.push(records::entry(*id, payload));
                    }
                    acknowledged.last = entries.last().map(|(id, _)| *id).or(acknowledged.last);
                }
                Job::Vote { vote, .. } => {
                    list.push(records::vote(vote));
                    acknowledged.vote = Some(*vote);
                }
                Job::Truncate { after } => {
                    // The marker must not name what the truncation takes away.
                    acknowledged.last = *after;
                    let lowered =
                        Acknowledged { last: (*after).min(self.marker.now().last), ..self.marker.now().clone() };
                    self.marker.write(lowered).and_then(|()| self.marker.sync()).map_err(|e| self.marker_error(e))?;
                    list.push(records::truncated(*after));
                }
                Job::Purge { upto } => list.push(records::purged(*upto)),
            }
        }
        let places = self.append_and_sync(&list)?;
        let mut index = self.shared.index();
        ids.iter().for_each(|(at, id)| index.written(id, places[*at]));
        drop(index);
        let voted = acknowledged.vote != self.marker.now().vote;
        self.marker.write(acknowledged).map_err(|e| self.marker_error(e))?;
        self.marker_dirty = true;
        if voted {
            self.marker.sync().map_err(|e| self.marker_error(e))?;
            self.marker_dirty = false;
        }
        Ok(())
    }

    /// Writes and syncs, the marker (as it was before) at the same time when it is due.
    fn append_and_sync(&mut self, list: &[Record<'_>]) -> Result<Vec<Position>, OpenError> {
        let segments = &self.shared.segments;
        let mut places = Vec::with_capacity(list.len());
        for part in list.chunks(common::segment::BATCH_RECORDS_MAX) {
            let appended = match segments.append(part) {
                // Nothing was written. The ballast is there for this; without it the node stops.
                Err(SegmentError::NoSpace { .. }) if self.drop_ballast() => segments.append(part),
                appended => appended,
            };
            places.extend(appended?);
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        let due = self.marker_dirty && self.marker_synced.elapsed() >= SYNC_EVERY;
        if !due {
            segments.sync()?;
            return Ok(places);
        }
        let marker = self.marker.file();
        let (log, marker) = if self.shared.world.is_simulated() {
            (segments.sync(), marker.sync())
        } else {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| marker.sync());
                (segments.sync(), other.join().expect("a sync does not panic"))
            })
        };
        log?;
        marker.map_err(|e| self.marker_error(e))?;
        (self.marker_dirty, self.marker_synced) = (false, Instant::now());
        Ok(places)
    }

    /// True if there was one.
    fn drop_ballast(&self) -> bool {
        self.dir.parent().is_some_and(|data| crate::space::drop_ballast(&*self.shared.world.disk, data))
    }

    /// Makes the marker durable after the last append of many: all that it names is durable already.
    fn sync_marker(mut self) -> Flusher {
        match self.marker.sync() {
            Ok(()) => (self.marker_dirty, self.marker_synced) = (false, Instant::now()),
            Err(error) => {
                let error = self.marker_error(error);
                tracing::error!(%error, "the Raft log failed: this node stops");
                self.failed = Some(error.to_string());
            }
        }
        self
    }

    /// Removes segments that hold nothing any more but what is written again behind them.
    fn remove_old(&mut self) -> Result<(), OpenError> {
        let segments = &self.shared.segments;
        let (keep, purged) = {
            let index = self.shared.index();
            (index.first_segment(), index.purged)
        };
        let vote = self.marker.now().vote; // the index may not have the newest: it is told after the flush
        let keep = keep.unwrap_or_else(|| segments.end().segment);
        if segments.segments().first().is_none_or(|first| first.segment >= keep) {
            return Ok(());
        }
        let mut again: Vec<Record<'_>> = Vec::new();
        again.extend(purged.map(records::purged));
        again.extend(vote.as_ref().map(records::vote));
        segments.append(&again)?;
        segments.sync()?;
        segments.remove_before(keep)?;
        Ok(())
    }

    fn marker_error(&self, source: io::Error) -> OpenError {
        OpenError::Marker { dir: self.dir.clone(), source }
    }
}

impl RaftLogStorage<TypeConfig> for RaftLog {
    type LogReader = RaftLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let index = self.shared.index();
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> RaftLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.submit(Job::Vote { vote: *vote, done }).await?;
        answer.await.map_err(|_| io::Error::other("the Raft log is closed"))??;
        self.shared.index().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        {
            let mut index = self.shared.index();
            for entry in entries {
                let bytes = records::encode_payload(&entry.payload).map_err(io::Error::other)?;
                let id = entry.log_id;
                index.push(id, Some(entry.payload), bytes.len(), None).map_err(io::Error::other)?;
                encoded.push((id, bytes));
            }
        }
        self.submit(Job::Append { entries: encoded, done }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.shared.index().truncate_after(last.as_ref());
        self.submit(Job::Truncate { after: last }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.shared.index().purge(upto);
        self.submit(Job::Purge { upto }).await
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, to) = ends(&range);
        self.shared.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.index().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.shared.read(start, end, READ_BYTES_MAX).await
    }

    /// In pieces, so that a long range does not fill the memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = ends(&range);
        let shared = self.shared.clone();
        let pieces = futures::stream::unfold(from, move |from| {
            let shared = shared.clone();
            async move {
                if from >= to {
                    return None;
                }
                let piece = shared.read(from, to, READ_BYTES_MAX).await;
                let next = match &piece {
                    Ok(entries) => entries.last().map_or(to, |last| last.log_id.index + 1),
                    Err(_) => to,
                };
                let items: Vec<io::Result<Entry>> = match piece {
                    Ok(entries) => entries.into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                };
                Some((futures::stream::iter(items), next))
            }
        });
        futures::StreamExt::flatten(pieces)
    }
}

fn ends(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
