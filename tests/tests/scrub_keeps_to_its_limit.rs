//! Scrub stands still while it is paused, reads no faster than it may, and goes on when it may again.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::json::number;
use tests::wait::wait_until;
use tokio::time::Instant;

/// Bytes that each server holds: all three have a copy.
const LEN: u64 = 20 << 20;
/// The limit, per second: a round takes about this part of [`LEN`] in seconds, but for the first copy.
const MIB_S: u64 = 2;
/// So long at least, without the first and the last copy (4 MiB each).
const ROUND_MIN: Duration = Duration::from_secs((LEN - (8 << 20)) / (MIB_S << 20));
/// Servers hear of an order, and are heard of, within this.
const HEARD: Duration = Duration::from_secs(3);
/// Paused, it is looked at for so long.
const PAUSED: Duration = Duration::from_secs(4);
/// A round ends within this, when it may.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// Whole rounds of each server.
fn rounds(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status();
    let servers = status["keep"]["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3, "{status:#}");
    servers.iter().map(|server| number(server, "scrub_rounds")).collect()
}

/// Orders a round; every server has ended it within the limit. How long the quickest one took.
fn round(cluster: &Cluster) -> Duration {
    let (before, begun) = (rounds(cluster), Instant::now());
    cluster.dfs(&["admin", "scrub", "run"]).must();
    let mut quickest = None;
    wait_until("a round", ROUND_LIMIT, || {
        let now = rounds(cluster);
        let ended = now.iter().zip(&before).filter(|(now, before)| now > before).count();
        if ended > 0 {
            quickest.get_or_insert(begun.elapsed());
        }
        ended == 3
    });
    quickest.unwrap()
}

#[test]
fn scrub_can_be_paused_and_slowed() {
    let (cluster, local) = (Cluster::start(), tempfile::tempdir().unwrap());
    let source = local.path().join("file");
    Content::new(9, 1, 1).write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/file"]).must();
    wait_until("all copies", ROUND_LIMIT, || {
        cluster.server_list().iter().all(|server| number(server, "chunk_bytes") == LEN)
    });
    round(&cluster);

    cluster.dfs(&["admin", "scrub", "pause"]).must();
    std::thread::sleep(HEARD);
    let status = cluster.status();
    assert!(status["why"].to_string().contains("scrub is paused"), "{status:#}");
    let before = rounds(&cluster);
    cluster.dfs(&["admin", "scrub", "run"]).must();
    std::thread::sleep(PAUSED);
    assert_eq!(rounds(&cluster), before, "nothing is read while it is paused");
    cluster.dfs(&["admin", "scrub", "resume"]).must();
    wait_until("the round that was ordered", ROUND_LIMIT, || {
        rounds(&cluster).iter().zip(&before).all(|(now, before)| now > before)
    });

    cluster.dfs(&["admin", "settings", "set", &format!("scrub_mib_s={MIB_S}")]).must();
    std::thread::sleep(HEARD);
    let took = round(&cluster);
    assert!(took >= ROUND_MIN, "{took:?} for a round that may not take less than {ROUND_MIN:?}");
}
