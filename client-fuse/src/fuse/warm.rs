//! Pages for reads that will come: a chunk of which many small parts were read here and there is read whole, once, and given to the
//! kernel, which then reads it without asking ([`Client::take_dense`] says when that pays). The memory is the kernel's page
//! cache, which makes room when it is needed elsewhere.
//!
//! What the kernel is given takes the place of what it has, so it must never be older. Invariants:
//! 1. Nothing is given of a file that this mount may write to: while a handle is open for writing, or an operation cuts the file
//!    ([`Writing`]). A writer voids what is being fetched, and waits for what is being given at this moment.
//! 2. Nothing is given that was read before another mount's change: whoever makes the kernel forget voids and waits likewise, and
//!    what is fetched afterwards needs a lease, which comes back only behind that change.
//! 3. What is given is of the version that the kernel's other pages of the file are of. (The end of a file, which is given to tell
//!    how long it is, needs no lease: whoever drops pages voids it, and it is given only while none of them is older.)
//!
//! All that is looked at once more afterwards: a mount that stood still in between, or whose giving took longer than a recall may
//! wait, takes back what it gave.
//!
//! [`Client::take_dense`]: client_fuse::Client::take_dense

use super::Shared;
use super::files::OpenFile;
use client_fuse::Around;
use common::id::InodeId;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Stretches that are fetched or given at once, at most: each is up to 8 MiB of memory.
const FILLS_MAX: usize = 4;

/// Ends of files that are fetched or given at once, a page each.
const ENDS_MAX: usize = 32;

/// How long the end of a file is fetched for somebody who reads, perhaps something else of it.
const END_LIMIT: Duration = Duration::from_millis(300);

/// Who writes, and what is on its way to the kernel.
#[derive(Debug)]
pub(super) struct Warm {
    table: Mutex<Table>,
    room: Arc<Semaphore>,
    ends: Arc<Semaphore>,
    /// Something was given.
    given: Notify,
    bytes: AtomicU64,
}

impl Default for Warm {
    fn default() -> Warm {
        let (table, given, bytes) = Default::default();
        let [room, ends] = [FILLS_MAX, ENDS_MAX].map(|most| Arc::new(Semaphore::new(most)));
        Warm { table, room, ends, given, bytes }
    }
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    writers: HashMap<InodeId, u32>,
    fills: BTreeMap<(InodeId, u64), Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fetching,
    Giving,
}

/// What became of pages for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// So many bytes.
    Yes(u64),
    /// They are not current any more.
    No,
    /// The kernel does not take them.
    Refused,
}

/// Held by whoever may change a file.
#[derive(Debug)]
pub(super) struct Writing {
    warm: Arc<Warm>,
    ino: InodeId,
}

/// A stretch on its way.
#[derive(Debug)]
pub(super) struct Filling {
    warm: Arc<Warm>,
    key: (InodeId, u64),
    _room: OwnedSemaphorePermit,
}

impl Table {
    /// What is being fetched of the file is void. Whether something of it is being given.
    fn void(&mut self, ino: InodeId) -> bool {
        let of_it: Vec<((InodeId, u64), Stage)> =
            self.fills.range((ino, 0)..=(ino, u64::MAX)).map(|(key, stage)| (*key, *stage)).collect();
        for (key, _) in of_it.iter().filter(|(_, stage)| *stage == Stage::Fetching) {
            self.fills.remove(key);
        }
        of_it.iter().any(|(_, stage)| *stage == Stage::Giving)
    }
}

impl Warm {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes given so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A file may be changed from now on, until this is dropped.
    pub(super) async fn writing(self: &Arc<Self>, ino: InodeId) -> Writing {
        *self.table().writers.entry(ino).or_default() += 1;
        let writing = Writing { warm: Arc::clone(self), ino };
        self.void(&[ino]).await;
        writing
    }

    /// What was fetched of these files by now is not given any more when this returns.
    pub(super) async fn void(&self, files: &[InodeId]) {
        loop {
            let given = self.given.notified(); // made before the look: hears of all that ends after it
            let is_busy = {
                let mut table = self.table();
                files.iter().filter(|ino| table.void(**ino)).count() > 0
            };
            if !is_busy {
                return;
            }
            given.await;
        }
    }

    /// Begins to fetch, unless somebody may write to the file.
    fn begin(self: &Arc<Self>, ino: InodeId, room: OwnedSemaphorePermit) -> Option<Filling> {
        let mut table = self.table();
        if table.writers.contains_key(&ino) {
            return None;
        }
        table.last += 1;
        let key = (ino, table.last);
        table.fills.insert(key, Stage::Fetching);
        Some(Filling { warm: Arc::clone(self), key, _room: room })
    }
}

impl Filling {
    /// Gives what was fetched, unless it is void by now. Blocks.
    fn give(self, give: impl FnOnce()) {
        let still = self.warm.table().fills.get_mut(&self.key).map(|stage| *stage = Stage::Giving);
        if still.is_some() {
            give();
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.warm.table().fills.remove(&self.key);
        self.warm.given.notify_waiters();
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut table = self.warm.table();
        if let Some(count) = table.writers.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                table.writers.remove(&self.ino);
            }
        }
    }
}

impl Shared {
    /// A read through this file has found a chunk to be read densely: has the kernel get all of it.
    pub(super) fn warm_up(self: &Arc<Self>, file: &Arc<OpenFile>, at: u64) {
        let Ok(room) = Arc::clone(&self.warm.room).try_acquire_owned() else { return };
        let Some(filling) = self.warm.begin(file.handle.ino(), room) else { return };
        let (shared, file) = (Arc::clone(self), Arc::clone(file));
        self.tasks.spawn_until_stop(async move {
            if !shared.client.is_leased(file.handle.ino()) {
                return;
            }
            // It is a guess: who reads on will hear of an error.
            let Ok(Some(around)) = shared.client.read_around(&file.handle, at).await else { return };
            let ino = file.handle.ino();
            let give = move || filling.give(|| shared.give_pages(ino, &around));
            let _ = tokio::task::spawn_blocking(give).await; // a mount that ends needs none
        });
    }

    fn give_pages(self: &Arc<Self>, ino: InodeId, around: &Around) {
        let is_current = || {
            let known = self.client.versions(ino).is_some_and(|versions| versions.now == around.version);
            known && self.client.is_leased(ino) && self.inodes.has_pages_of(ino, around.version)
        };
        if let Given::Yes(bytes) = self.give_if(ino, around, is_current) {
            self.warm.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Tells the kernel how long a file is that somebody reads, by giving it the last page. False: the file changes, or pages of it
    /// are being dropped. If it cannot be, the kernel will ask. `size`: of which it is to hear.
    pub(super) async fn give_end(self: &Arc<Self>, file: &OpenFile, size: u64) -> bool {
        let ino = file.handle.ino();
        let fetched = async {
            let room = Arc::clone(&self.warm.ends).acquire_owned().await.expect("never closed");
            let is_needed = self.inodes.may_end_before(ino, size); // still
            let filling = if is_needed { self.warm.begin(ino, room) } else { None };
            Some((filling?, self.client.read_end(&file.handle).await.ok()?))
        };
        let Ok(Some((filling, end))) = tokio::time::timeout(END_LIMIT, fetched).await else { return true };
        let Some(end) = end else { return false };
        let shared = Arc::clone(self);
        let give = move || {
            let is_current = || {
                let versions = shared.client.versions(ino).filter(|versions| versions.now == end.version);
                versions.is_some_and(|versions| !shared.inodes.has_older_pages(ino, versions.since))
            };
            let mut given = Given::No;
            filling.give(|| given = shared.give_if(ino, &end, is_current));
            if let Given::Yes(bytes) = given {
                shared.inodes.ends_at(ino, end.start + bytes);
            }
            given != Given::No
        };
        tokio::task::spawn_blocking(give).await.unwrap_or(true) // a mount that ends needs none
    }

    /// Gives these pages if `is_current` says so; takes them back if it does not any more. Blocks.
    fn give_if(self: &Arc<Self>, ino: InodeId, around: &Around, is_current: impl Fn() -> bool) -> Given {
        self.inodes.filled(ino, around.version);
        if !is_current() {
            return Given::No;
        }
        let bytes = self.coherence.give(ino, around.start, &around.pieces);
        if !is_current() {
            self.coherence.take_back(ino, around);
            self.recheck_soon(ino);
            return Given::No;
        }
        if bytes > 0 { Given::Yes(bytes) } else { Given::Refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::mpsc;

    const A: InodeId = InodeId(7);
    const B: InodeId = InodeId(8);

    fn begin(warm: &Arc<Warm>, ino: InodeId) -> Option<Filling> {
        warm.begin(ino, Arc::clone(&warm.room).try_acquire_owned().unwrap())
    }

    #[tokio::test]
    async fn a_writer_voids_what_is_fetched_and_nothing_is_fetched_beside_it() {
        let warm = Arc::new(Warm::default());
        let (ours, other) = (begin(&warm, A).unwrap(), begin(&warm, B).unwrap());
        let writing = warm.writing(A).await;
        ours.give(|| panic!("it is void"));
        let mut given = false;
        other.give(|| given = true);
        assert!(given, "another file");
        assert!(begin(&warm, A).is_none());
        let second = warm.writing(A).await;
        drop(writing);
        assert!(begin(&warm, A).is_none(), "the second one writes");
        drop(second);
        assert!(begin(&warm, A).is_some());
        assert!(warm.table().writers.is_empty() && warm.table().fills.is_empty());
    }

    #[tokio::test]
    async fn whoever_changes_a_file_waits_for_what_is_being_given() {
        let warm = Arc::new(Warm::default());
        let filling = begin(&warm, A).unwrap();
        let (in_it, is_in_it) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let giving = std::thread::spawn(move || {
            filling.give(|| {
                in_it.send(()).unwrap();
                may_go_on.recv().unwrap();
            });
        });
        is_in_it.recv().unwrap();
        let both = [A, B];
        let mut voiding = std::pin::pin!(warm.void(&both));
        let mut writing = std::pin::pin!(warm.writing(A));
        assert!(voiding.as_mut().now_or_never().is_none() && writing.as_mut().now_or_never().is_none());
        warm.void(&[B]).await;
        assert!(begin(&warm, A).is_none(), "a writer waits");
        go_on.send(()).unwrap();
        voiding.await;
        drop(writing.await);
        giving.join().unwrap();
        assert!(begin(&warm, A).is_some());
    }
}
