//! Attributes and times between the kernel's words and ours.

use common::id::InodeId;
use common::proto::meta::{Attr, FileKind, NewNode, SetTime};
use common::time::Time;
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `stat` says a good transfer size is, in bytes. The kernel makes its own block size of it: kept at a page.
const BLOCK_SIZE: u32 = 4096;
/// The unit of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// An inode as the kernel wants it.
pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated.div_ceil(STAT_BLOCK),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.permissions()).expect("twelve bits"),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A kind of inode as the kernel wants it.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What `mknod(2)` asks for: the kind is in the mode. `None`: no kind that can be made.
pub(crate) fn new_node(mode: u32, rdev: u32) -> Option<NewNode> {
    use nix::sys::stat::SFlag;
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Some(NewNode::File),
        SFlag::S_IFIFO => Some(NewNode::Fifo),
        SFlag::S_IFSOCK => Some(NewNode::Socket),
        SFlag::S_IFCHR => Some(NewNode::CharDevice(rdev)),
        SFlag::S_IFBLK => Some(NewNode::BlockDevice(rdev)),
        _ => None,
    }
}

/// Our inode number.
pub(crate) fn ino(number: INodeNo) -> InodeId {
    InodeId(number.0)
}

/// A time to set.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(our_time(time)),
    }
}

/// A time as the standard library has it; times it cannot hold become 1970.
pub(crate) fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    second.and_then(|second| second.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// Before 1970 `fuser` 0.18 makes of the kernel's (-6 s, 0.5 s) the time 6.5 s before: undone here.
fn our_time(time: SystemTime) -> Time {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: seconds(since), nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { secs: -seconds(before), nanos: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_through_the_kernel_and_back() {
        for (secs, nanos) in [(0, 0), (5, 999_999_999), (-1, 0), (-1, 1), (-5, 500_000_000), (i64::MAX / 4, 7)] {
            let whole = Duration::new(secs.unsigned_abs(), nanos);
            let from_fuser = if secs >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
            assert_eq!(our_time(from_fuser), Time { secs, nanos });
        }
        assert_eq!(system_time(Time { secs: -6, nanos: 500_000_000 }), UNIX_EPOCH - Duration::from_millis(5500));
        let latest = system_time(Time { secs: i64::MAX, nanos: 999_999_999 });
        assert!(system_time(Time { secs: i64::MIN, nanos: 0 }) < latest, "the ends of the range are no panic");
    }

    #[test]
    fn mknod_knows_every_kind_but_directories() {
        assert_eq!(new_node(0o100_644, 0), Some(NewNode::File));
        assert_eq!(new_node(0o060_600, 7), Some(NewNode::BlockDevice(7)));
        assert_eq!(new_node(0o040_755, 0), None);
    }
}
