//! A rebalance that is cancelled half-way ends: what was under way arrives, the rest stays where it is, every chunk has
//! its copies all the time and no more of them afterwards. Then the rest can be planned and moved.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::{Value, json};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::data::Data;
use tests::json::number;
use tests::wait::wait_until;

/// A plan is through, or has come to its end, and old copies are gone, within this.
const PLAN_LIMIT: Duration = Duration::from_secs(90);
/// Files, a chunk each, and their length.
const FILES: u64 = 300;
const FILE_LEN: u64 = 100_000;
const DATA: Data = Data { seed: 55, files: FILES, len: FILE_LEN };
/// Copies of each chunk.
const COPIES: u64 = 3;

fn plan(cluster: &Cluster) -> Value {
    cluster.json(&["admin", "rebalance", "plan", "--json"])
}

/// No chunk has fewer copies than it should, wherever they are.
fn all_copies_are_there(cluster: &Cluster) {
    cluster.dfs(&["admin", "fsck"]).must();
}

/// Every chunk has as many copies as it should and no more, and the cluster says that it is well.
fn settle(cluster: &Cluster) {
    wait_until("just as many copies as there should be", PLAN_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let status = cluster.status();
        let held: u64 = cluster.server_list().iter().map(|server| number(server, "chunks")).sum();
        held == COPIES * number(&status, "chunks") && number(&status["keep"], "extra") == 0 && status["health"] == "ok"
    });
}

#[test]
fn what_was_under_way_arrives_and_the_rest_can_be_moved_another_time() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    DATA.put(&cluster, local.path());
    cluster.dev("up", &["--chunkservers", "5"]).must();
    wait_until("new servers to be known", PROCESS_LIMIT, || {
        let all = cluster.server_list();
        all.len() == 5 && all.iter().all(|server| server["up"] == true && number(server, "free") > 0)
    });
    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    let nothing = cluster.dfs(&["admin", "rebalance", "cancel"]).must_fail_cleanly();
    assert!(nothing.err.contains("nothing is being rebalanced"), "{nothing}");

    let started = cluster.json(&["admin", "rebalance", "start", "--max-mbps", "1", "--json"]);
    wait_until("some groups to have arrived while others are under way", PROCESS_LIMIT, || {
        let status = cluster.rebalance();
        number(&status, "groups_done") > 0 && number(&status, "moving") > 0
    });
    cluster.dfs(&["admin", "rebalance", "cancel"]).must();
    let status = cluster.rebalance();
    assert!(status["state"] == "cancelled" && number(&status, "moving") > 0 && status["over"] == false, "{status:#}");
    wait_until("what is under way to arrive, and no copy to be missing at any look", PLAN_LIMIT, || {
        all_copies_are_there(&cluster);
        cluster.rebalance()["over"] == true
    });
    let ended = cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must_fail_cleanly();
    assert!(ended.err.contains("it was cancelled"), "{ended}");
    let status = cluster.rebalance();
    let is = (&status["state"], &status["moving"], &status["wanted"], &status["groups_moving"]);
    assert_eq!(is, (&json!("cancelled"), &json!(0), &json!(false), &json!([])), "{status:#}");
    let arrived = number(&status, "groups_done");
    assert!(arrived > 0 && arrived < number(&started, "groups"), "{status:#}");
    settle(&cluster);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check(&cluster, local.path());

    let planned = plan(&cluster);
    let rest = number(&planned, "groups");
    assert!(rest > 0 && rest < number(&started, "groups"), "what has arrived stays: {planned:#}");
    cluster.dfs(&["admin", "rebalance", "start"]).must();
    cluster.dfs(&["admin", "rebalance", "status", "--wait"]).must();
    assert_eq!(number(&plan(&cluster), "groups"), 0, "every server has its share");
    let places: Vec<u64> = cluster.server_list().iter().map(|server| number(server, "places")).collect();
    let fair = places.iter().sum::<u64>() / 5;
    assert!(places.iter().all(|places| places.abs_diff(fair) * 20 <= fair), "within 5 % of a fifth: {places:?}");
    settle(&cluster);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check(&cluster, local.path());
    let events = cluster.json(&["admin", "events", "--json"]);
    assert!(events.to_string().contains("rebalance cancelled"), "{events:#}");
}
