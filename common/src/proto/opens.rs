//! What sessions have open: asked when files without a name may be open somewhere.

use crate::id::{InodeId, SessionId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long the leader keeps an [`OpenReport`] that it has no question for.
pub const OPENS_HOLD: Duration = Duration::from_secs(2);
/// Inodes in one report, at most: a session with more open does not answer, and nothing removed goes meanwhile.
pub const OPENS_MAX: usize = 1 << 18;

/// An answer to the last [`OpenAsk`], and the wait for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReport {
    /// Whose.
    pub session: SessionId,
    /// What is answered. 0: nothing.
    pub term: u64,
    /// See `term`.
    pub round: u64,
    /// All inodes it has open, noted after the question came and after all opens had ended that were under way then.
    pub open: Vec<InodeId>,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAsk {
    /// The leader's term.
    pub term: u64,
    /// What to answer. 0: nothing for now.
    pub round: u64,
}
