//! What files hold, as it came with their leases or was decided here: the bytes of small ones, and where the chunks of others
//! are. Enough to open them without asking.

use common::id::{DataVersion, InodeId};
use common::proto::meta::{Commit, Extent, ExtentRun, Source};
use common::units::len_usize;
use std::collections::{HashMap, VecDeque};

/// Bytes of contents kept; beyond it the oldest go.
const BYTES_MAX: usize = 64 << 20;
/// A file that grows here is kept up to this many bytes: each growth copies what is known of it.
const GROWN_MAX: u64 = 1 << 20;
/// What an entry costs beside its extents, and each of those beside its bytes, about.
const ENTRY_COST: usize = 160;
const EXTENT_COST: usize = 160;

/// See the module. An entry is of use only while the file's attributes are certain and of the same version.
#[derive(Debug, Default)]
pub(super) struct Contents {
    files: HashMap<InodeId, (DataVersion, ExtentRun)>,
    /// In the order in which they came; what was forgotten since is passed over.
    order: VecDeque<InodeId>,
    bytes: usize,
}

fn cost(run: &ExtentRun) -> usize {
    ENTRY_COST + run.extents.iter().map(|extent| EXTENT_COST + len_usize(extent.inline_len())).sum::<usize>()
}

impl Contents {
    pub(super) fn keep(&mut self, ino: InodeId, version: DataVersion, run: ExtentRun) {
        self.bytes += cost(&run);
        match self.files.insert(ino, (version, run)) {
            Some((_, before)) => self.bytes -= cost(&before),
            None => self.order.push_back(ino),
        }
        while self.bytes > BYTES_MAX || self.order.len() > 2 * self.files.len() + 16 {
            let Some(oldest) = self.order.pop_front() else { return };
            self.forget(oldest);
        }
    }

    /// What the file holds in this version.
    pub(super) fn get(&self, ino: InodeId, version: DataVersion) -> Option<ExtentRun> {
        let (of, run) = self.files.get(&ino)?;
        (*of == version).then(|| run.clone())
    }

    /// Whether that is known.
    pub(super) fn has(&self, ino: InodeId, version: DataVersion) -> bool {
        self.files.get(&ino).is_some_and(|(of, _)| *of == version)
    }

    pub(super) fn forget(&mut self, ino: InodeId) {
        if let Some((_, run)) = self.files.remove(&ino) {
            self.bytes -= cost(&run);
        }
    }

    /// A file was made here, and empty: it has this version.
    pub(super) fn made(&mut self, ino: InodeId, version: DataVersion) {
        self.keep(ino, version, ExtentRun { extents: Vec::new(), covered: u64::MAX });
    }

    /// Bytes were put behind all that a file had in version `before`, from `offset` on.
    pub(super) fn grown(&mut self, (before, after): (DataVersion, DataVersion), commit: &Commit, offset: u64) {
        let Some(mut run) = self.get(commit.ino, before) else { return };
        for edit in &commit.edits {
            let Source::Inline { .. } = edit.data else { return self.forget(commit.ino) };
            let (at, len, data) = (offset + edit.at, edit.len, edit.data.clone());
            run.extents.push(Extent { at, len, data, chunk_len: 0, token: Default::default(), holders: Vec::new() });
        }
        let whole: u64 = run.extents.iter().map(Extent::inline_len).sum();
        match whole <= GROWN_MAX {
            true => self.keep(commit.ino, after, run),
            false => self.forget(commit.ino),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::ChunkId;
    use common::units::len_u64;

    fn run(len: usize) -> ExtentRun {
        let data = Source::Inline { id: ChunkId([0; 32]), offset: 0, bytes: vec![0; len].into() };
        let extent =
            Extent { at: 0, len: len_u64(len), data, chunk_len: 0, token: Default::default(), holders: Vec::new() };
        ExtentRun { extents: vec![extent], covered: u64::MAX }
    }

    #[test]
    fn only_the_version_that_is_asked_for_is_found() {
        let mut contents = Contents::default();
        contents.keep(InodeId(5), DataVersion(2), run(10));
        assert!(
            contents.get(InodeId(5), DataVersion(2)).is_some() && contents.get(InodeId(5), DataVersion(3)).is_none()
        );
        contents.forget(InodeId(5));
        assert!(contents.get(InodeId(5), DataVersion(2)).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go() {
        let mut contents = Contents::default();
        for ino in 0..20_000 {
            contents.keep(InodeId(ino), DataVersion(1), run(4096));
            contents.keep(InodeId(7), DataVersion(ino), run(1));
            assert!(contents.bytes <= BYTES_MAX && contents.order.len() <= 2 * contents.files.len() + 16);
        }
        assert!(contents.get(InodeId(0), DataVersion(1)).is_none());
        assert!(contents.get(InodeId(19_999), DataVersion(1)).is_some());
        for ino in 0..20_000 {
            contents.forget(InodeId(ino));
        }
        assert_eq!(contents.bytes, 0);
    }
}
