//! Switches that break one rule of deletion (DESIGN 7) at a time, so that a test can show that it would notice.
//!
//! Without the feature `testing` there are none: [`is_broken`] is `false` when the program is compiled. With it, they
//! are set for the thread that runs a simulation, by a test and by nothing else: no configuration reaches them.

/// A rule that the code keeps, each named for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A grant names the nonce of the ask that stands; another is ignored.
    GrantNamesItsAsk,
    /// Whoever vouches for a copy voids the wish to delete it.
    VouchingVoidsTheWish,
    /// A copy is deleted only if its wish still stands: one step with the delete.
    DeleteChecksTheWish,
    /// An owner confirms one round of one server, and no other.
    ConfirmationNamesItsRound,
    /// A copy is dropped only when every owner has confirmed.
    EveryOwnerConfirms,
    /// Only what nothing refers to is condemned.
    OnlyTheUnreferencedIsCondemned,
    /// A condemnation raises the horizon of the chunk's bucket to its own index.
    CondemningRaisesTheHorizon,
    /// ... and so does each further one.
    EachGrantHasItsOwnIndex,
    /// A new reference carries a witness that is not below the horizon.
    CommitChecksTheHorizon,
    /// A witness is an applied index.
    WitnessIsApplied,
    /// What carries an older epoch is void.
    OldEpochsAreVoid,
    /// A commit has as many receipts as the cluster asks for.
    CommitHasItsReceipts,
    /// A put is acknowledged only when it is durable.
    AcknowledgedIsDurable,
    /// Who vouches for a copy that is being put waits until that is durable.
    VouchingWaitsForThePut,
    /// Presence check and touch are one step: what is being deleted is vouched for no more.
    TouchIsOneStep,
    /// Bytes are punched only when the row is durably gone. Broken together with the second line of defence: that a copy
    /// of an earlier run is read before it is vouched for.
    PunchComesLast,
}

/// True if this thread was told to break the rule.
#[cfg(not(feature = "testing"))]
pub const fn is_broken(_: Rule) -> bool {
    false
}

#[cfg(feature = "testing")]
pub use broken::{Broken, break_rule, is_broken};

#[cfg(feature = "testing")]
mod broken {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// The rule is broken on this thread while this lives; then the one that was before.
    #[derive(Debug)]
    pub struct Broken(Option<Rule>);

    /// Breaks a rule on this thread; `None`: all are kept.
    #[must_use]
    pub fn break_rule(rule: Option<Rule>) -> Broken {
        Broken(BROKEN.replace(rule))
    }

    /// True if this thread was told to break the rule.
    pub fn is_broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }

    impl Drop for Broken {
        fn drop(&mut self) {
            BROKEN.set(self.0);
        }
    }
}
