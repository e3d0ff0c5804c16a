//! The power of the whole cluster is cut under load, again and again: after each restart every acknowledged write is
//! there. The cut is a shutdown of the file system below all servers that drops whatever was not synced (the kernel's
//! `FS_IOC_SHUTDOWN` without a log flush), so a forgotten fdatasync or directory sync shows.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::cluster::{Cluster, wait_gone};
use tests::command::run;
use tests::content::full;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;

/// Power cuts.
const ROUNDS: usize = 6;
/// Writers, each with a mount of its own.
const WRITERS: usize = 2;
/// The first operations of a round take this long at most.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Making, mounting and unmounting a file system takes this long at most.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

fn tool(program: &str, args: &[&str], paths: &[&Path]) {
    run(Command::new(program).args(args).args(paths), TOOL_LIMIT).must();
}

/// One round: load, cut, restart. Returns what the writers were promised.
fn cut_once(cluster: &mut Cluster, image: &Path, seed: u64, round: usize, random: &mut StdRng) -> Vec<Ledger> {
    let data = cluster.dir().join("data");
    let names: Vec<String> = (0..WRITERS).map(|writer| format!("m{writer}")).collect();
    let places: Vec<(PathBuf, String)> =
        names.iter().map(|name| (cluster.mount(name), format!("round-{round}-{name}"))).collect();
    let load = Load::start(seed, &places);
    let goal = random.random_range(1..200);
    wait_until("acknowledged operations", PROGRESS_LIMIT, || load.acked() >= goal);
    std::thread::sleep(Duration::from_micros(random.random_range(0..50_000)));

    tool("xfs_io", &["-x", "-c", "shutdown"], &[&data]);
    // The writers' operations that are under way end with their mounts: nothing can be acknowledged any more.
    for name in &names {
        cluster.kill_mount(name);
    }
    let ledgers = load.stop();
    // Some servers have ended by themselves: their disk failed.
    let pids: Vec<_> = cluster.servers().iter().filter_map(|name| cluster.pid(name)).collect();
    for name in cluster.servers() {
        cluster.signal_if_running(&name, nix::sys::signal::Signal::SIGKILL);
    }
    wait_gone(&pids);
    tool("umount", &[], &[&data]);
    tool("mount", &["-o", "loop"], &[image, &data]);
    cluster.up();
    ledgers
}

fn check_fresh(cluster: &mut Cluster, ledgers: &[Ledger], why: &str) {
    let root = cluster.mount("check");
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(&root).err()).collect();
    assert!(wrong.is_empty(), "{why}:\n{}", wrong.join("\n"));
    cluster.unmount("check");
}

/// All data of all servers on one file system of this kind.
fn survives_on(file_system: &str, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::prepare();
    let (image, data) = (cluster.dir().join("image"), cluster.dir().join("data"));
    std::fs::File::create(&image).unwrap().set_len(6 << 30).unwrap();
    tool(&format!("mkfs.{file_system}"), &["-q"], &[&image]);
    std::fs::create_dir(&data).unwrap();
    tool("mount", &["-o", "loop"], &[&image, &data]);
    cluster.up();
    let mut ledgers: Vec<Ledger> = Vec::new();
    for round in 0..if full() { 5 * ROUNDS } else { ROUNDS } {
        let of_round = cut_once(&mut cluster, &image, seed, round, &mut random);
        let acked: usize = of_round.iter().map(|ledger| ledger.done.len() - ledger.failed.len()).sum();
        check_fresh(&mut cluster, &of_round, &format!("round {round}"));
        eprintln!("{file_system}, round {round}: {acked} acknowledged operations survived");
        ledgers.extend(of_round);
    }
    check_fresh(&mut cluster, &ledgers, "at the end");
}

#[test]
fn every_acknowledged_write_survives_a_power_cut_on_ext4() {
    tests::skip_if!(no_mount, no_root);
    survives_on("ext4", 12);
}

#[test]
fn every_acknowledged_write_survives_a_power_cut_on_xfs() {
    tests::skip_if!(no_mount, no_root);
    survives_on("xfs", 13);
}
