//! What the namespace knows for repair and garbage collection: which chunks belong on which server, which may go.
//!
//! [`condemn`] is the state machine's half of deletion (DESIGN 7): it raises the horizon of every chunk that it gives up,
//! so that no commit whose puts are older can refer to it again.

use super::command::{Done, Fail, refuse};
use super::extents::{forget_degraded, most_wanted};
use super::rows::{Call, config, counters, row};
use crate::store::keys::{self, CHUNK, CLUSTER, DEGRADED, HORIZON, SERVER};
use crate::store::values::{ChunkRow, Degraded, Horizon, KeepRow, LayoutRow, OutRow, ServerRow, Value, damaged};
use common::fault::Kind;
use common::id::{ChunkId, Epoch, LayoutVersion, LogIndex, PgId, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::Layout;
use common::proto::keep::{Expected, ExpectedChunk, Explained, KEEP_BATCH_MAX, KeepChange, KeepSettings};
use common::rules::{Rule, is_broken};
use common::units::len_usize;
use std::collections::BTreeSet;
use std::ops::Bound;

/// Rows looked at for one page, at most: those of other servers with a smaller share count, too.
const ROWS_PER_PAGE: usize = 4 * 4096;
/// Placement groups looked into for one page, at most.
const GROUPS_PER_PAGE: usize = 8192;
/// Chunks and files named in one explanation, at most.
pub const EXPLAIN_MAX: usize = 16;

/// Which page of the chunks that belong on a server.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Whose.
    pub server: ServerId,
    /// The layout it goes by.
    pub layout: LayoutVersion,
    /// From this id on.
    pub from: ChunkId,
    /// At most this many.
    pub limit: u32,
    /// Only degraded ones that are not known to be there.
    pub degraded: bool,
}

/// The chunks that belong on a server, a page of them: those whose target is above its place in the list of their group.
/// Exact for the range it covers, as of `read`.
///
/// # Errors
/// `Stale`: the layout is another one.
pub fn expected(read: &dyn KvRead, index: LogIndex, page: &Page) -> Result<Expected, Fail> {
    let layout = layout(read)?;
    if layout.version != page.layout {
        return Err(refuse(Kind::Stale, format!("the layout is {} by now, not {}", layout.version, page.layout)));
    }
    let limit = len_usize(page.limit.clamp(1, KEEP_BATCH_MAX).into());
    let mut told = Expected { chunks: Vec::new(), upto: None, index };
    if page.degraded && counters(read)?.degraded == 0 {
        return Ok(told);
    }
    let (mut rows, mut groups) = (0, 0);
    for pg in page.from.pg(layout.pg_count()).0..layout.pg_count() {
        let order = &layout.groups[len_usize(pg.into())];
        let Some(place) = order.iter().position(|server| *server == page.server) else { continue };
        groups += 1;
        let first = PgId(pg).first(layout.pg_count()).max(page.from);
        if groups > GROUPS_PER_PAGE {
            told.upto = Some(first);
            return Ok(told);
        }
        let scan = match page.degraded {
            false => read.scan(CHUNK, range(first, PgId(pg), layout.pg_count()), false),
            true => read.scan(DEGRADED, degraded_range(first, PgId(pg)), false),
        };
        for found in scan {
            let (key, value) = found?;
            let id = id_of(&key)?;
            if told.chunks.len() == limit || rows == ROWS_PER_PAGE {
                told.upto = Some(id);
                return Ok(told);
            }
            rows += 1;
            let chunk = if page.degraded {
                if Degraded::decode(&value)?.servers.contains(&page.server) {
                    continue;
                }
                row::<ChunkRow>(read, CHUNK, &keys::chunk(&id))?.map(|row| (row, true))
            } else {
                Some((ChunkRow::decode(&value)?, false))
            };
            let Some((chunk, degraded)) = chunk else { continue };
            if place < usize::from(most_wanted(&chunk)) {
                told.chunks.push(ExpectedChunk { id, len: chunk.len, degraded });
            }
        }
    }
    Ok(told)
}

fn layout(read: &dyn KvRead) -> Result<Layout, Fail> {
    let row: Option<LayoutRow> = row(read, CLUSTER, keys::LAYOUT)?;
    Ok(row.ok_or_else(|| refuse(Kind::Refused, "the cluster is not formatted"))?.0)
}

type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Chunks of a group from `first` on.
fn range(first: ChunkId, pg: PgId, pg_count: u32) -> Range {
    let end = match pg.0 + 1 < pg_count {
        true => Bound::Excluded(PgId(pg.0 + 1).first(pg_count).0.to_vec()),
        false => Bound::Unbounded,
    };
    (Bound::Included(first.0.to_vec()), end)
}

fn degraded_range(first: ChunkId, pg: PgId) -> Range {
    let end = keys::degraded(PgId(pg.0 + 1), &ChunkId([0; 32]));
    (Bound::Included(keys::degraded(pg, &first)), Bound::Excluded(end))
}

/// The chunk at the end of a key.
fn id_of(key: &[u8]) -> Result<ChunkId, KvError> {
    key.last_chunk::<32>().map(|id| ChunkId(*id)).ok_or_else(|| damaged("chunk", "the key is too short"))
}

/// For each of these chunks how many copies it should have; 0: nothing refers to it.
///
/// # Errors
/// The store failed.
pub fn targets(read: &dyn KvRead, chunks: &[ChunkId]) -> Result<Vec<(ChunkId, u8)>, KvError> {
    let of = |id: &ChunkId| {
        let found: Option<ChunkRow> = row(read, CHUNK, &keys::chunk(id))?;
        Ok((*id, found.map_or(0, |found| most_wanted(&found))))
    };
    chunks.iter().map(of).collect()
}

/// Gives up every one of these chunks that nothing refers to: raises the horizon of its bucket to this command's index.
/// Each time it is asked, also again: every grant has an index of its own.
pub(super) fn condemn(call: &mut Call<'_, '_>, epoch: Epoch, chunks: &[ChunkId]) -> Result<Done, Fail> {
    check_epoch(call, epoch)?;
    if super::restore::held(call.txn)?.is_some() {
        let text = "deletion is held since the metadata was restored: `dfs admin fsck` lifts that when all is sound";
        return Err(refuse(Kind::Refused, text));
    }
    if settings(call.txn)?.delete_paused {
        return Err(refuse(Kind::Refused, "deletion is paused")); // also for who asks because he has not heard of it
    }
    let mut granted = Vec::new();
    for id in chunks {
        if call.txn.get(CHUNK, &keys::chunk(id))?.is_none() || is_broken(Rule::OnlyTheUnreferencedIsCondemned) {
            granted.push(*id);
        }
    }
    let index = call.index;
    for id in &granted {
        let key = keys::horizon(id.bucket());
        let keeps = is_broken(Rule::EachGrantHasItsOwnIndex) && call.txn.get(HORIZON, &key)?.is_some();
        if !keeps && !is_broken(Rule::CondemningRaisesTheHorizon) {
            call.txn.put(HORIZON, key, Horizon(index).encode());
        }
    }
    Ok(Done::Condemned { granted })
}

/// A server has these degraded chunks now: notes it, and forgets those that have all their copies.
pub(super) fn holds(call: &mut Call<'_, '_>, server: ServerId, epoch: Epoch, chunks: &[ChunkId]) -> Result<Done, Fail> {
    check_epoch(call, epoch)?;
    let pg_count = call.config()?.pg_count;
    let out = out(call.txn)?;
    if out.contains(&server) || call.txn.get(SERVER, &keys::server(server))?.is_none() {
        return Err(refuse(Kind::Stale, format!("server {server} is out or unknown")));
    }
    for id in chunks {
        let key = keys::degraded(id.pg(pg_count), id);
        let Some(known) = row::<Degraded>(call.txn, DEGRADED, &key)? else { continue };
        let Some(chunk) = row::<ChunkRow>(call.txn, CHUNK, &keys::chunk(id))? else { continue };
        let mut servers: BTreeSet<ServerId> = known.servers.into_iter().collect();
        servers.insert(server);
        let counted = servers.difference(&out).count();
        if counted >= usize::from(most_wanted(&chunk)) {
            forget_degraded(call, id, pg_count)?;
        } else {
            call.txn.put(DEGRADED, key, Degraded { servers: servers.into_iter().collect() }.encode());
        }
    }
    Ok(Done::Noted)
}

fn check_epoch(call: &Call<'_, '_>, epoch: Epoch) -> Result<(), Fail> {
    let now = call.config()?.epoch;
    if epoch == now || is_broken(Rule::OldEpochsAreVoid) {
        Ok(())
    } else {
        Err(refuse(Kind::Stale, format!("epoch {epoch} is over: it is {now} now")))
    }
}

/// Servers whose share others have taken over because they were down for long.
pub fn out(read: &dyn KvRead) -> Result<BTreeSet<ServerId>, KvError> {
    let row: Option<OutRow> = row(read, CLUSTER, keys::OUT)?;
    Ok(row.map(|row| row.0).unwrap_or_default())
}

/// Takes a server out, or in again. The layout made next follows.
pub(super) fn set_out(call: &mut Call<'_, '_>, server: ServerId, is_out: bool) -> Result<Done, Fail> {
    let known: Option<ServerRow> = row(call.txn, SERVER, &keys::server(server))?;
    if known.is_none() {
        return Err(refuse(Kind::NotFound, format!("no server {server}")));
    }
    let mut out = out(call.txn)?;
    let changed = if is_out { out.insert(server) } else { out.remove(&server) };
    if changed {
        call.txn.put(CLUSTER, keys::OUT, OutRow(out).encode());
        call.counters.map_version += 1;
        match is_out {
            true => super::moves::leaves(call, server)?,
            false => super::moves::want_plan(call)?, // it gets its share again
        }
    }
    Ok(Done::OutSet)
}

/// A server that is removed is not out any more.
pub(super) fn forget_out(call: &mut Call<'_, '_>, server: ServerId) -> Result<(), Fail> {
    let mut out = out(call.txn)?;
    if out.remove(&server) {
        call.txn.put(CLUSTER, keys::OUT, OutRow(out).encode());
        super::moves::forget_left_of(call, server)?;
    }
    Ok(())
}

/// The settings of repair, garbage collection and scrub.
pub fn settings(read: &dyn KvRead) -> Result<KeepSettings, KvError> {
    let row: Option<KeepRow> = row(read, CLUSTER, keys::KEEP)?;
    Ok(row.map(|row| row.0).unwrap_or_default())
}

pub(super) fn set_keep(call: &mut Call<'_, '_>, change: &KeepChange) -> Result<Done, Fail> {
    let new = settings(call.txn)?.with(change);
    if new.repair_busy_rate == 0 || new.repair_idle_rate == 0 || new.scrub_rate == 0 || new.scrub_period_s == 0 {
        return Err(refuse(Kind::Invalid, "rates and periods must be at least 1"));
    }
    call.txn.put(CLUSTER, keys::KEEP, KeepRow(new).encode());
    Ok(Done::KeepSet(new))
}

/// Why chunks whose ids begin with `prefix` are there, but for the files.
///
/// # Errors
/// `Invalid`: the prefix is too short. The store failed.
pub fn explain(read: &dyn KvRead, prefix: &[u8]) -> Result<Vec<Explained>, Fail> {
    if prefix.len() < 6 || prefix.len() > 32 {
        return Err(refuse(Kind::Invalid, "name a chunk by 12 to 64 hex digits"));
    }
    let pg_count = config(read)?.ok_or_else(|| refuse(Kind::Refused, "the cluster is not formatted"))?.pg_count;
    let layout = layout(read)?;
    let mut found = Vec::new();
    for entry in read.scan(CHUNK, (Bound::Included(prefix.to_vec()), Bound::Unbounded), false).take(EXPLAIN_MAX) {
        let (key, value) = entry?;
        if !key.starts_with(prefix) {
            break;
        }
        let (id, chunk) = (id_of(&key)?, ChunkRow::decode(&value)?);
        let (_, order) = layout.place(&id);
        let known: Option<Degraded> = row(read, DEGRADED, &keys::degraded(id.pg(pg_count), &id))?;
        found.push(Explained {
            id,
            len: chunk.len,
            owners: order.iter().take(usize::from(most_wanted(&chunk))).copied().collect(),
            refs: chunk.refs.into_iter().collect(),
            files: Vec::new(),
            degraded: known.map(|known| known.servers),
        });
    }
    Ok(found)
}
