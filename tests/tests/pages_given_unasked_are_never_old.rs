//! A chunk of which many small parts are read is given to the kernel whole. Whoever writes meanwhile, on the same mount or on
//! another one, is seen by every read that begins after the write was durable.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use common::units::len_u64;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::full;
use tokio::time::Instant;

const BLOCK: usize = 4096;
/// A chunk, which is always written whole: then what is given of it most often meets a write.
const BLOCKS: usize = 1024;
const READERS: u64 = 3;
/// Reads of one reader between two drops of the kernel's pages: a few more than make a chunk dense.
const READS: usize = 20;
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// A block of this file that was written as the `stamp`th of all.
fn block(at: usize, stamp: u64) -> Vec<u8> {
    let words = [len_u64(at), stamp].map(u64::to_le_bytes).concat();
    words.into_iter().cycle().take(BLOCK).collect()
}

/// The oldest stamp in a block. There are two while somebody writes to the page at this moment.
#[track_caller]
fn stamp_of(at: usize, bytes: &[u8]) -> u64 {
    let words: Vec<u64> = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert!(words.iter().step_by(2).all(|word| *word == len_u64(at)), "another block than {at}");
    *words[1..].iter().step_by(2).min().unwrap()
}

fn given(cluster: &Cluster, mnt: &Path) -> u64 {
    let mut command = cluster.command(&["mount", "status", "--json"]);
    let ended = run(command.arg(mnt), STATUS_LIMIT).must();
    serde_json::from_slice::<Value>(&ended.out).unwrap()["given_bytes"].as_u64().unwrap()
}

/// What the readers look for: the stamp that every block has at least.
struct Floor {
    stamp: AtomicU64,
    checks: AtomicU64,
    stop: AtomicBool,
}

/// Reads here and there, and has the kernel forget all now and then.
fn read(path: &Path, seed: u64, floor: &Floor) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; BLOCK];
    while !floor.stop.load(Ordering::Relaxed) {
        let file = File::open(path).unwrap();
        for _ in 0..READS {
            let at = random.random_range(0..BLOCKS);
            let least = floor.stamp.load(Ordering::SeqCst);
            file.read_exact_at(&mut bytes, len_u64(at * BLOCK)).unwrap();
            let found = stamp_of(at, &bytes);
            assert!(found >= least, "block {at}: {found}, but {least} was durable before the read began (seed {seed})");
            floor.checks.fetch_add(1, Ordering::Relaxed);
        }
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
}

/// Writes, each durable before it counts, through these mounts in turns: with pauses in which nobody writes here.
fn write(paths: &[&Path], seed: u64, limit: Duration, floor: &Floor) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let (began, mut stamp) = (Instant::now(), 0);
    while began.elapsed() < limit {
        let path = paths[random.random_range(0..paths.len())];
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        stamp += 1;
        let all: Vec<u8> = (0..BLOCKS).flat_map(|at| block(at, stamp)).collect();
        file.write_all_at(&all, 0).unwrap();
        file.sync_all().unwrap();
        floor.stamp.store(stamp, Ordering::SeqCst);
        drop(file);
        std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
    }
    stamp
}

#[test]
fn a_read_after_a_durable_write_sees_it() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (here, there) = (cluster.mount("here"), cluster.mount("there"));
    let name = "file";
    let all: Vec<u8> = (0..BLOCKS).flat_map(|at| block(at, 0)).collect();
    fs::write(there.join(name), &all).unwrap();
    let floor = Floor { stamp: AtomicU64::new(0), checks: AtomicU64::new(0), stop: AtomicBool::new(false) };
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let (mine, other) = (here.join(name), there.join(name));
    let limit = Duration::from_secs(if full() { 120 } else { 15 });
    let writes = std::thread::scope(|scope| {
        let readers: Vec<_> = (1..=READERS)
            .map(|reader| {
                let (path, floor) = (mine.clone(), &floor);
                scope.spawn(move || read(&path, seed.wrapping_add(reader), floor))
            })
            .collect();
        let writes = write(&[&mine, &other, &other], seed, limit, &floor);
        let failed = readers.iter().any(std::thread::ScopedJoinHandle::is_finished);
        floor.stop.store(true, Ordering::Relaxed);
        assert!(!failed, "a reader saw something old");
        writes
    });
    let (checks, given) = (floor.checks.load(Ordering::Relaxed), given(&cluster, &here));
    eprintln!("{writes} writes, {checks} reads, {given} bytes given");
    assert!(writes > 20 && checks > 10_000, "{writes} writes and {checks} reads are no test");
    assert!(given >= len_u64(all.len()), "only {given} bytes were given");
    cluster.unmount("here");
    cluster.unmount("there");
}

/// A file of which single blocks are written: the kernel has most of it, and drops it again and again.
const FEW: usize = 256;

/// Whoever reads hears of each block that another mount has made durable, however many read meanwhile: also while the kernel drops
/// the pages that it has.
#[test]
fn a_read_sees_each_block_that_another_mount_synced() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (here, there) = (cluster.mount("here"), cluster.mount("there"));
    let path = |mount: &Path| mount.join("file");
    fs::write(path(&there), (0..FEW).flat_map(|at| block(at, 0)).collect::<Vec<u8>>()).unwrap();
    let floors: Vec<AtomicU64> = (0..FEW).map(|_| AtomicU64::new(0)).collect();
    let (checks, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let read = |reader: u64| {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(reader));
        let (file, mut bytes) = (File::open(path(&here)).unwrap(), vec![0; BLOCK]);
        while !stop.load(Ordering::Relaxed) {
            let at = random.random_range(0..FEW);
            let least = floors[at].load(Ordering::SeqCst);
            file.read_exact_at(&mut bytes, len_u64(at * BLOCK)).unwrap();
            let found = stamp_of(at, &bytes);
            assert!(found >= least, "block {at}: {found}, but {least} was durable before the read began (seed {seed})");
            checks.fetch_add(1, Ordering::Relaxed);
        }
    };
    let limit = Duration::from_secs(if full() { 120 } else { 10 });
    let writes = std::thread::scope(|scope| {
        let readers: Vec<_> = (1..=READERS).map(|reader| scope.spawn(move || read(reader))).collect();
        let mut random = StdRng::seed_from_u64(seed);
        let file = fs::OpenOptions::new().read(true).write(true).open(path(&there)).unwrap();
        let (began, mut stamp) = (Instant::now(), 0);
        while began.elapsed() < limit && !readers.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            let at = random.random_range(0..FEW);
            stamp += 1;
            file.write_all_at(&block(at, stamp), len_u64(at * BLOCK)).unwrap();
            file.sync_data().unwrap();
            floors[at].store(stamp, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(random.random_range(0..6)));
        }
        stop.store(true, Ordering::Relaxed);
        stamp
    });
    let checks = checks.load(Ordering::Relaxed);
    eprintln!("{writes} writes, {checks} reads");
    assert!(writes > 100 && checks > 10_000, "{writes} writes and {checks} reads are no test");
    cluster.unmount("here");
    cluster.unmount("there");
}

/// A record of this file, so long that few end where a page does.
const RECORD: usize = 700;

fn record(number: u64) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(RECORD).collect()
}

/// Whoever waits at the end of a file gets what another mount has appended and synced: without asking how long the file is, and
/// also while others read what lies before.
#[test]
fn a_read_at_the_end_sees_what_another_mount_appended() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (here, there) = (cluster.mount("here"), cluster.mount("there"));
    let path = |mount: &Path| mount.join("log");
    fs::write(path(&there), record(0)).unwrap();
    let (floor, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let follow = || {
        let (file, mut read, mut bytes) = (File::open(path(&here)).unwrap(), 0, vec![0; 64 * RECORD]);
        while !stop.load(Ordering::Relaxed) {
            let least = floor.load(Ordering::SeqCst);
            let got = file.read_at(&mut bytes, read * len_u64(RECORD)).unwrap() / RECORD;
            assert!(
                read + len_u64(got) >= least.min(read + 64),
                "{got} records after {read}, but {least} were durable"
            );
            for got in bytes.chunks_exact(RECORD).take(got) {
                assert!(got == record(read), "record {read} is another one");
                read += 1;
            }
        }
        read
    };
    let look_back = |seed: u64| {
        let (file, mut bytes, mut random) =
            (File::open(path(&here)).unwrap(), vec![0; RECORD], StdRng::seed_from_u64(seed));
        while !stop.load(Ordering::Relaxed) {
            let at = random.random_range(0..floor.load(Ordering::SeqCst));
            file.read_exact_at(&mut bytes, at * len_u64(RECORD)).unwrap();
            assert!(bytes == record(at), "record {at} is another one (seed {seed})");
        }
    };
    let limit = Duration::from_secs(if full() { 120 } else { 10 });
    let (appended, followed) = std::thread::scope(|scope| {
        let follower = scope.spawn(follow);
        let others: Vec<_> = (1..READERS).map(|reader| scope.spawn(move || look_back(reader))).collect();
        let file = fs::OpenOptions::new().append(true).open(path(&there)).unwrap();
        let (began, mut appended, mut random) = (Instant::now(), 1, StdRng::seed_from_u64(7));
        let failed = || follower.is_finished() || others.iter().any(std::thread::ScopedJoinHandle::is_finished);
        while began.elapsed() < limit && !failed() {
            (&file).write_all(&record(appended)).unwrap();
            file.sync_data().unwrap();
            appended += 1;
            floor.store(appended, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(random.random_range(0..6)));
        }
        stop.store(true, Ordering::Relaxed);
        (appended, follower.join().unwrap())
    });
    eprintln!("{appended} appended, {followed} read by who waits for them");
    assert!(appended > 100 && followed >= appended - 1, "{appended} records, {followed} read, are no test");
    cluster.unmount("here");
    cluster.unmount("there");
}
