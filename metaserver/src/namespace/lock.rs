//! Locks of programs: held and waited for in the state machine, so that they hold across mounts and fail-overs.
//!
//! One row a file has all its locks and its queue; a row of (session, owner, inode) finds them from the other side. As on
//! Linux, who asks is only held up by locks that are held, not by those who wait; when locks go, those who wait get theirs
//! in the order they came, where nobody is in the way.
//!
//! Invariants:
//! 1. Two locks that are held in one space overlap only if they have one owner or are both shared; those of one owner
//!    and space do not overlap at all.
//! 2. Each lock that waits is in conflict with one that is held.
//! 3. A `locked` row is there exactly while its owner holds or waits for a lock of its inode.

use super::command::{Fail, refuse};
use super::rows::{Call, find_inode, inode, row};
use super::session::is_open;
use crate::store::keys::{self, LOCK, LOCKED};
use crate::store::values::{LockRow, Value, WaitingLock, damaged};
use common::fault::Kind;
use common::id::{InodeId, SessionId};
use common::kv::{KvError, KvRead, prefix_range};
use common::proto::lock::{self, LOCKS_MAX, Lock, LockAsk, LockHolder, LockKind, LockSpace, Locked, in_the_way};
use common::proto::meta::Outcome;
use std::collections::BTreeSet;

/// Owners looked at to find out whether one would wait for itself, at most: then it is taken not to.
const DEADLOCK_OWNERS_MAX: usize = 256;

/// Who holds or waits.
type Owner = (SessionId, u64);

/// Gives those who wait what nobody is in the way of any more.
fn promote(row: &mut LockRow) {
    let mut at = 0;
    while at < row.queue.len() {
        if in_the_way(&row.held, &row.queue[at].holder).next().is_none() {
            let granted = row.queue.remove(at);
            lock::set(&mut row.held, &granted.holder);
            at = 0; // it may have given up a stronger lock for this one
        } else {
            at += 1;
        }
    }
}

/// Takes a lock, queues for it, or lets go.
pub(super) fn lock(call: &mut Call<'_, '_>, ask: &LockAsk) -> Result<Outcome, Fail> {
    let LockAsk { ino, lock, wait, detect } = *ask;
    if !lock.is_valid() {
        return Err(refuse(Kind::Invalid, "the lock ends before it starts, or behind all files"));
    }
    inode(call.txn, ino)?;
    let wanted = LockHolder { session: call.session, lock };
    let mut row = read(call.txn, ino)?;
    let blocked = lock.kind != LockKind::Unlock && in_the_way(&row.held, &wanted).next().is_some();
    if lock.kind != LockKind::Unlock && row.held.len() + row.queue.len() + 2 > LOCKS_MAX {
        return Ok(Outcome::Locked(Locked::Full));
    }
    let alone = row.held.is_empty() && row.queue.is_empty();
    let outcome = match (blocked, wait) {
        (false, _) => {
            lock::set(&mut row.held, &wanted);
            if alone { Locked::Alone } else { Locked::Yes }
        }
        (true, false) => Locked::No,
        (true, true) if detect && waits_for_itself(call.txn, &row, &wanted)? => Locked::Deadlock,
        (true, true) => {
            row.queue.push(WaitingLock { number: call.index.0, holder: wanted });
            Locked::Queued(call.index.0)
        }
    };
    if blocked && lock.space == LockSpace::Whole {
        // As on Linux, who changes the kind of its `flock` gives up the one it had, and may lose it.
        let none = LockHolder { lock: Lock { kind: LockKind::Unlock, ..lock }, ..wanted };
        lock::set(&mut row.held, &none);
    }
    promote(&mut row);
    write(call, ino, row, [wanted.owner()]);
    Ok(Outcome::Locked(outcome))
}

/// The locks that the session says it has of a file, decided under a write lease.
///
/// # Errors
/// `Stale` if somebody else has one that is in the way: it was not alone. `Invalid` if they contradict each other.
pub(super) fn have(call: &mut Call<'_, '_>, ino: InodeId, locks: &[Lock]) -> Result<Outcome, Fail> {
    match inode(call.txn, ino) {
        Ok(_) => {}
        Err(Fail::Fault(fault)) if fault.kind == Kind::Gone => return Ok(Outcome::Done),
        Err(fail) => return Err(fail),
    }
    let mut row = read(call.txn, ino)?;
    let mut owners: BTreeSet<Owner> = all(&row).map(LockHolder::owner).collect();
    row.held.retain(|held| held.session != call.session);
    row.held.extend(locks.iter().map(|lock| LockHolder { session: call.session, lock: *lock }));
    let others = |held: &LockHolder| held.session != call.session;
    let own = || row.held.iter().filter(|held| !others(held));
    if own().any(|wanted| in_the_way(&row.held, wanted).any(others)) {
        return Err(refuse(Kind::Stale, format!("others have locks of {ino}")));
    }
    let valid = own().all(|held| held.lock.is_valid() && held.lock.kind != LockKind::Unlock);
    promote(&mut row);
    if !valid || !is_sound(&row) || row.held.len() + row.queue.len() > LOCKS_MAX {
        return Err(refuse(Kind::Invalid, format!("locks of {ino} that cannot all be held")));
    }
    owners.extend(all(&row).map(LockHolder::owner));
    write(call, ino, row, owners);
    Ok(Outcome::Done)
}

/// Stops waiting. `Yes`: it was granted in the meantime.
pub(super) fn cancel(call: &mut Call<'_, '_>, ino: InodeId, number: u64) -> Result<Outcome, Fail> {
    let mut row = read(call.txn, ino)?;
    let own = |waiting: &WaitingLock| waiting.number == number && waiting.holder.session == call.session;
    let Some(at) = row.queue.iter().position(own) else { return Ok(Outcome::Locked(Locked::Yes)) };
    let gone = row.queue.remove(at);
    write(call, ino, row, [gone.holder.owner()]);
    Ok(Outcome::Locked(Locked::No))
}

/// The session has ended: its locks go.
pub(super) fn end(call: &mut Call<'_, '_>, session: SessionId) -> Result<(), Fail> {
    let mut inodes = BTreeSet::new();
    for found in call.txn.scan(LOCKED, prefix_range(&keys::session(session)), false) {
        inodes.insert(InodeId(keys::last_u64(&found?.0).ok_or_else(|| damaged("locked", "the key is too short"))?));
    }
    for ino in inodes {
        let mut row = read(call.txn, ino)?;
        let owners: BTreeSet<Owner> =
            all(&row).filter(|holder| holder.session == session).map(LockHolder::owner).collect();
        row.held.retain(|held| held.session != session);
        row.queue.retain(|waiting| waiting.holder.session != session);
        promote(&mut row);
        write(call, ino, row, owners);
    }
    Ok(())
}

/// The inode is gone, and its locks with it.
pub(super) fn forget(call: &mut Call<'_, '_>, ino: InodeId) -> Result<(), Fail> {
    let row = read(call.txn, ino)?;
    let owners: BTreeSet<Owner> = all(&row).map(LockHolder::owner).collect();
    if !owners.is_empty() {
        write(call, ino, LockRow::default(), owners);
    }
    Ok(())
}

/// Makes the rows of an inode's locks agree, without those of sessions that are not open.
pub(super) fn fix(call: &mut Call<'_, '_>, ino: InodeId) -> Result<(), KvError> {
    let before = read(call.txn, ino)?;
    let owners: BTreeSet<Owner> = all(&before).map(LockHolder::owner).collect();
    let mut row = LockRow::default();
    if find_inode(call.txn, ino)?.is_some() {
        let mut open = BTreeSet::new();
        for session in owners.iter().map(|(session, _)| *session).collect::<BTreeSet<_>>() {
            if is_open(call.txn, session)? {
                open.insert(session);
            }
        }
        row = before;
        row.held.retain(|held| open.contains(&held.session));
        row.queue.retain(|waiting| open.contains(&waiting.holder.session));
        promote(&mut row);
    }
    write(call, ino, row, owners);
    Ok(())
}

/// Takes the row of an owner away who has no lock.
pub(super) fn fix_owner(call: &mut Call<'_, '_>, key: &[u8]) -> Result<(), KvError> {
    let Some(ino) = keys::last_u64(key).map(InodeId) else { return Ok(()) };
    let row = read(call.txn, ino)?;
    if !all(&row).any(|holder| keys::locked(holder.session, holder.lock.owner, ino) == key) {
        call.txn.delete(LOCKED, key.to_vec());
    }
    Ok(())
}

/// The first lock that is in the way of one of this session.
pub(super) fn holder(
    read: &dyn KvRead,
    session: SessionId,
    ino: InodeId,
    lock: &Lock,
) -> Result<Option<LockHolder>, Fail> {
    let row = self::read(read, ino)?;
    let wanted = LockHolder { session, lock: *lock };
    let first = in_the_way(&row.held, &wanted).min_by_key(|held| held.lock.start).copied();
    Ok(first)
}

/// Whether a request for a lock still waits.
pub fn waits(read: &dyn KvRead, ino: InodeId, number: u64) -> Result<bool, Fail> {
    Ok(self::read(read, ino)?.queue.iter().any(|waiting| waiting.number == number))
}

/// Invariants 1 and 2, of one file.
pub(super) fn is_sound(row: &LockRow) -> bool {
    let own = |a: &LockHolder, b: &LockHolder| a.owner() == b.owner() && a.lock.overlaps(&b.lock);
    let pairs = row.held.iter().enumerate().flat_map(|(n, a)| row.held[..n].iter().map(move |b| (a, b)));
    let held = pairs.into_iter().all(|(a, b)| !a.conflicts(b) && !own(a, b));
    held && row.queue.iter().all(|waiting| in_the_way(&row.held, &waiting.holder).next().is_some())
}

/// All locks of a file, held and waited for.
pub(super) fn all(row: &LockRow) -> impl Iterator<Item = &LockHolder> {
    row.held.iter().chain(row.queue.iter().map(|waiting| &waiting.holder))
}

fn read(read: &dyn KvRead, ino: InodeId) -> Result<LockRow, KvError> {
    Ok(row(read, LOCK, &keys::inode(ino))?.unwrap_or_default())
}

/// Writes a file's locks back, with the rows of the owners that may have come or gone.
fn write(call: &mut Call<'_, '_>, ino: InodeId, row: LockRow, owners: impl IntoIterator<Item = Owner>) {
    for who in owners {
        let key = keys::locked(who.0, who.1, ino);
        match all(&row).any(|holder| holder.owner() == who) {
            true => call.txn.put(LOCKED, key, Vec::new()),
            false => call.txn.delete(LOCKED, key),
        }
    }
    match row.held.is_empty() && row.queue.is_empty() {
        true => call.txn.delete(LOCK, keys::inode(ino)),
        false => call.txn.put(LOCK, keys::inode(ino), row.encode()),
    }
}

/// Whether those in the way of a lock wait, over any number of others, for the one who wants it.
fn waits_for_itself(read: &dyn KvRead, row: &LockRow, wanted: &LockHolder) -> Result<bool, Fail> {
    let mut seen: BTreeSet<Owner> = BTreeSet::new();
    let mut left: Vec<Owner> = in_the_way(&row.held, wanted).map(LockHolder::owner).collect();
    while let Some(next) = left.pop() {
        if next == wanted.owner() {
            return Ok(true);
        }
        if !seen.insert(next) || seen.len() > DEADLOCK_OWNERS_MAX {
            continue;
        }
        for found in read.scan(LOCKED, prefix_range(&keys::locks_of(next.0, next.1)), false) {
            let short = || damaged("locked", "the key is too short");
            let row = self::read(read, InodeId(keys::last_u64(&found?.0).ok_or_else(short)?))?;
            let waiting = row.queue.iter().map(|waiting| &waiting.holder);
            let waiting = waiting.filter(|holder| holder.owner() == next && holder.lock.space == LockSpace::Range);
            left.extend(waiting.flat_map(|holder| in_the_way(&row.held, holder)).map(LockHolder::owner));
        }
    }
    Ok(false)
}
