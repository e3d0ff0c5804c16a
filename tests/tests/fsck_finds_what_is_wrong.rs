//! `dfs admin fsck` says "clean" of a cluster that is, and finds what was broken behind its back: damaged copies, copies
//! that are missing, servers that do not answer, and what is lost by file and range. Only who has the administrator's key
//! may run it. What is wrong in the namespace is mended. (That every defect of it is found and mended is tested on the rows, in the
//! metaserver.)

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use common::id::InodeId;
use common::kv::rocks::{RocksKv, Tuning};
use common::kv::{Batch, Kv, KvRead};
use common::name::Name;
use metaserver::store::keys;
use metaserver::store::values::{Dentry, Value as _};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::damage::flip_stored;
use tests::wait::wait_until;

const CHUNK: u64 = 4 << 20;
/// Three chunks.
const LEN: u64 = 3 * CHUNK;
/// In the second chunk.
const DAMAGED_AT: u64 = CHUNK + 1000;

/// `dfs admin fsck --json ARGS`: what it printed, and its exit code.
fn fsck(cluster: &Cluster, args: &[&str]) -> (Value, i32) {
    let ended = cluster.dfs(&[&["admin", "fsck", "--json"], args].concat());
    let found = serde_json::from_slice(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended}"));
    (found, ended.code.unwrap())
}

#[track_caller]
fn must_be_clean(cluster: &Cluster, args: &[&str]) -> Value {
    let (found, code) = fsck(cluster, args);
    assert!(found["clean"] == true && code == 0, "{args:?}: {found:#}");
    found
}

fn count(found: &Value, kind: &str) -> u64 {
    found["counts"][kind].as_u64().unwrap_or(0)
}

#[test]
fn fsck_tells_what_is_damaged_missing_and_lost() {
    let cluster = Cluster::start_with(1, 3);
    let (content, local) = (Content::new(9, 1, 1), tempfile::tempdir().unwrap());
    let other = Content::new(9, 2, 1);
    for (name, file) in [("victim", content), ("other", other)] {
        file.write_file(&local.path().join(name), LEN).unwrap();
    }
    cluster.dfs(&["mkdir", "/d"]).must();
    let source = |name: &str| local.path().join(name).to_str().unwrap().to_owned();
    cluster.dfs(&["put", &source("victim"), "/d/victim"]).must();
    cluster.dfs(&["put", &source("other"), "/other"]).must();

    assert_eq!(must_be_clean(&cluster, &[])["chunks"], 6);
    assert_eq!(must_be_clean(&cluster, &["--data"])["bytes_read"], 3 * 2 * LEN);
    assert_eq!(must_be_clean(&cluster, &["/d"])["chunks"], 3);

    let key = local.path().join("key");
    std::fs::write(&key, "a key that is not this cluster's").unwrap();
    let mut command = cluster.command(&["admin", "fsck"]);
    command.env("DFS_ADMIN_KEY_FILE", &key);
    let ended = tests::command::run(&mut command, tests::cluster::COMMAND_LIMIT).must_fail_cleanly();
    assert!(ended.err.contains("not signed with the administrator's key"), "{ended}");

    let damage = |server: &str, content: Content| {
        assert_eq!(flip_stored(&cluster.data(server), &content.bytes(DAMAGED_AT, 32)), 1);
    };
    damage("chunk-1", other);
    let (found, code) = fsck(&cluster, &["--data"]);
    assert_eq!(
        (code, count(&found, "corrupt"), count(&found, "short"), count(&found, "lost")),
        (1, 1, 1, 0),
        "{found:#}"
    );
    must_be_clean(&cluster, &["/d", "--data"]);
    // The check has told the server that its copy is damaged: it fetches another one.
    wait_until("the copy to be sound again", PROCESS_LIMIT, || fsck(&cluster, &["/other", "--data"]).1 == 0);

    for server in ["chunk-1", "chunk-2", "chunk-3"] {
        damage(server, content);
    }
    let (found, code) = fsck(&cluster, &["/d", "--data"]);
    assert_eq!((code, count(&found, "lost")), (1, 1), "{found:#}");
    let lost = found["findings"].as_array().unwrap().iter().find(|finding| finding["kind"] == "lost").unwrap();
    let wanted = serde_json::json!([{ "path": "/d/victim", "from": CHUNK, "to": 2 * CHUNK }]);
    assert_eq!(lost["files"], wanted, "{found:#}");
    assert_eq!(fsck(&cluster, &["--repair", "--data", "/d"]).1, 1, "what is lost stays lost");
    cluster.dfs(&["cat", "/other"]).must();

    // A server that does not answer: what it has is not called lost, and not called fine.
    cluster.kill(&["chunk-2"]);
    let (found, code) = fsck(&cluster, &["/other"]);
    assert_eq!(
        (code, count(&found, "server"), count(&found, "short"), count(&found, "lost")),
        (1, 1, 3, 0),
        "{found:#}"
    );
    cluster.kill(&["chunk-1", "chunk-3"]);
    let (found, code) = fsck(&cluster, &["--repair", "/other"]);
    assert_eq!(
        (code, count(&found, "server"), count(&found, "unreachable"), count(&found, "lost")),
        (1, 3, 3, 0),
        "{found:#}"
    );
    let unreachable = found["findings"].as_array().unwrap().iter().find(|finding| finding["kind"] == "unreachable");
    assert_eq!(unreachable.unwrap()["files"][0]["path"], "/other", "{found:#}");
}

#[test]
fn copies_that_are_gone_are_handed_to_repair() {
    let cluster = Cluster::start_with(1, 3);
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    Content::new(9, 3, 1).write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), "/file"]).must();
    // The disk of one server is replaced by an empty one: it comes back as another server.
    cluster.kill(&["chunk-3"]);
    std::fs::remove_dir_all(cluster.data("chunk-3")).unwrap();
    std::fs::create_dir(cluster.data("chunk-3")).unwrap();
    let (found, code) = fsck(&cluster, &[]);
    assert_eq!((code, count(&found, "short"), count(&found, "lost")), (1, 3, 0), "{found:#}");
    let (found, _) = fsck(&cluster, &["--repair"]);
    assert_eq!(found["repaired"], 3, "{found:#}");
    assert_eq!(cluster.status()["degraded"], 3);
    let (found, _) = fsck(&cluster, &["--repair"]);
    assert_eq!((count(&found, "short"), &found["repaired"]), (3, &0.into()), "known by now: {found:#}");
}

/// What a command says of one path.
fn ino(cluster: &Cluster, path: &str) -> InodeId {
    let said = cluster.json(&["stat", "--json", path]);
    let said = if said.is_array() { &said[0] } else { &said };
    InodeId(said["ino"].as_u64().unwrap())
}

/// Changes rows of the only metaserver's store, while it does not run.
fn damage_rows(cluster: &Cluster, damage: impl FnOnce(&RocksKv, &mut Batch)) {
    let pid = cluster.pid("meta-1").unwrap();
    assert!(cluster.signal_if_running("meta-1", Signal::SIGTERM));
    tests::cluster::wait_gone(&[pid]);
    let state = cluster.data("meta-1").join("state");
    let is_store = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("kv-");
    let stores: Vec<_> =
        std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path()).filter(is_store).collect();
    assert_eq!(stores.len(), 1, "{stores:?}");
    let kv = RocksKv::open(&stores[0], &keys::FAMILIES, &Tuning::default()).unwrap();
    let mut batch = Batch::default();
    damage(&kv, &mut batch);
    kv.write(batch).unwrap();
    kv.flush().unwrap();
    drop(kv);
    cluster.up();
}

#[test]
fn what_is_wrong_in_the_namespace_is_mended() {
    let cluster = Cluster::start_with(1, 3);
    let (content, local) = (Content::new(9, 4, 1), tempfile::tempdir().unwrap());
    let [source, back] = ["source", "back"].map(|name| local.path().join(name));
    content.write_file(&source, LEN).unwrap();
    cluster.dfs(&["mkdir", "-p", "/d/sub"]).must();
    for path in ["/d/file", "/d/sub/leaf"] {
        cluster.dfs(&["put", source.to_str().unwrap(), path]).must();
    }
    must_be_clean(&cluster, &[]);

    let (dir, sub) = (ino(&cluster, "/d"), ino(&cluster, "/d/sub"));
    damage_rows(&cluster, |kv, batch| {
        let mut lose = |name: &str, all: bool| {
            let entry = keys::dentry(dir, &Name::new(name).unwrap());
            let cookie = Dentry::decode(&kv.get(keys::DENTRY, &entry).unwrap().unwrap()).unwrap().cookie;
            batch.delete(keys::LIST, keys::list(dir, cookie));
            if all {
                batch.delete(keys::DENTRY, entry);
            }
        };
        lose("file", false);
        lose("sub", true);
    });
    let (found, code) = fsck(&cluster, &[]);
    assert!(code == 1 && count(&found, "namespace") > 2 && found["unmended"] == 0, "{found:#}");
    let (found, code) = fsck(&cluster, &["--repair"]);
    assert!(code == 0 && found["repaired"].as_u64().unwrap() > 2, "{found:#}");
    must_be_clean(&cluster, &["--data"]);

    assert!(cluster.dfs(&["ls", "/d"]).must().text().contains("file"), "a listing has it again");
    for path in ["/d/file".to_owned(), format!("/lost+found/{sub}/leaf")] {
        let _not_there = std::fs::remove_file(&back);
        cluster.dfs(&["get", &path, back.to_str().unwrap()]).must();
        content.check_file(&back, LEN).unwrap();
    }
}
