//! Background tasks with one owner: shutdown is one call.

mod parked;

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

/// Cores for each asynchronous thread of a server: requests are short and mostly wait for disks and peers, so one thread
/// serves several cores' worth of them, and a request that never changes threads costs no wake-up between cores.
const CORES_PER_THREAD: usize = 4;

/// Lets this program open as many files as it may be allowed to: the usual limit of 1024 is for those who use `select`, and a
/// server with many segments, tables and peers meets it.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(now, max)| match now < max {
        true => setrlimit(Resource::RLIMIT_NOFILE, max, max),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The runtime of one program, with `threads` asynchronous threads; 0: one for each [`CORES_PER_THREAD`] cores.
///
/// One thread runs everything in place: a hop from task to task is then a push to a queue, not a futex and a wake-up.
/// On two cores that halved the CPU time of a metadata change.
///
/// # Errors
/// The system gives no threads.
pub fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    raise_file_limit();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores.div_ceil(CORES_PER_THREAD) } else { threads };
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

/// A group of tasks that stop together.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    running: TaskTracker,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Runs a task that must return soon after its token is cancelled.
    pub fn spawn<F>(&self, name: &'static str, body: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.running.spawn(body(self.stop.child_token()).instrument(info_span!("task", name))));
    }

    /// Runs a task that is dropped at its next await when the group stops: for one request, one connection.
    pub fn spawn_until_stop<F>(&self, body: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.running.spawn(self.until_stop(body)));
    }

    fn until_stop<F: Future<Output = ()>>(&self, body: F) -> impl Future<Output = ()> + use<F> {
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = body => {}
            }
        }
    }

    /// The token that is cancelled by [`Tasks::shutdown`].
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Asks every task to stop and waits up to `grace`. False if some were still running.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.running.close();
        tokio::time::timeout(grace, self.running.wait()).await.is_ok()
    }
}
