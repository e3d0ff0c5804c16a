//! `flock` and `fcntl` locks: from the kernel's request to the client, and what Linux expects around it.
//!
//! The kernel sends both kinds in one request, and `fuser` passes on neither the bit that tells them apart nor the
//! interruption of one that waits. Both are to be seen from outside, as the thread that asks is blocked meanwhile: which
//! system call it is in (`/proc/TID/syscall`, with the command of `fcntl`), and whether a signal is waiting for it
//! (`/proc/TID/status`). Where that cannot be read (the mount's process is not root), all locks are taken for `fcntl`'s:
//! correct, but one program's `flock` and `fcntl` lock of one file get in each other's way.

use super::Shared;
use super::serve::Op;
use client_fuse::Handle;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::proto::lock::{LOCK_END, Lock, LockAsk, LockKind, LockSpace, Locked};
use common::proto::meta::Cred;
use fuser::{Errno, ReplyEmpty, ReplyLock};
use nix::libc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Looks at a thread until it sleeps in its system call.
const LOOKS_MAX: u32 = 200;
/// The first of them only let others run in between.
const YIELDS: u32 = 20;
/// Between two of them.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

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

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Flock,
    Fcntl,
    /// `fcntl` with a lock of an open file.
    OpenFile,
    /// Something that brings an unlock along, or it cannot be seen.
    Other,
}

/// The owners that took locks through one open file which end with it: `flock`, and open file locks.
pub(super) type Owners = Mutex<Vec<(LockSpace, u64)>>;

/// What the line of `/proc/TID/syscall` says; `None`: nothing yet, the thread still runs.
fn doing(line: &str) -> Option<Doing> {
    let mut words = line.split_whitespace();
    let number = words.next()?;
    if number == "running" {
        return None;
    }
    let argument = |word: Option<&str>| i64::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
    let command = argument(words.nth(1)).and_then(|command| i32::try_from(command).ok());
    let open_file = [libc::F_OFD_SETLK, libc::F_OFD_SETLKW, libc::F_OFD_GETLK];
    Some(match number.parse::<libc::c_long>() {
        Ok(libc::SYS_flock) => Doing::Flock,
        Ok(libc::SYS_fcntl) if command.is_some_and(|command| open_file.contains(&command)) => Doing::OpenFile,
        Ok(libc::SYS_fcntl) => Doing::Fcntl,
        _ => Doing::Other,
    })
}

async fn what_it_does(thread: u32) -> Doing {
    for look in 0..LOOKS_MAX {
        match std::fs::read_to_string(format!("/proc/{thread}/syscall")) {
            Ok(line) => match doing(&line) {
                Some(doing) => return doing,
                // It has sent the request and is about to sleep.
                None if look < YIELDS => std::thread::yield_now(),
                None => tokio::time::sleep(LOOK_PAUSE).await,
            },
            Err(_) => break,
        }
    }
    Doing::Other
}

/// Whether a signal that is not blocked waits, by the lines of `/proc/TID/status`.
fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let [own, all, blocked] = ["SigPnd:", "ShdPnd:", "SigBlk:"].map(|name| mask(name).unwrap_or(0));
    (own | all) & !blocked != 0
}

fn is_interrupted(thread: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| has_signal(&status))
}

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
        let under_way = self.begin(Op { name: "setlk", ino: asked.ino, asks: false });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_of_locks_are_told_apart_by_the_system_call() {
        let line = |number: i64, command: i32| format!("{number} 0x3 0x{command:x} 0x7ffd 0x0 0x0 0x0 0x7ffd 0x7f12\n");
        assert_eq!(doing("running\n"), None);
        assert_eq!(doing(&line(libc::SYS_flock, libc::LOCK_EX)), Some(Doing::Flock));
        assert_eq!(doing(&line(libc::SYS_fcntl, libc::F_SETLKW)), Some(Doing::Fcntl));
        assert_eq!(doing(&line(libc::SYS_fcntl, libc::F_OFD_SETLK)), Some(Doing::OpenFile));
        assert_eq!(doing(&line(libc::SYS_close, 0)), Some(Doing::Other));
        assert_eq!(doing("-1 0x7ffd 0x7f12\n"), Some(Doing::Other));
    }

    #[test]
    fn a_signal_counts_unless_it_is_blocked() {
        let status = |own: &str, all: &str, blocked: &str| {
            format!(
                "Name:\tx\nSigQ:\t1/9\nSigPnd:\t{own}\nShdPnd:\t{all}\nSigBlk:\t{blocked}\nSigIgn:\t0000000000000000\n"
            )
        };
        assert!(!has_signal(&status("0000000000000000", "0000000000000000", "0000000000000000")));
        assert!(has_signal(&status("0000000000000100", "0000000000000000", "0000000000000000")));
        assert!(has_signal(&status("0000000000000000", "0000000000002000", "0000000000000001")));
        assert!(!has_signal(&status("0000000000000000", "0000000000002000", "0000000000002000")));
    }
}
