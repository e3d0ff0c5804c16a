//! What can be seen of the thread that asks, which is blocked meanwhile: the kernel's requests do not tell all that we need,
//! and `fuser` passes on neither all of them nor the interruption of one.
//!
//! Which system call it is in, with the command of `fcntl`, stands in `/proc/TID/syscall` (root only); whether a signal waits for
//! it in `/proc/TID/status`; whether it ends because of one in `/proc/TID/stat`.

use nix::libc;
use std::time::Duration;

/// Looks at a thread until it sleeps in its system call.
const LOOKS_MAX: u32 = 200;
/// The first of them only let others run in between.
const YIELDS: u32 = 20;
/// Between two of them.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// `PF_EXITING` of a task's flags.
const EXITING: u32 = 4;
/// Fields of `/proc/TID/stat` behind the name in brackets: the flags, and the exit code.
const STAT_FLAGS: usize = 6;
const STAT_EXIT_CODE: usize = 49;

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Flock,
    Fcntl,
    /// `fcntl` with a lock of an open file.
    OpenFile,
    /// Something that brings an unlock along, or it cannot be seen.
    Other,
}

/// What the line of `/proc/TID/syscall` says; `None`: nothing yet, the thread still runs.
fn doing(line: &str) -> Option<Doing> {
    let mut words = line.split_whitespace();
    let number = words.next()?;
    if number == "running" {
        return None;
    }
    let argument = |word: Option<&str>| i64::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
    let command = argument(words.nth(1)).and_then(|command| i32::try_from(command).ok());
    let open_file = [libc::F_OFD_SETLK, libc::F_OFD_SETLKW, libc::F_OFD_GETLK];
    Some(match number.parse::<libc::c_long>() {
        Ok(libc::SYS_flock) => Doing::Flock,
        Ok(libc::SYS_fcntl) if command.is_some_and(|command| open_file.contains(&command)) => Doing::OpenFile,
        Ok(libc::SYS_fcntl) => Doing::Fcntl,
        _ => Doing::Other,
    })
}

pub(super) async fn what_it_does(thread: u32) -> Doing {
    for look in 0..LOOKS_MAX {
        match std::fs::read_to_string(format!("/proc/{thread}/syscall")) {
            Ok(line) => match doing(&line) {
                Some(doing) => return doing,
                // It has sent the request and is about to sleep.
                None if look < YIELDS => std::thread::yield_now(),
                None => tokio::time::sleep(LOOK_PAUSE).await,
            },
            Err(_) => break,
        }
    }
    Doing::Other
}

/// The signals that wait and are not blocked, one bit each, by the lines of `/proc/TID/status`.
fn signals(status: &str) -> u64 {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let [own, all, blocked] = ["SigPnd:", "ShdPnd:", "SigBlk:"].map(|name| mask(name).unwrap_or(0));
    (own | all) & !blocked
}

/// Whether a thread with these signals is as good as dead: the kernel turns every signal that ends a process into `SIGKILL`s of
/// its threads.
fn is_deadly(signals: u64) -> bool {
    signals & (1 << (libc::SIGKILL - 1)) != 0
}

/// Whether the line of `/proc/TID/stat` is of a thread that ends because of a signal. Closing its files is part of that.
fn dies(stat: &str) -> bool {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    field(STAT_FLAGS) & EXITING != 0 && field(STAT_EXIT_CODE) & 0x7f != 0
}

pub(super) fn is_interrupted(thread: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| signals(&status) != 0)
}

/// Whether the thread was killed and cannot go before it has its answer.
pub(super) fn is_killed(thread: u32) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{thread}/{name}"));
    read("status").is_ok_and(|status| is_deadly(signals(&status))) || read("stat").is_ok_and(|stat| dies(&stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_of_locks_are_told_apart_by_the_system_call() {
        let line = |number: i64, command: i32| format!("{number} 0x3 0x{command:x} 0x7ffd 0x0 0x0 0x0 0x7ffd 0x7f12\n");
        assert_eq!(doing("running\n"), None);
        assert_eq!(doing(&line(libc::SYS_flock, libc::LOCK_EX)), Some(Doing::Flock));
        assert_eq!(doing(&line(libc::SYS_fcntl, libc::F_SETLKW)), Some(Doing::Fcntl));
        assert_eq!(doing(&line(libc::SYS_fcntl, libc::F_OFD_SETLK)), Some(Doing::OpenFile));
        assert_eq!(doing(&line(libc::SYS_close, 0)), Some(Doing::Other));
        assert_eq!(doing("-1 0x7ffd 0x7f12\n"), Some(Doing::Other));
    }

    fn is_pending(status: &str) -> bool {
        signals(status) != 0
    }

    #[test]
    fn a_signal_counts_unless_it_is_blocked() {
        let status = |own: &str, all: &str, blocked: &str| {
            format!(
                "Name:\tx\nSigQ:\t1/9\nSigPnd:\t{own}\nShdPnd:\t{all}\nSigBlk:\t{blocked}\nSigIgn:\t0000000000000000\n"
            )
        };
        assert!(!is_pending(&status("0000000000000000", "0000000000000000", "0000000000000000")));
        assert!(is_pending(&status("0000000000000100", "0000000000000000", "0000000000000000")));
        assert!(is_pending(&status("0000000000000000", "0000000000002000", "0000000000000001")));
        assert!(!is_pending(&status("0000000000000000", "0000000000002000", "0000000000002000")));
    }

    #[test]
    fn who_is_killed_is_told_from_who_ends() {
        assert!(is_deadly(1 << 8) && is_deadly(u64::MAX) && !is_deadly(1 << 14), "SIGTERM has a handler if it waits");
        let stat = |flags: u32, code: u32| {
            let before = ["0"; STAT_FLAGS - 1].join(" ");
            let between = ["0"; STAT_EXIT_CODE - STAT_FLAGS - 1].join(" ");
            format!("77 (a) name) D {before} {flags} {between} {code}\n")
        };
        assert!(dies(&stat(0x40_0004, 9)) && dies(&stat(4, 0x8b)), "killed, and with a core dump");
        assert!(!dies(&stat(4, 0x100)) && !dies(&stat(0x40_0000, 9)) && !dies("") && !dies("77 (x) R"));
    }

    #[test]
    fn a_thread_that_lives_is_not_killed() {
        assert!(!is_killed(std::process::id()) && !is_killed(0));
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace().count();
        assert!(fields > STAT_EXIT_CODE, "{stat}");
    }
}
