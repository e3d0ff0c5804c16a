//! The checker is checked: right histories pass, and each kind of fault is found.

use super::model::{Progress, State};
use super::search::check;
use super::work::{Role, random_call};
use super::{Answer, Call, Operation, Refusal, Spot};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const F: Spot = Spot { dir: None, name: "f0" };
const G: Spot = Spot { dir: None, name: "f1" };
const IN: Spot = Spot { dir: Some("d0"), name: "in" };
const D: Spot = Spot { dir: None, name: "d0" };
const E: Spot = Spot { dir: None, name: "d1" };

/// A call that took from..to, by somebody who makes no other at that time.
fn op(from: u64, to: u64, call: Call, answer: Answer) -> Operation {
    Operation { who: "a".into(), world: 0, call, answer: Some(answer), from, to }
}

fn lost(from: u64, call: Call) -> Operation {
    Operation { who: "b".into(), world: 0, call, answer: None, from, to: from + 1 }
}

fn missing() -> Answer {
    Answer::Refused(Refusal::Missing)
}

fn attr(ino: u64, links: usize, size: usize) -> Answer {
    Answer::Attr { ino, links: Some(links), size: Some(size) }
}

fn append(text: &str) -> Call {
    Call::Append(F, text.as_bytes().to_vec())
}

fn bytes(text: &str) -> Answer {
    Answer::Bytes(7, text.as_bytes().to_vec())
}

/// `f0`, made at 0..1 as inode 7, and then these.
fn after_create(more: &[Operation]) -> Vec<Operation> {
    let mut history = vec![op(0, 1, Call::Create(F), Answer::On(7))];
    history.extend_from_slice(more);
    history
}

#[track_caller]
fn right(history: &[Operation]) {
    check(history).unwrap();
}

#[track_caller]
fn wrong(history: &[Operation]) {
    let error = check(history).expect_err("this cannot be");
    assert!(error.contains("no order"), "{error}");
}

#[test]
fn a_stale_read_is_found() {
    let write = op(2, 5, Call::Write(F, 0, b"new".to_vec()), Answer::On(7));
    right(&after_create(&[write.clone(), op(3, 4, Call::Read(F), bytes(""))]));
    right(&after_create(&[write.clone(), op(3, 4, Call::Read(F), bytes("new"))]));
    wrong(&after_create(&[write.clone(), op(6, 7, Call::Read(F), bytes(""))]));
    // Once somebody has seen it, nobody sees what was before, though the write has not returned.
    let seen = op(3, 4, Call::Read(F), bytes("new"));
    let late = op(2, 9, Call::Write(F, 0, b"new".to_vec()), Answer::On(7));
    wrong(&after_create(&[late, seen, op(5, 6, Call::Read(F), bytes(""))]));
    right(&after_create(&[write.clone(), op(6, 7, Call::Read(F), bytes("new"))]));
    wrong(&after_create(&[write, op(6, 7, Call::Stat(F), attr(7, 1, 0))]));
}

#[test]
fn zeros_are_found_unless_the_file_was_cut_there_during_the_read() {
    let written = op(2, 3, Call::Write(F, 0, b"abcd".to_vec()), Answer::On(7));
    let cut = |from, to| op(from, to, Call::Truncate(F, 1), Answer::On(7));
    let read = |text| op(6, 9, Call::Read(F), bytes(text));
    right(&after_create(&[written.clone(), cut(5, 8), read("a\0\0\0")]));
    wrong(&after_create(&[written.clone(), cut(5, 8), read("a\0\0")]));
    wrong(&after_create(&[written.clone(), cut(4, 5), read("a\0\0\0")]));
    wrong(&after_create(&[written.clone(), cut(10, 11), read("a\0\0\0")]));
    wrong(&after_create(&[written, read("abcd\0")]));
}

#[test]
fn a_lost_and_a_doubled_append_are_found() {
    let two = [op(2, 5, append("a"), Answer::On(7)), op(3, 6, append("b"), Answer::On(7))];
    let then = |text: &str| after_create(&[two[0].clone(), two[1].clone(), op(7, 8, Call::Read(F), bytes(text))]);
    right(&then("ab"));
    right(&then("ba"));
    for text in ["a", "b", "", "aab", "abb", "aba"] {
        wrong(&then(text));
    }
    let ordered = [op(2, 3, append("a"), Answer::On(7)), op(4, 5, append("b"), Answer::On(7))];
    wrong(&after_create(&[ordered[0].clone(), ordered[1].clone(), op(7, 8, Call::Read(F), bytes("ba"))]));
}

#[test]
fn two_winners_of_an_exclusive_creation_are_found() {
    let exists = Answer::Refused(Refusal::Exists);
    right(&[op(0, 5, Call::Create(F), Answer::On(7)), op(1, 6, Call::Create(F), exists.clone())]);
    right(&[op(0, 5, Call::Create(F), exists.clone()), op(1, 6, Call::Create(F), Answer::On(7))]);
    wrong(&[op(0, 5, Call::Create(F), Answer::On(7)), op(1, 6, Call::Create(F), Answer::On(8))]);
    wrong(&[op(0, 5, Call::Create(F), exists.clone()), op(1, 6, Call::Create(F), exists)]);
    let between = op(2, 3, Call::Unlink(F), Answer::Done);
    right(&[op(0, 5, Call::Create(F), Answer::On(7)), op(1, 6, Call::Create(F), Answer::On(8)), between]);
}

#[test]
fn a_name_that_is_seen_after_it_was_removed_is_found() {
    let removed = op(2, 3, Call::Unlink(F), Answer::Done);
    right(&after_create(&[removed.clone(), op(4, 5, Call::Stat(F), missing())]));
    wrong(&after_create(&[removed.clone(), op(4, 5, Call::Stat(F), attr(7, 1, 0))]));
    wrong(&after_create(&[removed.clone(), op(4, 5, Call::List(None), Answer::Names(vec!["f0"]))]));
    wrong(&after_create(&[removed.clone(), op(4, 5, Call::Read(F), bytes(""))]));
    wrong(&after_create(&[removed.clone(), op(4, 5, Call::Unlink(F), Answer::Done)]));
    // Opened before, read afterwards: that is allowed.
    right(&after_create(&[removed, op(2, 9, Call::Read(F), bytes(""))]));
}

#[test]
fn a_name_that_is_missing_though_it_was_always_there_is_found() {
    wrong(&after_create(&[op(4, 5, Call::Stat(F), missing())]));
    wrong(&after_create(&[op(4, 5, Call::List(None), Answer::Names(Vec::new()))]));
    let other = op(2, 3, Call::Create(G), Answer::On(8));
    // Replaced by rename: the name is there all the time.
    let replaced = op(4, 7, Call::Rename(G, F), Answer::Done);
    right(&after_create(&[other.clone(), replaced.clone(), op(5, 6, Call::Stat(F), attr(7, 1, 0))]));
    right(&after_create(&[other.clone(), replaced.clone(), op(5, 6, Call::Stat(F), attr(8, 1, 0))]));
    wrong(&after_create(&[other.clone(), replaced.clone(), op(5, 6, Call::Stat(F), missing())]));
    let both = Answer::Names(vec!["f0", "f1"]);
    wrong(&after_create(&[other.clone(), replaced.clone(), op(8, 9, Call::List(None), both)]));
    wrong(&after_create(&[other, replaced, op(5, 6, Call::List(None), Answer::Names(vec!["f1"]))]));
}

#[test]
fn wrong_links_and_identities_are_found() {
    let linked = op(2, 3, Call::Link(F, G), Answer::Done);
    right(&after_create(&[linked.clone(), op(4, 5, Call::Stat(G), attr(7, 2, 0))]));
    wrong(&after_create(&[linked.clone(), op(4, 5, Call::Stat(F), attr(7, 1, 0))]));
    wrong(&after_create(&[linked.clone(), op(4, 5, Call::Stat(G), attr(8, 2, 0))]));
    let unlinked = op(4, 5, Call::Unlink(F), Answer::Done);
    right(&after_create(&[linked.clone(), unlinked.clone(), op(6, 7, Call::Stat(G), attr(7, 1, 0))]));
    wrong(&after_create(&[linked, unlinked, op(6, 7, Call::Stat(G), attr(7, 2, 0))]));
}

#[test]
fn directories_that_are_removed_while_full_or_lose_files_when_moved_are_found() {
    let filled = [
        op(0, 1, Call::Mkdir("d0"), Answer::Done),
        op(2, 3, Call::Create(IN), Answer::On(7)),
        op(4, 5, Call::Rename(D, E), Answer::Done),
    ];
    let then = |call, answer| [filled.as_slice(), &[op(6, 7, call, answer)]].concat();
    right(&then(Call::List(Some("d1")), Answer::Names(vec!["in"])));
    wrong(&then(Call::List(Some("d1")), Answer::Names(Vec::new())));
    wrong(&then(Call::Stat(IN), attr(7, 1, 0)));
    right(&then(Call::Rmdir("d1"), Answer::Refused(Refusal::NotEmpty)));
    wrong(&then(Call::Rmdir("d1"), Answer::Done));
    wrong(&then(Call::Rmdir("d0"), Answer::Refused(Refusal::NotEmpty)));
    // Walked into before it was moved: the file is made where the directory is now.
    let moved = [op(0, 1, Call::Mkdir("d0"), Answer::Done), op(3, 4, Call::Rename(D, E), Answer::Done)];
    let slow = op(2, 6, Call::Create(IN), Answer::On(7));
    let seen = op(7, 8, Call::List(Some("d1")), Answer::Names(vec!["in"]));
    right(&[moved.as_slice(), &[slow, seen]].concat());
}

#[test]
fn a_call_without_an_answer_happens_once_or_never_and_not_before_it_began() {
    let tried = lost(2, append("a"));
    for text in ["", "a"] {
        right(&after_create(&[tried.clone(), op(8, 9, Call::Read(F), bytes(text))]));
    }
    let reads = |first: &str, second: &str| {
        let reads = [op(8, 9, Call::Read(F), bytes(first)), op(10, 11, Call::Read(F), bytes(second))];
        after_create(&[tried.clone(), reads[0].clone(), reads[1].clone()])
    };
    right(&reads("", "a"));
    wrong(&reads("a", ""));
    wrong(&reads("a", "aa"));
    wrong(&[op(0, 1, Call::Stat(F), attr(7, 1, 0)), lost(2, Call::Create(F))]);
    right(&[lost(2, Call::Create(F)), op(5, 6, Call::Stat(F), attr(7, 1, 0))]);
    // Its inode number is learnt once.
    let other = op(7, 8, Call::Stat(F), attr(8, 1, 0));
    wrong(&[lost(2, Call::Create(F)), op(5, 6, Call::Stat(F), attr(7, 1, 0)), other]);
}

#[test]
fn worlds_do_not_touch_each_other() {
    let mut elsewhere = op(2, 3, Call::Create(F), Answer::On(8));
    elsewhere.world = 1;
    right(&after_create(std::slice::from_ref(&elsewhere)));
    elsewhere.world = 0;
    wrong(&after_create(&[elsewhere]));
}

/// Runs processes on the model: who goes on is drawn at random, step by step.
fn simulated(seed: u64, processes: usize, calls: usize) -> Vec<Operation> {
    struct Going {
        call: Call,
        key: usize,
        from: u64,
        at: Progress,
        answer: Option<Answer>,
    }
    let mut random = StdRng::seed_from_u64(seed);
    let (mut state, mut clock, mut begun) = (State::default(), 0, 0);
    let mut going: Vec<Option<Going>> = (0..processes).map(|_| None).collect();
    let mut history = Vec::new();
    while history.len() < calls {
        clock += 1;
        let who = random.random_range(0..processes);
        match &mut going[who] {
            None => {
                begun += 1;
                let record = format!("{who}{begun:05}");
                let call = random_call(&mut random, Role::Contents, record.as_bytes());
                going[who] = Some(Going { call, key: begun, from: clock, at: Progress::default(), answer: None });
            }
            Some(Going { call, key, at, answer: answer @ None, .. }) => *answer = state.answer(at, call, *key),
            slot => {
                let Going { call, from, answer, .. } = slot.take().expect("just matched");
                history.push(Operation { who: who.to_string(), world: 0, call, answer, from, to: clock });
            }
        }
        state.sweep(going.iter().flatten().filter(|one| one.answer.is_none()).map(|one| &one.at));
    }
    history
}

#[test]
fn what_the_model_does_is_right_also_if_some_answers_are_lost() {
    for seed in 0..20 {
        let mut history = simulated(seed, 4, 200);
        let searched = check(&history).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!((searched.operations, searched.unknown), (200, 0));
        let changes: Vec<usize> = (0..200).filter(|index| !history[*index].call.only_looks()).collect();
        for lost in [changes[20], changes[60]] {
            history[lost].answer = None;
        }
        check(&history).unwrap_or_else(|error| panic!("seed {seed}, answers lost: {error}"));
    }
}

/// One answer of a long right history is changed to a wrong one of the same form.
#[test]
fn one_wrong_answer_among_hundreds_is_found() {
    let (mut tried, mut found) = (0, 0);
    for seed in 100..130 {
        let mut history = simulated(seed, 4, 200);
        let middle = history[60..].iter_mut().find_map(|operation| match &mut operation.answer {
            Some(Answer::Bytes(_, bytes)) if !bytes.is_empty() => Some(bytes),
            _ => None,
        });
        let Some(bytes) = middle else { continue };
        bytes[0] = b'#'; // nobody writes this
        tried += 1;
        found += usize::from(check(&history).is_err());
    }
    assert!(tried > 20, "{tried} histories had a read to falsify");
    assert_eq!(found, tried);
}
