//! New names: files, directories, symlinks, pipes, sockets, devices, hard links.

use super::access;
use super::acl;
use super::command::{Fail, refuse};
use super::rows::{Call, directory, entry, inode, inode_of};
use crate::store::values::{Body, Dentry, Inode};
use common::fault::Kind;
use common::id::{DataVersion, InodeId};
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, FileKind, NewNode, Outcome};
use common::units::{LINK_MAX, SYMLINK_LEN_MAX};

/// What is to be made.
pub(super) struct New<'a> {
    pub(super) node: &'a NewNode,
    pub(super) mode: u32,
    /// Still to be applied to `mode`, where the directory has no default ACL.
    pub(super) umask: u32,
    pub(super) exclusive: bool,
    pub(super) access: u8,
}

/// Makes an entry and its inode; without `exclusive` an existing regular file is opened instead.
///
/// Checks in the order Linux makes them: search the directory, the name is taken, write the directory, the rest.
pub(super) fn create(call: &mut Call<'_, '_>, parent: InodeId, name: &Name, new: &New<'_>) -> Result<Outcome, Fail> {
    let mut dir = directory(call.txn, parent)?;
    access::need(&dir, call.cred, ACCESS_EXEC)?;
    if let Some(there) = entry(call.txn, parent, name)? {
        return open_existing(call, parent, &dir, &there, new);
    }
    access::need_add(&dir, call.cred)?;
    let ino = call.new_ino()?;
    let made = new_inode(call, parent, &dir, ino, new)?;
    call.put_inode(ino, &made);
    call.counters.inodes += 1;
    call.add_entry(parent, &mut dir, name, ino, made.kind);
    if made.kind == FileKind::Dir {
        dir.nlink = one_more(dir.nlink)?;
    }
    call.put_inode(parent, &dir);
    Ok(Outcome::Created { attr: made.attr(ino), new: true, parent: dir.attr(parent) })
}

fn open_existing(
    call: &Call<'_, '_>,
    parent: InodeId,
    dir: &Inode,
    there: &Dentry,
    new: &New<'_>,
) -> Result<Outcome, Fail> {
    if new.exclusive || *new.node != NewNode::File {
        return Err(refuse(Kind::Exists, "the name is taken"));
    }
    match there.kind {
        FileKind::File => {
            let found = inode_of(call.txn, there)?;
            access::need(&found, call.cred, new.access)?;
            Ok(Outcome::Created { attr: found.attr(there.ino), new: false, parent: dir.attr(parent) })
        }
        FileKind::Dir => Err(refuse(Kind::IsDir, "a directory has this name")),
        // The caller thought there was nothing: it follows the link or opens the device after another lookup.
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
            Err(refuse(Kind::Stale, "something that is no regular file has this name"))
        }
    }
}

fn new_inode(
    call: &mut Call<'_, '_>,
    parent: InodeId,
    dir: &Inode,
    ino: InodeId,
    new: &New<'_>,
) -> Result<Inode, Fail> {
    let (kind, body) = kind_and_body(call, parent, ino, new.node)?;
    let (mode, gid) = access::inherited(dir, kind, new.mode, call.cred);
    let mut made = Inode {
        kind,
        mode,
        uid: call.cred.uid,
        gid,
        nlink: if kind == FileKind::Dir { 2 } else { 1 },
        atime: call.at,
        mtime: call.at,
        ctime: call.at,
        chunk_size: dir.chunk_size,
        replicas: dir.replicas,
        xattr_names: 0,
        acls: None,
        body,
    };
    acl::inherit(dir, &mut made, new.umask);
    Ok(made)
}

fn kind_and_body(call: &Call<'_, '_>, parent: InodeId, ino: InodeId, node: &NewNode) -> Result<(FileKind, Body), Fail> {
    let device = |kind, rdev: u32| match access::is_root(call.cred) {
        true => Ok((kind, Body::Device { rdev })),
        false => Err(refuse(Kind::NotPermitted, "only root makes devices")),
    };
    match node {
        NewNode::File => {
            let body = Body::File { size: 0, allocated: 0, extents: 0, version: DataVersion(0), data: ino.0 };
            Ok((FileKind::File, body))
        }
        NewNode::Dir => Ok((FileKind::Dir, Body::Dir { parent, entries: 0, next_cookie: 1 })),
        NewNode::Symlink(target) if target.is_empty() => Err(refuse(Kind::NotFound, "empty symlink target")),
        NewNode::Symlink(target) if target.len() > SYMLINK_LEN_MAX => {
            Err(refuse(Kind::NameTooLong, format!("symlink target of {} bytes", target.len())))
        }
        NewNode::Symlink(target) if target.contains(&0) => Err(refuse(Kind::Invalid, "NUL in a symlink target")),
        NewNode::Symlink(target) => Ok((FileKind::Symlink, Body::Symlink { target: target.clone() })),
        NewNode::Fifo => Ok((FileKind::Fifo, Body::Plain)),
        NewNode::Socket => Ok((FileKind::Socket, Body::Plain)),
        NewNode::CharDevice(rdev) => device(FileKind::CharDevice, *rdev),
        NewNode::BlockDevice(rdev) => device(FileKind::BlockDevice, *rdev),
    }
}

/// A further name for an inode.
pub(super) fn link(call: &mut Call<'_, '_>, ino: InodeId, parent: InodeId, name: &Name) -> Result<Outcome, Fail> {
    let mut linked = inode(call.txn, ino)?;
    let mut dir = directory(call.txn, parent)?;
    access::need(&dir, call.cred, ACCESS_EXEC)?;
    if entry(call.txn, parent, name)?.is_some() {
        return Err(refuse(Kind::Exists, "the name is taken"));
    }
    access::need_add(&dir, call.cred)?;
    if linked.kind == FileKind::Dir {
        return Err(refuse(Kind::NotPermitted, "a directory has one name"));
    }
    if linked.nlink == 0 {
        return Err(refuse(Kind::NotFound, "the file has no name any more"));
    }
    if linked.nlink >= LINK_MAX {
        return Err(refuse(Kind::TooManyLinks, format!("{ino} has {LINK_MAX} links")));
    }
    linked.nlink += 1;
    linked.ctime = call.at;
    call.put_inode(ino, &linked);
    call.add_entry(parent, &mut dir, name, ino, linked.kind);
    call.put_inode(parent, &dir);
    Ok(Outcome::Attr(linked.attr(ino)))
}

/// One more subdirectory.
pub(super) fn one_more(nlink: u32) -> Result<u32, Fail> {
    nlink.checked_add(1).ok_or_else(|| refuse(Kind::TooManyLinks, "too many subdirectories"))
}
