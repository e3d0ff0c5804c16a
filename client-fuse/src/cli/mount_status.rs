//! `dfs mount status`: what a mount says of itself, through a socket of its own beside the mount. So it answers also when
//! the cluster is away, and when whoever touches the mount has to wait.
//!
//! The process that serves the mount answers from a thread that does nothing else: who connects gets one JSON object
//! (`MountStatus`) and the end.

use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::mounts::{self, FS_TYPE, Registered};
use crate::fuse::{MountStatus, StatusSource};
use clap::Args;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long either side waits for the other.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// `dfs mount status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Answers on the mount's socket until the process ends.
pub(crate) fn answer(registered: &Registered, source: StatusSource) -> Outcome {
    let path = registered.socket_file.clone();
    let failed = |error| Failure::at("listen at", path.display(), error);
    let _ = std::fs::remove_file(&path); // of a process that was killed
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let serve = move || {
        for stream in listener.incoming() {
            let Some(status) = source.status() else { return };
            let told = stream.and_then(|mut stream| {
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                stream.write_all(&serde_json::to_vec(&status)?)
            });
            if let Err(error) = told {
                tracing::debug!(%error, "who asked for the status is gone");
            }
        }
    };
    std::thread::Builder::new().name("status".into()).spawn(serve).map_err(failed)?;
    Ok(())
}

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> Outcome {
    let text = ask(&args.mountpoint)?;
    if args.json {
        say!("{text}");
        return Ok(());
    }
    let of = |error| Failure::at("status of", args.mountpoint.display(), error);
    let status = serde_json::from_str(&text).map_err(of)?;
    lines(&args.mountpoint, &status).iter().for_each(|line| say!("{line}"));
    Ok(())
}

/// What the mount's process says.
fn ask(mountpoint: &Path) -> Outcome<String> {
    let point = mounts::resolve(mountpoint)?;
    let of = |error: String| Failure::at("status of", point.display(), error);
    let registered = Registered::of(&point)?;
    let Some(pid) = registered.pid() else {
        let failure = match mounts::fs_type(&point).as_deref() {
            Some(FS_TYPE) => of("the process that served it is gone".into()).advice("`dfs umount` it, and mount again"),
            Some(other) => of(format!("a {other} mount, not ours")),
            None => of("nothing is mounted here".into()),
        };
        return Err(failure);
    };
    let mut text = String::new();
    let asked = UnixStream::connect(&registered.socket_file).and_then(|mut stream| {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.read_to_string(&mut text)
    });
    match asked {
        Ok(len) if len > 0 => Ok(text),
        Ok(_) => Err(of(format!("process {pid} is just ending"))),
        Err(error) => Err(of(format!("process {pid} does not answer: {error}"))
            .advice("only its user and root may ask; is it stopped (`ps`)? see its log")),
    }
}

/// For a person.
fn lines(point: &Path, status: &MountStatus) -> Vec<String> {
    let holds = &status.holds;
    let away = if status.metaservers_away { ": AWAY, requests fail in time" } else { "" };
    let mut out = vec![
        format!("mount        {} (process {}, dfs {})", point.display(), status.pid, status.version),
        format!("up           {}", span(status.up_ms)),
        format!("session      {}", holds.session),
        format!("metaservers  {}{away}", holds.metaservers.join(" ")),
        format!("open files   {}", holds.open_files),
        format!("unsaved      {} in {} files", size_text(holds.unsaved_bytes), holds.unsaved_files),
    ];
    for file in &holds.unsaved {
        let waiting = file.waiting_ms.map(|ms| format!(", since {}", span(ms))).unwrap_or_default();
        let error = file.last_error.as_ref().map(|error| format!("; failed {} times: {error}", file.failures));
        out.push(format!("  i{} {}{waiting}{}", file.inode, size_text(file.bytes), error.unwrap_or_default()));
    }
    let good = match holds.leases_good_ms {
        0 => "run out".into(),
        ms => format!("good for {}", span(ms)),
    };
    out.push(format!("leases       {} inodes, {} names, {good}", holds.leased_inodes, holds.leased_names));
    let given = size_text(status.given_bytes);
    out.push(format!("cache        {} of chunks; {given} given to the kernel unasked", size_text(holds.cached_bytes)));
    out.push(format!("requests     {} so far, {} under way", status.requests, status.under_way));
    for slow in &status.slow {
        out.push(format!("  {} i{} since {}", slow.op, slow.inode, span(slow.for_ms)));
    }
    if let Some(last) = status.failed.first() {
        out.push(format!("failures     the last one {} ago", span(last.ago_ms)));
    }
    for failed in &status.failed {
        out.push(format!("  {} ago: {} i{}: {}", span(failed.ago_ms), failed.op, failed.inode, failed.error));
    }
    out
}

/// `0.3 s`, `75 s`, `12 min`, `30 h`.
fn span(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..180_000 => format!("{} s", ms / 1000),
        180_000..10_800_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::{FailedRequest, SlowRequest};
    use client_fuse::Holds;

    #[test]
    fn a_status_reads_back_and_names_what_hangs_and_what_failed() {
        let status = MountStatus {
            pid: 7,
            version: "1".into(),
            metaservers_away: true,
            slow: vec![SlowRequest { op: "lookup".into(), inode: 5, for_ms: 12_345 }],
            failed: vec![FailedRequest { op: "write".into(), inode: 6, error: "no leader".into(), ago_ms: 400 }],
            holds: Holds { session: "s1".into(), unsaved_bytes: 2048, unsaved_files: 1, ..Holds::default() },
            ..MountStatus::default()
        };
        let back: MountStatus = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
        assert_eq!(back, status);
        let text = lines(Path::new("/mnt"), &status).join("\n");
        for wanted in ["AWAY", "lookup i5 since 12 s", "0.4 s ago: write i6: no leader", "2.00 KiB in 1 files"] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn spans_are_short() {
        let spans = [300, 9_999, 75_000, 720_000, 108_000_000].map(span);
        assert_eq!(spans, ["0.3 s", "9.9 s", "75 s", "12 min", "30 h"]);
    }
}
