//! A file that is open on one mount can be read and written there after another mount has removed it, or put another one
//! in its place, until it is closed. Then it goes, with its space.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::Content;
use tests::wait::wait_until;

/// Two mounts are asked, what was noted is verified, and the loops turn.
const GONE_LIMIT: Duration = Duration::from_secs(60);
const LEN: usize = 3 << 20;

fn inodes(cluster: &Cluster) -> u64 {
    cluster.status()["inodes"].as_u64().expect("a number")
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).expect("it is open");
    bytes
}

#[test]
fn what_one_mount_removes_stays_for_the_other_until_it_closes_it() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let (here, there) = (cluster.mount("here"), cluster.mount("there"));
    let (removed, replaced) = (Content::new(6, 1, 1), Content::new(6, 2, 1));
    removed.write_file(&there.join("removed"), LEN.try_into().unwrap()).unwrap();
    replaced.write_file(&there.join("replaced"), LEN.try_into().unwrap()).unwrap();
    let before = inodes(&cluster);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(here.join(name)).unwrap();
    let (a, b) = (open("removed"), open("replaced"));
    std::fs::write(there.join("new"), b"new").unwrap();
    for n in 0..50 {
        std::fs::write(there.join(format!("other-{n}")), b"x").unwrap();
    }
    std::fs::remove_file(there.join("removed")).unwrap();
    std::fs::rename(there.join("new"), there.join("replaced")).unwrap();
    for n in 0..50 {
        std::fs::remove_file(there.join(format!("other-{n}"))).unwrap();
    }
    // What nobody has open goes: so everybody has been asked.
    wait_until("files that nobody has open to go", GONE_LIMIT, || inodes(&cluster) == before + 1);
    removed.check(0, &read(&a)).unwrap();
    replaced.check(0, &read(&b)).unwrap();
    a.write_all_at(b"still writable", 0).unwrap();
    a.sync_all().unwrap();
    assert_eq!(&read(&a)[..14], b"still writable");
    // The kernel believes a name for up to a second.
    let replaced_here = || std::fs::read(here.join("replaced")).unwrap() == b"new";
    wait_until("the name to lead to the new file", GONE_LIMIT, replaced_here);
    let gone = || File::open(here.join("removed")).is_err_and(|e| e.raw_os_error() == Some(nix::libc::ENOENT));
    wait_until("the removed name to be gone", GONE_LIMIT, gone);

    // A new leader asks again; a mount that dies holds nothing.
    cluster.kill(&[cluster.leader()]);
    replaced.check(0, &read(&b)).unwrap();
    drop((a, b));
    wait_until("closed files to go", GONE_LIMIT, || inodes(&cluster) == before - 1);
}
