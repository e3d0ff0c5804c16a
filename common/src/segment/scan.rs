//! Walking through a segment's bytes: records, and what lies between them.

use super::format::{Header, RECORD_HEADER_LEN, Spot};
use super::{Align, Position, Result, disk_error};
use crate::disk::File;
use crate::units::{len_u64, len_usize};
use nix::libc::EIO;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes read ahead of the walk.
const WINDOW_LEN: u64 = 256 << 10;
/// Bytes read where the walk has jumped over a body: the next thing it does is often to jump again.
const JUMP_LEN: u64 = 4096;

/// What is found next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A sound header, with all of its record inside the file.
    Record(Header),
    /// No sound header on any boundary in this many bytes.
    Gap(u64),
}

/// The bytes of one segment file, read through a window.
#[derive(Debug)]
pub(super) struct Scan {
    file: Arc<dyn File>,
    /// Its name.
    pub(super) path: PathBuf,
    segment: u32,
    salt: u64,
    align: Align,
    /// Length of the file.
    pub(super) len: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Lowest and highest offset at which the disk could not read.
    unreadable: Option<(u64, u64)>,
}

impl Scan {
    pub(super) fn new(file: Arc<dyn File>, path: PathBuf, segment: u32, salt: u64, align: Align) -> Result<Scan> {
        let len = file.len().map_err(disk_error("read", &path))?;
        Ok(Scan { file, path, segment, salt, align, len, window: Vec::new(), window_at: 0, unreadable: None })
    }

    /// What begins at `at` (a boundary); `None` at the end of the file. Less than a header at the end is a gap.
    pub(super) fn piece(&mut self, at: u64) -> Result<Option<Piece>> {
        if at >= self.len {
            return Ok(None);
        }
        if let Some(header) = self.header(at)? {
            return Ok(Some(Piece::Record(header)));
        }
        let mut next = at + self.align.bytes();
        while next < self.len && self.header(next)?.is_none() {
            next += self.align.bytes();
        }
        Ok(Some(Piece::Gap(next.min(self.len) - at)))
    }

    fn header(&mut self, at: u64) -> Result<Option<Header>> {
        let spot = Spot { salt: self.salt, position: Position { segment: self.segment, offset: at } };
        let (align, len) = (self.align, self.len);
        let header = self.bytes(at, len_u64(RECORD_HEADER_LEN))?.and_then(|bytes| Header::decode(bytes, spot));
        // The padding need not be there.
        Ok(header.filter(|h| at + len_u64(RECORD_HEADER_LEN) + h.body_len() <= len && h.record_len(align) > 0))
    }

    /// `len` bytes at `at`. `None`: the file ends before, or the disk cannot read them.
    ///
    /// # Errors
    /// Anything but a bad place on the disk: nothing may be concluded from that.
    pub(super) fn bytes(&mut self, at: u64, len: u64) -> Result<Option<&[u8]>> {
        if at.saturating_add(len) > self.len {
            return Ok(None);
        }
        let have = self.window_at..self.window_at + len_u64(self.window.len());
        if at < have.start || at + len > have.end {
            // A window full, then, if there is a bad place in it, just what was asked for.
            let jumped = at >= have.end + JUMP_LEN && have.end > 0;
            let ahead = len.max(if jumped { JUMP_LEN } else { WINDOW_LEN }).min(self.len - at);
            if !self.load(at, ahead)? && (ahead == len || !self.load(at, len)?) {
                let (low, high) = self.unreadable.unwrap_or((at, at));
                self.unreadable = Some((low.min(at), high.max(at)));
                return Ok(None);
            }
        }
        let from = len_usize(at - self.window_at);
        Ok(Some(&self.window[from..from + len_usize(len)]))
    }

    /// True if the disk could not read something at or after `at`.
    pub(super) fn unreadable_after(&self, at: u64) -> bool {
        self.unreadable.is_some_and(|(_, high)| high >= at)
    }

    /// Offset behind the last byte from `at` on that is not zero; `at` if there is none.
    pub(super) fn end_of_nonzero(&mut self, at: u64) -> Result<u64> {
        let (mut from, mut end) = (at, at);
        while from < self.len {
            let len = WINDOW_LEN.min(self.len - from);
            match self.bytes(from, len)? {
                Some(bytes) => {
                    if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                        end = from + len_u64(last) + 1;
                    }
                }
                None => end = from + len,
            }
            from += len;
        }
        Ok(end)
    }

    fn load(&mut self, at: u64, len: u64) -> Result<bool> {
        self.window.resize(len_usize(len), 0);
        self.window_at = at;
        match self.file.read_exact_at(&mut self.window, at) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(EIO) => {
                self.window.clear();
                Ok(false)
            }
            Err(error) => Err(disk_error("read", &self.path)(error)),
        }
    }
}
