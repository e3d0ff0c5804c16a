//! A disk that does not answer: no error, no end of the call. Work that should take a moment is watched, and so are reads;
//! while one such call is outstanding for [`QUICK_MAX`], or a read for [`READ_MAX`], its store is *silent*: it is passed
//! over like a fenced one and reported as one, so that it costs nobody a wait or a thread, and counts again when the call
//! ends. What looks through all that a server has waits for it, but not for longer than [`GIVEN_UP_AFTER`]: then the others
//! go on without it, and what it had is made anew elsewhere.

use super::{Inner, Store, StoreStats};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::warn;

/// How long quick work (a few index rows, the free space) may take before the disk counts as silent: less than a writer
/// waits for a put.
pub(super) const QUICK_MAX: Duration = Duration::from_secs(4);
/// How long one read may take, once it has a thread, before the disk counts as silent: as long as a reader waits for it.
pub(super) const READ_MAX: Duration = Duration::from_secs(8);
/// How long a disk is silent before those who want to know of everything go on without it. Fetching all it has for a disk that
/// was busy for a minute would be worse than waiting.
const GIVEN_UP_AFTER: Duration = Duration::from_mins(5);
/// How long the numbers for a heartbeat are waited for.
const STATS_WAIT_MAX: Duration = Duration::from_secs(1);

/// Work under way that is watched: by its number, when it is late.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last: u64,
    quick: BTreeMap<u64, Instant>,
    reads: BTreeMap<u64, Instant>,
}

impl Calls {
    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.quick.insert(self.last, Instant::now() + QUICK_MAX);
        self.last
    }

    fn begin_read(&mut self) -> u64 {
        self.last += 1;
        self.reads.insert(self.last, Instant::now() + READ_MAX);
        self.last
    }

    /// For how long some have been late; `None`: none is. Calls of a kind begin in the order of their numbers, so the first is
    /// the oldest.
    fn late_for(&self, now: Instant) -> Option<Duration> {
        let oldest = [&self.quick, &self.reads].into_iter().filter_map(|calls| Some(*calls.first_key_value()?.1)).min();
        now.checked_duration_since(oldest?)
    }
}

impl Store {
    /// True while the disk does not answer.
    pub fn is_silent(&self) -> bool {
        self.inner.calls().late_for(Instant::now()).is_some()
    }

    /// True if it has not for so long that nobody waits for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.inner.calls().late_for(Instant::now()).is_some_and(|late| late >= GIVEN_UP_AFTER)
    }

    /// Does quick work. `None`: the store is silent, or the work did not end within `limit`; it goes on.
    pub(super) async fn quick<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Option<T> {
        if self.is_silent() {
            return None;
        }
        let number = self.inner.calls().begin();
        let store = self.clone();
        let watched = self.inner.world.blocking(move || {
            let done = work(&store);
            store.inner.calls().quick.remove(&number);
            done
        });
        let done = timeout(limit, watched).await.ok();
        if done.is_none() {
            warn!(dir = %self.dir().display(), "the disk does not answer; passed over until it does");
        }
        done
    }

    /// Reads, watched, on this thread.
    pub(super) fn watched<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        let number = self.inner.calls().begin_read();
        let done = read(self);
        self.inner.calls().reads.remove(&number);
        done
    }

    /// [`Store::stats`]; those of before, without free space and as if fenced, if the disk does not answer soon.
    pub async fn stats_soon(&self) -> StoreStats {
        match self.quick(STATS_WAIT_MAX, Store::stats).await {
            Some(stats) => {
                *self.inner.last_stats.lock().expect("no panic holds this lock") = stats.clone();
                stats
            }
            None => {
                let last = self.inner.last_stats.lock().expect("no panic holds this lock").clone();
                StoreStats { free: 0, fenced: 1, ..last }
            }
        }
    }
}

impl Inner {
    fn calls(self: &Arc<Self>) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().expect("no panic holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_call_under_way_says_for_how_long_a_disk_has_been_silent() {
        let mut calls = Calls::default();
        let late_for = |calls: &Calls| calls.late_for(Instant::now());
        let read = calls.begin_read();
        tokio::time::advance(Duration::from_secs(2)).await;
        let quick = calls.begin();
        assert_eq!(late_for(&calls), None);
        tokio::time::advance(QUICK_MAX).await;
        assert_eq!(late_for(&calls), Some(Duration::ZERO), "the quick one, as soon as it is late");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(late_for(&calls), Some(Duration::from_secs(60)));
        calls.quick.remove(&quick);
        assert_eq!(late_for(&calls), Some(Duration::from_secs(58)));
        calls.reads.remove(&read);
        assert_eq!(late_for(&calls), None);
    }
}
