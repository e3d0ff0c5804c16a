//! `dfs put`: local files into dfs.
//!
//! Each file appears whole or not at all: it is written under a temporary name, made durable, and renamed. Permission bits
//! and times are kept; setuid and setgid only if owner and group in dfs are those here. Below the
//! destination no symlink is followed. Nothing is trusted to be there already: a `put` that is run again reads the local files
//! again, but chunks that are stored are found by their hash and not sent (that is what makes it resumable).
//! A file that changes while it is read is stored as it was read, said, and counted as failed, as `tar` does.
//! A `put` that is interrupted (SIGINT, SIGTERM, SIGHUP) removes its temporary files; one that is killed leaves `.dfs-put-*`
//! behind, which a later `put` of the same target by the same user removes ([`make_temporary`]).

use super::connect::Shell;
use super::copy::{CopyArgs, Tally, Workers, interrupted, kept_mode, standard_file, temporary_name, time_of};
use super::failure::{Failure, Outcome};
use super::remote::Remote;
use clap::Args;
use client_fuse::{Handle, OpenFlags};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Attr, FileKind, NewNode, RenameMode, SetAttr, SetTime};
use common::time::Time;
use common::world::World;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncRead;

/// `dfs put`.
#[derive(Args, Debug)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    copy: CopyArgs,
    /// Local files or directories; `-` is standard input
    #[arg(required = true)]
    sources: Vec<OsString>,
    /// Where to in dfs: a directory that is there, or the new name
    #[arg(required = true)]
    destination: OsString,
}

/// A temporary entry that was not touched for this long belongs to a put that was killed, in seconds.
const LEFT_BEHIND_SECS: i64 = 24 * 3600;
/// Temporary entries of one target that later puts find again; further ones get random names.
const TEMPORARY_MAX: u32 = 8;

/// Temporary files that are there now: an interruption removes them.
type Unfinished = Arc<Mutex<BTreeSet<(InodeId, Vec<u8>)>>>;

struct Put {
    shell: Shell,
    recursive: bool,
    workers: Workers,
    unfinished: Unfinished,
    /// Directories whose mode and time are set at the end, when nothing is written into them any more.
    dirs: Vec<(Attr, Metadata, Remote)>,
}

/// Where one file goes.
struct Goal {
    parent: InodeId,
    name: Name,
    shown: Remote,
}

/// Runs the command. Returns how many paths failed.
pub(crate) async fn run(shell: &Shell, args: PutArgs) -> Outcome<u64> {
    let mut put = Put {
        shell: shell.clone(),
        recursive: args.copy.recursive,
        workers: Workers::new(&args.copy),
        unfinished: Unfinished::default(),
        dirs: Vec::new(),
    };
    let destination = Remote::new(&args.destination);
    let interrupted = interrupted()?;
    let interrupted = tokio::select! {
        result = put.all(&args.sources, &destination) => {
            result?;
            false
        }
        () = interrupted => true,
    };
    put.workers.progress.finish();
    if interrupted {
        put.workers.abort().await;
        put.remove_unfinished().await;
        return Err(Failure::new("put: interrupted").advice("run it again: what is stored is not sent again"));
    }
    let tally = Arc::clone(&put.workers.tally);
    if args.copy.json {
        say!("{}", tally.json(shell.client.stats()));
    }
    Ok(tally.failed.load(Ordering::Relaxed))
}

impl Put {
    async fn all(&mut self, sources: &[OsString], destination: &Remote) -> Outcome {
        let into_dir = self.is_dir(destination).await?;
        if sources.len() > 1 && !into_dir {
            return Err(Failure::at("put", destination, "not a directory")
                .advice("several sources need a directory that is there: `dfs mkdir` it"));
        }
        for source in sources {
            if let Err(failure) = self.source(source, destination, into_dir).await {
                self.workers.fail(failure);
            }
        }
        self.workers.finish().await;
        for (dir, local, shown) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let set = self.shell.client.setattr(&self.shell.cred, dir.ino, kept(&local, &dir)).await;
            if let Err(fault) = set {
                self.workers.fail(Failure::fault("put", shown, &fault));
            }
        }
        Ok(())
    }

    async fn is_dir(&self, path: &Remote) -> Outcome<bool> {
        match self.shell.client.walk(&self.shell.cred, InodeId::ROOT, path.as_bytes(), true).await {
            Ok((attr, _)) => Ok(attr.kind == FileKind::Dir),
            Err(Fault { kind: Kind::NotFound, .. }) => Ok(false),
            Err(fault) => Err(Failure::fault("put", path, &fault)),
        }
    }

    async fn source(&mut self, source: &OsString, destination: &Remote, into_dir: bool) -> Outcome {
        if source == "-" {
            if into_dir {
                return Err(Failure::at("put", destination, "is a directory").advice("name the new file"));
            }
            let goal = self.goal(destination.clone()).await?;
            let mut input = standard_file(&std::io::stdin()).map_err(|e| Failure::at("open", "standard input", e))?;
            let length = put_one(&self.shell, &self.unfinished, &goal, &mut input, None, None).await?;
            self.workers.tally.file(length);
            return Ok(());
        }
        let path = PathBuf::from(source);
        let local = fs::metadata(&path).map_err(|e| Failure::at("read", path.display(), e))?;
        let target = if into_dir {
            let full = path.canonicalize().map_err(|e| Failure::at("read", path.display(), e))?;
            let name = path.file_name().or(full.file_name()).map(|n| n.to_owned());
            let name =
                name.ok_or_else(|| Failure::at("put", path.display(), "has no name").advice("name the target"))?;
            destination.join(name.as_bytes())
        } else {
            destination.clone()
        };
        if local.is_dir() && !self.recursive {
            return Err(Failure::at("put", path.display(), "is a directory").advice("use -r"));
        }
        let goal = self.goal(target).await?;
        self.entry(path, local, goal).await
    }

    /// The directory and name of a path. The directory must be there.
    async fn goal(&self, path: Remote) -> Outcome<Goal> {
        let (parent, name) = path.split("put")?;
        let parent = self.shell.walk("put", &parent, true).await?.ino;
        Ok(Goal { parent, name, shown: path })
    }

    /// Copies one local entry: files in the background, directories with all that is in them.
    async fn entry(&mut self, path: PathBuf, local: Metadata, goal: Goal) -> Outcome {
        let kind = local.file_type();
        if kind.is_dir() {
            Box::pin(self.directory(path, local, goal)).await
        } else if kind.is_symlink() {
            self.symlink(&path, &goal).await
        } else if kind.is_file() {
            self.workers.progress.expect(local.len());
            let (shell, unfinished) = (self.shell.clone(), Arc::clone(&self.unfinished));
            let (progress, tally) = (self.workers.progress.clone(), Arc::clone(&self.workers.tally));
            self.workers
                .start(async move {
                    progress.name(&goal.shown);
                    put_file(&shell, &unfinished, &path, &local, &goal, progress.of_file(), &tally).await
                })
                .await;
            Ok(())
        } else {
            Err(Failure::at("put", path.display(), "is neither file, directory nor symlink: skipped"))
        }
    }

    async fn directory(&mut self, path: PathBuf, local: Metadata, goal: Goal) -> Outcome {
        let list = fs::read_dir(&path).map_err(|e| Failure::at("read", path.display(), e))?;
        let made = self.make_dir(&goal, local.mode()).await?;
        self.workers.tally.dirs.fetch_add(1, Ordering::Relaxed);
        for entry in list {
            let result = match entry {
                Ok(entry) => self.child(made.ino, &goal.shown, &entry).await,
                Err(error) => Err(Failure::at("read", path.display(), error)),
            };
            if let Err(failure) = result {
                self.workers.fail(failure);
            }
        }
        self.dirs.push((made, local, goal.shown));
        Ok(())
    }

    async fn child(&mut self, parent: InodeId, into: &Remote, entry: &fs::DirEntry) -> Outcome {
        let path = entry.path();
        let local = entry.metadata().map_err(|e| Failure::at("read", path.display(), e))?;
        let bytes = entry.file_name().into_vec();
        let shown = into.join(&bytes);
        let name = Name::new(bytes).map_err(|e| Failure::at("put", &shown, e))?;
        self.entry(path, local, Goal { parent, name, shown }).await
    }

    /// A directory of that name, new or there already.
    async fn make_dir(&self, goal: &Goal, mode: u32) -> Outcome<Attr> {
        let (client, cred) = (&self.shell.client, &self.shell.cred);
        match client.create(cred, goal.parent, &goal.name, NewNode::Dir, (mode & 0o777) | 0o700).await {
            Ok(attr) => Ok(attr),
            Err(Fault { kind: Kind::Exists, .. }) => {
                let found = client.lookup(cred, goal.parent, &goal.name).await; // a symlink is not followed
                let attr = found.map_err(|fault| Failure::fault("put", &goal.shown, &fault))?;
                if attr.kind == FileKind::Dir {
                    return Ok(attr);
                }
                Err(Failure::at("put", &goal.shown, "is there and not a directory").advice("move it away"))
            }
            Err(fault) => Err(Failure::fault("put", &goal.shown, &fault)),
        }
    }

    async fn symlink(&self, path: &Path, goal: &Goal) -> Outcome {
        let target = fs::read_link(path).map_err(|e| Failure::at("read", path.display(), e))?;
        let target = target.into_os_string().into_vec();
        let made = make_temporary(&self.shell, &self.unfinished, goal, &What::Symlink(target)).await;
        let (temporary, mark, _) = made.map_err(|fault| Failure::fault("put", &goal.shown, &fault))?;
        finish_rename(&self.shell, goal, &temporary).await?;
        mark.settled();
        self.workers.tally.links.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn remove_unfinished(&self) {
        let left = std::mem::take(&mut *self.unfinished.lock().expect("no panic holds this lock"));
        for (parent, name) in left {
            if let Ok(name) = Name::new(name) {
                let _ = self.shell.client.unlink(&self.shell.cred, parent, &name).await; // the best we can do now
            }
        }
    }
}

/// A temporary file's entry in the list; gone from it when the file has its real name or was removed.
struct Mark<'a>(&'a Unfinished, Option<(InodeId, Vec<u8>)>);

impl<'a> Mark<'a> {
    fn new(list: &'a Unfinished, parent: InodeId, name: &Name) -> Mark<'a> {
        let key = (parent, name.as_bytes().to_vec());
        list.lock().expect("no panic holds this lock").insert(key.clone());
        Mark(list, Some(key))
    }

    /// It is no temporary file any more.
    fn settled(mut self) {
        if let Some(key) = self.1.take() {
            self.0.lock().expect("no panic holds this lock").remove(&key);
        }
    }
}

async fn put_file(
    shell: &Shell,
    unfinished: &Unfinished,
    path: &Path,
    local: &Metadata,
    goal: &Goal,
    progress: client_fuse::Progress,
    tally: &Tally,
) -> Outcome {
    let failed = |e| Failure::at("read", path.display(), e);
    let mut source = tokio::fs::File::open(path).await.map_err(failed)?;
    source.set_max_buf_size(1 << 20);
    let before = source.metadata().await.map_err(failed)?;
    let length = put_one(shell, unfinished, goal, &mut source, Some(local), Some(progress)).await?;
    let after = source.metadata().await.map_err(failed)?;
    tally.file(length);
    if has_changed(&before, &after) || length != after.len() {
        let text = "changed while it was read: what is stored may be partly old, partly new";
        return Err(Failure::at("put", path.display(), text).advice("run it again"));
    }
    Ok(())
}

/// Whether somebody wrote to a local file between two looks at it.
fn has_changed(before: &Metadata, after: &Metadata) -> bool {
    let look = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    look(before) != look(after)
}

/// A temporary entry to make.
enum What {
    /// A file of this mode, opened for writing.
    File(u32),
    /// A symlink to this.
    Symlink(Vec<u8>),
}

impl What {
    /// Makes it, if nothing has this name. `None`: it is no file.
    async fn make(&self, shell: &Shell, parent: InodeId, name: &Name) -> Result<Option<Handle>, Fault> {
        let (client, cred) = (&shell.client, &shell.cred);
        match self {
            What::File(mode) => {
                let flags = OpenFlags { write: true, ..OpenFlags::default() };
                let (handle, _) = client.create_open(cred, parent, name, *mode, true, flags).await?;
                Ok(Some(handle))
            }
            What::Symlink(target) => {
                client.create(cred, parent, name, NewNode::Symlink(target.clone()), 0o777).await.map(|_| None)
            }
        }
    }
}

/// Makes the temporary entry of a target, and takes away what killed puts of the same target left ([`LEFT_BEHIND_SECS`]).
/// To find that without listing a directory, temporary names follow from the target's name and a small number.
async fn make_temporary<'a>(
    shell: &Shell,
    unfinished: &'a Unfinished,
    goal: &Goal,
    what: &What,
) -> Result<(Name, Mark<'a>, Option<Handle>), Fault> {
    let mut made = None;
    for n in 0..TEMPORARY_MAX {
        let name = numbered(&goal.name, n);
        if made.is_none() {
            let mark = Mark::new(unfinished, goal.parent, &name);
            match what.make(shell, goal.parent, &name).await {
                Ok(entry) if n == 0 => return Ok((name, mark, entry)), // nothing was left
                Ok(entry) => {
                    made = Some((name, mark, entry));
                    continue;
                }
                Err(Fault { kind: Kind::Exists, .. }) => mark.settled(),
                Err(fault) => return Err(fault),
            }
        }
        match shell.client.lookup(&shell.cred, goal.parent, &name).await {
            Ok(attr) if is_left_behind(&attr, shell.cred.uid, World::real().now()) => {
                let _ = shell.client.unlink(&shell.cred, goal.parent, &name).await; // it is in nobody's way
            }
            Ok(_) => {}
            Err(_) if made.is_some() => break, // no more of them
            Err(_) => {}
        }
    }
    if let Some(made) = made {
        return Ok(made);
    }
    let name = Name::new(temporary_name("put")).expect("a short plain name");
    let mark = Mark::new(unfinished, goal.parent, &name);
    let entry = what.make(shell, goal.parent, &name).await?;
    Ok((name, mark, entry))
}

fn numbered(target: &Name, n: u32) -> Name {
    let hash = blake3::hash(target.as_bytes()).to_hex();
    Name::new(format!(".dfs-put-{}-{n}", &hash[..16])).expect("a short plain name")
}

/// Whether a temporary entry is a killed put's of this user. One that is being written to changes all the time.
fn is_left_behind(attr: &Attr, uid: u32, now: Time) -> bool {
    attr.kind != FileKind::Dir && attr.uid == uid && attr.ctime.secs.saturating_add(LEFT_BEHIND_SECS) < now.secs
}

/// Writes one file under a temporary name, makes it durable and gives it its name. Returns its length.
async fn put_one(
    shell: &Shell,
    unfinished: &Unfinished,
    goal: &Goal,
    source: &mut (dyn AsyncRead + Send + Unpin),
    local: Option<&Metadata>,
    progress: Option<client_fuse::Progress>,
) -> Outcome<u64> {
    let mode = local.map_or(0o666 & !umask(), Metadata::mode) & 0o777;
    let made = make_temporary(shell, unfinished, goal, &What::File(mode | 0o200)).await;
    let (temporary, mark, handle) = made.map_err(|fault| Failure::fault("put", &goal.shown, &fault))?;
    let handle = handle.expect("a file is opened when it is made");
    let written = write_temporary(shell, &handle, source, local, progress).await;
    let done = match written {
        Ok(length) => finish_rename(shell, goal, &temporary).await.map(|()| length),
        Err(fault) => {
            // Unlinked while it is open: so its unsaved bytes are given up, not tried again. The first error is told.
            let _ = shell.client.unlink(&shell.cred, goal.parent, &temporary).await;
            let _ = shell.client.release(&handle).await;
            Err(Failure::fault("put", &goal.shown, &fault))
        }
    };
    mark.settled();
    done
}

async fn write_temporary(
    shell: &Shell,
    handle: &Handle,
    source: &mut (dyn AsyncRead + Send + Unpin),
    local: Option<&Metadata>,
    progress: Option<client_fuse::Progress>,
) -> Result<u64, Fault> {
    let (client, cred) = (&shell.client, &shell.cred);
    let length = client.put_stream(handle, source, progress).await?;
    client.release(handle).await?;
    if let Some(local) = local {
        client.setattr(cred, handle.ino(), kept(local, &handle.attr())).await?;
    }
    Ok(length)
}

async fn finish_rename(shell: &Shell, goal: &Goal, temporary: &Name) -> Outcome {
    let (from, to) = ((goal.parent, temporary), (goal.parent, &goal.name));
    if let Err(fault) = shell.client.rename(&shell.cred, from, to, RenameMode::Replace).await {
        let _ = shell.client.unlink(&shell.cred, goal.parent, temporary).await; // the first error is told
        return Err(Failure::fault("put", &goal.shown, &fault));
    }
    Ok(())
}

/// What is kept of a local file: mode ([`kept_mode`]) and times. `copy`: what it became in dfs.
fn kept(local: &Metadata, copy: &Attr) -> SetAttr {
    SetAttr {
        mode: Some(kept_mode(local.mode(), (local.uid(), local.gid()), (copy.uid, copy.gid))),
        mtime: Some(SetTime::At(time_of(local.mtime(), local.mtime_nsec()))),
        atime: Some(SetTime::At(time_of(local.atime(), local.atime_nsec()))),
        ..SetAttr::default()
    }
}

/// The process's file creation mask.
pub(super) fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_what_nobody_touched_for_a_day_is_left_behind() {
        let time = |secs| Time { secs, nanos: 0 };
        let attr = Attr {
            ino: InodeId(9),
            kind: FileKind::File,
            mode: 0o600,
            uid: 7,
            gid: 7,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: time(0),
            mtime: time(0),
            ctime: time(1_000_000),
            rdev: 0,
            chunk_size: 4 << 20,
            replicas: 3,
            version: common::id::DataVersion(1),
        };
        assert!(is_left_behind(&attr, 7, time(1_000_000 + LEFT_BEHIND_SECS + 1)));
        assert!(!is_left_behind(&attr, 7, time(1_000_000 + LEFT_BEHIND_SECS)), "it may still be written");
        assert!(!is_left_behind(&attr, 8, time(2_000_000)), "somebody else's");
        assert!(!is_left_behind(&Attr { kind: FileKind::Dir, ..attr }, 7, time(2_000_000)));
        let name = |target: &str, n| numbered(&Name::new(target).unwrap(), n);
        assert_eq!(name("a", 0), name("a", 0));
        assert!(name("a", 0) != name("a", 1) && name("a", 0) != name("b", 0));
    }

    #[test]
    fn a_write_between_two_looks_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"old").unwrap();
        let look = || fs::metadata(&path).unwrap();
        let before = look();
        assert!(!has_changed(&before, &look()));
        let file = fs::File::options().write(true).open(&path).unwrap();
        // As long as the file system's clock stands still, a write of the same length cannot be seen.
        while look().mtime_nsec() == before.mtime_nsec() {
            file.write_all_at(b"new", 0).unwrap();
        }
        assert!(has_changed(&before, &look()));
    }
}
