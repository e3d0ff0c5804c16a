//! What one writer was promised, and what must therefore be there afterwards.
//!
//! An operation that returned success is acknowledged: exactly its result must be found. One that failed, or was cut
//! off, may or may not have happened: both results are allowed, nothing else. A file whose last operation failed is
//! left alone from then on, so a late effect of that operation is covered.

use crate::content::Content;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of one block of an [`Expect::Blocks`] file.
pub const BLOCK: usize = 8 << 10;
/// The unit in which an unacknowledged overwrite may have happened in part: a page.
const PAGE: usize = 4 << 10;
/// Faults shown of one check.
const SHOWN: usize = 20;

/// One whole state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not there.
    Absent,
    /// This version, this long.
    Whole {
        /// Which content.
        version: u64,
        /// In bytes.
        len: usize,
    },
    /// A creation that was not acknowledged: any beginning of this version, or zeros in it, up to this length.
    Part {
        /// Which content.
        version: u64,
        /// In bytes.
        len: usize,
    },
}

/// What is allowed for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// One of these.
    OneOf(Vec<State>),
    /// Appended to: version 0, at least `acked` long, at most `tried`.
    Log {
        /// Acknowledged length in bytes.
        acked: usize,
        /// Length with the append whose outcome is unknown.
        tried: usize,
    },
    /// Overwritten in place in blocks of [`BLOCK`]: the acknowledged version of each and one that was tried.
    Blocks(Vec<(u64, Option<u64>)>),
}

/// One operation of a writer.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// When it began.
    pub start: Instant,
    /// How long it took, to its acknowledgement or failure.
    pub took: Duration,
}

/// Everything one writer did in its directory.
#[derive(Debug)]
pub struct Ledger {
    /// Of the whole run; in every message.
    pub seed: u64,
    /// Its directory, relative to the root of the file system.
    pub dir: String,
    /// File number and what is allowed, by name.
    pub files: BTreeMap<String, (u64, Expect)>,
    /// Operations in order.
    pub done: Vec<Done>,
    /// Operations that failed: what, and why.
    pub failed: Vec<String>,
}

impl Ledger {
    /// An empty one.
    pub fn new(seed: u64, dir: &str) -> Ledger {
        Ledger { seed, dir: dir.into(), files: BTreeMap::new(), done: Vec::new(), failed: Vec::new() }
    }

    /// The longest time an operation took that was under way at some moment between `from` and `to`.
    pub fn slowest_between(&self, from: Instant, to: Instant) -> Duration {
        let meets = |done: &&Done| done.start <= to && done.start + done.took >= from;
        self.done.iter().filter(meets).map(|done| done.took).max().unwrap_or_default()
    }

    /// Compares the directory under `root` with what was promised. Returns how many files were checked.
    ///
    /// # Errors
    /// What is wrong, one line for each file, at most 20.
    pub fn check(&self, root: &Path) -> Result<usize, String> {
        let dir = root.join(&self.dir);
        let mut wrong = Vec::new();
        for (name, (file, expect)) in &self.files {
            if let Err(what) = self.check_file(&dir.join(name), *file, expect) {
                wrong.push(format!("{}/{name}: {what} (allowed: {})", self.dir, brief(expect)));
            }
        }
        let names = std::fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        for name in names {
            let name = name.map_err(|error| format!("{}: {error}", dir.display()))?.file_name();
            let name = name.to_string_lossy();
            if !self.files.contains_key(name.as_ref()) {
                wrong.push(format!("{}/{name}: nobody made this", self.dir));
            }
        }
        if wrong.is_empty() {
            return Ok(self.files.len());
        }
        let count = wrong.len();
        wrong.truncate(SHOWN);
        Err(format!("seed {}: {count} of {} files are wrong:\n  {}", self.seed, self.files.len(), wrong.join("\n  ")))
    }

    /// One name.
    fn check_file(&self, path: &Path, file: u64, expect: &Expect) -> Result<(), String> {
        let found = match read_whole(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("cannot be read: {error}")),
        };
        match expect {
            Expect::OneOf(states) => {
                let mut last = Err("no state is allowed".to_string());
                for state in states {
                    last = self.matches(*state, file, found.as_deref());
                    if last.is_ok() {
                        return Ok(());
                    }
                }
                last
            }
            Expect::Log { acked, tried } => {
                let bytes = found.ok_or("lost")?;
                if bytes.len() < *acked || bytes.len() > *tried {
                    return Err(format!("{} bytes long", bytes.len()));
                }
                Content::new(self.seed, file, 0).check(0, &bytes).map_err(|mismatch| format!("{mismatch:?}"))
            }
            Expect::Blocks(blocks) => {
                let bytes = found.ok_or("lost")?;
                if bytes.len() != blocks.len() * BLOCK {
                    return Err(format!("{} bytes long", bytes.len()));
                }
                self.check_blocks(file, blocks, &bytes)
            }
        }
    }

    /// Each page of each block is of its acknowledged version or of the one that was tried.
    fn check_blocks(&self, file: u64, blocks: &[(u64, Option<u64>)], bytes: &[u8]) -> Result<(), String> {
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            let (acked, tried) = blocks[index * PAGE / BLOCK];
            let at = u64::try_from(index * PAGE).expect("an offset fits 64 bits");
            let is = |version| Content::new(self.seed, file, version).check(at, page);
            if let Err(mismatch) = is(acked)
                && tried.is_none_or(|version| is(version).is_err())
            {
                return Err(format!("page at {at}: version {acked} (tried {tried:?}): {mismatch:?}"));
            }
        }
        Ok(())
    }

    /// Whether this is that state.
    fn matches(&self, state: State, file: u64, found: Option<&[u8]>) -> Result<(), String> {
        match (state, found) {
            (State::Absent, None) => Ok(()),
            (State::Absent, Some(bytes)) => Err(format!("there, {} bytes long", bytes.len())),
            (State::Whole { .. } | State::Part { .. }, None) => Err("lost".into()),
            (State::Whole { version, len }, Some(bytes)) => {
                if bytes.len() != len {
                    return Err(format!("{} bytes long", bytes.len()));
                }
                Content::new(self.seed, file, version).check(0, bytes).map_err(|mismatch| format!("{mismatch:?}"))
            }
            (State::Part { version, len }, Some(bytes)) => {
                let wanted = Content::new(self.seed, file, version).bytes(0, len);
                let fits = bytes.len() <= len && bytes.iter().zip(&wanted).all(|(is, want)| is == want || *is == 0);
                fits.then_some(()).ok_or_else(|| format!("{} bytes long, with bytes nobody wrote", bytes.len()))
            }
        }
    }
}

/// What is allowed, short enough for a message.
fn brief(expect: &Expect) -> String {
    match expect {
        Expect::OneOf(states) => format!("{states:?}"),
        Expect::Log { acked, tried } => format!("{acked}..={tried} bytes"),
        Expect::Blocks(blocks) => format!("{} blocks", blocks.len()),
    }
}

/// A whole file, in large reads.
fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger with one file of each kind, and a directory that agrees with it.
    fn sample(dir: &Path) -> Ledger {
        let mut ledger = Ledger::new(3, "w");
        let root = dir.join("w");
        std::fs::create_dir(&root).unwrap();
        let mut expect = |name: &str, file: u64, expect: Expect, bytes: Option<Vec<u8>>| {
            ledger.files.insert(name.into(), (file, expect));
            if let Some(bytes) = bytes {
                std::fs::write(root.join(name), bytes).unwrap();
            }
        };
        let content = |file, version, len| Some(Content::new(3, file, version).bytes(0, len));
        expect("whole", 1, Expect::OneOf(vec![State::Whole { version: 2, len: 500 }]), content(1, 2, 500));
        expect("gone", 2, Expect::OneOf(vec![State::Absent]), None);
        expect("log", 3, Expect::Log { acked: 100, tried: 200 }, content(3, 0, 150));
        let mut blocks = content(4, 5, 2 * BLOCK).unwrap();
        Content::new(3, 4, 6).fill(u64::try_from(BLOCK).unwrap(), &mut blocks[BLOCK..BLOCK + PAGE]);
        expect("blocks", 4, Expect::Blocks(vec![(5, None), (5, Some(6))]), Some(blocks));
        ledger
    }

    #[test]
    fn what_was_promised_passes_and_each_kind_of_loss_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = sample(dir.path());
        assert_eq!(ledger.check(dir.path()), Ok(4));
        let root = dir.path().join("w");
        let breaks_if = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let path = root.join(name);
            let before = std::fs::read(&path).ok();
            let mut bytes = before.clone().unwrap_or_default();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let error = ledger.check(dir.path()).unwrap_err();
            assert!(error.contains(&format!("w/{name}: ")), "{error}");
            before.map_or_else(|| std::fs::remove_file(&path), |bytes| std::fs::write(&path, bytes)).unwrap();
        };
        breaks_if("whole", &|bytes| bytes.truncate(499));
        breaks_if("whole", &|bytes| bytes[7] ^= 1);
        breaks_if("gone", &|_| {});
        breaks_if("log", &|bytes| bytes.truncate(99));
        breaks_if("log", &|bytes| bytes[120] = 0);
        breaks_if("blocks", &|bytes| bytes[0] ^= 1);
        breaks_if("stranger", &|_| {});
        std::fs::remove_file(root.join("whole")).unwrap();
        assert!(ledger.check(dir.path()).unwrap_err().contains("w/whole: lost"));
    }
}
