//! A `dfs dev` cluster of real processes in a temporary directory.
//!
//! Nothing is left behind: dropping it unmounts, stops and removes everything; what a killed test could not remove, the
//! next one does. If the test panics, the ends of all logs are shown first.

use crate::command::{Ended, run};
use crate::wait::{wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// `dfs dev up` and `down`.
pub const UP_LIMIT: Duration = Duration::from_secs(120);
/// Any other command, unless the test says otherwise: above the client's deadline of 30 s for one operation.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// A mount serves within this, and a killed process is gone.
pub const PROCESS_LIMIT: Duration = Duration::from_secs(30);
/// Names of the directories that tests leave when they are killed.
const PREFIX: &str = "dfs-test-";
/// Lines of each log shown after a panic.
const LOG_LINES: usize = 25;

/// A running cluster.
pub struct Cluster {
    dir: TempDir,
    mounts: Vec<Mount>,
}

/// A mount of its own, beside the one of `dfs dev`.
pub struct Mount {
    name: String,
    point: PathBuf,
    child: Child,
}

/// Where a program that belongs to the build of this test lies.
///
/// # Panics
/// If it was not built.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a test knows its own path");
    let debug = this.parent().and_then(Path::parent).expect("tests lie in TARGET/debug/deps");
    let path = debug.join(name);
    assert!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

impl Cluster {
    /// Three metaservers and three chunkservers, not mounted.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start() -> Cluster {
        Cluster::start_with(3, 3)
    }

    /// That many servers, not mounted.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_with(metaservers: usize, chunkservers: usize) -> Cluster {
        let cluster = Cluster::prepare();
        let counts = [metaservers.to_string(), chunkservers.to_string()];
        cluster.dev("up", &["--metaservers", &counts[0], "--chunkservers", &counts[1]]).must();
        cluster
    }

    /// Only the directory: `up` starts the default cluster in it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn prepare() -> Cluster {
        crate::command::prepare();
        sweep();
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("a temporary directory can be made");
        fs::write(dir.path().join("owner"), std::process::id().to_string()).expect("the owner can be noted");
        Cluster { dir, mounts: Vec::new() }
    }

    /// Its directory, as `dfs dev --dir` knows it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lets all users come to its mounts: temporary directories are their owner's alone.
    ///
    /// # Panics
    /// If that fails.
    pub fn open_to_all(&self) {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.dir(), mode).expect("our own directory");
    }

    /// Where the metaservers listen, from their configurations.
    ///
    /// # Panics
    /// If the cluster was never up.
    pub fn metaservers(&self) -> Vec<String> {
        let names = self.servers().into_iter().filter(|name| name.starts_with("meta-"));
        let listens = |name: String| {
            let text = fs::read_to_string(self.dir().join(format!("conf/{name}.toml"))).expect("a configuration");
            let line = text.lines().find_map(|line| line.strip_prefix("listen = ")).expect("it listens somewhere");
            line.trim_matches('"').to_owned()
        };
        names.map(listens).collect()
    }

    /// The data directory of a server.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir().join("data").join(name)
    }

    /// Runs `dfs dev VERB --dir DIR ARGS`.
    pub fn dev(&self, verb: &str, args: &[&str]) -> Ended {
        let mut command = Command::new(program("dfs"));
        command.args(["dev", verb, "--dir"]).arg(self.dir()).args(args);
        run(clean(&mut command), UP_LIMIT)
    }

    /// A `dfs` command for this cluster, to be run by the caller.
    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(program("dfs"));
        clean(&mut command).env("DFS_CONFIG", self.dir().join("dfs.toml")).args(args);
        command
    }

    /// Runs `dfs ARGS`.
    pub fn dfs<A: AsRef<OsStr>>(&self, args: &[A]) -> Ended {
        run(&mut self.command(args), COMMAND_LIMIT)
    }

    /// Starts whatever is down.
    ///
    /// # Panics
    /// If the cluster does not serve within the limit.
    #[track_caller]
    pub fn up(&self) -> Ended {
        self.dev("up", &[]).must()
    }

    /// The servers' names, in order.
    ///
    /// # Panics
    /// If the cluster was never up.
    pub fn servers(&self) -> Vec<String> {
        let configs = fs::read_dir(self.dir().join("conf")).expect("the cluster was up");
        let names = configs.flatten().filter_map(|file| file.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".toml")?.to_string())).collect();
        names.sort();
        names
    }

    /// The pid of a process of the cluster, if it runs.
    pub fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.dir().join(format!("run/{name}.pid"))).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        belongs(pid, self.dir()).then_some(Pid::from_raw(pid))
    }

    /// kill -9, at once, of all these processes; returns when they are gone.
    ///
    /// # Panics
    /// If one does not run.
    #[track_caller]
    pub fn kill(&self, names: &[impl AsRef<str>]) {
        let pids: Vec<Pid> = names
            .iter()
            .map(|name| self.pid(name.as_ref()).unwrap_or_else(|| panic!("{} does not run", name.as_ref())))
            .collect();
        for pid in &pids {
            kill(*pid, Signal::SIGKILL).expect("our own process can be killed");
        }
        wait_gone(&pids);
    }

    /// Sends a signal to a process of the cluster; false if it does not run.
    pub fn signal_if_running(&self, name: &str, signal: Signal) -> bool {
        self.pid(name).is_some_and(|pid| kill(pid, signal).is_ok())
    }

    /// Starts one server that is down; does not wait until it serves.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start_server(&self, name: &str) {
        self.dev("start", &[name]).must();
    }

    /// Puts lines in front of a server's configuration; they count from its next start.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn configure(&self, file: &str, lines: &str) {
        let path = self.dir().join(file);
        let old = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(&path, format!("{lines}\n{old}")).expect("a configuration can be written");
    }

    /// `dfs admin status --json`.
    ///
    /// # Panics
    /// If it fails or is not JSON.
    #[track_caller]
    pub fn status(&self) -> Value {
        let ended = self.dfs(&["admin", "status", "--json"]).must();
        serde_json::from_slice(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended}"))
    }

    /// The name of the metaserver that leads, as soon as one does.
    ///
    /// # Panics
    /// If none does within the limit.
    #[track_caller]
    pub fn leader(&self) -> String {
        wait_for("a leader", PROCESS_LIMIT, || {
            let ended = self.dfs(&["admin", "status", "--json"]);
            let status: Value = serde_json::from_slice(&ended.out).ok()?;
            Some(format!("meta-{}", status["leader"].as_u64()?))
        })
        .0
    }

    /// What a process of the cluster logged so far.
    pub fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.dir().join(format!("log/{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Mounts the cluster once more and returns where. Its process is `name`.
    ///
    /// # Panics
    /// If it is not mounted within the limit.
    #[track_caller]
    pub fn mount(&mut self, name: &str) -> PathBuf {
        self.mount_with(name, &[])
    }

    /// As [`Cluster::mount`], with more arguments.
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    pub fn mount_with(&mut self, name: &str, args: &[&str]) -> PathBuf {
        let point = self.dir().join("mnt").join(name);
        fs::create_dir_all(&point).expect("a mount point can be made");
        let log = fs::File::options().create(true).append(true).open(self.dir().join(format!("log/{name}.log")));
        let log = log.expect("a log can be opened");
        let mut command = self.command(&["mount", "--foreground"]);
        command
            .args(args)
            .arg(&point)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be duplicated"));
        let child = command.stderr(log).spawn().expect("dfs starts");
        fs::write(self.dir().join(format!("run/{name}.pid")), child.id().to_string()).expect("a pid can be noted");
        let mut mount = Mount { name: name.into(), point: point.clone(), child };
        let end = wait_for("a mount", PROCESS_LIMIT, || match mount.child.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            _ => is_mounted(&mount.point).then_some(Ok(())),
        });
        assert!(end.0.is_ok(), "the mount ended: {:?}\n{}", end.0, tail(&self.log(name)));
        self.mounts.push(mount);
        point
    }

    /// Unmounts what `mount` mounted, which writes everything out first, and waits for its process to end.
    ///
    /// # Panics
    /// If that fails or takes too long.
    #[track_caller]
    pub fn unmount(&mut self, name: &str) {
        let mut mount = self.take_mount(name);
        self.dfs(&[OsStr::new("umount"), mount.point.as_os_str()]).must();
        let status = wait_for("a mount to end", PROCESS_LIMIT, || mount.child.try_wait().expect("a child")).0;
        assert!(status.success(), "{name} ended with {status}\n{}", tail(&self.log(name)));
    }

    /// kill -9 of a mount's process; the dead mount point is removed.
    ///
    /// # Panics
    /// If there is no such mount.
    pub fn kill_mount(&mut self, name: &str) {
        drop(self.take_mount(name));
    }

    /// The process of a mount.
    ///
    /// # Panics
    /// If there is no such mount.
    pub fn mount_pid(&self, name: &str) -> u32 {
        self.mounts.iter().find(|mount| mount.name == name).expect("it was mounted").child.id()
    }

    fn take_mount(&mut self, name: &str) -> Mount {
        let index = self.mounts.iter().position(|mount| mount.name == name).expect("it was mounted");
        self.mounts.swap_remove(index)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // First the process, then the mount point: a hanging file system must not make us hang in `umount`.
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
        detach(&self.point);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        self.mounts.clear();
        reap(self.dir.path());
    }
}

impl Cluster {
    fn show_logs(&self) {
        if let Some(keep) = std::env::var_os("DFS_TEST_KEEP") {
            let to = PathBuf::from(keep).join(self.dir().file_name().expect("it has a name"));
            eprintln!("logs kept in {} (DFS_TEST_KEEP)", to.display());
            let _best_effort = run(Command::new("cp").arg("-r").arg(self.dir().join("log")).arg(to), COMMAND_LIMIT);
        }
        let mut logs: Vec<_> = fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten().collect();
        logs.sort_by_key(fs::DirEntry::file_name);
        for log in logs {
            let text = String::from_utf8_lossy(&fs::read(log.path()).unwrap_or_default()).into_owned();
            eprintln!("----- end of {}\n{}", log.file_name().to_string_lossy(), tail(&text));
        }
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Without the settings of the person who runs the test.
fn clean(command: &mut Command) -> &mut Command {
    for name in ["DFS_CONFIG", "DFS_META"] {
        command.env_remove(name);
    }
    command
}

/// True if this pid runs, is no zombie, and was started for a cluster in `dir`.
fn belongs(pid: i32, dir: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    pid > 1 && String::from_utf8_lossy(&line).contains(&*dir.to_string_lossy())
}

/// Waits until these processes are gone with all they held. A killed process loses its command line first, its locks
/// and ports with its last thread.
///
/// # Panics
/// If that takes too long.
pub fn wait_gone(pids: &[Pid]) {
    let gone = |pid: &Pid| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
        let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        zombie && fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
    };
    wait_until("killed processes to go", PROCESS_LIMIT, || pids.iter().all(gone));
}

/// True if something is mounted exactly there.
fn is_mounted(point: &Path) -> bool {
    mounts_below(point).iter().any(|mounted| mounted == point)
}

/// Mount points at or below a directory, deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    points.sort();
    points.reverse();
    points
}

/// Takes a mount point away even if its file system is dead.
fn detach(point: &Path) {
    if is_mounted(point) {
        let program = if nix::unistd::geteuid().is_root() { "umount" } else { "fusermount3" };
        let flags = if program == "umount" { "-l" } else { "-uz" };
        let _best_effort = run(Command::new(program).arg(flags).arg(point), PROCESS_LIMIT);
    }
}

/// Ends and unmounts everything of a cluster's directory.
fn reap(dir: &Path) {
    let pids = fs::read_dir(dir.join("run")).into_iter().flatten().flatten();
    let pids = pids.filter_map(|file| fs::read_to_string(file.path()).ok()?.trim().parse::<i32>().ok());
    for pid in pids.filter(|pid| belongs(*pid, dir)) {
        let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for point in mounts_below(dir) {
        detach(&point);
    }
}

/// Removes what tests left that were killed before they could.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let owner = fs::read_to_string(entry.path().join("owner")).ok().and_then(|pid| pid.parse::<i32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            reap(&entry.path());
            let _best_effort = fs::remove_dir_all(entry.path());
        }
    }
}
