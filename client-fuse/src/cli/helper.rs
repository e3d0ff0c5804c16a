//! `dfs SOURCE DIRECTORY -o OPTIONS`: how mount(8) starts a FUSE file system, so that `/etc/fstab` lines of type
//! `fuse.dfs` work, and `mount -o remount,ro`.
//!
//! `SOURCE` is a client configuration (`/etc/dfs/dfs.toml`), metaservers (`dfs:host:port+host:port`, which is what a
//! mount shows as its source), or any other word: then the cluster is found where every command looks.

use super::failure::{Failure, Outcome};
use nix::mount::{MsFlags, mount};
use std::ffi::OsString;
use std::path::Path;

/// What is the kernel's or mount(8)'s own in a list of options, and tells `dfs mount` nothing.
const NOT_OURS: [&str; 13] = [
    "defaults",
    "_netdev",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "async",
    "allow_other",
    "default_permissions",
];
/// The same, as beginnings.
const NOT_OURS_PREFIXES: [&str; 4] = ["user_id=", "group_id=", "x-", "comment="];

/// What mount(8) asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A `dfs mount` with these arguments.
    Mount(Vec<OsString>),
    /// Other flags for a mount that is there.
    Remount(OsString, Vec<String>),
}

/// What mount(8) asks for, if these arguments come from it. `is_command`: whether a word is a command of `dfs`.
pub(crate) fn asked(args: &[OsString], is_command: impl Fn(&str) -> bool) -> Option<Asked> {
    let [program, source, point, flag, options] = args else { return None };
    let source = source.to_str().filter(|source| !is_command(source) && !source.starts_with('-'))?;
    let options = options.to_str().filter(|_| flag == "-o")?;
    let mut options: Vec<String> = options.split(',').map(str::to_owned).collect();
    options.retain(|option| !option.is_empty() && !is_foreign(option));
    if options.iter().any(|option| option == "remount") {
        options.retain(|option| option != "remount");
        return Some(Asked::Remount(point.clone(), options));
    }
    let mut line = vec![program.clone(), "mount".into()];
    match source.strip_prefix("dfs:") {
        Some(servers) => line.extend(["--meta".into(), servers.replace('+', ",").into()]),
        None if source.starts_with('/') => line.extend(["--config".into(), source.into()]),
        None => {}
    }
    if !options.is_empty() {
        line.extend(["-o".into(), options.join(",").into()]);
    }
    line.extend(["--".into(), point.clone()]);
    Some(Asked::Mount(line))
}

fn is_foreign(option: &str) -> bool {
    NOT_OURS.contains(&option) || NOT_OURS_PREFIXES.iter().any(|prefix| option.starts_with(prefix))
}

/// Gives a mount other flags.
pub(crate) fn remount(point: &Path, options: &[String]) -> Outcome {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_RELATIME;
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "rw" | "dev" | "suid" | "exec" | "atime" => {} // the absence of the others
            "nopack" | "nofill" | "relatime" => {} // shown of every mount; whether access times are kept stays as it was
            other => return Err(Failure::new(format!("option {other} is not known"))),
        }
    }
    let none = None::<&str>;
    mount(none, point, none, flags, none).map_err(|error| Failure::at("remount", point.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &[&str]) -> Option<Asked> {
        let args: Vec<OsString> = line.iter().map(OsString::from).collect();
        asked(&args, |word| word == "mount")
    }

    fn mounts(line: &[&str]) -> Option<Asked> {
        Some(Asked::Mount(line.iter().map(OsString::from).collect()))
    }

    #[test]
    fn lines_of_fstab_become_commands() {
        let line = ["dfs", "dfs:a:1+b:2", "/mnt", "-o", "ro,_netdev,x-systemd.automount,relatime"];
        assert_eq!(of(&line), mounts(&["dfs", "mount", "--meta", "a:1,b:2", "-o", "ro,relatime", "--", "/mnt"]));
        let line = ["dfs", "/etc/dfs/dfs.toml", "/mnt", "-o", "defaults"];
        assert_eq!(of(&line), mounts(&["dfs", "mount", "--config", "/etc/dfs/dfs.toml", "--", "/mnt"]));
        assert_eq!(
            of(&["dfs", "none", "/mnt", "-o", "dev,suid"]),
            mounts(&["dfs", "mount", "-o", "dev,suid", "--", "/mnt"])
        );
    }

    #[test]
    fn our_own_commands_are_not_mistaken_for_lines_of_fstab() {
        assert_eq!(of(&["dfs", "mount", "/mnt", "-o", "ro"]), None);
        assert_eq!(of(&["dfs", "cp", "a", "b"]), None);
        assert_eq!(of(&["dfs", "--meta", "a:1", "-o", "ro"]), None);
    }

    #[test]
    fn a_remount_is_told_apart() {
        let line = ["dfs", "dfs:a:1", "/mnt", "-o", "ro,nodev,remount,user_id=0,allow_other"];
        assert_eq!(of(&line), Some(Asked::Remount("/mnt".into(), vec!["ro".into(), "nodev".into()])));
    }
}
