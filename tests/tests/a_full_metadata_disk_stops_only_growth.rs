//! When the metaservers' disks run full, what makes the metadata grow is refused with "no space"; reads and removals go on,
//! also when nothing at all is free, and over a restart; when there is room again, everything does.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::wait::wait_until;

/// Size of each metaserver's file system: room for its ballast and twice the reserve of a `dfs dev` cluster (128 MiB).
const DISK: &str = "size=320m";
/// One command takes this long at most: a refusal is quick, a fail-over is not.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// A change of the room is noticed within this.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// Names there are to remove.
const NAMES: usize = 12;

/// A path that nothing has.
fn new_name() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    format!("/new-{}", LAST.fetch_add(1, Ordering::Relaxed))
}

/// A mount that begins while nothing may grow, so that it gets no inode numbers to decide changes with, removes all the same.
fn removes_through_a_fresh_mount(cluster: &mut Cluster, name: &str, when: &str) {
    let mnt = cluster.mount(name);
    let dir = mnt.join("for-mounts");
    let here = || std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let before = here();
    for _ in 0..3 {
        std::fs::remove_file(here().pop().unwrap()).unwrap_or_else(|error| panic!("{when}: {error}"));
    }
    assert_eq!(here().len(), before.len() - 3, "{when}");
    let grown = std::fs::create_dir(mnt.join("grown")).map_err(|error| error.raw_os_error());
    assert_eq!(grown, Err(Some(nix::libc::ENOSPC)), "{when}");
    cluster.unmount(name);
}

/// Takes `len` bytes of a file system, or all that is left.
fn fill(dir: &Path, len: Option<u64>) {
    let mut file = File::options().create(true).append(true).open(dir.join("filler")).unwrap();
    let block = vec![1; 1 << 20];
    let mut left = len.unwrap_or(u64::MAX);
    while left > 0 && file.write_all(&block).is_ok() {
        left = left.saturating_sub(1 << 20);
    }
}

/// `dfs admin status` says so, sooner or later.
fn says(cluster: &Cluster, word: &str, why: &str) {
    wait_until(why, NOTICE_LIMIT, || {
        let status = cluster.status();
        let told = status["why"].as_array().unwrap();
        status["health"] == word && told.iter().any(|line| line.as_str().unwrap().starts_with(why))
    });
}

#[test]
fn with_full_metadata_disks_reads_and_removals_go_on_and_growth_is_refused() {
    tests::skip_if!(no_root, no_mount);
    let metas = ["meta-1", "meta-2", "meta-3"];
    let mut cluster = Cluster::prepare();
    for name in metas {
        std::fs::create_dir_all(cluster.data(name)).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "dfs-test"]).arg(cluster.data(name)), COMMAND_LIMIT)
            .must();
    }
    cluster.up();
    let names: Vec<String> = (0..NAMES).map(|n| format!("/name-{n}")).collect();
    let mut names = names.iter().map(String::as_str);
    let all: Vec<&str> = names.clone().collect();
    cluster.dfs(&[&["mkdir"][..], &all].concat()).must();
    let mnt = cluster.mount("early");
    std::fs::create_dir(mnt.join("for-mounts")).unwrap();
    (0..NAMES).for_each(|n| std::fs::write(mnt.join(format!("for-mounts/{n}")), "to be removed").unwrap());
    cluster.unmount("early");
    let mut goes_on = |cluster: &Cluster, when: &str| {
        assert!(cluster.dfs(&["ls", "/"]).must().text().contains(&all[NAMES - 1][1..]), "{when}");
        let gone = names.next().unwrap();
        cluster.dfs(&["rm", "-r", gone]).must();
        assert!(!cluster.dfs(&["ls", "/"]).must().text().lines().any(|name| name == &gone[1..]));
    };
    wait_until("the ballast", NOTICE_LIMIT, || metas.iter().all(|name| cluster.data(name).join("ballast").exists()));

    fill(&cluster.data("meta-1"), Some(150 << 20));
    wait_until("one to be tight", NOTICE_LIMIT, || cluster.log("meta-1").contains("the disk is nearly full"));
    cluster.dfs(&["mkdir", "/one-of-three"]).must();
    says(&cluster, "warning", "1 metaservers have hardly any room");

    fill(&cluster.data("meta-2"), Some(150 << 20));
    wait_until("growth to be refused", NOTICE_LIMIT, || !cluster.dfs(&["mkdir", &new_name()]).ok());
    let refused = cluster.dfs(&["mkdir", "/refused"]).must_fail_cleanly();
    assert!(refused.err.contains("metaservers have room"), "{refused}");
    says(&cluster, "critical", "nothing can be made or written: 1 of 3 metaservers have room");
    goes_on(&cluster, "tight");
    removes_through_a_fresh_mount(&mut cluster, "tight", "tight");

    for name in metas {
        fill(&cluster.data(name), None);
    }
    wait_until("the ballast to go", NOTICE_LIMIT, || {
        !metas.iter().any(|name| cluster.data(name).join("ballast").exists())
    });
    for _ in 0..3 {
        goes_on(&cluster, "full");
    }
    removes_through_a_fresh_mount(&mut cluster, "full", "full");
    cluster.kill(&metas);
    cluster.up();
    goes_on(&cluster, "full, after a restart");
    cluster.dfs(&["mkdir", "/refused"]).must_fail_cleanly();
    assert!(metas.iter().all(|name| cluster.pid(name).is_some()), "none has stopped");

    for name in metas {
        std::fs::remove_file(cluster.data(name).join("filler")).unwrap();
    }
    wait_until("growth to go on", NOTICE_LIMIT, || cluster.dfs(&["mkdir", &new_name()]).ok());
    goes_on(&cluster, "with room");
    wait_until("health", NOTICE_LIMIT, || cluster.status()["health"] == "ok");
}
