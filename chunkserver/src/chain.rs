//! A put down the replica chain (van Renesse and Schneider 2004, without its ordering: chunks do not change).
//!
//! Each frame is handed on to the next server as it arrives, before it is hashed or written here, so three disks work
//! at the same time and no hop holds a chunk back. The answer says of this server and of every one behind it whether it
//! holds the chunk durably. A break downstream does not spoil what this server and those before it have stored: the
//! servers behind the break get a fault each, and the writer puts to others.

use crate::service::{BODY_MAX, Shared, bad_request, discard, receive};
use crate::store::Incoming;
use common::auth::Receipt;
use common::fault::{Fault, Kind};
use common::id::ServerId;
use common::proto::chunk::{CHAIN_MAX, ChunkAnswer, ChunkRef, ChunkRequest, WriteAuth};
use common::units::CHUNK_SIZE_MAX;
use common::wire::{Lease, Wire};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a frame may take to leave for the next server, for each server that is still to come: who is nearer to the
/// place that stands still gives up first, so that only what is behind it is lost.
const FORWARD_STALL_PER_SERVER: Duration = Duration::from_secs(8);
/// How long the rest of a chain may take to answer when all bytes are sent, for each server in it.
const ANSWER_MAX_PER_SERVER: Duration = Duration::from_secs(10);

type Results = Vec<(ServerId, Result<Receipt, Fault>)>;

/// Receives a chunk, hands it on, stores it here, and answers for all. An error: the connection is of no more use.
pub(crate) async fn put(
    shared: &Shared,
    wire: &mut Wire,
    id: u32,
    auth: WriteAuth,
    chunk: ChunkRef,
    chain: Vec<(ServerId, String)>,
) -> io::Result<Result<ChunkAnswer, Fault>> {
    if chain.len() >= CHAIN_MAX || chunk.len == 0 || chunk.len > CHUNK_SIZE_MAX {
        return Err(bad_request(format!("put of {} bytes to {} more servers", chunk.len, chain.len())));
    }
    let admitted = async {
        let registration = shared.registration()?;
        registration.check_write(&auth)?;
        let room = Arc::new(shared.room.put(chain.len(), Incoming::memory(chunk.len)).await?);
        Ok((registration, Arc::clone(&room), Incoming::new(chunk)?.in_room(room)))
    };
    let (registration, _room, mut incoming) = match admitted.await {
        Ok(admitted) => admitted,
        Err(fault) => {
            discard(wire, id, u64::from(chunk.len)).await?;
            return Ok(Err(fault));
        }
    };
    let mut next = Downstream::open(shared, auth, chunk, chain).await;
    let until = Instant::now() + BODY_MAX;
    while incoming.rest() > 0 {
        let count = receive(wire, id, incoming.room(), until).await?;
        next.forward(&incoming.room()[..count]).await;
        incoming.filled(count);
    }
    let store = async { shared.stores().put(incoming.finish()?).await };
    let (own, behind) = tokio::join!(store, next.answer());
    let own: Result<Receipt, Fault> = match own {
        Ok(()) => Ok(registration.receipt(chunk, auth.attempt)),
        Err(error) => Err(Fault::from(error).context(registration.server)),
    };
    let mut results = vec![(registration.server, own)];
    results.extend(behind);
    Ok(Ok(ChunkAnswer::Put(results)))
}

/// The rest of the chain, as this server sees it.
struct Downstream {
    /// Who it consists of, the next one first.
    servers: Vec<ServerId>,
    link: Link,
}

enum Link {
    /// The connection to the next server, and the request that goes out with the first bytes.
    Open { lease: Box<Lease>, number: u32, request: Option<ChunkRequest> },
    /// Nobody is behind us, or this went wrong.
    Gone(Fault),
}

impl Downstream {
    async fn open(shared: &Shared, auth: WriteAuth, chunk: ChunkRef, chain: Vec<(ServerId, String)>) -> Downstream {
        let servers: Vec<ServerId> = chain.iter().map(|(server, _)| *server).collect();
        let mut rest = chain.into_iter();
        let Some((server, addr)) = rest.next() else {
            return Downstream { servers, link: Link::Gone(Fault::new(Kind::Unavailable, "nobody is behind")) };
        };
        let link = match shared.pool.connection(server, &addr, Instant::now() + FORWARD_STALL_PER_SERVER).await {
            Ok(mut lease) => {
                let request = ChunkRequest::Put { auth, chunk, chain: rest.collect() };
                Link::Open { number: lease.next_request(), request: Some(request), lease: Box::new(lease) }
            }
            Err(fault) => Link::Gone(fault),
        };
        Downstream { servers, link }
    }

    /// Hands bytes on. What goes wrong is remembered: this server's own copy does not depend on it.
    async fn forward(&mut self, bytes: &[u8]) {
        let Link::Open { lease, number, request } = &mut self.link else { return };
        let sending = async {
            match request.take() {
                Some(request) => lease.wire.send(*number, &request, &[bytes]).await,
                None => lease.wire.send_data(*number, &[bytes]).await,
            }
        };
        let limit = FORWARD_STALL_PER_SERVER * u32::try_from(self.servers.len()).expect("at most CHAIN_MAX");
        let problem = match tokio::time::timeout(limit, sending).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took no bytes for {limit:?}"),
        };
        let text = format!("put: handing on to {}: {problem}", self.servers[0]);
        self.link = Link::Gone(Fault::new(Kind::Unavailable, text));
    }

    /// What everybody behind this server says, in chain order.
    async fn answer(self) -> Results {
        let Downstream { servers, link } = self;
        let fault = match link {
            Link::Gone(fault) => fault,
            Link::Open { mut lease, number, .. } => match read_answer(&mut lease, number, &servers).await {
                Ok(results) => {
                    lease.keep();
                    return results;
                }
                Err(fault) => fault,
            },
        };
        servers.into_iter().map(|server| (server, Err(fault.clone()))).collect()
    }
}

/// The answer of the next server: a line for each server of `servers`, in their order.
async fn read_answer(lease: &mut Lease, number: u32, servers: &[ServerId]) -> Result<Results, Fault> {
    let limit = ANSWER_MAX_PER_SERVER * u32::try_from(servers.len()).expect("at most CHAIN_MAX");
    let next = servers[0];
    let unusable = |problem: String| Fault::new(Kind::Unavailable, format!("put: {next}: {problem}"));
    let mut said = match tokio::time::timeout(limit, lease.wire.receive::<ChunkAnswer>()).await {
        Ok(Ok(Some((answers, ChunkAnswer::Put(results))))) if answers == number => results,
        Ok(Ok(Some((_, ChunkAnswer::Failed(fault))))) => return Err(fault.context(format_args!("put: {next}"))),
        Ok(Ok(Some(_))) => return Err(unusable("an answer to something else".into())),
        Ok(Ok(None)) => return Err(unusable("the connection was closed".into())),
        Ok(Err(error)) => return Err(unusable(error.to_string())),
        Err(_) => return Err(unusable(format!("no answer within {limit:?}"))),
    };
    let mut find = |server: ServerId| match said.iter().position(|(who, _)| *who == server) {
        Some(at) => said.swap_remove(at),
        None => (server, Err(unusable(format!("said nothing of {server}")))),
    };
    Ok(servers.iter().map(|server| find(*server)).collect())
}
