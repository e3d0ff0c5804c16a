//! What the kernel may believe, and how it is told to forget.
//!
//! The kernel keeps names and attributes for as long as the client's lease of them lasts ([`Client::certain`]), so a mount
//! whose process stands still goes stale-free by itself. When the client forgets something earlier, the kernel is told
//! before the metaservers hear of it:
//! - all names at once, by the connection's *epoch* (`FUSE_NOTIFY_INC_EPOCH`, Linux 6.16): they are looked up again when they
//!   are used next. Unlike the notification about one name this takes no lock of the directory, which a local create holds
//!   while it waits for us. Where the kernel has no epochs, names are not kept at all.
//! - attributes (and ACLs) one inode at a time, and the pages of files that are open. Pages of a file that is closed stay: they are
//!   kept at the next open only if they are of the right version.
//!
//! What comes with a listing (`READDIRPLUS`) the kernel takes in when the program that lists gets to run again, and gives
//! it the epoch of that moment, not of the one when it asked. So whoever makes it forget waits for a moment after such an
//! answer. (A program that does not get to run within [`LISTED_WAIT`] is not covered.)
//!
//! A read between the moment when something was forgotten and the moment when the other mount's change is done may bring
//! old pages back. So a file that is open is asked about until its lease is back ([`Shared::recheck`]), and pages of another
//! version go then. The kernel by itself drops pages when it hears of another time of change, but lets other readers
//! have them until it is through. So before it is told attributes that it asks for as somebody reads, the pages of older versions
//! are gone ([`Shared::drop_stale_pages`]); and while there are any, it is told nothing that it may believe without asking.
//!
//! The kernel does not listen to attributes that cross a notification of ours about the inode, or an answer to another question
//! about it, be that an older one: a read at what was the end of the file would end there, though more was appended. So when
//! a file that others change while it is open gets longer, it hears so in another way: it is given the last page
//! ([`Shared::give_end`]). (That a file got shorter a read shows.) Not if the file is open for writing here as well: a read at its end may come back short, once, when
//! what others appended has become durable in this moment.
//!
//! (`splice` and `sendfile` ask for no attributes: they see what the kernel has until it is told to forget it.)
//!
//! A read that is answered with fewer bytes than the kernel takes the file to have makes it take the file for shorter, unless it
//! was told to forget the file after it asked: then it shows zeros up to the old end. So what it has asked for is answered before
//! a change elsewhere is let through, and before it is told to forget pages of another version. (What comes in the
//! moment between the last look and the notification is not covered.)
//!
//! [`Client::certain`]: client_fuse::Client::certain

use super::Shared;
use super::inodes::Begin;
use bytes::Bytes;
use client_fuse::Around;
use common::fault::Fault;
use common::id::{DataVersion, InodeId};
use common::name::Name;
use common::proto::meta::{Attr, Cred, MODE_ACL, MODE_DEFAULT_ACL};
use common::units::{len_u32, len_u64};
use fuser::{INodeNo, Notifier};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// `FUSE_NOTIFY_STORE`.
const STORE: i32 = 4;
/// `FUSE_NOTIFY_INC_EPOCH`.
const INC_EPOCH: i32 = 8;
/// Length of a notification's head, and of what comes before the bytes that are stored.
const HEAD_LEN: usize = 16;
const STORE_LEN: usize = 24;
/// How long reads under way are waited for.
const READS_LIMIT: Duration = Duration::from_millis(300);
/// How long it is waited until all that the kernel has asked for is taken, and how often that is looked at.
const QUEUE_LIMIT: Duration = Duration::from_millis(5);
const QUEUE_LOOK: Duration = Duration::from_micros(100);
/// How long a program that waits for a read takes to run again, and the kernel to take in how long the file is.
const END_TAKEN_WAIT: Duration = Duration::from_millis(1);
/// How long a program that waits for a listing takes to run again, and the kernel to take in what it shows.
const LISTED_WAIT: Duration = Duration::from_millis(10);
/// Files whose pages are dropped at once because somebody reads.
const DROPS_MAX: usize = 32;
/// Times the end of a file is read in order to be given, while the file changes.
const END_ROUNDS_MAX: usize = 8;
/// Pauses between two questions about a file whose lease is gone; the last one again and again.
const RECHECKS: [Duration; 6] = [
    Duration::from_millis(2),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];

/// See the module.
#[derive(Default)]
pub(super) struct Coherence {
    /// Held by who shows something to the kernel; passed by who makes it forget.
    gate: RwLock<()>,
    device: OnceLock<Device>,
    /// When the last listing was written of which something may be believed.
    listed: Mutex<Option<Instant>>,
    /// Pages of a file were dropped.
    dropped: Notify,
    /// So many files may have theirs dropped at once, each by a thread that waits: others need threads too.
    drops: Drops,
    /// Files that are being asked about; told when they are forgotten once more.
    rechecking: Mutex<BTreeMap<InodeId, Arc<Notify>>>,
}

struct Device {
    notifier: Notifier,
    connection: File,
    /// Its kernel can forget all names at once.
    has_epochs: bool,
}

impl Device {
    /// Requests of the kernel wait that nobody has taken yet.
    fn has_requests(&self) -> bool {
        let mut fds = [PollFd::new(self.connection.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Tells the kernel to forget attributes, and pages from `from` on if that is not negative. Blocks.
    fn forget(&self, ino: InodeId, from: i64) {
        if let Err(error) = self.notifier.inval_inode(INodeNo(ino.0), from, 0) {
            tracing::debug!(inode = %ino, %error, "the kernel keeps nothing of it");
        }
    }
}

/// The head of a notification that is so long in all: length, code, unique (0: a notification).
#[expect(clippy::host_endian_bytes, reason = "the kernel on this machine reads it")]
fn notice(len: u32, code: i32) -> [u8; HEAD_LEN] {
    let mut notice = [0; HEAD_LEN];
    notice[..4].copy_from_slice(&len.to_ne_bytes());
    notice[4..8].copy_from_slice(&code.to_ne_bytes());
    notice
}

/// Raises the epoch of a connection: all names are looked up again.
fn raise_epoch(mut device: &File) -> io::Result<()> {
    device.write_all(&notice(len_u32(HEAD_LEN), INC_EPOCH))
}

/// Puts bytes into the kernel's pages of a file, in one call and without a copy of ours.
#[expect(clippy::host_endian_bytes, reason = "the kernel on this machine reads it")]
fn store(mut device: &File, ino: InodeId, at: u64, pieces: &[Bytes]) -> io::Result<()> {
    let len: usize = pieces.iter().map(Bytes::len).sum();
    let head = notice(len_u32(HEAD_LEN + STORE_LEN + len), STORE);
    let mut what = [0; STORE_LEN]; // inode, offset, length
    what[..8].copy_from_slice(&ino.0.to_ne_bytes());
    what[8..16].copy_from_slice(&at.to_ne_bytes());
    what[16..20].copy_from_slice(&len_u32(len).to_ne_bytes());
    let slices: Vec<IoSlice<'_>> =
        [&head[..], &what].into_iter().chain(pieces.iter().map(|piece| &piece[..])).map(IoSlice::new).collect();
    device.write_vectored(&slices).map(|_| ()) // all or nothing
}

impl Coherence {
    /// The mount is there.
    pub(super) fn mounted(&self, notifier: Notifier, file: File) {
        let epochs = raise_epoch(&file);
        if let Err(error) = &epochs {
            tracing::info!(%error, "this kernel cannot forget all names at once: it keeps none");
        }
        let _ = self.device.set(Device { notifier, has_epochs: epochs.is_ok(), connection: file });
    }

    /// A listing was written of which something may be believed: by who holds [`Shared::showing`].
    pub(super) fn listed(&self) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Waits until what was listed by now is with the kernel. Blocks.
    fn wait_for_listings(&self) {
        let listed = *self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = listed.and_then(|at| LISTED_WAIT.checked_sub(at.elapsed())) {
            std::thread::sleep(rest);
        }
    }

    /// Gives the kernel these bytes of a file: how many. If it does not take them, it will ask.
    pub(super) fn give(&self, ino: InodeId, at: u64, pieces: &[Bytes]) -> u64 {
        let Some(device) = self.device.get() else { return 0 };
        if let Err(error) = store(&device.connection, ino, at, pieces) {
            tracing::debug!(inode = %ino, %error, "the kernel takes no pages of it");
            return 0;
        }
        pieces.iter().map(|piece| len_u64(piece.len())).sum()
    }

    /// The kernel is to forget them again.
    pub(super) fn take_back(&self, ino: InodeId, around: &Around) {
        let Some(device) = self.device.get() else { return };
        let len: usize = around.pieces.iter().map(Bytes::len).sum();
        let range = i64::try_from(around.start).and_then(|start| Ok((start, i64::try_from(len)?)));
        let (start, len) = range.expect("file sizes have 60 bits");
        if let Err(error) = device.notifier.inval_inode(INodeNo(ino.0), start, len) {
            tracing::debug!(inode = %ino, %error, "the kernel keeps nothing of it");
        }
    }

    fn keeps_names(&self) -> bool {
        self.device.get().is_some_and(|device| device.has_epochs)
    }
}

impl Shared {
    /// Shows attributes to the kernel: `show` gets those that are certain now and how long they may be believed, or `attr`,
    /// to be believed for no time. `place`: the name they are shown under is believed as well.
    pub(super) fn show(&self, attr: &Attr, place: Option<(InodeId, &Name)>, show: impl FnOnce(&Attr, Duration)) {
        let _gate = self.showing();
        self.show_within(attr, place, show);
    }

    /// To be held from before something is shown until it is written.
    pub(super) fn showing(&self) -> RwLockReadGuard<'_, ()> {
        self.coherence.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Shared::show`], by who holds [`Shared::showing`].
    pub(super) fn show_within(&self, attr: &Attr, place: Option<(InodeId, &Name)>, show: impl FnOnce(&Attr, Duration)) {
        let certain = match place {
            Some((dir, name)) if self.coherence.keeps_names() => self.client.certain_as(dir, name, attr.ino),
            Some(_) => None,
            None => self.client.certain(attr.ino),
        };
        let show = |attr: &Attr, left| {
            self.inodes.may_end_at(attr.ino, attr.size);
            show(attr, left);
        };
        match certain {
            // The kernel drops pages when it hears of another time; who reads meanwhile is to ask, and waits.
            Some((certain, _)) if self.has_stale_pages(certain.ino) => show(&certain, Duration::ZERO),
            Some((certain, left)) => show(&certain, left),
            None => show(attr, Duration::ZERO),
        }
    }

    /// True if the inode certainly has no ACL of this name. The kernel asks about those of every inode that it checks access
    /// to.
    pub(super) fn lacks_acl(&self, ino: InodeId, name: &[u8]) -> bool {
        let bit = match name {
            b"system.posix_acl_access" => MODE_ACL,
            b"system.posix_acl_default" => MODE_DEFAULT_ACL,
            _ => return false,
        };
        self.client.certain_mode(ino).is_some_and(|mode| mode & bit == 0)
    }

    /// The client does not answer for these any more. Returns when the kernel does not believe them either. Blocks.
    pub(super) fn forget(self: &Arc<Self>, inodes: &[InodeId]) {
        self.runtime.block_on(self.warm.void(inodes));
        // What was shown of them before is with the kernel when this is through.
        drop(self.coherence.gate.write().unwrap_or_else(PoisonError::into_inner));
        self.coherence.wait_for_listings();
        let Some(device) = self.coherence.device.get() else { return };
        if device.has_epochs
            && let Err(error) = raise_epoch(&device.connection)
        {
            tracing::debug!(%error, "the mount is gone");
        }
        let known: Vec<InodeId> = inodes.iter().copied().filter(|ino| self.inodes.is_known(*ino)).collect();
        let open: Vec<InodeId> = known.iter().copied().filter(|ino| self.client.is_open(*ino)).collect();
        self.wait_for_reads(device, &open);
        for ino in known {
            if open.contains(&ino) {
                let began = self.client.versions(ino).map(|versions| versions.now);
                let all = DataVersion(u64::MAX);
                let dropping = (self.inodes.begin_drop(ino, all) == Begin::Yours).then(|| self.dropping(ino));
                device.forget(ino, 0);
                if let Some(dropping) = dropping {
                    dropping.done(began);
                }
                self.recheck_soon(ino);
            } else {
                device.forget(ino, -1); // attributes only
            }
        }
        // What came between: the change for which this makes way is later.
        self.wait_for_reads(device, &open);
    }

    /// Waits until reads of these files that the kernel has asked for by now are answered, and have shown it where the file ends: for
    /// a while. Blocks.
    fn wait_for_reads(&self, device: &Device, files: &[InodeId]) {
        if files.is_empty() {
            return;
        }
        let start = Instant::now();
        while device.has_requests() && start.elapsed() < QUEUE_LIMIT {
            std::thread::sleep(QUEUE_LOOK);
        }
        for ino in files {
            self.requests.wait_for_reads(*ino, READS_LIMIT.saturating_sub(start.elapsed()));
        }
        let shown = files.iter().filter_map(|ino| self.inodes.shown_end(*ino)).max();
        if let Some(rest) = shown.and_then(|at| END_TAKEN_WAIT.checked_sub(at.elapsed())) {
            std::thread::sleep(rest);
        }
    }

    /// Asks about a file that is open until the client has a lease of it again. See the module.
    pub(super) fn recheck_soon(self: &Arc<Self>, ino: InodeId) {
        self.inodes.others_change(ino);
        let again = {
            let mut rechecking = self.coherence.rechecking.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(again) = rechecking.get(&ino) {
                return again.notify_one();
            }
            Arc::clone(rechecking.entry(ino).or_default())
        };
        let shared = Arc::clone(self);
        self.tasks.spawn_until_stop(async move {
            shared.recheck(ino, &again).await;
            shared.coherence.rechecking.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
            if tokio::time::timeout(Duration::ZERO, again.notified()).await.is_ok() {
                shared.recheck_soon(ino); // it came just before that
            }
        });
    }

    async fn recheck(self: &Arc<Self>, ino: InodeId, again: &Notify) {
        let mut number = 0;
        loop {
            let pause = RECHECKS[number.min(RECHECKS.len() - 1)];
            // Forgotten once more: what comes before the other mount's change is looked for from the beginning.
            let forgotten = tokio::time::timeout(pause, again.notified()).await.is_ok();
            number = if forgotten { 0 } else { number + 1 };
            if forgotten {
                tokio::time::sleep(RECHECKS[0]).await; // not shorter, however often: that would put it off for ever
            }
            if !self.client.is_open(ino) {
                return;
            }
            let asked = self.client.getattr(&Cred::default(), ino).await;
            self.drop_stale_pages(ino).await;
            if asked.is_ok() && self.client.is_leased(ino) {
                return;
            }
        }
    }

    /// True if the kernel may have pages of a file that is open which are older than what others have made of it.
    fn has_stale_pages(&self, ino: InodeId) -> bool {
        self.inodes.lost(self.client.all_losses());
        self.client.versions(ino).is_some_and(|versions| self.inodes.has_older_pages(ino, versions.since))
    }

    /// Attributes for the kernel. `open`: somebody reads, or the like, through this open file.
    pub(super) async fn getattr(self: &Arc<Self>, cred: &Cred, ino: InodeId, open: Option<u64>) -> Result<Attr, Fault> {
        open.into_iter().for_each(|open| self.has_opened(open));
        let attr = self.client.getattr(cred, ino).await?;
        let Some(file) = open.and_then(|open| self.files.get(open).ok()) else { return Ok(attr) };
        for _ in 0..END_ROUNDS_MAX {
            self.drop_stale_pages(ino).await;
            if !self.inodes.may_end_before(ino, attr.size) || self.give_end(&file, attr.size).await {
                break;
            }
        }
        Ok(attr)
    }

    /// When this returns, no page that the kernel has of the file is older than what was known of the file when it was called.
    pub(super) async fn drop_stale_pages(self: &Arc<Self>, ino: InodeId) {
        self.inodes.lost(self.client.all_losses());
        loop {
            let over = self.coherence.dropped.notified(); // made before the look: hears of all that ends after it
            let Some(versions) = self.client.versions(ino) else { return };
            match self.inodes.begin_drop(ino, versions.since) {
                Begin::Needless => return,
                Begin::Others => over.await,
                Begin::Yours => {
                    let (shared, dropping) = (Arc::clone(self), self.dropping(ino));
                    let one = Arc::clone(&self.coherence.drops.0).acquire_owned().await.expect("never closed");
                    self.warm.void(&[ino]).await; // of what was fetched before, nothing comes behind the drop
                    // On a thread of its own: the kernel may wait for pages that are being read. Once begun it goes on to its end.
                    let drop_all = move || {
                        shared.drop_pages(ino);
                        dropping.done(Some(versions.now));
                        drop(one);
                    };
                    let _ = tokio::task::spawn_blocking(drop_all).await; // a mount that ends needs none
                    return;
                }
            }
        }
    }

    /// The kernel is being told to drop its pages of a file.
    fn dropping(self: &Arc<Self>, ino: InodeId) -> Dropping {
        Dropping { shared: Arc::clone(self), ino, version: None }
    }

    fn drop_pages(&self, ino: InodeId) {
        let Some(device) = self.coherence.device.get() else { return };
        self.wait_for_reads(device, &[ino]);
        device.forget(ino, 0);
    }
}

#[derive(Debug)]
struct Drops(Arc<Semaphore>);

impl Default for Drops {
    fn default() -> Drops {
        Drops(Arc::new(Semaphore::new(DROPS_MAX)))
    }
}

/// Held while the kernel drops its pages of a file.
struct Dropping {
    shared: Arc<Shared>,
    ino: InodeId,
    version: Option<DataVersion>,
}

impl Dropping {
    /// All were dropped. `began`: what the file was when that began.
    fn done(mut self, began: Option<DataVersion>) {
        self.version = began;
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        self.shared.inodes.end_drop(self.ino, self.version);
        self.shared.coherence.dropped.notify_waiters();
    }
}
