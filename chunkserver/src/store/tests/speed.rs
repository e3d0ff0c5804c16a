//! Not tests: what the store does on this machine's disk. `cargo nextest run -p chunkserver speed --run-ignored only
//! --no-capture`, with `DFS_STORE_SPEED_DIR` to choose the disk.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "prints figures")]

use super::{STORE, bytes, chunk, name, open_dir};
use crate::store::{Store, StoreConfig, VerifiedChunk};
use common::disk::Disk;
use common::world::World;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Of this process, user and system, in ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

struct Meter {
    what: String,
    began: Instant,
    cpu: Duration,
    syncs: u64,
}

impl Meter {
    fn start(what: impl Into<String>, store: &Store) -> Meter {
        Meter { what: what.into(), began: Instant::now(), cpu: cpu(), syncs: store.stats().syncs }
    }

    fn stop(self, store: &Store, count: u64, len: u64) {
        let (secs, cpu) = (self.began.elapsed().as_secs_f64(), (cpu() - self.cpu).as_secs_f64());
        let (rate, bytes) = (count as f64 / secs, (count * len) as f64);
        println!(
            "{:40} {rate:9.0}/s {:8.1} MB/s  {:6.1} us cpu each  {:5.2} cpu s/GiB  {} syncs for {count}",
            self.what,
            bytes / secs / 1e6,
            cpu / count as f64 * 1e6,
            cpu / bytes * f64::from(1 << 30),
            store.stats().syncs - self.syncs,
        );
    }
}

async fn store(dir: &Path) -> Store {
    let config = StoreConfig { segment_len_max: 1 << 30, ..super::config(dir) };
    open_dir(&World::real(), config, STORE).await.unwrap()
}

/// `tasks` at a time, each putting one of these after another; made before the clock starts.
async fn puts(store: &Store, what: &str, tasks: u64, each: u64, len: usize, seed: u64) {
    let make =
        |task: u64| (0..each).map(|n| chunk(&bytes(seed + task * each + n, len))).collect::<Vec<VerifiedChunk>>();
    let work: Vec<Vec<VerifiedChunk>> = (0..tasks).map(make).collect();
    let meter = Meter::start(what, store);
    let mut all = JoinSet::new();
    for chunks in work {
        let store = store.clone();
        all.spawn(async move {
            for chunk in chunks {
                store.put(chunk).await.unwrap();
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    meter.stop(store, tasks * each, u64::try_from(len).unwrap());
}

async fn reads(store: &Store, what: &str, tasks: u64, each: u64, chunks: &[(u64, usize)], len: u32) {
    let names: Vec<_> = chunks.iter().map(|(n, len)| name(&bytes(*n, *len))).collect();
    let meter = Meter::start(what, store);
    let mut all = JoinSet::new();
    for task in 0..tasks {
        let (store, names) = (store.clone(), names.clone());
        all.spawn(async move {
            for n in 0..each {
                let pick = u32::from_le_bytes(bytes(task * each + n, 4).try_into().unwrap());
                let name = names[usize::try_from(pick).unwrap() % names.len()];
                let offset = (pick / 7) % (name.len - len + 1);
                store.read(name.id, offset, len).await.unwrap().check().unwrap();
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    meter.stop(store, tasks * each, len.into());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn speed() {
    let parent = std::env::var_os("DFS_STORE_SPEED_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let dir = tempfile::tempdir_in(parent).unwrap();
    let store = store(dir.path()).await;
    const MIB: usize = 1 << 20;
    puts(&store, "put 4 KiB, 1 task", 1, 2000, 4096, 0).await;
    puts(&store, "put 4 KiB, 8 tasks", 8, 1500, 4096, 1_000_000).await;
    puts(&store, "put 4 KiB, 64 tasks", 64, 300, 4096, 2_000_000).await;
    puts(&store, "put 4 MiB, 1 task", 1, 100, 4 * MIB, 3_000_000).await;
    puts(&store, "put 4 MiB, 4 tasks", 4, 40, 4 * MIB, 4_000_000).await;
    let batch = (0..4096).map(|n| chunk(&bytes(5_000_000 + n, 4096))).collect::<Vec<_>>();
    let meter = Meter::start("put_all 4 KiB, 1024 in a batch", &store);
    assert!(store.put_all(batch).await.iter().all(Result::is_ok));
    meter.stop(&store, 4096, 4096);
    let large: Vec<(u64, usize)> = (0..100).map(|n| (3_000_000 + n, 4 * MIB)).collect();
    let small: Vec<(u64, usize)> = (0..2000).map(|n| (n, 4096)).collect();
    reads(&store, "read 4 KiB of 4 MiB, 1 task, first", 1, 2000, &large, 4096).await;
    reads(&store, "read 4 KiB of 4 MiB, 1 task, again", 1, 5000, &large, 4096).await;
    reads(&store, "read 4 KiB of 4 MiB, 8 tasks", 8, 3000, &large, 4096).await;
    reads(&store, "read 4 KiB of 4 KiB, 1 task", 1, 5000, &small, 4096).await;
    reads(&store, "read 4 MiB, 1 task", 1, 200, &large, 4 << 20).await;
    let asked: Vec<_> = small.iter().map(|(n, len)| name(&bytes(*n, *len))).collect();
    let meter = Meter::start("touch, 1000 in a batch", &store);
    for batch in asked.chunks(1000) {
        assert!(store.touch(batch).await.unwrap().iter().all(|held| *held));
    }
    meter.stop(&store, 2000, 4096);
    let began = Instant::now();
    store.flush().await.unwrap();
    println!("flush {:?}; {:?}", began.elapsed(), store.stats());
    drop(store);
    let began = Instant::now();
    let again = self::store(dir.path()).await;
    println!("open after flush {:?}", began.elapsed());
    drop(again);
    common::disk::RealDisk.remove_dir_all(&dir.path().join("index")).unwrap();
    let began = Instant::now();
    let again = self::store(dir.path()).await;
    println!("open without index {:?} {:?}", began.elapsed(), again.recovered());
}
