//! Attributes: mode, owner, size, times, chunk size, replicas.
//!
//! Left out: cutting a very large file (over 4096 extents) to a length above zero, or punching a hole over that many, in
//! steps; it is done in the one command, at some microseconds an extent. To zero, and removal, go in steps.

use super::access::{self, SETGID};
use super::command::{Fail, refuse};
use super::commit::{NANOS, not_a_file};
use super::extents::FileMap;
use super::recount;
use super::remove::{EXTENTS_AT_ONCE, drop_data};
use super::rows::{Call, find_inode, inode};
use crate::store::values::{Body, Inode};
use common::fault::Kind;
use common::id::InodeId;
use common::proto::meta::{ACCESS_WRITE, ACCESSED_MAX, FileKind, Outcome, SetAttr, SetTime};
use common::time::Time;
use common::units::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, FILE_SIZE_MAX, REPLICAS_MAX};

/// Changes attributes, all or none. The order of checks is Linux's (`setattr_prepare`).
pub(super) fn set(call: &mut Call<'_, '_>, ino: InodeId, set: &SetAttr) -> Result<Outcome, Fail> {
    let mut inode = inode(call.txn, ino)?;
    if *set == (SetAttr { opened: set.opened, ..SetAttr::default() }) {
        return Ok(Outcome::Attr(inode.attr(ino)));
    }
    check_values(set)?;
    check_owner(call, &inode, set)?;
    check_mode(call, &inode, set)?;
    check_times(call, &inode, set)?;
    if let Some(size) = set.size {
        if !matches!(inode.body, Body::File { .. }) {
            return Err(not_a_file(&inode));
        }
        if !set.opened {
            access::need(&inode, call.cred, ACCESS_WRITE)?;
        }
        truncate(call, &mut inode, size)?;
        inode.mode = access::without_set_id(&inode, call.cred, false);
        inode.mtime = call.at;
    }
    set_owner_and_mode(call, &mut inode, set);
    set_inherited(&mut inode, set)?;
    set_replicas(call, &mut inode, set)?;
    let time = |wanted: Option<SetTime>, now: Time, old: Time| match wanted {
        None => old,
        Some(SetTime::Now) => now,
        Some(SetTime::At(time)) => time,
    };
    inode.atime = time(set.atime, call.at, inode.atime);
    inode.mtime = time(set.mtime, call.at, inode.mtime);
    inode.ctime = call.at;
    call.put_inode(ino, &inode);
    Ok(Outcome::Attr(inode.attr(ino)))
}

/// Access times of files that were read. Anybody may say so of any file: it moves no other time, and none into the future.
pub(super) fn accessed(call: &mut Call<'_, '_>, files: &[(InodeId, Time)]) -> Result<Outcome, Fail> {
    if files.len() > ACCESSED_MAX || files.iter().any(|(_, at)| at.nanos >= NANOS) {
        return Err(refuse(Kind::Invalid, format!("at most {ACCESSED_MAX} files, with nanoseconds below a second")));
    }
    for (ino, at) in files {
        let Some(mut found) = find_inode(call.txn, *ino)? else { continue };
        let at = call.at.min(*at);
        if found.kind == FileKind::File && found.attr(*ino).is_access_due(at) {
            found.atime = at;
            call.put_inode(*ino, &found);
        }
    }
    Ok(Outcome::Done)
}

fn check_values(set: &SetAttr) -> Result<(), Fail> {
    let bad_time = |time: Option<SetTime>| matches!(time, Some(SetTime::At(time)) if time.nanos >= NANOS);
    if bad_time(set.atime) || bad_time(set.mtime) {
        return Err(refuse(Kind::Invalid, "nanoseconds above a second"));
    }
    if set.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(refuse(Kind::Invalid, "mode has other bits than permissions"));
    }
    if set.size.is_some_and(|size| size > FILE_SIZE_MAX) {
        return Err(refuse(Kind::TooBig, "beyond the largest file"));
    }
    let chunk_sizes = CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX;
    if set.chunk_size.is_some_and(|size| !size.is_power_of_two() || !chunk_sizes.contains(&size)) {
        return Err(refuse(Kind::Invalid, "chunk size is not a power of two from 64 KiB to 64 MiB"));
    }
    if set.replicas.is_some_and(|replicas| replicas == 0 || replicas > REPLICAS_MAX) {
        return Err(refuse(Kind::Invalid, format!("replicas are 1 to {REPLICAS_MAX}")));
    }
    Ok(())
}

/// Only root gives away; the owner may change the group to one of its own.
fn check_owner(call: &Call<'_, '_>, inode: &Inode, set: &SetAttr) -> Result<(), Fail> {
    if access::is_root(call.cred) {
        return Ok(());
    }
    let own = call.cred.uid == inode.uid;
    if set.uid.is_some_and(|uid| !own || uid != inode.uid) {
        return Err(refuse(Kind::NotPermitted, "only root gives files away"));
    }
    let allowed = |gid: u32| own && (gid == inode.gid || access::in_group(call.cred, gid));
    if set.gid.is_some_and(|gid| !allowed(gid)) {
        return Err(refuse(Kind::NotPermitted, "not the owner, or not a member of that group"));
    }
    Ok(())
}

fn check_mode(call: &Call<'_, '_>, inode: &Inode, set: &SetAttr) -> Result<(), Fail> {
    if set.mode.is_some() && inode.kind == FileKind::Symlink {
        return Err(refuse(Kind::Unsupported, "a symlink has no mode of its own"));
    }
    if set.mode.is_some() || set.chunk_size.is_some() || set.replicas.is_some() {
        access::need_owner(inode, call.cred)?;
    }
    Ok(())
}

/// Times of one's choice are for the owner; "now" also for who may write. What a truncation brings along is part of it.
fn check_times(call: &Call<'_, '_>, inode: &Inode, set: &SetAttr) -> Result<(), Fail> {
    match (set.atime, set.mtime) {
        (None, None) => Ok(()),
        (None | Some(SetTime::Now), None | Some(SetTime::Now)) if set.size.is_some() => Ok(()),
        (Some(SetTime::Now), Some(SetTime::Now)) if access::is_owner(inode, call.cred) => Ok(()),
        (Some(SetTime::Now), Some(SetTime::Now)) => access::need(inode, call.cred, ACCESS_WRITE),
        _ => access::need_owner(inode, call.cred),
    }
}

fn set_owner_and_mode(call: &Call<'_, '_>, inode: &mut Inode, set: &SetAttr) {
    let chown = set.uid.is_some() || set.gid.is_some();
    if let Some(mode) = set.mode {
        inode.mode = mode;
    }
    if chown {
        inode.mode = access::without_set_id(inode, call.cred, true);
    }
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    let member = access::is_root(call.cred) || access::in_group(call.cred, inode.gid);
    if set.mode.is_some() && !member {
        inode.mode &= !SETGID;
    }
}

fn set_inherited(inode: &mut Inode, set: &SetAttr) -> Result<(), Fail> {
    if let Some(chunk_size) = set.chunk_size {
        if !matches!(inode.kind, FileKind::File | FileKind::Dir) {
            return Err(refuse(Kind::Unsupported, "only files and directories have a chunk size"));
        }
        inode.chunk_size = chunk_size;
    }
    Ok(())
}

/// What is new in a directory will have so many copies. The chunks of a file are counted for that from now on: the
/// chunkservers make copies that are missing by then, and drop those that are too many.
fn set_replicas(call: &mut Call<'_, '_>, inode: &mut Inode, set: &SetAttr) -> Result<(), Fail> {
    let Some(replicas) = set.replicas else { return Ok(()) };
    match inode.body {
        Body::Dir { .. } => {}
        Body::File { data, extents, .. } => recount::begin(call, data, extents, inode.replicas, replicas)?,
        Body::Symlink { .. } | Body::Device { .. } | Body::Plain => {
            return Err(refuse(Kind::Unsupported, "only files and directories have a replica count"));
        }
    }
    inode.replicas = replicas;
    Ok(())
}

/// Sets the length of a file; what lies behind is gone.
fn truncate(call: &mut Call<'_, '_>, inode: &mut Inode, new_size: u64) -> Result<(), Fail> {
    let replicas = inode.replicas;
    let Body::File { size, allocated, extents, version, data } = &mut inode.body else {
        unreachable!("the caller has checked that it is a file")
    };
    if new_size == *size {
        return Ok(());
    }
    version.0 += 1;
    if new_size == 0 && *extents > EXTENTS_AT_ONCE {
        call.counters.logical_bytes -= *allocated;
        drop_data(call, *data, *extents, replicas, EXTENTS_AT_ONCE)?;
        (*size, *allocated, *extents, *data) = (0, 0, 0, call.next_ino());
        return Ok(());
    }
    if new_size < *size && *extents > 0 {
        let mut map = FileMap::open(call.txn, *data, replicas)?;
        map.punch(call.txn, new_size, *size)?;
        map.settle_into(call, extents, allocated)?;
    }
    *size = new_size;
    Ok(())
}
