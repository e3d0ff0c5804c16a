//! `dfs put` and `dfs get` that are interrupted, told to stop or killed in the middle: nothing half done under a real name,
//! no temporary files (but of a killed put, which the next ones take away), no directories that nobody can enter.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use tests::cluster::{Cluster, PROCESS_LIMIT};
use tests::content::Content;
use tests::wait::{wait_for, wait_until};

/// Length of a file, in bytes: too much for it to be in the metadata.
const LEN: u64 = 6 << 20;

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Sends the signal and returns what the program said at its end.
fn stop(child: Child, signal: Signal) -> String {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn a_get_that_ends_early_leaves_whole_files_and_open_directories() {
    let cluster = Cluster::start_with(1, 1);
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    fs::create_dir_all(source.join("below")).unwrap();
    let content = |file: u64| Content::new(21, file, 1);
    content(1).write_file(&source.join("below/a"), LEN).unwrap();
    content(2).write_file(&source.join("b"), LEN).unwrap();
    fs::set_permissions(source.join("below"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o750)).unwrap();
    cluster.dfs(&["put", "-r", source.to_str().unwrap(), "/tree"]).must();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let copy = local.path().join(signal.as_str());
        assert!(cluster.signal_if_running("chunk-1", Signal::SIGSTOP)); // no file can come to its end
        let get = cluster.command(&["get", "-r", "/tree", copy.to_str().unwrap()]).stderr(Stdio::piped()).spawn();
        let get = get.unwrap();
        wait_until("the get to reach the lower directory", PROCESS_LIMIT, || copy.join("below").is_dir());
        let said = stop(get, signal);
        assert!(cluster.signal_if_running("chunk-1", Signal::SIGCONT));
        assert_eq!((names(&copy), names(&copy.join("below"))), (vec!["below".to_string()], vec![]), "{signal}");
        if signal != Signal::SIGKILL {
            assert!(said.contains("interrupted"), "{said}");
            assert_eq!((mode(&copy), mode(&copy.join("below"))), (0o750, 0o755), "{signal}");
        }
        cluster.dfs(&["get", "-r", "/tree/.", copy.to_str().unwrap()]).must();
        assert_eq!((mode(&copy), mode(&copy.join("below"))), (0o750, 0o755), "{signal}: the next get");
        content(1).check_file(&copy.join("below/a"), LEN).unwrap();
        content(2).check_file(&copy.join("b"), LEN).unwrap();
    }
}

#[test]
fn a_put_that_is_told_to_stop_takes_its_temporary_file_away() {
    let cluster = Cluster::start_with(1, 1);
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    Content::new(22, 1, 1).write_file(&source, LEN).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        assert!(cluster.signal_if_running("chunk-1", Signal::SIGSTOP));
        let put = cluster.command(&["put", source.to_str().unwrap(), "/new"]).stderr(Stdio::piped()).spawn().unwrap();
        let (seen, _) = wait_for("the temporary file", PROCESS_LIMIT, || {
            let listed = cluster.dfs(&["ls", "/"]).must();
            (!listed.text().is_empty()).then(|| listed.text().to_string())
        });
        assert!(seen.starts_with(".dfs-put-"), "{seen}");
        let said = stop(put, signal); // while its chunkserver stands still
        assert!(said.contains("interrupted"), "{said}");
        assert!(cluster.signal_if_running("chunk-1", Signal::SIGCONT));
        assert_eq!(cluster.dfs(&["ls", "/"]).must().text(), "", "{signal}");
    }
}
