//! All servers die at once, and not all come back soon: whoever is back serves what it has as soon as a majority of the
//! metaservers runs, and nobody takes those that are still coming for lost. Not a chunk is copied, nothing is given to
//! others, however late the rest is; when all are back the cluster is well.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::{Value, json};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::data::Data;
use tests::json::number;
use tests::wait::wait_until;
use tokio::time::Instant;

/// A server that is down for so long is taken out, in seconds.
const DOWN_OUT_S: u64 = 12;
/// So late are the last ones: later than that.
const LATE: Duration = Duration::from_secs(DOWN_OUT_S + 3);
/// All is well so long after the last one was started.
const WELL_LIMIT: Duration = Duration::from_secs(60);
/// Files, of two chunks each, and their length.
const FILES: u64 = 10;
const LEN: u64 = (5 << 20) + 123;
const DATA: Data = Data { seed: 51, files: FILES, len: LEN };

/// Nobody was taken out, data belongs where it did, and no copy was missed, made or dropped since the restart.
#[track_caller]
fn nothing_moved(status: &Value, before: &Value) {
    let keep = &status["keep"];
    assert_eq!((&keep["out"], &keep["layout"]), (&json!([]), &before["keep"]["layout"]), "{status:#}");
    assert_eq!(status["rebalance"], before["rebalance"], "{status:#}");
    for server in keep["servers"].as_array().unwrap() {
        for what in ["missing", "remade", "deleted"] {
            assert_eq!(number(server, what), 0, "{what}: {server:#}");
        }
    }
}

/// The server has compared what it has with what it should have, and told this leader.
fn has_compared(status: &Value, server: u64) -> bool {
    let keep = &status["keep"];
    let mut reports = keep["servers"].as_array().unwrap().iter();
    reports.any(|report| report["server"] == server && report["compared"] == keep["layout"])
}

fn wait_well(cluster: &Cluster) {
    wait_until("the cluster to be well", WELL_LIMIT, || cluster.status()["health"] == "ok");
}

#[test]
fn after_a_power_cut_half_of_the_servers_serve_and_the_others_may_be_late() {
    let (cluster, local) = (Cluster::start_with(3, 4), tempfile::tempdir().unwrap());
    for name in ["meta-1", "meta-2", "meta-3"] {
        cluster.configure(&format!("conf/{name}.toml"), &format!("down_out_s = {DOWN_OUT_S}")); // from the restart on
    }
    DATA.put(&cluster, local.path());
    wait_well(&cluster);
    let before = cluster.status();
    cluster.kill(&cluster.servers());

    // Of three copies on four servers one at least is on any two of them.
    let began = Instant::now();
    cluster.dev("start", &["meta-1", "meta-2", "chunk-1", "chunk-2"]).must();
    DATA.check(&cluster, local.path());
    eprintln!("everything was read {:?} after half of the servers were started", began.elapsed());
    cluster.start_server("meta-3");
    let served = Instant::now();
    wait_until("the rest to be late", LATE + PROCESS_LIMIT, || {
        nothing_moved(&cluster.status(), &before);
        served.elapsed() > LATE
    });
    DATA.check(&cluster, local.path());

    // One after the other: with the first of them there are enough servers to go on without the last one.
    for late in ["chunk-3", "chunk-4"] {
        cluster.start_server(late);
        wait_until(&format!("{late} to have compared what it has"), PROCESS_LIMIT, || {
            let status = cluster.status();
            nothing_moved(&status, &before);
            has_compared(&status, cluster.server_id(late))
        });
    }
    wait_well(&cluster);
    let status = cluster.status();
    nothing_moved(&status, &before);
    assert_eq!((&status["chunks"], &status["degraded"]), (&before["chunks"], &json!(0)));
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check(&cluster, local.path());
}
