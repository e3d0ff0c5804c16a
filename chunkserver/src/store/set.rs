//! The data directories of one server as one store.
//!
//! A chunk is put where it is already, else into the directory with the largest free share; it is looked for in all.
//! A directory that is fenced takes nothing and vouches for nothing; its chunks count as lost and come back from peers. So do
//! those of one that does not open at the start ([`LeftOut`]).
//! One whose disk does not answer is passed over as long as that lasts ([`Store::is_silent`]).

use super::error::{OpenError, disk_error};
use super::identity::{self, Identity};
use super::read::Has;
use super::silent::{QUICK_MAX, READ_MAX};
use super::{Kept, Part, Store, StoreConfig, StoreError, StoreStats, VerifiedChunk};
use common::disk::Lock;
use common::id::{ChunkId, ClusterId, Epoch, PgId, ServerId};
use common::proto::chunk::ChunkRef;
use common::task::Tasks;
use common::units::len_u32;
use common::world::{World, at_once};
use futures::future::join_all;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::time::timeout;
use tracing::error;

/// Length at which a segment file is full, in bytes.
const SEGMENT_LEN_MAX: u64 = 1 << 30;
/// Data directories of one server, at most.
const DIRS_MAX: usize = 64;

/// What to do about a data directory that holds nothing while others of this server hold data, or does not open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingDir {
    /// Do not start: a disk may not be mounted.
    Refuse,
    /// Start without it ([`LeftOut`]).
    #[default]
    Skip,
    /// One that holds nothing is a new disk: make a store in it. One that does not open: start without it.
    Create,
}

/// A data directory that this run does without. It counts as fenced: what it holds counts as lost, and comes back from peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Which.
    pub dir: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// How the stores of a server are set up.
#[derive(Clone, Debug)]
pub struct SetConfig {
    /// The data directories, at least one.
    pub dirs: Vec<PathBuf>,
    /// Bytes that puts leave free on each.
    pub reserve_bytes: u64,
    /// Memory for the indexes' caches together, in bytes.
    pub index_cache_bytes: u64,
    /// What to do about one that is missing.
    pub missing: MissingDir,
    /// The cluster the data must belong to, if it is known.
    pub cluster: Option<ClusterId>,
}

/// All stores of a server. Cheap to clone.
#[derive(Clone)]
pub struct StoreSet {
    world: World,
    stores: Arc<Vec<Store>>,
    identity: Arc<Mutex<Vec<Identity>>>,
    left_out: Arc<Vec<LeftOut>>,
}

impl StoreSet {
    /// Opens all data directories, at the same time. At the server's first start it makes them, with a new instance.
    ///
    /// # Errors
    /// See [`OpenError`]: each names the directory, and what to do. That of one directory alone is none if others open, unless
    /// the configuration wants it so.
    pub async fn open(world: &World, tasks: &Tasks, config: &SetConfig) -> Result<StoreSet, OpenError> {
        let (outside, wanted) = (world.clone(), config.clone());
        let (found, mut failed) = world.blocking(move || identities(&outside, &wanted)).await?;
        let share = config.index_cache_bytes / common::units::len_u64(found.len().max(1));
        let (mut opening, mut of_each) = (Vec::new(), Vec::new());
        for Dir { dir, identity, lock } in found {
            of_each.push((dir.clone(), identity));
            let config = StoreConfig {
                dir,
                reserve_bytes: config.reserve_bytes,
                segment_len_max: SEGMENT_LEN_MAX,
                index_cache_bytes: share,
            };
            opening.push(Store::open(world, tasks, config, identity.store, lock));
        }
        let (mut stores, mut identities) = (Vec::new(), Vec::new());
        for (opened, (dir, identity)) in join_all(opening).await.into_iter().zip(of_each) {
            match opened {
                Ok(store) => {
                    stores.push(store);
                    identities.push(identity);
                }
                Err(error) => failed.push((dir, config.may_go_without(error)?)),
            }
        }
        if stores.is_empty() {
            return Err(failed.swap_remove(0).1); // there is at least one directory
        }
        let left_out = failed.into_iter().map(|(dir, why)| LeftOut { dir, why: why.to_string() });
        let left_out: Vec<LeftOut> = left_out.collect();
        for LeftOut { dir, why } in &left_out {
            error!(dir = %dir.display(), why, "data directory left out: its copies count as lost");
        }
        Ok(StoreSet {
            world: world.clone(),
            stores: Arc::new(stores),
            identity: Arc::new(Mutex::new(identities)),
            left_out: Arc::new(left_out),
        })
    }

    /// The data directories that this run does without.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Whose data this is. `cluster` is zero and `server` is `None` before [`StoreSet::adopt`]; `store` is the first
    /// directory's.
    pub fn identity(&self) -> Identity {
        self.identity.lock().expect("no panic holds this lock")[0]
    }

    /// The highest cluster epoch that any directory was served in; 0: not known yet. A directory that was away may have
    /// missed it.
    pub fn epoch(&self) -> Epoch {
        let identities = self.identity.lock().expect("no panic holds this lock");
        identities.iter().map(|identity| identity.epoch).max().unwrap_or_default()
    }

    /// Writes down, durably, which cluster and server this is, and in which epoch: when that is new, before anything is
    /// served under it. The epoch never goes back. A directory that does not take it is fenced, as long as another one does.
    ///
    /// # Errors
    /// `OtherCluster`, `OtherServer`: it is another one already. `Disk`: no directory takes it.
    pub async fn adopt(&self, cluster: ClusterId, server: ServerId, epoch: Epoch) -> Result<(), OpenError> {
        let set = self.clone();
        self.world.blocking(move || set.adopt_now(cluster, server, epoch)).await
    }

    fn adopt_now(&self, cluster: ClusterId, server: ServerId, epoch: Epoch) -> Result<(), OpenError> {
        let mut identities = self.identity.lock().expect("no panic holds this lock");
        let mut failed = Vec::new();
        for (store, identity) in self.stores.iter().zip(identities.iter_mut()) {
            let epoch = epoch.max(identity.epoch);
            let adopted = Identity { cluster, server: Some(server), epoch, ..*identity };
            if adopted == *identity {
                continue;
            }
            check_cluster(store.dir(), identity, Some(cluster))?;
            if identity.server.is_some_and(|known| known != server) {
                let known = identity.server.map_or_else(String::new, |known| known.to_string());
                let what = format!("belongs to server {known}, but the cluster calls this server {server}");
                return Err(OpenError::Identity { path: store.dir().to_path_buf(), what });
            }
            match identity::write(&*self.world.disk, store.dir(), &adopted) {
                Ok(()) => *identity = adopted,
                Err(error) => failed.push((store, error)),
            }
        }
        if failed.len() == self.stores.len() {
            return failed.pop().map_or(Ok(()), |(_, error)| Err(error));
        }
        for (store, error) in failed {
            store.inner.fence(&error);
        }
        Ok(())
    }

    /// The stores, in the order of the configuration.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// [`Store::put`], into the directory that has the chunk or else the most room.
    ///
    /// # Errors
    /// As there; of the directory that was chosen. `Fenced`, `NoSpace`: no directory takes it.
    pub async fn put(&self, chunk: VerifiedChunk) -> Result<(), StoreError> {
        self.put_all(vec![chunk]).await.pop().expect("one answer for each chunk")
    }

    /// [`Store::put_all`]. Answers come in the order of the chunks.
    pub async fn put_all(&self, chunks: Vec<VerifiedChunk>) -> Vec<Result<(), StoreError>> {
        if let [only] = &self.stores[..] {
            let silent = || chunks.iter().map(|_| Err(only.slow("put"))).collect();
            return if only.is_silent() { silent() } else { only.put_all(chunks).await };
        }
        let choice = self.choose(chunks.iter().map(VerifiedChunk::chunk).collect()).await;
        let mut parts: BTreeMap<usize, (Vec<usize>, Vec<VerifiedChunk>)> = BTreeMap::new();
        for (at, (chunk, store)) in chunks.into_iter().zip(choice).enumerate() {
            let (places, part) = parts.entry(store).or_default();
            places.push(at);
            part.push(chunk);
        }
        let puts = parts.into_iter().map(|(store, (places, part))| async move {
            places.into_iter().zip(self.stores[store].put_all(part).await)
        });
        let mut answers: Vec<(usize, Result<(), StoreError>)> =
            at_once(join_all(puts)).await.into_iter().flatten().collect();
        answers.sort_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// For each chunk the store it goes to: one that has it, else one that has a copy to be replaced and room for another, else
    /// the one with the largest free share.
    async fn choose(&self, chunks: Arc<[ChunkRef]>) -> Vec<usize> {
        let looks = self.stores.iter().map(|store| {
            let chunks = Arc::clone(&chunks);
            store.quick(QUICK_MAX, move |store| {
                let has: Vec<Has> = chunks.iter().map(|chunk| store.has(chunk.id)).collect();
                (store.stats(), has)
            })
        });
        // A store that does not answer has nothing and takes nothing.
        let found = at_once(join_all(looks)).await.into_iter().map(Option::unzip);
        let (mut stats, has): (Vec<Option<StoreStats>>, Vec<Option<Vec<Has>>>) = found.unzip();
        let store_of = |(n, chunk): (usize, &ChunkRef)| {
            let with = |what: Has| has.iter().position(|has| has.as_ref().is_some_and(|has| has[n] == what));
            let room = |at: &usize| stats[*at].as_ref().is_some_and(|stats| stats.free > u64::from(chunk.len));
            if let Some(there) = with(Has::Copy).or_else(|| with(Has::Unreadable).filter(room)) {
                return there;
            }
            // Of directories that share a disk, the one that holds least.
            let share = |of: &StoreStats| (u128::from(of.free) << 40) / u128::from(of.capacity.max(1));
            let rank = |at: &usize| {
                let stats = stats[*at].as_ref();
                let usable = stats.is_some_and(|stats| stats.fenced == 0); // a full one says so; the others cannot
                (usable, stats.map(share), stats.map(|stats| Reverse(stats.bytes)), Reverse(*at))
            };
            let best = (0..stats.len()).max_by_key(rank).expect("at least one store");
            if let Some(stats) = &mut stats[best] {
                stats.free = stats.free.saturating_sub(chunk.len.into());
            }
            best
        };
        chunks.iter().enumerate().map(store_of).collect()
    }

    /// [`Store::touch`]: true if any directory vouches for the chunk. Fenced and silent ones vouch for nothing.
    ///
    /// # Errors
    /// `Fenced`, `Slow`: all of them are.
    pub async fn touch(&self, chunks: &[ChunkRef]) -> Result<Vec<bool>, StoreError> {
        let mut touched = vec![false; chunks.len()];
        let mut fenced = Vec::new();
        for store in self.stores.iter() {
            let open: Vec<usize> = (0..chunks.len()).filter(|at| !touched[*at]).collect();
            let asked: Vec<ChunkRef> = open.iter().map(|at| chunks[*at]).collect();
            let found = if store.is_silent() { Err(store.slow("touch")) } else { store.touch(&asked).await };
            match found {
                Ok(found) => open.into_iter().zip(found).for_each(|(at, found)| touched[at] = found),
                Err(error) => fenced.push(error),
            }
        }
        match fenced.pop() {
            Some(error) if fenced.len() + 1 == self.stores.len() => Err(error),
            _ => Ok(touched),
        }
    }

    /// [`Store::read`] from the first directory that can.
    ///
    /// # Errors
    /// As there; `NotFound` only if no directory has it.
    pub async fn read(&self, id: ChunkId, offset: u32, len: u32) -> Result<Part, StoreError> {
        let set = self.clone();
        let read = self.world.blocking(move || set.read_here(id, offset, len));
        timeout(READ_MAX, read).await.unwrap_or_else(|_| {
            let slow = self.stores.iter().find(|store| store.is_silent()).unwrap_or(&self.stores[0]);
            Err(slow.slow_read())
        })
    }

    /// [`StoreSet::read`] on this thread, for as long as the disk takes.
    ///
    /// # Errors
    /// As there.
    pub fn read_here(&self, id: ChunkId, offset: u32, len: u32) -> Result<Part, StoreError> {
        let mut worst = StoreError::NotFound { chunk: id };
        for store in self.stores.iter() {
            if store.is_silent() {
                worst = store.slow("read");
                continue;
            }
            match store.read_here(id, offset, len) {
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => worst = error,
                Ok(part) => return Ok(part),
            }
        }
        Err(worst)
    }

    /// [`Store::verify`] of every copy that counts.
    ///
    /// # Errors
    /// As there, the first one; `NotFound` only if no directory has it, `Slow` if a silent one may, `Fenced` if only one that
    /// is fenced may.
    pub async fn verify(&self, id: ChunkId) -> Result<(), StoreError> {
        let mut outcome = Err(StoreError::NotFound { chunk: id });
        for store in self.stores.iter().filter(|store| !store.is_silent()) {
            outcome = first_of(outcome, store.verify(id).await);
        }
        self.unless_silent("verify", outcome)
    }

    /// That the others do not have it says nothing while one does not answer.
    fn unless_silent<T>(&self, doing: &'static str, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        match (outcome, self.stores.iter().find(|store| store.is_silent())) {
            (Err(StoreError::NotFound { .. }), Some(silent)) => Err(silent.slow(doing)),
            (outcome, _) => outcome,
        }
    }

    /// [`Store::wish`] for every copy. False: for none.
    pub fn wish(&self, id: ChunkId, nonce: u64) -> bool {
        let answering = self.stores.iter().filter(|store| !store.is_silent());
        answering.map(|store| store.wish(id, nonce)).filter(|stands| *stands).count() > 0
    }

    /// [`Store::unwish`] for every copy.
    pub fn unwish(&self, id: ChunkId, nonce: u64) {
        self.stores.iter().for_each(|store| store.unwish(id, nonce));
    }

    /// All wishes are void: what they rely on was said in an epoch that is over.
    pub fn void_wishes(&self) {
        self.stores.iter().for_each(Store::void_wishes);
    }

    /// [`Store::delete`] of every copy whose wish stands: each has been vouched for by itself, or has not. The chunk's
    /// length.
    ///
    /// # Errors
    /// As there, the first one; `NotFound` only if no directory has it, `Slow` if a silent one may: what that has is found to
    /// be garbage once more.
    pub async fn delete(&self, id: ChunkId, nonce: u64) -> Result<u32, StoreError> {
        let mut outcome = Err(StoreError::NotFound { chunk: id });
        for store in self.stores.iter().filter(|store| !store.is_silent()) {
            outcome = first_of(outcome, store.delete(id, nonce).await);
        }
        self.unless_silent("delete", outcome)
    }

    /// [`Store::range`] over all directories that are not fenced or given up: each chunk once, as damaged only if every copy
    /// is.
    ///
    /// # Errors
    /// `Slow`: one of them does not answer. `Fenced`, `Slow`: none is left.
    pub async fn range(
        &self,
        from: ChunkId,
        upto: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<Kept>, Option<ChunkId>), StoreError> {
        let mut all: BTreeMap<ChunkId, Kept> = BTreeMap::new();
        let (mut next, mut passed_over) = (None, Vec::new());
        for store in self.stores.iter() {
            if store.is_given_up() {
                passed_over.push(store.slow("list"));
                continue;
            }
            if store.is_silent() {
                return Err(store.slow("list"));
            }
            match store.range(from, upto, limit).await {
                Ok((found, more)) => {
                    next = [next, more].into_iter().flatten().min();
                    for copy in found {
                        let known = all.entry(copy.id).or_insert(copy);
                        known.damaged &= copy.damaged;
                        known.unreadable |= copy.unreadable;
                        known.put_secs = known.put_secs.max(copy.put_secs);
                    }
                }
                Err(error @ StoreError::Fenced { .. }) => passed_over.push(error),
                Err(error) => return Err(error),
            }
        }
        match passed_over.pop() {
            Some(error) if passed_over.len() + 1 == self.stores.len() => return Err(error),
            _ => {}
        }
        // Behind where the shortest list ends, some of the others' chunks may be missing.
        Ok((all.into_values().filter(|copy| next.is_none_or(|next| copy.id < next)).collect(), next))
    }

    /// [`Store::list`] over all directories that are not fenced: each chunk once.
    ///
    /// # Errors
    /// `Fenced`, `Slow`: all of them are.
    pub async fn list(
        &self,
        pg: PgId,
        pg_count: u32,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<(Vec<ChunkRef>, bool), StoreError> {
        let mut all: BTreeMap<ChunkId, ChunkRef> = BTreeMap::new();
        let (mut more, mut failed) = (false, Vec::new());
        // Where the shortest of the cut lists ends: behind it, some of the others' chunks may be missing.
        let mut complete_to: Option<ChunkId> = None;
        for store in self.stores.iter() {
            let listed =
                if store.is_silent() { Err(store.slow("list")) } else { store.list(pg, pg_count, after, limit).await };
            match listed {
                Ok((found, cut)) => {
                    if cut {
                        more = true;
                        let last = found.last().map(|chunk| chunk.id);
                        complete_to = complete_to.map_or(last, |id| last.map(|last| last.min(id)));
                    }
                    all.extend(found.into_iter().map(|chunk| (chunk.id, chunk)));
                }
                Err(error) => failed.push(error),
            }
        }
        if let Some(error) = failed.pop().filter(|_| failed.len() + 1 == self.stores.len()) {
            return Err(error);
        }
        let within = |chunk: &ChunkRef| complete_to.is_none_or(|last| chunk.id <= last);
        let mut chunks: Vec<ChunkRef> = all.into_values().filter(within).collect();
        more |= chunks.len() > limit;
        chunks.truncate(limit);
        Ok((chunks, more))
    }

    /// The directories' numbers together.
    pub fn stats(&self) -> StoreStats {
        self.sum(self.stores.iter().map(Store::stats))
    }

    /// [`Store::stats_soon`] of all directories together: always within a second or so.
    pub async fn stats_soon(&self) -> StoreStats {
        self.sum(join_all(self.stores.iter().map(Store::stats_soon)).await)
    }

    fn sum(&self, all: impl IntoIterator<Item = StoreStats>) -> StoreStats {
        let mut sum = StoreStats { fenced: len_u32(self.left_out.len()), ..StoreStats::default() };
        for stats in all {
            sum.capacity += stats.capacity;
            sum.free += stats.free;
            sum.chunks += stats.chunks;
            sum.bytes += stats.bytes;
            sum.corrupt += stats.corrupt;
            sum.fenced += stats.fenced;
            sum.full += stats.full;
            sum.syncs += stats.syncs;
            sum.segment_bytes += stats.segment_bytes;
        }
        sum
    }

    /// True if at least one directory takes writes.
    pub fn takes_writes(&self) -> bool {
        self.stores.iter().any(|store| store.fenced().is_none() && !store.is_silent())
    }

    /// Makes all indexes durable, so that the next start is quick.
    pub async fn flush(&self) {
        for store in self.stores.iter() {
            let _ = store.flush().await; // a store that cannot was fenced, and said so
        }
    }
}

impl fmt::Debug for StoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stores.iter()).finish()
    }
}

/// What to go by of what two directories say of their copies of a chunk: an error, else that it is done, else that one is
/// fenced or does not answer in time (its copy counts as lost), else that none has it.
fn first_of<T>(so_far: Result<T, StoreError>, answer: Result<T, StoreError>) -> Result<T, StoreError> {
    let rank = |answer: &Result<T, StoreError>| match answer {
        Err(StoreError::NotFound { .. }) => 0,
        Err(StoreError::Fenced { .. } | StoreError::Slow { .. }) => 1,
        Ok(_) => 2,
        Err(_) => 3,
    };
    if rank(&answer) > rank(&so_far) { answer } else { so_far }
}

/// A data directory to open.
struct Dir {
    dir: PathBuf,
    identity: Identity,
    lock: Lock,
}

impl SetConfig {
    /// The error of one directory, if the server starts without that.
    fn may_go_without(&self, error: OpenError) -> Result<OpenError, OpenError> {
        if error.is_of_the_disk() && self.missing != MissingDir::Refuse { Ok(error) } else { Err(error) }
    }
}

/// What there is in a data directory: `None`: it is not there; no identity: nothing was ever stored in it.
type Look = Option<(Lock, Option<Identity>)>;

/// A directory, and why it does not open.
type Failed = (PathBuf, OpenError);

/// The directories to open with their identities, made where they are new; and those to go without.
fn identities(world: &World, config: &SetConfig) -> Result<(Vec<Dir>, Vec<Failed>), OpenError> {
    if config.dirs.is_empty() || config.dirs.len() > DIRS_MAX {
        let what = format!("1 to {DIRS_MAX} data directories are needed, not {}", config.dirs.len());
        return Err(OpenError::Config { what });
    }
    let (mut found, mut failed) = (Vec::<(PathBuf, Look)>::new(), Vec::<Failed>::new());
    for (at, dir) in config.dirs.iter().enumerate() {
        if config.dirs[..at].contains(dir) {
            return Err(OpenError::Config { what: format!("{}: the same data directory twice", dir.display()) });
        }
        match look(world, dir) {
            Ok(look) => found.push((dir.clone(), look)),
            Err(error) => failed.push((dir.clone(), config.may_go_without(error)?)),
        }
    }
    let seen = |(dir, found): &(PathBuf, Look)| {
        found.as_ref().and_then(|(_, identity)| *identity).map(|identity| (dir.clone(), identity))
    };
    let registered = found.iter().filter_map(seen).find(|(_, identity)| identity.server.is_some());
    let first = registered.or_else(|| found.iter().find_map(seen));
    if first.as_ref().is_none_or(|(_, first)| first.server.is_none()) && !failed.is_empty() {
        return Err(failed.swap_remove(0).1); // it may be the one that tells whose data this is
    }
    // Before the first registration nothing was stored: then an empty directory is one that the first start did not reach.
    let (first_dir, first) = first.unwrap_or_else(|| {
        let (instance, store) = (world.random_u128(), world.random_u128());
        (
            config.dirs[0].clone(),
            Identity { cluster: ClusterId::default(), server: None, instance, store, epoch: Epoch(0) },
        )
    });
    let mut opened: Vec<Dir> = Vec::new();
    for (dir, found) in found {
        let made = match (found, first.server.is_some(), config.missing) {
            (Some((lock, Some(identity))), ..) => Ok((lock, identity)),
            (_, true, MissingDir::Refuse | MissingDir::Skip) => Err(OpenError::Missing { dir: dir.clone() }),
            (found, true, MissingDir::Create) => create(world, &dir, found.map(|(lock, _)| lock), first),
            (found, false, _) => Ok(create(world, &dir, found.map(|(lock, _)| lock), first)?),
        };
        let (lock, identity) = match made {
            Ok(made) => made,
            Err(error) => {
                failed.push((dir, config.may_go_without(error)?));
                continue;
            }
        };
        check_cluster(&dir, &identity, config.cluster)?;
        if identity.instance != first.instance {
            return Err(OpenError::OtherServer { dir, other: first_dir });
        }
        if opened.iter().any(|other| other.identity.store == identity.store) {
            let what = format!("{}: a copy of another data directory of this server", dir.display());
            return Err(OpenError::Config { what });
        }
        opened.push(Dir { dir, identity, lock });
    }
    Ok((opened, failed))
}

/// Locks a directory and reads whose it is.
fn look(world: &World, dir: &Path) -> Result<Look, OpenError> {
    if !world.disk.exists(dir) {
        return Ok(None);
    }
    let lock = identity::lock(&*world.disk, dir)?;
    Ok(Some((lock, identity::read(&*world.disk, dir)?)))
}

/// Makes a store for this server in a directory that holds none.
fn create(world: &World, dir: &Path, lock: Option<Lock>, of: Identity) -> Result<(Lock, Identity), OpenError> {
    world.disk.create_dir_all(dir).map_err(disk_error("create", dir))?;
    let lock = match lock {
        Some(lock) => lock,
        None => identity::lock(&*world.disk, dir)?,
    };
    if let Some(identity) = identity::read(&*world.disk, dir)? {
        return Ok((lock, identity)); // somebody was quicker
    }
    let identity = Identity { store: world.random_u128(), ..of };
    identity::write(&*world.disk, dir, &identity)?;
    Ok((lock, identity))
}

fn check_cluster(dir: &Path, identity: &Identity, wanted: Option<ClusterId>) -> Result<(), OpenError> {
    match wanted {
        Some(wanted) if identity.cluster != ClusterId::default() && identity.cluster != wanted => {
            Err(OpenError::OtherCluster { dir: dir.to_path_buf(), found: identity.cluster, wanted })
        }
        _ => Ok(()),
    }
}
