//! One progress bar for a whole command: on a terminal, and quiet otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes done of bytes to do, with rate and time left. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar on standard error; hidden if that is no terminal or `quiet`.
    pub(crate) fn new(quiet: bool) -> Progress {
        let bar = ProgressBar::new(0);
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = "{bar:24} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left  {wide_msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
        Progress { bar }
    }

    /// A bar of things that are counted, not bytes.
    pub(crate) fn counts() -> Progress {
        let progress = Progress::new(false);
        let template = "{bar:24} {human_pos}/{human_len} {per_sec} {eta} left  {wide_msg}";
        progress.bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
        progress
    }

    /// So much of so much is done, and this is being done now.
    pub(crate) fn set(&self, done: u64, total: u64, what: &str) {
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
        self.bar.set_message(what.to_owned());
    }

    /// More was found to do.
    pub(crate) fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    /// So many of the bytes that were expected are done, and this is being done now.
    pub(crate) fn reached(&self, bytes: u64, what: &str) {
        self.bar.set_position(bytes);
        self.bar.set_message(what.to_owned());
    }

    /// What is being done.
    pub(crate) fn name(&self, path: impl std::fmt::Display) {
        self.bar.set_message(path.to_string());
    }

    /// For one file: takes the bytes done of it so far.
    pub(crate) fn of_file(&self) -> client_fuse::Progress {
        let bar = self.bar.clone();
        let before = AtomicU64::new(0);
        Arc::new(move |done| {
            let last = before.fetch_max(done, Ordering::Relaxed);
            bar.inc(done.saturating_sub(last));
        })
    }

    /// Prints a line above the bar, to standard error.
    pub(crate) fn error(&self, line: impl std::fmt::Display) {
        self.bar.suspend(|| eprintln!("dfs: {line}"));
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
