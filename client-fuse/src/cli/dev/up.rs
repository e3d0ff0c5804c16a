//! Starting a development cluster and waiting until it serves.

use super::plan::Cluster;
use super::process::{POLL_EVERY, Process};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::health::{Seen, status_json, status_text};
use crate::cli::{admin, mounts};
use client_fuse::{Client, ClientConfig};
use common::fault::Fault;
use common::id::ServerId;
use common::proto::backup::Members;
use common::proto::keep::{KeepAdmin, KeepAdminReply};
use common::proto::meta::{Admin, AdminReply, NodeStatus, Status};
use common::world::World;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Child;
use std::time::Duration;
use tokio::time::Instant;

/// How long one question to a metaserver may take while we wait.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long `start` waits for a server to listen (a chunkserver does once it has registered).
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// How long `start` waits for the mount.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Processes started by this command: one that ends meanwhile is an error with the end of its log.
struct Started(Vec<(Process, Child)>);

impl Started {
    fn new() -> Started {
        Started(Vec::new())
    }

    /// Starts it if it does not run.
    fn ensure(&mut self, process: &Process) -> Outcome {
        if process.pid().is_none() {
            self.0.push((process.clone(), process.start()?));
        }
        Ok(())
    }

    /// Fails if one of them has ended.
    fn check(&mut self) -> Outcome {
        for (process, child) in &mut self.0 {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(
                    Failure::new(format!("{} ended at start ({status})", process.name)).details(process.log_tail())
                );
            }
        }
        Ok(())
    }
}

/// Starts what is down and returns when the cluster serves and the mount is there.
pub(super) async fn start_all(cluster: &Cluster, limit: Duration) -> Outcome {
    let end = Instant::now() + limit;
    let mut started = Started::new();
    for process in super::servers(cluster)? {
        started.ensure(&process)?;
    }
    wait_serving(cluster, &mut started, end).await?;
    if let Some(process) = cluster.mount_process()? {
        start_mount(cluster, &process, &mut started, end).await?;
    }
    Ok(())
}

/// Starts these and returns when each listens or, without a majority, at least runs (a mount: is there).
pub(super) async fn start_some(cluster: &Cluster, processes: Vec<Process>) -> Outcome {
    let end = Instant::now() + LISTEN_LIMIT;
    let mut started = Started::new();
    for process in &processes {
        if process.pid().is_some() {
            eprintln!("dfs: {} runs already", process.name);
        } else if process.name == "mount" {
            start_mount(cluster, process, &mut started, Instant::now() + MOUNT_LIMIT).await?;
        } else {
            started.ensure(process)?;
        }
    }
    for process in processes.iter().filter(|p| p.name != "mount") {
        let port = cluster.port(&process.name).expect("every server has a port");
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            started.check()?;
            if Instant::now() >= end {
                eprintln!("dfs: {} runs, but does not listen yet: is there a majority of metaservers?", process.name);
                break;
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
    Ok(())
}

async fn start_mount(cluster: &Cluster, process: &Process, started: &mut Started, end: Instant) -> Outcome {
    let point = cluster.plan.mount.clone().expect("the mount process has a mount point");
    if process.pid().is_none() {
        mounts::clear_dead(&point)?;
        std::fs::create_dir_all(&point).map_err(|e| Failure::at("make directory", point.display(), e))?;
        started.ensure(process)?;
    }
    while mounts::fs_type(&point).as_deref() != Some(mounts::FS_TYPE) {
        started.check()?;
        if Instant::now() >= end {
            return Err(Failure::at("mount", point.display(), "not mounted in time").details(process.log_tail()));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// Waits for every metaserver, formats a new cluster, waits for the leader and every chunkserver.
async fn wait_serving(cluster: &Cluster, started: &mut Started, end: Instant) -> Outcome {
    let world = World::real();
    let addresses = cluster.meta_addresses();
    let mut formatted = false;
    loop {
        started.check()?;
        let missing = match progress(cluster, &world, &addresses, &mut formatted).await {
            Ok(()) => return Ok(()),
            Err(missing) => missing,
        };
        if Instant::now() >= end {
            return Err(not_serving(cluster, &missing)?);
        }
        tokio::time::sleep(POLL_EVERY * 5).await;
    }
}

/// One look: `Ok` if it serves, else what is missing.
async fn progress(cluster: &Cluster, world: &World, addresses: &[String], formatted: &mut bool) -> Result<(), String> {
    if !*formatted {
        let mut nodes = Vec::new();
        for address in addresses {
            nodes.push(node_status(world, address).await.map_err(|e| format!("metaserver {address}: {e}"))?);
        }
        if nodes.iter().all(|n| n.state == admin::UNFORMATTED) {
            let request = admin::format_request(world, addresses, cluster.plan.shape());
            admin::ask(world, &addresses[..1], request, ASK_LIMIT * 10).await.map_err(|e| format!("format: {e}"))?;
        }
        *formatted = true;
    }
    let status = cluster_status(world, addresses).await.map_err(|e| format!("no leader yet: {e}"))?;
    let up = status.servers.iter().filter(|s| s.up).count();
    let wanted = cluster.plan.chunkservers.len();
    if up < wanted {
        return Err(format!("{up} of {wanted} chunkservers are registered and up"));
    }
    let placed = placed_servers(world, addresses).await.map_err(|fault| format!("no session: {fault}"))?;
    if placed < wanted {
        return Err(format!("{placed} of {wanted} chunkservers have a place in the layout"));
    }
    Ok(())
}

/// Opens a client's session, as a write would, and counts the chunkservers that chunks can be placed on.
async fn placed_servers(world: &World, addresses: &[String]) -> Result<usize, Fault> {
    let mut config = ClientConfig::new(addresses.to_vec());
    config.label = "dfs dev up".into();
    config.op_timeout = ASK_LIMIT;
    let client = Client::connect(config, world.clone()).await?;
    let map = client.cluster_map();
    let placed: BTreeSet<&ServerId> = map.layout.groups.iter().flatten().collect();
    client.shutdown().await?;
    Ok(placed.len())
}

/// The error when time is up: what is missing and the log of whoever is to blame.
fn not_serving(cluster: &Cluster, missing: &str) -> Outcome<Failure> {
    let failure = Failure::new(format!("the cluster does not serve in time: {missing}"));
    let servers = super::servers(cluster)?;
    let suspect = match servers.iter().find(|p| p.pid().is_none()) {
        Some(down) => down,
        None if missing.contains("chunkservers") => servers.last().expect("there are servers"),
        None => &servers[0],
    };
    Ok(failure.details(suspect.log_tail()))
}

async fn node_status(world: &World, address: &str) -> Outcome<NodeStatus> {
    match admin::ask(world, &[address.to_owned()], Admin::NodeStatus, ASK_LIMIT).await? {
        AdminReply::Node(status) => Ok(status),
        other => Err(Failure::new(format!("unexpected answer {other:?}"))),
    }
}

async fn cluster_status(world: &World, addresses: &[String]) -> Outcome<Status> {
    match admin::ask(world, addresses, Admin::Status, ASK_LIMIT).await? {
        AdminReply::Status(status) => Ok(*status),
        other => Err(Failure::new(format!("unexpected answer {other:?}"))),
    }
}

/// Shows every process and, if it answers, the cluster.
pub(super) async fn status(cluster: &Cluster, json: bool) -> Outcome {
    let world = World::real();
    let processes = cluster.processes()?;
    let status = cluster_status(&world, &cluster.meta_addresses()).await;
    let keeping = match admin::ask(&world, &cluster.meta_addresses(), Admin::Keep(KeepAdmin::Status), ASK_LIMIT).await {
        Ok(AdminReply::Keep(KeepAdminReply::Status(keeping))) => Some(keeping),
        _ => None,
    };
    let none = Members::default();
    let seen = |status| Seen { keeping: keeping.as_ref(), ..Seen::only(status, &none) };
    if json {
        let list: Vec<serde_json::Value> = processes
            .iter()
            .map(|p| serde_json::json!({"name": p.name, "pid": p.pid(), "up": p.pid().is_some(), "port": cluster.port(&p.name)}))
            .collect();
        let cluster = match &status {
            Ok(status) => status_json(seen(status)),
            Err(failure) => serde_json::json!({ "error": failure.to_string() }),
        };
        say!("{}", serde_json::json!({ "processes": list, "cluster": cluster }));
        return Ok(());
    }
    say!("{:<10} {:>8} {:<5} {:>6}", "NAME", "PID", "STATE", "PORT");
    for process in &processes {
        let pid = process.pid();
        let shown = pid.map_or("-".to_owned(), |pid| pid.to_string());
        let port = cluster.port(&process.name).map_or("-".to_owned(), |port| port.to_string());
        say!("{:<10} {:>8} {:<5} {:>6}", process.name, shown, if pid.is_some() { "up" } else { "down" }, port);
    }
    match status {
        Ok(status) => say!("\n{}", status_text(seen(&status)).trim_end()),
        Err(failure) => say!("\ncluster: {failure}"),
    }
    Ok(())
}
