//! Tells a chunkserver that a copy it sent is wrong, so that it looks itself and has the copy replaced. Until somebody
//! looks, the server vouches for that copy whenever the same bytes are written again.
//!
//! Best effort, beside the read and never before it: at most [`UNDER_WAY_MAX`] at once, each copy once. A report that
//! is lost is made again by the next client that reads the copy.

use common::auth::Mac;
use common::fault::Fault;
use common::id::{ChunkId, ServerId, SessionId};
use common::task::Tasks;
use common::wire::{Pool, Target};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Reports under way at once; what comes while there are so many is not reported.
const UNDER_WAY_MAX: usize = 4;
/// How long a server gets: it reads the whole chunk.
const LIMIT: Duration = Duration::from_secs(10);
/// Copies remembered as reported; beyond that all are forgotten, and may be reported again.
const TOLD_MAX: usize = 4096;

/// The seam to the servers.
pub(crate) trait Verify: Send + Sync + 'static {
    /// Has a server look at its copy. True: it is sound.
    fn verify<'a>(
        &'a self,
        at: &'a Target,
        reader: (SessionId, Mac),
        chunk: ChunkId,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool, Fault>>;
}

impl Verify for Pool {
    fn verify<'a>(
        &'a self,
        at: &'a Target,
        reader: (SessionId, Mac),
        chunk: ChunkId,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool, Fault>> {
        Box::pin(Pool::verify(self, at, reader, chunk, limit))
    }
}

/// What this client reports.
pub(crate) struct Reports {
    servers: Arc<dyn Verify>,
    tasks: Tasks,
    told: Mutex<BTreeSet<(ServerId, ChunkId)>>,
    under_way: Arc<Semaphore>,
}

impl Reports {
    pub(crate) fn new(servers: Arc<dyn Verify>, tasks: Tasks) -> Reports {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Reports { servers, tasks, told: Mutex::default(), under_way }
    }

    /// Reports a copy whose bytes did not match the id. Returns at once.
    pub(crate) fn wrong(&self, at: Target, reader: (SessionId, Mac), chunk: ChunkId) {
        let Ok(permit) = Arc::clone(&self.under_way).try_acquire_owned() else { return };
        {
            let mut told = self.told.lock().expect("no panic holds this lock");
            if told.len() >= TOLD_MAX {
                told.clear();
            }
            if !told.insert((at.server, chunk)) {
                return;
            }
        }
        let servers = Arc::clone(&self.servers);
        self.tasks.spawn_until_stop(async move {
            match servers.verify(&at, reader, chunk, LIMIT).await {
                Ok(false) => debug!(chunk = %chunk, server = %at.server, "the server found its copy damaged too"),
                Ok(true) => warn!(chunk = %chunk, server = %at.server, "sent wrong, but the server's copy is sound"),
                Err(fault) => debug!(chunk = %chunk, server = %at.server, error = %fault, "report of a wrong copy"),
            }
            drop(permit);
        });
    }
}
