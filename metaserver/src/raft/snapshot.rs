//! Sending a snapshot and receiving one: file by file, in pieces, each file's BLAKE3 at the end.
//!
//! The receiver writes into a directory of its own, checks lengths and hashes, syncs, and only then hands it to openraft,
//! which puts it in the place of the store ([`super::state::State::install`]). A transfer that breaks leaves nothing.

use super::message::{Message, Reply, ToMember};
use super::state::{Applied, Dir, State};
use super::types::Vote;
use bytes::Bytes;
use common::disk::Disk;
use common::fault::{Fault, Kind};
use common::rpc::Caller;
use common::units::{len_u32, len_u64, len_usize};
use common::world::World;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes in one piece, at most.
pub(super) const PIECE_LEN: u64 = 1 << 20;
/// Files in a snapshot, at most.
const FILES_MAX: usize = 100_000;
/// The longest file name in a snapshot, in bytes.
const NAME_LEN_MAX: usize = 255;
/// How long one piece may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long checking and installing may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Sends a snapshot to the member behind `caller`. `Err(Invalid)` with a broken file of our own.
pub(super) async fn send(
    world: &World,
    caller: &Caller,
    to: u64,
    vote: Vote,
    applied: Applied,
    dir: Arc<Dir>,
) -> Result<Reply, Fault> {
    let disk = world.disk.clone();
    let path = dir.path.clone();
    let files = world.blocking(move || list(&*disk, &path)).await.map_err(|e| local(&dir, &e))?;
    let transfer = world.random_u64();
    ask(caller, to, ToMember::SnapshotBegin { transfer, applied, files: files.clone() }, PIECE_TIMEOUT).await?;
    let mut hashes = Vec::with_capacity(files.len());
    for (number, (name, len)) in files.iter().enumerate() {
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < *len {
            let (disk, path, piece_len) = (world.disk.clone(), dir.path.join(name), PIECE_LEN.min(len - at));
            let read = world.blocking(move || super::state::read_piece(&*disk, &path, at, piece_len)).await;
            let bytes = read.map_err(|e| local(&dir, &e))?;
            hasher.update(&bytes);
            let next = at + len_u64(bytes.len());
            ask(caller, to, ToMember::SnapshotPiece { transfer, file: len_u32(number), at, bytes }, PIECE_TIMEOUT)
                .await?;
            at = next;
        }
        hashes.push(*hasher.finalize().as_bytes());
    }
    ask(caller, to, ToMember::SnapshotEnd { transfer, vote, hashes }, INSTALL_TIMEOUT).await
}

fn local(dir: &Dir, error: &io::Error) -> Fault {
    Fault::new(Kind::Invalid, format!("read the snapshot in {}: {error}", dir.path.display()))
}

/// One message to one member.
pub(super) async fn ask(caller: &Caller, to: u64, message: ToMember, limit: Duration) -> Result<Reply, Fault> {
    let bytes = super::message::encode(&Message::Member(to, message))?;
    super::message::decode(&caller.raft(bytes, limit).await?)
}

pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for name in disk.list(dir)? {
        let len = disk.open(&dir.join(&name))?.len()?;
        files.push((name.to_string_lossy().into_owned(), len));
    }
    Ok(files)
}

/// A transfer under way, on the receiving side.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) transfer: u64,
    pub(super) applied: Applied,
    dir: Dir,
    files: Vec<(String, u64)>,
    /// Of the file that is being written: its number, its bytes so far, their hash.
    now: (usize, u64, blake3::Hasher),
    hashes: Vec<[u8; 32]>,
}

impl Receiving {
    /// Begins, in a directory of the state. Blocks.
    pub(super) fn begin(
        state: &State,
        transfer: u64,
        applied: Applied,
        files: Vec<(String, u64)>,
    ) -> Result<Receiving, Fault> {
        Receiving::begin_in(state.receiving_dir().map_err(failed)?, transfer, applied, files)
    }

    /// Begins, in this directory, which is empty and goes with the transfer unless somebody keeps it.
    pub(super) fn begin_in(
        dir: Dir,
        transfer: u64,
        applied: Applied,
        files: Vec<(String, u64)>,
    ) -> Result<Receiving, Fault> {
        let good = |name: &str| {
            !name.is_empty() && name.len() <= NAME_LEN_MAX && !name.contains('/') && name != "." && name != ".."
        };
        if files.len() > FILES_MAX || !files.iter().all(|(name, _)| good(name)) {
            return Err(Fault::new(Kind::Invalid, "a snapshot with too many files, or with names that are none"));
        }
        Ok(Receiving { transfer, applied, dir, files, now: (0, 0, blake3::Hasher::new()), hashes: Vec::new() })
    }

    /// Takes the next bytes. Blocks.
    pub(super) fn piece(&mut self, disk: &dyn Disk, file: u32, at: u64, bytes: &Bytes) -> Result<(), Fault> {
        self.finish_files(disk)?; // empty ones
        let file = len_usize(u64::from(file));
        let expected = self.files.get(self.now.0).filter(|_| (file, at) == (self.now.0, self.now.1));
        let Some((name, len)) = expected.filter(|(_, len)| at + len_u64(bytes.len()) <= *len) else {
            return Err(Fault::new(Kind::Invalid, "a piece of a snapshot out of its place"));
        };
        let path = self.dir.path.join(name);
        let handle = if at == 0 { disk.create(&path) } else { disk.open(&path) }.map_err(failed)?;
        handle.write_all_at(&[bytes], at).map_err(failed)?;
        self.now.1 += len_u64(bytes.len());
        self.now.2.update(bytes);
        if self.now.1 == *len {
            handle.sync().map_err(failed)?;
            self.next_file();
        }
        Ok(())
    }

    /// True if these bytes have arrived before.
    pub(super) fn has(&self, file: u32, at: u64, len: u64) -> bool {
        (len_usize(u64::from(file)), at.saturating_add(len)) <= (self.now.0, self.now.1)
    }

    fn next_file(&mut self) {
        self.hashes.push(*self.now.2.finalize().as_bytes());
        self.now = (self.now.0 + 1, 0, blake3::Hasher::new());
    }

    /// Creates files without bytes, which no piece comes for.
    fn finish_files(&mut self, disk: &dyn Disk) -> Result<(), Fault> {
        while let Some((name, 0)) = self.files.get(self.now.0) {
            disk.create(&self.dir.path.join(name)).and_then(|file| file.sync()).map_err(failed)?;
            self.next_file();
        }
        Ok(())
    }

    /// All is here: checks it and makes it durable. Blocks.
    pub(super) fn end(mut self, disk: &dyn Disk, hashes: &[[u8; 32]]) -> Result<(Applied, Dir), Fault> {
        self.finish_files(disk)?;
        if self.now.0 != self.files.len() || self.hashes != hashes {
            return Err(Fault::new(Kind::Corrupt, "the snapshot did not arrive as it was sent"));
        }
        disk.sync_dir(&self.dir.path).map_err(failed)?;
        Ok((self.applied, self.dir))
    }
}

fn failed(error: io::Error) -> Fault {
    Fault::new(Kind::Busy, format!("receive a snapshot: {error}"))
}
