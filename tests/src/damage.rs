//! Flips stored bytes, as a bad disk would.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Read at once while searching.
const STEP: usize = 8 << 20;
/// The unit in which stored bytes are told from space that is only reserved.
const BLOCK: usize = 64 << 10;

/// All files below a directory, in order of their paths.
///
/// # Panics
/// If a directory cannot be read for another reason than having gone.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", dir.display()),
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Where `needle` starts in a file, every time.
fn find(file: &File, needle: &[u8]) -> std::io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut buffer = vec![0; STEP + needle.len()];
    let mut at = 0;
    loop {
        let mut len = 0;
        while len < buffer.len() {
            match file.read_at(&mut buffer[len..], at + u64::try_from(len).expect("fits"))? {
                0 => break,
                more => len += more,
            }
        }
        let window = &buffer[..len];
        let mut from = 0;
        while let Some(hit) = window[from..].iter().position(|&byte| byte == needle[0]) {
            from += hit;
            if from < STEP && window[from..].starts_with(needle) {
                found.push(at + u64::try_from(from).expect("fits"));
            }
            from += 1;
        }
        if len < buffer.len() {
            return Ok(found);
        }
        at += u64::try_from(STEP).expect("fits");
    }
}

/// Inverts the first byte of every place below `dir` where `needle` is stored, and syncs. Returns how many there were.
///
/// # Panics
/// If a file cannot be read or written, or `needle` is too short to be unique.
pub fn flip_stored(dir: &Path, needle: &[u8]) -> usize {
    assert!(needle.len() >= 16, "a short needle might be found elsewhere");
    let mut flipped = 0;
    for path in files_below(dir) {
        let Ok(file) = File::options().read(true).write(true).open(&path) else { continue };
        let places = find(&file, needle).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for &at in &places {
            file.write_all_at(&[!needle[0]], at).expect("a stored byte can be written");
        }
        if !places.is_empty() {
            file.sync_all().expect("what was damaged can be synced");
        }
        flipped += places.len();
    }
    flipped
}

/// Inverts `len` bytes somewhere in the records of a chunkserver's segments, and syncs. Returns where; `None` if nothing
/// is stored there. `random` gives a number below its argument.
///
/// # Panics
/// If a file cannot be read or written.
pub fn flip_anywhere(dir: &Path, len: usize, mut random: impl FnMut(u64) -> u64) -> Option<(PathBuf, u64)> {
    let mut places = Vec::new();
    for path in files_below(dir).into_iter().filter(|path| path.extension().is_some_and(|end| end == "seg")) {
        let Ok(file) = File::open(&path) else { continue };
        let mut at = 0;
        let mut block = vec![0; BLOCK];
        while let Ok(read @ 1..) = file.read_at(&mut block, at) {
            if read >= len && block[..read].iter().any(|byte| *byte != 0) {
                places.push((path.clone(), at, read));
            }
            at += u64::try_from(read).expect("fits");
        }
    }
    let count = u64::try_from(places.len()).expect("fits");
    if count == 0 {
        return None;
    }
    let (path, block, read) = places.swap_remove(usize::try_from(random(count)).expect("below a length"));
    let at = block + random(u64::try_from(read - len + 1).expect("fits"));
    let file = File::options().read(true).write(true).open(&path).expect("a segment can be opened");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).expect("it was read just now");
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, at).expect("a stored byte can be written");
    file.sync_all().expect("what was damaged can be synced");
    Some((path, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;

    #[test]
    fn a_pattern_is_found_also_across_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub");
        std::fs::create_dir(&path).unwrap();
        let content = Content::new(1, 1, 1);
        std::fs::write(path.join("file"), content.bytes(0, 2 * STEP + 100)).unwrap();
        let at = u64::try_from(STEP - 7).unwrap();
        assert_eq!(flip_stored(dir.path(), &content.bytes(at, 32)), 1);
        let bytes = std::fs::read(path.join("file")).unwrap();
        let mismatch = content.check(0, &bytes).unwrap_err();
        assert_eq!((mismatch.at, mismatch.wrong), (at, 1));
        assert_eq!(flip_stored(dir.path(), &content.bytes(at, 32)), 0);
    }
}
