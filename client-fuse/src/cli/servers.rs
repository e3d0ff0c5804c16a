//! `dfs admin server`, `layout` and `events`: who is there, with what share, and what was done to it.

use super::admin::{Orders, cluster_map, cluster_status, done};
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::format::{size_text, time_text};
use super::health::server_json;
use super::keep;
use super::progress::Progress;
use super::rebalance;
use super::remote::Remote;
use clap::Subcommand;
use common::id::{ChunkId, ServerId};
use common::layout::{ClusterMap, Layout};
use common::proto::admin::{EVENTS_PER_ANSWER, FileChunk, Order, Ordered};
use common::proto::meta::{ServerStatus, Status};
use common::proto::rebalance::{PlanState, Rebalance, RebalanceOrder};
use common::time::Time;
use common::world::World;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;
use tokio::time::Instant;

/// The longest absence that can be announced, in seconds: a month.
const AWAY_S_MAX: u64 = 31 * 86_400;
/// Between two looks at a server that is being emptied.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What can be done with chunkservers.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// All chunkservers with their weights, domains and shares
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a server's share of the data relative to the others' (by itself it is the capacity in GiB). Data moves
    Weight {
        /// The server's number
        server: u32,
        /// The weight; 0 takes it out
        weight: u32,
        #[command(flatten)]
        how: How,
    },
    /// Give a server that has joined its share: the plan of `rebalance start`
    Add {
        /// The server's number
        server: u32,
        #[command(flatten)]
        how: How,
    },
    /// Move everything from a server to the others: weight 0. It goes on serving meanwhile
    Drain {
        /// The server's number
        server: u32,
        #[command(flatten)]
        how: How,
    },
    /// Drain a server, wait until it is empty, and forget it. Ctrl-C stops the waiting, not the draining
    Decommission {
        /// The server's number
        server: u32,
        /// Really
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        how: How,
    },
    /// Announce that a server will be away, so that nobody takes over its share meanwhile
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// Take a server back that was removed, with what is on its disks. It gets a share as a new one does
    Readmit {
        /// The server's number
        server: u32,
    },
    /// Forget a server that was drained. Refused while it holds what others do not
    Remove {
        /// The server's number
        server: u32,
        /// Really
        #[arg(long)]
        yes: bool,
    },
}

/// How data is moved.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct How {
    /// Only show what would move
    #[arg(long)]
    plan: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Megabytes (10^6 bytes) per second that one server takes, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_mbps: Option<u64>,
    /// Wait until it is done. Ctrl-C stops the waiting, not what is done; for a server that is drained `weight` takes it back
    #[arg(long)]
    wait: bool,
}

/// What can be said about a server's absence.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MaintenanceCommand {
    /// It will be away
    On {
        /// The server's number
        server: u32,
        /// For how long, such as 30m, 2h, 1d
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
        duration: Duration,
    },
    /// It is back, or stays after all
    Off {
        /// The server's number
        server: u32,
    },
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text}: write a number and s, m, h or d, such as 2h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let all = count.checked_mul(seconds).filter(|secs| (1..=AWAY_S_MAX).contains(secs));
    all.map(Duration::from_secs).ok_or_else(|| format!("{text}: from 1 s to {} d", AWAY_S_MAX / 86_400))
}

/// What can be seen of the layout.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LayoutCommand {
    /// Each server's places and share
    Show {
        /// As JSON, with the whole table
        #[arg(long)]
        json: bool,
    },
    /// Where a chunk (64 hex digits) or the chunks of a file belong, and why
    Explain {
        /// A path, or a chunk id
        what: OsString,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// A server's share of the places of replicas.
struct Share {
    places: u64,
    wanted: f64,
}

/// For each server its places among the first `replicas` of all groups, and how many its weight asks for.
#[expect(clippy::as_conversions, reason = "counts far below 2^53, for people")]
fn shares(map: &ClusterMap) -> BTreeMap<ServerId, Share> {
    let weight: u64 = map.servers.values().map(|server| u64::from(server.weight)).sum();
    let heads = map.layout.groups.iter().map(|group| &group[..group.len().min(usize::from(map.replicas))]);
    let mut places: BTreeMap<ServerId, u64> = BTreeMap::new();
    let mut total = 0u64;
    for server in heads.flatten() {
        *places.entry(*server).or_default() += 1;
        total += 1;
    }
    let share = |(id, server): (&ServerId, &common::layout::ServerInfo)| {
        let wanted = total as f64 * f64::from(server.weight) / weight.max(1) as f64;
        (*id, Share { places: places.get(id).copied().unwrap_or(0), wanted })
    };
    map.servers.iter().map(share).collect()
}

/// Runs `dfs admin server`.
pub(crate) async fn server(target: &Target, command: ServerCommand) -> Outcome {
    match command {
        ServerCommand::List { json } => {
            let (map, status) = (cluster_map(target).await?, cluster_status(target).await?);
            list_servers(&map, &status, &rebalance::status(target).await?, json);
            Ok(())
        }
        ServerCommand::Weight { server, weight, how } => {
            let is_moving = weigh(target, (ServerId(server), weight), "set the weight", &how).await?;
            if how.plan {
                return Ok(());
            }
            if is_moving && how.wait {
                rebalance::wait(target).await?;
            }
            let follows = if is_moving && !how.wait { "; the data follows: `dfs admin rebalance status`" } else { "" };
            say_done!("s{server} has weight {weight}{follows}");
            Ok(())
        }
        ServerCommand::Add { server, how } => add(target, ServerId(server), &how).await,
        ServerCommand::Drain { server, how } => drain(target, ServerId(server), &how).await,
        ServerCommand::Decommission { server, yes, how } => {
            if !yes && !how.plan {
                return Err(Failure::new(format!("decommission s{server}: say --yes if you mean it, or --plan")));
            }
            let waits = How { wait: true, ..how.clone() };
            drain(target, ServerId(server), &waits).await?;
            if how.plan {
                return Ok(());
            }
            wait_known(target).await?;
            remove(target, ServerId(server)).await
        }
        ServerCommand::Maintenance(command) => maintenance(target, &command).await,
        ServerCommand::Readmit { server } => {
            let order = Order::Readmit { server: ServerId(server) };
            done(Orders::new(target)?.send("readmit", order).await?)?;
            say_done!("s{server} may come back: start its process if it does not run");
            Ok(())
        }
        ServerCommand::Remove { server, yes } => {
            if !yes {
                return Err(Failure::new(format!("remove s{server}: say --yes if you mean it")));
            }
            remove(target, ServerId(server)).await
        }
    }
}

async fn remove(target: &Target, server: ServerId) -> Outcome {
    let order = Order::RemoveServer { server };
    done(Orders::new(target)?.send_about("remove", &server.to_string(), order).await?)?;
    say_done!(
        "{server} is forgotten: stop its process and keep its disks until `dfs admin fsck` is clean (`dfs admin server \
         readmit {}` takes it back)",
        server.0
    );
    Ok(())
}

async fn add(target: &Target, server: ServerId, how: &How) -> Outcome {
    let map = cluster_map(target).await?;
    match map.servers.get(&server) {
        None => Err(Failure::new(format!("there is no {server}: start it, and it joins by itself"))),
        Some(info) if info.weight == 0 => {
            let text = format!("{server} has weight 0: `dfs admin server weight {} W` gives it a share", server.0);
            Err(Failure::new(text))
        }
        Some(_) if how.plan => {
            rebalance::show_plan(&rebalance::plan(target, Vec::new()).await?, how.json);
            Ok(())
        }
        Some(_) => rebalance::start(target, how.max_mbps, how.wait, how.json).await,
    }
}

/// Sets a server's weight after showing what moves; with `--plan` it only shows that. True if something moves now.
async fn weigh(target: &Target, (server, weight): (ServerId, u32), what: &str, how: &How) -> Outcome<bool> {
    if how.plan || !how.json {
        match rebalance::plan(target, vec![(server, weight)]).await {
            Ok(plan) => rebalance::show_plan(&plan, how.json),
            Err(failure) if how.plan => return Err(failure),
            Err(failure) => say!("no plan can be shown: {failure}"),
        }
    }
    if how.plan {
        return Ok(false);
    }
    let orders = Orders::new(target)?;
    done(orders.send(what, Order::SetWeight { server, weight }).await?)?;
    let moves = rebalance::status(target).await?;
    if how.max_mbps.is_some() && !rebalance::is_over(&moves) {
        let rate = rebalance::bytes_per_s(how.max_mbps);
        let limited = orders.send("limit", Order::Rebalance(RebalanceOrder::Rate(rate))).await.and_then(done);
        if limited.is_err() && !rebalance::is_over(&rebalance::status(target).await?) {
            limited?; // else there was little to move, and it is through
        }
    }
    Ok(!rebalance::is_over(&moves))
}

async fn drain(target: &Target, server: ServerId, how: &How) -> Outcome {
    weigh(target, (server, 0), "drain", how).await?;
    if how.plan {
        return Ok(());
    }
    if how.wait {
        return wait_empty(target, server).await;
    }
    say_done!(
        "{server} is being emptied: `dfs admin rebalance status`; `dfs admin server weight {} W` takes it back",
        server.0
    );
    Ok(())
}

async fn maintenance(target: &Target, command: &MaintenanceCommand) -> Outcome {
    let (server, until) = match command {
        MaintenanceCommand::On { server, duration } => {
            let now = World::real().now();
            let secs = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
            (ServerId(*server), Some(Time { secs: now.secs.saturating_add(secs), ..now }))
        }
        MaintenanceCommand::Off { server } => (ServerId(*server), None),
    };
    done(Orders::new(target)?.send("maintenance", Order::Away { server, until }).await?)?;
    match until {
        Some(until) => {
            say_done!("{server} may be away until {} UTC: nobody takes over its share before", time_text(until))
        }
        None => say_done!("{server} is expected to be there"),
    }
    Ok(())
}

/// A server that is down for so long will not go on by itself, in milliseconds.
const DOWN_MAX_MS: u64 = 30_000;

async fn wait_empty(target: &Target, server: ServerId) -> Outcome {
    let bar = Progress::counts();
    let mut most = 0;
    loop {
        let status = cluster_status(target).await?;
        let Some(found) = status.servers.iter().find(|found| found.server == server) else {
            return Err(Failure::new(format!("there is no {server}")));
        };
        // Groups without chunks move, too: until then it has a place in the layout.
        let map = cluster_map(target).await?;
        let in_layout = map.layout.groups.iter().any(|group| group.contains(&server));
        most = most.max(found.chunks);
        let moves = rebalance::status(target).await?;
        let is_paused = moves.state == PlanState::Paused;
        bar.set(most - found.chunks, most, if is_paused { "chunks moved (paused)" } else { "chunks moved" });
        if found.chunks == 0 && found.up && !in_layout {
            bar.finish();
            say_done!("{server} is empty: `dfs admin server remove {} --yes`", server.0);
            return Ok(());
        }
        if let Some(text) = hinders(found, in_layout, &moves) {
            return Err(
                Failure::new(format!("{server} is not empty yet: {text}")).advice("then run this again: it goes on")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How long that may take: then the metaservers are asked, and say what is not known.
const KNOWN_LIMIT: Duration = Duration::from_secs(600);

/// Waits until all others have said, by the layout of now, that they miss nothing: in a large cluster that takes a while.
async fn wait_known(target: &Target) -> Outcome {
    let (bar, end) = (Progress::counts(), Instant::now() + KNOWN_LIMIT);
    loop {
        let (status, keeping) = (cluster_status(target).await?, keep::status(target).await?);
        let lacks = keep::lacks(&keeping, &status);
        if lacks.is_empty() || Instant::now() > end {
            bar.finish();
            return Ok(());
        }
        bar.set(0, 1, &lacks.join(", "));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why a server that is drained will not get empty by waiting. Pure.
fn hinders(server: &ServerStatus, in_layout: bool, moves: &Rebalance) -> Option<String> {
    if let Some(text) = &moves.obstacle {
        return Some(format!("{text}: add servers, or give others more weight"));
    }
    if server.silent_ms.is_none_or(|silent| silent > DOWN_MAX_MS) && !server.up && !server.awaited {
        return Some("it is down: start it, or wait until others have taken over its share and remove it".into());
    }
    if !in_layout && server.fenced_dirs > 0 {
        return Some(
            "it deletes nothing while a data directory is out of use: its log says which; mount or replace it, or take it out \
             of data_dirs, and restart the server"
                .into(),
        );
    }
    let nothing_comes = in_layout && moves.state == PlanState::Cancelled && !moves.wanted && moves.moving == 0;
    nothing_comes.then(|| "the plan was cancelled: drain it once more".into())
}

fn list_servers(map: &ClusterMap, status: &Status, moves: &Rebalance, json: bool) {
    let shares = shares(map);
    if json {
        let rows = status.servers.iter().map(|server| {
            let mut row = server_json(server);
            if let (Some(info), Some(share)) = (map.servers.get(&server.server), shares.get(&server.server)) {
                row["weight"] = info.weight.into();
                row["writable"] = info.writable.into();
                row["places"] = share.places.into();
                row["places_wanted"] = share.wanted.into();
                row["zone"] = info.domain.zone.clone().into();
                row["rack"] = info.domain.rack.clone().into();
                row["host"] = info.domain.host.clone().into();
                row["away_until"] = away(moves, server.server).map(|until| until.secs).into();
            }
            row
        });
        return say!("{}", serde_json::Value::from(rows.collect::<Vec<_>>()));
    }
    say!(
        "{:<6} {:<22} {:<10} {:>7} {:>16} {:>10} {:>11} {:>11}  DOMAIN",
        "SERVER",
        "ADDRESS",
        "STATE",
        "WEIGHT",
        "PLACES (WANTED)",
        "CHUNKS",
        "BYTES",
        "FREE"
    );
    let mut has_new = false;
    for server in &status.servers {
        let (Some(info), Some(share)) = (map.servers.get(&server.server), shares.get(&server.server)) else { continue };
        let state = match (server.up, info.writable, info.weight) {
            (false, ..) if away(moves, server.server).is_some() => "away",
            (false, ..) if server.awaited => "awaited",
            (false, ..) => "down",
            (true, _, 1..) if share.places == 0 => "new",
            (true, _, 0) if server.chunks > 0 => "draining",
            (true, _, 0) => "empty",
            (true, false, _) => "read-only",
            (true, true, _) => "up",
        };
        say!(
            "{:<6} {:<22} {:<10} {:>7} {:>16} {:>10} {:>11} {:>11}  {}/{}/{}",
            server.server.to_string(),
            server.addr,
            state,
            info.weight,
            format!("{} ({:.0})", share.places, share.wanted),
            server.chunks,
            size_text(server.chunk_bytes),
            size_text(server.free),
            info.domain.zone,
            info.domain.rack,
            info.domain.host
        );
        has_new |= state == "new";
    }
    if has_new {
        say!("a new server takes old data when you say so: `dfs admin rebalance plan`, `dfs admin rebalance start`");
    }
}

/// Until when a server is announced to be away.
fn away(moves: &Rebalance, server: ServerId) -> Option<Time> {
    moves.away.iter().find(|(other, _)| *other == server).map(|(_, until)| *until)
}

/// Runs `dfs admin events`.
pub(crate) async fn events(target: &Target, last: u32, json: bool) -> Outcome {
    let order = Order::Events { limit: last.min(EVENTS_PER_ANSWER) };
    let Ordered::Events(events) = Orders::new(target)?.send("events", order).await? else {
        return Err(Failure::new("events: an answer that does not fit"));
    };
    let rows = events.into_iter().rev();
    if json {
        let row = |e: common::proto::admin::Event| serde_json::json!({ "number": e.number, "index": e.index.0, "secs": e.at.secs, "by": e.by, "what": e.what });
        say!("{}", serde_json::Value::from(rows.map(row).collect::<Vec<_>>()));
    } else {
        rows.for_each(|event| say!("{:>6}  {}  {:<24} {}", event.number, time_text(event.at), event.by, event.what));
    }
    Ok(())
}

/// Runs `dfs admin layout`.
pub(crate) async fn layout(target: &Target, command: LayoutCommand) -> Outcome {
    let map = cluster_map(target).await?;
    match command {
        LayoutCommand::Show { json } => show(&map, json),
        LayoutCommand::Explain { what, json } => {
            let id = what.to_str().and_then(ChunkId::from_hex);
            let chunks = match id {
                Some(id) => vec![FileChunk { at: 0, len: 0, chunk: Some(id), replicas: map.replicas }],
                None => {
                    let path = Remote::new(&what).as_bytes().to_vec();
                    match Orders::new(target)?.send("explain", Order::Chunks { path }).await? {
                        Ordered::Chunks(chunks) => chunks,
                        other => return Err(Failure::new(format!("explain: unexpected answer {other:?}"))),
                    }
                }
            };
            explain(&map, &chunks, json);
        }
    }
    Ok(())
}

fn show(map: &ClusterMap, json: bool) {
    let Layout { version, groups } = &map.layout;
    let shares = shares(map);
    if json {
        let groups: Vec<Vec<u32>> = groups.iter().map(|group| group.iter().map(|server| server.0).collect()).collect();
        let servers: Vec<serde_json::Value> = shares
            .iter()
            .map(|(id, share)| serde_json::json!({"server": id.0, "places": share.places, "wanted": share.wanted}))
            .collect();
        return say!(
            "{}",
            serde_json::json!({"version": version.0, "replicas": map.replicas, "servers": servers, "groups": groups})
        );
    }
    say!("layout {version}: {} placement groups, {} replicas", groups.len(), map.replicas);
    say!("{:<6} {:>7} {:>8} {:>8} {:>7}  DOMAIN", "SERVER", "WEIGHT", "PLACES", "WANTED", "OFF");
    for (id, share) in &shares {
        let Some(info) = map.servers.get(id) else { continue };
        let off = if share.wanted > 0.0 { (places(share) / share.wanted - 1.0) * 100.0 } else { 0.0 };
        let domain = &info.domain;
        let place = format!("{}/{}/{}", domain.zone, domain.rack, domain.host);
        let id = id.to_string();
        say!("{id:<6} {:>7} {:>8} {:>8.0} {off:>6.1}%  {place}", info.weight, share.places, share.wanted);
    }
}

#[expect(clippy::as_conversions, reason = "counts far below 2^53, for people")]
fn places(share: &Share) -> f64 {
    share.places as f64
}

fn explain(map: &ClusterMap, chunks: &[FileChunk], json: bool) {
    let mut rows = Vec::new();
    for part in chunks {
        let Some(id) = part.chunk else {
            rows.push(serde_json::json!({"at": part.at, "len": part.len, "inline": true}));
            if !json {
                say!("bytes {} to {}: kept with the metadata", part.at, part.at + part.len);
            }
            continue;
        };
        let (pg, order) = map.layout.place(&id);
        let homes = &order[..order.len().min(usize::from(part.replicas))];
        rows.push(serde_json::json!({
            "at": part.at, "len": part.len, "chunk": id.hex(), "pg": pg.0, "replicas": part.replicas,
            "servers": homes.iter().map(|server| server.0).collect::<Vec<_>>(),
            "then": order[homes.len()..].iter().map(|server| server.0).collect::<Vec<_>>(),
        }));
        if json {
            continue;
        }
        if part.len > 0 {
            say!("bytes {} to {}:", part.at, part.at + part.len);
        }
        say!("chunk {} in {pg} (its first bits), {} copies, layout {}", id.hex(), part.replicas, map.layout.version);
        for (place, server) in order.iter().enumerate() {
            let Some(info) = map.servers.get(server) else { continue };
            let role = if place < homes.len() { "replica" } else { "if those take no writes" };
            let state = if info.up { "up" } else { "down" };
            let domain = &info.domain;
            let at = format!("{}/{}/{}", domain.zone, domain.rack, domain.host);
            say!("  {:<6} {:<22} {state:<5} {at:<24} {role}", server.to_string(), info.addr);
        }
    }
    if json {
        say!("{}", serde_json::Value::from(rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absences_are_read_with_their_units() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_duration("31d"), Ok(Duration::from_secs(AWAY_S_MAX)));
        for wrong in ["", "h", "2", "0s", "32d", "2 h", "-1h", "2ü"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
