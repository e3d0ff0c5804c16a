//! What several mounts append to one file is all there: no record lost, torn or doubled, each writer's in order; also while
//! the leader is killed. Who reads along sees whole records at any moment, and what he has read never changes.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::fcntl::OFlag;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::full;
use tests::records::{check, record};
use tokio::time::Instant;

const MOUNTS: [&str; 4] = ["a", "b", "c", "d"];
/// Writers on each mount.
const WRITERS: usize = 2;
/// Records between two syncs of a writer, at most.
const UNSYNCED_MAX: u64 = 16;

/// Leaders killed in one run. Each new one gets to work before it dies: it waits for the end of leases that an old one gave.
const KILLS: u64 = 3;

/// How many records each writer appends.
fn records_each(all: u64) -> u64 {
    all / common::units::len_u64(MOUNTS.len() * WRITERS)
}

/// Appends them, one `write` each, now and then synced; every other pair of writers has each write synced by itself.
fn append(path: &Path, writer: usize, records: u64, appended: &AtomicU64) {
    let flags = if writer % 4 < 2 { OFlag::empty() } else { OFlag::O_DSYNC };
    let mut file = OpenOptions::new().append(true).custom_flags(flags.bits()).open(path).unwrap();
    for number in 0..records {
        file.write_all(&record(writer, number)).unwrap();
        appended.fetch_add(1, Ordering::SeqCst);
        if number % (1 + common::units::len_u64(writer) % UNSYNCED_MAX * 2) == 0 {
            file.sync_data().unwrap();
        }
    }
    file.sync_all().unwrap();
}

/// Reads what is appended until `over`, and then to the end. At any moment what was read ends with a whole record.
fn follow(path: &Path, over: &AtomicBool) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let mut bytes = Vec::new();
    loop {
        let last = over.load(Ordering::SeqCst);
        let before = bytes.len();
        file.read_to_end(&mut bytes).unwrap();
        if let Err(error) = check(&bytes) {
            let zeros = bytes.iter().position(|byte| *byte == 0);
            let len = zeros.map(|at| bytes[at..].iter().take_while(|byte| **byte == 0).count());
            panic!("read {before}..{}: zeros from {zeros:?} on, {len:?} bytes: {error:.80}", bytes.len());
        }
        if last {
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills leaders, the next one whenever so many records more are appended, until all are.
fn kill_leaders(cluster: &Cluster, step: u64, appended: &AtomicU64, written: &AtomicBool) -> u64 {
    for kills in 0.. {
        let next = step.saturating_mul(kills + 1);
        while appended.load(Ordering::SeqCst) < next {
            if written.load(Ordering::SeqCst) {
                return kills;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let leader = cluster.leader();
        cluster.kill(&[&leader]);
        cluster.start_server(&leader);
    }
    unreachable!("it ends when all is written")
}

/// Writers on four mounts, a reader on a fifth; with `kills`, leaders die meanwhile. Everything is there on all.
fn append_from_all(cluster: &mut Cluster, records: u64, kills: bool) {
    let roots: Vec<PathBuf> = MOUNTS.iter().map(|name| cluster.mount(name)).collect();
    let reader = cluster.mount("reader");
    fs::write(roots[0].join("log"), "").unwrap();
    let each = records_each(records);
    let start = Instant::now();
    let (written, read, appended) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (followed, killed) = std::thread::scope(|scope| {
        let (written, appended) = (&written, &appended);
        let following = scope.spawn(|| follow(&reader.join("log"), &read));
        let writing: Vec<_> = (0..roots.len() * WRITERS)
            .map(|writer| {
                let path = roots[writer % roots.len()].join("log");
                scope.spawn(move || append(&path, writer, each, appended))
            })
            .collect();
        let cluster = &*cluster;
        let step = if kills { records / (KILLS + 1) } else { u64::MAX };
        let killing = scope.spawn(move || kill_leaders(cluster, step, appended, written));
        let ends: Vec<_> = writing.into_iter().map(|thread| thread.join()).collect();
        written.store(true, Ordering::SeqCst);
        let killed = killing.join().unwrap();
        read.store(true, Ordering::SeqCst);
        ends.into_iter().for_each(|end| end.unwrap());
        (following.join().unwrap(), killed)
    });
    eprintln!("{records} records in {:?}, {killed} leaders killed", start.elapsed());
    assert!(!kills || killed >= KILLS);
    let wanted: BTreeMap<usize, u64> = (0..roots.len() * WRITERS).map(|writer| (writer, each)).collect();
    assert_eq!(check(&followed), Ok(wanted));
    for root in roots.iter().chain([&reader]) {
        assert!(fs::read(root.join("log")).unwrap() == followed, "{} shows something else", root.display());
    }
    for name in MOUNTS.iter().chain([&"reader"]) {
        cluster.unmount(name);
    }
}

#[test]
fn no_record_is_lost_torn_or_doubled() {
    tests::skip_if!(no_mount);
    append_from_all(&mut Cluster::start(), if full() { 40_000 } else { 4_000 }, false);
}

#[test]
fn no_record_is_lost_torn_or_doubled_while_leaders_die() {
    tests::skip_if!(no_mount);
    append_from_all(&mut Cluster::start(), if full() { 40_000 } else { 2_400 }, true);
}
