//! A server that holds what nobody else does cannot be removed, whether it runs or not. Who tries is told which chunks
//! of which files would be lost, as far as the metaservers know; and nothing has changed.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::command::Ended;
use tests::content::Content;
use tests::json::number;
use tests::wait::wait_until;

/// Everything is back within this.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// Three chunks.
const LEN: u64 = 9 << 20;

fn put(cluster: &Cluster, local: &Path, file: u64, to: &str) {
    let source = local.join("source");
    Content::new(53, file, 1).write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), to]).must();
}

fn check(cluster: &Cluster, local: &Path, file: u64, from: &str) {
    let back = local.join("back");
    let _not_there = std::fs::remove_file(&back);
    cluster.dfs(&["get", from, back.to_str().unwrap()]).must();
    Content::new(53, file, 1).check_file(&back, LEN).unwrap();
}

/// The id that the cluster gave a chunkserver last.
fn id(cluster: &Cluster, name: &str) -> u64 {
    let log = cluster.log(name);
    let (_, rest) = log.rsplit_once("registered server=s").unwrap_or_else(|| panic!("{name} has not registered"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn remove(cluster: &Cluster, server: u64) -> Ended {
    cluster.dfs(&["admin", "server", "remove", &server.to_string(), "--yes"])
}

/// The servers that the cluster knows, and those of them that are up.
fn servers(cluster: &Cluster) -> (Vec<u64>, Vec<u64>) {
    let list = cluster.json(&["admin", "server", "list", "--json"]);
    let all = list.as_array().unwrap().iter();
    let up = all.clone().filter(|one| one["up"] == true).map(|one| number(one, "server")).collect();
    (all.map(|one| number(one, "server")).collect(), up)
}

fn wait_well(cluster: &Cluster) {
    wait_until("the cluster to be well", HEAL_LIMIT, || cluster.status()["health"] == "ok");
}

#[test]
fn who_would_remove_the_last_copies_is_told_of_which_files_they_are() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    cluster.dfs(&["mkdir", "/d"]).must();
    put(&cluster, local.path(), 1, "/d/everywhere");
    cluster.dfs(&["admin", "settings", "set", "min_replicas=1"]).must();
    cluster.kill(&["chunk-2", "chunk-3"]);
    put(&cluster, local.path(), 2, "/d/only");
    let parts = cluster.json(&["admin", "layout", "explain", "/d/only", "--json"]);
    let chunks: Vec<&str> = parts.as_array().unwrap().iter().map(|part| part["chunk"].as_str().unwrap()).collect();
    assert_eq!((chunks.len(), &cluster.status()["degraded"]), (3, &json!(3)), "they have one copy each");

    let one = id(&cluster, "chunk-1");
    let is_refused = |how: &str| {
        let refused = remove(&cluster, one).must_fail_cleanly();
        assert!(chunks.iter().all(|chunk| refused.err.contains(chunk)), "{how}: {refused}");
        assert!(refused.err.contains("/d/only") && !refused.err.contains("/d/everywhere"), "{how}: {refused}");
        let server = one.to_string();
        let refused = cluster.dfs(&["admin", "server", "remove", &server, "--yes", "--json"]).must_fail_cleanly();
        assert!(refused.err.contains("/d/only"), "{how}: {refused}");
        assert_eq!(servers(&cluster).0.len(), 3, "{how}: nobody is forgotten");
    };
    is_refused("it runs");
    cluster.kill(&["chunk-1"]);
    is_refused("none runs");
    ["chunk-2", "chunk-3"].iter().for_each(|name| cluster.start_server(name));
    wait_until("the two others", PROCESS_LIMIT, || {
        let up = servers(&cluster).1;
        up.contains(&id(&cluster, "chunk-2")) && up.contains(&id(&cluster, "chunk-3"))
    });
    is_refused("it is down");

    cluster.start_server("chunk-1");
    wait_well(&cluster);
    cluster.kill(&["chunk-1"]);
    check(&cluster, local.path(), 1, "/d/everywhere");
    check(&cluster, local.path(), 2, "/d/only"); // others have it by now
}

/// That its copies are the last ones nobody has noted: the others lost theirs with their disks.
#[test]
fn a_server_stays_whose_copies_are_the_last_because_other_disks_were_lost() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    cluster.configure("conf/meta-1.toml", "down_out_s = 12");
    cluster.kill(&["meta-1"]);
    cluster.up();
    put(&cluster, local.path(), 1, "/file");
    wait_well(&cluster);
    let [one, two, three] = ["chunk-1", "chunk-2", "chunk-3"].map(|name| id(&cluster, name));

    cluster.kill(&["chunk-1", "chunk-2", "chunk-3"]);
    for name in ["chunk-2", "chunk-3"] {
        std::fs::remove_dir_all(cluster.data(name)).unwrap();
        cluster.start_server(name); // as another one
    }
    wait_until("two new servers", PROCESS_LIMIT, || servers(&cluster).0.len() == 5);
    remove(&cluster, one).must_fail_cleanly();
    assert!(servers(&cluster).0.contains(&one));

    cluster.start_server("chunk-1");
    for lost in [two, three] {
        wait_until(&format!("s{lost} to be made good and forgotten"), HEAL_LIMIT, || remove(&cluster, lost).ok());
    }
    let refused = remove(&cluster, one).must_fail_cleanly();
    assert!(refused.err.contains("drain"), "{refused}");
    wait_well(&cluster);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    cluster.kill(&["chunk-1"]);
    check(&cluster, local.path(), 1, "/file");
}
