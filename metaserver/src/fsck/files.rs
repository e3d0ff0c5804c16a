//! From paths to chunks, and from lost chunks back to files.

use super::{Work, store_failed};
use crate::namespace::{self, Fail, QueryCtx};
use crate::store::keys::{self, DENTRY, EXTENT, INODE, TRASH};
use crate::store::trash::{TrashRow, ino_of};
use crate::store::values::{Body, Data, Dentry, ExtentRow, Inode, Value};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, InodeId, LogIndex, SessionId};
use common::kv::{KvError, KvRead, prefix_range};
use common::proto::admin::{CHUNKS_PER_ANSWER, FileChunk, FileRange, Finding, FindingKind};
use common::proto::meta::{Answer, Ask, Cred, FileKind, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Ranges of files that are told of one lost chunk, at most.
const RANGES_MAX: usize = 100;
/// Directories between the root and a name, at most: a loop is no path.
const DEPTH_MAX: usize = 4096;

/// The chunks of all files at or below a path.
pub(super) fn chunks_below(read: &dyn KvRead, path: &[u8]) -> Result<BTreeSet<ChunkId>, Fault> {
    let internal = |error: KvError| store_failed(&error);
    let (mut todo, mut chunks) = (vec![find(read, path)?], BTreeSet::new());
    let mut seen = BTreeSet::new();
    while let Some(ino) = todo.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let Some(row) = read.get(INODE, &keys::inode(ino)).map_err(internal)? else { continue };
        match Inode::decode(&row).map_err(internal)?.body {
            Body::Dir { .. } => {
                for found in read.scan(DENTRY, prefix_range(&keys::inode(ino)), false) {
                    let (_, value) = found.map_err(internal)?;
                    todo.push(Dentry::decode(&value).map_err(internal)?.ino);
                }
            }
            Body::File { data, .. } => {
                for found in read.scan(EXTENT, prefix_range(&data.to_be_bytes()), false) {
                    let (_, value) = found.map_err(internal)?;
                    if let Data::Chunk { id, .. } = ExtentRow::decode(&value).map_err(internal)?.data {
                        chunks.insert(id);
                    }
                }
            }
            Body::Symlink { .. } | Body::Device { .. } | Body::Plain => {}
        }
    }
    Ok(chunks)
}

/// What a file is made of, from its start, at most [`CHUNKS_PER_ANSWER`] parts.
pub(crate) fn chunks_of(read: &dyn KvRead, path: &[u8]) -> Result<Vec<FileChunk>, Fault> {
    let internal = |error: KvError| store_failed(&error);
    let ino = find(read, path)?;
    let row = read.get(INODE, &keys::inode(ino)).map_err(internal)?;
    let inode = Inode::decode(&row.unwrap_or_default()).map_err(internal)?;
    let Body::File { data, .. } = inode.body else {
        return Err(Fault::new(Kind::Invalid, "is no regular file"));
    };
    let rows = read.scan(EXTENT, prefix_range(&data.to_be_bytes()), false).take(CHUNKS_PER_ANSWER);
    rows.map(|found| {
        let (key, value) = found.map_err(internal)?;
        let row = ExtentRow::decode(&value).map_err(internal)?;
        let chunk = match row.data {
            Data::Chunk { id, .. } => Some(id),
            Data::Inline { .. } => None,
        };
        Ok(FileChunk { at: keys::last_u64(&key).unwrap_or(0), len: row.len, chunk, replicas: inode.replicas })
    })
    .collect()
}

/// The inode at the end of a path.
fn find(read: &dyn KvRead, path: &[u8]) -> Result<InodeId, Fault> {
    let config = namespace::config(read).map_err(|error| store_failed(&error))?;
    let config = config.ok_or_else(crate::leading::not_formatted)?;
    let query = Query::Walk { from: InodeId::ROOT, path: path.to_vec(), follow: false };
    let ask = Ask { session: SessionId(0), cred: Cred::default(), query, lease: false };
    match namespace::query(read, LogIndex(0), &ask, &QueryCtx::new(&config)).map_err(fault)?.answer {
        Answer::Walked { attr, .. } => Ok(attr.ino),
        other => Err(Fault::new(Kind::Internal, format!("walk: answered {other:?}"))),
    }
}

fn fault(fail: Fail) -> Fault {
    fail.into()
}

/// For each of these chunks the ranges of files that it is in. Reads all extents, inodes and entries once.
pub(crate) fn ranges_of(
    read: &dyn KvRead,
    chunks: &BTreeSet<ChunkId>,
) -> Result<BTreeMap<ChunkId, Vec<FileRange>>, KvError> {
    let all = || (Bound::Unbounded, Bound::Unbounded);
    let mut places: Vec<(u64, ChunkId, u64, u64)> = Vec::new();
    let mut per_chunk: BTreeMap<ChunkId, usize> = BTreeMap::new();
    for found in read.scan(EXTENT, all(), false) {
        let (key, value) = found?;
        let row = ExtentRow::decode(&value)?;
        let Data::Chunk { id, .. } = row.data else { continue };
        if !chunks.contains(&id) {
            continue;
        }
        let count = per_chunk.entry(id).or_default();
        *count += 1;
        if *count <= RANGES_MAX {
            let (data, at) = (keys::first_u64(&key).unwrap_or(0), keys::last_u64(&key).unwrap_or(0));
            places.push((data, id, at, at + row.len));
        }
    }
    let wanted: BTreeSet<u64> = places.iter().map(|(data, ..)| *data).collect();
    let mut owners: BTreeMap<u64, InodeId> = BTreeMap::new();
    for found in read.scan(INODE, all(), false) {
        let (key, value) = found?;
        if let Body::File { data, .. } = Inode::decode(&value)?.body
            && wanted.contains(&data)
        {
            owners.insert(data, InodeId(keys::first_u64(&key).unwrap_or(0)));
        }
    }
    let removed = in_trash(read, &wanted)?;
    let files: BTreeSet<InodeId> = owners.values().copied().collect();
    let mut names: BTreeMap<InodeId, (InodeId, Vec<u8>)> = BTreeMap::new();
    for found in read.scan(DENTRY, all(), false) {
        let (key, value) = found?;
        let entry = Dentry::decode(&value)?;
        if entry.kind == FileKind::Dir || files.contains(&entry.ino) {
            let parent = InodeId(keys::first_u64(&key).unwrap_or(0));
            names.insert(entry.ino, (parent, key.get(8..).unwrap_or_default().to_vec()));
        }
    }
    let mut ranges: BTreeMap<ChunkId, Vec<FileRange>> = BTreeMap::new();
    for (data, chunk, from, to) in places {
        let gone = || removed.get(&data).cloned().unwrap_or_else(|| b"(a file that is being removed)".to_vec());
        let path = owners.get(&data).map_or_else(gone, |ino| path(*ino, &names));
        ranges.entry(chunk).or_default().push(FileRange { path, from, to });
    }
    Ok(ranges)
}

/// Of these data ids those of files in the trash, and what to call them.
fn in_trash(read: &dyn KvRead, wanted: &BTreeSet<u64>) -> Result<BTreeMap<u64, Vec<u8>>, KvError> {
    let mut found = BTreeMap::new();
    for entry in read.scan(TRASH, prefix_range(&keys::trash_entries()), false) {
        let (key, value) = entry?;
        let row = TrashRow::decode(&value)?;
        if let Some(Inode { body: Body::File { data, .. }, .. }) = row.inode()?
            && wanted.contains(&data)
        {
            found.insert(data, format!("({} in the trash, once {})", ino_of(&key)?, row.name).into_bytes());
        }
    }
    Ok(found)
}

/// The path of an inode; its number if it has no name.
fn path(ino: InodeId, names: &BTreeMap<InodeId, (InodeId, Vec<u8>)>) -> Vec<u8> {
    let (mut parts, mut at) = (Vec::new(), ino);
    while at != InodeId::ROOT && parts.len() < DEPTH_MAX {
        let Some((parent, name)) = names.get(&at) else { return format!("({ino}, without a name)").into_bytes() };
        parts.push(name.as_slice());
        at = *parent;
    }
    parts.iter().rev().flat_map(|part| [&b"/"[..], *part]).collect::<Vec<_>>().concat()
}

impl Work {
    /// Tells lost chunks by file and range.
    pub(super) async fn files(&self, lost: Vec<(ChunkId, FindingKind, String)>) -> Result<(), Fault> {
        if lost.is_empty() {
            return Ok(());
        }
        let ids: BTreeSet<ChunkId> = lost.iter().map(|(id, ..)| *id).collect();
        let state = self.member.state.clone();
        let read = move || {
            let mounted = state.mounted();
            let view = mounted.kv().snapshot();
            ranges_of(&*view, &ids)
        };
        let mut ranges = self.node.world.blocking(read).await.map_err(|error| store_failed(&error))?;
        for (chunk, kind, text) in lost {
            let files = ranges.remove(&chunk).unwrap_or_default();
            self.job.found(Finding { kind, text, chunk: Some(chunk), files, mends: false });
        }
        Ok(())
    }
}
