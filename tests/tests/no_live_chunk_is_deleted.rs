//! No live chunk is ever deleted: the rules of DESIGN 7, searched whole as a model, and the code that keeps them under
//! random interleavings, crashes, moves, a lost disk and a restore. Each rule is shown to matter: without it, both lose.

use common::rules::Rule;
use stateright::Checker;
use tests::content::full;
use tests::garbage::chance::run;
use tests::garbage::model::{Broken, NOTHING_IS_LOST, World};
use tests::garbage::plan::{Counts, Harm, Plan, Weakness};

/// Runs of the code with all rules; ten times as many with `DFS_TEST_FULL=1`.
const SEEDS: u64 = 1500;
/// Runs in which a broken rule must have lost something.
const SEEDS_TO_LOSE: u64 = 10_000;
const STEPS: u32 = 250;

/// Two servers, the first of which believes that the second one is the owner.
const MOVE: World = World {
    size: (2, 1, 2),
    owners: [0b10, 0, 0],
    copies_min: 1,
    slow_disk: true,
    loss: false,
    restore: false,
    broken: None,
};
/// Two servers with stale layouts: each believes that the other one is the owner.
const THERE_AND_BACK: World = World { owners: [0b10, 0b01, 0], slow_disk: false, ..MOVE };
/// Two chunks in one bucket.
const TWINS: World = World { size: (1, 2, 2), owners: [0; 3], slow_disk: false, ..MOVE };
/// One disk is lost, and each commit needs two copies.
const LOSS: World = World { size: (2, 1, 2), owners: [0; 3], copies_min: 2, slow_disk: false, loss: true, ..MOVE };
/// The metadata goes back to a backup.
const RESTORE: World = World { size: (1, 1, 1), owners: [0; 3], slow_disk: false, restore: true, ..MOVE };
/// From two servers to one of them and a third.
const THREE: World = World { size: (3, 1, 2), owners: [0b110, 0, 0], copies_min: 2, slow_disk: false, ..MOVE };

#[test]
fn the_rules_lose_nothing() {
    let quick =
        [("a move", MOVE), ("there and back", THERE_AND_BACK), ("twins", TWINS), ("loss", LOSS), ("restore", RESTORE)];
    let long = [
        ("three servers", THREE),
        ("loss on a move", World { size: (3, 1, 1), loss: true, ..THREE }),
        ("restore on a move", World { size: (2, 1, 1), owners: [0b10, 0, 0], ..RESTORE }),
        ("restore, two clients", World { size: (2, 1, 2), ..RESTORE }),
        ("twins on two servers", World { size: (2, 2, 1), ..TWINS }),
    ];
    let long = long.into_iter().filter(|_| full());
    for (name, world) in quick.into_iter().chain(long) {
        let found = world.search();
        println!("{name}: {} states, {} steps deep", found.unique_state_count(), found.max_depth());
        assert!(found.is_done(), "{name}: not all was searched");
        found.assert_properties();
    }
}

#[test]
fn every_rule_of_the_model_is_needed() {
    let on = |world: World, rules: &[Broken]| {
        for rule in rules {
            let found = World { broken: Some(*rule), ..world }.search();
            let states = found.unique_state_count();
            let lost = found.discovery(NOTHING_IS_LOST);
            let way = lost.unwrap_or_else(|| panic!("{rule:?}: nothing is lost in {states} states"));
            println!("{rule:?}: {states} states, a chunk is lost in {} steps", way.into_actions().len());
        }
    };
    on(
        MOVE,
        &[
            Broken::GrantWithoutNonce,
            Broken::WishSurvivesRestart,
            Broken::SecondGrantKeepsHorizon,
            Broken::CondemnKeepsHorizon,
            Broken::CondemnsTheReferenced,
            Broken::CommitIgnoresHorizon,
            Broken::UntouchedWithNewestWitness,
            Broken::WitnessRenewed,
            Broken::WitnessNotApplied,
            Broken::AcknowledgesUnsynced,
            Broken::TouchInTwoSteps,
            Broken::TouchKeepsWish,
            Broken::DeletesWithoutWish,
            Broken::PunchesBeforeIndex,
            Broken::ConfirmingIsNoTouch,
            Broken::ConfirmsUnsynced,
            Broken::ConfirmationOfAnyRound,
            Broken::TouchKeepsRound,
            Broken::DropsUnconfirmed,
        ],
    );
    on(THERE_AND_BACK, &[Broken::ConfirmingKeepsOwnRound]);
    on(World { size: (3, 1, 1), ..LOSS }, &[Broken::OneCopyIsEnough]);
    on(RESTORE, &[Broken::OldEpochCommits, Broken::WishSurvivesEpoch, Broken::FsckDoesNotWait]);
}

fn plan(seed: u64, weakness: Option<Weakness>) -> Plan {
    Plan { seed, steps: STEPS, weakness }
}

#[test]
fn the_code_loses_nothing() {
    let seeds = if full() { 10 * SEEDS } else { SEEDS };
    let mut all = Counts::default();
    for seed in 1..=seeds {
        let counts = run(plan(seed, None)).unwrap_or_else(|broken| panic!("{:?}: {}", broken.harm, broken.text));
        all.add(&counts);
    }
    println!("{seeds} runs: {all:?}");
    // A run that says something has all of this.
    let often = [all.commits, all.told_to_touch_again, all.grants, all.deleted, all.voided, all.restarts];
    assert!(often.iter().all(|count| *count > seeds), "{all:?}");
    let seldom = [all.dropped, all.torn, all.disks_lost, all.restores, all.met];
    assert!(seldom.iter().all(|count| *count > seeds / 20), "{all:?}");
}

#[test]
fn every_rule_of_the_code_is_needed() {
    let code = [
        Rule::GrantNamesItsAsk,
        Rule::VouchingVoidsTheWish,
        Rule::DeleteChecksTheWish,
        Rule::ConfirmationNamesItsRound,
        Rule::EveryOwnerConfirms,
        Rule::OnlyTheUnreferencedIsCondemned,
        Rule::CondemningRaisesTheHorizon,
        Rule::EachGrantHasItsOwnIndex,
        Rule::CommitChecksTheHorizon,
        Rule::WitnessIsApplied,
        Rule::OldEpochsAreVoid,
        Rule::CommitHasItsReceipts,
        Rule::AcknowledgedIsDurable,
        Rule::VouchingWaitsForThePut,
        Rule::TouchIsOneStep,
        Rule::PunchComesLast,
    ];
    let played = [
        Weakness::WitnessAfterThePut,
        Weakness::AcknowledgementsOfTwoAttempts,
        Weakness::NothingTouched,
        Weakness::WishesSurviveARestart,
        Weakness::ConfirmingIsNoTouch,
        Weakness::ConfirmingKeepsOwnRounds,
        Weakness::TouchKeepsRounds,
        Weakness::WishesSurviveARestore,
        Weakness::FsckDoesNotWait,
    ];
    let mut missed = Vec::new();
    for weakness in code.map(Weakness::Code).into_iter().chain(played) {
        let lost = (1..=SEEDS_TO_LOSE).find(|seed| match run(plan(*seed, Some(weakness))) {
            Err(broken) => broken.harm == Harm::Lost,
            Ok(_) => false,
        });
        println!("{weakness:?}: {lost:?}");
        if lost.is_none() {
            missed.push(weakness);
        }
    }
    assert!(missed.is_empty(), "broken, and nothing was lost in {SEEDS_TO_LOSE} runs: {missed:?}");
}

/// Replays `DFS_GC_SEED` and prints its trace.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var("DFS_GC_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    run(plan(seed, None)).unwrap_or_else(|broken| panic!("{:?}: {}", broken.harm, broken.text));
}
