//! The data plane's server side: connections, and on each one request after another.
//!
//! A request is checked (right, epoch, limits) before its bytes are taken. Bytes on their way to a disk or from it are
//! reserved first, and the reservation travels with them: see [`Room`].
//!
//! What does not parse, or breaks a limit that every caller knows, costs the peer its connection and one log line. What
//! is refused for another reason is answered, after the bytes that come with it were read and thrown away.

use crate::chain;
use crate::own_thread::{self, OWN_THREADS_MAX};
use crate::store::{Incoming, Part, StoreError, StoreSet};
use bytes::Bytes;
use common::auth::{Attempt, Mac, Receipt};
use common::fault::{Fault, Kind};
use common::hello::{self, Me, Peer, Plane, Role};
use common::id::{ChunkId, Epoch, PgId, ServerId, SessionId};
use common::layout::ClusterMap;
use common::net::{Conn, Listener, serve_connections};
use common::proto::chunk::{
    BATCH_MAX, CHAIN_MAX, ChunkAnswer, ChunkRef, ChunkRequest, LIST_MAX, PUT_SMALL_LEN_MAX, WriteAuth,
};
use common::task::Tasks;
use common::units::{CHUNK_SIZE_MAX, HASH_GROUP_LEN, len_u32, len_usize};
use common::wire::{DATA_MAX, Pool, Wire};
use common::world::World;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Copies that are read and hashed at once because readers asked for it, at most: each reads a whole chunk.
const VERIFIES_MAX: usize = 2;
/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// A connection without a request for this long is closed. Longer than clients keep idle ones.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// How long the next piece of a request may take to arrive, or the next piece of an answer to leave.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(10);
/// How long all bytes of a request may take, however evenly they come: they hold room in memory. A chunk of the greatest
/// length needs about 1 MiB/s.
pub(crate) const BODY_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for room in memory: less than the server before it in a chain waits for us to take bytes.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of puts in memory, for each number of servers that follow in the chain.
const PUT_ROOM: usize = 96 << 20;
/// Bytes of chunks in memory that this server fetches for itself: one of the greatest length fits, as received and as stored.
const PULL_ROOM: usize = 160 << 20;
/// Bytes of reads in memory.
const GET_ROOM: usize = 128 << 20;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) world: World,
    pub(crate) me: Me,
    pub(crate) pool: Pool,
    pub(crate) room: Room,
    verifies: Semaphore,
    /// Threads for connections: see [`own_thread`].
    pub(crate) own_threads: Arc<Semaphore>,
    stores: StoreSet,
    registration: RwLock<Option<Arc<Registration>>>,
    /// Requests of clients since start: repair yields while it rises.
    pub(crate) client_requests: AtomicU64,
    /// Something happened that the comparison with what should be here cannot wait for.
    pub(crate) look_again: Notify,
}

/// What the metaservers told this server.
pub(crate) struct Registration {
    pub(crate) server: ServerId,
    pub(crate) secret: common::auth::Secret,
    pub(crate) map: ClusterMap,
}

/// Memory for bytes under way, in bytes.
///
/// A put holds its room until the whole chain behind it has answered, and until the store is done with the bytes. If all puts shared one room, three servers full of
/// puts that wait for each other would stand still. So there is a room for each number of servers that follow: who is
/// last waits for nobody, who is last but one only for those, and so on.
pub(crate) struct Room {
    puts: Vec<Arc<Semaphore>>,
    pulls: Arc<Semaphore>,
    gets: Arc<Semaphore>,
}

impl Room {
    pub(crate) fn new() -> Room {
        let puts = (0..CHAIN_MAX).map(|_| Arc::new(Semaphore::new(PUT_ROOM))).collect();
        let [pulls, gets] = [PULL_ROOM, GET_ROOM].map(|room| Arc::new(Semaphore::new(room)));
        Room { puts, pulls, gets }
    }

    /// Room for a put of `len` bytes with `behind` servers still to come.
    pub(crate) async fn put(&self, behind: usize, len: u64) -> Result<OwnedSemaphorePermit, Fault> {
        reserve(&self.puts[behind.min(CHAIN_MAX - 1)], len).await
    }

    /// Room for a chunk that this server fetches: clients' puts do not wait behind it.
    pub(crate) async fn pull(&self, len: u64) -> Result<OwnedSemaphorePermit, Fault> {
        reserve(&self.pulls, len).await
    }

    async fn get(&self, len: u64) -> Result<OwnedSemaphorePermit, Fault> {
        reserve(&self.gets, len).await
    }
}

async fn reserve(room: &Arc<Semaphore>, len: u64) -> Result<OwnedSemaphorePermit, Fault> {
    let bytes = u32::try_from(len).map_err(|_| Fault::new(Kind::Invalid, format!("{len} bytes at once")))?;
    match tokio::time::timeout(ROOM_WAIT_MAX, Arc::clone(room).acquire_many_owned(bytes)).await {
        Ok(permit) => Ok(permit.expect("never closed")),
        Err(_) => Err(Fault::new(Kind::Busy, format!("no room for {len} bytes within {ROOM_WAIT_MAX:?}"))),
    }
}

impl Shared {
    pub(crate) fn new(world: World, me: Me, stores: StoreSet) -> Shared {
        let pool = Pool::new(&world, &me);
        Shared {
            world,
            me,
            pool,
            room: Room::new(),
            verifies: Semaphore::new(VERIFIES_MAX),
            own_threads: Arc::new(Semaphore::new(OWN_THREADS_MAX)),
            stores,
            registration: RwLock::new(None),
            client_requests: AtomicU64::new(0),
            look_again: Notify::new(),
        }
    }

    pub(crate) fn stores(&self) -> &StoreSet {
        &self.stores
    }

    /// One more request of this peer.
    pub(crate) fn count(&self, peer: &Peer) {
        if peer.hello.role == Role::Client {
            self.client_requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From now on requests are judged by this. With a new epoch all wishes to delete are void: a grant of the old one may
    /// still be on its way.
    pub(crate) fn set_registration(&self, registration: Registration) {
        let epoch = registration.map.epoch;
        let before = self.registration.write().expect("no panic holds this lock").replace(Arc::new(registration));
        if before.is_some_and(|before| before.map.epoch != epoch) {
            self.stores.void_wishes(); // after the new epoch shows: see `Keeper::wish`
        }
    }

    /// What the metaservers last said.
    pub(crate) fn registration(&self) -> Result<Arc<Registration>, Fault> {
        let registration = self.registration.read().expect("no panic holds this lock").clone();
        registration.ok_or_else(|| Fault::new(Kind::Unavailable, "not registered with a metaserver yet"))
    }
}

impl Registration {
    /// Whether this attempt may put and touch here.
    pub(crate) fn check_write(&self, auth: &WriteAuth) -> Result<(), Fault> {
        let Attempt { session, epoch, .. } = auth.attempt;
        if self.secret.write_token(session, epoch) != auth.token {
            return Err(Fault::new(Kind::Denied, format!("session {session:?} has no right to write in {epoch}")));
        }
        let here = self.map.epoch;
        if epoch < here {
            return Err(Fault::new(Kind::Stale, format!("cluster epoch {epoch} is over: it is {here} now")));
        }
        if epoch > here {
            return Err(Fault::new(Kind::Busy, format!("this server has not heard of cluster epoch {epoch} yet")));
        }
        Ok(())
    }

    /// Whether this session may read this chunk: with a token of this epoch or the last one.
    fn check_read(&self, chunk: ChunkId, session: SessionId, token: Mac) -> Result<(), Fault> {
        let epoch = self.map.epoch;
        let valid = |epoch| self.secret.read_token(chunk, session, epoch) == token;
        if valid(epoch) || (epoch.0 > 0 && valid(Epoch(epoch.0 - 1))) {
            return Ok(());
        }
        Err(Fault::new(Kind::Stale, format!("{chunk}: the token is not valid (any more): look the file up again")))
    }

    /// Signs for a chunk that the store vouched for.
    pub(crate) fn receipt(&self, chunk: ChunkRef, attempt: Attempt) -> Receipt {
        self.secret.receipt(chunk.id, chunk.len, self.server, attempt)
    }
}

/// Serves every connection of this listener until `tasks` stop.
pub(crate) fn serve(shared: &Arc<Shared>, tasks: &Tasks, listener: Box<dyn Listener>) {
    let shared = Arc::clone(shared);
    serve_connections(tasks, listener, CONNECTIONS_MAX, move |conn, from| {
        let shared = Arc::clone(&shared);
        async move { connection(&shared, conn, &from).await }
    });
}

async fn connection(shared: &Arc<Shared>, mut conn: Conn, from: &str) {
    let peer = match hello::welcome(&mut conn, &shared.me, Plane::Data, from).await {
        Ok(peer) => peer,
        Err(fault) => {
            warn!(error = %fault, "connection refused");
            return;
        }
    };
    let (mut wire, mut received) = (Wire::new(conn), None);
    loop {
        let next = async {
            match received.take() {
                Some(request) => Ok(Some(request)),
                None => wire.receive::<ChunkRequest>().await,
            }
        };
        let (id, request) = match tokio::time::timeout(IDLE_MAX, next).await {
            Ok(Ok(Some(received))) => received,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => return closed(&peer, &error),
        };
        let handled = match own_thread::take(shared, &peer, &request) {
            Some(thread) => own_thread::serve(shared, &peer, wire, (id, request), thread).await,
            None => handle(shared, &peer, &mut wire, id, request).await.map(|()| (wire, None)),
        };
        match handled {
            Ok(left) => (wire, received) = left,
            Err(error) => return closed(&peer, &error),
        }
    }
}

/// Says why a connection ended. A peer that went away is nothing unusual; one that sends nonsense or stands still is.
fn closed(peer: &Peer, error: &io::Error) {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::TimedOut => warn!(%peer, %error, "connection closed"),
        _ => debug!(%peer, %error, "connection closed by the peer"),
    }
}

/// Carries out one request and answers it. An error means that the connection is of no more use.
pub(crate) async fn handle(
    shared: &Shared,
    peer: &Peer,
    wire: &mut Wire,
    id: u32,
    request: ChunkRequest,
) -> io::Result<()> {
    let ChunkRequest::Put { auth, chunk, chain } = request else {
        return handle_short(shared, peer, wire, id, request).await;
    };
    shared.count(peer);
    let answer = chain::put(shared, wire, id, auth, chunk, chain).await?;
    send(wire, id, &answer.unwrap_or_else(ChunkAnswer::Failed), &[]).await
}

/// [`handle`], of what asks no other server.
pub(crate) async fn handle_short<C: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    peer: &Peer,
    wire: &mut Wire<C>,
    id: u32,
    request: ChunkRequest,
) -> io::Result<()> {
    debug!(%peer, op = name(&request), req = id, "request");
    shared.count(peer);
    let answer = match request {
        ChunkRequest::Put { .. } => Err(Fault::new(Kind::Internal, "a chain is served elsewhere")),
        ChunkRequest::PutSmall { auth, chunks } => put_small(shared, wire, id, auth, chunks).await?,
        ChunkRequest::Touch { auth, chunks } => touch(shared, auth, &chunks).await,
        ChunkRequest::Get { session, token, chunk, offset, len } => {
            match get(shared, (session, token), chunk, offset, len).await {
                Ok((answer, bytes, _room)) => return send(wire, id, &answer, &[&bytes]).await,
                Err(fault) => Err(fault),
            }
        }
        ChunkRequest::List { pg, after, limit } => list(shared, peer, pg, after, limit).await,
        ChunkRequest::Ping => ping(shared),
        ChunkRequest::Verify { session, token, chunk } => verify(shared, peer, session, token, chunk).await,
        ChunkRequest::Confirm { epoch, rounds } => confirm(shared, peer, epoch, rounds).await,
    };
    send(wire, id, &answer.unwrap_or_else(ChunkAnswer::Failed), &[]).await
}

fn name(request: &ChunkRequest) -> &'static str {
    match request {
        ChunkRequest::Put { .. } => "put",
        ChunkRequest::PutSmall { .. } => "put small",
        ChunkRequest::Touch { .. } => "touch",
        ChunkRequest::Get { .. } => "get",
        ChunkRequest::List { .. } => "list",
        ChunkRequest::Ping => "ping",
        ChunkRequest::Verify { .. } => "verify",
        ChunkRequest::Confirm { .. } => "confirm",
    }
}

/// Sends an answer; its data in pieces, each within [`STALL_MAX`].
async fn send<C: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<C>,
    id: u32,
    answer: &ChunkAnswer,
    data: &[&[u8]],
) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("the answer was not taken within {STALL_MAX:?}"));
    let (mut first, mut rest): (&[u8], &[u8]) = (&[], &[]);
    if let [bytes] = data {
        (first, rest) = bytes.split_at(bytes.len().min(PIECE));
    }
    tokio::time::timeout(STALL_MAX, wire.send(id, answer, &[first])).await.map_err(late)??;
    while !rest.is_empty() {
        (first, rest) = rest.split_at(rest.len().min(PIECE));
        tokio::time::timeout(STALL_MAX, wire.send_data(id, &[first])).await.map_err(late)??;
    }
    Ok(())
}

/// Bytes of an answer that are sent in one go: whole frames.
const PIECE: usize = 4 * DATA_MAX;

/// Receives one piece of a request's bytes into the front of `room`. `until`: when all of them must be there.
pub(crate) async fn receive<C: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<C>,
    id: u32,
    room: &mut [u8],
    until: Instant,
) -> io::Result<usize> {
    let stalled = Instant::now() + STALL_MAX;
    let late = |_| {
        let limit = if stalled < until { STALL_MAX } else { BODY_MAX };
        io::Error::new(io::ErrorKind::TimedOut, format!("the request's data did not come within {limit:?}"))
    };
    tokio::time::timeout_at(stalled.min(until), wire.receive_data(id, room)).await.map_err(late)?
}

/// Reads the bytes of a request that is refused, so that the peer gets to read why.
pub(crate) async fn discard<C: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<C>,
    id: u32,
    len: u64,
) -> io::Result<()> {
    let until = Instant::now() + BODY_MAX;
    let mut scratch = vec![0; DATA_MAX];
    let mut left = len_usize(len);
    while left > 0 {
        let room = left.min(scratch.len());
        left -= receive(wire, id, &mut scratch[..room], until).await?;
    }
    Ok(())
}

/// What no honest caller sends.
pub(crate) fn bad_request(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

type Answer = Result<ChunkAnswer, Fault>;

async fn put_small<C: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    wire: &mut Wire<C>,
    id: u32,
    auth: WriteAuth,
    chunks: Vec<ChunkRef>,
) -> io::Result<Answer> {
    let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    if chunks.len() > BATCH_MAX || total > PUT_SMALL_LEN_MAX || chunks.iter().any(|chunk| chunk.len == 0) {
        return Err(bad_request(format!("put of {} chunks, {total} bytes", chunks.len())));
    }
    let admitted = async {
        let registration = shared.registration()?;
        registration.check_write(&auth)?;
        let memory = total + chunks.iter().map(|chunk| Incoming::memory(chunk.len)).sum::<u64>();
        Ok((registration, Arc::new(shared.room.put(0, memory).await?)))
    };
    let (registration, room) = match admitted.await {
        Ok(admitted) => admitted,
        Err(fault) => {
            discard(wire, id, total).await?;
            return Ok(Err(fault));
        }
    };
    let mut bytes = vec![0; len_usize(total)];
    let (mut have, until) = (0, Instant::now() + BODY_MAX);
    while have < bytes.len() {
        have += receive(wire, id, &mut bytes[have..], until).await?;
    }
    let outcomes = store_small(shared, &chunks, &bytes, &room).await;
    let signed = chunks.iter().zip(outcomes);
    let signed = signed.map(|(chunk, stored)| match stored {
        Ok(()) => Ok(registration.receipt(*chunk, auth.attempt)),
        Err(error) => Err(error.into()),
    });
    Ok(Ok(ChunkAnswer::PutSmall(signed.collect())))
}

/// Stores chunks that lie one behind another in `bytes`; an outcome for each.
async fn store_small(
    shared: &Shared,
    chunks: &[ChunkRef],
    mut bytes: &[u8],
    room: &Arc<OwnedSemaphorePermit>,
) -> Vec<Result<(), StoreError>> {
    let mut outcomes = Vec::with_capacity(chunks.len());
    let (mut good, mut places) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let (now, later) = bytes.split_at(len_usize(u64::from(chunk.len)));
        bytes = later;
        let verified = Incoming::new(*chunk).and_then(|incoming| {
            let mut incoming = incoming.in_room(Arc::clone(room));
            incoming.push(now);
            incoming.finish()
        });
        match verified {
            Ok(verified) => {
                places.push(outcomes.len());
                good.push(verified);
                outcomes.push(Ok(()));
            }
            Err(error) => outcomes.push(Err(error)),
        }
    }
    for (place, outcome) in places.into_iter().zip(shared.stores().put_all(good).await) {
        outcomes[place] = outcome;
    }
    outcomes
}

async fn touch(shared: &Shared, auth: WriteAuth, chunks: &[ChunkRef]) -> Answer {
    if chunks.len() > BATCH_MAX {
        return Err(Fault::new(Kind::Invalid, format!("touch of {} chunks, at most {BATCH_MAX}", chunks.len())));
    }
    let registration = shared.registration()?;
    registration.check_write(&auth)?;
    let held = shared.stores().touch(chunks).await?;
    let signed = chunks.iter().zip(held);
    let signed = signed.map(|(chunk, held)| held.then(|| registration.receipt(*chunk, auth.attempt)));
    Ok(ChunkAnswer::Touched(signed.collect()))
}

/// Reads; what answers it, the bytes that go with that, and the room that they take until they are sent.
async fn get(
    shared: &Shared,
    (session, token): (SessionId, Mac),
    chunk: ChunkId,
    offset: u32,
    len: u32,
) -> Result<(ChunkAnswer, Bytes, OwnedSemaphorePermit), Fault> {
    if len == 0 || len > CHUNK_SIZE_MAX {
        return Err(Fault::new(Kind::Invalid, format!("{chunk}: a read of {len} bytes")));
    }
    shared.registration()?.check_read(chunk, session, token)?;
    let room = shared.room.get(u64::from(len) + 2 * u64::from(HASH_GROUP_LEN)).await?;
    let Part { chunk_len, start, bytes, proof, .. } = shared.stores().read(chunk, offset, len).await?;
    Ok((ChunkAnswer::Got { chunk_len, start, len: len_u32(bytes.len()), proof }, bytes, room))
}

/// Looks at a copy that a reader says is wrong. What is found is counted and logged by the store.
async fn verify(shared: &Shared, peer: &Peer, session: SessionId, token: Mac, chunk: ChunkId) -> Answer {
    shared.registration()?.check_read(chunk, session, token)?;
    let enough = |_| Fault::new(Kind::Busy, format!("{chunk}: {VERIFIES_MAX} other copies are being verified"));
    let _turn = shared.verifies.try_acquire().map_err(enough)?;
    match shared.stores().verify(chunk).await {
        Ok(()) => Ok(ChunkAnswer::Verified { sound: true }),
        Err(error @ StoreError::Corrupt { .. }) => {
            info!(%peer, chunk = %chunk, error = %error, "a reader was right about a damaged copy");
            shared.look_again.notify_one();
            Ok(ChunkAnswer::Verified { sound: false })
        }
        Err(error) => Err(error.into()),
    }
}

async fn list(shared: &Shared, peer: &Peer, pg: PgId, after: Option<ChunkId>, limit: u32) -> Answer {
    peer.require(&[Role::Chunkserver, Role::Metaserver, Role::Admin], "list")?;
    let pg_count = shared.registration()?.map.layout.pg_count();
    if pg.0 >= pg_count {
        return Err(Fault::new(Kind::Invalid, format!("{pg}: there are {pg_count} placement groups")));
    }
    let limit = len_usize(u64::from(limit.min(LIST_MAX)));
    let (chunks, more) = shared.stores().list(pg, pg_count, after, limit).await?;
    Ok(ChunkAnswer::Listed { chunks, more })
}

/// Vouches for copies to a server that wants to drop its own: that is a touch, and voids this server's own wishes.
async fn confirm(shared: &Shared, peer: &Peer, epoch: Epoch, rounds: Vec<(ChunkRef, u64)>) -> Answer {
    peer.require(&[Role::Chunkserver], "confirm")?;
    if rounds.len() > BATCH_MAX {
        return Err(Fault::new(Kind::Invalid, format!("confirmation of {} chunks at once", rounds.len())));
    }
    let here = shared.registration()?.map.epoch;
    if epoch != here {
        return Err(Fault::new(Kind::Stale, format!("cluster epoch {epoch}: here it is {here}")));
    }
    let chunks: Vec<ChunkRef> = rounds.iter().map(|(chunk, _)| *chunk).collect();
    let held = shared.stores().touch(&chunks).await?;
    let rounds = rounds.into_iter().zip(held).filter(|(_, held)| *held).map(|((chunk, nonce), _)| (chunk.id, nonce));
    Ok(ChunkAnswer::Confirmed { rounds: rounds.collect() })
}

fn ping(shared: &Shared) -> Answer {
    let server = shared.registration()?.server;
    if !shared.stores().takes_writes() {
        return Err(Fault::new(
            Kind::Unavailable,
            "all data directories are fenced after disk errors, or their disks do not answer",
        ));
    }
    Ok(ChunkAnswer::Pong { server })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_that_drip_do_not_hold_their_room_for_ever() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut wire, mut sender) = (Wire::new(Box::new(near)), Wire::new(Box::new(far)));
        let drip = async {
            loop {
                sender.send_data(1, &[&[0]]).await.unwrap(); // each within STALL_MAX
                tokio::time::sleep(STALL_MAX * 9 / 10).await;
            }
        };
        let began = Instant::now();
        let error = tokio::select! {
            error = discard(&mut wire, 1, 1 << 20) => error.unwrap_err(),
            () = drip => unreachable!("it drips for ever"),
        };
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, BODY_MAX));
    }
}
