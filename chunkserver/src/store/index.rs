//! The index of a store: chunk id -> record. Rows that cannot be read mean that the index is damaged: the store is fenced
//! and the next start makes the index anew, because a file [`DAMAGED`] says so.

use super::format::{self, CHUNK, DEAD, FAMILIES, LOG, Log, LogRow, Row, STORE_KEY};
use super::{Inner, OpenError, StoreConfig, StoreError};
use common::id::{ChunkId, PgId};
use common::kv::memory::MemoryKv;
use common::kv::rocks::{RocksKv, Tuning};
use common::kv::{Batch, Entry, Family, KeyRange, Kv, KvError};
use common::proto::chunk::ChunkRef;
use common::segment::{Gone, Position};
use common::world::World;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tracing::warn;

/// Dead records punched after one flush, at most.
pub(super) const PUNCH_BATCH: usize = 4096;

/// Beside the index while it must not be used.
const DAMAGED: &str = "index-damaged";

/// One part in this many of the index's memory is for rows not yet flushed.
const MEMTABLE_SHARE: usize = 4;

pub(super) struct Index {
    kv: Arc<dyn Kv>,
    /// The store asks for one writer at a time.
    writing: Mutex<()>,
}

impl Index {
    /// Opens the index of this store, empty if there is none, or one that cannot be used: another store's, one that does
    /// not open, or one that failed in an earlier run ([`mark_damaged`]). The segments are the truth.
    pub(super) fn open(world: &World, config: &StoreConfig, store: u128) -> Result<Index, OpenError> {
        let dir = config.dir.join("index");
        let failed = |source| OpenError::Index { dir: config.dir.clone(), source };
        let mark = config.dir.join(DAMAGED);
        if world.disk.exists(&mark) {
            warn!(dir = %dir.display(), "the index failed before: it is made anew from the segments");
            Index::discard(world, config)?;
            world.disk.remove(&mark).map_err(super::error::disk_error("remove", &mark))?;
            world.disk.sync_dir(&config.dir).map_err(super::error::disk_error("sync", &config.dir))?;
        }
        let usable = open_kv(world, config, &dir).and_then(|index| index.belongs_to(store).map(|ours| (index, ours)));
        let why = match usable {
            Ok((index, true)) => return Ok(index),
            Ok((_, false)) => "it is another store's".to_owned(),
            Err(error) => error.to_string(),
        };
        warn!(dir = %dir.display(), error = %why, "the index cannot be used: it is made anew from the segments");
        Index::discard(world, config)?;
        let index = open_kv(world, config, &dir).map_err(failed)?;
        index.belongs_to(store).map_err(failed)?;
        Ok(index)
    }

    /// Removes the index.
    pub(super) fn discard(world: &World, config: &StoreConfig) -> Result<(), OpenError> {
        let dir = config.dir.join("index");
        if world.disk.exists(&dir) {
            world.disk.remove_dir_all(&dir).map_err(super::error::disk_error("remove", &dir))?;
        }
        world.disk.sync_dir(&config.dir).map_err(super::error::disk_error("sync", &config.dir))
    }

    /// True if it is this store's; an empty one becomes it.
    fn belongs_to(&self, store: u128) -> Result<bool, KvError> {
        let ours = format::store_value(store);
        if let Some(value) = self.kv.get(LOG, STORE_KEY)? {
            return Ok(value[..] == ours[..]);
        }
        let mut batch = Batch::default();
        batch.put(LOG, STORE_KEY, ours);
        self.write(batch)?;
        Ok(true)
    }

    pub(super) fn row(&self, chunk: ChunkId) -> Result<Option<Row>, KvError> {
        self.kv.get(CHUNK, &chunk.0)?.map(|value| Row::decode(&value).map_err(|_| bad_row())).transpose()
    }

    pub(super) fn log_row(&self, log: Log) -> Result<LogRow, KvError> {
        match self.kv.get(LOG, &log.key())? {
            Some(value) => LogRow::decode(&value).map_err(|_| bad_row()),
            None => Ok(LogRow::default()),
        }
    }

    /// The segments that were removed.
    pub(super) fn gone(&self, log: Log) -> Result<Gone, KvError> {
        match self.kv.get(LOG, &format::gone_key(log))? {
            Some(value) => Gone::decode(&value).ok_or_else(bad_row),
            None => Ok(Gone::default()),
        }
    }

    /// In ascending order.
    pub(super) fn scan(&self, family: Family, range: KeyRange) -> impl Iterator<Item = Result<Entry, KvError>> {
        self.kv.scan(family, range, false)
    }

    /// Not durable before the next [`Index::flush`].
    pub(super) fn write(&self, batch: Batch) -> Result<(), KvError> {
        let _one = self.writing.lock().expect("no panic holds this lock");
        self.kv.write(batch)
    }

    pub(super) fn flush(&self) -> Result<(), KvError> {
        self.kv.flush()
    }

    /// Records whose row is gone and whose bytes are still to be punched.
    pub(super) fn dead(&self) -> Result<Vec<(Log, Position)>, KvError> {
        let all = self.kv.scan(DEAD, (Bound::Unbounded, Bound::Unbounded), false);
        all.take(PUNCH_BATCH).map(|entry| format::dead_of(&entry?.0).ok_or_else(bad_row)).collect()
    }
}

impl Inner {
    pub(super) fn list(
        &self,
        pg: PgId,
        pg_count: u32,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<ChunkRef>, bool), StoreError> {
        self.check_fence()?;
        let first = first_of(pg.0, pg_count).map_or(Bound::Unbounded, Bound::Included);
        let from = match after {
            Some(after) if first_of(pg.0, pg_count).is_none_or(|first| after.0[..] >= first[..]) => {
                Bound::Excluded(after.0.to_vec())
            }
            _ => first,
        };
        let to = first_of(pg.0 + 1, pg_count).map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = Vec::new();
        for entry in self.index.kv.scan(CHUNK, (from, to), false) {
            let (key, value) = entry.map_err(|e| self.index_failed(&e))?;
            let id = format::chunk_of(&key).ok_or_else(|| self.index_failed(&bad_row()))?;
            let row = Row::decode(&value).map_err(|_| self.index_failed(&bad_row()))?;
            if !row.counts() {
                continue;
            }
            if found.len() == limit {
                return Ok((found, true));
            }
            found.push(ChunkRef { id, len: row.len });
        }
        Ok((found, false))
    }
}

/// A copy that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of which chunk.
    pub id: ChunkId,
    /// The chunk's length, in bytes.
    pub len: u32,
    /// When it was put, in seconds since 1970 (after an index was rebuilt: when that was).
    pub put_secs: u64,
    /// It is known to be damaged, or the disk did not read it.
    pub damaged: bool,
    /// The latter: reading it once more may succeed.
    pub unreadable: bool,
}

impl Inner {
    /// Copies from `from` on, before `upto`, at most `limit`; and where to go on if there are more.
    pub(super) fn copies(
        &self,
        from: ChunkId,
        upto: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<Kept>, Option<ChunkId>), StoreError> {
        self.check_fence()?;
        let end = upto.map_or(Bound::Unbounded, |upto| Bound::Excluded(upto.0.to_vec()));
        let mut found = Vec::new();
        for entry in self.index.kv.scan(CHUNK, (Bound::Included(from.0.to_vec()), end), false) {
            let (key, value) = entry.map_err(|e| self.index_failed(&e))?;
            let id = format::chunk_of(&key).ok_or_else(|| self.index_failed(&bad_row()))?;
            let row = Row::decode(&value).map_err(|_| self.index_failed(&bad_row()))?;
            if found.len() == limit {
                return Ok((found, Some(id)));
            }
            found.push(Kept {
                id,
                len: row.len,
                put_secs: row.put_secs,
                damaged: !row.counts(),
                unreadable: row.unreadable && !row.damaged,
            });
        }
        Ok((found, None))
    }
}

/// Has the next start make the index anew.
pub(super) fn mark_damaged(world: &World, config: &StoreConfig) -> io::Result<()> {
    match world.disk.create(&config.dir.join(DAMAGED)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Ok(_) => world.disk.sync_dir(&config.dir),
        Err(error) => Err(error),
    }
}

/// The first id of a placement group, as the prefix it starts with. `None` at both ends of the id space.
fn first_of(pg: u32, pg_count: u32) -> Option<Vec<u8>> {
    if pg == 0 || pg >= pg_count {
        return None;
    }
    let prefix = pg << (16 - pg_count.trailing_zeros());
    Some(u16::try_from(prefix).expect("a group below pg_count, which is at most 65,536").to_be_bytes().to_vec())
}

fn open_kv(world: &World, config: &StoreConfig, dir: &Path) -> Result<Index, KvError> {
    let kv: Arc<dyn Kv> = if world.is_simulated() {
        Arc::new(MemoryKv::open(world.disk.clone(), dir, &FAMILIES)?)
    } else {
        let cache_bytes = common::units::len_usize(config.index_cache_bytes);
        let tuning = Tuning { cache_bytes, memtable_bytes: cache_bytes / MEMTABLE_SHARE, ..Tuning::default() };
        Arc::new(RocksKv::open(dir, &FAMILIES, &tuning)?)
    };
    Ok(Index { kv, writing: Mutex::new(()) })
}

pub(super) fn bad_row() -> KvError {
    KvError { doing: "read", message: "a row of the index is damaged or of another version".into() }
}
