//! When the trash makes room: what was removed stays for the undelete window, unless the disks get full before.
//!
//! What goes is oldest first, and a little at a time: it takes the chunkservers a while to give the space of chunks back
//! ([`KeepSettings::grace_s`](common::proto::keep::KeepSettings::grace_s) and a comparison), and what they have not given
//! back yet is not to be made room for twice.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// While less of the chunkservers' capacity is free than this part of it, the trash makes room.
const FREE_PART: u64 = 10;
/// Each time it makes room for this part of the capacity, counted with all copies ...
const STEP_PART: u64 = 100;
/// ... and not again within this time.
const STEP_PAUSE: Duration = Duration::from_secs(10);
/// The same while the metaservers' disks are nearly full: each time a command's worth of entries.
const ENTRIES_PAUSE: Duration = Duration::from_secs(1);

/// When it made room last.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    last: Mutex<Option<Instant>>,
}

impl Pressure {
    /// How many bytes of what is not due are to go now. `space`: capacity and free bytes of the chunkservers that are up.
    /// `tight`: there is no room for metadata.
    pub(crate) fn wanted(&self, now: Instant, space: (u64, u64), tight: bool, replicas: u8) -> u64 {
        let (bytes, pause) = step(space, tight, replicas);
        if bytes == 0 {
            return 0;
        }
        let mut last = self.last.lock().expect("no panic holds this lock");
        if last.is_some_and(|last| now < last + pause) {
            return 0;
        }
        *last = Some(now);
        bytes
    }
}

/// How many bytes go in one step, and how long it is until the next one.
fn step((capacity, free): (u64, u64), tight: bool, replicas: u8) -> (u64, Duration) {
    if tight {
        return (u64::MAX, ENTRIES_PAUSE);
    }
    if free >= capacity / FREE_PART {
        return (0, STEP_PAUSE);
    }
    ((capacity / STEP_PART / u64::from(replicas.max(1))).max(1), STEP_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_trash_makes_room_only_while_there_is_little_and_a_step_at_a_time() {
        let pressure = Pressure::default();
        let start = Instant::now();
        // Seconds, capacity and free bytes, no room for metadata: what goes.
        for (at, space, tight, goes) in [
            (0, (9000, 900), false, 0),
            (0, (0, 0), false, 0), // nobody was heard of yet
            (0, (9000, 899), false, 30),
            (9, (9000, 899), false, 0),
            (10, (9000, 0), false, 30),
            (10, (9000, 9000), true, 0),
            (11, (9000, 9000), true, u64::MAX),
        ] {
            let now = start + Duration::from_secs(at);
            assert_eq!(pressure.wanted(now, space, tight, 3), goes, "at {at} s with {space:?} {tight}");
        }
    }
}
