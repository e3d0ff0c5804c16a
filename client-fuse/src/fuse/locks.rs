//! `flock` and `fcntl` locks: from the kernel's request to the client, and what Linux expects around it.
//!
//! The kernel sends both kinds in one request, and `fuser` passes on neither the bit that tells them apart nor the
//! interruption of one that waits. Both are to be seen from outside ([`caller`](super::caller)). Where the system call cannot be
//! read (the mount's process is not root), all locks are taken for `fcntl`'s: correct, but one program's `flock` and `fcntl` lock
//! of one file get in each other's way.

use super::Shared;
use super::caller::{Doing, is_interrupted, what_it_does};
use super::serve::Op;
use client_fuse::Handle;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::proto::lock::{LOCK_END, Lock, LockAsk, LockKind, LockSpace, Locked};
use common::proto::meta::Cred;
use fuser::{Errno, ReplyEmpty, ReplyLock};
use nix::libc;
use std::sync::{Arc, Mutex};

/// A request as the kernel sends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) ino: InodeId,
    pub(super) handle: u64,
    pub(super) owner: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: i32,
    pub(super) pid: u32,
    pub(super) wait: bool,
    /// The thread that asks.
    pub(super) thread: u32,
}

/// The owners that took locks through one open file which end with it: `flock`, and open file locks.
pub(super) type Owners = Mutex<Vec<(LockSpace, u64)>>;

fn kind(number: i32) -> Option<LockKind> {
    match number {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => Some(LockKind::Unlock),
        _ => None,
    }
}

impl Shared {
    /// Takes a lock or lets go, however long it takes.
    pub(super) fn set_lock(self: &Arc<Self>, cred: Cred, asked: Asked, reply: ReplyEmpty) {
        let under_way = self.begin(Op { name: "setlk", ino: asked.ino, asks: false, thread: 0, saves: false });
        let shared = Arc::clone(self);
        self.run(async move {
            let _under_way = under_way;
            match shared.lock_file(&cred, asked).await {
                Ok(Locked::Yes | Locked::Alone) => reply.ok(),
                Ok(Locked::Deadlock) => reply.error(Errno::EDEADLK),
                Ok(Locked::Full) => reply.error(Errno::ENOLCK),
                Ok(Locked::No | Locked::Queued(_)) if asked.wait => reply.error(Errno::EINTR),
                Ok(Locked::No | Locked::Queued(_)) => reply.error(Errno::EAGAIN),
                Err(fault) => {
                    tracing::debug!(op = "setlk", inode = %asked.ino, error = %fault, "refused");
                    reply.error(super::errno::errno(fault.kind));
                }
            }
        });
    }

    async fn lock_file(self: &Arc<Self>, cred: &Cred, asked: Asked) -> Result<Locked, Fault> {
        let kind = kind(asked.kind).ok_or_else(|| Fault::new(Kind::Invalid, "no such kind of lock"))?;
        let doing = what_it_does(asked.thread).await;
        let lock = |space| {
            let end = asked.end.min(LOCK_END);
            Lock { space, owner: asked.owner, kind, start: asked.start, end, pid: asked.pid }
        };
        let ask =
            |space| LockAsk { ino: asked.ino, lock: lock(space), wait: asked.wait, detect: doing == Doing::Fcntl };
        let spaces: &[LockSpace] = match doing {
            Doing::Flock => &[LockSpace::Whole],
            // A close that lets go of a `flock`: owners of the two kinds are never the same, so this harms nobody.
            Doing::Other if kind == LockKind::Unlock => &[LockSpace::Whole, LockSpace::Range],
            Doing::Fcntl | Doing::OpenFile | Doing::Other => &[LockSpace::Range],
        };
        if kind != LockKind::Unlock && doing != Doing::Fcntl {
            self.files.note_owner(asked.handle, (spaces[0], asked.owner));
        }
        let mut locked = Locked::Yes;
        for space in spaces {
            let interrupted = || std::future::ready(is_interrupted(asked.thread));
            locked = self.client.lock(cred, ask(*space), interrupted).await?;
        }
        if kind != LockKind::Unlock && locked == Locked::Yes {
            self.drop_stale_pages(asked.ino).await;
        }
        Ok(locked)
    }

    /// Who holds a lock that is in the way of this one.
    pub(super) fn get_lock(self: &Arc<Self>, cred: Cred, asked: Asked, reply: ReplyLock) {
        let shared = Arc::clone(self);
        self.run(async move {
            let Some(kind) = kind(asked.kind) else { return reply.error(Errno::EINVAL) };
            let end = asked.end.min(LOCK_END);
            let lock = Lock { space: LockSpace::Range, owner: asked.owner, kind, start: asked.start, end, pid: 0 };
            match shared.client.lock_holder(&cred, asked.ino, lock).await {
                Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
                Ok(Some((holder, own))) => {
                    let number = if holder.lock.kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                    // A process of another machine has no number here.
                    reply.locked(holder.lock.start, holder.lock.end, number, if own { holder.lock.pid } else { 0 });
                }
                Err(fault) => reply.error(super::errno::errno(fault.kind)),
            }
        });
    }

    /// A process closes a file: its `fcntl` locks of it go.
    pub(super) async fn drop_range_locks(&self, ino: InodeId, owner: u64) -> Result<(), Fault> {
        self.client.unlock_all(ino, LockSpace::Range, owner).await
    }

    /// The last descriptor of an open file is closed: what was locked through it goes.
    pub(super) async fn drop_file_locks(&self, handle: &Handle, owners: &Owners) -> Result<(), Fault> {
        let owners = std::mem::take(&mut *owners.lock().expect("no panic holds this lock"));
        let mut all = Ok(());
        for (space, owner) in owners {
            all = all.and(self.client.unlock_all(handle.ino(), space, owner).await);
        }
        all
    }
}
