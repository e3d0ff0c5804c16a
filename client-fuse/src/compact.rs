//! Compaction: a window of a file that was written in many small pieces becomes one chunk again.
//!
//! Done by the task that lands a file's flights, when none is waiting: so it never runs beside a commit of this client,
//! and an `fsync` waits for at most one window, and for at most [`WINDOW_LIMIT`]. The commit names the data version whose bytes were read, so that a write
//! of another client in between refuses it, and has the file's times and mode left alone; nothing is lost by giving up, and it is tried again after more writes.
//!
//! What is merged are neighbours shorter than [`SMALL_EXTENT`], with the small holes between them: a log that grows by small appends is rewritten once per
//! [`FRAGMENTS_MAX`] of them, not from the window's start each time.

use crate::chunks::Outgoing;
use crate::core::Core;
use crate::extents::Part;
use crate::inode::{Inode, State};
use crate::meta::unexpected;
use crate::stats::add;
use bytes::Bytes;
use common::fault::Fault;
use common::id::{ChunkId, DataVersion};
use common::proto::chunk::ChunkRef;
use common::proto::meta::{Commit, Edit, Op, Outcome, Source};
use common::units::len_u32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// Pieces in one window that make it worth rewriting, when nothing was saved of the file for [`QUIET`] ...
const FRAGMENTS_MAX: u32 = 128;
/// ... or at once: somebody who never pauses.
const FRAGMENTS_AT_ONCE: u32 = 1024;
/// See there. Who syncs many small writes does not wait for the rewriting of what he is about to change again.
const QUIET: Duration = Duration::from_secs(1);
/// Extents shorter than this are merged, in bytes.
const SMALL_EXTENT: u64 = 256 << 10;
/// Fewer neighbours than this are left alone.
const NEIGHBOURS_MIN: usize = 8;
/// A hole between two of them up to this long is filled with zeros, in bytes: it costs an extent as bytes do.
const HOLE_MAX: u64 = 16 << 10;
/// How long the rewriting of one window may take: an `fsync` may be waiting for it, with a limit of its own.
const WINDOW_LIMIT: Duration = Duration::from_secs(5);
/// Windows of one file that are counted.
const WINDOWS_MAX: usize = 4096;

impl State {
    /// Notes pieces that were committed, or found at open. Whole windows are no pieces.
    pub(crate) fn count_fragments(&mut self, pieces: impl Iterator<Item = Range<u64>>) {
        let window = u64::from(self.attr.chunk_size);
        for piece in pieces {
            let number = piece.start / window;
            if piece.end - piece.start >= window {
                self.fragments.remove(&number);
            } else if self.fragments.len() < WINDOWS_MAX || self.fragments.contains_key(&number) {
                *self.fragments.entry(number).or_default() += 1;
            }
        }
    }

    /// How long to wait before a window is rewritten. `None`: there is none that is worth it.
    pub(crate) fn compact_in(&self, now: Instant) -> Option<Duration> {
        let most = self.fragments.values().max().filter(|most| **most >= FRAGMENTS_MAX)?;
        let quiet = self.landed_at.map_or(Duration::ZERO, |at| (at + QUIET).saturating_duration_since(now));
        Some(if *most >= FRAGMENTS_AT_ONCE { Duration::ZERO } else { quiet })
    }

    /// A window that is worth rewriting, the most broken one; it is counted from 0 again.
    fn take_fragmented(&mut self) -> Option<Range<u64>> {
        let broken = self.fragments.iter().filter(|(_, count)| **count >= FRAGMENTS_MAX);
        let number = *broken.max_by_key(|(_, count)| **count)?.0;
        self.fragments.remove(&number);
        let window = u64::from(self.attr.chunk_size);
        Some(number * window..(number + 1) * window)
    }
}

impl Core {
    /// Rewrites one window of a file that has no flight waiting, if one needs it. False: none does.
    pub(crate) async fn compact(self: &Arc<Self>, inode: &Arc<Inode>) -> bool {
        if self.is_orphan(inode.ino) {
            return false;
        }
        let Some(window) = inode.lock().take_fragmented() else { return false };
        let at = window.start;
        match self.compact_window(inode, window).await {
            Ok(merged) => debug!(op = "compact", inode = %inode.ino, offset = at, merged, "rewritten"),
            Err(fault) => debug!(op = "compact", inode = %inode.ino, offset = at, error = %fault, "left as it is"),
        }
        true
    }

    async fn compact_window(self: &Arc<Self>, inode: &Arc<Inode>, window: Range<u64>) -> Result<usize, Fault> {
        let deadline = self.meta.deadline().min(Instant::now() + WINDOW_LIMIT);
        let range = window.start..window.end.min(inode.lock().attr.size);
        if range.start >= range.end {
            return Ok(0);
        }
        // The version is read before: if the extents are of a newer one, the commit is refused. One that was decided here and
        // is lost would come again, for other bytes: the metaservers know it first.
        let losses = self.leases.losses();
        let base = inode.lock().extents.version();
        self.tell_all(deadline).await?;
        if self.leases.losses() != losses {
            return Ok(0);
        }
        let writer = inode.writer();
        let parts = self.extents(inode, &writer, range, deadline).await?;
        if inode.lock().extents.version() != base {
            return Ok(0);
        }
        let mut chunks = Vec::new();
        let mut edits = Vec::new();
        let mut merged = 0;
        for run in neighbours(parts) {
            merged += run.len();
            let (at, chunk) = self.merge(inode, run, deadline).await?;
            let len = u64::from(chunk.chunk.len);
            edits.push(Edit { at, len, data: Source::Chunk { id: chunk.chunk.id, offset: 0 } });
            chunks.push(chunk);
        }
        if !edits.is_empty() {
            chunks.sort_by_key(|out: &Outgoing| out.chunk.id);
            chunks.dedup_by_key(|out| out.chunk.id);
            self.swap_in(inode, base, edits, &chunks, deadline).await?;
            add(&self.counters.compactions, 1);
        }
        Ok(merged)
    }

    /// Reads a run of neighbours, verified, into one chunk.
    async fn merge(
        self: &Arc<Self>,
        inode: &Inode,
        run: Vec<Part>,
        deadline: Instant,
    ) -> Result<(u64, Outgoing), Fault> {
        let at = run.first().expect("runs are not empty").0.start;
        let mut bytes = Vec::new();
        for (range, extent) in run {
            for piece in self.part(inode, range, extent, true, deadline).await? {
                bytes.extend_from_slice(&piece);
            }
        }
        let bytes = Bytes::from(bytes);
        let of = bytes.clone();
        let id = self.world.blocking(move || ChunkId::of(&of)).await;
        Ok((at, Outgoing { chunk: ChunkRef { id, len: len_u32(bytes.len()) }, bytes: vec![bytes] }))
    }

    async fn swap_in(
        &self,
        inode: &Inode,
        base: DataVersion,
        edits: Vec<Edit>,
        chunks: &[Outgoing],
        deadline: Instant,
    ) -> Result<(), Fault> {
        let replicas = inode.lock().attr.replicas;
        let stored = self.chunks.store(self.meta.attempt(), replicas, chunks, false, deadline).await?;
        let placed: Vec<_> = edits.iter().map(|edit| (edit.at..edit.at + edit.len, Some(edit.data.clone()))).collect();
        let commit = Commit {
            ino: inode.ino,
            base: Some(base),
            edits,
            append: false,
            grow: 0,
            chunks: stored.chunks,
            attempt: stored.attempt,
            layout: stored.layout,
            mtime: None,
        };
        let writer = inode.writer();
        match self.change(&writer, Op::Commit(commit), deadline).await? {
            Outcome::Committed { attr, .. } => {
                let mut state = inode.lock();
                state.extents.committed(attr.version, placed.into_iter());
                state.adopt(&attr);
                state.inlined = 0;
                Ok(())
            }
            other => Err(unexpected("compact", &other)),
        }
    }
}

/// The runs of small extents with at most small holes between them that are worth merging.
fn neighbours(parts: Vec<Part>) -> Vec<Vec<Part>> {
    let mut runs: Vec<Vec<Part>> = vec![Vec::new()];
    for part in parts {
        let len = part.0.end - part.0.start;
        match runs.last_mut() {
            Some(run) if part.1.is_some() && len < SMALL_EXTENT => run.push(part),
            Some(run) if part.1.is_none() && len <= HOLE_MAX && !run.is_empty() => run.push(part),
            _ => runs.push(Vec::new()),
        }
    }
    for run in &mut runs {
        while run.last().is_some_and(|(_, extent)| extent.is_none()) {
            run.pop();
        }
    }
    runs.retain(|run| run.iter().filter(|(_, extent)| extent.is_some()).count() >= NEIGHBOURS_MIN);
    runs
}
