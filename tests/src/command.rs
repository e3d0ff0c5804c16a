//! Runs a program with a limit.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at whether a program has ended.
const POLL: Duration = Duration::from_millis(2);

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The program and its arguments, for messages.
    pub line: String,
    /// Its exit code; `None`: it was killed, by a signal or at the limit.
    pub code: Option<i32>,
    /// True if it was still running at the limit.
    pub timed_out: bool,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
    /// How long it ran.
    pub took: Duration,
}

impl Ended {
    /// True if the exit code was 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output as text.
    ///
    /// # Panics
    /// If it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("output of dfs is UTF-8")
    }

    /// Passes on what succeeded.
    ///
    /// # Panics
    /// If it failed, with everything it said.
    #[track_caller]
    pub fn must(self) -> Ended {
        assert!(self.ok(), "{self}");
        self
    }

    /// Checks that it failed as a person expects: in time, with code 1 or 2, and with one line that says why.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn must_fail_cleanly(self) -> Ended {
        assert!(!self.timed_out && matches!(self.code, Some(1 | 2)), "should have failed cleanly: {self}");
        assert!(!self.err.contains("panicked"), "{self}");
        assert!(!self.err.trim().is_empty(), "failed without a word: {self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = if self.timed_out { "still running".to_string() } else { format!("code {:?}", self.code) };
        let out = String::from_utf8_lossy(&self.out[..self.out.len().min(4096)]);
        write!(f, "`{}` after {:?}: {end}\n  stdout: {out}\n  stderr: {}", self.line, self.took, self.err)
    }
}

/// A shell that starts programs for us.
///
/// A new process gets copies of all our descriptors, which are closed when it starts its program; for a file on a mount
/// that means a flush, and so a wait for a cluster that may be down just then. The shell is started before any such file
/// is open, so what it starts has none.
struct Starter {
    shell: Child,
    dir: tempfile::TempDir,
    runs: u64,
}

static STARTER: Mutex<Option<Starter>> = Mutex::new(None);

impl Starter {
    fn new() -> Starter {
        let shell = Command::new("bash").arg("-s").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let dir = tempfile::Builder::new().prefix("dfs-run-").tempdir().expect("a temporary directory can be made");
        Starter { shell: shell.expect("there is a bash"), dir, runs: 0 }
    }

    /// Starts it in the background; its output, pid and exit code will stand in files that begin with the result.
    fn start(&mut self, command: &Command) -> PathBuf {
        self.runs += 1;
        let files = self.dir.path().join(self.runs.to_string());
        let at = quoted(files.as_os_str());
        let cd = command.get_current_dir().map_or(String::new(), |dir| format!("cd {} && ", quoted(dir.as_os_str())));
        let envs = command.get_envs().map(|(name, value)| match value {
            Some(value) => format!("export {}={}; ", name.to_string_lossy(), quoted(value)),
            None => format!("unset {}; ", name.to_string_lossy()),
        });
        let words = [command.get_program()].into_iter().chain(command.get_args()).map(quoted);
        let line = format!(
            "( {}( {cd}exec {} ) </dev/null >{at}.out 2>{at}.err & echo $! >{at}.pid; wait $!; \
             echo $? >{at}.new; mv {at}.new {at}.code ) </dev/null >/dev/null 2>&1 &\n",
            envs.collect::<String>(),
            words.collect::<Vec<_>>().join(" "),
        );
        let input = self.shell.stdin.as_mut().expect("it was piped");
        input.write_all(line.as_bytes()).expect("the shell reads");
        files
    }
}

/// A word for the shell.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_str().expect("tests use UTF-8 arguments").replace('\'', "'\\''"))
}

/// Runs it to its end, or kills it at `limit`. Output goes through files: a program that leaves a daemon behind which
/// holds its standard output must not keep us waiting. Standard input is empty.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    let line = format!("{command:?}");
    let start = Instant::now();
    let files = STARTER.lock().expect("no panic holds this lock").get_or_insert_with(Starter::new).start(command);
    let file = |end: &str| files.with_extension(end);
    let (code, timed_out) = loop {
        if let Ok(code) = std::fs::read_to_string(file("code")) {
            let code: i32 = code.trim().parse().expect("the shell writes a number");
            break ((code < 128).then_some(code), false);
        }
        if start.elapsed() > limit {
            let pid = std::fs::read_to_string(file("pid")).ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(pid) = pid {
                let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            break (None, true);
        }
        std::thread::sleep(POLL);
    };
    let took = start.elapsed();
    let read = |end: &str| std::fs::read(file(end)).unwrap_or_default();
    let err = String::from_utf8_lossy(&read("err")).into_owned();
    let ended = Ended { line, code, timed_out, out: read("out"), err, took };
    for end in ["out", "err", "pid", "code"] {
        let _best_effort = std::fs::remove_file(file(end));
    }
    ended
}

/// A shell script to be run by another user: `uid`, in the group of that number and in these. Needs root.
pub fn as_user(uid: u32, groups: &[u32], script: &str) -> Command {
    let all: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = if all.is_empty() { "--clear-groups".into() } else { format!("--groups={}", all.join(",")) };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={uid}"), groups, "--".into()]);
    command.args(["sh", "-c", script]);
    command
}

/// Starts the shell now, before files on mounts are open.
///
/// # Panics
/// If there is no bash.
pub fn prepare() {
    STARTER.lock().expect("no panic holds this lock").get_or_insert_with(Starter::new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_output_arguments_and_environment_come_through() {
        let script = "echo \"$1|$WORD\"; pwd; echo oops >&2; exit 3";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", "a 'b' $c\nd"]).env("WORD", "x y").env_remove("HOME").current_dir("/");
        let ended = run(&mut command, Duration::from_secs(10));
        assert_eq!((ended.code, ended.text(), ended.err.as_str()), (Some(3), "a 'b' $c\nd|x y\n/\n", "oops\n"));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_and_one_that_is_missing_fails() {
        let ended = run(Command::new("sleep").arg("1000"), Duration::from_millis(300));
        assert!(ended.timed_out && !ended.ok());
        assert!(!run(&mut Command::new("/does/not/exist"), Duration::from_secs(10)).ok());
    }
}
