//! What we remember of the inodes the kernel knows.
//!
//! Invariants:
//! 1. An inode is here from the reply that first shows it to the kernel until the kernel has forgotten it as often as
//!    it was shown (`lookups`), so memory is bounded by the kernel's own inode cache.
//! 2. While `pages` is [`Pages::Of`], none of the kernel's pages of the file is older than the data version beside it, and
//!    none has bytes that were written and could not be saved. Pages are kept at an open only if nobody but this mount has
//!    changed the file since. A read tells of the pages that it will make before it begins ([`Inodes::filled`]), a write before it
//!    is taken.
//! 3. `changed` is above the mark ([`Inodes::mark`]) taken before a listing began iff this mount changed the inode
//!    since: attributes in that listing are then stale and must not reach the kernel (an old size would cut the file).
//! 4. A file is in `ends` from when others changed it while it was open here, or may have, until the kernel forgets it. The kernel
//!    takes it for that long or longer, whichever of the answers on their way to it it listens to.

use client_fuse::Versions;
use common::fault::Fault;
use common::id::{DataVersion, InodeId};
use common::proto::meta::Attr;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::time::Instant;

/// Small, for there are as many as the kernel keeps: a million of them take 51 to 66 MB in the map.
#[derive(Debug, Default)]
struct Known {
    lookups: u32,
    /// Setuid, or setgid with group execution: a write by other than root takes them away.
    privileged: bool,
    pages: Pages,
    /// Of [`Pages::Of`] the version, of [`Pages::Opening`] the opening's number, of [`Pages::Dropping`] what came meanwhile: [`FILLED`]
    /// or [`SPOILED`].
    number: u64,
    changed: u64,
}

const _: () = assert!(size_of::<Known>() <= 24, "a million inodes");

/// Pages came while they were being dropped.
const FILLED: u64 = 1;
/// ... and nobody knows what they are.
const SPOILED: u64 = 2;

/// What the kernel's pages of a file are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pages {
    /// There are none.
    #[default]
    None,
    /// Of this data version, or read later.
    Of,
    /// Nobody knows: of an older version, or written and not saved.
    Unknown,
    /// The kernel drops them while it opens the file. That it has, who asks through what was opened shows.
    Opening,
    /// The kernel is being told to drop them.
    Dropping,
}

/// How the kernel is to treat its pages of a file that it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// They are of the version that it has, or there are none.
    Keep,
    /// It is to drop them. With the number for [`Inodes::has_opened`].
    Drop(u64),
}

/// Whether the kernel is to be told to drop its pages of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// They are new enough.
    Needless,
    /// Yes, by who asked. Ends with [`Inodes::end_drop`].
    Yours,
    /// Somebody else is telling it.
    Others,
}

impl Known {
    /// Nobody knows what its pages are.
    fn spoil(&mut self) {
        match self.pages {
            Pages::Dropping => self.number = SPOILED, // by one at a time, to its end
            _ => self.pages = Pages::Unknown,
        }
    }

    /// They may be older than this version.
    fn has_older_pages(&self, version: DataVersion) -> bool {
        match self.pages {
            Pages::None => false,
            Pages::Of => self.number < version.0,
            Pages::Unknown | Pages::Opening | Pages::Dropping => true,
        }
    }

    /// Nobody else has changed the file since they were read: they are of its version now.
    fn renew(&mut self, versions: Versions) -> bool {
        let is_own = self.pages == Pages::Of && self.number >= versions.since.0;
        if is_own {
            self.number = self.number.max(versions.now.0);
        }
        is_own
    }
}

#[derive(Debug, Default)]
struct Table {
    /// No hash table: of a million it takes 102 MB (of 40 bytes each), and 154 MB at once when it grows.
    known: BTreeMap<InodeId, Known>,
    /// Counts changes made through this mount, and openings.
    clock: u64,
    /// How often changes that were decided here were lost, as far as is known.
    losses: u64,
    /// See invariant 4.
    ends: BTreeMap<InodeId, End>,
}

/// Where the kernel takes a file to end.
#[derive(Debug, Default)]
struct End {
    /// There or later.
    at: u64,
    /// When a read was last answered that shows where.
    shown: Option<Instant>,
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
                table.ends.remove(&ino);
            }
        }
    }

    /// A file is being opened.
    pub(crate) fn opening(&self, ino: InodeId, versions: Versions) -> Opening {
        let mut table = self.table();
        table.clock += 1;
        let number = table.clock;
        if let Some(known) = table.known.get_mut(&ino) {
            if known.pages == Pages::None || known.renew(versions) {
                return Opening::Keep;
            }
            if known.pages != Pages::Dropping {
                (known.pages, known.number) = (Pages::Opening, number);
            }
        }
        Opening::Drop(number)
    }

    /// The kernel asks through what was opened with this number, at this version: it has dropped older pages.
    pub(crate) fn has_opened(&self, ino: InodeId, number: u64, version: DataVersion) {
        if let Some(known) = self.table().known.get_mut(&ino)
            && (known.pages, known.number) == (Pages::Opening, number)
        {
            (known.pages, known.number) = (Pages::Of, version.0);
        }
    }

    /// What this mount wrote is saved: pages that were of the version before are of this one.
    pub(crate) fn renew(&self, ino: InodeId, versions: Versions) {
        if let Some(known) = self.table().known.get_mut(&ino) {
            known.renew(versions);
        }
    }

    /// The kernel is about to get bytes of the file that are not older than this version.
    pub(crate) fn filled(&self, ino: InodeId, version: DataVersion) {
        if let Some(known) = self.table().known.get_mut(&ino) {
            match known.pages {
                Pages::None => (known.pages, known.number) = (Pages::Of, version.0),
                Pages::Dropping => known.number = known.number.max(FILLED),
                Pages::Of | Pages::Unknown | Pages::Opening => {}
            }
        }
    }

    /// What is in the kernel's pages of the file, if it has any, may not be what is in the file.
    pub(crate) fn spoiled(&self, ino: InodeId) {
        if let Some(known) = self.table().known.get_mut(&ino).filter(|known| known.pages != Pages::None) {
            known.spoil();
        }
    }

    /// True if the kernel may have pages of the file that are older than this version.
    pub(crate) fn has_older_pages(&self, ino: InodeId, version: DataVersion) -> bool {
        self.table().known.get(&ino).is_some_and(|known| known.has_older_pages(version))
    }

    /// If the kernel may have pages that are older than this version, it is to be told to drop all.
    pub(crate) fn begin_drop(&self, ino: InodeId, version: DataVersion) -> Begin {
        let mut table = self.table();
        match table.known.get_mut(&ino) {
            Some(known) if known.pages == Pages::Dropping => Begin::Others,
            Some(known) if known.has_older_pages(version) => {
                (known.pages, known.number) = (Pages::Dropping, 0);
                Begin::Yours
            }
            _ => Begin::Needless,
        }
    }

    /// That is over. `version`: what the file was when it began, if all was dropped.
    pub(crate) fn end_drop(&self, ino: InodeId, version: Option<DataVersion>) {
        if let Some(known) = self.table().known.get_mut(&ino).filter(|known| known.pages == Pages::Dropping) {
            (known.pages, known.number) = match (version, known.number) {
                (None, _) | (_, SPOILED) => (Pages::Unknown, 0),
                (Some(version), FILLED) => (Pages::Of, version.0), // what came meanwhile is not older
                (Some(_), _) => (Pages::None, 0),
            };
        }
    }

    /// Others change this file while it is open, or may.
    pub(crate) fn others_change(&self, ino: InodeId) {
        let mut table = self.table();
        if table.known.contains_key(&ino) {
            table.ends.entry(ino).or_default();
        }
    }

    /// The kernel has made the file so long, unless it was longer.
    pub(crate) fn ends_at(&self, ino: InodeId, size: u64) {
        if let Some(end) = self.table().ends.get_mut(&ino) {
            end.at = size.max(end.at);
        }
    }

    /// The kernel is about to hear that the file is so long, and may listen.
    pub(crate) fn may_end_at(&self, ino: InodeId, size: u64) {
        if let Some(end) = self.table().ends.get_mut(&ino) {
            end.at = size.min(end.at);
        }
    }

    /// As [`Inodes::may_end_at`], by a read that ends there.
    pub(crate) fn is_shown_to_end_at(&self, ino: InodeId, size: u64) {
        if let Some(end) = self.table().ends.get_mut(&ino) {
            *end = End { at: size.min(end.at), shown: Some(Instant::now()) };
        }
    }

    /// When the kernel was last shown by a read where a file ends that others change.
    pub(crate) fn shown_end(&self, ino: InodeId) -> Option<Instant> {
        self.table().ends.get(&ino).and_then(|end| end.shown)
    }

    /// True if the kernel may take the file for shorter than this, even if it is told.
    pub(crate) fn may_end_before(&self, ino: InodeId, size: u64) -> bool {
        self.table().ends.get(&ino).is_some_and(|end| end.at < size)
    }

    /// True if the kernel's pages of the file are of this version.
    pub(crate) fn has_pages_of(&self, ino: InodeId, version: DataVersion) -> bool {
        let table = self.table();
        table.known.get(&ino).is_some_and(|known| (known.pages, known.number) == (Pages::Of, version.0))
    }

    /// So often changes that were decided here were lost. A version that was made by a lost one may be made once more by
    /// somebody else: what the kernel has of it is of no use.
    pub(crate) fn lost(&self, losses: u64) {
        let mut table = self.table();
        if std::mem::replace(&mut table.losses, losses) != losses {
            table.known.values_mut().filter(|known| known.pages != Pages::None).for_each(Known::spoil);
        }
    }

    /// What became of writes to a file. After an error its pages may show bytes that exist nowhere else.
    pub(crate) fn saved(&self, ino: InodeId, outcome: Result<(), Fault>) -> Result<(), Fault> {
        if outcome.is_err()
            && let Some(known) = self.table().known.get_mut(&ino)
        {
            known.spoil();
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

    const FILE: InodeId = InodeId(7);

    fn shown() -> Inodes {
        let inodes = Inodes::default();
        inodes.shown(&attr(FILE.0, 0o644));
        inodes
    }

    /// Changed by others at this version.
    fn others(version: u64) -> Versions {
        Versions { since: DataVersion(version), now: DataVersion(version) }
    }

    /// Opens it, asks through it, and reads. True if it kept pages.
    fn open(inodes: &Inodes, version: u64) -> bool {
        let kept = match inodes.opening(FILE, others(version)) {
            Opening::Keep => true,
            Opening::Drop(number) => {
                inodes.has_opened(FILE, number, DataVersion(version));
                false
            }
        };
        inodes.filled(FILE, DataVersion(version));
        kept
    }

    #[test]
    fn an_inode_is_forgotten_after_as_many_lookups_as_it_was_shown() {
        let inodes = shown();
        inodes.shown(&attr(7, 0o644));
        open(&inodes, 1);
        inodes.forget(FILE, 1);
        assert!(open(&inodes, 1), "still known");
        inodes.forget(FILE, 1);
        assert!(matches!(inodes.opening(FILE, others(1)), Opening::Drop(_)), "forgotten with its page version");
        assert!(inodes.table().known.is_empty());
    }

    #[test]
    fn pages_are_kept_only_at_the_same_version() {
        let inodes = shown();
        assert!(!inodes.has_older_pages(FILE, DataVersion(9)), "there are none");
        assert!(open(&inodes, 1) && open(&inodes, 1));
        assert!(!inodes.has_older_pages(FILE, DataVersion(1)) && inodes.has_older_pages(FILE, DataVersion(2)));
        assert!(!open(&inodes, 2));
        assert!(inodes.has_pages_of(FILE, DataVersion(2)));
    }

    /// Between the answer to an open and what is asked through it, the kernel has old pages.
    #[test]
    fn pages_are_dropped_when_the_kernel_asks_through_what_it_opened() {
        let inodes = shown();
        open(&inodes, 1);
        let [Opening::Drop(first), Opening::Drop(second)] = [2, 2].map(|v| inodes.opening(FILE, others(v))) else {
            panic!("they are of another version");
        };
        assert!(inodes.has_older_pages(FILE, DataVersion(1)), "as far as is known");
        inodes.has_opened(FILE, first, DataVersion(2));
        assert!(inodes.has_older_pages(FILE, DataVersion(2)), "not the last one");
        inodes.has_opened(FILE, second, DataVersion(2));
        assert!(inodes.has_pages_of(FILE, DataVersion(2)));
    }

    #[test]
    fn pages_are_older_until_all_are_dropped() {
        let inodes = shown();
        open(&inodes, 1);
        let begin = |version| inodes.begin_drop(FILE, DataVersion(version));
        assert_eq!([begin(1), begin(2), begin(2)], [Begin::Needless, Begin::Yours, Begin::Others]);
        assert!(!open(&inodes, 2), "they are not dropped yet");
        assert!(inodes.has_older_pages(FILE, DataVersion(0)));
        inodes.end_drop(FILE, Some(DataVersion(2)));
        assert!(inodes.has_older_pages(FILE, DataVersion(3)), "something was read meanwhile");
        assert_eq!(begin(3), Begin::Yours);
        inodes.end_drop(FILE, Some(DataVersion(3)));
        assert!(!inodes.has_older_pages(FILE, DataVersion(9)), "there are none");
        inodes.filled(FILE, DataVersion(3));
        assert_eq!(begin(4), Begin::Yours);
        inodes.saved(FILE, Err(Fault::new(Kind::NoSession, "lost"))).unwrap_err();
        inodes.filled(FILE, DataVersion(4));
        assert_eq!(begin(4), Begin::Others, "one at a time");
        inodes.end_drop(FILE, Some(DataVersion(4)));
        assert!(inodes.has_older_pages(FILE, DataVersion(4)), "written meanwhile, and not saved");
        assert_eq!(begin(4), Begin::Yours);
        inodes.end_drop(FILE, None);
        assert!(inodes.has_older_pages(FILE, DataVersion(4)));
        assert_eq!(inodes.begin_drop(InodeId(8), DataVersion(4)), Begin::Needless, "the kernel does not know it");
    }

    #[test]
    fn own_changes_leave_the_pages_what_they_are() {
        let inodes = shown();
        open(&inodes, 1);
        inodes.renew(FILE, Versions { since: DataVersion(1), now: DataVersion(4) });
        assert!(inodes.has_pages_of(FILE, DataVersion(4)));
        let own = |since, now| inodes.opening(FILE, Versions { since: DataVersion(since), now: DataVersion(now) });
        assert_eq!(own(4, 6), Opening::Keep);
        assert!(inodes.has_pages_of(FILE, DataVersion(6)));
        assert_ne!(own(7, 8), Opening::Keep);
    }

    #[test]
    fn an_end_is_certain_until_the_kernel_may_listen_to_another() {
        let inodes = shown();
        inodes.ends_at(FILE, 40);
        assert!(!inodes.may_end_before(FILE, 50), "nobody else changes it");
        inodes.others_change(FILE);
        assert!(inodes.may_end_before(FILE, 1) && !inodes.may_end_before(FILE, 0));
        inodes.ends_at(FILE, 40);
        inodes.others_change(FILE);
        assert!(!inodes.may_end_before(FILE, 40) && inodes.may_end_before(FILE, 41));
        inodes.may_end_at(FILE, 50);
        assert!(!inodes.may_end_before(FILE, 40));
        inodes.may_end_at(FILE, 2);
        inodes.ends_at(FILE, 1);
        assert!(!inodes.may_end_before(FILE, 2) && inodes.may_end_before(FILE, 3));
        inodes.forget(FILE, 1);
        inodes.others_change(FILE);
        assert!(inodes.table().ends.is_empty());
    }

    #[test]
    fn pages_are_not_kept_after_a_write_that_could_not_be_saved() {
        let inodes = shown();
        open(&inodes, 1);
        inodes.saved(FILE, Ok(())).unwrap();
        assert!(open(&inodes, 1));
        inodes.saved(FILE, Err(Fault::new(Kind::NoSession, "lost"))).unwrap_err();
        assert!(!open(&inodes, 1), "the version is the old one, the pages are not");
    }

    #[test]
    fn pages_are_not_kept_after_changes_were_lost() {
        let inodes = shown();
        open(&inodes, 2);
        inodes.lost(0);
        assert!(inodes.has_pages_of(FILE, DataVersion(2)));
        inodes.lost(1);
        assert!(!open(&inodes, 2), "another mount made that version");
        inodes.lost(1);
        assert!(open(&inodes, 2), "once");
    }

    #[test]
    fn setgid_without_group_execution_is_no_privilege() {
        assert_eq!(without_privilege(0o6755), 0o755);
        assert_eq!(without_privilege(0o2644), 0o2644);
        assert!(is_privileged(0o4600) && !is_privileged(0o1777));
    }
}
