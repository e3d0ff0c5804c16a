//! Making it durable: group commit, new segments, removal of old ones.

use super::append::{Current, Shared, State, Stored};
use super::format::{KIND_GONE, SEGMENT_HEADER_LEN, SegmentHeader};
use super::{
    Align, Gone, Owner, Place, Position, Record, Result, SegmentError, SegmentLog, SegmentUsage, disk_error, is_full,
    segment_name,
};
use crate::disk::File;
use std::sync::{Arc, MutexGuard};

impl Shared {
    /// Makes the first `need` appends durable, unless a sync meanwhile has.
    fn sync_to(&self, need: u64) -> Result<()> {
        let _turn = self.sync_turn.lock().expect("no panic holds this lock");
        let state = self.state();
        if state.synced >= need {
            return Ok(());
        }
        self.check_fence(&state)?;
        let (file, segment, completed) = (state.current.file.clone(), state.current.segment, state.completed);
        let written = state.in_flight.first().copied().unwrap_or(state.current.tail);
        drop(state); // appends go on
        let outcome = file.sync();
        let mut state = self.state();
        if let Err(error) = outcome {
            self.fence(&mut state, &error);
            return Err(disk_error("sync", &self.place.dir)(error));
        }
        assert_eq!(state.current.segment, segment, "a new segment needs the turn");
        state.current.durable = state.current.durable.max(written);
        state.synced = state.synced.max(completed);
        Ok(())
    }

    /// Starts a new segment if `full` is still the current one.
    pub(super) fn roll_from(&self, full: u32) -> Result<()> {
        let _turn = self.sync_turn.lock().expect("no panic holds this lock");
        let mut state = self.state();
        if state.current.segment != full {
            return Ok(());
        }
        state.rolling = true;
        let (mut state, outcome) = self.roll(state);
        state.rolling = false;
        self.idle.notify_all();
        match outcome {
            Err(error @ SegmentError::NoSpace { .. }) => Err(error),
            Err(error) => {
                self.fence(&mut state, &error);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Waits for the writes in flight, makes the current segment durable, creates the next one.
    fn roll<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, Result<()>) {
        while state.fenced.is_none() && !state.in_flight.is_empty() {
            state = self.idle.wait(state).expect("no panic holds this lock");
        }
        let outcome = self.check_fence(&state).and_then(|()| self.roll_idle(&mut state));
        (state, outcome)
    }

    fn roll_idle(&self, state: &mut State) -> Result<()> {
        let old = &mut state.current;
        // Gives back the zeros and the reserved space behind the tail.
        old.file.set_len(old.tail).map_err(disk_error("cut", &self.place.dir))?;
        (old.reserved, old.zeroed) = (old.tail, old.tail);
        old.file.sync().map_err(disk_error("sync", &self.place.dir))?;
        old.durable = old.tail;
        state.synced = state.completed;
        let next = create(&self.place, old.segment + 1)?;
        let mut files = self.files.write().expect("no panic holds this lock");
        if let Some(stored) = files.get_mut(&old.segment) {
            stored.len = old.tail;
        }
        files.insert(next.segment, stored(&next));
        state.current = next;
        Ok(())
    }
}

/// Creates a segment; its header and its name are durable when this returns.
pub(super) fn create(place: &Place, segment: u32) -> Result<Current> {
    let path = place.dir.join(segment_name(segment));
    let file = match place.disk.create(&path) {
        Err(error) if is_full(&error) => {
            return Err(SegmentError::NoSpace { dir: place.dir.clone() });
        }
        other => other.map_err(disk_error("create", &path))?,
    };
    match file.reserve(0, SEGMENT_HEADER_LEN) {
        Err(error) if is_full(&error) => {
            place.disk.remove(&path).map_err(disk_error("remove", &path))?;
            return Err(SegmentError::NoSpace { dir: place.dir.clone() });
        }
        other => other.map_err(disk_error("reserve in", &path))?,
    }
    let options = &place.options;
    // Different for each segment, so that the bytes of one are no record in another one.
    let salt = options.salt ^ u64::from(segment).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let header =
        SegmentHeader { owner: options.owner, align: options.align, segment, owner_id: options.owner_id, salt };
    file.write_all_at(&[&header.encode()], 0).map_err(disk_error("write", &path))?;
    file.sync().map_err(disk_error("sync", &path))?;
    place.disk.sync_dir(&place.dir).map_err(disk_error("sync", &place.dir))?;
    let file = writable(place, segment, file)?;
    let start = SEGMENT_HEADER_LEN;
    Ok(Current { segment, file, salt, tail: start, durable: start, reserved: start, zeroed: start })
}

/// The handle that takes appends, from one that reads.
pub(super) fn writable(place: &Place, segment: u32, plain: Arc<dyn File>) -> Result<Arc<dyn File>> {
    match place.options.align {
        Align::Small => Ok(plain),
        Align::Direct => {
            let path = place.dir.join(segment_name(segment));
            place.disk.open_direct(&path).map_err(disk_error("open", &path))
        }
    }
}

/// The current segment as the readers see it.
pub(super) fn stored(current: &Current) -> Stored {
    Stored { file: current.file.clone(), salt: Some(current.salt), len: current.tail }
}

impl SegmentLog {
    /// Makes all appends that had returned before this call durable. Callers that come while another one's sync runs
    /// share the next one.
    ///
    /// # Errors
    /// `Fenced`, `Disk`: nothing is known about appends since the last sync that returned `Ok`; the log takes no more.
    pub fn sync(&self) -> Result<()> {
        let state = self.shared.state();
        self.shared.check_fence(&state)?;
        let need = state.completed;
        drop(state);
        self.shared.sync_to(need)
    }

    /// Starts a new segment, so that all records so far can be removed. Durable when this returns. Nothing happens if the
    /// current one is empty.
    pub fn roll(&self) -> Result<()> {
        let state = self.shared.state();
        self.shared.check_fence(&state)?;
        let now = &state.current;
        let (segment, empty) = (now.segment, now.tail == SEGMENT_HEADER_LEN);
        drop(state);
        if empty { Ok(()) } else { self.shared.roll_from(segment) }
    }

    /// Removes a segment, durably, with all in it. Not the last one; of a Raft log only the first one. Of chunks any:
    /// that it is gone is durable in the log before its file is removed, and so is all that was appended before this call.
    /// After a crash in between it is there as if nothing had happened.
    ///
    /// # Errors
    /// `Invalid`, `Absent`, `NoSpace`: nothing happened. `Fenced`, `Disk`: it may be gone or come back at the next start.
    pub fn remove(&self, segment: u32) -> Result<()> {
        let mut gone = self.shared.gone.lock().expect("no panic holds this lock");
        self.check_remove(segment)?;
        let place = &self.shared.place;
        if place.options.owner == Owner::Chunks {
            let mut named = gone.clone();
            named.insert(segment);
            let payload = named.encode();
            let record = Record { kind: KIND_GONE, key: [0; 32], payload: &payload, trailer: &[], checksum: true };
            self.shared.append_checked(&[record], false)?;
            self.sync()?;
            *gone = named;
        }
        self.shared.files.write().expect("no panic holds this lock").remove(&segment);
        let path = place.dir.join(segment_name(segment));
        place.disk.remove(&path).map_err(disk_error("remove", &path))?;
        place.disk.sync_dir(&place.dir).map_err(disk_error("sync", &place.dir))
    }

    /// Segments that were removed from among others, ever: what the owner gives to the next [`Options`](super::Options).
    pub fn gone(&self) -> Gone {
        self.shared.gone.lock().expect("no panic holds this lock").clone()
    }

    fn check_remove(&self, segment: u32) -> Result<()> {
        let current = self.shared.state().current.segment;
        let place = &self.shared.place;
        let files = self.shared.files.read().expect("no panic holds this lock");
        if !files.contains_key(&segment) {
            let position = Position { segment, offset: 0 };
            return Err(SegmentError::Absent { dir: place.dir.clone(), position });
        }
        let first = files.first_key_value().map(|(first, _)| *first);
        if segment >= current || (place.options.owner == Owner::RaftLog && first != Some(segment)) {
            return Err(SegmentError::Invalid { what: format!("segment {segment} cannot be removed now") });
        }
        Ok(())
    }

    /// Removes all segments before this one (and before the last one), durably, oldest first: a crash leaves no gap.
    pub fn remove_before(&self, segment: u32) -> Result<()> {
        let current = self.shared.state().current.segment;
        let old: Vec<u32> = self.segments().iter().map(|usage| usage.segment).collect();
        old.into_iter().filter(|old| *old < segment.min(current)).try_for_each(|old| self.remove(old))
    }

    /// Where the next record goes, if it fits.
    pub fn end(&self) -> Position {
        let state = self.shared.state();
        Position { segment: state.current.segment, offset: state.current.tail }
    }

    /// All before this is durable: where a later start may begin its scan ([`Options::start`](super::Options)).
    pub fn durable_end(&self) -> Position {
        let state = self.shared.state();
        Position { segment: state.current.segment, offset: state.current.durable }
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentUsage> {
        let end = self.end();
        let files = self.shared.files.read().expect("no panic holds this lock");
        let len = |segment: u32, stored: &Stored| if segment == end.segment { end.offset } else { stored.len };
        files.iter().map(|(segment, file)| SegmentUsage { segment: *segment, len: len(*segment, file) }).collect()
    }

    /// The error that closed the log for writing, if one did.
    pub fn fenced(&self) -> Option<String> {
        self.shared.state().fenced.clone()
    }
}
