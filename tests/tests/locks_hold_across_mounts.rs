//! `flock` and `fcntl` locks hold between programs on different mounts as on one machine: they wait for each other, can be
//! interrupted, see what was written under the lock, and end with who held them.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::wait::{wait_for, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("it opens")
}

fn is_taken(file: &File) -> bool {
    match file.try_lock() {
        Ok(()) => {
            file.unlock().expect("it was locked");
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

/// An `fcntl` lock of a range.
fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    let small = |number: i32| i16::try_from(number).expect("a small number");
    libc::flock { l_type: small(kind), l_whence: small(libc::SEEK_SET), l_start: start, l_len: len, l_pid: 0 }
}

fn set(file: &File, lock: libc::flock) -> Result<i32, Errno> {
    fcntl(file, FcntlArg::F_SETLK(&lock))
}

#[test]
fn a_counter_under_a_lock_misses_nothing() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start();
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    std::fs::write(mounts[0].join("counter"), b"0000").unwrap();
    std::thread::scope(|scope| {
        for mnt in mounts.iter().cycle().take(8) {
            scope.spawn(move || {
                let file = open(&mnt.join("counter"));
                for _ in 0..10 {
                    file.lock().unwrap();
                    let mut bytes = [0; 4];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    let count: u32 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                    file.write_all_at(format!("{:04}", count + 1).as_bytes(), 0).unwrap();
                    file.unlock().unwrap();
                }
            });
        }
    });
    assert_eq!(std::fs::read(mounts[1].join("counter")).unwrap(), b"0080");
}

#[test]
fn ranges_are_locked_between_mounts_and_a_circle_is_refused() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 1);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let [a, b] = mounts.each_ref().map(|mnt| open(&mnt.join("x")));
    set(&a, range(libc::F_WRLCK, 10, 10)).unwrap();
    set(&b, range(libc::F_WRLCK, 0, 10)).unwrap();
    set(&b, range(libc::F_RDLCK, 20, 0)).unwrap();
    assert_eq!(set(&b, range(libc::F_RDLCK, 15, 1)), Err(Errno::EAGAIN));
    let mut found = range(libc::F_RDLCK, 0, 100);
    fcntl(&b, FcntlArg::F_GETLK(&mut found)).unwrap();
    assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (libc::F_WRLCK, 10, 10));
    // The other kind of lock of the same file is another thing.
    a.lock().unwrap();
    assert!(is_taken(&b));
    // One's own lock in the middle goes, what is left of it stays.
    set(&a, range(libc::F_UNLCK, 12, 2)).unwrap();
    set(&b, range(libc::F_WRLCK, 12, 2)).unwrap();
    assert_eq!(set(&b, range(libc::F_WRLCK, 14, 1)), Err(Errno::EAGAIN));

    // Each waits for the other: whoever comes second is refused, and the first gets its lock.
    let wait = |file: &File, start| {
        let result = fcntl(file, FcntlArg::F_SETLKW(&range(libc::F_WRLCK, start, 2)));
        if result == Err(Errno::EDEADLK) {
            set(file, range(libc::F_UNLCK, 0, 0)).unwrap();
        }
        result
    };
    let results = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| wait(&a, 0)), scope.spawn(|| wait(&b, 10))];
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(results.iter().filter(|result| **result == Err(Errno::EDEADLK)).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    // A process that closes any descriptor of the file lets go of its ranges.
    drop(open(&mounts[0].join("x")));
    wait_until("the ranges to go", LIMIT, || set(&b, range(libc::F_WRLCK, 0, 100)).is_ok());
    // The last descriptor takes the other kind along.
    drop(a);
    wait_until("the lock to go with its file", LIMIT, || !is_taken(&b));
}

/// Takes two of six bytes in two files, always in the same order, so that no circle can come about, and lets go of them.
const IN_ORDER: &str = "
import fcntl, random, sys
files = [open(f'{sys.argv[1]}/{name}', 'r+b') for name in range(2)]
random.seed(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    spots = sorted(random.sample([(file, byte) for file in range(2) for byte in range(3)], 2))
    for file, byte in spots: fcntl.lockf(files[file], fcntl.LOCK_EX, 1, byte)
    for file, byte in spots: fcntl.lockf(files[file], fcntl.LOCK_UN, 1, byte)
";

#[test]
fn who_waits_where_there_is_no_circle_gets_the_lock() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 1);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    (0..2).for_each(|name| std::fs::write(mounts[0].join(name.to_string()), b"......").unwrap());
    let rounds = if std::env::var_os("DFS_TEST_FULL").is_some() { "2000" } else { "100" };
    std::thread::scope(|scope| {
        for (seed, mnt) in mounts.iter().cycle().take(6).enumerate() {
            scope.spawn(move || {
                let mut command = Command::new("python3");
                command.args(["-c", IN_ORDER]).arg(mnt).args([&seed.to_string(), rounds]);
                run(&mut command, Duration::from_secs(400)).must();
            });
        }
    });
}

#[test]
fn who_waits_for_a_lock_can_be_interrupted_and_killed() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 1);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let held = open(&mounts[0].join("x"));
    held.lock().unwrap();
    // It waits for a second, and a signal ends that.
    let flock = |args: &[&str]| {
        let mut command = Command::new("flock");
        command.args(args).arg(mounts[1].join("x")).arg("true");
        command
    };
    let ended = run(&mut flock(&["-w", "1"]), LIMIT);
    assert_eq!(ended.code, Some(1), "{ended}");
    let mut child = flock(&[]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("it to wait", LIMIT, || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
        call.starts_with(&format!("{} ", libc::SYS_flock))
    });
    child.kill().unwrap();
    wait_for("it to be gone", LIMIT, || child.try_wait().unwrap());
    held.unlock().unwrap();
    assert_eq!(run(&mut flock(&["-n"]), LIMIT).code, Some(0), "who gave up holds nothing");
}

#[test]
fn the_locks_of_a_mount_that_is_unmounted_or_dies_go() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let waiting = open(&b.join("x"));
    let held = open(&a.join("x"));
    held.lock().unwrap();
    assert!(is_taken(&waiting));
    // Of this one only the mount knows so far.
    let (own, other) = (open(&a.join("y")), b.join("y"));
    own.lock().unwrap();
    cluster.kill(&[cluster.leader()]);
    assert!(is_taken(&waiting), "a fail-over takes no lock away");
    assert!(is_taken(&open(&other)), "nor one that the metaservers had not heard of");
    drop(own);
    if std::env::var_os("DFS_TEST_FULL").is_some() {
        cluster.kill_mount("a");
        wait_until("the session of a dead mount to end", Duration::from_secs(150), || !is_taken(&waiting));
    } else {
        drop(held);
        cluster.unmount("a");
        wait_until("the locks of a mount to go", LIMIT, || !is_taken(&waiting));
    }
}

#[test]
fn locks_that_nobody_else_wants_are_decided_where_they_are_asked_for() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 1);
    let mounts = [cluster.mount("a"), cluster.mount("b")];
    let [a, b] = mounts.each_ref().map(|mnt| open(&mnt.join("x")));
    // What was let go of is free, and what is held is not, whoever knows: each round another one wants to know.
    for round in 0..3 {
        let (mine, theirs) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        set(mine, range(libc::F_WRLCK, 0, 10)).unwrap();
        for at in 0..50 {
            set(mine, range(libc::F_WRLCK, 100 + at, 1)).unwrap();
            set(mine, range(libc::F_UNLCK, 100 + at, 1)).unwrap();
        }
        assert_eq!(set(theirs, range(libc::F_RDLCK, 9, 1)), Err(Errno::EAGAIN));
        set(theirs, range(libc::F_WRLCK, 10, 200)).unwrap();
        assert_eq!(set(mine, range(libc::F_RDLCK, 120, 1)), Err(Errno::EAGAIN));
        for file in [&a, &b] {
            set(file, range(libc::F_UNLCK, 0, 0)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1100)); // until what was wanted may be somebody's own again
    }
    let applied = || cluster.status()["applied"].as_u64().expect("an index");
    // A file that no other mount looks at.
    let own = open(&mounts[0].join("own"));
    let before = applied();
    for at in 0..200 {
        set(&own, range(libc::F_WRLCK, at, 1)).unwrap();
        set(&own, range(libc::F_UNLCK, at, 1)).unwrap();
    }
    assert!(applied() - before < 50, "400 locks and unlocks were asked for");
    set(&own, range(libc::F_WRLCK, 7, 1)).unwrap();
    let other = open(&mounts[1].join("own"));
    assert_eq!(set(&other, range(libc::F_WRLCK, 0, 1000)), Err(Errno::EAGAIN));
    drop(own);
    wait_until("the ranges to go with their file", LIMIT, || set(&other, range(libc::F_WRLCK, 0, 1000)).is_ok());
}
