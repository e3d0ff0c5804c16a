//! A metaserver that missed many operations, or lost its disk, catches up by snapshot and then counts again: the
//! cluster lives on with it and one other.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::full;
use tests::wait::wait_until;

/// Catching up takes this long at most.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);
/// Threads that make files at once.
const MAKERS: usize = 8;

/// Makes so many empty files below `dir`, each of which is some operations of the metadata.
fn make_files(dir: &Path, count: usize) {
    std::fs::create_dir(dir).unwrap();
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            scope.spawn(move || {
                for file in (maker..count).step_by(MAKERS) {
                    std::fs::File::create_new(dir.join(format!("file-{file}"))).unwrap();
                }
            });
        }
    });
}

/// What the leader knows of that metaserver's log: the last index that is known to match, and the leader's own.
fn indexes(status: &Value, name: &str) -> Option<(u64, u64)> {
    let rows = status["metaservers"].as_array()?;
    let its = rows.iter().find(|row| row["name"].as_str() == Some(name))?;
    let leaders = rows.iter().find(|row| row["leader"].as_bool() == Some(true))?;
    Some((its["log"].as_u64()?, leaders["log"].as_u64()?))
}

fn wait_caught_up(cluster: &Cluster, name: &str) {
    let took = wait_until(&format!("{name} to catch up"), CATCH_UP_LIMIT, || {
        let ended = cluster.dfs(&["admin", "status", "--json"]);
        let Ok(status) = serde_json::from_slice::<Value>(&ended.out) else { return false };
        indexes(&status, name).is_some_and(|(matched, last)| matched >= last)
    });
    eprintln!("{name} caught up within {took:?}");
}

/// Waits until the leader has noticed that it is gone: what it tells of it before is of the time before.
fn wait_missed(cluster: &Cluster, name: &str) {
    wait_until(&format!("{name} to be missed"), CATCH_UP_LIMIT, || {
        let ended = cluster.dfs(&["admin", "status", "--json"]);
        let Ok(status) = serde_json::from_slice::<Value>(&ended.out) else { return false };
        status["metaservers"].is_array() && indexes(&status, name).is_none()
    });
}

/// Kills the metaserver that was never away, so that nothing works without the one that caught up.
fn must_count_again(cluster: &Cluster, away: &str, mnt: &Path, files: usize) {
    let other = ["meta-1", "meta-2", "meta-3"].into_iter().find(|name| *name != away).unwrap();
    cluster.kill(&[other]);
    wait_until("writes with the one that was away", CATCH_UP_LIMIT, || {
        std::fs::write(mnt.join(format!("with-{away}")), b"two of three").is_ok()
    });
    let fresh = cluster.dfs(&["ls", "/many"]).must();
    assert_eq!(fresh.text().lines().count(), files);
    cluster.start_server(other);
    wait_caught_up(cluster, other);
}

/// A byte of what it acknowledged is not what was written: it does not start, and says what to do. Then it comes back.
#[test]
fn one_whose_log_is_damaged_says_so_and_comes_back_empty() {
    let (cluster, local) = (Cluster::start(), tempfile::tempdir().unwrap());
    cluster.dfs(&["mkdir", "/before"]).must();
    let hurt = follower(&cluster);
    cluster.kill(&[&hurt]);
    let log = cluster.data(&hurt).join("raft/log");
    let segments = std::fs::read_dir(&log).map(|entries| entries.map(|entry| entry.unwrap().path()).max());
    let log = segments.map_or(log, |last| last.expect("it has written something"));
    eprintln!("a byte of {} is changed", log.display());
    let mut bytes = std::fs::read(&log).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let middle = bytes[..written / 2].iter().rposition(|byte| *byte != 0).unwrap(); // not between two records
    bytes[middle] ^= 0x40;
    std::fs::write(&log, bytes).unwrap();
    drop(cluster.dev("start", &[&hurt])); // it may be noticed before that ends, or later
    wait_until("it to say why it does not start", CATCH_UP_LIMIT, || {
        let said = cluster.log(&hurt);
        said.contains("is damaged") && said.contains("move its whole data directory away")
    });
    wait_missed(&cluster, &hurt);
    assert!(cluster.pid(&hurt).is_none(), "it does not run");
    cluster.dfs(&["mkdir", "/meanwhile"]).must(); // the other two go on

    std::fs::rename(cluster.data(&hurt), local.path().join("away")).unwrap();
    cluster.start_server(&hurt);
    wait_until("the empty one to be a voter again", CATCH_UP_LIMIT, || {
        cluster.servers().iter().any(|name| cluster.log(name).contains("that came back is a voter again"))
    });
    wait_caught_up(&cluster, &hurt);
    cluster.dfs(&["stat", "/meanwhile"]).must();
}

/// Any metaserver but the leader.
fn follower(cluster: &Cluster) -> String {
    let leader = cluster.leader();
    ["meta-1", "meta-2", "meta-3"].into_iter().find(|name| *name != leader).unwrap().into()
}

#[test]
fn after_many_operations_and_with_an_empty_disk_it_catches_up_and_counts_again() {
    tests::skip_if!(no_mount);
    // A create is one entry of the log; the short run lowers the snapshot threshold in proportion.
    let files = if full() { 100_000 } else { 6_000 };
    let mut cluster = Cluster::start();
    if !full() {
        for name in ["meta-1", "meta-2", "meta-3"] {
            cluster.configure(&format!("conf/{name}.toml"), "snapshot_entries = 2000\nkeep_entries = 200");
        }
        cluster.dev("down", &[]).must();
        cluster.up();
    }
    let mnt = cluster.mount("m");

    let away = follower(&cluster);
    cluster.kill(&[&away]);
    make_files(&mnt.join("many"), files);
    wait_missed(&cluster, &away);
    cluster.start_server(&away);
    wait_caught_up(&cluster, &away);
    assert!(cluster.log(&away).contains("snapshot"), "that many entries are not replayed one by one");
    must_count_again(&cluster, &away, &mnt, files);

    let empty = follower(&cluster);
    cluster.kill(&[&empty]);
    std::fs::remove_dir_all(cluster.data(&empty)).unwrap();
    wait_missed(&cluster, &empty);
    cluster.start_server(&empty);
    // The status may still show how far its log was before it was lost; what counts is that it was let in again.
    wait_until("the empty one to be a voter again", CATCH_UP_LIMIT, || {
        cluster.servers().iter().any(|name| cluster.log(name).contains("that came back is a voter again"))
    });
    wait_caught_up(&cluster, &empty);
    must_count_again(&cluster, &empty, &mnt, files);
}
