//! A session's slots: how a change takes effect exactly once, whatever happens to its messages.
//!
//! The state machine keeps one reply per slot and runs only the sequence number behind the last it ran. So the client
//! must know, before it uses a slot again, whether the last number was used up. A success and a fault that only the
//! state machine gives are recorded: they use it up. Any other end leaves it open: the answer may not have been recorded
//! (`TouchAgain`, `Stale`), or a copy of the request may still be on its way. Such a slot is *settled* before it is used
//! again: an operation that changes nothing is sent under the same number. Either that one takes the number, or the
//! stored reply of the first comes back; after both, every late copy is answered from the slot and never run.
//!
//! A [`SlotGuard`] that is dropped half-way (a caller that gave up) leaves its slot to the settling task. While the
//! outcome of such a request is not known, no new change begins ([`Session::known`]): a late copy of the old one would
//! run after it, over what the caller has done since.

use common::auth::{Attempt, Mac};
use common::fault::Kind;
use common::id::{Epoch, LogIndex, SessionId};
use common::proto::chunk::WriteAuth;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Requests one session has under way at once, beside the one for batches.
pub(crate) const SLOTS: u16 = 64;
/// The slot for batches of decided changes: others wait for them, so they wait for no others.
const BATCH_SLOT: u16 = SLOTS;

/// A session with the metaservers.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) epoch: Epoch,
    write_token: Mac,
    /// Counts sessions of this client: what an older one left unsaved is lost.
    pub(crate) generation: u64,
    free: Mutex<Vec<Slot>>,
    unsettled: Mutex<VecDeque<Parked>>,
    pub(crate) unsettled_added: Notify,
    /// Parked requests that may still be run.
    unknown: watch::Sender<usize>,
    available: Arc<Semaphore>,
    /// The slot for batches, while it is free, and a permit for it.
    batch: Mutex<Option<Slot>>,
    batch_available: Arc<Semaphore>,
}

/// A slot and the number its next request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u16,
    pub(crate) seq: u64,
}

/// A slot that waits to be settled.
#[derive(Debug)]
struct Parked {
    slot: Slot,
    permit: OwnedSemaphorePermit,
    /// Counted in `Session::unknown`.
    unknown: bool,
}

/// What is known of the number of the request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    /// Nothing was sent.
    No,
    /// A copy may have been run, or may still be.
    Maybe,
    /// It was run and its reply is kept.
    Yes,
}

/// A slot taken for one request (and its repetitions).
#[derive(Debug)]
pub(crate) struct SlotGuard {
    session: Arc<Session>,
    slot: Slot,
    used: Used,
    /// No answer says what became of the last copy that was sent.
    unknown: bool,
    /// Counted in `Session::unknown`.
    counted: bool,
    /// Something else was sent under the number: sending the request again might bring back that one's reply.
    settling: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Session {
    pub(crate) fn new(id: SessionId, epoch: Epoch, write_token: Mac, generation: u64) -> Session {
        Session {
            id,
            epoch,
            write_token,
            generation,
            free: Mutex::new((0..SLOTS).rev().map(|number| Slot { number, seq: 1 }).collect()),
            unsettled: Mutex::default(),
            unsettled_added: Notify::new(),
            unknown: watch::Sender::new(0),
            available: Arc::new(Semaphore::new(usize::from(SLOTS))),
            batch: Mutex::new(Some(Slot { number: BATCH_SLOT, seq: 1 })),
            batch_available: Arc::new(Semaphore::new(1)),
        }
    }

    /// What puts and touches with this witness are made under.
    pub(crate) fn auth(&self, witness: LogIndex) -> WriteAuth {
        let attempt = Attempt { session: self.id, witness, epoch: self.epoch };
        WriteAuth { attempt, token: self.write_token }
    }

    /// Waits for a free slot. The caller sets the deadline.
    pub(crate) async fn take(self: &Arc<Self>) -> SlotGuard {
        let permit = self.available.clone().acquire_owned().await.expect("never closed");
        let slot = self.free.lock().expect("no panic holds this lock").pop().expect("a permit is a free slot");
        self.guard(slot, permit)
    }

    /// As [`Session::take`], of the slot for batches.
    pub(crate) async fn take_for_batch(self: &Arc<Self>) -> SlotGuard {
        let permit = self.batch_available.clone().acquire_owned().await.expect("never closed");
        let slot = self.batch.lock().expect("no panic holds this lock").take().expect("a permit is a free slot");
        self.guard(slot, permit)
    }

    fn guard(self: &Arc<Self>, slot: Slot, permit: OwnedSemaphorePermit) -> SlotGuard {
        let (unknown, counted, settling) = (false, false, false);
        SlotGuard { session: self.clone(), slot, used: Used::No, unknown, counted, settling, permit: Some(permit) }
    }

    /// Waits until no request that its caller gave up may still be run. The caller sets the deadline.
    pub(crate) async fn known(&self) {
        self.unknown.subscribe().wait_for(|unknown| *unknown == 0).await.expect("the sender is here");
    }

    /// True if no request that its caller gave up may still be run.
    pub(crate) fn is_certain(&self) -> bool {
        *self.unknown.borrow() == 0
    }

    /// Takes the slot that has waited longest to be settled.
    pub(crate) fn take_unsettled(self: &Arc<Self>) -> Option<SlotGuard> {
        let Parked { slot, permit, unknown } = self.unsettled.lock().expect("no panic holds this lock").pop_front()?;
        let (session, permit) = (self.clone(), Some(permit));
        Some(SlotGuard { session, slot, used: Used::Maybe, unknown, counted: unknown, settling: true, permit })
    }

    fn park(&self, parked: Parked, counted: bool) {
        if parked.unknown && !counted {
            self.unknown.send_modify(|unknown| *unknown += 1);
        }
        self.unsettled.lock().expect("no panic holds this lock").push_back(parked);
        self.unsettled_added.notify_one();
    }

    fn put_back(&self, slot: Slot, permit: OwnedSemaphorePermit, counted: bool) {
        match slot.number {
            BATCH_SLOT => *self.batch.lock().expect("no panic holds this lock") = Some(slot),
            _ => self.free.lock().expect("no panic holds this lock").push(slot),
        }
        drop(permit); // after the slot is there: a permit is a free slot
        if counted {
            self.unknown.send_modify(|unknown| *unknown -= 1);
        }
    }
}

impl SlotGuard {
    /// The slot's number.
    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    /// The session it belongs to.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// A copy is about to be sent: until its answer says otherwise it may be run.
    pub(crate) fn sending(&mut self) {
        self.used = Used::Maybe;
        self.unknown = true;
    }

    /// The answer came: `None` for a success.
    pub(crate) fn answered(&mut self, fault: Option<Kind>) {
        if fault.is_none_or(is_recorded) {
            self.used = Used::Yes;
        }
        self.unknown = fault.is_some_and(|kind| !is_stored(kind));
    }

    /// The answer to the settling operation came: `None` for a success.
    pub(crate) fn settled(&mut self, fault: Option<Kind>) {
        assert!(self.settling, "the answer to another operation");
        // In a session that has ended nothing is run any more.
        if fault.is_none_or(|kind| is_stored(kind) || kind == Kind::NoSession) {
            self.used = Used::Yes;
        }
    }

    /// From now on only [`crate::meta::Meta::settle`] sends under this number.
    pub(crate) fn begin_settling(&mut self) {
        self.settling = true;
    }

    /// Whether it was begun to be settled.
    pub(crate) fn is_settling(&self) -> bool {
        self.settling
    }

    /// Whether a copy of the request may still be run.
    pub(crate) fn is_open(&self) -> bool {
        self.used == Used::Maybe
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let (slot, unknown) = (self.slot, self.unknown);
        match self.used {
            Used::No => self.session.put_back(slot, permit, self.counted),
            Used::Yes => self.session.put_back(Slot { seq: slot.seq + 1, ..slot }, permit, self.counted),
            Used::Maybe => self.session.park(Parked { slot, permit, unknown }, self.counted),
        }
    }
}

/// Whether a reply with this fault is kept by the slot for certain. False where it is not, and where it may come from
/// the leader's own checks or from a repetition, before or beside a copy that reached the state machine.
fn is_recorded(kind: Kind) -> bool {
    match kind {
        Kind::NotFound
        | Kind::Exists
        | Kind::NotEmpty
        | Kind::NotDir
        | Kind::IsDir
        | Kind::NoData
        | Kind::Loop
        | Kind::TooManyLinks
        | Kind::Gone => true,
        Kind::NotLeader
        | Kind::Busy
        | Kind::Stale
        | Kind::TouchAgain
        | Kind::PutAgain
        | Kind::Refused
        | Kind::Invalid
        | Kind::NoSpace
        | Kind::Denied
        | Kind::NotPermitted
        | Kind::NameTooLong
        | Kind::TooBig
        | Kind::Range
        | Kind::Unsupported
        | Kind::Unsure
        | Kind::Corrupt
        | Kind::NoSession
        | Kind::Unavailable
        | Kind::Internal => false,
    }
}

/// Whether what the settling operation got is the first one's stored reply. That operation is refused for none of the
/// reasons whose replies are kept, so each of those proves it; but `Refused` and `Internal` may come from a connection
/// or a leader that cannot go on, and no change of a client is answered with them by the state machine.
fn is_stored(kind: Kind) -> bool {
    kind.is_kept() && !matches!(kind, Kind::Refused | Kind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Arc<Session> {
        Arc::new(Session::new(SessionId(1), Epoch(1), Mac::default(), 1))
    }

    #[tokio::test]
    async fn a_number_goes_up_only_when_it_was_used() {
        let session = session();
        let first = session.take().await.slot();
        let mut guard = session.take().await;
        assert_eq!(guard.slot(), first, "nothing was sent");
        guard.sending();
        guard.answered(None);
        drop(guard);
        let mut guard = session.take().await;
        assert_eq!(guard.slot(), Slot { seq: first.seq + 1, ..first });
        guard.sending();
        guard.answered(Some(Kind::Exists));
        drop(guard);
        assert_eq!(session.take().await.slot(), Slot { seq: first.seq + 2, ..first });
    }

    #[tokio::test]
    async fn an_open_request_parks_its_slot_until_it_is_settled() {
        for lost in [None, Some(Kind::Unsure), Some(Kind::TouchAgain), Some(Kind::Invalid)] {
            let session = session();
            let mut guard = session.take().await;
            let slot = guard.slot();
            guard.sending();
            if let Some(kind) = lost {
                guard.answered(Some(kind));
            }
            drop(guard); // `None`: the caller gave up
            assert_ne!(session.take().await.slot().number, slot.number);
            let mut guard = session.take_unsettled().expect("parked");
            assert_eq!(guard.slot(), slot, "settled under the same number");
            guard.settled(lost.filter(|kind| kind.is_kept()));
            drop(guard);
            assert_eq!(session.take().await.slot(), Slot { seq: slot.seq + 1, ..slot });
            assert!(session.take_unsettled().is_none());
        }
    }
    #[tokio::test]
    async fn slots_are_settled_in_turn() {
        let session = session();
        let guards = vec![session.take().await, session.take().await, session.take().await];
        let numbers: Vec<u16> = guards.iter().map(|guard| guard.slot().number).collect();
        for mut guard in guards {
            guard.sending();
        }
        for number in [numbers[0], numbers[1], numbers[2], numbers[0]] {
            let guard = session.take_unsettled().expect("parked");
            assert_eq!(guard.slot().number, number, "one that cannot be settled does not keep the others waiting");
        }
    }

    #[tokio::test]
    async fn only_an_unknown_outcome_keeps_others_waiting() {
        let session = session();
        let is_known = || futures::FutureExt::now_or_never(session.known()).is_some();
        for (answer, known) in [(Kind::Denied, true), (Kind::Unsure, false), (Kind::Stale, false)] {
            let mut guard = session.take().await;
            guard.sending();
            guard.answered(Some(answer));
            assert!(is_known(), "its caller still has it");
            drop(guard);
            assert_eq!(is_known(), known, "{answer:?}");
            let mut guard = session.take_unsettled().expect("parked");
            guard.settled(Some(Kind::Unavailable));
            drop(guard);
            assert_eq!(is_known(), known, "{answer:?}: not settled yet");
            let mut guard = session.take_unsettled().expect("parked again");
            guard.settled((!known).then_some(Kind::NoSession));
            drop(guard);
            assert!(is_known());
        }
    }
}
