//! The same operations on the mount and on a local directory have the same results: values, error numbers, contents.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::{Content, full};
use tests::tree::{assert_same, make_sample};

/// Names the operations play with: few, so that they meet.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/a", "e/d"];
/// Descriptors open at once.
const OPEN_MAX: u32 = 6;
/// Offsets and lengths: around the limits of pages, inline data, hash groups and chunks.
const OFFSETS: [u64; 8] = [0, 1, 4095, 4096, 16_384, 70_000, (4 << 20) - 100, 4 << 20];
const LENGTHS: [usize; 7] = [0, 1, 100, 4096, 5000, 70_000, 300_000];
/// Programs take this long at most.
const PROGRAM_LIMIT: Duration = Duration::from_secs(300);

/// One operation.
#[derive(Clone, Copy, Debug)]
enum Op {
    Open { name: usize, slot: u32, flags: i32 },
    Close { slot: u32 },
    Write { slot: u32, at: u64, len: usize, version: u64 },
    Append { slot: u32, len: usize, version: u64 },
    Read { slot: u32, at: u64, len: usize },
    SetAppend { slot: u32, on: bool },
    SetLen { slot: u32, len: u64 },
    Punch { slot: u32, at: u64, len: u64, mode: i32 },
    Sync { slot: u32 },
    Stat { name: usize },
    FileStat { slot: u32 },
    Mkdir { name: usize },
    Rmdir { name: usize },
    Unlink { name: usize },
    Rename { from: usize, to: usize },
    Link { from: usize, to: usize },
    Symlink { from: usize, to: usize },
    ReadLink { name: usize },
    Chmod { name: usize, mode: u32 },
    SetTimes { name: usize, seconds: u64 },
    Truncate { name: usize, len: u64 },
    List { name: usize },
    Whole { name: usize },
}

fn draw(random: &mut StdRng, version: u64) -> Op {
    use nix::libc::{
        FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR,
        O_TRUNC, O_WRONLY,
    };
    let name = random.random_range(0..NAMES.len());
    let to = random.random_range(0..NAMES.len());
    let slot = random.random_range(0..OPEN_MAX);
    let at = OFFSETS[random.random_range(0..OFFSETS.len())] + random.random_range(0..3);
    let len = LENGTHS[random.random_range(0..LENGTHS.len())];
    let flags = [
        O_RDWR | O_CREAT,
        O_RDWR | O_CREAT,
        O_RDWR,
        O_RDONLY,
        O_WRONLY | O_CREAT | O_EXCL,
        O_RDWR | O_TRUNC,
        O_RDWR | O_CREAT | O_TRUNC,
        O_WRONLY | O_APPEND,
    ];
    let modes = [
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        0,
        FALLOC_FL_KEEP_SIZE,
    ];
    match random.random_range(0..100) {
        0..16 => Op::Open { name, slot, flags: flags[random.random_range(0..flags.len())] },
        16..20 => Op::Close { slot },
        20..36 => Op::Write { slot, at, len, version },
        36..40 => Op::Append { slot, len, version },
        40..52 => Op::Read { slot, at, len },
        52 => Op::SetAppend { slot, on: at.is_multiple_of(2) },
        53..55 => Op::SetLen { slot, len: at },
        55..59 => Op::Punch { slot, at, len: 1 + at / 2, mode: modes[random.random_range(0..modes.len())] },
        59..62 => Op::Sync { slot },
        62..66 => Op::Stat { name },
        66..69 => Op::FileStat { slot },
        69..73 => Op::Mkdir { name },
        73..75 => Op::Rmdir { name },
        75..79 => Op::Unlink { name },
        79..84 => Op::Rename { from: name, to },
        84..87 => Op::Link { from: name, to },
        87..89 => Op::Symlink { from: name, to },
        89..90 => Op::ReadLink { name },
        90..92 => Op::Chmod { name, mode: [0o600, 0o644, 0o755, 0o4711][random.random_range(0..4)] },
        92..93 => Op::SetTimes { name, seconds: random.random_range(0..2_000_000_000) },
        93..95 => Op::Truncate { name, len: at },
        95..97 => Op::List { name },
        _ => Op::Whole { name },
    }
}

/// One of the two worlds.
struct Side {
    root: PathBuf,
    open: BTreeMap<u32, File>,
}

/// What `stat` shows that must agree. Link counts and sizes of directories are the file system's own affair.
fn seen(meta: &std::fs::Metadata) -> String {
    let (nlink, size) = if meta.is_dir() { (0, 0) } else { (meta.nlink(), meta.len()) };
    format!("mode {:o} nlink {nlink} size {size} uid {} gid {}", meta.mode(), meta.uid(), meta.gid())
}

impl Side {
    fn new(root: &Path) -> Side {
        Side { root: root.into(), open: BTreeMap::new() }
    }

    /// Does it, and says what was seen: a value, or an error number.
    fn run(&mut self, seed: u64, op: Op) -> Result<String, i32> {
        self.try_run(seed, op).map_err(|error| error.raw_os_error().unwrap_or(-1))
    }

    fn file(&self, slot: u32) -> io::Result<&File> {
        self.open.get(&slot).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EBADF))
    }

    fn try_run(&mut self, seed: u64, op: Op) -> io::Result<String> {
        let path = |name: usize| self.root.join(NAMES[name]);
        let done = |()| String::new();
        match op {
            Op::Open { name, slot, flags } => {
                let access = flags & nix::libc::O_ACCMODE;
                let mut options = OpenOptions::new();
                options.read(access != nix::libc::O_WRONLY).write(access != nix::libc::O_RDONLY).mode(0o640);
                // The standard library refuses some combinations itself; the kernel is to judge.
                let file = options.custom_flags(flags & !nix::libc::O_ACCMODE).open(path(name))?;
                self.open.insert(slot, file);
                Ok(String::new())
            }
            Op::Close { slot } => Ok(self.open.remove(&slot).is_some().to_string()),
            Op::Write { slot, at, len, version } => {
                self.file(slot)?.write_all_at(&Content::new(seed, 1, version).bytes(at, len), at).map(done)
            }
            Op::Append { slot, len, version } => {
                let mut file = self.file(slot)?;
                file.seek(SeekFrom::End(0))?;
                file.write_all(&Content::new(seed, 2, version).bytes(0, len)).map(done)
            }
            Op::Read { slot, at, len } => {
                let mut bytes = vec![0; len];
                let mut read = 0;
                while read < len {
                    match self.file(slot)?.read_at(&mut bytes[read..], at + u64::try_from(read).unwrap())? {
                        0 => break,
                        more => read += more,
                    }
                }
                bytes.truncate(read);
                Ok(digest(&bytes))
            }
            Op::SetAppend { slot, on } => {
                let flags = if on { nix::fcntl::OFlag::O_APPEND } else { nix::fcntl::OFlag::empty() };
                Ok(nix::fcntl::fcntl(self.file(slot)?, nix::fcntl::FcntlArg::F_SETFL(flags)).map(|_| String::new())?)
            }
            Op::SetLen { slot, len } => self.file(slot)?.set_len(len).map(done),
            Op::Punch { slot, at, len, mode } => {
                let mode = nix::fcntl::FallocateFlags::from_bits(mode).unwrap();
                let (at, len) = (i64::try_from(at).unwrap(), i64::try_from(len).unwrap());
                Ok(nix::fcntl::fallocate(self.file(slot)?, mode, at, len).map(done)?)
            }
            Op::Sync { slot } => self.file(slot)?.sync_all().map(done),
            Op::FileStat { slot } => Ok(seen(&self.file(slot)?.metadata()?)),
            other => self.by_name(other),
        }
    }

    /// Operations on names.
    fn by_name(&self, op: Op) -> io::Result<String> {
        let path = |name: usize| self.root.join(NAMES[name]);
        let done = |()| String::new();
        match op {
            Op::Stat { name } => Ok(seen(&std::fs::symlink_metadata(path(name))?)),
            Op::Mkdir { name } => std::fs::create_dir(path(name)).map(done),
            Op::Rmdir { name } => std::fs::remove_dir(path(name)).map(done),
            Op::Unlink { name } => std::fs::remove_file(path(name)).map(done),
            Op::Rename { from, to } => std::fs::rename(path(from), path(to)).map(done),
            Op::Link { from, to } => std::fs::hard_link(path(from), path(to)).map(done),
            Op::Symlink { from, to } => std::os::unix::fs::symlink(NAMES[from], path(to)).map(done),
            Op::ReadLink { name } => Ok(std::fs::read_link(path(name))?.display().to_string()),
            Op::Chmod { name, mode } => {
                std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).map(done)
            }
            Op::SetTimes { name, seconds } => {
                let time = std::time::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
                let file = File::open(path(name))?;
                file.set_times(std::fs::FileTimes::new().set_modified(time).set_accessed(time))?;
                let meta = std::fs::metadata(path(name))?;
                Ok(format!("{} {}", meta.mtime(), meta.mtime_nsec()))
            }
            Op::Truncate { name, len } => OpenOptions::new().write(true).open(path(name))?.set_len(len).map(done),
            Op::List { name } => {
                let entries: io::Result<Vec<_>> = std::fs::read_dir(path(name))?.collect();
                let mut shown: Vec<String> = Vec::new();
                for entry in entries? {
                    shown.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
                }
                shown.sort();
                Ok(shown.join(", "))
            }
            Op::Whole { name } => Ok(digest(&std::fs::read(path(name))?)),
            _ => unreachable!("try_run does the others"),
        }
    }
}

/// Length and hash of what was read.
fn digest(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), blake3::hash(bytes).to_hex())
}

#[test]
fn random_operations_have_the_results_they_have_locally() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let local = tempfile::tempdir().unwrap();
    let runs: u64 = if full() { 100 } else { 12 };
    for seed in 0..runs {
        let mut random = StdRng::seed_from_u64(seed);
        let roots = [local.path().join(format!("run-{seed}")), mnt.join(format!("run-{seed}"))];
        roots.iter().for_each(|root| std::fs::create_dir(root).unwrap());
        let mut sides = roots.each_ref().map(|root| Side::new(root));
        let mut history = Vec::new();
        for version in 0..400 {
            let op = draw(&mut random, version);
            let [here, there] = sides.each_mut().map(|side| side.run(seed, op));
            history.push(format!("{op:?} -> {here:?}"));
            let from = history.len().saturating_sub(30);
            assert_eq!(here, there, "seed {seed}, local left, mount right, after:\n{}", history[from..].join("\n"));
        }
        drop(sides);
        assert_same(&roots[0], &roots[1]);
    }
    // What another mount sees is what the commits say, without any cache of the writer's.
    let fresh = cluster.mount("fresh");
    for seed in 0..runs {
        assert_same(&local.path().join(format!("run-{seed}")), &fresh.join(format!("run-{seed}")));
    }
}

#[test]
fn a_file_that_is_unlinked_or_replaced_while_open_stays_readable_until_closed() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let content = Content::new(9, 1, 1);
    let (path, other) = (mnt.join("file"), mnt.join("other"));
    content.write_file(&path, 3 << 20).unwrap();
    let open = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap_err().raw_os_error(), Some(nix::libc::ENOENT));
    open.write_all_at(&content.bytes(3 << 20, 1000), 3 << 20).unwrap();
    open.sync_all().unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    let mut bytes = vec![0; (3 << 20) + 1000];
    open.read_exact_at(&mut bytes, 0).unwrap();
    content.check(0, &bytes).unwrap();
    drop(open);

    content.write_file(&path, 100_000).unwrap();
    let open = File::open(&path).unwrap();
    Content::new(9, 2, 1).write_file(&other, 10).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let mut bytes = vec![0; 100_000];
    open.read_exact_at(&mut bytes, 0).unwrap();
    content.check(0, &bytes).unwrap();
    Content::new(9, 2, 1).check_file(&path, 10).unwrap();
}

#[test]
fn extended_attributes_holes_and_rename_flags_work_as_locally() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let file = mnt.join("file");
    std::fs::write(&file, b"x").unwrap();
    let tool = |program: &str, args: &[&str]| run(Command::new(program).args(args).arg(&file), PROGRAM_LIMIT);
    tool("setfattr", &["-n", "user.colour", "-v", "blue"]).must();
    assert_eq!(tool("getfattr", &["--only-values", "-n", "user.colour"]).must().out, b"blue");
    assert!(tool("getfattr", &["-d"]).must().text().contains("user.colour"));
    tool("setfattr", &["-x", "user.colour"]).must();
    assert!(!tool("getfattr", &["-n", "user.colour"]).ok());

    let sparse = mnt.join("sparse");
    let mut open = File::create(&sparse).unwrap();
    open.seek(SeekFrom::Start(1 << 40)).unwrap();
    open.write_all(b"end").unwrap();
    open.sync_all().unwrap();
    let meta = std::fs::metadata(&sparse).unwrap();
    assert_eq!(meta.len(), (1 << 40) + 3);
    assert!(meta.blocks() * 512 < 1 << 20, "a hole takes no space: {} blocks", meta.blocks());
    let mut bytes = [1; 4096];
    File::open(&sparse).unwrap().read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(bytes, [0; 4096]);

    let (a, b) = (mnt.join("a"), mnt.join("b"));
    std::fs::write(&a, b"first").unwrap();
    std::fs::write(&b, b"second").unwrap();
    let rename = |flags| nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags);
    assert_eq!(rename(nix::fcntl::RenameFlags::RENAME_NOREPLACE), Err(nix::errno::Errno::EEXIST));
    rename(nix::fcntl::RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap()), (b"second".to_vec(), b"first".to_vec()));
    let long = mnt.join("n".repeat(256));
    assert_eq!(File::create(long).unwrap_err().raw_os_error(), Some(nix::libc::ENAMETOOLONG));
}

#[test]
fn opening_to_truncate_renews_the_times_of_an_empty_file_too() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let stamp = cluster.mount("m").join("stamp");
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::create(&stamp).unwrap().set_modified(old).unwrap();
    assert_eq!(std::fs::metadata(&stamp).unwrap().modified().unwrap(), old);
    File::create(&stamp).unwrap();
    assert!(std::fs::metadata(&stamp).unwrap().modified().unwrap() > old, "what is made from it is out of date");
}

#[test]
fn many_threads_on_one_mount_do_not_disturb_each_other() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let shared = mnt.join("shared");
    File::create(&shared).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (mnt, shared) = (&mnt, &shared);
            scope.spawn(move || {
                // Each thread its own files, its own slice of one shared file, and appends to one log.
                let content = Content::new(10, thread, 1);
                let dir = mnt.join(format!("dir-{thread}"));
                std::fs::create_dir(&dir).unwrap();
                let open = OpenOptions::new().write(true).open(shared).unwrap();
                let mut log = OpenOptions::new().append(true).create(true).open(mnt.join("log")).unwrap();
                for step in 0..40_u64 {
                    content.write_file(&dir.join(step.to_string()), 10_000 * step).unwrap();
                    let at = (step * 8 + thread) * 5000;
                    open.write_all_at(&content.bytes(at, 5000), at).unwrap();
                    log.write_all(format!("{thread}:{step:06}\n").as_bytes()).unwrap();
                    content.check_file(&dir.join((step / 2).to_string()), 10_000 * (step / 2)).unwrap();
                }
                open.sync_all().unwrap();
            });
        }
    });
    let fresh = cluster.mount("fresh");
    let bytes = std::fs::read(fresh.join("shared")).unwrap();
    assert_eq!(bytes.len(), 40 * 8 * 5000);
    for (index, slice) in bytes.chunks(5000).enumerate() {
        let (thread, at) = (u64::try_from(index % 8).unwrap(), u64::try_from(index * 5000).unwrap());
        Content::new(10, thread, 1).check(at, slice).unwrap();
    }
    let log = std::fs::read_to_string(fresh.join("log")).unwrap();
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 8 * 40, "every appended line once");
}

#[test]
fn programs_people_use_work_on_the_mount() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let repo = mnt.join("repo");
    make_sample(&repo, 300);
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(&repo).env("HOME", cluster.dir()).env("GIT_CONFIG_NOSYSTEM", "1");
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*"]).args(args);
        run(&mut command, PROGRAM_LIMIT).must()
    };
    git(&["init", "-q"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "all"]);
    git(&["gc", "-q", "--aggressive"]);
    git(&["fsck", "--full", "--strict"]);
    git(&["clone", "-q", ".", mnt.join("clone").to_str().unwrap()]);
    git(&["-C", mnt.join("clone").to_str().unwrap(), "fsck", "--full"]);
    assert!(git(&["status", "--porcelain"]).out.is_empty());

    let tar = |args: &[&str]| run(Command::new("tar").current_dir(&mnt).args(args), PROGRAM_LIMIT).must();
    tar(&["-cf", "repo.tar", "repo"]);
    std::fs::create_dir(mnt.join("untar")).unwrap();
    tar(&["-xpf", "repo.tar", "-C", "untar"]);
    assert_same(&repo, &mnt.join("untar/repo"));
}
