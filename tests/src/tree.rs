//! A real directory tree to store, and whether two trees are equal.

use crate::command::{Ended, run};
use crate::damage::files_below;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Comparing two trees takes this long at most.
const COMPARE_LIMIT: Duration = Duration::from_secs(300);
/// Larger files are left out of a sample: the big-file tests do those.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Where real files are on a machine that could compile this: system headers and the crates of the registry.
fn sources() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    vec![PathBuf::from("/usr/include"), cargo.join("registry/src")]
}

/// Copies `files` real files with their directories into the new directory `to`, and adds entries that break careless
/// code: empty files and directories, odd and long names, symlinks (dangling too), unusual modes, odd lengths.
///
/// # Panics
/// If this machine does not have that many files, or copying fails.
pub fn make_sample(to: &Path, files: usize) {
    std::fs::create_dir_all(to).expect("the sample's directory can be made");
    let mut copied = 0;
    'copy: for source in sources() {
        for path in files_below(&source) {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if meta.len() > FILE_LEN_MAX {
                continue;
            }
            let inside = path.strip_prefix("/").expect("sources are absolute paths");
            let target = to.join(inside);
            std::fs::create_dir_all(target.parent().expect("it has a parent")).expect("a directory can be made");
            std::fs::copy(&path, &target).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
            copied += 1;
            if copied == files {
                break 'copy;
            }
        }
    }
    assert_eq!(copied, files, "this machine has too few files in {:?}", sources());
    add_odd_entries(&to.join("odd"));
}

/// What real trees have once in a while.
fn add_odd_entries(dir: &Path) {
    std::fs::create_dir_all(dir.join("empty dir/inner")).expect("a directory can be made");
    let long = "n".repeat(255);
    let names: [&[u8]; 7] =
        [b"empty", b" leading space", b"new\nline", b"-rf", "überlänge ☃".as_bytes(), b"not\xffutf8", long.as_bytes()];
    for (index, name) in names.iter().enumerate() {
        // Lengths around the limits of inline data (4 KiB), hash groups (16 KiB) and the smallest chunk (64 KiB).
        let len = [0, 1, 4096, 4097, 16_385, 65_535, 65_537][index];
        let path = dir.join(OsStr::from_bytes(name));
        std::fs::write(&path, vec![b'a'; len]).expect("an odd name can be written locally");
        let mode = [0o644, 0o600, 0o755, 0o444, 0o640, 0o664, 0o711][index];
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode can be set");
    }
    symlink("empty", dir.join("link")).expect("a symlink can be made");
    symlink("/does/not/exist", dir.join("dangling")).expect("a symlink can be made");
    symlink("..", dir.join("up")).expect("a symlink can be made");
}

/// Every entry below a directory: path inside, kind and mode, length, link target.
fn listing(dir: &Path) -> Vec<(PathBuf, u32, u64, Option<PathBuf>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        let entries = std::fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        for entry in entries {
            let path = entry.unwrap_or_else(|error| panic!("{}: {error}", at.display())).path();
            let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let target = meta.is_symlink().then(|| std::fs::read_link(&path).expect("a symlink can be read"));
            let len = if meta.is_file() { meta.len() } else { 0 };
            let inside = path.strip_prefix(dir).expect("it is below").to_path_buf();
            if meta.is_dir() {
                open.push(path);
            }
            found.push((inside, meta.mode(), len, target));
        }
    }
    found.sort();
    found
}

/// Checks that two trees have the same names, kinds, modes, lengths, link targets and bytes.
///
/// # Panics
/// If not, with the first differences.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (here, there) = (listing(left), listing(right));
    let only = |a: &[(PathBuf, u32, u64, Option<PathBuf>)], b: &[(PathBuf, u32, u64, Option<PathBuf>)]| {
        a.iter().filter(|entry| b.binary_search(entry).is_err()).take(5).cloned().collect::<Vec<_>>()
    };
    if here != there {
        let (left_only, right_only) = (only(&here, &there), only(&there, &here));
        panic!(
            "{} and {} differ (path, mode, length, link):\n  {left_only:?}\n  {right_only:?}",
            left.display(),
            right.display()
        );
    }
    let diff: Ended =
        run(Command::new("diff").args(["-r", "-q", "--no-dereference"]).arg(left).arg(right), COMPARE_LIMIT);
    assert!(diff.ok(), "{diff}");
}
