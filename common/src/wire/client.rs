//! What callers ask of chunkservers: one function a request.

use super::{Lease, Pool};
use crate::auth::{Mac, Receipt};
use crate::disk::AlignedBuf;
use crate::fault::{Fault, Kind};
use crate::id::{ChunkId, Epoch, PgId, ServerId, SessionId};
use crate::proto::chunk::{BATCH_MAX, CHAIN_MAX, ChunkAnswer, ChunkRef, ChunkRequest, PUT_SMALL_LEN_MAX, WriteAuth};
use crate::units::{CHUNK_SIZE_MAX, HASH_GROUP_LEN, len_u64, len_usize};
use bytes::Bytes;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

/// A chunkserver and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which. 0: whoever answers there.
    pub server: ServerId,
    /// `host:port`.
    pub addr: String,
}

/// Bytes of a chunk as they came, *not yet verified*: check them with [`crate::hash::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// Length of the chunk, as the server says.
    pub chunk_len: u32,
    /// Where in the chunk `bytes` start: at or before what was asked for, on a hash group boundary.
    pub start: u32,
    /// The bytes: at least what was asked for.
    pub bytes: Bytes,
    /// For [`crate::hash::verify`].
    pub proof: Vec<[u8; 32]>,
}

/// Why a request got no answer.
enum Broken {
    /// The connection failed before the first byte of an answer came.
    Silent(io::Error),
    /// Anything else.
    Other(Fault),
}

impl Pool {
    /// Stores a chunk on every server of `chain`, streamed to the first and handed on by each. `data` is its bytes.
    /// The answer says for each server that was reached, in order, whether it holds the chunk durably now.
    ///
    /// # Errors
    /// `Unavailable`: the first server was not reached or did not answer in time (it may have stored the chunk, which
    /// matters to nobody without a receipt); others: it refused the request as a whole.
    pub async fn put_chain(
        &self,
        chain: &[Target],
        auth: WriteAuth,
        chunk: ChunkRef,
        data: &[Bytes],
        limit: Duration,
    ) -> Result<Vec<(ServerId, Result<Receipt, Fault>)>, Fault> {
        let (first, rest) = chain.split_first().ok_or_else(|| Fault::new(Kind::Invalid, "put: no server is given"))?;
        let given: u64 = data.iter().map(|part| len_u64(part.len())).sum();
        if rest.len() >= CHAIN_MAX || given != u64::from(chunk.len) || chunk.len == 0 || chunk.len > CHUNK_SIZE_MAX {
            let text = format!("put {}: {given} bytes, {} announced, to {} servers", chunk.id, chunk.len, chain.len());
            return Err(Fault::new(Kind::Invalid, text));
        }
        let rest = rest.iter().map(|target| (target.server, target.addr.clone())).collect();
        let request = ChunkRequest::Put { auth, chunk, chain: rest };
        match self.call(first, "put", &request, data, limit).await? {
            ChunkAnswer::Put(results) => Ok(results),
            other => Err(unexpected(first, "put", &other)),
        }
    }

    /// Stores small chunks on one server: at most [`BATCH_MAX`] of them, [`PUT_SMALL_LEN_MAX`] bytes together. The
    /// answer is in their order.
    ///
    /// # Errors
    /// As [`Pool::put_chain`].
    pub async fn put_small(
        &self,
        to: &Target,
        auth: WriteAuth,
        chunks: &[(ChunkRef, Bytes)],
        limit: Duration,
    ) -> Result<Vec<Result<Receipt, Fault>>, Fault> {
        let total: u64 = chunks.iter().map(|(_, bytes)| len_u64(bytes.len())).sum();
        let fits = chunks.iter().all(|(chunk, bytes)| len_u64(bytes.len()) == u64::from(chunk.len) && chunk.len > 0);
        if chunks.len() > BATCH_MAX || total > PUT_SMALL_LEN_MAX || !fits {
            return Err(Fault::new(Kind::Invalid, format!("put of {} chunks, {total} bytes", chunks.len())));
        }
        let (refs, data): (Vec<ChunkRef>, Vec<Bytes>) = chunks.iter().cloned().unzip();
        let request = ChunkRequest::PutSmall { auth, chunks: refs };
        match self.call(to, "put", &request, &data, limit).await? {
            ChunkAnswer::PutSmall(results) if results.len() == chunks.len() => Ok(results),
            other => Err(unexpected(to, "put", &other)),
        }
    }

    /// Asks a server to vouch for chunks, at most [`BATCH_MAX`]: in their order, a receipt for each that is there.
    ///
    /// # Errors
    /// As [`Pool::put_chain`].
    pub async fn touch(
        &self,
        to: &Target,
        auth: WriteAuth,
        chunks: &[ChunkRef],
        limit: Duration,
    ) -> Result<Vec<Option<Receipt>>, Fault> {
        if chunks.len() > BATCH_MAX {
            return Err(Fault::new(Kind::Invalid, format!("touch of {} chunks at once", chunks.len())));
        }
        let request = ChunkRequest::Touch { auth, chunks: chunks.to_vec() };
        match self.call(to, "touch", &request, &[], limit).await? {
            ChunkAnswer::Touched(receipts) if receipts.len() == chunks.len() => Ok(receipts),
            other => Err(unexpected(to, "touch", &other)),
        }
    }

    /// Reads `[offset, offset + len)` of a chunk, widened to whole hash groups. Not verified: see [`Got`].
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`: use another replica. `Unavailable`: not reached, or no whole answer in time.
    pub async fn get(
        &self,
        from: &Target,
        (session, token): (SessionId, Mac),
        chunk: ChunkId,
        offset: u32,
        len: u32,
        limit: Duration,
    ) -> Result<Got, Fault> {
        let until = Instant::now() + limit;
        let request = ChunkRequest::Get { session, token, chunk, offset, len };
        let (mut lease, number, answer) = self.ask(from, "get", &request, &[], until).await?;
        let ChunkAnswer::Got { chunk_len, start, len: coming, proof } = answer else {
            return Err(answered(lease, from, "get", answer));
        };
        // Nothing is allocated for more than was asked for, widened to whole groups.
        let (end, wanted_end) = (u64::from(start) + u64::from(coming), u64::from(offset) + u64::from(len));
        let wide = u64::from(len) + 2 * u64::from(HASH_GROUP_LEN);
        if start > offset || end < wanted_end || u64::from(coming) > wide || coming > CHUNK_SIZE_MAX {
            let text = format!("get {chunk}: {from} sends {coming} bytes at {start} for {len} at {offset}");
            return Err(Fault::new(Kind::Corrupt, text));
        }
        let mut bytes = AlignedBuf::unspecified(len_usize(u64::from(coming)));
        match tokio::time::timeout_at(until, lease.wire.receive_all(number, &mut bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fault::new(Kind::Unavailable, format!("get {chunk}: {from}: {error}"))),
            Err(_) => return Err(late(from, "get", limit)),
        }
        lease.keep();
        Ok(Got { chunk_len, start, bytes: Bytes::from_owner(bytes), proof })
    }

    /// Has a server read and hash its copy of a chunk, of which it sent bytes that do not match the id. True: it is
    /// sound; else the server has marked it.
    ///
    /// # Errors
    /// As [`Pool::get`]; `Busy`: it has enough of these to do.
    pub async fn verify(
        &self,
        at: &Target,
        (session, token): (SessionId, Mac),
        chunk: ChunkId,
        limit: Duration,
    ) -> Result<bool, Fault> {
        match self.call(at, "verify", &ChunkRequest::Verify { session, token, chunk }, &[], limit).await? {
            ChunkAnswer::Verified { sound } => Ok(sound),
            other => Err(unexpected(at, "verify", &other)),
        }
    }

    /// Asks an owner to vouch for chunks that this server wants to drop, at most [`BATCH_MAX`]: the rounds it confirms.
    ///
    /// # Errors
    /// As [`Pool::get`]; `Refused` for clients; `Stale`: another epoch.
    pub async fn confirm(
        &self,
        by: &Target,
        epoch: Epoch,
        rounds: &[(ChunkRef, u64)],
        limit: Duration,
    ) -> Result<Vec<(ChunkId, u64)>, Fault> {
        match self.call(by, "confirm", &ChunkRequest::Confirm { epoch, rounds: rounds.to_vec() }, &[], limit).await? {
            ChunkAnswer::Confirmed { rounds } => Ok(rounds),
            other => Err(unexpected(by, "confirm", &other)),
        }
    }

    /// Chunks of a placement group on this server behind `after`, in id order, and whether more follow.
    ///
    /// # Errors
    /// As [`Pool::get`]; `Refused` for clients.
    pub async fn list(
        &self,
        of: &Target,
        pg: PgId,
        after: Option<ChunkId>,
        max: u32,
        limit: Duration,
    ) -> Result<(Vec<ChunkRef>, bool), Fault> {
        let request = ChunkRequest::List { pg, after, limit: max };
        match self.call(of, "list", &request, &[], limit).await? {
            ChunkAnswer::Listed { chunks, more } => Ok((chunks, more)),
            other => Err(unexpected(of, "list", &other)),
        }
    }

    /// Who answers there, with disks that take writes.
    ///
    /// # Errors
    /// Nobody, or none of its disks takes writes.
    pub async fn ping(&self, to: &Target, limit: Duration) -> Result<ServerId, Fault> {
        match self.call(to, "ping", &ChunkRequest::Ping, &[], limit).await? {
            ChunkAnswer::Pong { server } => Ok(server),
            other => Err(unexpected(to, "ping", &other)),
        }
    }

    /// A request whose answer is one control frame.
    async fn call(
        &self,
        to: &Target,
        what: &'static str,
        request: &ChunkRequest,
        data: &[Bytes],
        limit: Duration,
    ) -> Result<ChunkAnswer, Fault> {
        let (lease, _, answer) = self.ask(to, what, request, data, Instant::now() + limit).await?;
        match answer {
            ChunkAnswer::Failed(_) | ChunkAnswer::Got { .. } => Err(answered(lease, to, what, answer)),
            answer => {
                lease.keep();
                Ok(answer)
            }
        }
    }

    /// Sends a request and reads the first frame of the answer. A kept connection that turns out to be gone is
    /// replaced by a new one, once: every request may be repeated.
    async fn ask(
        &self,
        to: &Target,
        what: &'static str,
        request: &ChunkRequest,
        data: &[Bytes],
        until: Instant,
    ) -> Result<(Lease, u32, ChunkAnswer), Fault> {
        let limit = until.saturating_duration_since(Instant::now());
        let data: Vec<&[u8]> = data.iter().map(|part| &part[..]).collect();
        let mut lease = self.connection(to.server, &to.addr, until).await?;
        let mut outcome = tokio::time::timeout_at(until, exchange(&mut lease, to, what, request, &data)).await;
        if let (Ok(Err(Broken::Silent(_))), false) = (&outcome, lease.fresh) {
            self.forget(&to.addr);
            lease = self.new_connection(to.server, &to.addr, until).await?;
            outcome = tokio::time::timeout_at(until, exchange(&mut lease, to, what, request, &data)).await;
        }
        // A put or touch changes nothing that matters unless its receipt arrives: not `Unsure`, just not there.
        match outcome {
            Ok(Ok((number, answer))) => Ok((lease, number, answer)),
            Ok(Err(Broken::Silent(error))) => Err(Fault::new(Kind::Unavailable, format!("{what}: {to}: {error}"))),
            Ok(Err(Broken::Other(fault))) => Err(fault),
            Err(_) => Err(late(to, what, limit)),
        }
    }
}

async fn exchange(
    lease: &mut Lease,
    to: &Target,
    what: &'static str,
    request: &ChunkRequest,
    data: &[&[u8]],
) -> Result<(u32, ChunkAnswer), Broken> {
    let number = lease.next_request();
    lease.wire.send(number, request, data).await.map_err(Broken::Silent)?;
    match lease.wire.receive::<ChunkAnswer>().await {
        Ok(Some((answers, answer))) if answers == number => Ok((number, answer)),
        Ok(Some((answers, _))) => {
            let text = format!("{what}: {to}: answered request {answers}, not {number}");
            Err(Broken::Other(Fault::new(Kind::Internal, text)))
        }
        Ok(None) => Err(Broken::Silent(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err(Broken::Silent(error)),
    }
}

/// The fault in an answer that is not the one hoped for; the connection is kept if it is in order.
fn answered(lease: Lease, to: &Target, what: &'static str, answer: ChunkAnswer) -> Fault {
    match answer {
        ChunkAnswer::Failed(fault) => {
            lease.keep();
            fault.context(format_args!("{what}: {to}"))
        }
        other => unexpected(to, what, &other),
    }
}

fn unexpected(to: &Target, what: &'static str, answer: &ChunkAnswer) -> Fault {
    let mut text = format!("{answer:?}");
    text.truncate((0..=200.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
    Fault::new(Kind::Internal, format!("{what}: {to} answered {text}"))
}

fn late(to: &Target, what: &'static str, limit: Duration) -> Fault {
    Fault::new(Kind::Unavailable, format!("{what}: {to}: no answer within {limit:.1?}"))
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.server, self.addr)
    }
}
