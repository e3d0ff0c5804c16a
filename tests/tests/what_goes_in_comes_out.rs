//! What was stored through the mount or with `dfs put` comes back the other way, byte for byte, also after every
//! process was restarted.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::{Content, full};
use tests::tree::{assert_same, make_sample};

/// Copying a sample takes this long at most.
const COPY_LIMIT: Duration = Duration::from_secs(400);
/// Files of the real tree.
const FILES: usize = 5_000;

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to), COPY_LIMIT).must();
}

/// Stops and starts every process of the cluster, and mounts again.
fn restart(cluster: &mut Cluster) -> std::path::PathBuf {
    cluster.unmount("m");
    cluster.dev("down", &[]).must();
    assert!(cluster.servers().iter().all(|name| cluster.pid(name).is_none()), "down leaves nothing running");
    cluster.up();
    cluster.mount("m")
}

#[test]
fn a_real_tree_goes_in_one_way_and_comes_out_the_other() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let local = tempfile::tempdir().unwrap();
    let tree = local.path().join("tree");
    make_sample(&tree, FILES);
    let mut mnt = cluster.mount("m");

    copy(&tree, &mnt.join("by-mount"));
    let put = cluster.command(&["put", "-r", tree.to_str().unwrap(), "/by-put"]);
    run(&mut { put }, COPY_LIMIT).must();
    for round in ["first", "after a restart"] {
        let back = local.path().join(format!("back {round}"));
        let get = cluster.command(&["get", "-r", "/by-mount", back.to_str().unwrap()]);
        run(&mut { get }, COPY_LIMIT).must();
        assert_same(&tree, &back);
        assert_same(&tree, &mnt.join("by-put"));
        mnt = restart(&mut cluster);
    }
    assert_same(&tree, &mnt.join("by-mount"));
}

#[test]
fn a_big_file_goes_in_one_way_and_comes_out_the_other() {
    tests::skip_if!(no_mount);
    let len: u64 = if full() { 1 << 30 } else { 256 << 20 };
    let odd = len + 12_345;
    let mut cluster = Cluster::start();
    let local = tempfile::tempdir().unwrap();
    let (first, second) = (Content::new(1, 1, 1), Content::new(1, 2, 1));
    let big = local.path().join("big");
    first.write_file(&big, odd).unwrap();
    let mut mnt = cluster.mount("m");

    run(&mut cluster.command(&["put", big.to_str().unwrap(), "/by-put"]), COPY_LIMIT).must();
    second.write_file(&mnt.join("by-mount"), odd).unwrap();
    for round in 0..2 {
        let back = local.path().join(format!("back-{round}"));
        run(&mut cluster.command(&["get", "/by-mount", back.to_str().unwrap()]), COPY_LIMIT).must();
        second.check_file(&back, odd).unwrap();
        first.check_file(&mnt.join("by-put"), odd).unwrap();
        second.check_file(&mnt.join("by-mount"), odd).unwrap();
        std::fs::remove_file(&back).unwrap();
        mnt = restart(&mut cluster);
    }
    assert_eq!(run(&mut cluster.command(&["cat", "/by-put"]), COPY_LIMIT).must().out, std::fs::read(&big).unwrap());
}
