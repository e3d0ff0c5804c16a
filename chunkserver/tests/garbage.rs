//! An order to collect garbage is carried out now, also for copies that somebody reads, or has vouched for, at that moment:
//! then it takes another wish.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use common::fault::{Fault, Kind};
use common::hello::{Hello, Me, Role};
use common::id::{ChunkId, LogIndex};
use common::proto::chunk::ChunkRef;
use common::proto::keep::{Expected, KeepAnswer, KeepAsk, KeepOrders, KeepReport, KeepSettings};
use common::proto::rebalance::MoveOrders;
use common::wire::Pool;
use common::world::World;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{CLUSTER, Cluster, EPOCH, LIMIT, auth, bytes, chunk_of};

/// Asks for one copy within an order: the first, and eight more.
const ASKS_MAX: usize = 9;

/// Who is at a copy while its server wants to delete it.
#[derive(Clone, Copy)]
enum Who {
    /// Scrub reads it.
    Scrub,
    /// Another server has it vouched for, to drop its own.
    Neighbour,
}

/// Puts three chunks that nothing refers to, orders a collection, and has somebody at all of them whenever the server has
/// asked about them, `times` at most. The report that says it is through, how many asks there were, what is left.
async fn collect_while(who: Who, times: usize) -> (KeepReport, usize, u64) {
    let cluster = Cluster::start(1).await;
    let chunks: Vec<_> = (1..=3).map(|seed| bytes(1000 * seed, seed)).collect();
    for data in &chunks {
        let parts = std::slice::from_ref(data);
        let put = cluster.pool.put_chain(&cluster.chain(), auth(), chunk_of(data), parts, LIMIT).await;
        put.unwrap()[0].1.as_ref().unwrap();
    }
    let stores = cluster.servers[0].stores().clone();
    let refs: BTreeMap<ChunkId, ChunkRef> = chunks.iter().map(|data| (chunk_of(data).id, chunk_of(data))).collect();
    let neighbour = Me::new(Hello { role: Role::Chunkserver, cluster: CLUSTER, epoch: EPOCH, id: 2 });
    let (pool, target) = (Pool::new(&World::real(), &neighbour), cluster.target(0));
    let (asked, done) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(None)));
    let (count, report) = (Arc::clone(&asked), Arc::clone(&done));
    *cluster.meta.keeping.lock().unwrap() = Some(Arc::new(move |ask| {
        let (stores, count, report) = (stores.clone(), Arc::clone(&count), Arc::clone(&report));
        let (refs, pool, target) = (refs.clone(), pool.clone(), target.clone());
        Box::pin(async move {
            match ask {
                KeepAsk::Report { report: told, .. } => {
                    if told.gc_done == 1 {
                        *report.lock().unwrap() = Some(told);
                    }
                    let settings = KeepSettings { delete_paused: false, ..KeepSettings::default() };
                    Ok(KeepAnswer::Orders(KeepOrders { gc: 1, settings, ..KeepOrders::default() }))
                }
                KeepAsk::Expected { .. } => {
                    Ok(KeepAnswer::Expected(Expected { chunks: Vec::new(), upto: None, index: LogIndex(1) }))
                }
                KeepAsk::Condemn { epoch, asks, .. } => {
                    let so_far = {
                        let mut count = count.lock().unwrap();
                        *count += 1;
                        *count
                    };
                    for (id, _) in asks.iter().filter(|_| so_far <= times) {
                        match who {
                            Who::Scrub => stores.verify(*id).await.unwrap(),
                            Who::Neighbour => {
                                let confirmed = pool.confirm(&target, EPOCH, &[(refs[id], 7)], LIMIT).await;
                                assert_eq!(confirmed.unwrap(), [(*id, 7)]);
                            }
                        }
                    }
                    Ok(KeepAnswer::Granted { epoch, grants: asks, kept: Vec::new() })
                }
                KeepAsk::Moves(_) => Ok(KeepAnswer::Moves(MoveOrders::default())),
                KeepAsk::Holds { .. } => Err(Fault::new(Kind::Invalid, "nothing is degraded")),
            }
        })
    }));
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let told = done.lock().unwrap().clone();
            match told {
                Some(report) => return report,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    let report = waited.await.expect("the order is carried out");
    let asked = *asked.lock().unwrap();
    (report, asked, cluster.servers[0].stores().stats().chunks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_being_read_goes_with_the_same_order() {
    let (report, asked, left) = collect_while(Who::Scrub, 2).await;
    assert_eq!((report.deleted, report.deleted_bytes, left), (3, 6000, 0));
    assert_eq!(asked, 3, "twice in vain, and once more");
}

/// Else the neighbour would drop its copy because of this one, and this one goes, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_vouched_for_takes_another_wish() {
    let (report, asked, left) = collect_while(Who::Neighbour, 2).await;
    assert_eq!((report.deleted, left), (3, 0));
    assert_eq!(asked, 3, "what it had asked before it vouched is void");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_does_not_wait_for_ever_for_what_is_always_read() {
    let (report, asked, left) = collect_while(Who::Scrub, usize::MAX).await;
    assert_eq!((report.deleted, left), (0, 3), "in doubt a copy stays");
    assert_eq!((asked, report.extra), (ASKS_MAX, 3));
}
