//! A mount is made as any other: by mount(8), from a line of fstab, in the background, or by systemd; it is usable when the
//! command returns, can be mounted again read-only, and goes with umount(8). Where it cannot be had, the command says why.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::cluster::{COMMAND_LIMIT, Cluster, program};
use tests::command::{Ended, run};
use tests::wait::wait_until;

/// systemd hears of it within this.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// A mount's process ends within this.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Where mount(8) looks for the program of a `fuse.dfs`, whatever `PATH` says; README installs it there.
const INSTALLED: &str = "/usr/local/bin/dfs";

/// Our `dfs` is installed as long as this is there.
struct Installed;

impl Installed {
    /// `None`: there is another one, which is not ours to replace.
    fn install() -> Option<Installed> {
        if std::fs::read_link(INSTALLED).is_ok_and(|to| to == program("dfs") || !to.exists()) {
            std::fs::remove_file(INSTALLED).unwrap(); // of a test that was killed
        }
        std::os::unix::fs::symlink(program("dfs"), INSTALLED).ok().map(|()| Installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(INSTALLED);
    }
}

/// A command of the system.
fn of_system(words: &[&str]) -> Ended {
    let mut command = Command::new(words[0]);
    run(command.args(&words[1..]).env_remove("DFS_CONFIG").env_remove("DFS_META"), COMMAND_LIMIT)
}

/// The type of the file system that is mounted there, and its options.
fn mounted(at: &Path) -> Option<(String, String)> {
    let found = of_system(&["findmnt", "-n", "-o", "FSTYPE,VFS-OPTIONS", "-M", at.to_str().unwrap()]);
    let (kind, options) = found.text().trim().split_once(' ')?;
    Some((kind.to_owned(), options.trim().to_owned()))
}

fn is_mounted(at: &Path) -> bool {
    mounted(at).is_some()
}

/// It works, and is gone again.
fn use_and_leave(cluster: &Cluster, at: &Path, name: &str) {
    assert_eq!(mounted(at).unwrap().0, "fuse.dfs");
    std::fs::write(at.join(name), name).unwrap();
    of_system(&["umount", at.to_str().unwrap()]).must();
    wait_until("the mount to be gone", END_LIMIT, || !is_mounted(at));
    wait_until("what was written there", END_LIMIT, || {
        let read = cluster.dfs(&["cat", &format!("/{name}")]);
        read.ok() && read.text() == name
    });
}

fn point(cluster: &Cluster, name: &str) -> PathBuf {
    let point = cluster.dir().join("mnt").join(name);
    std::fs::create_dir_all(&point).unwrap();
    point
}

#[test]
fn mount_8_and_lines_of_fstab_work() {
    tests::skip_if!(no_mount, no_root);
    let Some(_installed) = Installed::install() else {
        let name = "mount_8_and_systemd_find_what_they_expect::mount_8_and_lines_of_fstab_work";
        return tests::skip::note(name, "another dfs is installed in /usr/local/bin");
    };
    let cluster = Cluster::start_with(1, 3);
    let config = cluster.dir().join("dfs.toml");
    let (config, at) = (config.to_str().unwrap(), point(&cluster, "by-mount"));
    let text = at.to_str().unwrap();

    of_system(&["mount", "-t", "fuse.dfs", config, text, "-o", "noexec"]).must();
    assert!(mounted(&at).unwrap().1.contains("noexec"));
    of_system(&["mount", "-o", "remount,ro", text]).must();
    let refused = std::fs::write(at.join("refused"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    of_system(&["mount", "-o", "remount,rw", text]).must();
    use_and_leave(&cluster, &at, "by-mount");

    let fstab = cluster.dir().join("fstab");
    std::fs::write(&fstab, format!("{config} {text} fuse.dfs _netdev,nofail,x-systemd.automount 0 0\n")).unwrap();
    of_system(&["mount", "-T", fstab.to_str().unwrap(), text]).must();
    use_and_leave(&cluster, &at, "by-fstab");

    let nobody = cluster.dir().join("nobody.toml");
    std::fs::write(&nobody, "meta = [\"127.0.0.1:1\"]\nop_timeout_s = 2\n").unwrap();
    let refused = of_system(&["mount", "-t", "fuse.dfs", nobody.to_str().unwrap(), text]);
    assert!(!refused.ok() && refused.err.contains("127.0.0.1:1"), "{refused}");
    assert!(!is_mounted(&at));
}

#[test]
fn a_mount_in_the_background_is_usable_when_the_command_returns() {
    tests::skip_if!(no_mount);
    let cluster = Cluster::start_with(1, 3);
    let at = point(&cluster, "background");
    let text = at.to_str().unwrap();
    cluster.dfs(&["mount", text]).must();
    std::fs::write(at.join("at-once"), "written").unwrap();
    let again = cluster.dfs(&["mount", text]).must_fail_cleanly();
    assert!(again.err.contains("already mounted"), "{again}");
    cluster.dfs(&["mount", "status", text]).must();
    cluster.dfs(&["umount", text]).must();
    assert!(!is_mounted(&at) && cluster.dfs(&["cat", "/at-once"]).must().text() == "written");
    for wrong in ["/nowhere/at/all", cluster.dir().join("dfs.toml").to_str().unwrap()] {
        cluster.dfs(&["mount", wrong]).must_fail_cleanly();
    }
    let refused =
        run(cluster.command(&["mount", "--op-timeout", "2", text]).env("DFS_META", "127.0.0.1:1"), COMMAND_LIMIT);
    assert!(!refused.ok() && !is_mounted(&at), "{refused}");
}

/// What a unit of `Type=notify` waits for.
#[test]
fn systemd_is_told_when_the_mount_can_be_used() {
    tests::skip_if!(no_mount);
    let cluster = Cluster::start_with(1, 3);
    let at = point(&cluster, "systemd");
    let socket = cluster.dir().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(READY_LIMIT)).unwrap();
    let mut unit = cluster.command(&["mount", "--foreground", at.to_str().unwrap()]);
    let log = std::fs::File::create(cluster.dir().join("log/unit.log")).unwrap();
    unit.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut unit = unit.spawn().unwrap();
    let mut told = [0; 100];
    let len = systemd.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"READY=1");
    std::fs::write(at.join("ready"), "at once").unwrap();
    cluster.dfs(&["umount", at.to_str().unwrap()]).must(); // as the unit's ExecStop
    assert!(unit.wait().unwrap().success());
    assert_eq!(cluster.dfs(&["cat", "/ready"]).must().text(), "at once");
}
