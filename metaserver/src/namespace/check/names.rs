//! Names: entries by name and by cookie, what they lead to, how often, and whether all directories hang on the root.

use super::super::fix::Fix;
use super::super::rows::reaches_root;
use super::{Check, change, first, last};
use crate::store::keys::{self, DENTRY, LIST};
use crate::store::values::{Body, Dentry, Inode, Listed, Value};
use common::id::InodeId;
use common::kv::KvError;
use common::name::Name;
use common::proto::meta::FileKind;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// What the entries add up to.
#[derive(Default)]
struct Tally {
    names: BTreeMap<InodeId, u32>,
    subdirs: BTreeMap<u64, u32>,
    entries: BTreeMap<u64, u64>,
    /// The highest cookie of each directory.
    cookies: BTreeMap<u64, u64>,
}

impl Tally {
    fn count(&mut self, parent: u64, ino: InodeId) {
        *self.names.entry(ino).or_default() += 1;
        *self.entries.entry(parent).or_default() += 1;
    }
}

impl Check<'_> {
    /// Entries by name and by cookie agree, lead to inodes, and are counted.
    pub(super) fn entries(&mut self) -> Result<(), KvError> {
        let named = self.all(DENTRY, |key, value| {
            let name = key.get(8..).unwrap_or_default().to_vec();
            Ok(((first(key), name), Dentry::decode(value)?))
        })?;
        let listed = self.all(LIST, |key, value| Ok(((first(key), last(key)), Listed::decode(value)?)))?;
        let mut listed: BTreeMap<(u64, u64), Listed> = listed.into_iter().collect();
        let mut tally = Tally::default();
        let mut hangs: BTreeMap<InodeId, Vec<(InodeId, Name)>> = BTreeMap::new();
        for (parent, cookie) in listed.keys() {
            tally.cookies.insert(*parent, *cookie); // ascending: the last one stays
        }
        for ((parent, name), entry) in named {
            let twin = listed.remove(&(parent, entry.cookie));
            let same = twin.is_some_and(|t| t.ino == entry.ino && t.kind == entry.kind && t.name.as_bytes() == name);
            let remake = || match Name::new(&*name) {
                Ok(name) => vec![Fix::Listing { parent: InodeId(parent), name }],
                Err(_) => Vec::new(),
            };
            let shown = String::from_utf8_lossy(&name);
            self.expect_or(same, || format!("i{parent}: entry {shown:?} and its listing differ"), remake);
            tally.count(parent, entry.ino);
            let inode = self.inodes.get(&entry.ino.0).cloned();
            let remake = || if inode.is_some() { remake() } else { Vec::new() };
            self.expect_or(
                inode.as_ref().is_some_and(|i| i.kind == entry.kind),
                || format!("i{parent}: entry {shown:?} leads to {}, which is not there or of another kind", entry.ino),
                remake,
            );
            if inode.is_some_and(|inode| matches!(inode.body, Body::Dir { .. })) {
                *tally.subdirs.entry(parent).or_default() += 1;
                if let Ok(name) = Name::new(&*name) {
                    hangs.entry(entry.ino).or_default().push((InodeId(parent), name));
                }
            }
        }
        for ((parent, cookie), left) in listed {
            self.held.insert(left.ino.0);
            // An entry that was found by its name only needs no second one; nor does a directory that has a name.
            let taken = self.read.get(DENTRY, &keys::dentry(InodeId(parent), &left.name))?.is_some();
            let has_name = !taken && left.kind == FileKind::Dir && tally.names.contains_key(&left.ino);
            if left.kind == FileKind::Dir && !taken && !has_name {
                self.mended.insert(left.ino.0, InodeId(parent));
            }
            let fixes = || if has_name { Vec::new() } else { vec![Fix::Entry { parent: InodeId(parent), cookie }] };
            self.expect_or(false, || format!("i{parent}: listing {cookie} of {} without an entry", left.ino), fixes);
        }
        self.named = tally.names.keys().map(|ino| ino.0).collect();
        for (ino, inode) in self.inodes.clone() {
            self.links(ino, &inode, &mut tally);
        }
        // Behind the counts: those count the names that go.
        hangs.into_iter().for_each(|(dir, names)| self.hangs(dir, &names));
        self.depth();
        let left: Vec<u64> = tally.entries.into_keys().collect();
        self.expect(left.is_empty(), || format!("entries in what is no directory: {left:?}"));
        Ok(())
    }

    /// A directory has one name, where it says that it hangs. Of several there stays one from which the root is reached.
    fn hangs(&mut self, dir: InodeId, names: &[(InodeId, Name)]) {
        if dir == InodeId::ROOT {
            return self.expect(false, || format!("{dir}: the root directory has a name: {names:?}"));
        }
        let Some(Inode { body: Body::Dir { parent: back, .. }, .. }) = self.inodes.get(&dir.0) else { return };
        let back = *back;
        let good = |(_, (parent, _)): &(usize, &(InodeId, Name))| self.reaches_root(*parent, Some(dir));
        let best = names.iter().enumerate().filter(good).min_by_key(|(_, (parent, _))| *parent != back);
        let (kept, is_sure) = best.map_or((0, false), |(kept, _)| (kept, true));
        let stays = &names[kept];
        let fixes = |fix| if is_sure { vec![fix] } else { Vec::new() };
        let hang = Fix::Parent { dir, stays: stays.clone() };
        if is_sure && stays.0 != back {
            self.mended.insert(dir.0, stays.0);
        }
        self.expect_or(
            names.iter().any(|(parent, _)| *parent == back) && (stays.0 == back || !is_sure),
            || format!("{dir}: its parent is {back}, its entry in {}", stays.0),
            || fixes(hang),
        );
        for (_, goes) in names.iter().enumerate().filter(|(at, _)| *at != kept) {
            let shown = String::from_utf8_lossy(goes.1.as_bytes()).into_owned();
            let text = || format!("{dir}: a directory with another name, {shown:?} in {}", goes.0);
            self.expect_or(false, text, || fixes(Fix::SecondName { dir, stays: stays.clone(), goes: goes.clone() }));
        }
    }

    /// What an inode counts: its names, and of a directory its entries.
    fn links(&mut self, ino: u64, inode: &Inode, tally: &mut Tally) {
        let named = tally.names.get(&InodeId(ino)).copied().unwrap_or(0);
        let id = InodeId(ino);
        let is_held = self.held.contains(&ino);
        let nameless = || if is_held { Vec::new() } else { vec![Fix::Nameless { ino: id }] };
        if let Body::Dir { entries: counted, next_cookie, .. } = inode.body {
            let root = ino == InodeId::ROOT.0;
            let have = tally.entries.remove(&ino).unwrap_or(0);
            self.expect_or(
                counted == have,
                || format!("i{ino}: counts {counted} entries, has {have}"),
                || vec![Fix::Entries { dir: id, delta: change(counted, have) }],
            );
            let nlink = 2 + tally.subdirs.get(&ino).copied().unwrap_or(0);
            self.expect_or(
                inode.nlink == nlink,
                || format!("i{ino}: nlink {} of {nlink}", inode.nlink),
                || vec![Fix::Links { ino: id, delta: change(inode.nlink.into(), nlink.into()) }],
            );
            self.expect_or(named > 0 || root, || format!("i{ino}: a directory without an entry"), nameless);
            if named == 0 && !root && !is_held {
                self.mended.insert(ino, InodeId::ROOT); // `/lost+found` hangs there
            }
            let highest = tally.cookies.get(&ino).copied().unwrap_or(0).max(have);
            self.expect_or(
                next_cookie > highest,
                || format!("i{ino}: next cookie {next_cookie}, {highest} is taken"),
                || vec![Fix::NextCookie { dir: id, at_least: highest + 1 }],
            );
        } else {
            let links = || Fix::Links { ino: id, delta: change(inode.nlink.into(), named.into()) };
            self.expect_or(
                inode.nlink == named,
                || format!("i{ino}: nlink {}, {named} entries", inode.nlink),
                || vec![links()].into_iter().chain(if named == 0 { nameless() } else { Vec::new() }).collect(),
            );
        }
    }

    /// All directories hang on the root, or will when those above them that are told of are put right.
    fn depth(&mut self) {
        let dirs = self.inodes.iter().filter(|(_, inode)| inode.kind == FileKind::Dir).map(|(ino, _)| InodeId(*ino));
        let above = |at: InodeId| self.mended.get(&at.0).copied().or_else(|| self.parent(at));
        let astray: Vec<InodeId> = dirs.filter(|dir| !self.leads_to_root(*dir, None, above)).collect();
        astray.into_iter().for_each(|dir| self.expect(false, || format!("{dir}: does not hang on the root")));
    }

    fn parent(&self, dir: InodeId) -> Option<InodeId> {
        match self.inodes.get(&dir.0)?.body {
            Body::Dir { parent, .. } => Some(parent),
            _ => None,
        }
    }

    fn reaches_root(&self, from: InodeId, not_by: Option<InodeId>) -> bool {
        self.leads_to_root(from, not_by, |at| self.parent(at))
    }

    fn leads_to_root(
        &self,
        from: InodeId,
        not_by: Option<InodeId>,
        above: impl Fn(InodeId) -> Option<InodeId>,
    ) -> bool {
        let Ok(leads) = reaches_root::<Infallible>(from, not_by, self.inodes.len(), |at| Ok(above(at)));
        leads
    }
}
