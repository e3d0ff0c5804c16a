//! Changes of this session that the metaservers decide: what is not believed while one is under way, and what follows from it.

use super::inside::{Inside, Known};
use common::id::InodeId;
use common::name::Name;
use common::proto::lease::Touched;
use common::proto::meta::{Op, Outcome, RenameMode};

/// Changes of one inode by this session that are under way.
#[derive(Debug, Default)]
pub(super) struct Changing {
    pub(super) count: usize,
    /// How many of them only save what was written.
    pub(super) commits: usize,
    pub(super) overlapped: bool,
}

/// What one change of this session touches.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) inodes: Vec<InodeId>,
    /// What the names led to, where that is known.
    pub(super) targets: Vec<InodeId>,
    pub(super) names: Vec<(InodeId, Name)>,
    /// It changes what the names lead to when it is carried out.
    pub(super) by_name: bool,
    /// What that is, was not known when it began.
    pub(super) blind: bool,
    pub(super) commit: bool,
}

impl Inside {
    /// A change of this session is about to be sent.
    pub(super) fn begin(&mut self, touched: Touched, commit: bool) -> Own {
        let Touched { mut inodes, names, targets } = touched;
        let (mut led, mut blind) = (Vec::new(), false);
        if targets {
            for (dir, name) in &names {
                match self.known.get(dir).and_then(|known| known.names.as_ref()).map(|names| names.get(name)) {
                    Some(None) => {}
                    Some(Some(Some(ino))) => led.push(*ino),
                    Some(Some(None)) | None => blind = true,
                }
            }
            inodes.extend(led.iter().copied());
            inodes.sort_unstable();
            inodes.dedup();
        }
        for ino in &inodes {
            self.touch(*ino);
            let changing = self.changing.entry(*ino).or_default();
            changing.overlapped |= changing.count > 0;
            changing.count += 1;
            changing.commits += usize::from(commit);
        }
        for (dir, name) in &names {
            self.changing_listed(*dir, name);
            let count = self.changing_names.entry((*dir, name.clone())).or_default();
            *count += 1;
            if *count > 1 {
                self.forget_names(*dir); // their order is not known here
                self.void_listing(*dir);
            }
        }
        self.blind += usize::from(blind);
        self.spoilt = if blind { self.clock } else { self.spoilt };
        Own { inodes, targets: led, names, by_name: targets, blind, commit }
    }

    /// It succeeded, and was sent with this mark: the names follow. Attributes that came with it are learnt next, others
    /// are asked for.
    pub(super) fn changed(&mut self, op: &Op, own: &Own, mark: u64, outcome: &Outcome) {
        let elsewhere = matches!(op, Op::Rename { .. }) && !self.led_all_the_time(own, mark);
        for ino in &own.inodes {
            if let Some(known) = self.known.get_mut(ino) {
                known.attr = None;
            }
        }
        if let Outcome::Removed { ino, .. } = outcome {
            self.touch(*ino);
            if let Some(known) = self.known.get_mut(ino) {
                known.attr = None;
            }
        } else if own.blind {
            self.known.values_mut().for_each(|known| known.attr = None); // it may have been any of them
        } else if elsewhere {
            self.forget_each(); // likewise, and it was not known so from the beginning
            self.spoil();
        }
        match (op, outcome) {
            (
                Op::Create { parent, name, .. } | Op::CreateUnmasked { parent, name, .. },
                Outcome::Created { attr, .. },
            ) => {
                self.set_name(*parent, name, Some(Some(attr.ino)));
            }
            (Op::Link { ino, parent, name } | Op::Undelete { ino, parent, name }, _) => {
                self.set_name(*parent, name, Some(Some(*ino)));
            }
            (Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name }, _) => self.set_name(*parent, name, None),
            (Op::Rename { from, from_name, to, to_name, mode, .. }, _) => {
                // Two names of one file both stay; where not both are known to lead elsewhere, they are asked for.
                let moved = match own.targets.as_slice() {
                    [one] if !elsewhere => Some(*one),
                    [one, other] if one != other && !elsewhere => self.leads(*from, from_name),
                    _ => None,
                };
                match moved.filter(|_| *mode != RenameMode::Exchange) {
                    Some(ino) => {
                        self.set_name(*from, from_name, None);
                        self.set_name(*to, to_name, Some(Some(ino)));
                    }
                    None => {
                        self.set_name(*from, from_name, Some(None));
                        self.set_name(*to, to_name, Some(None));
                    }
                }
            }
            _ => {}
        }
    }

    /// What the names of a change led to when it began, with this mark, they led to until it was carried out: their
    /// directories were leased all the time.
    fn led_all_the_time(&self, own: &Own, mark: u64) -> bool {
        let is_same = |known: &Known| known.names.is_some() && known.named <= mark;
        !own.blind && own.names.iter().all(|(dir, _)| self.known.get(dir).is_some_and(is_same))
    }

    pub(super) fn leads(&self, dir: InodeId, name: &Name) -> Option<InodeId> {
        self.known.get(&dir)?.names.as_ref()?.get(name).copied().flatten()
    }

    /// The answer to a question for a name, with its mark: a name of a known directory that may have been there or not.
    pub(super) fn found(&mut self, dir: InodeId, name: &Name, mark: u64, leads: Option<InodeId>) {
        let quiet = self.blind == 0 && !self.changing_names.contains_key(&(dir, name.clone()));
        let is_open = self.known.get(&dir).and_then(|known| known.names.as_ref()).map(|names| names.get(name));
        // What was asked for before the names were learnt may be older than they are.
        let is_later = self.known.get(&dir).is_some_and(|known| mark >= known.named);
        if quiet && is_later && self.is_undisturbed(dir, mark) && is_open == Some(Some(&None)) {
            self.put_name(dir, name, leads.map(Some));
        }
    }

    /// What is known of a name from now on, after a change of this session: that it is not there, or where it leads, if
    /// that is known. A name that may be there or not stays so: the reply to a repeated request may be old.
    pub(super) fn set_name(&mut self, dir: InodeId, name: &Name, to: Option<Option<InodeId>>) {
        let is_open = |known: &Known| known.names.as_ref().is_some_and(|names| names.get(name) == Some(&None));
        if !self.known.get(&dir).is_some_and(is_open) {
            self.put_name(dir, name, to);
        }
    }

    pub(super) fn put_name(&mut self, dir: InodeId, name: &Name, to: Option<Option<InodeId>>) {
        let Some(names) = self.known.get_mut(&dir).and_then(|known| known.names.as_mut()) else { return };
        let before = names.len();
        match to {
            Some(leads) => drop(names.insert(name.clone(), leads)),
            None => drop(names.remove(name)),
        }
        self.names = self.names + names.len() - before;
    }

    /// A change of this session is over. `known`: it is known how it went.
    pub(super) fn end(&mut self, own: &Own, known: bool) {
        if !known {
            own.inodes.iter().for_each(|ino| self.forget(*ino));
            if own.by_name {
                self.forget_each(); // it may be any of them
            }
            self.uncertain.extend(own.inodes.iter().copied());
            self.all_uncertain |= own.by_name; // the names may lead elsewhere by then
        }
        for ino in &own.inodes {
            self.touch(*ino);
            let changing = self.changing.get_mut(ino).expect("entered when the change began");
            changing.count -= 1;
            changing.commits -= usize::from(own.commit);
            if changing.overlapped
                && let Some(known) = self.known.get_mut(ino)
            {
                known.attr = None;
            }
            if changing.count == 0 {
                self.changing.remove(ino);
            }
        }
        for name in &own.names {
            let count = self.changing_names.get_mut(name).expect("likewise");
            *count -= 1;
            if *count == 0 {
                self.changing_names.remove(name);
            }
        }
        self.blind -= usize::from(own.blind);
        if own.blind {
            self.spoil();
        }
    }
}
