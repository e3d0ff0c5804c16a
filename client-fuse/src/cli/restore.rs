//! `dfs admin meta restore`: a new life of a cluster, from a backup, on empty metaservers.
//!
//! Everything is checked before anything is sent, the plan is shown, and without `--yes` that is all. Every metaserver gets
//! the whole backup and checks it; only when all of them have, they become members. What stops before that leaves empty
//! metaservers; so does Ctrl-C, which is not heard any more when they begin to become members.

use super::admin::{Orders, UNFORMATTED, ask, cluster_status, done};
use super::connect::Target;
use super::copy::interrupted;
use super::failure::{Failure, Outcome};
use super::format::{size_text, time_text};
use super::manifest::Manifest;
use super::progress::Progress;
use client_fuse::AdminLink;
use common::id::{Epoch, NodeId};
use common::proto::admin::Order;
use common::proto::backup::{BACKUP_PIECE_LEN, RestorePlan, RestoreStep};
use common::proto::meta::{Admin, AdminReply, NodeStatus};
use common::time::Time;
use common::units::{len_u32, len_u64, len_usize};
use common::world::World;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long a metaserver may take to say how it is.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long one step may take: checking everything, and opening it, is one.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// How long the new group may take to have a leader.
const LEADER_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether it has one.
const LEADER_POLL: Duration = Duration::from_millis(250);

/// Restores the backup in `dir` onto the metaservers of `target`.
pub(crate) async fn run(target: &Target, dir: &Path, yes: bool, json: bool) -> Outcome {
    let (world, orders) = (World::real(), Orders::new(target)?);
    let addresses = target.client_config("admin")?.metaservers;
    let manifest = Manifest::read(dir)?;
    if world.now().secs < manifest.taken {
        let line =
            format!("restore: the clock here is before {}, when the backup was made", time_text(taken(&manifest)));
        return Err(Failure::new(line).advice("set it right: the new epoch is taken from it"));
    }
    let bar = Progress::new(json);
    bar.expect(manifest.bytes());
    let checked = check_files(&manifest, dir, &bar);
    bar.finish();
    checked?;
    let metaservers = empty_ones(&world, &addresses).await?;
    let plan = plan(&world, &manifest, &orders, metaservers);
    if !yes {
        return show(&manifest, &plan, json);
    }
    let (bar, stop) = (Progress::new(json), interrupted()?);
    bar.expect(manifest.bytes() * len_u64(addresses.len()));
    let sent = tokio::select! {
        biased;
        () = stop => Err(Failure::new("restore: interrupted: nothing was restored, the metaservers are still empty")),
        sent = send_all(&orders, &plan, &manifest, dir, &bar) => sent,
    };
    bar.finish();
    sent?;
    if !json {
        say!("all of them have it, and become members now: this is not interrupted any more");
    }
    for (node, addr) in &plan.metaservers {
        let link = orders.link(Some(addr), STEP_LIMIT);
        let step = RestoreStep::Activate { restore: plan.restore };
        let order = Order::Restore(Box::new(step));
        let active = orders.send_on(&link, "restore on", &format!("{node} at {addr}"), order).await.and_then(done);
        link.close().await;
        let again = "stop those that are members already, empty their data_dir, and run it again";
        active.map_err(|failure| failure.advice(again))?;
    }
    let end = Instant::now() + LEADER_LIMIT;
    let status = loop {
        match cluster_status(target).await {
            Ok(status) => break status,
            Err(failure) if Instant::now() >= end => return Err(failure.advice("see the metaservers' logs")),
            Err(_) => tokio::time::sleep(LEADER_POLL).await,
        }
    };
    if json {
        let told = serde_json::json!({ "restored": true, "epoch": plan.epoch.0, "leader": status.leader.node.0 });
        say!("{told}");
    } else {
        say!("restored: epoch {}, {} leads", plan.epoch.0, status.leader.node);
        say!("deletion is held until `dfs admin fsck` has found nothing wrong: run it when all chunkservers are up");
    }
    Ok(())
}

/// When the backup was made.
fn taken(manifest: &Manifest) -> Time {
    Time { secs: manifest.taken, nanos: 0 }
}

/// Reads all files of the backup and compares them with the manifest.
fn check_files(manifest: &Manifest, dir: &Path, bar: &Progress) -> Outcome {
    let (mut buffer, mut done) = (vec![0; len_usize(BACKUP_PIECE_LEN)], 0);
    for ((path, (name, len)), hash) in manifest.paths(dir).iter().zip(&manifest.head.files).zip(&manifest.hashes) {
        let failed = |error: std::io::Error| Failure::at("read", path.display(), error);
        let mut file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        if found != *len {
            return Err(damaged(path, &format!("it has {found} bytes, not {len}")));
        }
        let mut hasher = blake3::Hasher::new();
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            done += len_u64(count);
            bar.reached(done, name);
        }
        if hasher.finalize().as_bytes() != hash {
            return Err(damaged(path, "its bytes are not those that were written"));
        }
    }
    Ok(())
}

fn damaged(path: &Path, what: &str) -> Failure {
    Failure::at("this backup is damaged", path.display(), what).advice("use another one")
}

/// The metaservers at these addresses, which must all be empty.
async fn empty_ones(world: &World, addresses: &[String]) -> Outcome<Vec<(NodeId, String)>> {
    let mut found: Vec<(NodeId, String)> = Vec::new();
    for addr in addresses {
        let NodeStatus { node, state, .. } = look(world, addr).await?;
        if state != UNFORMATTED {
            let line = format!("restore: {node} at {addr} is not empty, it is a {state}");
            let advice = "a restore needs metaservers with an empty data_dir; the old ones must be stopped for good";
            return Err(Failure::new(line).advice(advice));
        }
        if let Some((_, other)) = found.iter().find(|(known, _)| *known == node) {
            return Err(Failure::new(format!("restore: {addr} and {other} are both {node}")));
        }
        found.push((node, addr.clone()));
    }
    if !matches!(found.len(), 1 | 3 | 5) {
        return Err(Failure::new(format!("restore: {} metaservers: name 1, 3 or 5 with --meta", found.len())));
    }
    found.sort();
    Ok(found)
}

async fn look(world: &World, addr: &str) -> Outcome<NodeStatus> {
    match ask(world, std::slice::from_ref(&addr.to_owned()), Admin::NodeStatus, LOOK_LIMIT).await? {
        AdminReply::Node(status) => Ok(status),
        other => Err(Failure::new(format!("status of {addr}: unexpected answer {other:?}"))),
    }
}

/// The new life. Its epoch and its first term are taken from the clock, in seconds: so they are above those of every
/// earlier life, also of one that began from the same backup. (Terms rise at most once in two seconds, the clock each.)
fn plan(world: &World, manifest: &Manifest, orders: &Orders, metaservers: Vec<(NodeId, String)>) -> RestorePlan {
    let (head, at) = (manifest.head.clone(), world.now());
    let seconds = u64::try_from(at.secs).unwrap_or(0);
    RestorePlan {
        restore: world.random_u64() | 1,
        epoch: Epoch(seconds.max(head.epoch.0 + 1)),
        term: seconds.max(head.term + 1),
        hashes: manifest.hashes.clone(),
        head,
        metaservers,
        at,
        by: orders.by().to_owned(),
    }
}

fn show(manifest: &Manifest, plan: &RestorePlan, json: bool) -> Outcome {
    let head = &manifest.head;
    let taken = time_text(taken(manifest));
    if json {
        let nodes: Vec<_> =
            plan.metaservers.iter().map(|(node, addr)| serde_json::json!({"node": node.0, "addr": addr})).collect();
        let told = serde_json::json!({
            "restored": false, "cluster": head.cluster.to_string(), "backup_epoch": head.epoch.0,
            "index": head.index.0, "inodes": head.inodes, "chunks": head.chunks, "taken": manifest.taken,
            "bytes": manifest.bytes(), "epoch": plan.epoch.0, "metaservers": nodes,
        });
        say!("{told}");
    } else {
        say!("the backup is sound: cluster {}, epoch {}, index {}", head.cluster, head.epoch.0, head.index.0);
        say!("  made at {taken}, {} inodes, {} chunks, {}", head.inodes, head.chunks, size_text(manifest.bytes()));
        say!("a new life of that cluster would begin, in epoch {}, with these metaservers:", plan.epoch.0);
        plan.metaservers.iter().for_each(|(node, addr)| say!("  {node} at {addr}"));
        say!("all changes made after the backup would be lost, and all mounts would lose what they have not saved");
    }
    Err(Failure::new("restore: nothing was done yet: say --yes if you mean it"))
}

/// Gives every metaserver the backup, and has it checked there.
async fn send_all(orders: &Orders, plan: &RestorePlan, manifest: &Manifest, dir: &Path, bar: &Progress) -> Outcome {
    let mut sent = 0;
    for (node, addr) in &plan.metaservers {
        let link = orders.link(Some(addr), STEP_LIMIT);
        let prepared = send(orders, &link, (*node, addr), plan, manifest, dir, (bar, &mut sent)).await;
        link.close().await;
        prepared?;
    }
    Ok(())
}

/// Gives one metaserver the backup, and has it checked there.
async fn send(
    orders: &Orders,
    link: &AdminLink,
    (node, addr): (NodeId, &str),
    plan: &RestorePlan,
    manifest: &Manifest,
    dir: &Path,
    (bar, sent): (&Progress, &mut u64),
) -> Outcome {
    let to = format!("{node} at {addr}");
    let step = async |step: RestoreStep| {
        orders.send_on(link, "restore on", &to, Order::Restore(Box::new(step))).await.and_then(done)
    };
    step(RestoreStep::Begin(plan.clone())).await?;
    for (number, (path, (_, len))) in manifest.paths(dir).iter().zip(&manifest.head.files).enumerate() {
        let failed = |error: std::io::Error| Failure::at("read", path.display(), error);
        let mut file = File::open(path).map_err(failed)?;
        let mut at = 0;
        while at < *len {
            let mut bytes = vec![0; len_usize(BACKUP_PIECE_LEN.min(len - at))];
            file.read_exact(&mut bytes).map_err(failed)?;
            let count = len_u64(bytes.len());
            let (restore, file) = (plan.restore, len_u32(number));
            step(RestoreStep::Piece { restore, file, at, bytes: bytes.into() }).await?;
            at += count;
            *sent += count;
            bar.reached(*sent, &to);
        }
    }
    step(RestoreStep::Prepare { restore: plan.restore }).await
}
