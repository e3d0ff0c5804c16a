//! Open files: the part of [`Client`] that reads and writes them.

use crate::client::{Client, NewMode, not_a_file};
use crate::core::Core;
use crate::extents::Part;
use crate::handle::{Handle, Inside, OpenFlags};
use crate::inode::Inode;
use crate::leases::{may_open, owns};
use crate::meta::unexpected;
use crate::read::Around;
use bytes::{Bytes, BytesMut};
use common::fault::{Fault, Kind};
use common::id::{InodeId, LayoutVersion};
use common::name::Name;
use common::proto::meta::{
    Answer, Attr, CloneRange, Commit, Cred, Edit, ExtentRun, FileKind, NewNode, Op, Outcome, Query, SetAttr, Source,
};
use common::units::{FILE_SIZE_MAX, len_u64, len_usize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// A piece of [`Client::put_stream`], in bytes.
const PUT_PIECE: usize = 1 << 20;
/// A piece of [`Client::get_stream`], in bytes.
const GET_PIECE: u32 = 4 << 20;

/// What [`Client::fallocate`] does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Grow the file to the end of the range if it is shorter (mode 0). Space is not reserved.
    Allocate,
    /// Nothing visible (`KEEP_SIZE` without `PUNCH_HOLE`): checked, then done.
    KeepSize,
    /// Zeros in the range, size unchanged (`PUNCH_HOLE | KEEP_SIZE`).
    PunchHole,
    /// Zeros in the range, size grows to its end (`ZERO_RANGE`).
    ZeroRange,
    /// Zeros in the range, size unchanged (`ZERO_RANGE | KEEP_SIZE`).
    ZeroKeepSize,
}

/// What [`Client::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

/// Called with the bytes done so far.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl Client {
    /// Makes and opens a regular file in one round trip (`O_CREAT`); unless `exclusive`, opens it if it is there. True:
    /// it is new.
    pub async fn create_open(
        &self,
        cred: &Cred,
        parent: InodeId,
        name: &Name,
        mode: impl Into<NewMode> + Send,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(Handle, bool), Fault> {
        let op = mode.into().create(parent, name.clone(), NewNode::File, exclusive, flags.access());
        let _opening = self.core.opening().await?;
        // Before: a loss that comes between is the handle's to tell.
        let (losses, all_losses) = (self.losses(), self.all_losses());
        match self.submit(cred, op).await? {
            Outcome::Created { attr, new, .. } => {
                let run = new.then_some(ExtentRun { extents: Vec::new(), covered: u64::MAX });
                let flags = OpenFlags { truncate: flags.truncate && !new, ..flags };
                Ok((self.opened(cred, (&attr, losses, all_losses), run, flags).await?, new))
            }
            other => Err(unexpected("create", &other)),
        }
    }

    /// Opens a regular file: access is checked, attributes and first extents come in the same round trip. A small file whose
    /// lease came with what it holds is opened without one.
    pub async fn open(&self, cred: &Cred, ino: InodeId, flags: OpenFlags) -> Result<Handle, Fault> {
        let _opening = self.core.opening().await?;
        let (losses, all_losses) = (self.losses(), self.all_losses());
        // The right of others than the owner to write is for the metaservers to remember.
        if let Some((attr, run)) = self.core.leases.whole(ino, self.core.world.uptime())
            && may_open(&attr, cred, flags.access())
            && (!flags.write || owns(&attr, cred))
        {
            return self.opened(cred, (&attr, losses, all_losses), Some(run), flags).await;
        }
        let ahead = if flags.write { Vec::new() } else { self.core.leases.opens_next(ino) };
        let guesses = !ahead.is_empty();
        let query = Query::Open { ino, access: flags.access(), ahead };
        match self.core.query(cred, query, self.core.meta.deadline()).await? {
            Answer::Opened { attr, run, ahead } => {
                if guesses {
                    self.core.leases.opened_next(ino, ahead);
                }
                self.opened(cred, (&attr, losses, all_losses), Some(run), flags).await
            }
            other => Err(unexpected("open", &other)),
        }
    }

    async fn opened(
        &self,
        cred: &Cred,
        (attr, losses, all_losses): (&Attr, u64, u64),
        run: Option<ExtentRun>,
        flags: OpenFlags,
    ) -> Result<Handle, Fault> {
        if attr.kind != FileKind::File {
            return Err(not_a_file(attr));
        }
        let handle = Handle(Arc::new(Inside::new(&self.core, cred, (attr, losses), flags)?));
        let inside = &handle.0;
        if let Some(run) = run {
            let mut state = inside.inode.lock();
            state.extents.learn(attr.version, 0, &run);
            if state.fragments.is_empty() {
                state.count_fragments(run.extents.iter().map(|extent| extent.at..extent.at + extent.len));
            }
        }
        if self.all_losses() != all_losses {
            inside.inode.lock().lost_version(); // perhaps this one, before it was noted here
        }
        if flags.truncate {
            // Of an empty file too: its times change.
            let set = SetAttr { size: Some(0), opened: true, ..SetAttr::default() };
            self.core.set_attr_saved(&inside.inode, cred, set).await?;
        }
        Ok(handle)
    }

    /// Up to `len` bytes from `offset`, in pieces that are to be put together in order. Shorter at the end of the file.
    pub async fn read(&self, handle: &Handle, offset: u64, len: u32) -> Result<Vec<Bytes>, Fault> {
        if !handle.0.flags.read {
            return Err(Fault::new(Kind::Invalid, "not open for reading"));
        }
        self.core.read(&handle.0, offset, len).await
    }

    /// A place in a chunk that was read densely enough for the whole of it to be read: each is told once. See [`Around`].
    pub fn take_dense(&self, handle: &Handle) -> Option<u64> {
        let dense = &handle.0.inode.dense;
        if dense.load(Ordering::Relaxed) == 0 {
            return None;
        }
        dense.swap(0, Ordering::Relaxed).checked_sub(1)
    }

    /// The bytes around a place. `None`: they are not to be had now, which is no error.
    pub async fn read_around(&self, handle: &Handle, at: u64) -> Result<Option<Around>, Fault> {
        self.core.read_around(&handle.0, at).await
    }

    /// The last page of the file. `None`: it changes, something of it is unsaved, or it is empty.
    pub async fn read_end(&self, handle: &Handle) -> Result<Option<Around>, Fault> {
        self.core.read_end(&handle.0).await
    }

    /// Takes the bytes: visible to every reader of this client at once, durable at the next `fsync`. Waits while too
    /// much is unsaved. Returns where they went (for `append`).
    pub async fn write(&self, handle: &Handle, offset: u64, bytes: Bytes) -> Result<u64, Fault> {
        let OpenFlags { append, sync, .. } = handle.0.flags;
        self.write_at(handle, (!append).then_some(offset), bytes, sync).await
    }

    /// As [`Client::write`], but whether it appends (`None`) and whether it is durable when it returns is said by the
    /// caller and not by the handle: programs change both for one write or one open file.
    pub async fn write_at(&self, handle: &Handle, offset: Option<u64>, bytes: Bytes, sync: bool) -> Result<u64, Fault> {
        let inside = &handle.0;
        if !inside.flags.write {
            return Err(Fault::new(Kind::Invalid, "not open for writing"));
        }
        inside.check()?;
        let at = self.core.write(&inside.inode, offset, bytes).await?;
        if sync {
            self.fsync(handle).await?;
        }
        Ok(at)
    }

    /// `close(2)`: commits what is unsaved of the file, so that every mount sees it. Durable like `fsync`, unless the commit
    /// was decided here, under a write lease: then its chunks are, and the commit will be within a second.
    pub async fn flush(&self, handle: &Handle) -> Result<(), Fault> {
        let inside = &handle.0;
        if !inside.flags.write {
            return inside.check();
        }
        let saved = self.core.save(&inside.inode, self.core.meta.deadline()).await;
        inside.check().and(saved)
    }

    /// Makes everything written to the file before this call durable, and with it all changes before it.
    pub async fn fsync(&self, handle: &Handle) -> Result<(), Fault> {
        let inside = &handle.0;
        let deadline = self.core.meta.deadline();
        let saved = self.core.save(&inside.inode, deadline).await;
        let told = self.core.tell_all(deadline).await;
        inside.check().and(saved).and(told)
    }

    /// How many losses of changes that this client had answered for somebody was told of: who opens something now is told of
    /// the others.
    pub fn losses(&self) -> u64 {
        self.core.told_losses.load(Ordering::Acquire)
    }

    /// How often data versions that this client had shown turned out not to be: changes that it had answered for were lost,
    /// whether or not somebody was told, or the metadata went back to a backup.
    pub fn all_losses(&self) -> u64 {
        self.core.leases.losses() + self.core.meta.lives()
    }

    /// Makes all changes of names and attributes before this call durable (`fsync` of a directory). An error as well if there
    /// were more losses than the caller was `told` of, which is noted there.
    pub async fn sync_changes(&self, told: &AtomicU64) -> Result<(), Fault> {
        self.sync_changes_by(told, self.core.meta.deadline()).await
    }

    pub(crate) async fn sync_changes_by(&self, told: &AtomicU64, deadline: Instant) -> Result<(), Fault> {
        let all = self.core.tell_all(deadline).await;
        self.core.told_losses(told).and(all)
    }

    /// Changes a range of the file.
    pub async fn fallocate(&self, handle: &Handle, offset: u64, len: u64, what: Fallocate) -> Result<(), Fault> {
        let inside = &handle.0;
        let end = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or_else(|| Fault::new(Kind::TooBig, format!("files end at {FILE_SIZE_MAX} bytes")))?;
        if !inside.flags.write || len == 0 {
            return Err(Fault::new(Kind::Invalid, "not open for writing, or an empty range"));
        }
        inside.check()?;
        match what {
            Fallocate::KeepSize => Ok(()),
            Fallocate::Allocate => {
                self.core.refresh(&inside.inode, &inside.cred).await?;
                let longer = end > inside.inode.lock().size();
                if longer { self.core.grow(&inside.inode, end).await } else { Ok(()) }
            }
            Fallocate::PunchHole | Fallocate::ZeroKeepSize => self.core.punch(&inside.inode, offset, len, 0).await,
            Fallocate::ZeroRange => self.core.punch(&inside.inode, offset, len, end).await,
        }
    }

    /// Makes `len` bytes of `to` from `at` on what `from` has from `from_at` on, without moving them (`copy_file_range`).
    /// Returns how many bytes that were: fewer where `from` ends, or has very many extents; 0 behind its end. Unsaved
    /// bytes of both files are saved first.
    pub async fn clone_range(
        &self,
        (from, from_at): (&Handle, u64),
        (to, at): (&Handle, u64),
        len: u64,
    ) -> Result<u64, Fault> {
        let (source, target) = (&from.0, &to.0);
        if !source.flags.read || !target.flags.write {
            return Err(Fault::new(Kind::Invalid, "not open for reading, or not for writing"));
        }
        target.check()?;
        let range = CloneRange { from: source.inode.ino, from_at, to: target.inode.ino, at, len };
        let cloned = self.core.clone_range(&source.inode, &target.inode, &target.cred, range).await;
        // The metaservers look at one user's rights. Whoever has both open may read and write instead.
        cloned.map_err(|fault| match fault.kind {
            Kind::Denied if source.cred != target.cred => Fault { kind: Kind::Unsupported, ..fault },
            _ => fault,
        })
    }

    /// The first byte at or behind `offset` that is data, or that is in a hole (the end of the file counts as one).
    /// `None`: there is none (`ENXIO`). Saves what is unsaved of the file first.
    pub async fn seek(&self, handle: &Handle, offset: u64, what: Seek) -> Result<Option<u64>, Fault> {
        let inside = &handle.0;
        let deadline = self.core.meta.deadline();
        self.core.save(&inside.inode, deadline).await?;
        self.core.refresh(&inside.inode, &inside.cred).await?; // of what others have made of it, too
        let size = inside.inode.lock().size();
        let mut at = offset;
        while at < size {
            let parts = self.core.first_extents(&inside.inode, &inside.cred, at..size, deadline).await?;
            at = parts.last().expect("at least one part").0.end;
            let is_wanted = |part: &&Part| part.1.is_none() == (what == Seek::Hole);
            if let Some((range, _)) = parts.iter().find(is_wanted) {
                return Ok(Some(range.start));
            }
        }
        Ok((what == Seek::Hole && offset < size).then_some(size))
    }

    /// The last `close`: saves what is unsaved and forgets the handle. Idempotent.
    pub async fn release(&self, handle: &Handle) -> Result<(), Fault> {
        let inside = &handle.0;
        if !inside.begin_release() {
            return Ok(());
        }
        // Also of a file without a name: another mount may have it open, and it may be brought back from the trash.
        let saved = if inside.flags.write { self.flush(handle).await } else { Ok(()) };
        self.core.leave(&inside.inode);
        self.core.reap();
        saved
    }

    /// Writes all of `source` from offset 0 on, many chunks at a time, and makes it durable. Returns the length.
    pub async fn put_stream(
        &self,
        handle: &Handle,
        source: &mut (dyn AsyncRead + Send + Unpin),
        progress: Option<Progress>,
    ) -> Result<u64, Fault> {
        let mut at = 0;
        loop {
            let mut piece = BytesMut::with_capacity(PUT_PIECE);
            while piece.len() < PUT_PIECE {
                let room = PUT_PIECE - piece.len();
                let read = (&mut *source).take(len_u64(room)).read_buf(&mut piece).await;
                if read.map_err(|error| Fault::new(Kind::Internal, format!("read the source: {error}")))? == 0 {
                    break;
                }
            }
            if piece.is_empty() {
                break;
            }
            let len = len_u64(piece.len());
            self.write(handle, at, piece.freeze()).await?;
            at += len;
            if let Some(progress) = &progress {
                progress(at);
            }
        }
        self.fsync(handle).await?;
        Ok(at)
    }

    /// Reads the whole file into `sink`, many chunks at a time, verified. Returns the length.
    pub async fn get_stream(
        &self,
        handle: &Handle,
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        progress: Option<Progress>,
    ) -> Result<u64, Fault> {
        let broken = |error| Fault::new(Kind::Internal, format!("write the destination: {error}"));
        let mut at = 0;
        loop {
            let pieces = self.read(handle, at, GET_PIECE).await?;
            if pieces.is_empty() {
                break;
            }
            for piece in pieces {
                sink.write_all(&piece).await.map_err(broken)?;
                at += len_u64(piece.len());
            }
            if let Some(progress) = &progress {
                progress(at);
            }
        }
        sink.flush().await.map_err(broken)?;
        Ok(at)
    }
}

impl Core {
    /// Changes attributes of an open file in order with its writes: what was written before is saved first. If that needs
    /// space that is not there, a truncation of all of it does without: it may be what makes the space.
    pub(crate) async fn set_attr_saved(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        cred: &Cred,
        set: SetAttr,
    ) -> Result<Attr, Fault> {
        let deadline = self.meta.deadline();
        let _alone = self.alone(inode, deadline).await?;
        let errors = inode.lock().last_failure();
        let held = match self.save(inode, deadline).await {
            Ok(()) => None,
            Err(fault) => {
                let needless = set.size.filter(|_| fault.kind == Kind::NoSpace);
                Some(needless.and_then(|size| inode.hold_beyond(size)).ok_or(fault)?)
            }
        };
        match self.change(cred, Op::SetAttr { ino: inode.ino, set }, deadline).await? {
            Outcome::Attr(attr) => {
                if let Some(held) = held {
                    self.unsaved.add_permits(len_usize(held.drop_unsaved(errors)));
                }
                Ok(self.seen(attr))
            }
            other => Err(unexpected("setattr", &other)),
        }
    }

    /// Makes the file at least this long: also when another client has made it longer meanwhile.
    async fn grow(self: &Arc<Self>, inode: &Arc<Inode>, to: u64) -> Result<(), Fault> {
        self.reshape(inode, 0..0, to).await
    }

    /// Makes a range read as zeros, and the file at least `grow` long.
    async fn punch(self: &Arc<Self>, inode: &Arc<Inode>, at: u64, len: u64, grow: u64) -> Result<(), Fault> {
        self.reshape(inode, at..at + len, grow).await
    }

    async fn reshape(self: &Arc<Self>, inode: &Arc<Inode>, hole: Range<u64>, grow: u64) -> Result<(), Fault> {
        let deadline = self.meta.deadline();
        let _alone = self.alone(inode, deadline).await?;
        self.save(inode, deadline).await?;
        let punch = Edit { at: hole.start, len: hole.end - hole.start, data: Source::Hole };
        let edits = if hole.is_empty() { Vec::new() } else { vec![punch] };
        let commit = Commit {
            ino: inode.ino,
            base: None,
            edits,
            append: false,
            grow,
            chunks: Vec::new(),
            attempt: self.meta.attempt().attempt,
            layout: LayoutVersion(0),
            mtime: None,
        };
        let writer = inode.writer();
        match self.change(&writer, Op::Commit(commit), deadline).await? {
            Outcome::Committed { attr, .. } => {
                let mut state = inode.lock();
                state.extents.committed(attr.version, std::iter::once((hole, Some(Source::Hole))));
                state.adopt(&attr);
                Ok(())
            }
            other => Err(unexpected("commit", &other)),
        }
    }

    async fn clone_range(
        self: &Arc<Self>,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        cred: &Cred,
        range: CloneRange,
    ) -> Result<u64, Fault> {
        let deadline = self.meta.deadline();
        self.save(source, deadline).await?;
        let _alone = self.alone(target, deadline).await?;
        self.save(target, deadline).await?;
        match self.change(cred, Op::Clone(range), deadline).await? {
            Outcome::Cloned { attr, len } => {
                let mut state = target.lock();
                if len > 0 {
                    state.extents.committed(attr.version, std::iter::once((range.at..range.at + len, None)));
                }
                state.adopt(&attr);
                Ok(len)
            }
            other => Err(unexpected("clone", &other)),
        }
    }

    async fn alone<'a>(
        &self,
        inode: &'a Inode,
        deadline: Instant,
    ) -> Result<tokio::sync::RwLockWriteGuard<'a, ()>, Fault> {
        let late = |_| Fault::new(Kind::Unavailable, "another change of this file does not end");
        timeout_at(deadline, inode.gate.write()).await.map_err(late)
    }
}
