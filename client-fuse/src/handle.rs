//! Open files: what front ends hold.

use crate::core::Core;
use crate::inode::Inode;
use crate::read::Ahead;
use common::fault::{Fault, Kind};
use common::id::{DataVersion, InodeId};
use common::proto::meta::{ACCESS_READ, ACCESS_WRITE, Attr, Cred};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Reads will come.
    pub read: bool,
    /// Writes will come.
    pub write: bool,
    /// Each write goes to the end of the file (`O_APPEND`); its offset argument is ignored.
    pub append: bool,
    /// Cut the file to nothing first (`O_TRUNC`). Needs `write`.
    pub truncate: bool,
    /// Each write is durable when it returns (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
    /// Reads through it change no access time (`O_NOATIME`).
    pub no_atime: bool,
}

impl OpenFlags {
    /// The rights it needs, as bits of [`ACCESS_READ`] and [`ACCESS_WRITE`].
    pub(crate) fn access(self) -> u8 {
        let write = self.write || self.truncate;
        (if self.read { ACCESS_READ } else { 0 }) | (if write { ACCESS_WRITE } else { 0 })
    }
}

/// An open regular file. Cheap to clone; all clones are one descriptor. End it with [`crate::Client::release`]; when the
/// last clone is dropped without it, unsaved data is still written back, but nobody hears of an error.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Inside>);

/// The inside of a [`Handle`].
pub(crate) struct Inside {
    pub(crate) core: Arc<Core>,
    pub(crate) inode: Arc<Inode>,
    pub(crate) flags: OpenFlags,
    pub(crate) cred: Cred,
    pub(crate) ahead: Mutex<Ahead>,
    attr: Attr,
    /// Its number among the handles of this file.
    number: u64,
    /// Failures this handle was told.
    told: AtomicU64,
    /// Losses of decided changes that it was told.
    told_losses: AtomicU64,
    released: AtomicBool,
}

impl Handle {
    /// The inode.
    pub fn ino(&self) -> InodeId {
        self.0.inode.ino
    }

    /// Its attributes when it was opened.
    pub fn attr(&self) -> Attr {
        self.0.attr.clone()
    }

    /// Who opened it: what is done through it is done on his behalf, whoever has it by now.
    pub fn cred(&self) -> &Cred {
        &self.0.cred
    }

    /// The data version it was opened at: pages cached from another version are stale.
    pub fn version(&self) -> DataVersion {
        self.0.attr.version
    }
}

impl Inside {
    /// `losses`: those that were told of before it was opened.
    pub(crate) fn new(
        core: &Arc<Core>,
        cred: &Cred,
        (attr, losses): (&Attr, u64),
        flags: OpenFlags,
    ) -> Result<Inside, Fault> {
        let (inode, number) = core.enter(attr)?;
        let (told, attr) = {
            let mut state = inode.lock();
            if flags.write {
                state.opened_for_writing(cred);
            }
            (AtomicU64::new(state.errors), state.with_unsaved(attr))
        };
        Ok(Inside {
            core: core.clone(),
            inode,
            flags,
            cred: cred.clone(),
            ahead: Mutex::default(),
            attr,
            number,
            told,
            told_losses: AtomicU64::new(losses),
            released: AtomicBool::new(false),
        })
    }

    /// A failure of the file that this handle was not told yet.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.core.locks.are_lost(self.inode.ino, self.core.meta.session().generation) {
            return Err(Fault::new(Kind::NoSession, "locks were lost with the session: open the file again"));
        }
        self.core.told_losses(&self.told_losses)?;
        let state = self.inode.lock();
        let told = self.told.swap(state.errors, Ordering::AcqRel);
        if state.last_failure() > told || self.number < state.lost_before {
            let lost = || Fault::new(Kind::NoSession, "unsaved data was lost: open the file again");
            return Err(state.last_error.clone().unwrap_or_else(lost));
        }
        Ok(())
    }

    /// Only the first call is true.
    pub(crate) fn begin_release(&self) -> bool {
        !self.released.swap(true, Ordering::AcqRel)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.begin_release() && self.core.leave(&self.inode) {
            let core = self.core.clone();
            core.reap();
        }
    }
}
