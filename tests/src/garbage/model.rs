//! The rules of deletion (DESIGN 7) as a model that can be searched whole: one or two chunks of one horizon bucket, up to
//! three servers, two clients, a move, crashes, the loss of a disk, a restore of the metadata.
//!
//! Messages are never used up: a grant, a confirmation, a commit may arrive late, again, or never (then the step is not
//! taken). Only the order of log indices counts, so they are kept as ranks: the number of operations, asks and crashes
//! is not bounded. A copy can appear on any server at any time, as a late put or repair.
//!
//! Must hold: what is referred to has a durable copy, and every server that an accepted commit relied on has one, or has
//! dropped it after all owners confirmed theirs. [`Broken`] takes one rule away: each has to lead to a loss.

use super::steps::Next;
use stateright::{Checker, HasDiscoveries, Model, Property};

const SERVERS: usize = 3;
pub(super) const CHUNKS: usize = 2;
const CLIENTS: usize = 2;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each names what is done instead")]
pub enum Broken {
    GrantWithoutNonce,
    WishSurvivesRestart,
    SecondGrantKeepsHorizon,
    CondemnKeepsHorizon,
    CondemnsTheReferenced,
    CommitIgnoresHorizon,
    UntouchedWithNewestWitness,
    WitnessRenewed,
    WitnessNotApplied,
    OneCopyIsEnough,
    AcknowledgesUnsynced,
    TouchInTwoSteps,
    TouchKeepsWish,
    DeletesWithoutWish,
    PunchesBeforeIndex,
    ConfirmingIsNoTouch,
    ConfirmingKeepsOwnRound,
    ConfirmsUnsynced,
    ConfirmationOfAnyRound,
    TouchKeepsRound,
    DropsUnconfirmed,
    OldEpochCommits,
    WishSurvivesEpoch,
    FsckDoesNotWait,
}

/// What is in a world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Servers, chunks, clients there are.
    pub size: (usize, usize, usize),
    /// For each server the owners that must confirm before it drops a copy, as it believes; none: it is an owner.
    pub owners: [u8; SERVERS],
    /// Copies a commit needs.
    pub copies_min: u32,
    /// Syncs are steps of their own, and a delete is durable only later.
    pub slow_disk: bool,
    /// One disk is lost.
    pub loss: bool,
    /// The metadata goes back to a backup, once.
    pub restore: bool,
    /// A rule that is left out.
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Has {
    #[default]
    Nothing,
    /// Written, not synced.
    Written,
    Durable,
    /// Deleted, and a crash may undo it.
    Deleted,
    /// A row without bytes.
    Hollow,
}

/// A server's copy of a chunk, and its wishes: all but `has` is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) has: Has,
    pub(super) ask: bool,
    /// Touched since it asked: only if that is not the same as having no ask.
    pub(super) touched: bool,
    /// A grant that names the ask is under way.
    pub(super) granted: bool,
    pub(super) round: bool,
    pub(super) confirmed: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Attempt {
    pub(super) chunk: u8,
    pub(super) witness: u8,
    pub(super) epoch: u8,
    pub(super) acked: u8,
    /// Servers that said "here", and have not marked it yet.
    pub(super) seen: u8,
    /// It was referred to when the attempt began: only if that is to suffice.
    pub(super) was_live: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Client {
    pub(super) attempt: Option<Attempt>,
    pub(super) commit: Option<Attempt>,
    /// The chunk it has a reference to.
    pub(super) holds: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Meta {
    pub(super) index: u8,
    pub(super) horizon: u8,
    pub(super) refs: [u8; CHUNKS],
    pub(super) holds: [Option<u8>; CLIENTS],
}

/// Everything at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) index: u8,
    pub(super) horizon: u8,
    pub(super) refs: [u8; CHUNKS],
    /// Servers that must have the chunk.
    pub(super) must: [u8; CHUNKS],
    pub(super) replicas: [[Replica; CHUNKS]; SERVERS],
    pub(super) clients: [Client; CLIENTS],
    pub(super) lost: u8,
    pub(super) backup: Option<Meta>,
    pub(super) epoch: u8,
    /// Servers that know of the restore; fsck has passed since.
    pub(super) told: u8,
    pub(super) checked: bool,
}

/// A step, and what is then. (Two in one: a step that changes nothing is not listed.)
#[derive(Clone, Copy, PartialEq)]
pub struct Taken {
    pub(super) step: Step,
    pub(super) to: State,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.step.fmt(f)
    }
}

/// What is referred to has a durable copy.
pub const NOTHING_IS_LOST: &str = "what is referred to has a durable copy";
/// Every server that an accepted commit relied on has one.
const NOTHING_RELIED_ON_IS_GONE: &str = "what a commit relied on is there";

/// What can happen. Servers, chunks and clients by number (clients are alike, and may change places).
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each says what happens")]
pub enum Step {
    Begins { client: usize, chunk: usize, witness: u8 },
    RenewsWitness { client: usize },
    IsSeen { client: usize, at: usize },
    IsAcked { client: usize, at: usize },
    SendsCommit { client: usize },
    CommitApplies { client: usize },
    Unlinks { client: usize },
    Clones { client: usize, chunk: usize },
    Writes { server: usize, chunk: usize },
    Syncs { server: usize, chunk: usize },
    Asks { server: usize, chunk: usize },
    IsGranted { server: usize, chunk: usize },
    OldAskCondemns { chunk: usize },
    Deletes { server: usize, chunk: usize },
    Restarts { server: usize, undone: bool },
    LosesItsDisk { server: usize },
    OpensRound { server: usize, chunk: usize },
    Confirms { owner: usize, to: usize, chunk: usize },
    Drops { server: usize, chunk: usize },
    BacksUp,
    Restores,
    LearnsTheEpoch { server: usize },
    FsckPasses,
}

pub(super) fn bit(at: usize) -> u8 {
    1 << at
}

pub(super) fn number(at: usize) -> u8 {
    u8::try_from(at).expect("a handful")
}

impl State {
    pub(super) fn durable(&self, world: &World, chunk: usize) -> u8 {
        let holds = |at: &usize| self.replicas[*at][chunk].has == Has::Durable;
        (0..world.size.0).filter(holds).map(bit).sum()
    }

    /// Ranks for indices, and one order of the clients, which are alike.
    pub(super) fn normal(mut self) -> State {
        let mut all = [0; 16];
        let mut count = 0;
        self.each_index(|index| {
            all[count] = *index;
            count += 1;
        });
        all[..count].sort_unstable();
        let mut ranks = [0; 256];
        let (mut last, mut rank) = (0, 0);
        for index in &all[..count] {
            if *index != last {
                rank += 1;
                last = *index;
            }
            ranks[usize::from(*index)] = rank;
        }
        self.each_index(|index| *index = ranks[usize::from(*index)]);
        if self.clients[0] > self.clients[1] {
            self.clients.swap(0, 1);
            if let Some(backup) = &mut self.backup {
                backup.holds.swap(0, 1);
            }
        }
        self
    }

    fn each_index(&mut self, mut with: impl FnMut(&mut u8)) {
        with(&mut self.index);
        with(&mut self.horizon);
        if let Some(backup) = &mut self.backup {
            with(&mut backup.index);
            with(&mut backup.horizon);
        }
        for client in &mut self.clients {
            for attempt in [&mut client.attempt, &mut client.commit].into_iter().flatten() {
                with(&mut attempt.witness);
            }
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Taken;

    fn init_states(&self) -> Vec<State> {
        vec![State { index: 1, checked: true, ..State::default() }]
    }

    fn actions(&self, state: &State, next: &mut Vec<Taken>) {
        let mut next = Next { world: self, from: state, to: next };
        let (servers, chunks, clients) = self.size;
        (0..clients).for_each(|client| next.client(client));
        for chunk in 0..chunks {
            (0..servers).for_each(|server| next.server(server, chunk));
            (0..servers).for_each(|server| next.drops(server, chunk));
            if state.refs[chunk] == 0 && state.checked {
                next.add(Step::OldAskCondemns { chunk }, |to| to.condemn());
            }
        }
        (0..servers).for_each(|server| next.restarts(server));
        next.restore();
    }

    fn next_state(&self, _: &State, taken: Taken) -> Option<State> {
        Some(taken.to)
    }

    fn properties(&self) -> Vec<Property<World>> {
        vec![
            Property::always(NOTHING_IS_LOST, |world: &World, state: &State| {
                world.counted(state).all(|chunk| state.durable(world, chunk) != 0)
            }),
            Property::always(NOTHING_RELIED_ON_IS_GONE, |world: &World, state: &State| {
                let gone = |chunk: usize| state.must[chunk] & !state.lost & !state.durable(world, chunk);
                world.counted(state).all(|chunk| gone(chunk) == 0)
            }),
        ]
    }
}

impl World {
    /// Chunks that are referred to. Between a restore and its check none count: fsck will say what the backup had and
    /// nobody has any more.
    fn counted(&self, state: &State) -> impl Iterator<Item = usize> {
        let (checked, refs) = (state.checked, state.refs);
        (0..self.size.1).filter(move |chunk| checked && refs[*chunk] > 0)
    }

    /// Searches everything this world can come to, breadth first: up to a state in which something is broken, with about the
    /// shortest way there. States are told apart by fingerprints of 64 bits: of ten million no two share one, but for one
    /// chance in 400,000.
    pub fn search(self) -> impl Checker<World> {
        self.checker().finish_when(HasDiscoveries::Any).spawn_bfs().join()
    }
}

impl State {
    pub(super) fn condemn(&mut self) {
        self.index += 1;
        self.horizon = self.index;
    }

    pub(super) fn refer(&mut self, client: usize, chunk: u8) {
        self.index += 1;
        self.refs[usize::from(chunk)] += 1;
        self.clients[client] = Client { holds: Some(chunk), ..Client::default() };
    }
}
