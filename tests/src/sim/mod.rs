//! A whole cluster in one thread: three metaservers, three chunkservers and two clients under turmoil.
//!
//! Network, disks, clock and randomness follow from one seed. While the clients work, servers lose power (their disks
//! keep only what was synced, and any part of the rest), come back, and are cut off from each other. Every answer is
//! checked against [`model`] as it comes; when faults have stopped, everything is read again by a new client.
//!
//! `DFS_SIM_SEED=17 cargo test -p tests --test simulation -- --nocapture one_seed` replays one seed with its trace.

pub mod decided;
pub mod model;
pub mod net;
pub mod workload;

use client_fuse::{Client, ClientConfig};
use common::id::{ClusterId, InodeId, NodeId};
use common::name::Name;
use common::proto::meta::{Admin, AdminReply, Cred, NewNode, SetAttr};
use common::testing::SimDisk;
use common::world::World;
use model::Worlds;
use net::{SimClock, SimNet};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Servers of each kind.
const SERVERS: u32 = 3;
const CLIENTS: u32 = 2;
/// Simulated time after which a run has failed.
const RUN_MAX: Duration = Duration::from_secs(1200);
/// An operation gives up after this much simulated time.
const OP_TIMEOUT: Duration = Duration::from_secs(40);
/// Faults come this far apart, on average.
const FAULT_EVERY_MS: u64 = 1500;
/// A client pauses for up to this long between operations, so that a run has time for faults.
const PAUSE_MS: u64 = 250;
/// A server stays down, or a link cut, for up to this long.
const FAULT_LASTS_MS: u64 = 6000;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All else follows from it.
    pub seed: u64,
    /// Operations of each client.
    pub steps: u32,
    /// Whether anything breaks.
    pub faults: bool,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One line for each operation and fault, with the simulated time.
    pub trace: Vec<String>,
    /// Faults made.
    pub faults: u32,
    /// Operations whose outcome stayed unknown.
    pub unknown: usize,
}

/// What clients and the fault maker share.
#[derive(Default)]
struct Shared {
    trace: Vec<String>,
    broken: Option<String>,
    /// Clients that have done their steps.
    done: u32,
    /// Faults have stopped and all is up again.
    calm: bool,
}

impl Shared {
    fn note(&mut self, line: String) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        if std::env::var_os("DFS_SIM_SEED").is_some() {
            eprintln!("{at:>7} {line}");
        }
        self.trace.push(format!("{at} {line}"));
    }
}

type Share = Rc<RefCell<Shared>>;

/// Runs a plan. `Err` names the seed, what was broken, and how to replay it.
pub fn run(plan: Plan) -> Result<Report, String> {
    let (mut sim, mut rng) = quiet(plan.seed);
    let shared: Share = Rc::default();
    let disks = add_servers(&mut sim, &mut rng);
    for client in 1..=CLIENTS {
        let (shared, seed) = (shared.clone(), rng.random());
        sim.client(format!("client-{client}"), client_life(client, plan, shared, seed));
    }
    let mut faults = Faults { rng, disks, down: BTreeMap::new(), cut: None, next_ms: 1000, made: 0 };
    let outcome = drive(&mut sim, plan, &shared, &mut faults);
    let mut shared = shared.borrow_mut();
    let broken = shared.broken.take().or_else(|| outcome.err());
    if let Some(what) = broken {
        let last = shared.trace.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n  ");
        return Err(format!(
            "seed {}: {what}\nlast of the trace:\n  {last}\nreplay: DFS_SIM_SEED={} cargo test -p tests --test simulation -- --nocapture one_seed",
            plan.seed, plan.seed
        ));
    }
    let unknown = shared.trace.iter().filter(|line| line.ends_with("Unknown")).count();
    Ok(Report { trace: std::mem::take(&mut shared.trace), faults: faults.made, unknown })
}

/// A network, and nobody in it.
fn quiet<'a>(seed: u64) -> (turmoil::Sim<'a>, StdRng) {
    metaserver::raft::runtime::seed_thread(seed);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .simulation_duration(RUN_MAX)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(Duration::from_millis(3))
        .tcp_capacity(4096);
    (builder.build(), StdRng::seed_from_u64(seed))
}

/// Servers in a network, without clients.
fn cluster<'a>(seed: u64) -> (turmoil::Sim<'a>, Share, StdRng) {
    let (mut sim, mut rng) = quiet(seed);
    let _disks = add_servers(&mut sim, &mut rng); // no power cut will look for them
    (sim, Rc::default(), rng)
}

/// Runs until the clients have ended, without faults.
fn drive_quiet(sim: &mut turmoil::Sim<'_>, shared: &Share) -> Result<(), String> {
    while !sim.step().map_err(|error| error.to_string())? {}
    shared.borrow_mut().broken.take().map_or(Ok(()), Err)
}

fn drive(sim: &mut turmoil::Sim<'_>, plan: Plan, shared: &Share, faults: &mut Faults) -> Result<(), String> {
    loop {
        let all_done = sim.step().map_err(|error| error.to_string())?;
        if shared.borrow().broken.is_some() || all_done {
            return Ok(());
        }
        let now = u64::try_from(sim.elapsed().as_millis()).expect("a run is short");
        let working = shared.borrow().done < CLIENTS;
        if plan.faults {
            faults.act(sim, now, working, shared);
        }
        if !working && faults.all_well() {
            shared.borrow_mut().calm = true;
        }
    }
}

/// One disk a server; a crash replaces it by what a power cut leaves.
type Disks = Rc<RefCell<BTreeMap<String, SimDisk>>>;

fn add_servers(sim: &mut turmoil::Sim<'_>, rng: &mut StdRng) -> Disks {
    let disks: Disks = Rc::default();
    for n in 1..=SERVERS {
        for kind in ["meta", "chunk"] {
            let name = format!("{kind}-{n}");
            disks.borrow_mut().insert(name.clone(), SimDisk::new(rng.random()));
            let (disks, host, seed): (Disks, String, u64) = (disks.clone(), name.clone(), rng.random());
            let starts = Rc::new(RefCell::new(0u64));
            sim.host(name, move || {
                *starts.borrow_mut() += 1;
                let disk = disks.borrow().get(&host).expect("every host has a disk").clone();
                let seed = seed.wrapping_add(*starts.borrow());
                let world = World::simulated(Arc::new(SimNet), Arc::new(disk), Arc::new(SimClock), seed);
                server_life(kind, n, world)
            });
        }
    }
    disks
}

fn metaservers() -> Vec<String> {
    (1..=SERVERS).map(|n| format!("meta-{n}:7500")).collect()
}

async fn server_life(kind: &'static str, n: u32, world: World) -> turmoil::Result {
    if kind == "meta" {
        let named = (1..=SERVERS).map(|n| (n.to_string(), format!("meta-{n}:7500"))).collect();
        let config = metaserver::config::Config {
            node_id: u64::from(n),
            listen: "0.0.0.0:7500".into(),
            advertise: format!("meta-{n}:7500"),
            data_dir: PathBuf::from("/meta"),
            metaservers: named,
            snapshot_entries: 200,
            keep_entries: 50,
            ..metaserver::config::Config::default()
        };
        let server = metaserver::start(config, world).await?;
        let why = server.failure().await;
        Err(format!("meta-{n} stopped: {why}").into())
    } else {
        let config = chunkserver::Config {
            listen: "0.0.0.0:7440".into(),
            advertise: Some(format!("chunk-{n}:7440")),
            metaservers: metaservers(),
            data_dirs: vec![PathBuf::from("/chunks")],
            reserve_bytes: 0,
            ..chunkserver::Config::default()
        };
        let server = chunkserver::start(config, world).await?;
        let why = server.failed().await;
        Err(format!("chunk-{n} stopped: {why}").into())
    }
}

struct Faults {
    rng: StdRng,
    disks: Disks,
    /// Servers without power, and when it returns.
    down: BTreeMap<String, u64>,
    /// A server that is cut off from all others, and until when.
    cut: Option<(String, u64)>,
    next_ms: u64,
    made: u32,
}

impl Faults {
    fn all_well(&self) -> bool {
        self.down.is_empty() && self.cut.is_none()
    }

    fn hosts() -> Vec<String> {
        (1..=SERVERS).flat_map(|n| [format!("meta-{n}"), format!("chunk-{n}")]).collect()
    }

    fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: u64, working: bool, shared: &Share) {
        let back: Vec<String> = self.down.iter().filter(|(_, at)| **at <= now).map(|(h, _)| h.clone()).collect();
        for host in back {
            self.down.remove(&host);
            sim.bounce(host.as_str());
            shared.borrow_mut().note(format!("{now}: power returns to {host}"));
        }
        if self.cut.as_ref().is_some_and(|(_, until)| *until <= now) {
            let (host, _) = self.cut.take().expect("just looked");
            self.others(&host).iter().for_each(|other| sim.repair(host.as_str(), other.as_str()));
            shared.borrow_mut().note(format!("{now}: {host} is reached again"));
        }
        if !working || now < self.next_ms {
            return;
        }
        self.next_ms = now + self.rng.random_range(FAULT_EVERY_MS / 4..2 * FAULT_EVERY_MS);
        self.made += 1;
        let hosts = Faults::hosts();
        let host = hosts[self.rng.random_range(0..hosts.len())].clone();
        let until = now + self.rng.random_range(100..FAULT_LASTS_MS);
        match self.rng.random_range(0..10) {
            0 => hosts.iter().for_each(|host| self.cut_power(sim, host, until, shared, now)),
            1..6 => self.cut_power(sim, &host, until, shared, now),
            _ if self.cut.is_none() => {
                self.others(&host).iter().for_each(|other| sim.partition(host.as_str(), other.as_str()));
                shared.borrow_mut().note(format!("{now}: {host} is cut off"));
                self.cut = Some((host, until));
            }
            _ => {}
        }
    }

    fn others(&self, host: &str) -> Vec<String> {
        let clients = (1..=CLIENTS).map(|n| format!("client-{n}"));
        Faults::hosts().into_iter().chain(clients).filter(|other| other != host).collect()
    }

    fn cut_power(&mut self, sim: &mut turmoil::Sim<'_>, host: &str, until: u64, shared: &Share, now: u64) {
        if self.down.contains_key(host) {
            return;
        }
        let mut disks = self.disks.borrow_mut();
        let disk = disks.get_mut(host).expect("every host has a disk");
        disk.cut_power();
        sim.crash(host);
        *disk = disk.after_crash();
        self.down.insert(host.to_string(), until);
        shared.borrow_mut().note(format!("{now}: {host} loses power"));
    }
}

async fn connect(label: &str, seed: u64) -> Result<Client, String> {
    let leased = |config| ClientConfig { leases: true, write_leases: true, label: label.into(), ..config };
    connect_as(seed, &leased).await
}

async fn connect_as(seed: u64, config: &dyn Fn(ClientConfig) -> ClientConfig) -> Result<Client, String> {
    let world = World::simulated(Arc::new(SimNet), Arc::new(SimDisk::new(seed)), Arc::new(SimClock), seed);
    let config = config(ClientConfig { op_timeout: OP_TIMEOUT, ..ClientConfig::new(metaservers()) });
    Client::connect(config, world).await.map_err(|fault| format!("connect: {fault}"))
}

async fn format(seed: u64) -> Result<(), String> {
    let world = World::simulated(Arc::new(SimNet), Arc::new(SimDisk::new(seed)), Arc::new(SimClock), seed);
    let nodes = (1..=SERVERS).map(|n| (NodeId(u64::from(n)), format!("meta-{n}:7500"))).collect();
    let ask = Admin::Format {
        cluster: ClusterId(u128::from(seed) | 1),
        metaservers: nodes,
        pg_count: 16,
        replicas: 3,
        min_replicas: 2,
    };
    let mut last = String::new();
    for _ in 0..20 {
        match Client::admin(&ClientConfig::new(metaservers()), &world, ask.clone()).await {
            Ok(AdminReply::Formatted) => return Ok(()),
            Ok(other) => return Err(format!("format answered {other:?}")),
            Err(fault) => last = fault.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("format: {last}"))
}

/// The first client formats; each works in its own directory, waits for calm, and reads all again with a new client.
async fn client_life(number: u32, plan: Plan, shared: Share, seed: u64) -> turmoil::Result {
    if let Err(what) = client_work(number, plan, &shared, seed).await {
        shared.borrow_mut().broken.get_or_insert(format!("client {number}: {what}"));
    }
    Ok(())
}

async fn client_work(number: u32, plan: Plan, shared: &Share, seed: u64) -> Result<(), String> {
    if number == 1 {
        format(seed).await?;
    }
    let client = settled(number, seed).await?;
    let home = make_home(&client, number).await?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut worlds = Worlds::default();
    for _ in 0..plan.steps {
        let step = workload::draw(&mut rng);
        check(&client, home, &step, &mut worlds, shared, number).await?;
        if plan.faults {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..PAUSE_MS))).await;
        }
    }
    shared.borrow_mut().done += 1;
    while !shared.borrow().calm {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let _ = client.shutdown().await;
    let fresh = connect(&format!("client {number}, afterwards"), seed ^ 1).await?;
    for step in workload::final_reads() {
        check(&fresh, home, &step, &mut worlds, shared, number).await?;
    }
    Ok(())
}

async fn check(
    client: &Client,
    home: InodeId,
    step: &model::Step,
    worlds: &mut Worlds,
    shared: &Share,
    number: u32,
) -> Result<(), String> {
    let mut lines = Vec::new();
    let verdict = workload::step_and_check(client, home, step, worlds, &mut lines).await;
    lines.into_iter().for_each(|line| shared.borrow_mut().note(format!("client {number}: {line}")));
    verdict
}

/// Connects once the cluster is there (the other client may still be formatting it).
async fn settled(number: u32, seed: u64) -> Result<Client, String> {
    let mut last = String::new();
    for _ in 0..20 {
        match connect(&format!("client {number}"), seed).await {
            Ok(client) => return Ok(client),
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(last)
}

async fn make_home(client: &Client, number: u32) -> Result<InodeId, String> {
    let (cred, name) = (Cred::default(), Name::new(format!("home-{number}")).expect("a good name"));
    let made = client.create(&cred, InodeId::ROOT, &name, NewNode::Dir, 0o755).await;
    let home = made.map_err(|fault| format!("make home: {fault}"))?.ino;
    let small = SetAttr { chunk_size: Some(64 << 10), ..SetAttr::default() };
    client.setattr(&cred, home, small).await.map_err(|fault| format!("set chunk size: {fault}"))?;
    Ok(home)
}
