//! Segments of a chunk log that go from among others: on purpose, or not.

use super::{SEED, open, options, record, segment_path};
use crate::disk::Disk;
use crate::segment::{Align, Gone, Options, Owner, Position, SegmentLog};
use crate::testing::SimDisk;

fn chunks() -> Options {
    options(Owner::Chunks, Align::Small)
}

/// Segments 1 to `count`, a record each, and the current one.
fn filled(disk: &SimDisk, count: u8) -> SegmentLog {
    let (log, _, _) = open(disk, chunks());
    for n in 1..=count {
        log.append(&[record(&[n])]).expect("append");
        log.roll().expect("roll");
    }
    log
}

#[test]
fn a_segment_that_was_removed_is_not_missed_and_one_that_vanished_is() {
    let disk = SimDisk::new(SEED);
    let log = filled(&disk, 5);
    log.remove(2).expect("remove");
    log.remove(4).expect("remove");
    drop(log);
    let disk = disk.after_crash();
    let (log, seen, recovery) = open(&disk, chunks());
    assert_eq!((seen.payloads(), recovery.missing), (vec![&[1][..], &[3], &[5]], vec![]));
    drop(log);
    for lost in [3, 1] {
        disk.remove(&segment_path(lost)).expect("remove");
    }
    let (log, _, recovery) = open(&disk, chunks());
    assert_eq!(recovery.missing, [1, 3], "also in front");
    log.remove(5).expect("remove");
    let (start, gone) = (log.durable_end(), log.gone());
    drop(log);
    let (_, _, recovery) = open(&disk, chunks());
    assert_eq!(recovery.missing, [1, 3], "and each time: what is lost is not said to be removed");
    // A late scan does not meet the records that say so: the owner knows.
    let late = Options { start: Some(start), gone, ..chunks() };
    let (_, _, recovery) = open(&disk, late.clone());
    assert_eq!(recovery.missing, [1, 3]);
    let (_, _, recovery) = open(&disk, Options { gone: Gone::default(), ..late });
    assert_eq!(recovery.missing, [1, 2, 3, 4, 5]);
}

#[test]
fn a_removal_happens_whole_or_not_at_all_with_the_power_cut_at_any_write() {
    let whole = SimDisk::new(SEED);
    let log = filled(&whole, 3);
    let before = whole.writes();
    log.remove(2).expect("remove");
    let (mut kept, mut removed) = (0, 0);
    for seed in 0..8 {
        for cut in before..=whole.writes() {
            let disk = SimDisk::new(seed).cut_after(cut);
            let log = filled(&disk, 3);
            let done = log.remove(2).is_ok();
            let disk = disk.after_crash();
            let (log, seen, recovery) = open(&disk, chunks());
            assert_eq!(recovery.missing, [0; 0], "seed {seed} cut {cut}");
            let there = seen.payloads().contains(&&[2][..]);
            assert!(!(done && there), "seed {seed} cut {cut}: it came back");
            assert_eq!(seen.payloads().len(), if there { 3 } else { 2 });
            if there {
                kept += 1;
                log.remove(2).expect("again");
            } else {
                removed += 1;
            }
            let (_, seen, recovery) = open(&disk.after_crash(), chunks());
            assert_eq!((seen.payloads(), recovery.missing), (vec![&[1][..], &[3]], vec![]));
        }
    }
    assert!(kept > 0 && removed > 0, "{kept} {removed}");
}

#[test]
fn a_walk_shows_the_records_with_sound_headers() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, chunks());
    let at = log.append(&[record(b"one"), record(b"two"), record(b"three")]).expect("append");
    log.roll().expect("roll");
    let walked = |log: &SegmentLog| -> Vec<Position> {
        let mut walk = log.walk(1).expect("walk");
        std::iter::from_fn(|| walk.next_record().expect("read")).map(|(position, _)| position).collect()
    };
    assert_eq!(walked(&log), at);
    disk.flip(&segment_path(1), at[1].offset);
    assert_eq!(walked(&log), [at[0], at[2]]);
    assert!(log.walk(9).is_err());
}
