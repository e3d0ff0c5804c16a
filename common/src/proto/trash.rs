//! What was removed and can be brought back (DESIGN, section 7: trash).
//!
//! When the last name of something goes, what it was goes to the trash with where it was, who removed it and when; when
//! it is open then, once nobody has it open any more. It stays for the undelete window, a setting of the cluster, and its
//! chunks are referred to as before. Nobody finds it by its inode number until a name leads to it again.

use crate::id::InodeId;
use crate::name::Name;
use crate::proto::keep::KeepChange;
use crate::proto::meta::FileKind;
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// How long what was removed can be brought back unless it is set, in seconds.
pub const UNDELETE_WINDOW_S: u64 = 3600;
/// The longest undelete window, in seconds: a year.
pub const UNDELETE_WINDOW_S_MAX: u64 = 366 * 24 * 3600;
/// Entries in one answer, at most.
pub const TRASH_PER_ANSWER: u32 = 1024;

/// What to list of the trash. A caller is told of what it removed itself; root of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashAsk {
    /// Only what was directly in this directory, which may be in the trash itself. `None`: everything.
    pub parent: Option<InodeId>,
    /// Behind this place, that of the last answer. `None`: from the start.
    pub after: Option<TrashPlace>,
    /// At most this many, at most [`TRASH_PER_ANSWER`].
    pub limit: u32,
}

/// A place in a listing: by time, then inode; within one directory by inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrashPlace {
    /// When it was removed.
    pub at: Time,
    /// What.
    pub ino: InodeId,
}

/// Something in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    /// What.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// The directory it was in; that may be in the trash too.
    pub parent: InodeId,
    /// Its last name there.
    pub name: Name,
    /// That directory's path. `None`: it is gone for good, or has too many neighbours to look for its name.
    pub dir: Option<Vec<u8>>,
    /// Its length in bytes.
    pub size: u64,
    /// Who removed it.
    pub by: u32,
    /// When.
    pub at: Time,
}

/// What there is, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashList {
    /// Oldest first; within one directory by inode.
    pub entries: Vec<TrashEntry>,
    /// There may be more behind this place, even if `entries` is empty.
    pub next: Option<TrashPlace>,
    /// The undelete window, in seconds.
    pub window_s: u64,
}

/// All of the trash, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashNow {
    /// The undelete window, in seconds. 0: nothing is kept.
    pub window_s: u64,
    /// Files, directories and the like.
    pub entries: u64,
    /// Bytes of the files (their allocated ranges).
    pub bytes: u64,
    /// When the oldest was removed.
    pub oldest: Option<Time>,
}

/// Settings of the cluster that change together; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// Of repair, garbage collection and scrub.
    pub keep: KeepChange,
    /// Durable copies below which a write is not acknowledged, 1 to the default replica count.
    pub min_replicas: Option<u8>,
    /// How long what was removed can be brought back, in seconds; also what is in the trash already. 0: not at all.
    pub undelete_window_s: Option<u64>,
}

impl SettingsChange {
    /// Refuses what makes no sense, with one line for a person.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn check(&self) -> Result<(), String> {
        self.keep.check()?;
        match self.undelete_window_s {
            Some(window) if window > UNDELETE_WINDOW_S_MAX => {
                Err(format!("undelete_window_s = {window}: must be from 0 to {UNDELETE_WINDOW_S_MAX}"))
            }
            _ => Ok(()),
        }
    }

    /// What changes, in words.
    pub fn words(&self) -> Vec<String> {
        let min = self.min_replicas.map(|min| format!("min_replicas = {min}"));
        let window = self.undelete_window_s.map(|window| format!("undelete_window_s = {window}"));
        min.into_iter().chain(self.keep.words()).chain(window).collect()
    }
}
