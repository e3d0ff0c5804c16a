//! How attributes look: for people and as JSON.

use common::proto::meta::{Attr, FileKind, MODE_ACL, MODE_DEFAULT_ACL};
use common::time::Time;
use nix::unistd::{Gid, Group, Uid, User};
use std::collections::BTreeMap;

/// `d`, `-`, `l`, ... as `ls -l` shows it.
pub(crate) fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    }
}

/// `file`, `directory`, ...
pub(crate) fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// `drwxr-sr-t+`: kind, permission bits, and whether there are ACLs ([`Attr::mode`]).
pub(crate) fn mode_text(kind: FileKind, mode: u32) -> String {
    let mut text = String::from(kind_letter(kind));
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    if mode & (MODE_ACL | MODE_DEFAULT_ACL) != 0 {
        text.push('+');
    }
    text
}

/// `2026-11-22 18:40:02`, in UTC.
pub(crate) fn time_text(time: Time) -> String {
    let (days, second) = (time.secs.div_euclid(86_400), time.secs.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Days since 1970-01-01 to year, month, day (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// `512 B`, `1.5 KiB`, `3.2 GiB`.
pub(crate) fn size_text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Attributes as a JSON object, with the name or path they are of.
pub(crate) fn attr_json(path: &str, attr: &Attr) -> serde_json::Value {
    let time = |time: Time| serde_json::json!({ "secs": time.secs, "nanos": time.nanos });
    serde_json::json!({
        "path": path,
        "ino": attr.ino.0,
        "kind": kind_word(attr.kind),
        "mode": format!("{:04o}", attr.permissions()),
        "acl": attr.mode & (MODE_ACL | MODE_DEFAULT_ACL) != 0,
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "size": attr.size,
        "allocated": attr.allocated,
        "atime": time(attr.atime),
        "mtime": time(attr.mtime),
        "ctime": time(attr.ctime),
        "rdev": attr.rdev,
        "chunk_size": attr.chunk_size,
        "replicas": attr.replicas,
        "version": attr.version.0,
    })
}

/// Names of users and groups, each looked up once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    /// The user's name, else the number.
    pub(crate) fn user(&mut self, uid: u32) -> &str {
        self.users.entry(uid).or_insert_with(|| {
            let found = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            found.map_or_else(|| uid.to_string(), |user| user.name)
        })
    }

    /// The group's name, else the number.
    pub(crate) fn group(&mut self, gid: u32) -> &str {
        self.groups.entry(gid).or_insert_with(|| {
            let found = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
            found.map_or_else(|| gid.to_string(), |group| group.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        for (mode, text) in [
            (0o755, "-rwxr-xr-x"),
            (0o4644, "-rwSr--r--"),
            (0o3775, "-rwxrwsr-t"),
            (0, "----------"),
            (MODE_ACL, "----------+"),
        ] {
            assert_eq!(mode_text(FileKind::File, mode), text);
        }
    }

    #[test]
    fn times_look_as_in_date() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_372_802, "2026-11-22 18:40:02"),
        ] {
            assert_eq!(time_text(Time { secs, nanos: 0 }), text);
        }
    }
}
