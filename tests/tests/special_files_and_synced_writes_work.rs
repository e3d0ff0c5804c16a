//! Shared libraries, sockets, fifos, device nodes and trusted attributes on a mount; and what was written with O_SYNC or O_DSYNC,
//! or flushed by `msync`, is there when everything was killed right after the call returned.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::Content;

const LIMIT: Duration = Duration::from_secs(60);

/// The dynamic linker maps a library from the mount; if it cannot, it says so.
fn a_library_is_mapped(mnt: &Path) {
    let libc = run(Command::new("ldd").arg("/bin/ls"), LIMIT).must();
    let found = libc.text().lines().find_map(|line| line.split_whitespace().find(|word| word.starts_with("/")));
    let library = mnt.join("lib.so");
    fs::copy(found.expect("ls needs a library"), &library).unwrap();
    let ended = run(Command::new("/bin/true").env("LD_PRELOAD", &library), LIMIT).must();
    assert_eq!(ended.err, "", "it was loaded");
    let maps = run(Command::new("cat").arg("/proc/self/maps").env("LD_PRELOAD", &library), LIMIT).must();
    assert!(maps.text().contains(library.to_str().unwrap()), "{maps}");
}

fn sockets_and_fifos(mnt: &Path, other: &Path) {
    let place = mnt.join("socket");
    let listener = UnixListener::bind(&place).unwrap();
    assert!(fs::symlink_metadata(other.join("socket")).unwrap().file_type().is_socket());
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        heard
    });
    let mut stream = UnixStream::connect(&place).unwrap();
    stream.write_all(b"through a socket").unwrap();
    drop(stream);
    assert_eq!(answers.join().unwrap(), "through a socket");

    let fifo = mnt.join("fifo");
    mknod(&fifo, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    assert!(fs::symlink_metadata(other.join("fifo")).unwrap().file_type().is_fifo());
    let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
    File::options().write(true).open(mnt.join("fifo")).unwrap().write_all(b"through a fifo").unwrap();
    assert_eq!(reader.join().unwrap(), "through a fifo");
}

fn devices_and_trusted_attributes(mnt: &Path, other: &Path) {
    mknod(&mnt.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    let seen = fs::symlink_metadata(other.join("null")).unwrap();
    assert!(seen.file_type().is_char_device() && seen.rdev() == makedev(1, 3));

    let file = mnt.join("file");
    fs::write(&file, "x").unwrap();
    let tool = |program: &str, args: &[&str], of: &Path| run(Command::new(program).args(args).arg(of), LIMIT);
    for name in ["trusted.mark", "security.mark"] {
        tool("setfattr", &["-n", name, "-v", "kept"], &file).must();
        let read = tool("getfattr", &["--only-values", "-n", name], &other.join("file")).must();
        assert_eq!(read.out, b"kept", "{name}");
    }
    let text = file.to_str().unwrap();
    let shown =
        run(Command::new("setpriv").args(["--reuid=1000", "--clear-groups", "getfattr", "-d", "-m", "-", text]), LIMIT);
    assert!(!shown.text().contains("trusted"), "not for others: {shown}");
}

#[test]
fn files_that_are_no_files_work_as_locally() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 3);
    let (mnt, other) = (cluster.mount_with("m", &["-o", "dev"]), cluster.mount("other"));
    a_library_is_mapped(&mnt);
    sockets_and_fifos(&mnt, &other);
    devices_and_trusted_attributes(&mnt, &other);
}

/// `msync` of a shared map, as a database does it.
const MSYNC: &str = r#"
import mmap, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
m[4096:4096 + 6] = b"mapped"
m.flush()
"#;

#[test]
fn what_was_written_through_survives_the_death_of_everything() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let content = Content::new(66, 1, 1);
    let part = |at: u64| content.bytes(at, 10_000);
    let flags = [("o-sync", nix::libc::O_SYNC), ("o-dsync", nix::libc::O_DSYNC)];
    let files = flags.map(|(name, flags)| {
        let file = OpenOptions::new().create_new(true).read(true).write(true).custom_flags(flags).open(mnt.join(name));
        let file = file.unwrap();
        for at in [0, 10_000, 50_000] {
            file.write_all_at(&part(at), at).unwrap(); // never synced by hand
        }
        (name, file)
    });
    let mapped = tests::skip::no_python().is_none();
    if mapped {
        let map = mnt.join("map");
        fs::write(&map, vec![b'x'; 8192]).unwrap();
        File::open(&map).unwrap().sync_all().unwrap();
        run(Command::new("python3").args(["-c", MSYNC]).arg(&map), LIMIT).must();
    }
    cluster.kill_mount("m");
    cluster.kill(&cluster.servers());
    cluster.up();

    let fresh = cluster.mount("fresh");
    for (name, file) in files {
        drop(file);
        let read = fs::read(fresh.join(name)).unwrap();
        assert_eq!(read.len(), 60_000, "{name}");
        for at in [0, 10_000, 50_000] {
            let from = usize::try_from(at).unwrap();
            assert!(read[from..from + 10_000] == part(at), "{name} at {at}");
        }
        assert!(read[20_000..50_000].iter().all(|byte| *byte == 0), "{name}");
    }
    if mapped {
        assert_eq!(&fs::read(fresh.join("map")).unwrap()[4096..4102], b"mapped");
    }
}
