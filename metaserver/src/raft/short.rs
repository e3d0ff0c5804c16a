//! Keeps the log short in bytes: openraft counts entries, and one of them may have megabytes (a batch of small files).
//!
//! What a restart reads, what a disk holds and what a follower is sent again is bounded by bytes, not by entries. So where the
//! log has more than it may, it is purged up to the last snapshot, and a new snapshot is made when that was not enough. What
//! others may need stays, up to [`BEHIND_FACTOR`] times the length: of a leader what a follower does not have, of a follower what
//! came after the snapshot before (it may lead next, and another follower be a little late). Beyond that they get the snapshot.

use super::log::RaftLog;
use super::types::Group;
use openraft::async_runtime::WatchReceiver;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How often it is looked at; after a snapshot twice as long each time, as long as the log does not get short.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(64);
/// A log that is so many times as long as it may be waits for no follower.
const BEHIND_FACTOR: u64 = 4;
/// Looks in which a purge may have no effect (entries may be on their way to somebody). Then a snapshot is made: openraft
/// remembers what it was asked to purge and never tries that again, but tries anew behind a snapshot.
const PATIENCE: u32 = 5;

/// A member's log. Indexes of entries; `None`: there is none.
#[derive(Clone, Copy, Debug, Default)]
struct Now {
    bytes: u64,
    /// The last one that the last snapshot covers, that was purged, that was applied.
    snapshot: Option<u64>,
    purged: Option<u64>,
    applied: Option<u64>,
    /// What nobody needs any more: of a leader the last one that every follower has, of a follower the last one that the snapshot
    /// before covers.
    unneeded: Option<u64>,
    leads: bool,
}

/// What makes the log shorter.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Entries up to this one go: a snapshot has them.
    Purge(u64),
    /// A snapshot is made.
    Snapshot,
}

/// The next step. `looks`: how often in a row a purge was wanted already.
fn step(now: &Now, bytes_max: u64, looks: u32) -> Option<Step> {
    if now.bytes <= bytes_max {
        return None;
    }
    let waits = now.bytes <= BEHIND_FACTOR.saturating_mul(bytes_max);
    let upto = if waits { now.snapshot.min(now.unneeded) } else { now.snapshot };
    match upto {
        Some(upto) if now.purged.is_none_or(|purged| purged < upto) && looks < PATIENCE => Some(Step::Purge(upto)),
        // Of no use where it is a follower of this leader that keeps entries here.
        _ if (upto == now.snapshot || !now.leads) && now.applied > now.snapshot => Some(Step::Snapshot),
        _ => None,
    }
}

/// Looks after the log of one member. It has at most `bytes_max`, what comes between two looks and while a snapshot is made,
/// and what is needed to fill segments.
pub(super) async fn keep(group: Group, log: RaftLog, bytes_max: u64, stop: CancellationToken) {
    let (mut looks, mut pause) = (0, LOOK_EVERY);
    let (mut last, mut before) = (None, None);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let metrics = group.metrics().borrow_watched().clone();
        if metrics.running_state.is_err() {
            return; // it has left the group, or failed
        }
        let index = |id: &Option<super::LogId>| id.as_ref().map(|id| id.index);
        let snapshot = index(&metrics.snapshot);
        if snapshot != last {
            (last, before) = (snapshot, last);
        }
        let everywhere = metrics.replication.as_ref().map(|all| {
            let others = all.iter().filter(|(id, _)| **id != metrics.id).map(|(_, matched)| index(matched));
            others.min().unwrap_or(snapshot)
        });
        let now = Now {
            bytes: log.bytes(),
            snapshot,
            purged: index(&metrics.purged),
            applied: index(&metrics.last_applied),
            unneeded: everywhere.unwrap_or(before),
            leads: everywhere.is_some(),
        };
        let next = step(&now, bytes_max, looks);
        looks = if matches!(next, Some(Step::Purge(_))) { looks + 1 } else { 0 };
        let asked = match next {
            None => {
                pause = LOOK_EVERY;
                continue;
            }
            Some(Step::Purge(upto)) => {
                debug!(bytes = now.bytes, upto, "the log is long: it is purged");
                group.trigger().purge_log(upto).await
            }
            Some(Step::Snapshot) => {
                info!(bytes = now.bytes, "the log is long: a snapshot is made");
                pause = (pause * 2).min(LOOK_EVERY_MAX);
                group.trigger().snapshot().await
            }
        };
        if let Err(fatal) = asked {
            debug!(error = %fatal, "the log stays as it is");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1000;

    fn next(leads: bool, bytes: u64, indexes: (Option<u64>, Option<u64>, u64), unneeded: Option<u64>) -> Option<Step> {
        let (snapshot, purged, applied) = indexes;
        step(&Now { bytes, snapshot, purged, applied: Some(applied), unneeded, leads }, MAX, 0)
    }

    #[test]
    fn what_a_snapshot_has_goes_first_and_then_a_new_one_is_made() {
        let all = Some(9);
        assert_eq!(next(true, MAX, (Some(5), None, 9), all), None);
        assert_eq!(next(true, MAX + 1, (Some(5), None, 9), all), Some(Step::Purge(5)));
        assert_eq!(next(true, MAX + 1, (Some(5), Some(4), 9), all), Some(Step::Purge(5)));
        assert_eq!(next(true, MAX + 1, (Some(5), Some(5), 9), all), Some(Step::Snapshot));
        assert_eq!(next(true, MAX + 1, (None, None, 0), None), Some(Step::Snapshot));
        assert_eq!(next(true, MAX + 1, (Some(5), Some(5), 5), all), None, "nothing was applied since");
    }

    #[test]
    fn a_leader_waits_for_followers_but_not_for_ever() {
        let behind = Some(3);
        assert_eq!(next(true, MAX + 1, (Some(5), Some(2), 9), behind), Some(Step::Purge(3)));
        assert_eq!(next(true, MAX + 1, (Some(5), Some(3), 9), behind), None, "a new snapshot would not help");
        assert_eq!(next(true, 4 * MAX + 1, (Some(5), Some(3), 9), behind), Some(Step::Purge(5)));
        assert_eq!(next(true, 4 * MAX, (Some(5), Some(3), 9), None), None, "one has nothing yet");
    }

    #[test]
    fn a_follower_keeps_what_came_after_the_snapshot_before() {
        assert_eq!(next(false, MAX + 1, (Some(5), None, 9), Some(3)), Some(Step::Purge(3)));
        assert_eq!(next(false, MAX + 1, (Some(5), Some(3), 9), Some(3)), Some(Step::Snapshot));
        assert_eq!(next(false, MAX + 1, (Some(5), None, 9), None), Some(Step::Snapshot), "the first since it started");
        assert_eq!(next(false, 4 * MAX + 1, (Some(5), Some(3), 9), Some(3)), Some(Step::Purge(5)));
    }

    #[test]
    fn a_purge_without_effect_is_followed_by_a_snapshot() {
        let (snapshot, purged, applied) = (Some(5), Some(4), Some(9));
        let now = Now { bytes: MAX + 1, snapshot, purged, applied, unneeded: Some(9), leads: true };
        assert_eq!(step(&now, MAX, PATIENCE - 1), Some(Step::Purge(5)));
        assert_eq!(step(&now, MAX, PATIENCE), Some(Step::Snapshot));
    }
}
