//! Writers that do what programs do, sync it, and note what was acknowledged.

use crate::content::Content;
use crate::ledger::{BLOCK, Done, Expect, Ledger, State};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// After a failed operation a writer rests this long, so that it does not fill its ledger with failures.
const REST: Duration = Duration::from_millis(50);
/// Blocks of a file that is overwritten in place.
const BLOCKS: usize = 96;
/// Files of each kind that a writer goes on changing.
const ACTIVE_MAX: usize = 8;

/// Writers at work, each on its own mount or directory.
pub struct Load {
    stop: Arc<AtomicBool>,
    acked: Arc<Vec<AtomicU64>>,
    writers: Vec<JoinHandle<Ledger>>,
}

impl Load {
    /// Starts one writer for each (mounted root, name of its directory there).
    ///
    /// # Panics
    /// If a directory cannot be made.
    pub fn start(seed: u64, places: &[(PathBuf, String)]) -> Load {
        Load::start_paced(seed, places, Duration::ZERO)
    }

    /// As [`Load::start`]; each writer rests this long between two operations.
    ///
    /// # Panics
    /// As there.
    pub fn start_paced(seed: u64, places: &[(PathBuf, String)], pause: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acked: Arc<Vec<AtomicU64>> = Arc::new(places.iter().map(|_| AtomicU64::new(0)).collect());
        let mut writers = Vec::new();
        for (index, (root, dir)) in places.iter().enumerate() {
            let path = root.join(dir);
            std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let salt = u64::try_from(index).expect("few writers") << 40;
            let mut writer = Writer {
                root: path,
                ledger: Ledger::new(seed, dir),
                random: StdRng::seed_from_u64(seed ^ salt),
                next: salt + 1,
                logs: Vec::new(),
                blocks: Vec::new(),
            };
            let (stop, acked) = (Arc::clone(&stop), Arc::clone(&acked));
            writers.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if writer.step() {
                        acked[index].fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(pause);
                    } else {
                        std::thread::sleep(REST);
                    }
                }
                writer.ledger
            }));
        }
        Load { stop, acked, writers }
    }

    /// Operations acknowledged so far to the writer that has the fewest.
    pub fn acked_by_each(&self) -> u64 {
        self.acked.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// Operations acknowledged so far, of all writers.
    pub fn acked(&self) -> u64 {
        self.acked.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Lets each writer end its operation and returns what it noted.
    ///
    /// # Panics
    /// If a writer panicked.
    pub fn stop(self) -> Vec<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().map(|writer| writer.join().expect("writers do not panic")).collect()
    }
}

/// One writer.
struct Writer {
    root: PathBuf,
    ledger: Ledger,
    random: StdRng,
    /// The next file number.
    next: u64,
    /// Logs that are still open: name and descriptor.
    logs: Vec<(String, File)>,
    /// Files that are overwritten in place.
    blocks: Vec<String>,
}

impl Writer {
    /// One operation; true if it was acknowledged.
    fn step(&mut self) -> bool {
        let start = Instant::now();
        let (what, result) = match self.random.random_range(0..100) {
            0..40 => ("create", self.create(0..48 << 10)),
            40..46 => ("create large", self.create(4 << 20..6 << 20)),
            46..62 => ("replace", self.replace()),
            62..82 => ("append", self.append()),
            82..92 => ("overwrite", self.overwrite()),
            _ => ("remove", self.remove()),
        };
        self.ledger.done.push(Done { start, took: start.elapsed() });
        match result {
            Ok(()) => true,
            Err(error) => {
                self.ledger.failed.push(format!("{}: {what} after {:?}: {error}", self.ledger.dir, start.elapsed()));
                false
            }
        }
    }

    /// A name that was never used.
    fn fresh(&mut self, prefix: &str) -> (u64, String) {
        let file = self.next;
        self.next += 1;
        (file, format!("{prefix}{}", file & 0xff_ffff_ffff))
    }

    /// Notes what is allowed for a name from now on.
    fn allow(&mut self, name: &str, file: u64, states: &[State]) {
        self.ledger.files.insert(name.into(), (file, Expect::OneOf(states.to_vec())));
    }

    /// A new file, written and synced.
    fn create(&mut self, lens: std::ops::Range<usize>) -> io::Result<()> {
        let (file, name) = self.fresh("f");
        let len = self.random.random_range(lens);
        self.allow(&name, file, &[State::Absent, State::Part { version: 1, len }]);
        let bytes = Content::new(self.ledger.seed, file, 1).bytes(0, len);
        write_new(&self.root.join(&name), &bytes)?;
        self.allow(&name, file, &[State::Whole { version: 1, len }]);
        Ok(())
    }

    /// Some file that was made by `create` and whose state is known: name, number, version, length.
    fn pick(&mut self) -> Option<(String, u64, u64, usize)> {
        let from = format!("f{}", self.random.random_range(0..=self.next & 0xff_ffff_ffff));
        let known = |(name, (file, expect)): (&String, &(u64, Expect))| match expect {
            Expect::OneOf(states) => match states[..] {
                [State::Whole { version, len }] if name.starts_with('f') => Some((name.clone(), *file, version, len)),
                _ => None,
            },
            _ => None,
        };
        let files = &self.ledger.files;
        files.range(from..).find_map(known).or_else(|| files.iter().find_map(known))
    }

    /// The way editors save: a new file, synced, renamed over the old one, directory synced.
    fn replace(&mut self) -> io::Result<()> {
        let Some((name, file, version, old_len)) = self.pick() else { return self.create(0..4096) };
        let (_, temporary) = self.fresh("t");
        let len = self.random.random_range(0..20_000);
        let (old, new) = (State::Whole { version, len: old_len }, State::Whole { version: version + 1, len });
        let part = State::Part { version: version + 1, len };
        self.allow(&temporary, file, &[State::Absent, part]);
        let bytes = Content::new(self.ledger.seed, file, version + 1).bytes(0, len);
        write_new(&self.root.join(&temporary), &bytes)?;
        self.allow(&temporary, file, &[State::Absent, new]);
        self.allow(&name, file, &[old, new]);
        std::fs::rename(self.root.join(&temporary), self.root.join(&name))?;
        File::open(&self.root)?.sync_all()?;
        self.allow(&temporary, file, &[State::Absent]);
        self.allow(&name, file, &[new]);
        Ok(())
    }

    /// Removes a file and syncs its directory.
    fn remove(&mut self) -> io::Result<()> {
        let Some((name, file, version, len)) = self.pick() else { return self.create(0..4096) };
        self.allow(&name, file, &[State::Whole { version, len }, State::Absent]);
        std::fs::remove_file(self.root.join(&name))?;
        File::open(&self.root)?.sync_all()?;
        self.allow(&name, file, &[State::Absent]);
        Ok(())
    }

    /// Appends a record to a log that stays open, as a database does, and syncs it.
    fn append(&mut self) -> io::Result<()> {
        if self.logs.len() < ACTIVE_MAX {
            let (file, name) = self.fresh("log");
            self.allow(&name, file, &[State::Absent, State::Part { version: 0, len: 0 }]);
            let log = File::options().append(true).create_new(true).open(self.root.join(&name))?;
            log.sync_all()?;
            self.ledger.files.insert(name.clone(), (file, Expect::Log { acked: 0, tried: 0 }));
            self.logs.push((name, log));
        }
        let index = self.random.random_range(0..self.logs.len());
        let more = self.random.random_range(1..9000);
        // Taken out until it succeeded: a log with an unknown end is not appended to again.
        let (name, mut log) = self.logs.swap_remove(index);
        let entry = self.ledger.files.get_mut(&name).expect("logs are in the ledger");
        let file = entry.0;
        let Expect::Log { acked, tried } = &mut entry.1 else { unreachable!("a log stays a log") };
        let bytes = Content::new(self.ledger.seed, file, 0).bytes(u64::try_from(*acked).expect("fits"), more);
        *tried = *acked + more;
        log.write_all(&bytes)?;
        log.sync_data()?;
        *acked = *tried;
        self.logs.push((name, log));
        Ok(())
    }

    /// Overwrites a few neighbouring blocks of a file in place and syncs it.
    fn overwrite(&mut self) -> io::Result<()> {
        if self.blocks.len() < ACTIVE_MAX {
            let (file, name) = self.fresh("b");
            self.allow(&name, file, &[State::Absent, State::Part { version: 1, len: BLOCKS * BLOCK }]);
            write_new(&self.root.join(&name), &Content::new(self.ledger.seed, file, 1).bytes(0, BLOCKS * BLOCK))?;
            self.ledger.files.insert(name.clone(), (file, Expect::Blocks(vec![(1, None); BLOCKS])));
            self.blocks.push(name);
        }
        let index = self.random.random_range(0..self.blocks.len());
        let first = self.random.random_range(0..BLOCKS);
        let last = (first + self.random.random_range(1..4)).min(BLOCKS);
        let name = self.blocks.swap_remove(index);
        let entry = self.ledger.files.get_mut(&name).expect("block files are in the ledger");
        let file = entry.0;
        let Expect::Blocks(blocks) = &mut entry.1 else { unreachable!("a block file stays one") };
        let version = blocks.iter().map(|(acked, _)| *acked).max().expect("there are blocks") + 1;
        let at = u64::try_from(first * BLOCK).expect("fits");
        let bytes = Content::new(self.ledger.seed, file, version).bytes(at, (last - first) * BLOCK);
        for block in &mut blocks[first..last] {
            block.1 = Some(version);
        }
        let open = File::options().write(true).open(self.root.join(&name))?;
        open.write_all_at(&bytes, at)?;
        open.sync_data()?;
        for block in &mut blocks[first..last] {
            *block = (version, None);
        }
        self.blocks.push(name);
        Ok(())
    }
}

/// Makes a file that was not there, with these bytes, synced.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_until;

    #[test]
    fn on_a_local_disk_everything_promised_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let load = Load::start(11, &[(dir.path().into(), "a".into()), (dir.path().into(), "b".into())]);
        wait_until("200 operations each", Duration::from_secs(60), || load.acked_by_each() >= 200);
        let ledgers = load.stop();
        for ledger in &ledgers {
            assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
            assert!(ledger.check(dir.path()).unwrap() > 50);
        }
        // The check can fail: a lost file is found.
        let (name, _) = ledgers[0].files.iter().find(|(_, (_, expect))| matches!(expect, Expect::Blocks(_))).unwrap();
        std::fs::remove_file(dir.path().join("a").join(name)).unwrap();
        assert!(ledgers[0].check(dir.path()).is_err());
    }
}
