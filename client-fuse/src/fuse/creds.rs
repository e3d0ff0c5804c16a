//! On whose behalf the kernel asks: user and group come with the request, supplementary groups do not.
//!
//! They are read from `/proc/PID/status` (PID is the calling thread's) and kept for a second: the metaservers check
//! permissions themselves and need them. If the thread is not visible (another pid namespace, or already gone), the
//! user database is asked instead. Root needs no groups.

use common::proto::meta::Cred;
use fuser::Request;
use nix::unistd::{Gid, Uid, User};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How long the groups of a thread are believed.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// How many threads are remembered.
const KEPT_MAX: usize = 4096;

/// A thread, with whose rights: a pid that is used again by another user is another key.
type Caller = (u32, u32, u32);

/// Supplementary groups of callers.
#[derive(Debug, Default)]
pub(crate) struct Creds {
    known: Mutex<HashMap<Caller, (Instant, Vec<u32>)>>,
}

impl Creds {
    /// Who asks.
    pub(crate) fn of(&self, request: &Request) -> Cred {
        let (pid, uid, gid) = (request.pid(), request.uid(), request.gid());
        let groups = if uid == 0 { Vec::new() } else { self.groups((pid, uid, gid)) };
        Cred { uid, gid, groups }
    }

    fn groups(&self, caller: Caller) -> Vec<u32> {
        let now = Instant::now();
        {
            let known = self.known.lock().expect("no panic holds this lock");
            if let Some((read, groups)) = known.get(&caller)
                && now.duration_since(*read) < KEPT_FOR
            {
                return groups.clone();
            }
        }
        let (pid, uid, gid) = caller;
        let groups = groups_of_thread(pid).unwrap_or_else(|| groups_of_user(uid, gid));
        let mut known = self.known.lock().expect("no panic holds this lock");
        if known.len() >= KEPT_MAX {
            known.retain(|_, (read, _)| now.duration_since(*read) < KEPT_FOR);
            if known.len() >= KEPT_MAX {
                known.clear();
            }
        }
        known.insert(caller, (now, groups.clone()));
        groups
    }
}

fn groups_of_thread(pid: u32) -> Option<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_groups(&status)
}

fn parse_groups(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
    line.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn groups_of_user(uid: u32, gid: u32) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    let groups = nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_proc() {
        assert_eq!(parse_groups("Name:\tx\nGroups:\t4 24 1000 \nNStgid:\t1\n"), Some(vec![4, 24, 1000]));
        assert_eq!(parse_groups("Groups:\t \n"), Some(vec![]));
        assert_eq!(parse_groups("Name:\tx\n"), None);
        let own = groups_of_thread(std::process::id()).unwrap();
        let mut expected: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        expected.sort_unstable();
        let mut own_sorted = own;
        own_sorted.sort_unstable();
        assert_eq!(own_sorted, expected);
    }
}
