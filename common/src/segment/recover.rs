//! Opening: what is there, what is damaged, where it ends.
//!
//! Each segment is walked twice: once for the marks (the last one tells what must be there) and the voids, once for
//! the records themselves.

use super::append::{Current, Shared, Stored};
use super::format::{
    self, BadSegmentHeader, KIND_GONE, KIND_RESERVED, KIND_TRUNCATE, KIND_VOID, SEGMENT_HEADER_LEN, SegmentHeader,
};
use super::scan::{Piece, Scan};
use super::{DAMAGE_LIST_MAX, Gone, Header, Options, Owner, Place, Position, Record, Result, SegmentError, SegmentLog};
use super::{disk_error, segment_name, sync};
use crate::disk::Disk;
use crate::units::{len_u64, len_usize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A record that recovery found, in the order of the log.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Where it starts.
    pub position: Position,
    /// Its header.
    pub header: &'a Header,
    /// Payload and trailer, checked, if they were read: always with a payload checksum; else only above the last mark.
    pub body: Option<(&'a [u8], &'a [u8])>,
}

/// What the owner does with what recovery finds.
pub trait Visit {
    /// A good record. (Also one that was punched, if its body was not read: the owner applies what it knows to be dead.)
    fn record(&mut self, found: Found<'_>);
    /// All records so far after `kept` are void (`None`: all).
    fn truncated(&mut self, kept: Option<Position>);
    /// A durable record whose body is all zeros, against its checksum: the record is dead.
    fn punched(&mut self, position: Position, header: &Header);
    /// Whether the payload of a record without payload checksum is the one that was written (hash it against the key).
    fn holds(&mut self, header: &Header, payload: &[u8], trailer: &[u8]) -> bool;
}

/// What recovery found apart from good records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Good records visited.
    pub records: u64,
    /// Places below the last mark, or followed by good records, that hold no good record: at most
    /// [`DAMAGE_LIST_MAX`].
    pub damaged: Vec<Damage>,
    /// How many there are.
    pub damaged_count: u64,
    /// Segments whose header block is unreadable: nothing in them can be read.
    pub unreadable: Vec<u32>,
    /// Numbers without a file, at most [`DAMAGE_LIST_MAX`]: between the first and the last segment; for [`Owner::Chunks`]
    /// from 1 to the last, but for those that were removed ([`Gone`]). What was in them is lost.
    pub missing: Vec<u32>,
    /// The unfinished write that was cut off the end.
    pub cut: Option<Cut>,
}

/// A place that holds no good record though one was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it starts.
    pub position: Position,
    /// Its length in bytes.
    pub len: u64,
    /// The record's header, if that is sound: then the body is not.
    pub header: Option<Header>,
    /// True if it is certain that the record had been made durable (it lies below a mark). False: it may as well be a
    /// write that was never finished, with finished ones behind it; it is reported once only.
    pub was_durable: bool,
}

/// What was cut off the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where the log now ends.
    pub position: Position,
    /// Bytes cut, zeros at the end not counted.
    pub len: u64,
}

impl SegmentLog {
    /// Opens the log in `dir` (created if it is not there), shows all records from `options.start` on to `visit`, in
    /// order, cuts an unfinished write off the end, and makes all it accepted durable. A log is usable also when
    /// something is damaged: whether to go on is the caller's decision.
    ///
    /// # Errors
    /// `Foreign`: another owner's. `Absent`: it ends before `options.start`. `Disk`.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        visit: &mut dyn Visit,
    ) -> Result<(SegmentLog, Recovery)> {
        assert!(options.segment_len_max <= super::SEGMENT_LEN_LIMIT, "checked by the configuration");
        disk.create_dir_all(dir).map_err(disk_error("create", dir))?;
        let place = Place { disk, dir: dir.into(), options };
        let mut recovery = Recovery::default();
        let files = list(&place, &mut recovery)?;
        let gone = place.options.gone.clone();
        let mut opening = Opening { place: &place, visit, recovery, unfinished: Vec::new(), gone };
        let current = opening.scan_all(&files)?;
        let (mut recovery, unfinished, mut gone) = (opening.recovery, opening.unfinished, opening.gone);
        // One that is there although it is said to be gone was to be removed when the power went: it counts as there.
        files.keys().for_each(|segment| gone.remove(*segment));
        recovery.missing = missing(&place, &files, &gone);
        let mut files = files;
        files.insert(current.segment, sync::stored(&current));
        let log = SegmentLog { shared: Arc::new(Shared::new(place, current, files, gone)) };
        if !unfinished.is_empty() {
            log.void(&unfinished)?;
        }
        Ok((log, recovery))
    }

    /// Writes down, durably and in the same segment, that these places hold nothing: they will lie below a mark.
    fn void(&self, places: &[(u64, u64)]) -> Result<()> {
        let payload: Vec<u8> =
            places.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()].concat()).collect();
        let max = len_usize(u64::from(super::PAYLOAD_LEN_MAX)) / 16 * 16;
        let record = |payload| Record { kind: KIND_VOID, key: [0; 32], payload, trailer: &[], checksum: true };
        for some in payload.chunks(max) {
            self.shared.append_checked(&[record(some)], true)?;
        }
        self.sync()
    }
}

/// All segments, their headers checked. A last one whose creation was not finished is removed.
fn list(place: &Place, recovery: &mut Recovery) -> Result<BTreeMap<u32, Stored>> {
    let names = place.disk.list(&place.dir).map_err(disk_error("list", &place.dir))?;
    let numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    let mut files = BTreeMap::new();
    for segment in &numbers {
        let path = place.dir.join(segment_name(*segment));
        let file = place.disk.open(&path).map_err(disk_error("open", &path))?;
        let len = file.len().map_err(disk_error("read", &path))?;
        let mut scan = Scan::new(file.clone(), path.clone(), *segment, 0, place.options.align)?;
        let salt = match scan.bytes(0, SEGMENT_HEADER_LEN.min(len))?.map(SegmentHeader::decode) {
            Some(Ok(header)) => Some(check_header(place, &path, *segment, header)?),
            Some(Err(BadSegmentHeader::Unknown(what))) => return Err(SegmentError::Foreign { path, what }),
            Some(Err(BadSegmentHeader::Unreadable)) | None => None,
        };
        let empty = salt.is_none() && scan.end_of_nonzero(SEGMENT_HEADER_LEN)? == SEGMENT_HEADER_LEN;
        if empty && Some(segment) == numbers.iter().max() {
            // No record is written before the header is durable: this segment never held one.
            place.disk.remove(&path).map_err(disk_error("remove", &path))?;
            place.disk.sync_dir(&place.dir).map_err(disk_error("sync", &place.dir))?;
            continue;
        }
        if salt.is_none() {
            recovery.unreadable.push(*segment);
        }
        files.insert(*segment, Stored { file, salt, len });
    }
    check_start(place, files.keys().last().copied(), &files)?;
    Ok(files)
}

/// Numbers without a file that nobody removed.
fn missing(place: &Place, files: &BTreeMap<u32, Stored>, gone: &Gone) -> Vec<u32> {
    let last = files.keys().last().copied().unwrap_or(0);
    let first = match place.options.owner {
        Owner::Chunks => 1,
        Owner::RaftLog => files.keys().next().copied().unwrap_or(1), // the log is purged from the front
    };
    let lost = (first..=last).filter(|segment| !files.contains_key(segment) && !gone.contains(*segment));
    lost.take(DAMAGE_LIST_MAX).collect()
}

fn segment_number(name: &Path) -> Option<u32> {
    let number: u32 = name.to_str()?.strip_suffix(".seg")?.parse().ok()?;
    (number > 0 && Path::new(&segment_name(number)) == name).then_some(number)
}

/// The salt, if the segment is one of this log.
fn check_header(place: &Place, path: &Path, segment: u32, header: SegmentHeader) -> Result<u64> {
    let options = &place.options;
    let foreign = |what: String| Err(SegmentError::Foreign { path: path.into(), what });
    if header.owner != options.owner || header.align != options.align {
        return foreign(format!("holds {:?} records ({:?} alignment)", header.owner, header.align));
    }
    if header.owner_id != options.owner_id {
        return foreign(format!("belongs to {:032x}", u128::from_be_bytes(header.owner_id)));
    }
    if header.segment != segment {
        return foreign(format!("is segment {} under another name", header.segment));
    }
    Ok(header.salt)
}

/// What the caller knows to be there must be there.
fn check_start(place: &Place, last: Option<u32>, files: &BTreeMap<u32, Stored>) -> Result<()> {
    let Some(start) = place.options.start else { return Ok(()) };
    let short = files.get(&start.segment).is_some_and(|stored| stored.len < start.offset);
    if short || last.is_none_or(|last| last < start.segment) {
        return Err(SegmentError::Absent { dir: place.dir.clone(), position: start });
    }
    Ok(())
}

struct Opening<'a> {
    place: &'a Place,
    visit: &'a mut dyn Visit,
    recovery: Recovery,
    /// Places in the last segment (offset, length) that may be unfinished writes.
    unfinished: Vec<(u64, u64)>,
    /// Segments that are said to be removed.
    gone: Gone,
}

/// One segment being walked.
struct Walk {
    segment: u32,
    last: bool,
    /// All below was durable.
    mark: u64,
    /// Places that an earlier recovery found to hold nothing: offset -> length.
    voids: BTreeMap<u64, u64>,
}

impl Opening<'_> {
    fn scan_all(&mut self, files: &BTreeMap<u32, Stored>) -> Result<Current> {
        let start = self.place.options.start.unwrap_or(Position { segment: 0, offset: 0 });
        let last = files.keys().last().copied();
        for (segment, stored) in files.range(start.segment..) {
            let Some(salt) = stored.salt else { continue };
            let path = self.place.dir.join(segment_name(*segment));
            let mut scan = Scan::new(stored.file.clone(), path, *segment, salt, self.place.options.align)?;
            let from =
                if *segment == start.segment { start.offset.max(SEGMENT_HEADER_LEN) } else { SEGMENT_HEADER_LEN };
            let is_last = Some(*segment) == last;
            let (mark, tail) = self.scan_segment(&mut scan, *segment, from, is_last)?;
            if is_last {
                return self.end_at(&mut scan, *segment, stored, mark, tail);
            }
        }
        // None yet, or the last one is unreadable.
        sync::create(self.place, last.map_or(1, |last| last + 1))
    }

    /// Walks one segment; returns up to where it says that it was durable, and where its last good record ends.
    fn scan_segment(&mut self, scan: &mut Scan, segment: u32, from: u64, last: bool) -> Result<(u64, u64)> {
        let walk = self.marks(scan, segment, from, last)?;
        let sequence = self.place.options.owner == Owner::RaftLog;
        let (mut at, mut tail) = (from, from);
        // Bad places since the last good record.
        let mut pending: Vec<Damage> = Vec::new();
        while let Some(piece) = scan.piece(at)? {
            let position = Position { segment, offset: at };
            let was_durable = !walk.last || at < walk.mark;
            let (len, header, good) = match piece {
                _ if walk.voids.contains_key(&at) => (walk.voids[&at], None, true),
                Piece::Gap(len) => (self.gap_len(&walk, at, len), None, false),
                Piece::Record(header) => {
                    let len = header.record_len(self.place.options.align);
                    (len, Some(header), self.show(scan, position, &header, was_durable)?)
                }
            };
            at += len;
            if good {
                tail = at;
                pending.drain(..).for_each(|damage| self.report(damage, &walk));
                continue;
            }
            if sequence && !was_durable {
                break;
            }
            pending.push(Damage { position, len, header, was_durable });
        }
        let lost = pending.into_iter().filter(|damage| damage.was_durable);
        for damage in lost {
            tail = damage.position.offset + damage.len;
            self.report(damage, &walk);
        }
        Ok((walk.mark, tail))
    }

    /// A gap ends where a void begins.
    fn gap_len(&self, walk: &Walk, at: u64, len: u64) -> u64 {
        walk.voids.range(at + 1..at + len).next().map_or(len, |(void, _)| void - at)
    }

    /// The first walk: how far this segment was durable, and what is void.
    fn marks(&self, scan: &mut Scan, segment: u32, from: u64, last: bool) -> Result<Walk> {
        let mut walk = Walk { segment, last, mark: from, voids: BTreeMap::new() };
        let mut at = from;
        while let Some(piece) = scan.piece(at)? {
            match piece {
                Piece::Gap(len) => at += len,
                Piece::Record(header) => {
                    walk.mark = walk.mark.max(header.mark);
                    if header.kind == KIND_VOID
                        && let Some((payload, _)) = body(scan, at, &header)?
                    {
                        walk.voids.extend(format::decode_voids(payload));
                    }
                    at += header.record_len(self.place.options.align);
                }
            }
        }
        Ok(walk)
    }

    /// Shows a record to the owner if it is good.
    fn show(&mut self, scan: &mut Scan, position: Position, header: &Header, was_durable: bool) -> Result<bool> {
        let found = if header.checksum || !was_durable {
            let read = body_unchecked(scan, position.offset, header)?;
            let good = read.filter(|(payload, trailer)| {
                header.covers(payload, trailer) && (header.checksum || self.visit.holds(header, payload, trailer))
            });
            if good.is_none() {
                if was_durable && read.is_some_and(|(payload, trailer)| is_punched(position.offset, payload, trailer)) {
                    self.visit.punched(position, header);
                    return Ok(true);
                }
                return Ok(false);
            }
            Found { position, header, body: good }
        } else {
            Found { position, header, body: None }
        };
        match (header.kind, found.body) {
            (KIND_VOID, _) => {}
            (KIND_TRUNCATE, Some((payload, _))) => match format::decode_kept(payload) {
                Some(kept) => self.visit.truncated(kept),
                None => return Ok(false),
            },
            (KIND_GONE, Some((payload, _))) => match Gone::decode(payload) {
                Some(gone) => self.gone.merge(&gone),
                None => return Ok(false),
            },
            (KIND_RESERVED.., _) => {
                let path = self.place.dir.join(segment_name(position.segment));
                return Err(SegmentError::Foreign { path, what: format!("record kind {}", header.kind) });
            }
            _ => {
                self.recovery.records += 1;
                self.visit.record(found);
            }
        }
        Ok(true)
    }

    fn report(&mut self, damage: Damage, walk: &Walk) {
        self.recovery.damaged_count += 1;
        if self.recovery.damaged.len() < DAMAGE_LIST_MAX {
            self.recovery.damaged.push(damage);
        }
        if !damage.was_durable {
            assert!(walk.last && walk.segment == damage.position.segment, "earlier segments are durable");
            self.unfinished.push((damage.position.offset, damage.len));
        }
    }

    /// Makes the last segment end at `tail`, durably. Up to `mark` it was durable before.
    fn end_at(&mut self, scan: &mut Scan, segment: u32, stored: &Stored, mark: u64, tail: u64) -> Result<Current> {
        let path = self.place.dir.join(segment_name(segment));
        let end = scan.end_of_nonzero(tail)?;
        if scan.unreadable_after(tail) {
            let what = "the disk cannot read the end of the log: nothing is cut".into();
            return Err(SegmentError::Damaged { path, offset: tail, what });
        }
        Self::write_again(scan, stored, mark..tail.min(scan.len), AGAIN_LEN)?;
        if end > tail {
            self.recovery.cut = Some(Cut { position: Position { segment, offset: tail }, len: end - tail });
            stored.file.set_len(tail).map_err(disk_error("cut", &path))?;
        }
        stored.file.sync().map_err(disk_error("sync", &path))?;
        self.place.disk.sync_dir(&self.place.dir).map_err(disk_error("sync", &self.place.dir))?;
        let zeroed = if end > tail { tail } else { scan.len.max(tail) };
        let file = sync::writable(self.place, segment, stored.file.clone())?;
        let salt = stored.salt.expect("the segment was walked");
        // Until the voids are written down durably, no mark may pass the first of these places.
        let durable = self.unfinished.first().map_or(tail, |(at, _)| *at);
        Ok(Current { segment, file, salt, tail, durable, reserved: tail, zeroed })
    }

    /// Writes bytes in place as they are. A sync that failed in an earlier process may have left them in the page cache
    /// only, and that counts as clean: without a write the next sync would return well and do nothing. What cannot be
    /// read is left alone: no good record is there.
    fn write_again(scan: &mut Scan, stored: &Stored, range: Range<u64>, step: u64) -> Result<()> {
        let path = scan.path.clone();
        let mut at = range.start;
        while at < range.end {
            let len = step.min(range.end - at);
            match scan.bytes(at, len)? {
                Some(bytes) => stored.file.write_all_at(&[bytes], at).map_err(disk_error("write again", &path))?,
                None if step > AGAIN_LEN_MIN => Self::write_again(scan, stored, at..at + len, AGAIN_LEN_MIN)?,
                None => {}
            }
            at += len;
        }
        Ok(())
    }
}

/// Bytes written again in one piece.
const AGAIN_LEN: u64 = 256 << 10;
/// The same around a place that the disk cannot read.
const AGAIN_LEN_MIN: u64 = 4096;

/// Payload and trailer, as they are.
fn body_unchecked<'a>(scan: &'a mut Scan, at: u64, header: &Header) -> Result<Option<(&'a [u8], &'a [u8])>> {
    let payload_len = len_usize(u64::from(header.payload_len));
    let bytes = scan.bytes(at + len_u64(format::RECORD_HEADER_LEN), header.body_len())?;
    Ok(bytes.map(|bytes| bytes.split_at(payload_len)))
}

/// Payload and trailer, if the checksum matches.
fn body<'a>(scan: &'a mut Scan, at: u64, header: &Header) -> Result<Option<(&'a [u8], &'a [u8])>> {
    Ok(body_unchecked(scan, at, header)?.filter(|(payload, trailer)| header.covers(payload, trailer)))
}

/// True if whole blocks inside this body are there, and all of them are zeros.
fn is_punched(at: u64, payload: &[u8], trailer: &[u8]) -> bool {
    const BLOCK: u64 = 4096;
    let start = at + len_u64(format::RECORD_HEADER_LEN);
    let skip = len_usize(start.next_multiple_of(BLOCK) - start);
    let len = payload.len() + trailer.len();
    let Some(whole) = len.checked_sub(skip).map(|len| len / 4096 * 4096).filter(|len| *len > 0) else { return false };
    payload.iter().chain(trailer).skip(skip).take(whole).all(|byte| *byte == 0)
}
