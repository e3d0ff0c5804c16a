//! Directories whose names are all known: a name that is not there is answered without asking anybody.
//!
//! The right to do that is a listing lease ([`common::proto::lease`], with the rules that make it sound). A directory is
//! leased when names were missed in it [`MISSES`] times: a program that makes files there asks for each name first.
//!
//! Invariants, kept under one lock:
//! 1. `dirs` are leased by the leader of `term`, and good until `good_until` on [`World::uptime`]'s clock. What has run out is
//!    forgotten before anything is renewed or added: the leader does not recall what it takes for run out.
//! 2. A change of a directory's names by this session is in `changing` from before it is sent until it is known in
//!    `dirs`; a name of it is not answered from memory meanwhile.
//! 3. A listing that was asked for before a recall of its directory is not kept. Of one that was asked for while this
//!    session changed names, it is not known whether it shows the changes: those names may be there.
//! 4. The leader does not recall what the session itself changes. So a directory in which two own changes of one name
//!    overlapped is forgotten, and one where the outcome of a change is unknown is never leased again: that change may
//!    still come.

use crate::core::Core;
use common::fault::{Fault, Kind};
use common::id::{InodeId, SessionId};
use common::name::Name;
use common::proto::lease::{LEASE_TERM, LeaseAsk, Leased, RECALLS_MAX, RecallCall, Recalls};
use common::proto::meta::Cred;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Names missed in a directory before it is leased.
const MISSES: u32 = 2;
/// Directories whose misses are counted.
const COUNTED_MAX: usize = 1024;
/// Names kept in all directories together; beyond it the directory used least recently goes.
const NAMES_MAX: usize = 200_000;
/// A lease that was not used for this long is not renewed.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Directories with a change of unknown outcome; more, and nothing is leased any more by this session.
const UNCERTAIN_MAX: usize = 1024;
/// How long a directory is left alone after a lease of it was recalled or refused; doubled each time, up to
/// [`ALONE_MAX`].
const ALONE_MIN: Duration = Duration::from_millis(500);
const ALONE_MAX: Duration = Duration::from_secs(32);
/// How long one call may take. Shorter than a lease: what is not answered by then is of no use.
const CALL_LIMIT: Duration = Duration::from_millis(900);
/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    inside: Mutex<Inside>,
    /// There is something to renew.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    session: Option<SessionId>,
    /// The leader's; 0: none is known.
    term: u64,
    /// The last recall of that term that was done.
    forgot: u64,
    good_until: Duration,
    dirs: BTreeMap<InodeId, Known>,
    names: usize,
    asking: BTreeMap<InodeId, Asked>,
    /// Leases that are not wanted any more: directory and number. Told with the next call, so that no change waits for them.
    give_back: Vec<(InodeId, u64)>,
    /// Names this session is changing, and how many changes of each are under way.
    changing: BTreeMap<InodeId, BTreeMap<Name, usize>>,
    misses: BTreeMap<InodeId, Missed>,
    /// A change of this session may still come (invariant 4).
    uncertain: BTreeSet<InodeId>,
}

/// A listing on its way.
#[derive(Debug, Default)]
struct Asked {
    /// It is not to be kept.
    spoilt: bool,
    /// Names this session has been changing since it was asked for.
    ours: Vec<Name>,
}

#[derive(Debug)]
struct Known {
    lease: u64,
    names: HashSet<Name>,
    used: Instant,
}

#[derive(Debug)]
struct Missed {
    count: u32,
    /// Not to be asked for before.
    later: Option<Instant>,
    pause: Duration,
}

/// What a change does to a name when it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is there, or may be: a name too many costs a question, one too few a wrong answer.
    Added,
    /// It is not.
    Removed,
}

/// A change of names by this session. Dropped before [`Change::done`]: nobody knows how it went.
pub(crate) struct Change<'a> {
    listings: &'a Listings,
    names: Vec<(InodeId, Name, Effect)>,
    known: bool,
}

impl Listings {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic holds this lock")
    }

    /// True if there is certainly no such name at this moment (`uptime`).
    pub(crate) fn lacks(&self, dir: InodeId, name: &Name, uptime: Duration) -> bool {
        let mut inside = self.inside();
        if uptime >= inside.good_until || inside.changing.get(&dir).is_some_and(|names| names.contains_key(name)) {
            return false;
        }
        let Some(known) = inside.dirs.get_mut(&dir) else { return false };
        known.used = Instant::now();
        !known.names.contains(name)
    }

    /// A name was asked for and is not there. True: it is time to lease the directory, and the caller does.
    pub(crate) fn missed(&self, dir: InodeId) -> bool {
        let now = Instant::now();
        let mut inside = self.inside();
        if inside.dirs.contains_key(&dir) || inside.asking.contains_key(&dir) || inside.is_uncertain(dir) {
            return false;
        }
        if inside.misses.len() >= COUNTED_MAX && !inside.misses.contains_key(&dir) {
            inside.misses.retain(|_, missed| missed.later.is_some_and(|later| later > now));
            if inside.misses.len() >= COUNTED_MAX {
                return false;
            }
        }
        let fresh = || Missed { count: 0, later: None, pause: ALONE_MIN };
        let missed = inside.misses.entry(dir).or_insert_with(fresh);
        missed.count += 1;
        if missed.count < MISSES || missed.later.is_some_and(|later| later > now) {
            return false;
        }
        let ours = inside.changing.get(&dir).map(|names| names.keys().cloned().collect()).unwrap_or_default();
        inside.asking.insert(dir, Asked { spoilt: false, ours });
        drop(inside);
        self.wake.notify_one(); // a recall may come before the answer
        true
    }

    /// This session is about to change these names.
    pub(crate) fn change(&self, names: Vec<(InodeId, Name, Effect)>) -> Change<'_> {
        let mut inside = self.inside();
        for (dir, name, _) in &names {
            if let Some(asked) = inside.asking.get_mut(dir) {
                asked.ours.push(name.clone());
            }
            let count = inside.changing.entry(*dir).or_default().entry(name.clone()).or_default();
            *count += 1;
            if *count > 1 {
                inside.forget(*dir); // their order is not known here
            }
        }
        drop(inside);
        Change { listings: self, names, known: false }
    }

    /// The answer to [`Listings::missed`]'s question, sent at `sent`, which came at `uptime`.
    fn answered(&self, session: SessionId, dir: InodeId, (sent, uptime): (Duration, Duration), leased: Option<Leased>) {
        let mut inside = self.inside();
        inside.forget_run_out(uptime);
        let asked = inside.asking.remove(&dir).filter(|asked| !asked.spoilt && inside.session == Some(session));
        let Some(leased) = leased else { return inside.leave_alone(dir) };
        if inside.term != leased.term {
            if inside.term != 0 {
                inside.forget_all(); // and call again: then the new leader knows it
                inside.term = 0;
                return inside.leave_alone(dir);
            }
            (inside.term, inside.forgot) = (leased.term, 0);
        }
        let Some(names) = leased.names else { return inside.leave_alone(dir) };
        match asked {
            Some(Asked { ours, .. }) => {
                inside.good_until = inside.good_until.max(sent + LEASE_TERM);
                inside.keep(dir, leased.lease, names.into_iter().chain(ours).collect());
            }
            None => inside.give_back.push((dir, leased.lease)),
        }
        drop(inside);
        self.wake.notify_one();
    }

    /// Begins anew if the session is another one.
    fn begin(&self, session: SessionId) -> MutexGuard<'_, Inside> {
        let mut inside = self.inside();
        if inside.session != Some(session) {
            inside.forget_all();
            (inside.session, inside.term, inside.forgot) = (Some(session), 0, 0);
            inside.uncertain.clear(); // what was under way in another session cannot come any more
        }
        inside
    }

    /// The next call, if anything is held or to be told.
    fn next_call(&self, session: SessionId) -> Option<RecallCall> {
        let mut inside = self.begin(session);
        inside.forget_idle(Instant::now());
        let idle = inside.dirs.is_empty() && inside.asking.is_empty() && inside.give_back.is_empty();
        if idle || inside.term == 0 {
            return None;
        }
        let some = inside.give_back.len().min(RECALLS_MAX);
        let given_back = inside.give_back.drain(..some).collect();
        Some(RecallCall { session, term: inside.term, forgot: inside.forgot, given_back })
    }

    /// The answer to it, sent at `sent`, which came at `uptime`.
    fn recalled(&self, call: &RecallCall, (sent, uptime): (Duration, Duration), answer: &Recalls) {
        let mut inside = self.inside();
        inside.forget_run_out(uptime);
        if inside.session != Some(call.session) || inside.term != call.term {
            return;
        }
        if answer.term != call.term {
            inside.forget_all();
            (inside.term, inside.forgot) = (answer.term, 0);
            return;
        }
        for dir in &answer.dirs {
            inside.forget(*dir);
            inside.leave_alone(*dir);
        }
        inside.forgot = inside.forgot.max(answer.last);
        if answer.dirs.is_empty() {
            inside.good_until = inside.good_until.max(sent + LEASE_TERM);
        }
    }
}

impl Change<'_> {
    /// How it went.
    pub(crate) fn done<T>(mut self, result: &Result<T, Fault>) {
        let nothing_happened = |fault: &Fault| {
            matches!(
                fault.kind,
                Kind::NotFound | Kind::Exists | Kind::NotEmpty | Kind::IsDir | Kind::NotDir | Kind::Denied
            )
        };
        self.known = result.as_ref().map_or_else(nothing_happened, |_| true);
        if result.is_ok() {
            let mut inside = self.listings.inside();
            for (dir, name, effect) in &self.names {
                inside.learn(*dir, name, *effect);
            }
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut inside = self.listings.inside();
        for (dir, name, _) in &self.names {
            if !self.known {
                inside.forget(*dir);
                inside.uncertain.insert(*dir);
            }
            let names = inside.changing.get_mut(dir).expect("entered when the change began");
            let count = names.get_mut(name).expect("likewise");
            *count -= 1;
            if *count == 0 {
                names.remove(name);
            }
            if names.is_empty() {
                inside.changing.remove(dir);
            }
        }
    }
}

impl Inside {
    /// What is being asked about this directory is of no use when it comes.
    fn spoil(&mut self, dir: InodeId) {
        if let Some(asked) = self.asking.get_mut(&dir) {
            asked.spoilt = true;
        }
    }

    fn is_uncertain(&self, dir: InodeId) -> bool {
        self.uncertain.len() > UNCERTAIN_MAX || self.uncertain.contains(&dir)
    }

    fn keep(&mut self, dir: InodeId, lease: u64, names: HashSet<Name>) {
        self.forget(dir);
        self.names += names.len();
        self.misses.remove(&dir);
        self.dirs.insert(dir, Known { lease, names, used: Instant::now() });
        while self.names > NAMES_MAX {
            let oldest = self.dirs.iter().min_by_key(|(_, known)| known.used).map(|(dir, _)| *dir);
            self.forget(oldest.expect("there are names"));
        }
    }

    fn learn(&mut self, dir: InodeId, name: &Name, effect: Effect) {
        let Some(known) = self.dirs.get_mut(&dir) else { return };
        match effect {
            Effect::Added => self.names += usize::from(known.names.insert(name.clone())),
            Effect::Removed => self.names -= usize::from(known.names.remove(name)),
        }
        if self.names > NAMES_MAX {
            self.forget(dir);
        }
    }

    fn forget(&mut self, dir: InodeId) {
        self.spoil(dir);
        if let Some(known) = self.dirs.remove(&dir) {
            self.names -= known.names.len();
            self.give_back.push((dir, known.lease)); // if it was recalled, that is no news
        }
    }

    fn forget_all(&mut self) {
        self.asking.values_mut().for_each(|asked| asked.spoilt = true);
        self.dirs.clear();
        self.give_back.clear();
        (self.names, self.good_until) = (0, Duration::ZERO);
    }

    fn forget_run_out(&mut self, uptime: Duration) {
        if uptime >= self.good_until {
            self.dirs.clear();
            self.names = 0;
        }
    }

    fn forget_idle(&mut self, now: Instant) {
        let idle = self.dirs.iter().filter(|(_, known)| known.used + IDLE_MAX < now).map(|(dir, _)| *dir);
        let idle: BTreeSet<InodeId> = idle.collect();
        idle.into_iter().for_each(|dir| self.forget(dir));
    }

    fn leave_alone(&mut self, dir: InodeId) {
        let now = Instant::now();
        let fresh = || Missed { count: 0, later: None, pause: ALONE_MIN };
        let missed = self.misses.entry(dir).or_insert_with(fresh);
        missed.later = Some(now + missed.pause);
        missed.pause = (missed.pause * 2).min(ALONE_MAX);
        missed.count = 0;
    }
}

impl Core {
    /// A name was asked for and is not there: leases the directory in the background if that is worth it.
    pub(crate) fn missed(self: &Arc<Self>, cred: &Cred, dir: InodeId) {
        if !self.config.leases || !self.listings.missed(dir) {
            return;
        }
        let (core, cred) = (self.clone(), cred.clone());
        self.tasks.spawn_until_stop(async move {
            let session = core.meta.session().id;
            drop(core.listings.begin(session));
            let sent = core.world.uptime();
            let leased = core.meta.lease(&LeaseAsk { session, cred, dir }, Instant::now() + CALL_LIMIT).await;
            if let Err(fault) = &leased {
                tracing::debug!(inode = %dir, error = %fault, "no lease");
            }
            core.listings.answered(session, dir, (sent, core.world.uptime()), leased.ok());
        });
    }

    /// Renews what is held, and forgets what is recalled.
    pub(crate) async fn lease_loop(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let Some(call) = self.listings.next_call(self.meta.session().id) else {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = self.listings.wake.notified() => continue,
                }
            };
            let sent = self.world.uptime();
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = self.meta.recalls(call.clone(), Instant::now() + CALL_LIMIT) => answer,
            };
            match answer {
                Ok(answer) => self.listings.recalled(&call, (sent, self.world.uptime()), &answer),
                Err(fault) => {
                    tracing::debug!(error = %fault, "leases are not renewed");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId(1);
    const DIR: InodeId = InodeId(7);
    const AT: Duration = Duration::from_secs(100);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes().to_vec()).unwrap()
    }

    fn leased(term: u64, names: &[&str]) -> Option<Leased> {
        Some(Leased { term, lease: 9, names: Some(names.iter().map(|text| name(text)).collect()) })
    }

    /// With a lease of `DIR`, asked for at `AT`.
    fn held(names: &[&str]) -> Listings {
        let listings = Listings::default();
        assert!(listings.next_call(S).is_none());
        assert!(!listings.missed(DIR) && listings.missed(DIR) && !listings.missed(DIR));
        listings.answered(S, DIR, (AT, AT), leased(3, names));
        listings
    }

    fn lacks(listings: &Listings, text: &str) -> bool {
        listings.lacks(DIR, &name(text), AT + LEASE_TERM / 2)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_listed_is_not_there_while_the_lease_lasts() {
        let listings = held(&["a"]);
        assert!(lacks(&listings, "b") && !lacks(&listings, "a"));
        assert!(!listings.lacks(DIR, &name("b"), AT + LEASE_TERM), "the lease has run out");
        assert!(!listings.lacks(InodeId(8), &name("b"), AT));
        let call = listings.next_call(S).unwrap();
        assert_eq!(call, RecallCall { session: S, term: 3, forgot: 0, given_back: vec![] });
        let later = AT + LEASE_TERM / 2;
        listings.recalled(&call, (later, later), &Recalls { term: 3, last: 0, dirs: vec![] });
        assert!(listings.lacks(DIR, &name("b"), AT + LEASE_TERM), "renewed");
    }

    /// The leader has not recalled it since: it took it for run out.
    #[tokio::test(start_paused = true)]
    async fn what_has_run_out_does_not_come_back() {
        let (listings, late) = (held(&["a"]), AT + LEASE_TERM);
        let call = listings.next_call(S).unwrap();
        listings.recalled(&call, (late, late), &Recalls { term: 3, last: 0, dirs: vec![] });
        assert!(!listings.lacks(DIR, &name("b"), late), "by a renewal");

        let listings = held(&["a"]);
        listings.inside().asking.insert(InodeId(9), Asked::default());
        listings.answered(S, InodeId(9), (late, late), leased(3, &[]));
        assert!(!listings.lacks(DIR, &name("b"), late), "by another lease");
        assert!(listings.lacks(InodeId(9), &name("b"), late) && listings.inside().names == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn own_changes_are_known_and_not_guessed_while_under_way() {
        let listings = held(&["a"]);
        let change = listings.change(vec![(DIR, name("b"), Effect::Added)]);
        assert!(!lacks(&listings, "b") && lacks(&listings, "c"));
        change.done(&Ok(()));
        assert!(!lacks(&listings, "b"));
        let change = listings.change(vec![(DIR, name("b"), Effect::Removed), (DIR, name("c"), Effect::Added)]);
        change.done(&Ok(()));
        assert!(lacks(&listings, "b") && !lacks(&listings, "c"));
        let failed: Result<(), Fault> = Err(Fault::new(Kind::Exists, "d"));
        listings.change(vec![(DIR, name("d"), Effect::Added)]).done(&failed);
        assert!(lacks(&listings, "e"), "nothing happened");
        let unsure: Result<(), Fault> = Err(Fault::new(Kind::Unsure, "d"));
        listings.change(vec![(DIR, name("d"), Effect::Added)]).done(&unsure);
        assert!(!lacks(&listings, "e"), "nobody knows what is there");
        assert_eq!(listings.inside().names, 0);
        assert!((0..9).all(|_| !listings.missed(DIR)), "it may still come, and would not be recalled");
        assert!(listings.next_call(SessionId(2)).is_none() && !listings.missed(DIR) && listings.missed(DIR));
    }

    #[tokio::test(start_paused = true)]
    async fn overlapping_changes_of_one_name_are_not_put_in_order() {
        let listings = held(&["a"]);
        let unlink = listings.change(vec![(DIR, name("a"), Effect::Removed)]);
        let create = listings.change(vec![(DIR, name("a"), Effect::Added)]);
        create.done(&Ok(()));
        assert!(!lacks(&listings, "a") && !lacks(&listings, "b"));
        assert!(!listings.missed(DIR) && listings.missed(DIR));
        listings.answered(S, DIR, (AT, AT), leased(3, &[]));
        unlink.done(&Ok(()));
        assert!(lacks(&listings, "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recalled_directory_is_forgotten_before_that_is_said() {
        let listings = held(&["a"]);
        let call = listings.next_call(S).unwrap();
        listings.inside().asking.insert(InodeId(9), Asked::default());
        listings.recalled(&call, (AT, AT), &Recalls { term: 3, last: 4, dirs: vec![DIR, InodeId(9)] });
        assert!(!lacks(&listings, "b"));
        let call = listings.next_call(S).unwrap();
        assert_eq!((call.forgot, call.given_back), (4, vec![(DIR, 9)]));
        listings.answered(S, InodeId(9), (AT, AT), leased(3, &[]));
        assert!(!listings.lacks(InodeId(9), &name("x"), AT), "it was asked for before the recall");
        assert!(!listings.missed(DIR) && !listings.missed(DIR) && !listings.missed(DIR), "left alone for a while");
        tokio::time::advance(ALONE_MIN).await;
        assert!(listings.missed(DIR));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_survives_a_new_leader_or_session() {
        let listings = held(&["a"]);
        let call = listings.next_call(S).unwrap();
        listings.recalled(&call, (AT, AT), &Recalls { term: 4, last: 0, dirs: vec![] });
        assert!(!lacks(&listings, "b") && listings.inside().term == 4);
        let listings = held(&["a"]);
        assert!(listings.next_call(SessionId(2)).is_none());
        assert!(!lacks(&listings, "b"));
        let listings = held(&["a"]);
        listings.inside().asking.insert(InodeId(9), Asked::default());
        listings.answered(S, InodeId(9), (AT, AT), leased(5, &[]));
        assert!(!lacks(&listings, "b") && !listings.lacks(InodeId(9), &name("x"), AT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_crossed_own_changes_does_not_deny_them() {
        let listings = Listings::default();
        assert!(listings.next_call(S).is_none());
        let before = listings.change(vec![(DIR, name("a"), Effect::Added)]);
        assert!(!listings.missed(DIR) && listings.missed(DIR));
        before.done(&Ok(()));
        listings.change(vec![(DIR, name("b"), Effect::Added)]).done(&Ok(()));
        let under_way = listings.change(vec![(DIR, name("c"), Effect::Added)]);
        listings.answered(S, DIR, (AT, AT), leased(3, &[]));
        under_way.done(&Ok(()));
        assert!(!lacks(&listings, "a") && !lacks(&listings, "b") && !lacks(&listings, "c") && lacks(&listings, "d"));

        let listings = Listings::default();
        assert!(listings.next_call(S).is_none());
        assert!(!listings.missed(DIR) && listings.missed(DIR));
        drop(listings.change(vec![(DIR, name("b"), Effect::Added)]));
        listings.answered(S, DIR, (AT, AT), leased(3, &[]));
        assert!(!lacks(&listings, "b") && !lacks(&listings, "d"), "how that change went is not known");
        assert_eq!(listings.next_call(S).unwrap().given_back, [(DIR, 9)]);
        assert!(listings.next_call(S).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_idle_leases_end() {
        let listings = held(&["a"]);
        let many = |n: usize| (0..n).map(|i| name(&format!("n{i}"))).collect::<HashSet<_>>();
        tokio::time::advance(Duration::from_secs(1)).await;
        listings.inside().keep(InodeId(9), 10, many(NAMES_MAX));
        assert!(!lacks(&listings, "b"), "the oldest went");
        assert!(listings.next_call(S).is_some());
        tokio::time::advance(IDLE_MAX + Duration::from_secs(1)).await;
        assert_eq!(listings.next_call(S).unwrap().given_back, [(InodeId(9), 10)]);
        assert!(listings.next_call(S).is_none());
    }
}
