//! Questions and leases: what a session may know, and believe from then on.

use super::Call;
use crate::grants::Reading;
use crate::leading::Leading;
use crate::namespace::{self, Fail};
use crate::raft::Member;
use common::fault::{Fault, Kind};
use common::id::{InodeId, LogIndex, SessionId};
use common::perm::is_root;
use common::proto::lease::{
    CLAIM_MAX, Claim, Claimed, IDLE_HOLD, LeaseAsk, Leased, LeasedListing, RECALL_HOLD, RECALLS_MAX, RecallCall,
    Recalls,
};
use common::proto::meta::{ACCESS_READ, Answer, Answered, Ask, Query};
use common::proto::trash::TrashAsk;
use std::time::Duration;
use tokio::time::Instant;

/// Rounds of reading and waiting for the inodes that the answer then shows; more, and the caller asks again.
const LOOKS_MAX: u32 = 16;
/// How often a directory is read whose lease did not last meanwhile.
const LISTINGS_MAX: u32 = 3;
/// How often a call of a session that holds nothing looks whether this node still leads.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// How long who asks for the trash waits until it is known who has open what was removed, and how often that is looked at.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// Reads of a few rows, done at once; the others go to a thread where they may wait for the disk.
fn is_small(query: &Query) -> bool {
    match query {
        Query::Lookup { .. }
        | Query::GetAttr { .. }
        | Query::ReadLink { .. }
        | Query::GetXattr { .. }
        | Query::StatFs
        | Query::LockHolder { .. }
        | Query::LockWaits { .. } => true,
        Query::Open { ahead, .. } => ahead.is_empty(),
        Query::Walk { .. }
        | Query::ReadDir { .. }
        | Query::Extents { .. }
        | Query::ListXattr { .. }
        | Query::Trash(_) => false,
    }
}

/// The inodes whose rows a question certainly reads. `None`: any.
fn reads(query: &Query) -> Option<Vec<InodeId>> {
    match query {
        Query::Lookup { parent: ino, .. }
        | Query::GetAttr { ino }
        | Query::ReadLink { ino }
        | Query::ReadDir { ino, .. }
        | Query::Open { ino, .. }
        | Query::Extents { ino, .. }
        | Query::GetXattr { ino, .. }
        | Query::ListXattr { ino }
        | Query::LockHolder { ino, .. } => Some(vec![*ino]),
        Query::Walk { .. } | Query::Trash(_) => None,
        // While it waits nobody decides about these locks alone.
        Query::StatFs | Query::LockWaits { .. } => Some(Vec::new()),
    }
}

/// What an answer shows of inodes besides.
fn shown(answer: &Answer) -> Vec<InodeId> {
    answer.attrs().into_iter().map(|attr| attr.ino).collect()
}

impl Call {
    /// What a session's question is answered from.
    fn reading(&self, member: &Member, leading: &Leading, session: SessionId, arrived: Instant) -> Reading {
        let mut ctx = leading.ctx;
        (ctx.raw_capacity, ctx.raw_free) = leading.servers.space();
        let (state, leases, term) = (member.state.clone(), leading.leases.clone(), leading.term);
        Reading { state, leases, ctx, term, session, arrived }
    }

    /// A linearizable read: also of what other sessions have changed under write leases and not said yet. Which inodes an
    /// answer shows is known only when it is there; so it is read again until all of them were asked about before.
    pub(super) async fn answer(self, mut ask: Ask) -> Result<Answered, Fault> {
        let arrived = Instant::now();
        let (member, leading) = self.leading().await?;
        leading.keep.note_use();
        self.touch(&member, &leading, ask.session).await?;
        if let Query::LockWaits { ino, number } = ask.query {
            self.wait_for_lock(&member, &leading, ino, number).await?;
        }
        if let Query::Trash(TrashAsk { after: None, .. }) = ask.query {
            self.settled(&member, &leading, ask.session).await?;
        }
        ask.cred = self.squashed(&member, ask.cred)?;
        if let Query::Extents { ino, .. } | Query::ReadDir { ino, after: 1.., .. } = ask.query {
            self.may_use(&member, &leading, (ask.session, &ask.cred), ino, ACCESS_READ)?;
        }
        let opened = match &ask.query {
            _ if is_root(&ask.cred) => None,
            Query::Open { ino, access, .. } => Some((*ino, *access)),
            Query::ReadDir { ino, after: 0, .. } if self.is_squashing(&member)? => Some((*ino, ACCESS_READ)),
            _ => None,
        };
        let done = |answered: Result<Answered, Fail>| {
            if let (Ok(_), Some((ino, access))) = (&answered, opened) {
                leading.rights.note(ask.session, ino, access);
            }
            answered.map_err(|fail| self.fault(fail))
        };
        let mut looked = reads(&ask.query);
        for _ in 0..LOOKS_MAX {
            let quiet = leading.leases.is_quiet(ask.session);
            if !quiet {
                let look = leading.leases.look(ask.session, looked.as_deref());
                self.while_leading(&member, &leading, look).await?;
            }
            self.confirmed(&member, &leading).await?;
            let (reading, own) = (self.reading(&member, &leading, ask.session, arrived), ask.clone());
            let read = move || reading.query(&own);
            let answer = if is_small(&ask.query) { read() } else { self.node().world.blocking(read).await };
            let Some(looked) = looked.as_mut().filter(|_| !quiet) else { return done(answer) };
            let shown = answer.as_ref().map(|answered| shown(&answered.answer)).unwrap_or_default();
            let new: Vec<InodeId> = shown.into_iter().filter(|ino| !looked.contains(ino)).collect();
            if new.is_empty() {
                return done(answer);
            }
            looked.extend(new);
        }
        Err(Fault::new(Kind::Busy, "what was asked for changes all the time"))
    }

    /// Waits a while until it is known of everything that was removed whether somebody has it open: what nobody has is in
    /// the trash then.
    async fn settled(&self, member: &Member, leading: &Leading, session: SessionId) -> Result<(), Fault> {
        self.while_leading(member, leading, leading.leases.look(session, None)).await?;
        let end = Instant::now() + SETTLE_LIMIT;
        while Instant::now() < end {
            let unasked = namespace::orphans(member.state.mounted().kv(), None, 1).map(|(unasked, _)| unasked);
            if unasked.map_err(|error| self.store_failed(&error))?.is_empty() {
                break;
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
        Ok(())
    }

    /// A lease of a directory and what is in it.
    pub(super) async fn lease_dir(self, mut ask: LeaseAsk) -> Result<Leased, Fault> {
        let arrived = Instant::now();
        let (member, leading) = self.leading().await?;
        ask.cred = self.squashed(&member, ask.cred)?;
        self.touch(&member, &leading, ask.session).await?;
        let (session, term) = (ask.session, leading.term);
        let mut looked = vec![ask.dir];
        for _ in 0..LOOKS_MAX {
            let quiet = leading.leases.is_quiet(session);
            if !quiet {
                self.while_leading(&member, &leading, leading.leases.look(session, Some(&looked))).await?;
            }
            let listing = self.listed(&member, &leading, &ask, arrived).await?;
            let entries = listing.iter().flat_map(|listing| &listing.entries);
            let shown = entries.filter(|entry| entry.attr.is_some()).map(|entry| entry.ino);
            let known: std::collections::BTreeSet<InodeId> = looked.iter().copied().collect();
            let new: Vec<InodeId> = shown.filter(|ino| !known.contains(ino)).collect();
            if quiet || new.is_empty() {
                return Ok(Leased { term, listing });
            }
            looked.extend(new);
        }
        Ok(Leased { term, listing: None })
    }

    async fn listed(
        &self,
        member: &Member,
        leading: &Leading,
        ask: &LeaseAsk,
        arrived: Instant,
    ) -> Result<Option<LeasedListing>, Fault> {
        for _ in 0..LISTINGS_MAX {
            let Some(lease) = leading.leases.grant(ask.session, ask.dir, arrived) else { return Ok(None) };
            let listing = match self.confirmed(member, leading).await {
                Ok(()) => {
                    let (reading, ask) = (self.reading(member, leading, ask.session, arrived), ask.clone());
                    let read = self.node().world.blocking(move || reading.listing(&ask, lease.number)).await;
                    read.map_err(|fail| self.fault(fail))
                }
                Err(fault) => Err(fault),
            };
            let stands = leading.leases.stands(lease);
            match listing {
                Ok(listing @ Some(_)) if stands => return Ok(listing),
                // It was asked to forget it; or it has got another one with an answer to something else.
                Ok(Some(_)) => leading.leases.undo(lease),
                other => {
                    leading.leases.undo(lease);
                    return other;
                }
            }
        }
        Ok(None)
    }

    /// Makes leases write leases. None while the metadata cannot grow, or where root is somebody else here than where it
    /// decides (the session would decide wrongly).
    pub(super) async fn claimed(self, claim: Claim) -> Result<Claimed, Fault> {
        let arrived = Instant::now();
        let (member, leading) = self.leading().await?;
        self.touch(&member, &leading, claim.session).await?;
        let term = leading.term;
        let announced = namespace::decides(member.state.mounted().kv(), claim.session);
        let announced = announced.map_err(|error| self.store_failed(&error))?;
        let none = Claimed { term, leases: Vec::new(), announced, index: LogIndex(0) };
        if claim.leases.len() > CLAIM_MAX {
            return Err(Fault::new(Kind::Invalid, format!("more than {CLAIM_MAX} leases at once")));
        }
        self.confirmed(&member, &leading).await?;
        if !announced || claim.term != term || self.node().space.refusal().is_some() || self.is_squashing(&member)? {
            return Ok(none);
        }
        let leases = leading.leases.claim(claim.session, &claim.leases, arrived);
        let index = LogIndex(member.state.applied_index()); // after it: behind any fence that this session had before
        Ok(Claimed { leases, index, ..none })
    }

    /// A session says what it has forgotten, and waits for what it is to forget.
    pub(super) async fn told(self, call: RecallCall) -> Result<Recalls, Fault> {
        let (member, leading) = self.leading().await?;
        self.touch(&member, &leading, call.session).await?;
        let (session, term, arrived) = (call.session, leading.term, Instant::now());
        let nothing = Recalls { term, last: 0, inodes: Vec::new(), renewed: false };
        if call.term != term {
            return Ok(nothing); // it calls again, and names this one when it holds nothing of others
        }
        leading.leases.reported(session, call.forgot);
        for (ino, lease) in call.given_back.into_iter().take(RECALLS_MAX) {
            leading.leases.give_back(session, ino, lease);
        }
        // Who has forgotten all it was to forget by now gets more time, whatever comes next.
        let mut renewed = leading.leases.recalls(session).0 == 0;
        if renewed {
            self.confirmed(&member, &leading).await?;
            renewed = leading.leases.renew(session, arrived);
            if leading.leases.is_idle(session) {
                self.idle(&member, &leading, session).await?;
            } else {
                let _ = tokio::time::timeout(RECALL_HOLD, leading.leases.wait_for_recalls(session)).await;
            }
        }
        let (last, inodes) = leading.leases.recalls(session);
        Ok(Recalls { term, last, inodes, renewed })
    }

    /// A session that holds nothing waits here, so that it finds the next leader, and tells it so, at once.
    async fn idle(&self, member: &Member, leading: &Leading, session: SessionId) -> Result<(), Fault> {
        let end = Instant::now() + IDLE_HOLD;
        while Instant::now() < end {
            if tokio::time::timeout(IDLE_LOOK, leading.leases.wait_for_recalls(session)).await.is_ok() {
                return Ok(());
            }
            if !self.node().leadership.is_still(member, leading) {
                return Err(Fault::not_leader(member.leader()));
            }
        }
        Ok(())
    }
}
