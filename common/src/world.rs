//! Everything that is not ours, in one value handed to each part at start: network, disk, clock, randomness, threads.

use crate::disk::{Disk, RealDisk};
use crate::net::{Net, TcpNet};
use crate::time::{Clock, SystemClock, Time};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::cell::Cell;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

thread_local! {
    /// See [`World::on_own_thread`].
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread is one of [`World::on_own_thread`].
struct Owned;

impl Owned {
    fn new() -> Owned {
        OWN.set(true);
        Owned
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        OWN.set(false);
    }
}

/// The outside world. Cheap to clone.
#[derive(Clone)]
pub struct World {
    /// Where connections come from.
    pub net: Arc<dyn Net>,
    /// Where files live.
    pub disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    random: Arc<Mutex<StdRng>>,
    /// True in simulation: blocking work runs in place, so that a run is repeatable; stores are the in-memory twins.
    simulated: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.simulated { "World(simulated)" } else { "World(real)" })
    }
}

impl World {
    /// The real one.
    pub fn real() -> World {
        World {
            net: Arc::new(TcpNet),
            disk: Arc::new(RealDisk),
            clock: Arc::new(SystemClock),
            random: Arc::new(Mutex::new(StdRng::from_rng(&mut rand::rng()))),
            simulated: false,
        }
    }

    /// A simulated one: everything in it follows from `seed`.
    pub fn simulated(net: Arc<dyn Net>, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, seed: u64) -> World {
        World { net, disk, clock, random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))), simulated: true }
    }

    /// True if blocking work runs in place and stores are the in-memory twins.
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// The wall clock.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// See [`Clock::uptime`].
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// 64 random bits.
    pub fn random_u64(&self) -> u64 {
        self.random.lock().expect("no panic holds this lock").next_u64()
    }

    /// 128 random bits.
    pub fn random_u128(&self) -> u128 {
        (u128::from(self.random_u64()) << 64) | u128::from(self.random_u64())
    }

    /// Runs work that waits for a disk, off the async threads: in place on a thread that may wait, and in simulation. Not
    /// cancelled when dropped.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.simulated || has_own_thread() {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await, // the runtime is going down, and we with it
            },
        }
    }

    /// Runs a future on a thread of its own, where it may wait for disks and peers in place (in simulation: here). A hop
    /// from thread to thread is a wake-up, and costs as much as a small read. Not cancelled when dropped.
    pub async fn on_own_thread<F>(&self, body: impl FnOnce() -> F + Send + 'static) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send,
    {
        if self.simulated {
            return body().await;
        }
        let runtime = tokio::runtime::Handle::current();
        self.blocking(move || {
            let _owned = Owned::new();
            runtime.block_on(body())
        })
        .await
    }
}

/// Whether this runs on a thread of [`World::on_own_thread`].
pub fn has_own_thread() -> bool {
    OWN.get()
}

/// Has [`World::blocking`] in this future use other threads always: for what is done at several disks at once.
pub fn at_once<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let mut work = Box::pin(work);
    poll_fn(move |cx| {
        let own = OWN.replace(false);
        let polled = work.as_mut().poll(cx);
        OWN.set(own);
        polled
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_of_its_own_works_in_place() {
        let world = World::real();
        let here = || std::thread::current().id();
        assert!(world.blocking(here).await != here() && !has_own_thread());
        let inner = world.clone();
        let body = async move || {
            let (own, in_place) = (here(), inner.blocking(here).await);
            let other = at_once(inner.blocking(here)).await;
            tokio::time::sleep(Duration::from_millis(1)).await; // the runtime wakes it
            (own, in_place, other, has_own_thread(), inner.blocking(has_own_thread).await)
        };
        let (own, in_place, other, has, still_has) = world.on_own_thread(body).await;
        assert!(own != here() && own == in_place && other != own && has && still_has);
        for _ in 0..4 {
            assert!(!world.blocking(has_own_thread).await, "whichever of the threads it is");
        }
    }
}
