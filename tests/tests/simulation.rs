//! The whole cluster in simulation: whatever loses power or is cut off, nothing acknowledged is lost or wrong, and the
//! namespace agrees with a reference model. (See `tests::sim`.)

use tests::sim::{Plan, decided, run};

/// Seeds in a normal run; `DFS_TEST_FULL=1` takes ten times as many.
const SEEDS: u64 = 50;
const STEPS: u32 = 80;

fn seeds() -> u64 {
    if std::env::var_os("DFS_TEST_FULL").is_some() { 10 * SEEDS } else { SEEDS }
}

#[test]
fn nothing_acknowledged_is_lost_under_power_cuts_and_partitions() {
    let (mut faults, mut unknown) = (0, 0);
    for seed in 1..=seeds() {
        let report = run(Plan { seed, steps: STEPS, faults: true }).unwrap_or_else(|broken| panic!("{broken}"));
        faults += report.faults;
        unknown += report.unknown;
    }
    println!("{} seeds, {faults} faults, {unknown} operations of unknown outcome", seeds());
    assert!(u64::from(faults) >= seeds(), "too few faults were made for this run to say anything");
}

#[test]
fn without_faults_every_operation_is_answered() {
    let report = run(Plan { seed: 1, steps: STEPS, faults: false }).unwrap_or_else(|broken| panic!("{broken}"));
    assert_eq!(report.unknown, 0, "{:#?}", report.trace);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let once = run(Plan { seed: 7, steps: STEPS, faults: true });
    let twice = run(Plan { seed: 7, steps: STEPS, faults: true });
    assert_eq!(once, twice);
}

#[test]
fn what_a_client_decides_is_what_the_metaservers_make_of_it() {
    let rounds = if std::env::var_os("DFS_TEST_FULL").is_some() { 400 } else { 40 };
    for seed in 1..=4 {
        let decided = decided::run(seed, rounds).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        assert!(decided > u64::from(rounds) * 3, "seed {seed}: only {decided} changes were decided");
    }
}

/// Replays `DFS_SIM_SEED` and prints its trace.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var("DFS_SIM_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    run(Plan { seed, steps: STEPS, faults: true }).unwrap_or_else(|broken| panic!("{broken}"));
}
