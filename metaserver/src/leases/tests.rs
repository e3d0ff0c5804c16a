//! Leases as their holders and those who wait see them.

use super::*;
use common::id::LogIndex;
use common::proto::batch::Deferred;
use common::proto::lease::{WRITE, WRITE_WAIT};
use common::proto::lock::{Lock, LockKind, LockSpace};
use common::proto::meta::{Cred, NewNode, Op};
use common::time::Time;
use std::time::Duration;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const DIR: InodeId = InodeId(7);
const OTHER: InodeId = InodeId(8);

fn leases() -> Arc<Leases> {
    Arc::new(Leases::new(std::iter::empty(), Instant::now()))
}

/// How long a change takes, and whether it is done within `limit`.
async fn changes(leases: &Arc<Leases>, by: SessionId, limit: Duration) -> Option<Duration> {
    let began = Instant::now();
    let change = tokio::time::timeout(limit, leases.change(by, &[DIR])).await.ok()?;
    drop(change);
    Some(began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_until_the_holder_has_forgotten() {
    let leases = leases();
    let ours = leases.grant(A, DIR, Instant::now()).unwrap();
    let theirs = leases.grant(B, DIR, Instant::now()).unwrap();
    let done = std::cell::Cell::new(false);
    let changing = async {
        let change = leases.change(A, &[DIR]).await;
        done.set(true);
        change
    };
    let holder = async {
        leases.wait_for_recalls(B).await;
        assert_eq!(leases.recalls(B), (1, vec![DIR]));
        assert_eq!(leases.recalls(A), (0, vec![]), "who changes it keeps its own lease");
        assert!(!leases.stands(theirs) && leases.stands(ours));
        assert_eq!(leases.grant(B, OTHER, Instant::now()), None);
        assert_eq!(leases.grant(SessionId(3), DIR, Instant::now()), None, "it is being changed");
        tokio::task::yield_now().await;
        assert!(!done.get());
        leases.reported(B, 1);
    };
    let (change, ()) = tokio::join!(changing, holder);
    assert_eq!(leases.grant(B, DIR, Instant::now()), None, "the change is not applied yet");
    drop(change);
    let newer = leases.grant(B, DIR, Instant::now()).unwrap();
    leases.give_back(B, DIR, theirs.number);
    assert!(leases.stands(newer), "late news of an older lease");
    leases.give_back(B, DIR, newer.number);
    assert!(!leases.stands(newer));
}

#[tokio::test(start_paused = true)]
async fn a_silent_holder_is_waited_for_until_its_lease_has_run_out() {
    let leases = leases();
    let lease = leases.grant(B, DIR, Instant::now()).unwrap();
    tokio::time::advance(Duration::from_millis(200)).await;
    assert!(leases.renew(B, Instant::now()));
    assert_eq!(changes(&leases, A, LEASE_WAIT * 2).await, Some(LEASE_WAIT));
    assert!(leases.recalls(B).1.is_empty() && !leases.stands(lease));
    assert_eq!(changes(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_lets_older_leases_run_out_or_hears_that_there_are_none() {
    let leases = Arc::new(Leases::new([(A, false), (B, false)].into_iter(), Instant::now()));
    leases.reported(A, 0);
    assert_eq!(changes(&leases, A, LEASE_WAIT / 2).await, None, "B has said nothing");
    leases.ended(B);
    assert_eq!(changes(&leases, A, LEASE_WAIT / 4).await, Some(Duration::ZERO));
    let leases = Arc::new(Leases::new([(A, false), (B, false)].into_iter(), Instant::now()));
    assert_eq!(changes(&leases, A, LEASE_WAIT * 2).await, Some(LEASE_WAIT));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_unknown_end_keeps_the_inode_from_being_leased() {
    let leases = leases();
    leases.change(A, &[DIR]).await.without_end();
    assert!(leases.grant(B, DIR, Instant::now()).is_none() && leases.grant(B, OTHER, Instant::now()).is_some());
    assert_eq!(changes(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO), "it can still be changed");
}

#[tokio::test(start_paused = true)]
async fn who_changes_an_inode_alone_gets_a_lease_with_the_answer() {
    let leases = leases();
    let change = leases.change(A, &[DIR]).await;
    let got = [DIR, OTHER].map(|ino| change.grant(A, ino, Instant::now()));
    assert!(leases.stands(got[0]) && leases.stands(got[1]) && leases.takes_part(A));
    let second = leases.change(A, &[DIR]).await;
    assert_eq!(second.grant(A, DIR, Instant::now()).number, 0, "another change of it is under way");
    drop((change, second));
    let other = leases.change(A, &[OTHER]).await;
    assert_eq!(leases.grant(B, OTHER, Instant::now()), None, "only who changes it");
    drop(other);
}

/// A holder believes in the lease it knows of, whatever becomes of an answer with a newer one.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_never_told_leaves_the_one_before_and_its_recall() {
    let leases = leases();
    let known = leases.grant(B, DIR, Instant::now()).unwrap();
    leases.undo(leases.grant(B, DIR, Instant::now()).unwrap());
    assert!(leases.stands(known), "it is still believed");
    let newer = leases.grant(B, DIR, Instant::now()).unwrap();
    let changing = leases.change(A, &[DIR]);
    tokio::pin!(changing);
    assert!(tokio::time::timeout(LEASE_WAIT / 4, changing.as_mut()).await.is_err());
    leases.undo(newer);
    assert_eq!(leases.recalls(B).1, [DIR], "it is still to be forgotten");
    leases.reported(B, leases.recalls(B).0);
    drop(changing.await);
    leases.undo(leases.grant(B, OTHER, Instant::now()).unwrap());
    assert_eq!(leases.table().count, 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_anything_waits_for_everybody() {
    let leases = leases();
    assert!(leases.grant(A, DIR, Instant::now()).is_some() && leases.grant(B, OTHER, Instant::now()).is_some());
    let (all, ()) = tokio::join!(leases.change_all(), async {
        leases.wait_for_recalls(A).await;
        assert_eq!(leases.grant(SessionId(3), InodeId(9), Instant::now()), None);
        leases.reported(A, 1);
    });
    assert!(leases.table().count == 0, "B has said nothing until its lease had run out");
    assert_eq!(leases.grant(A, DIR, Instant::now()), None);
    drop(all);
    assert!(leases.grant(A, DIR, Instant::now()).is_some());
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_name_wait_for_each_other() {
    let leases = leases();
    let name = |text: &str| (DIR, Name::new(text.as_bytes().to_vec()).unwrap());
    let locked = leases.lock_names(vec![name("a"), name("b")]).await;
    let other = tokio::time::timeout(LEASE_WAIT, leases.lock_names(vec![name("c")])).await;
    assert!(other.is_ok(), "another name");
    let same = leases.lock_names(vec![name("b"), name("d")]);
    tokio::pin!(same);
    assert!(tokio::time::timeout(LEASE_WAIT, same.as_mut()).await.is_err());
    drop(locked);
    drop(same.await);
    leases.lock_names(vec![name("a")]).await.without_end();
    assert!(tokio::time::timeout(LEASE_WAIT, leases.lock_names(vec![name("a")])).await.is_err());
    drop(other);
    assert_eq!(leases.table().names.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_behind() {
    let leases = leases();
    for ino in 1..100 {
        let lease = leases.grant(A, InodeId(ino), Instant::now()).unwrap();
        if ino % 2 == 0 {
            leases.give_back(A, InodeId(ino), lease.number);
        }
    }
    drop(leases.change(B, &[InodeId(200)]).await);
    assert_eq!(changes(&leases, B, Duration::ZERO).await, None, "A holds it, and this caller leaves");
    leases.ended(A);
    let table = leases.table();
    assert!(table.inodes.is_empty() && table.holders.is_empty() && table.count == 0);
}

fn deferred(op: Op, leads: &[InodeId]) -> Deferred {
    Deferred { cred: Cred::default(), at: Time::default(), op, leads: leads.to_vec() }
}

fn mkdir(parent: InodeId, ino: InodeId) -> Deferred {
    let name = Name::new("n").unwrap();
    let op = Op::Create { parent, name, node: NewNode::Dir, mode: 0o755, exclusive: true, access: 0 };
    deferred(op, &[ino])
}

fn batch(changes: Vec<Deferred>) -> Batch {
    Batch { term: 1, since: LogIndex(0), checked: 0, changes }
}

/// A has a write lease of the directory.
fn written(leases: &Leases) -> u64 {
    let noted = leases.grant(A, DIR, Instant::now()).unwrap();
    let number = leases.claim(A, &[(DIR, noted.number)], Instant::now())[0];
    assert_eq!(number, noted.number | WRITE);
    number
}

async fn looks(leases: &Leases, by: SessionId, limit: Duration) -> Option<Duration> {
    let began = Instant::now();
    tokio::time::timeout(limit, leases.look(by, Some(&[DIR]))).await.ok()?;
    Some(began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn nobody_reads_or_changes_what_another_writes_before_that_is_told() {
    for changes_it in [false, true] {
        let leases = leases();
        written(&leases);
        assert!(!leases.is_quiet(B) && leases.is_quiet(A));
        assert_eq!(leases.grant(B, DIR, Instant::now()), None);
        assert_eq!(looks(&leases, A, LEASE_WAIT).await, Some(Duration::ZERO), "its own");
        let waits = async {
            match changes_it {
                true => changes(&leases, B, WRITE_WAIT).await,
                false => looks(&leases, B, WRITE_WAIT).await,
            }
        };
        let tells = async {
            leases.wait_for_recalls(A).await;
            let (last, inodes) = leases.recalls(A);
            assert_eq!(inodes, [DIR]);
            tokio::time::sleep(Duration::from_millis(70)).await;
            assert!(
                leases.batch(A, true, &batch(vec![mkdir(DIR, OTHER)])).is_some(),
                "what it has done is still taken"
            );
            leases.reported(A, last);
        };
        assert_eq!(tokio::join!(waits, tells).0, Some(Duration::from_millis(70)));
        assert!(leases.batch(A, true, &batch(vec![mkdir(DIR, InodeId(9))])).is_none(), "it has given it up");
        let locks = |locks| deferred(Op::HaveLocks { ino: DIR, locks }, &[]);
        assert!(leases.batch(A, true, &batch(vec![locks(vec![])])).is_some(), "letting go of locks harms nobody");
        let lock = Lock { space: LockSpace::Range, owner: 1, kind: LockKind::Shared, start: 0, end: 9, pid: 1 };
        assert!(leases.batch(A, true, &batch(vec![locks(vec![lock])])).is_none(), "others may have locked it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_others_share_or_want_is_no_write_lease() {
    let leases = leases();
    let (ours, theirs) = (leases.grant(A, DIR, Instant::now()).unwrap(), leases.grant(B, DIR, Instant::now()).unwrap());
    assert_eq!(leases.claim(A, &[(DIR, ours.number)], Instant::now()), [0]);
    leases.give_back(B, DIR, theirs.number);
    assert_eq!(leases.claim(A, &[(DIR, ours.number + 2)], Instant::now()), [0], "another number");
    assert_ne!(leases.claim(A, &[(DIR, ours.number)], Instant::now()), [0]);
    let (looked, ()) = tokio::join!(looks(&leases, B, LEASE_WAIT), async {
        leases.wait_for_recalls(A).await;
        leases.reported(A, leases.recalls(A).0);
    });
    assert_eq!(looked, Some(Duration::ZERO));
    let again = leases.grant(A, DIR, Instant::now()).unwrap();
    assert_eq!(leases.claim(A, &[(DIR, again.number)], Instant::now()), [0], "it was wanted a moment ago");
    tokio::time::advance(Duration::from_millis(1100)).await;
    assert_ne!(leases.claim(A, &[(DIR, again.number)], Instant::now()), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_writer_is_waited_for_longer_then_what_it_tells_is_refused() {
    let leases = leases();
    written(&leases);
    tokio::time::advance(LEASE_WAIT * 2).await;
    let own = batch(vec![mkdir(DIR, OTHER)]);
    drop(leases.batch(A, true, &own).expect("nobody has wanted it: late is not lost"));
    let (waited, ()) = tokio::join!(looks(&leases, B, WRITE_WAIT * 2), async {
        tokio::time::sleep(WRITE_WAIT - LEASE_WAIT - Duration::from_millis(1)).await;
        assert_eq!(leases.unfenced(), []);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(leases.unfenced(), [A]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        leases.fenced(&[A]);
    });
    let until = WRITE_WAIT - LEASE_WAIT + Duration::from_millis(299);
    assert_eq!(waited, Some(until), "only behind a fence is anybody let pass");
    assert!(leases.batch(A, true, &batch(vec![mkdir(DIR, InodeId(9))])).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_batch_under_way_is_waited_for_however_late_it_is() {
    let leases = leases();
    written(&leases);
    let batching = leases.batch(A, true, &batch(vec![mkdir(DIR, OTHER)])).unwrap();
    assert_eq!(looks(&leases, B, WRITE_WAIT * 3).await, None);
    assert_eq!(leases.unfenced(), [], "nor is its session fenced before");
    drop(batching);
    assert_eq!(looks(&leases, B, LEASE_WAIT).await, None);
    assert_eq!(leases.unfenced(), [A]);
    leases.fenced(&[A]);
    assert!(looks(&leases, B, LEASE_WAIT).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_batch_touches_only_what_its_session_writes_or_makes() {
    let leases = leases();
    written(&leases);
    let remove = |ino| {
        let (parent, name) = (DIR, Name::new("n").unwrap());
        deferred(Op::Unlink { parent, name, keep: false }, &[ino])
    };
    leases.grant(A, OTHER, Instant::now()).unwrap();
    assert!(leases.batch(A, true, &batch(vec![remove(OTHER)])).is_none(), "of that it has a read lease only");
    let new = InodeId(50);
    let batching = leases.batch(A, true, &batch(vec![mkdir(DIR, new), mkdir(new, InodeId(51)), remove(new)])).unwrap();
    assert_eq!(batching.made.len(), 2);
    assert!(batching.made.iter().all(|number| number & WRITE != 0));
    drop(batching);
    assert!(leases.batch(A, true, &batch(vec![remove(new)])).is_some(), "it has a write lease of what it made");
    assert!(leases.batch(A, true, &batch(vec![mkdir(DIR, new)])).is_some(), "a batch that is sent again");
    leases.grant(B, InodeId(53), Instant::now()).unwrap();
    assert!(leases.batch(A, true, &batch(vec![mkdir(DIR, InodeId(53))])).is_none(), "others know it: it is not new");
    assert!(leases.batch(B, true, &batch(vec![mkdir(DIR, InodeId(52))])).is_none());
    assert!(leases.batch(B, false, &batch(vec![mkdir(DIR, InodeId(52))])).is_none(), "this leader knows all there is");
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_takes_what_was_done_before_it_and_lets_nobody_pass() {
    let fresh = || Arc::new(Leases::new([(A, true), (B, false)].into_iter(), Instant::now()));
    let own = batch(vec![mkdir(DIR, OTHER)]);
    let leases = fresh();
    assert_eq!(looks(&leases, B, LEASE_WAIT * 2).await, None, "nobody is told anything before A has reported");
    assert!(leases.batch(B, false, &own).is_none(), "it has never decided anything");
    let batching = leases.batch(A, false, &own).unwrap();
    leases.reported(A, 0);
    leases.reported(B, 0);
    assert_eq!(looks(&leases, B, LEASE_WAIT).await, None, "it is under way");
    drop(batching);
    assert!(looks(&leases, B, LEASE_WAIT).await.is_some());
    assert!(leases.batch(A, false, &own).is_none(), "it said that it has nothing more");

    let leases = fresh();
    assert_eq!(leases.unfenced(), []);
    tokio::time::advance(LEASE_WAIT + WRITE_WAIT).await;
    assert!(leases.batch(A, false, &own).is_some(), "nobody was let pass yet");
    assert_eq!(leases.unfenced(), [A], "who cannot have decided anything needs no fence");
    leases.fenced(&[A]);
    assert!(leases.batch(A, false, &own).is_some(), "nobody was about the same");
    assert!(looks(&leases, B, LEASE_WAIT).await.is_some());
    assert!(leases.batch(A, false, &own).is_none(), "now somebody was");
    assert!(leases.batch(A, false, &batch(vec![mkdir(InodeId(60), InodeId(61))])).is_some(), "not there");
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_lock_waits_for_who_decides_about_locks_and_nobody_begins_to_meanwhile() {
    let leases = leases();
    written(&leases);
    let taken = tokio::time::timeout(LEASE_WAIT / 4, leases.lock(B, DIR)).await;
    assert!(taken.is_err(), "A may have decided about them");
    leases.reported(A, leases.recalls(A).0);
    let guard = tokio::time::timeout(LEASE_WAIT / 4, leases.lock(B, DIR)).await.expect("nobody decides now");
    tokio::time::advance(Duration::from_secs(2)).await; // so that A may claim again what B wanted
    assert_eq!(leases.grant(A, DIR, Instant::now()), None);
    drop(guard);
    let lease = leases.grant(A, DIR, Instant::now()).expect("it is over");
    assert_eq!(leases.claim(A, &[(DIR, lease.number)], Instant::now()), [lease.number | WRITE]);
    drop(leases.lock(A, DIR).await); // its own are not in the way
}
