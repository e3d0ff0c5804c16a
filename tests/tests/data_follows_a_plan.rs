//! Data moves to where it belongs by a plan that says beforehand what it will do: servers join, are drained, or have their
//! shares changed, while clients write and servers are killed. No chunk has fewer copies than it should on the way.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::json::number;
use tests::load::Load;
use tests::wait::wait_until;
use tokio::time::Instant;

/// A plan is through within this.
const PLAN_LIMIT: Duration = Duration::from_secs(90);
/// Nothing changes for so long: several times what a chunk takes at the rate of these tests.
const STILL: Duration = Duration::from_secs(3);
/// Operations that each writer makes between two events.
const OPS_BETWEEN: u64 = 10;
/// Files of the data that moves, a chunk each, and their length.
const FILES: u64 = 300;
const FILE_LEN: u64 = 100_000;

fn plan(cluster: &Cluster) -> Value {
    cluster.json(&["admin", "rebalance", "plan", "--json"])
}

/// Stores the files.
fn put(cluster: &Cluster, local: &Path) {
    let source = local.join("data");
    std::fs::create_dir(&source).unwrap();
    for file in 0..FILES {
        Content::new(31, file, 1).write_file(&source.join(format!("f{file}")), FILE_LEN).unwrap();
    }
    cluster.dfs(&["put", "-r", source.to_str().unwrap(), "/data"]).must();
}

/// Reads the files, and compares every byte.
fn check(cluster: &Cluster, local: &Path) {
    let back = local.join("back");
    let _ = std::fs::remove_dir_all(&back);
    cluster.dfs(&["get", "-r", "/data", back.to_str().unwrap()]).must();
    for file in 0..FILES {
        Content::new(31, file, 1).check_file(&back.join(format!("f{file}")), FILE_LEN).unwrap();
    }
}

/// Waits until every server's heartbeat tells of what it has: three copies of everything in all, or more while it moves.
fn wait_told(cluster: &Cluster) {
    wait_until("heartbeats to tell what is there", PROCESS_LIMIT, || {
        let status = cluster.status();
        cluster.server_list().iter().map(|server| number(server, "chunks")).sum::<u64>()
            == 3 * number(&status, "chunks")
    });
}

/// Starts servers until there are so many, and waits until they are known.
fn grow(cluster: &Cluster, count: usize) {
    cluster.dev("up", &["--chunkservers", &count.to_string()]).must();
    wait_until("new servers to be known", PROCESS_LIMIT, || {
        let all = cluster.server_list();
        all.len() == count && all.iter().all(|server| server["up"] == true && number(server, "free") > 0)
    });
}

/// No chunk has fewer copies than it should, wherever they are.
fn all_copies_are_there(cluster: &Cluster) {
    cluster.dfs(&["admin", "fsck"]).must();
}

/// Copies that are not needed where they are go: every server has told so.
fn settle(cluster: &Cluster) {
    wait_until("copies that moved to be dropped", PLAN_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let status = cluster.status();
        cluster.server_list().iter().map(|server| number(server, "chunks")).sum::<u64>()
            == 3 * number(&status, "chunks")
    });
}

#[test]
fn what_a_plan_says_is_what_happens_and_no_copy_is_missing_on_the_way() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    put(&cluster, local.path());
    wait_told(&cluster);
    assert_eq!(number(&plan(&cluster), "groups"), 0, "every server has its share");
    grow(&cluster, 5);
    assert!(
        cluster.server_list()[3..].iter().all(|server| server["places"] == 0),
        "nothing moves unless somebody says so"
    );

    let planned = plan(&cluster);
    assert!(planned["exact"] == true && number(&planned, "bytes") > 0, "{planned:#}");
    let all = planned["servers"].as_array().unwrap();
    let sum = |key: &str| all.iter().map(|server| number(server, key)).sum::<u64>();
    assert_eq!((sum("receives"), sum("sends")), (number(&planned, "bytes"), number(&planned, "bytes")));
    for server in all {
        let (places, fair) = (number(server, "places_after"), sum("places") / 5);
        assert!(places.abs_diff(fair) * 20 <= fair, "within 5 % of a fifth of the places: {planned:#}");
    }

    // 1 MB a second for each of two servers: it takes several seconds. Old copies go as soon as they may.
    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    let started = cluster.json(&["admin", "rebalance", "start", "--max-mbps", "1", "--json"]);
    let busiest = all.iter().map(|server| number(server, "receives").max(number(server, "sends"))).max().unwrap();
    let seconds = busiest.div_ceil(1_000_000);
    assert_eq!(number(&started, "seconds"), seconds, "at that rate");
    let mut as_planned = started.clone();
    as_planned["seconds"] = planned["seconds"].clone();
    assert_eq!(as_planned, planned, "what is shown before is what is begun");
    wait_until("a third to be copied", PROCESS_LIMIT, || {
        all_copies_are_there(&cluster);
        let status = cluster.rebalance();
        3 * number(&status, "bytes_done") > number(&status, "bytes")
    });
    cluster.dfs(&["admin", "rebalance", "pause"]).must();
    let mut last = (Vec::new(), Instant::now());
    wait_until("it to stand still", PROCESS_LIMIT, || {
        let held: Vec<Value> = cluster.server_list().iter().map(|server| server["chunk_bytes"].clone()).collect();
        if held != last.0 {
            last = (held, Instant::now());
        }
        last.1.elapsed() > STILL
    });
    let status = cluster.rebalance();
    assert!(status["state"] == "paused" && number(&status, "moving") > 0 && status["over"] == false, "{status:#}");
    assert!(number(&status, "bytes_done") < number(&status, "bytes"), "{status:#}");
    all_copies_are_there(&cluster);
    check(&cluster, local.path());
    cluster.dfs(&["admin", "rebalance", "resume"]).must();
    cluster.dfs(&["admin", "rebalance", "limit", "0"]).must();
    wait_until("all to arrive, and no copy to be missing at any look", PLAN_LIMIT, || {
        all_copies_are_there(&cluster);
        cluster.rebalance()["over"] == true
    });
    settle(&cluster);

    wait_told(&cluster);
    for (server, was_planned) in cluster.server_list().iter().zip(all) {
        assert_eq!(server["chunk_bytes"], was_planned["used_after"], "{server:#}");
        assert_eq!(server["places"], was_planned["places_after"], "{server:#}");
    }
    assert_eq!(number(&plan(&cluster), "groups"), 0);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    check(&cluster, local.path());
}

#[test]
fn a_cluster_grows_under_load_while_the_leader_a_source_and_a_target_are_killed() {
    tests::skip_if!(no_mount);
    let (mut cluster, local) = (Cluster::start(), tempfile::tempdir().unwrap());
    put(&cluster, local.path());
    let places: Vec<(PathBuf, String)> =
        (0..2).map(|writer| (cluster.mount(&format!("m{writer}")), format!("writer-{writer}"))).collect();
    let load = Load::start(8, &places);
    let progress = |why: &str| {
        let goal = load.acked_by_each() + OPS_BETWEEN;
        wait_until(why, PLAN_LIMIT, || load.acked_by_each() >= goal);
    };
    progress("the first operations");
    grow(&cluster, 5);
    cluster.dfs(&["admin", "settings", "set", "grace_s=2"]).must();
    cluster.dfs(&["admin", "rebalance", "start", "--max-mbps", "2"]).must();
    wait_until("groups to move", PROCESS_LIMIT, || number(&cluster.rebalance(), "moving") > 0);

    for victim in ["leader", "chunk-1", "chunk-4"] {
        let name = if victim == "leader" { cluster.leader() } else { victim.to_owned() };
        cluster.kill(&[&name]);
        progress(&format!("operations after {victim} {name} was killed"));
        cluster.start_server(&name);
        progress(&format!("operations after {victim} {name} was started again"));
        let status = cluster.rebalance();
        eprintln!("after {name}: {} of {} groups, {}", status["groups_done"], status["groups"], status["state"]);
    }
    cluster.dfs(&["admin", "rebalance", "limit", "0"]); // refused if it is through already
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    progress("operations after all has arrived");
    let ledgers = load.stop();
    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);

    let status = cluster.rebalance();
    assert!(status["state"] == "done" && status["groups_done"] == status["groups"], "{status:#}");
    assert_eq!(number(&plan(&cluster), "groups"), 0, "every server has its share");
    let all = cluster.server_list();
    for server in &all {
        let (places, fair) = (number(server, "places"), 3 * 256 / 5);
        assert!(places.abs_diff(fair) * 20 <= fair, "within 5 % of a fifth of the places: {all:#?}");
    }
    wait_until("what was written without a server to have all copies", PLAN_LIMIT, || {
        cluster.dfs(&["admin", "fsck"]).ok()
    });
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(&places[0].0).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    check(&cluster, local.path());
    cluster.dfs(&["admin", "fsck", "--data"]).must();
}

#[test]
fn a_server_that_is_drained_gives_all_it_has_and_one_that_is_announced_away_keeps_its_share() {
    let (cluster, local) = (Cluster::start_with(1, 4), tempfile::tempdir().unwrap());
    cluster.configure("conf/meta-1.toml", "down_out_s = 12");
    cluster.kill(&["meta-1"]);
    cluster.up();
    put(&cluster, local.path());
    wait_told(&cluster);

    // Announced: down for longer than it takes to be taken out, and nothing moves.
    let id = |name: &str| {
        let log = cluster.log(name);
        log.rsplit_once("registered server=s").unwrap().1.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let number_four = id("chunk-4");
    let four = number_four.to_string();
    cluster.dfs(&["admin", "server", "maintenance", "on", &four, "--for", "1h"]).must();
    let layout = cluster.status()["keep"]["layout"].clone();
    cluster.kill(&["chunk-4"]);
    let silent = || cluster.server_list().into_iter().find(|one| one["server"] == number_four).unwrap();
    wait_until("it to be away for long", PLAN_LIMIT, || {
        silent()["silent_ms"].as_u64().is_some_and(|silent| silent > 15_000)
    });
    let status = cluster.status();
    assert_eq!((&status["keep"]["out"], &status["keep"]["layout"]), (&serde_json::json!([]), &layout));
    assert!(silent()["away_until"].as_i64().is_some());
    // Its time is over: now others take over its share.
    cluster.dfs(&["admin", "server", "maintenance", "off", &four]).must();
    wait_until("it to be taken out", PROCESS_LIMIT, || cluster.status()["keep"]["out"][0] == number_four);
    cluster.start_server("chunk-4");
    wait_until("it to be in again", PROCESS_LIMIT, || cluster.status()["keep"]["out"] == serde_json::json!([]));
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    settle(&cluster);

    // Drained: what is shown before is what happens.
    wait_told(&cluster);
    let planned = cluster.json(&["admin", "server", "drain", &four, "--plan", "--json"]);
    cluster.dfs(&["admin", "server", "decommission", &four]).must_fail_cleanly();
    cluster.dfs(&["admin", "server", "drain", &four]).must();
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    all_copies_are_there(&cluster);
    settle(&cluster);
    wait_told(&cluster);
    for (server, was_planned) in cluster.server_list().iter().zip(planned["servers"].as_array().unwrap()) {
        assert_eq!(server["chunk_bytes"], was_planned["used_after"], "{server:#}");
    }
    let other = id("chunk-1").to_string();
    let refused = cluster.dfs(&["admin", "server", "drain", &other]).must_fail_cleanly();
    assert!(refused.err.contains("add one first"), "three copies need three servers: {refused}");
    cluster.dfs(&["admin", "server", "decommission", &four, "--yes"]).must();
    assert_eq!(cluster.server_list().len(), 3);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    check(&cluster, local.path());
}
