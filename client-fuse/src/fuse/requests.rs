//! Requests under way, and the last that failed: what `dfs mount status` tells.
//!
//! Each request stays in one lock twice, for a moment. Numbers rise, so the oldest request comes first.

use super::Shared;
use super::serve::Op;
use client_fuse::Holds;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A request that takes longer is slow.
const SLOW: Duration = Duration::from_millis(500);
/// Slow requests that are named.
const SLOW_MAX: usize = 64;
/// Failures that are remembered.
const FAILED_MAX: usize = 32;

/// Of one mount.
#[derive(Debug)]
pub(super) struct Requests {
    since: Instant,
    inside: Mutex<Inside>,
    total: AtomicU64,
}

#[derive(Debug, Default)]
struct Inside {
    under_way: BTreeMap<u64, (Op, Instant)>,
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
    /// Those that are under way.
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
        Requests { since: Instant::now(), inside: Mutex::default(), total: AtomicU64::new(0) }
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
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.requests.inside().under_way.remove(&self.number);
    }
}

impl Shared {
    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>, op: Op) -> UnderWay {
        let number = self.requests.total.fetch_add(1, Ordering::Relaxed);
        self.requests.inside().under_way.insert(number, (op, Instant::now()));
        UnderWay { shared: Arc::clone(self), number }
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
            under_way,
            slow,
            failed,
            holds: self.client.holds(),
        }
    }
}
