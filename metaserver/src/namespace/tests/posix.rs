//! POSIX, case by case: who may do what, which error, which times.

use super::*;
use common::proto::meta::{
    ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, ACCESSED_MAX, FileKind, RenameMode, SetAttr, SetTime, XattrMode,
};

fn set() -> SetAttr {
    SetAttr::default()
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..set() }
}

impl World {
    fn set(&mut self, uid: u32, ino: InodeId, set: SetAttr) -> Result<Attr, Kind> {
        match self.op(uid, Op::SetAttr { ino, set }) {
            Ok(Outcome::Attr(attr)) => Ok(attr),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.kind),
        }
    }

    fn unlink(&mut self, uid: u32, parent: InodeId, text: &str) -> Result<Outcome, Kind> {
        self.op(uid, Op::Unlink { parent, name: name(text), keep: false }).map_err(|fault| fault.kind)
    }

    fn rename(&mut self, uid: u32, from: (InodeId, &str), to: (InodeId, &str)) -> Result<Outcome, Kind> {
        let (from_name, to_name) = (name(from.1), name(to.1));
        let mode = RenameMode::Replace;
        let op = Op::Rename { from: from.0, from_name, to: to.0, to_name, mode, keep: false };
        self.op(uid, op).map_err(|fault| fault.kind)
    }

    fn walk(&self, path: &str, follow: bool) -> Result<InodeId, Kind> {
        match self.ask(0, Query::Walk { from: ROOT, path: path.into(), follow }) {
            Ok(Answer::Walked { attr, .. }) => Ok(attr.ino),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.kind),
        }
    }
}

/// A directory that everybody may change, and one with the sticky bit.
fn shared(world: &mut World) -> (InodeId, InodeId) {
    let open = world.dir(0, ROOT, "open", 0o777);
    let sticky = world.dir(0, ROOT, "tmp", 0o1777);
    world.set(0, open, mode(0o777)).unwrap();
    (open, sticky)
}

#[test]
fn the_root_is_roots() {
    let mut world = World::new();
    let root = world.attr(ROOT);
    assert_eq!((root.kind, root.mode, root.uid, root.nlink, root.size), (FileKind::Dir, 0o755, 0, 2, 0));
    let denied = world.make(5, ROOT, "x", NewNode::File, 0o644).unwrap_err();
    assert_eq!(denied.kind, Kind::Denied);
}

#[test]
fn what_is_new_has_the_callers_ids_and_the_commands_time() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    let made = world.make(5, open, "f", NewNode::File, 0o640).unwrap();
    assert_eq!((made.uid, made.gid, made.mode, made.nlink, made.size), (5, 5, 0o640, 1, 0));
    assert_eq!((made.atime, made.mtime), (made.ctime, made.ctime));
    let parent = world.attr(open);
    assert_eq!((parent.mtime, parent.ctime, parent.size), (made.ctime, made.ctime, 32));
    let dir = world.make(5, open, "d", NewNode::Dir, 0o7755).unwrap();
    assert_eq!((dir.mode, dir.nlink), (0o1755, 2), "mkdir takes no set-id bits");
    assert_eq!(world.attr(open).nlink, 3);
    let link = world.make(5, open, "l", NewNode::Symlink(b"to".to_vec()), 0).unwrap();
    assert_eq!((link.mode, link.size), (0o777, 2));
}

#[test]
fn set_group_id_directories_hand_on_their_group() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    world.set(0, open, SetAttr { gid: Some(9), ..set() }).unwrap();
    world.set(0, open, mode(0o2777)).unwrap();
    let dir = world.make(5, open, "d", NewNode::Dir, 0o755).unwrap();
    assert_eq!((dir.gid, dir.mode), (9, 0o2755));
    let file = world.make(5, open, "f", NewNode::File, 0o2775).unwrap();
    assert_eq!((file.gid, file.mode), (9, 0o775), "no set-group-id for a group one is not in");
    let lock = world.make(5, open, "g", NewNode::File, 0o2765).unwrap();
    assert_eq!(lock.mode, 0o2765, "without group execute it is no privilege");
    let root = world.make(0, open, "h", NewNode::File, 0o2775).unwrap();
    assert_eq!(root.mode, 0o2775);
}

#[test]
fn create_checks_in_linux_order() {
    let mut world = World::new();
    let closed = world.dir(0, ROOT, "closed", 0o700);
    let readable = world.dir(0, ROOT, "readable", 0o755);
    world.file(0, closed, "f", 0o644);
    world.file(0, readable, "f", 0o644);
    let kind = |world: &mut World, parent, text: &str, node| world.make(5, parent, text, node, 0o644).unwrap_err().kind;
    assert_eq!(kind(&mut world, closed, "f", NewNode::File), Kind::Denied, "may not even look");
    assert_eq!(kind(&mut world, readable, "f", NewNode::File), Kind::Exists, "taken comes before may-not-write");
    assert_eq!(kind(&mut world, readable, "g", NewNode::File), Kind::Denied);
    assert_eq!(kind(&mut world, InodeId(999), "g", NewNode::File), Kind::Gone);
    let file = world.file(0, ROOT, "plain", 0o666);
    assert_eq!(kind(&mut world, file, "g", NewNode::File), Kind::NotDir);
    let (open, _) = shared(&mut world);
    assert_eq!(kind(&mut world, open, "dev", NewNode::CharDevice(5)), Kind::NotPermitted);
    assert_eq!(world.make(0, open, "dev", NewNode::BlockDevice(5), 0o600).unwrap().rdev, 5);
    assert_eq!(kind(&mut world, open, "l", NewNode::Symlink(vec![])), Kind::NotFound);
    assert_eq!(kind(&mut world, open, "l", NewNode::Symlink(vec![b'x'; 4096])), Kind::NameTooLong);
    assert_eq!(kind(&mut world, open, "l", NewNode::Symlink(b"a\0b".to_vec())), Kind::Invalid);
    world.check();
}

#[test]
fn create_without_exclusive_opens_what_is_there() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o644);
    world.dir(0, ROOT, "d", 0o755);
    world.make(0, ROOT, "l", NewNode::Symlink(b"f".to_vec()), 0).unwrap();
    let open = |text: &str, access| Op::Create {
        parent: ROOT,
        name: name(text),
        node: NewNode::File,
        mode: 0o600,
        exclusive: false,
        access,
    };
    match world.op(5, open("f", ACCESS_READ)).unwrap() {
        Outcome::Created { attr, new, .. } => assert_eq!((attr.ino, attr.mode, new), (ino, 0o644, false)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.kind(5, open("f", ACCESS_READ | ACCESS_WRITE)), Kind::Denied);
    assert_eq!(world.kind(0, open("d", ACCESS_READ)), Kind::IsDir);
    assert_eq!(world.kind(0, open("l", ACCESS_READ)), Kind::Stale, "the caller follows it");
}

#[test]
fn hard_links() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    let ino = world.file(5, open, "f", 0o644);
    let dir = world.dir(5, open, "d", 0o755);
    let link = |ino, parent, text: &str| Op::Link { ino, parent, name: name(text) };
    let before = world.attr(ino);
    world.op(6, link(ino, open, "g")).unwrap();
    let after = world.attr(ino);
    assert_eq!((after.nlink, after.mtime), (2, before.mtime));
    assert!(after.ctime > before.ctime);
    assert_eq!(world.kind(5, link(dir, open, "f")), Kind::Exists, "taken comes first");
    assert_eq!(world.kind(5, link(dir, open, "h")), Kind::NotPermitted);
    assert_eq!(world.kind(5, link(ino, ROOT, "h")), Kind::Denied);
    assert_eq!(world.kind(5, link(InodeId(99), open, "h")), Kind::Gone);
    assert_eq!(world.unlink(5, open, "f").unwrap(), Outcome::Removed { ino, nlink: 1 });
    assert_eq!(world.unlink(5, open, "g").unwrap(), Outcome::Removed { ino, nlink: 0 });
    assert_eq!(world.ask(0, Query::GetAttr { ino }).unwrap_err().kind, Kind::Gone);
    world.check();
}

#[test]
fn removing_needs_the_directory_and_respects_the_sticky_bit() {
    let mut world = World::new();
    let (open, sticky) = shared(&mut world);
    for parent in [open, sticky] {
        world.file(5, parent, "f", 0o644);
        world.dir(5, parent, "d", 0o755);
    }
    let rmdir = |parent, text: &str| Op::Rmdir { parent, name: name(text) };
    assert_eq!(world.unlink(6, sticky, "f"), Err(Kind::NotPermitted));
    assert_eq!(world.kind(6, rmdir(sticky, "d")), Kind::NotPermitted);
    assert_eq!(world.rename(6, (sticky, "f"), (open, "x")), Err(Kind::NotPermitted));
    world.file(6, open, "mine", 0o644);
    assert_eq!(world.rename(6, (open, "mine"), (sticky, "f")), Err(Kind::NotPermitted), "would replace it");
    assert_eq!(world.unlink(6, open, "d"), Err(Kind::IsDir));
    assert_eq!(world.kind(6, rmdir(open, "f")), Kind::NotDir);
    assert_eq!(world.kind(6, rmdir(open, "none")), Kind::NotFound);
    world.unlink(6, open, "f").unwrap();
    world.unlink(5, sticky, "f").unwrap();
    world.set(0, ROOT, mode(0o777)).unwrap();
    let inner = world.dir(5, sticky, "e", 0o777);
    world.file(6, inner, "x", 0o644);
    assert_eq!(world.kind(5, rmdir(sticky, "e")), Kind::NotEmpty);
    world.unlink(5, inner, "x").unwrap();
    world.op(5, rmdir(sticky, "e")).unwrap();
    assert_eq!(world.kind(5, rmdir(ROOT, "gone")), Kind::NotFound);
    world.check();
}

#[test]
fn rename_moves_replaces_and_knows_its_limits() {
    let mut world = World::new();
    let (open, sticky) = shared(&mut world);
    let a = world.dir(5, open, "a", 0o755);
    let b = world.dir(5, a, "b", 0o755);
    let file = world.file(5, a, "f", 0o644);
    assert_eq!(world.rename(5, (open, "a"), (b, "x")), Err(Kind::Invalid));
    assert_eq!(world.rename(5, (open, "a"), (a, "x")), Err(Kind::Invalid));
    assert_eq!(world.rename(5, (a, "b"), (open, "a")), Err(Kind::NotEmpty), "the target holds it");
    assert_eq!(world.rename(5, (a, "f"), (a, "b")), Err(Kind::IsDir));
    assert_eq!(world.rename(5, (a, "b"), (a, "f")), Err(Kind::NotDir));
    assert_eq!(world.rename(5, (a, "none"), (a, "x")), Err(Kind::NotFound));
    let before = (world.attr(open), world.attr(a));
    world.rename(5, (a, "b"), (open, "c")).unwrap();
    let after = (world.attr(open), world.attr(a));
    assert_eq!((after.0.nlink, after.1.nlink), (before.0.nlink + 1, before.1.nlink - 1));
    assert!(after.0.mtime > before.0.mtime && after.1.mtime > before.1.mtime);
    match world.ask(0, Query::ReadDir { ino: b, after: 0, limit: 10, attrs: false }).unwrap() {
        Answer::Listing { parent, .. } => assert_eq!(parent, open),
        other => panic!("{other:?}"),
    }
    // Another user's directory may be renamed in place, but not moved: its `..` would change.
    let other = world.dir(6, open, "others", 0o755);
    world.rename(5, (open, "others"), (open, "others2")).unwrap();
    assert_eq!(world.rename(5, (open, "others2"), (sticky, "x")), Err(Kind::Denied));
    assert_eq!(world.attr(other).nlink, 2);
    let victim = world.file(5, open, "victim", 0o644);
    let replaced = world.rename(5, (a, "f"), (open, "victim")).unwrap();
    assert_eq!(replaced, Outcome::Renamed { replaced: Some((victim, 0)) });
    assert_eq!(world.walk("/open/victim", false), Ok(file));
    world.check();
}

#[test]
fn a_replaced_name_keeps_its_place_in_listings() {
    let mut world = World::new();
    for text in ["a", "b", "c"] {
        world.file(0, ROOT, text, 0o644);
    }
    let cookie = |world: &World, text: &str| {
        world.list(ROOT, 0, 10).0.iter().find(|entry| entry.name == name(text)).map(|entry| entry.cookie)
    };
    let b = cookie(&world, "b");
    world.rename(0, (ROOT, "a"), (ROOT, "b")).unwrap();
    assert_eq!((cookie(&world, "a"), cookie(&world, "b")), (None, b));
    world.rename(0, (ROOT, "b"), (ROOT, "d")).unwrap();
    assert!(cookie(&world, "d") > cookie(&world, "c"), "a new name goes last");
    world.check();
}

#[test]
fn owners_and_groups() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    let ino = world.file(5, open, "f", 0o6755);
    let owner = |uid| SetAttr { uid: Some(uid), ..set() };
    let group = |gid| SetAttr { gid: Some(gid), ..set() };
    assert_eq!(world.set(5, ino, owner(6)), Err(Kind::NotPermitted));
    assert_eq!(world.set(6, ino, owner(6)), Err(Kind::NotPermitted));
    assert_eq!(world.set(5, ino, group(9)), Err(Kind::NotPermitted));
    assert_eq!(world.set(5, ino, group(5)).unwrap().mode, 0o755, "set-id bits go");
    let member = Cred { uid: 5, gid: 5, groups: vec![9] };
    world.of(S1, member, Op::SetAttr { ino, set: group(9) }).unwrap();
    assert_eq!(world.attr(ino).gid, 9);
    assert_eq!(world.set(5, ino, mode(0o2755)).unwrap().mode, 0o755, "not a member of its group");
    assert_eq!(world.set(0, ino, mode(0o6755)).unwrap().mode, 0o6755);
    let given = world.set(0, ino, owner(7)).unwrap();
    assert_eq!((given.uid, given.mode), (7, 0o755), "also when root gives it away");
    assert_eq!(world.set(5, ino, mode(0o700)), Err(Kind::NotPermitted));
    assert_eq!(world.set(7, ino, mode(0o10000)), Err(Kind::Invalid));
    let link = world.make(7, open, "l", NewNode::Symlink(b"x".to_vec()), 0).unwrap().ino;
    assert_eq!(world.set(7, link, mode(0o700)), Err(Kind::Unsupported));
}

#[test]
fn sizes_and_times() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    let ino = world.file(5, open, "f", 0o444);
    let size = |size, opened| SetAttr { size: Some(size), opened, ..set() };
    assert_eq!(world.set(5, ino, size(10, false)), Err(Kind::Denied));
    assert_eq!(world.set(5, ino, size(10, true)).unwrap().size, 10);
    assert_eq!(world.set(0, ino, size((1 << 60) + 1, true)), Err(Kind::TooBig));
    assert_eq!(world.set(0, open, size(1, true)), Err(Kind::IsDir));
    let at = Time { secs: -5, nanos: 999_999_999 };
    let times = |time| SetAttr { atime: Some(time), mtime: Some(time), ..set() };
    assert_eq!(world.set(6, ino, times(SetTime::At(at))), Err(Kind::NotPermitted));
    assert_eq!(world.set(6, ino, times(SetTime::Now)), Err(Kind::Denied));
    world.set(5, ino, mode(0o666)).unwrap();
    world.set(6, ino, times(SetTime::Now)).unwrap();
    let attr = world.set(5, ino, times(SetTime::At(at))).unwrap();
    assert_eq!((attr.atime, attr.mtime), (at, at));
    assert!(attr.ctime > at);
    let bad = SetTime::At(Time { secs: 0, nanos: 1_000_000_000 });
    assert_eq!(world.set(5, ino, times(bad)), Err(Kind::Invalid));
    let before = world.attr(ino);
    assert_eq!(world.set(6, ino, set()).unwrap(), before, "nothing asked, nothing changed");
    let chunk = |chunk_size| SetAttr { chunk_size: Some(chunk_size), ..set() };
    assert_eq!(world.set(5, ino, chunk(100_000)), Err(Kind::Invalid));
    assert_eq!(world.set(5, ino, chunk(65_536)).unwrap().chunk_size, 65_536);
    world.set(0, open, SetAttr { replicas: Some(2), chunk_size: Some(1 << 20), ..set() }).unwrap();
    let made = world.make(5, open, "g", NewNode::File, 0o644).unwrap();
    assert_eq!((made.replicas, made.chunk_size), (2, 1 << 20), "new entries inherit");
}

#[test]
fn a_write_or_truncate_of_another_clears_set_id() {
    let mut world = World::new();
    let (open, _) = shared(&mut world);
    let ino = world.file(5, open, "f", 0o6777);
    world.set(6, ino, SetAttr { size: Some(3), ..set() }).unwrap();
    assert_eq!(world.attr(ino).mode, 0o777);
}

#[test]
fn extended_attributes() {
    let mut world = World::new();
    let (open, sticky) = shared(&mut world);
    let ino = world.file(5, open, "f", 0o600);
    let put = |ino, key: &[u8], mode| Op::SetXattr { ino, name: key.to_vec(), value: b"v".to_vec(), mode };
    let get = |world: &World, uid, ino, key: &[u8]| {
        world.ask(uid, Query::GetXattr { ino, name: key.to_vec() }).map_err(|fault| fault.kind)
    };
    let (any, create, replace) = (XattrMode::Any, XattrMode::Create, XattrMode::Replace);
    assert_eq!(world.kind(5, put(ino, b"user.a", replace)), Kind::NoData);
    world.op(5, put(ino, b"user.a", create)).unwrap();
    assert_eq!(world.kind(5, put(ino, b"user.a", create)), Kind::Exists);
    assert_eq!(world.kind(6, put(ino, b"user.b", any)), Kind::Denied);
    assert_eq!(get(&world, 6, ino, b"user.a"), Err(Kind::Denied));
    assert_eq!(get(&world, 5, ino, b"user.a"), Ok(Answer::Value(b"v".to_vec())));
    assert_eq!(world.kind(5, put(ino, b"trusted.t", any)), Kind::NotPermitted);
    world.op(0, put(ino, b"trusted.t", any)).unwrap();
    assert_eq!(get(&world, 5, ino, b"trusted.t"), Err(Kind::NoData));
    let names = |uid| world.ask(uid, Query::ListXattr { ino }).unwrap();
    assert_eq!(names(5), Answer::Names(vec![b"user.a".to_vec()]));
    assert_eq!(names(0), Answer::Names(vec![b"trusted.t".to_vec(), b"user.a".to_vec()]));
    for (key, kind) in [
        (&b"user."[..], Kind::Invalid),
        (b"other.x", Kind::Unsupported),
        (b"system.posix_acl_other", Kind::Unsupported),
        (b"", Kind::Range),
        (&[b'x'; 256], Kind::Range),
    ] {
        assert_eq!(world.kind(0, put(ino, key, any)), kind);
    }
    let long = Op::SetXattr { ino, name: b"user.l".to_vec(), value: vec![0; 65_537], mode: any };
    assert_eq!(world.kind(5, long), Kind::Range);
    let fifo = world.make(5, open, "p", NewNode::Fifo, 0o666).unwrap().ino;
    assert_eq!(world.kind(5, put(fifo, b"user.a", any)), Kind::NotPermitted);
    assert_eq!(world.kind(5, put(sticky, b"user.a", any)), Kind::NotPermitted);
    world.op(5, Op::RemoveXattr { ino, name: b"user.a".to_vec() }).unwrap();
    assert_eq!(world.kind(5, Op::RemoveXattr { ino, name: b"user.a".to_vec() }), Kind::NoData);
    world.check();
    world.unlink(5, open, "f").unwrap();
    world.check();
}

#[test]
fn attribute_names_are_bounded() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o600);
    let mut set = 0;
    let full = loop {
        let key = format!("user.{set:0>249}");
        let op = Op::SetXattr { ino, name: key.into_bytes(), value: Vec::new(), mode: XattrMode::Any };
        match world.op(0, op) {
            Ok(_) => set += 1,
            Err(fault) => break fault.kind,
        }
    };
    assert_eq!((full, set), (Kind::NoSpace, 65_536 / 255));
    world.check();
}

#[test]
fn listings_go_on_where_they_stopped() {
    let mut world = World::new();
    for n in 0..10 {
        world.file(0, ROOT, &format!("f{n}"), 0o644);
    }
    let (first, end) = world.list(ROOT, 0, 4);
    assert!(first.len() == 4 && !end);
    world.unlink(0, ROOT, "f1").unwrap();
    world.unlink(0, ROOT, "f5").unwrap();
    world.file(0, ROOT, "late", 0o644);
    let (rest, end) = world.list(ROOT, first[3].cookie, 4096);
    let names: Vec<String> = rest.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["f4", "f6", "f7", "f8", "f9", "late"]);
    assert!(end && rest.iter().all(|entry| entry.attr.as_ref().is_some_and(|attr| attr.ino == entry.ino)));
    let dir = world.dir(0, ROOT, "secret", 0o711);
    let list = |after| Query::ReadDir { ino: dir, after, limit: 1, attrs: false };
    assert_eq!(world.ask(5, list(0)).unwrap_err().kind, Kind::Denied);
    assert!(world.ask(5, list(1)).is_ok(), "a listing under way goes on");
}

#[test]
fn walking_paths() {
    let mut world = World::new();
    let d = world.dir(0, ROOT, "d", 0o755);
    let f = world.file(0, d, "f", 0o644);
    let secret = world.dir(0, ROOT, "secret", 0o700);
    world.file(0, secret, "f", 0o644);
    let mut link =
        |parent, text: &str, to: &str| world.make(0, parent, text, NewNode::Symlink(to.into()), 0).unwrap().ino;
    let to_f = link(ROOT, "to_f", "d/f");
    link(d, "up", "..");
    link(d, "abs", "/d/f");
    link(ROOT, "me", "me");
    link(ROOT, "to_d", "d");
    link(ROOT, "dangling", "nowhere");
    for (path, follow, expected) in [
        ("", false, Ok(ROOT)),
        ("/", true, Ok(ROOT)),
        ("//d/./f", true, Ok(f)),
        ("d/../d/up/d/f", true, Ok(f)),
        ("../../d", true, Ok(d)),
        ("to_f", false, Ok(to_f)),
        ("to_f", true, Ok(f)),
        ("d/abs", true, Ok(f)),
        ("to_d/", false, Ok(d)),
        ("to_d/f", false, Ok(f)),
        ("d/f/", true, Err(Kind::NotDir)),
        ("d/f/x", true, Err(Kind::NotDir)),
        ("to_f/", true, Err(Kind::NotDir)),
        ("none/x", true, Err(Kind::NotFound)),
        ("dangling", true, Err(Kind::NotFound)),
        ("me", true, Err(Kind::Loop)),
    ] {
        assert_eq!(world.walk(path, follow), expected, "{path}");
    }
    assert_eq!(world.walk(&"x".repeat(256), true), Err(Kind::NameTooLong));
    assert_eq!(world.walk(&"d/../".repeat(900), true), Err(Kind::NameTooLong));
    let secret = Query::Walk { from: ROOT, path: b"secret/f".to_vec(), follow: true };
    assert_eq!(world.ask(5, secret).unwrap_err().kind, Kind::Denied);
    match world.ask(0, Query::Walk { from: d, path: b"up/to_f".to_vec(), follow: true }).unwrap() {
        Answer::Walked { attr, parent } => assert_eq!((attr.ino, parent), (f, d)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn opening_checks_access() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o640);
    let link = world.make(0, ROOT, "l", NewNode::Symlink(b"f".to_vec()), 0).unwrap().ino;
    world.write(ino, 0, b"data").unwrap();
    let open =
        |uid, ino, access| world.ask(uid, Query::Open { ino, access, ahead: Vec::new() }).map_err(|fault| fault.kind);
    assert_eq!(open(5, ino, ACCESS_READ), Err(Kind::Denied));
    assert_eq!(open(0, ino, ACCESS_EXEC), Err(Kind::Denied));
    assert_eq!(open(0, ROOT, ACCESS_WRITE), Err(Kind::IsDir));
    assert_eq!(open(0, link, ACCESS_READ), Err(Kind::Loop));
    assert!(open(5, ROOT, ACCESS_READ).is_ok());
    match open(0, ino, ACCESS_READ).unwrap() {
        Answer::Opened { run, .. } => assert_eq!((run.extents.len(), run.covered), (1, u64::MAX)),
        other => panic!("{other:?}"),
    }
    let ask = Ask {
        session: SessionId(99),
        cred: cred(0),
        query: Query::Open { ino, access: ACCESS_READ, ahead: Vec::new() },
        lease: false,
    };
    let ctx = QueryCtx::new(&config(&*world.kv).unwrap().unwrap());
    let stranger = query(&*world.kv, LogIndex(1), &ask, &ctx).map_err(Fault::from).unwrap_err();
    assert_eq!(stranger.kind, Kind::NoSession, "no tokens without a session");
    match world.ask(0, Query::StatFs).unwrap() {
        Answer::StatFs(stat) => assert_eq!((stat.inodes, stat.chunks, stat.logical_bytes), (3, 1, 4)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_moves_an_access_time_forward_once_and_nothing_else() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o600);
    let (dir, gone) = (world.dir(0, ROOT, "d", 0o755), InodeId(9999));
    let late = |time: Time, secs| Time { secs: time.secs + secs, ..time };
    let (before, dir_before) = (world.attr(ino), world.attr(dir));
    let read = |world: &mut World, at| world.op(7, Op::Accessed { files: vec![(gone, at), (ino, at), (dir, at)] });
    // Older than the access time: nothing. In the future: now.
    read(&mut world, late(before.atime, -5)).unwrap();
    assert_eq!(world.attr(ino), before);
    read(&mut world, late(before.atime, 1 << 40)).unwrap();
    let after = world.attr(ino);
    assert!(before.atime < after.atime && after.atime <= world.now());
    assert_eq!(Attr { atime: before.atime, ..after.clone() }, before, "no other time, no version");
    // It is after the last change already.
    let now = world.now();
    read(&mut world, now).unwrap();
    assert_eq!(world.attr(ino), after);
    // After another change it moves again, to the time of the read, and not beyond the change if that was later.
    let at = world.now();
    world.write(ino, 0, b"new").unwrap();
    read(&mut world, at).unwrap();
    assert!(world.attr(ino).atime <= world.attr(ino).mtime, "unread mail stays unread");
    assert_eq!(world.attr(dir), dir_before);
    let many = Op::Accessed { files: vec![(ino, at); ACCESSED_MAX + 1] };
    assert_eq!(world.kind(7, many), Kind::Invalid);
    world.check();
}
