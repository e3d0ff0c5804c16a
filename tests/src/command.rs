//! Runs a program with a limit.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
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

/// Runs it to its end, or kills it at `limit`. Output goes through files: a program that leaves a daemon behind which
/// holds its standard output must not keep us waiting.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    let line = format!("{command:?}");
    let mut out = tempfile::tempfile().expect("a temporary file can be made");
    let mut err = tempfile::tempfile().expect("a temporary file can be made");
    let dup = |file: &File| Stdio::from(file.try_clone().expect("a descriptor can be duplicated"));
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(dup(&out))
        .stderr(dup(&err))
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let (code, timed_out) = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break (status.code(), false);
        }
        if start.elapsed() > limit {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
            break (None, true);
        }
        std::thread::sleep(POLL);
    };
    let took = start.elapsed();
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a temporary file can be read");
        bytes
    };
    let err = String::from_utf8_lossy(&read(&mut err)).into_owned();
    Ended { line, code, timed_out, out: read(&mut out), err, took }
}
