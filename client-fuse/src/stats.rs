//! What a client counted since it was connected.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A reading of all counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct Stats { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Bytes handed to `write`.
    written_bytes,
    /// Bytes handed out by `read`.
    read_bytes,
    /// Chunk bytes sent to chunkservers (once per chunk and chain, not per replica).
    sent_bytes,
    /// Chunk bytes received from chunkservers.
    received_bytes,
    /// Chunks put.
    puts,
    /// Chunks found already stored everywhere, so never sent.
    dedup_chunks,
    /// Their bytes.
    dedup_bytes,
    /// Ranges of zeros stored as holes, in bytes.
    zero_bytes,
    /// Bytes kept inline in the metadata.
    inline_bytes,
    /// Commits applied.
    commits,
    /// Changes decided here, under write leases.
    decided,
    /// Batches of them that turned out otherwise than was answered for: a defect.
    misjudged,
    /// Commits that had to start over: touch again, put again, stale.
    commit_retries,
    /// Metadata requests sent again.
    meta_retries,
    /// Replicas whose bytes did not match the chunk id: never shown, another replica was read.
    corrupt_replicas,
    /// Replica reads that failed for another reason.
    failed_replicas,
    /// Second requests sent because the first replica was slow.
    hedged_reads,
    /// Chunk reads answered from memory.
    cache_hits,
    /// Chunk reads that were not.
    cache_misses,
    /// Windows rewritten as one chunk because they had too many extents.
    compactions,
    /// Sessions opened after the first.
    sessions_reopened,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
