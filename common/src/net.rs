//! The network as a small seam: TCP in production, an in-memory network in simulation.

mod blocking;

pub use blocking::Blocking;

use crate::task::Tasks;
use futures::future::BoxFuture;
use std::any::Any;
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tracing::warn;

/// How long to wait after a failed `accept`: it usually means that the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The lowest port that [`free_port`] chooses.
pub const FREE_PORT_MIN: u16 = 10_000;
/// Where ports end that the kernel does not give to outgoing connections, if the kernel does not say.
const FREE_PORT_END: u16 = 32_768;
/// How many random ports are tried.
const FREE_PORT_TRIES: u32 = 1000;

/// A connection: bytes both ways, in order.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The connection of the kernel below; the other way round if there is none.
    fn into_tcp(self: Box<Self>) -> Result<tokio::net::TcpStream, Conn>;
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {
    fn into_tcp(self: Box<Self>) -> Result<tokio::net::TcpStream, Conn> {
        let any: Box<dyn Any + Send> = self;
        match any.downcast::<tokio::net::TcpStream>() {
            Ok(tcp) => Ok(*tcp),
            Err(other) => Err(other.downcast::<T>().expect("what it was a moment ago")),
        }
    }
}

/// An open connection of whatever network this is.
pub type Conn = Box<dyn Stream>;

/// Where connections come from. Addresses are `host:port`; names are resolved at each connect.
pub trait Net: Send + Sync + 'static {
    /// Opens a connection. The caller sets the deadline.
    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Conn>>;
    /// Listens. Port 0 picks a free one.
    fn bind<'a>(&'a self, at: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
}

/// An open listening socket.
pub trait Listener: Send + 'static {
    /// The next connection and the address it came from.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Conn, String)>>;
    /// The address it listens at, `ip:port`.
    fn local_addr(&self) -> String;
}

/// A port of 127.0.0.1 that nobody listens on and that is not in `taken`, below those the kernel gives to outgoing
/// connections: one of these may be gone when a server starts again. For clusters on one machine, whose servers must know
/// each other's ports before they start; `random` chooses.
///
/// # Errors
/// `AddrInUse`: none was found.
pub fn free_port(taken: &BTreeSet<u16>, mut random: impl FnMut() -> u64) -> io::Result<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first: Option<u16> = range.split_whitespace().next().and_then(|word| word.parse().ok());
    let end = first.filter(|first| *first > FREE_PORT_MIN + 1000).unwrap_or(FREE_PORT_END);
    for _ in 0..FREE_PORT_TRIES {
        let within = u16::try_from(random() % u64::from(end - FREE_PORT_MIN)).expect("below a u16");
        let port = FREE_PORT_MIN + within;
        if !taken.contains(&port) && std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    let none = format!("no free port on 127.0.0.1 between {FREE_PORT_MIN} and {end}");
    Err(io::Error::new(io::ErrorKind::AddrInUse, none))
}

/// Accepts connections until `tasks` stop, at most `most` at once, and runs `serve` for each on a task of its own, which
/// is dropped when `tasks` stop. It gets the connection and the address it came from.
pub fn serve_connections<F>(
    tasks: &Tasks,
    mut listener: Box<dyn Listener>,
    most: usize,
    serve: impl Fn(Conn, String) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let group = tasks.clone();
    tasks.spawn("accept", |stop| async move {
        let room = Arc::new(Semaphore::new(most));
        loop {
            let permit = Arc::clone(&room).acquire_owned();
            let accepted = async { (permit.await.expect("never closed"), listener.accept().await) };
            let (permit, accepted) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((conn, from)) => {
                    let served = serve(conn, from);
                    group.spawn_until_stop(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

/// TCP with `TCP_NODELAY`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNet;

struct TcpListener(tokio::net::TcpListener);

impl Net for TcpNet {
    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Conn>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let conn: Conn = Box::new(stream);
            Ok(conn)
        })
    }

    fn bind<'a>(&'a self, at: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(at).await?;
            let listener: Box<dyn Listener> = Box::new(TcpListener(listener));
            Ok(listener)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Conn, String)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            let conn: Conn = Box::new(stream);
            Ok((conn, from.to_string()))
        })
    }

    fn local_addr(&self) -> String {
        self.0.local_addr().map(|a| a.to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn one_more_connection_than_allowed_waits_until_another_ends() {
        let tasks = Tasks::new();
        let listener = TcpNet.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        serve_connections(&tasks, listener, 1, |mut conn, _| async move {
            let _ = conn.write_all(b"x").await;
            let _ = conn.read_u8().await;
        });
        let mut first = TcpNet.connect(&addr).await.unwrap();
        first.read_u8().await.unwrap();
        let mut second = TcpNet.connect(&addr).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), second.read_u8()).await.is_err(), "not its turn");
        drop(first);
        second.read_u8().await.unwrap();
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
        assert!(second.read_u8().await.is_err(), "closed with the group");
    }
}
