//! A directory says how many copies the chunks of new files in it have, and in what chunks they are cut; a tree can be told
//! to have more or fewer. Copies are counted on the servers. What another file wants more of keeps them.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::wait::wait_until;

/// Every server compares what it has with what it should have, copies or drops.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);
/// Three chunks.
const LEN: u64 = 9 << 20;
const CHUNKS: u64 = 3;

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

/// Waits until the servers hold that many copies, all in all, and checks that none is missing.
fn wait_copies(cluster: &Cluster, copies: u64) {
    let held = |status: &Value| {
        let servers = status["chunkservers"].as_array().unwrap();
        servers.iter().map(|server| number(server, "chunks")).sum::<u64>()
    };
    let mut last = 0;
    wait_until(&format!("{copies} copies"), SETTLE_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let now = held(&cluster.status());
        if now != last {
            eprintln!("{now} copies of {copies}");
            last = now;
        }
        now == copies
    });
    cluster.dfs(&["admin", "fsck", "--data"]).must();
}

#[test]
fn a_tree_gets_more_copies_and_fewer_and_the_servers_hold_exactly_those() {
    let (cluster, local) = (Cluster::start_with(1, 9), tempfile::tempdir().unwrap());
    let path = |text: &str| local.path().join(text);
    let content = |file: u64| Content::new(14, file, 1);
    let put = |file: u64, to: &str| {
        content(file).write_file(&path("source"), LEN).unwrap();
        cluster.dfs(&["put", path("source").to_str().unwrap(), to]).must();
    };
    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    cluster.dfs(&["mkdir", "-p", "/tree/sub"]).must();
    put(1, "/tree/a");
    put(2, "/tree/sub/b");
    put(2, "/other"); // the same chunks as b
    wait_copies(&cluster, 3 * 2 * CHUNKS);

    for (replicas, own, shared) in [("4", 4, 4), ("9", 9, 9), ("1", 1, 3), ("6", 6, 6), ("2", 2, 3), ("3", 3, 3)] {
        cluster.dfs(&["admin", "replicas", replicas, "/tree", "--recursive"]).must();
        for file in ["/tree", "/tree/a", "/tree/sub", "/tree/sub/b"] {
            let said = cluster.dfs(&["stat", "--json", file]).must();
            let said: Value = serde_json::from_slice(&said.out).unwrap();
            let stat = if said.is_array() { &said[0] } else { &said };
            assert_eq!(stat["replicas"].to_string(), replicas, "{file}: {stat:#}");
        }
        wait_copies(&cluster, (own + shared) * CHUNKS);
        if own == 6 {
            // Also copies beyond the cluster's three follow when a server is emptied.
            cluster.dfs(&["admin", "server", "drain", "2", "--wait"]).must();
            wait_copies(&cluster, (own + shared) * CHUNKS);
            let servers = cluster.status()["chunkservers"].as_array().unwrap().clone();
            let drained = servers.iter().find(|server| server["server"] == 2).unwrap();
            assert_eq!(number(drained, "chunks"), 0, "{drained:#}");
            cluster.dfs(&["admin", "server", "weight", "2", "100"]).must();
        }
        for (file, from) in [(1, "/tree/a"), (2, "/tree/sub/b"), (2, "/other")] {
            let _ = std::fs::remove_file(path("back"));
            cluster.dfs(&["get", from, path("back").to_str().unwrap()]).must();
            content(file).check_file(&path("back"), LEN).unwrap();
        }
    }

    // What is new in a tree goes by what its directory says.
    cluster.dfs(&["admin", "replicas", "5", "/tree/sub"]).must();
    cluster.dfs(&["admin", "chunk-size", "1m", "/tree/sub"]).must();
    cluster.dfs(&["mkdir", "/tree/sub/deep"]).must();
    put(3, "/tree/sub/deep/c");
    wait_copies(&cluster, 3 * 2 * CHUNKS + 5 * (LEN >> 20));
    for wrong in ["0", "10"] {
        assert!(!cluster.dfs(&["admin", "replicas", wrong, "/tree"]).ok());
    }
    cluster.dfs(&["admin", "chunk-size", "3m", "/tree"]).must_fail_cleanly();
}

/// More extents than are counted anew in one command: the metaservers go on with it by themselves, also when the number
/// is changed again at once.
#[test]
fn a_file_of_very_many_extents_gets_more_copies_and_fewer() {
    const EXTENTS: usize = 6000;
    let (cluster, local) = (Cluster::start_with(3, 5), tempfile::tempdir().unwrap());
    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    cluster.dfs(&["mkdir", "/many"]).must();
    cluster.dfs(&["admin", "chunk-size", "64k", "/many"]).must();
    let one = Content::new(16, 1, 1).bytes(0, 64 << 10); // all its chunks are the same one
    let source = local.path().join("source");
    std::fs::write(&source, one.repeat(EXTENTS)).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/many/file"]).must();
    wait_copies(&cluster, 3);
    for (replicas, copies) in [(vec!["5"], 5), (vec!["4", "2"], 2)] {
        for count in replicas {
            cluster.dfs(&["admin", "replicas", count, "/many/file"]).must();
        }
        wait_copies(&cluster, copies);
    }
    let back = local.path().join("back");
    cluster.dfs(&["get", "/many/file", back.to_str().unwrap()]).must();
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&source).unwrap());
}

#[test]
fn a_file_that_is_written_while_it_is_told_to_have_more_copies_is_saved() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 4);
    let mnt = cluster.mount("m");
    let content = Content::new(15, 1, 1);
    let mut file = std::fs::File::create(mnt.join("file")).unwrap();
    use std::io::Write;
    let bytes = content.bytes(0, usize::try_from(LEN).unwrap());
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    file.write_all(first).unwrap();
    file.sync_all().unwrap();
    cluster.dfs(&["admin", "replicas", "4", "/file"]).must();
    file.write_all(rest).unwrap();
    file.sync_all().unwrap();
    drop(file);
    wait_copies(&cluster, 4 * number(&cluster.status(), "chunks"));
    cluster.kill_mount("m");
    let fresh = cluster.mount("fresh");
    content.check_file(&fresh.join("file"), LEN).unwrap();
}
