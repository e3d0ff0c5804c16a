//! Mending what [`problems`](super::problems) found, inside `apply`.
//!
//! The state goes on changing between the look and the fix. So counts are corrected by what they were off, not set: what
//! came and went meanwhile was counted right on top of the wrong number. That holds if each correction is made once:
//! batches of one look come in order, and a look older than the last correction is refused.

use super::command::{Done, Fail, refuse};
use super::extents::forget_degraded;
use super::rows::{Call, dir_counts, directory, entry, find_inode, reaches_root, row};
use super::trash;
use crate::store::keys::{self, ATTEND, CHUNK, CLUSTER, DEGRADED, DENTRY, HOLDER, LIST, ORPHAN};
use crate::store::values::{Body, ChunkRow, Counters, Degraded, Dentry, FixRow, Inode, Listed, Value};
use common::fault::Kind;
use common::id::{ChunkId, DataVersion, InodeId, LogIndex, ServerId, SessionId};
use common::kv::{KvError, KvRead};
use common::name::Name;
use common::proto::meta::FileKind;
use common::units::CHUNK_SIZE_DEFAULT;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Fixes in one command, at most.
pub const FIXES_MAX: usize = 1000;
/// Directories between one that has two names and the root, at most.
const DEPTH_MAX: usize = 4096;
/// Where in the root things without a name get one.
pub const LOST_AND_FOUND: &str = "lost+found";

/// One correction. Nothing here deletes data. What is not as the fix expects is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fix {
    /// A chunk's references under a target are off by `delta`, and its length is `len`.
    Refs {
        /// Which.
        chunk: ChunkId,
        /// Its length as its extents say.
        len: u32,
        /// The replica target.
        target: u8,
        /// To be added.
        delta: i64,
    },
    /// A counter of the cluster is off by `delta`.
    Count {
        /// Which.
        counter: Counter,
        /// To be added.
        delta: i64,
    },
    /// The links of an inode are off by `delta`.
    Links {
        /// Which.
        ino: InodeId,
        /// To be added.
        delta: i64,
    },
    /// A directory's count of entries is off by `delta`.
    Entries {
        /// Which.
        dir: InodeId,
        /// To be added.
        delta: i64,
    },
    /// A directory gives out cookies from this one on.
    NextCookie {
        /// Which.
        dir: InodeId,
        /// Not below this.
        at_least: u64,
    },
    /// A file's counts are off by this much, and it is at least as long as its last extent reaches.
    Extents {
        /// Which.
        ino: InodeId,
        /// To be added to its number of extents.
        extents: i64,
        /// To be added to the bytes they cover.
        bytes: i64,
        /// Where its last extent ends.
        end: u64,
    },
    /// The bytes of an inode's attribute names are off by `delta`.
    XattrNames {
        /// Which.
        ino: InodeId,
        /// To be added.
        delta: i64,
    },
    /// The listing row (and the kind) of an entry is made anew from the entry and its inode.
    Listing {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Name,
    },
    /// The entry that a listing row speaks of is made anew; the listing goes if the name is there already.
    Entry {
        /// Directory.
        parent: InodeId,
        /// The listing's cookie.
        cookie: u64,
    },
    /// A directory hangs where its entry is.
    Parent {
        /// Which.
        dir: InodeId,
        /// Its entry.
        stays: (InodeId, Name),
    },
    /// An inode without a name gets one in `/lost+found`.
    Nameless {
        /// Which.
        ino: InodeId,
    },
    /// A session does not hold this inode as an orphan.
    NoOrphan {
        /// Whose row.
        session: SessionId,
        /// Which.
        ino: InodeId,
    },
    /// Extents that no file has become a file in `/lost+found`.
    Adopt {
        /// The id they are under.
        data: u64,
        /// The target their references count under.
        replicas: u8,
        /// How many they are.
        extents: u64,
        /// Bytes they cover.
        bytes: u64,
        /// Where the last one ends.
        end: u64,
    },
    /// A chunk has fewer copies than its target: only on these servers.
    Degraded {
        /// Which.
        chunk: ChunkId,
        /// Who holds it; in order.
        servers: Vec<ServerId>,
    },
    /// There is no such chunk to be degraded.
    NotDegraded {
        /// Which.
        chunk: ChunkId,
    },
    /// Inode numbers are given out from this one on.
    NextIno {
        /// Not below this.
        at_least: u64,
    },
    /// Whether a session holds an inode without a name is as its orphan row says.
    Holder {
        /// Whose.
        session: SessionId,
        /// Which.
        ino: InodeId,
    },
    /// Whether a key by which something in the trash is found is there is as its entry says.
    TrashKey {
        /// The key.
        key: Vec<u8>,
    },
    /// Nobody has this open as an orphan: it does not come to the trash later.
    NoTrashNote {
        /// Which.
        ino: InodeId,
    },
    /// The counts of the trash are off by this much.
    TrashCounts {
        /// To be added to its number of entries.
        entries: i64,
        /// To be added to their bytes.
        bytes: i64,
    },
    /// What is there is not in the trash as well: else it would go when that is emptied.
    NotBuried {
        /// Which.
        ino: InodeId,
    },
    /// A session that is not open takes no leases.
    NotAttending {
        /// Which.
        session: SessionId,
    },
    /// A degraded row that is under another placement group than its chunk belongs to.
    DegradedKey {
        /// The key.
        key: Vec<u8>,
    },
    /// Locks of this inode belong to sessions that are open, and are found by their owners; if it is not there, nobody has
    /// any.
    Locks {
        /// Which.
        ino: InodeId,
    },
    /// The owner of a lock that is not there.
    NoLockOwner {
        /// The key.
        key: Vec<u8>,
    },
    /// A directory has one name only. What is in it stays.
    SecondName {
        /// Which.
        dir: InodeId,
        /// The directory and name where it is ...
        stays: (InodeId, Name),
        /// ... and where it is not.
        goes: (InodeId, Name),
    },
}

/// A counter of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counter {
    /// Inodes.
    Inodes,
    /// Bytes of all files.
    LogicalBytes,
    /// Referenced chunks.
    Chunks,
    /// Their bytes.
    ChunkBytes,
    /// Degraded chunks.
    Degraded,
    /// Open sessions.
    Sessions,
}

impl Counter {
    /// Its place.
    pub(super) fn of(self, counters: &mut Counters) -> &mut u64 {
        match self {
            Counter::Inodes => &mut counters.inodes,
            Counter::LogicalBytes => &mut counters.logical_bytes,
            Counter::Chunks => &mut counters.chunks,
            Counter::ChunkBytes => &mut counters.chunk_bytes,
            Counter::Degraded => &mut counters.degraded,
            Counter::Sessions => &mut counters.sessions,
        }
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counter::Inodes => "inodes",
            Counter::LogicalBytes => "logical bytes",
            Counter::Chunks => "chunks",
            Counter::ChunkBytes => "bytes of chunks",
            Counter::Degraded => "degraded chunks",
            Counter::Sessions => "sessions",
        })
    }
}

/// Makes batch number `batch` of the corrections found at index `scan`.
///
/// # Errors
/// `Stale`: other corrections were made since the look; look again. `Invalid`: out of order, or too many.
pub(super) fn fix(call: &mut Call<'_, '_>, scan: LogIndex, batch: u32, fixes: &[Fix]) -> Result<Done, Fail> {
    if fixes.len() > FIXES_MAX || scan > call.index {
        return Err(refuse(Kind::Invalid, format!("{} fixes of a look at {scan}", fixes.len())));
    }
    let last: FixRow = row(call.txn, CLUSTER, keys::FIX)?.unwrap_or_default();
    match (last.scan == scan, batch) {
        (true, batch) if last.batch == batch && batch > 0 => return Ok(Done::Fixed), // asked again
        (true, batch) if batch == last.batch + 1 => {}
        (false, 1) if scan >= last.at => {}
        _ => return Err(refuse(Kind::Stale, format!("corrections were made at {} since {scan}", last.at))),
    }
    for fix in fixes {
        one(call, fix)?;
    }
    call.txn.put(CLUSTER, keys::FIX, FixRow { scan, batch, at: call.index }.encode());
    Ok(Done::Fixed)
}

fn one(call: &mut Call<'_, '_>, fix: &Fix) -> Result<(), Fail> {
    match fix {
        Fix::Refs { chunk, len, target, delta } => refs(call, chunk, *len, *target, *delta)?,
        Fix::Count { counter, delta } => add(counter.of(&mut call.counters), *delta),
        Fix::Links { ino, delta } => with_inode(call, *ino, |inode| {
            let mut links = u64::from(inode.nlink);
            add(&mut links, *delta);
            inode.nlink = u32::try_from(links).unwrap_or(inode.nlink);
        })?,
        Fix::Entries { dir, delta } => with_dir(call, *dir, |dir| add(dir_counts(dir).0, *delta))?,
        Fix::NextCookie { dir, at_least } => with_dir(call, *dir, |dir| {
            let next = dir_counts(dir).1;
            *next = (*next).max(*at_least);
        })?,
        Fix::Extents { ino, extents, bytes, end } => with_inode(call, *ino, |inode| {
            if let Body::File { size, allocated, extents: count, version, .. } = &mut inode.body {
                add(count, *extents);
                add(allocated, *bytes);
                if *size < *end {
                    *size = *end;
                    version.0 += 1;
                }
            }
        })?,
        Fix::XattrNames { ino, delta } => with_inode(call, *ino, |inode| {
            let mut names = u64::from(inode.xattr_names);
            add(&mut names, *delta);
            inode.xattr_names = u32::try_from(names).unwrap_or(inode.xattr_names);
        })?,
        Fix::Listing { parent, name } => listing(call, *parent, name)?,
        Fix::Entry { parent, cookie } => missing_entry(call, *parent, *cookie)?,
        Fix::Parent { dir, stays } => hang(call, *dir, stays)?,
        Fix::Nameless { ino } => nameless(call, *ino)?,
        Fix::NoOrphan { session, ino } => {
            call.txn.delete(ORPHAN, keys::orphan(*session, *ino));
            call.txn.delete(HOLDER, keys::holder(*ino, *session));
        }
        Fix::Holder { session, ino } => holder(call, *session, *ino)?,
        Fix::Adopt { data, replicas, extents, bytes, end } => adopt(call, *data, *replicas, (*extents, *bytes, *end))?,
        Fix::Degraded { chunk, servers } => degraded(call, chunk, servers)?,
        Fix::NotDegraded { chunk } => {
            let pg_count = call.config()?.pg_count;
            if row::<ChunkRow>(call.txn, CHUNK, &keys::chunk(chunk))?.is_none() {
                forget_degraded(call, chunk, pg_count)?;
            }
        }
        Fix::TrashKey { key } => trash::fix_key(call, key)?,
        Fix::NoTrashNote { ino } => trash::fix_note(call, *ino)?,
        Fix::TrashCounts { entries, bytes } => trash::fix_counts(call, *entries, *bytes)?,
        Fix::NotBuried { ino } => {
            if let Some(there) = find_inode(call.txn, *ino)? {
                trash::fix_twice(call, *ino, there.nlink == 0)?;
            }
        }
        Fix::NotAttending { session } => {
            if !super::session::is_open(call.txn, *session)? {
                call.txn.delete(ATTEND, keys::session(*session).to_vec());
            }
        }
        Fix::DegradedKey { key } => misplaced(call, key)?,
        Fix::Locks { ino } => super::lock::fix(call, *ino)?,
        Fix::NoLockOwner { key } => super::lock::fix_owner(call, key)?,
        Fix::SecondName { dir, stays, goes } => second_name(call, *dir, stays, goes)?,
        Fix::NextIno { at_least } => call.counters.next_ino = call.counters.next_ino.max(*at_least),
    }
    Ok(())
}

fn holder(call: &mut Call<'_, '_>, session: SessionId, ino: InodeId) -> Result<(), KvError> {
    match call.txn.get(ORPHAN, &keys::orphan(session, ino))? {
        Some(_) => call.txn.put(HOLDER, keys::holder(ino, session), Vec::new()),
        None => call.txn.delete(HOLDER, keys::holder(ino, session)),
    }
    Ok(())
}

/// Adds; what would go below 0 becomes 0.
fn add(to: &mut u64, delta: i64) {
    *to = to.saturating_add_signed(delta);
}

fn with_inode(call: &mut Call<'_, '_>, ino: InodeId, change: impl FnOnce(&mut Inode)) -> Result<(), KvError> {
    match find_inode(call.txn, ino)? {
        Some(mut inode) => {
            change(&mut inode);
            call.put_inode(ino, &inode);
            Ok(())
        }
        None => trash::fix_buried(call, ino, change),
    }
}

fn with_dir(call: &mut Call<'_, '_>, ino: InodeId, change: impl FnOnce(&mut Inode)) -> Result<(), KvError> {
    with_inode(call, ino, |inode| {
        if inode.kind == FileKind::Dir {
            change(inode);
        }
    })
}

fn refs(call: &mut Call<'_, '_>, chunk: &ChunkId, len: u32, target: u8, delta: i64) -> Result<(), Fail> {
    let key = keys::chunk(chunk);
    let before: Option<ChunkRow> = row(call.txn, CHUNK, &key)?;
    let mut after = before.clone().unwrap_or(ChunkRow { len, refs: Default::default() });
    after.len = len;
    let mut count = after.refs.get(&target).copied().unwrap_or(0);
    add(&mut count, delta);
    match count {
        0 => drop(after.refs.remove(&target)),
        count => drop(after.refs.insert(target, count)),
    }
    if let Some(before) = &before {
        call.counters.chunks = call.counters.chunks.saturating_sub(1);
        call.counters.chunk_bytes = call.counters.chunk_bytes.saturating_sub(u64::from(before.len));
    }
    if after.refs.is_empty() {
        call.txn.delete(CHUNK, key);
        let pg_count = call.config()?.pg_count;
        return Ok(forget_degraded(call, chunk, pg_count)?);
    }
    call.counters.chunks += 1;
    call.counters.chunk_bytes += u64::from(len);
    call.txn.put(CHUNK, key, after.encode());
    Ok(())
}

/// Gives an entry a listing of its own, under a new cookie, and the kind of its inode.
fn listing(call: &mut Call<'_, '_>, parent: InodeId, name: &Name) -> Result<(), Fail> {
    let Some(found) = entry(call.txn, parent, name)? else { return Ok(()) };
    let Some(mut dir) = find_inode(call.txn, parent)?.filter(|dir| dir.kind == FileKind::Dir) else { return Ok(()) };
    let Some(inode) = find_inode(call.txn, found.ino)? else { return Ok(()) };
    let old: Option<Listed> = row(call.txn, LIST, &keys::list(parent, found.cookie))?;
    if old.is_some_and(|old| old.name == *name) {
        call.txn.delete(LIST, keys::list(parent, found.cookie)); // ours, and wrong
    }
    let next = dir_counts(&mut dir).1;
    let cookie = *next;
    *next += 1;
    call.put_inode(parent, &dir);
    call.put_entry(parent, name, Dentry { ino: found.ino, kind: inode.kind, cookie });
    Ok(())
}

/// Makes the entry of a listing that has none, and counts it.
fn missing_entry(call: &mut Call<'_, '_>, parent: InodeId, cookie: u64) -> Result<(), Fail> {
    let key = keys::list(parent, cookie);
    let Some(listed) = row::<Listed>(call.txn, LIST, &key)? else { return Ok(()) };
    if let Some(there) = entry(call.txn, parent, &listed.name)? {
        if there.cookie != cookie {
            call.txn.delete(LIST, key); // the name has another listing
        }
        return Ok(());
    }
    let Some(inode) = find_inode(call.txn, listed.ino)? else { return Ok(()) };
    let is_dir = inode.kind == FileKind::Dir;
    call.txn.put(
        DENTRY,
        keys::dentry(parent, &listed.name),
        Dentry { ino: listed.ino, kind: inode.kind, cookie }.encode(),
    );
    with_dir(call, parent, |dir| {
        add(dir_counts(dir).0, 1);
        dir.nlink += u32::from(is_dir);
    })?;
    with_inode(call, listed.ino, |inode| match &mut inode.body {
        Body::Dir { parent: back, .. } => *back = parent,
        _ => inode.nlink += 1,
    })?;
    Ok(())
}

/// A directory hangs where its entry is, if that is still there and hangs on the root without it.
fn hang(call: &mut Call<'_, '_>, dir: InodeId, stays: &(InodeId, Name)) -> Result<(), Fail> {
    if entry(call.txn, stays.0, &stays.1)?.is_some_and(|entry| entry.ino == dir) && leads_to_root(call, stays.0, dir)? {
        with_dir(call, dir, |dir| {
            if let Body::Dir { parent, .. } = &mut dir.body {
                *parent = stays.0;
            }
        })?;
    }
    Ok(())
}

fn leads_to_root(call: &Call<'_, '_>, from: InodeId, not_by: InodeId) -> Result<bool, KvError> {
    reaches_root(from, Some(not_by), DEPTH_MAX, |at| {
        let parent = |inode: Inode| if let Body::Dir { parent, .. } = inode.body { Some(parent) } else { None };
        Ok(find_inode(call.txn, at)?.and_then(parent))
    })
}

/// Takes a directory's second name away.
fn second_name(
    call: &mut Call<'_, '_>,
    dir: InodeId,
    stays: &(InodeId, Name),
    goes: &(InodeId, Name),
) -> Result<(), Fail> {
    let leads = |call: &Call<'_, '_>, (parent, name): &(InodeId, Name)| -> Result<Option<Dentry>, Fail> {
        Ok(entry(call.txn, *parent, name)?.filter(|entry| entry.ino == dir))
    };
    if let (Some(_), Some(second)) = (leads(call, stays)?, leads(call, goes)?)
        && stays != goes
        && find_inode(call.txn, dir)?.is_some_and(|inode| inode.kind == FileKind::Dir)
        && leads_to_root(call, stays.0, dir)?
    {
        let (parent, name) = goes;
        call.txn.delete(DENTRY, keys::dentry(*parent, name));
        call.txn.delete(LIST, keys::list(*parent, second.cookie));
        with_dir(call, *parent, |parent| {
            let entries = dir_counts(parent).0;
            *entries = entries.saturating_sub(1);
            parent.nlink = parent.nlink.saturating_sub(1);
        })?;
    }
    Ok(())
}

/// `/lost+found`, made if need be.
fn lost_and_found(call: &mut Call<'_, '_>) -> Result<InodeId, Fail> {
    let name = Name::new(LOST_AND_FOUND).map_err(|e| refuse(Kind::Internal, e.to_string()))?;
    match entry(call.txn, InodeId::ROOT, &name)? {
        Some(there) if there.kind == FileKind::Dir => return Ok(there.ino),
        Some(_) => return Err(refuse(Kind::Exists, "/lost+found is no directory: rename it")),
        None => {}
    }
    let mut root = directory(call.txn, InodeId::ROOT)?;
    let ino = InodeId(call.next_ino());
    let body = Body::Dir { parent: InodeId::ROOT, entries: 0, next_cookie: 1 };
    let dir = Inode { mode: 0o700, nlink: 2, ..blank(call, FileKind::Dir, root.replicas, body) };
    call.put_inode(ino, &dir);
    call.counters.inodes += 1;
    root.nlink += 1;
    call.add_entry(InodeId::ROOT, &mut root, &name, ino, FileKind::Dir);
    call.put_inode(InodeId::ROOT, &root);
    Ok(ino)
}

/// An inode of root's, with the time of the command.
fn blank(call: &Call<'_, '_>, kind: FileKind, replicas: u8, body: Body) -> Inode {
    Inode {
        kind,
        mode: 0o600,
        uid: 0,
        gid: 0,
        nlink: 1,
        atime: call.at,
        mtime: call.at,
        ctime: call.at,
        chunk_size: CHUNK_SIZE_DEFAULT,
        replicas,
        xattr_names: 0,
        acls: None,
        body,
    }
}

/// Puts a name into `/lost+found`. False: it is there already.
fn keep(call: &mut Call<'_, '_>, text: &str, ino: InodeId, kind: FileKind) -> Result<Option<InodeId>, Fail> {
    let found = lost_and_found(call)?;
    let name = Name::new(text).map_err(|e| refuse(Kind::Internal, e.to_string()))?;
    if entry(call.txn, found, &name)?.is_some() {
        return Ok(None);
    }
    let mut dir = directory(call.txn, found)?;
    call.add_entry(found, &mut dir, &name, ino, kind);
    dir.nlink += u32::from(kind == FileKind::Dir);
    call.put_inode(found, &dir);
    Ok(Some(found))
}

fn nameless(call: &mut Call<'_, '_>, ino: InodeId) -> Result<(), Fail> {
    let Some(mut inode) = find_inode(call.txn, ino)? else { return Ok(()) };
    if ino == InodeId::ROOT || (inode.kind != FileKind::Dir && inode.nlink > 0) {
        return Ok(()); // it has a name
    }
    let Some(found) = keep(call, &ino.to_string(), ino, inode.kind)? else { return Ok(()) };
    match &mut inode.body {
        Body::Dir { parent, .. } => *parent = found,
        _ => inode.nlink = 1,
    }
    call.put_inode(ino, &inode);
    Ok(())
}

fn adopt(call: &mut Call<'_, '_>, data: u64, replicas: u8, (extents, bytes, end): (u64, u64, u64)) -> Result<(), Fail> {
    let ino = InodeId(call.next_ino());
    if keep(call, &format!("data-{data}"), ino, FileKind::File)?.is_none() {
        return Ok(());
    }
    let body = Body::File { size: end, allocated: bytes, extents, version: DataVersion(1), data };
    let file = blank(call, FileKind::File, replicas, body);
    call.put_inode(ino, &file);
    call.counters.inodes += 1;
    call.counters.logical_bytes += bytes;
    Ok(())
}

/// Puts a degraded row where its chunk belongs, if there is none yet.
fn misplaced(call: &mut Call<'_, '_>, key: &[u8]) -> Result<(), Fail> {
    let Some(id) = key.last_chunk::<32>().map(|id| ChunkId(*id)) else { return Ok(()) };
    let right = keys::degraded(id.pg(call.config()?.pg_count), &id);
    let Some(found) = row::<Degraded>(call.txn, DEGRADED, key)?.filter(|_| right != key) else { return Ok(()) };
    call.txn.delete(DEGRADED, key.to_vec());
    call.counters.degraded = call.counters.degraded.saturating_sub(1);
    degraded(call, &id, &found.servers)
}

/// Remembers that a referenced chunk has too few copies: repair takes it first.
fn degraded(call: &mut Call<'_, '_>, chunk: &ChunkId, servers: &[ServerId]) -> Result<(), Fail> {
    if row::<ChunkRow>(call.txn, CHUNK, &keys::chunk(chunk))?.is_none() {
        return Ok(());
    }
    let key = keys::degraded(chunk.pg(call.config()?.pg_count), chunk);
    if call.txn.get(DEGRADED, &key)?.is_none() {
        call.txn.put(DEGRADED, key, Degraded { servers: servers.to_vec() }.encode());
        call.counters.degraded += 1;
    }
    Ok(())
}
