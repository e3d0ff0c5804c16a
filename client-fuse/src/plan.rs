//! What the bytes of a flight become: holes, inline bytes, or chunks named by their hash. Pure.

use crate::chunks::{Outgoing, Stored};
use crate::dirty::{Placed, runs};
use crate::inode::Uploaded;
use bytes::Bytes;
use common::id::ChunkId;
use common::proto::chunk::ChunkRef;
use common::proto::meta::{Edit, Source};
use common::units::{INLINE_LEN_MAX, len_u64};
use std::collections::BTreeMap;

/// Ranges of zeros from this length on become holes, in bytes.
const HOLE_MIN: usize = 4 << 10;

static ZEROS: [u8; HOLE_MIN] = [0; HOLE_MIN];

/// The bytes of a flight and how they may be kept.
pub(crate) struct Job {
    pub(crate) pieces: Vec<Placed>,
    pub(crate) window: u64,
    pub(crate) replicas: u8,
    pub(crate) inline: bool,
}

/// What became of them.
#[derive(Default)]
pub(crate) struct Planned {
    pub(crate) edits: Vec<Edit>,
    pub(crate) chunks: Vec<Outgoing>,
    pub(crate) inline_bytes: u64,
    pub(crate) zero_bytes: u64,
}

impl Planned {
    /// With proof that its chunks are stored, if it has any.
    pub(crate) fn uploaded(self, stored: Option<Stored>) -> Uploaded {
        let Planned { edits, chunks, inline_bytes, .. } = self;
        Uploaded { edits, chunks, stored, inline_bytes }
    }
}

/// Decides what each run of bytes becomes: a hole, inline bytes, or a chunk.
pub(crate) fn plan(job: Job) -> Planned {
    let mut out = Planned::default();
    let mut chunks: BTreeMap<ChunkId, Outgoing> = BTreeMap::new();
    for (at, parts) in runs(job.pieces, job.window) {
        let len: u64 = parts.iter().map(|part| len_u64(part.len())).sum();
        if len >= len_u64(HOLE_MIN) && parts.iter().all(is_zero) {
            out.zero_bytes += len;
            out.edits.push(Edit { at, len, data: Source::Hole });
        } else if job.inline {
            out.inline_bytes += len;
            inline(&mut out.edits, at, parts);
        } else {
            let mut hasher = blake3::Hasher::new();
            for part in &parts {
                hasher.update(part);
            }
            let id = ChunkId(*hasher.finalize().as_bytes());
            let chunk = ChunkRef { id, len: u32::try_from(len).expect("a window is at most 64 MiB") };
            chunks.entry(id).or_insert(Outgoing { chunk, bytes: parts });
            out.edits.push(Edit { at, len, data: Source::Chunk { id, offset: 0 } });
        }
    }
    out.chunks = chunks.into_values().collect();
    out
}

fn inline(edits: &mut Vec<Edit>, mut at: u64, parts: Vec<Bytes>) {
    let mut all = match <[Bytes; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(many) => Bytes::from(many.concat()),
    };
    while !all.is_empty() {
        // A copy, so that a few bytes do not hold a whole kernel request in memory.
        let bytes = Bytes::copy_from_slice(&all.split_to(all.len().min(INLINE_LEN_MAX)));
        let len = len_u64(bytes.len());
        edits.push(Edit { at, len, data: Source::Inline { id: ChunkId::of(&bytes), offset: 0, bytes } });
        at += len;
    }
}

fn is_zero(bytes: &Bytes) -> bool {
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
