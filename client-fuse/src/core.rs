//! What all parts of a client share, the table of open files, and the background tasks.

use crate::accessed::Accessed;
use crate::cache::ChunkCache;
use crate::chunks::Chunks;
use crate::config::{ClientConfig, MEMORY_MIN};
use crate::inode::{Inode, State};
use crate::leases::Leases;
use crate::link::Servers;
use crate::locks::Locks;
use crate::meta::Meta;
use crate::report::Reports;
use crate::stats::Counters;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::proto::meta::{Attr, Cred, Op};
use common::task::Tasks;
use common::units::len_u64;
use common::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Flights that are hashed and stored at once.
const UPLOADS_MAX: usize = 8;
/// How often old unsaved data is looked for.
const WRITE_BEHIND_TICK: Duration = Duration::from_millis(200);

/// The inside of a [`crate::Client`].
pub(crate) struct Core {
    pub(crate) config: ClientConfig,
    pub(crate) world: World,
    pub(crate) tasks: Tasks,
    pub(crate) counters: Arc<Counters>,
    pub(crate) meta: Arc<Meta>,
    pub(crate) chunks: Chunks,
    pub(crate) cache: ChunkCache,
    pub(crate) leases: Arc<Leases>,
    pub(crate) locks: Locks,
    pub(crate) accessed: Accessed,
    /// Bytes that may still become unsaved, what they cost beside themselves included.
    pub(crate) unsaved: Semaphore,
    /// How many that is when nothing is unsaved.
    #[cfg(test)]
    pub(crate) unsaved_max: u64,
    /// Somebody waits for room in `unsaved`.
    pub(crate) pressure: Notify,
    pub(crate) uploads: Semaphore,
    table: Mutex<Table>,
    /// The last removal under way that does not keep its file has ended.
    removed: Notify,
    /// The last open under way of its half has ended.
    opened: Notify,
    /// Losses of decided changes that somebody was told of.
    pub(crate) told_losses: AtomicU64,
    /// Held while inode numbers are reserved.
    pub(crate) reserving: tokio::sync::Mutex<()>,
}

/// Files that are open, or closed with unsaved data.
#[derive(Debug, Default)]
struct Table {
    files: BTreeMap<InodeId, Arc<Inode>>,
    /// Opens under way whose file is not in the table yet: those that began before the last question what is open, and
    /// later ones, in the half that `later` names.
    opening: [usize; 2],
    later: usize,
    /// Removals under way that began when nothing was open: the metaservers do not keep the file.
    removing: usize,
    /// Files without a name that the metaservers keep for this session.
    orphans: BTreeSet<InodeId>,
}

/// An open under way: until it is dropped, names that begin to be removed keep their files.
pub(crate) struct Opening<'a>(&'a Core, usize);

/// The removal of a name under way.
pub(crate) struct Removal<'a> {
    core: &'a Core,
    /// Whether the metaservers are to keep the file: it may be open here.
    pub(crate) keep: bool,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        if !self.keep {
            let mut table = self.core.table();
            table.removing -= 1;
            if table.removing == 0 {
                self.core.removed.notify_waiters();
            }
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.opening[self.1] -= 1;
        if table.opening[self.1] == 0 {
            self.0.opened.notify_waiters();
        }
    }
}

impl Core {
    /// Connects and starts the background tasks.
    pub(crate) async fn start(
        link: Arc<dyn Servers>,
        reports: Reports,
        config: ClientConfig,
        world: World,
        tasks: Tasks,
    ) -> Result<Arc<Core>, Fault> {
        let counters = Arc::new(Counters::default());
        let meta = Meta::connect(link.clone(), world.clone(), &config, counters.clone()).await?;
        let meta = Arc::new(meta);
        let memory = config.memory_bytes.max(MEMORY_MIN);
        let unsaved_max = memory / 2;
        let core = Arc::new(Core {
            chunks: Chunks::new(link, meta.clone(), world.clone(), counters.clone(), reports, &tasks),
            cache: ChunkCache::new(len_u64(memory - unsaved_max)),
            leases: Arc::default(),
            locks: Locks::default(),
            accessed: Accessed::default(),
            unsaved: Semaphore::new(unsaved_max),
            #[cfg(test)]
            unsaved_max: len_u64(unsaved_max),
            pressure: Notify::new(),
            uploads: Semaphore::new(UPLOADS_MAX),
            table: Mutex::default(),
            removed: Notify::new(),
            opened: Notify::new(),
            told_losses: AtomicU64::new(0),
            reserving: tokio::sync::Mutex::default(),
            config,
            world,
            tasks,
            counters,
            meta: meta.clone(),
        });
        let restored = Arc::downgrade(&core);
        core.meta.on_new_life(Box::new(move || restored.upgrade().iter().for_each(|core| core.begins_anew())));
        core.tasks.spawn("keep alive", |stop| meta.clone().keep_alive_loop(stop));
        core.tasks.spawn("settle", |stop| meta.settle_loop(stop));
        if core.config.write_leases {
            let tell = core.clone();
            core.tasks.spawn("tell", |stop| tell.tell_loop(stop));
        }
        if core.config.leases {
            let leases = core.clone();
            core.tasks.spawn("leases", |stop| leases.lease_loop(stop));
            let opens = core.clone();
            core.tasks.spawn("opens", |stop| opens.tell_opens_loop(stop));
        }
        if core.config.relatime {
            let accesses = core.clone();
            core.tasks.spawn("access times", |stop| accesses.access_loop(stop));
        }
        let behind = core.clone();
        core.tasks.spawn("write behind", |stop| behind.write_behind_loop(stop));
        Ok(core)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// To be held from before the request that opens a file until it is in the table. Waits for removals that began when
    /// nothing was open, also for those whose caller gave up: the file they remove cannot be opened. Those that begin now keep
    /// theirs.
    pub(crate) async fn opening(&self) -> Result<Opening<'_>, Fault> {
        let opening = {
            let mut table = self.table();
            let half = table.later;
            table.opening[half] += 1;
            Opening(self, half)
        };
        let deadline = self.meta.deadline();
        loop {
            let removed = self.removed.notified();
            tokio::pin!(removed);
            removed.as_mut().enable();
            let late = |_| Fault::new(Kind::Unavailable, "open: a removal under way does not end");
            if self.table().removing == 0 {
                let session = self.meta.session();
                if !session.is_certain() {
                    timeout_at(deadline, session.known()).await.map_err(late)?;
                }
                return Ok(opening);
            }
            timeout_at(deadline, removed).await.map_err(late)?;
        }
    }

    /// Waits until all opens have ended that are under way now. One call at a time.
    pub(crate) async fn opens_under_way(&self) -> Result<(), Fault> {
        let deadline = self.meta.deadline();
        // Should an earlier call have given up, some from before it are left in the other half.
        for _ in 0..2 {
            let before = {
                let mut table = self.table();
                let before = table.later;
                table.later = 1 - before;
                before
            };
            loop {
                let opened = self.opened.notified();
                tokio::pin!(opened);
                opened.as_mut().enable();
                if self.table().opening[before] == 0 {
                    break;
                }
                let late = |_| Fault::new(Kind::Unavailable, "an open under way does not end");
                timeout_at(deadline, opened).await.map_err(late)?;
            }
        }
        Ok(())
    }

    /// To be held while a name is removed.
    pub(crate) fn removal(&self) -> Removal<'_> {
        let mut table = self.table();
        let keep = table.opening != [0, 0] || !table.files.is_empty();
        table.removing += usize::from(!keep);
        Removal { core: self, keep }
    }

    /// As [`Core::removal`] without `keep`, of a file that is certainly not open here. `None`: it may be.
    pub(crate) fn removal_of(&self, ino: InodeId) -> Option<Removal<'_>> {
        let mut table = self.table();
        if table.opening != [0, 0] || table.files.contains_key(&ino) {
            return None;
        }
        table.removing += 1;
        Some(Removal { core: self, keep: false })
    }

    /// The file, if it is open here or has unsaved data.
    pub(crate) fn find(&self, ino: InodeId) -> Option<Arc<Inode>> {
        self.table().files.get(&ino).cloned()
    }

    /// All such files.
    pub(crate) fn files(&self) -> Vec<Arc<Inode>> {
        self.table().files.values().cloned().collect()
    }

    /// One more handle on a file. Returns it and the handle's number.
    ///
    /// # Errors
    /// `Gone` if its last name went before it was opened here: it may have been said that it is not.
    pub(crate) fn enter(&self, attr: &Attr) -> Result<(Arc<Inode>, u64), Fault> {
        let generation = self.meta.session().generation;
        let mut table = self.table();
        if attr.nlink == 0 && !table.files.contains_key(&attr.ino) {
            return Err(Fault::new(Kind::Gone, format!("{} was removed", attr.ino)));
        }
        let inode =
            table.files.entry(attr.ino).or_insert_with(|| Arc::new(Inode::new(attr.clone(), generation))).clone();
        let mut state = inode.lock();
        state.adopt(attr);
        state.handles += 1;
        state.opened += 1;
        let number = state.opened;
        drop(state);
        Ok((inode, number))
    }

    /// One handle less. True if it was the last.
    pub(crate) fn leave(&self, inode: &Arc<Inode>) -> bool {
        let mut state = inode.lock();
        state.handles -= 1;
        let last = state.handles == 0;
        drop(state);
        self.forget_idle(inode);
        last
    }

    /// Takes a file without handles and unsaved data out of the table.
    pub(crate) fn forget_idle(&self, inode: &Arc<Inode>) {
        let mut table = self.table();
        let state = inode.lock();
        let is_it = table.files.get(&inode.ino).is_some_and(|there| Arc::ptr_eq(there, inode));
        if is_it && state.handles == 0 && !state.is_unsaved() && !state.pumping {
            table.files.remove(&inode.ino);
        }
    }

    /// The file has no name any more, and the metaservers keep it for this session, perhaps for others, and for the trash.
    pub(crate) fn is_orphan(&self, ino: InodeId) -> bool {
        self.table().orphans.contains(&ino)
    }

    /// The last name of a file was removed while the metaservers were asked to keep it.
    pub(crate) fn orphaned(self: &Arc<Self>, ino: InodeId) {
        self.table().orphans.insert(ino);
        self.reap();
    }

    /// Lets go of orphans that are not open here, and have nothing unsaved.
    pub(crate) fn reap(self: &Arc<Self>) {
        let gone: Vec<InodeId> = {
            let mut table = self.table();
            if table.opening != [0, 0] || table.orphans.is_empty() {
                return;
            }
            let needed = |state: &State| state.handles > 0 || state.is_unsaved();
            let open = |ino: &InodeId| table.files.get(ino).is_some_and(|inode| needed(&inode.lock()));
            let gone: Vec<InodeId> = table.orphans.iter().filter(|ino| !open(ino)).copied().collect();
            table.orphans.retain(|ino| !gone.contains(ino));
            gone
        };
        for ino in gone {
            let core = self.clone();
            self.tasks.spawn_until_stop(async move {
                let op = Op::Release { ino };
                if let Err(fault) = core.change(&Cred::default(), op, core.meta.deadline()).await {
                    // The end of the session lets go of it.
                    warn!(op = "release", inode = %ino, error = %fault, "a removed file stays until this session ends");
                }
            });
        }
    }

    /// Brings what is known of an open file up to date with attributes that came.
    pub(crate) fn adopt(&self, attr: &Attr) {
        if let Some(inode) = self.find(attr.ino) {
            inode.lock().adopt(attr);
        }
    }

    /// Attributes that are certain now, with what is unsaved here.
    pub(crate) fn known_attr(&self, ino: InodeId) -> Option<Attr> {
        if !self.config.leases {
            return None;
        }
        let uptime = self.world.uptime();
        if let Some((attr, _)) = self.leases.attr(ino, uptime) {
            return Some(self.seen(attr));
        }
        // Of a file that this client is saving, all but what it saves is as it was.
        let inode = self.find(ino)?;
        let state = inode.lock();
        let before = self.leases.attr_before_saves(ino, uptime)?;
        let newer = if state.attr.version > before.version { &state.attr } else { &before };
        state.refreshed.then(|| self.with_access(state.with_unsaved(newer)))
    }

    /// Brings what is known of an open file up to date with attributes that came, and adds what is unsaved to them.
    pub(crate) fn seen(&self, attr: Attr) -> Attr {
        match self.find(attr.ino) {
            Some(inode) => {
                let mut state = inode.lock();
                state.adopt(&attr);
                self.with_access(state.with_unsaved(&attr))
            }
            None => self.with_access(attr),
        }
    }

    async fn write_behind_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let pressed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.pressure.notified() => true,
                () = tokio::time::sleep(WRITE_BEHIND_TICK) => false,
            };
            let (now, files) = (Instant::now(), self.files());
            let pressed = pressed && is_mostly_dirty(&files);
            for inode in files {
                let sealed = {
                    let mut state = inode.lock();
                    let old = state.dirty_since.is_some_and(|since| since + self.config.write_behind <= now);
                    if old || (pressed && !state.dirty.is_empty()) {
                        self.seal(&mut state);
                        true
                    } else {
                        false
                    }
                };
                if sealed {
                    self.launch(&inode);
                }
            }
            self.reap();
        }
    }

    /// The metadata went back to a backup: what is known of open files may never have been, under the same version.
    fn begins_anew(&self) {
        self.files().iter().for_each(|inode| inode.lock().lost_version());
    }
}

/// True if less of the budget is on its way to the servers than waits to be sent. Else what is on its way will make room:
/// a window that is still being filled is not cut for it, so that equal data becomes equal chunks.
fn is_mostly_dirty(files: &[Arc<Inode>]) -> bool {
    let (dirty, flying) = files.iter().fold((0, 0), |(dirty, flying), inode| {
        let held = inode.lock().budget_held();
        (dirty + held.0, flying + held.1)
    });
    dirty >= flying
}
