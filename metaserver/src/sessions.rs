//! Who of the clients is alive: the leader's memory of when it last heard of each session.
//!
//! A session that was silent for [`SESSION_TIMEOUT_MS`] is ended by a command. A new leader gives every session a full
//! term, so a session never ends early; it may live longer.

use crate::namespace::SESSION_TIMEOUT_MS;
use common::id::SessionId;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sessions {
    heard: Mutex<BTreeMap<SessionId, Instant>>,
}

impl Sessions {
    /// These are open, and heard of now.
    pub(crate) fn new(open: impl Iterator<Item = SessionId>, now: Instant) -> Sessions {
        Sessions { heard: Mutex::new(open.map(|id| (id, now)).collect()) }
    }

    /// It was just opened.
    pub(crate) fn opened(&self, session: SessionId) {
        self.table().insert(session, Instant::now());
    }

    /// All get a full term from now on.
    pub(crate) fn all_heard(&self, now: Instant) {
        self.table().values_mut().for_each(|heard| *heard = now);
    }

    /// It is over.
    pub(crate) fn ended(&self, session: SessionId) {
        self.table().remove(&session);
    }

    /// It was just heard of. False: it is not open, as far as this leader knows.
    pub(crate) fn touch(&self, session: SessionId) -> bool {
        match self.table().get_mut(&session) {
            Some(heard) => {
                *heard = Instant::now();
                true
            }
            None => false,
        }
    }

    /// Those that were silent too long, at most `limit`.
    pub(crate) fn silent(&self, now: Instant, limit: usize) -> Vec<SessionId> {
        let too_long = Duration::from_millis(SESSION_TIMEOUT_MS);
        let table = self.table();
        let silent = table.iter().filter(|(_, heard)| now.saturating_duration_since(**heard) >= too_long);
        silent.map(|(id, _)| *id).take(limit).collect()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, Instant>> {
        self.heard.lock().expect("no panic holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_a_full_term_of_silence() {
        let sessions = Sessions::new([SessionId(1), SessionId(2)].into_iter(), Instant::now());
        tokio::time::advance(Duration::from_millis(SESSION_TIMEOUT_MS - 1)).await;
        assert!(sessions.touch(SessionId(2)) && !sessions.touch(SessionId(3)));
        assert_eq!(sessions.silent(Instant::now(), 9), []);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(sessions.silent(Instant::now(), 9), [SessionId(1)]);
        sessions.ended(SessionId(1));
        sessions.opened(SessionId(3));
        assert_eq!(sessions.silent(Instant::now(), 9), []);
        assert!(sessions.touch(SessionId(3)) && !sessions.touch(SessionId(1)));
    }
}
