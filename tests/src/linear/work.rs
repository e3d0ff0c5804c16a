//! Random calls on real mounts, noted.

use super::{Answer, Call, Name, Operation, Refusal, Spot};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use tokio::time::Instant;

/// Names of files in the world itself.
const FILES: [Name; 3] = ["f0", "f1", "f2"];
/// Names of directories in the world itself.
const DIRS: [Name; 2] = ["d0", "d1"];
/// The only name in a directory: so that they are often empty.
const INSIDE: Name = "in";
/// Contents stay below about this many bytes.
const LEN_MAX: usize = 48;
/// Bytes of one write or append: who, which call, which call again.
const RECORD: usize = 6;

/// Whether a process works with contents. One of each mount does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Names and contents.
    Contents,
    /// Names alone.
    Names,
}

/// A process to come.
#[derive(Clone, Debug)]
pub struct Process {
    /// For messages.
    pub who: String,
    /// The worlds, as its mount shows them.
    pub worlds: Vec<PathBuf>,
    /// What it does.
    pub role: Role,
}

/// How much is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Calls of each process between two moments at which nobody calls.
    pub calls: usize,
    /// At least this many such windows.
    pub windows: usize,
}

/// Runs the processes: windows of random calls, and between them one process of each mount looks at everything while all
/// others are quiet. Goes on until there were enough windows and `enough` says so.
///
/// # Panics
/// If a process panics.
pub fn run(seed: u64, size: Size, processes: &[Process], enough: impl Fn() -> bool + Sync) -> Vec<Operation> {
    let clock = Instant::now();
    let barrier = Barrier::new(processes.len());
    let last = std::sync::atomic::AtomicBool::new(false);
    let one = |number: usize, process: &Process| {
        let salt = u64::try_from(number).expect("few processes") << 32;
        let mut worker = Worker {
            random: StdRng::seed_from_u64(seed ^ salt),
            process: process.clone(),
            number,
            calls: 0,
            clock,
            done: Vec::new(),
        };
        for window in 1.. {
            barrier.wait();
            (0..size.calls).for_each(|_| worker.call_any());
            // One after the other: the first sees what the window left, the others must see the same.
            for turn in 0..processes.len() {
                barrier.wait();
                if turn == number && process.role == Role::Contents {
                    worker.look_at_everything();
                }
            }
            if number == 0 {
                last.store(window >= size.windows && enough(), std::sync::atomic::Ordering::SeqCst);
            }
            barrier.wait();
            if last.load(std::sync::atomic::Ordering::SeqCst) {
                break;
            }
        }
        worker.done
    };
    std::thread::scope(|scope| {
        let one = &one;
        let running: Vec<_> =
            processes.iter().enumerate().map(|(number, process)| scope.spawn(move || one(number, process))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("processes do not panic")).collect()
    })
}

/// One process.
struct Worker {
    random: StdRng,
    process: Process,
    number: usize,
    calls: usize,
    clock: Instant,
    done: Vec<Operation>,
}

impl Worker {
    fn call_any(&mut self) {
        let world = self.random.random_range(0..self.process.worlds.len());
        self.calls += 1;
        let record = format!("{}{:04}.", self.number, self.calls % 10_000);
        let call = random_call(&mut self.random, self.process.role, record.as_bytes());
        self.note(world, call);
    }

    /// Every name, attribute and byte.
    fn look_at_everything(&mut self) {
        for world in 0..self.process.worlds.len() {
            self.note(world, Call::List(None));
            let inside = DIRS.map(|dir| Spot { dir: Some(dir), name: INSIDE });
            for spot in FILES.map(|name| Spot { dir: None, name }).into_iter().chain(inside) {
                self.note(world, Call::Stat(spot));
                self.note(world, Call::Read(spot));
            }
        }
    }

    fn note(&mut self, world: usize, call: Call) {
        let root = &self.process.worlds[world];
        let now = || u64::try_from(self.clock.elapsed().as_nanos()).expect("a test ends before 500 years");
        let from = now();
        let result = perform(root, &call, self.process.role);
        let to = now();
        let answer = match result {
            Ok(answer) => Some(answer),
            Err(error) => refusal(&error).map(Answer::Refused),
        };
        self.done.push(Operation { who: self.process.who.clone(), world, call, answer, from, to });
    }
}

/// A call that a process in this role makes. `record` is what it would write.
pub fn random_call(random: &mut StdRng, role: Role, record: &[u8]) -> Call {
    let spot = |random: &mut StdRng| match random.random_range(0..10) {
        0..8 => Spot { dir: None, name: FILES[random.random_range(0..FILES.len())] },
        _ => Spot { dir: Some(DIRS[random.random_range(0..DIRS.len())]), name: INSIDE },
    };
    let dir = |random: &mut StdRng| DIRS[random.random_range(0..DIRS.len())];
    let highest = if role == Role::Contents { 100 } else { 56 };
    match random.random_range(0..highest) {
        0..10 => Call::Create(spot(random)),
        10..17 => Call::Unlink(spot(random)),
        17..22 => Call::Mkdir(dir(random)),
        22..26 => Call::Rmdir(dir(random)),
        26..33 => Call::Rename(spot(random), spot(random)),
        33..36 => {
            let (from, to) = (dir(random), dir(random));
            Call::Rename(Spot { dir: None, name: from }, Spot { dir: None, name: to })
        }
        36..41 => Call::Link(spot(random), spot(random)),
        41..51 => Call::Stat(spot(random)),
        51..54 => Call::List(None),
        54..56 => Call::List(Some(dir(random))),
        56..66 => Call::Write(spot(random), random.random_range(0..LEN_MAX), record.to_vec()),
        66..78 => Call::Append(spot(random), record.to_vec()),
        78..84 => Call::Truncate(spot(random), random.random_range(0..LEN_MAX / 2)),
        _ => Call::Read(spot(random)),
    }
}

/// Errors that are answers; `None`: it may have happened, or may still.
fn refusal(error: &io::Error) -> Option<Refusal> {
    use nix::errno::Errno;
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::ENOENT | Errno::ESTALE => Some(Refusal::Missing),
        Errno::EEXIST => Some(Refusal::Exists),
        Errno::ENOTEMPTY => Some(Refusal::NotEmpty),
        _ => None,
    }
}

/// Makes the call.
///
/// # Errors
/// As the file system says.
pub fn perform(root: &Path, call: &Call, role: Role) -> io::Result<Answer> {
    let path = |spot: &Spot| spot.dir.map_or_else(|| root.to_path_buf(), |dir| root.join(dir)).join(spot.name);
    let on = |file: &File| Ok::<_, io::Error>(Answer::On(file.metadata()?.ino()));
    let done = |()| Answer::Done;
    match call {
        Call::Create(spot) => on(&OpenOptions::new().write(true).create_new(true).open(path(spot))?),
        Call::Unlink(spot) => std::fs::remove_file(path(spot)).map(done),
        Call::Mkdir(name) => std::fs::create_dir(root.join(name)).map(done),
        Call::Rmdir(name) => std::fs::remove_dir(root.join(name)).map(done),
        Call::Rename(from, to) => std::fs::rename(path(from), path(to)).map(done),
        Call::Link(from, to) => std::fs::hard_link(path(from), path(to)).map(done),
        Call::Stat(spot) => {
            let meta = std::fs::symlink_metadata(path(spot))?;
            let links = meta.is_file().then(|| usize::try_from(meta.nlink()).expect("few links"));
            let size = (role == Role::Contents).then(|| usize::try_from(meta.size()).expect("short files"));
            Ok(Answer::Attr { ino: meta.ino(), links, size })
        }
        Call::List(dir) => list(&dir.map_or_else(|| root.to_path_buf(), |dir| root.join(dir))),
        Call::Write(spot, offset, bytes) => {
            let file = OpenOptions::new().write(true).open(path(spot))?;
            file.write_all_at(bytes, u64::try_from(*offset).expect("short files"))?;
            file.sync_all()?;
            on(&file)
        }
        Call::Append(spot, bytes) => {
            let mut file = OpenOptions::new().append(true).open(path(spot))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            on(&file)
        }
        Call::Truncate(spot, len) => {
            let file = OpenOptions::new().write(true).open(path(spot))?;
            file.set_len(u64::try_from(*len).expect("short files"))?;
            on(&file)
        }
        Call::Read(spot) => {
            // Round the kernel's pages: through them a read may have the length of before and the bytes of after a change that
            // is made between the two questions of the kernel (`a_buffered_read_beside_truncations_hardly_ever_shows_zeros`).
            let direct = nix::fcntl::OFlag::O_DIRECT.bits();
            let mut file = OpenOptions::new().read(true).custom_flags(direct).open(path(spot))?;
            let mut bytes = Vec::new();
            // One read, so that it is one moment; the next would find the end.
            let mut buffer = vec![0; 1 << 16];
            let len = file.read(&mut buffer)?;
            bytes.extend_from_slice(&buffer[..len]);
            Ok(Answer::Bytes(file.metadata()?.ino(), bytes))
        }
    }
}

/// A directory's names, which are all known ones.
fn list(dir: &Path) -> io::Result<Answer> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let found = entry?.file_name();
        let known = FILES.into_iter().chain(DIRS).chain([INSIDE]).find(|name| found == *name);
        names.push(known.unwrap_or("a name that nobody made"));
    }
    names.sort_unstable();
    Ok(Answer::Names(names))
}

/// Everything that went wrong without an answer, for messages.
pub fn unknown(history: &[Operation]) -> usize {
    history.iter().filter(|operation| operation.answer.is_none()).count()
}

const _: () = assert!(RECORD * 8 <= LEN_MAX, "several appends stand side by side");
