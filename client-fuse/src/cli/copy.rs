//! What `put` and `get` share: options, several files at once, and taking back what an interruption leaves half done.

use super::failure::{Failure, Outcome};
use super::progress::Progress;
use clap::Args;
use common::time::Time;
use common::world::World;
use std::future::Future;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

/// Options of `put` and `get`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CopyArgs {
    /// Copy directories with everything in them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// How many files at once
    #[arg(short, long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) jobs: u32,
    /// No progress bar
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Say at the end what was done, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Counts what was done; the sums at the end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Files copied.
    pub(crate) files: AtomicU64,
    /// Directories made or found.
    pub(crate) dirs: AtomicU64,
    /// Symlinks made.
    pub(crate) links: AtomicU64,
    /// Bytes copied.
    pub(crate) bytes: AtomicU64,
    /// Paths that failed, each told already.
    pub(crate) failed: AtomicU64,
}

impl Tally {
    /// Adds one file.
    pub(crate) fn file(&self, len: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len, Ordering::Relaxed);
    }

    /// The sums with the client's counters.
    pub(crate) fn json(&self, stats: client_fuse::Stats) -> serde_json::Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        serde_json::json!({
            "files": read(&self.files),
            "dirs": read(&self.dirs),
            "links": read(&self.links),
            "bytes": read(&self.bytes),
            "failed": read(&self.failed),
            "stats": stats,
        })
    }
}

/// Runs jobs side by side, a bounded number at once. Each that fails is told and counted; the others go on.
pub(crate) struct Workers {
    running: JoinSet<()>,
    slots: Arc<Semaphore>,
    /// Where failures go.
    pub(crate) progress: Progress,
    /// Where they are counted.
    pub(crate) tally: Arc<Tally>,
}

impl Workers {
    /// For `jobs` at once.
    pub(crate) fn new(args: &CopyArgs) -> Workers {
        Workers {
            running: JoinSet::new(),
            slots: Arc::new(Semaphore::new(usize::try_from(args.jobs).expect("64-bit"))),
            progress: Progress::new(args.quiet),
            tally: Arc::default(),
        }
    }

    /// Starts a job, waiting while too many run.
    pub(crate) async fn start(&mut self, job: impl Future<Output = Outcome> + Send + 'static) {
        while let Some(ended) = self.running.try_join_next() {
            self.ended(ended);
        }
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("never closed");
        let (progress, tally) = (self.progress.clone(), Arc::clone(&self.tally));
        self.running.spawn(async move {
            let _slot = slot;
            if let Err(failure) = job.await {
                progress.error(failure);
                tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Tells and counts a failure that is not a job's.
    pub(crate) fn fail(&self, failure: Failure) {
        self.progress.error(failure);
        self.tally.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for all jobs.
    pub(crate) async fn finish(&mut self) {
        while let Some(ended) = self.running.join_next().await {
            self.ended(ended);
        }
    }

    /// A job tells its failures itself, but not that it panicked.
    fn ended(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            self.fail(Failure::new(format!("{error}")).advice("this is a bug: one path was not copied"));
        }
    }

    /// Ends all jobs where they are.
    pub(crate) async fn abort(&mut self) {
        self.running.shutdown().await;
    }
}

/// Ends when the program is asked to stop: SIGINT, SIGTERM or SIGHUP. They are caught from this call on, but for a SIGHUP that it
/// was started to ignore (`nohup`).
pub(crate) fn interrupted() -> Outcome<impl Future<Output = ()>> {
    let catch = |kind| signal(kind).map_err(|e| Failure::at("catch", "signals", e));
    let (mut int, mut term) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    let mut hup = if ignores_hangup() { None } else { Some(catch(SignalKind::hangup())?) };
    Ok(async move {
        let hung_up = async {
            match &mut hup {
                Some(hup) => drop(hup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            () = hung_up => {}
        }
    })
}

/// Whether SIGHUP was ignored when this program was started: bit 0 of the mask in `/proc/self/status`.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Standard input or output as an asynchronous file.
pub(crate) fn standard_file(stream: &impl AsFd) -> std::io::Result<tokio::fs::File> {
    let mut file = tokio::fs::File::from_std(stream.as_fd().try_clone_to_owned()?.into());
    file.set_max_buf_size(1 << 20);
    Ok(file)
}

/// A name nobody else uses: what is being copied has it until it is complete.
pub(crate) fn temporary_name(command: &str) -> String {
    format!(".dfs-{command}-{:016x}", World::real().random_u64())
}

/// The mode a copy gets: setuid and setgid lend the rights of an owner and a group, and are kept only with both (`uid`,
/// `gid` of the source, then of the copy).
pub(crate) fn kept_mode(mode: u32, source: (u32, u32), copy: (u32, u32)) -> u32 {
    mode & if source == copy { 0o7777 } else { 0o1777 }
}

/// A local file's time.
pub(crate) fn time_of(secs: i64, nanos: i64) -> Time {
    Time { secs, nanos: u32::try_from(nanos).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_counts_as_a_failure() {
        let mut workers = Workers::new(&CopyArgs { recursive: false, jobs: 2, quiet: true, json: false });
        workers.start(async { panic!("in a test") }).await;
        for _ in 0..3 {
            workers.start(async { Ok(()) }).await;
        }
        workers.finish().await;
        assert_eq!(workers.tally.failed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn somebody_elses_setuid_program_does_not_become_ours() {
        assert_eq!(kept_mode(0o4755, (1000, 100), (0, 0)), 0o755);
        assert_eq!(kept_mode(0o2755, (0, 100), (0, 0)), 0o755);
        assert_eq!(kept_mode(0o1777, (1000, 100), (0, 0)), 0o1777);
        assert_eq!(kept_mode(0o100_6755, (7, 8), (7, 8)), 0o6755);
    }
}
