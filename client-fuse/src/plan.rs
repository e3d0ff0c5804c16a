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

/// Runs shorter than this share chunks, if there are several in a flight: random writes. A chunk for each would cost three
/// servers an index entry, and the metaservers a row and three receipts, for a few KiB.
const SMALL_RUN: u64 = 64 << 10;
/// Fewer of them each become a chunk: equal data is one chunk only if it is cut equally.
const PACKED_MIN: usize = 8;
/// Such a chunk is at most this long, in bytes: it stays as long as anything refers to a part of it.
const PACK_MAX: u64 = 1 << 20;

/// The bytes of a flight and how they may be kept.
pub(crate) struct Job {
    pub(crate) pieces: Vec<Placed>,
    pub(crate) window: u64,
    pub(crate) replicas: u8,
    pub(crate) inline: bool,
    /// Small runs share chunks.
    pub(crate) pack: bool,
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
    let mut packs = Vec::new();
    for (at, parts) in runs(job.pieces, job.window) {
        let len: u64 = parts.iter().map(|part| len_u64(part.len())).sum();
        if len >= len_u64(HOLE_MIN) && parts.iter().all(is_zero) {
            out.zero_bytes += len;
            out.edits.push(Edit { at, len, data: Source::Hole });
        } else if job.inline {
            out.inline_bytes += len;
            inline(&mut out.edits, at, parts);
        } else {
            packs.push(Pack { len, runs: vec![(at, len)], bytes: parts });
        }
    }
    if job.pack {
        packs = packed(packs, job.window.min(PACK_MAX));
    }
    let mut chunks: BTreeMap<ChunkId, Outgoing> = BTreeMap::new();
    for Pack { len, runs, bytes } in packs {
        let mut hasher = blake3::Hasher::new();
        for part in &bytes {
            hasher.update(part);
        }
        let id = ChunkId(*hasher.finalize().as_bytes());
        let chunk = ChunkRef { id, len: u32::try_from(len).expect("a window is at most 64 MiB") };
        chunks.entry(id).or_insert(Outgoing { chunk, bytes });
        let mut offset = 0;
        for (at, len) in runs {
            out.edits.push(Edit { at, len, data: Source::Chunk { id, offset } });
            offset += u32::try_from(len).expect("not longer than the chunk");
        }
    }
    out.edits.sort_by_key(|edit| edit.at);
    out.chunks = chunks.into_values().collect();
    out
}

/// What becomes one chunk.
struct Pack {
    len: u64,
    /// Where its bytes go, one after the other, and how many.
    runs: Vec<(u64, u64)>,
    bytes: Vec<Bytes>,
}

/// Puts small runs together, up to `most` bytes.
fn packed(runs: Vec<Pack>, most: u64) -> Vec<Pack> {
    if runs.iter().filter(|run| run.len < SMALL_RUN).count() < PACKED_MIN {
        return runs;
    }
    let (small, mut out): (Vec<Pack>, Vec<Pack>) = runs.into_iter().partition(|run| run.len < SMALL_RUN);
    let mut last: Option<Pack> = None;
    for run in small {
        match &mut last {
            Some(pack) if pack.len + run.len <= most => {
                pack.len += run.len;
                pack.runs.extend(run.runs);
                pack.bytes.extend(run.bytes);
            }
            _ => out.extend(last.replace(run)),
        }
    }
    out.extend(last);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan of runs of these lengths, each after a gap, of different bytes; and what its edits make of the file.
    fn planned(lens: &[usize]) -> (Planned, bool) {
        let mut at = 100;
        let mut pieces = Vec::new();
        for (len, byte) in lens.iter().zip((1_u8..=250).cycle()) {
            pieces.push((at, Bytes::from(vec![byte; *len])));
            at += len_u64(*len) + 1;
        }
        let plan = plan(Job { pieces: pieces.clone(), window: 4 << 20, replicas: 1, inline: false, pack: true });
        let chunk = |id| {
            let chunk = plan.chunks.iter().find(|out| out.chunk.id == id).unwrap();
            let bytes = chunk.bytes.concat();
            assert_eq!((ChunkId::of(&bytes), len_u64(bytes.len())), (id, chunk.chunk.len.into()));
            bytes
        };
        let bytes = |edit: &Edit| match edit.data {
            Source::Chunk { id, offset } => {
                let (from, len) = (usize::try_from(offset).unwrap(), usize::try_from(edit.len).unwrap());
                (edit.at, Bytes::from(chunk(id)[from..from + len].to_vec()))
            }
            _ => panic!("{edit:?}"),
        };
        let right = plan.edits.iter().map(bytes).collect::<Vec<_>>() == pieces;
        (plan, right)
    }

    #[test]
    fn many_small_runs_share_chunks_and_few_do_not() {
        for (lens, chunks) in [
            (vec![4096; PACKED_MIN - 1], PACKED_MIN - 1),
            (vec![4096; PACKED_MIN], 1),
            (vec![4096; 512], 2),
            ([vec![100_000], vec![4096; 20], vec![70_000]].concat(), 3),
            (vec![65_535; 40], 3),
            (vec![65_536; 40], 40),
        ] {
            let (plan, right) = planned(&lens);
            assert!(right, "{} runs", lens.len());
            assert_eq!(plan.chunks.len(), chunks, "{} runs", lens.len());
        }
    }
}
