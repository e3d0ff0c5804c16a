//! Replicas are in different zones, servers hold as much of their zone as their weights say, and a whole zone may be gone:
//! every byte is read, and what is written then is there in the other two.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::data::Data;
use tests::json::number;
use tests::wait::wait_until;

/// Zones, with two chunkservers each.
const ZONES: [&str; 3] = ["east", "north", "west"];
const SERVERS: usize = 2 * ZONES.len();
/// Every second server has half the weight of the others.
const WEIGHTS: [u64; 2] = [100, 50];
/// The layout follows, servers are known or missed, copies are made, within this.
const LIMIT: Duration = Duration::from_secs(120);
const LEN: u64 = 9 << 20;

fn name(number: usize) -> String {
    format!("chunk-{}", number + 1)
}

/// What is put, one file after another.
const DATA: Data = Data { seed: 77, files: 0, len: LEN };

/// Each group has a server in each zone.
fn is_spread(cluster: &Cluster) -> bool {
    let zone = |server: &serde_json::Value| (number(server, "server"), server["zone"].as_str().unwrap().to_owned());
    let zones: BTreeMap<u64, String> = cluster.server_list().iter().map(zone).collect();
    let layout = cluster.json(&["admin", "layout", "show", "--json"]);
    let groups = layout["groups"].as_array().unwrap();
    let spread = |group: &serde_json::Value| {
        let head = group.as_array().unwrap().iter().take(3);
        let all: BTreeSet<&String> = head.map(|id| &zones[&id.as_u64().unwrap()]).collect();
        all.len() == 3
    };
    !groups.is_empty() && groups.iter().all(spread)
}

/// Every server has the places that its weight asks for in its zone, within 5 %.
fn is_level(cluster: &Cluster) -> bool {
    let servers = cluster.server_list();
    let all: u64 = servers.iter().map(|server| number(server, "places")).sum();
    servers.iter().all(|server| {
        let share = all * number(server, "weight") / (3 * WEIGHTS.iter().sum::<u64>());
        number(server, "places").abs_diff(share) * 20 <= share
    })
}

#[test]
fn replicas_are_in_different_zones_and_one_zone_is_not_needed() {
    let (cluster, local) = (Cluster::start_with(3, SERVERS), tempfile::tempdir().unwrap());
    let all: Vec<String> = (0..SERVERS).map(name).collect();
    cluster.kill(&all);
    for (number, name) in all.iter().enumerate() {
        cluster.configure(&format!("conf/{name}.toml"), &format!("zone = \"{}\"", ZONES[number % ZONES.len()]));
    }
    cluster.up();
    for (number, name) in all.iter().enumerate() {
        let weight = WEIGHTS[number / ZONES.len()].to_string();
        cluster.dfs(&["admin", "server", "weight", &cluster.server_id(name).to_string(), &weight]).must();
    }
    wait_until("a layout by zones and weights", LIMIT, || is_spread(&cluster) && is_level(&cluster));
    (0..6).for_each(|file| DATA.put_one(&cluster, local.path(), file));

    let burnt: Vec<&String> = all.iter().step_by(ZONES.len()).collect();
    cluster.kill(&burnt);
    DATA.check_some(&cluster, local.path(), 0..6);
    DATA.put_one(&cluster, local.path(), 6);
    DATA.check_some(&cluster, local.path(), 6..7);
    let status = cluster.status();
    assert_eq!(status["chunkservers"].as_array().unwrap().len(), SERVERS, "nothing was taken out yet: {status:#}");

    cluster.up();
    wait_until("all copies", LIMIT, || cluster.status()["health"] == "ok");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    assert!(is_spread(&cluster) && is_level(&cluster));
    // The other two zones have all of it as well.
    for gone in 1..ZONES.len() {
        let gone: Vec<&String> = all.iter().skip(gone).step_by(ZONES.len()).collect();
        cluster.kill(&gone);
        DATA.check_some(&cluster, local.path(), 0..7);
        cluster.up();
        wait_until("all servers", LIMIT, || cluster.server_list().iter().all(|server| server["up"] == true));
    }
}
