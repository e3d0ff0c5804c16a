//! The invariants of the namespace, checked over a whole store: for tests after every sequence, later for fsck.

use super::rows::{config, counters};
use crate::store::keys::{self, CHUNK, DEGRADED, DENTRY, EXTENT, INODE, LIST, ORPHAN, PURGE, SESSION, XATTR};
use crate::store::values::{Body, ChunkRow, Counters, Data, Degraded, Dentry, ExtentRow, Inode, Listed, Purge};
use crate::store::values::{SessionRow, Value};
use bytes::Bytes;
use common::id::{ChunkId, InodeId};
use common::kv::{Family, KvError, KvRead};
use common::proto::meta::FileKind;
use common::units::{len_u32, len_u64};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Everything that is wrong, one line each. Empty: all invariants hold. Reads the whole store into memory.
pub fn check(read: &dyn KvRead) -> Result<Vec<String>, KvError> {
    if config(read)?.is_none() {
        return Ok(Vec::new());
    }
    let inodes = all(read, INODE, |key, value| Ok((first(key), Inode::decode(value)?)))?.into_iter().collect();
    let mut check = Check { read, inodes, wrong: Vec::new(), found: Counters::default() };
    check.entries()?;
    check.orphans()?;
    check.xattrs()?;
    let references = check.extents()?;
    check.chunks(references)?;
    check.totals()?;
    Ok(check.wrong)
}

struct Check<'a> {
    read: &'a dyn KvRead,
    inodes: BTreeMap<u64, Inode>,
    wrong: Vec<String>,
    found: Counters,
}

/// For each chunk its length, and references by target.
type References = BTreeMap<ChunkId, (u32, BTreeMap<u8, u64>)>;

fn all<T>(
    read: &dyn KvRead,
    family: Family,
    each: impl Fn(&Bytes, &Bytes) -> Result<T, KvError>,
) -> Result<Vec<T>, KvError> {
    read.scan(family, (Bound::Unbounded, Bound::Unbounded), false)
        .map(|found| found.and_then(|(key, value)| each(&key, &value)))
        .collect()
}

fn first(key: &Bytes) -> u64 {
    keys::first_u64(key).unwrap_or(0)
}

fn last(key: &Bytes) -> u64 {
    keys::last_u64(key).unwrap_or(0)
}

impl Check<'_> {
    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    /// Entries by name and by cookie agree, lead to inodes, and are counted.
    fn entries(&mut self) -> Result<(), KvError> {
        let named = all(self.read, DENTRY, |key, value| {
            let name = key.get(8..).unwrap_or_default().to_vec();
            Ok(((first(key), name), Dentry::decode(value)?))
        })?;
        let mut listed: BTreeMap<(u64, u64), Listed> =
            all(self.read, LIST, |key, value| Ok(((first(key), last(key)), Listed::decode(value)?)))?
                .into_iter()
                .collect();
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
        let mut subdirs: BTreeMap<u64, u32> = BTreeMap::new();
        let mut entries: BTreeMap<u64, u64> = BTreeMap::new();
        for ((parent, name), entry) in named {
            let twin = listed.remove(&(parent, entry.cookie));
            let same = twin.is_some_and(|t| t.ino == entry.ino && t.kind == entry.kind && t.name.as_bytes() == name);
            self.expect(same, || format!("i{parent}: entry {name:?} and its listing differ"));
            *names.entry(entry.ino).or_default() += 1;
            *entries.entry(parent).or_default() += 1;
            let inode = self.inodes.get(&entry.ino.0).cloned();
            self.expect(inode.as_ref().is_some_and(|i| i.kind == entry.kind), || {
                format!("i{parent}: entry {name:?} leads to {}, which is not there or of another kind", entry.ino)
            });
            if let Some(Inode { body: Body::Dir { parent: back, .. }, .. }) = inode {
                *subdirs.entry(parent).or_default() += 1;
                self.expect(back.0 == parent, || {
                    format!("{}: its parent is {back}, its entry in i{parent}", entry.ino)
                });
            }
        }
        self.expect(listed.is_empty(), || format!("listings without an entry: {:?}", listed.keys()));
        for (ino, inode) in self.inodes.clone() {
            let named = names.get(&InodeId(ino)).copied().unwrap_or(0);
            if let Body::Dir { parent, entries: counted, next_cookie } = inode.body {
                let root = ino == InodeId::ROOT.0;
                let have = entries.remove(&ino).unwrap_or(0);
                self.expect(counted == have, || format!("i{ino}: counts {counted} entries, has {have}"));
                let nlink = 2 + subdirs.get(&ino).copied().unwrap_or(0);
                self.expect(inode.nlink == nlink, || format!("i{ino}: nlink {} of {nlink}", inode.nlink));
                self.expect(named == u32::from(!root), || format!("i{ino}: a directory with {named} entries"));
                self.expect(next_cookie > have, || format!("i{ino}: next cookie {next_cookie}"));
                self.expect(self.reaches_root(ino, parent), || format!("i{ino}: does not hang on the root"));
            } else {
                self.expect(inode.nlink == named, || format!("i{ino}: nlink {}, {named} entries", inode.nlink));
            }
        }
        self.expect(entries.is_empty(), || format!("entries in what is no directory: {:?}", entries.keys()));
        Ok(())
    }

    fn reaches_root(&self, ino: u64, parent: InodeId) -> bool {
        let (mut at, mut next) = (ino, parent);
        for _ in 0..=self.inodes.len() {
            if at == InodeId::ROOT.0 {
                return true;
            }
            let Some(Inode { body: Body::Dir { parent, .. }, .. }) = self.inodes.get(&next.0) else { return false };
            (at, next) = (next.0, *parent);
        }
        false
    }

    /// Exactly the inodes without a name are orphans, once each, of an open session.
    fn orphans(&mut self) -> Result<(), KvError> {
        let open: BTreeSet<_> =
            all(self.read, SESSION, |key, value| Ok((keys::first_session(key), SessionRow::decode(value)?.ended)))?
                .into_iter()
                .filter_map(|(session, ended)| session.filter(|_| !ended))
                .collect();
        self.found.sessions = len_u64(open.len());
        let mut nameless: BTreeSet<u64> =
            self.inodes.iter().filter(|(_, i)| i.nlink == 0).map(|(ino, _)| *ino).collect();
        for (session, ino) in all(self.read, ORPHAN, |key, _| Ok((keys::first_session(key), last(key))))? {
            self.expect(session.is_some_and(|s| open.contains(&s)), || format!("i{ino}: orphan of a session not open"));
            self.expect(nameless.remove(&ino), || format!("i{ino}: an orphan with names, twice, or not there"));
        }
        self.expect(nameless.is_empty(), || format!("inodes without names that are no orphans: {nameless:?}"));
        Ok(())
    }

    fn xattrs(&mut self) -> Result<(), KvError> {
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        for (ino, len) in all(self.read, XATTR, |key, _| Ok((first(key), len_u32(key.len() - 8 + 1))))? {
            *names.entry(ino).or_default() += len;
        }
        for (ino, inode) in self.inodes.clone() {
            let have = names.remove(&ino).unwrap_or(0);
            self.expect(inode.xattr_names == have, || {
                format!("i{ino}: {} bytes of names, has {have}", inode.xattr_names)
            });
        }
        self.expect(names.is_empty(), || format!("attributes without an inode: {:?}", names.keys()));
        Ok(())
    }

    /// Extents do not overlap, lie inside their file and chunk, and are counted.
    fn extents(&mut self) -> Result<References, KvError> {
        let mut owners: BTreeMap<u64, Option<InodeId>> =
            all(self.read, PURGE, |key, _| Ok((first(key), None)))?.into_iter().collect();
        let mut targets: BTreeMap<u64, u8> =
            all(self.read, PURGE, |key, value| Ok((first(key), Purge::decode(value)?.replicas)))?.into_iter().collect();
        for (ino, inode) in &self.inodes {
            if let Body::File { data, .. } = inode.body {
                owners.insert(data, Some(InodeId(*ino)));
                targets.insert(data, inode.replicas);
            }
        }
        let mut references = References::new();
        let mut sums: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new(); // data -> extents, bytes, end
        for (data, at, row) in
            all(self.read, EXTENT, |key, value| Ok((first(key), last(key), ExtentRow::decode(value)?)))?
        {
            let (extents, bytes, end) = sums.entry(data).or_default();
            let overlaps = at < *end;
            (*extents, *bytes, *end) = (*extents + 1, *bytes + row.len, at + row.len);
            self.expect(!overlaps && row.len > 0, || format!("data {data}: extent at {at} overlaps or is empty"));
            self.expect(owners.contains_key(&data), || format!("data {data}: extents of nobody"));
            let room = match &row.data {
                Data::Chunk { id, offset, chunk_len } => {
                    let (len, counts) = references.entry(*id).or_insert((*chunk_len, BTreeMap::new()));
                    let agrees = *len == *chunk_len;
                    *counts.entry(targets.get(&data).copied().unwrap_or(0)).or_default() += 1;
                    self.expect(agrees, || format!("chunk {id}: extents disagree about its length"));
                    u64::from(*chunk_len).saturating_sub(u64::from(*offset))
                }
                Data::Inline { id, offset, bytes } => {
                    self.expect(ChunkId::of(bytes) == *id, || {
                        format!("data {data}: inline bytes at {at} are not {id}")
                    });
                    len_u64(bytes.len()).saturating_sub(u64::from(*offset))
                }
            };
            self.expect(row.len <= room, || format!("data {data}: extent at {at} is longer than its bytes"));
        }
        for (ino, inode) in self.inodes.clone() {
            if let Body::File { size, allocated, extents, data, .. } = inode.body {
                let (have, bytes, end) = sums.get(&data).copied().unwrap_or_default();
                self.expect((extents, allocated) == (have, bytes), || {
                    format!("i{ino}: counts {extents} extents of {allocated} bytes, has {have} of {bytes}")
                });
                self.expect(end <= size, || format!("i{ino}: extents to {end}, size {size}"));
                self.found.logical_bytes += bytes;
            }
        }
        Ok(references)
    }

    /// Chunk rows are what the extents add up to; degraded rows belong to chunks.
    fn chunks(&mut self, mut references: References) -> Result<(), KvError> {
        let mut there = BTreeSet::new();
        for (id, row) in all(self.read, CHUNK, |key, value| Ok((id_of(key), ChunkRow::decode(value)?)))? {
            let counted = references.remove(&id);
            let same = counted.as_ref().is_some_and(|(len, refs)| *len == row.len && *refs == row.refs);
            self.expect(same, || format!("chunk {id}: row {row:?}, counted {counted:?}"));
            self.found.chunks += 1;
            self.found.chunk_bytes += u64::from(row.len);
            there.insert(id);
        }
        self.expect(references.is_empty(), || format!("chunks without a row: {:?}", references.keys()));
        for (id, row) in all(self.read, DEGRADED, |key, value| Ok((id_of(key), Degraded::decode(value)?)))? {
            self.expect(there.contains(&id), || format!("degraded {id}: the chunk is not there"));
            self.expect(row.servers.is_sorted_by(|a, b| a < b), || format!("degraded {id}: {:?}", row.servers));
            self.found.degraded += 1;
        }
        Ok(())
    }

    fn totals(&mut self) -> Result<(), KvError> {
        let counted = counters(self.read)?;
        self.found.inodes = len_u64(self.inodes.len());
        let highest = self.inodes.last_key_value().map_or(0, |(ino, _)| *ino);
        self.expect(highest < counted.next_ino, || format!("i{highest} is there, the next is {}", counted.next_ino));
        let rest = Counters {
            inodes: self.found.inodes,
            logical_bytes: self.found.logical_bytes,
            chunks: self.found.chunks,
            chunk_bytes: self.found.chunk_bytes,
            degraded: self.found.degraded,
            sessions: self.found.sessions,
            ..counted
        };
        self.expect(rest == counted, || format!("counters {counted:?}, rows add up to {rest:?}"));
        let root = self.inodes.get(&InodeId::ROOT.0).map(|root| root.kind);
        self.expect(root == Some(FileKind::Dir), || "no root directory".into());
        Ok(())
    }
}

fn id_of(key: &Bytes) -> ChunkId {
    ChunkId(key.last_chunk::<32>().copied().unwrap_or_default())
}
