//! `statfs` without waiting: the last known use of the file system, refreshed in the background.

use super::Shared;
use common::proto::meta::FsStat;
use fuser::ReplyStatfs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// How old the answer may be before it is refreshed (for the next caller).
const FRESH_FOR: Duration = Duration::from_secs(1);
/// The unit in which space is told, in bytes.
const BLOCK: u64 = 4096;
/// Inodes that can still be made, for programs that look: there is no limit.
const FREE_INODES: u64 = 1 << 40;

/// What was last known.
#[derive(Debug, Default)]
pub(super) struct Usage {
    last: Mutex<Option<(Instant, FsStat)>>,
    refreshing: AtomicBool,
}

impl Shared {
    /// Answers from memory and sees to it that memory is fresh. Before the first refresh all is zero.
    pub(super) fn statfs(self: &Arc<Self>, reply: ReplyStatfs) {
        let last = *self.usage.last.lock().expect("no panic holds this lock");
        if last.is_none_or(|(read, _)| read.elapsed() >= FRESH_FOR) {
            self.refresh_usage();
        }
        let stat = last.map(|(_, stat)| stat).unwrap_or_default();
        let space = crate::cli::show::space(&stat);
        let (total, free) = (space.total / BLOCK, space.free / BLOCK);
        let block = u32::try_from(BLOCK).expect("a page");
        let name_len = u32::try_from(common::units::NAME_LEN_MAX).expect("255");
        reply.statfs(total, free, free, stat.inodes + FREE_INODES, FREE_INODES, block, name_len, block);
    }

    /// Asks the cluster in the background, one question at a time.
    pub(super) fn refresh_usage(self: &Arc<Self>) {
        if self.usage.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(self);
        self.run(async move {
            match shared.client.statfs().await {
                Ok(stat) => {
                    *shared.usage.last.lock().expect("no panic holds this lock") = Some((Instant::now(), stat));
                }
                Err(error) => tracing::warn!(op = "statfs", %error, "use of the file system is not known"),
            }
            shared.usage.refreshing.store(false, Ordering::Release);
        });
    }
}
