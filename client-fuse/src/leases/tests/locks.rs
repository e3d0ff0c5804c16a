//! Locks of programs under write leases.

use super::*;
use common::proto::lock::{LOCK_END, LockAsk, LockKind, LockSpace, Locked};

fn lock(owner: u64, kind: LockKind, wait: bool) -> Op {
    let lock = Lock { space: LockSpace::Range, owner, kind, start: 0, end: LOCK_END, pid: 9 };
    Op::Lock(LockAsk { ino: A, lock, wait, detect: true })
}

fn exclusive(owner: u64) -> Op {
    lock(owner, LockKind::Exclusive, false)
}

fn unlock(owner: u64) -> Op {
    lock(owner, LockKind::Unlock, false)
}

fn answered(leases: &Arc<Leases>, op: &Op, locked: Locked) {
    done(leases.change(op, AT), op, &submitted(Outcome::Locked(locked), vec![]));
}

fn decided(leases: &Leases, op: &Op) -> Option<Locked> {
    match decide(leases, op) {
        Decision::Done(outcome) => match *outcome {
            Outcome::Locked(locked) => Some(locked),
            other => panic!("{other:?}"),
        },
        Decision::Ask => None,
        other => panic!("{other:?}"),
    }
}

/// A lease of `A` under which locks are decided, and one is held.
fn locking() -> Arc<Leases> {
    let leases = written(&[("a", A)]);
    assert_eq!(decided(&leases, &exclusive(1)), None, "who else has locks is not known");
    answered(&leases, &exclusive(1), Locked::Alone);
    leases
}

fn recall(leases: &Leases) {
    let before = call(leases);
    leases.recalled(&before, (AT, AT), &Recalls { term: 3, last: 4, inodes: vec![A], renewed: false });
}

/// What the next batch says of the locks of `A`: the owners.
fn said(leases: &Leases) -> Vec<u64> {
    match tell(leases).changes.as_slice() {
        [Deferred { op: Op::HaveLocks { ino: A, locks }, .. }] => locks.iter().map(|lock| lock.owner).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn locks_of_a_file_that_nobody_else_locks_are_decided_and_said_when_somebody_wants_to_know() {
    let leases = locking();
    assert_eq!(decided(&leases, &exclusive(2)), Some(Locked::No));
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    assert_eq!(decided(&leases, &exclusive(2)), Some(Locked::Yes));
    assert!(leases.untold().is_empty(), "nobody wants to know");
    let Op::Lock(LockAsk { lock: wanted, .. }) = exclusive(1) else { unreachable!() };
    let holder = leases.lock_holder(A, wanted, AT).expect("it is certain");
    assert_eq!(holder.map(|holder| holder.lock.owner), Some(2));
    recall(&leases);
    let Next { flush, .. } = next(&leases);
    assert!(flush, "not before it is said");
    assert_eq!(said(&leases), [2]);
    assert_eq!(decided(&leases, &unlock(2)), None);
}

#[tokio::test(start_paused = true)]
async fn before_a_lock_is_waited_for_those_decided_here_are_said() {
    let leases = locking();
    assert_eq!(decided(&leases, &lock(2, LockKind::Exclusive, true)), None);
    assert!(leases.untold().is_empty(), "what the metaservers know is not said again");
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    assert_eq!(decided(&leases, &exclusive(3)), Some(Locked::Yes));
    let op = lock(2, LockKind::Exclusive, true);
    assert_eq!(decided(&leases, &op), None);
    let change = leases.change(&op, AT);
    assert_eq!(said(&leases), [3]);
    assert_eq!(decided(&leases, &unlock(3)), None, "the one who waits is to get it");
    done(change, &op, &submitted(Outcome::Locked(Locked::Queued(7)), vec![]));
    assert_eq!(decided(&leases, &unlock(3)), None, "likewise");
    answered(&leases, &unlock(3), Locked::Yes);
    assert_eq!(decided(&leases, &unlock(3)), None, "that one has it now");
    answered(&leases, &unlock(2), Locked::Yes);
    answered(&leases, &exclusive(3), Locked::Alone);
    assert_eq!(decided(&leases, &unlock(3)), Some(Locked::Yes));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_be_alone_does_not_decide_about_locks() {
    // Shared leases: others may have got a lock since.
    let leases = held(&[("a", A)]);
    leases.reserved(S, InodeId(500), 100);
    answered(&leases, &exclusive(1), Locked::Alone);
    assert!(leases.inside().known[&A].locks.is_none());
    // A request of another program was under way.
    let leases = written(&[("a", A)]);
    let (one, other) = (exclusive(1), lock(2, LockKind::Shared, false));
    let (first, second) = (leases.change(&one, AT), leases.change(&other, AT));
    done(first, &one, &submitted(Outcome::Locked(Locked::Alone), vec![]));
    assert_eq!(decided(&leases, &unlock(1)), None);
    done(second, &other, &submitted(Outcome::Locked(Locked::Alone), vec![]));
    assert_eq!(decided(&leases, &unlock(1)), None, "they overlapped");
    answered(&leases, &exclusive(1), Locked::Alone);
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    // The lease was recalled before the answer came.
    let leases = written(&[("a", A)]);
    let change = leases.change(&one, AT);
    recall(&leases);
    done(change, &one, &submitted(Outcome::Locked(Locked::Alone), vec![]));
    assert_eq!(decided(&leases, &unlock(1)), None);
    // Nobody knows what became of a request: it may still come.
    let leases = written(&[("a", A)]);
    drop(leases.change(&one, AT));
    answered(&leases, &exclusive(2), Locked::Alone);
    assert_eq!(decided(&leases, &unlock(2)), None);
    leases.inside().settled();
    answered(&leases, &exclusive(2), Locked::Alone);
    assert_eq!(decided(&leases, &unlock(2)), Some(Locked::Yes));
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_of_locks_is_named() {
    let leases = locking();
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    assert!(is_done(&decide(&leases, &create("new"))));
    let lost = leases.lose(Fault::new(Kind::Stale, "others came before")).unwrap();
    assert!(lost.locks.contains(&A) && lost.inodes.contains(&A), "{lost:?}");
    let leases = locking();
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    recall(&leases);
    let lost = leases.lose(Fault::new(Kind::Stale, "others came before")).unwrap();
    assert!(lost.locks.contains(&A) && lost.inodes.contains(&A), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_stays_is_said_and_others_are_still_decided() {
    let leases = locking();
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    assert_eq!(decided(&leases, &exclusive(2)), Some(Locked::Yes));
    next(&leases);
    assert!(leases.untold().is_empty(), "it may not stay");
    tokio::time::advance(Duration::from_millis(300)).await;
    next(&leases);
    assert_eq!(said(&leases), [2]);
    next(&leases);
    assert!(leases.untold().is_empty(), "once");
    assert_eq!(decided(&leases, &unlock(2)), Some(Locked::Yes));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_has_no_lock_that_was_let_go_of() {
    let leases = locking();
    assert_eq!(decided(&leases, &unlock(1)), Some(Locked::Yes));
    assert!(is_done(&decide(&leases, &unlink("a"))));
    let changes = tell(&leases).changes;
    let ops: Vec<Op> = changes.into_iter().map(|change| change.op).collect();
    assert_eq!(ops, [Op::HaveLocks { ino: A, locks: Vec::new() }, unlink("a")], "others may have it open, and wait");
}
