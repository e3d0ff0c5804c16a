//! Reading everything again, slowly: every stored byte is verified within the configured period, so that damage is found
//! before the other copies are gone, too. A damaged copy is marked by the store; the next pass fetches it anew.
//!
//! How far a round is, is noted every minute in the file `scrub` of the first data directory that works, so that a server which is often
//! restarted reads all of it, too. A round begins again when somebody orders a scrub: what a round that ends after an order has read
//! was read after it.

use super::Keeper;
use crate::store::{DISK_WAIT_MAX, Store, StoreError};
use common::disk::{Disk, read_checked, write_checked};
use common::id::ChunkId;
use common::proto::keep::KeepSettings;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Copies listed at a time.
const LIST_MAX: usize = 1024;
/// Between two looks whether it is time, or scrub is on again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a list or a copy that could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often it is noted how far a round is: that much is read once more after a restart.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// The file where that stands.
const PLACE: &str = "scrub";
const PLACE_VERSION: u8 = 1;

/// How far a round is, for the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    version: u8,
    round: Round,
    /// As in [`Progress`].
    done: u64,
    rounds: u64,
    damaged: u64,
    order: u64,
}

/// A round that goes on at `from`: everything before that was read since it began, which was after this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    from: ChunkId,
    order: u64,
}

/// The id behind this one. `None`: there is none.
fn behind(id: ChunkId) -> Option<ChunkId> {
    let mut next = id.0;
    let at = next.iter().rposition(|byte| *byte < u8::MAX)?;
    next[at] += 1;
    next[at + 1..].fill(0);
    Some(ChunkId(next))
}

impl Place {
    /// What was noted in this directory. `None`: nothing that can be read, so a round begins.
    fn read(disk: &dyn Disk, dir: &Path) -> Option<Place> {
        let bytes = read_checked(disk, &dir.join(PLACE)).ok()??;
        postcard::from_bytes(&bytes).ok().filter(|place: &Place| place.version == PLACE_VERSION)
    }

    fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        write_checked(disk, dir, PLACE, &postcard::to_stdvec(self).map_err(io::Error::other)?)
    }
}

/// How far scrub is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes verified in this round, and all bytes at the last look.
    pub(super) done: u64,
    pub(super) all: u64,
    /// Whole rounds.
    pub(super) rounds: u64,
    /// Damaged copies found.
    pub(super) damaged: u64,
    /// The number of the last order that was carried out.
    pub(super) order: u64,
}

/// Bytes a second at which a round over `all` bytes ends within the period, with a tenth of it to spare; within the limit.
/// `now`: as fast as the limit allows.
fn rate(all: u64, settings: &KeepSettings, now: bool) -> u64 {
    let needed = u128::from(all) * 10 / (u128::from(settings.scrub_period_s.max(1)) * 9);
    let needed = u64::try_from(needed).unwrap_or(u64::MAX).max(1);
    if now { settings.scrub_rate } else { needed.min(settings.scrub_rate) }
}

/// A copy that was read, and when: the next one is counted from it.
#[derive(Clone, Copy, Debug)]
struct Read {
    at: Instant,
    len: u64,
}

impl Read {
    /// When the next copy may be read, with `all` bytes here now: what was put since this one was read makes it sooner.
    fn next(&self, all: u64, settings: &KeepSettings, now: bool) -> Instant {
        let nanos = u128::from(self.len) * 1_000_000_000 / u128::from(rate(all, settings, now).max(1));
        self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Keeper {
    pub(super) async fn scrubs(&self) {
        let mut noted = self.noted_round().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.shared.registration().is_ok() {
                let round = noted.take().unwrap_or_else(|| self.new_round());
                self.round(round).await;
            }
        }
    }

    fn new_round(&self) -> Round {
        self.scrub().done = 0;
        Round { from: ChunkId([0; 32]), order: self.orders.borrow().scrub }
    }

    /// Does this to the first data directory that works, if it has an answer in time.
    async fn at_place<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Disk, &Path) -> T + Send + 'static,
    ) -> Option<T> {
        let works = |store: &&Store| !store.is_silent() && store.fenced().is_none();
        let dir = self.shared.stores().stores().iter().find(works)?.dir().to_path_buf();
        let disk = self.shared.world.disk.clone();
        let work = self.shared.world.blocking(move || work(&*disk, &dir));
        tokio::time::timeout(DISK_WAIT_MAX, work).await.ok()
    }

    /// How far a round was when that was noted last.
    async fn noted_round(&self) -> Option<Round> {
        let place = self.at_place(Place::read).await??;
        let mut scrub = self.scrub();
        let Place { version: _, round, done, rounds, damaged, order } = place;
        *scrub = Progress { done, rounds, damaged, order, ..*scrub };
        Some(round)
    }

    async fn note(&self, round: Round) {
        let Progress { done, rounds, damaged, order, .. } = *self.scrub();
        let place = Place { version: PLACE_VERSION, round, done, rounds, damaged, order };
        if let Some(Err(error)) = self.at_place(move |disk, dir| place.write(disk, dir)).await {
            debug!(%error, "note how far scrub is");
        }
    }

    /// The rest of a round over everything that is here.
    async fn round(&self, Round { mut from, order }: Round) {
        let mut last = Read { at: Instant::now(), len: 0 };
        let mut noted = Instant::now();
        loop {
            let (copies, more) = match self.shared.stores().range(from, None, LIST_MAX).await {
                Ok(listed) => listed,
                Err(error) => {
                    debug!(%error, "list copies to scrub");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            };
            for copy in copies.iter().filter(|copy| !copy.damaged || copy.unreadable) {
                let Some(at) = self.turn(last, order).await else { return };
                last = Read { at, len: copy.len.into() };
                self.check(copy.id).await;
                self.scrub().done += u64::from(copy.len);
                if noted.elapsed() >= NOTE_EVERY
                    && let Some(from) = behind(copy.id)
                {
                    self.note(Round { from, order }).await;
                    noted = Instant::now();
                }
            }
            match more {
                Some(more) => from = more,
                None => break,
            }
        }
        if self.orders.borrow().scrub > order {
            return; // what was read first was read before that order
        }
        {
            let mut scrub = self.scrub();
            scrub.rounds += 1;
            scrub.order = order;
        }
        let next = self.new_round();
        self.note(next).await;
    }

    /// Waits until the next copy may be read, and while scrub is paused. From when on its reading counts. `None`: an order came
    /// after the `round`'s, and wants another one.
    async fn turn(&self, last: Read, round: u64) -> Option<Instant> {
        loop {
            let all = self.shared.stores().stats_soon().await.bytes;
            let (settings, ordered) = {
                let orders = self.orders.borrow();
                (orders.settings, orders.scrub)
            };
            if ordered > round {
                return None;
            }
            let at_once = {
                let mut scrub = self.scrub();
                scrub.all = all;
                ordered > scrub.order
            };
            let (now, next) = (Instant::now(), last.next(all, &settings, at_once));
            if !settings.scrub_paused && next <= now {
                return Some(now);
            }
            let rest = next.saturating_duration_since(now);
            if !settings.scrub_paused && rest < LOOK_EVERY {
                tokio::time::sleep(rest).await;
                return Some(next);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn check(&self, id: ChunkId) {
        match self.shared.stores().verify(id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error @ StoreError::Corrupt { .. }) => {
                warn!(chunk = %id, %error, "scrub found a damaged copy: it is fetched anew");
                self.scrub().damaged += 1;
                self.shared.look_again.notify_one();
            }
            Err(error) => {
                debug!(chunk = %id, %error, "scrub could not read a copy");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::testing::SimDisk;

    #[test]
    fn a_round_ends_within_its_period_or_goes_at_the_limit() {
        let settings = KeepSettings { scrub_period_s: 1000, scrub_rate: 500, ..KeepSettings::default() };
        assert_eq!(rate(90_000, &settings, false), 100, "900 s");
        assert_eq!(rate(0, &settings, false), 1);
        assert_eq!(rate(90_000_000, &settings, false), 500, "not faster than allowed");
        assert_eq!(rate(90_000, &settings, true), 500);
    }

    #[test]
    fn what_is_put_while_a_round_waits_makes_it_faster() {
        let settings = KeepSettings { scrub_period_s: 1000, scrub_rate: 500_000, ..KeepSettings::default() };
        let last = Read { at: Instant::now(), len: 900 };
        let wait = |all, at_once| last.next(all, &settings, at_once).duration_since(last.at);
        assert_eq!(
            wait(900, false),
            Duration::from_secs(900),
            "the only copy is read once in nine tenths of the period"
        );
        assert_eq!(wait(90_000_000, false), Duration::from_millis(9));
        assert_eq!(wait(900, true), Duration::from_micros(1800), "an order goes at the limit");
        assert_eq!(Read { at: last.at, len: 0 }.next(0, &settings, false), last.at, "the first one waits for nothing");
        let endless = KeepSettings { scrub_rate: 0, ..settings };
        assert_eq!(wait(0, false), last.next(0, &endless, false).duration_since(last.at), "at least a byte a second");
    }

    #[test]
    fn the_id_behind_another_is_the_next_one() {
        let id = |last: [u8; 2]| ChunkId([&[3; 30][..], &last].concat().try_into().unwrap());
        assert_eq!(behind(id([7, 8])), Some(id([7, 9])));
        assert_eq!(behind(id([7, 255])), Some(id([8, 0])));
        assert_eq!(behind(ChunkId([255; 32])), None);
    }

    #[test]
    fn where_a_round_is_outlives_the_server() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/");
        assert_eq!(Place::read(&disk, dir), None);
        let round = Round { from: ChunkId([0xab; 32]), order: 9 };
        let place = Place { version: PLACE_VERSION, round, done: 300, rounds: 2, damaged: 1, order: 7 };
        let golden = [&[1][..], &[0xab; 32], &[9, 0xac, 2, 2, 1, 7]].concat();
        assert_eq!(postcard::to_stdvec(&place).unwrap(), golden);
        place.write(&disk, dir).unwrap();
        let disk = disk.after_crash();
        assert_eq!(Place::read(&disk, dir), Some(place));
        disk.flip(Path::new("/scrub"), 5);
        assert_eq!(Place::read(&disk, dir), None, "a round begins");
        Place { version: 2, ..place }.write(&disk, dir).unwrap();
        assert_eq!(Place::read(&disk, dir), None, "of another version");
    }
}
