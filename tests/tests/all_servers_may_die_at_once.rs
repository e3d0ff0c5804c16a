//! All server processes are killed at once under load, again and again at different moments: after each restart every
//! acknowledged write is there, byte for byte.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::path::PathBuf;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::full;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;

/// How often everything is killed.
const ROUNDS: usize = 20;
/// Writers, each with a mount of its own.
const WRITERS: usize = 4;
/// The first operations of a round take this long at most.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// Mounts whatever writer has no mount, and starts the writers in new directories.
fn start_round(cluster: &mut Cluster, points: &mut [Option<PathBuf>], seed: u64, round: usize) -> Load {
    let mut places = Vec::new();
    for (writer, point) in points.iter_mut().enumerate() {
        let point = point.get_or_insert_with(|| cluster.mount(&format!("m{writer}")));
        places.push((point.clone(), format!("round-{round}-writer-{writer}")));
    }
    Load::start(seed, &places)
}

/// Reads everything that these writers were promised through a mount that never saw it, and removes the mount.
fn check_fresh(cluster: &mut Cluster, ledgers: &[Ledger], why: &str) -> usize {
    let root = cluster.mount("check");
    let results: Vec<Result<usize, String>> = ledgers.iter().map(|ledger| ledger.check(&root)).collect();
    let wrong: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{why}: {wrong:#?}");
    cluster.unmount("check");
    results.into_iter().flatten().sum()
}

#[test]
fn every_acknowledged_write_is_there_after_all_servers_were_killed() {
    tests::skip_if!(no_mount);
    let seed = 3;
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start();
    let servers = cluster.servers();
    let mut points: Vec<Option<PathBuf>> = vec![None; WRITERS];
    let mut ledgers: Vec<Ledger> = Vec::new();
    let rounds = if full() { 5 * ROUNDS } else { ROUNDS };
    for round in 0..rounds {
        let load = start_round(&mut cluster, &mut points, seed, round);
        // From the very first operations to a few hundred, so that also logs and flushes of different age are cut.
        let goal = random.random_range(1..150);
        wait_until("acknowledged operations", PROGRESS_LIMIT, || load.acked() >= goal);
        std::thread::sleep(Duration::from_micros(random.random_range(0..50_000)));
        cluster.kill(&servers);
        // Every third time the clients die with the servers: what they had synced must be there all the same.
        if round % 3 == 2 {
            for (writer, point) in points.iter_mut().enumerate() {
                cluster.kill_mount(&format!("m{writer}"));
                *point = None;
            }
        }
        cluster.up();
        let of_round = load.stop();
        let checked = check_fresh(&mut cluster, &of_round, &format!("round {round}"));
        let failed: usize = of_round.iter().map(|ledger| ledger.failed.len()).sum();
        let example = of_round.iter().find_map(|ledger| ledger.failed.first());
        eprintln!("round {round}: {checked} names as promised, {failed} operations failed, such as {example:?}");
        ledgers.extend(of_round);
    }
    check_fresh(&mut cluster, &ledgers, "at the end");
}
