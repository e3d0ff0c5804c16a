//! What was removed can be brought back for a while, whole, by whoever may; and then it is gone.

use super::super::problems;
use super::*;
use crate::store::keys::{CHUNK, EXTENT, TRASH, XATTR};
use common::kv::Batch;
use common::proto::meta::{SetAttr, XattrMode};
use common::proto::trash::{SettingsChange, TRASH_PER_ANSWER, TrashAsk, TrashEntry, TrashList, TrashPlace};
use std::ops::Bound;

const WINDOW_S: u64 = 1000;
/// So much text that it is a chunk, in one extent.
const TEXT: &[u8] = b"what was written";

fn world() -> World {
    let mut world = World::new();
    world.set_window(WINDOW_S);
    world
}

fn written(world: &mut World, uid: u32, parent: InodeId, text: &str) -> InodeId {
    let ino = world.file(uid, parent, text, 0o640);
    world.write(ino, 0, TEXT).unwrap();
    ino
}

fn unlink(world: &mut World, uid: u32, parent: InodeId, text: &str, keep: bool) {
    world.op(uid, Op::Unlink { parent, name: name(text), keep }).unwrap();
}

fn undelete(world: &mut World, uid: u32, ino: InodeId, parent: InodeId, text: &str) -> Result<Attr, Fault> {
    match world.op(uid, Op::Undelete { ino, parent, name: name(text) })? {
        Outcome::Attr(attr) => Ok(attr),
        other => panic!("undelete gave {other:?}"),
    }
}

fn list(world: &World, uid: u32, parent: Option<InodeId>) -> Vec<TrashEntry> {
    page(world, uid, TrashAsk { parent, after: None, limit: TRASH_PER_ANSWER }).entries
}

fn page(world: &World, uid: u32, ask: TrashAsk) -> TrashList {
    match world.ask(uid, Query::Trash(ask)).unwrap() {
        Answer::Trash(list) => list,
        other => panic!("{other:?}"),
    }
}

fn expire(world: &mut World, bytes: u64, at: Time) {
    assert_eq!(world.command(&Command::Expire { bytes, at }), Ok(Done::Purged { more: false }));
    world.check();
}

fn count(world: &World, family: common::kv::Family) -> usize {
    world.kv.scan(family, (Bound::Unbounded, Bound::Unbounded), false).count()
}

fn used(world: &World) -> (u64, u64) {
    match world.ask(0, Query::StatFs).unwrap() {
        Answer::StatFs(stat) => (stat.inodes, stat.logical_bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_removed_file_comes_back_with_contents_attributes_and_extended_attributes() {
    let mut world = world();
    let before = used(&world);
    let ino = written(&mut world, 0, ROOT, "f");
    let set = SetAttr { mode: Some(0o751), uid: Some(7), ..SetAttr::default() };
    world.op(0, Op::SetAttr { ino, set }).unwrap();
    let op = Op::SetXattr { ino, name: b"user.x".to_vec(), value: vec![9], mode: XattrMode::Any };
    world.op(0, op).unwrap();
    let (attr, stored) = (world.attr(ino), used(&world));
    unlink(&mut world, 0, ROOT, "f", false);
    world.check();
    assert_eq!(used(&world), before, "the trash is counted apart");
    assert_eq!(world.ask(0, Query::GetAttr { ino }).unwrap_err().kind, Kind::Gone, "nobody finds it by number");
    let now = super::super::trash_now(&*world.kv).unwrap();
    assert_eq!((now.entries, now.bytes, now.window_s), (1, TEXT.len() as u64, WINDOW_S));
    let back = undelete(&mut world, 0, ino, ROOT, "g").unwrap();
    assert_eq!(back, Attr { ctime: back.ctime, ..attr });
    assert_eq!((world.read(ino), used(&world)), (TEXT.to_vec(), stored));
    let value = world.ask(0, Query::GetXattr { ino, name: b"user.x".to_vec() }).unwrap();
    assert_eq!(value, Answer::Value(vec![9]));
    assert_eq!(count(&world, TRASH), 0);
    world.check();
}

#[test]
fn after_the_window_it_is_gone_with_all_it_had() {
    let mut world = world();
    let ino = written(&mut world, 0, ROOT, "f");
    world.op(0, Op::SetXattr { ino, name: b"user.x".to_vec(), value: vec![9], mode: XattrMode::Any }).unwrap();
    let removed = Time { secs: world.now().secs, nanos: 5 };
    unlink(&mut world, 0, ROOT, "f", false);
    let end = Time { secs: removed.secs + WINDOW_S as i64, ..removed };
    expire(&mut world, 0, Time { nanos: 4, ..end });
    assert_eq!(count(&world, CHUNK), 1, "not before the end");
    expire(&mut world, 0, end);
    for family in [TRASH, CHUNK, EXTENT, XATTR] {
        assert_eq!(count(&world, family), 0, "{}", keys::FAMILIES[usize::from(family.0)]);
    }
    assert_eq!(undelete(&mut world, 0, ino, ROOT, "f").unwrap_err().kind, Kind::NotFound);
}

#[test]
fn what_is_replaced_by_a_rename_can_be_brought_back_too() {
    let mut world = world();
    let old = written(&mut world, 0, ROOT, "f");
    world.file(0, ROOT, "new", 0o644);
    let mode = common::proto::meta::RenameMode::Replace;
    let op = Op::Rename { from: ROOT, from_name: name("new"), to: ROOT, to_name: name("f"), mode, keep: false };
    world.op(0, op).unwrap();
    assert_eq!(undelete(&mut world, 0, old, ROOT, "f").unwrap_err().kind, Kind::Exists);
    undelete(&mut world, 0, old, ROOT, "old").unwrap();
    assert_eq!(world.read(old), TEXT);
    world.check();
}

#[test]
fn only_the_last_name_counts() {
    let mut world = world();
    let ino = written(&mut world, 0, ROOT, "f");
    world.op(0, Op::Link { ino, parent: ROOT, name: name("g") }).unwrap();
    unlink(&mut world, 0, ROOT, "f", false);
    assert_eq!(list(&world, 0, None), []);
    unlink(&mut world, 0, ROOT, "g", false);
    assert_eq!(list(&world, 0, None)[0].name, name("g"));
    world.check();
}

#[test]
fn what_is_open_comes_to_the_trash_when_it_is_closed_or_its_session_dies() {
    for dies in [false, true] {
        let mut world = world();
        let ino = written(&mut world, 0, ROOT, "f");
        unlink(&mut world, 0, ROOT, "f", true);
        world.check();
        assert_eq!(list(&world, 0, None), [], "it is open");
        assert_eq!(undelete(&mut world, 0, ino, ROOT, "f").unwrap_err().kind, Kind::NotFound);
        world.write(ino, 4, b"by then").unwrap();
        let length = world.attr(ino).size;
        match dies {
            false => drop(world.op(0, Op::Release { ino }).unwrap()),
            true => {
                let at = world.now();
                world.command(&Command::ExpireSession { session: S1, at }).unwrap();
            }
        }
        world.check();
        let now = super::super::trash_now(&*world.kv).unwrap();
        assert_eq!((now.entries, now.bytes), (1, length), "dies: {dies}");
        let op = Op::Undelete { ino, parent: ROOT, name: name("f") };
        world.of(S2, cred(0), op).unwrap();
        assert_eq!(world.attr(ino).nlink, 1);
        world.check();
    }
}

#[test]
fn a_tree_comes_back_directory_by_directory_and_paths_lead_through_what_is_gone() {
    let mut world = world();
    let top = world.dir(0, ROOT, "top", 0o750);
    let sub = world.dir(0, top, "sub", 0o700);
    let ino = written(&mut world, 0, sub, "f");
    world.make(0, sub, "l", NewNode::Symlink(b"f".to_vec()), 0o777).unwrap();
    unlink(&mut world, 0, sub, "f", false);
    let here = list(&world, 0, None);
    assert_eq!(here[0].dir.as_deref(), Some(&b"/top/sub"[..]), "both are there");
    unlink(&mut world, 0, sub, "l", false);
    world.op(0, Op::Rmdir { parent: top, name: name("sub") }).unwrap();
    world.op(0, Op::Rmdir { parent: ROOT, name: name("top") }).unwrap();
    world.check();
    let paths: Vec<_> = list(&world, 0, None).into_iter().map(|entry| (entry.dir.unwrap(), entry.name)).collect();
    let wanted = [("/top/sub", "f"), ("/top/sub", "l"), ("/top", "sub"), ("", "top")];
    assert_eq!(paths, wanted.map(|(dir, text)| (dir.as_bytes().to_vec(), name(text))));
    assert_eq!(undelete(&mut world, 0, ino, sub, "f").unwrap_err().kind, Kind::Gone, "its directory comes first");
    undelete(&mut world, 0, top, ROOT, "top").unwrap();
    for (parent, texts) in [(top, &["sub"][..]), (sub, &["f", "l"])] {
        let inside = list(&world, 0, Some(parent));
        assert_eq!(
            inside.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(),
            texts.iter().map(|t| name(t)).collect::<Vec<_>>()
        );
        for entry in inside {
            undelete(&mut world, 0, entry.ino, parent, &entry.name.to_string()).unwrap();
        }
    }
    world.check();
    assert_eq!((world.attr(top).nlink, world.attr(top).mode & 0o777, world.attr(sub).nlink), (3, 0o750, 2));
    assert_eq!((world.read(ino), world.list(sub, 0, 10).0.len()), (TEXT.to_vec(), 2));
    world.file(0, sub, "more", 0o644);
    world.check();
}

#[test]
fn it_is_for_who_removed_it_and_root_where_they_may_write() {
    let mut world = world();
    let dir = world.dir(0, ROOT, "d", 0o777);
    let ino = written(&mut world, 5, dir, "f");
    unlink(&mut world, 5, dir, "f", false);
    assert_eq!((list(&world, 6, None), list(&world, 5, None).len(), list(&world, 0, None).len()), (vec![], 1, 1));
    assert_eq!(list(&world, 5, None)[0].by, 5);
    assert_eq!(undelete(&mut world, 6, ino, dir, "f").unwrap_err().kind, Kind::NotPermitted);
    let closed = world.dir(0, ROOT, "closed", 0o755);
    assert_eq!(undelete(&mut world, 5, ino, closed, "f").unwrap_err().kind, Kind::Denied);
    undelete(&mut world, 5, ino, dir, "f").unwrap();
    world.check();
}

#[test]
fn a_shorter_window_an_order_and_pressure_let_things_go_earlier_oldest_first() {
    let mut world = world();
    let make = |world: &mut World, text| {
        let ino = written(world, 0, ROOT, text);
        unlink(world, 0, ROOT, text, false);
        ino
    };
    let inos: Vec<InodeId> = ["a", "b", "c"].into_iter().map(|text| make(&mut world, text)).collect();
    let left = |world: &World| list(world, 0, None).into_iter().map(|entry| entry.ino).collect::<Vec<_>>();
    let now = world.now();
    expire(&mut world, 1, now);
    assert_eq!(left(&world), inos[1..], "as many bytes as asked for, from the oldest on");
    let at = list(&world, 0, None)[0].at;
    world.command(&Command::EmptyTrash { at }).unwrap();
    expire(&mut world, 0, now);
    assert_eq!(left(&world), inos[2..], "what was there when it was ordered");
    let change = SettingsChange { undelete_window_s: Some(0), ..SettingsChange::default() };
    world.command(&Command::Change(change)).unwrap();
    assert!(super::super::has_due_trash(&*world.kv, now).unwrap());
    let now = world.now();
    expire(&mut world, 0, now);
    make(&mut world, "d");
    assert_eq!((left(&world), count(&world, CHUNK)), (vec![], 0), "nothing is kept");
}

#[test]
fn empty_files_that_lived_for_a_moment_are_not_kept() {
    let mut world = world();
    world.file(0, ROOT, "lock", 0o644);
    unlink(&mut world, 0, ROOT, "lock", false);
    assert_eq!(list(&world, 0, None), []);
    world.file(0, ROOT, "old", 0o644);
    world.index += 60; // seconds
    unlink(&mut world, 0, ROOT, "old", false);
    assert_eq!(list(&world, 0, None).len(), 1);
    world.check();
}

#[test]
fn it_is_listed_page_by_page_each_entry_once() {
    let mut world = world();
    let dir = world.dir(0, ROOT, "d", 0o755);
    for number in 0..7 {
        written(&mut world, 0, dir, &format!("f{number}"));
    }
    for number in (0..7).rev() {
        unlink(&mut world, 0, dir, &format!("f{number}"), false);
    }
    for parent in [None, Some(dir)] {
        let (mut seen, mut after): (Vec<String>, Option<TrashPlace>) = (Vec::new(), None);
        loop {
            let TrashList { entries, next, .. } = page(&world, 0, TrashAsk { parent, after, limit: 3 });
            seen.extend(entries.into_iter().map(|entry| entry.name.to_string()));
            after = next;
            if after.is_none() {
                break;
            }
        }
        let by_number: Vec<String> = (0..7).map(|number| format!("f{number}")).collect();
        let wanted = if parent.is_some() { by_number } else { by_number.into_iter().rev().collect() };
        assert_eq!(seen, wanted, "{parent:?}");
    }
}

#[test]
fn any_row_of_the_trash_that_is_missing_is_noticed_and_its_keys_are_made_again() {
    let mut world = world();
    let ino = written(&mut world, 0, ROOT, "f");
    unlink(&mut world, 0, ROOT, "f", false);
    let open = written(&mut world, 0, ROOT, "open");
    unlink(&mut world, 0, ROOT, "open", true);
    let rows: Vec<_> = world.kv.scan(TRASH, (Bound::Unbounded, Bound::Unbounded), false).map(Result::unwrap).collect();
    assert_eq!(rows.len(), 4, "an entry and two keys, and a note");
    for (key, value) in rows {
        let mut batch = Batch::default();
        batch.delete(TRASH, key.to_vec());
        world.kv.write(batch).unwrap();
        let is_note = key[..] == keys::trash_entry(open);
        assert_eq!(check(&*world.kv).unwrap().is_empty(), is_note, "{key:?}");
        if key[..] != keys::trash_entry(ino) {
            mend(&mut world);
        }
        let mut batch = Batch::default();
        batch.put(TRASH, key.to_vec(), value.to_vec());
        world.kv.write(batch).unwrap();
        world.check();
    }
    // The other way round: keys and notes of nothing, and wrong counts.
    let mut batch = Batch::default();
    batch.put(TRASH, keys::trash_parent(ROOT, InodeId(99)), Vec::new());
    let row = world.kv.get(TRASH, &keys::trash_entry(open)).unwrap().unwrap();
    batch.put(TRASH, keys::trash_entry(InodeId(98)), row.to_vec());
    batch.put(keys::CLUSTER, keys::TRASH_STATE, TrashState { entries: 5, ..TrashState::default() }.encode());
    world.kv.write(batch).unwrap();
    assert_eq!(check(&*world.kv).unwrap().len(), 3);
    mend(&mut world);
    undelete(&mut world, 0, ino, ROOT, "f").unwrap();
    world.check();
}

fn mend(world: &mut World) {
    let (scan, at) = (LogIndex(world.index), world.now());
    let fixes = problems(&*world.kv).unwrap().into_iter().flat_map(|problem| problem.fixes).collect();
    assert_eq!(world.command(&Command::Fix { scan, batch: 1, fixes, at }), Ok(Done::Fixed));
    world.check();
}
