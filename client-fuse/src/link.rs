//! What the client asks of servers, as one seam: [`RealServers`] over the two planes, and a cluster in memory for tests.

use bytes::Bytes;
use common::auth::{Mac, Receipt};
use common::fault::Fault;
use common::hello::Me;
use common::id::{ChunkId, ServerId, SessionId};
use common::layout::ClusterMap;
use common::proto::chunk::{ChunkRef, WriteAuth};
use common::proto::lease::{Claim, Claimed, LeaseAsk, Leased, RecallCall, Recalls};
use common::proto::meta::{Alive, Answered, Ask, Op, Request, Submitted};
use common::proto::opens::{OpenAsk, OpenReport};
use common::rpc::Caller;
use common::task::Tasks;
use common::wire::{Got, Pool, Target};
use common::world::World;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// What one server of a chain said.
pub(crate) type Hop = (ServerId, Result<Receipt, Fault>);

/// The servers. Every call ends at its deadline, with `Unavailable` or `Unsure`.
pub(crate) trait Servers: Send + Sync + 'static {
    /// Sends a change to whoever leads, again and again if need be: its slot and number make that safe. `NoSession`:
    /// no copy that this call sent was run.
    fn submit<'a>(&'a self, request: &'a Request, deadline: Instant) -> BoxFuture<'a, Result<Submitted, Fault>>;
    /// Asks the leader.
    fn query<'a>(&'a self, ask: &'a Ask, deadline: Instant) -> BoxFuture<'a, Result<Answered, Fault>>;
    /// Keeps a session alive.
    fn keep_alive(&self, session: SessionId, deadline: Instant) -> BoxFuture<'_, Result<Alive, Fault>>;
    /// The cluster map.
    fn cluster_map(&self, deadline: Instant) -> BoxFuture<'_, Result<ClusterMap, Fault>>;
    /// Asks for a lease of a directory and what is in it.
    fn lease<'a>(&'a self, ask: &'a LeaseAsk, deadline: Instant) -> BoxFuture<'a, Result<Leased, Fault>>;
    /// Asks for leases to become write leases.
    fn claim<'a>(&'a self, claim: &'a Claim, deadline: Instant) -> BoxFuture<'a, Result<Claimed, Fault>>;
    /// Waits for what is to be forgotten.
    fn recalls(&self, call: RecallCall, deadline: Instant) -> BoxFuture<'_, Result<Recalls, Fault>>;
    /// Says what is open, and waits for the next question.
    fn opens<'a>(&'a self, report: &'a OpenReport, deadline: Instant) -> BoxFuture<'a, Result<OpenAsk, Fault>>;
    /// Puts one chunk down a chain; the first server of `chain` is the one that is called.
    fn put_chain<'a>(
        &'a self,
        chain: &'a [Target],
        auth: WriteAuth,
        chunk: ChunkRef,
        bytes: &'a [Bytes],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Hop>, Fault>>;
    /// Puts many small chunks on one server.
    fn put_small<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [(ChunkRef, Bytes)],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Result<Receipt, Fault>>, Fault>>;
    /// Asks one server to vouch for chunks it may hold.
    fn touch<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [ChunkRef],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>, Fault>>;
    /// Reads `(offset, len)` of a chunk from one server, unverified.
    fn get<'a>(
        &'a self,
        from: &'a Target,
        reader: (SessionId, Mac),
        chunk: ChunkId,
        range: (u32, u32),
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Got, Fault>>;
}

/// A cluster behind real connections.
pub(crate) struct RealServers {
    caller: Caller,
    /// For what others wait for: it must not wait behind requests that wait for them.
    urgent: Caller,
    pool: Pool,
}

impl RealServers {
    /// Connects when first used.
    pub(crate) fn new(world: &World, tasks: &Tasks, me: &Me, metaservers: &[String]) -> RealServers {
        let caller = || Caller::new(world, tasks, me, metaservers);
        RealServers { caller: caller(), urgent: caller(), pool: Pool::new(world, me) }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl Servers for RealServers {
    fn submit<'a>(&'a self, request: &'a Request, deadline: Instant) -> BoxFuture<'a, Result<Submitted, Fault>> {
        let caller = if matches!(request.op, Op::Batch(_)) { &self.urgent } else { &self.caller };
        Box::pin(caller.submit(request, left(deadline)))
    }

    fn query<'a>(&'a self, ask: &'a Ask, deadline: Instant) -> BoxFuture<'a, Result<Answered, Fault>> {
        Box::pin(self.caller.query(ask, left(deadline)))
    }

    fn keep_alive(&self, session: SessionId, deadline: Instant) -> BoxFuture<'_, Result<Alive, Fault>> {
        Box::pin(self.caller.keep_alive(session, left(deadline)))
    }

    fn cluster_map(&self, deadline: Instant) -> BoxFuture<'_, Result<ClusterMap, Fault>> {
        Box::pin(async move {
            let map = self.caller.cluster_map(left(deadline)).await?;
            self.caller.learn(map.metaservers.values());
            self.urgent.learn(map.metaservers.values());
            Ok(map)
        })
    }

    fn lease<'a>(&'a self, ask: &'a LeaseAsk, deadline: Instant) -> BoxFuture<'a, Result<Leased, Fault>> {
        Box::pin(self.caller.lease(ask, left(deadline)))
    }

    fn claim<'a>(&'a self, claim: &'a Claim, deadline: Instant) -> BoxFuture<'a, Result<Claimed, Fault>> {
        Box::pin(self.caller.claim(claim, left(deadline)))
    }

    fn recalls(&self, call: RecallCall, deadline: Instant) -> BoxFuture<'_, Result<Recalls, Fault>> {
        Box::pin(self.urgent.recalls(call, left(deadline)))
    }

    fn opens<'a>(&'a self, report: &'a OpenReport, deadline: Instant) -> BoxFuture<'a, Result<OpenAsk, Fault>> {
        Box::pin(self.caller.opens(report, left(deadline)))
    }

    fn put_chain<'a>(
        &'a self,
        chain: &'a [Target],
        auth: WriteAuth,
        chunk: ChunkRef,
        bytes: &'a [Bytes],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Hop>, Fault>> {
        Box::pin(self.pool.put_chain(chain, auth, chunk, bytes, left(deadline)))
    }

    fn put_small<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [(ChunkRef, Bytes)],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Result<Receipt, Fault>>, Fault>> {
        Box::pin(self.pool.put_small(to, auth, chunks, left(deadline)))
    }

    fn touch<'a>(
        &'a self,
        to: &'a Target,
        auth: WriteAuth,
        chunks: &'a [ChunkRef],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>, Fault>> {
        Box::pin(self.pool.touch(to, auth, chunks, left(deadline)))
    }

    fn get<'a>(
        &'a self,
        from: &'a Target,
        reader: (SessionId, Mac),
        chunk: ChunkId,
        range: (u32, u32),
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Got, Fault>> {
        Box::pin(self.pool.get(from, reader, chunk, range.0, range.1, left(deadline)))
    }
}
