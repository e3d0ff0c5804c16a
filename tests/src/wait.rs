//! Waits with a limit and a name.

use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Returns what `look` gives as soon as it gives something; how long that took, too.
///
/// # Panics
/// After `limit`, naming `what` was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return (value, start.elapsed());
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until `true_now` says so.
///
/// # Panics
/// After `limit`.
pub fn wait_until(what: &str, limit: Duration, mut true_now: impl FnMut() -> bool) -> Duration {
    wait_for(what, limit, || true_now().then_some(())).1
}
