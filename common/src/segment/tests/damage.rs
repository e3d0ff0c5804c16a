//! Bad bytes: below a mark they are reported and skipped, above it they are an unfinished write.

use super::{
    Align, Cut, Options, Owner, Path, Position, Record, SEED, Seen, SegmentError, SegmentLog, SimDisk, dir, open,
    options, record, segment_path,
};
use crate::disk::Disk;
use std::io;
use std::sync::Arc;

/// Three synced records of 5,000 bytes; then one that carries a mark above them.
fn four_records(owner: Owner, align: Align) -> (SimDisk, Vec<Position>) {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(owner, align));
    let mut at: Vec<Position> = (0..3u8).map(|n| log.append(&[record(&[n + 1; 5000])]).expect("append")[0]).collect();
    log.sync().expect("sync");
    at.extend(log.append(&[record(b"marked")]).expect("append"));
    log.sync().expect("sync");
    (disk, at)
}

#[test]
fn a_bad_record_in_the_middle_is_reported_and_the_later_ones_are_found() {
    for (owner, align) in
        [(Owner::RaftLog, Align::Small), (Owner::Chunks, Align::Small), (Owner::Chunks, Align::Direct)]
    {
        // In the header, in the payload, in the trailer.
        for (into, header_is_sound) in [(5, false), (70, true), (64 + 5000, true)] {
            let (disk, at) = four_records(owner, align);
            disk.flip(&segment_path(1), at[1].offset + into);
            for _ in 0..2 {
                let (log, seen, recovery) = open(&disk, options(owner, align));
                assert_eq!(seen.payloads(), [&[1; 5000][..], &[3; 5000], b"marked"]);
                assert_eq!((recovery.damaged_count, recovery.cut), (1, None));
                let damage = recovery.damaged[0];
                assert_eq!((damage.position, damage.was_durable), (at[1], true));
                assert_eq!(damage.len, at[2].offset - at[1].offset);
                assert_eq!(damage.header.is_some(), header_is_sound);
                assert!(matches!(log.read_record(at[1]), Err(SegmentError::Damaged { .. })));
                assert_eq!(log.read_record(at[2]).expect("read").payload, [3; 5000]);
                log.append(&[record(b"more")]).expect("append");
                drop(log);
                // Takes the last append back.
                let len = at[3].offset + if align == Align::Direct { 4096 } else { 128 };
                disk.open(&segment_path(1)).expect("open").set_len(len).expect("cut");
            }
        }
    }
}

#[test]
fn a_place_the_disk_cannot_read_is_damage_but_at_the_end_nothing_is_concluded() {
    let (disk, at) = four_records(Owner::Chunks, Align::Direct);
    disk.fail_reads(&segment_path(1), at[1].offset + 5000);
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Direct));
    assert_eq!(recovery.damaged_count, 1);
    assert_eq!(seen.payloads(), [&[1; 5000][..], &[3; 5000], b"marked"]);
    let (disk, at) = four_records(Owner::Chunks, Align::Small);
    disk.fail_reads(&segment_path(1), at[3].offset);
    let options = options(Owner::Chunks, Align::Small);
    let refused = SegmentLog::open(Arc::new(disk.clone()), &dir(), options, &mut Seen::default());
    assert!(matches!(refused, Err(SegmentError::Damaged { .. })), "{refused:?}");
}

#[test]
fn a_torn_tail_is_cut_and_what_is_before_stays() {
    for (owner, align) in
        [(Owner::RaftLog, Align::Small), (Owner::Chunks, Align::Small), (Owner::Chunks, Align::Direct)]
    {
        let (disk, at) = four_records(owner, align);
        // The last record was synced, but no later one says so: to recovery it is an unfinished write.
        disk.flip(&segment_path(1), at[3].offset + 66);
        let (log, seen, recovery) = open(&disk, options(owner, align));
        assert_eq!(seen.records.len(), 3);
        assert_eq!(recovery.damaged_count, 0);
        let cut = recovery.cut.expect("cut");
        assert_eq!((cut.position, log.end()), (at[3], at[3]));
        assert_eq!(cut, Cut { position: at[3], len: 64 + 6 + 7 });
        assert_eq!(log.append(&[record(b"instead")]).expect("append"), [at[3]]);
        log.sync().expect("sync");
        let (_, seen, recovery) = open(&disk.after_crash(), options(owner, align));
        assert_eq!(seen.payloads().last(), Some(&&b"instead"[..]));
        assert_eq!((recovery.damaged_count, recovery.cut), (0, None));
    }
}

#[test]
fn a_sequence_ends_at_the_first_bad_record_above_the_mark() {
    let write = |owner| {
        let disk = SimDisk::new(SEED);
        let (log, _, _) = open(&disk, options(owner, Align::Small));
        let at = log.append(&[record(b"a"), record(b"b"), record(b"c")]).expect("append");
        disk.flip(&segment_path(1), at[1].offset + 64);
        (disk, at)
    };
    let (disk, at) = write(Owner::RaftLog);
    let (_, seen, recovery) = open(&disk, options(Owner::RaftLog, Align::Small));
    assert_eq!((seen.payloads(), recovery.damaged_count), (vec![&b"a"[..]], 0));
    assert_eq!(recovery.cut.expect("cut").position, at[1]);
    let (disk, at) = write(Owner::Chunks);
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!((seen.payloads(), recovery.cut), (vec![&b"a"[..], b"c"], None), "each stands for itself");
    assert_eq!((recovery.damaged[0].position, recovery.damaged[0].was_durable), (at[1], false));
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!((seen.payloads(), recovery.damaged_count), (vec![&b"a"[..], b"c"], 0), "it is reported once");
}

#[test]
fn a_place_found_void_stays_void_though_its_payload_has_no_checksum() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Direct));
    let unchecked = |payload| Record { checksum: false, ..record(payload) };
    let at = log.append(&[unchecked(b"unfinished")]).expect("append")[0];
    log.append(&[unchecked(b"finished")]).expect("append");
    disk.flip(&segment_path(1), at.offset + 64);
    for again in [false, true, true] {
        let (log, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Direct));
        assert_eq!(seen.records.len(), 1, "again: {again}");
        assert_ne!(seen.records[0].0, at);
        assert_eq!(recovery.damaged_count, u64::from(!again));
        drop(log);
    }
}

#[test]
fn an_unreadable_segment_header_costs_that_segment_only() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    for n in 0..3u8 {
        log.append(&[record(&[n])]).expect("append");
        if n < 2 {
            log.roll().expect("roll");
        }
    }
    log.sync().expect("sync");
    disk.flip(&segment_path(2), 8);
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!((seen.payloads(), recovery.unreadable), (vec![&[0][..], &[1], &[2]], vec![]), "the second copy serves");
    disk.flip(&segment_path(2), 2048 + 8);
    let (log, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!((seen.payloads(), recovery.unreadable), (vec![&[0][..], &[2]], vec![2]));
    let at = Position { segment: 2, offset: 4096 };
    assert!(matches!(log.read_record(at), Err(SegmentError::Damaged { .. })));
    drop(log);
    disk.flip(&segment_path(3), 0);
    disk.flip(&segment_path(3), 2048);
    let (log, _, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!(recovery.unreadable, [2, 3]);
    assert_eq!(log.append(&[record(b"new")]).expect("append")[0].segment, 4, "nothing is written behind it");
}

#[test]
fn a_missing_segment_is_reported() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::RaftLog, Align::Small));
    for _ in 0..3 {
        log.append(&[record(b"x")]).expect("append");
        log.roll().expect("roll");
    }
    disk.remove(&segment_path(2)).expect("remove");
    let (_, _, recovery) = open(&disk, options(Owner::RaftLog, Align::Small));
    assert_eq!(recovery.missing, [2]);
}

#[test]
fn a_failed_sync_closes_the_log_and_is_not_tried_again() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    let kept = log.append(&[record(b"kept")]).expect("append")[0];
    log.sync().expect("sync");
    log.append(&[record(b"lost")]).expect("append");
    disk.fail_sync(&segment_path(1));
    assert!(matches!(log.sync(), Err(SegmentError::Disk { .. })));
    let fenced = |result: super::super::Result<()>| assert!(matches!(result, Err(SegmentError::Fenced { .. })));
    fenced(log.sync());
    fenced(log.append(&[record(b"more")]).map(drop));
    fenced(log.roll());
    assert!(log.fenced().is_some());
    assert_eq!(log.read_record(kept).expect("reads go on").payload, b"kept");
    let (log, seen, _) = open(&disk.after_crash(), options(Owner::Chunks, Align::Small));
    assert_eq!(seen.records[0].2, b"kept");
    assert!(log.fenced().is_none(), "opening again is how it goes on");
}

/// The process starts again without a power cut: what it finds it may rely on, so the next cut must not take it.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_made_durable_at_open() {
    let kinds = [(Owner::RaftLog, Align::Small), (Owner::Chunks, Align::Small), (Owner::Chunks, Align::Direct)];
    for (seed, (owner, align)) in (0..16).flat_map(|seed| kinds.map(|kind| (seed, kind))) {
        let disk = SimDisk::new(seed);
        let (log, _, _) = open(&disk, options(owner, align));
        log.append(&[record(b"kept")]).expect("append");
        log.sync().expect("sync");
        log.append(&[record(&[7; 9000]), record(b"found in the cache")]).expect("append");
        disk.fail_sync(&segment_path(1));
        log.sync().expect_err("the disk refuses");
        drop(log);
        let (log, seen, _) = open(&disk, options(owner, align));
        drop(log);
        let (_, kept, recovery) = open(&disk.after_crash(), options(owner, align));
        assert_eq!(kept.payloads(), seen.payloads(), "seed {seed}, {owner:?}, {align:?}");
        assert_eq!(recovery.damaged_count, 0);
    }
}

#[test]
fn a_full_quota_is_a_full_disk_and_no_broken_one() {
    use nix::libc::{EDQUOT, EIO, ENOSPC};
    let is_full = |code| super::super::is_full(&std::io::Error::from_raw_os_error(code));
    assert!(is_full(ENOSPC) && is_full(EDQUOT) && !is_full(EIO));
}

#[test]
fn punched_records_are_no_damage() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    let big = vec![1; 20_000];
    let at = log.append(&[record(&big), record(b"small"), record(&big)]).expect("append");
    log.sync().expect("sync");
    log.append(&[record(b"marked")]).expect("append");
    for at in &at[..2] {
        log.punch(*at).expect("punch");
    }
    assert!(log.read_header(at[0]).is_ok(), "the header stays");
    assert!(matches!(log.read_record(at[0]), Err(SegmentError::Damaged { .. })));
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!(seen.payloads(), [&b"small"[..], &big, b"marked"], "too small to hold a whole block");
    assert_eq!((seen.punched, recovery.damaged_count), (vec![at[0]], 0));
}

#[test]
fn bytes_of_a_client_that_look_like_a_record_are_none() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    log.append(&[record(b"stolen")]).expect("append");
    let file = disk.open(&segment_path(1)).expect("open");
    let mut stolen = vec![0; 8192];
    file.read_exact_at(&mut stolen, 0).expect("read");
    // A whole segment, as a client may store one; then the record that holds it loses its header.
    let at = log.append(&[record(&stolen[4096..]), record(b"behind")]).expect("append")[0];
    log.sync().expect("sync");
    log.append(&[record(b"marked")]).expect("append");
    disk.flip(&segment_path(1), at.offset);
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!(seen.payloads(), [&b"stolen"[..], b"behind", b"marked"]);
    assert_eq!(recovery.damaged_count, 1);
}

#[test]
fn an_error_that_is_no_bad_block_stops_the_start() {
    let (disk, _) = four_records(Owner::Chunks, Align::Small);
    disk.cut_power();
    let options = Options { start: None, ..options(Owner::Chunks, Align::Small) };
    match SegmentLog::open(Arc::new(disk), Path::new("/log"), options, &mut Seen::default()) {
        Err(SegmentError::Disk { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::Other),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_durable_is_never_cut_though_it_is_bad_up_to_the_end() {
    for owner in [Owner::RaftLog, Owner::Chunks] {
        let (disk, at) = four_records(owner, Align::Small);
        disk.flip(&segment_path(1), at[2].offset + 70);
        disk.flip(&segment_path(1), at[3].offset + 66);
        let (log, seen, recovery) = open(&disk, options(owner, Align::Small));
        assert_eq!((seen.records.len(), recovery.damaged_count), (2, 1));
        assert_eq!((recovery.damaged[0].position, recovery.damaged[0].was_durable), (at[2], true));
        assert_eq!((recovery.cut.expect("cut").position, log.end()), (at[3], at[3]));
    }
}

#[test]
fn a_torn_list_of_voids_makes_no_void_good() {
    let unchecked = |payload| Record { checksum: false, ..record(payload) };
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let options = options(Owner::Chunks, Align::Direct);
        let (log, _, _) = open(&disk, Options { segment_len_max: 1 << 20, ..options.clone() });
        // Enough for a list longer than a sector: its header may stay without the rest.
        for _ in 0..40 {
            let at = log.append(&[unchecked(b"unfinished")]).expect("append")[0];
            log.append(&[unchecked(b"finished")]).expect("append");
            disk.flip(&segment_path(1), at.offset + 64);
        }
        log.sync().expect("sync");
        // Recovery syncs file and directory, then appends the list: the power goes in that.
        let disk = disk.clone().cut_after(disk.writes() + 2);
        let cut = SegmentLog::open(Arc::new(disk.clone()), &dir(), options.clone(), &mut Seen::default());
        assert!(cut.is_err() && !disk.has_power());
        let disk = disk.after_crash();
        for _ in 0..2 {
            let (_, seen, recovery) = open(&disk, options.clone());
            assert_eq!(seen.records.len(), 40, "seed {seed}");
            assert!(recovery.damaged.iter().all(|damage| !damage.was_durable), "seed {seed}");
        }
    }
}
