//! Drop rounds: a server that is no owner of a chunk asks the owners to vouch for their copies, and drops its own.

use super::chance::{Message, Run};
use super::cluster::{chunk_of, name, place, server_id};
use super::plan::Weakness;
use chunkserver::wishes::Rounds;
use common::id::{ChunkId, Epoch, ServerId};
use common::proto::keep::Nonced;
use rand::{Rng, RngExt};
use std::collections::BTreeSet;

impl Run {
    /// A server that is no owner, as far as it knows, opens a round.
    pub(super) fn open_round(&mut self, server: usize, id: ChunkId, target: u8) {
        if self.servers[server].standing.contains(&id) && self.rng.random_range(0..4) > 0 {
            return; // what was asked before may still be answered
        }
        let (_, order) = self.servers[server].layout.place(&id);
        let owners: Vec<ServerId> = order.iter().take(usize::from(target)).copied().collect();
        let nonce = self.rng.next_u64();
        if owners.contains(&server_id(server)) || owners.is_empty() || !self.wish(server, id, nonce, true) {
            return;
        }
        let (round, epoch) = ((id, nonce), self.servers[server].epoch);
        self.servers[server].rounds.insert(id, (owners.clone(), Rounds::open(&owners, [round])));
        self.note(format!("s{server} opens a round about c{} with {owners:?}", chunk_of(id)));
        self.send(Message::RoundEnds { server, id });
        for owner in owners {
            self.send(Message::Confirm { owner: place(owner), to: server, round, epoch });
        }
    }

    pub(super) async fn confirm(&mut self, owner: usize, to: usize, round: Nonced, epoch: Epoch) {
        let chunk = chunk_of(round.0);
        if epoch != self.servers[owner].epoch || !self.servers[owner].store.touch(name(chunk)).await {
            return;
        }
        let keeps_all = self.is(Weakness::ConfirmingIsNoTouch);
        self.vouched(owner, chunk, keeps_all || self.is(Weakness::ConfirmingKeepsOwnRounds), keeps_all);
        self.note(format!("s{owner} confirms c{chunk} to s{to}"));
        self.confirmed_at.insert((owner, round), self.drops[chunk].len());
        self.send(Message::Confirmed { owner, to, round });
    }

    pub(super) async fn confirmed(&mut self, owner: usize, to: usize, round: Nonced) {
        if let Some((_, rounds)) = self.servers[to].rounds.get_mut(&round.0) {
            rounds.confirm(server_id(owner), &[round]);
            self.end_round(to, round.0).await;
        }
    }

    /// A server looks what became of its round, whoever has answered by then.
    pub(super) async fn end_round(&mut self, server: usize, id: ChunkId) {
        let Some((owners, rounds)) = self.servers[server].rounds.get(&id) else { return };
        let (done, owners) = (rounds.split().0, owners.iter().copied().map(place).collect::<Vec<_>>());
        for (id, nonce) in done {
            let now = self.relied_on(chunk_of(id), &owners, (id, nonce));
            let gone = self.delete(server, id, nonce).await;
            self.note(format!("s{server} is confirmed by {owners:?}: c{} is dropped: {gone}", chunk_of(id)));
            self.counts.dropped += u64::from(gone);
            if gone || self.servers[server].store.is_dark() {
                self.rely_on(chunk_of(id), server, now); // without power nobody knows whether it went
            }
        }
    }

    /// Who is to have a chunk for these owners, who have confirmed it: one that has dropped its own copy since, as others
    /// confirmed that to it, is replaced by those.
    fn relied_on(&self, chunk: usize, owners: &[usize], round: Nonced) -> BTreeSet<usize> {
        let follow = |owner: &usize| {
            let mut relied = BTreeSet::from([*owner]);
            let since = self.confirmed_at.get(&(*owner, round)).copied().unwrap_or(self.drops[chunk].len());
            for (server, instead) in &self.drops[chunk][since..] {
                if relied.remove(server) {
                    relied.extend(instead);
                }
            }
            relied
        };
        owners.iter().flat_map(follow).collect()
    }

    /// Whoever relied on a copy that was dropped relies on these from now on.
    fn rely_on(&mut self, chunk: usize, gone: usize, now: BTreeSet<usize>) {
        let instead = |relied: &mut BTreeSet<usize>| {
            if relied.remove(&gone) {
                relied.extend(&now);
            }
        };
        instead(&mut self.must[chunk]);
        let tries = self.clients.iter_mut().filter_map(|client| client.attempt.as_mut());
        let sent = self.messages.iter_mut().filter_map(|message| match message {
            Message::Commit { of, .. } => Some(of),
            _ => None,
        });
        tries.chain(sent).filter(|of| of.chunk == chunk).for_each(|of| instead(&mut of.relied));
        self.drops[chunk].push((gone, now));
    }
}
