//! Changes by clients: when nobody believes any more in what they make untrue.

use super::Call;
use crate::copies::{Made, replicas_of};
use crate::grants::Guard;
use crate::leading::Leading;
use crate::namespace::{self, Command, Done};
use crate::raft::Member;
use common::fault::{Fault, Kind};
use common::id::{InodeId, SessionId};
use common::perm::is_root;
use common::proto::batch::Batch;
use common::proto::lease::{Grants, Touched};
use common::proto::lock::{LockAsk, LockKind};
use common::proto::meta::{ACCESS_READ, ACCESS_WRITE, CloneRange, Commit, Cred, Op, Request};
use tokio::sync::oneshot;

/// Checks the receipts of a commit against the secret, and what else needs no state.
fn check_receipts(commit: &Commit, leading: &Leading) -> Result<(), Fault> {
    namespace::validate_commit(commit)?;
    for chunk in &commit.chunks {
        for receipt in &chunk.receipts {
            if !leading.ctx.secret.receipt_is_valid(receipt, chunk.id, chunk.len, commit.attempt) {
                let text =
                    format!("chunk {}: the receipt of {} does not hold for this commit", chunk.id, receipt.server);
                return Err(Fault::new(Kind::Invalid, text));
            }
        }
    }
    Ok(())
}

impl Call {
    /// Whether what uses an open file may be proposed: see [`crate::rights`].
    pub(super) fn check_rights(
        &self,
        member: &Member,
        leading: &Leading,
        by: (SessionId, &Cred),
        op: &Op,
    ) -> Result<(), Fault> {
        match op {
            Op::Commit(commit) => self.may_use(member, leading, by, commit.ino, ACCESS_WRITE),
            Op::SetAttr { ino, set } if set.opened && set.size.is_some() => {
                self.may_use(member, leading, by, *ino, ACCESS_WRITE)
            }
            Op::Clone(range) => {
                self.may_use(member, leading, by, range.from, ACCESS_READ)?;
                self.may_use(member, leading, by, range.to, ACCESS_WRITE)
            }
            _ => Ok(()),
        }
    }

    /// What was carried out before, perhaps under another leader, is answered as it was then.
    pub(super) fn unless_answered(
        &self,
        member: &Member,
        request: &Request,
        checked: Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Err(fault) = checked else { return Ok(()) };
        match namespace::is_answered(member.state.mounted().kv(), request) {
            Ok(true) => Ok(()),
            Ok(false) => Err(fault),
            Err(error) => Err(self.store_failed(&error)),
        }
    }

    /// Whether a session may go on reading (executing) or writing a file.
    ///
    /// # Errors
    /// `Denied`.
    pub(super) fn may_use(
        &self,
        member: &Member,
        leading: &Leading,
        (session, cred): (SessionId, &Cred),
        ino: InodeId,
        access: u8,
    ) -> Result<(), Fault> {
        if is_root(cred) || !self.is_squashing(member)? || leading.rights.has(session, ino, access) {
            return Ok(());
        }
        let allowed = namespace::may_use(member.state.mounted().kv(), ino, cred, access);
        match allowed.map_err(|error| self.store_failed(&error))? {
            Some(false) => Err(Fault::new(Kind::Denied, format!("{ino}: permission denied"))),
            Some(true) => {
                leading.rights.note(session, ino, access);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether a commit may be proposed. `made`: what comes before it in its batch.
    pub(super) async fn check_commit(
        &self,
        member: &Member,
        leading: &Leading,
        commit: &Commit,
        made: &Made,
    ) -> Result<(), Fault> {
        check_receipts(commit, leading)?;
        if commit.chunks.is_empty() {
            return Ok(());
        }
        let replicas = replicas_of(member.state.mounted().kv(), made, commit.ino);
        match replicas.map_err(|error| self.store_failed(&error))? {
            Some(replicas) => {
                let map = leading.map(member)?;
                self.service.copies.check(leading, &map, commit, replicas).await
            }
            None => Ok(()),
        }
    }

    /// As [`Call::check_rights`] and [`Call::check_commit`], for all changes of a batch. What comes before one that is refused
    /// is left, and it comes again as the first of the next: then this says why.
    async fn check_batch(
        &self,
        member: &Member,
        leading: &Leading,
        session: SessionId,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let mut made = Made::default();
        for (at, change) in batch.changes.iter().enumerate() {
            let mut checked = self.check_rights(member, leading, (session, &change.cred), &change.op);
            if let (Ok(()), Op::Commit(commit)) = (&checked, &change.op) {
                checked = self.check_commit(member, leading, commit, &made).await;
            }
            if let Err(fault) = checked {
                return match at {
                    0 => Err(fault),
                    _ => {
                        batch.changes.truncate(at);
                        Ok(())
                    }
                };
            }
            made.note(change);
        }
        Ok(())
    }

    /// A client's change, when nobody believes any more in what it makes untrue; and leases of what it shows, if the
    /// session takes part.
    pub(super) async fn change(
        &self,
        member: &Member,
        leading: &Leading,
        request: Request,
    ) -> Result<(Done, Grants), Fault> {
        if crate::space::grows(&request.op)
            && let Some(why) = self.node().space.refusal()
        {
            return Err(Fault::new(Kind::NoSpace, format!("the metadata cannot grow: {why}")));
        }
        let arrived = tokio::time::Instant::now();
        let (session, touched) = (request.session, Touched::by(&request.op));
        let reads = match &request.op {
            Op::Clone(CloneRange { from, .. }) => Some(*from),
            _ => None,
        };
        let locked = match &request.op {
            Op::Lock(LockAsk { ino, lock, .. }) if lock.kind != LockKind::Unlock => Some(*ino),
            _ => None,
        };
        let bytes = Command::Client { request, at: self.node().world.now() }.encode();
        if let Some(ino) = locked {
            let changing = self.while_leading(member, leading, leading.leases.lock(session, ino)).await?;
            let room = self.room(bytes.len()).await?;
            if !self.node().leadership.is_still(member, leading) {
                return Err(Fault::not_leader(member.leader()));
            }
            let guard = Guard { locked: None, changing, asked: None };
            let state = member.state.clone();
            let end = move |result: &Result<Done, Fault>| drop(guard.end(result, &state));
            return Ok((self.decide(member, bytes, room, end).await?, Grants::default()));
        }
        if touched == Touched::default() {
            let room = self.room(bytes.len()).await?;
            return Ok((self.decide(member, bytes, room, |_| ()).await?, Grants::default()));
        }
        if let Some(from) = reads {
            self.while_leading(member, leading, leading.leases.look(session, Some(&[from]))).await?;
        }
        let guard = self.nobody_believes(member, leading, session, touched).await?;
        // Not before: who is waited for needs room to tell what it has changed.
        let room = self.room(bytes.len()).await?;
        if !self.node().leadership.is_still(member, leading) {
            return Err(Fault::not_leader(member.leader()));
        }
        let takes_part = leading.leases.takes_part(session);
        let guard = Guard { asked: takes_part.then_some((session, arrived)), ..guard };
        let (sender, granted) = oneshot::channel();
        let state = member.state.clone();
        let end = move |result: &Result<Done, Fault>| {
            let _ = sender.send(guard.end(result, &state)); // the caller gave up: its session gives them back, or ends
        };
        let done = self.decide(member, bytes, room, end).await?;
        let leases = granted.await.unwrap_or_default(); // gone: there are none
        Ok((done, Grants { term: leading.term, leases }))
    }

    /// Waits until no other session believes in what is about to be changed, and none will before the guard is dropped.
    async fn nobody_believes(
        &self,
        member: &Member,
        leading: &Leading,
        session: SessionId,
        touched: Touched,
    ) -> Result<Guard, Fault> {
        let Touched { inodes, names, targets } = touched;
        let locked = match names.is_empty() {
            true => None,
            false => Some(self.while_leading(member, leading, leading.leases.lock_names(names.clone())).await?),
        };
        let mut changing = self.while_leading(member, leading, leading.leases.change(session, &inodes)).await?;
        if targets {
            // Looked up when nobody else can have changed the names without having said so.
            let found = namespace::lead_to(member.state.mounted().kv(), &names);
            let found = found.map_err(|error| self.store_failed(&error))?;
            changing.join(self.while_leading(member, leading, leading.leases.change(session, &found)).await?);
        }
        Ok(Guard { locked, changing, asked: None })
    }

    /// Changes that a session has answered for already. Nobody waits for anything: it alone has what they touch.
    pub(super) async fn batch(
        &self,
        member: &Member,
        leading: &Leading,
        mut request: Request,
    ) -> Result<(Done, Grants), Fault> {
        let Op::Batch(batch) = &mut request.op else { unreachable!("the caller has looked") };
        for change in &mut batch.changes {
            change.cred = self.squashed(member, std::mem::take(&mut change.cred))?;
        }
        let session = request.session;
        let checked = self.check_batch(member, leading, session, batch).await;
        self.unless_answered(member, &request, checked)?;
        let Op::Batch(batch) = &mut request.op else { unreachable!("as above") };
        let Batch { term, checked, .. } = batch;
        *checked = leading.term;
        let ours = *term == leading.term;
        let lost = || Fault::new(Kind::Stale, "others have used what this session had write leases of");
        let command = Command::Client { request, at: self.node().world.now() };
        let bytes = command.encode();
        let room = self.room(bytes.len()).await?;
        // From here on to the proposal nothing is waited for.
        let Command::Client { request: Request { op: Op::Batch(batch), .. }, .. } = &command else {
            unreachable!("as above")
        };
        let batching = leading.leases.batch(session, ours, batch).ok_or_else(lost)?;
        if !self.node().leadership.is_still(member, leading) {
            return Err(Fault::not_leader(member.leader()));
        }
        let leases = batching.made.clone();
        let end = move |result: &Result<Done, Fault>| match result {
            Err(fault) if matches!(fault.kind, Kind::Unsure | Kind::Internal) => batching.without_end(),
            _ => drop(batching),
        };
        let done = self.decide(member, bytes, room, end).await?;
        if self.node().space.refusal().is_some() {
            leading.leases.recall_writes(session); // from now on it asks, and is told that there is no room
        }
        Ok((done, Grants { term: leading.term, leases }))
    }
}
