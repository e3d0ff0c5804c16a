//! Hash trees kept in memory, so that reading a range costs one disk read.

use common::hash::Leaf;
use common::id::ChunkId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The leaves of chunks read lately: those used last stay. An entry is never stale, since an id names its leaves.
#[derive(Debug)]
pub(super) struct LeafCache {
    len_max: usize,
    len: usize,
    clock: u64,
    entries: BTreeMap<ChunkId, (u64, Arc<[Leaf]>)>,
    by_use: BTreeMap<u64, ChunkId>,
}

impl LeafCache {
    /// Holds at most `len_max` bytes of leaves.
    pub(super) fn new(len_max: usize) -> LeafCache {
        LeafCache { len_max, len: 0, clock: 0, entries: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, chunk: ChunkId) -> Option<Arc<[Leaf]>> {
        self.clock += 1;
        let (used, leaves) = self.entries.get_mut(&chunk)?;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, chunk);
        Some(leaves.clone())
    }

    pub(super) fn insert(&mut self, chunk: ChunkId, leaves: Arc<[Leaf]>) {
        self.clock += 1;
        self.len += size_of_val(&*leaves);
        if let Some((used, old)) = self.entries.insert(chunk, (self.clock, leaves)) {
            self.by_use.remove(&used);
            self.len -= size_of_val(&*old);
        }
        self.by_use.insert(self.clock, chunk);
        while self.len > self.len_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some((_, leaves)) = self.entries.remove(&oldest) {
                self.len -= size_of_val(&*leaves);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_within_the_limit() {
        let id = |n: u8| ChunkId([n; 32]);
        let leaves = |n: u8| -> Arc<[Leaf]> { vec![[n; 32]; 4].into() };
        let mut cache = LeafCache::new(3 * 4 * 32);
        for n in 0..3 {
            cache.insert(id(n), leaves(n));
        }
        assert_eq!(cache.get(id(0)), Some(leaves(0)));
        cache.insert(id(3), leaves(3));
        cache.insert(id(3), leaves(3));
        assert_eq!(cache.get(id(1)), None, "the one not used for longest went");
        assert!(cache.get(id(0)).is_some() && cache.get(id(2)).is_some() && cache.get(id(3)).is_some());
        assert_eq!((cache.len, cache.by_use.len()), (3 * 4 * 32, 3));
    }
}
