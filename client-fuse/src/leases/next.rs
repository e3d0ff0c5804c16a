//! Files that will probably be opened next: who opens the files of a directory one after another (`tar`, `cp -r`, `grep -r`) need
//! not ask the metaservers for each.
//!
//! The question that opens a file names others of its directory as well, and the answer has what they hold. How many, grows as the
//! guesses come true, as with reading ahead in a file: in the order in which the directory is listed; in short directories also
//! in any other, once some files of it were opened.

use super::inside::Inside;
use common::id::InodeId;
use common::proto::meta::{Attr, DirEntry, ExtentRun, FileKind, OPEN_AHEAD_MAX};
use std::collections::VecDeque;

/// Directories that are remembered.
const DIRS_MAX: usize = 8;
/// Files named with the first question that follows another one in order.
const AHEAD_MIN: usize = 4;
/// Questions are in order if not more files than this lie between them, beside those that were named.
const GAP_MAX: usize = 8;
/// A directory with no more entries than this is short.
const SHORT_MAX: usize = 256;
/// Files of a short directory that are asked for one by one, in no order, before others are named as well.
const MISSES: u32 = 3;

/// See the module: the directories, the one that was listed last in front.
#[derive(Debug, Default)]
pub(super) struct Opened(VecDeque<Dir>);

/// How the files of a directory are opened.
#[derive(Debug)]
struct Dir {
    ino: InodeId,
    /// The last file that was asked for, and where in the listing it is.
    asked: Option<InodeId>,
    last: Option<usize>,
    /// How many were named with it.
    named: usize,
    misses: u32,
}

impl Opened {
    /// A directory was listed, and the listing is kept.
    pub(super) fn listed(&mut self, ino: InodeId) {
        if self.0.iter().any(|dir| dir.ino == ino) {
            return;
        }
        self.0.truncate(DIRS_MAX - 1);
        self.0.push_front(Dir { ino, asked: None, last: None, named: 0, misses: 0 });
    }
}

impl Dir {
    /// The file at `at` of `len` is asked for: how many may be named as well.
    fn asks(&mut self, at: usize, len: usize) -> usize {
        self.misses += 1;
        let in_order = self.last.is_some_and(|last| last < at && at - last <= self.named + GAP_MAX);
        self.last = Some(at);
        self.named = match in_order {
            true => (self.named * 2).clamp(AHEAD_MIN, OPEN_AHEAD_MAX),
            false if len <= SHORT_MAX && self.misses > MISSES => OPEN_AHEAD_MAX,
            false => 0,
        };
        self.named
    }
}

impl Dir {
    /// Nothing could be told of the files that were named.
    fn came_to_nothing(&mut self) {
        (self.last, self.named, self.misses) = (None, 0, 0);
    }
}

impl Inside {
    /// A file is asked for: which others of its directory to name as well.
    pub(super) fn opens_next(&mut self, ino: InodeId) -> Vec<InodeId> {
        let mut opened = std::mem::take(&mut self.opened);
        let found = opened.0.iter_mut().find_map(|dir| {
            let kept = self.known.get(&dir.ino)?.listing.clone()?;
            let at = kept.entries.iter().position(|entry| entry.ino == ino)?;
            let named = dir.asks(at, kept.entries.len());
            dir.asked = Some(ino);
            let behind = kept.entries[at + 1..].iter().chain(&kept.entries[..at]);
            Some(behind.filter(|entry| self.is_worth_asking(entry)).map(|entry| entry.ino).take(named).collect())
        });
        self.opened = opened;
        found.unwrap_or_default()
    }

    fn is_worth_asking(&self, entry: &DirEntry) -> bool {
        let attr = self.known.get(&entry.ino).and_then(|known| known.attr.as_ref());
        let is_kept = attr.is_some_and(|attr| self.contents.has(entry.ino, attr.version));
        entry.kind == FileKind::File && !is_kept && !self.journal.is_pending(entry.ino)
    }

    /// What files hold that were named with this one: of use as long as they are leased and of this version. If nothing of them
    /// came, the guesses begin anew.
    pub(super) fn opened_next(&mut self, ino: InodeId, files: Vec<(Attr, ExtentRun)>) {
        if files.is_empty() {
            self.opened.0.iter_mut().filter(|dir| dir.asked == Some(ino)).for_each(Dir::came_to_nothing);
        }
        for (attr, run) in files {
            if self.known.contains_key(&attr.ino) {
                self.contents.keep(attr.ino, attr.version, run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> Dir {
        let mut opened = Opened::default();
        opened.listed(InodeId(1));
        opened.0.pop_front().unwrap()
    }

    #[test]
    fn files_opened_in_order_are_asked_for_in_ever_larger_groups() {
        let (mut dir, mut at, mut groups) = (dir(), 0, Vec::new());
        for _ in 0..8 {
            let named = dir.asks(at, 10_000);
            groups.push(named);
            at += named + 2; // one that is no file, or had to be asked for alone
        }
        assert_eq!(groups, [0, 4, 8, 16, 32, 64, 64, 64]);
        dir.came_to_nothing();
        assert_eq!((dir.asks(at, 10_000), dir.asks(at + 1, 10_000)), (0, AHEAD_MIN), "from the beginning");
        assert_eq!(dir.asks(5, 10_000), 0, "back");
        assert_eq!(dir.asks(9_000, 10_000), 0, "far away");
    }

    #[test]
    fn in_a_short_directory_the_order_does_not_matter() {
        let (mut long, mut short) = (dir(), dir());
        let order = [90, 20, 70, 5, 99];
        assert!(order.iter().all(|at| long.asks(*at, 10_000) == 0));
        let named: Vec<usize> = order.iter().map(|at| short.asks(*at, 100)).collect();
        assert_eq!(named, [0, 0, 0, OPEN_AHEAD_MAX, OPEN_AHEAD_MAX]);
    }

    #[test]
    fn few_directories_are_remembered() {
        let mut opened = Opened::default();
        for ino in (0..20).chain([19, 18]) {
            opened.listed(InodeId(ino));
        }
        let all: Vec<u64> = opened.0.iter().map(|dir| dir.ino.0).collect();
        assert_eq!(all, [19, 18, 17, 16, 15, 14, 13, 12]);
    }
}
