//! One connection: sending and receiving frames.

use crate::net::{Blocking, Conn};
use crate::units::{len_u32, len_usize};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

/// Length of a frame's head, in bytes.
pub const HEAD_LEN: usize = 16;
/// The longest payload of a control frame, in bytes.
pub const CONTROL_MAX: usize = 1 << 20;
/// The longest payload of a data frame, in bytes.
pub const DATA_MAX: usize = 256 << 10;
/// Bytes read ahead, so that a head, and a small frame behind it, cost one read. What lies in there is copied once more,
/// so it is short against a data frame.
const AHEAD_LEN: usize = 4 << 10;

const CONTROL: u8 = 1;
const DATA: u8 = 2;

/// An open connection of the data plane, behind its hello. After an error it must not be used again.
pub struct Wire<C = Conn> {
    conn: C,
    ahead: Box<[u8; AHEAD_LEN]>,
    /// `ahead[from..to]` was read from the connection and not yet taken.
    from: usize,
    to: usize,
}

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    len: usize,
    kind: u8,
    request: u32,
    crc: u32,
}

fn encode_head(len: usize, kind: u8, request: u32, payload: &[u8]) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..4].copy_from_slice(&len_u32(len).to_le_bytes());
    head[4] = kind;
    head[8..12].copy_from_slice(&request.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), payload);
    head[12..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn decode_head(head: &[u8; HEAD_LEN]) -> io::Result<Head> {
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    let len = len_usize(u64::from(number(0)));
    let limit = match head[4] {
        CONTROL => CONTROL_MAX,
        DATA => DATA_MAX,
        kind => return Err(invalid(format!("a frame of unknown kind {kind}"))),
    };
    if len == 0 || len > limit || head[5..8] != [0; 3] {
        return Err(invalid(format!("a frame of {len} bytes, where 1 to {limit} are allowed")));
    }
    let head_crc = crc32c::crc32c(&head[..12]);
    let crc = number(12);
    if head[4] == DATA && crc != head_crc {
        return Err(invalid("a damaged frame head".into()));
    }
    Ok(Head { len, kind: head[4], request: number(8), crc })
}

impl Wire {
    /// Frames on a connection whose hello is done.
    pub fn new(conn: Conn) -> Wire {
        Wire { conn, ahead: Box::new([0; AHEAD_LEN]), from: 0, to: 0 }
    }

    /// For one thread that waits at it, for `limit` at most each time: [`Blocking::new`].
    ///
    /// # Errors
    /// As there.
    pub fn into_blocking(self, limit: Duration) -> io::Result<Result<Wire<Blocking>, Wire>> {
        let Wire { conn, ahead, from, to } = self;
        Ok(match Blocking::new(conn, limit)? {
            Ok(conn) => Ok(Wire { conn, ahead, from, to }),
            Err(conn) => Err(Wire { conn, ahead, from, to }),
        })
    }
}

impl Wire<Blocking> {
    /// [`Blocking::into_conn`].
    ///
    /// # Errors
    /// As there.
    pub fn into_async(self) -> io::Result<Wire> {
        let Wire { conn, ahead, from, to } = self;
        Ok(Wire { conn: conn.into_conn()?, ahead, from, to })
    }

    /// [`Blocking::ends_by`].
    pub fn ends_by(&mut self, end: Instant) {
        self.conn.ends_by(end);
    }

    /// [`Blocking::is_coming`].
    ///
    /// # Errors
    /// As there.
    pub fn is_coming(&self, limit: Duration) -> io::Result<bool> {
        Ok(self.from < self.to || self.conn.is_coming(limit)?)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Wire<C> {
    /// Sends a control frame and, in the same writes, data frames that carry these bytes one after another.
    ///
    /// # Errors
    /// The connection's. `InvalidInput`: the control value is longer than [`CONTROL_MAX`]; nothing was sent.
    pub async fn send<T: Serialize>(&mut self, request: u32, control: &T, data: &[&[u8]]) -> io::Result<()> {
        let payload = postcard::to_stdvec(control).map_err(io::Error::other)?;
        if payload.len() > CONTROL_MAX {
            let text = format!("a control frame of {} bytes, at most {CONTROL_MAX} are allowed", payload.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let head = encode_head(payload.len(), CONTROL, request, &payload);
        self.write(&[&head, &payload], request, data).await
    }

    /// Sends data frames that carry these bytes one after another.
    pub async fn send_data(&mut self, request: u32, data: &[&[u8]]) -> io::Result<()> {
        self.write(&[], request, data).await
    }

    /// Writes what is in front, then the data, cut into frames: all in as few vectored writes as the kernel takes.
    async fn write(&mut self, front: &[&[u8]], request: u32, data: &[&[u8]]) -> io::Result<()> {
        let heads: Vec<[u8; HEAD_LEN]> = cut(data).map(|len| encode_head(len, DATA, request, &[])).collect();
        let mut slices: Vec<IoSlice<'_>> = front.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = data.iter().copied().filter(|part| !part.is_empty());
        let mut part: &[u8] = &[];
        for (head, mut room) in heads.iter().zip(cut(data)) {
            slices.push(IoSlice::new(head));
            while room > 0 {
                if part.is_empty() {
                    part = rest.next().expect("the cuts add up to the parts");
                }
                let (now, later) = part.split_at(room.min(part.len()));
                slices.push(IoSlice::new(now));
                room -= now.len();
                part = later;
            }
        }
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match self.conn.write_vectored(left).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => IoSlice::advance_slices(&mut left, written),
            }
        }
        self.conn.flush().await
    }

    /// Receives a control frame. `None`: the peer closed the connection between two frames.
    ///
    /// # Errors
    /// The connection's; `InvalidData`: this is not a control frame that holds such a value.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(u32, T)>> {
        let Some(bytes) = self.head_bytes().await? else { return Ok(None) };
        let head = decode_head(&bytes)?;
        if head.kind != CONTROL {
            return Err(invalid("a data frame where a control frame was due".into()));
        }
        let mut payload = vec![0; head.len];
        self.fill(&mut payload).await?;
        if crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &payload) != head.crc {
            return Err(invalid("a damaged control frame".into()));
        }
        match postcard::take_from_bytes(&payload) {
            Ok((value, [])) => Ok(Some((head.request, value))),
            Ok(_) => Err(invalid("a control frame with bytes too many".into())),
            Err(error) => Err(invalid(format!("a control frame that says nothing: {error}"))),
        }
    }

    /// Receives one data frame into the front of `room`; how many bytes it was, 1 or more.
    ///
    /// # Errors
    /// The connection's; `InvalidData`: no data frame of this request, or one longer than `room`.
    pub async fn receive_data(&mut self, request: u32, room: &mut [u8]) -> io::Result<usize> {
        let bytes = self.head_bytes().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let head = decode_head(&bytes)?;
        if head.kind != DATA || head.request != request {
            return Err(invalid(format!("a frame that is no data of request {request}")));
        }
        if head.len > room.len() {
            return Err(invalid(format!("{} bytes of data where {} were due", head.len, room.len())));
        }
        self.fill(&mut room[..head.len]).await?;
        Ok(head.len)
    }

    /// Receives data frames until `room` is full.
    ///
    /// # Errors
    /// As [`Wire::receive_data`].
    pub async fn receive_all(&mut self, request: u32, room: &mut [u8]) -> io::Result<()> {
        let mut have = 0;
        while have < room.len() {
            have += self.receive_data(request, &mut room[have..]).await?;
        }
        Ok(())
    }

    /// True if the connection is open and silent, as it should be between two requests.
    pub async fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let conn = &mut self.conn;
        let silent = poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut *conn).poll_read(cx, &mut buf).is_pending())
        });
        self.from == self.to && silent.await
    }

    async fn head_bytes(&mut self) -> io::Result<Option<[u8; HEAD_LEN]>> {
        while self.to - self.from < HEAD_LEN {
            self.ahead.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            match self.conn.read(&mut self.ahead[self.to..]).await? {
                0 if self.to == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.to += read,
            }
        }
        let head = self.ahead[self.from..self.from + HEAD_LEN].try_into().expect("16 bytes");
        self.from += HEAD_LEN;
        Ok(Some(head))
    }

    /// Takes exactly these bytes: first what was read ahead, then straight from the connection.
    async fn fill(&mut self, room: &mut [u8]) -> io::Result<()> {
        let here = room.len().min(self.to - self.from);
        room[..here].copy_from_slice(&self.ahead[self.from..self.from + here]);
        self.from += here;
        self.conn.read_exact(&mut room[here..]).await?;
        Ok(())
    }
}

impl<C> std::fmt::Debug for Wire<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({} bytes ahead)", self.to - self.from)
    }
}

/// Lengths of the data frames that carry these bytes.
fn cut(data: &[&[u8]]) -> impl Iterator<Item = usize> {
    let total: usize = data.iter().map(|part| part.len()).sum();
    (0..total.div_ceil(DATA_MAX)).map(move |n| DATA_MAX.min(total - n * DATA_MAX))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Wire, Wire) {
        let (left, right) = tokio::io::duplex(8 << 20);
        (Wire::new(Box::new(left)), Wire::new(Box::new(right)))
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn the_bytes_are_these() {
        let (left, mut right) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(Box::new(left));
        let bytes = run(async {
            wire.send(5, &7u8, &[b"ab", b"", b"c"]).await.unwrap();
            drop(wire);
            let mut bytes = Vec::new();
            right.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        assert_eq!(bytes[..12], [1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[12..16], crc32c::crc32c(&[1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 7]).to_le_bytes());
        assert_eq!(bytes[16], 7);
        assert_eq!(bytes[17..29], [3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[29..33], crc32c::crc32c(&bytes[17..29]).to_le_bytes());
        assert_eq!(&bytes[33..], b"abc");
    }

    #[test]
    fn a_connection_that_is_closed_or_talks_out_of_turn_is_not_quiet() {
        run(async {
            let (mut left, mut right) = pair();
            assert!(left.is_quiet().await && right.is_quiet().await);
            left.send(1, &1u8, &[]).await.unwrap();
            assert!(!right.is_quiet().await);
            let (mut left, right) = pair();
            drop(right);
            assert!(!left.is_quiet().await);
        });
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(parts in prop::collection::vec(0usize..400_000, 0..5), word in ".{0,300}") {
            let data: Vec<Vec<u8>> = parts.iter().enumerate()
                .map(|(n, len)| (0..*len).map(|i| u8::try_from((i * 7 + i / 251 + n) % 256).unwrap()).collect())
                .collect();
            let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let whole = data.concat();
            run(async {
                let (mut left, mut right) = pair();
                left.send(9, &word, &slices).await.unwrap();
                left.send_data(9, &slices).await.unwrap();
                left.send(10, &word, &[]).await.unwrap();
                assert_eq!(right.receive::<String>().await.unwrap().unwrap(), (9, word.clone()));
                for _ in 0..2 {
                    let mut got = vec![0; whole.len()];
                    right.receive_all(9, &mut got).await.unwrap();
                    assert!(got == whole);
                }
                assert_eq!(right.receive::<String>().await.unwrap().unwrap(), (10, word.clone()));
                drop(left);
                assert!(right.receive::<String>().await.unwrap().is_none());
            });
        }

        #[test]
        fn garbage_is_an_error_and_never_a_value(bytes in prop::collection::vec(any::<u8>(), 1..200), damage in any::<(prop::sample::Index, u8)>()) {
            run(async {
                let (mut left, right) = tokio::io::duplex(1 << 20);
                left.write_all(&bytes).await.unwrap();
                drop(left);
                let mut wire = Wire::new(Box::new(right));
                assert!(wire.receive::<String>().await.is_err());
            });
            // One wrong bit in a good frame.
            let mut good = encode_head(4, CONTROL, 3, b"\x03abc").to_vec();
            good.extend_from_slice(b"\x03abc");
            let at = damage.0.index(good.len());
            good[at] ^= 1 << (damage.1 % 8);
            run(async {
                let (mut left, right) = tokio::io::duplex(1 << 20);
                left.write_all(&good).await.unwrap();
                drop(left);
                assert!(Wire::new(Box::new(right)).receive::<String>().await.is_err());
            });
        }
    }
}
