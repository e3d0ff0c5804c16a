//! The metaserver's side.

use super::codec::{ServerTransport, frames};
use super::{CONNECTIONS_MAX, IDLE_MAX, REQUESTS_PER_CONNECTION};
use crate::hello::{self, Me, Peer, Plane};
use crate::net::{Conn, Listener, serve_connections};
use crate::proto::meta::{MetaRequest, MetaResponse};
use crate::task::Tasks;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use tarpc::ServerError;
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel, Config};
use tracing::{debug, warn};

/// Answers one request of one peer. Which roles may ask what is for it to check ([`Peer::require`]).
///
/// The future is dropped when the caller gives up, its connection breaks or its deadline passes. For a service `S`:
/// ```ignore
/// let handler: Handler = Arc::new(move |peer, context, request| {
///     let service = MyService { peer, ..shared.clone() };
///     Box::pin(service.serve().serve(context, request))
/// });
/// ```
pub type Handler =
    Arc<dyn Fn(Arc<Peer>, Context, MetaRequest) -> BoxFuture<'static, Result<MetaResponse, ServerError>> + Send + Sync>;

/// Serves every connection of this listener until `tasks` stop: at most [`CONNECTIONS_MAX`] at once, each with at most
/// [`REQUESTS_PER_CONNECTION`] requests under way. `me` may learn its cluster later.
pub fn serve(tasks: &Tasks, listener: Box<dyn Listener>, me: Me, handler: Handler) {
    let group = tasks.clone();
    serve_connections(tasks, listener, CONNECTIONS_MAX, move |conn, from| {
        connection(conn, from, me.clone(), Arc::clone(&handler), group.clone())
    });
}

async fn connection(mut conn: Conn, from: String, me: Me, handler: Handler, tasks: Tasks) {
    let peer = match hello::welcome(&mut conn, &me, Plane::Control, &from).await {
        Ok(peer) => Arc::new(peer),
        Err(fault) => {
            warn!(error = %fault, "connection refused");
            return;
        }
    };
    let transport: ServerTransport<MetaRequest, MetaResponse> = frames(conn);
    let config = Config { pending_response_buffer: REQUESTS_PER_CONNECTION };
    let channel = BaseChannel::new(config, transport).max_concurrent_requests(REQUESTS_PER_CONNECTION);
    let mut requests = Box::pin(channel.requests());
    loop {
        match tokio::time::timeout(IDLE_MAX, requests.next()).await {
            Ok(Some(Ok(request))) => {
                let (peer, handler) = (Arc::clone(&peer), Arc::clone(&handler));
                let answer = tarpc::server::serve(move |context, message| handler(peer, context, message));
                tasks.spawn_until_stop(request.execute(answer));
            }
            Ok(Some(Err(error))) => {
                warn!(peer = %peer, error = %with_sources(&error), "connection lost");
                return;
            }
            Ok(None) => return,
            Err(_) if requests.channel().in_flight_requests() == 0 => {
                debug!(peer = %peer, "idle connection closed");
                return;
            }
            Err(_) => {}
        }
    }
}

/// An error with what caused it, on one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
