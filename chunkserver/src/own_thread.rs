//! Connections with a thread of their own: it waits for the next request, works at the disk and answers, until for a while
//! none comes.
//!
//! So a read, or a small put, wakes one thread here. On the async runtime it is three in a row: the runtime's by the
//! request, a disk thread, and the runtime's again for the answer and what follows. With three copies, on few cores, that
//! is most of what a small write costs. There are [`OWN_THREADS_MAX`] such threads; connections beyond, those of other
//! servers, those without a socket (simulation) and puts down a chain, which wait for others most of the time, are served from the
//! runtime.

use crate::service::{BODY_MAX, STALL_MAX, Shared, handle, handle_short};
use common::hello::{Peer, Role};
use common::net::Blocking;
use common::proto::chunk::ChunkRequest;
use common::units::len_u32;
use common::wire::Wire;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

/// Threads that serve one connection each, at most.
pub(crate) const OWN_THREADS_MAX: usize = 16;
/// How long such a thread waits for the next request: a client that reads or syncs one block after another, here and on other
/// servers, asks sooner.
const LINGER: Duration = Duration::from_millis(20);

/// Longer reads are left to the runtime, in bytes.
const READ_LEN_MAX: u32 = 1 << 20;

/// A request, and its number on the connection.
type Received = (u32, ChunkRequest);

/// A thread for a connection on which this request came, if it is to have one.
pub(crate) fn take(shared: &Shared, peer: &Peer, request: &ChunkRequest) -> Option<OwnedSemaphorePermit> {
    let is_meant = peer.hello.role == Role::Client && is_short(request);
    is_meant.then(|| Arc::clone(&shared.own_threads).try_acquire_owned().ok()).flatten()
}

/// Whether it asks no other server, and holds little while the disk takes its time: in place no timer takes that back.
fn is_short(request: &ChunkRequest) -> bool {
    match request {
        ChunkRequest::Put { .. } | ChunkRequest::Verify { .. } => false,
        ChunkRequest::Get { len, .. } => *len <= READ_LEN_MAX,
        _ => true,
    }
}

/// Serves a request, and those that follow it soon. One among them that is for the runtime is left to the caller.
///
/// # Errors
/// The connection is of no more use.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    peer: &Peer,
    wire: Wire,
    (id, request): Received,
    thread: OwnedSemaphorePermit,
) -> io::Result<(Wire, Option<Received>)> {
    let mut wire = match wire.into_blocking(STALL_MAX)? {
        Ok(wire) => wire,
        Err(mut same) => {
            handle(shared, peer, &mut same, id, request).await?;
            return Ok((same, None));
        }
    };
    let (_caller, dropped) = oneshot::channel::<()>();
    let (serving, peer) = (Arc::clone(shared), peer.clone());
    let served = shared.world.on_own_thread(move || async move {
        let left = one_after_another(&serving, &peer, &mut wire, (id, request), dropped).await;
        drop((serving, thread)); // in this order: see `ended`
        left.map(|left| (wire, left))
    });
    let (wire, left) = served.await?;
    Ok((wire.into_async()?, left))
}

/// Waits until no thread uses the stores any more, once no connection is served. False: some disk does not answer.
pub(crate) async fn ended(shared: &Shared, limit: Duration) -> bool {
    let all = shared.own_threads.acquire_many(len_u32(OWN_THREADS_MAX));
    tokio::time::timeout(limit, all).await.is_ok()
}

/// `dropped`: with the call, when nobody wants the connection any more.
async fn one_after_another(
    shared: &Shared,
    peer: &Peer,
    wire: &mut Wire<Blocking>,
    (mut id, mut request): Received,
    mut dropped: oneshot::Receiver<()>,
) -> io::Result<Option<Received>> {
    loop {
        wire.ends_by(Instant::now() + BODY_MAX);
        handle_short(shared, peer, wire, id, request).await?;
        if !wire.is_coming(LINGER)? || matches!(dropped.try_recv(), Err(TryRecvError::Closed)) {
            return Ok(None);
        }
        wire.ends_by(Instant::now() + STALL_MAX);
        (id, request) = wire.receive::<ChunkRequest>().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !is_short(&request) {
            return Ok(Some((id, request)));
        }
    }
}
