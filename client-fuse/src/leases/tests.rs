mod decided;
mod listings;
mod locks;

use super::listing::ALONE_MIN;
use super::*;
use common::id::{DataVersion, LogIndex};
use common::proto::batch::Deferred;
use common::proto::lease::{LEASE_TERM, Leased, WRITE};
use common::proto::meta::{Applied, DirEntry, FileKind, NewNode, RenameMode, SetAttr};
use common::time::Time;

const S: SessionId = SessionId(1);
const DIR: InodeId = InodeId(7);
const A: InodeId = InodeId(20);
const B: InodeId = InodeId(21);
const AT: Duration = Duration::from_secs(100);

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

fn attr(ino: InodeId, mode: u32) -> Attr {
    let t = Time::default();
    let kind = if ino == DIR { FileKind::Dir } else { FileKind::File };
    Attr {
        ino,
        kind,
        mode,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        allocated: 0,
        atime: t,
        mtime: t,
        ctime: t,
        rdev: 0,
        chunk_size: 1 << 22,
        replicas: 3,
        version: DataVersion(1),
    }
}

fn listing(term: u64, names: &[(&str, InodeId)]) -> Option<Leased> {
    let entry = |(at, (text, ino)): (usize, &(&str, InodeId))| DirEntry {
        name: name(text),
        ino: *ino,
        kind: FileKind::File,
        cookie: common::units::len_u64(at) + 1,
        attr: Some(attr(*ino, 0o644)),
    };
    let entries: Vec<DirEntry> = names.iter().enumerate().map(entry).collect();
    let leases = (10..).step_by(2).take(entries.len() + 1).collect();
    Some(Leased {
        term,
        listing: Some(LeasedListing {
            attr: attr(DIR, 0o755),
            parent: InodeId::ROOT,
            entries,
            leases,
            contents: Vec::new(),
        }),
    })
}

/// In a session, with a lease of `DIR` and of what is in it, asked for at `AT`.
fn held(names: &[(&str, InodeId)]) -> Arc<Leases> {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    let now = Instant::now();
    assert!(!leases.inside().looked(DIR, now) && leases.inside().looked(DIR, now) && !leases.inside().looked(DIR, now));
    let asking = leases.asking(AT);
    leases.inside().listed(DIR, asking.mark, (AT, AT), listing(3, names));
    leases
}

fn entry(leases: &Leases, text: &str) -> Entry {
    leases.entry(DIR, &name(text), AT + LEASE_TERM / 2)
}

fn mode(leases: &Leases, ino: InodeId) -> Option<u32> {
    leases.attr(ino, AT + LEASE_TERM / 2).map(|(attr, _)| attr.mode)
}

fn call(leases: &Leases) -> RecallCall {
    leases.inside().next_call(S, BTreeSet::new(), Instant::now()).call
}

fn submitted(outcome: Outcome, leases: Vec<u64>) -> Result<Submitted, Fault> {
    let applied = Applied { outcome, index: LogIndex(5) };
    Ok(Submitted { applied, grants: Grants { term: 3, leases } })
}

fn done(change: Change, op: &Op, result: &Result<Submitted, Fault>) {
    change.done(op, result, S, AT);
}

fn create(text: &str) -> Op {
    Op::Create { parent: DIR, name: name(text), node: NewNode::File, mode: 0o600, exclusive: true, access: 0 }
}

fn created(ino: InodeId) -> Result<Submitted, Fault> {
    submitted(Outcome::Created { attr: attr(ino, 0o600), new: true, parent: attr(DIR, 0o711) }, vec![30, 32])
}

fn unlink(text: &str) -> Op {
    Op::Unlink { parent: DIR, name: name(text), keep: false }
}

fn chmod(ino: InodeId) -> Op {
    Op::SetAttr { ino, set: SetAttr::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_leased_is_answered_while_the_lease_lasts() {
    let leases = held(&[("a", A)]);
    assert_eq!((entry(&leases, "a"), entry(&leases, "b")), (Entry::Leads(A), Entry::Absent));
    let (_, left) = leases.attr(A, AT + LEASE_TERM / 4).unwrap();
    assert_eq!(left, LEASE_TERM * 3 / 4);
    assert_eq!(leases.entry(DIR, &name("b"), AT + LEASE_TERM), Entry::Unknown, "it has run out");
    assert!(leases.attr(A, AT + LEASE_TERM).is_none() && !leases.holds(A, AT + LEASE_TERM));
    assert_eq!(leases.entry(InodeId(8), &name("b"), AT), Entry::Unknown);
    let call = call(&leases);
    assert_eq!(call, RecallCall { session: S, term: 3, forgot: 0, given_back: vec![] });
    let later = AT + LEASE_TERM / 2;
    leases.recalled(&call, (later, later), &Recalls { term: 3, last: 0, inodes: vec![], renewed: true });
    assert_eq!(leases.entry(DIR, &name("b"), AT + LEASE_TERM), Entry::Absent, "renewed");
}

/// The leader has not recalled it since: it took it for run out.
#[tokio::test(start_paused = true)]
async fn what_has_run_out_does_not_come_back() {
    let (leases, late) = (held(&[("a", A)]), AT + LEASE_TERM);
    let before = call(&leases);
    leases.recalled(&before, (late, late), &Recalls { term: 3, last: 0, inodes: vec![], renewed: true });
    assert_eq!(leases.entry(DIR, &name("b"), late), Entry::Unknown, "by a renewal");
    assert_eq!(call(&leases).given_back.len(), 2, "the leader may still count them");

    let leases = held(&[("a", A)]);
    let asking = leases.asking(late);
    asking.answered(S, late, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![40] });
    assert!(leases.attr(A, late).is_none(), "by another lease");
    assert!(leases.attr(B, late).is_some());
}

#[tokio::test(start_paused = true)]
async fn own_changes_are_known_and_not_guessed_while_under_way() {
    let leases = held(&[("a", A)]);
    let op = create("b");
    let change = leases.change(&op, AT);
    assert_eq!((entry(&leases, "b"), entry(&leases, "c")), (Entry::Unknown, Entry::Absent));
    assert_eq!((mode(&leases, DIR), mode(&leases, A)), (None, Some(0o644)), "the directory's attributes change, too");
    done(change, &op, &created(B));
    assert_eq!(
        (entry(&leases, "b"), mode(&leases, B), mode(&leases, DIR)),
        (Entry::Leads(B), Some(0o600), Some(0o711))
    );

    let op = unlink("a");
    let change = leases.change(&op, AT);
    assert_eq!(mode(&leases, A), None, "its links change");
    done(change, &op, &submitted(Outcome::Removed { ino: A, nlink: 0 }, vec![]));
    assert_eq!((entry(&leases, "a"), mode(&leases, A)), (Entry::Absent, None));

    let op = create("b");
    done(leases.change(&op, AT), &op, &Err(Fault::new(Kind::Exists, "b")));
    assert_eq!((entry(&leases, "b"), mode(&leases, B)), (Entry::Leads(B), Some(0o600)), "nothing happened");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_unknown_outcome_may_still_come() {
    let leases = held(&[("a", A)]);
    let op = chmod(A);
    done(leases.change(&op, AT), &op, &Err(Fault::new(Kind::Unsure, "a")));
    assert!(mode(&leases, A).is_none() && !leases.holds(A, AT));
    let asking = leases.asking(AT);
    asking.answered(S, AT, &[&attr(A, 0o600)], &Grants { term: 3, leases: vec![50] });
    assert_eq!(mode(&leases, A), None, "it would not be recalled");
    assert!(call(&leases).given_back.contains(&(A, 50)));
    leases.inside().settled();
    leases.asking(AT).answered(S, AT, &[&attr(A, 0o600)], &Grants { term: 3, leases: vec![52] });
    assert_eq!(mode(&leases, A), Some(0o600));

    // A removal of what is not known may be of anything.
    let leases = held(&[("a", A)]);
    let op = Op::Unlink { parent: InodeId(8), name: name("x"), keep: false };
    let change = leases.change(&op, AT);
    assert_eq!(mode(&leases, A), None);
    drop(change);
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![52] });
    assert_eq!(mode(&leases, B), None);
}

#[tokio::test(start_paused = true)]
async fn overlapping_changes_are_not_put_in_order() {
    let leases = held(&[("a", A)]);
    let (remove, make) = (unlink("a"), create("a"));
    let (first, second) = (leases.change(&remove, AT), leases.change(&make, AT));
    done(second, &make, &created(B));
    done(first, &remove, &submitted(Outcome::Removed { ino: A, nlink: 0 }, vec![]));
    assert_eq!(entry(&leases, "a"), Entry::Unknown);

    let leases = held(&[("a", A)]);
    let op = chmod(A);
    let (first, second) = (leases.change(&op, AT), leases.change(&op, AT));
    done(second, &op, &submitted(Outcome::Attr(attr(A, 0o600)), vec![60]));
    done(first, &op, &submitted(Outcome::Attr(attr(A, 0o700)), vec![62]));
    assert!(mode(&leases, A).is_none() && leases.holds(A, AT), "which one was last?");
    leases.asking(AT).answered(S, AT, &[&attr(A, 0o600)], &Grants { term: 3, leases: vec![62] });
    assert_eq!(mode(&leases, A), Some(0o600));
}

#[tokio::test(start_paused = true)]
async fn a_rename_moves_what_is_known_and_two_names_of_one_file_are_asked_for() {
    let rename = |from: &str, to: &str, mode| Op::Rename {
        from: DIR,
        from_name: name(from),
        to: DIR,
        to_name: name(to),
        mode,
        keep: false,
    };
    let renamed = submitted(Outcome::Renamed { replaced: None }, vec![]);
    let leases = held(&[("a", A), ("b", B), ("c", B)]);
    let op = rename("a", "d", RenameMode::Replace);
    done(leases.change(&op, AT), &op, &renamed);
    assert_eq!((entry(&leases, "a"), entry(&leases, "d")), (Entry::Absent, Entry::Leads(A)));
    let op = rename("b", "d", RenameMode::Replace);
    done(leases.change(&op, AT), &op, &renamed);
    assert_eq!((entry(&leases, "b"), entry(&leases, "d")), (Entry::Absent, Entry::Leads(B)));
    let op = rename("c", "d", RenameMode::Replace);
    done(leases.change(&op, AT), &op, &renamed);
    assert_eq!((entry(&leases, "c"), entry(&leases, "d")), (Entry::Unknown, Entry::Unknown), "both may stay");
    let asking = leases.asking(AT);
    leases.inside().found(DIR, &name("d"), asking.mark, Some(B));
    leases.inside().found(DIR, &name("c"), asking.mark, None);
    assert_eq!((entry(&leases, "c"), entry(&leases, "d")), (Entry::Absent, Entry::Leads(B)), "the answer is kept");
}

#[tokio::test(start_paused = true)]
async fn what_is_recalled_is_forgotten_and_told_before_that_is_said() {
    let leases = held(&[("a", A)]);
    let before = call(&leases);
    let asking = leases.asking(AT);
    leases.recalled(&before, (AT, AT), &Recalls { term: 3, last: 4, inodes: vec![DIR, B], renewed: false });
    assert_eq!((entry(&leases, "b"), mode(&leases, A)), (Entry::Unknown, Some(0o644)));
    let Next { call: next, tell: told, .. } = leases.inside().next_call(S, BTreeSet::new(), Instant::now());
    assert_eq!((next.forgot, next.given_back, told), (4, vec![(DIR, 10)], vec![DIR]));
    asking.answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![70] });
    assert_eq!(mode(&leases, B), None, "it was asked for before the recall");
    let now = Instant::now();
    assert!((0..4).all(|_| !leases.inside().looked(DIR, now)), "left alone for a while");
    assert!(leases.inside().looked(DIR, now + ALONE_MIN));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_crossed_an_own_change_is_not_kept() {
    let leases = held(&[("a", A)]);
    let (asking, op) = (leases.asking(AT), chmod(A));
    let change = leases.change(&op, AT);
    let during = leases.asking(AT);
    done(change, &op, &submitted(Outcome::Attr(attr(A, 0o600)), vec![80]));
    assert_eq!(mode(&leases, A), Some(0o600));
    for late in [asking, during] {
        late.answered(S, AT, &[&attr(A, 0o644)], &Grants { term: 3, leases: vec![82] });
        assert_eq!(mode(&leases, A), None, "it is older than the change");
    }
}

/// Others changed it between the two questions: the first one came without a lease of it.
#[tokio::test(start_paused = true)]
async fn what_comes_without_a_lease_is_not_learnt() {
    let leases = held(&[]);
    let (early, late) = (leases.asking(AT), leases.asking(AT));
    late.answered(S, AT, &[&attr(A, 0o600)], &Grants { term: 3, leases: vec![40] });
    early.answered(S, AT, &[&attr(A, 0o644), &attr(B, 0o644)], &Grants { term: 3, leases: vec![0, 70] });
    assert_eq!((mode(&leases, A), mode(&leases, B)), (Some(0o600), Some(0o644)));
}

/// Another session exchanged what the names lead to, after the rename began and before it was carried out.
#[tokio::test(start_paused = true)]
async fn a_rename_may_move_something_else_than_the_name_led_to_when_it_began() {
    let leases = held(&[("a", A), ("b", B)]);
    let other = InodeId(8);
    {
        let mut inside = leases.inside();
        let names = Some(std::collections::HashMap::new());
        let used = Instant::now();
        let known = inside::Known { lease: 30, attr: None, names, named: 0, listing: None, locks: None, used };
        inside.known.insert(other, known);
    }
    let (from_name, to_name) = (name("a"), name("c"));
    let op = Op::Rename { from: DIR, from_name, to: other, to_name, mode: RenameMode::Replace, keep: false };
    let change = leases.change(&op, AT);
    let before = call(&leases);
    leases.recalled(&before, (AT, AT), &Recalls { term: 3, last: 4, inodes: vec![DIR], renewed: true });
    let early = leases.asking(AT);
    leases.inside().list(DIR); // and it is known again, as it is now
    let asking = leases.asking(AT);
    let mut answer = listing(3, &[("a", B), ("b", A)]);
    answer.as_mut().unwrap().listing.as_mut().unwrap().leases = vec![50, 52, 54];
    leases.inside().listed(DIR, asking.mark, (AT, AT), answer);
    assert_eq!(entry(&leases, "b"), Entry::Leads(A));
    done(change, &op, &submitted(Outcome::Renamed { replaced: None }, vec![]));
    assert_eq!(leases.entry(other, &name("c"), AT), Entry::Unknown);
    assert_eq!((mode(&leases, A), mode(&leases, B)), (None, None), "it was one of them");
    early.answered(S, AT, &[&attr(B, 0o644)], &Grants { term: 3, leases: vec![60] });
    assert_eq!(mode(&leases, B), None, "asked for before it was carried out");
}

/// By the time it is carried out the name may lead to anything.
#[tokio::test(start_paused = true)]
async fn a_removal_of_unknown_outcome_may_be_of_anything() {
    let leases = held(&[("a", A), ("b", B)]);
    drop(leases.change(&unlink("a"), AT));
    assert_eq!((mode(&leases, B), entry(&leases, "b")), (None, Entry::Unknown));
    let early = leases.asking(AT);
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![52] });
    assert_eq!(mode(&leases, B), None);
    leases.inside().settled();
    early.answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![54] });
    assert_eq!(mode(&leases, B), None, "asked for before it was carried out, if it was");
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![56] });
    assert_eq!(mode(&leases, B), Some(0o600));
}

#[tokio::test(start_paused = true)]
async fn saves_do_not_keep_a_file_from_being_read() {
    let leases = held(&[("a", A)]);
    let commit = common::proto::meta::Commit {
        ino: A,
        base: None,
        edits: vec![],
        append: false,
        grow: 0,
        chunks: vec![],
        attempt: common::auth::Attempt { session: S, witness: LogIndex(1), epoch: common::id::Epoch(1) },
        layout: common::id::LayoutVersion(0),
        mtime: None,
    };
    let save = leases.change(&Op::Commit(commit), AT);
    assert!(mode(&leases, A).is_none() && leases.holds(A, AT) && leases.attr_before_saves(A, AT).is_some());
    let op = chmod(A);
    let other = leases.change(&op, AT);
    assert!(!leases.holds(A, AT) && leases.attr_before_saves(A, AT).is_none());
    other.undone();
    assert!(leases.holds(A, AT));
    save.undone();
}

#[tokio::test(start_paused = true)]
async fn nothing_survives_a_new_leader_or_session() {
    let leases = held(&[("a", A)]);
    let before = call(&leases);
    leases.recalled(&before, (AT, AT), &Recalls { term: 4, last: 0, inodes: vec![], renewed: true });
    assert!(entry(&leases, "b") == Entry::Unknown && leases.inside().term == 0);
    let told = leases.inside().next_call(S, BTreeSet::new(), Instant::now()).tell;
    assert_eq!(told.len(), 2, "the kernel hears of it before the new leader does");

    let leases = held(&[("a", A)]);
    leases.inside().in_session(SessionId(2));
    assert_eq!(entry(&leases, "b"), Entry::Unknown);

    let leases = held(&[("a", A)]);
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 5, leases: vec![90] });
    assert!(mode(&leases, A).is_none() && mode(&leases, B).is_none());
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_idle_leases_end() {
    let leases = held(&[("a", A)]);
    tokio::time::advance(Duration::from_secs(1)).await;
    let many: Vec<Attr> = (1000..60_000).map(|ino| attr(InodeId(ino), 0o600)).collect();
    for some in many.chunks(1000) {
        let grants = Grants { term: 3, leases: vec![6; some.len()] };
        leases.asking(AT).answered(S, AT, &some.iter().collect::<Vec<_>>(), &grants);
    }
    assert!(entry(&leases, "b") == Entry::Unknown && mode(&leases, A).is_none(), "the oldest went");
    assert_eq!(mode(&leases, InodeId(59_999)), Some(0o600));
    assert!(call(&leases).given_back.contains(&(DIR, 10)));
    tokio::time::advance(Duration::from_secs(40)).await;
    while !leases.inside().next_call(S, BTreeSet::new(), Instant::now()).idle {}
    let inside = leases.inside();
    assert!(format!("{inside:?}").len() < 1000, "nothing is left: {inside:?}");
}

/// The leader gives time only with a lease, so it is not taken from an answer without one.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_lease_gives_no_time() {
    let leases = held(&[("a", A), ("b", B)]);
    let (op, late) = (unlink("b"), AT + LEASE_TERM / 2);
    let change = leases.change(&op, late);
    change.done(&op, &submitted(Outcome::Removed { ino: B, nlink: 0 }, vec![]), S, late);
    leases.asking(late).answered(S, late, &[&attr(B, 0o600)], &Grants { term: 3, leases: vec![0] });
    assert!(leases.attr(A, AT + LEASE_TERM).is_none());
    let call = call(&leases);
    leases.recalled(&call, (late, late), &Recalls { term: 3, last: 7, inodes: vec![InodeId(99)], renewed: false });
    assert!(leases.attr(A, AT + LEASE_TERM).is_none());
    leases.recalled(&call, (late, late), &Recalls { term: 3, last: 8, inodes: vec![InodeId(98)], renewed: true });
    assert!(leases.attr(A, AT + LEASE_TERM).is_some());
}

/// Its first copy was run long ago; since then others may have changed what it tells of.
#[tokio::test(start_paused = true)]
async fn the_reply_to_a_repeated_request_may_be_old() {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    let op = unlink("a");
    let change = leases.change(&op, AT);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    leases.inside().listed(DIR, asking.mark, (AT, AT), listing(3, &[("a", B)]));
    done(change, &op, &submitted(Outcome::Removed { ino: A, nlink: 0 }, vec![]));
    assert_eq!(entry(&leases, "a"), Entry::Unknown, "somebody else has made it anew");

    let op = create("c");
    let old = submitted(Outcome::Created { attr: attr(A, 0o600), new: true, parent: attr(DIR, 0o711) }, vec![0, 0]);
    done(leases.change(&op, AT), &op, &old);
    assert!(mode(&leases, A).is_none() && mode(&leases, DIR).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_rename_of_what_is_not_known_may_be_of_anything() {
    let leases = held(&[("a", A)]);
    let other = InodeId(8);
    let (from_name, to_name) = (name("x"), name("y"));
    let op = Op::Rename { from: other, from_name, to: other, to_name, mode: RenameMode::Replace, keep: false };
    done(leases.change(&op, AT), &op, &submitted(Outcome::Renamed { replaced: None }, vec![]));
    assert!(mode(&leases, A).is_none() && leases.holds(A, AT));
    drop(leases.change(&op, AT));
    assert!(!leases.holds(A, AT) && entry(&leases, "a") == Entry::Unknown, "nobody knows how it went");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_is_not_given_back() {
    let leases = held(&[("a", A)]);
    tokio::time::advance(Duration::from_secs(40)).await;
    let told = leases.inside().next_call(S, BTreeSet::from([A]), Instant::now()).tell;
    assert_eq!(told, [DIR]);
    assert!(leases.holds(A, AT));
}

/// As [`held`], with write leases of all of it and numbers for new inodes.
fn written(names: &[(&str, InodeId)]) -> Arc<Leases> {
    let leases = held(names);
    let read: Vec<(InodeId, u64)> = leases.inside().known.iter().map(|(ino, known)| (*ino, known.lease)).collect();
    let claim = leases.claim(read.clone()).unwrap();
    let answer = Claimed {
        term: 3,
        leases: read.iter().map(|(_, number)| number | WRITE).collect(),
        announced: true,
        index: LogIndex(40),
    };
    assert!(leases.claimed(&claim, Some(&answer)));
    leases.reserved(S, InodeId(500), 100);
    leases
}

fn decide(leases: &Leases, op: &Op) -> Decision {
    let maker = Maker { cred: &Cred::default(), uptime: AT, now: Time::default(), closed: Some(A), chunks: &[] };
    leases.decide(op, maker)
}

fn is_done(decision: &Decision) -> bool {
    matches!(decision, Decision::Done(_))
}

fn next(leases: &Leases) -> Next {
    leases.inside().next_call(S, BTreeSet::new(), Instant::now())
}

/// All that was decided is applied, as it was answered for.
fn tell(leases: &Leases) -> Batch {
    let (_, batch) = leases.inside().journal.batch().expect("something was decided");
    let count = batch.changes.len();
    let makes = batch.changes.iter().filter(|change| change.makes().is_some()).count();
    let digest = leases.inside().journal.digest(count);
    let done = BatchDone { done: u32::try_from(count).unwrap(), fault: None, digest };
    let numbers = (0..).map(|n| 901 + 2 * n).take(makes).collect();
    assert!(leases.batch_done(&batch, &done, &Grants { term: 3, leases: numbers }));
    batch
}
