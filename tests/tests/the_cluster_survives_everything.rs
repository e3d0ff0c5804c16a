//! Five chunkservers under load, and every few seconds something happens to them: one is killed, hangs, loses its disk, has
//! stored bytes changed, is full; one joins, one is drained; data is rebalanced; the leader is killed. Then it stops. Within
//! three minutes the cluster says that it is well, a check of every copy finds nothing, every acknowledged byte is right,
//! and nothing is stored that nobody needs.
//!
//! The seed is printed; `DFS_TEST_SEED=N` repeats it (the order of faults, not what meets what). What the test does as an
//! administrator would is in the runbook: a server whose disk was lost is removed once it was made good.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::Signal;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::chaos::{ALL, Fault, Faults, View};
use tests::cluster::{COMMAND_LIMIT, Cluster};
use tests::command::run;
use tests::content::{Content, full};
use tests::damage::{files_below, flip_anywhere};
use tests::json::number;
use tests::ledger::Ledger;
use tests::load::Load;
use tests::wait::wait_until;
use tokio::time::Instant;

/// Chunkservers at first.
const SERVERS: usize = 5;
/// The one whose disk can be filled: a file system of its own.
const SMALL: &str = "chunk-2";
/// Its size: about that of the others, so that it gets its share. It takes no more on the disk below than is written.
const SMALL_LEN: &str = "250G";
/// Bytes that are left on it when it is full: less than a chunkserver of `dfs dev` keeps for itself.
const SMALL_LEFT: u64 = 100 << 20;
/// What was removed stays for this long, and is garbage then.
const WINDOW_S: u32 = 5;
/// A server is taken out after this.
const DOWN_OUT_S: u32 = 12;
/// How long a fault lasts that ends by itself: some servers are taken out, some are not even missed.
const LASTS: std::ops::Range<u64> = 2..16;
/// A drain is given up, or seen through to its end, after this.
const DRAINS: Duration = Duration::from_secs(10);
/// All is well so long after the last fault.
const HEAL_LIMIT: Duration = Duration::from_secs(180);
/// Heartbeats have told what is there within this.
const TELL_LIMIT: Duration = Duration::from_secs(30);
/// What was refused is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The most files that are put by the command, and the longest.
const PUTS_MAX: u64 = 400;
const PUT_LEN_MAX: u64 = 5 << 20;
/// Stored bytes that a [`Fault::Flip`] changes.
const FLIPPED: usize = 24;

/// Sizes of a run.
struct Size {
    /// Faults come for so long,
    length: Duration,
    /// one after each of these,
    every: Duration,
    /// while each writer rests this long between two operations.
    pause: Duration,
}

fn size() -> Size {
    let seconds = |name: &str| std::env::var(name).ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    let (length, every, pause) = if full() { (900, 10, 400) } else { (60, 4, 100) };
    Size {
        length: seconds("DFS_TEST_CHAOS_S").unwrap_or(Duration::from_secs(length)),
        every: Duration::from_secs(every),
        pause: Duration::from_millis(pause),
    }
}

fn seed() -> u64 {
    let given = std::env::var("DFS_TEST_SEED").ok().map(|text| text.parse().unwrap());
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

/// How a fault ends.
enum Undo {
    Start(String),
    Wake(String),
    Empty,
    /// Ends the drain of this server: it leaves, or takes its share back.
    Drain {
        name: String,
        server: u64,
        leaves: bool,
    },
}

/// The cluster and what is wrong with it now.
struct Chaos<'a> {
    cluster: &'a Cluster,
    faults: Faults,
    started: Instant,
    undo: Vec<(Instant, Undo)>,
    /// Servers whose disk is gone: to be removed.
    lost: Vec<u64>,
    /// When that was last tried.
    removed: Instant,
    /// Chunkservers there ever were.
    count: usize,
    /// Bytes were changed and not every copy was read since.
    unread: bool,
    done: BTreeMap<Fault, u32>,
}

impl Chaos<'_> {
    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// `dfs admin ARGS`; a refusal is said.
    fn admin(&self, args: &[&str]) -> bool {
        let ended = self.cluster.dfs(&[&["admin"], args].concat());
        if !ended.ok() {
            self.say(&format!("admin {} refused: {}", args.join(" "), ended.err.trim()));
        }
        ended.ok()
    }

    /// `dfs admin status --json`, unless there is no leader just now.
    fn status(&self) -> Option<Value> {
        serde_json::from_slice(&self.cluster.dfs(&["admin", "status", "--json"]).out).ok()
    }

    /// The id that the cluster gave a chunkserver last.
    fn id(&self, name: &str) -> Option<u64> {
        let log = self.cluster.log(name);
        log.rsplit_once("registered server=s")?.1.split(' ').next()?.parse().ok()
    }

    /// Chunkservers with which nothing is wrong.
    fn fine(&self) -> Vec<String> {
        let is_fine = |name: &String| {
            !self.undo.iter().any(|(_, undo)| match undo {
                Undo::Start(its) | Undo::Wake(its) | Undo::Drain { name: its, .. } => its == name,
                Undo::Empty => name == SMALL,
            })
        };
        (1..=self.count).map(|n| format!("chunk-{n}")).filter(is_fine).collect()
    }

    fn view(&self) -> View {
        let of = |kind: fn(&Undo) -> bool| self.undo.iter().filter(|(_, undo)| kind(undo)).count();
        let draining = of(|undo| matches!(undo, Undo::Drain { .. }));
        let metas = of(|undo| matches!(undo, Undo::Start(name) if name.starts_with("meta")));
        let silent = self.undo.len() - draining - metas;
        let away = silent + self.lost.len();
        let mut view = View { up: self.count - silent, away, draining, meta_away: metas > 0, whole: false };
        view.whole = away == 0 && !self.unread && self.nothing_is_missing();
        view
    }

    /// Every server has compared all it should have with what it has, after this was asked, and nothing is missing.
    fn nothing_is_missing(&self) -> bool {
        let is_whole = || {
            let Some(status) = self.status() else { return false };
            let keep = &status["keep"];
            let reports = keep["servers"].as_array().unwrap();
            let servers = status["chunkservers"].as_array().unwrap();
            let compared = |r: &Value| r["compared"] == keep["layout"] && number(r, "age_ms") < 3000;
            let zero = ["degraded", "missing", "unavailable"].iter().all(|key| number(keep, key) == 0);
            zero && servers.iter().all(|server| server["up"] == true)
                && servers.iter().all(|s| reports.iter().any(|r| r["server"] == s["server"] && compared(r)))
        };
        is_whole() && self.cluster.dfs(&["admin", "gc", "run"]).ok() && is_whole()
    }

    /// Reads every copy there is, so that what was changed is found.
    fn scrub(&mut self) -> bool {
        let rounds = |status: &Value| -> BTreeMap<u64, u64> {
            let reports = status["keep"]["servers"].as_array().unwrap();
            reports.iter().map(|r| (number(r, "server"), number(r, "scrub_rounds"))).collect()
        };
        let Some(before) = self.status().map(|status| rounds(&status)) else { return false };
        if !self.admin(&["scrub", "run"]) {
            return false;
        }
        let begun = Instant::now();
        while begun.elapsed() < TELL_LIMIT {
            let done = self.status().is_some_and(|status| {
                let now = rounds(&status);
                let servers = status["chunkservers"].as_array().unwrap();
                servers.iter().map(|s| number(s, "server")).all(|s| now.get(&s) > before.get(&s).or(Some(&0)))
            });
            if done {
                self.unread = false;
                return true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        false
    }

    /// What is due now: ends of faults, and what an administrator does.
    fn look_after(&mut self) {
        let now = Instant::now();
        let due = |(at, _): &(Instant, Undo)| *at <= now;
        while let Some(index) = self.undo.iter().position(due) {
            let (_, undo) = self.undo.swap_remove(index);
            self.end(undo);
        }
        if !self.lost.is_empty() && self.removed.elapsed() > PAUSE {
            self.removed = Instant::now();
            let lost = std::mem::take(&mut self.lost);
            self.lost = lost.into_iter().filter(|server| !self.remove(*server)).collect();
        }
        if self.unread && self.faults.waits() && self.undo.is_empty() && self.lost.is_empty() {
            self.scrub();
        }
    }

    /// Forgets a server. Refused as long as something is missing.
    fn remove(&self, server: u64) -> bool {
        let gone = self.cluster.dfs(&["admin", "server", "remove", &server.to_string(), "--yes"]).ok();
        if gone {
            self.say(&format!("s{server} is removed"));
        }
        gone
    }

    fn end(&mut self, undo: Undo) {
        match undo {
            Undo::Start(name) => {
                self.say(&format!("{name} is started"));
                self.cluster.start_server(&name);
            }
            Undo::Wake(name) => {
                self.say(&format!("{name} wakes"));
                assert!(self.cluster.signal_if_running(&name, Signal::SIGCONT), "{name} is there");
            }
            Undo::Empty => {
                self.say(&format!("{SMALL} has room"));
                std::fs::remove_file(self.filler()).unwrap();
            }
            Undo::Drain { name, server, leaves } => self.end_drain(&name, server, leaves),
        }
    }

    fn end_drain(&mut self, name: &str, server: u64, leaves: bool) {
        let is_empty = || {
            let list = self.cluster.dfs(&["admin", "server", "list", "--json"]);
            let list: Value = serde_json::from_slice(&list.out).ok()?;
            let its = list.as_array()?.iter().find(|one| one["server"] == server)?.clone();
            Some(number(&its, "places") == 0 && number(&its, "chunks") == 0)
        };
        if !leaves {
            self.say(&format!("{name} takes its share back"));
            self.admin(&["server", "weight", &server.to_string(), "250"]);
        } else if is_empty() == Some(true) && self.remove(server) {
            self.cluster.kill(&[name]);
            self.empty_disk(name);
            self.say(&format!("{name} has left and comes back as a new one"));
            self.cluster.start_server(name);
        } else {
            self.cluster.dfs(&["admin", "gc", "run"]); // what was moved lately would be kept for a minute
            let again = Undo::Drain { name: name.into(), server, leaves };
            self.undo.push((Instant::now() + PAUSE, again));
        }
    }

    fn filler(&self) -> PathBuf {
        self.cluster.data(SMALL).join("filler")
    }

    fn empty_disk(&self, name: &str) {
        for entry in std::fs::read_dir(self.cluster.data(name)).unwrap().flatten() {
            if entry.path() == self.filler() {
                continue; // it is not the server's
            }
            match entry.file_type().unwrap().is_dir() {
                true => std::fs::remove_dir_all(entry.path()).unwrap(),
                false => std::fs::remove_file(entry.path()).unwrap(),
            }
        }
    }

    fn later(&mut self, undo: Undo) {
        let at = Instant::now() + Duration::from_secs(self.faults.number(LASTS));
        self.undo.push((at, undo));
    }

    fn inflict(&mut self, fault: Fault) {
        let fine = self.fine();
        let victim = fine[self.faults.below(fine.len())].clone();
        self.say(&match fault {
            Fault::Kill | Fault::Hang | Fault::Wipe | Fault::Flip | Fault::Drain => format!("{fault:?} {victim}"),
            Fault::Fill | Fault::Add | Fault::Rebalance | Fault::Leader => format!("{fault:?}"),
        });
        if self.happens(fault, victim) {
            *self.done.entry(fault).or_default() += 1;
        }
    }

    /// False: it did not come to it.
    fn happens(&mut self, fault: Fault, victim: String) -> bool {
        match fault {
            Fault::Kill => {
                self.cluster.kill(&[&victim]);
                self.later(Undo::Start(victim));
            }
            Fault::Hang => {
                assert!(self.cluster.signal_if_running(&victim, Signal::SIGSTOP), "{victim} runs");
                self.later(Undo::Wake(victim));
            }
            Fault::Wipe => {
                self.lost.extend(self.id(&victim));
                self.cluster.kill(&[&victim]);
                self.empty_disk(&victim);
                self.cluster.start_server(&victim);
            }
            Fault::Flip => {
                let faults = &mut self.faults;
                let below = |end: u64| u64::try_from(faults.below(usize::try_from(end).unwrap())).unwrap();
                let place = flip_anywhere(&self.cluster.data(&victim), FLIPPED, below);
                self.unread |= place.is_some();
                self.say(&format!("  at {place:?}"));
                return place.is_some();
            }
            Fault::Fill => return self.fill(),
            Fault::Add => {
                self.count += 1;
                self.cluster.dev("up", &["--chunkservers", &self.count.to_string()]).must();
            }
            Fault::Drain => return self.drain(victim),
            Fault::Rebalance => return self.admin(&["rebalance", "start"]),
            Fault::Leader => {
                let leader = self.cluster.leader();
                self.say(&format!("  {leader}"));
                self.cluster.kill(&[&leader]);
                self.later(Undo::Start(leader));
            }
        }
        true
    }

    /// Takes the space of the small disk. The blocks are never written.
    fn fill(&mut self) -> bool {
        if self.undo.iter().any(|(_, undo)| matches!(undo, Undo::Empty)) {
            return false;
        }
        let stat = nix::sys::statvfs::statvfs(&self.cluster.data(SMALL)).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        let mut command = Command::new("fallocate");
        command.arg("-l").arg((free - SMALL_LEFT).to_string()).arg(self.filler());
        run(&mut command, COMMAND_LIMIT).must();
        self.later(Undo::Empty);
        true
    }

    fn drain(&mut self, name: String) -> bool {
        let Some(server) = self.id(&name) else { return false };
        let drains = self.admin(&["server", "drain", &server.to_string()]);
        if drains {
            let leaves = self.faults.below(2) == 0;
            self.undo.push((Instant::now() + DRAINS, Undo::Drain { name, server, leaves }));
        }
        drains
    }

    /// Faults, for as long as they last.
    fn rage(&mut self, size: &Size) {
        let mut next = Instant::now() + size.every;
        while self.started.elapsed() < size.length {
            self.look_after();
            if Instant::now() >= next {
                let view = self.view();
                if let Some(fault) = self.faults.next(view) {
                    self.inflict(fault);
                    next = Instant::now() + size.every;
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// All faults end, and the cluster gets well. When they ended.
    fn heal(&mut self) -> Instant {
        self.say("no more faults");
        let ended = Instant::now();
        for (_, undo) in std::mem::take(&mut self.undo) {
            std::thread::sleep(LOOK_EVERY);
            self.end(undo);
        }
        self.unread = true;
        let took = wait_until("the cluster to be well", HEAL_LIMIT, || {
            self.look_after();
            if self.unread && self.lost.is_empty() && self.undo.is_empty() {
                self.scrub();
            }
            let well = self.status().is_some_and(|status| {
                if status["health"] != "ok" {
                    std::thread::sleep(PAUSE);
                    self.say(&format!("not well: {}", status["why"]));
                }
                status["health"] == "ok"
            });
            well && !self.unread && self.undo.is_empty() && self.lost.is_empty() && self.nothing_is_missing()
        });
        self.say(&format!("all is well after {took:?}"));
        ended
    }
}

/// What `dfs put` was acknowledged, and what went wrong elsewhere.
#[derive(Default)]
struct Commands {
    /// File numbers and lengths.
    put: Mutex<Vec<(u64, u64)>>,
    /// Wrong bytes: must stay empty.
    wrong: Mutex<Vec<String>>,
    /// What failed, in time and with a word.
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Ends the load when the test ends, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Commands {
    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn some(&self, random: &mut Faults) -> Option<(u64, u64)> {
        let put = self.put.lock().unwrap();
        (!put.is_empty()).then(|| put[random.below(put.len())])
    }

    fn note(&self, what: String) {
        self.failed.lock().unwrap().push(what);
    }

    /// Puts files and gets some of them back, until it is stopped.
    fn put_and_get(&self, cluster: &Cluster, seed: u64, pause: Duration, local: &Path) {
        let mut random = Faults::new(StdRng::seed_from_u64(seed ^ 0xc0));
        for file in 1u64.. {
            if !self.runs() {
                return;
            }
            let len = u64::try_from(random.below(usize::try_from(PUT_LEN_MAX).unwrap())).unwrap();
            let source = local.join("source");
            Content::new(seed, file, 77).write_file(&source, len).unwrap();
            if file <= PUTS_MAX {
                let ended = cluster.dfs(&["put", source.to_str().unwrap(), &format!("/put/f{file}")]);
                match ended.ok() {
                    true => self.put.lock().unwrap().push((file, len)),
                    false => self.note(ended.must_fail_cleanly().to_string()),
                }
            }
            if let Some((file, len)) = self.some(&mut random) {
                self.get(cluster, seed, local, file, len);
            }
            std::thread::sleep(pause);
        }
    }

    fn get(&self, cluster: &Cluster, seed: u64, local: &Path, file: u64, len: u64) {
        let back = local.join("back");
        let _not_there = std::fs::remove_file(&back);
        let ended = cluster.dfs(&["get", &format!("/put/f{file}"), back.to_str().unwrap()]);
        if !ended.ok() {
            return self.note(ended.must_fail_cleanly().to_string());
        }
        if let Err(what) = Content::new(seed, file, 77).check_file(&back, len) {
            self.wrong.lock().unwrap().push(format!("get: {what}"));
        }
    }

    /// Reads what was put through a mount, until it is stopped.
    fn read(&self, mount: &Path, seed: u64, pause: Duration) {
        let mut random = Faults::new(StdRng::seed_from_u64(seed ^ 0xaead));
        while self.runs() {
            std::thread::sleep(pause);
            let Some((file, len)) = self.some(&mut random) else { continue };
            match std::fs::read(mount.join(format!("put/f{file}"))) {
                Err(error) => self.note(format!("read f{file}: {error}")),
                Ok(bytes) => {
                    let checked = Content::new(seed, file, 77).check(0, &bytes);
                    if checked.is_err() || u64::try_from(bytes.len()).unwrap() != len {
                        let what = format!("read f{file}: {} bytes of {len}, {checked:?}", bytes.len());
                        self.wrong.lock().unwrap().push(what);
                    }
                }
            }
        }
    }
}

/// Five chunkservers, one of them on a disk that can be filled, and three metaservers.
fn start() -> Cluster {
    let cluster = Cluster::prepare();
    let (image, data) = (cluster.dir().join("small.img"), cluster.data(SMALL));
    let len = Command::new("truncate").arg("-s").arg(SMALL_LEN).arg(&image).status().unwrap();
    assert!(len.success());
    std::fs::create_dir_all(&data).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    run(mkfs.args(["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&image), COMMAND_LIMIT).must();
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&data), COMMAND_LIMIT).must();
    std::fs::remove_dir(data.join("lost+found")).unwrap();
    cluster.dev("up", &["--chunkservers", &SERVERS.to_string()]).must();
    let metas = ["meta-1", "meta-2", "meta-3"];
    metas
        .iter()
        .for_each(|name| cluster.configure(&format!("conf/{name}.toml"), &format!("down_out_s = {DOWN_OUT_S}")));
    cluster.kill(&metas);
    cluster.up();
    cluster
}

/// Within the limit after the last fault every copy is sound, and nothing is stored that nobody needs.
fn check_copies(cluster: &Cluster, ended: Instant) {
    cluster.dfs(&["admin", "fsck", "--data"]).must();
    let sum = |status: &Value| -> u64 {
        status["chunkservers"].as_array().unwrap().iter().map(|server| number(server, "chunks")).sum()
    };
    loop {
        cluster.dfs(&["admin", "gc", "run"]).must();
        let status = cluster.status();
        if sum(&status) == 3 * number(&status, "chunks") && number(&status["keep"], "extra") == 0 {
            break;
        }
        assert!(ended.elapsed() < HEAL_LIMIT, "copies that nobody needs, or too few: {status:#}");
        std::thread::sleep(PAUSE);
    }
    assert!(ended.elapsed() < HEAL_LIMIT, "all is well only after {:?}", ended.elapsed());
}

/// Everything that was promised is there.
fn check_promises(cluster: &mut Cluster, seed: u64, ledgers: &[Ledger], commands: &Commands) {
    let root = cluster.mount("fresh");
    let wrong: Vec<String> = ledgers.iter().filter_map(|ledger| ledger.check(&root).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (file, len) in commands.put.lock().unwrap().iter() {
        Content::new(seed, *file, 77).check_file(&root.join(format!("put/f{file}")), *len).unwrap();
    }
    cluster.unmount("fresh");
}

/// What is left in a cluster's log of the bad kind: a person should look.
fn errors_logged(cluster: &Cluster) -> Vec<String> {
    let logs = files_below(&cluster.dir().join("log"));
    let text = |path: &PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    logs.iter()
        .flat_map(|path| {
            let (name, text) = (name(path), text(path));
            text.lines()
                .filter(|line| line.contains(" ERROR "))
                .map(|line| format!("{name}: {line}"))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn after_any_row_of_faults_under_load_the_cluster_is_whole_again() {
    tests::skip_if!(no_mount, no_root);
    let (seed, size) = (seed(), size());
    eprintln!("DFS_TEST_SEED={seed}, faults for {:?}, one after each {:?}", size.length, size.every);
    let (mut cluster, local) = (start(), tempfile::tempdir().unwrap());
    cluster.dfs(&["mkdir", "/put"]).must();
    cluster.dfs(&["admin", "settings", "set", &format!("undelete_window_s={WINDOW_S}")]).must();
    let mounts = [cluster.mount("m0"), cluster.mount("m1")];
    let places: Vec<(PathBuf, String)> = (0..3).map(|n| (mounts[n % 2].clone(), format!("writer-{n}"))).collect();
    let load = Load::start_paced(seed, &places, size.pause);
    let commands = Commands::default();
    let (ledgers, done) = std::thread::scope(|scope| {
        let stop = Stop(&commands.stop);
        scope.spawn(|| commands.put_and_get(&cluster, seed, size.pause * 3, local.path()));
        scope.spawn(|| commands.read(&mounts[1], seed, size.pause));
        let mut chaos = Chaos {
            cluster: &cluster,
            faults: Faults::new(StdRng::seed_from_u64(seed)),
            started: Instant::now(),
            undo: Vec::new(),
            lost: Vec::new(),
            removed: Instant::now(),
            count: SERVERS,
            unread: false,
            done: BTreeMap::new(),
        };
        chaos.rage(&size);
        drop(stop);
        let ledgers = load.stop();
        check_copies(&cluster, chaos.heal());
        (ledgers, chaos.done)
    });
    let failed: Vec<String> = ledgers.iter().flat_map(|ledger| ledger.failed.clone()).collect();
    let acked: usize = ledgers.iter().map(|ledger| ledger.done.len()).sum::<usize>() - failed.len();
    let others = commands.failed.lock().unwrap().clone();
    eprintln!(
        "faults: {done:?}; {acked} operations acknowledged, {} failed; {} files put; {} commands or reads failed",
        failed.len(),
        commands.put.lock().unwrap().len(),
        others.len()
    );
    failed.iter().chain(&others).take(10).for_each(|what| eprintln!("failed: {what}"));
    errors_logged(&cluster).iter().take(10).for_each(|line| eprintln!("logged: {line}"));
    let wrong = commands.wrong.lock().unwrap().clone();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let never: Vec<&Fault> = ALL.iter().filter(|fault| !done.contains_key(fault)).collect();
    assert!(never.is_empty() || !full(), "a long run has everything, but for {never:?}");
    let refused = failed.len() + others.len();
    assert!(acked > 10 * refused, "{acked} acknowledged, {refused} failed: it serves, whatever happens");
    check_promises(&mut cluster, seed, &ledgers, &commands);
}
