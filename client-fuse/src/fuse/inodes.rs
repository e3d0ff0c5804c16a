//! What we remember of the inodes the kernel knows.
//!
//! Invariants:
//! 1. An inode is here from the reply that first shows it to the kernel until the kernel has forgotten it as often as
//!    it was shown (`lookups`), so memory is bounded by the kernel's own inode cache.
//! 2. `pages` is the data version the kernel's pages were read at, if that is known (`has_pages`): not when a write
//!    could not be saved, for written bytes are in the pages too. Pages are kept at an open only if the file still has
//!    that version.
//! 3. `changed` is above the mark ([`Inodes::mark`]) taken before a listing began iff this mount changed the inode
//!    since: attributes in that listing are then stale and must not reach the kernel (an old size would cut the file).

use common::fault::Fault;
use common::id::{DataVersion, InodeId};
use common::proto::meta::Attr;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Small, for there are as many as the kernel keeps: a million of them take 51 to 66 MB in the map.
#[derive(Debug, Default)]
struct Known {
    lookups: u32,
    /// Setuid, or setgid with group execution: a write by other than root takes them away.
    privileged: bool,
    has_pages: bool,
    pages: DataVersion,
    changed: u64,
}

const _: () = assert!(size_of::<Known>() <= 24, "a million inodes");

#[derive(Debug, Default)]
struct Table {
    /// No hash table: of a million it takes 102 MB (of 40 bytes each), and 154 MB at once when it grows.
    known: BTreeMap<InodeId, Known>,
    /// Counts changes made through this mount.
    clock: u64,
    /// How often changes that were decided here were lost, as far as is known.
    losses: u64,
}

/// The inodes the kernel knows.
#[derive(Debug, Default)]
pub(crate) struct Inodes(Mutex<Table>);

impl Inodes {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// The kernel is shown this inode by name: one more lookup to be forgotten later.
    pub(crate) fn shown(&self, attr: &Attr) {
        let mut table = self.table();
        let now = table.clock;
        let fresh = || Known { changed: now, ..Known::default() }; // what was listed before may be older
        let known = table.known.entry(attr.ino).or_insert_with(fresh);
        known.lookups = known.lookups.saturating_add(1);
        known.privileged = is_privileged(attr.permissions());
    }

    /// The kernel is shown new attributes.
    pub(crate) fn refreshed(&self, attr: &Attr) {
        if let Some(known) = self.table().known.get_mut(&attr.ino) {
            known.privileged = is_privileged(attr.permissions());
        }
    }

    /// True if the kernel may know it.
    pub(crate) fn is_known(&self, ino: InodeId) -> bool {
        ino == InodeId::ROOT || self.table().known.contains_key(&ino)
    }

    /// The kernel forgets `lookups` of them.
    pub(crate) fn forget(&self, ino: InodeId, lookups: u64) {
        let mut table = self.table();
        if let Some(known) = table.known.get_mut(&ino) {
            known.lookups = known.lookups.saturating_sub(u32::try_from(lookups).unwrap_or(u32::MAX));
            if known.lookups == 0 {
                table.known.remove(&ino);
            }
        }
    }

    /// A file is opened at this data version. True if the kernel's pages of it are of that version.
    pub(crate) fn opened(&self, ino: InodeId, version: DataVersion) -> bool {
        let mut table = self.table();
        let Some(known) = table.known.get_mut(&ino) else { return false };
        let same = known.has_pages && known.pages == version;
        (known.has_pages, known.pages) = (true, version);
        same
    }

    /// True if the kernel's pages of the file are of this version.
    pub(crate) fn has_pages_of(&self, ino: InodeId, version: DataVersion) -> bool {
        self.table().known.get(&ino).is_some_and(|known| known.has_pages && known.pages == version)
    }

    /// So often changes that were decided here were lost. A version that was made by a lost one may be made once more by
    /// somebody else: what the kernel has of it is of no use.
    pub(crate) fn lost(&self, losses: u64) {
        let mut table = self.table();
        if std::mem::replace(&mut table.losses, losses) != losses {
            table.known.values_mut().for_each(|known| known.has_pages = false);
        }
    }

    /// What became of writes to a file. After an error its pages may show bytes that exist nowhere else.
    pub(crate) fn saved(&self, ino: InodeId, outcome: Result<(), Fault>) -> Result<(), Fault> {
        if outcome.is_err()
            && let Some(known) = self.table().known.get_mut(&ino)
        {
            known.has_pages = false;
        }
        outcome
    }

    /// This mount changed the inode.
    pub(crate) fn changed(&self, ino: InodeId) {
        let mut table = self.table();
        table.clock += 1;
        let now = table.clock;
        if let Some(known) = table.known.get_mut(&ino) {
            known.changed = now;
        }
    }

    /// A point in the order of changes, for [`Inodes::changed_since`].
    pub(crate) fn mark(&self) -> u64 {
        self.table().clock
    }

    /// True if this mount changed the inode since the mark.
    pub(crate) fn changed_since(&self, ino: InodeId, mark: u64) -> bool {
        self.table().known.get(&ino).is_some_and(|known| known.changed > mark)
    }

    /// True if a write by other than root must take setuid and setgid away.
    pub(crate) fn is_privileged(&self, ino: InodeId) -> bool {
        self.table().known.get(&ino).is_some_and(|known| known.privileged)
    }
}

/// True for modes that a write by other than root changes.
fn is_privileged(mode: u32) -> bool {
    mode != without_privilege(mode)
}

/// The mode after such a write: no setuid; no setgid where it means privilege (with group execution).
pub(crate) fn without_privilege(mode: u32) -> u32 {
    let setgid = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    mode & 0o7777 & !(0o4000 | setgid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::fault::Kind;
    use common::proto::meta::FileKind;
    use common::time::Time;

    fn attr(ino: u64, mode: u32) -> Attr {
        Attr {
            ino: InodeId(ino),
            kind: FileKind::File,
            mode,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            rdev: 0,
            chunk_size: 4 << 20,
            replicas: 3,
            version: DataVersion(1),
        }
    }

    #[test]
    fn an_inode_is_forgotten_after_as_many_lookups_as_it_was_shown() {
        let inodes = Inodes::default();
        inodes.shown(&attr(7, 0o644));
        inodes.shown(&attr(7, 0o644));
        inodes.opened(InodeId(7), DataVersion(1));
        inodes.forget(InodeId(7), 1);
        assert!(inodes.opened(InodeId(7), DataVersion(1)), "still known");
        inodes.forget(InodeId(7), 1);
        assert!(!inodes.opened(InodeId(7), DataVersion(1)), "forgotten with its page version");
        assert!(inodes.table().known.is_empty());
    }

    #[test]
    fn pages_are_kept_only_at_the_same_version() {
        let inodes = Inodes::default();
        inodes.shown(&attr(7, 0o644));
        assert!(!inodes.opened(InodeId(7), DataVersion(1)));
        assert!(inodes.opened(InodeId(7), DataVersion(1)));
        assert!(!inodes.opened(InodeId(7), DataVersion(2)));
    }

    #[test]
    fn pages_are_not_kept_after_a_write_that_could_not_be_saved() {
        let inodes = Inodes::default();
        inodes.shown(&attr(7, 0o644));
        inodes.opened(InodeId(7), DataVersion(1));
        inodes.saved(InodeId(7), Ok(())).unwrap();
        assert!(inodes.opened(InodeId(7), DataVersion(1)));
        inodes.saved(InodeId(7), Err(Fault::new(Kind::NoSession, "lost"))).unwrap_err();
        assert!(!inodes.opened(InodeId(7), DataVersion(1)), "the version is the old one, the pages are not");
    }

    #[test]
    fn pages_are_not_kept_after_changes_were_lost() {
        let inodes = Inodes::default();
        inodes.shown(&attr(7, 0o644));
        inodes.opened(InodeId(7), DataVersion(2));
        inodes.lost(0);
        assert!(inodes.has_pages_of(InodeId(7), DataVersion(2)));
        inodes.lost(1);
        assert!(!inodes.opened(InodeId(7), DataVersion(2)), "another mount made that version");
        inodes.lost(1);
        assert!(inodes.opened(InodeId(7), DataVersion(2)), "once");
    }

    #[test]
    fn setgid_without_group_execution_is_no_privilege() {
        assert_eq!(without_privilege(0o6755), 0o755);
        assert_eq!(without_privilege(0o2644), 0o2644);
        assert!(is_privileged(0o4600) && !is_privileged(0o1777));
    }
}
