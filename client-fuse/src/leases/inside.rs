//! The state behind [`super::Leases`]: what is known, what is under way. Pure but for `Instant::now`, which only says what
//! was used last.

use super::contents::Contents;
use super::journal::Journal;
use super::local::may_list;
use super::locks::{Asked, Held};
use super::{Entry, LOOKS};
use common::id::{DataVersion, InodeId, LogIndex, SessionId};
use common::name::Name;
use common::proto::lease::{
    Grants, LEASE_ATTRS_MAX, LEASE_TERM, Leased, LeasedListing, RECALLS_MAX, RecallCall, Recalls, Touched, WRITE,
};
use common::proto::meta::{Attr, Cred, DirEntry, ExtentRun, FileKind, Op, Outcome, RenameMode};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Directories whose looks are counted.
const COUNTED_MAX: usize = 1024;
/// Inodes known; beyond it those used least recently go. Below what a leader grants one session.
const KNOWN_MAX: usize = 48 << 10;
/// Names known in all directories together; likewise.
const NAMES_MAX: usize = 200_000;
/// A lease that was not used for this long is given back.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Inodes with a change of unknown outcome; more, and nothing is leased until there are none.
const UNCERTAIN_MAX: usize = 1024;
/// Notes of what was touched while answers are under way; beyond it those that no answer needs go.
const TOUCHED_MAX: usize = 4096;
/// How long a directory is not leased whole after that was recalled or refused; doubled each time, up to [`ALONE_MAX`].
pub(super) const ALONE_MIN: Duration = Duration::from_millis(500);
const ALONE_MAX: Duration = Duration::from_secs(32);

#[derive(Debug, Default)]
pub(super) struct Inside {
    pub(super) session: Option<SessionId>,
    /// The leader's; 0: none is known.
    pub(super) term: u64,
    /// The last recall of that term that was done.
    forgot: u64,
    good_until: Duration,
    pub(super) known: HashMap<InodeId, Known>,
    pub(super) names: usize,
    /// Leases that are not wanted any more. Told with the next calls, so that no change waits for them.
    give_back: Vec<(InodeId, u64)>,
    /// What was forgotten and the kernel has not been told of.
    tell: Vec<InodeId>,
    /// Counts what may come between a question and its answer.
    clock: u64,
    /// When each inode was last recalled or changed here, as far as an answer under way needs it.
    touched: HashMap<InodeId, u64>,
    /// Answers asked for before this are not kept.
    spoilt: u64,
    /// The marks of questions under way, and how many have each.
    asks: BTreeMap<u64, usize>,
    pub(super) changing: HashMap<InodeId, Changing>,
    pub(super) changing_names: BTreeMap<(InodeId, Name), usize>,
    /// Own changes under way of inodes that are not known.
    pub(super) blind: usize,
    /// Directories that are being asked for whole, and the names this session has been changing since.
    pub(super) listing: BTreeMap<InodeId, Vec<Name>>,
    counted: BTreeMap<InodeId, Counted>,
    /// A change of this session may still come (invariant 2).
    uncertain: BTreeSet<InodeId>,
    /// And one of an inode that is not known.
    all_uncertain: bool,
    /// Files that are open: the kernel may map them and never ask again, so their leases are kept.
    open: BTreeSet<InodeId>,
    /// The index of the last claim that was granted. `None`: nothing is decided before another is.
    pub(super) since: Option<LogIndex>,
    /// Requests for locks that are under way, by their files.
    pub(super) asked_locks: HashMap<InodeId, Asked>,
    /// Files whose locks here are not what the metaservers believe.
    pub(super) unsaid: BTreeSet<InodeId>,
    /// What small files hold.
    pub(super) contents: Contents,
    /// What was decided here and not told yet.
    pub(super) journal: Journal,
    /// Leases whose claim was refused, and when.
    pub(super) refused: HashMap<InodeId, Instant>,
    /// This leader was not told yet that nothing of earlier ones is believed.
    to_report: bool,
    /// Something that was decided under a lease which is not held any more may not be told yet.
    tell_first: bool,
}

#[derive(Debug)]
pub(super) struct Known {
    /// Its number; [`WRITE`] alone: a new inode that the leader has not heard of yet.
    pub(super) lease: u64,
    /// `None`: to be asked for.
    pub(super) attr: Option<Attr>,
    /// All names; `None`: not all are known. A name that may be there or not leads to `None`.
    pub(super) names: Option<HashMap<Name, Option<InodeId>>>,
    /// The names as they were listed last, while nothing of it has changed since.
    pub(super) listing: Option<Arc<Kept>>,
    /// All locks of it; `None`: only the metaservers know.
    pub(super) locks: Option<Held>,
    pub(super) used: Instant,
}

/// A listing that can be shown again.
#[derive(Debug)]
pub(super) struct Kept {
    /// Who got it: whether somebody else may, the metaservers say.
    cred: Cred,
    parent: InodeId,
    /// In cookie order, without attributes.
    entries: Vec<DirEntry>,
}

/// What to do before the next call, and the call.
pub(super) struct Next {
    pub(super) call: RecallCall,
    /// What the kernel is to forget.
    pub(super) tell: Vec<InodeId>,
    /// What was decided here is to be told.
    pub(super) flush: bool,
    /// Nothing is held: it may be kept waiting.
    pub(super) idle: bool,
}

/// Changes of one inode by this session that are under way.
#[derive(Debug, Default)]
pub(super) struct Changing {
    count: usize,
    /// How many of them only save what was written.
    commits: usize,
    overlapped: bool,
}

#[derive(Debug)]
struct Counted {
    looks: u32,
    /// Not to be leased before.
    later: Option<Instant>,
    pause: Duration,
}

/// What one change of this session touches.
#[derive(Debug)]
pub(super) struct Own {
    inodes: Vec<InodeId>,
    /// What the names led to, where that is known.
    targets: Vec<InodeId>,
    names: Vec<(InodeId, Name)>,
    blind: bool,
    commit: bool,
}

impl Inside {
    /// Begins anew if the session is another one.
    pub(super) fn in_session(&mut self, session: SessionId) {
        if self.session == Some(session) {
            return;
        }
        self.since = None; // what was decided in another session is lost with it
        self.forget_all();
        (self.session, self.term, self.forgot, self.to_report) = (Some(session), 0, 0, false);
        self.settled(); // what was under way in another session cannot come any more
    }

    /// True if what an answer of this session says is of use: of an earlier one, whose leases have ended, it is not.
    pub(super) fn is_of(&mut self, session: SessionId) -> bool {
        *self.session.get_or_insert(session) == session
    }

    /// No change of unknown outcome is left.
    pub(super) fn settled(&mut self) {
        self.uncertain.clear();
        self.all_uncertain = false;
        self.locks_settled();
    }

    /// An answer of the leader of `term`, with leases of these numbers. False: nothing of it is to be kept.
    pub(super) fn heard(&mut self, term: u64, leases: &[u64], (sent, uptime): (Duration, Duration)) -> bool {
        self.forget_run_out(uptime);
        // Without a lease in it the leader has given no more time; and what is too late has run out there, too.
        let is_news = leases.iter().any(|lease| *lease != 0) && sent + LEASE_TERM > uptime;
        if !is_news || term < self.term {
            return false;
        }
        if self.term != term && self.term != 0 {
            self.forget_all(); // and call again: then the new leader knows it
            (self.term, self.forgot, self.to_report) = (0, 0, true);
        }
        if self.to_report || self.journal.is_of_another(term) {
            return false; // not before it knows that
        }
        if self.term != term {
            (self.term, self.forgot) = (term, 0);
        }
        self.good_until = self.good_until.max(sent + LEASE_TERM);
        true
    }

    pub(super) fn is_good(&self, uptime: Duration) -> bool {
        uptime < self.good_until
    }

    pub(super) fn count(&self, uptime: Duration) -> (usize, usize, Duration) {
        (self.known.len(), self.names, self.good_until.saturating_sub(uptime))
    }

    pub(super) fn attr(&mut self, ino: InodeId, uptime: Duration) -> Option<(Attr, Duration)> {
        let left = self.good_until.checked_sub(uptime).filter(|left| !left.is_zero())?;
        if self.blind > 0 || self.changing.contains_key(&ino) {
            return None;
        }
        let known = self.known.get_mut(&ino)?;
        known.used = Instant::now();
        known.attr.clone().map(|attr| (attr, left))
    }

    /// A file's attributes and all that it holds, if both are certain at this moment.
    pub(super) fn whole(&mut self, ino: InodeId, uptime: Duration) -> Option<(Attr, ExtentRun)> {
        let (attr, _) = self.attr(ino, uptime)?;
        let run = self.contents.get(ino, attr.version)?;
        Some((attr, run))
    }

    pub(super) fn holds(&self, ino: InodeId, uptime: Duration) -> bool {
        let other = self.changing.get(&ino).is_some_and(|changing| changing.count > changing.commits);
        self.is_good(uptime) && self.known.contains_key(&ino) && !other
    }

    pub(super) fn attr_before_saves(&self, ino: InodeId, uptime: Duration) -> Option<Attr> {
        let holds = self.blind == 0 && self.holds(ino, uptime);
        holds.then(|| self.known.get(&ino)?.attr.clone()).flatten()
    }

    pub(super) fn entry(&mut self, dir: InodeId, name: &Name, uptime: Duration) -> Entry {
        if !self.is_good(uptime) || self.changing_names.contains_key(&(dir, name.clone())) {
            return Entry::Unknown;
        }
        let Some(known) = self.known.get_mut(&dir) else { return Entry::Unknown };
        let Some(names) = &known.names else { return Entry::Unknown };
        known.used = Instant::now();
        match names.get(name) {
            None => Entry::Absent,
            Some(None) => Entry::Unknown,
            Some(Some(ino)) => Entry::Leads(*ino),
        }
    }

    /// A question goes out: its mark.
    pub(super) fn ask(&mut self) -> u64 {
        *self.asks.entry(self.clock).or_default() += 1;
        self.clock
    }

    /// It is over.
    pub(super) fn asked(&mut self, mark: u64) {
        if let Some(count) = self.asks.get_mut(&mark) {
            *count -= 1;
            if *count == 0 {
                self.asks.remove(&mark);
            }
        }
        let oldest = self.asks.first_key_value().map(|(mark, _)| *mark);
        match oldest {
            None => self.touched.clear(),
            Some(oldest) if self.touched.len() > TOUCHED_MAX => self.touched.retain(|_, at| *at > oldest),
            Some(_) => {}
        }
    }

    pub(super) fn touch(&mut self, ino: InodeId) {
        self.clock += 1;
        if !self.asks.is_empty() {
            self.touched.insert(ino, self.clock);
        }
        if let Some(known) = self.known.get_mut(&ino) {
            known.listing = None;
        }
    }

    pub(super) fn is_uncertain(&self, ino: InodeId) -> bool {
        self.all_uncertain || self.uncertain.len() > UNCERTAIN_MAX || self.uncertain.contains(&ino)
    }

    /// Nothing came between the question with this mark and now, of this inode.
    fn is_undisturbed(&self, ino: InodeId, mark: u64) -> bool {
        mark >= self.spoilt && self.touched.get(&ino).is_none_or(|at| *at <= mark)
    }

    /// Keeps attributes that came with leases, of a question with this mark.
    pub(super) fn learn(&mut self, mark: u64, attrs: &[&Attr], grants: &Grants) {
        for (attr, lease) in attrs.iter().zip(&grants.leases) {
            let quiet = self.blind == 0 && !self.changing.contains_key(&attr.ino);
            let keep = quiet && self.is_undisturbed(attr.ino, mark);
            self.keep(attr, *lease, keep);
        }
        self.trim();
    }

    /// As [`Inside::learn`], of the answer to an own change.
    pub(super) fn learn_own(&mut self, mark: u64, own: &Own, attrs: &[&Attr], grants: &Grants) {
        let mut leases = grants.leases.iter().copied().chain(std::iter::repeat(0));
        for attr in attrs {
            let lease = leases.next().expect("it goes on for ever");
            let ours = usize::from(own.inodes.contains(&attr.ino));
            if ours == 0 && lease == 0 {
                continue; // the reply to a repeated request may be old
            }
            let alone = self.changing.get(&attr.ino).is_none_or(|all| all.count <= ours && !all.overlapped);
            let quiet = alone && self.blind == usize::from(own.blind);
            let keep = quiet && lease != 0 && self.is_undisturbed(attr.ino, mark);
            self.keep(attr, lease, keep);
        }
        self.trim();
    }

    fn keep(&mut self, attr: &Attr, lease: u64, keep: bool) {
        let uncertain = self.is_uncertain(attr.ino);
        match self.known.get_mut(&attr.ino) {
            Some(known) if known.lease & WRITE != 0 && known.attr.is_some() => {
                known.lease = known.lease.max(lease); // nobody else can have changed it: no answer is newer
                known.used = Instant::now();
            }
            Some(known) => {
                known.lease = known.lease.max(lease); // answers may overtake each other
                known.attr = keep.then(|| attr.clone());
                known.used = Instant::now();
            }
            None if lease == 0 => {}
            None if keep && !uncertain => {
                let (shown, used) = (Some(attr.clone()), Instant::now());
                let known = Known { lease, attr: shown, names: None, listing: None, locks: None, used };
                self.known.insert(attr.ino, known);
            }
            None => self.give_back.push((attr.ino, lease)),
        }
    }

    /// A new inode of this session: of a directory all names are known.
    pub(super) fn made(&mut self, attr: &Attr) {
        if attr.kind == FileKind::Dir
            && let Some(known) = self.known.get_mut(&attr.ino)
            && known.attr.is_some()
        {
            known.names = Some(HashMap::new());
        }
    }

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

    fn list(&mut self, dir: InodeId) {
        let ours = self.changing_names.keys().filter(|(of, _)| *of == dir).map(|(_, name)| name.clone());
        let ours = ours.collect();
        self.listing.insert(dir, ours);
    }

    /// The answer to the question for a whole directory, with its mark.
    pub(super) fn listed(&mut self, dir: InodeId, mark: u64, times: (Duration, Duration), leased: Option<Leased>) {
        let ours = self.listing.remove(&dir);
        let Some(leased) = leased else { return self.leave_alone(dir) };
        let Some(listing) = leased.listing else { return self.leave_alone(dir) };
        if !self.heard(leased.term, &listing.leases, times) {
            return self.leave_alone(dir);
        }
        let lease = listing.leases.first().copied().unwrap_or(0);
        let usable = lease != 0 && !self.is_uncertain(dir) && mark >= self.spoilt;
        let is_ours = |known: &Known| known.lease & WRITE != 0 && known.names.is_some() && known.attr.is_some();
        match ours.filter(|_| usable) {
            Some(_) if self.known.get(&dir).is_some_and(is_ours) => {
                let known = self.known.get_mut(&dir).expect("just found");
                known.lease = known.lease.max(lease); // what it lists is no newer
            }
            // A recall of it came between, or too many changes of this session.
            None => self.give_back.push((dir, lease)),
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
                let lease = self.known.get(&dir).map_or(lease, |known| known.lease.max(lease));
                let names = Some(names);
                self.known.insert(dir, Known { lease, attr, names, listing: None, locks: None, used: Instant::now() });
                self.counted.remove(&dir);
            }
        }
        let attrs: Vec<&Attr> = listing.entries.iter().filter_map(|entry| entry.attr.as_ref()).collect();
        let versions: HashMap<InodeId, DataVersion> = attrs.iter().map(|attr| (attr.ino, attr.version)).collect();
        let grants = Grants { term: leased.term, leases: listing.leases.iter().skip(1).copied().collect() };
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
            if let Some(ours) = self.listing.get_mut(dir) {
                ours.push(name.clone());
            }
            let count = self.changing_names.entry((*dir, name.clone())).or_default();
            *count += 1;
            if *count > 1 {
                self.forget_names(*dir); // their order is not known here
                self.listing.remove(dir);
            }
        }
        self.blind += usize::from(blind);
        self.spoilt = if blind { self.clock } else { self.spoilt };
        Own { inodes, targets: led, names, blind, commit }
    }

    /// It succeeded: the names follow. Attributes that came with it are learnt next, others are asked for.
    pub(super) fn changed(&mut self, op: &Op, own: &Own, outcome: &Outcome) {
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
                    [one] if !own.blind => Some(*one),
                    [one, other] if one != other && !own.blind => self.leads(*from, from_name),
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

    fn leads(&self, dir: InodeId, name: &Name) -> Option<InodeId> {
        self.known.get(&dir)?.names.as_ref()?.get(name).copied().flatten()
    }

    /// The answer to a question for a name, with its mark: a name of a known directory that may have been there or not.
    pub(super) fn found(&mut self, dir: InodeId, name: &Name, mark: u64, leads: Option<InodeId>) {
        let quiet = self.blind == 0 && !self.changing_names.contains_key(&(dir, name.clone()));
        let is_open = self.known.get(&dir).and_then(|known| known.names.as_ref()).map(|names| names.get(name));
        if quiet && self.is_undisturbed(dir, mark) && is_open == Some(Some(&None)) {
            self.put_name(dir, name, leads.map(Some));
        }
    }

    /// What is known of a name from now on, after a change of this session: that it is not there, or where it leads, if
    /// that is known. A name that may be there or not stays so: the reply to a repeated request may be old.
    fn set_name(&mut self, dir: InodeId, name: &Name, to: Option<Option<InodeId>>) {
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
            if own.blind {
                let all: Vec<InodeId> = self.known.keys().copied().collect();
                all.into_iter().for_each(|ino| self.forget(ino)); // it may be any of them
            }
            self.uncertain.extend(own.inodes.iter().copied());
            self.all_uncertain |= own.blind;
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
            self.clock += 1;
            self.spoilt = self.clock;
        }
    }

    /// The next call.
    pub(super) fn next_call(&mut self, session: SessionId, open: BTreeSet<InodeId>, now: Instant) -> Next {
        self.open = open;
        self.forget_idle(now);
        self.say_lasting_locks(now);
        let tell = std::mem::take(&mut self.tell);
        let idle = self.known.is_empty() && self.listing.is_empty() && self.give_back.is_empty();
        if self.term == 0 {
            // It asks who leads, and says nothing.
            let call = RecallCall { session, term: 0, forgot: 0, given_back: Vec::new() };
            return Next { call, tell, flush: false, idle };
        }
        let some = self.give_back.len().min(RECALLS_MAX);
        let given_back = self.give_back.drain(..some).collect();
        let call = RecallCall { session, term: self.term, forgot: self.forgot, given_back };
        let flush = std::mem::take(&mut self.tell_first) || self.journal.is_of_another(call.term);
        Next { call, tell, flush: flush && !self.journal.is_empty(), idle }
    }

    /// A call is about to be sent.
    pub(super) fn calling(&mut self, call: &RecallCall) {
        if call.term != 0 && call.term == self.term {
            self.to_report = false;
        }
    }

    /// It is not sent: what comes before it could not be done.
    pub(super) fn not_called(&mut self, call: RecallCall) {
        self.give_back.extend(call.given_back);
        self.tell_first = true;
    }

    pub(super) fn recalled(&mut self, call: &RecallCall, (sent, uptime): (Duration, Duration), answer: &Recalls) {
        self.forget_run_out(uptime);
        if self.session != Some(call.session) || self.term != call.term {
            return;
        }
        if call.term == 0 {
            (self.term, self.forgot, self.to_report) = (answer.term, 0, true);
            return;
        }
        if answer.term != call.term {
            self.forget_all();
            (self.term, self.forgot, self.to_report) = (0, 0, true);
            return;
        }
        for ino in &answer.inodes {
            let was_listed = self.known.get(ino).is_some_and(|known| known.names.is_some());
            if was_listed | self.listing.remove(ino).is_some() {
                self.leave_alone(*ino);
            }
            self.forget(*ino);
        }
        self.forgot = self.forgot.max(answer.last);
        if answer.renewed {
            self.good_until = self.good_until.max(sent + LEASE_TERM);
        }
    }

    pub(super) fn forget(&mut self, ino: InodeId) {
        self.touch(ino);
        self.say_locks(ino);
        self.tell_first |= self.journal.is_pending(ino);
        if let Some(known) = self.known.remove(&ino) {
            self.names -= known.names.map_or(0, |names| names.len());
            self.contents.forget(ino);
            self.give_up(ino, known.lease); // if it was recalled, that is no news
            self.tell.push(ino);
        }
    }

    /// A lease is not believed in any more.
    pub(super) fn give_up(&mut self, ino: InodeId, lease: u64) {
        self.tell_first |= lease & WRITE != 0;
        if lease != WRITE {
            self.give_back.push((ino, lease));
        }
    }

    fn forget_names(&mut self, dir: InodeId) {
        if let Some(names) = self.known.get_mut(&dir).and_then(|known| known.names.take()) {
            self.names -= names.len();
        }
    }

    fn forget_all(&mut self) {
        self.unsaid_locks().into_iter().for_each(|ino| self.say_locks(ino));
        self.clock += 1;
        self.spoilt = self.clock;
        self.contents = Contents::default();
        self.tell.extend(self.known.drain().map(|(ino, _)| ino));
        self.listing.clear();
        self.give_back.clear();
        (self.names, self.good_until, self.since) = (0, Duration::ZERO, None);
    }

    /// What has run out, nobody believes any more: what the kernel was told runs out with it.
    pub(super) fn forget_run_out(&mut self, uptime: Duration) {
        if !self.is_good(uptime) && !self.known.is_empty() {
            self.unsaid_locks().into_iter().for_each(|ino| self.say_locks(ino));
            (self.contents, self.since) = (Contents::default(), None);
            for (ino, known) in std::mem::take(&mut self.known) {
                self.tell.push(ino);
                self.give_up(ino, known.lease); // the leader, whose clock runs slower, may still count it
            }
            self.names = 0;
        }
    }

    fn forget_idle(&mut self, now: Instant) {
        let kept = |ino: &InodeId| self.open.contains(ino) || self.journal.is_pending(*ino);
        let idle = |(ino, known): &(&InodeId, &Known)| known.used + IDLE_MAX < now && !kept(ino);
        let idle: Vec<InodeId> = self.known.iter().filter(idle).map(|(ino, _)| *ino).collect();
        idle.into_iter().for_each(|ino| self.forget(ino));
    }

    /// Keeps memory bounded: a quarter of what is known goes, that which was used least recently.
    pub(super) fn trim(&mut self) {
        if self.known.len() <= KNOWN_MAX && self.names <= NAMES_MAX {
            return;
        }
        let kept = |ino: &InodeId| self.open.contains(ino) || self.journal.is_pending(*ino);
        let closed = self.known.iter().filter(|(ino, _)| !kept(ino));
        let mut by_use: Vec<(Instant, InodeId)> = closed.map(|(ino, known)| (known.used, *ino)).collect();
        by_use.sort_unstable();
        let quarter = by_use.len().div_ceil(4);
        by_use.into_iter().take(quarter).for_each(|(_, ino)| self.forget(ino));
    }

    fn leave_alone(&mut self, dir: InodeId) {
        let now = Instant::now();
        let fresh = || Counted { looks: 0, later: None, pause: ALONE_MIN };
        let counted = self.counted.entry(dir).or_insert_with(fresh);
        counted.later = Some(now + counted.pause);
        counted.pause = (counted.pause * 2).min(ALONE_MAX);
        counted.looks = 0;
    }
}
