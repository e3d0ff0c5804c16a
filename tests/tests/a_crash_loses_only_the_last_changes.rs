//! A mount may answer for changes of names and small files before the metaservers have heard of them, while nobody else is
//! about them. When it crashes, what it did last may be lost: never something before that, never half of it, and nothing
//! that was synced, seen by others, or made with `-o sync_metadata`.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;
use tests::cluster::Cluster;
use tokio::time::Instant;

/// Longer than what was answered for may be untold (and the metaservers may take to hear of it, on a busy machine).
const TOLD: Duration = Duration::from_secs(3);

fn bytes(number: usize) -> Vec<u8> {
    format!("file {number} ").into_bytes().repeat(1 + number % 300)
}

/// One step of a history in which each needs the one before: a file, moved, and its directory's name changed.
fn step(dir: &Path, number: usize) {
    let place = dir.join(format!("d{number}"));
    fs::create_dir(&place).unwrap();
    fs::write(place.join("new"), bytes(number)).unwrap();
    fs::rename(place.join("new"), place.join("file")).unwrap();
    fs::rename(&place, dir.join(format!("done{number}"))).unwrap();
}

/// How many steps are there whole; panics if one is there and one before it is not.
fn whole(dir: &Path) -> usize {
    let names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let done = (0..).take_while(|number| names.contains(&format!("done{number}"))).count();
    for number in 0..done {
        let found = fs::read(dir.join(format!("done{number}/file"))).unwrap();
        assert_eq!(found, bytes(number), "step {number} is there, but not whole");
    }
    let begun = usize::from(names.contains(&format!("d{done}")));
    assert_eq!(names.len(), done + begun, "there is more than the first {done} steps and one begun: {names:?}");
    done
}

#[test]
fn what_a_crashed_mount_has_done_is_there_up_to_some_point() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mut lost = 0;
    for round in 0..6 {
        let mount = cluster.mount("crashes");
        let dir = mount.join(format!("round{round}"));
        fs::create_dir(&dir).unwrap();
        let synced = 40 * round;
        for number in 0..synced {
            step(&dir, number);
        }
        File::open(&dir).unwrap().sync_all().unwrap();
        let more = 30 + 17 * round;
        for number in synced..synced + more {
            step(&dir, number);
        }
        cluster.kill_mount("crashes");
        let other = cluster.mount("looks");
        let there = whole(&other.join(format!("round{round}")));
        assert!(there >= synced, "{synced} steps were synced, {there} are there");
        lost += synced + more - there;
        cluster.unmount("looks");
    }
    assert!(lost > 0, "every change was told before it was answered for: this test has shown nothing");
}

#[test]
fn what_others_have_seen_or_time_has_passed_over_is_not_lost() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (mount, other) = (cluster.mount("crashes"), cluster.mount("looks"));
    let (seen, waited) = (mount.join("seen"), mount.join("waited"));
    [&seen, &waited].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    (0..50).for_each(|number| step(&waited, number));
    std::thread::sleep(TOLD);
    (0..50).for_each(|number| step(&seen, number));
    assert_eq!(whole(&other.join("seen")), 50, "what was answered for is seen by the next who looks");
    cluster.kill_mount("crashes");
    assert_eq!((whole(&other.join("seen")), whole(&other.join("waited"))), (50, 50));
}

#[test]
fn a_mount_with_sync_metadata_loses_nothing() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mount = cluster.mount_with("synced", &["-o", "sync_metadata"]);
    (0..20).for_each(|number| step(&mount, number));
    cluster.kill_mount("synced");
    assert_eq!(whole(&cluster.mount("looks")), 20);
}

/// The leader dies while a mount has untold changes: the next one takes them, and nobody sees a state without them.
#[test]
fn a_dead_leader_loses_nothing_of_a_mount_that_lives() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (mount, other) = (cluster.mount("works"), cluster.mount("looks"));
    for round in 0..4 {
        let dir = mount.join(format!("round{round}"));
        fs::create_dir(&dir).unwrap();
        (0..30).for_each(|number| step(&dir, number));
        let leader = cluster.leader();
        (30..60).for_each(|number| step(&dir, number));
        cluster.kill(&[&leader]);
        let began = Instant::now();
        assert_eq!(whole(&other.join(format!("round{round}"))), 60, "after {:?}", began.elapsed());
        cluster.start_server(&leader);
        File::open(&dir).unwrap().sync_all().unwrap();
    }
    let log = cluster.log("works");
    assert!(!log.contains("lost"), "{log}");
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 4);
}

/// What was lost is told: to who has a file open, and to who syncs.
#[test]
fn changes_that_are_lost_are_told_of() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (mount, other) = (cluster.mount("stopped"), cluster.mount("looks"));
    fs::create_dir(mount.join("dir")).unwrap();
    let (dir, open) = (File::open(mount.join("dir")).unwrap(), File::create(mount.join("dir/open")).unwrap());
    dir.sync_all().unwrap();
    // The mount stops with changes that nobody has heard of; others have waited long enough for it.
    let pid = nix::unistd::Pid::from_raw(cluster.mount_pid("stopped").try_into().unwrap());
    fs::write(mount.join("dir/untold"), b"x").unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    fs::write(other.join("dir/untold"), b"y").unwrap();
    File::open(other.join("dir/untold")).unwrap().sync_all().unwrap();
    let waited = began.elapsed();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    if waited < Duration::from_secs(2) {
        return; // it was told before the mount stopped
    }
    let told = tests::wait::wait_for("a sync to say what was lost", Duration::from_secs(20), || {
        dir.sync_all().err().or_else(|| open.sync_all().err())
    })
    .0;
    assert_eq!(told.raw_os_error(), Some(nix::libc::EIO));
    assert_eq!(fs::read(mount.join("dir/untold")).unwrap(), b"y");
    fs::write(mount.join("dir/after"), b"z").unwrap();
    assert_eq!(fs::read(other.join("dir/after")).unwrap(), b"z", "and it goes on");
}
