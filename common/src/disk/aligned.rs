//! A buffer that a direct write can take as it is.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// What a direct write needs its offset, length and memory address to be multiples of, in bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// A growable run of bytes whose first one lies at an address that is a multiple of [`DIRECT_ALIGN`].
///
/// The capacity is fixed when it is made, so the bytes never move.
#[derive(Default)]
pub struct AlignedBuf {
    /// Holds the region at `start`, with up to `DIRECT_ALIGN - 1` bytes before and after it. Never grown.
    backing: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer that can hold at least `capacity` bytes (rounded up to a multiple of [`DIRECT_ALIGN`]).
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        let capacity = capacity.next_multiple_of(DIRECT_ALIGN);
        let backing = vec![0; capacity + DIRECT_ALIGN];
        let start = backing.as_ptr().align_offset(DIRECT_ALIGN);
        assert!(start < DIRECT_ALIGN, "a byte pointer can be aligned");
        AlignedBuf { backing, start, len: 0 }
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.len = len;
        buf
    }

    /// True if a direct write takes these bytes at this offset.
    pub(crate) fn takes(bytes: &[u8], at: u64) -> bool {
        let align = crate::units::len_u64(DIRECT_ALIGN);
        let lens = at.is_multiple_of(align) && bytes.len().is_multiple_of(DIRECT_ALIGN);
        lens && bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN)
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.backing.len().saturating_sub(DIRECT_ALIGN)
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// If they do not fit the capacity.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let at = self.start + self.len;
        assert!(self.len + bytes.len() <= self.capacity(), "the buffer was made large enough");
        self.backing[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Sets the length; bytes that come in are zero.
    ///
    /// # Panics
    /// If it exceeds the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity(), "the buffer was made large enough");
        if len > self.len {
            self.backing[self.start + self.len..self.start + len].fill(0);
        }
        self.len = len;
    }

    /// Forgets the bytes, keeps the room.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.backing[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.backing[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {})", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::{AlignedBuf, DIRECT_ALIGN};

    #[test]
    fn the_bytes_are_aligned_and_stay_where_they_are() {
        for capacity in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::with_capacity(capacity);
            assert!(buf.is_empty() && buf.capacity() >= capacity);
            buf.extend_from_slice(&vec![7; capacity]);
            assert_eq!(&buf[..], &vec![7; capacity][..]);
            let at = buf.as_ptr();
            buf.resize(capacity.next_multiple_of(DIRECT_ALIGN));
            assert!(AlignedBuf::takes(&buf, 8192) && at == buf.as_ptr());
            assert!(buf[capacity..].iter().all(|b| *b == 0));
            buf.resize(1.min(capacity));
            buf.resize(2.min(buf.capacity()));
            assert!(buf.get(1).is_none_or(|b| *b == 0), "what comes in again is zero");
        }
        assert!(
            !AlignedBuf::takes(&AlignedBuf::zeroed(4096), 512) && !AlignedBuf::takes(&AlignedBuf::zeroed(512), 4096)
        );
    }
}
