//! While clients write, three metaservers become five, of which two die for a while, and then three again: others than
//! before, so that clients and chunkservers have to learn them. The one that leads is removed, too. No operation fails,
//! and nothing is lost.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use serde_json::{Value, json};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT, program};
use tests::load::Load;
use tests::wait::wait_until;

/// Writers, each with a mount of its own.
const WRITERS: usize = 2;
/// Writers rest this long between two operations: the subject is who keeps what they tell.
const PAUSE: Duration = Duration::from_millis(20);
/// Operations that each writer makes between two events, and how long that may take.
const OPS_BETWEEN: u64 = 15;
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// A metaserver that was removed asks how it stands, and is told, within this.
const TOLD_LIMIT: Duration = Duration::from_secs(60);

/// A metaserver that `dfs dev` does not know. It ends with the test.
struct Extra(Child);

impl Drop for Extra {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Starts an empty metaserver with a number that was never used, as the runbook says. Its address, too.
fn start(cluster: &Cluster, node: usize) -> (Extra, String) {
    let (name, dir) = (format!("meta-{node}"), cluster.dir());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (addr, data) = (format!("127.0.0.1:{port}"), cluster.data(&name));
    let mut config = format!(
        "node_id = {node}\nlisten = \"{addr}\"\nadvertise = \"{addr}\"\ndata_dir = {data:?}\n\
         reserve_bytes = 134217728\nadmin_key_file = {:?}\n\n[metaservers]\n{node} = \"{addr}\"\n",
        dir.join("admin.key")
    );
    for (number, addr) in (1..).zip(cluster.metaservers()) {
        config.push_str(&format!("{number} = \"{addr}\"\n"));
    }
    std::fs::create_dir(&data).unwrap();
    let file = dir.join(format!("conf/{name}.toml"));
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(dir.join(format!("log/{name}.log"))).unwrap();
    let mut command = Command::new(program("metaserver"));
    command.arg("--config").arg(file).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let child = command.spawn().unwrap();
    std::fs::write(dir.join(format!("run/{name}.pid")), child.id().to_string()).unwrap();
    let extra = Extra(child);
    wait_until(&format!("{name} to listen"), PROCESS_LIMIT, || TcpStream::connect(&addr).is_ok());
    (extra, addr)
}

/// Carries out a change of the metaservers: who votes then, and who learns.
fn change(cluster: &Cluster, args: &[&str]) -> (Value, Value) {
    let ended = cluster.dfs(&[&["admin", "meta"], args, &["--json"]].concat()).must();
    let said: Value = serde_json::from_slice(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended}"));
    (said["voters"].clone(), said["learners"].clone())
}

/// Waits until so many metaservers are there, and all of them answer.
fn wait_up(cluster: &Cluster, count: usize) {
    wait_until(&format!("{count} metaservers"), PROCESS_LIMIT, || {
        let ended = cluster.dfs(&["admin", "meta", "list", "--json"]);
        let Ok(Value::Array(rows)) = serde_json::from_slice(&ended.out) else { return false };
        rows.len() == count && rows.iter().all(|row| row["up"] == true && row["votes"] == true)
    });
}

fn progress(load: &Load, why: &str) {
    let goal = load.acked_by_each() + OPS_BETWEEN;
    let took = wait_until(&format!("operations {why}"), PROGRESS_LIMIT, || load.acked_by_each() >= goal);
    eprintln!("{OPS_BETWEEN} operations {why}: {took:?}");
}

/// Three become five.
fn grow(cluster: &Cluster, load: &Load) -> [Extra; 2] {
    let (four, addr_four) = start(cluster, 4);
    cluster.dfs(&["admin", "meta", "promote", "4"]).must_fail_cleanly(); // not added yet
    assert_eq!(change(cluster, &["add", &addr_four]), (json!([1, 2, 3]), json!([4])));
    progress(load, "while one learns");
    cluster.dfs(&["admin", "meta", "add", &addr_four]).must_fail_cleanly();
    assert_eq!(change(cluster, &["promote", "4"]), (json!([1, 2, 3, 4]), json!([])));
    progress(load, "with four");
    let (five, addr_five) = start(cluster, 5);
    assert_eq!(change(cluster, &["add", &addr_five]), (json!([1, 2, 3, 4]), json!([5])));
    assert_eq!(change(cluster, &["promote", "5"]), (json!([1, 2, 3, 4, 5]), json!([])));
    wait_up(cluster, 5);
    progress(load, "with five");
    [four, five]
}

/// Two of five die, the one that leads among them. Returns when they are back.
fn lose_two(cluster: &Cluster, load: &Load) {
    cluster.dfs(&["admin", "meta", "transfer-leader", "3"]).must();
    progress(load, "after the leader was changed");
    let dead = ["meta-3", "meta-2"];
    cluster.kill(&dead);
    progress(load, "with three of five");
    dead.iter().for_each(|name| cluster.start_server(name));
    wait_up(cluster, 5);
    progress(load, "with all of them again");
}

/// Five become three, by those that were there at first. Their processes end.
fn shrink(cluster: &Cluster, load: &Load) {
    cluster.dfs(&["admin", "meta", "transfer-leader", "1"]).must();
    assert_eq!(cluster.leader(), "meta-1");
    assert_eq!(change(cluster, &["remove", "1", "--yes"]), (json!([2, 3, 4, 5]), json!([])));
    progress(load, "after the leader was removed");
    assert_eq!(change(cluster, &["remove", "2", "--yes"]), (json!([3, 4, 5]), json!([])));
    progress(load, "with three");
    for name in ["meta-1", "meta-2"] {
        wait_until(&format!("{name} to say that it was removed"), TOLD_LIMIT, || {
            cluster.log(name).contains("this metaserver was removed from its cluster")
        });
    }
    cluster.kill(&["meta-1", "meta-2"]);
    wait_up(cluster, 3);
}

#[test]
fn three_metaservers_become_five_and_three_others_while_clients_write() {
    tests::skip_if!(no_mount);
    let mut cluster = Cluster::start();
    let places: Vec<(PathBuf, String)> =
        (0..WRITERS).map(|writer| (cluster.mount(&format!("m{writer}")), format!("writer-{writer}"))).collect();
    let load = Load::start_paced(59, &places, PAUSE);
    progress(&load, "at first");

    let _extra = grow(&cluster, &load);
    lose_two(&cluster, &load);
    shrink(&cluster, &load);
    // The only one left that anybody was configured with: the others had to be learnt.
    cluster.kill(&["meta-3"]);
    progress(&load, "by those alone that came later");
    cluster.start_server("meta-3");
    wait_up(&cluster, 3);
    progress(&load, "at last");

    let ledgers = load.stop();
    let failed: Vec<&String> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{} operations failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
    for writer in 0..WRITERS {
        cluster.unmount(&format!("m{writer}"));
    }
    let fresh = cluster.mount("fresh");
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(&fresh).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.unmount("fresh");
    wait_until("the cluster to be well", PROCESS_LIMIT, || cluster.status()["health"] == "ok");
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    let events = cluster.dfs(&["admin", "events", "--json"]).must();
    for what in ["metaserver m4 at", "metaserver m5 votes", "metaserver m1 removed"] {
        assert!(events.text().contains(what), "{what} is not in {events}");
    }
}
