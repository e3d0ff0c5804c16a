//! Every `dfs admin` command speaks JSON when it is asked to, one value a line; what destroys does nothing without `--yes`; and
//! what administrators did stands in the list of events.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use tests::cluster::{COMMAND_LIMIT, Cluster};
use tests::command::run;
use tests::content::Content;
use tests::wait::wait_until;

/// The cluster is well again within this.
const WELL_LIMIT: Duration = Duration::from_secs(120);

/// What looks, and what changes something that can be changed back, in an order that makes sense.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["fsck"],
    &["server", "list"],
    &["layout", "show"],
    &["keep"],
    &["settings", "get"],
    &["settings", "get", "grace_s"],
    &["settings", "set", "grace_s=1"], // what moves is gone from where it was soon
    &["root-squash", "show"],
    &["meta", "list"],
    &["gc", "pause"],
    &["gc", "resume"],
    &["gc", "run"],
    &["scrub", "pause"],
    &["scrub", "resume"],
    &["scrub", "run"],
    &["replicas", "3", "/dir", "-r"],
    &["chunk-size", "4m", "/dir"],
    &["server", "maintenance", "on", "2", "--for", "1h"],
    &["server", "maintenance", "off", "2"],
    &["server", "weight", "2", "80", "--plan"],
    &["server", "weight", "2", "90", "--max-mbps", "100", "--wait"],
    &["server", "drain", "4", "--plan"],
    &["server", "drain", "4", "--max-mbps", "1"], // so slow that it can be paused
    &["rebalance", "plan"],
    &["rebalance", "plan", "--weight", "3=20"],
    &["rebalance", "pause"],
    &["rebalance", "resume"],
    &["rebalance", "limit", "2"],
    &["rebalance", "status"],
    &["rebalance", "cancel"],
    &["server", "weight", "4", "100"],
    &["server", "add", "4", "--wait"],
    &["rebalance", "start", "--wait"],
    &["root-squash", "on", "--allow", "127.0.0.1"],
    &["root-squash", "off"],
    &["meta", "transfer-leader", "2"],
];

/// The values that a command says.
#[track_caller]
fn said(cluster: &Cluster, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = [&["admin"], words, &["--json"]].concat();
    let ended = cluster.dfs(&words).must();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{words:?}: {error} in {line}"));
    let values: Vec<Value> = ended.text().lines().map(parse).collect();
    assert!(!values.is_empty(), "{words:?} says nothing");
    values
}

fn wait_well(cluster: &Cluster) {
    wait_until("the cluster to be well", WELL_LIMIT, || cluster.status()["health"] == "ok");
}

/// Without `--yes` nothing happens.
fn nothing_is_destroyed_by_accident(cluster: &Cluster) {
    let before = cluster.status();
    for words in [
        &["server", "remove", "1"][..],
        &["server", "decommission", "1"],
        &["meta", "remove", "3"],
        &["meta", "restore", "/nowhere"],
        &["settings", "set", "undelete_window_s=0"],
        &["gc", "resume", "--unchecked"],
    ] {
        let words: Vec<&str> = [&["admin"], words].concat();
        cluster.dfs(&words).must_fail_cleanly();
    }
    cluster.dfs(&["trash", "empty"]).must_fail_cleanly();
    let after = cluster.status();
    for what in ["inodes", "chunks", "logical_bytes"] {
        assert!(before[what].is_u64() && before[what] == after[what], "{what}");
    }
    assert!(cluster.dfs(&["trash", "ls"]).must().text().contains("removed"));
    assert_eq!(after["chunkservers"].as_array().map(Vec::len), Some(4));
}

/// A chunk of `/dir/file` is there because of it, and of a file in the trash.
fn tells_why_a_chunk_is_there(cluster: &Cluster) {
    let chunk = said(cluster, &["layout", "explain", "/dir/file"])[0][0]["chunk"].as_str().unwrap().to_owned();
    said(cluster, &["layout", "explain", &chunk]);
    let explained = &said(cluster, &["gc", "--explain", &chunk])[0][0];
    assert_eq!(explained["chunk"].as_str(), Some(chunk.as_str()));
    let files: Vec<&str> = explained["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(explained["refs"][0]["extents"], 2, "the removed file had the same bytes: {explained}");
    assert!(files.contains(&"/dir/file") && files.iter().any(|f| f.contains("in the trash")), "{files:?}");
}

#[test]
fn every_command_speaks_json_and_nothing_is_destroyed_by_accident() {
    let cluster = Cluster::start_with(3, 4);
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("file");
    Content::new(1, 1, 1).write_file(&source, 40 << 20).unwrap();
    cluster.dfs(&["mkdir", "/dir"]).must();
    for name in ["/dir/file", "/dir/removed"] {
        cluster.dfs(&["put", source.to_str().unwrap(), name]).must();
    }
    cluster.dfs(&["rm", "/dir/removed"]).must();
    wait_well(&cluster);

    nothing_is_destroyed_by_accident(&cluster);
    tells_why_a_chunk_is_there(&cluster);
    said(&cluster, &["meta", "backup", local.path().join("backup").to_str().unwrap()]);
    for words in COMMANDS {
        said(&cluster, words);
    }
    wait_well(&cluster);
    wait_until("meta-2 to lead", WELL_LIMIT, || cluster.leader() == "meta-2");
    said(&cluster, &["server", "decommission", "4", "--yes"]);
    said(&cluster, &["server", "readmit", "4"]);
    said(&cluster, &["settings", "set", "undelete_window_s=0", "--yes"]);
    wait_well(&cluster);

    let events = said(&cluster, &["events"]);
    let all = events[0].to_string();
    for what in
        ["garbage collection run", "scrub run", "weight of chunkserver s4: 0", "backup of the metadata", "grace"]
    {
        assert!(all.contains(what), "{what} is not in {all}");
    }
    cluster.dfs(&["admin", "fsck", "--data"]).must();
}

/// `script` runs a command on a terminal of its own, and notes what comes there.
#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    let (source, notes) = (local.path().join("file"), local.path().join("notes"));
    Content::new(1, 2, 1).write_file(&source, 64 << 20).unwrap();
    let put = |to: &str| cluster.command(&["put", source.to_str().unwrap(), to]);
    let quiet = run(&mut put("/quiet"), COMMAND_LIMIT).must();
    assert!(!quiet.err.contains("left"), "{quiet}");
    let words: Vec<String> = std::iter::once(put("/shown").get_program())
        .chain(put("/shown").get_args())
        .map(|word| format!("{word:?}"))
        .collect();
    let mut shown = Command::new("script");
    shown.args(["-q", "-e", "-c", &words.join(" ")]).arg(&notes).env("DFS_CONFIG", cluster.dir().join("dfs.toml"));
    run(shown.env_remove("DFS_META"), COMMAND_LIMIT).must();
    let seen = String::from_utf8_lossy(&std::fs::read(&notes).unwrap()).into_owned();
    assert!(seen.contains("64.00 MiB") && seen.contains("/s ") && seen.contains(" left"), "{seen}");
}
