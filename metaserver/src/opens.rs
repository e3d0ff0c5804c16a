//! Who has removed files open: the leader asks the mounts, in rounds, and then says in one command who holds what.
//!
//! When the last name of a file goes, the state machine keeps the inode for nobody in particular
//! ([`namespace::UNASKED`](crate::namespace::UNASKED)) if other mounts may have it open. A round asks every attending
//! session for all inodes it has open. Who answers waits for its opens under way first, and every later open finds that
//! the file has no name and fails. So a session that did not name an inode in a round that began after its last name
//! went will never have it open, however late the command comes that says so.
//!
//! A round ends when every session has answered, or has ended. One that lives and does not answer is taken to hold
//! everything after [`ROUND_MAX`], so that it keeps from the trash only what it may have open; later rounds ask it again.
//! What a round learnt is in memory only: the next leader asks again.

use crate::namespace::Noted;
use common::id::{InodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What sessions were noted to hold is verified this often: one may have closed a file before that was noted.
const VERIFY_EVERY: Duration = Duration::from_secs(10);
/// A round waits for answers this long.
const ROUND_MAX: Duration = Duration::from_secs(30);
/// Rounds in a row in which a session that does not answer is taken to hold everything, at most; then it is waited for, as long as
/// it lives: what it is taken to hold is let go of in one step when it ends.
const TAKEN_MAX: u32 = 64;

/// What a round is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Inodes without a name that nobody was asked about yet.
    pub(crate) unasked: Vec<InodeId>,
    /// What sessions are noted to hold.
    pub(crate) noted: Vec<Noted>,
    /// Who can answer.
    pub(crate) attending: Vec<SessionId>,
}

/// What a round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Inodes without a name, and who has them open.
    pub(crate) held: Vec<(InodeId, Vec<SessionId>)>,
    /// What sessions are noted to hold and do not.
    pub(crate) dropped: Vec<Noted>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    began: Instant,
    held: BTreeMap<InodeId, Vec<SessionId>>,
    noted: BTreeMap<SessionId, BTreeSet<InodeId>>,
    waiting: BTreeSet<SessionId>,
    dropped: Vec<(SessionId, InodeId)>,
}

#[derive(Debug)]
struct Table {
    last: u64,
    running: Option<Round>,
    verified: Instant,
    /// Rounds in a row that sessions have not answered.
    silent: BTreeMap<SessionId, u32>,
    /// The last of the notes that the last round was about: the next one goes on behind it.
    noted_to: Option<Noted>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Opens {
    table: Mutex<Table>,
    began: Notify,
}

impl Opens {
    /// Nobody was asked.
    pub(crate) fn new(now: Instant) -> Opens {
        Opens {
            table: Mutex::new(Table { last: 0, running: None, verified: now, silent: BTreeMap::new(), noted_to: None }),
            began: Notify::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// The notes that the next round is about come behind this one, if there are any.
    pub(crate) fn noted_to(&self) -> Option<Noted> {
        self.table().noted_to
    }

    /// There is nothing to ask about any more.
    pub(crate) fn nothing(&self) {
        let mut table = self.table();
        (table.running, table.noted_to) = (None, None);
    }

    /// Whether a round is under way; if so, those who have ended since are not waited for.
    pub(crate) fn is_running(&self, attending: &[SessionId]) -> bool {
        match &mut self.table().running {
            Some(round) => {
                round.waiting.retain(|session| attending.contains(session));
                true
            }
            None => false,
        }
    }

    /// Begins a round if there is something to ask.
    pub(crate) fn begin(&self, asked: Asked, now: Instant) {
        let mut table = self.table();
        let verify = !asked.noted.is_empty() && now.saturating_duration_since(table.verified) >= VERIFY_EVERY;
        if table.running.is_some() || (asked.unasked.is_empty() && !verify) {
            return;
        }
        table.last += 1;
        table.verified = now;
        table.noted_to = asked.noted.last().copied();
        let mut noted: BTreeMap<SessionId, BTreeSet<InodeId>> = BTreeMap::new();
        for (session, ino) in asked.noted {
            noted.entry(session).or_default().insert(ino);
        }
        table.running = Some(Round {
            number: table.last,
            began: now,
            held: asked.unasked.into_iter().map(|ino| (ino, Vec::new())).collect(),
            noted,
            waiting: asked.attending.into_iter().collect(),
            dropped: Vec::new(),
        });
        drop(table);
        self.began.notify_waiters();
    }

    /// A session has exactly these open, as an answer to a round.
    pub(crate) fn report(&self, session: SessionId, number: u64, open: &[InodeId]) {
        let mut table = self.table();
        let Table { running, silent, .. } = &mut *table;
        let Some(round) = running.as_mut().filter(|round| round.number == number) else { return };
        if !round.waiting.remove(&session) {
            return;
        }
        silent.remove(&session);
        let mut noted = round.noted.remove(&session).unwrap_or_default();
        for ino in open {
            noted.remove(ino);
            if let Some(holders) = round.held.get_mut(ino) {
                holders.push(session);
            }
        }
        round.dropped.extend(noted.into_iter().map(|ino| (session, ino)));
    }

    /// What the round found, once everybody has answered, or nobody waits any longer. It is over then.
    pub(crate) fn finished(&self, now: Instant) -> Option<Found> {
        let mut table = self.table();
        let Table { running, silent, .. } = &mut *table;
        let mut round = running.take_if(|round| {
            let may_be_taken = |session: &SessionId| silent.get(session).is_none_or(|rounds| *rounds < TAKEN_MAX);
            let late = now.saturating_duration_since(round.began) >= ROUND_MAX;
            round.waiting.is_empty() || (late && round.waiting.iter().all(may_be_taken))
        })?;
        silent.retain(|session, _| round.waiting.contains(session));
        round.waiting.iter().for_each(|session| *silent.entry(*session).or_default() += 1);
        round.held.values_mut().for_each(|holders| holders.extend(&round.waiting));
        Some(Found { held: round.held.into_iter().collect(), dropped: round.dropped })
    }

    /// Waits until this session is to answer a round; its number.
    pub(crate) async fn wait_for_round(&self, session: SessionId) -> u64 {
        loop {
            let began = self.began.notified();
            tokio::pin!(began);
            began.as_mut().enable();
            if let Some(round) = &self.table().running
                && round.waiting.contains(&session)
            {
                return round.number;
            }
            began.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn asked() -> Asked {
        let unasked = vec![InodeId(7), InodeId(8)];
        Asked { unasked, noted: vec![(A, InodeId(5)), (A, InodeId(6))], attending: vec![A, B] }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_ends_when_everybody_has_answered_or_is_gone() {
        let opens = Opens::new(Instant::now());
        let finished = |opens: &Opens| opens.finished(Instant::now());
        assert_eq!(finished(&opens), None);
        opens.begin(asked(), Instant::now());
        let number = opens.wait_for_round(A).await;
        opens.report(A, number - 1, &[]);
        assert!(opens.is_running(&[A, B]) && finished(&opens).is_none(), "an answer to an earlier round");
        opens.report(A, number, &[InodeId(6), InodeId(7), InodeId(99)]);
        opens.report(A, number, &[]);
        assert!(finished(&opens).is_none(), "B has said nothing");
        assert!(tokio::time::timeout(VERIFY_EVERY, opens.wait_for_round(A)).await.is_err(), "asked once");
        assert!(opens.is_running(&[A]));
        let held = vec![(InodeId(7), vec![A]), (InodeId(8), vec![])];
        assert_eq!(finished(&opens), Some(Found { held, dropped: vec![(A, InodeId(5))] }));
        assert!(finished(&opens).is_none() && !opens.is_running(&[A]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_may_have_everything_open() {
        let opens = Opens::new(Instant::now());
        opens.begin(asked(), Instant::now());
        let number = opens.wait_for_round(A).await;
        opens.report(A, number, &[InodeId(7)]);
        tokio::time::advance(ROUND_MAX - Duration::from_secs(1)).await;
        assert_eq!(opens.finished(Instant::now()), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let held = vec![(InodeId(7), vec![A, B]), (InodeId(8), vec![B])];
        let dropped = vec![(A, InodeId(5)), (A, InodeId(6))];
        assert_eq!(opens.finished(Instant::now()), Some(Found { held, dropped }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_for_very_long_is_waited_for() {
        let opens = Opens::new(Instant::now());
        for _ in 0..TAKEN_MAX {
            opens.begin(asked(), Instant::now());
            let number = opens.wait_for_round(A).await;
            opens.report(A, number, &[]);
            tokio::time::advance(ROUND_MAX).await;
            assert!(opens.finished(Instant::now()).is_some());
        }
        opens.begin(asked(), Instant::now());
        let number = opens.wait_for_round(B).await;
        opens.report(A, number, &[]);
        tokio::time::advance(ROUND_MAX * 10).await;
        assert_eq!(opens.finished(Instant::now()), None);
        opens.report(B, number, &[]);
        let held = vec![(InodeId(7), vec![]), (InodeId(8), vec![])];
        assert_eq!(opens.finished(Instant::now()).map(|found| found.held), Some(held), "it answers at last");
        opens.begin(asked(), Instant::now());
        tokio::time::advance(ROUND_MAX).await;
        assert!(opens.finished(Instant::now()).is_some(), "and counts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_noted_is_verified_now_and_then() {
        let opens = Opens::new(Instant::now());
        let only_noted = Asked { unasked: Vec::new(), ..asked() };
        opens.begin(only_noted.clone(), Instant::now());
        assert!(!opens.is_running(&[A, B]), "not yet");
        opens.begin(only_noted, Instant::now() + VERIFY_EVERY);
        assert!(opens.is_running(&[A, B]));
    }
}
