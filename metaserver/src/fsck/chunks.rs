//! Every referenced chunk against the copies on the chunkservers.
//!
//! Rows are read first, then the servers are asked: a copy that a row relies on was there before the row. What seems to be
//! missing is looked at once more, row and copies, before it is told.

use super::{Work, store_failed};
use crate::namespace::{self, Fix};
use crate::store::keys::{self, CHUNK, DEGRADED};
use crate::store::values::{ChunkRow, Value};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, PgId, ServerId, SessionId};
use common::kv::KvError;
use common::layout::ClusterMap;
use common::proto::admin::{Finding, FindingKind};
use common::proto::chunk::LIST_MAX;
use common::units::len_u64;
use common::wire::Target;
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;
use tokio::time::Instant;

/// Rows looked at together, at most.
const PAGE: usize = 8192;
/// How long one listing may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long reading and hashing one copy may take, waiting for a turn included.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts to get a turn.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// Copies that are read at once, over all servers.
const READS_MAX: usize = 8;
/// Lost chunks whose files are looked for, at most; more are only counted.
const LOST_MAX: usize = 10_000;
/// Short chunks that are handed to repair in one run, at most.
const SHORT_MAX: usize = 1_000_000;

/// A referenced chunk.
#[derive(Clone, Copy, Debug)]
struct Expected {
    id: ChunkId,
    len: u32,
    target: u8,
}

/// The servers that have a copy.
type Holders = BTreeMap<ChunkId, BTreeSet<ServerId>>;
/// Chunks without a sound copy: of which kind, and what to say.
type Lost = Vec<(ChunkId, FindingKind, String)>;

impl Work {
    /// Looks for every chunk (or those in `below`). What is lost, and what makes repair copy what is short.
    pub(super) async fn chunks(&self, below: Option<&BTreeSet<ChunkId>>) -> Result<(Lost, Vec<Fix>), Fault> {
        let map = self.map()?;
        let pg_count = map.layout.pg_count();
        let mut look = Look { work: self, map, silent: BTreeSet::new(), lost: Vec::new(), fixes: Vec::new() };
        let mut after: Option<ChunkId> = None;
        loop {
            self.go_on()?;
            let (page, last) = self.rows(after).await?;
            let Some(last) = last else { break };
            let mut groups: BTreeMap<PgId, Vec<Expected>> = BTreeMap::new();
            for expected in page.into_iter().filter(|expected| below.is_none_or(|ids| ids.contains(&expected.id))) {
                groups.entry(expected.id.pg(pg_count)).or_default().push(expected);
            }
            for (pg, expected) in groups {
                look.group(pg, &expected).await?;
                self.job.update(|look| look.chunks += len_u64(expected.len()));
            }
            after = Some(last);
        }
        Ok((look.lost, look.fixes))
    }

    fn map(&self) -> Result<ClusterMap, Fault> {
        let mounted = self.member.state.mounted();
        let read = || {
            namespace::cluster_map(mounted.kv())
                .map_err(|error| store_failed(&error))?
                .ok_or_else(crate::leading::not_formatted)
        };
        Ok(ClusterMap::clone(&*self.leading.servers.map(read)?))
    }

    /// The next rows behind `after`, and the last key looked at.
    async fn rows(&self, after: Option<ChunkId>) -> Result<(Vec<Expected>, Option<ChunkId>), Fault> {
        let state = self.member.state.clone();
        let read = move || {
            let mounted = state.mounted();
            let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(keys::chunk(&id).to_vec()));
            let (mut page, mut last) = (Vec::new(), None);
            for found in mounted.kv().scan(CHUNK, (from, Bound::Unbounded), false).take(PAGE) {
                let (key, value) = found?;
                last = Some(id_of(&key));
                page.extend(expected(&key, &value).ok()); // one that cannot be read was told of already
            }
            Ok((page, last))
        };
        self.node.world.blocking(read).await.map_err(|error: KvError| store_failed(&error))
    }

    /// The chunk's row as it is now, and whether repair knows that it is short.
    async fn row(&self, id: ChunkId, pg: PgId) -> Result<Option<(Expected, bool)>, Fault> {
        self.member.reads.wait().await?;
        let mounted = self.member.state.mounted();
        let kv = mounted.kv();
        let read = || {
            let known = kv.get(DEGRADED, &keys::degraded(pg, &id))?.is_some();
            let row = kv.get(CHUNK, &keys::chunk(&id))?;
            row.map(|row| expected(&keys::chunk(&id), &row).map(|row| (row, known))).transpose()
        };
        read().map_err(|error| store_failed(&error))
    }
}

fn id_of(key: &[u8]) -> ChunkId {
    ChunkId(key.last_chunk::<32>().copied().unwrap_or_default())
}

fn expected(key: &[u8], value: &[u8]) -> Result<Expected, KvError> {
    let id = id_of(key);
    let row = ChunkRow::decode(value)?;
    Ok(Expected { id, len: row.len, target: row.refs.last_key_value().map_or(1, |(target, _)| *target) })
}

/// One pass over all groups.
struct Look<'a> {
    work: &'a Work,
    map: ClusterMap,
    /// Servers that did not answer: not asked again.
    silent: BTreeSet<ServerId>,
    lost: Lost,
    fixes: Vec<Fix>,
}

impl Look<'_> {
    fn target(&self, server: ServerId) -> Target {
        let addr = self.map.servers.get(&server).map(|info| info.addr.clone()).unwrap_or_default();
        Target { server, addr }
    }

    /// Chunks of one placement group, in id order.
    async fn group(&mut self, pg: PgId, expected: &[Expected]) -> Result<(), Fault> {
        let (_, home) = self.map.layout.place(&expected[0].id);
        let home: Vec<ServerId> = home.to_vec();
        let mut holders = self.listed(&home, pg, expected).await;
        let is_short = |holders: &Holders, chunk: &Expected| holders[&chunk.id].len() < usize::from(chunk.target);
        let mut elsewhere: Vec<Expected> = expected.iter().filter(|chunk| is_short(&holders, chunk)).copied().collect();
        if !elsewhere.is_empty() {
            let others: Vec<ServerId> = self.map.servers.keys().filter(|id| !home.contains(id)).copied().collect();
            for (id, found) in self.listed(&others, pg, &elsewhere).await {
                holders.entry(id).or_default().extend(found);
            }
        }
        if self.work.ask.data {
            self.read_all(expected, &mut holders).await?;
            elsewhere = expected.iter().filter(|chunk| is_short(&holders, chunk)).copied().collect();
        }
        elsewhere.retain(|chunk| is_short(&holders, chunk));
        for chunk in elsewhere {
            let sound = holders.remove(&chunk.id).unwrap_or_default();
            self.short(pg, chunk, sound).await?;
        }
        Ok(())
    }

    /// Who of these servers lists which of these chunks.
    async fn listed(&mut self, servers: &[ServerId], pg: PgId, expected: &[Expected]) -> Holders {
        let mut holders: Holders = expected.iter().map(|chunk| (chunk.id, BTreeSet::new())).collect();
        let asked: Vec<ServerId> = servers.iter().filter(|id| !self.silent.contains(id)).copied().collect();
        let lists = asked.iter().map(|server| async { (*server, self.list(*server, pg, expected).await) });
        for (server, listed) in futures::future::join_all(lists).await {
            match listed {
                Ok(listed) => {
                    for chunk in expected.iter().filter(|chunk| listed.get(&chunk.id) == Some(&chunk.len)) {
                        holders.entry(chunk.id).or_default().insert(server);
                    }
                }
                Err(fault) => self.silence(server, &fault),
            }
        }
        holders
    }

    fn silence(&mut self, server: ServerId, fault: &Fault) {
        if self.silent.insert(server) {
            let text = format!("{server} does not answer; its copies are not counted: {}", fault.message);
            let kind = FindingKind::Server;
            self.work.job.found(Finding { kind, text, chunk: None, files: Vec::new(), mends: false });
        }
    }

    /// The chunks of a group that a server has, from the first to the last of `expected`, with their lengths.
    async fn list(&self, server: ServerId, pg: PgId, expected: &[Expected]) -> Result<BTreeMap<ChunkId, u32>, Fault> {
        let (target, mut found) = (self.target(server), BTreeMap::new());
        let (Some(first), Some(last)) = (expected.first(), expected.last()) else { return Ok(found) };
        let mut after = before(first.id);
        loop {
            let few = if expected.len() == 1 { 1 } else { LIST_MAX };
            let (chunks, more) = self.work.pool.list(&target, pg, after, few, LIST_TIMEOUT).await?;
            after = chunks.last().map(|chunk| chunk.id);
            found.extend(chunks.into_iter().map(|chunk| (chunk.id, chunk.len)));
            if !more || after.is_none_or(|id| id >= last.id) {
                return Ok(found);
            }
        }
    }

    /// Has every copy read and hashed; holders of those that are not sound are taken out.
    async fn read_all(&mut self, expected: &[Expected], holders: &mut Holders) -> Result<(), Fault> {
        let copies: Vec<(Expected, ServerId)> =
            expected.iter().flat_map(|chunk| holders[&chunk.id].iter().map(|server| (*chunk, *server))).collect();
        let work = self.work;
        let reads = copies.into_iter().map(|(chunk, server)| {
            let target = self.target(server);
            async move { (chunk, server, work.read_copy(&target, chunk.id).await) }
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS_MAX);
        let mut outcomes = Vec::new();
        while let Some((chunk, server, outcome)) = reads.next().await {
            work.go_on()?;
            work.job.update(|look| look.bytes += u64::from(chunk.len));
            outcomes.push((chunk, server, outcome));
        }
        drop(reads);
        for (chunk, server, outcome) in outcomes {
            let wrong = match outcome {
                Ok(true) => continue,
                Ok(false) => "its bytes do not match the id".to_owned(),
                Err(fault) => fault.message,
            };
            if let Some(holders) = holders.get_mut(&chunk.id) {
                holders.remove(&server);
            }
            let text = format!("chunk {} on {server}: {wrong}", chunk.id);
            let (kind, chunk) = (FindingKind::Corrupt, Some(chunk.id));
            work.job.found(Finding { kind, text, chunk, files: Vec::new(), mends: true });
        }
        Ok(())
    }

    /// A chunk with too few sound copies: looks once more, then tells.
    async fn short(&mut self, pg: PgId, chunk: Expected, mut sound: BTreeSet<ServerId>) -> Result<(), Fault> {
        let Some((chunk, known)) = self.work.row(chunk.id, pg).await? else {
            return Ok(()); // nobody refers to it any more
        };
        if !self.work.ask.data {
            let all: Vec<ServerId> = self.map.servers.keys().copied().collect();
            sound.extend(self.listed(&all, pg, &[chunk]).await.remove(&chunk.id).unwrap_or_default());
        }
        let (id, target, have) = (chunk.id, usize::from(chunk.target), sound.len());
        if have >= target {
            return Ok(());
        }
        let silent = if self.silent.is_empty() { String::new() } else { format!(", {} silent", names(&self.silent)) };
        if have == 0 {
            let (kind, what) = match self.silent.is_empty() {
                true => (FindingKind::Lost, "no sound copy is left"),
                false => (FindingKind::Unreachable, "no sound copy on the servers that answer"),
            };
            match self.lost.len() < LOST_MAX {
                true => self.lost.push((id, kind, format!("chunk {id}, {} bytes: {what}{silent}", chunk.len))),
                false => drop(self.work.job.counted(kind, false)),
            }
            return Ok(());
        }
        let told = if known { "repair knows" } else { "repair does not know" };
        let text = format!("chunk {id}: {have} of {target} copies, on {}{silent}; {told}", names(&sound));
        let (kind, files) = (FindingKind::Short, Vec::new());
        self.work.job.found(Finding { kind, text, chunk: Some(id), files, mends: true });
        if !known && self.fixes.len() < SHORT_MAX {
            self.fixes.push(Fix::Degraded { chunk: id, servers: sound.into_iter().collect() });
        }
        Ok(())
    }
}

impl Work {
    /// True if the copy is sound. Waits for its turn.
    async fn read_copy(&self, at: &Target, chunk: ChunkId) -> Result<bool, Fault> {
        let nobody = SessionId(0);
        let token = self.secret.read_token(chunk, nobody, self.leading.ctx.epoch);
        let until = Instant::now() + READ_TIMEOUT;
        loop {
            let limit = until.saturating_duration_since(Instant::now());
            match self.pool.verify(at, (nobody, token), chunk, limit).await {
                Err(fault) if fault.kind == Kind::Busy && Instant::now() < until => {
                    tokio::time::sleep(READ_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }
}

fn names(servers: &BTreeSet<ServerId>) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The id in front of this one. `None`: there is none.
fn before(id: ChunkId) -> Option<ChunkId> {
    let mut bytes = id.0;
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return Some(ChunkId(bytes));
        }
    }
    None
}
