//! Placement groups that move here: compared at once and told apart, so that the metaservers know when each has arrived.
//!
//! A group *is here* as of an applied index when everything that was referred to at that index was compared with what is
//! durably here, and nothing was missing. What is missing is fetched like all else ([`super::pull`]), within the rate that
//! the plan allows.

use super::merge::compare;
use super::{CALL_LIMIT, Keeper, unexpected};
use crate::service::Registration;
use common::fault::Fault;
use common::id::{ChunkId, Epoch, LogIndex, PgId};
use common::proto::keep::{Expected, ExpectedChunk, KEEP_BATCH_MAX, KeepAnswer, KeepAsk};
use common::proto::rebalance::{GroupHere, MoveOrders, MovesReport, MovingGroup};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// Between two reports, while nothing moves and while something does.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// See [`REPORT_EVERY`].
const REPORT_SOON: Duration = Duration::from_millis(300);
/// A group of which something was missing is compared again when none of it waits to be fetched, or after this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// ... but not sooner than this: what the queue did not take is found again and again.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// Copies compared at a time, at most.
const RANGE_MAX: usize = 16 << 10;

/// What is known of the groups that move here.
#[derive(Debug, Default)]
struct Known {
    epoch: Epoch,
    here: BTreeMap<PgId, (GroupHere, Instant)>,
}

impl Known {
    /// What is still to be fetched of groups, in bytes: less than when they were compared. That nothing is missing only a
    /// comparison can say.
    fn update(&mut self, waiting: impl Fn(PgId) -> u64) {
        for (here, _) in self.here.values_mut().filter(|(here, _)| here.missing > 0) {
            here.missing_bytes = here.missing_bytes.min(waiting(here.pg));
        }
    }

    /// Groups to be compared now: never yet, or not of late enough, or something was missing and may be here by now.
    fn due(&self, groups: &[MovingGroup], now: Instant) -> Vec<PgId> {
        let is_due = |group: &&MovingGroup| match self.here.get(&group.pg) {
            None => true,
            Some((here, _)) if here.index < group.from => true,
            Some((here, _)) if here.missing == 0 => false,
            Some((here, at)) => {
                let pause = if here.missing_bytes == 0 { AGAIN_MIN } else { AGAIN_AFTER };
                now.saturating_duration_since(*at) >= pause
            }
        };
        let mut due: Vec<PgId> = groups.iter().filter(is_due).map(|group| group.pg).collect();
        due.sort_unstable();
        due
    }
}

impl Keeper {
    pub(super) async fn moves(&self) {
        let mut known = Known::default();
        let mut pause = REPORT_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = REPORT_EVERY;
            let Ok(registration) = self.shared.registration() else { continue };
            if known.epoch != registration.map.epoch {
                known = Known { epoch: registration.map.epoch, here: BTreeMap::new() };
            }
            let pg_count = registration.map.layout.pg_count();
            known.update(|pg| self.queue().waiting(pg, pg_count));
            let orders = match self.ask_moves(&registration, &known).await {
                Ok(orders) => orders,
                Err(fault) => {
                    debug!(error = %fault, "tell how far moves are");
                    continue;
                }
            };
            let groups = self.take_moves(orders);
            known.here.retain(|pg, _| groups.iter().any(|group| group.pg == *pg));
            if groups.is_empty() {
                continue;
            }
            pause = REPORT_SOON;
            let due = known.due(&groups, Instant::now());
            if let Err(fault) = self.compare_groups(&registration, &due, &mut known).await {
                debug!(error = %fault, "compare groups that move here");
            }
        }
    }

    /// Rate and pause count from now on; the groups.
    fn take_moves(&self, orders: MoveOrders) -> Vec<MovingGroup> {
        let MoveOrders { groups, rate, paused, keeps } = orders;
        self.keeps.store(keeps, Ordering::Relaxed);
        self.moving.lock().expect("no panic holds this lock").allow(rate, paused);
        groups
    }

    async fn ask_moves(&self, of: &Registration, known: &Known) -> Result<MoveOrders, Fault> {
        let here = known.here.values().map(|(here, _)| *here).collect();
        let report = MovesReport { server: of.server, epoch: of.map.epoch, here };
        match self.caller.keep(&KeepAsk::Moves(report), CALL_LIMIT).await? {
            KeepAnswer::Moves(orders) => Ok(orders),
            other => Err(unexpected(&other)),
        }
    }

    /// Compares these groups, in order, and has fetched what is missing.
    async fn compare_groups(&self, of: &Arc<Registration>, due: &[PgId], known: &mut Known) -> Result<(), Fault> {
        let pg_count = of.map.layout.pg_count();
        let mut open: BTreeMap<PgId, GroupHere> = BTreeMap::new();
        let Some(mut from) = due.first().map(|pg| pg.first(pg_count)) else { return Ok(()) };
        loop {
            let (told, missing, upto) = self.compare_page(of, from).await?;
            let reached = upto.map(|upto| upto.pg(pg_count));
            for pg in due.iter().filter(|pg| **pg >= from.pg(pg_count) && reached.is_none_or(|upto| **pg <= upto)) {
                let new = GroupHere { pg: *pg, index: told, missing: 0, missing_bytes: 0 };
                open.entry(*pg).or_insert(new); // the index of a group's first page: what was referred to then
            }
            for chunk in &missing {
                if let Some(here) = open.get_mut(&chunk.id.pg(pg_count)) {
                    here.missing += 1;
                    here.missing_bytes += u64::from(chunk.len);
                }
            }
            self.missing(of, missing, self.pass.load(Ordering::Relaxed)).await;
            let (now, is_through) = (Instant::now(), |pg: &PgId| reached.is_none_or(|upto| *pg < upto));
            let done: Vec<PgId> = open.keys().copied().filter(|pg| is_through(pg)).collect();
            for pg in done {
                let here = open.remove(&pg).expect("it was listed just now");
                known.here.insert(pg, (here, now));
            }
            let Some(upto) = upto else { return Ok(()) };
            let Some(next) = due.iter().find(|pg| **pg >= upto.pg(pg_count)) else { return Ok(()) };
            from = upto.max(next.first(pg_count));
        }
    }

    /// One page: the index at which what should be here was read, what is missing of it, and up to where it goes.
    async fn compare_page(
        &self,
        of: &Arc<Registration>,
        from: ChunkId,
    ) -> Result<(LogIndex, Vec<ExpectedChunk>, Option<ChunkId>), Fault> {
        let (server, layout) = (of.server, of.map.layout.version);
        let ask = KeepAsk::Expected { server, layout, from, limit: KEEP_BATCH_MAX, degraded: false };
        let Expected { mut chunks, upto, index } = match self.caller.keep(&ask, CALL_LIMIT).await? {
            KeepAnswer::Expected(told) => told,
            other => return Err(unexpected(&other)),
        };
        let (actual, next) = self.shared.stores().range(from, upto, RANGE_MAX).await?;
        let upto = [upto, next].into_iter().flatten().min();
        chunks.retain(|chunk| upto.is_none_or(|upto| chunk.id < upto));
        let missing = compare(&chunks, &actual, 0..u64::MAX).missing;
        Ok((index, missing, upto))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_is_compared_until_it_is_here_as_of_late_enough() {
        let now = Instant::now();
        let here = |pg, index, missing| {
            let here = GroupHere { pg: PgId(pg), index: LogIndex(index), missing, missing_bytes: 10 * missing };
            (PgId(pg), (here, now))
        };
        let mut known = Known { epoch: Epoch(1), here: [here(1, 5, 0), here(2, 5, 3), here(3, 4, 0)].into() };
        let groups: Vec<MovingGroup> = [3, 1, 2, 4].map(|pg| MovingGroup { pg: PgId(pg), from: LogIndex(5) }).into();
        let due = |known: &Known, now| known.due(&groups, now).into_iter().map(|pg| pg.0).collect::<Vec<_>>();
        assert_eq!(due(&known, now), [3, 4], "3 is known as of before, 4 not at all");
        assert_eq!(due(&known, now + AGAIN_AFTER), [2, 3, 4]);
        known.update(|_| 20);
        assert_eq!((known.here[&PgId(2)].0.missing_bytes, known.here[&PgId(1)].0.missing_bytes), (20, 0));
        assert_eq!(due(&known, now), [3, 4]);
        known.update(|_| 0);
        assert_eq!(
            (known.here[&PgId(2)].0.missing, due(&known, now + AGAIN_MIN)),
            (3, vec![2, 3, 4]),
            "all that waited was fetched"
        );
    }
}
