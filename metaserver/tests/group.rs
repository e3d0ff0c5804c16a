//! Metaservers in one process, on real TCP and real disks: what the group promises over crashes and restarts.
#![expect(clippy::unwrap_used, reason = "tests")]

use common::auth::AdminKey;
use common::fault::{Fault, Kind};
use common::hello::{Hello, Me, Role};
use common::id::{ClusterId, Epoch, InodeId, LogIndex, NodeId, SessionId};
use common::name::Name;
use common::net::free_port;
use common::proto::admin::{Order, Ordered};
use common::proto::meta::{
    ACCESS_READ, Admin, AdminReply, Answer, Answered, Applied, Ask, Cred, NewNode, NodeStatus, Op, Outcome, Query,
    Request, Status,
};
use common::proto::squash::{Squash, SquashAsk};
use common::rpc::Caller;
use common::task::Tasks;
use common::world::World;
use metaserver::Server;
use metaserver::config::{Config, ReadPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

#[path = "group/lives.rs"]
mod lives;
#[path = "group/members.rs"]
mod members;
#[path = "group/rights.rs"]
mod rights;

const LIMIT: Duration = Duration::from_secs(20);

/// Some metaservers, each with a directory; running or not.
struct Group {
    dirs: Vec<TempDir>,
    addrs: Vec<String>,
    running: BTreeMap<usize, Server>,
    snapshot_entries: u64,
    read_policy: ReadPolicy,
    tasks: Tasks,
}

impl Group {
    /// Starts `n` and formats them.
    async fn formatted(n: usize, snapshot_entries: u64) -> Group {
        let group = Group::empty(n, snapshot_entries).await;
        group.format().await.unwrap();
        group.wait_for_leader().await;
        group
    }

    async fn empty(n: usize, snapshot_entries: u64) -> Group {
        let dirs = (0..n).map(|_| tempfile::tempdir().unwrap()).collect();
        let running = BTreeMap::new();
        let (tasks, read_policy) = (Tasks::new(), ReadPolicy::Index);
        let mut group = Group { dirs, addrs: vec![], running, snapshot_entries, read_policy, tasks };
        let mut taken = BTreeSet::new();
        for _ in 0..n {
            // Known before the start, so that everybody's configuration can name everybody.
            let port = free_port(&taken, || World::real().random_u64()).unwrap();
            taken.insert(port);
            group.addrs.push(format!("127.0.0.1:{port}"));
        }
        for i in 0..n {
            group.start(i).await.unwrap();
        }
        group
    }

    fn config(&self, i: usize) -> Config {
        Config {
            node_id: u64::try_from(i).unwrap() + 1,
            listen: self.addrs[i].clone(),
            data_dir: self.dirs[i].path().to_path_buf(),
            metaservers: self.addrs.iter().enumerate().map(|(i, addr)| ((i + 1).to_string(), addr.clone())).collect(),
            cache_mib: 16,
            memtable_mib: 8,
            snapshot_entries: self.snapshot_entries,
            keep_entries: self.snapshot_entries / 4,
            read_policy: self.read_policy,
            ..Config::default()
        }
    }

    async fn start(&mut self, i: usize) -> Result<(), metaserver::Error> {
        let server = metaserver::start(self.config(i), World::real()).await?;
        self.running.insert(i, server);
        Ok(())
    }

    async fn stop(&mut self, i: usize) {
        self.running.remove(&i).unwrap().shutdown().await;
    }

    async fn format(&self) -> Result<AdminReply, Fault> {
        self.format_first(self.addrs.len()).await
    }

    /// Makes a cluster of the first `n`.
    async fn format_first(&self, n: usize) -> Result<AdminReply, Fault> {
        let metaservers = self.addrs.iter().take(n).zip(1..).map(|(addr, node)| (NodeId(node), addr.clone())).collect();
        let cluster = ClusterId(World::real().random_u128());
        let format = Admin::Format { cluster, metaservers, pg_count: 16, replicas: 3, min_replicas: 2 };
        self.caller(Role::Admin, &self.addrs[..1]).admin_once(&format, LIMIT).await
    }

    fn caller(&self, role: Role, addrs: &[String]) -> Caller {
        let me = Me::new(Hello { role, cluster: ClusterId(0), epoch: Epoch(0), id: 7 });
        Caller::new(&World::real(), &self.tasks, &me, addrs)
    }

    async fn client(&self) -> Client {
        let session = SessionId(World::real().random_u128());
        let mut client = Client { caller: self.caller(Role::Client, &self.addrs), session, slot: 0, seq: 0 };
        client.must(Op::OpenSession { label: "test".into(), slots: 64 }).await;
        client
    }

    async fn node_status(&self, i: usize) -> Result<NodeStatus, Fault> {
        let caller = self.caller(Role::Admin, &self.addrs[i..=i]);
        match caller.admin_once(&Admin::NodeStatus, Duration::from_secs(2)).await? {
            AdminReply::Node(status) => Ok(status),
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self) -> Status {
        match self.caller(Role::Admin, &self.addrs).admin(&Admin::Status, LIMIT).await.unwrap() {
            AdminReply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Has an order carried out, by whoever leads of these.
    async fn order_at(&self, addrs: &[String], order: Order) -> Result<Ordered, Fault> {
        let key = AdminKey::from_text("nobody checks this here").unwrap();
        let signed = key.sign(order, World::real().now(), "test@here".into());
        match self.caller(Role::Admin, addrs).admin(&Admin::Order(Box::new(signed)), LIMIT).await? {
            AdminReply::Ordered(done) => Ok(*done),
            other => panic!("{other:?}"),
        }
    }

    async fn order(&self, order: Order) -> Result<Ordered, Fault> {
        self.order_at(&self.addrs, order).await
    }

    /// The index of the one that leads.
    async fn wait_for_leader(&self) -> usize {
        let leader = self.status().await.leader.node;
        usize::try_from(leader.0).unwrap() - 1
    }

    /// Waits until this node has applied that much.
    async fn wait_applied(&self, i: usize, index: u64) {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.node_status(i).await;
            if status.as_ref().is_ok_and(|status| status.applied.0 >= index) {
                return;
            }
            assert!(Instant::now() < end, "node {i} never applied {index}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Client {
    caller: Caller,
    session: SessionId,
    slot: u16,
    seq: u64,
}

impl Client {
    fn request(&mut self, op: Op) -> Request {
        self.seq += 1;
        Request { session: self.session, slot: self.slot, seq: self.seq, cred: Cred::default(), op }
    }

    async fn submit(&mut self, op: Op) -> Result<Applied, Fault> {
        let request = self.request(op);
        self.caller.submit(&request, LIMIT).await.map(|submitted| submitted.applied)
    }

    async fn must(&mut self, op: Op) -> Applied {
        self.submit(op).await.unwrap()
    }

    async fn create(&mut self, name: &str) -> Applied {
        self.must(create(name)).await
    }

    async fn look_up(&self, name: &str) -> Result<Answer, Fault> {
        let query = Query::Lookup { parent: InodeId::ROOT, name: Name::new(name.as_bytes()).unwrap() };
        let ask = Ask { session: self.session, cred: Cred::default(), query, lease: false };
        self.caller.query(&ask, LIMIT).await.map(|answered| answered.answer)
    }
}

fn create(name: &str) -> Op {
    let name = Name::new(name.as_bytes()).unwrap();
    Op::Create { parent: InodeId::ROOT, name, node: NewNode::File, mode: 0o644, exclusive: true, access: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_formats_serves_and_comes_back() {
    let mut group = Group::empty(1, 1000).await;
    let unformatted = group.caller(Role::Client, &group.addrs).cluster_map(Duration::from_secs(1)).await;
    assert!(unformatted.unwrap_err().message.contains("dfs admin format"));
    assert_eq!(group.node_status(0).await.unwrap().state, "unformatted");
    group.format().await.unwrap();
    assert_eq!(group.format().await.unwrap_err().kind, Kind::Exists);
    let mut client = group.client().await;
    client.create("a").await;
    group.stop(0).await;
    group.start(0).await.unwrap();
    client.create("b").await;
    assert!(client.look_up("a").await.is_ok() && client.look_up("b").await.is_ok());
    assert_eq!(client.look_up("c").await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_named_come_with_the_one_that_is_opened() {
    let group = Group::formatted(1, 1000).await;
    let mut client = group.client().await;
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        let Outcome::Created { attr, .. } = client.create(name).await.outcome else { panic!("{name} is not made") };
        made.push(attr.ino);
    }
    let nowhere = InodeId(1 << 40);
    let ahead = vec![made[1], InodeId::ROOT, nowhere, made[2]];
    let ask = |lease| {
        let query = Query::Open { ino: made[0], access: ACCESS_READ, ahead: ahead.clone() };
        Ask { session: client.session, cred: Cred::default(), query, lease }
    };
    let opened = |answered: Answered| {
        let Answer::Opened { attr, ahead, .. } = answered.answer else { panic!("{:?}", answered.answer) };
        assert_eq!(attr.ino, made[0]);
        assert!(ahead.iter().all(|(_, run)| run.covered == u64::MAX), "all that they hold");
        (ahead.into_iter().map(|(attr, _)| attr.ino).collect::<Vec<_>>(), answered.grants.leases)
    };
    let (came, leases) = opened(client.caller.query(&ask(true), LIMIT).await.unwrap());
    assert_eq!(came, made[1..], "files only, in order");
    assert!(leases.len() == 3 && leases.iter().all(|lease| *lease != 0), "each is leased: {leases:?}");
    let (came, leases) = opened(client.caller.query(&ask(false), LIMIT).await.unwrap());
    assert!(came.is_empty() && leases.is_empty(), "who takes no leases may not keep them");
    let nobody = Squash { uid: 65_534, gid: 65_534, allowed: Vec::new() };
    group.order(Order::RootSquash(SquashAsk::Set(Some(nobody)))).await.unwrap();
    let (came, leases) = opened(client.caller.query(&ask(true), LIMIT).await.unwrap());
    assert_eq!((came.len(), leases.len()), (0, 1), "who would have them would open them as root");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_serves_within_5_seconds_and_knows_every_reply() {
    let mut group = Group::formatted(3, 10_000).await;
    let mut client = group.client().await;
    for i in 0..50 {
        client.create(&format!("f{i}")).await;
    }
    let last = client.request(create("last"));
    let first_reply = client.caller.submit(&last, LIMIT).await.unwrap().applied;
    let leader = group.wait_for_leader().await;
    let began = Instant::now();
    group.stop(leader).await;
    let again = client.caller.submit(&last, LIMIT).await.unwrap().applied;
    let stalled = began.elapsed();
    assert_eq!(again, first_reply, "a repeated request gets the stored reply");
    assert!(stalled < Duration::from_secs(5), "stalled {stalled:?}");
    println!("fail-over took {stalled:?}");
    for i in 0..50 {
        assert!(client.look_up(&format!("f{i}")).await.is_ok());
    }
    client.create("after").await;
    group.start(leader).await.unwrap();
    let index = group.status().await.leader.applied.0;
    group.wait_applied(leader, index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_keeps_all() {
    let mut group = Group::formatted(3, 20).await; // several snapshots on the way
    let mut client = group.client().await;
    for i in 0..100 {
        client.create(&format!("f{i}")).await;
    }
    for i in 0..3 {
        group.stop(i).await;
    }
    for i in 0..3 {
        group.start(i).await.unwrap();
    }
    for i in 0..100 {
        assert!(client.look_up(&format!("f{i}")).await.is_ok(), "f{i}");
    }
    client.create("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_down_for_long_catches_up_by_snapshot() {
    let mut group = Group::formatted(3, 50).await;
    let mut client = group.client().await;
    client.create("before").await;
    let late = (group.wait_for_leader().await + 1) % 3;
    group.stop(late).await;
    let mut index = 0;
    for i in 0..300 {
        index = client.create(&format!("f{i}")).await.index.0;
    }
    group.start(late).await.unwrap();
    group.wait_applied(late, index).await;
    // It must be able to lead with what it got.
    let other = (0..3).find(|i| *i != late && *i != 9).unwrap();
    group.stop(other).await;
    for i in 0..300 {
        assert!(client.look_up(&format!("f{i}")).await.is_ok(), "f{i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_an_empty_disk_comes_back_as_a_new_member() {
    let mut group = Group::formatted(3, 50).await;
    let mut client = group.client().await;
    for i in 0..200 {
        client.create(&format!("f{i}")).await;
    }
    let lost = (group.wait_for_leader().await + 1) % 3;
    group.stop(lost).await;
    group.dirs[lost] = tempfile::tempdir().unwrap();
    group.start(lost).await.unwrap();
    let index = client.create("meanwhile").await.index.0;
    group.wait_applied(lost, index).await;
    // It counts again: with another one down, two of three still decide. Not before its old self has left the group.
    let end = Instant::now() + LIMIT;
    while group.node_status(lost).await.unwrap().state == "learner" || group.status().await.metaservers.len() > 3 {
        assert!(Instant::now() < end, "it stays a learner, or its old self a member");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let other = (0..3).find(|i| *i != lost).unwrap();
    group.stop(other).await;
    client.create("after").await;
    assert!(client.look_up("f0").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_lost_its_disk_begins_no_cluster_of_its_own() {
    let mut group = Group::formatted(3, 1000).await;
    let mut client = group.client().await;
    client.create("before").await;
    for i in 0..3 {
        group.stop(i).await;
    }
    group.dirs[0] = tempfile::tempdir().unwrap();
    for i in 0..3 {
        group.start(i).await.unwrap();
    }
    // The others have no leader yet that could take it back.
    let refused = group.format_first(3).await.unwrap_err();
    assert!(refused.kind == Kind::Exists && refused.message.contains("joins again by itself"), "{refused}");
    let index = client.create("after").await.index.0;
    group.wait_applied(0, index).await;
    assert!(client.look_up("before").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_answered_and_nothing_hangs() {
    let mut group = Group::formatted(3, 1000).await;
    let mut client = group.client().await;
    client.create("before").await;
    let leader = group.wait_for_leader().await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        group.stop(*i).await;
    }
    // It still believes that it leads. Soon it answers nothing that another leader might answer otherwise.
    let alone = group.caller(Role::Client, &group.addrs[leader..=leader]);
    let unknown = alone.keep_alive(SessionId(1), Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(unknown.kind, Kind::Unavailable, "it cannot know that there is no such session: {unknown}");
    let end = Instant::now() + Duration::from_secs(5);
    while alone.keep_alive(client.session, Duration::from_millis(200)).await.is_ok() {
        assert!(Instant::now() < end, "it goes on as a leader");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(alone.cluster_map(Duration::from_millis(200)).await.is_err());
    let began = Instant::now();
    let query = Query::GetAttr { ino: InodeId::ROOT };
    let ask = Ask { session: client.session, cred: Cred::default(), query, lease: false };
    let read = client.caller.query(&ask, Duration::from_secs(3)).await;
    assert!(matches!(read.as_ref().unwrap_err().kind, Kind::Unavailable), "{read:?}");
    let request = client.request(create("meanwhile"));
    let change = client.caller.submit(&request, Duration::from_secs(3)).await;
    assert!(matches!(change.as_ref().unwrap_err().kind, Kind::Unsure | Kind::Unavailable), "{change:?}");
    assert!(began.elapsed() < Duration::from_secs(8));
    group.start(others[0]).await.unwrap();
    client.caller.submit(&request, LIMIT).await.unwrap();
    assert!(client.look_up("meanwhile").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_start_on_what_is_not_its_own() {
    let mut group = Group::formatted(1, 1000).await;
    let twice = metaserver::start(group.config(0), World::real()).await.err().unwrap();
    assert!(twice.to_string().contains("in use by another metaserver"), "{twice}");
    let spare = tempfile::tempdir().unwrap();
    let mut config = group.config(0);
    config.data_dir = spare.path().to_path_buf();
    let taken = metaserver::start(config, World::real()).await.err().unwrap();
    assert!(taken.to_string().contains("listen at 127.0.0.1"), "{taken}");
    let other = Group::formatted(1, 1000).await;
    group.stop(0).await;
    let mut config = group.config(0);
    config.node_id = 2;
    let node = metaserver::start(config, World::real()).await.err().unwrap();
    assert!(node.to_string().contains("holds the data of metaserver m1"), "{node}");
    let mut config = group.config(0);
    config.metaservers.insert("2".into(), other.addrs[0].clone());
    let cluster = metaserver::start(config, World::real()).await.err().unwrap();
    assert!(cluster.to_string().contains("data of another cluster"), "{cluster}");
    let segment = group.dirs[0].path().join("raft/log/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 70] ^= 1; // in the payload of the first entry
    std::fs::write(&segment, bytes).unwrap();
    let damaged = group.start(0).await.unwrap_err();
    assert!(damaged.to_string().contains("is damaged"), "{damaged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_serves_reads_too() {
    let mut group = Group::formatted(3, 1000).await;
    group.read_policy = ReadPolicy::Lease;
    for i in 0..3 {
        group.stop(i).await;
    }
    for i in 0..3 {
        group.start(i).await.unwrap();
    }
    let mut client = group.client().await;
    for i in 0..20 {
        let name = format!("f{i}");
        client.create(&name).await;
        assert!(client.look_up(&name).await.is_ok());
    }
}

/// Figures for the report: `cargo nextest run -p metaserver --run-ignored only speed --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed_of_creates_and_reads() {
    let group = Group::formatted(3, 100_000).await;
    for callers in [1u16, 8, 32] {
        let each = 4000 / usize::from(callers).max(4);
        let mut clients = Vec::new();
        for _ in 0..callers {
            clients.push(group.client().await);
        }
        let began = Instant::now();
        let work = clients.into_iter().map(|mut client| async move {
            let mut took = Vec::with_capacity(each);
            for i in 0..each {
                let name = format!("{}-{i}", client.session);
                let began = Instant::now();
                let applied = client.create(&name).await;
                took.push(began.elapsed());
                assert!(matches!(applied.outcome, Outcome::Created { .. }));
            }
            (client, took)
        });
        let done = futures::future::join_all(work).await;
        report("creates", callers, began.elapsed(), done.iter().flat_map(|(_, took)| took.clone()).collect());
        let began = Instant::now();
        let work = done.into_iter().map(|(client, _)| async move {
            let mut took = Vec::with_capacity(each);
            for i in 0..each {
                let began = Instant::now();
                client.look_up(&format!("{}-{i}", client.session)).await.unwrap();
                took.push(began.elapsed());
            }
            took
        });
        let took = futures::future::join_all(work).await.concat();
        report("lookups", callers, began.elapsed(), took);
    }
}

fn report(what: &str, callers: u16, all: Duration, mut took: Vec<Duration>) {
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    let rate = f64::from(u32::try_from(took.len()).unwrap()) / all.as_secs_f64();
    println!("{what}: {callers} callers: {rate:.0}/s, p50 {:?}, p99 {:?}", at(50), at(99));
}
