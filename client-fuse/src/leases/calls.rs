//! The calls by which leases are renewed, given back and recalled.

use super::inside::Inside;
use common::id::{InodeId, SessionId};
use common::proto::lease::{LEASE_TERM, RECALLS_MAX, RecallCall, Recalls};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

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

impl Inside {
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
            if was_listed | self.void_listing(*ino) {
                self.leave_alone(*ino);
            }
            self.forget(*ino);
        }
        self.forgot = self.forgot.max(answer.last);
        if answer.renewed {
            self.good_until = self.good_until.max(sent + LEASE_TERM);
        }
    }
}
