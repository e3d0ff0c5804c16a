//! Backups, and the new life that begins from one.

use super::*;
use bytes::Bytes;
use common::proto::backup::{BACKUP_PIECE_LEN, BackupAnswer, BackupAsk, BackupHead, RestorePlan, RestoreStep};
use common::proto::keep::{KeepAdmin, KeepAdminReply};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinSet;

/// The epoch and term of new lives here; the command takes the time.
const NEW: u64 = 1_000_000;

/// A backup in memory.
struct Backup {
    head: BackupHead,
    files: Vec<Vec<u8>>,
}

impl Backup {
    fn plan(&self, addrs: &[String], later: u64) -> RestorePlan {
        let metaservers = addrs.iter().zip(1..).map(|(addr, node)| (NodeId(node), addr.clone())).collect();
        RestorePlan {
            restore: 7,
            head: self.head.clone(),
            hashes: self.files.iter().map(|bytes| *blake3::hash(bytes).as_bytes()).collect(),
            epoch: Epoch(NEW + later),
            term: NEW + later,
            metaservers,
            at: World::real().now(),
            by: "test".into(),
        }
    }
}

impl Group {
    async fn backup(&self) -> Backup {
        let ask = async |ask| match self.order(Order::Backup(ask)).await.unwrap() {
            Ordered::Backup(answer) => answer,
            other => panic!("{other:?}"),
        };
        let BackupAnswer::Begun { backup, head } = ask(BackupAsk::Begin).await else { panic!("it does not begin") };
        let mut files = Vec::new();
        for (file, (_, len)) in (0..).zip(&head.files) {
            let mut bytes = Vec::new();
            while common::units::len_u64(bytes.len()) < *len {
                let at = common::units::len_u64(bytes.len());
                let BackupAnswer::Piece { bytes: piece, hash } = ask(BackupAsk::Piece { backup, file, at }).await
                else {
                    panic!("no piece")
                };
                assert_eq!(blake3::hash(&piece).as_bytes(), &hash);
                bytes.extend_from_slice(&piece);
            }
            files.push(bytes);
        }
        ask(BackupAsk::End { backup }).await;
        Backup { head, files }
    }

    async fn restore_step(&self, i: usize, step: RestoreStep) -> Result<(), Fault> {
        self.order_at(&self.addrs[i..=i], Order::Restore(Box::new(step))).await.map(|_| ())
    }

    /// Gives one node a backup and has it checked.
    async fn send(&self, i: usize, plan: &RestorePlan, files: &[Vec<u8>]) -> Result<(), Fault> {
        let restore = plan.restore;
        self.restore_step(i, RestoreStep::Begin(plan.clone())).await?;
        for (file, bytes) in (0..).zip(files) {
            let len = common::units::len_usize(BACKUP_PIECE_LEN);
            for (piece, at) in bytes.chunks(len).zip((0..).step_by(len)) {
                let bytes = Bytes::copy_from_slice(piece);
                let step = RestoreStep::Piece { restore, file, at, bytes };
                self.restore_step(i, step.clone()).await?;
                self.restore_step(i, step).await?; // its answer was lost
            }
        }
        self.restore_step(i, RestoreStep::Prepare { restore }).await?;
        self.restore_step(i, RestoreStep::Prepare { restore }).await
    }

    /// A group of empty metaservers that begins a new life from a backup.
    async fn restored(backup: &Backup, n: usize, later: u64) -> Group {
        let group = Group::empty(n, 50).await;
        let plan = backup.plan(&group.addrs, later);
        for i in 0..n {
            group.send(i, &plan, &backup.files).await.unwrap();
            assert_eq!(group.node_status(i).await.unwrap().state, "unformatted", "nothing is decided yet");
        }
        for i in 0..n {
            group.restore_step(i, RestoreStep::Activate { restore: plan.restore }).await.unwrap();
            group.restore_step(i, RestoreStep::Activate { restore: plan.restore }).await.unwrap();
        }
        group.wait_for_leader().await;
        group
    }

    async fn is_held(&self) -> bool {
        let asked = self.caller(Role::Admin, &self.addrs).admin(&Admin::Keep(KeepAdmin::Held), LIMIT).await.unwrap();
        match asked {
            AdminReply::Keep(KeepAdminReply::Held(held)) => held.is_some(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_begins_with_everything_acknowledged_before_the_backup_was_asked_for() {
    let mut group = Group::formatted(3, 50).await;
    let mut client = group.client().await;
    for i in 0..120 {
        client.create(&format!("f{i}")).await;
    }
    // Others work meanwhile: what was acknowledged to them before the call is in it.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let (mut other, counts) = (group.client().await, acknowledged.clone());
    let mut load = JoinSet::new();
    load.spawn(async move {
        while other.submit(create(&format!("w{}", counts.load(Ordering::Relaxed)))).await.is_ok() {
            counts.fetch_add(1, Ordering::Relaxed);
        }
    });
    while acknowledged.load(Ordering::Relaxed) < 20 {
        tokio::task::yield_now().await;
    }
    let before = acknowledged.load(Ordering::Relaxed);
    let backup = group.backup().await;
    load.shutdown().await;
    client.create("late").await;
    assert_eq!(backup.head.epoch, Epoch(1));
    for i in 0..3 {
        group.stop(i).await; // they are lost for good
    }

    let mut new = Group::restored(&backup, 3, 0).await;
    let status = new.status().await;
    assert_eq!((status.cluster, status.epoch, status.sessions), (backup.head.cluster, Epoch(NEW), 0));
    assert!(status.leader.term > NEW && status.leader.applied > backup.head.index, "{:?}", status.leader);
    let old_session = client.session;
    let mut of_old = Client { caller: new.caller(Role::Client, &new.addrs), session: old_session, slot: 0, seq: 9 };
    assert_eq!(
        of_old.submit(create("x")).await.unwrap_err().kind,
        Kind::NoSession,
        "sessions of the old life are void"
    );
    let mut client = new.client().await;
    for i in 0..120 {
        assert!(client.look_up(&format!("f{i}")).await.is_ok(), "f{i}");
    }
    for i in 0..before {
        assert!(client.look_up(&format!("w{i}")).await.is_ok(), "w{i} was acknowledged before the backup");
    }
    assert_eq!(client.look_up("late").await.unwrap_err().kind, Kind::NotFound);
    // The new life is one like any other: over a restart, a snapshot, and a lost disk.
    let index = client.create("new").await.index.0;
    for i in 0..100 {
        client.create(&format!("n{i}")).await;
    }
    for i in 0..3 {
        new.wait_applied(i, index).await;
        new.stop(i).await;
    }
    new.dirs[2] = tempfile::tempdir().unwrap();
    for i in 0..3 {
        new.start(i).await.unwrap();
    }
    let index = client.create("newer").await.index.0;
    new.wait_applied(2, index).await;
    assert!(client.look_up("f0").await.is_ok() && client.look_up("new").await.is_ok());

    // Of the old life nobody is let in again: neither by itself, nor as a member of the new one.
    let mut config = group.config(0);
    config.metaservers.insert("2".into(), new.addrs[1].clone());
    let left_over = metaserver::start(config, World::real()).await.err().unwrap().to_string();
    assert!(left_over.contains("left over from epoch e1"), "{left_over}");
    // Deletion is held until somebody says that all is sound.
    assert!(new.is_held().await);
    new.order(Order::Release).await.unwrap();
    assert!(!new.is_held().await);
    assert_eq!(new.order(Order::Release).await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lives_from_one_backup_do_not_mix() {
    let group = Group::formatted(1, 50).await;
    group.client().await.create("f").await;
    let backup = group.backup().await;
    drop(group);
    let mut first = Group::restored(&backup, 3, 0).await;
    first.client().await.create("of the first").await;
    let second = Group::restored(&backup, 3, 1000).await;
    let client = second.client().await;
    assert!(client.look_up("f").await.is_ok());
    assert_eq!(client.look_up("of the first").await.unwrap_err().kind, Kind::NotFound);
    // A metaserver of the first that was told of one of the second: they do not talk.
    first.stop(0).await;
    first.addrs[1].clone_from(&second.addrs[1]);
    let left_over = first.start(0).await.unwrap_err().to_string();
    assert!(left_over.contains("left over from epoch e1000000"), "{left_over}");
    assert_eq!(second.status().await.metaservers.iter().filter(|(.., log)| log.is_some()).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_makes_no_member() {
    let group = Group::formatted(1, 50).await;
    group.client().await.create("f").await;
    let backup = group.backup().await;
    let new = Group::empty(1, 50).await;
    let plan = backup.plan(&new.addrs, 0);
    let longest = (0..backup.files.len()).max_by_key(|i| backup.files[*i].len()).unwrap();
    let mut flipped = backup.files.clone();
    let middle = flipped[longest].len() / 2;
    flipped[longest][middle] ^= 1;
    assert_eq!(new.send(0, &plan, &flipped).await.unwrap_err().kind, Kind::Corrupt);
    let missing = &backup.files[..backup.files.len() - 1];
    assert_eq!(new.send(0, &plan, missing).await.unwrap_err().kind, Kind::Corrupt);
    let activate = || RestoreStep::Activate { restore: plan.restore };
    assert_eq!(new.restore_step(0, activate()).await.unwrap_err().kind, Kind::NotFound);
    // Sent whole, but it is not what the plan says.
    for (wrong, what) in [
        (RestorePlan { head: BackupHead { index: LogIndex(1), ..plan.head.clone() }, ..plan.clone() }, "index"),
        (RestorePlan { head: BackupHead { cluster: ClusterId(1), ..plan.head.clone() }, ..plan.clone() }, "cluster"),
    ] {
        let fault = new.send(0, &wrong, &backup.files).await.unwrap_err();
        assert!(fault.kind == Kind::Corrupt && fault.message.contains(what), "{fault}");
    }
    for (wrong, what) in [
        (RestorePlan { epoch: Epoch(1), ..plan.clone() }, "epoch"),
        (RestorePlan { metaservers: vec![(NodeId(2), "a:1".into())], ..plan.clone() }, "this is metaserver m1"),
        (RestorePlan { hashes: vec![], ..plan.clone() }, "hash"),
    ] {
        let fault = new.restore_step(0, RestoreStep::Begin(wrong)).await.unwrap_err();
        assert!(fault.kind == Kind::Invalid && fault.message.contains(what), "{fault}");
    }
    assert_eq!(new.node_status(0).await.unwrap().state, "unformatted");
    new.send(0, &plan, &backup.files).await.unwrap();
    new.restore_step(0, activate()).await.unwrap();
    assert!(new.client().await.look_up("f").await.is_ok());
    let again = new.send(0, &RestorePlan { restore: 9, ..plan.clone() }, &backup.files).await.unwrap_err();
    assert!(again.kind == Kind::Exists && again.message.contains("needs empty metaservers"), "{again}");
}

/// Figures for the report: `cargo nextest run -p metaserver --run-ignored only a_million --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_million_files_are_backed_up_and_restored() {
    let files: usize = std::env::var("DFS_FILES").map_or(1_000_000, |n| n.parse().unwrap());
    let group = Group::formatted(1, 1_000_000).await;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in 0..50 {
        let mut client = group.client().await;
        tasks.spawn(async move {
            for i in (worker..files).step_by(50) {
                client.create(&format!("f{i}")).await;
            }
        });
    }
    tasks.join_all().await;
    println!("{files} files created in {:?}", began.elapsed());
    let began = Instant::now();
    let backup = group.backup().await;
    let bytes: usize = backup.files.iter().map(Vec::len).sum();
    println!("backed up in {:?}: {} files, {} MiB", began.elapsed(), backup.files.len(), bytes >> 20);
    drop(group);
    let began = Instant::now();
    let new = Group::restored(&backup, 3, 0).await;
    println!("restored on 3 in {:?}", began.elapsed());
    assert!(new.client().await.look_up(&format!("f{}", files - 1)).await.is_ok());
}
