//! `Net` and `Clock` of a simulated host: turmoil's network, turmoil's time.

use common::net::{Conn, Listener, Net};
use common::time::{Clock, Time};
use futures::future::BoxFuture;
use std::io;
use std::time::Duration;

/// Connections of the simulated host that is running. Listening addresses are bound on every interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimNet;

struct SimListener {
    inner: turmoil::net::TcpListener,
    addr: String,
}

impl Net for SimNet {
    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Conn>> {
        Box::pin(async move {
            let conn: Conn = Box::new(turmoil::net::TcpStream::connect(to).await?);
            Ok(conn)
        })
    }

    fn bind<'a>(&'a self, at: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let port = at.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            let port = port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an address is host:port"))?;
            let inner = turmoil::net::TcpListener::bind(("0.0.0.0", port)).await?;
            let addr = inner.local_addr()?.to_string();
            let listener: Box<dyn Listener> = Box::new(SimListener { inner, addr });
            Ok(listener)
        })
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Conn, String)>> {
        Box::pin(async move {
            let (stream, from) = self.inner.accept().await?;
            let conn: Conn = Box::new(stream);
            Ok((conn, from.to_string()))
        })
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}

/// Wall-clock time of the simulation: starts at the same moment in each run.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimClock;

/// When every simulation starts, in seconds since 1970.
const START_SECS: u64 = 1_700_000_000;

impl Clock for SimClock {
    fn now(&self) -> Time {
        let since = turmoil::sim_elapsed().unwrap_or_default();
        let secs = START_SECS.saturating_add(since.as_secs());
        Time { secs: i64::try_from(secs).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }

    fn uptime(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_default()
    }
}
