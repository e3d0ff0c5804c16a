//! PostgreSQL keeps its promises on a mount: after kill -9 of all its processes, and of a metaserver and a chunkserver
//! meanwhile, it comes up again with every transaction that was acknowledged, and with sums that agree.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT, wait_gone};
use tests::command::{Ended, as_user, run};
use tests::content::full;
use tests::wait::{wait_for, wait_until};

/// `nobody`: PostgreSQL does not run as root.
const USER: u32 = 65_534;
const LIMIT: Duration = Duration::from_secs(180);
const CLIENTS: u64 = 4;

/// A database in a directory of a mount.
struct Database {
    bin: PathBuf,
    data: PathBuf,
    /// Its socket, lock file and log, not on the mount.
    beside: PathBuf,
}

impl Database {
    fn new(cluster: &Cluster, mnt: &Path) -> Database {
        let beside = cluster.dir().join("beside");
        let data = mnt.join("db");
        for dir in [&beside, &data] {
            fs::create_dir(dir).unwrap();
            chown(dir, Some(USER), Some(USER)).unwrap();
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        Database { bin: tests::tools::postgres().unwrap(), data, beside }
    }

    /// One of PostgreSQL's programs; `BESIDE` and `DATA` stand for its directories.
    fn command(&self, line: &str) -> Command {
        let beside = self.beside.to_str().unwrap();
        let line = line.replace("BESIDE", beside).replace("DATA", self.data.to_str().unwrap());
        let mut command = as_user(USER, &[], &format!("exec {}/{line}", self.bin.display()));
        command.current_dir(&self.beside).env("LC_ALL", "C").env("HOME", beside).env("PGHOST", beside);
        command.env("PGUSER", "nobody").env("PGDATABASE", "postgres");
        command
    }

    fn run(&self, line: &str) -> Ended {
        run(&mut self.command(line), LIMIT)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.beside.join("log")).unwrap_or_default()
    }

    /// Starts the server, as our own child (who would not be waited for, would seem to run when it was killed), and waits
    /// until it answers.
    fn start(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.beside.join("log")).unwrap();
        let mut command = self.command("postgres -D DATA -k BESIDE -c listen_addresses= -c fsync=on");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = command.spawn().unwrap();
        // Whoever cleans up after the cluster ends it too.
        fs::write(self.beside.with_file_name("run").join("database.pid"), server.id().to_string()).unwrap();
        wait_until("the database to answer", LIMIT, || {
            assert!(server.try_wait().unwrap().is_none(), "it has ended:\n{}", self.log());
            self.run("pg_isready -q").ok()
        });
        server
    }

    /// kill -9 of the server and all its processes.
    fn kill(&self, mut server: Child) {
        let main = server.id();
        let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
        let pids: Vec<Pid> = children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
        server.kill().unwrap();
        for pid in &pids {
            let _gone_already = kill(*pid, Signal::SIGKILL);
        }
        server.wait().unwrap();
        wait_gone(&pids);
    }

    /// A number that it answers.
    fn number(&self, query: &str) -> i64 {
        let ended = self.run(&format!("psql -X -At -c '{query}'")).must();
        ended.text().trim().parse().unwrap_or_else(|error| panic!("{error}: {ended}"))
    }

    /// What each transaction of pgbench keeps equal; and every acknowledged one is there.
    fn check(&self, acknowledged: u64, runs: u64) {
        let sum = |table: &str, column: &str| self.number(&format!("SELECT coalesce(sum({column}), 0) FROM {table}"));
        let history = sum("pgbench_history", "delta");
        let others = [("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance")];
        for (table, column) in others {
            assert_eq!(sum(&format!("pgbench_{table}"), column), history, "{table}");
        }
        let rows = u64::try_from(self.number("SELECT count(*) FROM pgbench_history")).unwrap();
        assert!(rows >= acknowledged, "{acknowledged} transactions were acknowledged, {rows} are there");
        assert!(rows <= acknowledged + CLIENTS * runs, "{rows} transactions, {acknowledged} acknowledged");
        self.run("pg_amcheck --all --heapallindexed --install-missing").must();
    }
}

/// Transactions that pgbench was told of.
fn acknowledged(ended: &Ended) -> u64 {
    let line = ended.text().lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let line = line.unwrap_or_else(|| panic!("{ended}"));
    line.split('/').next().unwrap().trim().parse().unwrap()
}

#[test]
fn acknowledged_transactions_survive_kills_of_everything_involved() {
    tests::skip_if!(no_mount, no_root, no_postgres);
    let mut cluster = Cluster::start();
    cluster.open_to_all();
    let mnt = cluster.mount("m");
    let database = Database::new(&cluster, &mnt);
    database.run("initdb -D DATA -U nobody -A trust --locale=C -E UTF8 -k").must();
    let mut server = database.start();
    database.run("pgbench -i -q -s 1").must();
    let (runs, seconds) = if full() { (10, 30) } else { (1, 4) };
    let mut all = 0;
    for round in 0..runs {
        let before = database.number("SELECT count(*) FROM pgbench_history");
        let line = format!("pgbench -n -c {CLIENTS} -j 2 -T {}", seconds * 4);
        let ended = std::thread::scope(|scope| {
            let bench = scope.spawn(|| database.run(&line));
            wait_for("transactions", LIMIT, || {
                let now = database.number("SELECT count(*) FROM pgbench_history");
                (now >= before + 20).then_some(())
            });
            // A server of each kind, the leader among them, while it works; then the database itself.
            let servers = [cluster.leader(), format!("chunk-{}", 1 + round % 3)];
            cluster.kill(&servers);
            std::thread::sleep(Duration::from_secs(seconds));
            database.kill(server);
            servers.iter().for_each(|name| cluster.start_server(name));
            bench.join().unwrap()
        });
        all += acknowledged(&ended);
        wait_until("all servers to be up", PROCESS_LIMIT, || {
            let status = cluster.status();
            let all_up = |kind: &str| status[kind].as_array().unwrap().iter().all(|server| server["up"] == true);
            all_up("chunkservers") && all_up("metaservers")
        });
        server = database.start();
        database.check(all, round + 1);
    }
    eprintln!("{all} transactions were acknowledged in {runs} runs");
    database.run("pg_ctl -D DATA -w -m fast stop").must();
    server.wait().unwrap();
    database.run("pg_checksums -D DATA --check").must();
    cluster.unmount("m");
}
