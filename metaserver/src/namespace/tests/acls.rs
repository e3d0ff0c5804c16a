//! Access control lists: the algorithm of `acl(5)`, and that ACL and mode never disagree.

use super::*;
use crate::namespace::acl::ENTRIES_MAX;
use common::proto::meta::{ACCESS_EXEC, ACCESS_READ, ACCESS_WRITE, MODE_ACL, MODE_DEFAULT_ACL, SetAttr, XattrMode};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// An entry as Linux has it: tag, permissions, id.
type Entry = (u16, u16, u32);

/// An ACL of all kinds of entries, in Linux' bytes.
pub(super) fn sample() -> Vec<u8> {
    acl("u::7,u:7:6,u:300:4,g::5,g:8:1,m::6,o::4")
}

/// An ACL in the short text form of `acl(5)`, with numbers: `u::6,u:7:4,g::0,m::4,o::0`.
fn entries(text: &str) -> Vec<Entry> {
    text.split(',')
        .map(|part| {
            let [kind, id, perm] = part.split(':').collect::<Vec<_>>().try_into().unwrap();
            let tag = match (kind, id) {
                ("u", "") => 1,
                ("u", _) => 2,
                ("g", "") => 4,
                ("g", _) => 8,
                ("m", _) => 16,
                ("o", _) => 32,
                other => panic!("{other:?}"),
            };
            (tag, perm.parse().unwrap(), if id.is_empty() { u32::MAX } else { id.parse().unwrap() })
        })
        .collect()
}

/// In Linux' bytes.
fn bytes(entries: &[Entry]) -> Vec<u8> {
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

fn acl(text: &str) -> Vec<u8> {
    bytes(&entries(text))
}

impl World {
    fn file_of(&mut self, uid: u32, gid: u32) -> InodeId {
        let ino = self.file(0, ROOT, "f", 0o644);
        self.op(0, Op::SetAttr { ino, set: SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() } }).unwrap();
        ino
    }

    fn set_acl(&mut self, uid: u32, ino: InodeId, name: &[u8], value: Vec<u8>) -> Result<Attr, Kind> {
        let op = Op::SetXattr { ino, name: name.to_vec(), value, mode: XattrMode::Any };
        match self.op(uid, op) {
            Ok(Outcome::Attr(attr)) => Ok(attr),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.kind),
        }
    }

    fn acl(&self, ino: InodeId, name: &[u8]) -> Option<Vec<u8>> {
        match self.ask(5, Query::GetXattr { ino, name: name.to_vec() }) {
            Ok(Answer::Value(value)) => Some(value),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => {
                assert_eq!(fault.kind, Kind::NoData);
                None
            }
        }
    }

    fn may(&self, cred: &Cred, ino: InodeId, access: u8) -> bool {
        let ask = Ask {
            session: S1,
            cred: cred.clone(),
            query: Query::Open { ino, access, ahead: Vec::new() },
            lease: false,
        };
        let ctx = QueryCtx::new(&config(&*self.kv).unwrap().unwrap());
        match query(&*self.kv, LogIndex(self.index), &ask, &ctx).map_err(Fault::from) {
            Ok(_) => true,
            Err(fault) => {
                assert_eq!(fault.kind, Kind::Denied);
                false
            }
        }
    }
}

fn who(uid: u32, gid: u32, groups: &[u32]) -> Cred {
    Cred { uid, gid, groups: groups.to_vec() }
}

#[test]
fn the_first_entry_that_fits_decides_and_the_mask_limits_all_but_owner_and_others() {
    let mut world = World::new();
    let ino = world.file_of(5, 6);
    let (r, w, x) = (ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC);
    for (text, cred, granted, refused) in [
        // The owner is none but the owner.
        ("u::0,u:5:7,g::7,m::7,o::7", who(5, 6, &[]), 0, r),
        ("u::7,g::0,m::0,o::0", who(5, 9, &[]), r | w | x, 0),
        // A named user is not looked up among the groups.
        ("u::7,u:7:4,g::7,m::7,o::7", who(7, 6, &[]), r, w),
        ("u::7,u:7:7,g::0,m::5,o::0", who(7, 9, &[]), r | x, w),
        ("u::7,u:7:0,g::7,g:9:7,m::7,o::7", who(7, 9, &[6]), 0, x),
        // Any group may grant, but one alone must grant it all.
        ("u::7,g::4,g:9:2,m::7,o::7", who(7, 6, &[9]), r, r | w),
        ("u::7,g::4,g:9:2,m::7,o::7", who(7, 9, &[6]), w, x),
        ("u::7,g::0,g:9:6,m::4,o::7", who(7, 8, &[9]), r, w),
        // A member of a group is no other.
        ("u::7,g::0,m::7,o::7", who(7, 6, &[]), 0, r),
        ("u::7,g::7,g:9:0,m::7,o::7", who(7, 9, &[]), 0, r),
        ("u::7,u:8:7,g::7,g:9:7,m::7,o::4", who(7, 10, &[11]), r, w),
        // An empty mask grants nothing to those it limits.
        ("u::7,u:7:7,g::7,m::0,o::7", who(7, 9, &[]), 0, r),
    ] {
        world.set_acl(5, ino, ACCESS, acl(text)).unwrap();
        assert!(world.may(&cred, ino, granted), "{text}: {cred:?} may {granted}");
        assert!(refused == 0 || !world.may(&cred, ino, refused), "{text}: {cred:?} may not {refused}");
        assert!(world.may(&who(0, 0, &[]), ino, r | w), "root may");
    }
    world.check();
}

/// What `acl(5)` says under "access check algorithm", sentence by sentence.
fn model(entries: &[Entry], (owner, group): (u32, u32), cred: &Cred, want: u16) -> bool {
    let find = |tag: u16, id: u32| entries.iter().find(|entry| entry.0 == tag && entry.2 == id).map(|entry| entry.1);
    let mask = find(16, u32::MAX).unwrap_or(7);
    if cred.uid == owner {
        return find(1, u32::MAX).unwrap() & want == want;
    }
    if let Some(perm) = find(2, cred.uid) {
        return perm & want == want && mask & want == want;
    }
    let in_group = |gid: u32| gid == cred.gid || cred.groups.contains(&gid);
    let owning = in_group(group).then(|| find(4, u32::MAX).unwrap());
    let named = entries.iter().filter(|entry| entry.0 == 8 && in_group(entry.2)).map(|entry| entry.1);
    let of_groups: Vec<u16> = owning.into_iter().chain(named).collect();
    if !of_groups.is_empty() {
        return of_groups.iter().any(|perm| perm & want == want) && mask & want == want;
    }
    find(32, u32::MAX).unwrap() & want == want
}

#[test]
fn any_acl_grants_what_the_text_of_the_manual_says() {
    let mut world = World::new();
    let ino = world.file_of(1, 1);
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut draw = |end: u32| random.random_range(0..end);
        let perm = |n: u32| u16::try_from(n).unwrap();
        let mut entries = vec![(1, perm(draw(8)), u32::MAX)];
        let named = draw(2) == 1;
        let ids = |tag: u16, entries: &mut Vec<Entry>, draw: &mut dyn FnMut(u32) -> u32| {
            (1..5).filter(|_| named).for_each(|id| {
                if draw(2) == 1 {
                    entries.push((tag, perm(draw(8)), id));
                }
            });
        };
        ids(2, &mut entries, &mut draw);
        entries.push((4, perm(draw(8)), u32::MAX));
        ids(8, &mut entries, &mut draw);
        if named || draw(2) == 1 {
            entries.push((16, perm(draw(8)), u32::MAX));
        }
        entries.push((32, perm(draw(8)), u32::MAX));
        world.set_acl(1, ino, ACCESS, bytes(&entries)).unwrap();
        let minimal = entries.len() == 3;
        assert_eq!(world.acl(ino, ACCESS), (!minimal).then(|| bytes(&entries)), "seed {seed}: as it was set");
        for _ in 0..20 {
            let groups: Vec<u32> = (0..draw(3)).map(|_| 1 + draw(5)).collect();
            let (cred, want) = (who(1 + draw(5), 1 + draw(5), &groups), perm(1 + draw(7)));
            let expected = model(&entries, (1, 1), &cred, want);
            let found = world.may(&cred, ino, u8::try_from(want).unwrap());
            assert_eq!(found, expected, "seed {seed}: {entries:?} {cred:?} wants {want}");
        }
    }
}

#[test]
fn mode_and_acl_are_two_views_of_one_thing() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o4640);
    let mode = |attr: Attr| (attr.permissions(), attr.mode & MODE_ACL != 0);
    assert_eq!(world.acl(ino, ACCESS), None, "what the mode says is no ACL");
    let before = world.attr(ino);
    let set = world.set_acl(0, ino, ACCESS, acl("u::6,u:7:7,g::4,m::6,o::1")).unwrap();
    assert!(set.ctime > before.ctime && set.mtime == before.mtime);
    assert_eq!(mode(set), (0o4661, true), "the mask is the group's bits");
    assert_eq!(world.list(ROOT, 0, 9).0[0].attr.as_ref().map(|attr| attr.mode & MODE_ACL), Some(MODE_ACL));
    // `chmod` sets owner, mask and others.
    world.op(0, Op::SetAttr { ino, set: SetAttr { mode: Some(0o740), ..SetAttr::default() } }).unwrap();
    assert_eq!(mode(world.attr(ino)), (0o740, true));
    assert_eq!(world.acl(ino, ACCESS).unwrap(), acl("u::7,u:7:7,g::4,m::4,o::0"));
    // One that says no more than a mode is not kept.
    assert_eq!(mode(world.set_acl(0, ino, ACCESS, acl("u::6,g::2,o::4")).unwrap()), (0o624, false));
    assert_eq!(world.acl(ino, ACCESS), None);
    // A mask without names is kept: the group has less than the mode shows.
    assert_eq!(mode(world.set_acl(0, ino, ACCESS, acl("u::6,g::0,m::7,o::0")).unwrap()), (0o670, true));
    // Removal leaves the mode; so does a value without entries.
    let remove = |name: &[u8]| Op::RemoveXattr { ino, name: name.to_vec() };
    world.op(0, remove(ACCESS)).unwrap();
    assert_eq!(mode(world.attr(ino)), (0o670, false));
    assert_eq!(world.kind(0, remove(ACCESS)), Kind::NoData);
    for empty in [vec![], bytes(&[])] {
        world.set_acl(0, ino, ACCESS, acl("u::6,u:7:7,g::4,m::6,o::1")).unwrap();
        assert_eq!(mode(world.set_acl(0, ino, ACCESS, empty).unwrap()), (0o661, false));
    }
    world.check();
}

#[test]
fn setting_an_acl_is_for_the_owner_and_takes_set_group_id_from_strangers_to_the_group() {
    let mut world = World::new();
    let ino = world.file_of(5, 9);
    world.op(0, Op::SetAttr { ino, set: SetAttr { mode: Some(0o2755), ..SetAttr::default() } }).unwrap();
    let text = "u::7,u:7:7,g::5,m::7,o::5";
    assert_eq!(world.set_acl(7, ino, ACCESS, acl(text)), Err(Kind::NotPermitted));
    assert_eq!(world.set_acl(0, ino, ACCESS, acl(text)).unwrap().permissions(), 0o2775);
    let remove = Op::RemoveXattr { ino, name: ACCESS.to_vec() };
    assert_eq!(world.kind(7, remove), Kind::NotPermitted);
    let member = Op::SetXattr { ino, name: ACCESS.to_vec(), value: acl(text), mode: XattrMode::Any };
    world.of(S1, who(5, 5, &[9]), member).unwrap();
    assert_eq!(world.attr(ino).permissions(), 0o2775);
    assert_eq!(world.set_acl(5, ino, ACCESS, acl(text)).unwrap().permissions(), 0o775);
    assert_eq!(world.set_acl(5, ino, DEFAULT, acl(text)), Err(Kind::Denied), "no directory");
    let link = world.make(0, ROOT, "l", NewNode::Symlink(b"f".to_vec()), 0).unwrap().ino;
    assert_eq!(world.set_acl(0, link, ACCESS, acl(text)), Err(Kind::Unsupported));
    let put = |mode| Op::SetXattr { ino, name: ACCESS.to_vec(), value: acl(text), mode };
    assert_eq!(world.kind(5, put(XattrMode::Create)), Kind::Exists);
    world.set_acl(5, ino, ACCESS, acl("u::7,g::5,o::5")).unwrap();
    assert_eq!(world.kind(5, put(XattrMode::Replace)), Kind::NoData);
    world.check();
}

#[test]
fn what_is_no_valid_acl_is_refused_and_changes_nothing() {
    let mut world = World::new();
    let ino = world.file(0, ROOT, "f", 0o640);
    let before = world.attr(ino);
    let good = acl("u::7,u:7:7,g::5,m::7,o::5");
    let named = |count: u32| -> Vec<Entry> {
        let users = (0..count).map(|id| (2, 7, id));
        [(1, 7, u32::MAX)].into_iter().chain(users).chain(entries("g::0,m::7,o::0")).collect()
    };
    let most = u32::try_from(ENTRIES_MAX).unwrap() - 4;
    for (value, kind) in [
        (good[..3].to_vec(), Kind::Invalid),
        (good[..good.len() - 1].to_vec(), Kind::Invalid),
        ([&3_u32.to_le_bytes()[..], &good[4..]].concat(), Kind::Unsupported),
        (acl("u::7,g::5"), Kind::Invalid),
        (acl("g::5,o::5"), Kind::Invalid),
        (acl("u::7,o::5"), Kind::Invalid),
        (acl("u::7,u:7:7,g::5,o::5"), Kind::Invalid), // names without a mask
        (acl("u::7,g::5,g:7:7,o::5"), Kind::Invalid),
        (acl("u::7,u:7:7,u:7:6,g::5,m::7,o::5"), Kind::Invalid), // twice
        (acl("u::7,u::7,g::5,o::5"), Kind::Invalid),
        (acl("u::7,g::5,o::5,m::7"), Kind::Invalid), // out of order
        (acl("u::8,g::5,o::5"), Kind::Invalid),
        (bytes(&[(1, 7, 0), (4, 7, 0), (32, 0x107, 0)]), Kind::Invalid),
        (bytes(&[(1, 7, 0), (4, 7, 0), (32, 7, 0), (64, 7, 0)]), Kind::Invalid),
        (bytes(&[(1, 7, 0), (2, 7, u32::MAX), (4, 7, 0), (16, 7, 0), (32, 7, 0)]), Kind::Invalid), // nobody's
        (bytes(&named(most + 1)), Kind::NoSpace),
    ] {
        assert_eq!(world.set_acl(0, ino, ACCESS, value.clone()), Err(kind), "{value:?}");
        assert_eq!(world.attr(ino), before);
    }
    world.set_acl(0, ino, ACCESS, bytes(&named(most))).unwrap();
    assert_eq!(world.acl(ino, ACCESS).unwrap(), bytes(&named(most)));
}

#[test]
fn new_entries_inherit_a_default_acl_and_only_without_one_the_umask_counts() {
    let mut world = World::new();
    let dir = world.dir(0, ROOT, "d", 0o755);
    let make = |world: &mut World, text: &str, node, mode| {
        let name = name(text);
        let op = Op::CreateUnmasked { parent: dir, name, node, mode, umask: 0o077, exclusive: true, access: 0 };
        match world.op(0, op).unwrap() {
            Outcome::Created { attr, .. } => attr,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(make(&mut world, "plain", NewNode::File, 0o2666).mode, 0o2600, "the umask takes permissions only");
    let default = "u::7,u:7:6,g::5,m::6,o::4";
    let attr = world.set_acl(0, dir, DEFAULT, acl(default)).unwrap();
    assert_eq!(attr.mode, 0o755 | MODE_DEFAULT_ACL, "the directory itself is as it was");
    let file = make(&mut world, "file", NewNode::File, 0o664);
    assert_eq!(file.mode, 0o664 | MODE_ACL);
    assert_eq!(world.acl(file.ino, ACCESS).unwrap(), acl("u::6,u:7:6,g::5,m::6,o::4"));
    let private = make(&mut world, "private", NewNode::File, 0o600);
    assert_eq!(world.acl(private.ino, ACCESS).unwrap(), acl("u::6,u:7:6,g::5,m::0,o::0"), "cut down to what was asked");
    assert_eq!(world.acl(private.ino, DEFAULT), None);
    let sub = make(&mut world, "sub", NewNode::Dir, 0o777);
    assert_eq!(sub.mode, 0o764 | MODE_ACL | MODE_DEFAULT_ACL);
    assert_eq!(world.acl(sub.ino, DEFAULT).unwrap(), acl(default));
    let link = make(&mut world, "link", NewNode::Symlink(b"x".to_vec()), 0o777);
    assert_eq!(link.mode, 0o777, "a symlink has none");
    // A default ACL that is only a mode takes the umask's place.
    world.set_acl(0, dir, DEFAULT, acl("u::7,g::5,o::1")).unwrap();
    assert_eq!(make(&mut world, "mode", NewNode::File, 0o666).mode, 0o640);
    world.op(0, Op::RemoveXattr { ino: dir, name: DEFAULT.to_vec() }).unwrap();
    assert_eq!(make(&mut world, "again", NewNode::File, 0o666).mode, 0o600);
    world.check();
}

#[test]
fn acls_are_listed_with_the_attributes_and_count_as_names() {
    let mut world = World::new();
    let ino = world.dir(0, ROOT, "d", 0o755);
    for name in [&b"user.a"[..], b"trusted.t"] {
        let op = Op::SetXattr { ino, name: name.to_vec(), value: Vec::new(), mode: XattrMode::Any };
        world.op(0, op).unwrap();
    }
    for which in [DEFAULT, ACCESS] {
        world.set_acl(0, ino, which, acl("u::7,u:7:6,g::5,m::6,o::4")).unwrap();
    }
    let names = [ACCESS, DEFAULT, b"trusted.t", b"user.a"].map(<[u8]>::to_vec).to_vec();
    assert_eq!(world.ask(0, Query::ListXattr { ino }).unwrap(), Answer::Names(names));
    world.check();
    let full = world.file(0, ROOT, "full", 0o644);
    for n in 0..257 {
        let name = format!("user.{n:0>249}").into_bytes();
        world.op(0, Op::SetXattr { ino: full, name, value: Vec::new(), mode: XattrMode::Any }).unwrap();
    }
    assert_eq!(world.set_acl(0, full, ACCESS, acl("u::7,u:7:6,g::5,m::6,o::4")), Err(Kind::NoSpace));
    world.check();
}

#[test]
fn an_acl_decides_about_paths_and_directories_too() {
    let mut world = World::new();
    let dir = world.dir(0, ROOT, "d", 0o700);
    world.file(0, dir, "f", 0o644);
    let walk = |world: &World, uid| {
        let walk = Query::Walk { from: ROOT, path: b"d/f".to_vec(), follow: true };
        world.ask(uid, walk).map(|_| ()).map_err(|fault| fault.kind)
    };
    let list = |world: &World, uid| {
        let list = Query::ReadDir { ino: dir, after: 0, limit: 9, attrs: true };
        world.ask(uid, list).map(|_| ()).map_err(|fault| fault.kind)
    };
    assert_eq!((walk(&world, 7), list(&world, 7)), (Err(Kind::Denied), Err(Kind::Denied)));
    world.set_acl(0, dir, ACCESS, acl("u::7,u:7:1,u:8:7,g::0,m::7,o::0")).unwrap();
    assert_eq!((walk(&world, 7), list(&world, 7)), (Ok(()), Err(Kind::Denied)));
    assert_eq!((walk(&world, 9), list(&world, 8)), (Err(Kind::Denied), Ok(())));
    assert_eq!(world.make(7, dir, "g", NewNode::File, 0o644).unwrap_err().kind, Kind::Denied);
    let made = world.file(8, dir, "g", 0o644);
    assert_eq!(world.kind(7, Op::Link { ino: made, parent: dir, name: name("h") }), Kind::Denied);
    world.op(8, Op::Unlink { parent: dir, name: name("f"), keep: false }).unwrap();
    world.op(0, Op::SetAttr { ino: dir, set: SetAttr { mode: Some(0o710), ..SetAttr::default() } }).unwrap();
    assert_eq!(world.kind(8, Op::Unlink { parent: dir, name: name("g"), keep: false }), Kind::Denied, "the mask");
    world.check();
}
