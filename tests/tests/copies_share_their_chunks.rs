//! `copy_file_range` and `cp` on a mount make copies that take no space and no time for their bytes, and that have a life
//! of their own afterwards.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::command::run;
use tests::content::Content;
use tests::wait::wait_until;

const LEN: u64 = 48 << 20;

fn chunk_bytes(cluster: &Cluster) -> u64 {
    cluster.status()["chunk_bytes"].as_u64().expect("a number")
}

/// Copies `len` bytes between two positions as the standard library does: with `copy_file_range` if that works.
fn copy((from, from_at): (&File, u64), (to, at): (&File, u64), len: u64) -> std::io::Result<u64> {
    let (mut from, mut to) = (from, to);
    from.seek(SeekFrom::Start(from_at))?;
    to.seek(SeekFrom::Start(at))?;
    std::io::copy(&mut from.take(len), &mut to)
}

#[test]
fn a_copy_takes_no_space_and_is_a_file_of_its_own() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let (old, new) = (Content::new(4, 1, 1), Content::new(4, 1, 2));
    let [a, b, c] = ["a", "b", "c"].map(|name| mnt.join(name));
    old.write_file(&a, LEN).unwrap();
    // Unsaved when it is copied.
    let source = OpenOptions::new().read(true).write(true).open(&a).unwrap();
    source.write_all_at(&old.bytes(LEN, 1000), LEN).unwrap();
    let target = File::create(&b).unwrap();
    assert_eq!(copy((&source, 0), (&target, 0), u64::MAX).unwrap(), LEN + 1000);
    drop(target);
    let stored = chunk_bytes(&cluster);
    assert!(stored < LEN + (1 << 20), "{stored} bytes for one file and its copy");
    old.check_file(&b, LEN + 1000).unwrap();
    // The kernel believes what it knows of a file for up to a second.
    let blocks = |path| std::fs::metadata(path).unwrap().blocks();
    wait_until("both to show the same size on disk", PROCESS_LIMIT, || blocks(&a) == blocks(&b));

    // Each goes its own way.
    source.write_all_at(&new.bytes(5000, 3_000_000), 5000).unwrap();
    drop(source);
    old.check_file(&b, LEN + 1000).unwrap();
    run(Command::new("cp").args([&b, &c]), Duration::from_secs(60)).must();
    std::fs::remove_file(&a).unwrap();
    std::fs::remove_file(&b).unwrap();
    let fresh = cluster.mount("fresh");
    old.check_file(&fresh.join("c"), LEN + 1000).unwrap();
}

#[test]
fn ranges_of_one_file_are_copied_as_locally() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let local = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for dir in [local.path(), mnt.as_path()] {
        let path = dir.join("file");
        Content::new(5, 1, 1).write_file(&path, 300_000).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        let range = |from, to, len| copy((&file, from), (&other, to), len).unwrap();
        // Into a page that is mapped and read, over the end, from behind the end.
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 8192).unwrap();
        let results = [range(1, 8200, 100), range(100, 299_000, 50_000), range(400_000, 0, 10)];
        file.read_exact_at(&mut page, 8192).unwrap();
        seen.push((format!("{results:?}"), page.to_vec(), std::fs::read(&path).unwrap()));
    }
    assert_eq!(seen[0].0, seen[1].0);
    assert!(seen[0] == seen[1], "the bytes differ");
}
