//! Changes that a session has decided and tells in a batch: in its order, each once, up to the first that is refused.

use super::*;
use crate::namespace::decides;
use common::proto::batch::{Batch, BatchDone, Deferred, Digest};

const AT: Time = Time { secs: 500, nanos: 3 };

fn deferred(uid: u32, op: Op, leads: &[InodeId]) -> Deferred {
    Deferred { cred: cred(uid), at: AT, op, leads: leads.to_vec() }
}

fn create(uid: u32, parent: InodeId, text: &str, node: NewNode, ino: InodeId) -> Deferred {
    let op = Op::Create { parent, name: name(text), node, mode: 0o750, exclusive: true, access: 0 };
    deferred(uid, op, &[ino])
}

fn unlink(parent: InodeId, text: &str, ino: InodeId) -> Deferred {
    deferred(0, Op::Unlink { parent, name: name(text), keep: false }, &[ino])
}

impl World {
    fn reserved(&mut self, session: SessionId, count: u32) -> InodeId {
        match self.of(session, cred(0), Op::Reserve { count }).unwrap() {
            Outcome::Reserved(first) => first,
            other => panic!("{other:?}"),
        }
    }

    fn batch(
        &mut self,
        session: SessionId,
        (since, checked): (u64, u64),
        changes: Vec<Deferred>,
    ) -> Result<BatchDone, Fault> {
        let batch = Batch { term: 1, since: LogIndex(since), checked, changes };
        match self.of(session, cred(0), Op::Batch(batch))? {
            Outcome::Batch(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    fn all(&mut self, changes: Vec<Deferred>) -> BatchDone {
        self.batch(S1, (0, 0), changes).unwrap()
    }
}

fn below(ino: InodeId, more: u64) -> InodeId {
    InodeId(ino.0 + more)
}

#[test]
fn a_batch_is_each_of_its_changes_with_its_own_caller_and_time() {
    let mut world = World::new();
    let first = world.reserved(S1, 10);
    let (dir, file) = (first, below(first, 1));
    let changes = vec![
        create(7, ROOT, "no", NewNode::Dir, dir), // root's directory is not for everybody: see below
        create(0, ROOT, "dir", NewNode::Dir, dir),
    ];
    let done = world.all(changes);
    assert_eq!((done.done, done.fault.map(|fault| fault.kind)), (0, Some(Kind::Denied)), "and nothing behind it");
    let changes = vec![
        create(0, ROOT, "dir", NewNode::Dir, dir),
        create(0, dir, "file", NewNode::File, file),
        deferred(
            0,
            Op::Rename {
                from: dir,
                from_name: name("file"),
                to: ROOT,
                to_name: name("f"),
                mode: common::proto::meta::RenameMode::Replace,
                keep: false,
            },
            &[file],
        ),
    ];
    let done = world.all(changes);
    assert_eq!((done.done, &done.fault), (3, &None));
    let attr = world.attr(file);
    assert_eq!((attr.mtime, attr.ctime, attr.mode), (AT, AT, 0o750));
    let mut digest = Digest::default();
    let parent = |world: &World, size: u64, nlink| Attr { size, nlink, ..world.attr(ROOT) };
    let made = Attr { size: 0, mtime: AT, ctime: AT, ..world.attr(dir) };
    digest.add(&Outcome::Created { attr: made.clone(), new: true, parent: parent(&world, 32, 3) });
    digest.add(&Outcome::Created { attr, new: true, parent: Attr { size: 32, ..made } });
    digest.add(&Outcome::Renamed { replaced: None });
    assert_eq!(done.digest, digest.value(), "the digest is of the outcomes");
    assert!(check(&*world.kv).unwrap().is_empty());
}

#[test]
fn names_must_lead_where_the_session_believes() {
    let mut world = World::new();
    let first = world.reserved(S1, 10);
    let (a, b) = (first, below(first, 1));
    world.all(vec![create(0, ROOT, "a", NewNode::File, a), create(0, ROOT, "b", NewNode::File, b)]);
    let rename = |leads: &[InodeId]| {
        let (from_name, to_name) = (name("a"), name("b"));
        let mode = common::proto::meta::RenameMode::Replace;
        deferred(0, Op::Rename { from: ROOT, from_name, to: ROOT, to_name, mode, keep: false }, leads)
    };
    for wrong in [unlink(ROOT, "a", b), rename(&[b, a]), rename(&[a, a]), rename(&[a])] {
        assert_eq!(world.all(vec![wrong]).fault.unwrap().kind, Kind::Stale);
    }
    assert_eq!(world.all(vec![rename(&[a, b]), unlink(ROOT, "b", a)]).done, 2);
}

#[test]
fn numbers_are_the_sessions_own_and_used_once() {
    let mut world = World::new();
    let first = world.reserved(S1, 3);
    assert_eq!(world.reserved(S2, 3), below(first, 3));
    let kind = |done: BatchDone| done.fault.map(|fault| fault.kind);
    let make = |text: &str, ino| vec![create(0, ROOT, text, NewNode::File, ino)];
    assert_eq!(kind(world.all(make("x", below(first, 3)))), Some(Kind::Invalid), "of another session");
    assert_eq!(kind(world.all(make("x", InodeId(999_999)))), Some(Kind::Invalid), "of nobody");
    assert_eq!(kind(world.all(make("a", below(first, 1)))), None);
    assert_eq!(kind(world.all(make("b", first))), Some(Kind::Invalid), "they rise");
    world.all(vec![unlink(ROOT, "a", below(first, 1))]);
    assert_eq!(kind(world.all(make("a", below(first, 1)))), Some(Kind::Invalid), "never twice");
    let other = world.make(0, ROOT, "other", NewNode::File, 0o600).unwrap();
    assert!(other.ino.0 >= first.0 + 6, "others get numbers behind all that is reserved");
    assert_eq!(kind(world.all(make("c", below(first, 2)))), None);
    world.of(S1, cred(0), Op::CloseSession).unwrap();
    let key = keys::reserved(S1);
    assert!(world.kv.get(keys::CLUSTER, &key).unwrap().is_none(), "they end with the session");
}

#[test]
fn behind_a_fence_only_what_its_leader_has_checked_is_taken() {
    let mut world = World::new();
    let first = world.reserved(S1, 10);
    let mut at = 0;
    let mut make = |world: &mut World, since: u64, checked: u64| {
        at += 1;
        let text = format!("f{at}");
        world.batch(S1, (since, checked), vec![create(0, ROOT, &text, NewNode::File, below(first, at))])
    };
    assert!(make(&mut world, 0, 1).is_ok());
    world.command(&Command::Fence { term: 5, sessions: vec![S1, SessionId(99)] }).unwrap();
    let fence = world.index;
    assert!(!decides(&*world.kv, S1).unwrap(), "nobody waits for it a second time");
    assert_eq!(make(&mut world, fence - 1, 6).unwrap_err().kind, Kind::Stale);
    assert!(make(&mut world, fence - 1, 5).is_ok(), "the leader of that term knows that nobody was about the same");
    assert!(make(&mut world, fence, 6).is_ok(), "made under a later claim");
    world.reserved(S1, 5);
    assert!(decides(&*world.kv, S1).unwrap() && !decides(&*world.kv, S2).unwrap());
    assert_eq!(make(&mut world, fence - 1, 6).unwrap_err().kind, Kind::Stale, "the fence stands");
    assert!(world.kv.get(keys::CLUSTER, &keys::fence(SessionId(99))).unwrap().is_none(), "there is no such session");
}

#[test]
fn a_batch_that_comes_twice_is_carried_out_once() {
    let mut world = World::new();
    let first = world.reserved(S1, 10);
    let changes = vec![create(0, ROOT, "a", NewNode::File, first), unlink(ROOT, "a", first)];
    let batch = Batch { term: 1, since: LogIndex(0), checked: 0, changes };
    let request = Request { session: S1, slot: 3, seq: 1, cred: cred(0), op: Op::Batch(batch) };
    let once = world.request(request.clone()).unwrap();
    assert_eq!(world.request(request).unwrap(), once);
    assert!(matches!(once, Outcome::Batch(BatchDone { done: 2, fault: None, .. })));
}

#[test]
fn not_everything_may_be_in_a_batch() {
    let mut world = World::new();
    let first = world.reserved(S1, 10);
    let nested = deferred(0, Op::Batch(Batch::default()), &[]);
    let release = deferred(0, Op::Release { ino: first }, &[]);
    let nameless = deferred(0, Op::Rmdir { parent: ROOT, name: name("d") }, &[]);
    let timeless =
        Deferred { at: Time { secs: 0, nanos: 2_000_000_000 }, ..create(0, ROOT, "t", NewNode::File, first) };
    for wrong in [nested, release, nameless, timeless] {
        assert_eq!(world.batch(S1, (0, 0), vec![wrong]).unwrap_err().kind, Kind::Invalid);
    }
}
