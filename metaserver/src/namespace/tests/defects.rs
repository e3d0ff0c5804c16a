//! The checker tells each defect that it looks for, planted alone: what mends it keeps every name and byte, and what
//! nothing mends is left as it is.

use super::super::{Counter, Fix, Problem, lock, problems};
use super::damage::{contents, mend, plant};
use super::*;
use crate::store::keys::{
    ATTEND, CHUNK, CLUSTER, DEGRADED, DENTRY, EXTENT, HOLDER, INODE, LIST, LOCK, LOCKED, ORPHAN, SESSION, TRASH, XATTR,
};
use crate::store::trash::TrashRow;
use crate::store::values::{
    Body, ChunkRow, Counters, Data, Degraded, Dentry, ExtentRow, Inode, Listed, LockRow, SessionRow, Value, WaitingLock,
};
use bytes::Bytes;
use common::kv::{Batch, Entry, Family};
use common::proto::lock::{Lock, LockAsk, LockHolder, LockKind, LockSpace};
use common::proto::meta::{FileKind, RenameMode, XattrMode};
use common::units::len_u64;
use std::ops::Bound;

/// `/d`, `/d/f`, `/d/sub` and `/d/sub/leaf`; something open without a name; something in the trash.
const DIR: InodeId = InodeId(2);
const FILE: InodeId = InodeId(3);
const SUB: InodeId = InodeId(4);
const LEAF: InodeId = InodeId(5);
const OPEN: InodeId = InodeId(6);
const BURIED: InodeId = InodeId(7);
/// Nothing has this number.
const NOTHING: InodeId = InodeId(99);

/// What [`FILE`] holds at 0 and at 60, at 20, and at 40.
const TWICE: &[u8] = b"three copies";
const SHORT: &[u8] = b"two copies";
const INLINE: &[u8] = b"inline";

/// The lock of [`FILE`].
const HELD: LockHolder = LockHolder {
    session: S1,
    lock: Lock { space: LockSpace::Range, owner: 1, kind: LockKind::Exclusive, start: 0, end: 9, pid: 1 },
};

/// A sound store with something of everything.
fn sound() -> World {
    let mut world = World::new();
    world.set_window(1000);
    assert_eq!(world.dir(0, ROOT, "d", 0o755), DIR);
    assert_eq!(world.file(0, DIR, "f", 0o644), FILE);
    assert_eq!(world.dir(0, DIR, "sub", 0o755), SUB);
    for (parent, text, ino) in [(SUB, "leaf", LEAF), (ROOT, "open", OPEN), (ROOT, "buried", BURIED)] {
        assert_eq!(world.file(0, parent, text, 0o644), ino);
        world.write(ino, 0, text.as_bytes()).unwrap();
    }
    let (twice, short) = (world.store(TWICE), world.store(SHORT));
    let chunk = |at, id, len| Edit { at, len, data: Source::Chunk { id, offset: 0 } };
    let inline = Source::Inline { id: ChunkId::of(INLINE), offset: 0, bytes: Bytes::from_static(INLINE) };
    let edits = vec![
        chunk(0, twice.id, 12),
        chunk(20, short.id, 10),
        Edit { at: 40, len: 6, data: inline },
        chunk(60, twice.id, 12),
    ];
    let chunks = vec![twice, stored(short.id, 10, 2)];
    world.commit(Commit { edits, chunks, grow: 72, ..empty(FILE) }).unwrap();
    world.op(0, Op::SetXattr { ino: FILE, name: b"user.x".to_vec(), value: vec![1], mode: XattrMode::Any }).unwrap();
    world.op(0, Op::Lock(LockAsk { ino: FILE, lock: HELD.lock, wait: false, detect: true })).unwrap();
    world.of(S2, cred(0), Op::Unlink { parent: ROOT, name: name("open"), keep: true }).unwrap();
    world.op(0, Op::Unlink { parent: ROOT, name: name("buried"), keep: false }).unwrap();
    world.check();
    world
}

/// All rows but what corrections leave of themselves.
fn all_rows(world: &World) -> Vec<(Family, Entry)> {
    let families = (0u8..).take(keys::FAMILIES.len()).map(Family);
    let all = families.flat_map(|family| {
        let rows = world.kv.scan(family, (Bound::Unbounded, Bound::Unbounded), false);
        rows.map(move |row| (family, row.unwrap()))
    });
    all.filter(|(_, (key, _))| key[..] != *keys::FIX).collect()
}

/// What is told of a store: exactly these lines, in this order.
fn told(world: &World, texts: &[&str]) -> Vec<Problem> {
    let found = problems(&*world.kv).unwrap();
    let same = found.iter().zip(texts).all(|(problem, text)| problem.text.contains(*text));
    assert!(same && found.len() == texts.len(), "{texts:?}: {found:#?}");
    found
}

/// Nothing mends this damage: it is told, and corrections leave all rows as they are.
fn stays(texts: &[&str], damage: impl FnOnce(&mut World)) {
    let mut world = sound();
    damage(&mut world);
    let (found, before) = (told(&world, texts), all_rows(&world));
    assert!(found.iter().all(|problem| problem.fixes.is_empty()), "{found:#?}");
    assert_eq!(mend(&mut world), Ok(Done::Fixed), "{texts:?}");
    assert_eq!((told(&world, texts), all_rows(&world)), (found, before));
}

/// The store after this damage was told and mended: nothing is wrong any more.
fn mended(texts: &[&str], damage: impl FnOnce(&mut World)) -> World {
    let mut world = sound();
    damage(&mut world);
    let found = told(&world, texts);
    assert!(found.iter().all(|problem| !problem.fixes.is_empty()), "{found:#?}");
    assert_eq!(mend(&mut world), Ok(Done::Fixed), "{texts:?}");
    world.check();
    world
}

/// As [`mended`], and all names and bytes are as they were.
fn mends(texts: &[&str], damage: impl FnOnce(&mut World)) -> World {
    let world = mended(texts, damage);
    assert_eq!(contents(&world), contents(&sound()), "{texts:?}");
    world
}

/// As [`mends`], of what has lost its name: what was at `was` is at `now`.
fn finds(texts: &[&str], was: &str, (now, bytes): (&str, &[u8]), damage: impl FnOnce(&mut World)) {
    let mut wanted = contents(&sound());
    wanted.retain(|(path, _)| path != was);
    wanted.push((now.to_owned(), bytes.to_vec()));
    wanted.sort();
    assert_eq!(contents(&mended(texts, damage)), wanted, "{texts:?}");
}

/// A row that is there.
fn row<V: Value>(world: &World, family: Family, key: &[u8]) -> V {
    V::decode(&world.kv.get(family, key).unwrap().expect("it is there")).unwrap()
}

/// Changes a row that is there.
fn change<V: Value>(world: &World, family: Family, key: &[u8], change: impl FnOnce(&mut V)) {
    let mut value: V = row(world, family, key);
    change(&mut value);
    plant(world, family, key, Some(value.encode()));
}

fn change_inode(world: &World, ino: InodeId, to: impl FnOnce(&mut Inode)) {
    change::<Inode>(world, INODE, &keys::inode(ino), to);
}

/// Changes an extent of [`FILE`].
fn change_extent(world: &World, at: u64, to: impl FnOnce(&mut ExtentRow)) {
    change::<ExtentRow>(world, EXTENT, &keys::extent(FILE.0, at), to);
}

/// An extent of inline bytes, and their id.
fn inline(bytes: &'static [u8]) -> ExtentRow {
    let data = Data::Inline { id: ChunkId::of(bytes), offset: 0, bytes: Bytes::from_static(bytes) };
    ExtentRow { len: len_u64(bytes.len()), data }
}

/// Both rows of an entry, and nothing that counts it.
fn plant_entry(world: &World, (parent, text): (InodeId, &str), cookie: u64, (ino, kind): (InodeId, FileKind)) {
    let (dentry, listed) = (Dentry { ino, kind, cookie }, Listed { ino, kind, name: name(text) });
    plant(world, DENTRY, &keys::dentry(parent, &name(text)), Some(dentry.encode()));
    plant(world, LIST, &keys::list(parent, cookie), Some(listed.encode()));
}

fn lose_entry(world: &World, (parent, text): (InodeId, &str), cookie: u64) {
    plant(world, DENTRY, &keys::dentry(parent, &name(text)), None);
    plant(world, LIST, &keys::list(parent, cookie), None);
}

/// A directory counts this many entries and subdirectories more, and one cookie.
fn count(world: &World, dir: InodeId, more: i64, subdirs: i32) {
    change_inode(world, dir, |inode| {
        inode.nlink = inode.nlink.checked_add_signed(subdirs).unwrap();
        if let Body::Dir { entries, next_cookie, .. } = &mut inode.body {
            *entries = entries.checked_add_signed(more).unwrap();
            *next_cookie += 1;
        }
    });
}

/// The locks of a file, and the rows of their owners.
fn plant_locks(world: &World, ino: InodeId, row: &LockRow) {
    plant(world, LOCK, &keys::inode(ino), Some(row.encode()));
    for holder in lock::all(row) {
        plant(world, LOCKED, &keys::locked(holder.session, holder.lock.owner, ino), Some(Vec::new()));
    }
}

/// Both rows of an orphan, or neither.
fn plant_orphan(world: &World, session: SessionId, ino: InodeId, there: bool) {
    let value = there.then(Vec::new);
    plant(world, ORPHAN, &keys::orphan(session, ino), value.clone());
    plant(world, HOLDER, &keys::holder(ino, session), value);
}

#[test]
fn locks_that_contradict_each_other_or_have_half_of_their_rows_are_told() {
    let other = LockHolder { session: S2, ..HELD };
    let own = LockHolder { lock: Lock { kind: LockKind::Shared, start: 5, end: 20, ..HELD.lock }, ..HELD };
    let waiting = WaitingLock { number: 1, holder: HELD };
    for impossible in [
        LockRow { held: vec![HELD, other], queue: Vec::new() },
        LockRow { held: vec![HELD, own], queue: Vec::new() },
        LockRow { held: Vec::new(), queue: vec![waiting] }, // nobody is in its way
    ] {
        stays(&["i3: impossible locks"], |world| plant_locks(world, FILE, &impossible));
    }
    let held = LockRow { held: vec![HELD], queue: Vec::new() };
    mends(&["i99: locks of what is not there"], |world| plant_locks(world, NOTHING, &held));
    let unknown = format!("i3: a lock that its owner {S1} is not known to have");
    let own = keys::locked(S1, HELD.lock.owner, FILE);
    let world = mends(&[unknown.as_str()], |world| plant(world, LOCKED, &own, None));
    assert!(world.kv.get(LOCKED, &own).unwrap().is_some(), "it ends with its session");
    mends(&["i3: the owner of a lock that is not there"], |world| plant(world, LOCK, &keys::inode(FILE), None));
}

#[test]
fn locks_of_sessions_that_have_ended_go_and_who_waited_for_them_has_theirs() {
    let ended = SessionId(999);
    let blocker = LockHolder { session: ended, ..HELD };
    let queue = vec![WaitingLock { number: 1, holder: HELD }];
    let world = mends(&[format!("i3: a lock of {ended}, which is not open").as_str()], |world| {
        plant_locks(world, FILE, &LockRow { held: vec![blocker], queue });
    });
    assert_eq!(row::<LockRow>(&world, LOCK, &keys::inode(FILE)), LockRow { held: vec![HELD], queue: Vec::new() });
}

#[test]
fn directories_in_a_loop_are_told() {
    stays(&["i2: does not hang on the root", "i4: does not hang on the root"], |world| {
        lose_entry(world, (ROOT, "d"), 1);
        count(world, ROOT, -1, -1);
        plant_entry(world, (SUB, "d"), 2, (DIR, FileKind::Dir));
        count(world, SUB, 1, 1);
        hang_at(world, DIR, SUB);
    });
}

/// Between the look and the correction it was moved.
#[test]
fn a_directory_that_was_moved_meanwhile_stays_where_it_is() {
    let mut world = sound();
    hang_at(&world, SUB, ROOT);
    let scan = LogIndex(world.index);
    let fixes: Vec<Fix> = problems(&*world.kv).unwrap().into_iter().flat_map(|problem| problem.fixes).collect();
    assert!(matches!(fixes.as_slice(), [Fix::Parent { .. }]), "{fixes:?}");
    let (entry, _) =
        world.list(DIR, 0, 100).0.into_iter().map(|entry| (entry.name, entry.ino)).find(|one| one.1 == SUB).unwrap();
    let (mode, keep) = (RenameMode::Replace, false);
    let rename = Op::Rename { from: DIR, from_name: entry, to: ROOT, to_name: name("moved"), mode, keep };
    world.op(0, rename).unwrap();
    world.check();
    let at = world.now();
    assert_eq!(world.command(&Command::Fix { scan, batch: 1, fixes, at }), Ok(Done::Fixed));
    world.check();
}

fn hang_at(world: &World, dir: InodeId, at: InodeId) {
    change_inode(world, dir, |inode| {
        if let Body::Dir { parent, .. } = &mut inode.body {
            *parent = at;
        }
    });
}

/// Where one is below the directory itself, that is the one that goes, whatever the directory says; what is in it stays.
#[test]
fn a_directory_with_two_names_keeps_the_one_where_it_hangs() {
    for (parent, cookie, hangs) in [(ROOT, 4, DIR), (SUB, 2, DIR), (SUB, 2, SUB)] {
        let second = format!("i4: a directory with another name, \"again\" in {parent}");
        let wrong = format!("i4: its parent is {hangs}, its entry in {DIR}");
        let texts = if hangs == SUB { vec![wrong.as_str(), second.as_str()] } else { vec![second.as_str()] };
        let mut world = sound();
        plant_entry(&world, (parent, "again"), cookie, (SUB, FileKind::Dir));
        count(&world, parent, 1, 1);
        hang_at(&world, SUB, hangs);
        let found = problems(&*world.kv).unwrap();
        for text in texts {
            assert!(found.iter().any(|problem| problem.text.contains(text)), "{text}: {found:#?}");
        }
        assert_eq!(mend(&mut world), Ok(Done::Fixed));
        world.check();
        assert_eq!(contents(&world), contents(&sound()));
    }
    let both = mended(&["i4: a directory with another name, \"sub\" in i2"], |world| {
        plant_entry(world, (DIR, "again"), 3, (SUB, FileKind::Dir));
        count(world, DIR, 1, 1);
    });
    let names: Vec<String> = contents(&both).into_iter().map(|(path, _)| path).collect();
    assert!(names.contains(&"/d/again/leaf".to_owned()) && !names.contains(&"/d/sub/leaf".to_owned()), "{names:?}");
}

#[test]
fn a_root_directory_with_a_name_is_told() {
    stays(&["i1: the root directory has a name"], |world| {
        plant_entry(world, (DIR, "up"), 3, (ROOT, FileKind::Dir));
        count(world, DIR, 1, 1);
    });
}

#[test]
fn entries_that_lead_nowhere_or_are_in_no_directory_are_told() {
    stays(&["leads to i99, which is not there or of another kind"], |world| {
        plant_entry(world, (DIR, "ghost"), 3, (NOTHING, FileKind::File));
        count(world, DIR, 1, 0);
    });
    for (parent, text) in
        [(FILE, "entries in what is no directory: [3]"), (NOTHING, "entries in what is no directory: [99]")]
    {
        stays(&[text], |world| {
            plant_entry(world, (parent, "x"), 1, (FILE, FileKind::File));
            change_inode(world, FILE, |inode| inode.nlink += 1);
        });
    }
}

#[test]
fn an_entry_that_its_listing_or_its_inode_contradicts_is_made_anew() {
    mends(&["and its listing differ"], |world| {
        let wrong = Listed { ino: LEAF, kind: FileKind::File, name: name("f") };
        plant(world, LIST, &keys::list(DIR, 1), Some(wrong.encode()));
    });
    mends(&["leads to i3, which is not there or of another kind"], |world| {
        plant_entry(world, (DIR, "f"), 1, (FILE, FileKind::Fifo));
    });
    mends(&["i4: its parent is i1, its entry in i2"], |world| hang_at(world, SUB, ROOT));
    // What is below it needs no correction of its own.
    mends(&["i2: its parent is i99, its entry in i1"], |world| hang_at(world, DIR, NOTHING));
    let lost = ["i2: listing 1 of i3 without an entry", "i2: counts 2 entries, has 1", "i3: nlink 1, 0 entries"];
    mends(&lost, |world| plant(world, DENTRY, &keys::dentry(DIR, &name("f")), None));
    mends(&["i2: listing 3 of i3 without an entry"], |world| {
        let second = Listed { ino: FILE, kind: FileKind::File, name: name("f") };
        plant(world, LIST, &keys::list(DIR, 3), Some(second.encode()));
        count(world, DIR, 0, 0);
    });
}

#[test]
fn where_an_entry_and_its_listing_have_different_names_both_names_are_kept() {
    let mut world = sound();
    let other = Listed { ino: FILE, kind: FileKind::File, name: name("other") };
    plant(&world, LIST, &keys::list(DIR, 1), Some(other.encode()));
    told(&world, &["and its listing differ"]);
    mend(&mut world).unwrap();
    told(&world, &["i2: listing 1 of i3 without an entry"]); // its name has a listing of its own now
    mend(&mut world).unwrap();
    world.check();
    let mut wanted = contents(&sound());
    wanted.push(("/d/other".to_owned(), world.read(FILE)));
    wanted.sort();
    assert_eq!(contents(&world), wanted);
}

#[test]
fn each_count_of_an_inode_that_is_off_is_told_by_its_name_and_set_right() {
    type Damage = fn(&mut Inode);
    let damages: [(&str, InodeId, Damage); 8] = [
        ("i2: nlink 6 of 3", DIR, |inode| inode.nlink += 3),
        ("i3: nlink 2, 1 entries", FILE, |inode| inode.nlink += 1),
        ("i3: 8 bytes of names, has 7", FILE, |inode| inode.xattr_names += 1),
        ("i2: counts 4 entries, has 2", DIR, |inode| {
            if let Body::Dir { entries, .. } = &mut inode.body {
                *entries += 2;
            }
        }),
        ("i2: next cookie 1, 2 is taken", DIR, |inode| {
            if let Body::Dir { next_cookie, .. } = &mut inode.body {
                *next_cookie = 1;
            }
        }),
        ("i3: counts 5 extents of 40 bytes, has 4 of 40", FILE, |inode| {
            if let Body::File { extents, .. } = &mut inode.body {
                *extents += 1;
            }
        }),
        ("i3: counts 4 extents of 0 bytes, has 4 of 40", FILE, |inode| {
            if let Body::File { allocated, .. } = &mut inode.body {
                *allocated = 0;
            }
        }),
        ("i3: extents to 72, size 0", FILE, |inode| {
            if let Body::File { size, .. } = &mut inode.body {
                *size = 0;
            }
        }),
    ];
    for (text, ino, damage) in damages {
        mends(&[text], |world| change_inode(world, ino, damage));
    }
}

#[test]
fn what_has_no_name_gets_one_in_lost_and_found() {
    finds(&["i4: a directory without an entry"], "/d/sub/leaf", ("/lost+found/i4/leaf", b"leaf"), |world| {
        lose_entry(world, (DIR, "sub"), 2);
        count(world, DIR, -1, -1);
    });
    let bytes = sound().read(FILE);
    for (text, nlink) in [("i3: nlink 1, 0 entries", 1), ("i3: has no name and is nobody's orphan", 0)] {
        finds(&[text], "/d/f", ("/lost+found/i3", &bytes), |world| {
            lose_entry(world, (DIR, "f"), 1);
            count(world, DIR, -1, 0);
            change_inode(world, FILE, |inode| inode.nlink = nlink);
        });
    }
    let forgotten = ["i6: has no name and is nobody's orphan", "i6: noted as open, but no orphan"];
    finds(&forgotten, "", ("/lost+found/i6", b"open"), |world| plant_orphan(world, S2, OPEN, false));
    finds(&["i6: orphan of a session not open"], "", ("/lost+found/i6", b"open"), |world| {
        change::<SessionRow>(world, SESSION, &keys::session(S2), |row| row.ended = true);
        change::<Counters>(world, CLUSTER, keys::COUNTERS, |counters| counters.sessions -= 1);
        plant(world, TRASH, &keys::trash_entry(OPEN), None);
    });
    let nobodys = ["number 99 is in use, the next is 8", "data 99: 1 extents of nobody"];
    finds(&nobodys, "", ("/lost+found/data-99", INLINE), |world| {
        plant(world, EXTENT, &keys::extent(NOTHING.0, 0), Some(inline(INLINE).encode()));
    });
}

#[test]
fn orphans_and_their_holders_that_do_not_agree_are_told_and_put_right() {
    mends(&["i3: an orphan with names, or not there"], |world| plant_orphan(world, S1, FILE, true));
    mends(&["i99: an orphan with names, or not there"], |world| plant_orphan(world, S1, NOTHING, true));
    let held = format!("i3: held by {S1}, but no orphan");
    mends(&[held.as_str()], |world| plant(world, HOLDER, &keys::holder(FILE, S1), Some(Vec::new())));
    let missing = format!("i6: an orphan of {S2} without a holder row");
    let mut world = mends(&[missing.as_str()], |world| plant(world, HOLDER, &keys::holder(OPEN, S2), None));
    world.of(S2, cred(0), Op::Release { ino: OPEN }).unwrap();
    world.check();
    // Of a session that has ended, and of one that still has it open: it gets no name.
    let ended = ["i6: orphan of a session not open"];
    let mut world = mends(&ended, |world| plant_orphan(world, SessionId(9), OPEN, true));
    world.of(S2, cred(0), Op::Release { ino: OPEN }).unwrap();
    world.check();
}

#[test]
fn sessions_that_are_not_open_take_no_leases() {
    let text = format!("{} takes leases, but is not open", SessionId(9));
    mends(&[text.as_str()], |world| plant(world, ATTEND, &keys::session(SessionId(9)), Some(Vec::new())));
}

#[test]
fn an_inode_whose_kind_its_body_contradicts_is_told_and_nothing_is_touched() {
    let mut world = sound();
    change_inode(&world, FILE, |inode| inode.kind = FileKind::Dir);
    let found = problems(&*world.kv).unwrap();
    assert!(found.iter().any(|problem| problem.text.contains("its kind and what it holds do not fit")), "{found:#?}");
    assert!(found.iter().all(|problem| problem.fixes.is_empty()), "{found:#?}");
    assert_eq!(mend(&mut world), Ok(Done::Fixed));
}

#[test]
fn without_its_configuration_a_store_is_not_sound() {
    let world = sound();
    plant(&world, CLUSTER, keys::CONFIG, None);
    let found = problems(&*world.kv).unwrap();
    assert!(found.len() == 1 && found[0].text.contains("formatted with is not there"), "{found:#?}");
}

#[test]
fn what_the_trash_has_and_counts_is_told_and_put_right() {
    let buried = || -> TrashRow { row(&sound(), TRASH, &keys::trash_entry(BURIED)) };
    mends(&["i3: noted as open, but no orphan"], |world| {
        let note = TrashRow { inode: Vec::new(), ..buried() };
        plant(world, TRASH, &keys::trash_entry(FILE), Some(note.encode()));
    });
    let at = buried().at;
    for own in [keys::trash_time(at, BURIED), keys::trash_parent(ROOT, BURIED)] {
        mends(&["i7: in the trash, but not found there"], |world| plant(world, TRASH, &own, None));
    }
    let later = Time { secs: at.secs + 1, ..at };
    for stray in [keys::trash_time(at, NOTHING), keys::trash_time(later, BURIED), keys::trash_parent(DIR, BURIED)] {
        mends(&["the trash has a key of no entry"], |world| plant(world, TRASH, &stray, Some(Vec::new())));
    }
    for (text, entries, bytes) in [
        ("the trash counts 2 entries of 6 bytes, it has 1 of 6", 1, 0),
        ("the trash counts 1 entries of 11 bytes, it has 1 of 6", 0, 5),
    ] {
        mends(&[text], |world| {
            change::<TrashState>(world, CLUSTER, keys::TRASH_STATE, |state| {
                state.entries += entries;
                state.bytes += bytes;
            });
        });
    }
    let mut world = mends(&["i7: counts 2 extents of 6 bytes, has 1 of 6"], |world| {
        change::<TrashRow>(world, TRASH, &keys::trash_entry(BURIED), |row| {
            let mut inode = Inode::decode(&row.inode).unwrap();
            if let Body::File { extents, .. } = &mut inode.body {
                *extents += 1;
            }
            row.inode = inode.encode();
        });
    });
    world.op(0, Op::Undelete { ino: BURIED, parent: ROOT, name: name("back") }).unwrap();
    assert_eq!(world.read(BURIED), b"buried");
    world.check();
}

#[test]
fn what_is_there_and_in_the_trash_is_told() {
    let mut world = mended(&["i7: there, and in the trash"], |world| {
        let buried: TrashRow = row(world, TRASH, &keys::trash_entry(BURIED));
        world.op(0, Op::Undelete { ino: BURIED, parent: ROOT, name: name("back") }).unwrap();
        world.check();
        plant(world, TRASH, &keys::trash_entry(BURIED), Some(buried.encode()));
        for key in [keys::trash_time(buried.at, BURIED), keys::trash_parent(buried.parent, BURIED)] {
            plant(world, TRASH, &key, Some(Vec::new()));
        }
    });
    let at = Time { secs: i64::MAX / 2, nanos: 0 };
    assert_eq!(world.command(&Command::Expire { bytes: u64::MAX, at }), Ok(Done::Purged { more: false }));
    assert_eq!(world.read(BURIED), b"buried", "what is there does not go with the trash");
    world.check();
}

#[test]
fn extents_that_cannot_be_are_told() {
    stays(&["data 3: extent at 8 overlaps or is empty"], |world| {
        let moved: ExtentRow = row(world, EXTENT, &keys::extent(FILE.0, 20));
        plant(world, EXTENT, &keys::extent(FILE.0, 20), None);
        plant(world, EXTENT, &keys::extent(FILE.0, 8), Some(moved.encode()));
    });
    stays(&["data 3: extent at 32 overlaps or is empty"], |world| {
        plant(world, EXTENT, &keys::extent(FILE.0, 32), Some(inline(b"").encode()));
        change_inode(world, FILE, |inode| {
            if let Body::File { extents, .. } = &mut inode.body {
                *extents += 1;
            }
        });
    });
    let disagree = format!("chunk {}: extents disagree about its length", ChunkId::of(TWICE));
    stays(&[disagree.as_str()], |world| {
        change_extent(world, 60, |row| {
            if let Data::Chunk { chunk_len, .. } = &mut row.data {
                *chunk_len += 1;
            }
        });
    });
    let others = format!("data 3: inline bytes at 40 are not {}", ChunkId::of(INLINE));
    stays(&[others.as_str()], |world| {
        change_extent(world, 40, |row| {
            if let Data::Inline { bytes, .. } = &mut row.data {
                *bytes = Bytes::from_static(b"others");
            }
        });
    });
    for (at, text) in
        [(20, "data 3: extent at 20 is longer than its bytes"), (40, "data 3: extent at 40 is longer than its bytes")]
    {
        stays(&[text], |world| {
            change_extent(world, at, |row| match &mut row.data {
                Data::Chunk { offset, .. } | Data::Inline { offset, .. } => *offset += 1,
            });
        });
    }
}

#[test]
fn attributes_of_nothing_are_told() {
    stays(&["attributes without an inode: [99]"], |world| {
        plant(world, XATTR, &keys::xattr(NOTHING, b"user.x"), Some(vec![1]));
    });
}

#[test]
fn rows_of_chunks_are_made_what_the_extents_add_up_to() {
    let twice = keys::chunk(&ChunkId::of(TWICE));
    mends(&["row ChunkRow { len: 12, refs: {3: 77, 5: 1} }, counted Some((12, {3: 2}))"], |world| {
        change::<ChunkRow>(world, CHUNK, &twice, |row| row.refs = [(3, 77), (5, 1)].into());
    });
    let longer = [
        "the cluster counts 36 bytes of chunks, the rows add up to 37",
        "row ChunkRow { len: 13, refs: {3: 2} }, counted Some((12, {3: 2}))",
    ];
    mends(&longer, |world| change::<ChunkRow>(world, CHUNK, &twice, |row| row.len += 1));
    let missing = [
        "the cluster counts 5 chunks, the rows add up to 4",
        "the cluster counts 36 bytes of chunks, the rows add up to 24",
        "no row, counted (12, {3: 2})",
    ];
    mends(&missing, |world| plant(world, CHUNK, &twice, None));
    let stray = [
        "the cluster counts 5 chunks, the rows add up to 6",
        "the cluster counts 36 bytes of chunks, the rows add up to 44",
        "chunk 3f3f3f3f3f3f: row ChunkRow { len: 8, refs: {3: 1} }, counted None",
    ];
    mends(&stray, |world| {
        let row = ChunkRow { len: 8, refs: [(3, 1)].into() };
        plant(world, CHUNK, &keys::chunk(&ChunkId([0x3f; 32])), Some(row.encode()));
    });
    let empty = [stray[0], stray[1], "chunk 3f3f3f3f3f3f: row ChunkRow { len: 8, refs: {} }, counted None"];
    mends(&empty, |world| {
        let row = ChunkRow { len: 8, refs: [].into() };
        plant(world, CHUNK, &keys::chunk(&ChunkId([0x3f; 32])), Some(row.encode()));
    });
}

#[test]
fn degraded_rows_of_no_chunk_go_and_those_with_impossible_servers_are_told() {
    let degraded = |id: ChunkId| keys::degraded(id.pg(16), &id);
    let stray =
        ["the cluster counts 1 degraded chunks, the rows add up to 2", "degraded 3f3f3f3f3f3f: the chunk is not there"];
    mends(&stray, |world| {
        plant(world, DEGRADED, &degraded(ChunkId([0x3f; 32])), Some(Degraded::default().encode()));
    });
    // Also if the counter is off, and would go below 0.
    let lost = ["the cluster counts 0 degraded chunks, the rows add up to 2", stray[1]];
    mends(&lost, |world| {
        change::<Counters>(world, CLUSTER, keys::COUNTERS, |counters| counters.degraded = 0);
        plant(world, DEGRADED, &degraded(ChunkId([0x3f; 32])), Some(Degraded::default().encode()));
    });
    let id = ChunkId::of(SHORT);
    let wrong = [&[0xff; 4][..], &id.0].concat();
    let elsewhere = format!("degraded {id}: it is under another placement group");
    let world = mends(&[elsewhere.as_str()], |world| {
        let moved: Degraded = row(world, DEGRADED, &degraded(id));
        plant(world, DEGRADED, &degraded(id), None);
        plant(world, DEGRADED, &wrong, Some(moved.encode()));
    });
    assert!(world.kv.get(DEGRADED, &degraded(id)).unwrap().is_some(), "it is where repair looks");
    for servers in [[ServerId(2), ServerId(1)], [ServerId(1), ServerId(1)]] {
        let text = format!("degraded {id}: {servers:?}");
        stays(&[text.as_str()], |world| {
            change::<Degraded>(world, DEGRADED, &degraded(id), |row| row.servers = servers.to_vec());
        });
    }
}

#[test]
fn each_counter_of_the_cluster_that_is_off_is_told_and_set_right() {
    for counter in [
        Counter::Inodes,
        Counter::LogicalBytes,
        Counter::Chunks,
        Counter::ChunkBytes,
        Counter::Degraded,
        Counter::Sessions,
    ] {
        for off in [1i64, -1] {
            let have = *counter.of(&mut row(&sound(), CLUSTER, keys::COUNTERS));
            let counts = have.checked_add_signed(off).unwrap();
            let text = format!("the cluster counts {counts} {counter}, the rows add up to {have}");
            mends(&[text.as_str()], |world| {
                change::<Counters>(world, CLUSTER, keys::COUNTERS, |counters| *counter.of(counters) = counts);
            });
        }
    }
}

#[test]
fn no_inode_number_is_given_out_twice_after_the_next_one_was_lost() {
    let mut world = mends(&["number 7 is in use, the next is 2"], |world| {
        change::<Counters>(world, CLUSTER, keys::COUNTERS, |counters| counters.next_ino = 2);
    });
    assert_eq!(world.file(0, ROOT, "new", 0o644), InodeId(8), "what is in the trash has its number too");
    world.check();
    // Also not to /lost+found, which the same repair makes.
    let texts = ["number 7 is in use, the next is 2", "i4: a directory without an entry"];
    finds(&texts, "/d/sub/leaf", ("/lost+found/i4/leaf", b"leaf"), |world| {
        change::<Counters>(world, CLUSTER, keys::COUNTERS, |counters| counters.next_ino = 2);
        lose_entry(world, (DIR, "sub"), 2);
        count(world, DIR, -1, -1);
    });
}

#[test]
fn without_a_root_directory_nothing_else_is_touched() {
    let root: Inode = row(&sound(), INODE, &keys::inode(ROOT));
    let body = Body::File { size: 0, allocated: 0, extents: 0, version: DataVersion(0), data: ROOT.0 };
    let file = Inode { kind: FileKind::File, body, ..root.clone() };
    let rest = |world: &World| -> Vec<(Family, Entry)> {
        let mut rows = all_rows(world);
        rows.retain(|(family, (key, _))| *family != CLUSTER && (*family != INODE || key[..] != keys::inode(ROOT)));
        rows
    };
    for damaged in [None, Some(file.encode())] {
        let mut world = sound();
        let (before, names) = (rest(&world), contents(&world));
        plant(&world, INODE, &keys::inode(ROOT), damaged);
        for _round in 0..2 {
            let found = problems(&*world.kv).unwrap();
            let own = found.iter().find(|problem| problem.text == "no root directory");
            assert!(own.is_some_and(|problem| problem.fixes.is_empty()), "{found:#?}");
            assert_eq!(mend(&mut world), Ok(Done::Fixed));
            assert_eq!(rest(&world), before);
        }
        plant(&world, INODE, &keys::inode(ROOT), Some(root.encode()));
        mend(&mut world).unwrap(); // it was not counted
        world.check();
        assert_eq!(contents(&world), names);
    }
}

#[test]
fn rows_of_locks_and_of_the_trash_that_cannot_be_read_are_told() {
    let buried: TrashRow = row(&sound(), TRASH, &keys::trash_entry(BURIED));
    let within = TrashRow { inode: vec![99], ..buried };
    for (family, key, value) in [
        (LOCK, keys::inode(FILE).to_vec(), vec![99]),
        (TRASH, keys::trash_entry(BURIED), vec![99]),
        (TRASH, keys::trash_entry(BURIED), within.encode()),
        (TRASH, keys::trash_times().to_vec(), Vec::new()), // no inode in the key
    ] {
        let mut world = sound();
        plant(&world, family, &key, Some(value));
        let (found, before) = (problems(&*world.kv).unwrap(), all_rows(&world));
        let what = keys::FAMILIES[usize::from(family.0)];
        let is_own = |problem: &Problem| problem.text.starts_with(what) && problem.text.contains("cannot be read");
        assert!(found.iter().any(is_own), "{key:?}: {found:#?}");
        assert!(found.iter().all(|problem| problem.fixes.is_empty()), "{key:?}: {found:#?}");
        assert_eq!(mend(&mut world), Ok(Done::Fixed));
        assert_eq!(all_rows(&world), before);
    }
}

#[test]
fn problems_beyond_the_limit_are_counted() {
    let world = World::new();
    let mut batch = Batch::default();
    for ino in 0..100_002 {
        batch.put(HOLDER, keys::holder(InodeId(100 + ino), S1), Vec::new());
    }
    world.kv.write(batch).unwrap();
    let found = problems(&*world.kv).unwrap();
    assert_eq!(found.len(), 100_001);
    assert_eq!(found.last().unwrap().text, "and 2 more");
}
