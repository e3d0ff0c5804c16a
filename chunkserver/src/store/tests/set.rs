//! Several data directories.

use super::{bytes, chunk, name, segment_files, world};
use crate::store::{MissingDir, OpenError, SetConfig, StoreError, StoreSet};
use common::id::{ClusterId, Epoch, PgId, ServerId};
use common::task::Tasks;
use common::testing::SimDisk;
use std::path::{Path, PathBuf};

fn config(dirs: &[&str]) -> SetConfig {
    SetConfig {
        dirs: dirs.iter().map(PathBuf::from).collect(),
        reserve_bytes: 0,
        index_cache_bytes: 32 << 20,
        missing: MissingDir::Refuse,
        cluster: None,
    }
}

async fn open(disk: &SimDisk, seed: u64, config: &SetConfig) -> Result<StoreSet, OpenError> {
    StoreSet::open(&world(disk, seed), &Tasks::new(), config).await
}

#[tokio::test]
async fn chunks_spread_over_the_directories_and_are_found_in_all() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b", "/c"])).await.unwrap();
    let all: Vec<Vec<u8>> = (0..60).map(|n| bytes(n, 20_000)).collect();
    assert!(set.put_all(all.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    for store in set.stores() {
        assert!(store.stats().chunks >= 15, "{:?}", store.stats());
    }
    let before = set.stats();
    assert_eq!((before.chunks, before.bytes), (60, 60 * 20_000));
    assert!(set.put_all(all.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    assert_eq!((set.stats().chunks, set.stats().syncs), (60, before.syncs), "no second copy in another directory");
    let mut names: Vec<_> = all.iter().map(|bytes| name(bytes)).collect();
    assert_eq!(set.touch(&names).await.unwrap(), vec![true; 60]);
    names.sort_by_key(|name| name.id);
    let (mut listed, mut more) = (Vec::new(), true);
    while more {
        let after = listed.last().map(|last: &common::proto::chunk::ChunkRef| last.id);
        let (some, goes_on) = set.list(PgId(0), 1, after, 7).await.unwrap();
        assert!(some.len() <= 7 && (!some.is_empty() || !goes_on));
        listed.extend(some);
        more = goes_on;
    }
    assert_eq!(listed, names);
    for bytes in &all {
        let part = set.read(name(bytes).id, 0, 1).await.unwrap();
        part.check().unwrap();
        assert!(bytes.starts_with(&part.bytes));
    }
    set.remove(names[0].id).await.unwrap();
    assert_eq!(set.remove(names[0].id).await, Err(StoreError::NotFound { chunk: names[0].id }));
}

#[tokio::test]
async fn a_fenced_directory_is_passed_over_and_counted() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b"])).await.unwrap();
    let mut put = Vec::new();
    for n in 0..10 {
        put.push(bytes(n, 1000));
        set.put(chunk(&put[put.len() - 1])).await.unwrap();
    }
    for path in segment_files(&world(&disk, 0), "/a").keys() {
        disk.fail_sync(path);
    }
    let mut refused = 0;
    for n in 10..30 {
        refused += usize::from(set.put(chunk(&bytes(n, 1000))).await.is_err());
    }
    assert_eq!(refused, 1, "the put that met the error; then the other directory takes all");
    assert_eq!(set.stats().fenced, 1);
    assert!(set.takes_writes());
    let touched = set.touch(&put.iter().map(|bytes| name(bytes)).collect::<Vec<_>>()).await.unwrap();
    assert!(touched.contains(&false) && touched.contains(&true), "its chunks count as lost");
    for bytes in &put {
        set.put(chunk(bytes)).await.unwrap();
    }
    for path in segment_files(&world(&disk, 0), "/b").keys() {
        disk.fail_sync(path);
    }
    assert!(matches!(set.put(chunk(&bytes(99, 5))).await, Err(StoreError::Fenced { .. })));
    assert!(matches!(set.touch(&[name(&put[0])]).await, Err(StoreError::Fenced { .. })));
    assert!(matches!(set.list(PgId(0), 1, None, 5).await, Err(StoreError::Fenced { .. })));
    assert!(!set.takes_writes());
}

#[tokio::test]
async fn a_full_directory_beside_a_fenced_one_means_no_space() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b"])).await.unwrap();
    set.put(chunk(&bytes(1, 50_000))).await.unwrap();
    let held = set.stores().iter().position(|store| store.stats().chunks == 1).unwrap();
    // The other one, which holds less, gets fenced; then the one that is left runs full.
    for path in segment_files(&world(&disk, 0), ["/b", "/a"][held]).keys() {
        disk.fail_sync(path);
    }
    assert!(matches!(set.put(chunk(&bytes(2, 1000))).await, Err(StoreError::Fenced { .. })));
    let (total, _) = world(&disk, 1).disk.space(Path::new("/a")).unwrap();
    disk.set_space(total, 0);
    assert!(matches!(set.put(chunk(&bytes(3, 1000))).await, Err(StoreError::NoSpace { .. })));
}

#[tokio::test]
async fn data_of_another_cluster_or_server_is_refused() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b"])).await.unwrap();
    let instance = set.identity().instance;
    assert_eq!((set.identity().server, set.identity().cluster), (None, ClusterId(0)));
    set.adopt(ClusterId(5), ServerId(3), Epoch(7)).await.unwrap();
    set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
    assert_eq!(set.epoch(), Epoch(7), "it never goes back");
    assert!(matches!(set.adopt(ClusterId(6), ServerId(3), Epoch(1)).await, Err(OpenError::OtherCluster { .. })));
    assert!(matches!(set.adopt(ClusterId(5), ServerId(4), Epoch(1)).await, Err(OpenError::Identity { .. })));
    drop(set);
    let disk = disk.after_crash();
    let set = open(&disk, 2, &SetConfig { cluster: Some(ClusterId(5)), ..config(&["/b", "/a"]) }).await.unwrap();
    let identity = set.identity();
    assert_eq!((identity.cluster, identity.server, identity.instance), (ClusterId(5), Some(ServerId(3)), instance));
    drop(set);
    let wrong = SetConfig { cluster: Some(ClusterId(6)), ..config(&["/a", "/b"]) };
    let error = open(&disk, 3, &wrong).await.unwrap_err();
    assert!(matches!(&error, OpenError::OtherCluster { .. }) && error.to_string().contains("/a"), "{error}");
    let other = open(&disk, 4, &config(&["/x"])).await.unwrap();
    other.adopt(ClusterId(5), ServerId(9), Epoch(1)).await.unwrap();
    drop(other);
    let error = open(&disk, 5, &config(&["/a", "/x"])).await.unwrap_err();
    assert!(matches!(&error, OpenError::OtherServer { .. }) && error.to_string().contains("/x"), "{error}");
    assert!(matches!(open(&disk, 6, &config(&["/a", "/a"])).await, Err(OpenError::Config { .. })));
    assert!(matches!(open(&disk, 7, &config(&[])).await, Err(OpenError::Config { .. })));
}

/// A server with one bad disk goes on in the next epoch with the others.
#[tokio::test]
async fn a_directory_that_does_not_take_the_new_epoch_is_fenced_alone() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b"])).await.unwrap();
    set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
    disk.fail_sync(Path::new("/b"));
    set.adopt(ClusterId(5), ServerId(3), Epoch(2)).await.unwrap();
    let fenced: Vec<bool> = set.stores().iter().map(|store| store.fenced().is_some()).collect();
    assert_eq!((fenced, set.epoch()), (vec![false, true], Epoch(2)));
    for dir in ["/a", "/b"] {
        disk.fail_sync(Path::new(dir));
    }
    assert!(set.adopt(ClusterId(5), ServerId(3), Epoch(3)).await.is_err(), "none takes it");
}

#[tokio::test]
async fn a_wish_to_delete_does_not_outlive_the_epoch_it_was_made_in() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a", "/b"])).await.unwrap();
    let kept = chunk(&bytes(1, 1000));
    let id = kept.chunk().id;
    set.put(kept).await.unwrap();
    assert!(set.wish(id, 5));
    set.void_wishes();
    assert!(matches!(set.delete(id, 5).await, Err(StoreError::Busy { .. })));
    assert!(set.wish(id, 6));
    set.delete(id, 6).await.unwrap();
}

#[tokio::test]
async fn a_missing_directory_is_left_out_made_anew_or_stops_the_start() {
    let disk = SimDisk::new(1);
    let set = open(&disk, 1, &config(&["/a"])).await.unwrap();
    set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
    drop(set);
    let two = config(&["/gone", "/a"]);
    let error = open(&disk, 2, &two).await.unwrap_err();
    assert!(matches!(&error, OpenError::Missing { .. }) && error.to_string().contains("/gone"), "{error}");
    let set = open(&disk, 3, &SetConfig { missing: MissingDir::Skip, ..two.clone() }).await.unwrap();
    assert_eq!((set.stores().len(), set.stats().fenced, set.identity().server), (1, 1, Some(ServerId(3))));
    assert_eq!(set.left_out()[0].dir, Path::new("/gone"));
    drop(set);
    let set = open(&disk, 4, &SetConfig { missing: MissingDir::Create, ..two.clone() }).await.unwrap();
    assert_eq!((set.stores().len(), set.stats().fenced), (2, 0));
    drop(set);
    open(&disk, 5, &two).await.unwrap();
}

/// Whatever is wrong with one disk, the server goes on with the others.
#[tokio::test]
async fn a_directory_that_does_not_open_is_left_out_alone() {
    let whole = SimDisk::new(1);
    let two = SetConfig { missing: MissingDir::Skip, ..config(&["/a", "/b"]) };
    let set = open(&whole, 1, &two).await.unwrap();
    set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
    let all: Vec<Vec<u8>> = (0..40).map(|n| bytes(n, 20_000)).collect();
    assert!(set.put_all(all.iter().map(|bytes| chunk(bytes)).collect()).await.iter().all(Result::is_ok));
    let kept = set.stores()[1].stats().chunks;
    assert!(0 < kept && kept < 40);
    set.flush().await;
    drop(set);
    for (seed, wrong) in (2..).zip(["a damaged identity", "an unreadable identity", "no directory of segments"]) {
        let disk = whole.after_crash();
        match seed {
            2 => disk.flip(Path::new("/a/identity"), 20),
            3 => disk.fail_reads(Path::new("/a/identity"), 0),
            _ => {
                let real = world(&disk, seed).disk;
                real.remove_dir_all(Path::new("/a/segments-large")).unwrap();
                real.create(Path::new("/a/segments-large")).unwrap();
            }
        }
        let refused = open(&disk, seed, &SetConfig { missing: MissingDir::Refuse, ..two.clone() }).await;
        let error = refused.expect_err(wrong).to_string();
        assert!(error.contains("/a"), "{error}");
        let set = open(&disk, seed, &two).await.unwrap_or_else(|error| panic!("{wrong}: {error}"));
        assert_eq!((set.stores().len(), set.stats().fenced, set.stats().chunks), (1, 1, kept), "{wrong}");
        assert_eq!((set.left_out()[0].dir.as_path(), set.identity().server), (Path::new("/a"), Some(ServerId(3))));
        let alone = SetConfig { dirs: vec!["/a".into()], ..two.clone() };
        drop(set);
        assert!(open(&disk, seed, &alone).await.is_err(), "{wrong}: nothing is left");
    }
}

#[tokio::test]
async fn a_first_start_may_be_cut_at_any_write() {
    let two = config(&["/a", "/b"]);
    let whole = SimDisk::new(1);
    open(&whole, 1, &two).await.unwrap().adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
    for cut in 0..whole.writes() {
        let disk = SimDisk::new(1).cut_after(cut);
        if let Ok(set) = open(&disk, 1, &two).await {
            let adopted = set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await;
            assert!(adopted.is_err() || set.stores().iter().any(|store| store.fenced().is_some()));
        }
        let set = open(&disk.after_crash(), 2, &two).await.unwrap_or_else(|e| panic!("cut after {cut}: {e}"));
        set.adopt(ClusterId(5), ServerId(3), Epoch(1)).await.unwrap();
        assert!(set.stores().iter().all(|store| store.dir() != Path::new("")));
    }
}
