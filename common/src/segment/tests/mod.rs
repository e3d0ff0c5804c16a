//! What a log promises, on the simulated disk.

mod damage;
mod model;
mod power;
mod removed;
mod threads;

use super::format::{self, Header, SegmentHeader, Spot};
use super::{Align, Cut, Found, Gone, Options, Owner, Position, Record, Recovery, SegmentError, SegmentLog, Visit};
use crate::disk::{AlignedBuf, Disk};
use crate::testing::SimDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SEED: u64 = 7;

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn segment_path(segment: u32) -> PathBuf {
    dir().join(super::segment_name(segment))
}

fn options(owner: Owner, align: Align) -> Options {
    Options {
        owner,
        owner_id: *b"sixteen bytes id",
        segment_len_max: 64 << 10,
        align,
        start: None,
        salt: 99,
        gone: Gone::default(),
    }
}

/// What recovery showed, as the owner would keep it.
#[derive(Debug, Default)]
struct Seen {
    records: Vec<(Position, u8, Vec<u8>)>,
    punched: Vec<Position>,
}

impl Seen {
    fn payloads(&self) -> Vec<&[u8]> {
        self.records.iter().map(|(_, _, payload)| payload.as_slice()).collect()
    }
}

impl Visit for Seen {
    fn record(&mut self, found: Found<'_>) {
        let payload = found.body.map(|(payload, _)| payload.to_vec()).unwrap_or_default();
        self.records.push((found.position, found.header.kind, payload));
    }

    fn truncated(&mut self, kept: Option<Position>) {
        self.records.retain(|(at, _, _)| kept.is_some_and(|kept| *at <= kept));
    }

    fn punched(&mut self, position: Position, _: &Header) {
        self.punched.push(position);
    }

    fn holds(&mut self, header: &Header, payload: &[u8], _: &[u8]) -> bool {
        blake3::hash(payload).as_bytes() == &header.key
    }
}

fn open(disk: &SimDisk, options: Options) -> (SegmentLog, Seen, Recovery) {
    let mut seen = Seen::default();
    let (log, recovery) = SegmentLog::open(Arc::new(disk.clone()), &dir(), options, &mut seen).expect("opens");
    (log, seen, recovery)
}

fn record(payload: &[u8]) -> Record<'_> {
    Record { kind: 1, key: *blake3::hash(payload).as_bytes(), payload, trailer: b"trailer", checksum: true }
}

#[test]
fn what_was_appended_is_read_back_also_after_a_restart() {
    for (owner, align) in
        [(Owner::RaftLog, Align::Small), (Owner::Chunks, Align::Small), (Owner::Chunks, Align::Direct)]
    {
        let disk = SimDisk::new(SEED);
        let (log, seen, recovery) = open(&disk, options(owner, align));
        assert!(seen.records.is_empty() && recovery == Recovery::default());
        let payloads: Vec<Vec<u8>> = [0, 1, 63, 64, 4000, 40_000, 100_000].map(|len| vec![7; len]).into();
        let records: Vec<Record<'_>> = payloads.iter().map(|payload| record(payload)).collect();
        let mut positions = log.append(&records[..4]).expect("append");
        positions.extend(records[4..].iter().flat_map(|record| log.append(&[*record]).expect("append")));
        assert!(log.append(&[]).expect("nothing").is_empty());
        assert!(positions.is_sorted() && positions.last().expect("some").segment == 2, "{positions:?}");
        log.sync().expect("sync");
        for ((position, payload), sent) in positions.iter().zip(&payloads).zip(&records) {
            let read = log.read_record(*position).expect("read");
            assert_eq!((&read.payload, read.trailer.as_slice(), read.header.key), (payload, &b"trailer"[..], sent.key));
            assert_eq!(log.read_header(*position).expect("read"), read.header);
            let mut end = [0; 7];
            log.read_body(*position, u64::from(read.header.payload_len), &mut end).expect("read");
            assert_eq!(&end, b"trailer");
        }
        let (end, usage) = (log.end(), log.segments());
        assert_eq!(end, log.durable_end());
        drop(log);
        let (log, seen, recovery) = open(&disk, options(owner, align));
        assert_eq!(seen.payloads(), payloads);
        assert_eq!((recovery.records, recovery.cut, recovery.damaged_count), (7, None, 0));
        assert_eq!((log.end(), log.segments()), (end, usage));
        let next = log.append(&[record(b"next")]).expect("append");
        assert_eq!(log.read_record(next[0]).expect("read").payload, b"next");
    }
}

#[test]
fn a_buffer_is_written_as_it_is() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Direct));
    let mut buf = AlignedBuf::with_capacity(64 + 5000 + 3);
    buf.extend_from_slice(&[0; 64]);
    buf.extend_from_slice(&[5; 5000]);
    buf.extend_from_slice(b"end");
    let at = log.append_buf(3, *blake3::hash(&[5; 5000]).as_bytes(), false, 5000, &mut buf).expect("append");
    assert_eq!(buf.len(), 8192);
    let read = log.read_record(at).expect("read");
    assert_eq!((read.payload, read.trailer, read.header.checksum), (vec![5; 5000], b"end".to_vec(), false));
    let (log, seen, _) = open(&disk, options(Owner::Chunks, Align::Direct));
    assert_eq!(seen.records, [(at, 3, vec![5; 5000])], "above the last mark, so it was read and checked");
    log.append(&[record(b"later")]).expect("append");
    let (_, seen, _) = open(&disk, options(Owner::Chunks, Align::Direct));
    assert_eq!(seen.payloads(), [&b""[..], b"later"], "below a mark a payload without checksum is not read");
    assert!(matches!(log.append_buf(3, [0; 32], false, 9000, &mut buf), Err(SegmentError::Invalid { .. })));
}

#[test]
fn a_start_skips_what_is_before() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::RaftLog, Align::Small));
    log.append(&[record(b"before")]).expect("append");
    let unsynced = log.durable_end();
    log.sync().expect("sync");
    let start = log.durable_end();
    assert!(unsynced < start);
    log.append(&[record(b"after")]).expect("append");
    log.sync().expect("sync");
    drop(log);
    let (_, seen, _) = open(&disk, Options { start: Some(start), ..options(Owner::RaftLog, Align::Small) });
    assert_eq!(seen.payloads(), [b"after"]);
    let (_, seen, _) = open(&disk, Options { start: Some(unsynced), ..options(Owner::RaftLog, Align::Small) });
    assert_eq!(seen.payloads(), [&b"before"[..], b"after"]);
    for beyond in [Position { segment: 1, offset: 1 << 20 }, Position { segment: 2, offset: 4096 }] {
        let options = Options { start: Some(beyond), ..options(Owner::RaftLog, Align::Small) };
        let lost = SegmentLog::open(Arc::new(disk.clone()), &dir(), options, &mut Seen::default());
        assert!(matches!(lost, Err(SegmentError::Absent { .. })), "{lost:?}");
    }
}

#[test]
fn segments_are_removed_for_good_and_in_order() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::RaftLog, Align::Small));
    let mut at = Vec::new();
    for n in 0..5u8 {
        at.push(log.append(&[record(&[n])]).expect("append")[0]);
        log.roll().expect("roll");
        log.roll().expect("nothing to do");
    }
    assert_eq!(at.iter().map(|at| at.segment).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(matches!(log.remove(2), Err(SegmentError::Invalid { .. })), "not the first one");
    assert!(matches!(log.remove(6), Err(SegmentError::Invalid { .. })), "the last one");
    assert!(matches!(log.remove(7), Err(SegmentError::Absent { .. })));
    log.remove_before(4).expect("remove");
    assert!(matches!(log.read_record(at[1]), Err(SegmentError::Absent { .. })));
    let disk = disk.after_crash();
    let (log, seen, recovery) = open(&disk, options(Owner::RaftLog, Align::Small));
    assert_eq!(seen.payloads(), [[3], [4]]);
    assert!(recovery.missing.is_empty());
    log.remove_before(100).expect("all but the last one");
    assert_eq!(log.segments().len(), 1);
    let (log, _, _) = open(&SimDisk::new(SEED), options(Owner::Chunks, Align::Small));
    log.append(&[record(b"")]).expect("append");
    log.roll().expect("roll");
    log.append(&[record(b"")]).expect("append");
    log.roll().expect("roll");
    log.remove(2).expect("any but the last one");
}

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    log.append(&[record(b"first")]).expect("append");
    disk.set_space(1 << 30, 100);
    let big = vec![1; 40 << 20];
    let error = log.append(&[record(&big)]).expect_err("no space");
    assert!(matches!(error, SegmentError::NoSpace { .. }), "{error}");
    assert_eq!(log.append(&[record(b"fits")]).expect("what was reserved is there").len(), 1);
    disk.set_space(1 << 30, 100 << 20);
    log.append(&[record(&big)]).expect("there is room now");
    log.sync().expect("sync");
    let (_, seen, recovery) = open(&disk, options(Owner::Chunks, Align::Small));
    assert_eq!((seen.records.len(), recovery.damaged_count, recovery.cut), (3, 0, None));
}

#[test]
fn limits_are_checked_before_anything_happens() {
    let disk = SimDisk::new(SEED);
    let (log, _, _) = open(&disk, options(Owner::Chunks, Align::Small));
    let long = vec![0; (64 << 20) + 1];
    let trailer = vec![0; (1 << 20) + 1];
    let bad = [
        Record { payload: &long, ..record(b"") },
        Record { trailer: &trailer, ..record(b"") },
        Record { kind: 240, ..record(b"") },
    ];
    for bad in bad {
        assert!(matches!(log.append(&[record(b"good"), bad]), Err(SegmentError::Invalid { .. })));
    }
    assert!(matches!(log.truncate_after(None), Err(SegmentError::Invalid { .. })), "chunks are no sequence");
    assert_eq!(log.end().offset, format::SEGMENT_HEADER_LEN);
}

#[test]
fn a_log_of_somebody_else_is_refused() {
    let disk = SimDisk::new(SEED);
    drop(open(&disk, options(Owner::Chunks, Align::Small)));
    let other = [
        options(Owner::RaftLog, Align::Small),
        options(Owner::Chunks, Align::Direct),
        Options { owner_id: [0; 16], ..options(Owner::Chunks, Align::Small) },
    ];
    for options in other {
        let refused = SegmentLog::open(Arc::new(disk.clone()), &dir(), options, &mut Seen::default());
        assert!(matches!(refused, Err(SegmentError::Foreign { .. })), "{refused:?}");
    }
    disk.rename(&segment_path(1), &segment_path(2)).expect("rename");
    let options = options(Owner::Chunks, Align::Small);
    let refused = SegmentLog::open(Arc::new(disk.clone()), &dir(), options, &mut Seen::default());
    assert!(matches!(refused, Err(SegmentError::Foreign { .. })), "{refused:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_on_disk_stay_what_they_are() {
    let header = SegmentHeader {
        owner: Owner::RaftLog,
        align: Align::Small,
        segment: 0x0102,
        owner_id: [0xaa; 16],
        salt: 0x0506,
    };
    let block = header.encode();
    assert_eq!(block.len(), 4096);
    assert_eq!(block[..64], block[2048..2112]);
    assert!(block[64..2048].iter().chain(&block[2112..]).all(|byte| *byte == 0));
    assert_eq!(hex(&block[..64]), GOLDEN_SEGMENT);
    assert_eq!(SegmentHeader::decode(&block), Ok(header));
    let chunks = SegmentHeader { owner: Owner::Chunks, align: Align::Direct, ..header };
    assert_eq!(SegmentHeader::decode(&chunks.encode()), Ok(chunks));

    let spot = Spot { salt: 0x0506, position: Position { segment: 2, offset: 0x1040 } };
    let header = Header {
        kind: 9,
        checksum: false,
        payload_len: 0x030201,
        trailer_len: 0x0504,
        mark: 0x1000,
        key: [0xbb; 32],
        body_crc: format::body_crc(b"123456789", b"", true),
    };
    assert_eq!(header.body_crc, 0xe306_9283, "CRC32C of the check string");
    let bytes = header.encode(spot);
    assert_eq!(hex(&bytes), GOLDEN_RECORD);
    assert_eq!(Header::decode(&bytes, spot), Some(header));
    let elsewhere = Spot { position: Position { segment: 2, offset: 0x1080 }, ..spot };
    assert_eq!(Header::decode(&bytes, elsewhere), None, "a header counts only at its place");
    for at in 0..64 {
        let mut bad = bytes;
        bad[at] ^= 1;
        assert_eq!(Header::decode(&bad, spot), None, "byte {at}");
    }
    let kept = Position { segment: 3, offset: 0x2040 };
    assert_eq!(hex(&format::encode_kept(Some(kept))), "030000004020000000000000");
    assert_eq!(format::decode_kept(&format::encode_kept(Some(kept))), Some(Some(kept)));
    assert_eq!(format::decode_kept(&format::encode_kept(None)), Some(None));
    assert_eq!(format::decode_kept(b"short"), None);
    assert_ne!(format::body_crc(b"a", b"b", true), format::body_crc(b"x", b"b", true));
    assert_eq!(format::body_crc(b"a", b"b", false), format::body_crc(b"x", b"b", false));
}

const GOLDEN_SEGMENT: &str = "44465353454700000100010602010000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
                              060500000000000000000000000000000000000000000000000000007fd6a6e7";
const GOLDEN_RECORD: &str = "444653520109010001020300040500000010000000000000bbbbbbbbbbbbbbbb\
                             bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb839206e36e5dc3d7";
