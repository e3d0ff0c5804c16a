//! While the chunks of a lost server are made again elsewhere, `dfs admin status` says how much is missing, how fast it
//! comes, how long it takes and since when it waits. The leader dies in the middle: the next one tells the same, and it
//! goes on from there.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::{Value, json};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::data::Data;
use tests::json::number;
use tests::wait::{wait_for, wait_until};

const METASERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];
/// A server that is down for so long is taken out, in seconds.
const DOWN_OUT_S: u64 = 12;
/// Then all know what they miss within this, and a part of it is made.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);
/// At a usual rate the rest is made within this.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// What a server said longer ago does not count, in milliseconds.
const FRESH_MS: u64 = 3000;
/// Files, a chunk each, and their length. At 1 MiB a second each of three servers makes a third of 270 copies in 86 s: there is
/// still much to do when the next leader has been asked, also if servers take half a minute to compare under a new layout.
const FILES: u64 = 360;
const FILE_LEN: u64 = 1_000_000;
const DATA: Data = Data { seed: 52, files: FILES, len: FILE_LEN };

/// How far repair is, as the leader tells it.
#[derive(Clone, Copy, Debug)]
struct Told {
    leader: u64,
    missing: u64,
    bytes: u64,
    rate: u64,
    /// Seconds; `None`: not known.
    left_s: Option<u64>,
    oldest_s: u64,
    remade: u64,
}

/// What the leader tells, if there is one and all of these servers have told it how they are under the layout of now.
fn told(cluster: &Cluster, servers: &[u64]) -> Option<Told> {
    let ended = cluster.dfs(&["admin", "status", "--json"]);
    let status: Value = serde_json::from_slice(&ended.out).ok()?;
    let keep = &status["keep"];
    let reports = keep["servers"].as_array()?;
    let fresh = |server: &u64| {
        reports.iter().find(|report| {
            report["server"] == *server && number(report, "age_ms") < FRESH_MS && report["compared"] == keep["layout"]
        })
    };
    let fresh: Option<Vec<&Value>> = servers.iter().map(fresh).collect();
    Some(Told {
        leader: number(&status, "leader"),
        missing: number(keep, "missing"),
        bytes: number(keep, "missing_bytes"),
        rate: number(keep, "rate"),
        left_s: keep["left_s"].as_u64(),
        oldest_s: number(keep, "oldest_s"),
        remade: fresh?.into_iter().map(|report| number(report, "remade")).sum(),
    })
}

/// Waits until so much is missing at most; it never gets more on the way. What was told last.
fn wait_missing(cluster: &Cluster, servers: &[u64], from: Told, goal: u64, limit: Duration) -> Told {
    let mut last = from;
    wait_until(&format!("{goal} chunks to be missing at most"), limit, || {
        let Some(now) = told(cluster, servers) else { return false };
        assert!(now.missing <= last.missing && now.bytes <= last.bytes, "{now:?} after {last:?}");
        assert!(now.remade >= last.remade, "{now:?} after {last:?}");
        last = now;
        now.missing <= goal
    });
    last
}

/// A person sees the same.
fn is_shown(cluster: &Cluster) {
    let ended = cluster.dfs(&["admin", "status"]).must();
    for word in ["copies missing", "/s, time left", "oldest waits"] {
        assert!(ended.text().contains(word), "{word} is not in {ended}");
    }
}

#[test]
fn the_next_leader_tells_of_a_repair_where_the_last_one_left_it() {
    let (cluster, local) = (Cluster::start_with(3, 4), tempfile::tempdir().unwrap());
    for name in METASERVERS {
        cluster.configure(&format!("conf/{name}.toml"), &format!("down_out_s = {DOWN_OUT_S}"));
    }
    cluster.kill(&METASERVERS);
    cluster.up();
    cluster.dfs(&["admin", "settings", "set", "repair_busy_mib_s=1", "repair_idle_mib_s=1"]).must();
    DATA.put(&cluster, local.path());
    wait_until("a whole cluster", PROCESS_LIMIT, || cluster.status()["health"] == "ok");
    let [one, two, three, lost] = ["chunk-1", "chunk-2", "chunk-3", "chunk-4"].map(|name| cluster.server_id(name));
    let rest = [one, two, three];

    cluster.kill(&["chunk-4"]);
    let (begun, _) = wait_for("repair to be at work", BEGIN_LIMIT, || {
        told(&cluster, &rest).filter(|now| now.missing > 0 && now.rate > 0)
    });
    eprintln!("begun: {begun:?}");
    assert!(begun.left_s.is_some_and(|left| left > 0) && begun.bytes >= begun.missing, "{begun:?}");
    is_shown(&cluster);
    let before = wait_missing(&cluster, &rest, begun, begun.missing * 3 / 4, BEGIN_LIMIT);
    assert!(before.oldest_s > 0, "{before:?}");

    let leader = format!("meta-{}", before.leader);
    cluster.kill(&[&leader]);
    let (after, took) = wait_for("the next leader to know", PROCESS_LIMIT, || {
        told(&cluster, &rest).filter(|now| now.leader != before.leader)
    });
    eprintln!("{took:?} after the leader was killed: {after:?}, before: {before:?}");
    assert!(after.missing > 0, "repair was through too soon: this has shown nothing");
    assert!(after.missing <= before.missing && after.bytes <= before.bytes, "{after:?}");
    assert!(after.oldest_s >= before.oldest_s && after.remade >= before.remade, "{after:?}");
    assert_eq!(cluster.status()["keep"]["out"], json!([lost]));
    let later = wait_missing(&cluster, &rest, after, after.missing - 1, BEGIN_LIMIT);
    is_shown(&cluster);

    cluster.dfs(&["admin", "settings", "set", "repair_busy_mib_s=64", "repair_idle_mib_s=1024"]).must();
    wait_missing(&cluster, &rest, later, 0, HEAL_LIMIT);
    cluster.start_server(&leader);
    wait_until("the lost server to be forgotten", HEAL_LIMIT, || {
        cluster.dfs(&["admin", "server", "remove", &lost.to_string(), "--yes"]).ok()
    });
    wait_until("the cluster to be well", HEAL_LIMIT, || cluster.status()["health"] == "ok");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check(&cluster, local.path());
}
