//! A seeded workload of one client in a directory of its own, each answer checked against [`super::model`].

use super::model::{Seen, Step, Worlds};
use client_fuse::{Client, OpenFlags};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Cred, FileKind, NewNode, RenameMode, SetAttr};
use rand::{RngExt, rngs::StdRng};

/// Names the workload plays with: few, so that operations meet.
const FILES: [&str; 6] = ["a", "b", "c", "d/a", "d/b", "e/a"];
const DIRS: [&str; 2] = ["d", "e"];
/// Lengths that cross what matters: inline, one hash group, a chunk of the test's chunk size.
const LENGTHS: [usize; 6] = [1, 100, 4096, 5000, 70_000, 200_000];

/// Draws the next operation.
pub fn draw(rng: &mut StdRng) -> Step {
    let file = |rng: &mut StdRng| FILES[rng.random_range(0..FILES.len())].to_string();
    let dir = |rng: &mut StdRng| DIRS[rng.random_range(0..DIRS.len())].to_string();
    let data = |rng: &mut StdRng| {
        let len = LENGTHS[rng.random_range(0..LENGTHS.len())];
        let first: u8 = rng.random();
        (0..len).map(|i| first.wrapping_add(u8::try_from(i % 251).expect("below 251"))).collect::<Vec<u8>>()
    };
    match rng.random_range(0..100) {
        0..15 => Step::Create(file(rng)),
        15..20 => Step::Mkdir(dir(rng)),
        20..40 => Step::Write(file(rng), LENGTHS[rng.random_range(0..LENGTHS.len())], data(rng)),
        40..52 => Step::Append(file(rng), data(rng)),
        52..58 => Step::Truncate(file(rng), LENGTHS[rng.random_range(0..LENGTHS.len())]),
        58..68 => Step::Rename(file(rng), file(rng)),
        68..75 => Step::Unlink(file(rng)),
        75..78 => Step::Rmdir(dir(rng)),
        78..95 => Step::Read(file(rng)),
        _ => Step::List,
    }
}

/// Does an operation through a client, below `home`, and says what was seen.
pub async fn perform(client: &Client, home: InodeId, step: &Step) -> Seen {
    match try_perform(client, home, step).await {
        Ok(seen) => seen,
        Err(fault) => judge(&fault),
    }
}

/// What an error says about the operation: refused for good, or nobody knows.
fn judge(fault: &Fault) -> Seen {
    match fault.kind {
        Kind::NotFound
        | Kind::Exists
        | Kind::NotEmpty
        | Kind::NotDir
        | Kind::IsDir
        | Kind::Invalid
        | Kind::NameTooLong
        | Kind::Denied
        | Kind::NotPermitted => Seen::Refused(fault.kind),
        _ => Seen::Unknown,
    }
}

/// Performs and checks one operation; the trace line names both.
pub async fn step_and_check(
    client: &Client,
    home: InodeId,
    step: &Step,
    worlds: &mut Worlds,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    let seen = perform(client, home, step).await;
    trace.push(format!("{} -> {}", super::model::describe_step(step), super::model::describe(&seen)));
    worlds.observe(step, &seen)
}

/// Every read that tells the whole state: run when faults have stopped.
pub fn final_reads() -> Vec<Step> {
    let mut reads: Vec<Step> = FILES.iter().map(|f| Step::Read((*f).to_string())).collect();
    reads.push(Step::List);
    reads
}

fn name(text: &str) -> Name {
    Name::new(text).expect("the workload's names are good")
}

/// The directory and name a path stands for.
async fn place(client: &Client, home: InodeId, path: &str) -> Result<(InodeId, Name), Fault> {
    match path.split_once('/') {
        None => Ok((home, name(path))),
        Some((dir, file)) => Ok((client.lookup(&Cred::default(), home, &name(dir)).await?.ino, name(file))),
    }
}

async fn try_perform(client: &Client, home: InodeId, step: &Step) -> Result<Seen, Fault> {
    let cred = Cred::default();
    match step {
        Step::Create(path) => {
            let (dir, name) = place(client, home, path).await?;
            client.create(&cred, dir, &name, NewNode::File, 0o644).await?;
        }
        Step::Mkdir(path) => {
            client.create(&cred, home, &name(path), NewNode::Dir, 0o755).await?;
        }
        Step::Write(path, at, data) => {
            let at = u64::try_from(*at).expect("small");
            write(client, home, path, OpenFlags { write: true, ..OpenFlags::default() }, at, data).await?;
        }
        Step::Append(path, data) => {
            let flags = OpenFlags { write: true, append: true, ..OpenFlags::default() };
            write(client, home, path, flags, 0, data).await?;
        }
        Step::Truncate(path, len) => {
            let ino = file(client, home, path).await?;
            let size = Some(u64::try_from(*len).expect("small"));
            client.setattr(&cred, ino, SetAttr { size, ..SetAttr::default() }).await?;
        }
        Step::Rename(from, to) => {
            let (from_dir, from_name) = place(client, home, from).await?;
            let (to_dir, to_name) = place(client, home, to).await?;
            client.rename(&cred, (from_dir, &from_name), (to_dir, &to_name), RenameMode::Replace).await?;
        }
        Step::Unlink(path) => {
            let (dir, name) = place(client, home, path).await?;
            client.unlink(&cred, dir, &name).await?;
        }
        Step::Rmdir(path) => client.rmdir(&cred, home, &name(path)).await?,
        Step::Read(path) => return read(client, home, path).await,
        Step::List => {
            let listing = client.readdir(&cred, home, 0, 100, false).await?;
            let mut names: Vec<String> = listing.entries.iter().map(|e| e.name.to_string()).collect();
            names.sort();
            return Ok(Seen::Names(names));
        }
    }
    Ok(Seen::Done)
}

async fn file(client: &Client, home: InodeId, path: &str) -> Result<InodeId, Fault> {
    let (dir, name) = place(client, home, path).await?;
    let attr = client.lookup(&Cred::default(), dir, &name).await?;
    if attr.kind == FileKind::Dir { Err(Fault::new(Kind::IsDir, "a directory")) } else { Ok(attr.ino) }
}

async fn write(
    client: &Client,
    home: InodeId,
    path: &str,
    flags: OpenFlags,
    at: u64,
    data: &[u8],
) -> Result<(), Fault> {
    let ino = file(client, home, path).await?;
    let handle = client.open(&Cred::default(), ino, flags).await?;
    let written = match client.write(&handle, at, bytes::Bytes::copy_from_slice(data)).await {
        Ok(_) => client.fsync(&handle).await,
        Err(fault) => Err(fault),
    };
    let released = client.release(&handle).await;
    written.and(released).map_err(unsure)
}

/// Once a write has begun, an error does not say that nothing happened.
fn unsure(fault: Fault) -> Fault {
    Fault { kind: Kind::Unsure, ..fault }
}

async fn read(client: &Client, home: InodeId, path: &str) -> Result<Seen, Fault> {
    let ino = file(client, home, path).await?;
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let handle = client.open(&Cred::default(), ino, flags).await?;
    let mut whole = Vec::new();
    let result = loop {
        let at = u64::try_from(whole.len()).expect("small");
        match client.read(&handle, at, 128 << 10).await {
            Ok(pieces) if pieces.iter().all(|p| p.is_empty()) => break Ok(Seen::Bytes(whole)),
            Ok(pieces) => pieces.iter().for_each(|p| whole.extend_from_slice(p)),
            Err(fault) => break Err(unsure(fault)),
        }
    };
    let _ = client.release(&handle).await;
    result
}
