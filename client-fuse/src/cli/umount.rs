//! `dfs umount`: unmounts and waits until the process behind it has saved everything.

use super::failure::{Failure, Outcome};
use super::mounts::{self, FS_TYPE, Registered};
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long the process may take to save what is unsaved.
const SAVE_LIMIT: Duration = Duration::from_secs(120);
/// How often we look whether it has ended.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// `dfs umount`.
#[derive(Args, Debug)]
pub(crate) struct UmountArgs {
    /// Also while it is in use: nobody new gets in; those inside keep it until they leave
    #[arg(short, long)]
    lazy: bool,
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Runs the command.
pub(crate) async fn run(args: UmountArgs) -> Outcome {
    unmount(&args.mountpoint, args.lazy).await
}

/// Unmounts and waits for the process behind it to end.
pub(crate) async fn unmount(point: &Path, lazy: bool) -> Outcome {
    let point = mounts::resolve(point)?;
    match mounts::fs_type(&point).as_deref() {
        Some(FS_TYPE) => {}
        Some(other) => {
            return Err(
                Failure::at("unmount", point.display(), format!("a {other} mount, not ours")).advice("use umount")
            );
        }
        None => return Err(Failure::at("unmount", point.display(), "nothing is mounted here")),
    }
    let registered = Registered::of(&point)?;
    let pid = registered.pid();
    let place = point.clone();
    let detached = tokio::task::spawn_blocking(move || mounts::detach(&place, lazy)).await;
    detached.map_err(|e| Failure::at("unmount", point.display(), e))??;
    let Some(pid) = pid else { return Ok(()) };
    let end = Instant::now() + SAVE_LIMIT;
    while registered.pid() == Some(pid) {
        if Instant::now() >= end {
            let text = format!("unmounted, but process {pid} still saves after {} s", SAVE_LIMIT.as_secs());
            return Err(Failure::at("unmount", point.display(), text).advice("see its log, and `dfs admin status`"));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    match registered.take_error() {
        Some(error) => Err(Failure::at("unmount", point.display(), error)),
        None if registered.was_cut_off(pid) => {
            let text = format!("unmounted, but process {pid} died before it had saved everything");
            Err(Failure::at("unmount", point.display(), text)
                .advice("see its log: files that were open may be incomplete"))
        }
        None => Ok(()),
    }
}
