//! Which segment to compact, if any.
//!
//! The emptiest of those that are below their log's share ([`SMALL_SHARE`], [`LARGE_SHARE`]), tombstones
//! taken as live. What is needed of those only the copying tells. So that a segment full of tombstones that nobody needs
//! goes, too, and one full of needed ones is not copied for ever, one that is below the share without them is taken when
//! as many bytes as they have were gained elsewhere before ([`Progress::credit`]).

use super::format::{Log, SegmentRow};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A segment of small chunks of which less is live is compacted, in percent. What is left then takes at most 1.25 times
/// its bytes, and each byte gained costs at most four copied ones.
const SMALL_SHARE: u64 = 80;
/// The same for large chunks, in percent: their bytes were given back when they were deleted, all but 8 KiB each.
const LARGE_SHARE: u64 = 12;
/// Bytes gained at least: a removal costs a record that says so and a part of another segment's header block, and if that were
/// more, compaction would never end.
const GAIN_MIN: u64 = 16 << 10;
/// How long a segment that could not be emptied is left alone if nothing happens to it.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What compaction remembers, in memory only.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes gained by removing segments that were not yet spent on copying tombstones that may all be needed.
    pub(super) credit: u64,
    /// Segments that could not be emptied.
    pub(super) stuck: BTreeMap<(Log, u32), Stuck>,
}

/// How an attempt left a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    /// What was counted then: as long as that is so, and until then, it is left alone.
    pub(super) counted: SegmentRow,
    pub(super) until: Instant,
    /// Its tombstones were copied.
    pub(super) carried: bool,
}

/// A segment that may be compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) segment: u32,
    /// Bytes to the end of its last record.
    pub(super) len: u64,
    pub(super) counted: SegmentRow,
}

impl Candidate {
    /// Bytes copied if all its tombstones are needed.
    pub(super) fn kept(&self) -> u64 {
        (self.counted.live + self.counted.tombstones).min(self.len)
    }

    /// True if it is worth it to keep these bytes of it: less than its log's share, with something gained.
    pub(super) fn gains(&self, log: Log, bytes: u64) -> bool {
        let share = match log {
            Log::Small => SMALL_SHARE,
            Log::Large => LARGE_SHARE,
        };
        u128::from(bytes) * 100 < u128::from(self.len) * u128::from(share) && self.len.saturating_sub(bytes) >= GAIN_MIN
    }
}

/// The segment to compact next, the emptiest; ties go to the oldest. `room`: bytes that may be copied.
pub(super) fn choose(log: Log, all: &[Candidate], room: u64, progress: &Progress, now: Instant) -> Option<Candidate> {
    let worth = |found: &&Candidate| {
        let stuck = progress.stuck.get(&(log, found.segment));
        let stuck = stuck.is_some_and(|stuck| stuck.counted == found.counted && now < stuck.until);
        let gains = found.gains(log, found.kept());
        let may_gain = found.gains(log, found.counted.live) && found.counted.tombstones <= progress.credit;
        !stuck && (gains || may_gain) && found.kept() <= room
    };
    let fill = |found: &&Candidate| (u128::from(found.kept()) << 64) / u128::from(found.len.max(1));
    all.iter().filter(worth).min_by_key(|found| (fill(found), found.segment)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(segment: u32, live: u64, tombstones: u64) -> Candidate {
        let counted = SegmentRow { live: live * 1000, tombstones: tombstones * 1000, superseded: 0 };
        Candidate { segment, len: 1_000_000, counted }
    }

    #[test]
    fn the_emptiest_first_and_only_what_is_below_the_share() {
        let (now, mut progress) = (Instant::now(), Progress::default());
        let all = [candidate(1, 799, 0), candidate(2, 300, 0), candidate(3, 100, 200), candidate(4, 800, 0)];
        let chosen = |log, all: &[Candidate], room: u64, progress: &Progress| {
            choose(log, all, room * 1000, progress, now).map(|found| found.segment)
        };
        assert_eq!(chosen(Log::Small, &all, 1000, &progress), Some(2), "the older of two that keep as much");
        assert_eq!(chosen(Log::Small, &all[..1], 1000, &progress), Some(1));
        assert_eq!(chosen(Log::Small, &all[3..], 1000, &progress), None, "not below 80 %");
        assert_eq!(chosen(Log::Large, &all, 1000, &progress), None, "not below 12 %");
        assert_eq!(chosen(Log::Large, &[candidate(1, 119, 0)], 1000, &progress), Some(1));
        assert_eq!(chosen(Log::Small, &all, 299, &progress), None, "no room to copy to");
        let stuck = Stuck { counted: all[1].counted, until: now + RETRY_AFTER, carried: true };
        progress.stuck.insert((Log::Small, 2), stuck);
        assert_eq!(chosen(Log::Small, &all, 1000, &progress), Some(3));
        progress.stuck.insert((Log::Small, 2), Stuck { until: now, ..stuck });
        assert_eq!(chosen(Log::Small, &all, 1000, &progress), Some(2), "its time has come");
        let changed = SegmentRow { live: 299_000, ..stuck.counted };
        progress.stuck.insert((Log::Small, 2), Stuck { counted: changed, ..stuck });
        assert_eq!(chosen(Log::Small, &all, 1000, &progress), Some(2), "something happened to it");
    }

    #[test]
    fn what_gains_next_to_nothing_is_left_alone() {
        let (now, progress) = (Instant::now(), Progress::default());
        let of = |len| Candidate { segment: 1, len, counted: SegmentRow { live: 10_000, ..SegmentRow::default() } };
        assert_eq!(choose(Log::Small, &[of(10_000 + GAIN_MIN - 1)], 1 << 20, &progress, now), None);
        assert!(choose(Log::Small, &[of(10_000 + GAIN_MIN)], 1 << 20, &progress, now).is_some());
    }

    #[test]
    fn tombstones_that_may_all_be_needed_are_copied_for_what_was_gained() {
        let (now, all) = (Instant::now(), [candidate(1, 100, 850)]);
        let chosen = |credit| choose(Log::Small, &all, 1 << 20, &Progress { credit, ..Progress::default() }, now);
        assert_eq!((chosen(849_999), chosen(850_000).map(|found| found.segment)), (None, Some(1)));
    }
}
