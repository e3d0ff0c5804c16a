//! One process of a development cluster: start it in the background, find it again, stop it.
//!
//! A process is known by `DIR/run/NAME.pid`. A pid is believed only if `/proc/PID/cmdline` still names what was started
//! (pids are reused), and a zombie counts as gone.

use crate::cli::failure::Failure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// How often a wait looks again.
pub(crate) const POLL_EVERY: Duration = Duration::from_millis(20);
/// How long a process may take to end by itself after `SIGTERM`.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long the kernel may take to end a process after `SIGKILL`.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How often, and with what pause between, a new process is looked for: together two seconds.
const SEEN_LOOKS: u32 = 1000;
const SEEN_PAUSE: Duration = Duration::from_millis(2);
/// How many lines of a log an error shows.
const LOG_TAIL_LINES: usize = 12;
/// How much of the end of a log is read for that, in bytes.
const LOG_TAIL_LEN: u64 = 16 << 10;

/// A process that belongs to the cluster, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// `meta-1`, `chunk-2`, `mount`.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// An argument nobody else has: it must be in the command line of a process that is believed to be this one.
    pub(crate) mark: String,
    /// Holds the pid.
    pub(crate) pid_file: PathBuf,
    /// Takes standard output and error.
    pub(crate) log_file: PathBuf,
}

impl Process {
    /// Its pid if it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        (pid > 1 && runs_with(pid, &self.mark)).then_some(pid)
    }

    /// Starts it in the background, in a process group of its own, and records its pid.
    pub(crate) fn start(&self) -> Result<Child, Failure> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .map_err(|e| Failure::at("open log", self.log_file.display(), e))?;
        let errors = log.try_clone().map_err(|e| Failure::at("open log", self.log_file.display(), e))?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|e| {
                Failure::at("start", self.program.display(), e).advice("build it first: cargo build --workspace")
            })?;
        write_atomically(&self.pid_file, &format!("{}\n", child.id()))?;
        // Right after `exec` the kernel shows no command line yet: until it does, nobody could find the process again.
        for _ in 0..SEEN_LOOKS {
            if self.pid().is_some() || !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(SEEN_PAUSE);
        }
        Ok(child)
    }

    /// Sends a signal. False if it does not run.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
    }

    /// Waits until it is gone. False if it still runs after `limit`.
    pub(crate) async fn wait_gone(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.pid().is_some() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        true
    }

    /// Asks it to end, waits, and ends it by force if it did not. True if force was needed.
    pub(crate) async fn stop(&self) -> Result<bool, Failure> {
        if !self.signal(Signal::SIGTERM) || self.wait_gone(STOP_LIMIT).await {
            return Ok(false);
        }
        self.signal(Signal::SIGKILL);
        if self.wait_gone(KILL_LIMIT).await {
            return Ok(true);
        }
        Err(Failure::new(format!("stop {}: it still runs after SIGKILL", self.name))
            .advice("it hangs in the kernel: see its stack in /proc/PID/stack"))
    }

    /// The last lines of its log, indented, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let text = read_tail(&self.log_file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL_LINES);
        let mut tail = format!("last lines of {}:", self.log_file.display());
        for line in &lines[from..] {
            tail.push_str("\n    ");
            tail.push_str(line);
        }
        tail
    }
}

/// True if this pid runs (not as a zombie) and its command line holds `mark` as one argument. A process that was killed
/// loses its command line before its locks and ports: it counts as running until those are gone too.
pub(crate) fn runs_with(pid: i32, mark: &str) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    if cmdline.is_empty() {
        return is_ending(pid);
    }
    cmdline.split(|b| *b == 0).any(|arg| arg == mark.as_bytes())
}

/// True between the end of a process's memory and the end of its last thread.
fn is_ending(pid: i32) -> bool {
    const EXITING: u64 = 0x4; // `PF_EXITING` of the kernel; its own threads have no command line either
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state, ppid, pgrp, session, tty, tpgid, flags.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let exiting = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & EXITING != 0);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    exiting && (fields.first() != Some(&"Z") || threads > 1)
}

/// Replaces a small file so that a reader sees the old or the new one, never half of one.
pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(|e| Failure::at("write", path.display(), e))
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_LEN)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_LEN).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path, seconds: &str) -> Process {
        Process {
            name: "sleeper".into(),
            program: "sleep".into(),
            args: vec![seconds.into()],
            mark: seconds.into(),
            pid_file: dir.join("sleeper.pid"),
            log_file: dir.join("sleeper.log"),
        }
    }

    #[tokio::test]
    async fn a_started_process_is_found_again_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path(), "1234.5");
        assert_eq!(process.pid(), None);
        let mut child = process.start().unwrap();
        assert_eq!(process.pid(), i32::try_from(child.id()).ok());
        process.signal(Signal::SIGTERM);
        child.wait().unwrap();
        assert!(process.wait_gone(STOP_LIMIT).await);
        assert!(!process.stop().await.unwrap(), "stopping what does not run is fine");
    }

    #[test]
    fn a_reused_pid_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path(), "no such argument");
        fs::write(&process.pid_file, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(process.pid(), None);
        fs::write(&process.pid_file, "rubbish").unwrap();
        assert_eq!(process.pid(), None);
    }
}
