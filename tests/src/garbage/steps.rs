//! The steps of [`super::model`]: what clients, servers and the metaservers may do next.

use super::model::{Attempt, Broken, CHUNKS, Client, Has, Meta, Replica, State, Step, Taken, World, bit, number};

/// One state, and where its successors go.
pub(super) struct Next<'a> {
    pub(super) world: &'a World,
    pub(super) from: &'a State,
    pub(super) to: &'a mut Vec<Taken>,
}

impl Next<'_> {
    fn is(&self, broken: Broken) -> bool {
        self.world.broken == Some(broken)
    }

    /// Grants are not bound to an ask.
    fn grants_stay(&self) -> bool {
        self.is(Broken::GrantWithoutNonce) || self.is(Broken::DeletesWithoutWish)
    }

    pub(super) fn add(&mut self, step: Step, change: impl FnOnce(&mut State)) {
        let mut to = *self.from;
        change(&mut to);
        let to = to.normal();
        if to != *self.from {
            self.to.push(Taken { step, to });
        }
    }

    /// A put, touch or confirmation at a copy voids what its server wishes.
    fn vouch(&self, copy: &mut Replica) {
        let Replica { ask, granted, round, confirmed, .. } = *copy;
        if self.is(Broken::TouchKeepsWish) {
            return;
        }
        if self.is(Broken::WishSurvivesRestart) {
            copy.touched = ask;
        } else {
            (copy.ask, copy.granted) = (false, granted && self.grants_stay());
        }
        let keeps = self.is(Broken::ConfirmationOfAnyRound);
        (copy.round, copy.confirmed) = (false, if keeps { confirmed } else { 0 });
        if self.is(Broken::TouchKeepsRound) {
            (copy.round, copy.confirmed) = (round, confirmed);
        }
    }

    /// The copy goes, and with it all wishes.
    fn remove(&self, copy: &mut Replica) {
        let has = if self.world.slow_disk { Has::Deleted } else { Has::Nothing };
        *copy = Replica { has, ..self.forget(copy) };
    }

    /// What a restart or another epoch leaves of it.
    fn forget(&self, copy: &Replica) -> Replica {
        Replica {
            has: copy.has,
            granted: copy.granted && self.grants_stay(),
            confirmed: if self.is(Broken::ConfirmationOfAnyRound) { copy.confirmed } else { 0 },
            ..Replica::default()
        }
    }

    /// Acknowledges a put or touch of it.
    fn is_sound(&self, copy: &Replica) -> bool {
        match copy.has {
            Has::Durable => true,
            Has::Written => self.is(Broken::AcknowledgesUnsynced),
            Has::Hollow => self.is(Broken::PunchesBeforeIndex),
            Has::Nothing | Has::Deleted => false,
        }
    }

    pub(super) fn client(&mut self, client: usize) {
        let state = *self.from;
        let Client { attempt, commit, holds } = state.clients[client];
        match holds {
            None => self.begin(client),
            Some(chunk) => self.add(Step::Unlinks { client }, |to| {
                to.index += 1;
                to.clients[client].holds = None;
                let refs = &mut to.refs[usize::from(chunk)];
                *refs -= 1;
                if *refs == 0 {
                    to.must[usize::from(chunk)] = 0;
                }
            }),
        }
        if let Some(attempt) = attempt {
            self.attempt(client, attempt);
        }
        if let (Some(commit), None) = (commit, holds) {
            let horizon = commit.witness >= state.horizon || self.is(Broken::CommitIgnoresHorizon);
            let applied = commit.witness <= state.index || self.is(Broken::WitnessNotApplied);
            let epoch = commit.epoch == state.epoch || self.is(Broken::OldEpochCommits);
            if horizon && applied && epoch {
                self.add(Step::CommitApplies { client }, |to| {
                    to.must[usize::from(commit.chunk)] |= commit.acked;
                    to.refer(client, commit.chunk);
                });
            }
        }
    }

    fn begin(&mut self, client: usize) {
        let state = *self.from;
        for chunk in 0..self.world.size.1 {
            if state.refs[chunk] > 0 {
                self.add(Step::Clones { client, chunk }, |to| to.refer(client, number(chunk)));
            }
            let later = u8::from(self.is(Broken::WitnessNotApplied));
            let untouched = self.is(Broken::UntouchedWithNewestWitness);
            for witness in state.index..=state.index + later {
                self.add(Step::Begins { client, chunk, witness }, |to| {
                    let attempt = Attempt { chunk: number(chunk), witness, epoch: to.epoch, ..Attempt::default() };
                    let attempt = Attempt { was_live: untouched && state.refs[chunk] > 0, ..attempt };
                    to.clients[client].attempt = Some(attempt);
                });
            }
        }
    }

    fn attempt(&mut self, client: usize, attempt: Attempt) {
        let (state, chunk) = (*self.from, usize::from(attempt.chunk));
        if self.is(Broken::WitnessRenewed) {
            self.add(Step::RenewsWitness { client }, |to| {
                to.clients[client].attempt = Some(Attempt { witness: state.index, ..attempt });
            });
        }
        for at in (0..self.world.size.0).filter(|at| attempt.acked & bit(*at) == 0) {
            let mut copy = state.replicas[at][chunk];
            let sound = self.is_sound(&copy);
            let two_steps = self.is(Broken::TouchInTwoSteps);
            if two_steps && sound {
                self.add(Step::IsSeen { client, at }, |to| {
                    to.clients[client].attempt = Some(Attempt { seen: attempt.seen | bit(at), ..attempt });
                });
            }
            if if two_steps { attempt.seen & bit(at) != 0 } else { sound } {
                self.vouch(&mut copy);
                self.add(Step::IsAcked { client, at }, |to| {
                    to.replicas[at][chunk] = copy;
                    let (acked, seen) = (attempt.acked | bit(at), attempt.seen & !bit(at));
                    to.clients[client].attempt = Some(Attempt { acked, seen, ..attempt });
                });
            }
        }
        let needed = if self.is(Broken::OneCopyIsEnough) { 1 } else { self.world.copies_min };
        if attempt.acked.count_ones() >= needed {
            self.add(Step::SendsCommit { client }, |to| {
                to.clients[client].attempt = None;
                to.clients[client].commit = Some(Attempt { seen: 0, ..attempt });
            });
        } else if attempt.was_live {
            self.add(Step::SendsCommit { client }, |to| {
                to.clients[client].attempt = None;
                to.clients[client].commit = Some(Attempt { witness: state.index, acked: 0, ..attempt });
            });
        }
    }

    /// A wish may be opened, as far as the server knows.
    fn may_wish(&self, server: usize) -> bool {
        self.from.checked || self.from.told & bit(server) == 0
    }

    pub(super) fn server(&mut self, server: usize, chunk: usize) {
        let state = *self.from;
        let copy = state.replicas[server][chunk];
        let with = |next: &mut Self, step, change: &dyn Fn(&Self, &mut Replica)| {
            let mut copy = copy;
            change(next, &mut copy);
            next.add(step, |to| to.replicas[server][chunk] = copy);
        };
        let absent = match copy.has {
            Has::Nothing | Has::Deleted => true,
            Has::Hollow => !self.is(Broken::PunchesBeforeIndex),
            Has::Written | Has::Durable => false,
        };
        if absent {
            let has = if self.world.slow_disk { Has::Written } else { Has::Durable };
            with(self, Step::Writes { server, chunk }, &|next, copy| {
                next.vouch(copy);
                copy.has = has;
            });
        }
        if copy.has == Has::Written {
            with(self, Step::Syncs { server, chunk }, &|_, copy| copy.has = Has::Durable);
        }
        if !absent && !copy.ask && self.may_wish(server) {
            with(self, Step::Asks { server, chunk }, &|next, copy| {
                let granted = copy.granted && next.grants_stay();
                (copy.ask, copy.touched, copy.granted) = (true, false, granted);
            });
        }
        let knows = state.epoch == 0 || state.told & bit(server) != 0;
        let free = state.refs[chunk] == 0 || self.is(Broken::CondemnsTheReferenced);
        if copy.ask && !copy.granted && free && state.checked && knows {
            let keeps =
                self.is(Broken::CondemnKeepsHorizon) || (self.is(Broken::SecondGrantKeepsHorizon) && state.horizon > 0);
            self.add(Step::IsGranted { server, chunk }, |to| {
                to.replicas[server][chunk].granted = true;
                if keeps { to.index += 1 } else { to.condemn() }
            });
        }
        let stands = copy.ask && !copy.touched;
        if !absent && copy.granted && (stands || self.is(Broken::DeletesWithoutWish)) {
            with(self, Step::Deletes { server, chunk }, &|next, copy| next.remove(copy));
        }
    }

    pub(super) fn restarts(&mut self, server: usize) {
        let (state, keeps) = (*self.from, self.is(Broken::WishSurvivesRestart));
        let after = |next: &Self, undone: bool| {
            state.replicas[server].map(|copy| {
                let mut after = next.forget(&copy);
                if keeps {
                    (after.ask, after.granted) = (copy.ask, copy.granted);
                }
                after.has = match copy.has {
                    Has::Written => Has::Nothing,
                    Has::Deleted if undone && next.is(Broken::PunchesBeforeIndex) => Has::Hollow,
                    Has::Deleted if undone => Has::Durable,
                    Has::Deleted => Has::Nothing,
                    Has::Nothing | Has::Durable | Has::Hollow => copy.has,
                };
                after
            })
        };
        for undone in [false, true] {
            let replicas = after(self, undone);
            self.add(Step::Restarts { server, undone }, |to| to.replicas[server] = replicas);
        }
        if self.world.loss && state.lost == 0 {
            self.add(Step::LosesItsDisk { server }, |to| {
                to.lost = bit(server);
                to.replicas[server] = Default::default();
            });
        }
    }

    /// A server that believes to be no owner may drop its copy.
    pub(super) fn drops(&mut self, server: usize, chunk: usize) {
        let (state, owners) = (*self.from, self.world.owners[server]);
        let copy = state.replicas[server][chunk];
        let here = matches!(copy.has, Has::Written | Has::Durable);
        if owners == 0 {
            return;
        }
        if here && !copy.round && self.may_wish(server) {
            let confirmed = if self.is(Broken::ConfirmationOfAnyRound) { copy.confirmed } else { 0 };
            self.add(Step::OpensRound { server, chunk }, |to| {
                (to.replicas[server][chunk].round, to.replicas[server][chunk].confirmed) = (true, confirmed);
            });
        }
        let waiting = |owner: &usize| copy.round && owners & bit(*owner) != 0 && copy.confirmed & bit(*owner) == 0;
        let same = |owner: &usize| state.epoch == 0 || (state.told >> owner ^ state.told >> server) & 1 == 0;
        for owner in (0..self.world.size.0).filter(waiting).filter(same) {
            let mut own = state.replicas[owner][chunk];
            let unsynced = own.has == Has::Written && self.is(Broken::ConfirmsUnsynced);
            if !(own.has == Has::Durable || unsynced) {
                continue;
            }
            let (round, confirmed) = (own.round, own.confirmed);
            if !self.is(Broken::ConfirmingIsNoTouch) {
                self.vouch(&mut own);
            }
            if self.is(Broken::ConfirmingKeepsOwnRound) {
                (own.round, own.confirmed) = (round, confirmed);
            }
            self.add(Step::Confirms { owner, to: server, chunk }, |to| {
                to.replicas[owner][chunk] = own;
                to.replicas[server][chunk].confirmed |= bit(owner);
            });
        }
        if here && copy.round && (copy.confirmed == owners || self.is(Broken::DropsUnconfirmed)) {
            let mut gone = copy;
            self.remove(&mut gone);
            // The owners take its place with whoever relied on it.
            let instead = |of: u8| if of & bit(server) == 0 { of } else { (of & !bit(server)) | owners };
            self.add(Step::Drops { server, chunk }, |to| {
                to.replicas[server][chunk] = gone;
                to.must[chunk] = instead(to.must[chunk]);
                for client in &mut to.clients {
                    for attempt in [&mut client.attempt, &mut client.commit].into_iter().flatten() {
                        if usize::from(attempt.chunk) == chunk {
                            attempt.acked = instead(attempt.acked);
                        }
                    }
                }
            });
        }
    }

    pub(super) fn restore(&mut self) {
        let state = *self.from;
        if !self.world.restore {
            return;
        }
        if state.epoch == 0 && state.backup.is_none() {
            self.add(Step::BacksUp, |to| {
                let State { index, horizon, refs, clients, .. } = state;
                to.backup = Some(Meta { index, horizon, refs, holds: clients.map(|client| client.holds) });
            });
        }
        if let Some(Meta { index, horizon, refs, holds }) = state.backup {
            self.add(Step::Restores, |to| {
                (to.index, to.horizon, to.refs, to.backup) = (index, horizon, refs, None);
                to.clients.iter_mut().zip(holds).for_each(|(client, holds)| client.holds = holds);
                (to.epoch, to.told, to.checked, to.must) = (1, 0, false, [0; CHUNKS]);
            });
        }
        for server in (0..self.world.size.0).filter(|at| state.epoch == 1 && state.told & bit(*at) == 0) {
            let keeps = self.is(Broken::WishSurvivesEpoch);
            let replicas = state.replicas[server].map(|copy| if keeps { copy } else { self.forget(&copy) });
            self.add(Step::LearnsTheEpoch { server }, |to| {
                to.told |= bit(server);
                to.replicas[server] = replicas;
            });
        }
        let all = (0..self.world.size.0).map(bit).sum::<u8>();
        if !state.checked && (state.told == all || self.is(Broken::FsckDoesNotWait)) {
            let world = self.world;
            self.add(Step::FsckPasses, |to| {
                to.checked = true;
                for chunk in (0..world.size.1).filter(|chunk| state.refs[*chunk] > 0) {
                    to.must[chunk] = state.durable(world, chunk);
                    if to.must[chunk] == 0 {
                        to.refs[chunk] = 0; // reported, and mended
                        let lost = Some(number(chunk));
                        to.clients.iter_mut().filter(|c| c.holds == lost).for_each(|client| client.holds = None);
                    }
                }
            });
        }
    }
}
