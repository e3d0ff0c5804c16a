//! What a run of [`super::chance`] is told, and what it says.

use common::rules::Rule;

/// A rule that is not kept. What is the code's is broken in the code; what is the client's or the server's between two
/// messages, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// One of the code's.
    Code(Rule),
    /// A commit carries the newest index instead of the one from before the put.
    WitnessAfterThePut,
    /// After "touch again" only the witness is new.
    AcknowledgementsOfTwoAttempts,
    /// What was seen to be referred to is not touched.
    NothingTouched,
    /// Wishes are durable; what voided them is not.
    WishesSurviveARestart,
    /// Confirming is no touch.
    ConfirmingIsNoTouch,
    /// Confirming voids no round of the confirmer's own.
    ConfirmingKeepsOwnRounds,
    /// A put or touch voids no round.
    TouchKeepsRounds,
    /// After a restore wishes stand.
    WishesSurviveARestore,
    /// After a restore fsck passes, though not every server has heard of the new epoch.
    FsckDoesNotWait,
}

/// What happens mostly in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// A little of all.
    All,
    /// Servers that are no owners drop what they have.
    Rounds,
    /// The metadata goes back to a backup, and grants of before are still under way.
    Restore,
}

impl Weakness {
    /// Where to look for its harm.
    pub(super) fn about(self) -> About {
        match self {
            Weakness::ConfirmingIsNoTouch | Weakness::ConfirmingKeepsOwnRounds | Weakness::TouchKeepsRounds => {
                About::Rounds
            }
            Weakness::WishesSurviveARestore | Weakness::FsckDoesNotWait | Weakness::Code(Rule::OldEpochsAreVoid) => {
                About::Restore
            }
            Weakness::Code(_)
            | Weakness::WitnessAfterThePut
            | Weakness::AcknowledgementsOfTwoAttempts
            | Weakness::NothingTouched
            | Weakness::WishesSurviveARestart => About::All,
        }
    }
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All else follows from it.
    pub seed: u64,
    /// Steps.
    pub steps: u32,
    /// A rule that is not kept.
    pub weakness: Option<Weakness>,
}

/// How it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A chunk that is referred to is nowhere.
    Lost,
    /// A copy that a commit relied on is gone.
    Short,
    /// When all is well again, a copy that nothing refers to does not go.
    Left,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what it counts")]
pub struct Counts {
    pub puts: u64,
    pub commits: u64,
    pub told_to_touch_again: u64,
    pub grants: u64,
    pub deleted: u64,
    pub dropped: u64,
    pub voided: u64,
    pub restarts: u64,
    pub torn: u64,
    pub disks_lost: u64,
    pub restores: u64,
    pub met: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        let Counts { puts, commits, told_to_touch_again, grants, deleted, dropped, voided, .. } = *other;
        let Counts { restarts, torn, disks_lost, restores, met, .. } = *other;
        self.puts += puts;
        self.commits += commits;
        self.told_to_touch_again += told_to_touch_again;
        self.grants += grants;
        self.deleted += deleted;
        self.dropped += dropped;
        self.voided += voided;
        self.restarts += restarts;
        self.torn += torn;
        self.disks_lost += disks_lost;
        self.restores += restores;
        self.met += met;
    }
}

/// The first thing that was broken, and how to see it again.
#[derive(Debug)]
pub struct Broken {
    /// What.
    pub harm: Harm,
    /// For a person.
    pub text: String,
}
