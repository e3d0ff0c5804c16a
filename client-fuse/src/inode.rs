//! What this client knows and has not saved yet of one open file; shared by all its handles.
//!
//! Unsaved bytes go through three places: `dirty` (may still be overwritten), a [`Flight`] (fixed, on their way to the
//! chunkservers), and, when its commit is applied, the metadata. A read looks at `dirty`, then at flights from the newest
//! to the oldest, then at the committed extents; the step from a flight to the extents is one step under the lock.
//!
//! Invariants:
//! 1. Flights land (are committed, or dropped with an error) in the order they were sealed.
//! 2. `sealed - landed` is the number of flights in the queue.
//! 3. A byte that was written and is in neither place was committed, or its loss was counted in `errors`.
//! 4. Appended flights that follow each other, and what is appended in `dirty` behind them, lie side by side: one commit
//!    takes several, and a gap between them would become a hole.

use crate::cache::fresher;
use crate::chunks::{Outgoing, Stored};
use crate::client::Versions;
use crate::dirty::{DirtyMap, Placed};
use crate::extents::Extents;
use bytes::Bytes;
use common::fault::Fault;
use common::id::{DataVersion, InodeId};
use common::perm::is_root;
use common::proto::meta::{Attr, Cred, Edit};
use common::time::Time;
use common::units::{COMMIT_EDITS_MAX, len_u64, len_usize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use tokio::sync::{Notify, RwLock, oneshot};
use tokio::time::Instant;

/// What a piece of unsaved bytes costs beside them, in bytes of the budget: its place in the map, its buffer's head, later
/// an edit and a copy of it.
pub(crate) const PIECE_COST: u64 = 256;
/// Small ranges of one flight, at most: a commit has room for some flights.
const FLIGHT_RUNS_MAX: usize = COMMIT_EDITS_MAX / 2;

/// An open file.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: InodeId,
    pub(crate) state: Mutex<State>,
    /// A flight landed or failed.
    pub(crate) changed: Notify,
    /// There is more for the task that lands flights.
    pub(crate) arrived: Notify,
    /// Writers share it; what changes size or ranges on the metaserver at once (truncate, punch) has it alone.
    pub(crate) gate: RwLock<()>,
    /// Where a chunk was last found to be read densely, plus 1; 0: nowhere, or it was taken note of.
    pub(crate) dense: AtomicU64,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct State {
    /// As the metaservers last told, without what is unsaved.
    pub(crate) attr: Attr,
    pub(crate) extents: Extents,
    pub(crate) dirty: DirtyMap,
    /// What `dirty` holds of the client's budget.
    reserved: u64,
    pub(crate) dirty_since: Option<Instant>,
    /// All of `dirty` was appended, so where it goes is for the metaservers to say.
    pub(crate) appending: bool,
    /// Time of the newest unsaved write.
    pub(crate) mtime: Option<Time>,
    /// Time of the newest read that changes the access time.
    pub(crate) accessed: Time,
    pub(crate) flights: VecDeque<Flight>,
    pub(crate) sealed: u64,
    pub(crate) landed: u64,
    /// A task is landing flights.
    pub(crate) pumping: bool,
    /// When flights landed last.
    pub(crate) landed_at: Option<Instant>,
    /// A commit is under way: where the first flights come is being decided.
    pub(crate) committing: bool,
    /// It is to wait: a truncate is under way that may make them needless.
    held: bool,
    /// Failures so far, and the last.
    pub(crate) errors: u64,
    /// Those numbered above the first up to the second turned out to be of bytes that nobody needs: not told.
    needless: (u64, u64),
    pub(crate) last_error: Option<Fault>,
    /// Handles numbered below this lost unsaved data with their session: they fail until reopened.
    pub(crate) lost_before: u64,
    pub(crate) opened: u64,
    /// Who opened it for writing: root, else the owner, else the last one. What is saved is saved on his behalf.
    pub(crate) writer: Option<Cred>,
    pub(crate) handles: usize,
    /// Bytes this client put inline into this file since it was opened or compacted.
    pub(crate) inlined: u64,
    /// Pieces in each window since it was last whole, as far as is known.
    pub(crate) fragments: BTreeMap<u64, u32>,
    /// The session unsaved data was taken under.
    pub(crate) generation: u64,
    /// `attr` was taken from an answer that came after the file was opened here: while the lease of it lasts, it is what
    /// others see, but for what this client saves.
    pub(crate) refreshed: bool,
}

/// Unsaved bytes on their way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) append: bool,
    pub(crate) pieces: Vec<Placed>,
    /// What it holds of the client's budget.
    reserved: u64,
    pub(crate) mtime: Time,
    pub(crate) generation: u64,
    /// Small enough to be kept in the metadata.
    pub(crate) inline: bool,
    /// To be added to the offsets of the upload's edits: how far its bytes were moved since they were planned.
    pub(crate) shift: i64,
    pub(crate) upload: Upload,
}

/// How far a flight is.
#[derive(Debug)]
pub(crate) enum Upload {
    No,
    Running(oneshot::Receiver<Result<Uploaded, Fault>>),
    /// The landing task waits for it.
    Awaited,
    Done(Uploaded),
}

/// A flight whose chunks are stored.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) edits: Vec<Edit>,
    pub(crate) chunks: Vec<Outgoing>,
    /// `None`: everything is inline or a hole.
    pub(crate) stored: Option<Stored>,
    pub(crate) inline_bytes: u64,
}

impl Inode {
    pub(crate) fn new(attr: Attr, generation: u64) -> Inode {
        let state = State {
            extents: Extents::new(attr.version),
            dirty: DirtyMap::default(),
            reserved: 0,
            dirty_since: None,
            appending: false,
            mtime: None,
            accessed: Time::default(),
            flights: VecDeque::new(),
            sealed: 0,
            landed: 0,
            pumping: false,
            landed_at: None,
            committing: false,
            held: false,
            errors: 0,
            needless: (0, 0),
            last_error: None,
            lost_before: 0,
            opened: 0,
            writer: None,
            handles: 0,
            inlined: 0,
            fragments: BTreeMap::new(),
            generation,
            refreshed: false,
            attr,
        };
        let (changed, arrived) = (Notify::new(), Notify::new());
        let dense = AtomicU64::new(0);
        Inode { ino: state.attr.ino, state: Mutex::new(state), changed, arrived, gate: RwLock::new(()), dense }
    }

    /// On whose behalf what is unsaved is saved.
    pub(crate) fn writer(&self) -> Cred {
        self.lock().writer.clone().unwrap_or_default()
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }
}

impl Flight {
    /// Past its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |(at, bytes)| at + len_u64(bytes.len()))
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> u64 {
        self.pieces.first().map_or(0, |(at, _)| *at)
    }

    fn overlay(&self, range: &Range<u64>) -> Vec<Placed> {
        let first = self.pieces.partition_point(|(at, bytes)| at + len_u64(bytes.len()) <= range.start);
        let mut out = Vec::new();
        for (at, bytes) in self.pieces[first..].iter().take_while(|(at, _)| *at < range.end) {
            let (from, to) = (range.start.max(*at), range.end.min(at + len_u64(bytes.len())));
            out.push((from, bytes.slice(len_usize(from - at)..len_usize(to - at))));
        }
        out
    }
}

/// Keeps flights from landing until it is dropped.
pub(crate) struct Hold<'a>(&'a Inode);

impl Inode {
    /// Holds back everything unsaved if a truncation to `size` makes all of it needless. `None`: some of it lies below, or
    /// was appended, so that its place is not known, or is being stored or committed.
    pub(crate) fn hold_beyond(&self, size: u64) -> Option<Hold<'_>> {
        let mut state = self.lock();
        let placed = |flight: &Flight| !flight.append && flight.start() >= size;
        let idle = state.flights.front().is_none_or(|first| matches!(first.upload, Upload::No)); // it lands first
        let needless = state.flights.iter().all(placed) && state.dirty.is_empty();
        (idle && needless && !state.held).then(|| {
            state.held = true;
            Hold(self)
        })
    }
}

impl Hold<'_> {
    /// The truncation was done: drops what it made needless, and failures to store that. Returns what it held of the
    /// budget. `errors`: how many there were before.
    pub(crate) fn drop_unsaved(self, errors: u64) -> u64 {
        let mut state = self.0.lock();
        let flights = state.flights.len();
        state.needless = (errors, state.errors);
        state.drop_front(flights) + state.drop_dirty()
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.lock().held = false;
        self.0.changed.notify_waiters();
    }
}

impl State {
    /// Whether flights may not land now.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Somebody opened it for writing. Root stays allowed what others may lose, and so does the owner.
    pub(crate) fn opened_for_writing(&mut self, cred: &Cred) {
        let rank = |cred: &Cred| (is_root(cred), cred.uid == self.attr.uid);
        let alone = self.handles == 1 && !self.is_unsaved();
        if alone || self.writer.as_ref().is_none_or(|writer| rank(cred) >= rank(writer)) {
            self.writer = Some(cred.clone());
        }
    }

    /// What `dirty` and what flights hold of the client's budget.
    pub(crate) fn budget_held(&self) -> (u64, u64) {
        (self.reserved, self.flights.iter().map(|flight| flight.reserved).sum())
    }

    /// The file's length with what is unsaved.
    pub(crate) fn size(&self) -> u64 {
        let flying = self.flights.iter().map(Flight::end).max().unwrap_or(0);
        self.attr.size.max(self.dirty.end()).max(flying)
    }

    /// As far as is known.
    pub(crate) fn versions(&self) -> Versions {
        Versions { since: self.extents.since(), now: self.attr.version }
    }

    /// Whether anything is unsaved.
    pub(crate) fn is_unsaved(&self) -> bool {
        !self.dirty.is_empty() || !self.flights.is_empty()
    }

    /// Takes newer attributes.
    pub(crate) fn adopt(&mut self, attr: &Attr) {
        if fresher(attr, &self.attr) {
            if attr.version > self.extents.version() {
                self.extents.reset(attr.version);
            }
            self.attr = attr.clone();
            self.follow_end();
        }
    }

    /// The file ends elsewhere now: what is appended here comes there, as far as its place is not being decided.
    pub(crate) fn follow_end(&mut self) {
        let mut end = self.attr.size; // with what is placed here and comes before
        let mut first = self.dirty.start().filter(|_| self.appending);
        for flight in &self.flights {
            if flight.append {
                first = Some(flight.start());
                break;
            }
            end = end.max(flight.end());
        }
        let is_decided = self.committing && self.flights.front().is_some_and(|flight| flight.append);
        if let Some(first) = first.filter(|first| !is_decided && *first != end) {
            let [end, first] = [end, first].map(|at| i64::try_from(at).expect("below 2^60"));
            self.shift_appended(end - first);
        }
    }

    /// The attributes with what is unsaved.
    pub(crate) fn with_unsaved(&self, attr: &Attr) -> Attr {
        let mut attr = attr.clone();
        if self.is_unsaved() {
            attr.size = self.size();
            if let Some(mtime) = self.mtime {
                (attr.mtime, attr.ctime) = (mtime, mtime.max(attr.ctime));
            }
        }
        attr
    }

    /// It is known what lies below `end`: not while it is being decided where appended bytes come, after the file has come to
    /// end elsewhere.
    pub(crate) fn is_placed(&self, end: u64) -> bool {
        let first = self.flights.front().filter(|flight| flight.append && self.committing);
        let is_before = |first: &Flight| end <= first.start().min(self.attr.size);
        first.is_none_or(|first| first.start() == self.attr.size || is_before(first))
    }

    /// What is unsaved in a range, newest on top, in order.
    pub(crate) fn overlay(&self, range: Range<u64>) -> Vec<Placed> {
        // Below the end nothing was appended that is not committed.
        let behind = range.start.max(self.attr.size)..range.end.max(self.attr.size);
        let of = |append: bool| if append { behind.clone() } else { range.clone() };
        if self.flights.is_empty() {
            return self.dirty.overlay(of(self.appending));
        }
        let mut view = DirtyMap::default();
        let flying = self.flights.iter().flat_map(|flight| flight.overlay(&of(flight.append)));
        for (at, bytes) in flying.chain(self.dirty.overlay(of(self.appending))) {
            view.insert(at, bytes);
        }
        view.overlay(range)
    }

    /// Takes written bytes, with their length and twice [`PIECE_COST`] of the budget: they may split a piece. Returns where
    /// they went, and what of the budget is not needed.
    pub(crate) fn write(&mut self, offset: Option<u64>, bytes: Bytes, at: Time, now: Instant) -> (u64, u64) {
        let append = offset.is_none();
        if append != self.appending && !self.dirty.is_empty() {
            self.seal_all(0); // a flight is appended or placed, never both
        }
        let offset = offset.unwrap_or_else(|| self.append_end());
        self.appending = append;
        self.dirty_since.get_or_insert(now);
        self.mtime = Some(at);
        self.reserved += len_u64(bytes.len()) + 2 * PIECE_COST;
        self.dirty.insert(offset, bytes);
        let spare = self.reserved.saturating_sub(self.dirty.bytes() + self.dirty.pieces() * PIECE_COST);
        self.reserved -= spare;
        (offset, spare)
    }

    /// Where the next appended byte goes, until the metaservers say: behind what was appended before it, also when the file
    /// has grown elsewhere meanwhile; else at the end.
    fn append_end(&self) -> u64 {
        match self.flights.back() {
            _ if !self.dirty.is_empty() => self.dirty.end(), // it is appended too: what is not is sealed by now
            Some(last) if last.append => last.end(),
            _ => self.size(),
        }
    }

    /// Drops what is not sealed. Returns what it held of the budget.
    pub(crate) fn drop_dirty(&mut self) -> u64 {
        self.dirty.cut(0..u64::MAX);
        self.dirty_since = None;
        std::mem::take(&mut self.reserved)
    }

    /// Seals the windows a write filled. Appended bytes are one run whose place the metaservers decide: there, all goes with
    /// a full window, so that flights land in the order of their bytes, and what others append does not come in the midst of
    /// a write.
    pub(crate) fn seal_full(&mut self, written: Range<u64>) {
        let window = u64::from(self.attr.chunk_size);
        for number in written.start / window..written.end.div_ceil(window) {
            let range = number * window..(number + 1) * window;
            if self.dirty.covers(range.clone()) {
                self.seal(if self.appending { 0..u64::MAX } else { range });
            }
        }
        if !self.dirty.is_empty() && self.flights.back().is_some_and(|flight| Some(flight.mtime) == self.mtime) {
            self.mtime = self.mtime.map(|time| time.after_nanos(1)); // what is left will have it, and so it is shown
        }
    }

    /// So many places were written to that there is a commit's worth of them: no more is waited for.
    pub(crate) fn is_scattered(&self) -> bool {
        self.dirty.pieces() >= len_u64(FLIGHT_RUNS_MAX)
    }

    /// Seals everything. `inline_max`: a total up to this many bytes is kept in the metadata.
    pub(crate) fn seal_all(&mut self, inline_max: u64) {
        let window = u64::from(self.attr.chunk_size);
        let inline = self.dirty.bytes() <= inline_max;
        let mut pieces: Vec<Placed> = Vec::new();
        let mut bytes = 0; // of `pieces`
        for (at, piece) in self.dirty.take(0..u64::MAX) {
            let len = len_u64(piece.len());
            // A new flight where the old one has enough, if possible between windows.
            let new_window = pieces.last().is_none_or(|(before, _)| before / window != at / window);
            if pieces.len() >= FLIGHT_RUNS_MAX || (new_window && bytes >= window) {
                self.push(std::mem::take(&mut pieces), inline);
                bytes = 0;
            }
            pieces.push((at, piece));
            bytes += len;
        }
        if !pieces.is_empty() {
            self.push(pieces, inline);
        }
        self.all_sealed();
    }

    /// Nothing is dirty any more: the last flight takes over what is left of the budget.
    fn all_sealed(&mut self) {
        self.dirty_since = None;
        if let Some(last) = self.flights.back_mut() {
            last.reserved += std::mem::take(&mut self.reserved);
        }
    }

    fn seal(&mut self, range: Range<u64>) {
        let pieces = self.dirty.take(range);
        self.push(pieces, false);
        if self.dirty.is_empty() {
            self.all_sealed();
        }
    }

    fn push(&mut self, pieces: Vec<Placed>, inline: bool) {
        // Sealing may split pieces; what it takes over is no more than there is, so nothing is given back twice.
        let cost: u64 = pieces.iter().map(|(_, b)| len_u64(b.len()) + PIECE_COST).sum();
        let reserved = cost.min(self.reserved);
        self.reserved -= reserved;
        self.sealed += 1;
        // Each commit has a time of its own, by which others see that there was one: kernels compare only that and the size.
        let mut mtime = self.mtime.unwrap_or_default();
        let before = self.flights.back().map(|flight| flight.mtime);
        while Some(mtime) == before || mtime == self.attr.mtime {
            mtime = before.filter(|before| *before > mtime).unwrap_or(mtime).after_nanos(1);
        }
        self.mtime = Some(mtime);
        self.flights.push_back(Flight {
            append: self.appending,
            pieces,
            reserved,
            mtime,
            generation: self.generation,
            inline,
            shift: 0,
            upload: Upload::No,
        });
    }

    /// Moves what was appended and not yet committed: the end of the file was elsewhere.
    pub(crate) fn shift_appended(&mut self, by: i64) {
        for flight in self.flights.iter_mut().filter(|flight| flight.append) {
            flight.shift += by;
            for (at, _) in &mut flight.pieces {
                *at = at.saturating_add_signed(by);
            }
        }
        if self.appending {
            self.dirty.shift(by);
        }
    }

    /// The data version that is known here never came to be: whatever is heard next is newer.
    pub(crate) fn lost_version(&mut self) {
        self.attr.version = DataVersion(0);
        self.extents.reset(DataVersion(0));
        self.refreshed = false;
    }

    /// The number of the last failure that is to be told; 0: there was none.
    pub(crate) fn last_failure(&self) -> u64 {
        if self.errors == self.needless.1 { self.needless.0 } else { self.errors }
    }

    /// Counts a failure, to be told to every handle.
    pub(crate) fn fail(&mut self, fault: Fault) {
        self.errors += 1;
        self.last_error = Some(fault);
    }

    /// Drops flights from the front. Returns what they held of the budget.
    pub(crate) fn drop_front(&mut self, count: usize) -> u64 {
        self.landed += len_u64(count);
        self.flights.drain(..count).map(|flight| flight.reserved).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::proto::meta::FileKind;

    fn file(size: u64, version: u64) -> Attr {
        Attr {
            ino: InodeId(7),
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size,
            allocated: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            rdev: 0,
            chunk_size: 64 << 10,
            replicas: 3,
            version: DataVersion(version),
        }
    }

    fn append(state: &mut State, text: &'static str) -> u64 {
        state.write(None, Bytes::from_static(text.as_bytes()), Time::default(), Instant::now()).0
    }

    /// Two mounts append: that the other one's bytes become known here must not tear ours apart.
    #[tokio::test]
    async fn appended_bytes_stay_side_by_side_while_the_file_grows_elsewhere() {
        let inode = Inode::new(file(10, 1), 0);
        let mut state = inode.lock();
        assert_eq!(append(&mut state, "abc"), 10);
        state.adopt(&file(100, 2));
        assert_eq!(append(&mut state, "de"), 103, "behind the first bytes, which moved behind what others appended");
        state.seal_all(0);
        state.adopt(&file(200, 3));
        assert_eq!(state.overlay(0..1000), [(200, Bytes::from_static(b"abcde"))]);
        state.adopt(&file(50, 4));
        assert_eq!(state.overlay(0..1000), [(50, Bytes::from_static(b"abcde"))], "cut elsewhere");
        assert_eq!(state.size(), 55);
        state.adopt(&file(200, 5));
        state.committing = true;
        assert!(state.is_placed(205));
        state.adopt(&file(300, 6));
        assert!(state.is_placed(200) && !state.is_placed(201), "others' bytes are there, or ours");
        assert_eq!(append(&mut state, "f"), 205, "in the next flight; where the first comes the answer says");
        state.seal_all(0);
        let flights = state.flights.len();
        state.drop_front(flights);
        assert_eq!(append(&mut state, "g"), 300, "nothing is unsaved: at the end");
    }

    /// What another mount appends comes between flights, not within what one call wrote.
    #[tokio::test]
    async fn a_flight_ends_where_a_write_of_appended_bytes_ends() {
        let inode = Inode::new(file(0, 1), 0);
        let mut state = inode.lock();
        let window = len_usize(u64::from(state.attr.chunk_size));
        let mut ends = Vec::new();
        for _ in 0..5 {
            let (at, _) = state.write(None, Bytes::from(vec![7; window / 3 * 2]), Time::default(), Instant::now());
            ends.push(at + len_u64(window / 3 * 2));
            state.seal_full(at..ends[ends.len() - 1]);
        }
        assert!(state.flights.len() > 1);
        assert!(state.flights.iter().all(|flight| ends.contains(&flight.end())), "{ends:?}");
    }

    /// A kernel that keeps pages tells two versions of a file apart by size and time.
    #[tokio::test]
    async fn each_flight_has_a_time_of_its_own() {
        let inode = Inode::new(file(0, 1), 0);
        let mut state = inode.lock();
        let (at, window) = (Time { secs: 9, nanos: 999_999_999 }, len_usize(u64::from(state.attr.chunk_size)));
        state.attr.mtime = at;
        for number in 0..3 {
            state.write(Some(number * len_u64(window)), Bytes::from(vec![7; window]), at, Instant::now());
            state.seal_full(number * len_u64(window)..(number + 1) * len_u64(window));
        }
        let times: Vec<Time> = state.flights.iter().map(|flight| flight.mtime).collect();
        assert_eq!(times, [0, 1, 2].map(|nanos| Time { secs: 10, nanos }));
        let shown = state.with_unsaved(&state.attr.clone());
        assert_eq!(shown.mtime, times[2], "it does not change once more when they are saved");
        state.write(Some(0), Bytes::from_static(b"x"), Time { secs: 20, nanos: 5 }, Instant::now());
        state.seal_all(0);
        assert_eq!(state.flights.back().unwrap().mtime, Time { secs: 20, nanos: 5 });
        state.attr.mtime = Time { secs: 99, nanos: 0 }; // set by somebody
        for nanos in [5, 6] {
            state.write(Some(0), Bytes::from_static(b"y"), Time { secs: 30, nanos: 5 }, Instant::now());
            state.seal_all(0);
            assert_eq!(state.flights.back().unwrap().mtime, Time { secs: 30, nanos });
        }
        let start = 9 * len_u64(window);
        state.write(Some(start), Bytes::from(vec![7; window + 1]), Time { secs: 40, nanos: 0 }, Instant::now());
        state.seal_full(start..start + len_u64(window) + 1);
        let shown = state.with_unsaved(&state.attr.clone()).mtime;
        state.seal_all(0);
        assert_eq!(state.with_unsaved(&state.attr.clone()).mtime, shown, "closing it changes nothing");
    }

    /// What is placed here comes before it, and others' bytes are not covered by what was appended here.
    #[tokio::test]
    async fn appended_bytes_follow_the_end_also_behind_placed_ones() {
        let inode = Inode::new(file(10, 1), 0);
        let mut state = inode.lock();
        state.write(Some(10), Bytes::from_static(b"placed"), Time::default(), Instant::now());
        assert_eq!(append(&mut state, "abc"), 16);
        state.adopt(&file(100, 2));
        assert_eq!(state.overlay(10..1000), [(10, Bytes::from_static(b"placed")), (100, Bytes::from_static(b"abc"))]);
        state.adopt(&file(0, 3));
        assert_eq!(state.overlay(0..1000), [(10, Bytes::from_static(b"placedabc"))]);
        let placed = state.flights.len();
        state.drop_front(placed);
        state.adopt(&file(16, 4));
        state.seal_all(0);
        state.committing = true;
        state.adopt(&file(50, 5));
        assert_eq!(state.overlay(0..1000), [], "they are others', or ours and committed");
    }
}
