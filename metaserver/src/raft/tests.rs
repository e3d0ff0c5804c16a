//! The log, the state and openraft together, on the real disk and on the simulated one.

use super::log::{OpenError, RaftLog};
use super::state::State;
use super::state_machine::StateMachine;
use super::types::{Entry, LogId, Payload, Proposal, TypeConfig, log_id};
use crate::raft::marker::vote_of;
use common::kv::rocks::Tuning;
use common::task::Tasks;
use common::testing::SimDisk;
use common::world::World;
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const CLUSTER: [u8; 16] = [7; 16];

struct Builder;

impl StoreBuilder<TypeConfig, RaftLog, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, RaftLog, StateMachine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let world = World::real();
        RaftLog::create(&world, &dir.path().join("raft"), CLUSTER, None).unwrap();
        let state = State::open(&world, &dir.path().join("state"), small()).unwrap();
        let log = RaftLog::open(&world, &Tasks::new(), &dir.path().join("raft"), CLUSTER, None).unwrap();
        Ok((dir, log, StateMachine::new(&world, state)))
    }
}

fn small() -> Tuning {
    Tuning { cache_bytes: 8 << 20, memtable_bytes: 4 << 20, ..Tuning::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_own_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let fill = u8::try_from(index % 251).unwrap();
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Proposal(vec![fill; len].into())) }
}

fn create(dir: &Path) {
    RaftLog::create(&World::real(), dir, CLUSTER, None).unwrap();
}

fn try_open(dir: &Path, applied: Option<LogId>) -> Result<RaftLog, OpenError> {
    RaftLog::open(&World::real(), &Tasks::new(), dir, CLUSTER, applied)
}

fn open(dir: &Path) -> RaftLog {
    try_open(dir, None).unwrap()
}

/// Waits until all that was asked of the log is on disk, and its flusher is gone.
async fn close(mut log: RaftLog) {
    log.save_vote(&vote_of(9, 1, false)).await.unwrap();
}

async fn ids(log: &RaftLog) -> Vec<(u64, u64)> {
    let entries = log.clone().try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| (super::term_of(&entry.log_id), entry.log_id.index)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let mut log = open(dir.path());
    log.save_vote(&vote_of(3, 2, true)).await.unwrap();
    log.blocking_append((0..10).map(|i| entry(1, i, 100))).await.unwrap();
    log.truncate_after(Some(log_id(1, 6))).await.unwrap();
    log.blocking_append((7..20).map(|i| entry(3, i, 100))).await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    let before = ids(&log).await;
    log.save_vote(&vote_of(4, 1, false)).await.unwrap();
    drop(log);
    let lost = try_open(dir.path(), Some(log_id(1, 3))).unwrap_err();
    assert!(lost.to_string().contains("does not hold them"), "{lost}");
    let mut log = try_open(dir.path(), Some(log_id(1, 4))).unwrap();
    assert_eq!(ids(&log).await, before);
    assert_eq!(before, (5..20).map(|i| (if i < 7 { 1 } else { 3 }, i)).collect::<Vec<_>>());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote_of(4, 1, false)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 4)), Some(log_id(3, 19))));
    let read = log.try_get_log_entries(19..20).await.unwrap();
    assert_eq!(read, [entry(3, 19, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_segments_go_and_the_vote_stays() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let mut log = open(dir.path());
    log.save_vote(&vote_of(3, 2, true)).await.unwrap();
    for i in 0..40 {
        log.blocking_append([entry(1, i, 4 << 20)]).await.unwrap(); // two segments and a half
    }
    let full = log.bytes();
    log.purge(log_id(1, 38)).await.unwrap();
    log.blocking_append([entry(1, 40, 1)]).await.unwrap();
    log.purge(log_id(1, 39)).await.unwrap();
    log.blocking_append([entry(1, 41, 1)]).await.unwrap();
    assert!(log.bytes() < full / 2, "{} of {full}", log.bytes());
    drop(log);
    let mut log = try_open(dir.path(), Some(log_id(1, 39))).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote_of(3, 2, true)));
    assert_eq!(ids(&log).await, [(1, 40), (1, 41)]);
}

/// A purge and a vote in one batch: the vote is written again behind the purge, the newest one.
#[tokio::test]
async fn purged_segments_go_while_a_vote_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let mut log = open(dir.path());
    log.save_vote(&vote_of(3, 2, true)).await.unwrap();
    for i in 0..20 {
        log.blocking_append([entry(1, i, 4 << 20)]).await.unwrap(); // a segment and a bit
    }
    let full = log.bytes();
    log.purge(log_id(1, 18)).await.unwrap(); // one thread: the flusher sees it together with the vote
    log.save_vote(&vote_of(4, 1, false)).await.unwrap();
    log.blocking_append([entry(1, 20, 1)]).await.unwrap();
    assert!(log.bytes() < full / 2, "{} of {full}", log.bytes());
    drop(log);
    let mut log = try_open(dir.path(), Some(log_id(1, 18))).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote_of(4, 1, false)));
}

/// Each way to lose a part of the log that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_forgot_something_does_not_open() {
    let segment = |dir: &Path| dir.join("log/00000001.seg");
    type Damage = Box<dyn Fn(&Path)>;
    let flip = |at: u64| -> Damage {
        Box::new(move |dir| {
            let mut bytes = std::fs::read(segment(dir)).unwrap();
            let at = usize::try_from(at).unwrap();
            bytes[at] ^= 1;
            std::fs::write(segment(dir), bytes).unwrap();
        })
    };
    let cut = |at: usize| -> Damage {
        Box::new(move |dir| {
            let bytes = std::fs::read(segment(dir)).unwrap();
            let mut kept = bytes[..at].to_vec();
            kept.resize(bytes.len(), 0);
            std::fs::write(segment(dir), kept).unwrap();
        })
    };
    // Records: a vote at 4096 (64 bytes), then ten entries of 192 bytes each, then the vote of `close`.
    let last_entry = 4096 + 64 + 9 * 192;
    let cases: Vec<(&str, Damage)> = vec![
        ("a byte in the middle", flip(4096 + 64 + 3 * 192 + 100)),
        ("a byte of the last entry", flip(last_entry + 100)),
        ("the end, from the last entry on", cut(usize::try_from(last_entry).unwrap())),
        ("the last vote", cut(usize::try_from(last_entry + 192).unwrap())),
        ("everything", cut(4096)),
        ("the segment", Box::new(move |dir| std::fs::remove_file(segment(dir)).unwrap())),
        ("the marker", Box::new(|dir| std::fs::remove_file(dir.join("acknowledged")).unwrap())),
        ("the marker's bytes", Box::new(|dir| std::fs::write(dir.join("acknowledged"), b"x").unwrap())),
    ];
    for (what, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path());
        let mut log = open(dir.path());
        log.save_vote(&vote_of(3, 2, true)).await.unwrap();
        for i in 0..10 {
            log.blocking_append([entry(1, i, 100)]).await.unwrap();
        }
        close(log).await;
        damage(dir.path());
        match try_open(dir.path(), None) {
            Err(OpenError::Damaged { what: said, .. }) => println!("{what}: {said}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_write_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let mut log = open(dir.path());
    log.blocking_append((0..3).map(|i| entry(1, i, 100))).await.unwrap();
    close(log).await;
    let segment = dir.path().join("log/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let end = 4096 + 3 * 192 + 64;
    bytes[end..end + 20].copy_from_slice(&[0xaa; 20]); // a torn header
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(ids(&open(dir.path())).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_appends_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let mut log = open(dir.path());
    let mut waiting = Vec::new();
    for i in 0..2000 {
        let (done, flushed) = TypeConfig::oneshot();
        let callback = openraft::storage::IOFlushed::<TypeConfig>::signal(done);
        log.append([entry(1, i, 100)], callback).await.unwrap();
        waiting.push(flushed);
    }
    for flushed in waiting {
        flushed.await.unwrap().unwrap();
    }
    assert_eq!(ids(&log).await.len(), 2000);
    let syncs = log.syncs();
    println!("2000 appends, {syncs} syncs");
    assert!(syncs < 500, "{syncs} syncs");
}

/// What a log holds: purged, entries, vote.
type Held = (Option<LogId>, Vec<LogId>, Option<super::types::Vote>);

/// Every state the log goes through, one a record, and how many of them were promised.
struct Course {
    states: Vec<Held>,
    promised: usize,
}

impl Course {
    fn new() -> Course {
        Course { states: vec![Held::default()], promised: 0 }
    }

    fn step(&mut self, change: impl FnOnce(&mut Held)) {
        let mut next = self.states.last().unwrap().clone();
        change(&mut next);
        self.states.push(next);
    }

    /// Appends and waits. False: the power is gone.
    async fn append(&mut self, log: &mut RaftLog, entries: Vec<Entry>) -> bool {
        for entry in &entries {
            self.step(|held| held.1.push(entry.log_id));
        }
        let done = log.blocking_append(entries).await.is_ok();
        self.keep(done)
    }

    async fn vote(&mut self, log: &mut RaftLog, vote: super::types::Vote) -> bool {
        self.step(|held| held.2 = Some(vote));
        let done = log.save_vote(&vote).await.is_ok();
        self.keep(done)
    }

    fn keep(&mut self, done: bool) -> bool {
        if done {
            self.promised = self.states.len() - 1;
        }
        done
    }

    /// A run with everything a log does; stops where the power goes.
    async fn run(&mut self, log: &mut RaftLog) -> bool {
        for round in 0..3u64 {
            let (term, from) = (2 * round + 1, 10 * round);
            let fine = self.vote(log, vote_of(term, 1, false)).await
                && self.append(log, (from..from + 6).map(|i| entry(term, i, 50)).collect()).await
                && self.append(log, vec![entry(term, from + 6, 5000)]).await
                && self.vote(log, vote_of(term + 1, 2, true)).await;
            if !fine {
                return false;
            }
            self.step(|held| held.1.retain(|id| id.index <= from + 4));
            log.truncate_after(Some(log_id(term, from + 4))).await.ok();
            let after = (from + 5..from + 10).map(|i| entry(term + 1, i, 300)).collect();
            if !self.append(log, after).await {
                return false;
            }
            let upto = log_id(term + 1, from + 7);
            self.step(|held| {
                held.0 = Some(upto);
                held.1.retain(|id| id.index > upto.index);
            });
            log.purge(upto).await.ok();
        }
        self.vote(log, vote_of(99, 1, false)).await
    }
}

fn simulated(disk: &SimDisk) -> World {
    let (net, clock) = (Arc::new(common::net::TcpNet), Arc::new(common::time::SystemClock));
    World::simulated(net, Arc::new(disk.clone()), clock, 5)
}

/// Opens the log of a node whose store holds what was purged, and no more.
fn sim_open(disk: &SimDisk, course: &Course) -> Result<RaftLog, OpenError> {
    let purged = course.states.last().unwrap().0;
    RaftLog::open(&simulated(disk), &Tasks::new(), Path::new("/raft"), CLUSTER, purged)
}

#[tokio::test]
async fn a_power_cut_at_any_write_keeps_what_was_promised_and_is_no_damage() {
    for seed in 0..16 {
        let uncut = SimDisk::new(seed);
        RaftLog::create(&simulated(&uncut), Path::new("/raft"), CLUSTER, None).unwrap();
        let made = uncut.writes();
        let mut course = Course::new();
        assert!(course.run(&mut sim_open(&uncut, &course).unwrap()).await);
        for cut in made..uncut.writes() {
            let disk = SimDisk::new(seed).cut_after(cut);
            RaftLog::create(&simulated(&disk), Path::new("/raft"), CLUSTER, None).unwrap();
            let mut course = Course::new();
            if let Ok(mut log) = sim_open(&disk, &course) {
                course.run(&mut log).await;
            }
            let mut log = sim_open(&disk.after_crash(), &course).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            let state = log.get_log_state().await.unwrap();
            let entries = log.try_get_log_entries(..).await.unwrap().iter().map(|entry| entry.log_id).collect();
            let held: Held = (state.last_purged_log_id, entries, log.read_vote().await.unwrap());
            let kept = course.states[course.promised..].contains(&held);
            assert!(kept, "seed {seed}, cut {cut}: {held:?} is none of {:?}", &course.states[course.promised..]);
        }
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let disk = SimDisk::new(1);
    RaftLog::create(&simulated(&disk), Path::new("/raft"), CLUSTER, None).unwrap();
    let mut log = sim_open(&disk, &Course::new()).unwrap();
    log.blocking_append([entry(1, 0, 10)]).await.unwrap();
    disk.fail_sync(Path::new("/raft/log/00000001.seg"));
    assert!(log.blocking_append([entry(1, 1, 10)]).await.is_err());
    assert!(log.save_vote(&vote_of(2, 1, false)).await.is_err());
    assert!(log.blocking_append([entry(1, 2, 10)]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_marker_is_durable_soon_after_the_last_append() {
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        RaftLog::create(&simulated(&disk), Path::new("/raft"), CLUSTER, None).unwrap();
        let mut log = sim_open(&disk, &Course::new()).unwrap();
        log.blocking_append([entry(1, 0, 10)]).await.unwrap();
        log.blocking_append([entry(1, 1, 10)]).await.unwrap();
        tokio::time::sleep(2 * crate::raft::marker::SYNC_EVERY).await;
        let marker = crate::raft::marker::Marker::open(&disk.after_crash(), Path::new("/raft")).unwrap().unwrap();
        assert_eq!(marker.now().last, Some(log_id(1, 1)), "seed {seed}");
    }
}

#[test]
fn a_new_member_takes_nothing_over_from_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::config::Config { data_dir: dir.path().to_path_buf(), ..crate::config::Config::default() };
    for old in ["raft", "state"] {
        std::fs::create_dir(dir.path().join(old)).unwrap();
        std::fs::write(dir.path().join(old).join("of another member"), b"x").unwrap();
    }
    let identity = crate::identity::Identity::new(common::id::ClusterId(1), common::id::Epoch(1), 1);
    super::Member::create(&World::real(), &config, identity, None).unwrap();
    for old in ["raft", "state"] {
        assert!(!dir.path().join(old).join("of another member").exists(), "{old}");
    }
}
