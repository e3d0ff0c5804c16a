//! Duplicates, touches, deletes, ranges, listings, fences, full disks.

use super::{Store, bytes, chunk, name, open, open_dir, read, segment_files, world};
use crate::store::StoreError;
use crate::store::format::Log;
use crate::store::lane::{Begun, Purpose, Settled};
use common::id::PgId;
use common::proto::chunk::ChunkRef;
use common::testing::SimDisk;
use std::path::Path;

fn ends(store: &Store) -> Vec<common::segment::Position> {
    store.inner.lanes.iter().map(|lane| lane.segments.end()).collect()
}

#[tokio::test]
async fn a_chunk_that_is_held_is_not_written_again() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    for len in [4096, 100_000] {
        let bytes = bytes(1, len);
        store.put(chunk(&bytes)).await.unwrap();
        let (before, syncs) = (ends(&store), store.stats().syncs);
        store.put(chunk(&bytes)).await.unwrap();
        let twice = store.put_all(vec![chunk(&bytes), chunk(&bytes)]).await;
        assert!(twice.iter().all(Result::is_ok));
        assert_eq!((ends(&store), store.stats().syncs), (before, syncs), "no bytes, no sync");
    }
    let fresh = bytes(2, 5000);
    let before = ends(&store);
    assert!(store.put_all(vec![chunk(&fresh), chunk(&fresh)]).await.iter().all(Result::is_ok));
    assert_eq!(ends(&store)[0].offset - before[0].offset, 5120, "one record of 64 + 5000 bytes");
    assert_eq!(store.stats().chunks, 3);
    drop(store);
    // After a restart a copy is read and hashed before anybody relies on it; still it is not written again.
    let store = open(&disk, 2).await.unwrap();
    let before = ends(&store);
    store.put(chunk(&fresh)).await.unwrap();
    assert_eq!(store.touch(&[name(&bytes(1, 100_000))]).await.unwrap(), [true]);
    assert_eq!(ends(&store), before);
}

#[tokio::test]
async fn one_sync_serves_a_batch() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let all: Vec<Vec<u8>> = (0..200).map(|n| bytes(n, 3000)).collect();
    assert!(store.put_all(all.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    assert_eq!(store.stats().syncs, 1);
    for bytes in all {
        assert_eq!(read(&store, name(&bytes)).await, Some(bytes));
    }
}

#[tokio::test]
async fn touch_vouches_for_what_is_here_with_that_length() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let (held, other) = (bytes(1, 100_000), bytes(2, 10));
    store.put(chunk(&held)).await.unwrap();
    let wrong = ChunkRef { len: 99_999, ..name(&held) };
    let short = ChunkRef { len: 5, ..name(&held) };
    let asked = [name(&held), name(&other), wrong, short, name(&held)];
    assert_eq!(store.touch(&asked).await.unwrap(), [true, false, false, false, true]);
    assert!(read(&store, name(&held)).await.is_some(), "a wrong length does no harm");
    drop(store);
    let store = open(&disk, 2).await.unwrap();
    assert_eq!(store.touch(&asked).await.unwrap(), [true, false, false, false, true]);
    assert_eq!(store.stats().corrupt, 0);
}

#[tokio::test]
async fn any_range_can_be_read_and_checked() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    for len in [1u32, 16 << 10, (16 << 10) + 1, 65_536, 65_537, 300_000] {
        let bytes = bytes(u64::from(len), usize::try_from(len).unwrap());
        let id = name(&bytes).id;
        store.put(chunk(&bytes)).await.unwrap();
        for offset in [0, len / 3, len / 2, len - 1] {
            for wanted in [1, 4096, len - offset] {
                let wanted = wanted.min(len - offset);
                let part = store.read(id, offset, wanted).await.unwrap();
                part.check().unwrap();
                let start = usize::try_from(part.start).unwrap();
                assert_eq!(part.bytes, bytes[start..start + part.bytes.len()]);
                let end = part.start + u32::try_from(part.bytes.len()).unwrap();
                assert!(part.start <= offset && offset + wanted <= end && part.chunk_len == len);
            }
        }
        for (offset, wanted) in [(0, 0), (len, 1), (0, len + 1), (len - 1, 2), (5, u32::MAX)] {
            assert!(matches!(store.read(id, offset, wanted).await, Err(StoreError::Range { .. })));
        }
    }
}

#[tokio::test]
async fn a_deleted_chunk_is_gone_its_space_comes_back_and_it_can_be_put_again() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let all = [bytes(1, 30_000), bytes(2, 100_000)];
    for bytes in &all {
        store.put(chunk(bytes)).await.unwrap();
    }
    let positions: Vec<_> = all.iter().map(|bytes| store.inner.index.row(name(bytes).id).unwrap().unwrap()).collect();
    for bytes in &all {
        let id = name(bytes).id;
        store.remove(id).await.unwrap();
        assert_eq!(store.read(id, 0, 1).await, Err(StoreError::NotFound { chunk: id }));
        assert_eq!(store.remove(id).await, Err(StoreError::NotFound { chunk: id }));
        assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [false]);
    }
    assert_eq!((store.stats().chunks, store.stats().bytes), (0, 0));
    store.flush().await.unwrap();
    for (row, lane) in positions.iter().zip(&store.inner.lanes) {
        let mut block = [1; 4096];
        lane.segments.read_body(row.position, 8192, &mut block).unwrap();
        assert_eq!(block, [0; 4096], "punched");
        lane.segments.read_header(row.position).expect("never a header");
    }
    for bytes in &all {
        store.put(chunk(bytes)).await.unwrap();
        assert_eq!(read(&store, name(bytes)).await.as_ref(), Some(bytes));
    }
    store.flush().await.unwrap();
    drop(store);
    world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
    let store = open(&disk, 2).await.unwrap();
    for bytes in &all {
        assert_eq!(read(&store, name(bytes)).await.as_ref(), Some(bytes), "the tombstone names the old record only");
    }
    assert_eq!(store.stats().corrupt, 0, "punched records are no damage");
}

#[tokio::test]
async fn a_listing_is_in_order_and_can_go_on() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let mut names: Vec<ChunkRef> = Vec::new();
    for n in 0..100 {
        let bytes = bytes(n, 50);
        store.put(chunk(&bytes)).await.unwrap();
        names.push(name(&bytes));
    }
    names.sort_by_key(|name| name.id);
    for pg_count in [1u32, 2, 8, 65_536] {
        let groups: std::collections::BTreeSet<PgId> = names.iter().map(|name| name.id.pg(pg_count)).collect();
        let mut found = Vec::new();
        for pg in groups.into_iter().chain((pg_count < 100).then_some(PgId(pg_count - 1))) {
            let mut after = found.last().map(|last: &ChunkRef| last.id).filter(|last| last.pg(pg_count) == pg);
            loop {
                let (some, more) = store.list(pg, pg_count, after, 3).await.unwrap();
                assert!(some.len() <= 3 && some.iter().all(|chunk| chunk.id.pg(pg_count) == pg));
                after = some.last().map(|last| last.id).or(after);
                found.extend(some);
                if !more {
                    break;
                }
            }
        }
        assert_eq!(found, names, "{pg_count} groups");
    }
}

#[tokio::test]
async fn a_failed_sync_fences_the_store() {
    for len in [4096, 100_000] {
        let disk = SimDisk::new(1);
        let store = open(&disk, 1).await.unwrap();
        let (first, lost, later) = (bytes(1, len), bytes(2, len), bytes(3, len));
        store.put(chunk(&first)).await.unwrap();
        for path in segment_files(&world(&disk, 0), "/d").keys() {
            disk.fail_sync(path);
        }
        for bytes in [&lost, &later, &first] {
            let Err(StoreError::Fenced { dir, cause }) = store.put(chunk(bytes)).await else { panic!("acknowledged") };
            assert!(dir == Path::new("/d") && !cause.is_empty(), "{cause}");
        }
        assert!(store.fenced().is_some() && store.stats().fenced == 1 && store.stats().free == 0);
        assert!(matches!(store.touch(&[name(&first)]).await, Err(StoreError::Fenced { .. })));
        assert!(matches!(store.remove(name(&first).id).await, Err(StoreError::Fenced { .. })));
        assert!(matches!(store.list(PgId(0), 1, None, 10).await, Err(StoreError::Fenced { .. })));
        assert_eq!(read(&store, name(&first)).await, Some(first.clone()), "what can be read still is");
        drop(store);
        let store = open(&disk.after_crash(), 2).await.unwrap();
        assert_eq!(read(&store, name(&first)).await, Some(first));
        let found = read(&store, name(&lost)).await;
        assert!(found.is_none() || found == Some(lost));
    }
}

#[tokio::test]
async fn a_failed_flush_of_the_index_fences_the_store() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let held = bytes(1, 10);
    store.put(chunk(&held)).await.unwrap();
    disk.fail_sync(Path::new("/d/index"));
    assert!(matches!(store.flush().await, Err(StoreError::Fenced { .. })));
    assert!(matches!(store.put(chunk(&bytes(2, 10))).await, Err(StoreError::Fenced { .. })));
    drop(store);
    let store = open(&disk.after_crash(), 2).await.unwrap();
    assert_eq!(read(&store, name(&held)).await, Some(held));
}

#[tokio::test]
async fn a_full_disk_refuses_puts_before_anything_is_written() {
    let disk = SimDisk::new(1);
    let world = world(&disk, 1);
    world.disk.create_dir_all(Path::new("/d")).unwrap();
    let config = crate::store::StoreConfig { reserve_bytes: 50 << 20, ..super::config("/d") };
    let store = open_dir(&world, config, super::STORE).await.unwrap();
    let held = bytes(1, 100_000);
    store.put(chunk(&held)).await.unwrap();
    let (total, _) = world.disk.space(Path::new("/d")).unwrap();
    disk.set_space(total, 50 << 20);
    for len in [100, 100_000] {
        let refused = bytes(2, len);
        let before = ends(&store);
        assert!(matches!(store.put(chunk(&refused)).await, Err(StoreError::NoSpace { .. })));
        assert_eq!(ends(&store), before);
        assert_eq!(store.read(name(&refused).id, 0, 1).await, Err(StoreError::NotFound { chunk: name(&refused).id }));
    }
    store.put(chunk(&held)).await.expect("what is held needs no room");
    assert_eq!(store.stats().free, 0);
    // The log itself runs full: no fence, and it goes on when there is room.
    disk.set_space(total, 0);
    assert!(matches!(store.put(chunk(&bytes(3, 500))).await, Err(StoreError::NoSpace { .. })));
    assert!(store.fenced().is_none());
    store.remove(name(&held).id).await.ok();
    disk.set_space(total, total / 2);
    let after = bytes(4, 200_000);
    store.put(chunk(&after)).await.unwrap();
    assert_eq!(read(&store, name(&after)).await, Some(after));
}

#[tokio::test]
async fn a_store_is_open_once_and_another_stores_segments_are_refused() {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    assert!(matches!(open(&disk, 2).await, Err(crate::store::OpenError::InUse { .. })));
    store.put(chunk(&bytes(1, 10))).await.unwrap();
    drop(store);
    let other = open_dir(&world(&disk, 1), super::config("/d"), super::STORE + 1).await;
    assert!(matches!(other, Err(crate::store::OpenError::Segments(_))));
    let store = open(&disk, 3).await.unwrap();
    assert!(read(&store, name(&bytes(1, 10))).await.is_some(), "the attempt did no harm");
}

/// Else a record that is acknowledged later would be missed by the scan after a crash.
#[tokio::test]
async fn the_index_does_not_claim_to_follow_what_is_under_way() {
    for purpose in [Purpose::Put, Purpose::Delete, Purpose::Move] {
        follows(purpose).await;
    }
}

async fn follows(purpose: Purpose) {
    let disk = SimDisk::new(1);
    let store = open(&disk, 1).await.unwrap();
    let (log, lane) = (Log::Small, &store.inner.lanes[0]);
    store.put(chunk(&bytes(1, 10))).await.unwrap();
    let under_way = name(&bytes(2, 10)).id;
    let floor = lane.segments.end();
    assert!(matches!(lane.begin(under_way, purpose, None), (Begun::Mine, None)));
    store.put(chunk(&bytes(3, 10))).await.unwrap();
    assert!(lane.segments.end() > floor);
    assert_eq!(store.inner.index.log_row(log).unwrap().indexed, Some(floor));
    store.inner.settle(lane, under_way, &Settled::Absent);
    store.put(chunk(&bytes(4, 10))).await.unwrap();
    assert_eq!(store.inner.index.log_row(log).unwrap().indexed, Some(lane.segments.end()));
}
