//! What every disk does when nothing fails: one list for the real one and the simulated one.

use crate::disk::{AlignedBuf, Disk};
use std::io;
use std::path::{Path, PathBuf};

/// Checks a disk inside an empty directory of it.
///
/// # Panics
/// If the disk breaks a promise of [`crate::disk`].
pub fn disk_contract(disk: &dyn Disk, root: &Path) {
    names(disk, &root.join("names"));
    contents(disk, &root.join("contents"));
    direct(disk, &root.join("direct"));
    directories(disk, &root.join("directories"));
    locks(disk, &root.join("locks"));
    let (total, free) = disk.space(root).expect("space");
    assert!(free > 0 && free <= total, "{free} of {total}");
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

fn names(disk: &dyn Disk, dir: &Path) {
    disk.create_dir_all(dir).expect("create");
    disk.create_dir_all(dir).expect("it is fine if it is there");
    let (a, b) = (dir.join("a"), dir.join("b"));
    assert_eq!(kind(disk.open(&a)), Some(io::ErrorKind::NotFound));
    let file = disk.create(&a).expect("create");
    assert_eq!(kind(disk.create(&a)), Some(io::ErrorKind::AlreadyExists));
    assert_eq!(kind(disk.create(&dir.join("none").join("a"))), Some(io::ErrorKind::NotFound));
    file.write_all_at(&[b"of a"], 0).expect("write");
    disk.create(&b).expect("create").write_all_at(&[b"of b, longer"], 0).expect("write");
    disk.create(&dir.join("Z")).expect("create");
    assert_eq!(disk.list(dir).expect("list"), ["Z", "a", "b"].map(PathBuf::from), "names only, sorted");
    disk.rename(&a, &b).expect("rename replaces");
    disk.sync_dir(dir).expect("sync");
    assert!(!disk.exists(&a) && disk.exists(&b) && disk.exists(dir));
    assert_eq!(read(disk, &b), b"of a");
    disk.remove(&b).expect("remove");
    assert_eq!(kind(disk.remove(&b)), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(disk.rename(&b, &a)), Some(io::ErrorKind::NotFound));
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0).expect("a handle outlives the name");
    assert_eq!(&bytes, b"of a");
    assert_eq!(disk.list(dir).expect("list"), [PathBuf::from("Z")]);
    assert_eq!(kind(disk.list(&dir.join("none"))), Some(io::ErrorKind::NotFound));
}

fn contents(disk: &dyn Disk, dir: &Path) {
    disk.create_dir_all(dir).expect("create");
    let path = dir.join("f");
    let file = disk.create(&path).expect("create");
    assert_eq!(file.len().expect("len"), 0);
    file.write_all_at(&[b"one", b"", b"two"], 10).expect("write");
    file.write_all_at(&[], 0).expect("nothing");
    file.write_all_at(&[b""], 100).expect("nothing");
    assert_eq!(file.len().expect("len"), 16);
    assert_eq!(read(disk, &path), b"\0\0\0\0\0\0\0\0\0\0onetwo", "a hole reads as zeros");
    assert_eq!(kind(file.read_exact_at(&mut [0; 2], 15)), Some(io::ErrorKind::UnexpectedEof));
    file.read_exact_at(&mut [], 16).expect("nothing");
    file.set_len(12).expect("cut");
    file.set_len(14).expect("lengthen");
    assert_eq!(read(disk, &path), b"\0\0\0\0\0\0\0\0\0\0on\0\0", "what was cut does not come back");
    file.reserve(14, 1 << 20).expect("reserve");
    assert_eq!(file.len().expect("len"), 14, "reserved space is not length");
    let block = vec![7; 4096];
    file.write_all_at(&[&block, &block, &block, &block], 0).expect("write");
    file.punch(100, 3 * 4096).expect("punch");
    let mut want = vec![7; 4 * 4096];
    want[4096..3 * 4096].fill(0);
    assert_eq!(read(disk, &path), want, "whole blocks only");
    file.punch(3 * 4096, 1 << 20).expect("punch past the end");
    assert_eq!(file.len().expect("len"), 4 * 4096);
    file.sync().expect("sync");
    let many: Vec<Vec<u8>> = (0..3000u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let parts: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    file.write_all_at(&parts, 1).expect("more buffers than one call takes");
    let again = disk.open(&path).expect("open");
    let mut bytes = vec![0; 12000];
    again.read_exact_at(&mut bytes, 1).expect("all handles see the same bytes");
    assert_eq!(bytes, many.concat());
    again.sync().expect("sync through another handle");
}

fn direct(disk: &dyn Disk, dir: &Path) {
    disk.create_dir_all(dir).expect("create");
    let path = dir.join("f");
    let plain = disk.create(&path).expect("create");
    plain.write_all_at(&[&[1; 100]], 0).expect("write");
    let file = disk.open_direct(&path).expect("open");
    let mut buf = AlignedBuf::zeroed(8192);
    buf.fill(2);
    file.write_all_at(&[&buf], 4096).expect("aligned");
    for (bytes, at) in [(&buf[..], 512), (&buf[..4095], 4096), (&buf[1..4097], 4096)] {
        assert_eq!(kind(file.write_all_at(&[bytes], at)), Some(io::ErrorKind::InvalidInput));
    }
    assert_eq!(kind(file.write_all_at(&[&buf, &buf], 4096)), Some(io::ErrorKind::InvalidInput));
    file.sync().expect("sync");
    let mut want = vec![2; 3 * 4096];
    want[..100].fill(1);
    want[100..4096].fill(0);
    assert_eq!(read(disk, &path), want);
    let mut some = [0; 3];
    file.read_exact_at(&mut some, 99).expect("reads need no alignment");
    assert_eq!(some, [1, 0, 0]);
    plain.write_all_at(&[&[3; 10]], 4100).expect("write");
    buf.fill(4);
    file.write_all_at(&[&buf[..4096]], 4096).expect("aligned");
    plain.read_exact_at(&mut some, 4100).expect("read");
    assert_eq!(some, [4; 3], "both handles see the same bytes");
}

fn directories(disk: &dyn Disk, dir: &Path) {
    let deep = dir.join("a").join("b");
    disk.create_dir_all(&deep).expect("create");
    disk.create(&deep.join("f")).expect("create");
    assert_eq!(disk.list(&dir.join("a")).expect("list"), [PathBuf::from("b")]);
    disk.rename(&dir.join("a"), &dir.join("c")).expect("rename a directory");
    assert!(disk.exists(&dir.join("c").join("b").join("f")) && !disk.exists(&deep));
    assert!(disk.create_dir_all(&dir.join("c").join("b").join("f")).is_err(), "a file is there");
    disk.remove_dir_all(&dir.join("c")).expect("remove");
    disk.sync_dir(dir).expect("sync");
    assert!(disk.list(dir).expect("list").is_empty());
}

fn locks(disk: &dyn Disk, dir: &Path) {
    disk.create_dir_all(dir).expect("create");
    let path = dir.join("lock");
    let held = disk.lock(&path).expect("free");
    assert_eq!(kind(disk.lock(&path)), Some(io::ErrorKind::WouldBlock));
    drop(held);
    disk.lock(&path).expect("free again");
}

fn read(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    let file = disk.open(path).expect("open");
    let mut bytes = vec![0; usize::try_from(file.len().expect("len")).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[cfg(test)]
mod tests {
    use super::disk_contract;
    use crate::disk::{Disk, RealDisk};
    use crate::testing::SimDisk;
    use std::path::Path;

    #[test]
    fn the_real_disk_keeps_the_contract() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        disk_contract(&RealDisk, dir.path());
    }

    #[test]
    fn the_simulated_disk_keeps_the_contract() {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("/data")).expect("create");
        disk_contract(&disk, Path::new("/data"));
    }
}
