//! What one mount has done is what every other mount sees in its next call: attributes, names, contents, also of files that
//! are open there, mapped there, or were just answered from memory; while the leader is killed, and after a mount has
//! stood still for longer than its leases last.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::{Content, full};
use tests::wait::wait_until;

const MOUNTS: [&str; 3] = ["a", "b", "c"];
/// Longer than a lease, shorter than a session, and than others wait for what a mount has decided by itself.
const STANDSTILL: Duration = Duration::from_secs(3);
/// Between two disturbances.
const BETWEEN: Duration = Duration::from_secs(2);

/// The mounts' views of one directory, and how often they were compared.
struct Views {
    dirs: Vec<PathBuf>,
    checks: u64,
}

impl Views {
    fn new(cluster: &mut Cluster) -> Views {
        let dirs: Vec<PathBuf> = MOUNTS.iter().map(|name| cluster.mount(name).join("dir")).collect();
        fs::create_dir(&dirs[0]).unwrap();
        Views { dirs, checks: 0 }
    }

    /// Everybody sees the same, which is `want`. Twice: the second time it may be answered from memory.
    fn all<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, want: &T, see: impl Fn(&Path) -> T) {
        for look in 0..2 {
            for dir in &self.dirs {
                let seen = see(dir);
                assert_eq!(&seen, want, "{what}, look {look}, through {}", dir.display());
                self.checks += 1;
            }
        }
    }

    /// One round of everything, changed by mount `by`.
    fn round(&mut self, round: usize) {
        let by = self.dirs[round % self.dirs.len()].clone();
        let other = self.dirs[(round + 1) % self.dirs.len()].clone();
        let (name, moved) = (format!("f{round}"), format!("m{round}"));
        let read = |dir: &Path, name: &str| fs::read(dir.join(name)).ok();

        self.all("not there yet", &false, |dir| dir.join(&name).exists());
        fs::write(by.join(&name), format!("first {round}")).unwrap();
        self.all("written", &Some(format!("first {round}").into_bytes()), |dir| read(dir, &name));
        let len = common::units::len_u64(format!("first {round}").len());
        self.all("size", &len, |dir| fs::metadata(dir.join(&name)).unwrap().len());

        // A file that is open everywhere, written in place, with the same length.
        let open: Vec<File> = self.dirs.iter().map(|dir| File::open(dir.join(&name)).unwrap()).collect();
        for step in 0..3 {
            let text = format!("step{step} {round}");
            let file = OpenOptions::new().write(true).open(other.join(&name)).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            file.sync_all().unwrap();
            for (file, dir) in open.iter().zip(&self.dirs) {
                let mut seen = vec![0; text.len()];
                file.read_exact_at(&mut seen, 0).unwrap();
                assert_eq!(String::from_utf8_lossy(&seen), text, "an open file, through {}", dir.display());
                self.checks += 1;
            }
        }
        // Appended and cut elsewhere.
        OpenOptions::new().append(true).open(by.join(&name)).unwrap().write_all(b" more").unwrap();
        self.all("appended", &true, |dir| read(dir, &name).unwrap().ends_with(b" more"));
        OpenOptions::new().write(true).open(other.join(&name)).unwrap().set_len(3).unwrap();
        self.all("cut", &Some(b"ste".to_vec()), |dir| read(dir, &name));
        for (file, dir) in open.iter().zip(&self.dirs) {
            let (mut seen, mut file) = (Vec::new(), file);
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut seen).unwrap();
            assert_eq!(seen, b"ste", "cut while it is open, through {}", dir.display());
            self.checks += 1;
        }

        self.chunks(round, &by, &other);

        let mode = 0o600 + u32::try_from(round % 8).unwrap();
        fs::set_permissions(by.join(&name), fs::Permissions::from_mode(mode)).unwrap();
        self.all("mode", &mode, |dir| fs::metadata(dir.join(&name)).unwrap().mode() & 0o777);
        fs::hard_link(other.join(&name), other.join(&moved)).unwrap();
        self.all("links", &2, |dir| fs::metadata(dir.join(&name)).unwrap().nlink());
        fs::remove_file(by.join(&name)).unwrap();
        self.all("links of the other name", &1, |dir| fs::metadata(dir.join(&moved)).unwrap().nlink());
        self.all("unlinked", &false, |dir| dir.join(&name).exists());
        fs::write(by.join(&name), "new").unwrap();
        fs::rename(other.join(&moved), other.join(&name)).unwrap();
        self.all("replaced", &Some(b"ste".to_vec()), |dir| read(dir, &name));
        self.all("moved away", &false, |dir| dir.join(&moved).exists());

        // Directories: links, emptiness, names.
        fs::create_dir(by.join(&moved)).unwrap();
        fs::create_dir(other.join(&moved).join("sub")).unwrap();
        self.all("subdirectories", &3, |dir| fs::metadata(dir.join(&moved)).unwrap().nlink());
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let here = names(&by);
        self.all("listing", &here, names);
        fs::remove_dir(by.join(&moved).join("sub")).unwrap();
        fs::remove_dir(other.join(&moved)).unwrap();
        self.all("directory gone", &false, |dir| dir.join(&moved).exists());
        fs::remove_file(by.join(&name)).unwrap();
        self.all("gone", &None, |dir| read(dir, &name));
    }

    /// The same with files too long for the metadata, whose commits a mount may tell later.
    fn chunks(&mut self, round: usize, by: &Path, other: &Path) {
        let name = format!("c{round}");
        let read = |dir: &Path| fs::read(dir.join(&name)).ok();
        let bytes = |step: usize, len| {
            let (file, version) = (common::units::len_u64(round), common::units::len_u64(step));
            Content::new(1, file, version).bytes(0, len)
        };
        let mut want = bytes(9, 100_000);
        fs::write(by.join(&name), &want).unwrap();
        self.all("a file of chunks", &Some(want.clone()), read);
        // Behind its end, now here, now there.
        for (step, dir) in [other, by, by, other].into_iter().enumerate() {
            let more = bytes(step, 20_000 + step * 30_000);
            OpenOptions::new().append(true).open(dir.join(&name)).unwrap().write_all(&more).unwrap();
            want.extend(more);
            self.all("appended in chunks", &Some(want.clone()), read);
        }
        // What one changes in its extents while another writes to it.
        let writer = OpenOptions::new().write(true).open(by.join(&name)).unwrap();
        writer.write_all_at(b"not saved yet", 50_000).unwrap();
        let changer = OpenOptions::new().write(true).open(other.join(&name)).unwrap();
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&changer, punch, 10_000, 20_000).unwrap();
        let longer = want.len() + 5_000;
        fallocate(&changer, FallocateFlags::empty(), 0, i64::try_from(longer).unwrap()).unwrap();
        writer.write_all_at(b"after that", 15_000).unwrap();
        drop(writer);
        want.resize(longer, 0);
        want[10_000..30_000].fill(0);
        want[50_000..50_013].copy_from_slice(b"not saved yet");
        want[15_000..15_010].copy_from_slice(b"after that");
        self.all("written and punched", &Some(want), read);
        fs::rename(other.join(&name), other.with_file_name("moved")).unwrap();
        self.all("moved", &None, read);
    }
}

#[test]
fn what_one_mount_does_all_mounts_see() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mut views = Views::new(&mut cluster);
    let rounds = if full() { 1200 } else { 60 };
    for round in 0..rounds {
        views.round(round);
    }

    // The new leader knows of no lease that the old one gave.
    for round in rounds..rounds + 3 {
        let leader = cluster.leader();
        cluster.kill(&[&leader]);
        views.round(round);
        cluster.start_server(&leader);
        cluster.up();
        views.round(round);
    }
    eprintln!("{} checks", views.checks);
    for name in MOUNTS {
        cluster.unmount(name);
    }
}

/// Rounds, while something is done to the cluster again and again: at least so many and so often.
fn rounds_while(disturb: impl Fn(&Cluster, u64) + Send, (rounds_min, times_min): (usize, u64)) {
    let mut cluster = Cluster::start();
    let mut views = Views::new(&mut cluster);
    let (times, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let rounds = std::thread::scope(|scope| {
        let (cluster, times, over) = (&cluster, &times, &over);
        // Also if a round panics: the scope waits for the thread.
        let _ends = Ends(over);
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(BETWEEN);
                disturb(cluster, times.fetch_add(1, Ordering::SeqCst));
            }
        });
        let mut round = 0;
        while round < rounds_min || times.load(Ordering::SeqCst) <= times_min {
            views.round(round);
            round += 1;
        }
        round
    });
    eprintln!("{} checks in {rounds} rounds, disturbed {} times", views.checks, times.load(Ordering::SeqCst));
    for name in MOUNTS {
        cluster.unmount(name);
    }
}

/// Says that it is over when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn what_one_mount_does_all_mounts_see_while_leaders_die() {
    tests::skip_if!(no_mount);
    let kill_leader = |cluster: &Cluster, _| {
        let leader = cluster.leader();
        cluster.kill(&[&leader]);
        cluster.start_server(&leader);
        wait_until("all metaservers to be up", PROCESS_LIMIT, || {
            let ended = cluster.dfs(&["admin", "status", "--json"]);
            let status: serde_json::Value = serde_json::from_slice(&ended.out).unwrap_or_default();
            let all = status["metaservers"].as_array();
            all.is_some_and(|all| all.iter().all(|server| server["up"] == true))
        });
    };
    rounds_while(kill_leader, if full() { (800, 100) } else { (20, 3) });
}

/// What it has answered for is not lost, and what others change meanwhile it does not show old.
#[test]
fn what_one_mount_does_all_mounts_see_while_mounts_stand_still() {
    tests::skip_if!(no_mount);
    let stop_a_mount = |cluster: &Cluster, time: u64| {
        let name = MOUNTS[usize::try_from(time).unwrap() % MOUNTS.len()];
        assert!(cluster.signal_if_running(name, Signal::SIGSTOP));
        std::thread::sleep(STANDSTILL);
        assert!(cluster.signal_if_running(name, Signal::SIGCONT));
    };
    rounds_while(stop_a_mount, if full() { (800, 100) } else { (20, 3) });
}

#[test]
fn a_mount_that_stood_still_shows_nothing_old() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let views = Views::new(&mut cluster);
    let [a, b, c] = [0, 1, 2].map(|view: usize| views.dirs[view].join("file"));
    for round in 0..3 {
        fs::write(&a, format!("before {round}")).unwrap();
        let mut open = File::open(&c).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("before {round}"));
        assert!(fs::metadata(&c).is_ok() && fs::metadata(views.dirs[2].join("gone")).is_err());

        assert!(cluster.signal_if_running("c", Signal::SIGSTOP));
        fs::write(&a, format!("after, longer {round}")).unwrap();
        fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(views.dirs[1].join("gone"), "x").unwrap();
        assert_eq!(fs::read_to_string(&b).unwrap(), format!("after, longer {round}"));
        std::thread::sleep(STANDSTILL);
        assert!(cluster.signal_if_running("c", Signal::SIGCONT));

        assert_eq!(fs::metadata(&c).unwrap().mode() & 0o777, 0o640);
        text.clear();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("after, longer {round}"), "an open file");
        assert!(fs::metadata(views.dirs[2].join("gone")).is_ok(), "a name");
        fs::remove_file(views.dirs[1].join("gone")).unwrap();
        fs::set_permissions(&a, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for name in MOUNTS {
        cluster.unmount(name);
    }
}
