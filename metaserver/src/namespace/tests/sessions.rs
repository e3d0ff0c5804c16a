//! Exactly once: slots, sequences, sessions that end.

use super::*;

fn make(session: SessionId, seq: u64, text: &str) -> Request {
    let op =
        Op::Create { parent: ROOT, name: name(text), node: NewNode::File, mode: 0o644, exclusive: true, access: 0 };
    Request { session, slot: 2, seq, cred: cred(0), op }
}

#[test]
fn a_retry_gets_the_same_reply_and_happens_once() {
    let mut world = World::new();
    let first = world.request(make(S1, 1, "a")).unwrap();
    world.check();
    assert_eq!(world.request(make(S1, 1, "a")).unwrap(), first, "not Exists");
    assert_eq!(world.list(ROOT, 0, 100).0.len(), 1);
    let failed = world.request(make(S1, 2, "a")).unwrap_err();
    assert_eq!(failed.kind, Kind::Exists);
    world.op(0, Op::Unlink { parent: ROOT, name: name("a"), keep: false }).unwrap();
    assert_eq!(world.request(make(S1, 2, "a")).unwrap_err(), failed, "the failure was its outcome");
    assert!(world.list(ROOT, 0, 100).0.is_empty());
}

#[test]
fn an_applied_index_comes_with_each_reply_and_stays_that_of_the_first() {
    let mut world = World::new();
    let at = world.now();
    let command = Command::Client { request: make(S1, 1, "a"), at };
    let first = world.command(&command);
    let expected = world.index;
    world.index += 5;
    assert_eq!(world.command(&command), first);
    match first {
        Ok(Done::Applied(applied)) => assert_eq!(applied.index, LogIndex(expected)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sequences_go_one_by_one() {
    let mut world = World::new();
    for (seq, ok) in [(0, false), (2, false), (1, true), (3, false), (2, true), (1, false)] {
        let reply = world.request(make(S1, seq, &format!("n{seq}")));
        assert_eq!(reply.is_ok(), ok, "{seq}: {reply:?}");
        assert!(ok || reply.unwrap_err().kind == Kind::Stale, "never taken for a stored reply");
    }
    let slot = Request { slot: 4, ..make(S1, 1, "x") };
    assert_eq!(world.request(slot).unwrap_err().kind, Kind::Invalid, "four slots: 0 to 3");
}

#[test]
fn replies_that_ask_for_another_try_are_not_kept() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    let op = |base| Op::Commit(Commit { base: Some(common::id::DataVersion(base)), ..empty(ino) });
    let request = |base| Request { session: S1, slot: 3, seq: 1, cred: cred(0), op: op(base) };
    assert_eq!(world.request(request(9)).unwrap_err().kind, Kind::Stale);
    assert!(world.request(request(0)).is_ok(), "the same sequence runs again");
}

#[test]
fn sessions_open_once_and_stay_ended() {
    let mut world = World::new();
    let open = |session| Request {
        session,
        slot: 0,
        seq: 1,
        cred: cred(0),
        op: Op::OpenSession { label: "l".into(), slots: 2 },
    };
    let s3 = SessionId(3);
    assert_eq!(world.request(make(s3, 1, "a")).unwrap_err().kind, Kind::NoSession);
    let first = world.request(open(s3)).unwrap();
    assert_eq!(world.request(open(s3)).unwrap(), first);
    let next = Request { slot: 0, ..make(s3, 2, "a") };
    world.request(next.clone()).unwrap();
    assert_eq!(super::super::sessions(&*world.kv).unwrap().len(), 3);
    world.request(Request { slot: 0, seq: 3, op: Op::CloseSession, ..next.clone() }).unwrap();
    world.check();
    for late in [open(s3), next] {
        assert_eq!(world.request(late).unwrap_err().kind, Kind::NoSession, "a delayed copy");
    }
    assert_eq!(super::super::sessions(&*world.kv).unwrap().len(), 2);
    let none = Request { session: SessionId(4), op: Op::OpenSession { label: String::new(), slots: 0 }, ..open(s3) };
    assert_eq!(world.request(none).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn ended_sessions_are_forgotten_after_an_hour() {
    let mut world = World::new();
    let at = world.now();
    world.command(&Command::ExpireSession { session: S2, at }).unwrap();
    world.command(&Command::ExpireSession { session: S2, at }).unwrap();
    let open = |world: &mut World, session, secs| {
        let op = Op::OpenSession { label: "x".repeat(1000), slots: 1 };
        let request = Request { session: SessionId(session), slot: 0, seq: 0, cred: cred(0), op };
        let at = Time { secs: at.secs + secs, nanos: 0 };
        world.command(&Command::Client { request, at }).map_err(|fault| fault.kind)
    };
    assert_eq!(open(&mut world, 2, 3500), Err(Kind::NoSession));
    open(&mut world, 10, 360_000).unwrap();
    open(&mut world, 11, 360_060).unwrap();
    assert_eq!(open(&mut world, 2, 360_060), Err(Kind::NoSession), "a clock that jumps forgets nobody");
    // 60 s went by with each of these.
    for n in 0..57 {
        open(&mut world, 20 + n, 360_120 + 60 * i64::try_from(n).unwrap()).unwrap();
    }
    assert_eq!(open(&mut world, 2, 363_600), Err(Kind::NoSession), "not quite an hour");
    open(&mut world, 100, 363_600).unwrap();
    open(&mut world, 101, 363_660).unwrap();
    open(&mut world, 2, 363_661).unwrap();
    world.check();
}

#[test]
fn orphans_live_until_their_session_lets_go() {
    let mut world = World::new();
    for (n, how) in ["release", "close", "expire"].into_iter().enumerate() {
        let (file, session) = (format!("f{n}"), SessionId(100 + n as u128));
        let open = Op::OpenSession { label: String::new(), slots: 2 };
        world.request(Request { session, slot: 0, seq: 0, cred: cred(0), op: open }).unwrap();
        let ino = world.file(0, ROOT, &file, 0o644);
        world.write(ino, 0, b"still here").unwrap();
        let unlink = Op::Unlink { parent: ROOT, name: name(&file), keep: true };
        let removed = world.of(session, cred(0), unlink).unwrap();
        assert_eq!(removed, Outcome::Removed { ino, nlink: 0 });
        assert_eq!(world.read(ino), b"still here");
        let link = Op::Link { ino, parent: ROOT, name: name("again") };
        assert_eq!(world.kind(0, link), Kind::NotFound);
        world.of(S2, cred(0), Op::Release { ino }).unwrap();
        assert_eq!(world.read(ino), b"still here", "another session's release is nothing to it");
        world.check();
        match how {
            "release" => drop(world.of(session, cred(0), Op::Release { ino }).unwrap()),
            "close" => drop(world.of(session, cred(0), Op::CloseSession).unwrap()),
            _ => {
                let at = world.now();
                world.command(&Command::ExpireSession { session, at }).unwrap();
            }
        }
        assert_eq!(world.ask(0, Query::GetAttr { ino }).unwrap_err().kind, Kind::Gone, "{how}");
        world.check();
    }
    assert_eq!(super::super::counters(&*world.kv).unwrap().chunks, 0);
}

#[test]
fn what_others_may_have_open_stays_until_they_were_asked() {
    let mut world = World::new();
    let (s3, s4) = (SessionId(3), SessionId(4));
    for session in [s3, s4] {
        let op = Op::OpenAttending { label: String::new(), slots: 2 };
        world.request(Request { session, slot: 0, seq: 0, cred: cred(0), op }).unwrap();
    }
    assert_eq!(super::super::attending(&*world.kv).unwrap(), [s3, s4]);
    let make = |world: &mut World, text: &str| {
        let ino = world.file(0, ROOT, text, 0o644);
        world.write(ino, 0, text.as_bytes()).unwrap();
        let unlink = Op::Unlink { parent: ROOT, name: name(text), keep: false };
        assert_eq!(world.of(s3, cred(0), unlink).unwrap(), Outcome::Removed { ino, nlink: 0 });
        world.check();
        ino
    };
    let settle = |world: &mut World, held: Vec<(InodeId, Vec<SessionId>)>, dropped: Vec<(SessionId, InodeId)>| {
        let at = world.now();
        world.command(&Command::Settle { held, dropped, at }).unwrap();
        world.check();
    };
    let orphans = |world: &World| super::super::orphans(&*world.kv, None, 9).unwrap();
    let is_gone =
        |world: &World, ino| world.ask(0, Query::GetAttr { ino }).is_err_and(|fault| fault.kind == Kind::Gone);
    let (a, b, c) = (make(&mut world, "a"), make(&mut world, "b"), make(&mut world, "c"));
    assert_eq!(orphans(&world), (vec![a, b, c], vec![]));
    settle(&mut world, vec![(a, vec![]), (b, vec![s3, s4]), (InodeId(999), vec![s3])], vec![(s3, c)]);
    assert!(is_gone(&world, a) && world.read(b) == b"b" && world.read(c) == b"c");
    assert_eq!(orphans(&world), (vec![c], vec![(s3, b), (s4, b)]));
    let behind = |note| super::super::orphans(&*world.kv, Some(note), 1).unwrap().1;
    assert_eq!((behind((s3, b)), behind((s4, b))), (vec![(s4, b)], vec![(s3, b)]), "all in turn");
    // Each lets go in its way; a late copy of the same news changes nothing.
    world.of(s3, cred(0), Op::Release { ino: b }).unwrap();
    settle(&mut world, vec![(b, vec![s3])], vec![]);
    assert_eq!(world.read(b), b"b");
    settle(&mut world, vec![(c, vec![s4, SessionId(77)])], vec![(s4, b)]);
    assert!(is_gone(&world, b));
    world.of(s4, cred(0), Op::CloseSession).unwrap();
    assert!(is_gone(&world, c), "the other holder was never open");
    world.check();
    // Nobody else is left who could have it open.
    let d = make(&mut world, "d");
    assert!(is_gone(&world, d));
    let nobody = Op::OpenSession { label: String::new(), slots: 2 };
    let unasked = Request { session: super::super::UNASKED, slot: 0, seq: 0, cred: cred(0), op: nobody };
    assert_eq!(world.request(unasked).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn before_format_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let kv = MemoryKv::open(Arc::new(RealDisk), dir.path(), &keys::FAMILIES).unwrap();
    let mut txn = Txn::new(&kv);
    let op = Op::OpenSession { label: String::new(), slots: 1 };
    let request = Request { session: S1, slot: 0, seq: 0, cred: cred(0), op };
    let reply = apply(&mut txn, LogIndex(1), &Command::Client { request, at: Time::default() }).unwrap();
    assert_eq!(reply.unwrap_err().kind, Kind::Refused);
    assert_eq!(apply(&mut txn, LogIndex(2), &format()).unwrap(), Ok(Done::Formatted));
    assert_eq!(apply(&mut txn, LogIndex(3), &format()).unwrap().unwrap_err().kind, Kind::Refused);
}
