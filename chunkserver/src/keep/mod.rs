//! The loop that keeps this server's share of the cluster whole (DESIGN, section 7).
//!
//! | file | does |
//! | --- | --- |
//! | `pass` | compares what should be here with what is, page by page; when it is time to |
//! | `merge` | that comparison of two lists, pure |
//! | `queue` | what is missing, most endangered first, pure |
//! | `pull` | fetches what is missing from whoever has it |
//! | `moves` | compares placement groups that move here, so that it is known when they have arrived |
//! | `garbage` | asks whether what should not be here may go, and deletes it under the rules of DESIGN 7 |
//! | `wishes` | which of these wishes may be carried out, pure |
//! | `scrub` | reads everything again, slowly |
//! | `pace` | how fast, pure |
//!
//! Every step may be repeated, and nothing of it is remembered over a restart: the next pass finds what is left to do.

mod garbage;
mod merge;
mod moves;
mod pace;
mod pass;
mod pull;
mod queue;
mod scrub;
pub mod wishes;

use crate::Config;
use crate::service::Shared;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, Epoch, LayoutVersion};
use common::proto::keep::{KEEP_BATCH_MAX, KeepAnswer, KeepAsk, KeepOrders, KeepReport};
use common::rpc::Caller;
use common::task::Tasks;
use common::units::len_usize;
use pace::{Pace, Spare};
use queue::Queue;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::debug;

/// Between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long a call of the metaservers may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    caller: Caller,
    queue: Mutex<Queue>,
    /// There is something in the queue.
    found: Notify,
    pace: Mutex<Pace>,
    /// What is copied though enough copies are elsewhere.
    moving: Mutex<Spare>,
    /// Copies of chunks that belong elsewhere stay for now; also until the metaservers have said something.
    keeps: AtomicBool,
    /// The number of the last pass.
    pass: AtomicU64,
    orders: watch::Sender<KeepOrders>,
    numbers: Mutex<Numbers>,
    scrub: Mutex<scrub::Progress>,
    /// Since when the layout has no place for this server; `None`: it has.
    outside: Mutex<Option<tokio::time::Instant>>,
    /// Degraded chunks that are here, to be told to the metaservers.
    holds: Mutex<Vec<ChunkId>>,
}

/// What passes say of themselves.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    /// In which life of the metadata the last comparison was made, and with which layout.
    compared: (Epoch, LayoutVersion),
    gc_done: u64,
    passes: u64,
    extra: u64,
    deleted: u64,
    deleted_bytes: u64,
}

/// Runs until `tasks` stop.
pub(crate) fn start(shared: &Arc<Shared>, tasks: &Tasks, config: &Config) {
    let keeper = Arc::new(Keeper {
        shared: Arc::clone(shared),
        caller: Caller::new(&shared.world, tasks, &shared.me, &config.metaservers),
        queue: Mutex::default(),
        found: Notify::new(),
        pace: Mutex::new(Pace::new(Instant::now())),
        moving: Mutex::new(Spare::new(Instant::now())),
        keeps: AtomicBool::new(true),
        pass: AtomicU64::new(0),
        orders: watch::Sender::default(),
        numbers: Mutex::default(),
        scrub: Mutex::default(),
        holds: Mutex::default(),
        outside: Mutex::new(None),
    });
    let own = Arc::clone(&keeper);
    spawn(tasks, "keep report", async move { own.report().await });
    let own = Arc::clone(&keeper);
    spawn(tasks, "keep pass", async move { own.passes().await });
    let own = Arc::clone(&keeper);
    spawn(tasks, "keep moves", async move { own.moves().await });
    let own = Arc::clone(&keeper);
    spawn(tasks, "scrub", async move { own.scrubs().await });
    for _ in 0..pull::PULLS {
        let own = Arc::clone(&keeper);
        spawn(tasks, "keep pull", async move { own.pulls().await });
    }
}

fn spawn(tasks: &Tasks, name: &'static str, body: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(name, |stop| async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = body => {}
        }
    });
}

impl Keeper {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic holds this lock")
    }

    fn scrub(&self) -> MutexGuard<'_, scrub::Progress> {
        self.scrub.lock().expect("no panic holds this lock")
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().expect("no panic holds this lock")
    }

    /// Tells the metaservers each second how far this server is, and learns what it is to do.
    async fn report(&self) {
        loop {
            tokio::time::sleep(REPORT_EVERY).await;
            let Ok(registration) = self.shared.registration() else { continue };
            self.caller.learn(registration.map.metaservers.values());
            self.tell_holds().await;
            let ask = KeepAsk::Report { server: registration.server, report: self.state() };
            match self.caller.keep(&ask, CALL_LIMIT).await {
                Ok(KeepAnswer::Orders(orders)) => drop(self.orders.send_replace(orders)),
                Ok(_) => {}
                Err(fault) => debug!(error = %fault, "report"),
            }
        }
    }

    fn state(&self) -> KeepReport {
        let (numbers, scrub) = (*self.numbers(), *self.scrub());
        // What was compared with other metadata says nothing of these.
        let epoch = self.shared.registration().map(|registration| registration.map.epoch);
        let compared = Some(numbers.compared).filter(|(of, _)| epoch.is_ok_and(|epoch| epoch == *of));
        let mut queue = self.queue();
        let missing = queue.numbers(Instant::now());
        KeepReport {
            missing: missing.missing,
            missing_bytes: missing.bytes,
            unavailable: missing.unavailable,
            oldest_s: missing.oldest.as_secs(),
            rate: missing.rate,
            remade: queue.remade,
            remade_bytes: queue.remade_bytes,
            extra: numbers.extra,
            deleted: numbers.deleted,
            deleted_bytes: numbers.deleted_bytes,
            compared: compared.map_or(LayoutVersion(0), |(_, layout)| layout),
            gc_done: numbers.gc_done,
            passes: numbers.passes,
            scrub_percent: u8::try_from((scrub.done * 100).checked_div(scrub.all).unwrap_or(0).min(100)).unwrap_or(100),
            scrub_rounds: scrub.rounds,
            scrub_damaged: scrub.damaged,
        }
    }

    fn note_hold(&self, id: ChunkId) {
        self.holds.lock().expect("no panic holds this lock").push(id);
    }

    /// Tells which degraded chunks are here by now. What cannot be told is found again by the next look.
    async fn tell_holds(&self) {
        let mut all = std::mem::take(&mut *self.holds.lock().expect("no panic holds this lock"));
        let Ok(registration) = self.shared.registration() else { return };
        while !all.is_empty() {
            let chunks = all.split_off(all.len().saturating_sub(len_usize(KEEP_BATCH_MAX.into())));
            let ask = KeepAsk::Holds { server: registration.server, epoch: registration.map.epoch, chunks };
            if let Err(fault) = self.caller.keep(&ask, CALL_LIMIT).await {
                debug!(error = %fault, "tell which chunks are here");
                return;
            }
        }
    }
}

/// An answer that does not fit the question.
fn unexpected(answer: &KeepAnswer) -> Fault {
    let mut text = format!("{answer:?}");
    text.truncate(100.min(text.len()));
    Fault::new(Kind::Internal, format!("the metaserver answered {text}"))
}
