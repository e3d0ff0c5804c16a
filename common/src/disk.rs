//! The disk as a small seam: [`RealDisk`] in production, `testing::SimDisk` in simulation.
//!
//! Calls block; code that runs on an async runtime goes through [`crate::world::World::blocking`].
//!
//! Assumed of a disk: what [`File::sync`] (contents and length) and [`Disk::sync_dir`] (names) covered stays, also over
//! a power cut; a crash may keep any part of what was not covered; a read may return wrong bytes without an error; a
//! failed sync says nothing about what reached the disk, so it is never retried.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod aligned;
mod checked;
mod real;

pub use aligned::{AlignedBuf, DIRECT_ALIGN};
pub use checked::{read_checked, write_checked};
pub use real::RealDisk;

/// Held by whoever owns a directory, a port, a store; given up when dropped.
pub type Lock = Box<dyn std::any::Any + Send + Sync>;

/// Files and directories.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file so that writes go around the page cache where the file system can do that, and through
    /// it where it cannot (tmpfs). Each write is one buffer whose offset, length and address are multiples of
    /// [`DIRECT_ALIGN`] ([`AlignedBuf`]); anything else is `InvalidInput`. Reads go through the page cache at any offset,
    /// but for [`File::read_exact_direct`]. Such a write is
    /// no more durable than another one: [`File::sync`] is still needed.
    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a new file (fails with `AlreadyExists`), for reading and writing. Its name is durable after `sync_dir`.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a directory and its parents; fine if it is there (also if only for want of a sync until now). Durable
    /// when this returns.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names (not paths) of what is in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames, replacing the target. Durable after `sync_dir` of both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after `sync_dir`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all below it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// True if there is a file or directory at this path.
    fn exists(&self, path: &Path) -> bool;
    /// (bytes in all, bytes free for us) of the file system that holds this path.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Takes the exclusive lock on this file, creating it if need be. `WouldBlock` if another process, or another lock
    /// in this one, has it. It goes with the process that held it, however that ends.
    fn lock(&self, path: &Path) -> io::Result<Lock>;
}

/// An open file. Reads and writes carry their position: there is no cursor. All handles of a file see the same bytes; a
/// handle outlives the removal of the name.
#[expect(clippy::len_without_is_empty, reason = "a handle is no collection")]
pub trait File: Send + Sync + fmt::Debug + 'static {
    /// Fills the buffer from `at`. `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
    /// As [`File::read_exact_at`], around the page cache where the file was opened for that and the file system can do
    /// it; `at` and the buffer's length are then multiples of [`DIRECT_ALIGN`]. For bytes that are not read again soon.
    fn read_exact_direct(&self, buf: &mut AlignedBuf, at: u64) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }
    /// Writes all the buffers, one after another, from `at`. A crash may keep any part of it.
    fn write_all_at(&self, bufs: &[&[u8]], at: u64) -> io::Result<()>;
    /// Makes all that was written before this call durable, with the file's length (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Sets the length; a longer file reads as zeros there.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for `[at, at + len)` without changing the length where the file system can; otherwise nothing.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()>;
    /// Gives whole blocks in `[at, at + len)` back to the file system; they read as zeros. The length stays.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;
}
