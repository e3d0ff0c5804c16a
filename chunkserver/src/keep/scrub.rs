//! Reading everything again, slowly: every stored byte is verified within the configured period, so that damage is found
//! before the other copies are gone, too. A damaged copy is marked by the store; the next pass fetches it anew.
//!
//! How far a round is, is in memory: after a restart it begins again.

use super::Keeper;
use crate::store::StoreError;
use common::id::ChunkId;
use common::proto::keep::KeepSettings;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Copies listed at a time.
const LIST_MAX: usize = 1024;
/// Between two looks whether it is time, or scrub is on again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a list or a copy that could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How far scrub is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes verified in this round, and all bytes when it began.
    pub(super) done: u64,
    pub(super) all: u64,
    /// Whole rounds.
    pub(super) rounds: u64,
    /// Damaged copies found.
    pub(super) damaged: u64,
    /// The number of the last order that was carried out.
    pub(super) order: u64,
}

/// Bytes a second at which a round over `all` bytes ends within the period, with a tenth of it to spare; within the limit.
/// `now`: as fast as the limit allows.
fn rate(all: u64, settings: &KeepSettings, now: bool) -> u64 {
    let needed = u128::from(all) * 10 / (u128::from(settings.scrub_period_s.max(1)) * 9);
    let needed = u64::try_from(needed).unwrap_or(u64::MAX).max(1);
    if now { settings.scrub_rate } else { needed.min(settings.scrub_rate) }
}

impl Keeper {
    pub(super) async fn scrubs(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.shared.registration().is_ok() {
                self.round().await;
            }
        }
    }

    /// One round over everything that is here.
    async fn round(&self) {
        let (mut from, mut next) = (ChunkId([0; 32]), Instant::now());
        let order = self.orders.borrow().scrub; // one that comes later wants another round
        let all = self.shared.stores().stats_soon().await.bytes;
        {
            let mut scrub = self.scrub();
            (scrub.done, scrub.all) = (0, all);
        }
        loop {
            let (copies, more) = match self.shared.stores().range(from, None, LIST_MAX).await {
                Ok(listed) => listed,
                Err(error) => {
                    debug!(%error, "list copies to scrub");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            };
            for copy in copies.iter().filter(|copy| !copy.damaged) {
                next = self.turn(copy.len.into(), next).await;
                self.check(copy.id).await;
                self.scrub().done += u64::from(copy.len);
            }
            match more {
                Some(more) => from = more,
                None => break,
            }
        }
        let mut scrub = self.scrub();
        scrub.rounds += 1;
        scrub.order = order;
    }

    /// Waits until `next`, when the next copy may be read, or until an order wants it sooner; and while scrub is paused.
    /// When the one after it may be read.
    async fn turn(&self, len: u64, next: Instant) -> Instant {
        let takes = |rate: u64| {
            let nanos = u128::from(len) * 1_000_000_000 / u128::from(rate.max(1));
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        };
        loop {
            let (settings, ordered) = {
                let orders = self.orders.borrow();
                (orders.settings, orders.scrub)
            };
            let Progress { all, order, .. } = *self.scrub();
            let (now, at_once) = (Instant::now(), ordered > order);
            let next = if at_once { next.min(now + takes(settings.scrub_rate)) } else { next };
            if !settings.scrub_paused && next <= now {
                return now + takes(rate(all, &settings, at_once));
            }
            let rest = next.saturating_duration_since(now);
            if !settings.scrub_paused && rest < LOOK_EVERY {
                tokio::time::sleep(rest).await;
                return next + takes(rate(all, &settings, at_once));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn check(&self, id: ChunkId) {
        match self.shared.stores().verify(id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error @ StoreError::Corrupt { .. }) => {
                warn!(chunk = %id, %error, "scrub found a damaged copy: it is fetched anew");
                self.scrub().damaged += 1;
                self.shared.look_again.notify_one();
            }
            Err(error) => {
                debug!(chunk = %id, %error, "scrub could not read a copy");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_within_its_period_or_goes_at_the_limit() {
        let settings = KeepSettings { scrub_period_s: 1000, scrub_rate: 500, ..KeepSettings::default() };
        assert_eq!(rate(90_000, &settings, false), 100, "900 s");
        assert_eq!(rate(0, &settings, false), 1);
        assert_eq!(rate(90_000_000, &settings, false), 500, "not faster than allowed");
        assert_eq!(rate(90_000, &settings, true), 500);
    }
}
