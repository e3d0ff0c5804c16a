//! Reading everything again, slowly: every stored byte is verified within the configured period, so that damage is found
//! before the other copies are gone, too. A damaged copy is marked by the store; the next pass fetches it anew.
//!
//! How far a round is, is noted every minute in the file `scrub` of the first data directory, so that a server which is often
//! restarted reads all of it, too. A round begins again when somebody orders a scrub: what a round that ends after an order has read
//! was read after it.

use super::Keeper;
use crate::store::StoreError;
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
    /// What comes next.
    from: ChunkId,
    /// As in [`Progress`].
    done: u64,
    rounds: u64,
    damaged: u64,
    order: u64,
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
        let mut from = self.noted_place().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.shared.registration().is_ok() {
                self.round(from).await;
                from = ChunkId([0; 32]);
            }
        }
    }

    /// Where a round was when it was noted last.
    async fn noted_place(&self) -> ChunkId {
        let (disk, dir) = (self.shared.world.disk.clone(), self.shared.stores().stores()[0].dir().to_path_buf());
        let Some(place) = self.shared.world.blocking(move || Place::read(&*disk, &dir)).await else {
            return ChunkId([0; 32]);
        };
        let mut scrub = self.scrub();
        let Place { version: _, from, done, rounds, damaged, order } = place;
        *scrub = Progress { done, rounds, damaged, order, ..*scrub };
        from
    }

    /// Notes that a round goes on behind what is before `from`.
    async fn note_place(&self, from: ChunkId) {
        let Progress { done, rounds, damaged, order, .. } = *self.scrub();
        let place = Place { version: PLACE_VERSION, from, done, rounds, damaged, order };
        let Some(store) = self.shared.stores().stores().iter().find(|store| !store.is_silent()) else { return };
        let (disk, dir) = (self.shared.world.disk.clone(), store.dir().to_path_buf());
        if let Err(error) = self.shared.world.blocking(move || place.write(&*disk, &dir)).await {
            debug!(%error, "note how far scrub is");
        }
    }

    /// One round over everything that is here from `from` on.
    async fn round(&self, mut from: ChunkId) {
        let mut last = Read { at: Instant::now(), len: 0 };
        let order = self.orders.borrow().scrub.max(self.scrub().order);
        if from == ChunkId([0; 32]) {
            self.scrub().done = 0;
        }
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
                if noted.elapsed() >= NOTE_EVERY {
                    self.note_place(copy.id).await;
                    noted = Instant::now();
                }
                last = Read { at, len: copy.len.into() };
                self.check(copy.id).await;
                self.scrub().done += u64::from(copy.len);
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
        self.note_place(ChunkId([0; 32])).await;
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
    fn where_a_round_is_outlives_the_server() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/");
        assert_eq!(Place::read(&disk, dir), None);
        let place =
            Place { version: PLACE_VERSION, from: ChunkId([0xab; 32]), done: 300, rounds: 2, damaged: 1, order: 7 };
        let golden = [&[1][..], &[0xab; 32], &[0xac, 2, 2, 1, 7]].concat();
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
