//! A buffer that direct reads and writes can take as it is.
//!
//! Large ones are used again: memory fresh from the system costs a page fault and a page of zeros for every 4 KiB, which
//! was a tenth of the CPU time of a sequential read.

use std::fmt;
use std::mem::take;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// What a direct write needs its offset, length and memory address to be multiples of, in bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// The smallest buffer that is kept to be used again, in bytes.
const KEPT_LEN_MIN: usize = 256 << 10;
/// Bytes of unused buffers that a process keeps, at most.
const KEPT_BYTES_MAX: usize = 48 << 20;
/// A kept buffer serves whoever needs at least this share of it.
const KEPT_WASTE_MAX: usize = 2;

/// Unused buffers of this process.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

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
        let backing = kept(capacity + DIRECT_ALIGN).unwrap_or_else(|| vec![0; capacity + DIRECT_ALIGN]);
        let start = backing.as_ptr().align_offset(DIRECT_ALIGN);
        assert!(start < DIRECT_ALIGN, "a byte pointer can be aligned");
        AlignedBuf { backing, start, len: 0 }
    }

    /// A buffer of `len` bytes, whatever they are: for a caller who overwrites them all.
    pub fn unspecified(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.len = len;
        buf
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.resize(len);
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

    /// Sets the length to at most the capacity; bytes that come in are whatever they are: the caller overwrites them.
    ///
    /// # Panics
    /// If it exceeds the capacity.
    pub fn resize_unspecified(&mut self, len: usize) {
        assert!(len <= self.capacity(), "the buffer was made large enough");
        self.len = len;
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

/// An unused buffer of about this length.
fn kept(len: usize) -> Option<Vec<u8>> {
    if len < KEPT_LEN_MIN {
        return None;
    }
    let mut kept = KEPT.lock().expect("no panic holds this lock");
    let fit = kept.iter().rposition(|backing| (len..=len * KEPT_WASTE_MAX).contains(&backing.len()))?;
    Some(kept.swap_remove(fit))
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.backing.len() < KEPT_LEN_MIN {
            return;
        }
        let mut kept = KEPT.lock().expect("no panic holds this lock");
        let bytes: usize = kept.iter().map(Vec::len).sum();
        if bytes + self.backing.len() > KEPT_BYTES_MAX && !kept.is_empty() {
            kept.remove(0); // unused for longest: sizes that nobody asks for any more go
        }
        if bytes + self.backing.len() <= KEPT_BYTES_MAX {
            kept.push(take(&mut self.backing));
        }
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
    use super::{AlignedBuf, DIRECT_ALIGN, KEPT_LEN_MIN};

    #[test]
    fn a_buffer_used_again_is_zero_where_it_says_so() {
        let len = KEPT_LEN_MIN + 12_345;
        AlignedBuf::unspecified(len).fill(7);
        let mut again = AlignedBuf::with_capacity(len);
        again.resize(100);
        assert!(again.iter().all(|b| *b == 0) && AlignedBuf::zeroed(len).iter().all(|b| *b == 0));
        again.resize_unspecified(len);
        assert_eq!(again.len(), len);
    }

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
