//! Random appends, syncs, truncations, removals, restarts and power cuts against a `Vec`.

use super::{Align, Owner, Position, Seen, SegmentLog, SimDisk, dir, open, options, record};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{collection, prop_assert, prop_assert_eq, proptest};
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Sync,
    /// Keeps this share of the records, in 256ths.
    Truncate(u8),
    RemoveFirst,
    Roll,
    /// Ends without a sync; nothing is lost (as after `kill -9`).
    Restart,
    PowerCut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => collection::vec(0usize..12_000, 1..4).prop_map(Step::Append),
        3 => any::<bool>().prop_map(|_| Step::Sync),
        1 => any::<u8>().prop_map(Step::Truncate),
        1 => any::<bool>().prop_map(|_| Step::RemoveFirst),
        1 => any::<bool>().prop_map(|_| Step::Roll),
        1 => any::<bool>().prop_map(|_| Step::Restart),
        1 => any::<bool>().prop_map(|_| Step::PowerCut),
    ];
    collection::vec(step, 1..60)
}

type Model = Vec<(Position, Vec<u8>)>;

/// The log and what it should hold.
struct Run {
    disk: SimDisk,
    log: SegmentLog,
    model: Model,
    /// States since the last sync, that one first: a power cut leaves one of them.
    history: Vec<Model>,
    next: u32,
}

impl Run {
    fn keep(&mut self) {
        self.history.push(self.model.clone());
    }

    fn synced(&mut self) {
        self.history = vec![self.model.clone()];
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(lens) => {
                let next = self.next;
                let payloads: Vec<Vec<u8>> =
                    lens.iter().map(|len| [&next.to_le_bytes()[..], &vec![5; *len]].concat()).collect();
                self.next += 1;
                let records: Vec<_> = payloads.iter().map(|payload| record(payload)).collect();
                let before = self.log.end().segment;
                let positions = self.log.append(&records).expect("append");
                if self.log.end().segment != before {
                    self.synced(); // a new segment syncs the old one
                }
                for entry in positions.into_iter().zip(payloads) {
                    self.model.push(entry);
                    self.keep();
                }
            }
            Step::Sync => {
                self.log.sync().expect("sync");
                self.synced();
            }
            Step::Truncate(share) => {
                let keep = self.model.len() * usize::from(*share) / 256;
                let kept = keep.checked_sub(1).map(|last| self.model[last].0);
                let before = self.log.end().segment;
                self.log.truncate_after(kept).expect("truncate");
                if self.log.end().segment != before {
                    self.synced();
                }
                self.model.truncate(keep);
                self.keep();
            }
            Step::RemoveFirst => {
                let first = self.log.segments()[0].segment;
                if first < self.log.end().segment {
                    self.log.remove(first).expect("remove");
                    for model in self.history.iter_mut().chain([&mut self.model]) {
                        model.retain(|(at, _)| at.segment != first);
                    }
                }
            }
            Step::Roll => {
                self.log.roll().expect("roll");
                self.synced();
            }
            Step::Restart => self.reopen(self.disk.clone()),
            Step::PowerCut => self.reopen(self.disk.after_crash()),
        }
    }

    fn reopen(&mut self, disk: SimDisk) {
        let (log, seen, recovery) = open(&disk, options(Owner::RaftLog, Align::Small));
        assert_eq!(recovery.damaged_count, 0, "{recovery:?}");
        assert!(recovery.missing.is_empty() && recovery.unreadable.is_empty(), "{recovery:?}");
        self.model = seen.records.into_iter().map(|(at, _, payload)| (at, payload)).collect();
        assert!(self.history.contains(&self.model), "not a state since the last sync");
        self.synced(); // what recovery accepted is durable
        (self.disk, self.log) = (disk, log);
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]
    #[test]
    fn a_log_is_a_vec_that_may_lose_its_unsynced_end(seed in any::<u64>(), steps in steps()) {
        let disk = SimDisk::new(seed);
        let (log, _) = SegmentLog::open(
            Arc::new(disk.clone()), &dir(), options(Owner::RaftLog, Align::Small), &mut Seen::default()).expect("open");
        let mut run = Run { disk, log, model: Vec::new(), history: vec![Vec::new()], next: 0 };
        for step in &steps {
            run.step(step);
            for (at, payload) in &run.model {
                prop_assert_eq!(&run.log.read_record(*at).expect("read").payload, payload);
            }
        }
        run.step(&Step::Restart);
        prop_assert!(run.log.fenced().is_none());
    }
}
