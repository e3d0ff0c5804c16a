//! What a backup says of itself: the file `manifest` in its directory, in lines of text.
//!
//! ```text
//! dfs metadata backup 1
//! cluster <32 hex digits>
//! epoch <number>
//! applied <term> <index>
//! inodes <number>
//! chunks <number>
//! taken <seconds since 1970>
//! file <BLAKE3, 64 hex digits> <length> <name>         for each file, in the directory `state`
//! end <BLAKE3 of all the lines above, 64 hex digits>
//! ```
//!
//! The first line is the same in all versions but for its number. The manifest is written last: without it, or with one
//! that is not whole, a directory is no backup.

use super::failure::{Failure, Outcome};
use common::fault::Fault;
use common::id::{ClusterId, Epoch, LogIndex};
use common::proto::backup::BackupHead;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Its name.
pub(crate) const NAME: &str = "manifest";
/// The directory of the files it names.
pub(crate) const STATE: &str = "state";
const FIRST: &str = "dfs metadata backup ";
const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// What is in the backup.
    pub(crate) head: BackupHead,
    /// BLAKE3 of each of its files.
    pub(crate) hashes: Vec<[u8; 32]>,
    /// When it was made, in seconds since 1970.
    pub(crate) taken: i64,
}

impl Manifest {
    /// Its bytes.
    pub(crate) fn text(&self) -> String {
        let BackupHead { cluster, epoch, term, index, inodes, chunks, files } = &self.head;
        let mut text = format!("{FIRST}{VERSION}\ncluster {cluster}\nepoch {}\napplied {term} {}\n", epoch.0, index.0);
        let _ = writeln!(text, "inodes {inodes}\nchunks {chunks}\ntaken {}", self.taken); // a string takes everything
        for ((name, len), hash) in files.iter().zip(&self.hashes) {
            let _ = writeln!(text, "file {} {len} {name}", blake3::Hash::from(*hash).to_hex());
        }
        let end = blake3::hash(text.as_bytes()).to_hex();
        let _ = writeln!(text, "end {end}");
        text
    }

    /// Reads the one in the directory of a backup.
    pub(crate) fn read(dir: &Path) -> Outcome<Manifest> {
        let path = dir.join(NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let line = format!("{}: no whole backup: it has no file {NAME}", dir.display());
                return Err(Failure::new(line));
            }
            Err(error) => return Err(Failure::at("read", path.display(), error)),
        };
        Manifest::parse(&text).map_err(|what| Failure::at("read", path.display(), what))
    }

    fn parse(text: &str) -> Result<Manifest, String> {
        let first = text.lines().next().unwrap_or_default();
        let Some(version) = first.strip_prefix(FIRST) else { return Err("it is not the manifest of a backup".into()) };
        if version.parse() != Ok(VERSION) {
            return Err(format!("it is of version {version}, this program knows {VERSION}"));
        }
        let damaged = || "it is damaged or cut off".to_owned();
        let (body, end) = text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n')).ok_or_else(damaged)?;
        let body = &text[..=body.len()];
        if end != format!("end {}", blake3::hash(body.as_bytes()).to_hex()) {
            return Err(damaged());
        }
        let mut lines = body.lines().skip(1);
        let mut of = |key: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.map(str::to_owned).ok_or_else(|| format!("it has no line `{key}` in its place"))
        };
        let (cluster, epoch, applied) = (of("cluster")?, of("epoch")?, of("applied")?);
        let (inodes, chunks, taken) = (of("inodes")?, of("chunks")?, of("taken")?);
        let cluster: Result<ClusterId, _> = cluster.parse();
        let (term, index) = applied.split_once(' ').ok_or("applied: two numbers are needed")?;
        let (mut files, mut hashes) = (Vec::new(), Vec::new());
        for line in lines {
            let (name, len, hash) = file_line(line).ok_or_else(|| format!("`{line}` names no file"))?;
            files.push((name, len));
            hashes.push(hash);
        }
        let head = BackupHead {
            cluster: cluster.map_err(|error| format!("cluster: {error}"))?,
            epoch: Epoch(number(&epoch)?),
            term: number(term)?,
            index: LogIndex(number(index)?),
            inodes: number(&inodes)?,
            chunks: number(&chunks)?,
            files,
        };
        Ok(Manifest { head, hashes, taken: taken.parse().map_err(|_| format!("{taken} is no number"))? })
    }

    /// The paths of its files, below the directory of the backup.
    pub(crate) fn paths(&self, dir: &Path) -> Vec<PathBuf> {
        self.head.files.iter().map(|(name, _)| dir.join(STATE).join(name)).collect()
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        bytes_of(&self.head)
    }
}

/// Bytes of all files of a backup.
pub(crate) fn bytes_of(head: &BackupHead) -> u64 {
    head.files.iter().map(|(_, len)| len).sum()
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn file_line(line: &str) -> Option<(String, u64, [u8; 32])> {
    let (hash, rest) = line.strip_prefix("file ")?.split_once(' ')?;
    let (len, name) = rest.split_once(' ')?;
    is_name(name).then_some(())?;
    Some((name.to_owned(), len.parse().ok()?, *blake3::Hash::from_hex(hash).ok()?.as_bytes()))
}

/// A file name, not a path.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\n']) && name != "." && name != ".."
}

/// A backup that names files which are none must not be written anywhere.
pub(crate) fn check_names(head: &BackupHead) -> Result<(), Fault> {
    match head.files.iter().find(|(name, _)| !is_name(name)) {
        Some((name, _)) => Err(Fault::new(common::fault::Kind::Internal, format!("a file with the name {name:?}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let files = vec![("000012.sst".to_owned(), 300), ("a name".to_owned(), 0)];
        let head = BackupHead {
            cluster: ClusterId(0xab),
            epoch: Epoch(2),
            term: 3,
            index: LogIndex(400),
            inodes: 5,
            chunks: 6,
            files,
        };
        Manifest { head, hashes: vec![[7; 32], [8; 32]], taken: 1000 }
    }

    #[test]
    fn the_text_is_this_and_reads_back() {
        let text = manifest().text();
        let body = format!(
            "dfs metadata backup 1\ncluster {}ab\nepoch 2\napplied 3 400\ninodes 5\nchunks 6\ntaken 1000\n\
             file {} 300 000012.sst\nfile {} 0 a name\n",
            "0".repeat(30),
            "07".repeat(32),
            "08".repeat(32)
        );
        assert_eq!(text, format!("{body}end {}\n", blake3::hash(body.as_bytes()).to_hex()));
        assert_eq!(Manifest::parse(&text), Ok(manifest()));
    }

    #[test]
    fn one_that_is_damaged_cut_off_or_of_another_version_is_refused() {
        let text = manifest().text();
        for at in 0..text.len() {
            assert!(Manifest::parse(&text[..at]).is_err(), "cut at {at}");
            let mut other = text.clone().into_bytes();
            other[at] ^= 1;
            let other = String::from_utf8(other).unwrap();
            assert!(Manifest::parse(&other).is_err(), "byte {at}");
        }
        let newer = text.replacen("backup 1", "backup 2", 1);
        assert!(Manifest::parse(&newer).unwrap_err().contains("version 2"));
        let bad = Manifest { head: BackupHead { files: vec![("../x".into(), 1)], ..manifest().head }, ..manifest() };
        assert!(Manifest::parse(&bad.text()).unwrap_err().contains("names no file"));
    }
}
