//! What a simulated disk holds, what a crash leaves of it, and which names survive.

use super::{Ino, ROOT};
use crate::units::len_u64;
use rand::{RngExt, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

/// What reaches the disk as a whole, in bytes.
const SECTOR: usize = 512;

#[derive(Clone)]
pub(super) enum Node {
    Dir { live: BTreeMap<OsString, Ino>, durable: BTreeMap<OsString, Ino> },
    File(Content),
}

#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// What makes `live` of `durable`, oldest first.
    pub(super) unsynced: Vec<Change>,
    /// Space taken: the length, or what was reserved beyond it, in bytes.
    pub(super) allocated: u64,
}

#[derive(Clone)]
pub(super) enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
    Punch { from: usize, to: usize },
}

/// A name in a directory and what it stands for.
pub(super) type Link = (Ino, OsString, Ino);

/// Takes one name away, puts one there, or both at once (a rename).
#[derive(Clone)]
pub(super) struct NameChange {
    pub(super) gone: Option<Link>,
    pub(super) new: Option<Link>,
}

/// Which of these changes survive: each by chance, with the earlier ones that touch the same name.
pub(super) fn surviving(changes: &[NameChange], random: &mut StdRng) -> Vec<bool> {
    let mut kept: Vec<bool> = changes.iter().map(|_| random.random()).collect();
    for late in (0..changes.len()).rev() {
        for early in 0..late {
            kept[early] |= kept[late] && changes[early].shares_name(&changes[late]);
        }
    }
    kept
}

pub(super) fn reachable(nodes: &BTreeMap<Ino, Node>) -> BTreeSet<Ino> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![ROOT]);
    while let Some(ino) = open.pop() {
        if seen.insert(ino)
            && let Some(Node::Dir { live, .. }) = nodes.get(&ino)
        {
            open.extend(live.values());
        }
    }
    seen
}

impl Node {
    pub(super) fn allocated(&self) -> u64 {
        match self {
            Node::Dir { .. } => 0,
            Node::File(content) => content.allocated,
        }
    }

    pub(super) fn names(&mut self, live: bool) -> &mut BTreeMap<OsString, Ino> {
        match self {
            Node::Dir { live: names, .. } if live => names,
            Node::Dir { durable, .. } => durable,
            Node::File(_) => unreachable!("names are in directories"),
        }
    }
}

impl NameChange {
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.gone.iter().chain(&self.new)
    }

    pub(super) fn shares_name(&self, other: &NameChange) -> bool {
        self.links().any(|a| other.links().any(|b| (a.0, &a.1) == (b.0, &b.1)))
    }

    pub(super) fn apply(&self, nodes: &mut BTreeMap<Ino, Node>, live: bool) {
        if let Some((dir, name, ino)) = &self.gone
            && let Some(node) = nodes.get_mut(dir)
            && node.names(live).get(name) == Some(ino)
        {
            node.names(live).remove(name);
        }
        if let Some((dir, name, ino)) = &self.new
            && let Some(node) = nodes.get_mut(dir)
        {
            node.names(live).insert(name.clone(), *ino);
        }
    }
}

impl Change {
    pub(super) fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => overwrite(to, *at, bytes),
            Change::SetLen(len) => to.resize(*len, 0),
            Change::Punch { from, to: end } => {
                let end = (*end).min(to.len());
                if *from < end {
                    to[*from..end].fill(0);
                }
            }
        }
    }

    /// Applies any part of it.
    pub(super) fn apply_torn(&self, to: &mut Vec<u8>, random: &mut StdRng) {
        let Change::Write { at, bytes } = self else {
            if random.random() {
                self.apply(to);
            }
            return;
        };
        // All, nothing or any sectors.
        let share = [1.0, 0.0, 0.5, 0.9][random.random_range(0..4)];
        let mut from = 0;
        while from < bytes.len() {
            let end = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(bytes.len());
            if random.random_bool(share) {
                overwrite(to, at + from, &bytes[from..end]);
            }
            from = end;
        }
        if at + bytes.len() > to.len() && random.random() {
            to.resize(at + bytes.len(), 0);
        }
    }
}

fn overwrite(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if to.len() < at + bytes.len() {
        to.resize(at + bytes.len(), 0);
    }
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Content {
    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    pub(super) fn sync_some(&mut self, random: &mut StdRng) {
        for change in self.unsynced.drain(..) {
            change.apply_torn(&mut self.durable, random);
        }
    }

    pub(super) fn crash(&mut self, random: &mut StdRng) {
        self.sync_some(random);
        self.live.clone_from(&self.durable);
        self.allocated = len_u64(self.live.len());
    }
}
