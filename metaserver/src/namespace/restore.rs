//! A new life of the cluster, begun from a backup (DESIGN 7).
//!
//! Invariants:
//! 1. The epoch rises, so nothing that was under way in an earlier life is accepted in this one.
//! 2. Deletion is held until a check of everything has found nothing wrong, or an administrator says so: no condemnation
//!    is granted before.
//! 3. A chunkserver that joined after the backup was made keeps its number: no other gets it.
//!
//! What the earlier life deleted after the backup was made is gone; the check names the files that miss it.

use super::command::{Done, Fail, refuse};
use super::moves;
use super::remove::{self, UNASKED};
use super::rows::{Call, row};
use super::session;
use crate::store::keys::{self, CLUSTER, SERVER};
use crate::store::values::{RestoredRow, Value};
use common::fault::Kind;
use common::id::{Epoch, NodeId, ServerId};
use common::kv::{KvError, KvRead};
use common::proto::backup::Held;
use common::rules::{Rule, is_broken};

/// Likewise numbers of inodes: more than any cluster makes between two backups, few beside all there are.
const INODES_LATER: u64 = 1 << 32;
/// Numbers of chunkservers that are left to those which joined after the backup was made.
const SERVERS_LATER: u32 = 1024;

/// Makes the first state of the new life out of the backup's.
pub(super) fn restored(call: &mut Call<'_, '_>, epoch: Epoch, metaservers: &[(NodeId, String)]) -> Result<Done, Fail> {
    let mut config = call.config()?;
    if epoch <= config.epoch {
        return Err(refuse(Kind::Stale, format!("epoch {epoch} is not above {}, the backup's", config.epoch)));
    }
    let sessions = if is_broken(Rule::OldEpochsAreVoid) { Vec::new() } else { session::sessions(call.txn)? };
    for (session, _) in sessions {
        session::end(call, session)?;
    }
    for ino in remove::orphans(call.txn, None, usize::MAX)?.0 {
        remove::let_go(call, UNASKED, ino)?;
    }
    moves::restored(call)?;
    (config.epoch, config.metaservers) = (epoch, metaservers.to_vec());
    call.txn.put(CLUSTER, keys::CONFIG, config.encode());
    let servers_from = ServerId(call.counters.next_server);
    let row = RestoredRow { epoch, index: call.index, at: call.at, held: true, servers_from };
    call.txn.put(CLUSTER, keys::RESTORED, row.encode());
    call.counters.next_server = servers_from.0.saturating_add(SERVERS_LATER);
    // Mounts of before may have files open that were made after the backup: their numbers mean nothing else now.
    call.counters.next_ino += INODES_LATER;
    call.counters.map_version += 1;
    Ok(Done::Noted)
}

fn restored_row(read: &dyn KvRead) -> Result<Option<RestoredRow>, KvError> {
    row(read, CLUSTER, keys::RESTORED)
}

/// Since when deletion is held. `None`: it is not.
pub fn held(read: &dyn KvRead) -> Result<Option<Held>, KvError> {
    let held = restored_row(read)?.filter(|row| row.held);
    Ok(held.map(|row| Held { epoch: row.epoch, index: row.index, at: row.at }))
}

/// Deletion goes on, if it is still held since the restore that began this epoch.
pub(super) fn release(call: &mut Call<'_, '_>, epoch: Epoch) -> Result<Done, Fail> {
    let found = restored_row(call.txn)?.filter(|row| row.held && row.epoch == epoch);
    let Some(row) = found else {
        return Err(refuse(Kind::NotFound, format!("deletion is not held since a restore in epoch {epoch}")));
    };
    call.txn.put(CLUSTER, keys::RESTORED, RestoredRow { held: false, ..row }.encode());
    Ok(Done::Noted)
}

/// True for a number that an earlier life may have given to a chunkserver after the backup was made, and nobody has now.
pub(super) fn is_of_an_earlier_life(call: &Call<'_, '_>, server: ServerId) -> Result<bool, KvError> {
    let Some(RestoredRow { servers_from: from, .. }) = restored_row(call.txn)? else { return Ok(false) };
    let left_to_them = (from.0..from.0.saturating_add(SERVERS_LATER)).contains(&server.0);
    let never_given = server.0 >= call.counters.next_server && server.0 < u32::MAX;
    Ok((left_to_them || never_given) && call.txn.get(SERVER, &keys::server(server))?.is_none())
}
