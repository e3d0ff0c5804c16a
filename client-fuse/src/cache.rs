//! Whole chunks in memory, and the one place that decides how long cached knowledge of a file is good.
//!
//! A chunk is named by its hash, so a cached one is never stale; only its use of memory is limited. Loads of one chunk
//! are shared: whoever wants it waits for the same transfer, and the transfer goes on when they leave.
//!
//! Validity of the rest, until leases come: names and attributes are not kept here at all; extents and size of a file
//! are kept while it is open, brought up to date by every `open`, `getattr` and commit ([`fresher`]).

use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::id::ChunkId;
use common::proto::meta::Attr;
use common::units::len_u64;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Memory of one entry beside its bytes.
const ENTRY_COST: u64 = 256;
/// Chunks whose random reads are counted.
const COUNTED_MAX: usize = 4096;
/// Reading a part of a chunk costs about as much as reading so many bytes in one go, in bytes: a round trip to a replica, at
/// which about 1 GB/s come in one go.
const RANGE_COST: u64 = 256 << 10;
/// Fewer small reads than would cost this much are no sign of more to come, in bytes.
const DENSE_MIN: u64 = 4 * RANGE_COST;

/// Whether `new` tells more of a file than `old`: the data version decides.
pub(crate) fn fresher(new: &Attr, old: &Attr) -> bool {
    new.version >= old.version
}

type Loaded = Option<Result<Bytes, Fault>>;

#[derive(Debug)]
enum Entry {
    Ready { bytes: Bytes, tick: u64 },
    Loading(watch::Receiver<Loaded>),
}

#[derive(Debug, Default)]
struct Inside {
    entries: BTreeMap<ChunkId, Entry>,
    by_age: BTreeMap<u64, ChunkId>,
    bytes: u64,
    tick: u64,
    /// What was read of chunks in ranges lately.
    ranges: BTreeMap<ChunkId, Ranges>,
}

#[derive(Debug, Default)]
struct Ranges {
    bytes: u64,
    /// What the reads cost since the chunk was last said to be read densely, in bytes as [`RANGE_COST`] counts them.
    cost: u64,
}

/// What to do about a read of a part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// To read that part.
    Part,
    /// The same. So many parts were read by now that one read of the whole would not have cost more: whoever has memory for it
    /// that is not of the client should have it read. (As when to buy skis that one has rented so far: this never costs
    /// more than twice of what would have been best.)
    PartOfDense,
    /// So much of it was read that the whole is worth keeping.
    Whole,
}

/// A bounded cache of whole, verified chunks.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    inside: Mutex<Inside>,
    /// Ready chunks take at most this many bytes.
    ready_max: u64,
    /// Bytes that may be loading.
    loading: Arc<Semaphore>,
    loading_max: u64,
}

/// What to do to get a chunk.
pub(crate) enum Find {
    /// It is here.
    Here(Bytes),
    /// Somebody loads it.
    Coming(Coming),
    /// The caller loads it, with [`ChunkCache::load`].
    Load(watch::Sender<Loaded>, Coming),
}

/// A chunk on its way.
pub(crate) struct Coming(watch::Receiver<Loaded>);

impl Coming {
    /// Waits for it. The caller sets the deadline.
    pub(crate) async fn wait(mut self) -> Result<Bytes, Fault> {
        match self.0.wait_for(Option::is_some).await {
            Ok(loaded) => loaded.clone().expect("waited for"),
            Err(_) => Err(Fault::new(Kind::Unavailable, "the client is stopping")),
        }
    }
}

impl ChunkCache {
    /// A cache that uses at most `bytes` of memory, half of it for chunks that are on their way.
    pub(crate) fn new(bytes: u64) -> ChunkCache {
        let loading_max = bytes / 2;
        let permits = usize::try_from(loading_max).expect("64-bit");
        ChunkCache {
            inside: Mutex::default(),
            ready_max: bytes - loading_max,
            loading: Arc::new(Semaphore::new(permits)),
            loading_max,
        }
    }

    /// Bytes that may be on their way at once.
    pub(crate) fn loading_max(&self) -> u64 {
        self.loading_max
    }

    /// What ready chunks take of memory, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.inside.lock().expect("no panic holds this lock").bytes
    }

    /// A chunk that is here.
    pub(crate) fn get(&self, id: &ChunkId) -> Option<Bytes> {
        let mut inside = self.inside.lock().expect("no panic holds this lock");
        inside.touch(id)
    }

    /// Looks for a chunk and, if nobody has or loads it, makes the caller its loader.
    pub(crate) fn find(&self, id: &ChunkId) -> Find {
        let mut inside = self.inside.lock().expect("no panic holds this lock");
        if let Some(bytes) = inside.touch(id) {
            return Find::Here(bytes);
        }
        if let Some(Entry::Loading(receiver)) = inside.entries.get(id) {
            return Find::Coming(Coming(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        inside.entries.insert(*id, Entry::Loading(receiver.clone()));
        Find::Load(sender, Coming(receiver))
    }

    /// Room to load a chunk that will only perhaps be wanted. `None`: there is none right now. A guess does not wait: it
    /// would stand before what is wanted.
    pub(crate) fn room_for_a_guess(&self, len: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.loading).try_acquire_many_owned(self.share(len)).ok()
    }

    fn share(&self, len: u32) -> u32 {
        len.min(u32::try_from(self.loading_max).unwrap_or(u32::MAX))
    }

    /// Carries out a load that [`ChunkCache::find`] asked for. Must run to its end: on a task of its own. Waits for room,
    /// unless it has some.
    pub(crate) async fn load(
        &self,
        id: ChunkId,
        len: u32,
        sender: watch::Sender<Loaded>,
        room: Option<OwnedSemaphorePermit>,
        fetch: impl Future<Output = Result<Bytes, Fault>>,
    ) {
        let _clear = Clear { cache: self, id };
        let permit = match room {
            Some(room) => room,
            None => Arc::clone(&self.loading).acquire_many_owned(self.share(len)).await.expect("never closed"),
        };
        let loaded = fetch.await;
        if let Ok(bytes) = &loaded {
            self.keep(id, bytes.clone());
        }
        drop(permit);
        sender.send_replace(Some(loaded));
    }

    /// Keeps a verified chunk, and drops what was not used for longest.
    fn keep(&self, id: ChunkId, bytes: Bytes) {
        let cost = len_u64(bytes.len()) + ENTRY_COST;
        let mut inside = self.inside.lock().expect("no panic holds this lock");
        if cost > self.ready_max {
            return;
        }
        inside.drop_ready(&id);
        while inside.bytes + cost > self.ready_max {
            let Some((_, oldest)) = inside.by_age.first_key_value().map(|(t, id)| (*t, *id)) else { break };
            inside.drop_ready(&oldest);
        }
        inside.tick += 1;
        let tick = inside.tick;
        inside.bytes += cost;
        inside.by_age.insert(tick, id);
        inside.ranges.remove(&id);
        inside.entries.insert(id, Entry::Ready { bytes, tick });
    }

    /// Counts a read of a part.
    pub(crate) fn count_range(&self, id: &ChunkId, len: u32, chunk_len: u32) -> Worth {
        let mut inside = self.inside.lock().expect("no panic holds this lock");
        if inside.ranges.len() >= COUNTED_MAX && !inside.ranges.contains_key(id) {
            inside.ranges.clear();
        }
        let read = inside.ranges.entry(*id).or_default();
        read.bytes += u64::from(len);
        read.cost += RANGE_COST.max(len.into());
        if read.bytes >= u64::from(chunk_len) / 4 {
            return Worth::Whole;
        }
        if read.cost < DENSE_MIN.max(chunk_len.into()) {
            return Worth::Part;
        }
        read.cost = 0;
        Worth::PartOfDense
    }
}

/// Takes away the `Loading` entry of a load that ended without a chunk.
struct Clear<'a> {
    cache: &'a ChunkCache,
    id: ChunkId,
}

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        let mut inside = self.cache.inside.lock().expect("no panic holds this lock");
        if matches!(inside.entries.get(&self.id), Some(Entry::Loading(_))) {
            inside.entries.remove(&self.id);
        }
    }
}

impl Inside {
    fn touch(&mut self, id: &ChunkId) -> Option<Bytes> {
        let next = self.tick + 1;
        let Some(Entry::Ready { bytes, tick }) = self.entries.get_mut(id) else { return None };
        let before = std::mem::replace(tick, next);
        let bytes = bytes.clone();
        self.tick = next;
        self.by_age.remove(&before);
        self.by_age.insert(next, *id);
        Some(bytes)
    }

    fn drop_ready(&mut self, id: &ChunkId) {
        if let Some(Entry::Ready { bytes, tick }) = self.entries.get(id) {
            self.bytes -= len_u64(bytes.len()) + ENTRY_COST;
            self.by_age.remove(tick);
            self.entries.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    async fn load(cache: &ChunkCache, n: u8, len: usize) -> Bytes {
        match cache.find(&id(n)) {
            Find::Here(bytes) => bytes,
            Find::Coming(coming) => coming.wait().await.unwrap(),
            Find::Load(sender, coming) => {
                let bytes = Bytes::from(vec![n; len]);
                cache.load(id(n), u32::try_from(len).unwrap(), sender, None, async { Ok(bytes) }).await;
                coming.wait().await.unwrap()
            }
        }
    }

    #[tokio::test]
    async fn it_keeps_what_was_used_last_within_its_limit() {
        let cache = ChunkCache::new(20_000);
        for n in 0..4 {
            load(&cache, n, 2000).await;
        }
        assert!(cache.get(&id(0)).is_some());
        load(&cache, 9, 4000).await;
        assert!(cache.get(&id(0)).is_some() && cache.get(&id(9)).is_some());
        assert!(cache.get(&id(1)).is_none() && cache.get(&id(2)).is_none());
        let inside = cache.inside.lock().unwrap();
        assert!(inside.bytes <= cache.ready_max);
        assert_eq!(inside.by_age.len(), inside.entries.len());
    }

    #[tokio::test]
    async fn guesses_leave_no_queue_before_what_is_wanted() {
        let cache = ChunkCache::new(20_000);
        let first = cache.room_for_a_guess(8000).expect("nothing is loading");
        assert!(cache.room_for_a_guess(8000).is_none(), "it would have to wait");
        let wanted = load(&cache, 1, 2000);
        tokio::time::timeout(std::time::Duration::from_secs(5), wanted).await.expect("nobody stands before it");
        drop(first);
        assert!(cache.room_for_a_guess(8000).is_some());
    }

    #[tokio::test]
    async fn a_failed_load_is_told_to_all_and_can_be_repeated() {
        let cache = ChunkCache::new(20_000);
        let Find::Load(sender, first) = cache.find(&id(1)) else { panic!("nobody has it") };
        let Find::Coming(second) = cache.find(&id(1)) else { panic!("it is coming") };
        cache.load(id(1), 10, sender, None, async { Err(Fault::new(Kind::Corrupt, "x")) }).await;
        assert_eq!(first.wait().await.unwrap_err().kind, Kind::Corrupt);
        assert_eq!(second.wait().await.unwrap_err().kind, Kind::Corrupt);
        assert_eq!(load(&cache, 1, 10).await.len(), 10);
    }

    #[test]
    fn many_small_reads_of_a_chunk_make_it_dense_and_much_of_it_whole() {
        let cache = ChunkCache::new(20_000);
        let (len, chunk_len) = (4096, 4 << 20);
        let said: Vec<Worth> = (0..256).map(|_| cache.count_range(&id(1), len, chunk_len)).collect();
        for (at, worth) in said.iter().enumerate() {
            let expected = match at + 1 {
                256 => Worth::Whole,
                n if n % 16 == 0 => Worth::PartOfDense,
                _ => Worth::Part,
            };
            assert_eq!(*worth, expected, "read {at}");
        }
        let said: Vec<Worth> = (0..4).map(|_| cache.count_range(&id(2), len, 200 << 10)).collect();
        assert_eq!(said, [Worth::Part, Worth::Part, Worth::Part, Worth::PartOfDense], "a look at a short file");
        assert_eq!(cache.count_range(&id(3), 1 << 20, chunk_len), Worth::Whole, "a quarter");
    }
}
