//! Commands of administrators that take long can be left with Ctrl-C: what they ordered goes on in the cluster, or ends
//! by itself, nothing is left half done, and they say which of the two. They end with 130, by the signal, or with 1 and
//! the word "interrupted".

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT, program};
use tests::content::Content;
use tests::data::Data;
use tests::json::number;
use tests::wait::{wait_for, wait_until};
use tokio::time::Instant;

/// A command that was interrupted ends within this.
const END_LIMIT: Duration = Duration::from_secs(10);
/// A check that nobody looks at ends after a minute at the latest; then another one can be made.
const FSCK_LIMIT: Duration = Duration::from_secs(60 + 60);
/// Plans are through, and what is not needed is gone, within this.
const PLAN_LIMIT: Duration = Duration::from_secs(90);
/// A check is at work when its command has run for so long: it waits for a server that stands still.
const AT_WORK: Duration = Duration::from_secs(2);
/// Files, a chunk each, and their length. A fourth server's share takes 22 s at 1 MB/s.
const FILES: u64 = 300;
const FILE_LEN: u64 = 100_000;
const DATA: Data = Data { seed: 56, files: FILES, len: FILE_LEN };
/// Copies of each chunk.
const COPIES: u64 = 3;

/// Starts `dfs admin ARGS` so that Ctrl-C has its usual effect, also where this test was started with it ignored.
fn begin(cluster: &Cluster, args: &[&str]) -> Child {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(program("dfs")).arg("admin").args(args);
    command.env("DFS_CONFIG", cluster.dir().join("dfs.toml")).env_remove("DFS_META");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether it does something of its own about Ctrl-C by now (the second bit of the mask).
fn catches(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & 2 != 0)
}

/// Interrupts it while it is at work, and returns all it has said. It ends as the file's head says.
fn ctrl_c(mut child: Child, what: &str) -> String {
    wait_until(&format!("{what} to listen"), PROCESS_LIMIT, || catches(&child));
    assert_eq!(child.try_wait().unwrap(), None, "{what} is at work");
    let own = Pid::from_raw(child.id().cast_signed());
    kill(own, Signal::SIGINT).unwrap();
    kill(own, Signal::SIGCONT).unwrap(); // in case it stands still
    let (status, _) = wait_for(&format!("{what} to end"), END_LIMIT, || child.try_wait().unwrap());
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    eprintln!("{what} ended with {status}: {said}");
    let by_signal = status.signal().map(Signal::try_from) == Some(Ok(Signal::SIGINT));
    let as_failure = status.code() == Some(1) && said.contains("interrupted");
    assert!(by_signal || status.code() == Some(130) || as_failure, "{what} ended with {status}: {said}");
    said
}

/// Copies that are not needed go: every server has told so.
fn wait_settled(cluster: &Cluster, why: &str, ask: bool) {
    wait_until(why, PLAN_LIMIT, || {
        if ask {
            cluster.dfs(&["admin", "gc", "run"]).must();
        }
        let status = cluster.status();
        let held: u64 = cluster.server_list().iter().map(|server| number(server, "chunks")).sum();
        held == COPIES * number(&status, "chunks")
    });
}

/// Garbage is collected though nobody waits for it. One server stands still, so that it takes a while.
fn interrupt_gc(cluster: &Cluster, local: &Path) -> String {
    let source = local.join("gone");
    Content::new(56, FILES, 1).write_file(&source, 9 << 20).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/gone"]).must();
    wait_settled(cluster, "heartbeats to tell what is there", false);
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    cluster.dfs(&["rm", "/gone"]).must();
    // The orders that the other two servers have carried out.
    let still = cluster.server_id("chunk-1");
    let done = || -> Vec<u64> {
        let status = cluster.status();
        let reports = status["keep"]["servers"].as_array().unwrap();
        reports.iter().filter(|r| r["server"] != still).map(|r| number(r, "gc_done")).collect()
    };
    let before = done();
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGSTOP));
    let child = begin(cluster, &["gc", "run"]);
    wait_until("the other servers to be through", PROCESS_LIMIT, || {
        let now = done();
        now.len() == 2 && now.iter().zip(&before).all(|(now, before)| now > before)
    });
    let said = ctrl_c(child, "gc run");
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGCONT));
    wait_settled(cluster, "the last server to delete its copies, without another order", false);
    said
}

/// The check ends by itself, and another one can be made.
fn interrupt_fsck(cluster: &Cluster) -> String {
    assert!(cluster.signal_if_running("chunk-2", Signal::SIGSTOP));
    let child = begin(cluster, &["fsck", "--data"]);
    let began = Instant::now();
    wait_until("the check to be at work", PROCESS_LIMIT, || began.elapsed() > AT_WORK);
    let said = ctrl_c(child, "fsck");
    assert!(cluster.signal_if_running("chunk-2", Signal::SIGCONT));
    let took = wait_until("another check", FSCK_LIMIT, || cluster.dfs(&["admin", "fsck", "--data"]).ok());
    eprintln!("another check was clean {took:?} later");
    said
}

/// Waits until groups move, interrupts the command, and sees that they go on moving and no copy is missing.
fn interrupt_moves(cluster: &Cluster, child: Child, what: &str) -> String {
    wait_until(&format!("groups to move for {what}"), PROCESS_LIMIT, || number(&cluster.rebalance(), "moving") > 0);
    let said = ctrl_c(child, what);
    let status = cluster.rebalance();
    assert!(status["state"] == "running" && status["over"] == false, "{what} goes on: {status:#}");
    cluster.dfs(&["admin", "fsck"]).must();
    cluster.dfs(&["admin", "rebalance", "limit", "0"]); // refused if it is through already
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    cluster.dfs(&["admin", "fsck"]).must();
    said
}

#[test]
fn what_was_ordered_goes_on_and_nothing_is_left_half_done() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    DATA.put(&cluster, local.path());
    let gc = interrupt_gc(&cluster, local.path());
    let fsck = interrupt_fsck(&cluster);

    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    cluster.dev("up", &["--chunkservers", "4"]).must();
    wait_until("the new server to be known", PROCESS_LIMIT, || {
        let all = cluster.server_list();
        all.len() == 4 && all.iter().all(|server| server["up"] == true && number(server, "free") > 0)
    });
    let start = begin(&cluster, &["rebalance", "start", "--max-mbps", "1", "--wait"]);
    let start = interrupt_moves(&cluster, start, "rebalance start");
    let planned = cluster.json(&["admin", "rebalance", "plan", "--json"]);
    assert_eq!(number(&planned, "groups"), 0, "every server has its share: {planned:#}");
    wait_settled(&cluster, "old copies to be dropped", true);

    let four = cluster.server_id("chunk-4");
    let server = four.to_string();
    let drain = begin(&cluster, &["server", "drain", &server, "--max-mbps", "1", "--wait"]);
    wait_until("groups to move", PROCESS_LIMIT, || number(&cluster.rebalance(), "moving") > 0);
    let drain = ctrl_c(drain, "server drain");
    let leaves = begin(&cluster, &["server", "decommission", &server, "--yes"]); // it goes on with that
    let leaves = interrupt_moves(&cluster, leaves, "server decommission");
    wait_until("the server that is drained to be empty", PLAN_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let all = cluster.server_list();
        let its = all.iter().find(|server| server["server"] == four).unwrap();
        number(its, "chunks") == 0 && number(its, "places") == 0
    });
    cluster.dfs(&["admin", "server", "drain", &server, "--wait"]).must(); // there is nothing left to wait for
    cluster.dfs(&["admin", "server", "decommission", &server, "--yes"]).must();
    assert!(cluster.server_list().iter().all(|server| server["server"] != four), "it is forgotten");
    wait_until("the cluster to be well", PLAN_LIMIT, || cluster.status()["health"] == "ok");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check(&cluster, local.path());

    // Who leaves is told what goes on without him.
    let tells = |said: &str, any: &[&str]| any.iter().any(|word| said.contains(word));
    let moves = ["rebalance status"];
    let alone = ["goes on", "go on", "by itself", "by themselves", "in the background"];
    let told = [
        ("gc run", tells(&gc, &alone)),
        ("fsck", tells(&fsck, &alone)),
        ("rebalance start", tells(&start, &moves)),
        ("server drain", tells(&drain, &moves)),
        ("server decommission", tells(&leaves, &moves)),
    ];
    let quiet: Vec<&str> = told.into_iter().filter(|(_, told)| !told).map(|(what, _)| what).collect();
    assert!(quiet.is_empty(), "these were interrupted without a word on what goes on: {quiet:?}");
}

/// What is in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits without a pause: what is waited for lasts milliseconds.
fn spin_until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PROCESS_LIMIT, "{what}");
    }
}

/// What is broken off leaves no backup, and no metaserver that is anything but empty; then both can be done.
#[test]
fn a_backup_and_a_restore_that_are_interrupted_leave_nothing() {
    const METASERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];
    let (cluster, local) = (Cluster::start_with(3, 3), tempfile::tempdir().unwrap());
    DATA.put(&cluster, local.path());
    let backups = local.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let to = backups.join("backup");
    let stop = |child: &Child| kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGSTOP).unwrap();

    let said = loop {
        let mut backup = begin(&cluster, &["meta", "backup", to.to_str().unwrap()]);
        spin_until("the backup to begin", || !names(&backups).is_empty());
        stop(&backup);
        if names(&backups)[0].contains("partial") {
            break ctrl_c(backup, "meta backup");
        }
        // It was through before this process got to run.
        kill(Pid::from_raw(backup.id().cast_signed()), Signal::SIGCONT).unwrap();
        assert!(backup.wait().unwrap().success());
        std::fs::remove_dir_all(&to).unwrap();
    };
    assert!(said.contains("interrupted") && names(&backups).is_empty(), "{said}, {:?}", names(&backups));
    cluster.dfs(&["admin", "meta", "backup", to.to_str().unwrap()]).must();
    assert_eq!(names(&backups), ["backup"]);

    cluster.kill(&METASERVERS);
    for name in METASERVERS {
        std::fs::remove_dir_all(cluster.data(name)).unwrap();
        cluster.start_server(name);
    }
    let args = ["meta", "restore", to.to_str().unwrap(), "--yes"];
    let mut restore = begin(&cluster, &args);
    spin_until("the restore to begin", || cluster.data("meta-1").join("restore").exists());
    stop(&restore);
    assert!(cluster.signal_if_running("meta-3", Signal::SIGSTOP)); // it does not answer any more
    kill(Pid::from_raw(restore.id().cast_signed()), Signal::SIGCONT).unwrap();
    wait_until("the others to have it", PROCESS_LIMIT, || cluster.data("meta-2").join("restore").exists());
    assert_eq!(restore.try_wait().unwrap(), None, "it waits for the third one");
    let said = ctrl_c(restore, "meta restore");
    assert!(said.contains("still empty"), "{said}");
    assert!(cluster.signal_if_running("meta-3", Signal::SIGCONT));
    cluster.dfs(&["ls", "/"]).must_fail_cleanly();
    cluster.dfs(&[&["admin"][..], &args].concat()).must();
    wait_until("the chunkservers to find the new life", PROCESS_LIMIT, || {
        cluster.server_list().iter().all(|server| server["up"] == true)
    });
    DATA.check(&cluster, local.path());
    cluster.dfs(&["admin", "fsck", "--data"]).must();
}
