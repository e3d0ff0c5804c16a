//! What a store promises, on a simulated disk that loses power, rots and fills up, and on the real one.
#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "test code: a panic is a failed test")]

mod compact;
mod crash;
mod damage;
mod real;
mod rules;
mod set;
mod speed;
mod wishes;

use super::counts::Counts;
use super::format::Log;
use super::{Store, StoreConfig, StoreError, StoreSet, VerifiedChunk};
use common::id::ChunkId;
use common::net::TcpNet;
use common::proto::chunk::ChunkRef;
use common::task::Tasks;
use common::testing::SimDisk;
use common::time::{Clock, Time};
use common::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const STORE: u128 = 77;

struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Time {
        Time { secs: 1_000_000, nanos: 0 }
    }

    fn uptime(&self) -> Duration {
        Duration::ZERO
    }
}

fn world(disk: &SimDisk, seed: u64) -> World {
    World::simulated(Arc::new(TcpNet), Arc::new(disk.clone()), Arc::new(StoppedClock), seed)
}

fn config(dir: impl Into<PathBuf>) -> StoreConfig {
    StoreConfig { dir: dir.into(), reserve_bytes: 0, segment_len_max: 600 << 10, index_cache_bytes: 32 << 20 }
}

/// Opens the store at `/d` of a simulated disk.
async fn open(disk: &SimDisk, seed: u64) -> Result<Store, super::OpenError> {
    let world = world(disk, seed);
    world.disk.create_dir_all(Path::new("/d")).map_err(super::error::disk_error("create", Path::new("/d")))?;
    open_dir(&world, config("/d"), STORE).await
}

async fn open_dir(world: &World, config: StoreConfig, store: u128) -> Result<Store, super::OpenError> {
    let lock = super::identity::lock(&*world.disk, &config.dir)?;
    Store::open(world, &Tasks::new(), config, store, lock).await
}

/// Bytes that no other (seed, length) has.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).update(&len.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn chunk(bytes: &[u8]) -> VerifiedChunk {
    VerifiedChunk::of(bytes).unwrap()
}

fn name(bytes: &[u8]) -> ChunkRef {
    ChunkRef { id: ChunkId::of(bytes), len: u32::try_from(bytes.len()).unwrap() }
}

/// The whole chunk, checked as a reader does. `None`: some error.
async fn read(store: &Store, name: ChunkRef) -> Option<Vec<u8>> {
    let part = store.read(name.id, 0, name.len).await.ok()?;
    part.check().ok()?;
    Some(part.bytes.to_vec())
}

/// The segment files of a store, by path.
fn segment_files(world: &World, dir: &str) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for log in ["segments-small", "segments-large"] {
        let dir = Path::new(dir).join(log);
        for name in world.disk.list(&dir).unwrap() {
            let path = dir.join(name);
            let len = world.disk.open(&path).unwrap().len().unwrap();
            files.insert(path, len);
        }
    }
    files
}

/// Compacts all that is worth it. `None`: it failed.
async fn compact(store: &Store) -> Option<u64> {
    store.compact(|_| Duration::ZERO).await.ok()
}

/// True if what the store counts of its segments is what its rows say.
fn live_as_counted(store: &Store) -> bool {
    Log::ALL.into_iter().all(|log| {
        let counted = Counts::recount(&store.inner.index, log).unwrap();
        let stored = Counts::load(&store.inner.index, log).unwrap();
        let lane = store.inner.lane(log);
        let of = |segment| (lane.count(segment).live, stored.row(segment).live);
        let all: BTreeSet<u32> = counted.segments().chain(lane.counts()).map(|(segment, _)| segment).collect();
        all.into_iter().all(|segment| of(segment) == (counted.row(segment).live, counted.row(segment).live))
    })
}

impl Store {
    /// Deletes a copy, as who was granted it.
    async fn remove(&self, id: ChunkId) -> Result<(), StoreError> {
        self.wish(id, 1);
        self.delete(id, 1).await.map(|_| ())
    }
}

impl StoreSet {
    async fn remove(&self, id: ChunkId) -> Result<(), StoreError> {
        self.wish(id, 1);
        self.delete(id, 1).await.map(|_| ())
    }
}
