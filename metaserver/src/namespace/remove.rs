//! Names and inodes that go: unlink, rmdir, orphans, and taking large files apart in steps.

use super::access;
use super::command::{Done, Fail, refuse};
use super::extents::FileMap;
use super::lock;
use super::recount;
use super::rows::{Call, dir_counts, directory, find_inode, inode_of, need_entry, row};
use super::trash;
use crate::store::keys::{self, ATTEND, HOLDER, INODE, ORPHAN, PURGE, XATTR};
use crate::store::values::{Body, Inode, Purge, Value, damaged};
use common::fault::Kind;
use common::id::{InodeId, SessionId};
use common::kv::{KvError, KvRead, prefix_range};
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, FileKind, Outcome};
use std::ops::Bound;

/// Extents that go with the command that removes a file; a file with more is purged in steps.
pub(super) const EXTENTS_AT_ONCE: u64 = 4096;
/// The same for an orphan: one command may let go of many.
const ORPHAN_EXTENTS_AT_ONCE: u64 = 64;
/// Holds inodes without a name until it is known who has them open. No client has this number.
pub const UNASKED: SessionId = SessionId(0);

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
    let nlink = drop_link(call, entry.ino, found, (parent, name), keep)?;
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
    trash::bury_or_free(call, entry.ino, &found, (parent, name), EXTENTS_AT_ONCE)?;
    Ok(Outcome::Removed { ino: entry.ino, nlink: 0 })
}

/// # Errors
/// `NotEmpty` if the directory has entries.
pub(super) fn need_empty(dir: &mut Inode) -> Result<(), Fail> {
    if *dir_counts(dir).0 == 0 { Ok(()) } else { Err(refuse(Kind::NotEmpty, "directory is not empty")) }
}

/// One name less, this `place`, of something that is no directory: the remaining links. With the last one the inode goes,
/// to the trash or for good, unless somebody may have it open: this session, if `keep` says so, or others, who are asked.
pub(super) fn drop_link(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    mut inode: Inode,
    place: (InodeId, &Name),
    keep: bool,
) -> Result<u32, Fail> {
    inode.nlink -= 1;
    inode.ctime = call.at;
    let others = inode.nlink == 0 && inode.kind == FileKind::File && others_attend(call)?;
    if inode.nlink == 0 && !keep && !others {
        trash::bury_or_free(call, ino, &inode, place, EXTENTS_AT_ONCE)?;
        return Ok(0);
    }
    call.put_inode(ino, &inode);
    if inode.nlink == 0 {
        trash::note(call, ino, &inode, place)?;
    }
    if inode.nlink == 0 && keep {
        hold(call, call.session, ino);
    }
    if others {
        hold(call, UNASKED, ino);
    }
    Ok(inode.nlink)
}

/// True if a session other than the caller's says what it has open when it is asked.
fn others_attend(call: &Call<'_, '_>) -> Result<bool, KvError> {
    for found in call.txn.scan(ATTEND, (Bound::Unbounded, Bound::Unbounded), false).take(2) {
        if keys::first_session(&found?.0) != Some(call.session) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes that a session holds an inode without a name.
fn hold(call: &mut Call<'_, '_>, session: SessionId, ino: InodeId) {
    call.txn.put(ORPHAN, keys::orphan(session, ino), Vec::new());
    call.txn.put(HOLDER, keys::holder(ino, session), Vec::new());
}

fn is_held_by(call: &Call<'_, '_>, session: SessionId, ino: InodeId) -> Result<bool, KvError> {
    Ok(call.txn.get(ORPHAN, &keys::orphan(session, ino))?.is_some())
}

/// The session has no descriptor on this inode any more.
pub(super) fn release(call: &mut Call<'_, '_>, ino: InodeId) -> Result<Outcome, Fail> {
    if is_held_by(call, call.session, ino)? {
        let_go(call, call.session, ino)?;
    }
    Ok(Outcome::Done)
}

/// A session that holds an inode without a name lets go of it. The last one takes the inode along, to the trash or for good.
pub(super) fn let_go(call: &mut Call<'_, '_>, session: SessionId, ino: InodeId) -> Result<(), Fail> {
    call.txn.delete(ORPHAN, keys::orphan(session, ino));
    call.txn.delete(HOLDER, keys::holder(ino, session));
    if call.txn.scan(HOLDER, prefix_range(&keys::inode(ino)), false).next().transpose()?.is_some() {
        return Ok(());
    }
    let broken = || KvError { doing: "read", message: format!("orphan {ino} has no inode") };
    let inode = find_inode(call.txn, ino)?.ok_or_else(broken)?;
    assert_eq!(inode.nlink, 0, "an orphan has no name: invariant 4");
    trash::closed(call, ino, &inode, ORPHAN_EXTENTS_AT_ONCE)
}

/// What the leader was told of inodes without a name: who has them open, and who no longer has. News of what is gone by
/// now is passed over.
pub(super) fn settle(
    call: &mut Call<'_, '_>,
    held: &[(InodeId, Vec<SessionId>)],
    dropped: &[(SessionId, InodeId)],
) -> Result<Done, Fail> {
    for (ino, holders) in held {
        if !is_held_by(call, UNASKED, *ino)? {
            continue;
        }
        for session in holders {
            if super::session::is_open(call.txn, *session)? {
                hold(call, *session, *ino);
            }
        }
        let_go(call, UNASKED, *ino)?;
    }
    for (session, ino) in dropped {
        if is_held_by(call, *session, *ino)? {
            let_go(call, *session, *ino)?;
        }
    }
    Ok(Done::Settled)
}

/// A session and an inode that it is noted to hold.
pub type Noted = (SessionId, InodeId);

/// Inodes without a name: nobody was asked about the first ones; the others are noted for sessions, those `behind` a note
/// first. At most `limit` each.
pub fn orphans(read: &dyn KvRead, behind: Option<Noted>, limit: usize) -> Result<(Vec<InodeId>, Vec<Noted>), KvError> {
    let placed = |key: &[u8]| {
        let short = || damaged("orphan", "the key is too short");
        Ok((keys::first_session(key).ok_or_else(short)?, InodeId(keys::last_u64(key).ok_or_else(short)?)))
    };
    let first = prefix_range(&keys::session(UNASKED));
    let unasked = read.scan(ORPHAN, first.clone(), false).take(limit);
    let unasked = unasked.map(|found| placed(&found?.0).map(|(_, ino)| ino)).collect::<Result<_, KvError>>()?;
    let all = match first.1 {
        Bound::Excluded(end) => Bound::Included(end),
        other => other,
    };
    let notes = |from: Bound<Vec<u8>>| {
        let noted = read.scan(ORPHAN, (from, Bound::Unbounded), false).take(limit);
        noted.map(|found| placed(&found?.0)).collect::<Result<Vec<Noted>, KvError>>()
    };
    let rest = match behind {
        Some((session, ino)) => notes(Bound::Excluded(keys::orphan(session, ino)))?,
        None => Vec::new(),
    };
    Ok((unasked, if rest.is_empty() { notes(all)? } else { rest }))
}

/// The sessions that say what they have open when they are asked.
pub fn attending(read: &dyn KvRead) -> Result<Vec<SessionId>, KvError> {
    let all = read.scan(ATTEND, (Bound::Unbounded, Bound::Unbounded), false);
    let session = |key: &[u8]| keys::first_session(key).ok_or_else(|| damaged("attend", "the key is too short"));
    all.map(|found| session(&found?.0)).collect()
}

/// Removes an inode with all that belongs to it.
///
/// `at_once`: a file with more extents is taken apart in steps.
pub(super) fn free(call: &mut Call<'_, '_>, ino: InodeId, inode: &Inode, at_once: u64) -> Result<(), Fail> {
    if let Body::File { allocated, .. } = &inode.body {
        call.counters.logical_bytes -= allocated;
    }
    drop_contents(call, ino, inode, at_once)?;
    lock::forget(call, ino)?;
    call.txn.delete(INODE, keys::inode(ino));
    call.counters.inodes -= 1;
    Ok(())
}

/// Removes the extended attributes and extents of an inode. `at_once`: as above.
pub(super) fn drop_contents(call: &mut Call<'_, '_>, ino: InodeId, inode: &Inode, at_once: u64) -> Result<(), Fail> {
    if inode.xattr_names > 0 {
        let prefix = prefix_range(&keys::inode(ino));
        let names =
            call.txn.scan(XATTR, prefix, false).map(|x| x.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
        for key in names {
            call.txn.delete(XATTR, key);
        }
    }
    if let Body::File { extents, data, .. } = &inode.body
        && *extents > 0
    {
        drop_data(call, *data, *extents, inode.replicas, at_once)?;
    }
    Ok(())
}

/// Drops all extents under a data id: at once if they are few, else by leaving them to [`purge`].
pub(super) fn drop_data(
    call: &mut Call<'_, '_>,
    data: u64,
    extents: u64,
    replicas: u8,
    at_once: u64,
) -> Result<(), Fail> {
    if extents > at_once {
        call.txn.put(PURGE, keys::purge(data), Purge { replicas }.encode());
        return Ok(());
    }
    let mut map = FileMap::open(call.txn, data, replicas)?;
    map.remove_some(call.txn, usize::MAX)?;
    map.settle(call)
}

/// Takes up to `limit` extents of files that are gone apart, oldest file first; then counts others anew ([`recount`]).
pub(super) fn purge(call: &mut Call<'_, '_>, limit: u32) -> Result<Done, Fail> {
    let mut left = common::units::len_usize(limit.into());
    while left > 0 {
        let Some(data) = first_purge(call.txn)? else { break };
        let row = row::<Purge>(call.txn, PURGE, &keys::purge(data))?.expect("just found");
        let mut map = FileMap::open(call.txn, data, row.replicas)?;
        let removed = map.remove_some(call.txn, left)?;
        map.settle(call)?;
        if removed < left {
            call.txn.delete(PURGE, keys::purge(data));
        }
        left -= removed.max(1).min(left); // an empty one costs a step too
    }
    while left > 0 {
        let Some(counted) = recount::step(call, left)? else { break };
        left -= counted.min(left);
    }
    Ok(Done::Purged { more: has_purge(call.txn)? })
}

fn first_purge(read: &dyn KvRead) -> Result<Option<u64>, KvError> {
    let found = read.scan(PURGE, (Bound::Unbounded, Bound::Unbounded), false).next().transpose()?;
    Ok(found.and_then(|(key, _)| keys::first_u64(&key)))
}

/// True if there is work for [`super::Command::Purge`].
pub fn has_purge(read: &dyn KvRead) -> Result<bool, KvError> {
    Ok(first_purge(read)?.is_some() || recount::is_left(read)?)
}
