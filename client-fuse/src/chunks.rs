//! Chunks on chunkservers: touch, put, put again where a copy is missing, and read from whichever replica is right.
//!
//! Promises:
//! 1. [`Chunks::store`] returns receipts of every target that could be reached, at least `min(min_replicas, replicas)`
//!    for each chunk, all made under one attempt.
//! 2. [`Chunks::fetch`] returns bytes whose hash was checked here. A replica that is damaged, gone or slow costs time
//!    only, as long as one good copy answers. A server that sent wrong bytes is told ([`crate::report`]).
//!
//! A server that failed twice in a row is a *suspect* for [`SUSPECT_TIME`]: writers go round it, readers ask it last.
//! That bridges the time until the cluster map says that it is down.

mod fetch;

use crate::link::{Hop, Servers};
use crate::meta::Meta;
use crate::pulse::Pulse;
use crate::report::Reports;
use crate::stats::{Counters, add};
use bytes::Bytes;
use common::auth::{Attempt, Mac, Receipt};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, InodeId, LayoutVersion, ServerId};
use common::layout::ClusterMap;
use common::proto::chunk::{BATCH_MAX, ChunkRef, PUT_SMALL_LEN_MAX, WriteAuth};
use common::proto::meta::StoredChunk;
use common::task::Tasks;
use common::units::HASH_GROUP_LEN;
use common::wire::Target;
use common::world::World;
use futures::future::{BoxFuture, join_all};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Chunks from this length on go down a chain and are asked for first; shorter ones are sent to all servers at once.
const CHAIN_LEN_MIN: u32 = 256 << 10;
/// One put may take this long before its server is a suspect.
const PUT_TIMEOUT: Duration = Duration::from_secs(8);
/// One touch: it may have to read and verify the chunks.
const TOUCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that failed is gone round.
const SUSPECT_TIME: Duration = Duration::from_secs(5);
/// How long a server that was full is gone round.
const FULL_TIME: Duration = Duration::from_secs(10);
/// A failure after this long was a silent server, not a broken connection.
const SLOW: Duration = Duration::from_secs(1);
/// Failures in a row that make a suspect.
const STRIKES: u32 = 2;
/// The pause before the same servers are tried again.
const ROUND_PAUSE: Duration = Duration::from_millis(300);
/// Rounds of puts of one call, at most.
const ROUNDS_MAX: u32 = 200;
/// A server that another one overtook in so many reads in a row is gone round: it hangs, or is very slow.
const OVERTAKEN_MAX: u32 = 3;

/// A chunk to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) chunk: ChunkRef,
    pub(crate) bytes: Vec<Bytes>,
}

impl Outgoing {
    /// Its bytes in one piece: a copy if they are not.
    fn joined(&self) -> Bytes {
        match self.bytes.as_slice() {
            [one] => one.clone(),
            many => Bytes::from(many.concat()),
        }
    }
}

/// Chunks that are stored, and what their commit has to say about it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) attempt: Attempt,
    pub(crate) layout: LayoutVersion,
    pub(crate) chunks: Vec<StoredChunk>,
}

/// A chunk that a file refers to.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    /// The file, for messages.
    pub(crate) ino: InodeId,
    pub(crate) id: ChunkId,
    pub(crate) len: u32,
    pub(crate) token: Mac,
    /// Who holds it, if it has fewer copies than it should.
    pub(crate) holders: Vec<ServerId>,
}

#[derive(Debug, Default)]
struct Health {
    strikes: u32,
    /// Reads in a row in which another server was asked later and answered first.
    overtaken: u32,
    avoid_until: Option<Instant>,
}

/// The chunk service as this client uses it.
pub(crate) struct Chunks {
    link: Arc<dyn Servers>,
    meta: Arc<Meta>,
    world: World,
    counters: Arc<Counters>,
    reports: Reports,
    /// For what is asked a second time.
    pulse: Arc<Pulse>,
    health: Mutex<BTreeMap<ServerId, Health>>,
    began: Instant,
}

/// What a server said of a chunk, by its place in the list.
type Told = (usize, ServerId, Result<Receipt, Fault>);

/// The state of one [`Chunks::store`].
struct Work<'a> {
    auth: WriteAuth,
    /// That of the first map: some copies may be where it says, whatever later ones do.
    layout: LayoutVersion,
    replicas: u8,
    chunks: &'a [Outgoing],
    have: Vec<BTreeMap<ServerId, Receipt>>,
    deadline: Instant,
    last: Option<Fault>,
    /// A server asked for a pause.
    busy: bool,
}

impl Chunks {
    pub(crate) fn new(
        link: Arc<dyn Servers>,
        meta: Arc<Meta>,
        world: World,
        counters: Arc<Counters>,
        reports: Reports,
        tasks: &Tasks,
    ) -> Chunks {
        let (pulse, health) = (Pulse::new(tasks.clone()), Mutex::new(BTreeMap::new()));
        Chunks { link, meta, world, counters, reports, pulse, health, began: Instant::now() }
    }

    fn avoided(&self) -> BTreeSet<ServerId> {
        let now = Instant::now();
        let health = self.health.lock().expect("no panic holds this lock");
        health.iter().filter(|(_, h)| h.avoid_until.is_some_and(|t| t > now)).map(|(id, _)| *id).collect()
    }

    fn worked(&self, server: ServerId) {
        self.health.lock().expect("no panic holds this lock").remove(&server);
    }

    /// Notes a failure of a server. One that took long makes it a suspect at once.
    fn failed(&self, server: ServerId, fault: &Fault, began: Instant) {
        let mut health = self.health.lock().expect("no panic holds this lock");
        let health = health.entry(server).or_default();
        health.strikes += 1;
        if fault.kind == Kind::NoSpace {
            health.avoid_until = Some(Instant::now() + FULL_TIME);
        } else if began.elapsed() >= SLOW || health.strikes >= STRIKES {
            health.avoid_until = Some(Instant::now() + SUSPECT_TIME);
        }
    }

    /// A server has not answered yet, and one that was asked later has. If this goes on it is a suspect: its own timeout
    /// would never come, since nobody waits for it any more.
    fn overtaken(&self, server: ServerId) {
        let mut health = self.health.lock().expect("no panic holds this lock");
        let health = health.entry(server).or_default();
        health.overtaken += 1;
        if health.overtaken >= OVERTAKEN_MAX {
            health.overtaken = 0;
            health.avoid_until = Some(Instant::now() + SUSPECT_TIME);
        }
    }

    /// Stores chunks under one attempt. `insist` asks suspects too: the metaservers said that they are up.
    ///
    /// # Errors
    /// `NoSpace` when too few servers take them because they are full, `Unavailable` when too few answer in time.
    pub(crate) async fn store(
        &self,
        auth: WriteAuth,
        replicas: u8,
        chunks: &[Outgoing],
        insist: bool,
        deadline: Instant,
    ) -> Result<Stored, Fault> {
        let have = vec![BTreeMap::new(); chunks.len()];
        let layout = self.meta.map().layout.version;
        let mut work = Work { auth, layout, replicas, chunks, have, deadline, last: None, busy: false };
        let mut insist = insist;
        for round in 0..ROUNDS_MAX {
            let map = self.meta.map();
            let avoided = if insist { BTreeSet::new() } else { self.avoided() };
            let missing = work.missing(&map, &avoided);
            if work.is_enough(&map, &missing) {
                return Ok(work.done());
            }
            if round > 0 && missing.iter().all(BTreeSet::is_empty) {
                // Nobody left to ask: too few are up, or all are suspects. Look again, then ask suspects too. If by a map
                // that was just fetched they are up and full, waiting helps nobody.
                if round > 1 && work.is_full(&map) {
                    return Err(work.gave_up(&map));
                }
                work.pause(&map).await?;
                let _ = self.meta.refresh_map(map.version, work.deadline).await;
                insist = true;
                continue;
            }
            if Instant::now() >= deadline {
                return Err(work.gave_up(&map));
            }
            if round == 0 {
                self.touch_round(&mut work, &map, &missing).await;
            }
            let missing = match round {
                // Who did not answer the touch is not put into a chain: the whole chain would wait for it.
                0 if !insist => work.missing(&map, &self.avoided()),
                0 => work.missing(&map, &avoided),
                _ => missing,
            };
            self.put_round(&mut work, &map, &missing).await;
            insist = false;
            match &work.last {
                // The session or the cluster epoch is over: no server will take it under this attempt.
                Some(fault) if matches!(fault.kind, Kind::Denied | Kind::Stale) => return Err(fault.clone()),
                _ if std::mem::take(&mut work.busy) => work.pause(&map).await?,
                _ => {}
            }
        }
        let map = self.meta.map();
        Err(work.gave_up(&map))
    }

    /// Asks, one batch a server, who holds the large ones already.
    async fn touch_round(&self, work: &mut Work<'_>, map: &ClusterMap, missing: &[BTreeSet<ServerId>]) {
        let large = |i: &usize| work.chunks[*i].chunk.len >= CHAIN_LEN_MIN;
        let mut batches: BTreeMap<ServerId, Vec<usize>> = BTreeMap::new();
        for i in (0..work.chunks.len()).filter(large) {
            for server in &missing[i] {
                batches.entry(*server).or_default().push(i);
            }
        }
        let began = Instant::now();
        let deadline = work.deadline.min(began + TOUCH_TIMEOUT);
        let mut calls = Vec::new();
        for (server, all) in &batches {
            for part in all.chunks(BATCH_MAX) {
                let Some(at) = address(map, *server) else { continue };
                let chunks: Vec<ChunkRef> = part.iter().map(|i| work.chunks[*i].chunk).collect();
                let auth = work.auth;
                calls.push(async move { (*server, part, self.link.touch(&at, auth, &chunks, deadline).await) });
            }
        }
        let answers = join_all(calls).await;
        for (server, part, answer) in answers {
            match answer {
                Ok(receipts) if receipts.len() == part.len() => {
                    self.worked(server);
                    for (i, receipt) in part.iter().zip(receipts) {
                        work.take(*i, server, receipt);
                    }
                }
                Ok(_) => self.failed(server, &Fault::new(Kind::Internal, "touch: wrong number of answers"), began),
                Err(fault) => self.failed(server, &fault, began),
            }
        }
        for (i, out) in work.chunks.iter().enumerate() {
            if out.chunk.len >= CHAIN_LEN_MIN && missing[i].iter().all(|s| work.have[i].contains_key(s)) {
                add(&self.counters.dedup_chunks, 1);
                add(&self.counters.dedup_bytes, u64::from(out.chunk.len));
            }
        }
    }

    /// Sends what is missing: large chunks down chains, small ones in batches to each server, all at once.
    async fn put_round(&self, work: &mut Work<'_>, map: &ClusterMap, missing: &[BTreeSet<ServerId>]) {
        let began = Instant::now();
        let deadline = work.deadline.min(began + PUT_TIMEOUT);
        let mut calls: Vec<BoxFuture<'_, Vec<Told>>> = Vec::new();
        let mut small: BTreeMap<ServerId, Vec<usize>> = BTreeMap::new();
        let (auth, chunks) = (work.auth, work.chunks);
        for (i, servers) in missing.iter().enumerate() {
            if servers.is_empty() {
                continue;
            }
            add(&self.counters.puts, 1);
            add(&self.counters.sent_bytes, u64::from(chunks[i].chunk.len));
            if chunks[i].chunk.len < CHAIN_LEN_MIN {
                for server in servers {
                    small.entry(*server).or_default().push(i);
                }
                continue;
            }
            let (_, order) = map.layout.place(&chunks[i].chunk.id);
            let chain: Vec<Target> =
                order.iter().filter(|s| servers.contains(s)).filter_map(|s| address(map, *s)).collect();
            calls.push(Box::pin(self.put_one(i, chain, auth, &chunks[i], deadline)));
        }
        for (server, all) in small {
            let Some(at) = address(map, server) else { continue };
            for batch in batches(&all, chunks) {
                calls.push(Box::pin(self.put_batch(at.clone(), batch, auth, chunks, deadline)));
            }
        }
        for (i, server, result) in join_all(calls).await.into_iter().flatten() {
            match result {
                Ok(receipt) => {
                    self.worked(server);
                    work.take(i, server, Some(receipt));
                }
                Err(fault) => {
                    warn!(op = "put", chunk = %chunks[i].chunk.id, server = %server, error = %fault, "put failed");
                    if fault.kind == Kind::Busy {
                        work.busy = true;
                    } else {
                        self.failed(server, &fault, began);
                    }
                    work.last = Some(fault.context(server));
                }
            }
        }
    }

    async fn put_one(
        &self,
        i: usize,
        chain: Vec<Target>,
        auth: WriteAuth,
        out: &Outgoing,
        deadline: Instant,
    ) -> Vec<Told> {
        let Some(first) = chain.first().map(|to| to.server) else { return Vec::new() };
        match self.link.put_chain(&chain, auth, out.chunk, &out.bytes, deadline).await {
            Ok(hops) => reached(hops).map(|(server, result)| (i, server, result)).collect(),
            Err(fault) => vec![(i, first, Err(fault))],
        }
    }

    async fn put_batch(
        &self,
        at: Target,
        batch: Vec<usize>,
        auth: WriteAuth,
        chunks: &[Outgoing],
        deadline: Instant,
    ) -> Vec<Told> {
        let send: Vec<(ChunkRef, Bytes)> = batch.iter().map(|i| (chunks[*i].chunk, chunks[*i].joined())).collect();
        let all = match self.link.put_small(&at, auth, &send, deadline).await {
            Ok(all) if all.len() == batch.len() => all,
            Ok(_) => vec![Err(Fault::new(Kind::Internal, "put: wrong number of answers"))],
            Err(fault) => vec![Err(fault)], // one strike for one call
        };
        batch.into_iter().zip(all).map(|(i, result)| (i, at.server, result)).collect()
    }
}

impl Work<'_> {
    /// For each chunk the servers that should still get it.
    fn missing(&self, map: &ClusterMap, avoided: &BTreeSet<ServerId>) -> Vec<BTreeSet<ServerId>> {
        let usable = |id: &&ServerId| !avoided.contains(id) && map.servers.get(id).is_some_and(|s| s.up && s.writable);
        let for_one = |(out, have): (&Outgoing, &BTreeMap<ServerId, Receipt>)| {
            let (_, order) = map.layout.place(&out.chunk.id);
            let wanted = usize::from(self.replicas).saturating_sub(have.len());
            order.iter().filter(usable).filter(|id| !have.contains_key(id)).take(wanted).copied().collect()
        };
        self.chunks.iter().zip(&self.have).map(for_one).collect()
    }

    fn is_enough(&self, map: &ClusterMap, missing: &[BTreeSet<ServerId>]) -> bool {
        let least = usize::from(map.min_replicas.min(self.replicas));
        self.have.iter().zip(missing).all(|(have, missing)| missing.is_empty() && have.len() >= least)
    }

    fn take(&mut self, i: usize, server: ServerId, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt.filter(|r| r.server == server) {
            self.have[i].insert(server, receipt);
        }
    }

    fn done(self) -> Stored {
        let stored = |(out, have): (&Outgoing, BTreeMap<ServerId, Receipt>)| StoredChunk {
            id: out.chunk.id,
            len: out.chunk.len,
            receipts: have.into_values().collect(),
        };
        let chunks = self.chunks.iter().zip(self.have).map(stored).collect();
        Stored { attempt: self.auth.attempt, layout: self.layout, chunks }
    }

    async fn pause(&self, map: &ClusterMap) -> Result<(), Fault> {
        if self.last.as_ref().is_some_and(|fault| fault.kind == Kind::NoSpace)
            || Instant::now() + ROUND_PAUSE >= self.deadline
        {
            return Err(self.gave_up(map));
        }
        tokio::time::sleep(ROUND_PAUSE).await;
        Ok(())
    }

    /// Servers that are up, and those of them that take writes.
    fn count(map: &ClusterMap) -> (usize, usize) {
        let up = map.servers.values().filter(|s| s.up);
        (up.clone().count(), up.filter(|s| s.writable).count())
    }

    /// Enough servers are up, but too few of them take writes.
    fn is_full(&self, map: &ClusterMap) -> bool {
        let ((up, writable), needed) = (Work::count(map), usize::from(map.min_replicas.min(self.replicas)));
        up >= needed && writable < needed
    }

    fn gave_up(&self, map: &ClusterMap) -> Fault {
        let (up, writable) = Work::count(map);
        let needed = map.min_replicas.min(self.replicas);
        let why = self.last.as_ref().map_or_else(String::new, |fault| format!("; last: {fault}"));
        let text = format!(
            "{} of {} chunkservers are up, {writable} of them take writes, {needed} copies are needed{why}",
            up,
            map.servers.len()
        );
        let full = self.last.as_ref().is_some_and(|fault| fault.kind == Kind::NoSpace);
        let kind = if full || self.is_full(map) { Kind::NoSpace } else { Kind::Unavailable };
        Fault::new(kind, text)
    }
}

fn address(map: &ClusterMap, server: ServerId) -> Option<Target> {
    map.servers.get(&server).map(|info| Target { server, addr: info.addr.clone() })
}

/// What a chain said, with the first failure only: a break is reported for every server behind it too, and they are
/// not to blame. What they lack is put again in the next round.
fn reached(hops: Vec<Hop>) -> impl Iterator<Item = Hop> {
    let mut broken = false;
    hops.into_iter().filter(move |(_, result)| {
        let is_first = !broken;
        broken |= result.is_err();
        result.is_ok() || is_first
    })
}

/// Cuts a list of small chunks into batches within the protocol's limits.
fn batches(all: &[usize], chunks: &[Outgoing]) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0;
    for i in all {
        let len = u64::from(chunks[*i].chunk.len);
        match out.last_mut() {
            Some(batch) if batch.len() < BATCH_MAX && bytes + len <= PUT_SMALL_LEN_MAX => {
                batch.push(*i);
                bytes += len;
            }
            _ => {
                out.push(vec![*i]);
                bytes = len;
            }
        }
    }
    out
}

const _: () = assert!(CHAIN_LEN_MIN > HASH_GROUP_LEN, "what goes down a chain is more than one group");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_failure_of_a_chain_counts() {
        let receipt = |n| Receipt { server: ServerId(n), mac: Mac::default() };
        let lost = || Err(Fault::new(Kind::Unavailable, "s2: connection refused"));
        let hops = vec![(ServerId(1), Ok(receipt(1))), (ServerId(2), lost()), (ServerId(3), lost())];
        let told: Vec<ServerId> = reached(hops).map(|(server, _)| server).collect();
        assert_eq!(told, [ServerId(1), ServerId(2)], "the third never heard of the chunk");
        let hops = vec![(ServerId(1), lost()), (ServerId(2), Ok(receipt(2))), (ServerId(3), lost())];
        let told: Vec<ServerId> = reached(hops).map(|(server, _)| server).collect();
        assert_eq!(told, [ServerId(1), ServerId(2)], "a receipt counts wherever it is");
    }
}
