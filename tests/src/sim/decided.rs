//! What a client decides itself, held beside what the metaservers make of it.
//!
//! One client has write leases and does what it likes, as several users, in directories with all kinds of modes. Again and
//! again all that it believes is compared with what another client is told, which has no leases and asks.

use super::{cluster, connect_as, drive_quiet, format};
use client_fuse::{Client, ClientConfig, NewMode, OpenFlags};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Attr, Cred, FileKind, NewNode, RenameMode, SetAttr, SetTime};
use common::time::Time;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::time::Duration;

/// Names in each directory: few, so that operations meet.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Operations between two comparisons.
const ROUND: u32 = 25;
/// Longer than nobody gets a write lease of what others have looked at.
const CALM: Duration = Duration::from_millis(1200);

/// Runs `rounds`. Returns how many changes the client has decided.
pub fn run(seed: u64, rounds: u32) -> Result<u64, String> {
    let (mut sim, shared, mut rng) = cluster(seed);
    let (result, own) = (std::rc::Rc::new(std::cell::Cell::new(0)), shared.clone());
    let (decided, client_seed) = (result.clone(), rng.random());
    sim.client("client-1", async move {
        match work(client_seed, rounds).await {
            Ok(count) => decided.set(count),
            Err(what) => drop(own.borrow_mut().broken.get_or_insert(what)),
        }
        Ok(())
    });
    drive_quiet(&mut sim, &shared)?;
    Ok(result.get())
}

/// What the work goes on in.
struct World {
    rng: StdRng,
    dirs: Vec<InodeId>,
    users: [Cred; 3],
    ticks: i64,
}

async fn work(seed: u64, rounds: u32) -> Result<u64, String> {
    format(seed).await?;
    let writer = connect_as(seed, &|config| ClientConfig { leases: true, write_leases: true, ..config }).await?;
    let reader = connect_as(seed ^ 1, &|config| config).await?;
    let user = |uid, groups: &[u32]| Cred { uid, gid: 100, groups: groups.to_vec() };
    let users = [Cred::default(), user(1000, &[200]), user(1001, &[])];
    let mut world = World { rng: StdRng::seed_from_u64(seed), dirs: Vec::new(), users, ticks: 0 };
    let told = |fault: Fault| fault.to_string();
    for (name, mode) in [("plain", 0o777), ("sticky", 0o1777), ("group", 0o2777), ("mine", 0o755)] {
        let name = Name::new(name).expect("a good name");
        let made = writer.create(&Cred::default(), InodeId::ROOT, &name, NewNode::Dir, mode).await.map_err(told)?;
        // What is made in the one that hands its group on is of a group that not all users are in.
        let set = SetAttr { gid: Some(200), ..SetAttr::default() };
        writer.setattr(&Cred::default(), made.ino, set).await.map_err(told)?;
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        writer.setattr(&Cred::default(), made.ino, set).await.map_err(told)?;
        world.dirs.push(made.ino);
    }
    for round in 0..rounds {
        for _ in 0..ROUND {
            let _ = world.step(&writer).await; // a refusal is an answer, too
        }
        let believed = world.all(&writer).await.map_err(|fault| format!("round {round}: {fault}"))?;
        writer.sync_changes(&std::sync::atomic::AtomicU64::new(0)).await.map_err(told)?;
        if writer.stats().misjudged > 0 {
            return Err(format!("round {round}: an outcome was another one than was answered"));
        }
        let asked = world.all(&reader).await.map_err(|fault| format!("round {round}: {fault}"))?;
        if believed != asked {
            let differ = believed.iter().find(|(place, attr)| asked.get(*place) != Some(attr));
            return Err(format!("round {round}: believed {differ:?}, it is {:?}", differ.map(|(at, _)| asked.get(at))));
        }
        world.dirs.retain(|dir| asked.values().flatten().any(|attr| attr.ino == *dir) || dir.0 < 10);
        tokio::time::sleep(CALM).await;
    }
    let decided = writer.stats().decided;
    let _ = writer.shutdown().await;
    Ok(decided)
}

impl World {
    fn pick(&mut self) -> (InodeId, Name) {
        let dir = self.dirs[self.rng.random_range(0..self.dirs.len())];
        (dir, Name::new(NAMES[self.rng.random_range(0..NAMES.len())]).expect("a good name"))
    }

    /// Every name in every directory, and the directories themselves.
    async fn all(&self, client: &Client) -> Result<BTreeMap<(InodeId, String), Option<Attr>>, Fault> {
        let (root, mut all) = (Cred::default(), BTreeMap::new());
        for dir in &self.dirs {
            match client.getattr(&root, *dir).await {
                Ok(attr) => drop(all.insert((*dir, String::new()), Some(attr))),
                Err(fault) if fault.kind == Kind::Gone => continue,
                Err(fault) => return Err(fault),
            }
            for text in NAMES {
                let found = match client.lookup(&root, *dir, &Name::new(text).expect("a good name")).await {
                    Ok(attr) => Some(attr),
                    Err(fault) if fault.kind == Kind::NotFound => None,
                    Err(fault) => return Err(fault),
                };
                all.insert((*dir, text.to_owned()), found);
            }
        }
        Ok(all)
    }

    async fn step(&mut self, client: &Client) -> Result<(), Fault> {
        let cred = self.users[self.rng.random_range(0..self.users.len())].clone();
        let ((dir, name), (to, to_name)) = (self.pick(), self.pick());
        let umask = [0o022, 0o077, 0o007][self.rng.random_range(0..3)];
        let mode = NewMode { bits: self.rng.random_range(0..0o10000), umask };
        match self.rng.random_range(0..100) {
            0..12 => {
                let made = client.create(&cred, dir, &name, NewNode::Dir, NewMode { bits: mode.bits | 0o333, ..mode });
                self.dirs.push(made.await?.ino);
            }
            12..35 => self.write(client, &cred, (dir, &name), mode).await?,
            35..43 => {
                let link = NewNode::Symlink(b"some/where".to_vec());
                let node = if self.rng.random_range(0..3) > 0 { link } else { NewNode::Fifo };
                client.create(&cred, dir, &name, node, mode).await?;
            }
            43..55 => client.unlink(&cred, dir, &name).await?,
            55..60 => client.rmdir(&cred, dir, &name).await?,
            60..75 => {
                let modes = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[self.rng.random_range(0..modes.len())];
                client.rename(&cred, (dir, &name), (to, &to_name), mode).await?;
            }
            75..83 => {
                let ino = client.lookup(&Cred::default(), dir, &name).await?.ino;
                client.link(&cred, ino, to, &to_name).await?;
            }
            _ => {
                let ino = client.lookup(&Cred::default(), dir, &name).await?.ino;
                client.setattr(&cred, ino, self.set()).await?;
            }
        }
        Ok(())
    }

    fn set(&mut self) -> SetAttr {
        self.ticks += 1;
        let at = Time { secs: self.ticks, nanos: 7 };
        let some = |rng: &mut StdRng| rng.random_range(0..3) == 0;
        let rng = &mut self.rng;
        SetAttr {
            mode: some(rng).then(|| rng.random_range(0..0o10000) | 0o300),
            uid: some(rng).then(|| [0, 1000, 1001][rng.random_range(0..3)]),
            gid: some(rng).then(|| [0, 100, 200][rng.random_range(0..3)]),
            size: (rng.random_range(0..4) == 0).then(|| [0, 10, 5000][rng.random_range(0..3)]),
            atime: some(rng).then_some(SetTime::At(at)),
            mtime: some(rng).then_some(SetTime::Now),
            ..SetAttr::default()
        }
    }

    /// Creates or opens a file and writes a little: at its end, over what is there, beyond it.
    async fn write(&mut self, client: &Client, cred: &Cred, at: (InodeId, &Name), mode: NewMode) -> Result<(), Fault> {
        let append = self.rng.random_range(0..3) == 0;
        let flags =
            OpenFlags { write: true, append, truncate: self.rng.random_range(0..4) == 0, ..OpenFlags::default() };
        let handle = match client.lookup(cred, at.0, at.1).await {
            Ok(attr) if attr.kind == FileKind::File => client.open(cred, attr.ino, flags).await?,
            Ok(_) => return Ok(()),
            Err(_) => client.create_open(cred, at.0, at.1, mode, false, flags).await?.0,
        };
        for _ in 0..self.rng.random_range(0..3) {
            let offset = [0, 100, 4096, 9000][self.rng.random_range(0..4)];
            // Kept in the metadata, or in chunks.
            let len = if self.rng.random_range(0..4) == 0 { 20_000..60_000 } else { 1..6000 };
            let bytes = vec![self.rng.random_range(1..255); self.rng.random_range(len)];
            client.write(&handle, offset, bytes.into()).await?;
        }
        let flushed = client.flush(&handle).await;
        client.release(&handle).await.and(flushed)
    }
}
