//! Two at one chunk: while a server puts or deletes it, somebody else comes for it.

use super::chance::{CLIENTS, Message, Run};
use super::cluster::name;
use common::proto::keep::Nonced;
use rand::RngExt;
use std::sync::{Arc, OnceLock};

/// Who comes.
enum Who {
    /// A client with an attempt.
    Client(usize),
    /// A server with a round about its own copy.
    Dropper { to: usize, round: Nonced },
}

/// Somebody who is on the way, and what came of it.
pub(super) struct Meeting {
    who: Who,
    told: Arc<OnceLock<bool>>,
}

impl Run {
    /// Has somebody who wants this chunk come to this server during the next sync, sometimes.
    pub(super) fn meet(&mut self, at: usize, chunk: usize) -> Option<Meeting> {
        let wants = |client: &usize| self.clients[*client].attempt.as_ref().is_some_and(|of| of.chunk == chunk);
        let clients = (0..CLIENTS).filter(wants).map(Who::Client);
        let (id, epoch_here) = (name(chunk).id, self.servers[at].epoch);
        let rounds = self.messages.iter().filter_map(|message| match message {
            Message::Confirm { owner, to, round, epoch } if *owner == at && round.0 == id && *epoch == epoch_here => {
                Some(Who::Dropper { to: *to, round: *round })
            }
            _ => None,
        });
        let mut all: Vec<Who> = clients.chain(rounds).collect();
        if all.is_empty() || self.rng.random_range(0..4) > 0 {
            return None;
        }
        let who = all.swap_remove(self.rng.random_range(0..all.len()));
        Some(Meeting { who, told: self.servers[at].store.touch_meanwhile(name(chunk)) })
    }

    /// What came of it.
    pub(super) fn have_met(&mut self, at: usize, chunk: usize, meeting: Option<Meeting>) {
        let Some(Meeting { who, told }) = meeting else { return };
        self.servers[at].store.nobody_meanwhile();
        let Some(vouched) = told.get().copied() else { return };
        self.counts.met += 1;
        self.note(format!("meanwhile s{at} is asked for c{chunk}: {vouched}"));
        match who {
            _ if !vouched => {}
            Who::Client(client) => {
                let of = self.clients[client].attempt.as_mut().expect("it has not moved");
                of.receipts.insert(at);
                of.relied.insert(at);
            }
            Who::Dropper { to, round } => {
                self.confirmed_at.insert((at, round), self.drops[chunk].len());
                self.send(Message::Confirmed { owner: at, to, round });
            }
        }
    }
}
