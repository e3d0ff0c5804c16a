//! Which dfs mounts this machine has, and which process serves each.
//!
//! The kernel's list is `/proc/self/mountinfo`. A serving process leaves its pid in the run directory (`/run/dfs`, for
//! users `$XDG_RUNTIME_DIR/dfs`, else a directory of their own in `/tmp`), so that `dfs umount` can wait for it; if it
//! could not save everything it leaves the reason there.

use super::failure::{Failure, Outcome};
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernel calls a dfs mount.
pub(crate) const FS_TYPE: &str = "fuse.dfs";

/// A line of mountinfo, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    device: String,
    point: PathBuf,
    fs_type: String,
}

/// The mount point as the kernel shows it: absolute, symlinks followed. Does not touch the mount itself, which may
/// be dead.
pub(crate) fn resolve(point: &Path) -> Outcome<PathBuf> {
    let failed = |e| Failure::at("find", point.display(), e);
    let absolute = std::path::absolute(point).map_err(failed)?;
    // Not `symlink_metadata`: of a mount point, that asks the file system mounted there.
    if fs::read_link(&absolute).is_ok() {
        return absolute.canonicalize().map_err(failed);
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if name != ".." => Ok(parent.canonicalize().map_err(failed)?.join(name)),
        _ => absolute.canonicalize().map_err(failed),
    }
}

/// The type of the file system mounted at exactly this path. `None`: nothing is mounted there.
pub(crate) fn fs_type(point: &Path) -> Option<String> {
    find(point).map(|line| line.fs_type)
}

/// The device number of the mount at this path, as `major:minor`.
pub(crate) fn device(point: &Path) -> Option<String> {
    find(point).map(|line| line.device)
}

fn find(point: &Path) -> Option<Line> {
    let point = resolve(point).ok()?;
    let text = fs::read("/proc/self/mountinfo").ok()?;
    // The last one is on top.
    text.split(|b| *b == b'\n').filter_map(parse).rfind(|line| line.point == point)
}

/// `36 35 98:0 /root /point opts - type source superopts`, with octal escapes in paths.
fn parse(line: &[u8]) -> Option<Line> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = words.iter().position(|w| *w == b"-")?;
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(words.get(4)?)));
    Some(Line { device: text(words.get(2)?), point, fs_type: text(words.get(dash + 1)?) })
}

fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Unmounts, as root directly, else through `fusermount3`. `lazy`: also while it is in use.
pub(crate) fn detach(point: &Path, lazy: bool) -> Outcome {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(point, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => {
            let mut command = Command::new("fusermount3");
            command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(point);
            let out = command.output().map_err(|e| Failure::at("run", "fusermount3", e).advice("install fuse3"))?;
            if out.status.success() {
                return Ok(());
            }
            Err(Failure::at("unmount", point.display(), String::from_utf8_lossy(&out.stderr)))
        }
        Err(nix::errno::Errno::EBUSY) => Err(Failure::at("unmount", point.display(), "in use")
            .advice("leave it and close its files (`fuser -vm` shows who), or use --lazy")),
        Err(error) => Err(Failure::at("unmount", point.display(), error)),
    }
}

/// Removes a mount whose process is gone: everything in it would fail.
pub(crate) fn clear_dead(point: &Path) -> Outcome {
    while fs_type(point).as_deref() == Some(FS_TYPE) && Registered::of(point)?.pid().is_none() {
        detach(&resolve(point)?, true)?;
    }
    Ok(())
}

/// The run directory's files about one mount point.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    pid_file: PathBuf,
    error_file: PathBuf,
    /// Where the process that serves it says how it is.
    pub(crate) socket_file: PathBuf,
    /// Where a background mount writes its log if not told otherwise.
    pub(crate) log_file: PathBuf,
}

impl Registered {
    /// For this mount point.
    pub(crate) fn of(point: &Path) -> Outcome<Registered> {
        let point = resolve(point)?;
        let key = blake3::hash(point.as_os_str().as_bytes()).to_hex();
        let dir = run_dir();
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(|e| Failure::at("make directory", dir.display(), e))?;
        let file = |extension: &str| dir.join(format!("mount-{}.{extension}", &key[..16]));
        Ok(Registered {
            pid_file: file("pid"),
            error_file: file("error"),
            socket_file: file("sock"),
            log_file: file("log"),
        })
    }

    /// This process serves it from now on. `mark` is one of its arguments.
    pub(crate) fn enter(&self, mark: &str) -> Outcome {
        let _ = fs::remove_file(&self.error_file); // of an earlier mount, if there was one
        super::dev::process::write_atomically(&self.pid_file, &format!("{}\n{mark}\n", std::process::id()))
    }

    /// This process does not serve it any more; `error` if something could not be saved.
    pub(crate) fn leave(&self, error: Option<&Failure>) {
        if let Some(error) = error {
            let _ = fs::write(&self.error_file, error.to_string()); // it is in the log too
        }
        let _ = fs::remove_file(&self.socket_file); // nobody answers there any more
        let _ = fs::remove_file(&self.pid_file); // a pid that does not run is not believed anyway
    }

    /// The process that serves it.
    pub(crate) fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, mark) = text.split_once('\n')?;
        let pid: i32 = pid.parse().ok()?;
        super::dev::process::runs_with(pid, mark.trim_end_matches('\n')).then_some(pid)
    }

    /// True if the process ended without [`Registered::leave`], so without having saved what it held: it was killed, or
    /// it aborted.
    pub(crate) fn was_cut_off(&self, pid: i32) -> bool {
        let text = fs::read_to_string(&self.pid_file).unwrap_or_default();
        text.split_once('\n').is_some_and(|(first, _)| first.parse() == Ok(pid)) && self.pid().is_none()
    }

    /// Why the last process could not save everything, once.
    pub(crate) fn take_error(&self) -> Option<String> {
        let text = fs::read_to_string(&self.error_file).ok()?;
        let _ = fs::remove_file(&self.error_file);
        Some(text)
    }
}

fn run_dir() -> PathBuf {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return "/run/dfs".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join("dfs"),
        None => format!("/tmp/dfs-{uid}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line = br"36 35 0:42 / /mnt/a\040b rw,nosuid shared:5 - fuse.dfs dfs:127.0.0.1:7001 rw,user_id=0";
        let wanted = Line { device: "0:42".into(), point: "/mnt/a b".into(), fs_type: "fuse.dfs".into() };
        assert_eq!(parse(line), Some(wanted));
        assert_eq!(parse(b"rubbish"), None);
        assert_eq!(unescape(br"a\134b\0"), br"a\b\0");
    }

    #[test]
    fn a_process_that_ends_without_leaving_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let of = Registered {
            pid_file: file("pid"),
            error_file: file("error"),
            socket_file: file("sock"),
            log_file: file("log"),
        };
        let mut child = Command::new("sleep").arg("0").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        fs::write(&of.pid_file, format!("{pid}\nsleep\n")).unwrap();
        assert!(of.pid().is_none() && of.was_cut_off(pid));
        assert!(!of.was_cut_off(pid + 1), "another one");
        of.leave(None);
        assert!(!of.was_cut_off(pid), "it had saved everything");
    }

    #[test]
    fn the_root_is_mounted_and_a_new_directory_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fs_type(dir.path()), None);
        assert!(fs_type(Path::new("/proc")).is_some());
    }
}
