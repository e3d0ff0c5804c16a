//! Access control lists as they are kept in an inode's row.
//!
//! What the mode says is not kept twice: an access ACL consists of the inode's mode and [`Entries`]. With entries the
//! group's bits of the mode are the mask (`acl(5)`), so `chmod` changes the mask and `stat` shows it.

use super::values::Inode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an ACL says beside its mode. Permissions are bits of `ACCESS_*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Of named users.
    pub users: BTreeMap<u32, u8>,
    /// Of the owning group.
    pub group: u8,
    /// Of named groups.
    pub groups: BTreeMap<u32, u8>,
}

/// A whole ACL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    /// `0o777`: owner, group (with entries: mask), others.
    pub mode: u32,
    /// The rest; `None`: the mode says it all.
    pub entries: Option<Entries>,
}

/// The ACLs of an inode, at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acls {
    access: Option<Entries>,
    default: Option<Acl>,
}

impl Inode {
    /// What the access ACL says beside the mode.
    pub fn access_acl(&self) -> Option<&Entries> {
        self.acls.as_ref()?.access.as_ref()
    }

    /// What new entries of a directory inherit.
    pub fn default_acl(&self) -> Option<&Acl> {
        self.acls.as_ref()?.default.as_ref()
    }

    /// Sets or removes the access ACL. The caller sets the mode.
    pub fn set_access_acl(&mut self, access: Option<Entries>) {
        self.change_acls(|acls| acls.access = access);
    }

    /// Sets or removes the default ACL.
    pub fn set_default_acl(&mut self, default: Option<Acl>) {
        self.change_acls(|acls| acls.default = default);
    }

    fn change_acls(&mut self, change: impl FnOnce(&mut Acls)) {
        let mut acls = self.acls.take().unwrap_or_default();
        change(&mut acls);
        self.acls = (*acls != Acls::default()).then_some(acls);
    }
}
