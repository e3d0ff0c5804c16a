//! Locks against a model that keeps, for each byte, who holds it how.

use super::*;
use common::proto::batch::{Batch, BatchDone, Deferred};
use common::proto::lock::{LOCK_END, LOCKS_MAX, Lock, LockAsk, LockKind, LockSpace, Locked};
use proptest::prelude::*;

const BYTES: u64 = 12;

fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { space: LockSpace::Range, owner, kind, start, end, pid: 1 }
}

fn ask(world: &mut World, session: SessionId, ino: InodeId, lock: Lock, wait: bool) -> Locked {
    match world
        .of(session, cred(5), Op::Lock(LockAsk { ino, lock, wait, detect: lock.space == LockSpace::Range }))
        .unwrap()
    {
        Outcome::Locked(Locked::Alone) => Locked::Yes,
        Outcome::Locked(locked) => locked,
        other => panic!("lock gave {other:?}"),
    }
}

/// True if this session could take the lock now.
fn is_free(world: &World, ino: InodeId, lock: Lock) -> bool {
    match world.ask(0, Query::LockHolder { ino, lock }).unwrap() {
        Answer::LockHolder(holder) => holder.is_none(),
        other => panic!("{other:?}"),
    }
}

fn waits(world: &World, ino: InodeId, number: u64) -> bool {
    match world.ask(0, Query::LockWaits { ino, number }).unwrap() {
        Answer::LockWaits(waits) => waits,
        other => panic!("{other:?}"),
    }
}

fn kind() -> impl Strategy<Value = LockKind> {
    prop_oneof![Just(LockKind::Shared), Just(LockKind::Exclusive), Just(LockKind::Unlock)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Three owners of two sessions take and let go of ranges without waiting.
    #[test]
    fn each_byte_is_locked_as_by_a_plain_table(
        steps in prop::collection::vec((0usize..3, kind(), 0..BYTES, 0..BYTES), 1..40),
    ) {
        let mut world = World::new();
        let ino = world.file(0, ROOT, "f", 0o644);
        let owners = [(S1, 1), (S1, 2), (S2, 1)];
        let mut model: Vec<[Option<LockKind>; 3]> = vec![[None; 3]; BYTES as usize];
        for (who, kind, a, b) in steps {
            let (start, end) = (a.min(b), a.max(b));
            let in_the_way = |held: &[Option<LockKind>; 3]| {
                let others = held.iter().enumerate().filter(|(n, _)| *n != who).filter_map(|(_, held)| *held);
                others.into_iter().any(|held| held == LockKind::Exclusive || kind == LockKind::Exclusive)
            };
            let range = start as usize..=end as usize;
            let blocked = kind != LockKind::Unlock && model[range.clone()].iter().any(in_the_way);
            let locked = ask(&mut world, owners[who].0, ino, lock(owners[who].1, kind, start, end), false);
            prop_assert_eq!(locked, if blocked { Locked::No } else { Locked::Yes });
            if !blocked {
                let now = Some(kind).filter(|kind| *kind != LockKind::Unlock);
                model[range].iter_mut().for_each(|held| held[who] = now);
            }
            for (byte, held) in model.iter().enumerate() {
                let byte = byte as u64;
                let exclusive = held.contains(&Some(LockKind::Exclusive));
                let any = held.iter().any(Option::is_some);
                prop_assert_eq!(is_free(&world, ino, lock(99, LockKind::Shared, byte, byte)), !exclusive);
                prop_assert_eq!(is_free(&world, ino, lock(99, LockKind::Exclusive, byte, byte)), !any);
            }
            world.check();
        }
    }
}

#[test]
fn who_waits_gets_its_lock_in_turn_and_can_give_up() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let exclusive = |owner| lock(owner, LockKind::Exclusive, 0, LOCK_END);
    let shared = |owner| lock(owner, LockKind::Shared, 5, 9);
    let unlock = |owner| lock(owner, LockKind::Unlock, 0, LOCK_END);
    assert_eq!(ask(&mut world, S1, ino, exclusive(1), true), Locked::Yes);
    let mut queue = |session, lock| match ask(&mut world, session, ino, lock, true) {
        Locked::Queued(number) => number,
        other => panic!("{other:?}"),
    };
    let (a, b, c, d) = (queue(S2, shared(1)), queue(S1, exclusive(2)), queue(S2, shared(3)), queue(S2, exclusive(4)));
    world.check();
    let cancel =
        |world: &mut World, session, number| world.of(session, cred(0), Op::CancelLock { ino, number }).unwrap();
    assert_eq!(cancel(&mut world, S1, a), Outcome::Locked(Locked::Yes), "not its own: nothing happens");
    assert_eq!(ask(&mut world, S1, ino, unlock(1), false), Locked::Yes);
    assert_eq!([a, b, c, d].map(|number| waits(&world, ino, number)), [false, true, false, true]);
    assert_eq!(cancel(&mut world, S2, a), Outcome::Locked(Locked::Yes), "too late");
    assert_eq!(cancel(&mut world, S1, b), Outcome::Locked(Locked::No));
    world.check();
    // A session that ends lets go of all at once.
    let at = world.now();
    let e = match ask(&mut world, S1, ino, exclusive(5), true) {
        Locked::Queued(number) => number,
        other => panic!("{other:?}"),
    };
    world.command(&Command::ExpireSession { session: S2, at }).unwrap();
    assert!(!waits(&world, ino, e) && !is_free(&world, ino, exclusive(99)));
    world.check();
    world.op(0, Op::Unlink { parent: ROOT, name: name("f"), keep: false }).unwrap();
    world.check();
}

#[test]
fn a_circle_of_waiting_is_refused_and_nothing_else() {
    let mut world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|text| world.file(0, ROOT, text, 0o644));
    let exclusive = |owner| lock(owner, LockKind::Exclusive, 0, 9);
    for (session, ino, owner) in [(S1, a, 1), (S2, b, 1), (S1, c, 2)] {
        assert_eq!(ask(&mut world, session, ino, exclusive(owner), true), Locked::Yes);
    }
    assert!(matches!(ask(&mut world, S1, b, exclusive(1), true), Locked::Queued(_)));
    assert!(matches!(ask(&mut world, S1, a, exclusive(2), true), Locked::Queued(_)));
    assert_eq!(ask(&mut world, S2, c, exclusive(1), true), Locked::Deadlock, "over two others");
    assert_eq!(ask(&mut world, S2, c, exclusive(1), false), Locked::No);
    let whole = Lock { space: LockSpace::Whole, ..exclusive(1) };
    assert_eq!(ask(&mut world, S1, a, whole, true), Locked::Yes, "the kinds know nothing of each other");
    assert!(matches!(ask(&mut world, S2, a, whole, true), Locked::Queued(_)));
    // b's holder waits for nobody in that file, so this is no circle.
    assert!(matches!(ask(&mut world, S1, b, exclusive(3), true), Locked::Queued(_)));
    world.check();
}

#[test]
fn who_changes_its_whole_lock_may_lose_it() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let whole = |owner, kind| Lock { space: LockSpace::Whole, ..lock(owner, kind, 0, LOCK_END) };
    assert_eq!(ask(&mut world, S1, ino, whole(1, LockKind::Shared), true), Locked::Yes);
    assert_eq!(ask(&mut world, S2, ino, whole(1, LockKind::Shared), true), Locked::Yes);
    let first = ask(&mut world, S1, ino, whole(1, LockKind::Exclusive), true);
    assert!(matches!(first, Locked::Queued(_)));
    assert_eq!(
        ask(&mut world, S2, ino, whole(1, LockKind::Exclusive), false),
        Locked::Yes,
        "the first gave its own up"
    );
    let Locked::Queued(number) = first else { unreachable!() };
    assert!(waits(&world, ino, number));
    assert_eq!(ask(&mut world, S2, ino, whole(1, LockKind::Unlock), false), Locked::Yes);
    assert!(!waits(&world, ino, number));
    world.check();
}

#[test]
fn locks_of_a_file_have_a_limit() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let mut granted = 0;
    while ask(&mut world, S1, ino, lock(1, LockKind::Shared, granted * 2, granted * 2), false) == Locked::Yes {
        granted += 1;
    }
    assert!(granted > LOCKS_MAX as u64 - 3 && granted <= LOCKS_MAX as u64);
    assert_eq!(ask(&mut world, S1, ino, lock(1, LockKind::Unlock, 0, LOCK_END), false), Locked::Yes);
    world.check();
    let bad = LockAsk { ino, lock: lock(1, LockKind::Shared, 5, 4), wait: false, detect: false };
    assert_eq!(world.kind(0, Op::Lock(bad)), Kind::Invalid);
    let gone = LockAsk { ino: InodeId(999), lock: lock(1, LockKind::Shared, 0, 4), wait: false, detect: false };
    assert_eq!(world.kind(0, Op::Lock(gone)), Kind::Gone);
}

/// Says the locks of a session in a batch of changes.
fn say(world: &mut World, session: SessionId, ino: InodeId, locks: Vec<Lock>) -> Result<(), Kind> {
    let change = Deferred { cred: cred(0), at: Time::default(), op: Op::HaveLocks { ino, locks }, leads: Vec::new() };
    let batch = Batch { changes: vec![change], ..Batch::default() };
    match world.of(session, cred(0), Op::Batch(batch)).map_err(|fault| fault.kind)? {
        Outcome::Batch(BatchDone { fault, .. }) => fault.map_or(Ok(()), |fault| Err(fault.kind)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_says_what_locks_it_has_and_who_waits_for_the_others_gets_them() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let (exclusive, shared) =
        (|owner, at| lock(owner, LockKind::Exclusive, at, at), |owner, at| lock(owner, LockKind::Shared, at, at));
    say(&mut world, S1, ino, vec![exclusive(1, 0), shared(2, 5), shared(3, 5)]).unwrap();
    let Locked::Queued(number) = ask(&mut world, S2, ino, exclusive(1, 0), true) else { panic!("it is taken") };
    assert_eq!(ask(&mut world, S2, ino, shared(1, 5), false), Locked::Yes);
    say(&mut world, S1, ino, vec![exclusive(2, 7)]).unwrap();
    assert!(!waits(&world, ino, number), "its turn has come");
    assert_eq!(say(&mut world, S1, ino, vec![shared(1, 0)]), Err(Kind::Stale), "S2 has that");
    assert_eq!(ask(&mut world, S2, ino, shared(1, 7), false), Locked::No, "what is refused changes nothing");
    say(&mut world, S1, ino, vec![]).unwrap();
    assert_eq!(ask(&mut world, S2, ino, shared(1, 7), false), Locked::Yes);
    for wrong in
        [vec![exclusive(1, 9), shared(2, 9)], vec![shared(1, 9), shared(1, 9)], vec![lock(1, LockKind::Unlock, 9, 9)]]
    {
        assert_eq!(say(&mut world, S1, ino, wrong), Err(Kind::Invalid));
    }
    assert_eq!(say(&mut world, S1, InodeId(999), vec![exclusive(1, 0)]), Ok(()), "the file is gone, and its locks");
    let alone = Op::HaveLocks { ino, locks: vec![exclusive(1, 0)] };
    assert_eq!(world.of(S1, cred(0), alone).unwrap_err().kind, Kind::Invalid, "not on its own");
}

#[test]
fn whose_lock_is_the_only_one_is_told_so() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let mut locked = |session, owner, kind, at, wait| {
        let ask = LockAsk { ino, lock: lock(owner, kind, at, at), wait, detect: true };
        match world.of(session, cred(5), Op::Lock(ask)).unwrap() {
            Outcome::Locked(locked) => locked,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(locked(S1, 1, LockKind::Exclusive, 0, false), Locked::Alone);
    assert_eq!(locked(S1, 2, LockKind::Shared, 1, false), Locked::Yes, "there was one of its own already");
    assert!(matches!(locked(S2, 1, LockKind::Shared, 0, true), Locked::Queued(_)));
    assert_eq!(locked(S1, 2, LockKind::Unlock, 1, false), Locked::Yes);
    assert_eq!(locked(S1, 1, LockKind::Unlock, 0, false), Locked::Yes);
    assert_eq!(locked(S1, 1, LockKind::Shared, 1, false), Locked::Yes, "S2 got its own meanwhile");
    assert_eq!(locked(S2, 1, LockKind::Unlock, 0, false), Locked::Yes);
    assert_eq!(locked(S1, 1, LockKind::Unlock, 1, false), Locked::Yes);
    assert_eq!(locked(S1, 1, LockKind::Unlock, 1, false), Locked::Alone);
}
