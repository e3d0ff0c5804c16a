//! Several threads on a real disk.

use super::{Align, Options, Owner, Record, Seen, options, record};
use crate::disk::{AlignedBuf, RealDisk};
use crate::segment::SegmentLog;
use std::collections::BTreeSet;
use std::sync::Arc;

#[test]
fn threads_append_and_sync_at_once() {
    for (owner, align) in
        [(Owner::RaftLog, Align::Small), (Owner::Chunks, Align::Small), (Owner::Chunks, Align::Direct)]
    {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options { segment_len_max: 200_000, ..options(owner, align) };
        let open =
            |seen: &mut Seen| SegmentLog::open(Arc::new(RealDisk), dir.path(), options.clone(), seen).expect("opens");
        let (log, _) = open(&mut Seen::default());
        let threads: Vec<_> = (0..8u8)
            .map(|thread| {
                let log = log.clone();
                std::thread::spawn(move || {
                    for n in 0..20u8 {
                        let payload = [&[thread, n][..], &vec![thread; usize::from(n) * 300]].concat();
                        let at = if align == Align::Direct && n % 2 == 0 {
                            let mut buf = AlignedBuf::with_capacity(64 + payload.len());
                            buf.resize(64);
                            buf.extend_from_slice(&payload);
                            let len = u32::try_from(payload.len()).unwrap();
                            log.append_buf(1, *blake3::hash(&payload).as_bytes(), false, len, &mut buf).expect("append")
                        } else {
                            log.append(&[Record { trailer: &[], ..record(&payload) }]).expect("append")[0]
                        };
                        log.sync().expect("sync");
                        let durable = log.durable_end();
                        // Chunks: an earlier place may still be in flight.
                        assert!(owner == Owner::Chunks || at < durable, "{at} {durable}");
                        assert_eq!(log.read_record(at).expect("read").payload, payload);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(log.segments().len() > 1);
        let mut seen = Seen::default();
        let (again, recovery) = open(&mut seen);
        let found: BTreeSet<Vec<u8>> =
            seen.records.iter().map(|(at, _, _)| again.read_record(*at).expect("read").payload).collect();
        assert_eq!((found.len(), recovery.records), (160, 160));
        assert_eq!((recovery.damaged_count, recovery.cut), (0, None));
    }
}
