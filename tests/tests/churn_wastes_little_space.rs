//! However much was written, overwritten and removed: when garbage has been collected, the disks of the chunkservers
//! take less than 1.3 times the bytes of all files with their copies.
//!
//! What does not depend on the data must not decide this: each data directory reserves up to 16 MiB ahead in each of
//! its two logs, and leaves a last segment of small chunks alone that is shorter than 64 MiB. So there are more than
//! 550 MiB of files, of which each server has a copy.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::content::{Content, full};
use tests::damage::files_below;
use tests::wait::wait_until;

const SEED: u64 = 58;
/// Each has a directory of its own.
const WRITERS: u64 = 2;
/// Files of each writer, and their lengths: above what is kept with the metadata.
const LARGE: usize = 50;
const LARGE_LEN: std::ops::Range<u64> = 4 << 20..8 << 20;
const SMALL: usize = 400;
const SMALL_LEN: std::ops::Range<u64> = 20 << 10..60 << 10;
/// A file of this many bytes has pieces of this many bytes overwritten, here and there; so often in a round.
const PATCHED_LEN: usize = 8 << 20;
const PATCH_LEN: usize = 8 << 10;
const PATCHES: usize = 100;
/// Of every ten files so many are changed in a round.
const CHANGED_OF_TEN: u32 = 4;
/// The files together have more bytes than this.
const LIVE_MIN: u64 = 550 << 20;
/// Copies of each chunk.
const COPIES: u64 = 3;
/// The most that the disks take, in hundredths of the bytes of all copies.
const SPACE_MAX: u64 = 130;
/// The space of small chunks comes back by compaction, for which is looked every 30 s.
const BACK_LIMIT: Duration = Duration::from_secs(120);

fn rounds() -> usize {
    if full() { 20 } else { 4 }
}

/// A file's number, version and length.
type Kept = (u64, u64, u64);

/// Changes files in its directory, and knows what is in them.
struct Writer {
    root: PathBuf,
    random: StdRng,
    next: u64,
    files: BTreeMap<String, Kept>,
    patched: Vec<u8>,
    written: u64,
}

impl Writer {
    fn new(root: PathBuf, number: u64) -> Writer {
        std::fs::create_dir(&root).unwrap();
        let random = StdRng::seed_from_u64(SEED + number);
        Writer { root, random, next: number << 32, files: BTreeMap::new(), patched: Vec::new(), written: 0 }
    }

    fn fill(&mut self) {
        (0..LARGE).for_each(|_| self.create("large"));
        (0..SMALL).for_each(|_| self.create("small"));
        self.patched = Content::new(SEED, self.next, 1).bytes(0, PATCHED_LEN);
        self.next += 1;
        std::fs::write(self.root.join("patched"), &self.patched).unwrap();
    }

    fn some_len(&mut self, kind: &str) -> u64 {
        self.random.random_range(if kind.starts_with("large") { LARGE_LEN } else { SMALL_LEN })
    }

    fn create(&mut self, kind: &str) {
        let (file, len) = (self.next, self.some_len(kind));
        self.next += 1;
        self.write(format!("{kind}-{file}"), (file, 1, len));
    }

    /// A new file, or one that is cut off and written anew.
    fn write(&mut self, name: String, kept: Kept) {
        let (file, version, len) = kept;
        Content::new(SEED, file, version).write_file(&self.root.join(&name), len).unwrap();
        self.written += len;
        self.files.insert(name, kept);
    }

    /// One of the ways in which a file changes.
    fn change(&mut self, name: &str) {
        let (file, version, len) = self.files[name];
        let path = self.root.join(name);
        match self.random.random_range(0..3) {
            0 => {
                let bytes = Content::new(SEED, file, version + 1).bytes(0, usize::try_from(len).unwrap());
                let open = File::options().write(true).open(&path).unwrap();
                open.write_all_at(&bytes, 0).unwrap();
                open.sync_all().unwrap();
                self.written += len;
                self.files.insert(name.to_owned(), (file, version + 1, len));
            }
            1 => {
                let len = self.some_len(name);
                self.write(name.to_owned(), (file, version + 1, len));
            }
            _ => {
                std::fs::remove_file(&path).unwrap();
                self.files.remove(name);
                self.create(name.split('-').next().unwrap());
            }
        }
    }

    fn round(&mut self) {
        let names: Vec<String> = self.files.keys().cloned().collect();
        for name in names {
            if self.random.random_range(0..10) < CHANGED_OF_TEN {
                self.change(&name);
            }
        }
        let open = File::options().write(true).open(self.root.join("patched")).unwrap();
        for _ in 0..PATCHES {
            let at = PATCH_LEN * self.random.random_range(0..PATCHED_LEN / PATCH_LEN);
            let piece = Content::new(SEED, self.next, 2).bytes(0, PATCH_LEN);
            self.next += 1;
            open.write_all_at(&piece, u64::try_from(at).unwrap()).unwrap();
            self.patched[at..at + PATCH_LEN].copy_from_slice(&piece);
        }
        open.sync_all().unwrap();
        self.written += u64::try_from(PATCHES * PATCH_LEN).unwrap();
    }

    /// Bytes of all its files.
    fn live(&self) -> u64 {
        self.files.values().map(|(.., len)| len).sum::<u64>() + u64::try_from(self.patched.len()).unwrap()
    }

    /// Compares every byte, in its directory under another root.
    fn check(&self, root: &Path) {
        let dir = root.join(self.root.file_name().unwrap());
        for (name, (file, version, len)) in &self.files {
            Content::new(SEED, *file, *version).check_file(&dir.join(name), *len).unwrap();
        }
        assert!(std::fs::read(dir.join("patched")).unwrap() == self.patched, "the file that was overwritten in pieces");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), self.files.len() + 1);
    }
}

/// Bytes that all data directories take on their disks.
fn on_disk(cluster: &Cluster) -> u64 {
    let names = cluster.servers().into_iter().filter(|name| name.starts_with("chunk-"));
    let files = names.flat_map(|name| files_below(&cluster.data(&name)));
    files.map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
}

#[test]
fn after_much_writing_and_removing_the_disks_take_little_more_than_what_is_there() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start_with(1, 3);
    cluster.dfs(&["admin", "settings", "set", "undelete_window_s=0", "--yes"]).must();
    let mnt = cluster.mount("m");
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|number| Writer::new(mnt.join(format!("w{number}")), number)).collect();
    std::thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(move || {
                writer.fill();
                (0..rounds()).for_each(|_| writer.round());
            });
        }
    });
    cluster.unmount("m");
    let live: u64 = writers.iter().map(Writer::live).sum();
    let written: u64 = writers.iter().map(|writer| writer.written).sum();
    assert!(live > LIVE_MIN, "{live}");

    let hundredths = || on_disk(&cluster) * 100 / (COPIES * live);
    let at_first = hundredths();
    let said = cluster.dfs(&["admin", "gc", "run"]).must();
    let collected = hundredths();
    let took = wait_until("the disks to take little", BACK_LIMIT, || hundredths() < SPACE_MAX);
    eprintln!(
        "{written} bytes written, {live} live; on disk, in hundredths of all copies: {at_first}, {collected} when \
         garbage was collected ({}), {} after {took:?}",
        said.text().trim(),
        hundredths()
    );
    let fresh = cluster.mount("fresh");
    writers.iter().for_each(|writer| writer.check(&fresh));
    cluster.unmount("fresh");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
}
