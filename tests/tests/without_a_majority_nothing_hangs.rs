//! With two of three metaservers down every operation fails with a clear error within its deadline; with too few
//! chunkservers writes do; and all goes on when one returns.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::run;
use tests::content::Content;
use tests::wait::wait_until;
use tokio::time::Instant;

/// The deadline these clients are configured with.
const OP_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest of these steps: two operations that wait (`fsync`, then the `close` that tries once more).
const STEP_LIMIT: Duration = OP_TIMEOUT.saturating_mul(2);
/// What a step may take beyond that, on a busy machine of two cores.
const SLACK: Duration = Duration::from_secs(4);
/// All goes on within this long: a chunkserver that was down takes writes again after 30 s (`TARGET_AFTER`), and an attempt to
/// write just before that takes three times [`OP_TIMEOUT`].
const RESUME_LIMIT: Duration = Duration::from_secs(90);

/// A cluster whose clients have the short deadline.
fn start() -> Cluster {
    let cluster = Cluster::start();
    cluster.configure("dfs.toml", &format!("op_timeout_s = {}", OP_TIMEOUT.as_secs()));
    cluster
}

/// Runs one file operation that must fail in time, with an error that means "not now".
fn must_fail_in_time<T>(what: &str, operation: impl FnOnce() -> std::io::Result<T>) {
    let start = Instant::now();
    let result = operation();
    let took = start.elapsed();
    assert!(took < STEP_LIMIT + SLACK, "{what} took {took:?}");
    let Err(error) = result else { panic!("{what} succeeded without a majority") };
    let code = error.raw_os_error();
    let allowed = [nix::libc::EIO, nix::libc::ETIMEDOUT, nix::libc::ENOSPC];
    assert!(code.is_some_and(|code| allowed.contains(&code)), "{what}: {error}");
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[test]
fn with_one_metaserver_of_three_operations_fail_in_time_and_go_on_when_a_second_returns() {
    tests::skip_if!(no_mount);
    let mut cluster = start();
    let mnt = cluster.mount("m");
    write_synced(&mnt.join("before"), b"kept").unwrap();
    cluster.kill(&["meta-1", "meta-2"]);

    for args in [&["ls", "/"][..], &["mkdir", "/new"], &["cat", "/before"], &["admin", "status"]] {
        let ended = run(&mut cluster.command(args), OP_TIMEOUT + SLACK);
        let ended = ended.must_fail_cleanly();
        let status = args[0] == "admin"; // which shows each metaserver first
        assert!(status || ended.err.trim().lines().count() == 1, "one line: {ended}");
    }
    let file = mnt.join("during");
    must_fail_in_time("create", || write_synced(&file, b"lost?"));
    must_fail_in_time("mkdir", || std::fs::create_dir(mnt.join("dir")));
    must_fail_in_time("list", || std::fs::read_dir(&mnt)?.collect::<Result<Vec<_>, _>>());
    must_fail_in_time("rename", || std::fs::rename(mnt.join("before"), mnt.join("after")));
    let start = Instant::now();
    let _any_answer = nix::sys::statvfs::statvfs(&mnt);
    assert!(start.elapsed() < SLACK, "statfs must not block: {:?}", start.elapsed());

    cluster.start_server("meta-2");
    wait_until("writes to go on", RESUME_LIMIT, || write_synced(&mnt.join("again"), b"back").is_ok());
    wait_until("commands to go on", RESUME_LIMIT, || cluster.dfs(&["ls", "/"]).ok());
    // A rename that timed out may have happened; the file is there under one of the names.
    let kept = std::fs::read(mnt.join("before")).or_else(|_| std::fs::read(mnt.join("after"))).unwrap();
    assert_eq!(kept, b"kept");
}

#[test]
fn with_one_chunkserver_of_three_writes_fail_in_time_and_reads_go_on() {
    tests::skip_if!(no_mount);
    let mut cluster = start();
    let mnt = cluster.mount("m");
    let content = Content::new(5, 1, 1);
    content.write_file(&mnt.join("before"), 1 << 20).unwrap();
    cluster.kill(&["chunk-1", "chunk-3"]);
    // One copy is below `min_replicas`: nothing may be acknowledged.
    must_fail_in_time("write", || write_synced(&mnt.join("during"), &content.bytes(0, 300_000)));
    let fresh = cluster.mount("fresh");
    content.check_file(&fresh.join("before"), 1 << 20).unwrap();
    cluster.start_server("chunk-3");
    wait_until("writes to go on", RESUME_LIMIT, || {
        write_synced(&mnt.join("again"), &content.bytes(0, 300_000)).is_ok()
    });
    content.check_file(&fresh.join("again"), 300_000).unwrap();
}

#[test]
fn with_no_server_at_all_nothing_hangs_and_the_mount_can_be_removed() {
    tests::skip_if!(no_mount);
    let mut cluster = start();
    let mnt = cluster.mount("m");
    write_synced(&mnt.join("before"), b"kept").unwrap();
    cluster.kill(&cluster.servers());
    must_fail_in_time("create", || write_synced(&mnt.join("during"), b"lost"));
    run(&mut cluster.command(&["ls", "/"]), OP_TIMEOUT + SLACK).must_fail_cleanly();
    cluster.up();
    wait_until("reads to go on", RESUME_LIMIT, || std::fs::read(mnt.join("before")).is_ok());
    cluster.unmount("m");
}
