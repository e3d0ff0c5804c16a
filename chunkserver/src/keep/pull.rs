//! Fetching what is missing: from whoever has it, verified before it is stored.

use super::Keeper;
use super::queue::Missing;
use crate::service::Registration;
use crate::store::Incoming;
use common::fault::{Fault, Kind};
use common::id::{ServerId, SessionId};
use common::proto::keep::KeepSettings;
use common::wire::Target;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Chunks fetched at a time.
pub(super) const PULLS: usize = 4;
/// How long a source may take, for each started 16 MiB.
const GET_LIMIT: Duration = Duration::from_secs(10);
/// After a chunk that nobody gave, so that a hopeless queue costs little.
const FAILED_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks into an empty queue.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the loss of one more server would lose is re-made so many times as fast while clients use this one: they wait for
/// it a little longer, and not for everything that has lost one of three copies.
const ENDANGERED_FACTOR: u64 = 4;
/// In whose name servers read from each other: no client has this session.
const OWN: SessionId = SessionId(0);

impl Keeper {
    pub(super) async fn pulls(&self) {
        loop {
            let next = self.take();
            let Some(missing) = next else {
                let _ = tokio::time::timeout(LOOK_EVERY, self.found.notified()).await; // whichever comes first
                continue;
            };
            let wait = self.wait_for(&missing);
            tokio::time::sleep(wait).await;
            match self.fetch(&missing).await {
                Ok(()) => {
                    self.queue().made(missing.chunk, Instant::now());
                    if missing.degraded {
                        self.note_hold(missing.chunk.id);
                    }
                }
                Err(failed) => {
                    let (Failed::Source(fault) | Failed::Here(fault)) = &failed;
                    debug!(chunk = %missing.chunk.id, error = %fault, "a chunk that belongs here is not here yet");
                    self.queue().failed(missing.chunk.id, matches!(failed, Failed::Source(_)));
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            }
        }
    }

    /// The next chunk to fetch: one that can wait only if its turn has come.
    fn take(&self) -> Option<Missing> {
        let (mut moving, now) = (self.moving.lock().expect("no panic holds this lock"), Instant::now());
        let next = self.queue().take(moving.may(now))?;
        if next.spare {
            moving.begins(next.chunk.len.into(), now);
        }
        Some(next)
    }

    /// How long to wait before this is fetched.
    fn wait_for(&self, missing: &Missing) -> Duration {
        let settings = self.orders.borrow().settings;
        let requests = self.shared.client_requests.load(std::sync::atomic::Ordering::Relaxed);
        let (mut pace, now) = (self.pace.lock().expect("no panic holds this lock"), Instant::now());
        let busy = pace.is_busy(requests, now);
        pace.wait(missing.chunk.len.into(), rate(&settings, busy, missing.is_endangered()), now)
    }

    async fn fetch(&self, missing: &Missing) -> Result<(), Failed> {
        if self.shared.stores().touch(&[missing.chunk]).await.map_err(|error| Failed::Here(error.into()))? == [true] {
            return Ok(()); // somebody put it meanwhile
        }
        let registration = self.shared.registration().map_err(Failed::Here)?;
        let mut last = Fault::new(Kind::NotFound, "no other server is up");
        for source in sources(&registration, missing) {
            match self.fetch_from(&registration, missing, &source).await {
                Ok(()) => return Ok(()),
                Err(Failed::Source(fault)) => last = fault,
                Err(here) => return Err(here),
            }
        }
        // A copy that could not be read is not one; where nobody else has it, the disk may have another look.
        match self.shared.stores().verify(missing.chunk.id).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Failed::Source(last)),
        }
    }

    async fn fetch_from(&self, of: &Arc<Registration>, missing: &Missing, from: &Target) -> Result<(), Failed> {
        let chunk = missing.chunk;
        let right = (OWN, of.secret.read_token(chunk.id, OWN, of.map.epoch));
        let room = self.shared.room.pull(2 * Incoming::memory(chunk.len)).await.map_err(Failed::Here)?;
        let mut incoming = Incoming::new(chunk).map_err(|error| Failed::Here(error.into()))?.in_room(Arc::new(room));
        let limit = GET_LIMIT * (1 + (chunk.len >> 24));
        let got = self.shared.pool.get(from, right, chunk.id, 0, chunk.len, limit).await.map_err(Failed::Source)?;
        let whole = got.chunk_len == chunk.len && got.start == 0 && got.bytes.len() == incoming.rest();
        if whole {
            incoming.push(&got.bytes);
        }
        match incoming.finish() {
            Ok(verified) => {
                self.shared.stores().put(verified).await.map_err(|error| Failed::Here(error.into()))?;
                Ok(())
            }
            Err(error) => {
                warn!(chunk = %chunk.id, server = %from.server, "a server sent wrong bytes of a chunk: it is told");
                let told = self.shared.pool.verify(from, right, chunk.id, GET_LIMIT).await;
                debug!(chunk = %chunk.id, server = %from.server, ?told, "verify");
                Err(Failed::Source(error.into()))
            }
        }
    }
}

/// How fast this server fetches now, in bytes per second.
fn rate(settings: &KeepSettings, busy: bool, endangered: bool) -> u64 {
    match (busy, endangered) {
        (false, false) => settings.repair_idle_rate,
        (true, false) => settings.repair_busy_rate,
        (busy, true) => {
            let rate = settings.repair_busy_rate.saturating_mul(ENDANGERED_FACTOR);
            // While clients use others, a server that they do not use is given no more for the rest than those.
            if busy { rate } else { rate.max(settings.repair_idle_rate) }
        }
    }
}

/// Why a chunk was not fetched.
enum Failed {
    /// This source does not give it.
    Source(Fault),
    /// This server cannot take it.
    Here(Fault),
}

/// Whom to ask, in order: who was seen to have it, then the rest of its group, then everybody else that is up.
fn sources(of: &Registration, missing: &Missing) -> Vec<Target> {
    let turn = usize::from(missing.chunk.id.0[31]) % missing.holders.len().max(1);
    let (late, early) = missing.holders.split_at(turn.min(missing.holders.len()));
    let (_, order) = of.map.layout.place(&missing.chunk.id);
    let mut asked: Vec<ServerId> = Vec::new();
    for server in early.iter().chain(late).chain(order).chain(of.map.servers.keys()) {
        let up = of.map.servers.get(server).is_some_and(|info| info.up);
        if up && *server != of.server && !asked.contains(server) {
            asked.push(*server);
        }
    }
    asked.into_iter().map(|server| Target { server, addr: of.map.servers[&server].addr.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_chunk_of_the_greatest_length_finds_room() {
        let shared = crate::service::Room::new();
        assert!(shared.pull(2 * Incoming::memory(common::units::CHUNK_SIZE_MAX)).await.is_ok());
    }

    #[test]
    fn what_has_one_copy_left_hurries_and_the_rest_yields_to_clients() {
        let settings = KeepSettings { repair_busy_rate: 10, repair_idle_rate: 1000, ..KeepSettings::default() };
        let rate = |busy, endangered| rate(&settings, busy, endangered);
        assert_eq!([rate(false, false), rate(false, true), rate(true, false), rate(true, true)], [1000, 1000, 10, 40]);
        let in_use = KeepSettings { repair_idle_rate: 10, ..settings };
        assert_eq!(super::rate(&in_use, false, true), 40, "a new server helps as much as one that is used");
    }
}
