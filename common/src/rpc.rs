//! The control plane: [`Meta`](crate::proto::meta::Meta) over `tarpc`, in `postcard` frames, behind a hello.
//!
//! [`serve`] is the metaserver's side, [`Caller`] everybody else's (clients, chunkservers, administrators, and
//! metaservers among themselves). This is the only module that sets up such a connection.
//!
//! Promises:
//! 1. Every wait has a limit; when it is over, the error says which addresses were tried and why each failed.
//! 2. A request is sent again only where that is safe: [`Caller::call`] is for requests that carry an id or change
//!    nothing, [`Caller::once`] sends at most once.
//! 3. A peer that sends a frame over [`FRAME_MAX`], garbage, or no hello loses its connection and nothing else.
//! 4. A caller that gives up cancels its request on the server too.
//!
//! Time: `tarpc` counts deadlines on the machine's monotonic clock. Here the deciding timer is always tokio's (a test or
//! a simulation drives it); what goes to the server is the time left in whole seconds, rounded up, and serves to drop
//! abandoned work only.
//!
//! Cost: a call is one frame each way, an `mpsc` hop to the task that owns the connection and one task on the server.
//! `tarpc`'s own spans are switched off by the default log filter ([`crate::config::start_logging`]); its trace
//! context is not sent.
//!
//! Left out: TLS; compression.

use std::time::Duration;

mod caller;
mod codec;
mod server;

pub use caller::Caller;
pub use server::{Handler, serve};

/// The longest frame either side accepts, in bytes. A peer that sends a longer one is disconnected.
pub const FRAME_MAX: usize = 8 << 20;
/// The longest [`crate::proto::meta::Meta::raft`] message, in bytes: what fits a frame with room for its head.
pub const RAFT_MESSAGE_MAX: usize = FRAME_MAX - 1024;
/// Requests of one connection that a server works on at once. More are answered with `Busy`.
pub const REQUESTS_PER_CONNECTION: usize = 1024;
/// Requests a caller has under way at once on a connection; more wait on the caller's side.
const REQUESTS_IN_FLIGHT: usize = 512;
/// Connections a server keeps; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 16_384;
/// A connection without a request for this long is closed by the server.
pub const IDLE_MAX: Duration = Duration::from_secs(300);
/// The longest deadline that is told to a server.
const DEADLINE_MAX: Duration = Duration::from_secs(3600);
