//! One request from start to answer: bounded in number and time.

use super::Shared;
use super::errno::{errno, is_ordinary};
use common::fault::Fault;
use common::id::InodeId;
use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};

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
}

impl Shared {
    /// Does `work` and answers: with `done` if it succeeded, else with the fault's errno. If the deadline passes first,
    /// the kernel gets `ETIMEDOUT` at once; the work goes on to its end and its result is dropped.
    pub(super) fn serve<R, T, W>(
        self: &Arc<Self>,
        op: Op,
        reply: R,
        work: W,
        done: impl FnOnce(&Shared, R, T) + Send + 'static,
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
        let shared = Arc::clone(self);
        self.run(async move {
            let _slot = slot;
            let mut work = pin!(work);
            match tokio::time::timeout(shared.limit, work.as_mut()).await {
                Ok(Ok(value)) => done(&shared, reply, value),
                Ok(Err(fault)) => refuse_with(op, reply, &fault),
                Err(_) => {
                    tracing::error!(op = op.name, inode = %op.ino, limit_s = shared.limit.as_secs(), "no result in time");
                    reply.refuse(Errno::ETIMEDOUT);
                    let _late = work.await;
                }
            }
        });
    }

    /// Polls once here; what is not finished then goes to the async threads.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
        let _entered = self.runtime.enter();
        // The waker does nothing: the task below polls again at once and leaves its own.
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.tasks.spawn_until_stop(task);
        }
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
