//! `dfs rm`: names and, with `-r`, whole directories. Symlinks are removed, never followed.

use super::connect::Shell;
use super::failure::{Failure, Outcome};
use super::remote::Remote;
use clap::Args;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{DirEntry, FileKind, LISTING_MAX};
use futures::stream::{self, StreamExt};
use std::ffi::OsString;
use tokio::sync::Semaphore;

/// How many names are removed, or listings asked for, at once.
const REMOVALS_AT_ONCE: usize = 32;
/// How many directories have their entries removed side by side.
const DIRS_AT_ONCE: usize = 32;

/// `dfs rm`.
#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Directories too, with everything in them
    #[arg(short, long)]
    recursive: bool,
    /// What is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Which
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// Runs the command. Returns how many paths failed.
pub(crate) async fn run(shell: &Shell, args: RmArgs) -> Outcome<u64> {
    let mut failed = 0;
    for path in &args.paths {
        let path = Remote::new(path);
        match remove(shell, &path, &args).await {
            Ok(below) => failed += below,
            Err(failure) => {
                eprintln!("dfs: {failure}");
                failed += 1;
            }
        }
    }
    Ok(failed)
}

/// Removes one path. Returns how many entries below it could not be removed (each told already).
async fn remove(shell: &Shell, path: &Remote, args: &RmArgs) -> Outcome<u64> {
    let (parent_path, name) = path.split("remove")?;
    let (client, cred) = (&shell.client, &shell.cred);
    let found = match client.walk(cred, InodeId::ROOT, parent_path.as_bytes(), true).await {
        Ok((parent, _)) => client.lookup(cred, parent.ino, &name).await.map(|attr| (parent.ino, attr)),
        Err(fault) => Err(fault),
    };
    let (parent, attr) = match found {
        Ok(found) => found,
        Err(Fault { kind: Kind::NotFound, .. }) if args.force => return Ok(0),
        Err(fault) => return Err(Failure::fault("remove", path, &fault)),
    };
    if attr.kind == FileKind::Dir && !args.recursive {
        return Err(Failure::at("remove", path, "is a directory").advice("use -r"));
    }
    Ok(Removal::new(shell).entry(path.clone(), parent, name, attr.ino, attr.kind).await)
}

/// What removing a tree asks of a cluster.
trait Tree: Sync {
    /// Entries behind `after`, its cookie; true if nothing follows.
    async fn list(&self, dir: InodeId, after: u64) -> Result<(Vec<DirEntry>, bool), Fault>;
    async fn unlink(&self, parent: InodeId, name: &Name) -> Result<(), Fault>;
    async fn rmdir(&self, parent: InodeId, name: &Name) -> Result<(), Fault>;
}

impl Tree for Shell {
    async fn list(&self, dir: InodeId, after: u64) -> Result<(Vec<DirEntry>, bool), Fault> {
        let listing = self.client.readdir(&self.cred, dir, after, LISTING_MAX, false).await?;
        Ok((listing.entries, listing.end))
    }

    async fn unlink(&self, parent: InodeId, name: &Name) -> Result<(), Fault> {
        self.client.unlink(&self.cred, parent, name).await
    }

    async fn rmdir(&self, parent: InodeId, name: &Name) -> Result<(), Fault> {
        self.client.rmdir(&self.cred, parent, name).await
    }
}

/// The removal of a tree. Entries of a directory go side by side, and so do directories; both are bounded over the whole
/// tree, however deep it is: a request's time limit starts when it is made, and every directory begun takes memory.
struct Removal<'a, T> {
    tree: &'a T,
    requests: Semaphore,
    /// Directories whose entries go side by side; those beyond go one entry after another.
    wide: Semaphore,
}

impl<'a, T: Tree> Removal<'a, T> {
    fn new(tree: &'a T) -> Removal<'a, T> {
        Removal { tree, requests: Semaphore::new(REMOVALS_AT_ONCE), wide: Semaphore::new(DIRS_AT_ONCE) }
    }

    /// Removes an entry with all below it. Tells what fails, and returns how many did.
    async fn entry(&self, path: Remote, parent: InodeId, name: Name, ino: InodeId, kind: FileKind) -> u64 {
        if kind == FileKind::Dir {
            let failed = match Box::pin(self.empty(&path, ino)).await {
                Ok(failed) => failed,
                Err(failure) => {
                    eprintln!("dfs: {failure}");
                    1
                }
            };
            if failed > 0 {
                return failed;
            }
        }
        let turn = self.requests.acquire().await.expect("never closed");
        let removed = match kind {
            FileKind::Dir => self.tree.rmdir(parent, &name).await,
            _ => self.tree.unlink(parent, &name).await,
        };
        drop(turn);
        match removed {
            Ok(()) | Err(Fault { kind: Kind::NotFound, .. }) => 0, // somebody else was faster
            Err(fault) => {
                eprintln!("dfs: {}", Failure::fault("remove", path, &fault));
                1
            }
        }
    }

    /// Removes everything in a directory. Returns how many entries could not be.
    async fn empty(&self, path: &Remote, ino: InodeId) -> Outcome<u64> {
        let wide = self.wide.try_acquire().ok();
        let at_once = if wide.is_some() { REMOVALS_AT_ONCE } else { 1 };
        let mut after = 0;
        let mut failed = 0;
        loop {
            let turn = self.requests.acquire().await.expect("never closed");
            let listed = self.tree.list(ino, after).await;
            drop(turn);
            let (entries, end) = listed.map_err(|fault| Failure::fault("list", path, &fault))?;
            after = entries.last().map_or(after, |entry| entry.cookie);
            let removals = stream::iter(entries).map(|entry| {
                let below = path.join(entry.name.as_bytes());
                self.entry(below, ino, entry.name, entry.ino, entry.kind)
            });
            failed += removals.buffer_unordered(at_once).fold(0, async |sum, one| sum + one).await;
            if end {
                return Ok(failed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const WIDTH: u64 = 10;
    const DEPTH: u32 = 4;

    /// A tree of directories with ten entries each, four levels deep. An inode's number has its path as digits behind a
    /// 1; the leaves are files.
    #[derive(Default)]
    struct Sample {
        gone: Mutex<BTreeSet<(InodeId, Vec<u8>)>>,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Sample {
        async fn request<R>(&self, work: impl FnOnce() -> R) -> R {
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            self.now.fetch_sub(1, Ordering::Relaxed);
            work()
        }

        async fn remove(&self, parent: InodeId, name: &Name) -> Result<(), Fault> {
            self.request(|| assert!(self.gone.lock().unwrap().insert((parent, name.as_bytes().to_vec())))).await;
            Ok(())
        }
    }

    impl Tree for Sample {
        async fn list(&self, dir: InodeId, after: u64) -> Result<(Vec<DirEntry>, bool), Fault> {
            let leaves = dir.0 >= 10_u64.pow(DEPTH - 1);
            let entry = |n: u64| DirEntry {
                cookie: n + 1,
                name: Name::new(n.to_string()).unwrap(),
                ino: InodeId(dir.0 * WIDTH + n),
                kind: if leaves { FileKind::File } else { FileKind::Dir },
                attr: None,
            };
            Ok(self.request(|| ((after..WIDTH).map(entry).collect(), true)).await)
        }

        async fn unlink(&self, parent: InodeId, name: &Name) -> Result<(), Fault> {
            self.remove(parent, name).await
        }

        async fn rmdir(&self, parent: InodeId, name: &Name) -> Result<(), Fault> {
            self.remove(parent, name).await
        }
    }

    #[tokio::test]
    async fn a_deep_tree_is_removed_with_a_bounded_number_of_requests_at_once() {
        let sample = Sample::default();
        let removal = Removal::new(&sample);
        let failed = removal.empty(&Remote::new("/t".as_ref()), InodeId(1)).await.unwrap();
        assert_eq!(failed, 0);
        assert_eq!(sample.gone.lock().unwrap().len(), 10 + 100 + 1000 + 10_000);
        let most = sample.most.load(Ordering::Relaxed);
        assert!((REMOVALS_AT_ONCE / 2..=REMOVALS_AT_ONCE).contains(&most), "{most} at once");
    }
}
