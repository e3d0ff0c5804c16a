//! The extent map of one file, and the reference counts that follow from it.
//!
//! Extents do not overlap; what none covers is a hole. A range is replaced by cutting it out ([`FileMap::punch`]) and
//! putting the new extent in ([`FileMap::insert`]). An extent that is cut keeps its chunk and moves its offset; inline
//! bytes stay whole so that their id verifies.
//!
//! References are one per extent row. They are summed up per chunk and written once at the end ([`FileMap::settle`]), so
//! a chunk that goes and comes within one command never loses its row.

use super::command::Fail;
use super::recount;
use super::rows::{Call, row};
use crate::store::Txn;
use crate::store::keys::{self, CHUNK, DEGRADED, EXTENT};
use crate::store::values::{ChunkRow, Data, Degraded, ExtentRow, Recount, Value, damaged};
use common::id::ChunkId;
use common::kv::{KvError, KvRead};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Rows read into memory at a time while a range is cut out.
const STEP: usize = 4096;

/// An extent row and where in the file it starts.
pub(super) type Placed = (u64, ExtentRow);

/// Changes of one file's extents. The rows change at once, counts when it is settled.
#[derive(Debug)]
pub(super) struct FileMap {
    data: u64,
    /// The target that references count for, unless it is being changed.
    replicas: u8,
    recount: Option<Recount>,
    /// Extents more (or less) than before.
    extents: i64,
    /// Bytes covered more (or less) than before.
    allocated: i64,
    /// For each chunk and target, of which there are two at most, its length and the references more (or less) than before.
    references: BTreeMap<(ChunkId, u8), (u32, i64)>,
}

impl FileMap {
    /// For the extents under this data id, of a file that wants so many copies.
    pub(super) fn open(read: &dyn KvRead, data: u64, replicas: u8) -> Result<FileMap, KvError> {
        let recount = recount::under_way(read, data)?;
        Ok(FileMap { data, replicas, recount, extents: 0, allocated: 0, references: BTreeMap::new() })
    }

    /// Makes `[from, to)` a hole. Returns the extent that ends exactly at `from`, if there is one: the caller's may
    /// continue it.
    pub(super) fn punch(&mut self, txn: &mut Txn<'_>, from: u64, to: u64) -> Result<Option<Placed>, KvError> {
        assert!(from < to, "an empty range is nobody's");
        let mut left = None;
        if let Some((at, row)) = before(txn, self.data, from)? {
            let end = at + row.len;
            if end > from {
                left = self.cut(txn, (at, row), from, to);
                if end >= to {
                    return Ok(left); // extents do not overlap: no other one starts in there
                }
            } else if end == from {
                left = Some((at, row));
            }
        }
        loop {
            let rows = starting_in(txn, self.data, from, to, STEP)?;
            let last = rows.len() < STEP;
            for row in rows {
                self.cut(txn, row, from, to);
            }
            if last {
                return Ok(left);
            }
        }
    }

    /// Takes `[from, to)` out of one extent; what is left on its left, if anything.
    fn cut(&mut self, txn: &mut Txn<'_>, (at, row): Placed, from: u64, to: u64) -> Option<Placed> {
        let end = at + row.len;
        self.delete(txn, at, &row);
        if end > to {
            self.put(txn, to, piece(&row, to - at, end - to));
        }
        if at >= from {
            return None;
        }
        let kept = piece(&row, 0, from - at);
        self.put(txn, at, kept.clone());
        Some((at, kept))
    }

    /// Puts an extent into a hole. `left` is what [`FileMap::punch`] returned for it: they become one if they can.
    pub(super) fn insert(&mut self, txn: &mut Txn<'_>, at: u64, row: ExtentRow, left: Option<Placed>) {
        match left.and_then(|left| joined(left, at, &row)) {
            Some((at, whole, part)) => {
                self.delete(txn, at, &part);
                self.put(txn, at, whole);
            }
            None => self.put(txn, at, row),
        }
    }

    /// Removes up to `limit` extents from the start on; how many there were to remove. Fewer than `limit`: none is left.
    pub(super) fn remove_some(&mut self, txn: &mut Txn<'_>, limit: usize) -> Result<usize, KvError> {
        let mut removed = 0;
        while removed < limit {
            let rows = starting_in(txn, self.data, 0, u64::MAX, STEP.min(limit - removed))?;
            if rows.is_empty() {
                break;
            }
            removed += rows.len();
            for (at, row) in rows {
                self.delete(txn, at, &row);
            }
        }
        Ok(removed)
    }

    fn put(&mut self, txn: &mut Txn<'_>, at: u64, row: ExtentRow) {
        self.count(at, &row, 1);
        txn.put(EXTENT, keys::extent(self.data, at), row.encode());
    }

    fn delete(&mut self, txn: &mut Txn<'_>, at: u64, row: &ExtentRow) {
        self.count(at, row, -1);
        txn.delete(EXTENT, keys::extent(self.data, at));
    }

    fn count(&mut self, at: u64, row: &ExtentRow, sign: i64) {
        self.extents += sign;
        self.allocated += sign * i64::try_from(row.len).expect("files end at 2^60");
        if let Data::Chunk { id, chunk_len, .. } = row.data {
            let target = self.recount.map_or(self.replicas, |recount| recount.target(at));
            self.references.entry((id, target)).or_insert((chunk_len, 0)).1 += sign;
        }
    }

    /// Brings the file's counts, the sum of all files, and the chunk rows up to date.
    pub(super) fn settle_into(
        self,
        call: &mut Call<'_, '_>,
        extents: &mut u64,
        allocated: &mut u64,
    ) -> Result<(), Fail> {
        *extents = extents.checked_add_signed(self.extents).expect("invariant 7: extents are counted");
        *allocated = allocated.checked_add_signed(self.allocated).expect("invariant 7: allocated is the sum");
        let logical = call.counters.logical_bytes.checked_add_signed(self.allocated);
        call.counters.logical_bytes = logical.expect("invariant 7: counters are sums");
        self.settle(call)
    }

    /// Brings the chunk rows up to date.
    pub(super) fn settle(self, call: &mut Call<'_, '_>) -> Result<(), Fail> {
        let mut pg_count = None;
        let mut all = self.references.into_iter().filter(|(_, (_, delta))| *delta != 0).peekable();
        while let Some(((id, target), (len, delta))) = all.next() {
            let other = all.next_if(|((other, _), _)| *other == id);
            let other = other.map(|((_, target), (_, delta))| (target, delta));
            let gone = refer(call, &id, len, [Some((target, delta)), other])?;
            if gone && call.counters.degraded > 0 {
                let pg_count = match pg_count {
                    Some(known) => known,
                    None => *pg_count.insert(call.config()?.pg_count),
                };
                forget_degraded(call, &id, pg_count)?;
            }
        }
        Ok(())
    }
}

/// Adds to the references of a chunk, for one or two targets; true if it has none any more.
pub(super) fn refer(
    call: &mut Call<'_, '_>,
    id: &ChunkId,
    len: u32,
    deltas: [Option<(u8, i64)>; 2],
) -> Result<bool, Fail> {
    let key = keys::chunk(id);
    let found: Option<ChunkRow> = row(call.txn, CHUNK, &key)?;
    let new = found.is_none();
    let mut chunk = found.unwrap_or(ChunkRow { len, refs: BTreeMap::new() });
    if chunk.len != len {
        return Err(damaged("chunk", &format!("{id} has {} bytes, an extent says {len}", chunk.len)).into());
    }
    let wanted = most_wanted(&chunk);
    for (target, delta) in deltas.into_iter().flatten() {
        let count = chunk.refs.remove(&target).unwrap_or(0).checked_add_signed(delta);
        let count = count.ok_or_else(|| damaged("chunk", &format!("{id}: references below 0")))?;
        if count > 0 {
            chunk.refs.insert(target, count);
        }
    }
    if chunk.refs.is_empty() {
        call.txn.delete(CHUNK, key);
        call.counters.chunks -= 1;
        call.counters.chunk_bytes -= u64::from(len);
        return Ok(true);
    }
    call.txn.put(CHUNK, key, chunk.encode());
    if new {
        call.counters.chunks += 1;
        call.counters.chunk_bytes += u64::from(len);
    }
    if most_wanted(&chunk) < wanted && call.counters.degraded > 0 {
        fewer_wanted(call, id, &chunk)?;
    }
    Ok(false)
}

/// The target of a chunk: the most copies that anybody wants.
pub(super) fn most_wanted(chunk: &ChunkRow) -> u8 {
    chunk.refs.last_key_value().map_or(0, |(target, _)| *target)
}

/// Nobody re-makes copies of a chunk, and says that they are there, which are not wanted any more.
fn fewer_wanted(call: &mut Call<'_, '_>, id: &ChunkId, chunk: &ChunkRow) -> Result<(), Fail> {
    let pg_count = call.config()?.pg_count;
    let Some(known) = row::<Degraded>(call.txn, DEGRADED, &keys::degraded(id.pg(pg_count), id))? else { return Ok(()) };
    let out = super::keep::out(call.txn)?;
    let counted = known.servers.iter().filter(|server| !out.contains(server)).count();
    if counted >= usize::from(most_wanted(chunk)) {
        forget_degraded(call, id, pg_count)?;
    }
    Ok(())
}

/// Removes the degraded row of a chunk, if there is one.
pub(super) fn forget_degraded(call: &mut Call<'_, '_>, id: &ChunkId, pg_count: u32) -> Result<(), KvError> {
    let key = keys::degraded(id.pg(pg_count), id);
    if call.txn.get(DEGRADED, &key)?.is_some() {
        call.txn.delete(DEGRADED, key);
        call.counters.degraded = call.counters.degraded.saturating_sub(1); // fsck tells if it was off
    }
    Ok(())
}

/// `len` bytes of an extent from `skip` on.
pub(super) fn piece(row: &ExtentRow, skip: u64, len: u64) -> ExtentRow {
    let skip = u32::try_from(skip).expect("an extent is no longer than its chunk");
    let data = match &row.data {
        Data::Chunk { id, offset, chunk_len } => Data::Chunk { id: *id, offset: offset + skip, chunk_len: *chunk_len },
        Data::Inline { id, offset, bytes } => Data::Inline { id: *id, offset: offset + skip, bytes: bytes.clone() },
    };
    ExtentRow { len, data }
}

/// If `row` at `at` continues `left` in the same chunk: where both start, both as one, and `left` alone.
fn joined((left_at, left): Placed, at: u64, row: &ExtentRow) -> Option<(u64, ExtentRow, ExtentRow)> {
    let (Data::Chunk { id, offset, chunk_len }, Data::Chunk { id: next_id, offset: next_offset, .. }) =
        (&left.data, &row.data)
    else {
        return None;
    };
    let continues =
        left_at + left.len == at && id == next_id && u64::from(*offset) + left.len == u64::from(*next_offset);
    let data = Data::Chunk { id: *id, offset: *offset, chunk_len: *chunk_len };
    continues.then(|| (left_at, ExtentRow { len: left.len + row.len, data }, left))
}

/// The last extent that starts before `at`.
fn before(read: &dyn KvRead, data: u64, at: u64) -> Result<Option<Placed>, KvError> {
    let range = (Bound::Included(keys::extent(data, 0).to_vec()), Bound::Excluded(keys::extent(data, at).to_vec()));
    read.scan(EXTENT, range, true).next().transpose()?.map(|(key, value)| placed(&key, &value)).transpose()
}

/// Up to `limit` extents that start in `[from, to)`, in order.
pub(super) fn starting_in(
    read: &dyn KvRead,
    data: u64,
    from: u64,
    to: u64,
    limit: usize,
) -> Result<Vec<Placed>, KvError> {
    let range = (Bound::Included(keys::extent(data, from).to_vec()), Bound::Excluded(keys::extent(data, to).to_vec()));
    let rows = read.scan(EXTENT, range, false).take(limit);
    rows.map(|found| found.and_then(|(key, value)| placed(&key, &value))).collect()
}

/// Up to `limit` extents that overlap `[from, to)`, in order.
pub(super) fn overlapping(
    read: &dyn KvRead,
    data: u64,
    from: u64,
    to: u64,
    limit: usize,
) -> Result<Vec<Placed>, KvError> {
    let mut all: Vec<Placed> = before(read, data, from)?.into_iter().filter(|(at, row)| at + row.len > from).collect();
    all.extend(starting_in(read, data, from, to, limit.saturating_sub(all.len()))?);
    Ok(all)
}

fn placed(key: &[u8], value: &[u8]) -> Result<Placed, KvError> {
    let at = keys::last_u64(key).ok_or_else(|| damaged("extent", "the key is too short"))?;
    Ok((at, ExtentRow::decode(value)?))
}
