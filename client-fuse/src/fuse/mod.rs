//! The mount: kernel request -> `Client` -> reply. No decision about data is made here.
//!
//! A request is read by one of a few `fuser` threads, which polls its future once: what needs no waiting (a buffered
//! write, a cached read) is answered there and then. Otherwise the future goes to the async threads, so a slow request
//! never holds up another. At most [`REQUESTS_MAX`] are under way; beyond that the reading threads wait.
//!
//! Promises:
//! 1. Every request is answered within the operation timeout (and [`GRACE`]), with `ETIMEDOUT` if nothing else is
//!    known; what it had begun goes on and is cleaned up in the background, its late answer is dropped. Questions that
//!    follow one which found the metadata service away wait only [`AWAY_LIMIT`].
//!    Who is killed while it waits gets its answer, `EINTR`, within half a second: it does not stay behind in state D (but for
//!    its mapped pages, which the kernel writes back itself). What it had written is saved nevertheless, after it is gone. Other
//!    signals interrupt nothing but waiting for a lock, as on a local disk.
//! 2. `close(2)` and `fsync(2)` return success only when everything written to the file is committed and durable.
//! 3. The kernel's pages of a file survive an `open` only if nobody but this mount has changed the file since they were read.
//! 4. `statfs` never waits for the cluster.
//!
//! What is asked of the kernel, and why:
//!
//! | capability | why |
//! | --- | --- |
//! | `ASYNC_READ`, `MAX_PAGES`, `BIG_WRITES` | several reads of one file at once; requests of 1 MiB |
//! | `ASYNC_DIO` | the same for `O_DIRECT` |
//! | `POSIX_LOCKS`, `FLOCK_LOCKS` | locks hold across mounts |
//! | `PARALLEL_DIROPS` | lookups and listings of one directory at once |
//! | `DO_READDIRPLUS`, `READDIRPLUS_AUTO` | attributes come with the listing when they are used |
//! | `ATOMIC_O_TRUNC` | `open(O_TRUNC)` is one request |
//! | `HANDLE_KILLPRIV_V2` | writes need not ask for `security.capability` each time; setuid is taken away here |
//! | `POSIX_ACL` | the kernel's own checks go by ACLs too; it asks for them as extended attributes |
//! | `DONT_MASK` | the umask comes with the request: where a directory has a default ACL it does not count |
//! | `CACHE_SYMLINKS` | a symlink's target never changes |
//! | `AUTO_INVAL_DATA` | a read asks for attributes that are not believed any more, and drops pages of another time |
//! | `SPLICE_WRITE`, `SPLICE_MOVE` | large answers without a copy, where `fuser` comes to use it |
//!
//! Not asked for: `WRITEBACK_CACHE` (the kernel would own size and times), `EXPORT_SUPPORT`.
//! `default_permissions` is on: the kernel checks, and the metaservers check again. It has to: on a path that it has cached
//! it asks us nothing, and only its own check keeps others out. By mode bits alone it would refuse what an ACL grants, so
//! `POSIX_ACL`: it drops an ACL when it asks for attributes or looks a known name up again, and before it refuses somebody.
//!
//! The kernel believes names and attributes as long as the client's leases of them last, or until it is told otherwise:
//! `coherence.rs`.
//!
//! A chunk of which many small parts are read here and there is given to the kernel whole: `warm.rs`.
//!
//! Access times are ours to keep, for the kernel changes none: with `-o relatime`, files that are read next at a time that is due
//! are opened without the kernel's pages of them, so that the read comes here.
//!
//! Left out: collapsing and inserting ranges (`fuse_file_fallocate` refuses all modes but `KEEP_SIZE`, `PUNCH_HOLE` and
//! `ZERO_RANGE`, seen with Linux 6.18: `EOPNOTSUPP`, and no request comes), interrupts as the kernel sends them (`fuser` does not pass
//! them on: `caller.rs` looks for them), file capabilities (setting them is refused: they would have to go with each
//! write, truncation and `chown` by anybody, and a mount is `nosuid` unless told otherwise, where they count for nothing), `syncfs` (the kernel does not pass it on to FUSE: unsaved data of open files is written back by
//! age).

pub(crate) mod attrs;
mod caller;
mod coherence;
mod creds;
mod dirs;
mod errno;
mod files;
mod inodes;
mod kernel;
mod locks;
mod requests;
mod serve;
mod usage;
mod warm;

use client_fuse::Client;
use coherence::Coherence;
use common::task::Tasks;
use creds::Creds;
use dirs::OpenDirs;
use files::OpenFiles;
use fuser::{Config, MountOption, Session, SessionACL};
use inodes::Inodes;
pub(crate) use requests::MountStatus;
use requests::Requests;
#[cfg(test)]
pub(crate) use requests::{FailedRequest, SlowRequest};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, oneshot};
use usage::Usage;
use warm::Warm;

/// How many requests are under way at once.
const REQUESTS_MAX: usize = 4096;
/// How much later than the client's own deadline a request is given up: its error tells more.
const GRACE: Duration = Duration::from_secs(2);
/// How long a question to the metadata service waits while an earlier one has found it away.
const AWAY_LIMIT: Duration = Duration::from_secs(3);
/// The largest write request, in bytes (the kernel's own limit for requests, unless raised by an administrator).
const WRITE_MAX: u32 = 1 << 20;
/// How many background requests (read-ahead, asynchronous direct I/O) the kernel sends at once.
const BACKGROUND_MAX: u16 = 128;
/// How far the kernel reads ahead, in KiB. More helps sequential reads and hurts page faults in the middle of files.
const READ_AHEAD_KIB: u32 = 1024;
/// The fewest and the most threads that read requests.
const THREADS: (usize, usize) = (2, 8);
/// How long requests under way may take when the mount ends.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Shown as the source of the mount.
    pub(crate) source: String,
    /// Mount options as in `mount -o`, checked by [`mount_option`].
    pub(crate) flags: Vec<String>,
    /// A request that has not succeeded after this long fails.
    pub(crate) op_timeout: Duration,
    /// Chunks that are read densely are given to the kernel whole.
    pub(crate) fills: bool,
}

/// All that requests share.
struct Shared {
    client: Client,
    runtime: Runtime,
    tasks: Tasks,
    slots: Arc<Semaphore>,
    limit: Duration,
    /// A request has found the metadata service away, and none has been answered since.
    away: AtomicBool,
    creds: Creds,
    inodes: Inodes,
    files: OpenFiles,
    dirs: OpenDirs,
    usage: Usage,
    coherence: Coherence,
    warm: Arc<Warm>,
    /// Chunks that are read densely are given to the kernel whole.
    fills: bool,
    requests: Requests,
}

/// A mount that serves.
pub(crate) struct Mounted {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<io::Result<()>>,
}

/// Where a mount's status comes from, as long as it serves.
pub(crate) struct StatusSource(Weak<Shared>);

impl StatusSource {
    /// What it says now. `None`: it has ended.
    pub(crate) fn status(&self) -> Option<MountStatus> {
        self.0.upgrade().map(|shared| shared.status())
    }
}

/// The option of that name. `None`: there is none such.
pub(crate) fn mount_option(name: &str) -> Option<MountOption> {
    Some(match name {
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "sync" => MountOption::Sync,
        "dirsync" => MountOption::DirSync,
        _ => return None,
    })
}

/// Mounts and serves. Blocks until the kernel has agreed; call it off the async threads.
///
/// # Errors
/// `/dev/fuse` or the mount point is missing, or the kernel refuses.
pub(crate) fn start(client: Client, runtime: Runtime, point: &Path, options: &Options) -> io::Result<Mounted> {
    let shared = Arc::new(Shared {
        client,
        runtime,
        tasks: Tasks::new(),
        slots: Arc::new(Semaphore::new(REQUESTS_MAX)),
        limit: options.op_timeout + GRACE,
        away: AtomicBool::new(false),
        creds: Creds::default(),
        inodes: Inodes::default(),
        files: OpenFiles::default(),
        dirs: OpenDirs::default(),
        usage: Usage::default(),
        coherence: Coherence::default(),
        warm: Arc::default(),
        fills: options.fills,
        requests: Requests::default(),
    });
    shared.refresh_usage();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::CUSTOM("subtype=dfs".into()), // `Subtype` would not reach the kernel
        MountOption::DefaultPermissions,
    ];
    config.mount_options.extend(options.flags.iter().filter_map(|name| mount_option(name)));
    let root = nix::unistd::geteuid().is_root();
    config.acl = if root { SessionACL::All } else { SessionACL::Owner }; // others need `user_allow_other`: leave it
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some(cores.clamp(THREADS.0, THREADS.1));
    config.clone_fd = true;
    let session = Session::new(kernel::Kernel(Arc::clone(&shared)), point, &config)?;
    shared.coherence.mounted(session.notifier(), File::from(session.as_fd().try_clone_to_owned()?));
    let weak = Arc::downgrade(&shared);
    shared.client.on_forget(Box::new(move |inodes| {
        if let Some(shared) = weak.upgrade() {
            shared.forget(inodes);
        }
    }));
    shared.tasks.spawn_until_stop(Arc::clone(&shared).look_for_killed());
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let _ = sender.send(session.run()); // nobody waits any more: the program ends
    })?;
    set_read_ahead(point);
    Ok(Mounted { shared, ended })
}

impl Mounted {
    /// Waits until it is unmounted.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread that serves the mount is gone")),
        }
    }

    /// Where its status comes from.
    pub(crate) fn status_source(&self) -> StatusSource {
        StatusSource(Arc::downgrade(&self.shared))
    }

    /// After the end: lets requests under way finish and closes what was still open. Unsaved data of open files is
    /// saved by `Client::shutdown`, which comes next.
    pub(crate) async fn finish(self) {
        if !self.shared.tasks.shutdown(END_LIMIT).await {
            tracing::warn!(grace_s = END_LIMIT.as_secs(), "requests were still under way at the end");
        }
    }
}

/// Asks the kernel to read further ahead than FUSE may ask for when it connects. Not allowed, not done: only speed.
fn set_read_ahead(point: &Path) {
    if let Some(device) = crate::cli::mounts::device(point) {
        let knob = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(error) = std::fs::write(&knob, format!("{READ_AHEAD_KIB}\n")) {
            tracing::debug!(knob, %error, "read-ahead stays as it is");
        }
    }
}
