//! A mount passes the test suites that others wrote for file systems: pjdfstest (POSIX, call by call), fsx (random
//! changes of one file against a copy in memory), stress-ng (many calls at once).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT, program};
use tests::command::{Ended, run};
use tests::tools::tool;
use tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(200);
const FULL_LIMIT: Duration = Duration::from_secs(1700);

fn full() -> bool {
    std::env::var_os("DFS_TEST_FULL").is_some()
}

fn limit() -> Duration {
    if full() { FULL_LIMIT } else { LIMIT }
}

/// Everything that Linux has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Runs a script as root, in which mounts may be made and are gone afterwards.
fn apart(script: &str, limit: Duration) -> Ended {
    run(Command::new("unshare").args(["-m", "sh", "-c", script]), limit)
}

#[test]
fn pjdfstest_passes_whole() {
    tests::skip_if!(no_mount, no_root, no_pjdfstest);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let dir = mnt.join("pjd");
    std::fs::create_dir(&dir).unwrap();
    let second = cluster.dir().join("second");
    std::fs::create_dir(&second).unwrap();
    let suite = |name: &str, remount: &str, pattern: &str| {
        let config = cluster.dir().join(name);
        std::fs::write(&config, PJDFSTEST.replace("REMOUNT", remount)).unwrap();
        // `mount -o remount` looks for `dfs` in a path of its own.
        let script = format!(
            "mount -t tmpfs none /usr/local/bin && ln -s {dfs} /usr/local/bin/dfs && mount -t tmpfs none {second} && \
             chmod 755 {second} {dir} && exec {pjdfstest} -c {config} -s {second} -p {dir} {pattern}",
            dfs = program("dfs").display(),
            pjdfstest = tool("pjdfstest").display(),
            config = config.display(),
            second = second.display(),
            dir = dir.display(),
        );
        let ended = apart(&script, LIMIT);
        let text = ended.text().to_string();
        let is_ok = |line: &&str| !line.contains("FAILED") && !line.ends_with(" skipped");
        let not_ok: Vec<String> = text.lines().filter(|line| !is_ok(line)).map(str::to_owned).collect();
        assert!(ended.ok() && text.contains("Summary: 0 failed"), "{not_ok:#?}\n{text}\n{}", ended.err);
        not_ok
    };
    let skipped = suite("whole.toml", "false", "");
    // The first is for file systems that say how many links they allow: Linux has no way to say it for FUSE. The others
    // mount read-only, which needs a run of their own: some tests of the suite leave files open for writing.
    let for_now: Vec<_> = skipped.iter().filter(|line| !line.contains("erofs")).collect();
    assert!(for_now.iter().all(|line| line.starts_with("link::link_count_max")), "{for_now:#?}");
    assert_eq!(suite("read-only.toml", "true", "erofs"), Vec::<String>::new());
}

/// All kinds of operations. `flen` and the largest operation go over several chunks of 64 KiB.
fn fsx_config(dir: &Path) -> PathBuf {
    let mut text = "flen = 524288\n[opsize]\nmax = 131072\n[weights]\n".to_string();
    let weights = [
        ("close_open", 2.0),
        ("invalidate", 1.0),
        ("mapread", 10.0),
        ("mapwrite", 10.0),
        ("read", 10.0),
        ("write", 10.0),
        ("truncate", 8.0),
        ("fsync", 1.0),
        ("fdatasync", 1.0),
        ("posix_fallocate", 2.0),
        ("punch_hole", 6.0),
        ("sendfile", 2.0),
        ("posix_fadvise", 1.0),
        ("copy_file_range", 8.0),
    ];
    for (name, weight) in weights {
        text += &format!("{name} = {weight:?}\n");
    }
    let path = dir.join("fsx.toml");
    std::fs::write(&path, text).expect("a configuration can be written");
    path
}

fn fsx(config: &Path, seed: u64, operations: u64, artifacts: &Path, file: &Path) -> Command {
    let mut command = Command::new(tool("fsx"));
    command.arg("-f").arg(config).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
    command.arg(artifacts).arg(file);
    command
}

#[test]
fn fsx_finds_no_difference() {
    tests::skip_if!(no_mount, no_fsx);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    cluster.dfs(&["mkdir", "/fsx"]).must();
    let config = fsx_config(cluster.dir());
    let operations = if full() { 100_000 } else { 300 };
    std::thread::scope(|scope| {
        for seed in 1..=10 {
            let (config, dir, file) = (&config, cluster.dir(), mnt.join("fsx").join(seed.to_string()));
            scope.spawn(move || run(&mut fsx(config, seed, operations, dir, &file), limit()).must());
        }
    });
}

#[test]
fn fsx_finds_no_difference_while_servers_are_killed() {
    tests::skip_if!(no_mount, no_fsx);
    let mut cluster = Cluster::start();
    let mnt = cluster.mount("m");
    let config = fsx_config(cluster.dir());
    let operations = if full() { 20_000 } else { 300 };
    let kills_min = if full() { 20 } else { 3 };
    let mut killed = 0;
    std::thread::scope(|scope| {
        let running: Vec<_> = (1..=2)
            .map(|seed| {
                let (config, dir, file) = (&config, cluster.dir(), mnt.join(format!("fsx-{seed}")));
                scope.spawn(move || run(&mut fsx(config, seed, operations, dir, &file), limit()))
            })
            .collect();
        let servers = cluster.servers();
        while killed < kills_min || !running.iter().all(|thread| thread.is_finished()) {
            let name = &servers[killed % servers.len()];
            cluster.kill(&[name]);
            cluster.start_server(name);
            cluster.leader();
            wait_until("all servers to be up", PROCESS_LIMIT, || {
                let status = cluster.status();
                let all_up = |kind: &str| status[kind].as_array().unwrap().iter().all(|server| server["up"] == true);
                all_up("chunkservers") && all_up("metaservers")
            });
            killed += 1;
        }
        running.into_iter().for_each(|thread| drop(thread.join().unwrap().must()));
    });
}

#[test]
fn stress_ng_finds_no_error() {
    tests::skip_if!(no_mount, no_root, no_stress_ng);
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let mut command = Command::new("stress-ng");
    command.args(["--verify", "--temp-path"]).arg(&mnt);
    if full() {
        // Some fifty, one after the other: ten minutes.
        command.args(["--class", "filesystem", "--sequential", "1", "--timeout", "12s"]);
    } else {
        let at_once = [
            "access",
            "chmod",
            "chown",
            "copy-file",
            "dentry",
            "fallocate",
            "fcntl",
            "flock",
            "fpunch",
            "getdent",
            "hdd",
            "iomix",
            "link",
            "locka",
            "lockf",
            "lockofd",
            "open",
            "rename",
            "symlink",
            "utime",
            "xattr",
        ];
        for stressor in at_once {
            command.args([&format!("--{stressor}"), "1"]);
        }
        command.args(["--timeout", "4s", "--hdd-bytes", "16m", "--iomix-bytes", "16m", "--copy-file-bytes", "128m"]);
    }
    let ended = run(&mut command, limit());
    let text = format!("{}{}", String::from_utf8_lossy(&ended.out), ended.err);
    // 3 and 4: a stressor is not for this kernel or file system (binder, verity).
    assert!(matches!(ended.code, Some(0 | 3 | 4)) && !text.contains(" fail: ") && !text.contains(" error: "), "{text}");
}
