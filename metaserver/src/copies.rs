//! Commits with fewer copies than the file asks for: are the missing servers really down?
//!
//! An acknowledged write is durable on every server that is up. A client may say that it could not reach one; the leader
//! believes its own heartbeats, and where those say "up", or nothing yet because it leads for a short time, its own probe.
//! A server that answers it is not down: the client puts the chunk there, too.

use crate::leading::Leading;
use crate::namespace;
use common::fault::{Fault, Kind};
use common::id::{InodeId, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::ClusterMap;
use common::proto::batch::Deferred;
use common::proto::meta::{Commit, Op};
use common::wire::{Pool, Target};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the first heartbeat of a server that answered its probe is waited for, so that the next map shows it.
const HEARTBEAT_WAIT: Duration = Duration::from_secs(1);
/// Between two looks for it.
const HEARTBEAT_LOOK: Duration = Duration::from_millis(20);
/// For how long a probe that got no answer counts: commits that come meanwhile do not wait for another one.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Copies {
    pool: Pool,
    /// Servers that did not answer, and when they were asked.
    silent: Mutex<BTreeMap<ServerId, Instant>>,
}

impl Copies {
    /// Probes through this pool.
    pub(crate) fn new(pool: Pool) -> Copies {
        Copies { pool, silent: Mutex::default() }
    }

    /// Refuses a commit whose chunks could have more copies.
    ///
    /// # Errors
    /// `PutAgain`: a server that should hold a chunk is up. Nothing else: this is before the log, and the client takes
    /// other refusals of a commit for the state machine's, which its slot has kept.
    pub(crate) async fn check(
        &self,
        leading: &Leading,
        map: &ClusterMap,
        commit: &Commit,
        replicas: u8,
    ) -> Result<(), Fault> {
        let missing = missing(map, commit, replicas, |id| leading.servers.is_unknown(id));
        let now = Instant::now();
        let is_silent = |asked: &Instant| now.saturating_duration_since(*asked) < SILENT_FOR;
        let known = self.silent.lock().expect("no panic holds this lock").clone();
        let doubtful = missing.into_iter().filter(|id| !known.get(id).is_some_and(is_silent));
        let probes = doubtful.map(|server| {
            let addr = map.servers.get(&server).map(|info| info.addr.clone()).unwrap_or_default();
            let target = Target { server, addr };
            async move { (server, self.pool.ping(&target, PROBE_TIMEOUT).await) }
        });
        for (server, answer) in futures::future::join_all(probes).await {
            let silent = || self.silent.lock().expect("no panic holds this lock");
            match answer {
                Ok(_) => {
                    silent().remove(&server);
                    heartbeat_of(server, leading).await;
                    let text = format!("chunkserver {server} is up and should hold a copy: put it there");
                    return Err(Fault::new(Kind::PutAgain, text));
                }
                Err(fault) => {
                    tracing::info!(%server, error = %fault, "a commit goes on with fewer copies");
                    silent().insert(server, now);
                }
            }
        }
        Ok(())
    }
}

/// What the changes of one batch make, up to some place in it: each inode with the directory that it is made in.
#[derive(Debug, Default)]
pub(crate) struct Made(HashMap<InodeId, InodeId>);

impl Made {
    /// One more change.
    pub(crate) fn note(&mut self, change: &Deferred) {
        if let (Some(ino), Op::Create { parent, .. } | Op::CreateUnmasked { parent, .. }) = (change.makes(), &change.op)
        {
            self.0.insert(ino, *parent);
        }
    }
}

/// How many copies the chunks of a file are to have; of one that is made in the same batch: what its directory says.
/// `None`: it is gone, perhaps. Only `apply` may say so: the client takes that for a reply that its slot has kept.
pub(crate) fn replicas_of(read: &dyn KvRead, made: &Made, mut ino: InodeId) -> Result<Option<u8>, KvError> {
    for _ in 0..=made.0.len() {
        match made.0.get(&ino) {
            Some(parent) => ino = *parent,
            None => return Ok(namespace::attr(read, ino)?.map(|attr| attr.replicas)),
        }
    }
    Ok(None) // directories that are made in each other: refused
}

/// Waits for the first heartbeat of a server that is up: until then the map would send the client elsewhere again.
async fn heartbeat_of(server: ServerId, leading: &Leading) {
    let end = Instant::now() + HEARTBEAT_WAIT;
    while leading.servers.is_unknown(server) && Instant::now() < end {
        tokio::time::sleep(HEARTBEAT_LOOK).await;
    }
}

/// Targets of the commit's chunks, those that are and those that may be, that gave no receipt.
fn missing(
    map: &ClusterMap,
    commit: &Commit,
    replicas: u8,
    is_unknown: impl Fn(ServerId) -> bool,
) -> BTreeSet<ServerId> {
    let may_hold = |id: &&ServerId| map.servers.get(id).is_some_and(|s| (s.up && s.writable) || is_unknown(**id));
    let mut missing = BTreeSet::new();
    for chunk in commit.chunks.iter().filter(|chunk| chunk.receipts.len() < usize::from(replicas)) {
        let (_, order) = map.layout.place(&chunk.id);
        let targets = order.iter().filter(may_hold).take(usize::from(replicas)).copied();
        missing.extend(targets.filter(|id| chunk.receipts.iter().all(|receipt| receipt.server != *id)));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Command;
    use crate::servers::Servers;
    use crate::store::Txn;
    use crate::store::keys::FAMILIES;
    use common::auth::{Attempt, Mac, Receipt, Secret};
    use common::disk::RealDisk;
    use common::id::{ChunkId, ClusterId, DataVersion, Epoch, LayoutVersion, LogIndex, SessionId};
    use common::kv::Kv;
    use common::kv::memory::MemoryKv;
    use common::layout::{Domain, Layout, ServerInfo};
    use common::name::Name;
    use common::proto::meta::{Cred, NewNode, StoredChunk};
    use common::time::Time;
    use std::sync::Arc;

    fn map() -> ClusterMap {
        // 1 and 2 take writes, 3 is down, 4 is full, 5 takes writes.
        let info = |id: u32| ServerInfo {
            addr: format!("h:{id}"),
            domain: Domain::default(),
            weight: 1,
            up: id != 3,
            writable: id != 4,
        };
        ClusterMap {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            version: 1,
            replicas: 3,
            min_replicas: 2,
            metaservers: BTreeMap::new(),
            servers: (1..=5).map(|id| (ServerId(id), info(id))).collect(),
            layout: Layout { version: LayoutVersion(1), groups: vec![(1..=5).map(ServerId).collect()] },
        }
    }

    fn commit(receipts: &[u32]) -> Commit {
        let attempt = Attempt { session: SessionId(1), witness: LogIndex(1), epoch: Epoch(1) };
        let receipt = |id: &u32| Receipt { server: ServerId(*id), mac: Mac::default() };
        let chunk = StoredChunk { id: ChunkId::of(b"x"), len: 1, receipts: receipts.iter().map(receipt).collect() };
        Commit {
            ino: InodeId(2),
            base: None::<DataVersion>,
            edits: vec![],
            append: false,
            grow: 0,
            chunks: vec![chunk],
            attempt,
            layout: LayoutVersion(1),
            mtime: None,
        }
    }

    #[test]
    fn only_servers_that_should_have_a_copy_are_missed() {
        let missed = |receipts: &[u32], replicas| {
            missing(&map(), &commit(receipts), replicas, |_| false).into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(missed(&[1, 2, 5], 3), []);
        assert_eq!(missed(&[1, 2], 3), [5], "3 is down and 4 is full: the copy belongs on 5");
        assert_eq!(missed(&[1, 2], 2), []);
        assert_eq!(missed(&[1, 3], 3), [2, 5]);
        assert_eq!(missed(&[1, 2, 5], 4), [], "there are no more targets");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_does_not_take_the_unheard_for_down() {
        let servers = Servers::new(1);
        let missed = |receipts: &[u32]| {
            let missed = missing(&map(), &commit(receipts), 3, |id| servers.is_unknown(id));
            missed.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(missed(&[1, 2]), [3], "not down for certain");
        assert_eq!(missed(&[1, 2, 5]), []);
        tokio::time::advance(crate::servers::DOWN_AFTER).await;
        assert_eq!(missed(&[1, 2]), [5], "it would have been heard of");
        servers.forget();
        assert_eq!(missed(&[1, 2]), [3], "nothing could be heard meanwhile");
    }

    #[test]
    fn what_a_batch_makes_has_as_many_copies_as_its_directory_says() {
        let dir = tempfile::tempdir().unwrap();
        let kv = MemoryKv::open(Arc::new(RealDisk), dir.path(), &FAMILIES).unwrap();
        let format = Command::Format {
            cluster: ClusterId(1),
            secret: Secret([1; 32]),
            pg_count: 16,
            replicas: 2,
            min_replicas: 1,
            metaservers: vec![],
            at: Time::default(),
        };
        let mut txn = Txn::new(&kv);
        namespace::apply(&mut txn, LogIndex(1), &format).unwrap().unwrap();
        let batch = txn.into_batch();
        kv.write(batch).unwrap();
        let create = |parent, ino| {
            let name = Name::new("n").unwrap();
            let op = Op::Create { parent, name, node: NewNode::Dir, mode: 0o755, exclusive: true, access: 0 };
            Deferred { cred: Cred::default(), at: Time::default(), op, leads: vec![ino] }
        };
        let mut made = Made::default();
        let of = |made: &Made, ino| replicas_of(&kv, made, InodeId(ino)).unwrap();
        assert_eq!((of(&made, InodeId::ROOT.0), of(&made, 50)), (Some(2), None));
        for (parent, ino) in [(InodeId::ROOT, 50), (InodeId(50), 51), (InodeId(60), 61), (InodeId(61), 60)] {
            made.note(&create(parent, InodeId(ino)));
        }
        assert_eq!((of(&made, 50), of(&made, 51)), (Some(2), Some(2)));
        assert_eq!((of(&made, 60), of(&made, 52)), (None, None), "made in each other; of nobody");
    }
}
