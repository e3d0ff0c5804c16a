//! While names are made, moved, replaced and removed from three mounts, a listing shows every name that stays exactly once,
//! no name twice, and nothing that was gone before it began; a program that has a file mapped follows what others commit.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::full;
use tests::wait::wait_for;

const MOUNTS: [&str; 3] = ["a", "b", "c"];
/// Names that stay: several pieces of a listing, and many buffers of the kernel's.
const STAY: usize = 1100;
/// Names that stay while what they lead to is replaced all the time.
const REPLACED: u64 = 20;
/// Names of each mount that come and go at once.
const COMING: u64 = 30;
/// A mapped file follows within this.
const FOLLOW_LIMIT: Duration = Duration::from_secs(20);

/// Makes, moves, replaces and removes names until told to stop. Names that come and go are never used again.
fn churn(dir: &Path, mount: usize, stop: &AtomicBool, gone: &AtomicU64) {
    let new = |number: u64| dir.join(format!("come-{mount}-{number:08}"));
    for number in 0.. {
        fs::write(new(number), "x").unwrap();
        if number.is_multiple_of(3) {
            fs::rename(new(number), dir.join(format!("moved-{mount}-{number:08}"))).unwrap();
        }
        if number >= COMING {
            let old = number - COMING;
            let name = if old.is_multiple_of(3) { dir.join(format!("moved-{mount}-{old:08}")) } else { new(old) };
            fs::remove_file(name).unwrap();
            gone.store(old + 1, Ordering::SeqCst);
        }
        let temporary = dir.join(format!("temporary-{mount}-{number:08}"));
        fs::write(&temporary, "y").unwrap();
        fs::rename(temporary, dir.join(format!("replaced-{:02}", number % REPLACED))).unwrap();
        if stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Lists once, with `stat` of some names in between (so that the kernel asks for attributes too).
fn look(dir: &Path, look: usize, gone: &[AtomicU64]) {
    let gone: Vec<u64> = gone.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (at, entry) in fs::read_dir(dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        if look.is_multiple_of(2) && at.is_multiple_of(16) {
            let _may_be_gone = entry.metadata();
        }
        *seen.entry(entry.file_name().into_string().unwrap()).or_default() += 1;
    }
    for number in 0..STAY {
        let name = format!("stay-{number:05}");
        assert_eq!(seen.get(&name), Some(&1), "{name}, look {look} through {}", dir.display());
    }
    for number in 0..REPLACED {
        let name = format!("replaced-{number:02}");
        assert_eq!(seen.get(&name), Some(&1), "{name}, look {look} through {}", dir.display());
    }
    for (name, count) in seen {
        assert_eq!(count, 1, "{name}, look {look} through {}", dir.display());
        let mut words = name.split('-');
        if matches!(words.next(), Some("come" | "moved")) {
            let mount: usize = words.next().unwrap().parse().unwrap();
            let number: u64 = words.next().unwrap().parse().unwrap();
            assert!(number >= gone[mount], "{name} was gone before the listing began, {}", dir.display());
        }
    }
}

#[test]
fn names_that_stay_are_listed_exactly_once() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let dirs: Vec<PathBuf> = MOUNTS.iter().map(|name| cluster.mount(name).join("dir")).collect();
    fs::create_dir(&dirs[0]).unwrap();
    let names = (0..STAY).map(|n| format!("stay-{n:05}")).chain((0..REPLACED).map(|n| format!("replaced-{n:02}")));
    let names: Vec<String> = names.collect();
    std::thread::scope(|scope| {
        for (part, dir) in names.chunks(names.len().div_ceil(dirs.len())).zip(&dirs) {
            scope.spawn(move || part.iter().for_each(|name| fs::write(dir.join(name), "").unwrap()));
        }
    });
    let looks = if full() { 300 } else { 8 };
    let stop = AtomicBool::new(false);
    let gone: Vec<AtomicU64> = dirs.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let (stop, gone) = (&stop, &gone);
        for (mount, dir) in dirs.iter().enumerate() {
            scope.spawn(move || churn(dir, mount, stop, &gone[mount]));
        }
        let looking: Vec<_> =
            dirs.iter().map(|dir| scope.spawn(move || (0..looks).for_each(|number| look(dir, number, gone)))).collect();
        let ends: Vec<_> = looking.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::SeqCst);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    let gone: u64 = gone.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    eprintln!("{} listings, {gone} names came and went", looks * dirs.len());
    for name in MOUNTS {
        cluster.unmount(name);
    }
}

/// Prints the number in the first 8 bytes of a mapped file whenever it is another; it never goes back.
const MAPPED: &str = r#"
import mmap, sys, time
with open(sys.argv[1], "rb") as f:
    view = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
last = -1
while True:
    number = int(view[0:8])
    if number != last:
        assert number > last, f"{number} after {last}"
        last = number
        print(number, flush=True)
    time.sleep(0.005)
"#;

#[test]
fn mapped_files_follow_what_other_mounts_commit() {
    tests::skip_if!(no_mount, no_python);
    let mut cluster = Cluster::start();
    let roots: Vec<PathBuf> = MOUNTS.iter().map(|name| cluster.mount(name)).collect();
    let page = |number: u64| format!("{number:08}").repeat(512);
    fs::write(roots[0].join("map"), page(0).repeat(4)).unwrap();
    let mut readers = Vec::new();
    for name in ["b", "c"] {
        let said = cluster.dir().join(format!("said-{name}"));
        let out = fs::File::create(&said).unwrap();
        let path = cluster.dir().join("mnt").join(name).join("map");
        let mut command = Command::new("python3");
        command.args(["-c", MAPPED]).arg(path).stdin(Stdio::null()).stdout(out);
        readers.push((command.spawn().unwrap(), said));
    }
    let last = |said: &Path| fs::read_to_string(said).ok()?.lines().last()?.parse::<u64>().ok();
    let rounds = if full() { 500 } else { 20 };
    let mut slowest = Duration::ZERO;
    for number in 0..rounds {
        if number > 0 {
            let file = OpenOptions::new().write(true).open(roots[0].join("map")).unwrap();
            file.write_all_at(page(number).repeat(4).as_bytes(), 0).unwrap();
            file.sync_all().unwrap();
        }
        for (reader, said) in &mut readers {
            let (_, took) = wait_for("a mapped file to follow", FOLLOW_LIMIT, || {
                assert!(reader.try_wait().unwrap().is_none(), "the reader ended");
                (last(said) == Some(number)).then_some(())
            });
            slowest = slowest.max(took);
        }
    }
    eprintln!("a mapped file followed within {slowest:?}");
    for (mut reader, _) in readers {
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    for name in MOUNTS {
        cluster.unmount(name);
    }
}
