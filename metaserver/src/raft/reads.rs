//! Linearizable reads: all queries that wait share one round to a majority.
//!
//! A round covers every query that arrived before it began. While one is under way, arrivals wait for the next. So the cost of
//! a round is shared under load, and a lone query waits for exactly one.

use super::types::{Group, TypeConfig};
use crate::config::ReadPolicy;
use common::fault::{Fault, Kind};
use common::task::Tasks;
use openraft::LinearizerOption;
use openraft::errors::{LinearizableReadError, RaftError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Queries that wait for a round, at most; more wait to be let in.
const WAITING_MAX: usize = 8192;
/// How long a round may take: confirming leadership, then applying up to the read index.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// With [`ReadPolicy::Lease`]: how old a majority's answer may be. Followers keep from voting for
/// [`super::LEASE`] after it; the rest is the margin for clocks that run unequally fast.
const LEASE_AGE: Duration = Duration::from_millis(600);

type Waiting = oneshot::Sender<Result<(), Fault>>;

/// A handle; clones share the rounds.
#[derive(Clone, Debug)]
pub struct ReadBarrier {
    queue: mpsc::Sender<Waiting>,
}

impl ReadBarrier {
    /// Starts the rounds.
    pub fn start(tasks: &Tasks, group: Group, policy: ReadPolicy) -> ReadBarrier {
        let (queue, mut waiting) = mpsc::channel::<Waiting>(WAITING_MAX);
        tasks.spawn("read barrier", |stop| async move {
            loop {
                let first = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    first = waiting.recv() => first,
                };
                let Some(first) = first else { return };
                let mut served = vec![first];
                while let Ok(more) = waiting.try_recv() {
                    served.push(more);
                }
                let result = round(&group, policy).await;
                for one in served {
                    let _ = one.send(result.clone()); // gone: its caller gave up
                }
            }
        });
        ReadBarrier { queue }
    }

    /// Returns when what this node has applied covers everything that was answered before this call.
    ///
    /// # Errors
    /// `NotLeader`, `Unavailable`: nothing was read.
    pub async fn wait(&self) -> Result<(), Fault> {
        let stopping = || Fault::new(Kind::Busy, "this metaserver is stopping");
        let (done, answer) = oneshot::channel();
        self.queue.send(done).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

async fn round(group: &Group, policy: ReadPolicy) -> Result<(), Fault> {
    let age = match policy {
        ReadPolicy::Index => Duration::ZERO,
        ReadPolicy::Lease => LEASE_AGE,
    };
    // A lease that ran out is renewed by asking, as `Index` does.
    let option = LinearizerOption::new(Some(age), true).with_wait_timeout(ROUND_TIMEOUT);
    let confirm = async {
        let linearizer = group.get_read_linearizer(option).await.map_err(|error| refused(&error))?;
        linearizer.await_ready(group).await.map_err(|error| Fault::new(Kind::Unavailable, error.to_string()))
    };
    match tokio::time::timeout(ROUND_TIMEOUT, confirm).await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(Fault::new(Kind::Unavailable, "no majority of metaservers answered in time")),
    }
}

fn refused(error: &RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Fault {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => super::forward(to),
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
            Fault::new(Kind::Unavailable, "no majority of metaservers answers")
        }
        RaftError::Fatal(fatal) => Fault::new(Kind::Unavailable, format!("this metaserver stopped: {fatal}")),
    }
}
