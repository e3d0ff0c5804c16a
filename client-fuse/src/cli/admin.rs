//! `dfs admin`: make a cluster of empty metaservers, and see how one is.

use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::keep;
use super::{change, fsck, meta, rebalance, servers, settings, squash};
use clap::Subcommand;
use client_fuse::{AdminLink, Client, ClientConfig};
use common::auth::AdminKey;
use common::fault::Fault;
use common::id::{ClusterId, NodeId};
use common::layout::ClusterMap;
use common::proto::admin::{Order, Ordered};
use common::proto::backup::Members;
use common::proto::keep::KeepStatus;
use common::proto::meta::{Admin, AdminReply, ServerStatus, Status};
use common::units::{MIN_REPLICAS_DEFAULT, REPLICAS_DEFAULT};
use common::world::World;
use std::fmt::Write;
use std::time::Duration;

/// What a metaserver says of itself before it belongs to a cluster.
pub(crate) const UNFORMATTED: &str = "unformatted";
/// How long making a cluster may take.
const FORMAT_LIMIT: Duration = Duration::from_secs(30);
/// A server reports each second: what it said longer ago does not count.
pub(crate) const REPORT_AGE_MAX_MS: u64 = 10_000;
/// How long a look at the cluster may take.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// What an order gets at least.
const ORDER_LIMIT_MIN: Duration = Duration::from_secs(5);

/// What an administrator can do.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Make a new cluster of the empty metaservers named by --meta (or --config), in the order of their node ids from 1
    Format {
        #[command(flatten)]
        shape: Shape,
    },
    /// Show metaservers, chunkservers and use
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check everything: the namespace's invariants and counts, and every chunk on every server. Ends with 1 if
    /// something is wrong
    Fsck(fsck::FsckArgs),
    /// Chunkservers: list, add, weights, drain, decommission, maintenance, remove
    #[command(subcommand)]
    Server(servers::ServerCommand),
    /// Bring every chunkserver to its share: what would move, start, status, pause, resume, cancel
    #[command(subcommand)]
    Rebalance(rebalance::RebalanceCommand),
    /// Metaservers: list, add, promote, remove, change of the leader; backup and restore of the metadata
    #[command(subcommand)]
    Meta(meta::MetaCommand),
    /// Where data belongs
    #[command(subcommand)]
    Layout(servers::LayoutCommand),
    /// What administrators did, and when
    Events {
        /// At most this many, the newest
        #[arg(long, default_value_t = 100)]
        last: u32,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Garbage collection: run it now, pause it, explain why a chunk is there
    Gc {
        #[command(flatten)]
        what: keep::GcArgs,
    },
    /// Verify every stored byte: now, or pause and resume what goes on all the time
    Scrub {
        #[command(subcommand)]
        command: keep::ScrubCommand,
    },
    /// Who root of clients' machines is: root, or nobody
    #[command(subcommand)]
    RootSquash(squash::SquashCommand),
    /// What the whole cluster goes by: show, change
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// How many copies the chunks of a file have, and of what is made in a directory from now on
    Replicas(change::ReplicasArgs),
    /// In chunks of which size a file is cut, and what is made in a directory from now on
    ChunkSize(change::ChunkSizeArgs),
    /// Repair, garbage collection and scrub: show how far they are, and change their settings
    Keep {
        #[command(flatten)]
        flags: keep::KeepFlags,
    },
}

/// What is fixed when a cluster is made.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Placement groups: a power of two from 16 to 65536. Fixed for ever: about 100 for each disk you will ever have
    #[arg(long, default_value_t = 1024)]
    pub(crate) pg_count: u32,
    /// Copies of each chunk
    #[arg(long, default_value_t = REPLICAS_DEFAULT, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) replicas: u8,
    /// Durable copies below which a write is not acknowledged
    #[arg(long, default_value_t = MIN_REPLICAS_DEFAULT, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) min_replicas: u8,
}

/// What goes on when a command is interrupted, for those that wait. `None`: nothing does, or the command says so itself.
pub(crate) fn goes_on(command: &AdminCommand) -> Option<&'static str> {
    let moves = "what was begun goes on by itself: `dfs admin rebalance status`, `pause` or `cancel`";
    match command {
        AdminCommand::Fsck(_) => {
            Some("the metaservers end this check by themselves within a minute; until then another one is refused")
        }
        AdminCommand::Server(servers::ServerCommand::List { .. })
        | AdminCommand::Rebalance(
            rebalance::RebalanceCommand::Plan { .. } | rebalance::RebalanceCommand::Status { .. },
        ) => None,
        AdminCommand::Server(_) | AdminCommand::Rebalance(_) => Some(moves),
        AdminCommand::Gc { .. } => Some("the chunkservers go on by themselves with what was ordered"),
        AdminCommand::Meta(command) => meta::goes_on(command),
        AdminCommand::Format { .. }
        | AdminCommand::Status { .. }
        | AdminCommand::Layout(_)
        | AdminCommand::Events { .. }
        | AdminCommand::Scrub { .. }
        | AdminCommand::RootSquash(_)
        | AdminCommand::Settings(_)
        | AdminCommand::Replicas(_)
        | AdminCommand::ChunkSize(_)
        | AdminCommand::Keep { .. } => None,
    }
}

/// Runs a `dfs admin` command. The number of things that are wrong, for the exit code.
pub(crate) async fn run(target: &Target, command: AdminCommand) -> Outcome<u64> {
    let config = target.client_config("admin")?;
    let world = World::real();
    match command {
        AdminCommand::Format { shape } => {
            if !shape.pg_count.is_power_of_two() || !(16..=65_536).contains(&shape.pg_count) {
                return Err(Failure::new("format: --pg-count must be a power of two from 16 to 65536"));
            }
            if shape.min_replicas > shape.replicas {
                return Err(Failure::new("format: --min-replicas must not be above --replicas"));
            }
            let request = format_request(&world, &config.metaservers, shape);
            ask(&world, &config.metaservers[..1], request, FORMAT_LIMIT).await?;
            say_done!("formatted: {} metaservers, {} replicas", config.metaservers.len(), shape.replicas);
            Ok(0)
        }
        AdminCommand::Status { json } => {
            let limit = STATUS_LIMIT.min(config.op_timeout);
            let status = match ask(&world, &config.metaservers, Admin::Status, limit).await {
                Ok(AdminReply::Status(status)) => *status,
                Ok(other) => return Err(Failure::new(format!("status: unexpected answer {other:?}"))),
                Err(failure) => {
                    eprint!("{}", nodes_text(&world, &config.metaservers).await);
                    return Err(failure.advice("start a majority of the metaservers; see their logs"));
                }
            };
            let (keeping, held, members) =
                (keep::status(target).await?, keep::held(target).await?, members(target).await?);
            let moves = rebalance::status(target).await?;
            if json {
                let mut all = status_json(&status, &members, Some(&keeping));
                all["keep"] = keep::json(&keeping);
                all["rebalance"] = rebalance::brief_json(&moves);
                all["deletion_held"] = held.map(|held| held.epoch.0).into();
                say!("{all}");
            } else {
                let held = held.map_or_else(String::new, |held| keep::held_text(&held) + "\n");
                let moves = rebalance::brief(&moves).map_or_else(String::new, |line| line + "\n");
                say!(
                    "{}{held}{moves}{}",
                    status_text(&status, &members, Some(&keeping)),
                    keep::text(&keeping).trim_end()
                );
            }
            Ok(0)
        }
        AdminCommand::Fsck(args) => fsck::run(&Orders::new(target)?, args).await,
        AdminCommand::Server(command) => servers::server(target, command).await.map(|()| 0),
        AdminCommand::Rebalance(command) => rebalance::run(target, command).await.map(|()| 0),
        AdminCommand::Meta(command) => meta::run(target, command).await.map(|()| 0),
        AdminCommand::Layout(command) => servers::layout(target, command).await.map(|()| 0),
        AdminCommand::Events { last, json } => servers::events(target, last, json).await.map(|()| 0),
        AdminCommand::Gc { what } => keep::gc(target, what).await.map(|()| 0),
        AdminCommand::Scrub { command } => keep::scrub(target, command).await.map(|()| 0),
        AdminCommand::RootSquash(command) => squash::run(target, command).await.map(|()| 0),
        AdminCommand::Settings(command) => settings::run(target, command).await.map(|()| 0),
        AdminCommand::Replicas(args) => {
            target.with_client(async move |shell| change::replicas(shell, args).await).await
        }
        AdminCommand::ChunkSize(args) => {
            target.with_client(async move |shell| change::set_chunk_size(shell, args).await).await
        }
        AdminCommand::Keep { flags } => keep::settings(target, flags).await.map(|()| 0),
    }
}

/// The request that makes a cluster of these metaservers: node ids are 1, 2, ... in this order.
pub(crate) fn format_request(world: &World, addresses: &[String], shape: Shape) -> Admin {
    Admin::Format {
        cluster: ClusterId(world.random_u128()),
        metaservers: (1..).map(NodeId).zip(addresses.iter().cloned()).collect(),
        pg_count: shape.pg_count,
        replicas: shape.replicas,
        min_replicas: shape.min_replicas,
    }
}

/// Asks metaservers something, within `limit`.
pub(crate) async fn ask(world: &World, addresses: &[String], request: Admin, limit: Duration) -> Outcome<AdminReply> {
    let mut config = ClientConfig::new(addresses.to_vec());
    config.op_timeout = limit;
    config.label = "dfs admin".into();
    let answer = Client::admin(&config, world, request).await;
    answer.map_err(|fault: Fault| Failure::fault("ask", addresses.join(","), &fault))
}

/// The cluster, as its leader sees it.
pub(crate) async fn cluster_status(target: &Target) -> Outcome<Status> {
    let config = target.client_config("admin")?;
    let limit = STATUS_LIMIT.min(config.op_timeout);
    match ask(&World::real(), &config.metaservers, Admin::Status, limit).await? {
        AdminReply::Status(status) => Ok(*status),
        other => Err(Failure::new(format!("status: unexpected answer {other:?}"))),
    }
}

/// The cluster map.
pub(crate) async fn cluster_map(target: &Target) -> Outcome<ClusterMap> {
    let config = target.client_config("admin")?;
    let servers = config.metaservers.join(",");
    let map = Client::map_for_admin(&config, &World::real()).await;
    map.map_err(|fault| Failure::fault("ask", servers, &fault))
}

/// Which metaservers vote, and which only learn.
pub(crate) async fn members(target: &Target) -> Outcome<Members> {
    let config = target.client_config("admin")?;
    let limit = STATUS_LIMIT.min(config.op_timeout);
    match ask(&World::real(), &config.metaservers, Admin::Members, limit).await? {
        AdminReply::Members(members) => Ok(members),
        other => Err(Failure::new(format!("status: unexpected answer {other:?}"))),
    }
}

/// An order that answers nothing but that it was carried out.
pub(crate) fn done(what: Ordered) -> Outcome {
    match what {
        Ordered::Done => Ok(()),
        other => Err(Failure::new(format!("unexpected answer {other:?}"))),
    }
}

/// How the cluster is, in one word, and why: `ok`, `warning` (nothing is lost, something is to be done, or not known yet),
/// `critical` (one more fault may stop it or lose data). `keeping`: what servers say of what they are to keep, if it was
/// asked for.
pub(crate) fn health(status: &Status, members: &Members, keeping: Option<&KeepStatus>) -> (&'static str, Vec<String>) {
    let (mut why, mut critical) = (Vec::new(), false);
    let (learners, voting): (Vec<_>, Vec<_>) =
        status.metaservers.iter().partition(|(node, ..)| members.learners.contains(node));
    for (node, addr, _) in learners {
        why.push(format!("{node} at {addr} only learns: `dfs admin meta promote {}`", node.0));
    }
    let voters = voting.len();
    let down = voting.iter().filter(|(node, _, log)| *node != status.leader.node && log.is_none()).count();
    if down > 0 {
        critical |= (voters - down) * 2 <= voters + 1;
        why.push(format!("{down} of {voters} metaservers do not answer"));
    }
    let names = |list: Vec<&ServerStatus>| list.iter().map(|s| s.server.to_string()).collect::<Vec<_>>().join(" ");
    let down: Vec<&ServerStatus> = status.servers.iter().filter(|server| !server.up).collect();
    if !down.is_empty() {
        critical |= status.servers.len() - down.len() < usize::from(status.fs.replicas);
        why.push(format!("{} of {} chunkservers are down: {}", down.len(), status.servers.len(), names(down)));
    }
    if status.degraded > 0 {
        why.push(format!("{} chunks have fewer copies than they should", status.degraded));
    }
    let fenced: Vec<&ServerStatus> = status.servers.iter().filter(|server| server.fenced_dirs > 0).collect();
    if !fenced.is_empty() {
        why.push(format!("data directories are out of use on {}, whose log says why", names(fenced)));
    }
    let missing = |server: &ServerStatus| {
        let reports = keeping.into_iter().flat_map(|keeping| &keeping.reports);
        let mut fresh = reports.filter(|(id, age, _)| *id == server.server && *age < REPORT_AGE_MAX_MS);
        fresh.next().map(|(.., its)| its.missing)
    };
    let corrupt: Vec<&ServerStatus> =
        status.servers.iter().filter(|server| server.corrupt > 0 && missing(server) != Some(0)).collect();
    if !corrupt.is_empty() {
        why.push(format!("damaged copies were found on {}, and are not made good yet", names(corrupt)));
    }
    if let Some(keeping) = keeping {
        why.extend(keep::lacks(keeping, status));
    }
    if status.fs.raw_capacity > 0 && status.fs.raw_free < status.fs.raw_capacity / 20 {
        why.push("less than 5 % of the space is free".to_owned());
    }
    (
        if critical {
            "critical"
        } else if why.is_empty() {
            "ok"
        } else {
            "warning"
        },
        why,
    )
}

/// Sends orders, signed.
pub(crate) struct Orders {
    world: World,
    config: ClientConfig,
    key: AdminKey,
    by: String,
}

impl Orders {
    /// To this cluster, with the key that is configured. Without one the cluster may still take them.
    pub(crate) fn new(target: &Target) -> Outcome<Orders> {
        let mut config = target.client_config("admin")?;
        config.op_timeout = config.op_timeout.max(ORDER_LIMIT_MIN);
        let none = || AdminKey::from_text("no key is configured").expect("long enough");
        let key = target.admin_key()?.unwrap_or_else(none);
        let user =
            nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map_or_else(String::new, |u| u.name);
        let host = config.label.split(' ').next().unwrap_or_default().to_owned();
        Ok(Orders { world: World::real(), config, key, by: format!("{user}@{host}") })
    }

    /// Who orders: user and host.
    pub(crate) fn by(&self) -> &str {
        &self.by
    }

    /// A connection for many orders: to one metaserver, or to the cluster.
    pub(crate) fn link(&self, to: Option<&str>, limit: Duration) -> AdminLink {
        let mut config = self.config.clone();
        config.op_timeout = limit.max(config.op_timeout);
        if let Some(addr) = to {
            config.metaservers = vec![addr.to_owned()];
        }
        AdminLink::new(&config, &self.world)
    }

    /// Sends one; what came of it. `doing` is for the error.
    pub(crate) async fn send(&self, doing: &str, order: Order) -> Outcome<Ordered> {
        self.send_about(doing, "the cluster", order).await
    }

    /// As [`Orders::send`]; `what` it is about is for the error.
    pub(crate) async fn send_about(&self, doing: &str, what: &str, order: Order) -> Outcome<Ordered> {
        let link = self.link(None, ORDER_LIMIT_MIN);
        let answer = self.send_on(&link, doing, what, order).await;
        link.close().await;
        answer
    }

    /// As [`Orders::send`], on a connection; `to` is for the error.
    pub(crate) async fn send_on(&self, link: &AdminLink, doing: &str, to: &str, order: Order) -> Outcome<Ordered> {
        let signed = self.key.sign(order, self.world.now(), self.by.clone());
        let answer = link.ask(&Admin::Order(Box::new(signed))).await;
        match answer.map_err(|fault| Failure::fault(doing, to, &fault))? {
            AdminReply::Ordered(done) => Ok(*done),
            other => Err(Failure::new(format!("{doing}: unexpected answer {other:?}"))),
        }
    }
}

/// What each metaserver says of itself: for when there is no leader to ask.
async fn nodes_text(world: &World, addresses: &[String]) -> String {
    let mut text = String::new();
    for address in addresses {
        let line = match ask(world, std::slice::from_ref(address), Admin::NodeStatus, Duration::from_secs(2)).await {
            Ok(AdminReply::Node(n)) => {
                format!("{}: {}, term {}, applied {}, last log {}", n.node, n.state, n.term, n.applied, n.last_log)
            }
            Ok(_) => "unexpected answer".to_owned(),
            Err(failure) => failure.cause().to_owned(),
        };
        let _ = writeln!(text, "metaserver {address}: {line}"); // writing to a string cannot fail
    }
    text
}

/// The cluster for people.
pub(crate) fn status_text(status: &Status, members: &Members, keeping: Option<&KeepStatus>) -> String {
    let mut text = String::new();
    // writing to a string cannot fail
    let (word, why) = health(status, members, keeping);
    let _ = writeln!(text, "health {word}");
    for reason in why {
        let _ = writeln!(text, "  {reason}");
    }
    let _ = writeln!(text, "cluster {} epoch {}, {} client sessions", status.cluster, status.epoch.0, status.sessions);
    let _ = writeln!(text, "\n{:<5} {:<22} {:<9} {:>6} {:>10}", "META", "ADDRESS", "STATE", "TERM", "LOG");
    for (node, address, matched) in &status.metaservers {
        let leads = *node == status.leader.node;
        let (state, term) = match (leads, matched) {
            (true, _) => ("leader", status.leader.term.to_string()),
            (false, Some(_)) if members.learners.contains(node) => ("learner", status.leader.term.to_string()),
            (false, Some(_)) => ("follower", status.leader.term.to_string()),
            (false, None) => ("down", "-".into()),
        };
        let log = if leads { Some(status.leader.last_log) } else { *matched };
        let log = log.map_or("-".into(), |index| index.0.to_string());
        let _ = writeln!(text, "{:<5} {address:<22} {state:<9} {term:>6} {log:>10}", node.to_string());
    }
    let _ = writeln!(text, "applied index {}", status.leader.applied.0);
    let _ = writeln!(
        text,
        "\n{:<5} {:<22} {:<6} {:>11} {:>11} {:>9} {:>11} {:>11} {:>8}",
        "CHUNK", "ADDRESS", "STATE", "CAPACITY", "FREE", "CHUNKS", "BYTES", "ON DISK", "CORRUPT"
    );
    for server in &status.servers {
        text.push_str(&server_line(server));
    }
    let fs = &status.fs;
    let _ = writeln!(
        text,
        "\n{} inodes, {} chunks ({} degraded); logical {}, stored once {}, deduplication {:.2}x; raw {} free of {}",
        fs.inodes,
        fs.chunks,
        status.degraded,
        size_text(fs.logical_bytes),
        size_text(fs.chunk_bytes),
        dedup_ratio(status),
        size_text(fs.raw_free),
        size_text(fs.raw_capacity)
    );
    text
}

fn server_line(server: &ServerStatus) -> String {
    let state = if server.up { "up" } else { "down" };
    let fenced =
        if server.fenced_dirs > 0 { format!("  {} directories fenced", server.fenced_dirs) } else { String::new() };
    format!(
        "{:<5} {:<22} {state:<6} {:>11} {:>11} {:>9} {:>11} {:>11} {:>8}{fenced}\n",
        server.server.to_string(),
        server.addr,
        size_text(server.capacity),
        size_text(server.free),
        server.chunks,
        size_text(server.chunk_bytes),
        size_text(server.segment_bytes),
        server.corrupt
    )
}

/// Logical bytes for each byte of a distinct chunk; 1 when nothing is stored.
#[expect(clippy::as_conversions, reason = "a ratio for people: the nearest float is what is wanted")]
fn dedup_ratio(status: &Status) -> f64 {
    if status.fs.chunk_bytes == 0 { 1.0 } else { status.fs.logical_bytes as f64 / status.fs.chunk_bytes as f64 }
}

/// Its metaservers as JSON.
pub(crate) fn metaserver_json(status: &Status, members: &Members) -> Vec<serde_json::Value> {
    status
        .metaservers
        .iter()
        .map(|(node, address, matched)| {
            let leads = *node == status.leader.node;
            serde_json::json!({
                "node": node.0,
                "name": format!("meta-{}", node.0),
                "addr": address,
                "leader": leads,
                "votes": !members.learners.contains(node),
                "up": leads || matched.is_some(),
                "log": if leads { Some(status.leader.last_log.0) } else { matched.map(|index| index.0) },
            })
        })
        .collect()
}

/// The cluster as JSON.
pub(crate) fn status_json(status: &Status, members: &Members, keeping: Option<&KeepStatus>) -> serde_json::Value {
    let metaservers = metaserver_json(status, members);
    let (health, why) = health(status, members, keeping);
    let servers: Vec<serde_json::Value> = status.servers.iter().map(server_json).collect();
    let fs = &status.fs;
    serde_json::json!({
        "health": health,
        "why": why,
        "cluster": status.cluster.to_string(),
        "epoch": status.epoch.0,
        "leader": status.leader.node.0,
        "term": status.leader.term,
        "applied": status.leader.applied.0,
        "metaservers": metaservers,
        "chunkservers": servers,
        "inodes": fs.inodes,
        "chunks": fs.chunks,
        "logical_bytes": fs.logical_bytes,
        "chunk_bytes": fs.chunk_bytes,
        "raw_capacity": fs.raw_capacity,
        "raw_free": fs.raw_free,
        "replicas": fs.replicas,
        "dedup_ratio": dedup_ratio(status),
        "degraded": status.degraded,
        "sessions": status.sessions,
    })
}

/// A chunkserver as JSON.
pub(crate) fn server_json(server: &ServerStatus) -> serde_json::Value {
    serde_json::json!({
        "server": server.server.0,
        "addr": server.addr,
        "up": server.up,
        "silent_ms": server.silent_ms,
        "capacity": server.capacity,
        "free": server.free,
        "chunks": server.chunks,
        "chunk_bytes": server.chunk_bytes,
        "corrupt": server.corrupt,
        "fenced_dirs": server.fenced_dirs,
        "segment_bytes": server.segment_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::{Epoch, LogIndex};
    use common::id::{LayoutVersion, ServerId};
    use common::proto::keep::{KeepReport, KeepSettings};
    use common::proto::meta::{FsStat, NodeStatus};

    /// One metaserver, and one chunkserver that has found a damaged copy.
    fn damaged() -> Status {
        let leader = NodeStatus {
            node: NodeId(1),
            state: "leader".into(),
            term: 1,
            leader: Some(NodeId(1)),
            applied: LogIndex(9),
            last_log: LogIndex(9),
        };
        let server = ServerStatus {
            server: ServerId(4),
            addr: "a:1".into(),
            up: true,
            silent_ms: Some(5),
            capacity: 1 << 30,
            free: 1 << 29,
            chunks: 3,
            chunk_bytes: 300,
            corrupt: 1,
            fenced_dirs: 0,
            segment_bytes: 400,
        };
        Status {
            cluster: ClusterId(7),
            epoch: Epoch(1),
            leader,
            metaservers: vec![(NodeId(1), "m:1".into(), None)],
            servers: vec![server],
            fs: FsStat { replicas: 1, ..FsStat::default() },
            degraded: 0,
            sessions: 0,
        }
    }

    #[test]
    fn damage_that_was_made_good_is_no_reason_to_warn() {
        let word = |reports: &[(ServerId, u64, KeepReport)]| {
            let keeping = KeepStatus {
                layout: LayoutVersion(3),
                degraded: 0,
                out: Vec::new(),
                reports: reports.to_vec(),
                settings: KeepSettings::default(),
            };
            health(&damaged(), &Members::default(), Some(&keeping)).0
        };
        let report = |missing, layout| {
            let compared = LayoutVersion(layout);
            KeepReport { missing, compared, ..KeepReport::default() }
        };
        assert_eq!(word(&[(ServerId(4), 900, report(0, 3))]), "ok");
        let open: [&[_]; 5] = [
            &[],
            &[(ServerId(3), 900, report(0, 3))],
            &[(ServerId(4), REPORT_AGE_MAX_MS, report(0, 3))],
            &[(ServerId(4), 900, report(1, 3))],
            &[(ServerId(4), 900, report(0, 2))],
        ];
        for reports in open {
            assert_eq!(word(reports), "warning", "{reports:?}");
        }
        assert_eq!(word(&[(ServerId(4), 900, report(0, 3)), (ServerId(5), 900, report(1, 3))]), "warning");
    }
}
