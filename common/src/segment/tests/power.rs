//! Power cuts: what a sync promised is there, whatever else is.

use super::{Align, Owner, Record, SegmentLog, SimDisk, dir, open, options};
use crate::segment::tests::Seen;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a run was promised, and what it sent at all. Numbers stand for records.
#[derive(Debug, Default)]
struct Promised {
    acknowledged: Vec<u32>,
    sent: BTreeSet<u32>,
}

fn payload(number: u32) -> Vec<u8> {
    let len = [3, 700, 9000, 5, 64, 4096, 20_000][usize::try_from(number % 7).unwrap()];
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); len + 4];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(payload: &[u8]) -> u32 {
    let number = u32::from_le_bytes(payload[..4].try_into().unwrap());
    assert_eq!(payload, super::super::tests::power::payload(number), "a record is shown whole");
    number
}

/// Appends and syncs until the power goes.
fn workload(disk: &SimDisk, owner: Owner, align: Align, checksum: bool) -> Promised {
    let mut promised = Promised::default();
    let Ok((log, _)) = SegmentLog::open(Arc::new(disk.clone()), &dir(), options(owner, align), &mut Seen::default())
    else {
        return promised;
    };
    let mut waiting = Vec::new();
    let mut next = 0;
    for step in 0..30u32 {
        let payloads: Vec<Vec<u8>> = (0..=step % 3).map(|n| payload(next + n)).collect();
        let records: Vec<Record<'_>> =
            payloads.iter().map(|payload| Record { checksum, trailer: b"tree", ..super::record(payload) }).collect();
        let numbers = next..next + u32::try_from(records.len()).unwrap();
        next = numbers.end;
        promised.sent.extend(numbers.clone());
        if log.append(&records).is_err() {
            return promised;
        }
        waiting.extend(numbers);
        if step % 4 != 1 {
            if log.sync().is_err() {
                return promised;
            }
            promised.acknowledged.append(&mut waiting);
        }
    }
    promised
}

fn recovered(disk: &SimDisk, owner: Owner, align: Align, what: &str) -> Vec<u32> {
    // Opened twice: what the first recovery accepted must not change.
    let (log, seen, recovery) = open(disk, options(owner, align));
    let numbers = |seen: &Seen, log: &SegmentLog| -> Vec<u32> {
        seen.records.iter().map(|(at, _, _)| number(&log.read_record(*at).expect("read").payload)).collect()
    };
    let found = numbers(&seen, &log);
    assert!(recovery.damaged.iter().all(|damage| !damage.was_durable), "{what}: {recovery:?}");
    assert!(recovery.missing.is_empty() && recovery.unreadable.is_empty(), "{what}: {recovery:?}");
    drop(log);
    let again = disk.after_crash();
    let (log, seen, recovery) = open(&again, options(owner, align));
    assert_eq!(numbers(&seen, &log), found, "{what}: what was accepted was not durable");
    assert_eq!((recovery.damaged_count, recovery.cut), (0, None), "{what}");
    found
}

fn cut_everywhere(owner: Owner, align: Align, checksum: bool) {
    let uncut = SimDisk::new(0);
    assert_eq!(workload(&uncut, owner, align, checksum).sent.len(), 60);
    let writes = uncut.writes();
    assert!(writes > 60, "{writes}");
    let mut torn = 0;
    for seed in 0..4 {
        for cut in 0..writes {
            let what = format!("{owner:?} {align:?} checksum {checksum} seed {seed} cut {cut}");
            let disk = SimDisk::new(seed).cut_after(cut);
            let promised = workload(&disk, owner, align, checksum);
            let back = disk.after_crash();
            let found = recovered(&back, owner, align, &what);
            assert!(found.is_sorted(), "{what}: {found:?}");
            let all: BTreeSet<u32> = found.iter().copied().collect();
            assert!(promised.acknowledged.iter().all(|number| all.contains(number)), "{what}: lost, {promised:?}");
            assert!(all.is_subset(&promised.sent), "{what}: invented");
            if owner == Owner::RaftLog {
                let len = u32::try_from(found.len()).unwrap();
                assert_eq!(found, (0..len).collect::<Vec<_>>(), "{what}: a sequence has no holes");
            }
            torn += usize::from(all.len() < promised.sent.len());
        }
    }
    assert!(torn > 0, "no cut ever lost anything: the test tests nothing");
}

#[test]
fn an_acknowledged_append_survives_a_power_cut_at_any_write() {
    cut_everywhere(Owner::RaftLog, Align::Small, true);
    cut_everywhere(Owner::Chunks, Align::Small, true);
    cut_everywhere(Owner::Chunks, Align::Direct, false);
}

#[test]
fn truncated_records_do_not_come_back() {
    for seed in 0..50 {
        let uncut = SimDisk::new(seed);
        let writes = {
            truncate_and_go_on(&uncut);
            uncut.writes()
        };
        for cut in 0..writes {
            let disk = SimDisk::new(seed).cut_after(cut);
            let acknowledged = truncate_and_go_on(&disk);
            let (_, seen, recovery) = open(&disk.after_crash(), options(Owner::RaftLog, Align::Small));
            assert_eq!(recovery.damaged_count, 0);
            let found = seen.payloads();
            let states: [&[&[u8]]; 7] =
                [&[], &[b"a"], &[b"a", b"b"], &[b"a", b"b", b"c"], &[b"a"], &[b"a", b"B"], &[b"a", b"B", b"C"]];
            // From what was acknowledged on, any later state, whole.
            assert!(
                states[acknowledged..].contains(&&found[..]),
                "seed {seed} cut {cut}: {found:?} after {acknowledged}"
            );
        }
    }
}

/// Returns which state (see above) was acknowledged last.
fn truncate_and_go_on(disk: &SimDisk) -> usize {
    let opened =
        SegmentLog::open(Arc::new(disk.clone()), &dir(), options(Owner::RaftLog, Align::Small), &mut Seen::default());
    let Ok((log, _)) = opened else { return 0 };
    let run = || -> Result<usize, usize> {
        let at = log.append(&[super::record(b"a")]).map_err(|_| 0usize)?;
        log.append(&[super::record(b"b")]).map_err(|_| 0usize)?;
        log.append(&[super::record(b"c")]).map_err(|_| 0usize)?;
        log.sync().map_err(|_| 0usize)?;
        log.truncate_after(Some(at[0])).map_err(|_| 3usize)?;
        log.append(&[super::record(b"B")]).map_err(|_| 3usize)?;
        log.sync().map_err(|_| 3usize)?;
        log.append(&[super::record(b"C")]).map_err(|_| 5usize)?;
        log.sync().map_err(|_| 5usize)?;
        Ok(6)
    };
    run().unwrap_or_else(|state| state)
}

#[test]
fn a_power_cut_during_recovery_changes_nothing() {
    for (owner, align, checksum) in [
        (Owner::RaftLog, Align::Small, true),
        (Owner::Chunks, Align::Small, true),
        (Owner::Chunks, Align::Direct, false),
    ] {
        let uncut = SimDisk::new(0);
        workload(&uncut, owner, align, checksum);
        for seed in 0..uncut.writes() * 3 {
            let cut = seed % uncut.writes();
            let what = format!("{owner:?} {align:?} seed {seed} cut {cut}");
            let disk = SimDisk::new(seed).cut_after(cut);
            let promised = workload(&disk, owner, align, checksum);
            let mut back = disk.after_crash();
            for writes in 0.. {
                back = back.cut_after(writes);
                let options = options(owner, align);
                let opened = SegmentLog::open(Arc::new(back.clone()), &dir(), options, &mut Seen::default());
                back = back.after_crash();
                if opened.is_ok() {
                    break;
                }
            }
            let found = recovered(&back, owner, align, &what);
            let all: BTreeSet<u32> = found.iter().copied().collect();
            assert!(promised.acknowledged.iter().all(|number| all.contains(number)), "{what}: lost, {promised:?}");
            assert!(all.is_subset(&promised.sent), "{what}: invented");
        }
    }
}
