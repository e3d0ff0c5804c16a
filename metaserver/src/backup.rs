//! Backups of the metadata, and the new life that begins from one.
//!
//! A backup is a checkpoint that the leader takes after a read barrier: everything that was acknowledged before it was
//! asked for is in it. The checkpoint shares its files with the store, and stays on the leader's disk until whoever makes
//! the backup has read it, or has not asked for [`FORGOTTEN_AFTER`].
//!
//! A restore is carried out by every one of the new metaservers for itself ([`crate::raft::Incoming`]); none of them is a
//! member before all have said that they have checked what they got.

use crate::namespace;
use crate::node::{Node, Shared};
use crate::raft::{Dir, Incoming, Member, list, read_piece, term_of};
use common::fault::{Fault, Kind};
use common::id::LogIndex;
use common::proto::backup::{BACKUP_PIECE_LEN, BackupAnswer, BackupAsk, BackupHead, RestoreStep};
use common::units::len_usize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// A backup nobody asks for ends after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Between two looks whether somebody asks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The backup that is being read here, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Backups(Mutex<Option<Arc<Backup>>>);

#[derive(Debug)]
struct Backup {
    id: u64,
    head: BackupHead,
    dir: Dir,
    asked: Mutex<Instant>,
}

impl Backup {
    fn asked(&self) -> MutexGuard<'_, Instant> {
        self.asked.lock().expect("no panic holds this lock")
    }

    fn is_forgotten(&self) -> bool {
        self.asked().elapsed() >= FORGOTTEN_AFTER
    }
}

impl Backups {
    fn now(&self) -> MutexGuard<'_, Option<Arc<Backup>>> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// Carries out a step, on the leader.
    pub(crate) async fn step(
        self: &Arc<Self>,
        node: &Shared,
        member: &Member,
        ask: BackupAsk,
    ) -> Result<BackupAnswer, Fault> {
        match ask {
            BackupAsk::Begin => self.begin(node, member).await,
            BackupAsk::Piece { backup, file, at } => self.piece(node, backup, file, at).await,
            BackupAsk::End { backup } => {
                self.now().take_if(|now| now.id == backup);
                Ok(BackupAnswer::Ended)
            }
        }
    }

    async fn begin(self: &Arc<Self>, node: &Shared, member: &Member) -> Result<BackupAnswer, Fault> {
        if self.now().as_ref().is_some_and(|now| !now.is_forgotten()) {
            let text = format!("another backup is being made, or was broken off less than {FORGOTTEN_AFTER:?} ago");
            return Err(Fault::new(Kind::Exists, text));
        }
        member.reads.wait().await?;
        let (state, disk) = (member.state.clone(), node.world.disk.clone());
        let taken = node.world.blocking(move || {
            let (applied, found, dir) =
                state.checkpoint(|read| Ok((namespace::config(read)?, namespace::counters(read)?)))?;
            let files = list(&*disk, &dir.path)?;
            Ok::<_, std::io::Error>((applied, found, dir, files))
        });
        let (applied, (config, counters), dir, files) = taken.await.map_err(|error| internal(&error))?;
        let (Some(config), Some(last)) = (config, applied.last) else { return Err(crate::leading::not_formatted()) };
        let head = BackupHead {
            cluster: config.cluster,
            epoch: config.epoch,
            term: term_of(&last),
            index: LogIndex(last.index),
            inodes: counters.inodes,
            chunks: counters.chunks,
            files,
        };
        let id = node.world.random_u64();
        let backup = Backup { id, head: head.clone(), dir, asked: Mutex::new(Instant::now()) };
        *self.now() = Some(Arc::new(backup));
        self.end_when_forgotten(node, id);
        Ok(BackupAnswer::Begun { backup: id, head })
    }

    fn end_when_forgotten(self: &Arc<Self>, node: &Shared, id: u64) {
        let own = self.clone();
        node.tasks.spawn_until_stop(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let mut now = own.now();
                match now.as_ref() {
                    Some(backup) if backup.id == id && backup.is_forgotten() => *now = None,
                    Some(backup) if backup.id == id => continue,
                    _ => {}
                }
                return;
            }
        });
    }

    async fn piece(&self, node: &Shared, id: u64, file: u32, at: u64) -> Result<BackupAnswer, Fault> {
        let found = self.now().clone().filter(|now| now.id == id);
        let gone = || Fault::new(Kind::NotFound, "the metaserver that took this backup leads no more: begin again");
        let backup = found.ok_or_else(gone)?;
        *backup.asked() = Instant::now();
        let piece = backup.head.files.get(len_usize(file.into())).filter(|(_, len)| at < *len);
        let Some((name, len)) = piece else {
            return Err(Fault::new(Kind::Invalid, "a piece of a backup that is not there"));
        };
        let (disk, path, len) = (node.world.disk.clone(), backup.dir.path.join(name), BACKUP_PIECE_LEN.min(len - at));
        let read = node.world.blocking(move || {
            let bytes = read_piece(&*disk, &path, at, len)?;
            Ok::<_, std::io::Error>((*blake3::hash(&bytes).as_bytes(), bytes))
        });
        let (hash, bytes) = read.await.map_err(|error| internal(&error))?;
        Ok(BackupAnswer::Piece { bytes, hash })
    }
}

fn internal(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Kind::Internal, format!("backup: {error}"))
}

impl Node {
    /// Carries out a step of a restore. Asked again, a step that was made is fine. Not to be dropped on the way: what has
    /// arrived would be given up.
    pub(crate) async fn restore(&self, step: RestoreStep) -> Result<(), Fault> {
        let mut slot = self.incoming.lock().await;
        let (world, config) = (self.world.clone(), self.config.clone());
        if let RestoreStep::Activate { restore } = &step
            && self.was_restored(*restore)
        {
            return Ok(());
        }
        if let Some(member) = self.try_member() {
            let text = format!(
                "metaserver {} holds data of cluster {}, {}: a restore needs empty metaservers",
                self.id(),
                member.identity.cluster,
                member.identity.epoch
            );
            return Err(Fault::new(Kind::Exists, text));
        }
        if self.is_removed() {
            return Err(Fault::new(Kind::Exists, crate::node::REMOVED));
        }
        match step {
            RestoreStep::Begin(plan) => {
                *slot = None; // its directory goes
                let begin = move || Incoming::begin(&world, &config, plan);
                *slot = Some(self.world.blocking(begin).await?);
            }
            RestoreStep::Piece { restore, file, at, bytes } => {
                let mut incoming = taken(&mut slot, restore)?;
                let write = move || incoming.piece(&world, file, at, &bytes).map(|()| incoming);
                *slot = Some(self.world.blocking(write).await?);
            }
            RestoreStep::Prepare { restore } => {
                let incoming = taken(&mut slot, restore)?;
                *slot = Some(self.world.blocking(move || incoming.prepare(&world, &config)).await?);
            }
            RestoreStep::Activate { restore } => {
                let incoming = taken(&mut slot, restore)?;
                let _forming = self.forming.lock().await;
                let identity = self.world.blocking(move || incoming.become_member(&world, &config)).await?;
                tracing::warn!(cluster = %identity.cluster, epoch = %identity.epoch, "restored from a backup");
                self.note_restored(restore);
                self.join(identity).await.map_err(|error| Fault::new(Kind::Internal, error.to_string()))?;
            }
        }
        Ok(())
    }
}

fn taken(slot: &mut Option<Incoming>, restore: u64) -> Result<Incoming, Fault> {
    let found = slot.take_if(|incoming| incoming.plan().restore == restore);
    found.ok_or_else(|| Fault::new(Kind::NotFound, "this metaserver knows nothing of this restore: begin again"))
}
