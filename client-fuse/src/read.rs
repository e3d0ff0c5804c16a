//! The read path: unsaved bytes first, then extents, then chunks: from memory, or verified from a replica.
//!
//! Reading in order loads whole chunks, and more and more of them ahead. Reading here and there fetches only the hash
//! groups that hold the bytes, until so much of a chunk was read that the whole of it is worth keeping.

use crate::cache::{Find, Worth};
use crate::chunks::Spot;
use crate::core::Core;
use crate::dirty::Placed;
use crate::extents::{Extents, Part};
use crate::handle::Inside;
use crate::inode::Inode;
use crate::meta::unexpected;
use crate::stats::add;
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, DataVersion};
use common::proto::meta::{Answer, Cred, Extent, Query, Source};
use common::units::{len_u32, len_u64, len_usize};
use futures::future::try_join_all;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// Chunks up to this long are always read whole, in bytes.
const WHOLE_MAX: u32 = 128 << 10;
/// The most bytes that are loaded ahead of a reader.
const READ_AHEAD_MAX: u64 = 32 << 20;
/// A read this far before or behind the expected one still counts as in order: the kernel sends several at once.
const IN_ORDER_SLACK: u64 = 2 << 20;
/// From this many bytes in order on, whole chunks are loaded.
const IN_ORDER_MIN: u64 = 64 << 10;
/// Extents are asked for this far behind the first unknown byte.
const EXTENTS_AHEAD: u64 = 8 << 30;
/// Times one read begins anew because the file was changed elsewhere between its length and its bytes. One that is changed all
/// the time shows a mixture at last, as a local file may.
const READ_ROUNDS_MAX: u32 = 16;
/// How long a read waits for a commit under way that decides where appended bytes come. Short: whoever waits for this mount
/// to forget the file waits for the read as well.
const PLACED_LIMIT: Duration = Duration::from_millis(30);
/// Rounds of asking for extents in one read: more mean that the file changes all the time.
const EXTENT_ROUNDS_MAX: u32 = 64;
/// The longest stretch that is read around a place, in bytes.
const AROUND_MAX: u64 = 8 << 20;
/// What stretches for others to keep begin and end on, in bytes.
const PAGE: u64 = 4096;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Bytes of a file that somebody else may keep: committed ones, nothing unsaved beside them, all of one version.
#[derive(Clone, Debug)]
pub struct Around {
    /// Where in the file: a multiple of 4096.
    pub start: u64,
    /// The bytes, in order: up to another such multiple, or to the end of the file.
    pub pieces: Vec<Bytes>,
    /// Which version.
    pub version: DataVersion,
}

/// How one handle reads.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Where the next read in order starts.
    expected: u64,
    /// Bytes read in order so far.
    run: u64,
    /// Up to here chunks were asked for ahead.
    issued: u64,
}

impl Ahead {
    /// Notes a read. `Some`: it is in order; the range to load ahead of it, which may be empty.
    fn note(&mut self, range: &Range<u64>, chunk_size: u64, most: u64) -> Option<Range<u64>> {
        let len = range.end - range.start;
        let starts = self.expected == 0 && range.start == 0;
        let near = range.start <= self.expected + IN_ORDER_SLACK && self.expected <= range.start + IN_ORDER_SLACK;
        if !(starts || (self.expected > 0 && near)) {
            *self = Ahead { expected: range.end, run: 0, issued: 0 };
            return None;
        }
        self.run += len;
        self.expected = self.expected.max(range.end);
        if self.run < IN_ORDER_MIN {
            return None;
        }
        let until = range.end + self.run.max(chunk_size).min(most);
        let from = self.issued.max(range.end);
        self.issued = self.issued.max(until);
        Some(from..until.max(from))
    }
}

impl Core {
    /// Up to `len` bytes from `offset`: length and bytes of one version of the file.
    pub(crate) async fn read(self: &Arc<Self>, handle: &Inside, offset: u64, len: u32) -> Result<Vec<Bytes>, Fault> {
        let out = self.read_one_version(handle, offset, len).await?;
        if !out.is_empty() {
            self.note_access(handle);
        }
        Ok(out)
    }

    async fn read_one_version(self: &Arc<Self>, handle: &Inside, offset: u64, len: u32) -> Result<Vec<Bytes>, Fault> {
        let placed_by = Instant::now() + PLACED_LIMIT;
        for _ in 1..READ_ROUNDS_MAX {
            let (out, version) = self.read_once(handle, offset, len, placed_by).await?;
            if handle.inode.lock().attr.version == version {
                return Ok(out);
            }
        }
        Ok(self.read_once(handle, offset, len, placed_by).await?.0)
    }

    /// As [`Core::read`], and the version that its length is of. If it is not the file's version afterwards, bytes may be of
    /// a later one; zeros then, where that one is shorter.
    async fn read_once(
        self: &Arc<Self>,
        handle: &Inside,
        offset: u64,
        len: u32,
        placed_by: Instant,
    ) -> Result<(Vec<Bytes>, DataVersion), Fault> {
        let inode = &handle.inode;
        self.refresh(inode, &handle.cred).await?;
        let (range, overlay, chunk_size, version) = self.unsaved(inode, offset, len, placed_by).await;
        if range.is_empty() {
            return Ok((Vec::new(), version));
        }
        let most = READ_AHEAD_MAX.min(self.cache.loading_max() / 2);
        let ahead = handle.ahead.lock().expect("no panic holds this lock").note(&range, chunk_size, most);
        if let Some(ahead) = ahead.clone().filter(|ahead| !ahead.is_empty()) {
            self.load_ahead(handle, ahead);
        }
        let deadline = self.meta.deadline();
        let mut out = Vec::new();
        let mut at = range.start;
        for (start, bytes) in overlay {
            if at < start {
                self.committed(handle, at..start, ahead.is_some(), deadline, &mut out).await?;
            }
            at = start + len_u64(bytes.len());
            out.push(bytes);
        }
        if at < range.end {
            self.committed(handle, at..range.end, ahead.is_some(), deadline, &mut out).await?;
        }
        add(&self.counters.read_bytes, range.end - range.start);
        Ok((out, version))
    }

    /// The range that is read, what is unsaved of it, and the chunk size and version of that moment. If where unsaved bytes come
    /// is being decided that is waited for, up to `placed_by`; then the file is shown without them.
    async fn unsaved(
        &self,
        inode: &Inode,
        offset: u64,
        len: u32,
        placed_by: Instant,
    ) -> (Range<u64>, Vec<Placed>, u64, DataVersion) {
        let mut late = false;
        loop {
            let landed = inode.changed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            {
                let state = inode.lock();
                let mut end = state.size().min(offset.saturating_add(u64::from(len)));
                let is_placed = state.is_placed(end);
                if late && !is_placed {
                    end = end.min(state.attr.size); // bytes at a place that is not theirs are worse than none
                }
                if late || is_placed {
                    let range = offset..end.max(offset);
                    let overlay = if range.is_empty() { Vec::new() } else { state.overlay(range.clone()) };
                    return (range, overlay, u64::from(state.attr.chunk_size), state.attr.version);
                }
            }
            late = timeout_at(placed_by, landed).await.is_err();
        }
    }

    /// The extent around a byte, as [`Around`]. `None`: it is too long, or not known any more, or the file changes.
    pub(crate) async fn read_around(self: &Arc<Self>, handle: &Inside, at: u64) -> Result<Option<Around>, Fault> {
        let inode = &handle.inode;
        let (range, version) = {
            let state = inode.lock();
            let extent = state.extents.around(at).filter(|_| !state.is_unsaved());
            let Some(range) = extent.and_then(|extent| whole_pages(extent, state.attr.size)) else { return Ok(None) };
            (range, state.attr.version)
        };
        self.around(handle, range, version).await
    }

    /// The last page of a file, as [`Around`]. `None`: it changes, or is empty.
    pub(crate) async fn read_end(self: &Arc<Self>, handle: &Inside) -> Result<Option<Around>, Fault> {
        let (size, version) = {
            let state = handle.inode.lock();
            if state.attr.size == 0 || state.is_unsaved() {
                return Ok(None);
            }
            (state.attr.size, state.attr.version)
        };
        let start = size.saturating_sub(1) / PAGE * PAGE;
        self.around(handle, start..size, version).await
    }

    async fn around(
        self: &Arc<Self>,
        handle: &Inside,
        range: Range<u64>,
        version: DataVersion,
    ) -> Result<Option<Around>, Fault> {
        let (start, whole, mut pieces) = (range.start, range.end - range.start > PAGE, Vec::new());
        self.committed(handle, range, whole, self.meta.deadline(), &mut pieces).await?;
        let state = handle.inode.lock();
        let is_so = state.attr.version == version && !state.is_unsaved();
        Ok(is_so.then_some(Around { start, pieces, version }))
    }

    /// Asks for a file's attributes unless it is certain that nobody else has changed it since this client last heard.
    pub(crate) async fn refresh(&self, inode: &Inode, cred: &Cred) -> Result<(), Fault> {
        let uptime = self.world.uptime();
        if !self.config.leases {
            return Ok(()); // as it was when it was opened
        }
        if let Some((attr, _)) = self.leases.attr(inode.ino, uptime) {
            let mut state = inode.lock();
            state.adopt(&attr);
            state.refreshed = true;
            return Ok(());
        }
        if inode.lock().refreshed && self.leases.holds(inode.ino, uptime) {
            return Ok(());
        }
        self.query(cred, Query::GetAttr { ino: inode.ino }, self.meta.deadline()).await?;
        inode.lock().refreshed = true;
        Ok(())
    }

    /// Committed bytes of a range.
    async fn committed(
        self: &Arc<Self>,
        handle: &Inside,
        range: Range<u64>,
        whole: bool,
        deadline: Instant,
        out: &mut Vec<Bytes>,
    ) -> Result<(), Fault> {
        let mut at = range.start;
        while at < range.end {
            at = self.committed_first(handle, at..range.end, whole, deadline, out).await?;
        }
        Ok(())
    }

    /// As much of the front of a range as has its extents known at once; returns where that ends. Extents that turn out
    /// to be out of date are asked for once more.
    async fn committed_first(
        self: &Arc<Self>,
        handle: &Inside,
        range: Range<u64>,
        whole: bool,
        deadline: Instant,
        out: &mut Vec<Bytes>,
    ) -> Result<u64, Fault> {
        for again in [true, false] {
            let parts = self.extents(&handle.inode, &handle.cred, range.clone(), deadline).await?;
            let end = parts.last().expect("at least one part").0.end;
            let reads =
                parts.into_iter().map(|(range, extent)| self.part(&handle.inode, range, extent, whole, deadline));
            match try_join_all(reads).await {
                Ok(parts) => {
                    out.extend(parts.into_iter().flatten());
                    return Ok(end);
                }
                Err(fault) if again && fault.kind != Kind::Unavailable => {
                    let mut state = handle.inode.lock();
                    let version = state.extents.version();
                    state.extents.reset(version);
                }
                Err(fault) => return Err(fault.context(format_args!("read {}", handle.inode.ino))),
            }
        }
        unreachable!("the second try returns")
    }

    /// Where the bytes of a range, which is not empty, are, from what is known or from the metaservers. At least one
    /// part; fewer than all only if there are more extents in the range than are kept of a file.
    pub(crate) async fn extents(
        &self,
        inode: &Inode,
        cred: &Cred,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Vec<Part>, Fault> {
        self.find_extents(inode, cred, range, deadline, Extents::is_full).await
    }

    /// As [`Core::extents`], but without asking for more than the first of them.
    pub(crate) async fn first_extents(
        &self,
        inode: &Inode,
        cred: &Cred,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Vec<Part>, Fault> {
        self.find_extents(inode, cred, range, deadline, |_| true).await
    }

    async fn find_extents(
        &self,
        inode: &Inode,
        cred: &Cred,
        range: Range<u64>,
        deadline: Instant,
        is_enough: impl Fn(&Extents) -> bool,
    ) -> Result<Vec<Part>, Fault> {
        for _ in 0..EXTENT_ROUNDS_MAX {
            let from = {
                let state = inode.lock();
                match state.extents.find(range.clone()) {
                    Ok(parts) => return Ok(parts),
                    Err(unknown) if unknown > range.start && is_enough(&state.extents) => {
                        return Ok(state.extents.find(range.start..unknown).expect("known up to there"));
                    }
                    Err(unknown) => unknown,
                }
            };
            let to = range.end.max(from.saturating_add(EXTENTS_AHEAD));
            match self.query(cred, Query::Extents { ino: inode.ino, from, to }, deadline).await? {
                Answer::Extents { attr, run } => {
                    let mut state = inode.lock();
                    state.extents.learn(attr.version, from, &run);
                    state.adopt(&attr);
                }
                other => return Err(unexpected("extents", &other)),
            }
        }
        Err(Fault::new(Kind::Unavailable, format!("the extents of {} change all the time", inode.ino)))
    }

    /// The bytes of one extent, or zeros.
    pub(crate) async fn part(
        self: &Arc<Self>,
        inode: &Inode,
        range: Range<u64>,
        extent: Option<Extent>,
        whole: bool,
        deadline: Instant,
    ) -> Result<Vec<Bytes>, Fault> {
        let len = range.end - range.start;
        let Some(extent) = extent else { return Ok(zeros(len)) };
        let one = match &extent.data {
            Source::Hole => return Ok(zeros(len)),
            Source::Inline { id, offset, bytes } => {
                let from = len_usize(u64::from(*offset));
                let to = from + len_usize(len);
                if ChunkId::of(bytes) != *id || to > bytes.len() {
                    let text = format!("inline bytes of {} at {} do not match their hash", inode.ino, range.start);
                    return Err(Fault::new(Kind::Corrupt, text));
                }
                bytes.slice(from..to)
            }
            Source::Chunk { id, offset } => {
                let spot = Spot {
                    ino: inode.ino,
                    id: *id,
                    len: extent.chunk_len,
                    token: extent.token,
                    holders: extent.holders.clone(),
                };
                let len = u32::try_from(len).expect("an extent is shorter than 4 GiB");
                let end = u64::from(*offset) + u64::from(len);
                if end > u64::from(spot.len) {
                    let text = format!("an extent of {} ends at {end} of chunk {id}, which is shorter", inode.ino);
                    return Err(Fault::new(Kind::Corrupt, text));
                }
                self.chunk_part((inode, range.start), spot, (*offset, len), whole, deadline).await?
            }
        };
        Ok(vec![one])
    }

    /// `place`: of the bytes in the file.
    async fn chunk_part(
        self: &Arc<Self>,
        place: (&Inode, u64),
        spot: Spot,
        (offset, len): (u32, u32),
        whole: bool,
        deadline: Instant,
    ) -> Result<Bytes, Fault> {
        let cut = |bytes: Bytes, start: u32| {
            let from = len_usize(u64::from(offset - start));
            bytes.slice(from..from + len_usize(u64::from(len)))
        };
        if let Some(bytes) = self.cache.get(&spot.id) {
            add(&self.counters.cache_hits, 1);
            return Ok(cut(bytes, 0));
        }
        let most = spot.len <= WHOLE_MAX || u64::from(len) * 2 >= u64::from(spot.len);
        let is_whole = whole || most;
        let worth = if is_whole { Worth::Whole } else { self.cache.count_range(&spot.id, len, spot.len) };
        if worth == Worth::PartOfDense {
            place.0.dense.store(place.1 + 1, Ordering::Relaxed);
        }
        if worth != Worth::Whole {
            add(&self.counters.cache_misses, 1);
            let (start, bytes) = self.chunks.fetch(&spot, (offset, len), deadline).await?;
            return Ok(cut(bytes, start));
        }
        let coming = match self.cache.find(&spot.id) {
            Find::Here(bytes) => return Ok(cut(bytes, 0)),
            Find::Coming(coming) => coming,
            Find::Load(sender, coming) => {
                self.load(spot.clone(), sender, None);
                coming
            }
        };
        let late = |_| Fault::new(Kind::Unavailable, format!("chunk {} did not come in time", spot.id));
        Ok(cut(timeout_at(deadline, coming.wait()).await.map_err(late)??, 0))
    }

    /// Loads a whole chunk on a task of its own, in this room or when there is some.
    fn load(
        self: &Arc<Self>,
        spot: Spot,
        sender: tokio::sync::watch::Sender<Option<Result<Bytes, Fault>>>,
        room: Option<OwnedSemaphorePermit>,
    ) {
        add(&self.counters.cache_misses, 1);
        let core = self.clone();
        self.tasks.spawn_until_stop(async move {
            let fetch = async {
                let (_, bytes) = core.chunks.fetch(&spot, (0, spot.len), core.meta.deadline()).await?;
                Ok(bytes)
            };
            core.cache.load(spot.id, spot.len, sender, room, fetch).await;
        });
    }

    /// Starts to load the chunks of a range that will probably be read.
    fn load_ahead(self: &Arc<Self>, handle: &Inside, range: Range<u64>) {
        let end = range.end.min(handle.inode.lock().attr.size);
        if range.start >= end {
            return;
        }
        let (core, inode, cred) = (self.clone(), handle.inode.clone(), handle.cred.clone());
        self.tasks.spawn_until_stop(async move {
            // A guess that fails is no error: the read itself will tell.
            let Ok(parts) = core.extents(&inode, &cred, range.start..end, core.meta.deadline()).await else { return };
            for extent in parts.into_iter().filter_map(|(_, extent)| extent) {
                let Source::Chunk { id, .. } = extent.data else { continue };
                let Some(room) = core.cache.room_for_a_guess(extent.chunk_len) else { return };
                if let Find::Load(sender, _) = core.cache.find(&id) {
                    let (token, holders) = (extent.token, extent.holders);
                    core.load(Spot { ino: inode.ino, id, len: extent.chunk_len, token, holders }, sender, Some(room));
                }
            }
        });
    }
}

/// The whole pages of an extent in a file of this size, of which the last one may be cut.
fn whole_pages(extent: Range<u64>, size: u64) -> Option<Range<u64>> {
    let end = if extent.end >= size { size } else { extent.end / PAGE * PAGE };
    let range = extent.start.next_multiple_of(PAGE)..end;
    Some(range).filter(|range| range.start < range.end && range.end - range.start <= AROUND_MAX)
}

fn zeros(len: u64) -> Vec<Bytes> {
    let block = len_u64(ZEROS.len());
    let full = (0..len / block).map(|_| Bytes::from_static(&ZEROS));
    let rest = len_u32(len_usize(len % block));
    let rest = Bytes::from_static(&ZEROS[..len_usize(u64::from(rest))]);
    full.chain(Some(rest).filter(|rest| !rest.is_empty())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4 << 20;
    const MIB: u64 = 1 << 20;

    #[test]
    fn reading_in_order_loads_more_and_more_ahead_and_nothing_twice() {
        let mut ahead = Ahead::default();
        let mut loaded = MIB;
        for i in 0..64 {
            let range = i * MIB..(i + 1) * MIB;
            let next = ahead.note(&range, CHUNK, 32 * MIB).expect("in order");
            assert!(next.start >= loaded || next.is_empty(), "{next:?}");
            loaded = loaded.max(next.end);
            assert!(loaded <= range.end + 32 * MIB);
        }
        assert_eq!(loaded, 96 * MIB);
    }

    #[test]
    fn reading_here_and_there_loads_nothing_ahead() {
        let mut ahead = Ahead::default();
        for i in [7u64, 100, 3, 55, 1] {
            let at = i * 10 * MIB;
            assert_eq!(ahead.note(&(at..at + 4096), CHUNK, 32 * MIB), None);
        }
        assert_eq!(Ahead::default().note(&(0..4096), CHUNK, 32 * MIB), None, "only a look at the start");
    }

    #[test]
    fn requests_of_the_kernel_may_overtake_each_other() {
        let mut ahead = Ahead::default();
        for at in [0, 256 << 10, 128 << 10, 512 << 10, 384 << 10] {
            assert!(ahead.note(&(at..at + (128 << 10)), CHUNK, 32 * MIB).is_some(), "{at}");
        }
    }

    #[test]
    fn stretches_for_others_are_whole_pages() {
        assert_eq!(whole_pages(0..CHUNK, 10 * CHUNK), Some(0..CHUNK));
        assert_eq!(whole_pages(100..CHUNK - 1, 10 * CHUNK), Some(4096..CHUNK - 4096));
        assert_eq!(whole_pages(CHUNK..CHUNK + 5000, CHUNK + 5000), Some(CHUNK..CHUNK + 5000), "the end of the file");
        assert_eq!(whole_pages(CHUNK..CHUNK + 5000, CHUNK + 4999), Some(CHUNK..CHUNK + 4999), "it was cut meanwhile");
        assert_eq!(whole_pages(10..4096, CHUNK), None);
        assert_eq!(whole_pages(CHUNK..2 * CHUNK, CHUNK), None, "behind the end");
        assert_eq!(whole_pages(0..64 << 20, 64 << 20), None, "too long");
    }
}
