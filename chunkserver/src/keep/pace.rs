//! How fast the server works for itself: at one rate while clients use it, at another while none does; and what can wait
//! at a rate of its own.

use std::time::Duration;
use tokio::time::Instant;

/// A client's request counts as use for so long.
const BUSY_FOR: Duration = Duration::from_millis(500);
/// Time not used is kept for so long: a burst after a pause is no longer than this.
const SAVED_MAX: Duration = Duration::from_millis(100);

/// When the next piece of work may begin.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
    requests: u64,
    used: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { next: now, requests: 0, used: None }
    }

    /// True if a client asked for something lately. `requests`: how many ever did.
    pub(super) fn is_busy(&mut self, requests: u64, now: Instant) -> bool {
        if requests != self.requests {
            (self.requests, self.used) = (requests, Some(now));
        }
        self.used.is_some_and(|used| now.saturating_duration_since(used) < BUSY_FOR)
    }

    /// Counts work of so many bytes at this rate (bytes a second); how long to wait before it begins.
    pub(super) fn wait(&mut self, bytes: u64, rate: u64, now: Instant) -> Duration {
        let begin = self.next.max(now.checked_sub(SAVED_MAX).unwrap_or(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        self.next = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        begin.saturating_duration_since(now)
    }
}

/// When the next piece of work may begin that could as well wait: copies of what enough servers have.
#[derive(Debug)]
pub(super) struct Spare {
    /// Bytes a second; `None`: no limit of its own.
    rate: Option<u64>,
    paused: bool,
    pace: Pace,
}

impl Spare {
    pub(super) fn new(now: Instant) -> Spare {
        Spare { rate: None, paused: false, pace: Pace::new(now) }
    }

    /// From now on this counts.
    pub(super) fn allow(&mut self, rate: Option<u64>, paused: bool) {
        (self.rate, self.paused) = (rate, paused);
    }

    /// True if such work may begin now.
    pub(super) fn may(&self, now: Instant) -> bool {
        !self.paused && (self.rate.is_none() || self.pace.next <= now)
    }

    /// It begins.
    pub(super) fn begins(&mut self, bytes: u64, now: Instant) {
        if let Some(rate) = self.rate {
            self.pace.wait(bytes, rate, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_waits_for_its_rate_and_while_it_is_paused() {
        let begin = Instant::now();
        let mut spare = Spare::new(begin);
        spare.begins(1 << 40, begin);
        assert!(spare.may(begin), "no limit");
        spare.allow(Some(1000), false);
        assert!(spare.may(begin));
        spare.begins(3000, begin);
        assert!(!spare.may(begin + Duration::from_millis(2850)));
        assert!(spare.may(begin + Duration::from_secs(3)));
        spare.allow(Some(1000), true);
        assert!(!spare.may(begin + Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_at_its_rate_and_clients_are_noticed() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert!(!pace.is_busy(0, begin));
        assert_eq!(pace.wait(1000, 1000, begin), Duration::ZERO);
        assert_eq!(pace.wait(500, 1000, begin), Duration::from_secs(1));
        assert_eq!(pace.wait(500, 1000, begin), Duration::from_millis(1500));
        let later = begin + Duration::from_secs(60);
        assert_eq!(pace.wait(1000, 1000, later), Duration::ZERO);
        assert_eq!(pace.wait(1, 1000, later), Duration::from_millis(900), "a pause is not saved up");
        assert!(pace.is_busy(1, later));
        assert!(pace.is_busy(1, later + BUSY_FOR / 2));
        assert!(!pace.is_busy(1, later + BUSY_FOR));
    }
}
