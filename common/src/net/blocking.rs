//! A TCP connection that one thread has for itself and waits at.
//!
//! Who waits in the kernel is woken by the bytes themselves; on an async runtime one thread is woken by them, and then
//! wakes another that may touch the disk. Each wake-up costs about as much as a small read.

use super::Conn;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Such a connection. Reads and writes end, or fail with `TimedOut`, within the limit it was made with: a future that waits for
/// nothing else is ready when it is polled for the first time. So no timer around it ever fires; what is to end even if the
/// peer sends or takes a byte now and then has [`Blocking::ends_by`].
#[derive(Debug)]
pub struct Blocking {
    tcp: std::net::TcpStream,
    end: Option<Instant>,
}

impl Blocking {
    /// Takes a connection away from its runtime. `Ok(Err)`: it is none of TCP, and may be used as before.
    ///
    /// # Errors
    /// The kernel does not want this; the connection is lost.
    pub fn new(conn: Conn, limit: Duration) -> io::Result<Result<Blocking, Conn>> {
        let tcp = match conn.into_tcp() {
            Ok(tcp) => tcp.into_std()?,
            Err(conn) => return Ok(Err(conn)),
        };
        tcp.set_nonblocking(false)?;
        tcp.set_read_timeout(Some(limit))?;
        tcp.set_write_timeout(Some(limit))?;
        Ok(Ok(Blocking { tcp, end: None }))
    }

    /// From `end` on reads and writes fail with `TimedOut`; one under way may take the limit longer.
    pub fn ends_by(&mut self, end: Instant) {
        self.end = Some(end);
    }

    /// Gives the connection back to the runtime that this is called in.
    ///
    /// # Errors
    /// The kernel does not want this; the connection is lost.
    pub fn into_conn(self) -> io::Result<Conn> {
        self.tcp.set_nonblocking(true)?;
        let conn: Conn = Box::new(tokio::net::TcpStream::from_std(self.tcp)?);
        Ok(conn)
    }

    /// Waits until there is something to read, or the end of the connection, but not for longer than `limit`: whether there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_coming(&self, limit: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Blocking {
    /// Does it again when a signal interrupts it; says in one way that it is too late.
    fn whole<T>(&mut self, mut call: impl FnMut(&mut std::net::TcpStream) -> io::Result<T>) -> Poll<io::Result<T>> {
        let late = || Err(io::ErrorKind::TimedOut.into());
        Poll::Ready(loop {
            if self.end.is_some_and(|end| Instant::now() >= end) {
                break late();
            }
            match call(&mut self.tcp) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break late(),
                done => break done,
            }
        })
    }
}

impl AsyncRead for Blocking {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        self.whole(|tcp| tcp.read(room)).map_ok(|read| buf.advance(read))
    }
}

impl AsyncWrite for Blocking {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.whole(|tcp| tcp.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.whole(|tcp| tcp.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.tcp.shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Net, TcpNet};
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn pair() -> (Conn, Conn) {
        let mut listener = TcpNet.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        let (near, far) = tokio::join!(TcpNet.connect(&addr), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_goes_to_a_thread_and_comes_back() {
        let (mut near, far) = pair().await;
        let limit = Duration::from_millis(100);
        let mut far = Blocking::new(far, limit).unwrap().ok().expect("TCP");
        assert!(!far.is_coming(Duration::ZERO).unwrap());
        near.write_all(b"one").await.unwrap();
        let far = std::thread::spawn(move || {
            assert!(far.is_coming(Duration::from_secs(20)).unwrap());
            let mut read = [0; 3];
            far.read_exact(&mut read).now_or_never().expect("never pending").unwrap();
            far.write_all(&read).now_or_never().expect("never pending").unwrap();
            far
        });
        let mut far = far.join().unwrap();
        let mut read = [0; 3];
        near.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"one");
        let began = Instant::now();
        let late = far.read_u8().now_or_never().expect("never pending").unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limit);
        let full = loop {
            if let Err(error) = far.write(&vec![0; 1 << 20]).now_or_never().expect("never pending") {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut, "nobody reads");
        let mut far = far.into_conn().unwrap();
        near.write_all(b"two").await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"two");
    }

    /// A byte now and then keeps nobody waiting for ever.
    #[tokio::test]
    async fn it_ends_even_if_the_peer_drips() {
        let (mut near, far) = pair().await;
        let mut far = Blocking::new(far, Duration::from_secs(20)).unwrap().ok().expect("TCP");
        let far = std::thread::spawn(move || {
            far.ends_by(Instant::now() + Duration::from_millis(200));
            let late = far.read_exact(&mut [0; 1 << 20]).now_or_never().expect("never pending").unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
            assert!(far.write_all(b"x").now_or_never().expect("never pending").is_err(), "nor are bytes sent");
            far.ends_by(Instant::now() + Duration::from_secs(20));
            far.read_u8().now_or_never().expect("never pending").unwrap()
        });
        while !far.is_finished() {
            near.write_all(b"d").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(far.join().unwrap(), b'd');
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_coming_too() {
        let (near, far) = pair().await;
        let mut far = Blocking::new(far, Duration::from_secs(20)).unwrap().ok().expect("TCP");
        drop(near);
        assert!(far.is_coming(Duration::from_secs(20)).unwrap());
        assert_eq!(far.read(&mut [0; 8]).now_or_never().expect("never pending").unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_not_tcp_stays_what_it_is() {
        let (mut near, far) = tokio::io::duplex(16);
        let Ok(Err(mut far)) = Blocking::new(Box::new(far), Duration::from_secs(1)) else { panic!("it is in memory") };
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }
}
