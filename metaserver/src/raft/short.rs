//! Keeps the log short in bytes: openraft counts entries, and one of them may have megabytes (a batch of small files).
//!
//! What a restart reads, what a disk holds and what a follower is sent again is bounded by bytes, not by entries. So where the
//! log has more than it may, it is purged up to the last snapshot, and a new snapshot is made when that was not enough. A
//! follower that is behind keeps the leader from purging what it needs, up to [`BEHIND_FACTOR`] times the length; beyond that it
//! gets the snapshot.

use super::log::RaftLog;
use super::types::Group;
use openraft::async_runtime::WatchReceiver;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
    /// Of a leader: what every follower has.
    everywhere: Option<Option<u64>>,
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
    let upto = match now.everywhere {
        Some(everywhere) if waits => now.snapshot.min(everywhere),
        _ => now.snapshot,
    };
    match upto {
        Some(upto) if now.purged.is_none_or(|purged| purged < upto) && looks < PATIENCE => Some(Step::Purge(upto)),
        // A new snapshot is of use only where it is the old one that keeps entries here.
        _ if upto == now.snapshot && now.applied > now.snapshot => Some(Step::Snapshot),
        _ => None,
    }
}

/// Looks after the log of one member. It has at most `bytes_max`, what comes between two looks and while a snapshot is made,
/// and what is needed to fill segments.
pub(super) async fn keep(group: Group, log: RaftLog, bytes_max: u64, stop: CancellationToken) {
    let mut looks = 0;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let metrics = group.metrics().borrow_watched().clone();
        if metrics.running_state.is_err() {
            return; // it has left the group, or failed
        }
        let index = |id: &Option<super::LogId>| id.as_ref().map(|id| id.index);
        let everywhere = metrics.replication.as_ref().and_then(|followers| followers.values().map(index).min());
        let now = Now {
            bytes: log.bytes(),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            applied: index(&metrics.last_applied),
            everywhere,
        };
        let next = step(&now, bytes_max, looks);
        looks = if matches!(next, Some(Step::Purge(_))) { looks + 1 } else { 0 };
        let asked = match next {
            None => continue,
            Some(Step::Purge(upto)) => {
                debug!(bytes = now.bytes, upto, "the log is long: it is purged");
                group.trigger().purge_log(upto).await
            }
            Some(Step::Snapshot) => {
                info!(bytes = now.bytes, "the log is long: a snapshot is made");
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

    fn next(bytes: u64, indexes: (Option<u64>, Option<u64>, u64), everywhere: Option<Option<u64>>) -> Option<Step> {
        let (snapshot, purged, applied) = indexes;
        step(&Now { bytes, snapshot, purged, applied: Some(applied), everywhere }, MAX, 0)
    }

    #[test]
    fn what_a_snapshot_has_goes_first_and_then_a_new_one_is_made() {
        assert_eq!(next(MAX, (Some(5), None, 9), None), None);
        assert_eq!(next(MAX + 1, (Some(5), None, 9), None), Some(Step::Purge(5)));
        assert_eq!(next(MAX + 1, (Some(5), Some(4), 9), None), Some(Step::Purge(5)));
        assert_eq!(next(MAX + 1, (Some(5), Some(5), 9), None), Some(Step::Snapshot));
        assert_eq!(next(MAX + 1, (None, None, 0), None), Some(Step::Snapshot));
        assert_eq!(next(MAX + 1, (Some(5), Some(5), 5), None), None, "nothing was applied since");
    }

    #[test]
    fn a_leader_waits_for_followers_but_not_for_ever() {
        let behind = Some(Some(3));
        assert_eq!(next(MAX + 1, (Some(5), Some(2), 9), behind), Some(Step::Purge(3)));
        assert_eq!(next(MAX + 1, (Some(5), Some(3), 9), behind), None, "a new snapshot would not help");
        assert_eq!(next(4 * MAX + 1, (Some(5), Some(3), 9), behind), Some(Step::Purge(5)));
        assert_eq!(next(4 * MAX, (Some(5), Some(3), 9), Some(None)), None, "one has nothing yet");
        assert_eq!(next(MAX + 1, (Some(5), Some(5), 9), Some(Some(9))), Some(Step::Snapshot));
    }

    #[test]
    fn a_purge_without_effect_is_followed_by_a_snapshot() {
        let now = Now { bytes: MAX + 1, snapshot: Some(5), purged: Some(4), applied: Some(9), everywhere: None };
        assert_eq!(step(&now, MAX, PATIENCE - 1), Some(Step::Purge(5)));
        assert_eq!(step(&now, MAX, PATIENCE), Some(Step::Snapshot));
    }
}
