//! The write path up to where bytes are stored: taken, sealed, hashed, sent. [`crate::land`] commits them.
//!
//! | step | where |
//! | --- | --- |
//! | bytes are taken under the memory budget | [`Core::write`] |
//! | full windows, old ones, and on `fsync` all are sealed into flights | [`State`] |
//! | a flight is hashed ([`plan`]) and its chunks stored, several at once | [`Core::upload`] |
//! | flights land in order: one commit for as many as are ready | [`land`] |

use crate::core::Core;
use crate::inode::{Inode, PIECE_COST, State, Upload, Uploaded};
use crate::land::land;
use crate::plan::{Job, Planned, plan};
use crate::stats::add;
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::units::{FILE_SIZE_MAX, len_u32, len_u64, len_usize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

/// Bytes taken into the buffer at once; a longer write is cut.
const TAKE_MAX: usize = 1 << 20;
/// A flush of at most this many bytes is kept in the metadata instead of in chunks, in bytes: it saves a round of puts.
const INLINE_FLIGHT_MAX: u64 = 16 << 10;
/// Bytes one file may get inline while it is open here, so that metadata does not fill with data.
const INLINE_FILE_MAX: u64 = 4 << 20;
/// How often a writer that waits for room says so: what is on its way may have landed, and the rest must follow.
const PRESSURE_TICK: Duration = Duration::from_millis(100);
/// Hashing up to this many bytes is done in place, in bytes.
const HASH_IN_PLACE_MAX: u64 = 64 << 10;

impl Core {
    /// Takes bytes at `offset`, or at the end. Returns where they went.
    pub(crate) async fn write(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: Option<u64>,
        mut bytes: Bytes,
    ) -> Result<u64, Fault> {
        let deadline = self.meta.deadline();
        let mut first = None;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(TAKE_MAX));
            let offset = offset.map(|offset| offset + first.map_or(0, |(_, done)| done));
            let len = len_u64(part.len());
            let at = self.take(inode, offset, part, deadline).await?;
            first = Some(first.map_or((at, len), |(at, done)| (at, done + len)));
        }
        Ok(first.map_or(offset.unwrap_or(0), |(at, _)| at))
    }

    async fn take(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: Option<u64>,
        part: Bytes,
        deadline: Instant,
    ) -> Result<u64, Fault> {
        let len = len_u64(part.len());
        let cost = len_usize(len + 2 * PIECE_COST);
        let permit = self.reserve(cost, deadline).await?; // whoever gives up while it waits gives it back
        let gate = timeout_at(deadline, inode.gate.read()).await;
        let (at, spare) = {
            let mut state = inode.lock();
            let end = offset.unwrap_or_else(|| state.size()).checked_add(len).filter(|end| *end <= FILE_SIZE_MAX);
            if end.is_none() || gate.is_err() {
                return Err(match end {
                    None => Fault::new(Kind::TooBig, format!("files end at {FILE_SIZE_MAX} bytes")),
                    Some(_) => Fault::new(Kind::Unavailable, "write: a truncate of this file does not end"),
                });
            }
            permit.forget(); // given back when the bytes are saved, replaced or dropped
            if !state.is_unsaved() {
                state.generation = self.meta.session().generation;
            }
            let (at, spare) = state.write(offset, part, self.world.now(), Instant::now());
            state.seal_full(at..at + len);
            if state.is_scattered() {
                self.seal(&mut state);
            }
            (at, spare)
        };
        self.unsaved.add_permits(len_usize(spare));
        add(&self.counters.written_bytes, len);
        self.launch(inode);
        Ok(at)
    }

    /// Waits for room in the budget of unsaved bytes.
    async fn reserve(&self, len: usize, deadline: Instant) -> Result<SemaphorePermit<'_>, Fault> {
        let len = len_u32(len);
        match self.unsaved.try_acquire_many(len) {
            Ok(permit) => Ok(permit),
            Err(_) => {
                let asking = async {
                    loop {
                        self.pressure.notify_one();
                        tokio::time::sleep(PRESSURE_TICK).await;
                    }
                };
                let room = async {
                    tokio::select! {
                        permit = self.unsaved.acquire_many(len) => permit.expect("never closed"),
                        () = asking => unreachable!("it asks for ever"),
                    }
                };
                let full = |_| Fault::new(Kind::Unavailable, "write: too much is unsaved and cannot be stored");
                timeout_at(deadline, room).await.map_err(full)
            }
        }
    }

    /// Seals everything unsaved of a file and waits until it is committed.
    pub(crate) async fn save(self: &Arc<Self>, inode: &Arc<Inode>, deadline: Instant) -> Result<(), Fault> {
        let (target, errors) = {
            let mut state = inode.lock();
            self.seal(&mut state);
            (state.sealed, state.errors)
        };
        self.launch(inode);
        loop {
            let changed = inode.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = inode.lock();
                if state.errors > errors {
                    return Err(state.last_error.clone().expect("counted with its fault"));
                }
                if state.landed >= target {
                    return Ok(());
                }
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(Fault::new(Kind::Unavailable, "unsaved data could not be stored in time; it is kept"));
            }
        }
    }

    /// Seals everything unsaved.
    pub(crate) fn seal(&self, state: &mut State) {
        let inline = if state.inlined < INLINE_FILE_MAX { INLINE_FLIGHT_MAX } else { 0 };
        state.seal_all(inline);
    }

    /// Starts the uploads of new flights, and the task that lands them.
    pub(crate) fn launch(self: &Arc<Self>, inode: &Arc<Inode>) {
        let mut state = inode.lock();
        if !state.is_held() {
            self.start_uploads(inode, &mut state);
        }
        if state.pumping {
            inode.arrived.notify_one(); // it may be waiting for a time to compact
        } else if !state.flights.is_empty() {
            state.pumping = true;
            let (core, inode) = (self.clone(), inode.clone());
            self.tasks.spawn_until_stop(async move { land(&core, &inode).await });
        }
    }

    pub(crate) fn start_uploads(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State) {
        let (window, replicas) = (u64::from(state.attr.chunk_size), state.attr.replicas);
        for flight in state.flights.iter_mut().filter(|flight| matches!(flight.upload, Upload::No)) {
            flight.shift = 0; // these edits are planned where the bytes are now
            let (pieces, inline, pack) = (flight.pieces.clone(), flight.inline, self.config.pack);
            let job = Job { pieces, window, replicas, inline, pack };
            if flight.inline {
                // A few KiB and nothing to send: no task is worth it.
                flight.upload = Upload::Done(self.counted(plan(job)).uploaded(None));
                continue;
            }
            let (sender, receiver) = oneshot::channel();
            flight.upload = Upload::Running(receiver);
            let (core, ino) = (self.clone(), inode.ino);
            self.tasks.spawn_until_stop(async move {
                let result = core.upload(job).await.map_err(|fault| fault.context(format_args!("store {ino}")));
                let _ = sender.send(result); // nobody waits: the flight was dropped
            });
        }
    }

    /// Hashes and stores what a flight holds.
    async fn upload(&self, job: Job) -> Result<Uploaded, Fault> {
        let _slot = self.uploads.acquire().await.expect("never closed");
        let replicas = job.replicas;
        let bytes: u64 = job.pieces.iter().map(|(_, b)| len_u64(b.len())).sum();
        let planned = if bytes <= HASH_IN_PLACE_MAX { plan(job) } else { self.world.blocking(move || plan(job)).await };
        let planned = self.counted(planned);
        let mut stored = None;
        if !planned.chunks.is_empty() {
            let auth = self.meta.attempt();
            stored = Some(self.chunks.store(auth, replicas, &planned.chunks, false, self.meta.deadline()).await?);
        }
        Ok(planned.uploaded(stored))
    }

    fn counted(&self, planned: Planned) -> Planned {
        add(&self.counters.zero_bytes, planned.zero_bytes);
        add(&self.counters.inline_bytes, planned.inline_bytes);
        planned
    }
}
