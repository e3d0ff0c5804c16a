//! Which fault comes next while a cluster is under load: the decision, pure.
//!
//! What nobody can survive by definition is left out: a fault that destroys copies waits until the cluster has said that
//! nothing is missing since the last one, so never more than one of a chunk's copies is destroyed before it is made again;
//! and with one copy destroyed at most one other server is silent, so at most two of three are out of reach. A majority of
//! the metaservers runs at any time.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Copies of each chunk.
pub const COPIES: usize = 3;
/// The most servers there are at a time.
pub const SERVERS_MAX: usize = 7;

/// What is done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of a chunkserver, started again after a while.
    Kill,
    /// SIGSTOP of a chunkserver, SIGCONT after a while.
    Hang,
    /// kill -9 of a chunkserver, its disk emptied, and started again: as another server.
    Wipe,
    /// Some stored bytes of a chunkserver change.
    Flip,
    /// A chunkserver's disk is full for a while.
    Fill,
    /// A new chunkserver.
    Add,
    /// A chunkserver gives away all it has; then it leaves, or takes its share back.
    Drain,
    /// What is unbalanced is moved.
    Rebalance,
    /// kill -9 of the metaserver that leads, started again after a while.
    Leader,
}

/// All of them.
pub const ALL: [Fault; 9] = [
    Fault::Kill,
    Fault::Hang,
    Fault::Wipe,
    Fault::Flip,
    Fault::Fill,
    Fault::Add,
    Fault::Drain,
    Fault::Rebalance,
    Fault::Leader,
];

/// What counts for the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Chunkservers that serve.
    pub up: usize,
    /// Chunkservers that are killed, hang, are full, or are lost and not made good yet.
    pub away: usize,
    /// Chunkservers that are being drained.
    pub draining: usize,
    /// A metaserver is down.
    pub meta_away: bool,
    /// Every chunk has all its copies, and each was looked at since the last fault that destroyed some.
    pub whole: bool,
}

impl Fault {
    /// True if copies are gone for good.
    pub fn destroys(self) -> bool {
        matches!(self, Fault::Wipe | Fault::Flip)
    }

    /// Whether it may come now.
    pub fn may_come(self, view: View) -> bool {
        let away_max = if view.whole { COPIES - 1 } else { COPIES - 2 };
        match self {
            Fault::Kill | Fault::Hang | Fault::Fill => view.away < away_max && view.up - view.draining > COPIES,
            Fault::Wipe | Fault::Flip => view.whole && view.away == 0,
            // Starting one starts all that are down.
            Fault::Add => view.away == 0 && !view.meta_away && view.up < SERVERS_MAX,
            Fault::Drain => view.draining == 0 && view.up > COPIES + 1,
            Fault::Rebalance => true,
            Fault::Leader => !view.meta_away,
        }
    }
}

/// Faults in an order that follows from a seed: each kind once before any comes twice.
#[derive(Debug)]
pub struct Faults {
    random: StdRng,
    bag: Vec<Fault>,
}

impl Faults {
    /// An endless row of them.
    pub fn new(random: StdRng) -> Faults {
        Faults { random, bag: Vec::new() }
    }

    /// The next one, if it may come now. One that destroys is waited for; another one is passed over.
    pub fn next(&mut self, view: View) -> Option<Fault> {
        if self.bag.is_empty() {
            self.bag = ALL.to_vec();
            self.bag.shuffle(&mut self.random);
        }
        let fault = *self.bag.last().expect("it was filled just now");
        let may = fault.may_come(view);
        if may || !fault.destroys() {
            self.bag.pop();
        }
        may.then_some(fault)
    }

    /// True if the next fault waits until nothing is missing.
    pub fn waits(&self) -> bool {
        self.bag.last().is_some_and(|fault| fault.destroys())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// A number in this range.
    pub fn number(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.random.random_range(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    const CALM: View = View { up: 5, away: 0, draining: 0, meta_away: false, whole: true };

    #[test]
    fn what_cannot_be_survived_does_not_come() {
        for fault in ALL {
            let may = |view| fault.may_come(view);
            assert!(may(CALM), "{fault:?}");
            if fault.destroys() {
                assert!(!may(View { whole: false, ..CALM }) && !may(View { up: 4, away: 1, ..CALM }));
            }
        }
        let silent = |up, away, whole| Fault::Kill.may_come(View { up, away, whole, ..CALM });
        assert!(silent(5, 0, false) && silent(4, 1, true));
        assert!(!silent(4, 1, false), "one copy may be destroyed, a second one silent, a third one would be too many");
        assert!(!silent(5, 2, true) && !silent(3, 0, true), "three servers must be left for three copies");
        assert!(!Fault::Leader.may_come(View { meta_away: true, ..CALM }));
    }

    #[test]
    fn each_kind_comes_once_before_any_comes_twice_and_what_destroys_is_waited_for() {
        let mut faults = Faults::new(StdRng::seed_from_u64(1));
        for _ in 0..3 {
            let all: BTreeSet<Fault> = ALL.iter().filter_map(|_| faults.next(CALM)).collect();
            assert_eq!(all.len(), ALL.len());
        }
        let hurt = View { whole: false, ..CALM };
        while faults.next(hurt).is_some() || !faults.waits() {}
        assert_eq!(faults.next(hurt), None, "and nothing else comes meanwhile");
        assert!(faults.next(CALM).is_some_and(Fault::destroys));
    }
}
