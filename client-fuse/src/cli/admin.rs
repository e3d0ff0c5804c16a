//! `dfs admin`: make a cluster of empty metaservers, and see how one is.

use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::health::{Seen, status_json, status_text};
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
use common::proto::meta::{Admin, AdminReply, Status};
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
            let seen = Seen {
                status: &status,
                members: &members,
                keeping: Some(&keeping),
                moves: Some(&moves),
                held: held.as_ref(),
            };
            if json {
                let mut all = status_json(seen);
                all["keep"] = keep::json(&keeping);
                all["rebalance"] = rebalance::brief_json(&moves);
                all["deletion_held"] = held.map(|held| held.epoch.0).into();
                say!("{all}");
            } else {
                let held = held.map_or_else(String::new, |held| keep::held_text(&held) + "\n");
                let moves = rebalance::brief(&moves).map_or_else(String::new, |line| line + "\n");
                say!("{}{held}{moves}{}", status_text(seen), keep::text(&keeping).trim_end());
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
