//! What follows in memory from changes that this client decides ([`super::local`]), and from what becomes of them.

use super::inside::{Inside, Known};
use super::journal::Lost;
use super::locks::Held;
use common::fault::Fault;
use common::id::InodeId;
use common::name::Name;
use common::proto::batch::{Batch, BatchDone};
use common::proto::lease::{Claim, Claimed, Grants, WRITE};
use common::proto::meta::{Attr, FileKind};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a lease is not claimed again after that was refused.
const CLAIM_PAUSE: Duration = Duration::from_millis(500);
/// Leases whose claim was refused lately, at most; more, and they are tried again.
const REFUSED_MAX: usize = 1024;

impl Inside {
    pub(super) fn may_decide(&self, uptime: Duration) -> bool {
        self.is_good(uptime) && self.term != 0 && self.blind == 0
    }

    /// No change of this session that the metaservers decide is under way, or may be.
    pub(super) fn is_still(&self, ino: InodeId) -> bool {
        !self.changing.contains_key(&ino) && !self.is_uncertain(ino)
    }

    /// Likewise of a name.
    pub(super) fn is_name_still(&self, dir: InodeId, name: &Name) -> bool {
        !self.changing_names.contains_key(&(dir, name.clone()))
    }

    pub(super) fn is_changing_below(&self, dir: InodeId) -> bool {
        self.changing_names.keys().any(|(of, _)| *of == dir)
    }

    /// False for a while after it was refused.
    pub(super) fn may_claim(&self, leases: &[(InodeId, u64)], now: Instant) -> bool {
        leases.first().is_some_and(|(ino, _)| self.refused.get(ino).is_none_or(|at| *at + CLAIM_PAUSE < now))
    }

    /// A name leads elsewhere now, or nowhere.
    pub(super) fn renamed_here(&mut self, dir: InodeId, name: &Name, leads: Option<InodeId>) {
        self.changing_listed(dir, name);
        self.put_name(dir, name, leads.map(Some));
    }

    /// A new inode.
    pub(super) fn made_here(&mut self, attr: Attr) {
        if attr.kind == FileKind::File {
            self.contents.made(attr.ino, attr.version);
        }
        let names = (attr.kind == FileKind::Dir).then(HashMap::new);
        let locks = Some(Held::default()); // nobody else knows it
        let (shown, used) = (Some(attr.clone()), Instant::now());
        let known = Known { lease: WRITE, attr: shown, names, named: self.learning(), listing: None, locks, used };
        self.known.insert(attr.ino, known);
        self.trim();
    }

    /// An inode whose last name went.
    pub(super) fn gone_here(&mut self, ino: InodeId) {
        self.say_locks(ino); // others may have it open, and wait for a lock
        if let Some(known) = self.known.remove(&ino) {
            self.names -= known.names.map_or(0, |names| names.len());
            self.contents.forget(ino);
            self.give_up(ino, known.lease);
        }
    }

    /// The claim that asks for these.
    pub(super) fn claim(&self, leases: Vec<(InodeId, u64)>) -> Option<Claim> {
        Some(Claim { session: self.session?, term: self.term, leases })
    }

    /// What became of it. True: of the first of them as well.
    pub(super) fn claimed(&mut self, claim: &Claim, answer: Option<&Claimed>) -> bool {
        let answer = answer.filter(|answer| answer.term == claim.term && answer.term == self.term);
        let numbers = answer.map_or(&[][..], |answer| &answer.leases);
        for ((ino, before), number) in claim.leases.iter().zip(numbers).filter(|(_, number)| **number != 0) {
            match self.known.get_mut(ino) {
                Some(known) if known.lease == *before => known.lease = *number,
                Some(_) => {} // a newer one came meanwhile
                None => self.spare(*ino, *number),
            }
        }
        let first = numbers.first().is_some_and(|number| *number != 0);
        if let Some(answer) = answer.filter(|_| first) {
            self.since = Some(answer.index);
        }
        if answer.is_some_and(|answer| !answer.announced) {
            self.journal.forget_numbers();
        }
        if let Some((ino, _)) = claim.leases.first().filter(|_| !first) {
            if self.refused.len() >= REFUSED_MAX {
                self.refused.clear();
            }
            self.refused.insert(*ino, Instant::now());
        }
        first
    }

    /// What became of a batch; `leases`: of the inodes that it made, in order. False: not what this client has answered.
    pub(super) fn batch_done(&mut self, batch: &Batch, done: &BatchDone, grants: &Grants) -> bool {
        let agreed = self.journal.done(done);
        if grants.term == self.term {
            let made = batch.changes.iter().filter_map(|change| change.makes());
            for (ino, lease) in made.zip(&grants.leases) {
                match self.known.get_mut(&ino) {
                    Some(known) => known.lease = known.lease.max(*lease),
                    None => self.spare(ino, *lease),
                }
            }
        }
        if !agreed {
            self.forget_each();
        }
        agreed
    }

    /// What was decided here is lost: nothing of it is believed any more.
    pub(super) fn lose(&mut self, fault: Fault) -> Option<Lost> {
        let unsaid = self.unsaid_locks();
        let mut lost = self.journal.lose(fault);
        self.since = None;
        lost.iter_mut().for_each(|lost| lost.also_locks(&unsaid));
        if lost.is_some() {
            self.forget_each();
        }
        lost
    }

    /// Forgets everything, and gives it back.
    pub(super) fn forget_each(&mut self) {
        let all: Vec<InodeId> = self.known.keys().copied().collect();
        all.into_iter().for_each(|ino| self.forget(ino));
    }
}
