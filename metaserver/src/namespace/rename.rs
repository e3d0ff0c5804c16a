//! Rename: replace, refuse to replace, exchange. The order of checks is Linux's (`fs/namei.c`, `do_renameat2`).

use super::access;
use super::command::{Fail, refuse};
use super::create::one_more;
use super::remove::{EXTENTS_AT_ONCE, drop_link, need_empty};
use super::rows::{Call, directory, entry, inode_of, need_entry, touch_dir};
use super::trash::bury_or_free;
use crate::store::values::{Body, Dentry, Inode};
use common::fault::Kind;
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, ACCESS_WRITE, FileKind, Outcome, RenameMode};

/// Directories on a path, at most, when a directory moves: ends a walk that would otherwise be without limit.
const DEPTH_MAX: usize = 1 << 16;

/// A name in a directory.
type Place<'a> = (InodeId, &'a Name);

/// One end of a rename.
struct End {
    entry: Dentry,
    inode: Inode,
}

impl End {
    fn is_dir(&self) -> bool {
        self.inode.kind == FileKind::Dir
    }
}

/// Moves the entry `from` to `to`.
pub(super) fn rename(
    call: &mut Call<'_, '_>,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
    keep: bool,
) -> Result<Outcome, Fail> {
    let from_dir = directory(call.txn, from.0)?;
    let to_dir = directory(call.txn, to.0)?;
    access::need(&from_dir, call.cred, ACCESS_EXEC)?;
    access::need(&to_dir, call.cred, ACCESS_EXEC)?;
    let source = end(call, need_entry(call.txn, from.0, from.1)?)?;
    let target = match (entry(call.txn, to.0, to.1)?, mode) {
        (Some(_), RenameMode::NoReplace) => return Err(refuse(Kind::Exists, "the target exists")),
        (None, RenameMode::Exchange) => return Err(refuse(Kind::NotFound, "nothing to exchange with")),
        (Some(found), _) => Some(end(call, found)?),
        (None, _) => None,
    };
    check_ancestry(call, from, to, &source, target.as_ref(), mode)?;
    if target.as_ref().is_some_and(|target| target.entry.ino == source.entry.ino) {
        return Ok(Outcome::Renamed { replaced: None }); // two names of one file: POSIX says do nothing
    }
    check_access(call, (&from_dir, &to_dir), from.0 != to.0, (&source, target.as_ref()), mode)?;
    match (target, mode) {
        (Some(target), RenameMode::Exchange) => exchange(call, (from, from_dir), (to, to_dir), source, target),
        (target, _) => replace(call, (from, from_dir), (to, to_dir), source, target, keep),
    }
}

fn end(call: &Call<'_, '_>, entry: Dentry) -> Result<End, Fail> {
    let inode = inode_of(call.txn, &entry)?;
    Ok(End { entry, inode })
}

/// No directory may come to lie below itself.
fn check_ancestry(
    call: &Call<'_, '_>,
    from: Place<'_>,
    to: Place<'_>,
    source: &End,
    target: Option<&End>,
    mode: RenameMode,
) -> Result<(), Fail> {
    if from.0 == to.0 {
        return Ok(()); // neither end is the directory that holds it
    }
    if source.is_dir() && is_at_or_above(call, source.entry.ino, to.0)? {
        return Err(refuse(Kind::Invalid, "a directory cannot move below itself"));
    }
    if let Some(target) = target.filter(|target| target.is_dir())
        && is_at_or_above(call, target.entry.ino, from.0)?
    {
        return Err(match mode {
            RenameMode::Exchange => refuse(Kind::Invalid, "a directory cannot move below itself"),
            _ => refuse(Kind::NotEmpty, "the target holds what is to replace it"),
        });
    }
    Ok(())
}

/// True if `upper` is `lower` or a directory on the way from it to the root.
fn is_at_or_above(call: &Call<'_, '_>, upper: InodeId, lower: InodeId) -> Result<bool, Fail> {
    let mut at = lower;
    for _ in 0..DEPTH_MAX {
        if at == upper {
            return Ok(true);
        }
        if at == InodeId::ROOT {
            return Ok(false);
        }
        match directory(call.txn, at)?.body {
            Body::Dir { parent, .. } => at = parent,
            _ => unreachable!("directory() returns directories"),
        }
    }
    Err(refuse(Kind::Loop, format!("more than {DEPTH_MAX} directories deep")))
}

fn check_access(
    call: &Call<'_, '_>,
    (from_dir, to_dir): (&Inode, &Inode),
    moves: bool,
    (source, target): (&End, Option<&End>),
    mode: RenameMode,
) -> Result<(), Fail> {
    access::need_remove(from_dir, &source.inode, call.cred)?;
    match target {
        None => access::need_add(to_dir, call.cred)?,
        Some(target) => access::need_remove(to_dir, &target.inode, call.cred)?,
    }
    if let Some(target) = target.filter(|_| mode != RenameMode::Exchange) {
        match (source.is_dir(), target.is_dir()) {
            (true, false) => return Err(refuse(Kind::NotDir, "a directory cannot replace something else")),
            (false, true) => return Err(refuse(Kind::IsDir, "only a directory can replace a directory")),
            _ => {}
        }
    }
    // A directory that moves has its `..` rewritten.
    for end in [Some(source), target.filter(|_| mode == RenameMode::Exchange)].into_iter().flatten() {
        if moves && end.is_dir() {
            access::need(&end.inode, call.cred, ACCESS_WRITE)?;
        }
    }
    Ok(())
}

/// Moves the entry, over the target if there is one. The target's place in listings is kept: a listing under way
/// sees the name once.
fn replace(
    call: &mut Call<'_, '_>,
    (from, mut from_dir): (Place<'_>, Inode),
    (to, mut to_dir): (Place<'_>, Inode),
    source: End,
    target: Option<End>,
    keep: bool,
) -> Result<Outcome, Fail> {
    let End { entry: moved, inode: mut moved_inode } = source;
    let is_dir = moved_inode.kind == FileKind::Dir;
    let mut replaced = None;
    let cookie = target.as_ref().map(|target| target.entry.cookie);
    if let Some(End { entry, inode: mut old }) = target {
        let nlink = if is_dir {
            need_empty(&mut old)?;
            bury_or_free(call, entry.ino, &old, to, EXTENTS_AT_ONCE)?;
            to_dir.nlink -= 1;
            0
        } else {
            drop_link(call, entry.ino, old, to, keep)?
        };
        replaced = Some((entry.ino, nlink));
    }
    if from.0 == to.0 {
        to_dir = put_moved(call, from, to, (&moved, cookie), to_dir);
    } else {
        call.remove_entry(from.0, &mut from_dir, from.1, &moved);
        match cookie {
            Some(cookie) => put_at(call, to, &moved, cookie, &mut to_dir),
            None => call.add_entry(to.0, &mut to_dir, to.1, moved.ino, moved.kind),
        }
        if is_dir {
            from_dir.nlink -= 1;
            to_dir.nlink = one_more(to_dir.nlink)?;
            set_parent(&mut moved_inode, to.0);
        }
        call.put_inode(from.0, &from_dir);
    }
    moved_inode.ctime = call.at;
    call.put_inode(moved.ino, &moved_inode);
    call.put_inode(to.0, &to_dir);
    Ok(Outcome::Renamed { replaced })
}

/// The same directory on both sides.
fn put_moved(
    call: &mut Call<'_, '_>,
    from: Place<'_>,
    to: Place<'_>,
    (moved, cookie): (&Dentry, Option<u64>),
    mut dir: Inode,
) -> Inode {
    call.remove_entry(from.0, &mut dir, from.1, moved);
    match cookie {
        Some(cookie) => put_at(call, to, moved, cookie, &mut dir),
        None => call.add_entry(to.0, &mut dir, to.1, moved.ino, moved.kind),
    }
    dir
}

/// Overwrites the entry that has this cookie.
fn put_at(call: &mut Call<'_, '_>, to: Place<'_>, moved: &Dentry, cookie: u64, dir: &mut Inode) {
    call.put_entry(to.0, to.1, Dentry { ino: moved.ino, kind: moved.kind, cookie });
    touch_dir(dir, call.at);
}

/// Swaps what two names lead to.
fn exchange(
    call: &mut Call<'_, '_>,
    (from, mut from_dir): (Place<'_>, Inode),
    (to, mut to_dir): (Place<'_>, Inode),
    mut source: End,
    mut target: End,
) -> Result<Outcome, Fail> {
    for (place, there, comes) in [(from, &source.entry, &target.entry), (to, &target.entry, &source.entry)] {
        call.put_entry(place.0, place.1, Dentry { ino: comes.ino, kind: comes.kind, cookie: there.cookie });
    }
    touch_dir(&mut from_dir, call.at);
    touch_dir(&mut to_dir, call.at);
    if from.0 != to.0 {
        if source.is_dir() {
            from_dir.nlink -= 1;
            to_dir.nlink = one_more(to_dir.nlink)?;
            set_parent(&mut source.inode, to.0);
        }
        if target.is_dir() {
            to_dir.nlink -= 1;
            from_dir.nlink = one_more(from_dir.nlink)?;
            set_parent(&mut target.inode, from.0);
        }
        call.put_inode(from.0, &from_dir);
    }
    call.put_inode(to.0, &to_dir);
    for end in [&mut source, &mut target] {
        end.inode.ctime = call.at;
        call.put_inode(end.entry.ino, &end.inode);
    }
    Ok(Outcome::Renamed { replaced: None })
}

fn set_parent(dir: &mut Inode, to: InodeId) {
    match &mut dir.body {
        Body::Dir { parent, .. } => *parent = to,
        _ => unreachable!("only directories have a parent"),
    }
}
