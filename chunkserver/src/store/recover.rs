//! Opening a store: the segments are the truth, the index is brought up to date with them.
//!
//! The index remembers, in the same batch as its rows, how far it follows each log; a scan from there finds the rest.
//! An index that is lost, damaged, another store's, or ahead of its log is made anew from the first segment.

use super::counts::Counts;
use super::format::{self, CHUNK, DEAD, KIND_CHUNK, KIND_TOMBSTONE, LOG, Log, LogRow, Row, leaves_len};
use super::index::Index;
use super::lane::Lane;
use super::trees::TreeCache;
use super::{Inner, OpenError, PUTS_IN_FLIGHT_MAX, Recovered, StoreConfig, TREE_CACHE_LEN_MAX};
use common::disk::Lock;
use common::hash::hash_chunk;
use common::id::ChunkId;
use common::kv::{Batch, KvError};
use common::segment::{Found, Gone, Header, Options, Owner, Position, Recovery, SegmentError, SegmentLog, Visit};
use common::units::{len_u32, len_u64};
use common::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{Notify, Semaphore};
use tracing::{error, info, warn};

/// Rows gathered in memory before they are written to the index.
const ROWS_AT_ONCE: usize = 8192;
/// Tombstones remembered, to tell records that were punched in part from damaged ones.
const TOMBSTONES_MAX: usize = 1 << 20;

pub(super) fn open(world: World, config: StoreConfig, store: u128, lock: Lock) -> Result<Inner, OpenError> {
    let mut index = Index::open(&world, &config, store)?;
    let opened = open_lanes(&world, &config, store, &index);
    match &opened {
        Err(OpenError::Segments(gone @ SegmentError::Absent { .. })) => {
            error!(dir = %config.dir.display(), error = %gone, "the index knows of chunks in segments that are not there: data was lost");
        }
        Err(OpenError::Index { source, .. }) => {
            warn!(dir = %config.dir.display(), error = %source, "the index is damaged: it is made anew from the segments");
        }
        Ok(_) | Err(_) => {}
    }
    let (lanes, recovered) = match opened {
        Err(OpenError::Segments(SegmentError::Absent { .. }) | OpenError::Index { .. }) => {
            drop(index);
            Index::discard(&world, &config)?;
            index = Index::open(&world, &config, store)?;
            open_lanes(&world, &config, store, &index)?
        }
        other => other?,
    };
    let inner = Inner {
        lanes,
        index,
        trees: Mutex::new(TreeCache::new(TREE_CACHE_LEN_MAX)),
        lately: super::read::Lately::default(),
        run: world.random_u64().max(1),
        puts: Arc::new(Semaphore::new(PUTS_IN_FLIGHT_MAX)),
        fenced: OnceLock::new(),
        corrupt: AtomicU64::new(recovered.damaged),
        syncs: AtomicU64::new(0),
        unflushed_rows: AtomicU64::new(1), // what was just found
        unflushed_bytes: AtomicU64::new(0),
        flush_due: Arc::new(Notify::new()),
        compacting: tokio::sync::Mutex::default(),
        used: AtomicU64::new(0),
        refused: AtomicBool::new(false),
        calls: Mutex::default(),
        last_stats: Mutex::default(),
        recovered,
        _lock: lock,
        world,
        config,
    };
    let dir = inner.config.dir.clone();
    let failed =
        |e: super::StoreError| OpenError::Index { dir, source: KvError { doing: "flush", message: e.to_string() } };
    inner.flush().map_err(failed)?;
    info!(dir = %inner.config.dir.display(), records = inner.recovered.records, damaged = inner.recovered.damaged,
        rebuilt = inner.recovered.rebuilt, "store open");
    Ok(inner)
}

fn open_lanes(
    world: &World,
    config: &StoreConfig,
    store: u128,
    index: &Index,
) -> Result<([Lane; 2], Recovered), OpenError> {
    let mut recovered = Recovered::default();
    let mut lanes = Vec::new();
    for log in Log::ALL {
        lanes.push(open_lane(world, config, store, index, log, &mut recovered)?);
    }
    let lanes = lanes.try_into().unwrap_or_else(|_| unreachable!("one for each log"));
    Ok((lanes, recovered))
}

fn open_lane(
    world: &World,
    config: &StoreConfig,
    store: u128,
    index: &Index,
    log: Log,
    recovered: &mut Recovered,
) -> Result<Lane, OpenError> {
    let failed = |source| OpenError::Index { dir: config.dir.clone(), source };
    let row = index.log_row(log).map_err(failed)?;
    let options = Options {
        owner: Owner::Chunks,
        owner_id: store.to_le_bytes(),
        segment_len_max: config.segment_len_max,
        align: log.align(),
        start: row.indexed,
        salt: world.random_u64(),
        gone: index.gone(log).map_err(failed)?,
    };
    let counts = if row.uncounted { Counts::recount(index, log) } else { Counts::load(index, log) };
    let mut replay = Replay::new(index, log, row, u64::try_from(world.now().secs).unwrap_or(0));
    replay.counts = counts.map_err(failed)?;
    let dir = config.dir.join(log.dir());
    let (segments, recovery) = SegmentLog::open(world.disk.clone(), &dir, options, &mut replay)?;
    if let Some(cut) = &recovery.cut {
        info!(dir = %dir.display(), position = %cut.position, len = cut.len, "cut an unfinished write off");
    }
    replay.damaged(&recovery);
    replay.check_segments(&segments)?;
    let damaged = replay.damaged;
    let (held, counts) = replay.finish(segments.end(), &segments.gone()).map_err(failed)?;
    recovered.records += recovery.records;
    recovered.damaged += damaged;
    recovered.rebuilt |= row.indexed.is_none() && recovery.records > 0;
    Ok(Lane::new(log, segments, held, counts))
}

/// Applies records to the index, in the order of the log. Applying one that is known already changes nothing.
struct Replay<'a> {
    index: &'a Index,
    log: Log,
    now_secs: u64,
    held: LogRow,
    counts: Counts,
    /// Rows not written yet; `None`: dropped.
    rows: BTreeMap<ChunkId, Option<Row>>,
    dead: Vec<Position>,
    tombstoned: BTreeSet<Position>,
    damaged: u64,
    failed: Option<KvError>,
}

impl<'a> Replay<'a> {
    fn new(index: &'a Index, log: Log, held: LogRow, now_secs: u64) -> Replay<'a> {
        let (rows, dead, tombstoned) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let counts = Counts::default();
        Replay { index, log, now_secs, held, counts, rows, dead, tombstoned, damaged: 0, failed: None }
    }

    fn row(&mut self, id: ChunkId) -> Option<Row> {
        if let Some(row) = self.rows.get(&id) {
            return *row;
        }
        self.index.row(id).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            None
        })
    }

    /// Sets or drops a row; `had` is the one before.
    fn set(&mut self, id: ChunkId, had: Option<Row>, row: Option<Row>) {
        if let Some(had) = had {
            self.held.remove(had.len);
            self.counts.remove(had.position, had.len);
        }
        if let Some(row) = row {
            self.held.add(row.len);
            self.counts.add(row.position, row.len);
        }
        if let (Some(had), Some(row)) = (had, row)
            && had.position != row.position
        {
            self.counts.suspect(had.position.segment);
        }
        self.rows.insert(id, row);
        if self.rows.len() >= ROWS_AT_ONCE {
            self.write();
        }
    }

    /// Writes what was gathered, with the count that belongs to it.
    fn write(&mut self) {
        let mut batch = Batch::default();
        for (id, row) in std::mem::take(&mut self.rows) {
            match row {
                Some(row) => batch.put(CHUNK, id.0, row.encode()),
                None => batch.delete(CHUNK, id.0),
            }
        }
        for position in std::mem::take(&mut self.dead) {
            batch.put(DEAD, format::dead_key(self.log, position), []);
        }
        batch.put(LOG, self.log.key(), self.held.encode());
        self.counts.write_to(&mut batch, self.log);
        if let Err(error) = self.index.write(batch) {
            self.failed.get_or_insert(error);
        }
    }

    fn chunk(&mut self, position: Position, header: &Header) {
        let (id, len) = (ChunkId(header.key), header.payload_len);
        if len == 0 || Log::of(len) != self.log || header.trailer_len != len_u32(leaves_len(len)) {
            self.damaged += 1;
            warn!(chunk = %id, position = %position, len, "a record that is no chunk");
            return;
        }
        let had = self.row(id);
        if had.is_some_and(|had| had.position >= position) {
            return; // known, or replaced since
        }
        let row = Row { damaged: false, unreadable: false, position, len, put_secs: self.now_secs, checked_in: 0 };
        self.set(id, had, Some(row));
    }

    fn tombstone(&mut self, at: Position, id: ChunkId, dead: Option<Position>) {
        self.counts.tombstone(self.log, at);
        let Some(dead) = dead else { return };
        if self.tombstoned.len() < TOMBSTONES_MAX {
            self.tombstoned.insert(dead);
        }
        let had = self.row(id);
        // An older record than the one named was replaced by it, and that one is gone with its segment.
        if let Some(row) = had.filter(|had| had.position <= dead) {
            self.dead.push(row.position);
            if row.position < dead {
                self.counts.suspect(row.position.segment);
            }
            self.set(id, had, None);
        }
    }

    /// Counts what recovery could not read, and flags the rows that point there.
    fn damaged(&mut self, recovery: &Recovery) {
        for damage in &recovery.damaged {
            self.counts.suspect(damage.position.segment); // perhaps it can be read some day
        }
        let durable = recovery.damaged.iter().filter(|damage| damage.was_durable);
        for damage in durable.filter(|damage| !self.tombstoned.contains(&damage.position)).copied().collect::<Vec<_>>()
        {
            self.damaged += 1;
            let chunk = damage.header.filter(|header| header.kind == KIND_CHUNK).map(|header| ChunkId(header.key));
            warn!(dir = self.log.dir(), position = %damage.position, len = damage.len, chunk = ?chunk, "damaged record");
            let Some(id) = chunk else { continue };
            let had = self.row(id);
            if let Some(row) = had.filter(|had| had.position == damage.position) {
                self.set(id, had, Some(Row { damaged: true, checked_in: 0, ..row }));
            }
        }
        self.damaged += recovery.damaged_count.saturating_sub(len_u64(recovery.damaged.len()));
        for segment in &recovery.missing {
            self.damaged += 1;
            error!(dir = self.log.dir(), segment, "a segment's file is missing: its chunks are lost here");
        }
        for segment in &recovery.unreadable {
            self.damaged += 1;
            error!(dir = self.log.dir(), segment, "a segment cannot be read: its chunks are lost here");
        }
    }

    /// Compares what is counted with the segments that are there.
    ///
    /// # Errors
    /// `Absent`: rows point into one that is not.
    fn check_segments(&mut self, segments: &SegmentLog) -> Result<(), OpenError> {
        let there: BTreeSet<u32> = segments.segments().iter().map(|usage| usage.segment).collect();
        for (segment, row) in self.counts.segments().collect::<Vec<_>>() {
            if there.contains(&segment) {
                continue;
            }
            if row.live > 0 {
                let (dir, position) = (self.log.dir().into(), Position { segment, offset: 0 });
                return Err(SegmentError::Absent { dir, position }.into());
            }
            self.counts.forget(segment);
        }
        if std::mem::take(&mut self.held.uncounted) {
            there.iter().for_each(|segment| self.counts.suspect(*segment));
        }
        Ok(())
    }

    /// Writes the rest. All records before `end` are in the index.
    fn finish(mut self, end: Position, gone: &Gone) -> Result<(LogRow, Counts), KvError> {
        self.held.indexed = Some(end);
        self.write();
        let mut batch = Batch::default();
        batch.put(LOG, format::gone_key(self.log), gone.encode());
        self.index.write(batch)?;
        match self.failed {
            Some(error) => Err(error),
            None => Ok((self.held, self.counts)),
        }
    }
}

impl Visit for Replay<'_> {
    fn record(&mut self, found: Found<'_>) {
        match found.header.kind {
            KIND_CHUNK => self.chunk(found.position, found.header),
            KIND_TOMBSTONE => {
                let dead = found.body.and_then(|(payload, _)| format::position_of(payload));
                self.tombstone(found.position, ChunkId(found.header.key), dead);
            }
            kind => warn!(position = %found.position, kind, "a record of a kind that this version does not know"),
        }
    }

    fn truncated(&mut self, _kept: Option<Position>) {
        warn!(dir = self.log.dir(), "a chunk log is never truncated: record ignored");
    }

    fn punched(&mut self, position: Position, header: &Header) {
        let id = ChunkId(header.key);
        let had = self.row(id);
        if had.is_some_and(|had| had.position == position) {
            self.set(id, had, None);
        }
    }

    fn holds(&mut self, header: &Header, payload: &[u8], trailer: &[u8]) -> bool {
        if payload.is_empty() {
            return false;
        }
        let (id, leaves) = hash_chunk(payload);
        id.0 == header.key && leaves.as_flattened() == trailer
    }
}
