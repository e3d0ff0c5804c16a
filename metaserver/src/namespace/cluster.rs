//! The cluster itself: format, chunkservers, layout, the map.

use super::command::{Command, Done, Fail, refuse};
use super::moves;
use super::restore;
use super::rows::{Call, config, counters, row};
use crate::store::keys::{self, CLUSTER, INSTANCE, SERVER};
use crate::store::values::{Body, Config, Inode, InstanceRow, LayoutRow, RemovedRow, ServerRow, Value, damaged};
use common::auth::Secret;
use common::fault::Kind;
use common::id::{Epoch, InodeId, LayoutVersion, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::{ClusterMap, Layout, ServerInfo};
use common::proto::meta::{FileKind, Register};
use common::proto::rebalance::PlanState;
use common::units::{CHUNK_SIZE_DEFAULT, REPLICAS_MAX};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Placement groups a cluster may have.
const PG_COUNTS: std::ops::RangeInclusive<u32> = 16..=65_536;
/// The longest address and domain name of a server, in bytes.
const TEXT_LEN_MAX: usize = 255;

/// Makes the cluster: configuration, counters, root directory.
pub(super) fn format(call: &mut Call<'_, '_>, command: &Command) -> Result<Done, Fail> {
    let Command::Format { cluster, secret, pg_count, replicas, min_replicas, metaservers, at } = command else {
        unreachable!("called for this command only")
    };
    if let Some(there) = config(call.txn)? {
        return Err(refuse(Kind::Refused, format!("formatted already, as cluster {}", there.cluster)));
    }
    if !pg_count.is_power_of_two() || !PG_COUNTS.contains(pg_count) {
        return Err(refuse(Kind::Invalid, format!("{pg_count} placement groups: a power of two, 16 to 65536")));
    }
    if *replicas == 0 || *replicas > REPLICAS_MAX || *min_replicas == 0 || min_replicas > replicas {
        return Err(refuse(Kind::Invalid, format!("{replicas} replicas, at least {min_replicas} written")));
    }
    let config = Config {
        cluster: *cluster,
        epoch: Epoch::FIRST,
        secret: *secret,
        pg_count: *pg_count,
        replicas: *replicas,
        min_replicas: *min_replicas,
        metaservers: metaservers.clone(),
    };
    let root = Inode {
        kind: FileKind::Dir,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        atime: *at,
        mtime: *at,
        ctime: *at,
        chunk_size: CHUNK_SIZE_DEFAULT,
        replicas: *replicas,
        xattr_names: 0,
        acls: None,
        body: Body::Dir { parent: InodeId::ROOT, entries: 0, next_cookie: 1 },
    };
    let layout = Layout::compute(LayoutVersion(0), *pg_count, *replicas, &[]);
    call.txn.put(CLUSTER, keys::CONFIG, config.encode());
    call.txn.put(CLUSTER, keys::LAYOUT, LayoutRow(layout).encode());
    call.put_inode(InodeId::ROOT, &root);
    call.counters.inodes = 1;
    call.counters.next_ino = InodeId::ROOT.0 + 1;
    call.counters.next_server = 1;
    call.counters.map_version = 1;
    Ok(Done::Formatted)
}

/// A chunkserver introduces itself: a new one gets the next id, one that is known keeps its own. Asking again is fine.
pub(super) fn register(call: &mut Call<'_, '_>, register: &Register) -> Result<Done, Fail> {
    call.config()?;
    let domain = &register.domain;
    if [&register.addr, &domain.zone, &domain.rack, &domain.host].iter().any(|text| text.len() > TEXT_LEN_MAX) {
        return Err(refuse(Kind::Invalid, format!("address or domain longer than {TEXT_LEN_MAX} bytes")));
    }
    let known: Option<InstanceRow> = row(call.txn, INSTANCE, &keys::instance(register.instance))?;
    let server = match (register.server, known) {
        (None, Some(known)) => known.0,
        (Some(claimed), Some(known)) if claimed == known.0 => known.0,
        (None, None) => {
            let server = ServerId(call.counters.next_server);
            return Ok(new_server(call, register, server));
        }
        (Some(claimed), None) => match removed(call.txn)?.0.get(&claimed) {
            Some(true) => {
                change_removed(call, |removed| removed.remove(&claimed))?;
                return Ok(new_server(call, register, claimed));
            }
            None if restore::is_of_an_earlier_life(call, claimed)? => {
                return Ok(new_server(call, register, claimed));
            }
            Some(false) => {
                let text = format!("{claimed} was removed: `dfs admin server readmit {}` takes it back", claimed.0);
                return Err(refuse(Kind::Refused, text));
            }
            None => return Err(not_the_one(claimed)),
        },
        (Some(claimed), Some(_)) => return Err(not_the_one(claimed)),
    };
    let key = keys::server(server);
    let before: ServerRow = row(call.txn, SERVER, &key)?.ok_or_else(|| damaged("server", "missing"))?;
    let weight = if before.weight_fixed { before.weight } else { register.weight.max(1) };
    let after = ServerRow { addr: register.addr.clone(), domain: domain.clone(), weight, ..before.clone() };
    if after != before {
        call.txn.put(SERVER, key, after.encode());
        call.counters.map_version += 1;
    }
    Ok(Done::Registered { server, new: false })
}

fn not_the_one(claimed: ServerId) -> Fail {
    refuse(Kind::Refused, format!("server {claimed} is not the one that registered here: its data is another server's"))
}

fn removed(read: &dyn KvRead) -> Result<RemovedRow, KvError> {
    Ok(row(read, CLUSTER, keys::REMOVED)?.unwrap_or_default())
}

fn change_removed(
    call: &mut Call<'_, '_>,
    change: impl FnOnce(&mut BTreeMap<ServerId, bool>) -> Option<bool>,
) -> Result<(), KvError> {
    let mut row = removed(call.txn)?;
    let _before = change(&mut row.0);
    match row.0.is_empty() {
        true => call.txn.delete(CLUSTER, keys::REMOVED),
        false => call.txn.put(CLUSTER, keys::REMOVED, row.encode()),
    }
    Ok(())
}

/// A chunkserver that was removed may come back with its number and its data: nothing that it has is worse than it was, as
/// chunks are named by what they hold. It gets a share as a new one does.
pub(super) fn readmit(call: &mut Call<'_, '_>, server: ServerId) -> Result<Done, Fail> {
    if !removed(call.txn)?.0.contains_key(&server) {
        return Err(refuse(Kind::NotFound, format!("{server} was not removed")));
    }
    change_removed(call, |removed| removed.insert(server, true))?;
    Ok(Done::Noted)
}

fn new_server(call: &mut Call<'_, '_>, register: &Register, server: ServerId) -> Done {
    call.counters.next_server = call.counters.next_server.max(server.0.saturating_add(1));
    call.counters.map_version += 1;
    let row = ServerRow {
        instance: register.instance,
        addr: register.addr.clone(),
        domain: register.domain.clone(),
        weight: register.weight.max(1),
        weight_fixed: false,
    };
    call.txn.put(SERVER, keys::server(server), row.encode());
    call.txn.put(INSTANCE, keys::instance(register.instance), InstanceRow(server).encode());
    Done::Registered { server, new: true }
}

/// Replaces the layout table.
pub(super) fn set_layout(call: &mut Call<'_, '_>, layout: &Layout) -> Result<Done, Fail> {
    let config = call.config()?;
    if layout.version.0 != call.counters.layout.0 + 1 {
        let message = format!("layout {} after {}", layout.version, call.counters.layout);
        return Err(refuse(Kind::Stale, message));
    }
    if common::units::len_u64(layout.groups.len()) != u64::from(config.pg_count) {
        return Err(refuse(Kind::Invalid, format!("a table of {} groups", layout.groups.len())));
    }
    let mut layout = layout.clone();
    moves::relaid(call, &mut layout, config.replicas)?;
    call.counters.layout = layout.version;
    call.counters.map_version += 1;
    call.txn.put(CLUSTER, keys::LAYOUT, LayoutRow(layout).encode());
    Ok(Done::LayoutSet)
}

/// Sets a server's weight; a plan is made that follows.
pub(super) fn set_weight(call: &mut Call<'_, '_>, server: ServerId, weight: u32) -> Result<Done, Fail> {
    let key = keys::server(server);
    let found: Option<ServerRow> = row(call.txn, SERVER, &key)?;
    let mut found = found.ok_or_else(|| refuse(Kind::NotFound, format!("no server {server}")))?;
    let out = super::keep::out(call.txn)?;
    let takes = |(id, row): &(ServerId, ServerRow)| *id != server && row.weight > 0 && !out.contains(id);
    let others = servers(call.txn)?.into_iter().filter(takes).count();
    let replicas = usize::from(call.config()?.replicas);
    if weight == 0 && found.weight > 0 && others < replicas && call.counters.chunks > 0 {
        let text =
            format!("without {server} {others} chunkservers take data, and {replicas} copies are kept: add one first");
        return Err(refuse(Kind::Refused, text));
    }
    if found.weight != weight || moves::plan(call.txn)?.state == PlanState::Cancelled {
        moves::want_plan(call)?;
    }
    (found.weight, found.weight_fixed) = (weight, true);
    call.txn.put(SERVER, key, found.encode());
    call.counters.map_version += 1;
    Ok(Done::WeightSet)
}

/// Sets how many durable copies a write needs.
pub(super) fn set_min_replicas(call: &mut Call<'_, '_>, min_replicas: u8) -> Result<(), Fail> {
    let config = call.config()?;
    if min_replicas == 0 || min_replicas > config.replicas {
        let text = format!("min_replicas = {min_replicas}: must be from 1 to {}, the replicas", config.replicas);
        return Err(refuse(Kind::Invalid, text));
    }
    call.txn.put(CLUSTER, keys::CONFIG, Config { min_replicas, ..config }.encode());
    call.counters.map_version += 1;
    Ok(())
}

/// Forgets a server that has no place in the layout: it has weight 0 (it was drained), or is out (it was down for long, and
/// others have taken over its share). The caller knows that it holds nothing that is needed.
pub(super) fn remove_server(call: &mut Call<'_, '_>, server: ServerId) -> Result<Done, Fail> {
    let key = keys::server(server);
    let Some(found) = row::<ServerRow>(call.txn, SERVER, &key)? else { return Ok(Done::Noted) };
    let layout: LayoutRow = row(call.txn, CLUSTER, keys::LAYOUT)?.ok_or_else(|| damaged("layout", "missing"))?;
    let is_out = super::keep::out(call.txn)?.contains(&server);
    if found.weight > 0 && !is_out {
        let text = format!(
            "{server} has a place in the layout: drain it first (one that is down loses it after `down_out_s`)"
        );
        return Err(refuse(Kind::Refused, text));
    }
    if layout.0.groups.iter().any(|group| group.contains(&server)) {
        let text = format!(
            "groups still move away from {server}: wait for `dfs admin rebalance status` to say that it is done"
        );
        return Err(refuse(Kind::Refused, text));
    }
    if moves::away(call.txn)?.contains_key(&server) {
        moves::set_away(call, server, None)?;
    }
    super::keep::forget_out(call, server)?;
    change_removed(call, |removed| removed.insert(server, false))?;
    call.txn.delete(SERVER, key);
    call.txn.delete(INSTANCE, keys::instance(found.instance));
    call.counters.map_version += 1;
    Ok(Done::Noted)
}

/// A chunkserver that has registered.
pub type ServerEntry = (ServerId, ServerRow);

/// All chunkservers, by id.
pub fn servers(read: &dyn KvRead) -> Result<Vec<ServerEntry>, KvError> {
    let rows = read.scan(SERVER, (Bound::Unbounded, Bound::Unbounded), false);
    rows.map(|found| {
        let (key, value) = found?;
        let id = key.as_ref().try_into().map_err(|_| damaged("server", "the key has another length"))?;
        Ok((ServerId(u32::from_be_bytes(id)), ServerRow::decode(&value)?))
    })
    .collect()
}

/// The cluster's secret; `None` before it is formatted.
pub fn secret(read: &dyn KvRead) -> Result<Option<Secret>, KvError> {
    Ok(config(read)?.map(|config| config.secret))
}

/// The version of the layout table.
pub fn layout_version(read: &dyn KvRead) -> Result<LayoutVersion, KvError> {
    Ok(counters(read)?.layout)
}

/// The cluster map as the state machine knows it; `None` before it is formatted. Who is up and writable only the leader
/// knows: here nobody is, and `version` counts changes of the state machine only.
pub fn cluster_map(read: &dyn KvRead) -> Result<Option<ClusterMap>, KvError> {
    let Some(config) = config(read)? else { return Ok(None) };
    let layout: LayoutRow = row(read, CLUSTER, keys::LAYOUT)?.ok_or_else(|| damaged("layout", "missing"))?;
    let out = super::keep::out(read)?;
    let info = |id: ServerId, server: ServerRow| ServerInfo {
        addr: server.addr,
        domain: server.domain,
        weight: if out.contains(&id) { 0 } else { server.weight },
        up: false,
        writable: false,
    };
    let servers: BTreeMap<ServerId, ServerInfo> =
        servers(read)?.into_iter().map(|(id, row)| (id, info(id, row))).collect();
    Ok(Some(ClusterMap {
        cluster: config.cluster,
        epoch: config.epoch,
        version: counters(read)?.map_version,
        replicas: config.replicas,
        min_replicas: config.min_replicas,
        metaservers: config.metaservers.into_iter().collect(),
        servers,
        layout: layout.0,
    }))
}
