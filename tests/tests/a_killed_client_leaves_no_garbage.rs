//! `dfs put` and a mount are killed while they write. What was complete before stays, and once the metaservers have
//! ended their sessions no server holds a chunk that nobody refers to: neither of what was on its way, nor of a file
//! that was open without a name, nor, once that is removed, of what was half written.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::json::number;
use tests::wait::wait_until;

/// A session of which nothing is heard ends after a minute.
const EXPIRE_LIMIT: Duration = Duration::from_secs(60 + 30);
/// Then files are taken apart, and servers delete.
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// Copies of each chunk.
const COPIES: u64 = 3;
/// What is complete: three chunks by the command, two or more on the mount.
const PUT_LEN: u64 = 9 << 20;
const MOUNT_LEN: u64 = 5 << 20;
/// What is not: ten chunks by each.
const PART_LEN: usize = 40 << 20;
/// A file that is open without a name: two chunks.
const NAMELESS_LEN: usize = 8 << 20;
/// Chunks that are stored beyond what is complete before the clients are killed: more than one of them alone has.
const ON_THE_WAY: u64 = 14;

fn content(file: u64) -> Content {
    Content::new(54, file, 1)
}

/// A figure, of all chunkservers together.
fn held(status: &Value, key: &str) -> u64 {
    status["chunkservers"].as_array().unwrap().iter().map(|server| number(server, key)).sum()
}

/// Every copy on every server is one of a chunk that is referred to, and all of those are there.
fn is_tidy(status: &Value) -> bool {
    let same = |held_key: &str, key: &str| held(status, held_key) == COPIES * number(status, key);
    same("chunks", "chunks") && same("chunk_bytes", "chunk_bytes") && number(&status["keep"], "extra") == 0
}

/// Has garbage collected until there is none, and exactly so many chunks if that is known.
fn wait_tidy(cluster: &Cluster, why: &str, chunks: Option<u64>) {
    let took = wait_until(why, GONE_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let status = cluster.status();
        is_tidy(&status) && chunks.is_none_or(|chunks| number(&status, "chunks") == chunks)
    });
    eprintln!("{why}: {took:?}");
}

/// What was complete is right.
fn check(cluster: &Cluster, local: &Path) {
    for (file, len) in [(1, PUT_LEN), (2, MOUNT_LEN)] {
        let back = local.join("back");
        let _not_there = std::fs::remove_file(&back);
        cluster.dfs(&["get", &format!("/kept-{file}"), back.to_str().unwrap()]).must();
        content(file).check_file(&back, len).unwrap();
    }
}

#[test]
fn after_a_put_and_a_mount_were_killed_no_chunk_is_left_that_nobody_refers_to() {
    tests::skip_if!(no_mount);
    let (mut cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    let source = local.path().join("source");
    content(1).write_file(&source, PUT_LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/kept-1"]).must();
    let mnt = cluster.mount("m");
    content(2).write_file(&mnt.join("kept-2"), MOUNT_LEN).unwrap();
    File::open(&mnt).unwrap().sync_all().unwrap();
    wait_tidy(&cluster, "what is complete", None);
    let complete = number(&cluster.status(), "chunks");
    assert!(complete >= 5, "{complete}");

    let mut nameless = File::create(mnt.join("nameless")).unwrap();
    nameless.write_all(&content(3).bytes(0, NAMELESS_LEN)).unwrap();
    nameless.sync_all().unwrap();
    std::fs::remove_file(mnt.join("nameless")).unwrap();
    let mut part = File::create(mnt.join("part")).unwrap();
    part.write_all(&content(4).bytes(0, PART_LEN)).unwrap();
    let mut put = cluster.command(&["put", "-", "/unfinished"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = put.stdin.take().unwrap();
    input.write_all(&content(5).bytes(0, PART_LEN)).unwrap(); // and there is no end of it
    wait_until("chunks of both to be stored", PROCESS_LIMIT, || {
        held(&cluster.status(), "chunks") >= COPIES * (complete + ON_THE_WAY)
    });
    put.kill().unwrap();
    put.wait().unwrap();
    cluster.kill_mount("m");
    drop((input, nameless, part));
    check(&cluster, local.path());

    let took = wait_until("the sessions to be over", EXPIRE_LIMIT, || number(&cluster.status(), "sessions") == 0);
    eprintln!("the sessions were over after {took:?}");
    wait_tidy(&cluster, "nothing but what files refer to", None);
    let listed = cluster.dfs(&["ls", "/"]).must();
    let left: Vec<String> =
        listed.text().lines().filter(|name| !name.starts_with("kept-")).map(|name| format!("/{name}")).collect();
    eprintln!("left: {left:?}");
    assert!(left.iter().all(|name| name == "/part" || name.starts_with("/.dfs-put-")), "{left:?}");
    assert!(left.iter().any(|name| name.starts_with("/.dfs-put-")), "{left:?}"); // for the next put to remove
    let mut words = vec!["rm"];
    words.extend(left.iter().map(String::as_str));
    cluster.dfs(&words).must();
    wait_tidy(&cluster, "nothing but what is complete", Some(complete));
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    check(&cluster, local.path());
}
