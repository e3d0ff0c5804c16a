//! A coarse alarm for waits that nearly always end before their time.
//!
//! A timer that is due before all others has the runtime's thread set its own alarm anew, so it wakes up for that: with every
//! read, for a second question that is asked after one read in a thousand. Here one timer ticks while anybody waits.

use common::task::Tasks;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How much later than wanted a wait may end.
const TICK: Duration = Duration::from_millis(25);
/// Ticks with nobody waiting after which it stands still.
const IDLE_TICKS: u32 = 40;

/// The alarm of one client.
pub(crate) struct Pulse {
    tasks: Tasks,
    ticks: watch::Sender<()>,
    /// Its task runs.
    ticking: Mutex<bool>,
}

impl Pulse {
    pub(crate) fn new(tasks: Tasks) -> Arc<Pulse> {
        Arc::new(Pulse { tasks, ticks: watch::Sender::new(()), ticking: Mutex::new(false) })
    }

    /// Waits for this long, or up to [`TICK`] longer.
    pub(crate) async fn wait(self: &Arc<Self>, limit: Duration) {
        let due = Instant::now() + limit;
        let mut ticks = self.ticks.subscribe(); // first: who is about to stop looks for it
        self.start();
        while Instant::now() < due && ticks.changed().await.is_ok() {}
    }

    fn start(self: &Arc<Self>) {
        if std::mem::replace(&mut *self.ticking.lock().expect("no panic holds this lock"), true) {
            return;
        }
        let pulse = Arc::clone(self);
        self.tasks.spawn_until_stop(async move {
            let mut idle = 0;
            while !pulse.stands_still(idle) {
                tokio::time::sleep(TICK).await;
                idle = if pulse.ticks.receiver_count() > 0 { 0 } else { idle + 1 };
                pulse.ticks.send_replace(());
            }
        });
    }

    /// Whether the task is to end, after so many ticks with nobody waiting.
    fn stands_still(&self, idle: u32) -> bool {
        let mut ticking = self.ticking.lock().expect("no panic holds this lock");
        *ticking = idle < IDLE_TICKS || self.ticks.receiver_count() > 0;
        !*ticking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_within_a_tick_of_its_time() {
        let pulse = Pulse::new(Tasks::new());
        for pause in [0, 10, 2000] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            for millis in [1, 24, 50, 260] {
                let (began, limit) = (Instant::now(), Duration::from_millis(millis));
                let (pulse, other) = (pulse.clone(), pulse.clone());
                tokio::join!(async move { pulse.wait(limit).await }, async move { other.wait(limit / 2).await });
                let took = began.elapsed();
                assert!(limit <= took && took <= limit + TICK + Duration::from_millis(1), "{took:?} for {limit:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_stands_still_when_nobody_waits() {
        let pulse = Pulse::new(Tasks::new());
        let ticks = |pulse: &Pulse| *pulse.ticking.lock().unwrap();
        assert!(!ticks(&pulse));
        pulse.wait(TICK).await;
        tokio::time::sleep(TICK * (IDLE_TICKS / 2)).await;
        assert!(ticks(&pulse), "the next wait costs nothing");
        tokio::time::sleep(TICK * IDLE_TICKS).await;
        assert!(!ticks(&pulse));
        pulse.wait(TICK).await;
    }
}
