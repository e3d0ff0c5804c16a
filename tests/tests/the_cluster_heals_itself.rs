//! After a server missed writes, was lost with its disk, or was away for so long that others took over, every chunk is
//! back at three verified copies without a hand, and only what was missing is copied.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::damage::flip_stored;
use tests::json::number;
use tests::wait::wait_until;

/// Everything is back within this.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a file: some chunks of full size and one of another.
const LEN: u64 = (20 << 20) + 12_345;

fn put(cluster: &Cluster, local: &Path, file: u64) {
    let source = local.join(format!("f{file}"));
    Content::new(9, file, 1).write_file(&source, LEN).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), &format!("/f{file}")]).must();
}

fn check(cluster: &Cluster, local: &Path, files: u64) {
    for file in 1..=files {
        let back = local.join("back");
        let _ = std::fs::remove_file(&back);
        cluster.dfs(&["get", &format!("/f{file}"), back.to_str().unwrap()]).must();
        Content::new(9, file, 1).check_file(&back, LEN).unwrap();
    }
}

/// The id that the cluster gave a chunkserver last.
fn id(cluster: &Cluster, name: &str) -> u64 {
    let log = cluster.log(name);
    let (_, rest) = log.rsplit_once("registered server=s").unwrap_or_else(|| panic!("{name} has not registered"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// What one server said of repair; `None` if nothing yet.
fn report(status: &Value, server: u64) -> Option<&Value> {
    let reports = status["keep"]["servers"].as_array().unwrap();
    reports.iter().find(|report| report["server"] == server && number(report, "age_ms") < 3000)
}

/// True if these servers have compared everything under the present layout, nothing is missing, nothing is too much, and
/// their copies add up to three of each chunk.
fn is_whole(status: &Value, servers: &[u64]) -> bool {
    let keep = &status["keep"];
    let done = |server: &u64| {
        report(status, *server)
            .is_some_and(|r| r["compared"] == keep["layout"] && number(r, "missing") + number(r, "extra") == 0)
    };
    let all = status["chunkservers"].as_array().unwrap();
    let listed = all.iter().filter(|server| servers.contains(&number(server, "server")));
    let copies: u64 = listed.map(|server| number(server, "chunks")).sum();
    servers.iter().all(done) && status["degraded"] == 0 && copies == 3 * number(status, "chunks")
}

fn wait_whole(cluster: &Cluster, servers: &[u64], why: &str) -> Value {
    let took = wait_until(why, HEAL_LIMIT, || {
        let status = cluster.status();
        if status["keep"]["missing"] == 0 && !is_whole(&status, servers) {
            cluster.dfs(&["admin", "gc", "run"]); // what was moved lately would be kept for a minute
        }
        is_whole(&status, servers)
    });
    eprintln!("{why}: {took:?}");
    cluster.status()
}

/// A cluster that takes a server out after 12 s.
fn start(chunkservers: usize) -> Cluster {
    let cluster = Cluster::start_with(1, chunkservers);
    cluster.configure("conf/meta-1.toml", "down_out_s = 12");
    cluster.kill(&["meta-1"]);
    cluster.up();
    cluster
}

#[test]
fn a_server_that_was_away_fetches_what_it_missed_and_nothing_else() {
    let cluster = Cluster::start_with(1, 3);
    let local = tempfile::tempdir().unwrap();
    put(&cluster, local.path(), 1);
    let before = number(&cluster.status(), "chunks");
    cluster.kill(&["chunk-2"]);
    put(&cluster, local.path(), 2);
    let status = cluster.status();
    let missed = number(&status, "chunks") - before;
    assert_eq!(number(&status, "degraded"), missed, "every chunk of the second file has two copies");

    cluster.start_server("chunk-2");
    let status = wait_whole(&cluster, &[1, 2, 3], "what a server missed is fetched");
    assert_eq!(number(report(&status, id(&cluster, "chunk-2")).unwrap(), "remade"), missed);
    cluster.kill(&["chunk-1", "chunk-3"]);
    check(&cluster, local.path(), 2); // from this server alone, verified
}

#[test]
fn damage_that_nobody_reads_is_found_and_healed_and_space_of_removed_files_comes_back() {
    let cluster = Cluster::start_with(1, 3);
    let local = tempfile::tempdir().unwrap();
    put(&cluster, local.path(), 1);
    put(&cluster, local.path(), 2);
    let held = number(&cluster.status(), "chunk_bytes");

    let flipped = flip_stored(&cluster.data("chunk-1"), &Content::new(9, 1, 1).bytes(5 << 20, 64));
    assert_eq!(flipped, 1);
    let one = id(&cluster, "chunk-1");
    wait_until("it reports", HEAL_LIMIT, || report(&cluster.status(), one).is_some());
    cluster.dfs(&["admin", "scrub", "run"]).must();
    wait_until("scrub finds the damage, and repair heals it", HEAL_LIMIT, || {
        let status = cluster.status();
        report(&status, one).is_some_and(|r| number(r, "scrub_damaged") == 1 && number(r, "remade") == 1)
    });
    let well = || cluster.status()["health"] == "ok";
    wait_until("the cluster to say that it is well", HEAL_LIMIT, well);

    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    cluster.dfs(&["rm", "/f2"]).must();
    let said = cluster.dfs(&["admin", "gc", "run"]).must();
    eprintln!("{}", said.text());
    let status = cluster.status();
    let deleted = number(&status["keep"], "deleted_bytes");
    assert_eq!(deleted, 3 * (held - number(&status, "chunk_bytes")), "every copy of the removed file, and no other");
    assert!(deleted > 0);
    cluster.kill(&["chunk-2", "chunk-3"]);
    check(&cluster, local.path(), 1); // from the healed one alone, verified
}

#[test]
fn a_lost_server_is_made_again_elsewhere_and_one_that_returns_gives_back() {
    let cluster = start(4);
    let local = tempfile::tempdir().unwrap();
    put(&cluster, local.path(), 1);
    let [one, two, three, four] = ["chunk-1", "chunk-2", "chunk-3", "chunk-4"].map(|name| id(&cluster, name));
    wait_whole(&cluster, &[one, two, three, four], "a whole cluster of four");

    // It stays away: the others take over its share. It returns: they give it back.
    cluster.kill(&["chunk-4"]);
    wait_until("it is taken out", HEAL_LIMIT, || cluster.status()["keep"]["out"] == serde_json::json!([four]));
    wait_whole(&cluster, &[one, two, three], "its share is made again");
    cluster.start_server("chunk-4");
    wait_until("it is in again", HEAL_LIMIT, || cluster.status()["keep"]["out"] == serde_json::json!([]));
    let status = wait_whole(&cluster, &[one, two, three, four], "its share is given back");
    // One, if a pass ran between its registration and the end of its recovery.
    assert!(number(report(&status, four).unwrap(), "remade") <= 1, "it had everything");
    assert!(number(&status["keep"], "deleted") > 0, "the others had copies too many");
    let events = cluster.json(&["admin", "events", "--json"]).to_string();
    for what in [format!("chunkserver s{four} was down for"), format!("chunkserver s{four} is back")] {
        assert!(events.contains(&what), "{what}: {events}");
    }

    // Its disk is lost: it comes back as another server, with nothing. A second one dies before that is made good.
    cluster.kill(&["chunk-4"]);
    std::fs::remove_dir_all(cluster.data("chunk-4")).unwrap();
    cluster.start_server("chunk-4");
    wait_until("it has registered anew", HEAL_LIMIT, || report(&cluster.status(), 5).is_some());
    cluster.kill(&["chunk-1"]);
    wait_whole(&cluster, &[two, three, 5], "two lost servers are made good by the rest");
    cluster.kill(&["chunk-2", "chunk-3"]);
    check(&cluster, local.path(), 1); // from the new one alone, verified
}

/// A disk of a server that has another one: it does not open when the server starts, and is replaced by an empty one.
#[test]
fn a_disk_that_does_not_open_is_made_good_and_can_be_replaced() {
    let cluster = Cluster::start();
    let local = tempfile::tempdir().unwrap();
    let second = cluster.data("chunk-1").with_file_name("chunk-1-second");
    // The second disk comes later, as any new one.
    let restart = |lines: &[(&str, String)]| {
        cluster.kill(&["chunk-1"]);
        let file = cluster.dir().join("conf/chunk-1.toml");
        let old = std::fs::read_to_string(&file).unwrap();
        let is_kept = |line: &&str| !lines.iter().any(|(key, _)| line.starts_with(&format!("{key} =")));
        let kept = old.lines().filter(is_kept).map(str::to_owned);
        let new = lines.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key} = {value}"));
        std::fs::write(&file, new.chain(kept).collect::<Vec<_>>().join("\n")).unwrap();
        cluster.start_server("chunk-1");
    };
    let dirs = format!("{:?}", [cluster.data("chunk-1"), second.clone()]);
    restart(&[("data_dirs", dirs), ("missing_dirs", "\"create\"".into())]);
    restart(&[("missing_dirs", String::new())]);
    let server = id(&cluster, "chunk-1");
    let fenced = |status: &Value| {
        let all = status["chunkservers"].as_array().unwrap();
        all.iter().find(|one| one["server"] == server && one["up"] == true).map(|one| number(one, "fenced_dirs"))
    };
    wait_until("both disks", HEAL_LIMIT, || fenced(&cluster.status()) == Some(0));
    (1..=4).for_each(|file| put(&cluster, local.path(), file));
    assert!(bytes_in(&second) > LEN && bytes_in(&cluster.data("chunk-1")) > LEN, "both have some");

    cluster.kill(&["chunk-1"]);
    std::fs::write(second.join("identity"), b"overwritten by something").unwrap();
    cluster.start_server("chunk-1");
    wait_until("the server without that disk", HEAL_LIMIT, || fenced(&cluster.status()) == Some(1));
    let text = cluster.dfs(&["admin", "status"]).text().to_owned();
    assert!(text.contains(&format!("data directories are out of use on s{server}")), "{text}");
    assert!(cluster.log("chunk-1").contains("data directory left out"));
    wait_until("what it had, on the other one", HEAL_LIMIT, || cluster.dfs(&["admin", "fsck", "--data"]).ok());
    check(&cluster, local.path(), 4);

    std::fs::remove_dir_all(&second).unwrap();
    restart(&[("missing_dirs", "\"create\"".into())]);
    wait_until("a new disk in its place", HEAL_LIMIT, || cluster.status()["health"] == "ok");
    assert_eq!(fenced(&cluster.status()), Some(0));
    put(&cluster, local.path(), 5);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    check(&cluster, local.path(), 5);
}

/// Bytes of what is in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { bytes_in(&path) } else { path.metadata().unwrap().len() }).sum()
}
