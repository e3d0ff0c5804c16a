//! What is missing here, most endangered first: what few servers have comes before what many have, and what can wait
//! comes last.

use common::id::{ChunkId, PgId, ServerId};
use common::proto::chunk::ChunkRef;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Missing chunks remembered, at most: of more, those that come last are only counted, and found again when there is room.
pub(super) const QUEUE_MAX: usize = 64 << 10;
/// The rate is that of the last so many seconds.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Steps of the rate, at most.
const RATE_STEPS_MAX: usize = 4096;

/// A chunk that should be here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) chunk: ChunkRef,
    /// Who was seen to have it.
    pub(super) holders: Vec<ServerId>,
    /// The metaservers want to be told when it is here.
    pub(super) degraded: bool,
    /// As many as it should have copies hold it: it moves here, and can wait.
    pub(super) spare: bool,
}

/// The order in which they are fetched: what can wait comes last, before it what nobody seems to have (else many lost chunks would
/// keep the rest from being fetched), and first what the fewest have.
type Rank = (bool, bool, usize, ChunkId);

impl Missing {
    /// The loss of one more server may lose it.
    pub(super) fn is_endangered(&self) -> bool {
        !self.spare && self.holders.len() <= 1
    }
}

#[derive(Debug)]
struct Entry {
    missing: Missing,
    since: Instant,
    /// The pass that saw it last.
    pass: u64,
    state: State,
    /// Nobody gave it the last time.
    refused: bool,
}

impl Entry {
    fn rank(&self) -> Rank {
        let Missing { chunk, holders, spare, .. } = &self.missing;
        (*spare, self.refused || holders.is_empty(), holders.len(), chunk.id)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Taken,
    /// Nobody gave it; the next pass makes it wait again.
    Unavailable,
    /// This server cannot take it, as when its disks are full; the next pass makes it wait again.
    NotNow,
}

/// See the module. Time is an argument.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<ChunkId, Entry>,
    /// Those that wait.
    order: BTreeSet<Rank>,
    /// Those that failed.
    failed: BTreeSet<ChunkId>,
    /// Seen in the present pass beyond [`QUEUE_MAX`], and in the last whole one: chunks, bytes.
    beyond: (u64, u64),
    beyond_last: (u64, u64),
    done: VecDeque<(Instant, u64)>,
    pub(super) remade: u64,
    pub(super) remade_bytes: u64,
}

/// Numbers for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) missing: u64,
    pub(super) bytes: u64,
    pub(super) unavailable: u64,
    pub(super) oldest: Duration,
    pub(super) rate: u64,
}

impl Queue {
    /// A pass found this missing.
    pub(super) fn found(&mut self, missing: Missing, pass: u64, now: Instant) {
        let id = missing.chunk.id;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pass = pass;
            if entry.state != State::Taken {
                self.order.remove(&entry.rank());
                self.failed.remove(&id);
                entry.missing = missing;
                entry.state = State::Waiting;
                self.order.insert(entry.rank());
            }
            return;
        }
        let entry = Entry { missing, since: now, pass, state: State::Waiting, refused: false };
        let rank = entry.rank();
        if self.entries.len() >= QUEUE_MAX && !self.make_room(&rank, pass) {
            self.beyond.0 += 1;
            self.beyond.1 += u64::from(entry.missing.chunk.len);
            return;
        }
        self.entries.insert(id, entry);
        self.order.insert(rank);
    }

    /// Lets go of something that this one comes before: what could not be had, else the last of those that wait.
    fn make_room(&mut self, rank: &Rank, pass: u64) -> bool {
        let (spare, hopeless, ..) = *rank;
        let failed = if spare || hopeless { None } else { self.failed.pop_first() };
        let id = match failed {
            Some(id) => id,
            None if self.order.last().is_some_and(|last| last > rank) => {
                let (.., id) = self.order.pop_last().expect("just seen");
                id
            }
            None => return false,
        };
        let gone = self.entries.remove(&id).expect("what failed or is in order is an entry");
        if gone.pass == pass {
            self.beyond.0 += 1;
            self.beyond.1 += u64::from(gone.missing.chunk.len);
        }
        true
    }

    /// A pass over everything is through: what it did not see is not missing any more. True: there was more than the
    /// queue takes.
    pub(super) fn passed(&mut self, pass: u64) -> bool {
        let gone = |entry: &Entry| entry.pass != pass && entry.state != State::Taken;
        let (order, failed) = (&mut self.order, &mut self.failed);
        self.entries.retain(|id, entry| {
            if gone(entry) {
                order.remove(&entry.rank());
                failed.remove(id);
            }
            !gone(entry)
        });
        self.beyond_last = std::mem::take(&mut self.beyond);
        self.beyond_last.0 > 0
    }

    /// A pass is begun, or begun again.
    pub(super) fn begin(&mut self) {
        self.beyond = (0, 0);
    }

    /// The next one to fetch; `spare`: also one that can wait. Say what became of it with [`Queue::made`] or
    /// [`Queue::failed`].
    pub(super) fn take(&mut self, spare: bool) -> Option<Missing> {
        let first = *self.order.first().filter(|(waits, ..)| spare || !waits)?;
        self.order.remove(&first);
        let (.., id) = first;
        let entry = self.entries.get_mut(&id).expect("what is in order is an entry");
        entry.state = State::Taken;
        Some(entry.missing.clone())
    }

    /// It is here.
    pub(super) fn made(&mut self, chunk: ChunkRef, now: Instant) {
        self.entries.remove(&chunk.id);
        self.remade += 1;
        self.remade_bytes += u64::from(chunk.len);
        self.done.push_back((now, chunk.len.into()));
        self.forget_old(now);
    }

    /// It is not here: nobody gave it, or else this server cannot take it. The next pass asks again.
    pub(super) fn failed(&mut self, id: ChunkId, nobody_gave: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.state = if nobody_gave { State::Unavailable } else { State::NotNow };
            entry.refused = nobody_gave;
            self.failed.insert(id);
        }
    }

    /// Bytes of a group that are not here yet.
    pub(super) fn waiting(&self, pg: PgId, pg_count: u32) -> u64 {
        let of_group = self.entries.range(pg.first(pg_count)..).take_while(|(id, _)| id.pg(pg_count) == pg);
        of_group.map(|(_, entry)| u64::from(entry.missing.chunk.len)).sum()
    }

    /// Nothing waits to be taken.
    pub(super) fn is_idle(&self) -> bool {
        self.order.is_empty()
    }

    /// For the report.
    pub(super) fn numbers(&mut self, now: Instant) -> Numbers {
        self.forget_old(now);
        let mut numbers = Numbers { missing: self.beyond_last.0, bytes: self.beyond_last.1, ..Numbers::default() };
        for entry in self.entries.values() {
            numbers.missing += 1;
            numbers.bytes += u64::from(entry.missing.chunk.len);
            numbers.unavailable += u64::from(entry.state == State::Unavailable);
            numbers.oldest = numbers.oldest.max(now.saturating_duration_since(entry.since));
        }
        numbers.rate = self.done.iter().map(|(_, bytes)| bytes).sum::<u64>() / RATE_OVER.as_secs();
        numbers
    }

    fn forget_old(&mut self, now: Instant) {
        let old = |(at, _): &(Instant, u64)| now.saturating_duration_since(*at) >= RATE_OVER;
        while self.done.front().is_some_and(old) {
            self.done.pop_front();
        }
        // Steps of small chunks run together: the rate is for people.
        if self.done.len() > RATE_STEPS_MAX
            && let Some((_, first)) = self.done.pop_front()
            && let Some((_, next)) = self.done.front_mut()
        {
            *next += first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(n: u8, holders: u32) -> Missing {
        let chunk = ChunkRef { id: ChunkId([n; 32]), len: 10 };
        Missing { chunk, holders: (1..=holders).map(ServerId).collect(), degraded: false, spare: false }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fewest_have_is_fetched_first_and_nothing_is_lost_on_the_way() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (n, holders) in [(1, 2), (2, 1), (3, 3), (4, 1)] {
            queue.found(missing(n, holders), 1, now);
        }
        queue.found(missing(3, 0), 1, now); // seen again: its holders are gone
        assert!(!queue.passed(1));
        let mut taken = Vec::new();
        while let Some(next) = queue.take(true) {
            taken.push(next.chunk.id.0[0]);
        }
        assert_eq!(taken, [2, 4, 1, 3], "what nobody has comes last");
        queue.made(missing(2, 1).chunk, now);
        queue.failed(ChunkId([3; 32]), true);
        queue.failed(ChunkId([1; 32]), false); // full here: that is no lost chunk
        tokio::time::advance(Duration::from_secs(5)).await;
        let later = Instant::now();
        let numbers = queue.numbers(later);
        assert_eq!((numbers.missing, numbers.bytes, numbers.unavailable, numbers.rate), (3, 30, 1, 1));
        assert_eq!(numbers.oldest, Duration::from_secs(5));
        // The next pass sees one of them again; what is being fetched stays whatever it sees.
        queue.begin();
        queue.found(missing(3, 0), 2, later);
        queue.passed(2);
        assert_eq!(queue.take(true).map(|next| next.chunk.id.0[0]), Some(3));
        assert_eq!(queue.numbers(later).missing, 2, "4 is still being fetched");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_comes_last_or_not_at_all() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.found(Missing { spare: true, ..missing(1, 1) }, 1, now);
        queue.found(missing(2, 3), 1, now);
        let mut take = |spare| queue.take(spare).map(|next| next.chunk.id.0[0]);
        assert_eq!((take(false), take(false), take(true), take(true)), (Some(2), None, Some(1), None));
        assert_eq!((queue.waiting(PgId(0), 16), queue.waiting(PgId(1), 16)), (20, 0), "taken is not here yet");
        queue.made(missing(1, 1).chunk, now);
        assert_eq!(queue.waiting(PgId(0), 16), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_queue_does_not_take_is_counted_and_found_again() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for n in 0..QUEUE_MAX + 10 {
            let mut id = ChunkId([0; 32]);
            id.0[..8].copy_from_slice(&common::units::len_u64(n).to_be_bytes());
            let chunk = ChunkRef { id, len: 1 };
            queue.found(Missing { chunk, holders: Vec::new(), degraded: false, spare: false }, 1, now);
        }
        assert!(queue.passed(1), "there is more");
        assert_eq!(queue.numbers(now).missing, common::units::len_u64(QUEUE_MAX + 10));
    }

    /// In the order of a pass, which is that of the ids: what is endangered may come last.
    #[tokio::test(start_paused = true)]
    async fn a_full_queue_takes_what_is_more_endangered_and_what_may_be_had() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let numbered = |n: usize, holders: u32, spare| {
            let mut id = ChunkId([0; 32]);
            id.0[..8].copy_from_slice(&common::units::len_u64(n).to_be_bytes());
            let chunk = ChunkRef { id, len: 1 };
            Missing { chunk, holders: (1..=holders).map(ServerId).collect(), degraded: false, spare }
        };
        let all = QUEUE_MAX + 3;
        for n in 0..QUEUE_MAX {
            queue.found(numbered(n, 2, false), 1, now);
        }
        queue.found(numbered(QUEUE_MAX, 2, false), 1, now);
        queue.found(numbered(QUEUE_MAX + 1, 1, false), 1, now);
        queue.found(numbered(QUEUE_MAX + 2, 2, true), 1, now);
        assert!(queue.passed(1));
        assert_eq!(queue.numbers(now).missing, common::units::len_u64(all), "all of them are counted, once");
        let first = queue.take(true).unwrap();
        assert_eq!(first, numbered(QUEUE_MAX + 1, 1, false));
        // Chunks that nobody has keep no other from being fetched.
        queue.made(first.chunk, now);
        while let Some(next) = queue.take(true) {
            queue.failed(next.chunk.id, true);
        }
        queue.begin();
        queue.found(numbered(all, 2, false), 2, now);
        queue.found(numbered(all + 1, 2, true), 2, now);
        queue.found(numbered(all + 2, 2, false), 2, now);
        let mut taken = std::iter::from_fn(|| queue.take(true));
        assert_eq!(taken.next(), Some(numbered(all, 2, false)));
        assert_eq!(taken.next(), Some(numbered(all + 2, 2, false)));
        assert_eq!(taken.next(), None, "what can wait does not take the place of what is lost");
        // Nor do they come first when they are seen again.
        queue.found(numbered(5, 1, false), 2, now);
        queue.found(numbered(all + 3, 3, false), 2, now);
        assert_eq!(queue.take(true), Some(numbered(all + 3, 3, false)));
        assert_eq!(queue.take(true), Some(numbered(5, 1, false)));
    }
}
