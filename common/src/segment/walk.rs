//! Walking over the records of a segment that takes no more appends.

use super::scan::{Piece, Scan};
use super::{Header, Position, Result, SegmentLog, segment_name};

/// The records of one segment, in order. Bodies are not read, so they are not checked: also what recovery found to be an
/// unfinished write may be shown. Holds a window of the file, some 256 KiB.
#[derive(Debug)]
pub struct Walk {
    scan: Scan,
    at: Position,
    align: super::Align,
}

impl SegmentLog {
    /// Begins at the first record of a segment.
    ///
    /// # Errors
    /// `Absent`: no such segment. `Damaged`: its header block is unreadable, so nothing in it can be read. `Disk`.
    pub fn walk(&self, segment: u32) -> Result<Walk> {
        let at = Position { segment, offset: super::format::SEGMENT_HEADER_LEN };
        let (stored, salt) = self.stored(at)?;
        let (place, path) = (&self.shared.place, self.shared.place.dir.join(segment_name(segment)));
        let scan = Scan::new(stored.file, path, segment, salt, place.options.align)?;
        Ok(Walk { scan, at, align: place.options.align })
    }
}

impl Walk {
    /// The next record with a sound header; places without one are passed over. `None`: there are no more.
    ///
    /// # Errors
    /// `Disk`: not just a bad place.
    pub fn next_record(&mut self) -> Result<Option<(Position, Header)>> {
        while let Some(piece) = self.scan.piece(self.at.offset)? {
            let at = self.at;
            match piece {
                Piece::Gap(len) => self.at.offset += len,
                Piece::Record(header) => {
                    self.at.offset += header.record_len(self.align);
                    return Ok(Some((at, header)));
                }
            }
        }
        Ok(None)
    }

    /// How far it is: the offset behind the last record shown, in bytes.
    pub fn offset(&self) -> u64 {
        self.at.offset
    }
}
