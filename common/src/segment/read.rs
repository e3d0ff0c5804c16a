//! Reading records back, and punching dead ones.

use super::append::Stored;
use super::format::{Header, RECORD_HEADER_LEN, Spot};
use super::{Position, Result, SegmentError, SegmentLog, disk_error, segment_name};
use crate::disk::{AlignedBuf, DIRECT_ALIGN};
use crate::units::{len_u64, len_usize};
use bytes::Bytes;
use std::io;

/// A record up to this many bytes is read in one piece, without knowing its length before.
const FIRST_READ_LEN: u64 = 4096;

/// A whole record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its header.
    pub header: Header,
    /// Covered by the checksum if `header.checksum`.
    pub payload: Vec<u8>,
    /// Covered by the checksum.
    pub trailer: Vec<u8>,
}

impl SegmentLog {
    /// Reads the header of the record that starts here.
    ///
    /// # Errors
    /// `Damaged`: no sound header here. `Absent`: no such segment, or it ends before. `Disk`.
    pub fn read_header(&self, at: Position) -> Result<Header> {
        let (file, salt) = self.stored(at)?;
        let mut bytes = [0; RECORD_HEADER_LEN];
        self.fill(&file, at, at.offset, &mut bytes)?;
        Header::decode(&bytes, Spot { salt, position: at }).ok_or_else(|| self.damaged(at, "no record header"))
    }

    /// Reads a whole record and checks its checksums. Errors as [`SegmentLog::read_header`].
    pub fn read_record(&self, at: Position) -> Result<StoredRecord> {
        let (file, salt) = self.stored(at)?;
        let left = file.file.len().map_err(disk_error("read", self.path(at)))?.saturating_sub(at.offset);
        if left < len_u64(RECORD_HEADER_LEN) {
            return Err(self.absent(at));
        }
        let mut bytes = vec![0; len_usize(left.min(FIRST_READ_LEN))];
        self.fill(&file, at, at.offset, &mut bytes)?;
        let header = Header::decode(&bytes[..RECORD_HEADER_LEN], Spot { salt, position: at })
            .ok_or_else(|| self.damaged(at, "no record header"))?;
        let mut body = bytes.split_off(RECORD_HEADER_LEN);
        let had = body.len();
        body.resize(len_usize(header.body_len()), 0); // the lengths of a sound header are within the limits
        if body.len() > had {
            let rest = at.offset + len_u64(RECORD_HEADER_LEN + had);
            self.fill(&file, at, rest, &mut body[had..])?;
        }
        let trailer = body.split_off(len_usize(u64::from(header.payload_len)));
        if !header.covers(&body, &trailer) {
            return Err(self.damaged(at, "the checksum does not match"));
        }
        Ok(StoredRecord { header, payload: body, trailer })
    }

    /// Fills `buf` from byte `from` of the body (payload, then trailer) of the record that starts here. One disk read,
    /// *nothing is checked*: the caller knows lengths and verifies by hash. Errors as [`SegmentLog::read_header`].
    pub fn read_body(&self, at: Position, from: u64, buf: &mut [u8]) -> Result<()> {
        let (file, _) = self.stored(at)?;
        self.fill(&file, at, at.offset.saturating_add(len_u64(RECORD_HEADER_LEN)).saturating_add(from), buf)
    }

    /// As [`SegmentLog::read_body`], `len` bytes in a buffer of their own, around the page cache where that is possible:
    /// for long ranges that are not read again soon.
    pub fn read_body_direct(&self, at: Position, from: u64, len: usize) -> Result<Bytes> {
        let (file, _) = self.stored(at)?;
        let from = at.offset.saturating_add(len_u64(RECORD_HEADER_LEN)).saturating_add(from);
        let start = from / len_u64(DIRECT_ALIGN) * len_u64(DIRECT_ALIGN);
        let within = len_usize(from - start);
        let mut blocks = AlignedBuf::unspecified((within + len).next_multiple_of(DIRECT_ALIGN));
        match file.file.read_exact_direct(&mut blocks, start) {
            // The file may end in the middle of the last block.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.fill(&file, at, from, &mut blocks[within..within + len])?;
            }
            other => other.map_err(disk_error("read", self.path(at)))?,
        }
        Ok(Bytes::from_owner(blocks).slice(within..within + len))
    }

    /// Gives the blocks that lie whole inside this record's body back to the file system. The header stays; recovery
    /// may report the record as punched, or show it as if nothing had happened. The caller has made durable that it is
    /// dead. Returns the length of the body, in bytes.
    pub fn punch(&self, at: Position) -> Result<u64> {
        let header = self.read_header(at)?;
        let (file, _) = self.stored(at)?;
        let body = at.offset + len_u64(RECORD_HEADER_LEN);
        file.file.punch(body, header.body_len()).map_err(disk_error("punch", self.path(at)))?;
        Ok(header.body_len())
    }

    /// The file of a segment, and its salt.
    pub(super) fn stored(&self, at: Position) -> Result<(Stored, u64)> {
        let files = self.shared.files.read().expect("no panic holds this lock");
        let stored = files.get(&at.segment).ok_or_else(|| self.absent(at))?;
        let salt = stored.salt.ok_or_else(|| self.damaged(at, "the segment's header block is unreadable"))?;
        Ok((stored.clone(), salt))
    }

    fn fill(&self, stored: &Stored, at: Position, offset: u64, buf: &mut [u8]) -> Result<()> {
        match stored.file.read_exact_at(buf, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.absent(at)),
            other => other.map_err(disk_error("read", self.path(at))),
        }
    }

    fn path(&self, at: Position) -> std::path::PathBuf {
        self.shared.place.dir.join(segment_name(at.segment))
    }

    fn absent(&self, position: Position) -> SegmentError {
        SegmentError::Absent { dir: self.shared.place.dir.clone(), position }
    }

    fn damaged(&self, at: Position, what: &str) -> SegmentError {
        SegmentError::Damaged { path: self.path(at), offset: at.offset, what: what.into() }
    }
}
