//! Sessions and their reply slots: what makes a retried request take effect once.

use super::command::{Fail, refuse};
use super::rows::{Call, config, row};
use super::{batch, lock, remove, run as run_op};
use crate::store::Txn;
use crate::store::keys::{self, ATTEND, CLUSTER, ENDED, ORPHAN, SESSION, SLOT};
use crate::store::values::{SessionClock, SessionRow, SlotRow, Value};
use common::fault::{Fault, Kind};
use common::id::{InodeId, LogIndex, SessionId};
use common::kv::{KvError, KvRead, prefix_range};
use common::proto::meta::{Applied, Cred, Op, Outcome, Request, SLOTS_MAX};
use common::time::Time;
use std::ops::Bound;

/// A session ends when nothing was heard of it for this long, in milliseconds. The leader counts.
pub const SESSION_TIMEOUT_MS: u64 = 60_000;
/// How long an ended session is remembered at least, in seconds: longer than any request can be under way.
const ENDED_KEPT_SECS: i64 = 3600;
/// The most that the clock of ended sessions goes forward from one session's end or beginning to the next, in seconds. A
/// leader's wall clock that jumps makes it forget no more than that too early; without sessions that come and go it goes
/// slower than the time, which does no harm.
const CLOCK_STEP_MAX_SECS: i64 = 60;
/// Ended sessions forgotten with each new one, at most.
const FORGET_MAX: usize = 16;
/// The longest label, in bytes; longer ones are cut.
const LABEL_LEN_MAX: usize = 255;

/// Runs a client's request, or answers what it was answered before.
pub(super) fn run(
    txn: &mut Txn<'_>,
    index: LogIndex,
    at: Time,
    request: &Request,
) -> Result<Result<Applied, Fault>, KvError> {
    if let Op::OpenSession { label, slots } | Op::OpenAttending { label, slots } = &request.op {
        return guarded(txn, index, at, (request.session, &request.cred), |call| open(call, label, *slots, request));
    }
    let session: Option<SessionRow> = row(txn, SESSION, &keys::session(request.session))?;
    let Some(session) = session.filter(|session| !session.ended) else {
        return Ok(Err(Fault::new(Kind::NoSession, format!("session {} is unknown or ended", request.session))));
    };
    if request.slot >= session.slots {
        return Ok(Err(Fault::new(Kind::Invalid, format!("slot {} of {}", request.slot, session.slots))));
    }
    let slot_key = keys::slot(request.session, request.slot);
    let slot = row(txn, SLOT, &slot_key)?.unwrap_or(SlotRow { seq: 0, reply: None });
    match slot.reply {
        Some(reply) if request.seq == slot.seq => return Ok(reply),
        _ if request.seq.checked_sub(1) == Some(slot.seq) => {}
        _ => {
            let message = format!("sequence {} on slot {}, which is at {}", request.seq, request.slot, slot.seq);
            // Of a kind that is never kept: whoever settles the slot must not take this for its stored reply.
            return Ok(Err(Fault::new(Kind::Stale, message)));
        }
    }
    let reply = match &request.op {
        Op::Batch(changes) => batch::run(txn, index, at, request.session, changes)?,
        op => guarded(txn, index, at, (request.session, &request.cred), |call| run_op(call, op))?,
    };
    let keep = match &reply {
        Ok(_) => !matches!(request.op, Op::CloseSession), // its slots are gone
        Err(fault) => fault.kind.is_kept(),
    };
    if keep {
        let slot = SlotRow { seq: request.seq, reply: Some(reply.clone()) };
        txn.put(SLOT, slot_key, slot.encode());
    }
    Ok(reply)
}

/// Whether a request was carried out, and its answer is kept: then it is answered so again, whatever holds by now.
pub fn is_answered(read: &dyn KvRead, request: &Request) -> Result<bool, KvError> {
    let slot: Option<SlotRow> = row(read, SLOT, &keys::slot(request.session, request.slot))?;
    Ok(slot.is_some_and(|slot| slot.seq == request.seq && slot.reply.is_some()))
}

/// Runs the body all or nothing.
pub(super) fn guarded(
    txn: &mut Txn<'_>,
    index: LogIndex,
    at: Time,
    (session, cred): (SessionId, &Cred),
    body: impl FnOnce(&mut Call<'_, '_>) -> Result<Outcome, Fail>,
) -> Result<Result<Applied, Fault>, KvError> {
    let savepoint = txn.savepoint();
    let mut call = Call::new(txn, index, at, session, cred)?;
    match body(&mut call) {
        Ok(outcome) => {
            call.finish();
            Ok(Ok(Applied { outcome, index }))
        }
        Err(Fail::Fault(fault)) => {
            txn.rollback(savepoint);
            Ok(Err(fault))
        }
        Err(Fail::Kv(error)) => Err(error),
    }
}

/// Makes a session. Uses no slot of it, but the slot and sequence it came with count as used (0: none).
fn open(call: &mut Call<'_, '_>, label: &str, slots: u16, request: &Request) -> Result<Outcome, Fail> {
    let config = call.config()?;
    if call.session == remove::UNASKED {
        return Err(refuse(Kind::Invalid, "no session has this number"));
    }
    if slots == 0 || slots > SLOTS_MAX {
        return Err(refuse(Kind::Invalid, format!("{slots} slots: 1 to {SLOTS_MAX}")));
    }
    let key = keys::session(call.session);
    let there: Option<SessionRow> = row(call.txn, SESSION, &key)?;
    match there {
        Some(there) if there.ended => return Err(refuse(Kind::NoSession, "this session has ended")),
        Some(_) => {}
        None => {
            forget_ended(call)?;
            let mut label = label.to_owned();
            label.truncate(label.floor_char_boundary(LABEL_LEN_MAX));
            let row = SessionRow { label, slots, opened: call.at, ended: false };
            call.txn.put(SESSION, key, row.encode());
            call.counters.sessions += 1;
            if matches!(request.op, Op::OpenAttending { .. }) {
                call.txn.put(ATTEND, keys::session(call.session), Vec::new());
            }
            if request.seq > 0 && request.slot < slots {
                let used = SlotRow { seq: request.seq, reply: None };
                call.txn.put(SLOT, keys::slot(call.session, request.slot), used.encode());
            }
        }
    }
    Ok(Outcome::Session {
        epoch: config.epoch,
        write_token: config.secret.write_token(call.session, config.epoch),
        timeout_ms: SESSION_TIMEOUT_MS,
    })
}

/// Ends a session: its orphans go, its slots are forgotten. Fine if it is not there.
pub(super) fn end(call: &mut Call<'_, '_>, session: SessionId) -> Result<(), Fail> {
    let key = keys::session(session);
    let Some(mut row) = row::<SessionRow>(call.txn, SESSION, &key)?.filter(|row| !row.ended) else {
        return Ok(());
    };
    let prefix = prefix_range(&key);
    let mut orphans = Vec::new();
    for found in call.txn.scan(ORPHAN, prefix.clone(), false) {
        let (key, _) = found?;
        orphans.push(InodeId(keys::last_u64(&key).ok_or_else(|| short("orphan"))?));
    }
    for ino in orphans {
        remove::let_go(call, session, ino)?;
    }
    let slots =
        call.txn.scan(SLOT, prefix, false).map(|found| found.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
    for slot in slots {
        call.txn.delete(SLOT, slot);
    }
    lock::end(call, session)?;
    batch::end(call, session)?;
    call.txn.delete(ATTEND, keys::session(session));
    row.ended = true;
    call.txn.put(SESSION, key, row.encode());
    let now = clock(call)?;
    call.txn.put(ENDED, keys::ended(now, session), Vec::new());
    call.counters.sessions -= 1;
    Ok(())
}

/// The time by the clock of ended sessions, which goes on to now.
fn clock(call: &mut Call<'_, '_>) -> Result<Time, Fail> {
    let before: Option<SessionClock> = row(call.txn, CLUSTER, keys::SESSION_CLOCK)?;
    let clock = before.map_or(SessionClock { now: call.at, seen: call.at }, |before| step(before, call.at));
    if before != Some(clock) {
        call.txn.put(CLUSTER, keys::SESSION_CLOCK, clock.encode());
    }
    Ok(clock.now)
}

/// Goes on by what has passed since it was last looked at: never back, and not by more than [`CLOCK_STEP_MAX_SECS`].
fn step(clock: SessionClock, at: Time) -> SessionClock {
    let passed = at.secs.saturating_sub(clock.seen.secs).clamp(0, CLOCK_STEP_MAX_SECS);
    SessionClock { now: Time { secs: clock.now.secs.saturating_add(passed), nanos: 0 }, seen: at }
}

/// Forgets some sessions that ended long ago.
fn forget_ended(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    let before = Time { secs: clock(call)?.secs.saturating_sub(ENDED_KEPT_SECS), nanos: 0 };
    let range = (Bound::Unbounded, Bound::Excluded(keys::ended(before, SessionId(0))));
    let old = call.txn.scan(ENDED, range, false).take(FORGET_MAX).collect::<Result<Vec<_>, _>>()?;
    for (key, _) in old {
        let session = keys::last_session(&key).ok_or_else(|| short("ended"))?;
        call.txn.delete(SESSION, keys::session(session));
        call.txn.delete(ENDED, key);
    }
    Ok(())
}

fn short(what: &str) -> KvError {
    crate::store::values::damaged(what, "the key is too short")
}

/// All sessions that are open: for the leader, to watch them.
pub fn sessions(read: &dyn KvRead) -> Result<Vec<(SessionId, SessionRow)>, KvError> {
    let mut open = Vec::new();
    for found in read.scan(SESSION, (Bound::Unbounded, Bound::Unbounded), false) {
        let (key, value) = found?;
        let row = SessionRow::decode(&value)?;
        if !row.ended {
            open.push((keys::first_session(&key).ok_or_else(|| short("session"))?, row));
        }
    }
    Ok(open)
}

/// True if the session is open.
pub fn is_open(read: &dyn KvRead, session: SessionId) -> Result<bool, KvError> {
    let found: Option<SessionRow> = row(read, SESSION, &keys::session(session))?;
    Ok(found.is_some_and(|row| !row.ended))
}

/// # Errors
/// `NoSession` unless the session is open.
pub(super) fn need_open(read: &dyn KvRead, session: SessionId) -> Result<(), Fail> {
    let found: Option<SessionRow> = row(read, SESSION, &keys::session(session))?;
    match found {
        Some(row) if !row.ended => Ok(()),
        _ if config(read)?.is_none() => Err(refuse(Kind::Refused, "the cluster is not formatted")),
        _ => Err(refuse(Kind::NoSession, format!("session {session} is unknown or ended"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::FAMILIES;
    use common::disk::RealDisk;
    use common::kv::memory::MemoryKv;

    #[test]
    fn the_clock_of_ended_sessions_follows_the_time_but_no_jump() {
        let time = |secs| Time { secs, nanos: 0 };
        let mut clock = SessionClock { now: time(1000), seen: time(1000) };
        // The leader's time, and what is shown then.
        for (at, shows) in
            [(1000, 1000), (1030, 1030), (1000, 1030), (1030, 1060), (9_000_000, 1120), (9_000_059, 1179)]
        {
            clock = step(clock, time(at));
            assert_eq!(clock.now.secs, shows, "at {at}");
        }
        clock = step(clock, time(-5));
        assert_eq!((clock.now.secs, clock.seen.secs), (1179, -5), "back: it waits there");
        assert_eq!(step(clock, time(40)).now.secs, 1224);
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let kv = MemoryKv::open(std::sync::Arc::new(RealDisk), dir.path(), &FAMILIES).unwrap();
        let cred = Cred::default();
        let mut txn = Txn::new(&kv);
        txn.put(SESSION, *b"before", Vec::new());
        let reply = guarded(&mut txn, LogIndex(1), Time::default(), (SessionId(1), &cred), |call| {
            call.counters.inodes += 1;
            call.txn.delete(SESSION, *b"before");
            call.txn.put(SESSION, *b"during", Vec::new());
            Err(refuse(Kind::Exists, "after all"))
        });
        assert_eq!(reply.unwrap().unwrap_err().kind, Kind::Exists);
        let batch = txn.into_batch();
        assert_eq!(batch.changes, [(SESSION, b"before".to_vec(), Some(Vec::new()))]);
    }
}
