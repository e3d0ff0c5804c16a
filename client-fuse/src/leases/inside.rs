//! The state behind [`super::Leases`]: what is known, what is under way. Pure but for `Instant::now`, which only says what
//! was used last.

use super::Entry;
use super::changing::{Changing, Own};
use super::contents::Contents;
use super::journal::Journal;
use super::listing::{Counted, Kept, Listing};
use super::locks::{Asked, Held};
use super::next::Opened;
use common::id::{InodeId, LogIndex, SessionId};
use common::name::Name;
use common::proto::lease::{Grants, LEASE_TERM, WRITE};
use common::proto::meta::{Attr, ExtentRun, FileKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Inodes known; beyond it those used least recently go. Below what a leader grants one session.
const KNOWN_MAX: usize = 48 << 10;
/// Names known in all directories together; likewise.
const NAMES_MAX: usize = 200_000;
/// A lease that was not used for this long is given back.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Inodes with a change of unknown outcome; more, and nothing is leased until there are none.
const UNCERTAIN_MAX: usize = 1024;
/// Notes of what was touched, or given back, while answers are under way; beyond it those that no answer needs go.
const TOUCHED_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Inside {
    pub(super) session: Option<SessionId>,
    /// The leader's; 0: none is known.
    pub(super) term: u64,
    /// The last recall of that term that was done.
    pub(super) forgot: u64,
    pub(super) good_until: Duration,
    pub(super) known: HashMap<InodeId, Known>,
    pub(super) names: usize,
    /// Leases that are not wanted any more. Told with the next calls, so that no change waits for them.
    pub(super) give_back: Vec<(InodeId, u64)>,
    /// What was forgotten and the kernel has not been told of.
    pub(super) tell: Vec<InodeId>,
    /// Counts what may come between a question and its answer.
    pub(super) clock: u64,
    /// When each inode was last recalled or changed here, as far as an answer under way needs it.
    pub(super) touched: HashMap<InodeId, u64>,
    /// Answers asked for before this are not kept.
    pub(super) spoilt: u64,
    /// The newest lease of each inode that was given back, and when, as far as an answer under way may bring one that is as
    /// old.
    pub(super) ended: HashMap<InodeId, (u64, u64)>,
    /// The marks of questions under way, and how many have each.
    pub(super) asks: BTreeMap<u64, usize>,
    pub(super) changing: HashMap<InodeId, Changing>,
    pub(super) changing_names: BTreeMap<(InodeId, Name), usize>,
    /// Own changes under way of inodes that are not known.
    pub(super) blind: usize,
    /// Directories that are being asked for whole.
    pub(super) listing: BTreeMap<InodeId, Listing>,
    pub(super) counted: BTreeMap<InodeId, Counted>,
    /// Directories listed lately, and how the files in them are opened.
    pub(super) opened: Opened,
    /// A change of this session may still come (invariant 2).
    pub(super) uncertain: BTreeSet<InodeId>,
    /// And one of an inode that is not known.
    pub(super) all_uncertain: bool,
    /// Files that are open: the kernel may map them and never ask again, so their leases are kept.
    pub(super) open: BTreeSet<InodeId>,
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
    pub(super) to_report: bool,
    /// Something that was decided under a lease which is not held any more may not be told yet.
    pub(super) tell_first: bool,
}

#[derive(Debug)]
pub(super) struct Known {
    /// Its number; [`WRITE`] alone: a new inode that the leader has not heard of yet.
    pub(super) lease: u64,
    /// `None`: to be asked for.
    pub(super) attr: Option<Attr>,
    /// All names; `None`: not all are known. A name that may be there or not leads to `None`.
    pub(super) names: Option<HashMap<Name, Option<InodeId>>>,
    /// When they were learnt, on [`Inside::clock`].
    pub(super) named: u64,
    /// The names as they were listed last, while nothing of it has changed since.
    pub(super) listing: Option<Arc<Kept>>,
    /// All locks of it; `None`: only the metaservers know.
    pub(super) locks: Option<Held>,
    pub(super) used: Instant,
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

    /// No change of unknown outcome is left. What was asked for before may not show it.
    pub(super) fn settled(&mut self) {
        if self.all_uncertain || !self.uncertain.is_empty() {
            self.spoil();
        }
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
        let Some(oldest) = self.asks.first_key_value().map(|(mark, _)| *mark) else {
            self.touched.clear();
            self.ended.clear();
            return;
        };
        if self.touched.len() > TOUCHED_MAX {
            self.touched.retain(|_, at| *at > oldest);
        }
        if self.ended.len() > TOUCHED_MAX {
            self.ended.retain(|_, (_, at)| *at >= oldest);
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

    /// No answer that was asked for by now is kept.
    pub(super) fn spoil(&mut self) {
        self.clock += 1;
        self.spoilt = self.clock;
    }

    /// Something is learnt: the time on the clock, which is later than that of all questions before.
    pub(super) fn learning(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn is_uncertain(&self, ino: InodeId) -> bool {
        self.all_uncertain || self.uncertain.len() > UNCERTAIN_MAX || self.uncertain.contains(&ino)
    }

    /// Nothing came between the question with this mark and now, of this inode.
    pub(super) fn is_undisturbed(&self, ino: InodeId, mark: u64) -> bool {
        mark >= self.spoilt && self.touched.get(&ino).is_none_or(|at| *at <= mark)
    }

    /// Keeps attributes that came with leases, of a question with this mark. (What came without one may be older than
    /// what is known: others may have changed it between that question and the one that brought a lease.)
    pub(super) fn learn(&mut self, mark: u64, attrs: &[&Attr], grants: &Grants) {
        for (attr, lease) in attrs.iter().zip(&grants.leases).filter(|(_, lease)| **lease != 0) {
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

    pub(super) fn keep(&mut self, attr: &Attr, lease: u64, keep: bool) {
        let leasable = !self.is_uncertain(attr.ino) && !self.has_ended(attr.ino, lease);
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
            None if keep && leasable => {
                let (attr, ino, used) = (Some(attr.clone()), attr.ino, Instant::now());
                let known = Known { lease, attr, names: None, named: 0, listing: None, locks: None, used };
                self.known.insert(ino, known);
            }
            None => self.spare(attr.ino, lease),
        }
    }

    /// A new inode of this session, by the answer to a question with this mark: of a directory all names are known.
    pub(super) fn made(&mut self, mark: u64, attr: &Attr) {
        let named = self.learning();
        let undisturbed = attr.kind == FileKind::Dir && self.is_undisturbed(attr.ino, mark);
        if let Some(known) = self.known.get_mut(&attr.ino).filter(|_| undisturbed)
            && known.attr.is_some()
            && known.names.is_none()
        {
            (known.names, known.named) = (Some(HashMap::new()), named);
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

    /// A lease is not believed in any more, nor is an older one that answers under way may bring.
    pub(super) fn give_up(&mut self, ino: InodeId, lease: u64) {
        debug_assert!(!self.known.contains_key(&ino), "invariant 6");
        self.tell_first |= lease & WRITE != 0;
        if lease == WRITE {
            return; // the leader has not heard of it
        }
        self.give_back.push((ino, lease));
        if !self.asks.is_empty() {
            let newest = self.ended.get(&ino).map_or(lease, |(ended, _)| lease.max(*ended));
            self.ended.insert(ino, (newest, self.clock));
        }
    }

    /// True if this lease, or a newer one, was given back.
    pub(super) fn has_ended(&self, ino: InodeId, lease: u64) -> bool {
        self.ended.get(&ino).is_some_and(|(ended, _)| lease <= *ended)
    }

    /// Nothing is kept of what a lease came with. It stands for an older one that is believed in, or may be.
    pub(super) fn spare(&mut self, ino: InodeId, lease: u64) {
        if let Some(known) = self.known.get_mut(&ino) {
            known.lease = known.lease.max(lease);
        } else if let Some(listing) = self.listing.get_mut(&ino) {
            listing.lease = listing.lease.max(lease);
        } else if lease != 0 {
            self.give_up(ino, lease);
        }
    }

    pub(super) fn forget_names(&mut self, dir: InodeId) {
        if let Some(names) = self.known.get_mut(&dir).and_then(|known| known.names.take()) {
            self.names -= names.len();
        }
    }

    pub(super) fn forget_all(&mut self) {
        self.unsaid_locks().into_iter().for_each(|ino| self.say_locks(ino));
        self.spoil();
        self.ended.clear(); // the next leader has numbers of its own
        self.contents = Contents::default();
        self.tell.extend(self.known.drain().map(|(ino, _)| ino));
        self.listing.values_mut().for_each(|listing| *listing = Listing { ours: None, lease: 0 });
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

    pub(super) fn forget_idle(&mut self, now: Instant) {
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
}
