//! POSIX permission bits, as Linux applies them: the rules that clients and metaservers must agree on. Root (uid 0) passes,
//! but for executing a file that nobody may execute. Access control lists are the metaservers' business.

use crate::proto::meta::{ACCESS_EXEC, Cred, FileKind};

/// Set-user-id bit.
pub const SETUID: u32 = 0o4000;
/// Set-group-id bit; of a directory: what is made in it gets its group.
pub const SETGID: u32 = 0o2000;
/// Sticky bit; of a directory: only owners remove entries.
pub const STICKY: u32 = 0o1000;
/// Execute bit of the group.
pub const GROUP_EXEC: u32 = 0o010;
/// Any execute bit.
const ANY_EXEC: u32 = 0o111;

/// What the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// True for root.
pub fn is_root(cred: &Cred) -> bool {
    cred.uid == 0
}

/// True for a member of the group.
pub fn in_group(cred: &Cred, gid: u32) -> bool {
    cred.gid == gid || cred.groups.contains(&gid)
}

impl Bits {
    /// True for the owner, and for root.
    pub fn is_owner(&self, cred: &Cred) -> bool {
        is_root(cred) || cred.uid == self.uid
    }

    /// True if the bits grant all of `want` (bits of `ACCESS_*`): the first class that fits decides.
    pub fn grant(&self, cred: &Cred, want: u8) -> bool {
        if is_root(cred) {
            let nobody_executes = self.kind != FileKind::Dir && self.mode & ANY_EXEC == 0;
            return want & ACCESS_EXEC == 0 || !nobody_executes;
        }
        let shift = match () {
            () if cred.uid == self.uid => 6,
            () if in_group(cred, self.gid) => 3,
            () => 0,
        };
        u32::from(want) & !((self.mode >> shift) & 0o7) == 0
    }

    /// True if the sticky bit of this directory keeps the caller from removing `entry`.
    pub fn sticks(&self, entry: &Bits, cred: &Cred) -> bool {
        self.mode & STICKY != 0 && !self.is_owner(cred) && !entry.is_owner(cred)
    }

    /// The mode after someone wrote to, truncated or (with `chown`) gave away a file: no set-id bit may outlive that.
    /// A set-group-id bit without group execute (once a lock mode) stays for members of the group.
    pub fn without_set_id(&self, cred: &Cred, chown: bool) -> u32 {
        if self.kind == FileKind::Dir || (is_root(cred) && !chown) {
            return self.mode;
        }
        let mode = self.mode & !SETUID;
        let member = is_root(cred) || in_group(cred, self.gid);
        let drop_setgid = mode & SETGID != 0 && (mode & GROUP_EXEC != 0 || !member);
        if drop_setgid { mode & !SETGID } else { mode }
    }

    /// Permission bits and group of something new in this directory, as Linux's `mkdir` and `inode_init_owner` make them.
    pub fn inherited(&self, kind: FileKind, asked: u32, cred: &Cred) -> (u32, u32) {
        let inherits_group = self.mode & SETGID != 0;
        let gid = if inherits_group { self.gid } else { cred.gid };
        let mode = match kind {
            FileKind::Symlink => 0o777,
            FileKind::Dir => (asked & (0o777 | STICKY)) | if inherits_group { SETGID } else { 0 },
            _ => {
                let foreign = inherits_group && !is_root(cred) && !in_group(cred, self.gid);
                let drop_setgid = foreign && asked & GROUP_EXEC != 0;
                asked & 0o7777 & if drop_setgid { !SETGID } else { !0 }
            }
        };
        (mode, gid)
    }
}
