//! Is there one order of all calls that explains every answer?
//!
//! The history is gone through by time. At each moment there is a set of possibilities: states of the model, each with how
//! far every call under way is. When a call begins it is added to each. When it ends, each possibility is led on in every
//! way (steps of this call and of the others under way, in any order) until the call is done with its answer; those that
//! cannot are dropped. None left: there is no such order, and this call is where it shows. Equal possibilities are met once:
//! that, and that others are led on only when a call ends, keeps it narrow. At a moment when no call is under way only
//! different states are left.
//!
//! A call without an answer walked its paths before it returned (that is the kernel's work); its change, if it got so far, may
//! come at any later moment, or never. A possibility in which it is given up is left out where there is one, else the same,
//! in which it can still come: that can do whatever the other can.

use super::Operation;
use super::model::{Progress, State, Step};
use std::collections::{BTreeMap, HashSet};

/// More possibilities at once are too many to go on.
const WIDTH_MAX: usize = 300_000;
/// Operations shown before the one that cannot be explained.
const SHOWN: usize = 40;
/// Possibilities shown.
const STATES_SHOWN: usize = 3;

/// What was searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Operations.
    pub operations: usize,
    /// Without an answer.
    pub unknown: usize,
    /// The most possibilities at once.
    pub widest: usize,
}

/// One way things may have gone so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Way {
    state: State,
    /// Calls under way that are not done. One without an answer that is done is forgotten.
    going: BTreeMap<usize, Progress>,
}

/// Checks a history, each world by itself.
///
/// # Errors
/// The operation that no order explains, with those before it; or that there are too many possibilities.
pub fn check(history: &[Operation]) -> Result<Searched, String> {
    let mut worlds: BTreeMap<usize, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        worlds.entry(operation.world).or_default().push(operation);
    }
    let mut all = Searched::default();
    for history in worlds.values() {
        let searched = check_world(history)?;
        all.operations += searched.operations;
        all.unknown += searched.unknown;
        all.widest = all.widest.max(searched.widest);
    }
    Ok(all)
}

fn check_world(history: &[&Operation]) -> Result<Searched, String> {
    // Beginnings before ends at the same moment: such calls overlap.
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in history.iter().enumerate() {
        match &operation.answer {
            None if operation.call.only_looks() => {}
            _ => events.extend([(operation.from, false, index), (operation.to, true, index)]),
        }
    }
    events.sort_unstable();
    let mut ways = vec![Way { state: State::default(), going: BTreeMap::new() }];
    let unknown = history.iter().filter(|operation| operation.answer.is_none()).count();
    let mut searched = Searched { operations: history.len(), unknown, widest: 1 };
    for (_, ends, index) in events {
        if !ends {
            ways.iter_mut().for_each(|way| drop(way.going.insert(index, Progress::default())));
            continue;
        }
        let led = lead_on(history, &ways, index)?;
        if led.is_empty() {
            return Err(unexplained(history, &ways, index));
        }
        searched.widest = searched.widest.max(led.len());
        ways = led;
    }
    Ok(searched)
}

/// Every way in which call `ending` is done, or, without an answer, has come as far as it may.
fn lead_on(history: &[&Operation], ways: &[Way], ending: usize) -> Result<Vec<Way>, String> {
    let mut seen: HashSet<Way> = ways.iter().cloned().collect();
    let mut open: Vec<Way> = seen.iter().cloned().collect();
    let mut done = Vec::new();
    let ended = history[ending];
    while let Some(way) = open.pop() {
        let Some(at) = way.going.get(&ending) else {
            done.push(way);
            continue;
        };
        if ended.answer.is_none() {
            if at.is_walked(&ended.call) {
                done.push(way.clone());
            } else if let Some(given_up) = given_up(&way, ending, &mut seen) {
                done.push(given_up);
            }
        } else if let Some(after) = at_once(history, &way, ending) {
            if seen.insert(after.clone()) {
                done.push(after);
            }
            continue;
        }
        for &index in way.going.keys() {
            if let Some(next) = stepped(history, &way, index)
                && seen.insert(next.clone())
            {
                open.push(next);
            }
        }
        if seen.len() > WIDTH_MAX {
            return Err(format!("more than {WIDTH_MAX} possibilities at\n  {}", history[ending]));
        }
    }
    Ok(done)
}

/// The same without that call, if that is new.
fn given_up(way: &Way, index: usize, seen: &mut HashSet<Way>) -> Option<Way> {
    let mut without = way.clone();
    without.going.remove(&index);
    without.state.sweep(without.going.values());
    seen.insert(without.clone()).then_some(without)
}

/// If the call can be done now and changes nothing, then that is the only way that needs to be followed: whatever the others
/// under way could do before it, they can do after it.
fn at_once(history: &[&Operation], way: &Way, index: usize) -> Option<Way> {
    let mut after = way.clone();
    while after.going.contains_key(&index) {
        after = stepped(history, &after, index)?;
    }
    (after.state == way.state).then_some(after)
}

/// One step of one call; `None` if its answer would be another.
fn stepped(history: &[&Operation], way: &Way, index: usize) -> Option<Way> {
    let operation = history[index];
    let mut next = way.clone();
    let at = next.going.get_mut(&index).expect("it is under way");
    match next.state.step(at, &operation.call, index + 1, operation.answer.as_ref()) {
        Step::Goes => {}
        Step::Ends if operation.answer.is_none() && next.state == way.state => return None, // as if it never came
        Step::Ends => drop(next.going.remove(&index)),
        Step::Differs => return None,
    }
    next.state.sweep(next.going.values());
    Some(next)
}

/// For a person: what cannot be, what came before, and what was possible then.
fn unexplained(history: &[&Operation], ways: &[Way], index: usize) -> String {
    let wrong = history[index];
    let mut before: Vec<&&Operation> = history.iter().filter(|other| other.from <= wrong.to).collect();
    before.sort_by_key(|operation| operation.from);
    let before = &before[before.len().saturating_sub(SHOWN)..];
    let mut text = format!("no order of the calls explains\n  {wrong}\nbegun before its end:\n");
    for operation in before {
        text += &format!("  {operation}\n");
    }
    text += &format!("{} possibilities before, such as:\n", ways.len());
    for way in ways.iter().take(STATES_SHOWN) {
        text += &format!("  {:?}, under way {:?}\n", way.state, way.going.keys());
    }
    text
}
