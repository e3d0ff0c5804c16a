//! A mount that stands still beyond its session (a paused virtual machine, a laptop that slept) comes back by itself with a new
//! one. What it had not saved is reported at the next call of each file that lost some, locks it had are free for others,
//! and nothing it remembers is older than what others did meanwhile.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::json::number;
use tests::wait::wait_until;

/// Sessions end a minute after they were heard of last.
const EXPIRE_LIMIT: Duration = Duration::from_secs(60 + 30);
const EIO: i32 = 5;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[track_caller]
fn is_lost(result: std::io::Result<()>, what: &str) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(EIO), "{what}");
}

#[test]
fn what_a_mount_lost_with_its_session_is_reported_and_it_goes_on() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    for name in ["lost", "read", "locked", "other"] {
        fs::write(a.join(name), "old").unwrap();
        File::open(a.join(name)).unwrap().sync_all().unwrap();
    }
    let (lost, read, other) = (open(&a.join("lost")), open(&a.join("read")), open(&a.join("other")));
    let locked = Flock::lock(open(&a.join("locked")), FlockArg::LockExclusive).unwrap();
    assert!(Flock::lock(open(&b.join("locked")), FlockArg::LockExclusiveNonblock).is_err());
    let sessions = number(&cluster.status(), "sessions");
    lost.write_all_at(b"new", 0).unwrap(); // in the buffer for a second
    assert!(cluster.signal_if_running("a", Signal::SIGSTOP));

    let ended = || number(&cluster.status(), "sessions") < sessions;
    wait_until("the session to end", EXPIRE_LIMIT, ended);
    let theirs = Flock::lock(open(&b.join("locked")), FlockArg::LockExclusiveNonblock).unwrap();
    for name in ["lost", "read", "other"] {
        assert_eq!(fs::read(b.join(name)).unwrap(), b"old", "{name}");
        fs::write(b.join(name), "theirs").unwrap();
        File::open(b.join(name)).unwrap().sync_all().unwrap();
    }
    fs::rename(b.join("other"), b.join("moved")).unwrap();

    assert!(cluster.signal_if_running("a", Signal::SIGCONT));
    // What it knew is out of date, and not told any more.
    let mut buffer = [0; 6];
    read.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"theirs");
    assert!(fs::metadata(a.join("other")).is_err() && fs::read(a.join("moved")).unwrap() == b"theirs");
    // What was lost is said of the file that lost it, each time until it is opened again, and of nothing else.
    is_lost(lost.sync_all(), "sync");
    is_lost(lost.write_all_at(b"more", 0), "write");
    is_lost(locked.write_all_at(b"mine", 0), "a write under a lock that is another's by now");
    other.write_all_at(b"fine", 0).unwrap();
    other.sync_all().unwrap();
    assert_eq!(fs::read(b.join("moved")).unwrap(), b"finers");
    assert_eq!(fs::read(a.join("lost")).unwrap(), b"theirs");
    let again = open(&a.join("lost"));
    again.write_all_at(b"again!", 0).unwrap();
    again.sync_all().unwrap();
    assert_eq!(fs::read(b.join("lost")).unwrap(), b"again!");
    assert_eq!(fs::read(b.join("locked")).unwrap(), b"old");
    drop((theirs, locked, lost));
    wait_until("the lock to be free again", PROCESS_LIMIT, || {
        Flock::lock(open(&a.join("locked")), FlockArg::LockExclusiveNonblock).is_ok()
    });
}
