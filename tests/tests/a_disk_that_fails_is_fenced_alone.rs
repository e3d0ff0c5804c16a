//! One of a server's disks fails while it runs: its file system turns read-only, as Linux does it after an error. The server
//! goes on with its other disk, says so, and makes what was lost again; nothing acknowledged is missing, no write fails. Then
//! the disk is replaced.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::{COMMAND_LIMIT, Cluster, program};
use tests::command::run;
use tests::damage::files_below;
use tests::data::Data;
use tests::json::number;
use tests::wait::wait_until;

const LEN: u64 = 9 << 20;
/// What was lost is made again within this.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// The disk that fails. It takes no more of the disk below than is written.
const DISK_LEN: &str = "4G";

/// What is put, one file after another.
const DATA: Data = Data { seed: 88, files: 0, len: LEN };

/// A new, empty file system in `image`, at `at`.
fn new_disk(image: &Path, at: &Path) {
    run(Command::new("truncate").arg("-s").arg(DISK_LEN).arg(image), COMMAND_LIMIT).must();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image), COMMAND_LIMIT).must();
    run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(image).arg(at), COMMAND_LIMIT).must();
    std::fs::remove_dir(at.join("lost+found")).unwrap();
}

/// The file system there meets an error, and takes nothing any more.
fn fail(at: &Path) {
    let source = run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(at), COMMAND_LIMIT).must();
    let device = source.text().trim().trim_start_matches("/dev/").to_owned();
    std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "of a test").unwrap();
    assert!(std::fs::write(at.join("x"), "x").is_err(), "it is read-only");
}

/// Starts the server anew with this line in its configuration.
fn restart(cluster: &Cluster, line: &str) {
    configure(cluster, line);
    cluster.start_server("chunk-1");
}

fn configure(cluster: &Cluster, line: &str) {
    let file = cluster.dir().join("conf/chunk-1.toml");
    let old = std::fs::read_to_string(&file).unwrap();
    let is_kept = |old: &&str| line.split(" =").next().is_none_or(|key| !old.starts_with(&format!("{key} =")));
    let kept: Vec<&str> = old.lines().filter(is_kept).collect();
    std::fs::write(&file, format!("{line}\n{}", kept.join("\n"))).unwrap();
}

fn bytes_in(dir: &Path) -> u64 {
    files_below(dir).iter().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum()
}

#[test]
fn a_server_goes_on_with_its_other_disk() {
    tests::skip_if!(no_root);
    let (cluster, local) = (Cluster::prepare(), tempfile::tempdir().unwrap());
    let (first, second) = (cluster.data("chunk-1"), cluster.data("chunk-1").with_file_name("chunk-1-second"));
    let image = cluster.dir().join("second.img");
    // Of one size, so that both get some.
    for (image, at) in [(&cluster.dir().join("first.img"), &first), (&image, &second)] {
        std::fs::create_dir_all(at).unwrap();
        new_disk(image, at);
    }
    cluster.up();
    cluster.kill(&["chunk-1"]);
    configure(&cluster, "missing_dirs = \"create\"");
    restart(&cluster, &format!("data_dirs = {:?}", [&first, &second]));
    let server = cluster.server_id("chunk-1");
    let its = |status: &Value| {
        let all = status["chunkservers"].as_array().unwrap();
        all.iter().find(|one| one["server"] == server && one["up"] == true).cloned()
    };
    let fenced = || its(&cluster.status()).map(|its| number(&its, "fenced_dirs"));
    wait_until("both disks", HEAL_LIMIT, || fenced() == Some(0) && cluster.status()["health"] == "ok");
    (1..=4).for_each(|file| DATA.put_one(&cluster, local.path(), file));
    assert!(bytes_in(&first) > LEN && bytes_in(&second) > LEN, "both have some");

    fail(&second);
    (5..=7).for_each(|file| DATA.put_one(&cluster, local.path(), file)); // none of these may fail
    wait_until("that disk to be given up", HEAL_LIMIT, || fenced() == Some(1));
    let status = cluster.status();
    let text = format!("data directories are out of use on s{server}");
    assert!(status["health"] == "warning" && status["why"].to_string().contains(&text), "{status:#}");
    wait_until("what it had, on the other one", HEAL_LIMIT, || {
        let found = cluster.dfs(&["admin", "fsck", "--data"]);
        eprintln!("{}", found.text()); // the last one, if it never ends
        eprintln!("{}", cluster.dfs(&["admin", "status"]).text());
        found.ok()
    });
    assert!(bytes_in(&first) >= 7 * LEN, "it has all of it");
    cluster.kill(&["chunk-2", "chunk-3"]);
    DATA.check_some(&cluster, local.path(), 1..=7); // from this server alone
    cluster.up();

    // It is taken out of the configuration: all is well without it.
    cluster.kill(&["chunk-1"]);
    restart(&cluster, &format!("data_dirs = {:?}", [&first]));
    wait_until("health without it", HEAL_LIMIT, || fenced() == Some(0) && cluster.status()["health"] == "ok");

    // A new one comes in its place; where a directory without a store may be a disk that is not mounted, the server says so.
    cluster.kill(&["chunk-1"]);
    run(Command::new("umount").arg(&second), COMMAND_LIMIT).must();
    new_disk(&image, &second);
    configure(&cluster, &format!("data_dirs = {:?}", [&first, &second]));
    configure(&cluster, "missing_dirs = \"refuse\"");
    let config = cluster.dir().join("conf/chunk-1.toml");
    let refused = run(Command::new(program("chunkserver")).arg("--config").arg(config), COMMAND_LIMIT);
    assert!(!refused.ok() && format!("{refused}").contains(second.to_str().unwrap()), "{refused}");
    restart(&cluster, "missing_dirs = \"create\"");
    wait_until("a new disk in its place", HEAL_LIMIT, || fenced() == Some(0) && cluster.status()["health"] == "ok");
    DATA.put_one(&cluster, local.path(), 8);
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    DATA.check_some(&cluster, local.path(), 1..=8);
}
