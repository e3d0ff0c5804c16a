//! What programs rely on without thinking of it: direct I/O, times to the nanosecond, link counts, blocks, names of any
//! bytes, listings that stand still while entries come and go, `statfs`, mapped files, programs run from the mount.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::Content;
use tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(60);
/// What direct I/O asks of buffers, offsets and lengths.
const ALIGN: usize = 4096;

/// Bytes whose first is at a multiple of [`ALIGN`].
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + ALIGN];
        let from = bytes.as_ptr().align_offset(ALIGN);
        Aligned(bytes, from)
    }

    fn slice(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[self.1..self.1 + len]
    }
}

fn direct_io(mnt: &Path) {
    let (path, len) = (mnt.join("direct"), (5 << 20) + 4096_usize);
    let (old, new) = (Content::new(1, 1, 1), Content::new(1, 1, 2));
    let direct =
        OpenOptions::new().read(true).write(true).create_new(true).custom_flags(nix::libc::O_DIRECT).open(&path);
    let (direct, mut buffer) = (direct.unwrap(), Aligned::new(len));
    old.fill(0, buffer.slice(len));
    direct.write_all_at(buffer.slice(len), 0).unwrap();
    let cached = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut bytes = vec![0; len];
    cached.read_exact_at(&mut bytes, 0).unwrap();
    old.check(0, &bytes).unwrap();
    // What was read through the page cache is not there any more after it was written around it.
    let (at, part) = (1 << 20, 1 << 20);
    new.fill(at, buffer.slice(part));
    direct.write_all_at(buffer.slice(part), at).unwrap();
    cached.read_exact_at(&mut bytes[..part], at).unwrap();
    new.check(at, &bytes[..part]).unwrap();
    // And the other way round.
    cached.write_all_at(&old.bytes(at, part), at).unwrap();
    direct.read_exact_at(buffer.slice(len), 0).unwrap();
    old.check(0, buffer.slice(len)).unwrap();
    // Reads end at the end of the file, wherever that is.
    cached.set_len(10_000).unwrap();
    assert_eq!(direct.read_at(buffer.slice(16_384), 0).unwrap(), 10_000);
    assert_eq!(direct.read_at(buffer.slice(4096), 12_288).unwrap(), 0);
    old.check(0, buffer.slice(4096)).unwrap();
}

fn times(mnt: &Path, other: &Path) {
    let file = mnt.join("times");
    fs::write(&file, "x").unwrap();
    for (name, (asecs, anano), (msecs, mnano)) in [
        ("a", (1_000, 1), (2_000_000_000, 999_999_999)),
        ("b", (-5, 500_000_000), (0, 0)),
        ("c", (5_000_000_000, 7), (1, 1)),
    ] {
        let path = mnt.join(format!("times-{name}"));
        fs::write(&path, name).unwrap();
        let (atime, mtime) = (TimeSpec::new(asecs, anano), TimeSpec::new(msecs, mnano));
        utimensat(nix::fcntl::AT_FDCWD, &path, &atime, &mtime, UtimensatFlags::FollowSymlink).unwrap();
        for dir in [mnt, other] {
            let meta = fs::metadata(dir.join(format!("times-{name}"))).unwrap();
            assert_eq!((meta.atime(), meta.atime_nsec()), (asecs, anano), "{name}");
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (msecs, mnano), "{name}");
        }
    }
    // A read is no reason to write: the access time changes only when it is set.
    let old = TimeSpec::new(1_000, 0);
    utimensat(nix::fcntl::AT_FDCWD, &file, &old, &TimeSpec::new(2_000, 0), UtimensatFlags::FollowSymlink).unwrap();
    assert_eq!(fs::read(other.join("times")).unwrap(), b"x");
    assert_eq!(fs::read(&file).unwrap(), b"x");
    let before = fs::metadata(&file).unwrap();
    assert_eq!(before.atime(), 1_000);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"y").unwrap();
    let after = fs::metadata(&file).unwrap();
    assert!(after.mtime() > 2_000 && after.ctime() >= before.ctime() && after.atime() == 1_000);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let later = fs::metadata(&file).unwrap();
    assert_eq!((later.mtime(), later.mtime_nsec()), (after.mtime(), after.mtime_nsec()), "chmod changes no contents");
    assert!((later.ctime(), later.ctime_nsec()) > (after.ctime(), after.ctime_nsec()));
}

fn counts(mnt: &Path) {
    let dir = mnt.join("counts");
    fs::create_dir(&dir).unwrap();
    let nlink = || fs::metadata(&dir).unwrap().nlink();
    assert_eq!(nlink(), 2);
    for name in ["a", "b", "c"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::write(dir.join("file"), "x").unwrap();
    assert_eq!(nlink(), 5, "two, and one for each directory in it");
    fs::rename(dir.join("a"), mnt.join("moved")).unwrap();
    fs::remove_dir(dir.join("b")).unwrap();
    assert_eq!((nlink(), fs::metadata(dir.join("c")).unwrap().nlink()), (3, 2));

    let path = dir.join("blocks");
    let file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
    let blocks = || {
        file.sync_all().unwrap();
        fs::metadata(&path).unwrap().blocks()
    };
    file.write_all_at(&Content::new(2, 1, 1).bytes(0, 1 << 20), 0).unwrap();
    assert_eq!(blocks(), (1 << 20) / 512, "copies do not count");
    file.set_len(1 << 30).unwrap();
    assert_eq!(blocks(), (1 << 20) / 512, "nor do holes");
    file.write_all_at(b"end", (1 << 30) - 3).unwrap();
    assert_eq!(blocks(), (1 << 20) / 512 + 1);
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, punch, 0, 1 << 19).unwrap();
    assert_eq!(blocks(), (1 << 19) / 512 + 1);
}

fn holes(mnt: &Path) {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mnt.join("holes")).unwrap();
    let (data, gap) = (1 << 16, 1 << 20);
    for at in [0, gap] {
        file.write_all_at(&Content::new(3, 1, 1).bytes(at, data), at).unwrap(); // not saved yet when it is asked for
    }
    file.set_len(2 * gap).unwrap();
    let seek = |at: u64, whence| lseek(&file, i64::try_from(at).unwrap(), whence).map(|at| u64::try_from(at).unwrap());
    let data = u64::try_from(data).unwrap();
    for (at, whence, found) in [
        (0, Whence::SeekData, Ok(0)),
        (0, Whence::SeekHole, Ok(data)),
        (data, Whence::SeekData, Ok(gap)),
        (data + 5, Whence::SeekHole, Ok(data + 5)),
        (gap + 5, Whence::SeekData, Ok(gap + 5)),
        (gap + 5, Whence::SeekHole, Ok(gap + data)),
        (gap + data, Whence::SeekData, Err(nix::errno::Errno::ENXIO)),
        (2 * gap - 1, Whence::SeekHole, Ok(2 * gap - 1)),
        (2 * gap, Whence::SeekHole, Err(nix::errno::Errno::ENXIO)),
    ] {
        assert_eq!(seek(at, whence), found, "{whence:?} from {at}");
    }
    use nix::fcntl::FallocateFlags as Flags;
    for (mode, error) in [
        (Flags::FALLOC_FL_COLLAPSE_RANGE, nix::errno::Errno::EOPNOTSUPP),
        (Flags::FALLOC_FL_INSERT_RANGE, nix::errno::Errno::EOPNOTSUPP),
        (Flags::FALLOC_FL_PUNCH_HOLE, nix::errno::Errno::EOPNOTSUPP),
    ] {
        assert_eq!(nix::fcntl::fallocate(&file, mode, 0, 4096), Err(error), "{mode:?}");
    }
    assert_eq!(nix::fcntl::fallocate(&file, Flags::empty(), 0, 0), Err(nix::errno::Errno::EINVAL));
    nix::fcntl::fallocate(&file, Flags::FALLOC_FL_KEEP_SIZE, 0, 1 << 30).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 * gap);
    nix::fcntl::fallocate(&file, Flags::FALLOC_FL_ZERO_RANGE, 0, i64::try_from(3 * gap).unwrap()).unwrap();
    assert_eq!((file.metadata().unwrap().len(), seek(0, Whence::SeekData)), (3 * gap, Err(nix::errno::Errno::ENXIO)));
}

fn names_of_any_bytes(mnt: &Path, other: &Path) {
    let dir = mnt.join("names");
    fs::create_dir(&dir).unwrap();
    let mut names: Vec<OsString> =
        (1..=255).filter(|byte| *byte != b'/' && *byte != b'.').map(|byte| OsString::from_vec(vec![byte])).collect();
    names.push(OsString::from_vec((1..=255).filter(|byte| *byte != b'/').rev().collect())); // 254 bytes
    names.push(OsString::from_vec(vec![0xff; 255]));
    names.extend(["...", " ", "..a"].map(OsString::from));
    names.sort();
    names.dedup();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    for place in [&dir, &other.join("names")] {
        let mut found: Vec<OsString> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, names);
    }
    for name in &names {
        let [here, there] = [mnt, other].map(|root| fs::metadata(root.join("names").join(name)).unwrap().ino());
        assert_eq!(here, there, "{name:?}");
    }
}

/// What is there from beginning to end of a listing is in it once, whatever happens to its neighbours.
fn a_listing_under_way(mnt: &Path) {
    let dir = mnt.join("listing");
    fs::create_dir(&dir).unwrap();
    for n in 0..600 {
        File::create(dir.join(format!("{n:04}-{}", if n % 2 == 0 { "stays" } else { "goes" }))).unwrap();
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut changes = 0;
    for (index, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
        if index.is_multiple_of(4) && changes < 150 {
            // From both ends: entries that were shown already, and ones still to come.
            let gone = if changes % 2 == 0 { changes * 2 + 1 } else { 599 - changes * 2 };
            let _one_of_them_twice = fs::remove_file(dir.join(format!("{gone:04}-goes")));
            File::create(dir.join(format!("new-{changes}"))).unwrap();
            changes += 1;
        }
    }
    for n in (0..600).step_by(2) {
        assert_eq!(seen.get(&format!("{n:04}-stays")), Some(&1), "{n}");
    }
    assert!(seen.values().all(|times| *times == 1), "nothing twice: {seen:?}");
}

fn programs_run(mnt: &Path) {
    let program = mnt.join("true");
    fs::copy("/bin/true", &program).unwrap();
    run(&mut Command::new(&program), LIMIT).must();
    let script = mnt.join("script");
    fs::write(&script, "#!/bin/sh\necho \"from $0\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run(&mut Command::new(&script), LIMIT).must().text(), format!("from {}\n", script.display()));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(!run(&mut Command::new(&script), LIMIT).ok(), "nobody may execute it");
}

/// Maps files: what was written is seen, behind the end are zeros, private changes stay private.
const MAPS: &str = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
path, pages, tail = sys.argv[1], 8192, 4096 + 100
open(path, "wb").write(b"a" * tail)
f = open(path, "r+b")
def mapped(flags):  # whole pages: Python's own maps end where the file does
    at = libc.mmap(None, pages, mmap.PROT_READ | mmap.PROT_WRITE, flags, f.fileno(), 0)
    assert at != ctypes.c_void_p(-1).value
    return at, memoryview((ctypes.c_char * pages).from_address(at)).cast("B")
at, shared = mapped(mmap.MAP_SHARED)
_, private = mapped(mmap.MAP_PRIVATE)
for view in shared, private:
    assert view[:tail] == b"a" * tail and view[tail:] == bytes(pages - tail), "zeros behind the end"
private[0:5] = b"mine!"
assert os.pread(f.fileno(), 5, 0) == b"aaaaa" and private[0:5] == b"mine!", "a private change"
shared[10:14] = b"ours"
shared[tail:tail + 4] = b"lost"  # behind the end: not part of the file
assert os.pread(f.fileno(), 4, 10) == b"ours", "read sees what was written to the map"
os.pwrite(f.fileno(), b"back", 20)
assert shared[20:24] == b"back", "the map sees what write wrote"
assert libc.msync(at, pages, 4) == 0
os.fsync(f.fileno())
assert os.fstat(f.fileno()).st_size == tail, "a map does not make a file longer"
os.ftruncate(f.fileno(), pages)
assert os.pread(f.fileno(), 4, tail) == bytes(4), "what grows is zeros"
os.ftruncate(f.fileno(), tail)
f.close()
assert open(path, "rb").read() == b"a" * 10 + b"ours" + b"a" * 6 + b"back" + b"a" * (tail - 24)
"#;

fn maps(mnt: &Path, other: &Path) {
    if let Some(reason) = tests::skip::no_python() {
        return tests::skip::note("the_small_print_of_posix_holds::maps", reason);
    }
    run(Command::new("python3").args(["-c", MAPS]).arg(mnt.join("map")), LIMIT).must();
    let bytes = fs::read(other.join("map")).unwrap();
    assert_eq!((bytes.len(), &bytes[10..14], &bytes[20..24]), (4196, &b"ours"[..], &b"back"[..]));
}

#[test]
fn files_directories_and_names_behave_to_the_letter() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let (mnt, other) = (cluster.mount("m"), cluster.mount("other"));
    direct_io(&mnt);
    times(&mnt, &other);
    counts(&mnt);
    holes(&mnt);
    names_of_any_bytes(&mnt, &other);
    a_listing_under_way(&mnt);
    programs_run(&mnt);
    maps(&mnt, &other);
    let mut read = String::new();
    File::open(other.join("script")).unwrap().read_to_string(&mut read).unwrap();
    assert!(read.starts_with("#!/bin/sh"));
}

/// `df` counts what users stored, not its copies, and answers while the metaservers are away.
/// A mount that keeps access times: as `relatime`, shown here at once, elsewhere soon; and not where nobody asked for it.
#[test]
fn reads_change_access_times_where_they_are_asked_for() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount_with("relatime", &["-o", "relatime"]);
    let plain = cluster.mount("plain");
    let atime = |root: &Path, name: &str| fs::metadata(root.join(name)).unwrap().accessed().unwrap();
    for (name, len) in [("small", 10_usize), ("large", 3 << 20)] {
        fs::write(plain.join(name), vec![b'x'; len]).unwrap();
        let made = atime(&plain, name);
        fs::read(plain.join(name)).unwrap();
        assert_eq!(atime(&plain, name), made, "not asked for there");
        let quiet = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOATIME).open(mnt.join(name)).unwrap();
        assert_eq!(quiet.read_at(&mut [0; 5], 0).unwrap(), 5);
        assert_eq!(atime(&mnt, name), made, "O_NOATIME");
        fs::read(mnt.join(name)).unwrap();
        let first = atime(&mnt, name);
        assert!(first > made, "{name}: at once");
        fs::read(mnt.join(name)).unwrap();
        assert_eq!(atime(&mnt, name), first, "{name}: it is after the last change");
        let times = |root: &Path| {
            let found = fs::metadata(root.join(name)).unwrap();
            (found.modified().unwrap(), found.ctime(), found.ctime_nsec())
        };
        let changed = times(&plain);
        wait_until("the other mount to hear of it", LIMIT, || atime(&plain, name) == first);
        assert_eq!((atime(&mnt, name), times(&mnt), times(&plain)), (first, changed, changed));
        // Written here, and read while the kernel has it in its pages.
        fs::write(mnt.join(name), vec![b'y'; len]).unwrap();
        fs::read(mnt.join(name)).unwrap();
        assert!(atime(&mnt, name) > first, "{name}: after another change");
    }
    let last = atime(&mnt, "large");
    cluster.unmount("relatime");
    assert_eq!(atime(&plain, "large"), last, "the end of a mount leaves nothing untold");
}

#[test]
fn statfs_is_logical_and_never_waits() {
    tests::skip_if!(no_mount);
    const LEN: u64 = 64 << 20;
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let used = || {
        let stat = nix::sys::statvfs::statvfs(&mnt).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    };
    let before = used();
    Content::new(4, 1, 1).write_file(&mnt.join("file"), LEN).unwrap();
    wait_until("statfs to show the file", LIMIT, || used() == before + LEN);
    let stat = nix::sys::statvfs::statvfs(&mnt).unwrap();
    assert!(stat.name_max() == 255 && stat.blocks_free() > 0 && stat.files_free() > 0);
    cluster.kill(&["meta-1", "meta-2", "meta-3"]);
    for _ in 0..20 {
        let start = tokio::time::Instant::now();
        assert_eq!(used(), before + LEN, "what was last known");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
