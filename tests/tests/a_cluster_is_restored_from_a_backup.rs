//! All metaservers are lost with their disks, and the cluster begins a new life from a backup: what the backup names is
//! there and whole, what came later is gone, and nothing is deleted before a check has found everything sound.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use tests::cluster::{COMMAND_LIMIT, Cluster, PROCESS_LIMIT};
use tests::command::Ended;
use tests::content::Content;
use tests::wait::wait_until;

/// Three chunks.
const LEN: u64 = 12 << 20;
const METASERVERS: [&str; 3] = ["meta-1", "meta-2", "meta-3"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Chunks that the servers that are up hold, added up.
fn copies(cluster: &Cluster) -> u64 {
    let status = cluster.status();
    let servers = status["chunkservers"].as_array().unwrap();
    servers.iter().map(|server| server["chunks"].as_u64().unwrap()).sum()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The largest file of a backup's state.
fn largest(backup: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(backup.join("state")).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

fn restore(cluster: &Cluster, from: &Path, yes: &[&str]) -> Ended {
    cluster.dfs(&[&["admin", "meta", "restore", text(from)], yes].concat())
}

/// What is done to a file of a backup, and its name.
type Damage = (&'static str, fn(&Path));

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn cut(file: &Path) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

/// A byte flipped, one missing, a whole file missing: the error names the file.
fn damaged_ones_are_refused(cluster: &Cluster, backup: &Path, local: &Path) {
    let damages: [Damage; 3] = [("flipped", flip), ("cut", cut), ("missing", |file| fs::remove_file(file).unwrap())];
    for (name, damage) in damages {
        let copy = local.join(name);
        copy_dir(backup, &copy);
        let victim = largest(&copy);
        damage(&victim);
        let refused = restore(cluster, &copy, &["--yes"]).must_fail_cleanly();
        assert!(refused.err.contains(victim.file_name().unwrap().to_str().unwrap()), "{name}: {refused}");
    }
}

#[test]
fn what_a_backup_names_is_back_after_all_metaservers_were_lost() {
    let mut cluster = Cluster::start();
    let (early, late, local) = (Content::new(10, 1, 1), Content::new(20, 2, 1), tempfile::tempdir().unwrap());
    let path = |name: &str| local.path().join(name);
    early.write_file(&path("early"), LEN).unwrap();
    late.write_file(&path("late"), LEN).unwrap();
    cluster.dfs(&["admin", "gc", "resume"]).must();
    cluster.dfs(&["admin", "keep", "--grace-s", "1"]).must();
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    cluster.dfs(&["put", text(&path("early")), "/early"]).must();
    let backup = path("backup");
    let made = cluster.dfs(&["admin", "meta", "backup", text(&backup), "--json"]).must();
    let made: Value = serde_json::from_slice(&made.out).unwrap();
    assert!(made["inodes"] == 2 && made["epoch"] == 1, "{made:#}");
    let again = cluster.dfs(&["admin", "meta", "backup", text(&backup)]).must_fail_cleanly();
    assert!(again.err.contains("there already"), "{again}");
    cluster.dfs(&["put", text(&path("late")), "/late"]).must();
    let with_late = copies_of_six_chunks(&cluster);

    let mounted = cluster.mount("before");
    late.check_file(&mounted.join("late"), LEN).unwrap();
    lose_metadata(&cluster);
    let restored = |yes: &[&str]| restore(&cluster, &backup, yes);
    damaged_ones_are_refused(&cluster, &backup, local.path());
    let plan = restored(&[]).must_fail_cleanly();
    assert!(plan.text().contains("a new life of that cluster would begin") && plan.err.contains("--yes"), "{plan}");
    restored(&["--yes"]).must();
    let not_empty = restored(&["--yes"]).must_fail_cleanly();
    assert!(not_empty.err.contains("is not empty"), "{not_empty}");

    wait_until("the chunkservers to find the new life", PROCESS_LIMIT, || {
        let status = cluster.status();
        status["chunkservers"].as_array().unwrap().iter().all(|server| server["up"] == true)
    });
    assert!(cluster.status()["epoch"].as_u64().unwrap() > 1);
    cluster.dfs(&["get", "/early", text(&path("back"))]).must();
    early.check_file(&path("back"), LEN).unwrap();
    // A mount of the old life goes on in the new one.
    wait_until("the mount to find the new life", PROCESS_LIMIT, || !mounted.join("late").exists());
    early.check_file(&mounted.join("early"), LEN).unwrap();
    fs::write(mounted.join("by the mount"), b"x").unwrap();
    cluster.dfs(&["stat", "/late"]).must_fail_cleanly();
    cluster.dfs(&["put", text(&path("late")), "/new"]).must(); // its chunks are still there

    // What nothing refers to any more stays while deletion is held.
    cluster.dfs(&["rm", "/new"]).must();
    assert!(cluster.status()["deletion_held"].as_u64().is_some());
    let held = cluster.dfs(&["admin", "gc", "run"]).must_fail_cleanly();
    assert!(held.err.contains("deletion is held"), "{held}");
    assert_eq!(copies(&cluster), with_late);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    assert!(cluster.status()["deletion_held"].is_null());
    wait_until("what the backup does not name to be deleted", COMMAND_LIMIT, || {
        cluster.dfs(&["admin", "gc", "run"]).must();
        copies(&cluster) == with_late / 2 // the mount's file is too small for a chunk
    });
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    early.check_file(&mounted.join("early"), LEN).unwrap();
    it_was_noted(&cluster);
    cluster.unmount("before");

    // Once more, on other machines; and who does not want to wait for a check lets deletion go on without one.
    lose_metadata_and_its_addresses(&cluster);
    restore(&cluster, &backup, &["--yes"]).must();
    wait_until("deletion to be held again", PROCESS_LIMIT, || cluster.status()["deletion_held"].as_u64().is_some());
    cluster.dfs(&["admin", "gc", "resume", "--unchecked"]).must_fail_cleanly();
    cluster.dfs(&["admin", "gc", "resume", "--unchecked", "--yes"]).must();
    assert!(cluster.status()["deletion_held"].is_null());
    cluster.dfs(&["admin", "gc", "run"]).must();
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    let _first = fs::remove_file(path("back"));
    cluster.dfs(&["get", "/early", text(&path("back"))]).must();
    early.check_file(&path("back"), LEN).unwrap();
}

/// All metaservers and their disks are lost, and start empty.
fn lose_metadata(cluster: &Cluster) {
    cluster.kill(&METASERVERS);
    for name in METASERVERS {
        fs::remove_dir_all(cluster.data(name)).unwrap();
        cluster.start_server(name);
    }
}

/// Likewise, and those that start listen elsewhere: all configurations follow, and chunkservers are started again for it.
fn lose_metadata_and_its_addresses(cluster: &Cluster) {
    let old = cluster.metaservers();
    let servers = cluster.servers();
    cluster.kill(&servers);
    let listeners: Vec<_> = old.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let new: Vec<String> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(listeners);
    let confs = servers.iter().map(|name| cluster.dir().join(format!("conf/{name}.toml")));
    for file in confs.chain([cluster.dir().join("dfs.toml")]) {
        let mut text = fs::read_to_string(&file).unwrap();
        for (old, new) in old.iter().zip(&new) {
            assert!(text.contains(old.as_str()), "{}: {old}", file.display());
            text = text.replace(old, new);
        }
        fs::write(&file, text).unwrap();
    }
    METASERVERS.iter().for_each(|name| fs::remove_dir_all(cluster.data(name)).unwrap());
    servers.iter().for_each(|name| cluster.start_server(name));
}

/// Waits until every copy of both files is counted; how many there are.
fn copies_of_six_chunks(cluster: &Cluster) -> u64 {
    let all = 2 * (LEN >> 22) * 3;
    wait_until("all copies to be counted", PROCESS_LIMIT, || copies(cluster) == all);
    all
}

fn it_was_noted(cluster: &Cluster) {
    let events = cluster.dfs(&["admin", "events"]).must();
    for told in
        ["backup of the metadata", "metadata restored from a backup", "fsck found nothing wrong after the restore"]
    {
        // The first was noted after the backup was taken, so the new life does not know of it.
        assert_eq!(events.text().contains(told), told != "backup of the metadata", "{told}: {events}");
    }
}
