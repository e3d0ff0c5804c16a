//! What every [`Kv`] must do: one list of checks that each implementation runs.

use super::{Batch, Entry, Family, KeyRange, Kv, KvRead, prefix_range};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::path::Path;

/// The families the checks use.
pub(crate) const FAMILIES: [&str; 3] = ["one", "two", "three"];
const ONE: Family = Family(0);
const TWO: Family = Family(1);

/// Opens the store in a directory.
pub(crate) type Open<'a> = &'a dyn Fn(&Path) -> Box<dyn Kv>;

type Check = fn(Open<'_>, &Path);

/// Runs all checks, each in a directory of its own.
pub(crate) fn run(open: Open<'_>) {
    let checks: [(&str, Check); 6] = [
        ("keys order as bytes", keys_order_as_bytes),
        ("later changes win", later_changes_of_a_batch_win),
        ("scans", scans_take_every_kind_of_range),
        ("snapshots", a_snapshot_never_changes),
        ("reopen", a_flushed_store_reopens_with_all_families_at_one_batch),
        ("checkpoint", a_checkpoint_opens_with_the_same_content),
    ];
    for (name, check) in checks {
        eprintln!("contract: {name}");
        let dir = tempfile::tempdir().unwrap();
        check(open, dir.path());
    }
}

fn put(kv: &dyn Kv, pairs: &[(&[u8], &[u8])]) {
    let mut batch = Batch::default();
    for (key, value) in pairs {
        batch.put(ONE, *key, *value);
    }
    kv.write(batch).unwrap();
}

fn all(read: &dyn KvRead, family: Family, range: KeyRange, reverse: bool) -> Vec<Entry> {
    read.scan(family, range, reverse).map(Result::unwrap).collect()
}

fn keys(read: &dyn KvRead, range: KeyRange, reverse: bool) -> Vec<Vec<u8>> {
    all(read, ONE, range, reverse).into_iter().map(|(key, _)| key.to_vec()).collect()
}

fn keys_order_as_bytes(open: Open<'_>, dir: &Path) {
    let kv = open(&dir.join("kv"));
    put(&*kv, &[(b"b", b"1"), (b"", b"2"), (b"\xff", b"3"), (b"a\0", b"4"), (b"a", b"5"), (b"\x80", b"6")]);
    let expected: [&[u8]; 6] = [b"", b"a", b"a\0", b"b", b"\x80", b"\xff"];
    assert_eq!(keys(&*kv, (Unbounded, Unbounded), false), expected);
    let mut backward = expected;
    backward.reverse();
    assert_eq!(keys(&*kv, (Unbounded, Unbounded), true), backward);
    assert_eq!(kv.get(ONE, b"a\0").unwrap().unwrap(), &b"4"[..]);
    assert_eq!(kv.get(ONE, b"").unwrap().unwrap(), &b"2"[..]);
    assert_eq!(kv.get(TWO, b"a").unwrap(), None, "families are apart");
    assert!(all(&*kv, TWO, (Unbounded, Unbounded), false).is_empty());
}

fn later_changes_of_a_batch_win(open: Open<'_>, dir: &Path) {
    let kv = open(&dir.join("kv"));
    let mut batch = Batch::default();
    batch.put(ONE, b"x".to_vec(), b"1".to_vec());
    batch.put(ONE, b"x".to_vec(), b"2".to_vec());
    batch.put(ONE, b"y".to_vec(), b"1".to_vec());
    batch.delete(ONE, b"y".to_vec());
    batch.delete(ONE, b"z".to_vec());
    batch.put(ONE, b"z".to_vec(), b"".to_vec());
    batch.delete(ONE, b"never there".to_vec());
    kv.write(batch).unwrap();
    assert_eq!(kv.get(ONE, b"x").unwrap().unwrap(), &b"2"[..]);
    assert_eq!(kv.get(ONE, b"y").unwrap(), None);
    assert_eq!(kv.get(ONE, b"z").unwrap().unwrap(), &b""[..], "an empty value is a value");
}

fn scans_take_every_kind_of_range(open: Open<'_>, dir: &Path) {
    let kv = open(&dir.join("kv"));
    put(&*kv, &[(b"a", b""), (b"b", b""), (b"ba", b""), (b"c", b""), (b"\xff\xff", b""), (b"\xff\xffz", b"")]);
    let v = |s: &[u8]| s.to_vec();
    let check = |range: KeyRange, expected: &[&[u8]]| {
        assert_eq!(keys(&*kv, range.clone(), false), expected, "{range:?}");
        let backward: Vec<&[u8]> = expected.iter().rev().copied().collect();
        assert_eq!(keys(&*kv, range.clone(), true), backward, "{range:?} reverse");
    };
    check((Included(v(b"b")), Excluded(v(b"c"))), &[b"b", b"ba"]);
    check((Excluded(v(b"b")), Included(v(b"c"))), &[b"ba", b"c"]);
    check((Included(v(b"b")), Included(v(b"b"))), &[b"b"]);
    check((Included(v(b"b")), Excluded(v(b"b"))), &[]);
    check((Excluded(v(b"b")), Excluded(v(b"b"))), &[]);
    check((Included(v(b"c")), Included(v(b"b"))), &[]);
    check((Unbounded, Excluded(v(b"b"))), &[b"a"]);
    check((Excluded(v(b"c")), Unbounded), &[b"\xff\xff", b"\xff\xffz"]);
    check(prefix_range(b"b"), &[b"b", b"ba"]);
    check(prefix_range(b"\xff\xff"), &[b"\xff\xff", b"\xff\xffz"]);
    check(prefix_range(b"zz"), &[]);
    assert_eq!(keys(&*kv, prefix_range(b""), false).len(), 6);
    let first = kv.scan(ONE, (Excluded(v(b"a")), Unbounded), false).next().unwrap().unwrap();
    assert_eq!(first.0, &b"b"[..]);
}

fn a_snapshot_never_changes(open: Open<'_>, dir: &Path) {
    let kv = open(&dir.join("kv"));
    put(&*kv, &[(b"a", b"1"), (b"b", b"1")]);
    let before = kv.snapshot();
    let mut open_scan = before.scan(ONE, (Unbounded, Unbounded), false);
    assert_eq!(open_scan.next().unwrap().unwrap().0, &b"a"[..]);
    let mut batch = Batch::default();
    batch.put(ONE, b"a".to_vec(), b"2".to_vec());
    batch.delete(ONE, b"b".to_vec());
    batch.put(ONE, b"c".to_vec(), b"2".to_vec());
    kv.write(batch).unwrap();
    assert_eq!(open_scan.next().unwrap().unwrap().1, &b"1"[..]);
    assert!(open_scan.next().is_none());
    drop(open_scan);
    assert_eq!(before.get(ONE, b"a").unwrap().unwrap(), &b"1"[..]);
    assert_eq!(keys(&*before, (Unbounded, Unbounded), true), [b"b", b"a"]);
    drop(before);
    assert_eq!(keys(&*kv, (Unbounded, Unbounded), false), [b"a", b"c"]);
}

fn a_flushed_store_reopens_with_all_families_at_one_batch(open: Open<'_>, dir: &Path) {
    let dir = dir.join("kv");
    let kv = open(&dir);
    for i in 0..300u32 {
        let mut batch = Batch::default();
        batch.put(ONE, i.to_be_bytes(), b"x".to_vec());
        batch.put(TWO, b"last".to_vec(), i.to_be_bytes());
        kv.write(batch).unwrap();
        if i == 200 {
            kv.flush().unwrap();
        }
    }
    drop(kv);
    let kv = open(&dir);
    let last = kv.get(TWO, b"last").unwrap().expect("it was flushed");
    let last = u32::from_be_bytes(last.as_ref().try_into().unwrap());
    assert!((200..300).contains(&last), "at or after the last flush: {last}");
    assert_eq!(keys(&*kv, (Unbounded, Unbounded), false).len(), usize::try_from(last).unwrap() + 1);
}

fn a_checkpoint_opens_with_the_same_content(open: Open<'_>, dir: &Path) {
    let kv = open(&dir.join("kv"));
    put(&*kv, &[(b"a", b"1"), (b"b", b"2")]);
    let mut batch = Batch::default();
    batch.put(TWO, b"t".to_vec(), vec![7; 100_000]);
    kv.write(batch).unwrap();
    kv.checkpoint(&dir.join("copy")).unwrap();
    put(&*kv, &[(b"c", b"3")]);
    kv.flush().unwrap();
    assert!(kv.checkpoint(&dir.join("copy")).is_err(), "the directory must not exist");
    let copy = open(&dir.join("copy"));
    assert_eq!(keys(&*copy, (Unbounded, Unbounded), false), [b"a", b"b"]);
    assert_eq!(copy.get(TWO, b"t").unwrap().unwrap().len(), 100_000);
    put(&*copy, &[(b"d", b"4")]);
    assert_eq!(kv.get(ONE, b"d").unwrap(), None, "a copy is a store of its own");
}
