//! Verified bytes: the BLAKE3 tree of a chunk, cut at groups of [`HASH_GROUP_LEN`] bytes.
//!
//! A chunk's id is the root of its BLAKE3 tree. The leaves we keep are the chaining values of 16 KiB groups (16 BLAKE3
//! chunks); they lie behind the chunk's bytes in its record. From them a server cuts the [`proof`] of a range: the
//! chaining values of the largest subtrees outside it, left to right. [`verify`] hashes the range's bytes, folds in the
//! proof, and compares the root with the id: so a reader checks a 4 KiB read by hashing 16 KiB and at most 16 nodes.
//! The shape of the tree is BLAKE3's own (left subtree: the largest power of two of groups that leaves something for the
//! right), so the root is the plain BLAKE3 of the chunk.
//!
//! 16 KiB: a proof in a 4 MiB chunk is at most 256 bytes; leaves cost 0.2 % of space.

use crate::id::ChunkId;
use crate::units::HASH_GROUP_LEN;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::ops::Range;

/// The chaining value of one group.
pub type Leaf = [u8; 32];

/// The bytes that were to be checked do not belong to the id (or the proof is wrong: the same to a reader).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes do not match the chunk id")]
pub struct Mismatch;

/// How many groups `len` bytes have.
pub fn group_count(len: u32) -> u32 {
    len.div_ceil(HASH_GROUP_LEN)
}

/// The groups that hold `[start, end)`, as a range of group numbers.
pub fn groups_of(start: u32, end: u32) -> Range<u32> {
    start / HASH_GROUP_LEN..end.div_ceil(HASH_GROUP_LEN)
}

/// Hashes a chunk that arrives in pieces, keeping its leaves.
#[derive(Debug)]
pub struct ChunkHasher {
    whole_len: u32,
    taken: u32,
    group: blake3::Hasher,
    leaves: Vec<Leaf>,
}

impl ChunkHasher {
    /// For a chunk of exactly `len` bytes, 1 or more.
    pub fn new(len: u32) -> ChunkHasher {
        assert!(len > 0, "a chunk has at least one byte");
        ChunkHasher { whole_len: len, taken: 0, group: blake3::Hasher::new(), leaves: Vec::new() }
    }

    /// The next bytes. More than announced is a bug of the caller.
    pub fn update(&mut self, mut bytes: &[u8]) {
        assert!(bytes.len() <= self.rest(), "more bytes than announced");
        while !bytes.is_empty() {
            let room = usize::try_from(HASH_GROUP_LEN - self.taken % HASH_GROUP_LEN).expect("64-bit");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.group.update(now);
            self.taken += u32::try_from(now.len()).expect("at most a group");
            if self.whole_len > HASH_GROUP_LEN
                && (self.taken.is_multiple_of(HASH_GROUP_LEN) || self.taken == self.whole_len)
            {
                self.leaves.push(self.group.finalize_non_root());
                self.group = blake3::Hasher::new(); // `reset` would keep the old input offset
                if self.taken < self.whole_len {
                    self.group.set_input_offset(u64::from(self.taken));
                }
            }
            bytes = later;
        }
    }

    fn rest(&self) -> usize {
        usize::try_from(self.whole_len - self.taken).expect("64-bit")
    }

    /// The id, and the leaves (none for a chunk of one group: its id is its leaf).
    pub fn finish(self) -> (ChunkId, Vec<Leaf>) {
        assert_eq!(self.taken, self.whole_len, "fewer bytes than announced");
        if self.whole_len <= HASH_GROUP_LEN {
            return (ChunkId(*self.group.finalize().as_bytes()), Vec::new());
        }
        (root_of(&self.leaves), self.leaves)
    }
}

/// The id and the leaves of bytes in memory. Faster than [`ChunkHasher`] when all is there.
pub fn hash_chunk(bytes: &[u8]) -> (ChunkId, Vec<Leaf>) {
    let mut hasher = ChunkHasher::new(crate::units::len_u32(bytes.len()));
    hasher.update(bytes);
    hasher.finish()
}

/// The id that belongs to these leaves. At least two.
pub fn root_of(leaves: &[Leaf]) -> ChunkId {
    let (left, right) = leaves.split_at(left_len(leaves.len()));
    ChunkId(*merge_subtrees_root(&fold(left), &fold(right), Mode::Hash).as_bytes())
}

fn fold(leaves: &[Leaf]) -> ChainingValue {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(left_len(leaves.len()));
    merge_subtrees_non_root(&fold(left), &fold(right), Mode::Hash)
}

/// Leaves in the left subtree of `n` leaves, `n` at least 2: the largest power of two below `n`.
fn left_len(n: usize) -> usize {
    assert!(n >= 2, "one leaf has no subtrees");
    n.next_power_of_two() / 2
}

/// A chunk's hash tree with all inner nodes, for who cuts many proofs from it: a proof costs no hashing then. Twice as
/// large as its leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    id: ChunkId,
    /// The leaves, then each time the level above, up to the root's two children. Where a level has an odd number of nodes
    /// the last one stands for itself in the next: that is the shape of BLAKE3's tree.
    levels: Box<[Box<[Leaf]>]>,
}

impl Tree {
    /// The tree over these leaves, at least two.
    pub fn new(leaves: &[Leaf]) -> Tree {
        let mut levels: Vec<Box<[Leaf]>> = vec![leaves.into()];
        while let Some(below) = levels.last().filter(|level| level.len() > 2) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                _ => pair[0],
            });
            let above = above.collect();
            levels.push(above);
        }
        let top = levels.last().expect("the leaves are there");
        assert!(top.len() == 2, "one leaf has no tree");
        let id = ChunkId(*merge_subtrees_root(&top[0], &top[1], Mode::Hash).as_bytes());
        Tree { id, levels: levels.into() }
    }

    /// The id of the chunk.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Bytes it takes in memory, about.
    pub fn bytes(&self) -> usize {
        self.levels.iter().map(|level| size_of_val(&**level)).sum()
    }

    /// As [`proof`].
    pub fn proof(&self, groups: Range<u32>) -> Vec<Leaf> {
        let range = usize::try_from(groups.start).expect("64-bit")..usize::try_from(groups.end).expect("64-bit");
        let mut out = Vec::with_capacity(2 * self.levels.len());
        self.cut(0, self.levels[0].len(), &range, &mut out);
        out
    }

    /// As [`collect`], over the leaves `[first, first + count)`.
    fn cut(&self, first: usize, count: usize, wanted: &Range<usize>, out: &mut Vec<Leaf>) {
        let end = first + count;
        if wanted.end <= first || end <= wanted.start {
            let level = count.next_power_of_two().trailing_zeros();
            out.push(self.levels[usize::try_from(level).expect("64-bit")][first >> level]);
        } else if count > 1 && !(wanted.start <= first && end <= wanted.end) {
            let left = left_len(count);
            self.cut(first, left, wanted, out);
            self.cut(first + left, count - left, wanted, out);
        }
    }
}

/// What a reader needs beside the bytes of `groups` to check them: subtrees outside, left to right. Empty when
/// `groups` is everything. `leaves` are those of the whole chunk; `groups` is not empty and inside.
pub fn proof(leaves: &[Leaf], groups: Range<u32>) -> Vec<Leaf> {
    let mut out = Vec::new();
    if !leaves.is_empty() {
        let range = usize::try_from(groups.start).expect("64-bit")..usize::try_from(groups.end).expect("64-bit");
        collect(leaves, 0, &range, &mut out);
    }
    out
}

fn collect(leaves: &[Leaf], first: usize, wanted: &Range<usize>, out: &mut Vec<Leaf>) {
    let end = first + leaves.len();
    if wanted.end <= first || end <= wanted.start {
        out.push(fold(leaves));
    } else if leaves.len() > 1 && !(wanted.start <= first && end <= wanted.end) {
        let (left, right) = leaves.split_at(left_len(leaves.len()));
        collect(left, first, wanted, out);
        collect(right, first + left.len(), wanted, out);
    }
}

/// Checks `bytes`, which are to be groups `[start, ...)` of the chunk `id` of `chunk_len` bytes.
///
/// `start` is a multiple of [`HASH_GROUP_LEN`]; the bytes end at a group boundary or at the chunk's end. Nothing about
/// the arguments is trusted: whatever does not fit is a [`Mismatch`]. Costs one pass over `bytes`.
pub fn verify(id: ChunkId, chunk_len: u32, start: u32, bytes: &[u8], proof: &[Leaf]) -> Result<(), Mismatch> {
    let len = u32::try_from(bytes.len()).map_err(|_| Mismatch)?;
    let end = start.checked_add(len).filter(|end| *end <= chunk_len && len > 0).ok_or(Mismatch)?;
    if !start.is_multiple_of(HASH_GROUP_LEN) || (end != chunk_len && !end.is_multiple_of(HASH_GROUP_LEN)) {
        return Err(Mismatch);
    }
    if start == 0 && end == chunk_len {
        return if ChunkId::of(bytes) == id { Ok(()) } else { Err(Mismatch) };
    }
    let mut walk = Walk { start, bytes, proof: proof.iter() };
    let groups = usize::try_from(group_count(chunk_len)).expect("64-bit");
    let left_groups = left_len(groups);
    let left = walk.subtree(0, left_groups, chunk_len)?;
    let right = walk.subtree(left_groups, groups - left_groups, chunk_len)?;
    let root = merge_subtrees_root(&left, &right, Mode::Hash);
    if walk.proof.next().is_some() || ChunkId(*root.as_bytes()) != id { Err(Mismatch) } else { Ok(()) }
}

struct Walk<'a> {
    start: u32,
    bytes: &'a [u8],
    proof: std::slice::Iter<'a, Leaf>,
}

impl Walk<'_> {
    fn subtree(&mut self, first: usize, count: usize, chunk_len: u32) -> Result<ChainingValue, Mismatch> {
        let group_len = crate::units::len_usize(u64::from(HASH_GROUP_LEN));
        let start = crate::units::len_usize(u64::from(self.start));
        let (from, to) =
            (first * group_len, ((first + count) * group_len).min(crate::units::len_usize(chunk_len.into())));
        let (have_from, have_to) = (start, start + self.bytes.len());
        if to <= have_from || have_to <= from {
            return self.proof.next().copied().ok_or(Mismatch);
        }
        if have_from <= from && to <= have_to && count.is_power_of_two() {
            // A whole subtree in one call: BLAKE3 hashes many of its chunks at once.
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(crate::units::len_u64(from));
            return Ok(hasher.update(&self.bytes[from - start..to - start]).finalize_non_root());
        }
        assert!(count > 1, "a group is inside or outside the range");
        let left_count = left_len(count);
        let left = self.subtree(first, left_count, chunk_len)?;
        let right = self.subtree(first + left_count, count - left_count, chunk_len)?;
        Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * 31 + i / 7) % 251).unwrap()).collect()
    }

    const G: usize = 16 << 10;

    #[test]
    fn the_root_is_the_plain_blake3() {
        for len in [1, 1000, G - 1, G, G + 1, 2 * G, 3 * G - 5, 5 * G, 8 * G, 100 * G + 17] {
            let data = bytes(len);
            let (id, leaves) = hash_chunk(&data);
            assert_eq!(id, ChunkId::of(&data), "{len}");
            assert_eq!(leaves.len(), if len <= G { 0 } else { len.div_ceil(G) });
        }
    }

    /// Not a test: `nextest run -p common proofs --run-ignored only --no-capture`.
    #[test]
    #[ignore = "prints figures"]
    #[allow(clippy::print_stdout, reason = "prints figures")]
    fn speed_of_proofs() {
        let (_, leaves) = hash_chunk(&bytes(4 << 20));
        let tree = Tree::new(&leaves);
        let time = |what: &str, cut: &dyn Fn(u32) -> Vec<Leaf>| {
            let began = tokio::time::Instant::now();
            let nodes: usize = (0..20_000).map(|n: u32| cut(n % 256).len()).sum();
            println!("{what}: {:?} each, {} nodes", began.elapsed() / 20_000, nodes / 20_000);
        };
        time("from the leaves", &|n| proof(&leaves, n..n + 1));
        time("from the tree", &|n| tree.proof(n..n + 1));
    }

    proptest! {
        #[test]
        fn any_range_verifies_and_any_flipped_bit_does_not(
            len in 1usize..40 * G, a in 0usize..40, n in 1usize..40, flip in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let data = bytes(len);
            let (id, leaves) = hash_chunk(&data);
            let groups = len.div_ceil(G);
            let first = a.min(groups - 1);
            let last = (first + n).min(groups);
            let range = u32::try_from(first).unwrap()..u32::try_from(last).unwrap();
            let proof = proof(&leaves, range.clone());
            if groups > 1 {
                let tree = Tree::new(&leaves);
                prop_assert_eq!(tree.id(), id);
                prop_assert_eq!(&tree.proof(range), &proof);
            }
            let (start, end) = (first * G, (last * G).min(len));
            let (start32, len32) = (u32::try_from(start).unwrap(), u32::try_from(len).unwrap());
            let mut part = data[start..end].to_vec();
            prop_assert_eq!(verify(id, len32, start32, &part, &proof), Ok(()));
            let at = flip.index(part.len());
            part[at] ^= 1 << bit;
            prop_assert_eq!(verify(id, len32, start32, &part, &proof), Err(Mismatch));
            part[at] ^= 1 << bit;
            if !proof.is_empty() {
                let mut bad = proof.clone();
                let at = flip.index(bad.len());
                bad[at][3] ^= 1 << bit;
                prop_assert_eq!(verify(id, len32, start32, &part, &bad), Err(Mismatch));
                prop_assert_eq!(verify(id, len32, start32, &part, &proof[1..]), Err(Mismatch));
            }
        }
    }
}
