//! A breadth-first search of everything that a model can come to: exact, and its traces are the shortest ones.
//!
//! Every state is kept as it is, not as a fingerprint, so what was not found is not there. (`stateright`, the crate for this, keeps
//! fingerprints of 64 bits: two states that share one would hide what comes after the second.)

use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};

/// What can happen, step by step.
pub trait Model {
    /// Everything there is to know at one moment.
    type State: Clone + Eq + Hash;
    /// What happened, for a reader.
    type Step: Copy + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// All that may happen next.
    fn steps(&self, state: &Self::State, next: &mut Vec<(Self::Step, Self::State)>);
    /// What must never be, if it is.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
}

/// What a search found.
#[derive(Debug)]
pub struct Found<S> {
    /// States seen.
    pub states: usize,
    /// What was broken, and the shortest way there.
    pub broken: Option<(&'static str, Vec<S>)>,
}

/// Looks at every state, up to the first broken one.
///
/// # Panics
/// If there are more than `states_max`: a search that was cut off has shown nothing.
pub fn explore<M: Model>(model: &M, states_max: usize) -> Found<M::Step> {
    let mut seen = Seen::default();
    seen.insert(model.start(), 0);
    let (mut at, mut next) = (0, Vec::new());
    while at < seen.states.len() {
        let state = seen.states[at].0.clone();
        if let Some(what) = model.broken(&state) {
            let way = way_to(model, &seen, at);
            return Found { states: seen.states.len(), broken: Some((what, way)) };
        }
        model.steps(&state, &mut next);
        for (_, state) in next.drain(..) {
            seen.insert(state, at);
        }
        assert!(seen.states.len() <= states_max, "more than {states_max} states");
        at += 1;
    }
    Found { states: seen.states.len(), broken: None }
}

fn way_to<M: Model>(model: &M, seen: &Seen<M::State>, end: usize) -> Vec<M::Step> {
    let (mut way, mut at, mut next) = (Vec::new(), end, Vec::new());
    while at != 0 {
        let (state, before) = &seen.states[at];
        model.steps(&seen.states[*before].0, &mut next);
        let step = next.drain(..).find(|(_, made)| made == state).map(|(step, _)| step);
        way.push(step.expect("it was made by such a step"));
        at = *before;
    }
    way.reverse();
    way
}

/// All states in the order they were found, each with the one it was made from; and a table to find them again.
struct Seen<S> {
    states: Vec<(S, usize)>,
    /// Places in `states`, by hash, open addressing; a power of two, at most half full.
    table: Vec<Option<u32>>,
    hasher: std::hash::BuildHasherDefault<Quick>,
}

impl<S> Default for Seen<S> {
    fn default() -> Seen<S> {
        Seen { states: Vec::new(), table: vec![None; 1 << 16], hasher: Default::default() }
    }
}

impl<S: Eq + Hash> Seen<S> {
    fn insert(&mut self, state: S, from: usize) {
        if self.states.len() * 2 >= self.table.len() {
            self.table = vec![None; self.table.len() * 2];
            for at in 0..self.states.len() {
                let slot = self.slot(&self.states[at].0);
                self.table[slot] = u32::try_from(at).ok();
            }
        }
        let slot = self.slot(&state);
        if self.table[slot].is_none() {
            self.table[slot] = Some(u32::try_from(self.states.len()).expect("fewer than 2^32 states"));
            self.states.push((state, from));
        }
    }

    /// Where this state is, or would be.
    fn slot(&self, state: &S) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = usize::try_from(self.hasher.hash_one(state) >> 16).expect("64 bits") & mask;
        while self.table[slot].is_some_and(|at| self.states[usize::try_from(at).expect("32 bits")].0 != *state) {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// A quick hash of small states.
#[derive(Default)]
struct Quick(u64);

impl std::hash::Hasher for Quick {
    fn finish(&self) -> u64 {
        (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to nine by ones and twos.
    struct Count;

    impl Model for Count {
        type State = u8;
        type Step = u8;

        fn start(&self) -> u8 {
            0
        }

        fn steps(&self, state: &u8, next: &mut Vec<(u8, u8)>) {
            next.extend([1, 2].map(|step| (step, state + step)).into_iter().filter(|(_, to)| *to < 10));
        }

        fn broken(&self, state: &u8) -> Option<&'static str> {
            (*state == 7).then_some("seven")
        }
    }

    #[test]
    fn the_way_to_what_is_broken_is_the_shortest() {
        let found = explore(&Count, 10);
        let (what, way) = found.broken.expect("seven is reached");
        assert_eq!((what, way.len(), way.iter().sum::<u8>()), ("seven", 4, 7));
    }
}
