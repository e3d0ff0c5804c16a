//! Whatever processes on three mounts do to the same few names and files at the same time, there is one order of all their
//! calls that explains every answer: linearizability, checked on the recorded history. While all servers run, while the leader is
//! killed and started again every few seconds, and while one mount after another is stopped for longer than its leases last.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::full;
use tests::linear::search::check;
use tests::linear::work::{Process, Role, Size, run, unknown};
use tests::linear::{Answer, Operation};
use tests::wait::wait_until;
use tokio::time::Instant;

const MOUNTS: [&str; 3] = ["a", "b", "c"];
/// Directories with a history each. Few, so that calls meet.
const WORLDS: usize = 2;
/// Between two disturbances: a leader has begun to serve, and leases were given.
const BETWEEN: Duration = Duration::from_secs(2);
/// Longer than a lease, shorter than others wait for what a mount has decided by itself.
const STANDSTILL: Duration = Duration::from_secs(3);

/// Two processes on each mount: one for contents, one for names.
fn processes(cluster: &mut Cluster) -> Vec<Process> {
    let mounts: Vec<_> = MOUNTS.iter().map(|name| (name, cluster.mount(name))).collect();
    let mut processes = Vec::new();
    for world in 0..WORLDS {
        fs::create_dir(mounts[0].1.join(format!("w{world}"))).unwrap();
    }
    for (name, root) in &mounts {
        let worlds: Vec<_> = (0..WORLDS).map(|world| root.join(format!("w{world}"))).collect();
        for (role, number) in [(Role::Contents, 1), (Role::Names, 2)] {
            processes.push(Process { who: format!("{name}{number}"), worlds: worlds.clone(), role });
        }
    }
    processes
}

/// Checks it, and that it was worth checking.
#[track_caller]
fn assert_one_order(seed: u64, history: &[Operation]) {
    let start = Instant::now();
    let searched = check(history).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    eprintln!("seed {seed}: {searched:?} in {:?}", start.elapsed());
    let count = |is: fn(&Answer) -> bool| history.iter().filter(|one| one.answer.as_ref().is_some_and(is)).count();
    for (what, count) in [
        ("changes", count(|answer| matches!(answer, Answer::Done | Answer::On(_)))),
        ("refusals", count(|answer| matches!(answer, Answer::Refused(_)))),
        ("reads", count(|answer| matches!(answer, Answer::Bytes(_, bytes) if !bytes.is_empty()))),
    ] {
        assert!(count > history.len() / 50, "only {count} {what} of {}", history.len());
    }
}

#[test]
fn all_answers_on_three_mounts_follow_from_one_order() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let processes = processes(&mut cluster);
    let seed = rand::random();
    eprintln!("seed {seed}");
    let size = Size { calls: 12, windows: if full() { 600 } else { 40 } };
    let history = run(seed, size, &processes, || true);
    assert_one_order(seed, &history);
    assert_eq!(unknown(&history), 0, "every call has an answer while all servers run");
    for name in MOUNTS {
        cluster.unmount(name);
    }
}

/// Calls on all mounts while something is done to the cluster again and again, so often at least; they have one order.
fn assert_one_order_while(disturb: impl Fn(&Cluster, u64) + Send, times_min: u64) {
    let mut cluster = Cluster::start();
    let processes = processes(&mut cluster);
    let seed = rand::random();
    eprintln!("seed {seed}");
    let size = Size { calls: 12, windows: if full() { 200 } else { 10 } };
    let (times, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let history = std::thread::scope(|scope| {
        let (cluster, times, over) = (&cluster, &times, &over);
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(BETWEEN);
                disturb(cluster, times.load(Ordering::SeqCst));
                times.fetch_add(1, Ordering::SeqCst);
            }
        });
        let history = run(seed, size, &processes, || times.load(Ordering::SeqCst) >= times_min);
        over.store(true, Ordering::SeqCst);
        history
    });
    eprintln!("{} times, {} calls without an answer", times.load(Ordering::SeqCst), unknown(&history));
    assert_one_order(seed, &history);
    for name in MOUNTS {
        cluster.unmount(name);
    }
}

#[test]
fn all_answers_follow_from_one_order_while_leaders_die() {
    tests::skip_if!(no_mount);
    let kill_leader = |cluster: &Cluster, _| {
        let leader = cluster.leader();
        cluster.kill(&[&leader]);
        cluster.start_server(&leader);
        wait_until("all metaservers to be up", PROCESS_LIMIT, || {
            cluster.status()["metaservers"].as_array().unwrap().iter().all(|server| server["up"] == true)
        });
    };
    assert_one_order_while(kill_leader, if full() { 20 } else { 3 });
}

/// What others change meanwhile the mount that stood still does not show old when it goes on, and nothing it had answered for is
/// lost.
#[test]
fn all_answers_follow_from_one_order_while_mounts_stand_still() {
    tests::skip_if!(no_mount);
    let stop_a_mount = |cluster: &Cluster, round: u64| {
        let name = MOUNTS[usize::try_from(round).unwrap() % MOUNTS.len()];
        let mount = Pid::from_raw(cluster.mount_pid(name).cast_signed());
        kill(mount, Signal::SIGSTOP).unwrap();
        std::thread::sleep(STANDSTILL);
        kill(mount, Signal::SIGCONT).unwrap();
    };
    assert_one_order_while(stop_a_mount, if full() { 20 } else { 4 });
}

/// Bytes of a file that is cut and written anew in turn: none of them is ever zero.
const WHOLE: [u8; 40] = [b'w'; 40];
const CUT: usize = 2;
/// Of so many buffered reads beside truncations, one may be of no version.
const TORN_MAX: usize = 150;

/// Reads a file on two mounts while it is cut and written anew on a third. Returns how many reads there were, and those that
/// are of no version of it.
fn reads_beside_truncations(flags: OFlag) -> (usize, Vec<Vec<u8>>) {
    let mut cluster = Cluster::start();
    let roots: Vec<_> = MOUNTS.iter().map(|name| cluster.mount(name)).collect();
    fs::write(roots[0].join("file"), WHOLE).unwrap();
    let rounds = if full() { 10_000 } else { 300 };
    let over = AtomicBool::new(false);
    let read = |root: &Path| {
        let mut buffer = vec![1; 4096];
        let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(root.join("file")).unwrap();
        let len = file.read_at(&mut buffer, 0).unwrap();
        buffer.truncate(len);
        buffer
    };
    let reads: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let (over, read) = (&over, &read);
        let reading = roots[1..].iter().map(|root| {
            scope.spawn(move || {
                let mut reads = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    reads.push(read(root));
                }
                reads
            })
        });
        let reading: Vec<_> = reading.collect();
        let file = fs::OpenOptions::new().write(true).open(roots[0].join("file")).unwrap();
        for _ in 0..rounds {
            file.set_len(common::units::len_u64(CUT)).unwrap();
            file.write_all_at(&WHOLE, 0).unwrap();
            file.sync_all().unwrap();
        }
        over.store(true, Ordering::SeqCst);
        reading.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = reads.len();
    let cut = reads.iter().filter(|bytes| ***bytes == WHOLE[..CUT]).count();
    eprintln!("{count} reads, {cut} of the short version");
    assert!(cut > 0 && cut < count, "both versions were seen");
    let torn: Vec<_> = reads.into_iter().filter(|bytes| bytes != &WHOLE && bytes != &WHOLE[..CUT]).collect();
    (count, torn)
}

/// Length and bytes of a read are of one version of the file.
#[test]
fn a_read_beside_truncations_never_shows_zeros() {
    tests::skip_if!(no_mount);
    let (_, torn) = reads_beside_truncations(OFlag::O_DIRECT);
    assert_eq!(torn, Vec::<Vec<u8>>::new());
}

/// So they are of a read through the kernel's pages, but for what comes in one moment that no mount can watch: where the
/// kernel is told of truncations without regard to reads under way, one read in forty is of no version here.
#[test]
fn a_buffered_read_beside_truncations_hardly_ever_shows_zeros() {
    tests::skip_if!(no_mount);
    let (count, torn) = reads_beside_truncations(OFlag::empty());
    eprintln!("{} of no version", torn.len());
    let too_long = |bytes: &Vec<u8>| bytes.len() == WHOLE.len() && bytes[CUT..].iter().all(|byte| *byte == 0);
    assert!(torn.iter().all(too_long), "zeros up to the old end, nothing else: {torn:?}");
    assert!(torn.len() * TORN_MAX < count, "{} of {count}", torn.len());
}
