//! A chunk on its way in: bytes gather in the buffer they are written from, hashed as they come.

use super::{StoreError, leaves_len};
use common::disk::{AlignedBuf, DIRECT_ALIGN};
use common::hash::{ChunkHasher, Leaf};
use common::id::ChunkId;
use common::proto::chunk::ChunkRef;
use common::segment::format::RECORD_HEADER_LEN;
use common::units::{CHUNK_SIZE_MAX, len_u32, len_u64, len_usize};
use std::fmt;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A chunk being received. Fill [`Incoming::room`] and say [`Incoming::filled`], or [`Incoming::push`] copies.
///
/// The buffer leaves room for the record's header and trailer, so that the disk takes it as it is: no copy.
pub struct Incoming {
    chunk: ChunkRef,
    /// Header room, then the bytes; long enough for the trailer.
    buf: AlignedBuf,
    taken: usize,
    hasher: ChunkHasher,
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// A chunk whose bytes were hashed and match its id: the only thing a store takes.
pub struct VerifiedChunk {
    pub(super) chunk: ChunkRef,
    /// Header room, the bytes, the leaves.
    pub(super) buf: AlignedBuf,
    /// Memory reserved for it: given back with the bytes, also when whoever brought them has stopped waiting.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Incoming {
    /// Room for this chunk.
    ///
    /// # Errors
    /// `Length`: no chunk is that long. Nothing was allocated.
    pub fn new(chunk: ChunkRef) -> Result<Incoming, StoreError> {
        if chunk.len == 0 || chunk.len > CHUNK_SIZE_MAX {
            return Err(StoreError::Length { chunk: chunk.id, len: chunk.len });
        }
        let len = len_usize(chunk.len.into());
        let mut buf = AlignedBuf::with_capacity(RECORD_HEADER_LEN + len + leaves_len(chunk.len));
        buf.resize_unspecified(RECORD_HEADER_LEN + len); // `finish` wants every byte; the header is written by the log
        Ok(Incoming { chunk, buf, taken: 0, hasher: ChunkHasher::new(chunk.len), room: None })
    }

    /// Memory that a chunk of this length takes here, in bytes.
    pub fn memory(len: u32) -> u64 {
        let record = RECORD_HEADER_LEN + len_usize(len.into()) + leaves_len(len);
        len_u64(record.next_multiple_of(DIRECT_ALIGN) + DIRECT_ALIGN)
    }

    /// Keeps this reservation of memory until the chunk's bytes are gone, here or in a store.
    pub fn in_room(mut self, room: Arc<OwnedSemaphorePermit>) -> Incoming {
        self.room = Some(room);
        self
    }

    /// Which chunk this is to be.
    pub fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// Bytes still to come.
    pub fn rest(&self) -> usize {
        len_usize(self.chunk.len.into()) - self.taken
    }

    /// Where the next bytes go: exactly [`Incoming::rest`] long.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buf[RECORD_HEADER_LEN + self.taken..]
    }

    /// The first `count` bytes of [`Incoming::room`] are the chunk's next ones. Hashes them.
    ///
    /// # Panics
    /// If that is more than the rest.
    pub fn filled(&mut self, count: usize) {
        let from = RECORD_HEADER_LEN + self.taken;
        self.hasher.update(&self.buf[from..from + count]);
        self.taken += count;
    }

    /// Copies the chunk's next bytes in.
    ///
    /// # Panics
    /// If there are more than the rest.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.filled(bytes.len());
    }

    /// The bytes so far: to hand them on.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[RECORD_HEADER_LEN..RECORD_HEADER_LEN + self.taken]
    }

    /// The chunk, if all bytes came and they are the right ones.
    ///
    /// # Errors
    /// `Mismatch`: bytes are missing, or they are not those the id names.
    pub fn finish(mut self) -> Result<VerifiedChunk, StoreError> {
        let mismatch = StoreError::Mismatch { chunk: self.chunk.id };
        if self.rest() > 0 {
            return Err(mismatch);
        }
        let (id, leaves) = self.hasher.finish();
        if id != self.chunk.id {
            return Err(mismatch);
        }
        self.buf.extend_from_slice(leaves.as_flattened());
        Ok(VerifiedChunk { chunk: self.chunk, buf: self.buf, _room: self.room })
    }
}

impl VerifiedChunk {
    /// Names bytes in memory.
    ///
    /// # Errors
    /// `Length`: too long or empty.
    pub fn of(bytes: &[u8]) -> Result<VerifiedChunk, StoreError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut incoming = Incoming::new(ChunkRef { id: ChunkId::of(bytes), len })?;
        incoming.push(bytes);
        incoming.finish()
    }

    /// Name and length.
    pub fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[RECORD_HEADER_LEN..RECORD_HEADER_LEN + len_usize(self.chunk.len.into())]
    }

    /// The leaves of its hash tree, one behind another: what the record has behind the bytes.
    pub(super) fn trailer(&self) -> &[u8] {
        &self.buf[RECORD_HEADER_LEN + len_usize(self.chunk.len.into())..]
    }
}

/// The leaves in a record's trailer. `None` if its length is not that of whole leaves.
pub(super) fn leaves_of(trailer: &[u8]) -> Option<Vec<Leaf>> {
    let (leaves, rest) = trailer.as_chunks::<32>();
    rest.is_empty().then(|| leaves.to_vec())
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({} {} of {})", self.chunk.id, len_u32(self.taken), self.chunk.len)
    }
}

impl fmt::Debug for VerifiedChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedChunk({} {})", self.chunk.id, self.chunk.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_match_the_id_become_a_chunk() {
        for len in [1usize, 4096, 16 << 10, (16 << 10) + 1, 300_000] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 253).unwrap()).collect();
            let chunk = ChunkRef { id: ChunkId::of(&bytes), len: len_u32(len) };
            let mut incoming = Incoming::new(chunk).unwrap();
            let made = len_u64(incoming.buf.capacity() + DIRECT_ALIGN); // a large one may be another's, used again
            assert!(Incoming::memory(chunk.len) == made || (len > 200_000 && Incoming::memory(chunk.len) < made));
            let (front, back) = bytes.split_at(len / 3);
            incoming.push(front);
            incoming.room()[..back.len()].copy_from_slice(back);
            incoming.filled(back.len());
            assert_eq!(incoming.bytes(), bytes);
            let verified = incoming.finish().unwrap();
            assert_eq!(verified.bytes(), bytes);
            assert_eq!(verified.trailer().len(), leaves_len(chunk.len));

            let mut wrong = Incoming::new(chunk).unwrap();
            wrong.push(&bytes[..len - 1]);
            wrong.push(&[bytes[len - 1] ^ 1]);
            assert_eq!(wrong.finish().unwrap_err(), StoreError::Mismatch { chunk: chunk.id });
            let short = Incoming::new(chunk).unwrap();
            assert_eq!(short.finish().unwrap_err(), StoreError::Mismatch { chunk: chunk.id });
        }
        let id = ChunkId([0; 32]);
        assert!(Incoming::new(ChunkRef { id, len: 0 }).is_err());
        assert!(Incoming::new(ChunkRef { id, len: CHUNK_SIZE_MAX + 1 }).is_err());
    }
}
