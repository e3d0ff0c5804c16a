//! `dfs mount status` tells what a mount holds and waits for, from a socket beside it: also while no metaserver runs, when
//! whoever touches the mount has to wait; and it says so when the process is stopped or gone.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::wait::{wait_for, wait_until};

/// A status comes from memory: this is for a busy machine.
const STATUS_LIMIT: Duration = Duration::from_secs(3);
/// Above the deadline of an operation, which is 8 s here.
const FAIL_LIMIT: Duration = Duration::from_secs(30);

fn status(cluster: &Cluster, mnt: &Path) -> Value {
    let mut command = cluster.command(&["mount", "status", "--json"]);
    let ended = tests::command::run(command.arg(mnt), STATUS_LIMIT).must();
    serde_json::from_slice(&ended.out).unwrap()
}

#[test]
fn a_mount_tells_what_it_waits_for_while_no_metaserver_runs() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    cluster.configure("dfs.toml", "op_timeout_s = 8");
    let mnt = cluster.mount("m");
    let mut file = File::create(mnt.join("file")).unwrap();
    let calm = status(&cluster, &mnt);
    assert_eq!((&calm["metaservers_away"], &calm["open_files"]), (&Value::from(false), &Value::from(1)), "{calm}");
    assert!(calm["leases_good_ms"].as_u64().unwrap() > 0 && calm["slow"].as_array().unwrap().is_empty(), "{calm}");
    assert_eq!(calm["pid"], cluster.mount_pid("m"));
    assert!(!calm["session"].as_str().unwrap().is_empty());

    let servers: Vec<String> = cluster.servers().into_iter().filter(|name| name.starts_with("meta-")).collect();
    cluster.kill(&servers);
    file.write_all(&[7; 10_000]).unwrap(); // buffered
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| fs::symlink_metadata(mnt.join("other")).unwrap_err());
        let (waiting, _) = wait_for("a slow request to be named", PROCESS_LIMIT, || {
            let status = status(&cluster, &mnt);
            let slow = status["slow"].as_array().unwrap();
            slow.iter().any(|one| one["op"] == "lookup" && one["for_ms"].as_u64() > Some(500)).then_some(status.clone())
        });
        assert_eq!((&waiting["unsaved_bytes"], &waiting["unsaved_files"]), (&10_000.into(), &1.into()), "{waiting}");
        wait_until("the leases to run out", PROCESS_LIMIT, || status(&cluster, &mnt)["leases_good_ms"] == 0);
        wait_until("the request to fail", FAIL_LIMIT, || asking.is_finished());
        asking.join().unwrap();
    });
    // Its deadline has passed, and that is told too.
    let after = status(&cluster, &mnt);
    assert_eq!(after["metaservers_away"], true, "{after}");
    assert!(after["failed"].as_array().unwrap().iter().any(|one| one["op"] == "lookup"), "{after}");
    let mut command = cluster.command(&["mount", "status"]);
    let text = tests::command::run(command.arg(&mnt), STATUS_LIMIT).must().text().to_owned();
    assert!(text.contains("AWAY") && text.contains("lookup"), "{text}");

    cluster.up();
    wait_until("everything to be saved", PROCESS_LIMIT, || {
        let status = status(&cluster, &mnt);
        status["unsaved_bytes"] == 0 && status["leases_good_ms"].as_u64() > Some(0)
    });
    drop(file);
    cluster.unmount("m");
}

#[test]
fn a_mount_that_cannot_answer_is_told_apart() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let asked = |cluster: &Cluster| cluster.dfs(&["mount".as_ref(), "status".as_ref(), mnt.as_os_str()]);
    assert!(asked(&cluster).must().text().contains("requests"));
    assert!(cluster.signal_if_running("m", Signal::SIGSTOP));
    assert!(asked(&cluster).must_fail_cleanly().err.contains("does not answer"));
    assert!(cluster.signal_if_running("m", Signal::SIGCONT));
    asked(&cluster).must();
    cluster.unmount("m");
    assert!(asked(&cluster).must_fail_cleanly().err.contains("nothing is mounted here"));
}
