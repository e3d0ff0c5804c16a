//! What is here and should not be: deleted if nothing refers to it, dropped if its owners have it.
//!
//! The rules are those of DESIGN 7, "Why no live chunk can be deleted". Each ask and each round is a *wish* of the store
//! with a random nonce, in memory only: whatever vouches for the copy voids it under the chunk's lock, and the delete is
//! one step with the check that the wish stands ([`crate::store::Store::wish`]). Any error: the wish is taken back, and
//! the copy stays.

use super::wishes::{Rounds, granted};
use super::{CALL_LIMIT, Keeper, unexpected};
use crate::service::Registration;
use crate::store::{Kept, StoreError};
use common::fault::Fault;
use common::id::{ChunkId, ServerId};
use common::proto::chunk::{BATCH_MAX, ChunkRef};
use common::proto::keep::{KeepAnswer, KeepAsk, KeepSettings, Nonced};
use common::wire::Target;
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info};

/// Deletes under way at a time: they share their syncs.
const DELETES_AT_ONCE: usize = 64;
/// How long a server has no place in the layout before it drops what the owners have.
const OUTSIDE_MIN: Duration = Duration::from_secs(20);
/// How often a pass that carries out an order comes back to copies that somebody was at.
const BUSY_TRIES: u32 = 8;
/// ... and after which pause: scrub reads a chunk in less.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// How long an owner may take to confirm: it may have to read and hash what it vouches for.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

/// What became of copies that were to go.
#[derive(Debug, Default)]
struct Outcome {
    /// Copies that are gone: with a grant, or dropped.
    deleted: u64,
    dropped: u64,
    /// These stay because somebody was at them: a put, a touch, scrub.
    busy: BTreeSet<ChunkId>,
}

impl Keeper {
    /// Deletion is paused, or a directory is left out: that may be the only one that knows of the newest epoch, so who is listened to
    /// may be of an old one.
    pub(super) fn deletes_nothing(&self, settings: &KeepSettings) -> bool {
        settings.delete_paused || !self.shared.stores().left_out().is_empty()
    }

    /// Asks about these copies, and deletes what may go. How many went. `now`: comes back to those that somebody was at,
    /// [`BUSY_TRIES`] times.
    pub(super) async fn settle(
        &self,
        of: &Arc<Registration>,
        settings: &KeepSettings,
        extra: &[Kept],
        now: bool,
    ) -> Result<u64, Fault> {
        if self.deletes_nothing(settings) {
            return Ok(0);
        }
        let mut lens: BTreeMap<ChunkId, u32> = extra.iter().map(|copy| (copy.id, copy.len)).collect();
        let (mut gone, mut tries) = (0, if now { BUSY_TRIES } else { 0 });
        while !lens.is_empty() {
            let Outcome { deleted, dropped, busy } = self.settle_once(of, &lens).await?;
            gone += deleted + dropped;
            if deleted + dropped > 0 {
                info!(deleted, dropped, "copies that nobody needs here are gone");
                self.shared.stores().flush().await; // gives the space back
            }
            lens.retain(|id, _| busy.contains(id));
            if tries == 0 || lens.is_empty() {
                break;
            }
            tries -= 1;
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        Ok(gone)
    }

    async fn settle_once(&self, of: &Arc<Registration>, lens: &BTreeMap<ChunkId, u32>) -> Result<Outcome, Fault> {
        let mut outcome = Outcome::default();
        let asks: Vec<Nonced> = lens.keys().filter_map(|id| self.wish(of, *id, &mut outcome)).collect();
        let (grants, kept) = match self.ask(of, &asks).await {
            Ok(answer) => answer,
            Err(fault) => {
                self.unwish(&asks);
                return Err(fault);
            }
        };
        let may_go = granted(&asks, &grants);
        let known: BTreeSet<&Nonced> = may_go.iter().collect();
        self.unwish(&asks.iter().filter(|ask| !known.contains(ask)).copied().collect::<Vec<_>>());
        outcome.deleted = self.delete(may_go, &mut outcome).await;
        outcome.dropped = self.drop_moved(of, lens, kept, &mut outcome).await;
        Ok(outcome)
    }

    /// A wish to delete this chunk, with a new nonce, if it can stand in the epoch that the caller goes by. If that ends
    /// before the look, the look sees it; if it ends later, the wish is void with all others.
    fn wish(&self, of: &Registration, id: ChunkId, outcome: &mut Outcome) -> Option<Nonced> {
        let nonce = self.shared.world.random_u64();
        if !self.shared.stores().wish(id, nonce) {
            outcome.busy.insert(id);
            return None;
        }
        if self.shared.registration().is_ok_and(|now| now.map.epoch == of.map.epoch) {
            return Some((id, nonce));
        }
        self.shared.stores().unwish(id, nonce);
        None
    }

    fn unwish(&self, wishes: &[Nonced]) {
        wishes.iter().for_each(|(id, nonce)| self.shared.stores().unwish(*id, *nonce));
    }

    async fn ask(&self, of: &Registration, asks: &[Nonced]) -> Result<(Vec<Nonced>, Vec<(ChunkId, u8)>), Fault> {
        if asks.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let ask = KeepAsk::Condemn { server: of.server, epoch: of.map.epoch, asks: asks.to_vec() };
        match self.caller.keep(&ask, CALL_LIMIT).await? {
            KeepAnswer::Granted { epoch, grants, kept } if epoch == of.map.epoch => Ok((grants, kept)),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes those whose wishes still stand. How many went.
    async fn delete(&self, wishes: Vec<Nonced>, outcome: &mut Outcome) -> u64 {
        let deletes = futures::stream::iter(wishes).map(|(id, nonce)| async move {
            let deleted = self.shared.stores().delete(id, nonce).await;
            self.shared.stores().unwish(id, nonce);
            deleted.inspect_err(|error| debug!(chunk = %id, %error, "a copy stays"))
        });
        let outcomes: Vec<Result<u32, StoreError>> = deletes.buffered(DELETES_AT_ONCE).collect().await;
        let busy = |deleted: &Result<u32, StoreError>| match deleted {
            Err(StoreError::Busy { chunk }) => Some(*chunk),
            Ok(_) | Err(_) => None,
        };
        outcome.busy.extend(outcomes.iter().filter_map(busy));
        let lens: Vec<u32> = outcomes.into_iter().flatten().collect();
        let mut numbers = self.numbers();
        numbers.deleted += common::units::len_u64(lens.len());
        numbers.deleted_bytes += lens.iter().map(|len| u64::from(*len)).sum::<u64>();
        common::units::len_u64(lens.len())
    }

    /// Drops copies of chunks that belong elsewhere, once every owner has confirmed this very round. How many went.
    async fn drop_moved(
        &self,
        of: &Arc<Registration>,
        lens: &BTreeMap<ChunkId, u32>,
        kept: Vec<(ChunkId, u8)>,
        outcome: &mut Outcome,
    ) -> u64 {
        if !self.is_settled(of) || self.keeps.load(Ordering::Relaxed) {
            return 0;
        }
        // With fewer servers than a file wants copies, those that there are have one each.
        let takers = of.map.servers.values().filter(|server| server.weight > 0).count();
        let most = takers.max(of.map.replicas.into());
        // Rounds by their owners: most chunks of a group have the same.
        let mut rounds: BTreeMap<Vec<ServerId>, Vec<(ChunkRef, u64)>> = BTreeMap::new();
        for (id, target) in kept {
            let (_, order) = of.map.layout.place(&id);
            let owners: Vec<ServerId> = order.iter().take(usize::from(target)).copied().collect();
            let all_up = owners.iter().all(|owner| of.map.servers.get(owner).is_some_and(|server| server.up));
            if owners.len() < usize::from(target.max(1)).min(most) || owners.contains(&of.server) || !all_up {
                continue; // ours after all, or there is nobody to take it over yet
            }
            let Some(len) = lens.get(&id) else { continue };
            let Some((id, nonce)) = self.wish(of, id, outcome) else { continue };
            rounds.entry(owners).or_default().push((ChunkRef { id, len: *len }, nonce));
        }
        let mut dropped = 0;
        for (owners, rounds) in rounds {
            for some in rounds.chunks(BATCH_MAX) {
                dropped += self.drop_confirmed(of, &owners, some, outcome).await;
            }
        }
        dropped
    }

    /// A server without a place in the layout was drained, or was out and comes back into it in a moment: then all this is
    /// its own once more.
    fn is_settled(&self, of: &Registration) -> bool {
        let mut outside = self.outside.lock().expect("no panic holds this lock");
        if of.map.layout.groups.iter().any(|order| order.contains(&of.server)) {
            *outside = None;
            return true;
        }
        outside.get_or_insert_with(Instant::now).elapsed() >= OUTSIDE_MIN
    }

    async fn drop_confirmed(
        &self,
        of: &Registration,
        owners: &[ServerId],
        some: &[(ChunkRef, u64)],
        outcome: &mut Outcome,
    ) -> u64 {
        let mut rounds = Rounds::open(owners, some.iter().map(|(chunk, nonce)| (chunk.id, *nonce)));
        for owner in owners {
            let target = Target { server: *owner, addr: of.map.servers[owner].addr.clone() };
            match self.shared.pool.confirm(&target, of.map.epoch, some, CONFIRM_LIMIT).await {
                Ok(confirmed) => rounds.confirm(*owner, &confirmed),
                Err(fault) => debug!(server = %owner, error = %fault, "an owner does not confirm"),
            }
        }
        let (done, open) = rounds.split();
        self.unwish(&open);
        self.delete(done, outcome).await
    }
}
