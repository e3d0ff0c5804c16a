//! The disk space of a removed file is free again, on every chunkserver, two minutes after its undelete window at the
//! latest; at once when garbage collection is run. Measured is what the data directories take on their disks.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::{Content, full};
use tests::damage::files_below;
use tests::wait::wait_until;

/// How long what was removed can be brought back, in seconds.
const WINDOW_S: u64 = 2;
/// The space is free so long after that.
const BACK_LIMIT: Duration = Duration::from_secs(120);
/// In the short run what nothing refers to goes when it is so old, in seconds. The long one has the default, a minute.
const SHORT_GRACE_S: u64 = 5;
/// What a data directory may keep of it: what a log has reserved ahead (16 MiB), 8 KiB beside each hole, and rows.
const KEPT: u64 = 32 << 20;
/// Each of them has a copy of everything.
const SERVERS: [&str; 3] = ["chunk-1", "chunk-2", "chunk-3"];

/// Length of the file.
fn len() -> u64 {
    if full() { 1 << 30 } else { 256 << 20 }
}

/// Bytes that each data directory takes on its disk.
fn on_disk(cluster: &Cluster) -> [u64; 3] {
    SERVERS.map(|name| {
        let files = files_below(&cluster.data(name));
        files.iter().map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
    })
}

fn is_back(before: [u64; 3], now: [u64; 3]) -> bool {
    before.into_iter().zip(now).all(|(before, now)| now <= before + KEPT)
}

/// Stores the file, and checks that every server's disk has it. What the disks had before.
fn put(cluster: &Cluster, local: &Path) -> [u64; 3] {
    let (before, source) = (on_disk(cluster), local.join("source"));
    Content::new(57, 1, 1).write_file(&source, len()).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/file"]).must();
    let with = on_disk(cluster);
    assert!(before.iter().zip(with).all(|(before, with)| with >= before + len()), "{before:?} {with:?}");
    before
}

#[test]
fn the_space_of_a_removed_file_is_free_two_minutes_after_its_window() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    cluster.dfs(&["admin", "settings", "set", &format!("undelete_window_s={WINDOW_S}"), "--yes"]).must();
    if !full() {
        cluster.dfs(&["admin", "settings", "set", &format!("grace_s={SHORT_GRACE_S}")]).must();
    }
    let before = put(&cluster, local.path());
    cluster.dfs(&["rm", "/file"]).must();
    let took = wait_until("the space to be free", Duration::from_secs(WINDOW_S) + BACK_LIMIT, || {
        is_back(before, on_disk(&cluster))
    });
    eprintln!("{} bytes on each of three disks were free {took:?} after the removal", len());
    cluster.dfs(&["admin", "fsck"]).must();
}

#[test]
fn with_a_run_of_garbage_collection_the_space_is_free_at_once() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    let before = put(&cluster, local.path());
    cluster.dfs(&["rm", "/file"]).must();
    let said = cluster.dfs(&["admin", "gc", "run"]).must();
    let now = on_disk(&cluster);
    assert!(is_back(before, now), "{before:?} {now:?} {said}");
    eprintln!("garbage collection took {:?}: {}", said.took, said.text());
    cluster.dfs(&["admin", "fsck"]).must();
}
