//! Access control lists: what `acl(5)` says, in the bytes that Linux has for them (`system.posix_acl_*`, version 2).
//!
//! | at | len | what, little-endian |
//! | --- | --- | --- |
//! | 0 | 4 | version: 2 |
//! | 4 + 8n | 2 | tag of entry n: 1 owner, 2 user, 4 owning group, 8 group, 16 mask, 32 others; in this order |
//! | 6 + 8n | 2 | permissions: 4 read, 2 write, 1 execute |
//! | 8 + 8n | 4 | of a user or group its id, else all ones |
//!
//! One difference to Linux' own check: it asks no ACL whose mask is empty and goes by the mode, so that a named user gets
//! what others have. Here such a user has nothing, as `acl(5)` says.

use super::access::{self, SETGID};
use super::command::{Fail, refuse};
use super::rows::Call;
use super::xattr::{need_names_fit, no_data};
use crate::store::acl::{Acl, Entries};
use crate::store::values::Inode;
use common::fault::Kind;
use common::id::InodeId;
use common::proto::meta::{Cred, FileKind, Outcome, XattrMode};
use std::collections::BTreeMap;

/// The most entries of one ACL: the kernel reads no more of a FUSE file system (a page).
pub(super) const ENTRIES_MAX: usize = 511;
const VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;
const OWNER: u16 = 1;
const USER: u16 = 2;
const OWNING_GROUP: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHERS: u16 = 32;

/// Which ACL of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Who may use it.
    Access,
    /// What new entries of a directory inherit.
    Default,
}

/// Their names as attributes.
pub(super) const NAMES: [(Which, &[u8]); 2] =
    [(Which::Access, b"system.posix_acl_access"), (Which::Default, b"system.posix_acl_default")];

impl Which {
    /// The ACL that is the attribute of this name.
    pub(super) fn named(name: &[u8]) -> Option<Which> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(which, _)| *which)
    }

    pub(super) fn is_in(self, inode: &Inode) -> bool {
        match self {
            Which::Access => inode.access_acl().is_some(),
            Which::Default => inode.default_acl().is_some(),
        }
    }
}

/// Whether `want` (bits of `ACCESS_*`) is granted to somebody who is not the owner: by the first entry for the user; else
/// by any one entry for one of the groups; else, if there is no such entry either, as to others.
pub(super) fn grants(entries: &Entries, inode: &Inode, cred: &Cred, want: u8) -> bool {
    let (mask, others) = (bits(inode.mode >> 3), bits(inode.mode));
    if let Some(perm) = entries.users.get(&cred.uid) {
        return want & !(perm & mask) == 0;
    }
    let mut is_member = false;
    for gid in std::iter::once(&cred.gid).chain(&cred.groups) {
        let owning = (*gid == inode.gid).then_some(&entries.group);
        for perm in owning.into_iter().chain(entries.groups.get(gid)) {
            is_member = true;
            if want & !(perm & mask) == 0 {
                return true;
            }
        }
    }
    !is_member && want & !others == 0
}

/// The lowest three bits.
fn bits(mode: u32) -> u8 {
    u8::try_from(mode & 7).expect("three bits")
}

/// Reads an ACL. `None`: no entries, which means to remove it.
///
/// # Errors
/// `Unsupported` for other versions, `NoSpace` for too many entries, `Invalid` for what `acl(5)` calls invalid.
pub(super) fn parse(value: &[u8]) -> Result<Option<Acl>, Fail> {
    let invalid = || refuse(Kind::Invalid, "not a valid ACL");
    let Some((version, rest)) = value.split_first_chunk::<4>() else {
        return if value.is_empty() { Ok(None) } else { Err(invalid()) };
    };
    if u32::from_le_bytes(*version) != VERSION {
        return Err(refuse(Kind::Unsupported, format!("an ACL of a version other than {VERSION}")));
    }
    let (rows, []) = rest.as_chunks::<8>() else { return Err(invalid()) };
    if rows.is_empty() {
        return Ok(None);
    }
    if rows.len() > ENTRIES_MAX {
        return Err(refuse(Kind::NoSpace, format!("an ACL of {} entries, at most {ENTRIES_MAX}", rows.len())));
    }
    let (mut single, mut last) = (BTreeMap::new(), 0);
    let (mut users, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for [tag0, tag1, perm0, perm1, id @ ..] in rows {
        let (tag, perm) = (u16::from_le_bytes([*tag0, *tag1]), u16::from_le_bytes([*perm0, *perm1]));
        let (perm, id) = (u8::try_from(perm).unwrap_or(u8::MAX), u32::from_le_bytes(*id));
        let twice = match tag {
            USER => users.insert(id, perm),
            GROUP => groups.insert(id, perm),
            OWNER | OWNING_GROUP | MASK | OTHERS => single.insert(tag, perm),
            _ => return Err(invalid()),
        };
        let is_anonymous = matches!(tag, USER | GROUP) && id == NO_ID;
        if twice.is_some() || is_anonymous || perm > 7 || tag < last {
            return Err(invalid());
        }
        last = tag;
    }
    let of = |tag| single.get(&tag).copied();
    let (Some(owner), Some(group), Some(others)) = (of(OWNER), of(OWNING_GROUP), of(OTHERS)) else {
        return Err(invalid());
    };
    let entries = match of(MASK) {
        Some(_) => Some(Entries { users, group, groups }),
        None if users.is_empty() && groups.is_empty() => None,
        None => return Err(invalid()),
    };
    let middle = of(MASK).unwrap_or(group);
    let mode = [owner, middle, others].into_iter().fold(0, |mode, perm| (mode << 3) | u32::from(perm));
    Ok(Some(Acl { mode, entries }))
}

/// The bytes of an ACL: `mode` has its first and last entries and the mask.
fn format(mode: u32, entries: Option<&Entries>) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    let mut row = |tag: u16, perm: u8, id: u32| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&u16::from(perm).to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    };
    let middle = bits(mode >> 3);
    row(OWNER, bits(mode >> 6), NO_ID);
    match entries {
        None => row(OWNING_GROUP, middle, NO_ID),
        Some(entries) => {
            entries.users.iter().for_each(|(id, perm)| row(USER, *perm, *id));
            row(OWNING_GROUP, entries.group, NO_ID);
            entries.groups.iter().for_each(|(id, perm)| row(GROUP, *perm, *id));
            row(MASK, middle, NO_ID);
        }
    }
    row(OTHERS, bits(mode), NO_ID);
    out
}

/// The bytes of an inode's ACL, if it has this one.
pub(super) fn get(inode: &Inode, which: Which) -> Option<Vec<u8>> {
    match which {
        Which::Access => inode.access_acl().map(|entries| format(inode.mode, Some(entries))),
        Which::Default => inode.default_acl().map(|acl| format(acl.mode, acl.entries.as_ref())),
    }
}

/// # Errors
/// `Unsupported` on symlinks; `Denied` for a default ACL on what is no directory; `NotPermitted` unless the caller is the
/// owner or root.
pub(super) fn need_change(inode: &Inode, cred: &Cred, which: Which) -> Result<(), Fail> {
    match (which, inode.kind) {
        (_, FileKind::Symlink) => Err(refuse(Kind::Unsupported, "a symlink has no ACL")),
        (Which::Access, _) | (Which::Default, FileKind::Dir) => access::need_owner(inode, cred),
        (Which::Default, _) => Err(refuse(Kind::Denied, "only directories have a default ACL")),
    }
}

/// Sets an ACL. The mode takes what an access ACL says of owner, mask and others; one that says no more than that is not
/// kept. Set-group-id does not outlive it but for members of the group.
pub(super) fn set(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    mut inode: Inode,
    which: Which,
    value: &[u8],
    mode: XattrMode,
) -> Result<Outcome, Fail> {
    match (mode, which.is_in(&inode)) {
        (XattrMode::Create, true) => return Err(refuse(Kind::Exists, "there is an ACL")),
        (XattrMode::Replace, false) => return Err(no_data()),
        _ => {}
    }
    let acl = parse(value)?;
    match (which, acl) {
        (Which::Default, acl) => inode.set_default_acl(acl),
        (Which::Access, None) => inode.set_access_acl(None),
        (Which::Access, Some(acl)) => {
            inode.mode = (inode.mode & !0o777) | acl.mode;
            if !access::is_root(call.cred) && !access::in_group(call.cred, inode.gid) {
                inode.mode &= !SETGID;
            }
            inode.set_access_acl(acl.entries);
        }
    }
    need_names_fit(&inode)?;
    Ok(put(call, ino, inode))
}

/// Removes an ACL. The mode stays: what was the mask is the group's from now on.
pub(super) fn remove(call: &mut Call<'_, '_>, ino: InodeId, mut inode: Inode, which: Which) -> Result<Outcome, Fail> {
    if !which.is_in(&inode) {
        return Err(no_data());
    }
    match which {
        Which::Access => inode.set_access_acl(None),
        Which::Default => inode.set_default_acl(None),
    }
    Ok(put(call, ino, inode))
}

fn put(call: &mut Call<'_, '_>, ino: InodeId, mut inode: Inode) -> Outcome {
    inode.ctime = call.at;
    call.put_inode(ino, &inode);
    Outcome::Attr(inode.attr(ino))
}

/// Gives something new in `dir`, made with `umask`, its ACLs: those of a default ACL, cut down to the mode that was asked
/// for; without one the umask counts.
pub(super) fn inherit(dir: &Inode, new: &mut Inode, umask: u32) {
    match dir.default_acl() {
        _ if new.kind == FileKind::Symlink => {}
        None => new.mode &= !(umask & 0o777),
        Some(acl) => {
            new.mode &= acl.mode | !0o777;
            new.set_access_acl(acl.entries.clone());
            if new.kind == FileKind::Dir {
                new.set_default_acl(Some(acl.clone()));
            }
        }
    }
}
