//! With a million files and a million chunks the cluster starts within seconds, tells how it is at once, compares what is
//! there with what should be at little cost, and its metadata are saved and restored within minutes.
//!
//! `--full` makes a million of each, and holds the figures to their limits; the short run makes fewer, and looks whether
//! everything is there. Figures are printed either way.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::command::{Ended, run};
use tests::content::full;
use tests::json::number;
use tests::many::{FILES_PER_DIR, check_chunk, check_file, make_chunks, make_files};
use tests::wait::wait_until;
use tokio::time::Instant;

/// Files, and chunks, of the short run.
const FEW: u64 = 10_000;
/// From `kill -9` of everything until it serves again.
const START_LIMIT: Duration = Duration::from_secs(5);
/// `dfs admin status`, and `dfs admin rebalance plan`.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// Chunkservers have compared all by then, and compactions that the making left to do are done.
const CALM: Duration = Duration::from_secs(120);
/// How long the cost of a cluster in which nothing happens is measured: three passes.
const IDLE: Duration = Duration::from_secs(180);
/// Of a core that each chunkserver may use meanwhile, in percent.
const IDLE_PERCENT_MAX: f64 = 2.0;
/// One command.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// Clock ticks of `/proc/PID/stat` in a second, on every Linux.
const TICKS: f64 = 100.0;

const METASERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];
const CHUNKSERVERS: [&str; 3] = ["chunk-1", "chunk-2", "chunk-3"];

/// A command that may take long.
fn dfs(cluster: &Cluster, args: &[&str]) -> Ended {
    let ended = run(&mut cluster.command(args), COMMAND_LIMIT).must();
    eprintln!("dfs {}: {:.2} s", args.join(" "), ended.took.as_secs_f64());
    ended
}

/// It took at most this, if this run is held to its limits.
#[track_caller]
fn within(took: Duration, limit: Duration, what: &str) {
    assert!(!full() || took <= limit, "{what} took {took:?}, more than {limit:?}");
}

/// Seconds of a core that a process has used.
fn cpu_seconds(cluster: &Cluster, name: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", cluster.pid(name).unwrap())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11..13].iter().map(|field| field.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / TICKS
}

fn memory_kib(cluster: &Cluster, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(name).unwrap())).unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned()
}

/// What a cluster costs in which nothing happens.
fn is_cheap_when_idle(cluster: &Cluster) {
    std::thread::sleep(CALM);
    let all = [CHUNKSERVERS, METASERVERS].concat();
    let before: Vec<f64> = all.iter().map(|name| cpu_seconds(cluster, name)).collect();
    std::thread::sleep(IDLE);
    for (name, before) in all.iter().zip(before) {
        let percent = (cpu_seconds(cluster, name) - before) * 100.0 / IDLE.as_secs_f64();
        eprintln!("{name}: {percent:.2} % of a core, {} of memory", memory_kib(cluster, name));
        let answers_all = *name == cluster.leader(); // what each chunkserver asks about
        let most = if answers_all { 3.0 * IDLE_PERCENT_MAX } else { IDLE_PERCENT_MAX };
        assert!(percent < most, "{name} uses {percent:.2} % of a core");
    }
}

/// What must be there, read anew.
fn check(cluster: &Cluster, count: u64) {
    let status = cluster.status();
    assert!(number(&status, "inodes") >= count && number(&status, "chunks") >= count, "{status}");
    let dirs = count.div_ceil(FILES_PER_DIR);
    for dir in [0, dirs / 2, dirs - 1] {
        let listed = cluster.dfs(&["ls", &format!("/many/d{dir}")]).must();
        assert_eq!(listed.text().lines().count(), usize::try_from(FILES_PER_DIR).unwrap());
    }
}

/// The bytes of some of them, through a fresh mount.
fn check_bytes(cluster: &mut Cluster, count: u64) {
    let root = cluster.mount("fresh").join("many");
    let dirs = count.div_ceil(FILES_PER_DIR);
    for dir in [0, dirs / 2, dirs - 1] {
        check_file(&root, dir, dir % FILES_PER_DIR).unwrap();
    }
    for number in [0, count / 2, count - 1] {
        check_chunk(&root, number).unwrap();
    }
    cluster.unmount("fresh");
}

fn restore(cluster: &mut Cluster, backup: &str, count: u64) {
    cluster.kill(&METASERVERS);
    for name in METASERVERS {
        std::fs::remove_dir_all(cluster.data(name)).unwrap();
        cluster.start_server(name);
    }
    dfs(cluster, &["admin", "meta", "restore", backup, "--yes"]);
    wait_until("the chunkservers to find the new life", PROCESS_LIMIT, || {
        let status = cluster.status();
        status["chunkservers"].as_array().unwrap().iter().all(|server| server["up"] == true)
    });
    check(cluster, count);
    check_bytes(cluster, count);
    dfs(cluster, &["admin", "fsck"]);
}

fn make(cluster: &mut Cluster, count: u64) {
    let root = cluster.mount_with("m", &["-o", "nopack"]).join("many");
    std::fs::create_dir(&root).unwrap();
    let begun = Instant::now();
    make_files(&root, count).unwrap();
    eprintln!("{count} files: {:?}", begun.elapsed());
    let begun = Instant::now();
    make_chunks(&root, count).unwrap();
    eprintln!("{count} chunks: {:?}", begun.elapsed());
    cluster.unmount("m");
}

fn size(backup: &Path) -> u64 {
    tests::damage::files_below(backup).iter().map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn with_very_many_files_everything_is_still_quick() {
    tests::skip_if!(no_mount);
    let count = if full() { 1_000_000 } else { FEW };
    let (mut cluster, local) = (Cluster::start(), tempfile::tempdir().unwrap());
    make(&mut cluster, count);
    check(&cluster, count);
    if full() {
        is_cheap_when_idle(&cluster);
    }
    for name in METASERVERS {
        eprintln!("{name}: {} of memory", memory_kib(&cluster, name));
    }

    cluster.kill(&[METASERVERS, CHUNKSERVERS].concat());
    let started = cluster.up().took;
    eprintln!("serves {:.2} s after everything was killed", started.as_secs_f64());
    within(started, START_LIMIT, "the start");
    check(&cluster, count);
    within(dfs(&cluster, &["admin", "status"]).took, TELL_LIMIT, "status");
    within(dfs(&cluster, &["admin", "rebalance", "plan"]).took, TELL_LIMIT, "the first plan");
    within(dfs(&cluster, &["admin", "rebalance", "plan"]).took, TELL_LIMIT, "a plan");

    let backup = local.path().join("backup");
    dfs(&cluster, &["admin", "meta", "backup", backup.to_str().unwrap()]);
    eprintln!("the backup has {} MiB", size(&backup) >> 20);
    restore(&mut cluster, backup.to_str().unwrap(), count);
}
