//! The state machine's store: which directory is live, what it holds, snapshots of it.
//!
//! In `state/`: `CURRENT` names the live directory (`kv-...`), `SNAPSHOT` the newest snapshot (`snap-...`) and what is in
//! it. Both files are replaced by rename. A directory that neither names is left over, and removed at start.
//!
//! Invariants:
//! 1. The rows `applied` and `members` are in the batch of the entries they speak of: the store is always exactly the
//!    state after some entry.
//! 2. A snapshot is a checkpoint of the store with a flush: durable before anybody learns of it, so the log may be purged
//!    up to it.
//! 3. Another store takes the place of this one only whole: written, verified, synced, then `CURRENT`.

use super::types::{LogId, Members};
use crate::store::keys::{FAMILIES, RAFT};
use bytes::Bytes;
use common::disk::{Disk, read_checked, write_checked};
use common::kv::memory::MemoryKv;
use common::kv::rocks::{RocksKv, Tuning};
use common::kv::{Batch, Kv, KvError, KvRead};
use common::world::World;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// What is applied, and by which members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The newest entry applied.
    pub last: Option<LogId>,
    /// The newest membership applied.
    pub members: Members,
}

/// A snapshot: a directory that can be opened as a store.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What is in it.
    pub applied: Applied,
    /// Where.
    pub dir: Arc<Dir>,
}

/// A directory of ours. Removed when its last user is gone, if it was given up.
#[derive(Debug)]
pub struct Dir {
    /// Where it is.
    pub path: PathBuf,
    disk: Arc<dyn Disk>,
    given_up: AtomicBool,
}

/// A store that is open. Reads go on in it after another one took its place.
#[derive(Debug)]
pub struct Mounted {
    kv: Box<dyn Kv>, // dropped before the directory goes
    dir: Dir,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    world: World,
    root: PathBuf,
    tuning: Tuning,
    mounted: RwLock<Arc<Mounted>>,
    applied: Mutex<Applied>,
    applied_index: AtomicU64,
    /// Held while a batch is written, and while a checkpoint is taken.
    writing: Mutex<()>,
    snapshot: Mutex<Option<Snapshot>>,
    /// Bytes written since the last flush began.
    unflushed: AtomicU64,
}

#[derive(Serialize, Deserialize)]
struct SnapshotFile {
    version: u8,
    name: String,
    applied: Applied,
}

const VERSION: u8 = 1;
pub(super) const ROW_APPLIED: &[u8] = b"applied";

impl Dir {
    /// A directory that stays.
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Dir {
        Dir { path, disk, given_up: AtomicBool::new(false) }
    }

    /// It stays, or is ours no more.
    pub(super) fn keep(&self) {
        self.given_up.store(false, Ordering::Relaxed);
    }

    /// It may go.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.given_up.load(Ordering::Relaxed)
            && let Err(error) = self.disk.remove_dir_all(&self.path)
        {
            tracing::warn!(dir = %self.path.display(), %error, "remove"); // the next start tries again
        }
    }
}

impl Mounted {
    /// The store.
    pub fn kv(&self) -> &dyn Kv {
        &*self.kv
    }
}

impl State {
    /// Opens the state in `root`, or makes an empty one.
    pub fn open(world: &World, root: &Path, tuning: Tuning) -> io::Result<Arc<State>> {
        let disk = &world.disk;
        disk.create_dir_all(root)?;
        let snapshot = match read_checked(&**disk, &root.join("SNAPSHOT"))? {
            Some(bytes) => snapshot_of(world, root, &bytes)?,
            None => None,
        };
        let current = match read_checked(&**disk, &root.join("CURRENT"))? {
            Some(name) => String::from_utf8(name).map_err(io::Error::other)?,
            None => {
                let name = format!("kv-{:016x}", world.random_u64());
                mount(world, root, &name, &tuning)?.kv.flush().map_err(io::Error::other)?;
                write_checked(&**disk, root, "CURRENT", name.as_bytes())?;
                name
            }
        };
        for left in disk.list(root)? {
            let left = left.to_string_lossy().into_owned();
            let named = left == current || snapshot.as_ref().is_some_and(|s| s.dir.path == root.join(&left));
            if !named && ["kv-", "snap-", "recv-"].iter().any(|prefix| left.starts_with(prefix)) {
                disk.remove_dir_all(&root.join(&left))?;
            }
        }
        let mounted = mount(world, root, &current, &tuning)?;
        let applied = applied_in(mounted.kv())?;
        Ok(Arc::new(State {
            world: world.clone(),
            root: root.to_path_buf(),
            tuning,
            mounted: RwLock::new(Arc::new(mounted)),
            applied_index: AtomicU64::new(index_of(&applied)),
            applied: Mutex::new(applied),
            writing: Mutex::new(()),
            snapshot: Mutex::new(snapshot),
            unflushed: AtomicU64::new(0),
        }))
    }

    /// The live store.
    pub fn mounted(&self) -> Arc<Mounted> {
        self.mounted.read().expect("no panic holds this lock").clone()
    }

    /// What is applied.
    pub fn applied(&self) -> Applied {
        self.applied_now().clone()
    }

    /// The index of the newest entry applied; 0 if there is none. A read that begins after this call sees at least it.
    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::Acquire)
    }

    fn applied_now(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().expect("no panic holds this lock")
    }

    /// Writes what `work` makes of the store, together with what is applied then. One call at a time.
    pub fn write<T>(
        &self,
        work: impl FnOnce(&dyn KvRead, &mut Applied) -> Result<(Batch, T), KvError>,
    ) -> io::Result<T> {
        let _writing = self.writing.lock().expect("no panic holds this lock");
        let mounted = self.mounted();
        let mut applied = self.applied();
        let (mut batch, value) = work(mounted.kv(), &mut applied).map_err(io::Error::other)?;
        batch.put(RAFT, ROW_APPLIED, encode(&applied)?);
        let bytes: usize = batch.changes.iter().map(|(_, k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
        mounted.kv.write(batch).map_err(io::Error::other)?;
        self.unflushed.fetch_add(common::units::len_u64(bytes), Ordering::Relaxed);
        let index = index_of(&applied);
        *self.applied_now() = applied;
        self.applied_index.store(index, Ordering::Release);
        Ok(value)
    }

    /// Bytes written since the last flush.
    pub fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
    }

    /// Makes what is applied durable: a restart replays less.
    pub fn flush(&self) -> io::Result<()> {
        let pending = self.unflushed.swap(0, Ordering::Relaxed);
        let result = self.mounted().kv.flush();
        if result.is_err() {
            self.unflushed.fetch_add(pending, Ordering::Relaxed);
        }
        result.map_err(io::Error::other)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.snapshot.lock().expect("no panic holds this lock").clone()
    }

    /// Takes a snapshot and makes it the newest.
    pub fn take_snapshot(&self) -> io::Result<Snapshot> {
        self.flush()?; // most of the work, while batches go on being written
        let path = self.root.join(format!("snap-{:016x}", self.world.random_u64()));
        let applied = {
            let _writing = self.writing.lock().expect("no panic holds this lock");
            self.mounted().kv.checkpoint(&path).map_err(io::Error::other)?;
            self.applied()
        };
        self.world.disk.sync_dir(&self.root)?;
        let snapshot = Snapshot { applied, dir: Arc::new(Dir::new(self.world.disk.clone(), path)) };
        self.keep(snapshot.clone())?;
        Ok(snapshot)
    }

    /// A copy of the store as it is after the newest entry applied, in a directory that goes when nobody uses it any more;
    /// and what `read` finds in it.
    pub fn checkpoint<T>(&self, read: impl FnOnce(&dyn KvRead) -> Result<T, KvError>) -> io::Result<(Applied, T, Dir)> {
        self.flush()?; // most of the work, while batches go on being written
        let path = self.root.join(format!("snap-{:016x}", self.world.random_u64()));
        let dir = Dir::new(self.world.disk.clone(), path);
        dir.give_up();
        let _writing = self.writing.lock().expect("no panic holds this lock");
        let mounted = self.mounted();
        mounted.kv.checkpoint(&dir.path).map_err(io::Error::other)?;
        let found = read(mounted.kv()).map_err(io::Error::other)?;
        Ok((self.applied(), found, dir))
    }

    /// Makes this directory, which is complete and synced, the state of a member that is being made. Durable when this
    /// returns.
    pub(super) fn adopt(world: &World, root: &Path, from: &Path) -> io::Result<()> {
        world.disk.create_dir_all(root)?;
        let name = format!("kv-{:016x}", world.random_u64());
        world.disk.rename(from, &root.join(&name))?;
        world.disk.sync_dir(root)?;
        write_checked(&*world.disk, root, "CURRENT", name.as_bytes())
    }

    /// Makes this the newest snapshot, durably.
    fn keep(&self, snapshot: Snapshot) -> io::Result<()> {
        let name = snapshot.dir.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut newest = self.snapshot.lock().expect("no panic holds this lock");
        if newest.as_ref().is_some_and(|newest| newest.applied.last > snapshot.applied.last) {
            snapshot.dir.give_up(); // one was installed while this was made
            return Ok(());
        }
        let file = SnapshotFile { version: VERSION, name, applied: snapshot.applied.clone() };
        write_checked(&*self.world.disk, &self.root, "SNAPSHOT", &encode(&file)?)?;
        if let Some(old) = newest.replace(snapshot) {
            old.dir.give_up();
        }
        Ok(())
    }

    /// An empty directory to receive a snapshot in.
    pub fn receiving_dir(&self) -> io::Result<Dir> {
        let path = self.root.join(format!("recv-{:016x}", self.world.random_u64()));
        self.world.disk.create_dir_all(&path)?;
        let dir = Dir::new(self.world.disk.clone(), path);
        dir.give_up(); // unless it is installed
        Ok(dir)
    }

    /// Puts a snapshot in the place of the store. Its files are complete and synced, and hold exactly `applied`.
    pub fn install(&self, applied: &Applied, from: &Dir) -> io::Result<()> {
        let name = format!("kv-{:016x}", self.world.random_u64());
        let path = self.root.join(&name);
        if from.given_up.swap(false, Ordering::Relaxed) {
            self.world.disk.rename(&from.path, &path)?; // received: nobody else needs it
            self.world.disk.sync_dir(&self.root)?;
        } else {
            copy_dir(&*self.world.disk, &from.path, &path)?;
        }
        let fresh = Arc::new(mount(&self.world, &self.root, &name, &self.tuning)?);
        let found = applied_in(fresh.kv())?;
        if found.last != applied.last {
            fresh.dir.give_up();
            let text = format!("the snapshot holds {:?}, not {:?}", found.last, applied.last);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        {
            let _writing = self.writing.lock().expect("no panic holds this lock");
            write_checked(&*self.world.disk, &self.root, "CURRENT", name.as_bytes())?;
            let index = index_of(&found);
            let old = std::mem::replace(&mut *self.mounted.write().expect("no panic holds this lock"), fresh);
            old.dir.give_up();
            *self.applied_now() = found;
            self.applied_index.store(index, Ordering::Release);
        }
        self.take_snapshot()?;
        Ok(())
    }
}

fn index_of(applied: &Applied) -> u64 {
    applied.last.map_or(0, |id| id.index)
}

pub(super) fn applied_in(kv: &dyn Kv) -> io::Result<Applied> {
    match kv.get(RAFT, ROW_APPLIED).map_err(io::Error::other)? {
        Some(bytes) => postcard::from_bytes(&bytes).map_err(io::Error::other),
        None => Ok(Applied::default()),
    }
}

pub(super) fn mount(world: &World, root: &Path, name: &str, tuning: &Tuning) -> io::Result<Mounted> {
    let path = root.join(name);
    let kv: Box<dyn Kv> = if world.is_simulated() {
        world.disk.create_dir_all(&path)?;
        Box::new(MemoryKv::open(world.disk.clone(), &path, &FAMILIES).map_err(io::Error::other)?)
    } else {
        Box::new(RocksKv::open(&path, &FAMILIES, tuning).map_err(io::Error::other)?)
    };
    Ok(Mounted { kv, dir: Dir::new(world.disk.clone(), path) })
}

fn snapshot_of(world: &World, root: &Path, bytes: &[u8]) -> io::Result<Option<Snapshot>> {
    let file: SnapshotFile = postcard::from_bytes(bytes).map_err(io::Error::other)?;
    let path = root.join(&file.name);
    if file.version != VERSION || !world.disk.exists(&path) {
        return Ok(None);
    }
    Ok(Some(Snapshot { applied: file.applied, dir: Arc::new(Dir::new(world.disk.clone(), path)) }))
}

/// Copies the files of a directory; durable when this returns.
fn copy_dir(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    const PIECE: u64 = 1 << 20;
    disk.create_dir_all(to)?;
    for name in disk.list(from)? {
        let (source, target) = (disk.open(&from.join(&name))?, disk.create(&to.join(&name))?);
        let len = source.len()?;
        let mut at = 0;
        while at < len {
            let mut piece = vec![0; common::units::len_usize(PIECE.min(len - at))];
            source.read_exact_at(&mut piece, at)?;
            target.write_all_at(&[&piece], at)?;
            at += common::units::len_u64(piece.len());
        }
        target.sync()?;
    }
    disk.sync_dir(to)
}

pub(super) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

/// The bytes of a file, from `at`, up to `len`.
pub(crate) fn read_piece(disk: &dyn Disk, path: &Path, at: u64, len: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; common::units::len_usize(len)];
    disk.open(path)?.read_exact_at(&mut piece, at)?;
    Ok(piece.into())
}
