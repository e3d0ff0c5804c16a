//! The rows of the state machine, and the transaction in which commands change them.
//!
//! [`keys`] has every key's bytes, [`values`] every value's. A [`Txn`] collects the changes of many commands over one
//! store and becomes one [`Batch`], so that a run of Raft entries and the `last_applied` that belongs to it reach the
//! store together or not at all.
//!
//! Invariants:
//! 1. What a command reads through the [`Txn`] is the store with all changes so far on top, in scans too.
//! 2. [`Txn::rollback`] undoes exactly what came after its [`Savepoint`].
//! 3. Values never change in place: a change is a new value for a key.

use bytes::Bytes;
use common::kv::{Batch, Entry, Family, KeyRange, KvError, KvRead};
use std::collections::BTreeMap;
use std::ops::Bound;

pub mod acl;
pub mod keys;
pub mod moves;
pub mod trash;
pub mod values;

type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Changes on top of a store, not yet in it.
pub struct Txn<'k> {
    base: &'k dyn KvRead,
    /// One map a family, `None` deletes.
    changes: Vec<Changes>,
    /// What [`Txn::rollback`] needs: the change that each step since the last [`Txn::savepoint`] covered up.
    undo: Vec<(Family, Vec<u8>, Option<Option<Bytes>>)>,
}

/// A moment in a [`Txn`], to go back to. Only the newest one counts.
#[derive(Debug)]
pub struct Savepoint(());

impl<'k> Txn<'k> {
    /// No changes yet. The base must not change while the transaction lives.
    pub fn new(base: &'k dyn KvRead) -> Txn<'k> {
        Txn { base, changes: vec![Changes::new(); keys::FAMILIES.len()], undo: Vec::new() }
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.change(family, key.into(), Some(value.into()));
    }

    /// Removes a key; fine if it is not there.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.change(family, key.into(), None);
    }

    fn change(&mut self, family: Family, key: Vec<u8>, value: Option<Bytes>) {
        let before = self.changes[usize::from(family.0)].insert(key.clone(), value);
        self.undo.push((family, key, before));
    }

    /// Marks this moment. Earlier savepoints can no longer be gone back to.
    pub fn savepoint(&mut self) -> Savepoint {
        self.undo.clear();
        Savepoint(())
    }

    /// Undoes all changes since the savepoint.
    pub fn rollback(&mut self, _since: Savepoint) {
        while let Some((family, key, before)) = self.undo.pop() {
            let changes = &mut self.changes[usize::from(family.0)];
            match before {
                Some(change) => drop(changes.insert(key, change)),
                None => drop(changes.remove(&key)),
            }
        }
    }

    /// All changes, in family and key order.
    pub fn into_batch(self) -> Batch {
        let mut batch = Batch::default();
        for (family, changes) in (0..).map(Family).zip(self.changes) {
            for (key, value) in changes {
                batch.changes.push((family, key, value.map(Vec::from)));
            }
        }
        batch
    }
}

impl KvRead for Txn<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self.changes[usize::from(family.0)].get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(family, key),
        }
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        let changes = &self.changes[usize::from(family.0)];
        let bounds = (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice));
        let changed: Box<dyn Iterator<Item = (&Vec<u8>, &Option<Bytes>)> + 'a> = match is_empty(&range) {
            true => return Box::new(std::iter::empty()), // BTreeMap::range panics on these
            false if reverse => Box::new(changes.range::<[u8], _>(bounds).rev()),
            false => Box::new(changes.range::<[u8], _>(bounds)),
        };
        let mut merge = Merge {
            changed,
            next_change: None,
            stored: self.base.scan(family, range, reverse),
            next_stored: None,
            reverse,
        };
        merge.next_change = merge.changed.next();
        merge.next_stored = merge.stored.next();
        Box::new(merge)
    }
}

fn is_empty(range: &KeyRange) -> bool {
    match (&range.0, &range.1) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
    }
}

/// Two sorted runs as one; where both have a key, the change hides what is stored.
struct Merge<'a> {
    changed: Box<dyn Iterator<Item = (&'a Vec<u8>, &'a Option<Bytes>)> + 'a>,
    next_change: Option<(&'a Vec<u8>, &'a Option<Bytes>)>,
    stored: Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a>,
    next_stored: Option<Result<Entry, KvError>>,
    reverse: bool,
}

impl Iterator for Merge<'_> {
    type Item = Result<Entry, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(Err(_)) = self.next_stored {
                return self.next_stored.take();
            }
            let order = match (&self.next_change, &self.next_stored) {
                (None, None) => return None,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((key, _)), Some(Ok((stored, _)))) if self.reverse => stored.as_ref().cmp(key.as_slice()),
                (Some((key, _)), Some(Ok((stored, _)))) => key.as_slice().cmp(stored.as_ref()),
                (Some(_), Some(Err(_))) => unreachable!("returned above"),
            };
            if order.is_gt() {
                return std::mem::replace(&mut self.next_stored, self.stored.next());
            }
            if order.is_eq() {
                self.next_stored = self.stored.next();
            }
            let change = std::mem::replace(&mut self.next_change, self.changed.next());
            if let Some((key, Some(value))) = change {
                return Some(Ok((Bytes::copy_from_slice(key), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::disk::RealDisk;
    use common::kv::Kv;
    use common::kv::memory::MemoryKv;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..3, 0..3)
    }

    fn change() -> impl Strategy<Value = (Vec<u8>, Option<u8>)> {
        (key(), prop::option::of(any::<u8>()))
    }

    fn apply(txn: &mut Txn<'_>, changes: &[(Vec<u8>, Option<u8>)]) {
        for (key, value) in changes {
            match value {
                Some(value) => txn.put(Family(0), key.clone(), vec![*value]),
                None => txn.delete(Family(0), key.clone()),
            }
        }
    }

    proptest! {
        /// The overlay reads, forward and backward, like a store that has its changes; a rollback leaves no trace.
        #[test]
        fn a_txn_reads_as_if_written(
            stored in prop::collection::vec(change(), 0..12),
            kept in prop::collection::vec(change(), 0..12),
            undone in prop::collection::vec(change(), 0..12),
            from in key(), to in key(), reverse: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let open = |name| MemoryKv::open(Arc::new(RealDisk), dir.path().join(name), &keys::FAMILIES).unwrap();
            let (base, expected) = (open("base"), open("expected"));
            for kv in [&base, &expected] {
                let mut txn = Txn::new(kv);
                apply(&mut txn, &stored);
                let batch = txn.into_batch();
                kv.write(batch).unwrap();
            }
            let mut txn = Txn::new(&base);
            apply(&mut txn, &kept);
            let savepoint = txn.savepoint();
            apply(&mut txn, &undone);
            txn.rollback(savepoint);
            let mut direct = Txn::new(&expected);
            apply(&mut direct, &kept);
            let batch = direct.into_batch();
            expected.write(batch).unwrap();
            let range = (Bound::Included(from.clone()), Bound::Excluded(to));
            let scan = |read: &dyn KvRead| -> Vec<Entry> {
                read.scan(Family(0), range.clone(), reverse).map(Result::unwrap).collect()
            };
            prop_assert_eq!(scan(&txn), scan(&expected));
            prop_assert_eq!(txn.get(Family(0), &from).unwrap(), expected.get(Family(0), &from).unwrap());
            let batch = txn.into_batch();
            base.write(batch).unwrap();
            prop_assert_eq!(scan(&base), scan(&expected));
        }
    }
}
