//! What each segment of a log still holds, counted with every change of a row and in the same batch of the index, so that
//! choosing what to compact costs no scan.

use super::format::{self, CHUNK, Log, Row, SEGMENT, SegmentRow, record_len};
use super::index::{Index, bad_row};
use common::kv::{Batch, KvError, prefix_range};
use common::segment::Position;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Rows of a log's segments, in memory, and which of them the index does not have yet. Or, of some segments only, what
/// they become with a batch of changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    rows: BTreeMap<u32, SegmentRow>,
    changed: BTreeSet<u32>,
}

impl Counts {
    /// Those of a log in the index.
    pub(super) fn load(index: &Index, log: Log) -> Result<Counts, KvError> {
        let mut counts = Counts::default();
        for entry in index.scan(SEGMENT, prefix_range(&log.key())) {
            let (key, value) = entry?;
            let segment = format::segment_of(&key).ok_or_else(bad_row)?;
            counts.rows.insert(segment, SegmentRow::decode(&value).map_err(|_| bad_row())?);
        }
        Ok(counts)
    }

    /// Counts what rows point to, by reading all of them: for an index of before there were counts. What was superseded
    /// is not known then; [`Counts::suspect`] says so of the segments.
    pub(super) fn recount(index: &Index, log: Log) -> Result<Counts, KvError> {
        let mut counts = Counts::default();
        for entry in index.scan(CHUNK, (Bound::Unbounded, Bound::Unbounded)) {
            let row = Row::decode(&entry?.1).map_err(|_| bad_row())?;
            if Log::of(row.len) == log {
                counts.add(row.position, row.len);
            }
        }
        Ok(counts)
    }

    /// Of one segment; zeros if nothing is counted.
    pub(super) fn row(&self, segment: u32) -> SegmentRow {
        self.rows.get(&segment).copied().unwrap_or_default()
    }

    /// Segments that something is counted of.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u32, SegmentRow)> {
        self.rows.iter().map(|(segment, row)| (*segment, *row))
    }

    /// The rows of these segments only.
    pub(super) fn part(&self, segments: impl Iterator<Item = u32>) -> Counts {
        Counts { rows: segments.map(|segment| (segment, self.row(segment))).collect(), changed: BTreeSet::new() }
    }

    /// A row points to this record of a chunk of `len` bytes.
    pub(super) fn add(&mut self, at: Position, len: u32) {
        self.change(at.segment).live += record_len(len);
    }

    /// The row of this record went, and a tombstone says so.
    pub(super) fn remove(&mut self, at: Position, len: u32) {
        let row = self.change(at.segment);
        row.live = row.live.saturating_sub(record_len(len));
    }

    /// The row of this record moved to a newer one.
    pub(super) fn replace(&mut self, at: Position, len: u32) {
        self.remove(at, len);
        self.suspect(at.segment);
    }

    /// This segment may hold a record that is dead and that no tombstone names.
    pub(super) fn suspect(&mut self, segment: u32) {
        self.change(segment).superseded += 1;
    }

    /// A tombstone was written.
    pub(super) fn tombstone(&mut self, log: Log, at: Position) {
        self.change(at.segment).tombstones += log.tombstone_len();
    }

    /// The segment is gone.
    pub(super) fn forget(&mut self, segment: u32) {
        self.rows.remove(&segment);
        self.changed.insert(segment);
    }

    /// Takes over what another one says of the segments that it knows.
    pub(super) fn update(&mut self, of: Counts) {
        self.rows.extend(of.rows);
    }

    /// Writes what changed since the last time.
    pub(super) fn write_to(&mut self, batch: &mut Batch, log: Log) {
        for segment in std::mem::take(&mut self.changed) {
            match self.rows.get(&segment) {
                Some(row) => batch.put(SEGMENT, format::segment_key(log, segment), row.encode()),
                None => batch.delete(SEGMENT, format::segment_key(log, segment)),
            }
        }
    }

    fn change(&mut self, segment: u32) -> &mut SegmentRow {
        self.changed.insert(segment);
        self.rows.entry(segment).or_default()
    }
}
