//! One request from start to answer: bounded in number and time.

use super::errno::{errno, is_ordinary};
use super::{AWAY_LIMIT, Shared};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Any answer can be an error.
pub(super) trait Refuse: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),* $(,)?) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

/// What a request is called in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    /// `lookup`, `write`, ...
    pub(super) name: &'static str,
    /// The inode it is about.
    pub(super) ino: InodeId,
    /// It only asks the metadata service: giving up early does no harm.
    pub(super) asks: bool,
    /// The thread that asks and waits; 0: none that is known.
    pub(super) thread: u32,
    /// It saves what was taken before: that goes on if whoever asks is killed.
    pub(super) saves: bool,
}

impl Shared {
    /// How long this request may take. While the metadata service is away, the first question waits for the whole
    /// operation timeout and finds out; those that follow (`ls -l` asks one for each file) must not wait that long each.
    fn limit(&self, op: Op) -> Duration {
        if op.asks && self.away.load(Ordering::Relaxed) { self.limit.min(AWAY_LIMIT) } else { self.limit }
    }

    fn heard(&self, op: Op, kind: Option<Kind>) {
        match kind {
            Some(Kind::Unavailable) => self.away.store(true, Ordering::Relaxed),
            _ if op.asks => self.away.store(false, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Does `work` and answers: with `done` if it succeeded, else with the fault's errno. If the deadline passes first,
    /// the kernel gets `ETIMEDOUT` at once; the work goes on to its end and its result is dropped. If the thread that asks is
    /// killed, the kernel gets `EINTR` at once, and the work ends there: what others do next is not to meet changes of one that
    /// is gone. (A change that was sent may happen or not, as in a crash; the session's next one waits until that is known.)
    pub(super) fn serve<R, T, W>(
        self: &Arc<Self>,
        op: Op,
        reply: R,
        work: W,
        done: impl FnOnce(&Arc<Shared>, R, T) + Send + 'static,
    ) where
        R: Refuse,
        T: Send + 'static,
        W: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let slots = Arc::clone(&self.slots);
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => self.runtime.block_on(slots.acquire_owned()).expect("never closed"),
        };
        let (shared, under_way) = (Arc::clone(self), self.begin(op));
        self.run(async move {
            let held = (slot, under_way);
            let mut work = pin!(work);
            let limit = shared.limit(op);
            let ended = tokio::select! {
                biased;
                ended = tokio::time::timeout(limit, work.as_mut()) => ended.map_err(|_| Errno::ETIMEDOUT),
                () = held.1.killed() => Err(Errno::EINTR),
            };
            match ended {
                Ok(Ok(value)) => {
                    shared.heard(op, None);
                    done(&shared, reply, value);
                }
                Ok(Err(fault)) => {
                    shared.heard(op, Some(fault.kind));
                    if !is_ordinary(fault.kind) {
                        shared.requests.failed(op, fault.to_string());
                    }
                    refuse_with(op, reply, &fault);
                }
                Err(early) => {
                    if early == Errno::EINTR {
                        tracing::debug!(op = op.name, inode = %op.ino, thread = op.thread, "killed while it waited");
                    } else {
                        tracing::error!(op = op.name, inode = %op.ino, limit_s = limit.as_secs(), "no result in time");
                        shared.requests.failed(op, format!("no result after {} s", limit.as_secs()));
                    }
                    shared.inodes.changed(op.ino); // or nearly
                    reply.refuse(early);
                    if early == Errno::EINTR && !op.saves {
                        return;
                    }
                    let (_slot, under_way) = held;
                    drop(under_way);
                    let late = work.await;
                    shared.heard(op, late.err().map(|fault| fault.kind));
                }
            }
        });
    }

    /// See [`common::task::Tasks::start_here`].
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.start_here(&self.runtime, task);
    }
}

/// Answers with the fault's errno; logs what a program could not have caused.
fn refuse_with(op: Op, reply: impl Refuse, fault: &Fault) {
    if is_ordinary(fault.kind) {
        tracing::debug!(op = op.name, inode = %op.ino, error = %fault, "refused");
    } else {
        tracing::error!(op = op.name, inode = %op.ino, kind = ?fault.kind, error = %fault, "failed");
    }
    reply.refuse(errno(fault.kind));
}
