//! Reading a chunk: from whichever replica is right, asked one after another, or a second one beside a slow one.

use super::{Chunks, ROUND_PAUSE, Spot, address};
use crate::stats::add;
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::hash::verify;
use common::id::ServerId;
use common::layout::ClusterMap;
use common::units::{len_u64, len_usize};
use common::wire::{Got, Target};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, warn};

/// One read of one replica.
const GET_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest pause between rounds: the first is [`ROUND_PAUSE`], each is twice as long as the one before.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Rounds of reads in which servers may say that a token is none of theirs.
const STALE_ROUNDS: u32 = 2;
/// A second replica is asked when the first is silent for this long: ranges, and whole chunks.
const HEDGE_RANGE: Duration = Duration::from_millis(50);
/// As [`HEDGE_RANGE`], for reads of more than [`SMALL_GET`] bytes.
const HEDGE_CHUNK: Duration = Duration::from_millis(250);
/// Reads up to this long are verified in place and hedged soon, in bytes.
const SMALL_GET: u32 = 128 << 10;
/// At most one read in this many is hedged, so that an overloaded cluster is not loaded twice.
const HEDGE_SHARE: u64 = 10;
/// Beyond that, so many at the beginning, and one more each second.
const HEDGE_BURST: u64 = 6;

/// What a server sent, verified: where in the chunk the bytes start, and the bytes.
type Heard = (ServerId, Result<(u32, Bytes), Fault>);

impl Chunks {
    /// Reads `range` of a chunk, verified. What comes back is the range widened to hash groups, and where it starts.
    ///
    /// # Errors
    /// `Corrupt` when every copy is damaged or gone, `Unavailable` when none answers in time. `Stale`: servers do not know the
    /// token, such as one of a session that has ended: ask for the extents again. The message names the
    /// chunk, the file and what each server said.
    pub(crate) async fn fetch(&self, spot: &Spot, range: (u32, u32), deadline: Instant) -> Result<(u32, Bytes), Fault> {
        let mut pause = ROUND_PAUSE;
        let mut stale = 0;
        loop {
            let said = match self.fetch_round(spot, range, deadline).await {
                Ok(found) => return Ok(found),
                Err(said) => said,
            };
            // A server that is behind by an epoch says so, too.
            stale += u32::from(said.iter().any(|(_, fault)| fault.kind == Kind::Stale));
            if stale == STALE_ROUNDS {
                return Err(Fault { kind: Kind::Stale, ..nobody(spot, &said) });
            }
            // A server that restarts, or is cut off for a moment, may hold the only sound copy.
            let may_come_back = said.iter().any(|(_, fault)| fault.kind.is_transient() || fault.kind == Kind::Refused);
            if !may_come_back || Instant::now() + pause >= deadline {
                return Err(nobody(spot, &said));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ROUND_PAUSE_MAX);
        }
    }

    /// Asks every server that may have it, once. The error: what each said.
    async fn fetch_round(
        &self,
        spot: &Spot,
        range: (u32, u32),
        deadline: Instant,
    ) -> Result<(u32, Bytes), Vec<(ServerId, Fault)>> {
        let map = self.meta.map();
        let mut waiting: std::vec::IntoIter<Target> = self.replicas(&map, spot).into_iter();
        let mut asked: Vec<BoxFuture<'_, Heard>> = Vec::new();
        let mut said: Vec<(ServerId, Fault)> = Vec::new();
        let mut silent: Vec<ServerId> = Vec::new(); // asked, and not heard of yet
        let hedge_after = if range.1 <= SMALL_GET { HEDGE_RANGE } else { HEDGE_CHUNK };
        loop {
            if asked.is_empty() {
                match waiting.next() {
                    Some(at) => {
                        silent.push(at.server);
                        asked.push(Box::pin(self.fetch_from(at, spot, range, deadline)));
                    }
                    None => return Err(said),
                }
            }
            let hedge = self.pulse.wait(hedge_after);
            tokio::select! {
                biased;
                (server, result) = first_of(&mut asked) => match result {
                    Ok(found) => {
                        let before = silent.iter().take_while(|other| **other != server);
                        before.for_each(|other| self.overtaken(*other));
                        return Ok(found);
                    }
                    Err(fault) => {
                        silent.retain(|other| *other != server);
                        said.push((server, fault));
                    }
                },
                () = tokio::time::sleep_until(deadline) => {
                    said.push((ServerId(0), Fault::new(Kind::Unavailable, "the deadline passed")));
                    return Err(said);
                }
                () = hedge, if asked.len() < 2 && self.may_hedge() => {
                    if let Some(at) = waiting.next() {
                        add(&self.counters.hedged_reads, 1);
                        silent.push(at.server);
                        asked.push(Box::pin(self.fetch_from(at, spot, range, deadline)));
                    }
                }
            }
        }
    }

    fn may_hedge(&self) -> bool {
        let reads = self.counters.cache_misses.load(Ordering::Relaxed);
        may_hedge(self.counters.hedged_reads.load(Ordering::Relaxed), reads, self.began.elapsed().as_secs())
    }

    /// Who may have it, best first: known holders, its placement, then everybody (its placement may have changed).
    fn replicas(&self, map: &ClusterMap, spot: &Spot) -> Vec<Target> {
        let avoided = self.avoided();
        let mut order: Vec<ServerId> = spot.holders.clone();
        order.extend(map.read_candidates(&spot.id));
        order.extend(map.servers.iter().filter(|(_, s)| s.up).map(|(id, _)| *id));
        order.extend(map.servers.keys());
        let mut seen = BTreeSet::new();
        order.retain(|id| seen.insert(*id));
        let (last, first): (Vec<ServerId>, Vec<ServerId>) = order.into_iter().partition(|id| avoided.contains(id));
        first.into_iter().chain(last).filter_map(|id| address(map, id)).collect()
    }

    async fn fetch_from(&self, at: Target, spot: &Spot, range: (u32, u32), deadline: Instant) -> Heard {
        let server = at.server;
        let began = Instant::now();
        let deadline = deadline.min(began + GET_TIMEOUT);
        let reader = (self.meta.session().id, spot.token);
        let got = match self.link.get(&at, reader, spot.id, range, deadline).await {
            Ok(got) => got,
            Err(fault) => {
                self.count_failure(&at, spot, &fault, began);
                return (server, Err(fault));
            }
        };
        self.worked(server);
        add(&self.counters.received_bytes, len_u64(got.bytes.len()));
        let result = self.verified(got, spot, range).await;
        if let Err(fault) = &result {
            self.count_failure(&at, spot, fault, began);
            self.reports.wrong(at, reader, spot.id); // the server does not know: it sent them
        }
        (server, result)
    }

    fn count_failure(&self, at: &Target, spot: &Spot, fault: &Fault, began: Instant) {
        if fault.kind == Kind::Corrupt {
            add(&self.counters.corrupt_replicas, 1);
            error!(chunk = %spot.id, server = %at.server, inode = %spot.ino, error = %fault, "damaged replica");
            return;
        }
        add(&self.counters.failed_replicas, 1);
        warn!(chunk = %spot.id, server = %at.server, inode = %spot.ino, error = %fault, "replica not read");
        if matches!(fault.kind, Kind::Unavailable | Kind::Unsure) {
            self.failed(at.server, fault, began);
        }
    }

    async fn verified(&self, got: Got, spot: &Spot, range: (u32, u32)) -> Result<(u32, Bytes), Fault> {
        let Got { chunk_len, start, bytes, proof } = got;
        let end = u64::from(start) + len_u64(bytes.len());
        if chunk_len != spot.len || start > range.0 || end < u64::from(range.0) + u64::from(range.1) {
            return Err(Fault::new(Kind::Corrupt, format!("sent {start}..{end} of {chunk_len} bytes")));
        }
        let (id, len) = (spot.id, spot.len);
        let checked = if bytes.len() <= len_usize(SMALL_GET.into()) {
            verify(id, len, start, &bytes, &proof)
        } else {
            let bytes = bytes.clone();
            self.world.blocking(move || verify(id, len, start, &bytes, &proof)).await
        };
        match checked {
            Ok(()) => Ok((start, bytes)),
            Err(mismatch) => Err(Fault::new(Kind::Corrupt, mismatch.to_string())),
        }
    }
}

/// The first of these to end; it is taken out. (`FuturesUnordered` wakes its caller once more whenever it has polled all: with
/// one future in it, every read was polled twice.)
async fn first_of<T>(these: &mut Vec<BoxFuture<'_, T>>) -> T {
    poll_fn(|cx| {
        for at in 0..these.len() {
            if let Poll::Ready(done) = these[at].as_mut().poll(cx) {
                drop(these.swap_remove(at));
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether one more read may be hedged, after so many reads of which so many were, in so many seconds. The share counts
/// when there are many reads; a client that reads now and then loads nobody.
fn may_hedge(hedged: u64, reads: u64, secs: u64) -> bool {
    hedged < reads / HEDGE_SHARE + HEDGE_BURST + secs
}

fn nobody(spot: &Spot, said: &[(ServerId, Fault)]) -> Fault {
    let all_silent = said.iter().all(|(_, f)| matches!(f.kind, Kind::Unavailable | Kind::Unsure));
    let some_silent = said.iter().any(|(_, f)| matches!(f.kind, Kind::Unavailable | Kind::Unsure));
    let any_bad = said.iter().any(|(_, f)| f.kind == Kind::Corrupt);
    let kind =
        if said.is_empty() || all_silent || (some_silent && !any_bad) { Kind::Unavailable } else { Kind::Corrupt };
    let each: Vec<String> = said.iter().map(|(server, fault)| format!("{server}: {fault}")).collect();
    let each = if each.is_empty() { "no chunkserver is known".to_owned() } else { each.join("; ") };
    Fault::new(kind, format!("no good copy of chunk {} of file {}: {each}", spot.id, spot.ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_many_reads_is_hedged_and_any_of_few() {
        for (hedged, reads, secs, may) in [
            (0, 0, 0, true),
            (5, 0, 0, true),
            (6, 0, 0, false),
            (6, 0, 1, true),
            (6, 9, 0, false),
            (6, 10, 0, true),
            (105, 1000, 0, true),
            (106, 1000, 0, false),
        ] {
            assert_eq!(may_hedge(hedged, reads, secs), may, "{hedged} of {reads} in {secs} s");
        }
    }
}
