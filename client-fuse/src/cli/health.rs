//! How a cluster is: in one word and why, as text and as JSON.

use super::admin::REPORT_AGE_MAX_MS;
use super::format::size_text;
use super::keep;
use common::proto::backup::{Held, Members};
use common::proto::keep::{KeepSettings, KeepStatus};
use common::proto::meta::{FREE_MIN, ServerStatus, Status};
use common::proto::rebalance::Rebalance;
use std::fmt::Write;

/// All that is known of a cluster at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// As its leader sees it.
    pub(crate) status: &'a Status,
    /// Which metaservers vote.
    pub(crate) members: &'a Members,
    /// What servers say of what they are to keep; `None`: not asked for.
    pub(crate) keeping: Option<&'a KeepStatus>,
    /// What moves; `None`: not asked for.
    pub(crate) moves: Option<&'a Rebalance>,
    /// Since a restore nothing is deleted.
    pub(crate) held: Option<&'a Held>,
}

impl<'a> Seen<'a> {
    /// Only what the leader sees.
    pub(crate) fn only(status: &'a Status, members: &'a Members) -> Seen<'a> {
        Seen { status, members, keeping: None, moves: None, held: None }
    }
}

/// How the cluster is, in one word, and why: `ok`, `warning` (nothing is lost, something is to be done, or not known yet),
/// `critical` (writes fail, or one more fault may stop it or lose data).
pub(crate) fn health(seen: Seen<'_>) -> (&'static str, Vec<String>) {
    let Seen { status, members, keeping, .. } = seen;
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
    let silent = status.servers.iter().filter(|server| !server.up);
    let (awaited, down): (Vec<&ServerStatus>, Vec<_>) = silent.partition(|server| server.awaited);
    if !awaited.is_empty() {
        why.push(format!(
            "metaserver {} leads since a moment ago, and waits to hear of {}",
            status.leader.node,
            names(awaited)
        ));
    }
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
    critical |= room(status, &mut why);
    if let Some(keeping) = keeping {
        why.extend(keep::lacks(keeping, status));
    }
    why.extend(held_up(seen));
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

/// Whether there is room for what clients write; true if writes fail for want of it.
fn room(status: &Status, why: &mut Vec<String>) -> bool {
    let mut critical = false;
    if let Some(text) = &status.refuses {
        critical = true;
        why.push(format!("nothing can be made or written: {text}; make room there, or remove files"));
    } else if status.tight > 0 {
        why.push(format!("{} metaservers have hardly any room on their disks", status.tight));
    }
    let takes = status.servers.iter().filter(|server| server.awaited || (server.up && server.writable)).count();
    if takes < usize::from(status.min_replicas) {
        critical = true;
        why.push(format!("{takes} chunkservers take writes, {} are needed", status.min_replicas));
    } else if takes < usize::from(status.fs.replicas) {
        why.push(format!("{takes} chunkservers take writes: new data has fewer than {} copies", status.fs.replicas));
    }
    let full = |server: &&ServerStatus| server.up && server.capacity > 0 && server.free < FREE_MIN;
    let (full, partly): (Vec<_>, Vec<_>) =
        status.servers.iter().filter(|server| full(server) || server.full_dirs > 0).partition(full);
    if !full.is_empty() {
        why.push(format!("full, and taking no new data: {}", names(full)));
    }
    if !partly.is_empty() {
        why.push(format!("data directories are full on {}: others there take what is new", names(partly)));
    }
    if status.fs.raw_capacity > 0 && status.fs.raw_free < status.fs.raw_capacity / 20 {
        why.push("less than 5 % of the space is free".to_owned());
    }
    critical
}

/// What was stopped, or cannot go on, until somebody does something.
fn held_up(seen: Seen<'_>) -> Vec<String> {
    let obstacle = seen.moves.and_then(|moves| moves.obstacle.as_ref());
    let obstacle = obstacle.map(|text| format!("data should follow the weights, and cannot: {text}"));
    let held = seen.held.map(|_| "nothing is deleted since the restore, until a whole fsck finds nothing".to_owned());
    let settings = seen.keeping.map(|keeping| keeping.settings);
    let paused = |is: fn(&KeepSettings) -> bool, text: &str| settings.is_some_and(|s| is(&s)).then(|| text.to_owned());
    let deletion = paused(|settings| settings.delete_paused, "deletion is paused: `dfs admin gc resume`");
    let scrub = paused(|settings| settings.scrub_paused, "scrub is paused: `dfs admin scrub resume`");
    [obstacle, held, deletion, scrub].into_iter().flatten().collect()
}

fn names<'a>(servers: impl IntoIterator<Item = &'a ServerStatus>) -> String {
    servers.into_iter().map(|server| server.server.to_string()).collect::<Vec<_>>().join(" ")
}

/// The cluster for people.
pub(crate) fn status_text(seen: Seen<'_>) -> String {
    let Seen { status, members, .. } = seen;
    let mut text = String::new();
    // writing to a string cannot fail
    let (word, why) = health(seen);
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
    let state = match (server.up, server.awaited) {
        (true, _) => "up",
        (false, true) => "awaited",
        (false, false) => "down",
    };
    let some = |count: u32, what: &str| if count > 0 { format!("  {count} directories {what}") } else { String::new() };
    let wrong = some(server.fenced_dirs, "fenced") + &some(server.full_dirs, "full");
    format!(
        "{:<5} {:<22} {state:<6} {:>11} {:>11} {:>9} {:>11} {:>11} {:>8}{wrong}\n",
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
pub(crate) fn status_json(seen: Seen<'_>) -> serde_json::Value {
    let Seen { status, members, .. } = seen;
    let metaservers = metaserver_json(status, members);
    let (health, why) = health(seen);
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
        "min_replicas": status.min_replicas,
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
        "silent_ms": server.silent_ms, "awaited": server.awaited,
        "capacity": server.capacity,
        "free": server.free,
        "chunks": server.chunks,
        "chunk_bytes": server.chunk_bytes,
        "corrupt": server.corrupt,
        "fenced_dirs": server.fenced_dirs,
        "full_dirs": server.full_dirs,
        "writable": server.writable,
        "segment_bytes": server.segment_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::{ClusterId, Epoch, LayoutVersion, LogIndex, NodeId, ServerId};
    use common::proto::keep::KeepReport;
    use common::proto::meta::{FsStat, NodeStatus};
    use common::time::Time;

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
            awaited: false,
            capacity: 1 << 30,
            free: 1 << 29,
            chunks: 3,
            chunk_bytes: 300,
            corrupt: 1,
            fenced_dirs: 0,
            full_dirs: 0,
            writable: true,
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
            min_replicas: 1,
            tight: 0,
            refuses: None,
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
            health(Seen { keeping: Some(&keeping), ..Seen::only(&damaged(), &Members::default()) }).0
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

    /// Whatever makes writes fail, or stands still until somebody does something, is said.
    #[test]
    fn what_stops_writes_or_waits_for_somebody_is_told() {
        let ok = || {
            let mut status = damaged();
            status.servers[0].corrupt = 0;
            status
        };
        let of = |change: fn(&mut Status)| {
            let mut status = ok();
            change(&mut status);
            health(Seen::only(&status, &Members::default()))
        };
        assert_eq!(of(|_| ()), ("ok", Vec::new()));
        type Change = fn(&mut Status);
        let told: [(Change, &str, &str); 8] = [
            (|status| status.refuses = Some("1 of 3".into()), "critical", "nothing can be made or written: 1 of 3"),
            (|status| status.tight = 1, "warning", "1 metaservers have hardly any room"),
            (|status| status.servers[0].writable = false, "critical", "0 chunkservers take writes, 1 are needed"),
            (
                |status| status.fs.replicas = 2,
                "warning",
                "1 chunkservers take writes: new data has fewer than 2 copies",
            ),
            (|status| status.servers[0].free = FREE_MIN - 1, "warning", "full, and taking no new data: s4"),
            (|status| status.servers[0].full_dirs = 1, "warning", "data directories are full on s4"),
            (|status| status.servers[0].up = false, "critical", "1 of 1 chunkservers are down: s4"),
            (
                |status| {
                    let server = &mut status.servers[0];
                    (server.up, server.awaited, server.writable) = (false, true, false);
                },
                "warning",
                "metaserver m1 leads since a moment ago, and waits to hear of s4",
            ),
        ];
        for (change, word, text) in told {
            let (found, why) = of(change);
            assert!(found == word && why.iter().any(|why| why.starts_with(text)), "{text}: {found} {why:?}");
        }

        let (status, members, report) = (ok(), Members::default(), KeepReport::default());
        let keeping = |settings| KeepStatus {
            reports: vec![(ServerId(4), 1, report.clone())],
            settings,
            ..KeepStatus::default()
        };
        let stopped = |seen: Seen<'_>| health(seen).1.join("\n");
        for (settings, text) in [
            (KeepSettings { delete_paused: true, ..KeepSettings::default() }, "deletion is paused"),
            (KeepSettings { scrub_paused: true, ..KeepSettings::default() }, "scrub is paused"),
        ] {
            let keeping = keeping(settings);
            let why = stopped(Seen { keeping: Some(&keeping), ..Seen::only(&status, &members) });
            assert!(why.starts_with(text), "{why}");
        }
        let held = Held { epoch: Epoch(2), index: LogIndex(1), at: Time::default() };
        let why = stopped(Seen { held: Some(&held), ..Seen::only(&status, &members) });
        assert!(why.starts_with("nothing is deleted since the restore"), "{why}");
    }
}
