//! Strangers, garbage, wrong settings, full disks and impossible names: a clear error each, no panic, nothing lost.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::cluster::{Cluster, PROCESS_LIMIT, program};
use tests::command::{Ended, run};
use tests::content::Content;
use tests::wait::wait_until;

/// A program that must refuse to start does so within this.
const REFUSE_LIMIT: Duration = Duration::from_secs(20);
/// A full cluster says so within this: less than a client waits for servers that are down (30 s).
const FULL_LIMIT: Duration = Duration::from_secs(20);
/// A server answers or closes within this: its own limit for a hello is 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Length of a hello (`common/src/hello.rs`).
const HELLO_LEN: usize = 48;

/// CRC32C, bit by bit: written here again on purpose, as another implementation of the format.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// What a client says first.
fn hello(version: u16, plane: u8, cluster: u128) -> [u8; HELLO_LEN] {
    let mut bytes = [0; HELLO_LEN];
    bytes[..4].copy_from_slice(b"DFS1");
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    (bytes[6], bytes[7]) = (plane, 1);
    bytes[8..24].copy_from_slice(&cluster.to_le_bytes());
    let crc = crc32c(&bytes[..44]);
    bytes[44..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Where a server of the cluster listens, from its configuration, and which plane that is.
fn listens(cluster: &Cluster, name: &str) -> (String, u8) {
    let text = std::fs::read_to_string(cluster.dir().join(format!("conf/{name}.toml"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap();
    (line.trim_matches('"').into(), if name.starts_with("meta") { 1 } else { 2 })
}

/// Sends some bytes, says that no more come if `end`, and returns what came back until the server closed.
fn send(addr: &str, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    // The server may close before it has read all: then writing fails, and that is an answer too.
    let _refused = stream.write_all(bytes);
    if end {
        let _closed = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{addr} neither answered nor closed within {ANSWER_LIMIT:?}: {error}"),
    }
    answer
}

/// The version byte pair that the servers speak, learnt from a refusal: its answer carries theirs.
fn their_version(addr: &str, plane: u8) -> u16 {
    let answer = send(addr, &hello(0xffff, plane, 0), true);
    assert!(answer.len() >= HELLO_LEN, "a refusal is an answer");
    u16::from_le_bytes([answer[4], answer[5]])
}

fn must_serve(cluster: &Cluster, local: &Path, name: &str) {
    let (source, back) = (local.join(format!("{name}.in")), local.join(format!("{name}.out")));
    let content = Content::new(7, 1, 1);
    content.write_file(&source, 5 << 20).unwrap();
    cluster.dfs(&["put", source.to_str().unwrap(), &format!("/{name}")]).must();
    cluster.dfs(&["get", &format!("/{name}"), back.to_str().unwrap()]).must();
    content.check_file(&back, 5 << 20).unwrap();
}

/// Exit code not 0, one line that holds each of these words.
fn must_refuse(ended: &Ended, words: &[&str]) {
    assert!(!ended.timed_out && ended.code.is_some_and(|code| code != 0), "{ended}");
    let said = format!("{}{}", String::from_utf8_lossy(&ended.out), ended.err);
    assert!(!said.contains("panicked"), "{ended}");
    for word in words {
        assert!(said.contains(word), "says nothing of {word:?}: {ended}");
    }
}

#[test]
fn garbage_on_any_port_harms_nobody() {
    let cluster = Cluster::start();
    let local = tempfile::tempdir().unwrap();
    let pids: Vec<_> = cluster.servers().iter().map(|name| cluster.pid(name)).collect();
    let noise = Content::new(7, 9, 9).bytes(0, 1 << 20);
    for name in cluster.servers() {
        let (addr, plane) = listens(&cluster, &name);
        let version = their_version(&addr, plane);
        let good = hello(version, plane, 0);
        let behind_hello = |bytes: &[u8]| [&good[..], bytes].concat();

        let refusal = String::from_utf8_lossy(&send(&addr, &hello(version + 1, plane, 0), true)).into_owned();
        assert!(refusal.contains("version"), "{name}: {refusal}");
        let refusal = String::from_utf8_lossy(&send(&addr, &hello(version, plane, 12_345), true)).into_owned();
        assert!(refusal.contains("cluster"), "{name}: {refusal}");
        let refusal = String::from_utf8_lossy(&send(&addr, &hello(version, 3 - plane, 0), true)).into_owned();
        assert!(refusal.len() > HELLO_LEN, "{name} refuses the other plane with a reason: {refusal}");

        send(&addr, &[], true);
        send(&addr, &noise, true);
        send(&addr, &good[..20], true);
        let mut flipped = good;
        flipped[9] ^= 1;
        send(&addr, &flipped, true);
        send(&addr, &behind_hello(&[0xff; 64]), true);
        send(&addr, &behind_hello(&noise), true);
        send(&addr, &behind_hello(&[0; 64]), true);
        send(&addr, &behind_hello(&[8, 0, 0, 0, 1]), true);
        // A frame that announces 7 MiB and stops.
        send(&addr, &behind_hello(&[&(7_u32 << 20).to_be_bytes()[..], &(7_u32 << 20).to_le_bytes()].concat()), true);
        // Silence: the server closes by itself.
        send(&addr, &good[..10], false);
    }
    // Connections that never say anything hold nobody up.
    let silent: Vec<TcpStream> = cluster
        .servers()
        .iter()
        .flat_map(|name| (0..100).map(|_| TcpStream::connect(listens(&cluster, name).0).unwrap()).collect::<Vec<_>>())
        .collect();
    must_serve(&cluster, local.path(), "while-silent");
    drop(silent);
    must_serve(&cluster, local.path(), "after");
    assert_eq!(pids, cluster.servers().iter().map(|name| cluster.pid(name)).collect::<Vec<_>>(), "nobody restarted");
    for name in cluster.servers() {
        assert!(!cluster.log(&name).contains("panicked"), "{name} panicked");
    }
}

#[test]
fn wrong_settings_are_refused_with_the_reason() {
    let cluster = Cluster::start_with(1, 1);
    for (server, name) in [("metaserver", "meta-1"), ("chunkserver", "chunk-1")] {
        let conf = cluster.dir().join(format!("conf/{name}.toml"));
        let text = std::fs::read_to_string(&conf).unwrap();
        let start = |path: &Path| run(Command::new(program(server)).arg("--config").arg(path), REFUSE_LIMIT);
        let with = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            let path = cluster.dir().join(format!("{name}-bad.toml"));
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            start(&path)
        };
        let data = cluster.data(name).display().to_string();
        let elsewhere = cluster.dir().join(format!("elsewhere-{name}")).display().to_string();

        must_refuse(&start(&conf), &[&data]); // it runs already: on the same data
        must_refuse(&with(&data, &elsewhere), &[&listens(&cluster, name).0]); // the port is taken
        must_refuse(&with("listen = ", "lisetn = 1\nlisten = "), &["lisetn", "bad.toml"]);
        must_refuse(&with("listen = \"", "listen = \"nonsense"), &["nonsense"]);
        must_refuse(&start(Path::new("/does/not/exist.toml")), &["/does/not/exist.toml"]);
    }
    let pids: Vec<_> = cluster.servers().iter().map(|name| cluster.pid(name)).collect();
    assert!(pids.iter().all(Option::is_some), "the servers that run are not disturbed");
}

#[test]
fn data_of_another_cluster_or_node_is_refused() {
    let (mine, other) = (Cluster::start_with(1, 1), Cluster::start_with(1, 1));
    let swapped = mine.dir().join("swapped.toml");
    mine.kill(&["meta-1", "chunk-1"]);
    other.kill(&["chunk-1"]);

    // Another node id on this node's data.
    let text = std::fs::read_to_string(mine.dir().join("conf/meta-1.toml")).unwrap();
    std::fs::write(&swapped, text.replace("node_id = 1", "node_id = 2").replace("\n1 = ", "\n2 = ")).unwrap();
    must_refuse(&run(Command::new(program("metaserver")).arg("--config").arg(&swapped), REFUSE_LIMIT), &["node"]);

    // A chunkserver of another cluster: its chunks must not be mixed in. It may wait instead of exiting, but says why.
    let text = std::fs::read_to_string(other.dir().join("conf/chunk-1.toml")).unwrap();
    let (theirs, ours) = (other.data("chunk-1").display().to_string(), mine.data("chunk-1").display().to_string());
    std::fs::write(&swapped, text.replace(&theirs, &ours)).unwrap();
    let ended = run(Command::new(program("chunkserver")).arg("--config").arg(&swapped), REFUSE_LIMIT);
    let said = format!("{}{}", String::from_utf8_lossy(&ended.out), ended.err);
    assert!(!ended.ok() && said.contains("cluster"), "{ended}");
    let servers = other.status()["chunkservers"].as_array().unwrap().len();
    assert_eq!(servers, 1, "the stranger is not registered");
}

#[test]
fn clients_with_wrong_settings_fail_in_time_and_say_why() {
    let cluster = Cluster::start_with(1, 1);
    let config = cluster.dir().join("other.toml");
    let with = |lines: &str, args: &[&str]| {
        std::fs::write(&config, lines).unwrap();
        let mut command = cluster.command(args);
        run(command.env("DFS_CONFIG", &config), REFUSE_LIMIT).must_fail_cleanly()
    };
    let meta = format!("meta = [\"{}\"]", listens(&cluster, "meta-1").0);
    let ended = with(&format!("{meta}\ncluster = \"{:032x}\"\nop_timeout_s = 3", 12_345), &["ls", "/"]);
    assert!(ended.err.contains("cluster"), "{ended}");
    let ended = with(&format!("{meta}\nmeat = 1"), &["ls", "/"]);
    assert!(ended.err.contains("meat") && ended.err.contains("other.toml"), "{ended}");
    let ended = with("meta = [\"127.0.0.1:1\"]\nop_timeout_s = 3", &["ls", "/"]);
    assert!(ended.err.contains("127.0.0.1:1"), "{ended}");
    // A chunkserver is no metaserver.
    let ended = with(&format!("meta = [\"{}\"]\nop_timeout_s = 3", listens(&cluster, "chunk-1").0), &["ls", "/"]);
    assert!(ended.err.contains("127.0.0.1"), "{ended}");
    let ended = with("", &["ls", "/"]);
    assert!(ended.err.contains("meta"), "{ended}");
}

#[test]
fn impossible_names_paths_and_arguments_are_refused_one_line_each() {
    let cluster = Cluster::start_with(1, 1);
    let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
    cluster.dfs(&["mkdir", &format!("/{longest}")]).must();
    for args in [
        &["mkdir", &format!("/{too_long}")][..],
        &["mkdir", &format!("/{longest}")],
        &["mkdir", "/no/such/parent"],
        &["rm", "/"],
        &["rm", &format!("/{longest}")],
        &["rm", "/missing"],
        &["mv", "/missing", "/b"],
        &["cat", "/"],
        &["get", "/missing", "/tmp/never-made"],
        &["put", "/does/not/exist", "/x"],
        &["chmod", "9z", "/"],
        &["stat", "/missing"],
        &["nonsense"],
        &["ls", "--nonsense"],
    ] {
        let ended = cluster.dfs(args).must_fail_cleanly();
        let usage = ended.code == Some(2);
        assert!(usage || ended.err.trim().lines().count() == 1, "one line: {ended}");
        assert!(usage || ended.err.starts_with("dfs: "), "{ended}");
    }
}

#[test]
fn full_disks_are_an_error_and_what_was_acknowledged_stays() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::prepare();
    for server in ["chunk-1", "chunk-2", "chunk-3"] {
        let (image, data) = (cluster.dir().join(format!("{server}.img")), cluster.data(server));
        std::fs::create_dir_all(&data).unwrap();
        std::fs::File::create(&image).unwrap().set_len(640 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image), REFUSE_LIMIT).must();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&data), REFUSE_LIMIT).must();
        std::fs::remove_dir(data.join("lost+found")).unwrap();
    }
    cluster.up();
    let mnt = cluster.mount("m");
    let content = |file: u64| Content::new(7, file, 1);
    let mut kept = 0;
    let error = loop {
        match content(kept).write_file(&mnt.join(format!("file-{kept}")), 8 << 20) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100, "800 MiB do not fit into 640 MiB");
    };
    eprintln!("full after {kept} files: {error}");
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
    assert!(kept >= 5, "only {kept} files of 8 MiB fitted");
    let source = cluster.dir().join("more");
    Content::new(7, 1000, 1).write_file(&source, 8 << 20).unwrap();
    let ended = cluster.dfs(&["put", source.to_str().unwrap(), "/more"]).must_fail_cleanly();
    assert!(ended.err.contains("space"), "{ended}");
    assert!(ended.took < FULL_LIMIT, "full is not down, and is said at once: {ended}");
    cluster.dfs(&["mkdir", "/metadata-goes-on"]).must();

    let servers = cluster.servers();
    cluster.kill(&servers);
    cluster.up();
    let fresh = cluster.mount("fresh");
    for file in 0..kept {
        content(file).check_file(&fresh.join(format!("file-{file}")), 8 << 20).unwrap();
    }
}

#[test]
fn a_file_that_changes_while_it_is_put_is_said_to_have_changed() {
    let cluster = Cluster::start_with(1, 1);
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("log");
    Content::new(8, 1, 1).write_file(&source, 32 << 20).unwrap();
    let mut log = std::fs::OpenOptions::new().append(true).open(&source).unwrap();
    // It cannot end while its only chunkserver stands still.
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGSTOP));
    let mut put = cluster.command(&["put", source.to_str().unwrap(), "/log"]);
    let put = put.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let process = Path::new("/proc").join(put.id().to_string());
    wait_until("some of the source is read", PROCESS_LIMIT, || {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let source = open.filter(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == source));
        let infos =
            source.filter_map(|file| std::fs::read_to_string(process.join("fdinfo").join(file.file_name())).ok());
        infos.into_iter().any(|info| info.starts_with("pos:\t") && !info.starts_with("pos:\t0\n"))
    });
    log.write_all(b"one more line\n").unwrap();
    assert!(cluster.signal_if_running("chunk-1", Signal::SIGCONT));
    let ended = put.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("changed while it was read"), "{said}");
    cluster.dfs(&["stat", "/log"]).must();
    cluster.dfs(&["put", source.to_str().unwrap(), "/log"]).must();
}
