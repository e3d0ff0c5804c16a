//! The table behind [`super::Leases`]: decisions, told the time. Its invariants stand there.

use super::Noted;
use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::batch::Batch;
use common::proto::lease::{LEASE_WAIT, WRITE, WRITE_WAIT};
use common::proto::meta::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Sessions that hold one inode, at most: a change has to wait for each of them.
const HOLDERS_MAX: usize = 64;
/// Inodes that one session holds, at most.
const HELD_MAX: usize = 64 << 10;
/// Leases of all sessions together, at most: about 200 bytes each.
const LEASES_MAX: usize = 1 << 20;
/// Nobody gets a write lease of an inode for so long after others wanted it.
const CONTENDED: Duration = Duration::from_millis(1000);
/// Inodes that others wanted lately, at most; more, and nobody gets write leases.
const CONTENDED_MAX: usize = 16 << 10;
/// Inodes that are disputed, at most; more, and it may be any.
const DISPUTED_MAX: usize = 64 << 10;
/// Pause between looks whether a batch under way has ended.
const BATCH_TICK: Duration = Duration::from_millis(20);
/// Pause between looks whether a session was fenced.
const FENCE_TICK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Table {
    pub(super) inodes: BTreeMap<InodeId, Place>,
    pub(super) holders: BTreeMap<SessionId, Holder>,
    /// Names with a change under way.
    pub(super) names: BTreeSet<(InodeId, Name)>,
    /// Changes under way that may be of anything.
    pub(super) changing_all: usize,
    /// Leases of all sessions.
    pub(super) count: usize,
    /// The number of the last lease.
    pub(super) last: u64,
    /// When leases of earlier leaders have run out.
    pub(super) old_end: Instant,
    /// Sessions that may hold such leases, and whether they may have decided something under them.
    pub(super) unreported: BTreeMap<SessionId, bool>,
    /// How many write leases each session has, if any.
    pub(super) writers: BTreeMap<SessionId, usize>,
    /// When inodes were last wanted by others than their holders.
    pub(super) contended: BTreeMap<InodeId, Instant>,
    /// Sessions to be fenced before others are let pass what they may have decided.
    pub(super) fencing: BTreeSet<SessionId>,
    /// Sessions that were fenced, and not heard of since.
    pub(super) passed: BTreeSet<SessionId>,
    /// Changed or read by others while some session had not reported. `None`: it may be any.
    pub(super) disputed: Option<BTreeSet<InodeId>>,
    /// Batches under way that were made under leases of earlier leaders.
    pub(super) reclaiming: usize,
}

#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) holders: BTreeSet<SessionId>,
    /// Who may change it without asking.
    pub(super) writer: Option<SessionId>,
    /// Changes of it that are under way.
    pub(super) changing: usize,
}

#[derive(Debug)]
pub(super) struct Holder {
    /// What it holds, and the number of each lease.
    pub(super) inodes: BTreeMap<InodeId, u64>,
    /// When its leases have run out.
    pub(super) end: Instant,
    /// What it is to forget and has not yet, by number; and the other way round.
    pub(super) recalls: BTreeMap<u64, InodeId>,
    pub(super) recalled: BTreeMap<InodeId, u64>,
    /// The number of the last recall.
    pub(super) last: u64,
    /// It has claimed write leases: it gets them with what it changes.
    pub(super) claims: bool,
    /// Its batches that are under way: what they touch is not known before they have ended.
    pub(super) batches: usize,
}

impl Place {
    /// No lease for this session now. `own`: changes under way that do not count.
    pub(super) fn is_taken(&self, session: SessionId, own: usize) -> bool {
        let is_full = !self.holders.contains(&session) && self.holders.len() >= HOLDERS_MAX;
        self.changing > own || is_full || self.writer.is_some_and(|writer| writer != session)
    }
}

impl Table {
    /// No leases; those of earlier leaders may be held by these sessions.
    pub(super) fn new(sessions: impl Iterator<Item = (SessionId, bool)>, now: Instant) -> Table {
        Table {
            inodes: BTreeMap::new(),
            holders: BTreeMap::new(),
            names: BTreeSet::new(),
            changing_all: 0,
            count: 0,
            last: 0,
            old_end: now + LEASE_WAIT,
            unreported: sessions.collect(),
            writers: BTreeMap::new(),
            contended: BTreeMap::new(),
            fencing: BTreeSet::new(),
            passed: BTreeSet::new(),
            disputed: Some(BTreeSet::new()),
            reclaiming: 0,
        }
    }

    pub(super) fn grant_or_none(
        &mut self,
        session: SessionId,
        ino: InodeId,
        now: Instant,
        own: usize,
        write: bool,
    ) -> Noted {
        let none = Noted { number: 0, session, ino, before: None };
        self.grant(session, ino, now, own, write).unwrap_or(none)
    }

    /// `write`: a write lease, if nobody else is in the way.
    pub(super) fn grant(
        &mut self,
        session: SessionId,
        ino: InodeId,
        now: Instant,
        own: usize,
        write: bool,
    ) -> Option<Noted> {
        let holder = self.holders.entry(session).or_insert_with(|| Holder {
            inodes: BTreeMap::new(),
            end: now,
            recalls: BTreeMap::new(),
            recalled: BTreeMap::new(),
            last: 0,
            claims: false,
            batches: 0,
        });
        // Who does not answer recalls gets no more time.
        let is_full =
            !holder.inodes.contains_key(&ino) && (holder.inodes.len() >= HELD_MAX || self.count >= LEASES_MAX);
        let is_taken = self.inodes.get(&ino).is_some_and(|place| place.is_taken(session, own));
        let is_fenced = self.fencing.contains(&session); // soon: what it gets now would be forgotten with the rest
        if !holder.recalls.is_empty() || is_full || is_taken || is_fenced || self.changing_all > 0 {
            return None;
        }
        holder.end = holder.end.max(now + LEASE_WAIT);
        self.last += 2; // the lowest bit is `WRITE`
        self.inodes.entry(ino).or_default().holders.insert(session);
        if write && self.is_free_to_write(session, ino, own, now) {
            self.set_writer(ino, Some(session));
        }
        let is_writer = self.inodes.get(&ino).is_some_and(|place| place.writer == Some(session));
        let number = self.last | if is_writer { WRITE } else { 0 };
        let before = self.holders.get_mut(&session).expect("made above").inodes.insert(ino, number);
        self.count += usize::from(before.is_none());
        Some(Noted { number, session, ino, before })
    }

    /// Nobody but the session holds the inode, changes it or has wanted it lately. `own`: changes that do not count.
    pub(super) fn is_free_to_write(&self, session: SessionId, ino: InodeId, own: usize, now: Instant) -> bool {
        let wanted = self.contended.get(&ino).is_some_and(|at| *at + CONTENDED > now);
        let place = self.inodes.get(&ino);
        let alone = place.is_some_and(|place| place.changing <= own && place.holders.iter().eq([&session]));
        alone && !wanted && self.contended.len() < CONTENDED_MAX && self.changing_all == 0
    }

    pub(super) fn set_writer(&mut self, ino: InodeId, writer: Option<SessionId>) {
        let Some(place) = self.inodes.get_mut(&ino) else { return };
        let before = std::mem::replace(&mut place.writer, writer);
        if let Some(session) = before {
            let count = self.writers.get_mut(&session).expect("counted when it became one");
            *count -= 1;
            if *count == 0 {
                self.writers.remove(&session);
            }
        }
        if let Some(session) = writer {
            *self.writers.entry(session).or_default() += 1;
        }
    }

    pub(super) fn claim(&mut self, session: SessionId, ino: InodeId, number: u64, now: Instant) -> u64 {
        let holds = |holder: &Holder| holder.inodes.get(&ino) == Some(&number) && holder.recalls.is_empty();
        let stands = self.holders.get(&session).is_some_and(|holder| holds(holder) && holder.end > now);
        if !stands || self.fencing.contains(&session) || !self.is_free_to_write(session, ino, 0, now) {
            return 0;
        }
        self.passed.remove(&session); // what it decides from now on is behind the fence
        self.set_writer(ino, Some(session));
        self.holders.get_mut(&session).expect("just found").inodes.insert(ino, number | WRITE);
        number | WRITE
    }

    /// As [`Table::grant`], of an inode that is about to be made by a session that nobody else can know.
    pub(super) fn grant_new(&mut self, session: SessionId, ino: InodeId) -> u64 {
        self.last += 2;
        let number = self.last | WRITE;
        self.inodes.entry(ino).or_default().holders.insert(session);
        self.set_writer(ino, Some(session));
        let holder = self.holders.get_mut(&session).expect("it holds the directory");
        self.count += usize::from(holder.inodes.insert(ino, number).is_none());
        number
    }

    pub(super) fn batch(&mut self, session: SessionId, ours: bool, batch: &Batch) -> Option<Vec<u64>> {
        if ours && !self.holders.contains_key(&session) {
            return None;
        }
        let mut made = BTreeSet::new();
        let mut touched = BTreeSet::new();
        for change in &batch.changes {
            if matches!(&change.op, Op::HaveLocks { locks, .. } if locks.is_empty()) {
                continue; // letting go of locks harms nobody
            }
            made.extend(change.makes());
            touched.extend(change.touches());
        }
        let mut there = touched.difference(&made);
        let allowed = match ours {
            true => {
                let is_writer = |ino: &InodeId| self.inodes.get(ino).is_some_and(|p| p.writer == Some(session));
                // A new inode is one that nobody knows; of a batch that came before, nobody else does.
                there.all(is_writer) && made.iter().all(|ino| !self.inodes.contains_key(ino) || is_writer(ino))
            }
            // Nobody was let pass it, or nobody was about the same.
            false => {
                let is_disputed = |ino: &InodeId| self.disputed.as_ref().is_none_or(|all| all.contains(ino));
                let waited_for = !self.passed.contains(&session);
                self.unreported.get(&session) == Some(&true) && (waited_for || !there.any(is_disputed))
            }
        };
        if !allowed {
            return None;
        }
        self.batch_begins(ours.then_some(session));
        let makes = batch.changes.iter().filter_map(|change| change.makes());
        Some(if ours { makes.map(|ino| self.grant_new(session, ino)).collect() } else { Vec::new() })
    }

    pub(super) fn batch_begins(&mut self, session: Option<SessionId>) {
        match session {
            None => self.reclaiming += 1,
            // Its session may have ended meanwhile.
            Some(session) => {
                if let Some(holder) = self.holders.get_mut(&session) {
                    holder.batches += 1;
                }
            }
        }
    }

    pub(super) fn batch_ended(&mut self, session: Option<SessionId>) {
        match session {
            None => self.reclaiming -= 1,
            Some(session) => {
                if let Some(holder) = self.holders.get_mut(&session) {
                    holder.batches = holder.batches.saturating_sub(1);
                }
            }
        }
    }

    pub(super) fn undo(&mut self, noted: Noted) {
        let Noted { number, session, ino, before } = noted;
        let Some(holder) = self.holders.get_mut(&session) else { return };
        if number == 0 || holder.inodes.get(&ino) != Some(&number) {
            return;
        }
        match before {
            Some(before) => {
                holder.inodes.insert(ino, before);
                let is_writer = self.inodes.get(&ino).is_some_and(|place| place.writer == Some(session));
                if is_writer && before & WRITE == 0 {
                    self.set_writer(ino, None);
                }
            }
            None => self.forgot(session, ino),
        }
    }

    pub(super) fn reported(&mut self, session: SessionId, forgot: u64) {
        self.unreported.remove(&session);
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let rest = holder.recalls.split_off(&forgot.saturating_add(1));
        let gone = std::mem::replace(&mut holder.recalls, rest);
        gone.into_values().for_each(|ino| self.forgot(session, ino));
    }

    pub(super) fn forgot(&mut self, session: SessionId, ino: InodeId) {
        if let Some(holder) = self.holders.get_mut(&session) {
            self.count -= usize::from(holder.inodes.remove(&ino).is_some());
            if let Some(number) = holder.recalled.remove(&ino) {
                holder.recalls.remove(&number);
            }
        }
        if self.inodes.get(&ino).is_some_and(|place| place.writer == Some(session)) {
            self.set_writer(ino, None);
        }
        if let Some(place) = self.inodes.get_mut(&ino) {
            place.holders.remove(&session);
            self.tidy(ino);
        }
    }

    pub(super) fn ended(&mut self, session: SessionId) {
        self.unreported.remove(&session);
        self.fencing.remove(&session);
        self.passed.remove(&session);
        self.forgot_all(session);
        self.holders.remove(&session);
    }

    /// Who is to be fenced by now.
    pub(super) fn unfenced(&mut self, now: Instant) -> Vec<SessionId> {
        if now >= self.old_end + WRITE_WAIT {
            let passed = |session: &SessionId| self.passed.contains(session);
            let deciding = self.unreported.iter().filter(|(session, decides)| **decides && !passed(session));
            self.fencing.extend(deciding.map(|(session, _)| *session));
        }
        self.fencing.iter().copied().collect()
    }

    /// They are: batches that they have made by now are let through only here, and only if nobody was about the same.
    pub(super) fn fenced(&mut self, sessions: &[SessionId]) {
        for session in sessions {
            self.fencing.remove(session);
            self.passed.insert(*session);
            if let Some(holder) = self.holders.get_mut(session) {
                holder.claims = false;
            }
        }
    }

    /// It holds nothing, but goes on.
    pub(super) fn forgot_all(&mut self, session: SessionId) {
        let held = self.holders.get(&session).map(|holder| holder.inodes.clone()).unwrap_or_default();
        held.into_keys().for_each(|ino| self.forgot(session, ino));
    }

    /// Its leases have run out by time; but what it has changed under write leases it may still tell.
    pub(super) fn run_out(&mut self, session: SessionId) {
        let held = self.holders.get(&session).map(|holder| holder.inodes.clone()).unwrap_or_default();
        let read = held.into_iter().filter(|(_, number)| number & WRITE == 0);
        read.for_each(|(ino, _)| self.forgot(session, ino));
    }

    pub(super) fn begin(&mut self, inodes: &[InodeId]) {
        for ino in inodes {
            self.inodes.entry(*ino).or_default().changing += 1;
        }
    }

    pub(super) fn end(&mut self, inodes: &[InodeId]) {
        for ino in inodes {
            let place = self.inodes.get_mut(ino).expect("a change under way keeps it");
            place.changing -= 1;
            self.tidy(*ino);
        }
    }

    pub(super) fn tidy(&mut self, ino: InodeId) {
        if self.inodes.get(&ino).is_some_and(|place| place.changing == 0 && place.holders.is_empty()) {
            self.inodes.remove(&ino);
        }
    }

    /// Until when, at most, somebody else may believe in a lease of one of these. Asks them all to forget. `None`: nobody.
    pub(super) fn in_the_way(&mut self, session: SessionId, inodes: &[InodeId], now: Instant) -> Option<Instant> {
        let mut until = self.grace(now);
        for ino in inodes {
            let others = self.inodes.get(ino).map(|place| place.holders.clone()).unwrap_or_default();
            for other in others.into_iter().filter(|other| *other != session) {
                until = until.max(self.wanted(other, *ino, now));
            }
        }
        if until.is_none() {
            self.dispute(session, Some(inodes));
        }
        until
    }

    /// As [`Table::in_the_way`], of sessions that may have changed these without having said so.
    pub(super) fn unsaid(&mut self, session: SessionId, inodes: Option<&[InodeId]>, now: Instant) -> Option<Instant> {
        let mut until = self.grace(now);
        if !self.is_quiet(session, now) {
            let all: Vec<InodeId>;
            let inodes = match inodes {
                Some(inodes) => inodes,
                None => {
                    all = self.inodes.iter().filter(|(_, place)| place.writer.is_some()).map(|(ino, _)| *ino).collect();
                    &all
                }
            };
            for ino in inodes {
                let writer = self.inodes.get(ino).and_then(|place| place.writer);
                if let Some(other) = writer.filter(|writer| *writer != session) {
                    until = until.max(self.wanted(other, *ino, now));
                }
            }
        }
        if until.is_none() {
            self.dispute(session, inodes);
        }
        until
    }

    /// A change or a question of this session about these begins; `None`: about all.
    fn dispute(&mut self, session: SessionId, inodes: Option<&[InodeId]>) {
        if self.unreported.keys().all(|other| *other == session) {
            return; // nobody else has anything left to tell of earlier leases
        }
        let Some(disputed) = &mut self.disputed else { return };
        match inodes {
            Some(inodes) if disputed.len() + inodes.len() <= DISPUTED_MAX => disputed.extend(inodes),
            _ => self.disputed = None,
        }
    }

    /// Until when leases of earlier leaders may be believed in, or batches made under them are under way.
    pub(super) fn grace(&self, now: Instant) -> Option<Instant> {
        // Who decides is waited for until it is fenced.
        let waited_for = |(session, decides): (&SessionId, &bool)| *decides && !self.passed.contains(session);
        let early = match self.unreported.iter().any(waited_for) {
            true => Some((self.old_end + WRITE_WAIT).max(now + FENCE_TICK)),
            false => (now < self.old_end && !self.unreported.is_empty()).then_some(self.old_end),
        };
        early.max((self.reclaiming > 0).then(|| now + BATCH_TICK))
    }

    pub(super) fn is_quiet(&self, session: SessionId, now: Instant) -> bool {
        let others = self.writers.len() > usize::from(self.writers.contains_key(&session));
        // Who has not reported may tell changes of before: what others saw meanwhile has to be noted.
        !others && self.unreported.keys().all(|other| *other == session) && self.grace(now).is_none()
    }

    /// Somebody else wants an inode that this session holds: asks it to forget. Until when it may not have; `None`: it has.
    pub(super) fn wanted(&mut self, holder: SessionId, ino: InodeId, now: Instant) -> Option<Instant> {
        if self.contended.len() >= CONTENDED_MAX {
            self.contended.retain(|_, at| *at + CONTENDED > now);
        }
        if self.contended.len() < CONTENDED_MAX {
            self.contended.insert(ino, now); // else nobody gets write leases anyway
        }
        let is_writer = self.inodes.get(&ino).is_some_and(|place| place.writer == Some(holder));
        let its = self.holders.get_mut(&holder).expect("invariant 1");
        let end = its.end + if is_writer { WRITE_WAIT } else { Duration::ZERO };
        if end <= now {
            if is_writer && its.batches > 0 {
                return Some(now + BATCH_TICK);
            }
            if is_writer && !self.passed.contains(&holder) {
                self.fencing.insert(holder);
                return Some(now + FENCE_TICK);
            }
            self.run_out(holder);
            self.forgot(holder, ino);
            return None;
        }
        if !its.recalled.contains_key(&ino) {
            its.last += 1;
            its.recalls.insert(its.last, ino);
            its.recalled.insert(ino, its.last);
        }
        Some(end)
    }

    pub(super) fn recall_writes(&mut self, session: SessionId) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        holder.claims = false;
        let written: Vec<InodeId> =
            holder.inodes.iter().filter(|(_, number)| *number & WRITE != 0).map(|(ino, _)| *ino).collect();
        let now = Instant::now();
        for ino in written {
            self.wanted(session, ino, now);
        }
    }
}
