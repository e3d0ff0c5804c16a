//! Locks of programs (`flock`, `fcntl`): asked of the metaservers, and remembered here so that closing a file asks only
//! where there is something to let go of.
//!
//! Who gets a lock sees what was written under it before: letting go saves what is unsaved of the file first, and taking
//! brings what is known of it up to date.

use crate::client::Client;
use crate::core::Core;
use crate::meta::unexpected;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::proto::lock::{LOCK_END, Lock, LockAsk, LockHolder, LockKind, LockSpace, Locked};
use common::proto::meta::{Answer, Attr, Cred, Op, Outcome, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The pause before letting go of a lock is tried again.
const DROP_PAUSE: Duration = Duration::from_millis(200);
/// Locks that wait, at most.
const WAITS_MAX: usize = 4096;

/// Who may hold locks of which files: owner and space, with the session (its generation) in which they were taken.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<(InodeId, LockSpace, u64), u64>,
    waiting: usize,
    /// Files whose locks are being let go of, after what was decided about them was lost.
    dropping: BTreeSet<InodeId>,
}

impl Locks {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("no panic holds this lock")
    }

    fn holds(&self, ino: InodeId, space: LockSpace, owner: u64) -> bool {
        self.table().held.contains_key(&(ino, space, owner))
    }

    /// Whether locks of this file were lost with a session.
    pub(crate) fn are_lost(&self, ino: InodeId, generation: u64) -> bool {
        let table = self.table();
        let range = (ino, LockSpace::Range, 0)..=(ino, LockSpace::Whole, u64::MAX);
        !table.held.is_empty() && table.held.range(range).any(|(_, taken)| *taken < generation)
    }
}

/// A lock that waits, counted.
struct Waiting<'a>(&'a Locks);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.table().waiting -= 1;
    }
}

impl Client {
    /// Takes a lock, waiting for it if `ask.wait`, or lets go. `interrupted` is asked again and again while it waits; once
    /// it says yes, waiting ends with `No`. Never `Queued`.
    pub async fn lock<F>(&self, cred: &Cred, ask: LockAsk, interrupted: impl Fn() -> F) -> Result<Locked, Fault>
    where
        F: Future<Output = bool>,
    {
        let core = &self.core;
        let LockAsk { ino, lock, .. } = ask;
        if lock.kind == LockKind::Unlock {
            return core.unlock(cred, ask).await.map(|()| Locked::Yes);
        }
        let generation = core.meta.session().generation;
        {
            let mut table = core.locks.table();
            if table.dropping.contains(&ino) {
                return Err(Fault::new(Kind::NoSession, format!("locks of {ino} were lost: close it and try again")));
            }
            // Before it is: whatever becomes of this call, closing the file lets go.
            table.held.insert((ino, lock.space, lock.owner), generation);
        }
        let locked = match core.ask_lock(cred, Op::Lock(ask)).await? {
            Locked::Queued(number) => core.wait_for_lock(cred, (ino, number), interrupted).await?,
            other => other,
        };
        if locked == Locked::Yes {
            self.getattr(&Cred::default(), ino).await?;
        }
        Ok(locked)
    }

    /// The first lock of somebody else that is in the way of this one, and whether it is one of this session.
    pub async fn lock_holder(
        &self,
        cred: &Cred,
        ino: InodeId,
        lock: Lock,
    ) -> Result<Option<(LockHolder, bool)>, Fault> {
        if let Some(holder) = self.core.leases.lock_holder(ino, lock, self.core.world.uptime()) {
            return Ok(holder.map(|holder| (holder, true)));
        }
        match self.core.query(cred, Query::LockHolder { ino, lock }, self.core.meta.deadline()).await? {
            Answer::LockHolder(holder) => {
                let own = self.core.meta.session().id;
                Ok(holder.map(|holder| (holder, holder.session == own)))
            }
            other => Err(unexpected("lock holder", &other)),
        }
    }

    /// Lets go of all that an owner may hold of a file: it was closed. Asks nobody if that is nothing.
    pub async fn unlock_all(&self, ino: InodeId, space: LockSpace, owner: u64) -> Result<(), Fault> {
        if !self.core.locks.holds(ino, space, owner) {
            return Ok(());
        }
        self.core.unlock_whole(ino, space, owner).await?;
        self.core.locks.table().held.remove(&(ino, space, owner));
        Ok(())
    }

    /// Attributes of a file that is open here, if they are known: as of the last answer about it.
    pub fn known(&self, ino: InodeId) -> Option<Attr> {
        Some(self.core.find(ino)?.lock().attr.clone())
    }
}

impl Core {
    async fn ask_lock(self: &Arc<Self>, cred: &Cred, op: Op) -> Result<Locked, Fault> {
        match self.change(cred, op, self.meta.deadline()).await? {
            Outcome::Locked(Locked::Alone) => Ok(Locked::Yes),
            Outcome::Locked(locked) => Ok(locked),
            other => Err(unexpected("lock", &other)),
        }
    }

    /// What was written under the lock is saved before others can have it.
    async fn unlock(self: &Arc<Self>, cred: &Cred, ask: LockAsk) -> Result<(), Fault> {
        let saved = match self.find(ask.ino) {
            Some(inode) if inode.lock().is_unsaved() => self.save(&inode, self.meta.deadline()).await,
            _ => Ok(()),
        };
        match self.ask_lock(cred, Op::Lock(ask)).await {
            Err(fault) if fault.kind == Kind::Gone => {} // and its locks with it
            other => drop(other?),
        }
        saved
    }

    /// What was decided here about locks of these files is lost: the metaservers may still hold some that were let go of. All
    /// are let go of; whoever had one has heard that his file is lost.
    pub(crate) fn drop_lost_locks(self: &Arc<Self>, inodes: BTreeSet<InodeId>) {
        self.locks.table().dropping.extend(&inodes);
        let (core, session) = (self.clone(), self.meta.session().id);
        self.tasks.spawn_until_stop(async move {
            for ino in inodes {
                let none = || Op::HaveLocks { ino, locks: Vec::new() };
                // In another session there are none.
                while core.meta.session().id == session
                    && core.ask(&Cred::default(), none(), core.meta.deadline()).await.is_err()
                {
                    tokio::time::sleep(DROP_PAUSE).await;
                }
                core.locks.table().dropping.remove(&ino);
            }
        });
    }

    async fn unlock_whole(self: &Arc<Self>, ino: InodeId, space: LockSpace, owner: u64) -> Result<(), Fault> {
        let lock = Lock { space, owner, kind: LockKind::Unlock, start: 0, end: LOCK_END, pid: 0 };
        self.unlock(&Cred::default(), LockAsk { ino, lock, wait: false, detect: false }).await
    }

    async fn wait_for_lock<F>(
        self: &Arc<Self>,
        cred: &Cred,
        (ino, number): (InodeId, u64),
        interrupted: impl Fn() -> F,
    ) -> Result<Locked, Fault>
    where
        F: Future<Output = bool>,
    {
        let session = self.meta.session().id;
        let too_many = {
            let mut table = self.locks.table();
            table.waiting += 1;
            table.waiting > WAITS_MAX
        };
        let _waiting = Waiting(&self.locks);
        let failed = loop {
            if too_many || interrupted().await {
                break None;
            }
            match self.query(cred, Query::LockWaits { ino, number }, self.meta.deadline()).await {
                Ok(Answer::LockWaits(true)) => {}
                // Not in the queue of a session that is gone, either.
                Ok(Answer::LockWaits(false)) if self.meta.session().id == session => return Ok(Locked::Yes),
                Ok(Answer::LockWaits(false)) => {
                    return Err(Fault::new(Kind::NoSession, "the lock went with its session"));
                }
                Ok(other) => break Some(unexpected("lock", &other)),
                Err(fault) => break Some(fault),
            }
        };
        let cancelled = self.ask_lock(cred, Op::CancelLock { ino, number }).await?;
        match failed {
            Some(fault) if cancelled != Locked::Yes => Err(fault),
            None if too_many && cancelled != Locked::Yes => Ok(Locked::Full),
            _ => Ok(cancelled),
        }
    }
}
