//! Open directories: listings are fetched in large pieces and handed to the kernel in its small ones.
//!
//! The kernel's offset is the cookie of the entry before, plus 2: 0 comes before `.`, 1 before `..`, 2 before the first
//! entry. Attributes go out only while they are younger than [`FRESH`] and this mount did not change the inode since they
//! were read; else they are read again.

use super::Shared;
use super::attrs::{file_attr, file_type};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Attr, Cred, DirEntry, FileKind};
use fuser::{FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

/// Entries fetched at once, with attributes.
const FETCH_PLUS: u32 = 1024;
/// Entries fetched at once, without.
const FETCH: u32 = 4096;
/// How old attributes of a piece may be. (The kernel believes them only if they are certain.)
const FRESH: Duration = Duration::from_secs(1);
/// Entries offered to one answer: more than the kernel's buffer holds in practice.
const OFFER: usize = 256;

/// Listings under way, by file handle.
#[derive(Debug, Default)]
pub(super) struct OpenDirs {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<OpenDir>>>,
}

/// An open directory.
#[derive(Debug, Default)]
struct OpenDir {
    piece: AsyncMutex<Piece>,
    /// Losses of changes that who holds it was told.
    told_losses: AtomicU64,
}

/// A piece of a listing.
#[derive(Debug, Default)]
struct Piece {
    /// Kernel offset before the first entry of it; `None`: nothing was fetched.
    from: Option<u64>,
    entries: Vec<DirEntry>,
    with_attrs: bool,
    end: bool,
    parent: InodeId,
    /// When it was fetched, and the order of this mount's changes at that time.
    fetched: Option<Instant>,
    mark: u64,
}

/// What is handed to the kernel, in order: kernel offset behind the entry, inode, kind, name, attributes.
pub(super) struct Row {
    after: u64,
    ino: InodeId,
    kind: FileKind,
    name: Vec<u8>,
    /// With the checked name; `None` for `.` and `..`, and where no attributes are wanted.
    attr: Option<(Name, Attr)>,
}

impl OpenDirs {
    /// A new handle; `losses`: those that its holder may know of.
    pub(super) fn open(&self, losses: u64) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let dir = OpenDir { told_losses: AtomicU64::new(losses), ..OpenDir::default() };
        self.open.lock().expect("no panic holds this lock").insert(number, Arc::new(dir));
        number
    }

    /// The handle is closed.
    pub(super) fn close(&self, number: u64) {
        self.open.lock().expect("no panic holds this lock").remove(&number);
    }

    fn get(&self, number: u64) -> Option<Arc<OpenDir>> {
        self.open.lock().expect("no panic holds this lock").get(&number).cloned()
    }
}

impl Shared {
    /// The next rows of a listing behind the kernel's `offset`, with attributes if `plus`.
    pub(super) async fn list(
        &self,
        cred: Cred,
        dir: InodeId,
        handle: u64,
        offset: u64,
        plus: bool,
    ) -> Result<Vec<Row>, Fault> {
        let Some(open) = self.dirs.get(handle) else {
            return Err(Fault::new(Kind::Internal, format!("readdir {dir}: no such handle")));
        };
        let mut piece = open.piece.lock().await;
        let mut rows = Vec::new();
        let mut fetched = false;
        if !piece.covers(offset, plus) {
            self.fetch(&cred, dir, offset.saturating_sub(2), plus, &mut piece).await?;
            fetched = true;
        }
        if offset == 0 {
            rows.push(dot(1, dir, b"."));
        }
        if offset <= 1 {
            rows.push(dot(2, piece.parent, b".."));
        }
        let mut offset = offset;
        loop {
            let start = piece.position(offset);
            for entry in piece.entries[start..].iter().take(OFFER) {
                offset = entry.cookie + 2;
                let attr =
                    if plus { self.fresh(&cred, dir, entry, fetched.then_some(piece.mark)).await? } else { None };
                if plus && attr.is_none() {
                    continue; // it is gone by now
                }
                let name = entry.name.as_bytes().to_vec();
                let (ino, kind) = attr.as_ref().map_or((entry.ino, entry.kind), |attr| (attr.ino, attr.kind));
                let attr = attr.map(|attr| (entry.name.clone(), attr));
                rows.push(Row { after: offset, ino, kind, name, attr });
            }
            // No rows would mean the end to the kernel.
            if !rows.is_empty() || (piece.end && piece.position(offset) == piece.entries.len()) {
                break;
            }
            if !piece.covers(offset, plus) {
                self.fetch(&cred, dir, offset.saturating_sub(2), plus, &mut piece).await?;
                fetched = true;
            }
        }
        if rows.is_empty() {
            *piece = Piece::default(); // the end: who keeps the directory open takes no memory
        }
        Ok(rows)
    }

    async fn fetch(&self, cred: &Cred, dir: InodeId, after: u64, plus: bool, piece: &mut Piece) -> Result<(), Fault> {
        let (mark, now) = (self.inodes.mark(), Instant::now());
        let listing = self.client.readdir(cred, dir, after, if plus { FETCH_PLUS } else { FETCH }, plus).await?;
        *piece = Piece {
            from: Some(if after == 0 { 0 } else { after + 2 }),
            end: listing.end || listing.entries.is_empty(),
            entries: listing.entries,
            with_attrs: plus,
            parent: listing.parent,
            fetched: Some(now),
            mark,
        };
        Ok(())
    }

    /// `fsync` of a directory: all changes that were made before are durable.
    pub(super) async fn sync_dir(&self, handle: u64) -> Result<(), Fault> {
        let no_handle = || Fault::new(Kind::Internal, "fsyncdir: no such handle");
        let open = self.dirs.get(handle).ok_or_else(no_handle)?;
        self.client.sync_changes(&open.told_losses).await
    }

    /// The entry's attributes: as they came just now, if this mount has changed nothing since `mark`; else asked for again,
    /// which costs nothing under a lease. If the inode is gone, its name may lead to another one, by which it was replaced:
    /// such a name stays in the listing. `None`: the name is gone.
    async fn fresh(
        &self,
        cred: &Cred,
        dir: InodeId,
        entry: &DirEntry,
        mark: Option<u64>,
    ) -> Result<Option<Attr>, Fault> {
        let is_gone = |fault: &Fault| matches!(fault.kind, Kind::NotFound | Kind::Gone);
        match &entry.attr {
            Some(attr) if mark.is_some_and(|mark| !self.inodes.changed_since(entry.ino, mark)) => {
                Ok(Some(attr.clone()))
            }
            _ => match self.client.getattr(cred, entry.ino).await {
                Ok(attr) => Ok(Some(attr)),
                Err(fault) if is_gone(&fault) => match self.client.lookup(cred, dir, &entry.name).await {
                    Ok(attr) => Ok(Some(attr)),
                    Err(fault) if is_gone(&fault) => Ok(None),
                    Err(fault) => Err(fault),
                },
                Err(fault) => Err(fault),
            },
        }
    }

    /// Fills the kernel's buffer with names.
    pub(super) fn reply_rows(&self, mut reply: ReplyDirectory, rows: &[Row]) {
        for row in rows {
            if reply.add(INodeNo(row.ino.0), row.after, file_type(row.kind), OsStr::from_bytes(&row.name)) {
                break;
            }
        }
        reply.ok();
    }

    /// Fills the kernel's buffer with names and attributes: each but `.` and `..` counts as a lookup.
    pub(super) fn reply_rows_plus(&self, mut reply: ReplyDirectoryPlus, dir: InodeId, rows: &[Row]) {
        let _gate = self.showing(); // until it is written
        let mut believed = false;
        for row in rows {
            let name = OsStr::from_bytes(&row.name);
            let number = INodeNo(row.ino.0);
            let full = match &row.attr {
                None => reply.add(number, row.after, name, &Duration::ZERO, &dot_attr(number), Generation(0)),
                Some((checked, attr)) => {
                    let mut full = false;
                    self.show_within(attr, Some((dir, checked)), |attr, ttl| {
                        self.inodes.shown(attr); // before the kernel can ask about it
                        believed |= !ttl.is_zero();
                        full = reply.add(number, row.after, name, &ttl, &file_attr(attr), Generation(0));
                    });
                    if full {
                        self.inodes.forget(attr.ino, 1);
                    }
                    full
                }
            };
            if full {
                break;
            }
        }
        reply.ok();
        if believed {
            self.coherence.listed();
        }
    }
}

impl Piece {
    /// True if what comes behind the kernel's `offset` is here. A listing from the start is always fetched anew.
    fn covers(&self, offset: u64, plus: bool) -> bool {
        let fresh = self.fetched.is_some_and(|at| !plus || (self.with_attrs && at.elapsed() < FRESH));
        let known = match self.from {
            Some(_) if offset == 0 => false,
            Some(from) if offset == from || (from == 0 && offset <= 2) => true,
            Some(_) => self.entries.iter().any(|e| e.cookie + 2 == offset),
            None => false,
        };
        let at_end = self.entries.last().is_some_and(|e| e.cookie + 2 == offset);
        fresh && known && (!at_end || self.end)
    }

    /// The index of the first entry behind the kernel's `offset`.
    fn position(&self, offset: u64) -> usize {
        self.entries.partition_point(|e| e.cookie + 2 <= offset)
    }
}

fn dot(after: u64, ino: InodeId, name: &[u8]) -> Row {
    Row { after, ino, kind: FileKind::Dir, name: name.to_vec(), attr: None }
}

/// `.` and `..`: the kernel takes only number and kind of them.
fn dot_attr(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(from: u64, cookies: &[u64], end: bool) -> Piece {
        let entry = |cookie: &u64| DirEntry {
            name: Name::new(format!("n{cookie}").into_bytes()).unwrap(),
            ino: InodeId(*cookie + 100),
            kind: FileKind::File,
            cookie: *cookie,
            attr: None,
        };
        let entries = cookies.iter().map(entry).collect();
        Piece { from: Some(from), entries, end, fetched: Some(Instant::now()), ..Piece::default() }
    }

    #[tokio::test]
    async fn a_piece_goes_on_where_the_kernel_left_off() {
        let first = piece(0, &[5, 9, 12], false);
        assert!(first.covers(1, false) && first.covers(2, false));
        assert_eq!(first.position(2), 0);
        assert!(first.covers(5 + 2, false));
        assert_eq!(first.position(5 + 2), 1);
        assert!(!first.covers(12 + 2, false), "the next piece must be fetched");
        assert!(!first.covers(0, false), "from the start: anew");
        assert!(!first.covers(7 + 2, false), "not an entry of this piece");
        assert!(piece(0, &[5], true).covers(5 + 2, false), "the end is known");
        assert!(!first.covers(5 + 2, true), "no attributes here");
    }
}
