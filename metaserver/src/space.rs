//! Room on the disks of the metaservers. A full disk under a Raft log stops a metaserver, and then not even removals can make
//! room; so the last of it is kept for what frees space.
//!
//! | free bytes under `data_dir` | what happens |
//! | --- | --- |
//! | at least `reserve_bytes` | everything |
//! | less (*tight*) | logged; see below. Until it is `reserve_bytes` and an eighth more |
//! | less than [`BALLAST_LEN`] | the ballast file goes, so that the log and the store can be written on |
//!
//! While a metaserver is tight and fewer than a majority have room, the leader refuses with `NoSpace` what makes the metadata grow
//! ([`grows`]); reads, removals, truncations and the ends of sessions go on. (One that does not answer is down, not full: without a
//! tight one among them nothing is refused here.) One tight metaserver of three is no reason to:
//! when its disk is full in the end it stops, as if it had failed, and says so long before.
//!
//! The ballast is a file of allocated blocks: other programs on that file system cannot take what it holds. It is made when
//! there is room for it beyond the reserve.

use common::disk::Disk;
use common::proto::meta::{Op, Source};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Between two looks at the disk.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Length of the ballast file, in bytes. For scale: a removal takes about 200 bytes of log.
pub(crate) const BALLAST_LEN: u64 = 64 << 20;
/// Its name in the data directory.
const BALLAST: &str = "ballast";

/// What is known of the room on this disk and, while it leads, on the others'.
#[derive(Debug, Default)]
pub(crate) struct Space {
    now: Mutex<Now>,
}

#[derive(Clone, Debug, Default)]
struct Now {
    tight: bool,
    free: u64,
    /// What the other voters said. `None`: they were not asked yet.
    others: Option<Others>,
}

/// What the other voters said when they were asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Others {
    /// So many have room,
    pub(crate) with_room: usize,
    /// so many have none;
    pub(crate) tight: usize,
    /// and there are so many voters, with this one and those that did not answer.
    pub(crate) voters: usize,
}

impl Space {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("no panic holds this lock")
    }

    /// True if this disk has room.
    pub(crate) fn has_room(&self) -> bool {
        !self.now().tight
    }

    /// What the last round among the other voters gave.
    pub(crate) fn heard(&self, others: Others) {
        self.now().others = Some(others);
    }

    /// Not the leader any more: what the others said is no longer asked for.
    pub(crate) fn forget_others(&self) {
        self.now().others = None;
    }

    /// This one, and what others said.
    fn all(&self) -> Others {
        let now = self.now().clone();
        let Others { with_room, tight, voters } = now.others.unwrap_or(Others { with_room: 0, tight: 0, voters: 1 });
        Others { with_room: with_room + usize::from(!now.tight), tight: tight + usize::from(now.tight), voters }
    }

    /// How many voters have no room, of those that answer.
    pub(crate) fn tight(&self) -> usize {
        self.all().tight
    }

    /// Why what grows is refused now, if it is.
    pub(crate) fn refusal(&self) -> Option<String> {
        let Others { with_room, tight, voters } = self.all();
        (tight > 0 && with_room < majority(voters)).then(|| {
            format!("{with_room} of {voters} metaservers have room on their disks, {} are needed", majority(voters))
        })
    }

    /// Looks at the disk, drops or makes the ballast. Blocks. True if it has become tight or has room again.
    pub(crate) fn look(&self, disk: &dyn Disk, dir: &Path, reserve: u64) -> io::Result<bool> {
        let (_, free) = disk.space(dir)?;
        let ballast = dir.join(BALLAST);
        let there = disk.exists(&ballast);
        if there && free < BALLAST_LEN {
            drop_ballast(disk, dir);
        } else if !there && reserve > 0 && free >= with_margin(reserve).saturating_add(2 * BALLAST_LEN) {
            make_ballast(disk, dir, &ballast)?;
        }
        let mut now = self.now();
        let tight = is_tight(now.tight, free, reserve);
        let changed = tight != now.tight;
        (now.tight, now.free) = (tight, free);
        Ok(changed)
    }

    /// Free bytes at the last look.
    pub(crate) fn free(&self) -> u64 {
        self.now().free
    }
}

/// Before the store is written on: gives up the ballast if it may be needed. The store does not survive a write that finds no room,
/// and a disk may fill up between two looks. Blocks.
pub(crate) fn make_room(disk: &dyn Disk, dir: &Path) {
    if disk.space(dir).is_ok_and(|(_, free)| free < BALLAST_LEN) {
        drop_ballast(disk, dir);
    }
}

/// Gives the ballast's blocks to whoever needs them. True if it was there.
pub(crate) fn drop_ballast(disk: &dyn Disk, dir: &Path) -> bool {
    let ballast = dir.join(BALLAST);
    if !disk.exists(&ballast) {
        return false;
    }
    match disk.remove(&ballast) {
        Ok(()) => tracing::error!(dir = %dir.display(), "the disk is full: the ballast is given up"),
        Err(error) => tracing::error!(dir = %dir.display(), %error, "remove the ballast"),
    }
    true
}

fn make_ballast(disk: &dyn Disk, dir: &Path, path: &Path) -> io::Result<()> {
    let file = disk.create(path)?;
    if let Err(error) = file.reserve(0, BALLAST_LEN) {
        disk.remove(path)?;
        return Err(error);
    }
    disk.sync_dir(dir)
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Bytes free from which a tight disk has room again.
fn with_margin(reserve: u64) -> u64 {
    reserve.saturating_add(reserve / 8)
}

/// Whether a disk is tight that was (`was`) or was not.
fn is_tight(was: bool, free: u64, reserve: u64) -> bool {
    free < if was { with_margin(reserve) } else { reserve }
}

/// Whether an operation makes the metadata grow. What frees space, ends something, or leaves the size as it is does not;
/// nor does a session, without which nothing can be removed.
pub(crate) fn grows(op: &Op) -> bool {
    match op {
        Op::Create { .. } | Op::CreateUnmasked { .. } | Op::Link { .. } | Op::SetXattr { .. } | Op::Clone(_) => true,
        Op::Reserve { .. } | Op::Undelete { .. } => true,
        Op::Commit(commit) => commit.edits.iter().any(|edit| !matches!(edit.data, Source::Hole)),
        Op::OpenSession { .. }
        | Op::OpenAttending { .. }
        | Op::Lock(_)
        | Op::CancelLock { .. }
        | Op::HaveLocks { .. }
        | Op::CloseSession
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::SetAttr { .. }
        | Op::RemoveXattr { .. }
        | Op::Release { .. }
        | Op::Accessed { .. }
        | Op::Batch(_) => false, // it was answered for: there is no refusing it
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::disk::RealDisk;

    #[test]
    fn what_grows_is_refused_while_fewer_than_a_majority_have_room() {
        // This one's state, then all voters': `r` has room, `t` is tight, `-` does not answer.
        for (voters, refused) in [
            ("r", false),
            ("t", true),
            ("rrr", false),
            ("rrt", false),
            ("rtt", true),
            ("trr", false), // it may stop, the others go on
            ("trt", true),
            ("r--", false), // down is not full
            ("rr-", false),
            ("rt-", true),
            ("t--", true),
            ("ttrrr", false),
            ("tttrr", true),
            ("rt--r", true),
            ("rr--r", false),
        ] {
            let count = |what: char| voters[1..].chars().filter(|c| *c == what).count();
            let others = Others { with_room: count('r'), tight: count('t'), voters: voters.len() };
            let space = Space::default();
            *space.now() = Now { tight: voters.starts_with('t'), free: 0, others: Some(others) };
            assert_eq!(space.refusal().is_some(), refused, "{voters}");
        }
        let space = Space::default();
        assert_eq!(space.refusal(), None, "nobody was asked yet");
    }

    #[test]
    fn a_disk_is_tight_below_the_reserve_until_there_is_clearly_more() {
        for (was, free, tight) in [(false, 800, false), (false, 799, true), (true, 899, true), (true, 900, false)] {
            assert_eq!(is_tight(was, free, 800), tight, "{was} {free}");
        }
        assert!(!is_tight(false, 0, 0), "no reserve, no policy");
    }

    #[test]
    fn the_ballast_holds_blocks_while_there_is_room_and_none_is_made_without_a_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::default();
        let ballast = dir.path().join(BALLAST);
        space.look(&RealDisk, dir.path(), 0).unwrap();
        assert!(!ballast.exists() && space.has_room());
        assert!(space.look(&RealDisk, dir.path(), u64::MAX).unwrap(), "less is free than that");
        assert!(!ballast.exists() && !space.has_room());
        assert!(space.look(&RealDisk, dir.path(), 1).unwrap());
        use std::os::unix::fs::MetadataExt;
        assert!(ballast.metadata().unwrap().blocks() * 512 >= BALLAST_LEN);
    }
}
