//! Comparing what should be here with what is: a pass over all ids, and when it is time for one.

use super::merge::{before, compare};
use super::queue::Missing;
use super::{CALL_LIMIT, Keeper, unexpected};
use crate::service::Registration;
use crate::store::Kept;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, Epoch, LayoutVersion, PgId, ServerId};
use common::proto::chunk::{BATCH_MAX, ChunkRef, LIST_MAX};
use common::proto::keep::{Expected, ExpectedChunk, KEEP_BATCH_MAX, KeepAnswer, KeepAsk, KeepOrders};
use common::units::len_usize;
use common::wire::Target;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info};

/// A pass is made at least so often. With the grace period of a minute, what lost its last reference is gone within two.
const PASS_EVERY: Duration = Duration::from_secs(45);
/// ... and so often while copies are left that belong elsewhere: their owners may have them by now.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// Degraded chunks are looked for so often while there are any in the cluster.
const DEGRADED_EVERY: Duration = Duration::from_secs(5);
/// Between two looks whether it is time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a pass that failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Copies compared at a time, at most.
const RANGE_MAX: usize = 16 << 10;
/// Chunks asked about at a time before they are deleted.
const ASK_BATCH: usize = 4096;
/// Pause between two pages: what a comparison costs others is bounded.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// Groups whose other servers are asked at a time what they have.
const LOOKS_AT_ONCE: usize = 8;
/// How long another server may take to say what it has.
const LIST_LIMIT: Duration = Duration::from_secs(3);
/// Servers asked for one group, at most: the first of its list ...
const PEERS_MAX: usize = 6;
/// ... and the last, where those stand that it was on while it moves.
const PEERS_LAST: usize = 3;
/// How long a pass waits for the layout that made its own an old one.
const LATER_LIMIT: Duration = Duration::from_secs(5);
/// A copy that was put so much later than now, in seconds, was put while a clock was ahead.
const AHEAD_MAX: u64 = 24 * 3600;

/// What the last passes were.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    /// When the last whole pass ended.
    whole: Option<Instant>,
    /// With which layout, of which life of the metadata.
    layout: LayoutVersion,
    epoch: Epoch,
    /// Which order to collect garbage it carried out.
    gc: u64,
    /// Fenced data directories then.
    fenced: u32,
    /// There was more missing than the queue takes.
    more: bool,
    /// Copies were left that belong elsewhere.
    left: bool,
    /// When degraded chunks were looked for.
    degraded: Option<Instant>,
    /// Not before this.
    retry: Option<Instant>,
}

/// What there is to go by.
#[derive(Clone, Copy, Debug)]
struct Present {
    layout: LayoutVersion,
    epoch: Epoch,
    orders: Deciding,
    fenced: u32,
    idle: bool,
    /// Somebody asked for a look.
    wanted: bool,
}

/// The part of the orders that decides.
#[derive(Clone, Copy, Debug, Default)]
struct Deciding {
    gc: u64,
    degraded: u64,
}

/// What a whole pass leaves to do.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// More is missing than the queue takes.
    more: bool,
    /// Copies that belong elsewhere are still here.
    left: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Whole,
    Degraded,
}

/// What is due now. Pure.
fn due(past: &Past, present: &Present, now: Instant) -> Option<Due> {
    let over = |since: Option<Instant>, pause| since.is_none_or(|at| now.saturating_duration_since(at) >= pause);
    if past.retry.is_some_and(|retry| now < retry) {
        return None;
    }
    let changed = (present.layout, present.epoch) != (past.layout, past.epoch)
        || present.fenced != past.fenced
        || present.orders.gc > past.gc;
    let again = past.more && present.idle;
    if over(past.whole, if past.left { AGAIN_EVERY } else { PASS_EVERY }) || changed || again || present.wanted {
        return Some(Due::Whole);
    }
    (present.orders.degraded > 0 && over(past.degraded, DEGRADED_EVERY)).then_some(Due::Degraded)
}

impl Keeper {
    pub(super) async fn passes(&self) {
        let (mut past, mut wanted) = (Past::default(), false);
        let next_number = || self.pass.fetch_add(1, Ordering::Relaxed) + 1;
        loop {
            tokio::select! {
                biased;
                () = self.shared.look_again.notified() => wanted = true,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let Ok(registration) = self.shared.registration() else { continue };
            let orders = self.orders.borrow().clone();
            let present = Present {
                layout: registration.map.layout.version,
                epoch: registration.map.epoch,
                orders: Deciding { gc: orders.gc, degraded: orders.degraded },
                fenced: self.shared.stores().stats_soon().await.fenced,
                idle: self.queue().is_idle(),
                wanted,
            };
            let outcome = match due(&past, &present, Instant::now()) {
                None => continue,
                Some(Due::Degraded) => {
                    past.degraded = Some(Instant::now());
                    self.degraded(&registration, next_number()).await
                }
                Some(Due::Whole) => {
                    let outcome = self.whole(&registration, &orders, next_number(), orders.gc > past.gc).await;
                    outcome.map(|Outcome { more, left }| {
                        wanted = false;
                        let Present { layout, epoch, fenced, .. } = present;
                        let whole = Some(Instant::now());
                        past = Past { whole, layout, epoch, gc: orders.gc.max(past.gc), fenced, more, left, ..past };
                        let mut numbers = self.numbers();
                        (numbers.compared, numbers.gc_done) = ((epoch, layout), past.gc);
                        numbers.passes += 1;
                    })
                }
            };
            past.retry = outcome.err().map(|fault| {
                debug!(error = %fault, "compare what should be here with what is");
                Instant::now() + RETRY_AFTER
            });
        }
    }

    async fn expected(&self, of: &Registration, from: ChunkId, degraded: bool) -> Result<Expected, Fault> {
        let (server, layout) = (of.server, of.map.layout.version);
        let ask = KeepAsk::Expected { server, layout, from, limit: KEEP_BATCH_MAX, degraded };
        match self.caller.keep(&ask, CALL_LIMIT).await? {
            KeepAnswer::Expected(told) => Ok(told),
            other => Err(unexpected(&other)),
        }
    }

    /// One pass over all ids. `now`: also young chunks are asked about, and those again that somebody was at.
    async fn whole(
        &self,
        of: &Arc<Registration>,
        orders: &KeepOrders,
        number: u64,
        now: bool,
    ) -> Result<Outcome, Fault> {
        let secs = u64::try_from(self.shared.world.now().secs).unwrap_or(0);
        let mut of = Arc::clone(of);
        let put_before = if now { secs + 1 } else { secs.saturating_sub(orders.settings.grace_s) };
        self.queue().begin();
        let (mut from, mut extra, mut extras): (_, Vec<Kept>, u64) = (ChunkId([0; 32]), Vec::new(), 0);
        loop {
            let told = match self.expected(&of, from, false).await {
                // Groups move: the pass goes on by the layout that is there by now, or it would never end.
                Err(fault) if fault.kind == Kind::Stale => {
                    of = self.later(&of).await.ok_or(fault)?;
                    continue;
                }
                told => told?,
            };
            let (actual, next) = self.shared.stores().range(from, told.upto, RANGE_MAX).await?;
            let upto = [told.upto, next].into_iter().flatten().min();
            let mut expected = told.chunks;
            expected.retain(|chunk| upto.is_none_or(|upto| chunk.id < upto));
            let difference = compare(&expected, &actual, put_before..secs + AHEAD_MAX);
            self.missing(&of, difference.missing, number).await;
            extras += common::units::len_u64(difference.extra.len());
            extra.extend(difference.extra);
            while extra.len() >= ASK_BATCH {
                let rest = extra.split_off(ASK_BATCH);
                extras -= self.settle(&of, &orders.settings, &extra, now).await?;
                extra = rest;
            }
            match upto {
                None => break,
                Some(upto) => from = upto,
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        extras -= self.settle(&of, &orders.settings, &extra, now).await?;
        self.numbers().extra = extras;
        Ok(Outcome { more: self.queue().passed(number), left: extras > 0 && !self.deletes_nothing(&orders.settings) })
    }

    /// The registration with another layout than this one, as soon as it is there. `None`: it does not come.
    async fn later(&self, of: &Registration) -> Option<Arc<Registration>> {
        let end = Instant::now() + LATER_LIMIT;
        while Instant::now() < end {
            let now = self.shared.registration().ok()?;
            if now.map.layout.version != of.map.layout.version {
                return Some(now);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }

    /// Looks for chunks that the metaservers know to have too few copies and that belong here.
    async fn degraded(&self, of: &Arc<Registration>, number: u64) -> Result<(), Fault> {
        let mut from = ChunkId([0; 32]);
        loop {
            let told = self.expected(of, from, true).await?;
            for some in told.chunks.chunks(BATCH_MAX) {
                let chunks: Vec<ChunkRef> =
                    some.iter().map(|chunk| ChunkRef { id: chunk.id, len: chunk.len }).collect();
                let here = self.shared.stores().touch(&chunks).await?;
                let (here, absent): (Vec<_>, Vec<_>) = some.iter().zip(here).partition(|(_, here)| *here);
                here.into_iter().for_each(|(chunk, _)| self.note_hold(chunk.id));
                self.missing(of, absent.into_iter().map(|(chunk, _)| *chunk).collect(), number).await;
            }
            match told.upto {
                None => return Ok(()),
                Some(upto) => from = upto,
            }
        }
    }

    /// Puts what is missing into the queue, with who has it.
    pub(super) async fn missing(&self, of: &Arc<Registration>, missing: Vec<ExpectedChunk>, number: u64) {
        if missing.is_empty() {
            return;
        }
        let pg_count = of.map.layout.pg_count();
        let mut groups: BTreeMap<PgId, Vec<ExpectedChunk>> = BTreeMap::new();
        for chunk in missing {
            groups.entry(chunk.id.pg(pg_count)).or_default().push(chunk);
        }
        let looks = futures::stream::iter(groups).map(|(pg, chunks)| async move {
            let holders = self.holders(of, pg, &chunks).await;
            (chunks, holders)
        });
        let mut looks = std::pin::pin!(looks.buffered(LOOKS_AT_ONCE));
        let mut count = 0;
        while let Some((chunks, mut holders)) = looks.next().await {
            let now = Instant::now();
            let mut queue = self.queue();
            for chunk in chunks {
                let holders = holders.remove(&chunk.id).unwrap_or_default();
                let ExpectedChunk { id, len, degraded } = chunk;
                let spare = !degraded && holders.len() >= usize::from(of.map.replicas);
                queue.found(Missing { chunk: ChunkRef { id, len }, holders, degraded, spare }, number, now);
                count += 1;
            }
            drop(queue);
            self.found.notify_waiters();
        }
        info!(count, "chunks that belong here are missing: fetching them");
    }

    /// Which other servers of the group have these chunks, as far as they say.
    async fn holders(&self, of: &Registration, pg: PgId, chunks: &[ExpectedChunk]) -> BTreeMap<ChunkId, Vec<ServerId>> {
        let mut holders: BTreeMap<ChunkId, Vec<ServerId>> = BTreeMap::new();
        let (Some(begin), Some(last)) = (chunks.first(), chunks.last()) else { return holders };
        let order = &of.map.layout.groups[len_usize(pg.0.into())];
        let up = |id: &&ServerId| **id != of.server && of.map.servers.get(id).is_some_and(|server| server.up);
        let peers: Vec<&ServerId> = order.iter().filter(up).collect();
        let (first, rest) = peers.split_at(peers.len().min(PEERS_MAX));
        for server in first.iter().chain(&rest[rest.len().saturating_sub(PEERS_LAST)..]).copied() {
            let target = Target { server: *server, addr: of.map.servers[server].addr.clone() };
            let mut after = before(begin.id);
            loop {
                let listed = self.shared.pool.list(&target, pg, Some(after), LIST_MAX, LIST_LIMIT).await;
                let Ok((found, more)) = listed else { break };
                for has in &found {
                    if chunks.binary_search_by_key(&has.id, |chunk| chunk.id).is_ok() {
                        holders.entry(has.id).or_default().push(*server);
                    }
                }
                match found.last() {
                    Some(end) if more && end.id < last.id => after = end.id,
                    _ => break,
                }
            }
        }
        holders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_is_made_when_something_changed_and_now_and_then() {
        let now = Instant::now();
        let layout = LayoutVersion(3);
        let past = Past { whole: Some(now), layout, epoch: Epoch(1), gc: 5, degraded: Some(now), ..Past::default() };
        let (epoch, orders) = (Epoch(1), Deciding::default());
        let present = Present { layout, epoch, orders, fenced: 0, idle: true, wanted: false };
        let orders = |gc, degraded| Deciding { gc, degraded };
        assert_eq!(due(&past, &present, now), None);
        assert_eq!(due(&Past::default(), &present, now), Some(Due::Whole), "after a start");
        assert_eq!(due(&past, &present, now + PASS_EVERY), Some(Due::Whole));
        assert_eq!(due(&past, &Present { layout: LayoutVersion(4), ..present }, now), Some(Due::Whole));
        assert_eq!(due(&past, &Present { epoch: Epoch(2), ..present }, now), Some(Due::Whole), "after a restore");
        assert_eq!(due(&past, &Present { fenced: 1, ..present }, now), Some(Due::Whole));
        assert_eq!(due(&past, &Present { wanted: true, ..present }, now), Some(Due::Whole));
        assert_eq!(due(&past, &Present { orders: orders(6, 0), ..present }, now), Some(Due::Whole));
        assert_eq!(due(&past, &Present { orders: orders(5, 0), ..present }, now), None);
        let more = Past { more: true, ..past };
        assert_eq!(due(&more, &present, now), Some(Due::Whole));
        assert_eq!(due(&more, &Present { idle: false, ..present }, now), None, "what is queued comes first");
        let left = Past { left: true, ..past };
        assert_eq!(due(&left, &present, now + AGAIN_EVERY), Some(Due::Whole));
        let degraded = Present { orders: orders(0, 7), ..present };
        assert_eq!(due(&past, &degraded, now), None);
        assert_eq!(due(&past, &degraded, now + DEGRADED_EVERY), Some(Due::Degraded));
        let failed = Past { retry: Some(now + RETRY_AFTER), ..Past::default() };
        assert_eq!(due(&failed, &degraded, now), None);
    }
}
