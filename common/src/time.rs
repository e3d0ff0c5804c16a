//! Points in time. Only [`SystemClock`] reads the system clock; timers use tokio's clock, which a test can pause.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A wall-clock time as POSIX knows it. Ordered. Before 1970 `secs` is negative; `nanos` is always 0..1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// So many nanoseconds later, below 1,000,000,000.
    pub fn after_nanos(self, nanos: u32) -> Time {
        match self.nanos + nanos {
            all @ 1_000_000_000.. => Time { secs: self.secs.saturating_add(1), nanos: all - 1_000_000_000 },
            all => Time { nanos: all, ..self },
        }
    }
}

/// Where wall-clock times come from.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Time;
    /// Time since some fixed moment, which never goes back and goes on while the machine sleeps: what a right that ends
    /// by itself is measured with.
    fn uptime(&self) -> Duration;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
    fn now(&self) -> Time {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Time { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() },
            Err(_) => Time::default(),
        }
    }

    fn uptime(&self) -> Duration {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
        Duration::from(now)
    }
}
