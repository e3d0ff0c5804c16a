//! Directories that are leased whole: when, what is learnt with that, and listings that are shown again.

use super::LOOKS;
use super::inside::{Inside, Known};
use super::local::may_list;
use common::id::{DataVersion, InodeId};
use common::name::Name;
use common::proto::lease::{Grants, LEASE_ATTRS_MAX, Leased, LeasedListing, WRITE};
use common::proto::meta::{Attr, Cred, DirEntry};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Directories whose looks are counted.
const COUNTED_MAX: usize = 1024;
/// How long a directory is not leased whole after that was recalled or refused; doubled each time, up to [`ALONE_MAX`].
pub(super) const ALONE_MIN: Duration = Duration::from_millis(500);
const ALONE_MAX: Duration = Duration::from_secs(32);

/// A listing that can be shown again.
#[derive(Debug)]
pub(super) struct Kept {
    /// Who got it: whether somebody else may, the metaservers say.
    cred: Cred,
    parent: InodeId,
    /// In cookie order, without attributes.
    pub(super) entries: Vec<DirEntry>,
}

/// A question for a whole directory that is under way: one at a time for each.
#[derive(Debug)]
pub(super) struct Listing {
    /// The names that this session has been changing since. `None`: what is answered is not kept.
    pub(super) ours: Option<Vec<Name>>,
    /// The newest lease that came meanwhile with an answer of which nothing was kept; 0: none.
    pub(super) lease: u64,
}

/// How often names of a directory were asked for, one by one.
#[derive(Debug)]
pub(super) struct Counted {
    looks: u32,
    /// Not to be leased before.
    later: Option<Instant>,
    pause: Duration,
}

impl Inside {
    /// A name was asked for in a directory. True: it is time to lease it whole, and the caller does.
    pub(super) fn looked(&mut self, dir: InodeId, now: Instant) -> bool {
        let is_known = self.known.get(&dir).is_some_and(|known| known.names.is_some());
        if is_known || self.listing.contains_key(&dir) || self.is_uncertain(dir) {
            return false;
        }
        if self.counted.len() >= COUNTED_MAX && !self.counted.contains_key(&dir) {
            self.counted.retain(|_, counted| counted.later.is_some_and(|later| later > now));
            if self.counted.len() >= COUNTED_MAX {
                return false;
            }
        }
        let fresh = || Counted { looks: 0, later: None, pause: ALONE_MIN };
        let counted = self.counted.entry(dir).or_insert_with(fresh);
        counted.looks += 1;
        if counted.looks < LOOKS || counted.later.is_some_and(|later| later > now) {
            return false;
        }
        self.list(dir);
        true
    }

    /// A directory is listed from its start. True: it can be leased whole with that, and the caller does.
    pub(super) fn lists(&mut self, dir: InodeId, now: Instant) -> bool {
        let later = self.counted.get(&dir).and_then(|counted| counted.later);
        if self.listing.contains_key(&dir) || self.is_uncertain(dir) || later.is_some_and(|later| later > now) {
            return false;
        }
        self.list(dir);
        true
    }

    pub(super) fn list(&mut self, dir: InodeId) {
        let ours = self.changing_names.keys().filter(|(of, _)| *of == dir).map(|(_, name)| name.clone());
        let ours = Some(ours.collect());
        self.listing.insert(dir, Listing { ours, lease: 0 });
    }

    /// This session changes a name in it.
    pub(super) fn changing_listed(&mut self, dir: InodeId, name: &Name) {
        if let Some(ours) = self.listing.get_mut(&dir).and_then(|listing| listing.ours.as_mut()) {
            ours.push(name.clone());
        }
    }

    /// What is answered to a question under way is not kept. False: there is none of which it would be.
    pub(super) fn void_listing(&mut self, dir: InodeId) -> bool {
        self.listing.get_mut(&dir).is_some_and(|listing| listing.ours.take().is_some())
    }

    /// The answer to the question for a whole directory, with its mark.
    pub(super) fn listed(&mut self, dir: InodeId, mark: u64, times: (Duration, Duration), leased: Option<Leased>) {
        let leased = leased.and_then(|leased| Some((leased.term, leased.listing?)));
        let heard = leased.filter(|(term, listing)| self.heard(*term, &listing.leases, times));
        let Some(Listing { ours, lease: spared }) = self.listing.remove(&dir) else { unreachable!("it was under way") };
        let Some((term, listing)) = heard else {
            self.spare(dir, spared);
            return self.leave_alone(dir);
        };
        let lease = listing.leases.first().copied().unwrap_or(0);
        let usable = lease != 0 && !self.is_uncertain(dir) && mark >= self.spoilt && !self.has_ended(dir, lease);
        let is_ours = |known: &Known| known.lease & WRITE != 0 && known.names.is_some() && known.attr.is_some();
        match ours.filter(|_| usable) {
            Some(_) if self.known.get(&dir).is_some_and(is_ours) => {
                let known = self.known.get_mut(&dir).expect("just found");
                known.lease = known.lease.max(lease).max(spared); // what it lists is no newer
            }
            // A recall of it came between, or too many changes of this session.
            None => self.spare(dir, lease.max(spared)),
            Some(ours) => {
                let mut names: HashMap<Name, Option<InodeId>> = HashMap::with_capacity(listing.entries.len());
                names.extend(listing.entries.iter().map(|entry| (entry.name.clone(), Some(entry.ino))));
                // Of names that this session changed meanwhile nobody knows whether it shows that: they are asked for.
                names.extend(ours.into_iter().map(|name| (name, None)));
                // The directory's own attributes may be older than such a change.
                let quiet = self.blind == 0 && !self.changing.contains_key(&dir) && self.is_undisturbed(dir, mark);
                let attr = quiet.then(|| listing.attr.clone());
                self.forget_names(dir);
                self.names += names.len();
                self.say_locks(dir);
                let lease = self.known.get(&dir).map_or(0, |known| known.lease).max(lease).max(spared);
                let (names, named, used) = (Some(names), self.learning(), Instant::now());
                self.known.insert(dir, Known { lease, attr, names, named, listing: None, locks: None, used });
                self.counted.remove(&dir);
            }
        }
        let attrs: Vec<&Attr> = listing.entries.iter().filter_map(|entry| entry.attr.as_ref()).collect();
        let versions: HashMap<InodeId, DataVersion> = attrs.iter().map(|attr| (attr.ino, attr.version)).collect();
        let grants = Grants { term, leases: listing.leases.iter().skip(1).copied().collect() };
        self.learn(mark, &attrs, &grants);
        for (ino, run) in listing.contents {
            if let Some(version) = versions.get(&ino).filter(|_| self.known.contains_key(&ino)) {
                self.contents.keep(ino, *version, run);
            }
        }
    }

    /// A listing is kept to be shown again, if it is as it was asked for with this mark.
    pub(super) fn keep_listing(&mut self, mark: u64, cred: Cred, listing: &LeasedListing) {
        let dir = listing.attr.ino;
        let whole = listing.entries.len() <= LEASE_ATTRS_MAX && self.is_undisturbed(dir, mark);
        let Some(known) = self.known.get_mut(&dir).filter(|known| whole && known.names.is_some()) else { return };
        let entry = |entry: &DirEntry| DirEntry { attr: None, ..entry.clone() };
        let entries = listing.entries.iter().map(entry).collect();
        known.listing = Some(Arc::new(Kept { cred, parent: listing.parent, entries }));
        self.opened.listed(dir);
    }

    /// A directory as it was listed before, with everything that is in it as it is now, if all that is certain.
    pub(super) fn kept_listing(&mut self, cred: &Cred, dir: InodeId, uptime: Duration) -> Option<LeasedListing> {
        let (attr, _) = self.attr(dir, uptime)?;
        let kept = self.known.get(&dir)?.listing.clone().filter(|kept| kept.cred == *cred && may_list(&attr, cred))?;
        let shown = |entry: &DirEntry| {
            let (attr, _) = self.attr(entry.ino, uptime)?;
            Some(DirEntry { attr: Some(attr), ..entry.clone() })
        };
        let entries = kept.entries.iter().map(shown).collect::<Option<Vec<_>>>()?;
        Some(LeasedListing { attr, parent: kept.parent, entries, leases: Vec::new(), contents: Vec::new() })
    }

    pub(super) fn leave_alone(&mut self, dir: InodeId) {
        let now = Instant::now();
        let fresh = || Counted { looks: 0, later: None, pause: ALONE_MIN };
        let counted = self.counted.entry(dir).or_insert_with(fresh);
        counted.later = Some(now + counted.pause);
        counted.pause = (counted.pause * 2).min(ALONE_MAX);
        counted.looks = 0;
    }
}
