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
use common::proto::meta::{Answer, Cred, Op, Outcome, Query};
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
    held: BTreeMap<Owner, Taken>,
    /// Rises with each entry of `held`.
    serial: u64,
    waiting: usize,
    /// Files whose locks are being let go of, after what was decided about them was lost, and how many times over.
    dropping: BTreeMap<InodeId, usize>,
    /// What is being let go of for those who closed a file while that could not be told.
    closing: BTreeSet<Owner>,
}

/// Of which file, and whose.
type Owner = (InodeId, LockSpace, u64);

#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Of the session in which it was taken.
    generation: u64,
    /// Another one, and a lock was taken since.
    serial: u64,
}

impl Table {
    /// Somebody may hold a lock from here on.
    ///
    /// # Errors
    /// What he had is being let go of, and this would go with it.
    fn enter(&mut self, owner: Owner, generation: u64) -> Result<(), Fault> {
        let ino = owner.0;
        if self.dropping.contains_key(&ino) {
            return Err(Fault::new(Kind::NoSession, format!("locks of {ino} were lost: close it and try again")));
        }
        if self.closing.contains(&owner) {
            let text = format!("locks of {ino} from before it was closed are still being let go of: try again");
            return Err(Fault::new(Kind::Unavailable, text));
        }
        self.serial += 1;
        self.held.insert(owner, Taken { generation, serial: self.serial });
        Ok(())
    }

    /// All that he held when `taken` was current is let go of.
    fn leave(&mut self, owner: Owner, taken: Taken) {
        if self.held.get(&owner).is_some_and(|now| now.serial == taken.serial) {
            self.held.remove(&owner);
        }
    }
}

impl Locks {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("no panic holds this lock")
    }

    fn taken(&self, owner: Owner) -> Option<Taken> {
        self.table().held.get(&owner).copied()
    }

    /// Whether locks of this file were lost with a session.
    pub(crate) fn are_lost(&self, ino: InodeId, generation: u64) -> bool {
        let table = self.table();
        let range = (ino, LockSpace::Range, 0)..=(ino, LockSpace::Whole, u64::MAX);
        !table.held.is_empty() && table.held.range(range).any(|(_, taken)| taken.generation < generation)
    }
}

/// Lets go of all that an owner has of a file.
fn unlock_whole((ino, space, owner): Owner) -> LockAsk {
    let lock = Lock { space, owner, kind: LockKind::Unlock, start: 0, end: LOCK_END, pid: 0 };
    LockAsk { ino, lock, wait: false, detect: false }
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
        let owner = (ino, lock.space, lock.owner);
        core.locks.table().enter(owner, generation)?; // whatever becomes of this call, closing the file lets go
        let locked = match core.ask_lock(cred, Op::Lock(ask)).await? {
            Locked::Queued(number) => core.wait_for_lock(cred, (ino, number), interrupted).await?,
            other => other,
        };
        if locked == Locked::Yes {
            // Once more: the file may have been closed through another descriptor while this one waited.
            let entered = core.locks.table().enter(owner, generation);
            let known = match entered {
                Ok(()) => self.getattr(&Cred::default(), ino).await.map(|_| ()),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = known {
                let undo = LockAsk { lock: Lock { kind: LockKind::Unlock, ..lock }, wait: false, ..ask };
                let _ = core.let_go(cred, undo).await; // else closing the file does
                return Err(fault);
            }
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

    /// Lets go of all that an owner may hold of a file: it was closed. Asks nobody if that is nothing. If it fails, nobody
    /// else would do it before the session ends: it goes on in the background, and the owner gets no lock of the file
    /// meanwhile.
    pub async fn unlock_all(&self, ino: InodeId, space: LockSpace, owner: u64) -> Result<(), Fault> {
        let owner = (ino, space, owner);
        let Some(taken) = self.core.locks.taken(owner) else { return Ok(()) };
        let saved = self.core.save_locked(ino).await;
        let unlocked = self.core.let_go(&Cred::default(), unlock_whole(owner)).await;
        match unlocked {
            Ok(()) => self.core.locks.table().leave(owner, taken),
            Err(_) => self.core.close_later(owner, taken),
        }
        unlocked.and(saved)
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
        let saved = self.save_locked(ask.ino).await;
        self.let_go(cred, ask).await?;
        saved
    }

    async fn save_locked(self: &Arc<Self>, ino: InodeId) -> Result<(), Fault> {
        match self.find(ino) {
            Some(inode) if inode.lock().is_unsaved() => self.save(&inode, self.meta.deadline()).await,
            _ => Ok(()),
        }
    }

    async fn let_go(self: &Arc<Self>, cred: &Cred, ask: LockAsk) -> Result<(), Fault> {
        match self.ask_lock(cred, Op::Lock(ask)).await {
            Err(fault) if fault.kind == Kind::Gone => Ok(()), // and its locks with it
            other => other.map(|_| ()),
        }
    }

    /// What was decided here about locks of these files is lost: the metaservers may still hold some that were let go of. All
    /// are let go of; whoever had one has heard that his file is lost.
    pub(crate) fn drop_lost_locks(self: &Arc<Self>, inodes: BTreeSet<InodeId>) {
        {
            let mut table = self.locks.table();
            inodes.iter().for_each(|ino| *table.dropping.entry(*ino).or_default() += 1);
        }
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
                let mut table = core.locks.table();
                let times = table.dropping.get_mut(&ino).expect("counted above");
                *times -= 1;
                if *times == 0 {
                    table.dropping.remove(&ino);
                }
            }
        });
    }

    /// Lets go of all that an owner holds of a file that he has closed, however long that takes.
    fn close_later(self: &Arc<Self>, closed: Owner, taken: Taken) {
        if !self.locks.table().closing.insert(closed) {
            return;
        }
        let (core, session) = (self.clone(), self.meta.session().id);
        self.tasks.spawn_until_stop(async move {
            let ask = unlock_whole(closed);
            while core.meta.session().id == session && core.let_go(&Cred::default(), ask).await.is_err() {
                tokio::time::sleep(DROP_PAUSE).await;
            }
            let mut table = core.locks.table();
            table.leave(closed, taken);
            table.closing.remove(&closed);
        });
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
