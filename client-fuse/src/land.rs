//! The write path from where bytes are stored: flights land in order, by one commit for as many as are ready.
//!
//! A flight whose chunks or commit failed stays in the queue and is tried again after a pause, as long as that can
//! succeed ([`is_lasting`]); its bytes stay readable and count against the budget. A commit with an unknown outcome is
//! repeated under the same slot and number until the outcome is known, so an append never lands twice.

use crate::chunks::{Outgoing, Stored};
use crate::core::Core;
use crate::inode::{Flight, Inode, Upload, Uploaded};
use crate::leases::Change;
use crate::meta::{Pending, unexpected};
use crate::session::Session;
use crate::stats::add;
use common::auth::Attempt;
use common::fault::{Fault, Kind};
use common::id::LayoutVersion;
use common::proto::meta::{Answer, Commit, Cred, Edit, Op, Outcome, Query, Source, Submitted};
use common::units::{COMMIT_EDITS_MAX, COMMIT_INLINE_MAX, len_u64, len_usize};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{error, warn};

/// The pause before a failed flight is tried again: twice as long each time, up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Times a commit starts over with a new witness or layout before that counts as a failure.
const ATTEMPTS_MAX: u32 = 8;

/// What the metaservers deny they deny the next time as well; a chunkserver may not.
fn for_good(fault: Fault) -> Fault {
    let kind = if fault.kind == Kind::Denied { Kind::NotPermitted } else { fault.kind };
    Fault { kind, ..fault }
}

/// Whether it makes sense to keep the bytes and try again.
fn is_lasting(kind: Kind, has_handles: bool) -> bool {
    match kind {
        Kind::NotLeader | Kind::Busy | Kind::Unsure | Kind::Unavailable | Kind::Refused => true,
        Kind::TouchAgain | Kind::PutAgain | Kind::Stale | Kind::Corrupt => true,
        // Room may be made while somebody still has the file open to hear of it.
        // `Denied`: a chunkserver does not take our session's token; the commit will tell if it has ended.
        Kind::NoSpace | Kind::Denied => has_handles,
        Kind::NotFound
        | Kind::Exists
        | Kind::NotEmpty
        | Kind::NotDir
        | Kind::IsDir
        | Kind::Invalid
        | Kind::NotPermitted
        | Kind::NameTooLong
        | Kind::TooManyLinks
        | Kind::TooBig
        | Kind::NoData
        | Kind::Range
        | Kind::Loop
        | Kind::Unsupported
        | Kind::Gone
        | Kind::NoSession
        | Kind::Internal => false,
    }
}

/// Lands the flights of one file until none is left.
pub(crate) async fn land(core: &Arc<Core>, inode: &Arc<Inode>) {
    let mut open: Option<(Pending, Batch)> = None;
    let mut pause = RETRY_PAUSE;
    loop {
        let due = {
            let state = inode.lock();
            Some(()).filter(|()| state.flights.is_empty()).and_then(|()| state.compact_in(Instant::now()))
        };
        if let Some(pause) = due {
            let more = timeout_at(Instant::now() + pause, inode.arrived.notified()).await.is_ok();
            if more || core.compact(inode).await {
                continue;
            }
        }
        let held = {
            let mut state = inode.lock();
            if state.flights.is_empty() {
                state.pumping = false;
                drop(state);
                inode.changed.notify_waiters();
                core.forget_idle(inode);
                return;
            }
            if !state.is_held() {
                core.start_uploads(inode, &mut state);
            }
            state.is_held()
        };
        if held {
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        }
        let result = match open.take() {
            Some((pending, batch)) => core.commit_pending(inode, pending, batch, &mut open).await,
            None => core.land_next(inode, &mut open).await,
        };
        {
            let mut state = inode.lock();
            state.committing = open.is_some();
            state.follow_end();
        }
        inode.changed.notify_waiters();
        let Err(fault) = result else {
            pause = RETRY_PAUSE;
            continue;
        };
        core.failed_to_land(inode, fault, open.is_some());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Flights at the front of the queue that one commit lands.
struct Batch {
    count: usize,
    append: bool,
    /// Where the first appended byte is, as seen here.
    base: u64,
    edits: Vec<Edit>,
    chunks: Vec<Outgoing>,
    stored: Option<Stored>,
    mtime: common::time::Time,
}

impl Core {
    fn failed_to_land(&self, inode: &Arc<Inode>, fault: Fault, unknown: bool) {
        let mut state = inode.lock();
        let keep = unknown || is_lasting(fault.kind, state.handles > 0);
        if keep {
            warn!(op = "commit", inode = %inode.ino, error = %fault, "not saved yet; kept and tried again");
        } else {
            error!(op = "commit", inode = %inode.ino, error = %fault, "unsaved data is lost");
            if fault.kind == Kind::NoSession {
                state.lost_before = state.opened + 1;
            }
            let flights = state.flights.len();
            let bytes = state.drop_front(flights) + state.drop_dirty();
            self.unsaved.add_permits(len_usize(bytes));
        }
        state.fail(fault);
        drop(state);
        inode.changed.notify_waiters();
    }

    /// Waits for the first flight's upload, then commits it with those behind it that are ready.
    async fn land_next(&self, inode: &Arc<Inode>, open: &mut Option<(Pending, Batch)>) -> Result<(), Fault> {
        let first = {
            let mut state = inode.lock();
            let Some(flight) = state.flights.front_mut() else { return Ok(()) };
            match std::mem::replace(&mut flight.upload, Upload::Awaited) {
                Upload::Running(receiver) => Some(receiver),
                other => {
                    flight.upload = other;
                    None
                }
            }
        };
        if let Some(receiver) = first {
            // Only this task takes flights from the front, so it is the same one afterwards.
            let result =
                receiver.await.unwrap_or_else(|_| Err(Fault::new(Kind::Unavailable, "the client is stopping")));
            let (upload, fault) = match result {
                Ok(uploaded) => (Upload::Done(uploaded), None),
                Err(fault) => (Upload::No, Some(fault)),
            };
            if let Some(flight) = inode.lock().flights.front_mut() {
                flight.upload = upload;
            }
            fault.map_or(Ok(()), Err)?;
        }
        let (batch, session) = self.gather(inode)?;
        self.commit_batch(inode, batch, &session, open).await
    }

    /// The flights that go into the next commit.
    fn gather(&self, inode: &Arc<Inode>) -> Result<(Batch, Arc<Session>), Fault> {
        let session = self.meta.session();
        let mut state = inode.lock();
        let mut batch: Option<Batch> = None;
        let mut inline = 0;
        for flight in &mut state.flights {
            poll(flight);
            let Upload::Done(up) = &flight.upload else { break };
            if flight.generation != session.generation {
                if batch.is_none() {
                    return Err(Fault::new(Kind::NoSession, "the session that wrote this has ended"));
                }
                break;
            }
            inline += up.inline_bytes;
            match &mut batch {
                None => batch = Some(Batch::of(flight, up)),
                Some(batch) if inline <= len_u64(COMMIT_INLINE_MAX) && batch.takes(flight, up) => batch.add(flight, up),
                Some(_) => break,
            }
        }
        state.committing = batch.is_some();
        batch.map(|batch| (batch, session)).ok_or_else(|| Fault::new(Kind::Busy, "nothing to commit"))
    }

    /// Commits, and stores again under a new attempt where the metaservers ask for it.
    async fn commit_batch(
        &self,
        inode: &Arc<Inode>,
        mut batch: Batch,
        session: &Arc<Session>,
        open: &mut Option<(Pending, Batch)>,
    ) -> Result<(), Fault> {
        let deadline = self.meta.deadline();
        for _ in 0..ATTEMPTS_MAX {
            let op = Op::Commit(batch.commit(inode, self.meta.attempt().attempt));
            let writer = inode.writer();
            if batch.is_full(inode) {
                let losses = self.leases.losses();
                let decided = self.decide_with(&writer, &op, &batch.chunks, deadline).await;
                if let Some(outcome) = decided.map_err(|fault| self.of_others(session, fault))? {
                    let landed = self.landed(inode, &batch, outcome);
                    if self.leases.losses() != losses {
                        inode.lock().lost_version(); // perhaps this one, before it was noted here
                    }
                    return landed;
                }
            }
            let change = match self.config.leases {
                true => Some(self.begin(&op, deadline).await.map_err(|fault| self.of_others(session, fault))?),
                false => None,
            };
            let mut pending = match self.meta.prepare(session, &writer, op, deadline).await {
                Ok(pending) => pending,
                Err(fault) => {
                    change.into_iter().for_each(Change::undone);
                    return Err(fault);
                }
            };
            pending.change = change;
            match self.meta.send(&mut pending, deadline).await {
                Ok(submitted) => return self.saved(inode, &batch, &mut pending, submitted),
                Err(fault) if matches!(fault.kind, Kind::TouchAgain | Kind::PutAgain) => {
                    add(&self.counters.commit_retries, 1);
                    // No copy of the old attempt may be run later, over what comes after it.
                    match self.meta.settle(&mut pending.guard, deadline).await {
                        Ok(Some(applied)) => return self.saved(inode, &batch, &mut pending, applied.into()),
                        Ok(None) => pending.change.into_iter().for_each(Change::undone),
                        Err(fault) => {
                            *open = Some((pending, batch));
                            return Err(fault);
                        }
                    }
                    self.store_again(inode, &mut batch, deadline).await?;
                }
                Err(fault) if fault.kind == Kind::NoSession => {
                    self.meta.reopen(session, deadline).await?;
                    return Err(fault);
                }
                Err(fault) if fault.kind.is_transient() => {
                    *open = Some((pending, batch));
                    return Err(fault);
                }
                Err(fault) => {
                    return match self.meta.settle(&mut pending.guard, deadline).await {
                        Ok(Some(applied)) => self.saved(inode, &batch, &mut pending, applied.into()),
                        Ok(None) => {
                            pending.change.into_iter().for_each(Change::undone);
                            Err(for_good(fault))
                        }
                        Err(_) => {
                            *open = Some((pending, batch));
                            Err(fault)
                        }
                    };
                }
            }
        }
        Err(Fault::new(Kind::Unavailable, format!("the metaservers refused the commit {ATTEMPTS_MAX} times")))
    }

    /// That changes of other files were lost is no reason to lose this one's data.
    fn of_others(&self, session: &Session, fault: Fault) -> Fault {
        match fault.kind {
            Kind::NoSession if self.meta.session().id == session.id => Fault { kind: Kind::Busy, ..fault },
            _ => fault,
        }
    }

    /// Repeats a commit whose outcome is not known.
    async fn commit_pending(
        &self,
        inode: &Arc<Inode>,
        mut pending: Pending,
        batch: Batch,
        open: &mut Option<(Pending, Batch)>,
    ) -> Result<(), Fault> {
        let deadline = self.meta.deadline();
        if !pending.guard.is_settling() {
            match self.meta.send(&mut pending, deadline).await {
                Ok(submitted) => return self.saved(inode, &batch, &mut pending, submitted),
                Err(fault) if fault.kind == Kind::NoSession => {
                    self.meta.reopen(&pending.guard.session().clone(), deadline).await?;
                    return Err(fault);
                }
                Err(fault) if fault.kind.is_transient() => {
                    *open = Some((pending, batch));
                    return Err(fault);
                }
                Err(_) => {} // refused for now, but an older copy may still be run: make sure that it is not
            }
        }
        match self.meta.settle(&mut pending.guard, deadline).await {
            Ok(Some(applied)) => self.saved(inode, &batch, &mut pending, applied.into()),
            Ok(None) => {
                pending.change.into_iter().for_each(Change::undone);
                Ok(()) // it never happened: begin anew
            }
            Err(fault) if fault.kind == Kind::NoSession => {
                self.meta.reopen(&pending.guard.session().clone(), deadline).await?;
                Err(fault)
            }
            Err(fault) => {
                *open = Some((pending, batch));
                Err(fault)
            }
        }
    }

    async fn store_again(&self, inode: &Arc<Inode>, batch: &mut Batch, deadline: Instant) -> Result<(), Fault> {
        let auth = self.meta.new_attempt(deadline).await?;
        let map = self.meta.map();
        self.meta.refresh_map(map.version, deadline).await?;
        // More copies may be wanted than when it was opened.
        let query = Query::GetAttr { ino: inode.ino };
        if let Ok((answered, _)) = self.meta.query(&Cred::default(), query, false, deadline).await
            && let Answer::Attr(attr) = answered.answer
        {
            inode.lock().attr.replicas = attr.replicas;
        }
        let replicas = inode.lock().attr.replicas;
        batch.stored = Some(self.chunks.store(auth, replicas, &batch.chunks, true, deadline).await?);
        Ok(())
    }

    /// A commit was applied: the file follows, then what is believed of it.
    fn saved(
        &self,
        inode: &Arc<Inode>,
        batch: &Batch,
        pending: &mut Pending,
        submitted: Submitted,
    ) -> Result<(), Fault> {
        let landed = self.landed(inode, batch, submitted.applied.outcome.clone());
        if let Some(change) = pending.change.take() {
            change.done(&pending.request.op, &Ok(submitted), pending.request.session, self.world.uptime());
        }
        landed
    }

    /// A commit was applied: its flights become committed extents in one step.
    fn landed(&self, inode: &Arc<Inode>, batch: &Batch, outcome: Outcome) -> Result<(), Fault> {
        let Outcome::Committed { attr, offset } = outcome else {
            return Err(unexpected("commit", &outcome));
        };
        let mut state = inode.lock();
        let bytes = state.drop_front(batch.count);
        state.landed_at = Some(Instant::now());
        let mut moved = 0;
        if batch.append {
            moved = i64::try_from(offset).expect("below 2^60") - i64::try_from(batch.base).expect("below 2^60");
            if moved != 0 {
                state.shift_appended(moved);
            }
        }
        let placed = batch.edits.iter().map(|edit| {
            let at = edit.at.saturating_add_signed(moved);
            (at..at + edit.len, Some(edit.data.clone()))
        });
        let placed: Vec<(Range<u64>, Option<Source>)> = placed.collect();
        state.count_fragments(placed.iter().map(|(range, _)| range.clone()));
        if moved == 0 {
            state.extents.committed(attr.version, placed.into_iter());
        } // else somebody else has changed the file: nothing of before is known any more
        state.adopt(&attr);
        let inline = batch.edits.iter().filter(|e| matches!(e.data, Source::Inline { .. })).map(|e| e.len);
        state.inlined += inline.sum::<u64>();
        drop(state);
        self.unsaved.add_permits(len_usize(bytes));
        add(&self.counters.commits, 1);
        inode.changed.notify_waiters();
        Ok(())
    }
}

/// Looks whether an upload has ended well. One that failed is left for when it comes to the front.
fn poll(flight: &mut Flight) {
    if let Upload::Running(receiver) = &mut flight.upload {
        match receiver.try_recv() {
            Ok(Ok(uploaded)) => flight.upload = Upload::Done(uploaded),
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => flight.upload = Upload::No,
            Err(oneshot::error::TryRecvError::Empty) => {}
        }
    }
}

impl Batch {
    fn of(flight: &Flight, up: &Uploaded) -> Batch {
        let mut batch = Batch {
            count: 0,
            append: flight.append,
            base: flight.start(),
            edits: Vec::new(),
            chunks: Vec::new(),
            stored: None,
            mtime: flight.mtime,
        };
        batch.add(flight, up);
        batch
    }

    fn takes(&self, flight: &Flight, up: &Uploaded) -> bool {
        let same_attempt = match (&self.stored, &up.stored) {
            (Some(mine), Some(its)) => mine.attempt == its.attempt && mine.layout == its.layout,
            _ => true,
        };
        same_attempt && self.append == flight.append && self.edits.len() + up.edits.len() <= COMMIT_EDITS_MAX
    }

    fn add(&mut self, flight: &Flight, up: &Uploaded) {
        self.count += 1;
        self.mtime = flight.mtime;
        let shifted = |edit: &Edit| Edit { at: edit.at.saturating_add_signed(flight.shift), ..edit.clone() };
        self.edits.extend(up.edits.iter().map(shifted));
        for (i, out) in up.chunks.iter().enumerate() {
            if self.chunks.iter().any(|there| there.chunk.id == out.chunk.id) {
                continue; // the same bytes in two flights: named once
            }
            self.chunks.push(out.clone());
            if let Some(its) = &up.stored {
                let empty = || Stored { chunks: Vec::new(), ..its.clone() };
                self.stored.get_or_insert_with(empty).chunks.push(its.chunks[i].clone());
            }
        }
    }

    /// Every chunk has all the copies that the file wants: with fewer, the metaservers say whether that will do.
    fn is_full(&self, inode: &Inode) -> bool {
        let replicas = usize::from(inode.lock().attr.replicas);
        self.stored.iter().flat_map(|stored| &stored.chunks).all(|chunk| chunk.receipts.len() >= replicas)
    }

    fn commit(&self, inode: &Inode, now: Attempt) -> Commit {
        let base = if self.append { self.base } else { 0 };
        let relative = |edit: &Edit| Edit { at: edit.at - base, ..edit.clone() };
        let (attempt, layout, chunks) = match &self.stored {
            Some(stored) => (stored.attempt, stored.layout, stored.chunks.clone()),
            None => (now, LayoutVersion(0), Vec::new()),
        };
        Commit {
            ino: inode.ino,
            base: None,
            edits: self.edits.iter().map(relative).collect(),
            append: self.append,
            grow: self.edits.iter().map(|edit| edit.at + edit.len).max().unwrap_or(base) - base,
            chunks,
            attempt,
            layout,
            mtime: Some(self.mtime),
        }
    }
}
