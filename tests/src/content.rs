//! Bytes that follow from (seed, file, version, offset): any read of any range can be checked without keeping a copy,
//! and no two files or versions look alike, not even shifted.

use std::io::{self, Read, Write};
use std::path::Path;

/// Files are written and read in pieces of this many bytes.
const PIECE: usize = 4 << 20;

/// What one version of one file holds, endlessly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    key: u64,
}

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The first wrong byte, as an offset in the file.
    pub at: u64,
    /// How many of the bytes looked at are wrong.
    pub wrong: usize,
    /// True if all wrong bytes are zeros: a hole where data should be.
    pub zeros: bool,
}

/// Sebastiano Vigna's SplitMix64 finaliser: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Content {
    /// The content of `version` of `file` in the run with `seed`.
    pub fn new(seed: u64, file: u64, version: u64) -> Content {
        Content { key: mix(mix(mix(seed) ^ file) ^ version) }
    }

    /// Writes the bytes at `offset` and behind it into `into`.
    pub fn fill(self, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let word = mix(self.key.wrapping_add((at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
            let from = usize::try_from(at % 8).expect("below 8");
            let len = rest.len().min(8 - from);
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&word[from..from + len]);
            rest = tail;
            at += u64::try_from(len).expect("at most 8");
        }
    }

    /// `len` bytes from `offset` on.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// Compares what was read at `offset`.
    ///
    /// # Errors
    /// Where and how it differs.
    pub fn check(self, offset: u64, read: &[u8]) -> Result<(), Mismatch> {
        let wanted = self.bytes(offset, read.len());
        if wanted == read {
            return Ok(());
        }
        let wrong: Vec<usize> = (0..read.len()).filter(|&at| wanted[at] != read[at]).collect();
        let first = u64::try_from(wrong[0]).expect("an index fits 64 bits");
        Err(Mismatch { at: offset + first, wrong: wrong.len(), zeros: wrong.iter().all(|&at| read[at] == 0) })
    }

    /// Writes a file of `len` bytes, and syncs it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_file(self, path: &Path, len: u64) -> io::Result<()> {
        let mut file = std::fs::File::create(path)?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            let piece = usize::try_from(len - at).map_or(PIECE, |rest| rest.min(PIECE));
            self.fill(at, &mut buffer[..piece]);
            file.write_all(&buffer[..piece])?;
            at += u64::try_from(piece).expect("a length fits 64 bits");
        }
        file.sync_all()
    }

    /// Reads a file to its end and compares every byte and the length.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be read.
    pub fn check_file(self, path: &Path, len: u64) -> Result<(), String> {
        let fault = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = std::fs::File::open(path).map_err(fault)?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        loop {
            let read = file.read(&mut buffer).map_err(fault)?;
            if read == 0 {
                break;
            }
            self.check(at, &buffer[..read]).map_err(|mismatch| format!("{}: {mismatch:?}", path.display()))?;
            at += u64::try_from(read).expect("a length fits 64 bits");
        }
        if at == len { Ok(()) } else { Err(format!("{}: {at} bytes long, not {len}", path.display())) }
    }
}

/// True if the long sizes were asked for (`tests/run.sh --full`).
pub fn full() -> bool {
    std::env::var_os("DFS_TEST_FULL").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_equals_the_same_range_of_the_whole() {
        let content = Content::new(7, 1, 2);
        let whole = content.bytes(0, 100);
        for from in 0..20 {
            for len in 0..20 {
                assert_eq!(content.bytes(from, len), whole[usize::try_from(from).unwrap()..][..len]);
            }
        }
    }

    #[test]
    fn a_wrong_byte_is_found_and_files_and_versions_differ() {
        let content = Content::new(7, 1, 2);
        let mut bytes = content.bytes(3, 64);
        assert_eq!(content.check(3, &bytes), Ok(()));
        bytes[10] = 0;
        assert_eq!(content.check(3, &bytes), Err(Mismatch { at: 13, wrong: 1, zeros: true }));
        for other in [Content::new(8, 1, 2), Content::new(7, 2, 2), Content::new(7, 1, 3), Content::new(7, 2, 1)] {
            assert_ne!(other.bytes(3, 64), content.bytes(3, 64));
        }
    }
}
