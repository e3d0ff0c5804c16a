//! `dfs dev`: a whole cluster of real server processes on this machine, data in one directory, mounted if wanted.
//!
//! `up` is done when the cluster serves: a leader, every chunkserver registered and up, the mount there. Run again, it
//! starts what is down. Nothing here is special to development: the servers are the same programs with the same
//! configuration files as on several machines, only all on 127.0.0.1.

mod plan;
pub(super) mod process;
mod up;

use super::failure::{Failure, Outcome};
use super::mounts;
use super::umount;
use clap::{Args, Subcommand};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use plan::{Cluster, Wanted};
use process::{KILL_LIMIT, Process};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can be done with a development cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Start it (or what of it is down) and wait until it serves
    Up(UpArgs),
    /// Show every process and the cluster
    Status {
        #[command(flatten)]
        at: DirArg,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Unmount it and stop every process
    Down(DirArg),
    /// kill -9 servers: meta-1, chunk-2, mount, or all (every server, at once)
    Kill {
        #[command(flatten)]
        at: DirArg,
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Start servers that are down: meta-1, chunk-2, mount, or all
    Start {
        #[command(flatten)]
        at: DirArg,
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Where the cluster lives.
#[derive(Args, Debug)]
pub(crate) struct DirArg {
    /// The cluster's directory
    #[arg(long)]
    dir: PathBuf,
}

/// `dfs dev up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    at: DirArg,
    /// Mount it here (made if missing)
    #[arg(long)]
    mount: Option<PathBuf>,
    /// 1, 3 or 5 [default: 3]
    #[arg(long)]
    metaservers: Option<u32>,
    /// How many; may be raised later [default: 3]
    #[arg(long)]
    chunkservers: Option<u32>,
    /// Data directories of each chunkserver
    #[arg(long, default_value_t = 1)]
    chunk_dirs_per_server: u32,
    /// Seconds until it must serve
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Runs a `dfs dev` command.
pub(crate) async fn run(command: DevCommand) -> Outcome {
    match command {
        DevCommand::Up(args) => bring_up(args).await,
        DevCommand::Status { at, json } => up::status(&Cluster::load(&at.dir)?, json).await,
        DevCommand::Down(at) => down(&at.dir).await,
        DevCommand::Kill { at, names } => kill_named(&Cluster::load(&at.dir)?, &names).await,
        DevCommand::Start { at, names } => start_named(&at.dir, &names).await,
    }
}

/// The program that runs now: the servers' programs lie beside it.
fn own_program() -> Outcome<PathBuf> {
    std::env::current_exe().map_err(|e| Failure::at("find", "this program", e))
}

async fn bring_up(args: UpArgs) -> Outcome {
    if !(1..=plan::SERVERS_MAX).contains(&args.chunk_dirs_per_server) {
        return Err(Failure::new(format!("--chunk-dirs-per-server: must be 1 to {}", plan::SERVERS_MAX)));
    }
    fs::create_dir_all(&args.at.dir).map_err(|e| Failure::at("make directory", args.at.dir.display(), e))?;
    let _lock = lock(&args.at.dir)?;
    let wanted = Wanted {
        mount: args.mount,
        metaservers: args.metaservers,
        chunkservers: args.chunkservers,
        chunk_dirs: args.chunk_dirs_per_server,
    };
    let cluster = Cluster::prepare(&args.at.dir, &wanted)?;
    up::start_all(&cluster, Duration::from_secs(args.timeout)).await?;
    say!("cluster serves: {}", cluster.meta_addresses().join(","));
    if let Some(point) = &cluster.plan.mount {
        say!("mounted at {}", point.display());
    }
    say!("client config: {}", cluster.dir.join("dfs.toml").display());
    Ok(())
}

/// One `up`, `down` or `start` at a time.
fn lock(dir: &Path) -> Outcome<Flock<fs::File>> {
    let path = dir.join("dev.lock");
    let open = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|e| Failure::at("open", path.display(), e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        Failure::at("lock", path.display(), e).advice("another `dfs dev` works on this cluster: wait for it")
    })
}

/// Unmounts first, so that the mount can flush; then stops all servers at once.
async fn down(dir: &Path) -> Outcome {
    let cluster = Cluster::load(dir)?;
    let _lock = lock(dir)?;
    if let Some(process) = cluster.mount_process()? {
        let point = cluster.plan.mount.clone().unwrap_or_default();
        let there = mounts::fs_type(&point).as_deref() == Some(mounts::FS_TYPE);
        if there && let Err(failure) = umount::unmount(&point, false).await {
            eprintln!("dfs: {failure}; ending it by signal");
        }
        process.stop().await?;
        mounts::clear_dead(&point)?;
    }
    let servers = servers(&cluster)?;
    let mut failed = None;
    for result in futures::future::join_all(servers.iter().map(stop_one)).await {
        failed = result.err().or(failed);
    }
    failed.map_or(Ok(()), Err)
}

async fn stop_one(process: &Process) -> Outcome {
    if process.stop().await? {
        eprintln!("dfs: {} did not stop in {} s and was killed", process.name, process::STOP_LIMIT.as_secs());
    }
    Ok(())
}

async fn kill_named(cluster: &Cluster, names: &[String]) -> Outcome {
    let chosen = choose(cluster, names)?;
    let running: Vec<&Process> = chosen.iter().filter(|p| p.signal(Signal::SIGKILL)).collect();
    for process in &chosen {
        if !running.iter().any(|r| r.name == process.name) {
            eprintln!("dfs: {} was not running", process.name);
        }
        if !process.wait_gone(KILL_LIMIT).await {
            return Err(Failure::new(format!("kill {}: it still runs after SIGKILL", process.name)));
        }
    }
    Ok(())
}

async fn start_named(dir: &Path, names: &[String]) -> Outcome {
    let cluster = Cluster::load(dir)?;
    let _lock = lock(dir)?;
    up::start_some(&cluster, choose(&cluster, names)?).await
}

/// All servers, without the mount.
fn servers(cluster: &Cluster) -> Outcome<Vec<Process>> {
    Ok(cluster.processes()?.into_iter().filter(|p| p.name != "mount").collect())
}

fn choose(cluster: &Cluster, names: &[String]) -> Outcome<Vec<Process>> {
    if names.iter().any(|n| n == "all") {
        return servers(cluster);
    }
    let all = cluster.processes()?;
    let known: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
    let mut chosen = Vec::new();
    for name in names {
        let Some(process) = all.iter().find(|p| p.name == *name) else {
            return Err(Failure::new(format!("{name}: no such process; there are {}", known.join(", "))));
        };
        chosen.push(process.clone());
    }
    Ok(chosen)
}
