//! Bytes that a disk changed are never handed out: another replica serves the read, and when none is sound the read
//! fails, says which chunk and file, and everything around it stays readable.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::{Path, PathBuf};
use tests::cluster::Cluster;
use tests::content::Content;
use tests::damage::flip_stored;

/// The file that gets damaged: two chunks.
const LEN: u64 = 7 << 20;
/// A byte in its second chunk.
const DAMAGED_AT: u64 = (5 << 20) + 1000;
/// Bytes verified together: those around the damaged one go with it.
const HASH_GROUP: u64 = 16 << 10;

/// Flips the damaged byte on that chunkserver.
fn damage(cluster: &Cluster, content: Content, server: &str) {
    let flipped = flip_stored(&cluster.data(server), &content.bytes(DAMAGED_AT, 32));
    assert_eq!(flipped, 1, "{server} holds one replica of every chunk");
}

fn get(cluster: &Cluster, to: &Path) -> tests::command::Ended {
    cluster.dfs(&["get", "/victim", to.to_str().unwrap()])
}

/// Reads a range through a mount that has nothing cached.
fn read_fresh(cluster: &mut Cluster, name: &str, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let path: PathBuf = cluster.mount(name).join("victim");
    let mut bytes = vec![0; len];
    std::fs::File::open(path)?.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A cluster with the victim stored in it.
fn prepare(content: Content, local: &Path) -> Cluster {
    let cluster = Cluster::start();
    let source = local.join("source");
    content.write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/victim"]).must();
    cluster
}

#[test]
fn another_replica_serves_the_read_and_when_all_are_damaged_it_fails() {
    tests::skip_if!(no_mount);
    let content = Content::new(4, 1, 1);
    let local = tempfile::tempdir().unwrap();
    let back = local.path().join("back");
    let mut cluster = prepare(content, local.path());

    // Two of three: whichever server is asked first, at least once it is a damaged one.
    for server in ["chunk-1", "chunk-2"] {
        damage(&cluster, content, server);
        get(&cluster, &back).must();
        content.check_file(&back, LEN).unwrap();
        std::fs::remove_file(&back).unwrap();
    }
    for mount in ["first", "second", "third"] {
        let bytes = read_fresh(&mut cluster, mount, DAMAGED_AT - 10, 5000).unwrap();
        content.check(DAMAGED_AT - 10, &bytes).unwrap();
    }
    let logs: String = ["first", "second", "third"].iter().map(|name| cluster.log(name)).collect();
    assert!(logs.to_lowercase().contains("corrupt"), "a damaged replica was met and nobody said so:\n{logs}");

    damage(&cluster, content, "chunk-3");
    let ended = get(&cluster, &back).must_fail_cleanly();
    assert!(ended.err.contains("/victim"), "the error names the file: {ended}");
    assert!(ended.err.contains("chunk"), "the error names the chunk: {ended}");
    assert!(!back.exists(), "no file, rather than one with a hole or wrong bytes");

    let error = read_fresh(&mut cluster, "all-damaged", DAMAGED_AT - 10, 5000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
    let log = cluster.log("all-damaged");
    assert!(
        log.to_lowercase().contains("corrupt") && log.contains("chunk"),
        "the mount's log says what is lost:\n{log}"
    );
}

#[test]
fn what_lies_around_damaged_bytes_stays_readable() {
    tests::skip_if!(no_mount);
    let content = Content::new(4, 2, 1);
    let local = tempfile::tempdir().unwrap();
    let mut cluster = prepare(content, local.path());
    for server in ["chunk-1", "chunk-2", "chunk-3"] {
        damage(&cluster, content, server);
    }
    // The kernel reads ahead, so the ranges keep a distance; an error there must not spill over.
    for (mount, at) in [("before", 0), ("behind", DAMAGED_AT + 64 * HASH_GROUP)] {
        let bytes = read_fresh(&mut cluster, mount, at, 4096).unwrap();
        content.check(at, &bytes).unwrap();
    }
}

#[test]
fn a_replica_damaged_while_its_server_was_down_is_not_trusted_after_a_restart() {
    let content = Content::new(4, 3, 1);
    let local = tempfile::tempdir().unwrap();
    let back = local.path().join("back");
    let cluster = prepare(content, local.path());
    let servers: Vec<String> = cluster.servers().into_iter().filter(|name| name.starts_with("chunk")).collect();
    cluster.kill(&servers);
    damage(&cluster, content, "chunk-1");
    damage(&cluster, content, "chunk-3");
    cluster.up();
    for _ in 0..3 {
        get(&cluster, &back).must();
        content.check_file(&back, LEN).unwrap();
        std::fs::remove_file(&back).unwrap();
    }
}
