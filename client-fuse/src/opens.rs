//! Says what is open here when the metaservers ask, so that a file which another mount removes stays until it is closed.
//!
//! The rules (`metaserver/src/opens.rs`): an answer waits for the opens that were under way when the question came, and a
//! file without a name is not opened unless it is open here already.

use crate::core::Core;
use common::id::InodeId;
use common::proto::opens::{OPENS_HOLD, OPENS_MAX, OpenAsk, OpenReport};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long one call may take: the wait for a question, and a fail-over.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The pause after a call that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Core {
    /// Answers questions until told to stop.
    pub(crate) async fn tell_opens_loop(self: Arc<Self>, stop: CancellationToken) {
        let mut report = OpenReport::default();
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                next = self.tell_opens(report) => next,
            };
            report = next;
        }
    }

    /// Reports, waits for a question, and makes the answer.
    async fn tell_opens(self: &Arc<Self>, report: OpenReport) -> OpenReport {
        let session = self.meta.session().id;
        let call = OpenReport { session, ..report };
        match self.meta.opens(&call, Instant::now() + OPENS_HOLD + CALL_LIMIT).await {
            Ok(OpenAsk { round: 0, .. }) => OpenReport::default(),
            Ok(OpenAsk { term, round }) => match self.all_open().await {
                Some(open) => OpenReport { session, term, round, open },
                None => {
                    tokio::time::sleep(PAUSE).await;
                    OpenReport::default()
                }
            },
            Err(fault) => {
                debug!(error = %fault, "say what is open");
                tokio::time::sleep(PAUSE).await;
                OpenReport::default()
            }
        }
    }

    /// Everything that is open, or has unsaved data, once all opens have ended that are under way now. `None`: that
    /// cannot be said.
    async fn all_open(&self) -> Option<Vec<InodeId>> {
        if self.opens_under_way().await.is_err() {
            return None; // they have a deadline: the next time
        }
        let open: Vec<InodeId> = self.files().iter().map(|inode| inode.ino).collect();
        if open.len() > OPENS_MAX {
            warn!(open = open.len(), "too many files are open here: what others remove stays for now");
            return None;
        }
        Some(open)
    }
}
