//! The files that README names are there, and the sample configurations with README's steps make a cluster of several
//! "machines" (addresses of the loopback network, each server started by itself).

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::{Cluster, program};
use tests::command::{Ended, run};
use tests::content::Content;
use tests::wait::wait_until;

/// The cluster serves within this.
const SERVE_LIMIT: Duration = Duration::from_secs(60);
/// One command takes this long at most.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

fn top() -> PathBuf {
    // Tests run in the package: a checkout elsewhere may share what was built.
    std::env::current_dir().unwrap().parent().unwrap().into()
}

#[test]
fn every_file_that_readme_and_runbook_link_to_is_there() {
    for (text, base) in [("README.md", top()), ("deploy/RUNBOOK.md", top().join("deploy"))] {
        let text = fs::read_to_string(top().join(text)).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            assert!(base.join(target).exists(), "README or runbook links to {target}, which is not there");
        }
    }
}

/// The last column of the runbook's table names what executes each step.
#[test]
fn every_test_that_the_runbook_names_is_there() {
    let text = fs::read_to_string(top().join("deploy/RUNBOOK.md")).unwrap();
    let (_, table) = text.split_once("| executed by |").unwrap();
    let last = table.lines().filter_map(|line| line.trim_end_matches('|').rsplit('|').next());
    let named: Vec<&str> = last.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(top().join(format!("tests/tests/{name}.rs")).exists(), "the runbook names {name}, which is no test");
    }
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Starts a server with a configuration made of the sample and these replacements.
fn start(dir: &Path, sample: &str, name: &str, replace: &[(&str, String)]) -> Server {
    let mut text = fs::read_to_string(top().join("deploy").join(format!("{sample}.toml"))).unwrap();
    for (from, to) in replace {
        assert!(text.contains(from), "the sample says {from}");
        text = text.replace(from, to);
    }
    let config = dir.join(format!("{name}.toml"));
    fs::write(&config, text).unwrap();
    let log = fs::File::create(dir.join(format!("log/{name}.log"))).unwrap();
    let mut command = Command::new(program(sample));
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Server(command.spawn().unwrap())
}

/// Ports that are free now, held until all are known.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let held: [TcpListener; COUNT] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

#[test]
fn the_sample_configurations_make_a_cluster_in_readmes_steps() {
    // Only for its directory and its care for what is left behind.
    let cluster = Cluster::prepare();
    let dir = cluster.dir();
    fs::create_dir(dir.join("log")).unwrap();
    let ports: [u16; 6] = free_ports();
    let at = |index: usize| format!("127.0.0.1:{}", ports[index]);
    let metas = [("node1:7500", at(0)), ("node2:7500", at(1)), ("node3:7500", at(2))];
    let data = |name: &str| dir.join("data").join(name).display().to_string();

    let key = dir.join("admin.key").display().to_string();
    fs::write(&key, "the key of an administrator").unwrap();
    let mut servers = Vec::new();
    for node in 1..=3_usize {
        let name = format!("meta-{node}");
        let mut replace = vec![
            ("node_id = 1", format!("node_id = {node}")),
            ("advertise = \"node1:7500\"", format!("advertise = \"{}\"", at(node - 1))),
            ("0.0.0.0:7500", at(node - 1)),
            ("/var/lib/dfs/metaserver", data(&name)),
            ("/etc/dfs/admin.key", key.clone()),
        ];
        replace.extend(metas.clone());
        servers.push(start(dir, "metaserver", &name, &replace));
    }
    let config = dir.join("dfs.toml");
    let mut client = fs::read_to_string(top().join("deploy/dfs.toml")).unwrap();
    for (from, to) in &metas {
        client = client.replace(from, to);
    }
    fs::write(&config, client).unwrap();
    let dfs = |args: &[&str]| -> Ended {
        run(Command::new(program("dfs")).env_remove("DFS_META").env("DFS_CONFIG", &config).args(args), COMMAND_LIMIT)
    };
    let all = [at(0), at(1), at(2)].join(",");
    wait_until("the cluster to be formatted", SERVE_LIMIT, || dfs(&["admin", "format", "--meta", &all]).ok());
    dfs(&["admin", "format", "--meta", &all]).must_fail_cleanly();

    for server in 1..=3_usize {
        let name = format!("chunk-{server}");
        let mut replace = vec![
            ("store1:7440", at(2 + server)),
            ("0.0.0.0:7440", at(2 + server)),
            ("/srv/dfs", data(&name)),
            ("store1", format!("store{server}")),
            ("10737418240", (64 << 20).to_string()),
        ];
        replace.extend(metas.clone());
        fs::create_dir_all(dir.join("data").join(&name)).unwrap();
        servers.push(start(dir, "chunkserver", &name, &replace));
    }
    let (source, back) = (dir.join("source"), dir.join("back"));
    let content = Content::new(14, 1, 1);
    content.write_file(&source, 9_000_000).unwrap();
    wait_until("a first write", SERVE_LIMIT, || dfs(&["put", source.to_str().unwrap(), "/first"]).ok());
    dfs(&["get", "/first", back.to_str().unwrap()]).must();
    content.check_file(&back, 9_000_000).unwrap();
    assert!(dfs(&["admin", "status"]).must().text().contains("leader"));
    dfs(&["admin", "fsck"]).must_fail_cleanly(); // dfs.toml names no key: this is a client like any other
    let mut fsck = Command::new(program("dfs"));
    fsck.env_remove("DFS_META").env("DFS_CONFIG", &config).env("DFS_ADMIN_KEY_FILE", &key).args(["admin", "fsck"]);
    assert!(run(&mut fsck, COMMAND_LIMIT).must().text().contains("clean"));
}
