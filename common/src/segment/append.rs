//! Writing: a place is reserved under a lock, the bytes are written outside it, and the place is then reported as done.

use super::format::{self, Header, KIND_RESERVED, KIND_TRUNCATE, RECORD_HEADER_LEN, SEGMENT_HEADER_LEN, Spot};
use super::{Align, Gone, Owner, Place, Position, Record, Result, SegmentError, SegmentLog, disk_error, is_full};
use super::{BATCH_LEN_MAX, BATCH_RECORDS_MAX, PAYLOAD_LEN_MAX, TRAILER_LEN_MAX};
use crate::disk::{AlignedBuf, File};
use crate::units::{len_u32, len_u64, len_usize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};

/// Space is reserved in steps of this many bytes: few, large extents, and a full disk shows before a write.
const RESERVE_STEP: u64 = 16 << 20;
/// A small append that makes the file longer also writes this many bytes of zeros behind itself. The appends that fit in there
/// change no metadata, so their fdatasync needs no journal commit (measured on ext4 on a virtual disk, 4 KiB append and
/// sync: p50 205 us with fallocate alone, 110 us with zeros).
const ZERO_STEP: u64 = 256 << 10;
/// An append of at least this many bytes is written without zeros behind it: for it they cost more than they save.
const ZERO_BELOW: u64 = 32 << 10;
/// An append up to this many bytes is copied together for one plain write; a longer one is gathered by the kernel.
const STAGE_LEN_MAX: u64 = 256 << 10;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// What the clones of a log share. Locks are taken in this order: `gone`, `in_order`, `sync_turn`, `state`, `files`.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) place: Place,
    /// Held through each append to a Raft log: there a record is good only if all before it are.
    in_order: Mutex<()>,
    /// Held by whoever syncs. The kernel reports a failed write-back to one of two concurrent syncs only, and the other
    /// one must not acknowledge.
    pub(super) sync_turn: Mutex<()>,
    state: Mutex<State>,
    /// No write is in flight any more, or the log was fenced, or a roll ended.
    pub(super) idle: Condvar,
    /// All segments.
    pub(super) files: RwLock<BTreeMap<u32, Stored>>,
    /// Segments that were removed. Held through each removal: the records that say so are written one after another.
    pub(super) gone: Mutex<Gone>,
}

/// A segment for reading.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) file: Arc<dyn File>,
    /// `None`: the header block is unreadable, and so are the records.
    pub(super) salt: Option<u64>,
    /// Bytes to the end of the last record; of the current segment see [`Current::tail`].
    pub(super) len: u64,
}

/// What changes with each append and sync. `durable <= start of the first write in flight <= tail`.
#[derive(Debug)]
pub(super) struct State {
    pub(super) current: Current,
    /// Offsets where writes in flight begin.
    pub(super) in_flight: BTreeSet<u64>,
    /// Appends that are written, ever.
    pub(super) completed: u64,
    /// Of these, how many a sync has covered.
    pub(super) synced: u64,
    /// Somebody waits for the writes in flight to start a new segment: none begins meanwhile.
    pub(super) rolling: bool,
    /// The first error of a write or sync.
    pub(super) fenced: Option<String>,
}

/// The segment that takes appends.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) segment: u32,
    pub(super) file: Arc<dyn File>,
    pub(super) salt: u64,
    /// Where the next record goes.
    pub(super) tail: u64,
    /// All below this is durable.
    pub(super) durable: u64,
    /// Space is reserved up to here.
    pub(super) reserved: u64,
    /// The file reads as zeros from `tail` up to here and is at least this long.
    pub(super) zeroed: u64,
}

/// A reserved place. Dropped before [`Slot::done`], it fences the log: nobody knows what is there.
struct Slot<'a> {
    shared: &'a Shared,
    file: Arc<dyn File>,
    salt: u64,
    mark: u64,
    at: Position,
    done: bool,
}

impl Shared {
    pub(super) fn new(place: Place, current: Current, files: BTreeMap<u32, Stored>, gone: Gone) -> Shared {
        let state =
            State { current, in_flight: BTreeSet::new(), completed: 0, synced: 0, rolling: false, fenced: None };
        Shared {
            place,
            in_order: Mutex::new(()),
            sync_turn: Mutex::new(()),
            state: Mutex::new(state),
            idle: Condvar::new(),
            files: RwLock::new(files),
            gone: Mutex::new(gone),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }

    /// Closes the log for writing; only the first cause is kept.
    pub(super) fn fence(&self, state: &mut State, cause: impl ToString) {
        if state.fenced.is_none() {
            let cause = cause.to_string();
            tracing::error!(dir = %self.place.dir.display(), error = cause, "log closed for writing");
            state.fenced = Some(cause);
        }
        self.idle.notify_all();
    }

    pub(super) fn check_fence(&self, state: &State) -> Result<()> {
        match &state.fenced {
            Some(cause) => Err(SegmentError::Fenced { dir: self.place.dir.clone(), cause: cause.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn no_space(&self) -> SegmentError {
        SegmentError::NoSpace { dir: self.place.dir.clone() }
    }

    /// Reserves `len` bytes at the end, in a new segment if they do not fit (`squeeze`: in this one anyway).
    fn reserve(&self, len: u64, squeeze: bool) -> Result<Slot<'_>> {
        loop {
            let mut state = self.state();
            self.check_fence(&state)?;
            let now = &state.current;
            let fits = now.tail == SEGMENT_HEADER_LEN || now.tail + len <= self.place.options.segment_len_max;
            if state.rolling {
                drop(self.idle.wait(state).expect("no panic holds this lock"));
                continue;
            }
            if !(fits || squeeze) {
                let full = now.segment;
                drop(state);
                self.roll_from(full)?;
                continue;
            }
            self.make_room(&mut state, len)?;
            let first = state.in_flight.first().copied().unwrap_or(state.current.tail);
            debug_assert!(state.current.durable <= first && first <= state.current.tail, "durable <= written");
            let at = Position { segment: state.current.segment, offset: state.current.tail };
            state.current.tail += len;
            assert!(state.in_flight.insert(at.offset), "no two writes start at one place");
            let (file, salt, mark) = (state.current.file.clone(), state.current.salt, state.current.durable);
            return Ok(Slot { shared: self, file, salt, mark, at, done: false });
        }
    }

    /// Reserves space for `len` bytes at the tail, and writes zeros behind them if that pays. All writes in flight lie
    /// below the tail, so the zeros meet none.
    fn make_room(&self, state: &mut State, len: u64) -> Result<()> {
        let small = self.place.options.align == Align::Small && len < ZERO_BELOW;
        let now = &mut state.current;
        let end = now.tail + len;
        let zeros = if small && end > now.zeroed { ZERO_STEP } else { 0 };
        if end + zeros > now.reserved {
            let from = now.reserved.max(now.tail);
            let reserved = match now.file.reserve(from, RESERVE_STEP.max(end + zeros - from)) {
                Ok(()) => from + RESERVE_STEP.max(end + zeros - from),
                Err(error) if is_full(&error) => {
                    // Not a step, but what is needed.
                    let needed = now.file.reserve(from, (end + zeros).saturating_sub(from));
                    needed.map_err(|error| match is_full(&error) {
                        true => self.no_space(),
                        false => disk_error("reserve in", &self.place.dir)(error),
                    })?;
                    end + zeros
                }
                Err(error) => return Err(disk_error("reserve in", &self.place.dir)(error)),
            };
            now.reserved = reserved;
        }
        if zeros > 0 {
            if let Err(error) = now.file.write_all_at(&[&ZEROS[..len_usize(zeros)]], end) {
                self.fence(state, &error);
                return Err(disk_error("append to", &self.place.dir)(error));
            }
            now.zeroed = end + zeros;
        }
        Ok(())
    }

    /// Appends records of any kind, each already checked against the limits.
    pub(super) fn append_checked(&self, records: &[Record<'_>], squeeze: bool) -> Result<Vec<Position>> {
        let align = self.place.options.align;
        let mut headers: Vec<Header> = records.iter().map(header_of).collect();
        let total = headers.iter().map(|header| header.record_len(align)).sum();
        let in_order = self.place.options.owner == Owner::RaftLog;
        let _in_order = in_order.then(|| self.in_order.lock().expect("no panic holds this lock"));
        let slot = self.reserve(total, squeeze)?;
        let mut at = slot.at;
        let mut positions = Vec::with_capacity(records.len());
        let mut heads = Vec::with_capacity(records.len());
        for header in &mut headers {
            header.mark = slot.mark;
            heads.push(header.encode(Spot { salt: slot.salt, position: at }));
            positions.push(at);
            at.offset += header.record_len(align);
        }
        let padding = |header: &Header| {
            let used = len_u64(RECORD_HEADER_LEN) + header.body_len();
            &ZEROS[..len_usize(header.record_len(align) - used)]
        };
        let parts = records.iter().zip(&headers).zip(&heads);
        let parts = parts.flat_map(|((record, header), head)| [head, record.payload, record.trailer, padding(header)]);
        if align == Align::Direct || total <= STAGE_LEN_MAX {
            let mut staged = AlignedBuf::with_capacity(len_usize(total));
            parts.for_each(|part| staged.extend_from_slice(part));
            slot.write(&[&staged])?;
        } else {
            let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty()).collect();
            slot.write(&parts)?;
        }
        Ok(positions)
    }
}

impl Slot<'_> {
    fn write(self, bufs: &[&[u8]]) -> Result<()> {
        match self.file.write_all_at(bufs, self.at.offset) {
            Ok(()) => {
                self.finish();
                Ok(())
            }
            Err(error) => {
                self.shared.fence(&mut self.shared.state(), &error);
                Err(disk_error("append to", &self.shared.place.dir)(error))
            }
        }
    }

    fn finish(mut self) {
        self.done = true;
        let mut state = self.shared.state();
        state.completed += 1;
        state.in_flight.remove(&self.at.offset);
        if state.in_flight.is_empty() {
            self.shared.idle.notify_all();
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The place stays in flight, so that no mark ever passes it.
            self.shared.fence(&mut self.shared.state(), "a write was given up");
        }
    }
}

impl SegmentLog {
    /// Writes records one after another and says where they are. All of them, or none if it fails (a crash may leave
    /// any of them). They can be read at once; they stay when a later [`SegmentLog::sync`] has returned.
    ///
    /// # Errors
    /// `Invalid`, `NoSpace`: nothing happened. `Fenced`, `Disk`: unknown; the log takes no more.
    pub fn append(&self, records: &[Record<'_>]) -> Result<Vec<Position>> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: u64 = records.iter().map(|r| len_u64(r.payload.len()) + len_u64(r.trailer.len())).sum();
        if records.len() > BATCH_RECORDS_MAX || bytes > BATCH_LEN_MAX {
            return Err(invalid(format!("{} records with {bytes} bytes in one batch", records.len())));
        }
        for record in records {
            check(record.kind, record.payload.len(), record.trailer.len())?;
        }
        self.shared.append_checked(records, false)
    }

    /// Writes one record from a buffer that holds [`RECORD_HEADER_LEN`] bytes to be filled in, then `payload_len` bytes
    /// of payload, then the trailer up to its end, without copying it; needs [`Align::Direct`]. The buffer is padded to
    /// a multiple of 4096 (its capacity is one). Otherwise like [`SegmentLog::append`]. Several threads may do this at
    /// once.
    pub fn append_buf(
        &self,
        kind: u8,
        key: [u8; 32],
        checksum: bool,
        payload_len: u32,
        buf: &mut AlignedBuf,
    ) -> Result<Position> {
        let align = self.shared.place.options.align;
        let payload_end = RECORD_HEADER_LEN + len_usize(u64::from(payload_len));
        if align != Align::Direct || buf.len() < payload_end {
            return Err(invalid(format!("a buffer of {} bytes with {align:?} alignment", buf.len())));
        }
        let (payload, trailer) = buf[RECORD_HEADER_LEN..].split_at(payload_end - RECORD_HEADER_LEN);
        check(kind, payload.len(), trailer.len())?;
        let mut header = header_of(&Record { kind, key, payload, trailer, checksum });
        let in_order = self.shared.place.options.owner == Owner::RaftLog;
        let _in_order = in_order.then(|| self.shared.in_order.lock().expect("no panic holds this lock"));
        let slot = self.shared.reserve(header.record_len(align), false)?;
        header.mark = slot.mark;
        let at = slot.at;
        buf[..RECORD_HEADER_LEN].copy_from_slice(&header.encode(Spot { salt: slot.salt, position: at }));
        buf.resize(len_usize(header.record_len(align)));
        slot.write(&[buf])?;
        Ok(at)
    }

    /// Voids all records after `kept` (`None`: all there are). [`Owner::RaftLog`] only. Durable with the next sync.
    pub fn truncate_after(&self, kept: Option<Position>) -> Result<Position> {
        if self.shared.place.options.owner != Owner::RaftLog {
            return Err(invalid("truncate: these records do not depend on each other".into()));
        }
        let payload = format::encode_kept(kept);
        let record = Record { kind: KIND_TRUNCATE, key: [0; 32], payload: &payload, trailer: &[], checksum: true };
        Ok(self.shared.append_checked(&[record], false)?[0])
    }
}

/// The header but for its mark.
fn header_of(record: &Record<'_>) -> Header {
    Header {
        kind: record.kind,
        checksum: record.checksum,
        payload_len: len_u32(record.payload.len()),
        trailer_len: len_u32(record.trailer.len()),
        mark: 0,
        key: record.key,
        body_crc: format::body_crc(record.payload, record.trailer, record.checksum),
    }
}

fn check(kind: u8, payload_len: usize, trailer_len: usize) -> Result<()> {
    if kind >= KIND_RESERVED {
        return Err(invalid(format!("kind {kind} is reserved")));
    }
    if len_u64(payload_len) > u64::from(PAYLOAD_LEN_MAX) || len_u64(trailer_len) > u64::from(TRAILER_LEN_MAX) {
        return Err(invalid(format!("a payload of {payload_len} bytes with a trailer of {trailer_len}")));
    }
    Ok(())
}

fn invalid(what: String) -> SegmentError {
    SegmentError::Invalid { what }
}

const _: () = assert!(ZERO_STEP == 256 << 10, "ZEROS");
