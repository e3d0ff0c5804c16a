//! A disk that refuses a sync: the chunkserver fences that store and the writers go on with the others; the metaserver
//! stops. Neither tries the sync again, and everything acknowledged is on the disks of the others.
//!
//! The failing `fdatasync` is made by strace, so the real code meets the real error.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;

/// Things happen within this.
const LIMIT: Duration = Duration::from_secs(60);
/// Operations each writer gets acknowledged between two events.
const OPS_BETWEEN: u64 = 20;
/// Bytes of a file: chunks for every server.
const PUT_LEN: u64 = 80 << 20;
/// Writers, each with a mount of its own.
const WRITERS: usize = 2;

/// A tracer that makes system calls of one process fail, until dropped.
struct Injected(Child);

impl Injected {
    /// From now on every sync of data by this server fails.
    fn sync_errors(cluster: &Cluster, name: &str) -> Injected {
        let pid = cluster.pid(name).unwrap();
        let log = cluster.dir().join(format!("log/strace-{name}.log"));
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"]);
        command.arg("-o").arg(log).arg("-p").arg(pid.to_string()).stdin(Stdio::null());
        Injected(command.spawn().unwrap())
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // SIGINT lets strace detach; a kill might leave threads stopped.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("pids are small"));
        let _gone_already = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _status = self.0.wait();
    }
}

fn progress(load: &Load, why: &str) {
    let goal = load.acked_by_each() + OPS_BETWEEN;
    wait_until(why, LIMIT, || load.acked_by_each() >= goal);
}

fn start(seed: u64) -> (Cluster, Load) {
    let mut cluster = Cluster::start();
    let places: Vec<(PathBuf, String)> =
        (0..WRITERS).map(|writer| (cluster.mount(&format!("m{writer}")), format!("writer-{writer}"))).collect();
    let load = Load::start(seed, &places);
    progress(&load, "the first operations");
    (cluster, load)
}

/// What was promised is there, read through a mount that never saw it.
fn check(cluster: &mut Cluster, ledgers: &[Ledger], mount: &str) {
    let root = cluster.mount(mount);
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(&root).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.unmount(mount);
}

fn none_failed(ledgers: &[Ledger]) {
    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
}

#[test]
fn a_chunkserver_whose_disk_refuses_a_sync_is_fenced_and_the_writers_go_on() {
    tests::skip_if!(no_mount, no_root);
    let (mut cluster, load) = start(15);
    let injected = Injected::sync_errors(&cluster, "chunk-1");
    wait_until("the store to be fenced", LIMIT, || {
        let status = cluster.status();
        let servers = status["chunkservers"].as_array().unwrap();
        servers.iter().any(|server| server["fenced_dirs"].as_u64() == Some(1))
    });
    progress(&load, "operations with a fenced store");
    let ledgers = load.stop();
    drop(injected);
    none_failed(&ledgers);
    // The disk works again, but what it did with the refused data is unknown: still no acknowledgement from there.
    assert!(
        cluster.status()["chunkservers"].to_string().contains("\"fenced_dirs\":1"),
        "a fence is not lifted by itself"
    );
    // All without the server whose disk failed.
    cluster.kill(&["chunk-1"]);
    check(&mut cluster, &ledgers, "without");
    cluster.start_server("chunk-1");
    check(&mut cluster, &ledgers, "again");
}

#[test]
fn a_metaserver_whose_disk_refuses_a_sync_stops_and_the_others_go_on() {
    tests::skip_if!(no_mount, no_root);
    let (mut cluster, load) = start(16);
    let leader = cluster.leader();
    let injected = Injected::sync_errors(&cluster, &leader);
    wait_until("the leader to stop", LIMIT, || cluster.pid(&leader).is_none());
    drop(injected);
    progress(&load, "operations without it");
    let log = cluster.log(&leader);
    assert!(log.contains("Input/output error") || log.contains("os error 5"), "it says why it stopped:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    cluster.start_server(&leader);
    progress(&load, "operations with it again");
    let ledgers = load.stop();
    none_failed(&ledgers);
    // Only with the one whose disk failed and one other: it has caught up on what it did not acknowledge.
    let other = ["meta-1", "meta-2", "meta-3"].into_iter().find(|name| *name != leader).unwrap();
    cluster.kill(&[other]);
    check(&mut cluster, &ledgers, "with");
}

/// It serves no other purpose any more: what it has counts as lost, as if it were down.
#[test]
fn what_a_server_with_a_failed_disk_had_is_made_again_elsewhere() {
    tests::skip_if!(no_root);
    let (cluster, local) = (Cluster::start_with(1, 4), tempfile::tempdir().unwrap());
    cluster.configure("conf/meta-1.toml", "down_out_s = 12");
    cluster.kill(&["meta-1"]);
    cluster.up();
    let source = local.path().join("source");
    let put = |file: u64| {
        Content::new(18, file, 1).write_file(&source, PUT_LEN).unwrap();
        cluster.dfs(&["put", source.to_str().unwrap(), &format!("/f{file}")]).must();
    };
    put(1);
    let injected = Injected::sync_errors(&cluster, "chunk-1");
    put(2);
    let log = cluster.log("chunk-1");
    let id: u64 = log.rsplit_once("registered server=s").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    wait_until("it to be taken out", LIMIT, || cluster.status()["keep"]["out"] == serde_json::json!([id]));
    assert!(cluster.pid("chunk-1").is_some(), "it runs, and says that it cannot be used");
    let others_have_all = || {
        let status = cluster.status();
        let servers = status["chunkservers"].as_array().unwrap();
        let others = servers.iter().filter(|server| server["server"] != id);
        let copies: u64 = others.map(|server| server["chunks"].as_u64().unwrap()).sum();
        status["degraded"] == 0 && copies == 3 * status["chunks"].as_u64().unwrap()
    };
    wait_until("three copies elsewhere", LIMIT, others_have_all);
    drop(injected);
    cluster.kill(&["chunk-1"]);
    wait_until("it to be let go", LIMIT, || cluster.dfs(&["admin", "server", "remove", &id.to_string(), "--yes"]).ok());
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    wait_until("the cluster to be well", LIMIT, || cluster.status()["health"] == "ok");
    for file in 1..=2 {
        let back = local.path().join(format!("back{file}"));
        cluster.dfs(&["get", &format!("/f{file}"), back.to_str().unwrap()]).must();
        Content::new(18, file, 1).check_file(&back, PUT_LEN).unwrap();
    }
}
