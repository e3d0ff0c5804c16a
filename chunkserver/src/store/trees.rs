//! Hash trees kept in memory, so that reading a range costs one disk read and no hashing.

use common::hash::Tree;
use common::id::ChunkId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The trees of chunks read lately: those used last stay. An entry is never stale, since an id names its tree.
#[derive(Debug)]
pub(super) struct TreeCache {
    len_max: usize,
    len: usize,
    clock: u64,
    entries: BTreeMap<ChunkId, (u64, Arc<Tree>)>,
    by_use: BTreeMap<u64, ChunkId>,
}

impl TreeCache {
    /// Holds at most `len_max` bytes of trees.
    pub(super) fn new(len_max: usize) -> TreeCache {
        TreeCache { len_max, len: 0, clock: 0, entries: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, chunk: ChunkId) -> Option<Arc<Tree>> {
        self.clock += 1;
        let (used, tree) = self.entries.get_mut(&chunk)?;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, chunk);
        Some(tree.clone())
    }

    pub(super) fn insert(&mut self, tree: Arc<Tree>) {
        let chunk = tree.id();
        self.clock += 1;
        self.len += tree.bytes();
        if let Some((used, old)) = self.entries.insert(chunk, (self.clock, tree)) {
            self.by_use.remove(&used);
            self.len -= old.bytes();
        }
        self.by_use.insert(self.clock, chunk);
        while self.len > self.len_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some((_, tree)) = self.entries.remove(&oldest) {
                self.len -= tree.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_within_the_limit() {
        let tree = |n: u8| Arc::new(Tree::new(&[[n; 32]; 4]));
        let id = |n: u8| tree(n).id();
        let each = tree(0).bytes();
        let mut cache = TreeCache::new(3 * each);
        for n in 0..3 {
            cache.insert(tree(n));
        }
        assert_eq!(cache.get(id(0)), Some(tree(0)));
        cache.insert(tree(3));
        cache.insert(tree(3));
        assert_eq!(cache.get(id(1)), None, "the one not used for longest went");
        assert!(cache.get(id(0)).is_some() && cache.get(id(2)).is_some() && cache.get(id(3)).is_some());
        assert_eq!((cache.len, cache.by_use.len()), (3 * each, 3));
    }
}
