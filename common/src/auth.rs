//! Receipts and tokens: keyed BLAKE3 under the cluster's secret, which only metaservers and chunkservers hold.
//!
//! A *receipt* proves that a server held a chunk durably; a *token* proves that the metadata service let a session
//! read a chunk. Knowing a chunk's id gives no right to its bytes, and a client cannot claim what it never stored.

use crate::id::{ChunkId, Epoch, LogIndex, ServerId, SessionId};
use serde::{Deserialize, Serialize};

/// The cluster's secret: 32 random bytes made when the cluster is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A message authentication code: the first 16 bytes of a keyed BLAKE3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 16]);

/// A server's proof that it held a chunk durably when it was put or touched by this session with this witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Who holds it.
    pub server: ServerId,
    /// Over chunk, length, server, witness, session and epoch.
    pub mac: Mac,
}

/// What a put or touch is made under; the same values stand in the commit that relies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Who writes.
    pub session: SessionId,
    /// An applied index the client held before the first put or touch of this attempt.
    pub witness: LogIndex,
    /// The cluster epoch.
    pub epoch: Epoch,
}

impl Secret {
    fn mac(&self, purpose: u8, parts: &[&[u8]]) -> Mac {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[purpose]);
        for part in parts {
            hasher.update(part); // every part has a fixed length, so no two inputs run together
        }
        let mut mac = Mac::default();
        mac.0.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        mac
    }

    /// Signs that `server` holds `chunk` of `len` bytes durably, as of `attempt`.
    pub fn receipt(&self, chunk: ChunkId, len: u32, server: ServerId, attempt: Attempt) -> Receipt {
        let mac = self.mac(
            b'R',
            &[
                &chunk.0,
                &len.to_le_bytes(),
                &server.0.to_le_bytes(),
                &attempt.witness.0.to_le_bytes(),
                &attempt.session.0.to_le_bytes(),
                &attempt.epoch.0.to_le_bytes(),
            ],
        );
        Receipt { server, mac }
    }

    /// True if this receipt was signed for exactly this.
    pub fn receipt_is_valid(&self, receipt: &Receipt, chunk: ChunkId, len: u32, attempt: Attempt) -> bool {
        self.receipt(chunk, len, receipt.server, attempt) == *receipt
    }

    /// The right of a session to read a chunk.
    pub fn read_token(&self, chunk: ChunkId, session: SessionId, epoch: Epoch) -> Mac {
        self.mac(b'G', &[&chunk.0, &session.0.to_le_bytes(), &epoch.0.to_le_bytes()])
    }

    /// The right of a session to put and touch chunks.
    pub fn write_token(&self, session: SessionId, epoch: Epoch) -> Mac {
        self.mac(b'P', &[&session.0.to_le_bytes(), &epoch.0.to_le_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_holds_for_nothing_else() {
        let secret = Secret([7; 32]);
        let attempt = Attempt { session: SessionId(1), witness: LogIndex(2), epoch: Epoch(3) };
        let chunk = ChunkId::of(b"a");
        let receipt = secret.receipt(chunk, 1, ServerId(4), attempt);
        assert!(secret.receipt_is_valid(&receipt, chunk, 1, attempt));
        assert!(!secret.receipt_is_valid(&receipt, chunk, 2, attempt));
        assert!(!secret.receipt_is_valid(&receipt, ChunkId::of(b"b"), 1, attempt));
        assert!(!secret.receipt_is_valid(&Receipt { server: ServerId(5), ..receipt }, chunk, 1, attempt));
        for other in [
            Attempt { session: SessionId(9), ..attempt },
            Attempt { witness: LogIndex(9), ..attempt },
            Attempt { epoch: Epoch(9), ..attempt },
        ] {
            assert!(!secret.receipt_is_valid(&receipt, chunk, 1, other));
        }
        assert!(!Secret([8; 32]).receipt_is_valid(&receipt, chunk, 1, attempt));
    }
}
