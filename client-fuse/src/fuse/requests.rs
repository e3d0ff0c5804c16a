//! Requests under way, and the last that failed: what `dfs mount status` tells. Whose thread was killed meanwhile is answered.
//!
//! Each request stays in one lock twice, for a moment. Numbers rise, so the oldest request comes first.

use super::Shared;
use super::caller::is_killed;
use super::serve::Op;
use client_fuse::Holds;
use common::id::InodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a read is called.
pub(super) const READ: &str = "read";
/// A request that takes longer is slow.
const SLOW: Duration = Duration::from_millis(500);
/// Slow requests that are named.
const SLOW_MAX: usize = 64;
/// How often it is looked whether the threads that wait for longer than that were killed.
const KILLED_LOOK: Duration = Duration::from_millis(200);
/// Threads that are looked at each time, the ones that wait for longest.
const KILLED_LOOK_MAX: usize = 1024;
/// Failures that are remembered.
const FAILED_MAX: usize = 32;

/// Of one mount.
#[derive(Debug)]
pub(super) struct Requests {
    since: Instant,
    inside: Mutex<Inside>,
    /// A request has ended while somebody waited for one.
    ended: Condvar,
    total: AtomicU64,
    /// There are numbers in [`Inside::killed`].
    killed: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    under_way: BTreeMap<u64, (Op, Instant)>,
    /// Those under way whose thread was killed.
    killed: BTreeSet<u64>,
    /// Who waits for requests to end.
    waiting: usize,
    failed: VecDeque<(Op, Instant, String)>,
}

/// A request, until it is dropped.
pub(super) struct UnderWay {
    shared: Arc<Shared>,
    number: u64,
}

/// What a mount says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountStatus {
    /// The process that serves it.
    pub(crate) pid: u32,
    /// Of the program.
    pub(crate) version: String,
    /// For how long it is mounted, in milliseconds.
    pub(crate) up_ms: u64,
    /// The last question to the metaservers found none that leads.
    pub(crate) metaservers_away: bool,
    /// When a request is given up, in milliseconds.
    pub(crate) limit_ms: u64,
    /// Requests of the kernel so far.
    pub(crate) requests: u64,
    /// Bytes that were given to the kernel before it asked, because much was read around them.
    pub(crate) given_bytes: u64,
    /// Requests that are under way.
    pub(crate) under_way: usize,
    /// Of these, the slow ones, the oldest first.
    pub(crate) slow: Vec<SlowRequest>,
    /// The last that failed for no fault of the program that asked, the last first.
    pub(crate) failed: Vec<FailedRequest>,
    /// What the client holds.
    #[serde(flatten)]
    pub(crate) holds: Holds,
}

/// A request that takes its time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlowRequest {
    /// `lookup`, `write`, ...
    pub(crate) op: String,
    /// The inode it is about.
    pub(crate) inode: u64,
    /// For how long it is under way, in milliseconds.
    pub(crate) for_ms: u64,
}

/// A request that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedRequest {
    /// `lookup`, `write`, ...
    pub(crate) op: String,
    /// The inode it was about.
    pub(crate) inode: u64,
    /// Why.
    pub(crate) error: String,
    /// How long ago, in milliseconds.
    pub(crate) ago_ms: u64,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests {
            since: Instant::now(),
            inside: Mutex::default(),
            ended: Condvar::default(),
            total: AtomicU64::new(0),
            killed: Notify::new(),
        }
    }
}

impl Requests {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has failed, and not because of what it asked for.
    pub(super) fn failed(&self, op: Op, error: String) {
        let mut inside = self.inside();
        inside.failed.truncate(FAILED_MAX - 1);
        inside.failed.push_front((op, Instant::now(), error));
    }

    fn begin(&self, op: Op) -> u64 {
        let mut inside = self.inside();
        let number = self.total.fetch_add(1, Ordering::Relaxed); // under the lock: later ones have higher numbers
        inside.under_way.insert(number, (op, Instant::now()));
        number
    }

    fn end(&self, number: u64) {
        let mut inside = self.inside();
        inside.under_way.remove(&number);
        inside.killed.remove(&number);
        if inside.waiting > 0 {
            self.ended.notify_all();
        }
    }

    /// Requests that wait for long, and their threads.
    fn waiting(&self, now: Instant) -> Vec<(u64, u32)> {
        let is_meant = |op: &Op, since: Instant| op.thread != 0 && now.saturating_duration_since(since) >= KILLED_LOOK;
        let inside = self.inside();
        let long = inside.under_way.iter().filter(|(_, (op, since))| is_meant(op, *since));
        long.map(|(number, (op, _))| (*number, op.thread)).take(KILLED_LOOK_MAX).collect()
    }

    /// The threads of these were killed. They cannot go before there is an answer, whatever it is.
    fn note_killed(&self, killed: &[u64]) {
        let mut inside = self.inside();
        let Inside { under_way, killed: noted, .. } = &mut *inside;
        noted.extend(killed.iter().filter(|number| under_way.contains_key(number)));
        drop(inside);
        self.killed.notify_waiters(); // who comes to wait in this moment hears of it the next time
    }

    /// Waits until the reads of a file that are under way now are answered, for so long at most. Blocks.
    pub(super) fn wait_for_reads(&self, ino: InodeId, limit: Duration) {
        let mut inside = self.inside();
        let later = self.total.load(Ordering::Relaxed);
        inside.waiting += 1;
        let is_read = |op: &Op| op.name == READ && op.ino == ino;
        let reads = |inside: &mut Inside| inside.under_way.range(..later).any(|(_, (op, _))| is_read(op));
        let waited = self.ended.wait_timeout_while(inside, limit, reads);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.requests.end(self.number);
    }
}

impl UnderWay {
    /// Waits until the thread that asks is killed.
    pub(super) async fn killed(&self) {
        let requests = &self.shared.requests;
        loop {
            requests.killed.notified().await;
            if requests.inside().killed.contains(&self.number) {
                return;
            }
        }
    }
}

impl Shared {
    /// Looks for threads that were killed, for as long as the mount serves.
    pub(super) async fn look_for_killed(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KILLED_LOOK).await;
            let mut waiting = self.requests.waiting(Instant::now());
            if waiting.is_empty() {
                continue;
            }
            let look = move || {
                waiting.retain(|(_, thread)| is_killed(*thread));
                waiting.into_iter().map(|(number, _)| number).collect::<Vec<u64>>()
            };
            let Ok(killed) = tokio::task::spawn_blocking(look).await else { return };
            if !killed.is_empty() {
                self.requests.note_killed(&killed);
            }
        }
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>, op: Op) -> UnderWay {
        UnderWay { shared: Arc::clone(self), number: self.requests.begin(op) }
    }

    /// See [`MountStatus`]. Waits for nothing but short locks.
    pub(super) fn status(&self) -> MountStatus {
        let now = Instant::now();
        let millis = |since: Instant| {
            u64::try_from(now.saturating_duration_since(since).as_millis()).expect("less than 500 million years")
        };
        let inside = self.requests.inside();
        let is_slow = |(_, since): &&(Op, Instant)| now.saturating_duration_since(*since) >= SLOW;
        let slow = inside.under_way.values().filter(is_slow).take(SLOW_MAX);
        let slow = slow.map(|(op, since)| SlowRequest { op: op.name.into(), inode: op.ino.0, for_ms: millis(*since) });
        let failed = inside.failed.iter().map(|(op, at, error)| FailedRequest {
            op: op.name.into(),
            inode: op.ino.0,
            error: error.clone(),
            ago_ms: millis(*at),
        });
        let (slow, failed, under_way) = (slow.collect(), failed.collect(), inside.under_way.len());
        drop(inside);
        MountStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            up_ms: millis(self.requests.since),
            metaservers_away: self.away.load(Ordering::Relaxed),
            limit_ms: u64::try_from(self.limit.as_millis()).expect("a limit is short"),
            requests: self.requests.total.load(Ordering::Relaxed),
            given_bytes: self.warm.bytes(),
            under_way,
            slow,
            failed,
            holds: self.client.holds(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(name: &'static str, ino: u64) -> Op {
        Op { name, ino: InodeId(ino), asks: false, thread: 7, saves: false }
    }

    #[test]
    fn only_reads_of_the_file_that_were_under_way_are_waited_for() {
        let requests = Arc::new(Requests::default());
        let long = Duration::from_secs(30);
        let (ours, other, write) =
            (requests.begin(op(READ, 7)), requests.begin(op(READ, 8)), requests.begin(op("write", 7)));
        let waiting = {
            let requests = Arc::clone(&requests);
            std::thread::spawn(move || requests.wait_for_reads(InodeId(7), long))
        };
        while requests.inside().waiting == 0 {
            std::thread::yield_now();
        }
        let later = requests.begin(op(READ, 7));
        requests.wait_for_reads(InodeId(9), long);
        requests.wait_for_reads(InodeId(7), Duration::ZERO);
        assert!(!waiting.is_finished(), "its read is not answered");
        requests.end(ours);
        waiting.join().unwrap();
        [other, write, later].into_iter().for_each(|number| requests.end(number));
        assert!(requests.inside().under_way.is_empty() && requests.inside().waiting == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_killed_is_noted_until_it_ends() {
        let requests = Requests::default();
        let [ours, nobodys] = [7, 0].map(|thread| requests.begin(Op { thread, ..op(READ, 7) }));
        assert!(requests.waiting(Instant::now()).is_empty(), "not for long");
        tokio::time::advance(KILLED_LOOK).await;
        let later = requests.begin(op(READ, 7));
        assert_eq!(requests.waiting(Instant::now()), [(ours, 7)]);
        let heard = requests.killed.notified();
        requests.note_killed(&[ours, 99]);
        assert_eq!(requests.inside().killed, BTreeSet::from([ours]), "the other one has ended");
        heard.await;
        [ours, nobodys, later].into_iter().for_each(|number| requests.end(number));
        assert!(requests.inside().killed.is_empty());
    }
}
