//! A whole path in one call, following symlinks.

use super::access;
use super::command::{Fail, refuse};
use super::query::parent_of;
use super::rows::{inode, inode_of, need_entry};
use crate::store::values::{Body, Inode};
use common::fault::Kind;
use common::id::InodeId;
use common::kv::KvRead;
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, Answer, Cred, FileKind};
use std::collections::VecDeque;

/// Symlinks followed on one path, at most (Linux `MAXSYMLINKS`).
const SYMLINKS_MAX: usize = 40;
/// The longest path, in bytes; also of what is left of it after a symlink was put in.
const PATH_LEN_MAX: usize = 4096;

/// Where a walk stands.
struct Position {
    ino: InodeId,
    inode: Inode,
    /// The directory it was found in.
    parent: InodeId,
}

/// Walks `path` from `from`. With a trailing `/` the end must be a directory, and a symlink there is followed.
pub(super) fn walk(read: &dyn KvRead, cred: &Cred, from: InodeId, path: &[u8], follow: bool) -> Result<Answer, Fail> {
    need_path_len(path.len())?;
    let want_dir = path.ends_with(b"/");
    let mut left = components(path);
    let mut at = start(read, if path.starts_with(b"/") { InodeId::ROOT } else { from })?;
    let mut symlinks = 0;
    while let Some(component) = left.pop_front() {
        if at.inode.kind != FileKind::Dir {
            return Err(refuse(Kind::NotDir, "a part of the path is not a directory"));
        }
        access::need(&at.inode, cred, ACCESS_EXEC)?;
        if component == b".." {
            at = start(read, parent_of(&at.inode, at.ino))?;
            continue;
        }
        let entry = need_entry(read, at.ino, &Name::new(component).map_err(common::fault::Fault::from)?)?;
        let inode = inode_of(read, &entry)?;
        let is_end = left.is_empty() && !want_dir;
        match &inode.body {
            Body::Symlink { target } if !is_end || follow => {
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    return Err(refuse(Kind::Loop, format!("more than {SYMLINKS_MAX} symlinks")));
                }
                left = spliced(target, left)?;
                if target.starts_with(b"/") {
                    at = start(read, InodeId::ROOT)?;
                }
            }
            _ => at = Position { ino: entry.ino, inode, parent: at.ino },
        }
    }
    if want_dir && at.inode.kind != FileKind::Dir {
        return Err(refuse(Kind::NotDir, "is not a directory"));
    }
    Ok(Answer::Walked { attr: at.inode.attr(at.ino), parent: at.parent })
}

/// A place known by its number.
fn start(read: &dyn KvRead, ino: InodeId) -> Result<Position, Fail> {
    let found = inode(read, ino)?;
    let parent = parent_of(&found, ino);
    Ok(Position { ino, inode: found, parent })
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// A symlink's target in front of what is left.
fn spliced(target: &[u8], left: VecDeque<Vec<u8>>) -> Result<VecDeque<Vec<u8>>, Fail> {
    let mut all = components(target);
    all.extend(left);
    need_path_len(all.iter().map(|part| part.len() + 1).sum())?;
    Ok(all)
}

fn need_path_len(len: usize) -> Result<(), Fail> {
    if len > PATH_LEN_MAX { Err(refuse(Kind::NameTooLong, "the path is too long")) } else { Ok(()) }
}
