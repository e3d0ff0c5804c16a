//! A cluster grows from three chunkservers to six, shrinks to three again, and then has every one of them replaced by
//! another, while clients write. What each server holds at the end of a step, and the disk space of its data directory, is
//! what the plan said before.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::damage::files_below;
use tests::json::number;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;

/// A plan is through, and what is not needed any more is gone, within this.
const PLAN_LIMIT: Duration = Duration::from_secs(120);
/// Writers rest this long between two operations: the subject is what moves.
const PAUSE: Duration = Duration::from_millis(150);
/// Operations that each writer makes before something happens.
const OPS_BETWEEN: u64 = 10;
/// Files of the data that moves, a chunk each, and their length.
const FILES: u64 = 400;
const FILE_LEN: u64 = 400_000;
/// Beside its chunks a data directory has an index, and segments that were made longer than what is in them. Less than what a
/// server gives away when the cluster grows.
const OVERHEAD: u64 = 64 << 20;
/// Bytes that clients write between a heartbeat and a plan, or so.
const SMALL: u64 = 1 << 20;
/// What clients write while a plan is carried out is spread as what the plan moved, within this, in percent.
const UNEVEN: u64 = 15;
/// All copies.
const COPIES: u64 = 3;

/// The id that the cluster gave a chunkserver last.
fn id(cluster: &Cluster, name: &str) -> String {
    let log = cluster.log(name);
    let (_, rest) = log.rsplit_once("registered server=s").unwrap_or_else(|| panic!("{name} has not registered"));
    rest.split(' ').next().unwrap().to_owned()
}

fn wait_known(cluster: &Cluster, count: usize) {
    wait_until("servers to be known", PROCESS_LIMIT, || {
        let all = cluster.server_list();
        all.len() == count && all.iter().all(|server| server["up"] == true && number(server, "free") > 0)
    });
}

/// Copies that are not needed where they are go: every server has told so.
fn settle(cluster: &Cluster) {
    wait_until("copies that moved to be dropped", PLAN_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let held: u64 = cluster.server_list().iter().map(|server| number(server, "chunks")).sum();
        held == COPIES * number(&cluster.status(), "chunks")
    });
}

/// Space that a data directory takes on its disk, in bytes.
fn on_disk(cluster: &Cluster, name: &str) -> u64 {
    let files = files_below(&cluster.data(name));
    files.iter().map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
}

/// Every server holds the part of all bytes that the plan said before, within `uneven` percent, and so does its disk.
fn is_as_planned(cluster: &Cluster, planned: &Value, uneven: u64) {
    let (servers, planned) = (cluster.server_list(), planned["servers"].as_array().unwrap());
    let sum = |all: &[Value], what| all.iter().map(|one| number(one, what)).sum::<u64>();
    let (all, all_planned) = (sum(&servers, "chunk_bytes"), sum(planned, "used_after"));
    for (server, was_planned) in servers.iter().zip(planned) {
        assert_eq!(server["server"], was_planned["server"]);
        let part = number(was_planned, "used_after") * (all >> 10) / (all_planned >> 10);
        let holds = number(server, "chunk_bytes");
        let off = holds.abs_diff(part);
        assert!(off <= SMALL || off * 100 <= part * uneven, "{holds} of {all}, {was_planned:#} of {all_planned}");
    }
    for name in cluster.servers().iter().filter(|name| name.starts_with("chunk-") && cluster.pid(name).is_some()) {
        let its: u64 = id(cluster, name).parse().unwrap();
        let server = cluster.server_list().into_iter().find(|one| one["server"] == its).unwrap();
        let (disk, held) = (on_disk(cluster, name), number(&server, "chunk_bytes"));
        assert!(disk >= held && disk <= held + OVERHEAD, "{name}: {disk} bytes on disk for {held}");
    }
}

/// The server gives away what it has, leaves, and its disk is emptied.
fn decommission(cluster: &Cluster, name: &str) {
    cluster.dfs(&["admin", "server", "decommission", &id(cluster, name), "--yes"]).must();
    cluster.kill(&[name]);
    std::fs::remove_dir_all(cluster.data(name)).unwrap();
    std::fs::create_dir(cluster.data(name)).unwrap();
}

fn load(cluster: &mut Cluster, round: u64) -> (Load, PathBuf) {
    let root = cluster.mount(&format!("m{round}"));
    let places: Vec<(PathBuf, String)> = (0..2).map(|n| (root.clone(), format!("round-{round}-writer-{n}"))).collect();
    let load = Load::start_paced(40 + round, &places, PAUSE);
    progress(&load);
    (load, root)
}

fn progress(load: &Load) {
    let goal = load.acked_by_each() + OPS_BETWEEN;
    wait_until("operations", PLAN_LIMIT, || load.acked_by_each() >= goal);
}

/// The writers have ended, nothing failed, and what they were promised is there; then it goes, so that it does not pile up.
fn stop(cluster: &mut Cluster, load: Load, root: &Path, round: u64) {
    progress(&load);
    let ledgers: Vec<Ledger> = load.stop();
    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(root).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.unmount(&format!("m{round}"));
    let dirs: Vec<String> = (0..2).map(|n| format!("/round-{round}-writer-{n}")).collect();
    cluster.dfs(&["rm", "-r", &dirs[0], &dirs[1]]).must();
}

fn put(cluster: &Cluster, local: &Path) {
    let source = local.join("data");
    std::fs::create_dir(&source).unwrap();
    for file in 0..FILES {
        Content::new(32, file, 1).write_file(&source.join(format!("f{file}")), FILE_LEN).unwrap();
    }
    cluster.dfs(&["put", "-r", source.to_str().unwrap(), "/data"]).must();
}

fn check(cluster: &Cluster, local: &Path) {
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    let back = local.join("back");
    let _not_there = std::fs::remove_dir_all(&back);
    cluster.dfs(&["get", "-r", "/data", back.to_str().unwrap()]).must();
    for file in 0..FILES {
        Content::new(32, file, 1).check_file(&back.join(format!("f{file}")), FILE_LEN).unwrap();
    }
}

/// Every server has its share: the plan moves nothing.
fn nothing_to_move(cluster: &Cluster) -> Value {
    let plan = cluster.json(&["admin", "rebalance", "plan", "--json"]);
    assert_eq!(number(&plan, "groups"), 0, "{plan:#}");
    plan
}

#[test]
fn a_cluster_grows_shrinks_and_changes_every_server_under_load() {
    tests::skip_if!(no_mount);
    let (mut cluster, local) = (Cluster::start(), tempfile::tempdir().unwrap());
    cluster.dfs(&["admin", "settings", "set", "grace_s=0", "undelete_window_s=0", "repair_busy_mib_s=200"]).must();
    put(&cluster, local.path());

    let (writers, root) = load(&mut cluster, 1);
    cluster.dev("up", &["--chunkservers", "6"]).must();
    wait_known(&cluster, 6);
    let plan = cluster.json(&["admin", "rebalance", "plan", "--json"]);
    cluster.dfs(&["admin", "rebalance", "start"]).must();
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    stop(&mut cluster, writers, &root, 1);
    settle(&cluster);
    is_as_planned(&cluster, &plan, UNEVEN);
    nothing_to_move(&cluster);
    let places: Vec<u64> = cluster.server_list().iter().map(|server| number(server, "places")).collect();
    let fair = places.iter().sum::<u64>() / 6;
    assert!(places.iter().all(|places| places.abs_diff(fair) * 20 <= fair), "within 5 % of a sixth: {places:?}");

    for (round, name) in (2..).zip(["chunk-4", "chunk-5", "chunk-6"]) {
        let (writers, root) = load(&mut cluster, round);
        let plan = cluster.json(&["admin", "server", "drain", &id(&cluster, name), "--plan", "--json"]);
        cluster.dfs(&["admin", "server", "drain", &id(&cluster, name)]).must();
        cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
        stop(&mut cluster, writers, &root, round);
        settle(&cluster);
        is_as_planned(&cluster, &plan, UNEVEN);
        decommission(&cluster, name);
    }
    assert_eq!(cluster.server_list().len(), 3);
    check(&cluster, local.path());

    let (writers, root) = load(&mut cluster, 5);
    for (old, new) in [("chunk-1", "chunk-4"), ("chunk-2", "chunk-5"), ("chunk-3", "chunk-6")] {
        cluster.start_server(new);
        wait_known(&cluster, 4);
        decommission(&cluster, old);
        progress(&writers);
    }
    stop(&mut cluster, writers, &root, 5);
    settle(&cluster);
    is_as_planned(&cluster, &nothing_to_move(&cluster), 0);
    check(&cluster, local.path());
}
