//! Not tests of promises: print what the data plane costs on this machine.
//! `cargo nextest run -p chunkserver --test speed --run-ignored only --no-capture`
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use common::wire::Pool;
use futures::StreamExt;
use std::time::Duration;
use support::{Cluster, EPOCH, LIMIT, SECRET, auth, bytes, chunk_of};
use tokio::time::Instant;

/// User and system time of this process, in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Runs `count` pieces of work, `at_once` at a time, and prints rates.
async fn measure<F: Future<Output = ()>>(what: &str, count: u32, len: u32, at_once: usize, work: impl Fn(u32) -> F) {
    let (start, cpu_before) = (Instant::now(), cpu());
    futures::stream::iter(0..count).map(work).buffer_unordered(at_once).count().await;
    let (took, used) = (start.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    let mib = f64::from(count) * f64::from(len) / 1_048_576.0;
    println!(
        "{what}, {at_once} at once: {:.0}/s, {:.0} MiB/s, {:.2} CPU s/GiB, {:.0} us CPU each",
        f64::from(count) / took,
        mib / took,
        used / mib * 1024.0,
        used / f64::from(count) * 1e6
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn the_data_plane_costs() {
    let cluster = Cluster::start(3).await;
    let chain = cluster.chain();
    let pool: &Pool = &cluster.pool;
    let data: Vec<_> = (0..96).map(|n| bytes(4 << 20, n)).collect();
    let refs: Vec<_> = data.iter().map(|data| chunk_of(data)).collect();
    for (servers, at) in [(1, 0..16u32), (3, 16..96)] {
        let put = |n: u32| {
            let n = usize::try_from(at.start + n).unwrap();
            let (chain, chunk, data) = (&chain[..servers], refs[n], [data[n].clone()]);
            async move {
                let results = pool.put_chain(chain, auth(), chunk, &data, LIMIT).await.unwrap();
                assert!(results.iter().all(|(_, result)| result.is_ok()));
            }
        };
        let what = format!("put 4 MiB to {servers}");
        measure(&what, at.end - at.start, 4 << 20, 8, put).await;
    }
    let get = |len: u32| {
        let (refs, chain) = (&refs, &chain);
        move |n: u32| {
            let chunk = refs[usize::try_from(16 + n % 80).unwrap()].id;
            let token = (auth().attempt.session, SECRET.read_token(chunk, auth().attempt.session, EPOCH));
            async move {
                let offset = if len < 1 << 20 { (n * 7919 % 1000) * 4096 } else { 0 };
                pool.get(&chain[0], token, chunk, offset, len, LIMIT).await.unwrap();
            }
        }
    };
    measure("get 4 MiB", 320, 4 << 20, 4, get(4 << 20)).await;
    measure("get 4 KiB", 10_000, 4 << 10, 1, get(4 << 10)).await;
    measure("get 4 KiB", 20_000, 4 << 10, 16, get(4 << 10)).await;
    let small = |n: u32| {
        let data = bytes(4096, usize::try_from(1000 + n).unwrap()).to_vec();
        let data = bytes::Bytes::from([&n.to_le_bytes()[..], &data].concat());
        let (chunk, chain) = (chunk_of(&data), &chain);
        async move {
            let batch = [(chunk, data)];
            let puts = chain.iter().map(|to| pool.put_small(to, auth(), &batch, LIMIT));
            assert!(futures::future::join_all(puts).await.iter().all(|r| r.as_ref().unwrap()[0].is_ok()));
        }
    };
    measure("put 4 KiB to 3", 300, 4 << 10, 1, small).await;
    let more = |n: u32| small(n + 1000);
    measure("put 4 KiB to 3", 2000, 4 << 10, 16, more).await;
}
