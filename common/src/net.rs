//! The network as a small seam: TCP in production, an in-memory network in simulation.

use futures::future::BoxFuture;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection: bytes both ways, in order.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

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
