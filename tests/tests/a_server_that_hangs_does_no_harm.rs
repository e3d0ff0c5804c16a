//! A server that hangs (stopped, its connections open) instead of dying: the others go on without it, nothing fails, and
//! when it comes back it neither answers with what is old nor takes anything back.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::load::Load;
use tests::wait::wait_until;
use tokio::time::Instant;

/// Writers, each with a mount of its own.
const WRITERS: usize = 2;
/// Operations each writer gets acknowledged between two events.
const OPS_BETWEEN: u64 = 20;
/// And takes this long for them at most.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// A hanging server is noticed by timeouts, not at once: an operation may take this long.
const STALL_LIMIT: Duration = Duration::from_secs(20);
/// A cold read of a file whose first replica hangs takes this long at most.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Files of one small chunk each.
const FILES: u64 = 60;

fn progress(load: &Load, why: &str) {
    let goal = load.acked_by_each() + OPS_BETWEEN;
    wait_until(why, PROGRESS_LIMIT, || load.acked_by_each() >= goal);
}

#[test]
fn writers_go_on_while_one_server_hangs_and_after_it_wakes() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let places: Vec<(PathBuf, String)> =
        (0..WRITERS).map(|writer| (cluster.mount(&format!("m{writer}")), format!("writer-{writer}"))).collect();
    let load = Load::start(17, &places);
    progress(&load, "the first operations");
    let mut hung = Vec::new();
    for victim in ["leader", "chunk-1", "leader", "chunk-2"] {
        let name = if victim == "leader" { cluster.leader() } else { victim.to_string() };
        hung.push((name.clone(), Instant::now()));
        assert!(cluster.signal_if_running(&name, Signal::SIGSTOP));
        progress(&load, &format!("operations while {name} hangs"));
        assert!(cluster.signal_if_running(&name, Signal::SIGCONT));
        progress(&load, &format!("operations after {name} woke"));
    }
    let ledgers = load.stop();
    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    let mut end = Instant::now();
    for (name, when) in hung.iter().rev() {
        let stall = ledgers.iter().map(|ledger| ledger.slowest_between(*when, end)).max().unwrap();
        eprintln!("{name} hung: slowest operation {stall:?}");
        assert!(stall < STALL_LIMIT, "{name} hung and stalled a writer for {stall:?}");
        end = *when;
    }
    let fresh = cluster.mount("fresh");
    for ledger in &ledgers {
        ledger.check(&fresh).unwrap();
    }
}

#[test]
fn a_read_does_not_wait_for_a_chunkserver_that_hangs() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let content = Content::new(18, 1, 1);
    content.write_file(&mnt.join("file"), 20 << 20).unwrap();
    let fresh = cluster.mount("fresh");
    assert!(cluster.signal_if_running("chunk-2", Signal::SIGSTOP));
    let start = Instant::now();
    content.check_file(&fresh.join("file"), 20 << 20).unwrap();
    let took = start.elapsed();
    assert!(cluster.signal_if_running("chunk-2", Signal::SIGCONT));
    assert!(took < READ_LIMIT, "a cold read of 20 MiB took {took:?}");
}

/// Nobody waits for a server that hangs until its timeout, read after read: it is gone round after a few.
#[test]
fn many_cold_reads_do_not_wait_for_a_chunkserver_that_hangs() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let content = |file: u64| Content::new(19, file, 1);
    for file in 0..FILES {
        content(file).write_file(&mnt.join(format!("file-{file}")), 64 << 10).unwrap();
    }
    let fresh = cluster.mount("fresh");
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGSTOP));
    let start = Instant::now();
    let took = (0..FILES).map(|file| {
        let began = Instant::now();
        content(file).check_file(&fresh.join(format!("file-{file}")), 64 << 10).unwrap();
        began.elapsed()
    });
    let (slowest, all) = (took.max().unwrap(), start.elapsed());
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGCONT));
    eprintln!("{FILES} reads in {all:?}, the slowest in {slowest:?}");
    assert!(slowest < READ_LIMIT, "the slowest of {FILES} cold reads took {slowest:?}");
}

#[test]
fn a_leader_that_wakes_does_not_answer_with_what_is_old() {
    let cluster = Cluster::start();
    cluster.dfs(&["mkdir", "/old"]).must();
    let leader = cluster.leader();
    assert!(cluster.signal_if_running(&leader, Signal::SIGSTOP));
    // The others elect a leader and change something.
    wait_until("a change without the leader", PROGRESS_LIMIT, || cluster.dfs(&["mv", "/old", "/new"]).ok());
    assert!(cluster.signal_if_running(&leader, Signal::SIGCONT));
    // Asked alone and at once, it may refuse or send us on; it must not show the old name.
    let conf = std::fs::read_to_string(cluster.dir().join(format!("conf/{leader}.toml"))).unwrap();
    let addr = conf.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap().trim_matches('"').to_string();
    for _ in 0..5 {
        let ended = cluster.dfs(&["ls", "/", "--meta", &addr]);
        assert!(!ended.text().contains("old"), "{ended}");
    }
}
