//! Handing bytes out: one disk read for a range, with what the reader needs to check it.

use super::chunk::leaves_of;
use super::format::{Log, Row, leaves_len};
use super::silent::READ_MAX;
use super::{Inner, Store, StoreError};
use bytes::Bytes;
use common::disk::AlignedBuf;
use common::hash::{self, Leaf, Mismatch, Tree};
use common::id::ChunkId;
use common::segment::SegmentError;
use common::units::{HASH_GROUP_LEN, len_u64, len_usize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::timeout;
use tracing::warn;

/// A range of at least this many bytes is read around the page cache the first time. Filling the cache costs a copy and
/// as much again in bookkeeping, and most whole chunks are read once: the reader has a cache of its own.
const DIRECT_LEN_MIN: usize = 1 << 20;
/// How often a chunk that moves while it is read is looked for, at most.
const READ_TRIES: usize = 3;
/// How many chunks are remembered as read lately.
const LATELY: usize = 8192;

/// Which chunks were read in long ranges lately, about: a chunk that is read again goes through the page cache from then
/// on, because others want it too. Each chunk has one place, and the last one there stays.
#[derive(Debug)]
pub(super) struct Lately(Vec<AtomicU64>);

impl Default for Lately {
    fn default() -> Lately {
        Lately((0..LATELY).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Lately {
    /// True if it was asked for before.
    fn seen(&self, id: ChunkId) -> bool {
        let mut tag = [0; 8];
        tag.copy_from_slice(&id.0[..8]);
        let tag = u64::from_le_bytes(tag);
        let place = len_usize(tag % len_u64(LATELY));
        self.0[place].swap(tag, Ordering::Relaxed) == tag
    }
}

/// The hash groups of a chunk that cover a range. *Not checked* yet: the reader does that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// The chunk's length, in bytes.
    pub chunk_len: u32,
    /// Where `bytes` start in the chunk: a multiple of [`HASH_GROUP_LEN`].
    pub start: u32,
    /// Up to the end of a hash group, or of the chunk.
    pub bytes: Bytes,
    /// What is needed to check them: [`common::hash::proof`].
    pub proof: Vec<Leaf>,
}

impl Part {
    /// Checks the bytes against the id.
    ///
    /// # Errors
    /// They are not the chunk's: report it with [`Store::verify`], use another replica.
    pub fn check(&self) -> Result<(), Mismatch> {
        hash::verify(self.chunk, self.chunk_len, self.start, &self.bytes, &self.proof)
    }
}

/// See [`Store::has`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    Nothing,
    /// A copy that the disk did not read the last time: the next one replaces it, if there is room.
    Unreadable,
    Copy,
}

impl Store {
    /// Reads the hash groups that cover `[offset, offset + len)` of a chunk. The range lies inside it, `len` at least 1.
    /// The record's header is not looked at: position and length are proven right when the bytes match the id.
    ///
    /// # Errors
    /// `NotFound`, `Range`. `Corrupt`: this copy is known to be damaged, or its hash tree just turned out to be. `Disk`:
    /// the disk does not read it. `Slow`.
    pub async fn read(&self, id: ChunkId, offset: u32, len: u32) -> Result<Part, StoreError> {
        let store = self.clone();
        let read = self.inner.world.blocking(move || store.read_here(id, offset, len));
        timeout(READ_MAX, read).await.unwrap_or_else(|_| Err(self.slow_read()))
    }

    /// [`Store::read`] on this thread, for as long as the disk takes.
    pub(super) fn read_here(&self, id: ChunkId, offset: u32, len: u32) -> Result<Part, StoreError> {
        self.watched(|store| store.inner.read(id, offset, len))
    }

    pub(super) fn slow_read(&self) -> StoreError {
        warn!(dir = %self.dir().display(), "the disk does not read; passed over until it does");
        StoreError::Slow { doing: "read", dir: self.dir().to_path_buf(), waited: READ_MAX }
    }

    /// What there is of a chunk that is not known to be damaged. It is not vouched for: see [`Store::touch`].
    pub(super) fn has(&self, id: ChunkId) -> Has {
        match self.inner.index.row(id) {
            Ok(Some(row)) if self.inner.fenced.get().is_none() && !row.damaged => {
                if row.unreadable {
                    Has::Unreadable
                } else {
                    Has::Copy
                }
            }
            _ => Has::Nothing,
        }
    }
}

impl Inner {
    fn read(&self, id: ChunkId, offset: u32, len: u32) -> Result<Part, StoreError> {
        self.used.fetch_add(1, Ordering::Relaxed);
        let look = || self.index.row(id).map_err(|e| self.index_failed(&e))?.ok_or(StoreError::NotFound { chunk: id });
        let (mut row, mut tries) = (look()?, 1);
        loop {
            let read = self.read_at(id, row, offset, len);
            if read.is_ok() || tries == READ_TRIES {
                return read;
            }
            let now = look()?;
            if now.position == row.position {
                return read;
            }
            // Compaction, or a repair, moved the chunk while it was read: again, at the new place.
            (row, tries) = (now, tries + 1);
        }
    }

    fn read_at(&self, id: ChunkId, row: Row, offset: u32, len: u32) -> Result<Part, StoreError> {
        let chunk_len = row.len;
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= chunk_len);
        let end = end.ok_or(StoreError::Range { chunk: id, offset, len, chunk_len })?;
        if row.damaged {
            return Err(StoreError::Corrupt { chunk: id, why: "found earlier".into() });
        }
        let groups = hash::groups_of(offset, end);
        let start = groups.start * HASH_GROUP_LEN;
        let stop = groups.end.saturating_mul(HASH_GROUP_LEN).min(chunk_len);
        let proof =
            if groups == (0..hash::group_count(chunk_len)) { Vec::new() } else { self.tree(id, &row)?.proof(groups) };
        let bytes = self.range(id, &row, start, len_usize(u64::from(stop - start)))?;
        Ok(Part { chunk: id, chunk_len, start, bytes, proof })
    }

    fn range(&self, id: ChunkId, row: &Row, from: u32, len: usize) -> Result<Bytes, StoreError> {
        if len >= DIRECT_LEN_MIN && !self.lately.seen(id) {
            let segments = &self.lane(Log::of(row.len)).segments;
            let read = segments.read_body_direct(row.position, from.into(), len);
            return read.map_err(|error| self.unreadable(id, row, error));
        }
        let mut bytes = AlignedBuf::unspecified(len);
        self.body(id, row, from, &mut bytes)?;
        Ok(Bytes::from_owner(bytes))
    }

    /// The hash tree of a chunk of several groups, from memory or from its record; its root is the id.
    fn tree(&self, id: ChunkId, row: &Row) -> Result<Arc<Tree>, StoreError> {
        if let Some(tree) = self.tree_cache().get(id) {
            return Ok(tree);
        }
        let mut trailer = vec![0; leaves_len(row.len)];
        self.body(id, row, row.len, &mut trailer)?;
        let leaves = leaves_of(&trailer).expect("leaves_len is a number of leaves");
        let tree = Arc::new(Tree::new(&leaves));
        if tree.id() != id {
            return Err(self.found_damaged(id, row, "its hash tree does not match the id"));
        }
        self.tree_cache().insert(tree.clone());
        Ok(tree)
    }

    fn tree_cache(&self) -> std::sync::MutexGuard<'_, super::TreeCache> {
        self.trees.lock().expect("no panic holds this lock")
    }

    fn body(&self, id: ChunkId, row: &Row, from: u32, buf: &mut [u8]) -> Result<(), StoreError> {
        let segments = &self.lane(Log::of(row.len)).segments;
        segments.read_body(row.position, from.into(), buf).map_err(|error| self.unreadable(id, row, error))
    }

    fn unreadable(&self, id: ChunkId, row: &Row, error: SegmentError) -> StoreError {
        match error {
            SegmentError::Absent { .. } | SegmentError::Damaged { .. } => {
                self.found_damaged(id, row, &error.to_string())
            }
            SegmentError::Disk { .. }
            | SegmentError::NoSpace { .. }
            | SegmentError::Fenced { .. }
            | SegmentError::Foreign { .. }
            | SegmentError::Invalid { .. } => {
                self.found_unreadable(id, row);
                StoreError::Disk { doing: "read", chunk: id, cause: error.to_string() }
            }
        }
    }

    /// The disk did not read a copy ([`Row::unreadable`]). Unless somebody is at the chunk or it was replaced meanwhile.
    fn found_unreadable(&self, id: ChunkId, row: &Row) {
        self.lane(Log::of(row.len)).if_free(id, || {
            if matches!(self.index.row(id), Ok(Some(now)) if now == *row) {
                let _ = self.doubt(id, *row); // if that fails, the store is fenced
            }
        });
    }

    /// A read found a copy damaged. Marks it, unless somebody is at the chunk or it was replaced meanwhile.
    fn found_damaged(&self, id: ChunkId, row: &Row, why: &str) -> StoreError {
        self.lane(Log::of(row.len)).if_free(id, || {
            if matches!(self.index.row(id), Ok(Some(now)) if now == *row) {
                let _ = self.mark_damaged(id, *row, why); // if that fails, the store is fenced
            }
        });
        StoreError::Corrupt { chunk: id, why: why.into() }
    }
}
