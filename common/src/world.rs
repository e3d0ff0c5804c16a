//! Everything that is not ours, in one value handed to each part at start: network, disk, clock, randomness, threads.

use crate::disk::{Disk, RealDisk};
use crate::net::{Net, TcpNet};
use crate::time::{Clock, SystemClock, Time};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

    /// Runs work that waits for a disk, off the async threads (in place in simulation). Not cancelled when dropped.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.simulated {
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
}
