//! A chunkserver from outside: real servers over TCP on loopback, real disks in temporary directories.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use common::auth::Receipt;
use common::fault::{Fault, Kind};
use common::hash::verify;
use common::hello::{self, Hello, Me, Plane, Role};
use common::id::{ChunkId, ClusterId, Epoch, PgId, ServerId, SessionId};
use common::net::{Net, TcpNet};
use common::proto::chunk::{ChunkAnswer, ChunkRef, ChunkRequest, WriteAuth};
use common::wire::{DATA_MAX, Pool, Target, Wire};
use common::world::World;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use support::{CLUSTER, Cluster, EPOCH, LIMIT, PG_COUNT, SECRET, auth, bytes, chunk_of, config, serve_meta};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn reader() -> SessionId {
    SessionId(4)
}

/// Reads a range from one server and checks it.
async fn read(pool: &Pool, from: &Target, chunk: ChunkRef, offset: u32, len: u32) -> Result<Vec<u8>, Fault> {
    let token = SECRET.read_token(chunk.id, reader(), EPOCH);
    let got = pool.get(from, (reader(), token), chunk.id, offset, len, LIMIT).await?;
    verify(chunk.id, got.chunk_len, got.start, &got.bytes, &got.proof).expect("sound bytes");
    let skip = usize::try_from(offset - got.start).unwrap();
    Ok(got.bytes[skip..skip + usize::try_from(len).unwrap()].to_vec())
}

fn assert_receipt(result: &(ServerId, Result<Receipt, Fault>), server: ServerId, chunk: ChunkRef) {
    let receipt = result.1.as_ref().unwrap();
    assert_eq!((result.0, receipt.server), (server, server));
    assert!(SECRET.receipt_is_valid(receipt, chunk.id, chunk.len, auth().attempt));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_on_every_server_of_the_chain_and_any_range_reads_back() {
    let cluster = Cluster::start(3).await;
    for len in [1, 1000, 16 << 10, 65_537, (4 << 20) - 3, 4 << 20, DATA_MAX * 3] {
        let data = bytes(len, 1);
        let chunk = chunk_of(&data);
        // In two pieces that do not end where a frame does.
        let parts = [data.slice(..len / 3), data.slice(len / 3..)];
        for _ in 0..2 {
            let results = cluster.pool.put_chain(&cluster.chain(), auth(), chunk, &parts, LIMIT).await.unwrap();
            assert_eq!(results.len(), 3);
            for (at, result) in results.iter().enumerate() {
                assert_receipt(result, cluster.target(at).server, chunk);
            }
        }
        for at in 0..3 {
            let target = cluster.target(at);
            assert_eq!(read(&cluster.pool, &target, chunk, 0, chunk.len).await.unwrap(), data);
            let (from, to) = (chunk.len / 3, chunk.len - chunk.len / 4);
            let part = read(&cluster.pool, &target, chunk, from, to - from).await.unwrap();
            assert_eq!(part, data[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]);
        }
        let beyond = read(&cluster.pool, &cluster.target(0), chunk, chunk.len, 1).await;
        assert_eq!(beyond.unwrap_err().kind, Kind::Invalid);
    }
    assert_eq!(cluster.servers[1].stores().stats().chunks, 7, "the second put of each stored nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_puts_at_once_in_all_directions() {
    let cluster = Cluster::start(3).await;
    let puts = (0..48usize).map(|n| {
        let (pool, mut chain) = (cluster.pool.clone(), cluster.chain());
        chain.rotate_left(n % 3);
        async move {
            let data = bytes((1 << 20) + n, n);
            let results = pool.put_chain(&chain, auth(), chunk_of(&data), &[data], LIMIT).await.unwrap();
            assert!(results.len() == 3 && results.iter().all(|(_, result)| result.is_ok()), "{results:?}");
        }
    });
    futures::future::join_all(puts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_chunks_go_in_batches_and_are_vouched_for() {
    let cluster = Cluster::start(1).await;
    let to = cluster.target(0);
    let good: Vec<_> = (0..300).map(|n| bytes(n + 1, n)).map(|data| (chunk_of(&data), data)).collect();
    let mut batch = good.clone();
    batch[7].0.id = ChunkId::of(b"something else");
    let results = cluster.pool.put_small(&to, auth(), &batch, LIMIT).await.unwrap();
    for (at, result) in results.iter().enumerate() {
        match result {
            Ok(receipt) => assert!(SECRET.receipt_is_valid(receipt, batch[at].0.id, batch[at].0.len, auth().attempt)),
            Err(fault) => assert!(at == 7 && fault.kind == Kind::Busy, "{at} {fault}"),
        }
    }
    let refs: Vec<ChunkRef> = good.iter().map(|(chunk, _)| *chunk).collect();
    let touched = cluster.pool.touch(&to, auth(), &refs, LIMIT).await.unwrap();
    for (at, receipt) in touched.iter().enumerate() {
        let valid = receipt.is_some_and(|r| SECRET.receipt_is_valid(&r, refs[at].id, refs[at].len, auth().attempt));
        assert_eq!(valid, at != 7);
    }
    assert_eq!(read(&cluster.pool, &to, refs[200], 0, 201).await.unwrap(), good[200].1);
    assert_eq!(read(&cluster.pool, &to, refs[7], 0, 8).await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_in_the_chain_costs_only_what_is_behind_it() {
    let mut cluster = Cluster::start(3).await;
    let chain = cluster.chain();
    let data = bytes(3 << 20, 2);
    // The last one is gone; then the middle one too (its connection was kept by the first).
    for alive in [2, 1] {
        let chunk = chunk_of(&data.slice(alive..));
        cluster.pool.put_chain(&chain[..alive + 1], auth(), chunk, &[data.slice(alive..)], LIMIT).await.unwrap();
        cluster.servers.remove(alive).shutdown().await;
        let other = data.slice(..data.len() - alive);
        let chunk = chunk_of(&other);
        let results = cluster.pool.put_chain(&chain, auth(), chunk, &[other], LIMIT).await.unwrap();
        assert_eq!(results.len(), 3);
        for (at, result) in results.iter().enumerate() {
            if at < alive {
                assert_receipt(result, chain[at].server, chunk);
            } else {
                assert_eq!(result.0, chain[at].server);
                assert_eq!(result.1.as_ref().unwrap_err().kind, Kind::Unavailable);
            }
        }
    }
    let gone = cluster.pool.ping(&chain[2], LIMIT).await.unwrap_err();
    assert!(gone.kind == Kind::Unavailable && gone.message.contains(&chain[2].addr), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_a_bounded_wait_and_its_own_copy() {
    let cluster = Cluster::start(1).await;
    let mut listener = TcpNet.bind("127.0.0.1:0").await.unwrap();
    let hung = Target { server: ServerId(8), addr: listener.local_addr() };
    let data = bytes(100_000, 8);
    let chunk = chunk_of(&data);
    let chain = [cluster.target(0), hung];
    let hang = async {
        let (mut conn, from) = listener.accept().await.unwrap();
        let me = Me::new(Hello { role: Role::Chunkserver, cluster: CLUSTER, epoch: EPOCH, id: 8 });
        hello::welcome(&mut conn, &me, Plane::Data, &from).await.unwrap();
        std::future::pending::<()>().await;
    };
    let put = cluster.pool.put_chain(&chain, auth(), chunk, std::slice::from_ref(&data), LIMIT);
    let results = tokio::select! {
        results = put => results.unwrap(),
        () = hang => unreachable!(),
    };
    assert_receipt(&results[0], chain[0].server, chunk);
    let fault = results[1].1.as_ref().unwrap_err();
    assert!(fault.kind == Kind::Unavailable && fault.message.contains("s8") && results[1].0.0 == 8, "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_nothing_is_stored_or_shown() {
    let cluster = Cluster::start(2).await;
    let (to, data) = (cluster.target(0), bytes(200_000, 3));
    let chunk = chunk_of(&data);
    let mut forged = auth();
    forged.token.0[3] ^= 1;
    let in_epoch = |epoch| {
        let attempt = common::auth::Attempt { epoch, ..auth().attempt };
        WriteAuth { attempt, token: SECRET.write_token(attempt.session, epoch) }
    };
    let wrong = [
        (forged, Kind::Denied),
        (in_epoch(Epoch(EPOCH.0 - 1)), Kind::Stale),
        (in_epoch(Epoch(EPOCH.0 + 1)), Kind::Busy),
    ];
    for (auth, kind) in wrong {
        let put = cluster.pool.put_chain(&cluster.chain(), auth, chunk, std::slice::from_ref(&data), LIMIT).await;
        assert_eq!(put.unwrap_err().kind, kind);
        let small = cluster.pool.put_small(&to, auth, &[(chunk, data.clone())], LIMIT).await;
        assert_eq!(small.unwrap_err().kind, kind);
        assert_eq!(cluster.pool.touch(&to, auth, &[chunk], LIMIT).await.unwrap_err().kind, kind);
    }
    assert_eq!(cluster.servers[0].stores().stats().chunks, 0);
    cluster.pool.put_chain(&cluster.chain(), auth(), chunk, std::slice::from_ref(&data), LIMIT).await.unwrap();
    let token = |session, epoch| (session, SECRET.read_token(chunk.id, session, epoch));
    for right in [(SessionId(5), token(reader(), EPOCH).1), token(reader(), Epoch(EPOCH.0 - 2))] {
        let got = cluster.pool.get(&to, right, chunk.id, 0, 5, LIMIT).await;
        assert_eq!(got.unwrap_err().kind, Kind::Stale);
    }
    let last = token(reader(), Epoch(EPOCH.0 - 1));
    cluster.pool.get(&to, last, chunk.id, 0, 5, LIMIT).await.unwrap();
    let pg = chunk.id.pg(u32::try_from(PG_COUNT).unwrap());
    assert_eq!(cluster.pool.list(&to, pg, None, 10, LIMIT).await.unwrap_err().kind, Kind::Refused);
    let admin = Pool::new(&World::real(), &Me::unknown(Role::Admin));
    assert_eq!(admin.list(&to, pg, None, 10, LIMIT).await.unwrap(), (vec![chunk], false));
    assert_eq!(admin.list(&to, PgId(99), None, 10, LIMIT).await.unwrap_err().kind, Kind::Invalid);
}

/// Flips a byte in the middle of the one place where `needle` is stored below `dir`.
fn flip(dir: &Path, needle: &[u8]) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            flip(&entry.path(), needle);
            continue;
        }
        let mut bytes = std::fs::read(entry.path()).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at + needle.len() / 2] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_only_a_reader_knew_to_be_wrong_is_replaced() {
    let cluster = Cluster::start(1).await;
    let (to, data) = (cluster.target(0), bytes(5000, 1));
    let chunk = chunk_of(&data);
    let put = async || cluster.pool.put_small(&to, auth(), &[(chunk, data.clone())], LIMIT).await.unwrap();
    let touch = async || cluster.pool.touch(&to, auth(), &[chunk], LIMIT).await.unwrap()[0].is_some();
    let told = async |token| cluster.pool.verify(&to, (reader(), token), chunk.id, LIMIT).await;
    let token = SECRET.read_token(chunk.id, reader(), EPOCH);
    put().await;
    assert_eq!(told(token).await, Ok(true), "nothing is wrong");
    flip(&cluster.dirs[0].path().join("data"), &data);
    assert!(touch().await, "written in this run, so it is vouched for: nobody has looked");
    let other = SECRET.read_token(chunk.id, SessionId(5), EPOCH);
    assert_eq!(told(other).await.unwrap_err().kind, Kind::Stale, "who may not read it may not have it read");
    assert_eq!(told(token).await, Ok(false));
    assert_eq!(cluster.servers[0].stores().stats().corrupt, 1);
    assert!(!touch().await);
    assert!(put().await[0].is_ok());
    assert!(touch().await);
    assert_eq!(read(&cluster.pool, &to, chunk, 0, chunk.len).await.unwrap(), data);
    assert_eq!(told(token).await, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_chunk_are_stored_nowhere() {
    let cluster = Cluster::start(3).await;
    let (data, other) = (bytes(1 << 20, 4), bytes(1 << 20, 5));
    let chunk = chunk_of(&other);
    let results = cluster.pool.put_chain(&cluster.chain(), auth(), chunk, &[data], LIMIT).await.unwrap();
    for (at, (_, result)) in results.iter().enumerate() {
        assert_eq!(result.as_ref().unwrap_err().kind, Kind::Busy);
        let missing = read(&cluster.pool, &cluster.target(at), chunk, 0, 1).await.unwrap_err();
        assert_eq!(missing.kind, Kind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_has_its_name_and_its_chunks() {
    let mut cluster = Cluster::start(2).await;
    let (to, data) = (cluster.target(0), bytes(300_000, 6));
    let chunk = chunk_of(&data);
    cluster.pool.put_chain(std::slice::from_ref(&to), auth(), chunk, std::slice::from_ref(&data), LIMIT).await.unwrap();
    assert!(cluster.servers.remove(0).shutdown().await);
    let config = chunkserver::Config { listen: to.addr.clone(), ..config(&cluster.meta_addr, cluster.dirs[0].path()) };
    let again = chunkserver::start(config.clone(), World::real()).await.unwrap();
    assert_eq!(again.registered().await.unwrap(), to.server);
    // The pool's kept connection is dead: that is not shown to the caller.
    assert_eq!(read(&cluster.pool, &to, chunk, 0, chunk.len).await.unwrap(), data);

    let twice = chunkserver::start(config.clone(), World::real()).await.err().unwrap().to_string();
    assert!(twice.contains(&to.addr) && twice.contains("another server"), "{twice}");
    let elsewhere = chunkserver::Config { listen: "127.0.0.1:0".into(), ..config };
    let locked = chunkserver::start(elsewhere.clone(), World::real()).await.err().unwrap().to_string();
    assert!(locked.contains("in use"), "{locked}");
    again.shutdown().await;
    let foreign = chunkserver::Config { cluster: Some("5".into()), ..elsewhere };
    let other = chunkserver::start(foreign, World::real()).await.err().unwrap().to_string();
    assert!(other.contains("cluster") && other.contains("data"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_has_registered_it_says_so_and_later_it_serves() {
    let port = common::net::free_port(&BTreeSet::new(), || World::real().random_u64()).unwrap();
    let (meta_addr, dir) = (format!("127.0.0.1:{port}"), tempfile::tempdir().unwrap());
    let server = chunkserver::start(config(&meta_addr, dir.path()), World::real()).await.unwrap();
    let pool = Pool::new(&World::real(), &Me::unknown(Role::Client));
    let anyone = Target { server: ServerId(0), addr: server.addr().to_owned() };
    let early = pool.ping(&anyone, LIMIT).await.unwrap_err();
    assert!(early.kind == Kind::Unavailable && early.message.contains("not registered"), "{early}");
    let meta = support::FakeMeta::default();
    let _meta = serve_meta(TcpNet.bind(&meta_addr).await.unwrap(), &meta);
    let id = tokio::time::timeout(LIMIT, server.registered()).await.unwrap().unwrap();
    assert_eq!(pool.ping(&anyone, LIMIT).await.unwrap(), id);
    // Heartbeats bring a new map, and with it a new epoch.
    *meta.epoch.lock().unwrap() = Some(Epoch(9));
    *meta.map_version.lock().unwrap() = 5;
    let seen = async {
        while meta.heartbeats.lock().unwrap().last().is_none_or(|h| h.map_version != 5) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, seen).await.unwrap();
    let stale = pool.touch(&anyone, auth(), &[], LIMIT).await.unwrap_err();
    assert!(stale.kind == Kind::Stale && stale.message.contains("e9"), "{stale}");
    // A metaserver of an epoch that is over is not listened to, also after a restart.
    *meta.epoch.lock().unwrap() = Some(Epoch(8));
    *meta.map_version.lock().unwrap() = 6;
    let asked = |more: usize| {
        let (meta, before) = (meta.clone(), meta.heartbeats.lock().unwrap().len());
        async move {
            while meta.heartbeats.lock().unwrap().len() < before + more {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(LIMIT, asked(3)).await.unwrap();
    assert_eq!(meta.heartbeats.lock().unwrap().last().unwrap().map_version, 5);
    let stale = pool.touch(&anyone, auth(), &[], LIMIT).await.unwrap_err();
    assert!(stale.message.contains("e9"), "{stale}");
    server.shutdown().await;
    let server = chunkserver::start(config(&meta_addr, dir.path()), World::real()).await.unwrap();
    assert_eq!(server.stores().epoch(), Epoch(9));
    let refused = tokio::time::timeout(Duration::from_secs(2), server.registered()).await;
    assert!(refused.is_err(), "it serves under an epoch that is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_clusters_and_other_servers_are_not_taken_for_ours() {
    let cluster = Cluster::start(2).await;
    let (one, two) = (cluster.target(0), cluster.target(1));
    let swapped = Target { server: two.server, addr: one.addr.clone() };
    let fault = cluster.pool.ping(&swapped, LIMIT).await.unwrap_err();
    assert!(fault.kind == Kind::Refused && fault.message.contains("s1"), "{fault}");
    let stranger = Hello { role: Role::Client, cluster: ClusterId(CLUSTER.0 + 1), epoch: EPOCH, id: 0 };
    let fault = Pool::new(&World::real(), &Me::new(stranger)).ping(&one, LIMIT).await.unwrap_err();
    assert!(fault.kind == Kind::Refused && fault.message.contains("cluster"), "{fault}");
}

/// A raw connection, behind its hello.
async fn raw(to: &Target) -> common::net::Conn {
    let mut conn = TcpNet.connect(&to.addr).await.unwrap();
    hello::introduce(&mut conn, &Me::unknown(Role::Client), Plane::Data, &to.addr).await.unwrap();
    conn
}

/// Waits until the server closes; false if it did not within the limit.
async fn closes(conn: &mut common::net::Conn) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), conn.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_cost_the_connection_and_nothing_else() {
    let cluster = Cluster::start(2).await;
    let to = cluster.target(0);
    let data = bytes(500_000, 7);
    let chunk = chunk_of(&data);
    let put = |chunk, chain| ChunkRequest::Put { auth: auth(), chunk, chain };
    let nobody = || (ServerId(9), String::new());
    let small = |chunks| ChunkRequest::PutSmall { auth: auth(), chunks };
    let bad = [
        (put(ChunkRef { len: u32::MAX, ..chunk }, vec![]), 0),
        (put(ChunkRef { len: 0, ..chunk }, vec![]), 0),
        (put(chunk, (0..20).map(|_| nobody()).collect()), 0),
        (put(ChunkRef { len: 10, ..chunk }, vec![]), 11),
        (small(vec![ChunkRef { len: u32::MAX, ..chunk }; 3]), 0),
        (small(vec![ChunkRef { len: 1, ..chunk }; 5000]), 0),
        (small(vec![ChunkRef { len: 5, ..chunk }; 2]), 11),
        (ChunkRequest::Ping, 5),
    ];
    for (request, extra) in bad {
        let mut wire = Wire::new(raw(&to).await);
        wire.send(1, &request, &[&data[..extra]]).await.unwrap();
        let mut answer = wire.receive::<ChunkAnswer>().await;
        if matches!(request, ChunkRequest::Ping) {
            assert!(matches!(answer, Ok(Some(_))), "{answer:?}");
            answer = wire.receive().await; // the data that nobody asked for
        }
        assert!(!matches!(answer, Ok(Some(_))), "{request:?}: {answer:?}");
    }
    // A put that stops in the middle, with a chain behind: stored nowhere.
    let mut wire = Wire::new(raw(&to).await);
    let next = (cluster.target(1).server, cluster.target(1).addr);
    wire.send(1, &put(chunk, vec![next]), &[&data[..300_000]]).await.unwrap();
    drop(wire);
    cluster.pool.put_chain(&cluster.chain(), auth(), chunk, std::slice::from_ref(&data), LIMIT).await.unwrap();
    assert_eq!(read(&cluster.pool, &cluster.target(1), chunk, 0, chunk.len).await.unwrap(), data);
    assert_eq!(cluster.servers[0].stores().stats().chunks, 1);
}

/// Reads a whole chunk on this connection, as request `id`.
async fn read_on(wire: &mut Wire, id: u32, chunk: ChunkRef) -> Vec<u8> {
    let (session, token) = (reader(), SECRET.read_token(chunk.id, reader(), EPOCH));
    wire.send(id, &ChunkRequest::Get { session, token, chunk: chunk.id, offset: 0, len: chunk.len }, &[])
        .await
        .unwrap();
    let (answers, answer) = wire.receive::<ChunkAnswer>().await.unwrap().unwrap();
    let ChunkAnswer::Got { len, .. } = answer else { panic!("{answer:?}") };
    assert_eq!((answers, len), (id, chunk.len));
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    wire.receive_all(id, &mut bytes).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_other_requests_take_turns_on_one_connection() {
    let cluster = Cluster::start(1).await;
    let to = cluster.target(0);
    let data = bytes(50_000, 1);
    let chunk = chunk_of(&data);
    cluster.pool.put_small(&to, auth(), &[(chunk, data.clone())], LIMIT).await.unwrap();
    let mut wire = Wire::new(raw(&to).await);
    let mut id = 0;
    let mut next = || {
        id += 1;
        id
    };
    for round in 0..20u64 {
        for _ in 0..3 {
            assert_eq!(read_on(&mut wire, next(), chunk).await, data);
        }
        let id = next();
        let request = match round % 4 {
            0 => ChunkRequest::Ping,
            1 => ChunkRequest::Touch { auth: auth(), chunks: vec![chunk] },
            2 => ChunkRequest::Get { session: reader(), token: Default::default(), chunk: chunk.id, offset: 0, len: 1 },
            _ => {
                tokio::time::sleep(Duration::from_millis(10 * (round % 8))).await; // shorter and longer than a thread waits
                continue;
            }
        };
        wire.send(id, &request, &[]).await.unwrap();
        let (answers, answer) = wire.receive::<ChunkAnswer>().await.unwrap().unwrap();
        let refused = matches!(&answer, ChunkAnswer::Failed(fault) if fault.kind == Kind::Stale);
        assert_eq!((answers, refused), (id, round % 4 == 2), "{answer:?}");
    }
    let small = bytes(7, 9);
    let put = ChunkRequest::PutSmall { auth: auth(), chunks: vec![chunk_of(&small)] };
    wire.send(next(), &put, &[&small]).await.unwrap();
    assert!(matches!(wire.receive().await.unwrap().unwrap().1, ChunkAnswer::PutSmall(_)));
    assert_eq!(read_on(&mut wire, next(), chunk_of(&small)).await, small);
}

/// More connections read at once than there are threads for, and nobody waits for a thread that another one keeps.
#[tokio::test(flavor = "multi_thread")]
async fn many_connections_read_at_once() {
    let mut cluster = Cluster::start(1).await;
    let to = cluster.target(0);
    let data = bytes(300_000, 3);
    let chunk = chunk_of(&data);
    cluster.pool.put_chain(&cluster.chain(), auth(), chunk, std::slice::from_ref(&data), LIMIT).await.unwrap();
    let mut wires = Vec::new();
    for _ in 0..50 {
        wires.push(Wire::new(raw(&to).await));
    }
    let reads = wires.iter_mut().map(async |wire| {
        for id in 1..20 {
            assert_eq!(read_on(wire, id, chunk).await, data);
        }
    });
    futures::future::join_all(reads).await;
    // With all of them open, and some just answered, it stops at once.
    let stopped = tokio::time::timeout(Duration::from_secs(5), cluster.servers.remove(0).shutdown()).await;
    stopped.expect("no thread waits at a connection");
    for wire in &mut wires {
        assert!(!matches!(wire.receive::<ChunkAnswer>().await, Ok(Some(_))), "closed");
    }
}

#[test]
fn no_bytes_bring_a_server_down() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start(1));
    let to = cluster.target(0);
    let head = |kind: u8, len: u32| {
        let mut head = [len.to_le_bytes(), [kind, 0, 0, 0], [1, 0, 0, 0]].concat();
        let crc = crc32c::crc32c(&head);
        head.extend_from_slice(&crc.to_le_bytes());
        head
    };
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let outcome = runner.run(&(0u8..4, any::<u32>(), bytes), |(kind, len, tail)| {
        runtime.block_on(async {
            for front in [vec![], head(kind, len)] {
                let mut conn = raw(&to).await;
                let _ = conn.write_all(&[&front[..], &tail].concat()).await; // it may be closed already
                let _ = conn.shutdown().await;
                assert!(closes(&mut conn).await);
            }
            assert_eq!(cluster.pool.ping(&to, LIMIT).await.unwrap(), to.server);
        });
        Ok(())
    });
    outcome.unwrap();
}
