//! Changes that this client decides itself: it has write leases of all that they touch.
//!
//! Only what will certainly succeed is decided here, and what it makes of the inodes is what the metaservers will make of
//! them (`metaserver/src/namespace`, one file for each operation; a test holds the two side by side). Whatever is unusual
//! (a refusal, ACLs, what is not known here) is asked for.

use super::inside::{Inside, Known};
use super::journal::Under;
use crate::chunks::Outgoing;
use common::id::{DataVersion, InodeId};
use common::name::Name;
use common::perm::{self, Bits};
use common::proto::batch::Deferred;
use common::proto::lease::{CLAIM_MAX, WRITE};
use common::proto::meta::{
    ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, Attr, Commit, Cred, FileKind, MODE_ACL, MODE_DEFAULT_ACL, NewNode, Op,
    Outcome, RenameMode, SetAttr, SetTime, Source,
};
use common::time::Time;
use common::units::{ENTRY_SIZE, FILE_SIZE_MAX, LINK_MAX, SYMLINK_LEN_MAX, len_u64};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

const NANOS: u32 = 1_000_000_000;
/// A commit of more bytes of chunks is asked for: what it takes to store them is long against that.
const CHUNK_BYTES_MAX: u64 = 1 << 20;

/// What becomes of a change.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// It is done, and will be told.
    Done(Box<Outcome>),
    /// The metaservers decide.
    Ask,
    /// First these leases (inode, number) are to become write leases.
    Claim(Vec<(InodeId, u64)>),
    /// First inode numbers are to be reserved.
    Reserve,
    /// First some of what was decided is to be told.
    Full,
}

/// Why a change is not decided here, or not yet.
#[derive(Debug)]
pub(super) enum Not {
    Here,
    Claimed(Vec<(InodeId, u64)>),
    Numbered,
}

/// A change and all that follows from it.
struct Plan {
    outcome: Outcome,
    leads: Vec<InodeId>,
    /// Attributes as they are afterwards.
    attrs: Vec<Attr>,
    made: Option<Attr>,
    gone: Option<InodeId>,
    names: Vec<(InodeId, Name, Option<InodeId>)>,
}

impl Plan {
    fn new(outcome: Outcome) -> Plan {
        Plan { outcome, leads: Vec::new(), attrs: Vec::new(), made: None, gone: None, names: Vec::new() }
    }
}

/// Who makes a change, and when.
#[derive(Clone, Copy)]
pub(crate) struct Maker<'a> {
    pub(crate) cred: &'a Cred,
    /// Now, on the clock of leases and by the calendar.
    pub(crate) uptime: Duration,
    pub(crate) now: Time,
    /// An inode that is certainly not open here, nor will be before this is decided.
    pub(crate) closed: Option<InodeId>,
    /// The chunks that the change refers to, with their bytes.
    pub(crate) chunks: &'a [Outgoing],
}

/// Whether a kind of change is ever decided here: a cheap look before the lock is taken.
pub(crate) fn is_candidate(op: &Op) -> bool {
    match op {
        Op::Commit(commit) => {
            let bytes: u64 = commit.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
            commit.base.is_none() && bytes <= CHUNK_BYTES_MAX
        }
        Op::Lock(_) => true,
        Op::Create { .. }
        | Op::CreateUnmasked { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::SetAttr { .. } => true,
        _ => false,
    }
}

fn bits(attr: &Attr) -> Bits {
    Bits { kind: attr.kind, mode: attr.permissions(), uid: attr.uid, gid: attr.gid }
}

fn has_acl(attr: &Attr) -> bool {
    attr.mode & (MODE_ACL | MODE_DEFAULT_ACL) != 0
}

fn only_if(holds: bool) -> Result<(), Not> {
    if holds { Ok(()) } else { Err(Not::Here) }
}

/// A directory after an entry came or went.
fn with_entries(dir: &Attr, more: i64, at: Time) -> Attr {
    let size = dir.size.saturating_add_signed(more * i64::try_from(ENTRY_SIZE).expect("small"));
    Attr { size, mtime: at, ctime: at, ..dir.clone() }
}

impl Inside {
    /// Decides a change if that is possible here, and notes it to be told.
    pub(crate) fn decide(&mut self, op: &Op, maker: Maker<'_>) -> Decision {
        if !self.may_decide(maker.uptime) {
            return Decision::Ask;
        }
        if !self.session.is_some_and(|session| self.journal.is_announced(session)) {
            return Decision::Reserve;
        }
        if self.journal.is_full() {
            return Decision::Full;
        }
        let at = self.journal.time(maker.now);
        let decided = match op {
            // Nobody is told of it while nobody else wants to know.
            Op::Lock(ask) => self.plan_lock(ask),
            _ => self.plan(op, maker, at).map(|plan| {
                let change = Deferred { cred: maker.cred.clone(), at, op: op.clone(), leads: plan.leads.clone() };
                let outcome = plan.outcome.clone();
                self.carry_out(plan, &change);
                let session = self.session.expect("what is known is of a session");
                let since = self.since.expect("what only this client writes was claimed");
                self.journal.push(
                    Under { session, term: self.term, since },
                    change,
                    outcome.clone(),
                    maker.chunks.to_vec(),
                );
                outcome
            }),
        };
        match decided {
            Ok(outcome) => Decision::Done(Box::new(outcome)),
            Err(Not::Here) => Decision::Ask,
            Err(Not::Numbered) => Decision::Reserve,
            Err(Not::Claimed(leases)) => match self.may_claim(&leases, Instant::now()) {
                true => Decision::Claim(leases),
                false => Decision::Ask,
            },
        }
    }

    fn plan(&mut self, op: &Op, maker: Maker<'_>, at: Time) -> Result<Plan, Not> {
        let cred = maker.cred;
        match op {
            Op::Create { parent, name, node, mode, .. } => {
                self.plan_create((*parent, name), node, (*mode, 0), cred, at)
            }
            Op::CreateUnmasked { parent, name, node, mode, umask, .. } => {
                self.plan_create((*parent, name), node, (*mode, *umask), cred, at)
            }
            Op::Link { ino, parent, name } => self.plan_link(*ino, (*parent, name), cred, at),
            Op::Unlink { parent, name, .. } => self.plan_unlink((*parent, name), maker, at),
            Op::Rmdir { parent, name } => self.plan_rmdir((*parent, name), cred, at),
            Op::Rename { from, from_name, to, to_name, mode, .. } => {
                self.plan_rename((*from, from_name), (*to, to_name), *mode, maker, at)
            }
            Op::SetAttr { ino, set } => {
                let attr = set_attr(&self.own(*ino)?, set, cred, at)?;
                Ok(Plan { attrs: vec![attr.clone()], ..Plan::new(Outcome::Attr(attr)) })
            }
            Op::Commit(commit) => {
                only_if(commit.chunks.len() == maker.chunks.len())?; // who has not got their bytes cannot store them again
                only_if(commit.chunks.is_empty() || Some(commit.attempt.session) == self.session)?;
                let before = self.own(commit.ino).map_err(|not| match not {
                    Not::Claimed(_) if !commit.chunks.is_empty() => Not::Here, // a file of others: a claim is as long as a commit
                    not => not,
                })?;
                // A right that only an open file still has is for the leader to remember.
                only_if(owns(&before, cred) || bits(&before).grant(cred, ACCESS_WRITE))?;
                let (attr, offset) = committed(&before, commit, cred, at)?;
                self.contents.grown((before.version, attr.version), commit, offset);
                Ok(Plan { attrs: vec![attr.clone()], ..Plan::new(Outcome::Committed { attr, offset }) })
            }
            _ => Err(Not::Here),
        }
    }

    /// Attributes of an inode that only this client can change now.
    pub(super) fn own(&self, ino: InodeId) -> Result<Attr, Not> {
        only_if(self.is_still(ino))?;
        let known = self.known.get(&ino).ok_or(Not::Here)?;
        let attr = known.attr.clone().ok_or(Not::Here)?;
        if known.lease & WRITE == 0 || self.since.is_none() {
            return Err(Not::Claimed(vec![(ino, known.lease)]));
        }
        only_if(!has_acl(&attr))?;
        Ok(attr)
    }

    /// A directory that only this client can change now. If it has to be claimed: with what is in it.
    fn own_dir(&self, ino: InodeId, cred: &Cred, want: u8) -> Result<Attr, Not> {
        let dir = self.own(ino).map_err(|not| self.with_entries_of(ino, not))?;
        only_if(dir.kind == FileKind::Dir && bits(&dir).grant(cred, want | ACCESS_EXEC))?;
        Ok(dir)
    }

    fn with_entries_of(&self, dir: InodeId, not: Not) -> Not {
        let Not::Claimed(mut leases) = not else { return not };
        let names = self.known.get(&dir).and_then(|known| known.names.as_ref());
        let inodes = names.into_iter().flat_map(HashMap::values).filter_map(|ino| *ino);
        let read = |known: &Known| (known.lease & WRITE == 0 && known.attr.is_some()).then_some(known.lease);
        let room = CLAIM_MAX - leases.len();
        leases.extend(inodes.filter_map(|ino| Some((ino, read(self.known.get(&ino)?)?))).take(room));
        Not::Claimed(leases)
    }

    /// What is under a name of such a directory, if that has to be claimed: with the others there.
    fn own_entry(&self, dir: InodeId, ino: InodeId) -> Result<Attr, Not> {
        self.own(ino).map_err(|not| match not {
            Not::Claimed(leases) => self.with_entries_of(dir, Not::Claimed(leases)),
            not => not,
        })
    }

    /// Where a name leads.
    fn name(&self, dir: InodeId, name: &Name) -> Result<Option<InodeId>, Not> {
        only_if(self.is_name_still(dir, name))?;
        let names = self.known.get(&dir).and_then(|known| known.names.as_ref()).ok_or(Not::Here)?;
        match names.get(name) {
            None => Ok(None),
            Some(None) => Err(Not::Here),
            Some(Some(ino)) => Ok(Some(*ino)),
        }
    }

    fn plan_create(
        &mut self,
        (parent, name): (InodeId, &Name),
        node: &NewNode,
        (asked, umask): (u32, u32),
        cred: &Cred,
        at: Time,
    ) -> Result<Plan, Not> {
        only_if(self.name(parent, name)?.is_none())?;
        let dir = self.own_dir(parent, cred, ACCESS_WRITE)?;
        let (kind, size, rdev) = match node {
            NewNode::File => (FileKind::File, 0, 0),
            NewNode::Dir => (FileKind::Dir, 0, 0),
            NewNode::Symlink(target) => {
                let len = target.len();
                only_if(len > 0 && len <= SYMLINK_LEN_MAX && !target.contains(&0))?;
                (FileKind::Symlink, len_u64(len), 0)
            }
            NewNode::Fifo => (FileKind::Fifo, 0, 0),
            NewNode::Socket => (FileKind::Socket, 0, 0),
            NewNode::CharDevice(rdev) => (FileKind::CharDevice, 0, *rdev),
            NewNode::BlockDevice(rdev) => (FileKind::BlockDevice, 0, *rdev),
        };
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        only_if(!is_device || perm::is_root(cred))?;
        let is_dir = kind == FileKind::Dir;
        let nlink = dir.nlink.checked_add(u32::from(is_dir)).ok_or(Not::Here)?;
        let (mode, gid) = bits(&dir).inherited(kind, asked, cred);
        let mode = if kind == FileKind::Symlink { mode } else { mode & !(umask & 0o777) };
        let session = self.session.ok_or(Not::Here)?;
        let ino = self.journal.number(session).ok_or(Not::Numbered)?;
        let attr = Attr {
            ino,
            kind,
            mode,
            uid: cred.uid,
            gid,
            nlink: if is_dir { 2 } else { 1 },
            size,
            allocated: 0,
            atime: at,
            mtime: at,
            ctime: at,
            rdev,
            chunk_size: dir.chunk_size,
            replicas: dir.replicas,
            version: DataVersion(0),
        };
        let dir = Attr { nlink, ..with_entries(&dir, 1, at) };
        let plan = Plan::new(Outcome::Created { attr: attr.clone(), new: true, parent: dir.clone() });
        let names = vec![(parent, name.clone(), Some(ino))];
        Ok(Plan { leads: vec![ino], attrs: vec![dir], made: Some(attr), names, ..plan })
    }

    fn plan_link(&self, ino: InodeId, (parent, name): (InodeId, &Name), cred: &Cred, at: Time) -> Result<Plan, Not> {
        only_if(self.name(parent, name)?.is_none())?;
        let dir = self.own_dir(parent, cred, ACCESS_WRITE)?;
        let linked = self.own(ino)?;
        only_if(linked.kind != FileKind::Dir && linked.nlink > 0 && linked.nlink < LINK_MAX)?;
        let linked = Attr { nlink: linked.nlink + 1, ctime: at, ..linked };
        let attrs = vec![with_entries(&dir, 1, at), linked.clone()];
        let names = vec![(parent, name.clone(), Some(ino))];
        Ok(Plan { attrs, names, ..Plan::new(Outcome::Attr(linked)) })
    }

    /// An inode that has a name less: what is left of it, if anything. It must be closed.
    fn unlinked(&self, dir: InodeId, ino: InodeId, maker: Maker<'_>, at: Time) -> Result<Attr, Not> {
        only_if(maker.closed == Some(ino))?;
        let found = self.own_entry(dir, ino)?;
        only_if(found.kind != FileKind::Dir)?;
        Ok(Attr { nlink: found.nlink - 1, ctime: at, ..found })
    }

    fn plan_unlink(&self, (parent, name): (InodeId, &Name), maker: Maker<'_>, at: Time) -> Result<Plan, Not> {
        let ino = self.name(parent, name)?.ok_or(Not::Here)?;
        let dir = self.own_dir(parent, maker.cred, ACCESS_WRITE)?;
        let left = self.unlinked(parent, ino, maker, at)?;
        only_if(!bits(&dir).sticks(&bits(&left), maker.cred))?;
        let nlink = left.nlink;
        let mut plan = Plan::new(Outcome::Removed { ino, nlink });
        plan.attrs.push(with_entries(&dir, -1, at));
        plan.leave(left);
        Ok(Plan { leads: vec![ino], names: vec![(parent, name.clone(), None)], ..plan })
    }

    fn plan_rmdir(&self, (parent, name): (InodeId, &Name), cred: &Cred, at: Time) -> Result<Plan, Not> {
        let ino = self.name(parent, name)?.ok_or(Not::Here)?;
        let dir = self.own_dir(parent, cred, ACCESS_WRITE)?;
        let found = self.own_entry(parent, ino)?;
        let names = self.known.get(&ino).and_then(|known| known.names.as_ref()).ok_or(Not::Here)?;
        only_if(found.kind == FileKind::Dir && found.size == 0 && names.is_empty())?;
        only_if(!self.is_changing_below(ino) && !bits(&dir).sticks(&bits(&found), cred))?;
        let dir = Attr { nlink: dir.nlink - 1, ..with_entries(&dir, -1, at) };
        let plan = Plan::new(Outcome::Removed { ino, nlink: 0 });
        let names = vec![(parent, name.clone(), None)];
        Ok(Plan { leads: vec![ino], attrs: vec![dir], gone: Some(ino), names, ..plan })
    }

    fn plan_rename(
        &self,
        (from, from_name): (InodeId, &Name),
        (to, to_name): (InodeId, &Name),
        mode: RenameMode,
        maker: Maker<'_>,
        at: Time,
    ) -> Result<Plan, Not> {
        let ino = self.name(from, from_name)?.ok_or(Not::Here)?;
        let target = self.name(to, to_name)?;
        only_if(match mode {
            RenameMode::Replace => target != Some(ino),
            RenameMode::NoReplace => target.is_none(),
            RenameMode::Exchange => false,
        })?;
        let from_dir = self.own_dir(from, maker.cred, ACCESS_WRITE)?;
        let to_dir = self.own_dir(to, maker.cred, ACCESS_WRITE)?;
        let moved = self.own_entry(from, ino)?;
        only_if(moved.kind != FileKind::Dir || (from == to && target.is_none()))?;
        only_if(!bits(&from_dir).sticks(&bits(&moved), maker.cred))?;
        let left = target.map(|target| self.unlinked(to, target, maker, at)).transpose()?;
        only_if(left.as_ref().is_none_or(|left| !bits(&to_dir).sticks(&bits(left), maker.cred)))?;
        let replaced = left.as_ref().map(|left| (left.ino, left.nlink));
        let mut plan = Plan::new(Outcome::Renamed { replaced });
        plan.leads = std::iter::once(ino).chain(target).collect();
        let fewer = if target.is_some() { -1 } else { 0 };
        if from == to {
            plan.attrs.push(with_entries(&from_dir, fewer, at));
        } else {
            plan.attrs.extend([with_entries(&from_dir, -1, at), with_entries(&to_dir, 1 + fewer, at)]);
        }
        plan.attrs.push(Attr { ctime: at, ..moved });
        left.into_iter().for_each(|left| plan.leave(left));
        plan.names = vec![(from, from_name.clone(), None), (to, to_name.clone(), Some(ino))];
        Ok(plan)
    }

    /// What is known follows.
    fn carry_out(&mut self, plan: Plan, change: &Deferred) {
        for ino in change.touches() {
            self.touch(ino);
        }
        for attr in plan.attrs {
            let known = self.known.get_mut(&attr.ino).expect("its attributes were known");
            known.attr = Some(attr);
            known.used = Instant::now();
        }
        for (dir, name, leads) in plan.names {
            self.renamed_here(dir, &name, leads);
        }
        if let Some(attr) = plan.made {
            self.made_here(attr);
        }
        if let Some(ino) = plan.gone {
            self.gone_here(ino);
        }
    }
}

impl Plan {
    /// What a removal leaves of an inode.
    fn leave(&mut self, left: Attr) {
        match left.nlink {
            0 => self.gone = Some(left.ino),
            _ => self.attrs.push(left),
        }
    }
}

/// Whether a caller may open a file with these attributes, as far as that can be told here.
pub(crate) fn may_open(attr: &Attr, cred: &Cred, access: u8) -> bool {
    attr.kind == FileKind::File && !has_acl(attr) && bits(attr).grant(cred, access)
}

/// Whether the caller owns what has these attributes, or is root.
pub(crate) fn owns(attr: &Attr, cred: &Cred) -> bool {
    bits(attr).is_owner(cred)
}

/// Likewise whether he may list a directory.
pub(super) fn may_list(attr: &Attr, cred: &Cred) -> bool {
    attr.kind == FileKind::Dir && !has_acl(attr) && bits(attr).grant(cred, ACCESS_READ)
}

/// Attributes after `set`, as `metaserver/src/namespace/attr.rs` makes them.
fn set_attr(attr: &Attr, set: &SetAttr, cred: &Cred, at: Time) -> Result<Attr, Not> {
    only_if(*set != SetAttr { opened: set.opened, ..SetAttr::default() })?;
    only_if(set.chunk_size.is_none() && set.replicas.is_none())?;
    let good = |time: Option<SetTime>| !matches!(time, Some(SetTime::At(time)) if time.nanos >= NANOS);
    only_if(good(set.atime) && good(set.mtime))?;
    let owner = bits(attr).is_owner(cred);
    let root = perm::is_root(cred);
    if let Some(mode) = set.mode {
        only_if(owner && mode <= 0o7777 && attr.kind != FileKind::Symlink)?;
    }
    only_if(set.uid.is_none_or(|uid| root || (owner && uid == attr.uid)))?;
    only_if(set.gid.is_none_or(|gid| root || (owner && (gid == attr.gid || perm::in_group(cred, gid)))))?;
    let now = |time: Option<SetTime>| matches!(time, None | Some(SetTime::Now));
    let free = set.size.is_some() && now(set.atime) && now(set.mtime);
    only_if(owner || free || (set.atime.is_none() && set.mtime.is_none()))?;
    let mut new = attr.clone();
    if let Some(size) = set.size {
        only_if(attr.kind == FileKind::File && size <= FILE_SIZE_MAX)?;
        only_if(set.opened || bits(attr).grant(cred, ACCESS_WRITE))?;
        only_if(size == 0 || size >= attr.size)?; // else it depends on the extents how much is left
        if size != attr.size {
            new.version.0 += 1;
            (new.size, new.allocated) = (size, if size == 0 { 0 } else { attr.allocated });
        }
        new.mode = bits(&new).without_set_id(cred, false);
        new.mtime = at;
    }
    new.mode = set.mode.unwrap_or(new.mode);
    if set.uid.is_some() || set.gid.is_some() {
        new.mode = bits(&new).without_set_id(cred, true);
    }
    new.uid = set.uid.unwrap_or(new.uid);
    new.gid = set.gid.unwrap_or(new.gid);
    if set.mode.is_some() && !root && !perm::in_group(cred, new.gid) {
        new.mode &= !perm::SETGID;
    }
    let time = |wanted: Option<SetTime>, old: Time| match wanted {
        None => old,
        Some(SetTime::Now) => at,
        Some(SetTime::At(time)) => time,
    };
    new.atime = time(set.atime, new.atime);
    new.mtime = time(set.mtime, new.mtime);
    new.ctime = at;
    Ok(new)
}

/// Attributes after a commit of bytes or chunks behind all that the file has, and where they went.
fn committed(attr: &Attr, commit: &Commit, cred: &Cred, at: Time) -> Result<(Attr, u64), Not> {
    only_if(attr.kind == FileKind::File && commit.base.is_none())?;
    let offset = if commit.append { attr.size } else { 0 };
    let size = attr.size.max(offset.checked_add(commit.grow).ok_or(Not::Here)?);
    only_if(size <= FILE_SIZE_MAX)?;
    let (mut end, mut allocated) = (attr.size, attr.allocated);
    for edit in &commit.edits {
        let from = offset + edit.at;
        only_if(edit.data != Source::Hole && from >= end && from + edit.len <= size)?;
        end = from + edit.len;
        allocated += edit.len;
    }
    let mut new = Attr { size, allocated, ..attr.clone() };
    if !commit.edits.is_empty() || size != attr.size {
        new.version.0 += 1;
    }
    new.mtime = commit.mtime.unwrap_or(at);
    new.ctime = at;
    new.mode = bits(&new).without_set_id(cred, false);
    Ok((new, offset))
}
