//! The ordered key-value store under the metadata state machine and the chunk index.
//!
//! Two implementations run one contract test list: `rocks` (RocksDB without a write-ahead log) and [`memory`] (its
//! in-memory twin, saved through the [`crate::disk::Disk`] seam, so that simulated power cuts reach it).
//!
//! Promises:
//! 1. A [`Batch`] is applied whole or not at all, also over a crash, also across families.
//! 2. [`Kv::write`] is *not* durable. After a crash the store is as it was after some batch at or after the last
//!    [`Kv::flush`] that returned; all families are at the same batch.
//! 3. Keys order as bytes.
//! 4. A read never returns bytes that fail the store's checksum: that is an error.

use bytes::Bytes;
use std::fmt;
use std::ops::Bound;
use std::path::Path;

#[cfg(test)]
mod contract;
pub mod memory;
#[cfg(feature = "rocks")]
pub mod rocks;

/// A keyspace of its own; an index into the list of names given when the store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(pub u8);

/// The store failed: nothing of the call can be relied on, and the process should stop using it.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {message}")]
pub struct KvError {
    /// What was attempted, a bare verb: `"write"`.
    pub doing: &'static str,
    /// Why it failed.
    pub message: String,
}

/// A range of keys, each end included, excluded or open.
pub type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// One entry found by a scan.
pub type Entry = (Bytes, Bytes);

/// Reading. A scan is lazy: it costs what is taken from it.
pub trait KvRead: Send + Sync {
    /// The value under this key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Entries of the range in ascending key order (descending if `reverse`).
    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a>;
}

/// The whole store. Shared between threads; writers are serialised by the caller.
pub trait Kv: KvRead + fmt::Debug + 'static {
    /// Applies a batch whole, visible to reads that start after this returns. Not durable before [`Kv::flush`].
    fn write(&self, batch: Batch) -> Result<(), KvError>;

    /// Makes everything written before this call durable.
    fn flush(&self) -> Result<(), KvError>;

    /// A view that no later write changes.
    fn snapshot(&self) -> Box<dyn KvRead + '_>;

    /// Flushes, then writes a copy that can be opened as a store of its own into `dir`, which must not exist.
    /// Cheap: it shares files. The directory is durable when this returns.
    fn checkpoint(&self, dir: &Path) -> Result<(), KvError>;
}

/// Changes that happen together. Later changes of the same key win.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In the order they were added; `None` deletes.
    pub changes: Vec<(Family, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), Some(value.into())));
    }

    /// Removes a key; fine if it is not there.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), None));
    }
}

/// All keys that start with this prefix.
pub fn prefix_range(prefix: &[u8]) -> KeyRange {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bound::Included(prefix.to_vec()), Bound::Excluded(end));
        }
    }
    (Bound::Included(prefix.to_vec()), Bound::Unbounded)
}
