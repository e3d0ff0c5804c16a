//! Reads: what is there, as of the store they are given.
//!
//! Access: `Lookup` and `Walk` need search permission on the way, `Open` what it asks for, `ReadDir` read permission
//! when a listing starts. A listing that goes on is not checked again here: a descriptor stays valid over a later `chmod`. Who
//! may go on, and who may have `Extents`, the leader has looked at while root squash is on (`crate::rights`).

use super::command::{Fail, refuse};
use super::extents::{Placed, overlapping};
use super::rows::{config, counters, directory, entry, find_inode, inode, inode_of, need_entry, row};
use super::{access, lock, session, trash, walk, xattr};
use crate::store::keys::{self, DEGRADED, LIST};
use crate::store::values::{Body, Config, Data, Degraded, Inode, Listed, Value, damaged};
use common::auth::{Mac, Secret};
use common::fault::Kind;
use common::id::{Epoch, InodeId, LogIndex, SessionId};
use common::kv::{KvError, KvRead};
use common::name::Name;
use common::proto::lease::{Grants, LEASE_NAMES_MAX, LeaseAsk};
use common::proto::meta::{
    ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, Answer, Answered, Ask, Attr, Cred, DirEntry, EXTENTS_PER_ANSWER, Extent,
    ExtentRun, FileKind, FsStat, LISTING_MAX, Query, Source,
};
use common::units::len_usize;
use std::ops::Bound;

/// What is in files with more extents does not come with a lease.
const FEW_EXTENTS_MAX: usize = 16;

/// What a query needs beside the store: made once from the [`Config`], capacity from the heartbeats.
#[derive(Clone, Copy, Debug)]
pub struct QueryCtx {
    /// Signs read tokens.
    pub secret: Secret,
    /// The cluster epoch.
    pub epoch: Epoch,
    /// Placement groups.
    pub pg_count: u32,
    /// Default replica count.
    pub replicas: u8,
    /// Raw capacity of all chunkservers, in bytes.
    pub raw_capacity: u64,
    /// Raw free space of all writable chunkservers, in bytes.
    pub raw_free: u64,
}

impl QueryCtx {
    /// From what was fixed at format; no capacity.
    pub fn new(config: &Config) -> QueryCtx {
        QueryCtx {
            secret: config.secret,
            epoch: config.epoch,
            pg_count: config.pg_count,
            replicas: config.replicas,
            raw_capacity: 0,
            raw_free: 0,
        }
    }
}

/// Answers a read from `read`, a view of the state at applied index `index`.
///
/// # Errors
/// [`Fail::Fault`] is the answer; [`Fail::Kv`] means that the store failed and this replica must stop.
pub fn query(read: &dyn KvRead, index: LogIndex, ask: &Ask, ctx: &QueryCtx) -> Result<Answered, Fail> {
    let reader = Reader { read, ctx, session: ask.session };
    let cred = &ask.cred;
    let answer = match &ask.query {
        Query::Lookup { parent, name } => {
            let dir = directory(read, *parent)?;
            access::need(&dir, cred, ACCESS_EXEC)?;
            let entry = need_entry(read, *parent, name)?;
            Answer::Attr(inode_of(read, &entry)?.attr(entry.ino))
        }
        Query::Walk { from, path, follow } => walk::walk(read, cred, *from, path, *follow)?,
        Query::GetAttr { ino } => Answer::Attr(inode(read, *ino)?.attr(*ino)),
        Query::ReadLink { ino } => match inode(read, *ino)?.body {
            Body::Symlink { target } => Answer::Target(target),
            _ => return Err(refuse(Kind::Invalid, "is no symlink")),
        },
        Query::ReadDir { ino, after, limit, attrs } => reader.list(cred, *ino, *after, *limit, *attrs)?,
        Query::Open { ino, access, .. } => reader.open(cred, *ino, *access)?,
        Query::Extents { ino, from, to } => {
            let (attr, run) = reader.extents(*ino, *from, *to)?;
            Answer::Extents { attr, run }
        }
        Query::GetXattr { ino, name } => Answer::Value(xattr::get(read, cred, *ino, name)?),
        Query::ListXattr { ino } => Answer::Names(xattr::list(read, cred, *ino)?),
        Query::StatFs => Answer::StatFs(reader.stat_fs()?),
        Query::LockHolder { ino, lock } => Answer::LockHolder(lock::holder(read, ask.session, *ino, lock)?),
        Query::LockWaits { ino, number } => Answer::LockWaits(lock::waits(read, *ino, *number)?),
        Query::Trash(ask) => Answer::Trash(trash::list(read, cred, ask)?),
    };
    Ok(Answered { answer, index, grants: Grants::default() })
}

/// The directory that `ask` wants to lease, the one that holds it, and all its entries, without attributes. `None`: more than a lease covers.
///
/// # Errors
/// As [`query`].
pub fn leased(
    read: &dyn KvRead,
    ask: &LeaseAsk,
    ctx: &QueryCtx,
) -> Result<Option<(Attr, InodeId, Vec<DirEntry>)>, Fail> {
    let reader = Reader { read, ctx, session: ask.session };
    let attr = directory(read, ask.dir)?.attr(ask.dir);
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let Answer::Listing { entries, end, parent } = reader.list(&ask.cred, ask.dir, after, LISTING_MAX, false)?
        else {
            unreachable!("a listing was asked for")
        };
        after = entries.last().map_or(after, |entry| entry.cookie);
        all.extend(entries);
        if all.len() > common::units::len_usize(LEASE_NAMES_MAX.into()) {
            return Ok(None);
        }
        if end {
            return Ok(Some((attr, parent, all)));
        }
    }
}

/// Attributes of an inode, if it is there.
///
/// # Errors
/// The store failed.
pub fn attr(read: &dyn KvRead, ino: InodeId) -> Result<Option<Attr>, KvError> {
    Ok(find_inode(read, ino)?.map(|found| found.attr(ino)))
}

/// All that a file holds, as its reader needs it, if it is in few extents: bytes that are kept in the metadata, and chunks that
/// have all their copies. (Who has those of others changes without a change of the file.) `degraded`: some chunk has fewer.
///
/// # Errors
/// The store failed.
pub fn few_extents(
    read: &dyn KvRead,
    ctx: &QueryCtx,
    session: SessionId,
    degraded: bool,
    ino: InodeId,
) -> Result<Option<ExtentRun>, KvError> {
    let Some(Inode { body: Body::File { data, extents, .. }, .. }) = find_inode(read, ino)? else { return Ok(None) };
    if len_usize(extents) > FEW_EXTENTS_MAX {
        return Ok(None);
    }
    let reader = Reader { read, ctx, session };
    let rows = overlapping(read, data, 0, u64::MAX, FEW_EXTENTS_MAX)?.into_iter();
    let extents = rows.map(|row| reader.extent(row, degraded)).collect::<Result<Vec<_>, KvError>>()?;
    let has_all = extents.iter().all(|extent| extent.holders.is_empty());
    Ok(has_all.then_some(ExtentRun { extents, covered: u64::MAX }))
}

/// An extent whose bytes are here: there is nothing to have a right to.
fn inline(at: u64, len: u64, data: Source) -> Extent {
    Extent { at, len, data, chunk_len: 0, token: Mac::default(), holders: Vec::new() }
}

/// The inodes that these names lead to now, as far as they lead anywhere.
///
/// # Errors
/// The store failed.
pub fn lead_to(read: &dyn KvRead, names: &[(InodeId, Name)]) -> Result<Vec<InodeId>, KvError> {
    let entries = names.iter().map(|(dir, name)| entry(read, *dir, name));
    entries.filter_map(|found| found.transpose()).map(|found| found.map(|entry| entry.ino)).collect()
}

struct Reader<'a> {
    read: &'a dyn KvRead,
    ctx: &'a QueryCtx,
    session: SessionId,
}

impl Reader<'_> {
    fn list(&self, cred: &Cred, ino: InodeId, after: u64, limit: u32, attrs: bool) -> Result<Answer, Fail> {
        let dir = directory(self.read, ino)?;
        if after == 0 {
            access::need(&dir, cred, ACCESS_READ)?;
        }
        let parent = parent_of(&dir, ino);
        let limit = common::units::len_usize(limit.clamp(1, LISTING_MAX).into());
        let range =
            (Bound::Excluded(keys::list(ino, after).to_vec()), Bound::Included(keys::list(ino, u64::MAX).to_vec()));
        let mut entries = Vec::new();
        for found in self.read.scan(LIST, range, false) {
            if entries.len() == limit {
                return Ok(Answer::Listing { entries, end: false, parent });
            }
            let (key, value) = found?;
            entries.push(self.dir_entry(&key, &value, attrs)?);
        }
        Ok(Answer::Listing { entries, end: true, parent })
    }

    fn dir_entry(&self, key: &[u8], value: &[u8], attrs: bool) -> Result<DirEntry, Fail> {
        let cookie = keys::last_u64(key).ok_or_else(|| damaged("list", "the key is too short"))?;
        let Listed { ino, kind, name } = Listed::decode(value)?;
        let attr = if attrs { Some(inode(self.read, ino)?.attr(ino)) } else { None };
        Ok(DirEntry { name, ino, kind, cookie, attr })
    }

    fn open(&self, cred: &Cred, ino: InodeId, wanted: u8) -> Result<Answer, Fail> {
        let found = inode(self.read, ino)?;
        if wanted & !(ACCESS_READ | ACCESS_WRITE | ACCESS_EXEC) != 0 {
            return Err(refuse(Kind::Invalid, "unknown access bits"));
        }
        match found.kind {
            FileKind::Symlink => return Err(refuse(Kind::Loop, "is a symlink")),
            FileKind::Dir if wanted & ACCESS_WRITE != 0 => return Err(refuse(Kind::IsDir, "is a directory")),
            _ => access::need(&found, cred, wanted)?,
        }
        let run = match found.kind {
            FileKind::File => self.run(&found, 0, u64::MAX)?,
            _ => ExtentRun { extents: Vec::new(), covered: u64::MAX },
        };
        Ok(Answer::Opened { attr: found.attr(ino), run, ahead: Vec::new() })
    }

    fn extents(&self, ino: InodeId, from: u64, to: u64) -> Result<(Attr, ExtentRun), Fail> {
        let found = inode(self.read, ino)?;
        if found.kind != FileKind::File {
            return Err(super::commit::not_a_file(&found));
        }
        if from > to {
            return Err(refuse(Kind::Invalid, "the range ends before it starts"));
        }
        Ok((found.attr(ino), self.run(&found, from, to)?))
    }

    /// The extents of a file that overlap `[from, to)`, cut to whole extents and to the answer's limit.
    fn run(&self, file: &Inode, from: u64, to: u64) -> Result<ExtentRun, Fail> {
        session::need_open(self.read, self.session)?;
        let Body::File { data, extents, .. } = &file.body else {
            unreachable!("callers have checked that it is a file")
        };
        if *extents == 0 || from == to {
            return Ok(ExtentRun { extents: Vec::new(), covered: to });
        }
        let degraded = counters(self.read)?.degraded > 0;
        let mut rows = overlapping(self.read, *data, from, to, EXTENTS_PER_ANSWER + 1)?;
        let mut covered = to;
        if rows.len() > EXTENTS_PER_ANSWER {
            covered = rows.pop().map_or(to, |(at, _)| at);
        }
        let extents = rows.into_iter().map(|row| self.extent(row, degraded)).collect::<Result<_, KvError>>()?;
        Ok(ExtentRun { extents, covered })
    }

    fn extent(&self, (at, row): Placed, degraded: bool) -> Result<Extent, KvError> {
        Ok(match row.data {
            Data::Inline { id, offset, bytes } => inline(at, row.len, Source::Inline { id, offset, bytes }),
            Data::Chunk { id, offset, chunk_len } => {
                let key = keys::degraded(id.pg(self.ctx.pg_count), &id);
                let known: Option<Degraded> = if degraded { self::row(self.read, DEGRADED, &key)? } else { None };
                Extent {
                    at,
                    len: row.len,
                    data: Source::Chunk { id, offset },
                    chunk_len,
                    token: self.ctx.secret.read_token(id, self.session, self.ctx.epoch),
                    holders: known.unwrap_or_default().servers,
                }
            }
        })
    }

    fn stat_fs(&self) -> Result<FsStat, Fail> {
        if config(self.read)?.is_none() {
            return Err(refuse(Kind::Refused, "the cluster is not formatted"));
        }
        let counters = counters(self.read)?;
        Ok(FsStat {
            logical_bytes: counters.logical_bytes,
            chunk_bytes: counters.chunk_bytes,
            chunks: counters.chunks,
            inodes: counters.inodes,
            raw_capacity: self.ctx.raw_capacity,
            raw_free: self.ctx.raw_free,
            replicas: self.ctx.replicas,
        })
    }
}

/// The directory that holds this one; the root's is itself.
pub(super) fn parent_of(dir: &Inode, ino: InodeId) -> InodeId {
    match dir.body {
        Body::Dir { parent, .. } => parent,
        _ => ino,
    }
}
