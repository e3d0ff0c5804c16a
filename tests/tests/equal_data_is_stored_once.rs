//! Storing the same data again adds no chunk bytes and sends almost nothing.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::{Content, full};
use tests::damage::files_below;

/// One command takes this long at most.
const LIMIT: Duration = Duration::from_secs(300);

/// Referenced chunk bytes, as the metadata counts them, and bytes that all chunkservers hold.
fn stored(cluster: &Cluster) -> (u64, u64) {
    let status = cluster.status();
    let servers = status["chunkservers"].as_array().expect("status lists the servers");
    let held = servers.iter().map(|server| server["chunk_bytes"].as_u64().unwrap()).sum();
    (status["chunk_bytes"].as_u64().unwrap(), held)
}

/// Bytes that files below the chunkservers' data directories occupy.
fn on_disk(cluster: &Cluster) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let servers = cluster.servers().into_iter().filter(|name| name.starts_with("chunk"));
    let files = servers.flat_map(|name| files_below(&cluster.data(&name)));
    files.filter_map(|path| path.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

/// Bytes that went over the loopback interface so far.
fn loopback_bytes() -> u64 {
    let text = std::fs::read_to_string("/sys/class/net/lo/statistics/tx_bytes").unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn the_same_data_twice_adds_no_chunk_and_sends_almost_nothing() {
    let len: u64 = if full() { 1 << 30 } else { 256 << 20 };
    let cluster = Cluster::start();
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    let content = Content::new(6, 1, 1);
    content.write_file(&source, len).unwrap();
    run(&mut cluster.command(&["put", source.to_str().unwrap(), "/first"]), LIMIT).must();
    let before = stored(&cluster);
    assert_eq!(before.0, len, "every byte once in the metadata");
    let disk_before = on_disk(&cluster);

    let sent_before = loopback_bytes();
    let second = run(&mut cluster.command(&["put", source.to_str().unwrap(), "/second"]), LIMIT).must();
    let sent = loopback_bytes() - sent_before;
    eprintln!("the second put of {len} bytes took {:?} and sent {sent} bytes", second.took);
    assert!(sent < len / 50, "the second put sent {sent} of {len} bytes");
    assert_eq!(stored(&cluster).0, before.0, "no new chunk in the metadata");
    assert!(on_disk(&cluster) < disk_before + len / 50, "no new chunk on the disks");

    let back = local.path().join("back");
    run(&mut cluster.command(&["get", "/second", back.to_str().unwrap()]), LIMIT).must();
    run(Command::new("cmp").arg(&source).arg(&back), LIMIT).must();

    // What both share stays when one goes.
    cluster.dfs(&["rm", "/first"]).must();
    assert_eq!(stored(&cluster).0, len);
    std::fs::remove_file(&back).unwrap();
    run(&mut cluster.command(&["get", "/second", back.to_str().unwrap()]), LIMIT).must();
    content.check_file(&back, len).unwrap();
}
