//! Receipts and tokens: keyed BLAKE3 under the cluster's secret, which only metaservers and chunkservers hold.
//!
//! A *receipt* proves that a server held a chunk durably; a *token* proves that the metadata service let a session
//! read a chunk. An administrator's orders are signed with a key of their own ([`AdminKey`]). Knowing a chunk's id gives no right to its bytes, and a client cannot claim what it never stored.

use crate::id::{ChunkId, Epoch, LogIndex, ServerId, SessionId};
use crate::proto::admin::{Order, Signed};
use crate::time::Time;
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

/// The administrator's key: what metaservers and administrators' commands have, and mounts do not.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey([u8; 32]);

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminKey(..)")
    }
}

impl AdminKey {
    /// The shortest text a key may be made of, in bytes.
    pub const TEXT_MIN: usize = 16;

    /// From the text of a key file; space around it does not count. `None`: it is too short to keep anybody out.
    pub fn from_text(text: &str) -> Option<AdminKey> {
        let text = text.trim();
        (text.len() >= AdminKey::TEXT_MIN).then(|| AdminKey(blake3::derive_key("dfs administrator 1", text.as_bytes())))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// One line for a person.
    pub fn read(path: &std::path::Path) -> Result<AdminKey, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let short = || format!("{}: a key has at least {} characters", path.display(), AdminKey::TEXT_MIN);
        AdminKey::from_text(&text).ok_or_else(short)
    }

    /// Signs an order.
    pub fn sign(&self, order: Order, at: Time, by: String) -> Signed {
        let mac = self.mac(&order, at, &by);
        Signed { order, at, by, mac }
    }

    /// True if it was signed with this key.
    pub fn has_signed(&self, signed: &Signed) -> bool {
        let (ours, theirs) = (self.mac(&signed.order, signed.at, &signed.by), signed.mac);
        ours.0.iter().zip(theirs.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    fn mac(&self, order: &Order, at: Time, by: &str) -> Mac {
        let bytes = postcard::to_stdvec(&(order, at, by)).expect("plain data has an encoding, and memory grows");
        let mut mac = Mac::default();
        mac.0.copy_from_slice(&blake3::keyed_hash(&self.0, &bytes).as_bytes()[..16]);
        mac
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

    #[test]
    fn an_order_holds_only_as_it_was_signed() {
        let key = AdminKey::from_text("a long enough key\n").unwrap();
        let order = Order::FsckLook { job: 1, after: 2 };
        let signed = key.sign(order.clone(), Time { secs: 3, nanos: 4 }, "me".into());
        assert!(key.has_signed(&signed));
        assert!(AdminKey::from_text(" a long enough key").unwrap().has_signed(&signed));
        assert!(!AdminKey::from_text("another long enough key").unwrap().has_signed(&signed));
        assert!(!key.has_signed(&Signed { order: Order::FsckLook { job: 2, after: 2 }, ..signed.clone() }));
        assert!(!key.has_signed(&Signed { at: Time { secs: 4, nanos: 4 }, ..signed.clone() }));
        assert!(!key.has_signed(&Signed { by: "you".into(), ..signed }));
        assert_eq!(AdminKey::from_text("short"), None);
    }
}
