//! Power cuts at every write.

use super::{Store, bytes, chunk, compact, live_as_counted, name, open, read, world};
use crate::store::StoreError;
use common::id::{ChunkId, PgId};
use common::proto::chunk::ChunkRef;
use common::testing::SimDisk;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::Path;

/// What a caller knows of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Held,
    Gone,
    /// It asked and got no answer.
    Unsure,
}

pub(super) type Ledger = BTreeMap<ChunkId, (Vec<u8>, Known)>;

/// What happens until the power goes; `None`: it went.
type Work = for<'a> fn(&'a SimDisk, u64, &'a mut Ledger) -> BoxFuture<'a, Option<()>>;

pub(super) async fn put(store: &Store, ledger: &mut Ledger, all: &[Vec<u8>]) -> Result<(), StoreError> {
    for bytes in all {
        let entry = ledger.entry(ChunkId::of(bytes)).or_insert((bytes.clone(), Known::Unsure));
        if entry.1 == Known::Gone {
            entry.1 = Known::Unsure;
        }
    }
    let answers = store.put_all(all.iter().map(|bytes| chunk(bytes)).collect()).await;
    for (bytes, answer) in all.iter().zip(&answers) {
        if answer.is_ok() {
            ledger.get_mut(&ChunkId::of(bytes)).unwrap().1 = Known::Held;
        }
    }
    answers.into_iter().collect()
}

pub(super) async fn delete(store: &Store, ledger: &mut Ledger, bytes: &[u8]) -> Result<(), StoreError> {
    let entry = ledger.get_mut(&ChunkId::of(bytes)).unwrap();
    entry.1 = Known::Unsure;
    store.remove(ChunkId::of(bytes)).await?;
    entry.1 = Known::Gone;
    Ok(())
}

/// Puts, duplicates, deletes and flushes over several segments, until the power goes.
async fn workload(disk: &SimDisk, seed: u64, ledger: &mut Ledger) -> Option<()> {
    let store = open(disk, seed).await.ok()?;
    let small: Vec<Vec<u8>> = (0..6).map(|n| bytes(n, 1 + 5000 * usize::try_from(n).unwrap())).collect();
    let large: Vec<Vec<u8>> = (0..4).map(|n| bytes(n, 70_000 + 60_000 * usize::try_from(n).unwrap())).collect();
    put(&store, ledger, &small[..3]).await.ok()?;
    put(&store, ledger, &large[..1]).await.ok()?;
    put(&store, ledger, &[small[3].clone(), large[1].clone(), small[3].clone()]).await.ok()?;
    store.flush().await.ok()?;
    delete(&store, ledger, &small[1]).await.ok()?;
    delete(&store, ledger, &large[0]).await.ok()?;
    put(&store, ledger, &large[2..]).await.ok()?;
    put(&store, ledger, &small[1..2]).await.ok()?;
    store.flush().await.ok()?;
    delete(&store, ledger, &small[1]).await.ok()?;
    drop(store);
    let store = open(disk, seed + 1).await.ok()?;
    put(&store, ledger, &large[..2]).await.ok()?;
    put(&store, ledger, &small[4..]).await.ok()?;
    delete(&store, ledger, &large[3]).await.ok()?;
    Some(())
}

async fn check(store: &Store, ledger: &Ledger, when: &str) {
    for (id, (bytes, known)) in ledger {
        let name = ChunkRef { id: *id, len: u32::try_from(bytes.len()).unwrap() };
        let found = read(store, name).await;
        let gone = matches!(store.read(*id, 0, 1).await, Err(StoreError::NotFound { .. }));
        let touched = store.touch(&[name]).await.unwrap()[0];
        match known {
            Known::Held => assert!(found.as_ref() == Some(bytes) && touched, "{when}: {id} was acknowledged"),
            Known::Gone => assert!(gone && !touched, "{when}: {id} was deleted"),
            Known::Unsure => {
                assert!(gone != (found.as_ref() == Some(bytes)) && touched != gone, "{when}: {id} is half")
            }
        }
    }
    let (listed, _) = store.list(PgId(0), 1, None, 1000).await.unwrap();
    let stats = store.stats();
    assert_eq!(stats.chunks, listed.len() as u64, "{when}");
    assert_eq!(stats.bytes, listed.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>(), "{when}");
    assert_eq!((stats.corrupt, stats.fenced), (0, 0), "{when}: a power cut is no damage");
    assert!(live_as_counted(store), "{when}: the counts of segments are wrong");
}

fn puts_and_deletes<'a>(disk: &'a SimDisk, seed: u64, ledger: &'a mut Ledger) -> BoxFuture<'a, Option<()>> {
    workload(disk, seed, ledger).boxed()
}

fn churn<'a>(disk: &'a SimDisk, seed: u64, ledger: &'a mut Ledger) -> BoxFuture<'a, Option<()>> {
    churned(disk, seed, ledger).boxed()
}

/// Segments that empty, are compacted, and empty again, with a restart in between.
async fn churned(disk: &SimDisk, seed: u64, ledger: &mut Ledger) -> Option<()> {
    let store = open(disk, seed).await.ok()?;
    let all: Vec<Vec<u8>> = (0..9).map(|n| bytes(n, 4000 + 3000 * usize::try_from(n).unwrap())).collect();
    let large: Vec<Vec<u8>> = (0..2).map(|n| bytes(n, 70_000)).collect();
    put(&store, ledger, &all).await.ok()?;
    put(&store, ledger, &large).await.ok()?;
    for n in [0, 2, 3, 5, 8] {
        delete(&store, ledger, &all[n]).await.ok()?;
    }
    compact(&store).await?; // 1, 4, 6 and 7 move
    delete(&store, ledger, &large[0]).await.ok()?;
    delete(&store, ledger, &large[1]).await.ok()?;
    put(&store, ledger, &all[2..3]).await.ok()?;
    delete(&store, ledger, &all[4]).await.ok()?;
    delete(&store, ledger, &all[7]).await.ok()?;
    compact(&store).await?;
    drop(store);
    let store = open(disk, seed + 1).await.ok()?;
    delete(&store, ledger, &all[6]).await.ok()?;
    put(&store, ledger, &all[3..5]).await.ok()?;
    compact(&store).await?;
    delete(&store, ledger, &all[1]).await.ok()?;
    delete(&store, ledger, &all[2]).await.ok()?;
    compact(&store).await?;
    Some(())
}

async fn after_each_cut(work: Work, seed: u64, lose_index: bool) {
    let whole = SimDisk::new(seed);
    work(&whole, seed, &mut Ledger::new()).await.expect("nothing fails while there is power");
    assert!(whole.writes() > 60, "{} writes", whole.writes());
    for cut in 0..whole.writes() {
        let disk = SimDisk::new(seed).cut_after(cut);
        let mut ledger = Ledger::new();
        assert!(work(&disk, seed, &mut ledger).await.is_none());
        let disk = disk.after_crash();
        if lose_index && world(&disk, 0).disk.exists(Path::new("/d/index")) {
            world(&disk, 0).disk.remove_dir_all(Path::new("/d/index")).unwrap();
        }
        let when = format!("seed {seed}, cut after write {cut}");
        let store = open(&disk, seed + 2).await.unwrap_or_else(|e| panic!("{when}: {e}"));
        check(&store, &ledger, &when).await;
        drop(store);
        // Again: recovery itself must not undo anything, nor a cut right behind it.
        let disk = disk.after_crash();
        let store = open(&disk, seed + 3).await.unwrap_or_else(|e| panic!("{when}, twice: {e}"));
        check(&store, &ledger, &format!("{when}, twice")).await;
        compact(&store).await.unwrap_or_else(|| panic!("{when}: compacts"));
        check(&store, &ledger, &format!("{when}, compacted")).await;
        let more = bytes(99, 80_000);
        store.put(chunk(&more)).await.unwrap();
        assert_eq!(read(&store, name(&more)).await, Some(more), "{when}: it takes more");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_at_any_write() {
    for seed in 0..4 {
        after_each_cut(puts_and_deletes, seed, false).await;
    }
}

#[tokio::test]
async fn it_does_so_also_when_the_index_is_lost() {
    for seed in 10..12 {
        after_each_cut(puts_and_deletes, seed, true).await;
    }
}

#[tokio::test]
async fn compaction_loses_nothing_and_brings_nothing_back_with_the_power_cut_at_any_write() {
    for seed in 30..34 {
        after_each_cut(churn, seed, false).await;
    }
}

#[tokio::test]
async fn nor_when_the_index_is_lost_as_well() {
    for seed in 40..42 {
        after_each_cut(churn, seed, true).await;
    }
}

/// A cut in the middle of recovery is met by the next recovery.
#[tokio::test]
async fn recovery_may_be_cut_at_any_write() {
    let seed = 20;
    let disk = SimDisk::new(seed);
    let mut ledger = Ledger::new();
    workload(&disk, seed, &mut ledger).await.unwrap();
    let crashed = disk.after_crash();
    open(&crashed, 5).await.unwrap();
    for cut in 0..crashed.writes() {
        let disk = SimDisk::new(seed);
        let mut ledger = Ledger::new();
        workload(&disk, seed, &mut ledger).await.unwrap();
        let disk = disk.after_crash().cut_after(cut);
        let cut_store = open(&disk, 5).await; // fine if the power went while space was given back
        assert!(cut_store.is_err() || !disk.has_power());
        let store = open(&disk.after_crash(), 6).await.unwrap();
        check(&store, &ledger, &format!("cut after write {cut} of recovery")).await;
    }
}
