//! The machine's own file system.

use super::{AlignedBuf, Disk, File, Lock};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag};
use nix::libc::off_t;
use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Buffers handed to the kernel in one call (Linux `IOV_MAX`).
const BUFFERS_MAX: usize = 1024;

/// Files and directories of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    direct: Direct,
}

/// How a handle writes.
#[derive(Debug)]
enum Direct {
    /// Any buffers, through the page cache.
    No,
    /// Aligned buffers only, through this second descriptor opened with `O_DIRECT`.
    Yes(fs::File),
    /// Aligned buffers only, through the page cache: the file system has no direct writes.
    Refused,
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile { file, direct: Direct::No }))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options().read(true).write(true).open(path)?;
        let direct = fs::File::options().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
        let direct = match direct {
            Ok(direct) => Direct::Yes(direct),
            Err(error) if is_refusal(&error) => Direct::Refused,
            Err(error) => return Err(error),
        };
        Ok(Arc::new(RealFile { file, direct }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(RealFile { file, direct: Direct::No }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !is_root(p) && !p.exists()).collect();
        for dir in missing.iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => sync_dir(parent(dir))?,
            }
        }
        if !path.is_dir() && !is_root(path) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if missing.is_empty() && !is_root(path) {
            // Somebody may have made it and died before the sync. A parent we may not open is not our doing.
            match sync_dir(parent(path)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let block = stat.fragment_size();
        Ok((stat.blocks().saturating_mul(block), stat.blocks_available().saturating_mul(block)))
    }

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Box::new(lock)),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

impl File for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    fn read_exact_direct(&self, buf: &mut AlignedBuf, at: u64) -> io::Result<()> {
        match &self.direct {
            Direct::Yes(direct) if AlignedBuf::takes(buf, at) => read_direct(direct, &self.file, buf, at),
            _ => self.file.read_exact_at(buf, at),
        }
    }

    fn write_all_at(&self, bufs: &[&[u8]], at: u64) -> io::Result<()> {
        match (&self.direct, bufs) {
            (Direct::No, [buf]) => self.file.write_all_at(buf, at),
            (Direct::No, bufs) => write_vectored(&self.file, bufs, at),
            (_, [buf]) if !AlignedBuf::takes(buf, at) => Err(not_aligned()),
            (Direct::Refused, [buf]) => self.file.write_all_at(buf, at),
            (Direct::Yes(direct), [buf]) => write_direct(direct, &self.file, buf, at),
            _ => Err(not_aligned()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        allocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        // Whole blocks only: the kernel would write zeros into the rest, and a zeroed neighbour is a lost neighbour.
        let (from, to) = (at.next_multiple_of(PUNCH_BLOCK), (at + len) / PUNCH_BLOCK * PUNCH_BLOCK);
        if from >= to {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        allocate(&self.file, flags, from, to - from)
    }
}

/// What a hole consists of, in bytes.
const PUNCH_BLOCK: u64 = 4096;

fn allocate(file: &fs::File, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match nix::fcntl::fallocate(file, flags, offset(at)?, offset(len)?) {
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
            other => return other.map_err(io::Error::from),
        }
    }
}

/// One `pwritev` where it goes in one.
fn write_vectored(file: &fs::File, bufs: &[&[u8]], mut at: u64) -> io::Result<()> {
    for some in bufs.chunks(BUFFERS_MAX) {
        let mut slices: Vec<IoSlice<'_>> = some.iter().map(|buf| IoSlice::new(buf)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0); // drops empty buffers in front
        while !left.is_empty() {
            match nix::sys::uio::pwritev(file, left, offset(at)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += crate::units::len_u64(written);
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Writes around the page cache; what the file system refuses after all, or leaves unaligned, goes through it.
fn write_direct(direct: &fs::File, plain: &fs::File, mut buf: &[u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        if !AlignedBuf::takes(buf, at) {
            return plain.write_all_at(buf, at);
        }
        match direct.write_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += crate::units::len_u64(written);
                buf = &buf[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refusal(&error) => return plain.write_all_at(buf, at),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads around the page cache; what the file system refuses after all, or leaves unaligned, goes through it.
fn read_direct(direct: &fs::File, plain: &fs::File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        if !AlignedBuf::takes(buf, at) {
            return plain.read_exact_at(buf, at);
        }
        match direct.read_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                at += crate::units::len_u64(read);
                buf = &mut buf[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refusal(&error) => return plain.read_exact_at(buf, at),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// True for what is always there: `/` and the directory we run in.
fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.parent().is_none()
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

fn not_aligned() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a direct write takes one aligned buffer")
}

fn offset(at: u64) -> io::Result<off_t> {
    off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}
