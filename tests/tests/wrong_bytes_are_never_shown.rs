//! Bytes that a disk changed are never handed out: another replica serves the read, and when none is sound the read
//! fails, says which chunk and file, and everything around it stays readable.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::Path;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::damage::flip_stored;
use tests::wait::wait_until;

/// Chunks of the file that gets damaged: many, so that whatever two servers are damaged, one of them is asked first for
/// some chunk.
const CHUNKS: u64 = 8;
/// Length of a chunk.
const CHUNK: u64 = 4 << 20;
/// Length of the file.
const LEN: u64 = CHUNKS * CHUNK;
/// A byte in each chunk.
const DAMAGED_AT: u64 = (1 << 20) + 1000;
/// Bytes verified together: those around the damaged one go with it.
const HASH_GROUP: u64 = 16 << 10;

/// The damaged bytes of the file.
fn places() -> impl Iterator<Item = u64> {
    (0..CHUNKS).map(|chunk| chunk * CHUNK + DAMAGED_AT)
}

/// Flips one byte of every chunk on that chunkserver.
fn damage(cluster: &Cluster, content: Content, server: &str) {
    for at in places() {
        let flipped = flip_stored(&cluster.data(server), &content.bytes(at, 32));
        assert_eq!(flipped, 1, "{server} holds one replica of every chunk");
    }
}

fn get(cluster: &Cluster, to: &Path) -> tests::command::Ended {
    cluster.dfs(&["get", "/victim", to.to_str().unwrap()])
}

/// Reads a range through a mount.
fn read(mount: &Path, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    std::fs::File::open(mount.join("victim"))?.read_exact_at(&mut bytes, at)?;
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

/// Damaged copies that the chunkservers know of, together.
fn known(cluster: &Cluster) -> u64 {
    let status = cluster.status();
    status["chunkservers"].as_array().unwrap().iter().map(|server| server["corrupt"].as_u64().unwrap()).sum()
}

#[test]
fn another_replica_serves_the_read() {
    tests::skip_if!(no_mount);
    let content = Content::new(4, 1, 1);
    let local = tempfile::tempdir().unwrap();
    let back = local.path().join("back");
    let mut cluster = prepare(content, local.path());
    let mount = cluster.mount("two-damaged");
    for server in ["chunk-1", "chunk-2"] {
        damage(&cluster, content, server);
    }
    for at in places() {
        let bytes = read(&mount, at - 10, 5000).unwrap();
        content.check(at - 10, &bytes).unwrap();
    }
    let log = cluster.log("two-damaged");
    assert!(log.contains("damaged replica") && log.contains("chunk="), "met and nobody said so:\n{log}");
    // No server has looked: the reader has told them, in the background.
    wait_until("the servers know of damaged copies", PROCESS_LIMIT, || known(&cluster) > 0);
    let told = ["chunk-1", "chunk-2"].iter().filter(|server| cluster.log(server).contains("damaged copy found"));
    assert!(told.count() > 0, "a server that looked says what it found");
    get(&cluster, &back).must();
    content.check_file(&back, LEN).unwrap();
}

#[test]
fn when_all_replicas_are_damaged_the_read_fails_and_says_what_is_lost() {
    tests::skip_if!(no_mount);
    let content = Content::new(4, 4, 1);
    let local = tempfile::tempdir().unwrap();
    let back = local.path().join("back");
    let mut cluster = prepare(content, local.path());
    let servers: Vec<String> = cluster.servers().into_iter().filter(|name| name.starts_with("chunk")).collect();
    cluster.kill(&servers); // else scrub heals one from another meanwhile
    for server in &servers {
        damage(&cluster, content, server);
    }
    cluster.up();
    let ended = get(&cluster, &back).must_fail_cleanly();
    assert!(ended.err.contains("/victim"), "the error names the file: {ended}");
    assert!(ended.err.contains("chunk"), "the error names the chunk: {ended}");
    assert!(!back.exists(), "no file, rather than one with a hole or wrong bytes");

    let mount = cluster.mount("all-damaged");
    let error = read(&mount, places().next().unwrap() - 10, 5000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
    let log = cluster.log("all-damaged");
    assert!(log.contains("no good copy of chunk"), "the mount's log says what is lost:\n{log}");
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
        let mount = cluster.mount(mount);
        let bytes = read(&mount, at, 4096).unwrap();
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
