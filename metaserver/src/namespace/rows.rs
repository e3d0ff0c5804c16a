//! Reading and writing single rows, and what one command works with while it runs.

use super::command::{Fail, refuse};
use crate::store::Txn;
use crate::store::keys::{self, CLUSTER, DENTRY, INODE, LIST};
use crate::store::values::{Body, Config, Counters, Dentry, Inode, Listed, Value};
use common::fault::Kind;
use common::id::{InodeId, LogIndex, SessionId};
use common::kv::{Family, KvError, KvRead};
use common::name::Name;
use common::proto::meta::{Cred, FileKind};
use common::time::Time;

/// A row, if it is there.
pub(super) fn row<V: Value>(read: &dyn KvRead, family: Family, key: &[u8]) -> Result<Option<V>, KvError> {
    read.get(family, key)?.map(|bytes| V::decode(&bytes)).transpose()
}

/// An inode, if it is there.
pub(super) fn find_inode(read: &dyn KvRead, ino: InodeId) -> Result<Option<Inode>, KvError> {
    row(read, INODE, &keys::inode(ino))
}

/// # Errors
/// `Gone` if it is not there.
pub(super) fn inode(read: &dyn KvRead, ino: InodeId) -> Result<Inode, Fail> {
    find_inode(read, ino)?.ok_or_else(|| refuse(Kind::Gone, format!("inode {ino} is gone")))
}

/// # Errors
/// `Gone` if it is not there, `NotDir` if it is something else.
pub(super) fn directory(read: &dyn KvRead, ino: InodeId) -> Result<Inode, Fail> {
    let found = inode(read, ino)?;
    if found.kind == FileKind::Dir { Ok(found) } else { Err(refuse(Kind::NotDir, format!("{ino} is not a directory"))) }
}

/// An entry, if it is there.
pub(super) fn entry(read: &dyn KvRead, parent: InodeId, name: &Name) -> Result<Option<Dentry>, KvError> {
    row(read, DENTRY, &keys::dentry(parent, name))
}

/// # Errors
/// `NotFound` if it is not there.
pub(super) fn need_entry(read: &dyn KvRead, parent: InodeId, name: &Name) -> Result<Dentry, Fail> {
    entry(read, parent, name)?.ok_or_else(|| refuse(Kind::NotFound, format!("no such entry: {name}")))
}

/// The inode an entry leads to. It is there: dentries and inodes change together.
pub(super) fn inode_of(read: &dyn KvRead, entry: &Dentry) -> Result<Inode, Fail> {
    let broken = || KvError { doing: "read", message: format!("an entry leads to {}, which is not there", entry.ino) };
    Ok(find_inode(read, entry.ino)?.ok_or_else(broken)?)
}

/// Whether directories lead from this one to the root, in at most so many steps and not by another one. `parent`: of a
/// directory that is there.
pub(super) fn reaches_root<E>(
    from: InodeId,
    not_by: Option<InodeId>,
    steps: usize,
    mut parent: impl FnMut(InodeId) -> Result<Option<InodeId>, E>,
) -> Result<bool, E> {
    let mut at = from;
    for _ in 0..=steps {
        if at == InodeId::ROOT {
            return Ok(true);
        }
        match parent(at)?.filter(|_| Some(at) != not_by) {
            Some(above) => at = above,
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// What was fixed when the cluster was formatted; `None` before.
pub fn config(read: &dyn KvRead) -> Result<Option<Config>, KvError> {
    row(read, CLUSTER, keys::CONFIG)
}

/// The counters; all zero before the cluster is formatted.
pub fn counters(read: &dyn KvRead) -> Result<Counters, KvError> {
    Ok(row(read, CLUSTER, keys::COUNTERS)?.unwrap_or_default())
}

/// One command while it runs.
pub(super) struct Call<'t, 'k> {
    pub(super) txn: &'t mut Txn<'k>,
    /// Where in the log it stands.
    pub(super) index: LogIndex,
    /// When it happens.
    pub(super) at: Time,
    /// The leader's time when it was proposed, also where `at` is the time at which a session decided something.
    pub(super) now: Time,
    pub(super) session: SessionId,
    pub(super) cred: &'t Cred,
    /// The number that a new inode gets, if it is not the next one: the session has reserved it.
    pub(super) given: Option<InodeId>,
    /// Written back by [`Call::finish`].
    pub(super) counters: Counters,
    counters_before: Counters,
}

impl<'t, 'k> Call<'t, 'k> {
    pub(super) fn new(
        txn: &'t mut Txn<'k>,
        index: LogIndex,
        at: Time,
        session: SessionId,
        cred: &'t Cred,
    ) -> Result<Call<'t, 'k>, KvError> {
        let counters = counters(txn)?;
        Ok(Call { txn, index, at, now: at, session, cred, given: None, counters, counters_before: counters })
    }

    /// Writes what was kept back: call it when the command has succeeded.
    pub(super) fn finish(self) {
        if self.counters != self.counters_before {
            self.txn.put(CLUSTER, keys::COUNTERS, self.counters.encode());
        }
    }

    pub(super) fn config(&self) -> Result<Config, Fail> {
        config(self.txn)?.ok_or_else(|| refuse(Kind::Refused, "the cluster is not formatted"))
    }

    pub(super) fn put_inode(&mut self, ino: InodeId, inode: &Inode) {
        self.txn.put(INODE, keys::inode(ino), inode.encode());
    }

    /// A number never used before for an inode or for data.
    pub(super) fn next_ino(&mut self) -> u64 {
        let ino = self.counters.next_ino;
        self.counters.next_ino += 1;
        ino
    }

    /// The number of a new inode.
    pub(super) fn new_ino(&mut self) -> Result<InodeId, Fail> {
        let Some(given) = self.given else { return Ok(InodeId(self.next_ino())) };
        super::batch::take(self, given)?;
        Ok(given)
    }

    /// Adds an entry under a new cookie, and counts it in the directory (times too). The caller writes the directory.
    pub(super) fn add_entry(&mut self, parent: InodeId, dir: &mut Inode, name: &Name, ino: InodeId, kind: FileKind) {
        let (entries, next_cookie) = dir_counts(dir);
        let cookie = *next_cookie;
        *next_cookie += 1;
        *entries += 1;
        self.put_entry(parent, name, Dentry { ino, kind, cookie });
        touch_dir(dir, self.at);
    }

    /// Sets both rows of an entry.
    pub(super) fn put_entry(&mut self, parent: InodeId, name: &Name, entry: Dentry) {
        let listed = Listed { ino: entry.ino, kind: entry.kind, name: name.clone() };
        self.txn.put(LIST, keys::list(parent, entry.cookie), listed.encode());
        self.txn.put(DENTRY, keys::dentry(parent, name), entry.encode());
    }

    /// Removes an entry and its count in the directory (times too). The caller writes the directory.
    pub(super) fn remove_entry(&mut self, parent: InodeId, dir: &mut Inode, name: &Name, entry: &Dentry) {
        self.txn.delete(DENTRY, keys::dentry(parent, name));
        self.txn.delete(LIST, keys::list(parent, entry.cookie));
        *dir_counts(dir).0 -= 1;
        touch_dir(dir, self.at);
    }
}

/// (entries, next cookie) of a directory.
pub(super) fn dir_counts(dir: &mut Inode) -> (&mut u64, &mut u64) {
    match &mut dir.body {
        Body::Dir { entries, next_cookie, .. } => (entries, next_cookie),
        _ => unreachable!("callers have checked that it is a directory"),
    }
}

/// A directory's entries changed.
pub(super) fn touch_dir(dir: &mut Inode, at: Time) {
    dir.mtime = at;
    dir.ctime = at;
}
