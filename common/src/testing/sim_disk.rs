//! A disk in memory that can lose power, fail a sync, rot, and run full: all from one seed.
//!
//! What is promised is what [`crate::disk`] assumes of a disk, and no more. After a power cut:
//! - contents that a sync covered and names that a `sync_dir` covered are there;
//! - of each write that no sync covered, any subset of its 512-byte sectors may be there, whatever was written before or
//!   after it; a longer file may end where it did, where it should, or at any kept sector;
//! - each creation, rename and removal that no `sync_dir` covered happened as a whole or not at all; one that happened
//!   implies the earlier ones of the same name.
//!
//! Left out: slow disks, file systems that write names and data in one order (they lose less than this one).

mod held;
#[cfg(test)]
mod tests;

use crate::disk::{AlignedBuf, Disk, File, Lock};
use crate::units::{len_u64, len_usize};
use held::{Change, Content, Link, NameChange, Node, reachable, surviving};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a hole consists of, in bytes.
const BLOCK: u64 = 4096;
const ROOT: Ino = Ino(0);
/// `EIO`
const EIO: i32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ino(u64);

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    sim: Arc<Mutex<Sim>>,
}

struct Sim {
    random: StdRng,
    nodes: BTreeMap<Ino, Node>,
    next_ino: u64,
    /// Changes of names that no `sync_dir` has covered, oldest first.
    renames: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    writes: u64,
    cut_after: Option<u64>,
    power: bool,
    fail_sync: BTreeSet<Ino>,
    bad_blocks: BTreeSet<(Ino, u64)>,
    total: u64,
    free: u64,
    /// Runs when the next sync of a file begins.
    meanwhile: Option<Meanwhile>,
}

/// See [`SimDisk::at_next_sync`].
type Meanwhile = Box<dyn FnOnce() + Send>;

impl SimDisk {
    /// An empty disk of 1 TiB with a root directory. All chances follow from the seed.
    pub fn new(seed: u64) -> SimDisk {
        let root = Node::Dir { live: BTreeMap::new(), durable: BTreeMap::new() };
        let sim = Sim {
            random: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::from([(ROOT, root)]),
            next_ino: 1,
            renames: Vec::new(),
            locks: BTreeSet::new(),
            writes: 0,
            cut_after: None,
            power: true,
            fail_sync: BTreeSet::new(),
            bad_blocks: BTreeSet::new(),
            total: 1 << 40,
            free: 1 << 40,
            meanwhile: None,
        };
        SimDisk { sim: Arc::new(Mutex::new(sim)) }
    }

    /// Lets the first `writes` operations that change something succeed (counted from the disk's creation; syncs count). In the
    /// next one the power goes: it fails, having done any part of its work, and all later ones fail.
    #[must_use]
    pub fn cut_after(self, writes: u64) -> SimDisk {
        self.lock().cut_after = Some(writes);
        self
    }

    /// Operations so far that change something.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Takes the power away now: every later operation on this disk fails.
    pub fn cut_power(&self) {
        self.lock().power = false;
    }

    /// True until the power was cut.
    pub fn has_power(&self) -> bool {
        self.lock().power
    }

    /// Takes the power away and gives the disk as it looks when it is back. Each call draws another outcome of the same cut.
    pub fn after_crash(&self) -> SimDisk {
        let mut sim = self.lock();
        sim.power = false;
        let mut random = StdRng::seed_from_u64(sim.random.next_u64());
        let mut nodes = sim.nodes.clone();
        let kept = surviving(&sim.renames, &mut random);
        for change in sim.renames.iter().zip(kept).filter_map(|(change, kept)| kept.then_some(change)) {
            change.apply(&mut nodes, false);
        }
        for node in nodes.values_mut() {
            match node {
                Node::Dir { live, durable } => live.clone_from(durable),
                Node::File(content) => content.crash(&mut random),
            }
        }
        let reachable = reachable(&nodes);
        nodes.retain(|ino, _| reachable.contains(ino));
        let used: u64 = nodes.values().map(Node::allocated).sum();
        let was_used: u64 = sim.nodes.values().map(Node::allocated).sum();
        let back = Sim {
            random,
            nodes,
            next_ino: sim.next_ino,
            renames: Vec::new(),
            locks: BTreeSet::new(),
            writes: 0,
            cut_after: None,
            power: true,
            fail_sync: BTreeSet::new(),
            bad_blocks: sim.bad_blocks.clone(),
            total: sim.total,
            free: (sim.free + was_used).saturating_sub(used),
            meanwhile: None,
        };
        SimDisk { sim: Arc::new(Mutex::new(back)) }
    }

    /// Makes the next sync of this file or directory fail with `EIO`. Any part of what it should have made durable is
    /// lost, though it can still be read, and a further sync succeeds: what Linux does.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_sync(&self, path: &Path) {
        let mut sim = self.lock();
        let ino = sim.find(path).expect("the file is there");
        sim.fail_sync.insert(ino);
    }

    /// Turns one byte of a file into another one, on the disk and in the cache.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip(&self, path: &Path, at: u64) {
        let mut sim = self.lock();
        let content = sim.content_at(path);
        let at = len_usize(at);
        content.live[at] ^= 0x55;
        if let Some(byte) = content.durable.get_mut(at) {
            *byte ^= 0x55;
        }
        for change in &mut content.unsynced {
            if let Change::Write { at: start, bytes } = change
                && let Some(byte) = at.checked_sub(*start).and_then(|at| bytes.get_mut(at))
            {
                *byte ^= 0x55;
            }
        }
    }

    /// Makes reads of the 4096-byte block that holds this byte fail with `EIO`.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_reads(&self, path: &Path, at: u64) {
        let mut sim = self.lock();
        let ino = sim.find(path).expect("the file is there");
        sim.bad_blocks.insert((ino, at / BLOCK));
    }

    /// Sets what [`Disk::space`] says, in bytes. What needs more than `free` fails with `StorageFull`.
    pub fn set_space(&self, total: u64, free: u64) {
        let mut sim = self.lock();
        (sim.total, sim.free) = (total, free);
    }

    /// Does something when the next sync of a file begins, in place of another thread that comes while it runs. It must
    /// not wait for that sync.
    pub fn at_next_sync(&self, work: impl FnOnce() + Send + 'static) {
        self.lock().meanwhile = Some(Box::new(work));
    }

    /// Takes back what [`SimDisk::at_next_sync`] was told, if no sync came.
    pub fn no_sync_came(&self) {
        self.lock().meanwhile = None;
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().expect("no panic holds this lock")
    }

    fn handle(&self, ino: Ino, direct: bool) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.clone(), ino, direct })
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl Sim {
    fn up(&self) -> io::Result<()> {
        if self.power { Ok(()) } else { Err(io::Error::other("simulated power cut")) }
    }

    /// Counts an operation that changes something. `Ok(false)`: the power goes in the middle of it.
    fn count(&mut self) -> io::Result<bool> {
        self.up()?;
        if self.cut_after.is_some_and(|cut| self.writes >= cut) {
            self.power = false;
            return Ok(false);
        }
        self.writes += 1;
        Ok(true)
    }

    fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for part in path.components() {
            let name = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
            };
            at = match self.nodes.get(&at) {
                Some(Node::Dir { live, .. }) => *live.get(name).ok_or(io::ErrorKind::NotFound)?,
                _ => return Err(io::ErrorKind::NotADirectory.into()),
            };
        }
        Ok(at)
    }

    /// The directory and the last name of a path.
    fn parent(&self, path: &Path) -> io::Result<(Ino, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        match self.nodes.get(&dir) {
            Some(Node::Dir { .. }) => Ok((dir, name.into())),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn content(&mut self, ino: Ino) -> &mut Content {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(content)) => content,
            _ => unreachable!("file handles are of files"),
        }
    }

    fn content_at(&mut self, path: &Path) -> &mut Content {
        let ino = self.find(path).expect("the file is there");
        self.content(ino)
    }

    fn file(&self, path: &Path) -> io::Result<Ino> {
        let ino = self.find(path)?;
        match self.nodes.get(&ino) {
            Some(Node::File(_)) => Ok(ino),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn add(&mut self, node: Node) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        self.nodes.insert(ino, node);
        ino
    }

    /// Changes names: visible at once, durable later. With the power gone in the middle it may still have happened.
    fn change_names(&mut self, gone: Option<Link>, new: Option<Link>) -> io::Result<()> {
        let done = self.count()?;
        if let (Some((_, _, ino)), None) = (&gone, &new)
            && let Some(node) = self.nodes.get(ino)
        {
            self.free += node.allocated();
        }
        let change = NameChange { gone, new };
        change.apply(&mut self.nodes, true);
        self.renames.push(change);
        if done { Ok(()) } else { self.up() }
    }

    /// Makes the waiting changes that `now` picks durable, and the earlier ones of the same names with them.
    fn settle(&mut self, now: impl Fn(&NameChange) -> bool) {
        let mut picked: Vec<bool> = self.renames.iter().map(now).collect();
        for late in (0..picked.len()).rev() {
            for early in 0..late {
                picked[early] |= picked[late] && self.renames[early].shares_name(&self.renames[late]);
            }
        }
        let mut picked = picked.into_iter();
        let (settled, waiting) = self.renames.drain(..).partition(|_| picked.next().unwrap_or(false));
        self.renames = waiting;
        let settled: Vec<NameChange> = settled;
        for change in settled {
            change.apply(&mut self.nodes, false);
        }
    }

    /// Takes space for a file that is to occupy `[0, end)`.
    fn allocate(&mut self, ino: Ino, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(self.content(ino).allocated);
        if more > self.free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.free -= more;
        self.content(ino).allocated += more;
        Ok(())
    }

    fn change_content(&mut self, ino: Ino, change: Change) -> io::Result<()> {
        let done = self.count()?;
        self.content(ino).change(change);
        if done { Ok(()) } else { self.up() }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let sim = self.lock();
        sim.up()?;
        Ok(self.handle(sim.file(path)?, false))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let sim = self.lock();
        sim.up()?;
        Ok(self.handle(sim.file(path)?, true))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut sim = self.lock();
        sim.up()?;
        let (dir, name) = sim.parent(path)?;
        if sim.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let ino = sim.add(Node::File(Content::default()));
        sim.change_names(None, Some((dir, name, ino)))?;
        Ok(self.handle(ino, false))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.up()?;
        let mut missing: Vec<&Path> = path.ancestors().take_while(|path| sim.find(path).is_err()).collect();
        while let Some(path) = missing.pop() {
            let (dir, name) = sim.parent(path)?;
            let ino = sim.add(Node::Dir { live: BTreeMap::new(), durable: BTreeMap::new() });
            sim.change_names(None, Some((dir, name, ino)))?;
            sim.settle(|change| change.new.as_ref().is_some_and(|(_, _, new)| *new == ino));
        }
        let ino = sim.find(path)?;
        match sim.nodes.get(&ino) {
            Some(Node::Dir { .. }) => Ok(()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let sim = self.lock();
        sim.up()?;
        match sim.nodes.get(&sim.find(dir)?) {
            Some(Node::Dir { live, .. }) => Ok(live.keys().map(PathBuf::from).collect()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.up()?;
        let ino = sim.find(from)?;
        let (from_dir, from_name) = sim.parent(from)?;
        let (to_dir, to_name) = sim.parent(to)?;
        if let Ok(old) = sim.find(to) {
            let source_is_dir = matches!(sim.nodes.get(&ino), Some(Node::Dir { .. }));
            match sim.nodes.get(&old) {
                Some(Node::Dir { live, .. }) if !live.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                Some(Node::Dir { .. }) if !source_is_dir => return Err(io::ErrorKind::IsADirectory.into()),
                Some(Node::File(_)) if source_is_dir => return Err(io::ErrorKind::NotADirectory.into()),
                Some(node) => sim.free += if old == ino { 0 } else { node.allocated() },
                None => {}
            }
        }
        sim.change_names(Some((from_dir, from_name, ino)), Some((to_dir, to_name, ino)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.up()?;
        let ino = sim.file(path)?;
        let (dir, name) = sim.parent(path)?;
        sim.change_names(Some((dir, name, ino)), None)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for name in self.list(path)? {
            let below = path.join(name);
            if self.list(&below).is_ok() {
                self.remove_dir_all(&below)?;
            } else {
                self.remove(&below)?;
            }
        }
        let mut sim = self.lock();
        let ino = sim.find(path)?;
        let (dir, name) = sim.parent(path)?;
        sim.change_names(Some((dir, name, ino)), None)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.up()?;
        let ino = sim.find(dir)?;
        if !sim.count()? {
            return sim.up();
        }
        if sim.fail_sync.remove(&ino) {
            sim.renames.retain(|change| !change.links().any(|(dir, _, _)| *dir == ino));
            return Err(io::Error::from_raw_os_error(EIO));
        }
        sim.settle(|change| change.links().any(|(dir, _, _)| *dir == ino));
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.lock().find(path).is_ok()
    }

    fn space(&self, _: &Path) -> io::Result<(u64, u64)> {
        let sim = self.lock();
        sim.up()?;
        Ok((sim.total, sim.free))
    }

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let there = self.exists(path);
        if !there {
            self.create(path)?;
        }
        let mut sim = self.lock();
        sim.up()?;
        if !sim.locks.insert(path.into()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Locked { disk: self.clone(), path: path.into() }))
    }
}

struct Locked {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.path);
    }
}

struct SimFile {
    disk: SimDisk,
    ino: Ino,
    direct: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.ino.0)
    }
}

impl File for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let mut sim = self.disk.lock();
        sim.up()?;
        let end = at.checked_add(len_u64(buf.len())).ok_or(io::ErrorKind::InvalidInput)?;
        let blocks = at / BLOCK..end.div_ceil(BLOCK);
        if !buf.is_empty() && sim.bad_blocks.range((self.ino, blocks.start)..(self.ino, blocks.end)).next().is_some() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let live = &sim.content(self.ino).live;
        let bytes = live.get(len_usize(at)..len_usize(end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bufs: &[&[u8]], at: u64) -> io::Result<()> {
        if self.direct && !matches!(bufs, [buf] if AlignedBuf::takes(buf, at)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a direct write takes one aligned buffer"));
        }
        let mut sim = self.disk.lock();
        sim.up()?;
        let bytes = bufs.concat();
        if bytes.is_empty() {
            return Ok(());
        }
        sim.allocate(self.ino, at + len_u64(bytes.len()))?;
        sim.change_content(self.ino, Change::Write { at: len_usize(at), bytes })
    }

    fn sync(&self) -> io::Result<()> {
        let meanwhile = self.disk.lock().meanwhile.take();
        if let Some(work) = meanwhile {
            work();
        }
        let mut sim = self.disk.lock();
        if !sim.count()? {
            return sim.up();
        }
        if sim.fail_sync.remove(&self.ino) {
            let mut random = StdRng::seed_from_u64(sim.random.next_u64());
            sim.content(self.ino).sync_some(&mut random);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        sim.content(self.ino).sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut sim = self.disk.lock();
        sim.up()?;
        Ok(len_u64(sim.content(self.ino).live.len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut sim = self.disk.lock();
        sim.up()?;
        let content = sim.content(self.ino);
        if len <= len_u64(content.live.len()) {
            let spare = content.allocated.saturating_sub(len);
            content.allocated -= spare;
            sim.free += spare;
        }
        sim.change_content(self.ino, Change::SetLen(len_usize(len)))
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        let mut sim = self.disk.lock();
        sim.up()?;
        sim.allocate(self.ino, at + len)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let (from, to) = (at.next_multiple_of(BLOCK), (at + len) / BLOCK * BLOCK);
        if from >= to {
            return Ok(());
        }
        let mut sim = self.disk.lock();
        sim.change_content(self.ino, Change::Punch { from: len_usize(from), to: len_usize(to) })
    }
}
