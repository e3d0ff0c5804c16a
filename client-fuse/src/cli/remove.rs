//! `dfs rm`: names and, with `-r`, whole directories. Symlinks are removed, never followed.

use super::connect::Shell;
use super::failure::{Failure, Outcome};
use super::remote::Remote;
use clap::Args;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{FileKind, LISTING_MAX};
use futures::stream::{self, StreamExt};
use std::ffi::OsString;

/// How many names are removed at once.
const REMOVALS_AT_ONCE: usize = 32;

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
    Ok(remove_entry(shell, path.clone(), parent, name, attr.ino, attr.kind).await)
}

/// Removes an entry with all below it. Tells what fails, and returns how many did.
async fn remove_entry(shell: &Shell, path: Remote, parent: InodeId, name: Name, ino: InodeId, kind: FileKind) -> u64 {
    let removed = if kind == FileKind::Dir {
        let failed = match Box::pin(empty(shell, &path, ino)).await {
            Ok(failed) => failed,
            Err(failure) => {
                eprintln!("dfs: {failure}");
                1
            }
        };
        if failed > 0 {
            return failed;
        }
        shell.client.rmdir(&shell.cred, parent, &name).await
    } else {
        shell.client.unlink(&shell.cred, parent, &name).await
    };
    match removed {
        Ok(()) | Err(Fault { kind: Kind::NotFound, .. }) => 0, // somebody else was faster
        Err(fault) => {
            eprintln!("dfs: {}", Failure::fault("remove", path, &fault));
            1
        }
    }
}

/// Removes everything in a directory. Returns how many entries could not be.
async fn empty(shell: &Shell, path: &Remote, ino: InodeId) -> Outcome<u64> {
    let mut after = 0;
    let mut failed = 0;
    loop {
        let listed = shell.client.readdir(&shell.cred, ino, after, LISTING_MAX, false).await;
        let listing = listed.map_err(|fault| Failure::fault("list", path, &fault))?;
        after = listing.entries.last().map_or(after, |entry| entry.cookie);
        let removals = stream::iter(listing.entries).map(|entry| {
            let below = path.join(entry.name.as_bytes());
            remove_entry(shell, below, ino, entry.name, entry.ino, entry.kind)
        });
        failed += removals.buffer_unordered(REMOVALS_AT_ONCE).fold(0, async |sum, one| sum + one).await;
        if listing.end {
            return Ok(failed);
        }
    }
}
