//! Open files: from the kernel's handle to the client's.

use super::Shared;
use super::inodes::{Opening, without_privilege};
use super::locks::Owners;
use super::warm::Writing;
use bytes::Bytes;
use client_fuse::{Fallocate, Handle, OpenFlags, Seek};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::proto::lock::LockSpace;
use common::proto::meta::{Cred, SetAttr};
use common::units::{len_u64, len_usize};
use fuser::{FopenFlags, ReplyData};
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The kernel's own flag for a file that is opened to be executed (`__FMODE_EXEC`).
const OPEN_FOR_EXEC: i32 = 0x20;
/// `fallocate` modes.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
/// `lseek` origins that reach a file system.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The most bytes of one `copy_file_range`: the answer has 32 bits for them.
const COPY_MAX: u64 = 2 << 30;

/// An open file.
pub(super) struct OpenFile {
    pub(super) handle: Handle,
    flags: OpenFlags,
    /// Reads and writes go round the kernel's pages.
    direct: bool,
    /// The number of its opening, for [`Inodes::has_opened`], until that was told; then 0.
    opening: AtomicU64,
    /// What was locked through it and goes with it.
    owners: Owners,
    /// If it may write.
    _writing: Option<Writing>,
}

/// A write as the kernel asks for it.
pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    /// The file's flags now, as in `open(2)`, with those of this one write.
    pub(super) flags: i32,
    /// The kernel writes back a mapped page; it chose any handle of the file that may write, and sends no flags.
    pub(super) from_pages: bool,
    /// A program that is not root wrote, setuid and setgid go.
    pub(super) kill: bool,
}

impl Write {
    /// Whether it goes to the end of the file: `fcntl` may have changed what `open` said.
    fn appends(&self) -> bool {
        !self.from_pages && OFlag::from_bits_retain(self.flags).contains(OFlag::O_APPEND)
    }

    /// Whether it is durable when it is answered: the whole file is, or this write (`RWF_DSYNC`, `mount -o sync`).
    fn is_synced(&self, opened: OpenFlags) -> bool {
        let asked = OFlag::from_bits_retain(self.flags).intersects(OFlag::O_SYNC | OFlag::O_DSYNC);
        opened.sync || (asked && !self.from_pages)
    }
}

/// Open files by the kernel's handle.
#[derive(Default)]
pub(super) struct OpenFiles {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Arc<OpenFile>>>,
}

impl OpenFiles {
    fn insert(&self, file: OpenFile) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().expect("no panic holds this lock").insert(number, Arc::new(file));
        number
    }

    /// Who opened a file. `None`: it is not open.
    pub(super) fn opener(&self, number: u64) -> Option<Cred> {
        self.get(number).ok().map(|file| file.handle.cred().clone())
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<OpenFile>, Fault> {
        let found = self.open.lock().expect("no panic holds this lock").get(&number).cloned();
        found.ok_or_else(|| Fault::new(Kind::Internal, format!("file handle {number} is not open")))
    }

    /// An owner locks through this open file, and may have to let go when it is closed.
    pub(super) fn note_owner(&self, number: u64, owner: (LockSpace, u64)) {
        if let Ok(file) = self.get(number) {
            let mut owners = file.owners.lock().expect("no panic holds this lock");
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
    }

    fn remove(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.open.lock().expect("no panic holds this lock").remove(&number)
    }
}

/// What a program's `open(2)` flags ask for.
pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let bits = OFlag::from_bits_retain(flags);
    let access = bits & OFlag::O_ACCMODE;
    let write = access == OFlag::O_WRONLY || access == OFlag::O_RDWR;
    OpenFlags {
        read: access != OFlag::O_WRONLY,
        write,
        append: write && bits.contains(OFlag::O_APPEND),
        truncate: write && bits.contains(OFlag::O_TRUNC),
        sync: bits.intersects(OFlag::O_SYNC | OFlag::O_DSYNC),
        no_atime: bits.contains(OFlag::O_NOATIME),
    }
}

impl Shared {
    /// Opens a file. Its handle is registered by [`Shared::register`] once the answer is on time.
    pub(super) async fn open_file(&self, cred: Cred, ino: InodeId, flags: i32) -> Result<Opened, Fault> {
        // Who may execute need not be allowed to read: the kernel has checked the one and reads for the other.
        let cred = if flags & OPEN_FOR_EXEC != 0 { Cred::default() } else { cred };
        let wanted = open_flags(flags);
        if wanted.truncate && cred.uid != 0 {
            self.drop_privilege(ino).await?;
        }
        let writing = if wanted.write { Some(self.warm.writing(ino).await) } else { None };
        let handle = self.client.open(&cred, ino, wanted).await?;
        if wanted.truncate {
            self.inodes.changed(ino);
        }
        Ok(Opened { handle, flags: wanted, writing })
    }

    /// Makes a file known to the kernel: its handle number and how its pages are treated.
    pub(super) fn register(self: &Arc<Self>, opened: Opened, flags: i32) -> (u64, FopenFlags) {
        let Opened { handle, flags: wanted, writing } = opened;
        self.inodes.lost(self.client.all_losses());
        let opening = self.inodes.opening(handle.ino(), self.client.versions_of(&handle));
        let keep = opening == Opening::Keep && !self.client.is_access_due(&handle);
        if !self.client.is_leased(handle.ino()) {
            self.recheck_soon(handle.ino()); // what is read from now on may be old by the time it is kept
        }
        let mut answer = FopenFlags::empty();
        let direct = OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT);
        // Through the kernel's pages it would come in pieces of a page, between which others may append. (That is so for who may
        // read as well, who may want to map the file; and for writes above 1 MiB.)
        let only_appends = wanted.append && !wanted.read;
        if direct || only_appends {
            answer |= FopenFlags::FOPEN_DIRECT_IO;
        }
        if keep && !direct {
            answer |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        let owners = Owners::default();
        let opening = AtomicU64::new(if let Opening::Drop(number) = opening { number } else { 0 });
        let direct = direct || only_appends;
        let file = OpenFile { handle, flags: wanted, direct, opening, owners, _writing: writing };
        let number = self.files.insert(file);
        (number, answer)
    }

    /// The kernel asks through this file: it has opened it.
    pub(super) fn has_opened(&self, number: u64) {
        let Ok(file) = self.files.get(number) else { return };
        let opening = file.opening.swap(0, Ordering::Relaxed);
        if opening != 0 {
            self.inodes.has_opened(file.handle.ino(), opening, file.handle.version());
        }
    }

    /// Reads; the pieces go to the kernel by [`reply_pieces`].
    pub(super) async fn read_file(self: &Arc<Self>, number: u64, offset: u64, len: u32) -> Result<Vec<Bytes>, Fault> {
        let file = self.files.get(number)?;
        self.has_opened(number);
        self.inodes.filled(file.handle.ino(), self.client.versions_of(&file.handle).now);
        let read = self.client.read(&file.handle, offset, len).await?;
        let got = read.iter().map(Bytes::len).sum();
        if got < len_usize(u64::from(len)) {
            self.inodes.is_shown_to_end_at(file.handle.ino(), offset + len_u64(got));
        }
        if self.fills
            && !file.direct
            && let Some(at) = self.client.take_dense(&file.handle)
        {
            self.warm_up(&file, at);
        }
        Ok(read)
    }

    /// Writes.
    pub(super) async fn write_file(self: &Arc<Self>, number: u64, write: Write) -> Result<(), Fault> {
        let file = self.files.get(number)?;
        let ino = file.handle.ino();
        if write.kill && self.inodes.is_privileged(ino) {
            self.drop_privilege(ino).await?;
        }
        let (offset, sync) = ((!write.appends()).then_some(write.offset), write.is_synced(file.flags));
        if !file.direct {
            self.inodes.filled(ino, self.client.versions_of(&file.handle).now);
        }
        let written = self.client.write_at(&file.handle, offset, write.bytes, sync).await;
        self.inodes.changed(ino);
        if file.direct {
            self.inodes.spoiled(ino); // the kernel dropped pages before it wrote, and may have read some since
        } else if written.as_ref().is_ok_and(|at| *at != write.offset) {
            self.inodes.spoiled(ino); // the kernel has put it where it took the end to be
            self.recheck_soon(ino); // before somebody changes it there by a mapping
        }
        self.inodes.saved(ino, written.map(|_| ()))
    }

    /// Takes setuid and setgid away before somebody who is not root changes the contents.
    pub(super) async fn drop_privilege(&self, ino: InodeId) -> Result<(), Fault> {
        if !self.inodes.is_privileged(ino) {
            return Ok(());
        }
        let root = Cred::default(); // on behalf of the rule, not of the caller, who may not chmod
        let attr = self.client.getattr(&root, ino).await?;
        let set = SetAttr { mode: Some(without_privilege(attr.permissions())), ..SetAttr::default() };
        match self.client.setattr(&root, ino, set).await {
            Ok(attr) => self.inodes.refreshed(&attr),
            Err(fault) if fault.kind == Kind::NotPermitted => {} // root is squashed: the commit takes them away
            Err(fault) => return Err(fault),
        }
        self.inodes.changed(ino);
        Ok(())
    }

    /// `close(2)` by `owner`: nothing to save for who cannot write; its locks go.
    pub(super) async fn flush_file(&self, number: u64, owner: u64) -> Result<(), Fault> {
        let file = self.files.get(number)?;
        let ino = file.handle.ino();
        let saved = match file.flags.write {
            true => self.inodes.saved(ino, self.client.flush(&file.handle).await),
            false => Ok(()),
        };
        if file.flags.write && saved.is_ok() {
            self.inodes.renew(ino, self.client.versions_of(&file.handle));
        }
        let unlocked = self.drop_range_locks(ino, owner).await;
        saved.and(unlocked)
    }

    /// `fsync(2)`.
    pub(super) async fn sync_file(&self, number: u64) -> Result<(), Fault> {
        let file = self.files.get(number)?;
        self.inodes.saved(file.handle.ino(), self.client.fsync(&file.handle).await)
    }

    /// The last `close`.
    pub(super) async fn release_file(&self, number: u64) -> Result<(), Fault> {
        let Some(file) = self.files.remove(number) else { return Ok(()) };
        let unlocked = self.drop_file_locks(&file.handle, &file.owners).await;
        let ino = file.handle.ino();
        self.inodes.saved(ino, self.client.release(&file.handle).await).and(unlocked)
    }

    /// `fallocate(2)`.
    pub(super) async fn allocate(&self, number: u64, offset: u64, len: u64, mode: i32) -> Result<(), Fault> {
        let file = self.files.get(number)?;
        let what = fallocate_mode(mode)
            .ok_or_else(|| Fault::new(Kind::Unsupported, format!("fallocate mode {mode:#x} is not supported")))?;
        let done = self.client.fallocate(&file.handle, offset, len, what).await;
        self.inodes.changed(file.handle.ino());
        done
    }

    /// `copy_file_range(2)`: how many bytes. The kernel has written out its pages of the one range, and drops those of
    /// the other when it is answered.
    pub(super) async fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u32, Fault> {
        let (source, target) = (self.files.get(from.0)?, self.files.get(to.0)?);
        let len = len.min(COPY_MAX);
        let done = self.client.clone_range((&source.handle, from.1), (&target.handle, to.1), len).await;
        self.inodes.changed(target.handle.ino());
        Ok(u32::try_from(done?).expect("no more than was asked for"))
    }

    /// `lseek(2)` to data or a hole. `None`: `ENXIO`.
    pub(super) async fn seek(&self, number: u64, offset: i64, whence: i32) -> Result<Option<u64>, Fault> {
        let file = self.files.get(number)?;
        let what = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return Err(Fault::new(Kind::Invalid, format!("lseek origin {whence} is not supported"))),
        };
        match u64::try_from(offset) {
            Ok(offset) => self.client.seek(&file.handle, offset, what).await,
            Err(_) => Ok(None),
        }
    }
}

/// A file that was opened but is not known to the kernel yet; if that never happens, dropping it closes it.
pub(super) struct Opened {
    pub(super) handle: Handle,
    pub(super) flags: OpenFlags,
    /// If it may write.
    pub(super) writing: Option<Writing>,
}

/// Hands the pieces of a read to the kernel; one piece goes without a copy.
pub(super) fn reply_pieces(reply: ReplyData, pieces: &[Bytes]) {
    match pieces {
        [] => reply.data(&[]),
        [piece] => reply.data(piece),
        several => reply.data(&several.concat()),
    }
}

fn fallocate_mode(mode: i32) -> Option<Fallocate> {
    const PUNCH_KEEP: i32 = PUNCH_HOLE | KEEP_SIZE;
    const ZERO_KEEP: i32 = ZERO_RANGE | KEEP_SIZE;
    match mode {
        0 => Some(Fallocate::Allocate),
        KEEP_SIZE => Some(Fallocate::KeepSize),
        PUNCH_KEEP => Some(Fallocate::PunchHole),
        ZERO_RANGE => Some(Fallocate::ZeroRange),
        ZERO_KEEP => Some(Fallocate::ZeroKeepSize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_mean_what_open_says() {
        let flags = |bits: OFlag| open_flags(bits.bits());
        let read = flags(OFlag::O_RDONLY | OFlag::O_TRUNC | OFlag::O_APPEND);
        assert_eq!(read, OpenFlags { read: true, ..OpenFlags::default() }, "who only reads neither cuts nor appends");
        let append = flags(OFlag::O_WRONLY | OFlag::O_APPEND);
        assert!(append.write && append.append && !append.read && !append.sync);
        let both = flags(OFlag::O_RDWR | OFlag::O_TRUNC | OFlag::O_DSYNC);
        assert!(both.read && both.write && both.truncate && both.sync);
    }

    #[test]
    fn a_write_appends_and_syncs_as_its_own_flags_say() {
        let opened = |bits: OFlag| open_flags((OFlag::O_RDWR | bits).bits());
        let write = |bits: OFlag, from_pages| {
            let flags = (OFlag::O_RDWR | bits).bits();
            Write { offset: 7, bytes: Bytes::new(), flags, from_pages, kill: false }
        };
        let (none, append, dsync) = (OFlag::empty(), OFlag::O_APPEND, OFlag::O_DSYNC);
        assert!(!write(none, false).appends(), "F_SETFL has cleared what open said");
        assert!(write(append, false).appends());
        assert!(!write(append, true).appends(), "a page knows its place");
        assert!(write(dsync, false).is_synced(opened(none)), "RWF_DSYNC");
        assert!(write(none, false).is_synced(opened(dsync)));
        assert!(!write(none, false).is_synced(opened(append)));
    }

    #[test]
    fn unknown_fallocate_modes_are_refused() {
        assert_eq!(fallocate_mode(3), Some(Fallocate::PunchHole));
        assert_eq!(fallocate_mode(2), None, "punching always keeps the size");
        assert_eq!(fallocate_mode(8), None, "collapsing is not supported");
    }
}
