//! `dfs mount`: in the foreground, or as a process of its own that says when it serves.
//!
//! Without `--foreground` the program starts itself again in a session of its own and waits on a pipe for one line:
//! `ready`, or why not. `SIGTERM`, `SIGINT` and `SIGHUP` save everything and unmount.

use super::connect::{Target, cannot_connect};
use super::failure::{Failure, Outcome};
use super::mount_status::{self, StatusArgs};
use super::mounts::{self, FS_TYPE, Registered};
use super::systemd;
use crate::fuse::{self, Mounted, Options};
use clap::{Args, Subcommand};
use client_fuse::{Client, ClientConfig};
use common::world::World;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a background mount says when it serves.
const READY: &str = "ready";
/// Options with which every change is durable when its call returns.
const SYNCED: [&str; 3] = ["sync_metadata", "sync", "dirsync"];
/// The option with which reads change access times.
const RELATIME: &str = "relatime";
/// The option with which small pieces do not share chunks.
const NO_PACK: &str = "nopack";
/// The option with which random reads bring no whole chunks into the kernel's memory.
const NO_FILL: &str = "nofill";
/// How long the kernel may take to end the mount after it was unmounted.
const END_LIMIT: Duration = Duration::from_secs(2);

/// `dfs mount`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct MountArgs {
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Where a background mount logs [default: in /run/dfs, for users in $XDG_RUNTIME_DIR/dfs]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// What is logged: error, warn, info, debug
    #[arg(long, default_value = "info")]
    log_level: String,
    /// ro, dev, suid, noexec, sync, relatime (reads change access times), sync_metadata (each change is durable when it
    /// returns), nopack (small pieces do not share chunks: equal ones are stored once), nofill (many small reads of a chunk do
    /// not bring all of it into the kernel's memory), ...
    #[arg(short = 'o', value_delimiter = ',', value_name = "OPTIONS", value_parser = option)]
    options: Vec<String>,
    /// For the background process: report on standard output
    #[arg(long, hide = true)]
    report: bool,
    /// Where to: a directory, best an empty one
    #[arg(required = true)]
    mountpoint: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<MountCommand>,
}

#[derive(Debug, Subcommand)]
enum MountCommand {
    /// What a mount holds, what is slow, what failed; answers also when the cluster is away
    Status(StatusArgs),
}

impl MountArgs {
    fn mountpoint(&self) -> &Path {
        self.mountpoint.as_deref().expect("required where there is no other command")
    }
}

fn option(name: &str) -> Result<String, String> {
    if fuse::mount_option(name).is_some() || SYNCED.contains(&name) || [RELATIME, NO_PACK, NO_FILL].contains(&name) {
        return Ok(name.to_owned());
    }
    let known =
        "ro, rw, (no)dev, (no)suid, (no)exec, (no)atime, relatime, sync, dirsync, sync_metadata, nopack, nofill";
    Err(format!("{name} is not known; there are {known}"))
}

/// Runs the command. Makes its own threads: in the background only those of the child live on.
pub(crate) fn run(target: &Target, args: MountArgs) -> Outcome {
    if let Some(MountCommand::Status(args)) = &args.command {
        return mount_status::run(args);
    }
    if !args.foreground {
        return in_background(target, &args);
    }
    if args.report {
        let _ = nix::unistd::setsid(); // fails only if it leads a session already
    }
    let served = foreground(target, &args);
    if let (Err(failure), true) = (&served, args.report) {
        say!("{failure}"); // after `ready` nobody reads it any more
    }
    served
}

fn in_background(target: &Target, args: &MountArgs) -> Outcome {
    let point = mounts::resolve(args.mountpoint())?;
    let log_file = match &args.log {
        Some(path) => path.clone(),
        None => Registered::of(&point)?.log_file,
    };
    if std::fs::read_dir(&point).is_ok_and(|mut list| list.next().is_some()) && mounts::fs_type(&point).is_none() {
        eprintln!("dfs: {} is not empty: what is in it is hidden while dfs is mounted there", point.display());
    }
    let open = std::fs::OpenOptions::new().create(true).append(true).open(&log_file);
    let log = open.map_err(|e| Failure::at("open log", log_file.display(), e))?;
    let program = std::env::current_exe().map_err(|e| Failure::at("find", "this program", e))?;
    let mut command = Command::new(program);
    command.args(["mount", "--foreground", "--report", "--log-level", &args.log_level]);
    if !target.meta.is_empty() {
        command.arg("--meta").arg(target.meta.join(","));
    }
    if let Some(config) = &target.config {
        let config = config.canonicalize().map_err(|e| Failure::at("read", config.display(), e))?;
        command.arg("--config").arg(config);
    }
    if let Some(seconds) = target.op_timeout {
        command.arg("--op-timeout").arg(seconds.to_string());
    }
    if !args.options.is_empty() {
        command.arg("-o").arg(args.options.join(","));
    }
    command.arg("--").arg(&point).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|e| Failure::at("start", "the mount process", e))?;
    let mut line = String::new();
    let pipe = child.stdout.take().expect("piped above");
    let read = BufReader::new(pipe).read_line(&mut line); // ends with the child at the latest, which has a deadline
    match (read, line.trim_end()) {
        (Ok(_), READY) => Ok(()),
        (Ok(_), "") | (Err(_), _) => Err(Failure::at("mount", point.display(), "the mount process ended")
            .advice(format!("see {}", log_file.display()))),
        (Ok(_), reason) => Err(Failure::new(reason)),
    }
}

fn foreground(target: &Target, args: &MountArgs) -> Outcome {
    common::config::start_logging(&args.log_level);
    common::config::abort_on_panic();
    mounts::clear_dead(args.mountpoint())?;
    let point = mounts::resolve(args.mountpoint())?;
    if mounts::fs_type(&point).as_deref() == Some(FS_TYPE) {
        return Err(Failure::at("mount", point.display(), "already mounted").advice("`dfs umount` it first"));
    }
    if !point.is_dir() {
        return Err(match point.exists() {
            true => Failure::at("mount", point.display(), "not a directory"),
            false => Failure::at("mount", point.display(), "no such directory").advice("make it first"),
        });
    }
    let runtime = common::task::runtime(0).map_err(|e| Failure::at("start", "threads", e))?;
    runtime.block_on(serve(target, args, &point))
}

/// Connects, mounts, and serves until it is unmounted or told to stop; then saves everything.
async fn serve(target: &Target, args: &MountArgs, point: &Path) -> Outcome {
    let synced = args.options.iter().any(|option| SYNCED.contains(&option.as_str()));
    let is_given = |name| args.options.iter().any(|option| option == name);
    let relatime = is_given(RELATIME) && !is_given("noatime") && !is_given("ro");
    let config = target.client_config(&format!("mount {}", point.display()))?;
    let pack = !is_given(NO_PACK);
    let config = ClientConfig { leases: true, write_leases: !synced, relatime, pack, ..config };
    let options = Options {
        source: format!("dfs:{}", config.metaservers.join("+")),
        flags: args.options.clone(),
        op_timeout: config.op_timeout,
        fills: !is_given(NO_FILL),
    };
    let servers = config.metaservers.join(",");
    let mut signals = Signals::new()?;
    let connected = tokio::select! {
        connected = Client::connect(config, World::real()) => connected,
        () = signals.any() => return Err(Failure::at("mount", point.display(), "interrupted")),
    };
    let client = connected.map_err(|fault| cannot_connect(&servers, &fault))?;
    let (for_mount, runtime, place) = (client.clone(), tokio::runtime::Handle::current(), point.to_owned());
    let started = tokio::task::spawn_blocking(move || fuse::start(for_mount, runtime, &place, &options)).await;
    let mut mounted = match started.map_err(std::io::Error::other).and_then(|started| started) {
        Ok(mounted) => mounted,
        Err(error) => {
            let _ = client.shutdown().await; // nothing was written yet
            let wrong = error.kind() == std::io::ErrorKind::InvalidInput; // the options
            let failure = Failure::at("mount", point.display(), error);
            let advice = "is /dev/fuse there, and are you root or in reach of fusermount3?";
            return Err(if wrong { failure } else { failure.advice(advice) });
        }
    };
    // It looks at the mount, whose answers may need this thread.
    let (place, shown) = (point.to_owned(), args.mountpoint().display().to_string());
    let registered = tokio::task::spawn_blocking(move || {
        let registered = Registered::of(&place)?;
        registered.enter(&shown)?;
        Ok::<_, Failure>(registered)
    });
    let registered = registered.await.map_err(|e| Failure::at("mount", point.display(), e))??;
    if let Err(failure) = mount_status::answer(&registered, mounted.status_source()) {
        tracing::warn!(error = %failure, "no status will be told"); // the mount itself needs it not
    }
    tracing::info!(point = %point.display(), "mounted");
    if let Err(error) = systemd::ready() {
        tracing::warn!(%error, "tell systemd that it is mounted");
    }
    if args.report {
        report_ready();
    }
    let ended = tokio::select! {
        ended = mounted.ended() => ended.map_err(|e| Failure::at("serve", point.display(), e)),
        () = signals.any() => unmount_by_signal(&client, &mut mounted, point).await,
    };
    mounted.finish().await;
    let saved = client.shutdown().await.map_err(|fault| Failure::fault("save", point.display(), &fault));
    let result = saved.and(ended);
    match &result {
        Ok(()) => tracing::info!(point = %point.display(), "unmounted, everything is saved"),
        Err(failure) => tracing::error!(point = %point.display(), error = %failure, "unmounted"),
    }
    registered.leave(result.as_ref().err());
    result
}

/// Saves what is unsaved while programs still can be told of errors, then unmounts, if need be under them.
async fn unmount_by_signal(client: &Client, mounted: &mut Mounted, point: &Path) -> Outcome {
    tracing::info!(point = %point.display(), "told to stop: saving and unmounting");
    let saved = client.sync_all().await.map_err(|fault| Failure::fault("save", point.display(), &fault));
    let place = point.to_owned();
    let detached = tokio::task::spawn_blocking(move || {
        mounts::detach(&place, false).or_else(|failure| {
            tracing::warn!(error = %failure, "unmounting under those who use it");
            mounts::detach(&place, true)
        })
    });
    let detached = detached.await.map_err(|e| Failure::at("unmount", point.display(), e)).and_then(|done| done);
    // Files still open keep the mount alive; they fail when this process ends.
    let _ = tokio::time::timeout(END_LIMIT, mounted.ended()).await;
    saved.and(detached)
}

/// Tells the process that waits for us, and leaves its pipe.
fn report_ready() {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush()); // if nobody listens, nobody misses it
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null); // else a pipe without a reader stays open: harmless
    }
}

/// The signals that end a mount.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Outcome<Signals> {
        let catch = |kind| signal(kind).map_err(|e| Failure::at("catch", "signals", e));
        Ok(Signals([catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?, catch(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
