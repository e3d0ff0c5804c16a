//! Names and inodes that go: unlink, rmdir, orphans, and taking large files apart in steps.

use super::access;
use super::command::{Done, Fail, refuse};
use super::extents::FileMap;
use super::rows::{Call, dir_counts, directory, find_inode, inode_of, need_entry, row};
use crate::store::keys::{self, INODE, ORPHAN, PURGE, XATTR};
use crate::store::values::{Body, Inode, Purge, Value};
use common::fault::Kind;
use common::id::{InodeId, SessionId};
use common::kv::{KvError, KvRead, prefix_range};
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, FileKind, Outcome};
use std::ops::Bound;

/// Extents that go with the command that removes a file; a file with more is purged in steps.
pub(super) const EXTENTS_AT_ONCE: u64 = 4096;

/// Removes a name of something that is no directory.
pub(super) fn unlink(call: &mut Call<'_, '_>, parent: InodeId, name: &Name, keep: bool) -> Result<Outcome, Fail> {
    let mut dir = directory(call.txn, parent)?;
    access::need(&dir, call.cred, ACCESS_EXEC)?;
    let entry = need_entry(call.txn, parent, name)?;
    let found = inode_of(call.txn, &entry)?;
    access::need_remove(&dir, &found, call.cred)?;
    if found.kind == FileKind::Dir {
        return Err(refuse(Kind::IsDir, "is a directory"));
    }
    call.remove_entry(parent, &mut dir, name, &entry);
    call.put_inode(parent, &dir);
    let nlink = drop_link(call, entry.ino, found, keep)?;
    Ok(Outcome::Removed { ino: entry.ino, nlink })
}

/// Removes an empty directory.
pub(super) fn rmdir(call: &mut Call<'_, '_>, parent: InodeId, name: &Name) -> Result<Outcome, Fail> {
    let mut dir = directory(call.txn, parent)?;
    access::need(&dir, call.cred, ACCESS_EXEC)?;
    let entry = need_entry(call.txn, parent, name)?;
    let mut found = inode_of(call.txn, &entry)?;
    access::need_remove(&dir, &found, call.cred)?;
    if found.kind != FileKind::Dir {
        return Err(refuse(Kind::NotDir, "is not a directory"));
    }
    need_empty(&mut found)?;
    call.remove_entry(parent, &mut dir, name, &entry);
    dir.nlink -= 1;
    call.put_inode(parent, &dir);
    free(call, entry.ino, &found)?;
    Ok(Outcome::Removed { ino: entry.ino, nlink: 0 })
}

/// # Errors
/// `NotEmpty` if the directory has entries.
pub(super) fn need_empty(dir: &mut Inode) -> Result<(), Fail> {
    if *dir_counts(dir).0 == 0 { Ok(()) } else { Err(refuse(Kind::NotEmpty, "directory is not empty")) }
}

/// One name less of something that is no directory: the remaining links. With the last one the inode goes, unless
/// `keep` makes it an orphan of this session.
pub(super) fn drop_link(call: &mut Call<'_, '_>, ino: InodeId, mut inode: Inode, keep: bool) -> Result<u32, Fail> {
    inode.nlink -= 1;
    inode.ctime = call.at;
    if inode.nlink == 0 && !keep {
        free(call, ino, &inode)?;
    } else {
        call.put_inode(ino, &inode);
        if inode.nlink == 0 {
            call.txn.put(ORPHAN, keys::orphan(call.session, ino), Vec::new());
        }
    }
    Ok(inode.nlink)
}

/// The session has no descriptor on this inode any more.
pub(super) fn release(call: &mut Call<'_, '_>, ino: InodeId) -> Result<Outcome, Fail> {
    if call.txn.get(ORPHAN, &keys::orphan(call.session, ino))?.is_some() {
        drop_orphan(call, call.session, ino)?;
    }
    Ok(Outcome::Done)
}

/// Removes an orphan and its inode.
pub(super) fn drop_orphan(call: &mut Call<'_, '_>, session: SessionId, ino: InodeId) -> Result<(), Fail> {
    call.txn.delete(ORPHAN, keys::orphan(session, ino));
    let broken = || KvError { doing: "read", message: format!("orphan {ino} has no inode") };
    let inode = find_inode(call.txn, ino)?.ok_or_else(broken)?;
    assert_eq!(inode.nlink, 0, "an orphan has no name: invariant 4");
    free(call, ino, &inode)
}

/// Removes an inode with all that belongs to it.
pub(super) fn free(call: &mut Call<'_, '_>, ino: InodeId, inode: &Inode) -> Result<(), Fail> {
    if inode.xattr_names > 0 {
        let prefix = prefix_range(&keys::inode(ino));
        let names =
            call.txn.scan(XATTR, prefix, false).map(|x| x.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
        for key in names {
            call.txn.delete(XATTR, key);
        }
    }
    if let Body::File { allocated, extents, data, .. } = &inode.body {
        call.counters.logical_bytes -= allocated;
        if *extents > 0 {
            drop_data(call, *data, *extents, inode.replicas)?;
        }
    }
    call.txn.delete(INODE, keys::inode(ino));
    call.counters.inodes -= 1;
    Ok(())
}

/// Drops all extents under a data id: at once if they are few, else by leaving them to [`purge`].
pub(super) fn drop_data(call: &mut Call<'_, '_>, data: u64, extents: u64, replicas: u8) -> Result<(), Fail> {
    if extents > EXTENTS_AT_ONCE {
        call.txn.put(PURGE, keys::purge(data), Purge { replicas }.encode());
        return Ok(());
    }
    let mut map = FileMap::new(data, replicas);
    map.remove_some(call.txn, usize::MAX)?;
    map.settle(call)
}

/// Takes up to `limit` extents of files that are gone apart, oldest file first.
pub(super) fn purge(call: &mut Call<'_, '_>, limit: u32) -> Result<Done, Fail> {
    let mut left = common::units::len_usize(limit.into());
    while left > 0 {
        let Some(data) = first_purge(call.txn)? else { break };
        let row = row::<Purge>(call.txn, PURGE, &keys::purge(data))?.expect("just found");
        let mut map = FileMap::new(data, row.replicas);
        let removed = map.remove_some(call.txn, left)?;
        map.settle(call)?;
        if removed < left {
            call.txn.delete(PURGE, keys::purge(data));
        }
        left -= removed.max(1).min(left); // an empty one costs a step too
    }
    Ok(Done::Purged { more: has_purge(call.txn)? })
}

fn first_purge(read: &dyn KvRead) -> Result<Option<u64>, KvError> {
    let found = read.scan(PURGE, (Bound::Unbounded, Bound::Unbounded), false).next().transpose()?;
    Ok(found.and_then(|(key, _)| keys::first_u64(&key)))
}

/// True if there is work for [`super::Command::Purge`].
pub fn has_purge(read: &dyn KvRead) -> Result<bool, KvError> {
    Ok(first_purge(read)?.is_some())
}
