//! What an administrator orders happens, is noted, and loses nothing: a server is drained and removed, another metaserver
//! leads. Where data belongs can be asked.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use tests::cluster::{COMMAND_LIMIT, Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::wait::wait_until;

/// Six chunks.
const LEN: u64 = 24 << 20;

/// The servers that should hold the chunks of the file.
fn homes(cluster: &Cluster) -> Vec<Vec<u64>> {
    let parts = cluster.json(&["admin", "layout", "explain", "/file", "--json"]);
    let servers = |part: &Value| part["servers"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    parts.as_array().unwrap().iter().map(servers).collect()
}

#[test]
fn a_server_is_drained_and_removed_and_the_leader_changes() {
    let cluster = Cluster::start_with(3, 4);
    let (content, local) = (Content::new(10, 1, 1), tempfile::tempdir().unwrap());
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    content.write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/file"]).must();
    wait_until("all servers to have said that they miss nothing", PROCESS_LIMIT, || cluster.status()["health"] == "ok");
    let before = homes(&cluster);
    assert!(before.len() == 6 && before.iter().all(|servers| servers.len() == 3), "{before:?}");
    let victim = before[0][0];

    let list = cluster.json(&["admin", "server", "list", "--json"]);
    let places = |row: &Value| row["places"].as_u64().unwrap();
    let total: u64 = list.as_array().unwrap().iter().map(places).sum();
    for row in list.as_array().unwrap() {
        assert!(places(row).abs_diff(total / 4) <= total / 80, "within 5 % of a quarter: {list:#}");
    }
    let victim_text = victim.to_string();
    let refused = cluster.dfs(&["admin", "server", "remove", &victim_text, "--yes"]).must_fail_cleanly();
    assert!(refused.err.contains("drain"), "{refused}");
    cluster.dfs(&["admin", "server", "remove", &victim_text]).must_fail_cleanly();

    cluster.dfs(&["admin", "server", "drain", &victim_text]).must();
    // What is not a server's any more goes with a pass over all it has, which comes now and then: have one now.
    wait_until("nothing to be on it by the layout", PROCESS_LIMIT, || {
        homes(&cluster).iter().all(|servers| !servers.contains(&victim))
    });
    wait_until("the server to be empty", COMMAND_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let list = cluster.json(&["admin", "server", "list", "--json"]);
        list.as_array().unwrap().iter().any(|row| row["server"] == victim && row["chunks"] == 0)
    });
    cluster.dfs(&["admin", "server", "drain", &victim_text, "--wait"]).must();
    let after = homes(&cluster);
    assert!(after.iter().all(|servers| servers.len() == 3 && !servers.contains(&victim)), "{after:?}");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    cluster.dfs(&["admin", "server", "remove", &victim_text, "--yes"]).must();
    let list = cluster.json(&["admin", "server", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 3, "{list:#}");
    cluster.dfs(&["get", "/file", back.to_str().unwrap()]).must();
    content.check_file(&back, LEN).unwrap();

    cluster.dfs(&["admin", "server", "readmit", &victim_text]).must();
    wait_until("the server that was removed to be back", PROCESS_LIMIT, || {
        let list = cluster.json(&["admin", "server", "list", "--json"]);
        list.as_array().unwrap().iter().any(|row| row["server"] == victim && row["up"] == true)
    });

    let leader = cluster.status()["leader"].as_u64().unwrap();
    let other = (leader % 3 + 1).to_string();
    cluster.dfs(&["admin", "meta", "transfer-leader", &other]).must();
    assert_eq!(cluster.leader(), format!("meta-{other}"));
    cluster.dfs(&["admin", "meta", "transfer-leader", "9"]).must_fail_cleanly();

    let events = cluster.json(&["admin", "events", "--json"]);
    let (own, ordered): (Vec<&Value>, Vec<&Value>) =
        events.as_array().unwrap().iter().partition(|event| event["by"] == "the cluster");
    let follows = |event: &&Value| event["what"].as_str().unwrap().starts_with("data follows the weights");
    assert!(own.iter().any(follows), "{events:#}");
    let told = ordered.iter().map(|event| event["what"].as_str().unwrap());
    let (runs, told): (Vec<&str>, Vec<&str>) = told.partition(|what| *what == "garbage collection run");
    assert!(!runs.is_empty(), "as often as it took: {events:#}");
    let wanted = [
        format!("weight of chunkserver s{victim}: 0"),
        format!("weight of chunkserver s{victim}: 0"),
        format!("chunkserver s{victim} removed"),
        format!("chunkserver s{victim} may come back"),
        format!("metaserver m{other} shall lead"),
    ];
    assert_eq!(told, wanted, "what was refused is not noted");
    assert!(ordered.iter().all(|event| event["by"].as_str().unwrap().contains('@')), "{events:#}");
}
