//! Chunk storage: the only code of the server that touches segment files.
//!
//! A replica is one record in an append-only segment ([`common::segment`]): a header, the chunk's bytes, and the leaves
//! of the BLAKE3 tree that lets any range be verified on its own. An index maps chunk ids to records; byte tables of
//! both in [`format`](self). A [`Store`] is one data directory:
//!
//! ```text
//! identity          whose data this is         lock     held while a process has it open
//! segments-small/   chunks up to 64 KiB, many records in a write, through the page cache
//! segments-large/   longer ones, a direct write each, on 4 KiB boundaries
//! index/            RocksDB (in simulation its in-memory twin); can be lost: it is rebuilt from the segments
//! index-damaged     there while the index must not be used: the next start makes it anew
//! ```
//!
//! The way of a put, in the order of the files: [`Incoming`] (`chunk.rs`) gathers and hashes the bytes; `put.rs` looks
//! whether a sound copy is there, appends the record, syncs, writes the index row, acknowledges. One sync serves every
//! put that waits: a lone put costs one `fdatasync` (its log's), and of any number that come while it runs the next
//! one covers all.
//!
//! Invariants:
//! 1. A record's bytes never change. A repair appends a new record; the index moves to it.
//! 2. A row points only at bytes that are durable: it is written after the sync. Rows are durable only from flush to
//!    flush; what is behind the last one is found again by scanning the segments from the position that flush noted.
//! 3. Only one put, delete or check of a chunk runs at a time: the entry in its lane's `pending` map is the chunk's lock
//!    (`lane.rs`). A copy is vouched for (put, touch) in one place, [`lane`], while that lock is held: there a standing
//!    wish to delete the chunk is voided.
//! 4. Vouched for means: durable, and written or verified in this run of the server. An older copy is read and hashed
//!    first, and so is one that the disk failed to read since.
//! 5. A failed write or sync fences the store: it acknowledges and vouches for nothing more until it is opened again.
//! 6. A copy is deleted only under a wish ([`Store::wish`]) that nothing which vouched for the copy has voided since.
//! 7. Delete: tombstone record synced, then the row dropped, then (the drop durable) the bytes punched, never the header.
//! 8. A segment is removed only when no row points into it, durably, and no tombstone in it is needed any more
//!    ([`compact`]).
//!
//! Bytes are *not* checked on their way out: the reader checks them, [`Part`] carries what it needs. What a reader finds
//! to be wrong it reports, and [`Store::verify`] marks the copy.
//!
//! Left out: a segment with a damaged copy keeps its space until that was repaired or deleted ([`compact`]).

mod choose;
mod chunk;
mod compact;
mod counts;
mod delete;
mod error;
mod format;
mod identity;
mod index;
mod lane;
mod put;
mod read;
mod recover;
mod set;
mod silent;
#[cfg(test)]
mod tests;
mod touch;
mod trees;

pub use chunk::{Incoming, VerifiedChunk};
pub use error::{OpenError, StoreError};
pub use identity::Identity;
pub use index::Kept;
pub use read::Part;
pub use set::{LeftOut, MissingDir, SetConfig, StoreSet};

use common::disk::Lock;
use common::id::{ChunkId, PgId};
use common::kv::KvError;
use common::proto::chunk::ChunkRef;
use common::proto::meta::FREE_MIN;
use common::task::Tasks;
use common::world::World;
use format::{Log, leaves_len};
use index::Index;
use lane::Lane;
use silent::Calls;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use trees::TreeCache;

/// Chunks of puts that wait for the disk, at most, per store; more wait to be let in. (Their bytes are bounded by
/// the reservation that comes with them: [`Incoming::in_room`].)
pub const PUTS_IN_FLIGHT_MAX: usize = 4096;
/// How long a caller waits for the disk before it is told that nobody knows.
pub const DISK_WAIT_MAX: Duration = Duration::from_secs(30);
/// Copies that one touch reads and hashes at a time, at most, because this run has not done it yet.
const CHECKS_AT_ONCE: usize = 2;
/// Index rows that may be behind the last flush before the next one is due: what a start after a crash scans again.
const FLUSH_ROWS: u64 = 100_000;
/// Bytes of chunks that may be behind the last flush, likewise.
const FLUSH_BYTES: u64 = 4 << 30;
/// How long rows may be behind it.
const FLUSH_EVERY: Duration = Duration::from_secs(60);
/// Bytes of hash trees kept in memory, per store: those of 8 GiB in chunks of 4 MiB.
const TREE_CACHE_LEN_MAX: usize = 32 << 20;

/// How a store is set up.
#[derive(Clone, Debug)]
pub(crate) struct StoreConfig {
    /// The data directory.
    pub dir: PathBuf,
    /// Bytes that puts leave free on its file system.
    pub reserve_bytes: u64,
    /// Length at which a segment file is full, in bytes.
    pub segment_len_max: u64,
    /// Memory for the index's cache, in bytes.
    pub index_cache_bytes: u64,
}

/// One data directory. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What a store says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of its file system.
    pub capacity: u64,
    /// Bytes that puts may still take: free beyond the reserve; 0 if fenced.
    pub free: u64,
    /// Chunks held.
    pub chunks: u64,
    /// Bytes of chunks held.
    pub bytes: u64,
    /// Damaged records found since start.
    pub corrupt: u64,
    /// Data directories that are fenced.
    pub fenced: u32,
    /// Others, with less than [`FREE_MIN`] free.
    pub full: u32,
    /// `fdatasync` calls that puts and deletes made since start.
    pub syncs: u64,
    /// Bytes that its segments take on disk, about: for large chunks, whose bytes are given back as they are deleted, what
    /// is live.
    pub segment_bytes: u64,
}

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Good records read.
    pub records: u64,
    /// Damaged places found.
    pub damaged: u64,
    /// True if the index had to be rebuilt from the first segment.
    pub rebuilt: bool,
}

struct Inner {
    world: World,
    config: StoreConfig,
    lanes: [Lane; 2],
    index: Index,
    trees: Mutex<TreeCache>,
    lately: read::Lately,
    /// Random, of this run: a row that carries it was written or verified since start.
    run: u64,
    /// Compaction goes on in one place at a time.
    compacting: tokio::sync::Mutex<choose::Progress>,
    /// Puts and reads so far, about: compaction goes slower while there are any.
    used: AtomicU64,
    /// The last put was refused for want of room: compaction goes at full speed.
    refused: AtomicBool,
    puts: Arc<Semaphore>,
    fenced: OnceLock<String>,
    corrupt: AtomicU64,
    syncs: AtomicU64,
    unflushed_rows: AtomicU64,
    unflushed_bytes: AtomicU64,
    flush_due: Arc<Notify>,
    calls: Mutex<Calls>,
    last_stats: Mutex<StoreStats>,
    recovered: Recovered,
    _lock: Lock,
}

impl Store {
    /// Opens a data directory that has an [`Identity`], with its lock: brings the index up to date with the segments.
    /// What was acknowledged before a crash is there; so may be puts that were not.
    ///
    /// # Errors
    /// See [`OpenError`]. A torn tail is no error, nor are damaged records: they are counted.
    pub(crate) async fn open(
        world: &World,
        tasks: &Tasks,
        config: StoreConfig,
        store: u128,
        lock: Lock,
    ) -> Result<Store, OpenError> {
        let outside = world.clone();
        let inner = world.blocking(move || recover::open(outside, config, store, lock)).await?;
        let inner = Arc::new(inner);
        let (weak, due) = (Arc::downgrade(&inner), inner.flush_due.clone());
        tasks.spawn("index flush", |stop| flush_when_due(weak, due, stop));
        let weak = Arc::downgrade(&inner);
        tasks.spawn("compaction", |stop| compact::compact_when_due(weak, stop));
        Ok(Store { inner })
    }

    /// What was found at open.
    pub fn recovered(&self) -> &Recovered {
        &self.inner.recovered
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.inner.config.dir
    }

    /// Why the store takes no more writes, if it does not.
    pub fn fenced(&self) -> Option<&str> {
        self.inner.fenced.get().map(String::as_str)
    }

    /// Numbers for heartbeats. Costs no disk read but a `statvfs`.
    pub fn stats(&self) -> StoreStats {
        let inner = &self.inner;
        let (capacity, free) = inner.world.disk.space(&inner.config.dir).unwrap_or((0, 0));
        let fenced = inner.fenced.get().is_some();
        let free = if fenced { 0 } else { free.saturating_sub(inner.config.reserve_bytes) };
        let mut stats = StoreStats {
            capacity,
            free,
            corrupt: inner.corrupt.load(Ordering::Relaxed),
            fenced: u32::from(fenced),
            full: u32::from(!fenced && free < FREE_MIN),
            syncs: inner.syncs.load(Ordering::Relaxed),
            ..StoreStats::default()
        };
        for lane in &inner.lanes {
            let held = lane.held();
            if !fenced {
                stats.chunks += held.chunks; // else they count as lost
                stats.bytes += held.bytes;
            }
            stats.segment_bytes += lane.segment_bytes();
        }
        stats
    }

    /// Chunks of a placement group that are here and not known to be damaged, in id order: those behind `after`, at most
    /// `limit` of them, and whether there are more. What is put or deleted meanwhile may or may not be among them.
    /// `pg_count` is a power of two up to 65,536, `pg` below it.
    ///
    /// # Errors
    /// `Fenced`: this store does not say what it has. `Slow`.
    pub async fn list(
        &self,
        pg: PgId,
        pg_count: u32,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<ChunkRef>, bool), StoreError> {
        let inner = self.inner.clone();
        let work = self.inner.world.blocking(move || inner.list(pg, pg_count, after, limit));
        timeout(DISK_WAIT_MAX, work).await.unwrap_or_else(|_| Err(self.slow("list")))
    }

    /// Copies of chunks from `from` on and before `upto`, damaged ones, too, in id order, at most `limit`; and the id to go
    /// on at, if there are more. What is put or deleted meanwhile may or may not be among them.
    ///
    /// # Errors
    /// `Fenced`, `Slow`: this store does not say what it has.
    pub async fn range(
        &self,
        from: ChunkId,
        upto: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<Kept>, Option<ChunkId>), StoreError> {
        let inner = self.inner.clone();
        let work = self.inner.world.blocking(move || inner.copies(from, upto, limit));
        timeout(DISK_WAIT_MAX, work).await.unwrap_or_else(|_| Err(self.slow("list")))
    }

    /// Makes the index durable, then gives the space of deleted chunks back. Happens by itself now and then; also at
    /// shutdown, to make the next start quick.
    ///
    /// # Errors
    /// `Fenced`: the index failed, and with it the store.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        self.inner.world.blocking(move || inner.flush()).await
    }
}

/// Flushes when enough waits or time has passed, until the store is dropped, and once more at shutdown.
async fn flush_when_due(store: Weak<Inner>, due: Arc<Notify>, stop: CancellationToken) {
    loop {
        let stopped = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = due.notified() => false,
            () = tokio::time::sleep(FLUSH_EVERY) => false,
        };
        let Some(inner) = store.upgrade() else { return };
        if (Store { inner }).flush().await.is_err() || stopped {
            return; // what failed was said when the store was fenced
        }
    }
}

impl Inner {
    fn lane(&self, log: Log) -> &Lane {
        match log {
            Log::Small => &self.lanes[0],
            Log::Large => &self.lanes[1],
        }
    }

    /// Every write asks here first.
    fn check_fence(&self) -> Result<(), StoreError> {
        match self.fenced.get() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Fenced { dir: self.config.dir.clone(), cause: cause.clone() }),
        }
    }

    /// Closes the store for writing. Says so once.
    fn fence(&self, cause: &dyn fmt::Display) -> StoreError {
        let mut first = false;
        let cause = self.fenced.get_or_init(|| {
            first = true;
            cause.to_string()
        });
        if first {
            error!(dir = %self.config.dir.display(), error = %cause, "store fenced: its copies count as lost");
        }
        StoreError::Fenced { dir: self.config.dir.clone(), cause: cause.clone() }
    }

    /// The index failed: closes the store for writing, and has the next start make the index anew.
    fn index_failed(&self, cause: &KvError) -> StoreError {
        if let Err(error) = index::mark_damaged(&self.world, &self.config) {
            warn!(dir = %self.config.dir.display(), error = %error, "remove `index/` before the next start");
        }
        self.fence(cause)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.check_fence()?;
        let rows = self.unflushed_rows.swap(0, Ordering::Relaxed);
        self.unflushed_bytes.store(0, Ordering::Relaxed);
        if rows == 0 {
            return Ok(());
        }
        loop {
            let dead = self.index.dead().map_err(|e| self.index_failed(&e))?;
            self.index.flush().map_err(|e| self.index_failed(&e))?; // only now are their rows gone for good
            self.punch(&dead)?;
            if dead.len() < index::PUNCH_BATCH {
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.inner.config.dir.display())
    }
}
