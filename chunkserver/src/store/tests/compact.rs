//! Compaction: space comes back, nothing is lost, nothing comes back that was deleted.

use super::crash::{Known, Ledger, delete, put};
use super::{STORE, Store, StoreConfig, bytes, chunk, compact, live_as_counted, name, open, open_dir, read, world};
use crate::store::StoreError;
use crate::store::format::{LOG, Log, SEGMENT, segment_key};
use crate::store::lane::{Begun, Purpose, Settled};
use common::disk::Disk;
use common::id::ChunkId;
use common::kv::Batch;
use common::testing::SimDisk;
use common::world::World;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn segments(store: &Store, log: Log) -> Vec<u32> {
    store.inner.lane(log).segments.segments().into_iter().map(|usage| usage.segment).collect()
}

/// Bytes of the small log's segments, and bytes of chunks in them.
fn used(store: &Store) -> (u64, u64) {
    let lane = store.inner.lane(Log::Small);
    (lane.segments.segments().iter().map(|usage| usage.len).sum(), lane.held().bytes)
}

/// Small chunks that fill a few segments of 600 KiB.
async fn filled(disk: &SimDisk, count: u64) -> (Store, Vec<Vec<u8>>) {
    let store = open(disk, 1).await.unwrap();
    let all: Vec<Vec<u8>> = (0..count).map(|n| bytes(n, 10_000)).collect();
    for some in all.chunks(16) {
        assert!(store.put_all(some.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    }
    (store, all)
}

#[tokio::test]
async fn the_space_of_small_chunks_comes_back() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 400).await;
    for (n, bytes) in all.iter().enumerate().filter(|(n, _)| n % 5 != 0) {
        store.remove(ChunkId::of(bytes)).await.unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    let (before, held) = used(&store);
    assert!(before > 4 * held && segments(&store, Log::Small).len() > 6, "{before} for {held}");
    store.flush().await.unwrap(); // rows that point into what will be gone
    assert!(compact(&store).await.unwrap() > 6);
    let (after, held) = used(&store);
    assert!(after * 10 < held * 13, "{after} bytes for {held}");
    assert_eq!(compact(&store).await, Some(0), "it ends");
    assert_eq!((store.stats().bytes, store.stats().segment_bytes), (held, after + 4096), "the other log is empty");
    drop(store);
    let disk = disk.after_crash();
    for lost in [false, true] {
        if lost {
            world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
        }
        let store = open(&disk, 2).await.unwrap();
        assert_eq!(store.recovered().rebuilt, lost, "the index does not point into what is gone");
        assert!(live_as_counted(&store));
        for (n, bytes) in all.iter().enumerate() {
            let found = read(&store, name(bytes)).await;
            assert_eq!(found.as_ref(), (n % 5 == 0).then_some(bytes), "chunk {n}, index lost: {lost}");
        }
        assert_eq!(store.stats().corrupt, 0, "removed segments are not missed");
    }
}

#[tokio::test]
async fn a_segment_full_of_tombstones_goes_when_nobody_needs_them() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 300).await;
    for bytes in &all {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    // Their segment ends up nearly empty; what they say is needed until the others are gone.
    compact(&store).await.unwrap();
    compact(&store).await.unwrap();
    let (after, held) = used(&store);
    assert!(after <= 40_000 && held == 0, "{after}");
    drop(store);
    world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
    assert_eq!(open(&disk, 2).await.unwrap().stats().chunks, 0);
}

/// Puts, deletes, damage with repair, compaction, restarts, power cuts and lost indexes, at random.
#[tokio::test]
async fn whatever_happens_between_compactions_what_is_held_is_held_and_what_is_gone_is_gone() {
    let mut compacted = 0;
    for seed in 0..40u64 {
        let mut disk = SimDisk::new(seed);
        let mut ledger = Ledger::new();
        let mut store = open(&disk, seed).await.unwrap();
        let mut dice = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut roll = move |sides: u64| {
            let mut bytes = [0; 8];
            dice.fill(&mut bytes);
            u64::from_le_bytes(bytes) % sides
        };
        for step in 0..120 {
            let when = format!("seed {seed} step {step}");
            match roll(20) {
                0..8 => {
                    let some: Vec<Vec<u8>> = (0..=roll(6)).map(|_| some_chunk(roll(40))).collect();
                    put(&store, &mut ledger, &some).await.unwrap();
                }
                8..14 => {
                    let held: Vec<Vec<u8>> = held(&ledger);
                    for bytes in held.iter().skip(usize::try_from(roll(3)).unwrap()).step_by(4) {
                        delete(&store, &mut ledger, bytes).await.unwrap_or_else(|error| panic!("{when}: {error}"));
                    }
                }
                14 => damage_and_repair(&disk, &store, &held(&ledger), roll(1000)).await,
                15..18 => compacted += compact(&store).await.unwrap_or_else(|| panic!("{when}: compacts")),
                18 => store.flush().await.unwrap(),
                _ => {
                    drop(store);
                    if roll(2) == 0 {
                        disk = disk.after_crash();
                    }
                    if roll(2) == 0 {
                        world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
                    }
                    store = open(&disk, seed).await.unwrap();
                    check_all(&store, &ledger, &when).await;
                }
            }
            assert!(live_as_counted(&store), "{when}");
        }
        check_all(&store, &ledger, &format!("seed {seed}")).await;
    }
    assert!(compacted > 200, "{compacted} segments");
}

/// Mostly small, some large.
fn some_chunk(n: u64) -> Vec<u8> {
    bytes(n, [12_000, 30_000, 100, 70_000][usize::try_from(n % 4).unwrap()])
}

fn held(ledger: &Ledger) -> Vec<Vec<u8>> {
    ledger.values().filter(|(_, known)| *known == Known::Held).map(|(bytes, _)| bytes.clone()).collect()
}

/// One copy rots, is found, and is put again.
async fn damage_and_repair(disk: &SimDisk, store: &Store, held: &[Vec<u8>], pick: u64) {
    let Some(bytes) = held.get(usize::try_from(pick).unwrap() % held.len().max(1)) else { return };
    let row = store.inner.index.row(ChunkId::of(bytes)).unwrap().unwrap();
    let file = format!("/d/{}/{:08}.seg", Log::of(row.len).dir(), row.position.segment);
    disk.flip(Path::new(&file), row.position.offset + 64 + pick % u64::from(row.len));
    assert!(matches!(store.verify(ChunkId::of(bytes)).await, Err(StoreError::Corrupt { .. })));
    store.put(chunk(bytes)).await.unwrap();
}

/// Asks for all that the ledger knows.
async fn check_all(store: &Store, ledger: &Ledger, when: &str) {
    for (id, (bytes, known)) in ledger {
        let found = read(store, name(bytes)).await;
        match known {
            Known::Held => assert_eq!(found.as_ref(), Some(bytes), "{when}: {id} was acknowledged"),
            Known::Gone => assert_eq!(
                store.read(*id, 0, 1).await,
                Err(StoreError::NotFound { chunk: *id }),
                "{when}: {id} was deleted"
            ),
            Known::Unsure => unreachable!("every operation ended"),
        }
    }
}

/// The two halves of what keeps a deleted chunk dead when its last record's segment is gone and an older record is not.
#[tokio::test]
async fn an_older_record_that_was_replaced_does_not_come_back() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 30).await;
    let tiny = bytes(1, 100); // no whole block of it can be punched
    let first = name(&tiny);
    store.put(chunk(&tiny)).await.unwrap();
    store.inner.lane(Log::Small).segments.roll().unwrap();
    // Its copy in segment 1 cannot be read for a while; a repair writes another one, which is deleted.
    let row = store.inner.index.row(first.id).unwrap().unwrap();
    store.inner.doubt(first.id, row).unwrap();
    store.inner.mark_damaged(first.id, row, "for a while").unwrap();
    store.put(chunk(&tiny)).await.unwrap();
    let more: Vec<Vec<u8>> = (1000..1050).map(|n| bytes(n, 10_000)).collect();
    for bytes in &more {
        store.put(chunk(bytes)).await.unwrap();
    }
    store.remove(first.id).await.unwrap();
    for bytes in &more {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    let newer = segments(&store, Log::Small)[1];
    compact(&store).await.unwrap();
    let left = segments(&store, Log::Small);
    assert!(left.contains(&1) && !left.contains(&newer), "{left:?}: the older one is full, so it stays");
    // Compaction of where the tombstone is must keep it, too.
    for _ in 0..3 {
        store.inner.lane(Log::Small).segments.roll().unwrap();
        for bytes in &more {
            store.put(chunk(bytes)).await.unwrap();
        }
        for bytes in &more {
            store.remove(ChunkId::of(bytes)).await.unwrap();
        }
        compact(&store).await.unwrap();
    }
    assert!(segments(&store, Log::Small).contains(&1));
    drop(store);
    world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
    let store = open(&disk, 2).await.unwrap();
    assert_eq!(store.read(first.id, 0, 1).await, Err(StoreError::NotFound { chunk: first.id }));
    assert_eq!(read(&store, name(&all[1])).await.as_ref(), Some(&all[1]));
}

/// Segment 1 with a few live records, one of them with a flipped byte; and that one.
async fn with_damage(disk: &SimDisk, within: u64) -> (Store, Vec<Vec<u8>>, Vec<u8>) {
    let (store, all) = filled(disk, 120).await;
    let kept: Vec<Vec<u8>> = all.iter().step_by(10).cloned().collect();
    for bytes in all.iter().filter(|bytes| !kept.contains(bytes)) {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    let row = store.inner.index.row(ChunkId::of(&kept[1])).unwrap().unwrap();
    assert_eq!(row.position.segment, 1);
    disk.flip(Path::new("/d/segments-small/00000001.seg"), row.position.offset + within);
    let bad = kept[1].clone();
    (store, kept, bad)
}

#[tokio::test]
async fn a_damaged_copy_is_not_copied_but_marked_and_its_segment_waits_for_the_repair() {
    let disk = SimDisk::new(1);
    let (store, kept, bad) = with_damage(&disk, 5000).await;
    compact(&store).await.unwrap();
    assert_eq!(segments(&store, Log::Small)[0], 1, "the only copy here, such as it is");
    assert_eq!(store.stats().corrupt, 1);
    assert!(matches!(store.read(ChunkId::of(&bad), 0, 1).await, Err(StoreError::Corrupt { .. })));
    assert_eq!(compact(&store).await, Some(0), "nothing to do until it is repaired");
    store.put(chunk(&bad)).await.unwrap();
    assert_eq!(compact(&store).await, Some(1));
    assert!(segments(&store, Log::Small)[0] > 1);
    drop(store);
    let store = open(&disk.after_crash(), 2).await.unwrap();
    for bytes in kept {
        assert_eq!(read(&store, name(&bytes)).await, Some(bytes));
    }
    assert_eq!(store.stats().corrupt, 0);
}

#[tokio::test]
async fn a_record_whose_header_is_damaged_is_moved_all_the_same() {
    let disk = SimDisk::new(1);
    let (store, kept, _) = with_damage(&disk, 30).await;
    compact(&store).await.unwrap();
    assert!(segments(&store, Log::Small)[0] > 1);
    assert_eq!((store.stats().corrupt, store.stats().chunks), (0, kept.len() as u64));
    drop(store);
    world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
    let store = open(&disk, 2).await.unwrap();
    for bytes in kept {
        assert_eq!(read(&store, name(&bytes)).await, Some(bytes));
    }
}

#[tokio::test]
async fn a_segment_that_vanished_is_reported_and_its_chunks_are_known_to_be_lost() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 300).await;
    for bytes in all.iter().take(100).step_by(2) {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    assert!(compact(&store).await.unwrap() > 0);
    let victim = segments(&store, Log::Small)[1];
    let lost: Vec<bool> = all
        .iter()
        .map(|bytes| {
            store.inner.index.row(ChunkId::of(bytes)).unwrap().is_some_and(|row| row.position.segment == victim)
        })
        .collect();
    assert!(lost.iter().any(|lost| *lost));
    store.flush().await.unwrap();
    drop(store);
    world(&disk, 0).disk.remove(&PathBuf::from(format!("/d/segments-small/{victim:08}.seg"))).unwrap();
    for again in [false, true] {
        let store = open(&disk, 2).await.unwrap();
        assert_eq!(store.recovered().rebuilt, !again);
        assert_eq!(store.stats().corrupt, 1, "said at every start");
        for (n, (bytes, lost)) in all.iter().zip(&lost).enumerate() {
            let held = !lost && (n >= 100 || n % 2 == 1);
            assert_eq!(read(&store, name(bytes)).await.as_ref(), held.then_some(bytes), "chunk {n}");
        }
    }
}

#[tokio::test]
async fn what_somebody_is_at_is_not_moved_and_a_wish_to_delete_it_stands_or_is_void_but_never_half() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 60).await;
    for bytes in &all[2..] {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    let (busy, wished) = (name(&all[0]), name(&all[1]));
    let lane = store.inner.lane(Log::Small);
    let before = store.inner.index.row(busy.id).unwrap();
    assert!(matches!(lane.begin(busy.id, Purpose::Check, None), (Begun::Mine, None)));
    assert!(store.wish(wished.id, 7));
    let moved = || store.inner.index.row(wished.id).unwrap().unwrap().position.segment != 1;
    let until_moved = async {
        while !moved() {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        removed = compact(&store) => assert!(removed.is_some()),
        () = until_moved => {}
    }
    assert_eq!(store.inner.index.row(busy.id).unwrap(), before);
    assert!(segments(&store, Log::Small).contains(&1));
    store.inner.settle(lane, busy.id, &Settled::Absent);
    // The other one was read, hashed and moved; whoever waited for it relies on that, so the wish is void.
    assert!(moved());
    assert!(matches!(store.delete(wished.id, 7).await, Err(StoreError::Busy { .. })));
    assert_eq!(read(&store, wished).await.as_ref(), Some(&all[1]));
}

/// Else the segment would go before the row of that put points into it.
#[tokio::test]
async fn a_segment_that_a_put_under_way_may_have_a_record_in_is_left_alone() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 50).await;
    let lane = store.inner.lane(Log::Small);
    let under_way = name(&bytes(2, 10));
    assert!(matches!(lane.begin(under_way.id, Purpose::Put, None), (Begun::Mine, None)));
    lane.segments.roll().unwrap();
    for bytes in &all {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    compact(&store).await.unwrap();
    assert_eq!(segments(&store, Log::Small)[0], 1, "the put began when this one took appends");
    store.inner.settle(lane, under_way.id, &Settled::Absent);
    assert!(compact(&store).await.unwrap() > 0);
    assert!(segments(&store, Log::Small)[0] > 1);
}

#[tokio::test]
async fn put_time_stays_and_a_full_disk_only_puts_it_off() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 60).await;
    for bytes in &all[1..] {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    let id = ChunkId::of(&all[0]);
    let before = store.inner.index.row(id).unwrap().unwrap();
    store.inner.lane(Log::Small).segments.roll().unwrap();
    let (total, _) = world(&disk, 0).disk.space(Path::new("/d")).unwrap();
    disk.set_space(total, 10_000);
    let outcome = store.compact(|_| std::time::Duration::ZERO).await;
    assert!(matches!(outcome, Ok(0) | Err(StoreError::NoSpace { .. })), "{outcome:?}");
    assert!(store.fenced().is_none());
    assert_eq!(read(&store, name(&all[0])).await.as_ref(), Some(&all[0]));
    disk.set_space(total, total / 2);
    assert!(compact(&store).await.unwrap() > 0);
    let after = store.inner.index.row(id).unwrap().unwrap();
    assert!(after.position > before.position);
    assert_eq!((after.put_secs, after.len, after.damaged), (before.put_secs, before.len, false));
}

#[tokio::test]
async fn an_index_of_before_there_were_counts_is_counted_once() {
    let disk = SimDisk::new(1);
    let (store, all) = filled(&disk, 200).await;
    for bytes in all.iter().step_by(2) {
        store.remove(ChunkId::of(bytes)).await.unwrap();
    }
    let mut batch = Batch::default();
    for log in Log::ALL {
        let mut row = store.inner.index.log_row(log).unwrap().encode();
        row[0] = 1;
        batch.put(LOG, log.key(), row);
        segments(&store, log).into_iter().for_each(|segment| batch.delete(SEGMENT, segment_key(log, segment)));
    }
    store.inner.index.write(batch).unwrap();
    store.inner.index.flush().unwrap();
    drop(store);
    let store = open(&disk, 2).await.unwrap();
    assert!(!store.recovered().rebuilt && live_as_counted(&store));
    let lane = store.inner.lane(Log::Small);
    assert!(segments(&store, Log::Small).into_iter().all(|segment| lane.count(segment).superseded > 0));
    assert!(!store.inner.index.log_row(Log::Small).unwrap().uncounted);
    assert!(compact(&store).await.unwrap() > 0);
    for (n, bytes) in all.iter().enumerate() {
        assert_eq!(read(&store, name(bytes)).await.as_ref(), (n % 2 == 1).then_some(bytes));
    }
}

async fn on_disk(dir: &Path, segment_len_max: u64) -> Store {
    let config = StoreConfig { segment_len_max, ..super::config(dir) };
    open_dir(&World::real(), config, STORE).await.unwrap()
}

/// Bytes that a directory's files take on the disk.
fn allocated(dir: &Path) -> u64 {
    let blocks = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().metadata().unwrap().blocks();
    std::fs::read_dir(dir).unwrap().map(blocks).sum::<u64>() * 512
}

/// Readers, writers, touches and deletes while segments are compacted all the time: nobody sees an error, a wrong byte, or
/// a chunk that is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_do_not_notice_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = on_disk(dir.path(), 1 << 20).await;
    let kept: Arc<Vec<Vec<u8>>> =
        Arc::new((0..64).map(|n| bytes(n, 3000 + 400 * usize::try_from(n).unwrap())).collect());
    assert!(store.put_all(kept.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    let (stop, removed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut all = tokio::task::JoinSet::new();
    for reader in 0..3usize {
        let (store, kept, stop) = (store.clone(), kept.clone(), stop.clone());
        all.spawn(async move {
            for n in reader.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let bytes = &kept[n * 7 % kept.len()];
                let part = store.read(ChunkId::of(bytes), 0, name(bytes).len).await.expect("reads");
                part.check().expect("the right bytes");
                if n % 5 == 0 {
                    assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [true]);
                    store.put(chunk(bytes)).await.expect("is here");
                }
            }
        });
    }
    let (compacting, stopped, count) = (store.clone(), stop.clone(), removed.clone());
    all.spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            count.fetch_add(compact(&compacting).await.expect("compacts"), Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    for round in 0..40u64 {
        let some: Vec<Vec<u8>> = (0..40).map(|n| bytes(1_000_000 + round * 40 + n, 20_000)).collect();
        assert!(store.put_all(some.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
        for bytes in &some {
            let id = ChunkId::of(bytes);
            // It may be moved just now, and then the wish does not stand.
            while let Err(error) = store.remove(id).await {
                assert_eq!(error, StoreError::Busy { chunk: id });
                tokio::task::yield_now().await;
            }
            assert_eq!(store.read(id, 0, 1).await, Err(StoreError::NotFound { chunk: id }));
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let removed = removed.load(Ordering::Relaxed);
    assert!(removed > 10, "{removed} segments");
    assert_eq!((store.stats().chunks, store.stats().corrupt), (64, 0));
    drop(store);
    common::disk::RealDisk.remove_dir_all(&dir.path().join("index")).unwrap();
    let store = on_disk(dir.path(), 1 << 20).await;
    assert_eq!((store.stats().chunks, store.stats().corrupt), (64, 0));
    for bytes in kept.iter() {
        assert_eq!(read(&store, name(bytes)).await.as_ref(), Some(bytes));
    }
}

/// Heavy churn of chunks of 1 to 16 KiB on a real disk: what was 4 MiB at any time is kept in less than 1.3 times that.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "prints figures")]
async fn churn_of_small_chunks_takes_less_than_1_3_times_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = on_disk(dir.path(), 1 << 20).await;
    let len = |n: u64| 1024 + usize::try_from(n * 2654435761 % (15 << 10)).unwrap();
    let mut live: Vec<u64> = Vec::new();
    let mut next = 0;
    for round in 0..30u64 {
        let fresh: Vec<u64> = (next..next + 250).collect();
        next += 250;
        let chunks = fresh.iter().map(|n| chunk(&bytes(*n, len(*n)))).collect();
        assert!(store.put_all(chunks).await.iter().all(Result::is_ok));
        live.extend(fresh);
        while live.len() > 500 {
            let pick =
                usize::try_from((round * 7919 + u64::try_from(live.len()).unwrap() * 104_729) % 1_000_003).unwrap();
            let n = live.swap_remove(pick % live.len());
            store.remove(ChunkId::of(&bytes(n, len(n)))).await.unwrap();
        }
        if round == 14 {
            compact(&store).await.unwrap();
        }
    }
    store.flush().await.unwrap();
    // The segment that takes appends has 16 MiB reserved, which says nothing at this size.
    let closed = || store.inner.lane(Log::Small).segments.roll().unwrap();
    closed();
    let small = dir.path().join("segments-small");
    let held = store.stats().bytes as f64;
    let before = allocated(&small) as f64 / held;
    let began = tokio::time::Instant::now();
    let removed = compact(&store).await.unwrap();
    closed();
    let after = allocated(&small) as f64 / held;
    println!(
        "{} chunks, {held} bytes: space amplification {before:.2} before, {after:.2} after compaction of {removed} segments \
         in {:?}",
        live.len(),
        began.elapsed()
    );
    assert!(before > 1.3 && after < 1.3, "{before} {after}");
    for n in live {
        let bytes = bytes(n, len(n));
        assert_eq!(read(&store, name(&bytes)).await, Some(bytes));
    }
}
