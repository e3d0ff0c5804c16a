//! Access times, as with `relatime` ([`crate::ClientConfig::relatime`]): noted when a file is read, told to the metaservers some
//! seconds later, for many files at once. Until then only this client shows them, and its crash loses them.
//!
//! A read costs no round trip; what is told is a change of the files' attributes, so others who believe those are asked to
//! forget them first, once per file and change of it, or day.
//!
//! Left out: directories and symlinks; what a program reads from the kernel's pages while the file stays open.

use crate::client::Client;
use crate::core::Core;
use crate::handle::{Handle, Inside};
use crate::inode::Inode;
use common::id::InodeId;
use common::proto::meta::{ACCESSED_MAX, Attr, Cred, Op};
use common::time::Time;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Files whose access times are not told yet, at most: reads of others change none meanwhile.
const NOTED_MAX: usize = 64 << 10;
/// How long they may wait.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Access times that the metaservers do not know.
#[derive(Debug, Default)]
pub(crate) struct Accessed(Mutex<BTreeMap<InodeId, Time>>);

impl Accessed {
    fn noted(&self) -> MutexGuard<'_, BTreeMap<InodeId, Time>> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// False: too many are noted.
    fn note(&self, ino: InodeId, at: Time) -> bool {
        let mut noted = self.noted();
        let has_room = noted.len() < NOTED_MAX || noted.contains_key(&ino);
        if has_room {
            noted.insert(ino, at);
        }
        has_room
    }

    /// The first that may be told at once, from this inode on.
    fn some(&self, from: InodeId) -> Vec<(InodeId, Time)> {
        self.noted().range(from..).take(ACCESSED_MAX).map(|(ino, at)| (*ino, *at)).collect()
    }

    /// They are told. Those that were noted again since are not.
    fn told(&self, files: &[(InodeId, Time)]) {
        let mut noted = self.noted();
        for (ino, at) in files {
            if noted.get(ino) == Some(at) {
                noted.remove(ino);
            }
        }
    }
}

impl Inode {
    fn is_access_due(&self, now: Time) -> bool {
        let state = self.lock();
        let attr = state.with_unsaved(&state.attr);
        Attr { atime: attr.atime.max(state.accessed), ..attr }.is_access_due(now)
    }
}

impl Core {
    fn counts_access(&self, handle: &Inside) -> bool {
        self.config.relatime && handle.flags.read && !handle.flags.no_atime
    }

    /// Something was read through this handle.
    pub(crate) fn note_access(&self, handle: &Inside) {
        if !self.counts_access(handle) {
            return;
        }
        let now = self.world.now();
        if handle.inode.is_access_due(now) && self.accessed.note(handle.inode.ino, now) {
            handle.inode.lock().accessed = now;
        }
    }

    /// Attributes with the access time that is not told yet.
    pub(crate) fn with_access(&self, mut attr: Attr) -> Attr {
        if self.config.relatime
            && let Some(at) = self.accessed.noted().get(&attr.ino)
            && attr.is_access_due(*at)
        {
            attr.atime = *at;
        }
        attr
    }

    /// Tells the metaservers what is noted. What cannot be told now stays noted.
    pub(crate) async fn tell_accesses(&self, deadline: Instant) {
        let mut from = InodeId(0);
        loop {
            let files = self.accessed.some(from);
            let Some((last, _)) = files.last() else { return };
            from = InodeId(last.0 + 1);
            let op = Op::Accessed { files: files.clone() };
            if let Err(fault) = self.ask(&Cred::default(), op, deadline).await {
                debug!(error = %fault, "access times are not told");
                if fault.kind.is_transient() {
                    return;
                }
            }
            self.accessed.told(&files);
        }
    }

    /// Tells what is noted, again and again.
    pub(crate) async fn access_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TELL_AFTER) => self.tell_accesses(self.meta.deadline()).await,
            }
        }
    }
}

impl Client {
    /// Whether a read through this handle changes the file's access time: who caches what is read has to let it come here.
    pub fn is_access_due(&self, handle: &Handle) -> bool {
        self.core.counts_access(&handle.0) && handle.0.inode.is_access_due(self.core.world.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_again_while_it_is_told_is_told_again_and_no_more_is_noted_than_there_is_room_for() {
        let accessed = Accessed::default();
        let time = |secs| Time { secs, nanos: 0 };
        for ino in 0..u64::try_from(NOTED_MAX).unwrap() {
            assert!(accessed.note(InodeId(ino), time(1)));
        }
        assert!(!accessed.note(InodeId(u64::MAX), time(1)));
        let (first, next) = (accessed.some(InodeId(0)), accessed.some(InodeId(1024)));
        assert_eq!(
            (first.len(), next.len(), first[ACCESSED_MAX - 1].0.0 + 1),
            (ACCESSED_MAX, ACCESSED_MAX, next[0].0.0)
        );
        assert!(accessed.note(InodeId(3), time(2)), "there is room for what is there");
        accessed.told(&first);
        assert_eq!(accessed.some(InodeId(0))[0], (InodeId(3), time(2)));
        assert_eq!(accessed.noted().len(), NOTED_MAX - ACCESSED_MAX + 1);
    }
}
