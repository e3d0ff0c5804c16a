//! While four clients write, the leader, a follower and a chunkserver are killed, one after another, and started again:
//! nothing acknowledged is lost or wrong, no operation fails, and losing the leader stalls nobody for 5 s.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;
use tokio::time::Instant;

/// Each writer makes this many operations between two events.
const OPS_BETWEEN: u64 = 25;
/// And takes this long for them at most.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// The longest an operation may take when the leader dies, its own work included.
const STALL_LIMIT: Duration = Duration::from_secs(5);
/// Writers, each with a mount of its own.
const WRITERS: usize = 4;

/// Waits until every writer got some more operations acknowledged.
fn progress(load: &Load, why: &str) {
    let goal = load.acked_by_each() + OPS_BETWEEN;
    wait_until(why, PROGRESS_LIMIT, || load.acked_by_each() >= goal);
}

fn check_all(ledgers: &[Ledger], root: &Path) {
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(root).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_fails_when_one_server_dies() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let places: Vec<(PathBuf, String)> =
        (0..WRITERS).map(|writer| (cluster.mount(&format!("m{writer}")), format!("writer-{writer}"))).collect();
    let load = Load::start(2, &places);
    progress(&load, "the first operations");

    let mut killed = Vec::new();
    for victim in ["leader", "follower", "chunk-1", "chunk-2", "chunk-3", "leader"] {
        let leader = cluster.leader();
        let name = match victim {
            "leader" => leader,
            "follower" => ["meta-1", "meta-2", "meta-3"].into_iter().find(|name| *name != leader).unwrap().into(),
            chunkserver => chunkserver.into(),
        };
        killed.push((victim, name.clone(), Instant::now()));
        cluster.kill(&[&name]);
        progress(&load, &format!("operations after {victim} {name} was killed"));
        cluster.start_server(&name);
        progress(&load, &format!("operations after {victim} {name} was started again"));
    }
    let ledgers = load.stop();

    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
    let mut end = Instant::now();
    for (victim, name, when) in killed.iter().rev() {
        let stall = ledgers.iter().map(|ledger| ledger.slowest_between(*when, end)).max().unwrap();
        eprintln!("killed {victim} {name}: slowest operation {stall:?}");
        assert!(*victim != "leader" || stall < STALL_LIMIT, "losing the leader stalled a writer for {stall:?}");
        end = *when;
    }
    check_all(&ledgers, &places[0].0);
    for writer in 0..WRITERS {
        cluster.unmount(&format!("m{writer}"));
    }
    check_all(&ledgers, &cluster.mount("fresh"));
    let local = tempfile::tempdir().unwrap();
    for ledger in &ledgers {
        let to = local.path().join(&ledger.dir);
        cluster.dfs(&["get", "-r", &format!("/{}", ledger.dir), to.to_str().unwrap()]).must();
    }
    check_all(&ledgers, local.path());
}
