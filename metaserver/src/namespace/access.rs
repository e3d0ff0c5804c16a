//! Who may do what: POSIX permission bits, as Linux applies them, and access control lists ([`super::acl`]). Root (uid 0)
//! passes, but for executing a file that nobody may execute.
//!
//! Left out: NFSv4 ACLs, capabilities other than "is root".

use super::acl;
use super::command::{Done, Fail, refuse};
use super::rows::{Call, find_inode, row};
use crate::store::keys::{self, CLUSTER};
use crate::store::values::{Inode, SquashRow, Value};
use common::fault::Kind;
use common::id::InodeId;
use common::kv::{KvError, KvRead};
use common::perm::Bits;
use common::proto::meta::{ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, Cred, FileKind};
use common::proto::squash::{SQUASH_ALLOWED_MAX, Squash};

pub(super) use common::perm::{SETGID, in_group, is_root};

/// What the rules look at.
fn bits(inode: &Inode) -> Bits {
    Bits { kind: inode.kind, mode: inode.mode, uid: inode.uid, gid: inode.gid }
}

pub(super) fn is_owner(inode: &Inode, cred: &Cred) -> bool {
    bits(inode).is_owner(cred)
}

/// True if the permission bits and the ACL grant all of `want` (bits of `ACCESS_*`).
pub(super) fn grants(inode: &Inode, cred: &Cred, want: u8) -> bool {
    match inode.access_acl().filter(|_| !is_owner(inode, cred)) {
        Some(entries) => acl::grants(entries, inode, cred, want),
        None => bits(inode).grant(cred, want),
    }
}

/// Whether mode and ACL let the caller read (or execute) or write a file now, or he owns it and could see to that. `None`: it
/// is not there, or neither file nor directory.
pub fn may_use(read: &dyn KvRead, ino: InodeId, cred: &Cred, access: u8) -> Result<Option<bool>, KvError> {
    let is_used = |found: &Inode| matches!(found.kind, FileKind::File | FileKind::Dir);
    let Some(found) = find_inode(read, ino)?.filter(is_used) else { return Ok(None) };
    let executes = found.kind == FileKind::File && access == ACCESS_READ && grants(&found, cred, ACCESS_EXEC);
    Ok(Some(is_owner(&found, cred) || grants(&found, cred, access) || executes))
}

/// # Errors
/// `Denied` if permission bits or the ACL refuse.
pub(super) fn need(inode: &Inode, cred: &Cred, want: u8) -> Result<(), Fail> {
    if grants(inode, cred, want) { Ok(()) } else { Err(refuse(Kind::Denied, "permission denied")) }
}

/// # Errors
/// `NotPermitted` unless the caller owns the inode or is root.
pub(super) fn need_owner(inode: &Inode, cred: &Cred) -> Result<(), Fail> {
    if is_owner(inode, cred) { Ok(()) } else { Err(refuse(Kind::NotPermitted, "only the owner may do this")) }
}

/// What it takes to add an entry to a directory.
pub(super) fn need_add(dir: &Inode, cred: &Cred) -> Result<(), Fail> {
    need(dir, cred, ACCESS_WRITE | ACCESS_EXEC)
}

/// What it takes to remove `entry` from a directory: write access, and under the sticky bit ownership of one of both.
pub(super) fn need_remove(dir: &Inode, entry: &Inode, cred: &Cred) -> Result<(), Fail> {
    need(dir, cred, ACCESS_WRITE | ACCESS_EXEC)?;
    if bits(dir).sticks(&bits(entry), cred) {
        return Err(refuse(Kind::NotPermitted, "the directory is sticky and neither it nor the entry is yours"));
    }
    Ok(())
}

/// The mode after someone wrote to, truncated or (with `chown`) gave away a file: no set-id bit may outlive that.
/// A set-group-id bit without group execute (once a lock mode) stays for members of the group.
pub(super) fn without_set_id(inode: &Inode, cred: &Cred, chown: bool) -> u32 {
    bits(inode).without_set_id(cred, chown)
}

/// Permission bits and group of something new in this directory.
pub(super) fn inherited(dir: &Inode, kind: FileKind, asked: u32, cred: &Cred) -> (u32, u32) {
    bits(dir).inherited(kind, asked, cred)
}

/// Who root of clients' machines is. `None`: root. Requests are made another user's before they come here.
pub fn squash(read: &dyn KvRead) -> Result<Option<Squash>, KvError> {
    let row: Option<SquashRow> = row(read, CLUSTER, keys::SQUASH)?;
    Ok(row.map(|row| row.0))
}

pub(super) fn set_squash(call: &mut Call<'_, '_>, squash: Option<&Squash>) -> Result<Done, Fail> {
    call.config()?;
    match squash {
        None => call.txn.delete(CLUSTER, keys::SQUASH),
        Some(squash) if squash.uid == 0 || squash.gid == 0 || squash.allowed.len() > SQUASH_ALLOWED_MAX => {
            return Err(refuse(Kind::Invalid, format!("ids above 0, at most {SQUASH_ALLOWED_MAX} machines")));
        }
        Some(squash) => call.txn.put(CLUSTER, keys::SQUASH, SquashRow(squash.clone()).encode()),
    }
    Ok(Done::Noted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::values::Body;
    use common::time::Time;

    fn file(mode: u32, uid: u32, gid: u32) -> Inode {
        let t = Time::default();
        Inode {
            kind: FileKind::File,
            mode,
            uid,
            gid,
            nlink: 1,
            atime: t,
            mtime: t,
            ctime: t,
            chunk_size: 1 << 20,
            replicas: 3,
            xattr_names: 0,
            acls: None,
            body: Body::Plain,
        }
    }

    fn cred(uid: u32, gid: u32, groups: &[u32]) -> Cred {
        Cred { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let inode = file(0o067, 5, 6);
        assert!(!grants(&inode, &cred(5, 6, &[]), ACCESS_READ), "the owner has less than others");
        assert!(grants(&inode, &cred(7, 6, &[]), ACCESS_READ | ACCESS_WRITE));
        assert!(!grants(&inode, &cred(7, 8, &[6]), ACCESS_EXEC), "a supplementary group counts as the group");
        assert!(grants(&inode, &cred(7, 8, &[9]), ACCESS_EXEC));
        assert!(grants(&inode, &cred(7, 8, &[]), 0));
    }

    #[test]
    fn root_executes_only_what_somebody_may() {
        assert!(grants(&file(0, 5, 5), &cred(0, 0, &[]), ACCESS_READ | ACCESS_WRITE));
        assert!(!grants(&file(0o666, 5, 5), &cred(0, 0, &[]), ACCESS_EXEC));
        assert!(grants(&file(0o001, 5, 5), &cred(0, 0, &[]), ACCESS_EXEC));
        let dir = Inode { kind: FileKind::Dir, ..file(0, 5, 5) };
        assert!(grants(&dir, &cred(0, 0, &[]), ACCESS_EXEC));
    }

    #[test]
    fn writing_clears_the_set_id_bits() {
        assert_eq!(without_set_id(&file(0o6755, 5, 6), &cred(5, 6, &[]), false), 0o755);
        assert_eq!(without_set_id(&file(0o6755, 5, 6), &cred(0, 0, &[]), false), 0o6755, "not for root");
        assert_eq!(without_set_id(&file(0o6755, 5, 6), &cred(0, 0, &[]), true), 0o755, "but for its chown");
        assert_eq!(without_set_id(&file(0o2744, 5, 6), &cred(5, 6, &[]), false), 0o2744);
        assert_eq!(without_set_id(&file(0o2744, 5, 6), &cred(5, 7, &[]), false), 0o744);
    }
}
