//! Changes that a session has made under write leases, in one command ([`common::proto::batch`]).
//!
//! The session has answered for them already, so they take effect in its order or not at all: the first that is refused is
//! the last that is looked at. Each is a change like any other, with its own caller and its own time.

use super::command::{Fail, refuse};
use super::rows::{Call, entry, need_entry, row};
use super::session::guarded;
use crate::store::Txn;
use crate::store::keys::{self, CLUSTER};
use crate::store::values::{Fence, Reserved, Value};
use common::fault::{Fault, Kind};
use common::id::{InodeId, LogIndex, SessionId};
use common::kv::{KvError, KvRead};
use common::name::Name;
use common::proto::batch::{BATCH_MAX, Batch, BatchDone, Deferred, Digest, RESERVE_MAX};
use common::proto::meta::{Applied, Op, Outcome};
use common::time::Time;

/// Ranges of inode numbers that a session has at once, at most; with a new one the oldest goes. (A client has two or three in
/// use; each reservation whose answer it did not get leaves one behind.)
const RANGES_MAX: usize = 64;

/// Carries out the changes up to the first that is refused.
pub(super) fn run(
    txn: &mut Txn<'_>,
    index: LogIndex,
    now: Time,
    session: SessionId,
    batch: &Batch,
) -> Result<Result<Applied, Fault>, KvError> {
    if batch.changes.len() > BATCH_MAX || !batch.changes.iter().all(Deferred::is_allowed) {
        return Ok(Err(Fault::new(Kind::Invalid, "a batch of too many changes, or of others than it may have")));
    }
    let fence: Option<Fence> = row(txn, CLUSTER, &keys::fence(session))?;
    if fence.is_some_and(|fence| batch.since < fence.index && batch.checked != fence.term) {
        // Of a kind that is not kept: whoever settles the slot learns that it never happened.
        return Ok(Err(Fault::new(Kind::Stale, "others were let pass before this was told")));
    }
    let (mut done, mut fault, mut digest) = (0, None, Digest::default());
    for change in &batch.changes {
        let who = (session, &change.cred);
        let carried_out = guarded(txn, index, change.at, who, |call| {
            call.now = now;
            one(call, change)
        });
        match carried_out? {
            Ok(applied) => {
                digest.add(&applied.outcome);
                done += 1;
            }
            Err(refused) => {
                fault = Some(refused);
                break;
            }
        }
    }
    let outcome = Outcome::Batch(BatchDone { done, fault, digest: digest.value() });
    Ok(Ok(Applied { outcome, index }))
}

fn one(call: &mut Call<'_, '_>, change: &Deferred) -> Result<Outcome, Fail> {
    match &change.op {
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name } => {
            need(call, *parent, name, change.leads.first())?
        }
        Op::Rename { from, from_name, to, to_name, .. } => {
            need(call, *from, from_name, change.leads.first())?;
            match change.leads.get(1) {
                None if entry(call.txn, *to, to_name)?.is_some() => {
                    return Err(refuse(Kind::Stale, format!("{to_name} is there by now")));
                }
                None => {}
                replaced => need(call, *to, to_name, replaced)?,
            }
        }
        _ => {}
    }
    if let Op::HaveLocks { ino, locks } = &change.op {
        return super::lock::have(call, *ino, locks);
    }
    call.given = change.makes();
    super::run(call, &change.op)
}

/// # Errors
/// `Stale` unless the name leads to this inode.
fn need(call: &Call<'_, '_>, dir: InodeId, name: &Name, leads: Option<&InodeId>) -> Result<(), Fail> {
    match need_entry(call.txn, dir, name)? {
        entry if leads == Some(&entry.ino) => Ok(()),
        entry => Err(refuse(Kind::Stale, format!("{name} leads to {} now", entry.ino))),
    }
}

/// Reserves numbers for inodes of this session.
pub(super) fn reserve(call: &mut Call<'_, '_>, count: u32) -> Result<Outcome, Fail> {
    if count == 0 || count > RESERVE_MAX {
        return Err(refuse(Kind::Invalid, format!("reserve 1 to {RESERVE_MAX} numbers, not {count}")));
    }
    let first = call.counters.next_ino;
    call.counters.next_ino += u64::from(count);
    let key = keys::reserved(call.session);
    let Reserved(mut ranges) = row(call.txn, CLUSTER, &key)?.unwrap_or_default();
    ranges.push((first, call.counters.next_ino));
    let old = ranges.len().saturating_sub(RANGES_MAX);
    ranges.drain(..old);
    call.txn.put(CLUSTER, key, Reserved(ranges).encode());
    let key = keys::fence(call.session);
    if let Some(fence) = row::<Fence>(call.txn, CLUSTER, &key)?.filter(|fence| !fence.over) {
        call.txn.put(CLUSTER, key, Fence { over: true, ..fence }.encode());
    }
    Ok(Outcome::Reserved(InodeId(first)))
}

/// Uses a number that this session has reserved, and gives up those below it in its range.
///
/// # Errors
/// `Invalid` if it has none such, or has used it: numbers of inodes are never used twice.
pub(super) fn take(call: &mut Call<'_, '_>, ino: InodeId) -> Result<(), Fail> {
    let key = keys::reserved(call.session);
    let Reserved(mut ranges) = row(call.txn, CLUSTER, &key)?.unwrap_or_default();
    let found = ranges.iter_mut().find(|(next, end)| (*next..*end).contains(&ino.0));
    let Some((next, _)) = found else {
        return Err(refuse(Kind::Invalid, format!("{ino} is not reserved for this session, or was used")));
    };
    *next = ino.0 + 1;
    ranges.retain(|(next, end)| next < end);
    call.txn.put(CLUSTER, key, Reserved(ranges).encode());
    Ok(())
}

/// Others are let pass these sessions: what they have decided and not told by now, only the leader of this term lets through.
pub(super) fn fence(call: &mut Call<'_, '_>, term: u64, sessions: &[SessionId]) -> Result<(), Fail> {
    for session in sessions {
        if super::session::is_open(call.txn, *session)? {
            call.txn.put(CLUSTER, keys::fence(*session), Fence { index: call.index, term, over: false }.encode());
        }
    }
    Ok(())
}

/// True if a session may have decided something that it has not told: it has reserved inode numbers, after others were let
/// pass it if they were.
///
/// # Errors
/// The store failed.
pub fn decides(read: &dyn KvRead, session: SessionId) -> Result<bool, KvError> {
    let fence: Option<Fence> = row(read, CLUSTER, &keys::fence(session))?;
    let reserved = read.get(CLUSTER, &keys::reserved(session))?.is_some();
    Ok(reserved && fence.is_none_or(|fence| fence.over))
}

/// The session is over.
pub(super) fn end(call: &mut Call<'_, '_>, session: SessionId) -> Result<(), KvError> {
    for key in [keys::reserved(session), keys::fence(session)] {
        if call.txn.get(CLUSTER, &key)?.is_some() {
            call.txn.delete(CLUSTER, key);
        }
    }
    Ok(())
}
