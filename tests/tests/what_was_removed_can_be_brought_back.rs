//! What was removed can be brought back, whole, while the undelete window lasts: a tree, a file that another one replaced,
//! after the leader died. When the window is over, or the trash is emptied, the space comes back.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::Content;
use tests::tree::{assert_same, make_sample};
use tests::wait::wait_until;

/// What the trash lets go is taken apart, and every server deletes its copies.
const GONE_LIMIT: Duration = Duration::from_secs(120);
/// Longer than one extent in the metadata: two chunks.
const LEN: u64 = 5 << 20;
const FILES: usize = 40;

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

fn trash(cluster: &Cluster, args: &[&str]) -> Vec<Value> {
    let said = cluster.dfs(&[&["trash", "ls", "--json"][..], args].concat()).must();
    serde_json::from_slice::<Vec<Value>>(&said.out).unwrap()
}

fn sh(script: &str, at: &Path) {
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(at), Duration::from_secs(120)).must();
}

/// Nothing is referred to any more, and no server holds anything.
fn is_empty(cluster: &Cluster) -> bool {
    cluster.dfs(&["admin", "gc", "run"]).must();
    let status = cluster.status();
    let servers = status["chunkservers"].as_array().unwrap();
    number(&status, "chunks") == 0 && servers.iter().all(|server| number(server, "chunks") == 0)
}

#[test]
fn a_removed_tree_comes_back_whole_after_the_leader_died_and_its_space_when_the_window_is_over() {
    tests::skip_if!(no_mount, no_attr_tools);
    let mut cluster = Cluster::start();
    let (mnt, local) = (cluster.mount("m"), tempfile::tempdir().unwrap());
    let sample = local.path().join("tree");
    make_sample(&sample, FILES);
    let big = Content::new(12, 1, 1);
    big.write_file(&sample.join("big"), LEN).unwrap();
    // Empty files that lived for a moment are not kept.
    sh("find \"$1\" -type f -empty -exec touch -d yesterday {} +", &sample);
    run(Command::new("cp").arg("-a").arg(&sample).arg(&mnt), Duration::from_secs(120)).must();
    let tree = mnt.join("tree");
    xattr(&tree.join("big"), &["-n", "user.note", "-v", "kept"]);
    std::fs::set_permissions(tree.join("odd"), std::fs::Permissions::from_mode(0o2751)).unwrap();
    let before = std::fs::metadata(tree.join("big")).unwrap();
    let inodes = number(&cluster.status(), "inodes");

    std::fs::remove_dir_all(&tree).unwrap();
    let there = trash(&cluster, &["/tree"]);
    assert!(there.len() > FILES, "{there:#?}");
    assert!(there.iter().any(|entry| entry["path"] == "/tree/big" && number(entry, "size") == LEN), "{there:#?}");
    assert!(number(&cluster.status(), "inodes") < inodes - 40, "the trash is counted apart");
    let gc = cluster.dfs(&["admin", "gc", "run"]).must();
    assert!(gc.text().contains("entries of the trash"), "{gc}");
    let refused = cluster.dfs(&["undelete", "/tree/big"]).must_fail_cleanly();
    assert!(refused.err.contains("dfs undelete /tree") && refused.err.contains("--parents"), "{refused}");

    let leader = cluster.leader();
    cluster.kill(&[&leader]);
    cluster.dfs(&["undelete", "/tree"]).must();
    wait_until("the mount to see it", GONE_LIMIT, || tree.join("big").exists());
    std::fs::set_permissions(sample.join("odd"), std::fs::Permissions::from_mode(0o2751)).unwrap();
    assert_same(&sample, &tree);
    let after = std::fs::metadata(tree.join("big")).unwrap();
    assert_eq!((after.mode(), after.uid(), after.mtime()), (before.mode(), before.uid(), before.mtime()));
    assert!(xattr(&tree.join("big"), &["-n", "user.note"]).contains("kept"));
    assert_eq!(trash(&cluster, &[]), Vec::<Value>::new());
    cluster.start_server(&leader);
    cluster.dfs(&["admin", "fsck", "--data"]).must();

    std::fs::remove_dir_all(&tree).unwrap();
    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    cluster.dfs(&["admin", "gc", "run"]).must();
    assert!(number(&cluster.status(), "chunks") > 0, "the window is not over");
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=1", "--yes"]).must();
    wait_until("the space to come back", GONE_LIMIT, || is_empty(&cluster));
    assert_eq!(trash(&cluster, &[]), Vec::<Value>::new());
    cluster.dfs(&["undelete", "/tree"]).must_fail_cleanly();
    cluster.dfs(&["admin", "fsck"]).must();
}

/// Sets or shows an extended attribute, as a program does.
fn xattr(path: &Path, args: &[&str]) -> String {
    let program = if args.contains(&"-v") { "setfattr" } else { "getfattr" };
    let args = args.iter().filter(|arg| program == "setfattr" || **arg != "-v");
    run(Command::new(program).args(args).arg(path), Duration::from_secs(60)).must().text().to_owned()
}

#[test]
fn a_replaced_file_and_one_whose_directory_is_gone_come_back_elsewhere_and_the_trash_can_be_emptied() {
    let (cluster, local) = (Cluster::start_with(1, 3), tempfile::tempdir().unwrap());
    let path = |text: &str| local.path().join(text);
    let put = |version: u64, to: &str| {
        Content::new(13, 1, version).write_file(&path("source"), LEN).unwrap();
        cluster.dfs(&["put", path("source").to_str().unwrap(), to]).must();
    };
    let is = |from: &str, version: u64| {
        let _ = std::fs::remove_file(path("back"));
        cluster.dfs(&["get", from, path("back").to_str().unwrap()]).must();
        Content::new(13, 1, version).check_file(&path("back"), LEN).unwrap();
    };
    cluster.dfs(&["mkdir", "/d"]).must();
    for version in [1, 2] {
        put(version, "/d/new");
        cluster.dfs(&["mv", "/d/new", "/d/file"]).must();
    }
    is("/d/file", 2);
    let taken = cluster.dfs(&["undelete", "/d/file"]).must_fail_cleanly();
    assert!(taken.err.contains("--to"), "{taken}");
    cluster.dfs(&["undelete", "/d/file", "--to", "/d/old"]).must();
    is("/d/old", 1);

    // By id, on the way to a directory that is gone; what was removed from one that is there.
    cluster.dfs(&["rm", "/d/file", "/d/old"]).must();
    cluster.dfs(&["undelete", "/d"]).must();
    is("/d/file", 2);
    is("/d/old", 1);
    cluster.dfs(&["rm", "-r", "/d"]).must();
    let all = trash(&cluster, &["/d/file"]);
    let [entry] = &all[..] else { panic!("{all:#?}") };
    cluster.dfs(&["undelete", entry["id"].as_str().unwrap(), "--parents"]).must();
    is("/d/file", 2);

    cluster.dfs(&["admin", "settings", "set", "grace_s=0"]).must();
    cluster.dfs(&["rm", "-r", "/d"]).must();
    let shown = cluster.dfs(&["trash", "empty"]).must_fail_cleanly();
    assert!(shown.err.contains("--yes") && !trash(&cluster, &[]).is_empty(), "{shown}");
    cluster.dfs(&["trash", "empty", "--yes"]).must();
    wait_until("the space to come back", GONE_LIMIT, || is_empty(&cluster));
    cluster.dfs(&["admin", "fsck"]).must();
}
