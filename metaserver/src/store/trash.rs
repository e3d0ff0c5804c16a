//! Rows of the trash: what was removed and can be brought back.

use super::values::{Inode, Value, damaged};
use common::id::InodeId;
use common::kv::KvError;
use common::name::Name;
use common::time::Time;
use serde::{Deserialize, Serialize};

/// Something that lost its last name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashRow {
    /// The directory it was in.
    pub parent: InodeId,
    /// Its last name there.
    pub name: Name,
    /// Who removed it.
    pub by: u32,
    /// When it came here, by the leader's clock.
    pub at: Time,
    /// What it was, as its inode row had it. Empty: it is open, still an orphan, and comes here when it is closed.
    pub inode: Vec<u8>,
}

impl TrashRow {
    /// What it was; `None` while it is open.
    ///
    /// # Errors
    /// The row is damaged.
    pub fn inode(&self) -> Result<Option<Inode>, KvError> {
        (!self.inode.is_empty()).then(|| Inode::decode(&self.inode)).transpose()
    }
}

impl Value for TrashRow {
    const WHAT: &'static str = "trash";
    const VERSION: u8 = 1;
}

/// How long things stay in the trash, and what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashState {
    /// The undelete window, in seconds. 0, as in clusters that were made before there was a trash: nothing is kept.
    pub window_s: u64,
    /// What was removed by then goes now.
    pub emptied: Option<Time>,
    /// Entries, without those that are open.
    pub entries: u64,
    /// Sum of `allocated` of the files among them.
    pub bytes: u64,
}

impl Value for TrashState {
    const WHAT: &'static str = "trash state";
    const VERSION: u8 = 1;
}

/// The inode at the end of a key of the trash family.
///
/// # Errors
/// It is too short.
pub fn ino_of(key: &[u8]) -> Result<InodeId, KvError> {
    super::keys::last_u64(key).map(InodeId).ok_or_else(|| damaged("trash", "the key is too short"))
}
