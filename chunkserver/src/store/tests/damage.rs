//! Flipped bytes, unreadable blocks, lost files.

use super::{Store, bytes, chunk, name, open, read, segment_files, world};
use crate::store::format::{CHUNK, LOG, Log};
use crate::store::read::Has;
use crate::store::{Kept, StoreError};
use common::id::{ChunkId, PgId};
use common::kv::{Batch, Family};
use common::testing::SimDisk;
use std::path::{Path, PathBuf};

fn chunks() -> Vec<Vec<u8>> {
    [(1, 100), (2, 5000), (3, 40_000), (4, 70_000), (5, 130_000), (6, 20_000)].map(|(n, len)| bytes(n, len)).to_vec()
}

async fn filled(seed: u64) -> (SimDisk, Store) {
    let disk = SimDisk::new(seed);
    let store = open(&disk, seed).await.unwrap();
    for bytes in chunks() {
        store.put(chunk(&bytes)).await.unwrap();
    }
    (disk, store)
}

/// Places over all of each file: headers, bytes, trees, padding.
async fn places(seed: u64) -> Vec<(PathBuf, u64)> {
    let (disk, store) = filled(seed).await;
    drop(store);
    let files = segment_files(&world(&disk, 0), "/d");
    let each = |(path, len): (PathBuf, u64)| (0..len.min(500_000)).step_by(1789).map(move |at| (path.clone(), at));
    let mut places: Vec<(PathBuf, u64)> = files.into_iter().flat_map(each).collect();
    for offset in [4096, 4096 + 20, 4096 + 60, 4096 + 64, 4096 + 63] {
        places.push((PathBuf::from("/d/segments-small/00000001.seg"), offset)); // the first record's header
        places.push((PathBuf::from("/d/segments-large/00000001.seg"), offset));
    }
    places
}

/// Reads all; right bytes or an error, and an error for at most one.
async fn bad_ones(store: &Store, when: &str) -> usize {
    let mut bad = 0;
    for bytes in chunks() {
        match read(store, name(&bytes)).await {
            Some(found) => assert_eq!(found, bytes, "{when}: wrong bytes"),
            None => bad += 1,
        }
        let name = name(&bytes);
        for (offset, len) in [(0, 1), (name.len / 2, 50), (name.len - 1, 1)] {
            if let Ok(part) = store.read(name.id, offset, len.min(name.len - offset)).await
                && part.check().is_ok()
            {
                let from = usize::try_from(part.start).unwrap();
                assert_eq!(part.bytes, bytes[from..from + part.bytes.len()], "{when}: wrong bytes");
            }
        }
    }
    bad
}

#[tokio::test]
async fn a_flipped_byte_never_reaches_a_reader_and_spoils_one_chunk_at_most() {
    let (mut spoiled, all) = (0, places(1).await);
    for (path, at) in &all {
        let (disk, store) = filled(1).await;
        disk.flip(path, *at);
        let when = format!("{} byte {at}", path.display());
        let bad = bad_ones(&store, &when).await;
        assert!(bad <= 1, "{when}: {bad} chunks are bad");
        spoiled += bad;
        // Readers report what they found; the copy is marked, and a put makes it good again.
        for bytes in chunks() {
            let sound = read(&store, name(&bytes)).await.is_some();
            match store.verify(name(&bytes).id).await {
                Ok(()) => assert!(sound, "{when}"),
                Err(StoreError::Corrupt { .. }) => {
                    assert_eq!(store.touch(&[name(&bytes)]).await.unwrap(), [false], "{when}");
                    assert!(matches!(store.read(name(&bytes).id, 0, 1).await, Err(StoreError::Corrupt { .. })));
                    assert_eq!(store.stats().corrupt, 1);
                    assert_eq!(store.list(PgId(0), 1, None, 100).await.unwrap().0.len(), chunks().len() - 1);
                }
                Err(error) => panic!("{when}: {error}"),
            }
            store.put(chunk(&bytes)).await.unwrap();
        }
        assert_eq!(bad_ones(&store, &when).await, 0, "{when}: repaired");
        assert_eq!(store.stats().chunks, chunks().len() as u64);
    }
    assert!(spoiled > all.len() / 4, "the flips hit something: {spoiled} of {}", all.len());
}

#[tokio::test]
async fn it_does_neither_after_a_restart_nor_after_the_index_was_lost() {
    for (path, at) in places(2).await {
        for lose_index in [false, true] {
            let (disk, store) = filled(2).await;
            drop(store);
            disk.flip(&path, at);
            if lose_index {
                world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
            }
            let when = format!("{} byte {at}, index lost: {lose_index}", path.display());
            let store = open(&disk, 3).await.unwrap_or_else(|e| panic!("{when}: {e}"));
            // A touch vouches for nothing that cannot be read.
            let wanted: Vec<_> = chunks().iter().map(|bytes| name(bytes)).collect();
            let touched = store.touch(&wanted).await.unwrap();
            for (bytes, touched) in chunks().iter().zip(touched) {
                assert!(!touched || read(&store, name(bytes)).await.is_some(), "{when}: vouched for a bad copy");
            }
            assert!(bad_ones(&store, &when).await <= 1, "{when}");
            for bytes in chunks() {
                store.put(chunk(&bytes)).await.unwrap();
            }
            assert_eq!(bad_ones(&store, &when).await, 0, "{when}: repaired");
            drop(store);
            let store = open(&disk.after_crash(), 4).await.unwrap();
            assert_eq!(bad_ones(&store, &when).await, 0, "{when}: repaired for good");
        }
    }
}

#[tokio::test]
async fn a_block_that_cannot_be_read_is_an_error_and_repaired_by_the_next_put() {
    let (disk, store) = filled(5).await;
    let large = PathBuf::from("/d/segments-large/00000001.seg");
    disk.fail_reads(&large, 4096 + 30_000);
    let bytes = &chunks()[3];
    assert!(matches!(store.read(name(bytes).id, 20_000, 20_000).await, Err(StoreError::Disk { .. })));
    assert!(matches!(store.verify(name(bytes).id).await, Err(StoreError::Corrupt { .. })));
    drop(store);
    let store = open(&disk, 6).await.unwrap();
    assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [false]);
    store.put(chunk(bytes)).await.unwrap();
    assert_eq!(bad_ones(&store, "repaired").await, 0);
}

#[tokio::test]
async fn a_copy_that_could_not_be_read_is_not_vouched_for_and_the_next_put_replaces_it() {
    for verify in [false, true] {
        let (disk, store) = filled(5).await;
        disk.fail_reads(Path::new("/d/segments-large/00000001.seg"), 4096 + 30_000);
        let bytes = &chunks()[3];
        assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [true], "nobody knows yet");
        if verify {
            assert!(store.verify(name(bytes).id).await.is_err());
        } else {
            assert!(store.read(name(bytes).id, 20_000, 20_000).await.is_err());
        }
        assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [false]);
        let kept = |copies: Vec<Kept>| copies.into_iter().find(|copy| copy.id == name(bytes).id).unwrap();
        let (copies, _) = store.range(ChunkId([0; 32]), None, 100).await.unwrap();
        assert!(
            kept(copies).damaged && store.has(name(bytes).id) == Has::Unreadable,
            "it is to be fetched anew, to the same place"
        );
        store.put(chunk(bytes)).await.unwrap();
        let (copies, _) = store.range(ChunkId([0; 32]), None, 100).await.unwrap();
        assert!(!kept(copies).damaged);
        assert_eq!(bad_ones(&store, "repaired").await, 0);
    }
}

/// It may be the last copy: a disk that has another look at it gets it back.
#[tokio::test]
async fn a_copy_that_can_be_read_again_is_one_once_it_was_verified() {
    let (_, store) = filled(5).await;
    let bytes = &chunks()[3];
    let row = store.inner.index.row(name(bytes).id).unwrap().unwrap();
    store.inner.doubt(name(bytes).id, row).unwrap();
    assert!(read(&store, name(bytes)).await.is_some(), "whoever asks is given it");
    assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [false]);
    store.verify(name(bytes).id).await.unwrap();
    assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [true]);
}

/// A row of the index that means nothing, durable.
async fn spoil_index(store: &Store, family: Family, key: &[u8]) {
    let mut batch = Batch::default();
    batch.put(family, key, [1, 2, 3]);
    store.inner.index.write(batch).unwrap();
    store.inner.index.flush().unwrap();
}

#[tokio::test]
async fn a_damaged_row_of_the_index_costs_one_restart() {
    let (disk, store) = filled(9).await;
    let bytes = &chunks()[2];
    spoil_index(&store, CHUNK, &name(bytes).id.0).await;
    assert!(matches!(store.read(name(bytes).id, 0, 1).await, Err(StoreError::Fenced { .. })));
    drop(store);
    let mut disk = disk;
    for seed in [10, 11] {
        disk = disk.after_crash();
        let store = open(&disk, seed).await.unwrap();
        assert_eq!(store.recovered().rebuilt, seed == 10, "made anew once");
        assert_eq!(bad_ones(&store, "after the restart").await, 0);
    }
}

#[tokio::test]
async fn a_row_that_recovery_cannot_read_does_not_keep_the_store_from_opening() {
    let (disk, store) = filled(9).await;
    spoil_index(&store, LOG, &Log::Large.key()).await;
    drop(store);
    let store = open(&disk.after_crash(), 10).await.unwrap();
    assert!(store.recovered().rebuilt);
    assert_eq!(bad_ones(&store, "made anew").await, 0);
}

#[tokio::test]
async fn an_index_ahead_of_its_segments_is_made_anew() {
    let (disk, store) = filled(7).await;
    store.flush().await.unwrap();
    drop(store);
    world(&disk, 0).disk.remove(Path::new("/d/segments-large/00000001.seg")).unwrap();
    let store = open(&disk, 8).await.unwrap();
    assert!(store.recovered().rebuilt);
    for bytes in chunks() {
        let found = store.read(name(&bytes).id, 0, 1).await;
        if bytes.len() > 65_536 {
            assert!(matches!(found, Err(StoreError::NotFound { .. })), "lost, and known to be");
        } else {
            assert!(found.is_ok());
        }
    }
}
