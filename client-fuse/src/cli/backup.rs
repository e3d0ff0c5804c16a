//! `dfs admin meta backup`: the metadata as of one applied index, in a new directory.
//!
//! It is written under a temporary name, each file synced, the manifest last, and then renamed: what has the name that was
//! asked for is whole. What is broken off is removed; a killed backup leaves `.NAME.partial-...`, which nobody takes for
//! one.

use super::admin::Orders;
use super::copy::interrupted;
use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::manifest::{self, Manifest, bytes_of};
use super::progress::Progress;
use client_fuse::AdminLink;
use common::proto::admin::{Order, Ordered};
use common::proto::backup::{BackupAnswer, BackupAsk, BackupHead};
use common::units::{len_u32, len_u64};
use common::world::World;
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one step may take: the first one has the leader write out what it holds in memory.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// How long the metaservers may take to hear that it is over. If they do not, they notice within a minute.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Makes a backup at `to`, which must not be there.
pub(crate) async fn run(orders: &Orders, to: &Path, json: bool) -> Outcome {
    if to.exists() {
        return Err(Failure::at("back up to", to.display(), "it is there already").advice("name a new directory"));
    }
    let name = to.file_name().ok_or_else(|| Failure::at("back up to", to.display(), "it has no name"))?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let random = World::real().random_u64();
    let partial = parent.join(format!(".{}.partial-{random:016x}", name.to_string_lossy()));
    let (link, bar, stop) = (orders.link(None, STEP_LIMIT), Progress::new(json), interrupted()?);
    let begun = Cell::new(None);
    let made = tokio::select! {
        biased;
        () = stop => Err(Failure::at("back up to", to.display(), "interrupted")),
        made = make(orders, &link, &bar, (&partial, &begun)) => made,
    };
    if let Some(backup) = begun.take() {
        let end = ask(orders, &link, BackupAsk::End { backup });
        let _ = tokio::time::timeout(END_LIMIT, end).await; // else it ends by itself
    }
    link.close().await;
    bar.finish();
    let placed = made.and_then(|manifest| place(&partial, to, &parent).map(|()| manifest));
    let manifest = placed.inspect_err(|_| drop(fs::remove_dir_all(&partial)))?; // what stays says that it is partial
    let head = &manifest.head;
    if json {
        let told = serde_json::json!({
            "dir": to.to_string_lossy(), "cluster": head.cluster.to_string(), "epoch": head.epoch.0,
            "term": head.term, "index": head.index.0, "inodes": head.inodes, "chunks": head.chunks,
            "files": head.files.len(), "bytes": manifest.bytes(),
        });
        say!("{told}");
    } else {
        let (files, bytes) = (head.files.len(), size_text(manifest.bytes()));
        say!(
            "{}: everything up to index {}: {} inodes; {files} files, {bytes}",
            to.display(),
            head.index.0,
            head.inodes
        );
        say!("it holds the cluster's secret: keep it where only administrators can read it");
    }
    Ok(())
}

async fn ask(orders: &Orders, link: &AdminLink, ask: BackupAsk) -> Outcome<BackupAnswer> {
    match orders.send_on(link, "back up", "the cluster", Order::Backup(ask)).await? {
        Ordered::Backup(answer) => Ok(answer),
        other => Err(Failure::new(format!("backup: unexpected answer {other:?}"))),
    }
}

/// `begun`: which one the metaservers keep for it.
async fn make(
    orders: &Orders,
    link: &AdminLink,
    bar: &Progress,
    (partial, begun): (&Path, &Cell<Option<u64>>),
) -> Outcome<Manifest> {
    let ask = async |what: BackupAsk| ask(orders, link, what).await;
    let BackupAnswer::Begun { backup, head } = ask(BackupAsk::Begin).await? else {
        return Err(Failure::new("backup: an answer that does not fit"));
    };
    begun.set(Some(backup));
    manifest::check_names(&head).map_err(|fault| Failure::fault("back up", "the cluster", &fault))?;
    bar.expect(bytes_of(&head));
    let hashes = write_files(&ask, backup, &head, bar, partial).await?;
    let manifest = Manifest { head, hashes, taken: World::real().now().secs };
    let failed = |error| Failure::at("write", partial.join(manifest::NAME).display(), error);
    let file = create(&partial.join(manifest::NAME)).map_err(failed)?;
    (&file).write_all(manifest.text().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    for dir in [partial.join(manifest::STATE), partial.to_owned()] {
        sync_dir(&dir)?;
    }
    Ok(manifest)
}

async fn write_files(
    ask: &impl AsyncFn(BackupAsk) -> Outcome<BackupAnswer>,
    backup: u64,
    head: &BackupHead,
    bar: &Progress,
    partial: &Path,
) -> Outcome<Vec<[u8; 32]>> {
    let state = partial.join(manifest::STATE);
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&state);
    made.map_err(|error| Failure::at("create", state.display(), error))?;
    let (mut hashes, mut done) = (Vec::new(), 0);
    for (number, (name, len)) in head.files.iter().enumerate() {
        let path = state.join(name);
        let failed = |error| Failure::at("write", path.display(), error);
        let file = create(&path).map_err(failed)?;
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        while at < *len {
            let answer = ask(BackupAsk::Piece { backup, file: len_u32(number), at }).await?;
            let BackupAnswer::Piece { bytes, hash } = answer else {
                return Err(Failure::new("backup: an answer that does not fit"));
            };
            if bytes.is_empty() || len_u64(bytes.len()) > len - at || *blake3::hash(&bytes).as_bytes() != hash {
                return Err(Failure::new(format!("backup: {name}: bytes from {at} on were damaged on the way")));
            }
            hasher.update(&bytes);
            (&file).write_all(&bytes).map_err(failed)?;
            at += len_u64(bytes.len());
            done += len_u64(bytes.len());
            bar.reached(done, name);
        }
        file.sync_all().map_err(failed)?;
        hashes.push(*hasher.finalize().as_bytes());
    }
    Ok(hashes)
}

fn create(path: &Path) -> std::io::Result<fs::File> {
    fs::File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn sync_dir(dir: &Path) -> Outcome {
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Failure::at("sync", dir.display(), error))
}

/// Gives the whole backup its name, unless somebody else has taken that meanwhile.
fn place(partial: &Path, to: &Path, parent: &Path) -> Outcome {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let placed = renameat2(AT_FDCWD, partial, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    placed.map_err(|error| Failure::at("rename to", to.display(), error))?;
    sync_dir(parent)
}
