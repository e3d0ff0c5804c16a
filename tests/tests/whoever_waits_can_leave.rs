//! While no server answers, programs that wait for a mount can be killed, and the mount itself can be taken away: with `dfs
//! umount`, or by telling its process to end, which saves what is unsaved if it can.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::wait::{wait_for, wait_until};
use tokio::time::Instant;

/// The deadline of clients that are to be left before it.
const LONG: Duration = Duration::from_secs(120);
/// The deadline of clients that give up by themselves.
const SHORT: Duration = Duration::from_secs(5);
/// A program that was killed is gone within this, on a busy machine; the mount looks five times a second.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// What the end of a mount takes beyond its deadline: its requests' end (10 s), its tasks' end (5 s), and a busy machine.
const END_SLACK: Duration = Duration::from_secs(25);

fn start(op_timeout: Duration) -> Cluster {
    let cluster = Cluster::start();
    cluster.configure("dfs.toml", &format!("op_timeout_s = {}", op_timeout.as_secs()));
    cluster
}

fn signal_all(cluster: &Cluster, signal: Signal) {
    for name in cluster.servers() {
        assert!(cluster.signal_if_running(&name, signal), "{name}");
    }
}

/// A program, in a shell, in this directory.
fn shell(dir: &Path, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// A program that has written to a new file and keeps it open: the bytes are in the mount's memory only.
fn with_unsaved_data(dir: &Path, name: &str) -> Killed {
    const CODE: &str = "import os, sys, time\nheld = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nos.write(held, b'kept')\ntime.sleep(1000)";
    let file = dir.join(name);
    let child = Command::new("python3")
        .args(["-c", CODE])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = Killed(child.unwrap());
    wait_until("a file with unsaved data", GONE_LIMIT, || file.metadata().is_ok_and(|file| file.len() == 4));
    child
}

/// A program that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may be gone
    }
}

fn must_go(what: &str, child: &mut Child) {
    wait_for(what, GONE_LIMIT, || child.try_wait().unwrap());
}

#[test]
fn programs_that_wait_can_be_killed() {
    tests::skip_if!(no_mount, no_python);
    let mut cluster = start(LONG);
    let before = cluster.mount("before");
    for name in ["read", "remove", "list"] {
        std::fs::create_dir(before.join(name)).unwrap();
        std::fs::write(before.join(name).join("file"), vec![7; 300_000]).unwrap();
    }
    cluster.unmount("before");
    let mnt = cluster.mount("m"); // it has nothing in memory
    let mut held = with_unsaved_data(&mnt, "held");

    signal_all(&cluster, Signal::SIGSTOP);
    let scripts = [
        "exec cat read/file",
        "exec ls list",
        "exec rm remove/file",
        "exec dd if=/dev/zero of=new bs=4k count=1 conv=fsync",
    ];
    let waiting: Vec<Killed> = scripts.iter().map(|script| Killed(shell(&mnt, script))).collect();
    std::thread::sleep(Duration::from_secs(2));
    for (at, (mut child, script)) in waiting.into_iter().zip(scripts).enumerate() {
        let child = &mut child.0;
        assert_eq!(child.try_wait().unwrap(), None, "it waits: {script}");
        let end = if at == 0 { Signal::SIGINT } else { Signal::SIGKILL };
        kill(Pid::from_raw(child.id().cast_signed()), end).unwrap();
        must_go(script, child);
    }
    held.0.kill().unwrap();
    must_go("one that has unsaved data", &mut held.0);

    signal_all(&cluster, Signal::SIGCONT);
    wait_until("what was unsaved", LONG, || std::fs::read(mnt.join("held")).is_ok_and(|read| read == b"kept"));
    assert_eq!(std::fs::read(mnt.join("read/file")).unwrap(), vec![7; 300_000]);
    wait_until("what was unsaved, elsewhere", LONG, || cluster.dfs(&["cat", "/held"]).text() == "kept");
}

#[test]
fn a_mount_without_servers_can_be_taken_away() {
    tests::skip_if!(no_mount);
    for by_signal in [false, true] {
        let mut cluster = start(SHORT);
        let mnt = cluster.mount("m");
        std::fs::write(mnt.join("file"), b"kept").unwrap();
        nix::unistd::sync(); // `close` left it to be told
        std::thread::sleep(Duration::from_secs(2));
        let process = Pid::from_raw(cluster.mount_pid("m").cast_signed());
        cluster.kill(&cluster.servers());
        let began = Instant::now();
        if by_signal {
            kill(process, Signal::SIGTERM).unwrap();
            wait_until("the mount's end", SHORT + END_SLACK, || !is_mounted(&mnt));
        } else {
            let ended = run(&mut cluster.command(&["umount", &mnt.display().to_string()]), SHORT + END_SLACK);
            assert!(ended.ok(), "nothing was unsaved: {ended}");
        }
        assert!(!is_mounted(&mnt), "after {:?}", began.elapsed());
    }
}

#[test]
fn a_mount_that_is_told_to_end_saves_what_is_unsaved() {
    tests::skip_if!(no_mount, no_python);
    let mut cluster = start(SHORT);
    let mnt = cluster.mount("m");
    let _held = with_unsaved_data(&mnt, "held");
    kill(Pid::from_raw(cluster.mount_pid("m").cast_signed()), Signal::SIGTERM).unwrap();
    wait_until("the mount's end", SHORT + END_SLACK, || !is_mounted(&mnt));
    assert_eq!(cluster.dfs(&["cat", "/held"]).must().text(), "kept");
}

fn is_mounted(point: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}
