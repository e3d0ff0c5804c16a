//! The simulated disk loses what it may lose, and nothing else.

use super::SimDisk;
use crate::disk::Disk;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "/d/f";

/// A synced block of ones, then an unsynced one of twos over it and one behind it.
fn two_blocks(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("/d")).expect("create");
    let file = disk.create(Path::new(FILE)).expect("create");
    file.write_all_at(&[&[1; 4096]], 0).expect("write");
    file.sync().expect("sync");
    disk.sync_dir(Path::new("/d")).expect("sync");
    file.write_all_at(&[&[2; 8192]], 0).expect("write");
    disk
}

fn bytes(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(Path::new(path)).expect("open");
    let mut bytes = vec![0; usize::try_from(file.len().expect("len")).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_any_sectors_of_the_rest() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = two_blocks(seed);
        let after = bytes(&disk.after_crash(), FILE);
        assert_eq!(after, bytes(&two_blocks(seed).after_crash(), FILE), "the same seed, the same outcome");
        assert!(disk.open(Path::new(FILE)).is_err() && disk.list(Path::new("/d")).is_err(), "no power");
        for (number, sector) in after.chunks(512).enumerate() {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "sectors are whole");
            assert!(sector[0] == 2 || sector[0] == u8::from(number < 8), "old or new (or a hole)");
        }
        assert!((4096..=8192).contains(&after.len()));
        outcomes.insert(after);
    }
    assert!(outcomes.contains(&vec![1; 4096][..]) && outcomes.contains(&vec![2; 8192][..]) && outcomes.len() > 50);
}

#[test]
fn names_are_durable_after_a_sync_of_the_directory() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let disk = two_blocks(seed);
        disk.create(Path::new("/d/new")).expect("create");
        disk.rename(Path::new("/d/new"), Path::new("/d/newer")).expect("rename");
        disk.remove(Path::new(FILE)).expect("remove");
        outcomes.insert(disk.after_crash().list(Path::new("/d")).expect("list"));
    }
    let names = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let possible = [&["f"][..], &["f", "new"], &["f", "newer"], &[], &["new"], &["newer"]].map(names);
    assert_eq!(outcomes, possible.into(), "a rename implies the creation");
    let disk = two_blocks(0);
    disk.create(Path::new("/d/new")).expect("create");
    disk.remove(Path::new(FILE)).expect("remove");
    disk.sync_dir(Path::new("/d")).expect("sync");
    assert_eq!(disk.after_crash().list(Path::new("/d")).expect("list"), names(&["new"]));
}

#[test]
fn the_power_goes_after_so_many_writes() {
    let disk = two_blocks(0);
    let writes = disk.writes();
    let disk = disk.cut_after(writes + 1);
    let file = disk.open(Path::new(FILE)).expect("open");
    file.write_all_at(&[b"x"], 0).expect("one more");
    assert!(disk.has_power());
    assert!(file.sync().is_err() && !disk.has_power());
    assert!(file.read_exact_at(&mut [0], 0).is_err());
}

#[test]
fn a_failed_sync_may_lose_what_can_still_be_read() {
    let outcomes: BTreeSet<Vec<u8>> = (0..100)
        .map(|seed| {
            let disk = two_blocks(seed);
            disk.fail_sync(Path::new(FILE));
            let file = disk.open(Path::new(FILE)).expect("open");
            assert_eq!(file.sync().expect_err("fails").raw_os_error(), Some(5));
            assert_eq!(bytes(&disk, FILE), [2; 8192]);
            file.sync().expect("and then does not");
            bytes(&disk.after_crash(), FILE)
        })
        .collect();
    assert!(outcomes.contains(&vec![1; 4096][..]) && outcomes.contains(&vec![2; 8192][..]));
}

#[test]
fn a_full_disk_says_so() {
    let disk = two_blocks(0);
    disk.set_space(100_000, 5000);
    let file = disk.open(Path::new(FILE)).expect("open");
    let full = file.write_all_at(&[&[3; 6000]], 8192).expect_err("no room");
    assert_eq!((full.kind(), file.len().expect("len")), (io::ErrorKind::StorageFull, 8192));
    assert_eq!(file.reserve(8192, 6000).expect_err("no room").kind(), io::ErrorKind::StorageFull);
    file.reserve(8192, 4000).expect("room");
    assert_eq!(disk.space(Path::new("/d")).expect("space"), (100_000, 1000));
    file.write_all_at(&[&[3; 5000]], 8192).expect("partly reserved");
    assert_eq!(disk.space(Path::new("/d")).expect("space"), (100_000, 0));
    disk.remove(Path::new(FILE)).expect("remove");
    assert_eq!(disk.space(Path::new("/d")).expect("space"), (100_000, 8192 + 5000));
}
