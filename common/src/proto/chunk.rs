//! The chunk service: what is asked of a chunkserver on the data plane. Frames are in [`crate::wire`].
//!
//! One request at a time on a connection; a client keeps a few connections to each server. A request is one control
//! frame, followed for puts by data frames that add up to exactly the announced lengths; so is an answer.

use crate::auth::{Attempt, Mac, Receipt};
use crate::fault::Fault;
use crate::id::{ChunkId, Epoch, PgId, ServerId, SessionId};
use serde::{Deserialize, Serialize};

/// The most chunks in one `PutSmall` or `Touch`.
pub const BATCH_MAX: usize = 1024;
/// The most bytes in one `PutSmall`.
pub const PUT_SMALL_LEN_MAX: u64 = 4 << 20;
/// The most servers in a chain.
pub const CHAIN_MAX: usize = 9;

/// A right to write, and under what attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteAuth {
    /// Session, witness, epoch.
    pub attempt: Attempt,
    /// The session's right to put and touch.
    pub token: Mac,
}

/// A chunk's name and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its id.
    pub id: ChunkId,
    /// Its length in bytes, 1 to 64 MiB.
    pub len: u32,
}

/// The first frame of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkRequest {
    /// Store one chunk here and on every server of `chain`, in that order. `len` bytes of data frames follow.
    /// A server that holds it already answers all the same. Answer: `Put`.
    Put {
        /// Right and attempt.
        auth: WriteAuth,
        /// Which.
        chunk: ChunkRef,
        /// Where it goes from here: each server and its address, at most 8.
        chain: Vec<(ServerId, String)>,
    },
    /// Store these chunks here. Their bytes follow, one after another, without gaps. Answer: `PutSmall`.
    PutSmall {
        /// Right and attempt.
        auth: WriteAuth,
        /// Which, in the order of their bytes.
        chunks: Vec<ChunkRef>,
    },
    /// Vouch for chunks that are here already, durably and soundly. Answer: `Touched`.
    Touch {
        /// Right and attempt.
        auth: WriteAuth,
        /// Which.
        chunks: Vec<ChunkRef>,
    },
    /// Read `[offset, offset + len)` of a chunk. Answer: `Got`, then data frames.
    Get {
        /// Who reads.
        session: SessionId,
        /// Its right to this chunk.
        token: Mac,
        /// Which.
        chunk: ChunkId,
        /// First byte.
        offset: u32,
        /// How many bytes, at least 1; beyond the chunk's end is `Invalid`.
        len: u32,
    },
    /// Chunks of a placement group that are here, in id order. Servers and administrators. Answer: `Listed`.
    List {
        /// Which placement group.
        pg: PgId,
        /// Only behind this id.
        after: Option<ChunkId>,
        /// At most this many, at most [`LIST_MAX`].
        limit: u32,
    },
    /// Is anybody there, with durable disks? Answer: `Pong`.
    Ping,
    /// A reader got bytes that do not match the id: read the copy and hash it. One that is damaged is not vouched for
    /// any more, and the next put replaces it. Answer: `Verified`.
    Verify {
        /// Who read.
        session: SessionId,
        /// Its right to this chunk.
        token: Mac,
        /// Which.
        chunk: ChunkId,
    },
    /// A server that is no owner of these chunks wants to drop its copies: vouch for yours. Giving a confirmation counts as
    /// a touch. Servers. At most [`BATCH_MAX`]. Answer: `Confirmed`.
    Confirm {
        /// In this epoch.
        epoch: Epoch,
        /// Which, each with the nonce of the round.
        rounds: Vec<(ChunkRef, u64)>,
    },
}

/// The most chunks in one `Listed`.
pub const LIST_MAX: u32 = 16_384;

/// The first frame of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkAnswer {
    /// For each server of the chain that was reached, this one first: a receipt, or why not.
    Put(Vec<(ServerId, Result<Receipt, Fault>)>),
    /// For each chunk in order: a receipt, or why not.
    PutSmall(Vec<Result<Receipt, Fault>>),
    /// For each chunk in order: a receipt if it is here, durable and sound.
    Touched(Vec<Option<Receipt>>),
    /// The hash groups that cover the range follow in data frames: bytes `[start, start + len)` of the chunk, where
    /// both ends are the range's, widened to whole hash groups (or the chunk's end).
    Got {
        /// Length of the chunk.
        chunk_len: u32,
        /// First byte that follows.
        start: u32,
        /// Bytes that follow.
        len: u32,
        /// What is needed to check them against the id: see [`crate::hash`]. Empty for the whole chunk.
        proof: Vec<[u8; 32]>,
    },
    /// Chunks, and whether there are more behind the last.
    Listed {
        /// In id order.
        chunks: Vec<ChunkRef>,
        /// More follow.
        more: bool,
    },
    /// Here, and at least one data directory takes writes.
    Pong {
        /// Who answers.
        server: ServerId,
    },
    /// The request failed as a whole.
    Failed(Fault),
    /// The copy was read and hashed.
    Verified {
        /// It matches the id.
        sound: bool,
    },
    /// The rounds for whose chunks there is a durable, verified copy here.
    Confirmed {
        /// As they were asked.
        rounds: Vec<(ChunkId, u64)>,
    },
}
