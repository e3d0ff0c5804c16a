//! Background tasks with one owner: shutdown is one call.

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

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
        let stop = self.stop.clone();
        drop(self.running.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = body => {}
            }
        }));
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
