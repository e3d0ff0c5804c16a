//! When the trash makes room: what was removed stays for the undelete window, unless the disks get full before.
//!
//! What goes is oldest first. It takes the chunkservers a while to give the space of chunks back
//! ([`KeepSettings::grace_s`](common::proto::keep::KeepSettings::grace_s), a comparison, and compaction of their segments):
//! what has gone lately counts as free, so that no room is made twice. What had no copies of its own, as others refer to the
//! same chunks, gives nothing back: that is found out after as long.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// While less of the chunkservers' capacity is free than this part of it, the trash makes room.
const FREE_PART: u64 = 10;
/// What has gone counts as free for so long: by then it should be.
const GIVE_BACK: Duration = Duration::from_secs(150);
/// While the metaservers' disks are nearly full, a command's worth of entries goes this often.
const ENTRIES_PAUSE: Duration = Duration::from_secs(1);

/// How full the disks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// Capacity of the chunkservers that are up, in bytes.
    pub(crate) capacity: u64,
    /// What of it is free.
    pub(crate) free: u64,
    /// Chunkservers delete nothing now.
    pub(crate) delete_paused: bool,
    /// There is no room for metadata.
    pub(crate) tight: bool,
}

/// What it made room for.
#[derive(Debug, Default)]
pub(crate) struct Pressure(Mutex<Past>);

#[derive(Debug, Default)]
struct Past {
    /// When how many bytes went, with all copies, within [`GIVE_BACK`].
    gone: VecDeque<(Instant, u64)>,
    /// When room was made for metadata.
    entries: Option<Instant>,
}

impl Pressure {
    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// How many bytes of what is not due are to go now; `copies` are kept of each.
    pub(crate) fn wanted(&self, now: Instant, space: Space, copies: u8) -> u64 {
        let mut past = self.past();
        if space.tight {
            let again = past.entries.is_none_or(|last| now >= last + ENTRIES_PAUSE);
            past.entries = Some(now).filter(|_| again).or(past.entries);
            return if again { u64::MAX } else { 0 };
        }
        if space.delete_paused {
            return 0;
        }
        while past.gone.front().is_some_and(|(at, _)| *at + GIVE_BACK <= now) {
            past.gone.pop_front();
        }
        let coming = past.gone.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let lacks = (space.capacity / FREE_PART).saturating_sub(space.free.saturating_add(coming));
        lacks.div_ceil(u64::from(copies.max(1)))
    }

    /// This many bytes have gone, of each as many copies: because they were due, or to make room.
    pub(crate) fn gone(&self, now: Instant, bytes: u64, copies: u8) {
        if bytes > 0 {
            self.past().gone.push_back((now, bytes.saturating_mul(copies.into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_trash_makes_room_for_what_is_lacking_once() {
        let (pressure, start) = (Pressure::default(), Instant::now());
        let wanted = |secs: u64, capacity, free, delete_paused, tight| {
            let space = Space { capacity, free, delete_paused, tight };
            pressure.wanted(start + Duration::from_secs(secs), space, 3)
        };
        assert_eq!(wanted(0, 0, 0, false, false), 0, "nobody was heard of yet");
        assert_eq!(wanted(0, 9000, 900, false, false), 0);
        assert_eq!(wanted(0, 9000, 600, false, false), 100);
        assert_eq!(wanted(0, 9000, 600, true, false), 0, "it would give nothing back");
        pressure.gone(start, 60, 3);
        assert_eq!(wanted(1, 9000, 600, false, false), 40);
        pressure.gone(start + Duration::from_secs(1), 1000, 3);
        assert_eq!(wanted(2, 9000, 600, false, false), 0, "it is on its way");
        assert_eq!(wanted(GIVE_BACK.as_secs(), 9000, 0, false, false), 0);
        assert_eq!(wanted(GIVE_BACK.as_secs() + 1, 9000, 600, false, false), 100, "nothing came of it");
        assert_eq!(wanted(500, 9000, 9000, true, true), u64::MAX);
        assert_eq!(wanted(500, 9000, 9000, true, true), 0);
        assert_eq!(wanted(501, 9000, 9000, true, true), u64::MAX);
    }
}
