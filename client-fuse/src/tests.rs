//! The client's promises, against a cluster in memory with faults.

#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "test code")]

use crate::report::{Reports, Verify};
use crate::testing::FakeCluster;
use crate::{Client, ClientConfig, Fallocate, Handle, OpenFlags, Seek};
use bytes::Bytes;
use common::auth::Mac;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, InodeId, ServerId, SessionId};
use common::name::Name;
use common::proto::meta::{Cred, SetAttr};
use common::task::Tasks;
use common::wire::Target;
use common::world::World;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

const CHUNK: u32 = 64 << 10;
const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, sync: false, no_atime: false };
const APPEND: OpenFlags = OpenFlags { append: true, ..READ_WRITE };

async fn client(cluster: &Arc<FakeCluster>) -> Client {
    client_with(cluster, |config| config).await
}

async fn client_with(cluster: &Arc<FakeCluster>, change: impl Fn(ClientConfig) -> ClientConfig) -> Client {
    let config = ClientConfig { op_timeout: Duration::from_secs(20), ..ClientConfig::new(vec!["fake".into()]) };
    let config = change(config);
    let tasks = Tasks::new();
    let reports = Reports::new(cluster.clone(), tasks.clone());
    Client::over(cluster.clone(), reports, config, World::real(), tasks).await.unwrap()
}

impl Verify for FakeCluster {
    fn verify<'a>(
        &'a self,
        at: &'a Target,
        _: (SessionId, Mac),
        chunk: ChunkId,
        _: Duration,
    ) -> BoxFuture<'a, Result<bool, Fault>> {
        Box::pin(async move {
            let mut cluster = self.lock();
            let chunks = &mut cluster.servers.get_mut(&at.server).unwrap().chunks;
            let sound = chunks.get(&chunk).is_some_and(|bytes| ChunkId::of(bytes) == chunk);
            if !sound {
                chunks.remove(&chunk); // as good as absent: the next put writes it
            }
            Ok(sound)
        })
    }
}

async fn create(client: &Client, name: &str, flags: OpenFlags) -> Handle {
    let name = Name::new(name).unwrap();
    // A lost reply ends as `Unsure`; creating it once more is what a person would do.
    for _ in 0..100 {
        let made = client.create_open(&Cred::default(), InodeId::ROOT, &name, 0o644, false, flags).await;
        if let Ok((handle, _)) = made {
            return handle;
        }
    }
    panic!("no create succeeds");
}

async fn bytes_of(client: &Client, handle: &Handle, at: u64, len: usize) -> Result<Vec<u8>, Fault> {
    Ok(client.read(handle, at, u32::try_from(len).unwrap()).await?.concat())
}

fn noise(random: &mut StdRng, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes[..]);
    Bytes::from(bytes)
}

/// Saves with faults on: errors are told, nothing is lost, and in the end it works.
async fn saved(client: &Client, handle: &Handle) {
    for _ in 0..200 {
        if client.fsync(handle).await.is_ok() {
            return;
        }
    }
    panic!("it never gets saved");
}

/// One random step on the file and on the bytes it should hold.
async fn step(client: &Client, handle: &Handle, appender: &Handle, model: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..300_000usize);
    let len = *[1, 100, 4096, 5000, 70_000, 140_000].get(random.random_range(0..6)).unwrap();
    match random.random_range(0..12) {
        0..=3 => {
            let bytes = if random.random_ratio(1, 6) { Bytes::from(vec![0; len]) } else { noise(random, len) };
            model.resize(model.len().max(at + len), 0);
            model[at..at + len].copy_from_slice(&bytes);
            // An error told here is of an earlier write; the bytes of this one were not taken then.
            while client.write(handle, at as u64, bytes.clone()).await.is_err() {}
        }
        4..=5 => {
            let bytes = noise(random, len.min(9000));
            while client.write(appender, 0, bytes.clone()).await.is_err() {}
            model.extend_from_slice(&bytes);
        }
        6..=7 => saved(client, handle).await,
        8 => {
            let set = SetAttr { size: Some(at as u64), opened: true, ..SetAttr::default() };
            while client.setattr(&Cred::default(), handle.ino(), set.clone()).await.is_err() {}
            model.resize(at, 0);
        }
        9 => {
            while client.fallocate(handle, at as u64, len as u64, Fallocate::PunchHole).await.is_err() {}
            let end = (at + len).min(model.len());
            model[at.min(end)..end].fill(0);
        }
        _ => {
            let got = bytes_of(client, handle, at as u64, len).await.unwrap();
            let end = (at + len).min(model.len());
            assert!(got == model[at.min(end)..end], "read {len} at {at} of {}", model.len());
        }
    }
}

async fn run_model(seed: u64, faults: bool) {
    println!("seed {seed}");
    let cluster = Arc::new(FakeCluster::new(seed, CHUNK));
    let first = client(&cluster).await;
    let handle = create(&first, "f", READ_WRITE).await;
    let appender = create(&first, "f", APPEND).await;
    cluster.lock().faults = faults;
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Vec::new();
    for _ in 0..60 {
        step(&first, &handle, &appender, &mut model, &mut random).await;
        if random.random_ratio(1, 15) {
            cluster.lock().condemn();
        }
    }
    saved(&first, &handle).await;
    saved(&first, &appender).await; // each handle is told of failures
    cluster.lock().faults = false;
    let second = client(&cluster).await;
    let ino = handle.ino();
    let other = second.open(&Cred::default(), ino, READ_WRITE).await.unwrap();
    for (client, handle) in [(&first, &handle), (&second, &other)] {
        let got = bytes_of(client, handle, 0, 1 << 20).await.unwrap();
        assert_eq!(got.len(), model.len(), "seed {seed}");
        assert!(got == model, "seed {seed}");
        let attr = client.getattr(&Cred::default(), ino).await.unwrap();
        assert_eq!(attr.size, model.len() as u64);
    }
    first.release(&handle).await.unwrap();
    first.release(&appender).await.unwrap();
    assert!(first.core.files().is_empty(), "nothing unsaved is left");
    assert_eq!(len(first.core.unsaved.available_permits()), first.core.unsaved_max, "the budget is whole again");
}

fn len(n: usize) -> u64 {
    n as u64
}

#[tokio::test(start_paused = true)]
async fn a_file_is_what_a_byte_array_is() {
    for seed in 0..30 {
        run_model(seed, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn also_when_requests_and_replies_are_lost() {
    for seed in 100..160 {
        run_model(seed, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_gone_round_and_full_ones_are_no_space() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let mut random = StdRng::seed_from_u64(1);
    cluster.lock().servers.get_mut(&ServerId(1)).unwrap().down = true;
    let data = noise(&mut random, 1_000_000);
    client.write(&handle, 0, data.clone()).await.unwrap();
    client.fsync(&handle).await.unwrap();
    assert!(bytes_of(&client, &handle, 0, 2_000_000).await.unwrap() == data);
    for server in cluster.lock().servers.values_mut() {
        server.full = true;
    }
    client.write(&handle, 0, noise(&mut random, 100_000)).await.unwrap();
    assert_eq!(client.fsync(&handle).await.unwrap_err().kind, Kind::NoSpace);
    for server in cluster.lock().servers.values_mut() {
        server.full = false;
    }
    saved(&client, &handle).await; // the bytes were kept
}

#[tokio::test(start_paused = true)]
async fn the_servers_behind_a_broken_one_still_get_their_copies() {
    let cluster = Arc::new(FakeCluster::new(1, 1 << 20));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    cluster.lock().servers.get_mut(&ServerId(1)).unwrap().breaks = true;
    for i in 0..16 {
        let data = noise(&mut StdRng::seed_from_u64(i), 1 << 20);
        client.write(&handle, i << 20, data).await.unwrap();
    }
    client.fsync(&handle).await.unwrap();
    let copies: usize = cluster.lock().servers.values().map(|server| server.chunks.len()).sum();
    assert_eq!(copies, 16 * 3, "three of four servers are up: each chunk is on all of them");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_replica_is_never_shown() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let first = client(&cluster).await;
    let handle = create(&first, "f", READ_WRITE).await;
    let data = noise(&mut StdRng::seed_from_u64(1), 500_000);
    first.write(&handle, 0, data.clone()).await.unwrap();
    first.fsync(&handle).await.unwrap();
    let damage = |server: u32| {
        for bytes in cluster.lock().servers.get_mut(&ServerId(server)).unwrap().chunks.values_mut() {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 4;
            *bytes = Bytes::from(wrong);
        }
    };
    let wrong = || {
        let cluster = cluster.lock();
        let all = cluster.servers.values().flat_map(|server| &server.chunks);
        all.filter(|(id, bytes)| ChunkId::of(bytes) != **id).count()
    };
    damage(1);
    damage(2);
    let before = wrong();
    let second = client(&cluster).await;
    let other = second.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
    assert!(bytes_of(&second, &other, 0, 500_000).await.unwrap() == data);
    assert!(second.stats().corrupt_replicas > 0);
    // The servers are told of copies that only a reader knew to be wrong.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(wrong() < before);
    damage(3);
    damage(4);
    let third = client(&cluster).await;
    let other = third.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
    let fault = third.read(&other, 200_000, 100_000).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt);
    assert!(fault.message.contains(&handle.ino().to_string()) && fault.message.contains("s3"), "{fault}");
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_are_sent_once() {
    let cluster = Arc::new(FakeCluster::new(1, 1 << 20));
    let client = client(&cluster).await;
    let data = noise(&mut StdRng::seed_from_u64(1), 4 << 20);
    for name in ["a", "b"] {
        let handle = create(&client, name, READ_WRITE).await;
        let mut source = &data[..];
        assert_eq!(client.put_stream(&handle, &mut source, None).await.unwrap(), 4 << 20);
        client.release(&handle).await.unwrap();
    }
    let stats = client.stats();
    assert_eq!((stats.sent_bytes, stats.dedup_bytes), (4 << 20, 4 << 20));
    let zeros = create(&client, "c", READ_WRITE).await;
    client.write(&zeros, 0, Bytes::from(vec![0; 4 << 20])).await.unwrap();
    client.fsync(&zeros).await.unwrap();
    assert_eq!(client.stats().sent_bytes, 4 << 20, "zeros are holes");
    assert_eq!(client.seek(&zeros, 0, Seek::Data).await.unwrap(), None);
    let mut out = Vec::new();
    assert_eq!(client.get_stream(&zeros, &mut out, None).await.unwrap(), 4 << 20);
    assert!(out.iter().all(|b| *b == 0));
}

#[tokio::test(start_paused = true)]
async fn appends_of_two_clients_lose_nothing() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let (a, b) = (client(&cluster).await, client(&cluster).await);
    let (to_a, to_b) = (create(&a, "log", APPEND).await, create(&b, "log", APPEND).await);
    cluster.lock().faults = true;
    for i in 0..50u32 {
        for (client, handle, tag) in [(&a, &to_a, 'a'), (&b, &to_b, 'b')] {
            let line = Bytes::from(format!("{tag}{i:06}\n"));
            while client.write(handle, 0, line.clone()).await.is_err() {}
            if i % 3 == 0 {
                saved(client, handle).await;
            }
        }
    }
    saved(&a, &to_a).await;
    saved(&b, &to_b).await;
    cluster.lock().faults = false;
    let reader = a.open(&Cred::default(), to_a.ino(), READ_WRITE).await.unwrap();
    let text = String::from_utf8(bytes_of(&a, &reader, 0, 10_000).await.unwrap()).unwrap();
    for tag in ['a', 'b'] {
        let seen: Vec<&str> = text.lines().filter(|line| line.starts_with(tag)).collect();
        let wanted: Vec<String> = (0..50).map(|i| format!("{tag}{i:06}")).collect();
        assert_eq!(seen, wanted);
    }
    assert_eq!(text.lines().count(), 100);
}

/// The end of the file turns out to be elsewhere between two uploads of the same bytes.
#[tokio::test(start_paused = true)]
async fn an_append_that_is_stored_again_after_it_moved_lands_whole() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let (a, b) = (client(&cluster).await, client(&cluster).await);
    let (to_a, to_b) = (create(&a, "log", APPEND).await, create(&b, "log", APPEND).await);
    let mut random = StdRng::seed_from_u64(1);
    let (other, first, second) = (noise(&mut random, 500), noise(&mut random, 100), noise(&mut random, 20_000));
    b.write(&to_b, 0, other.clone()).await.unwrap();
    b.fsync(&to_b).await.unwrap();
    cluster.lock().no_majority = true;
    cluster.lock().servers.values_mut().for_each(|server| server.full = true);
    a.write(&to_a, 0, first.clone()).await.unwrap();
    a.fsync(&to_a).await.unwrap_err();
    a.write(&to_a, 0, second.clone()).await.unwrap();
    a.fsync(&to_a).await.unwrap_err();
    cluster.lock().no_majority = false; // the first lands behind the other client's, the second is moved
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.lock().commits, 2);
    cluster.lock().servers.values_mut().for_each(|server| server.full = false);
    saved(&a, &to_a).await;
    let reader = b.open(&Cred::default(), to_b.ino(), READ_WRITE).await.unwrap();
    let got = bytes_of(&b, &reader, 0, 100_000).await.unwrap();
    assert!(got == [other, first, second].concat(), "{} bytes", got.len());
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_calls_fail_in_time_and_unsaved_bytes_are_kept() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    client.write(&handle, 0, Bytes::from_static(b"kept")).await.unwrap();
    cluster.lock().no_majority = true;
    assert!(client.fsync(&handle).await.is_err());
    assert!(client.getattr(&Cred::default(), handle.ino()).await.is_err());
    assert_eq!(bytes_of(&client, &handle, 0, 10).await.unwrap(), b"kept");
    cluster.lock().no_majority = false;
    saved(&client, &handle).await;
    assert_eq!(cluster.lock().commits, 1);
    client.release(&handle).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_to_who_had_unsaved_data_and_to_nobody_else() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let (unsaved, clean) = (create(&client, "u", READ_WRITE).await, create(&client, "c", READ_WRITE).await);
    client.write(&unsaved, 0, Bytes::from_static(b"lost")).await.unwrap();
    cluster.lock().forget_sessions();
    client.write(&clean, 0, Bytes::from_static(b"x")).await.unwrap();
    assert!(client.getattr(&Cred::default(), clean.ino()).await.is_ok(), "opens a new session");
    assert_eq!(client.fsync(&unsaved).await.unwrap_err().kind, Kind::NoSession);
    assert_eq!(client.write(&unsaved, 0, Bytes::from_static(b"y")).await.unwrap_err().kind, Kind::NoSession);
    let again = client.open(&Cred::default(), unsaved.ino(), READ_WRITE).await.unwrap();
    client.write(&again, 0, Bytes::from_static(b"new")).await.unwrap();
    client.fsync(&again).await.unwrap();
    assert_eq!(bytes_of(&client, &again, 0, 10).await.unwrap(), b"new");
}

/// Data versions go back with the metadata: one that was heard of in the old life says nothing in the new one.
#[tokio::test(start_paused = true)]
async fn an_open_file_follows_the_metadata_back_to_a_backup() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let write = async |text: &'static [u8]| {
        client.write(&handle, 0, Bytes::from_static(text)).await.unwrap();
        client.fsync(&handle).await.unwrap();
    };
    write(b"in the backup").await;
    let backup = cluster.lock().backup();
    write(b"later").await;
    write(b"and later").await;
    let losses = client.all_losses();
    assert_eq!(bytes_of(&client, &handle, 0, 20).await.unwrap(), b"and laterckup");
    cluster.lock().restore(backup);
    client.getattr(&Cred::default(), handle.ino()).await.unwrap(); // opens a new session
    assert_eq!(bytes_of(&client, &handle, 0, 20).await.unwrap(), b"in the backup");
    assert_eq!(client.all_losses(), losses + 1, "pages of the old life are not kept");
    write(b"new").await;
    assert_eq!(bytes_of(&client, &handle, 0, 20).await.unwrap(), b"newthe backup");
}

/// What the state machine refuses, it refuses without taking anything from the session.
#[tokio::test(start_paused = true)]
async fn refused_changes_leave_their_slots_free() {
    use Kind::{Corrupt, Denied, Gone, Invalid, NameTooLong, NoSpace, NotPermitted, Range, Stale, TooBig, Unsupported};
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let kinds = [Corrupt, Denied, Gone, Invalid, NameTooLong, NoSpace, NotPermitted, Range, Stale, TooBig, Unsupported];
    let set = |size| SetAttr { size: Some(size), opened: true, ..SetAttr::default() };
    for kind in kinds {
        cluster.lock().refuse = Some(kind);
        let began = tokio::time::Instant::now();
        for _ in 0..=2 * crate::session::SLOTS {
            let refused = client.setattr(&Cred::default(), handle.ino(), set(1 << 61)).await;
            assert_eq!(refused.unwrap_err().kind, kind);
        }
        client.write(&handle, 0, Bytes::from_static(b"x")).await.unwrap();
        let _ = client.fsync(&handle).await; // refused, and told; some are tried again
        cluster.lock().refuse = None;
        client.setattr(&Cred::default(), handle.ino(), set(0)).await.unwrap();
        client.write(&handle, 0, Bytes::from_static(b"y")).await.unwrap();
        saved(&client, &handle).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", began.elapsed());
    }
    client.release(&handle).await.unwrap();
    assert_eq!(len(client.core.unsaved.available_permits()), client.core.unsaved_max, "the budget is whole again");
}

/// `close` waits for the puts only. Should the metaservers want the chunks stored again later, nobody else has the bytes.
#[tokio::test(start_paused = true)]
async fn chunks_of_a_decided_commit_are_stored_again_if_the_metaservers_ask() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    cluster.lock().lease_root();
    let client = client_with(&cluster, |config| ClientConfig { leases: true, write_leases: true, ..config }).await;
    for _ in 0..2 {
        let found = client.lookup(&Cred::default(), InodeId::ROOT, &Name::new("f").unwrap()).await;
        assert_eq!(found.unwrap_err().kind, Kind::NotFound); // asked for so often it is leased
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let bytes = noise(&mut StdRng::seed_from_u64(1), 100_000);
    for name in ["f", "g"] {
        let handle = create(&client, name, READ_WRITE).await;
        client.write(&handle, 0, bytes.clone()).await.unwrap();
        client.flush(&handle).await.unwrap();
        client.release(&handle).await.unwrap();
    }
    assert_eq!((client.stats().decided, cluster.lock().commits), (4, 0), "nothing is told yet");
    cluster.lock().collect();
    client.sync_changes(&AtomicU64::new(0)).await.unwrap();
    let stats = client.stats();
    assert_eq!((cluster.lock().commits, stats.commit_retries, stats.misjudged), (2, 1, 0), "both at once");
    for name in ["f", "g"] {
        let handle = create(&client, name, READ_WRITE).await;
        assert_eq!(bytes_of(&client, &handle, 0, 200_000).await.unwrap(), bytes);
    }
}

/// A truncate that was told to have failed does not come true after what was written since.
#[tokio::test(start_paused = true)]
async fn a_late_copy_of_a_failed_change_takes_nothing_from_later_ones() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    client.write(&handle, 0, Bytes::from_static(b"old bytes")).await.unwrap();
    client.fsync(&handle).await.unwrap();
    (cluster.lock().hold, cluster.lock().lose_settling) = (true, 3);
    let set = SetAttr { size: Some(0), opened: true, ..SetAttr::default() };
    assert_eq!(client.setattr(&Cred::default(), handle.ino(), set).await.unwrap_err().kind, Kind::Unsure);
    client.write(&handle, 0, Bytes::from_static(b"new")).await.unwrap();
    client.fsync(&handle).await.unwrap();
    let late = cluster.lock().held.take().unwrap();
    let _ = cluster.lock().run(&late);
    let reader = client.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
    assert_eq!(bytes_of(&client, &reader, 0, 100).await.unwrap(), b"new bytes");
}

#[tokio::test(start_paused = true)]
async fn a_file_opened_while_its_name_is_removed_is_there_or_not_opened() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let ino = handle.ino();
    client.release(&handle).await.unwrap();
    cluster.lock().slow_unlink = Duration::from_secs(1);
    let name = Name::new("f").unwrap();
    let cred = Cred::default();
    let open = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let opened = client.open(&cred, ino, READ_WRITE).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Ok(handle) = opened {
            client.write(&handle, 0, Bytes::from_static(b"x")).await.unwrap();
            client.fsync(&handle).await.unwrap();
        }
    };
    let (removed, ()) = futures::join!(client.unlink(&cred, InodeId::ROOT, &name), open);
    removed.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_removed_file_lives_until_its_last_handle_is_released() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    client.write(&handle, 0, Bytes::from_static(b"here")).await.unwrap();
    client.unlink(&Cred::default(), InodeId::ROOT, &Name::new("f").unwrap()).await.unwrap();
    client.fsync(&handle).await.unwrap();
    assert_eq!(bytes_of(&client, &handle, 0, 10).await.unwrap(), b"here");
    client.write(&handle, 4, Bytes::from_static(b"more")).await.unwrap();
    assert_eq!(cluster.lock().orphans.len(), 1);
    let commits = cluster.lock().commits;
    client.release(&handle).await.unwrap();
    assert_eq!(cluster.lock().commits, commits + 1, "another mount may have it open");
    tokio::time::sleep(Duration::from_secs(1)).await; // paused clock: lets the release request run
    assert!(cluster.lock().orphans.is_empty());
    assert!(client.core.files().is_empty());
    assert_eq!(len(client.core.unsaved.available_permits()), client.core.unsaved_max);
}

#[tokio::test(start_paused = true)]
async fn old_unsaved_data_is_written_back_without_being_asked() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    client.write(&handle, 0, Bytes::from_static(b"old")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.lock().commits, 1);
}

#[tokio::test(start_paused = true)]
async fn many_small_pieces_become_one_chunk_again() {
    let cluster = Arc::new(FakeCluster::new(1, 1 << 20));
    let client = client(&cluster).await;
    let handle = create(&client, "log", APPEND).await;
    let mut random = StdRng::seed_from_u64(1);
    let mut model = Vec::new();
    for _ in 0..300 {
        let bytes = noise(&mut random, 3000);
        model.extend_from_slice(&bytes);
        client.write(&handle, 0, bytes).await.unwrap();
        client.fsync(&handle).await.unwrap();
    }
    assert_eq!(client.stats().compactions, 0, "not while somebody writes");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.stats().compactions, 1);
    assert!(cluster.lock().extents(handle.ino()) < 150);
    assert!(bytes_of(&client, &handle, 0, 1 << 20).await.unwrap() == model);
    let mtime = client.getattr(&Cred::default(), handle.ino()).await.unwrap().mtime;
    for i in 0..200usize {
        let at = (i * 37_111) % 800_000;
        let bytes = noise(&mut random, 2000);
        model[at..at + 2000].copy_from_slice(&bytes);
        client.write(&handle, 0, Bytes::new()).await.unwrap();
        let writer = client.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
        client.write(&writer, at as u64, bytes).await.unwrap();
        client.release(&writer).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.stats().compactions >= 2);
    let before = client.stats().compactions;
    for _ in 0..1100 {
        client.write(&handle, 0, Bytes::from_static(b"x")).await.unwrap();
        client.fsync(&handle).await.unwrap();
    }
    model.extend_from_slice(&[b'x'; 1100]);
    assert!(client.stats().compactions > before, "but not never");
    assert!(bytes_of(&client, &handle, 0, 1 << 20).await.unwrap() == model);
    assert!(client.getattr(&Cred::default(), handle.ino()).await.unwrap().mtime >= mtime);
}

#[tokio::test(start_paused = true)]
async fn a_file_with_more_extents_than_are_kept_can_be_read_and_sought() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let first = client(&cluster).await;
    let handle = create(&first, "image", READ_WRITE).await;
    let (count, stride) = (1000, u64::from(CHUNK));
    let piece = |i: u64| Bytes::from(format!("{i:08}"));
    for i in 0..count {
        first.write(&handle, i * stride, piece(i)).await.unwrap();
    }
    first.fsync(&handle).await.unwrap();
    assert!(cluster.lock().extents(handle.ino()) >= 1000);
    let second = client(&cluster).await;
    let other = second.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
    let all = bytes_of(&second, &other, 0, usize::try_from(count * stride).unwrap()).await.unwrap();
    for (i, window) in all.chunks(usize::try_from(stride).unwrap()).enumerate() {
        assert_eq!(window[..8], piece(i as u64));
        assert!(window[8..].iter().all(|byte| *byte == 0));
    }
    for i in (0..count).step_by(37) {
        let at = i * stride;
        assert_eq!(second.seek(&other, at + 8, Seek::Data).await.unwrap(), (i + 1 < count).then_some(at + stride));
        assert_eq!(second.seek(&other, at, Seek::Hole).await.unwrap(), Some(at + 8));
    }
    second.fallocate(&other, 8, (count - 2) * stride, Fallocate::PunchHole).await.unwrap();
    let third = client(&cluster).await;
    let other = third.open(&Cred::default(), handle.ino(), READ_WRITE).await.unwrap();
    assert_eq!(third.seek(&other, 8, Seek::Data).await.unwrap(), Some((count - 1) * stride));
}

#[tokio::test(start_paused = true)]
async fn small_pieces_with_small_holes_become_one_chunk_too() {
    let cluster = Arc::new(FakeCluster::new(1, 1 << 20));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let mut model = vec![0; 400_000];
    for i in 0..200usize {
        let (at, bytes) = (i * 2000, noise(&mut StdRng::seed_from_u64(i as u64), 100));
        model[at..at + 100].copy_from_slice(&bytes);
        client.write(&handle, at as u64, bytes).await.unwrap();
        client.fsync(&handle).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.stats().compactions > 0);
    assert!(cluster.lock().extents(handle.ino()) < 100);
    let size = client.getattr(&Cred::default(), handle.ino()).await.unwrap().size as usize;
    assert!(bytes_of(&client, &handle, 0, 1 << 20).await.unwrap() == model[..size]);
}

#[tokio::test(start_paused = true)]
async fn tiny_pieces_count_for_the_memory_they_take() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let left = || client.core.unsaved.available_permits() as u64;
    let all = client.core.unsaved_max;
    cluster.lock().no_majority = true;
    for i in 0..300u64 {
        client.write(&handle, i * 100, Bytes::from_static(b"x")).await.unwrap();
    }
    assert!(all - left() >= 300 * 256, "{} taken for 300 pieces", all - left());
    for i in 0..5000u64 {
        client.write(&handle, 1 << 20 | i, Bytes::from_static(b"y")).await.unwrap();
    }
    assert!(all - left() < 300 * 256 + 20_000, "bytes that continue each other are one piece");
    for i in 0..100u64 {
        client.write(&handle, (1 << 20) + i * 7, Bytes::from_static(b"z")).await.unwrap();
    }
    cluster.lock().no_majority = false;
    saved(&client, &handle).await;
    assert_eq!(left(), all, "given back");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_fit_can_be_truncated() {
    let cluster = Arc::new(FakeCluster::new(1, CHUNK));
    let client = client(&cluster).await;
    let handle = create(&client, "f", READ_WRITE).await;
    let mut random = StdRng::seed_from_u64(1);
    let kept = noise(&mut random, 100_000);
    client.write(&handle, 0, kept.clone()).await.unwrap();
    client.fsync(&handle).await.unwrap();
    let full = |full: bool| cluster.lock().servers.values_mut().for_each(|server| server.full = full);
    full(true);
    client.write(&handle, 100_000, noise(&mut random, 300_000)).await.unwrap();
    assert_eq!(client.fsync(&handle).await.unwrap_err().kind, Kind::NoSpace);
    let truncate = async |size| {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        client.setattr(&Cred::default(), handle.ino(), set).await
    };
    assert_eq!(truncate(200_000).await.unwrap_err().kind, Kind::NoSpace, "some of it would have to be stored");
    assert!(bytes_of(&client, &handle, 0, 500_000).await.unwrap().len() == 400_000, "nothing is lost by trying");
    assert_eq!(truncate(100_000).await.unwrap().size, 100_000);
    assert!(bytes_of(&client, &handle, 0, 500_000).await.unwrap() == kept);
    assert_eq!(client.core.unsaved.available_permits() as u64, client.core.unsaved_max);
    client.fsync(&handle).await.expect_err("the handle is told of the truncate that failed, once");
    client.fsync(&handle).await.expect("nothing is unsaved");
    full(false);
    let more = noise(&mut random, 50_000);
    client.write(&handle, 100_000, more.clone()).await.unwrap();
    client.fsync(&handle).await.unwrap();
    assert!(bytes_of(&client, &handle, 100_000, 500_000).await.unwrap() == more);
}
