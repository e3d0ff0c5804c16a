//! The real disk, RocksDB, real threads, kill -9.

use super::{STORE, StoreConfig, bytes, chunk, name, open_dir, read};
use crate::store::{MissingDir, SetConfig, StoreError, StoreSet};
use common::disk::{Disk, File, Lock, RealDisk};
use common::task::Tasks;
use common::world::World;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { reserve_bytes: 0, segment_len_max: 8 << 20, ..super::config(dir) }
}

/// The directory a child of `kill_9_keeps_what_was_acknowledged` works in.
const CHILD_DIR: &str = "DFS_STORE_TEST_CHILD_DIR";

/// Lengths of both logs in turn.
fn nth(run: u64, n: u64) -> Vec<u8> {
    bytes(run * 1_000_000 + n, [4096, 100_000, 17, 30_000, 1 << 20][usize::try_from(n % 5).unwrap()])
}

/// Not a test: what the child does. Puts for ever, eight at a time, saying each one that was acknowledged; flushes now
/// and then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a child by kill_9_keeps_what_was_acknowledged"]
async fn child() {
    let Ok(at) = std::env::var(CHILD_DIR) else { return };
    let (dir, run) = at.rsplit_once('|').unwrap();
    let run: u64 = run.parse().unwrap();
    let store = open_dir(&World::real(), config(Path::new(dir)), STORE).await.unwrap();
    let work = (0..8u64).map(|task| {
        let store = store.clone();
        async move {
            for n in (task..).step_by(8) {
                store.put(chunk(&nth(run, n))).await.unwrap();
                println!("acknowledged {n}");
                if n % 50 == 7 {
                    store.flush().await.unwrap();
                }
            }
        }
    });
    futures::future::join_all(work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut held: Vec<(u64, u64)> = Vec::new();
    for run in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::real::child", "--ignored", "--nocapture"])
            .env(CHILD_DIR, format!("{}|{run}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = usize::try_from(40 + 37 * run).unwrap();
        for line in lines {
            // Lines of the test harness come between.
            if let Some((_, n)) = line.unwrap().rsplit_once("acknowledged ") {
                held.push((run, n.parse().unwrap()));
            }
            if held.iter().filter(|(of, _)| *of == run).count() == wanted {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        if run == 3 {
            std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let store = open_dir(&World::real(), config(dir.path()), STORE).await.unwrap();
        assert!(held.len() >= wanted);
        assert_eq!(store.recovered().rebuilt, run == 3);
        for (of, n) in &held {
            let bytes = nth(*of, *n);
            assert_eq!(store.touch(&[name(&bytes)]).await.unwrap(), [true], "run {of}, chunk {n}");
            assert_eq!(read(&store, name(&bytes)).await, Some(bytes), "run {of}, chunk {n}");
        }
        assert_eq!(store.stats().corrupt, 0);
    }
}

/// A disk whose operations of some kinds wait at a gate: those on files (and directories) below a path.
#[derive(Debug)]
struct GatedDisk(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<Option<Closed>>,
    opened: Condvar,
}

#[derive(Debug)]
struct Closed {
    kind: &'static str,
    below: PathBuf,
    /// Others pass.
    first_only: bool,
    stopped: usize,
}

#[derive(Debug)]
struct GatedFile(Arc<dyn File>, Arc<Gate>, PathBuf);

impl Gate {
    fn close(&self, kind: &'static str, below: &Path) {
        *self.closed.lock().unwrap() = Some(Closed { kind, below: below.to_path_buf(), first_only: false, stopped: 0 });
    }

    /// Stops only the first that comes.
    fn stop_one(&self, kind: &'static str, below: &Path) {
        *self.closed.lock().unwrap() = Some(Closed { kind, below: below.to_path_buf(), first_only: true, stopped: 0 });
    }

    fn stopped(&self) -> usize {
        self.closed.lock().unwrap().as_ref().map_or(0, |closed| closed.stopped)
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = None;
        self.opened.notify_all();
    }

    fn pass(&self, kind: &str, path: &Path) {
        let stands = |closed: &Closed| closed.kind == kind && path.starts_with(&closed.below);
        let mut closed = self.closed.lock().unwrap();
        let Some(gate) = closed.as_mut().filter(|gate| stands(gate)) else { return };
        if gate.first_only && gate.stopped > 0 {
            return;
        }
        gate.stopped += 1;
        drop(self.opened.wait_while(closed, |closed| closed.as_ref().is_some_and(stands)).unwrap());
    }
}

impl File for GatedFile {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.1.pass("read", &self.2);
        self.0.read_exact_at(buf, at)
    }
    fn write_all_at(&self, bufs: &[&[u8]], at: u64) -> io::Result<()> {
        self.1.pass("write", &self.2);
        self.0.write_all_at(bufs, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass("sync", &self.2);
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.reserve(at, len)
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.punch(at, len)
    }
}

impl GatedDisk {
    fn gated(&self, file: Arc<dyn File>, path: &Path) -> Arc<dyn File> {
        Arc::new(GatedFile(file, self.0.clone(), path.to_path_buf()))
    }
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealDisk.open(path).map(|file| self.gated(file, path))
    }
    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealDisk.open_direct(path).map(|file| self.gated(file, path))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealDisk.create(path).map(|file| self.gated(file, path))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        RealDisk.exists(path)
    }
    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.0.pass("space", path);
        RealDisk.space(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Lock> {
        RealDisk.lock(path)
    }
}

/// A reader that has looked up where a chunk is, and is then overtaken by compaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_moves_while_it_is_read_is_read() {
    // One read of the disk, whose segment goes meanwhile; and one for the tree, one for the bytes.
    for (len, offset, wanted) in [(10_000, 0, 10_000), (40_000, 20_000, 100)] {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate::default());
        let mut world = World::real();
        world.disk = Arc::new(GatedDisk(gate.clone()));
        let config = StoreConfig { segment_len_max: 200_000, ..config(dir.path()) };
        let store = open_dir(&world, config, STORE).await.unwrap();
        let kept = bytes(0, len);
        store.put(chunk(&kept)).await.unwrap();
        for n in 1..30 {
            store.put(chunk(&bytes(n, 10_000))).await.unwrap();
            store.remove(name(&bytes(n, 10_000)).id).await.unwrap();
        }
        store.flush().await.unwrap();
        gate.stop_one("read", &dir.path().join("segments-small/00000001.seg"));
        let (reader, id) = (store.clone(), name(&kept).id);
        let mut reads = tokio::task::JoinSet::new();
        reads.spawn(async move { reader.read(id, offset, wanted).await });
        until(|| gate.stopped() == 1).await;
        assert!(store.compact(|_| std::time::Duration::ZERO).await.unwrap() > 0);
        assert!(store.inner.index.row(id).unwrap().unwrap().position.segment > 1, "it moved");
        store.inner.flush().unwrap();
        gate.open();
        let part = reads.join_next().await.unwrap().unwrap().expect("it is there");
        part.check().expect("the right bytes");
        assert_eq!(store.stats().corrupt, 0);
    }
}

/// Waits for something that another thread does.
async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.expect("it happens soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_that_come_while_a_sync_runs_share_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let mut world = World::real();
    world.disk = Arc::new(GatedDisk(gate.clone()));
    let store = open_dir(&world, config(dir.path()), STORE).await.unwrap();
    for (lane, len) in [(0, 4096), (1, 100_000)] {
        let before = store.stats().syncs;
        let lane = &store.inner.lanes[lane];
        gate.close("sync", dir.path());
        let mut puts = tokio::task::JoinSet::new();
        let put = |puts: &mut tokio::task::JoinSet<Result<(), StoreError>>, n: u64| {
            let store = store.clone();
            puts.spawn(async move { store.put(chunk(&bytes(n, len))).await });
        };
        put(&mut puts, 0);
        until(|| gate.stopped() == 1 && lane.waiting() == (1, 0)).await; // its sync stands at the gate
        for n in 1..41 {
            put(&mut puts, n);
        }
        put(&mut puts, 7); // twice
        until(|| lane.waiting() == (41, 40)).await;
        // Nothing is acknowledged or readable before its sync.
        assert!(puts.try_join_next().is_none());
        assert!(store.read(name(&bytes(5, len)).id, 0, 1).await.is_err());
        let mut touch = tokio::task::JoinSet::new();
        let toucher = store.clone();
        touch.spawn(async move { toucher.touch(&[name(&bytes(5, len))]).await });
        gate.open();
        while let Some(put) = puts.join_next().await {
            put.unwrap().unwrap();
        }
        assert_eq!(store.stats().syncs - before, 2, "one for the first, one for forty");
        assert_eq!(touch.join_next().await.unwrap().unwrap().unwrap(), [true], "a touch waits for the put under way");
        for n in 0..41 {
            assert_eq!(read(&store, name(&bytes(n, len))).await, Some(bytes(n, len)));
        }
    }
}

/// A disk that answers nothing, not even with an error, costs what lies on it and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_disk_hangs_is_passed_over_until_it_answers() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gate = Arc::new(Gate::default());
    let mut world = World::real();
    world.disk = Arc::new(GatedDisk(gate.clone()));
    let dirs = vec![a.path().join("data"), b.path().join("data")];
    let config =
        SetConfig { dirs, reserve_bytes: 0, index_cache_bytes: 64 << 20, missing: MissingDir::Refuse, cluster: None };
    let set = StoreSet::open(&world, &Tasks::new(), &config).await.unwrap();
    let all: Vec<Vec<u8>> = (0..20).map(|n| bytes(n, 1000)).collect();
    for bytes in &all {
        set.put(chunk(bytes)).await.unwrap();
    }
    let [on_a, on_b] = set.stores() else { panic!("two directories") };
    assert!(on_a.stats().chunks > 0 && on_b.stats().chunks > 0);
    let full = set.stats_soon().await;
    gate.close("space", b.path());
    let limit = std::time::Duration::from_secs(3);
    let stats = tokio::time::timeout(limit, set.stats_soon()).await.expect("a heartbeat is sent all the same");
    assert_eq!((stats.chunks, stats.free < full.free), (20, true), "its last numbers, and no room");
    set.put(chunk(&bytes(50, 1000))).await.unwrap(); // waits until the disk counts as silent
    assert!(on_b.is_silent() && !on_a.is_silent() && set.takes_writes());
    let quick = async {
        for n in 51..80 {
            set.put(chunk(&bytes(n, 1000))).await.unwrap();
            assert_eq!(set.touch(&[name(&bytes(n, 1000))]).await.unwrap(), [true]);
        }
        for bytes in &all {
            let found = set.read(name(bytes).id, 0, 1).await;
            assert!(found.is_ok() || matches!(found, Err(StoreError::Slow { .. })));
        }
    };
    tokio::time::timeout(limit, quick).await.expect("nobody waits for it any more");
    gate.open();
    until(|| !on_b.is_silent()).await;
    for bytes in &all {
        assert!(set.read(name(bytes).id, 0, 1).await.is_ok(), "it answers again");
    }
}

/// A disk that takes writes and says how full it is, but does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_does_not_read_is_passed_over_and_reported_until_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let mut world = World::real();
    world.disk = Arc::new(GatedDisk(gate.clone()));
    let store = open_dir(&world, config(dir.path()), STORE).await.unwrap();
    let data = bytes(1, 100_000);
    store.put(chunk(&data)).await.unwrap();
    assert_eq!(store.stats_soon().await.fenced, 0);
    gate.close("read", dir.path());
    let slow = store.read(name(&data).id, 0, 1).await;
    assert!(matches!(slow, Err(StoreError::Slow { .. })), "{slow:?}");
    assert!(store.is_silent());
    let stats = store.stats_soon().await;
    assert_eq!((stats.fenced, stats.free, stats.chunks), (1, 0, 1), "what a heartbeat says");
    gate.open();
    until(|| !store.is_silent()).await;
    assert!(store.read(name(&data).id, 0, 1).await.is_ok());
    assert_eq!(store.stats_soon().await.fenced, 0);
}

/// The memory of a put belongs to its bytes, not to who waits for it: on a disk that hangs, callers come and go.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_nobody_waits_for_keeps_its_memory_until_the_disk_has_taken_it() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let mut world = World::real();
    world.disk = Arc::new(GatedDisk(gate.clone()));
    let store = open_dir(&world, config(dir.path()), STORE).await.unwrap();
    let room = Arc::new(tokio::sync::Semaphore::new(1));
    for (lane, len) in [(0, 4096), (1, 100_000)] {
        let data = bytes(1, len);
        let permit = Arc::new(room.clone().try_acquire_owned().unwrap());
        let mut incoming = crate::store::Incoming::new(name(&data)).unwrap().in_room(permit);
        incoming.push(&data);
        gate.close("write", dir.path());
        let (verified, putter) = (incoming.finish().unwrap(), store.clone());
        let mut put = tokio::task::JoinSet::new();
        put.spawn(async move { putter.put(verified).await });
        until(|| store.inner.lanes[lane].waiting() == (1, 0)).await;
        put.shutdown().await;
        assert_eq!(room.available_permits(), 0, "its bytes wait for the disk");
        gate.open();
        until(|| room.available_permits() == 1).await;
    }
}

/// Eight tasks put, touch, read, verify, delete and flush the same few chunks. Nobody hangs, nobody sees wrong bytes, and in
/// the end index, counts and segments agree, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_the_same_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_dir(&World::real(), config(dir.path()), STORE).await.unwrap();
    let all: Arc<Vec<Vec<u8>>> = Arc::new((0..6).map(|n| nth(0, n)).collect());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (store, all) = (store.clone(), all.clone());
        tasks.spawn(async move {
            for dice in bytes(task, 400) {
                let bytes = &all[usize::from(dice) % all.len()];
                let name = name(bytes);
                match dice / 26 {
                    0..=2 => store.put(chunk(bytes)).await.unwrap(),
                    3 => {
                        let both = store.put_all(vec![chunk(bytes), chunk(&all[0]), chunk(bytes)]).await;
                        assert!(both.iter().all(Result::is_ok), "{both:?}");
                    }
                    4 | 5 => match store.remove(name.id).await {
                        Ok(()) | Err(StoreError::NotFound { .. } | StoreError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    },
                    6 => drop(store.touch(&[name, name]).await.unwrap()),
                    7 => match store.verify(name.id).await {
                        Ok(()) | Err(StoreError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    },
                    8 if dice % 4 == 0 => store.flush().await.unwrap(),
                    _ => match store.read(name.id, 0, name.len).await {
                        // Punched under the reader's hands: it notices.
                        Ok(part) => assert!(part.check().is_err() || part.bytes == bytes),
                        Err(error) => assert_eq!(error, StoreError::NotFound { chunk: name.id }),
                    },
                }
            }
        });
    }
    let end = async {
        while let Some(task) = tasks.join_next().await {
            task.unwrap()
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(100), end).await.expect("nobody hangs");
    assert!(store.inner.lanes.iter().all(|lane| lane.waiting() == (0, 0)));
    let mut store = store;
    let mut found_before = None;
    for lose_index in [false, true, true] {
        let mut found = Vec::new();
        for bytes in all.iter() {
            let read = read(&store, name(bytes)).await;
            assert!(read.as_ref().is_none_or(|read| read == bytes));
            assert_eq!(store.touch(&[name(bytes)]).await.unwrap(), [read.is_some()]);
            found.push(read.is_some());
        }
        let listed = store.list(common::id::PgId(0), 1, None, 100).await.unwrap().0;
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.corrupt), (found.iter().filter(|found| **found).count() as u64, 0));
        assert_eq!(stats.bytes, listed.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>());
        assert_eq!(*found_before.get_or_insert(found.clone()), found);
        drop(store);
        if lose_index {
            std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        store = open_dir(&World::real(), config(dir.path()), STORE).await.unwrap();
    }
}
