//! Extended attributes: namespaces and permissions as Linux has them (`fs/xattr.c`, `xattr_permission`).
//!
//! Of `system.*` there are the access control lists, which are kept in the inode's row ([`super::acl`]).

use super::access;
use super::acl::{self, Which};
use super::command::{Fail, refuse};
use super::rows::{Call, inode};
use crate::store::keys::{self, XATTR};
use crate::store::values::{Inode, damaged};
use common::fault::Kind;
use common::id::InodeId;
use common::kv::{KvRead, prefix_range};
use common::proto::meta::{ACCESS_READ, ACCESS_WRITE, Cred, FileKind, Outcome, XattrMode};
use common::units::{NAME_LEN_MAX, XATTR_LEN_MAX, XATTR_LIST_MAX, len_u32};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
    Acl(Which),
}

fn space(name: &[u8]) -> Result<Space, Fail> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(refuse(Kind::Range, "attribute names have 1 to 255 bytes"));
    }
    if let Some(which) = Which::named(name) {
        return Ok(Space::Acl(which));
    }
    let spaces = [(&b"user."[..], Space::User), (b"trusted.", Space::Trusted), (b"security.", Space::Security)];
    match spaces.iter().find_map(|(prefix, space)| Some((name.strip_prefix(*prefix)?, *space))) {
        Some((rest, _)) if rest.is_empty() || rest.contains(&0) => Err(refuse(Kind::Invalid, "not an attribute name")),
        Some((_, space)) => Ok(space),
        None => Err(refuse(Kind::Unsupported, "attributes are user.*, trusted.*, security.* or ACLs")),
    }
}

fn need_write(inode: &Inode, cred: &Cred, name: &[u8]) -> Result<(), Fail> {
    match space(name)? {
        Space::Trusted | Space::Security if access::is_root(cred) => Ok(()),
        Space::Trusted | Space::Security => Err(refuse(Kind::NotPermitted, "only root sets these attributes")),
        Space::Acl(which) => acl::need_change(inode, cred, which),
        Space::User => {
            let foreign_sticky = inode.kind == FileKind::Dir && inode.mode & common::perm::STICKY != 0;
            if !matches!(inode.kind, FileKind::File | FileKind::Dir) {
                return Err(refuse(Kind::NotPermitted, "only files and directories have user attributes"));
            }
            if foreign_sticky && !access::is_owner(inode, cred) {
                return Err(refuse(Kind::NotPermitted, "the directory is sticky and not yours"));
            }
            access::need(inode, cred, ACCESS_WRITE)
        }
    }
}

fn need_read(inode: &Inode, cred: &Cred, name: &[u8]) -> Result<(), Fail> {
    match space(name)? {
        Space::Security | Space::Acl(_) => Ok(()),
        Space::Trusted if access::is_root(cred) => Ok(()),
        Space::User if matches!(inode.kind, FileKind::File | FileKind::Dir) => access::need(inode, cred, ACCESS_READ),
        Space::Trusted | Space::User => Err(no_data()),
    }
}

pub(super) fn no_data() -> Fail {
    refuse(Kind::NoData, "no such attribute")
}

/// What a name takes in `listxattr`, in bytes.
fn listed_len(name: &[u8]) -> u32 {
    len_u32(name.len() + 1)
}

/// # Errors
/// `NoSpace` if the names of all attributes are more than `listxattr` can tell.
pub(super) fn need_names_fit(inode: &Inode) -> Result<(), Fail> {
    let acls: u32 = acl_names(inode).map(listed_len).sum();
    if inode.xattr_names + acls > len_u32(XATTR_LIST_MAX) {
        return Err(refuse(Kind::NoSpace, format!("more than {XATTR_LIST_MAX} bytes of attribute names")));
    }
    Ok(())
}

fn acl_names(inode: &Inode) -> impl Iterator<Item = &'static [u8]> {
    acl::NAMES.iter().filter(|(which, _)| which.is_in(inode)).map(|(_, name)| *name)
}

/// Sets an attribute.
pub(super) fn set(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<Outcome, Fail> {
    let mut inode = inode(call.txn, ino)?;
    need_write(&inode, call.cred, name)?;
    if value.len() > XATTR_LEN_MAX {
        return Err(refuse(Kind::Range, format!("an attribute of {} bytes, at most {XATTR_LEN_MAX}", value.len())));
    }
    if let Some(which) = Which::named(name) {
        return acl::set(call, ino, inode, which, value, mode);
    }
    let key = keys::xattr(ino, name);
    let there = inode.xattr_names > 0 && call.txn.get(XATTR, &key)?.is_some();
    match (mode, there) {
        (XattrMode::Create, true) => return Err(refuse(Kind::Exists, "the attribute exists")),
        (XattrMode::Replace, false) => return Err(no_data()),
        _ => {}
    }
    if !there {
        inode.xattr_names += listed_len(name);
        need_names_fit(&inode)?;
    }
    call.txn.put(XATTR, key, value.to_vec());
    inode.ctime = call.at;
    call.put_inode(ino, &inode);
    Ok(Outcome::Attr(inode.attr(ino)))
}

/// Removes an attribute.
pub(super) fn remove(call: &mut Call<'_, '_>, ino: InodeId, name: &[u8]) -> Result<Outcome, Fail> {
    let mut inode = inode(call.txn, ino)?;
    need_write(&inode, call.cred, name)?;
    if let Some(which) = Which::named(name) {
        return acl::remove(call, ino, inode, which);
    }
    let key = keys::xattr(ino, name);
    if call.txn.get(XATTR, &key)?.is_none() {
        return Err(no_data());
    }
    call.txn.delete(XATTR, key);
    inode.xattr_names -= listed_len(name);
    inode.ctime = call.at;
    call.put_inode(ino, &inode);
    Ok(Outcome::Attr(inode.attr(ino)))
}

/// The value of an attribute.
pub(super) fn get(read: &dyn KvRead, cred: &Cred, ino: InodeId, name: &[u8]) -> Result<Vec<u8>, Fail> {
    let inode = inode(read, ino)?;
    need_read(&inode, cred, name)?;
    if let Some(which) = Which::named(name) {
        return acl::get(&inode, which).ok_or_else(no_data);
    }
    if inode.xattr_names == 0 {
        return Err(no_data());
    }
    read.get(XATTR, &keys::xattr(ino, name))?.map(Vec::from).ok_or_else(no_data)
}

/// The names of all attributes the caller may know of, sorted.
pub(super) fn list(read: &dyn KvRead, cred: &Cred, ino: InodeId) -> Result<Vec<Vec<u8>>, Fail> {
    let inode = inode(read, ino)?;
    let mut names: Vec<Vec<u8>> = acl_names(&inode).map(<[u8]>::to_vec).collect();
    if inode.xattr_names > 0 {
        for found in read.scan(XATTR, prefix_range(&keys::inode(ino)), false) {
            let (key, _) = found?;
            let name = key.get(8..).ok_or_else(|| damaged("xattr", "the key is too short"))?;
            if access::is_root(cred) || !name.starts_with(b"trusted.") {
                names.push(name.to_vec());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}
