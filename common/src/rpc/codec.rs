//! Messages as bytes: one `postcard` value a frame, a frame's length (u32, big-endian) in front.
//!
//! | message | bytes |
//! | --- | --- |
//! | request | 0, request id (varint), seconds left (varint), the request |
//! | cancel | 1, request id (varint) |
//! | response | request id (varint), 0 and the response, or 1 and why the server did not run it |
//!
//! `tarpc`'s trace context is left out: random bytes that nothing here reads.

use super::{DEADLINE_MAX, FRAME_MAX};
use crate::net::Conn;
use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::pin::Pin;
use std::time::Duration;
use tarpc::context::{self, Context};
use tarpc::serde_transport::{self, Transport};
use tarpc::{ClientMessage, Request, Response};
use tokio_util::codec::LengthDelimitedCodec;

/// How messages become bytes and back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Postcard;

/// A client's connection.
pub(super) type ClientTransport<Req, Resp> = Transport<Conn, Response<Resp>, ClientMessage<Req>, Postcard>;
/// A server's connection.
pub(super) type ServerTransport<Req, Resp> = Transport<Conn, ClientMessage<Req>, Response<Resp>, Postcard>;

/// Frames on a connection whose hello is done.
pub(super) fn frames<Item, SinkItem>(conn: Conn) -> Transport<Conn, Item, SinkItem, Postcard>
where
    Item: DeserializeOwned,
    SinkItem: Serialize,
    Postcard: tokio_serde::Serializer<SinkItem> + tokio_serde::Deserializer<Item>,
{
    let framed = LengthDelimitedCodec::builder().max_frame_length(FRAME_MAX).new_framed(conn);
    serde_transport::new(framed, Postcard)
}

#[derive(Serialize)]
enum ToServer<'a, T> {
    Request { id: u64, seconds: u32, message: &'a T },
    Cancel { id: u64 },
}

#[derive(Deserialize)]
enum FromClient<T> {
    Request { id: u64, seconds: u32, message: T },
    Cancel { id: u64 },
}

impl<T: Serialize> tokio_serde::Serializer<ClientMessage<T>> for Postcard {
    type Error = io::Error;
    fn serialize(self: Pin<&mut Self>, item: &ClientMessage<T>) -> io::Result<Bytes> {
        let message = match item {
            ClientMessage::Request(request) => {
                ToServer::Request { id: request.id, seconds: seconds_left(&request.context), message: &request.message }
            }
            ClientMessage::Cancel { request_id, .. } => ToServer::Cancel { id: *request_id },
            _ => return Err(io::Error::other("a message this version does not know")),
        };
        encode(&message)
    }
}

impl<T: DeserializeOwned> tokio_serde::Deserializer<ClientMessage<T>> for Postcard {
    type Error = io::Error;
    fn deserialize(self: Pin<&mut Self>, src: &BytesMut) -> io::Result<ClientMessage<T>> {
        Ok(match decode(src)? {
            FromClient::Request { id, seconds, message } => {
                let context = context_for(Duration::from_secs(seconds.into()));
                ClientMessage::Request(Request { context, id, message })
            }
            FromClient::Cancel { id } => {
                ClientMessage::Cancel { trace_context: tarpc::trace::Context::default(), request_id: id }
            }
        })
    }
}

impl<T: Serialize> tokio_serde::Serializer<Response<T>> for Postcard {
    type Error = io::Error;
    fn serialize(self: Pin<&mut Self>, item: &Response<T>) -> io::Result<Bytes> {
        encode(item)
    }
}

impl<T: DeserializeOwned> tokio_serde::Deserializer<Response<T>> for Postcard {
    type Error = io::Error;
    fn deserialize(self: Pin<&mut Self>, src: &BytesMut) -> io::Result<Response<T>> {
        decode(src)
    }
}

fn encode<T: Serialize>(value: &T) -> io::Result<Bytes> {
    postcard::to_stdvec(value).map(Bytes::from).map_err(io::Error::other)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(io::Error::other(format!("{} bytes too many in a frame", rest.len()))),
        Err(error) => Err(io::Error::other(format!("a frame that is no message: {error}"))),
    }
}

/// A `tarpc` context whose deadline is this far off, at most [`DEADLINE_MAX`].
#[expect(clippy::disallowed_methods, reason = "tarpc counts deadlines on the machine's clock; see the module's text")]
pub(super) fn context_for(limit: Duration) -> Context {
    let mut context = context::current();
    context.deadline = std::time::Instant::now() + limit.min(DEADLINE_MAX);
    context
}

/// Whole seconds until the deadline, rounded up: never 0, so that a late request is still answered, if only in vain.
#[expect(clippy::disallowed_methods, reason = "tarpc counts deadlines on the machine's clock; see the module's text")]
fn seconds_left(context: &Context) -> u32 {
    let left = context.deadline.saturating_duration_since(std::time::Instant::now()).min(DEADLINE_MAX);
    let whole = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    u32::try_from(whole).expect("an hour at most").max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SessionId;
    use crate::proto::meta::{MetaRequest, MetaResponse};
    use tokio_serde::{Deserializer, Serializer};

    #[test]
    fn the_bytes_are_these() {
        let message = MetaRequest::KeepAlive { session: SessionId(5) };
        let request = Request { context: context_for(Duration::from_millis(1500)), id: 300, message };
        let bytes = Pin::new(&mut Postcard).serialize(&ClientMessage::Request(request)).unwrap();
        assert_eq!(&bytes[..], [0, 0xac, 2, 2, 2, 5], "request, id 300, 2 s, method 2, session 5");
        let cancel: ClientMessage<MetaRequest> =
            ClientMessage::Cancel { trace_context: tarpc::trace::Context::default(), request_id: 7 };
        assert_eq!(&Pin::new(&mut Postcard).serialize(&cancel).unwrap()[..], [1, 7]);
        let response = Response { request_id: 9, message: Ok(MetaResponse::Raft(Ok(Bytes::from_static(b"ab")))) };
        let bytes = Pin::new(&mut Postcard).serialize(&response).unwrap();
        assert_eq!(&bytes[..], [9, 0, 7, 0, 2, b'a', b'b']);
    }

    #[test]
    fn trailing_bytes_and_cut_frames_are_errors() {
        let good: &[u8] = &[0, 1, 2, 2, 5];
        let read = |bytes: &[u8]| -> io::Result<ClientMessage<MetaRequest>> {
            Pin::new(&mut Postcard).deserialize(&BytesMut::from(bytes))
        };
        assert!(matches!(read(good), Ok(ClientMessage::Request(r)) if r.id == 1));
        assert!(read(&[good, &[0]].concat()).is_err());
        for len in 0..good.len() {
            assert!(read(&good[..len]).is_err(), "{len}");
        }
    }
}
