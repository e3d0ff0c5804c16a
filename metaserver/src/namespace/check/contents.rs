//! What files hold: extents, and the rows of chunks that follow from them.

use super::super::fix::Fix;
use super::{Check, change, first, id_of, last};
use crate::store::keys::{self, CHUNK, DEGRADED, EXTENT, PURGE, RECOUNT};
use crate::store::values::{Body, ChunkRow, Data, Degraded, ExtentRow, Purge, Recount, Value};
use common::id::{ChunkId, InodeId};
use common::kv::KvError;
use common::units::len_u64;
use std::collections::{BTreeMap, BTreeSet};

/// For each chunk its length, and references by target.
type References = BTreeMap<ChunkId, (u32, BTreeMap<u8, u64>)>;

/// Replica targets by data id: of files that are there or in the trash, and of those that are still to be purged.
struct Targets {
    files: BTreeMap<u64, u8>,
    recounts: BTreeMap<u64, Recount>,
}

impl Targets {
    /// That of the extent which starts at this offset. `None`: it is nobody's.
    fn of(&self, data: u64, at: u64) -> Option<u8> {
        self.recounts.get(&data).map(|recount| recount.target(at)).or_else(|| self.files.get(&data).copied())
    }
}

impl Check<'_> {
    /// What the references of all data count for.
    fn targets(&mut self) -> Result<Targets, KvError> {
        let purged = self.all(PURGE, |key, value| Ok((first(key), Purge::decode(value)?.replicas)))?;
        let mut files: BTreeMap<u64, u8> = purged.into_iter().collect();
        for inode in self.inodes.values() {
            if let Body::File { data, .. } = inode.body {
                files.insert(data, inode.replicas);
            }
        }
        let recounts = self.all(RECOUNT, |key, value| Ok((first(key), Recount::decode(value)?)))?;
        for (data, Recount { to, .. }) in &recounts {
            // One of nobody ends with the next step.
            if let Some(other) = files.get(data).filter(|target| *target != to) {
                self.expect(false, || format!("data {data}: counted for {to} copies, its file wants {other}"));
            }
        }
        Ok(Targets { files, recounts: recounts.into_iter().collect() })
    }

    /// Extents do not overlap, lie inside their file and chunk, and are counted.
    pub(super) fn extents(&mut self) -> Result<References, KvError> {
        let targets = self.targets()?;
        let mut references = References::new();
        let mut sums: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new(); // data -> extents, bytes, end
        for (data, at, row) in self.all(EXTENT, |key, value| Ok((first(key), last(key), ExtentRow::decode(value)?)))? {
            let (extents, bytes, end) = sums.entry(data).or_default();
            let overlaps = at < *end;
            let past = at.saturating_add(row.len);
            (*extents, *bytes, *end) = (*extents + 1, bytes.saturating_add(row.len), past.max(*end));
            self.expect(!overlaps && row.len > 0, || format!("data {data}: extent at {at} overlaps or is empty"));
            let room = match &row.data {
                Data::Chunk { id, offset, chunk_len } => {
                    let (len, counts) = references.entry(*id).or_insert((*chunk_len, BTreeMap::new()));
                    let agrees = *len == *chunk_len;
                    *counts.entry(targets.of(data, at).unwrap_or(self.replicas)).or_default() += 1;
                    self.expect(agrees, || format!("chunk {id}: extents disagree about its length"));
                    u64::from(*chunk_len).saturating_sub(u64::from(*offset))
                }
                Data::Inline { id, offset, bytes } => {
                    self.expect(ChunkId::of(bytes) == *id, || {
                        format!("data {data}: inline bytes at {at} are not {id}")
                    });
                    len_u64(bytes.len()).saturating_sub(u64::from(*offset))
                }
            };
            self.expect(row.len <= room, || format!("data {data}: extent at {at} is longer than its bytes"));
        }
        for (ino, inode) in self.inodes.clone() {
            if let Body::File { size, allocated, extents, data, .. } = inode.body {
                let (have, bytes, end) = sums.remove(&data).unwrap_or_default();
                let recount = || Fix::Extents {
                    ino: InodeId(ino),
                    extents: change(extents, have),
                    bytes: change(allocated, bytes),
                    end,
                };
                self.expect_or(
                    (extents, allocated) == (have, bytes),
                    || format!("i{ino}: counts {extents} extents of {allocated} bytes, has {have} of {bytes}"),
                    || vec![recount()],
                );
                self.expect_or(
                    end <= size,
                    || format!("i{ino}: extents to {end}, size {size}"),
                    || vec![Fix::Extents { ino: InodeId(ino), extents: 0, bytes: 0, end }],
                );
                match self.buried.contains(&ino) {
                    true => self.buried_bytes = self.buried_bytes.saturating_add(bytes),
                    false => self.found.logical_bytes = self.found.logical_bytes.saturating_add(bytes),
                }
            }
        }
        self.highest = targets.files.keys().chain(sums.keys()).copied().fold(self.highest, u64::max);
        for (data, (extents, bytes, end)) in sums {
            let replicas = targets.recounts.get(&data).map_or(self.replicas, |recount| recount.to);
            let fixes = vec![Fix::Adopt { data, replicas, extents, bytes, end }];
            let is_known = targets.files.contains_key(&data); // still to be purged
            self.expect_or(is_known, || format!("data {data}: {extents} extents of nobody"), || fixes);
        }
        Ok(references)
    }

    /// Chunk rows are what the extents add up to; degraded rows belong to chunks.
    pub(super) fn chunks(&mut self, mut references: References) -> Result<(), KvError> {
        let mut there = BTreeSet::new();
        for (id, row) in self.all(CHUNK, |key, value| Ok((id_of(key), ChunkRow::decode(value)?)))? {
            let counted = references.remove(&id);
            let same = counted.as_ref().is_some_and(|(len, refs)| *len == row.len && *refs == row.refs);
            self.expect_or(
                same,
                || format!("chunk {id}: row {row:?}, counted {counted:?}"),
                || recounted(id, &row, counted.as_ref()),
            );
            self.found.chunks += 1;
            self.found.chunk_bytes += u64::from(row.len);
            there.insert(id);
        }
        for (id, counted) in references {
            let none = ChunkRow { len: counted.0, refs: BTreeMap::new() };
            self.expect_or(
                false,
                || format!("chunk {id}: no row, counted {counted:?}"),
                || recounted(id, &none, Some(&counted)),
            );
            there.insert(id); // after its fix
        }
        let pg_count = self.pg_count;
        for (key, id, row) in
            self.all(DEGRADED, |key, value| Ok((key.to_vec(), id_of(key), Degraded::decode(value)?)))?
        {
            let at_home = key == keys::degraded(id.pg(pg_count), &id);
            let fixes = || vec![Fix::DegradedKey { key: key.clone() }];
            self.expect_or(at_home, || format!("degraded {id}: it is under another placement group"), fixes);
            self.expect_or(
                there.contains(&id),
                || format!("degraded {id}: the chunk is not there"),
                || vec![Fix::NotDegraded { chunk: id }],
            );
            self.expect(row.servers.is_sorted_by(|a, b| a < b), || format!("degraded {id}: {:?}", row.servers));
            self.found.degraded += 1;
        }
        Ok(())
    }
}

/// What makes a chunk's row what was counted.
fn recounted(chunk: ChunkId, row: &ChunkRow, counted: Option<&(u32, BTreeMap<u8, u64>)>) -> Vec<Fix> {
    let none = (row.len, BTreeMap::new());
    let (len, refs) = counted.unwrap_or(&none);
    let mut targets: BTreeSet<u8> = row.refs.keys().chain(refs.keys()).copied().collect();
    if targets.is_empty() {
        targets.insert(0); // none under any: the row goes
    }
    let count = |refs: &BTreeMap<u8, u64>, target| refs.get(&target).copied().unwrap_or(0);
    let fix =
        |target| Fix::Refs { chunk, len: *len, target, delta: change(count(&row.refs, target), count(refs, target)) };
    targets.into_iter().map(fix).collect()
}
