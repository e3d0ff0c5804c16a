//! `dfs get` and `dfs cat`: files out of dfs. Every byte is checked against its chunk's hash before it is handed out.
//!
//! A local file appears whole or not at all: it is written without a name, readable by its owner alone, and gets its name
//! when it is complete, so that a `get` that is killed leaves nothing of it (on a file system without `O_TMPFILE`: a
//! `.dfs-get-*` file, which anybody may remove). A directory is its owner's alone until everything is in it or the `get`
//! was interrupted; one that was killed leaves it so, and the next `get` mends it. Permission bits and modification time are kept; setuid and setgid only if owner and group are
//! the same here, else anybody's program would become the caller's. Below the destination no symlink is
//! followed. Local files are not fsync'ed, as with `cp`.

use super::connect::Shell;
use super::copy::{CopyArgs, Workers, interrupted, kept_mode, standard_file, temporary_name};
use super::failure::{Failure, Outcome};
use super::remote::Remote;
use crate::fuse::attrs::system_time;
use clap::Args;
use client_fuse::OpenFlags;
use common::proto::meta::{Attr, DirEntry, FileKind, LISTING_MAX};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// `dfs get`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    copy: CopyArgs,
    /// Files or directories in dfs
    #[arg(required = true)]
    sources: Vec<OsString>,
    /// Where to: a local directory that is there, or the new name; `-` is standard output
    #[arg(required = true)]
    destination: OsString,
}

/// `dfs cat`.
#[derive(Args, Debug)]
pub(crate) struct CatArgs {
    /// Files in dfs
    #[arg(required = true)]
    paths: Vec<OsString>,
}

struct Get {
    shell: Shell,
    recursive: bool,
    workers: Workers,
    /// Directories whose mode and time are set at the end, those above before those below.
    dirs: Vec<(PathBuf, Attr)>,
}

/// Runs `dfs get`. Returns how many paths failed.
pub(crate) async fn run(shell: &Shell, args: GetArgs) -> Outcome<u64> {
    let workers = Workers::new(&args.copy);
    let mut get = Get { shell: shell.clone(), recursive: args.copy.recursive, workers, dirs: Vec::new() };
    if args.destination == "-" {
        for source in &args.sources {
            let path = Remote::new(source);
            match to_stdout(shell, &path).await {
                Ok(length) => get.workers.tally.file(length),
                Err(failure) => get.workers.fail(failure),
            }
        }
    } else {
        let destination = Path::new(&args.destination);
        let interrupted = interrupted()?;
        let done = tokio::select! {
            result = get.all(&args.sources, destination) => Some(result),
            () = interrupted => None,
        };
        if done.is_none() {
            get.workers.abort().await; // dropped jobs leave nothing behind
        }
        get.finish_dirs(destination);
        match done {
            Some(result) => result?,
            None => {
                get.workers.progress.finish();
                return Err(Failure::new("get: interrupted").advice("files that are there are whole; run it again"));
            }
        }
    }
    get.workers.progress.finish();
    if args.copy.json {
        eprintln!("{}", get.workers.tally.json(shell.client.stats()));
    }
    Ok(get.workers.tally.failed.load(Ordering::Relaxed))
}

/// Runs `dfs cat`. Returns how many paths failed.
pub(crate) async fn cat(shell: &Shell, args: CatArgs) -> Outcome<u64> {
    let mut failed = 0;
    for path in &args.paths {
        if let Err(failure) = to_stdout(shell, &Remote::new(path)).await {
            eprintln!("dfs: {failure}");
            failed += 1;
        }
    }
    Ok(failed)
}

async fn to_stdout(shell: &Shell, path: &Remote) -> Outcome<u64> {
    let attr = shell.walk("read", path, true).await?;
    if attr.kind != FileKind::File {
        return Err(Failure::at("read", path, "not a regular file"));
    }
    let mut out = standard_file(&std::io::stdout()).map_err(|e| Failure::at("open", "standard output", e))?;
    let length = read_into(shell, path, &attr, &mut out, None).await?;
    out.flush().await.map_err(|e| Failure::at("write", "standard output", e))?;
    Ok(length)
}

async fn read_into(
    shell: &Shell,
    path: &Remote,
    attr: &Attr,
    sink: &mut (dyn AsyncWrite + Send + Unpin),
    progress: Option<client_fuse::Progress>,
) -> Outcome<u64> {
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let opened = shell.client.open(&shell.cred, attr.ino, flags).await;
    let handle = opened.map_err(|fault| Failure::fault("read", path, &fault))?;
    let read = shell.client.get_stream(&handle, sink, progress).await;
    let released = shell.client.release(&handle).await;
    let length = read.map_err(|fault| Failure::fault("read", path, &fault))?;
    released.map_err(|fault| Failure::fault("close", path, &fault))?;
    Ok(length)
}

impl Get {
    async fn all(&mut self, sources: &[OsString], destination: &Path) -> Outcome {
        let into_dir = destination.is_dir();
        if sources.len() > 1 && !into_dir {
            return Err(Failure::at("get", destination.display(), "not a directory")
                .advice("several sources need a directory that is there"));
        }
        for source in sources {
            let path = Remote::new(source);
            if let Err(failure) = self.source(path, destination, into_dir).await {
                self.workers.fail(failure);
            }
        }
        self.workers.finish().await;
        Ok(())
    }

    /// Gives the directories that were made their mode and time; also those that an interruption left incomplete.
    fn finish_dirs(&mut self, destination: &Path) {
        for (path, attr) in std::mem::take(&mut self.dirs).into_iter().rev() {
            // What lies there is what was made or found, or it was swapped since: then it stays as it is.
            let flags =
                (OFlag::O_DIRECTORY | if path == destination { OFlag::empty() } else { OFlag::O_NOFOLLOW }).bits();
            let opened = fs::File::options().read(true).custom_flags(flags).open(&path);
            let kept = opened.and_then(|dir| keep(&dir, &attr));
            if let Err(error) = kept {
                self.workers.fail(Failure::at("set mode and time of", path.display(), error));
            }
        }
    }

    async fn source(&mut self, path: Remote, destination: &Path, into_dir: bool) -> Outcome {
        let attr = self.shell.walk("get", &path, true).await?;
        if attr.kind == FileKind::Dir && !self.recursive {
            return Err(Failure::at("get", &path, "is a directory").advice("use -r"));
        }
        let local = match path.name() {
            Some(name) if into_dir => destination.join(OsStr::from_bytes(name.as_bytes())),
            _ => destination.to_owned(), // the root has no name: its entries go into the destination
        };
        let given = local == destination;
        self.entry(path, attr, local, given).await
    }

    /// `given`: the local path is the one that was typed; a symlink there is followed.
    async fn entry(&mut self, path: Remote, attr: Attr, local: PathBuf, given: bool) -> Outcome {
        match attr.kind {
            FileKind::Dir => Box::pin(self.directory(path, attr, local, given)).await,
            FileKind::Symlink => self.symlink(&path, &attr, &local).await,
            FileKind::File => {
                self.workers.progress.expect(attr.size);
                let (shell, progress) = (self.shell.clone(), self.workers.progress.clone());
                let tally = Arc::clone(&self.workers.tally);
                self.workers
                    .start(async move {
                        progress.name(&path);
                        let length = get_file(&shell, &path, &attr, &local, progress.of_file()).await?;
                        tally.file(length);
                        Ok(())
                    })
                    .await;
                Ok(())
            }
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                Err(Failure::at("get", path, "is neither file, directory nor symlink: skipped"))
            }
        }
    }

    async fn directory(&mut self, path: Remote, attr: Attr, local: PathBuf, given: bool) -> Outcome {
        make_directory(&local, given)?;
        self.dirs.push((local.clone(), attr.clone()));
        self.workers.tally.dirs.fetch_add(1, Ordering::Relaxed);
        let mut after = 0;
        loop {
            let listed = self.shell.client.readdir(&self.shell.cred, attr.ino, after, LISTING_MAX, true).await;
            let listing = listed.map_err(|fault| Failure::fault("list", &path, &fault))?;
            for entry in listing.entries {
                after = entry.cookie;
                if let Err(failure) = self.child(&path, &local, entry).await {
                    self.workers.fail(failure);
                }
            }
            if listing.end {
                break;
            }
        }
        Ok(())
    }

    async fn child(&mut self, parent: &Remote, local: &Path, entry: DirEntry) -> Outcome {
        let path = parent.join(entry.name.as_bytes());
        let local = local.join(OsStr::from_bytes(entry.name.as_bytes()));
        let attr = match entry.attr {
            Some(attr) => attr,
            None => {
                let found = self.shell.client.getattr(&self.shell.cred, entry.ino).await;
                found.map_err(|fault| Failure::fault("get", &path, &fault))?
            }
        };
        self.entry(path, attr, local, false).await
    }

    async fn symlink(&self, path: &Remote, attr: &Attr, local: &Path) -> Outcome {
        let read = self.shell.client.readlink(&self.shell.cred, attr.ino).await;
        let target = read.map_err(|fault| Failure::fault("get", path, &fault))?;
        let temporary = Temporary::beside(local);
        let made = std::os::unix::fs::symlink(OsStr::from_bytes(&target), &temporary.0);
        made.and_then(|()| fs::rename(&temporary.0, local)).map_err(|e| Failure::at("write", local.display(), e))?;
        self.workers.tally.links.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A local file that is not complete yet; removed when dropped (unless it was renamed before).
struct Temporary(PathBuf);

impl Temporary {
    fn beside(local: &Path) -> Temporary {
        Temporary(local.with_file_name(temporary_name("get")))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // it is not there if it was renamed
    }
}

async fn get_file(
    shell: &Shell,
    path: &Remote,
    attr: &Attr,
    local: &Path,
    progress: client_fuse::Progress,
) -> Outcome<u64> {
    let temporary = Temporary::beside(local);
    let failed = |e: std::io::Error| Failure::at("write", local.display(), e);
    let (file, named) = make_file(&temporary.0).map_err(failed)?;
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(1 << 20);
    let length = read_into(shell, path, attr, &mut file, Some(progress)).await?;
    file.flush().await.map_err(failed)?;
    let file = file.into_std().await;
    keep(&file, attr).map_err(failed)?;
    if !named {
        give_name(&file, &temporary.0).map_err(failed)?;
    }
    fs::rename(&temporary.0, local).map_err(failed)?;
    Ok(length)
}

/// A new file for writing in the directory of `temporary`: without a name (false), or where that cannot be, with this one.
fn make_file(temporary: &Path) -> std::io::Result<(fs::File, bool)> {
    let dir = temporary.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let nameless = fs::File::options().write(true).custom_flags(OFlag::O_TMPFILE.bits()).mode(0o600).open(dir);
    match nameless {
        Ok(file) => Ok((file, false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(error),
        // Each file system, and each that does not know the flag, says it in its own way.
        Err(_) => fs::File::options().write(true).create_new(true).mode(0o600).open(temporary).map(|file| (file, true)),
    }
}

/// Names a file that has no name.
fn give_name(file: &fs::File, name: &Path) -> std::io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::unistd::linkat(AT_FDCWD, open.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(())
}

/// A local directory, new (for its owner alone until it is complete) or there already.
fn make_directory(local: &Path, follow: bool) -> Outcome {
    let there = if follow { fs::metadata(local) } else { fs::symlink_metadata(local) };
    match there {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => Err(Failure::at("get", local.display(), "is there and not a directory").advice("move it away")),
        Err(_) => {
            let made = fs::DirBuilder::new().mode(0o700).create(local);
            made.map_err(|e| Failure::at("make directory", local.display(), e))
        }
    }
}

/// Sets mode and time of a local file or directory.
fn keep(file: &fs::File, attr: &Attr) -> std::io::Result<()> {
    let here = file.metadata()?;
    let mode = kept_mode(attr.mode, (attr.uid, attr.gid), (here.uid(), here.gid()));
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.set_times(fs::FileTimes::new().set_modified(system_time(attr.mtime)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_where_a_directory_goes_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (there, link, new) = (dir.path().join("there"), dir.path().join("link"), dir.path().join("new"));
        fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink(&there, &link).unwrap();
        make_directory(&there, false).unwrap();
        make_directory(&link, true).unwrap();
        assert!(make_directory(&link, false).unwrap_err().to_string().contains("not a directory"));
        make_directory(&new, false).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o700, "others wait until it is complete");
    }
}
