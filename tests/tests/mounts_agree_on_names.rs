//! A name made through one mount is seen by every other mount in its next call, also while those answer "no such name"
//! from memory: when the leader dies, and when a mount stands still for longer than its leases last.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::cluster::Cluster;
use tokio::time::Instant;

/// Names made in the test proper.
const ROUNDS: usize = 200;
/// Looks of each mount at each name before it is made: enough to be answered from memory.
const LOOKS: usize = 3;
/// Several renewals of a lease fit in.
const RENEWALS: Duration = Duration::from_secs(1);
/// Longer than a lease, shorter than a session.
const STANDSTILL: Duration = Duration::from_secs(3);

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Makes the name in one of the ways there are.
fn make(round: usize, dir: &Path, name: &str) {
    let path = dir.join(name);
    match round % 5 {
        0 => fs::write(&path, "x").unwrap(),
        1 => fs::create_dir(&path).unwrap(),
        2 => std::os::unix::fs::symlink("nowhere", &path).unwrap(),
        3 => fs::hard_link(dir.join("first"), &path).unwrap(),
        _ => {
            let temporary = dir.join(format!("{name}.tmp"));
            fs::write(&temporary, "x").unwrap();
            fs::rename(temporary, &path).unwrap();
        }
    }
}

/// One name: missing for everybody, made by one mount, there for everybody.
fn round(round: usize, dirs: &[PathBuf]) {
    let name = format!("name-{round}");
    for dir in dirs {
        for look in 0..LOOKS {
            assert!(
                !exists(&dir.join(&name)),
                "round {round}, look {look}: {} is there before it is made",
                dir.display()
            );
        }
    }
    make(round, &dirs[round % dirs.len()], &name);
    for dir in dirs {
        assert!(exists(&dir.join(&name)), "round {round}: {} does not show what was made elsewhere", dir.display());
    }
}

#[test]
fn a_name_made_on_one_mount_is_there_on_all() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let dirs: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| cluster.mount(name).join("dir")).collect();
    fs::create_dir(&dirs[0]).unwrap();
    fs::write(dirs[0].join("first"), "x").unwrap();
    for number in 0..ROUNDS {
        round(number, &dirs);
    }

    // The new leader knows of no lease that the old one gave.
    for number in ROUNDS..ROUNDS + 2 {
        for dir in &dirs {
            for look in 0..20 {
                assert!(!exists(&dir.join(format!("missing-{number}-{look}"))));
            }
        }
        let leader = cluster.leader();
        cluster.kill(&[&leader]);
        round(number, &dirs);
        cluster.start_server(&leader);
        cluster.up();
    }

    // Who stands still holds up a change no longer than its lease lasts, and does not believe in it afterwards.
    let last = ROUNDS + 2;
    for number in last..last + 2 {
        let name = format!("name-{number}");
        for _ in 0..LOOKS {
            assert!(dirs.iter().all(|dir| !exists(&dir.join(&name))));
        }
        assert!(cluster.signal_if_running("c", Signal::SIGSTOP));
        fs::write(dirs[0].join(&name), "x").unwrap();
        assert!(exists(&dirs[1].join(&name)));
        std::thread::sleep(STANDSTILL);
        assert!(cluster.signal_if_running("c", Signal::SIGCONT));
        let end = Instant::now() + RENEWALS;
        while Instant::now() < end {
            assert!(!exists(&dirs[2].join("never made"))); // its leases are renewed meanwhile
        }
        assert!(exists(&dirs[2].join(&name)), "a mount that stood still shows an old listing");
    }
    for name in ["a", "b", "c"] {
        cluster.unmount(name);
    }
}
